//! A cloud that has lost its store: what runs goes on, what is stopped keeps its files, and all of it is taken back.

#[path = "support/machines.rs"]
mod machines;

use enoki_harness::{Cloud, Signal, eventually, is_root, steps};
use machines::{COUNTER, Running, SOON, instance, phase, well};
use serde_json::{Value, json};

#[test]
fn orphans() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::start();
    cloud.import_tiny();
    steps(&cloud, &[("stopped by down", after_down), ("everything killed", after_kill)]);
}

fn after_down(cloud: &Cloud) {
    store_lost(cloud, "down", |cloud| drop(cloud.enoki(&["down"]).ok()));
}

fn after_kill(cloud: &Cloud) {
    store_lost(cloud, "kill", |cloud| {
        for part in ["supervisor", "agent", "server", "etcd"] {
            cloud.kill(part, Signal::SIGKILL);
        }
    });
}

fn host(cloud: &Cloud) -> String {
    eventually("a host", SOON, || {
        let hosts = cloud.api("GET", "/v1/hosts", None);
        hosts.json["items"][0]["name"].as_str().map(str::to_owned).ok_or(hosts.body)
    })
}

fn address(instance: &Value) -> &Value {
    &instance["status"]["nics"]["eth0"]
}

/// Names differ by `story`, so that one round leaves nothing that another could mistake for its own.
fn store_lost(cloud: &Cloud, story: &str, end: fn(&Cloud)) {
    let named = |what: &str| format!("{what}-{story}");
    let (live, still, gone) = (named("live"), named("still"), named("gone"));
    let running = Running::start(cloud, &live, &["--disk-size", "64Mi"], COUNTER);
    let deleted = Running::start(cloud, &gone, &[], COUNTER);
    Running::start(cloud, &still, &[], "echo kept >/kept; exec sleep 10000");
    cloud.enoki(&["stop", &still]).ok();
    let (before, stopped) = (instance(cloud, &live), instance(cloud, &still));
    let stopped_uid = stopped["uid"].as_str().expect("a uid").to_owned();
    let bystander = cloud.docker(&["run", "-d", "--net", "none", "enoki/tiny:1", "sleep", "1000"]).ok();

    end(cloud);
    running.goes_on();
    cloud.sh("rm -rf /var/lib/enoki/etcd.away; mv /var/lib/enoki/etcd /var/lib/enoki/etcd.away").ok();
    cloud.up();

    let url = format!("/v1/hosts/{}/orphans", host(cloud));
    eventually("all three are listed", SOON, || {
        let seen = cloud.api("GET", &url, None).expect(200);
        let items = seen.json["items"].as_array().cloned().unwrap_or_default();
        let as_they_are = [
            (&live, &running.uid, "running"),
            (&gone, &deleted.uid, "running"),
            (&still, &stopped_uid, "stopped"),
        ]
        .into_iter()
        .all(|(name, uid, phase)| {
            items.iter().any(|item| item["name"] == **name && item["uid"] == **uid && item["phase"] == phase)
        });
        if items.len() == 3 && as_they_are { Ok(()) } else { Err(seen.body) }
    });
    let told = cloud.enoki(&["get", "orphans"]).ok().stdout;
    assert!([&live, &still, &gone].iter().all(|name| told.contains(*name)), "{told}");
    running.goes_on();
    deleted.goes_on();

    // Name and address stay theirs.
    let held = |name: &str, nics: Value| {
        let body = json!({"kind": "instance", "name": name, "spec": {"image": "enoki/tiny:1", "nics": nics}});
        cloud.api("POST", "/v1/projects/default/instances", Some(&body))
    };
    let name = held(&live, json!({"eth0": {"network": "default"}})).expect(409);
    assert!(name.body.contains("orphan"), "{}", name.body);
    let address_held = address(&before)["address"].as_str().expect("an address");
    let taken = held("thief", json!({"eth0": {"network": "default", "address": address_held}})).expect(409);
    assert_eq!(taken.problem(), "address_taken", "{}", taken.body);
    // A quota says what may be made; what was there comes back.
    cloud.enoki(&["project", "quota", "default", "--instances", "0"]).ok();
    let late = held("late", json!({})).expect(409);
    assert_eq!(late.problem(), "quota_exceeded", "{}", late.body);
    cloud.enoki(&["adopt", "--orphans"]).ok();
    eventually("no orphan is left", SOON, || {
        let seen = cloud.api("GET", &url, None).expect(200);
        if seen.json["items"].as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(seen.body) }
    });
    cloud.enoki(&["project", "quota", "default", "--instances", "none"]).ok();
    let after = phase(cloud, &live, "running");
    assert_eq!(after["uid"], before["uid"]);
    assert_eq!(after["status"]["pid"], before["status"]["pid"]);
    assert_eq!(address(&after), address(&before), "{after}");
    assert_eq!(after["spec"]["disk_size"], "64Mi");
    phase(cloud, &still, "stopped");
    assert_eq!(instance(cloud, &still)["uid"], stopped["uid"]);
    well(cloud, &live);

    cloud.enoki(&["resize", &live, "--memory", "96Mi"]).ok();
    assert_eq!(cloud.cgroup(running.pid as i32, "memory", "memory.limit_in_bytes"), (96 << 20).to_string());
    running.unchanged(cloud);
    cloud.enoki(&["start", &still]).ok();
    assert_eq!(cloud.enoki(&["exec", &still, "--", "cat", "/kept"]).ok().text(), "kept");

    // Taken back, it can go for good, and takes everything along.
    for name in [&gone, &live, &still] {
        cloud.enoki(&["delete", "instance", name]).ok();
    }
    eventually("no disk is left", SOON, || {
        let left = cloud.sh("ls /var/lib/enoki/disks /var/lib/enoki/containers /var/lib/enoki/ledger");
        let named = [&deleted.uid, &running.uid].iter().any(|uid| left.stdout.contains(uid.as_str()));
        if named { Err(left.to_string()) } else { Ok(()) }
    });
    assert!(!cloud.docker(&["ps", "-q", "--no-trunc"]).ok().text().is_empty());
    cloud.docker(&["rm", "-f", bystander.text()]).ok();
}
