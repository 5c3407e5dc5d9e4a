//! PURE: the next step of a drain.
//!
//! The host was cordoned in the write that began it, and every placement compares its host's spec: what is here when
//! this looks is all there will be. What cannot move either ends the drain as blocked, or is stopped in place, a few at
//! once. An instance that was told to stop and runs again was started by its user, who is not overruled.

use crate::state::At;
use enoki_api::instance::{Instance, Phase, RunState};
use enoki_api::operation::{OperationPhase, OperationSpec, OperationStatus, Progress, Step, StepKind};
use jiff::Timestamp;
use std::collections::BTreeSet;

/// Instances that are stopping at once.
const AT_ONCE: usize = 4;
/// Instances that a sentence names.
const NAMED: usize = 5;

/// What is known of a drain.
pub struct Seen<'a> {
    pub now: Timestamp,
    pub spec: &'a OperationSpec,
    /// None: nothing was done yet.
    pub status: Option<&'a OperationStatus>,
    /// None: no such host.
    pub host: Option<HostSeen>,
    /// The instances that are bound to the host.
    pub here: Vec<Here>,
}

pub struct HostSeen {
    pub cordoned: bool,
    pub answers: bool,
}

/// One instance on the host.
pub struct Here {
    pub at: At,
    /// `PROJECT/NAME`.
    pub name: String,
    pub stands: Stands,
}

/// How an instance stands towards being stopped.
#[derive(Clone, Debug, PartialEq)]
pub enum Stands {
    /// It is meant to run.
    Runs,
    /// It is on its way to be stopped or gone, with the reason why that takes long.
    Leaves(Option<String>),
    /// Its host has confirmed that it is stopped.
    Stopped,
    /// Its spec has a wish of a newer version.
    Unreadable,
}

impl Stands {
    pub fn of(instance: &Instance) -> Self {
        let status = &instance.status;
        match instance.spec.state {
            _ if instance.deleted_at.is_some() => Stands::Leaves(Some("deleting".into())),
            RunState::Running => Stands::Runs,
            RunState::Stopped
                if status.phase == Phase::Stopped && status.observed_generation >= instance.generation =>
            {
                Stands::Stopped
            }
            RunState::Stopped => Stands::Leaves(status.reason.clone()),
            RunState::Unknown => Stands::Unreadable,
        }
    }
}

#[derive(Debug)]
pub struct Decision {
    /// To be told to stop, in the write that has the status.
    pub stop: Vec<At>,
    pub status: OperationStatus,
}

pub fn decide(seen: &Seen<'_>) -> Decision {
    let mut drain = Drain { seen, stop: Vec::new(), status: seen.status.cloned().unwrap_or_default() };
    drain.confirm();
    let host = &seen.spec.host;
    match &seen.host {
        _ if seen.spec.cancelled => drain.cancelled("cancelled", "it was cancelled"),
        None => drain.end(OperationPhase::Failed, "host_missing", format!("there is no host {host}")),
        Some(HostSeen { cordoned: false, .. }) => {
            drain.cancelled("uncordoned", "the host takes instances again");
        }
        Some(HostSeen { cordoned: true, .. }) if !seen.spec.stop => drain.move_all(),
        Some(HostSeen { cordoned: true, answers }) => drain.stop_all(*answers),
    }
    Decision { stop: drain.stop, status: drain.status }
}

struct Drain<'a> {
    seen: &'a Seen<'a>,
    stop: Vec<At>,
    status: OperationStatus,
}

impl Drain<'_> {
    /// The instances that the journal has such a line for.
    fn noted(&self, what: StepKind) -> BTreeSet<String> {
        let lines = self.status.journal.iter().filter(|step| step.what == what);
        lines.filter_map(|step| step.instance.clone()).collect()
    }

    fn note(&mut self, what: StepKind, instance: &str, message: Option<&str>) {
        self.status.journal.push(Step {
            at: self.seen.now,
            what,
            instance: Some(instance.to_owned()),
            message: message.map(str::to_owned),
        });
    }

    fn end(&mut self, phase: OperationPhase, reason: &str, message: String) {
        self.status.phase = phase;
        self.status.reason = Some(reason.to_owned());
        self.status.message = Some(message);
        self.status.ended_at = Some(self.seen.now);
    }

    fn progress(&mut self, waiting: usize) {
        let (told, done) = (self.noted(StepKind::Stopping).len(), self.noted(StepKind::Stopped).len());
        self.status.progress = Progress { done: done as u64, total: (told + waiting) as u64 };
    }

    /// Notes what was told to stop and has, or is gone altogether.
    fn confirm(&mut self) {
        let confirmed = self.noted(StepKind::Stopped);
        for name in self.noted(StepKind::Stopping).difference(&confirmed) {
            match self.seen.here.iter().find(|here| here.name == *name).map(|here| &here.stands) {
                None => self.note(StepKind::Stopped, name, Some("it was deleted")),
                Some(Stands::Stopped) => self.note(StepKind::Stopped, name, None),
                Some(Stands::Runs | Stands::Leaves(_) | Stands::Unreadable) => {}
            }
        }
        self.progress(0);
    }

    fn cancelled(&mut self, reason: &str, why: &str) {
        let told: Vec<String> = self.noted(StepKind::Stopping).into_iter().collect();
        let stopped = match told.len() {
            0 => "nothing was stopped".to_owned(),
            _ => format!("{} stopped and stay so until they are started", listed(&told)),
        };
        let cordoned = match &self.seen.host {
            Some(HostSeen { cordoned: true, .. }) => {
                let host = &self.seen.spec.host;
                format!("; {host} stays cordoned, `enoki host uncordon {host}` opens it")
            }
            Some(HostSeen { cordoned: false, .. }) | None => String::new(),
        };
        self.end(OperationPhase::Cancelled, reason, format!("{why}: {stopped}{cordoned}"));
    }

    fn blocked(&mut self, in_the_way: Vec<(String, &str)>, hint: &str) {
        for (name, why) in &in_the_way {
            self.note(StepKind::CannotMove, name, Some(why));
        }
        let names: Vec<String> = in_the_way.into_iter().map(|(name, _)| name).collect();
        let message = format!("{} cannot move away from {}{hint}", listed(&names), self.seen.spec.host);
        self.end(OperationPhase::Blocked, "cannot_move", message);
    }

    fn move_all(&mut self) {
        let why = |stands: &Stands| match stands {
            Stands::Runs => "it runs, and moving is not possible yet",
            Stands::Leaves(_) => "it is stopping or being deleted",
            Stands::Stopped => "it is stopped, and its disk is on this host",
            Stands::Unreadable => "its wanted state is of a newer version",
        };
        let here: Vec<_> = self.seen.here.iter().map(|here| (here.name.clone(), why(&here.stands))).collect();
        if here.is_empty() {
            let message = format!("there is nothing on {}; it stays cordoned", self.seen.spec.host);
            return self.end(OperationPhase::Succeeded, "empty", message);
        }
        self.blocked(here, "; with --stop they are stopped in place");
    }

    fn stop_all(&mut self, answers: bool) {
        let host = &self.seen.spec.host;
        let told = self.noted(StepKind::Stopping);
        let (mut waiting, mut leaving, mut in_the_way) = (Vec::new(), Vec::new(), Vec::new());
        for here in &self.seen.here {
            match &here.stands {
                Stands::Runs if told.contains(&here.name) => {
                    in_the_way.push((here.name.clone(), "it was started again meanwhile"));
                }
                Stands::Runs => waiting.push(here),
                Stands::Leaves(why) => leaving.push(match why {
                    Some(why) => format!("{} ({why})", here.name),
                    None => here.name.clone(),
                }),
                Stands::Stopped => {}
                Stands::Unreadable => {
                    in_the_way.push((here.name.clone(), "its wanted state is of a newer version"));
                }
            }
        }
        let room = if answers { AT_ONCE.saturating_sub(leaving.len()) } else { 0 };
        let begun = waiting.len().min(room);
        for here in waiting.drain(..begun) {
            self.note(StepKind::Stopping, &here.name, None);
            leaving.push(here.name.clone());
            self.stop.push(here.at.clone());
        }
        self.progress(waiting.len());
        let progress = self.status.progress;
        if !waiting.is_empty() || !leaving.is_empty() {
            (self.status.reason, self.status.message) = if answers {
                (None, Some(format!("{progress} stopped; waits for {}", listed(&leaving))))
            } else {
                let message =
                    format!("{progress} stopped; host {host} does not answer, and it goes on when it does");
                (Some("host_silent".into()), Some(message))
            };
            return;
        }
        if !in_the_way.is_empty() {
            return self.blocked(in_the_way, "");
        }
        let message = match progress.total {
            0 => format!("nothing runs on {host}; it stays cordoned"),
            1 => format!("1 instance is stopped until it is started; {host} stays cordoned"),
            many => format!("{many} instances are stopped until they are started; {host} stays cordoned"),
        };
        self.end(OperationPhase::Succeeded, "stopped", message);
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
