//! Desired -> actions. Only the leader runs these.
//!
//! Each folder has a pure `decide` and dumb, idempotent effects; [`run`] is the one loop that feeds them. It wakes on
//! changes of the state, on words of the agents and on a slow timer, and re-reads the snapshot each time: it never
//! trusts what woke it. Every write compares the election's fence, so what a leader that lost its lease still sends
//! is refused by the store.

mod cluster;
mod gc;
mod host;
mod instance;
mod operation;

use crate::admission::SystemNetworks;
use crate::dispatch::{Events, Live};
use crate::registry::Registry;
use crate::scheduler::Policy;
use crate::state::{self, At, State};
use crate::store::keys::Key;
use crate::store::{Compare, Error, Leadership, Outcome, Store, Txn};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub use cluster::Ways;

/// The election of the leader.
pub const ELECTION: &str = "leader";
/// How long a new leader waits for its cache between two words about it.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How often the leader looks without being woken.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Everything is looked at again this often, whatever happened or did not.
    pub slow: Duration,
    /// Hosts' silence is judged this often.
    pub fast: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { slow: Duration::from_secs(5), fast: Duration::from_millis(500) }
    }
}

/// What controllers work with.
#[derive(Clone)]
pub struct Context {
    pub store: Arc<dyn Store>,
    pub state: State,
    pub live: Live,
    pub events: Events,
    pub policy: Policy,
    /// How the networks are that clusters get.
    pub networks: SystemNetworks,
    pub ways: Ways,
    /// Where the logs of ended drivers are kept.
    pub registry: Registry,
}

/// Stands for election for as long as the server runs, and leads whenever it is elected.
pub async fn run(context: Context, me: state::Server, stop: CancellationToken) {
    run_at(Pace::default(), context, me, stop).await;
}

/// [`run`] at another pace.
pub async fn run_at(pace: Pace, context: Context, me: state::Server, stop: CancellationToken) {
    let name = &me.name;
    let words = serde_json::to_vec(&me).unwrap_or_default();
    while !stop.is_cancelled() {
        // Cancel-safe: an election that is left leaves nothing for longer than a lease.
        let elected = tokio::select! {
            elected = context.store.campaign(ELECTION, &words) => elected,
            () = stop.cancelled() => return,
        };
        match elected {
            Ok(leadership) => {
                tracing::info!(name, revision = leadership.revision(), "elected: this server leads");
                lead(&context, pace, leadership, &stop).await;
                // Where no other server can take its agents over, they stay: exec and logs need no leader.
                if me.address.is_some() {
                    context.live.step_down();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the election failed; standing again");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn lead(context: &Context, pace: Pace, leadership: Leadership, stop: &CancellationToken) {
    let lost = leadership.lost();
    let leader = Leader { context: context.clone(), pace, fence: leadership.fence() };
    // A cold leader acts only once its cache has seen its own election.
    let work = async {
        while !context.state.reached(leadership.revision(), CATCH_UP).await {}
        context.live.lead(context.state.snapshot().hosts.len());
        tokio::join!(leader.run(), cluster::run(&leader));
    };
    // Cancel-safe: every effect is one transaction that applies whole or not at all.
    tokio::select! {
        () = work => {}
        () = lost.cancelled() => tracing::warn!("the leadership is lost"),
        () = stop.cancelled() => leadership.resign().await,
    }
}

/// The elected server at work.
struct Leader {
    context: Context,
    pace: Pace,
    fence: Compare,
}

impl Leader {
    async fn run(&self) {
        let Context { state, live, .. } = &self.context;
        let mut instances = instance::Loop::new(self);
        let mut slow = tokio::time::interval(self.pace.slow);
        let mut fast = tokio::time::interval(self.pace.fast);
        let mut cursor = state.follow(state.snapshot().revision);
        instances.all();
        operation::tend(self).await;
        loop {
            instances.work().await;
            // Cancel-safe: the cursor, the dirty sets and the running effects keep what they have not given.
            tokio::select! {
                batches = cursor.next() => match batches {
                    Ok(batches) => {
                        for batch in &batches {
                            instances.changed(batch.keys.iter());
                        }
                        operation::tend(self).await;
                    }
                    Err(_) => {
                        cursor = state.follow(state.snapshot().revision);
                        instances.all();
                    }
                },
                () = live.changed() => {
                    let dirty = live.take_dirty();
                    instances.reported(dirty.instances);
                    instances.buried(&dirty.buried);
                    if !dirty.hosts.is_empty() {
                        host::tend(self).await;
                    }
                    if !dirty.buried.is_empty() {
                        gc::buried(self).await;
                    }
                }
                done = instances.finished() => {
                    instances.take(done);
                    // Looking once for many is cheaper than once for each.
                    while let Some(done) = instances.finished_already() {
                        instances.take(done);
                    }
                }
                _ = fast.tick() => host::tend(self).await,
                _ = slow.tick() => {
                    instances.all();
                    operation::tend(self).await;
                    gc::sweep(self).await;
                }
            }
        }
    }

    /// One fenced transaction. `Ok(false)`: the world moved on meanwhile; look again.
    async fn commit(&self, txn: Txn) -> Result<bool, Error> {
        match self.context.store.txn(txn.when(self.fence.clone())).await? {
            Outcome::Committed { .. } => Ok(true),
            Outcome::Conflict { .. } => Ok(false),
        }
    }
}

/// The instances that a change of these keys may concern.
fn instances_of<'a>(keys: impl Iterator<Item = &'a Key>) -> BTreeSet<At> {
    let instance = |key: &Key| match key {
        Key::Assignment { project, name } => Some((project.clone(), name.clone())),
        Key::Spec(object) | Key::Status(object) if object.kind == "instances" => {
            Some((object.project.clone()?, object.name.clone()))
        }
        _ => None,
    };
    keys.filter_map(instance).collect()
}
