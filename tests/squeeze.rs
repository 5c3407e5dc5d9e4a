//! Who gives way to whom: shares of a CPU by priority, room on a full host, and workers whose CPUs others use.

use enoki_harness::{Cloud, eventually, is_root, steps};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const VERSION: &str = "4.0.1";
/// For what takes Java to start, on a machine that does other things beside.
const WAIT: Duration = Duration::from_secs(120);
/// For a signal that takes a few looks, five seconds apart.
const LOOKS: Duration = Duration::from_secs(60);
const BURN: [&str; 4] = ["--", "sh", "-c", "while :; do :; done"];
/// Tasks that wait, or use a CPU, for a second each. What they add up to is known.
const TASKS: &str = r#"
import sys, time
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
count, burns = int(sys.argv[1]), sys.argv[2] == "burn"
def work(n):
    end = time.time() + 1
    while burns and time.time() < end: pass
    time.sleep(max(0, end - time.time()))
    return n
print("sum", context.parallelize(range(count), count).map(work).sum(), flush=True)
"#;

fn instance(cloud: &Cloud, name: &str) -> Value {
    cloud.enoki(&["get", "instance", name, "-o", "json"]).ok().json()
}

fn burns(cloud: &Cloud, name: &str, flags: &[&str]) {
    cloud.enoki(&[&["run", name, "--image", "enoki/tiny:1", "--wait"], flags, &BURN].concat()).ok();
}

fn prioritize(cloud: &Cloud, name: &str, priority: i32) {
    let patch = json!({"spec": {"priority": priority}});
    let path = format!("/v1/projects/default/instances/{name}");
    let changed = cloud.api("PATCH", &path, Some(&patch)).expect(200);
    eventually("its host has acted on its priority", LOOKS, || {
        let status = instance(cloud, name)["status"].clone();
        let acted = status["observed_generation"] == changed.json["generation"]
            && status["limits"]["state"] == "applied";
        if acted { Ok(()) } else { Err(status.to_string()) }
    });
}

#[test]
fn cpus() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::start();
    cloud.import_tiny();
    steps(
        &cloud,
        &[
            ("a low priority gets what is left of a CPU", weighs),
            ("it is told since when it waits", squeezed),
            ("equals share, and do not squeeze each other", equals),
        ],
    );
}

/// CPU time of an instance, in ns.
fn used(cloud: &Cloud, name: &str) -> f64 {
    let id = instance(cloud, name)["status"]["container_id"].as_str().expect("a container").to_owned();
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let stat = cloud.cgroup(&*id, "cpuacct", "cpu.stat");
        let used = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok());
        return used.expect("usage_usec") * 1000.0;
    }
    cloud.cgroup(&*id, "cpuacct", "cpuacct.usage").parse().expect("a number")
}

/// The part that `web` gets of what both use in the next seconds.
fn share(cloud: &Cloud) -> f64 {
    let before = ["web", "batch"].map(|name| used(cloud, name));
    std::thread::sleep(Duration::from_secs(4));
    let after = ["web", "batch"].map(|name| used(cloud, name));
    let [web, batch] = [after[0] - before[0], after[1] - before[1]];
    assert!(web + batch > 5e8, "they burn: {web} and {batch} ns");
    web / (web + batch)
}

fn weighs(cloud: &Cloud) {
    let last = (std::thread::available_parallelism().map_or(1, usize::from) - 1).to_string();
    burns(cloud, "web", &["--cpuset", &last]);
    burns(cloud, "batch", &["--cpuset", &last, "--priority", "-1"]);
    let share = share(cloud);
    assert!(share > 0.8, "{share}");
    let status = instance(cloud, "batch")["status"].clone();
    assert!(status["limits"]["cpu_weight"].is_number(), "{status}");
    assert!(instance(cloud, "web")["status"]["limits"]["cpu_weight"].is_null());
}

fn squeezed(cloud: &Cloud) {
    eventually("it is squeezed", LOOKS, || {
        let status = instance(cloud, "batch")["status"].clone();
        if status["squeezed_since"].is_string() { Ok(()) } else { Err(status.to_string()) }
    });
    let told = cloud.enoki(&["describe", "instance", "batch"]).ok();
    assert!(told.stdout.contains("instances of higher priority"), "{told}");
    assert!(instance(cloud, "web")["status"]["squeezed_since"].is_null());
}

fn equals(cloud: &Cloud) {
    prioritize(cloud, "web", -1);
    let share = share(cloud);
    assert!((0.35..0.65).contains(&share), "{share}");
    // Both still wait for each other.
    eventually("neither is squeezed", LOOKS, || {
        let since = ["web", "batch"].map(|name| instance(cloud, name)["status"]["squeezed_since"].clone());
        if since.iter().all(Value::is_null) { Ok(()) } else { Err(format!("{since:?}")) }
    });
    prioritize(cloud, "web", 0);
    assert!(self::share(cloud) > 0.8);
}

#[test]
fn a_cluster() {
    if !is_root() {
        return;
    }
    if std::env::var_os("ENOKI_FULL").is_none() {
        eprintln!("SKIPPED a cluster of Spark that gives way, which takes two minutes: set ENOKI_FULL=1");
        return;
    }
    let cloud = Cloud::bare();
    // All but 5 GiB: the master, a driver and three workers fill it.
    let memory = std::fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let memory: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .expect("MemTotal");
    let reserve = (memory << 10) - (5 << 30);
    cloud.write("/etc/enoki/agent.toml", &format!("[reserve]\nmemory = \"{reserve}\"\n"));
    cloud.up();
    cloud.import_tiny();
    cloud.import_spark(VERSION);
    cloud.write("/run/tasks.py", TASKS);
    steps(
        &cloud,
        &[
            ("it gives room to what is above it, and its job ends right", room),
            ("it gives way to what uses its CPUs", gives_way),
        ],
    );
}

fn status(cloud: &Cloud) -> Value {
    cloud.enoki(&["get", "cluster", "lake", "-o", "json"]).ok().json()["status"].clone()
}

#[track_caller]
fn until(cloud: &Cloud, what: &str, reached: impl Fn(&Value) -> bool) {
    eventually(what, WAIT, || {
        let status = status(cloud);
        if reached(&status) { Ok(()) } else { Err(status.to_string()) }
    });
}

fn submit(cloud: &Cloud, words: &[&str]) -> String {
    let flags =
        ["cluster", "submit", "lake", "/run/tasks.py", "-o", "name", "--conf", "spark.cores.max=3", "--"];
    let submitted = cloud.enoki(&[&flags, words].concat()).ok();
    submitted.text().trim_start_matches("job/").to_owned()
}

/// The workers that have a place, and all of them.
fn workers(cloud: &Cloud) -> (usize, usize) {
    let listed = cloud.enoki(&["get", "instances", "-l", "enoki.role=worker", "-o", "json"]).ok().json();
    let all = listed["items"].as_array().cloned().unwrap_or_default();
    (all.iter().filter(|worker| worker["status"]["host"].is_string()).count(), all.len())
}

/// Whether the log of the cluster's events has this.
fn told(cloud: &Cloud, reason: &str) -> bool {
    let events = cloud.enoki(&["get", "events", "--for", "cluster/lake", "-o", "json"]).ok().json();
    events["items"].as_array().is_some_and(|items| items.iter().any(|event| event["reason"] == reason))
}

fn room(cloud: &Cloud) {
    let spec = json!({
        "version": VERSION,
        "workers": {"min": 1, "max": 3, "memory": "1Gi"},
        "squeeze_timeout": "5s",
    });
    let cluster = json!({"name": "lake", "spec": spec});
    let begun = Instant::now();
    let made = cloud.api("POST", "/v1/projects/default/clusters", Some(&cluster)).expect(201);
    assert_eq!(made.json["spec"]["priority"], -100, "{}", made.body);
    until(cloud, "ready", |status| status["phase"] == "ready");
    eprintln!("ready after {:.1?}", begun.elapsed());
    let priority = |name: &str| instance(cloud, name)["spec"]["priority"].clone();
    assert_eq!((priority("lake-master"), priority("lake-worker-1")), (json!(0), json!(-100)));
    let job = submit(cloud, &["40", "sleep"]);
    until(cloud, "has all that the job gets", |status| {
        assert!(!told(cloud, "squeezed"), "by its own driver: {status}");
        status["workers"]["ready"] == 3
    });
    let begun = Instant::now();
    cloud
        .enoki_with(
            &[
                "run",
                "web",
                "--image",
                "enoki/tiny:1",
                "--memory",
                "1Gi",
                "--wait",
                "--",
                "sleep",
                "infinity",
            ],
            "",
            WAIT,
        )
        .ok();
    eprintln!("has its place after {:.1?}", begun.elapsed());
    assert!(told(cloud, "makes_room"));
    assert_eq!(workers(cloud).0, 2, "one left, and none came for it");
    assert_eq!(status(cloud)["phase"], "ready");
    let ended = eventually("the job has ended", WAIT, || {
        let job = cloud.enoki(&["get", "job", &job, "-o", "json"]).ok().json();
        if job["status"]["ended_at"].is_null() { Err(job["status"].to_string()) } else { Ok(job) }
    });
    assert_eq!(ended["status"]["phase"], "succeeded", "{ended}");
    let logs = cloud.enoki(&["cluster", "job", "logs", "lake", &job]).ok();
    assert!(logs.stdout.contains("sum 780\n"), "{logs}");
}

fn gives_way(cloud: &Cloud) {
    let job = submit(cloud, &["1000", "burn"]);
    let runs =
        || cloud.enoki(&["get", "job", &job, "-o", "json"]).ok().json()["status"]["phase"] == "running";
    until(cloud, "works", |status| runs() && status["workers"]["ready"] == 2);
    assert!(!told(cloud, "squeezed"));
    for number in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        burns(cloud, &format!("burns{number}"), &[]);
    }
    let begun = Instant::now();
    eventually("one is squeezed and leaves, and the minimum stays", WAIT, || {
        let (placed, all) = workers(cloud);
        if placed == 1 && all == 1 {
            Ok(())
        } else {
            Err(format!("{placed} of {all} workers; {}", status(cloud)))
        }
    });
    eprintln!("has left after {:.1?}", begun.elapsed());
    assert!(told(cloud, "squeezed"));
    let status = status(cloud);
    assert_eq!((&status["phase"], &status["workers"]["desired"]), (&json!("ready"), &json!(1)), "{status}");
    cloud.enoki(&["cluster", "job", "kill", "lake", &job]).ok();
}
