//! The limits of a running container: one set, planned, written in a safe order, read back, and put back whole
//! when the kernel refuses a part of it.
//!
//! ```text
//! granted + what stands now --plan--> writes --apply--> read back --> LimitsStatus
//! ```
//!
//! The container's own control groups are found through its process, and only those whose path names the
//! container are ever written: a process id that was used again leads nowhere. Shrinking memory below its use
//! never kills: it is *deferred* and tried again by the caller.

pub mod device;
pub mod find;
pub mod host;
pub mod plan;
pub mod record;
pub mod squeeze;
mod systemd;
pub mod v1;
pub mod v2;

use device::Device;
use enoki_api::instance::{CPU_WEIGHT_DEFAULT, CpuSet, LimitsState, LimitsStatus, Resources};
use enoki_api::object::Uid;
use enoki_api::quantity::{Bytes, MilliCpu};
use plan::{Target, Write, plan};
use squeeze::{Cpus, Load};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The period that quotas are given in. Docker's and the kernel's own default.
pub const PERIOD_US: u64 = 100_000;

/// Which of the kernel's two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Version::V1 => "v1",
            Version::V2 => "v2",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container has no control groups (any more): it does not run.
    #[error("the container has no control group: {0}")]
    Gone(String),
    /// Not now: the memory is in use.
    #[error("{0}")]
    Busy(String),
    /// The kernel says no.
    #[error("{0}")]
    Refused(String),
}

/// Throttles on one block device. None: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoLimits {
    pub read_bps: Option<u64>,
    pub write_bps: Option<u64>,
    pub read_iops: Option<u64>,
    pub write_iops: Option<u64>,
}

/// What stands in the control groups. None: no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadBack {
    pub version: Version,
    pub quota_us: Option<u64>,
    pub period_us: u64,
    /// Share of CPU time where it is short: of 1024 on v1, of 100 on v2. None: the kernel has no weights.
    pub weight: Option<u64>,
    /// None: nothing of its own, as many as the parent has.
    pub cpuset: Option<CpuSet>,
    /// The parent's, which bounds ours. None: the kernel has no cpusets.
    pub allowed: Option<CpuSet>,
    pub memory: Option<u64>,
    /// On v1 memory and swap together, on v2 swap alone. Outer None: the kernel does not account for swap.
    pub swap: Option<Option<u64>>,
    pub pids: Option<u64>,
    pub io: BTreeMap<Device, IoLimits>,
}

/// What an instance uses, as counters and levels; rates are the reader's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: u64,
    /// Without the file cache that the kernel would give up first.
    pub memory_bytes: u64,
    pub pids: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
}

/// One container's control groups. Calls block for as long as the kernel reclaims memory: not for async threads.
pub trait Cgroup {
    fn read(&self) -> Result<ReadBack, Error>;
    fn write(&self, write: &Write) -> Result<(), Error>;
    fn usage(&self) -> Result<Usage, Error>;
    /// What it uses of the CPUs; with its threads where they are asked for.
    fn load(&self, threads: bool) -> Result<Load, Error>;
    /// Has whoever else writes to these groups keep what stands in them.
    fn hold(&self, _stands: &ReadBack) -> Result<(), Error> {
        Ok(())
    }
}

/// Puts `granted` on the running container, with `devices` the block devices under its disks.
///
/// # Errors
/// [`Error::Gone`] when it does not run; every other outcome is told in the status.
pub async fn apply_to(
    container: &str,
    pid: u32,
    granted: &Resources,
    devices: &[Device],
) -> Result<LimitsStatus, Error> {
    let (container, granted, devices) = (container.to_owned(), granted.clone(), devices.to_vec());
    blocking(move || apply(find::group(&container, pid)?.as_ref(), &granted, &devices)).await
}

/// The limits of the running container as they stand, without changing any.
pub async fn read_of(container: &str, pid: u32, granted: &Resources) -> Result<LimitsStatus, Error> {
    let (container, granted) = (container.to_owned(), granted.clone());
    blocking(move || {
        let seen = find::group(&container, pid)?.read()?;
        let devices: Vec<Device> = seen.io.keys().copied().collect();
        let stands = plan(&Target::asked(&granted, &devices, &seen), &seen).is_empty();
        let state = if stands { LimitsState::Applied } else { LimitsState::Deferred };
        Ok(status(&granted, &seen, state, None))
    })
    .await
}

/// What the running container uses.
pub async fn usage_of(container: &str, pid: u32) -> Result<Usage, Error> {
    let container = container.to_owned();
    blocking(move || find::group(&container, pid)?.usage()).await
}

/// A running container that is to be looked at.
#[derive(Clone, Debug)]
pub struct Running {
    pub uid: Uid,
    pub container: String,
    pub pid: u32,
    /// Whether its threads are, too.
    pub threads: bool,
}

/// The host's CPUs.
pub async fn cpus() -> Result<Cpus, Error> {
    let read = || std::fs::read_to_string("/proc/stat");
    blocking(move || read().map(|text| squeeze::cpus(&text)).map_err(|why| Error::Refused(why.to_string())))
        .await
}

/// What these use of the CPUs. One that has ended meanwhile is not among them.
pub async fn loads_of(running: Vec<Running>) -> Result<BTreeMap<Uid, Load>, Error> {
    blocking(move || {
        let mounts = find::mounts()?;
        let load = |one: &Running| find::group_in(&one.container, one.pid, &mounts)?.load(one.threads);
        Ok(running.iter().filter_map(|one| Some((one.uid.clone(), load(one).ok()?))).collect())
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    // A panic in there is our own fault; the caller's loop comes back.
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|why| Err(Error::Busy(why.to_string())))
}

/// Plans, writes, reads back; on any refusal puts everything back as it was.
pub fn apply(group: &dyn Cgroup, granted: &Resources, devices: &[Device]) -> Result<LimitsStatus, Error> {
    let before = group.read()?;
    if let Some(why) = outside(granted.cpuset.as_ref(), before.allowed.as_ref()) {
        return Ok(status(granted, &before, LimitsState::Infeasible, Some(why)));
    }
    let target = Target::asked(granted, devices, &before);
    let mut failed = None;
    for write in plan(&target, &before) {
        if let Err(error) = group.write(&write) {
            failed = Some(error);
            break;
        }
    }
    let after = group.read()?;
    let missing = plan(&target, &after);
    if failed.is_none() && missing.is_empty() {
        return Ok(match group.hold(&after) {
            Ok(()) => status(granted, &after, LimitsState::Applied, None),
            // They stand, but not for sure: tried again.
            Err(error) => status(granted, &after, LimitsState::Deferred, Some(error.to_string())),
        });
    }
    let (state, reason) = match failed {
        Some(gone @ Error::Gone(_)) => return Err(gone),
        Some(Error::Busy(why)) => (LimitsState::Deferred, why),
        Some(Error::Refused(why)) => (LimitsState::Infeasible, why),
        None => (LimitsState::Infeasible, format!("the kernel took the limits and kept others: {missing:?}")),
    };
    for write in plan(&Target::of(&before), &after) {
        if let Err(error) = group.write(&write) {
            tracing::warn!(?write, %error, "a limit could not be put back");
        }
    }
    let restored = group.read()?;
    if let Err(error) = group.hold(&restored) {
        tracing::warn!(%error, "the old limits hold until systemd reads its units again");
    }
    Ok(status(granted, &restored, state, Some(reason)))
}

/// A granted weight in the kernel's own terms: both versions have another default.
fn weight(granted: Option<u64>, version: Version) -> u64 {
    let granted = granted.unwrap_or(CPU_WEIGHT_DEFAULT);
    match version {
        Version::V1 => granted,
        Version::V2 => (granted * 100 / CPU_WEIGHT_DEFAULT).max(1),
    }
}

fn outside(asked: Option<&CpuSet>, allowed: Option<&CpuSet>) -> Option<String> {
    let (asked, allowed) = (asked?, allowed?);
    let have = allowed.cpus();
    let missing = asked.cpus().into_iter().find(|cpu| !have.contains(cpu))?;
    Some(format!("cpuset {asked}: there is no CPU {missing}; the host gives {allowed}"))
}

/// On cgroup v1 the kernel does not know whose a page is when it writes it out.
const BUFFERED: &str = "on cgroup v1, disk limits hold direct and synced writes; buffered ones are written out by the kernel unlimited";

fn status(granted: &Resources, seen: &ReadBack, state: LimitsState, reason: Option<String>) -> LimitsStatus {
    let least = |of: fn(&IoLimits) -> Option<u64>| seen.io.values().filter_map(of).min();
    let disk = enoki_api::instance::DiskLimits {
        read_bps: least(|io| io.read_bps).map(Bytes),
        write_bps: least(|io| io.write_bps).map(Bytes),
        read_iops: least(|io| io.read_iops),
        write_iops: least(|io| io.write_iops),
    };
    // v1 gives a cpuset to every group: the parent's whole set is no limit unless it was asked for.
    let whole = granted.cpuset.is_none() && seen.cpuset == seen.allowed;
    LimitsStatus {
        state,
        reason,
        cpus: seen.quota_us.map(|quota| MilliCpu(quota * 1000 / seen.period_us.max(1))),
        cpuset: seen.cpuset.clone().filter(|_| !whole),
        memory: seen.memory.map(Bytes),
        swap: match (seen.version, seen.memory, seen.swap) {
            (Version::V1, Some(memory), Some(Some(total))) => Some(Bytes(total.saturating_sub(memory))),
            (Version::V2, Some(_), Some(Some(swap))) => Some(Bytes(swap)),
            _ => None,
        },
        pids: seen.pids,
        cpu_weight: seen.weight.filter(|stands| *stands != weight(None, seen.version)),
        note: (seen.version == Version::V1 && disk.write_bps.or(disk.write_iops.map(Bytes)).is_some())
            .then(|| BUFFERED.to_owned()),
        disk,
        disk_size: None,
    }
}

/// A folder of control files.
#[derive(Clone, Debug)]
pub(crate) struct Folder(pub PathBuf);

impl Folder {
    /// None: there is no such file, because the kernel (or this group) does not have the feature.
    pub fn get(&self, file: &str) -> Result<Option<String>, Error> {
        let path = self.0.join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(why) if why.kind() == io::ErrorKind::NotFound && self.0.is_dir() => Ok(None),
            Err(why) => Err(explain(&path, None, &why)),
        }
    }

    pub fn number(&self, file: &str) -> Result<Option<u64>, Error> {
        Ok(self.get(file)?.and_then(|text| text.parse().ok()))
    }

    pub fn set(&self, file: &str, text: &str) -> Result<(), Error> {
        let path = self.0.join(file);
        // Opened without `create`: the file is there or the kernel has no such limit.
        let mut opened = std::fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .map_err(|why| explain(&path, Some(text), &why))?;
        io::Write::write_all(&mut opened, text.as_bytes()).map_err(|why| explain(&path, Some(text), &why))
    }

    /// The threads in this group and in those below it, as `file` of each lists them, and how long each ran and waited.
    pub fn threads(&self, file: &str) -> BTreeMap<u32, (u64, u64)> {
        // What ends while it is looked at is not missed.
        let list = self.get(file).ok().flatten().unwrap_or_default();
        let times = |thread: u32| {
            squeeze::schedstat(&std::fs::read_to_string(format!("/proc/{thread}/schedstat")).ok()?)
        };
        let ids = list.lines().filter_map(|line| line.parse().ok());
        let mut threads: BTreeMap<u32, (u64, u64)> = ids.filter_map(|id| Some((id, times(id)?))).collect();
        let below = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        for folder in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            threads.extend(Folder(folder.path()).threads(file));
        }
        threads
    }

    pub fn parent(&self) -> Folder {
        Folder(self.0.parent().map(Path::to_path_buf).unwrap_or_default())
    }
}

fn explain(path: &Path, text: Option<&str>, why: &io::Error) -> Error {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let folder_gone = path.parent().is_some_and(|folder| !folder.exists());
    match (why.raw_os_error(), text) {
        _ if folder_gone => Error::Gone(path.display().to_string()),
        (Some(libc::EBUSY), Some(text)) => {
            Error::Busy(format!("{file}: {text} is less than what is in use and cannot be reclaimed"))
        }
        (Some(libc::ENOENT), Some(_)) => Error::Refused(format!("this kernel has no {file}")),
        (_, Some(text)) => Error::Refused(format!("{file}: the kernel refuses {text}: {why}")),
        (_, None) => Error::Refused(format!("{}: {why}", path.display())),
    }
}

/// `rbytes=1 wbytes=2` and the like.
pub(crate) fn field(line: &str, key: &str) -> Option<u64> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

/// The value of `key` in a file of `key value` lines.
pub(crate) fn line(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups in which everything asked stands already, with a manager that takes it over or does not.
    struct Managed(Result<(), String>);

    impl Cgroup for Managed {
        fn read(&self) -> Result<ReadBack, Error> {
            Ok(ReadBack {
                version: Version::V2,
                quota_us: None,
                period_us: PERIOD_US,
                weight: Some(100),
                cpuset: None,
                allowed: None,
                memory: None,
                swap: None,
                pids: Some(50),
                io: BTreeMap::new(),
            })
        }

        fn write(&self, write: &Write) -> Result<(), Error> {
            Err(Error::Refused(format!("{write:?}")))
        }

        fn usage(&self) -> Result<Usage, Error> {
            Ok(Usage::default())
        }

        fn load(&self, _threads: bool) -> Result<Load, Error> {
            Ok(Load::default())
        }

        fn hold(&self, stands: &ReadBack) -> Result<(), Error> {
            assert_eq!(*stands, self.read()?);
            self.0.clone().map_err(Error::Busy)
        }
    }

    #[test]
    fn limits_that_nobody_keeps_are_not_called_applied() {
        let asked = Resources { pids: Some(50), ..Resources::default() };
        let kept = apply(&Managed(Ok(())), &asked, &[]).unwrap();
        assert_eq!((kept.state, kept.reason), (LimitsState::Applied, None));
        let lost = apply(&Managed(Err("no answer".to_owned())), &asked, &[]).unwrap();
        assert_eq!((lost.state, lost.reason), (LimitsState::Deferred, Some("no answer".to_owned())));
        assert_eq!(lost.pids, Some(50));
        let more = Resources { pids: Some(60), ..Resources::default() };
        assert_eq!(apply(&Managed(Ok(())), &more, &[]).unwrap().state, LimitsState::Infeasible);
    }
}
