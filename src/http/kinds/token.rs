//! Tokens: made with a random secret that is told once, kept as a sealed hash.

use crate::admission::Deletion;
use crate::auth::actor;
use crate::http::App;
use crate::http::objects::Managed;
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use enoki_api::error::{Code, Problem};
use enoki_api::object::Object;
use enoki_api::token::{TokenSpec, TokenText};
use jiff::Timestamp;

impl Managed for TokenSpec {
    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.tokens
    }

    fn present(_app: &App, _snapshot: &Snapshot, token: &mut Object<Self>) {
        token.spec.hash.clear();
        token.status.token = None;
        token.status.expired = token.spec.expires_at.is_some_and(|at| at <= Timestamp::now());
    }

    fn create(app: &App, snapshot: &Snapshot, token: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        if !token.spec.hash.is_empty() {
            return Err(Problem::invalid_field("spec.hash", "is the server's to write"));
        }
        for project in &token.spec.projects {
            if snapshot.projects.get("", project).is_none() {
                return Err(Problem::new(Code::UnknownReference, format!("there is no project {project}"))
                    .field("spec.projects"));
            }
        }
        let (secret, hash) = actor::new_secret(&app.sealer, &token.name).map_err(|error| {
            tracing::error!(%error, "a token could not be sealed");
            Problem::new(Code::Internal, "the token could not be sealed; nothing was stored")
        })?;
        token.spec.hash = hash;
        let text = TokenText { name: token.name.clone(), secret, ca: app.ca.to_string() };
        // The status is not stored: this is the one moment in which the secret is there.
        token.status.token = Some(text.to_string());
        Ok(txn)
    }

    fn update(
        _app: &App,
        _snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        if new.spec.hash.is_empty() {
            new.spec.hash = old.object.spec.hash.clone();
        }
        if old.object.spec != new.spec {
            return Err(Problem::new(Code::ImmutableField, "a token stays as it was made")
                .field("spec")
                .hint("make another one and delete this"));
        }
        Ok(txn)
    }

    fn delete(
        _app: &App,
        _snapshot: &Snapshot,
        _row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        Ok((txn, Deletion::Done))
    }

    fn told_once(made: &Object<Self>) -> Option<Object<Self>> {
        let mut told = made.clone();
        told.spec.hash.clear();
        Some(told)
    }
}
