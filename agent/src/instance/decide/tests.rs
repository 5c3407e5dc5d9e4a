//! A small world that actions change, a table of transitions over it, and properties over random histories.

use super::*;
use crate::instance::facts::Run;
use crate::instance::machine::pin;
use crate::instance::observed::{Applied, Disk, Trouble};
use crate::instance::samples::{changed, order};
use crate::runtime::Container;
use enoki_api::file::FileRef;
use enoki_api::instance::RestartPolicy;
use enoki_api::quantity::Bytes;
use std::sync::Arc;

fn start() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

/// A host that does what it is told at once.
struct World {
    now: Timestamp,
    order: Order,
    facts: Facts,
    doomed: bool,
    doomed_disks: Vec<Uid>,
    docker: bool,
    bodies: Vec<Body>,
    image: Option<ImageInfo>,
    disks: Vec<(Uid, Disk)>,
    network: Option<bool>,
    files: bool,
    delivered: bool,
    limits: Option<Applied>,
    boot: u32,
    trouble: Option<Trouble>,
    last: Option<Report>,
    made: u32,
    done: Vec<Action>,
    destroyed: Vec<Uid>,
    buried: Vec<Uid>,
}

impl World {
    fn new(order: Order) -> Self {
        World {
            now: start(),
            facts: Facts::first(&order),
            order,
            doomed: false,
            doomed_disks: Vec::new(),
            docker: true,
            bodies: Vec::new(),
            image: Some(image()),
            disks: Vec::new(),
            network: None,
            files: false,
            delivered: false,
            limits: None,
            boot: 1,
            trouble: None,
            last: None,
            made: 0,
            done: Vec::new(),
            destroyed: Vec::new(),
            buried: Vec::new(),
        }
    }

    /// Brought up, and forgotten what it took.
    fn running() -> Self {
        let mut world = World::new(order("web1"));
        world.settle();
        world.done.clear();
        world
    }

    fn desired(&self) -> Desired {
        Desired {
            uid: self.order.uid().clone(),
            order: Some(Arc::new(self.order.clone())),
            facts: self.facts.clone(),
            doomed: self.doomed,
            doomed_disks: self.doomed_disks.clone(),
        }
    }

    fn observed(&self) -> Observed {
        let there = |uid: &&Uid| self.disks.iter().any(|(disk, _)| disk == *uid);
        let bodies = if self.bodies.is_empty() { Seen::Absent } else { Seen::Present(self.bodies.clone()) };
        let disk = self.disks.iter().find(|(uid, _)| *uid == self.order.disk);
        Observed {
            bodies: if self.docker { bodies } else { Seen::Unknown },
            holder: None,
            image: match (&self.image, self.docker) {
                (_, false) => Seen::Unknown,
                (None, true) => Seen::Absent,
                (Some(image), true) => Seen::Present(image.clone()),
            },
            disk: disk.map_or(Seen::Absent, |(_, disk)| Seen::Present(disk.clone())),
            delivered: if self.delivered { Seen::Present(()) } else { Seen::Absent },
            network: self.network.map_or(Seen::Absent, Seen::Present),
            doomed_disks: Seen::Present(self.doomed_disks.iter().filter(there).cloned().collect()),
            remains: if self.files || self.network.is_some() { Seen::Present(()) } else { Seen::Absent },
            limits: self.limits.clone(),
            user_data_exit_code: None,
            boot: self.boot.to_string(),
            squeezed_since: None,
            trouble: self.trouble.clone(),
            last: self.last.clone(),
        }
    }

    fn look(&mut self) -> Decision {
        let decision = decide(self.now, &self.desired(), &self.observed());
        if let Some(report) = &decision.report {
            self.last = Some(report.clone());
        }
        decision
    }

    /// Looks and acts until there is nothing to do now; the decision that found nothing.
    fn settle(&mut self) -> Decision {
        for _ in 0..20 {
            let decision = self.look();
            if decision.actions.is_empty() {
                return decision;
            }
            for action in decision.actions {
                self.act(action);
            }
        }
        panic!("it does not come to rest: {:?}", &self.done[self.done.len() - 6..]);
    }

    fn tick(&mut self, seconds: u64) {
        self.now = after(self.now, Duration::from_secs(seconds));
    }

    fn body(&mut self, id: Option<&String>) -> &mut Body {
        let at = match id {
            Some(id) => self.bodies.iter().position(|body| body.container.id == *id),
            None => self.bodies.len().checked_sub(1),
        };
        &mut self.bodies[at.expect("a container that is there")]
    }

    fn act(&mut self, action: Action) {
        self.now = after(self.now, Duration::from_millis(1));
        let now = self.now;
        assert!(self.docker || action.step() == Step::Remember, "{action:?} without Docker");
        self.done.push(action.clone());
        match action {
            Action::Remember(facts) => self.facts = *facts,
            Action::EnsureImage { .. } => self.image = Some(image()),
            Action::DeliverFiles => self.delivered = true,
            Action::EnsureDisk { image } => {
                let size = self.order.assignment.granted.disk_size;
                match self.disks.iter_mut().find(|(uid, _)| *uid == self.order.disk) {
                    Some((_, disk)) => {
                        disk.ready = true;
                        disk.size = disk.size.max(size);
                    }
                    None => {
                        let image = image.map(|id| pin(&self.order, &id));
                        self.disks.push((self.order.disk.clone(), Disk { ready: true, size, image }));
                    }
                }
            }
            Action::EnsureNetwork => self.network = Some(true),
            Action::CreateContainer { made, .. } => {
                assert!(self.bodies.is_empty(), "the name is taken");
                self.made += 1;
                self.bodies.push(Body {
                    container: Container {
                        id: format!("c{}", self.made),
                        name: "enoki.default.web1".to_owned(),
                        uid: self.order.uid().clone(),
                        epoch: self.order.assignment.epoch,
                        spec: made.fingerprint.clone(),
                        project: "default".to_owned(),
                        instance: "web1".to_owned(),
                        state: State::Created,
                    },
                    record: Seen::Absent,
                });
            }
            Action::WriteRecord { container, made } => {
                self.body(container.as_ref()).record = Seen::Present(made.disk);
            }
            Action::StartContainer { container } => {
                let disk = self.disks.iter().find(|(uid, _)| *uid == self.order.disk).expect("its disk");
                assert!(disk.1.ready && self.network == Some(true), "a start without disk or network");
                self.files = true;
                let body = self.body(container.as_ref());
                assert_ne!(body.record, Seen::Absent, "a start without a record");
                body.container.state = State::Running { pid: 7, started_at: now };
            }
            Action::ApplyLimits { container, started_at, .. } => {
                let granted = self.order.assignment.granted.clone();
                let status = LimitsStatus { state: LimitsState::Applied, ..LimitsStatus::default() };
                self.limits = Some(Applied { container, started_at, granted, status });
            }
            Action::StopContainer { container, .. } => self.end(Some(&container), 143),
            Action::RemoveContainer { container } => {
                assert!(!running(self.body(Some(&container))), "removed while it runs");
                self.bodies.retain(|body| body.container.id != container);
            }
            Action::RemoveRemains => {
                (self.network, self.files, self.delivered) = (None, false, false);
            }
            Action::DestroyDisk { disk } => {
                assert!(self.doomed_disks.contains(&disk), "{disk} has no tombstone");
                assert!(!self.bodies.iter().any(|body| body.record == Seen::Present(disk.clone())), "in use");
                self.disks.retain(|(uid, _)| *uid != disk);
                self.destroyed.push(disk);
            }
            Action::Bury { uid } => {
                self.doomed_disks.retain(|disk| *disk != uid);
                self.buried.push(uid);
                // The instance itself is gone from the ledger; a look at it ends here.
                if self.buried.contains(self.order.uid()) {
                    self.doomed = false;
                    self.order.instance.spec.state = RunState::Stopped;
                }
            }
        }
    }

    fn end(&mut self, id: Option<&String>, code: i64) {
        let finished_at = self.now;
        let body = self.body(id);
        if running(body) {
            let error = String::new();
            body.container.state = State::Exited { code, oom_killed: false, finished_at, error };
        }
    }

    fn steps(&self) -> Vec<Step> {
        self.done.iter().map(Action::step).filter(|step| *step != Step::Remember).collect()
    }

    fn phase(&self) -> Phase {
        self.last.as_ref().expect("a report").phase
    }

    fn reason(&self) -> Option<&str> {
        self.last.as_ref().expect("a report").reason.as_deref()
    }

    fn change(&mut self, change: impl FnOnce(&mut enoki_api::instance::InstanceSpec)) {
        self.order = changed(&self.order, change);
    }
}

fn image() -> ImageInfo {
    ImageInfo { id: "sha256:1".to_owned(), ..ImageInfo::default() }
}

const BRING_UP: [Step; 6] = [
    Step::EnsureDisk,
    Step::EnsureNetwork,
    Step::CreateContainer,
    Step::WriteRecord,
    Step::StartContainer,
    Step::ApplyLimits,
];
const START: [Step; 3] = [Step::WriteRecord, Step::StartContainer, Step::ApplyLimits];

#[test]
fn it_is_brought_up_and_told_in_order() {
    let mut world = World::new(order("web1"));
    world.image = None;
    let first = world.look();
    assert_eq!(first.report.unwrap().phase, Phase::Pending);
    world.settle();
    assert_eq!(world.steps()[0], Step::EnsureImage);
    assert_eq!(world.steps()[1..], BRING_UP);
    assert_eq!(world.phase(), Phase::Running);
    let report = world.last.clone().unwrap();
    assert_eq!((report.generation, report.assignment_generation, report.pid), (1, 1, Some(7)));
    assert_eq!(report.limits.state, LimitsState::Applied);
    assert_eq!(world.facts.disks, [world.order.disk.clone()]);
}

#[test]
fn files_come_first_and_only_for_a_start() {
    let mut job = order("job");
    let file = FileRef { digest: format!("sha256:{}", "ab".repeat(32)), size: 1 };
    job.instance.spec.files.insert("job.py".to_owned(), file);
    let mut world = World::new(job);
    let first = world.look();
    assert_eq!(first.actions, [Action::DeliverFiles], "alone: it may take very long");
    assert_eq!(first.report.unwrap().phase, Phase::Pending);
    world.settle();
    assert_eq!(world.steps()[0], Step::DeliverFiles);
    assert_eq!(world.steps()[1..], BRING_UP);
    // What runs does not need the place that they came from.
    world.done.clear();
    world.delivered = false;
    world.settle();
    assert_eq!((world.steps(), world.phase()), (vec![], Phase::Running));
    world.change(|spec| spec.restart_count = 1);
    world.settle();
    assert_eq!(world.steps()[..2], [Step::StopContainer, Step::DeliverFiles]);
    assert_eq!((world.phase(), world.made), (Phase::Running, 1));
    // Not to be looked at is not absent.
    world.end(None, 1);
    world.tick(600);
    let seen = Observed { delivered: Seen::Unknown, ..world.observed() };
    let decision = decide(world.now, &world.desired(), &seen);
    assert_eq!(decision.report.unwrap().reason.as_deref(), Some("files_unavailable"));
    assert!(decision.actions.iter().all(|action| action.step() == Step::Remember), "{:?}", decision.actions);
}

#[test]
fn a_new_agent_takes_over_without_touching_it() {
    let mut world = World::running();
    // What is only in an agent's memory.
    (world.limits, world.last, world.network) = (None, None, Some(false));
    let first = world.look();
    assert!(first.report.is_none(), "nothing is told before the limits were read: {:?}", first.report);
    world.settle();
    assert_eq!(world.steps(), [Step::EnsureNetwork, Step::ApplyLimits]);
    assert_eq!(world.phase(), Phase::Running);
}

#[test]
fn a_new_agent_without_a_ledger_takes_over_too() {
    let mut world = World::running();
    world.change(|spec| spec.restart_count = 4);
    // The order is new to this agent, the container is not.
    world.facts = Facts::first(&world.order);
    world.settle();
    assert_eq!(world.steps(), []);
    assert_eq!(world.phase(), Phase::Running);
}

#[test]
fn stop_and_start() {
    let mut world = World::running();
    world.change(|spec| spec.state = RunState::Stopped);
    assert_eq!(world.look().report.unwrap().phase, Phase::Stopping);
    world.settle();
    assert_eq!((world.steps(), world.phase()), (vec![Step::StopContainer], Phase::Stopped));
    assert_eq!(world.last.as_ref().unwrap().exit_code, Some(143));
    world.done.clear();
    world.change(|spec| spec.state = RunState::Running);
    world.settle();
    assert_eq!((world.steps(), world.phase()), (START.to_vec(), Phase::Running));
    assert_eq!(world.last.as_ref().unwrap().restarts, 0);
}

#[test]
fn a_restart_happens_once() {
    let mut world = World::running();
    world.change(|spec| spec.restart_count = 1);
    world.settle();
    assert_eq!(world.steps()[0], Step::StopContainer);
    assert_eq!(world.steps()[1..], START);
    // The same container runs again: its id alone does not tell that it was restarted.
    assert_eq!((world.phase(), world.made, world.facts.restart_count), (Phase::Running, 1, 1));
    assert!(world.facts.stopping.is_none());
}

#[test]
fn a_changed_environment_waits_for_the_next_start() {
    let mut world = World::running();
    world.order.env.insert("A".to_owned(), "1".to_owned());
    world.change(|_| {});
    world.settle();
    assert_eq!(world.steps(), []);
    assert_eq!(world.last.as_ref().unwrap().restart_required, ["env"]);
    world.change(|spec| spec.restart_count = 1);
    world.settle();
    assert_eq!(world.steps(), {
        let mut steps = vec![Step::StopContainer, Step::RemoveContainer, Step::CreateContainer];
        steps.extend(START);
        steps
    });
    assert_eq!(world.last.as_ref().unwrap().restart_required, Vec::<String>::new());
    assert_eq!((world.disks.len(), world.destroyed.len()), (1, 0));
}

#[test]
fn limits_and_disk_size_change_live() {
    let mut world = World::running();
    world.change(|spec| spec.memory = Some(Bytes(64 << 20)));
    let before = world.look();
    assert_eq!(before.report.unwrap().assignment_generation, 1, "not before it was tried");
    world.settle();
    assert_eq!(world.steps(), [Step::ApplyLimits]);
    assert_eq!(world.last.as_ref().unwrap().assignment_generation, 2);
    world.change(|spec| spec.disk_size = Some(Bytes(64 << 20)));
    world.settle();
    assert_eq!(world.steps()[1..], [Step::EnsureDisk, Step::ApplyLimits]);
}

#[test]
fn a_new_epoch_alone_restarts_nothing() {
    let mut world = World::running();
    world.order.assignment.epoch = 9;
    world.settle();
    assert_eq!((world.steps(), world.phase()), (vec![], Phase::Running));
    world.end(None, 1);
    world.tick(60);
    world.settle();
    assert_eq!(world.made, 2);
    assert_eq!(world.bodies[0].container.epoch, 9);
}

#[test]
fn restart_policies() {
    // Policy, exit code, and the phase after a long wait.
    for (policy, code, phase) in [
        (RestartPolicy::Always, 0, Phase::Running),
        (RestartPolicy::Always, 1, Phase::Running),
        (RestartPolicy::OnFailure, 0, Phase::Stopped),
        (RestartPolicy::OnFailure, 1, Phase::Running),
        (RestartPolicy::Never, 0, Phase::Stopped),
        (RestartPolicy::Never, 1, Phase::Failed),
    ] {
        let mut world = World::running();
        world.change(|spec| spec.restart = policy);
        world.settle();
        world.end(None, code);
        world.settle();
        world.tick(600);
        world.settle();
        assert_eq!(world.phase(), phase, "{policy} {code}");
        // Removed by somebody: that does not start what has ended.
        world.end(None, code);
        world.settle();
        world.bodies.clear();
        world.tick(600);
        world.settle();
        assert_eq!(world.phase(), phase, "{policy} {code}, removed");
        // A start on purpose does.
        world.change(|spec| spec.state = RunState::Stopped);
        world.settle();
        world.change(|spec| spec.state = RunState::Running);
        world.settle();
        assert_eq!(world.phase(), Phase::Running, "{policy} {code}, started");
    }
}

#[test]
fn a_crash_loop_waits_longer_each_time_and_a_long_run_forgives() {
    let mut world = World::running();
    let mut waits = Vec::new();
    for _ in 0..12 {
        world.end(None, 7);
        let ended = world.now;
        let decision = world.settle();
        assert_eq!((world.phase(), world.reason()), (Phase::Backoff, Some("crashed")));
        assert_eq!(world.last.as_ref().unwrap().exit_code, Some(7));
        let due = decision.wake_at.unwrap();
        waits.push(due.duration_since(ended).as_secs());
        world.now = due;
        world.settle();
        assert_eq!(world.phase(), Phase::Running);
    }
    assert_eq!(waits[..5], [1, 2, 4, 8, 16]);
    assert_eq!(waits[11], 300);
    assert_eq!(world.last.as_ref().unwrap().restarts, 12);
    world.tick(601);
    world.end(None, 7);
    let ended = world.now;
    assert_eq!(world.settle().wake_at.unwrap().duration_since(ended).as_secs(), 1);
}

#[test]
fn an_end_for_memory_is_told_as_such() {
    let mut world = World::running();
    let finished_at = world.now;
    world.bodies[0].container.state =
        State::Exited { code: 137, oom_killed: true, finished_at, error: String::new() };
    world.settle();
    assert_eq!((world.phase(), world.reason()), (Phase::Backoff, Some("oom_killed")));
    assert!(world.last.as_ref().unwrap().oom_killed);
}

#[test]
fn a_reboot_starts_even_what_never_restarts() {
    let mut world = World::running();
    world.change(|spec| spec.restart = RestartPolicy::Never);
    world.settle();
    world.end(None, 255);
    world.boot = 2;
    world.network = None;
    world.disks[0].1.ready = false;
    world.settle();
    assert_eq!(world.phase(), Phase::Running);
    assert_eq!(world.last.as_ref().unwrap().restarts, 0);
}

#[test]
fn a_removed_container_comes_back_on_its_disk() {
    let mut world = World::running();
    world.bodies.clear();
    world.settle();
    assert_eq!((world.phase(), world.made, world.disks.len()), (Phase::Running, 2, 1));
    world.change(|spec| spec.state = RunState::Stopped);
    world.settle();
    world.bodies.clear();
    world.done.clear();
    world.settle();
    assert_eq!((world.steps(), world.phase()), (vec![], Phase::Stopped));
}

#[test]
fn a_half_removed_container_is_cleared_away() {
    let mut world = World::running();
    world.bodies[0].container.state = State::Broken;
    world.settle();
    assert_eq!((world.phase(), world.made), (Phase::Running, 2));
}

#[test]
fn a_rebuild_gets_a_new_disk_and_the_old_one_waits_for_its_tombstone() {
    for state in [RunState::Running, RunState::Stopped] {
        let mut world = World::running();
        let old = world.order.disk.clone();
        world.change(|spec| spec.state = state);
        world.settle();
        world.change(|spec| spec.rebuild_count = 1);
        world.settle();
        assert!(world.disks.iter().any(|(disk, _)| *disk == old), "no tombstone yet");
        world.doomed_disks = vec![old.clone()];
        world.settle();
        assert_eq!((world.destroyed.clone(), world.buried.clone()), (vec![old.clone()], vec![old.clone()]));
        assert!(!world.facts.disks.contains(&old));
        world.change(|spec| spec.state = RunState::Running);
        world.settle();
        assert_eq!(world.bodies[0].record, Seen::Present(world.order.disk.clone()));
    }
}

#[test]
fn a_tombstone_of_the_disk_in_use_waits() {
    let mut world = World::running();
    world.doomed_disks = vec![world.order.disk.clone()];
    world.settle();
    assert_eq!((world.steps(), world.phase()), (vec![], Phase::Running));
}

#[test]
fn a_delete_takes_everything_and_the_disk_by_its_own_tombstone_alone() {
    for with_disk in [false, true] {
        let mut world = World::running();
        let (uid, disk) = (world.order.uid().clone(), world.order.disk.clone());
        world.doomed = true;
        world.doomed_disks = if with_disk { vec![disk.clone()] } else { Vec::new() };
        assert_eq!(world.look().report.unwrap().phase, Phase::Deleting);
        world.settle();
        assert!(world.bodies.is_empty() && world.network.is_none() && !world.files);
        assert_eq!(world.disks.is_empty(), with_disk);
        assert_eq!(world.buried.last(), Some(&uid), "the instance last");
    }
}

#[test]
fn nothing_is_known_and_nothing_is_done() {
    let mut world = World::running();
    let told = world.last.clone();
    world.docker = false;
    world.doomed_disks = vec![world.order.disk.derive("old")];
    for change in [RunState::Stopped, RunState::Running] {
        world.change(|spec| (spec.state, spec.rebuild_count) = (change, 3));
        let decision = world.settle();
        assert_eq!((decision.report, world.steps()), (told.clone(), vec![]));
        assert!(decision.wake_at.is_some());
    }
    world.doomed = true;
    world.settle();
    assert_eq!(world.steps(), []);
}

#[test]
fn a_disk_that_is_gone_is_not_replaced_by_an_empty_one() {
    let mut world = World::running();
    world.end(None, 1);
    world.disks.clear();
    world.tick(60);
    world.settle();
    assert_eq!((world.phase(), world.reason(), world.steps()), (Phase::Failed, Some("disk_missing"), vec![]));
}

#[test]
fn a_name_that_is_held_is_waited_for() {
    let world = World::new(order("web1"));
    let observed = Observed { holder: Some("default/web1 (uid x)".to_owned()), ..world.observed() };
    let decision = decide(world.now, &world.desired(), &observed);
    assert!(decision.actions.is_empty());
    let report = decision.report.unwrap();
    assert_eq!((report.phase, report.reason.as_deref()), (Phase::Pending, Some("name_held")));
}

#[test]
fn a_failed_step_waits_and_is_told() {
    for (step, phase) in [(Step::EnsureDisk, Phase::Pending), (Step::StartContainer, Phase::Backoff)] {
        let mut world = World::new(order("web1"));
        let retry_at = after(world.now, Duration::from_secs(4));
        let reason = "because";
        world.trouble = Some(Trouble { step, reason, message: "it broke".to_owned(), retry_at });
        let decision = world.look();
        assert!(decision.actions.iter().all(|action| action.step() == Step::Remember));
        assert_eq!(decision.wake_at, Some(retry_at));
        assert_eq!((world.phase(), world.reason()), (phase, Some("because")));
        world.now = retry_at;
        assert!(world.look().actions.iter().any(|action| action.step() == step));
    }
}

#[test]
fn leftovers_go_unless_a_newer_order_made_them() {
    let mut world = World::running();
    let mut other = world.bodies[0].clone();
    other.container.id = "c0".to_owned();
    other.container.state = State::Created;
    other.record = Seen::Absent;
    world.bodies.insert(0, other.clone());
    world.settle();
    assert_eq!((world.steps(), world.bodies.len()), (vec![Step::RemoveContainer], 1));
    other.container.epoch = 99;
    world.bodies.insert(0, other);
    world.done.clear();
    world.settle();
    assert_eq!((world.steps(), world.bodies.len()), (vec![], 2));
}

#[test]
fn a_spec_of_a_newer_version_is_acted_on_by_nobody() {
    let mut world = World::running();
    let told = world.last.clone();
    world.change(|spec| spec.state = RunState::Unknown);
    let decision = world.settle();
    assert_eq!((decision.report, world.steps()), (told, vec![]));
}

#[test]
fn an_ownerless_disk_goes_by_its_tombstone() {
    let disk = Uid::random();
    let desired = Desired {
        uid: disk.clone(),
        order: None,
        facts: Facts::default(),
        doomed: false,
        doomed_disks: vec![disk.clone()],
    };
    let there = Observed { doomed_disks: Seen::Present(vec![disk.clone()]), ..Observed::default() };
    let decision = decide(start(), &desired, &there);
    assert_eq!(
        decision.actions,
        [Action::DestroyDisk { disk: disk.clone() }, Action::Bury { uid: disk.clone() }]
    );
    let unknown = decide(start(), &desired, &Observed::default());
    assert!(unknown.actions.is_empty() && unknown.wake_at.is_some());
}

#[test]
fn a_run_is_told_apart_by_its_start() {
    let mut world = World::running();
    let State::Running { started_at, .. } = world.bodies[0].container.state else { panic!("it runs") };
    assert_eq!(world.facts.run, Some(Run { container: "c1".to_owned(), started_at, boot: "1".to_owned() }));
    // Killed between the facts and the stop: the next agent stops it, once.
    world.change(|spec| spec.restart_count = 1);
    let Some(Action::Remember(facts)) = world.look().actions.first().cloned() else { panic!("facts first") };
    world.facts = *facts;
    world.settle();
    assert_eq!(world.steps().iter().filter(|step| **step == Step::StopContainer).count(), 1);
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Event {
        State(bool),
        Restart,
        Rebuild {
            tombstone: bool,
        },
        Memory(u64),
        Env(u8),
        Epoch,
        Crash(i64),
        Remove,
        Break,
        LoseRecord,
        Reboot,
        Docker(bool),
        NewAgent,
        LoseLedger,
        PruneImage,
        /// A kill after so many actions of what follows.
        Kill(usize),
        Wait(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<bool>().prop_map(Event::State),
            Just(Event::Restart),
            any::<bool>().prop_map(|tombstone| Event::Rebuild { tombstone }),
            (1..5u64).prop_map(Event::Memory),
            (0..3u8).prop_map(Event::Env),
            Just(Event::Epoch),
            (0..3i64).prop_map(Event::Crash),
            Just(Event::Remove),
            Just(Event::Break),
            Just(Event::LoseRecord),
            Just(Event::Reboot),
            any::<bool>().prop_map(Event::Docker),
            Just(Event::NewAgent),
            Just(Event::LoseLedger),
            Just(Event::PruneImage),
            (0..6usize).prop_map(Event::Kill),
            (0..400u64).prop_map(Event::Wait),
        ]
    }

    fn meddle(world: &mut World, event: &Event) {
        match event {
            Event::State(run) => {
                let state = if *run { RunState::Running } else { RunState::Stopped };
                world.change(|spec| spec.state = state);
            }
            Event::Restart => world.change(|spec| spec.restart_count += 1),
            Event::Rebuild { tombstone } => {
                let old = world.order.disk.clone();
                world.change(|spec| spec.rebuild_count += 1);
                if *tombstone {
                    world.doomed_disks.push(old);
                }
            }
            Event::Memory(value) => world.change(|spec| spec.memory = Some(Bytes(value << 26))),
            Event::Env(value) => {
                world.order.env.insert("A".to_owned(), value.to_string());
            }
            Event::Epoch => world.order.assignment.epoch += 1,
            Event::Crash(code) => {
                if !world.bodies.is_empty() {
                    world.end(None, *code);
                }
            }
            Event::Remove => world.bodies.clear(),
            Event::Break => {
                for body in &mut world.bodies {
                    body.container.state = State::Broken;
                }
            }
            // With the record and the ledger both lost nobody knows which disk a container has: it is left alone.
            Event::LoseRecord if world.facts.made.is_some() => {
                for body in &mut world.bodies {
                    body.record = Seen::Absent;
                }
            }
            Event::Reboot => {
                if !world.bodies.is_empty() {
                    world.end(None, 255);
                }
                world.boot += 1;
                world.network = None;
                world.limits = None;
                world.disks.iter_mut().for_each(|(_, disk)| disk.ready = false);
            }
            Event::Docker(up) => world.docker = *up,
            Event::NewAgent => {
                (world.limits, world.last) = (None, None);
                world.network = world.network.map(|_| false);
            }
            Event::LoseLedger if world.bodies.iter().all(|body| body.record != Seen::Absent) => {
                world.facts = Facts::first(&world.order);
            }
            Event::LoseRecord | Event::LoseLedger => {}
            // Docker keeps what a container is made from.
            Event::PruneImage if world.bodies.is_empty() => world.image = None,
            Event::PruneImage => {}
            Event::Kill(actions) => {
                for action in world.look().actions.into_iter().take(*actions) {
                    world.act(action);
                }
                (world.limits, world.last) = (None, None);
            }
            Event::Wait(seconds) => world.tick(*seconds),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        /// Whatever happened: it comes to rest, at what is wanted, and no disk is lost without its tombstone. (That
        /// nothing is done without Docker, no disk is destroyed while used, nothing starts unprepared and nothing
        /// is removed while it runs is asserted by the world at each action.)
        #[test]
        fn any_history_ends_at_what_is_wanted(events in proptest::collection::vec(event(), 0..25)) {
            let mut world = World::new(order("web1"));
            let mut tombstones = std::collections::BTreeSet::new();
            for event in &events {
                meddle(&mut world, event);
                tombstones.extend(world.doomed_disks.iter().cloned());
                if !matches!(event, Event::Kill(_)) {
                    world.settle();
                }
            }
            world.docker = true;
            world.settle();
            world.tick(301);
            let rest = world.settle();
            prop_assert!(rest.actions.is_empty());
            match world.order.instance.spec.state {
                RunState::Running => {
                    prop_assert_eq!(world.phase(), Phase::Running);
                    prop_assert_eq!(&world.bodies[0].record, &Seen::Present(world.order.disk.clone()));
                    let limits = world.limits.as_ref().map(|applied| &applied.granted);
                    prop_assert_eq!(limits, Some(&world.order.assignment.granted));
                }
                RunState::Stopped => prop_assert!(!world.bodies.iter().any(running)),
                RunState::Unknown => {}
            }
            prop_assert!(world.bodies.len() <= 1);
            prop_assert!(world.destroyed.iter().all(|disk| tombstones.contains(disk)));
            prop_assert!(world.doomed_disks.iter().all(|disk| *disk == world.order.disk), "tombstones are done");
            // And then all of it can go.
            let disk = world.order.disk.clone();
            world.doomed = true;
            world.doomed_disks = vec![disk.clone()];
            world.settle();
            prop_assert!(world.bodies.is_empty() && world.network.is_none() && !world.files);
            prop_assert!(!world.disks.iter().any(|(uid, _)| *uid == disk));
            prop_assert!(world.buried.contains(world.order.uid()));
        }
    }
}
