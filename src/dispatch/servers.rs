//! What this server answers to other servers: as the leader it reaches the agents for them, and keeps the log of events for all.

use super::{Dispatch, access, broker, join};
use crate::auth::actor::Actor;
use crate::config::{etcd_name, etcd_peer_url};
use crate::peers::join::{Join, Joined};
use crate::peers::{EVENTS_PATH, FILES_PATH, IMAGES_PATH, JOIN_PATH, Noted, OPEN_PATH, Open};
use crate::registry::files;
use crate::registry::pull::{self, Wanted};
use crate::state::Snapshot;
use crate::store::members::{self, Admission, Cluster, Refused};
use axum::extract::{DefaultBodyLimit, Path, Request, State as Shared};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use enoki_api::error::{Code, Problem};
use enoki_api::identity::Identity;
use enoki_api::object::check_name;
use enoki_api::protocol::FromServer;
use enoki_api::token::Role;
use std::net::IpAddr;

/// The largest body: a batch of events.
const BODY_MAX: usize = 1 << 20;

pub fn router(dispatch: &Dispatch) -> Router<Dispatch> {
    Router::new()
        .route(OPEN_PATH, post(open))
        .route(EVENTS_PATH, post(events))
        .route(&format!("{IMAGES_PATH}/{{image}}/{{part}}/{{digest}}"), get(part))
        .route(&format!("{FILES_PATH}/{{project}}/{{digest}}"), get(file))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(axum::middleware::from_fn_with_state(dispatch.clone(), only_servers))
        // Who joins has no certificate yet, and shows a token instead.
        .route(JOIN_PATH, post(enlist).layer(DefaultBodyLimit::max(BODY_MAX)))
}

/// PURE: whether this is a server of the cloud.
pub fn is_server(snapshot: &Snapshot, identity: &Identity) -> bool {
    matches!(identity, Identity::Server(name) if snapshot.servers.contains_key(name))
}

async fn only_servers(Shared(dispatch): Shared<Dispatch>, request: Request, next: Next) -> Response {
    let actor = access::actor(&request);
    match &actor {
        Actor::Machine(identity) if is_server(&dispatch.state.snapshot(), identity) => {
            next.run(request).await
        }
        _ => {
            let problem = Problem::new(Code::Forbidden, "this is for the servers of this cloud");
            access::refuse(&dispatch, &actor, request.uri().path(), &problem)
        }
    }
}

async fn enlist(
    Shared(dispatch): Shared<Dispatch>,
    headers: HeaderMap,
    Json(wanted): Json<Join>,
) -> Response {
    let what = format!("join as server {}", wanted.name);
    let handed = async {
        let actor = join::holder(&dispatch, &headers, Role::Server)?;
        Ok((actor, hand_over(&dispatch, &wanted).await?))
    };
    match handed.await {
        Ok((actor, joined)) => {
            dispatch.audit.note(&actor, &what, "done");
            Json(joined).into_response()
        }
        Err(problem) => access::refuse(&dispatch, &Actor::Anonymous, &what, &problem),
    }
}

async fn hand_over(dispatch: &Dispatch, wanted: &Join) -> Result<Joined, Problem> {
    check_name("name", &wanted.name)?;
    if dispatch.state.snapshot().servers.contains_key(&wanted.name) {
        return Err(Problem::new(Code::AlreadyExists, format!("there is a server {}", wanted.name))
            .hint("join with another `--name`; or, where its machine is gone for good, `enoki server remove` it first"));
    }
    let config = &dispatch.config;
    let mut etcd = config.etcd_elsewhere();
    if etcd.is_empty() {
        let problem =
            Problem::new(Code::NotRunning, format!("etcd listens for server {} alone", config.name));
        return Err(problem.hint(
            "on its machine, set `listen` of `[etcd]` in /etc/enoki/server.toml to an address of it, and run `enoki up`",
        ));
    }
    let internal = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "what servers share could not be read");
        Problem::new(Code::Internal, "what servers share could not be read")
            .hint("the server's log tells more")
    };
    let authorities = dispatch.pki.authorities().map_err(|error| internal(&error))?;
    let seal_key = std::fs::read_to_string(&config.key_file).map_err(|error| internal(&error))?;
    // Last: what is in etcd from here on is for the new machine to start.
    let mut etcd_cluster = None;
    if let (Some(address), true, Some(cluster)) =
        (wanted.etcd, config.runs_own_etcd(), dispatch.store.cluster())
        && let Some(admission) = admit(cluster, &wanted.name, address).await?
    {
        etcd = admission.clients;
        etcd_cluster = Some(admission.initial_cluster);
    }
    Ok(Joined {
        authorities,
        seal_key,
        etcd,
        etcd_cluster,
        pool: config.pool,
        cpu_overcommit: config.cpu_overcommit,
    })
}

/// A member of etcd for the server that joins. None: there are enough.
async fn admit(cluster: &dyn Cluster, name: &str, address: IpAddr) -> Result<Option<Admission>, Problem> {
    let admitted = members::admit(cluster, &etcd_name(name), &etcd_peer_url(address)).await;
    admitted.map_err(|refused| match &refused {
        Refused::Taken { .. } => Problem::new(Code::AlreadyExists, refused.to_string())
            .hint("where that machine is gone for good, `enoki server remove` it first"),
        Refused::Joining { id, .. } => Problem::new(Code::InUse, refused.to_string()).hint(format!(
            "run `enoki up` there, or join there again; where that machine is gone for good: etcdctl member remove {id:x}"
        )),
        Refused::Store(error) => {
            Problem::new(Code::StoreUnavailable, format!("etcd takes no new member now: {error}"))
                .hint("all of its members must be well and have caught up; `enoki server list` shows them. Try again in some seconds")
        }
    })
}

async fn open(Shared(dispatch): Shared<Dispatch>, Json(wanted): Json<Open>) -> Response {
    let Open { host, stream, server, request } = wanted;
    let words = FromServer::Open { stream, request, server: Some(server) };
    match broker::tell(&dispatch.live, &host, words).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => {
            let problem = Problem::new(Code::HostUnreachable, error.to_string());
            let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            (status, Json(problem)).into_response()
        }
    }
}

/// A part of an image that a host of the other server needs: that one has looked whether it does.
async fn part(
    Shared(dispatch): Shared<Dispatch>,
    Path((image, part, digest)): Path<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    match Wanted::parse(&image, &part, &digest) {
        Some(wanted) => dispatch.registry.serve(&wanted, &method, &headers).await,
        None => pull::refuse(&Problem::not_found("this part of an image"), "NAME_INVALID"),
    }
}

/// A file that a host of the other server needs, or that a user of it names: that one has looked whether they may.
async fn file(
    Shared(dispatch): Shared<Dispatch>,
    Path((project, digest)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    match files::Wanted::parse(&project, &digest) {
        Some(wanted) => dispatch.registry.serve_file(&wanted, &method, &headers).await,
        None => files::refuse(&Problem::not_found("this file")),
    }
}

async fn events(Shared(dispatch): Shared<Dispatch>, Json(noted): Json<Noted>) -> StatusCode {
    for event in noted {
        dispatch.events.take_in(event);
    }
    StatusCode::NO_CONTENT
}
