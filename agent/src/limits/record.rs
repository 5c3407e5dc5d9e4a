//! The granted limits as the wrapper's record has them, so that they hold from a container's first instruction.

use super::device::Device;
use super::{PERIOD_US, Version};
use enoki_api::instance::Resources;
use enoki_helpers::{IoLimit, Resources as RecordResources};

/// `host`: what [`super::host::cgroups`] says.
pub fn resources_for_record(
    granted: &Resources,
    devices: &[Device],
    host: (Version, bool),
) -> RecordResources {
    let disk = granted.disk;
    let throttled = disk != enoki_api::instance::DiskLimits::default();
    let (_, swap_accounted) = host;
    RecordResources {
        cpu_quota_us: granted.cpus.map(|cpus| cpus.0 * PERIOD_US / 1000),
        cpu_period_us: granted.cpus.map(|_| PERIOD_US),
        // On v2 runc makes it a weight of its own reckoning, as low; the exact one is written once it runs.
        cpu_shares: granted.cpu_weight,
        cpuset: granted.cpuset.as_ref().map(ToString::to_string),
        memory_bytes: granted.memory.map(|bytes| bytes.0),
        memory_swap_bytes: granted
            .memory
            .filter(|_| swap_accounted)
            .map(|bytes| bytes.0.saturating_add(granted.swap.0)),
        pids: granted.pids,
        io: devices
            .iter()
            .filter(|_| throttled)
            .map(|device| IoLimit {
                major: device.major,
                minor: device.minor,
                read_bps: disk.read_bps.map(|bytes| bytes.0),
                write_bps: disk.write_bps.map(|bytes| bytes.0),
                read_iops: disk.read_iops,
                write_iops: disk.write_iops,
            })
            .collect(),
    }
}
