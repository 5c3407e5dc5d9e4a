//! Which member of etcd is talked to: the first in the list as long as it serves, the next one when it does not.
//!
//! Calls are not spread. The first member is the one on the server's own machine, and a list is there for the time when it
//! cannot serve: while it only learns, or is away. The client's own balancing would send every other call to whom it knows
//! to be dead.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, GetOptions, KvClient};
use tokio::time::{Instant, timeout};

use super::{MAX_ANSWER_BYTES, keys};

/// How long after leaving the first member it is asked whether it serves again, and between two such questions. It is the
/// one that does not go away without its server, so the sooner the better.
const BACK_AFTER: Duration = Duration::from_secs(1);
const ASK: Duration = Duration::from_secs(2);

/// The members in the order of preference, at least one. Cheap to clone.
#[derive(Clone)]
pub(super) struct Ways(Arc<Inner>);

struct Inner {
    members: Vec<(Client, KvClient)>,
    now: AtomicUsize,
    /// When the first one is worth another question.
    ask_at: Mutex<Instant>,
    asking: AtomicBool,
}

impl Ways {
    pub fn new(members: Vec<Client>) -> Ways {
        let with_kv = |client: Client| {
            let kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            (client, kv)
        };
        Ways(Arc::new(Inner {
            members: members.into_iter().map(with_kv).collect(),
            now: AtomicUsize::new(0),
            ask_at: Mutex::new(Instant::now()),
            asking: AtomicBool::new(false),
        }))
    }

    /// The number of the member to talk to now.
    pub fn now(&self) -> usize {
        let now = self.0.now.load(Ordering::Relaxed);
        if now != 0 && Instant::now() >= self.ask_at() && !self.0.asking.swap(true, Ordering::Relaxed) {
            let ways = self.clone();
            tokio::spawn(async move { ways.ask_first().await });
        }
        now
    }

    pub fn client(&self) -> &Client {
        &self.0.members[self.now()].0
    }

    pub fn kv(&self) -> KvClient {
        self.0.members[self.now()].1.clone()
    }

    /// The member that comes first, whether or not it serves.
    pub fn first(&self) -> &Client {
        &self.0.members[0].0
    }

    /// This member did not serve: the next one is talked to from here on, unless somebody has moved on already.
    pub fn leave(&self, member: usize) {
        let next = (member + 1) % self.0.members.len();
        let moved = self.0.now.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if moved && next != member {
            *self.0.ask_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + BACK_AFTER;
            tracing::info!(member = next, "another member of etcd is asked from here on");
        }
    }

    /// This member did not answer in time. That may have been its cluster, which elects and forgets what it was asked
    /// meanwhile: it is left only if it does not serve now either.
    pub fn doubt(&self, member: usize) {
        if self.0.members.len() > 1 {
            let ways = self.clone();
            tokio::spawn(async move {
                if !ways.serves(member).await {
                    ways.leave(member);
                }
            });
        }
    }

    /// A reading that needs the whole cluster's consent: a member that learns, or is cut off, refuses it.
    async fn serves(&self, member: usize) -> bool {
        let mut kv = self.0.members[member].1.clone();
        let read = kv.get(keys::ROOT, Some(GetOptions::new().with_count_only()));
        matches!(timeout(ASK, read).await, Ok(Ok(_)))
    }

    async fn ask_first(&self) {
        if self.serves(0).await {
            self.0.now.store(0, Ordering::Relaxed);
            tracing::info!("the first member of etcd serves again");
        }
        *self.0.ask_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + BACK_AFTER;
        self.0.asking.store(false, Ordering::Relaxed);
    }

    fn ask_at(&self) -> Instant {
        *self.0.ask_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
