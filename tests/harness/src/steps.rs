//! Many steps on one cloud: each told by its name, and all of them taken even when one fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// A name and what to do.
pub type Step<T> = (&'static str, fn(&T));

/// Runs one step after the other on one cloud or lab and fails in the end if one has: the later ones tell something as
/// well.
pub fn steps<T>(subject: &T, steps: &[Step<T>]) {
    let mut failed = Vec::new();
    for (name, step) in steps {
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| step(subject)));
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        eprintln!("step {name}: {word} ({:.1?})", began.elapsed());
        if result.is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}
