//! The servers of the cloud: those that others reach. A server adds itself; one whose machine is gone is removed here.

use super::App;
use super::answer::{self, Answer};
use super::commit::{Step, commit};
use super::query::Params;
use crate::admission::key;
use crate::config::etcd_name;
use crate::state::Snapshot;
use crate::store::keys::Key;
use crate::store::{Error, Txn, members};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use enoki_api::error::{Code, Problem};
use enoki_api::list::List;
use serde::Serialize;
use utoipa::ToSchema;

pub fn routes() -> Router<App> {
    Router::new().route("/v1/servers", get(list)).route("/v1/servers/{name}", delete(remove))
}

/// A server of the control plane.
#[derive(Serialize, ToSchema)]
pub struct Server {
    pub name: String,
    /// Where others reach it: `https://HOST:PORT`.
    pub address: Option<String>,
    pub leader: bool,
    /// Whether its machine has a member of etcd: one with a vote, or one that learns and gets a vote when that makes the
    /// number of voters odd. Null: none, or etcd does not tell just now.
    pub etcd: Option<Membership>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Membership {
    Voter,
    Learner,
}

async fn list(State(app): State<App>, params: Params) -> Answer {
    params.done()?;
    let members = match app.store.cluster() {
        Some(cluster) => cluster.members().await.unwrap_or_default(),
        None => Vec::new(),
    };
    let etcd = |name: &str| {
        let name = etcd_name(name);
        let member = members.iter().find(|member| member.name == name)?;
        Some(if member.learner { Membership::Learner } else { Membership::Voter })
    };
    let snapshot = app.state.snapshot();
    let leads = |name: &str| snapshot.leader.as_ref().is_some_and(|leader| leader.name == name);
    let server = |name: &str, address: &Option<String>| Server {
        name: name.to_owned(),
        address: address.clone(),
        leader: leads(name),
        etcd: etcd(name),
    };
    let mut items: Vec<Server> =
        snapshot.servers.iter().map(|(name, known)| server(name, &known.address)).collect();
    // One that nobody else reaches has no line of its own in the store.
    if let Some(leader) = &snapshot.leader
        && !snapshot.servers.contains_key(&leader.name)
    {
        items.push(server(&leader.name, &leader.address));
    }
    let list = List { items, revision: snapshot.revision, continue_: None, undecodable: Vec::new() };
    Ok(answer::json(StatusCode::OK, &list))
}

async fn remove(State(app): State<App>, Path(name): Path<String>, mut params: Params) -> Answer {
    let dry_run = params.flag("dry_run")?;
    params.done()?;
    let at = (String::new(), name.clone());
    let removable = |snapshot: &Snapshot| {
        if !snapshot.servers.contains_key(&name) {
            return Err(Problem::not_found(format!("server {name}")));
        }
        if snapshot.leader.as_ref().is_some_and(|leader| leader.name == name) {
            return Err(Problem::new(Code::InUse, format!("server {name} leads")).hint("stop it first"));
        }
        Ok(())
    };
    removable(&app.state.snapshot())?;
    // Before its line goes, so that what failed can be asked for again.
    if !dry_run && let Some(cluster) = app.store.cluster() {
        members::dismiss(cluster, &etcd_name(&name)).await.map_err(not_dismissed)?;
    }
    commit(&app, &at, |snapshot| {
        removable(snapshot)?;
        match dry_run {
            true => Ok(Step::Nothing(())),
            false => Ok(Step::Write(Txn::new().delete(key(Key::server(&name))?), ())),
        }
    })
    .await?;
    Ok(answer::json(StatusCode::OK, &serde_json::json!({"name": name})))
}

/// etcd does not let go of a member where too few of the others would be left to agree on anything.
fn not_dismissed(error: Error) -> Problem {
    Problem::new(Code::StoreUnavailable, format!("its member of etcd could not be taken out: {error}"))
        .hint("most of the other members must be well: `enoki server list` shows them")
}
