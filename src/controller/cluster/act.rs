//! The steps of a cluster and of its jobs as transactions, each with the election's fence.

use super::decide::Step;
use super::engine::Engine;
use super::logs::{Logs, Source};
use super::page::{Pages, Port};
use super::{
    CONNECT, LABEL_CLUSTER, LABEL_JOB, LABEL_ROLE, instances, job, jobs, master_volume, network_name,
    on_lost_host, owned,
};
use crate::admission::{self, Deletion};
use crate::controller::Leader;
use crate::scheduler::{self, Request};
use crate::state::{ClusterRecord, Row, Snapshot, Written};
use crate::store::keys::Key;
use crate::store::{Error, Txn};
use enoki_api::cluster::{Cluster, ClusterSpec};
use enoki_api::error::Problem;
use enoki_api::instance::{InstanceSpec, RunState};
use enoki_api::job::{Job, JobSpec, JobStatus};
use enoki_api::object::{Kind, Object, Owner};
use enoki_api::volume::VolumeSpec;
use jiff::Timestamp;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Jobs that are forgotten at once with their cluster: two keys each in one transaction.
const FORGET: usize = 40;

/// The instance of a job's driver.
pub fn driver_name(cluster: &str, job: &str) -> String {
    format!("{cluster}-{job}")
}

/// Why a step cannot be taken now: a code and a sentence.
pub type Refused = (String, String);

fn refused(problem: Problem) -> Refused {
    let hint = problem.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
    (problem.code.to_string(), format!("{}{hint}", problem.detail))
}

impl Leader {
    /// Writes down how a cluster stands. False: the world moved on meanwhile.
    pub(super) async fn record(
        &self,
        row: &Row<ClusterSpec>,
        stored: Option<&Written<ClusterRecord>>,
        record: &ClusterRecord,
    ) -> Result<bool, Error> {
        if stored.is_some_and(|stored| stored.status == *record) {
            return Ok(true);
        }
        let cluster = &row.object;
        let value = serde_json::to_vec(record).map_err(|error| Error::Invalid(error.to_string()))?;
        let written = self.status("clusters", cluster, stored.map(|stored| stored.revision), value).await?;
        let before = stored.map(|stored| stored.status.status.phase);
        let status = &record.status;
        if written && before != Some(status.phase) {
            let message = status.message.clone().unwrap_or_default();
            self.context.events.note(
                &row.place(),
                Some(&cluster.uid),
                false,
                &status.phase.to_string(),
                message,
            );
        }
        Ok(written)
    }

    /// One status, compared with what was seen; not of an object that has gone or changed meanwhile.
    async fn status<S: enoki_api::Spec>(
        &self,
        kind: &str,
        object: &Object<S>,
        revision: Option<u64>,
        value: Vec<u8>,
    ) -> Result<bool, Error> {
        let spec = Key::spec(kind, object.project.as_deref(), &object.name)?;
        let key = Key::status(kind, object.project.as_deref(), &object.name)?;
        let txn = Txn::new().when_unchanged(spec, object.revision);
        let txn = match revision {
            Some(revision) => txn.when_unchanged(key.clone(), revision),
            None => txn.when_absent(key.clone()),
        };
        self.commit(txn.put(key, value)).await
    }

    /// Takes the steps, as far as they can be taken. Some: why one could not.
    pub(super) async fn take(
        &self,
        engine: &dyn Engine,
        snapshot: &Snapshot,
        row: &Row<ClusterSpec>,
        steps: &[Step],
    ) -> Result<Option<Refused>, Error> {
        let mut why = None;
        for step in steps {
            let cluster = &row.object;
            let planned = match step {
                Step::MakeNetwork => make_network(self, snapshot, cluster),
                Step::MakeVolume => make_volume(snapshot, cluster),
                Step::MakeMaster => {
                    let master = engine.master(cluster, network_name(cluster));
                    if let Err(no_room) = fits(self, engine, snapshot, cluster, &master) {
                        why = Some(no_room);
                        continue;
                    }
                    self.make(snapshot, cluster, &format!("{}-master", cluster.name), "master", master, None)
                }
                Step::MakeWorker { number, master } => {
                    let worker = engine.worker(cluster, network_name(cluster), *master);
                    self.make(
                        snapshot,
                        cluster,
                        &format!("{}-worker-{number}", cluster.name),
                        "worker",
                        worker,
                        None,
                    )
                }
                Step::MakeConnect { master } => {
                    let Some(connect) = engine.connect() else { continue };
                    let server = connect.server(cluster, network_name(cluster), *master);
                    self.make(snapshot, cluster, &driver_name(&cluster.name, CONNECT), CONNECT, server, None)
                }
                Step::Decommission(worker) => {
                    self.decommission(engine, snapshot, cluster, *worker);
                    continue;
                }
                Step::Delete(name) => delete_instance(snapshot, cluster, name),
                Step::DeleteVolume => delete_volume(snapshot, cluster),
                Step::DeleteNetwork => delete_network(snapshot, cluster),
                Step::Forget => forget(snapshot, row),
            };
            match planned {
                Ok(Some(txn)) => {
                    if !self.commit(txn).await? {
                        return Ok(why);
                    }
                }
                Ok(None) => {}
                Err(problem) => why = Some(refused(problem)),
            }
        }
        Ok(why)
    }

    fn make(
        &self,
        snapshot: &Snapshot,
        cluster: &Cluster,
        name: &str,
        role: &str,
        mut spec: InstanceSpec,
        job: Option<&str>,
    ) -> Result<Option<Txn>, Problem> {
        admission::complete(&mut spec, name)?;
        let mut instance = new(cluster, name, spec);
        instance.labels.insert(LABEL_ROLE.into(), role.into());
        instance.labels.extend(job.map(|job| (LABEL_JOB.to_owned(), job.to_owned())));
        let txn = admission::vacant(snapshot, &snapshot.instances, &instance)?.when_unchanged(
            admission::key(Key::spec("clusters", cluster.project.as_deref(), &cluster.name))?,
            cluster.revision,
        );
        let txn = admission::instance::create(snapshot, &self.context.live, &mut instance, txn)?;
        admission::made(&instance, txn).map(Some)
    }

    /// In the background: whether the master took it shows when it is looked at next.
    fn decommission(&self, engine: &dyn Engine, snapshot: &Snapshot, cluster: &Cluster, worker: Ipv4Addr) {
        let master = (cluster.project.clone().unwrap_or_default(), format!("{}-master", cluster.name));
        let Some(placed) = snapshot.assignments.get(&master) else { return };
        let assignment = &placed.assignment;
        let (port, _) = engine.master_page();
        let port = Port { host: assignment.host.clone(), uid: assignment.uid.clone(), port };
        let path = engine.leave_path(worker);
        let mut pages = Pages::new(self.context.ways.clone(), port);
        let cluster = cluster.key();
        tokio::spawn(async move {
            match pages.post(&path).await {
                Ok(_) => tracing::info!(%cluster, %worker, "a worker was asked to leave"),
                Err(error) => {
                    tracing::warn!(%cluster, %worker, %error, "a worker could not be asked to leave")
                }
            }
        });
    }

    /// Carries a job one step on.
    pub(super) async fn tend_job(
        &self,
        engine: &dyn Engine,
        snapshot: &Snapshot,
        cluster: &Cluster,
        row: &Arc<Row<JobSpec>>,
        stand: job::Stand,
        logs: &mut Logs,
    ) -> Result<(), Error> {
        let stored = snapshot.job_status.get(&row.at());
        let nothing = JobStatus::default();
        let before = stored.map_or(&nothing, |stored| &stored.status);
        let driver = driver(snapshot, cluster, &row.object);
        let seen = job::Seen {
            now: Timestamp::now(),
            job: &row.object,
            status: before,
            driver: driver.as_ref(),
            cluster: stand,
            log: logs.of(&row.object.uid),
        };
        let (mut status, step) = job::decide(&seen);
        let planned = match step {
            None => Ok(None),
            Some(job::Step::KeepLog) => {
                if let Some(source) = source(snapshot, cluster, &row.object) {
                    logs.keep(&row.object.uid, source);
                }
                Ok(None)
            }
            Some(step) => self.job_step(engine, snapshot, cluster, row, step),
        };
        let txn = planned.unwrap_or_else(|problem| {
            let (reason, message) = refused(problem);
            (status.reason, status.message) = (Some(reason), Some(message));
            None
        });
        if stored.is_none_or(|stored| stored.status != status) && step != Some(job::Step::Forget) {
            let value = serde_json::to_vec(&status).map_err(|error| Error::Invalid(error.to_string()))?;
            let revision = stored.map(|stored| stored.revision);
            if !self.status("jobs", &row.object, revision, value).await? {
                return Ok(());
            }
            if before.phase != status.phase {
                let warning = status.phase == enoki_api::job::JobPhase::Failed;
                let message = status.message.clone().unwrap_or_default();
                let phase = status.phase.to_string();
                self.context.events.note(&row.place(), Some(&row.object.uid), warning, &phase, message);
            }
        }
        if let Some(txn) = txn {
            // False: the world moved on, and is looked at again.
            self.commit(txn).await?;
        }
        Ok(())
    }

    fn job_step(
        &self,
        engine: &dyn Engine,
        snapshot: &Snapshot,
        cluster: &Cluster,
        row: &Row<JobSpec>,
        step: job::Step,
    ) -> Result<Option<Txn>, Problem> {
        let job = &row.object;
        let name = driver_name(&cluster.name, &job.name);
        match step {
            job::Step::Begin(lost) => {
                let Some(master) = master_address(snapshot, cluster) else { return Ok(None) };
                let mut spec = engine.driver(cluster, job, network_name(cluster), master);
                // Its attempts are counted by it.
                spec.restart_count = lost.into();
                self.make(snapshot, cluster, &name, "driver", spec, Some(&job.name))
            }
            job::Step::BeginAgain => edit(snapshot, cluster, &name, |spec| spec.restart_count += 1),
            job::Step::Stop => edit(snapshot, cluster, &name, |spec| spec.state = RunState::Stopped),
            job::Step::KeepLog => Ok(None),
            job::Step::DeleteDriver => delete_instance(snapshot, cluster, &name),
            job::Step::Forget => {
                let txn = admission::unchanged(row)?;
                let (txn, _) = admission::removed(row, (txn, Deletion::Done))?;
                let status = Key::status("jobs", job.project.as_deref(), &job.name);
                Ok(Some(txn.delete(admission::key(status)?)))
            }
        }
    }
}

/// A new object of the cluster's.
fn new<S: enoki_api::Spec>(cluster: &Cluster, name: &str, spec: S) -> Object<S> {
    let mut labels = cluster.labels.clone();
    labels.insert(LABEL_CLUSTER.into(), cluster.name.clone());
    let mut object = Object::new(cluster.project.as_deref(), name, labels, spec, Timestamp::now());
    object.owner = Some(Owner { kind: Kind::Cluster, name: cluster.name.clone(), uid: cluster.uid.clone() });
    object
}

fn make_network(leader: &Leader, snapshot: &Snapshot, cluster: &Cluster) -> Result<Option<Txn>, Problem> {
    let project = cluster.project.as_deref().unwrap_or_default();
    let made = admission::system::network(leader.context.networks, snapshot, project, &cluster.name)?;
    let mut network = new(cluster, &cluster.name, made.spec);
    let txn = admission::vacant(snapshot, &snapshot.networks, &network)?;
    let txn = admission::network::create(snapshot, &mut network, txn)?;
    admission::made(&network, txn).map(Some)
}

fn make_volume(snapshot: &Snapshot, cluster: &Cluster) -> Result<Option<Txn>, Problem> {
    let volume = new(cluster, &master_volume(&cluster.name), VolumeSpec::default());
    let txn = admission::vacant(snapshot, &snapshot.volumes, &volume)?;
    let txn = admission::volume::create(snapshot, &volume, txn)?;
    admission::made(&volume, txn).map(Some)
}

/// Whether the master and its first workers all find room: none is made that would wait for the others.
fn fits(
    leader: &Leader,
    engine: &dyn Engine,
    snapshot: &Snapshot,
    cluster: &Cluster,
    master: &InstanceSpec,
) -> Result<(), Refused> {
    let project = cluster.project.clone().unwrap_or_default();
    // Where the master will be does not change what a worker asks for.
    let worker = engine.worker(cluster, network_name(cluster), Ipv4Addr::UNSPECIFIED);
    let mut all = vec![((project.clone(), format!("{}-master", cluster.name)), master)];
    let numbers = 1..=cluster.spec.workers.min;
    all.extend(
        numbers.map(|number| ((project.clone(), format!("{}-worker-{number}", cluster.name)), &worker)),
    );
    let requests: Vec<Request<'_>> =
        all.iter().map(|(at, spec)| Request { at, labels: &cluster.labels, spec }).collect();
    scheduler::gang(snapshot, &requests, &leader.context.policy).map(drop).map_err(|refused| {
        let (code, sentence) = scheduler::summary(&refused.verdicts);
        let name = &all[refused.member].0.1;
        let together = requests.len();
        (code, format!("its {together} first instances do not all find a place; {name}: {sentence}"))
    })
}

fn edit(
    snapshot: &Snapshot,
    cluster: &Cluster,
    name: &str,
    change: impl Fn(&mut InstanceSpec),
) -> Result<Option<Txn>, Problem> {
    let Some(row) = find(snapshot, cluster, name) else { return Ok(None) };
    let mut new = row.object.clone();
    change(&mut new.spec);
    admission::changed(row, &mut new, admission::unchanged(row)?)
}

/// One on a lost host goes without it: the host removes it when it is back.
fn delete_instance(snapshot: &Snapshot, cluster: &Cluster, name: &str) -> Result<Option<Txn>, Problem> {
    let Some(row) = find(snapshot, cluster, name) else { return Ok(None) };
    if on_lost_host(snapshot, &row.at())
        && let Some(forced) = admission::instance::force(snapshot, row, admission::unchanged(row)?)?
    {
        return Ok(Some(admission::removed(row, (forced, Deletion::Done))?.0));
    }
    if row.object.deleted_at.is_some() {
        return Ok(None);
    }
    let gone = admission::instance::delete(snapshot, row, admission::unchanged(row)?)?;
    Ok(Some(admission::removed(row, gone)?.0))
}

fn find<'a>(snapshot: &'a Snapshot, cluster: &Cluster, name: &str) -> Option<&'a Arc<Row<InstanceSpec>>> {
    let row = snapshot.instances.get(cluster.project.as_deref().unwrap_or_default(), name)?;
    owned(&row.object, cluster).then_some(row)
}

fn delete_volume(snapshot: &Snapshot, cluster: &Cluster) -> Result<Option<Txn>, Problem> {
    let project = cluster.project.as_deref().unwrap_or_default();
    let row = snapshot.volumes.get(project, &master_volume(&cluster.name));
    let Some(row) = row.filter(|row| owned(&row.object, cluster) && row.object.deleted_at.is_none()) else {
        return Ok(None);
    };
    let gone = admission::volume::delete(snapshot, row, admission::unchanged(row)?)?;
    Ok(Some(admission::removed(row, gone)?.0))
}

fn delete_network(snapshot: &Snapshot, cluster: &Cluster) -> Result<Option<Txn>, Problem> {
    let project = cluster.project.as_deref().unwrap_or_default();
    let row = snapshot.networks.get(project, &cluster.name);
    let Some(row) = row.filter(|row| owned(&row.object, cluster)) else { return Ok(None) };
    let gone = admission::network::delete(snapshot, row, admission::unchanged(row)?)?;
    Ok(Some(admission::removed(row, gone)?.0))
}

/// The records of its jobs first, so many at once; the cluster's own keys with the last of them.
fn forget(snapshot: &Snapshot, row: &Row<ClusterSpec>) -> Result<Option<Txn>, Problem> {
    let cluster = &row.object;
    let all: Vec<_> = jobs(snapshot, cluster).collect();
    let mut txn = admission::unchanged(row)?;
    for job in all.iter().take(FORGET) {
        let (project, name) = (job.object.project.as_deref(), &job.object.name);
        txn = txn
            .delete(admission::key(Key::spec("jobs", project, name))?)
            .delete(admission::key(Key::status("jobs", project, name))?);
    }
    if all.len() > FORGET {
        return Ok(Some(txn));
    }
    let (txn, _) = admission::removed(row, (txn, Deletion::Done))?;
    let status = Key::status("clusters", cluster.project.as_deref(), &cluster.name);
    Ok(Some(txn.delete(admission::key(status)?)))
}

/// Where the master is, once it has a place.
fn master_address(snapshot: &Snapshot, cluster: &Cluster) -> Option<Ipv4Addr> {
    let at = (cluster.project.clone().unwrap_or_default(), format!("{}-master", cluster.name));
    let placed = snapshot.assignments.get(&at)?;
    placed.assignment.nics.values().next().map(|nic| nic.address)
}

/// Where the driver of a job is.
fn source(snapshot: &Snapshot, cluster: &Cluster, job: &Job) -> Option<Source> {
    let project = cluster.project.clone().unwrap_or_default();
    let placed = snapshot.assignments.get(&(project.clone(), driver_name(&cluster.name, &job.name)))?;
    let assignment = &placed.assignment;
    Some(Source { project, host: assignment.host.clone(), driver: assignment.uid.clone() })
}

fn driver(snapshot: &Snapshot, cluster: &Cluster, of: &Job) -> Option<job::Driver> {
    let name = driver_name(&cluster.name, &of.name);
    let row = instances(snapshot, cluster).find(|row| row.object.name == name)?;
    let instance = &row.object;
    let status = snapshot.instance_status.get(&row.at()).map(|status| (**status).clone()).unwrap_or_default();
    Some(job::Driver {
        name,
        restarts: instance.spec.restart_count,
        current: status.observed_generation >= instance.generation,
        status,
        deleting: instance.deleted_at.is_some(),
        placed: snapshot.assignments.contains_key(&row.at()),
        lost: on_lost_host(snapshot, &row.at()),
    })
}
