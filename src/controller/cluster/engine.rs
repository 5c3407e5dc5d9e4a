//! What runs inside a cluster, as far as the rest has to know: what its instances are, where they say how they are, and how a worker
//! is asked to leave. Everything that names one engine is behind this.

use super::page::{Error, Pages};
use super::spark::Spark;
use super::view::{Demand, DriverSeen, MasterSeen};
use enoki_api::cluster::{self, Cluster, ClusterSpec};
use enoki_api::instance::InstanceSpec;
use enoki_api::job::Job;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// PURE, but for what looks at a driver. `network` is the one of all instances, `master` the master's address there.
pub trait Engine: Send + Sync {
    fn master(&self, cluster: &Cluster, network: &str) -> InstanceSpec;

    fn worker(&self, cluster: &Cluster, network: &str, master: Ipv4Addr) -> InstanceSpec;

    /// The driver of a job: ends with the job's own exit code, and is not started again by itself.
    fn driver(&self, cluster: &Cluster, job: &Job, network: &str, master: Ipv4Addr) -> InstanceSpec;

    /// The Connect server.
    fn connect(&self, cluster: &Cluster, network: &str, master: Ipv4Addr) -> InstanceSpec;

    /// Where workers and drivers find the master.
    fn master_url(&self, master: Ipv4Addr) -> String;

    /// Where the Connect server at this address takes notebooks.
    fn connect_url(&self, server: Ipv4Addr) -> String;

    /// The port of the master's pages, and the one that says how the workers are.
    fn master_page(&self) -> (u16, &'static str);

    fn read_master(&self, page: &[u8]) -> Result<MasterSeen, String>;

    /// The path below the master's pages that asks, by a POST, to let this worker go.
    fn leave_path(&self, worker: Ipv4Addr) -> String;

    /// The port of a driver's pages.
    fn driver_page(&self) -> u16;

    /// Looks at a driver's pages from now on.
    fn watch_driver(&self, pages: Pages) -> Box<dyn Watch>;

    /// The workers that a job with these settings of its own could use at once.
    fn workers_wanted(&self, spec: &ClusterSpec, own: &BTreeMap<String, String>, demand: &Demand) -> u32;
}

/// A driver that is looked at over and over.
pub trait Watch: Send {
    fn look(&mut self) -> BoxFuture<'_, Result<DriverSeen, Error>>;
}

/// None: an engine of a newer version, whose clusters are left alone.
pub fn of(engine: cluster::Engine) -> Option<&'static dyn Engine> {
    match engine {
        cluster::Engine::Spark => Some(&Spark),
        cluster::Engine::Unknown => None,
    }
}
