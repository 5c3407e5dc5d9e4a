//! Instances on a real cloud: what `run` promises and what stands in the kernel, in Docker and in etcd afterwards.

#[path = "support/checks.rs"]
mod checks;

use enoki_harness::{Cloud, Output, Signal, eventually, is_root};
use serde_json::{Value, json};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
const TINY: &str = "enoki/tiny:1";

#[test]
fn instances() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::start();
    cloud.import_tiny();
    let mut failed = checks::run(
        &cloud,
        &[
            ("exec passes codes and bytes", exec),
            ("what ends is started again, or not", restart_policy),
            ("out of memory is told", out_of_memory),
            ("user_data runs once a disk", user_data),
            ("logs", logs),
            ("apply", apply),
            ("get, label, describe and watch", shown),
            ("deletion", deletion),
            ("a missing image", missing_image),
            ("no room", no_room),
            ("environment and secrets", environment),
        ],
    );
    // Alone: it ends dockerd under everybody's feet.
    failed.extend(checks::run(&cloud, &[("limits", limits)]));
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn instance(cloud: &Cloud, name: &str) -> Value {
    cloud.enoki(&["get", "instance", name, "-o", "json"]).ok().json()
}

fn status(cloud: &Cloud, name: &str) -> Value {
    instance(cloud, name)["status"].clone()
}

/// Waits until the status is as asked for, and returns it.
#[track_caller]
fn until(cloud: &Cloud, name: &str, what: &str, reached: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{name}: {what}"), WAIT, || {
        let status = status(cloud, name);
        if reached(&status) { Ok(status) } else { Err(status.to_string()) }
    })
}

fn run(cloud: &Cloud, name: &str, flags: &[&str], command: &[&str]) -> Output {
    let mut words = vec!["run", name, "--image", TINY];
    words.extend(flags);
    if !command.is_empty() {
        words.push("--");
        words.extend(command);
    }
    cloud.enoki(&words)
}

fn sh(cloud: &Cloud, name: &str, script: &str) -> Output {
    cloud.enoki(&["exec", name, "--", "sh", "-c", script])
}

fn delete(cloud: &Cloud, name: &str) {
    cloud.enoki(&["delete", "instance", name, "--force"]).ok();
}

/// The cgroup files of web1's container, as the kernel tells them.
#[track_caller]
fn holds(cloud: &Cloud, when: &str, quota: &str, memory: &str, pids: &str, write: &str) {
    let id = status(cloud, "web1")["container_id"].as_str().expect("a container").to_owned();
    let file = |controller: &str, file: &str| cloud.cgroup(id.as_str(), controller, file);
    let quota_held: f64 = file("cpu", "cpu.cfs_quota_us").parse().expect("a number");
    let period: f64 = file("cpu", "cpu.cfs_period_us").parse().expect("a number");
    assert_eq!((quota_held / period).to_string(), quota, "{when}: CPUs");
    assert_eq!(file("memory", "memory.limit_in_bytes"), memory, "{when}: memory");
    if std::path::Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists() {
        assert_eq!(file("memory", "memory.memsw.limit_in_bytes"), memory, "{when}: memory and swap");
    }
    assert_eq!(file("pids", "pids.max"), pids, "{when}: pids");
    let held = file("blkio", "blkio.throttle.write_bps_device");
    assert_eq!(held.split_whitespace().last(), Some(write), "{when}: writes: {held}");
}

/// Ends dockerd as a crash would and waits until the cloud has it back.
fn restart_docker(cloud: &Cloud) {
    let before = cloud.kill("dockerd", Signal::SIGKILL);
    eventually("dockerd is back", WAIT, || match cloud.find("dockerd") {
        Some(pid) if pid != before && cloud.docker(&["version"]).code() == 0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn limits(cloud: &Cloud) {
    cloud.enoki(&["network", "create", "blue", "--type", "local", "--cidr", "198.18.100.0/24"]).ok();
    let flags = [
        "--cpus",
        "0.5",
        "--memory",
        "256Mi",
        "--pids",
        "200",
        "--disk-write-bps",
        "1MiB",
        "--network",
        "blue",
        "--address",
        "198.18.100.10",
        "--wait",
    ];
    run(cloud, "web1", &flags, &["sleep", "infinity"]).ok();
    holds(cloud, "at first", "0.5", "268435456", "200", "1048576");
    assert_eq!(cloud.enoki(&["exec", "web1", "--", "hostname"]).ok().stdout, "web1\n");
    let address = sh(cloud, "web1", "ip -4 addr show eth0").ok();
    assert!(address.stdout.contains("inet 198.18.100.10/24"), "{address}");

    let keys = cloud.sh(
        "set -a; . /etc/enoki/etcdctl.env; etcdctl get --print-value-only /enoki/v1/instances/default/web1; \
         echo; etcdctl get --print-value-only /enoki/v1/assignments/default/web1",
    );
    let keys = keys.ok();
    let values: Vec<Value> = keys
        .stdout
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(values.len(), 2, "{keys}");
    assert_eq!(values[0]["spec"]["cpus"], "0.5", "{keys}");
    assert_eq!(values[1]["uid"], values[0]["uid"], "{keys}");
    assert_eq!(values[1]["granted"]["memory"], "256Mi", "{keys}");

    let docker = cloud.docker(&["inspect", "enoki.default.web1"]).ok().json();
    assert_eq!(docker[0]["HostConfig"]["NetworkMode"], "none");
    assert_eq!(docker[0]["HostConfig"]["Privileged"], false);
    assert_eq!(docker[0]["Config"]["Labels"]["enoki.name"], "web1");

    let pid = status(cloud, "web1")["pid"].clone();
    cloud.enoki(&["resize", "web1", "--cpus", "1.5", "--memory", "512Mi", "--disk-write-bps", "2MiB"]).ok();
    holds(cloud, "after a resize", "1.5", "536870912", "200", "2097152");
    assert_eq!(status(cloud, "web1")["pid"], pid, "the same process after a resize");

    let refused = cloud.enoki(&["resize", "web1", "--memory", "900Gi", "--pids", "300"]).exits(1);
    assert!(refused.stderr.contains("memory"), "{refused}");
    holds(cloud, "after a refused resize", "1.5", "536870912", "200", "2097152");
    let limits = status(cloud, "web1")["limits"].clone();
    assert_eq!(limits["state"], "infeasible", "{limits}");
    cloud.enoki(&["resize", "web1", "--memory", "512Mi", "--pids", "300"]).ok();
    holds(cloud, "after taking it back", "1.5", "536870912", "300", "2097152");

    cloud.enoki(&["stop", "web1"]).ok();
    assert_eq!(status(cloud, "web1")["phase"], "stopped");
    cloud.enoki(&["start", "web1"]).ok();
    holds(cloud, "after stop and start", "1.5", "536870912", "300", "2097152");
    let pid = status(cloud, "web1")["pid"].clone();

    restart_docker(cloud);
    holds(cloud, "after dockerd's end", "1.5", "536870912", "300", "2097152");
    assert_eq!(status(cloud, "web1")["pid"], pid, "the same process after dockerd's end");
    eventually("exec after dockerd's end", WAIT, || {
        let out = cloud.enoki(&["exec", "web1", "--", "hostname"]);
        if out.stdout == "web1\n" { Ok(()) } else { Err(out.to_string()) }
    });
    cloud.enoki(&["resize", "web1", "--cpus", "0.25"]).ok();
    holds(cloud, "resized after dockerd's end", "0.25", "536870912", "300", "2097152");
    cloud.enoki(&["restart", "web1"]).ok();
    holds(cloud, "restarted after dockerd's end", "0.25", "536870912", "300", "2097152");
}

fn exec(cloud: &Cloud) {
    run(cloud, "ex1", &["--wait"], &["sleep", "infinity"]).ok();
    sh(cloud, "ex1", "exit 7").exits(7);
    sh(cloud, "ex1", "kill -9 $$").exits(137);
    sh(cloud, "ex1", "kill -15 $$").exits(143);
    let out = cloud.enoki(&["exec", "ex1", "--", "/no/such/program"]).exits(125);
    assert!(out.stderr.contains("no such file") || out.stderr.contains("not found"), "{out}");
    let out = sh(cloud, "ex1", "echo out; echo err >&2").ok();
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("out\n", "err\n"));
    cloud.sh(
        "head -c 3000000 /dev/urandom > /run/bytes; timeout 60 enoki exec -i ex1 -- cat < /run/bytes | cmp - /run/bytes",
    )
    .ok();
    // A program that does not read its input ends all the same.
    cloud.sh("timeout 30 enoki exec -i ex1 -- true < /run/bytes").ok();
    let tty =
        cloud.sh("timeout 30 script -qec \"enoki exec -it ex1 -- sh -c 'tty; exit 5'\" /dev/null").exits(5);
    assert!(tty.stdout.contains("/dev/pts/"), "{tty}");
    cloud.enoki(&["exec", "nobody", "--", "true"]).exits(125);
}

fn restart_policy(cloud: &Cloud) {
    run(cloud, "crash", &[], &["sh", "-c", "exit 3"]).ok();
    let seen =
        until(cloud, "crash", "backs off", |s| s["phase"] == "backoff" && s["restarts"].as_u64() >= Some(1));
    assert_eq!(seen["exit_code"], 3, "{seen}");
    run(cloud, "good", &["--restart", "on_failure"], &["true"]).ok();
    let seen = until(cloud, "good", "has ended", |s| s["phase"] == "stopped");
    assert_eq!((&seen["exit_code"], &seen["restarts"]), (&json!(0), &json!(0)), "{seen}");
    run(cloud, "bad", &["--restart", "on_failure"], &["sh", "-c", "exit 4"]).ok();
    let seen = until(cloud, "bad", "is tried again", |s| s["restarts"].as_u64() >= Some(1));
    assert_eq!(seen["exit_code"], 4, "{seen}");
    run(cloud, "once", &["--restart", "never"], &["sh", "-c", "exit 5"]).ok();
    let seen = until(cloud, "once", "has failed", |s| s["phase"] == "failed" || s["phase"] == "stopped");
    assert_eq!((&seen["exit_code"], &seen["restarts"]), (&json!(5), &json!(0)), "{seen}");
    run(cloud, "again", &["--wait"], &["sleep", "infinity"]).ok();
    sh(cloud, "again", "echo kept > /root/file").ok();
    let before = status(cloud, "again")["pid"].clone();
    cloud.enoki(&["restart", "again"]).ok();
    assert_ne!(status(cloud, "again")["pid"], before);
    assert_eq!(sh(cloud, "again", "cat /root/file").ok().text(), "kept");
    for name in ["crash", "good", "bad", "once", "again"] {
        delete(cloud, name);
    }
}

fn out_of_memory(cloud: &Cloud) {
    let fill = "head -c 90000000 /dev/zero | tail -c 90000000 | wc -c; exit 9";
    run(
        cloud,
        "oom",
        &["--memory", "32Mi", "--restart", "never"],
        &["sh", "-c", &format!("exec {}", "tail -c 90000000 /dev/zero")],
    )
    .ok();
    let seen = until(cloud, "oom", "was killed", |s| s["phase"] == "failed" || s["phase"] == "stopped");
    assert_eq!((&seen["oom_killed"], &seen["exit_code"]), (&json!(true), &json!(137)), "{seen}");
    // The control: the same program with room ends by its own code and is not said to have been killed.
    run(cloud, "fits", &["--memory", "512Mi", "--restart", "never"], &["sh", "-c", fill]).ok();
    let seen = until(cloud, "fits", "has ended", |s| s["phase"] == "failed" || s["phase"] == "stopped");
    assert_eq!((&seen["oom_killed"], &seen["exit_code"]), (&json!(false), &json!(9)), "{seen}");
    delete(cloud, "oom");
    delete(cloud, "fits");
}

fn user_data(cloud: &Cloud) {
    cloud.sh("printf '#!/bin/sh\\nid -u >> /root/ran\\nexit 6\\n' > /run/script").ok();
    run(cloud, "ud", &["--user-data", "/run/script", "--wait"], &["sleep", "infinity"]).ok();
    until(cloud, "ud", "has run its script", |s| s["user_data_exit_code"] == 6);
    assert_eq!(sh(cloud, "ud", "cat /root/ran").ok().stdout, "0\n");
    cloud.enoki(&["restart", "ud"]).ok();
    assert_eq!(sh(cloud, "ud", "cat /root/ran; touch /root/mine").ok().stdout, "0\n");
    let told = cloud.enoki(&["rebuild", "ud", "--image", TINY, "--yes"]).ok();
    assert!(told.stderr.contains("disk"), "says that the disk is discarded: {told}");
    eventually("the script after a rebuild", WAIT, || {
        let out = sh(cloud, "ud", "cat /root/ran; ls /root");
        if out.stdout == "0\nran\n" { Ok(()) } else { Err(out.to_string()) }
    });
    delete(cloud, "ud");
}

fn logs(cloud: &Cloud) {
    run(cloud, "talk", &["--wait"], &["sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; sleep 4; echo late; echo wrong >&2; sleep 4; echo last; sleep 1000"])
        .ok();
    let followed = cloud.sh("timeout 25 enoki logs -f --tail 1 talk | head -n 3 || true");
    assert!(followed.stdout.ends_with("last\n") || followed.stdout.contains("late\n"), "{followed}");
    eventually("the last line", WAIT, || {
        let out = cloud.enoki(&["logs", "--tail", "2", "talk"]);
        if out.stdout.ends_with("last\n") { Ok(()) } else { Err(out.to_string()) }
    });
    let all = cloud.enoki(&["logs", "talk"]).ok();
    assert!(all.stdout.starts_with("line 1\nline 2\n"), "{all}");
    assert!(all.stdout.contains("\nwrong\n"), "both streams: {all}");
    assert_eq!(cloud.enoki(&["logs", "--tail", "1", "talk"]).ok().stdout, "last\n");
    assert_eq!(cloud.enoki(&["logs", "--since", "1h", "talk"]).ok().stdout, all.stdout);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(cloud.enoki(&["logs", "--since", "1s", "talk"]).ok().stdout, "");
    delete(cloud, "talk");
}

fn apply(cloud: &Cloud) {
    let manifest = "kind: network\nname: green\nspec: {type: local, cidr: 198.18.110.0/24}\n---\nkind: instance\nname: ap1\n\
                    spec: {image: 'enoki/tiny:1', command: [sleep, infinity], nics: {eth0: {network: green}}, env: {A: one}}\n";
    let apply = |flags: &[&str], text: &str| {
        let words = [&["apply", "-f", "-"], flags].concat();
        cloud.enoki_with(&words, text, WAIT).ok()
    };
    let dry = apply(&["--dry-run"], manifest);
    assert!(dry.stdout.contains("ap1"), "{dry}");
    cloud.enoki(&["get", "instance", "ap1"]).exits(1);
    cloud.enoki(&["get", "network", "green"]).exits(1);
    let first = apply(&[], manifest);
    assert_eq!(first.stdout.matches("created").count(), 2, "{first}");
    let second = apply(&[], manifest);
    assert_eq!(second.stdout.matches("unchanged").count(), 2, "{second}");
    let before = until(cloud, "ap1", "runs", |s| s["phase"] == "running");
    sh(cloud, "ap1", "echo kept > /root/file").ok();
    let third = apply(&[], &manifest.replace("A: one", "A: two"));
    assert!(third.stdout.contains("configured"), "{third}");
    let waits = until(cloud, "ap1", "waits for a restart", |s| {
        !s["restart_required"].as_array().is_none_or(Vec::is_empty)
    });
    assert_eq!(waits["pid"], before["pid"]);
    assert_eq!(waits["restart_required"], json!(["env"]), "{waits}");
    apply(&["--restart"], &manifest.replace("A: one", "A: two"));
    let after = until(cloud, "ap1", "runs anew", |s| s["phase"] == "running" && s["pid"] != before["pid"]);
    assert!(after["restart_required"].as_array().is_none_or(Vec::is_empty), "{after}");
    assert_eq!(
        sh(cloud, "ap1", "cat /root/file; tr '\\0' '\\n' < /proc/1/environ | grep ^A= || echo $A")
            .ok()
            .stdout,
        "kept\nA=two\n"
    );
    delete(cloud, "ap1");
}

fn shown(cloud: &Cloud) {
    run(cloud, "sh1", &["--label", "tier=web", "--wait"], &["sleep", "infinity"]).ok();
    cloud.enoki(&["label", "instance", "sh1", "zone=a"]).ok();
    let labels = instance(cloud, "sh1")["labels"].clone();
    assert_eq!(labels, json!({"tier": "web", "zone": "a"}));
    let name = cloud.enoki(&["get", "instances", "-l", "zone=a", "-o", "name"]).ok();
    assert_eq!(name.stdout, "instance/sh1\n");
    assert_eq!(cloud.enoki(&["get", "instances", "-l", "zone=b", "-o", "name"]).ok().stdout, "");
    let list = cloud.enoki(&["get", "instances", "-l", "zone=a", "-o", "json"]).ok().json();
    assert_eq!(list["items"][0]["name"], "sh1", "{list}");
    let yaml = cloud.enoki(&["get", "instance", "sh1", "-o", "yaml"]).ok();
    assert!(yaml.stdout.contains("kind: instance") && yaml.stdout.contains("name: sh1"), "{yaml}");
    let wide = cloud.enoki(&["get", "instance", "sh1", "-o", "wide"]).ok();
    assert!(wide.stdout.contains("sh1") && wide.stdout.contains("198.19."), "{wide}");
    let sheet = cloud.enoki(&["describe", "instance", "sh1"]).ok();
    assert!(sheet.stdout.contains("running") && sheet.stdout.contains("tier=web"), "{sheet}");
    let watched = cloud.sh(
        "timeout 20 enoki watch instances -o json > /run/watched & w=$!; sleep 2; enoki label instance sh1 seen=yes; \
         for i in $(seq 60); do grep -q '\"seen\"' /run/watched && break; sleep 0.2; done; kill $w 2>/dev/null || true; wait $w || true; \
         grep -m1 '\"seen\"' /run/watched",
    );
    assert!(watched.ok().stdout.contains("seen"));
    let events = cloud.enoki(&["get", "events", "--for", "instance/sh1", "-o", "json"]).ok().json();
    assert!(!events["items"].as_array().is_none_or(Vec::is_empty), "{events}");
    delete(cloud, "sh1");
}

fn deletion(cloud: &Cloud) {
    for round in 0..3 {
        run(cloud, "brief", &[], &["sleep", "infinity"]).ok();
        std::thread::sleep(Duration::from_millis(100 * round));
        delete(cloud, "brief");
        cloud.enoki(&["get", "instance", "brief"]).exits(1);
    }
    run(cloud, "brief", &["--wait"], &["sleep", "infinity"]).ok();
    let first = instance(cloud, "brief")["uid"].clone();
    sh(cloud, "brief", "echo old > /root/file").ok();
    delete(cloud, "brief");
    run(cloud, "brief", &["--wait"], &["sleep", "infinity"]).ok();
    assert_ne!(instance(cloud, "brief")["uid"], first);
    sh(cloud, "brief", "cat /root/file").exits(1);
    let made = cloud.docker(&["ps", "-aq", "--filter", "label=enoki.name=brief"]).ok();
    assert_eq!(made.stdout.lines().count(), 1, "{made}");
    let taken = run(cloud, "brief", &[], &[]).exits(1);
    assert!(taken.stderr.contains("already_exists"), "{taken}");
    delete(cloud, "brief");
}

fn missing_image(cloud: &Cloud) {
    cloud.enoki(&["run", "early", "--image", "later:1", "--", "sleep", "infinity"]).ok();
    until(cloud, "early", "lacks its image", |s| s["phase"] == "pending" && s["reason"] == "image_missing");
    let tar = cloud.sh("ls /var/cache/enoki/images/tiny-*.tar | head -n 1").ok();
    cloud.enoki(&["image", "import", "later:1", tar.text()]).ok();
    until(cloud, "early", "runs", |s| s["phase"] == "running");
    delete(cloud, "early");
}

fn no_room(cloud: &Cloud) {
    let host = cloud.enoki(&["get", "hosts", "-o", "json"]).ok().json()["items"][0]["name"].clone();
    let host = host.as_str().expect("a host's name").to_owned();
    run(cloud, "big", &["--memory", "900Gi"], &["sleep", "infinity"]).ok();
    let seen =
        until(cloud, "big", "has no room", |s| s["phase"] == "pending" && s["reason"] == "no_capacity");
    assert!(seen["message"].as_str().is_some_and(|m| m.contains("memory")), "{seen}");
    let sheet = cloud.enoki(&["describe", "instance", "big"]).ok();
    assert!(sheet.stdout.contains(&host) && sheet.stdout.contains("memory"), "{sheet}");
    let plan = json!({"name": "big2", "spec": {"image": TINY, "memory": "900Gi"}});
    let plan = cloud.api("POST", "/v1/projects/default/instances?dry_run=true", Some(&plan));
    let plan = plan.json;
    assert_eq!(plan["hosts"][0]["fits"], false, "{plan}");
    cloud.enoki(&["resize", "big", "--memory", "64Mi"]).ok();
    until(cloud, "big", "runs", |s| s["phase"] == "running");
    delete(cloud, "big");
}

fn environment(cloud: &Cloud) {
    let secret = "s3cr3t-thing-nobody-may-see";
    cloud.enoki_with(&["secret", "create", "db", "--from-file", "password=-"], secret, WAIT).ok();
    run(
        cloud,
        "env1",
        &["--env", "PLAIN=told-to-all", "--env-secret", "PASSWORD=db/password", "--wait"],
        &["sh", "-c", "echo \"have $PLAIN ${#PASSWORD}\"; exec sleep 100000"],
    )
    .ok();
    let out = sh(cloud, "env1", "echo $PLAIN $PASSWORD").ok();
    assert_eq!(out.text(), format!("told-to-all {secret}"));
    let logs = eventually("its output", WAIT, || {
        let out = cloud.enoki(&["logs", "env1"]);
        if out.stdout.contains("have") { Ok(out) } else { Err(out.to_string()) }
    });
    assert_eq!(logs.text(), format!("have told-to-all {}", secret.len()));
    // The control first: what is no secret is found, so the search sees what is there.
    let dump = |word: &str| {
        cloud
            .sh(&format!(
                "set -a; . /etc/enoki/etcdctl.env; etcdctl get --prefix '' | grep -ac -- '{word}' || true"
            ))
            .ok()
    };
    assert_ne!(dump("told-to-all").text(), "0");
    assert_eq!(dump(secret).text(), "0", "a secret stands in the store in plain text");
    let encoded = cloud.sh(&format!("printf %s '{secret}' | base64")).ok();
    assert_eq!(dump(encoded.text()).text(), "0", "a secret stands in the store, encoded only");
    let logged = cloud.sh(&format!("grep -rlaF -- '{secret}' /var/log/enoki /run/enoki || true")).ok();
    assert_eq!(logged.text(), "", "a secret in our logs");
    delete(cloud, "env1");
}
