//! The agents' side of the server: the routes that only agents may take.

use super::session::Session;
use super::{Broker, Events, Live};
use crate::auth::seal::Sealer;
use crate::image::Archives;
use crate::state::State;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State as Shared, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use enoki_api::protocol::{ARCHIVE_PATH, SESSION_PATH, STREAM_PATH};
use std::sync::Arc;
use tokio_util::io::ReaderStream;

/// The largest message an agent may send.
const MESSAGE_MAX: usize = 16 << 20;

/// What agents talk to.
#[derive(Clone)]
pub struct Dispatch {
    pub state: State,
    pub live: Live,
    pub broker: Broker,
    pub events: Events,
    pub sealer: Arc<Sealer>,
    pub archives: Archives,
}

/// The routes of the agents' socket. Who may connect is the socket's permissions' to say (root only).
pub fn router(dispatch: Dispatch) -> Router {
    Router::new()
        .route(SESSION_PATH, get(session))
        .route(&format!("{STREAM_PATH}/{{id}}"), get(stream))
        .route(&format!("{ARCHIVE_PATH}/{{digest}}"), get(archive))
        .with_state(dispatch)
}

async fn session(Shared(dispatch): Shared<Dispatch>, upgrade: WebSocketUpgrade) -> Response {
    let Dispatch { state, live, events, sealer, .. } = dispatch;
    upgrade
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .on_upgrade(move |socket| Session { state, live, events, sealer }.serve(socket))
}

async fn stream(
    Shared(dispatch): Shared<Dispatch>,
    Path(id): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    if dispatch.broker.expects(&id).is_none() {
        return (StatusCode::NOT_FOUND, "nobody waits for this stream").into_response();
    }
    upgrade.max_message_size(1 << 20).on_upgrade(async move |socket| dispatch.broker.arrived(&id, socket))
}

async fn archive(Shared(dispatch): Shared<Dispatch>, Path(digest): Path<String>) -> Response {
    match dispatch.archives.open(&digest).await {
        Ok(file) => Body::from_stream(ReaderStream::with_capacity(file, 256 << 10)).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, format!("archive {digest}: {error}")).into_response(),
    }
}
