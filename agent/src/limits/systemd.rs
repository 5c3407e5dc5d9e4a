//! Telling systemd what stands in a control group that is one of its units.
//!
//! With Docker's systemd driver a container's group is a scope. systemd writes a unit's limits as it knows them again
//! whenever it reads its units anew (`systemctl daemon-reload`, so with most package upgrades): a limit that it was not
//! told of is put back to what the container was started with, and no swap becomes all swap. Throttles of disks are
//! not among what it writes.

use super::{Error, ReadBack, Version, weight};
use std::path::Path;
use std::process::{Command, Stdio};

/// Present exactly where systemd is PID 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// The scope whose control group this folder is. None: systemd has no part in it.
pub fn scope(folder: &Path) -> Option<&str> {
    folder.file_name()?.to_str().filter(|name| name.ends_with(".scope"))
}

/// Has systemd hold what `stands` in the scope, for as long as that exists.
///
/// # Errors
/// [`Error::Busy`] when systemd does not take it: to be tried again.
pub fn hold(scope: &str, stands: &ReadBack) -> Result<(), Error> {
    if !Path::new(BOOTED).is_dir() {
        return Ok(());
    }
    let refused = |why: &str| Error::Busy(format!("systemd does not take over the limits of {scope}: {why}"));
    let output = Command::new("systemctl")
        .args(["set-property", "--runtime", scope])
        .args(properties(stands))
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|why| refused(&why.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(refused(String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// As systemd.resource-control(5) has them.
fn properties(stands: &ReadBack) -> Vec<String> {
    let bound = |limit: Option<u64>| limit.map_or("infinity".to_owned(), |limit| limit.to_string());
    // In hundredths of a percent of one CPU, finer than which nothing is granted. Empty: no limit.
    let share = |quota: u64| quota.saturating_mul(10_000) / stands.period_us.max(1);
    let quota = stands.quota_us.map(share).map(|share| format!("{}.{:02}%", share / 100, share % 100));
    let mut properties = vec![
        format!("CPUQuota={}", quota.unwrap_or_default()),
        format!("CPUQuotaPeriodSec={}us", stands.period_us),
        format!("MemoryMax={}", bound(stands.memory)),
        format!("TasksMax={}", bound(stands.pids)),
    ];
    // Empty: as systemd has it for all, which is the kernel's default.
    let weight = stands.weight.filter(|stands| *stands != weight(None, Version::V2));
    properties.push(format!("CPUWeight={}", weight.map(|weight| weight.to_string()).unwrap_or_default()));
    // What the kernel does not have is not systemd's to write.
    if let Some(swap) = stands.swap {
        properties.push(format!("MemorySwapMax={}", bound(swap)));
    }
    if stands.allowed.is_some() {
        let set = stands.cpuset.as_ref().map(ToString::to_string).unwrap_or_default();
        properties.push(format!("AllowedCPUs={set}"));
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PERIOD_US;
    use std::collections::BTreeMap;

    #[test]
    fn only_a_scope_is_systemds() {
        let name = "docker-c0ffee.scope";
        assert_eq!(scope(&Path::new("/sys/fs/cgroup/system.slice").join(name)), Some(name));
        assert_eq!(scope(Path::new("/sys/fs/cgroup/docker/c0ffee")), None);
    }

    #[test]
    fn every_limit_is_told_and_so_is_its_absence() {
        let none = ReadBack {
            version: Version::V2,
            quota_us: None,
            period_us: PERIOD_US,
            weight: Some(100),
            cpuset: None,
            allowed: "0-3".parse().ok(),
            memory: None,
            swap: Some(None),
            pids: None,
            io: BTreeMap::new(),
        };
        assert_eq!(
            properties(&none).join(" "),
            "CPUQuota= CPUQuotaPeriodSec=100000us MemoryMax=infinity TasksMax=infinity CPUWeight= MemorySwapMax=infinity AllowedCPUs="
        );
        let all = ReadBack {
            quota_us: Some(100_100),
            weight: Some(6),
            cpuset: "0,2-3".parse().ok(),
            memory: Some(64 << 20),
            swap: Some(Some(0)),
            pids: Some(50),
            ..none.clone()
        };
        assert_eq!(
            properties(&all).join(" "),
            "CPUQuota=100.10% CPUQuotaPeriodSec=100000us MemoryMax=67108864 TasksMax=50 CPUWeight=6 MemorySwapMax=0 AllowedCPUs=0,2-3"
        );
        let old = ReadBack { swap: None, allowed: None, ..none };
        assert!(!properties(&old).iter().any(|p| p.contains("Swap") || p.contains("AllowedCPUs")));
    }
}
