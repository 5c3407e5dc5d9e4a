//! All instances of this host: takes orders and tombstones in, keeps one task for each, finds orphans.
//!
//! An orphan is what carries our label or stands in the ledger and is named by no order of a server's full set. It is
//! reported and otherwise treated as ever: kept alive by its ledger, never removed. An order that names it later takes
//! it back; nothing has to be undone.

use super::{Actor, Host, observe};
use crate::ledger::{self, Accepted};
use crate::runtime::{Container, Event, State};
use enoki_api::instance::{Doomed, InstanceStatus, Phase, Tombstone};
use enoki_api::object::Uid;
use enoki_api::protocol::{Order, Orphan, Overlay};
use futures::StreamExt;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often all containers are listed, whatever Docker's events say.
const RELIST: Duration = Duration::from_secs(30);
/// Before asking again for events of a daemon that went away.
const EVENTS_AGAIN: Duration = Duration::from_secs(1);
/// A burst of events is one list.
const GATHER: Duration = Duration::from_millis(200);

struct Handle {
    wake: Arc<Notify>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Known {
    actors: BTreeMap<Uid, Handle>,
    /// Named by the last full set and the deltas since. None: no server has spoken yet.
    named: Option<BTreeSet<Uid>>,
    /// None: Docker has told none yet, so nothing is known of what runs.
    containers: Option<Vec<Container>>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    host: Arc<Host>,
    name: Arc<str>,
    known: Arc<Mutex<Known>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Fleet {
    /// `name`: this host's; orders for another are not followed.
    pub fn new(host: Arc<Host>, name: &str, stop: CancellationToken) -> Self {
        Fleet { host, name: name.into(), known: Arc::default(), stop, tasks: TaskTracker::new() }
    }

    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that the ledger has, with or without a server.
    pub fn wake_all(&self) {
        for uid in self.host.ledger.uids() {
            self.wake(&uid);
        }
        for tombstone in self.host.ledger.tombstones() {
            self.wake(&tombstone.uid);
        }
    }

    /// Since when who of this host is squeezed, from now on.
    pub fn squeezed(&self, all: BTreeMap<Uid, Timestamp>) {
        for uid in self.host.set_squeezed(all) {
            self.wake(&uid);
        }
    }

    /// Wakes the instance's task; starts it when there is none.
    fn wake(&self, uid: &Uid) {
        if self.stop.is_cancelled() {
            return;
        }
        let mut known = self.known();
        if let Some(handle) = known.actors.get(uid).filter(|handle| !handle.task.is_finished()) {
            handle.wake.notify_one();
            return;
        }
        let wake = Arc::new(Notify::new());
        let actor = Actor::new(self.host.clone(), uid.clone(), wake.clone(), self.stop.clone());
        let task = self.tasks.spawn(actor.run());
        known.actors.insert(uid.clone(), Handle { wake, task });
    }

    /// A server's whole word. What it does not name is orphaned, never removed.
    pub async fn full(&self, orders: Vec<Order>, tombstones: Vec<Tombstone>) {
        let named = orders.iter().map(|order| order.uid().clone()).collect();
        self.accept(orders, tombstones).await;
        self.known().named = Some(named);
        self.tell_orphans();
    }

    /// What changed since.
    pub async fn delta(&self, orders: Vec<Order>, tombstones: Vec<Tombstone>) {
        let fresh: Vec<Uid> = orders.iter().map(|order| order.uid().clone()).collect();
        self.accept(orders, tombstones).await;
        let mut taken_back = Vec::new();
        if let Some(named) = &mut self.known().named {
            taken_back = fresh.into_iter().filter(|uid| named.insert(uid.clone())).collect();
        }
        self.host.outbox.again(taken_back);
        self.tell_orphans();
    }

    /// Who is where on these networks, from now on.
    pub async fn overlays(&self, overlays: Vec<Overlay>) {
        let kept = self.host.with_ledger(move |ledger| {
            for overlay in &overlays {
                if let Err(error) = ledger.keep(overlay) {
                    tracing::error!(%error, network = %overlay.network, "who is where could not be kept");
                }
            }
        });
        if let Err(failure) = kept.await {
            tracing::error!(message = failure.message, "who is where could not be taken in");
        }
        self.host.overlaid.notify_one();
    }

    /// Tombstones first: of an instance that is ordered and deleted in one message only the deletion counts.
    async fn accept(&self, orders: Vec<Order>, tombstones: Vec<Tombstone>) {
        let name = self.name.clone();
        let taken = self.host.with_ledger(move |ledger| take_in(ledger, &name, orders, &tombstones)).await;
        match taken {
            Ok(changed) => changed.iter().for_each(|uid| self.wake(uid)),
            Err(failure) => {
                tracing::error!(message = failure.message, "orders could not be taken in");
            }
        }
    }

    /// Lists all containers. An error is no list: what was known stays.
    pub async fn relist(&self) {
        // Before the list: a container that has a record by now is in it, or was removed.
        let records = self.host.machine.records().await.unwrap_or_default();
        let listed = match self.host.runtime.list().await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::debug!(%error, "containers cannot be listed");
                return;
            }
        };
        let mut ids: BTreeMap<Uid, Vec<String>> = BTreeMap::new();
        for container in &listed {
            ids.entry(container.uid.clone()).or_default().push(container.id.clone());
        }
        self.host.set_listed(ids);
        for record in records.iter().filter(|id| !listed.iter().any(|container| container.id == **id)) {
            if let Err(error) = self.host.machine.remove_record(record).await {
                tracing::warn!(container = record, %error, "the record of a removed container stays");
            }
        }
        {
            let mut known = self.known();
            known.containers = Some(listed);
            // A handle keeps all the memory of its task, long after that has ended.
            known.actors.retain(|_, handle| !handle.task.is_finished());
        }
        self.tell_orphans();
        // Also restarts a task that died by a fault of ours.
        self.wake_all();
    }

    fn tell_orphans(&self) {
        let (named, containers) = {
            let known = self.known();
            let Some(named) = &known.named else { return };
            (named.clone(), known.containers.clone())
        };
        // Until Docker has been asked, a container that is not seen may still run.
        let unseen = if containers.is_some() { Phase::Stopped } else { Phase::Unknown };
        let containers = containers.unwrap_or_default();
        let ledger = &self.host.ledger;
        let mut orphans = Vec::new();
        let mut told = BTreeSet::new();
        for uid in ledger.uids() {
            told.insert(uid.clone());
            if named.contains(&uid) || ledger.tombstone(&uid).is_some() {
                continue;
            }
            let Some(entry) = ledger.get(&uid) else { continue };
            let last = self.host.outbox.last(&uid);
            let found = containers.iter().find(|container| container.uid == uid);
            orphans.push(Orphan {
                project: entry.order.instance.project.clone().unwrap_or_default(),
                name: entry.order.instance.name.clone(),
                phase: last.as_ref().map_or_else(|| found.map_or(unseen, phase), |last| last.phase),
                container_id: last
                    .and_then(|last| last.container_id)
                    .or(found.map(|container| container.id.clone())),
                order: Some(entry.order),
                uid,
            });
        }
        for container in containers {
            let uid = &container.uid;
            if named.contains(uid) || ledger.tombstone(uid).is_some() || !told.insert(uid.clone()) {
                continue;
            }
            orphans.push(Orphan {
                order: None,
                project: container.project.clone(),
                name: container.instance.clone(),
                uid: uid.clone(),
                phase: phase(&container),
                container_id: Some(container.id.clone()),
            });
        }
        self.host.outbox.orphans(orphans);
    }

    /// The instance's running container. None: it does not run, as far as this host knows.
    pub fn running(&self, uid: &Uid) -> Option<String> {
        if let Some(last) = self.host.outbox.last(uid) {
            return last.container_id.filter(|_| last.pid.is_some());
        }
        // Not seen since this agent began, because Docker is away: as the ledger has it.
        let facts = self.host.ledger.get(uid)?.facts;
        let boot = self.host.machine.boot();
        facts.run.filter(|run| run.boot == boot && facts.exit.is_none()).map(|run| run.container)
    }

    /// Follows Docker until `stop`: events wake tasks, lists find what no event told.
    pub async fn run(&self) {
        self.wake_all();
        let mut docker = self.host.docker.clone();
        while !self.stop.is_cancelled() {
            if *docker.borrow_and_update()
                && let Ok(mut events) = self.host.runtime.events().await
            {
                // After the events began, so that nothing falls between the two.
                self.relist().await;
                self.follow(&mut events).await;
            }
            // Cancel-safe: nothing is taken by a branch that is dropped.
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(EVENTS_AGAIN) => {}
            }
        }
        // Tasks end between two actions, never in one.
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Takes one event in; true when only a list tells the rest. A launch of ours must not: looking at every container
    /// for each one that begins would cost more with each that runs.
    async fn heard(&self, event: &Event) -> bool {
        let Event { uid, container, action } = event;
        let ours = self.host.ledger.has(uid);
        match action.as_str() {
            "create" => self.host.appeared(uid, container),
            "destroy" => {
                self.host.vanished(uid, container);
                if let Some(containers) = &mut self.known().containers {
                    containers.retain(|known| known.id != *container);
                }
                // Whoever removed it: nothing reads its record any more.
                if let Err(error) = self.host.machine.remove_record(container).await {
                    tracing::warn!(container, %error, "the record of a removed container stays");
                }
                if !ours {
                    self.tell_orphans();
                }
            }
            _ => {}
        }
        if ours {
            self.wake(uid);
        }
        action == "rename" || (action == "create" && !ours)
    }

    async fn follow(&self, events: &mut futures::stream::BoxStream<'static, crate::runtime::Event>) {
        let mut due = tokio::time::Instant::now() + RELIST;
        loop {
            // Cancel-safe: a stream keeps what it has not given.
            tokio::select! {
                () = self.stop.cancelled() => return,
                event = events.next() => match event {
                    None => return,
                    Some(event) => {
                        if self.heard(&event).await {
                            due = due.min(tokio::time::Instant::now() + GATHER);
                        }
                    }
                },
                () = tokio::time::sleep_until(due) => {
                    self.relist().await;
                    due = tokio::time::Instant::now() + RELIST;
                }
            }
        }
    }
}

/// Uids whose tasks have to look.
fn take_in(ledger: &ledger::Ledger, host: &str, orders: Vec<Order>, tombstones: &[Tombstone]) -> Vec<Uid> {
    let mut changed = Vec::new();
    let _together = ledger.intake();
    for tombstone in tombstones {
        match ledger.doom(tombstone) {
            Ok(_) => {
                changed.push(tombstone.uid.clone());
                // A disk's is its instance's to carry out.
                if tombstone.what == Doomed::Disk {
                    changed.extend(ledger.uids().into_iter().filter(|uid| {
                        ledger.get(uid).is_some_and(|entry| observe::owns(&entry, &tombstone.uid))
                    }));
                }
            }
            Err(error) => tracing::error!(%error, name = tombstone.name, "a tombstone could not be kept"),
        }
    }
    for mut order in orders {
        if order.assignment.host != host {
            tracing::warn!(name = order.name(), host = order.assignment.host, "an order for another host");
            continue;
        }
        // What a server knows of its status is our own word, older.
        order.instance.status = InstanceStatus::default();
        let uid = order.uid().clone();
        match ledger.accept(&order) {
            Ok(Accepted::New | Accepted::Changed) => changed.push(uid),
            Ok(Accepted::Same) => {}
            Err(error) => tracing::error!(%error, name = order.name(), "an order was not taken in"),
        }
    }
    changed
}

fn phase(container: &Container) -> Phase {
    match container.state {
        State::Created | State::Exited { .. } => Phase::Stopped,
        State::Running { .. } => Phase::Running,
        State::Broken => Phase::Failed,
    }
}
