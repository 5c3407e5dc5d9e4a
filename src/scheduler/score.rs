//! Which of the hosts that fit is best: the smallest score.

use super::Request;
use crate::state::Snapshot;
use enoki_api::instance::Strategy;

/// Compared from the top; the name breaks ties.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Share of memory granted, in thousandths: low is good for spreading, high for packing.
    memory: i64,
    /// Instances there: likewise.
    instances: i64,
    host: String,
}

pub fn of(snapshot: &Snapshot, host: &str, request: Request<'_>) -> Score {
    let granted = snapshot.granted.get(host).copied().unwrap_or_default();
    let capacity = snapshot.host_status.get(host).map(|status| status.capacity).unwrap_or_default();
    let memory = (u128::from(granted.memory.0) * 1000 / u128::from(capacity.memory.0.max(1))) as i64;
    let instances = granted.instances as i64;
    let sign = match request.spec.placement.strategy {
        Strategy::Spread | Strategy::Unknown => 1,
        Strategy::BinPack => -1,
    };
    Score { memory: sign * memory, instances: sign * instances, host: host.to_owned() }
}
