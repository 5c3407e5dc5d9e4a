//! PURE: an instance and a snapshot -> a host, or the reasons why not.
//!
//! Three steps, each a list of small functions: [`filter`] says for every host why it does not fit, [`score`] orders
//! those that do, [`grant`] is what the instance gets there. There is no clock, no randomness and no I/O: ties are
//! broken by the host's name, so the same input gives the same answer on every server.
//!
//! Every refusal is told: [`explain`] is what `describe` and `?dry_run=true` show.

mod filter;
mod score;

pub use filter::{Reason, Verdict};

use crate::state::{At, Snapshot};
use enoki_api::instance::{InstanceSpec, Resources};
use enoki_api::object::Labels;

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
    snapshot.hosts.of(None).map(|host| filter::check(snapshot, &host.object, request, policy)).collect()
}

/// The host to place on. Err: for every host, why not.
pub fn place(snapshot: &Snapshot, request: Request<'_>, policy: &Policy) -> Result<String, Vec<Verdict>> {
    let verdicts = explain(snapshot, request, policy);
    let fitting = verdicts.iter().filter(|verdict| verdict.fits);
    match fitting.min_by_key(|verdict| score::of(snapshot, &verdict.host, request)) {
        Some(best) => Ok(best.host.clone()),
        None => Err(verdicts),
    }
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
