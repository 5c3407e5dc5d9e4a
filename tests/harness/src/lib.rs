//! Test clouds: a whole Enoki on the real paths, without touching the machine it runs on.
//!
//! A [`Cloud`] is a mount, network and UTS namespace kept alive by a sleeper. In it `/run`, `/var/lib/enoki`,
//! `/var/lib/docker` and their like are private folders, `/etc`, `/usr/local` and `/var/lib` are overlays whose writes
//! stay private, and the test's own `enoki` stands at `/usr/local/bin/enoki`. Everything under test therefore runs with
//! its fixed paths, next to whatever the machine itself runs, and next to other clouds.
//!
//! ```no_run
//! use enoki_harness::{Cloud, eventually, is_root};
//! use std::time::Duration;
//!
//! if !is_root() {
//!     return; // has said why, and fails in CI
//! }
//! let cloud = Cloud::start();
//! cloud.import_tiny();
//! cloud.enoki(&["run", "web1", "--image", "enoki/tiny:1", "--wait"]).ok();
//! eventually("web1 answers", Duration::from_secs(10), || {
//!     let out = cloud.enoki(&["exec", "web1", "--", "hostname"]);
//!     (out.stdout == "web1\n").then_some(()).ok_or(out.to_string())
//! });
//! ```
//!
//! Dropping a cloud ends every process in it, removes its cgroups and loop devices and deletes its folder, also when the
//! test panics or is told to stop. What a killed test leaves behind is swept up by the next one to start.
//! Everything here waits with a bound and panics with what it was waiting for: this is test code.

mod built;
mod cloud;
mod command;
mod engine;
mod http;
mod lab;
mod panics;
mod resident;
mod signals;
mod space;
pub mod statistics;
mod steps;
mod sweep;
mod wait;

pub use cloud::{Cloud, Subject, is_root};
pub use command::{Output, bounded};
pub use http::Response;
pub use lab::{Lab, address};
pub use nix::sys::signal::Signal;
pub use resident::Resident;
pub use steps::{Step, steps};
pub use sweep::{leftovers_at, sweep_dead};
pub use wait::eventually;
