//! What outlived its use: done tombstones, expired holds on addresses, volumes whose bytes are gone.

use super::Leader;
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::instance::{Doomed, Tombstone};
use jiff::{SignedDuration, Timestamp};

/// Tombstones stay this long after they were acted on: a host that was away must not bring back what was deleted.
const KEEP_TOMBSTONES: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Keys removed in one sweep, so that a sweep never holds up placements; with the fence they fit one transaction.
const SWEEP: usize = 100;

/// Notes what hosts have confirmed. Instances are finished by their own controller.
pub(super) async fn buried(leader: &Leader) {
    let context = &leader.context;
    let snapshot = context.state.snapshot();
    for entry in snapshot.open_tombstones() {
        let (tombstone, revision) = &**entry;
        let finishes_elsewhere =
            tombstone.what == Doomed::Instance && snapshot.by_uid.contains_key(&tombstone.uid);
        if finishes_elsewhere || !context.live.is_buried(&tombstone.uid) {
            continue;
        }
        let done = Tombstone { buried_at: Some(Timestamp::now()), ..tombstone.clone() };
        let (Ok(key), Ok(value)) = (Key::tombstone(tombstone.uid.as_str()), serde_json::to_vec(&done)) else {
            continue;
        };
        let mut txn = Txn::new().when_unchanged(key.clone(), *revision).put(key, value);
        if tombstone.what == Doomed::Volume
            && let Some((project, name)) = tombstone.name.split_once('/')
            && snapshot.volumes.get(project, name).is_some_and(|row| row.object.uid == tombstone.uid)
            && let (Ok(spec), Ok(status)) =
                (Key::spec("volumes", Some(project), name), Key::status("volumes", Some(project), name))
        {
            txn = txn.delete(spec).delete(status);
        }
        if !write(leader, txn, tombstone.uid.as_str()).await {
            return;
        }
        context.live.forget(&tombstone.uid);
    }
}

/// Removes what has expired.
pub(super) async fn sweep(leader: &Leader) {
    let snapshot = leader.context.state.snapshot();
    let now = Timestamp::now();
    let tombstones = snapshot
        .tombstones
        .values()
        .filter(|entry| entry.0.buried_at.is_some_and(|at| now.duration_since(at) > KEEP_TOMBSTONES))
        .filter_map(|entry| Some((Key::tombstone(entry.0.uid.as_str()).ok()?, entry.1)));
    let addresses = snapshot
        .addresses
        .iter()
        .filter(|(_, entry)| entry.0.held_until.is_some_and(|until| until <= now))
        .filter_map(|((project, network, address), entry)| {
            Some((Key::address(project, network, *address).ok()?, entry.1))
        });
    // One transaction: placements wait for it, and what changed under it is left to the next sweep.
    let mut txn = Txn::new();
    for (key, revision) in tombstones.chain(addresses).take(SWEEP) {
        txn = txn.when_unchanged(key.clone(), revision).delete(key);
    }
    if txn.ops.is_empty() || write(leader, txn, "what expired").await {
        buried(leader).await;
    }
}

/// False: the store is away; the next sweep tries again.
async fn write(leader: &Leader, txn: Txn, what: &str) -> bool {
    match leader.commit(txn).await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(what, %error, "a sweep was interrupted");
            false
        }
    }
}
