//! PURE: an instance (or several that go together) and a snapshot -> a host for each, or the reasons why not.
//!
//! Three steps, each a list of small functions: [`filter`] says for every host why it does not fit, [`score`] orders
//! those that do, [`grant`] is what the instance gets there. There is no clock, no randomness and no I/O: ties are
//! broken by the host's name, so the same input gives the same answer on every server.
//!
//! Every refusal is told: [`explain`] is what `describe` and `?dry_run=true` show.

mod filter;
mod score;

pub use filter::{Reason, Verdict};

use crate::state::{At, Placed, Snapshot};
use enoki_api::instance::{Assignment, InstanceSpec, Resources};
use enoki_api::object::{Labels, Uid};
use enoki_api::volume::VolumeStatus;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// How much more may be granted than a host has.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Granted CPUs for each CPU of the host. Memory and pids are never granted twice.
    pub cpu_overcommit: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { cpu_overcommit: 4.0 }
    }
}

/// What is to be placed.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub at: &'a At,
    pub labels: &'a Labels,
    pub spec: &'a InstanceSpec,
}

/// For every host, whether the instance fits there and every reason why not. In order of name.
pub fn explain(snapshot: &Snapshot, request: Request<'_>, policy: &Policy) -> Vec<Verdict> {
    explain_beside(snapshot, request, &[], policy)
}

fn explain_beside(
    snapshot: &Snapshot,
    request: Request<'_>,
    together: &[Request<'_>],
    policy: &Policy,
) -> Vec<Verdict> {
    let hosts = snapshot.hosts.of(None);
    hosts.map(|host| filter::check(snapshot, &host.object, request, together, policy)).collect()
}

/// Whether the instance fits on this host, and every reason why not. None: there is no such host.
pub fn verdict(snapshot: &Snapshot, host: &str, request: Request<'_>, policy: &Policy) -> Option<Verdict> {
    let host = snapshot.hosts.get("", host)?;
    Some(filter::check(snapshot, &host.object, request, &[], policy))
}

/// The host to place on. Err: for every host, why not.
pub fn place(snapshot: &Snapshot, request: Request<'_>, policy: &Policy) -> Result<String, Vec<Verdict>> {
    match gang(snapshot, &[request], policy) {
        Ok(hosts) => hosts.into_iter().next().ok_or_else(Vec::new),
        Err(refused) => Err(refused.verdicts),
    }
}

/// The member of a gang that found no host beside the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Its place among the requests.
    pub member: usize,
    /// For every host, why not.
    pub verdicts: Vec<Verdict>,
}

/// A host for each of these instances, in their order: for all or for none. What is hardest to place goes first, and
/// each counts for those after it. No search: where hosts are nearly full, it may refuse what another order would fit.
pub fn gang(snapshot: &Snapshot, requests: &[Request<'_>], policy: &Policy) -> Result<Vec<String>, Refused> {
    let mut world = Cow::Borrowed(snapshot);
    let mut hosts = vec![String::new(); requests.len()];
    let mut left = hardest_first(snapshot, requests, policy);
    while let Some(member) = left.pop_front() {
        let request = requests[member];
        let verdicts = explain_beside(&world, request, requests, policy);
        let fitting = verdicts.iter().filter(|verdict| verdict.fits);
        let Some(best) = fitting.min_by_key(|verdict| score::of(&world, &verdict.host, request)) else {
            return Err(Refused { member, verdicts });
        };
        hosts[member].clone_from(&best.host);
        if !left.is_empty() {
            reserve_on(world.to_mut(), request, &best.host);
        }
    }
    Ok(hosts)
}

/// The fewer hosts would take it, and the more it asks for, the earlier.
fn hardest_first(snapshot: &Snapshot, requests: &[Request<'_>], policy: &Policy) -> VecDeque<usize> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    if order.len() > 1 {
        order.sort_by_cached_key(|member| {
            let (verdicts, spec) = (explain(snapshot, requests[*member], policy), requests[*member].spec);
            let fitting = verdicts.iter().filter(|verdict| verdict.fits).count();
            (fitting, Reverse((spec.memory, spec.cpus, spec.pids)), *member)
        });
    }
    order.into()
}

/// Makes `world` what it is once the instance is bound: its grant is taken, and local volumes are where it is.
pub fn reserve(world: &mut Snapshot, request: Request<'_>, assignment: Assignment) {
    let project = &request.at.0;
    for mount in request.spec.mounts.values() {
        if world.is_local(project, &mount.volume) && world.volume_host(project, &mount.volume).is_none() {
            let status = VolumeStatus { host: Some(assignment.host.clone()), used_by: Vec::new() };
            world.volume_status.insert((project.clone(), mount.volume.clone()), Arc::new(status));
        }
    }
    world.unassign(request.at);
    world.assign(request.at.clone(), Placed { assignment, revision: 0 });
}

/// The same for one that is only thought of, on this host.
pub fn reserve_on(world: &mut Snapshot, request: Request<'_>, host: &str) {
    let assignment = Assignment {
        uid: Uid::from(uuid::Uuid::nil()),
        host: host.to_owned(),
        epoch: 0,
        generation: 0,
        granted: request.spec.resources(),
        nics: BTreeMap::new(),
    };
    reserve(world, request, assignment);
}

/// What the instance gets on `host`, where it already has a grant: all that it asks for, or the reasons why not.
pub fn regrant(
    snapshot: &Snapshot,
    host: &str,
    request: Request<'_>,
    policy: &Policy,
) -> Result<Resources, Vec<Reason>> {
    let Some(row) = snapshot.hosts.get("", host) else {
        return Err(vec![Reason::new("host_missing", format!("host {host} is not known"))]);
    };
    let reasons = filter::capacity(snapshot, &row.object, request, policy);
    if reasons.is_empty() { Ok(request.spec.resources()) } else { Err(reasons) }
}

/// One sentence for the user: the reasons of all hosts, the most frequent first.
pub fn summary(verdicts: &[Verdict]) -> (String, String) {
    if verdicts.is_empty() {
        return ("no_host".into(), "there is no host yet".into());
    }
    let mut counts: Vec<(&Reason, usize)> = Vec::new();
    for reason in verdicts.iter().flat_map(|verdict| &verdict.reasons) {
        match counts.iter_mut().find(|(seen, _)| seen.code == reason.code) {
            Some((_, count)) => *count += 1,
            None => counts.push((reason, 1)),
        }
    }
    counts.sort_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.code.cmp(&b.code)));
    let code = counts.first().map_or_else(|| "no_host".to_owned(), |(reason, _)| reason.code.clone());
    let total = verdicts.len();
    let parts = counts.iter().map(|(reason, count)| {
        let hosts = if total == 1 { "the host".to_owned() } else { format!("{count} of {total} hosts") };
        format!("{hosts}: {}", reason.message)
    });
    (code, parts.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests;
