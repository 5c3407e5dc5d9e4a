//! What people run on a cluster of Spark: a long backlog, its own examples, jobs under which the pool shrinks and processes and hosts
//! die, clusters that are kept apart. It takes eight minutes, and is run with `ENOKI_FULL=1`.

use enoki_harness::{Cloud, Lab, Output, Signal, eventually, is_root, steps};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const VERSION: &str = "4.0.1";
/// The oldest that there is an image of.
const OLDER: &str = "3.5.9";
const WAIT: Duration = Duration::from_secs(180);
/// How long workers beyond the least have nothing to do before they leave.
const IDLE: Duration = Duration::from_secs(8);

/// So many tasks of a second each; says when it began and what it took.
const BACKLOG: &str = r#"
import sys, time
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
count = int(sys.argv[1])
def work(n):
    time.sleep(1)
    return n
began = time.time()
print("began", began, flush=True)
total = context.parallelize(range(count), count).map(work).sum()
print("sum", total, "took", time.time() - began, flush=True)
"#;
/// Caches, shuffles, waits until it is told to go on, and uses both again.
const PHASES: &str = r#"
import os, sys, time
from pyspark import StorageLevel
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
parts, folder = int(sys.argv[1]), sys.argv[2]
def slow(n):
    time.sleep(0.05)
    return (n % 10, n)
pairs = context.parallelize(range(parts * 10), parts).map(slow)
cached = pairs.map(lambda pair: pair[1] * 2).persist(StorageLevel.MEMORY_AND_DISK)
grouped = pairs.reduceByKey(lambda a, b: a + b, 20)
first = (cached.sum(), sorted(grouped.collect()))
open(folder + "/waiting", "w").close()
while not os.path.exists(folder + "/go"):
    time.sleep(0.2)
second = (cached.sum(), sorted(grouped.collect()))
print("same", first == second, first[0], flush=True)
"#;
/// A shuffle of slow tasks.
const SHUFFLE: &str = r#"
import sys, time
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
def slow(n):
    time.sleep(1)
    return (n % 10, n)
count = int(sys.argv[1])
pairs = context.parallelize(range(count), count).map(slow)
print("groups", sorted(pairs.reduceByKey(lambda a, b: a + b, 10).collect()), flush=True)
"#;
/// Stays when it runs for the first time.
const RETURNS: &str = r#"
import os, time
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
if not os.path.exists("/data/been"):
    open("/data/been", "w").close()
    time.sleep(1000)
print("sum", context.parallelize(range(4), 4).sum(), flush=True)
"#;
/// Reads what a package brought.
const PACKAGED: &str = r#"
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
loader = context._jvm.Thread.currentThread().getContextClassLoader()
print("read", bytes(loader.getResourceAsStream("fish.txt").readAllBytes()).decode(), flush=True)
jars = context._jsc.sc().listJars().toString()
print("handed on", "org.example_fish-1.0.jar" in jars, flush=True)
"#;
/// A repository as Maven's, with one package.
const REPOSITORY: &str = r#"
import os, zipfile
folder = "/data/maven/org/example/fish/1.0/"
os.makedirs(folder)
with zipfile.ZipFile(folder + "fish-1.0.jar", "w") as jar:
    jar.writestr("fish.txt", "pike")
with open(folder + "fish-1.0.pom", "w") as pom:
    pom.write("<project><modelVersion>4.0.0</modelVersion><groupId>org.example</groupId><artifactId>fish</artifactId><version>1.0</version></project>")
"#;

/// Of a backlog: as many seconds for the one worker that there is.
const TASKS: u32 = 200;

struct World {
    lab: Lab,
    /// The same on all machines of the lab, as a folder of a file server is.
    shared: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.shared);
    }
}

#[test]
fn what_people_run_on_it() {
    if !is_root() {
        return;
    }
    if std::env::var_os("ENOKI_FULL").is_none() {
        eprintln!(
            "SKIPPED what people run on a cluster of Spark, which takes eight minutes: set ENOKI_FULL=1"
        );
        return;
    }
    let shared = PathBuf::from(format!("/srv/spark-{}", std::process::id()));
    fs::create_dir_all(&shared).expect("a folder");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("for everybody");
    let world = World { lab: Lab::start(2), shared };
    let cloud = world.cloud();
    cloud.import_spark(VERSION);
    let path = world.shared.display().to_string();
    cloud.enoki(&["volume", "create", "data", "--type", "shared", "--path", &path]).ok();
    let flags = [
        "--workers",
        "1..6",
        "--worker-memory",
        "1Gi",
        "--idle",
        "8s",
        "--volume",
        "data:/data",
        "--conf",
        "spark.cores.max=6",
        "--wait",
    ];
    // Its master is on the host that stays.
    cloud.enoki(&["host", "cordon", "h2"]).ok();
    cloud.enoki_with(&[&["cluster", "create", "lake"], &flags[..]].concat(), "", WAIT).ok();
    cloud.enoki(&["host", "uncordon", "h2"]).ok();
    steps(
        &world,
        &[
            ("a backlog makes the pool grow at once", backlog),
            ("examples", examples),
            ("packages", packages),
            ("clusters are apart", apart),
            ("the host of a master is lost, and of a driver of another cluster", host_lost),
            ("the pool shrinks under a job that needs its results", shrinks),
            ("a worker and the master die in the middle of a job", they_die),
            ("an older version beside it", older),
        ],
    );
}

impl World {
    fn cloud(&self) -> &Cloud {
        &self.lab[0]
    }

    fn submit(&self, program: &str, flags: &[&str]) -> String {
        self.submit_to("lake", program, flags)
    }

    fn submit_to(&self, cluster: &str, program: &str, flags: &[&str]) -> String {
        self.cloud().write("/run/program.py", program);
        let words = [&["cluster", "submit", cluster, "/run/program.py", "-o", "name"], flags].concat();
        self.cloud().enoki(&words).ok().text().trim_start_matches("job/").to_owned()
    }

    fn ended(&self, job: &str) -> Output {
        let ended = eventually("the job has ended", WAIT, || {
            let job = self.cloud().enoki(&["get", "job", job, "-o", "json"]).ok().json();
            if job["status"]["ended_at"].is_null() { Err(job["status"].to_string()) } else { Ok(job) }
        });
        let logs = self.cloud().enoki(&["cluster", "job", "logs", "lake", job]).ok();
        assert_eq!(ended["status"]["phase"], "succeeded", "{ended}\n{logs}");
        logs
    }

    fn running(&self, cluster: &str, job: &str, printed: &str) {
        eventually(printed, WAIT, || {
            let logs = self.cloud().enoki(&["cluster", "job", "logs", cluster, job]);
            if logs.stdout.contains(printed) { Ok(()) } else { Err(logs.to_string()) }
        });
    }

    fn workers(&self, what: &str, reached: impl Fn(&Value) -> bool) -> Value {
        eventually(what, WAIT, || {
            let status =
                self.cloud().enoki(&["get", "cluster", "lake", "-o", "json"]).ok().json()["status"].clone();
            if reached(&status["workers"]) { Ok(status) } else { Err(status.to_string()) }
        })
    }

    /// The instances of all workers.
    fn made(&self) -> Vec<Value> {
        let list = self.cloud().enoki(&[
            "get",
            "instances",
            "-l",
            "enoki.role=worker,enoki.cluster=lake",
            "-o",
            "json",
        ]);
        list.ok().json()["items"].as_array().cloned().unwrap_or_default()
    }

    fn back_at_the_least(&self) -> Value {
        self.workers("back at the least", |workers| workers["ready"] == 1 && workers["draining"] == 0)
    }
}

/// What follows a word in what was printed.
fn after<'a>(logs: &'a Output, word: &str) -> &'a str {
    logs.stdout.split_once(word).unwrap_or_else(|| panic!("no `{word}`: {logs}")).1
}

fn number(text: &str) -> f64 {
    let word = text.split_whitespace().next().map(|word| word.trim_end_matches('.'));
    word.and_then(|word| word.parse().ok()).expect("a number")
}

fn backlog(world: &World) {
    let job = world.submit(BACKLOG, &["--", &TASKS.to_string()]);
    let mut sizes = BTreeSet::new();
    let made = eventually("all workers", WAIT, || {
        let items = world.made();
        sizes.insert(items.len());
        if items.len() == 6 { Ok(items) } else { Err(items.len().to_string()) }
    });
    let logs = world.ended(&job);
    assert!(logs.stdout.contains("sum 19900 "), "{logs}");
    let began = number(after(&logs, "began "));
    let late = made.iter().map(|worker| {
        let at: jiff::Timestamp =
            worker["created_at"].as_str().and_then(|at| at.parse().ok()).expect("a time");
        at.as_duration().as_secs_f64() - began
    });
    let late = late.fold(f64::MIN, f64::max);
    let took = number(after(&logs, "took "));
    eprintln!(
        "decided {late:.2} s after the need; 200 tasks of a second took {took:.1} s; sizes seen {sizes:?}"
    );
    assert!(late < 2.0, "decided {late} s after the need");
    assert!(took < f64::from(TASKS) / 2.0, "{took} s; one worker takes {TASKS}");
    let ended = Instant::now();
    world.back_at_the_least();
    let back = ended.elapsed();
    eprintln!("back at one worker {back:.1?} after the job");
    assert!(back < IDLE + Duration::from_secs(15), "{back:?}");
}

fn shrinks(world: &World) {
    let events = world.shared.join("events");
    fs::create_dir_all(&events).expect("a folder");
    fs::set_permissions(&events, fs::Permissions::from_mode(0o1777)).expect("for everybody");
    let flags = [
        "spark.eventLog.enabled=true",
        "spark.eventLog.dir=/data/events",
        "spark.eventLog.compress=false",
        "spark.eventLog.rolling.enabled=false",
    ];
    let flags: Vec<&str> = flags.iter().flat_map(|conf| ["--conf", conf]).collect();
    let job = world.submit(PHASES, &[&flags[..], &["--", "100", "/data"]].concat());
    eventually("the first half is done", WAIT, || {
        if world.shared.join("waiting").exists() { Ok(()) } else { Err("it is not".to_owned()) }
    });
    let before = world.workers("workers that keep something", |workers| workers["ready"].as_u64() > Some(1));
    let began = Instant::now();
    world.back_at_the_least();
    eprintln!(
        "from {} workers to one, with what they kept, after {:.1?}",
        before["workers"]["ready"],
        began.elapsed()
    );
    fs::write(world.shared.join("go"), "").expect("a file");
    let logs = world.ended(&job);
    assert!(logs.stdout.contains("same True 999000"), "{logs}");
    let log = fs::read_dir(&events).expect("a folder").flatten().next().expect("an event log").path();
    let (all, again) = attempts(&fs::read_to_string(log).expect("text"));
    eprintln!("{all} tasks, {again} of them again");
    assert!(all >= 200 && again * 20 <= all, "{again} of {all} tasks again");
}

/// The tasks that ended, by an event log, and those that were not the first attempt.
fn attempts(log: &str) -> (usize, usize) {
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ends: Vec<Value> = events.filter(|event| event["Event"] == "SparkListenerTaskEnd").collect();
    let again =
        ends.iter().filter(|end| end["Stage Attempt ID"] != 0 || end["Task Info"]["Attempt"] != 0).count();
    (ends.len(), again)
}

/// What [`SHUFFLE`] prints.
fn groups(count: u64) -> String {
    let mut sums = BTreeMap::new();
    (0..count).for_each(|n| *sums.entry(n % 10).or_insert(0) += n);
    let pairs: Vec<String> = sums.iter().map(|(key, sum)| format!("({key}, {sum})")).collect();
    format!("groups [{}]", pairs.join(", "))
}

/// Kills an instance from outside, as the kernel might.
fn kill(cloud: &Cloud, name: &str) {
    let pid = cloud.enoki(&["get", "instance", name, "-o", "json"]).ok().json()["status"]["pid"].clone();
    cloud.sh(&format!("kill -9 {pid}")).ok();
}

/// Both have what the rest of the job needs when they die: results of tasks, and the knowledge of who is there.
fn they_die(world: &World) {
    let job = world.submit(SHUFFLE, &["--", "120"]);
    world.workers("all workers", |workers| workers["ready"] == 6);
    std::thread::sleep(Duration::from_secs(3));
    let worker = world.made().pop().expect("a worker");
    kill(world.cloud(), worker["name"].as_str().expect("a name"));
    std::thread::sleep(Duration::from_secs(3));
    kill(world.cloud(), "lake-master");
    let status = world.workers("one less, or the master is missed", |workers| workers["ready"] != 6);
    eprintln!("after the kills: {status}");
    world.workers("all workers again", |workers| workers["ready"] == 6);
    let logs = world.ended(&job);
    assert!(logs.stdout.contains(&groups(120)), "{logs}");
    assert_eq!(world.back_at_the_least()["phase"], "ready");
}

fn examples(world: &World) {
    let cloud = world.cloud();
    let file = |name: &str, text: &str| fs::write(world.shared.join(name), text).expect("a file");
    file("words.txt", "to be or not to be\nthat is the question\n");
    file("numbers.txt", "5 3 11\n7 2\n");
    // Everybody links to 1, and 1 to 2.
    file("links.txt", "1 2\n2 1\n3 1\n4 1\n");
    let began = Instant::now();
    let jobs = [
        ("pi", &["4"][..]),
        ("wordcount", &["/data/words.txt"]),
        ("sort", &["/data/numbers.txt"]),
        ("pagerank", &["/data/links.txt", "10"]),
        ("als", &["20", "20", "3", "3", "2"]),
    ]
    .map(|(name, args)| {
        let program =
            cloud.enoki(&["exec", "lake-master", "--", "cat", &format!("/opt/spark/examples/{name}.py")]);
        world.submit(&program.ok().stdout, &[&["--conf", "spark.cores.max=2", "--"], args].concat())
    });
    let [pi, words, sorted, ranks, als] = jobs.map(|job| world.ended(&job));
    eprintln!("five examples at once: {:.1?}", began.elapsed());
    let value = number(after(&pi, "Pi is roughly "));
    assert!((3.1..3.2).contains(&value), "{pi}");

    for line in ["to: 2", "be: 2", "or: 1", "question: 1"] {
        assert!(words.stdout.lines().any(|told| told == line), "{line}: {words}");
    }

    let told: Vec<&str> = sorted.stdout.lines().filter(|line| line.parse::<u64>().is_ok()).collect();
    assert_eq!(told, ["2", "3", "5", "7", "11"], "{sorted}");

    // The example forgets whom nobody links to, so 1 and 2 are left to rank each other.
    let (mut one, mut two) = (0.15 + 0.85 * 3.0, 1.0);
    for _ in 1..10 {
        (one, two) = (0.15 + 0.85 * two, 0.15 + 0.85 * one);
    }
    for (page, expected) in [("1", one), ("2", two)] {
        let told = number(after(&ranks, &format!("\n{page} has rank: ")));
        assert!((told - expected).abs() < 1e-9, "{page}: {told} {expected}: {ranks}");
    }

    let last = number(als.stdout.rsplit_once("RMSE: ").unwrap_or_else(|| panic!("{als}")).1);
    assert!(last < 0.5, "{als}");
}

/// From a repository of one's own, where there is no way out to Maven's.
fn packages(world: &World) {
    let cloud = world.cloud();
    let image = format!("enoki/spark:{VERSION}");
    let flags = ["--network", "lake", "--volume", "data:/data", "--wait", "--"];
    let serves = ["python3", "-m", "http.server", "--directory", "/data/maven", "8000"];
    cloud
        .enoki_with(&[&["run", "repository", "--image", &image], &flags[..], &serves].concat(), "", WAIT)
        .ok();
    cloud.enoki(&["exec", "repository", "--", "python3", "-c", REPOSITORY]).ok();
    let repository = cloud.enoki(&["get", "instance", "repository", "-o", "json"]).ok().json();
    let address = repository["status"]["nics"]["eth0"]["address"].as_str().expect("an address").to_owned();
    cloud.write(
        "/run/ivysettings.xml",
        &format!(
            "<ivysettings><settings defaultResolver='own'/><resolvers><ibiblio name='own' m2compatible='true' \
             root='http://{address}:8000/'/></resolvers></ivysettings>"
        ),
    );
    let flags = [
        "--packages",
        "org.example:fish:1.0",
        "--files",
        "/run/ivysettings.xml",
        "--conf",
        "spark.jars.ivySettings=/job/ivysettings.xml",
    ];
    let logs = world.ended(&world.submit(PACKAGED, &flags));
    assert!(logs.stdout.contains("read pike\n") && logs.stdout.contains("handed on True\n"), "{logs}");
    cloud.enoki(&["delete", "instance", "repository", "--force"]).ok();
}

fn apart(world: &World) {
    let cloud = world.cloud();
    let flags = ["--workers", "1", "--worker-memory", "1Gi", "--wait"];
    cloud.enoki_with(&[&["cluster", "create", "pond"], &flags[..]].concat(), "", WAIT).ok();
    let job = world.submit(BACKLOG, &["--", "60"]);
    world.running("lake", &job, "began");
    let address = |name: &str| {
        let instance = cloud.enoki(&["get", "instance", name, "-o", "json"]).ok().json();
        instance["status"]["nics"]["eth0"]["address"].as_str().expect("an address").to_owned()
    };
    let connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)";
    let reaches = |from: &str, to: &str, port: &str| {
        cloud.enoki(&["exec", from, "--", "python3", "-c", connect, to, port]).code() == 0
    };
    let near_lake = world.made()[0]["name"].as_str().expect("a name").to_owned();
    let near_lake = near_lake.as_str();
    let (lake, pond, driver) =
        (address("lake-master"), address("pond-master"), address(&format!("lake-{job}")));
    for (to, port, near, far) in [
        (&lake, "7077", near_lake, "pond-worker-1"),
        (&lake, "8080", near_lake, "pond-worker-1"),
        (&driver, "4040", near_lake, "pond-worker-1"),
        (&pond, "7077", "pond-worker-1", near_lake),
        (&pond, "8080", "pond-worker-1", near_lake),
    ] {
        assert!(reaches(near, to, port), "{near} reaches {to}:{port}");
        assert!(!reaches(far, to, port), "{far} does not reach {to}:{port}");
    }
    for (from, to) in [(near_lake, &lake), (near_lake, &driver), ("pond-worker-1", &pond)] {
        assert!(!reaches(from, to, "6066"), "6066 answers nowhere");
    }
    world.ended(&job);
    cloud.enoki(&["delete", "cluster", "pond", "--timeout", "90s"]).ok();
}

/// The master and its worker on one host, the driver on another; and a driver there whose master is elsewhere.
fn host_lost(world: &World) {
    let cloud = world.cloud();
    cloud.enoki(&["host", "cordon", "h1"]).ok();
    let flags = ["--workers", "1", "--worker-memory", "1Gi", "--wait"];
    cloud.enoki_with(&[&["cluster", "create", "far"], &flags[..]].concat(), "", WAIT).ok();
    let returns = world.submit(RETURNS, &["--retries", "1"]);
    eventually("it runs", WAIT, || {
        if world.shared.join("been").exists() { Ok(()) } else { Err("it does not".to_owned()) }
    });
    cloud.enoki(&["host", "uncordon", "h1"]).ok();
    cloud.enoki(&["host", "cordon", "h2"]).ok();
    let job = world.submit_to("far", BACKLOG, &["--", "1000"]);
    world.running("far", &job, "began");
    let supervisor = world.lab[1].kill("supervisor", Signal::SIGSTOP);
    world.lab[1].kill("agent", Signal::SIGKILL);
    let failed = eventually("the job has failed", WAIT, || {
        let job = cloud.enoki(&["get", "job", &job, "-o", "json"]).ok().json();
        if job["status"]["phase"] == "failed" { Ok(job["status"].clone()) } else { Err(job.to_string()) }
    });
    assert_eq!(failed["reason"], "master_lost", "{failed}");
    eventually("its driver is gone, and its log is kept", WAIT, || {
        let driver = cloud.enoki(&["get", "instance", &format!("far-{job}")]);
        if driver.code() == 1 { Ok(()) } else { Err(driver.to_string()) }
    });
    let logs = cloud.enoki(&["cluster", "job", "logs", "far", &job]).ok();
    assert!(logs.stdout.contains("began"), "{logs}");
    let logs = world.ended(&returns);
    assert!(logs.stdout.contains("sum 6\n"), "{logs}");
    let again = cloud.enoki(&["get", "job", &returns, "-o", "json"]).ok().json()["status"].clone();
    assert_eq!(again["attempts"], 2, "{again}");
    nix::sys::signal::kill(Pid::from_raw(supervisor), Signal::SIGCONT).expect("the supervisor is there");
    world.lab.ready(2);
    cloud.enoki(&["host", "uncordon", "h2"]).ok();
    eventually("the cluster is itself again", WAIT, || {
        let far = cloud.enoki(&["get", "cluster", "far", "-o", "json"]).ok().json();
        if far["status"]["phase"] == "ready" { Ok(()) } else { Err(far.to_string()) }
    });
    cloud.enoki(&["delete", "cluster", "far", "--timeout", "90s"]).ok();
}

/// What it says of itself, what the pool is told by it, and what it keeps of jobs, is not as in the newer one.
fn older(world: &World) {
    let cloud = world.cloud();
    cloud.import_spark(OLDER);
    let flags = ["--version", OLDER, "--workers", "1..3", "--worker-memory", "1Gi", "--wait"];
    cloud.enoki_with(&[&["cluster", "create", "old"], &flags[..]].concat(), "", WAIT).ok();
    let job = world.submit_to("old", BACKLOG, &["--", "30"]);
    let mut sizes = BTreeSet::new();
    eventually("the job has ended well", WAIT, || {
        let old = cloud.enoki(&["get", "cluster", "old", "-o", "json"]).ok().json();
        sizes.insert(old["status"]["workers"]["desired"].as_u64());
        let job = cloud.enoki(&["get", "job", &job, "-o", "json"]).ok().json();
        if job["status"]["phase"] == "succeeded" { Ok(()) } else { Err(job.to_string()) }
    });
    assert_eq!(sizes, BTreeSet::from([Some(1), Some(2)]), "all but the one that is left for others");
    let logs = cloud.enoki(&["cluster", "job", "logs", "old", &job]).ok();
    assert!(logs.stdout.contains("sum 435 "), "{logs}");
    cloud.enoki(&["delete", "cluster", "old", "--timeout", "90s"]).ok();
}
