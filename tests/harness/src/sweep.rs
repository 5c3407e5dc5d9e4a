//! Finding and removing everything that belongs to a space.
//!
//! Nothing is remembered: what belongs to a space is told from the kernel each time, by marks that no other space or
//! process can bear. A process belongs if its cgroup lies below the space's or its mounts come from the space's folder;
//! namespaces, mounts and links go with the last process. Loop devices are told by device and inode of their file, since
//! the path that the kernel prints is the one inside and means nothing out here.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::space::{PARENT, PREFIX, Space};

/// How long a purge may take before it reports what would not go.
const PATIENCE: Duration = Duration::from_secs(30);

/// What there is of a space, a line each; empty when it is gone altogether.
pub(crate) fn leftovers(space: &Space) -> Vec<String> {
    let mut found = Vec::new();
    for pid in processes(space) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        found.push(format!("process {pid}: {}", line.chars().take(120).collect::<String>().trim_end()));
    }
    for folder in cgroups(space) {
        found.push(format!("cgroup {}", folder.display()));
    }
    for (device, _) in loops(space) {
        found.push(format!("loop device {}", device.display()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines().filter(|line| names(line, space)) {
        found.push(format!("mount {}", line.split(' ').nth(4).unwrap_or(line)));
    }
    if space.root.exists() {
        found.push(format!("folder {}", space.root.display()));
    }
    found
}

/// What there is of the cloud whose folder this is or was; empty when it is gone altogether.
///
/// # Panics
/// When no cloud has such a folder.
pub fn leftovers_at(folder: &Path) -> Vec<String> {
    leftovers(&Space::at(folder).unwrap_or_else(|| panic!("{} is no cloud's folder", folder.display())))
}

/// Ends and removes everything of a space; returns what would not go. Asked twice, it does nothing the second time.
pub(crate) fn purge(space: &Space) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    // Found while their files are there to be compared with.
    let mut devices = loops(space);

    // Supervisors start things again while we kill, so until a look finds nobody twice.
    let mut quiet = 0;
    while quiet < 2 && Instant::now() < deadline {
        let alive = processes(space);
        quiet = if alive.is_empty() { quiet + 1 } else { 0 };
        for pid in &alive {
            // Safety: a plain system call. Its pid was read a moment ago; there is no moment at which it is certain.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        sleep(Duration::from_millis(if alive.is_empty() { 5 } else { 20 }));
    }

    devices.extend(loops(space));
    devices.sort();
    devices.dedup();
    for (device, identity) in devices {
        // The mount goes with its namespace a little after the last process; a device in use detaches when it is free.
        while Instant::now() < deadline && backing(&device) == Some(identity) {
            detach(&device);
            sleep(Duration::from_millis(10));
        }
    }

    while Instant::now() < deadline {
        let folders = cgroups(space);
        if folders.is_empty() {
            break;
        }
        // Deepest first; a group whose processes just ended stays busy for a moment.
        for folder in folders.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
        sleep(Duration::from_millis(5));
    }

    while Instant::now() < deadline {
        // A mount of it in our own namespace is not ours to know: deleting through it could delete anything.
        let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if mounted.lines().any(|line| names(line, space)) {
            break;
        }
        match fs::remove_dir_all(&space.root) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(_) => sleep(Duration::from_millis(50)),
        }
    }
    leftovers(space)
}

/// Purges every space whose owner is dead, and says so on stderr. Returns what would not go.
pub fn sweep_dead() -> Vec<String> {
    let mut left = Vec::new();
    for entry in fs::read_dir(PARENT).into_iter().flatten().flatten() {
        let Some(space) = Space::at(&entry.path()) else {
            continue;
        };
        if space.owner_lives() {
            continue;
        }
        eprintln!("harness: sweeping {}, whose test was killed", space.root.display());
        left.extend(purge(&space));
    }
    left
}

/// Whether a line of a mountinfo is about this space's folder: as root of the mount or as the place it is mounted at.
fn names(line: &str, space: &Space) -> bool {
    let mark = format!("{PREFIX}{}", space.id);
    line.split('/').any(|part| part.split([' ', ',', ':']).any(|word| word == mark))
}

/// The living processes of a space, by cgroup and by mounts.
fn processes(space: &Space) -> Vec<i32> {
    let own = std::process::id() as i32;
    let group = format!(":{}", space.cgroup_parent());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if pid == own || has_ended(pid) {
            continue;
        }
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let grouped = read("cgroup").lines().any(|line| {
            line.find(&group)
                .is_some_and(|at| matches!(line.as_bytes().get(at + group.len()), None | Some(b'/')))
        });
        if grouped || read("mountinfo").lines().any(|line| names(line, space)) {
            found.push(pid);
        }
    }
    found
}

/// The processes that live in the space's own mount namespace, containers left out, with their command lines.
pub(crate) fn processes_at_home(space: &Space) -> Vec<(i32, Vec<String>)> {
    let home = fs::read_link(format!("/proc/{}/ns/mnt", space.sleeper)).ok();
    let mut found = Vec::new();
    for pid in processes(space) {
        if home.is_none() || fs::read_link(format!("/proc/{pid}/ns/mnt")).ok() != home {
            continue;
        }
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = line.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        found.push((pid, words.collect()));
    }
    found
}

/// Whether a process has ended; a zombie has, and is its parent's to bury.
pub(crate) fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Every cgroup folder of a space in every hierarchy, parents before children.
fn cgroups(space: &Space) -> Vec<PathBuf> {
    let name = format!("{PREFIX}{}", space.id);
    let top = Path::new("/sys/fs/cgroup");
    // Version 2 has the folder right there; version 1 one level down, in each controller's.
    let mut waiting = vec![top.join(&name)];
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        // Some controllers are links to the hierarchy they share.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            waiting.push(entry.path().join(&name));
        }
    }
    let mut found = Vec::new();
    while let Some(folder) = waiting.pop() {
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
        found.push(folder);
    }
    found
}

/// Device and inode of a file.
type Identity = (u64, u64);

/// The loop devices that stand on a file in a space's folder.
fn loops(space: &Space) -> Vec<(PathBuf, Identity)> {
    let attached: Vec<_> = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("loop").is_dir())
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .filter_map(|device| backing(&device).map(|identity| (device, identity)))
        .collect();
    if attached.is_empty() {
        return attached;
    }
    let files = files(&space.root.join("disk"));
    attached.into_iter().filter(|(_, identity)| files.contains(identity)).collect()
}

/// Every file below a folder. Not Docker's: its layers are many files and never loop devices.
fn files(folder: &Path) -> HashSet<Identity> {
    let mut found = HashSet::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() && !entry.path().ends_with("var/lib/docker") {
                waiting.push(entry.path());
            } else if meta.is_file() {
                found.insert((meta.dev(), meta.ino()));
            }
        }
    }
    found
}

const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;

/// `struct loop_info64` of linux/loop.h: its first two fields are the file's device and inode.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rest: [u8; 216],
}

/// The file that a loop device stands on; `None` when it is detached.
fn backing(device: &Path) -> Option<Identity> {
    let file = fs::File::open(device).ok()?;
    let mut info = LoopInfo { device: 0, inode: 0, rest: [0; 216] };
    // Safety: the kernel fills a struct of exactly this size.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) };
    // The kernel encodes the device as stat does.
    (done == 0).then_some((info.device, info.inode))
}

fn detach(device: &Path) {
    if let Ok(file) = fs::File::open(device) {
        // Safety: takes no argument.
        unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CLR_FD as _, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_a_whole_word() {
        let space = Space::at(Path::new("/var/tmp/enoki-test-abc")).unwrap();
        let bind = "61 27 254:0 /var/tmp/enoki-test-abc/disk/run /run rw,relatime - ext4 /dev/vda rw";
        let overlay = "62 27 0:50 / /etc rw - overlay overlay rw,lowerdir=/etc,upperdir=/var/tmp/enoki-test-abc/over/etc/upper";
        assert!(names(bind, &space) && names(overlay, &space));
        assert!(!names(&bind.replace("abc", "abcd"), &space));
        assert!(!names("27 1 254:0 / / rw,relatime - ext4 /dev/vda rw", &space));
    }

    #[test]
    fn only_our_names_are_spaces() {
        assert!(Space::at(Path::new("/var/tmp/other")).is_none());
    }
}
