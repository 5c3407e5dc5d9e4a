//! Uploaded files: kept in the project that brought them, found read-only by the instances that name them, and by nobody else.

#[path = "support/machines.rs"]
mod machines;

use enoki_harness::{Cloud, Lab, Signal, address, eventually, is_root, steps};
use machines::{COUNTER, Running, SOON, instance, phase, well};
use serde_json::{Value, json};

const FILES: &str = "/v1/projects/default/files";
const KEPT: &str = "/var/lib/enoki/registry/docker/registry/v2";

#[test]
fn files_go_where_they_are_named() {
    if !is_root() {
        return;
    }
    // The second server has the bytes, the first one leads and has the sessions.
    let lab = Lab::start_configured(2, 2, "largest_file = \"1Mi\"\n");
    for (host, zone) in [("h1", "zone=a"), ("h2", "zone=b")] {
        lab[0].enoki(&["label", "host", host, zone]).ok();
    }
    lab[0].import_tiny();
    steps(
        &lab,
        &[
            ("uploaded into one project", uploaded),
            ("too large", too_large),
            ("not for users to set", not_for_users),
            ("found in the instance", found_in_the_instance),
            ("only for hosts that need it", only_for_hosts_that_need_it),
            ("one that nobody has uploaded", never_uploaded),
            ("what nobody names is freed", freed),
            ("gone with the instance", gone_with_the_instance),
        ],
    );
}

/// Uploads what stands in `/run/NAME` on that machine, with more words for curl.
#[track_caller]
fn upload(cloud: &Cloud, project: &str, name: &str, more: &str) -> (u16, Value) {
    let out = cloud.sh(&format!(
        "curl -sS --max-time 60 --unix-socket /run/enoki/api.sock -o /run/answer -w '%{{http_code}}' {more} \
         -X POST -T /run/{name} http://enoki/v1/projects/{project}/files; echo; cat /run/answer"
    ));
    let (status, body) = out.stdout.split_once('\n').unwrap_or_default();
    (status.parse().unwrap_or_else(|_| panic!("{out}")), serde_json::from_str(body).unwrap_or_default())
}

#[track_caller]
fn write(cloud: &Cloud, name: &str, text: &str) -> String {
    cloud
        .sh(&format!("printf %s '{text}' >/run/{name}; sha256sum /run/{name} | cut -d ' ' -f 1"))
        .ok()
        .text()
        .to_owned()
}

fn uploaded(lab: &Lab) {
    let other = &lab[1];
    let hex = write(other, "job.py", "print(1)");
    let (status, file) = upload(other, "default", "job.py", "");
    assert_eq!((status, &file), (201, &json!({"digest": format!("sha256:{hex}"), "size": 8})));
    // In pieces of unknown length, and again: the same file, stored once.
    let count = || other.sh(&format!("find {KEPT} -type f | wc -l")).ok().text().to_owned();
    let before = count();
    assert_eq!(upload(other, "default", "job.py", "-H 'Transfer-Encoding: chunked'"), (201, file.clone()));
    assert_eq!(count(), before);
    write(other, "empty", "");
    assert_eq!(upload(other, "default", "empty", "").1["size"], 0);
    assert_eq!(other.sh("ls -A /var/lib/enoki/uploads").ok().text(), "");
    // Known on both servers, in this project alone, until another brings the same bytes.
    let at = |project: &str| format!("/v1/projects/{project}/files/sha256:{hex}");
    for server in [&lab[0], &lab[1]] {
        assert_eq!(server.api("GET", &at("default"), None).expect(200).json, file);
    }
    lab[0].enoki(&["project", "create", "shop"]).ok();
    lab[0].api("GET", &at("shop"), None).expect(404);
    write(&lab[0], "job.py", "print(1)");
    assert_eq!(upload(&lab[0], "shop", "job.py", "").0, 201);
    lab[0].api("GET", &at("shop"), None).expect(200);
    assert_eq!(lab[0].api("GET", &at("nowhere"), None).expect(404).problem(), "not_found");
    assert_eq!(lab[0].api("GET", &format!("{FILES}/job.py"), None).expect(422).problem(), "invalid_field");
    assert_eq!(upload(other, "nowhere", "job.py", "").0, 404);
}

fn too_large(lab: &Lab) {
    let cloud = &lab[0];
    let files = || cloud.sh(&format!("find {KEPT} -type f | wc -l")).ok().stdout;
    let before = files();
    cloud.sh("head -c 1048577 /dev/urandom >/run/large; head -c 1048576 /run/large >/run/fits").ok();
    for more in ["", "-H 'Transfer-Encoding: chunked'", "-H 'Expect:'"] {
        let (status, problem) = upload(cloud, "default", "large", more);
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(
            status == 413 && problem["code"] == "too_large" && detail.contains("1Mi"),
            "{more}: {status} {problem}"
        );
    }
    assert_eq!(files(), before);
    assert_eq!(cloud.sh("ls -A /var/lib/enoki/uploads").ok().text(), "");
    assert_eq!(upload(cloud, "default", "fits", "").0, 201, "the control");
}

fn not_for_users(lab: &Lab) {
    let cloud = &lab[0];
    let (digest, instances) = (format!("sha256:{}", "ab".repeat(32)), "/v1/projects/default/instances");
    let files = json!({"job.py": {"digest": digest, "size": 1}});
    let spec = json!({"image": "enoki/tiny:1", "state": "stopped"});
    cloud.api("POST", instances, Some(&json!({"name": "plain", "spec": spec}))).expect(201);
    let with = json!({"image": "enoki/tiny:1", "files": files});
    let at = format!("{instances}/plain");
    for (method, path, body) in [
        ("POST", instances, json!({"name": "own", "spec": with})),
        ("PUT", &format!("{instances}/own"), json!({"spec": with})),
        ("PUT", &at, json!({"spec": with})),
        ("PATCH", &at, json!({"spec": {"files": files}})),
    ] {
        let refused = cloud.api(method, path, Some(&body)).expect(422);
        assert_eq!(
            (refused.problem(), &refused.json["field"]),
            ("invalid_field", &json!("spec.files")),
            "{method} {path}"
        );
    }
    cloud.api("GET", &format!("{instances}/own"), None).expect(404);
    cloud.enoki(&["delete", "instance", "plain"]).ok();
}

/// Makes an instance as an owner of it does: straight into the store, with files.
#[track_caller]
fn owned(cloud: &Cloud, name: &str, zone: &str, files: &Value) {
    let spec = json!({"image": "enoki/tiny:1", "memory": "64Mi", "state": "stopped",
        "command": ["sleep", "infinity"], "placement": {"require": [format!("zone={zone}")]}});
    cloud
        .api("POST", "/v1/projects/default/instances", Some(&json!({"name": name, "spec": spec})))
        .expect(201);
    // Any object can be one.
    let project = cloud.api("GET", "/v1/projects/default", None).expect(200).json;
    let owner = json!({"kind": "project", "name": "default", "uid": project["uid"]});
    rewrite(cloud, name, &format!(".owner = {owner} | .spec.files = {files} | .spec.state = \"running\""));
}

/// Changes what stands in the store, by a filter of jq.
#[track_caller]
fn rewrite(cloud: &Cloud, name: &str, filter: &str) {
    let key = format!("/enoki/v1/instances/default/{name}");
    cloud
        .sh(&format!(
            "set -a; . /etc/enoki/etcdctl.env\n\
             etcdctl get --print-value-only {key} | jq -c '{filter} | .generation += 1' >/run/edited.json\n\
             test -s /run/edited.json && etcdctl put {key} -- </run/edited.json"
        ))
        .ok();
}

#[track_caller]
fn inside(cloud: &Cloud, name: &str, script: &str) -> String {
    cloud.enoki(&["exec", name, "--", "sh", "-c", script]).ok().text().to_owned()
}

fn found_in_the_instance(lab: &Lab) {
    let (cloud, other) = (&lab[0], &lab[1]);
    write(other, "data.csv", "1,2");
    let (_, data) = upload(other, "default", "data.csv", "");
    let (_, job) = upload(other, "default", "job.py", "");
    let (_, empty) = upload(other, "default", "empty", "");
    let files = json!({"my job.py": job, "again.py": job, "data.csv": data, "__init__.py": empty});
    owned(cloud, "driver", "a", &files);
    phase(cloud, "driver", "running");
    let all =
        "cat '/job/my job.py' /job/again.py /job/data.csv; ls -A /job | wc -l; stat -c %a /job /job/data.csv";
    let expected = "print(1)print(1)1,24\n755\n644";
    assert_eq!(inside(cloud, "driver", all), expected);
    for script in ["echo x >/job/data.csv", "touch /job/new", "rm /job/data.csv", "chmod 777 /job"] {
        let refused = cloud.enoki(&["exec", "driver", "--", "sh", "-c", script]);
        assert!(refused.code() != 0 && refused.stderr.contains("Read-only"), "{script}: {refused}");
    }
    let runs = Running::start(cloud, "runs", &["--require", "zone=a"], COUNTER);
    // It is made anew whatever becomes of the agent and of the bytes elsewhere; its neighbour notices nothing.
    let keeper = other.kill("supervisor", Signal::SIGSTOP);
    other.kill("docker-registry", Signal::SIGKILL);
    cloud.kill("agent", Signal::SIGKILL);
    rewrite(cloud, "driver", ".spec.restart_count += 1 | .spec.env = {\"A\": \"1\"}");
    eventually("it is made anew", SOON, || {
        let out = cloud.enoki(&["exec", "driver", "--", "sh", "-c", "test \"$A\" = 1 && cat /job/data.csv"]);
        if out.code() == 0 && out.text() == "1,2" { Ok(()) } else { Err(out.to_string()) }
    });
    assert_eq!(inside(cloud, "driver", all), expected);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), Signal::SIGCONT)
        .expect("the supervisor is there");
    eventually("the registry is back", SOON, || match upload(other, "default", "job.py", "").0 {
        201 => Ok(()),
        status => Err(status),
    });
    runs.unchanged(cloud);
    well(cloud, "runs");
    // Its owner's, not its users'.
    let at = "/v1/projects/default/instances/driver";
    assert_eq!(cloud.api("DELETE", at, None).expect(409).problem(), "owned");
}

fn only_for_hosts_that_need_it(lab: &Lab) {
    let (_, data) = upload(&lab[1], "default", "data.csv", "");
    let digest = data["digest"].as_str().unwrap_or_default();
    let as_h2 = |path: &str| {
        let script = format!(
            "curl -sS --max-time 10 -o /run/answer -w '%{{http_code}} ' --cert /etc/enoki/host/host.pem \
             --cacert /etc/enoki/host/ca.crt https://{}:7443{path}; head -c 2000 /run/answer",
            address(1)
        );
        lab[1].sh(&script).ok().text().to_owned()
    };
    let path = format!("/agent/v1/files/default/{digest}");
    let refused = as_h2(&path);
    assert!(refused.starts_with("403 ") && refused.contains("host h2 needs no file"), "{refused}");
    let audit = lab[0].sh("grep 'get a file' /var/lib/enoki/audit.log").ok();
    assert!(audit.stdout.contains("host h2") && audit.stdout.contains(digest), "{audit}");
    owned(&lab[0], "mine", "b", &json!({"data.csv": data}));
    phase(&lab[0], "mine", "running");
    assert_eq!(as_h2(&path), "200 1,2", "from the other server's registry");
    // What it may have in one project it may not have in another; and hosts are no servers.
    for path in [format!("/agent/v1/files/shop/{digest}"), format!("/server/v1/files/default/{digest}")] {
        let refused = as_h2(&path);
        assert!(refused.starts_with("403 "), "{path}: {refused}");
    }
    assert!(as_h2("/agent/v1/files/default/x").starts_with("404 "));
}

fn never_uploaded(lab: &Lab) {
    let cloud = &lab[0];
    let hex = write(cloud, "late", "late");
    owned(cloud, "waits", "a", &json!({"late": {"digest": format!("sha256:{hex}"), "size": 4}}));
    eventually("the reason", SOON, || {
        let seen = instance(cloud, "waits")["status"].clone();
        let message = seen["message"].as_str().unwrap_or_default();
        let told = seen["phase"] == "pending"
            && seen["reason"] == "files_unavailable"
            && message.contains("there is no file");
        if told { Ok(()) } else { Err(seen.to_string()) }
    });
    upload(cloud, "default", "late", "");
    phase(cloud, "waits", "running");
    assert_eq!(inside(cloud, "waits", "cat /job/late"), "late");
}

fn freed(lab: &Lab) {
    let cloud = &lab[1];
    let left = write(cloud, "left", "left alone");
    upload(cloud, "default", "left", "");
    let young = write(cloud, "young", "young");
    let named = write(cloud, "data.csv", "1,2");
    let kept = |hex: &str| {
        let paths = format!("{KEPT}/repositories/files/default/{hex} {KEPT}/blobs/sha256/*/{hex}/data");
        cloud.sh(&format!("ls -d {paths} 2>/dev/null | wc -l")).text().to_owned()
    };
    assert_eq!([kept(&left), kept(&named)], ["2", "2"]);
    cloud.sh(&format!("touch -d '61 minutes ago' {KEPT}/repositories/files/default/*")).ok();
    upload(cloud, "default", "young", "");
    // Who asks for one may be about to name it.
    let asked = write(cloud, "empty", "");
    lab[0].api("GET", &format!("{FILES}/sha256:{asked}"), None).expect(200);
    // An image that goes has the registry looked through.
    cloud
        .sh("cp \"$(ls /var/cache/enoki/images/tiny-*.tar | head -n 1)\" /run/brief.tar\n\
              echo brief >/run/word; tar -C /run -rf /run/brief.tar word")
        .ok();
    cloud.enoki(&["image", "import", "brief:1", "/run/brief.tar"]).ok();
    cloud.enoki(&["image", "delete", "brief:1"]).ok();
    eventually("it is freed", SOON, || match kept(&left).as_str() {
        "0" => Ok(()),
        more => Err(more.to_owned()),
    });
    assert_eq!([kept(&named), kept(&young), kept(&asked)], ["2", "2", "2"]);
    lab[0].api("GET", &format!("{FILES}/sha256:{left}"), None).expect(404);
}

fn gone_with_the_instance(lab: &Lab) {
    let cloud = &lab[0];
    let hex = write(cloud, "data.csv", "1,2");
    let uid = instance(cloud, "driver")["uid"].as_str().unwrap_or_default().to_owned();
    let there = || {
        let paths = format!("/var/lib/enoki/instances/{uid} /var/lib/enoki/files/{hex}");
        cloud.sh(&format!("ls -d {paths} 2>/dev/null | wc -l")).text().to_owned()
    };
    assert_eq!(there(), "2");
    cloud.sh("touch -d '2 minutes ago' /var/lib/enoki/files/*").ok();
    // Its users', now that its owner is no more; files are still not theirs to choose.
    let patch = |change: Value| {
        let (at, media) = ("/v1/projects/default/instances/driver", "application/merge-patch+json");
        cloud.api_raw("PATCH", at, &[("content-type", media)], Some(change.to_string().as_bytes()))
    };
    let mark = || patch(json!({"labels": {"of": "nobody"}}));
    assert_eq!(mark().expect(409).problem(), "owned");
    rewrite(cloud, "driver", ".owner.uid = \"00000000-0000-4000-8000-000000000001\"");
    eventually("its owner is no more", SOON, || match mark() {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.body),
    });
    let fewer = patch(json!({"spec": {"files": {"data.csv": null}}})).expect(422);
    assert_eq!(fewer.json["field"], "spec.files", "{}", fewer.body);
    cloud.enoki(&["delete", "instance", "driver"]).ok();
    eventually("nothing is left of it", SOON, || match there().as_str() {
        "0" => Ok(()),
        more => Err(more.to_owned()),
    });
    let late = cloud.sh("ls /var/lib/enoki/files").ok();
    assert_eq!(late.stdout.lines().count(), 1, "what another instance names stays: {late}");
}
