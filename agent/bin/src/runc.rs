//! The real runtime: where it is, becoming it, and waiting for it.
//!
//! While runc works, the wrapper stands in its place: same standard streams, inherited descriptors and arguments; signals are handed on; its
//! exit code is ours; when this process is killed, runc is too, so that nobody mounts or starts behind a caller's back.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::Refusal;

/// Searched in this order and nowhere else: PATH belongs to the caller, not to root.
const PLACES: [&str; 6] = [
    "/usr/bin/runc",
    "/usr/sbin/runc",
    "/usr/local/bin/runc",
    "/usr/local/sbin/runc",
    "/usr/bin/docker-runc",
    "/usr/libexec/docker/runc",
];

/// Handed on to runc while it works.
const HANDED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// The first of the known places that holds a program that root alone can change.
pub fn find() -> Result<PathBuf, Refusal> {
    for place in PLACES {
        let Ok(meta) = fs::metadata(place) else {
            continue;
        };
        if meta.is_file() && meta.uid() == 0 && meta.mode() & 0o022 == 0 && meta.mode() & 0o100 != 0 {
            return Ok(place.into());
        }
    }
    Err(Refusal::new(format!(
        "no runc that belongs to root and is writable by root alone at any of {}: install runc",
        PLACES.join(", ")
    )))
}

/// Replaces this process by runc; returns only to tell why it could not.
pub fn become_it(runc: &Path, words: &[OsString]) -> Refusal {
    let error = Command::new(runc).args(words).exec();
    Refusal::new(format!("cannot run {}: {error}", runc.display()))
}

/// Runs runc and waits for it, handing signals on.
pub fn wait_for(runc: &Path, words: &[OsString]) -> io::Result<ExitStatus> {
    let mut awaited = SigSet::empty();
    for signal in HANDED_ON.into_iter().chain([Signal::SIGCHLD]) {
        awaited.add(signal);
    }
    // Blocked before the fork, so that none can fall between the fork and the wait. The child starts with an empty mask (std's doing).
    let before = awaited.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let mut command = Command::new(runc);
    command.args(words);
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from));
    }
    let mut child = command.spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        match awaited.wait() {
            Ok(Signal::SIGCHLD) => {}
            Ok(signal) => {
                // Gone already: the next round reaps it.
                let _ = kill(Pid::from_raw(child.id() as i32), signal);
            }
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    };
    before.thread_set_mask()?;
    Ok(status)
}

/// The exit code as a shell would tell it.
pub fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}
