//! Cleaning up when the test process is told to stop: Ctrl-C, or the runner's patience ending.
//!
//! `Drop` does not run then, and what a cloud started is detached and would outlive us. A handler may do next to nothing,
//! so it writes the signal's number into a pipe; a thread reads it, purges what is registered, and exits as the signal
//! would have had it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, Once};

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::space::Space;
use crate::sweep;

static CLOUDS: Mutex<Vec<Space>> = Mutex::new(Vec::new());
static PIPE: AtomicI32 = AtomicI32::new(-1);
static ONCE: Once = Once::new();

/// From now on this space is purged if the process is told to stop.
pub(crate) fn register(space: &Space) {
    ONCE.call_once(install);
    lock().push(space.clone());
}

/// The space has been purged.
pub(crate) fn forget(space: &Space) {
    lock().retain(|other| other.id != space.id);
}

fn lock() -> std::sync::MutexGuard<'static, Vec<Space>> {
    CLOUDS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

extern "C" fn note(signal: i32) {
    let byte = signal as u8;
    // Safety: write(2) is async-signal-safe; the pipe lives as long as the process.
    unsafe { libc::write(PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

fn install() {
    let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("make a pipe");
    PIPE.store(write.into_raw_fd(), Ordering::Relaxed);
    std::thread::spawn(move || {
        let mut byte = [0];
        if File::from(read).read_exact(&mut byte).is_ok() {
            for space in lock().iter() {
                eprintln!("harness: stopped by signal {}: purging {}", byte[0], space.root.display());
                for left in sweep::purge(space) {
                    eprintln!("harness: left behind: {left}");
                }
            }
            std::process::exit(128 + i32::from(byte[0]));
        }
    });
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // Safety: `note` does only what a handler may.
        unsafe { sigaction(signal, &action) }.expect("install a signal handler");
    }
}
