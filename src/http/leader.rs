//! What agents say is known to the leader alone. A server that does not lead passes on what is asked about it; everything
//! else it answers itself.

use super::App;
use super::answer;
use crate::auth::actor::Actor;
use crate::peers::{ACTOR_HEADER, NoLeader};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::Response;
use enoki_api::error::{Code, Problem};

/// Without a leader these are answered as far as is known here: hosts without when they were last seen, own events.
const KNOWN_IN_PART: [&str; 3] = ["/v1/hosts", "/v1/hosts/{name}", "/v1/events"];
/// These are not.
const KNOWN_TO_THE_LEADER: [&str; 2] = ["/v1/hosts/{name}/orphans", "/v1/hosts/{name}/orphans/adopt"];

/// Must be a layer of the routes, inside of the one that knows the [`Actor`].
pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    if app.live.leads() || !app.peers.another_leads() {
        return next.run(request).await;
    }
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_default();
    let query = request.uri().query().unwrap_or_default();
    let reads = *request.method() == Method::GET;
    let in_part = reads && KNOWN_IN_PART.contains(&&*route) && !watches(query);
    if !in_part && !KNOWN_TO_THE_LEADER.contains(&&*route) {
        return next.run(request).await;
    }
    if request.headers().contains_key(ACTOR_HEADER) {
        // Whoever passed this on takes this server for the leader.
        return answer::problem(
            Problem::new(Code::HostUnreachable, "the leader has just changed").hint("try again"),
        );
    }
    let actor = request.extensions().get::<Actor>().cloned().unwrap_or(Actor::Anonymous);
    // What this server has shown already must not be undone by an answer from an older view.
    let at_least = match query.contains("at_least=") {
        true => String::new(),
        false => {
            format!("{}at_least={}", if query.is_empty() { "" } else { "&" }, app.state.snapshot().revision)
        }
    };
    let target = format!("{}?{query}{at_least}", request.uri().path());
    let (method, media) = (request.method().clone(), request.headers().get(header::CONTENT_TYPE).cloned());
    if in_part {
        return match app.peers.relay(&actor, method, &target, media, Vec::new()).await {
            Ok(answer) if !answer.status().is_server_error() => answer,
            Ok(_) | Err(_) => next.run(request).await,
        };
    }
    let body = match answer::body(request.into_body()).await {
        Ok(body) => body,
        Err(problem) => return answer::problem(problem),
    };
    let relayed: Result<Response, NoLeader> = app.peers.relay(&actor, method, &target, media, body).await;
    relayed.unwrap_or_else(|error| answer::problem(error.into()))
}

fn watches(query: &str) -> bool {
    query.split('&').any(|pair| matches!(pair, "watch" | "watch=true" | "watch=1"))
}
