//! Two servers over one etcd and hundreds of hosts: leaders are killed and stopped while thousands of instances are made, and
//! somebody who reads etcd alone checks what is true.

#[path = "support/hollow.rs"]
mod hollow;
#[path = "support/within.rs"]
mod within;

use enoki_harness::{Cloud, Lab, Signal, address, eventually, is_root};
use hollow::{CAPACITY, Hollow, IMAGE};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How much of it: a part, or with `ENOKI_FULL=1` the whole.
struct Size {
    hosts: usize,
    instances: usize,
    kills: usize,
    stops: usize,
}

const PART: Size = Size { hosts: 100, instances: 600, kills: 3, stops: 1 };
const WHOLE: Size = Size { hosts: 500, instances: 5000, kills: 10, stops: 2 };

/// Twice a leader's lease.
const STOPPED: Duration = Duration::from_secs(4);
/// A user turns to the other server after this.
const PATIENCE: Duration = Duration::from_secs(1);
/// Users who write at once.
const WRITERS: usize = 8;
/// All of it is done by then.
const DONE: Duration = Duration::from_secs(600);

/// The two servers, and what was acknowledged.
struct Site<'a> {
    size: Size,
    servers: [&'a Cloud; 2],
    acknowledged: Mutex<BTreeMap<String, String>>,
    next: AtomicUsize,
    /// As many may be made for now, so that there is something to write after each blow.
    allowed: AtomicUsize,
    last_written: Mutex<Instant>,
    stop: AtomicBool,
}

#[test]
fn leaders_die_while_thousands_are_placed() {
    if !is_root() {
        return;
    }
    let size = if std::env::var_os("ENOKI_FULL").is_some() { WHOLE } else { PART };
    let lab = Lab::start_with(2, 2);
    for host in ["h1", "h2"] {
        lab[0].enoki(&["host", "cordon", host]).ok();
    }
    lab[0].enoki(&["network", "create", "wide", "--type", "local", "--cidr", "198.18.128.0/18"]).ok();
    let token = lab[0].enoki(&["host", "join-token"]).ok().text().to_owned();
    let servers = [1, 2].map(|number| format!("https://{}:7443", address(number)));
    let began = Instant::now();
    let hollow = Hollow::join(&lab[0], &servers, &token, size.hosts).expect("simulated hosts");
    lab.ready(size.hosts + 2);
    eprintln!("{} hosts are ready after {:.1?}", size.hosts, began.elapsed());

    let site = Site {
        size,
        servers: [&lab[0], &lab[1]],
        acknowledged: Mutex::default(),
        next: AtomicUsize::new(0),
        allowed: AtomicUsize::new(0),
        last_written: Mutex::new(Instant::now()),
        stop: AtomicBool::new(false),
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn({
                let site = &site;
                move || write(site, writer)
            });
        }
        disturb(&site);
    });
    let wanted = site.size.instances;
    assert_eq!(site.acknowledged.lock().unwrap().len(), wanted);
    eprintln!("{wanted} instances are acknowledged after {:.1?}", began.elapsed());
    let end = Instant::now() + DONE;
    loop {
        let truth = Truth::read(&lab[0]);
        truth.check();
        if truth.assigned.len() == wanted && truth.running == wanted {
            truth.check_whole(&site.acknowledged.lock().unwrap());
            break;
        }
        let (placed, running) = (truth.assigned.len(), truth.running);
        assert!(Instant::now() < end, "{placed} are placed and {running} run of {wanted}");
        std::thread::sleep(Duration::from_secs(1));
    }
    eprintln!("all of them run after {:.1?}", began.elapsed());
    drop(hollow);
}

/// Makes instances until there are enough, at either server; one that does not answer is asked again, as a user would.
fn write(site: &Site<'_>, writer: usize) {
    let mut server = writer % 2;
    loop {
        let number = site.next.fetch_add(1, Ordering::Relaxed);
        if number >= site.size.instances || site.stop.load(Ordering::Relaxed) {
            return;
        }
        while number >= site.allowed.load(Ordering::Relaxed) && !site.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let name = format!("i{number}");
        let body = json!({"name": name, "spec": {
            "image": IMAGE, "memory": "100Mi", "nics": {"eth0": {"network": "wide"}},
        }});
        let body = body.to_string();
        loop {
            let headers = [("idempotency-key", name.as_str())];
            let path = "/v1/projects/default/instances";
            let answer =
                site.servers[server].try_api("POST", path, &headers, Some(body.as_bytes()), PATIENCE);
            match answer {
                // The second is what was written before its answer was lost.
                Ok(answer) if [201, 409].contains(&answer.status) => {
                    let uid = answer.json["uid"].as_str().or(answer.json["holder"].as_str());
                    let uid = uid.unwrap_or_else(|| panic!("{}", answer.body)).to_owned();
                    site.acknowledged.lock().unwrap().insert(name, uid);
                    *site.last_written.lock().unwrap() = Instant::now();
                    break;
                }
                Ok(answer) if answer.status < 500 => {
                    site.stop.store(true, Ordering::Relaxed);
                    panic!("{}", answer.body);
                }
                Ok(_) | Err(_) => {
                    server = 1 - server;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
}

/// Kills the leader, and stops it for longer than its lease, as long as there is something to write.
fn disturb(site: &Site<'_>) {
    let Size { instances, kills, stops, .. } = site.size;
    let mut worst = Duration::ZERO;
    let share = instances / (kills + stops + 1);
    site.allowed.store(share, Ordering::Relaxed);
    for turn in 0..kills + stops {
        let wanted = (turn + 1) * share;
        eventually(&format!("{wanted} instances"), DONE, || {
            let have = site.acknowledged.lock().unwrap().len();
            assert!(!site.stop.load(Ordering::Relaxed), "a writer has failed");
            if have >= wanted { Ok(()) } else { Err(have) }
        });
        // One at a time: a server that was killed is started again after a while, longer each time.
        eventually("both servers answer", Duration::from_secs(120), || {
            let ready = |server: &&Cloud| {
                server.try_api("GET", "/readyz", &[], None, PATIENCE).is_ok_and(|ok| ok.status == 200)
            };
            if site.servers.iter().all(ready) { Ok(()) } else { Err("not yet") }
        });
        let (leader, term) = eventually("a leader", Duration::from_secs(30), || leader(site).ok_or("none"));
        let every = (kills + stops) / stops;
        let stops = turn % every == every - 1;
        let last = turn + 1 == site.size.kills + site.size.stops;
        let more = if last { instances } else { wanted + share };
        site.allowed.store(more, Ordering::Relaxed);
        let hit = Instant::now();
        let signal = if stops { Signal::SIGSTOP } else { Signal::SIGKILL };
        let pid = site.servers[leader].kill("server", signal);
        let until_written = eventually("a write after it", Duration::from_secs(60), || {
            let last = *site.last_written.lock().unwrap();
            last.checked_duration_since(hit).filter(|after| !after.is_zero()).ok_or("none")
        });
        let until_led = eventually("another leads", Duration::from_secs(60), || {
            self::leader(site).filter(|(_, now)| *now != term).map(|_| hit.elapsed()).ok_or("nobody")
        });
        if stops {
            std::thread::sleep(STOPPED);
            kill(Pid::from_raw(pid), Signal::SIGCONT).expect("it was stopped, not killed");
        }
        worst = worst.max(until_written);
        eprintln!(
            "turn {}: h{} {}, first write after {until_written:.2?}, a leader after {until_led:.2?}",
            turn + 1,
            leader + 1,
            if stops { "stopped" } else { "killed" },
        );
        Truth::read(site.servers[0]).check();
    }
    eprintln!("the longest time without an acknowledged write: {worst:.2?}");
}

/// Which of the two leads, and since which revision, as the store says.
fn leader(site: &Site<'_>) -> Option<(usize, u64)> {
    let told: Value =
        serde_json::from_str(&etcd(site.servers[0], "get -w json /enoki/v1/elections/leader")).ok()?;
    let name: Value = serde_json::from_str(
        etcd(site.servers[0], "get --print-value-only /enoki/v1/elections/leader").trim(),
    )
    .ok()?;
    let place = ["h1", "h2"].iter().position(|server| name["name"] == *server)?;
    Some((place, told["kvs"][0]["create_revision"].as_u64()?))
}

fn etcd(cloud: &Cloud, words: &str) -> String {
    let script = format!("set -a; . /etc/enoki/etcdctl.env; etcdctl {words}");
    cloud.run_for(&["sh", "-euc", &script], Duration::from_secs(60)).ok().stdout
}

/// What etcd holds.
#[derive(Default)]
struct Truth {
    /// Name to uid.
    instances: BTreeMap<String, String>,
    /// Name to assignment.
    assigned: BTreeMap<String, Value>,
    /// Address to uid.
    addresses: BTreeMap<String, String>,
    running: usize,
}

impl Truth {
    /// Everything, at one revision.
    fn read(cloud: &Cloud) -> Self {
        let text = etcd(cloud, "get --prefix /enoki/v1/");
        let mut truth = Truth::default();
        let mut lines = text.lines();
        while let (Some(key), Some(value)) = (lines.next(), lines.next()) {
            let parts: Vec<&str> = key.trim_start_matches("/enoki/v1/").split('/').collect();
            let value =
                || serde_json::from_str::<Value>(value).unwrap_or_else(|error| panic!("{key}: {error}"));
            let uid = |value: &Value| value["uid"].as_str().unwrap_or_default().to_owned();
            match parts.as_slice() {
                ["instances", _, name] => drop(truth.instances.insert((*name).to_owned(), uid(&value()))),
                ["assignments", _, name] => drop(truth.assigned.insert((*name).to_owned(), value())),
                ["addresses", _, "wide", address] => {
                    truth.addresses.insert((*address).to_owned(), uid(&value()));
                }
                ["status", "instances", _, _] => {
                    truth.running += usize::from(value()["phase"] == "running");
                }
                _ => {}
            }
        }
        truth
    }

    /// What holds at every moment: one binding of each, one address of each and nobody else's, no host over its capacity.
    fn check(&self) {
        let mut granted = BTreeMap::<&str, u64>::new();
        for (name, assignment) in &self.assigned {
            assert_eq!(assignment["uid"].as_str(), self.instances.get(name).map(String::as_str), "{name}");
            assert_eq!(assignment["epoch"], 1, "{name} was placed twice");
            *granted.entry(assignment["host"].as_str().unwrap_or_default()).or_default() += 100 << 20;
            let address = assignment["nics"]["eth0"]["address"].as_str().unwrap_or_default();
            assert_eq!(self.addresses.get(address), self.instances.get(name), "{name} has {address}");
        }
        for (host, memory) in granted {
            assert!(memory <= CAPACITY.memory.0, "{host} has given {memory} bytes");
        }
        let holders: BTreeSet<&String> = self.addresses.values().collect();
        assert_eq!(holders.len(), self.addresses.len(), "an instance has two addresses");
        assert_eq!(self.addresses.len(), self.assigned.len(), "an address is nobody's");
    }

    /// In the end: nothing that was acknowledged is missing or another, and nothing is there that was not.
    fn check_whole(&self, acknowledged: &BTreeMap<String, String>) {
        assert_eq!(&self.instances, acknowledged);
    }
}
