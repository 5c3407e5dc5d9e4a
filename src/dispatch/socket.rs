//! The agents' side of the server: the routes that only agents may take.

use super::access::{self, speaks_for};
use super::session::Session;
use super::{Broker, Events, Fanout, Live, join, servers};
use crate::auth::actor::Actor;
use crate::auth::audit::Audit;
use crate::auth::ca::Pki;
use crate::auth::seal::Sealer;
use crate::config::ServerConfig;
use crate::peers::{self, Peers};
use crate::registry::pull::{self, Wanted};
use crate::registry::{Registry, files};
use crate::state::State;
use crate::store::Store;
use axum::extract::{DefaultBodyLimit, Path, State as Shared, WebSocketUpgrade};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use enoki_api::error::{Code, Problem};
use enoki_api::identity::Identity;
use enoki_api::protocol::{
    CERTIFICATE_PATH, FILES_PATH, JOIN_PATH, REGISTRY_PATH, SESSION_PATH, STREAM_PATH,
};
use std::sync::Arc;

/// The largest message an agent may send.
const MESSAGE_MAX: usize = 16 << 20;
/// What is read of a session at once: most words of an agent are short, and there are thousands of agents.
const BUFFER: usize = 4 << 10;
/// The largest body of a request to join.
const BODY_MAX: usize = 64 << 10;

/// What agents talk to.
#[derive(Clone)]
pub struct Dispatch {
    pub state: State,
    pub store: Arc<dyn Store>,
    pub live: Live,
    pub broker: Broker,
    pub fanout: Fanout,
    pub events: Events,
    pub sealer: Arc<Sealer>,
    pub registry: Registry,
    pub peers: Peers,
    pub audit: Audit,
    pub pki: Pki,
    /// What a new server of the cloud is told of it.
    pub config: Arc<ServerConfig>,
}

/// The routes of agents.
pub fn router(dispatch: Dispatch) -> Router {
    Router::new()
        .route(SESSION_PATH, get(session))
        .route(&format!("{STREAM_PATH}/{{id}}"), get(stream))
        .route(&format!("{REGISTRY_PATH}/"), get(async || StatusCode::OK))
        .route(&format!("{REGISTRY_PATH}/images/{{image}}/{{part}}/{{digest}}"), get(part))
        .route(&format!("{FILES_PATH}/{{project}}/{{digest}}"), get(file))
        .route(JOIN_PATH, post(join::join))
        .route(CERTIFICATE_PATH, post(join::renew))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(axum::middleware::from_fn_with_state(dispatch.clone(), access::layer))
        .merge(servers::router(&dispatch))
        .with_state(dispatch)
}

async fn session(
    Shared(dispatch): Shared<Dispatch>,
    Extension(actor): Extension<Actor>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .read_buffer_size(BUFFER)
        .on_upgrade(move |socket| Session { dispatch, actor }.serve(socket))
}

async fn stream(
    Shared(dispatch): Shared<Dispatch>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    match dispatch.broker.expects(&id) {
        None => (StatusCode::NOT_FOUND, "nobody waits for this stream").into_response(),
        Some(host) if !speaks_for(&actor, &host, None) => {
            let problem = Problem::new(Code::Forbidden, "this stream is another host's");
            access::refuse(&dispatch, &actor, "open a stream", &problem)
        }
        Some(_) => upgrade
            .max_message_size(1 << 20)
            .on_upgrade(async move |socket| dispatch.broker.arrived(&id, socket)),
    }
}

/// A part of an image that the asking host needs, whole or some of it.
async fn part(
    Shared(dispatch): Shared<Dispatch>,
    Extension(actor): Extension<Actor>,
    Path((image, part, digest)): Path<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let Some(wanted) = Wanted::parse(&image, &part, &digest) else {
        return pull::refuse(&Problem::not_found("this part of an image"), "NAME_INVALID");
    };
    if let Actor::Machine(Identity::Host { name, .. }) = &actor
        && !super::orders::needs(&dispatch.state.snapshot(), name, &wanted.image)
    {
        let problem = Problem::new(Code::Forbidden, format!("host {name} needs no image {}", wanted.image));
        dispatch.audit.note(&actor, "pull an image", &problem.to_string());
        return pull::refuse(&problem, "DENIED");
    }
    let answer = dispatch.registry.serve(&wanted, &method, &headers).await;
    if answer.status().is_success() {
        return answer;
    }
    // Another server may have imported it, or have it while this one's registry is away.
    let path = format!("{}/{}", peers::IMAGES_PATH, wanted.path());
    dispatch.peers.elsewhere(&path, &method, &headers).await.unwrap_or(answer)
}

/// An uploaded file that an instance of the asking host names, whole or some of it.
async fn file(
    Shared(dispatch): Shared<Dispatch>,
    Extension(actor): Extension<Actor>,
    Path((project, digest)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let Some(wanted) = files::Wanted::parse(&project, &digest) else {
        return files::refuse(&Problem::not_found("this file"));
    };
    if let Actor::Machine(Identity::Host { name, .. }) = &actor
        && !super::orders::needs_file(&dispatch.state.snapshot(), name, &wanted)
    {
        let problem = Problem::new(Code::Forbidden, format!("host {name} needs no file {}", wanted.path()));
        return access::refuse(&dispatch, &actor, "get a file", &problem);
    }
    let answer = dispatch.registry.serve_file(&wanted, &method, &headers).await;
    if answer.status().is_success() {
        return answer;
    }
    // Uploaded to another server, or this one's registry is away.
    let path = format!("{}/{}", peers::FILES_PATH, wanted.path());
    dispatch.peers.elsewhere(&path, &method, &headers).await.unwrap_or(answer)
}
