//! What outlived its use: done tombstones, expired holds on addresses, volumes whose bytes are gone.

use super::Leader;
use crate::state::{HOLD_DOWN, Snapshot};
use crate::store::keys::Key;
use crate::store::{Revision, Txn};
use enoki_api::instance::{AddressClaim, Doomed, Tombstone};
use enoki_api::object::Uid;
use jiff::{SignedDuration, Timestamp};

/// Tombstones stay this long after they were acted on: a host that was away must not bring back what was deleted.
const KEEP_TOMBSTONES: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Ended operations are kept this long,
const KEEP_OPERATIONS_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);
/// and so many of them.
const KEEP_OPERATIONS: usize = 100;
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
        if tombstone.what == Doomed::Instance {
            txn = held_anew(&snapshot, &tombstone.uid, Timestamp::now(), txn);
        }
        if !write(leader, txn, tombstone.uid.as_str()).await {
            return;
        }
        context.live.forget(&tombstone.uid);
    }
}

/// PURE: an instance that was deleted by force had its addresses until its host removed it: hold-down begins now.
fn held_anew(snapshot: &Snapshot, uid: &Uid, now: Timestamp, mut txn: Txn) -> Txn {
    for ((project, network, address), entry) in &snapshot.addresses {
        let held = AddressClaim { held_until: Some(now + HOLD_DOWN), ..entry.0.clone() };
        if entry.0.uid == *uid
            && let (Ok(key), Ok(value)) =
                (Key::address(project, network, *address), serde_json::to_vec(&held))
        {
            txn = txn.when_unchanged(key.clone(), entry.1).put(key, value);
        }
    }
    txn
}

/// PURE: whether a tombstone has done its work: long ago, or never, on a host that is no more.
fn outlived(snapshot: &Snapshot, tombstone: &Tombstone, now: Timestamp) -> bool {
    let long_ago = |at: Timestamp| now.duration_since(at) > KEEP_TOMBSTONES;
    match (tombstone.buried_at, &tombstone.host) {
        (Some(at), _) => long_ago(at),
        (None, Some(host)) => snapshot.hosts.get("", host).is_none() && long_ago(tombstone.created_at),
        (None, None) => false,
    }
}

/// PURE: the keys of operations that ended long ago, or before so many others; with their revisions.
fn forgotten(snapshot: &Snapshot, now: Timestamp) -> Vec<(Key, Revision)> {
    let all = snapshot.operations.of(None).map(|row| &row.object);
    let ended = all.filter_map(|operation| {
        let stored = snapshot.operation_status.get(&operation.name)?;
        Some((stored.status.ended_at.filter(|_| stored.status.ended())?, operation, stored.revision))
    });
    let mut ended: Vec<_> = ended.collect();
    ended.sort_by_key(|(at, operation, _)| (std::cmp::Reverse(*at), &operation.name));
    let gone = ended.into_iter().enumerate().filter(|(newer, (at, ..))| {
        *newer >= KEEP_OPERATIONS || now.duration_since(*at) > KEEP_OPERATIONS_FOR
    });
    let keys = gone.filter_map(|(_, (_, operation, status))| {
        let spec = Key::spec("operations", None, &operation.name).ok()?;
        let status = (Key::status("operations", None, &operation.name).ok()?, status);
        Some([(spec, operation.revision), status])
    });
    keys.flatten().collect()
}

/// Removes what has expired.
pub(super) async fn sweep(leader: &Leader) {
    let snapshot = leader.context.state.snapshot();
    let now = Timestamp::now();
    let tombstones = snapshot
        .tombstones
        .values()
        .filter(|entry| outlived(&snapshot, &entry.0, now))
        .filter_map(|entry| Some((Key::tombstone(entry.0.uid.as_str()).ok()?, entry.1)));
    let addresses = snapshot.addresses.iter().filter(|(_, entry)| !snapshot.holds(&entry.0, now)).filter_map(
        |((project, network, address), entry)| {
            Some((Key::address(project, network, *address).ok()?, entry.1))
        },
    );
    let operations = forgotten(&snapshot, now).into_iter();
    // One transaction: placements wait for it, and what changed under it is left to the next sweep.
    let mut txn = Txn::new();
    for (key, revision) in tombstones.chain(addresses).chain(operations).take(SWEEP) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Op;
    use enoki_api::host::{HostSpec, HostStatus};
    use enoki_api::object::Object;
    use std::net::IpAddr;
    use std::sync::Arc;

    const LATER: Timestamp = Timestamp::constant(2_000_000_000, 0);

    /// An address whose hold-down is over, of an instance whose tombstone on h1 is open.
    fn forced() -> (Snapshot, Tombstone) {
        let mut snapshot = Snapshot::default();
        let host = Object::new(None, "h1", Default::default(), HostSpec::default(), Timestamp::UNIX_EPOCH);
        snapshot.seed_host(host, HostStatus::default());
        let tombstone = Tombstone {
            uid: Uid::random(),
            what: Doomed::Instance,
            name: "default/web1".into(),
            host: Some("h1".into()),
            created_at: Timestamp::UNIX_EPOCH,
            buried_at: None,
        };
        snapshot.seed_tombstone(tombstone.clone());
        let claim = AddressClaim {
            instance: "default/web1".into(),
            uid: tombstone.uid.clone(),
            mac: enoki_api::mac::Mac::derive(&tombstone.uid, "eth0"),
            since: Timestamp::UNIX_EPOCH,
            held_until: Some(Timestamp::UNIX_EPOCH),
        };
        let at = ("default".to_owned(), "blue".to_owned(), IpAddr::from([198, 18, 100, 2]));
        snapshot.addresses.insert(at, Arc::new((claim, 7)));
        (snapshot, tombstone)
    }

    #[test]
    fn an_address_is_held_until_a_host_that_may_come_back_has_removed_its_instance() {
        let (mut snapshot, tombstone) = forced();
        let holds = |snapshot: &Snapshot| {
            let entry = snapshot.addresses.values().next().unwrap();
            snapshot.holds(&entry.0, LATER)
        };
        assert!(holds(&snapshot), "its container may still run");
        let mut gone = snapshot.clone();
        gone.hosts = Default::default();
        assert!(!holds(&gone), "the host was deleted: it does not come back");
        let txn = held_anew(&snapshot, &tombstone.uid, LATER, Txn::new());
        let [Op::Put { value, .. }] = &txn.ops[..] else { panic!("{txn:?}") };
        let claim: AddressClaim = serde_json::from_slice(value).unwrap();
        assert_eq!(claim.held_until, Some(LATER + HOLD_DOWN), "hold-down begins when it is gone");
        assert_eq!(txn.compares.len(), 1, "whoever took the address by name keeps it");
        snapshot.seed_tombstone(Tombstone { buried_at: Some(LATER), ..tombstone });
        snapshot.open_tombstones = Default::default();
        assert!(!holds(&snapshot));
    }

    #[test]
    fn ended_operations_are_kept_a_while_and_bounded() {
        let mut snapshot = Snapshot::default();
        for number in 0..KEEP_OPERATIONS + 3 {
            let ended_at = LATER + SignedDuration::from_secs(number as i64);
            snapshot.seed_operation(&format!("o{number:03}"), Some(ended_at));
        }
        snapshot.seed_operation("open", None);
        let names = |now: Timestamp| -> Vec<String> {
            let keys = forgotten(&snapshot, now).into_iter().map(|(key, _)| key.to_string());
            keys.filter_map(|key| Some(key.strip_prefix("/enoki/v1/operations/")?.to_owned())).collect()
        };
        assert_eq!(names(LATER), ["o002", "o001", "o000"], "the oldest beyond the bound");
        assert_eq!(forgotten(&snapshot, LATER).len(), 6, "with their status");
        let week = LATER + KEEP_OPERATIONS_FOR + SignedDuration::from_secs(50);
        assert_eq!(names(week).len(), 50, "those that ended longer ago than that");
        let years = LATER + SignedDuration::from_hours(100_000);
        assert_eq!(names(years).len(), KEEP_OPERATIONS + 3, "never one that has not ended");
    }

    #[test]
    fn an_open_tombstone_waits_for_its_host_as_long_as_there_is_one() {
        let (snapshot, tombstone) = forced();
        assert!(!outlived(&snapshot, &tombstone, LATER));
        let mut gone = snapshot.clone();
        gone.hosts = Default::default();
        assert!(outlived(&gone, &tombstone, LATER));
        assert!(!outlived(&gone, &Tombstone { created_at: LATER, ..tombstone.clone() }, LATER));
        let done = Tombstone { buried_at: Some(LATER), ..tombstone };
        assert!(!outlived(&snapshot, &done, LATER));
        assert!(outlived(&snapshot, &done, LATER + KEEP_TOMBSTONES + SignedDuration::from_secs(1)));
    }
}
