//! What is written straight into etcd, and the raw watch that it is compared with.

use crate::agents::{Agents, Arrivals, Change};
use anyhow::{Result, bail};
use enoki::state::encode_new;
use enoki::store::etcd::{Config, Etcd, Tls};
use enoki::store::keys::Key;
use enoki::store::{self, Outcome, Store, Txn, WatchItem};
use enoki_api::Uid;
use enoki_api::instance::{Assignment, InstanceSpec, Resources};
use enoki_api::object::Object;
use enoki_harness::Cloud;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PROJECT: &str = "default";
/// Changes of one transaction, and transactions under way at once.
const BATCH: usize = 100;
const AT_ONCE: usize = 4;
/// New instances of one transaction: two keys each.
const SEEDS: usize = 50;

/// etcd, and a watch on its assignments.
pub struct World {
    etcd: Etcd,
    arrivals: Arc<Arrivals>,
}

/// An instance that was written.
pub struct Item {
    name: String,
    uid: Uid,
    host: String,
    generation: AtomicU64,
}

/// From the beginning of a write to the end of the last.
pub struct Took {
    pub watch: Duration,
    pub agents: Duration,
}

impl World {
    /// The cloud's etcd, with the credentials of its server.
    pub fn open(cloud: &Cloud) -> impl Future<Output = Result<World>> + Send + 'static + use<> {
        let read =
            |name: &str| std::fs::read(cloud.path(&format!("/etc/enoki/pki/{name}"))).unwrap_or_default();
        let tls =
            Tls { ca: read("etcd-ca.crt"), cert: read("server-client.crt"), key: read("server-client.key") };
        let endpoints = vec!["https://127.0.0.1:2379".to_owned()];
        async move {
            let etcd =
                Etcd::new(Config { endpoints, tls: Some(tls), deadline: Duration::from_secs(10) }).await?;
            let arrivals = Arc::new(Arrivals::default());
            let prefix = format!("{}assignments/", store::keys::ROOT);
            let (_, revision) = etcd.get(&prefix).await?;
            let mut watch = etcd.watch(&prefix, revision).await?;
            let seen = arrivals.clone();
            tokio::spawn(async move {
                while let Some(Ok(item)) = watch.next().await {
                    let WatchItem::Changes { changes, .. } = item else { continue };
                    for change in changes {
                        let store::Change::Put(stored) = change else { continue };
                        if let Ok(now) = serde_json::from_slice::<Assignment>(&stored.value) {
                            seen.arrived(&(now.uid, now.generation));
                        }
                    }
                }
            });
            Ok(World { etcd, arrivals })
        }
    }

    /// Writes so many instances, each with its assignment to one of the hosts in turn, and waits until all is quiet.
    pub async fn seed(&self, hosts: &[String], count: usize) -> Result<Arc<Vec<Item>>> {
        let mut items = Vec::new();
        let mut txns = Vec::new();
        for first in (0..count).step_by(SEEDS) {
            let mut txn = Txn::new();
            for number in first..count.min(first + SEEDS) {
                let name = format!("b{number}");
                let instance = Object::new(
                    Some(PROJECT),
                    &name,
                    Default::default(),
                    InstanceSpec::new("none:1"),
                    Timestamp::now(),
                );
                let host = hosts[number % hosts.len()].clone();
                let item = Item { name, uid: instance.uid.clone(), host, generation: AtomicU64::new(1) };
                let spec = Key::spec("instances", Some(PROJECT), &item.name)?.to_string();
                txn = txn.put(spec, encode_new(&instance)).put(item.key()?, item.assignment(1)?);
                items.push(item);
            }
            txns.push(txn);
        }
        self.write(txns).await?;
        self.settle().await?;
        Ok(Arc::new(items))
    }

    /// Until nothing was written for three seconds.
    async fn settle(&self) -> Result<()> {
        let mut last = 0;
        for _ in 0..100 {
            let (_, now) = self.etcd.get(store::keys::ROOT).await?;
            if now == last {
                return Ok(());
            }
            last = now;
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        bail!("etcd does not come to rest");
    }

    /// Changes so many assignments, beginning with this one, and waits for the watch and for the agents.
    pub async fn change(&self, agents: &Agents, items: &[Item], first: usize, count: usize) -> Result<Took> {
        let chosen: Vec<(&Item, u64)> = (first..first + count)
            .map(|number| {
                let item = &items[number % items.len()];
                (item, item.generation.fetch_add(1, Ordering::Relaxed) + 1)
            })
            .collect();
        let wanted: HashSet<Change> = chosen.iter().map(|(item, now)| (item.uid.clone(), *now)).collect();
        let mut txns = Vec::new();
        for batch in chosen.chunks(BATCH) {
            let mut txn = Txn::new();
            for (item, now) in batch {
                txn = txn.put(item.key()?, item.assignment(*now)?);
            }
            txns.push(txn);
        }
        self.arrivals.expect(wanted.clone());
        agents.arrivals.expect(wanted);
        let begun = Instant::now();
        self.write(txns).await?;
        let (watch, told) = tokio::join!(self.arrivals.last(), agents.arrivals.last());
        Ok(Took { watch: watch?.duration_since(begun), agents: told?.duration_since(begun) })
    }

    async fn write(&self, txns: Vec<Txn>) -> Result<()> {
        let writes = txns.into_iter().map(|txn| self.etcd.txn(txn));
        let outcomes: Vec<Outcome> =
            futures::stream::iter(writes).buffer_unordered(AT_ONCE).try_collect().await?;
        match outcomes.iter().all(|outcome| matches!(outcome, Outcome::Committed { .. })) {
            true => Ok(()),
            false => bail!("a write without a condition was refused"),
        }
    }
}

impl Item {
    fn key(&self) -> Result<String> {
        Ok(Key::assignment(PROJECT, &self.name)?.to_string())
    }

    fn assignment(&self, generation: u64) -> Result<Vec<u8>> {
        let assignment = Assignment {
            uid: self.uid.clone(),
            host: self.host.clone(),
            epoch: 1,
            generation,
            granted: Resources::default(),
            nics: Default::default(),
        };
        Ok(serde_json::to_vec(&assignment)?)
    }
}
