//! The store as a process of its own, and the store as each server has it: over the network.
//!
//! The data is [`Memory`], which one conformance suite holds to etcd's semantics. Leases run out in here. A watch is
//! brought to its server item by item, unless the network is cut or the watch is mute.

use crate::chaos::Chaos;
use crate::dice::Dice;
use crate::law::{Law, Writer};
use crate::net::Net;
use crate::node::Node;
use crate::plan::Broken;
use async_trait::async_trait;
use enoki::controller::ELECTION;
use enoki::state::{self, State};
use enoki::store::keys::{self, ROOT};
use enoki::store::memory::{Link, Memory};
use enoki::store::{
    Change, Error, KeyValue, Leadership, Listing, Outcome, Revision, Status, Store, Txn, WatchItem,
    WatchStream,
};
use futures::{FutureExt, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// The node's name.
pub const STORE: &str = "etcd";
/// Each call, as the server configures its own.
const DEADLINE: Duration = Duration::from_secs(5);
/// Without a way to the store a call fails after this.
const REFUSED: Duration = Duration::from_millis(200);
/// Longer than a lease of the leader's.
const SLOW: Duration = Duration::from_millis(3500);

type Brought = Result<WatchItem, Error>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Etcd {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    dice: Dice,
    memory: Memory,
    /// Each server's own connection.
    links: BTreeMap<String, Memory>,
    feeds: Vec<Feed>,
    /// An older listing, for a read that comes from a member left behind.
    old: Option<Listing>,
    stale_reads: u32,
    loss: Loss,
}

struct Feed {
    server: String,
    stream: WatchStream,
    out: mpsc::UnboundedSender<Brought>,
    mute: bool,
}

/// What watches do not bring: only for the control that shows that it is missed.
#[derive(Default)]
struct Loss {
    armed: bool,
    revisions: BTreeSet<Revision>,
}

impl Loss {
    fn takes(&mut self, item: &Brought) -> bool {
        let Ok(WatchItem::Changes { revision, changes }) = item else { return false };
        let spec = |change: &Change| change.key().starts_with("/enoki/v1/instances/");
        if self.armed && changes.iter().any(spec) {
            self.armed = false;
            self.revisions.insert(*revision);
        }
        self.revisions.contains(revision)
    }
}

impl Etcd {
    /// An empty store in `node`, and a true copy of it for the law.
    pub fn boot(node: &mut Node, seed: u64) -> (Self, State) {
        let stop = CancellationToken::new();
        let (hand, handed) = std::sync::mpsc::channel();
        let observed = State::new();
        let copy = observed.clone();
        node.boot(async move {
            let memory = Memory::new();
            // The receiver waits for it.
            let _ = hand.send(memory.clone());
            let _ = state::feed(copy, Arc::new(memory), stop).await;
        });
        node.turn();
        let memory = handed.try_recv().expect("the store is made in its first turn");
        let inner = Inner {
            dice: Dice::new(seed, STORE),
            memory,
            links: BTreeMap::new(),
            feeds: Vec::new(),
            old: None,
            stale_reads: 0,
            loss: Loss::default(),
        };
        (Etcd { inner: Arc::new(Mutex::new(inner)) }, observed)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place of the data: another store, as after a loss.
    pub fn replace(&self, other: Etcd) {
        let memory = other.inner().memory.clone();
        let mut inner = self.inner();
        for link in inner.links.values() {
            link.set_link(Link::Down);
        }
        inner.links.clear();
        inner.old = None;
        inner.memory = memory;
        for feed in inner.feeds.drain(..) {
            let _ = feed.out.send(Err(unavailable("the store was replaced")));
        }
    }

    fn link(&self, server: &str) -> Memory {
        let mut inner = self.inner();
        let fresh = inner.memory.client();
        inner.links.entry(server.to_owned()).or_insert(fresh).clone()
    }

    /// Elections go over this, and end with it.
    pub fn set_link(&self, server: &str, up: bool) {
        self.link(server).set_link(if up { Link::Up } else { Link::Down });
    }

    /// For who looks from outside.
    pub fn direct(&self) -> Memory {
        self.inner().memory.clone()
    }

    /// Forgets all history.
    pub fn compact(&self) {
        let memory = self.direct();
        let revision =
            memory.status().now_or_never().and_then(Result::ok).map_or(0, |status| status.revision);
        let _ = memory.compact(revision).now_or_never();
    }

    /// The server's open watches say nothing more, for ever; new ones do.
    pub fn mute(&self, server: &str) {
        for feed in self.inner().feeds.iter_mut().filter(|feed| feed.server == server) {
            feed.mute = true;
        }
    }

    /// The next listing that somebody asks for is the one that stands now.
    pub fn serve_stale(&self) {
        let listing = self.direct().list(ROOT).now_or_never().and_then(Result::ok);
        let mut inner = self.inner();
        match &inner.old {
            Some(_) => inner.stale_reads = 1,
            None => inner.old = listing,
        }
    }

    /// The next change of an instance's spec reaches no server by its watch.
    pub fn lose_change(&self) {
        self.inner().loss.armed = true;
    }

    /// Brings watches what is new; each with its own delay.
    pub fn pump(&self, net: &Net) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let mut kept = Vec::new();
        for mut feed in inner.feeds.drain(..) {
            let waits = feed.mute || net.is_cut(&feed.server, STORE) || inner.dice.chance(500);
            let mut over = feed.out.is_closed();
            while !over && !waits {
                match feed.stream.next().now_or_never() {
                    None => break,
                    Some(None) => over = true,
                    Some(Some(item)) => {
                        over = item.is_err();
                        if !inner.loss.takes(&item) {
                            let _ = feed.out.send(item);
                        }
                    }
                }
            }
            if !over {
                kept.push(feed);
            }
        }
        inner.feeds = kept;
    }
}

fn unavailable(what: &str) -> Error {
    Error::Unavailable { what: what.to_owned(), cause: None }
}

/// The store as one server has it.
#[derive(Clone)]
pub struct Remote {
    pub server: String,
    pub writer: Writer,
    pub net: Net,
    pub etcd: Etcd,
    pub law: Law,
    pub chaos: Chaos,
    pub broken: Option<Broken>,
}

impl Remote {
    /// Asks and waits for the answer. None: nobody knows what became of it.
    async fn ask<T: Send + 'static>(
        &self,
        loses: bool,
        late: Duration,
        question: impl FnOnce(&Memory) -> (T, bool) + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        if !loses {
            let (net, etcd, server) = (self.net.clone(), self.etcd.clone(), self.server.clone());
            self.net.post(&self.server, STORE, late, move || {
                let (value, heard) = question(&etcd.link(&server));
                if heard {
                    // The server may be gone by then.
                    net.post(STORE, &server, Duration::ZERO, move || drop(answer.send(value)));
                }
            });
        }
        let waited = async {
            match answered.await {
                Ok(value) => value,
                // Lost: nobody says so.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::time::timeout(DEADLINE, waited).await.ok()
    }

    async fn reachable(&self) -> Result<(), Error> {
        if self.net.is_cut(&self.server, STORE) {
            tokio::time::sleep(REFUSED).await;
            return Err(unavailable("there is no way to it"));
        }
        Ok(())
    }

    async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Memory) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.reachable().await?;
        let answer = self.ask(false, Duration::ZERO, move |memory| (question(memory), true)).await;
        answer.unwrap_or_else(|| Err(unavailable("it did not answer in time")))
    }
}

/// The memory answers at once, or its connection is not what it should be.
fn at_once<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    answer.now_or_never().unwrap_or_else(|| Err(unavailable("it hangs")))
}

#[async_trait]
impl Store for Remote {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error> {
        let key = key.to_owned();
        self.read(move |memory| at_once(memory.get(&key))).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        let (prefix, etcd) = (prefix.to_owned(), self.etcd.clone());
        self.read(move |memory| {
            let mut inner = etcd.inner();
            if inner.stale_reads > 0
                && let Some(old) = inner.old.take()
            {
                inner.stale_reads = 0;
                return Ok(old);
            }
            drop(inner);
            at_once(memory.list(&prefix))
        })
        .await
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, Error> {
        txn.validate()?;
        let leads = self.writer == Writer::Controller;
        if leads && self.chaos.strikes(|rates| rates.kill_before_commit) {
            self.law.note(&self.server, "dies before it writes");
            self.chaos.die(&self.server).await;
        }
        self.reachable().await?;
        let loses = self.chaos.strikes(|rates| rates.lose_request);
        let unheard = self.chaos.strikes(|rates| rates.lose_answer);
        let dies = leads && self.chaos.strikes(|rates| rates.kill_after_commit);
        let late = if self.chaos.strikes(|rates| rates.slow_request) { SLOW } else { Duration::ZERO };
        let this = self.clone();
        let answer = self
            .ask(loses, late, move |memory| {
                let mut sent = txn.clone();
                if this.broken == Some(Broken::NoFence) {
                    let election = keys::election(ELECTION).unwrap_or_default();
                    sent.compares.retain(|compare| compare.key() != election);
                }
                let leader = election(memory);
                let outcome = at_once(memory.txn(sent));
                this.law.decided(&this.server, this.writer, &txn, leader, &outcome);
                if dies && matches!(outcome, Ok(Outcome::Committed { .. })) {
                    this.law.note(&this.server, "dies before it hears");
                    this.chaos.doom(&this.server);
                }
                (outcome, !unheard)
            })
            .await;
        let unknown = || Error::OutcomeUnknown { what: "it did not answer in time".to_owned(), cause: None };
        answer.unwrap_or_else(|| Err(unknown()))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        let (prefix, etcd, server) = (prefix.to_owned(), self.etcd.clone(), self.server.clone());
        let brought = self
            .read(move |memory| {
                let stream = at_once(memory.watch(&prefix, after))?;
                let (out, brought) = mpsc::unbounded_channel();
                etcd.inner().feeds.push(Feed { server, stream, out, mute: false });
                Ok(brought)
            })
            .await?;
        let items = futures::stream::unfold(brought, |mut brought| async move {
            brought.recv().await.map(|item| (item, brought))
        });
        Ok(items.boxed())
    }

    async fn campaign(&self, name: &str, value: &[u8]) -> Result<Leadership, Error> {
        self.etcd.link(&self.server).campaign(name, value).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.read(move |memory| at_once(memory.compact(revision))).await
    }

    async fn reclaim(&self) -> Result<(), Error> {
        self.read(|memory| at_once(memory.reclaim())).await
    }

    async fn status(&self) -> Result<Status, Error> {
        self.read(|memory| at_once(memory.status())).await
    }
}

/// The election's key as it stands: its create_revision is the fence of who leads.
fn election(memory: &Memory) -> Option<Revision> {
    let key = keys::election(ELECTION).ok()?;
    Some(at_once(memory.get(&key)).ok()?.0?.create_revision)
}
