//! Answers: problems as `application/problem+json`, and the headers that every answer carries.

use super::App;
use super::query::at_least;
use crate::store;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use enoki_api::error::{Code, Problem};
use enoki_api::object::{Object, Spec};
use serde::Serialize;
use std::time::Duration;

/// How long a read waits for a revision that was asked for, and a write for its own echo.
pub const CATCH_UP: Duration = Duration::from_secs(3);
/// The largest JSON body.
pub const BODY_MAX: usize = 1 << 20;

/// What a handler gives: an answer or a problem.
pub type Answer = Result<Response, Refusal>;

/// A problem on its way to the client.
#[derive(Debug)]
pub struct Refusal(pub Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Refusal(problem)
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        Refusal(from_store(&error))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        problem(self.0)
    }
}

/// What a fault of the store means to a user.
pub fn from_store(error: &store::Error) -> Problem {
    use store::Error::*;
    match error {
        TooLarge { .. } => Problem::new(Code::TooLarge, error.to_string()),
        OutcomeUnknown { .. } => {
            Problem::new(Code::StoreUnavailable, "the store did not confirm the write; it may have been made")
                .hint("read the object before you try again")
        }
        Unavailable { .. } | Compacted { .. } | WentBack { .. } | Full | Refused { .. } => {
            tracing::warn!(%error, "the store did not serve a request");
            Problem::new(Code::StoreUnavailable, "the store does not answer; nothing was changed")
                .hint("running instances are not affected; try again in a moment")
        }
        Invalid(_) => {
            tracing::error!(%error, "a request to the store is invalid");
            Problem::new(Code::Internal, "the request could not be carried out")
                .hint("the server's log tells more")
        }
    }
}

pub fn problem(problem: Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
    if matches!(problem.code, Code::StoreUnavailable | Code::RegistryUnavailable | Code::HostUnreachable) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer does not encode");
            problem(Problem::new(Code::Internal, "the answer does not encode"))
        }
    }
}

/// One object with its ETag.
pub fn object<S: Spec>(status: StatusCode, object: &Object<S>) -> Response {
    let mut response = json(status, object);
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{}\"", object.revision)) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// The whole body, bounded.
pub async fn body(body: Body) -> Result<Vec<u8>, Problem> {
    match axum::body::to_bytes(body, BODY_MAX).await {
        Ok(bytes) => Ok(bytes.to_vec()),
        Err(error) => {
            let mut source: Option<&dyn std::error::Error> = Some(&error);
            while let Some(cause) = source {
                if cause.is::<http_body_util::LengthLimitError>() {
                    return Err(Problem::new(
                        Code::TooLarge,
                        format!("the body is larger than {BODY_MAX} bytes"),
                    ));
                }
                source = cause.source();
            }
            Err(Problem::new(Code::MalformedBody, format!("the body could not be read: {error}")))
        }
    }
}

/// `?at_least=` before, `enoki-revision` and `enoki-stale` after every request.
pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    let wanted = match at_least(request.uri().query()) {
        Ok(wanted) => wanted,
        Err(fault) => return problem(fault),
    };
    if let Some(revision) = wanted
        && !app.state.reached(revision, CATCH_UP).await
    {
        let now = app.state.snapshot().revision;
        return problem(Problem::new(
            Code::StaleReplica,
            format!("this server is at revision {now}, not yet at {revision}"),
        ));
    }
    let mut response = next.run(request).await;
    let revision = HeaderValue::from(app.state.snapshot().revision);
    response.headers_mut().insert("enoki-revision", revision);
    if let Some(age) = app.state.stale_for() {
        response.headers_mut().insert("enoki-stale", HeaderValue::from(age.as_secs()));
    }
    response
}
