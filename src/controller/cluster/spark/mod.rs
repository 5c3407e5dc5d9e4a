//! Apache Spark, standalone: what its instances are (PURE), what its [`pages`] say, and how a [`driver`] is looked at.
//!
//! The image's starts read the environment (`deploy/images/spark`). A worker is one executor: it has all of the worker's
//! cores, and of its memory what the Java of the worker and Python leave.

mod driver;
mod pages;

use super::engine::{self, Connect, Drivers, Engine, inside, plain};
use super::master_volume;
use super::page::Pages;
use super::view::{Demand, MasterSeen};
use driver::Driver;
use enoki_api::cluster::{CONNECT_PORT, Cluster, ClusterSpec};
use enoki_api::instance::{EnvValue, InstanceSpec, Mount};
use enoki_api::job::{self, Job};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Where a master takes workers and drivers.
const MASTER_PORT: u16 = 7077;
const MASTER_PAGE: u16 = 8080;
/// Where a driver shows itself.
const DRIVER_PAGE: u16 = 4040;
/// Where the master's state, and everybody's scratch files, are.
const STATE: &str = "/var/lib/spark";
const MIB: u64 = 1 << 20;
/// Heaps of the processes that only keep books, in MiB.
const MASTER_HEAP: u64 = 256;
const WORKER_HEAP: u64 = 128;
/// What the worker's own Java has resident beside its executor (216 MB were seen), in MiB.
const WORKER_RESIDENT: u64 = 256;
/// Of the memory for an executor, or of a driver's, the part that is heap: the rest is for what Java has beside its heap,
/// and for Python.
const HEAP_PART: (u64, u64) = (3, 4);

/// The master's page leads on to those of workers and drivers: one port is the way to all.
const PROXIED: (&str, &str) = ("spark.ui.reverseProxy", "true");

/// The engine.
pub struct Spark;

impl Engine for Spark {
    /// The master: its state is on a volume, so that one that is started again knows its workers and apps.
    fn master(&self, cluster: &Cluster, network: &str) -> InstanceSpec {
        let mut spec = engine::master(cluster, network);
        spec.mounts.insert(STATE.into(), Mount { volume: master_volume(&cluster.name), read_only: false });
        let recovery = format!("{STATE}/recovery");
        let mut conf = cluster.spec.spark_conf.clone();
        conf.extend(pairs(&[
            ("spark.deploy.recoveryMode", "FILESYSTEM"),
            ("spark.deploy.recoveryDirectory", &recovery),
            // Without the first, the page does not take the word; the page itself is not reached from outside the network.
            ("spark.decommission.enabled", "true"),
            ("spark.master.ui.decommission.allow.mode", "ALLOW"),
            ("spark.master.rest.enabled", "false"),
            PROXIED,
        ]));
        environment(&mut spec, &conf, [("SPARK_DAEMON_MEMORY", format!("{MASTER_HEAP}m"))]);
        spec
    }

    /// One worker of the master at this address.
    fn worker(&self, cluster: &Cluster, network: &str, master: Ipv4Addr) -> InstanceSpec {
        let mut spec = engine::worker(cluster, network);
        let mut conf = cluster.spec.spark_conf.clone();
        conf.extend(pairs(&[
            ("spark.decommission.enabled", "true"),
            ("spark.worker.cleanup.enabled", "true"),
            PROXIED,
        ]));
        environment(
            &mut spec,
            &conf,
            [
                ("SPARK_MASTER", url(master)),
                ("SPARK_WORKER_CORES", cluster.spec.cores().to_string()),
                ("SPARK_WORKER_MEMORY", format!("{}m", executor_heap(&cluster.spec))),
                ("SPARK_DAEMON_MEMORY", format!("{WORKER_HEAP}m")),
            ],
        );
        spec
    }

    fn driver(&self, cluster: &Cluster, job: &Job, network: &str, master: Ipv4Addr) -> InstanceSpec {
        let mut spec = engine::driver(cluster, network, job, submit(job));
        let mut conf = driver_conf(&cluster.spec);
        conf.extend(cluster.spec.spark_conf.clone());
        conf.extend(job.spec.conf.clone());
        drives(&mut spec, cluster, conf, &job.name, master);
        spec
    }

    fn master_url(&self, master: Ipv4Addr) -> String {
        url(master)
    }

    fn keeps_state(&self) -> bool {
        true
    }

    fn master_page(&self) -> (u16, &'static str) {
        (MASTER_PAGE, "/json/")
    }

    fn read_master(&self, page: &[u8]) -> Result<MasterSeen, String> {
        pages::master(page)
    }

    fn leave_path(&self, worker: Ipv4Addr) -> String {
        format!("/workers/kill/?host={worker}")
    }

    /// The workers that a driver with these settings of its own could use: executors of its size on workers of the cluster's.
    fn workers_wanted(&self, spec: &ClusterSpec, own: &BTreeMap<String, String>, demand: &Demand) -> u32 {
        let conf = |key: &str| own.get(key).or_else(|| spec.spark_conf.get(key));
        let number =
            |key: &str| conf(key).and_then(|text| text.parse::<u32>().ok()).filter(|number| *number > 0);
        let (own, cores) =
            (spec.cores().max(1), number("spark.executor.cores").unwrap_or(spec.cores()).max(1));
        let wanted = match *demand {
            Demand::Executors(executors) => executors.saturating_mul(cores).div_ceil(own),
            Demand::Tasks(tasks) | Demand::Load { tasks, .. } => {
                tasks.saturating_mul(number("spark.task.cpus").unwrap_or(1)).div_ceil(own)
            }
        };
        let most = number("spark.cores.max").unwrap_or_else(|| share(spec));
        wanted.min(most.div_ceil(own))
    }

    fn drivers(&self) -> Option<&dyn Drivers> {
        Some(self)
    }

    fn connect(&self) -> Option<&dyn Connect> {
        Some(self)
    }
}

impl Drivers for Spark {
    fn page(&self) -> u16 {
        DRIVER_PAGE
    }

    fn watch(&self, pages: Pages) -> Box<dyn engine::Watch> {
        Box::new(Driver::new(pages))
    }
}

impl Connect for Spark {
    fn server(&self, cluster: &Cluster, network: &str, master: Ipv4Addr) -> InstanceSpec {
        let (cpus, memory) = (job::default_cpus(), job::default_memory());
        let mut spec = engine::instance(cluster, network, "connect", cpus, memory);
        spec.mounts = cluster.spec.mounts.clone();
        let mut conf = driver_conf(&cluster.spec);
        // It would grow for as long as the server is there.
        conf.insert("spark.eventLog.enabled".into(), "false".into());
        // It has no end at which executors go that hold shuffle files: they hand them on and go when they are idle.
        conf.insert("spark.dynamicAllocation.shuffleTracking.enabled".into(), "false".into());
        conf.extend(cluster.spec.spark_conf.clone());
        drives(&mut spec, cluster, conf, "connect", master);
        spec
    }

    fn url(&self, server: Ipv4Addr) -> String {
        format!("sc://{server}:{CONNECT_PORT}")
    }
}

/// `spark://ADDRESS:PORT` of the master at this address.
fn url(master: Ipv4Addr) -> String {
    format!("spark://{master}:{MASTER_PORT}")
}

/// The heap of one executor, in MiB.
fn executor_heap(spec: &ClusterSpec) -> u64 {
    part(spec.workers.memory.0 / MIB - WORKER_RESIDENT)
}

fn part(mib: u64) -> u64 {
    mib * HEAP_PART.0 / HEAP_PART.1
}

/// What makes an instance a driver, and of its settings what the pool's size follows from: that is nobody's to change.
fn drives(
    spec: &mut InstanceSpec,
    cluster: &Cluster,
    mut conf: BTreeMap<String, String>,
    name: &str,
    master: Ipv4Addr,
) {
    conf.insert("spark.metrics.namespace".into(), "job".into());
    conf.insert("spark.ui.port".into(), DRIVER_PAGE.to_string());
    conf.extend(pairs(&[PROXIED]));
    conf.entry("spark.app.name".into()).or_insert_with(|| name.to_owned());
    let heap = part(spec.memory.unwrap_or(job::default_memory()).0 / MIB);
    environment(spec, &conf, [("SPARK_MASTER", url(master)), ("SPARK_DRIVER_MEMORY", format!("{heap}m"))]);
    let secret = cluster.spec.spark_conf_secret.clone().map(EnvValue::Secret);
    spec.env.extend(secret.map(|secret| ("SPARK_CONF_SECRET".to_owned(), secret)));
}

/// The cores that one job has at most where nothing else is said: Spark gives them to whoever asked first, so a job with all of
/// them would keep the others waiting to its end. One worker is left.
fn share(spec: &ClusterSpec) -> u32 {
    spec.workers.max.saturating_sub(1).max(1).saturating_mul(spec.cores())
}

/// What a job gets where neither the cluster nor the job says otherwise.
fn driver_conf(spec: &ClusterSpec) -> BTreeMap<String, String> {
    let (heap, cores) = (format!("{}m", executor_heap(spec)), spec.cores().to_string());
    let (most, share) = (spec.workers.max.to_string(), share(spec).to_string());
    pairs(&[
        ("spark.executor.memory", &heap),
        ("spark.executor.cores", &cores),
        ("spark.cores.max", &share),
        ("spark.dynamicAllocation.enabled", "true"),
        ("spark.dynamicAllocation.maxExecutors", &most),
        // The first comes up while the driver itself still does.
        ("spark.dynamicAllocation.initialExecutors", "1"),
        // An executor that is idle gives its worker free for other jobs before the pool lets the worker go.
        ("spark.dynamicAllocation.executorIdleTimeout", "15s"),
        // What a worker keeps is handed on before it leaves. That is also what lets an executor go that others may still
        // read from: there is no shuffle service.
        ("spark.decommission.enabled", "true"),
        ("spark.storage.decommission.enabled", "true"),
        ("spark.storage.decommission.rddBlocks.enabled", "true"),
        ("spark.storage.decommission.shuffleBlocks.enabled", "true"),
        // By default one that has nothing left to hand on waits for 30 s before it sees so.
        ("spark.storage.decommission.replicationReattemptInterval", "1s"),
    ])
}

/// The words of `spark-submit` for a job.
fn submit(job: &Job) -> Vec<String> {
    let mut words = Vec::new();
    for (flag, files) in
        [("--py-files", &job.spec.py_files), ("--jars", &job.spec.jars), ("--files", &job.spec.files)]
    {
        if !files.is_empty() {
            let list: Vec<String> = files.iter().map(inside).collect();
            words.extend([flag.to_owned(), list.join(",")]);
        }
    }
    if !job.spec.packages.is_empty() {
        words.extend(["--packages".to_owned(), job.spec.packages.join(",")]);
    }
    if let Some(class) = &job.spec.class {
        words.extend(["--class".to_owned(), class.clone()]);
    }
    words.push(inside(&job.spec.file));
    words.extend(job.spec.args.iter().cloned());
    words
}

fn environment<const N: usize>(
    spec: &mut InstanceSpec,
    conf: &BTreeMap<String, String>,
    more: [(&str, String); N],
) {
    let lines: Vec<String> = conf.iter().map(|(key, value)| format!("{key} {}", escaped(value))).collect();
    spec.env.insert("SPARK_CONF".into(), EnvValue::Plain(lines.join("\n")));
    spec.env.extend(plain(more));
}

/// A value in a file of Java properties.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\")
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::instance::RestartPolicy;
    use enoki_api::object::Object;
    use jiff::Timestamp;
    use serde_json::{Value, json};

    fn cluster(spec: Value) -> Cluster {
        let spec = serde_json::from_value(spec).unwrap();
        Object::new(Some("default"), "lake", Default::default(), spec, Timestamp::UNIX_EPOCH)
    }

    fn job(more: Value) -> Job {
        let file =
            |name: &str| json!({"name": name, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1});
        let mut spec = json!({"cluster": "lake", "file": file("job.py"), "args": ["a b", "-c"]});
        spec["py_files"] = json!([file("x.py"), file("y.zip")]);
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec = serde_json::from_value(spec).unwrap();
        Object::new(Some("default"), "job-1", Default::default(), spec, Timestamp::UNIX_EPOCH)
    }

    fn conf(spec: &InstanceSpec) -> BTreeMap<String, String> {
        let Some(EnvValue::Plain(text)) = spec.env.get("SPARK_CONF") else { panic!("no settings") };
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn a_worker_is_one_executor_with_room_for_the_rest() {
        let cluster = cluster(json!({"version": "4.0.1", "workers": {"cpus": "2", "memory": "2Gi"}}));
        assert_eq!(executor_heap(&cluster.spec), 1344, "three quarters of what the worker's own Java leaves");
        let worker = Spark.worker(&cluster, "lake", Ipv4Addr::new(198, 18, 0, 2));
        let env = |key: &str| match worker.env.get(key) {
            Some(EnvValue::Plain(text)) => text.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(env("SPARK_MASTER"), "spark://198.18.0.2:7077");
        assert_eq!((env("SPARK_WORKER_CORES"), env("SPARK_WORKER_MEMORY")), ("2".into(), "1344m".into()));
        let driver = Spark.driver(&cluster, &job(json!({})), "lake", Ipv4Addr::LOCALHOST);
        assert_eq!(conf(&driver)["spark.executor.memory"], "1344m");
        assert_eq!(conf(&driver)["spark.executor.cores"], "2");
    }

    #[test]
    fn a_job_counts_over_its_cluster_and_both_over_what_enoki_gives() {
        let spec = json!({"version": "4.0.1", "spark_conf": {"spark.a": "c", "spark.b": "c", "spark.executor.cores": "1"}});
        let driver = Spark.driver(
            &cluster(spec),
            &job(json!({"conf": {"spark.b": "j\\"}})),
            "lake",
            Ipv4Addr::LOCALHOST,
        );
        let conf = conf(&driver);
        assert_eq!(
            (conf["spark.a"].as_str(), conf["spark.b"].as_str()),
            ("c", "j\\\\"),
            "as in Java's properties"
        );
        assert_eq!(conf["spark.executor.cores"], "1");
        assert_eq!(conf["spark.metrics.namespace"], "job");
        let words: Vec<&str> = driver.command.iter().flatten().map(String::as_str).collect();
        let expected =
            ["/opt/enoki/spark/driver", "--py-files", "/job/x.py,/job/y.zip", "/job/job.py", "a b", "-c"];
        assert_eq!(words, expected);
        assert_eq!(driver.files.len(), 3);
        assert_eq!(driver.restart, RestartPolicy::Never);
    }

    #[test]
    fn a_connect_server_is_a_driver_that_stays() {
        let spec = json!({"version": "4.0.1", "connect": true, "spark_conf": {"spark.a": "c"}});
        let server = Spark.server(&cluster(spec.clone()), "lake", Ipv4Addr::new(198, 18, 0, 2));
        let settings = conf(&server);
        assert_eq!(
            (settings["spark.a"].as_str(), settings["spark.metrics.namespace"].as_str()),
            ("c", "job")
        );
        assert_eq!(settings["spark.app.name"], "connect");
        assert_eq!(settings["spark.eventLog.enabled"], "false", "a log of something that stays has no end");
        assert_eq!(server.restart, RestartPolicy::Always);
        assert_eq!(server.command, Some(vec!["/opt/enoki/spark/connect".to_owned()]));
        let job = Spark.driver(&cluster(spec), &job(json!({})), "lake", Ipv4Addr::LOCALHOST);
        assert_eq!((server.cpus, server.memory), (job.cpus, job.memory), "as a job's");
        assert_eq!(conf(&job).get("spark.eventLog.enabled"), None, "the image's own: on");
    }

    #[test]
    fn a_job_wants_workers_for_its_executors_and_leaves_one() {
        let wanted = |conf: Value, workers: Value, demand: Demand| {
            let cluster = cluster(json!({"version": "4.0.1", "workers": workers}));
            Spark.workers_wanted(&cluster.spec, &job(json!({"conf": conf})).spec.conf, &demand)
        };
        let eight = || json!({"min": 1, "max": 8, "cpus": "2"});
        assert_eq!(wanted(json!({}), eight(), Demand::Executors(3)), 3);
        assert_eq!(wanted(json!({}), eight(), Demand::Executors(300)), 7, "one is left for others");
        assert_eq!(wanted(json!({"spark.cores.max": "16"}), eight(), Demand::Executors(300)), 8);
        assert_eq!(wanted(json!({"spark.cores.max": "3"}), eight(), Demand::Executors(300)), 2);
        assert_eq!(wanted(json!({"spark.executor.cores": "1"}), eight(), Demand::Executors(5)), 3);
        assert_eq!(wanted(json!({}), eight(), Demand::Tasks(5)), 3);
        assert_eq!(wanted(json!({"spark.task.cpus": "2"}), eight(), Demand::Tasks(5)), 5);
        assert_eq!(
            wanted(json!({}), json!({"min": 0, "max": 1}), Demand::Executors(9)),
            1,
            "the only one is taken"
        );
    }
}
