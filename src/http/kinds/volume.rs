//! Volumes: where they are, and who may name a folder.

use crate::admission::{Deletion, volume};
use crate::http::App;
use crate::http::objects::Managed;
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use enoki_api::error::Problem;
use enoki_api::object::Object;
use enoki_api::volume::VolumeSpec;

impl Managed for VolumeSpec {
    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.volumes
    }

    fn present(_app: &App, snapshot: &Snapshot, volume: &mut Object<Self>) {
        let at = (volume.project.clone().unwrap_or_default(), volume.name.clone());
        volume.status.host = snapshot.volume_status.get(&at).and_then(|status| status.host.clone());
        volume.status.used_by = volume::users(snapshot, volume);
    }

    fn for_admins(old: Option<&Self>, new: &Self) -> Option<&'static str> {
        (new.path.is_some() && old.is_none_or(|old| old.path != new.path)).then_some("spec.path")
    }

    fn create(_app: &App, snapshot: &Snapshot, volume: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        volume::create(snapshot, volume, txn)
    }

    fn update(
        _app: &App,
        _snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        volume::update(old, new, txn)
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        volume::delete(snapshot, row, txn)
    }

    fn force(_app: &App, snapshot: &Snapshot, row: &Row<Self>, txn: Txn) -> Result<Option<Txn>, Problem> {
        volume::force(snapshot, row, txn)
    }
}
