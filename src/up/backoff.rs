//! How long to wait before a service that has ended is started again. Pure.

use std::time::Duration;

/// At once, nearly: a single crash should not be felt.
const FIRST: Duration = Duration::from_millis(200);
/// Often enough that a repaired fault heals by itself, rarely enough to cost nothing.
const LONGEST: Duration = Duration::from_secs(30);
/// Having lived this long, a service is taken to be well again.
const WELL: Duration = Duration::from_secs(10);

#[derive(Debug, Default, PartialEq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay after an end that came `uptime` after the start: doubling, capped, from the beginning after a good run.
    pub fn after(&mut self, uptime: Duration) -> Duration {
        if uptime >= WELL {
            self.failures = 0;
        }
        let delay = FIRST.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// Forgets the past: somebody has just asked for another try.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_cap_and_start_over_after_a_good_run() {
        let mut backoff = Backoff::default();
        let millis: Vec<u128> = (0..10).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(millis, [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        for _ in 0..100 {
            assert_eq!(backoff.after(Duration::from_secs(9)), LONGEST);
        }
        assert_eq!(backoff.after(WELL), FIRST);
        assert_eq!(backoff.after(Duration::ZERO), FIRST * 2);
        backoff.reset();
        assert_eq!(backoff.after(Duration::ZERO), FIRST);
    }
}
