//! PURE: what to do about one instance. Total, without clock, randomness or I/O.
//!
//! ```text
//!         image, files, disk, network      start
//!  (absent) ───────────────────▶ created ────────▶ running ──▶ ended by itself
//!     ▲                             ▲                │ stop         │ policy: wait, then start (backoff)
//!     │ docker rm, prune            │ start          ▼              │ policy: no (stopped, failed)
//!     └─────────────────────────────┴────────── exited ◀────────────┘
//!
//!  wanted    container        what happens                                    phase
//!  run       absent           make and start                                  pending, starting
//!  run       created, exited  start; made anew when its ingredients changed   starting, backoff, stopped, failed
//!  run       running          limits, rates, disk size live; stop to restart  running, stopping
//!  stop      running          stop with grace                                 stopping
//!  stop      anything else    nothing                                         stopped
//!  gone      anything         stop, remove, then disks by their tombstones    deleting
//!  any       broken           remove (the disk is ours, not the container's)
//!  any       unknown          nothing at all
//! ```
//! Guarantees, held as properties: doing the actions and deciding again comes to rest; a disk is destroyed only by
//! its own tombstone and when nothing uses it; nothing is destroyed, stopped or made on an unknown.

use super::facts::{Cause, Facts, Made, fingerprint, restart_required};
use super::learn::{after, learn};
use super::observed::{Action, Body, Decision, Desired, Observed, Seen, Step};
use crate::runtime::{ImageInfo, State};
use enoki_api::instance::{LimitsState, LimitsStatus, Phase, RunState};
use enoki_api::object::Uid;
use enoki_api::protocol::{Order, Report};
use jiff::Timestamp;
use std::time::Duration;

/// How soon to look again at what could not be seen.
const AGAIN: Duration = Duration::from_secs(5);
/// How soon to look again for the end of the user data script.
const USER_DATA: Duration = Duration::from_secs(1);
/// For a stop when no order tells another: the spec's default.
const GRACE: Duration = Duration::from_secs(10);

/// Where the instance's container stands.
#[derive(Clone, Copy, Debug)]
pub enum Stand<'a> {
    Unknown,
    Absent,
    Created { body: &'a Body },
    Running { body: &'a Body, pid: u32, started_at: Timestamp },
    Exited { body: &'a Body },
    Broken { body: &'a Body },
}

impl<'a> Stand<'a> {
    /// Of several containers (an agent was killed at a bad moment, or somebody renamed one) the one that counts
    /// runs, or else is the newest; the others are leftovers.
    fn of(bodies: &'a Seen<Vec<Body>>) -> (Self, Vec<&'a Body>) {
        let bodies = match bodies {
            Seen::Unknown => return (Stand::Unknown, Vec::new()),
            Seen::Absent => return (Stand::Absent, Vec::new()),
            Seen::Present(bodies) => bodies,
        };
        let mut sorted: Vec<&Body> = bodies.iter().collect();
        sorted.sort_by_key(|body| (running(body), body.container.epoch, &body.container.id));
        let Some(body) = sorted.pop() else { return (Stand::Absent, Vec::new()) };
        let stand = match &body.container.state {
            State::Created => Stand::Created { body },
            State::Running { pid, started_at } => Stand::Running { body, pid: *pid, started_at: *started_at },
            State::Exited { .. } => Stand::Exited { body },
            State::Broken => Stand::Broken { body },
        };
        (stand, sorted)
    }

    fn body(&self) -> Option<&'a Body> {
        match *self {
            Stand::Unknown | Stand::Absent => None,
            Stand::Created { body }
            | Stand::Running { body, .. }
            | Stand::Exited { body }
            | Stand::Broken { body } => Some(body),
        }
    }
}

fn running(body: &Body) -> bool {
    matches!(body.container.state, State::Running { .. })
}

/// The decision about one instance, from the ledger's word and one look.
pub fn decide(now: Timestamp, desired: &Desired, observed: &Observed) -> Decision {
    let mut decision = match (&desired.order, desired.doomed) {
        (order, true) => bury(now, desired, order.as_deref(), observed),
        (Some(order), false) => Case::new(now, desired, order, observed).decide(),
        (None, false) => {
            let mut actions = Vec::new();
            let waits = destroy_disks(desired, observed, &mut actions);
            Decision { report: None, actions, wake_at: waits.then(|| after(now, AGAIN)) }
        }
    };
    hold_back(now, observed, &mut decision);
    decision
}

/// A failed action waits for its time, and everything of the list with it: a later step stands on an earlier one.
fn hold_back(now: Timestamp, observed: &Observed, decision: &mut Decision) {
    let Some(trouble) = &observed.trouble else { return };
    if !decision.actions.iter().any(|action| action.step() == trouble.step) {
        return;
    }
    if let Some(report) = &mut decision.report {
        report.reason = Some(trouble.reason.to_owned());
        report.message = Some(trouble.message.clone());
        report.phase = match (report.phase, trouble.step) {
            (Phase::Starting, Step::StartContainer | Step::WriteRecord) => Phase::Backoff,
            (Phase::Starting, _) => Phase::Pending,
            (phase, _) => phase,
        };
    }
    if now < trouble.retry_at {
        decision.actions.retain(|action| action.step() == Step::Remember);
        decision.wake_at = Some(decision.wake_at.unwrap_or(Timestamp::MAX).min(trouble.retry_at));
    }
}

/// The way out, for an instance with a tombstone: nothing is left when it is done, and nothing comes back.
fn bury(now: Timestamp, desired: &Desired, order: Option<&Order>, observed: &Observed) -> Decision {
    let mut actions = Vec::new();
    let grace = order.map_or(GRACE, |order| order.instance.spec.stop_grace.duration());
    let waits = match (&observed.bodies, &observed.remains) {
        (Seen::Unknown, _) | (Seen::Absent, Seen::Unknown) => true,
        (Seen::Present(bodies), _) => {
            for body in bodies {
                remove(body, grace, &mut actions);
            }
            false
        }
        (Seen::Absent, Seen::Present(())) => {
            actions.push(Action::RemoveRemains);
            false
        }
        (Seen::Absent, Seen::Absent) => {
            let waits = destroy_disks(desired, observed, &mut actions);
            if !waits {
                actions.push(Action::Bury { uid: desired.uid.clone() });
            }
            waits
        }
    };
    let report = order.map(|order| {
        let mut report = blank(order, &desired.facts, observed);
        report.phase = Phase::Deleting;
        if let Some(body) = observed.bodies.present().and_then(|bodies| bodies.first()) {
            report.container_id = Some(body.container.id.clone());
        }
        report
    });
    Decision { report, actions, wake_at: waits.then(|| after(now, AGAIN)) }
}

/// Stop and remove one container.
fn remove(body: &Body, grace: Duration, actions: &mut Vec<Action>) {
    let container = body.container.id.clone();
    if running(body) {
        actions.push(Action::StopContainer { container: container.clone(), grace });
    }
    actions.push(Action::RemoveContainer { container });
}

/// Destroys disks that have tombstones and that nothing uses; true when it has to wait for a look.
fn destroy_disks(desired: &Desired, observed: &Observed, actions: &mut Vec<Action>) -> bool {
    let wanted = desired.order.as_ref().filter(|_| !desired.doomed).map(|order| &order.disk);
    let mut waits = false;
    let mut facts = desired.facts.clone();
    let mut done = Vec::new();
    for disk in desired.doomed_disks.iter().filter(|disk| Some(*disk) != wanted) {
        if in_use(disk, desired, observed) {
            waits = true;
            continue;
        }
        match &observed.doomed_disks {
            Seen::Unknown => {
                waits = true;
                continue;
            }
            Seen::Present(there) if there.contains(disk) => {
                done.push(Action::DestroyDisk { disk: disk.clone() });
            }
            Seen::Present(_) | Seen::Absent => {}
        }
        facts.disks.retain(|known| known != disk);
        done.push(Action::Bury { uid: disk.clone() });
    }
    actions.extend(done);
    if desired.order.is_some() && facts != desired.facts {
        actions.push(Action::Remember(Box::new(facts)));
    }
    waits
}

/// Whether a container has the disk, or may have it.
fn in_use(disk: &Uid, desired: &Desired, observed: &Observed) -> bool {
    match &observed.bodies {
        // Without an order there is no instance whose containers could be looked for: the host's own check
        // (nothing mounted on it) has to do.
        Seen::Unknown => desired.order.is_some() || desired.doomed,
        Seen::Absent => false,
        Seen::Present(bodies) => {
            bodies.iter().any(|body| disk_of(body, &desired.facts).is_none_or(|used| used == disk))
        }
    }
}

/// The disk that a container stands on. None: not known.
fn disk_of<'a>(body: &'a Body, facts: &'a Facts) -> Option<&'a Uid> {
    let made = facts.made.as_ref().filter(|made| made.fingerprint == body.container.spec);
    body.record.present().or(made.map(|made| &made.disk))
}

/// What is told when nothing of it is known yet.
fn blank(order: &Order, facts: &Facts, observed: &Observed) -> Report {
    Report {
        uid: order.uid().clone(),
        epoch: order.assignment.epoch,
        generation: order.instance.generation,
        assignment_generation: order.assignment.generation,
        phase: Phase::Pending,
        reason: None,
        message: None,
        container_id: None,
        pid: None,
        started_at: None,
        exit_code: None,
        oom_killed: facts.oom_killed,
        restarts: facts.restarts,
        user_data_exit_code: observed.user_data_exit_code,
        limits: LimitsStatus::default(),
        restart_required: Vec::new(),
        squeezed_since: None,
    }
}

/// One instance that has an order and no tombstone.
struct Case<'a> {
    now: Timestamp,
    desired: &'a Desired,
    order: &'a Order,
    observed: &'a Observed,
    stand: Stand<'a>,
    leftovers: Vec<&'a Body>,
    facts: Facts,
    report: Report,
    actions: Vec<Action>,
    wake_at: Option<Timestamp>,
}

impl<'a> Case<'a> {
    fn new(now: Timestamp, desired: &'a Desired, order: &'a Order, observed: &'a Observed) -> Self {
        let (stand, leftovers) = Stand::of(&observed.bodies);
        let disk = observed.disk.present().map(|_| &order.disk);
        let facts = learn(now, order, &observed.boot, &stand, disk, &desired.facts);
        let report = blank(order, &facts, observed);
        let actions = Vec::new();
        Case { now, desired, order, observed, stand, leftovers, facts, report, actions, wake_at: None }
    }

    fn decide(mut self) -> Decision {
        self.identify();
        self.clear_leftovers();
        match (self.order.instance.spec.state, self.stand) {
            (_, Stand::Unknown) => return self.unknown(),
            (RunState::Running, Stand::Absent) => self.bring_up(None),
            (RunState::Running, Stand::Created { body } | Stand::Exited { body }) => {
                self.bring_up(Some(body));
            }
            (RunState::Running, Stand::Running { body, pid, started_at }) => {
                if self.facts.stopping.is_some() || self.stands_on_another_disk(body) {
                    self.stop(body);
                } else {
                    self.tend(body, pid, started_at);
                }
            }
            (RunState::Stopped, Stand::Running { body, .. }) => self.stop(body),
            (RunState::Stopped, Stand::Created { body } | Stand::Exited { body }) => {
                self.report.phase = Phase::Stopped;
                // A rebuild of a stopped instance: the old disk is to be free for its tombstone.
                if self.stands_on_another_disk(body) {
                    self.actions.push(Action::RemoveContainer { container: body.container.id.clone() });
                }
            }
            (RunState::Stopped, Stand::Absent) => self.report.phase = Phase::Stopped,
            (RunState::Running | RunState::Stopped, Stand::Broken { body }) => {
                self.report.phase = Phase::Starting;
                self.actions.push(Action::RemoveContainer { container: body.container.id.clone() });
            }
            // A wish of a newer version: told as it was, acted on by nobody.
            (RunState::Unknown, _) => return self.unknown(),
        }
        self.finish()
    }

    /// Nothing is known: nothing is done, and what was told stays told.
    fn unknown(self) -> Decision {
        let report = self
            .observed
            .last
            .clone()
            .unwrap_or_else(|| Report { reason: Some("docker_unavailable".to_owned()), ..self.report });
        // Before the first look after an agent's start the server knows more than we do.
        let known = self.observed.last.is_some() || self.desired.facts == Facts::first(self.order);
        Decision {
            report: known.then_some(report),
            actions: Vec::new(),
            wake_at: Some(after(self.now, AGAIN)),
        }
    }

    fn identify(&mut self) {
        if let Some(body) = self.stand.body() {
            self.report.container_id = Some(body.container.id.clone());
            self.report.restart_required =
                restart_required(self.order, self.facts.made.as_ref(), &body.container.spec);
        }
        if let Stand::Running { pid, started_at, .. } = self.stand {
            self.report.pid = Some(pid);
            self.report.started_at = Some(started_at);
        }
        if let Some(exit) = &self.facts.exit
            && exit.cause != Cause::Refused
        {
            self.report.exit_code = Some(exit.code);
        }
    }

    /// More than one container of one instance: all but one go, none that a newer order made.
    fn clear_leftovers(&mut self) {
        let grace = self.order.instance.spec.stop_grace.duration();
        for body in std::mem::take(&mut self.leftovers) {
            if body.container.epoch <= self.order.assignment.epoch {
                remove(body, grace, &mut self.actions);
            }
        }
    }

    fn stands_on_another_disk(&self, body: &Body) -> bool {
        disk_of(body, &self.facts).is_some_and(|disk| *disk != self.order.disk)
    }

    fn stop(&mut self, body: &Body) {
        self.report.phase = Phase::Stopping;
        if self.facts.stopping.is_none()
            && let Some(run) = &self.facts.run
        {
            self.facts.stopping = Some(run.clone());
        }
        let grace = self.order.instance.spec.stop_grace.duration();
        self.actions.push(Action::StopContainer { container: body.container.id.clone(), grace });
    }

    /// A running container: what changes live, changed.
    fn tend(&mut self, body: &Body, pid: u32, started_at: Timestamp) {
        self.report.phase = Phase::Running;
        self.report.squeezed_since = self.observed.squeezed_since;
        let spec = &self.order.instance.spec;
        match &self.observed.network {
            Seen::Present(true) | Seen::Unknown => {}
            Seen::Present(false) => self.actions.push(Action::EnsureNetwork),
            // Its namespace lives on without its name. Another one would take the links away from it.
            Seen::Absent => {
                self.report.reason = Some("network_unavailable".to_owned());
                self.report.message =
                    Some("the pin of its network namespace is gone; a restart puts it back".to_owned());
            }
        }
        if let Seen::Present(disk) = &self.observed.disk
            && disk.size < self.order.assignment.granted.disk_size
        {
            self.actions.push(Action::EnsureDisk { image: None });
        }
        if body.record == Seen::Absent
            && let Some(made) = self.ingredients(&body.container.spec)
        {
            let container = Some(body.container.id.clone());
            self.actions.push(Action::WriteRecord { container, made: Box::new(made) });
        }
        let applied = self.observed.limits.as_ref().filter(|applied| {
            applied.container == body.container.id
                && applied.started_at == started_at
                && applied.granted == self.order.assignment.granted
        });
        if let Some(applied) = applied {
            self.report.limits = applied.status.clone();
        }
        if applied.is_none_or(|applied| applied.status.state == LimitsState::Deferred) {
            let container = body.container.id.clone();
            self.actions.push(Action::ApplyLimits { container, pid, started_at });
        }
        if spec.user_data.is_some() && self.observed.user_data_exit_code.is_none() {
            self.wake_at = Some(after(self.now, USER_DATA));
        }
    }

    /// What a container with this label was made from, as far as it can be told.
    fn ingredients(&self, container: &str) -> Option<Made> {
        let known = self.facts.made.as_ref().filter(|made| made.fingerprint == container).cloned();
        let same = fingerprint(self.order) == container;
        known.or_else(|| self.observed.image.present().filter(|_| same).map(|image| self.make(image)))
    }

    fn make(&self, image: &ImageInfo) -> Made {
        Made {
            fingerprint: fingerprint(self.order),
            spec: self.order.instance.spec.clone(),
            env: self.order.env.clone(),
            disk: self.order.disk.clone(),
            image: image.id.clone(),
            volumes: image.volumes.clone(),
        }
    }

    /// From anything that does not run to a start, unless the restart policy says otherwise.
    fn bring_up(&mut self, body: Option<&Body>) {
        self.report.phase = Phase::Starting;
        if self.policy_holds() {
            return;
        }
        let pinned = match &self.observed.disk {
            Seen::Unknown => {
                return self.wait(Phase::Pending, "disk_unavailable", "the disk could not be looked at");
            }
            Seen::Absent if self.facts.disks.contains(&self.order.disk) => {
                let message = format!(
                    "its disk {} was here and is not; put it back, or rebuild to begin with an empty one",
                    self.order.disk
                );
                return self.wait(Phase::Failed, "disk_missing", &message);
            }
            Seen::Absent => None,
            Seen::Present(disk) => disk.image.clone(),
        };
        if let Some(holder) = &self.observed.holder {
            let message = format!("a container of {holder} still has its name; its tombstone removes it");
            return self.wait(Phase::Pending, "name_held", &message);
        }
        if !self.order.instance.spec.files.is_empty() {
            match self.observed.delivered {
                Seen::Present(()) => {}
                Seen::Unknown => {
                    return self.wait(
                        Phase::Pending,
                        "files_unavailable",
                        "its files could not be looked for",
                    );
                }
                Seen::Absent => {
                    self.report.phase = Phase::Pending;
                    self.report.message = Some("getting its files".to_owned());
                    return self.actions.push(Action::DeliverFiles);
                }
            }
        }
        let kept = body.filter(|body| !self.outdated(body));
        let made = kept.and_then(|body| self.ingredients(&body.container.spec));
        let image = match &self.observed.image {
            Seen::Present(image) => Some(image.clone()),
            Seen::Unknown | Seen::Absent => None,
        };
        let (kept, made) = match (kept, made, &image) {
            (Some(body), Some(made), _) => (Some(body), made),
            (_, _, Some(image)) => (None, self.make(image)),
            (_, _, None) => {
                self.report.phase = Phase::Pending;
                if self.observed.image == Seen::Absent {
                    self.report.message =
                        Some(format!("getting the image {}", self.order.instance.spec.image));
                    self.actions.push(Action::EnsureImage { pinned });
                } else {
                    self.wait(Phase::Pending, "docker_unavailable", "the image could not be looked for");
                }
                return;
            }
        };
        if kept.is_none()
            && let Some(old) = body
        {
            self.actions.push(Action::RemoveContainer { container: old.container.id.clone() });
        }
        self.facts.made = Some(made.clone());
        self.lay_ground(Some(pinned.map_or_else(|| made.image.clone(), |pin| pin.id)));
        let container = kept.map(|body| body.container.id.clone());
        if let (None, Some(image)) = (kept, image) {
            let (made, image) = (Box::new(made.clone()), Box::new(image));
            self.actions.push(Action::CreateContainer { made, image });
        }
        self.actions.push(Action::WriteRecord { container: container.clone(), made: Box::new(made) });
        self.actions.push(Action::StartContainer { container });
    }

    /// Disk and network, before the container that borrows them.
    fn lay_ground(&mut self, image: Option<String>) {
        let wanted = self.order.assignment.granted.disk_size;
        let good = self.observed.disk.present().is_some_and(|disk| disk.ready && disk.size >= wanted);
        if !good {
            self.actions.push(Action::EnsureDisk { image });
        }
        if self.observed.network != Seen::Present(true) {
            self.actions.push(Action::EnsureNetwork);
        }
    }

    /// Whether another container has to take its place at the next start.
    fn outdated(&self, body: &Body) -> bool {
        body.container.spec != fingerprint(self.order)
            || body.container.epoch != self.order.assignment.epoch
            || self.stands_on_another_disk(body)
    }

    /// After an end by itself: done for good, or a wait.
    fn policy_holds(&mut self) -> bool {
        let Some(exit) = &self.facts.exit else { return false };
        let (reason, message) = if exit.oom_killed {
            ("oom_killed", format!("killed for its memory, exit code {}", exit.code))
        } else if exit.code == 0 {
            ("exited", "its main process ended".to_owned())
        } else {
            ("crashed", format!("its main process ended with exit code {}", exit.code))
        };
        let phase = match exit.due {
            None if exit.code == 0 => Phase::Stopped,
            None => Phase::Failed,
            Some(due) if self.now < due => {
                self.wake_at = Some(due);
                Phase::Backoff
            }
            Some(_) => return false,
        };
        self.report.phase = phase;
        self.report.reason = Some(reason.to_owned());
        self.report.message = Some(message);
        true
    }

    fn wait(&mut self, phase: Phase, reason: &str, message: &str) {
        self.report.phase = phase;
        self.report.reason = Some(reason.to_owned());
        self.report.message = Some(message.to_owned());
        self.wake_at = Some(after(self.now, AGAIN));
    }

    fn finish(mut self) -> Decision {
        let desired = Desired { facts: self.facts.clone(), ..self.desired.clone() };
        let mut last = Vec::new();
        if destroy_disks(&desired, self.observed, &mut last) {
            self.wake_at.get_or_insert(after(self.now, AGAIN));
        }
        if self.facts != self.desired.facts {
            self.actions.insert(0, Action::Remember(Box::new(self.facts)));
        }
        // A generation is acted on once its live changes were tried; until then the last word holds. Before the
        // first word of this agent the server's own does.
        let live = |action: &Action| {
            matches!(action.step(), Step::EnsureNetwork | Step::EnsureDisk | Step::ApplyLimits)
        };
        let tried = |step: Step| self.observed.trouble.as_ref().is_some_and(|trouble| trouble.step == step);
        let unsettled = self.report.phase == Phase::Running
            && self.actions.iter().any(|action| live(action) && !tried(action.step()));
        let report = if unsettled { self.observed.last.clone() } else { Some(self.report) };
        self.actions.extend(last);
        Decision { report, actions: self.actions, wake_at: self.wake_at }
    }
}

#[cfg(test)]
mod tests;
