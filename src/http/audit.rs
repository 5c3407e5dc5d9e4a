//! Every request that writes or enters an instance, with its outcome, to the audit file; and what stands there.

use super::App;
use super::answer::{self, Answer};
use super::query::Params;
use crate::auth::actor::Actor;
use crate::auth::audit::{Query, search};
use crate::auth::roles::ENTERING;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::get;
use enoki_api::error::{Code, Problem};
use enoki_api::list::List;

pub fn routes() -> Router<App> {
    Router::new().route("/v1/audit", get(list))
}

/// Writes, what enters an instance, and what was refused to somebody. Bodies and queries are not in it: they can hold
/// secrets.
pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let enters = ENTERING.iter().any(|verb| path.ends_with(verb));
    let method = request.method().clone();
    let response = next.run(request).await;
    let reads = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS) && !enters;
    if reads && response.status() != StatusCode::FORBIDDEN {
        return response;
    }
    let actor = response.extensions().get::<Actor>().cloned().unwrap_or(Actor::Anonymous);
    app.audit.request(&actor, method.as_str(), path, response.status().as_u16());
    response
}

/// This server's own: each has written down what it was asked.
async fn list(State(app): State<App>, mut params: Params) -> Answer {
    let status = params.take("status").map(|text| {
        text.parse::<u16>()
            .map_err(|_| Problem::invalid_field("status", format!("`{text}` is not a status, as in 403")))
    });
    let query = Query {
        limit: params.page()?,
        since: params.moment("since")?,
        actor: params.take("actor"),
        path: params.take("path"),
        status: status.transpose()?,
    };
    params.done()?;
    let files = app.audit.files();
    let found = tokio::task::spawn_blocking(move || search(&files?, &query)).await;
    let unread = |error: &dyn std::fmt::Display| {
        Problem::new(Code::Internal, format!("the audit file cannot be read: {error}"))
    };
    let items = found.map_err(|error| unread(&error))?.map_err(|error| unread(&error))?;
    let revision = app.state.snapshot().revision;
    Ok(answer::json(StatusCode::OK, &List { items, revision, continue_: None, undecodable: Vec::new() }))
}
