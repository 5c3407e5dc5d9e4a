//! etcd on the machines of the servers: who has a vote, and what goes on while one of three is away or gone for good.

#[path = "support/machines.rs"]
mod machines;

use enoki_harness::{Cloud, Lab, address, eventually, is_root, steps};
use machines::{COUNTER, Running, SOON, instance, well};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

#[test]
fn three_members() {
    if !is_root() {
        return;
    }
    let lab = Lab::start_with(3, 2);
    lab[0].import_tiny();
    steps(
        &lab,
        &[
            ("two servers have one vote and a copy", one_vote_and_a_copy),
            ("with a third there are three votes", three_votes),
            ("one machine is cut off", one_is_cut_off),
            ("it is back", it_is_back),
            ("one is gone for good, and another takes its place", one_is_replaced),
        ],
    );
}

/// Server to what its machine has of etcd.
fn members(cloud: &Cloud) -> BTreeMap<String, String> {
    let seen = cloud.api("GET", "/v1/servers", None).expect(200).json;
    let items = seen["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    items.iter().map(|server| (text(&server["name"]), text(&server["etcd"]))).collect()
}

#[track_caller]
fn votes(cloud: &Cloud, wanted: &[(&str, &str)]) {
    let wanted = wanted.iter().map(|(name, has)| ((*name).to_owned(), (*has).to_owned())).collect();
    eventually(&format!("{wanted:?}"), SOON, || {
        let now = members(cloud);
        if now == wanted { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

fn ready(cloud: &Cloud) -> Vec<String> {
    let seen = cloud.api("GET", "/v1/hosts", None);
    let items = seen.json["items"].as_array().cloned().unwrap_or_default();
    let ready = items.iter().filter(|host| host["status"]["phase"] == "ready");
    ready.map(|host| host["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// A volume: a write and nothing else.
fn write(cloud: &Cloud, name: &str) -> u16 {
    let body = json!({"name": name, "spec": {}});
    cloud.api("POST", "/v1/projects/default/volumes", Some(&body)).status
}

/// Two voters would both have to be there for anything to be written.
fn one_vote_and_a_copy(lab: &Lab) {
    votes(&lab[0], &[("h1", "voter"), ("h2", "learner")]);
    // What the second one writes goes over the first one's etcd, as its own only listens.
    assert_eq!(write(&lab[1], "first"), 201);
    let listed = lab[1].enoki(&["server", "list"]).ok().stdout;
    assert!(listed.contains("ETCD") && listed.contains("learner"), "{listed}");
}

/// A machine that has been a host becomes a server as well.
fn three_votes(lab: &Lab) {
    let token = lab[0].enoki(&["server", "join-token"]).ok().text().to_owned();
    lab.serve(2, &token);
    // It never came to start its member: nobody else joins before, and it may try again.
    lab[2].sh("rm -r /etc/enoki/seal.key /etc/enoki/server.toml /etc/enoki/pki").ok();
    let server = format!("https://{}:7443", address(1));
    let elsewhere = ["server", "join", &server, "--name", "h4", "--etcd-listen", "198.18.200.4"];
    let told = lab[2].enoki_with(&elsewhere, &token, SOON).exits(1);
    assert!(told.stderr.contains("198.18.200.3:2380, is joining"), "{told}");
    assert!(!lab[2].path("/etc/enoki/seal.key").exists(), "nothing is written by a join that is refused");
    lab.serve(2, &token);
    lab[2].up();
    votes(&lab[2], &[("h1", "voter"), ("h2", "voter"), ("h3", "voter")]);
    for number in 0..3 {
        let revision = instance_everywhere(lab, number);
        for other in 0..3 {
            let path = format!("/v1/projects/default/instances/s{}?at_least={revision}", number + 1);
            lab[other].api("GET", &path, None).expect(200);
        }
    }
}

/// An instance on each host, made by the server there.
fn instance_everywhere(lab: &Lab, number: usize) -> u64 {
    let name = format!("s{}", number + 1);
    lab[number].enoki(&["label", "host", &format!("h{}", number + 1), &format!("own={name}")]).ok();
    Running::start(&lab[number], &name, &["--require", &format!("own={name}")], COUNTER);
    instance(&lab[number], &name)["revision"].as_u64().expect("a revision")
}

fn instances(cloud: &Cloud) -> Vec<Running> {
    ["s1", "s2", "s3"].map(|name| Running::of(cloud, name)).into()
}

/// Until a write is acknowledged, with a new attempt each half second. One that waits for the member that was cut off is
/// not waited for.
fn first_write(cloud: &Cloud) -> Duration {
    let began = Instant::now();
    let acknowledged = std::sync::atomic::AtomicBool::new(false);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for attempt in 0..120 {
            if acknowledged.load(Relaxed) {
                break;
            }
            let (tell, acknowledged) = (tell.clone(), &acknowledged);
            scope.spawn(move || {
                if write(cloud, &format!("cut{attempt}")) == 201 {
                    acknowledged.store(true, Relaxed);
                    let _ = tell.send(began.elapsed());
                }
            });
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    told.try_recv().expect("a write is acknowledged within a minute")
}

/// The leader's machine at that: server, member of etcd and agent at once.
fn one_is_cut_off(lab: &Lab) {
    let running = instances(&lab[1]);
    assert_eq!(write(&lab[0], "control"), 201, "with its link it takes writes");
    lab[0].sh("ip link set lab down").ok();
    let began = Instant::now();
    eprintln!("the first write is acknowledged after {:.1?}", first_write(&lab[1]));
    // The one that is alone decides nothing, and says so.
    eventually("h1 takes no writes", SOON, || {
        let status = write(&lab[0], "alone");
        if status == 503 { Ok(()) } else { Err(status) }
    });
    eventually("the others' hosts are with a new leader", SOON, || {
        let now = ready(&lab[2]);
        if now == ["h2", "h3"] { Ok(()) } else { Err(now.join(" ")) }
    });
    eprintln!("two hosts are ready and the third is known to be away after {:.1?}", began.elapsed());
    Running::start(&lab[2], "more", &["--require", "own=s3"], COUNTER);
    for one in &running {
        one.goes_on();
    }
    running[1].unchanged(&lab[1]);
    running[2].unchanged(&lab[2]);
}

fn it_is_back(lab: &Lab) {
    let pid = |name: &str| instance(&lab[1], name)["status"]["pid"].as_i64();
    let before = ["s1", "s2", "s3"].map(pid);
    lab[0].sh("ip link set lab up").ok();
    lab.ready(3);
    eventually("what was written meanwhile is known", SOON, || {
        let seen = lab[0].api("GET", "/v1/projects/default/instances/more", None);
        if seen.status == 200 { Ok(()) } else { Err(seen.body) }
    });
    let alone = lab[1].api("GET", "/v1/projects/default/volumes/alone", None);
    assert_eq!(alone.status, 404, "what was not acknowledged is not there: {}", alone.body);
    let after = instances(&lab[0]);
    assert_eq!(after.iter().map(|one| Some(one.pid)).collect::<Vec<_>>(), before);
    for one in &after {
        one.unchanged(&lab[0]);
    }
    well(&lab[0], "more");
    votes(&lab[0], &[("h1", "voter"), ("h2", "voter"), ("h3", "voter")]);
}

fn one_is_replaced(lab: &Lab) {
    let running = instances(&lab[1]);
    lab[0].sh("ip link set lab down").ok();
    eventually("h1 is lost", SOON, || {
        let seen = lab[1].api("GET", "/v1/hosts/h1", None);
        if seen.json["status"]["phase"] == "lost" { Ok(()) } else { Err(seen.body) }
    });
    lab[1].enoki(&["server", "remove", "h1"]).ok();
    votes(&lab[1], &[("h2", "voter"), ("h3", "voter")]);
    lab[1].enoki(&["delete", "instance", "s1", "--force"]).ok();
    lab[1].enoki(&["delete", "host", "h1"]).ok();
    // A new machine, as far as the cloud can tell.
    lab[0].enoki_with(&["down", "--purge", "--yes"], "", SOON).ok();
    lab[0].sh("ip link set lab up").ok();
    let token = lab[2].enoki(&["server", "join-token"]).ok().text().to_owned();
    let (server, own) = (format!("https://{}:7443", address(3)), address(1));
    let words = ["server", "join", &server, "--name", "h9", "--advertise", &own];
    lab[0].enoki_with(&words, &token, Duration::from_secs(60)).ok();
    lab[0].up();
    votes(&lab[0], &[("h2", "voter"), ("h3", "voter"), ("h9", "voter")]);
    lab.ready(3);
    assert_eq!(write(&lab[0], "replaced"), 201);
    let told = lab[0].enoki(&["server", "remove", "nobody"]).exits(1);
    assert!(told.stderr.contains("nobody"), "{told}");
    running[1].unchanged(&lab[0]);
    running[2].unchanged(&lab[0]);
    for name in ["s2", "s3", "more"] {
        lab[0].enoki(&["delete", "instance", name]).ok();
    }
}
