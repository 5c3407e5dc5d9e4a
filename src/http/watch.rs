//! Watching a kind: server-sent events `put`, `delete` and `bookmark`, each with the store's revision as its id.

use super::App;
use super::answer::Answer;
use super::objects::{Managed, below, place};
use super::query::Params;
use crate::auth::actor::Actor;
use crate::state::{At, Batch, Cursor, Snapshot};
use crate::store::keys::Key;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event, Sse};
use enoki_api::error::{Code, Problem};
use enoki_api::list::Selector;
use enoki_api::object::Object;
use futures::stream;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

/// A quiet watch says where it is this often; it is also how a dead client is noticed.
const BOOKMARK: Duration = Duration::from_secs(10);

struct Watch {
    app: App,
    /// Of the request: which objects are meant.
    path: HashMap<String, String>,
    actor: Actor,
    selector: Selector,
    cursor: Cursor,
    queue: VecDeque<Event>,
}

/// From `from` (or `Last-Event-ID`) on; without either, first every object there is, then a bookmark, then changes.
pub async fn stream<K: Managed>(
    app: App,
    path: HashMap<String, String>,
    actor: Actor,
    headers: &HeaderMap,
    mut params: Params,
) -> Answer {
    let selector = params.selector()?;
    let resume = match params.number("from")? {
        Some(from) => Some(from),
        None => headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok()),
    };
    params.done()?;
    let snapshot = app.state.snapshot();
    let from = resume.unwrap_or(snapshot.revision);
    if from > snapshot.revision && !app.state.reached(from, super::answer::CATCH_UP).await {
        let detail = format!("this server is at revision {}, not yet at {from}", snapshot.revision);
        return Err(Problem::new(Code::StaleReplica, detail).into());
    }
    let mut watch =
        Watch { cursor: app.state.follow(from), app, path, actor, selector, queue: VecDeque::new() };
    if resume.is_none() {
        watch.whole::<K>(&snapshot);
    } else if let Err(compacted) = watch.cursor.check() {
        return Err(Problem::new(Code::RevisionCompacted, compacted.to_string())
            .hint("list again and watch from there")
            .into());
    }
    let events = stream::unfold(watch, |mut watch| async move {
        let event = watch.next::<K>().await?;
        Some((Ok::<_, Infallible>(event), watch))
    });
    Ok(Sse::new(events).into_response())
}

impl Watch {
    fn shows<K: Managed>(&self, object: &Object<K>) -> bool {
        self.selector.matches(&object.labels)
            && K::visible(object, &self.actor)
            && below(&object.spec, &self.path)
    }

    fn whole<K: Managed>(&mut self, snapshot: &Snapshot) {
        let project = Some(place::<K>(&self.path).0).filter(|_| K::KIND.in_project());
        let rows = K::table(snapshot).of(project.as_deref()).filter(|row| self.shows(&row.object));
        let events = rows.filter_map(|row| put::<K>(&self.app, snapshot, &row.at(), row.object.revision));
        let events: Vec<_> = events.collect();
        self.queue.extend(events);
        self.queue.push_back(bookmark(snapshot.revision));
    }

    /// The next event. None: the watcher is too far behind; it resumes and is told to list again.
    async fn next<K: Managed>(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            match tokio::time::timeout(BOOKMARK, self.cursor.next()).await {
                Err(_) => return Some(bookmark(self.cursor.at())),
                Ok(Err(_)) => return None,
                Ok(Ok(batches)) => batches.iter().for_each(|batch| self.take::<K>(batch)),
            }
        }
    }

    fn take<K: Managed>(&mut self, batch: &Batch) {
        let mut seen = BTreeSet::new();
        let (project, _) = place::<K>(&self.path);
        for at in batch.keys.iter().filter_map(|key| concerned::<K>(key)) {
            if (K::KIND.in_project() && at.0 != project) || !seen.insert(at.clone()) {
                continue;
            }
            let matching = |snapshot: &Snapshot| {
                K::table(snapshot).at(&at).filter(|row| self.shows(&row.object)).cloned()
            };
            match (matching(&batch.before), matching(&batch.after)) {
                (before, Some(after)) => {
                    // Another object of the same name: the old one is gone.
                    if let Some(before) = before.filter(|before| before.object.uid != after.object.uid) {
                        self.queue.push_back(gone::<K>(&before.object.uid.to_string(), &at, batch.revision));
                    }
                    self.queue.extend(put::<K>(&self.app, &batch.after, &at, batch.revision));
                }
                (Some(before), None) => {
                    self.queue.push_back(gone::<K>(&before.object.uid.to_string(), &at, batch.revision));
                }
                (None, None) => {}
            }
        }
    }
}

/// The object that a key's change shows on.
fn concerned<K: Managed>(key: &Key) -> Option<At> {
    match key {
        Key::Spec(object) | Key::Status(object) if object.kind == K::KIND.plural() => {
            Some((object.project.clone().unwrap_or_default(), object.name.clone()))
        }
        _ => None,
    }
}

fn put<K: Managed>(app: &App, snapshot: &Snapshot, at: &At, revision: u64) -> Option<Event> {
    let object = super::objects::presented::<K>(app, snapshot, at)?;
    let value = serde_json::to_value(&object).ok()?;
    Some(event("put", revision, &value))
}

fn gone<K: Managed>(uid: &str, at: &At, revision: u64) -> Event {
    let project = Some(&at.0).filter(|project| !project.is_empty());
    event("delete", revision, &json!({"kind": K::KIND, "project": project, "name": at.1, "uid": uid}))
}

fn bookmark(revision: u64) -> Event {
    event("bookmark", revision, &json!({"revision": revision}))
}

fn event(name: &str, revision: u64, data: &Value) -> Event {
    Event::default().event(name).id(revision.to_string()).data(data.to_string())
}
