//! Secrets: sealed before they are stored, never shown again.

use crate::admission::{Deletion, refuse_used};
use crate::dispatch::orders::sealed_at;
use crate::http::App;
use crate::http::objects::Managed;
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::EnvValue;
use enoki_api::object::Object;
use enoki_api::secret::{Secret, SecretSpec};
use std::collections::BTreeMap;

impl Managed for SecretSpec {
    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.secrets
    }

    fn present(_app: &App, _snapshot: &Snapshot, secret: &mut Object<Self>) {
        secret.status.keys = secret.spec.data.keys().cloned().collect();
        secret.spec.data.clear();
    }

    fn create(app: &App, _snapshot: &Snapshot, secret: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        seal(app, secret, &BTreeMap::new())?;
        Ok(txn)
    }

    fn update(
        app: &App,
        _snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        seal(app, new, &old.object.spec.data)?;
        Ok(txn)
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        refuse_used(row.place(), users(snapshot, &row.object))?;
        Ok((txn, Deletion::Done))
    }
}

/// Seals every value but those that are as they were: a patch of one key leaves the others' sealed text in place.
fn seal(app: &App, secret: &mut Secret, old: &BTreeMap<String, String>) -> Result<(), Problem> {
    let project = secret.project.clone().unwrap_or_default();
    for (name, value) in &mut secret.spec.data {
        if old.get(name) == Some(value) {
            continue;
        }
        let sealed = app.sealer.seal(&sealed_at(&project, &secret.name, name), value.as_bytes());
        *value = sealed.map_err(|error| {
            tracing::error!(%error, "a secret could not be sealed");
            Problem::new(Code::Internal, "the secret could not be sealed; nothing was stored")
        })?;
    }
    Ok(())
}

fn users(snapshot: &Snapshot, secret: &Secret) -> Vec<String> {
    let uses = |value: &EnvValue| matches!(value, EnvValue::Secret(from) if from.secret == secret.name);
    let instances = snapshot.instances.of(secret.project.as_deref());
    instances
        .filter(|row| row.object.spec.env.values().any(uses))
        .map(|row| row.place().to_string())
        .collect()
}
