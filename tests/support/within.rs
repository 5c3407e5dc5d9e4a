//! Being in the network of a test's machine, with some threads of this process.

use enoki_harness::Cloud;
use nix::sched::{CloneFlags, setns};
use std::io;
use std::os::fd::AsFd;
use tokio::runtime::{Builder, Runtime};

/// A runtime whose threads, and nothing else of this process, are in the network of `machine`. What it is to do there is
/// spawned on it: the thread that waits for it stays where it is.
pub fn runtime_in(machine: &Cloud) -> io::Result<Runtime> {
    let network = std::fs::File::open(format!("/proc/{}/ns/net", machine.sleeper()))?;
    let enter = move || {
        if let Err(error) = setns(network.as_fd(), CloneFlags::CLONE_NEWNET) {
            panic!("a thread cannot enter the network: {error}");
        }
    };
    Builder::new_multi_thread().worker_threads(2).enable_all().on_thread_start(enter).build()
}
