//! Durable truth: keys, transactions, watch, election and fencing. Only this module names etcd.
//!
//! Everything above sees the trait [`Store`]. [`etcd`] is the real one, [`memory`] the one of tests and
//! simulations; one conformance suite (`tests/store.rs`) keeps the two the same.
//!
//! # Guarantees
//! - Reads are linearizable; [`Store::list`] is one revision however many pages it takes.
//! - A [`Txn`] applies whole or not at all. A lost compare is an [`Outcome`], not an error, and brings what the
//!   compared keys hold now.
//! - A watch delivers every change after the revision it was asked for, in order, all changes of one revision
//!   in one item, or ends with an error. It never skips in silence while it delivers; it can fall silent on a
//!   half-open connection, which is what [`reflector`] watches for.
//!
//! # On failure
//! Every call ends within the store's deadline. A read that fails is [`Error::Unavailable`] and may be repeated. A
//! write is `Unavailable` only when it is certain that it was not applied, else [`Error::OutcomeUnknown`]: read again
//! before doing anything. Nothing in here retries: that is the caller's loop's to do.

pub mod child;
pub mod clock;
pub mod election;
pub mod etcd;
pub mod keys;
pub mod members;
pub mod memory;
pub mod overlay;
pub mod reflector;
mod txn;

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use election::Leadership;
pub use overlay::overlay;
pub use txn::{Compare, MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES, Op, Outcome, Txn};

/// etcd's revision: one counter over all keys, up by one with every transaction that changes something. 0 is before all.
pub type Revision = u64;

/// One key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Vec<u8>,
    /// The revision at which this key came to be; a key deleted and made again has a new one.
    pub create_revision: Revision,
    /// The revision of its last write.
    pub mod_revision: Revision,
}

/// All keys below a prefix at one revision, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub items: Vec<KeyValue>,
    pub revision: Revision,
}

/// What happened to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(KeyValue),
    Delete { key: String },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Change::Put(kv) => &kv.key,
            Change::Delete { key } => key,
        }
    }
}

/// One item of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// All changes below the prefix made at one revision.
    Changes { revision: Revision, changes: Vec<Change> },
    /// Nothing below the prefix changed up to and with this revision beyond what was delivered.
    Progress { revision: Revision },
}

/// A running watch. Ends after its first error.
pub type WatchStream = BoxStream<'static, Result<WatchItem, Error>>;

/// How the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub revision: Revision,
    /// The version of the server, or "memory".
    pub version: String,
    /// Size of the data file, in bytes, free pages included.
    pub size_bytes: u64,
    /// Bytes of it in use; the rest comes back with [`Store::reclaim`].
    pub used_bytes: u64,
    /// The store refuses writes because it is full.
    pub full: bool,
}

/// The shared reason below an error.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// What can go wrong; one variant for each thing that a caller would do differently.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Not done, for certain. Repeat with backoff.
    #[error("the store can't be reached: {what}")]
    Unavailable {
        what: String,
        #[source]
        cause: Option<Cause>,
    },
    /// A write that was or was not applied. Read again before anything else.
    #[error("the outcome of a write to the store is unknown: {what}; read again before repeating it")]
    OutcomeUnknown {
        what: String,
        #[source]
        cause: Option<Cause>,
    },
    /// The revision asked for is no longer kept. List again.
    #[error("revision {asked} is compacted away: list again")]
    Compacted { asked: Revision },
    /// The store is at an older revision than one already seen: it was restored or replaced. Nothing that was read
    /// from it before can be trusted; the process has to start over.
    #[error(
        "the store went back from revision {seen} to {now}: it was restored or replaced; restart to read it afresh"
    )]
    WentBack { seen: Revision, now: Revision },
    /// More bytes than the store takes at once.
    #[error("{what} is {size} bytes, the store takes at most {limit}")]
    TooLarge { what: String, size: usize, limit: usize },
    /// The store is at its quota and refuses writes (etcd's NOSPACE alarm).
    #[error("the store is full: compact and defragment it or raise its quota")]
    Full,
    /// The caller's mistake; repeating does not help.
    #[error("invalid request to the store: {0}")]
    Invalid(String),
    /// The store refuses us or answers what it must not. Repeating does not help.
    #[error("the store refused: {what}")]
    Refused {
        what: String,
        #[source]
        cause: Option<Cause>,
    },
}

impl Error {
    pub(crate) fn unavailable(what: impl Into<String>) -> Error {
        Error::Unavailable { what: what.into(), cause: None }
    }

    pub(crate) fn unknown(what: impl Into<String>) -> Error {
        Error::OutcomeUnknown { what: what.into(), cause: None }
    }

    /// Whether the same call can succeed later with nobody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unavailable { .. } | Error::OutcomeUnknown { .. } | Error::Compacted { .. } => true,
            Error::WentBack { .. }
            | Error::TooLarge { .. }
            | Error::Full
            | Error::Invalid(_)
            | Error::Refused { .. } => false,
        }
    }
}

/// Durable truth. See the module's guarantees.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One key, and the revision at which it was read.
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error>;

    /// All keys that start with `prefix`, at one revision. End the prefix with `/` to name a folder: `/a` also has `/ab`.
    async fn list(&self, prefix: &str) -> Result<Listing, Error>;

    /// Applies all of `txn` if all its compares hold.
    async fn txn(&self, txn: Txn) -> Result<Outcome, Error>;

    /// All changes below `prefix` **after** revision `after` (a listing's revision resumes where the listing ends).
    /// [`Error::Compacted`], here or as the stream's end, means that changes were missed: list again.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error>;

    /// Waits until elected in the election `name`, with `value` readable by all at [`keys::election`].
    /// Dropping the future leaves nothing behind for longer than a lease.
    async fn campaign(&self, name: &str, value: &[u8]) -> Result<Leadership, Error>;

    /// Forgets all history before `revision`. Watches and pages from before end with [`Error::Compacted`].
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// Makes a full store take writes again: forgets all history, gives free pages back, clears the alarm. Blocks the
    /// member for seconds on a large store, so do it when [`Status::full`] or on an operator's word.
    async fn reclaim(&self) -> Result<(), Error>;

    async fn status(&self) -> Result<Status, Error>;

    /// The members that the store is made of. None: it is not made of any.
    fn cluster(&self) -> Option<&dyn members::Cluster> {
        None
    }
}
