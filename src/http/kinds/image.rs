//! Images: made by importing bytes, never by writing a spec.

use crate::admission::instance::resolve;
use crate::admission::{Deletion, key, missing, refuse_used};
use crate::auth::actor::Actor;
use crate::http::App;
use crate::http::answer::{self, Answer};
use crate::http::commit::{Done, Step, commit};
use crate::http::edit::{self, Edit};
use crate::http::objects::{Managed, Options, Place, finish, place};
use crate::http::query::{Params, if_match};
use crate::http::upload;
use crate::registry::Import;
use crate::state::{At, Row, Snapshot, Table, encode_new};
use crate::store::Txn;
use crate::store::keys::Key;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Extension, Router};
use enoki_api::decode;
use enoki_api::error::Problem;
use enoki_api::image::{Image, ImageSpec};
use enoki_api::object::{Faults, Object, Spec, check_image_name};
use enoki_api::project::DEFAULT;
use enoki_api::quantity::Bytes;
use jiff::Timestamp;
use serde::Deserialize;

impl Managed for ImageSpec {
    const MADE_BY_USERS: bool = false;
    const CHANGED_BY_USERS: bool = false;

    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.images
    }

    fn check_name(name: &str) -> Result<(), Problem> {
        check_image_name("name", name)
    }

    fn present(app: &App, snapshot: &Snapshot, image: &mut Object<Self>) {
        image.status.used_by = users(snapshot, image);
        if image.spec.prepull.is_some() {
            image.status.hosts = app.live.have(&image.spec.image_id);
        }
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

    fn deleted(app: &App, image: &Object<Self>) {
        app.registry.release(&image.spec.digest);
    }
}

/// The instances made from an image: of its project, and for the default project's also of those that have none of
/// that name themselves.
fn users(snapshot: &Snapshot, image: &Image) -> Vec<String> {
    let project = image.project.as_deref().unwrap_or_default();
    let serves = |other: &str| {
        other == project || (project == DEFAULT && snapshot.images.get(other, &image.name).is_none())
    };
    let instances = snapshot.instances.of(None).filter(|row| row.object.spec.image == image.name);
    instances
        .filter(|row| serves(row.object.project.as_deref().unwrap_or_default()))
        .map(|row| row.place().to_string())
        .collect()
}

pub fn routes() -> Router<App> {
    let at = |verb: &str| format!("/v1/projects/{{project}}/images/{{name}}/{verb}");
    Router::new().route(&at("content"), post(import)).route(&at("pull"), post(pull))
}

/// Receives a root file system or a `docker save` archive and gives it the name. The same bytes again change nothing.
async fn import(State(app): State<App>, path: Place, params: Params, body: Body) -> Answer {
    params.done()?;
    let at = place::<ImageSpec>(&path);
    check_image_name("name", &at.1)?;
    if app.state.snapshot().projects.get("", &at.0).is_none() {
        return Err(missing::<ImageSpec>(&app.state.snapshot(), &at).into());
    }
    let received = upload::receive(&app, body, |_| Ok(())).await?;
    let import = app.registry.import(received).await.map_err(upload::failed)?;
    store(&app, &at, &import).await
}

async fn store(app: &App, at: &At, import: &Import) -> Answer {
    let spec_key = key(Key::spec("images", Some(&at.0), &at.1))?;
    let project_key = key(Key::spec("projects", None, &at.0))?;
    let spec = ImageSpec {
        image_id: import.imported.image_id.clone(),
        digest: import.imported.digest.clone(),
        size: Bytes(import.size),
        source: import.source.clone(),
        prepull: None,
    };
    let planned = commit(app, at, |snapshot| {
        Ok(match snapshot.images.at(at) {
            Some(row) => {
                edit::refuse_owned(snapshot, row)?;
                let mut new = row.object.clone();
                new.spec = ImageSpec { prepull: row.object.spec.prepull.clone(), ..spec.clone() };
                if new.spec == row.object.spec {
                    return Ok(Step::Nothing(row.object.uid.clone()));
                }
                new.generation += 1;
                let was = row.object.spec.digest.clone();
                let txn = Txn::new().when_unchanged(spec_key.clone(), row.object.revision);
                let txn = txn.put(spec_key.clone(), row.encode(&new));
                Step::Write(txn, (new.uid.clone(), StatusCode::OK, Some(was)))
            }
            None => {
                let image =
                    Object::new(Some(&at.0), &at.1, Default::default(), spec.clone(), Timestamp::now());
                let txn = Txn::new().when_present(project_key.clone()).when_absent(spec_key.clone());
                let txn = txn.put(spec_key.clone(), encode_new(&image));
                Step::Write(txn, (image.uid.clone(), StatusCode::CREATED, None))
            }
        })
    })
    .await?;
    let (uid, status) = match planned {
        Done::Nothing(uid) => (uid, StatusCode::OK),
        Done::Written((uid, status, was)) => {
            if let Some(was) = was.filter(|was| *was != spec.digest) {
                app.registry.release(&was);
            }
            (uid, status)
        }
    };
    settle(app, at).await;
    finish::<ImageSpec>(app, at, &uid, status, None).await
}

/// Writes down what the name means for the instances that were made before it meant anything: from here on it moves for
/// them no more. One that is missed takes what the name means when its host first needs it.
pub async fn settle(app: &App, image: &At) {
    let snapshot = app.state.snapshot();
    // What has had a container has its disk on something that came from elsewhere.
    let fresh = |at: &At| snapshot.instance_status.get(at).is_none_or(|status| status.container_id.is_none());
    let named = snapshot.instances.of(None).filter(|row| row.object.spec.image == image.1);
    let waiting = named.filter(|row| row.object.spec.resolved.is_none()).map(|row| row.at());
    let waiting: Vec<At> = waiting.filter(fresh).collect();
    for at in waiting {
        let settled = commit(app, &at, |snapshot| {
            let Some(row) = snapshot.instances.at(&at) else { return Ok(Step::Nothing(())) };
            let mut new = row.object.clone();
            let txn = match new.spec.resolved {
                None => resolve(snapshot, &mut new, Txn::new())?,
                Some(_) => Txn::new(),
            };
            if new.spec.resolved == row.object.spec.resolved {
                return Ok(Step::Nothing(()));
            }
            let spec_key = key(Key::spec("instances", Some(&at.0), &at.1))?;
            let txn = txn.when_unchanged(spec_key.clone(), row.object.revision);
            Ok(Step::Write(txn.put(spec_key, row.encode(&new)), ()))
        });
        if let Err(problem) = settled.await {
            tracing::warn!(instance = %format!("{}/{}", at.0, at.1), %problem, "what its image means is not written down");
        }
    }
}

#[derive(Deserialize)]
struct Pull {
    require: Option<Vec<String>>,
}

/// Says which hosts are to have the image before an instance needs it: those with all of these labels, or none.
async fn pull(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
    body: Body,
) -> Answer {
    let options = Options::take(actor, params)?;
    let edit = Edit { expected: if_match(&headers)?, options, done: StatusCode::OK };
    let wanted: Pull = decode::strict(&answer::body(body).await?)?;
    edit::run::<ImageSpec>(&app, place::<ImageSpec>(&path), edit, |old| {
        let mut new = old.clone();
        new.spec.prepull.clone_from(&wanted.require);
        let mut faults = Faults::default();
        new.spec.validate(&mut faults);
        faults.into_result()?;
        Ok(new)
    })
    .await
}
