//! Compute clusters: a master, an elastic pool of workers and the drivers of jobs, all of them instances.
//!
//! ```text
//! watch (a task a cluster) --View--> decide, pool, job (pure) --Step--> act (transactions; words to the master)
//! ```
//!
//! [`decide`] says what to make and what to let go, [`pool`] how many workers there should be, [`room`] which of them give
//! way to what is above them, [`job`] where each job stands. What runs inside is behind [`engine`]: all that knows Spark is
//! in [`spark`], all that knows Dask in [`dask`]. What a new leader needs is in the store; what it does not know yet (how
//! long a worker has been idle) it learns before it acts on it.

mod act;
mod dask;
mod decide;
mod engine;
mod job;
mod logs;
mod page;
mod pool;
mod room;
mod spark;
mod view;
mod watch;

pub use page::Ways;

use super::Leader;
use crate::state::{At, ClusterRecord, Row, Snapshot};
use crate::store::keys::Key;
use decide::{Member, Role, Step};
use engine::Engine;
use enoki_api::cluster::{Cluster, ClusterPhase, ClusterSpec};
use enoki_api::host::HostPhase;
use enoki_api::instance::{InstanceSpec, Phase};
use enoki_api::job::{JobPhase, JobSpec};
use enoki_api::object::{Object, Uid};
use jiff::Timestamp;
use logs::Logs;
use page::Port;
use pool::{Needs, Use};
use room::Room;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use view::{DriverSeen, View};
use watch::{Places, Watchers};

/// Everything is looked at again this often, whatever happened or did not.
const SLOW: Duration = Duration::from_secs(5);
/// The labels of a cluster's instances.
const LABEL_CLUSTER: &str = "enoki.cluster";
const LABEL_ROLE: &str = "enoki.role";
const LABEL_JOB: &str = "enoki.job";
/// The Connect server counts as a job of this name, which no job has.
pub const CONNECT: &str = "connect";

/// Keeps the clusters up for as long as this server leads.
pub(super) async fn run(leader: &Leader) {
    let state = &leader.context.state;
    let mut clusters = Clusters {
        leader,
        watchers: Watchers::new(leader.context.ways.clone()),
        needs: HashMap::new(),
        asked: HashMap::new(),
        refused: HashMap::new(),
        logs: Logs::new(leader.context.ways.clone(), leader.context.registry.clone()),
    };
    let mut cursor = state.follow(state.snapshot().revision);
    let mut slow = tokio::time::interval(SLOW);
    loop {
        clusters.tend().await;
        // Cancel-safe: the cursor keeps what it has not given, the others only wake.
        tokio::select! {
            followed = follow(&mut cursor) => if !followed {
                cursor = state.follow(state.snapshot().revision);
            },
            () = clusters.watchers.changed() => {}
            () = clusters.logs.changed() => {}
            _ = slow.tick() => {}
        }
    }
}

/// Waits for a change that may concern a cluster. False: the cursor is too far behind.
async fn follow(cursor: &mut crate::state::Cursor) -> bool {
    loop {
        let Ok(batches) = cursor.next().await else { return false };
        let concerns = |key: &Key| match key {
            Key::Spec(object) | Key::Status(object) => {
                ["clusters", "jobs", "instances", "volumes", "networks"].contains(&object.kind.as_str())
            }
            Key::Assignment { .. } => true,
            _ => false,
        };
        if batches.iter().any(|batch| batch.keys.iter().any(concerns)) {
            return true;
        }
    }
}

struct Clusters<'a> {
    leader: &'a Leader,
    watchers: Watchers,
    needs: HashMap<At, Needs>,
    /// When a worker of a cluster was last asked to leave: what was seen before does not show it.
    asked: HashMap<At, Instant>,
    /// Why a step of a cluster could not be taken, when it was last tried.
    refused: HashMap<At, (String, String)>,
    logs: Logs,
}

impl Clusters<'_> {
    /// Carries every cluster and its jobs one step on that can be.
    async fn tend(&mut self) {
        let snapshot = self.leader.context.state.snapshot();
        self.watchers.retain(|at| snapshot.clusters.at(at).is_some());
        self.needs.retain(|at, _| snapshot.clusters.at(at).is_some());
        self.asked.retain(|at, _| snapshot.clusters.at(at).is_some());
        self.refused.retain(|at, _| snapshot.clusters.at(at).is_some());
        let uids: HashSet<&Uid> = snapshot.jobs.iter().map(|(_, row)| &row.object.uid).collect();
        self.logs.retain(|job| uids.contains(job));
        let all: Vec<_> = snapshot.clusters.iter().map(|(at, row)| (at.clone(), row.clone())).collect();
        let pools: Vec<room::Pool> = all.iter().map(|(at, row)| self.pool(&snapshot, at, row)).collect();
        let room = room::make(&snapshot, &pools, &self.leader.context.policy);
        for (at, row) in all {
            if let Err(error) = self.one(&snapshot, &at, &row, &room).await {
                tracing::warn!(cluster = %row.place(), %error, "a step was not confirmed; it is decided again");
                return;
            }
        }
    }

    /// Its workers, as far as others may have their places.
    fn pool(&self, snapshot: &Snapshot, at: &At, row: &Row<ClusterSpec>) -> room::Pool {
        let cluster = &row.object;
        let members = members(snapshot, cluster);
        let stored = snapshot.cluster_status.get(at);
        let record = stored.map(|stored| stored.status.pool.clone()).unwrap_or_default();
        let staying = decide::staying(&members, self.watchers.view(at).as_ref(), &record);
        let spare = if cluster.deleted_at.is_none() { decide::spare(&cluster.spec, &staying) } else { 0 };
        let name = |number: u32| (at.0.clone(), format!("{}-worker-{number}", at.1));
        let workers = staying.into_iter().filter(|worker| decide::may_leave(&cluster.spec, worker));
        room::Pool {
            cluster: at.clone(),
            priority: cluster.spec.priority,
            workers: workers.map(|worker| (name(worker.number), worker)).collect(),
            leaving: record.draining.keys().map(|name| (at.0.clone(), name.clone())).collect(),
            spare,
        }
    }

    async fn one(
        &mut self,
        snapshot: &Snapshot,
        at: &At,
        row: &Arc<Row<ClusterSpec>>,
        room: &Room,
    ) -> Result<(), crate::store::Error> {
        let cluster = &row.object;
        let Some(engine) = engine::of(cluster.spec.engine) else { return Ok(()) };
        let members = members(snapshot, cluster);
        self.watchers.look(at, places(engine, snapshot, cluster, &members));
        let view = self.watchers.view(at);
        let now = Timestamp::now();
        let jobs: Vec<_> = jobs(snapshot, cluster).collect();
        let (needed, lately) = self.needed(engine, row, &members, &jobs, view.as_ref(), now);
        let stored = snapshot.cluster_status.get(at);
        let nothing = ClusterRecord::default();
        let wanted_places = room.leave.iter().filter(|(worker, _)| worker.0 == at.0);
        let wanted_places = wanted_places.map(|(worker, whom)| (worker.1.clone(), whom.clone())).collect();
        let seen = decide::Seen {
            now,
            engine,
            cluster,
            record: stored.map_or(&nothing, |stored| &stored.status),
            members: &members,
            network: network(snapshot, cluster),
            volume: snapshot
                .volumes
                .get(&at.0, &master_volume(&at.1))
                .is_some_and(|row| owned(&row.object, cluster)),
            view: view.as_ref(),
            looked: self.watchers.looked(at),
            needed,
            lately,
            wanted_places: &wanted_places,
            held: room.held.contains(at),
        };
        let mut decision = decide::decide(&seen);
        let status = &mut decision.record.status;
        if let Some((reason, message)) = self.refused.get(at).filter(|_| !decision.steps.is_empty()) {
            (status.reason, status.message) = (Some(reason.clone()), Some(message.clone()));
        }
        // What is written down first is not forgotten by the next leader: a worker that was asked to leave above all.
        if !self.leader.record(row, stored.map(|stored| &**stored), &decision.record).await? {
            return Ok(());
        }
        for (reason, message) in decision.told {
            self.leader.context.events.note(&row.place(), Some(&cluster.uid), false, reason, message);
        }
        let asks = |step: &Step| matches!(step, Step::Decommission(_));
        let asked = self.asked.get(at).copied();
        if view.as_ref().is_none_or(|view| asked.is_some_and(|asked| view.at <= asked)) {
            decision.steps.retain(|step| !asks(step));
        } else if decision.steps.iter().any(asks) {
            self.asked.insert(at.clone(), Instant::now());
        }
        match self.leader.take(engine, snapshot, row, &decision.steps).await? {
            None => self.refused.remove(at),
            Some(why) => self.refused.insert(at.clone(), why),
        };
        let master = members.iter().find(|member| member.role == Role::Master);
        let stand = match decision.record.status.phase {
            _ if master.is_some_and(|master| master.lost) => job::Stand::Lost,
            ClusterPhase::Ready => job::Stand::Ready,
            _ => job::Stand::NotYet,
        };
        for job in jobs {
            self.leader.tend_job(engine, snapshot, cluster, job, stand, &mut self.logs).await?;
        }
        Ok(())
    }

    /// The workers that the jobs could use now, and the most of them lately. None: a job runs and does not say.
    fn needed(
        &mut self,
        engine: &dyn Engine,
        row: &Row<ClusterSpec>,
        members: &[Member],
        jobs: &[&Arc<Row<JobSpec>>],
        view: Option<&View>,
        now: Timestamp,
    ) -> (Option<u32>, Option<u32>) {
        let cluster = &row.object;
        let needs = self.needs.entry(row.at()).or_default();
        let known = || {
            let view = view.filter(|view| view.alive)?;
            let each = |own: &BTreeMap<String, String>, seen: &DriverSeen| Use {
                wanted: engine.workers_wanted(&cluster.spec, own, &seen.demand),
                held: view.held_by(seen),
            };
            let nothing = BTreeMap::new();
            let mut uses: Vec<Use> = view.jobs.iter().map(|all| each(&nothing, all)).collect();
            let named = jobs.iter().map(|job| (job.object.name.as_str(), &job.object.spec.conf));
            for (name, own) in named.chain([(CONNECT, &nothing)]) {
                let driver = act::driver_name(&cluster.name, name);
                let runs = members.iter().any(|member| member.name == driver && member.runs());
                match view.drivers.get(name) {
                    Some(seen) => uses.push(each(own, seen)),
                    None if runs && engine.drivers().is_some() => return None,
                    None => {}
                }
            }
            Some(pool::needed(&uses))
        };
        let needed = known();
        match needed {
            Some(needed) => needs.note(now, needed),
            None => needs.unknown(),
        }
        (needed, needs.most(now, cluster.spec.idle.signed()))
    }
}

/// The jobs of a cluster, the ended ones too.
fn jobs<'a>(snapshot: &'a Snapshot, cluster: &'a Cluster) -> impl Iterator<Item = &'a Arc<Row<JobSpec>>> {
    let jobs = snapshot.jobs.of(cluster.project.as_deref());
    jobs.filter(move |row| row.object.spec.cluster == cluster.name)
}

/// The instances of a cluster.
fn members(snapshot: &Snapshot, cluster: &Cluster) -> Vec<Member> {
    instances(snapshot, cluster).filter_map(|row| member(snapshot, cluster, row)).collect()
}

fn instances<'a>(
    snapshot: &'a Snapshot,
    cluster: &'a Cluster,
) -> impl Iterator<Item = &'a Arc<Row<InstanceSpec>>> {
    let project = cluster.project.as_deref();
    let before = (project.unwrap_or_default().to_owned(), format!("{}-", cluster.name));
    snapshot
        .instances
        .after(project, Some(&before))
        .take_while(|row| {
            row.object.name.strip_prefix(&cluster.name).is_some_and(|rest| rest.starts_with('-'))
        })
        .filter(|row| owned(&row.object, cluster))
}

/// Whether the instance's host has been away for so long that it is given up.
fn on_lost_host(snapshot: &Snapshot, instance: &At) -> bool {
    let placed = snapshot.assignments.get(instance);
    let host = placed.and_then(|placed| snapshot.host_status.get(&placed.assignment.host));
    host.is_some_and(|host| host.phase == HostPhase::Lost)
}

fn member(snapshot: &Snapshot, cluster: &Cluster, row: &Row<InstanceSpec>) -> Option<Member> {
    let name = row.object.name.strip_prefix(&cluster.name)?.strip_prefix('-')?;
    let role = match name.strip_prefix("worker-").and_then(|number| number.parse().ok()) {
        Some(number) => Role::Worker(number),
        None if name == "master" => Role::Master,
        None if name == CONNECT => Role::Connect,
        None => Role::Driver,
    };
    let at = row.at();
    let status = snapshot.instance_status.get(&at);
    let placed = snapshot.assignments.get(&at);
    let address = placed.and_then(|placed| placed.assignment.nics.values().next()).map(|nic| nic.address);
    let phase = status.map_or(Phase::Pending, |status| status.phase);
    let deleting = row.object.deleted_at.is_some();
    let message = status.and_then(|status| status.message.clone().or_else(|| status.reason.clone()));
    let lost = on_lost_host(snapshot, &at);
    Some(Member {
        name: row.object.name.clone(),
        role,
        phase,
        message,
        address,
        deleting,
        lost,
        host: placed.map(|placed| placed.assignment.host.clone()),
        squeezed_since: status.and_then(|status| status.squeezed_since),
    })
}

/// Whether the cluster made it.
fn owned<S: enoki_api::Spec>(object: &Object<S>, cluster: &Cluster) -> bool {
    object.owner.as_ref().is_some_and(|owner| owner.uid == cluster.uid)
}

/// The network of the cluster's instances: its own has its name.
fn network_name(cluster: &Cluster) -> &str {
    cluster.spec.network.as_deref().unwrap_or(&cluster.name)
}

/// The volume of the cluster's master.
fn master_volume(cluster: &str) -> String {
    format!("{cluster}-master")
}

fn network(snapshot: &Snapshot, cluster: &Cluster) -> bool {
    let project = cluster.project.as_deref().unwrap_or_default();
    let row = snapshot.networks.get(project, network_name(cluster));
    row.is_some_and(|row| cluster.spec.network.is_some() || owned(&row.object, cluster))
}

/// Where to look at what runs in it.
fn places(engine: &dyn Engine, snapshot: &Snapshot, cluster: &Cluster, members: &[Member]) -> Places {
    let project = cluster.project.clone().unwrap_or_default();
    let port = |name: &str, port: u16| {
        let at = (project.clone(), name.to_owned());
        let assignment = &snapshot.assignments.get(&at)?.assignment;
        Some(Port { host: assignment.host.clone(), uid: assignment.uid.clone(), port })
    };
    let master = members.iter().find(|member| member.role == Role::Master && member.runs());
    let jobs = jobs(snapshot, cluster).filter(|job| {
        let status = snapshot.job_status.get(&job.at());
        status.is_some_and(|stored| stored.status.phase == JobPhase::Running)
    });
    let drivers: BTreeMap<String, Port> = jobs
        .map(|job| job.object.name.as_str())
        .chain([CONNECT])
        .filter_map(|name| {
            let driver = act::driver_name(&cluster.name, name);
            members.iter().find(|member| member.name == driver && member.runs())?;
            Some((name.to_owned(), port(&driver, engine.drivers()?.page())?))
        })
        .collect();
    let (page, _) = engine.master_page();
    let master = master.and_then(|master| port(&master.name, page));
    Places { engine: cluster.spec.engine, master, drivers }
}
