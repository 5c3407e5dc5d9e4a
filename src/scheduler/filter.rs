//! Why a host does not fit. Each check stands alone and says all that is in the way, not just the first.

use super::{Policy, Request};
use crate::state::{At, Snapshot};
use enoki_api::host::{Host, HostPhase, HostStatus};
use enoki_api::instance::Assignment;
use enoki_api::object::has_label;
use enoki_api::quantity::{Bytes, MilliCpu};
use serde::Serialize;
use utoipa::ToSchema;

/// Whether an instance fits on a host.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Verdict {
    pub host: String,
    pub fits: bool,
    pub reasons: Vec<Reason>,
}

/// One thing in the way: a code for programs, a sentence for people.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Reason {
    pub code: String,
    pub message: String,
}

impl Reason {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Reason { code: code.to_owned(), message: message.into() }
    }
}

/// All checks of one host. `together` are placed with the request: their labels count, known to the snapshot or not.
pub fn check(
    snapshot: &Snapshot,
    host: &Host,
    request: Request<'_>,
    together: &[Request<'_>],
    policy: &Policy,
) -> Verdict {
    let mut reasons = readiness(snapshot, host);
    reasons.extend(labels(snapshot, host, request, together));
    reasons.extend(volumes(snapshot, host, request));
    reasons.extend(capacity(snapshot, host, request, policy));
    Verdict { host: host.name.clone(), fits: reasons.is_empty(), reasons }
}

fn readiness(snapshot: &Snapshot, host: &Host) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if host.spec.cordoned {
        reasons.push(Reason::new("cordoned", format!("{} is cordoned", host.name)));
    }
    let status = snapshot.host_status.get(&host.name);
    let phase = status.map_or(HostPhase::Unknown, |status| status.phase);
    if phase != HostPhase::Ready {
        let why = status.and_then(|status| status.message.clone());
        let phase =
            serde_json::to_value(phase).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        reasons.push(Reason::new("host_not_ready", format!("{} is {phase}{why}", host.name)));
    }
    reasons
}

fn labels(snapshot: &Snapshot, host: &Host, request: Request<'_>, together: &[Request<'_>]) -> Vec<Reason> {
    let mut reasons = Vec::new();
    for rule in &request.spec.placement.require {
        if !has_label(&host.labels, rule) {
            reasons.push(Reason::new("constraint", format!("{} has no label {rule}", host.name)));
        }
    }
    for rule in &request.spec.placement.avoid {
        if has_label(&host.labels, rule) {
            reasons.push(Reason::new(
                "constraint",
                format!("{} has the label {rule}, which is avoided", host.name),
            ));
        }
        if let Some(neighbour) = neighbour_with(snapshot, &host.name, request, together, rule) {
            let message = format!("{neighbour} on {} has the label {rule}, which is avoided", host.name);
            reasons.push(Reason::new("anti_affinity", message));
        }
    }
    reasons
}

/// An instance of the same project on `host` that carries the label.
fn neighbour_with(
    snapshot: &Snapshot,
    host: &str,
    request: Request<'_>,
    together: &[Request<'_>],
    rule: &str,
) -> Option<String> {
    let labels = |at: &At| match together.iter().find(|member| member.at == at) {
        Some(member) => Some(member.labels),
        None => snapshot.instances.at(at).map(|row| &row.object.labels),
    };
    let here = snapshot.by_host.get(host)?;
    here.iter()
        .filter(|at| at.0 == request.at.0 && *at != request.at)
        .find(|at| labels(at).is_some_and(|labels| has_label(labels, rule)))
        .map(|at| at.1.clone())
}

fn volumes(snapshot: &Snapshot, host: &Host, request: Request<'_>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    for mount in request.spec.mounts.values() {
        let elsewhere = snapshot.volume_host(&request.at.0, &mount.volume).filter(|h| **h != host.name);
        if let Some(elsewhere) = elsewhere {
            reasons
                .push(Reason::new("volume_elsewhere", format!("volume {} is on {elsewhere}", mount.volume)));
        }
    }
    reasons
}

/// What the request asks beyond what is free on the host. Its own present grant there counts as free.
pub fn capacity(snapshot: &Snapshot, host: &Host, request: Request<'_>, policy: &Policy) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let has = snapshot
        .host_status
        .get(&host.name)
        .map(|status: &std::sync::Arc<HostStatus>| status.capacity)
        .unwrap_or_default();
    let granted = snapshot.granted.get(&host.name).copied().unwrap_or_default();
    let own = snapshot.assignments.get(request.at).filter(|placed| placed.assignment.host == host.name);
    let own = |take: fn(&Assignment) -> u64| own.map_or(0, |placed| take(&placed.assignment));
    let spec = request.spec;

    let limit = MilliCpu((has.cpus.0 as f64 * policy.cpu_overcommit) as u64);
    let free =
        MilliCpu(limit.0.saturating_sub(
            granted.cpus.0 - own(|a| a.granted.cpus.unwrap_or_default().0).min(granted.cpus.0),
        ));
    let asked = spec.cpus.unwrap_or_default();
    if asked > free {
        reasons.push(Reason::new(
            "no_capacity",
            format!("{asked} CPUs asked, {free} of {limit} free on {}", host.name),
        ));
    }
    let free = Bytes(has.memory.0.saturating_sub(
        granted.memory.0 - own(|a| a.granted.memory.unwrap_or_default().0).min(granted.memory.0),
    ));
    let asked = spec.memory.unwrap_or_default();
    if asked > free {
        let message = format!(
            "{asked} of memory asked, {} of {} free on {}",
            human(free),
            human(has.memory),
            host.name
        );
        reasons.push(Reason::new("no_capacity", message));
    }
    let free =
        has.pids.saturating_sub(granted.pids - own(|a| a.granted.pids.unwrap_or_default()).min(granted.pids));
    let asked = spec.pids.unwrap_or_default();
    if asked > free {
        reasons.push(Reason::new(
            "no_capacity",
            format!("{asked} pids asked, {free} of {} free on {}", has.pids, host.name),
        ));
    }
    if let Some(cpuset) = &spec.cpuset {
        let last = has.cpus.0.div_ceil(1000);
        if let Some(cpu) = cpuset.cpus().into_iter().find(|cpu| u64::from(*cpu) >= last) {
            reasons.push(Reason::new(
                "no_capacity",
                format!("CPU {cpu} asked, {} has 0 to {}", host.name, last.saturating_sub(1)),
            ));
        }
    }
    reasons
}

/// Bytes for a sentence: to a whole Mi, as a host's memory is no round number.
fn human(bytes: Bytes) -> Bytes {
    Bytes(bytes.0 >> 20 << 20)
}
