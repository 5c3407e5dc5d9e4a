//! Every request that writes or enters an instance, with its outcome, to the audit file.

use super::App;
use crate::auth::actor::Actor;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use jiff::Timestamp;
use serde_json::json;

/// Writes, what enters an instance, and what was refused to somebody. Bodies and queries are not in it: they can hold
/// secrets.
pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let enters = path.ends_with("/exec") || path.ends_with("/console");
    let method = request.method().clone();
    let response = next.run(request).await;
    let reads = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS) && !enters;
    if reads && response.status() != StatusCode::FORBIDDEN {
        return response;
    }
    let actor = response.extensions().get::<Actor>().cloned().unwrap_or(Actor::Anonymous);
    let (uid, pid) = match &actor {
        Actor::Local { uid, pid } => (*uid, *pid),
        Actor::Bearer { .. } | Actor::Machine(_) | Actor::Anonymous => (None, None),
    };
    app.audit.write(&json!({
        "at": Timestamp::now(),
        "actor": actor.to_string(),
        "uid": uid,
        "pid": pid,
        "method": method.as_str(),
        "path": path,
        "status": response.status().as_u16(),
    }));
    response
}
