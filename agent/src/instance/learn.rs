//! PURE: what follows for the [`Facts`] from a look at the container. Decides once about each end of a run.

use super::decide::Stand;
use super::facts::{Cause, Exit, Facts, Run};
use crate::runtime::State;
use enoki_api::instance::{RestartPolicy, RunState};
use enoki_api::object::Uid;
use enoki_api::protocol::Order;
use jiff::Timestamp;
use std::time::Duration;

/// The first wait of a crash loop. Kubernetes waits 10 s; a machine that is used by hand should be back sooner.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait of a crash loop (Kubernetes' own).
pub const LONGEST: Duration = Duration::from_secs(300);
/// A run of this length was no crash loop (Kubernetes' own).
pub const HEALTHY: Duration = Duration::from_secs(600);

/// `base` later by `wait`, at the end of time at the latest.
pub fn after(base: Timestamp, wait: Duration) -> Timestamp {
    base.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// The wait after so many ends in a row: 1 s, doubled each time, at most 5 min.
pub fn backoff(failures: u32) -> Duration {
    FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST)
}

/// The facts after this look.
pub fn learn(
    now: Timestamp,
    order: &Order,
    boot: &str,
    stand: &Stand<'_>,
    disk: Option<&Uid>,
    facts: &Facts,
) -> Facts {
    let spec = &order.instance.spec;
    let mut next = facts.clone();
    if let Some(disk) = disk.filter(|disk| !next.disks.contains(disk)) {
        next.disks.push(disk.clone());
    }
    // A restored store counts from an older value.
    next.restart_count = next.restart_count.min(spec.restart_count);
    match stand {
        Stand::Running { body, started_at, .. } => {
            let run =
                Run { container: body.container.id.clone(), started_at: *started_at, boot: boot.to_owned() };
            if !next.stopping.as_ref().is_some_and(|stopping| same(stopping, &run)) {
                next.stopping = None;
            }
            if spec.restart_count > next.restart_count || spec.state == RunState::Stopped {
                next.restart_count = spec.restart_count;
                next.stopping = Some(run.clone());
            }
            if !next.run.as_ref().is_some_and(|known| same(known, &run)) {
                next.run = Some(run);
            }
            next.exit = None;
        }
        Stand::Exited { body } => ended(now, order, boot, &body.container, &mut next),
        Stand::Unknown | Stand::Absent | Stand::Created { .. } | Stand::Broken { .. } => {}
    }
    let asked_again = spec.restart_count > next.restart_count;
    let idle = matches!(stand, Stand::Absent | Stand::Created { .. } | Stand::Exited { .. });
    if idle && (asked_again || spec.state == RunState::Stopped) {
        // The next start is one on purpose.
        next.restart_count = spec.restart_count;
        next.restarts = 0;
        next.failures = 0;
        if let Some(exit) = next.exit.as_mut().filter(|exit| exit.due.is_none_or(|due| due > now)) {
            exit.due = Some(now);
        }
    }
    next
}

fn same(a: &Run, b: &Run) -> bool {
    a.container == b.container && a.started_at == b.started_at
}

fn ended(
    now: Timestamp,
    order: &Order,
    boot: &str,
    container: &crate::runtime::Container,
    facts: &mut Facts,
) {
    let State::Exited { code, oom_killed, finished_at, error } = &container.state else { return };
    let decided = |exit: &Exit| exit.container == container.id && exit.finished_at == *finished_at;
    if facts.exit.as_ref().is_some_and(decided) {
        return;
    }
    let spec = &order.instance.spec;
    let run = facts.run.as_ref().filter(|run| run.container == container.id);
    let ours = facts.stopping.as_ref().is_some_and(|run| run.container == container.id);
    let cause = if ours || spec.state == RunState::Stopped {
        Cause::Asked
    } else if !error.is_empty() {
        Cause::Refused
    } else if run.is_some_and(|run| run.boot != boot) {
        Cause::Reboot
    } else {
        Cause::Itself
    };
    let long = run
        .and_then(|run| Duration::try_from(finished_at.duration_since(run.started_at)).ok())
        .is_some_and(|ran| ran >= HEALTHY);
    let due = match cause {
        Cause::Asked => {
            (facts.failures, facts.restarts) = (0, 0);
            Some(now)
        }
        Cause::Reboot => {
            facts.failures = 0;
            Some(now)
        }
        // It never ran, so no policy about how runs end applies. Repeated refusals wait as failed actions.
        Cause::Refused => Some(now),
        Cause::Itself if !restarts(spec.restart, *code) => None,
        Cause::Itself => {
            facts.failures = if long { 1 } else { facts.failures.saturating_add(1) };
            facts.restarts += 1;
            // Docker's clock is the host's; one that was set back must not make the wait longer.
            Some(after((*finished_at).min(now), backoff(facts.failures)))
        }
    };
    facts.stopping = None;
    facts.oom_killed = *oom_killed;
    facts.exit = Some(Exit {
        container: container.id.clone(),
        finished_at: *finished_at,
        cause,
        code: *code,
        oom_killed: *oom_killed,
        message: error.clone(),
        due,
    });
}

/// Whether the policy starts it again after this end. A policy of a newer version: leave it as it lies.
fn restarts(policy: RestartPolicy, code: i64) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Never | RestartPolicy::Unknown => false,
    }
}
