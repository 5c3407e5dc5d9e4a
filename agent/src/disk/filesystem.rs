//! The file system in a disk's image: made, mounted, grown while mounted, unmounted.
//!
//! ext4, mounted with `minixdf`, so that `df` counts every block and tells the size that was asked for. Its
//! growing while mounted takes the capability CAP_SYS_RESOURCE; where the agent was not given that (a hardened
//! unit, a sandbox), new disks are XFS, which grows without. There `df` counts all but the log, so the image is
//! larger by the log. What a disk is, its image tells.

use super::{Error, FS, IMAGE_FILE, doing, loopback, tool};
use crate::limits::device::Device;
use crate::mounts::{self, Mount};
use enoki_api::object::Uid;
use enoki_api::quantity::Bytes;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as mount_call, umount2};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const BLOCK: u64 = 4096;
/// Of XFS, in every image. Ample for one instance, and small enough to be written at each creation.
const LOG: u64 = 16 << 20;
/// From here on XFS divides a disk by itself; below, one part is left whole for files to lie in one piece.
const DIVIDED: u64 = 1 << 30;
/// The share of the space that XFS gives to inodes: its default, named because growing has to name it again.
const INODE_PERCENT: u32 = 25;
/// Number of CAP_SYS_RESOURCE.
const SYS_RESOURCE: u32 = 24;

/// `struct xfs_growfs_data` of xfs/xfs_fs.h.
#[repr(C)]
struct Growth {
    blocks: u64,
    inode_percent: u32,
}

// EXT4_IOC_RESIZE_FS of the kernel's ext4.h: to so many blocks, while mounted.
nix::ioctl_write_ptr!(grow_ext4, b'f', 16, u64);
// XFS_IOC_FSGROWFSDATA of xfs/xfs_fs.h.
nix::ioctl_write_ptr!(grow_xfs, b'X', 110, Growth);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// Of a disk that is to be made by this process.
    pub fn new() -> Kind {
        if has_capability(SYS_RESOURCE) { Kind::Ext4 } else { Kind::Xfs }
    }

    /// From the mark in the image. Without one it is taken for ext4, whose tools look for copies of what is lost.
    pub fn of(image: &Path) -> Result<Kind, Error> {
        let mut mark = [0; 4];
        let read = File::open(image).and_then(|file| file.read_exact_at(&mut mark, 0));
        read.map_err(doing("read", image))?;
        Ok(if mark == *b"XFSB" { Kind::Xfs } else { Kind::Ext4 })
    }

    /// How long the image of a disk of this size is.
    pub fn image_length(self, size: Bytes) -> Bytes {
        match self {
            Kind::Ext4 => size,
            Kind::Xfs => Bytes(size.0.saturating_add(LOG)),
        }
    }

    fn size_of(self, image_length: Bytes) -> Bytes {
        match self {
            Kind::Ext4 => image_length,
            Kind::Xfs => Bytes(image_length.0.saturating_sub(LOG)),
        }
    }

    /// Fills `image`, whose length is set, with an empty file system.
    pub fn format(self, image: &Path, uid: &Uid) -> Result<(), Error> {
        match self {
            // No blocks for root alone: everything that was asked for can be used. The file is sparse, thus
            // zero already, and what is initialised lazily is never written at all (`noinit_itable`).
            Kind::Ext4 => tool(
                Command::new("mkfs.ext4")
                    .args(["-q", "-F", "-m", "0", "-b", "4096", "-i", "8192", "-U", uid.as_str()])
                    .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"])
                    .arg(image),
            )?,
            // `--unsupported` lifts its lower bounds (300 MB, of which 64 for the log).
            Kind::Xfs => {
                let mut command = Command::new("mkfs.xfs");
                command.args(["--unsupported", "-q", "-f", "-K", "-b", "size=4096"]);
                command.args(["-m", &format!("uuid={uid}"), "-i", &format!("maxpct={INODE_PERCENT}")]);
                command.args(["-l", &format!("size={LOG}")]);
                if super::length(image)?.0 < DIVIDED {
                    command.args(["-d", "agcount=1"]);
                }
                tool(command.arg(image))?
            }
        };
        File::open(image).and_then(|file| file.sync_all()).map_err(doing("sync", image))
    }

    fn mount(self, device: &Path, point: &Path) -> Result<(), Errno> {
        let (name, options) = match self {
            Kind::Ext4 => ("ext4", "minixdf,discard,noinit_itable,errors=remount-ro"),
            Kind::Xfs => ("xfs", "discard"),
        };
        mount_call(Some(device), point, Some(name), MsFlags::MS_NODEV | MsFlags::MS_RELATIME, Some(options))
    }

    /// To the whole of its device.
    fn grow(self, file: &File, blocks: u64) -> Result<(), Errno> {
        match self {
            Kind::Ext4 => {
                // SAFETY: EXT4_IOC_RESIZE_FS reads one u64.
                unsafe { grow_ext4(file.as_raw_fd(), &raw const blocks) }?;
            }
            Kind::Xfs => {
                let growth = Growth { blocks: blocks + LOG / BLOCK, inode_percent: INODE_PERCENT };
                // SAFETY: XFS_IOC_FSGROWFSDATA reads an `xfs_growfs_data`, which `Growth` is.
                unsafe { grow_xfs(file.as_raw_fd(), &raw const growth) }?;
            }
        }
        Ok(())
    }

    /// Only what is safe to repair without asking anybody.
    fn repair(self, device: &Path) -> Result<(), Error> {
        if self == Kind::Xfs {
            let why = "the file system is damaged: look at it with xfs_repair -n";
            return Err(doing("mount", device)(io::Error::other(why)));
        }
        let mut command = Command::new("e2fsck");
        let run = command.args(["-f", "-p"]).arg(device).env("PATH", "/usr/sbin:/sbin").output();
        let output = run.map_err(doing("e2fsck", device))?;
        match output.status.code() {
            // 1: errors were corrected.
            Some(0 | 1) => Ok(()),
            _ => {
                let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                Err(doing("e2fsck", device)(io::Error::other(said)))
            }
        }
    }
}

/// The size that an image stands for.
pub fn size_of_image(image: &Path) -> Result<Bytes, Error> {
    Ok(Kind::of(image)?.size_of(super::length(image)?))
}

fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.is_some_and(|set| set >> number & 1 == 1)
}

/// Idempotent; also lets the file system grow to its image's size.
pub fn mount(folder: &Path) -> Result<(), Error> {
    let (image, point) = (folder.join(IMAGE_FILE), folder.join(FS));
    let kind = Kind::of(&image)?;
    if mounted(folder)?.is_none() {
        let device = loopback::attach(&image)?;
        match kind.mount(&device.path, &point) {
            Ok(()) => {}
            // Damaged by more than a crash, which the journal would have healed.
            Err(Errno::EUCLEAN | Errno::EBADMSG | Errno::EINVAL | Errno::EIO) => {
                tracing::warn!(image = %image.display(), "the disk is damaged; repairing it");
                kind.repair(&device.path)?;
                kind.mount(&device.path, &point).map_err(doing("mount", &image))?;
            }
            Err(why) => return Err(doing("mount", &image)(why)),
        }
    }
    let whole = kind.size_of(super::length(&image)?).0 / BLOCK;
    if blocks(&point)? >= whole {
        return Ok(());
    }
    if let Some(device) = mounted(folder)?.as_ref().and_then(Device::of_mount) {
        loopback::refresh(device)?;
    }
    let file = File::open(&point).map_err(doing("open", &point))?;
    kind.grow(&file, whole).map_err(|why| match why {
        Errno::EPERM => doing("grow", &point)(io::Error::other(
            "ext4 grows while it is in use only for an agent with the capability CAP_SYS_RESOURCE",
        )),
        other => doing("grow", &point)(other),
    })
}

/// The disk's own mount. An error when something else is mounted there.
fn mounted(folder: &Path) -> Result<Option<Mount>, Error> {
    let folder = folder.canonicalize().map_err(doing("look at", folder))?;
    let point = folder.join(FS);
    let table = mounts::own().map_err(doing("list mounts for", &folder))?;
    // The last one is on top.
    let Some(mount) = table.into_iter().rfind(|mount| mount.point == point) else {
        return Ok(None);
    };
    match Device::of_mount(&mount).and_then(loopback::backing) {
        Some(file) if file == folder.join(IMAGE_FILE) => Ok(Some(mount)),
        _ => Err(Error::InUse(format!("{} is mounted at {}", mount.source, point.display()))),
    }
}

fn blocks(point: &Path) -> Result<u64, Error> {
    let seen = nix::sys::statvfs::statvfs(point).map_err(doing("look at", point))?;
    Ok(seen.blocks().saturating_mul(seen.fragment_size()) / BLOCK)
}

/// Of the file system where it is mounted, else of its image.
pub fn size(folder: &Path) -> Result<Bytes, Error> {
    let asked = size_of_image(&folder.join(IMAGE_FILE))?;
    if mounted(folder)?.is_none() {
        return Ok(asked);
    }
    let blocks = blocks(&folder.join(FS))?;
    // A size that is no whole number of blocks is kept as it was asked for.
    Ok(if blocks == asked.0 / BLOCK { asked } else { Bytes(blocks * BLOCK) })
}

/// Everything that is mounted in `folder`, the innermost first.
pub fn unmount_all(folder: &Path) -> Result<(), Error> {
    let real = folder.canonicalize().map_err(doing("look at", folder))?;
    let table = mounts::own().map_err(doing("list mounts for", folder))?;
    for mount in table.iter().rev().filter(|mount| mount.point.starts_with(&real)) {
        umount2(&mount.point, MntFlags::UMOUNT_NOFOLLOW).map_err(|why| match why {
            Errno::EBUSY => Error::InUse(format!("{} is in use", mount.point.display())),
            other => doing("unmount", &mount.point)(other),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::IMAGE_FILE;
    use super::*;

    /// A disk of this kind, whatever this process would choose.
    fn disk(kind: Kind, size: u64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(FS)).unwrap();
        stretch(&folder, kind, size);
        kind.format(&folder.path().join(IMAGE_FILE), &Uid::random()).unwrap();
        folder
    }

    fn stretch(folder: &tempfile::TempDir, kind: Kind, size: u64) {
        let image = folder.path().join(IMAGE_FILE);
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(image).unwrap();
        file.set_len(kind.image_length(Bytes(size)).0).unwrap();
    }

    struct Mounted<'a>(&'a Path);

    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            unmount_all(self.0).unwrap();
        }
    }

    #[test]
    fn both_kinds_tell_their_size_exactly() {
        for kind in [Kind::Ext4, Kind::Xfs] {
            for size in [16 << 20, 100 << 20, (3 << 30) + 1] {
                let folder = disk(kind, size);
                assert_eq!(Kind::of(&folder.path().join(IMAGE_FILE)).unwrap(), kind);
                assert_eq!(super::size(folder.path()).unwrap(), Bytes(size), "{kind:?}, not mounted");
                mount(folder.path()).unwrap();
                let _mounted = Mounted(folder.path());
                mount(folder.path()).unwrap();
                assert_eq!(blocks(&folder.path().join(FS)).unwrap(), size / BLOCK, "{kind:?}");
                assert_eq!(super::size(folder.path()).unwrap(), Bytes(size), "{kind:?}");
            }
        }
    }

    #[test]
    fn growth_says_what_it_lacks() {
        for kind in [Kind::Ext4, Kind::Xfs] {
            let folder = disk(kind, 32 << 20);
            mount(folder.path()).unwrap();
            let _mounted = Mounted(folder.path());
            stretch(&folder, kind, 96 << 20);
            let grown = mount(folder.path());
            if kind == Kind::Xfs || has_capability(SYS_RESOURCE) {
                grown.unwrap();
                assert_eq!(super::size(folder.path()).unwrap(), Bytes(96 << 20), "{kind:?}");
            } else {
                let error = grown.unwrap_err().to_string();
                assert!(error.contains("CAP_SYS_RESOURCE"), "{error}");
                assert_eq!(super::size(folder.path()).unwrap(), Bytes(32 << 20), "the truth, not the wish");
            }
        }
    }

    #[test]
    fn damage_is_repaired_where_that_is_safe() {
        for kind in [Kind::Ext4, Kind::Xfs] {
            // Large enough for ext4 to have a second copy of its superblock.
            let folder = disk(kind, 256 << 20);
            mount(folder.path()).unwrap();
            std::fs::write(folder.path().join(FS).join("file"), "kept").unwrap();
            unmount_all(folder.path()).unwrap();
            let image = folder.path().join(IMAGE_FILE);
            let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
            let spoilt = if kind == Kind::Ext4 { 1024 } else { 100 };
            file.write_all_at(&[0xff; 300], spoilt).unwrap();
            match mount(folder.path()) {
                Ok(()) => {
                    let _mounted = Mounted(folder.path());
                    let text = std::fs::read_to_string(folder.path().join(FS).join("file")).unwrap();
                    assert_eq!((kind, text.as_str()), (Kind::Ext4, "kept"));
                }
                Err(error) => assert!(error.to_string().contains("damaged") || kind == Kind::Ext4, "{error}"),
            }
            assert!(image.exists());
        }
    }
}
