//! Time and randomness of a simulated process: the two ways by which the machine gets into a program.
//!
//! The C library's `clock_gettime` and `getrandom` are defined here, in the test's own binary, and the linker takes them
//! for all of it: std, tokio, jiff, uuid and the hash maps ask the simulation without knowing. A thread that has not
//! called [`begin`] gets the real ones.

use crate::dice::Dice;
use nix::libc::{self, c_int, c_uint, c_void, clockid_t, size_t, ssize_t, timespec};
use std::cell::Cell;
use std::time::Duration;

/// 2026-11-01T00:00:00Z, when every simulation begins.
const WALL: Duration = Duration::from_secs(1_793_491_200);
/// What the clocks that count from boot say then.
const BOOT: Duration = Duration::from_secs(1_000);

thread_local! {
    /// Since the simulation's begin. None: this thread is not in one.
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
    /// By how much the wall clock of the process that runs now was set forward.
    static AHEAD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static DICE: Cell<Option<Dice>> = const { Cell::new(None) };
}

/// From here on this thread lives in simulated time, and its randomness follows from `seed`.
pub fn begin(seed: u64) {
    NOW.set(Some(Duration::ZERO));
    DICE.set(Some(Dice::new(seed, "process")));
}

/// Since the simulation's begin.
pub fn now() -> Duration {
    NOW.get().unwrap_or_default()
}

pub fn advance(by: Duration) {
    NOW.set(Some(now() + by));
}

/// Sets the wall clock, and no other, forward.
pub fn set_ahead(by: Duration) {
    AHEAD.set(by);
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, out: *mut timespec) -> c_int {
    let Some(now) = NOW.try_with(Cell::get).ok().flatten() else {
        // SAFETY: the kernel checks both.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, out) } as c_int;
    };
    let time = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => WALL + AHEAD.get() + now,
        _ => BOOT + now,
    };
    let spec = timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
    // SAFETY: the caller's promise.
    unsafe { out.write(spec) };
    0
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(out: *mut c_void, count: size_t, flags: c_uint) -> ssize_t {
    if NOW.try_with(Cell::get).ok().flatten().is_none() {
        // SAFETY: the kernel checks both.
        return unsafe { libc::syscall(libc::SYS_getrandom, out, count, flags) } as ssize_t;
    }
    if count > 0 {
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), count) };
        if let Some(mut dice) = DICE.take() {
            bytes.fill_with(|| dice.roll() as u8);
            DICE.set(Some(dice));
        }
    }
    count as ssize_t
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Instant, SystemTime};

    /// Everything that a program can ask, asked: what does not go through here would differ from run to run.
    #[test]
    fn everything_asks_the_simulation() {
        let ask = |seed: u64| {
            std::thread::spawn(move || {
                begin(seed);
                let (instant, wall) = (Instant::now(), SystemTime::now());
                advance(Duration::from_secs(5));
                assert_eq!(instant.elapsed(), Duration::from_secs(5));
                assert_eq!(wall.elapsed().unwrap(), Duration::from_secs(5));
                let hash =
                    std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), 1);
                (jiff::Timestamp::now(), uuid::Uuid::new_v4(), hash)
            })
            .join()
            .unwrap()
        };
        let (first, again, other) = (ask(1), ask(1), ask(2));
        assert_eq!(first, again);
        assert_eq!(first.0, jiff::Timestamp::from_second(1_793_491_205).unwrap());
        assert!(first.1 != other.1 && first.2 != other.2);
        let real = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(real.as_secs() != WALL.as_secs());
    }
}
