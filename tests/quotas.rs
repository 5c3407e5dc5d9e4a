//! Quotas: what a project may have in sum, asked of a real server with a real etcd, one request at a time and many at once.

use enoki_harness::{Cloud, eventually, is_root};
use serde_json::{Value, json};
use std::time::Duration;

const INSTANCES: &str = "/v1/projects/shop/instances";

/// Takes nothing of the machine: it is stopped and has no network.
fn draft(name: &str, limits: Value) -> Value {
    let mut spec = json!({"image": "enoki/tiny:1", "state": "stopped", "nics": {}});
    for (field, value) in limits.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    json!({"name": name, "spec": spec})
}

fn names(cloud: &Cloud) -> Vec<String> {
    let seen = cloud.api("GET", INSTANCES, None).expect(200).json;
    let items = seen["items"].as_array().cloned().unwrap_or_default();
    items.iter().map(|item| item["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The keys that guard a quota.
fn guards(cloud: &Cloud) -> String {
    let script = "set -a; . /etc/enoki/etcdctl.env; etcdctl get --prefix --keys-only /enoki/v1/quotas/ | grep . || true";
    cloud.sh(script).ok().text().to_owned()
}

#[test]
fn quotas() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::start();
    cloud.import_tiny();
    cloud.enoki(&["project", "create", "free"]).ok();
    cloud.enoki(&["project", "create", "shop", "--quota-instances", "5", "--quota-cpus", "2"]).ok();
    many_at_once(&cloud);
    growth_and_room(&cloud);
    lowered_below_the_use(&cloud);
    networks_and_volumes(&cloud);
    without_a_limit(&cloud);
    clusters(&cloud);
    // Who has no quota has no guard, and who is gone has none.
    assert_eq!(guards(&cloud), "/enoki/v1/quotas/shop");
    for name in names(&cloud) {
        cloud.enoki(&["-p", "shop", "delete", "instance", &name]).ok();
    }
    for it in [["volume", "v1"], ["network", "n1"]] {
        cloud.enoki(&["-p", "shop", "delete", it[0], it[1]]).ok();
    }
    let told = cloud.enoki(&["delete", "project", "shop"]).exits(1);
    assert!(told.stderr.contains("used by cluster shop/lake, held"), "{told}");
    cloud.enoki(&["-p", "shop", "delete", "cluster", "lake"]).ok();
    cloud.enoki(&["delete", "project", "shop"]).ok();
    assert_eq!(guards(&cloud), "");
}

/// Of twenty at once, five are made, and all others are told why not.
fn many_at_once(cloud: &Cloud) {
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..20)
            .map(|number| {
                let body = draft(&format!("i{number}"), json!({"cpus": "0.25"}));
                scope.spawn(move || cloud.api("POST", INSTANCES, Some(&body)))
            })
            .collect();
        asked.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    let made = answers.iter().filter(|answer| answer.status == 201).count();
    let refused = answers.iter().filter(|answer| answer.problem() == "quota_exceeded").count();
    assert_eq!((made, refused, names(cloud).len()), (5, 15, 5), "{answers:#?}");
    let told = answers.iter().find(|answer| answer.status == 409).expect("one is refused");
    assert_eq!(told.json["detail"], "instances: 1 more asked, 5 of 5 used", "{}", told.body);
    assert_eq!(told.json["holder"], "project shop");
    assert!(told.json["hint"].as_str().is_some_and(|hint| hint.contains("admin")), "{}", told.body);
    let wide = cloud.enoki(&["get", "projects", "-o", "wide"]).ok().stdout;
    let shop = wide.lines().find(|line| line.starts_with("shop")).expect("a line").to_owned();
    assert!(shop.contains("5/5") && shop.contains("1.25/2"), "{wide}");
}

/// A resize beyond the quota changes nothing; what is deleted makes room.
fn growth_and_room(cloud: &Cloud) {
    let shop = |words: &[&str]| cloud.enoki(&[&["-p", "shop"], words].concat());
    let name = &names(cloud)[0];
    let before = cloud.api("GET", &format!("{INSTANCES}/{name}"), None).expect(200).json;
    for flags in [&["--cpus", "1.001"][..], &["--cpus", "1.001", "--dry-run"], &["--cpus", "none"]] {
        let told = shop(&[&["resize", name][..], flags].concat()).exits(1);
        assert!(told.stderr.contains("cpus") && told.stderr.contains("project shop"), "{told}");
    }
    let after = cloud.api("GET", &format!("{INSTANCES}/{name}"), None).expect(200).json;
    assert_eq!((&after["spec"], &after["revision"]), (&before["spec"], &before["revision"]));
    shop(&["resize", name, "--cpus", "1", "--no-wait"]).ok();
    let dry = format!("{INSTANCES}?dry_run=true");
    let one = draft("late", json!({"cpus": "0.25"}));
    let told = cloud.api("POST", &dry, Some(&one)).expect(409);
    assert!(told.body.contains("cpus: 0.25 more asked, 2 of 2 used (and 1 more)"), "{}", told.body);
    cloud.api("POST", "/v1/projects/free/instances", Some(&one)).expect(201);
    shop(&["delete", "instance", name]).ok();
    cloud.api("POST", INSTANCES, Some(&one)).expect(201);
}

/// Nothing is taken away, and what shrinks or stays may.
fn lowered_below_the_use(cloud: &Cloud) {
    cloud.enoki(&["project", "quota", "shop", "--cpus", "0.5", "--instances", "2"]).ok();
    let told = cloud.enoki(&["describe", "project", "shop"]).ok().stdout;
    assert!(told.contains("5 of 2") && told.contains("1.25 of 0.5"), "{told}");
    let patch = |change: Value| {
        let body = change.to_string();
        let media = [("content-type", "application/merge-patch+json")];
        cloud.api_raw("PATCH", &format!("{INSTANCES}/late"), &media, Some(body.as_bytes()))
    };
    patch(json!({"labels": {"tier": "web"}})).expect(200);
    patch(json!({"spec": {"memory": "64Mi"}})).expect(200);
    patch(json!({"spec": {"cpus": "0.2"}})).expect(200);
    assert_eq!(patch(json!({"spec": {"cpus": "0.25"}})).expect(409).problem(), "quota_exceeded");
    cloud.enoki(&["project", "quota", "shop", "--cpus", "none", "--instances", "none"]).ok();
    patch(json!({"spec": {"cpus": "8"}})).expect(200);
    let told = cloud.enoki(&["project", "quota", "shop"]).ok().stdout;
    assert!(told.contains("no bound") && told.contains("9"), "{told}");
}

fn networks_and_volumes(cloud: &Cloud) {
    let shop = |words: &[&str]| cloud.enoki(&[&["-p", "shop"], words].concat());
    // The default one counts.
    cloud.enoki(&["project", "quota", "shop", "--networks", "1", "--volumes", "1"]).ok();
    let network = ["network", "create", "n1", "--cidr", "198.18.110.0/24"];
    let told = shop(&network).exits(1);
    assert!(told.stderr.contains("networks: 1 more asked, 1 of 1 used"), "{told}");
    cloud.enoki(&["project", "quota", "shop", "--networks", "2"]).ok();
    shop(&network).ok();
    shop(&["volume", "create", "v1"]).ok();
    let told = shop(&["volume", "create", "v2"]).exits(1);
    assert!(told.stderr.contains("volumes: 1 more asked, 1 of 1 used"), "{told}");
    let left = cloud.api("GET", "/v1/projects/shop", None).expect(200).json;
    let counted = (&left["status"]["networks"], &left["status"]["volumes"]);
    assert_eq!(counted, (&json!(2), &json!(1)), "{left}");
}

/// Under a quota, what is made or started anew has a limit of its own.
fn without_a_limit(cloud: &Cloud) {
    cloud.api("POST", INSTANCES, Some(&draft("unbound", json!({})))).expect(201);
    cloud.enoki(&["project", "quota", "shop", "--memory", "1Gi"]).ok();
    let told = cloud.enoki(&["-p", "shop", "start", "unbound"]).exits(1);
    assert!(told.stderr.contains("spec.memory") && told.stderr.contains("set memory"), "{told}");
    let told = cloud.api("POST", INSTANCES, Some(&draft("another", json!({})))).expect(409);
    assert_eq!((told.problem(), &told.json["field"]), ("quota_exceeded", &json!("spec.memory")));
    let seen = cloud.api("GET", &format!("{INSTANCES}/unbound"), None).expect(200).json;
    assert_eq!(seen["spec"]["state"], "stopped");
}

/// They count, and so does what they are made of: without room for it they wait.
fn clusters(cloud: &Cloud) {
    let shop = |words: &[&str]| cloud.enoki(&[&["-p", "shop"], words].concat());
    // Nothing of it is to run: any image will do.
    let tar = cloud.sh(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/images/tiny.sh")).ok();
    cloud.enoki(&["image", "import", "enoki/spark:0", tar.text()]).ok();
    let quota = ["project", "quota", "shop", "--clusters", "1", "--networks", "0", "--volumes", "0"];
    cloud.enoki(&quota).ok();
    shop(&["cluster", "create", "lake", "--version", "0"]).ok();
    let told = shop(&["cluster", "create", "pond", "--version", "0"]).exits(1);
    assert!(told.stderr.contains("clusters: 1 more asked, 1 of 1 used"), "{told}");
    let told = eventually("it waits for room", Duration::from_secs(30), || {
        let status = shop(&["get", "cluster", "lake", "-o", "json"]).ok().json()["status"].clone();
        if status["reason"] == "quota_exceeded" { Ok(status) } else { Err(status) }
    });
    assert_eq!(told["phase"], "pending", "{told}");
    let wide = cloud.enoki(&["get", "projects"]).ok().stdout;
    let line = wide.lines().find(|line| line.starts_with("shop")).expect("a line").to_owned();
    assert!(wide.contains("CLUSTERS") && line.contains("1/1"), "{wide}");
    let left = cloud.api("GET", "/v1/projects/shop", None).expect(200).json;
    assert_eq!(left["status"]["clusters"], 1, "{left}");
}
