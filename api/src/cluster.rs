//! The compute cluster: a master and an elastic pool of workers, all of them instances that the cluster owns.

use crate::instance::{Mount, Placement, SecretKey, choice};
use crate::object::{Faults, Kind, Object, Spec, check_name};
use crate::quantity::{Bytes, MilliCpu, Span};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

pub type Cluster = Object<ClusterSpec>;

/// Where a master shows itself, and leads on to the pages of workers and drivers. A port of its instance.
pub const MASTER_PAGE: u16 = 8080;
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
/// The least memory: the heap and the rest of the Java of a master (256 MiB of heap; 238 MB were seen resident), and of a
/// worker (128 MiB of heap; 216 MB were seen) beside one executor's.
pub const MASTER_FLOOR: Bytes = Bytes(512 << 20);
pub const WORKER_FLOOR: Bytes = Bytes(1 << 30);

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
    /// How long a worker beyond the minimum has nothing to do before it leaves.
    #[serde(default = "default_idle")]
    pub idle: Span,
    /// Settings of the engine, over those that Enoki gives.
    #[serde(default)]
    pub spark_conf: BTreeMap<String, String>,
    /// More settings for drivers, a line each (`KEY VALUE`), from a secret: what opens an object store, for instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spark_conf_secret: Option<SecretKey>,
    /// Whether it has a Connect server: the way in for notebooks, as one job that stays.
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
    }
);

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

    /// Whether the engine has a Connect server that is one of its own programs: from 4 on.
    fn connects(&self) -> bool {
        // A version that is not a number is that of somebody's own image, who knows.
        let major = self.version.split('.').next().unwrap_or_default();
        major.parse::<u32>().map_or(true, |major| major >= 4)
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
        floor(faults, "spec.workers.memory", self.memory, WORKER_FLOOR, "a worker and one executor");
    }
}

fn floor(faults: &mut Faults, field: &str, asked: Bytes, floor: Bytes, whom: &str) {
    if asked < floor {
        faults.invalid(field, format!("{asked} is too little for the Java of {whom}: at least {floor}"));
    }
}

/// Whether a setting can be given. The error says why not.
///
/// Settings are lines of a file: one that could begin another is refused, and so is what Enoki itself decides.
pub fn check_conf(key: &str, value: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if !key.starts_with("spark.") || key.len() > CONF_TEXT_MAX || !key.chars().all(plain) {
        return Err("a setting's name begins with `spark.` and has letters, digits and .-_".into());
    }
    if value.len() > CONF_TEXT_MAX || value.chars().any(char::is_control) {
        return Err(format!("a value has at most {CONF_TEXT_MAX} printable characters, on one line"));
    }
    match OWN_CONF.iter().find(|(own, _)| key == *own || (own.ends_with('.') && key.starts_with(own))) {
        Some((_, instead)) => Err(format!("this is Enoki's to set: {instead}")),
        None => Ok(()),
    }
}

/// What follows from how the cluster is made, and what to change instead. A name that ends with a dot is all below it.
const OWN_CONF: [(&str, &str); 16] = [
    ("spark.master", "a job is submitted to the cluster"),
    ("spark.submit.deployMode", "a job's driver is an instance of its own"),
    ("spark.master.rest.", "jobs are submitted through Enoki"),
    ("spark.master.ui.", "pages are reached through Enoki"),
    ("spark.ui.port", "pages are reached through Enoki"),
    ("spark.ui.reverseProxy", "pages are reached through Enoki"),
    ("spark.worker.", "see spec.workers"),
    ("spark.driver.host", "a driver listens on its instance's address"),
    ("spark.driver.bindAddress", "a driver listens on its instance's address"),
    ("spark.deploy.recoveryMode", "the master's state is on a volume"),
    ("spark.deploy.recoveryDirectory", "the master's state is on a volume"),
    ("spark.metrics.namespace", "the pool's size follows from the metrics"),
    ("spark.decommission.enabled", "workers leave by being decommissioned"),
    ("spark.history.ui.port", "pages are reached through Enoki"),
    ("spark.history.fs.logDirectory", "what jobs leave is on the master's volume"),
    ("spark.connect.grpc.binding.", "see spec.connect"),
];

impl Spec for ClusterSpec {
    const KIND: Kind = Kind::Cluster;
    type Status = ClusterStatus;

    fn validate(&self, faults: &mut Faults) {
        if self.engine == Engine::Unknown {
            faults.invalid("spec.engine", "one of spark");
        }
        let version = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if self.version.is_empty() || self.version.len() > 64 || !self.version.chars().all(version) {
            faults.invalid("spec.version", format!("`{}` is not a version, like 4.0.1", self.version));
        }
        self.workers.validate(faults);
        if self.connect && !self.connects() {
            let detail =
                format!("{} {} has no Connect server here: 4.0 or newer has", self.engine, self.version);
            faults.invalid("spec.connect", detail);
        }
        floor(faults, "spec.master.memory", self.master.memory, MASTER_FLOOR, "a master");
        if self.master.cpus.0 < 100 {
            faults.invalid(
                "spec.master.cpus",
                format!("{} is too little for a master: at least 0.1", self.master.cpus),
            );
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
        if self.spark_conf.len() > CONF_MAX {
            faults.invalid(
                "spec.spark_conf",
                format!("{} settings; at most {CONF_MAX}", self.spark_conf.len()),
            );
        }
        for (key, value) in &self.spark_conf {
            if let Err(why) = check_conf(key, value) {
                faults.invalid(format!("spec.spark_conf.{key}"), why);
            }
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
    /// Where its parts find its master: `spark://ADDRESS:PORT`. Reached from within its network.
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
    fn what_is_older_than_4_has_no_connect_server() {
        for (version, refused) in [("3.5.9", true), ("4.0.1", false), ("10.0.0", false), ("nightly", false)] {
            let told = faults(json!({"version": version, "connect": true}));
            assert_eq!(told.contains(&"spec.connect".to_owned()), refused, "{version}: {told:?}");
        }
        assert_eq!(faults(json!({"version": "3.5.9"})), [""; 0]);
    }

    #[test]
    fn settings_are_one_line_each_and_not_ours() {
        for (key, value) in [
            ("spark.executor.memory", "1g"),
            ("spark.sql.shuffle.partitions", "8"),
            ("spark.eventLog.dir", "/data/events"),
        ] {
            check_conf(key, value).unwrap();
        }
        for (key, value) in [
            ("hive.x", "1"),
            ("spark.a b", "1"),
            ("spark.a", "1\nspark.master local"),
            ("spark.master", "local"),
            ("spark.worker.cleanup.enabled", "true"),
            ("spark.history.fs.logDirectory", "/data/events"),
            ("spark.connect.grpc.binding.port", "1"),
        ] {
            check_conf(key, value).unwrap_err();
        }
    }
}
