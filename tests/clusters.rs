//! Compute clusters with the real Apache Spark: from nothing to ready, jobs and their ends, a pool that follows its jobs.

use enoki_harness::{Cloud, Lab, Output, eventually, is_root, steps};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SECRET_CONF: &str = "spark.hadoop.fs.s3a.secret.key not-to-be-told-at";
const VERSION: &str = "4.0.1";
/// For what takes Java to start, on a machine that does other things beside.
const WAIT: Duration = Duration::from_secs(120);
/// Tasks of a second each. What they add up to is known.
const SLEEPERS: &str = r#"
import sys, time
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
count = int(sys.argv[1])
def work(n):
    time.sleep(1)
    return n
print("sum", context.parallelize(range(count), count).map(work).sum(), flush=True)
"#;
const THROWS: &str = r#"
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
def work(n):
    raise ValueError("no such fish")
context.parallelize(range(2), 2).map(work).count()
"#;
/// Tells what it was given by a secret.
const ASKS: &str = r#"
from pyspark.sql import SparkSession
conf = SparkSession.builder.getOrCreate().sparkContext.getConf()
print("told", len(conf.get("spark.hadoop.fs.s3a.secret.key")), flush=True)
"#;
/// Does not need the cluster: it is about files, arguments and the exit code.
const READS: &str = r#"
import sys, helper
print(helper.NAME, open("/job/words.txt").read().split(), sys.argv[1:], flush=True)
sys.exit(7)
"#;
/// Whether somebody at `sc://HOST:PORT` speaks HTTP/2, as gRPC does: what it says first are its settings.
const SPEAKS: &str = r#"
import socket, sys
host, port = sys.argv[1].removeprefix("sc://").split(":")
link = socket.create_connection((host, int(port)), 10)
link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
print("settings" if link.recv(9, socket.MSG_WAITALL)[3:4] == bytes([4]) else "none")
"#;

#[test]
fn a_cluster_and_its_jobs() {
    if !is_root() {
        return;
    }
    let lab = Lab::start(2);
    steps(
        &lab,
        &[
            ("what cannot be is refused", refused),
            ("from nothing to ready", ready),
            ("its ports are its network's", apart),
            ("the pool follows a job", elastic),
            ("jobs end as their programs do", ends),
            ("a job is killed", killed),
            ("ended jobs are shown", history),
            ("a way in for notebooks", connect),
            ("the pool shrinks again", shrinks),
            ("what it made goes with it", gone),
        ],
    );
}

fn cluster(cloud: &Cloud) -> Value {
    cloud.enoki(&["get", "cluster", "lake", "-o", "json"]).ok().json()["status"].clone()
}

#[track_caller]
fn until(cloud: &Cloud, what: &str, reached: impl Fn(&Value) -> bool) -> Value {
    eventually(what, WAIT, || {
        let status = cluster(cloud);
        if reached(&status) { Ok(status) } else { Err(status.to_string()) }
    })
}

fn create(cloud: &Cloud, flags: &[&str]) -> Output {
    cloud.enoki(&[&["cluster", "create", "lake"], flags].concat())
}

/// Submits a program and waits for its end.
fn submit(cloud: &Cloud, program: &str, flags: &[&str]) -> Output {
    cloud.write("/run/program.py", program);
    cloud.enoki_with(&[&["cluster", "submit", "lake", "/run/program.py", "--wait"], flags].concat(), "", WAIT)
}

fn refused(lab: &Lab) {
    let cloud = &lab[0];
    let told = create(cloud, &["--version", VERSION]).exits(1);
    assert!(told.stderr.contains("images-spark"), "{told}");
    for (flags, field) in [
        (&["--worker-cpus", "1.5"][..], "spec.workers.cpus"),
        (&["--workers", "3..2"], "spec.workers.min"),
        (&["--worker-memory", "128Mi"], "spec.workers.memory"),
        (&["--conf", "spark.master=local"], "spec.spark_conf"),
        (&["--network", "nobody"], "spec.version"),
    ] {
        let told = create(cloud, &[&["--version", VERSION], flags].concat()).exits(1);
        assert!(told.stderr.contains(field), "{field}: {told}");
    }
    let told = create(cloud, &["--version", "3.5.9", "--connect"]).exits(1);
    assert!(told.stderr.contains("spec.connect"), "{told}");
    create(cloud, &["--workers", "many"]).exits(2);
    cloud.import_spark(VERSION);
    let told = create(cloud, &["--network", "nobody"]).exits(1);
    assert!(told.stderr.contains("spec.network"), "{told}");
    let told = create(cloud, &["--version", "1.0.0"]).exits(1);
    assert!(told.stderr.contains(VERSION), "says what there is: {told}");
    // More than all hosts have: none of it is made, and why is said.
    create(cloud, &["--workers", "2", "--worker-memory", "900Gi"]).ok();
    let status =
        until(cloud, "has no room", |status| status["phase"] == "pending" && status["reason"] != Value::Null);
    assert!(status["message"].as_str().is_some_and(|message| message.contains("memory")), "{status}");
    assert_eq!(cloud.enoki(&["get", "instances", "-o", "name"]).ok().stdout, "");
    cloud.enoki(&["delete", "cluster", "lake"]).ok();
}

fn ready(lab: &Lab) {
    let cloud = &lab[0];
    // The hosts get the image first, so that what is waited for is the cluster.
    cloud.enoki(&["image", "pull", &format!("enoki/spark:{VERSION}")]).ok();
    eventually("both hosts have the image", WAIT, || {
        let image =
            cloud.enoki(&["get", "image", &format!("enoki/spark:{VERSION}"), "-o", "json"]).ok().json();
        let hosts = image["status"]["hosts"].as_array().map_or(0, Vec::len);
        if hosts == 2 { Ok(()) } else { Err(image["status"].to_string()) }
    });
    let begun = Instant::now();
    cloud.enoki_with(&["secret", "create", "lake", "--from-file", "conf=-"], SECRET_CONF, WAIT).ok();
    create(
        cloud,
        &[
            "--workers",
            "1..4",
            "--conf-secret",
            "lake/conf",
            "--worker-memory",
            "1Gi",
            "--idle",
            "8s",
            "--wait",
        ],
    )
    .ok();
    eprintln!("ready after {:.1?}", begun.elapsed());
    let status = cluster(cloud);
    assert_eq!((&status["phase"], &status["workers"]["ready"]), (&"ready".into(), &1.into()), "{status}");
    let names = cloud.enoki(&["get", "instances", "-l", "enoki.cluster=lake", "-o", "name"]).ok();
    assert_eq!(names.stdout, "instance/lake-master\ninstance/lake-worker-1\n");
    let owned = cloud.enoki(&["delete", "instance", "lake-worker-1"]).exits(1);
    assert!(owned.stderr.contains("cluster lake"), "{owned}");
}

fn apart(lab: &Lab) {
    let cloud = &lab[0];
    cloud.import_tiny();
    cloud.enoki(&["run", "probe", "--image", "enoki/tiny:1", "--wait", "--", "sleep", "infinity"]).ok();
    let master = cloud.enoki(&["get", "instance", "lake-master", "-o", "json"]).ok().json();
    let master = master["status"]["nics"]["eth0"]["address"].as_str().expect("an address").to_owned();
    let reaches =
        |from: &str, command: &[&str]| cloud.enoki(&[&["exec", from, "--"], command].concat()).code() == 0;
    let connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)";
    for (port, inside) in [("7077", true), ("8080", true), ("6066", false)] {
        assert_eq!(
            reaches("lake-worker-1", &["python3", "-c", connect, &master, port]),
            inside,
            "{port} from inside"
        );
        assert!(!reaches("probe", &["nc", "-z", "-w", "3", &master, port]), "{port} from another network");
    }
    // And over the API, by whoever may enter the instance: the master's page, and a worker's through it.
    let pages = "get json/ >/run/page; worker=$(jq -r '.workers[0].id' /run/page); \
                 get \"proxy/$worker/json/\" | jq -e '.cores == 1'";
    by(cloud, "ui", pages).ok();
    cloud.enoki(&["delete", "instance", "probe", "--force"]).ok();
}

/// Runs a script while `enoki cluster COMMAND lake` leads to `$way`.
fn by(cloud: &Cloud, command: &str, script: &str) -> Output {
    cloud.sh(&format!(
        "rm -f /run/way; enoki cluster {command} lake >/run/way & forward=$!; trap 'kill $forward' EXIT; \
         for i in $(seq 50); do [ -s /run/way ] && break; sleep 0.1; done; way=$(cat /run/way); \
         get() {{ curl -sS --fail --max-time 100 \"$way$1\"; }}; {script}"
    ))
}

fn elastic(lab: &Lab) {
    let cloud = &lab[0];
    cloud.write("/run/sleepers.py", SLEEPERS);
    let submitted =
        cloud.enoki(&["cluster", "submit", "lake", "/run/sleepers.py", "-o", "name", "--", "60"]).ok();
    let job = submitted.text().trim_start_matches("job/").to_owned();
    let mut desired = BTreeSet::new();
    let ended = eventually("the job has ended", WAIT, || {
        desired.insert(cluster(cloud)["workers"]["desired"].as_u64().expect("a number"));
        let job = cloud.enoki(&["get", "job", &job, "-o", "json"]).ok().json();
        if job["status"]["ended_at"].is_null() { Err(job["status"].to_string()) } else { Ok(job) }
    });
    assert_eq!(ended["status"]["phase"], "succeeded", "{ended}");
    assert_eq!(desired, BTreeSet::from([1, 3]), "in one step, to all but the one that is left for others");
    let logs = cloud.enoki(&["cluster", "job", "logs", "lake", &job]).ok();
    assert!(logs.stdout.contains("sum 1770\n"), "{logs}");
    // The driver goes, with all that it was granted; what it printed stays.
    let driver = format!("lake-{job}");
    eventually("the driver is gone", WAIT, || {
        let drivers = cloud.enoki(&["get", "instances", "-l", "enoki.role=driver", "-o", "name"]).ok();
        if drivers.stdout.contains(&driver) { Err(drivers.stdout) } else { Ok(()) }
    });
    let kept = cloud.enoki(&["cluster", "job", "logs", "lake", &job]).ok();
    assert_eq!(kept.stdout, logs.stdout);
    let last = cloud.enoki(&["cluster", "job", "logs", "lake", &job, "--tail", "1"]).ok();
    assert_eq!(Some(last.text()), kept.text().lines().last());
}

fn ends(lab: &Lab) {
    let cloud = &lab[0];
    let asked = submit(cloud, ASKS, &[]).ok();
    assert!(asked.stdout.contains("told 17\n"), "{asked}");
    let stored = cloud.sh(
        "set -a; . /etc/enoki/etcdctl.env; etcdctl get --prefix '' | grep -ac -- not-to-be-told-at || true",
    );
    assert_eq!(stored.ok().text(), "0", "a secret stands in the store in plain text");
    let thrown = submit(cloud, THROWS, &[]).exits(1);
    assert!(thrown.stdout.contains("ValueError: no such fish"), "{thrown}");
    cloud.write("/run/helper.py", "NAME = 'helper'\n");
    cloud.write("/run/words.txt", "two words\n");
    let flags =
        ["--py-files", "/run/helper.py", "--files", "/run/words.txt", "--retries", "1", "--", "a b", "-c"];
    let read = submit(cloud, READS, &flags).exits(7);
    assert_eq!(
        read.stdout.matches("helper ['two', 'words'] ['a b', '-c']").count(),
        2,
        "begun twice: {read}"
    );
    assert!(read.stderr.contains("exit code 7"), "{read}");
    cloud.enoki(&["cluster", "submit", "lake", "/run/nothing.py"]).exits(1);
    cloud.enoki(&["cluster", "submit", "pond", "/run/helper.py"]).exits(1);
}

fn killed(lab: &Lab) {
    let cloud = &lab[0];
    let submitted =
        cloud.enoki(&["cluster", "submit", "lake", "/run/sleepers.py", "-o", "name", "--", "500"]).ok();
    let job = submitted.text().trim_start_matches("job/").to_owned();
    let phase = |phase: &str| {
        eventually(phase, WAIT, || {
            let job = cloud.enoki(&["get", "job", &job, "-o", "json"]).ok().json();
            if job["status"]["phase"] == phase { Ok(()) } else { Err(job["status"].to_string()) }
        })
    };
    phase("running");
    until(cloud, "has all that one job gets", |status| status["workers"]["ready"] == 3);
    // Another one does not wait for its end.
    let beside = submit(cloud, SLEEPERS, &["--", "2"]).ok();
    assert!(beside.stdout.contains("sum 1\n"), "{beside}");
    phase("running");
    cloud.enoki(&["cluster", "job", "kill", "lake", &job]).ok();
    phase("killed");
    let jobs = cloud.enoki(&["cluster", "jobs", "lake", "-o", "json"]).ok().json();
    let mut ends: Vec<&str> = jobs["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|job| job["status"]["phase"].as_str())
        .collect();
    ends.sort_unstable();
    assert_eq!(ends, ["failed", "failed", "killed", "succeeded", "succeeded", "succeeded"]);
}

/// What the jobs of the steps before looked like: of those that succeeded, threw and were killed.
fn history(lab: &Lab) {
    let cloud = &lab[0];
    let jobs = cloud.enoki(&["cluster", "jobs", "lake", "-o", "json"]).ok().json();
    let ran: BTreeSet<&str> = jobs["items"]
        .as_array()
        .into_iter()
        .flatten()
        // The one with arguments and files began no application.
        .filter(|job| job["status"]["exit_code"] != 7)
        .filter_map(|job| job["name"].as_str())
        .collect();
    assert!(ran.len() >= 3, "{jobs}");
    let shown = eventually("all of them are shown as completed", WAIT, || {
        let shown = by(cloud, "history", "get api/v1/applications").ok().json();
        let completed: BTreeSet<&str> = shown
            .as_array()
            .into_iter()
            .flatten()
            .filter(|shown| shown["attempts"][0]["completed"] == true)
            .filter_map(|shown| shown["name"].as_str())
            .collect();
        if completed == ran { Ok(shown.clone()) } else { Err(shown.to_string()) }
    });
    // And what they did: the one that made the pool grow had 60 tasks.
    let ids: Vec<&str> =
        shown.as_array().into_iter().flatten().filter_map(|shown| shown["id"].as_str()).collect();
    let pages: String = ids.iter().map(|id| format!("get api/v1/applications/{id}/jobs; ")).collect();
    let pages = by(cloud, "history", &format!("({pages}) | jq -s -e 'add | any(.numCompletedTasks == 60)'"));
    assert_eq!(pages.ok().text(), "true");
}

fn connect(lab: &Lab) {
    let cloud = &lab[0];
    let told = cloud.enoki(&["cluster", "connect", "lake"]).exits(1);
    assert!(told.stderr.contains("spec.connect"), "{told}");
    let switch = |on: bool| {
        let patch = serde_json::json!({"spec": {"connect": on}});
        cloud.api("PATCH", "/v1/projects/default/clusters/lake", Some(&patch)).expect(200);
    };
    switch(true);
    let status = until(cloud, "it takes notebooks", |status| !status["connect"].is_null());
    let at = status["connect"].as_str().expect("an address");
    assert!(at.starts_with("sc://") && at.ends_with(":15002"), "{status}");
    assert_eq!(status["phase"], "ready", "{status}");
    cloud.write("/run/speaks.py", SPEAKS);
    assert_eq!(by(cloud, "connect", "python3 /run/speaks.py $way").ok().text(), "settings");
    let owned = cloud.enoki(&["delete", "instance", "lake-connect"]).exits(1);
    assert!(owned.stderr.contains("cluster lake"), "{owned}");
    switch(false);
    until(cloud, "it takes none any more", |status| status["connect"].is_null());
    eventually("its instance is gone", WAIT, || {
        let names = cloud.enoki(&["get", "instances", "-l", "enoki.role=connect", "-o", "name"]).ok();
        if names.stdout.is_empty() { Ok(()) } else { Err(names.stdout) }
    });
}

fn shrinks(lab: &Lab) {
    let cloud = &lab[0];
    until(cloud, "back at the least", |status| {
        let workers = &status["workers"];
        workers["ready"] == 1 && workers["draining"] == 0 && workers["desired"] == 1
    });
    eventually("one worker is left", WAIT, || {
        let names = cloud.enoki(&["get", "instances", "-l", "enoki.role=worker", "-o", "name"]).ok();
        if names.stdout.lines().count() == 1 { Ok(()) } else { Err(names.stdout) }
    });
    assert_eq!(cluster(cloud)["phase"], "ready");
}

fn gone(lab: &Lab) {
    let cloud = &lab[0];
    cloud.enoki(&["delete", "cluster", "lake", "--timeout", "90s"]).ok();
    for kind in ["clusters", "jobs", "instances", "volumes"] {
        assert_eq!(cloud.enoki(&["get", kind, "-o", "name"]).ok().stdout, "", "{kind}");
    }
    assert_eq!(cloud.enoki(&["get", "networks", "-o", "name"]).ok().stdout, "network/default\n");
}
