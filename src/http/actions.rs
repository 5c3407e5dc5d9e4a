//! The verbs of an instance: each is an edit of its spec, so it has the one path that every change has.

use super::App;
use super::answer::{self, Answer};
use super::commit::{Done, Step, commit};
use super::edit::{self, Edit};
use super::objects::{Managed, Options, Place, finish, place, plan};
use super::query::{Params, if_match};
use crate::admission::{instance, missing};
use crate::auth::actor::Actor;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Extension, Router};
use enoki_api::decode;
use enoki_api::instance::{InstanceSpec, RunState};
use enoki_api::object::check_image_name;
use serde::Deserialize;
use serde_json::json;

pub fn routes() -> Router<App> {
    let at = |verb: &str| format!("/v1/projects/{{project}}/instances/{{name}}/{verb}");
    Router::new()
        .route(&at("start"), post(start))
        .route(&at("stop"), post(stop))
        .route(&at("restart"), post(restart))
        .route(&at("rebuild"), post(rebuild))
        .route(&at("explain"), get(explain))
}

async fn change(
    app: App,
    path: Place,
    headers: HeaderMap,
    options: Options,
    change: impl Fn(&mut InstanceSpec),
) -> Answer {
    let edit = Edit { expected: if_match(&headers)?, options, done: StatusCode::OK };
    let waits = edit.options.wait.is_some() || edit.options.dry_run;
    let at = place::<InstanceSpec>(&path);
    let mut response = edit::run::<InstanceSpec>(&app, at, edit, |old| {
        let mut new = old.clone();
        change(&mut new.spec);
        Ok(new)
    })
    .await?;
    // Without waiting, the verb was taken and is under way.
    if !waits && response.status() == StatusCode::OK {
        *response.status_mut() = StatusCode::ACCEPTED;
    }
    Ok(response)
}

async fn start(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
) -> Answer {
    change(app, path, headers, Options::take(actor, params)?, |spec| spec.state = RunState::Running).await
}

async fn stop(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
) -> Answer {
    change(app, path, headers, Options::take(actor, params)?, |spec| spec.state = RunState::Stopped).await
}

async fn restart(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
) -> Answer {
    change(app, path, headers, Options::take(actor, params)?, |spec| {
        spec.state = RunState::Running;
        spec.restart_count += 1;
    })
    .await
}

#[derive(Deserialize)]
struct Rebuild {
    image: String,
}

/// A new disk from an image; the old one gets its tombstone in the same transaction.
async fn rebuild(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
    body: Body,
) -> Answer {
    let options = Options::take(actor, params)?;
    let expected = if_match(&headers)?;
    let wanted: Rebuild = decode::strict(&answer::body(body).await?)?;
    check_image_name("image", &wanted.image)?;
    let at = place::<InstanceSpec>(&path);
    let planned = commit(&app, &at, |snapshot| {
        let row = snapshot.instances.at(&at).ok_or_else(|| missing::<InstanceSpec>(snapshot, &at))?;
        edit::expect(row, expected)?;
        edit::refuse_owned(snapshot, row)?;
        let (txn, new) = instance::rebuild(snapshot, row, &wanted.image)?;
        if options.dry_run {
            return Ok(Step::Nothing(plan(&app, snapshot, new)));
        }
        Ok(Step::Write(txn, row.object.clone()))
    })
    .await?;
    let old = match planned {
        Done::Nothing(plan) => return Ok(plan),
        Done::Written(old) => old,
    };
    let message = format!("disk {} is discarded, image {}", old.spec.rebuild_count, wanted.image);
    app.events.note(&old.key(), Some(&old.uid), false, "rebuild", message);
    let done = if options.wait.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED };
    finish::<InstanceSpec>(&app, &at, &old.uid, done, options.wait).await
}

/// Where it could go now, and why not elsewhere: what `describe` shows.
async fn explain(State(app): State<App>, path: Place, params: Params) -> Answer {
    params.done()?;
    let at = place::<InstanceSpec>(&path);
    let snapshot = app.state.snapshot();
    let object = snapshot.instance(&at).ok_or_else(|| missing::<InstanceSpec>(&snapshot, &at))?;
    Ok(answer::json(StatusCode::OK, &json!({"hosts": InstanceSpec::explain(&app, &snapshot, &object)})))
}
