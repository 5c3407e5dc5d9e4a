//! Raw Docker by its API: create and start, with the limits, init and log settings of an instance.
//!
//! A container counts as running when Docker's start call has returned.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_trait::async_trait;
use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountType,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use enoki_harness::Cloud;
use futures::{StreamExt, TryStreamExt, stream};

use crate::contender::{Contender, DEADLINE, IMAGE, INIT, INIT_INSIDE, MEMORY, MILLI_CPUS, PIDS, gone};
use crate::hosts::Hosts;
use crate::machine::Meter;

/// How many are removed at a time.
pub const REMOVALS: usize = 4;
/// On every container that a benchmark makes by hand.
pub const LABEL: &str = "enoki-bench";

/// A client of the dockerd in a cloud.
pub async fn connect(cloud: &Cloud) -> Result<Docker> {
    let socket = cloud.path("/run/docker.sock");
    let client = Docker::connect_with_unix(
        &socket.to_string_lossy(),
        DEADLINE.as_secs(),
        bollard::API_DEFAULT_VERSION,
    )?;
    client.negotiate_version().await.with_context(|| format!("ask dockerd at {}", socket.display()))
}

/// Names and versions of what starts the containers.
pub async fn versions(docker: &Docker) -> Result<String> {
    let version = docker.version().await?;
    let info = docker.info().await?;
    let parts = version.components.unwrap_or_default();
    let parts: Vec<String> = parts.iter().map(|part| format!("{} {}", part.name, part.version)).collect();
    Ok(format!(
        "{}; {} on {}",
        parts.join(", "),
        info.driver.unwrap_or_default(),
        info.docker_root_dir.unwrap_or_default()
    ))
}

/// Ids of all containers of a daemon with this label, or of all.
pub async fn containers(docker: &Docker, label: Option<&str>) -> Result<Vec<String>> {
    let filters: HashMap<&str, Vec<&str>> = label.map(|label| ("label", vec![label])).into_iter().collect();
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let found = docker.list_containers(Some(options)).await?;
    Ok(found.into_iter().filter_map(|container| container.id).collect())
}

pub async fn remove(docker: &Docker, id: &str) -> Result<()> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    docker.remove_container(id, Some(options)).await.with_context(|| format!("remove container {id}"))
}

/// Creates a container and starts it; the time that both calls took together. `between` is not counted.
pub async fn create_and_start(
    docker: &Docker,
    name: &str,
    body: ContainerCreateBody,
    between: impl FnOnce(&str) -> Result<()>,
) -> Result<(String, Duration)> {
    let options = CreateContainerOptionsBuilder::default().name(name).build();
    let begun = Instant::now();
    let made = docker.create_container(Some(options), body).await.context("create a container")?;
    let mut taken = begun.elapsed();
    between(&made.id)?;
    let begun = Instant::now();
    docker.start_container(&made.id, None).await.with_context(|| format!("start container {name}"))?;
    taken += begun.elapsed();
    Ok((made.id, taken))
}

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
        let init = Mount {
            target: Some(INIT_INSIDE.to_owned()),
            source: Some(INIT.to_owned()),
            typ: Some(MountType::BIND),
            read_only: Some(true),
            ..Mount::default()
        };
        let host = HostConfig {
            network_mode: Some(self.network.to_owned()),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            mounts: Some(vec![init]),
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

/// The image's id: what a swarm takes without asking a registry.
pub async fn image_id(docker: &Docker, cloud: &Cloud) -> Result<String> {
    let image =
        docker.inspect_image(IMAGE).await.with_context(|| format!("look at {IMAGE}{}", cloud.logs()))?;
    image.id.with_context(|| format!("{IMAGE} has no id"))
}

/// What a folder of a cloud holds, by full path; nothing when it is not there.
pub fn names_below(cloud: &Cloud, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(cloud.path(folder)).into_iter().flatten().flatten();
    let name = |entry: std::fs::DirEntry| Path::new(folder).join(entry.file_name()).display().to_string();
    entries.map(name).collect()
}
