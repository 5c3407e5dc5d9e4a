//! Every REST convention, driven by curl alone inside a real cloud; and what users may not do to what has an owner.

use enoki_harness::{Cloud, eventually, is_root};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

#[test]
fn a_script_with_curl_and_nothing_else() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::start();
    cloud.import_tiny();
    cloud.place(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rest.sh"), "/tmp/rest.sh");
    let mut script = cloud.command("sh");
    script.arg("/tmp/rest.sh");
    let output = enoki_harness::bounded(&mut script, b"", Duration::from_secs(300)).ok();
    assert!(output.text().ends_with("every convention holds"), "{}", output.text());
}

const WHY: &str = "belongs to project lake";

#[test]
fn what_has_an_owner_is_changed_through_its_owner() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::start();
    let import = "enoki image import lake:1 $(ls /var/cache/enoki/images/tiny-*.tar | head -n 1)";
    cloud.sh(import).ok();
    // Any object can be an owner.
    cloud.enoki(&["project", "create", "lake"]).ok();
    let machine = json!({"image": "lake:1", "state": "stopped", "nics": {}});
    for (kind, spec) in [
        ("instances", machine),
        ("networks", json!({"cidr": "198.18.100.0/24"})),
        ("volumes", json!({})),
        ("secrets", json!({"data": {"k": "v"}})),
    ] {
        let draft = json!({"name": "lake1", "spec": spec});
        cloud.api("POST", &format!("/v1/projects/default/{kind}"), Some(&draft)).expect(201);
        let at = owned(&cloud, kind, "lake1");
        let refused =
            |method: &str, way: &str, body: Value| refused(&cloud, method, &format!("{at}{way}"), body);
        refused("PATCH", "", json!({"labels": {"a": "b"}}));
        refused("PUT", "", draft);
        refused("DELETE", "", Value::Null);
        refused("DELETE", "?force=true", Value::Null);
    }
    let instance = "/v1/projects/default/instances/lake1";
    refused(&cloud, "PATCH", instance, json!({"spec": {"cpus": "0.5"}}));
    refused(&cloud, "POST", &format!("{instance}/rebuild"), json!({"image": "lake:1"}));
    for verb in ["start", "stop", "restart"] {
        refused(&cloud, "POST", &format!("{instance}/{verb}"), Value::Null);
    }
    let image = owned(&cloud, "images", "lake:1");
    refused(&cloud, "POST", &format!("{image}/pull"), json!({"require": []}));
    refused(&cloud, "DELETE", "/v1/projects/default/images/lake:1", Value::Null);
    let again = cloud.sh(import);
    assert!(again.to_string().contains(WHY), "{again}");
}

/// Gives an object an owner, as Enoki does with what it makes for itself. Its address.
fn owned(cloud: &Cloud, kind: &str, name: &str) -> String {
    let project = cloud.api("GET", "/v1/projects/lake", None).expect(200).json;
    let owner = json!({"kind": "project", "name": "lake", "uid": project["uid"]});
    let key = format!("/enoki/v1/{kind}/default/{name}");
    cloud
        .sh(&format!(
            "set -a; . /etc/enoki/etcdctl.env\n\
             etcdctl get --print-value-only {key} | jq -c '.owner = {owner}' >/run/owned.json\n\
             etcdctl put {key} -- </run/owned.json"
        ))
        .ok();
    let at = format!("/v1/projects/default/{kind}/{name}");
    eventually("its owner is seen", Duration::from_secs(10), || {
        let seen = cloud.api("GET", &at, None).expect(200);
        if seen.json["owner"] == owner { Ok(()) } else { Err(seen.body) }
    });
    at
}

#[track_caller]
fn refused(cloud: &Cloud, method: &str, path: &str, body: Value) {
    let answer = cloud.api(method, path, Some(&body).filter(|body| !body.is_null())).expect(409);
    let problem = &answer.json;
    assert_eq!((answer.problem(), &problem["holder"]), ("owned", &json!("project lake")), "{method} {path}");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(WHY)), "{problem}");
    let hint = "change or delete that: `enoki describe project lake`";
    assert_eq!(problem["hint"], hint, "{method} {path}");
}
