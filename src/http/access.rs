//! Authenticates and authorises every request of the API, before anything else looks at it.

use super::{App, answer};
use crate::auth::actor::{self, Actor};
use crate::auth::roles::{self, Asked};
use crate::dispatch::servers;
use crate::listen::Peer;
use crate::peers;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use enoki_api::error::{Code, Problem};
use jiff::Timestamp;

/// Puts the [`Actor`] among the request's extensions, or answers 401 or 403. Must be a layer of the routes, not of the
/// whole router: it needs to know which route was matched.
pub async fn layer(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let actor = match actor(&app, &request) {
        Ok(actor) => actor,
        Err(problem) => return answer::problem(problem),
    };
    let route =
        request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()).unwrap_or_default();
    let project = project(&route, request.uri().path(), request.uri().query());
    let asked = Asked { method: request.method(), route: &route, project: project.as_deref() };
    let mut response = match roles::check(&actor, asked) {
        Err(problem) => answer::problem(problem),
        Ok(()) => {
            request.extensions_mut().insert(actor.clone());
            next.run(request).await
        }
    };
    // For the audit.
    response.extensions_mut().insert(actor);
    response
}

/// Who is at the other end: by the socket, by a certificate, by a token.
pub fn actor(app: &App, request: &Request) -> Result<Actor, Problem> {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|info| info.0.clone());
    match peer {
        Some(Peer::Local { uid, pid }) => return Ok(Actor::Local { uid, pid }),
        Some(Peer::Remote { identity: Some(identity), .. }) => {
            // A server passes on what its users ask; it has let them in.
            let on_behalf = peers::on_behalf(request.headers());
            let trusted = servers::is_server(&app.state.snapshot(), &identity);
            return Ok(on_behalf.filter(|_| trusted).unwrap_or(Actor::Machine(identity)));
        }
        Some(Peer::Remote { identity: None, .. }) | None => {}
    }
    let Some(header) = request.headers().get(header::AUTHORIZATION) else { return Ok(Actor::Anonymous) };
    let text = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(|| {
        Problem::new(Code::Unauthenticated, "the authorization header is not `Bearer TOKEN`")
    })?;
    actor::bearer(&app.state.snapshot(), &app.sealer, text.trim(), Timestamp::now())
}

/// The project that an address belongs to: in its path, or for lists across projects in its query.
fn project(route: &str, path: &str, query: Option<&str>) -> Option<String> {
    let plain = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    if route.starts_with("/v1/projects/") {
        return path.strip_prefix("/v1/projects/")?.split('/').next().map(plain);
    }
    query?.split('&').find_map(|pair| pair.strip_prefix("project=")).map(plain)
}
