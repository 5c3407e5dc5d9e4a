//! PURE: Dask: what its instances are, and what its scheduler says.
//!
//! The image's starts read the environment (`deploy/images/dask`). The master is the scheduler, which knows all that all jobs want and
//! have; drivers are only asked by it. A worker is one process, with a thread for each of its cores.

use super::engine::{self, Connect, Drivers, Engine, inside, plain};
use super::view::{Demand, DriverSeen, MasterSeen, WorkerSeen};
use enoki_api::cluster::{Cluster, ClusterSpec};
use enoki_api::instance::InstanceSpec;
use enoki_api::job::Job;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

const MASTER_PORT: u16 = 8786;
const MASTER_PAGE: u16 = 8787;
/// Of the memory of all workers, the part that results may fill: beyond it a worker writes them to its disk.
const KEPT_PART: (u64, u64) = (3, 5);

/// The engine.
pub struct Dask;

impl Engine for Dask {
    fn master(&self, cluster: &Cluster, network: &str) -> InstanceSpec {
        let mut spec = engine::master(cluster, network);
        spec.env = plain(settings(&cluster.spec.dask_conf)).collect();
        spec
    }

    fn worker(&self, cluster: &Cluster, network: &str, master: Ipv4Addr) -> InstanceSpec {
        let mut spec = engine::worker(cluster, network);
        spec.env = plain(settings(&cluster.spec.dask_conf)).collect();
        spec.env.extend(plain([
            ("DASK_SCHEDULER_ADDRESS", url(master)),
            ("WORKER_THREADS", cluster.spec.cores().to_string()),
            ("WORKER_MEMORY", cluster.spec.workers.memory.0.to_string()),
        ]));
        spec
    }

    fn driver(&self, cluster: &Cluster, job: &Job, network: &str, master: Ipv4Addr) -> InstanceSpec {
        let program = [inside(&job.spec.file)].into_iter().chain(job.spec.args.iter().cloned()).collect();
        let mut spec = engine::driver(cluster, network, job, program);
        let mut conf = cluster.spec.dask_conf.clone();
        conf.extend(job.spec.conf.clone());
        spec.env = plain(settings(&conf)).collect();
        let modules: Vec<String> = job.spec.py_files.iter().map(inside).collect();
        spec.env.extend(plain([
            ("DASK_SCHEDULER_ADDRESS", url(master)),
            // None of their names has a colon.
            ("JOB_MODULES", modules.join(":")),
        ]));
        spec
    }

    fn master_url(&self, master: Ipv4Addr) -> String {
        url(master)
    }

    /// A scheduler that ends loses its tasks, whatever is kept.
    fn keeps_state(&self) -> bool {
        false
    }

    fn master_page(&self) -> (u16, &'static str) {
        (MASTER_PAGE, "/enoki/pool")
    }

    fn read_master(&self, page: &[u8]) -> Result<MasterSeen, String> {
        let page: Page = serde_json::from_slice(page).map_err(|error| error.to_string())?;
        let state = |line: &Line| match line.leaving {
            true => WorkerSeen::Leaving,
            false => WorkerSeen::Alive { used: line.tasks > 0 || line.kept > 0 },
        };
        let holds = |line: &&Line| line.tasks > 0 || line.alone > 0;
        let all = &page.workers;
        let tasks = all.iter().fold(page.waiting, |sum, line| sum.saturating_add(line.tasks));
        let kept = all.iter().fold(0_u64, |sum, line| sum.saturating_add(line.kept));
        Ok(MasterSeen {
            alive: true,
            workers: all.iter().map(|line| (line.address, state(line))).collect(),
            jobs: Some(DriverSeen {
                demand: Demand::Load { tasks, kept },
                executors: all.iter().filter(holds).map(|line| (line.address, line.tasks)).collect(),
            }),
        })
    }

    fn leave_path(&self, worker: Ipv4Addr) -> String {
        format!("/enoki/leave?worker={worker}")
    }

    fn workers_wanted(&self, spec: &ClusterSpec, _own: &BTreeMap<String, String>, demand: &Demand) -> u32 {
        let (tasks, kept) = match *demand {
            Demand::Load { tasks, kept } => (tasks, kept),
            Demand::Tasks(tasks) | Demand::Executors(tasks) => (tasks, 0),
        };
        let room = spec.workers.memory.0 * KEPT_PART.0 / KEPT_PART.1;
        let keeping = u32::try_from(kept.div_ceil(room.max(1))).unwrap_or(u32::MAX);
        tasks.div_ceil(spec.cores().max(1)).max(keeping)
    }

    fn drivers(&self) -> Option<&dyn Drivers> {
        None
    }

    fn connect(&self) -> Option<&dyn Connect> {
        None
    }
}

/// `tcp://ADDRESS:PORT` of the scheduler at this address.
fn url(master: Ipv4Addr) -> String {
    format!("tcp://{master}:{MASTER_PORT}")
}

/// Settings as Dask finds them in its environment: `distributed.worker.memory.spill` is `DASK_DISTRIBUTED__WORKER__MEMORY__SPILL`.
fn settings(conf: &BTreeMap<String, String>) -> impl Iterator<Item = (String, String)> {
    conf.iter().map(|(key, value)| {
        let name = key.to_ascii_uppercase().replace('.', "__").replace('-', "_");
        (format!("DASK_{name}"), value.clone())
    })
}

/// What the image's own page says: see `enoki_pool.py` there.
#[derive(Debug, Deserialize)]
struct Page {
    waiting: u32,
    workers: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    address: Ipv4Addr,
    leaving: bool,
    tasks: u32,
    kept: u64,
    alone: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::instance::{EnvValue, RestartPolicy};
    use enoki_api::object::Object;
    use jiff::Timestamp;
    use serde_json::{Value, json};

    fn cluster(more: Value) -> Cluster {
        let mut spec = json!({"engine": "dask", "version": "2026.8.0"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec = serde_json::from_value(spec).unwrap();
        Object::new(Some("default"), "pond", Default::default(), spec, Timestamp::UNIX_EPOCH)
    }

    fn env<'a>(spec: &'a InstanceSpec, key: &str) -> Option<&'a str> {
        match spec.env.get(key) {
            Some(EnvValue::Plain(text)) => Some(text),
            Some(EnvValue::Secret(_)) | None => None,
        }
    }

    #[test]
    fn its_instances_have_their_settings_in_their_environment() {
        let conf = json!({"distributed.worker.memory.spill": "0.5", "array.chunk-size": "1MiB"});
        let cluster = cluster(json!({"dask_conf": conf, "workers": {"cpus": "2", "memory": "1Gi"}}));
        let scheduler = Dask.master(&cluster, "pond");
        assert_eq!(env(&scheduler, "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL"), Some("0.5"));
        assert_eq!(scheduler.image, "enoki/dask:2026.8.0");
        assert_eq!(scheduler.command, Some(vec!["/opt/enoki/dask/master".to_owned()]));
        let worker = Dask.worker(&cluster, "pond", Ipv4Addr::new(198, 18, 0, 2));
        assert_eq!(env(&worker, "DASK_SCHEDULER_ADDRESS"), Some("tcp://198.18.0.2:8786"));
        assert_eq!(
            (env(&worker, "WORKER_THREADS"), env(&worker, "WORKER_MEMORY")),
            (Some("2"), Some("1073741824"))
        );
        let file =
            |name: &str| json!({"name": name, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1});
        let job = serde_json::from_value(json!({
            "cluster": "pond", "file": file("job.py"), "args": ["a b", "-c"], "py_files": [file("x.py"), file("y.zip")],
            "conf": {"array.chunk-size": "2MiB"},
        }))
        .unwrap();
        let job = Object::new(Some("default"), "job-1", Default::default(), job, Timestamp::UNIX_EPOCH);
        let driver = Dask.driver(&cluster, &job, "pond", Ipv4Addr::new(198, 18, 0, 2));
        assert_eq!(env(&driver, "DASK_ARRAY__CHUNK_SIZE"), Some("2MiB"), "a job counts over its cluster");
        assert_eq!(env(&driver, "JOB_MODULES"), Some("/job/x.py:/job/y.zip"));
        let words: Vec<&str> = driver.command.iter().flatten().map(String::as_str).collect();
        assert_eq!(words, ["/opt/enoki/dask/driver", "/job/job.py", "a b", "-c"]);
        assert_eq!((driver.files.len(), driver.restart), (3, RestartPolicy::Never));
    }

    #[test]
    fn a_schedulers_page() {
        let line = |last: u8, leaving: bool, tasks: u32, kept: u64, alone: u64| json!({"address": format!("198.18.0.{last}"), "leaving": leaving, "tasks": tasks, "kept": kept, "alone": alone});
        let page = json!({"waiting": 5, "workers": [
            line(3, false, 0, 0, 0), line(4, false, 2, 0, 0), line(5, false, 0, 7, 0), line(6, true, 0, 7, 1), line(7, true, 0, 7, 0),
        ]});
        let seen = Dask.read_master(page.to_string().as_bytes()).unwrap();
        let expected = [
            (3, WorkerSeen::Alive { used: false }),
            (4, WorkerSeen::Alive { used: true }),
            (5, WorkerSeen::Alive { used: true }),
            (6, WorkerSeen::Leaving),
            (7, WorkerSeen::Leaving),
        ];
        let at = |last: u8| Ipv4Addr::new(198, 18, 0, last);
        assert_eq!(seen.workers, expected.map(|(last, state)| (at(last), state)).into());
        let jobs = seen.jobs.unwrap();
        assert_eq!(jobs.demand, Demand::Load { tasks: 7, kept: 21 });
        assert_eq!(
            jobs.executors,
            [(at(4), 2), (at(6), 0)].into(),
            "what somebody else has, too, is not missed"
        );
        Dask.read_master(b"<html>").unwrap_err();
    }

    #[test]
    fn workers_for_all_tasks_and_for_all_that_is_kept() {
        let spec = cluster(json!({"workers": {"cpus": "2", "memory": "1000Mi", "max": 8}})).spec;
        let wanted = |tasks: u32, mib: u64| {
            Dask.workers_wanted(&spec, &BTreeMap::new(), &Demand::Load { tasks, kept: mib << 20 })
        };
        assert_eq!(wanted(0, 0), 0);
        assert_eq!(wanted(1, 0), 1);
        assert_eq!(wanted(5, 0), 3);
        assert_eq!(wanted(0, 1), 1);
        assert_eq!(wanted(0, 600), 1);
        assert_eq!(wanted(0, 601), 2);
        assert_eq!(wanted(5, 601), 3);
    }
}
