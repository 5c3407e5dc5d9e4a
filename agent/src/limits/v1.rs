//! Control groups v1: one folder for each controller.
//!
//! A memory limit below what is in use answers EBUSY when the kernel cannot reclaim enough, and kills nobody.

use super::device::Device;
use super::plan::Write;
use super::squeeze::Load;
use super::{Cgroup, Error, Folder, IoLimits, ReadBack, Usage, Version, line};
use enoki_api::instance::CpuSet;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The folders of one container.
#[derive(Clone, Debug)]
pub struct Groups {
    folders: BTreeMap<String, PathBuf>,
}

/// "No limit" reads as the highest number of pages that fits.
const UNLIMITED: u64 = i64::MAX as u64 / 4096 * 4096;

const THROTTLES: [(&str, Of, Set); 4] = [
    ("blkio.throttle.read_bps_device", |io| io.read_bps, |io, value| io.read_bps = value),
    ("blkio.throttle.write_bps_device", |io| io.write_bps, |io, value| io.write_bps = value),
    ("blkio.throttle.read_iops_device", |io| io.read_iops, |io, value| io.read_iops = value),
    ("blkio.throttle.write_iops_device", |io| io.write_iops, |io, value| io.write_iops = value),
];
type Of = fn(&IoLimits) -> Option<u64>;
type Set = fn(&mut IoLimits, Option<u64>);

impl Groups {
    /// By controller (`cpu`, `memory`, ...).
    pub fn new(folders: BTreeMap<String, PathBuf>) -> Self {
        Groups { folders }
    }

    fn folder(&self, controller: &str) -> Result<Folder, Error> {
        let path = self.folders.get(controller);
        path.map(|path| Folder(path.clone()))
            .ok_or_else(|| Error::Refused(format!("this kernel has no `{controller}` controller")))
    }

    /// Reads from a controller that may be missing.
    fn get(&self, controller: &str, file: &str) -> Result<Option<String>, Error> {
        match self.folders.get(controller) {
            Some(path) => Folder(path.clone()).get(file),
            None => Ok(None),
        }
    }

    fn limit(&self, file: &str) -> Result<Option<Option<u64>>, Error> {
        let value = self.get("memory", file)?.and_then(|text| text.parse::<u64>().ok());
        Ok(value.map(|bytes| Some(bytes).filter(|bytes| *bytes < UNLIMITED)))
    }

    fn allowed(&self) -> Result<Option<CpuSet>, Error> {
        match self.folders.get("cpuset") {
            Some(path) => {
                let parent = Folder(path.clone()).parent();
                Ok(parent.get("cpuset.cpus")?.and_then(|text| text.parse().ok()))
            }
            None => Ok(None),
        }
    }

    fn set_cpu(&self, quota_us: Option<u64>, period_us: u64) -> Result<(), Error> {
        let folder = self.folder("cpu")?;
        if folder.number("cpu.cfs_period_us")? != Some(period_us) {
            // Without a quota every period is legal.
            folder.set("cpu.cfs_quota_us", "-1")?;
            folder.set("cpu.cfs_period_us", &period_us.to_string())?;
        }
        folder.set("cpu.cfs_quota_us", &quota_us.map_or("-1".to_owned(), |quota| quota.to_string()))
    }

    fn set_io(&self, device: Device, limits: &IoLimits) -> Result<(), Error> {
        let folder = self.folder("blkio")?;
        for (file, of, _) in THROTTLES {
            let value = of(limits);
            let written = folder.set(file, &format!("{device} {}", value.unwrap_or(0)));
            // A device that is gone has no limit left to lift.
            if value.is_some() || device.exists() {
                written?;
            }
        }
        Ok(())
    }
}

impl Cgroup for Groups {
    fn read(&self) -> Result<ReadBack, Error> {
        let number = |controller, file| -> Result<Option<u64>, Error> {
            Ok(self.get(controller, file)?.and_then(|text| text.parse().ok()))
        };
        let mut io: BTreeMap<Device, IoLimits> = BTreeMap::new();
        for (file, _, set) in THROTTLES {
            for row in self.get("blkio", file)?.unwrap_or_default().lines() {
                let Some((device, value)) = row.split_once(' ') else { continue };
                if let (Some(device), Ok(value)) = (Device::parse(device), value.trim().parse()) {
                    set(io.entry(device).or_default(), Some(value));
                }
            }
        }
        Ok(ReadBack {
            version: Version::V1,
            // "-1" is no number, which is what it means.
            quota_us: number("cpu", "cpu.cfs_quota_us")?,
            period_us: number("cpu", "cpu.cfs_period_us")?.unwrap_or(super::PERIOD_US),
            weight: number("cpu", "cpu.shares")?,
            cpuset: self.get("cpuset", "cpuset.cpus")?.and_then(|text| text.parse().ok()),
            allowed: self.allowed()?,
            memory: self.limit("memory.limit_in_bytes")?.flatten(),
            swap: self.limit("memory.memsw.limit_in_bytes")?,
            pids: number("pids", "pids.max")?,
            io,
        })
    }

    fn write(&self, write: &Write) -> Result<(), Error> {
        let bytes = |limit: &Option<u64>| limit.map_or("-1".to_owned(), |bytes| bytes.to_string());
        match write {
            // The kernel reclaims by itself when the limit is lowered, and refuses when it cannot.
            Write::Reclaim(_) => Ok(()),
            Write::Memory(limit) => self.folder("memory")?.set("memory.limit_in_bytes", &bytes(limit)),
            Write::Swap(limit) => self.folder("memory")?.set("memory.memsw.limit_in_bytes", &bytes(limit)),
            Write::Cpu { quota_us, period_us } => self.set_cpu(*quota_us, *period_us),
            Write::CpuWeight(weight) => self.folder("cpu")?.set("cpu.shares", &weight.to_string()),
            Write::CpuSet(set) => {
                let set = set.clone().or(self.allowed()?);
                let text = set.map(|set| set.to_string()).unwrap_or_default();
                self.folder("cpuset")?.set("cpuset.cpus", &text)
            }
            Write::Pids(limit) => {
                let text = limit.map_or("max".to_owned(), |count| count.to_string());
                self.folder("pids")?.set("pids.max", &text)
            }
            Write::Io(device, limits) => self.set_io(*device, limits),
        }
    }

    fn usage(&self) -> Result<Usage, Error> {
        let number = |controller, file| -> Result<u64, Error> {
            Ok(self.get(controller, file)?.and_then(|text| text.parse().ok()).unwrap_or(0))
        };
        let stat = self.get("memory", "memory.stat")?.unwrap_or_default();
        let cache = line(&stat, "total_inactive_file").unwrap_or(0);
        let recursive = self.get("blkio", "blkio.throttle.io_service_bytes_recursive")?;
        let served = match recursive {
            Some(text) => text,
            None => self.get("blkio", "blkio.throttle.io_service_bytes")?.unwrap_or_default(),
        };
        let total = |word: &str| {
            let rows = served.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
            rows.filter(|row| row.len() == 3 && row[1] == word)
                .filter_map(|row| row[2].parse::<u64>().ok())
                .sum()
        };
        Ok(Usage {
            cpu_ns: number("cpuacct", "cpuacct.usage")?,
            memory_bytes: number("memory", "memory.usage_in_bytes")?.saturating_sub(cache),
            pids: number("pids", "pids.current")?,
            read_bytes: total("Read"),
            write_bytes: total("Write"),
        })
    }

    fn load(&self, threads: bool) -> Result<Load, Error> {
        let cpu = self.folder("cpu")?;
        let stat = cpu.get("cpu.stat")?.unwrap_or_default();
        Ok(Load {
            cpu_ns: self.folder("cpuacct")?.number("cpuacct.usage")?.unwrap_or(0),
            periods: line(&stat, "nr_periods").unwrap_or(0),
            throttled: line(&stat, "nr_throttled").unwrap_or(0),
            threads: if threads { cpu.threads("tasks") } else { BTreeMap::new() },
        })
    }
}
