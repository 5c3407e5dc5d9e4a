//! Compute clusters with the real Dask: a pool that follows its tasks, keeps what they left, and jobs that end as their programs do.

use enoki_harness::{Cloud, Output, eventually, is_root, steps};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const VERSION: &str = "2026.8.0";
/// For what takes Python to start, on a machine that does other things beside.
const WAIT: Duration = Duration::from_secs(90);
/// Tasks of a second each, whose results are kept until the pool is as small as before; then they are added up. Each says that it ran.
const KEEPS: &str = r#"
import sys, time
from distributed import Client, get_worker, wait
client = Client()
count = int(sys.argv[1])
def work(n):
    get_worker().log_event("ran", n)
    time.sleep(1)
    return n
kept = client.map(work, range(count))
wait(kept)
holders = {address for addresses in client.who_has(kept).values() for address in addresses}
print("kept on", len(holders), flush=True)
while len(client.scheduler_info(n_workers=-1)["workers"]) > 1:
    time.sleep(0.5)
print("sum", client.submit(sum, kept).result(), "ran", len(client.get_events("ran")), flush=True)
"#;
/// Does not come to an end by itself.
const STAYS: &str = r#"
import time
from distributed import Client
print("workers", len(Client().scheduler_info()["workers"]), flush=True)
time.sleep(1000)
"#;
/// Fails on a worker, in a module that was sent along.
const THROWS: &str = r#"
import sys, helper
from distributed import Client
print(sys.argv[1:], open("/job/words.txt").read().split(), flush=True)
Client().submit(helper.work, 1).result()
"#;
const HELPER: &str = "def work(n):\n    raise ValueError('no such fish')\n";

#[test]
fn a_cluster_of_dask_and_its_jobs() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::start();
    steps(
        &cloud,
        &[
            ("what is not Dask's is refused", refused),
            ("from nothing to ready", ready),
            ("the pool follows a job and keeps what it has", elastic),
            ("a job fails and one is killed", ends),
            ("what it made goes with it", gone),
        ],
    );
}

fn workers(cloud: &Cloud) -> Value {
    cloud.enoki(&["get", "cluster", "pond", "-o", "json"]).ok().json()["status"]["workers"].clone()
}

fn submit(cloud: &Cloud, program: &str, flags: &[&str]) -> Output {
    cloud.write("/run/program.py", program);
    cloud.enoki_with(&[&["cluster", "submit", "pond", "/run/program.py"], flags].concat(), "", WAIT)
}

fn job(cloud: &Cloud, name: &str) -> Value {
    cloud.enoki(&["get", "job", name, "-o", "json"]).ok().json()["status"].clone()
}

fn refused(cloud: &Cloud) {
    let create = |flags: &[&str]| cloud.enoki(&[&["cluster", "create", "pond"], flags].concat());
    let told = create(&["--engine", "dask"]).exits(1);
    assert!(told.stderr.contains("images-dask"), "{told}");
    create(&["--engine", "ray"]).exits(2);
    let told = create(&["--engine", "dask", "--version", VERSION, "--connect"]).exits(1);
    assert!(told.stderr.contains("spec.connect"), "{told}");
    cloud.import_dask(VERSION);
    let told = create(&["--engine", "dask", "--version", "1.0"]).exits(1);
    assert!(told.stderr.contains(VERSION), "says what there is: {told}");
    let told = create(&["--engine", "dask", "--conf", "scheduler-address=tcp://198.18.0.9:1"]).exits(1);
    assert!(told.stderr.contains("spec.dask_conf"), "{told}");
}

fn ready(cloud: &Cloud) {
    let flags = [
        "--engine",
        "dask",
        "--workers",
        "1..4",
        "--worker-memory",
        "512Mi",
        "--idle",
        "3s",
        "--disk-size",
        "1Gi",
        "--wait",
    ];
    cloud.enoki_with(&[&["cluster", "create", "pond"], &flags[..]].concat(), "", WAIT).ok();
    assert_eq!(workers(cloud)["ready"], 1);
    let names = cloud.enoki(&["get", "instances", "-l", "enoki.cluster=pond", "-o", "name"]).ok();
    assert_eq!(names.stdout, "instance/pond-master\ninstance/pond-worker-1\n");
    let size = cloud.enoki(&["exec", "pond-worker-1", "--", "df", "--output=size", "-BM", "/"]).ok();
    let size: u64 = size
        .text()
        .split_whitespace()
        .last()
        .and_then(|size| size.strip_suffix('M')?.parse().ok())
        .expect("MiB");
    assert!((900..=1024).contains(&size), "{size} MiB");
    let page = cloud.sh(
        "rm -f /run/way; enoki cluster ui pond >/run/way & forward=$!; trap 'kill $forward' EXIT; \
         for i in $(seq 50); do [ -s /run/way ] && break; sleep 0.1; done; curl -sS --fail --max-time 10 $(cat /run/way)",
    );
    assert!(page.ok().stdout.contains("pond-worker-1"), "the scheduler's page tells its workers");
}

fn elastic(cloud: &Cloud) {
    let submitted = submit(cloud, KEEPS, &["-o", "name", "--", "24"]).ok();
    let name = submitted.text().trim_start_matches("job/").to_owned();
    let mut desired = BTreeSet::new();
    let ended = eventually("the job has ended", WAIT, || {
        desired.insert(workers(cloud)["desired"].as_u64().expect("a number"));
        let status = job(cloud, &name);
        if status["ended_at"].is_null() { Err(format!("{status} {}", workers(cloud))) } else { Ok(status) }
    });
    let log = cloud.enoki(&["cluster", "job", "logs", "pond", &name]).ok();
    assert_eq!(ended["phase"], "succeeded", "{ended} {log}");
    assert!(desired.contains(&4) && desired.contains(&1), "{desired:?}");
    assert!(log.stdout.contains("kept on 4\n"), "all workers had something: {log}");
    assert!(log.stdout.contains("sum 276 ran 24\n"), "what was kept was handed on, none ran again: {log}");
}

fn ends(cloud: &Cloud) {
    cloud.write("/run/helper.py", HELPER);
    cloud.write("/run/words.txt", "two words\n");
    let flags = ["--wait", "--py-files", "/run/helper.py", "--files", "/run/words.txt", "--", "a b", "-c"];
    let thrown = submit(cloud, THROWS, &flags).exits(1);
    assert!(thrown.stdout.contains("['a b', '-c'] ['two', 'words']"), "{thrown}");
    assert!(thrown.stdout.contains("ValueError: no such fish"), "{thrown}");
    let told = submit(cloud, THROWS, &["--packages", "a:b:1"]).exits(1);
    assert!(told.stderr.contains("spec.packages"), "{told}");
    let name = submit(cloud, STAYS, &["-o", "name"]).ok().text().trim_start_matches("job/").to_owned();
    eventually("it runs", WAIT, || {
        let logs = cloud.enoki(&["cluster", "job", "logs", "pond", &name]);
        if logs.stdout.contains("workers 1\n") { Ok(()) } else { Err(logs.to_string()) }
    });
    cloud.enoki(&["cluster", "job", "kill", "pond", &name]).ok();
    let status = job(cloud, &name);
    assert_eq!((&status["phase"], &status["exit_code"]), (&"killed".into(), &143.into()), "{status}");
    // One that no host has room for has nothing to stop, and nothing was printed.
    let flags = ["-o", "name", "--driver-memory", "900Gi"];
    let name = submit(cloud, STAYS, &flags).ok().text().trim_start_matches("job/").to_owned();
    eventually("it has no room", WAIT, || {
        let status = job(cloud, &name);
        if status["reason"] == "no_capacity" { Ok(()) } else { Err(status.to_string()) }
    });
    cloud.enoki(&["cluster", "job", "kill", "pond", &name]).ok();
    assert_eq!(job(cloud, &name)["phase"], "killed");
    eventually("it has no log", WAIT, || {
        let told = cloud.enoki(&["cluster", "job", "logs", "pond", &name]);
        if told.code() == 1 && told.stderr.contains("has no log") { Ok(()) } else { Err(told.to_string()) }
    });
    // A log is waited for, and followed for as long as there is a job.
    let name = submit(cloud, STAYS, &["-o", "name"]).ok().text().trim_start_matches("job/").to_owned();
    let followed = cloud.sh(&format!(
        "enoki cluster job logs pond {name} -f >/run/followed & follows=$!; trap 'kill $follows' EXIT; \
         for i in $(seq 600); do grep -q workers /run/followed && break; sleep 0.1; done; \
         enoki delete job {name} --timeout 60s >&2; \
         for i in $(seq 300); do kill -0 $follows || break; sleep 0.1; done; \
         trap - EXIT; wait $follows; echo $?; cat /run/followed",
    ));
    assert_eq!(followed.ok().stdout, "0\nworkers 1\n");
}

fn gone(cloud: &Cloud) {
    cloud.enoki(&["delete", "cluster", "pond", "--timeout", "60s"]).ok();
    for kind in ["clusters", "jobs", "instances", "volumes"] {
        assert_eq!(cloud.enoki(&["get", kind, "-o", "name"]).ok().stdout, "", "{kind}");
    }
    assert_eq!(cloud.enoki(&["get", "networks", "-o", "name"]).ok().stdout, "network/default\n");
}
