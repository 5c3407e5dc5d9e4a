//! Is this path a network namespace that a container may be put into?
//!
//! The one mistake that must not happen is a container in the host's network, so everything that cannot be proven is refused.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::{FABRIC, Refusal};

/// `f_type` of a namespace file.
const NSFS_MAGIC: libc::__fsword_t = 0x6e73_6673;

nix::ioctl_none_bad!(
    /// `NS_GET_NSTYPE`: the CLONE_NEW* of a namespace file, as the call's result.
    ns_get_nstype,
    nix::request_code_none!(0xb7, 0x3)
);

/// Refuses whatever is not a network namespace of an instance's own.
pub fn check(path: &Path) -> Result<(), Refusal> {
    let at = path.display();
    let refuse = |why: String| Refusal::new(format!("the network namespace {at} {why}"));
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| refuse(format!("cannot be opened: {e}; the enoki agent makes it before a start")))?;
    let fs = nix::sys::statfs::fstatfs(&file).map_err(|e| refuse(format!("cannot be examined: {e}")))?;
    if fs.filesystem_type().0 != NSFS_MAGIC {
        return Err(refuse("is a plain file: the namespace's pin is not mounted".into()));
    }
    // SAFETY: the descriptor is open and this request takes no argument.
    let kind = unsafe { ns_get_nstype(file.as_raw_fd()) }.map_err(|e| refuse(format!("has no type: {e}")))?;
    if kind != libc::CLONE_NEWNET {
        return Err(refuse("is a namespace, but not of the network kind".into()));
    }
    let its = identity(&file).map_err(|e| refuse(format!("cannot be examined: {e}")))?;
    let own = fs::metadata("/proc/self/ns/net")
        .map_err(|e| refuse(format!("cannot be compared with the runtime's own: {e}")))?;
    if its == (own.dev(), own.ino()) {
        return Err(refuse("is the runtime's own: a container never joins it".into()));
    }
    let hosts = is_pid_1s(&file, its).map_err(|e| refuse(format!("cannot be compared with PID 1's: {e}")))?;
    if hosts {
        return Err(refuse("is PID 1's, which is the host's: a container never joins it".into()));
    }
    if fs::metadata(FABRIC).is_ok_and(|fabric| its == (fabric.dev(), fabric.ino())) {
        return Err(refuse("is the fabric, which holds all networks: a container never joins it".into()));
    }
    Ok(())
}

/// Is this PID 1's namespace? Where looking at PID 1's namespaces is not allowed (it has capabilities that this process lacks, as in a
/// sandbox), its /proc/1/net can still be seen: each namespace registers its own entries there, with inodes that no other living one has.
fn is_pid_1s(file: &File, its: (u64, u64)) -> io::Result<bool> {
    match fs::metadata("/proc/1/ns/net") {
        Ok(init) => Ok(its == (init.dev(), init.ino())),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let init = fs::metadata("/proc/1/net/dev")?.ino();
            let there = thread::scope(|scope| {
                // Joining a namespace is a thread's own affair.
                let visitor = scope.spawn(|| {
                    setns(file, CloneFlags::CLONE_NEWNET)?;
                    Ok(fs::metadata("/proc/thread-self/net/dev")?.ino())
                });
                visitor.join().unwrap_or_else(|_| Err(io::Error::other("the visitor failed")))
            })?;
            Ok(there == init)
        }
        Err(e) => Err(e),
    }
}

/// A namespace is known by device and inode of its file.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|m| (m.dev(), m.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_it_must() {
        for (path, why) in [
            ("/proc/self/ns/net", "cannot be opened"), // a symbolic link, and ours as well
            ("/nowhere", "cannot be opened"),
            ("/etc/passwd", "plain file"),
            ("/proc", "plain file"),
        ] {
            let refusal = check(Path::new(path)).expect_err(path).to_string();
            assert!(refusal.contains(why), "{path}: {refusal}");
        }
    }
}
