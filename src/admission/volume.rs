//! Volumes: a local one belongs to the host of the first instance that mounts it, and is destroyed there.

use super::tombstone::{bury, refuse_reachable};
use super::{Deletion, key, quota, refuse_used};
use crate::auth::quota::Asked;
use crate::state::{Row, Snapshot};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::Doomed;
use enoki_api::volume::{Volume, VolumeKind, VolumeSpec};

pub fn create(snapshot: &Snapshot, volume: &Volume, txn: Txn) -> Result<Txn, Problem> {
    quota::within(snapshot, volume.project.as_deref().unwrap_or_default(), Asked::Volume, txn)
}

/// Nothing of a volume changes but its labels.
pub fn update(old: &Row<VolumeSpec>, new: &Volume, txn: Txn) -> Result<Txn, Problem> {
    if old.object.spec != new.spec {
        return Err(Problem::new(Code::ImmutableField, "a volume stays where it is").field("spec"));
    }
    Ok(txn)
}

/// Refused while an instance mounts it. The tombstone of its data waits for the host.
pub fn delete(snapshot: &Snapshot, row: &Row<VolumeSpec>, txn: Txn) -> Result<(Txn, Deletion), Problem> {
    let volume = &row.object;
    refuse_used(row.place(), users(snapshot, volume))?;
    match host_of(snapshot, row) {
        Some(host) if volume.spec.kind != VolumeKind::Shared => {
            Ok((bury(volume, volume.uid.clone(), Doomed::Volume, Some(host), txn)?, Deletion::Marked))
        }
        // The folder of a shared volume is not ours; an unused local one has none.
        Some(_) | None => Ok((without_status(row, txn)?, Deletion::Done)),
    }
}

/// Its keys go at once; the tombstone of its data waits for the host. None: no host has it.
pub fn force(snapshot: &Snapshot, row: &Row<VolumeSpec>, txn: Txn) -> Result<Option<Txn>, Problem> {
    let Some(host) = host_of(snapshot, row) else { return Ok(None) };
    refuse_reachable(snapshot, host)?;
    let txn = match row.object.deleted_at {
        // Its tombstone is there already.
        Some(_) => without_status(row, txn)?,
        None => match delete(snapshot, row, txn)? {
            (txn, Deletion::Marked) => without_status(row, txn)?,
            (txn, Deletion::Done) => txn,
        },
    };
    Ok(Some(txn))
}

/// The instances that mount it.
pub fn users(snapshot: &Snapshot, volume: &Volume) -> Vec<String> {
    let instances = snapshot.instances.of(volume.project.as_deref());
    let with =
        instances.filter(|row| row.object.spec.mounts.values().any(|mount| mount.volume == volume.name));
    with.map(|row| row.place().to_string()).collect()
}

fn host_of<'a>(snapshot: &'a Snapshot, row: &Row<VolumeSpec>) -> Option<&'a str> {
    snapshot.volume_status.get(&row.at())?.host.as_deref()
}

fn without_status(row: &Row<VolumeSpec>, txn: Txn) -> Result<Txn, Problem> {
    let (project, name) = row.at();
    Ok(txn.delete(key(Key::status("volumes", Some(&project), &name))?))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{object, shop, tombstones, web, writes};
    use super::*;
    use enoki_api::host::{HostPhase, HostSpec, HostStatus};
    use enoki_api::object::Object;
    use enoki_api::volume::VolumeStatus;
    use jiff::Timestamp;
    use serde_json::json;
    use std::sync::Arc;

    /// The project's volume `data`, of this kind, on host h1 in this phase.
    fn on_h1(kind: &str, phase: HostPhase) -> Snapshot {
        let mut snapshot = shop(json!({}));
        snapshot.seed_volume(object("data", json!({"type": kind})));
        let status = VolumeStatus { host: Some("h1".into()), used_by: Vec::new() };
        snapshot.volume_status.insert(("shop".into(), "data".into()), Arc::new(status));
        let host = Object::new(None, "h1", Default::default(), HostSpec::default(), Timestamp::UNIX_EPOCH);
        snapshot.seed_host(host, HostStatus { phase, ..HostStatus::default() });
        snapshot
    }

    fn data(snapshot: &Snapshot) -> Arc<Row<VolumeSpec>> {
        snapshot.volumes.get("shop", "data").unwrap().clone()
    }

    #[test]
    fn only_what_a_host_has_needs_a_tombstone() {
        for (snapshot, ends, buried) in [
            (shop(json!({})), Deletion::Done, false),
            (on_h1("local", HostPhase::Ready), Deletion::Marked, true),
            (on_h1("shared", HostPhase::Ready), Deletion::Done, false),
        ] {
            let row = data(&snapshot);
            let (txn, deletion) = delete(&snapshot, &row, Txn::new()).unwrap();
            assert_eq!(deletion, ends);
            let wanted = (Doomed::Volume, row.object.uid.clone(), Some("h1".to_owned()));
            assert_eq!(tombstones(&txn), Vec::from_iter(buried.then_some(wanted)));
            assert_eq!(writes(&txn).contains(&"-status/volumes/shop/data".to_owned()), !buried);
        }
    }

    #[test]
    fn what_an_instance_mounts_stays() {
        let mut snapshot = shop(json!({}));
        snapshot.seed_instance(web(json!({"mounts": {"/data": {"volume": "data"}}})));
        let refused = delete(&snapshot, &data(&snapshot), Txn::new()).unwrap_err();
        assert_eq!((refused.code, refused.holder.as_deref()), (Code::InUse, Some("instance shop/web1")));
    }

    #[test]
    fn a_volume_stays_as_it_was_made() {
        let row = data(&shop(json!({})));
        assert!(update(&row, &row.object, Txn::new()).is_ok());
        let moved = object("data", json!({"type": "shared", "path": "/srv"}));
        assert_eq!(update(&row, &moved, Txn::new()).unwrap_err().code, Code::ImmutableField);
    }

    #[test]
    fn force_goes_past_a_host_only_when_that_is_silent() {
        let nowhere = shop(json!({}));
        assert_eq!(force(&nowhere, &data(&nowhere), Txn::new()).unwrap(), None);
        let ready = on_h1("local", HostPhase::Ready);
        let refused = force(&ready, &data(&ready), Txn::new()).unwrap_err();
        assert_eq!(refused.code, Code::HostReachable);
        let mut lost = on_h1("local", HostPhase::Lost);
        let txn = force(&lost, &data(&lost), Txn::new()).unwrap().unwrap();
        assert_eq!((writes(&txn).len(), tombstones(&txn).len()), (2, 1), "{txn:?}");
        let mut leaving = data(&lost).object.clone();
        leaving.deleted_at = Some(Timestamp::UNIX_EPOCH);
        lost.seed_volume(leaving);
        let txn = force(&lost, &data(&lost), Txn::new()).unwrap().unwrap();
        assert_eq!(writes(&txn), ["-status/volumes/shop/data"], "its tombstone is there already");
    }
}
