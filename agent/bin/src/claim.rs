//! Who has an instance's root disk mounted: at most one live container a disk, and no mount outlives its container.
//!
//! Beside the mountpoint stands `<mountpoint>.owner`: empty, or the container that mounted it last and where runc keeps that container's
//! state. The file is locked while a wrapper mounts or unmounts. Two containers of one disk must never live at once (an overlay's upper
//! directory shared by two mounts loses data), so a create asks runc about an owner that was never unmounted. And an engine may deliver the
//! `delete` of an old container after its successor was created: the owner tells that the mount is no longer the old one's.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{Refusal, lower, overlay, record};

/// The container that mounted the disk last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub container: String,
    /// runc's `--root` for it. None: runc's default.
    pub runc_root: Option<PathBuf>,
}

/// The locked owner file of one mountpoint. Dropping it gives the lock back.
#[derive(Debug)]
pub struct Claim {
    mountpoint: PathBuf,
    file: Flock<File>,
}

impl Claim {
    /// Waits for whoever else is mounting or unmounting this disk.
    pub fn lock(mountpoint: &Path) -> Result<Claim, Refusal> {
        let path = owner_file(mountpoint);
        let refuse = |e: &dyn std::fmt::Display| Refusal::new(format!("cannot lock {}: {e}", path.display()));
        let flags = libc::O_NOFOLLOW;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path);
        let file = file.map_err(|e| refuse(&e))?;
        let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| refuse(&e))?;
        Ok(Claim { mountpoint: mountpoint.to_owned(), file })
    }

    /// None: nobody. A file that does not parse names nobody either: it was torn by a crash of this machine, which ended all containers.
    pub fn owner(&mut self) -> Option<Owner> {
        let mut text = String::new();
        self.file.rewind().ok()?;
        (&*self.file).take(64 * 1024).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub fn set_owner(&mut self, owner: Option<&Owner>) -> Result<(), Refusal> {
        let text = owner.map(|o| serde_json::to_string(o).unwrap_or_default()).unwrap_or_default();
        let mut write = || -> std::io::Result<()> {
            self.file.set_len(0)?;
            self.file.rewind()?;
            (&*self.file).write_all(text.as_bytes())
        };
        write().map_err(|e| {
            Refusal::new(format!("cannot write {}: {e}", owner_file(&self.mountpoint).display()))
        })
    }

    /// Frees the disk of an owner that is gone. Refuses when it lives.
    pub fn evict(&mut self, runc: &Path) -> Result<(), Refusal> {
        if let Some(owner) = self.owner()
            && let Some(status) = status(runc, &owner)
        {
            let id = owner.container.get(..12).unwrap_or(&owner.container);
            return Err(Refusal::new(format!(
                "the root disk {} is in use by container {id} ({status}): remove that one first",
                self.mountpoint.display()
            )));
        }
        overlay::unmount(&self.mountpoint)
    }

    /// Unmounts and names nobody.
    pub fn release(&mut self) -> Result<(), Refusal> {
        overlay::unmount(&self.mountpoint)?;
        self.set_owner(None)
    }
}

/// Where this container's disk is mounted: by its record, or, when that is gone, by its name among all overlays that are mounted now.
pub fn mountpoint(container: &str) -> Option<PathBuf> {
    let recorded = record::load(container).ok();
    recorded.and_then(|record| record.rootfs.mountpoint.canonicalize().ok()).or_else(|| {
        let mounts = lower::mounts().ok()?;
        let mut overlays = mounts.into_iter().filter(|m| m.fstype == "overlay").map(|m| m.at);
        overlays.find(|at| read_owner(at).is_some_and(|owner| owner.container == container))
    })
}

/// The container as its disk's owner, which tells where runc has it. Not locked: while a container runs, nobody writes there. None:
/// it has no disk of ours, or has it no more.
pub fn owner(container: &str) -> Option<Owner> {
    read_owner(&mountpoint(container)?).filter(|owner| owner.container == container)
}

fn read_owner(mountpoint: &Path) -> Option<Owner> {
    serde_json::from_slice(&std::fs::read(owner_file(mountpoint)).ok()?).ok()
}

fn owner_file(mountpoint: &Path) -> PathBuf {
    let mut name = mountpoint.file_name().map(OsString::from).unwrap_or_default();
    name.push(".owner");
    mountpoint.with_file_name(name)
}

/// runc's word for a container that still has processes or could get some. None: stopped, or unknown to runc.
pub fn status(runc: &Path, owner: &Owner) -> Option<String> {
    #[derive(Deserialize)]
    struct State {
        status: String,
    }
    let mut command = Command::new(runc);
    if let Some(root) = &owner.runc_root {
        command.arg("--root").arg(root);
    }
    let output = command
        .arg("state")
        .arg(&owner.container)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let state: State = serde_json::from_slice(&output.stdout).ok()?;
    (output.status.success() && state.status != "stopped").then_some(state.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_kept_replaced_and_cleared() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = dir.path().join("root");
        let mut claim = Claim::lock(&at).expect("locks");
        assert_eq!(claim.owner(), None);
        let long =
            Owner { container: "a".repeat(64), runc_root: Some("/run/docker/runtime-runc/moby".into()) };
        let short = Owner { container: "b".into(), runc_root: None };
        for owner in [&long, &short] {
            claim.set_owner(Some(owner)).expect("writes");
            assert_eq!(claim.owner().as_ref(), Some(owner));
        }
        drop(claim);
        let mut claim = Claim::lock(&at).expect("locks again");
        assert_eq!(claim.owner(), Some(short));
        claim.set_owner(None).expect("writes");
        assert_eq!(claim.owner(), None);
        assert!(dir.path().join("root.owner").exists());
    }

    #[test]
    fn a_torn_owner_is_nobody() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("root.owner"), "{\"container\": \"ab").expect("writes");
        assert_eq!(Claim::lock(&dir.path().join("root")).expect("locks").owner(), None);
    }
}
