//! PURE: how many workers a cluster should have now, and which of them leave.
//!
//! It grows to what is needed in one step, for whoever waits, waits now. It shrinks to the most that was needed during one
//! whole idle period, so that a short pause costs nothing, and the idlest leave first.

use enoki_api::cluster::ClusterSpec;
use jiff::{SignedDuration, Timestamp};
use std::collections::VecDeque;

/// Workers of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// What it could use now.
    pub wanted: u32,
    /// What it has, used or not: a driver does not give back what it keeps blocks on.
    pub held: u32,
}

/// The workers that the jobs need together. As long as one waits for more, what the others keep idle is no help to it and comes on
/// top; when nobody waits, what is kept idle is surplus, and its blocks are moved.
pub fn needed(uses: &[Use]) -> u32 {
    let waits = uses.iter().any(|each| each.wanted > each.held);
    let need = |each: &Use| if waits { each.wanted.max(each.held) } else { each.wanted };
    uses.iter().map(need).fold(0, u32::saturating_add)
}

/// What was needed lately: the most over a time that slides along. Of one leader: the next begins with nothing, and shrinks
/// no pool before it has looked on for as long itself.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    since: Option<Timestamp>,
    /// Since when this much is needed, or more of it later; each less than the one before it.
    peaks: VecDeque<(Timestamp, u32)>,
}

impl Needs {
    /// Takes what is needed now.
    pub fn note(&mut self, now: Timestamp, needed: u32) {
        self.since.get_or_insert(now);
        while self.peaks.back().is_some_and(|(_, peak)| *peak <= needed) {
            self.peaks.pop_back();
        }
        self.peaks.push_back((now, needed));
    }

    /// Nobody knows what is needed: what was is no ground for anything to leave.
    pub fn unknown(&mut self) {
        *self = Needs::default();
    }

    /// The most that was needed during the last `idle`. None: that long was not looked on.
    pub fn most(&mut self, now: Timestamp, idle: SignedDuration) -> Option<u32> {
        self.since.filter(|since| now.duration_since(*since) >= idle)?;
        // The newest counts however long ago it is: what was last seen still is.
        while self.peaks.len() > 1 && self.peaks.front().is_some_and(|(at, _)| now.duration_since(*at) > idle)
        {
            self.peaks.pop_front();
        }
        self.peaks.front().map(|(_, needed)| *needed)
    }
}

/// One worker, as far as the pool's size is concerned. Those that leave are not among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its number: the highest leaves first among equals.
    pub number: u32,
    /// Tasks that run on it. None: it is not up yet.
    pub tasks: Option<u32>,
    /// Whether an app has it.
    pub used: bool,
}

/// What is to be done about the size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// As many as there should be.
    pub desired: u32,
    /// So many more.
    pub add: u32,
    /// These are asked to leave.
    pub leave: Vec<u32>,
}

/// `needed`: None is unknown, and then what is there stays, at least the minimum. `lately`: see [`Needs::most`].
pub fn size(
    spec: &ClusterSpec,
    workers: &[Worker],
    needed: Option<u32>,
    lately: Option<u32>,
    changed_at: Option<Timestamp>,
    now: Timestamp,
) -> Change {
    let bounds = |count: u32| count.clamp(spec.workers.min, spec.workers.max);
    let there = u32::try_from(workers.len()).unwrap_or(u32::MAX);
    let cooled = changed_at.is_none_or(|at| now.duration_since(at) >= spec.cooldown.signed());
    let wanted = bounds(needed.unwrap_or(there));
    if wanted > there {
        let least = spec.workers.min.saturating_sub(there);
        let step = part(wanted - there, spec.scale_up_factor);
        // What is missing of the minimum was there, or was promised: no cooldown holds it up.
        let add = if cooled { step.max(least) } else { least };
        return Change { desired: wanted, add, leave: Vec::new() };
    }
    let keep = match (needed, lately) {
        (Some(needed), Some(lately)) => bounds(lately.max(needed)),
        // A maximum that was lowered counts at once.
        (Some(_) | None, _) => there.min(spec.workers.max),
    };
    let surplus = there.saturating_sub(keep);
    if surplus == 0 || !cooled {
        return Change { desired: keep.min(there), ..Change::default() };
    }
    let mut leaving: Vec<&Worker> = workers.iter().collect();
    if spec.remove_only_idle_workers {
        leaving.retain(|worker| !worker.used);
    }
    leaving.sort_by_key(|worker| (worker.used, worker.tasks, u32::MAX - worker.number));
    leaving.truncate(part(surplus, spec.scale_down_factor) as usize);
    Change { desired: keep, add: 0, leave: leaving.iter().map(|worker| worker.number).collect() }
}

/// This part of a number, rounded up: a factor above 0 always moves.
fn part(count: u32, factor: f64) -> u32 {
    (f64::from(count) * factor).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(more: serde_json::Value) -> ClusterSpec {
        let mut spec = json!({"version": "4.0.1", "workers": {"min": 1, "max": 8}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    }

    fn idle(count: u32) -> Vec<Worker> {
        (0..count).map(|number| Worker { number, tasks: Some(0), used: false }).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn it_grows_in_one_step_and_within_its_bounds() {
        let spec = spec(json!({}));
        for (there, needed, desired, add) in
            [(1, 6, 6, 5), (1, 200, 8, 7), (0, 0, 1, 1), (3, 3, 3, 0), (8, 200, 8, 0)]
        {
            let change = size(&spec, &idle(there), Some(needed), None, None, at(0));
            assert_eq!(
                (change.desired, change.add, change.leave.len()),
                (desired, add, 0),
                "{there} {needed}"
            );
        }
        assert_eq!(size(&spec, &idle(0), None, None, None, at(0)).add, 1, "the minimum is no question");
        assert_eq!(size(&spec, &idle(4), None, None, None, at(0)).add, 0, "unknown: all stays as it is");
    }

    #[test]
    fn what_one_keeps_idle_is_no_help_to_another() {
        let each = |wanted, held| Use { wanted, held };
        assert_eq!(needed(&[]), 0);
        assert_eq!(needed(&[each(5, 1)]), 5);
        assert_eq!(needed(&[each(1, 5)]), 1, "nobody waits: four are surplus");
        assert_eq!(needed(&[each(0, 3), each(2, 0)]), 5, "the second waits");
        assert_eq!(needed(&[each(0, 3), each(2, 2)]), 2, "it has what it wants");
        assert_eq!(needed(&[each(u32::MAX, 0), each(2, 2)]), u32::MAX);
    }

    #[test]
    fn factors_and_cooldown() {
        let spec = spec(json!({"scale_up_factor": 0.5, "scale_down_factor": 0.3, "cooldown": "10s"}));
        assert_eq!(size(&spec, &idle(1), Some(8), None, None, at(0)).add, 4);
        assert_eq!(size(&spec, &idle(1), Some(8), None, Some(at(5)), at(14)).add, 0);
        assert_eq!(size(&spec, &idle(1), Some(8), None, Some(at(5)), at(15)).add, 4);
        assert_eq!(
            size(&spec, &idle(0), Some(8), None, Some(at(5)), at(6)).add,
            1,
            "the minimum does not wait"
        );
        let down = size(&spec, &idle(8), Some(0), Some(0), None, at(0));
        assert_eq!((down.desired, down.leave.len()), (1, 3));
        let held = size(&spec, &idle(8), Some(0), Some(0), Some(at(5)), at(14));
        assert_eq!(held.leave.len(), 0);
        let never = ClusterSpec { scale_down_factor: 0.0, ..spec };
        assert_eq!(size(&never, &idle(8), Some(0), Some(0), None, at(0)).leave.len(), 0);
    }

    #[test]
    fn the_idlest_and_newest_leave_first() {
        let worker = |number, tasks, used| Worker { number, tasks, used };
        let workers = [
            worker(0, Some(0), false),
            worker(1, Some(1), true),
            worker(2, Some(0), true),
            worker(3, Some(0), false),
            worker(4, None, false),
        ];
        let leave = |keep: u32, only_idle: bool| {
            let spec = ClusterSpec { remove_only_idle_workers: only_idle, ..spec(json!({})) };
            size(&spec, &workers, Some(keep), Some(keep), None, at(0)).leave
        };
        assert_eq!(leave(4, false), [4], "one that is not up yet is missed by nobody");
        assert_eq!(leave(1, false), [4, 3, 0, 2]);
        assert_eq!(leave(1, true), [4, 3, 0]);
    }

    #[test]
    fn a_lowered_maximum_counts_at_once() {
        let change = size(&spec(json!({})), &idle(10), Some(10), None, None, at(0));
        assert_eq!((change.desired, change.leave.len()), (8, 2));
    }

    #[test]
    fn only_what_nobody_needed_for_a_whole_idle_period_is_surplus() {
        let idle = SignedDuration::from_secs(60);
        let mut needs = Needs::default();
        assert_eq!(needs.most(at(0), idle), None);
        needs.note(at(0), 3);
        assert_eq!(needs.most(at(59), idle), None, "that long was not looked on");
        for second in 1..=30 {
            needs.note(at(second), 8);
        }
        for second in 31..=200 {
            needs.note(at(second), 8_u32.saturating_sub(u32::try_from(second).unwrap() - 30));
            let most = needs.most(at(second), idle);
            let expected = if second < 60 { None } else { Some(8 - (second - 90).clamp(0, 8)) };
            assert_eq!(most, expected.map(|most| u32::try_from(most).unwrap()), "at {second}");
        }
        needs.note(at(201), 5);
        assert_eq!(needs.most(at(230), idle), Some(5), "and grows again at once");
        needs.unknown();
        needs.note(at(240), 0);
        assert_eq!(needs.most(at(250), idle), None);
    }
}
