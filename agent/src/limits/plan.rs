//! What to write, in which order: pure.
//!
//! Memory comes first, since only that can be refused for what is in use: then nothing else was touched yet.
//! Between memory and swap the order is the one in which the kernel accepts every step (on v1 memory never
//! exceeds memory and swap together) and reclaim has the most room.

use super::device::Device;
use super::{IoLimits, PERIOD_US, ReadBack, Version, weight};
use enoki_api::instance::{CpuSet, Resources};
use std::collections::{BTreeMap, BTreeSet};

/// Memory limits are counted in whole pages, rounded down.
const PAGE: u64 = 4096;

/// One step. None: no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// v2: press the memory down to this many bytes before the hard limit follows, or give up.
    Reclaim(u64),
    Memory(Option<u64>),
    /// On v1 memory and swap together, on v2 swap alone.
    Swap(Option<u64>),
    Cpu {
        quota_us: Option<u64>,
        period_us: u64,
    },
    /// In the kernel's own terms.
    CpuWeight(u64),
    /// None: as the parent.
    CpuSet(Option<CpuSet>),
    Pids(Option<u64>),
    Io(Device, IoLimits),
}

/// What should stand in the control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    quota_us: Option<u64>,
    period_us: u64,
    weight: Option<u64>,
    cpuset: Option<CpuSet>,
    memory: Option<u64>,
    swap: Option<u64>,
    pids: Option<u64>,
    io: BTreeMap<Device, IoLimits>,
}

impl Target {
    /// What is granted, in the kernel's terms.
    pub fn asked(granted: &Resources, devices: &[Device], current: &ReadBack) -> Self {
        let memory = granted.memory.map(|bytes| bytes.0);
        let swap = memory.map(|memory| match current.version {
            Version::V1 => memory.saturating_add(granted.swap.0),
            Version::V2 => granted.swap.0,
        });
        let limits = IoLimits {
            read_bps: granted.disk.read_bps.map(|bytes| bytes.0),
            write_bps: granted.disk.write_bps.map(|bytes| bytes.0),
            read_iops: granted.disk.read_iops,
            write_iops: granted.disk.write_iops,
        };
        let limited = limits != IoLimits::default();
        Target {
            quota_us: granted.cpus.map(|cpus| cpus.0 * PERIOD_US / 1000),
            period_us: PERIOD_US,
            weight: Some(weight(granted.cpu_weight, current.version)),
            cpuset: granted.cpuset.clone(),
            memory,
            swap,
            pids: granted.pids,
            io: devices.iter().filter(|_| limited).map(|device| (*device, limits)).collect(),
        }
    }

    /// What was read: to put it back.
    pub fn of(seen: &ReadBack) -> Self {
        Target {
            quota_us: seen.quota_us,
            period_us: seen.period_us,
            weight: seen.weight,
            cpuset: seen.cpuset.clone(),
            memory: seen.memory,
            swap: seen.swap.flatten(),
            pids: seen.pids,
            io: seen.io.clone(),
        }
    }
}

/// The writes that lead from what stands to what should. Empty: it stands.
pub fn plan(target: &Target, now: &ReadBack) -> Vec<Write> {
    let mut writes = memory(target, now);
    let same_quota =
        target.quota_us == now.quota_us && (target.quota_us.is_none() || target.period_us == now.period_us);
    if !same_quota {
        writes.push(Write::Cpu { quota_us: target.quota_us, period_us: target.period_us });
    }
    // A kernel without weights has nothing to weigh.
    if let (Some(wanted), Some(stands)) = (target.weight, now.weight)
        && wanted != stands
    {
        writes.push(Write::CpuWeight(wanted));
    }
    // v1 has a set in every group, so the parent's set stands for none.
    let effective = |set: &Option<CpuSet>| set.clone().or_else(|| now.allowed.clone());
    if effective(&target.cpuset) != effective(&now.cpuset) {
        writes.push(Write::CpuSet(target.cpuset.clone()));
    }
    if target.pids != now.pids {
        writes.push(Write::Pids(target.pids));
    }
    // A device that is limited and not asked for any more is freed: the limits are one set.
    let devices: BTreeSet<Device> = target.io.keys().chain(now.io.keys()).copied().collect();
    for device in devices {
        let wanted = target.io.get(&device).copied().unwrap_or_default();
        if wanted != now.io.get(&device).copied().unwrap_or_default() {
            writes.push(Write::Io(device, wanted));
        }
    }
    writes
}

fn memory(target: &Target, now: &ReadBack) -> Vec<Write> {
    let pages = |limit: Option<u64>| limit.map(|bytes| bytes / PAGE * PAGE);
    let rank = |limit: Option<u64>| pages(limit).unwrap_or(u64::MAX);
    let mut memory = Vec::new();
    if pages(target.memory) != pages(now.memory) {
        if let (Version::V2, Some(to)) = (now.version, target.memory)
            && rank(target.memory) < rank(now.memory)
        {
            memory.push(Write::Reclaim(to));
        }
        memory.push(Write::Memory(target.memory));
    }
    let Some(swap_now) = now.swap else {
        return memory;
    };
    if pages(target.swap) == pages(swap_now) {
        return memory;
    }
    let swap = Write::Swap(target.swap);
    if rank(target.swap) > rank(swap_now) {
        memory.insert(0, swap);
    } else {
        memory.push(swap);
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::quantity::{Bytes, MilliCpu};
    use proptest::prelude::*;

    fn seen(version: Version) -> ReadBack {
        ReadBack {
            version,
            quota_us: None,
            period_us: PERIOD_US,
            weight: Some(weight(None, version)),
            cpuset: None,
            allowed: "0-3".parse().ok(),
            memory: None,
            swap: Some(None),
            pids: None,
            io: BTreeMap::new(),
        }
    }

    const DISK: Device = Device { major: 254, minor: 0 };

    fn asked(granted: &Resources, now: &ReadBack) -> Vec<Write> {
        plan(&Target::asked(granted, &[DISK], now), now)
    }

    #[test]
    fn nothing_asked_nothing_written() {
        for version in [Version::V1, Version::V2] {
            assert_eq!(asked(&Resources::default(), &seen(version)), []);
        }
    }

    #[test]
    fn each_limit_alone() {
        let now = seen(Version::V1);
        let one = |change: fn(&mut Resources)| {
            let mut granted = Resources::default();
            change(&mut granted);
            asked(&granted, &now)
        };
        let cpu = Write::Cpu { quota_us: Some(50_000), period_us: 100_000 };
        assert_eq!(one(|r| r.cpus = Some(MilliCpu(500))), [cpu]);
        assert_eq!(one(|r| r.pids = Some(9)), [Write::Pids(Some(9))]);
        assert_eq!(one(|r| r.cpuset = "1".parse().ok()), [Write::CpuSet("1".parse().ok())]);
        // The whole of what the parent has is there already.
        assert_eq!(one(|r| r.cpuset = "0-3".parse().ok()), []);
        let io = IoLimits { write_bps: Some(1 << 20), ..IoLimits::default() };
        assert_eq!(one(|r| r.disk.write_bps = Some(Bytes(1 << 20))), [Write::Io(DISK, io)]);
    }

    #[test]
    fn a_low_priority_weighs_a_sixteenth_and_gets_its_weight_back() {
        for (version, low, default) in [(Version::V1, 64, 1024), (Version::V2, 6, 100)] {
            let mut spec = enoki_api::instance::InstanceSpec::new("a");
            let mut now = seen(version);
            assert_eq!(now.weight, Some(default));
            for (priority, expected) in
                [(0, None), (7, None), (-1, Some(low)), (-100, None), (0, Some(default))]
            {
                spec.priority = priority;
                let writes = asked(&spec.resources(), &now);
                assert_eq!(
                    writes,
                    expected.map(Write::CpuWeight).into_iter().collect::<Vec<_>>(),
                    "{priority}"
                );
                now.weight = expected.or(now.weight);
            }
            now.weight = None;
            spec.priority = -1;
            assert_eq!(asked(&spec.resources(), &now), [], "a kernel without weights");
        }
    }

    #[test]
    fn memory_moves_in_the_safe_order() {
        let granted = |memory: u64, swap: u64| Resources {
            memory: Some(Bytes(memory << 20)),
            swap: Bytes(swap << 20),
            ..Resources::default()
        };
        let mut now = seen(Version::V1);
        // From no limit: memory has to come under before the total can.
        assert_eq!(
            asked(&granted(64, 0), &now),
            [Write::Memory(Some(64 << 20)), Write::Swap(Some(64 << 20))]
        );
        (now.memory, now.swap) = (Some(64 << 20), Some(Some(64 << 20)));
        assert_eq!(
            asked(&granted(128, 0), &now),
            [Write::Swap(Some(128 << 20)), Write::Memory(Some(128 << 20))]
        );
        assert_eq!(
            asked(&granted(32, 0), &now),
            [Write::Memory(Some(32 << 20)), Write::Swap(Some(32 << 20))]
        );
        assert_eq!(asked(&Resources::default(), &now), [Write::Swap(None), Write::Memory(None)]);
        now.swap = None;
        assert_eq!(asked(&granted(128, 0), &now), [Write::Memory(Some(128 << 20))]);

        let mut now = seen(Version::V2);
        (now.memory, now.swap) = (Some(64 << 20), Some(Some(0)));
        assert_eq!(asked(&granted(32, 0), &now), [Write::Reclaim(32 << 20), Write::Memory(Some(32 << 20))]);
        assert_eq!(
            asked(&granted(128, 16), &now),
            [Write::Swap(Some(16 << 20)), Write::Memory(Some(128 << 20))]
        );
    }

    #[test]
    fn what_is_not_asked_any_more_is_freed() {
        let mut now = seen(Version::V1);
        let gone = Device { major: 7, minor: 3 };
        now.io.insert(gone, IoLimits { read_iops: Some(5), ..IoLimits::default() });
        assert_eq!(asked(&Resources::default(), &now), [Write::Io(gone, IoLimits::default())]);
    }

    #[test]
    fn a_page_more_or_less_is_the_same() {
        let mut now = seen(Version::V1);
        (now.memory, now.swap) = (Some(99_999_744), Some(Some(99_999_744)));
        let granted = Resources { memory: Some(Bytes(100_000_000)), ..Resources::default() };
        assert_eq!(asked(&granted, &now), []);
    }

    /// The kernel's own rules for v1: memory never above the total.
    fn play(now: &mut ReadBack, write: &Write) -> bool {
        let top = |limit: Option<u64>| limit.map_or(u64::MAX, |bytes| bytes / PAGE * PAGE);
        match write {
            Write::Memory(limit) => {
                now.memory = limit.map(|bytes| bytes / PAGE * PAGE);
            }
            Write::Swap(limit) => now.swap = Some(limit.map(|bytes| bytes / PAGE * PAGE)),
            _ => {}
        }
        now.version == Version::V2 || top(now.memory) <= top(now.swap.unwrap_or(None))
    }

    proptest! {
        /// From anywhere to anywhere: every step is legal, and at the end nothing is left to do.
        #[test]
        fn every_step_is_legal(
            from in proptest::option::of((1u64..1 << 20, 0u64..1 << 20)),
            to in proptest::option::of((1u64..1 << 20, 0u64..1 << 20)),
            second in any::<bool>(),
        ) {
            let version = if second { Version::V2 } else { Version::V1 };
            let granted = |pair: Option<(u64, u64)>| Resources {
                memory: pair.map(|(memory, _)| Bytes(memory << 10)),
                swap: Bytes(pair.map_or(0, |(_, swap)| swap << 10)),
                ..Resources::default()
            };
            let mut now = seen(version);
            for goal in [from, to] {
                for write in asked(&granted(goal), &now) {
                    prop_assert!(play(&mut now, &write), "{:?}", write);
                }
                prop_assert_eq!(asked(&granted(goal), &now), vec![]);
            }
        }
    }
}
