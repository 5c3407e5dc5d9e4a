//! Raw Docker by its API: create and start, with the limits, init and log settings of an instance.
//!
//! A container counts as running when Docker's start call has returned.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig};
use futures::{StreamExt, TryStreamExt, stream};

use crate::contender::{Contender, IMAGE, MEMORY, MILLI_CPUS, PIDS};
use crate::docker::{INIT_INSIDE, LABEL, containers, create_and_start, gone, init, remove};
use crate::hosts::Hosts;
use crate::machine::Meter;

/// How many are removed at a time.
pub const REMOVALS: usize = 4;

/// Raw Docker with one kind of network, on one host after the other.
pub struct Raw<'c> {
    hosts: Hosts<'c>,
    network: &'static str,
    title: &'static str,
    /// Whether the kernel accounts for swap: Docker refuses the limit where it does not.
    swap: bool,
    made: usize,
}

impl<'c> Raw<'c> {
    pub async fn new(hosts: &Hosts<'c>, network: &'static str, title: &'static str) -> Result<Self> {
        let swap = hosts.turn(0).info().await?.swap_limit.unwrap_or(false);
        Ok(Self { hosts: hosts.clone(), network, title, swap, made: 0 })
    }

    fn body(&self) -> ContainerCreateBody {
        let host = HostConfig {
            network_mode: Some(self.network.to_owned()),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            mounts: Some(vec![init()]),
            memory: Some(MEMORY as i64),
            memory_swap: self.swap.then_some(MEMORY as i64),
            cpu_period: Some(100_000),
            cpu_quota: Some(MILLI_CPUS as i64 * 100),
            pids_limit: Some(PIDS as i64),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            ..HostConfig::default()
        };
        ContainerCreateBody {
            image: Some(IMAGE.to_owned()),
            entrypoint: Some(vec![INIT_INSIDE.to_owned()]),
            cmd: Some(Vec::new()),
            labels: Some(HashMap::from([(LABEL.to_owned(), String::new())])),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        }
    }
}

#[async_trait]
impl Contender for Raw<'_> {
    fn name(&self) -> String {
        self.title.to_owned()
    }

    fn in_flight(&self) -> &'static [usize] {
        self.hosts.in_flight()
    }

    async fn launch(&mut self, count: usize, in_flight: usize) -> Result<Duration> {
        let first = self.made;
        self.made += count;
        let begun = Instant::now();
        stream::iter(first..self.made)
            .map(|number| {
                let (docker, body) = (self.hosts.turn(number), self.body());
                let name = format!("{LABEL}-{}-{number}", self.network);
                async move { create_and_start(docker, &name, body, |_| Ok(())).await }
            })
            .buffer_unordered(in_flight)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await?;
        Ok(begun.elapsed())
    }

    async fn landed(&self) -> Result<Vec<usize>> {
        self.hosts.landed().await
    }

    async fn clear(&mut self) -> Result<()> {
        let mut all = Vec::new();
        for docker in &self.hosts.dockers {
            all.extend(containers(docker, Some(LABEL)).await?.into_iter().map(|id| (docker, id)));
        }
        stream::iter(all)
            .map(Ok)
            .try_for_each_concurrent(REMOVALS, |(docker, id)| async move { remove(docker, &id).await })
            .await?;
        gone("containers", || self.hosts.containers()).await
    }

    fn meter(&self) -> &Meter {
        &self.hosts.meter
    }
}
