//! The orders to destroy one thing each, and when they need no host's word.

use super::key;
use super::object::json_of;
use crate::state::Snapshot;
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::host::HostPhase;
use enoki_api::instance::{Doomed, Tombstone};
use enoki_api::object::{Object, Spec, Uid};
use jiff::Timestamp;

/// Adds the order to destroy one thing of `object`'s, on the host where it is. None: it was nowhere.
pub(super) fn bury<S: Spec>(
    object: &Object<S>,
    uid: Uid,
    what: Doomed,
    host: Option<&str>,
    txn: Txn,
) -> Result<Txn, Problem> {
    let tombstone = Tombstone {
        uid,
        what,
        name: format!("{}/{}", object.project.as_deref().unwrap_or_default(), object.name),
        host: host.map(str::to_owned),
        created_at: Timestamp::now(),
        buried_at: None,
    };
    Ok(txn.put(key(Key::tombstone(tombstone.uid.as_str()))?, json_of(&tombstone)?))
}

/// Refuses to go past a host that answers: what it confirms is better than what is supposed.
pub(super) fn refuse_reachable(snapshot: &Snapshot, host: &str) -> Result<(), Problem> {
    let phase = snapshot.host_status.get(host).map(|status| status.phase);
    match phase.filter(|_| snapshot.hosts.get("", host).is_some()) {
        None | Some(HostPhase::Unknown | HostPhase::Lost) => Ok(()),
        Some(HostPhase::Ready | HostPhase::Degraded) => Err(Problem::new(
            Code::HostReachable,
            format!("host {host} answers: nothing there is deleted by force"),
        )
        .holder(host)
        .hint("delete it without force; the host confirms it in a moment")),
    }
}
