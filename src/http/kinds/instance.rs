//! Instances: their status and phase, and where they could go.

use crate::admission::{Deletion, instance};
use crate::http::App;
use crate::http::objects::Managed;
use crate::scheduler::{self, Request, Verdict};
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use enoki_api::error::Problem;
use enoki_api::instance::InstanceSpec;
use enoki_api::object::Object;

impl Managed for InstanceSpec {
    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.instances
    }

    fn present(_app: &App, snapshot: &Snapshot, instance: &mut Object<Self>) {
        let at = (instance.project.clone().unwrap_or_default(), instance.name.clone());
        if let Some(status) = snapshot.instance_status.get(&at) {
            instance.status = (**status).clone();
        }
        if instance.deleted_at.is_some() {
            instance.status.phase = enoki_api::instance::Phase::Deleting;
        }
    }

    fn create(app: &App, snapshot: &Snapshot, instance: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        refuse_files(None, &instance.spec)?;
        instance::create(snapshot, &app.live, instance, txn)
    }

    fn update(
        _app: &App,
        snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        refuse_files(Some(&old.object.spec), &new.spec)?;
        instance::update(snapshot, old, new, txn)
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        instance::delete(snapshot, row, txn)
    }

    fn force(_app: &App, snapshot: &Snapshot, row: &Row<Self>, txn: Txn) -> Result<Option<Txn>, Problem> {
        instance::force(snapshot, row, txn)
    }

    fn explain(app: &App, snapshot: &Snapshot, instance: &Object<Self>) -> Vec<Verdict> {
        let at = (instance.project.clone().unwrap_or_default(), instance.name.clone());
        let request = Request { at: &at, labels: &instance.labels, spec: &instance.spec };
        scheduler::explain(snapshot, request, &app.policy)
    }

    fn phase(instance: &Object<Self>) -> Option<String> {
        // A phase of an older generation is not what the write asked for.
        let seen =
            instance.status.observed_generation >= instance.generation || instance.deleted_at.is_some();
        Some(if seen { instance.status.phase.to_string() } else { "unobserved".to_owned() })
    }
}

/// Files are a job's: users may leave them as they were, or out.
fn refuse_files(before: Option<&InstanceSpec>, wanted: &InstanceSpec) -> Result<(), Problem> {
    if wanted.files.is_empty() || before.is_some_and(|before| before.files == wanted.files) {
        return Ok(());
    }
    Err(Problem::invalid_field("spec.files", "files are set by what owns an instance, not by its users")
        .hint("leave them out; a volume has what an instance of your own is to find"))
}
