//! Memory that the program does not use goes back to the kernel.
//!
//! glibc gives each thread an arena of its own, up to eight for each core, and gives back only what is free at an arena's end.
//! The threads that wait for disks come and go by the dozen, so that after a burst of work each arena holds a little that is
//! used and much that is not, and a daemon that does nothing keeps what it had at its busiest.

use nix::libc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const ARENAS: i32 = 2;
/// Of the kernel's memory: 4 KiB on the machines that Enoki runs on; on others it is looked less exactly.
const PAGE: usize = 4096;
/// How often it is looked whether much is free: the look costs microseconds, giving back milliseconds.
const EVERY: Duration = Duration::from_secs(10);
/// In bytes; less is about to be used again.
const MUCH: usize = 4 << 20;

/// To be called before the first thread is started: an arena that a thread has stays its.
pub fn few_arenas() {
    // SAFETY: mallopt takes numbers and touches nothing but the allocator's own settings. What it refuses stays as it was.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Gives free memory back now and then, until `stop`.
pub async fn give_back(stop: CancellationToken) {
    // Cancel-safe: nothing is under way while it sleeps.
    while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        if resident().is_some_and(|resident| resident > in_use() + MUCH) {
            // SAFETY: it takes no pointer, and gives back only pages that no allocation is on.
            unsafe { libc::malloc_trim(0) };
        }
    }
}

/// Bytes of memory that are neither a file's nor given back.
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_whitespace().skip(1).map_while(|word| word.parse::<usize>().ok());
    Some(pages.next()?.saturating_sub(pages.next()?) * PAGE)
}

/// Bytes of all allocations.
fn in_use() -> usize {
    // SAFETY: it counts the allocator's own lists, under its locks.
    let counted = unsafe { libc::mallinfo2() };
    counted.uordblks + counted.hblkhd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_between_what_is_used_goes_back() {
        // Small ones, so that they come from the heap, and every hundredth stays, so that its end is not free.
        let mut all: Vec<Option<Box<[u8; 4096]>>> = (0..8192).map(|_| Some(Box::new([1; 4096]))).collect();
        let full = resident().unwrap();
        all.iter_mut().enumerate().filter(|(at, _)| at % 100 != 0).for_each(|(_, block)| *block = None);
        assert!(resident().unwrap() > in_use() + MUCH, "nothing to give back");
        // SAFETY: as above.
        unsafe { libc::malloc_trim(0) };
        assert!(resident().unwrap() + (16 << 20) < full);
        assert!(resident().unwrap() < in_use() + 2 * MUCH);
        assert!(all.iter().flatten().all(|block| block[4095] == 1));
    }
}
