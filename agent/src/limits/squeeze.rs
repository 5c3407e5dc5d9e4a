//! PURE: who waits for CPUs that instances of higher priority use.
//!
//! Two looks at the host and at its instances, a while apart, tell it. An instance is squeezed when it got less than half of the
//! CPU time that it could have used within its own quota, on CPUs that were never idle, of which those above it used a real
//! part. So neither instances of one priority among themselves nor one at its own quota ever count; nor does what a cluster's own
//! master and drivers take from its workers.

use enoki_api::instance::CpuSet;
use enoki_api::object::Uid;
use enoki_api::quantity::MilliCpu;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A CPU that was idle for less than this part of the time is taken to be saturated.
const IDLE: f64 = 0.1;
/// The part of the CPUs that those above have to use.
const REAL_PART: f64 = 1.0 / 3.0;
/// Less than this much of one CPU is nothing to miss.
const LACK: f64 = 0.1;
/// One that used up its quota in more of its periods than this waits for itself.
const THROTTLED: f64 = 0.25;

/// Counters of the host's CPUs, by number.
pub type Cpus = BTreeMap<u32, Cpu>;

/// Ticks since the host began, as `/proc/stat` counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub idle: u64,
    pub all: u64,
}

/// Counters of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub cpu_ns: u64,
    /// Periods of its quota, and those in which that was used up.
    pub periods: u64,
    pub throttled: u64,
    /// By thread, how long it ran and how long it waited for a CPU, in ns. Only looked at where it may be squeezed.
    pub threads: BTreeMap<u32, (u64, u64)>,
}

/// What of an instance's order counts here.
#[derive(Clone, Debug, PartialEq)]
pub struct Party {
    pub uid: Uid,
    pub priority: i32,
    /// The cluster that it belongs to.
    pub owner: Option<Uid>,
    pub cpuset: Option<CpuSet>,
    pub quota: Option<MilliCpu>,
}

impl Party {
    /// Whether anybody asks if it is squeezed.
    pub fn gives_way(&self) -> bool {
        self.priority < 0
    }

    /// Whether what it uses is taken from `other`.
    fn squeezes(&self, other: &Party) -> bool {
        let together = self.owner.is_some() && self.owner == other.owner;
        self.priority > other.priority && !together
    }

    fn runs_on(&self, cpu: u32) -> bool {
        self.cpuset.as_ref().is_none_or(|set| set.cpus().contains(&cpu))
    }
}

/// From the text of `/proc/stat`.
pub fn cpus(stat: &str) -> Cpus {
    stat.lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("cpu")?.split_whitespace();
            let number = words.next().filter(|_| !line.starts_with("cpu "))?.parse().ok()?;
            // Times of guests are within those of users.
            let ticks: Vec<u64> = words.take(8).filter_map(|word| word.parse().ok()).collect();
            let idle = ticks.get(3)? + ticks.get(4).unwrap_or(&0);
            Some((number, Cpu { idle, all: ticks.iter().sum() }))
        })
        .collect()
}

/// How long a thread ran and waited, from the text of its `schedstat`.
pub fn schedstat(text: &str) -> Option<(u64, u64)> {
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Whether any of the CPUs was saturated in between: else nobody waits for any.
pub fn saturated(before: &Cpus, after: &Cpus) -> bool {
    after.keys().any(|cpu| full(before, after, &[*cpu]))
}

fn full(before: &Cpus, after: &Cpus, numbers: &[u32]) -> bool {
    let (mut idle, mut all) = (0, 0);
    for number in numbers {
        let (Some(was), Some(is)) = (before.get(number), after.get(number)) else { return false };
        idle += is.idle.saturating_sub(was.idle);
        all += is.all.saturating_sub(was.all);
    }
    all > 0 && (idle as f64) < all as f64 * IDLE
}

/// One look.
#[derive(Clone, Debug, Default)]
pub struct Look {
    pub cpus: Cpus,
    /// Those that run. Empty: nobody had to be looked at.
    pub loads: BTreeMap<Uid, Load>,
}

/// Those that were squeezed between two looks, `between` apart.
pub fn squeezed(before: &Look, after: &Look, between: Duration, parties: &[Party]) -> BTreeSet<Uid> {
    let low = parties.iter().filter(|party| party.gives_way());
    low.filter(|party| is_squeezed(before, after, between, party, parties))
        .map(|party| party.uid.clone())
        .collect()
}

fn is_squeezed(before: &Look, after: &Look, between: Duration, own: &Party, all: &[Party]) -> bool {
    let loads = |uid: &Uid| Some((before.loads.get(uid)?, after.loads.get(uid)?));
    let Some((was, is)) = loads(&own.uid) else { return false };
    let cpus: Vec<u32> = after.cpus.keys().copied().filter(|cpu| own.runs_on(*cpu)).collect();
    if !full(&before.cpus, &after.cpus, &cpus) {
        return false;
    }
    let of_time = |ns: u64| ns as f64 / between.as_nanos().max(1) as f64;
    let above: f64 = all
        .iter()
        .filter(|other| other.squeezes(own) && cpus.iter().any(|cpu| other.runs_on(*cpu)))
        .filter_map(|other| loads(&other.uid))
        .map(|(was, is)| of_time(is.cpu_ns.saturating_sub(was.cpu_ns)))
        .sum();
    if above < cpus.len() as f64 * REAL_PART {
        return false;
    }
    let periods = is.periods.saturating_sub(was.periods) as f64;
    if is.throttled.saturating_sub(was.throttled) as f64 > periods * THROTTLED {
        return false;
    }
    // A thread that was not there before began in between.
    let since = |thread: &u32| was.threads.get(thread).copied().unwrap_or_default();
    let (mut ran, mut waited) = (0, 0);
    for (thread, (run, wait)) in &is.threads {
        let (run_before, wait_before) = since(thread);
        ran += run.saturating_sub(run_before);
        waited += wait.saturating_sub(wait_before);
    }
    let (ran, waited) = (of_time(ran), of_time(waited));
    let quota = own.quota.map_or(f64::INFINITY, |quota| quota.0 as f64 / 1000.0);
    let lack = (ran + waited).min(quota).min(cpus.len() as f64) - ran;
    lack > ran && lack > LACK
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn uid(name: &str) -> Uid {
        Uid::parse("00000000-0000-4000-8000-000000000000").unwrap().derive(name)
    }

    /// A host of two CPUs, for ten seconds: what each of its instances ran and waited, in seconds.
    struct World {
        idle: u64,
        parties: Vec<Party>,
        ran: Vec<(u64, u64)>,
        throttled: u64,
    }

    impl World {
        fn new(idle: u64) -> Self {
            World { idle, parties: Vec::new(), ran: Vec::new(), throttled: 0 }
        }

        fn with(mut self, name: &str, priority: i32, ran: u64, waited: u64) -> Self {
            let quota = Some(MilliCpu(1000)).filter(|_| priority < 0);
            self.parties.push(Party { uid: uid(name), priority, owner: None, cpuset: None, quota });
            self.ran.push((ran, waited));
            self
        }

        fn on(mut self, cpuset: &str) -> Self {
            self.parties.last_mut().unwrap().cpuset = cpuset.parse().ok();
            self
        }

        fn of(mut self, owner: &str) -> Self {
            self.parties.last_mut().unwrap().owner = Some(uid(owner));
            self
        }

        fn squeezed(&self, names: &[&str]) {
            let cpu = |idle: u64, all: u64| Cpu { idle: 700 + idle * 100, all: 2000 + all * 100 };
            let look = |part: u64| Look {
                cpus: [0, 1].map(|number| (number, cpu(self.idle * part, 10 * part))).into(),
                loads: self
                    .parties
                    .iter()
                    .zip(&self.ran)
                    .map(|(party, (ran, waited))| {
                        let thread = (SECOND + ran * part * SECOND / 2, 5 + waited * part * SECOND / 2);
                        let load = Load {
                            cpu_ns: 77 + ran * part * SECOND,
                            periods: 100 * part,
                            throttled: self.throttled * part,
                            threads: [(7, thread), (8, thread)].into(),
                        };
                        (party.uid.clone(), load)
                    })
                    .collect(),
            };
            let squeezed = squeezed(&look(0), &look(1), Duration::from_secs(10), &self.parties);
            assert_eq!(squeezed, names.iter().map(|name| uid(name)).collect());
        }
    }

    #[test]
    fn who_waits_for_those_above_is_squeezed() {
        let world = World::new(0).with("web", 0, 18, 2).with("w1", -100, 1, 19).with("w2", -100, 1, 19);
        world.squeezed(&["w1", "w2"]);
        // Of those below 0, too.
        World::new(0).with("w0", -50, 18, 2).with("w1", -100, 1, 19).squeezed(&["w1"]);
        // On the CPU of both of them.
        World::new(0).with("web", 0, 9, 1).on("1").with("w1", -100, 1, 9).on("1").squeezed(&["w1"]);
    }

    #[test]
    fn who_does_not_wait_for_those_above_is_not() {
        // They wait for each other.
        World::new(0).with("web", 0, 1, 0).with("w1", -100, 9, 20).with("w2", -100, 1, 20).squeezed(&[]);
        // There are CPUs that nobody uses.
        World::new(2).with("web", 0, 14, 2).with("w1", -100, 1, 19).squeezed(&[]);
        // It wants none.
        World::new(0).with("web", 0, 18, 2).with("w1", -100, 0, 0).squeezed(&[]);
        // It is held back by its own quota.
        let mut quota = World::new(0).with("web", 0, 18, 2).with("w1", -100, 1, 19);
        quota.throttled = 60;
        quota.squeezed(&[]);
        // It has more than half of its quota, however much its threads wait for the rest.
        World::new(0).with("web", 0, 14, 2).with("w1", -100, 6, 14).squeezed(&[]);
        // Nobody gives way.
        World::new(0).with("web", 0, 18, 2).with("db", 0, 1, 19).squeezed(&[]);
        // The one that uses them is below it.
        World::new(0).with("w1", -100, 18, 2).with("w2", -50, 1, 19).squeezed(&[]);
        // Its own driver uses them; that of another cluster is another's.
        let driven = |by| World::new(0).with("driver", 0, 18, 2).of(by).with("w1", -100, 1, 19).of("lake");
        driven("lake").squeezed(&[]);
        driven("pond").squeezed(&["w1"]);
        // Those above use another CPU.
        World::new(0).with("web", 0, 10, 9).on("0").with("w1", -100, 1, 19).on("1").squeezed(&[]);
    }

    #[test]
    fn what_is_not_known_is_no_ground() {
        let world = World::new(0).with("web", 0, 18, 2).with("w1", -100, 1, 19);
        let nobody = Look { cpus: [(0, Cpu { idle: 0, all: 0 })].into(), ..Look::default() };
        let after = Look { cpus: [(0, Cpu { idle: 0, all: 1000 })].into(), ..Look::default() };
        assert!(squeezed(&nobody, &after, Duration::from_secs(10), &world.parties).is_empty());
        assert!(squeezed(&Look::default(), &Look::default(), Duration::ZERO, &world.parties).is_empty());
    }

    #[test]
    fn the_kernels_texts() {
        let stat =
            "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 40 5 6 7 8 100 100\ncpu1 0 0 0 50 0 0 0 0 0 0\nintr 5\n";
        let seen = cpus(stat);
        assert_eq!(seen, [(0, Cpu { idle: 45, all: 72 }), (1, Cpu { idle: 50, all: 50 })].into());
        let later = cpus("cpu0 1000 2 3 40 5 6 7 8 100 100\ncpu1 0 0 0 999 0 0 0 0 0 0\n");
        assert!(saturated(&seen, &later) && !saturated(&seen, &seen) && !saturated(&later, &seen));
        assert_eq!(schedstat("12 34 5\n"), Some((12, 34)));
        assert_eq!(schedstat(""), None);
    }
}
