//! Block devices by number, and which one lies under a path.
//!
//! The kernel throttles whole disks only: a partition's number is refused, so it leads to its disk.

use crate::mounts::{self, Mount};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A block device as the kernel numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Device {
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    fn of_number(number: u64) -> Self {
        Device { major: libc::major(number), minor: libc::minor(number) }
    }

    /// Whether the kernel has it (still).
    pub fn exists(self) -> bool {
        sys(Path::new("/sys"), self).exists()
    }

    /// The device that is mounted there. btrfs and the like number their mounts themselves; the mount names its
    /// device. None: there is none (tmpfs, a network file system).
    pub fn of_mount(mount: &Mount) -> Option<Self> {
        match Device::parse(&mount.device)? {
            Device { major: 0, .. } if mount.source.starts_with("/dev/") => {
                std::fs::metadata(&mount.source).ok().map(|node| Device::of_number(node.rdev()))
            }
            Device { major: 0, .. } => None,
            device => Some(device),
        }
    }

    /// The disk that `path` lies on. None: no block device is under it (tmpfs, a network file system).
    pub fn under(path: &Path) -> io::Result<Option<Self>> {
        let found = Device::of_number(std::fs::metadata(path)?.dev());
        if found.major != 0 {
            return Ok(Some(whole(Path::new("/sys"), found)));
        }
        let mounts = mounts::own()?;
        let mount = innermost(&mounts, &path.canonicalize()?);
        Ok(mount.and_then(Device::of_mount).map(|device| whole(Path::new("/sys"), device)))
    }
}

fn sys(root: &Path, device: Device) -> PathBuf {
    root.join("dev/block").join(device.to_string())
}

fn whole(root: &Path, device: Device) -> Device {
    let folder = sys(root, device);
    if !folder.join("partition").exists() {
        return device;
    }
    // The folder is a link into the disk's own: .../vda/vda1.
    let disk = folder.canonicalize().ok().and_then(|path| path.parent().map(|disk| disk.join("dev")));
    let text = disk.and_then(|path| std::fs::read_to_string(path).ok());
    text.and_then(|text| Device::parse(text.trim())).unwrap_or(device)
}

/// The mount that holds `path`: of those at the same place the last, which is on top.
fn innermost<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    above.max_by_key(|mount| mount.point.as_os_str().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_leads_to_its_disk() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("devices/virtual/block/vda");
        std::fs::create_dir_all(disk.join("vda1")).unwrap();
        std::fs::create_dir_all(root.path().join("dev/block")).unwrap();
        std::fs::write(disk.join("dev"), "254:0\n").unwrap();
        std::fs::write(disk.join("vda1/partition"), "1\n").unwrap();
        let link = |name: &str, to: &Path| {
            std::os::unix::fs::symlink(to, root.path().join("dev/block").join(name)).unwrap();
        };
        link("254:0", &disk);
        link("254:1", &disk.join("vda1"));
        let (disk, part) = (Device { major: 254, minor: 0 }, Device { major: 254, minor: 1 });
        assert_eq!(whole(root.path(), part), disk);
        assert_eq!(whole(root.path(), disk), disk);
    }

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "1 0 0:40 / / rw - btrfs /dev/vda2 rw\n2 1 0:41 /sub /var/lib/en\\040oki rw shared:1 - btrfs /dev/vdb rw\n";
        let mounts = mounts::table(mounts);
        let source = |path: &str| Path::new(&innermost(&mounts, Path::new(path)).unwrap().source);
        assert_eq!(source("/var/lib/en oki/disks"), Path::new("/dev/vdb"));
        assert_eq!(source("/var/lib"), Path::new("/dev/vda2"));
    }
}
