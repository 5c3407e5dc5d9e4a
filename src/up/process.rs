//! Telling a process of ours from any other, for as long as it lives and however this program ends meanwhile.
//!
//! A pid alone says nothing: it may belong to somebody else by now. A process of ours leaves two files in /run/enoki:
//! `NAME.pid` (the number, for people and scripts) and `NAME.json` (pid, start time, boot id, inode of its program). It is
//! ours only if all four still fit. Signals go through a pidfd that was opened before the check, so that they cannot reach
//! a successor of the same number.
//!
//! The files are written by the process itself just before it executes its program (`launch`): there is no moment at which
//! a daemon runs that nobody knows.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::config::{paths, write_atomic};

/// What stands in `NAME.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks between boot and the start of the process (proc(5), stat field 22); not changed by exec.
    pub started: u64,
    pub boot: String,
    /// Device and inode of the program, and of the launcher that becomes it.
    pub programs: Vec<(u64, u64)>,
}

impl Identity {
    /// This very process, about to execute `program`.
    pub fn mine(program: &Path) -> std::io::Result<Self> {
        let pid = std::process::id().cast_signed();
        let started = start_time(pid)
            .ok_or_else(|| std::io::Error::other("/proc/self/stat is unreadable; is /proc mounted?"))?;
        let inode = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
        Ok(Self {
            pid,
            started,
            boot: boot_id()?,
            programs: vec![inode(program)?, inode(Path::new("/proc/self/exe"))?],
        })
    }

    fn fits(&self) -> bool {
        start_time(self.pid) == Some(self.started)
            && boot_id().is_ok_and(|boot| boot == self.boot)
            && exe_inode(self.pid).is_some_and(|inode| self.programs.contains(&inode))
    }
}

/// A process of ours that was alive when looked at.
#[derive(Debug)]
pub struct Running {
    pub identity: Identity,
    pidfd: AsyncFd<OwnedFd>,
}

pub fn pid_file(name: &str) -> PathBuf {
    Path::new(paths::RUN).join(format!("{name}.pid"))
}

fn identity_file(name: &str) -> PathBuf {
    Path::new(paths::RUN).join(format!("{name}.json"))
}

/// Makes this process known as `name`. The identity goes last: once [`find`] finds the process, its pid file is there too.
pub fn register(name: &str, identity: &Identity) -> std::io::Result<()> {
    let text = serde_json::to_vec(identity).map_err(std::io::Error::other)?;
    write_atomic(&pid_file(name), format!("{}\n", identity.pid).as_bytes(), 0o644)?;
    write_atomic(&identity_file(name), &text, 0o644)
}

/// Forgets `name`. Called for a process that has ended; a file that is not there is fine.
pub fn forget(name: &str) {
    for file in [pid_file(name), identity_file(name)] {
        if let Err(e) = std::fs::remove_file(&file)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), error = %e, "cannot remove");
        }
    }
}

/// The running process of ours called `name`; `None` when there is none, whatever the files say. Needs a tokio runtime.
pub fn find(name: &str) -> Option<Running> {
    let text = std::fs::read(identity_file(name)).ok()?;
    let identity: Identity = serde_json::from_slice(&text).ok()?;
    let pidfd = pidfd_open(identity.pid).ok()?;
    // Checked after the pidfd was opened: from here on it is this process or, if that has ended, nobody.
    identity.fits().then_some(())?;
    // SAFETY: an OwnedFd is open and keeps its number until it is dropped, which the AsyncFd that owns it does last.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE) }.ok()?;
    Some(Running { identity, pidfd })
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Returns once the process has ended. Works for any process, not only children.
    pub async fn ended(&self) {
        // A pidfd is readable from the end of its process on. An error here means that the reactor is gone: so are we.
        let _ = self.pidfd.readable().await;
    }

    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        let fd = self.pidfd.as_raw_fd();
        // SAFETY: pidfd_send_signal(2) with a valid descriptor, no siginfo and no flags touches no memory of ours.
        let result = unsafe {
            nix::libc::syscall(nix::libc::SYS_pidfd_send_signal, fd, signal as i32, std::ptr::null::<u8>(), 0)
        };
        match result {
            0 => Ok(()),
            _ => match std::io::Error::last_os_error() {
                e if e.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
                e => Err(e),
            },
        }
    }

    /// SIGTERM, then after `grace` SIGKILL. An error means that it lives on.
    pub async fn stop(&self, grace: Duration) -> std::io::Result<()> {
        self.signal(Signal::SIGTERM)?;
        if tokio::time::timeout(grace, self.ended()).await.is_ok() {
            return Ok(());
        }
        self.signal(Signal::SIGKILL)?;
        tokio::time::timeout(Duration::from_secs(10), self.ended()).await.map_err(|_| {
            std::io::Error::other(format!("process {} does not end even on SIGKILL", self.pid()))
        })
    }

    /// Whether the file was written after this process began. False where that cannot be told.
    pub fn is_older_than(&self, file: &Path) -> bool {
        // Clock ticks are hundredths of a second on every Linux that runs Docker (USER_HZ).
        let since_boot = Duration::from_millis(self.identity.started * 10);
        let up = std::fs::read_to_string("/proc/uptime").ok();
        let up = up.and_then(|text| text.split(' ').next()?.parse().ok()).map(Duration::from_secs_f64);
        let began = up.and_then(|up| SystemTime::now().checked_sub(up.checked_sub(since_boot)?));
        let written = std::fs::metadata(file).and_then(|about| about.modified());
        began.zip(written.ok()).is_some_and(|(began, written)| written > began)
    }

    /// Whether `binary` is now another program than the one this process runs. Compared by content where the inode differs:
    /// an install that copies the same bytes is no change.
    pub fn outdated(&self, binary: &Path) -> bool {
        let running = PathBuf::from(format!("/proc/{}/exe", self.pid()));
        let inode = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
        match (inode(&running), inode(binary)) {
            (Ok(a), Ok(b)) if a == b => false,
            (Ok(_), Ok(_)) => !same_content(&running, binary).unwrap_or(false),
            // Without a binary to replace it with, what runs is the best there is.
            _ => false,
        }
    }
}

fn same_content(a: &Path, b: &Path) -> std::io::Result<bool> {
    use std::io::Read;
    let (mut a, mut b) = (std::fs::File::open(a)?, std::fs::File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut from_a, mut from_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = a.read(&mut from_a)?;
        if read == 0 {
            return Ok(true);
        }
        b.read_exact(&mut from_b[..read])?;
        if from_a[..read] != from_b[..read] {
            return Ok(false);
        }
    }
}

fn pidfd_open(pid: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and returns a new descriptor (close-on-exec) or -1.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, nix::libc::PIDFD_NONBLOCK) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Start time of a live process; `None` when there is none or it is a zombie.
fn start_time(pid: i32) -> Option<u64> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The command name may hold spaces and brackets: fields count from the last ')'.
fn parse_stat(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    match *fields.first()? {
        "Z" | "X" | "x" => None,
        _ => fields.get(19)?.parse().ok(),
    }
}

fn exe_inode(pid: i32) -> Option<(u64, u64)> {
    std::fs::metadata(format!("/proc/{pid}/exe")).ok().map(|m| (m.dev(), m.ino()))
}

/// The program's file name, as people know it; empty for a kernel thread or a process that has gone.
pub fn program_name(pid: i32) -> String {
    let Ok(exe) = std::fs::read_link(format!("/proc/{pid}/exe")) else {
        return String::new();
    };
    let name = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(name)
}

/// The arguments of a process; empty when it has gone.
pub fn arguments(pid: i32) -> Vec<String> {
    let Ok(raw) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return Vec::new();
    };
    raw.split(|b| *b == 0)
        .filter(|part| !part.is_empty())
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}

/// Every process that sees the same files as we do (a container or a test in its own mount namespace is none of ours).
pub fn in_our_mounts() -> Vec<i32> {
    let ours = std::fs::read_link("/proc/self/ns/mnt").ok();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok() == ours)
        .collect()
}

/// Asks `probe` every 100 ms until it says yes; false when `limit` has passed.
pub async fn until<F: Future<Output = bool>>(limit: Duration, mut probe: impl FnMut() -> F) -> bool {
    let end = Instant::now() + limit;
    loop {
        if probe().await {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_any_command_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_stat(&format!("7 (a) b) {tail}")), Some(4242));
        assert_eq!(parse_stat(&format!("7 (x) {}", tail.replace('S', "Z"))), None);
        assert_eq!(parse_stat("7 (x"), None);
        assert_eq!(parse_stat("7 (x) S 1"), None);
    }

    #[test]
    fn programs_are_compared_by_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let long = vec![7; (1 << 20) + 5];
        let mut other = long.clone();
        other[1 << 20] = 8;
        let (a, b) = (file("a", &long), file("b", &long));
        assert!(same_content(&a, &b).unwrap());
        assert!(!same_content(&a, &file("c", &other)).unwrap());
        assert!(!same_content(&a, &file("d", b"short")).unwrap());
        assert!(same_content(&file("e", b""), &file("f", b"")).unwrap());
        same_content(&a, &folder.path().join("none")).unwrap_err();
    }

    #[test]
    fn an_identity_fits_only_its_own_process() {
        let mine = Identity::mine(Path::new("/proc/self/exe")).unwrap();
        assert!(mine.fits());
        assert!(!Identity { started: mine.started + 1, ..mine.clone() }.fits());
        assert!(!Identity { boot: "another".into(), ..mine.clone() }.fits());
        assert!(!Identity { programs: vec![(0, 0)], ..mine.clone() }.fits());
        assert!(!Identity { pid: 1, ..mine }.fits());
    }
}
