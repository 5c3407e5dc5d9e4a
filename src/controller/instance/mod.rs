//! Instances: placed on hosts, granted what they ask for, shown as they are, and gone when they are deleted.
//!
//! ```text
//!          placed            report              DELETE            buried
//! pending --------> starting -------> running --------> deleting --------> (gone)
//!    ^ no capacity     |                 |
//!    +-----(asks again when room appears)+--> stopped, backoff, failed, unknown: as the host says
//! ```
//!
//! The loop runs each instance's effect one at a time, so that it never argues with itself. Plans count for every later
//! plan until the snapshot shows what became of them. One whose write was not confirmed may have been applied, or may
//! be yet: it goes on counting, and it alone is sent again.

mod act;
mod addresses;
mod decide;
mod queue;

use super::{Leader, instances_of};
use crate::state::{At, Snapshot};
use crate::store::keys::Key;
use crate::store::{Error, Outcome};
use act::Plan;
use addresses::Frontier;
use decide::Want;
use enoki_api::object::Uid;
use jiff::Timestamp;
use queue::Queue;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use tokio::task::JoinSet;

/// Transactions under way at once.
const IN_FLIGHT: usize = 64;

/// The loop's own state.
pub(super) struct Loop<'a> {
    leader: &'a Leader,
    dirty: Queue,
    /// Effects under way, each instance at most once.
    busy: BTreeSet<At>,
    /// Placements and grants sent to the store and not yet seen in the snapshot.
    plans: BTreeMap<At, Underway>,
    /// Instances whose keys are being removed: what their host said is needed until the snapshot shows them gone.
    finishing: BTreeMap<At, Uid>,
    /// Instances that nothing was found for: asked again when room may have appeared.
    pending: BTreeSet<At>,
    frontier: Frontier,
    effects: JoinSet<Done>,
}

/// A plan of which the snapshot does not show yet what became of it.
struct Underway {
    plan: Plan,
    /// The store has said so already, and the snapshot will.
    told: bool,
}

/// How one effect ended.
pub(super) struct Done {
    at: At,
    /// Whether the instance's plan was in what was sent: else this says nothing about the plan.
    planned: bool,
    result: Result<Outcome, Error>,
}

impl<'a> Loop<'a> {
    pub fn new(leader: &'a Leader) -> Self {
        Loop {
            leader,
            dirty: Queue::default(),
            busy: BTreeSet::new(),
            plans: BTreeMap::new(),
            finishing: BTreeMap::new(),
            pending: BTreeSet::new(),
            frontier: Frontier::default(),
            effects: JoinSet::new(),
        }
    }

    /// Looks at every instance.
    pub fn all(&mut self) {
        let snapshot = self.leader.context.state.snapshot();
        self.look_at(&snapshot, snapshot.instances.iter().map(|(at, _)| at.clone()));
    }

    fn look_at(&mut self, snapshot: &Snapshot, instances: impl IntoIterator<Item = At>) {
        for at in instances {
            let priority = snapshot.instances.at(&at).map_or(0, |row| i64::from(row.object.spec.priority));
            self.dirty.push(at, priority);
        }
    }

    /// Looks at the instances that these keys concern; where room may have appeared, at those that wait for it.
    pub fn changed<'k>(&mut self, keys: impl Iterator<Item = &'k Key> + Clone) {
        let snapshot = self.leader.context.state.snapshot();
        self.look_at(&snapshot, instances_of(keys.clone()));
        let room = |key: &Key| match key {
            Key::Assignment { .. } | Key::Address { .. } => true,
            Key::Spec(object) | Key::Status(object) => {
                matches!(object.kind.as_str(), "hosts" | "networks" | "volumes")
            }
            _ => false,
        };
        if keys.clone().any(room) {
            let pending = std::mem::take(&mut self.pending);
            self.look_at(&snapshot, pending);
        }
        for key in keys {
            match key {
                // A host's phase shows in its instances' phase.
                Key::Status(object) if object.kind == "hosts" => {
                    let here = snapshot.by_host.get(&object.name).into_iter().flatten().cloned();
                    self.look_at(&snapshot, here);
                }
                Key::Address { project, network, address } => {
                    let entry = snapshot.addresses.get(&(project.clone(), network.clone(), *address));
                    if entry.is_none_or(|entry| entry.0.held_until.is_some()) {
                        self.frontier.forget(project, network);
                    }
                }
                Key::Spec(object) if object.kind == "networks" => {
                    self.frontier.forget(object.project.as_deref().unwrap_or_default(), &object.name);
                }
                _ => {}
            }
        }
    }

    pub fn reported(&mut self, uids: HashSet<Uid>) {
        let snapshot = self.leader.context.state.snapshot();
        self.look_at(&snapshot, uids.iter().filter_map(|uid| snapshot.by_uid.get(uid).cloned()));
    }

    pub fn buried(&mut self, uids: &HashSet<Uid>) {
        self.reported(uids.clone());
    }

    /// Decides for everything that is dirty and free, and starts the effects.
    pub async fn work(&mut self) {
        let context = &self.leader.context;
        let snapshot = context.state.snapshot();
        self.plans.retain(|_, underway| underway.plan.is_open(&snapshot));
        let mut world: Option<Snapshot> = None;
        while self.busy.len() < IN_FLIGHT {
            // What was told is waited for: until then the snapshot is older than what we know.
            let waits = |at: &At| self.busy.contains(at) || self.plans.get(at).is_some_and(|plan| plan.told);
            let Some(at) = self.dirty.next(waits) else { break };
            let row = snapshot.instances.at(&at);
            let same = |uid: &Uid| row.is_some_and(|row| row.object.uid == *uid);
            if self.finishing.get(&at).is_some_and(|uid| !same(uid))
                && let Some(gone) = self.finishing.remove(&at)
            {
                context.live.forget(&gone);
            }
            let Some(row) = row else {
                self.pending.remove(&at);
                continue;
            };
            let world = world.get_or_insert_with(|| self.planned(&snapshot));
            let seen = act::observe(context, &snapshot, world, row);
            let mut decision = seen.decide();
            // What may have been applied is not decided anew.
            let unsure = self.plans.get(&at).map(|underway| underway.plan.clone());
            let mut under_way = None;
            let mut plan_for = |plan: Plan| Box::new(under_way.insert(plan).clone());
            let effect = match decision.want {
                Want::Nothing => None,
                Want::Place => match unsure
                    .filter(Plan::is_placement)
                    .map_or_else(|| act::place(context, world, &mut self.frontier, row), Ok)
                {
                    Ok(plan) => Some(act::Effect::Place(plan_for(plan))),
                    Err((reason, message)) => {
                        decide::refused(&mut decision.status, &reason, message);
                        self.pending.insert(at.clone());
                        None
                    }
                },
                Want::Grant(assignment) => snapshot.assignments.get(&at).map(|placed| {
                    let new = || Plan::grant(placed, at.clone(), *assignment);
                    act::Effect::Grant(plan_for(
                        unsure.filter(|plan| !plan.is_placement()).unwrap_or_else(new),
                    ))
                }),
                Want::Finish => {
                    self.finishing.insert(at.clone(), row.object.uid.clone());
                    Some(act::Effect::Finish)
                }
            };
            let planned = under_way.is_some();
            if let Some(plan) = under_way {
                plan.apply(world);
                self.plans.insert(at.clone(), Underway { plan, told: false });
            }
            let stored = snapshot.instance_status.get(&at).map(|status| &**status);
            let txn =
                act::transaction(&snapshot, row, effect.as_ref(), &decision.status, stored, Timestamp::now());
            let Some(txn) = txn else { continue };
            if let Some(effect) = &effect {
                act::announce(context, row, effect);
            }
            self.busy.insert(at.clone());
            let (store, fence) = (context.store.clone(), self.leader.fence.clone());
            self.effects.spawn(async move { Done { at, planned, result: store.txn(txn.when(fence)).await } });
        }
    }

    /// The snapshot with every plan under way applied to it.
    fn planned(&self, snapshot: &Snapshot) -> Snapshot {
        let mut world = snapshot.clone();
        for underway in self.plans.values() {
            underway.plan.apply(&mut world);
        }
        world
    }

    /// The next effect that ended. Cancel-safe: a result that was not taken stays.
    pub async fn finished(&mut self) -> Done {
        loop {
            match self.effects.join_next().await {
                Some(Ok(done)) => return done,
                Some(Err(error)) => tracing::error!(%error, "an effect did not end well"),
                None => std::future::pending().await,
            }
        }
    }

    /// The next one that has ended already.
    pub fn finished_already(&mut self) -> Option<Done> {
        self.effects.try_join_next()?.ok()
    }

    /// What it would have taken is free.
    fn drop_plan(&mut self, at: &At) {
        for network in self.plans.remove(at).iter().flat_map(|underway| underway.plan.networks()) {
            self.frontier.forget(&at.0, network);
        }
    }

    pub fn take(&mut self, done: Done) {
        self.busy.remove(&done.at);
        match done.result {
            Ok(Outcome::Committed { .. }) => {
                // An earlier plan may still be unsure, where what was wanted then is not wanted any more.
                if let Some(underway) = self.plans.get_mut(&done.at).filter(|_| done.planned) {
                    underway.told = true;
                }
            }
            Ok(Outcome::Conflict { current, .. }) => {
                // The world moved on. An earlier try whose answer was lost may be what moved it.
                match self.plans.get_mut(&done.at) {
                    Some(underway) if underway.plan.is_overtaken(&current) => underway.told = true,
                    Some(_) if done.planned => self.drop_plan(&done.at),
                    Some(_) | None => {}
                }
                let snapshot = self.leader.context.state.snapshot();
                self.look_at(&snapshot, [done.at]);
            }
            Err(error) => {
                tracing::warn!(instance = %format!("{}/{}", done.at.0, done.at.1), %error, "a write was not confirmed; it is decided again");
                if done.planned && !matches!(error, Error::OutcomeUnknown { .. }) {
                    self.drop_plan(&done.at);
                }
                // Not at once: the slow timer brings it back.
                self.pending.insert(done.at);
            }
        }
    }
}
