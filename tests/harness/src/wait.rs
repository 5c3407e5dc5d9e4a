//! Waiting for something to become true, with a bound and a sentence when it does not.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Asks again and again until `probe` answers `Ok`, and returns what it answered.
///
/// # Panics
/// When `timeout` passes: with `what`, the time and the last `Err`, so that `probe`'s error should say what it saw.
pub fn eventually<T, E: Display>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        let last = match probe() {
            Ok(value) => return value,
            Err(error) => error,
        };
        if started.elapsed() >= timeout {
            panic!("waited {:.1?} for: {what}\nlast seen: {last}", started.elapsed());
        }
        sleep(pause.min(timeout.saturating_sub(started.elapsed())));
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_first_good_answer() {
        let mut calls = 0;
        let value = eventually("three calls", Duration::from_secs(5), || {
            calls += 1;
            if calls == 3 { Ok(calls) } else { Err("not yet") }
        });
        assert_eq!(value, 3);
    }

    #[test]
    #[should_panic(expected = "last seen: still no")]
    fn says_what_it_waited_for() {
        eventually("a yes", Duration::from_millis(30), || Err::<(), _>("still no"));
    }
}
