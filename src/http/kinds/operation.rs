//! Operations: begun by verbs, cancelled, watched, and forgotten when they have ended.

use crate::admission::{Deletion, key, missing};
use crate::auth::actor::Actor;
use crate::http::App;
use crate::http::answer::{self, Answer};
use crate::http::commit::{Done, Step, commit};
use crate::http::edit::{self, Edit};
use crate::http::objects::{Managed, Options, Place, finish, place, plan};
use crate::http::query::{Params, if_match};
use crate::state::{At, Row, Snapshot, Table, encode_new};
use crate::store::Txn;
use crate::store::keys::Key;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Extension, Router};
use enoki_api::decode;
use enoki_api::error::{Code, Problem};
use enoki_api::host::HostSpec;
use enoki_api::object::Object;
use enoki_api::operation::{Operation, OperationSpec, OperationVerb};
use jiff::Timestamp;
use serde::Deserialize;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/hosts/{name}/drain", post(drain))
        .route("/v1/operations/{name}/cancel", post(cancel))
}

impl Managed for OperationSpec {
    const MADE_BY_USERS: bool = false;
    const CHANGED_BY_USERS: bool = false;

    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.operations
    }

    fn present(_app: &App, snapshot: &Snapshot, operation: &mut Object<Self>) {
        if let Some(stored) = snapshot.operation_status.get(&operation.name) {
            operation.status = stored.status.clone();
        }
    }

    fn update(
        _app: &App,
        snapshot: &Snapshot,
        old: &Row<Self>,
        _new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        match snapshot.operation_status.get(&old.object.name).filter(|stored| stored.status.ended()) {
            Some(stored) if !old.object.spec.cancelled => Err(Problem::new(
                Code::NotRunning,
                format!("{} has ended: {}", old.place(), stored.status.phase),
            )),
            Some(_) | None => Ok(txn),
        }
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        let name = &row.object.name;
        if snapshot.operation_status.get(name).is_none_or(|stored| !stored.status.ended()) {
            return Err(Problem::new(Code::InUse, format!("{} has not ended", row.place()))
                .hint(format!("`enoki operation cancel {name}` ends it")));
        }
        Ok((txn.delete(key(Key::status("operations", None, name))?), Deletion::Done))
    }

    fn phase(operation: &Object<Self>) -> Option<String> {
        Some(operation.status.phase.to_string())
    }

    fn settled(operation: &Object<Self>) -> bool {
        operation.status.ended()
    }
}

/// The drain of this host that has not ended.
pub fn drain_of<'a>(snapshot: &'a Snapshot, host: &str) -> Option<&'a Operation> {
    let mut open = snapshot.open_operations().map(|row| &row.object);
    open.find(|operation| operation.spec.verb == OperationVerb::Drain && operation.spec.host == host)
}

#[derive(Default, Deserialize)]
struct Drain {
    /// Stop in place what cannot move.
    #[serde(default)]
    stop: bool,
}

/// Cordons the host and begins to empty it, in one write. Asked for again while it runs, it is the one that runs.
async fn drain(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
    body: Body,
) -> Answer {
    let options = Options::take(actor, params)?;
    let expected = if_match(&headers)?;
    let body = answer::body(body).await?;
    let Drain { stop } = if body.is_empty() { Drain::default() } else { decode::strict(&body)? };
    let at = place::<HostSpec>(&path);
    let host = &at.1;
    let spec = OperationSpec { verb: OperationVerb::Drain, host: host.clone(), stop, cancelled: false };
    let mut wanted: Operation = Object::new(None, "", Default::default(), spec, Timestamp::now());
    wanted.name = format!("drain-{}", &wanted.uid.hex()[..8]);
    let planned = commit(&app, &at, |snapshot| {
        let row = snapshot.hosts.at(&at).ok_or_else(|| missing::<HostSpec>(snapshot, &at))?;
        edit::expect(row, expected)?;
        match drain_of(snapshot, host) {
            Some(running) if running.spec == wanted.spec => return Ok(Step::Nothing(Ok(running.clone()))),
            Some(running) => return Err(under_way(running)),
            None => {}
        }
        if options.dry_run {
            return Ok(Step::Nothing(Err(plan(&app, snapshot, wanted.clone()))));
        }
        let mut cordoned = row.object.clone();
        cordoned.spec.cordoned = true;
        if cordoned != row.object {
            cordoned.generation += 1;
        }
        // Written also when it was cordoned before: of two that drain, or one that uncordons meanwhile, one loses.
        let host_key = key(Key::spec("hosts", None, host))?;
        let operation_key = key(Key::spec("operations", None, &wanted.name))?;
        let txn = Txn::new()
            .when_unchanged(host_key.clone(), row.object.revision)
            .put(host_key, row.encode(&cordoned))
            .when_absent(operation_key.clone())
            .put(operation_key, encode_new(&wanted));
        Ok(Step::Write(txn, cordoned))
    })
    .await?;
    let operation = match planned {
        Done::Nothing(Err(plan)) => return Ok(plan),
        Done::Nothing(Ok(running)) => running,
        Done::Written(host) => {
            let how = if stop { "what cannot move is stopped" } else { "nothing is stopped" };
            let message = format!("{}: {how}", wanted.name);
            app.events.note(&host.key(), Some(&host.uid), false, "draining", message);
            wanted
        }
    };
    let done = if options.wait.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let at: At = (String::new(), operation.name);
    finish::<OperationSpec>(&app, &at, &operation.uid, done, options.wait).await
}

/// Why this host's cordon is not to be touched now.
pub fn under_way(running: &Operation) -> Problem {
    let Operation { name, spec, .. } = running;
    Problem::new(Code::InUse, format!("host {} is being drained", spec.host))
        .holder(format!("operation {name}"))
        .hint(format!("`enoki operation cancel {name}` ends that first"))
}

async fn cancel(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
) -> Answer {
    let options = Options::take(actor, params)?;
    let done = if options.wait.is_some() || options.dry_run { StatusCode::OK } else { StatusCode::ACCEPTED };
    let edit = Edit { expected: if_match(&headers)?, options, done };
    let at = place::<OperationSpec>(&path);
    edit::run::<OperationSpec>(&app, at, edit, |old| {
        let mut new = old.clone();
        new.spec.cancelled = true;
        Ok(new)
    })
    .await
}
