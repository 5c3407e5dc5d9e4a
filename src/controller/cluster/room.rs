//! PURE: which workers give way, so that an instance of higher priority finds room.
//!
//! An instance waits, and there is a host where nothing but capacity is in its way, on which workers of a lower priority stand: as
//! few of them leave as make room for it, the lowest in priority and the idlest first, none of a cluster's minimum. Where those
//! that leave already make the room, nobody else is asked. What is freed goes to the highest that waits: so places the
//! scheduler; and until it has its place, no pool below it grows.

use super::pool::Worker;
use crate::scheduler::{self, Policy, Request};
use crate::state::{At, Placed, Row, Snapshot};
use enoki_api::instance::InstanceSpec;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// So many of those that wait are thought of at once, the highest in priority first.
const AT_ONCE: usize = 32;

/// The workers of one cluster.
#[derive(Clone, Debug)]
pub struct Pool {
    pub cluster: At,
    pub priority: i32,
    /// Those that may be asked to leave.
    pub workers: Vec<(At, Worker)>,
    /// Those that are on their way out.
    pub leaving: Vec<At>,
    /// So many have a place beyond the minimum.
    pub spare: usize,
}

/// Who is to leave, and who is to wait.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room {
    /// Workers, and for whom each of them leaves.
    pub leave: BTreeMap<At, String>,
    /// Clusters that an instance of higher priority waits above, for room that is in the making.
    pub held: BTreeSet<At>,
}

pub fn make(snapshot: &Snapshot, pools: &[Pool], policy: &Policy) -> Room {
    let mut room = Room::default();
    let lowest = pools.iter().filter(|pool| pool.spare > 0 || !pool.leaving.is_empty());
    let Some(lowest) = lowest.map(|pool| pool.priority).min() else { return room };
    let waiting = waiting(snapshot, lowest);
    if waiting.is_empty() {
        return room;
    }
    let mut now = snapshot.clone();
    let mut later = snapshot.clone();
    let deleted = snapshot.instances.iter().filter(|(_, row)| row.object.deleted_at.is_some());
    for at in deleted.map(|(at, _)| at).chain(pools.iter().flat_map(|pool| &pool.leaving)) {
        later.unassign(at);
    }
    let mut spare: BTreeMap<At, usize> =
        pools.iter().map(|pool| (pool.cluster.clone(), pool.spare)).collect();
    // Those that fit get their places without anybody's leave.
    let waiting: Vec<_> = waiting
        .into_iter()
        .filter(|(at, row)| {
            let request = request(at, row);
            let Ok(host) = scheduler::place(&now, request, policy) else { return true };
            scheduler::reserve_on(&mut now, request, &host);
            scheduler::reserve_on(&mut later, request, &host);
            false
        })
        .collect();
    for (at, row) in waiting {
        let request = request(at, row);
        let host = scheduler::place(&later, request, policy).ok().or_else(|| {
            let (host, leave) = cheapest(&later, pools, &spare, request, policy)?;
            for (cluster, worker) in leave {
                later.unassign(&worker);
                if let Some(spare) = spare.get_mut(&cluster) {
                    *spare -= 1;
                }
                room.leave.insert(worker, format!("{}/{}", at.0, at.1));
            }
            Some(host)
        });
        if let Some(host) = host {
            scheduler::reserve_on(&mut later, request, &host);
            let below = pools.iter().filter(|pool| pool.priority < row.object.spec.priority);
            room.held.extend(below.map(|pool| pool.cluster.clone()));
        }
    }
    room
}

fn request<'a>(at: &'a At, row: &'a Row<InstanceSpec>) -> Request<'a> {
    Request { at, labels: &row.object.labels, spec: &row.object.spec }
}

/// Instances above this priority that have no host, in the order in which they are placed.
fn waiting(snapshot: &Snapshot, above: i32) -> Vec<(&At, &Arc<Row<InstanceSpec>>)> {
    let all = snapshot.instances.iter().filter(|(at, row)| {
        let object = &row.object;
        object.deleted_at.is_none() && object.spec.priority > above && !snapshot.assignments.contains_key(*at)
    });
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|(at, row)| (Reverse(row.object.spec.priority), *at));
    all.truncate(AT_ONCE);
    all
}

/// A worker that may leave, and what it would free.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    pool: &'a Pool,
    at: &'a At,
    worker: &'a Worker,
    placed: &'a Arc<Placed>,
}

impl Candidate<'_> {
    fn order(&self) -> impl Ord + use<> {
        (self.pool.priority, self.worker.order())
    }
}

/// The host where the fewest leave, and who: cluster and worker. None: it would not help.
fn cheapest(
    world: &Snapshot,
    pools: &[Pool],
    spare: &BTreeMap<At, usize>,
    request: Request<'_>,
    policy: &Policy,
) -> Option<(String, Vec<(At, At)>)> {
    let mut by_host: BTreeMap<&str, Vec<Candidate<'_>>> = BTreeMap::new();
    for pool in pools.iter().filter(|pool| pool.priority < request.spec.priority) {
        for (at, worker) in &pool.workers {
            if let Some(placed) = world.assignments.get(at) {
                let candidate = Candidate { pool, at, worker, placed };
                by_host.entry(&placed.assignment.host).or_default().push(candidate);
            }
        }
    }
    let verdict = |world: &Snapshot, host: &str| scheduler::verdict(world, host, request, policy);
    let full = |host: &str| {
        verdict(world, host).is_some_and(|it| it.reasons.iter().all(|reason| reason.code == "no_capacity"))
    };
    let fits = |world: &Snapshot, host: &str| verdict(world, host).is_some_and(|verdict| verdict.fits);
    let hosts = by_host.into_iter().filter(|(host, _)| full(host));
    let (host, leave) = hosts
        .filter_map(|(host, candidates)| {
            Some((host, enough(world, candidates, spare, |world| fits(world, host))?))
        })
        .min_by_key(|(_, leave)| (leave.len(), leave.iter().map(Candidate::order).collect::<Vec<_>>()))?;
    let leave = leave.iter().map(|candidate| (candidate.pool.cluster.clone(), candidate.at.clone()));
    Some((host.to_owned(), leave.collect()))
}

/// As few of these workers of one host as have to leave until it `fits`. None: all that may are not enough.
fn enough<'a>(
    world: &Snapshot,
    mut candidates: Vec<Candidate<'a>>,
    spare: &BTreeMap<At, usize>,
    fits: impl Fn(&Snapshot) -> bool,
) -> Option<Vec<Candidate<'a>>> {
    candidates.sort_by_key(Candidate::order);
    let (mut world, mut spare) = (world.clone(), spare.clone());
    let mut leave = Vec::new();
    for candidate in candidates {
        if fits(&world) {
            break;
        }
        let Some(left) = spare.get_mut(&candidate.pool.cluster).filter(|left| **left > 0) else { continue };
        *left -= 1;
        world.unassign(candidate.at);
        leave.push(candidate);
    }
    if !fits(&world) {
        return None;
    }
    // Beside one that came later, an earlier one may be needless. Who should rather stay is asked first.
    for index in (0..leave.len()).rev() {
        let Candidate { at, placed, .. } = leave[index];
        world.assign(at.clone(), Placed::clone(placed));
        if fits(&world) {
            leave.remove(index);
        } else {
            world.unassign(at);
        }
    }
    Some(leave)
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::host::{Capacity, HostPhase, HostSpec, HostStatus};
    use enoki_api::object::Object;
    use enoki_api::quantity::{Bytes, MilliCpu};
    use jiff::Timestamp;

    const GI: u64 = 1 << 30;

    /// Hosts of 8 GiB, and clusters whose workers have 2 GiB each.
    struct World {
        snapshot: Snapshot,
        pools: Vec<Pool>,
    }

    impl World {
        fn new(hosts: &[&str]) -> Self {
            let mut snapshot = Snapshot::default();
            for name in hosts {
                let host =
                    Object::new(None, name, Default::default(), HostSpec::default(), Timestamp::UNIX_EPOCH);
                let capacity =
                    Capacity { cpus: MilliCpu(4000), memory: Bytes(8 * GI), pids: 9000, instances: 1000 };
                let status = HostStatus { phase: HostPhase::Ready, capacity, ..HostStatus::default() };
                snapshot.seed_host(host, status);
            }
            World { snapshot, pools: Vec::new() }
        }

        fn seed(&mut self, name: &str, priority: i32, memory: u64) -> At {
            let mut spec = InstanceSpec::new("a");
            (spec.priority, spec.memory) = (priority, Some(Bytes(memory * GI)));
            let object = Object::new(Some("default"), name, Default::default(), spec, Timestamp::UNIX_EPOCH);
            self.snapshot.seed_instance(object);
            ("default".to_owned(), name.to_owned())
        }

        fn put(&mut self, name: &str, priority: i32, memory: u64, host: &str) -> At {
            let at = self.seed(name, priority, memory);
            let row = self.snapshot.instances.at(&at).unwrap().clone();
            scheduler::reserve_on(&mut self.snapshot, request(&at, &row), host);
            at
        }

        /// Workers by host, with the tasks of each.
        fn pool(&mut self, name: &str, priority: i32, spare: usize, workers: &[(&str, u32)]) {
            let numbered = (1..).zip(workers);
            let workers: Vec<_> = numbered
                .map(|(number, (host, tasks))| {
                    let at = self.put(&format!("{name}-worker-{number}"), priority, 2, host);
                    (at, Worker { number, placed: true, tasks: Some(*tasks), used: *tasks > 0 })
                })
                .collect();
            let cluster = ("default".to_owned(), name.to_owned());
            self.pools.push(Pool { cluster, priority, workers, leaving: Vec::new(), spare });
        }

        fn room(&self) -> Room {
            make(&self.snapshot, &self.pools, &Policy::default())
        }

        /// Who is asked to leave.
        fn leave(&self) -> Vec<String> {
            self.room().leave.into_keys().map(|at| at.1).collect()
        }

        /// They are asked, and their clusters know.
        fn ask(&mut self) {
            let room = self.room();
            for pool in &mut self.pools {
                let (leaving, staying) = std::mem::take(&mut pool.workers)
                    .into_iter()
                    .partition(|(at, _)| room.leave.contains_key(at));
                pool.workers = staying;
                let leaving: Vec<(At, Worker)> = leaving;
                pool.spare -= leaving.len();
                pool.leaving.extend(leaving.into_iter().map(|(at, _)| at));
            }
        }
    }

    #[test]
    fn as_few_as_make_room_and_the_idlest_first() {
        let mut world = World::new(&["h1"]);
        world.pool("lake", -100, 3, &[("h1", 2), ("h1", 0), ("h1", 1), ("h1", 0)]);
        assert_eq!(world.room(), Room::default(), "nobody waits");
        world.seed("web", 0, 1);
        assert_eq!(world.leave(), ["lake-worker-4"], "of the idle ones the newest");
        assert_eq!(world.room().leave.values().collect::<Vec<_>>(), ["default/web"]);
        world.seed("web", 0, 5);
        assert_eq!(world.leave(), ["lake-worker-2", "lake-worker-3", "lake-worker-4"]);
        world.seed("web", 0, 7);
        assert_eq!(world.room(), Room::default(), "the minimum stays, and less would not help");
    }

    #[test]
    fn nobody_is_asked_twice_for_the_same_room() {
        let mut world = World::new(&["h1"]);
        world.pool("lake", -100, 3, &[("h1", 0), ("h1", 0), ("h1", 0), ("h1", 0)]);
        world.seed("web", 0, 3);
        assert_eq!(world.leave().len(), 2);
        world.ask();
        let room = world.room();
        assert_eq!(room.leave, BTreeMap::new(), "the two that leave are enough");
        assert_eq!(room.held.len(), 1, "and their places are not for new workers");
        // Another one waits for more.
        world.seed("web2", 0, 1);
        assert_eq!(world.leave(), Vec::<String>::new(), "there is one GiB over");
        world.seed("web3", 0, 1);
        assert_eq!(world.leave().len(), 1);
        // One of the two has gone, and the other one not yet.
        let gone = world.pools[0].leaving.pop().unwrap();
        world.snapshot.unassign(&gone);
        assert_eq!(world.leave().len(), 1, "still only for the third");
    }

    #[test]
    fn what_fits_already_or_leaves_by_itself_asks_nobody() {
        let mut world = World::new(&["h1", "h2"]);
        world.pool("lake", -100, 4, &[("h1", 0), ("h1", 0), ("h1", 0), ("h1", 0)]);
        world.seed("web", 0, 6);
        assert_eq!(world.room(), Room::default(), "there is another host");
        world.put("db", 0, 8, "h2");
        assert_eq!(world.leave().len(), 3);
        let at = ("default".to_owned(), "db".to_owned());
        let mut db = world.snapshot.instances.at(&at).unwrap().object.clone();
        db.deleted_at = Some(Timestamp::UNIX_EPOCH);
        world.snapshot.seed_instance(db);
        assert_eq!(world.leave(), Vec::<String>::new(), "what is deleted makes the room");
    }

    #[test]
    fn only_what_is_lower_gives_way_and_the_lowest_first() {
        let mut world = World::new(&["h1"]);
        world.pool("high", 0, 2, &[("h1", 0), ("h1", 0)]);
        world.pool("low", -100, 2, &[("h1", 9), ("h1", 9)]);
        world.seed("web", 0, 6);
        assert_eq!(world.room(), Room::default(), "both of the low ones are not enough");
        world.seed("web", 0, 2);
        assert_eq!(world.leave(), ["low-worker-2"]);
        assert_eq!(world.room().held.len(), 1, "who is as high is not held");
        world.seed("web", 1, 6);
        assert_eq!(world.leave(), ["high-worker-2", "low-worker-1", "low-worker-2"]);
        world.seed("web", -100, 2);
        assert_eq!(world.room(), Room::default());
    }

    #[test]
    fn a_host_that_does_not_fit_otherwise_is_left_alone() {
        let mut world = World::new(&["h1", "h2"]);
        world.pool("lake", -100, 4, &[("h1", 0), ("h1", 0), ("h1", 0), ("h1", 0)]);
        world.put("db", 0, 8, "h2");
        world.seed("web", 0, 2);
        world.snapshot.cordon("h1");
        assert_eq!(world.room(), Room::default());
    }

    #[test]
    fn the_host_where_the_fewest_leave() {
        let mut world = World::new(&["h1", "h2"]);
        world.put("a", 0, 2, "h2");
        world.pool("lake", -100, 5, &[("h1", 0), ("h1", 0), ("h1", 0), ("h1", 0), ("h2", 3), ("h2", 3)]);
        world.seed("web", 0, 4);
        assert_eq!(world.leave(), ["lake-worker-6"]);
        // A large one makes a small one needless.
        let mut world = World::new(&["h1"]);
        let small = world.put("pond-worker-1", -200, 1, "h1");
        let cluster = ("default".to_owned(), "pond".to_owned());
        let worker = Worker { number: 1, placed: true, tasks: Some(0), used: false };
        let workers = vec![(small, worker)];
        world.pools.push(Pool { cluster, priority: -200, workers, leaving: Vec::new(), spare: 1 });
        world.put("db", 0, 5, "h1");
        world.pool("lake", -100, 1, &[("h1", 0)]);
        world.seed("web", 0, 2);
        assert_eq!(world.leave(), ["lake-worker-1"]);
    }
}
