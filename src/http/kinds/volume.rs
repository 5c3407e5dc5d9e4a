//! Volumes: a local one belongs to the host of the first instance that mounts it, and is destroyed there.

use crate::auth::quota::Asked;
use crate::http::objects::{Deletion, Managed, key};
use crate::http::{App, quota};
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::{Doomed, Tombstone};
use enoki_api::object::Object;
use enoki_api::volume::{Volume, VolumeKind, VolumeSpec};
use jiff::Timestamp;

impl Managed for VolumeSpec {
    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.volumes
    }

    fn present(_app: &App, snapshot: &Snapshot, volume: &mut Object<Self>) {
        let at = (volume.project.clone().unwrap_or_default(), volume.name.clone());
        volume.status.host = snapshot.volume_status.get(&at).and_then(|status| status.host.clone());
        volume.status.used_by = users(snapshot, volume);
    }

    fn for_admins(old: Option<&Self>, new: &Self) -> Option<&'static str> {
        (new.path.is_some() && old.is_none_or(|old| old.path != new.path)).then_some("spec.path")
    }

    fn create(_app: &App, snapshot: &Snapshot, volume: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        quota::within(snapshot, volume.project.as_deref().unwrap_or_default(), Asked::Volume, txn)
    }

    fn update(
        _app: &App,
        _snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        if old.object.spec != new.spec {
            return Err(Problem::new(Code::ImmutableField, "a volume stays where it is").field("spec"));
        }
        Ok(txn)
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        let volume = &row.object;
        super::refuse_used(row.place(), users(snapshot, volume))?;
        let at = row.at();
        let host = snapshot.volume_status.get(&at).and_then(|status| status.host.clone());
        let status = key(Key::status("volumes", Some(&at.0), &at.1))?;
        match host {
            // The folder of a shared volume is not ours; an unused local one has none.
            None => Ok((txn.delete(status), Deletion::Done)),
            Some(_) if volume.spec.kind == VolumeKind::Shared => Ok((txn.delete(status), Deletion::Done)),
            Some(host) => {
                let tombstone = Tombstone {
                    uid: volume.uid.clone(),
                    what: Doomed::Volume,
                    name: format!("{}/{}", at.0, at.1),
                    host: Some(host),
                    created_at: Timestamp::now(),
                    buried_at: None,
                };
                Ok((super::instance::bury(txn, &tombstone)?, Deletion::Marked))
            }
        }
    }

    /// Its keys go at once; the tombstone of its data waits for the host.
    fn force(app: &App, snapshot: &Snapshot, row: &Row<Self>, txn: Txn) -> Result<Option<Txn>, Problem> {
        let at = row.at();
        let Some(host) = snapshot.volume_status.get(&at).and_then(|status| status.host.clone()) else {
            return Ok(None);
        };
        super::host::refuse_reachable(snapshot, &host)?;
        let txn = match row.object.deleted_at {
            // Its tombstone is there already.
            Some(_) => txn.delete(key(Key::status("volumes", Some(&at.0), &at.1))?),
            None => match Self::delete(app, snapshot, row, txn)? {
                (txn, Deletion::Marked) => txn.delete(key(Key::status("volumes", Some(&at.0), &at.1))?),
                (txn, Deletion::Done) => txn,
            },
        };
        Ok(Some(txn))
    }
}

fn users(snapshot: &Snapshot, volume: &Volume) -> Vec<String> {
    let instances = snapshot.instances.of(volume.project.as_deref());
    let with =
        instances.filter(|row| row.object.spec.mounts.values().any(|mount| mount.volume == volume.name));
    with.map(|row| row.place().to_string()).collect()
}
