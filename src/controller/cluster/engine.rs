//! What runs inside a cluster, as far as the rest has to know: what its instances are, where they say how they are, and how a worker
//! is asked to leave. Everything that names one engine is behind this.

use super::dask::Dask;
use super::page::{Error, Pages};
use super::spark::Spark;
use super::view::{Demand, DriverSeen, MasterSeen};
use enoki_api::cluster::{self, Cluster, ClusterSpec};
use enoki_api::file::INSIDE;
use enoki_api::instance::{EnvValue, InstanceSpec, Nic, RestartPolicy};
use enoki_api::job::{Job, JobFile};
use enoki_api::quantity::{Bytes, MilliCpu, Span};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// PURE. `network` is the one of all instances, `master` the master's address there.
pub trait Engine: Send + Sync {
    fn master(&self, cluster: &Cluster, network: &str) -> InstanceSpec;

    fn worker(&self, cluster: &Cluster, network: &str, master: Ipv4Addr) -> InstanceSpec;

    /// The driver of a job: ends with the job's own exit code, and is not started again by itself.
    fn driver(&self, cluster: &Cluster, job: &Job, network: &str, master: Ipv4Addr) -> InstanceSpec;

    /// Where workers and drivers find the master.
    fn master_url(&self, master: Ipv4Addr) -> String;

    /// Whether the master keeps something, on a volume of its own.
    fn keeps_state(&self) -> bool;

    /// The port of the master's pages, and the one that says how the workers are.
    fn master_page(&self) -> (u16, &'static str);

    fn read_master(&self, page: &[u8]) -> Result<MasterSeen, String>;

    /// The path below the master's pages that asks, by a POST, to let this worker go. It may be asked again and again.
    fn leave_path(&self, worker: Ipv4Addr) -> String;

    /// The workers that could be used at once by whoever says this: a job with these settings of its own.
    fn workers_wanted(&self, spec: &ClusterSpec, own: &BTreeMap<String, String>, demand: &Demand) -> u32;

    /// None: the master speaks for all jobs.
    fn drivers(&self) -> Option<&dyn Drivers>;

    /// None: it has none.
    fn connect(&self) -> Option<&dyn Connect>;
}

/// Drivers that say themselves what they need, and where they have something.
pub trait Drivers {
    /// The port of their pages.
    fn page(&self) -> u16;

    /// Looks at the pages of one from now on.
    fn watch(&self, pages: Pages) -> Box<dyn Watch>;
}

/// A driver that is looked at over and over.
pub trait Watch: Send {
    fn look(&mut self) -> BoxFuture<'_, Result<DriverSeen, Error>>;
}

/// The Connect server: a driver that stays.
pub trait Connect {
    fn server(&self, cluster: &Cluster, network: &str, master: Ipv4Addr) -> InstanceSpec;

    /// Where the one at this address takes notebooks.
    fn url(&self, server: Ipv4Addr) -> String;
}

/// None: an engine of a newer version, whose clusters are left alone.
pub fn of(engine: cluster::Engine) -> Option<&'static dyn Engine> {
    match engine {
        cluster::Engine::Spark => Some(&Spark),
        cluster::Engine::Dask => Some(&Dask),
        cluster::Engine::Unknown => None,
    }
}

/// Processes and threads of one instance: a bound, far above the few hundred that engines take. Hosts grant none twice.
const PIDS: u64 = 2048;

/// What all of a cluster's instances have in common. `program` is a start of the engine's image.
pub fn instance(
    cluster: &Cluster,
    network: &str,
    program: &str,
    cpus: MilliCpu,
    memory: Bytes,
) -> InstanceSpec {
    let mut spec = InstanceSpec::new(&cluster.spec.image());
    spec.command = Some(vec![format!("/opt/enoki/{}/{program}", cluster.spec.engine)]);
    spec.cpus = Some(cpus);
    spec.memory = Some(memory);
    spec.nics = BTreeMap::from([("eth0".to_owned(), Nic { network: network.to_owned(), ..Nic::default() })]);
    spec.pids = Some(PIDS);
    spec.disk_size = cluster.spec.disk_size;
    spec.placement = cluster.spec.placement.clone();
    // Without its master and drivers a cluster does nothing at all, and they are few.
    spec.priority = cluster.spec.priority.max(0);
    spec.stop_grace = Span(10_000);
    spec
}

/// What all masters have in common.
pub fn master(cluster: &Cluster, network: &str) -> InstanceSpec {
    let size = &cluster.spec.master;
    instance(cluster, network, "master", size.cpus, size.memory)
}

/// What all workers have in common.
pub fn worker(cluster: &Cluster, network: &str) -> InstanceSpec {
    let size = &cluster.spec.workers;
    let mut spec = instance(cluster, network, "worker", size.cpus, size.memory);
    spec.priority = cluster.spec.priority;
    spec.mounts = cluster.spec.mounts.clone();
    spec
}

/// What all drivers have in common. `words` follow on the start's own name.
pub fn driver(cluster: &Cluster, network: &str, job: &Job, words: Vec<String>) -> InstanceSpec {
    let mut spec = instance(cluster, network, "driver", job.spec.cpus, job.spec.memory);
    spec.command.get_or_insert_default().extend(words);
    spec.restart = RestartPolicy::Never;
    spec.mounts = cluster.spec.mounts.clone();
    spec.files = job.spec.all_files().map(|file| (file.name.clone(), file.content())).collect();
    spec
}

/// Where a job's instance has a file.
pub fn inside(file: &JobFile) -> String {
    format!("{INSIDE}/{}", file.name)
}

/// Variables for an environment.
pub fn plain<K: Into<String>>(
    pairs: impl IntoIterator<Item = (K, String)>,
) -> impl Iterator<Item = (String, EnvValue)> {
    pairs.into_iter().map(|(key, value)| (key.into(), EnvValue::Plain(value)))
}
