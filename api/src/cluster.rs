//! The compute cluster: a master and an elastic pool of workers, all of them instances that the cluster owns.

mod dask;
mod spark;

use crate::instance::{DISK_SIZE_MIN, Mount, Placement, SecretKey, choice};
use crate::job::JobSpec;
use crate::object::{Faults, Kind, Object, Spec, check_name};
use crate::quantity::{Bytes, MilliCpu, Span};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

pub type Cluster = Object<ClusterSpec>;

/// Port of the page of its ended jobs, served by its master when asked for.
pub const HISTORY_PAGE: u16 = 18080;
/// Port where its Connect server takes notebooks.
pub const CONNECT_PORT: u16 = 15002;
/// A name leaves room for what its instances are called: `NAME-worker-NNNN`.
pub const NAME_MAX: usize = 48;
/// More workers than this are a cluster of another kind.
pub const WORKERS_MAX: u32 = 1000;
/// Settings, and the length of a key and of a value.
pub const CONF_MAX: usize = 256;
const CONF_TEXT_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterSpec {
    #[serde(default)]
    pub engine: Engine,
    /// Of the engine: one of those for which there is an image.
    pub version: String,
    #[serde(default)]
    pub workers: Workers,
    #[serde(default)]
    pub master: Master,
    /// The network of all its instances. None: one of its own, which goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Of the root disk of each of its instances, drivers too. None: as much as the host has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<Bytes>,
    /// How long a worker beyond the minimum has nothing to do before it leaves.
    #[serde(default = "default_idle")]
    pub idle: Span,
    /// Settings of Spark, over those that Enoki gives.
    #[serde(default)]
    pub spark_conf: BTreeMap<String, String>,
    /// Settings of Dask, by their names there: `distributed.worker.memory.spill`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dask_conf: BTreeMap<String, String>,
    /// More settings for Spark's drivers, a line each (`KEY VALUE`), from a secret: what opens an object store, for instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spark_conf_secret: Option<SecretKey>,
    /// Whether it has a Connect server, which Spark has from 4.0 on: the way in for notebooks, as one job that stays.
    #[serde(default)]
    pub connect: bool,
    /// Volumes for workers and drivers, by path inside: data that all of them read and write.
    #[serde(default)]
    pub mounts: BTreeMap<String, Mount>,
    /// The part of the missing workers that is added at once: 1 is all of them.
    #[serde(default = "one")]
    pub scale_up_factor: f64,
    /// The part of the needless workers that leaves at once. 0 is none: the pool only grows.
    #[serde(default = "one")]
    pub scale_down_factor: f64,
    /// The least time between two changes of the pool's size.
    #[serde(default)]
    pub cooldown: Span,
    /// How long a worker that leaves may take to finish its tasks and hand on what it keeps; then it is stopped.
    #[serde(default = "default_graceful")]
    pub graceful_decommission_timeout: Span,
    /// Whether a worker with running tasks, or with results that are still needed, is never asked to leave.
    #[serde(default)]
    pub remove_only_idle_workers: bool,
    /// Of its workers and its master alike.
    #[serde(default)]
    pub placement: Placement,
    /// Of its workers: who is placed first, and who gives way. Its master and drivers have at least 0.
    #[serde(default = "default_priority")]
    pub priority: i32,
    /// How long a worker waits for CPUs that instances of higher priority use; then it leaves.
    #[serde(default = "default_squeeze")]
    pub squeeze_timeout: Span,
}

choice!(
    /// What runs in it.
    Engine {
        /// Apache Spark, standalone.
        Spark,
        /// Dask: its distributed scheduler.
        Dask,
    }
);

impl Engine {
    /// Where a master shows itself, and leads on to the pages of workers: a port of its instance, and the path of the first page.
    pub fn page(self) -> Option<(u16, &'static str)> {
        match self {
            Engine::Spark => Some((8080, "")),
            Engine::Dask => Some((8787, "info/main/workers.html")),
            Engine::Unknown => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Workers {
    /// There from the start, all of them or none.
    #[serde(default = "one_worker")]
    pub min: u32,
    #[serde(default = "one_worker")]
    pub max: u32,
    /// Of each: whole ones, since each is a task at a time.
    #[serde(default = "default_worker_cpus")]
    pub cpus: MilliCpu,
    #[serde(default = "default_worker_memory")]
    pub memory: Bytes,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Master {
    #[serde(default = "default_master_cpus")]
    pub cpus: MilliCpu,
    #[serde(default = "default_master_memory")]
    pub memory: Bytes,
}

fn one() -> f64 {
    1.0
}

fn one_worker() -> u32 {
    1
}

fn default_idle() -> Span {
    Span(60_000)
}

fn default_graceful() -> Span {
    Span(300_000)
}

/// Below whatever nobody gave a priority.
fn default_priority() -> i32 {
    -100
}

fn default_squeeze() -> Span {
    Span(60_000)
}

fn default_worker_cpus() -> MilliCpu {
    MilliCpu(1000)
}

fn default_worker_memory() -> Bytes {
    Bytes(2 << 30)
}

fn default_master_cpus() -> MilliCpu {
    MilliCpu(1000)
}

fn default_master_memory() -> Bytes {
    Bytes(768 << 20)
}

impl Default for Workers {
    fn default() -> Self {
        Workers { min: 1, max: 1, cpus: default_worker_cpus(), memory: default_worker_memory() }
    }
}

impl Default for Master {
    fn default() -> Self {
        Master { cpus: default_master_cpus(), memory: default_master_memory() }
    }
}

impl ClusterSpec {
    /// Cores of one worker: tasks at a time.
    pub fn cores(&self) -> u32 {
        u32::try_from(self.workers.cpus.0 / 1000).unwrap_or(u32::MAX)
    }

    /// Whether a job can run here. The faults are the job's.
    pub fn check_job(&self, job: &JobSpec, faults: &mut Faults) {
        match self.engine {
            Engine::Spark => spark::check_job(job, faults),
            Engine::Dask => dask::check_job(job, faults),
            // Nobody here knows.
            Engine::Unknown => {}
        }
    }

    /// The image of its instances.
    pub fn image(&self) -> String {
        format!("enoki/{}:{}", self.engine, self.version)
    }
}

impl Workers {
    fn validate(&self, faults: &mut Faults) {
        if self.max == 0 || self.max > WORKERS_MAX {
            faults.invalid("spec.workers.max", format!("{} is not from 1 to {WORKERS_MAX}", self.max));
        }
        if self.min > self.max {
            faults.invalid("spec.workers.min", format!("{} is more than the most, {}", self.min, self.max));
        }
        if self.cpus.0 == 0 || !self.cpus.0.is_multiple_of(1000) {
            let detail =
                format!("{} is not a whole number of cores: each core runs one task at a time", self.cpus);
            faults.invalid("spec.workers.cpus", detail);
        }
    }
}

fn floor(faults: &mut Faults, field: &str, asked: Bytes, floor: Bytes, whom: &str) {
    if asked < floor {
        faults.invalid(field, format!("{asked} is too little for {whom}: at least {floor}"));
    }
}

/// Settings of `field`, each of which `check` allows.
fn settings(
    faults: &mut Faults,
    field: &str,
    conf: &BTreeMap<String, String>,
    check: fn(&str, &str) -> Result<(), String>,
) {
    if conf.len() > CONF_MAX {
        faults.invalid(field, format!("{} settings; at most {CONF_MAX}", conf.len()));
    }
    for (key, value) in conf {
        if let Err(why) = check(key, value) {
            faults.invalid(format!("{field}.{key}"), why);
        }
    }
}

/// What a value can be: each is a line of a file, or a variable of an environment.
fn plain(key: &str, value: &str) -> Result<(), String> {
    if key.len() > CONF_TEXT_MAX || value.len() > CONF_TEXT_MAX || value.chars().any(char::is_control) {
        return Err(format!("a value has at most {CONF_TEXT_MAX} printable characters, on one line"));
    }
    Ok(())
}

/// Refuses what is Enoki's to set: names, and what to change instead. A name that ends with a dot is all below it.
fn not_ours(own: &[(&str, &str)], key: &str) -> Result<(), String> {
    match own.iter().find(|(own, _)| key == *own || (own.ends_with('.') && key.starts_with(own))) {
        Some((_, instead)) => Err(format!("this is Enoki's to set: {instead}")),
        None => Ok(()),
    }
}

impl Spec for ClusterSpec {
    const KIND: Kind = Kind::Cluster;
    type Status = ClusterStatus;

    fn validate(&self, faults: &mut Faults) {
        match self.engine {
            Engine::Spark => spark::validate(self, faults),
            Engine::Dask => dask::validate(self, faults),
            Engine::Unknown => faults.invalid("spec.engine", "one of spark, dask"),
        }
        let version = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if self.version.is_empty() || self.version.len() > 64 || !self.version.chars().all(version) {
            faults.invalid("spec.version", format!("`{}` is not a version, as 4.0.1 is", self.version));
        }
        self.workers.validate(faults);
        if self.master.cpus.0 < 100 {
            faults.invalid(
                "spec.master.cpus",
                format!("{} is too little for a master: at least 0.1", self.master.cpus),
            );
        }
        if self.disk_size.is_some_and(|size| size < DISK_SIZE_MIN) {
            faults.invalid("spec.disk_size", format!("at least {DISK_SIZE_MIN}"));
        }
        if let Some(network) = &self.network
            && let Err(problem) = check_name("spec.network", network)
        {
            faults.push(problem);
        }
        for (field, factor) in
            [("scale_up_factor", self.scale_up_factor), ("scale_down_factor", self.scale_down_factor)]
        {
            if !(0.0..=1.0).contains(&factor) {
                faults.invalid(format!("spec.{field}"), format!("{factor} is not from 0 to 1"));
            }
        }
        if self.scale_up_factor == 0.0 && self.workers.min < self.workers.max {
            faults.invalid(
                "spec.scale_up_factor",
                "with 0 the pool would never grow: make min and max equal for that",
            );
        }
    }
}

choice!(
    /// Where a cluster stands.
    ClusterPhase {
        /// Nothing of it is placed yet.
        Pending,
        /// Its instances come up.
        Starting,
        /// Its master answers, and the least of its workers are there.
        Ready,
        /// It was ready, and its master or one of the least workers is away.
        Degraded,
        /// Its instances go.
        Deleting,
    }
);

/// How a cluster is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    pub phase: ClusterPhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Where its parts find its master: `spark://ADDRESS:PORT`, `tcp://ADDRESS:PORT` of Dask. Reached from within its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// Where its Connect server takes notebooks, once it does: `sc://ADDRESS:PORT`. Reached from within its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<String>,
    #[serde(default)]
    pub workers: WorkersStatus,
    #[serde(default)]
    pub observed_generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "date-time")]
    pub ready_at: Option<Timestamp>,
}

/// How its pool of workers is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkersStatus {
    pub min: u32,
    pub max: u32,
    /// As many as there should be now.
    pub desired: u32,
    /// Known to the master as alive.
    pub ready: u32,
    /// Asked to leave, and not gone yet.
    pub draining: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn faults(spec: Value) -> Vec<String> {
        let spec: ClusterSpec = serde_json::from_value(spec).unwrap();
        let mut faults = Faults::default();
        spec.validate(&mut faults);
        faults.into_result().err().into_iter().filter_map(|problem| problem.field).collect()
    }

    #[test]
    fn the_least_that_is_said_is_a_cluster() {
        assert_eq!(faults(json!({"version": "4.0.1"})), [""; 0]);
        let spec: ClusterSpec = serde_json::from_value(json!({"version": "4.0.1"})).unwrap();
        assert_eq!((spec.cores(), spec.image().as_str()), (1, "enoki/spark:4.0.1"));
    }

    #[test]
    fn what_cannot_be_is_told_by_its_field() {
        let with = |field: &str, value: Value| {
            let mut spec = json!({"version": "4.0.1"});
            spec[field] = value;
            faults(spec)
        };
        assert_eq!(with("workers", json!({"cpus": "1.5"})), ["spec.workers.cpus"]);
        assert_eq!(with("workers", json!({"cpus": "0"})), ["spec.workers.cpus"]);
        assert_eq!(with("workers", json!({"min": 3, "max": 2})), ["spec.workers.min"]);
        assert_eq!(with("workers", json!({"min": 0, "max": 0})), ["spec.workers.max"]);
        assert_eq!(with("workers", json!({"memory": "64Mi"})), ["spec.workers.memory"]);
        assert_eq!(with("master", json!({"memory": "64Mi"})), ["spec.master.memory"]);
        assert_eq!(with("version", json!("4.0.1 ; rm")), ["spec.version"]);
        assert_eq!(with("engine", json!("dryad")), ["spec.engine"]);
        assert_eq!(with("scale_up_factor", json!(0)), [""; 0], "a pool of one size does not have to grow");
        assert_eq!(with("scale_down_factor", json!(1.5)), ["spec.scale_down_factor"]);
        assert_eq!(with("network", json!("Blue")), ["spec.network"]);
        assert_eq!(with("connect", json!(true)), [""; 0]);
    }

    #[test]
    fn what_is_of_one_engine_is_refused_for_the_other() {
        let with = |engine: &str, field: &str, value: Value| {
            let mut spec = json!({"engine": engine, "version": "4.0.1"});
            spec[field] = value;
            faults(spec)
        };
        let secret = json!({"secret": "s", "key": "k"});
        assert_eq!(with("dask", "spark_conf", json!({"spark.a": "1"})), ["spec.spark_conf"]);
        assert_eq!(with("dask", "spark_conf_secret", secret), ["spec.spark_conf_secret"]);
        assert_eq!(with("dask", "connect", json!(true)), ["spec.connect"]);
        assert_eq!(with("spark", "dask_conf", json!({"distributed.a": "1"})), ["spec.dask_conf"]);
        assert_eq!(with("dask", "dask_conf", json!({"distributed.a": "1"})), [""; 0]);
    }

    #[test]
    fn a_job_is_checked_by_the_engine_that_runs_it() {
        let file =
            |name: &str| json!({"name": name, "digest": format!("sha256:{}", "0a".repeat(32)), "size": 1});
        let told = |engine: &str, field: &str, value: Value| -> Vec<String> {
            let mut job = json!({"cluster": "lake", "file": file("job.py")});
            job[field] = value;
            let (mut faults, job) = (Faults::default(), serde_json::from_value(job).unwrap());
            let spec: ClusterSpec =
                serde_json::from_value(json!({"engine": engine, "version": "1"})).unwrap();
            spec.check_job(&job, &mut faults);
            faults.into_result().err().into_iter().filter_map(|problem| problem.field).collect()
        };
        assert_eq!(told("spark", "conf", json!({"spark.a": "1"})), [""; 0]);
        assert_eq!(told("spark", "conf", json!({"spark.master": "local"})), ["spec.conf.spark.master"]);
        assert_eq!(told("dask", "conf", json!({"a.b": "1"})), [""; 0], "Dask's own names are not closed");
        assert_eq!(told("dask", "conf", json!({"spark.a": "1"})), ["spec.conf.spark.a"]);
        assert_eq!(told("spark", "class", json!("A")), ["spec.class"]);
        assert_eq!(told("dask", "conf", json!({"scheduler-address": "x"})), ["spec.conf.scheduler-address"]);
        assert_eq!(told("spark", "memory", json!("256Mi")), ["spec.memory"]);
        assert_eq!(told("dask", "memory", json!("256Mi")), [""; 0]);
        assert_eq!(told("dask", "memory", json!("1Mi")), ["spec.memory"]);
        assert_eq!(told("dask", "file", file("job.jar")), ["spec.file.name"]);
        assert_eq!(told("dask", "jars", json!([file("a.jar")])), ["spec.jars"]);
        assert_eq!(told("dask", "packages", json!(["a:b:1"])), ["spec.packages"]);
        assert_eq!(told("dask", "class", json!("A")), ["spec.class"]);
        assert_eq!(told("dask", "py_files", json!([file("a.py")])), [""; 0]);
    }
}
