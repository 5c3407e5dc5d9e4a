//! Waiting for what a write asked for. The write stands either way.

use super::App;
use super::answer::{self, Answer};
use super::objects::{Managed, presented};
use super::query::Wait;
use crate::state::At;
use axum::http::StatusCode;
use enoki_api::error::Problem;
use enoki_api::object::{Object, Uid};
use tokio::time::timeout;

/// Waits until the object's phase is the target (or it is gone, for `deleted`): the good status then, else 202.
pub async fn until<K: Managed>(app: &App, at: &At, uid: &Uid, done: StatusCode, wait: Wait) -> Answer {
    let snapshot = app.state.snapshot();
    let mut last: Option<Object<K>> =
        presented(app, &snapshot, at).filter(|object: &Object<K>| object.uid == *uid);
    let gone = wait.target == "deleted";
    if !gone && last.as_ref().is_some_and(|object| K::phase(object).is_none()) {
        return Err(Problem::invalid_field(
            "wait",
            format!("a {} has no phase to wait for; `deleted` goes", K::KIND),
        )
        .into());
    }
    let mut cursor = app.state.follow(snapshot.revision);
    let reached = async {
        loop {
            match &last {
                None => return gone,
                Some(object) if !gone && K::phase(object).as_ref() == Some(&wait.target) => return true,
                Some(object) if !gone && K::settled(object) => return false,
                Some(_) => {}
            }
            if cursor.next().await.is_err() {
                cursor = app.state.follow(app.state.snapshot().revision);
            }
            let now =
                presented(app, &app.state.snapshot(), at).filter(|object: &Object<K>| object.uid == *uid);
            match now {
                Some(now) => last = Some(now),
                None => return gone,
            }
        }
    };
    let reached = timeout(wait.limit, reached).await.unwrap_or(false);
    let status = match (reached, gone) {
        (true, true) => StatusCode::OK,
        (true, false) => done,
        (false, _) => StatusCode::ACCEPTED,
    };
    match last {
        Some(object) => Ok(answer::object(status, &object)),
        None => Err(Problem::not_found(format!("{} {}", K::KIND, at.1)).into()),
    }
}
