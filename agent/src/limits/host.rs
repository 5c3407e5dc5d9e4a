//! What the host has to give.

use super::Version;
use crate::mounts::table;
use enoki_api::host::Capacity;
use enoki_api::instance::CpuSet;
use enoki_api::quantity::{Bytes, MilliCpu};
use std::fs::read_to_string;
use std::io;
use std::path::Path;

/// Every instance takes a port of a bridge, of which Linux allows 1024; the rest is left to the host.
const INSTANCES: u64 = 1000;

/// Read once at start; CPUs and memory that are added later count after a restart of the agent.
pub fn capacity() -> io::Result<Capacity> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not understood"));
    let online = read_to_string("/sys/devices/system/cpu/online")?;
    let cpus = online.trim().parse::<CpuSet>().map_err(|_| bad("the list of online CPUs"))?;
    let memory = read_to_string("/proc/meminfo")?;
    let memory = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let number =
        |path: &str| -> io::Result<u64> { read_to_string(path)?.trim().parse().map_err(|_| bad(path)) };
    let pids = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    Ok(Capacity {
        cpus: MilliCpu(cpus.cpus().len() as u64 * 1000),
        memory: Bytes(memory.ok_or_else(|| bad("MemTotal"))? << 10),
        pids,
        instances: INSTANCES,
    })
}

/// Where the controllers are, and whether swap is accounted for.
pub fn cgroups() -> io::Result<(Version, bool)> {
    Ok(judge(&read_to_string("/proc/self/mountinfo")?))
}

fn judge(mounts: &str) -> (Version, bool) {
    let mounts = table(mounts);
    let memory = mounts
        .iter()
        .find(|mount| mount.kind == "cgroup" && mount.options.split(',').any(|option| option == "memory"));
    if let Some(memory) = memory {
        return (Version::V1, memory.point.join("memory.memsw.limit_in_bytes").exists());
    }
    let root = mounts.iter().find(|mount| mount.kind == "cgroup2");
    (Version::V2, root.is_some_and(|mount| child_has(&mount.point, "memory.swap.max")))
}

/// The root of v2 has no limits of its own; every group under it has, where the kernel has them at all.
fn child_has(root: &Path, file: &str) -> bool {
    let children = std::fs::read_dir(root).into_iter().flatten().flatten();
    children.into_iter().any(|child| child.path().join(file).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host() {
        let capacity = capacity().unwrap();
        let cpus = std::thread::available_parallelism().unwrap().get() as u64;
        assert!(capacity.cpus >= MilliCpu(cpus * 1000));
        assert!(capacity.memory > Bytes(64 << 20) && capacity.pids > 300);
    }

    #[test]
    fn swap_is_looked_for_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display();
        let v1 = format!("1 0 0:1 / {root} rw - cgroup cgroup rw,memory\n");
        let v2 = format!("1 0 0:1 / {root} rw - cgroup2 cgroup2 rw\n");
        assert_eq!((judge(&v1), judge(&v2)), ((Version::V1, false), (Version::V2, false)));
        std::fs::write(folder.path().join("memory.memsw.limit_in_bytes"), "").unwrap();
        std::fs::create_dir(folder.path().join("a.slice")).unwrap();
        std::fs::write(folder.path().join("a.slice/memory.swap.max"), "").unwrap();
        assert_eq!((judge(&v1), judge(&v2)), ((Version::V1, true), (Version::V2, true)));
    }
}
