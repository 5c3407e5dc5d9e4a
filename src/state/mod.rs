//! Everything the store holds, in memory: immutable snapshots with indexes, built from one watch.
//!
//! - A [`Snapshot`] never changes; taking one costs a pointer. Maps share structure, so the last few thousand of
//!   them stay around for watchers that resume.
//! - [`State`] is the handle: the newest snapshot, a bounded wait for a revision (read-your-writes), and the
//!   [`Cursor`] with which watchers, sessions and controllers follow every change.
//! - Revisions never go back. When the store is away the last snapshot stays and says how old it is.

mod follow;
mod release;
mod snapshot;
mod table;

pub use follow::feed;
pub use release::{HOLD_DOWN, release};
pub use snapshot::{ClusterRecord, Placed, PoolRecord, Server, Snapshot, SqueezedPool, Written};
pub use table::{At, Row, Table, encode_new};

use crate::store::Revision;
use crate::store::keys::Key;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Changes kept for those who resume, at most. A watcher that is further behind lists again.
const HISTORY: usize = 8192;
/// Of these, the ones that are kept however old they are;
const HISTORY_LEAST: usize = 512;
/// the others go at this age. A burst of changes would else stay in memory, with every snapshot that it made, until as
/// many more have come.
const HISTORY_AGE: Duration = Duration::from_secs(60);

/// The store is asked once a second; an answer this late means that it is away.
const FRESH: Duration = Duration::from_secs(3);

/// One revision's changes, and the snapshots before and after it.
#[derive(Clone)]
pub struct Batch {
    pub revision: Revision,
    pub keys: Arc<[Key]>,
    pub before: Arc<Snapshot>,
    pub after: Arc<Snapshot>,
}

/// The handle: cheap to clone.
#[derive(Clone)]
pub struct State {
    shared: Arc<Shared>,
}

struct Shared {
    newest: watch::Sender<Arc<Snapshot>>,
    /// When the snapshot was last known to be complete.
    fresh: Mutex<Instant>,
    /// With the time of each.
    history: RwLock<VecDeque<(Instant, Batch)>>,
}

/// A cursor that fell further behind than the history reaches: list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes since revision {from} are no longer kept")]
pub struct Compacted {
    pub from: Revision,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// An empty state that nothing feeds yet: [`feed`] does.
    pub fn new() -> Self {
        State {
            shared: Arc::new(Shared {
                newest: watch::Sender::new(Arc::new(Snapshot::default())),
                fresh: Mutex::new(Instant::now()),
                history: RwLock::default(),
            }),
        }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.newest.borrow().clone()
    }

    /// Whether a first whole listing has been read.
    pub fn is_loaded(&self) -> bool {
        self.snapshot().loaded
    }

    /// How old the snapshot is, once that is more than the store's liveness check explains. None: it is fresh.
    pub fn stale_for(&self) -> Option<Duration> {
        let fresh = *self.shared.fresh.lock().unwrap_or_else(|poison| poison.into_inner());
        Some(fresh.elapsed()).filter(|age| *age > FRESH)
    }

    /// Waits until the snapshot has reached `revision`. False: not within `limit`.
    pub async fn reached(&self, revision: Revision, limit: Duration) -> bool {
        let mut newest = self.shared.newest.subscribe();
        let reached = newest.wait_for(|snapshot| snapshot.loaded && snapshot.revision >= revision);
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }

    /// Follows all changes after `from`.
    pub fn follow(&self, from: Revision) -> Cursor {
        Cursor { state: self.clone(), newest: self.shared.newest.subscribe(), at: from }
    }

    /// Makes `after` the newest snapshot, as the one writer [`feed`] and tests do.
    fn publish(&self, keys: Vec<Key>, after: Snapshot) {
        let before = self.snapshot();
        debug_assert!(after.revision >= before.revision, "a revision never goes back");
        let after = Arc::new(after);
        {
            let mut history = self.shared.history.write().unwrap_or_else(|poison| poison.into_inner());
            let batch = Batch { revision: after.revision, keys: keys.into(), before, after: after.clone() };
            history.push_back((Instant::now(), batch));
        }
        self.forget_old(Instant::now());
        self.shared.newest.send_replace(after);
    }

    /// The first listing: nobody has seen anything before it.
    fn begin(&self, first: Snapshot) {
        self.shared.newest.send_replace(Arc::new(first));
    }

    /// Lets go of the history that is kept for nobody.
    fn forget_old(&self, now: Instant) {
        let mut history = self.shared.history.write().unwrap_or_else(|poison| poison.into_inner());
        let many = history.len().saturating_sub(HISTORY);
        let old = history.partition_point(|(at, _)| now.saturating_duration_since(*at) > HISTORY_AGE);
        let gone = many.max(old.min(history.len().saturating_sub(HISTORY_LEAST)));
        let gone: Vec<_> = history.drain(..gone).collect();
        history.shrink_to(HISTORY_LEAST);
        // Readers do not wait for the memory of thousands of snapshots to be given back.
        drop(history);
        drop(gone);
    }

    /// The feed's word once a second, whether anything changes or not.
    fn set_fresh(&self, as_of: Instant) {
        self.forget_old(Instant::now());
        *self.shared.fresh.lock().unwrap_or_else(|poison| poison.into_inner()) = as_of;
    }
}

/// A position in the stream of changes. Cancel-safe: a dropped `next` loses nothing.
pub struct Cursor {
    state: State,
    newest: watch::Receiver<Arc<Snapshot>>,
    at: Revision,
}

impl Cursor {
    /// The revision up to which everything was delivered.
    pub fn at(&self) -> Revision {
        self.at
    }

    /// The next changes, oldest first; waits for some. `Err`: too far behind, list again.
    pub async fn next(&mut self) -> Result<Vec<Batch>, Compacted> {
        loop {
            self.newest.borrow_and_update();
            let batches = self.pending()?;
            if let Some(last) = batches.last() {
                self.at = last.revision;
                return Ok(batches);
            }
            if self.newest.changed().await.is_err() {
                // The state is gone: the server is shutting down.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the history still reaches back to here.
    pub fn check(&self) -> Result<(), Compacted> {
        self.pending().map(drop)
    }

    fn pending(&self) -> Result<Vec<Batch>, Compacted> {
        let history = self.state.shared.history.read().unwrap_or_else(|poison| poison.into_inner());
        let compacted = Err(Compacted { from: self.at });
        match history.front() {
            // Nothing was recorded at all: only a cursor at the newest revision has missed nothing.
            None => {
                return if self.at >= self.state.snapshot().revision { Ok(Vec::new()) } else { compacted };
            }
            Some((_, oldest)) if self.at < oldest.before.revision => return compacted,
            Some(_) => {}
        }
        let first = history.partition_point(|(_, batch)| batch.revision <= self.at);
        Ok(history.range(first..).map(|(_, batch)| batch.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(revision: Revision) -> Snapshot {
        Snapshot { revision, loaded: true, ..Snapshot::default() }
    }

    #[tokio::test]
    async fn a_cursor_sees_every_change_once() {
        let state = State::new();
        state.publish(Vec::new(), at(5));
        let mut cursor = state.follow(5);
        state.publish(Vec::new(), at(6));
        state.publish(Vec::new(), at(8));
        let seen: Vec<_> = cursor.next().await.unwrap().iter().map(|batch| batch.revision).collect();
        assert_eq!(seen, [6, 8]);
        let again = tokio::time::timeout(Duration::from_millis(20), cursor.next()).await;
        assert!(again.is_err(), "nothing new, nothing delivered");
    }

    #[tokio::test]
    async fn who_is_too_far_behind_is_told() {
        let state = State::new();
        state.publish(Vec::new(), at(5));
        for revision in 6..6 + HISTORY as u64 + 10 {
            state.publish(Vec::new(), at(revision));
        }
        assert!(state.follow(5).next().await.is_err());
        assert!(state.follow(6 + HISTORY as u64).next().await.is_ok());
    }

    #[tokio::test]
    async fn history_goes_with_age_down_to_what_is_always_kept() {
        let state = State::new();
        let last = HISTORY_LEAST as u64 + 100;
        for revision in 1..=last {
            state.publish(Vec::new(), at(revision));
        }
        state.set_fresh(Instant::now());
        assert!(state.follow(0).next().await.is_ok(), "all of it is young");
        state.forget_old(Instant::now() + HISTORY_AGE + Duration::from_secs(1));
        assert!(state.follow(99).next().await.is_err());
        let kept = state.follow(100).next().await.unwrap();
        assert_eq!((kept.len(), kept[0].revision), (HISTORY_LEAST, 101));
    }

    #[tokio::test]
    async fn waiting_for_a_revision_is_bounded() {
        let state = State::new();
        assert!(!state.reached(1, Duration::from_millis(10)).await);
        state.publish(Vec::new(), at(3));
        assert!(state.reached(3, Duration::from_millis(10)).await);
        assert!(!state.reached(4, Duration::from_millis(10)).await);
    }
}
