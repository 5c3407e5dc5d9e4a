//! PURE: what a cluster should have and what it has -> the next steps, and how it stands.

use super::engine::Engine;
use super::pool::{self, Worker};
use super::view::{View, WorkerSeen};
use crate::state::{ClusterRecord, PoolRecord, SqueezedPool};
use enoki_api::cluster::{Cluster, ClusterPhase, ClusterSpec, ClusterStatus, WorkersStatus};
use enoki_api::instance::Phase;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// How long a pool does not grow past the size to which it was squeezed.
const HOLD: SignedDuration = SignedDuration::from_mins(5);

/// An instance of the cluster, by what it is there for.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    pub role: Role,
    pub phase: Phase,
    /// Its own reason, where it is not what it should be.
    pub message: Option<String>,
    pub address: Option<Ipv4Addr>,
    pub deleting: bool,
    /// Whether its host has been away for so long that it is given up.
    pub lost: bool,
    pub host: Option<String>,
    /// Since when it waits for CPUs that instances of higher priority use.
    pub squeezed_since: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Master,
    Worker(u32),
    Driver,
    /// The driver that stays.
    Connect,
}

impl Member {
    pub fn runs(&self) -> bool {
        self.phase == Phase::Running && !self.deleting
    }
}

/// Everything that the decision follows from.
pub struct Seen<'a> {
    pub now: Timestamp,
    pub engine: &'a dyn Engine,
    pub cluster: &'a Cluster,
    pub record: &'a ClusterRecord,
    pub members: &'a [Member],
    /// Whether there is its network, and its master's volume.
    pub network: bool,
    pub volume: bool,
    /// None: nobody has looked, or what was seen is too old.
    pub view: Option<&'a View>,
    /// Whether this leader has looked by now.
    pub looked: bool,
    /// Workers that the jobs could use. None: unknown.
    pub needed: Option<u32>,
    /// The most of them lately; see [`pool::Needs::most`].
    pub lately: Option<u32>,
    /// Workers whose places others are to have, and who; see [`super::room`].
    pub wanted_places: &'a BTreeMap<String, String>,
    /// Whether somebody waits for room that a new worker might take.
    pub held: bool,
}

/// One effect. Each is a transaction, or a word to the master, that may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    MakeNetwork,
    MakeVolume,
    /// The master and its first workers: all of them fit, or none is made.
    MakeMaster,
    MakeWorker {
        number: u32,
        master: Ipv4Addr,
    },
    MakeConnect {
        master: Ipv4Addr,
    },
    /// Tells the master that it is to leave.
    Decommission(Ipv4Addr),
    Delete(String),
    DeleteVolume,
    DeleteNetwork,
    /// The cluster's own keys: nothing else is left of it.
    Forget,
}

/// The steps that can be taken now, and the status from now on.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub steps: Vec<Step>,
    pub record: ClusterRecord,
    /// Who gives way, and why: for the log of events.
    pub told: Vec<(&'static str, String)>,
}

pub fn decide(seen: &Seen<'_>) -> Decision {
    if seen.cluster.deleted_at.is_some() { remove(seen) } else { keep_up(seen) }
}

/// Instances first: they hold the volume and the network.
fn remove(seen: &Seen<'_>) -> Decision {
    let mut record = seen.record.clone();
    record.status.phase = ClusterPhase::Deleting;
    (record.status.reason, record.status.message) = (None, None);
    let left: Vec<&Member> = seen.members.iter().collect();
    let steps = if !left.is_empty() {
        left.iter()
            .filter(|member| !member.deleting)
            .map(|member| Step::Delete(member.name.clone()))
            .collect()
    } else if seen.volume {
        vec![Step::DeleteVolume]
    } else if seen.network && seen.cluster.spec.network.is_none() {
        vec![Step::DeleteNetwork]
    } else {
        vec![Step::Forget]
    };
    Decision { steps, record, told: Vec::new() }
}

fn keep_up(seen: &Seen<'_>) -> Decision {
    let (mut steps, mut told) = (Vec::new(), Vec::new());
    let mut record = seen.record.clone();
    record.status.observed_generation = seen.cluster.generation;
    let named = seen.cluster.spec.network.as_ref();
    if !seen.network && named.is_none() {
        steps.push(Step::MakeNetwork);
    }
    let volume = seen.volume || !seen.engine.keeps_state();
    if !volume {
        steps.push(Step::MakeVolume);
    }
    let master = seen.members.iter().find(|member| member.role == Role::Master);
    let address = master.filter(|master| !master.deleting).and_then(|master| master.address);
    if master.is_none() && seen.network && volume {
        steps.push(Step::MakeMaster);
    }
    record.status.master = address.map(|master| seen.engine.master_url(master));
    let counts = match address {
        Some(address) => workers(seen, address, &mut record.pool, &mut steps, &mut told),
        None => Counts { desired: seen.cluster.spec.workers.min, ..Counts::default() },
    };
    let alive = seen.view.is_some_and(|view| view.alive);
    let bounds = &seen.cluster.spec.workers;
    record.status.workers = WorkersStatus {
        min: bounds.min,
        max: bounds.max,
        desired: counts.desired,
        ready: counts.ready,
        draining: counts.draining,
    };
    let (phase, why) = phase(seen, master, alive, &counts);
    record.status.phase = phase;
    (record.status.reason, record.status.message) = match why.or_else(|| connect_fault(seen)) {
        Some((reason, message)) => (Some(reason), Some(message)),
        None => (None, None),
    };
    if phase == ClusterPhase::Ready {
        record.status.ready_at.get_or_insert(seen.now);
    }
    // A new leader says nothing else than the last one before it has looked itself.
    if !seen.looked && seen.record.status.ready_at.is_some() {
        let before = &seen.record.status;
        record.status.phase = before.phase;
        (record.status.reason, record.status.message) = (before.reason.clone(), before.message.clone());
        record.status.workers.ready = before.workers.ready;
    }
    connect(seen, address, &mut record.status, &mut steps);
    Decision { steps, record, told }
}

fn connect_member<'a>(seen: &Seen<'a>) -> Option<&'a Member> {
    seen.members.iter().find(|member| member.role == Role::Connect)
}

/// Makes the Connect server, as jobs are begun: not before the cluster was ready. Or lets it go.
fn connect(seen: &Seen<'_>, master: Option<Ipv4Addr>, status: &mut ClusterStatus, steps: &mut Vec<Step>) {
    let wanted = seen.cluster.spec.connect;
    let member = connect_member(seen);
    match (member, master) {
        (Some(member), _) if !member.deleting && (member.lost || !wanted) => {
            steps.push(Step::Delete(member.name.clone()));
        }
        (None, Some(master)) if wanted && status.ready_at.is_some() => {
            steps.push(Step::MakeConnect { master })
        }
        (Some(_) | None, _) => {}
    }
    let there = member.filter(|member| wanted && !member.lost && member.runs());
    let url = there.and_then(|member| Some(seen.engine.connect()?.url(member.address?)));
    // One look that failed does not take it away.
    let answers = seen.view.is_some_and(|view| view.drivers.contains_key(super::CONNECT));
    status.connect = url.filter(|url| answers || status.connect.as_ref() == Some(url));
}

/// Why a cluster that is otherwise as it should be has no Connect server.
fn connect_fault(seen: &Seen<'_>) -> Why {
    let member = connect_member(seen).filter(|member| seen.cluster.spec.connect && !member.runs())?;
    Some(("connect".to_owned(), says(member)?))
}

/// Its name, and what it says of itself.
fn says(member: &Member) -> Option<String> {
    Some(format!("{}: {}", member.name, member.message.as_deref()?))
}

#[derive(Default)]
struct Counts {
    desired: u32,
    ready: u32,
    draining: u32,
}

/// The workers that are to stay, as it is, for the pool's size: those that leave are not among them.
pub fn staying(members: &[Member], view: Option<&View>, pool: &PoolRecord) -> Vec<Worker> {
    let worker = |member: &Member| {
        let Role::Worker(number) = member.role else { return None };
        let view = view.zip(member.address);
        let known = view.and_then(|(view, at)| view.workers.get(&at));
        let tasks = view.map(|(view, at)| view.users().filter_map(|user| user.executors.get(&at)).sum());
        Some(Worker {
            number,
            placed: member.host.is_some(),
            tasks: known.and(tasks),
            used: matches!(known, Some(WorkerSeen::Alive { used: true })),
        })
    };
    let stays =
        |member: &&Member| !member.deleting && !member.lost && !pool.draining.contains_key(&member.name);
    let mut workers: Vec<Worker> = members.iter().filter(stays).filter_map(worker).collect();
    workers.sort_by_key(|worker| worker.number);
    workers
}

/// How many of these have a place beyond the minimum.
pub fn spare(spec: &ClusterSpec, staying: &[Worker]) -> usize {
    let placed = staying.iter().filter(|worker| worker.placed).count();
    placed.saturating_sub(spec.workers.min as usize)
}

/// Whether it may be asked to leave although it is needed.
pub fn may_leave(spec: &ClusterSpec, worker: &Worker) -> bool {
    !(spec.remove_only_idle_workers && worker.used)
}

/// Those that have waited for too long for CPUs that others use: of each host the idlest, the others have it better then. None of
/// the minimum.
fn squeezed<'a>(
    seen: &Seen<'_>,
    members: &BTreeMap<u32, &'a Member>,
    staying: &[Worker],
    pool: &PoolRecord,
) -> Vec<&'a Member> {
    let spec = &seen.cluster.spec;
    let patience = spec.squeeze_timeout.signed();
    let long = |since: Timestamp| seen.now.duration_since(since) >= patience;
    // What the last ones left may be enough for the others: that is looked at for as long.
    if pool.squeezed.is_some_and(|squeezed| !long(squeezed.at)) {
        return Vec::new();
    }
    let mut idlest: Vec<&Worker> = staying.iter().filter(|worker| may_leave(spec, worker)).collect();
    idlest.sort_by_key(|worker| worker.order());
    let mut hosts = BTreeSet::new();
    idlest
        .into_iter()
        .filter_map(|worker| members.get(&worker.number).copied())
        .filter(|member| member.phase == Phase::Running && member.squeezed_since.is_some_and(long))
        .filter(|member| hosts.insert(&member.host))
        .take(spare(spec, staying))
        .collect()
}

/// Has those leave whose places or whose CPUs others need. What is left of them is `staying`.
fn give_way(
    seen: &Seen<'_>,
    members: &BTreeMap<u32, &Member>,
    staying: &mut Vec<Worker>,
    pool: &mut PoolRecord,
    told: &mut Vec<(&'static str, String)>,
) {
    for worker in staying.iter() {
        let Some(member) = members.get(&worker.number) else { continue };
        if let Some(whom) = seen.wanted_places.get(&member.name) {
            pool.draining.insert(member.name.clone(), seen.now);
            told.push(("makes_room", format!("{} leaves: there is no other room for {whom}", member.name)));
        }
    }
    let stays = |worker: &Worker, pool: &PoolRecord| {
        members.get(&worker.number).is_some_and(|member| !pool.draining.contains_key(&member.name))
    };
    staying.retain(|worker| stays(worker, pool));
    let squeezed = squeezed(seen, members, staying, pool);
    for member in &squeezed {
        pool.draining.insert(member.name.clone(), seen.now);
        let host = member.host.as_deref().unwrap_or_default();
        told.push((
            "squeezed",
            format!("{} leaves: instances of higher priority use the CPUs of {host}", member.name),
        ));
    }
    staying.retain(|worker| stays(worker, pool));
    if !squeezed.is_empty() {
        pool.squeezed = Some(SqueezedPool { at: seen.now, left: placed(staying) });
    }
    if !told.is_empty() {
        pool.changed_at = Some(seen.now);
    }
    if pool.squeezed.is_some_and(|squeezed| seen.now.duration_since(squeezed.at) >= HOLD) {
        pool.squeezed = None;
    }
}

fn placed(workers: &[Worker]) -> u32 {
    u32::try_from(workers.iter().filter(|worker| worker.placed).count()).unwrap_or(u32::MAX)
}

/// The pool: those that leave are seen off, and its size is set right.
fn workers(
    seen: &Seen<'_>,
    master: Ipv4Addr,
    pool: &mut PoolRecord,
    steps: &mut Vec<Step>,
    told: &mut Vec<(&'static str, String)>,
) -> Counts {
    let spec = &seen.cluster.spec;
    let nobody = BTreeMap::new();
    let known = seen.view.map_or(&nobody, |view| &view.workers);
    let members: BTreeMap<u32, &Member> = seen
        .members
        .iter()
        .filter_map(|member| match member.role {
            Role::Worker(number) => Some((number, member)),
            Role::Master | Role::Driver | Role::Connect => None,
        })
        .collect();
    pool.draining.retain(|name, _| members.values().any(|member| member.name == *name && !member.deleting));
    let mut staying = staying(seen.members, seen.view, pool);
    give_way(seen, &members, &mut staying, pool, told);
    let squeezed = pool.squeezed.map(|squeezed| squeezed.left);
    let held = seen.held.then(|| placed(&staying));
    let most = squeezed.into_iter().chain(held).min().unwrap_or(spec.workers.max);
    for (_, member) in members.iter().filter(|(_, member)| member.lost) {
        steps.push(Step::Delete(member.name.clone()));
    }
    let change = pool::size(spec, most, &staying, seen.needed, seen.lately, pool.changed_at, seen.now);
    let free = (1..).filter(|number| !members.contains_key(number));
    for number in free.take(change.add as usize) {
        steps.push(Step::MakeWorker { number, master });
    }
    for number in &change.leave {
        if let Some(member) = members.get(number) {
            pool.draining.insert(member.name.clone(), seen.now);
        }
    }
    // Replacing what is missing of the minimum is no change of the size.
    let was = u32::try_from(staying.len()).unwrap_or(u32::MAX);
    if !change.leave.is_empty() || (change.add > 0 && was >= spec.workers.min) {
        pool.changed_at = Some(seen.now);
    }
    let patience = spec.graceful_decommission_timeout.signed();
    for (name, since) in &pool.draining {
        let Some(member) = members.values().find(|member| member.name == *name) else { continue };
        let late = seen.now.duration_since(*since) >= patience;
        match leaving(seen, member) {
            _ if late => steps.push(Step::Delete(name.clone())),
            Leaving::Gone => steps.push(Step::Delete(name.clone())),
            Leaving::Ask(address) => steps.push(Step::Decommission(address)),
            Leaving::Wait => {}
        }
    }
    let ready = staying.iter().filter(|worker| {
        let member = members.get(&worker.number).filter(|member| !pool.draining.contains_key(&member.name));
        let address = member.and_then(|member| member.address);
        address.is_some_and(|address| matches!(known.get(&address), Some(WorkerSeen::Alive { .. })))
    });
    Counts {
        desired: change.desired.max(spec.workers.min),
        ready: u32::try_from(ready.count()).unwrap_or(u32::MAX),
        draining: u32::try_from(pool.draining.len()).unwrap_or(u32::MAX),
    }
}

enum Leaving {
    /// Nothing of it is needed any more.
    Gone,
    Ask(Ipv4Addr),
    Wait,
}

/// Where a worker that leaves stands. Its process never ends by itself: only those who use workers tell whether something of theirs is
/// still there. (Spark's master counts its cores as used to the end, so there it is the drivers.)
fn leaving(seen: &Seen<'_>, member: &Member) -> Leaving {
    let (Some(address), Phase::Running) = (member.address, member.phase) else { return Leaving::Gone };
    let Some(view) = seen.view.filter(|view| view.alive) else { return Leaving::Wait };
    match view.workers.get(&address) {
        // It never reached its master, or has left it.
        None => Leaving::Gone,
        Some(WorkerSeen::Alive { .. }) => Leaving::Ask(address),
        Some(WorkerSeen::Leaving) => {
            let held = view.users().any(|user| user.executors.contains_key(&address));
            // A driver that does not answer may have one there.
            let drives = |member: &&Member| matches!(member.role, Role::Driver | Role::Connect);
            let drivers = seen.members.iter().filter(drives).filter(|member| member.runs());
            let silent = seen.engine.drivers().is_some() && drivers.count() > view.drivers.len();
            if held || silent { Leaving::Wait } else { Leaving::Gone }
        }
    }
}

type Why = Option<(String, String)>;

fn phase(seen: &Seen<'_>, master: Option<&Member>, alive: bool, counts: &Counts) -> (ClusterPhase, Why) {
    let before = seen.record.status.phase;
    let missing = seen.cluster.spec.workers.min.saturating_sub(counts.ready);
    if alive && missing == 0 {
        return (ClusterPhase::Ready, None);
    }
    let was_ready = seen.record.status.ready_at.is_some();
    let first = |member: &&Member| matches!(member.role, Role::Master | Role::Worker(_));
    let faulty =
        seen.members.iter().filter(first).filter(|member| member.phase != Phase::Running).find_map(says);
    let lost = master.filter(|master| master.lost);
    let why = match (master, faulty) {
        _ if !seen.network && seen.cluster.spec.network.is_some() => {
            let name = seen.cluster.spec.network.as_deref().unwrap_or_default();
            Some(("network_missing".to_owned(), format!("network {name} is gone")))
        }
        _ if lost.is_some() => Some(("master_lost".to_owned(), "the host of its master is lost".to_owned())),
        (None, _) if before == ClusterPhase::Pending => None,
        (_, Some(says)) => Some(("instance".to_owned(), says)),
        (_, None) if !alive => Some(("master".to_owned(), "the master does not answer yet".to_owned())),
        (_, None) => {
            let min = seen.cluster.spec.workers.min;
            Some(("workers".to_owned(), format!("{} of {min} workers are ready", counts.ready)))
        }
    };
    let phase = match master {
        _ if was_ready => ClusterPhase::Degraded,
        None => ClusterPhase::Pending,
        Some(master) if master.phase == Phase::Pending => ClusterPhase::Pending,
        Some(_) => ClusterPhase::Starting,
    };
    (phase, why)
}

#[cfg(test)]
mod tests {
    use super::super::engine;
    use super::super::view::{Demand, DriverSeen};
    use super::*;
    use enoki_api::object::Object;
    use std::time::Instant;

    fn cluster(min: u32, max: u32) -> Cluster {
        let spec = serde_json::json!({"version": "4.0.1", "workers": {"min": min, "max": max}});
        let spec = serde_json::from_value(spec).unwrap();
        Object::new(Some("default"), "lake", Default::default(), spec, Timestamp::UNIX_EPOCH)
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 50, last)
    }

    fn member(role: Role, phase: Phase) -> Member {
        let (name, last) = match role {
            Role::Master => ("lake-master".to_owned(), 2),
            Role::Worker(number) => (format!("lake-worker-{number}"), 10 + number as u8),
            Role::Driver => ("lake-job-1".to_owned(), 100),
            Role::Connect => ("lake-connect".to_owned(), 99),
        };
        Member {
            name,
            role,
            phase,
            message: None,
            address: Some(address(last)),
            deleting: false,
            lost: false,
            host: (phase != Phase::Pending).then(|| "h1".to_owned()),
            squeezed_since: None,
        }
    }

    fn view(workers: &[(u8, WorkerSeen)]) -> View {
        let workers = workers.iter().map(|(last, seen)| (address(*last), *seen)).collect();
        View { at: Instant::now(), alive: true, workers, jobs: None, drivers: BTreeMap::new() }
    }

    const IDLE: WorkerSeen = WorkerSeen::Alive { used: false };

    struct World {
        cluster: Cluster,
        record: ClusterRecord,
        members: Vec<Member>,
        network: bool,
        volume: bool,
        view: Option<View>,
        looked: bool,
        needed: Option<u32>,
        lately: Option<u32>,
        wanted_places: BTreeMap<String, String>,
        held: bool,
        second: i64,
    }

    impl World {
        fn new(min: u32, max: u32) -> Self {
            World {
                cluster: cluster(min, max),
                record: ClusterRecord::default(),
                members: Vec::new(),
                network: true,
                volume: true,
                view: None,
                looked: true,
                needed: None,
                lately: None,
                wanted_places: BTreeMap::new(),
                held: false,
                second: 0,
            }
        }

        /// One that is ready with so many workers.
        fn ready(min: u32, max: u32, workers: u32) -> Self {
            let mut world = World::new(min, max);
            world.members.push(member(Role::Master, Phase::Running));
            world.members.extend((1..=workers).map(|n| member(Role::Worker(n), Phase::Running)));
            let seen: Vec<_> = (1..=workers).map(|n| (10 + n as u8, IDLE)).collect();
            world.view = Some(view(&seen));
            world
        }

        fn decide(&mut self) -> Vec<Step> {
            let seen = Seen {
                now: Timestamp::from_second(self.second).unwrap(),
                engine: engine::of(self.cluster.spec.engine).unwrap(),
                cluster: &self.cluster,
                record: &self.record,
                members: &self.members,
                network: self.network,
                volume: self.volume,
                view: self.view.as_ref(),
                looked: self.looked,
                needed: self.needed,
                lately: self.lately,
                wanted_places: &self.wanted_places,
                held: self.held,
            };
            let decision = decide(&seen);
            self.record = decision.record;
            decision.steps
        }

        fn phase(&self) -> ClusterPhase {
            self.record.status.phase
        }
    }

    #[test]
    fn from_nothing_to_ready() {
        let mut world = World::new(2, 4);
        (world.network, world.volume) = (false, false);
        assert_eq!(world.decide(), [Step::MakeNetwork, Step::MakeVolume]);
        (world.network, world.volume) = (true, true);
        assert_eq!(world.decide(), [Step::MakeMaster]);
        assert_eq!(world.phase(), ClusterPhase::Pending);
        world.members.push(member(Role::Master, Phase::Starting));
        let master = address(2);
        let both = [1, 2].map(|number| Step::MakeWorker { number, master });
        assert_eq!(world.decide(), both, "as soon as the master has an address");
        assert_eq!(world.phase(), ClusterPhase::Starting);
        world.members.extend([1, 2].map(|n| member(Role::Worker(n), Phase::Running)));
        assert_eq!(world.decide(), []);
        world.view = Some(view(&[(11, IDLE)]));
        assert_eq!(world.decide(), []);
        assert_eq!(world.phase(), ClusterPhase::Starting);
        assert_eq!(world.record.status.message.as_deref(), Some("1 of 2 workers are ready"));
        world.view = Some(view(&[(11, IDLE), (12, IDLE)]));
        assert_eq!(world.decide(), []);
        assert_eq!(world.phase(), ClusterPhase::Ready);
        world.view = None;
        world.decide();
        assert_eq!(world.phase(), ClusterPhase::Degraded, "what was ready is degraded, not starting");
        world.record.status.phase = ClusterPhase::Ready;
        world.looked = false;
        world.decide();
        assert_eq!(world.phase(), ClusterPhase::Ready, "a new leader has not looked yet");
    }

    #[test]
    fn a_lost_worker_is_replaced_under_a_free_number() {
        let mut world = World::ready(3, 4, 3);
        world.members[2].deleting = true;
        assert_eq!(world.decide(), [Step::MakeWorker { number: 4, master: address(2) }]);
    }

    #[test]
    fn a_worker_on_a_lost_host_is_given_up_and_replaced() {
        let mut world = World::ready(3, 4, 3);
        world.members[2].lost = true;
        let expected =
            [Step::Delete("lake-worker-2".into()), Step::MakeWorker { number: 4, master: address(2) }];
        assert_eq!(world.decide(), expected);
        world.members[0].lost = true;
        world.view = None;
        world.decide();
        assert_eq!(world.record.status.reason.as_deref(), Some("master_lost"));
    }

    #[test]
    fn a_network_that_was_named_is_not_made() {
        let mut world = World::new(1, 1);
        world.cluster.spec.network = Some("blue".into());
        world.network = false;
        assert_eq!(world.decide(), []);
        assert_eq!(world.record.status.reason.as_deref(), Some("network_missing"));
    }

    #[test]
    fn a_worker_leaves_when_no_driver_has_an_executor_there() {
        let mut world = World::ready(1, 4, 3);
        (world.needed, world.lately) = (Some(2), Some(2));
        assert_eq!(world.decide(), [Step::Decommission(address(13))]);
        assert_eq!(world.record.status.workers.draining, 1);
        assert_eq!(world.record.status.workers.ready, 2);
        // It is asked again until its master knows.
        assert_eq!(world.decide(), [Step::Decommission(address(13))]);
        let mut seen = view(&[(11, IDLE), (12, IDLE), (13, WorkerSeen::Leaving)]);
        let driver = DriverSeen { demand: Demand::Executors(2), executors: [(address(13), 1)].into() };
        seen.drivers.insert("job-1".into(), driver);
        world.view = Some(seen.clone());
        world.members.push(member(Role::Driver, Phase::Running));
        assert_eq!(world.decide(), []);
        // A driver that does not answer may have one there; in the end patience ends.
        seen.drivers.clear();
        world.view = Some(seen.clone());
        assert_eq!(world.decide(), []);
        let waited = std::mem::replace(&mut world.second, 300);
        assert_eq!(world.decide(), [Step::Delete("lake-worker-3".into())]);
        world.second = waited;
        seen.drivers
            .insert("job-1".into(), DriverSeen { demand: Demand::Executors(2), executors: BTreeMap::new() });
        world.view = Some(seen);
        assert_eq!(world.decide(), [Step::Delete("lake-worker-3".into())]);
        world.members.retain(|member| member.name != "lake-worker-3");
        world.decide();
        assert_eq!(world.record.status.workers.draining, 0);
    }

    #[test]
    fn a_worker_whose_place_is_wanted_leaves_and_none_comes_for_it() {
        let mut world = World::ready(1, 4, 3);
        world.members.push(member(Role::Worker(4), Phase::Pending));
        (world.needed, world.lately) = (Some(4), Some(4));
        world.wanted_places = [("lake-worker-2".to_owned(), "default/web".to_owned())].into();
        world.held = true;
        let waiting = Step::Delete("lake-worker-4".into());
        assert_eq!(
            world.decide(),
            [Step::Decommission(address(12)), waiting.clone()],
            "nor is one to wait for it"
        );
        assert_eq!((world.record.status.workers.draining, world.record.status.workers.desired), (2, 2));
        world.wanted_places.clear();
        world.members.retain(|member| member.name != "lake-worker-4");
        assert_eq!(world.decide(), [Step::Decommission(address(12))]);
        // Until whoever waits has the place.
        world.members.retain(|member| member.name != "lake-worker-2");
        assert_eq!(world.decide(), []);
        world.held = false;
        let both = [2, 4].map(|number| Step::MakeWorker { number, master: address(2) });
        assert_eq!(world.decide(), both);
    }

    #[test]
    fn a_worker_that_is_squeezed_for_too_long_leaves() {
        let mut world = World::ready(1, 4, 4);
        (world.needed, world.lately) = (Some(4), Some(4));
        let since = |second| Timestamp::from_second(second).ok();
        for index in 1..=3 {
            world.members[index].squeezed_since = since(100);
        }
        world.members[3].host = Some("h2".to_owned());
        world.second = 159;
        assert_eq!(world.decide(), []);
        world.second = 160;
        let leave = |last: [u8; 2]| last.map(|last| Step::Decommission(address(last)));
        assert_eq!(world.decide(), leave([12, 13]), "one of each host, and the fourth is not squeezed");
        assert_eq!(world.record.status.workers.desired, 2);
        world.members.retain(|member| !["lake-worker-2", "lake-worker-3"].contains(&&*member.name));
        world.second = 219;
        assert_eq!(world.decide(), [], "the first is still squeezed, and might have it better soon");
        world.second = 220;
        assert_eq!(world.decide(), [Step::Decommission(address(11))]);
        world.members.retain(|member| member.name != "lake-worker-1");
        world.members[1].squeezed_since = since(100);
        world.second = 400;
        assert_eq!(world.decide(), [], "the last one is the minimum");
        world.members[1].squeezed_since = None;
        world.second = 519;
        assert_eq!(world.decide(), [], "it does not grow again at once");
        world.second = 520;
        assert_eq!(world.decide().len(), 3);
    }

    #[test]
    fn a_used_worker_that_is_not_to_be_asked_is_not() {
        let mut world = World::ready(1, 4, 2);
        (world.needed, world.lately) = (Some(2), Some(2));
        world.view = Some(view(&[(11, IDLE), (12, WorkerSeen::Alive { used: true })]));
        world.members[2].squeezed_since = Some(Timestamp::UNIX_EPOCH);
        world.second = 60;
        world.cluster.spec.remove_only_idle_workers = true;
        assert_eq!(world.decide(), []);
        world.cluster.spec.remove_only_idle_workers = false;
        world.members[2].phase = Phase::Unknown;
        assert_eq!(world.decide(), [], "its host does not answer: what it said is old");
        world.members[2].phase = Phase::Running;
        assert_eq!(world.decide(), [Step::Decommission(address(12))]);
    }

    #[test]
    fn a_connect_server_comes_and_goes_with_what_is_wanted() {
        let mut world = World::ready(1, 4, 1);
        world.cluster.spec.connect = true;
        world.view = None;
        assert_eq!(world.decide(), [], "not before it was ready");
        world.view = Some(view(&[(11, IDLE)]));
        assert_eq!(world.decide(), [Step::MakeConnect { master: address(2) }]);
        let mut pending = member(Role::Connect, Phase::Pending);
        pending.message = Some("no room".into());
        world.members.push(pending);
        assert_eq!(world.decide(), []);
        assert_eq!(world.phase(), ClusterPhase::Ready, "jobs do not need it");
        assert_eq!(world.record.status.message.as_deref(), Some("lake-connect: no room"));
        world.members[2] = member(Role::Connect, Phase::Running);
        world.decide();
        assert_eq!((&world.record.status.connect, &world.record.status.message), (&None, &None));
        let seen = DriverSeen { demand: Demand::Executors(0), executors: BTreeMap::new() };
        world.view.as_mut().unwrap().drivers.insert("connect".into(), seen);
        world.decide();
        let url = Some("sc://198.18.50.99:15002");
        assert_eq!(world.record.status.connect.as_deref(), url);
        world.view.as_mut().unwrap().drivers.clear();
        world.decide();
        assert_eq!(world.record.status.connect.as_deref(), url, "it was there, and still runs");
        world.members[2].lost = true;
        assert_eq!(world.decide(), [Step::Delete("lake-connect".into())]);
        assert_eq!(world.record.status.connect, None);
        world.members[2].lost = false;
        world.cluster.spec.connect = false;
        assert_eq!(world.decide(), [Step::Delete("lake-connect".into())]);
        world.members[2].deleting = true;
        assert_eq!(world.decide(), []);
    }

    #[test]
    fn a_silent_connect_server_may_hold_a_worker() {
        let mut world = World::ready(1, 4, 2);
        (world.needed, world.lately) = (Some(1), Some(1));
        world.cluster.spec.connect = true;
        world.members.push(member(Role::Connect, Phase::Running));
        world.decide();
        world.view = Some(view(&[(11, IDLE), (12, WorkerSeen::Leaving)]));
        assert_eq!(world.decide(), []);
        let seen = DriverSeen { demand: Demand::Executors(1), executors: BTreeMap::new() };
        world.view.as_mut().unwrap().drivers.insert("connect".into(), seen);
        assert_eq!(world.decide(), [Step::Delete("lake-worker-2".into())]);
    }

    #[test]
    fn what_is_deleted_goes_from_the_inside_out() {
        let mut world = World::ready(1, 1, 1);
        world.cluster.deleted_at = Some(Timestamp::UNIX_EPOCH);
        let both = ["lake-master", "lake-worker-1"].map(|name| Step::Delete(name.into()));
        assert_eq!(world.decide(), both);
        world.members.iter_mut().for_each(|member| member.deleting = true);
        assert_eq!(world.decide(), []);
        world.members.clear();
        assert_eq!(world.decide(), [Step::DeleteVolume]);
        world.volume = false;
        assert_eq!(world.decide(), [Step::DeleteNetwork]);
        world.cluster.spec.network = Some("blue".into());
        assert_eq!(world.decide(), [Step::Forget], "a network that was named is not its own");
    }
}
