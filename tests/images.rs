//! Images across hosts: imported once, had by whoever needs them and by nobody else, always the bytes that were meant.

#[path = "support/machines.rs"]
mod machines;

use enoki_harness::{Cloud, Lab, Signal, address, eventually, is_root, steps};
use machines::{COUNTER, Running, SOON, instance, phase, well};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::{Value, json};

#[test]
fn images_go_where_they_are_needed() {
    if !is_root() {
        return;
    }
    let lab = Lab::start(2);
    for (host, zone) in [("h1", "zone=a"), ("h2", "zone=b")] {
        lab[0].enoki(&["label", "host", host, zone]).ok();
    }
    steps(
        &lab,
        &[
            ("imported once, run on both hosts", run_on_both),
            ("a host pulls only what it needs", only_what_it_needs),
            ("a name that moves", a_name_moves),
            ("pulled beforehand, by label", pulled_beforehand),
            ("a registry that is away or hangs", registry_away),
            ("a damaged layer", damaged_layer),
            ("what nobody needs is freed", freed),
            ("what is no image", no_image),
            ("an image of an older version", older_version),
        ],
    );
}

/// Imports an image that differs from others by what stands in `/word`.
#[track_caller]
fn import(cloud: &Cloud, name: &str, word: &str) -> Value {
    cloud
        .sh(&format!(
            "cp \"$(ls /var/cache/enoki/images/tiny-*.tar | head -n 1)\" /run/{word}.tar\n\
             mkdir -p /run/{word}; echo {word} >/run/{word}/word; head -c 100000 /dev/urandom >/run/{word}/noise\n\
             tar -C /run/{word} -rf /run/{word}.tar word noise"
        ))
        .ok();
    cloud.enoki(&["image", "import", name, &format!("/run/{word}.tar")]).ok();
    image(cloud, name)
}

#[track_caller]
fn image(cloud: &Cloud, name: &str) -> Value {
    let path = format!("/v1/projects/default/images/{}", name.replace('/', "%2F"));
    cloud.api("GET", &path, None).expect(200).json
}

fn digest(image: &Value) -> &str {
    image["spec"]["digest"].as_str().unwrap_or_default()
}

#[track_caller]
fn run(cloud: &Cloud, name: &str, image: &str, zone: &str, more: &[&str]) {
    let zone = format!("zone={zone}");
    let words = ["run", name, "--image", image, "--memory", "64Mi", "--require", &zone];
    cloud.enoki(&[&words[..], more, &["--", "sleep", "infinity"]].concat()).ok();
}

/// What the disk of an instance was made from.
#[track_caller]
fn word(cloud: &Cloud, name: &str) -> String {
    phase(cloud, name, "running");
    cloud.enoki(&["exec", name, "--", "cat", "/word"]).ok().text().to_owned()
}

/// An image as a host's Docker has it: id and names. None: it has none of that name.
fn on_host(machine: &Cloud, name: &str) -> Option<(String, Value)> {
    let out = machine.docker(&["image", "inspect", name]);
    let seen: Value = serde_json::from_str(&out.stdout).ok()?;
    Some((seen[0]["Id"].as_str()?.to_owned(), seen[0]["RepoTags"].clone()))
}

#[track_caller]
fn delete(cloud: &Cloud, name: &str) {
    cloud.enoki(&["delete", "instance", name]).ok();
}

fn run_on_both(lab: &Lab) {
    let cloud = &lab[0];
    cloud.import_tiny();
    let tiny = image(cloud, "enoki/tiny:1");
    for (name, zone, machine) in [("one", "a", &lab[0]), ("two", "b", &lab[1])] {
        run(cloud, name, "enoki/tiny:1", zone, &["--wait"]);
        let resolved = &instance(cloud, name)["spec"]["resolved"];
        assert_eq!(
            (&resolved["digest"], &resolved["image_id"]),
            (&tiny["spec"]["digest"], &tiny["spec"]["image_id"])
        );
        let (id, names) = on_host(machine, "enoki/tiny:1").expect("the image");
        assert_eq!(id, tiny["spec"]["image_id"]);
        // Exactly its name: nothing is left of the address that it came from.
        assert_eq!(names, json!(["enoki/tiny:1"]));
        let all = machine.docker(&["images", "--digests", "--all"]).ok();
        assert!(!all.stdout.contains("127.0.0.1"), "{all}");
    }
    // Nobody but root asks the registry itself.
    let ask = "curl -sS --max-time 5 --unix-socket /run/enoki/registry.sock http://registry/v2/_catalog";
    cloud.sh(ask).ok();
    let stranger = cloud.sh(&format!("setpriv --reuid 65534 --regid 65534 --clear-groups {ask}"));
    assert_ne!(stranger.code(), 0, "{stranger}");
    // The same bytes again: the same image, and nothing is stored twice.
    let before = cloud.sh("du -sb /var/lib/enoki/registry").ok();
    cloud.import_tiny();
    assert_eq!(image(cloud, "enoki/tiny:1")["revision"], tiny["revision"]);
    assert_eq!(cloud.sh("du -sb /var/lib/enoki/registry").ok().stdout, before.stdout);
    assert_eq!(cloud.sh("ls -A /var/lib/enoki/uploads").ok().text(), "");
}

/// Asks the first machine's server as the second machine, with that machine's own certificate.
fn as_h2(lab: &Lab, method: &str, path: &str) -> String {
    let server = address(1);
    let script = format!(
        "curl -sS --max-time 5 -o /run/answer -w '%{{http_code}} ' -X {method} --cert /etc/enoki/host/host.pem \
         --cacert /etc/enoki/host/ca.crt https://{server}:7443{path}; head -c 2000 /run/answer"
    );
    lab[1].sh(&script).ok().text().to_owned()
}

fn path_of(image: &Value, part: &str, digest: &str) -> String {
    let hex = self::digest(image).trim_start_matches("sha256:");
    format!("/v2/images/{hex}/{part}/{digest}")
}

fn only_what_it_needs(lab: &Lab) {
    let cloud = &lab[0];
    let (own, other) = (image(cloud, "enoki/tiny:1"), import(cloud, "other:1", "other"));
    let other_id = other["spec"]["image_id"].as_str().unwrap_or_default();
    let manifest = path_of(&other, "manifests", digest(&other));
    let blob = path_of(&other, "blobs", other_id);
    let control = as_h2(lab, "GET", &path_of(&own, "manifests", digest(&own)));
    assert!(control.starts_with("200 "), "{control}");
    for path in [&manifest, &blob] {
        let answer = as_h2(lab, "GET", path);
        assert!(answer.starts_with("403 ") && answer.contains("DENIED"), "{path}: {answer}");
    }
    // Through what it may read it gets at nothing else.
    let (through, stray) = (path_of(&own, "blobs", other_id), path_of(&own, "manifests", digest(&other)));
    for path in [through.as_str(), &stray, "/v2/images/x/blobs/y"] {
        let answer = as_h2(lab, "GET", path);
        assert!(answer.starts_with("404 "), "{path}: {answer}");
    }
    for (method, path) in [("PUT", manifest.as_str()), ("DELETE", &manifest), ("POST", &blob)] {
        let answer = as_h2(lab, method, path);
        assert!(answer.starts_with("405"), "{method} {path}: {answer}");
    }
    let listed = as_h2(lab, "GET", "/v2/_catalog");
    assert!(listed.starts_with("40"), "{listed}");
    let audit = cloud.sh("grep 'pull an image' /var/lib/enoki/audit.log").ok();
    assert!(audit.stdout.contains("host h2") && audit.stdout.contains(digest(&other)), "{audit}");
    // On the other host it changes nothing for this one; here it does, for as long as there is need.
    run(cloud, "theirs", "other:1", "a", &["--wait"]);
    assert!(as_h2(lab, "GET", &manifest).starts_with("403 "));
    run(cloud, "mine", "other:1", "b", &["--wait"]);
    for path in [&manifest, &blob] {
        let answer = as_h2(lab, "GET", path);
        assert!(answer.starts_with("200 "), "{path}: {answer}");
    }
    for name in ["theirs", "mine"] {
        delete(cloud, name);
    }
    eventually("its right ends with its need", SOON, || {
        let answer = as_h2(lab, "GET", &manifest);
        if answer.starts_with("403 ") { Ok(()) } else { Err(answer) }
    });
}

/// What runs stays what it is, also through a restart and a prune; what is new gets the new.
fn a_name_moves(lab: &Lab) {
    let cloud = &lab[0];
    let first = import(cloud, "moves:1", "first");
    run(cloud, "early", "moves:1", "b", &["--wait"]);
    // Stopped before it ever ran: its host has not seen the image yet.
    let unborn = json!({"name": "unborn", "spec": {"image": "moves:1", "state": "stopped",
        "command": ["sleep", "infinity"], "placement": {"require": ["zone=a"]}}});
    cloud.api("POST", "/v1/projects/default/instances", Some(&unborn)).expect(201);
    let second = import(cloud, "moves:1", "second");
    assert_ne!(digest(&first), digest(&second));
    assert_eq!(word(cloud, "early"), "first");
    cloud.enoki(&["restart", "early"]).ok();
    assert_eq!(word(cloud, "early"), "first");
    cloud.enoki(&["start", "unborn"]).ok();
    assert_eq!(word(cloud, "unborn"), "first", "resolved when it was made");
    run(cloud, "late", "moves:1", "b", &["--wait"]);
    assert_eq!(word(cloud, "late"), "second");
    // The old image has no name on the host any more, and goes with the first prune: it comes back by its digest.
    cloud.enoki(&["stop", "early"]).ok();
    lab[1].sh("docker rm -f $(docker ps -aqf name=early); docker image prune -af").ok();
    let id = first["spec"]["image_id"].as_str().unwrap_or_default();
    assert_eq!(on_host(&lab[1], id), None, "the control: it is gone");
    cloud.enoki(&["start", "early"]).ok();
    assert_eq!(word(cloud, "early"), "first");
    let (named, _) = on_host(&lab[1], "moves:1").expect("the name");
    assert_eq!(named, second["spec"]["image_id"], "the old one does not take the name back");
    cloud.enoki(&["rebuild", "early", "--image", "moves:1", "--yes"]).ok();
    assert_eq!(word(cloud, "early"), "second");
}

fn pulled_beforehand(lab: &Lab) {
    let cloud = &lab[0];
    let ahead = import(cloud, "ahead:1", "ahead");
    cloud.enoki(&["image", "pull", "ahead:1", "--require", "zone=b"]).ok();
    let told = |hosts: &[&str]| {
        eventually(&format!("it is on {hosts:?}"), SOON, || {
            let seen = image(cloud, "ahead:1");
            if seen["status"]["hosts"] == json!(hosts) { Ok(()) } else { Err(seen.to_string()) }
        });
    };
    told(&["h2"]);
    assert_eq!(on_host(&lab[1], "ahead:1").map(|(id, _)| id).as_deref(), ahead["spec"]["image_id"].as_str());
    assert_eq!(on_host(&lab[0], "ahead:1"), None);
    // A host that gets the label later gets the image.
    cloud.enoki(&["label", "host", "h1", "zone=b"]).ok();
    told(&["h1", "h2"]);
    cloud.enoki(&["label", "host", "h1", "zone=a"]).ok();
    told(&["h2"]);
    // So it does after a re-import, which keeps the wish.
    let newer = import(cloud, "ahead:1", "newer");
    eventually("the newer one", SOON, || {
        let (id, _) = on_host(&lab[1], "ahead:1").ok_or("none")?;
        if newer["spec"]["image_id"] == *id { Ok(()) } else { Err("the older one") }
    });
    cloud.enoki(&["image", "pull", "ahead:1", "--none"]).ok();
    told(&[]);
}

fn registry_away(lab: &Lab) {
    let cloud = &lab[0];
    import(cloud, "far:1", "far");
    let runs = Running::start(cloud, "runs", &["--require", "zone=b"], COUNTER);
    let supervisor = cloud.kill("supervisor", Signal::SIGSTOP);
    cloud.kill("docker-registry", Signal::SIGKILL);
    // What a host has starts, and what runs goes on.
    run(cloud, "here", "enoki/tiny:1", "b", &["--wait"]);
    run(cloud, "waits", "far:1", "b", &[]);
    let why = |words: &'static [&'static str]| {
        eventually("the reason", SOON, || {
            let seen = instance(cloud, "waits")["status"].clone();
            let message = seen["message"].as_str().unwrap_or_default();
            let told = seen["reason"] == "image_missing" && words.iter().all(|word| message.contains(word));
            if told { Ok(()) } else { Err(seen.to_string()) }
        });
    };
    why(&["far:1", "the registry does not answer"]);
    let refused = cloud.enoki(&["image", "import", "never:1", "/run/far.tar"]).exits(1);
    assert!(refused.stderr.contains("the registry does not answer"), "{refused}");
    cloud.api("GET", "/v1/projects/default/images/never:1", None).expect(404);
    kill(Pid::from_raw(supervisor), Signal::SIGCONT).expect("the supervisor is there");
    assert_eq!(word(cloud, "waits"), "far");
    delete(cloud, "waits");

    // One that takes connections and says nothing.
    lab[1].docker(&["image", "rm", "-f", "far:1"]).ok();
    let hung = cloud.kill("docker-registry", Signal::SIGSTOP);
    run(cloud, "waits", "far:1", "b", &[]);
    why(&["far:1", "no answer within"]);
    kill(Pid::from_raw(hung), Signal::SIGCONT).expect("the registry is there");
    assert_eq!(word(cloud, "waits"), "far");
    runs.unchanged(cloud);
    well(cloud, "runs");
    for name in ["waits", "here", "runs"] {
        delete(cloud, name);
    }
}

/// A layer on the registry's disk that is not what it was: refused by whoever pulls it, mended by an import.
fn damaged_layer(lab: &Lab) {
    let cloud = &lab[0];
    let image = import(cloud, "torn:1", "torn");
    let sum = image["spec"]["source"].as_str().unwrap_or_default();
    let data = format!("/var/lib/enoki/registry/docker/registry/v2/blobs/sha256/{}/{sum}/data", &sum[..2]);
    cloud.sh(&format!("printf X | dd of={data} bs=1 seek=70000 conv=notrunc status=none")).ok();
    run(cloud, "torn", "torn:1", "b", &[]);
    eventually("the refusal", SOON, || {
        let seen = instance(cloud, "torn")["status"].clone();
        let message = seen["message"].as_str().unwrap_or_default().to_lowercase();
        if seen["reason"] == "image_missing" && message.contains("verif") {
            Ok(())
        } else {
            Err(seen.to_string())
        }
    });
    assert_eq!(on_host(&lab[1], "torn:1"), None);
    cloud.enoki(&["image", "import", "torn:1", "/run/torn.tar"]).ok();
    assert_eq!(word(cloud, "torn"), "torn");
    delete(cloud, "torn");
}

fn freed(lab: &Lab) {
    let cloud = &lab[0];
    let kept = |image: &Value| {
        let hex = digest(image).trim_start_matches("sha256:").to_owned();
        let folder = "/var/lib/enoki/registry/docker/registry/v2";
        let layer = image["spec"]["source"].as_str().unwrap_or_default();
        let out = cloud.sh(&format!(
            "ls -d {folder}/repositories/images/{hex} {folder}/blobs/sha256/*/{layer}/data 2>/dev/null | wc -l"
        ));
        out.text().to_owned()
    };
    let gone = |image: &Value| {
        eventually("it is freed", SOON, || match kept(image).as_str() {
            "0" => Ok(()),
            more => Err(more.to_owned()),
        });
    };
    // In use by name: refused.
    let first = import(cloud, "brief:1", "brief");
    run(cloud, "brief", "brief:1", "b", &["--wait"]);
    let refused = cloud.enoki(&["image", "delete", "brief:1"]).exits(1);
    assert!(refused.stderr.contains("default/brief"), "{refused}");
    // Its name moves on while an instance needs it: it stays, and goes with the instance and the name.
    import(cloud, "brief:1", "brief2");
    cloud.enoki(&["image", "import", "spare:1", "/run/brief.tar"]).ok();
    cloud.enoki(&["image", "delete", "spare:1"]).ok();
    assert_eq!(kept(&first), "2");
    cloud.enoki(&["stop", "brief"]).ok();
    cloud.enoki(&["start", "brief"]).ok();
    assert_eq!(word(cloud, "brief"), "brief");
    delete(cloud, "brief");
    let second = image(cloud, "brief:1");
    assert_eq!(kept(&second), "2");
    cloud.enoki(&["image", "delete", "brief:1"]).ok();
    gone(&second);
    gone(&first);
    // What others need is still whole.
    run(cloud, "after", "moves:1", "a", &["--wait"]);
    assert_eq!(word(cloud, "after"), "second");
}

fn no_image(lab: &Lab) {
    let cloud = &lab[0];
    let before = cloud.sh("find /var/lib/enoki/registry -type f | wc -l").ok();
    cloud.sh("head -c 1000000 /dev/urandom >/run/junk; head -c 500000 /run/far.tar >/run/half").ok();
    for (file, words) in [("/run/junk", "not a tar"), ("/run/half", "breaks off"), ("/dev/null", "empty")] {
        let refused = cloud.enoki(&["image", "import", "junk:1", file]).exits(1);
        assert!(refused.stderr.contains(words), "{file}: {refused}");
    }
    cloud.api("GET", "/v1/projects/default/images/junk:1", None).expect(404);
    assert_eq!(cloud.sh("find /var/lib/enoki/registry -type f | wc -l").ok().stdout, before.stdout);
    assert_eq!(cloud.sh("ls -A /var/lib/enoki/uploads").ok().text(), "");
}

/// Its archive lies as a file and its spec names no digest: the server takes it over.
fn older_version(lab: &Lab) {
    let cloud = &lab[0];
    let before = import(cloud, "old:1", "old");
    cloud
        .sh("set -a; . /etc/enoki/etcdctl.env\n\
             etcdctl get --print-value-only /enoki/v1/images/default/old:1 | jq -c 'del(.spec.digest) | .spec.archive = .spec.source' >/run/old.json\n\
             etcdctl put /enoki/v1/images/default/old:1 \"$(cat /run/old.json)\"\n\
             mkdir /var/lib/enoki/images; cp /run/old.tar /var/lib/enoki/images/0123.tar")
        .ok();
    assert_eq!(image(cloud, "old:1")["spec"]["digest"], "", "the control");
    run(cloud, "old", "old:1", "b", &[]);
    cloud.kill("server", Signal::SIGKILL);
    eventually("the next server", SOON, || {
        let out = cloud.enoki(&["get", "instance", "old"]);
        if out.stdout.contains("running") { Ok(()) } else { Err(out.to_string()) }
    });
    assert_eq!(word(cloud, "old"), "old");
    assert_eq!(digest(&image(cloud, "old:1")), digest(&before));
    eventually("the file is gone", SOON, || {
        let out = cloud.sh("test ! -e /var/lib/enoki/images");
        if out.code() == 0 { Ok(()) } else { Err(out.to_string()) }
    });
}
