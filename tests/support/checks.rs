//! Many checks on one cloud: side by side, each told by its name, and all of them run even when one fails.

use enoki_harness::Cloud;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

pub type Check = (&'static str, fn(&Cloud));

/// Runs checks, at most four at once, and returns the names of those that failed; why stands on stderr.
pub fn run(cloud: &Cloud, checks: &[Check]) -> Vec<&'static str> {
    let waiting = Mutex::new(checks.iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    // Bound to a name so that the lock is not held while the check runs.
                    let next = waiting.lock().expect("no check runs under this lock").next();
                    let Some((name, check)) = next else { break };
                    let started = std::time::Instant::now();
                    let ended = catch_unwind(AssertUnwindSafe(|| check(cloud)));
                    let word = if ended.is_ok() { "ok" } else { "FAILED" };
                    eprintln!("check {name} ... {word} ({:.1?})", started.elapsed());
                    if ended.is_err() {
                        failed.lock().expect("no check runs under this lock").push(*name);
                    }
                }
            });
        }
    });
    failed.into_inner().expect("no check runs under this lock")
}
