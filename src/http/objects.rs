//! What every kind of object shares: its routes, and create, read, replace, patch and delete over one trait.

use super::answer::{self, Answer};
use super::commit::{Done, Step, commit};
use super::edit::{self, Edit};
use super::query::{Params, Wait, if_match};
use super::{App, list, wait, watch};
use crate::admission::{Deletion, complete, known_project, made, missing, removed, unchanged, vacant};
use crate::auth::actor::Actor;
use crate::scheduler::Verdict;
use crate::state::{At, Row, Snapshot, Table};
use crate::store::Txn;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{MethodRouter, get};
use axum::{Extension, Router};
use enoki_api::decode;
use enoki_api::error::{Code, Problem};
use enoki_api::merge::merge_patch;
use enoki_api::object::{Draft, Object, Spec, Uid, check_labels, check_name};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::HashMap;

/// A kind that the API serves. The hooks add to a transaction what their kind needs beside its own key, and refuse
/// what must not be; they see a snapshot that is as old as the last change, so whatever must be unique has a key of
/// its own in the transaction.
pub trait Managed: Spec {
    /// Whether users may make such an object themselves.
    const MADE_BY_USERS: bool = true;
    /// Whether users may change one.
    const CHANGED_BY_USERS: bool = true;

    fn table(snapshot: &Snapshot) -> &Table<Self>;

    fn check_name(name: &str) -> Result<(), Problem> {
        check_name("name", name)
    }

    /// A name for one that was sent without. None: it needs one.
    fn name_one() -> Option<String> {
        None
    }

    /// The object that it stands below in its address: a job's cluster.
    fn parent(_spec: &Self) -> Option<&str> {
        None
    }

    /// Takes from the address what is above it there.
    fn put_below(_spec: &mut Self, _parent: &str) {}

    /// What is to be found out elsewhere than in the snapshot before one is made.
    fn ask(_app: &App, _project: &str, _spec: &mut Self) -> impl Future<Output = Result<(), Problem>> + Send {
        async { Ok(()) }
    }

    /// Fills in what is computed on reading.
    fn present(app: &App, snapshot: &Snapshot, object: &mut Object<Self>);

    fn create(
        _app: &App,
        _snapshot: &Snapshot,
        _object: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        Ok(txn)
    }

    fn update(
        _app: &App,
        _snapshot: &Snapshot,
        _old: &Row<Self>,
        _new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        Ok(txn)
    }

    fn delete(app: &App, snapshot: &Snapshot, row: &Row<Self>, txn: Txn) -> Result<(Txn, Deletion), Problem>;

    /// Deletes without the host that would have to confirm it: all keys but the spec's go, tombstones stay open. None:
    /// no host has to. Refused while the host answers.
    fn force(_app: &App, _snapshot: &Snapshot, _row: &Row<Self>, _txn: Txn) -> Result<Option<Txn>, Problem> {
        Err(Problem::invalid_field("force", format!("a {} is not deleted by force", Self::KIND))
            .hint("instances and volumes on a lost host are"))
    }

    /// What the maker is told of a new object and nobody ever again, in place of the usual answer.
    fn told_once(_made: &Object<Self>) -> Option<Object<Self>> {
        None
    }

    /// The field that only admins may set so, if this spec does (in place of `old`).
    fn for_admins(_old: Option<&Self>, _new: &Self) -> Option<&'static str> {
        None
    }

    /// Whether this object is shown in a list to one who may see the list.
    fn visible(_object: &Object<Self>, _actor: &Actor) -> bool {
        true
    }

    /// After the transaction: what only this server keeps (files).
    fn deleted(_app: &App, _object: &Object<Self>) {}

    /// Where it could go, and why not elsewhere.
    fn explain(_app: &App, _snapshot: &Snapshot, _object: &Object<Self>) -> Vec<Verdict> {
        Vec::new()
    }

    /// Its phase, for those who wait. None: this kind has none.
    fn phase(_object: &Object<Self>) -> Option<String> {
        None
    }

    /// Whether its phase is its last: nothing else is worth waiting for.
    fn settled(_object: &Object<Self>) -> bool {
        false
    }
}

/// A place from a request's path.
pub type Place = Path<HashMap<String, String>>;

pub fn place<K: Spec>(path: &HashMap<String, String>) -> At {
    let part = |key: &str| path.get(key).cloned().unwrap_or_default();
    (if K::KIND.in_project() { part("project") } else { String::new() }, part("name"))
}

/// Whether an object stands where the address says, beside its name.
pub fn below<K: Managed>(spec: &K, path: &HashMap<String, String>) -> bool {
    path.get(PARENT).is_none_or(|asked| K::parent(spec) == Some(asked))
}

/// The part of an address that names what its objects stand below.
pub const PARENT: &str = "cluster";

/// The address of a kind's list.
pub fn base<K: Spec>() -> String {
    let plural = K::KIND.plural();
    if K::KIND.in_project() { format!("/v1/projects/{{project}}/{plural}") } else { format!("/v1/{plural}") }
}

pub fn routes<K: Managed>() -> Router<App> {
    routes_at::<K>(&base::<K>())
}

/// The routes of a kind at another address than its own: below [`PARENT`].
pub fn routes_at<K: Managed>(base: &str) -> Router<App> {
    let mut all: MethodRouter<App> = get(all::<K>);
    let mut one: MethodRouter<App> = get(read::<K>).delete(delete::<K>);
    if K::MADE_BY_USERS {
        all = all.post(create::<K>);
    }
    if K::CHANGED_BY_USERS {
        one = one.patch(patch::<K>).put(replace::<K>);
    }
    Router::new().route(base, all).route(&format!("{base}/{{name}}"), one)
}

async fn all<K: Managed>(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    mut params: Params,
) -> Answer {
    let (project, _) = place::<K>(&path);
    known_project::<K>(&app.state.snapshot(), &project)?;
    if params.flag("watch")? {
        return watch::stream::<K>(app, path.0, actor, &headers, params).await;
    }
    list::page::<K>(&app, &path, &actor, params)
}

/// An object as users see it.
pub fn presented<K: Managed>(app: &App, snapshot: &Snapshot, at: &At) -> Option<Object<K>> {
    let mut object = K::table(snapshot).at(at)?.object.clone();
    K::present(app, snapshot, &mut object);
    Some(object)
}

async fn read<K: Managed>(State(app): State<App>, path: Place, params: Params) -> Answer {
    params.done()?;
    let at = place::<K>(&path);
    let snapshot = app.state.snapshot();
    let object = presented::<K>(&app, &snapshot, &at).filter(|object| below(&object.spec, &path));
    let object = object.ok_or_else(|| missing::<K>(&snapshot, &at))?;
    Ok(answer::object(StatusCode::OK, &object))
}

/// What a write does besides writing.
pub struct Options {
    pub actor: Actor,
    pub dry_run: bool,
    pub wait: Option<Wait>,
}

impl Options {
    pub fn take(actor: Actor, mut params: Params) -> Result<Self, Problem> {
        let options = Options { actor, dry_run: params.flag("dry_run")?, wait: params.wait()? };
        params.done()?;
        Ok(options)
    }

    /// Refuses what only an admin may set in a spec of this kind.
    pub fn may_set<K: Managed>(&self, old: Option<&K>, new: &K) -> Result<(), Problem> {
        match K::for_admins(old, new) {
            Some(field) if !self.actor.is_admin() => {
                Err(Problem::new(Code::Forbidden, format!("{field} set so is for admins")).field(field))
            }
            _ => Ok(()),
        }
    }
}

/// A draft, checked against where it was sent to.
fn draft<K: Managed>(body: &[u8], project: &str, name: Option<&str>) -> Result<(String, Draft<K>), Problem> {
    let draft: Draft<K> = decode::strict(body)?;
    let differs = |field: &str, given: &Option<String>, expected: &str| match given {
        Some(given) if given != expected => {
            Err(Problem::invalid_field(field, format!("`{given}` was sent to the address of `{expected}`")))
        }
        _ => Ok(()),
    };
    differs("kind", &draft.kind, K::KIND.singular())?;
    if K::KIND.in_project() {
        differs("project", &draft.project, project)?;
    }
    if let Some(name) = name {
        differs("name", &draft.name, name)?;
    }
    let name = name.map(str::to_owned).or_else(|| draft.name.clone()).or_else(K::name_one);
    let name = name.ok_or_else(|| Problem::invalid_field("name", "an object needs a name"))?;
    K::check_name(&name)?;
    if let Some(labels) = &draft.labels {
        check_labels(labels)?;
    }
    Ok((name, draft))
}

async fn create<K: Managed>(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
    body: Body,
) -> Answer {
    let options = Options::take(actor, params)?;
    let (project, _) = place::<K>(&path);
    let (name, mut draft) = draft::<K>(&answer::body(body).await?, &project, None)?;
    if let Some(parent) = path.get(PARENT) {
        K::put_below(&mut draft.spec, parent);
    }
    make(&app, (project, name), draft, &headers, options).await
}

/// Makes a new object. A retry with the same idempotency key finds what the first try made.
async fn make<K: Managed>(
    app: &App,
    at: At,
    draft: Draft<K>,
    headers: &HeaderMap,
    options: Options,
) -> Answer {
    let mut spec = draft.spec;
    complete(&mut spec, &at.1)?;
    options.may_set::<K>(None, &spec)?;
    K::ask(app, &at.0, &mut spec).await?;
    let project = Some(at.0.as_str()).filter(|project| !project.is_empty());
    let mut wanted = Object::new(project, &at.1, draft.labels.unwrap_or_default(), spec, Timestamp::now());
    let retry_of = headers.get("idempotency-key").map(|key| idempotent_uid(key.as_bytes(), &at));
    if let Some(uid) = &retry_of {
        wanted.uid = uid.clone();
    }
    let planned = commit(app, &at, |snapshot| {
        let mut object = wanted.clone();
        if let Some(row) = K::table(snapshot).at(&at).filter(|row| retry_of.as_ref() == Some(&row.object.uid))
        {
            return Ok(Step::Nothing(Ok(row.object.uid.clone())));
        }
        let txn = K::create(app, snapshot, &mut object, vacant(snapshot, K::table(snapshot), &wanted)?)?;
        if options.dry_run {
            return Ok(Step::Nothing(Err(plan(app, snapshot, object))));
        }
        Ok(Step::Write(made(&object, txn)?, object))
    })
    .await?;
    let uid = match planned {
        Done::Nothing(Err(plan)) => return Ok(plan),
        Done::Nothing(Ok(uid)) => uid,
        Done::Written(object) => {
            let message = format!("generation {}", object.generation);
            app.events.note(&object.key(), Some(&object.uid), false, "created", message);
            if let Some(mut told) = K::told_once(&object) {
                told.revision = K::table(&app.state.snapshot()).at(&at).map_or(0, |row| row.object.revision);
                return Ok(answer::object(StatusCode::CREATED, &told));
            }
            object.uid
        }
    };
    finish::<K>(app, &at, &uid, StatusCode::CREATED, options.wait).await
}

/// The same key on the same place is the same object.
fn idempotent_uid(key: &[u8], at: &At) -> Uid {
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let base =
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, format!("{}/{}", at.0, at.1).as_bytes()).to_string();
    Uid::parse(&base).map_or_else(Uid::random, |base| base.derive(&key))
}

/// The answer to `?dry_run=true`.
pub fn plan<K: Managed>(app: &App, snapshot: &Snapshot, mut object: Object<K>) -> Response {
    let hosts = K::explain(app, snapshot, &object);
    K::present(app, snapshot, &mut object);
    answer::json(StatusCode::OK, &json!({"plan": object, "hosts": hosts}))
}

/// The answer to a write: the object as it is now, or as it is when what was waited for has come.
pub async fn finish<K: Managed>(
    app: &App,
    at: &At,
    uid: &Uid,
    done: StatusCode,
    wait: Option<Wait>,
) -> Answer {
    if let Some(wait) = wait {
        return wait::until::<K>(app, at, uid, done, wait).await;
    }
    let snapshot = app.state.snapshot();
    let object = presented::<K>(app, &snapshot, at).ok_or_else(|| missing::<K>(&snapshot, at))?;
    Ok(answer::object(done, &object))
}

async fn replace<K: Managed>(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
    body: Body,
) -> Answer {
    let options = Options::take(actor, params)?;
    let at = place::<K>(&path);
    let (_, draft) = draft::<K>(&answer::body(body).await?, &at.0, Some(&at.1))?;
    let expected = if_match(&headers)?;
    let exists = K::table(&app.state.snapshot()).at(&at).is_some();
    if !exists && expected.is_none() && K::MADE_BY_USERS {
        return make(&app, at, draft, &headers, options).await;
    }
    let change = |old: &Object<K>| {
        let mut new = old.clone();
        new.spec = draft.spec.clone();
        if let Some(labels) = &draft.labels {
            new.labels = labels.clone();
        }
        complete(&mut new.spec, &old.name)?;
        Ok(new)
    };
    edit::run(&app, at, Edit { expected, options, done: StatusCode::OK }, change).await
}

async fn patch<K: Managed>(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
    body: Body,
) -> Answer {
    let options = Options::take(actor, params)?;
    let at = place::<K>(&path);
    let body = answer::body(body).await?;
    let patch: Value = serde_json::from_slice(&body)
        .map_err(|error| Problem::new(Code::MalformedBody, format!("the body is not JSON: {error}")))?;
    if !patch.is_object() {
        return Err(Problem::new(Code::MalformedBody, "a merge-patch is a JSON object").into());
    }
    // Checked alone first, so that a fault is told by the patch's own path and an unknown field is not lost in the merge.
    let change = |old: &Object<K>| {
        let mut merged = serde_json::to_value(old).unwrap_or_default();
        merge_patch(&mut merged, &patch);
        let draft: Draft<K> = decode::strict_value(merged)?;
        if draft.name.as_deref() != Some(&old.name)
            || draft.kind.as_deref() != Some(K::KIND.singular())
            || draft.project != old.project
        {
            return Err(Problem::new(Code::ImmutableField, "kind, project and name stay").field("name"));
        }
        let mut new = old.clone();
        new.spec = draft.spec;
        new.labels = draft.labels.unwrap_or_default();
        check_labels(&new.labels)?;
        complete(&mut new.spec, &old.name)?;
        Ok(new)
    };
    let expected = if_match(&headers)?;
    edit::run(&app, at, Edit { expected, options, done: StatusCode::OK }, change).await
}

async fn delete<K: Managed>(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    mut params: Params,
) -> Answer {
    let force = params.flag("force")?;
    let options = Options::take(actor, params)?;
    let at = place::<K>(&path);
    let expected = if_match(&headers)?;
    let planned = commit(&app, &at, |snapshot| {
        let row = K::table(snapshot).at(&at).filter(|row| below(&row.object.spec, &path));
        let row = row.ok_or_else(|| missing::<K>(snapshot, &at))?;
        edit::expect(row, expected)?;
        edit::refuse_owned(snapshot, row)?;
        let object = &row.object;
        let txn = unchanged(row)?;
        let forced = if force { K::force(&app, snapshot, row, txn.clone())? } else { None };
        let by_force = forced.is_some();
        let gone = match forced {
            Some(txn) => (txn, Deletion::Done),
            None if object.deleted_at.is_some() => return Ok(Step::Nothing(Ok(object.uid.clone()))),
            None => K::delete(&app, snapshot, row, txn)?,
        };
        let (txn, marked) = removed(row, gone)?;
        if options.dry_run {
            return Ok(Step::Nothing(Err(plan(&app, snapshot, marked))));
        }
        Ok(Step::Write(txn, (marked, by_force)))
    })
    .await?;
    let (marked, by_force) = match planned {
        Done::Nothing(Err(plan)) => return Ok(plan),
        Done::Nothing(Ok(uid)) => {
            return finish::<K>(&app, &at, &uid, StatusCode::ACCEPTED, options.wait).await;
        }
        Done::Written(written) => written,
    };
    let how =
        if by_force { "by force: its host does not answer, and removes it when it is back" } else { "" };
    app.events.note(&marked.key(), Some(&marked.uid), by_force, "deleting", how);
    K::deleted(&app, &marked);
    let still_there = K::table(&app.state.snapshot()).at(&at).is_some_and(|now| now.object.uid == marked.uid);
    match options.wait {
        wait if still_there => finish::<K>(&app, &at, &marked.uid, StatusCode::ACCEPTED, wait).await,
        // Gone at once: what was waited for has come.
        Some(_) => Ok(answer::object(StatusCode::OK, &marked)),
        None => Ok(answer::object(StatusCode::ACCEPTED, &marked)),
    }
}
