//! Orphans: what runs (or lies) on a host and no object names. Listed, and taken back by one command.

use super::App;
use super::answer::{self, Answer};
use super::commit::{Step, commit};
use super::query::Params;
use crate::admission::network::{guarded, overlapping};
use crate::admission::segment::claimed;
use crate::admission::{key, quota};
use crate::state::{Snapshot, encode_new};
use crate::store::Txn;
use crate::store::keys::Key;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use enoki_api::decode;
use enoki_api::error::Problem;
use enoki_api::instance::AddressClaim;
use enoki_api::list::List;
use enoki_api::object::{Object, Uid};
use enoki_api::project::ProjectSpec;
use enoki_api::protocol::{Order, Orphan};
use enoki_api::volume::{VolumeKind, VolumeStatus};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/hosts/{name}/orphans", get(list))
        .route("/v1/hosts/{name}/orphans/adopt", post(adopt))
}

fn orphans(app: &App, host: &str) -> Result<Vec<Orphan>, Problem> {
    match app.live.orphans_of(host) {
        Some(orphans) => Ok(orphans),
        None if app.state.snapshot().hosts.get("", host).is_some() => Ok(Vec::new()),
        None => Err(Problem::not_found(format!("host {host}"))),
    }
}

/// Orphans without what is secret in their orders.
async fn list(State(app): State<App>, Path(host): Path<String>, params: Params) -> Answer {
    params.done()?;
    let mut items = orphans(&app, &host)?;
    for order in items.iter_mut().filter_map(|orphan| orphan.order.as_mut()) {
        order.env.clear();
    }
    Ok(answer::json(
        StatusCode::OK,
        &List { items, revision: app.state.snapshot().revision, continue_: None, undecodable: Vec::new() },
    ))
}

#[derive(Default, Deserialize)]
struct Adopt {
    /// None: all of the host's.
    #[serde(default)]
    uids: Option<Vec<Uid>>,
}

async fn adopt(State(app): State<App>, Path(host): Path<String>, params: Params, body: Body) -> Answer {
    params.done()?;
    let body = answer::body(body).await?;
    let wanted: Adopt = if body.is_empty() { Adopt::default() } else { decode::strict(&body)? };
    let (mut adopted, mut refused): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for orphan in orphans(&app, &host)? {
        if wanted.uids.as_ref().is_some_and(|uids| !uids.contains(&orphan.uid)) {
            continue;
        }
        let name = format!("{}/{}", orphan.project, orphan.name);
        match take_back(&app, &host, &orphan).await {
            Ok(()) => adopted.push(json!({"name": name, "uid": orphan.uid})),
            Err(problem) => {
                refused.push(json!({"name": name, "uid": orphan.uid, "reason": problem.to_string()}))
            }
        }
    }
    Ok(answer::json(StatusCode::OK, &json!({"adopted": adopted, "refused": refused})))
}

/// Writes back what the host's record says, in one transaction: with the same uid, host, epoch and addresses.
async fn take_back(app: &App, host: &str, orphan: &Orphan) -> Result<(), Problem> {
    let order = orphan.order.as_ref().ok_or_else(|| {
        Problem::invalid_field("uids", "the host has no record of it, only a container")
            .hint("copy its data out, then remove it with docker")
    })?;
    let at = (orphan.project.clone(), orphan.name.clone());
    commit(app, &at, |snapshot| Ok(Step::<(), ()>::Write(restored(snapshot, host, order)?, ()))).await?;
    let instance = &order.instance;
    app.events.note(&instance.key(), Some(&instance.uid), false, "adopted", format!("from host {host}"));
    Ok(())
}

/// PURE: the transaction that brings an order's instance back, with the project, networks and volumes it needs.
fn restored(snapshot: &Snapshot, host: &str, order: &Order) -> Result<Txn, Problem> {
    let instance = &order.instance;
    let project = instance.project.clone().unwrap_or_default();
    let name = instance.name.as_str();
    if let Some(row) = snapshot.instances.get(&project, name) {
        return Err(Problem::invalid_field("name", format!("another instance has the name {name}"))
            .holder(row.object.uid.to_string()));
    }
    let mut txn = quota::counted(snapshot, &project, Txn::new())?;
    if snapshot.projects.get("", &project).is_none() {
        let object =
            Object::new(None, &project, Default::default(), ProjectSpec::default(), Timestamp::now());
        let key = key(Key::spec("projects", None, &project))?;
        txn = txn.when_absent(key.clone()).put(key, encode_new(&object));
    }
    for network in order.networks.values() {
        match snapshot.networks.get(&project, &network.name) {
            Some(row) if row.object.uid == network.uid => {}
            Some(row) => {
                let detail = format!(
                    "network {} is {} now, the orphan has {}",
                    network.name, row.object.spec.cidr, network.spec.cidr
                );
                return Err(Problem::invalid_field("networks", detail));
            }
            None => {
                if let Some(other) = overlapping(snapshot, &network.spec.cidr) {
                    let detail =
                        format!("{} of network {} overlaps {}", network.spec.cidr, network.name, other.key());
                    return Err(Problem::invalid_field("networks", detail));
                }
                let key = key(Key::spec("networks", Some(&project), &network.name))?;
                txn = claimed(snapshot, network, guarded(snapshot, txn)?)?;
                txn = txn.when_absent(key.clone()).put(key, encode_new(network));
            }
        }
    }
    for volume in order.volumes.values() {
        let spec = key(Key::spec("volumes", Some(&project), &volume.name))?;
        match snapshot.volumes.get(&project, &volume.name) {
            Some(row) if row.object.uid == volume.uid => {}
            Some(_) => {
                return Err(Problem::invalid_field(
                    "volumes",
                    format!("another volume has the name {}", volume.name),
                ));
            }
            None => {
                txn = txn.when_absent(spec.clone()).put(spec, encode_new(volume));
                if volume.spec.kind == VolumeKind::Local {
                    let status = VolumeStatus { host: Some(host.to_owned()), used_by: Vec::new() };
                    txn = txn
                        .put(key(Key::status("volumes", Some(&project), &volume.name))?, json_of(&status)?);
                }
            }
        }
    }
    for nic in order.assignment.nics.values() {
        let at = key(Key::address(&project, &nic.network, nic.address.into()))?;
        let claim = AddressClaim {
            instance: format!("{project}/{name}"),
            uid: instance.uid.clone(),
            mac: nic.mac,
            since: Timestamp::now(),
            held_until: None,
        };
        let held = snapshot.addresses.get(&(project.clone(), nic.network.clone(), nic.address.into()));
        txn = match held {
            None => txn.when_absent(at.clone()),
            Some(entry) if entry.0.held_until.is_some() || entry.0.uid == instance.uid => {
                txn.when_unchanged(at.clone(), entry.1)
            }
            Some(entry) => {
                return Err(Problem::invalid_field("nics", format!("{} is taken", nic.address))
                    .holder(entry.0.instance.clone()));
            }
        };
        txn = txn.put(at, json_of(&claim)?);
    }
    let spec = key(Key::spec("instances", Some(&project), name))?;
    let assignment = key(Key::assignment(&project, name))?;
    let mut bound = order.assignment.clone();
    bound.host = host.to_owned();
    let mut alive = instance.clone();
    alive.deleted_at = None;
    txn = txn.when_absent(spec.clone()).put(spec, encode_new(&alive));
    Ok(txn.when_absent(assignment.clone()).put(assignment, json_of(&bound)?))
}

fn json_of<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(|error| Problem::new(enoki_api::Code::Internal, error.to_string()))
}
