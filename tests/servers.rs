//! More than one server: each answers users, any of them may lead, and none is missed when it dies.

#[path = "support/machines.rs"]
mod machines;

use enoki_harness::{Cloud, Lab, Signal, address, eventually, is_root, steps};
use machines::{COUNTER, Running, SOON, instance, phase, well};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn two_servers() {
    if !is_root() {
        return;
    }
    let lab = Lab::start_with(3, 2);
    lab[0].import_tiny();
    steps(
        &lab,
        &[
            ("both answer", both_answer),
            ("one quota for both", one_quota_for_both),
            ("what only the leader knows", what_only_the_leader_knows),
            ("a second of that name", a_second_of_that_name),
            ("an image that the other server imported", an_image_of_the_other),
            ("the leader is killed", the_leader_is_killed),
            ("the old leader comes back", the_old_leader_comes_back),
            ("a third without a member of etcd", a_third_without_etcd),
        ],
    );
}

/// Its bytes are in one registry, and had by hosts whose sessions are with the other server.
fn an_image_of_the_other(lab: &Lab) {
    let other = &lab[1];
    other
        .sh("cp \"$(ls /var/cache/enoki/images/tiny-*.tar | head -n 1)\" /run/far.tar\n\
             echo far >/run/word; tar -C /run -rf /run/far.tar word")
        .ok();
    other.enoki(&["image", "import", "far:1", "/run/far.tar"]).ok();
    let image = other.api("GET", "/v1/projects/default/images/far:1", None).expect(200).json;
    let hex = image["spec"]["digest"].as_str().unwrap_or_default().trim_start_matches("sha256:").to_owned();
    let kept = format!("/var/lib/enoki/registry/docker/registry/v2/repositories/images/{hex}");
    assert!(other.path(&kept).exists() && !lab[0].path(&kept).exists(), "the control: one has it");
    lab[0].enoki(&["label", "host", "h3", "zone=c"]).ok();
    lab[0]
        .enoki(&[
            "run",
            "far",
            "--image",
            "far:1",
            "--require",
            "zone=c",
            "--wait",
            "--",
            "sleep",
            "infinity",
        ])
        .ok();
    assert_eq!(lab[0].enoki(&["exec", "far", "--", "cat", "/word"]).ok().text(), "far");
    // Not for whoever asks: hosts are no servers.
    let answer = lab[2].sh(&format!(
        "curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' --cert /etc/enoki/host/host.pem \
         --cacert /etc/enoki/host/ca.crt https://{}:7443/server/v1/images/{hex}/manifests/sha256:{hex}",
        address(2)
    ));
    assert_eq!(answer.text(), "403", "{answer}");
    lab[0].enoki(&["delete", "instance", "far"]).ok();
}

fn leader(cloud: &Cloud) -> String {
    let seen = cloud.api("GET", "/v1/servers", None).expect(200).json;
    let items = seen["items"].as_array().cloned().unwrap_or_default();
    let leads = items.iter().find(|server| server["leader"] == true);
    leads.map(|server| server["name"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
}

/// What one server wrote, the other shows, at the revision that was asked for.
fn both_answer(lab: &Lab) {
    assert_eq!(leader(&lab[1]), "h1");
    let listed = lab[1].enoki(&["server", "list"]).ok().stdout;
    assert!(
        listed.contains("https://198.18.200.1:7443") && listed.contains("https://198.18.200.2:7443"),
        "{listed}"
    );
    for (name, number) in [("s1", 1), ("s2", 0), ("s3", 1)] {
        Running::start(&lab[number], name, &[], COUNTER);
        let written = instance(&lab[number], name)["revision"].as_u64().expect("a revision");
        let path = format!("/v1/projects/default/instances/{name}?at_least={written}");
        let seen = lab[1 - number].api("GET", &path, None).expect(200).json;
        assert_eq!(seen["revision"], json!(written));
    }
    let far = lab[1].api("GET", "/v1/projects?at_least=999999999", None);
    assert_eq!((far.status, &far.json["code"]), (504, &json!("stale_replica")), "{}", far.body);
}

/// Of many at once, on both servers, no more are made than the quota has room for.
fn one_quota_for_both(lab: &Lab) {
    lab[0].enoki(&["project", "create", "shop", "--quota-volumes", "5"]).ok();
    eventually("the other knows it", SOON, || {
        let seen = lab[1].api("GET", "/v1/projects/shop", None);
        if seen.status == 200 { Ok(()) } else { Err(seen.body) }
    });
    let volumes = "/v1/projects/shop/volumes";
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..20)
            .map(|number| {
                let body = json!({"name": format!("v{number}"), "spec": {}});
                scope.spawn(move || lab[number % 2].api("POST", volumes, Some(&body)))
            })
            .collect();
        asked.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    let made = answers.iter().filter(|answer| answer.status == 201).count();
    let refused = answers.iter().filter(|answer| answer.problem() == "quota_exceeded").count();
    let there = lab[0].api("GET", volumes, None).expect(200).json["items"].as_array().map(Vec::len);
    assert_eq!((made, refused, there), (5, 15, Some(5)), "{answers:#?}");
}

/// Sessions are the leader's; users of the other server do not notice.
fn what_only_the_leader_knows(lab: &Lab) {
    let other = &lab[1];
    for name in ["s1", "s2", "s3"] {
        other.enoki(&["exec", name, "--", "sh", "-c", "exit 7"]).exits(7);
        assert_eq!(other.enoki(&["exec", name, "--", "hostname"]).ok().text(), name);
    }
    let hosts = other.api("GET", "/v1/hosts", None).expect(200).json;
    for host in hosts["items"].as_array().expect("items") {
        assert!(host["status"]["last_seen_at"].is_string(), "{host}");
    }
    let top = other.enoki(&["top"]).ok().stdout;
    assert!(["s1", "s2", "s3"].iter().all(|name| top.contains(name)), "{top}");
    // Noted by the one, told by the other.
    for cloud in [&lab[0], other] {
        let reasons = |name: &str| -> Vec<Value> {
            let seen =
                cloud.api("GET", &format!("/v1/events?kind=instance&project=default&name={name}"), None);
            let items = seen.expect(200).json["items"].as_array().cloned().unwrap_or_default();
            items.iter().map(|event| event["reason"].clone()).collect()
        };
        for name in ["s1", "s2"] {
            eventually(&format!("the events of {name}"), SOON, || {
                let found = reasons(name);
                let whole = [json!("created"), json!("placed")].iter().all(|wanted| found.contains(wanted));
                if whole { Ok(()) } else { Err(format!("{found:?}")) }
            });
        }
    }
    // An orphan is seen and taken back from any server.
    let running = Running::of(other, "s3");
    let script = "set -a; . /etc/enoki/etcdctl.env; \
        for key in instances status/instances assignments; do etcdctl del /enoki/v1/$key/default/s3; done";
    lab[0].sh(script).ok();
    // A host hears the whole word at the beginning of a session.
    for number in 0..3 {
        lab[number].kill("agent", Signal::SIGKILL);
    }
    eventually("s3 is an orphan", SOON, || {
        let seen = other.enoki(&["get", "orphans"]);
        if seen.stdout.contains("s3") { Ok(()) } else { Err(seen.to_string()) }
    });
    // Its name is held also where a server does not know of it: the instance is not placed.
    let taken = other.enoki(&["run", "s3", "--image", "enoki/tiny:1", "--", "sleep", "1000"]);
    assert_eq!(taken.code(), 0, "{taken}");
    eventually("s3 waits for the orphan", SOON, || {
        let seen = instance(other, "s3");
        if seen["status"]["reason"] == "orphaned" { Ok(()) } else { Err(seen.to_string()) }
    });
    other.enoki(&["delete", "instance", "s3"]).ok();
    other.enoki(&["adopt", "--orphans"]).ok();
    running.unchanged(other);
}

/// Two servers are never one.
fn a_second_of_that_name(lab: &Lab) {
    let token = lab[0].enoki(&["server", "join-token"]).ok().text().to_owned();
    let server = format!("https://{}:7443", address(1));
    let join = |machine: &Cloud, token: &str| {
        machine
            .enoki_with(&["server", "join", &server, "--name", "h2"], token, Duration::from_secs(30))
            .exits(1)
    };
    let told = join(&lab[2], &token);
    assert!(told.stderr.contains("there is a server h2"), "{told}");
    let host_token = lab[0].enoki(&["host", "join-token"]).ok().text().to_owned();
    let told = join(&lab[2], &host_token);
    assert!(told.stderr.contains("not for a server"), "{told}");
    let told = join(&lab[1], &token);
    assert!(told.stderr.contains("a cloud of its own"), "{told}");
    assert!(!lab[2].path("/etc/enoki/seal.key").exists(), "nothing is written by a join that is refused");
    let told = lab[0].enoki(&["server", "remove", &leader(&lab[0])]).exits(1);
    assert!(told.stderr.contains("leads"), "{told}");
}

/// The other one leads: agents follow it, also that of the machine whose server is dead; what runs goes on.
fn the_leader_is_killed(lab: &Lab) {
    let running: Vec<Running> = ["s1", "s2", "s3"].map(|name| Running::of(&lab[1], name)).into();
    // What would start it again.
    lab[0].kill("supervisor", Signal::SIGKILL);
    lab[0].kill("server", Signal::SIGKILL);
    let began = Instant::now();
    eventually("h2 leads", SOON, || {
        let now = leader(&lab[1]);
        if now == "h2" { Ok(()) } else { Err(now) }
    });
    eprintln!("h2 leads after {:.1?}", began.elapsed());
    for name in ["n1", "n2", "n3"] {
        Running::start(&lab[1], name, &["--strategy", "spread"], COUNTER);
    }
    eprintln!("three more run after {:.1?}", began.elapsed());
    let placed: std::collections::BTreeSet<String> =
        ["n1", "n2", "n3"].iter().map(|name| instance(&lab[1], name)["status"]["host"].to_string()).collect();
    assert_eq!(placed.len(), 3, "all three hosts have followed: {placed:?}");
    for one in &running {
        one.unchanged(&lab[1]);
        assert_eq!(lab[1].enoki(&["exec", &one.name, "--", "hostname"]).ok().text(), one.name);
    }
}

/// It follows: it answers, and sends its users' streams and questions to the new one.
fn the_old_leader_comes_back(lab: &Lab) {
    lab[0].up();
    eventually("h1 answers and knows who leads", SOON, || {
        let now = leader(&lab[0]);
        if now == "h2" { Ok(()) } else { Err(now) }
    });
    well(&lab[0], "n1");
    lab[0].enoki(&["exec", "n1", "--", "sh", "-c", "exit 7"]).exits(7);
    lab[0].enoki(&["delete", "instance", "n1"]).ok();
    phase(&lab[0], "n2", "running");
    for name in ["s1", "s2", "s3", "n2", "n3"] {
        lab[0].enoki(&["delete", "instance", name]).ok();
    }
}

/// It uses what the others have.
fn a_third_without_etcd(lab: &Lab) {
    let token = lab[0].enoki(&["server", "join-token"]).ok().text().to_owned();
    let server = format!("https://{}:7443", address(1));
    let words = ["server", "join", &server, "--advertise", &address(3), "--no-etcd"];
    lab[2].enoki_with(&words, &token, Duration::from_secs(30)).ok();
    lab[2].up();
    let listed = eventually("h3 is a server", SOON, || {
        let seen = lab[2].api("GET", "/v1/servers", None);
        let items = seen.json["items"].as_array().cloned().unwrap_or_default();
        items.into_iter().find(|item| item["name"] == "h3").ok_or(seen.body)
    });
    assert_eq!(listed["etcd"], Value::Null, "{listed}");
    assert_eq!(lab[2].find("etcd"), None, "none runs there");
    lab[2]
        .api("POST", "/v1/projects/default/volumes", Some(&json!({"name": "third", "spec": {}})))
        .expect(201);
}
