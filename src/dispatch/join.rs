//! How a machine becomes a host, and how a host's certificate is renewed.

use super::{Dispatch, access};
use crate::auth::actor::{self, Actor};
use crate::state::encode_new;
use crate::store::keys::Key;
use crate::store::{Outcome, Txn};
use axum::Json;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use enoki_api::error::{Code, Problem};
use enoki_api::host::HostSpec;
use enoki_api::identity::Identity;
use enoki_api::object::{Kind, Object, check_labels, check_name};
use enoki_api::protocol::{Join, Joined, Renew};
use enoki_api::token::Role;
use jiff::Timestamp;
use std::time::{Duration, SystemTime};

/// A write of this server's is seen by its own cache within this.
const CATCH_UP: Duration = Duration::from_secs(3);

pub(super) async fn join(
    Shared(dispatch): Shared<Dispatch>,
    axum::Extension(actor): axum::Extension<Actor>,
    headers: HeaderMap,
    Json(wanted): Json<Join>,
) -> Response {
    answer(
        &dispatch,
        joined(&dispatch, &actor, &headers, &wanted).await,
        &format!("join as host {}", wanted.host),
    )
}

/// The asker is known by the certificate that it still has.
pub(super) async fn renew(
    Shared(dispatch): Shared<Dispatch>,
    axum::Extension(actor): axum::Extension<Actor>,
    Json(wanted): Json<Renew>,
) -> Response {
    let signed = match &actor {
        Actor::Machine(identity @ Identity::Host { .. }) => sign(&dispatch, identity, &wanted.public_key),
        _ => Err(Problem::new(Code::Forbidden, "a certificate is for a host that has one")),
    };
    answer(&dispatch, signed.map(|joined| (actor, joined)), "renew a certificate")
}

fn answer(dispatch: &Dispatch, result: Result<(Actor, Joined), Problem>, what: &str) -> Response {
    match result {
        Ok((actor, joined)) => {
            dispatch.audit.note(&actor, what, "done");
            Json(joined).into_response()
        }
        Err(problem) => access::refuse(dispatch, &Actor::Anonymous, what, &problem),
    }
}

async fn joined(
    dispatch: &Dispatch,
    actor: &Actor,
    headers: &HeaderMap,
    wanted: &Join,
) -> Result<(Actor, Joined), Problem> {
    let actor = match actor {
        // The agent of this very machine: the socket is root's alone.
        Actor::Local { .. } => actor.clone(),
        _ => holder(dispatch, headers, Role::Host)?,
    };
    check_name("host", &wanted.host)?;
    check_labels(&wanted.labels)?;
    let taken = |uid: &enoki_api::Uid| {
        Problem::new(Code::AlreadyExists, format!("another machine is host {}", wanted.host))
            .holder(uid.to_string())
            .hint("choose another name, or delete that host first if its machine is gone for good")
    };
    let known = || dispatch.state.snapshot().hosts.get("", &wanted.host).map(|row| row.object.uid.clone());
    match known() {
        // The same machine joins again: its certificate was lost or has ended.
        Some(uid) if uid == wanted.uid => {}
        Some(uid) => return Err(taken(&uid)),
        None => {
            let mut host =
                Object::new(None, &wanted.host, wanted.labels.clone(), HostSpec::default(), Timestamp::now());
            host.kind = Kind::Host;
            host.uid = wanted.uid.clone();
            let strange = |error: crate::store::Error| Problem::invalid_field("host", error.to_string());
            let key = Key::spec("hosts", None, &wanted.host).map(String::from).map_err(strange)?;
            let txn = Txn::new().when_absent(key.clone()).put(key, encode_new(&host));
            let away = |error: crate::store::Error| Problem::new(Code::StoreUnavailable, error.to_string());
            match dispatch.store.txn(txn).await.map_err(away)? {
                Outcome::Committed { revision } => drop(dispatch.state.reached(revision, CATCH_UP).await),
                // Somebody was faster, or this server's cache is behind.
                Outcome::Conflict { revision, .. } => {
                    dispatch.state.reached(revision, CATCH_UP).await;
                    match known() {
                        Some(uid) if uid == wanted.uid => {}
                        Some(uid) => return Err(taken(&uid)),
                        None => {
                            let behind = format!("host {} was written meanwhile", wanted.host);
                            return Err(Problem::new(Code::StaleReplica, behind).hint("try again"));
                        }
                    }
                }
            }
            dispatch.events.note(&host.key(), Some(&host.uid), false, "joined", format!("with {actor}"));
        }
    }
    let identity = Identity::Host { name: wanted.host.clone(), uid: wanted.uid.clone() };
    Ok((actor, sign(dispatch, &identity, &wanted.public_key)?))
}

/// Who joins, by a token of this role.
pub(super) fn holder(dispatch: &Dispatch, headers: &HeaderMap, wanted: Role) -> Result<Actor, Problem> {
    let make_one = format!("`enoki {wanted} join-token` makes one");
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(|| {
        Problem::new(Code::Unauthenticated, "a machine joins with a token").hint(make_one.clone())
    })?;
    let actor = actor::bearer(&dispatch.state.snapshot(), &dispatch.sealer, token, Timestamp::now())?;
    match &actor {
        Actor::Bearer { role, .. } if *role == wanted => Ok(actor),
        _ => {
            Err(Problem::new(Code::Forbidden, format!("this token is not for a {wanted} to join"))
                .hint(make_one))
        }
    }
}

fn sign(dispatch: &Dispatch, identity: &Identity, public_key: &str) -> Result<Joined, Problem> {
    let strange = || Problem::invalid_field("public_key", "is not base64 of a P-256 point");
    let key = STANDARD.decode(public_key).map_err(|_| strange())?;
    let internal = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a certificate could not be made");
        Problem::new(Code::Internal, "the certificate could not be made").hint("the server's log tells more")
    };
    let now = SystemTime::now();
    let authority = dispatch.pki.authority(now).map_err(|error| internal(&error))?;
    let certificate = authority.sign(identity, &key, now).map_err(|error| match error {
        crate::auth::ca::Error::PublicKey => strange(),
        other => internal(&other),
    })?;
    let ca = std::fs::read_to_string(dispatch.pki.ca()).map_err(|error| internal(&error))?;
    Ok(Joined { certificate, ca })
}
