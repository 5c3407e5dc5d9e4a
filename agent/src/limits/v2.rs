//! Control groups v2: one folder, which holds every controller's files.
//!
//! Here a hard memory limit below what is in use kills. The soft one (`memory.high`) is lowered first: it slows
//! the processes down and reclaims; only once the use is below does the hard one follow, else the change is
//! deferred and the soft one lifted again.

use super::device::Device;
use super::plan::Write;
use super::squeeze::Load;
use super::{Cgroup, Error, Folder, IoLimits, ReadBack, Usage, Version, field, line, systemd};
use enoki_api::instance::CpuSet;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The folder of one container.
#[derive(Clone, Debug)]
pub struct Group {
    folder: Folder,
    patience: Duration,
}

/// How long reclaim may take before the change is put off.
const PATIENCE: Duration = Duration::from_secs(2);

impl Group {
    pub fn new(folder: PathBuf) -> Self {
        Group { folder: Folder(folder), patience: PATIENCE }
    }

    fn limit(&self, file: &str) -> Result<Option<Option<u64>>, Error> {
        // "max" is no number, which is what it means.
        Ok(self.folder.get(file)?.map(|text| text.parse().ok()))
    }

    fn set_limit(&self, file: &str, limit: Option<u64>) -> Result<(), Error> {
        self.folder.set(file, &limit.map_or("max".to_owned(), |value| value.to_string()))
    }

    /// Leaves the soft limit in place: it holds the processes back until the hard one is written.
    fn reclaim(&self, to: u64) -> Result<(), Error> {
        // A little below, so that what is allocated between the look and the hard limit has room.
        self.set_limit("memory.high", Some(to - to / 32))?;
        let until = Instant::now() + self.patience;
        loop {
            let used = self.folder.number("memory.current")?.unwrap_or(0);
            if used <= to {
                return Ok(());
            }
            if Instant::now() >= until {
                self.set_limit("memory.high", None)?;
                return Err(Error::Busy(format!(
                    "memory: {used} bytes are in use and cannot be reclaimed down to {to}"
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn set_io(&self, device: Device, limits: &IoLimits) -> Result<(), Error> {
        let value = |limit: Option<u64>| limit.map_or("max".to_owned(), |value| value.to_string());
        let row = format!(
            "{device} rbps={} wbps={} riops={} wiops={}",
            value(limits.read_bps),
            value(limits.write_bps),
            value(limits.read_iops),
            value(limits.write_iops)
        );
        let written = self.folder.set("io.max", &row);
        // A device that is gone has no limit left to lift.
        if *limits == IoLimits::default() && !device.exists() {
            return Ok(());
        }
        written
    }
}

impl Cgroup for Group {
    fn read(&self) -> Result<ReadBack, Error> {
        let cpu = self.folder.get("cpu.max")?.unwrap_or_default();
        let (quota, period) = cpu.split_once(' ').unwrap_or(("max", ""));
        let set = |text: Option<String>| text.and_then(|text| text.parse::<CpuSet>().ok());
        let mut io = BTreeMap::new();
        for row in self.folder.get("io.max")?.unwrap_or_default().lines() {
            let limits = IoLimits {
                read_bps: field(row, "rbps"),
                write_bps: field(row, "wbps"),
                read_iops: field(row, "riops"),
                write_iops: field(row, "wiops"),
            };
            let device = row.split_whitespace().next().and_then(Device::parse);
            if let Some(device) = device.filter(|_| limits != IoLimits::default()) {
                io.insert(device, limits);
            }
        }
        Ok(ReadBack {
            version: Version::V2,
            quota_us: quota.parse().ok(),
            period_us: period.parse().unwrap_or(super::PERIOD_US),
            weight: self.folder.number("cpu.weight")?,
            cpuset: set(self.folder.get("cpuset.cpus")?),
            allowed: set(self.folder.parent().get("cpuset.cpus.effective")?),
            memory: self.limit("memory.max")?.flatten(),
            swap: self.limit("memory.swap.max")?,
            pids: self.limit("pids.max")?.flatten(),
            io,
        })
    }

    fn write(&self, write: &Write) -> Result<(), Error> {
        match write {
            Write::Reclaim(to) => self.reclaim(*to),
            Write::Memory(limit) => {
                let written = self.set_limit("memory.max", *limit);
                // Lifted whatever became of the hard limit; nothing to lift where nothing was pressed.
                if self.limit("memory.high")?.flatten().is_some() {
                    self.set_limit("memory.high", None)?;
                }
                written
            }
            Write::Swap(limit) => self.set_limit("memory.swap.max", *limit),
            Write::Cpu { quota_us, period_us } => {
                let quota = quota_us.map_or("max".to_owned(), |quota| quota.to_string());
                self.folder.set("cpu.max", &format!("{quota} {period_us}"))
            }
            Write::CpuWeight(weight) => self.folder.set("cpu.weight", &weight.to_string()),
            Write::CpuSet(set) => {
                // A lone newline clears: an empty write would reach the kernel as no write at all.
                let text = set.as_ref().map_or("\n".to_owned(), CpuSet::to_string);
                self.folder.set("cpuset.cpus", &text)
            }
            Write::Pids(limit) => self.set_limit("pids.max", *limit),
            Write::Io(device, limits) => self.set_io(*device, limits),
        }
    }

    fn usage(&self) -> Result<Usage, Error> {
        let text = |file| -> Result<String, Error> { Ok(self.folder.get(file)?.unwrap_or_default()) };
        let io = text("io.stat")?;
        let total = |key: &str| io.lines().filter_map(|row| field(row, key)).sum();
        let cache = line(&text("memory.stat")?, "inactive_file").unwrap_or(0);
        Ok(Usage {
            cpu_ns: line(&text("cpu.stat")?, "usage_usec").unwrap_or(0).saturating_mul(1000),
            memory_bytes: self.folder.number("memory.current")?.unwrap_or(0).saturating_sub(cache),
            pids: self.folder.number("pids.current")?.unwrap_or(0),
            read_bytes: total("rbytes"),
            write_bytes: total("wbytes"),
        })
    }

    fn load(&self, threads: bool) -> Result<Load, Error> {
        let stat = self.folder.get("cpu.stat")?.unwrap_or_default();
        Ok(Load {
            cpu_ns: line(&stat, "usage_usec").unwrap_or(0).saturating_mul(1000),
            periods: line(&stat, "nr_periods").unwrap_or(0),
            throttled: line(&stat, "nr_throttled").unwrap_or(0),
            threads: if threads { self.folder.threads("cgroup.threads") } else { BTreeMap::new() },
        })
    }

    fn hold(&self, stands: &ReadBack) -> Result<(), Error> {
        systemd::scope(&self.folder.0).map_or(Ok(()), |scope| systemd::hold(scope, stands))
    }
}
