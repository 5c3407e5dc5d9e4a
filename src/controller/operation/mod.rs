//! Operations: verbs that outlive their request, carried on by whoever leads from what stands in the store.
//!
//! ```text
//! running --> succeeded
//!    |------> blocked      something is in the way, and the journal names it
//!    |------> failed       it cannot be done any more
//!    '------> cancelled    nothing more is begun; what was done stays done
//! ```
//!
//! Each step is one transaction with its line in the journal, and compares the operation's spec: a leader that is killed
//! between any two leaves nothing half done, and after an acknowledged cancel nothing is begun.

mod drain;

use super::Leader;
use crate::state::{At, Row, Snapshot, Written};
use crate::store::keys::Key;
use crate::store::{Error, Txn};
use drain::{Decision, Here, HostSeen, Seen, Stands};
use enoki_api::host::HostPhase;
use enoki_api::instance::{InstanceSpec, RunState};
use enoki_api::operation::{OperationPhase, OperationSpec, OperationStatus, OperationVerb};
use jiff::Timestamp;

/// Carries every operation one step on that can be.
pub(super) async fn tend(leader: &Leader) {
    let snapshot = leader.context.state.snapshot();
    for row in snapshot.open_operations() {
        let stored = snapshot.operation_status.get(&row.object.name).map(|stored| &**stored);
        let decision = match row.object.spec.verb {
            OperationVerb::Drain => drain::decide(&seen(&snapshot, row, stored)),
            // Of a newer version: its leader's to carry on.
            OperationVerb::Unknown => continue,
        };
        if stored.is_some_and(|stored| stored.status == decision.status) {
            continue;
        }
        let txn = match transaction(&snapshot, row, stored, &decision) {
            Ok(txn) => txn,
            Err(error) => {
                tracing::error!(operation = row.object.name, %error, "an operation cannot be written down");
                continue;
            }
        };
        match leader.commit(txn).await {
            Ok(true) => announce(leader, &snapshot, row, &decision),
            // The world moved on; its echo wakes this again.
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(operation = row.object.name, %error, "a step was not confirmed; it is decided again");
                return;
            }
        }
    }
}

fn seen<'a>(
    snapshot: &Snapshot,
    row: &'a Row<OperationSpec>,
    stored: Option<&'a Written<OperationStatus>>,
) -> Seen<'a> {
    let spec = &row.object.spec;
    let host = snapshot.hosts.get("", &spec.host).map(|host| HostSeen {
        cordoned: host.object.spec.cordoned,
        answers: match snapshot.host_status.get(&spec.host).map(|status| status.phase) {
            Some(HostPhase::Ready | HostPhase::Degraded) => true,
            Some(HostPhase::Unknown | HostPhase::Lost) | None => false,
        },
    });
    let here = snapshot.by_host.get(&spec.host).into_iter().flatten();
    let here = here.filter_map(|at| {
        let instance = snapshot.instance(at)?;
        Some(Here { name: name(at), stands: Stands::of(&instance), at: at.clone() })
    });
    Seen {
        now: Timestamp::now(),
        spec,
        status: stored.map(|stored| &stored.status),
        host,
        here: here.collect(),
    }
}

fn name(at: &At) -> String {
    format!("{}/{}", at.0, at.1)
}

/// What was decided and its journal, as one write.
fn transaction(
    snapshot: &Snapshot,
    row: &Row<OperationSpec>,
    stored: Option<&Written<OperationStatus>>,
    decision: &Decision,
) -> Result<Txn, Error> {
    let operation = &row.object;
    let status = Key::status("operations", None, &operation.name)?;
    let txn = Txn::new().when_unchanged(Key::spec("operations", None, &operation.name)?, operation.revision);
    let mut txn = match stored {
        Some(stored) => txn.when_unchanged(status.clone(), stored.revision),
        None => txn.when_absent(status.clone()),
    };
    for at in &decision.stop {
        let Some(instance) = snapshot.instances.at(at) else { continue };
        let spec = Key::spec("instances", Some(&at.0), &at.1)?;
        txn = txn.when_unchanged(spec.clone(), instance.object.revision).put(spec, stopped(instance));
    }
    let value = serde_json::to_vec(&decision.status).map_err(|error| Error::Invalid(error.to_string()))?;
    Ok(txn.put(status, value))
}

/// The edit that a user's stop makes too.
fn stopped(row: &Row<InstanceSpec>) -> Vec<u8> {
    let mut stopped = row.object.clone();
    stopped.spec.state = RunState::Stopped;
    stopped.generation += 1;
    row.encode(&stopped)
}

fn announce(leader: &Leader, snapshot: &Snapshot, row: &Row<OperationSpec>, decision: &Decision) {
    let events = &leader.context.events;
    let operation = &row.object;
    for instance in decision.stop.iter().filter_map(|at| snapshot.instances.at(at)) {
        let message = format!("for the drain of host {} ({})", operation.spec.host, operation.name);
        events.note(&instance.place(), Some(&instance.object.uid), false, "stopping", message);
    }
    let status = &decision.status;
    if status.ended() {
        let warning = status.phase != OperationPhase::Succeeded;
        let message = status.message.clone().unwrap_or_default();
        events.note(&row.place(), Some(&operation.uid), warning, &status.phase.to_string(), message.clone());
        if let Some(host) = snapshot.hosts.get("", &operation.spec.host) {
            let reason = format!("{}_{}", operation.spec.verb, status.phase);
            events.note(&host.place(), Some(&host.object.uid), warning, &reason, message);
        }
    }
}
