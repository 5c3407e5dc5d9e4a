//! The store in memory: the same semantics as etcd for tests and simulations, and faults on demand.
//!
//! [`Memory::client`] gives another handle on the same data with faults of its own, as another server has its own
//! connection to etcd. Nothing is durable. Leases run out in the runtime that the store was made in, as etcd's do
//! whatever becomes of the process that asked for them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::election::{self, Ballot, Claim, LEASE, Leadership, Lease, Renewal};
use super::{
    Change, Compare, Error, KeyValue, Listing, Op, Outcome, Revision, Status, Store, Txn, WatchItem,
    WatchStream,
};

/// How the connection of one handle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Up,
    /// Calls fail, watches break, leases run out.
    Down,
    /// Calls work, watches stay open and say nothing: a half-open connection.
    Mute,
}

/// What happens to the next transaction of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Applied, but the answer is lost.
    AppliedUnknown,
    /// Lost on the way, which the caller can't tell from the other.
    LostUnknown,
    /// Refused before it was sent.
    Unavailable,
    /// The store is at its quota.
    Full,
}

/// A handle on a store in memory.
#[derive(Clone)]
pub struct Memory {
    core: Arc<Mutex<Core>>,
    /// The revision, told to all watches.
    advanced: watch::Sender<Revision>,
    link: Arc<watch::Sender<Link>>,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    /// Where leases run out.
    home: Handle,
}

#[derive(Default)]
struct Core {
    revision: Revision,
    /// History before this revision is gone.
    compacted: Revision,
    live: BTreeMap<String, KeyValue>,
    history: VecDeque<(Revision, Vec<Change>)>,
    leases: HashMap<i64, Held>,
    last_lease: i64,
}

struct Held {
    expires: Instant,
    keys: Vec<String>,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

impl Memory {
    /// An empty store at revision 1, where etcd begins too.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new() -> Memory {
        let core = Core { revision: 1, ..Core::default() };
        Memory {
            advanced: watch::Sender::new(core.revision),
            core: Arc::new(Mutex::new(core)),
            link: Arc::new(watch::Sender::new(Link::Up)),
            faults: Arc::default(),
            home: Handle::current(),
        }
    }

    /// Another handle on the same data, with a connection of its own.
    pub fn client(&self) -> Memory {
        Memory { link: Arc::new(watch::Sender::new(Link::Up)), faults: Arc::default(), ..self.clone() }
    }

    /// Cuts or heals the connection of this handle and its clones.
    pub fn set_link(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// Adds a fault for a coming transaction of this handle; each is used once, in order.
    pub fn inject(&self, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push_back(fault);
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_link(&self) -> Result<(), Error> {
        match *self.link.borrow() {
            Link::Up | Link::Mute => Ok(()),
            Link::Down => Err(Error::unavailable("the connection is cut")),
        }
    }

    fn commit(&self, txn: &Txn, lease: Option<i64>) -> Outcome {
        let mut core = self.core();
        let outcome = core.apply(txn, lease);
        let revision = core.revision;
        drop(core);
        self.advanced.send_replace(revision);
        outcome
    }

    fn end_lease(core: &Mutex<Core>, advanced: &watch::Sender<Revision>, lease: i64) -> bool {
        let mut core = core.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = core.leases.remove(&lease) else {
            return false;
        };
        let ops = held.keys.into_iter().map(|key| Op::Delete { key }).collect();
        core.write(ops);
        let revision = core.revision;
        drop(core);
        advanced.send_replace(revision);
        true
    }
}

impl Core {
    fn apply(&mut self, txn: &Txn, lease: Option<i64>) -> Outcome {
        let holds = |compare: &Compare| compare.holds(self.live.get(compare.key()));
        if !txn.compares.iter().all(holds) {
            let read = |compare: &Compare| {
                let key = compare.key().to_string();
                let now = self.live.get(&key).cloned();
                (key, now)
            };
            return Outcome::Conflict {
                current: txn.compares.iter().map(read).collect(),
                revision: self.revision,
            };
        }
        self.write(txn.ops.clone());
        if let Some(held) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            held.keys.extend(txn.ops.iter().map(|op| op.key().to_string()));
        }
        Outcome::Committed { revision: self.revision }
    }

    /// Applies all writes at one new revision, if they change anything.
    fn write(&mut self, ops: Vec<Op>) {
        let revision = self.revision + 1;
        let mut changes = Vec::new();
        for op in ops {
            for held in self.leases.values_mut() {
                held.keys.retain(|key| key != op.key());
            }
            match op {
                Op::Put { key, value } => {
                    let create_revision = self.live.get(&key).map_or(revision, |old| old.create_revision);
                    let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision: revision };
                    self.live.insert(key, kv.clone());
                    changes.push(Change::Put(kv));
                }
                Op::Delete { key } => {
                    if self.live.remove(&key).is_some() {
                        changes.push(Change::Delete { key });
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.revision = revision;
            self.history.push_back((revision, changes));
        }
    }

    /// The changes below `prefix` after `after`, one item a revision, and the revision up to which that is all.
    fn since(&self, prefix: &str, after: Revision) -> Result<(Vec<WatchItem>, Revision), Error> {
        if after + 1 < self.compacted {
            return Err(Error::Compacted { asked: after });
        }
        let first = self.history.partition_point(|(at, _)| *at <= after);
        let items = self
            .history
            .range(first..)
            .filter_map(|(revision, changes)| {
                let changes: Vec<Change> =
                    changes.iter().filter(|change| change.key().starts_with(prefix)).cloned().collect();
                (!changes.is_empty()).then_some(WatchItem::Changes { revision: *revision, changes })
            })
            .collect();
        Ok((items, self.revision))
    }
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error> {
        self.check_link()?;
        let core = self.core();
        Ok((core.live.get(key).cloned(), core.revision))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        if prefix.is_empty() {
            return Err(Error::Invalid("a listing without a prefix".into()));
        }
        self.check_link()?;
        let core = self.core();
        let items = core
            .live
            .range(prefix.to_string()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, kv)| kv.clone())
            .collect();
        Ok(Listing { items, revision: core.revision })
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, Error> {
        txn.validate()?;
        self.check_link()?;
        let fault = self.faults.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match fault {
            None => Ok(self.commit(&txn, None)),
            Some(Fault::AppliedUnknown) => {
                let _lost = self.commit(&txn, None);
                Err(Error::unknown("the answer was lost"))
            }
            Some(Fault::LostUnknown) => Err(Error::unknown("the answer was lost")),
            Some(Fault::Unavailable) => Err(Error::unavailable("refused before it was sent")),
            Some(Fault::Full) => Err(Error::Full),
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        if prefix.is_empty() {
            return Err(Error::Invalid("a watch without a prefix".into()));
        }
        self.check_link()?;
        let now = self.core().revision;
        if now < after {
            return Err(Error::WentBack { seen: after, now });
        }
        let watching = Watching {
            core: self.core.clone(),
            advanced: self.advanced.subscribe(),
            link: self.link.subscribe(),
            prefix: prefix.to_string(),
            after,
            ready: VecDeque::new(),
            over: false,
        };
        Ok(stream::unfold(watching, |mut watching| async move {
            let item = watching.next().await?;
            watching.over = item.is_err();
            Some((item, watching))
        })
        .boxed())
    }

    async fn campaign(&self, name: &str, value: &[u8]) -> Result<Leadership, Error> {
        election::campaign(self.clone(), name, value).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.check_link()?;
        let mut core = self.core();
        if revision > core.revision {
            return Err(Error::Invalid(format!(
                "compaction at revision {revision}, the store is at {}",
                core.revision
            )));
        }
        core.compacted = core.compacted.max(revision);
        let keep_from = core.compacted;
        let gone = core.history.partition_point(|(at, _)| *at < keep_from);
        core.history.drain(..gone);
        Ok(())
    }

    async fn reclaim(&self) -> Result<(), Error> {
        let revision = self.core().revision;
        self.compact(revision).await
    }

    async fn status(&self) -> Result<Status, Error> {
        self.check_link()?;
        let core = self.core();
        let used = core.live.iter().map(|(key, kv)| key.len() + kv.value.len());
        let used_bytes = used.sum::<usize>() as u64;
        Ok(Status {
            revision: core.revision,
            version: "memory".into(),
            size_bytes: used_bytes,
            used_bytes,
            full: false,
        })
    }
}

/// One watch: where it is, and what wakes it.
struct Watching {
    core: Arc<Mutex<Core>>,
    advanced: watch::Receiver<Revision>,
    link: watch::Receiver<Link>,
    prefix: String,
    after: Revision,
    ready: VecDeque<WatchItem>,
    over: bool,
}

impl Watching {
    async fn next(&mut self) -> Option<Result<WatchItem, Error>> {
        if self.over {
            return None;
        }
        loop {
            let link = *self.link.borrow_and_update();
            self.advanced.borrow_and_update();
            match link {
                Link::Down => return Some(Err(Error::unavailable("the connection is cut"))),
                Link::Mute => {}
                Link::Up => {
                    if let Some(item) = self.ready.pop_front() {
                        return Some(Ok(item));
                    }
                    let since = self
                        .core
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .since(&self.prefix, self.after);
                    match since {
                        Ok((items, upto)) => {
                            self.after = upto;
                            self.ready = items.into();
                        }
                        Err(error) => return Some(Err(error)),
                    }
                    if !self.ready.is_empty() {
                        continue;
                    }
                }
            }
            // Cancel-safe: both only wait for a newer value, which is read again above.
            tokio::select! {
                changed = self.advanced.changed() => changed.ok()?,
                changed = self.link.changed() => changed.ok()?,
            }
        }
    }
}

#[async_trait]
impl Ballot for Memory {
    async fn grant(&self) -> Result<Lease, Error> {
        self.check_link()?;
        let mut core = self.core();
        core.last_lease += 1;
        let id = core.last_lease;
        let expires = Instant::now() + LEASE;
        core.leases.insert(id, Held { expires, keys: Vec::new() });
        drop(core);
        self.home.spawn(expire(Arc::downgrade(&self.core), self.advanced.clone(), id, expires));
        Ok(Lease { id, ttl: LEASE })
    }

    async fn renew(&self, lease: i64) -> Result<Renewal, Error> {
        self.check_link()?;
        Ok(match self.core().leases.get_mut(&lease) {
            Some(held) => {
                held.expires = Instant::now() + LEASE;
                Renewal::Alive
            }
            None => Renewal::Gone,
        })
    }

    async fn revoke(&self, lease: i64) -> Result<(), Error> {
        self.check_link()?;
        Memory::end_lease(&self.core, &self.advanced, lease);
        Ok(())
    }

    async fn claim(&self, key: &str, value: &[u8], lease: i64) -> Result<Claim, Error> {
        self.check_link()?;
        if !self.core().leases.contains_key(&lease) {
            return Err(Error::Invalid("requested lease not found".into()));
        }
        let txn = Txn::new().when_absent(key).put(key, value);
        Ok(match self.commit(&txn, Some(lease)) {
            Outcome::Committed { revision } => Claim::Elected { revision },
            Outcome::Conflict { revision, .. } => Claim::Taken { revision },
        })
    }
}

/// Ends a lease when its time has come, however often that is put off.
async fn expire(
    core: Weak<Mutex<Core>>,
    advanced: watch::Sender<Revision>,
    lease: i64,
    mut expires: Instant,
) {
    // etcd looks for ended leases twice a second; so a lease never ends early, often a little late.
    const LATE: Duration = Duration::from_millis(50);
    loop {
        sleep_until(expires + LATE).await;
        let Some(core) = core.upgrade() else {
            return;
        };
        let until =
            core.lock().unwrap_or_else(PoisonError::into_inner).leases.get(&lease).map(|held| held.expires);
        match until {
            None => return,
            Some(until) if until > expires => expires = until,
            Some(_) => {
                Memory::end_lease(&core, &advanced, lease);
                return;
            }
        }
    }
}
