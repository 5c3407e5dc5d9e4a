//! The real network of this host.
//!
//! Every operation runs on a short-lived thread of its own, at most [`AT_ONCE`] at a time: the kernel does links one
//! after another anyway, and a burst of launches should not become a burst of threads.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::fabric::Fabrics;
use super::host::Host;
use super::namespace::{self, Dedicated};
use super::netlink::{self, Lane};
use super::{Error, InstancePlan, Network, NetworkPlan, Peers, bridge, names, plan};

const AT_ONCE: usize = 8;
/// For one instance; a launch takes a few milliseconds, but may wait behind others for the kernel's lock.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often an instance is looked at anew when what was seen changed before it was acted on.
const ROUNDS: usize = 5;

/// Namespaces, bridges and legs of the machine that the agent runs on. Cheap to clone.
#[derive(Clone)]
pub struct Linux {
    fabrics: Arc<Fabrics>,
    host: Host,
    gate: Arc<Semaphore>,
}

impl Linux {
    /// Opens netlink in the namespace of the calling thread, which becomes "the host" for good. Makes nothing yet.
    pub fn new() -> Result<Self, Error> {
        let fabrics = Arc::new(Fabrics::default());
        let host = Host::start(Arc::clone(&fabrics))?;
        Ok(Self { fabrics, host, gate: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    /// Runs `work` on a thread of its own, when there is room for one.
    async fn run<T, F, Fut>(&self, what: String, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Self, Dedicated) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>>,
    {
        // The semaphore is never closed; were it, the work would go on without a bound.
        let permit = Arc::clone(&self.gate).acquire_owned().await.ok();
        let own = self.clone();
        namespace::run(what, DEADLINE, move |thread| async move {
            let result = work(own, thread).await;
            drop(permit);
            result
        })
        .await
    }

    async fn ensure_on(self, thread: Dedicated, wanted: InstancePlan) -> Result<PathBuf, Error> {
        let fabric = self.fabrics.get(&thread)?;
        let mut mtus = plan::Mtus::new();
        for nic in &wanted.nics {
            let mtu = self.host.segment(&fabric.lane, &nic.network).await?;
            mtus.insert(nic.network.uid.clone(), mtu);
        }
        let namespace = match namespace::open(&wanted.uid)? {
            Some(namespace) => {
                namespace::enter(&thread, &namespace)?;
                namespace
            }
            None => namespace::make(&thread, &wanted.uid, prepare)?,
        };
        let (inside, connection) = Lane::open()?;
        tokio::spawn(connection);
        let place = bridge::Place { fabric: &fabric.lane, inside: &inside, namespace: &namespace };
        let mut last = None;
        for _ in 0..ROUNDS {
            let (view, mut numbers) = bridge::observe(&place, &wanted).await?;
            match carry_out(&place, &mut numbers, &wanted, &plan::plan(&wanted, &mtus, &view)).await {
                Ok(()) => return Ok(namespace::path(&wanted.uid)),
                Err(e) if netlink::is_stale(&e) => {
                    tracing::debug!(instance = wanted.uid, error = %e, "looking again");
                    last = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or(Error::Contended(wanted.uid)))
    }

    async fn remove_on(self, thread: Dedicated, uid: String) -> Result<(), Error> {
        // A process left in the namespace would keep its links on the segment: they go first, whoever holds it.
        if let Some(fabric) = self.fabrics.existing(&thread)? {
            for nic in 0..names::MAX_NICS {
                if let Some(port) = fabric.lane.link(&names::port(&uid, &format!("eth{nic}"))).await? {
                    fabric.lane.delete(port.index).await?;
                }
            }
        }
        namespace::remove(&uid)
    }
}

async fn carry_out(
    place: &bridge::Place<'_>,
    numbers: &mut bridge::Numbers,
    wanted: &InstancePlan,
    actions: &[plan::Action],
) -> Result<(), Error> {
    for action in actions {
        tracing::debug!(instance = wanted.uid, ?action, "network");
        bridge::act(place, numbers, action).await?;
    }
    bridge::settle(place, numbers, wanted, actions).await
}

/// A new instance's namespace, before it is pinned. What Docker sets for its containers, so that a process without
/// privileges can bind port 80 and send pings; and links announce themselves when they come up.
fn prepare() -> Result<(), Error> {
    namespace::sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    namespace::sysctl("net/ipv4/ip_unprivileged_port_start", "0")?;
    namespace::sysctl("net/ipv4/conf/default/arp_notify", "1")
}

#[async_trait]
impl Network for Linux {
    async fn ensure(&self, plan: &InstancePlan) -> Result<PathBuf, Error> {
        plan.check()?;
        let plan = plan.clone();
        self.run(format!("making the network of instance {}", plan.uid), |own, thread| {
            own.ensure_on(thread, plan)
        })
        .await
    }

    async fn connect(&self, network: &str, peers: &Peers) -> Result<(), Error> {
        peers.check(network)?;
        self.host.connect(network, peers).await
    }

    async fn remove(&self, uid: &str) -> Result<(), Error> {
        super::check_uid("instance", uid)?;
        let uid = uid.to_owned();
        self.run(format!("removing the network of instance {uid}"), |own, thread| own.remove_on(thread, uid))
            .await
    }

    async fn instances(&self) -> Result<Vec<String>, Error> {
        self.run("listing namespaces".into(), |_, _| async { namespace::list() }).await
    }

    async fn tend(&self, networks: &[NetworkPlan]) -> Result<(), Error> {
        networks.iter().try_for_each(NetworkPlan::check)?;
        self.host.tend(networks).await
    }

    async fn purge(&self) -> Result<(), Error> {
        self.host.purge().await
    }
}
