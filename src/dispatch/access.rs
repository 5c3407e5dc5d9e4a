//! Who may take the agents' routes, and as which host: the local socket as any (it is root's), over TLS only the host that
//! the certificate names, as long as the cloud knows that host under that uid. To delete a host is to revoke it.

use super::Dispatch;
use crate::auth::actor::Actor;
use crate::listen::Peer;
use crate::state::Snapshot;
use axum::extract::{ConnectInfo, Request, State as Shared};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use enoki_api::error::{Code, Problem};
use enoki_api::identity::Identity;
use enoki_api::object::Uid;
use enoki_api::protocol::JOIN_PATH;

/// Puts the [`Actor`] among the request's extensions, or refuses and audits.
pub async fn layer(Shared(dispatch): Shared<Dispatch>, mut request: Request, next: Next) -> Response {
    let actor = actor(&request);
    let path = request.uri().path();
    // Who joins has no certificate yet, and shows a token instead.
    if path != JOIN_PATH
        && let Err(problem) = known(&dispatch.state.snapshot(), &actor)
    {
        return refuse(&dispatch, &actor, path, &problem);
    }
    request.extensions_mut().insert(actor);
    next.run(request).await
}

/// Who is at the other end: by the socket, or by a certificate.
pub fn actor(request: &Request) -> Actor {
    match request.extensions().get::<ConnectInfo<Peer>>().map(|info| info.0.clone()) {
        Some(Peer::Local { uid, pid }) => Actor::Local { uid, pid },
        Some(Peer::Remote { identity: Some(identity), .. }) => Actor::Machine(identity),
        Some(Peer::Remote { identity: None, .. }) | None => Actor::Anonymous,
    }
}

/// PURE: whether this is a host of the cloud.
pub fn known(snapshot: &Snapshot, actor: &Actor) -> Result<(), Problem> {
    match actor {
        Actor::Local { .. } => Ok(()),
        Actor::Machine(Identity::Host { name, uid }) => match snapshot.hosts.get("", name) {
            Some(row) if row.object.uid == *uid => Ok(()),
            Some(_) => Err(Problem::new(Code::Forbidden, format!("another machine is host {name} now"))),
            None => {
                Err(Problem::new(Code::Forbidden, format!("host {name} is not (any more) one of this cloud"))
                    .hint("let it join again: `enoki agent join`"))
            }
        },
        Actor::Machine(Identity::Server(_)) | Actor::Bearer { .. } => {
            Err(Problem::new(Code::Forbidden, "this is for hosts"))
        }
        Actor::Anonymous => Err(Problem::new(Code::Unauthenticated, "a host shows its certificate")),
    }
}

/// Whether `actor` may speak for this host; `uid` where it is told.
pub fn speaks_for(actor: &Actor, host: &str, uid: Option<&Uid>) -> bool {
    match actor {
        Actor::Local { .. } => true,
        Actor::Machine(Identity::Host { name, uid: own }) => name == host && uid.is_none_or(|uid| uid == own),
        Actor::Machine(Identity::Server(_)) | Actor::Bearer { .. } | Actor::Anonymous => false,
    }
}

pub fn refuse(dispatch: &Dispatch, actor: &Actor, what: &str, problem: &Problem) -> Response {
    dispatch.audit.note(actor, what, &problem.to_string());
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, axum::Json(problem)).into_response()
}
