//! What is raced: anything that starts many containers and removes them again.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;

use crate::machine::Meter;

/// The image and the limits, the same for everybody.
pub const IMAGE: &str = "enoki/tiny:1";
pub const MEMORY: u64 = 64 << 20;
pub const MILLI_CPUS: u64 = 500;
pub const PIDS: u64 = 100;

#[async_trait]
pub trait Contender: Send + Sync {
    /// As the table shows it; no two are alike.
    fn name(&self) -> String;

    /// The numbers in flight that it is tried at. None: it takes one order for all.
    fn in_flight(&self) -> &'static [usize] {
        &[1, 2, 4, 8]
    }

    /// Starts `count` containers with `in_flight` of them under way at a time, and returns the time from the first
    /// order until the last was seen running.
    async fn launch(&mut self, count: usize, in_flight: usize) -> Result<Duration>;

    /// How many there are on each of its hosts, as their Docker says. Nothing where there is one host and no Docker to ask.
    async fn landed(&self) -> Result<Vec<usize>> {
        Ok(Vec::new())
    }

    /// Removes all of them, and fails when anything of them is left.
    async fn clear(&mut self) -> Result<()>;

    /// CPU time of everything that it takes to start them.
    fn meter(&self) -> &Meter;
}
