//! Uploaded files: bytes that users bring into a project for a job to name. They are no objects: known by their content
//! alone, there while something names them and for an hour after they were brought or asked for.

use crate::http::App;
use crate::http::answer::{self, Answer};
use crate::http::objects::Place;
use crate::http::query::Params;
use crate::http::upload;
use crate::peers::FILES_PATH;
use crate::registry::client::length;
use crate::registry::files::Wanted;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::routing::{get, post};
use enoki_api::error::{Code, Problem};
use enoki_api::file::FileRef;
use enoki_api::quantity::Bytes;
use sha2::{Digest, Sha256};

pub fn routes() -> Router<App> {
    let all = "/v1/projects/{project}/files";
    Router::new().route(all, post(receive)).route(&format!("{all}/{{digest}}"), get(read))
}

/// Keeps the body, whatever it is.
async fn receive(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    params: Params,
    body: Body,
) -> Answer {
    params.done()?;
    let project = project(&app, &path)?;
    let most = app.registry.largest_file();
    // Said beforehand: not a byte of it is read.
    within(most, length(&headers).unwrap_or_default())?;
    let (mut size, mut hasher) = (0, Sha256::new());
    let room = upload::receive(&app, body, |chunk| {
        size += chunk.len() as u64;
        hasher.update(chunk);
        within(most, size)
    })
    .await?;
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let file = FileRef { digest: format!("sha256:{hex}"), size };
    app.registry.keep(&project, &file, room).await.map_err(upload::failed)?;
    Ok(answer::json(StatusCode::CREATED, &file))
}

fn within(most: Bytes, size: u64) -> Result<(), Problem> {
    if Bytes(size) <= most {
        return Ok(());
    }
    Err(Problem::new(Code::TooLarge, format!("a file has at most {most}"))
        .hint("`largest_file` in the server's server.toml says so; put what is larger on a volume"))
}

/// Whether the project has a file, so that nobody needs to send it again.
async fn read(State(app): State<App>, path: Place, params: Params) -> Answer {
    params.done()?;
    let project = project(&app, &path)?;
    let digest = path.get("digest").map(String::as_str).unwrap_or_default();
    Ok(answer::json(StatusCode::OK, &present(&app, &project, digest).await?))
}

fn project(app: &App, path: &Place) -> Result<String, Problem> {
    let name = path.get("project").map(String::as_str).unwrap_or_default();
    let known = app.state.snapshot().projects.get("", name).is_some();
    known.then(|| name.to_owned()).ok_or_else(|| Problem::not_found(format!("project {name}")))
}

/// The file with this digest, if the project has uploaded it to any server. It stays for an hour from now, in which it
/// can be named.
///
/// # Errors
/// It is nowhere; or this server's registry cannot be asked, and no other has it.
pub async fn present(app: &App, project: &str, digest: &str) -> Result<FileRef, Problem> {
    let wanted = Wanted::parse(project, digest).ok_or_else(|| {
        Problem::invalid_field("digest", format!("`{digest}` is not `sha256:` and 64 hexadecimal digits"))
    })?;
    let here = app.registry.present(&wanted).await;
    if let Ok(Some(file)) = here {
        return Ok(file);
    }
    let path = format!("{FILES_PATH}/{}", wanted.path());
    let elsewhere = app.peers.elsewhere(&path, &Method::HEAD, &HeaderMap::new()).await;
    if let Some(size) = elsewhere.and_then(|answer| length(answer.headers())) {
        return Ok(FileRef { digest: digest.to_owned(), size });
    }
    Err(here.map_or_else(|error| error.problem(), |_| wanted.missing()))
}

/// The bytes of a file of the project, from whichever server has them.
pub async fn content(app: &App, project: &str, digest: &str) -> Result<Body, Problem> {
    let wanted =
        Wanted::parse(project, digest).ok_or_else(|| Problem::not_found(format!("file {digest}")))?;
    let here = app.registry.serve_file(&wanted, &Method::GET, &HeaderMap::new()).await;
    if here.status() == StatusCode::OK {
        return Ok(here.into_body());
    }
    let path = format!("{FILES_PATH}/{}", wanted.path());
    let elsewhere = app.peers.elsewhere(&path, &Method::GET, &HeaderMap::new()).await;
    elsewhere.map(|answer| Body::new(answer.into_body())).ok_or_else(|| wanted.missing())
}
