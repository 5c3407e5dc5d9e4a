//! Operations on hosts of a real cloud of two: drain, its cancel and its way through servers that are killed; and what is
//! deleted by force while a host is lost.

#[path = "support/machines.rs"]
mod machines;

use enoki_harness::{Cloud, Lab, Signal, eventually, is_root, steps};
use machines::{COUNTER, Running, SOON, instance, phase, well};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// On h2, and deaf to a request to stop: each takes all of its grace.
const SLOW: &[&str] = &["d1", "d2", "d3", "d4", "d5", "d6"];

#[test]
fn a_host_is_drained() {
    if !is_root() {
        return;
    }
    let lab = lab(2);
    for name in SLOW {
        Running::start(&lab[0], name, &on("b", &["--stop-grace", "5s"]), &format!("trap '' TERM; {COUNTER}"));
    }
    steps(
        &lab,
        &[
            ("what cannot move blocks it", blocked),
            ("cancelled in the middle", cancelled),
            ("the server is killed in the middle", server_killed),
            ("another server takes over in the middle", another_leads),
            ("an empty host", nothing_there),
        ],
    );
}

#[test]
fn a_lost_host() {
    if !is_root() {
        return;
    }
    let lab = lab(1);
    lost_for_a_minute(&lab);
}

/// Two hosts, `zone=a` and `zone=b`, of which so many are servers too.
fn lab(servers: usize) -> Lab {
    let lab = Lab::start_with(2, servers);
    lab[0].import_tiny();
    for (host, zone) in [("h1", "zone=a"), ("h2", "zone=b")] {
        lab[0].enoki(&["label", "host", host, zone]).ok();
    }
    lab
}

fn on<'a>(zone: &str, flags: &[&'a str]) -> Vec<&'a str> {
    let rule = if zone == "a" { "zone=a" } else { "zone=b" };
    [flags, &["--require", rule]].concat()
}

fn operation(cloud: &Cloud, name: &str) -> Value {
    cloud.api("GET", &format!("/v1/operations/{name}"), None).expect(200).json
}

/// Waits for a phase and returns the operation.
#[track_caller]
fn ended(cloud: &Cloud, name: &str, phase: &str) -> Value {
    eventually(&format!("operation {name} {phase}"), SOON, || {
        // A server that was killed is away for a moment.
        let seen = cloud.enoki(&["get", "operation", name, "-o", "json"]);
        let json: Value = serde_json::from_str(&seen.stdout).unwrap_or_default();
        if json["status"]["phase"] == phase { Ok(json) } else { Err(seen.to_string()) }
    })
}

/// The instances that the journal has such lines for, in its order.
fn noted(operation: &Value, what: &str) -> Vec<String> {
    let journal = operation["status"]["journal"].as_array().cloned().unwrap_or_default();
    let lines = journal.iter().filter(|step| step["what"] == what);
    lines.map(|step| step["instance"].as_str().unwrap_or_default().to_owned()).collect()
}

fn cordoned(cloud: &Cloud, host: &str) -> bool {
    let seen = cloud.api("GET", &format!("/v1/hosts/{host}"), None).expect(200);
    seen.json["spec"]["cordoned"] == json!(true)
}

/// Begins a drain that stops, and waits until it has told some to.
fn begin(cloud: &Cloud) -> String {
    let begun = cloud.enoki(&["host", "drain", "h2", "--stop", "--no-wait", "-o", "name"]).ok();
    let name = begun.text().strip_prefix("operation/").expect("operation/NAME").to_owned();
    eventually("it has told some to stop", SOON, || {
        let seen = operation(cloud, &name);
        let told = noted(&seen, "stopping").len();
        assert!(told < SLOW.len(), "not all at once: {seen}");
        if told == 0 { Err(seen.to_string()) } else { Ok(()) }
    });
    name
}

fn blocked(lab: &Lab) {
    let cloud = &lab[0];
    let told = cloud.enoki(&["host", "drain", "h2"]).exits(1);
    for name in SLOW {
        assert!(told.stderr.contains(&format!("default/{name}: it runs")), "{told}");
    }
    assert!(told.stderr.contains("blocked") && told.stderr.contains("--stop"), "{told}");
    let listed = cloud.api("GET", "/v1/operations", None).expect(200).json;
    let found = &listed["items"][0];
    assert_eq!((&found["status"]["phase"], &found["spec"]["host"]), (&json!("blocked"), &json!("h2")));
    assert_eq!(noted(found, "cannot_move").len(), SLOW.len(), "{found}");
    assert!(cordoned(cloud, "h2"));
    let table = cloud.enoki(&["get", "operations"]).ok().stdout;
    assert!(table.contains("drain") && table.contains("blocked"), "{table}");
    let name = found["name"].as_str().expect("a name");
    let sheet = cloud.enoki(&["describe", "operation", name]).ok().stdout;
    assert!(sheet.contains("cannot_move") && sheet.contains("default/d6"), "{sheet}");
    // An ended one holds nothing: it is neither cancelled nor in the way.
    let refused = cloud.api("POST", &format!("/v1/operations/{name}/cancel"), None).expect(409);
    assert_eq!(refused.json["code"], "not_running");
    cloud.enoki(&["host", "uncordon", "h2"]).ok();
    cloud.enoki(&["delete", "operation", name]).ok();
    // A wait ends when it ends, whatever was waited for.
    let began = Instant::now();
    let wait = |phase: &str| format!("/v1/hosts/h2/drain?wait={phase}&timeout=60s");
    let reached = cloud.api("POST", &wait("blocked"), None).expect(200);
    let other = cloud.api("POST", &wait("succeeded"), None).expect(202);
    for answer in [&reached, &other] {
        assert_eq!(answer.json["status"]["phase"], "blocked", "{}", answer.body);
    }
    assert_ne!(reached.json["name"], other.json["name"], "the first had ended");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    cloud.enoki(&["host", "uncordon", "h2"]).ok();
    for name in SLOW {
        assert_eq!(instance(cloud, name)["status"]["phase"], "running", "{name}");
    }
}

fn cancelled(lab: &Lab) {
    let cloud = &lab[0];
    let running: Vec<Running> = SLOW.iter().map(|name| Running::of(cloud, name)).collect();
    let name = begin(cloud);
    // While it runs: the same again is the same one, another way is refused, and so is opening the host.
    let again = cloud.api("POST", "/v1/hosts/h2/drain", Some(&json!({"stop": true}))).expect(202);
    assert_eq!(again.json["name"], json!(name));
    let other = cloud.api("POST", "/v1/hosts/h2/drain", Some(&json!({"stop": false}))).expect(409);
    assert_eq!(other.json["holder"], json!(format!("operation {name}")));
    let told = cloud.enoki(&["host", "uncordon", "h2"]).exits(1);
    assert!(told.stderr.contains(&format!("enoki operation cancel {name}")), "{told}");
    cloud.api("DELETE", &format!("/v1/operations/{name}"), None).expect(409);

    cloud.enoki(&["operation", "cancel", &name]).ok();
    let seen = operation(cloud, &name);
    assert_eq!(seen["status"]["phase"], "cancelled", "{seen}");
    let told = noted(&seen, "stopping");
    assert!(!told.is_empty() && told.len() < SLOW.len(), "in the middle: {seen}");
    let message = seen["status"]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("stays cordoned") && told.iter().all(|name| message.contains(name)),
        "{message}"
    );
    assert!(cordoned(cloud, "h2"));
    for before in &running {
        if told.contains(&format!("default/{}", before.name)) {
            phase(cloud, &before.name, "stopped");
        } else {
            before.unchanged(cloud);
        }
    }
    cloud.enoki(&["host", "uncordon", "h2"]).ok();
    for name in told.iter().filter_map(|name| name.strip_prefix("default/")) {
        cloud.enoki(&["start", name]).ok();
    }
}

fn server_killed(lab: &Lab) {
    let cloud = &lab[0];
    let counted: Vec<(Running, u64)> = SLOW
        .iter()
        .map(|name| Running::of(cloud, name))
        .map(|now| {
            let count = now.count();
            (now, count)
        })
        .collect();
    let name = begin(cloud);
    lab[leader(cloud)].kill("server", Signal::SIGKILL);
    whole(cloud, &name);
    // They stay so until their user starts them, and go on from what is on their disks.
    cloud.enoki(&["host", "uncordon", "h2"]).ok();
    for (before, count) in &counted {
        assert_eq!(instance(cloud, &before.name)["status"]["phase"], "stopped");
        cloud.enoki(&["start", &before.name]).ok();
        assert!(Running::of(cloud, &before.name).count() >= *count, "{} began anew", before.name);
    }
}

/// The machine whose server leads.
fn leader(cloud: &Cloud) -> usize {
    let seen = cloud.api("GET", "/v1/servers", None).expect(200).json;
    let items = seen["items"].as_array().cloned().unwrap_or_default();
    let leads = items.iter().find(|server| server["leader"] == true).expect("one leads");
    if leads["name"] == "h1" { 0 } else { 1 }
}

/// Waits for the end of a drain that has stopped all, each once.
fn whole(cloud: &Cloud, name: &str) {
    let seen = ended(cloud, name, "succeeded");
    let all: Vec<String> = SLOW.iter().map(|name| format!("default/{name}")).collect();
    assert_eq!(noted(&seen, "stopping"), all, "each once: {seen}");
    assert_eq!(noted(&seen, "stopped").len(), SLOW.len(), "{seen}");
    assert_eq!(seen["status"]["progress"], json!({"done": SLOW.len(), "total": SLOW.len()}));
    assert!(cordoned(cloud, "h2"));
    for name in SLOW {
        let seen = instance(cloud, name);
        let (state, phase) = (&seen["spec"]["state"], &seen["status"]["phase"]);
        assert_eq!((state, phase), (&json!("stopped"), &json!("stopped")), "{name}");
    }
}

/// The leader is killed and stays away: the other goes on where the journal ends.
fn another_leads(lab: &Lab) {
    let gone = leader(&lab[0]);
    let cloud = &lab[1 - gone];
    let name = begin(cloud);
    // What would start it again.
    lab[gone].kill("supervisor", Signal::SIGKILL);
    lab[gone].kill("server", Signal::SIGKILL);
    whole(cloud, &name);
    assert_eq!(leader(cloud), 1 - gone);
    lab[gone].up();
    cloud.enoki(&["host", "uncordon", "h2"]).ok();
}

fn nothing_there(lab: &Lab) {
    let cloud = &lab[0];
    cloud.enoki(&["delete", "instance", "--force"].iter().chain(SLOW).copied().collect::<Vec<_>>()).ok();
    let done = cloud.enoki(&["host", "drain", "h2"]).ok();
    assert!(done.stdout.contains("succeeded"), "{done}");
    // What comes now goes elsewhere, or waits with the reason.
    let waits = cloud.enoki(&["run", "later", "--image", "enoki/tiny:1", "--require", "zone=b"]).ok();
    eventually("it is told why it waits", SOON, || {
        let seen = instance(cloud, "later");
        let message = seen["status"]["message"].as_str().unwrap_or_default().to_owned();
        if message.contains("h2 is cordoned") { Ok(()) } else { Err(format!("{waits} {seen}")) }
    });
    cloud.enoki(&["host", "uncordon", "h2"]).ok();
    phase(cloud, "later", "running");
    let refused = cloud.api("POST", "/v1/hosts/nobody/drain", None).expect(404);
    assert_eq!(refused.json["code"], "not_found");
}

/// A minute without its agent: one instance and a volume are ordered away meanwhile, the others never notice.
fn lost_for_a_minute(lab: &Lab) {
    let cloud = &lab[0];
    cloud.enoki(&["volume", "create", "data"]).ok();
    let doomed = Running::start(cloud, "doomed", &on("b", &["--volume", "data:/data"]), COUNTER);
    let stays = Running::start(cloud, "stays", &on("b", &[]), COUNTER);
    let near = Running::start(cloud, "near", &on("a", &[]), COUNTER);
    let seen = instance(cloud, "doomed");
    let address = seen["status"]["nics"]["eth0"]["address"].as_str().expect("an address").to_owned();
    let container = seen["status"]["container_id"].as_str().expect("a container").to_owned();
    let volume = cloud.api("GET", "/v1/projects/default/volumes/data", None).expect(200).json["uid"].clone();
    let volume = lab[1].path(&format!("/var/lib/enoki/volumes/{}", volume.as_str().expect("a uid")));
    assert!(volume.is_dir(), "{}", volume.display());
    let disk = disk_of(&lab[1], &doomed.uid);
    assert!(lab[1].path(&disk).is_dir(), "{disk}");

    // Nothing is done past a host that answers.
    let by_force = "/v1/projects/default/instances/doomed?force=true";
    let refused = cloud.api("DELETE", by_force, None).expect(409);
    assert_eq!((&refused.json["code"], &refused.json["holder"]), (&json!("host_reachable"), &json!("h2")));

    let supervisor = lab[1].kill("supervisor", Signal::SIGSTOP);
    lab[1].kill("agent", Signal::SIGKILL);
    let away = Instant::now();
    for wanted in ["unknown", "lost"] {
        eventually(&format!("h2 is {wanted}"), SOON, || {
            let seen = cloud.api("GET", "/v1/hosts/h2", None);
            if seen.json["status"]["phase"] == wanted { Ok(()) } else { Err(seen.body) }
        });
    }
    phase(cloud, "stays", "unknown");

    // An ordinary deletion waits for the host; force does not.
    cloud.enoki(&["delete", "instance", "doomed", "--no-wait"]).ok();
    assert_eq!(instance(cloud, "doomed")["status"]["phase"], "deleting");
    cloud.enoki(&["delete", "instance", "doomed", "--force"]).ok();
    cloud.api("GET", "/v1/projects/default/instances/doomed", None).expect(404);
    cloud.enoki(&["delete", "volume", "data", "--force"]).ok();
    cloud.api("GET", "/v1/projects/default/volumes/data", None).expect(404);
    doomed.goes_on();
    let told = cloud.enoki(&["delete", "host", "h2"]).exits(1);
    assert!(told.stderr.contains("instance default/stays") && told.stderr.contains("--force"), "{told}");

    // Its container still has its address: nobody gets it by chance, and who names it does.
    let lowest = Running::start(cloud, "lowest", &on("a", &[]), COUNTER);
    let given = |name: &str| instance(cloud, name)["status"]["nics"]["eth0"]["address"].clone();
    assert_ne!(given("lowest"), json!(address));
    Running::start(cloud, "doomed", &on("a", &["--address", &address]), COUNTER);
    assert_eq!(given("doomed"), json!(address));
    lowest.goes_on();

    // A drain of a host that does not answer waits for it, and tells nobody anything.
    let drain = cloud.api("POST", "/v1/hosts/h2/drain", Some(&json!({"stop": true}))).expect(202).json;
    let drain = drain["name"].as_str().expect("a name");
    eventually("the drain waits", SOON, || {
        let seen = operation(cloud, drain);
        if seen["status"]["reason"] == "host_silent" { Ok(()) } else { Err(seen.to_string()) }
    });
    assert_eq!(instance(cloud, "stays")["spec"]["state"], "running");
    cloud.enoki(&["operation", "cancel", drain]).ok();
    cloud.enoki(&["host", "uncordon", "h2"]).ok();

    while away.elapsed() < Duration::from_secs(60) {
        stays.goes_on();
        sleep(Duration::from_secs(2));
    }
    near.unchanged(cloud);
    kill(Pid::from_raw(supervisor), Signal::SIGCONT).expect("the supervisor is there");
    lab.ready(2);
    eventually("its tombstone has removed it", SOON, || {
        let containers = lab[1].docker(&["ps", "-aq", "--no-trunc"]).ok().stdout;
        let there = [
            (containers.contains(&container), "its container"),
            (lab[1].path(&disk).exists(), "its disk"),
            (volume.exists(), "the volume"),
            (Path::new(&format!("/proc/{}", doomed.pid)).exists(), "its process"),
        ];
        let left: Vec<_> = there.iter().filter(|(there, _)| *there).map(|(_, what)| *what).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    });
    stays.unchanged(cloud);
    well(cloud, "stays");
    let orphans = cloud.api("GET", "/v1/hosts/h2/orphans", None).expect(200).json;
    assert_eq!(orphans["items"], json!([]), "what was ordered away is no orphan");
    Running::of(cloud, "doomed").goes_on();
    // And all is as ever: the host takes instances.
    Running::start(cloud, "after", &on("b", &[]), COUNTER);
}

/// The folder of an instance's root disk on its host.
fn disk_of(host: &Cloud, uid: &str) -> String {
    let found = host.sh(&format!("jq -r .order.disk /var/lib/enoki/ledger/{uid}.json")).ok();
    format!("/var/lib/enoki/disks/{}", found.text())
}
