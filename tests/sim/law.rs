//! What must hold at every step, whatever fails: the invariants of ARCHITECTURE.md that one moment can break.
//!
//! The law sees every transaction as the store decides it, every revision as the real [`State`] reads it, and every act
//! of an agent as it is done. It keeps no model of how things should be done.

use crate::trace::Trace;
use enoki::scheduler::Policy;
use enoki::state::{Batch, Cursor, Snapshot, State};
use enoki::store::keys::Key;
use enoki::store::{Compare, Error, Outcome, Revision, Txn};
use enoki_api::instance::RunState;
use enoki_api::object::Uid;
use futures::FutureExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who sends a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    Api,
    Controller,
}

/// A container that runs.
struct Body {
    host: String,
    id: String,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Law {
    trace: Trace,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    cursor: Option<Cursor>,
    /// Every uid that ever had a tombstone.
    doomed: BTreeSet<Uid>,
    /// Generations by which a user wanted the running container of an instance to end, and it has not yet.
    ends: BTreeMap<Uid, BTreeSet<u64>>,
    /// Every binding that ever was: uid, host, epoch.
    bound: BTreeSet<(Uid, String, u64)>,
    bodies: BTreeMap<Uid, Vec<Body>>,
    /// What ran when the store was lost.
    kept: BTreeSet<Uid>,
}

impl Law {
    pub fn new(trace: Trace) -> Self {
        Law { trace, inner: Arc::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For those who want to know whether anything happened at all.
    pub fn count(&self, what: &'static str) {
        self.trace.count(what);
    }

    pub fn note(&self, who: &str, what: impl std::fmt::Display) {
        self.trace.note(who, what);
    }

    /// The store has decided a transaction. `leader`: the fence of whoever led at that moment.
    pub fn decided(
        &self,
        server: &str,
        writer: Writer,
        txn: &Txn,
        leader: Option<Revision>,
        outcome: &Result<Outcome, Error>,
    ) {
        let what = match outcome {
            Ok(Outcome::Committed { revision }) => format!("r{revision}"),
            Ok(Outcome::Conflict { .. }) => "conflict".to_owned(),
            Err(error) => error.to_string(),
        };
        let keys: Vec<&str> = txn.ops.iter().map(|op| op.key().trim_start_matches("/enoki/v1/")).collect();
        self.trace.note(server, format!("{writer:?} writes {}: {what}", keys.join(" ")));
        if writer == Writer::Controller && matches!(outcome, Ok(Outcome::Committed { .. })) {
            let fence = txn.compares.iter().find_map(|compare| match compare {
                Compare::CreateRevision(_, revision) => Some(*revision),
                Compare::Absent(_) | Compare::Present(_) | Compare::ModRevision(..) => None,
            });
            if fence.is_none() || fence != leader {
                let why =
                    format!("a write of {server}, elected at {fence:?}, was taken while {leader:?} led");
                self.trace.violated("F2", why);
            }
        }
    }

    /// Another store stands in the place of the one that was followed. What runs now has to outlive that.
    pub fn store_replaced(&self) {
        let mut inner = self.inner();
        inner.cursor = None;
        let running = inner.bodies.iter().filter(|(_, bodies)| !bodies.is_empty());
        inner.kept = running.map(|(uid, _)| uid.clone()).filter(|uid| !inner.doomed.contains(uid)).collect();
    }

    /// F42: what ran when the store was lost is there again, as what it was.
    pub fn check_kept(&self, world: &Snapshot) -> Result<(), String> {
        let inner = self.inner();
        let lost =
            inner.kept.iter().find(|uid| !inner.doomed.contains(uid) && !world.by_uid.contains_key(*uid));
        lost.map_or(Ok(()), |uid| Err(format!("{uid} ran when the store was lost, and nothing has it now")))
    }

    /// Looks at every revision since the last time.
    pub fn observe(&self, state: &State, policy: &Policy) {
        if !state.is_loaded() {
            return;
        }
        let mut inner = self.inner();
        let cursor = inner.cursor.get_or_insert_with(|| state.follow(state.snapshot().revision));
        match cursor.next().now_or_never() {
            None => {}
            Some(Err(error)) => self.trace.violated("law", error),
            Some(Ok(batches)) => {
                for batch in &batches {
                    if batch.after.leader.is_some() && batch.before.leader.is_none() {
                        self.trace.count("elections");
                    }
                    inner.learn(batch);
                    self.check(&batch.after, policy);
                }
            }
        }
    }

    fn check(&self, world: &Snapshot, policy: &Policy) {
        for (host, granted) in world.granted.iter() {
            let Some(has) = world.host_status.get(host).map(|status| status.capacity) else { continue };
            let cpus = (has.cpus.0 as f64 * policy.cpu_overcommit) as u64;
            if granted.memory > has.memory || granted.cpus.0 > cpus || granted.pids > has.pids {
                self.trace
                    .violated("I6", format!("r{}: {host} has {has:?} and gives {granted:?}", world.revision));
            }
        }
        let mut taken = BTreeMap::new();
        for ((project, name), placed) in world.assignments.iter() {
            for nic in placed.assignment.nics.values() {
                let at = (project.clone(), nic.network.clone(), nic.address.into());
                if let Some(other) = taken.insert(at.clone(), name) {
                    self.trace.violated("I7", format!("{name} and {other} both have {}", nic.address));
                }
                let owner = world.addresses.get(&at).map(|claim| &claim.0.uid);
                if owner != Some(&placed.assignment.uid) {
                    self.trace.violated("I7", format!("{name} has {} and no claim on it", nic.address));
                }
            }
        }
    }

    /// An agent makes a container.
    pub fn creates(&self, host: &str, uid: &Uid, epoch: u64) {
        self.trace.note(host, format!("creates a container of {}", short(uid)));
        if !self.inner().bound.contains(&(uid.clone(), host.to_owned(), epoch)) {
            self.trace
                .violated("I8", format!("{host} makes a container of {uid}, which was never bound to it"));
        }
    }

    pub fn starts(&self, host: &str, uid: &Uid, id: &str) {
        self.trace.count("starts");
        self.trace.note(host, format!("starts {}", short(uid)));
        let mut inner = self.inner();
        let bodies = inner.bodies.entry(uid.clone()).or_default();
        if let Some(other) = bodies.iter().find(|body| body.id != id) {
            self.trace.violated("I1", format!("{uid} runs twice: on {host} and on {}", other.host));
        }
        if !bodies.iter().any(|body| body.id == id) {
            bodies.push(Body { host: host.to_owned(), id: id.to_owned() });
        }
    }

    /// An agent that follows `generation` stops a container that runs. What users have asked for up to there is done
    /// with that.
    pub fn stops(&self, host: &str, uid: &Uid, generation: u64) {
        self.trace.note(host, format!("stops {} by generation {generation}", short(uid)));
        let mut inner = self.inner();
        let ends = inner.ends.entry(uid.clone()).or_default();
        let later = ends.split_off(&(generation + 1));
        let asked = !std::mem::replace(ends, later).is_empty();
        if !asked && !inner.doomed.contains(uid) {
            self.trace.violated("I5", format!("{host} stops {uid}, and nobody asked for it"));
        }
    }

    /// It runs no more, whoever ended it.
    pub fn ended(&self, uid: &Uid, id: &str) {
        if let Some(bodies) = self.inner().bodies.get_mut(uid) {
            bodies.retain(|body| body.id != id);
        }
    }

    pub fn destroys(&self, host: &str, disk: &Uid) {
        self.trace.note(host, format!("destroys disk {}", short(disk)));
        if !self.inner().doomed.contains(disk) {
            self.trace.violated("I11", format!("{host} destroys disk {disk} without a tombstone"));
        }
    }
}

impl Inner {
    fn learn(&mut self, batch: &Batch) {
        for key in batch.keys.iter() {
            match key {
                Key::Tombstone { uid } => self.doomed.extend(Uid::parse(uid)),
                Key::Assignment { project, name } => {
                    let placed = batch.after.assignments.get(&(project.clone(), name.clone()));
                    if let Some(assignment) = placed.map(|placed| &placed.assignment) {
                        self.bound.insert((
                            assignment.uid.clone(),
                            assignment.host.clone(),
                            assignment.epoch,
                        ));
                    }
                }
                Key::Spec(object) if object.kind == "instances" => {
                    let at = (object.project.clone().unwrap_or_default(), object.name.clone());
                    let (old, new) = (batch.before.instances.at(&at), batch.after.instances.at(&at));
                    let (Some(old), Some(new)) = (old, new) else { continue };
                    let (old, new) = (&old.object, &new.object);
                    let stopped = new.spec.state == RunState::Stopped && old.spec.state != RunState::Stopped;
                    if old.uid == new.uid
                        && (stopped
                            || new.spec.restart_count > old.spec.restart_count
                            || new.spec.rebuild_count > old.spec.rebuild_count)
                    {
                        self.ends.entry(new.uid.clone()).or_default().insert(new.generation);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Enough of a uid to tell it from others in a trace.
pub fn short(uid: &Uid) -> &str {
    &uid.as_str()[..8]
}
