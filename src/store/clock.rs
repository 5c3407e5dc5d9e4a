//! Time for leases: CLOCK_BOOTTIME, which no clock change moves and which goes on while the machine sleeps.
//!
//! `std::time::Instant` stands still in a suspend, so that a leader woken after an hour would believe for one more
//! second that it still leads.

use std::ops::Add;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A moment since boot, suspends counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    pub fn now() -> BootTime {
        // Linux has had this clock since 2.6.39 and reading it has no other way to fail; should it, the end of
        // time makes every deadline passed: nobody leads by mistake.
        BootTime(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from))
    }

    /// How long until this moment; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_sub(BootTime::now().0)
    }

    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }
}

impl Add<Duration> for BootTime {
    type Output = BootTime;
    fn add(self, by: Duration) -> BootTime {
        BootTime(self.0.saturating_add(by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let now = BootTime::now();
        assert!(now.has_passed());
        let later = now + Duration::from_secs(60);
        assert!(later > now && !later.has_passed());
        assert!(later.remaining() <= Duration::from_secs(60));
        assert_eq!(BootTime(Duration::MAX) + Duration::from_secs(1), BootTime(Duration::MAX));
    }
}
