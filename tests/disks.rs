//! What an instance writes stays: prune, removal by hand, another environment; and is bounded by what it was given.

#[path = "support/machines.rs"]
mod machines;

use enoki_harness::{Cloud, eventually, is_root, steps};
use machines::{COUNTER, Running, SOON, instance, phase, well};
use serde_json::json;

#[test]
fn disks() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::start();
    cloud.docker_import_tiny();
    // The user's own, beside ours: it must come through all of this.
    cloud.docker(&["volume", "create", "mine"]).ok();
    let script = "echo theirs >/data/file; exec sleep 10000";
    cloud.docker(&["tag", "enoki/tiny:1", "user:1"]).ok();
    cloud.docker(&["rmi", "enoki/tiny:1"]).ok();
    cloud.import_tiny();
    cloud
        .docker(&[
            "run",
            "-d",
            "--name",
            "user",
            "--net",
            "none",
            "-v",
            "mine:/data",
            "user:1",
            "sh",
            "-c",
            script,
        ])
        .ok();
    steps(
        &cloud,
        &[
            ("prune and removal", pruned),
            ("another environment", another_environment),
            ("size", sized),
            ("a full disk", full),
            ("a flood of logs", flooded),
            ("rebuild", rebuilt),
            ("volumes", volumes),
            ("deletion", deleted),
            ("the user's own", users_own),
        ],
    );
}

const IDLE: &str = "exec sleep 100000";

#[track_caller]
fn inside(cloud: &Cloud, name: &str, script: &str) -> String {
    cloud.enoki(&["exec", name, "--", "sh", "-c", script]).ok().text().to_owned()
}

fn pruned(cloud: &Cloud) {
    let running = Running::start(cloud, "runs", &[], COUNTER);
    Running::start(cloud, "stands", &["--disk-size", "64Mi"], IDLE);
    inside(cloud, "stands", "echo kept >/root-file; mkdir -p /var/lib/thing; echo deep >/var/lib/thing/file");
    cloud.enoki(&["stop", "stands"]).ok();

    cloud.docker(&["container", "prune", "-f"]).ok();
    let counted = running.count();
    cloud.docker(&["rm", "-f", "enoki.default.runs"]).ok();
    eventually("it comes back by itself", SOON, || {
        let seen = instance(cloud, "runs");
        let back = seen["status"]["phase"] == "running" && seen["status"]["pid"] != running.pid;
        if back { Ok(()) } else { Err(seen.to_string()) }
    });
    let back = Running::of(cloud, "runs");
    assert!(back.count() >= counted, "what it wrote is gone");
    assert_eq!(back.uid, running.uid);

    // With nothing left that uses it the image goes, too; its bytes are ours.
    cloud.enoki(&["stop", "runs"]).ok();
    cloud.docker(&["container", "prune", "-f"]).ok();
    cloud.docker(&["rm", "-f", "enoki.default.runs", "enoki.default.stands"]);
    cloud.docker(&["image", "rm", "-f", "enoki/tiny:1"]);
    cloud.docker(&["image", "prune", "-af"]).ok();
    assert_ne!(cloud.docker(&["image", "inspect", "enoki/tiny:1"]).code(), 0, "the image is still there");
    cloud.enoki(&["start", "stands"]).ok();
    assert_eq!(inside(cloud, "stands", "cat /root-file /var/lib/thing/file"), "kept\ndeep");
    cloud.enoki(&["start", "runs"]).ok();
    assert!(Running::of(cloud, "runs").count() >= counted, "what it wrote is gone");
    cloud.enoki(&["delete", "instance", "runs"]).ok();
    cloud.enoki(&["delete", "instance", "stands"]).ok();
}

fn another_environment(cloud: &Cloud) {
    Running::start(cloud, "env", &["--env", "A=1"], IDLE);
    inside(cloud, "env", "echo kept >/kept");
    let patch = json!({"spec": {"env": {"A": "2"}}});
    cloud.api("PATCH", "/v1/projects/default/instances/env", Some(&patch)).expect(200);
    eventually("it is told", SOON, || {
        let seen = instance(cloud, "env");
        if seen["status"]["restart_required"] == json!(["env"]) { Ok(()) } else { Err(seen.to_string()) }
    });
    cloud.enoki(&["restart", "env"]).ok();
    assert_eq!(inside(cloud, "env", "cat /kept; tr '\\0' '\\n' </proc/1/environ | grep ^A="), "kept\nA=2");
    cloud.enoki(&["delete", "instance", "env"]).ok();
}

#[track_caller]
fn df(cloud: &Cloud, name: &str) -> u64 {
    let line = inside(cloud, name, "df -k / | tail -1");
    let size = line.split_whitespace().rev().nth(4).unwrap_or_default();
    size.parse().unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn sized(cloud: &Cloud) {
    let machine = Running::start(cloud, "sized", &["--disk-size", "256Mi"], COUNTER);
    assert_eq!(df(cloud, "sized"), 256 << 10);
    cloud.enoki(&["resize", "sized", "--disk-size", "1Gi"]).ok();
    assert_eq!(df(cloud, "sized"), 1 << 20);
    let patch = json!({"spec": {"disk_size": "1100Mi"}});
    cloud.api("PATCH", "/v1/projects/default/instances/sized?wait=running", Some(&patch)).expect(200);
    eventually("grown by a patch", SOON, || {
        let size = df(cloud, "sized");
        if size == 1100 << 10 { Ok(()) } else { Err(size) }
    });
    let smaller = cloud.enoki(&["resize", "sized", "--disk-size", "512Mi"]).exits(1);
    assert!(smaller.stderr.contains("disk_size"), "{smaller}");
    assert_eq!(df(cloud, "sized"), 1100 << 10);
    machine.unchanged(cloud);
    cloud.enoki(&["restart", "sized"]).ok();
    assert_eq!(df(cloud, "sized"), 1100 << 10);
    cloud.enoki(&["delete", "instance", "sized"]).ok();
}

fn full(cloud: &Cloud) {
    let neighbour = Running::start(cloud, "neighbour", &["--disk-size", "32Mi"], COUNTER);
    Running::start(cloud, "full", &["--disk-size", "64Mi"], IDLE);
    let out = cloud.enoki(&["exec", "full", "--", "dd", "if=/dev/zero", "of=/fill", "bs=1M", "count=500"]);
    assert_ne!(out.code(), 0, "{out}");
    assert!(out.stderr.contains("No space left"), "{out}");
    // Each image by its length and by what it takes, largest first. Its length bounds it: XFS keeps a log of 16 MiB
    // on top of what was asked for.
    let images = cloud.sh("stat -c '%s %b' /var/lib/enoki/disks/*/disk.img | sort -rn").ok();
    let numbers: Vec<u64> = images.stdout.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let (length, taken) = (numbers[0], numbers[1] * 512);
    assert!(length <= 80 << 20, "{images}");
    assert!((40 << 20..=length).contains(&taken), "{images}");
    neighbour.unchanged(cloud);
    well(cloud, "full");
    // The store still takes writes, and the full one still stops and starts.
    cloud.enoki(&["restart", "full"]).ok();
    cloud.enoki(&["delete", "instance", "full"]).ok();
    cloud.enoki(&["delete", "instance", "neighbour"]).ok();
}

fn flooded(cloud: &Cloud) {
    let flood = "head -c 150000000 /dev/zero | tr '\\0' x | fold -w 200; echo the end; echo 1 >/count; exec sleep 10000";
    let machine = Running::start(cloud, "flood", &["--cpus", "1"], flood);
    eventually("the flood is over", SOON, || {
        std::fs::metadata(format!("/proc/{}/root/count", machine.pid)).map(drop)
    });
    let disk = instance(cloud, "flood");
    let logs = cloud.sh("du -sm /var/lib/enoki/disks/*/machine/log | sort -n | tail -1 | cut -f1").ok();
    assert!(logs.text().parse::<u64>().is_ok_and(|mib| (20..=52).contains(&mib)), "{logs}{disk}");
    eventually("the newest line is there", SOON, || {
        let tail = cloud.enoki(&["logs", "--tail", "1", "flood"]).ok();
        if tail.stdout.contains("the end") { Ok(()) } else { Err(tail.to_string()) }
    });
    cloud.enoki(&["delete", "instance", "flood"]).ok();
}

/// The folders of disks that there are.
fn folders(cloud: &Cloud) -> Vec<String> {
    cloud.sh("ls /var/lib/enoki/disks").ok().stdout.lines().map(str::to_owned).collect()
}

fn rebuilt(cloud: &Cloud) {
    let clean = folders(cloud);
    let fresh =
        || -> Vec<String> { folders(cloud).into_iter().filter(|name| !clean.contains(name)).collect() };
    Running::start(cloud, "anew", &[], IDLE);
    inside(cloud, "anew", "echo old >/old");
    let old = fresh();
    assert_eq!(old.len(), 1, "{old:?}");
    let before = instance(cloud, "anew");
    let out = cloud.enoki(&["rebuild", "anew", "--image", "enoki/tiny:1", "--yes"]).ok();
    assert!(out.stderr.contains("will be lost"), "{out}");
    assert_eq!(inside(cloud, "anew", "ls /old 2>/dev/null || echo fresh"), "fresh");
    let after = phase(cloud, "anew", "running");
    assert_eq!((&after["uid"], &after["status"]["nics"]), (&before["uid"], &before["status"]["nics"]));
    eventually("the old disk is gone", SOON, || {
        let now = fresh();
        if now.len() == 1 && now != old { Ok(()) } else { Err(format!("{old:?}, now {now:?}")) }
    });
    cloud.enoki(&["delete", "instance", "anew"]).ok();
}

fn volumes(cloud: &Cloud) {
    cloud.enoki(&["volume", "create", "data"]).ok();
    Running::start(cloud, "first", &["--volume", "data:/data"], IDLE);
    inside(cloud, "first", "echo precious >/data/file");
    let refused = cloud.api("DELETE", "/v1/projects/default/volumes/data", None).expect(409);
    assert_eq!(refused.problem(), "in_use", "{}", refused.body);
    cloud.enoki(&["delete", "instance", "first"]).ok();
    Running::start(cloud, "second", &["--volume", "data:/data:ro"], IDLE);
    assert_eq!(
        inside(cloud, "second", "cat /data/file; touch /data/x 2>/dev/null || echo read-only"),
        "precious\nread-only"
    );
    cloud.enoki(&["delete", "instance", "second"]).ok();
    cloud.enoki(&["delete", "volume", "data"]).ok();
    eventually("its folder is gone", SOON, || {
        let left = cloud.sh("find /var/lib/enoki/volumes -name file").ok();
        if left.text().is_empty() { Ok(()) } else { Err(left.to_string()) }
    });
}

fn deleted(cloud: &Cloud) {
    Running::start(cloud, "brief", &["--disk-size", "64Mi"], IDLE);
    let seen = instance(cloud, "brief");
    let (uid, container) =
        (seen["uid"].as_str().expect("a uid"), seen["status"]["container_id"].as_str().expect("an id"));
    let all = format!(
        "ls -d /run/enoki/netns/{uid} /var/lib/enoki/containers/{container}.json /var/lib/enoki/ledger/*{uid}* 2>/dev/null | wc -l"
    );
    assert_eq!(
        cloud.sh(&all).ok().text(),
        "3",
        "{}",
        cloud.sh("find /var/lib/enoki /run/enoki/netns -maxdepth 2")
    );
    cloud.enoki(&["delete", "instance", "brief"]).ok();
    let left = "ls -A /var/lib/enoki/disks /var/lib/enoki/containers; grep /var/lib/enoki/disks /proc/self/mounts; losetup -n -l -O BACK-FILE | grep $UID_";
    eventually("nothing is left", SOON, || {
        let count = cloud.sh(&all);
        let rest = cloud.sh(&format!("UID_={uid}; {left} || true"));
        let clean = count.text() == "0" && !rest.stdout.contains(container) && !rest.stdout.contains(uid);
        if clean { Ok(()) } else { Err(format!("{count}{rest}")) }
    });
    assert_eq!(folders(cloud), Vec::<String>::new(), "every instance is deleted");
}

fn users_own(cloud: &Cloud) {
    let seen = cloud.docker(&["exec", "user", "cat", "/data/file"]).ok();
    assert_eq!(seen.text(), "theirs");
    let state = cloud.docker(&["inspect", "-f", "{{.State.Running}} {{.RestartCount}}", "user"]).ok();
    assert_eq!(state.text(), "true 0");
}
