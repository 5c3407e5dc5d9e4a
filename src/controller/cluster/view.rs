//! What was last seen of what runs in a cluster.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

/// A worker, as its master sees it. One that the master does not see is not in the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerSeen {
    /// Takes work; whether some app has cores of it.
    Alive { used: bool },
    /// Was asked to leave: it takes no more.
    Leaving,
}

/// What a job could use at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// By its own count.
    Executors(u32),
    /// By the tasks that are not done.
    Tasks(u32),
}

/// A job's driver, as it shows itself.
#[derive(Clone, Debug, PartialEq)]
pub struct DriverSeen {
    pub demand: Demand,
    /// The workers it has executors on, with their running tasks.
    pub executors: BTreeMap<Ipv4Addr, u32>,
}

/// A master, as it shows itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MasterSeen {
    /// Whether it is in charge: one that recovers is not yet.
    pub alive: bool,
    pub workers: BTreeMap<Ipv4Addr, WorkerSeen>,
}

/// What a cluster's master and drivers said when they were last asked.
#[derive(Clone, Debug)]
pub struct View {
    pub at: Instant,
    /// Whether the master answered and is in charge.
    pub alive: bool,
    pub workers: BTreeMap<Ipv4Addr, WorkerSeen>,
    /// By job. One that did not answer is not here.
    pub drivers: BTreeMap<String, DriverSeen>,
}
