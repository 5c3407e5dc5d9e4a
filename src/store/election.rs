//! Leader election and the fence of a leader.
//!
//! An election is one key, created if absent under a lease. Whoever created it leads until the lease ends; the others
//! wait for the key to go. The key's create_revision is the fencing token: [`Leadership::fence`] goes into every
//! transaction of the leader, and a leader that was stopped, cut off or suspended and does not know yet that it is over
//! loses that compare. "I hold the lease" is never enough.
//!
//! On top of it a leader stops by itself, before anybody else can have been elected: each renewal counts from the
//! moment it was *sent*, on the clock that suspends do not stop, and ends [`MARGIN`] early. So on the leader's clock
//! `local end < lease end <= next election`. What needs no store (answers to heartbeats) is bounded by
//! [`Leadership::deadline`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::clock::BootTime;
use super::{Change, Compare, Error, KeyValue, Revision, Store, WatchItem, keys};

/// How long a leader is waited for after its last sign of life. Two seconds is the least that etcd grants with its
/// default election timeout (1.5 times that, in whole seconds); with half a second until etcd notices the end it keeps
/// a new leader within three seconds of the old one's death. A needless loss costs little: containers don't notice.
pub const LEASE: Duration = Duration::from_secs(2);

/// The part of a lease by which the leader ends earlier on its own clock: for clocks of unequal speed, and to be gone
/// before the next one comes, not at the same moment.
const MARGIN: u32 = 5;

/// Renewals sent within one lease when all is well.
const RENEWALS: u32 = 5;

/// The least that one renewal waits for its answer before another connection is tried.
const LEAST_WAIT: Duration = Duration::from_millis(300);

/// Whether the lease still stood when it was renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    Alive,
    Gone,
}

/// What became of an attempt to take the election's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Elected { revision: Revision },
    Taken { revision: Revision },
}

/// A lease as granted: its id and how long it lives from the last renewal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub id: i64,
    pub ttl: Duration,
}

/// What an implementation of the store adds for elections: leases, and one write under a lease.
#[async_trait]
pub(super) trait Ballot: Store + Clone {
    async fn grant(&self) -> Result<Lease, Error>;
    async fn renew(&self, lease: i64) -> Result<Renewal, Error>;
    async fn revoke(&self, lease: i64) -> Result<(), Error>;
    async fn claim(&self, key: &str, value: &[u8], lease: i64) -> Result<Claim, Error>;
}

/// Proof of being the leader, as long as it lasts. Dropping it resigns.
#[derive(Debug)]
pub struct Leadership {
    key: String,
    revision: Revision,
    term: Arc<Term>,
    /// Cancelled by us: the keeper then gives the lease back.
    resign: CancellationToken,
    /// Cancelled by the keeper once it has ended and the lease is given back, or could not be.
    done: CancellationToken,
}

/// What the leader and the keeper of its lease share.
#[derive(Debug)]
struct Term {
    deadline: Mutex<BootTime>,
    /// Cancelled when leadership has ended, for whatever reason, and never un-ended.
    over: CancellationToken,
}

impl Leadership {
    /// Belongs in every transaction of the leader.
    pub fn fence(&self) -> Compare {
        Compare::CreateRevision(self.key.clone(), self.revision)
    }

    /// The revision of the election. A new leader acts only once its cache has reached it. Grows from leader to leader.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether this is still the leader, at this moment, by the clock.
    pub fn is_held(&self) -> bool {
        !self.term.over.is_cancelled() && !self.deadline().has_passed()
    }

    /// The moment until which leadership is proven, before the lease can have ended. Moves on with each renewal.
    /// Nothing that must not outlive the leader may be promised beyond it.
    pub fn deadline(&self) -> BootTime {
        self.term.deadline()
    }

    /// Cancelled when leadership is over: the parent of all that a leader runs.
    pub fn lost(&self) -> CancellationToken {
        self.term.over.clone()
    }

    /// Steps down and waits, bounded, until the next one can be elected.
    pub async fn resign(self) {
        self.resign.cancel();
        self.done.cancelled().await;
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.resign.cancel();
        self.term.over.cancel();
    }
}

impl Term {
    fn deadline(&self) -> BootTime {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the deadline on, unless it has passed: what is over stays over, however late an answer comes.
    fn extend(&self, to: BootTime) -> bool {
        let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        if self.over.is_cancelled() || deadline.has_passed() {
            return false;
        }
        *deadline = to.max(*deadline);
        true
    }
}

/// The end of a lease on our clock, when its renewal was sent at `sent`.
fn local_end(sent: BootTime, ttl: Duration) -> BootTime {
    sent + (ttl - ttl / MARGIN)
}

/// Waits until elected. Errors of the store are the caller's to retry; nothing is left but a lease that runs out.
pub(super) async fn campaign<B: Ballot>(ballot: B, name: &str, value: &[u8]) -> Result<Leadership, Error> {
    let key = keys::election(name)?;
    loop {
        let (holder, revision) = ballot.get(&key).await?;
        if let Some(holder) = holder {
            wait_until_free(&ballot, &key, holder, revision).await?;
        }
        let sent = BootTime::now();
        let lease = ballot.grant().await?;
        match ballot.claim(&key, value, lease.id).await {
            Ok(Claim::Elected { revision }) => {
                return Ok(lead(ballot, key, revision, lease, sent));
            }
            Ok(Claim::Taken { .. }) => ballot.revoke(lease.id).await?,
            Err(error) => {
                // The claim may have been granted all the same: take it back rather than hold the election unmanned.
                if let Err(also) = ballot.revoke(lease.id).await {
                    tracing::debug!(error = %also, "the lease of a failed claim runs out by itself");
                }
                return Err(error);
            }
        }
    }
}

/// Returns when the election's key may be gone. A watch tells at once; the look once a lease is for a watch that has
/// gone silent.
async fn wait_until_free<B: Ballot>(
    ballot: &B,
    key: &str,
    holder: KeyValue,
    revision: Revision,
) -> Result<(), Error> {
    let mut watch = ballot.watch(key, revision).await?;
    loop {
        match timeout(LEASE, watch.next()).await {
            Ok(Some(Ok(WatchItem::Changes { changes, .. }))) => {
                let gone =
                    |change: &Change| matches!(change, Change::Delete { key: deleted } if deleted == key);
                if changes.iter().any(gone) {
                    return Ok(());
                }
            }
            Ok(Some(Ok(WatchItem::Progress { .. }))) => {}
            Ok(Some(Err(error))) => return Err(error),
            Ok(None) => return Err(Error::unavailable("the watch of an election ended")),
            Err(_silent) => match ballot.get(key).await?.0 {
                Some(now) if now.create_revision == holder.create_revision => {}
                _ => return Ok(()),
            },
        }
    }
}

fn lead<B: Ballot>(ballot: B, key: String, revision: Revision, lease: Lease, sent: BootTime) -> Leadership {
    let leadership = Leadership {
        key,
        revision,
        term: Arc::new(Term {
            deadline: Mutex::new(local_end(sent, lease.ttl)),
            over: CancellationToken::new(),
        }),
        resign: CancellationToken::new(),
        done: CancellationToken::new(),
    };
    let (term, resign, done) = (leadership.term.clone(), leadership.resign.clone(), leadership.done.clone());
    tokio::spawn(async move {
        keep(&ballot, lease, &term, &resign).await;
        term.over.cancel();
        // Best effort: the next one is elected at once instead of after the lease.
        match timeout(lease.ttl, ballot.revoke(lease.id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "the lease of a past leader runs out by itself")
            }
            Err(_) => tracing::debug!("the lease of a past leader runs out by itself"),
        }
        done.cancel();
    });
    leadership
}

/// Renews the lease until it is resigned, gone, or past the deadline.
async fn keep<B: Ballot>(ballot: &B, lease: Lease, term: &Term, resign: &CancellationToken) {
    loop {
        let pause = (lease.ttl / RENEWALS).min(term.deadline().remaining());
        // Cancel-safe: neither branch holds anything.
        tokio::select! {
            () = resign.cancelled() => return,
            () = sleep(pause) => {}
        }
        let remaining = term.deadline().remaining();
        if remaining.is_zero() {
            tracing::warn!("leadership ends: the lease could not be renewed in time");
            return;
        }
        // Half of what is left, so that a renewal that got lost leaves time for another.
        let wait = (remaining / 2).max(LEAST_WAIT).min(remaining);
        let sent = BootTime::now();
        match timeout(wait, ballot.renew(lease.id)).await {
            Ok(Ok(Renewal::Alive)) => {
                if !term.extend(local_end(sent, lease.ttl)) {
                    tracing::warn!("leadership ends: the renewal of the lease came too late");
                    return;
                }
            }
            Ok(Ok(Renewal::Gone)) => {
                tracing::warn!("leadership ends: the lease is gone");
                return;
            }
            Ok(Err(error)) => tracing::warn!(%error, "could not renew the leader's lease"),
            Err(_) => tracing::warn!("no answer to the renewal of the leader's lease"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(deadline: BootTime) -> Term {
        Term { deadline: Mutex::new(deadline), over: CancellationToken::new() }
    }

    #[test]
    fn the_local_end_is_before_the_lease_can_end() {
        let sent = BootTime::now();
        assert!(local_end(sent, LEASE) < sent + LEASE);
    }

    #[test]
    fn what_is_over_stays_over() {
        let later = BootTime::now() + Duration::from_secs(9);
        let past = term(BootTime::now());
        assert!(!past.extend(later));
        let lost = term(later);
        lost.over.cancel();
        assert!(!lost.extend(later + LEASE));
        let alive = term(later);
        assert!(alive.extend(BootTime::now()), "an early answer changes nothing");
        assert_eq!(alive.deadline(), later);
        assert!(alive.extend(later + LEASE));
        assert_eq!(alive.deadline(), later + LEASE);
    }
}
