//! The store over etcd.
//!
//! One client with one HTTP/2 connection for each endpoint, of which one is used at a time (`ways`). Connecting is lazy and reconnecting the client's own; a call
//! while etcd is away fails at once or at its deadline. Pings find a dead connection within [`PING_EVERY`] and
//! [`PING_WAIT`]; until then calls over it end at their deadline.

mod members;
mod ways;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    AlarmAction, AlarmMember, AlarmOptions, AlarmType, Certificate, Client, ConnectOptions, EventType,
    GetOptions, Identity, PutOptions, TlsOptions, TxnOp, TxnOpResponse, WatchOptions,
};
use futures::StreamExt;
use futures::stream;
use tokio::time::{Instant, timeout_at};

use self::ways::Ways;
use super::election::{self, Ballot, Claim, LEASE, Leadership, Lease, Renewal};
use super::members::Cluster;
use super::{
    Change, Compare, Error, KeyValue, Listing, MAX_TXN_BYTES, Op, Outcome, Revision, Status, Store, Txn,
    WatchItem, WatchStream, keys,
};

/// How long a call may take unless the caller chose otherwise. Longer than an election of etcd itself, shorter than the
/// patience of a user.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// etcd hangs up on clients that ping more often than every 5 s (`--grpc-keepalive-min-time`).
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WAIT: Duration = Duration::from_secs(5);

/// An answer holds at most one value for each compare; the rest is room.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Pages of a listing aim at this size: large enough to be quick, small enough not to hold etcd up.
const PAGE_BYTES: usize = 2 << 20;
const FIRST_PAGE: usize = 256;
const MAX_PAGE: usize = 4096;

/// What identifies us to etcd and etcd to us, as PEM.
#[derive(Clone)]
pub struct Tls {
    pub ca: Vec<u8>,
    pub cert: Vec<u8>,
    pub key: Vec<u8>,
}

/// Where etcd is.
#[derive(Clone)]
pub struct Config {
    /// `https://host:port`, or `http://` without `tls`; the preferred one first, the others for when it does not serve.
    pub endpoints: Vec<String>,
    /// None: plain HTTP.
    pub tls: Option<Tls>,
    /// Bounds each call.
    pub deadline: Duration,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("deadline", &self.deadline)
            .finish()
    }
}

/// A handle on etcd; cheap to clone.
#[derive(Clone)]
pub struct Etcd {
    ways: Ways,
    deadline: Duration,
}

impl Etcd {
    /// Checks the configuration; does not wait for etcd, which need not be up yet. A rustls crypto provider must be
    /// installed when TLS is used.
    pub async fn new(config: Config) -> Result<Etcd, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(config.deadline)
            .with_keep_alive(PING_EVERY, PING_WAIT)
            // etcd counts pings without a stream as abuse; while we care there is always a watch.
            .with_keep_alive_while_idle(false)
            // A member cut off from its cluster must say so instead of waiting.
            .with_require_leader(true);
        if let Some(tls) = &config.tls {
            options = options.with_tls(
                TlsOptions::new()
                    .ca_certificate(Certificate::from_pem(&tls.ca))
                    .identity(Identity::from_pem(&tls.cert, &tls.key)),
            );
        }
        let mut members = Vec::new();
        for endpoint in &config.endpoints {
            let client = Client::connect([endpoint], Some(options.clone()))
                .await
                .map_err(|error| Error::Invalid(format!("etcd at {endpoint:?}: {error}")))?;
            members.push(client);
        }
        if members.is_empty() {
            return Err(Error::Invalid("etcd without an endpoint".into()));
        }
        Ok(Etcd { ways: Ways::new(members), deadline: config.deadline })
    }

    /// The same store with another deadline for each call.
    pub fn with_deadline(&self, deadline: Duration) -> Etcd {
        Etcd { deadline, ..self.clone() }
    }

    /// The members that raised the alarm of being full.
    async fn full_members(&self) -> Result<Vec<u64>, Error> {
        let mut maintenance = self.ways.client().maintenance_client();
        let look = maintenance.alarm(AlarmAction::Get, AlarmType::None, None);
        let alarms = self.read("alarms", look).await?;
        let full = |alarm: &&AlarmMember| alarm.alarm() == AlarmType::Nospace;
        Ok(alarms.alarms().iter().filter(full).map(AlarmMember::member_id).collect())
    }

    async fn read<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Error> {
        self.bounded(what, Kind::Read, call).await
    }

    async fn write<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Error> {
        self.bounded(what, Kind::Write, call).await
    }

    async fn bounded<T>(
        &self,
        what: &str,
        kind: Kind,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Error> {
        let member = self.ways.now();
        match timeout_at(Instant::now() + self.deadline, call).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                if serves_not(&error) {
                    self.ways.leave(member);
                }
                Err(classify(what, kind, error))
            }
            Err(_) => {
                self.ways.doubt(member);
                let what = format!("{what}: no answer within {:?}", self.deadline);
                Err(match kind {
                    Kind::Read => Error::unavailable(what),
                    Kind::Write => Error::unknown(what),
                })
            }
        }
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error> {
        let mut kv = self.ways.kv();
        let mut answer = self.read("get", kv.get(key, None)).await?;
        let revision = revision_of(answer.header())?;
        Ok((answer.take_kvs().into_iter().find_map(key_value), revision))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        if prefix.is_empty() {
            return Err(Error::Invalid("a listing without a prefix".into()));
        }
        let end = keys::prefix_end(prefix.as_bytes()).unwrap_or_else(|| vec![0]);
        let mut listing = Listing { items: Vec::new(), revision: 0 };
        let mut from = prefix.as_bytes().to_vec();
        let mut page = FIRST_PAGE;
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(page as i64);
            if listing.revision > 0 {
                options = options.with_revision(listing.revision as i64);
            }
            let mut kv = self.ways.kv();
            let mut answer = match self.read("list", kv.get(from, Some(options))).await {
                Err(Error::Compacted { .. }) => {
                    return Err(Error::Compacted { asked: listing.revision });
                }
                other => other?,
            };
            if listing.revision == 0 {
                listing.revision = revision_of(answer.header())?;
            }
            let kvs = answer.take_kvs();
            let bytes: usize = kvs.iter().map(|kv| kv.key().len() + kv.value().len()).sum();
            let last = kvs.last().map(|kv| kv.key().to_vec());
            let count = kvs.len();
            listing.items.extend(kvs.into_iter().filter_map(key_value));
            let Some(last) = last.filter(|_| answer.more()) else {
                return Ok(listing);
            };
            page = (PAGE_BYTES * count / bytes.max(1)).clamp(1, MAX_PAGE);
            from = last;
            from.push(0);
        }
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, Error> {
        txn.validate()?;
        let request = etcd_client::Txn::new()
            .when(txn.compares.iter().map(compare).collect::<Vec<_>>())
            .and_then(txn.ops.iter().map(|op| operation(op, None)).collect::<Vec<_>>())
            .or_else(txn.compares.iter().map(|compare| TxnOp::get(compare.key(), None)).collect::<Vec<_>>());
        let mut kv = self.ways.kv();
        let answer = self.write("transaction", kv.txn(request)).await?;
        let revision = revision_of(answer.header())?;
        if answer.succeeded() {
            return Ok(Outcome::Committed { revision });
        }
        let mut reads = answer.op_responses().into_iter();
        let mut current = Vec::with_capacity(txn.compares.len());
        for compare in txn.compares {
            let Some(TxnOpResponse::Get(mut read)) = reads.next() else {
                return Err(protocol("a failed transaction without its readings"));
            };
            let now = read.take_kvs().into_iter().find_map(key_value);
            current.push((compare.key().to_string(), now));
        }
        Ok(Outcome::Conflict { current, revision })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        if prefix.is_empty() {
            return Err(Error::Invalid("a watch without a prefix".into()));
        }
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(after as i64 + 1)
            // etcd's own notices come in order behind the events; those asked for overtake them in 3.4.
            .with_progress_notify();
        let mut client = self.ways.client().watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        let opening = async {
            let mut stream = client.watch(prefix, Some(options)).await?;
            let created = stream.message().await?;
            Ok((stream, created))
        };
        let (stream, created) = self.read("watch", opening).await?;
        let Some(created) = created else {
            return Err(Error::unavailable("the watch ended as it began"));
        };
        if created.canceled() {
            return Err(canceled(after, created.compact_revision(), created.cancel_reason()));
        }
        if revision_of(created.header())? < after {
            // A member may be behind its cluster, and then delivers once it is there; the cluster itself must not be.
            let (_, now) = self.get(prefix).await?;
            if now < after {
                return Err(Error::WentBack { seen: after, now });
            }
        }
        Ok(batches(stream, after))
    }

    async fn campaign(&self, name: &str, value: &[u8]) -> Result<Leadership, Error> {
        election::campaign(self.clone(), name, value).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let mut kv = self.ways.kv();
        match self.write("compaction", kv.compact(revision as i64, None)).await {
            // Somebody, or etcd itself, was there before.
            Err(Error::Compacted { .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    async fn reclaim(&self) -> Result<(), Error> {
        let (_, revision) = self.get(keys::ROOT).await?;
        self.compact(revision).await?;
        let mut maintenance = self.ways.client().maintenance_client();
        // The member answers nothing else meanwhile: some seconds for each gigabyte.
        let patient = self.with_deadline(self.deadline.max(Duration::from_secs(120)));
        patient.write("defragmentation", maintenance.defragment()).await?;
        for member in self.full_members().await? {
            let mut options = AlarmOptions::new();
            options.with_member(member);
            let clear = maintenance.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options));
            self.write("clearing the alarm", clear).await?;
        }
        Ok(())
    }

    fn cluster(&self) -> Option<&dyn Cluster> {
        Some(self)
    }

    async fn status(&self) -> Result<Status, Error> {
        let mut maintenance = self.ways.client().maintenance_client();
        let status = self.read("status", maintenance.status()).await?;
        Ok(Status {
            revision: revision_of(status.header())?,
            version: status.version().to_string(),
            size_bytes: status.db_size().max(0) as u64,
            used_bytes: status.raft_used_db_size().max(0) as u64,
            full: !self.full_members().await?.is_empty(),
        })
    }
}

#[async_trait]
impl Ballot for Etcd {
    async fn grant(&self) -> Result<Lease, Error> {
        let mut leases = self.ways.client().lease_client();
        let granted = self.read("lease", leases.grant(LEASE.as_secs() as i64, None)).await?;
        if granted.ttl() <= 0 {
            return Err(protocol("a lease without life"));
        }
        Ok(Lease { id: granted.id(), ttl: Duration::from_secs(granted.ttl() as u64) })
    }

    async fn renew(&self, lease: i64) -> Result<Renewal, Error> {
        let mut leases = self.ways.client().lease_client();
        // The client takes `ttl <= 0` in the answer, which means that the lease is gone, for an error of its own kind.
        match self
            .read("renewal", async {
                match leases.keep_alive(lease).await {
                    Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(Renewal::Gone),
                    other => other.map(|_| Renewal::Alive),
                }
            })
            .await?
        {
            Renewal::Alive => Ok(Renewal::Alive),
            // Or for one of its plumbing: etcd has the last word.
            Renewal::Gone => {
                let left = self.read("lease", leases.time_to_live(lease, None)).await?.ttl();
                if left > 0 {
                    return Err(Error::unavailable("the renewal did not get through"));
                }
                Ok(Renewal::Gone)
            }
        }
    }

    async fn revoke(&self, lease: i64) -> Result<(), Error> {
        let mut leases = self.ways.client().lease_client();
        match self.write("revocation", leases.revoke(lease)).await {
            Err(Error::Invalid(what)) if what.contains("lease not found") => Ok(()),
            other => other.map(|_| ()),
        }
    }

    async fn claim(&self, key: &str, value: &[u8], lease: i64) -> Result<Claim, Error> {
        let put = Op::Put { key: key.to_string(), value: value.to_vec() };
        let request = etcd_client::Txn::new()
            .when([compare(&Compare::Absent(key.to_string()))])
            .and_then([operation(&put, Some(lease))]);
        let mut kv = self.ways.kv();
        let answer = self.write("claim", kv.txn(request)).await?;
        let revision = revision_of(answer.header())?;
        Ok(if answer.succeeded() { Claim::Elected { revision } } else { Claim::Taken { revision } })
    }
}

fn compare(compare: &Compare) -> etcd_client::Compare {
    use etcd_client::CompareOp::{Equal, Greater};
    match compare {
        Compare::Absent(key) => etcd_client::Compare::create_revision(key.as_str(), Equal, 0),
        Compare::Present(key) => etcd_client::Compare::create_revision(key.as_str(), Greater, 0),
        Compare::ModRevision(key, revision) => {
            etcd_client::Compare::mod_revision(key.as_str(), Equal, *revision as i64)
        }
        Compare::CreateRevision(key, revision) => {
            etcd_client::Compare::create_revision(key.as_str(), Equal, *revision as i64)
        }
    }
}

fn operation(op: &Op, lease: Option<i64>) -> TxnOp {
    match op {
        Op::Put { key, value } => {
            TxnOp::put(key.as_str(), value.as_slice(), lease.map(|lease| PutOptions::new().with_lease(lease)))
        }
        Op::Delete { key } => TxnOp::delete(key.as_str(), None),
    }
}

/// Turns answers into one item for each revision. etcd keeps the events of a revision in one answer (we do not ask for
/// fragments) but puts several revisions into one when it has to catch up.
fn batches(stream: etcd_client::WatchStream, after: Revision) -> WatchStream {
    struct Watching {
        /// None after an error: the stream is over.
        stream: Option<etcd_client::WatchStream>,
        ready: std::collections::VecDeque<WatchItem>,
        after: Revision,
    }
    let watching = Watching { stream: Some(stream), ready: Default::default(), after };
    stream::unfold(watching, |mut watching| async move {
        loop {
            if let Some(item) = watching.ready.pop_front() {
                return Some((Ok(item), watching));
            }
            let answer = watching.stream.as_mut()?.message().await;
            match answer
                .map_err(|error| classify("watch", Kind::Read, error))
                .and_then(|answer| answer.ok_or_else(|| Error::unavailable("the watch ended")))
                .and_then(|answer| items(&answer, watching.after))
            {
                Ok(items) => watching.ready.extend(items),
                Err(error) => {
                    watching.stream = None;
                    return Some((Err(error), watching));
                }
            }
        }
    })
    .boxed()
}

fn items(answer: &etcd_client::WatchResponse, after: Revision) -> Result<Vec<WatchItem>, Error> {
    if answer.canceled() {
        return Err(canceled(after, answer.compact_revision(), answer.cancel_reason()));
    }
    let mut items: Vec<WatchItem> = Vec::new();
    for event in answer.events() {
        let Some(kv) = event.kv() else {
            return Err(protocol("a change without a key"));
        };
        let at = kv.mod_revision() as Revision;
        let deleted = event.event_type() == EventType::Delete;
        let Some(kv) = key_value(kv.clone()) else {
            continue;
        };
        let change = if deleted { Change::Delete { key: kv.key } } else { Change::Put(kv) };
        match items.last_mut() {
            Some(WatchItem::Changes { revision, changes }) if *revision == at => {
                changes.push(change);
            }
            _ => items.push(WatchItem::Changes { revision: at, changes: vec![change] }),
        }
    }
    if answer.events().is_empty() && !answer.created() {
        items.push(WatchItem::Progress { revision: revision_of(answer.header())? });
    }
    Ok(items)
}

fn canceled(after: Revision, compact_revision: i64, reason: &str) -> Error {
    if compact_revision > 0 {
        Error::Compacted { asked: after }
    } else {
        Error::unavailable(format!("etcd ended the watch: {reason}"))
    }
}

/// `None` for a key that is not text: nobody of ours wrote it.
fn key_value(kv: etcd_client::KeyValue) -> Option<KeyValue> {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let (key, value) = kv.into_key_value();
    match String::from_utf8(key) {
        Ok(key) => Some(KeyValue {
            key,
            value,
            create_revision: create_revision as Revision,
            mod_revision: mod_revision as Revision,
        }),
        Err(error) => {
            let key = String::from_utf8_lossy(error.as_bytes()).into_owned();
            tracing::warn!(%key, "a key in etcd is not UTF-8 and is left alone");
            None
        }
    }
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Result<Revision, Error> {
    header.map(|header| header.revision() as Revision).ok_or_else(|| protocol("an answer without a header"))
}

fn protocol(what: &str) -> Error {
    Error::Refused { what: format!("etcd sent {what}"), cause: None }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

/// etcd's answers by what a caller would do. The texts are those of etcd's `rpctypes`, stable since 3.0; the codes gRPC's.
fn classify(what: &str, kind: Kind, error: etcd_client::Error) -> Error {
    const CANCELLED: i32 = 1;
    const UNKNOWN: i32 = 2;
    const INVALID_ARGUMENT: i32 = 3;
    const DEADLINE_EXCEEDED: i32 = 4;
    const NOT_FOUND: i32 = 5;
    const RESOURCE_EXHAUSTED: i32 = 8;
    const FAILED_PRECONDITION: i32 = 9;
    const ABORTED: i32 = 10;
    const OUT_OF_RANGE: i32 = 11;
    const INTERNAL: i32 = 13;
    const UNAVAILABLE: i32 = 14;

    let (code, message) = match &error {
        etcd_client::Error::GRpcStatus(status) => (status.code() as i32, status.message()),
        etcd_client::Error::InvalidArgs(_)
        | etcd_client::Error::InvalidUri(_)
        | etcd_client::Error::InvalidMetadataValue(_) => {
            return Error::Invalid(format!("{what}: {error}"));
        }
        _ => (UNAVAILABLE, ""),
    };
    let refused_unapplied =
        ["no leader", "too many requests", "not capable", "stopped", "for learner", "unhealthy cluster"]
            .iter()
            .any(|text| message.starts_with("etcdserver: ") && message.contains(text))
            || never_sent(&error);
    let what = format!("{what}: {}", if message.is_empty() { "the connection failed" } else { message });
    match code {
        OUT_OF_RANGE if what.contains("has been compacted") => Error::Compacted { asked: 0 },
        RESOURCE_EXHAUSTED if what.contains("space exceeded") => Error::Full,
        INVALID_ARGUMENT if what.contains("too large") => too_large(),
        RESOURCE_EXHAUSTED if what.contains("larger than max") => too_large(),
        INVALID_ARGUMENT | NOT_FOUND | FAILED_PRECONDITION | OUT_OF_RANGE => Error::Invalid(what),
        CANCELLED | UNKNOWN | DEADLINE_EXCEEDED | RESOURCE_EXHAUSTED | ABORTED | INTERNAL | UNAVAILABLE => {
            let cause: Option<super::Cause> = Some(Arc::new(error));
            if kind == Kind::Read || refused_unapplied {
                Error::Unavailable { what, cause }
            } else {
                Error::OutcomeUnknown { what, cause }
            }
        }
        _ => Error::Refused { what, cause: Some(Arc::new(error)) },
    }
}

/// Whether another member may do what this one did not.
fn serves_not(error: &etcd_client::Error) -> bool {
    const UNAVAILABLE: i32 = 14;
    match error {
        // What etcd itself says of its cluster ("no leader", "leader changed") another member would say as well.
        etcd_client::Error::GRpcStatus(status) if status.message().starts_with("etcdserver: ") => {
            status.message().contains("for learner")
        }
        etcd_client::Error::GRpcStatus(status) => status.code() as i32 == UNAVAILABLE,
        error => matches!(error, etcd_client::Error::TransportError(_) | etcd_client::Error::IoError(_)),
    }
}

fn too_large() -> Error {
    Error::TooLarge {
        what: "a request".into(),
        // etcd does not say how large it was: more than its limit, which is at least ours.
        size: MAX_TXN_BYTES + 1,
        limit: MAX_TXN_BYTES,
    }
}

/// Whether the connection was refused: then the request never left.
fn never_sent(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return false;
    };
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        cause = error.source();
    }
    false
}
