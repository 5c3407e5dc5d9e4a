//! One host's instances: what each should be ([`crate::ledger`]), what it is ([`observe`]), what to do about it
//! ([`decide`], pure), and doing it ([`act`]).
//!
//! One task an instance, the only one that touches it. It wakes on a changed order, on Docker's word and on a slow
//! timer, and every time looks at everything anew: what woke it is never believed. It can be killed between any two
//! steps; whoever comes next looks, decides and goes on.
//!
//! ```text
//!   wake ─▶ ledger ─▶ observe ─▶ decide ─▶ report ─▶ act, act, act ─┐
//!    ▲                   ▲                                          │
//!    └── nothing to do   └───────── done, or failed (wait) ─────────┘
//! ```
//! [`fleet`] starts the tasks, takes orders in, and finds orphans.

pub mod act;
pub mod decide;
pub mod facts;
mod files;
pub mod fleet;
pub mod learn;
pub mod linux;
pub mod machine;
pub mod observe;
pub mod observed;
pub mod samples;
pub mod simulated;
pub mod squeezed;

use crate::image::Images;
use crate::image::mirror::Source;
use crate::ledger::Ledger;
use crate::runtime::Runtime;
use crate::session::outbox::Outbox;
use act::{Failure, Scratch, act};
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use decide::decide;
use enoki_api::instance::Doomed;
use enoki_api::object::Uid;
use enoki_api::protocol::FromAgent;
use futures::future::join_all;
use jiff::Timestamp;
use machine::Machine;
use observe::{Memory, desired, links, observe};
use observed::{Action, Decision, Desired, Step, Trouble};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// Bring-ups at once. Docker's own start rate on two cores stops growing at about eight in flight, and a host that
/// boots with hundreds of instances stays answerable.
const BRING_UPS: usize = 8;
/// How long an instance is left alone when nothing is said of it.
const SLOW: Duration = Duration::from_secs(30);
/// The pause of an instance whose actions succeed and change nothing.
const SPIN: Duration = Duration::from_secs(2);
/// The longest wait before a failed action is tried again (crash loops have their own, in `learn`).
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// What every instance's task needs: the host's parts, each behind a handle.
pub struct Host {
    pub runtime: Arc<dyn Runtime>,
    pub machine: Arc<dyn Machine>,
    pub images: Images,
    pub ledger: Arc<Ledger>,
    pub outbox: Outbox,
    /// Whether Docker answers.
    pub docker: watch::Receiver<bool>,
    /// Somebody told who is where on networks that span hosts.
    pub overlaid: Notify,
    bring_ups: Semaphore,
    /// Container ids by uid, from the last list.
    listed: Mutex<BTreeMap<Uid, Vec<String>>>,
    /// Since when who is squeezed; see [`squeezed`].
    squeezed: Mutex<BTreeMap<Uid, Timestamp>>,
}

impl Host {
    pub fn new(
        runtime: Arc<dyn Runtime>,
        machine: Arc<dyn Machine>,
        source: Arc<dyn Source>,
        ledger: Arc<Ledger>,
        outbox: Outbox,
        docker: watch::Receiver<bool>,
    ) -> Self {
        Host {
            images: Images::new(runtime.clone(), source),
            runtime,
            machine,
            ledger,
            outbox,
            docker,
            overlaid: Notify::new(),
            bring_ups: Semaphore::new(BRING_UPS),
            listed: Mutex::default(),
            squeezed: Mutex::default(),
        }
    }

    /// Runs what blocks on the disk beside the tasks; on a runtime of one thread, where nothing is beside, in its turn.
    pub async fn with_ledger<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            return Ok(work(&self.ledger));
        }
        let ledger = self.ledger.clone();
        tokio::task::spawn_blocking(move || work(&ledger))
            .await
            .map_err(|error| Failure { reason: "ledger_unwritable", message: error.to_string() })
    }

    fn listed(&self, uid: &Uid) -> Vec<String> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.get(uid).cloned().unwrap_or_default()
    }

    fn squeezed_since(&self, uid: &Uid) -> Option<Timestamp> {
        self.squeezed.lock().unwrap_or_else(PoisonError::into_inner).get(uid).copied()
    }

    /// Those of whom something else holds from now on.
    fn set_squeezed(&self, all: BTreeMap<Uid, Timestamp>) -> Vec<Uid> {
        let mut squeezed = self.squeezed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *squeezed, all);
        let differs = |uid: &&Uid| before.get(*uid) != squeezed.get(*uid);
        before.keys().chain(squeezed.keys()).filter(differs).cloned().collect()
    }

    fn set_listed(&self, all: BTreeMap<Uid, Vec<String>>) {
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// What an event told since the last list.
    fn appeared(&self, uid: &Uid, container: &str) {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = listed.entry(uid.clone()).or_default();
        if !ids.iter().any(|id| id == container) {
            ids.push(container.to_owned());
        }
    }

    /// The same for a container that is gone.
    fn vanished(&self, uid: &Uid, container: &str) {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ids) = listed.get_mut(uid) {
            ids.retain(|id| id != container);
            if ids.is_empty() {
                listed.remove(uid);
            }
        }
    }

    /// Whether this disk is an instance's own to destroy, or a volume that an order that is to stay names. A task of the
    /// disk's own leaves it alone then: the instance's may be about to make it, or to start on it.
    fn needs(&self, uid: &Uid) -> bool {
        self.ledger.uids().iter().filter_map(|instance| self.ledger.get(instance)).any(|entry| {
            let order = &entry.order;
            let stays = self.ledger.tombstone(order.uid()).is_none_or(|t| t.what != Doomed::Instance);
            let volume = order.volumes.values().any(|volume| volume.uid == *uid);
            (stays && volume) || observe::owns(&entry, uid)
        })
    }
}

/// One instance's task. It ends when nothing is wanted of its uid any more.
pub struct Actor {
    host: Arc<Host>,
    uid: Uid,
    wake: Arc<Notify>,
    stop: CancellationToken,
    memory: Memory,
    retry: Option<(Step, ExponentialBackoff)>,
    /// What was done last, and how often in a row.
    repeats: (Vec<Action>, u32),
}

impl Actor {
    pub fn new(host: Arc<Host>, uid: Uid, wake: Arc<Notify>, stop: CancellationToken) -> Self {
        Actor { host, uid, wake, stop, memory: Memory::default(), retry: None, repeats: Default::default() }
    }

    pub async fn run(mut self) {
        let mut docker = self.host.docker.clone();
        loop {
            let up = *docker.borrow_and_update();
            let Some(wanted) = desired(&self.host.ledger, &self.uid) else { break };
            // Between looks and actions is the one place where the agent's own end takes hold.
            if self.stop.is_cancelled() {
                return;
            }
            let decision = self.look(&wanted, up).await;
            let mut pause = decision.wake_at.map_or(SLOW, |at| until(at).min(SLOW));
            if !decision.actions.is_empty() {
                let spins = self.spins(&decision.actions);
                self.carry_out(&wanted, decision.actions).await;
                if !spins {
                    continue;
                }
                pause = SPIN;
            }
            // Cancel-safe: a notification and a changed value stay until they are taken, the rest has no state.
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.wake.notified() => {}
                changed = docker.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.host.outbox.forget(&self.uid);
    }

    /// Whether the same was done, with success, again and again: somebody undoes it, or Docker says done and did not.
    fn spins(&mut self, actions: &[Action]) -> bool {
        if self.repeats.0 == actions {
            self.repeats.1 += 1;
        } else {
            self.repeats = (actions.to_vec(), 0);
        }
        self.repeats.1 > 2
    }

    async fn look(&mut self, wanted: &Desired, up: bool) -> Decision {
        let seen = observe(&self.host, wanted, &self.memory, up).await;
        if let (Some(order), Some(code)) = (&wanted.order, seen.user_data_exit_code)
            && self.memory.user_data.as_ref().is_none_or(|(disk, _)| *disk != order.disk)
        {
            self.memory.user_data = Some((order.disk.clone(), code));
            self.happened(
                "user_data",
                format!("the user data script ended with exit code {code}"),
                code != 0,
            );
        }
        let decision = decide(Timestamp::now(), wanted, &seen);
        if let Some(report) = &decision.report
            && self.memory.last.as_ref() != Some(report)
        {
            self.memory.last = Some(report.clone());
            self.host.outbox.report(report.clone());
        }
        decision
    }

    /// Does the list as far as it goes. A failure ends it; the next look knows how far it came.
    async fn carry_out(&mut self, wanted: &Desired, actions: Vec<Action>) {
        let host = self.host.clone();
        let mut scratch = Scratch::default();
        let mut permit = None;
        let mut left = actions.as_slice();
        while !left.is_empty() {
            if self.stop.is_cancelled() {
                return;
            }
            let loads = |actions: &[Action]| actions.iter().any(|action| brings_up(action.step()));
            let mut count = together(left);
            if permit.is_none() && loads(&left[..count]) {
                permit = host.bring_ups.try_acquire().ok();
                if permit.is_none() {
                    // What is remembered does not wait for a turn.
                    count = 1;
                }
            }
            let wave;
            (wave, left) = left.split_at(count);
            if loads(wave) && permit.is_none() {
                permit = host.bring_ups.acquire().await.ok();
                // The wait may have been long; the instance may be on its way out by now.
                if self.overtaken(wanted) {
                    return;
                }
            }
            let mut first = None;
            for (action, done) in wave.iter().zip(self.side_by_side(wanted, wave, &mut scratch).await) {
                match done {
                    None => return,
                    Some(Ok(())) => self.succeeded(wanted, action),
                    Some(Err(failure)) => drop(first.get_or_insert((action.step(), failure))),
                }
            }
            if let Some(applied) = scratch.limits.take() {
                self.memory.limits = Some(applied);
            }
            if let (true, Some(order)) = (std::mem::take(&mut scratch.network_made), &wanted.order) {
                self.memory.network = Some((links(order), Instant::now()));
            }
            if let Some((step, failure)) = first {
                return self.failed(step, failure);
            }
        }
    }

    /// Does these actions at once, each to its own end. None: it was given up.
    async fn side_by_side(
        &self,
        wanted: &Desired,
        wave: &[Action],
        scratch: &mut Scratch,
    ) -> Vec<Option<Result<(), Failure>>> {
        let all = wave.iter().map(|action| {
            let mut own = scratch.part();
            async move {
                tracing::debug!(uid = %self.uid, step = ?action.step(), "acting");
                let done = match action {
                    Action::EnsureImage { .. } | Action::DeliverFiles => {
                        self.interruptible(wanted, action, &mut own).await
                    }
                    _ => Some(act(&self.host, &self.uid, wanted.order.as_ref(), action, &mut own).await),
                };
                (own, done)
            }
        });
        let mut results = Vec::with_capacity(wave.len());
        for (own, done) in join_all(all).await {
            scratch.absorb(own);
            results.push(done);
        }
        results
    }

    /// An action that may take very long and is given up when something else is wanted meanwhile.
    async fn interruptible(
        &self,
        wanted: &Desired,
        action: &Action,
        scratch: &mut Scratch,
    ) -> Option<Result<(), Failure>> {
        let work = act(&self.host, &self.uid, wanted.order.as_ref(), action, scratch);
        tokio::pin!(work);
        loop {
            // Cancel-safe: `work` is polled on by reference, or dropped on purpose.
            tokio::select! {
                result = &mut work => return Some(result),
                () = self.stop.cancelled() => return None,
                () = self.wake.notified() => if self.overtaken(wanted) { return None },
            }
        }
    }

    /// Whether the ledger wants something else by now. The facts are this task's own.
    fn overtaken(&self, wanted: &Desired) -> bool {
        desired(&self.host.ledger, &self.uid)
            .is_none_or(|now| now.order != wanted.order || now.doomed != wanted.doomed)
    }

    fn succeeded(&mut self, wanted: &Desired, action: &Action) {
        let step = action.step();
        if self.retry.as_ref().is_some_and(|(failed, _)| *failed == step) {
            self.retry = None;
            self.memory.trouble = None;
        }
        match action {
            Action::Remember(facts) if facts.exit != wanted.facts.exit => {
                if let Some(exit) = &facts.exit {
                    let (reason, warning) = match (exit.cause, exit.oom_killed) {
                        (_, true) => ("oom_killed", true),
                        (facts::Cause::Asked, false) => ("stopped", false),
                        (facts::Cause::Reboot, false) => ("host_rebooted", true),
                        (facts::Cause::Refused, false) => ("start_failed", true),
                        (facts::Cause::Itself, false) if exit.code == 0 => ("exited", false),
                        (facts::Cause::Itself, false) => ("crashed", true),
                    };
                    self.happened(
                        reason,
                        format!("ended with exit code {} {}", exit.code, exit.message),
                        warning,
                    );
                }
            }
            Action::StartContainer { .. } => self.happened("started", "started".to_owned(), false),
            _ => {}
        }
    }

    fn failed(&mut self, step: Step, failure: Failure) {
        let first = self.memory.trouble.as_ref().is_none_or(|trouble| trouble.message != failure.message);
        if first {
            tracing::warn!(uid = %self.uid, ?step, reason = failure.reason, message = failure.message, "an action failed");
            self.happened(failure.reason, failure.message.clone(), true);
        }
        if self.retry.as_ref().is_none_or(|(failed, _)| *failed != step) {
            let waits = ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(500))
                .with_max_delay(RETRY_LONGEST)
                .without_max_times()
                .with_jitter();
            self.retry = Some((step, waits.build()));
        }
        let wait = self.retry.as_mut().and_then(|(_, waits)| waits.next()).unwrap_or(RETRY_LONGEST);
        self.memory.trouble = Some(Trouble {
            step,
            reason: failure.reason,
            message: failure.message,
            retry_at: learn::after(Timestamp::now(), wait),
        });
    }

    fn happened(&self, reason: &str, message: String, warning: bool) {
        let uid = self.uid.clone();
        let (reason, message) = (reason.to_owned(), message.trim_end().to_owned());
        self.host.outbox.happened(FromAgent::Happened { uid, reason, message, warning });
    }
}

fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}

/// PURE: how many of the first actions are done at once. Disk and links stand on nothing of each other's, and what is
/// remembered beside them (or beside limits) is about what comes after: a container, its start, its end. Each of them
/// waits for the disk or the kernel, so that together they take as long as the slowest.
fn together(actions: &[Action]) -> usize {
    let step = |at: usize| actions.get(at).map(Action::step);
    let noted = usize::from(step(0) == Some(Step::Remember));
    let ground = actions[noted..]
        .iter()
        .take_while(|action| matches!(action.step(), Step::EnsureDisk | Step::EnsureNetwork))
        .count();
    let limits = noted == 1 && ground == 0 && step(noted) == Some(Step::ApplyLimits);
    (noted + ground + usize::from(limits)).max(1)
}

/// Steps that load Docker and the disk, and are taken in turns.
fn brings_up(step: Step) -> bool {
    match step {
        Step::EnsureDisk
        | Step::EnsureNetwork
        | Step::CreateContainer
        | Step::WriteRecord
        | Step::StartContainer
        | Step::RemoveRemains
        | Step::DestroyDisk => true,
        // An image, files and a stop may take very long, limits and the ledger must not wait.
        Step::Remember
        | Step::EnsureImage
        | Step::DeliverFiles
        | Step::ApplyLimits
        | Step::StopContainer
        | Step::RemoveContainer
        | Step::Bury => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_on_nothing_of_each_others_goes_side_by_side() {
        let note = || Action::Remember(Box::default());
        let disk = || Action::EnsureDisk { image: None };
        let stop = || Action::StopContainer { container: String::new(), grace: Duration::ZERO };
        let limits =
            || Action::ApplyLimits { container: String::new(), pid: 1, started_at: Timestamp::UNIX_EPOCH };
        let start = || Action::StartContainer { container: None };
        let remove = || Action::RemoveContainer { container: String::new() };
        for (list, count) in [
            (vec![start()], 1),
            (vec![note(), stop()], 1),
            (vec![note(), start()], 1),
            (vec![note(), remove(), disk(), Action::EnsureNetwork], 1),
            (vec![note(), disk(), Action::EnsureNetwork, start()], 3),
            (vec![disk(), Action::EnsureNetwork, start()], 2),
            (vec![note(), limits()], 2),
            // Limits are read back with the disk's size.
            (vec![note(), disk(), limits()], 2),
            (vec![disk(), limits()], 1),
        ] {
            assert_eq!(together(&list), count, "{list:?}");
        }
    }
}
