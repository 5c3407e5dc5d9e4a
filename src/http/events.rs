//! `GET /v1/events`: what happened, oldest first.

use super::App;
use super::answer::{self, Answer};
use super::query::Params;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use enoki_api::error::Problem;
use enoki_api::list::List;
use enoki_api::object::Kind;

pub fn routes() -> Router<App> {
    Router::new().route("/v1/events", get(list))
}

async fn list(State(app): State<App>, mut params: Params) -> Answer {
    let limit = params.page()?;
    let kind = params
        .take("kind")
        .map(|text| text.parse::<Kind>().map_err(|why| Problem::invalid_field("kind", why)));
    let kind = kind.transpose()?;
    let (project, name) = (params.take("project"), params.take("name"));
    params.done()?;
    let mut items = app.events.find(kind, project.as_deref(), name.as_deref());
    // The newest are what one looks for.
    items.drain(..items.len().saturating_sub(limit));
    Ok(answer::json(
        StatusCode::OK,
        &List { items, revision: app.state.snapshot().revision, continue_: None, undecodable: Vec::new() },
    ))
}
