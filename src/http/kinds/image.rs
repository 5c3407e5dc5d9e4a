//! Images: made by importing bytes, never by writing a spec.

use crate::http::App;
use crate::http::answer::Answer;
use crate::http::commit::{Done, Step, commit};
use crate::http::objects::{Deletion, Managed, Place, finish, key, missing, place};
use crate::http::query::Params;
use crate::image::{Error, Imported};
use crate::state::{At, Row, Snapshot, Table, encode_new};
use crate::store::Txn;
use crate::store::keys::Key;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use enoki_api::error::{Code, Problem};
use enoki_api::image::{Image, ImageSpec};
use enoki_api::object::{Object, check_image_name};
use enoki_api::project::DEFAULT;
use enoki_api::quantity::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use tokio::io::AsyncWriteExt;

impl Managed for ImageSpec {
    const MADE_BY_USERS: bool = false;
    const CHANGED_BY_USERS: bool = false;

    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.images
    }

    fn check_name(name: &str) -> Result<(), Problem> {
        check_image_name("name", name)
    }

    fn present(_app: &App, snapshot: &Snapshot, image: &mut Object<Self>) {
        image.status.used_by = users(snapshot, image);
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        super::refuse_used(row.place(), users(snapshot, &row.object))?;
        Ok((txn, Deletion::Done))
    }

    fn deleted(app: &App, image: &Object<Self>) {
        let digest = &image.spec.archive;
        let named = app.state.snapshot().images.of(None).any(|row| row.object.spec.archive == *digest);
        if !named && let Err(error) = app.archives.discard(digest) {
            tracing::warn!(image = image.name, %error, "the archive of a deleted image stays");
        }
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
    Router::new().route("/v1/projects/{project}/images/{name}/content", post(import))
}

/// Receives a root file system or a `docker save` archive and gives it the name. The same bytes again change nothing.
async fn import(State(app): State<App>, path: Place, params: Params, body: Body) -> Answer {
    params.done()?;
    let at = place::<ImageSpec>(&path);
    check_image_name("name", &at.1)?;
    if app.state.snapshot().projects.get("", &at.0).is_none() {
        return Err(missing::<ImageSpec>(&app.state.snapshot(), &at).into());
    }
    let imported = receive(&app, body).await?;
    let spec = ImageSpec {
        image_id: imported.image_id,
        archive: imported.archive,
        size: Bytes(imported.size),
        source: imported.source,
    };
    store(&app, &at, spec).await
}

async fn receive(app: &App, body: Body) -> Result<Imported, Problem> {
    let broken = |error: std::io::Error| {
        tracing::error!(%error, "an image could not be kept");
        Problem::new(Code::Internal, format!("the image could not be kept: {error}"))
    };
    let upload = app.archives.receive().map_err(broken)?;
    let mut file = tokio::fs::File::from_std(upload.file.try_clone().map_err(broken)?);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk
            .map_err(|error| Problem::new(Code::MalformedBody, format!("the upload broke off: {error}")))?;
        file.write_all(&chunk).await.map_err(broken)?;
    }
    file.flush().await.map_err(broken)?;
    let archives = app.archives.clone();
    let kept = tokio::task::spawn_blocking(move || archives.keep(upload)).await;
    match kept {
        Ok(Ok(imported)) => Ok(imported),
        Ok(Err(Error::NotAnImage(why))) => Err(Problem::new(Code::InvalidField, why).field("content")),
        Ok(Err(Error::Io(error))) => Err(broken(error)),
        Err(error) => Err(broken(std::io::Error::other(error))),
    }
}

async fn store(app: &App, at: &At, spec: ImageSpec) -> Answer {
    let spec_key = key(Key::spec("images", Some(&at.0), &at.1))?;
    let project_key = key(Key::spec("projects", None, &at.0))?;
    let planned = commit(app, at, |snapshot| {
        Ok(match snapshot.images.at(at) {
            Some(row) if row.object.spec == spec => Step::Nothing(row.object.uid.clone()),
            Some(row) => {
                let mut new = row.object.clone();
                new.spec = spec.clone();
                new.generation += 1;
                let txn = Txn::new().when_unchanged(spec_key.clone(), row.object.revision);
                Step::Write(txn.put(spec_key.clone(), row.encode(&new)), (new.uid.clone(), StatusCode::OK))
            }
            None => {
                let image =
                    Object::new(Some(&at.0), &at.1, Default::default(), spec.clone(), Timestamp::now());
                let txn = Txn::new().when_present(project_key.clone()).when_absent(spec_key.clone());
                let txn = txn.put(spec_key.clone(), encode_new(&image));
                Step::Write(txn, (image.uid.clone(), StatusCode::CREATED))
            }
        })
    })
    .await?;
    let (uid, status) = match planned {
        Done::Nothing(uid) => (uid, StatusCode::OK),
        Done::Written(written) => written,
    };
    finish::<ImageSpec>(app, at, &uid, status, None).await
}
