//! What dies around instances and what must live: every part killed, away or hanging, with real etcd and Docker.
//!
//! A cloud goes through it, a fault after the other, with two instances that never restart: one counts into a
//! file, the other prints about a megabyte a second, which would block it if anybody but its own init owned its output.

#[path = "support/machines.rs"]
mod machines;
#[path = "support/programs.rs"]
mod programs;

use std::time::{Duration, Instant};

use enoki_harness::{Cloud, Signal, eventually, is_root, steps};
use machines::{COUNTER, Running, SOON, instance, phase, well};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::json;

/// Long enough for every deadline of the agent to pass.
const HANGING: Duration = Duration::from_secs(20);
/// Docker may be away for longer: a chatty process fills any pipe many times.
const AWAY: Duration = Duration::from_secs(60);
/// Kills are this far apart within a create or a delete: they reach every step of the second that each takes.
const STEP: Duration = Duration::from_millis(40);

const CHATTY: &str = "n=0; line=$(head -c 1000 /dev/zero | tr '\\0' x); while :; do i=0; \
    while [ $i -lt 100 ]; do echo $line; i=$((i+1)); done; n=$((n+1)); echo $n >/count.new; mv /count.new /count; \
    sleep 0.1; done";

/// A cloud with the two that never restart.
fn peopled() -> Cloud {
    let cloud = Cloud::start();
    cloud.import_tiny();
    Running::start(&cloud, "counter", &["--cpus", "0.1"], COUNTER);
    Running::start(&cloud, "chatty", &["--cpus", "0.3"], CHATTY);
    cloud
}

#[test]
fn parts_away() {
    if !is_root() {
        return;
    }
    let cloud = peopled();
    programs::start(&cloud);
    steps(
        &cloud,
        &[
            ("each part killed", each_killed),
            ("dockerd away", dockerd_away),
            ("dockerd hangs", dockerd_hangs),
            ("containerd away", containerd_away),
            ("etcd away", etcd_away),
            ("no wrapper", no_wrapper),
            ("an object that does not decode", undecodable),
        ],
    );
}

#[test]
fn work_interrupted() {
    if !is_root() {
        return;
    }
    let cloud = peopled();
    steps(
        &cloud,
        &[
            ("the agent killed in mid-work", agent_killed_at_work),
            ("the server killed in mid-create", server_killed_in_create),
            ("nothing was restarted", nothing_restarted),
            ("the first process killed", first_process_killed),
            ("the shim killed", shim_killed),
            ("everything killed", everything_killed),
        ],
    );
}

fn both(cloud: &Cloud) -> [Running; 2] {
    [Running::of(cloud, "counter"), Running::of(cloud, "chatty")]
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap_or_else(|e| panic!("{signal} to {pid}: {e}"));
}

/// The part is down and nobody brings it back until the returned guard goes.
fn held_down(cloud: &Cloud, part: &str) -> Held {
    let supervisor = cloud.kill("supervisor", Signal::SIGSTOP);
    cloud.kill(part, Signal::SIGKILL);
    Held(supervisor)
}

/// A stopped process; it goes on when this is dropped, however the test ends.
struct Held(i32);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGCONT);
    }
}

/// For `time`, looks again and again that it counts.
#[track_caller]
fn counts_throughout(machines: &[&Running], time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        machines.iter().for_each(|machine| machine.goes_on());
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn each_killed(cloud: &Cloud) {
    let before = both(cloud);
    for part in ["agent", "server", "etcd", "dockerd", "containerd"] {
        let old = cloud.kill(part, Signal::SIGKILL);
        before.iter().for_each(Running::goes_on);
        eventually(&format!("{part} is back"), SOON, || match cloud.find(part) {
            Some(new) if new != old => Ok(()),
            other => Err(format!("{other:?}")),
        });
        eventually("answers", SOON, || {
            let out = cloud.enoki(&["get", "instances"]);
            if out.code() == 0 { Ok(()) } else { Err(out.to_string()) }
        });
        well(cloud, "counter");
        well(cloud, "chatty");
        before.iter().for_each(|machine| machine.unchanged(cloud));
    }
}

fn dockerd_away(cloud: &Cloud) {
    let before = both(cloud);
    let given = programs::given(cloud);
    let held = held_down(cloud, "dockerd");
    programs::work(cloud, &given);
    counts_throughout(&[&before[0], &before[1]], AWAY);
    let hosts = cloud.api("GET", "/v1/hosts", None).expect(200).json;
    assert_eq!(hosts["items"][0]["status"]["phase"], "degraded", "{hosts}");
    assert_eq!(hosts["items"][0]["status"]["reason"], "docker_down", "{hosts}");
    drop(held);
    well(cloud, "counter");
    before.iter().for_each(|machine| machine.unchanged(cloud));
}

fn degraded(cloud: &Cloud, reason: &str) {
    eventually("degraded", SOON, || {
        let seen = cloud.api("GET", "/v1/hosts", None);
        let status = &seen.json["items"][0]["status"];
        if status["phase"] == "degraded" && status["reason"] == reason { Ok(()) } else { Err(seen.body) }
    });
}

fn dockerd_hangs(cloud: &Cloud) {
    let before = both(cloud);
    let held = Held(cloud.kill("dockerd", Signal::SIGSTOP));
    degraded(cloud, "docker_hanging");
    cloud.enoki(&["exec", "counter", "--", "sh", "-c", "exit 7"]).exits(7);
    cloud.kill("agent", Signal::SIGKILL);
    eventually("a new agent knows by its ledger what runs", SOON, || {
        let out = cloud.enoki(&["exec", "counter", "--", "sh", "-c", "exit 7"]);
        if out.code() == 7 { Ok(()) } else { Err(out.to_string()) }
    });
    let asked = Instant::now();
    cloud.enoki(&["get", "instances"]).ok();
    cloud.enoki(&["run", "waiting", "--image", "enoki/tiny:1", "--wait", "--timeout", "5s"]).exits(3);
    assert!(asked.elapsed() < Duration::from_secs(20), "stuck for {:?}", asked.elapsed());
    let agent = cloud.pid("agent");
    let open = || std::fs::read_dir(format!("/proc/{agent}/fd")).map_or(0, Iterator::count);
    let first = open();
    counts_throughout(&[&before[0], &before[1]], HANGING);
    let last = open();
    assert!(last <= first + 8, "requests pile up: {first} open files, then {last}");
    drop(held);
    phase(cloud, "waiting", "running");
    well(cloud, "counter");
    cloud.enoki(&["delete", "instance", "waiting"]).ok();
    before.iter().for_each(|machine| machine.unchanged(cloud));
}

fn containerd_away(cloud: &Cloud) {
    let before = both(cloud);
    let held = held_down(cloud, "containerd");
    degraded(cloud, "containerd_down");
    cloud.enoki(&["exec", "counter", "--", "sh", "-c", "exit 7"]).exits(7);
    drop(held);
    well(cloud, "counter");
    before.iter().for_each(|machine| machine.unchanged(cloud));
}

fn etcd_away(cloud: &Cloud) {
    let before = both(cloud);
    let held = held_down(cloud, "etcd");
    let body = json!({"kind": "instance", "name": "late", "spec": {"image": "enoki/tiny:1"}});
    let refused = eventually("a refusal", SOON, || {
        let answer = cloud.api("POST", "/v1/projects/default/instances", Some(&body));
        if answer.status == 503 { Ok(answer) } else { Err(answer.body) }
    });
    assert_eq!(refused.problem(), "store_unavailable", "{}", refused.body);
    assert!(refused.header("retry-after").parse::<u64>().is_ok(), "{:?}", refused.headers);
    eventually("reads flagged stale", SOON, || {
        let read = cloud.api("GET", "/v1/projects/default/instances/counter", None).expect(200);
        if read.header("enoki-stale").parse::<f64>().is_ok() {
            Ok(())
        } else {
            Err(format!("{:?}", read.headers))
        }
    });
    counts_throughout(&[&before[0], &before[1]], Duration::from_secs(5));
    drop(held);
    eventually("writes again", SOON, || {
        let answer = cloud.api("POST", "/v1/projects/default/instances", Some(&body));
        if matches!(answer.status, 201 | 409) { Ok(()) } else { Err(answer.body) }
    });
    phase(cloud, "late", "running");
    let read = cloud.api("GET", "/v1/projects/default/instances/counter", None).expect(200);
    assert_eq!(read.header("enoki-stale"), "", "{:?}", read.headers);
    cloud.enoki(&["delete", "instance", "late"]).ok();
    before.iter().for_each(|machine| machine.unchanged(cloud));
}

fn no_wrapper(cloud: &Cloud) {
    let before = both(cloud);
    let given = programs::given(cloud);
    let wrapped = Running::start(cloud, "wrapped", &[], COUNTER);
    cloud.sh("mv /usr/local/lib/enoki/runtime /usr/local/lib/enoki/runtime.away").ok();
    cloud.enoki(&["stop", "wrapped", "--timeout", "5s"]).exits(3);
    let seen = instance(cloud, "wrapped");
    let told = seen["status"]["message"].as_str().unwrap_or_default();
    assert!(told.contains("/usr/local/lib/enoki/runtime") && told.contains("make install"), "{seen}");
    wrapped.goes_on();
    cloud.sh("mv /usr/local/lib/enoki/runtime.away /usr/local/lib/enoki/runtime").ok();
    let seen = phase(cloud, "wrapped", "stopped");
    assert_eq!(seen["status"]["exit_code"], 143, "killed without a word: {seen}");
    cloud.sh("mv /usr/local/lib/enoki/runtime /usr/local/lib/enoki/runtime.away").ok();
    cloud.enoki(&["start", "wrapped", "--timeout", "10s"]);
    let seen = eventually("the reason", SOON, || {
        let seen = instance(cloud, "wrapped");
        if seen["status"]["message"].is_string() { Ok(seen) } else { Err(seen.to_string()) }
    });
    assert_ne!(seen["status"]["phase"], "running", "{seen}");
    let told = cloud.enoki(&["describe", "instance", "wrapped"]).ok().stdout;
    assert!(told.contains("runtime"), "no word of the wrapper: {told}");
    let mode = cloud.docker(&["inspect", "-f", "{{.HostConfig.NetworkMode}}", "enoki.default.wrapped"]).ok();
    assert_eq!(mode.text(), "none");
    let by_docker = cloud.docker(&["exec", "enoki.default.counter", "true"]);
    assert_ne!(by_docker.code(), 0, "Docker itself needs the wrapper: {by_docker}");
    programs::work(cloud, &given);
    before.iter().for_each(|machine| machine.unchanged(cloud));
    cloud.sh("mv /usr/local/lib/enoki/runtime.away /usr/local/lib/enoki/runtime").ok();
    phase(cloud, "wrapped", "running");
    cloud.enoki(&["delete", "instance", "wrapped"]).ok();
}

/// A stored value that this version cannot read is told, and nobody acts on it: its instance goes on.
fn undecodable(cloud: &Cloud) {
    let before = both(cloud);
    let etcdctl = |what: &str| cloud.sh(&format!("set -a; . /etc/enoki/etcdctl.env; etcdctl {what}")).ok();
    let key = "/enoki/v1/instances/default/counter";
    etcdctl(&format!("get --print-value-only {key} >/run/enoki/kept.json"));
    etcdctl(&format!("put {key} '{{\"spec\": 7}}'"));
    let listed = eventually("it is told", SOON, || {
        let out = cloud.enoki(&["get", "instances"]);
        if out.stderr.contains("warning: instance/counter") { Ok(out.stdout) } else { Err(out.to_string()) }
    });
    assert!(listed.contains("chatty") && !listed.contains("counter"), "{listed}");
    let address = "/v1/projects/default/instances/counter";
    for (method, path, body) in [
        ("GET", address, None),
        ("DELETE", address, None),
        (
            "POST",
            "/v1/projects/default/instances",
            Some(json!({"name": "counter", "spec": {"image": "enoki/tiny:1"}})),
        ),
    ] {
        let answer = cloud.api(method, path, body.as_ref());
        assert_eq!((answer.status, &answer.json["code"]), (409, &json!("undecodable")), "{}", answer.body);
    }
    // Neither a sweep nor a new agent takes what is not named for what is to go.
    counts_throughout(&[&before[0]], Duration::from_secs(6));
    cloud.kill("agent", Signal::SIGKILL);
    counts_throughout(&[&before[0]], Duration::from_secs(6));
    etcdctl(&format!("put {key} -- </run/enoki/kept.json"));
    cloud.sh("rm /run/enoki/kept.json").ok();
    before.iter().for_each(|machine| machine.unchanged(cloud));
    well(cloud, "counter");
}

/// What there is of instances on the host, in a fixed order.
fn belongings(cloud: &Cloud) -> String {
    cloud
        .sh("docker ps -a --no-trunc --format '{{.Names}}' --filter label=enoki.uid | sort; \
             cd /var/lib/enoki; ls containers disks ledger; ls /run/enoki/netns; grep -c ' /var/lib/enoki/disks/' /proc/self/mounts || true")
        .ok()
        .stdout
}

fn agent_killed_at_work(cloud: &Cloud) {
    let before = both(cloud);
    let clean = belongings(cloud);
    let names: Vec<String> = (0..25).map(|i| format!("churn{i}")).collect();
    let kill_after = |pause: Duration| {
        std::thread::sleep(pause);
        if let Some(agent) = cloud.find("agent") {
            signal(agent, Signal::SIGKILL);
        }
    };
    for (name, i) in names.iter().zip(0..) {
        cloud.enoki(&["run", name, "--image", "enoki/tiny:1", "--memory", "16Mi", "--cpus", "0.02"]).ok();
        kill_after(STEP * i);
    }
    names.iter().for_each(|name| drop(phase(cloud, name, "running")));
    let seen = cloud.docker(&["ps", "-q", "--filter", "name=enoki.default.churn"]).ok();
    assert_eq!(seen.stdout.lines().count(), names.len(), "{seen}");
    for (name, i) in names.iter().zip(0..) {
        cloud.enoki(&["delete", "instance", name, "--no-wait"]).ok();
        kill_after(STEP * i);
    }
    for name in &names {
        eventually(&format!("{name} is gone"), SOON, || {
            let seen = cloud.api("GET", &format!("/v1/projects/default/instances/{name}"), None);
            if seen.status == 404 { Ok(()) } else { Err(seen.body) }
        });
    }
    eventually("nothing is left", SOON, || {
        let now = belongings(cloud);
        if now == clean { Ok(()) } else { Err(format!("before:\n{clean}\nnow:\n{now}")) }
    });
    before.iter().for_each(|machine| machine.unchanged(cloud));
}

fn server_killed_in_create(cloud: &Cloud) {
    let clean = belongings(cloud);
    for (i, name) in ["cut0", "cut1", "cut2"].into_iter().enumerate() {
        let mut create =
            cloud.command("enoki").args(["run", name, "--image", "enoki/tiny:1"]).spawn().expect("run");
        std::thread::sleep(Duration::from_millis(30 * i as u64));
        cloud.kill("server", Signal::SIGKILL);
        let _ = create.wait();
        // Either it was not taken and can be made now, or it was and is not made twice.
        eventually("an answer", SOON, || {
            let out = cloud.enoki(&["run", name, "--image", "enoki/tiny:1"]);
            if out.code() == 0 || out.stderr.contains("already") { Ok(()) } else { Err(out.to_string()) }
        });
        phase(cloud, name, "running");
        let seen = cloud.docker(&["ps", "-aq", "--filter", &format!("name=enoki.default.{name}")]).ok();
        assert_eq!(seen.stdout.lines().count(), 1, "{seen}");
        cloud.enoki(&["delete", "instance", name]).ok();
    }
    eventually("nothing is left", SOON, || {
        let now = belongings(cloud);
        if now == clean { Ok(()) } else { Err(format!("before:\n{clean}\nnow:\n{now}")) }
    });
}

fn nothing_restarted(cloud: &Cloud) {
    both(cloud).iter().for_each(|machine| machine.unchanged(cloud));
}

fn first_process_killed(cloud: &Cloud) {
    let victim = Running::start(cloud, "victim", &["--restart", "never"], COUNTER);
    signal(victim.pid as i32, Signal::SIGKILL);
    let seen = eventually("its end", SOON, || {
        let seen = instance(cloud, "victim");
        if seen["status"]["exit_code"].is_i64() { Ok(seen) } else { Err(seen.to_string()) }
    });
    assert_eq!(seen["status"]["exit_code"], 137, "{seen}");
    assert_ne!(seen["status"]["oom_killed"], true, "{seen}");
    cloud.enoki(&["delete", "instance", "victim"]).ok();

    let victim = Running::start(cloud, "victim", &["--restart", "always"], COUNTER);
    let counted = victim.count();
    signal(victim.pid as i32, Signal::SIGKILL);
    let back = eventually("its return", SOON, || {
        let seen = instance(cloud, "victim");
        let status = &seen["status"];
        let back = status["phase"] == "running" && status["pid"] != victim.pid;
        if back { Ok(seen) } else { Err(seen.to_string()) }
    });
    assert!(back["status"]["restarts"].as_u64() >= Some(1), "{back}");
    assert!(Running::of(cloud, "victim").count() >= counted, "its disk is another one");
}

/// Without its shim nobody reaps a container: it is ended and started again, once.
fn shim_killed(cloud: &Cloud) {
    let victim = Running::of(cloud, "victim");
    let status = std::fs::read_to_string(format!("/proc/{}/status", victim.pid)).expect("its status");
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent");
    signal(shim.trim().parse().expect("a pid"), Signal::SIGKILL);
    eventually("one that runs and answers", SOON, || {
        let out = cloud.enoki(&["exec", "victim", "--", "hostname"]);
        if out.text() == "victim" { Ok(()) } else { Err(format!("{out}{}", instance(cloud, "victim"))) }
    });
    let all = cloud.docker(&["ps", "-q", "--filter", "name=enoki.default.victim"]).ok();
    assert_eq!(all.stdout.lines().count(), 1, "{all}");
    Running::of(cloud, "victim").goes_on();
    cloud.enoki(&["delete", "instance", "victim"]).ok();
}

fn everything_killed(cloud: &Cloud) {
    let machine = Running::of(cloud, "counter");
    let counted = machine.count();
    cloud.enoki(&["stop", "counter"]).ok();
    for part in ["supervisor", "agent", "server", "etcd", "dockerd", "containerd"] {
        cloud.kill(part, Signal::SIGKILL);
    }
    cloud.up();
    cloud.enoki(&["start", "counter"]).ok();
    assert!(Running::of(cloud, "counter").count() >= counted, "what it wrote is gone");
    well(cloud, "chatty");
}
