//! Signals as a file descriptor, reaping, and telling all processes of the instance to go.
//!
//! Raw numbers are used throughout: nix's `Signal` does not know the real-time ones, which images name as their stop signal.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// All signals that can be waited for, blocked and read instead.
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks everything but what the CPU raises. A blocked signal reaches even PID 1, which the kernel otherwise shields.
    pub fn take() -> std::io::Result<Signals> {
        // SAFETY: plain system calls on a set that lives here; the descriptor is fresh and ours.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigfillset(&mut set);
            for raised in [
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGFPE,
                libc::SIGILL,
                libc::SIGTRAP,
                libc::SIGABRT,
                libc::SIGSYS,
            ] {
                libc::sigdelset(&mut set, raised);
            }
            if libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(Signals(OwnedFd::from_raw_fd(fd)))
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next signal that has come. None: no more for now.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        let read = nix::unistd::read(&self.0, &mut info).ok()?;
        // `ssi_signo` is the first field.
        let number = info.first_chunk::<4>().filter(|_| read == info.len())?;
        i32::try_from(u32::from_ne_bytes(*number)).ok()
    }
}

/// One ended child and its exit code, 128+n for signal n. None: no more for now.
pub fn reap_one() -> Option<(i32, u8)> {
    let mut status = 0;
    // SAFETY: the status is a plain integer of ours.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let code =
        if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    Some((pid, u8::try_from(code).unwrap_or(u8::MAX)))
}

/// A process (or, negative, a group). One that has gone is no error.
pub fn send(pid: i32, signal: i32) {
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid, signal) };
}

/// What switches a machine off: the engine's stop, a power failure, systemd's own stop signal.
pub fn ends_a_machine(signal: i32) -> bool {
    [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGPWR, libc::SIGRTMIN() + 3].contains(&signal)
}

/// SIGTERM to all, awake or stopped; and SIGHUP to what has a terminal, because interactive shells ignore SIGTERM.
pub fn tell_everybody_to_go() {
    send(-1, libc::SIGTERM);
    send(-1, libc::SIGCONT);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()).filter(|pid| *pid > 1);
        let Some(pid) = pid else { continue };
        if fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| has_terminal(&stat)) {
            send(pid, libc::SIGHUP);
        }
    }
}

/// The seventh field of /proc/PID/stat; the second, in brackets, may hold anything.
fn has_terminal(stat: &str) -> bool {
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    after.split_whitespace().nth(4).is_some_and(|tty| tty != "0")
}

/// Is PID 1 the only process left?
pub fn alone() -> bool {
    // SAFETY: a plain system call; signal 0 only asks.
    let result = unsafe { libc::kill(-1, 0) };
    result != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals() {
        assert!(has_terminal("7 (a) b) S 1 7 7 34816 7 4194304"));
        assert!(!has_terminal("7 (sh) S 1 7 7 0 -1 4194304"));
        assert!(!has_terminal(""));
    }
}
