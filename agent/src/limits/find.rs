//! The control groups of a container, found through its main process.
//!
//! `/proc/PID/cgroup` tells the path in each hierarchy, the mount table where a hierarchy is. A path is taken
//! only up to the part that names the container; one that does not name it belongs to somebody else.

use super::{Cgroup, Error, v1, v2};
use crate::mounts::{Mount, table};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Where a container's control groups are.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// By controller.
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf),
}

/// The control groups of the container whose main process is `pid`.
pub fn group(container: &str, pid: u32) -> Result<Box<dyn Cgroup>, Error> {
    group_in(container, pid, &mounts()?)
}

/// The host's mount table: to look for many.
pub fn mounts() -> Result<Vec<Mount>, Error> {
    Ok(table(&read("/proc/self/mountinfo".to_owned())?))
}

fn read(path: String) -> Result<String, Error> {
    std::fs::read_to_string(&path).map_err(|why| Error::Gone(format!("{path}: {why}")))
}

/// As [`group`], by a mount table that was read before.
pub fn group_in(container: &str, pid: u32, mounts: &[Mount]) -> Result<Box<dyn Cgroup>, Error> {
    let groups = read(format!("/proc/{pid}/cgroup"))?;
    Ok(match place(container, &groups, mounts)? {
        Place::V1(folders) => Box::new(v1::Groups::new(folders)),
        Place::V2(folder) => Box::new(v2::Group::new(folder)),
    })
}

/// From the text of `/proc/PID/cgroup` and the mount table.
pub fn place(container: &str, groups: &str, mounts: &[Mount]) -> Result<Place, Error> {
    if container.is_empty() {
        return Err(Error::Gone("a container without an id".to_owned()));
    }
    let mut folders = BTreeMap::new();
    let mut unified = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if controllers.is_empty() {
            unified = Some(path);
            continue;
        }
        for controller in controllers.split(',').filter(|name| CONTROLLERS.contains(name)) {
            let hierarchy = |mount: &&Mount| {
                mount.kind == "cgroup" && mount.options.split(',').any(|option| option == controller)
            };
            if let Some(folder) = folder(mounts, hierarchy, &own(container, path)?) {
                folders.insert(controller.to_owned(), folder);
            }
        }
    }
    // A hybrid has both: what matters is where the controllers are.
    if !folders.is_empty() {
        return Ok(Place::V1(folders));
    }
    let path = unified.ok_or_else(|| Error::Gone("its process is in no control group".to_owned()))?;
    let folder = folder(mounts, |mount| mount.kind == "cgroup2", &own(container, path)?);
    folder.map(Place::V2).ok_or_else(|| Error::Refused("no control groups are mounted".to_owned()))
}

const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"];

/// The path up to the part that names the container (`<id>`, or `docker-<id>.scope`).
fn own(container: &str, path: &str) -> Result<PathBuf, Error> {
    let mut own = PathBuf::new();
    for part in Path::new(path).components() {
        if part == Component::ParentDir {
            break;
        }
        own.push(part);
        if matches!(part, Component::Normal(name) if name.to_string_lossy().contains(container)) {
            return Ok(own);
        }
    }
    Err(Error::Gone(format!("its process is in {path}, which is not the container's")))
}

fn folder(mounts: &[Mount], hierarchy: impl Fn(&&Mount) -> bool, path: &Path) -> Option<PathBuf> {
    mounts
        .iter()
        .filter(hierarchy)
        .find_map(|mount| path.strip_prefix(&mount.root).ok().map(|rest| mount.point.join(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "c0ffee";
    const HYBRID: &str = "\
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
36 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
42 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_is_v1() {
        let groups =
            "4:memory:/docker/c0ffee\n2:cpu,cpuacct:/docker/c0ffee\n1:name=systemd:/docker/c0ffee\n0::/\n";
        let Place::V1(folders) = place(ID, groups, &table(HYBRID)).unwrap() else { panic!("v1") };
        let folder = |name: &str| folders[name].display().to_string();
        assert_eq!(folder("memory"), "/sys/fs/cgroup/memory/docker/c0ffee");
        assert_eq!(folder("cpu"), "/sys/fs/cgroup/cpu,cpuacct/docker/c0ffee");
        assert_eq!(folder("cpuacct"), "/sys/fs/cgroup/cpu,cpuacct/docker/c0ffee");
        assert_eq!(folders.len(), 3);
    }

    #[test]
    fn unified_is_v2() {
        let mounts = "42 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";
        let groups = "0::/system.slice/docker-c0ffee.scope/init.scope\n";
        let expected = Place::V2("/sys/fs/cgroup/system.slice/docker-c0ffee.scope".into());
        assert_eq!(place(ID, groups, &table(mounts)).unwrap(), expected);
        // A part of the hierarchy is mounted.
        let part = "42 31 0:38 /system.slice /cg rw - cgroup2 cgroup2 rw\n";
        assert_eq!(place(ID, groups, &table(part)).unwrap(), Place::V2("/cg/docker-c0ffee.scope".into()));
    }

    #[test]
    fn somebody_elses_process_leads_nowhere() {
        for groups in ["4:memory:/\n0::/\n", "4:memory:/docker/another\n", "0::/../docker/c0ffee\n", ""] {
            assert!(matches!(place(ID, groups, &table(HYBRID)), Err(Error::Gone(_))), "{groups}");
        }
        assert!(place("", "4:memory:/docker/c0ffee\n", &table(HYBRID)).is_err());
    }
}
