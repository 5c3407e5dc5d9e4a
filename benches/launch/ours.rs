//! Enoki, driven as a user's program drives it: a POST to the API's socket, and the watch that shows it running.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use enoki_api::client::{ChangeKind, Client, Target, Watch, WriteOptions};
use enoki_api::instance::{InstanceSpec, Nic};
use enoki_api::quantity::{Bytes, MilliCpu};
use enoki_api::{Kind, Labels};
use enoki_harness::Cloud;
use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::contender::{Contender, IMAGE, MEMORY, MILLI_CPUS, PIDS};
use crate::docker::{DEADLINE, gone};
use crate::hosts::Hosts;
use crate::machine::Meter;

/// How many are deleted at a time.
const DELETIONS: usize = 8;
/// The network of instances that get any free address, and its range: large, since a used address rests a while.
const NETWORK: &str = "bench";
const CIDR: &str = "198.18.128.0/18";
/// The network of instances that name their address.
const SEGMENT: &str = "segment";
const SEGMENT_CIDR: &str = "198.18.192.0/18";

/// The API of the cloud under test.
#[derive(Clone)]
pub struct Api(Client);

impl Api {
    pub fn new(cloud: &Cloud) -> Self {
        Self(Client::unix(cloud.path("/run/enoki/api.sock")))
    }

    /// The two networks of one host, alike in all but who picks the address.
    pub async fn make_networks(&self) -> Result<()> {
        self.make_network(NETWORK, "local", CIDR).await?;
        self.make_network(SEGMENT, "local", SEGMENT_CIDR).await
    }

    /// The network of several hosts, which spans them.
    pub async fn make_spanning_network(&self) -> Result<()> {
        self.make_network(NETWORK, "vxlan", CIDR).await
    }

    /// With a way out through the host, as Docker's bridge has.
    async fn make_network(&self, name: &str, kind: &str, cidr: &str) -> Result<()> {
        let spec = json!({"type": kind, "cidr": cidr, "gateway": "host", "egress": "nat"});
        let network = json!({"kind": "network", "name": name, "spec": spec});
        let target = Target::kind(Kind::Network, None);
        self.0.create_value(target, &network, &WriteOptions::default(), DEADLINE).await?;
        Ok(())
    }

    /// Memory of the one host, in bytes.
    pub async fn host_memory(&self) -> Result<u64> {
        let hosts: enoki_api::list::List<enoki_api::Host> =
            self.0.list(None, &Default::default(), DEADLINE).await?;
        let host = hosts.items.first().context("the cloud has no host")?;
        Ok(host.status.capacity.memory.0)
    }

    pub async fn create(&self, name: &str, spec: &InstanceSpec) -> Result<()> {
        let made = self.0.create(None, name, &Labels::new(), spec, &WriteOptions::default(), DEADLINE).await;
        made.map(drop).with_context(|| format!("create instance {name}"))
    }

    /// Names of all instances.
    pub async fn instances(&self) -> Result<Vec<String>> {
        let list =
            self.0.read_list(&Target::kind(Kind::Instance, None), &Default::default(), DEADLINE).await?;
        let items = list.body["items"].as_array().cloned().unwrap_or_default();
        Ok(items.iter().filter_map(|item| item["name"].as_str().map(str::to_owned)).collect())
    }

    pub async fn instance(&self, name: &str) -> Result<Value> {
        Ok(self.0.read(&Target::object(Kind::Instance, None, name), DEADLINE).await?.body)
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        let target = Target::object(Kind::Instance, None, name);
        let answer = self.0.delete(target, &WriteOptions::wait("deleted", DEADLINE), DEADLINE).await;
        let answer = answer.with_context(|| format!("delete instance {name}"))?;
        if !answer.reached() {
            bail!("instance {name} is not gone {} s after its DELETE: {}", DEADLINE.as_secs(), answer.body);
        }
        Ok(())
    }

    pub async fn delete_all(&self, names: Vec<String>) -> Result<()> {
        stream::iter(names.into_iter().map(Ok))
            .try_for_each_concurrent(DELETIONS, |name| async move { self.delete(&name).await })
            .await
    }

    /// An open watch that has told all there is: what comes from now on is news.
    pub async fn follow(&self) -> Result<Follower> {
        let mut watch = self.0.watch(Kind::Instance, None, None, DEADLINE);
        while watch.next().await?.kind != ChangeKind::Bookmark {}
        Ok(Follower(watch))
    }
}

/// The watch of all instances.
pub struct Follower(Watch);

impl Follower {
    /// The name of the next instance that is seen running; those that run already are named again when they change.
    /// Cancel-safe.
    pub async fn running(&mut self) -> Result<String> {
        loop {
            let change = self.0.next().await?;
            let (name, status) = (&change.object["name"], &change.object["status"]);
            let phase = status["phase"].as_str().unwrap_or_default();
            if change.kind == ChangeKind::Put && matches!(phase, "failed" | "backoff") {
                bail!("instance {name} does not start: {status}");
            }
            if change.kind == ChangeKind::Put && phase == "running" {
                return Ok(name.as_str().unwrap_or_default().to_owned());
            }
        }
    }

    pub async fn wait_for(&mut self, name: &str) -> Result<()> {
        let seen = async {
            while self.running().await? != name {}
            anyhow::Ok(())
        };
        tokio::time::timeout(DEADLINE, seen)
            .await
            .with_context(|| format!("instance {name} does not start"))?
    }
}

/// An instance as every contender has it. None: any free address.
pub fn spec(address: Option<Ipv4Addr>) -> InstanceSpec {
    let network = if address.is_some() { SEGMENT } else { NETWORK };
    let mut spec = InstanceSpec::new(IMAGE);
    spec.cpus = Some(MilliCpu(MILLI_CPUS));
    spec.memory = Some(Bytes(MEMORY));
    spec.pids = Some(PIDS);
    spec.nics =
        BTreeMap::from([("eth0".to_owned(), Nic { network: network.to_owned(), address, ..Nic::default() })]);
    spec
}

/// Enoki as a contender.
pub struct Enoki<'c> {
    hosts: Hosts<'c>,
    api: Api,
    title: &'static str,
    /// Whether the orders name their addresses.
    fixed: bool,
    made: usize,
}

impl<'c> Enoki<'c> {
    pub fn new(hosts: &Hosts<'c>, title: &'static str, fixed: bool) -> Self {
        Self { hosts: hosts.clone(), api: Api::new(hosts.clouds[0]), title, fixed, made: 0 }
    }

    /// The n-th instance: a name and, if fixed, an address that no other has.
    fn order(&self, number: usize) -> (String, InstanceSpec) {
        // 10 is past what a network keeps for itself; the range has room for thousands.
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 192, 10)) + number as u32);
        let kind = if self.fixed { "fixed" } else { "any" };
        (format!("{kind}-{number}"), spec(self.fixed.then_some(address)))
    }
}

#[async_trait]
impl Contender for Enoki<'_> {
    fn name(&self) -> String {
        self.title.to_owned()
    }

    fn in_flight(&self) -> &'static [usize] {
        self.hosts.in_flight()
    }

    async fn launch(&mut self, count: usize, in_flight: usize) -> Result<Duration> {
        let mut orders =
            (self.made..self.made + count).map(|number| self.order(number)).collect::<Vec<_>>().into_iter();
        self.made += count;
        let mut follower = self.api.follow().await?;
        let mut under_way: BTreeMap<String, ()> = BTreeMap::new();
        let mut posts = FuturesUnordered::new();
        let begun = Instant::now();
        let all = async {
            let mut left = count;
            while left > 0 {
                // Under way is what was ordered and is not seen running, whether its POST is answered or not.
                while under_way.len() < in_flight
                    && let Some((name, spec)) = orders.next()
                {
                    under_way.insert(name.clone(), ());
                    let api = &self.api;
                    posts.push(async move { api.create(&name, &spec).await });
                }
                // Both arms are cancel-safe: the posts stay in their set, the watch keeps what it has read.
                tokio::select! {
                    Some(answer) = posts.next() => answer?,
                    name = follower.running() => {
                        if under_way.remove(&name?).is_some() {
                            left -= 1;
                        }
                    }
                }
            }
            anyhow::Ok(begun.elapsed())
        };
        let taken = tokio::time::timeout(DEADLINE, all).await;
        let taken = taken
            .with_context(|| format!("not seen running in {} s: {under_way:?}", DEADLINE.as_secs()))??;
        // Seen running before its POST was answered: rare, and the answer must be good all the same.
        posts.try_collect::<()>().await?;
        Ok(taken)
    }

    async fn landed(&self) -> Result<Vec<usize>> {
        self.hosts.landed().await
    }

    async fn clear(&mut self) -> Result<()> {
        self.api.delete_all(self.api.instances().await?).await?;
        gone("instances or their traces", || async {
            let mut left = self.api.instances().await?;
            left.extend(self.hosts.containers().await?);
            left.extend(self.hosts.clouds.iter().flat_map(|cloud| traces(cloud)));
            Ok(left)
        })
        .await
    }

    fn meter(&self) -> &Meter {
        &self.hosts.meter
    }
}

/// What the agent keeps of instances: nothing, when there are none.
fn traces(cloud: &Cloud) -> Vec<String> {
    let folders =
        ["/run/enoki/netns", "/var/lib/enoki/containers", "/var/lib/enoki/disks", "/var/lib/enoki/instances"];
    let mut found: Vec<String> = folders.iter().flat_map(|folder| names_below(cloud, folder)).collect();
    found.retain(|path| path != "/run/enoki/netns/fabric");
    found
}

/// What a folder of a cloud holds, by full path; nothing when it is not there.
fn names_below(cloud: &Cloud, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(cloud.path(folder)).into_iter().flatten().flatten();
    let name = |entry: std::fs::DirEntry| Path::new(folder).join(entry.file_name()).display().to_string();
    entries.map(name).collect()
}
