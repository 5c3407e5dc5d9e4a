//! What a watch of the API has told so far, each change with the time at which it came: nothing is asked for over and over
//! while a clock runs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use enoki_api::Kind;
use enoki_api::client::{ChangeKind, Client};
use serde_json::Value;
use tokio::sync::watch::{Receiver, channel};
use tokio::task::AbortHandle;

/// Longer than anything that is waited for takes.
const DEADLINE: Duration = Duration::from_secs(180);

/// One change.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Seconds since 1970, as the jobs tell theirs.
    pub at: f64,
    pub gone: bool,
    pub object: Value,
}

impl Seen {
    pub fn name(&self) -> &str {
        self.object["name"].as_str().unwrap_or_default()
    }
}

/// All changes of the objects of one kind from when it was opened.
pub struct Timeline {
    kind: Kind,
    seen: Receiver<Vec<Seen>>,
    task: AbortHandle,
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Timeline {
    /// Open, and past what there is already.
    pub async fn of(client: &Client, kind: Kind) -> Result<Self> {
        let mut watch = client.watch(kind, None, None, DEADLINE);
        while watch.next().await?.kind != ChangeKind::Bookmark {}
        let (sender, seen) = channel(Vec::new());
        let task = tokio::spawn(async move {
            // An error ends it, and with it the wait of whoever waits.
            while let Ok(change) = watch.next().await {
                let (at, gone) = (now(), change.kind == ChangeKind::Delete);
                if change.kind != ChangeKind::Bookmark {
                    sender.send_modify(|all: &mut Vec<Seen>| {
                        all.push(Seen { at, gone, object: change.object })
                    });
                }
            }
        });
        Ok(Timeline { kind, seen, task: task.abort_handle() })
    }

    /// Waits until something is found in what was told. `what` is for the message when it is not.
    pub async fn until<T>(&mut self, what: &str, mut found: impl FnMut(&[Seen]) -> Option<T>) -> Result<T> {
        let mut hit = None;
        let wait = self.seen.wait_for(|all| {
            hit = found(all);
            hit.is_some()
        });
        let ended = match tokio::time::timeout(DEADLINE, wait).await {
            Ok(Ok(_)) => None,
            Ok(Err(_)) => Some("the watch broke off".to_owned()),
            Err(_) => Some(format!("not within {} s", DEADLINE.as_secs())),
        };
        let last = self.seen.borrow().last().map(|seen| seen.object["status"].to_string());
        let kind = self.kind;
        hit.ok_or_else(|| {
            let ended = ended.unwrap_or_default();
            anyhow!("{what}: {ended}; last status of a {kind}: {}", last.unwrap_or_else(|| "none".to_owned()))
        })
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
