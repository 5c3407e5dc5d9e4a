use super::*;
use enoki_api::instance::InstanceSpec;
use enoki_api::object::Object;
use enoki_api::operation::OperationVerb;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A host with instances, as a drain sees it; its steps are done as the store and an agent would.
struct World {
    spec: OperationSpec,
    status: Option<OperationStatus>,
    cordoned: bool,
    answers: bool,
    instances: BTreeMap<String, Stands>,
}

impl World {
    fn new(stop: bool, instances: &[(&str, Stands)]) -> Self {
        World {
            spec: OperationSpec { verb: OperationVerb::Drain, host: "h2".into(), stop, cancelled: false },
            status: None,
            cordoned: true,
            answers: true,
            instances: instances.iter().map(|(name, stands)| (format!("p/{name}"), stands.clone())).collect(),
        }
    }

    fn running(count: usize) -> Self {
        let mut world = World::new(true, &[]);
        world.instances = (0..count).map(|n| (format!("p/i{n:02}"), Stands::Runs)).collect();
        world
    }

    fn decide(&self) -> Decision {
        let here = self.instances.iter().map(|(name, stands)| {
            let at = name.split_once('/').map(|(p, n)| (p.to_owned(), n.to_owned())).unwrap();
            Here { at, name: name.clone(), stands: stands.clone() }
        });
        decide(&Seen {
            now: Timestamp::UNIX_EPOCH,
            spec: &self.spec,
            status: self.status.as_ref(),
            host: Some(HostSeen { cordoned: self.cordoned, answers: self.answers }),
            here: here.collect(),
        })
    }

    /// One step as the leader does it: the stops and the status are one write.
    fn step(&mut self) -> OperationStatus {
        let decision = self.decide();
        for at in &decision.stop {
            let told = self.instances.insert(format!("{}/{}", at.0, at.1), Stands::Leaves(None));
            assert_eq!(told, Some(Stands::Runs), "only what runs is told to stop");
        }
        self.status = Some(decision.status.clone());
        decision.status
    }

    /// The host confirms one stop.
    fn confirm(&mut self) {
        let next = self.instances.values_mut().find(|stands| matches!(stands, Stands::Leaves(_)));
        *next.expect("something is stopping") = Stands::Stopped;
    }

    fn stopping(&self) -> usize {
        self.instances.values().filter(|stands| matches!(stands, Stands::Leaves(_))).count()
    }
}

fn names(status: &OperationStatus, what: StepKind) -> Vec<&str> {
    let lines = status.journal.iter().filter(|step| step.what == what);
    lines.map(|step| step.instance.as_deref().unwrap()).collect()
}

#[test]
fn what_cannot_move_is_named_each_with_its_reason() {
    let mut world = World::new(false, &[("a", Stands::Runs), ("b", Stands::Stopped)]);
    let status = world.step();
    assert_eq!((status.phase, status.reason.as_deref()), (OperationPhase::Blocked, Some("cannot_move")));
    assert_eq!(names(&status, StepKind::CannotMove), ["p/a", "p/b"]);
    assert_ne!(status.journal[0].message, status.journal[1].message);
    assert!(status.message.unwrap().contains("p/a, p/b"));
    assert_eq!(World::new(false, &[]).step().phase, OperationPhase::Succeeded);
}

#[test]
fn instances_are_stopped_a_few_at_once_and_every_one_is_noted() {
    let mut world = World::running(6);
    let status = world.step();
    assert_eq!((world.stopping(), status.progress), (AT_ONCE, Progress { done: 0, total: 6 }));
    assert_eq!(world.step(), status, "nothing changed: nothing to write");
    world.confirm();
    let status = world.step();
    assert_eq!((world.stopping(), status.progress), (AT_ONCE, Progress { done: 1, total: 6 }));
    for _ in 0..5 {
        world.confirm();
        world.step();
    }
    let status = world.step();
    assert_eq!((status.phase, status.progress), (OperationPhase::Succeeded, Progress { done: 6, total: 6 }));
    assert_eq!(names(&status, StepKind::Stopping), names(&status, StepKind::Stopped));
    assert!(status.ended_at.is_some());
}

#[test]
fn what_is_stopped_already_stays_untold() {
    let mut world = World::new(true, &[("a", Stands::Stopped), ("b", Stands::Leaves(Some("x".into())))]);
    let status = world.step();
    assert_eq!((status.phase, status.progress.total), (OperationPhase::Running, 0), "its end is waited for");
    assert!(status.message.unwrap().contains("p/b (x)"));
    world.confirm();
    let status = world.step();
    assert_eq!((status.phase, status.journal.len()), (OperationPhase::Succeeded, 0));
}

#[test]
fn a_cancelled_drain_begins_nothing_and_says_what_it_did() {
    let mut world = World::running(6);
    world.step();
    world.confirm();
    world.spec.cancelled = true;
    let before = world.stopping();
    let status = world.step();
    assert_eq!((status.phase, world.stopping()), (OperationPhase::Cancelled, before));
    let message = status.message.unwrap();
    assert!(
        message.contains("p/i00") && message.contains("uncordon h2") && !message.contains("p/i05"),
        "{message}"
    );
}

#[test]
fn an_uncordoned_host_ends_it() {
    let mut world = World::running(1);
    world.cordoned = false;
    let status = world.step();
    assert_eq!((status.phase, world.stopping()), (OperationPhase::Cancelled, 0));
    let message = status.message.unwrap();
    assert!(!message.contains("stays cordoned"), "{message}");
}

#[test]
fn a_silent_host_is_waited_for_and_told_nothing() {
    let mut world = World::running(2);
    world.answers = false;
    let status = world.step();
    assert_eq!((status.phase, status.reason.as_deref()), (OperationPhase::Running, Some("host_silent")));
    assert_eq!(world.stopping(), 0);
    world.answers = true;
    let status = world.step();
    assert_eq!((world.stopping(), status.reason), (2, None));
}

#[test]
fn a_user_who_starts_one_again_is_not_overruled() {
    let mut world = World::running(1);
    world.step();
    world.instances.insert("p/i00".into(), Stands::Runs);
    let status = world.step();
    assert_eq!(status.phase, OperationPhase::Blocked);
    assert_eq!(names(&status, StepKind::CannotMove), ["p/i00"]);
}

#[test]
fn a_host_that_is_no_more_fails_it() {
    let world = World::running(0);
    let seen =
        Seen { now: Timestamp::UNIX_EPOCH, spec: &world.spec, status: None, host: None, here: Vec::new() };
    let status = decide(&seen).status;
    assert_eq!((status.phase, status.reason.as_deref()), (OperationPhase::Failed, Some("host_missing")));
}

#[test]
fn only_a_host_that_has_acted_on_the_newest_generation_confirms() {
    let mut instance =
        Object::new(Some("p"), "a", Default::default(), InstanceSpec::new("i"), Timestamp::UNIX_EPOCH);
    assert_eq!(Stands::of(&instance), Stands::Runs);
    instance.status.phase = Phase::Stopped;
    assert_eq!(Stands::of(&instance), Stands::Runs, "its program may start again");
    (instance.spec.state, instance.generation, instance.status.observed_generation) =
        (RunState::Stopped, 2, 1);
    assert_eq!(Stands::of(&instance), Stands::Leaves(None), "an older stop");
    instance.status.observed_generation = 2;
    assert_eq!(Stands::of(&instance), Stands::Stopped);
    instance.status.phase = Phase::Unknown;
    instance.status.reason = Some("host_lost".into());
    assert_eq!(Stands::of(&instance), Stands::Leaves(Some("host_lost".into())));
    instance.spec.state = RunState::Unknown;
    assert_eq!(Stands::of(&instance), Stands::Unreadable);
    instance.deleted_at = Some(Timestamp::UNIX_EPOCH);
    assert_eq!(Stands::of(&instance), Stands::Leaves(Some("deleting".into())));
}

#[derive(Clone, Debug)]
enum Turn {
    Step,
    Confirm,
    Delete(usize),
    Silence(bool),
}

proptest! {
    /// Whatever happens meanwhile and whoever leads, it comes to its end, each instance is told once, never more than a
    /// few at once, and all that was told is confirmed or gone.
    #[test]
    fn it_ends_whatever_happens(
        count in 0usize..20,
        turns in prop::collection::vec(
            prop_oneof![
                4 => Just(Turn::Step),
                3 => Just(Turn::Confirm),
                1 => (0usize..20).prop_map(Turn::Delete),
                1 => any::<bool>().prop_map(Turn::Silence),
            ],
            0..60,
        ),
    ) {
        let mut world = World::running(count);
        for turn in turns {
            match turn {
                Turn::Step => drop(world.step()),
                Turn::Confirm if world.stopping() > 0 => world.confirm(),
                Turn::Confirm => {}
                Turn::Delete(n) => drop(world.instances.remove(&format!("p/i{n:02}"))),
                Turn::Silence(silent) => world.answers = !silent,
            }
            prop_assert!(world.stopping() <= AT_ONCE);
            if world.status.as_ref().is_some_and(OperationStatus::ended) {
                break;
            }
        }
        world.answers = true;
        for _ in 0..=2 * count + 1 {
            if world.stopping() > 0 && !world.status.as_ref().is_some_and(OperationStatus::ended) {
                world.confirm();
            }
            if !world.status.as_ref().is_some_and(OperationStatus::ended) {
                world.step();
            }
        }
        let status = world.status.unwrap();
        prop_assert_eq!(status.phase, OperationPhase::Succeeded);
        let mut told = names(&status, StepKind::Stopping);
        let mut stopped = names(&status, StepKind::Stopped);
        told.sort_unstable();
        stopped.sort_unstable();
        prop_assert_eq!(&told, &stopped);
        told.dedup();
        prop_assert_eq!(told.len(), stopped.len(), "each once");
        prop_assert!(world.instances.values().all(|stands| *stands == Stands::Stopped));
    }
}
