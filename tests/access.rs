//! Access over TLS: tokens, roles and contexts, with curl and the CLI against a real server. Every route of the API is
//! tried by every role, in a project of its own and in another's.

use enoki_harness::{Cloud, eventually, is_root};
use serde_json::{Value, json};
use std::time::Duration;

const SERVER: &str = "https://127.0.0.1:7443";

/// A cloud that also listens on TLS, with two projects.
fn cloud() -> Cloud {
    let cloud = Cloud::bare();
    cloud.write("/etc/enoki/server.toml", "listen = \"127.0.0.1:7443\"\n");
    cloud.up();
    for project in ["own", "other"] {
        cloud.enoki(&["project", "create", project]).ok();
    }
    cloud
}

fn token(cloud: &Cloud, name: &str, flags: &[&str]) -> String {
    cloud.enoki(&[&["token", "create", name][..], flags].concat()).ok().text().to_owned()
}

/// The statuses of many requests, each a method, an address and a token's name, made by one curl.
fn statuses(cloud: &Cloud, requests: &[(String, String, &str)]) -> Vec<u16> {
    let mut config = Vec::new();
    for (method, path, who) in requests {
        let token = match *who {
            "" => String::new(),
            who => {
                let token = std::fs::read_to_string(cloud.path(&format!("/run/tokens/{who}"))).expect(who);
                format!("header = \"Authorization: Bearer {token}\"\n")
            }
        };
        config.push(format!(
            "url = \"{SERVER}{path}\"\nrequest = {method}\n{token}header = \"Content-Type: application/json\"\n\
             data = \"{{}}\"\noutput = /dev/null\nwrite-out = \"%{{http_code}}\\n\"\n\
             cacert = /etc/enoki/pki/ca.crt\nmax-time = 10\nsilent\n"
        ));
    }
    cloud.write("/run/requests", &config.join("next\n"));
    let out = cloud.run_for(&["curl", "-K", "/run/requests"], Duration::from_secs(120));
    let codes: Vec<u16> = out.stdout.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(codes.len(), requests.len(), "{out}");
    codes
}

/// What the roles are told to be able to do (docs/api.md), said once more and in other words than the server says it.
fn may(role: &str, method: &str, path: &str, project: &str) -> bool {
    let enters = ["/exec", "/console", "/connect"].iter().any(|verb| path.ends_with(verb));
    let reads = method == "get" && !enters;
    match role {
        "admin" => true,
        "member" | "viewer" => {
            let level = if role == "member" { true } else { reads };
            match path {
                "/v1/projects" => reads,
                "/v1/projects/{name}" => reads && project == "own",
                _ => path.starts_with("/v1/projects/{project}/") && project == "own" && level,
            }
        }
        _ => false,
    }
}

#[test]
fn every_route_by_every_role() {
    if !is_root() {
        return;
    }
    let cloud = cloud();
    cloud.sh("mkdir -p /run/tokens").ok();
    for (name, flags) in [
        ("admin", &["--role", "admin"][..]),
        ("member", &["--role", "member", "--projects", "own"]),
        ("viewer", &["--role", "viewer", "--projects", "own"]),
    ] {
        cloud.write(&format!("/run/tokens/{name}"), &token(&cloud, name, flags));
    }
    let host = cloud.enoki(&["host", "join-token"]).ok();
    cloud.write("/run/tokens/host", host.text());
    let document = cloud.api("GET", "/openapi.json", None).expect(200).json;
    let open = ["/healthz", "/readyz", "/openapi.json"];
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    for (path, operations) in document["paths"].as_object().expect("paths") {
        // Dry runs, so that an admin's success changes nothing; a name that nobody has.
        for method in operations.as_object().expect("operations").keys().filter(|key| *key != "parameters") {
            for project in ["own", "other"] {
                let name = if path == "/v1/projects/{name}" { project } else { "nobody" };
                let address =
                    path.replace("{project}", project).replace("{cluster}", "nobody").replace("{name}", name);
                let address = format!("{address}?dry_run=true");
                for who in ["admin", "member", "viewer", "host", ""] {
                    requests.push((method.to_uppercase(), address.clone(), who));
                    let wanted = match who {
                        _ if open.contains(&path.as_str()) => None,
                        "" => Some(401),
                        who if may(who, method, path, project) => None,
                        _ => Some(403),
                    };
                    expected.push(wanted);
                }
            }
        }
    }
    assert!(requests.len() > 300, "only {} requests: is the document whole?", requests.len());
    let found = statuses(&cloud, &requests);
    let mut wrong = Vec::new();
    let mut let_in = 0;
    for ((request, wanted), status) in requests.iter().zip(&expected).zip(&found) {
        let right = match wanted {
            Some(wanted) => status == wanted,
            None => ![401, 403].contains(status),
        };
        let_in += usize::from(wanted.is_none());
        if !right {
            wrong.push(format!("{request:?}: {status}, wanted {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), requests.len(), wrong.join("\n"));
    eprintln!("{} requests, {let_in} let in, {} refused", requests.len(), requests.len() - let_in);
}

#[test]
fn tokens_and_contexts() {
    if !is_root() {
        return;
    }
    let cloud = cloud();
    let made =
        cloud.enoki(&["token", "create", "ci", "--role", "member", "--projects", "own", "-o", "json"]).ok();
    let made: Value = serde_json::from_str(&made.stdout).expect("JSON");
    let secret = made["status"]["token"].as_str().expect("the token").to_owned();
    assert!(made["spec"].get("hash").is_none(), "{made}");

    // Told once, and kept nowhere as it is.
    let seen = cloud.api("GET", "/v1/tokens/ci", None).expect(200).json;
    assert!(seen["status"].get("token").is_none() && seen["spec"].get("hash").is_none(), "{seen}");
    let part = secret.split('_').nth(2).expect("the secret part").to_owned();
    let dump = |what: &str| {
        let script = format!(
            "set -a; . /etc/enoki/etcdctl.env; etcdctl get --prefix '' | grep -ac -- '{what}' || true; \
             grep -rlaF -- '{what}' /var/log/enoki /var/lib/enoki/audit.log || true"
        );
        cloud.sh(&script).ok().text().to_owned()
    };
    assert_ne!(dump("tokens/ci"), "0", "the control: what is there is found");
    assert_eq!(dump(&part), "0");

    // Over TLS, pinned by the token itself; the project is the login's.
    cloud
        .enoki_with(&["-p", "own", "login", SERVER, "--name", "there"], &secret, Duration::from_secs(30))
        .ok();
    let listed = cloud.enoki(&["get", "projects", "-o", "name"]).ok();
    assert_eq!(listed.text(), "project/own");
    cloud.enoki(&["volume", "create", "data"]).ok();
    assert_eq!(cloud.enoki(&["get", "volumes", "-o", "name"]).ok().text(), "volume/data");
    let told = cloud.enoki(&["get", "hosts"]).exits(1);
    assert!(told.stderr.contains("member"), "{told}");
    for refused in [
        &["network", "create", "n", "--type", "local", "--cidr", "198.18.9.0/24", "--gateway", "host"][..],
        &["volume", "create", "v", "--type", "shared", "--path", "/srv"],
    ] {
        let told = cloud.enoki(refused).exits(1);
        assert!(told.stderr.contains("for admins"), "{told}");
    }
    cloud.enoki(&["network", "create", "n", "--type", "local", "--cidr", "198.18.9.0/24"]).ok();
    cloud.enoki(&["--context", "local", "get", "hosts"]).ok();
    let contexts = cloud.enoki(&["context", "list"]).ok().stdout;
    assert!(contexts.contains("there") && contexts.contains(SERVER), "{contexts}");
    let mode = cloud.sh("stat -c %a /root/.config/enoki/contexts.json").ok();
    assert_eq!(mode.text(), "600");

    // Who did it stands in the audit.
    let asked = |flags: &[&str]| -> Vec<Value> {
        let line = [&["--context", "local", "audit", "-o", "json"][..], flags].concat();
        let list: Value = serde_json::from_str(&cloud.enoki(&line).ok().stdout).expect("JSON");
        list["items"].as_array().cloned().expect("items")
    };
    let by_token = asked(&["--since", "1h", "--actor", "token ci"]);
    assert!(by_token.iter().all(|entry| entry["actor"] == "token ci"), "{by_token:?}");
    let last = by_token.last().expect("an entry");
    let what = (last["method"].as_str(), last["path"].as_str(), last["status"].as_u64());
    assert_eq!(what, (Some("POST"), Some("/v1/projects/own/networks"), Some(201)), "the newest is the last");
    let refused = asked(&["--status", "403", "--path", "/v1/hosts"]);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(asked(&["--actor", "token ci", "--limit", "1"]), by_token[by_token.len() - 1..]);
    assert_eq!(asked(&["--since", "2099-01-01T00:00:00Z"]), [Value::Null; 0]);
    let told = cloud.enoki(&["--context", "local", "audit", "--actor", "token ci"]).ok().stdout;
    assert!(told.contains("POST /v1/projects/own/volumes") && told.contains("201"), "{told}");
    let told = cloud.enoki(&["audit"]).exits(1);
    assert!(told.stderr.contains("member"), "not theirs to read: {told}");
    let bad = cloud.api("GET", "/v1/audit?since=yesterday", None).expect(422);
    assert_eq!(bad.json["field"], "since");

    // A token of another cloud's CA is not sent there at all; a wrong secret is refused.
    let (head, _) = secret.rsplit_once('_').expect("the CA's part");
    let foreign = format!("{head}_{}", "0".repeat(64));
    let login = |token: &str| {
        cloud.enoki_with(&["login", SERVER, "--name", "bad"], token, Duration::from_secs(30)).exits(1)
    };
    assert!(login(&foreign).stderr.contains("invalid peer certificate"), "{}", login(&foreign));
    let wrong = secret.replace(&part, &"0".repeat(64));
    assert!(login(&wrong).stderr.contains("not one of this cloud"), "{}", login(&wrong));

    // It ends when it says so, and at once when it is deleted.
    cloud.enoki(&["context", "use", "local"]).ok();
    let brief = token(&cloud, "brief", &["--role", "admin", "--ttl", "1s"]);
    eventually("it has expired", Duration::from_secs(10), || {
        let out = cloud.enoki_with(&["login", SERVER, "--name", "brief"], &brief, Duration::from_secs(30));
        if out.stderr.contains("has expired") { Ok(()) } else { Err(out.to_string()) }
    });
    cloud.enoki(&["--context", "local", "delete", "token", "ci"]).ok();
    let told = cloud.enoki(&["--context", "there", "get", "volumes"]).exits(1);
    assert!(told.stderr.contains("not one of this cloud"), "{told}");
    let bad = json!({"name": "x", "spec": {"role": "member"}});
    let answer = cloud.api("POST", "/v1/tokens", Some(&bad)).expect(422);
    assert_eq!(answer.json["field"], "spec.projects");
}
