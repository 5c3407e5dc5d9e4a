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
