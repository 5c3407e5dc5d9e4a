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
    /// By these, and by the bytes of results that are kept in memory.
    Load { tasks: u32, kept: u64 },
}

/// A job's driver, as it shows itself, or all jobs, as a master shows them.
#[derive(Clone, Debug, PartialEq)]
pub struct DriverSeen {
    pub demand: Demand,
    /// The workers that have something of it, with its tasks there.
    pub executors: BTreeMap<Ipv4Addr, u32>,
}

/// A master, as it shows itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MasterSeen {
    /// Whether it is in charge: one that recovers is not yet.
    pub alive: bool,
    pub workers: BTreeMap<Ipv4Addr, WorkerSeen>,
    /// Where it speaks for all jobs.
    pub jobs: Option<DriverSeen>,
}

/// What a cluster's master and drivers said when they were last asked.
#[derive(Clone, Debug)]
pub struct View {
    pub at: Instant,
    /// Whether the master answered and is in charge.
    pub alive: bool,
    pub workers: BTreeMap<Ipv4Addr, WorkerSeen>,
    /// What the master said of all jobs, if it does.
    pub jobs: Option<DriverSeen>,
    /// By job, where drivers are asked. One that did not answer is not here.
    pub drivers: BTreeMap<String, DriverSeen>,
}

impl View {
    /// Everybody who has something on workers.
    pub fn users(&self) -> impl Iterator<Item = &DriverSeen> {
        self.drivers.values().chain(&self.jobs)
    }

    /// How many workers this driver has executors on, those that leave not counted.
    pub fn held_by(&self, driver: &DriverSeen) -> u32 {
        let stays =
            |at: &&Ipv4Addr| self.workers.get(*at).is_some_and(|worker| *worker != WorkerSeen::Leaving);
        u32::try_from(driver.executors.keys().filter(stays).count()).unwrap_or(u32::MAX)
    }
}
