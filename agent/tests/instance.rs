//! The agent's loop over a simulated Docker and host: killed at every step and started again, orphans, a daemon that
//! goes away, and a server on a unix socket that it reports to and streams with.

mod instance_fuse;

use enoki_agent::agent::{AgentConfig, Parts, run_with};
use enoki_agent::image::mirror::{Mirror, Source};
use enoki_agent::instance::Host;
use enoki_agent::instance::fleet::Fleet;
use enoki_agent::instance::machine::Machine;
use enoki_agent::instance::observed::Disk;
use enoki_agent::instance::samples::{changed, order};
use enoki_agent::instance::simulated::Simulated as Ground;
use enoki_agent::ledger::Ledger;
use enoki_agent::runtime::simulated::{Call, Daemon, Simulated as Docker};
use enoki_agent::runtime::{Container, ImageInfo, Runtime, State};
use enoki_agent::session::outbox::Outbox;
use enoki_agent::session::socket::Dialer;
use enoki_api::file::FileRef;
use enoki_api::host::Capacity;
use enoki_api::instance::{Doomed, Phase, RestartPolicy, RunState, Tombstone};
use enoki_api::object::{Object, Uid};
use enoki_api::protocol::{
    Channel, Exit, FromAgent, FromServer, Order, Orphan, Overlay, Report, StreamRequest,
};
use futures::{SinkExt, StreamExt};
use instance_fuse::{Fuse, Mortal};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(10);

/// What outlives an agent.
struct Site {
    docker: Docker,
    ground: Ground,
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let docker = Docker::default();
        docker.add_image("tiny", ImageInfo { id: "sha256:1".to_owned(), ..ImageInfo::default() });
        Site { docker, ground: Ground::new("boot1", dir.path().join("state")), dir }
    }

    fn ledger(&self) -> std::path::PathBuf {
        self.dir.path().join("ledger")
    }
}

fn tombstone(uid: &Uid, what: Doomed) -> Tombstone {
    Tombstone {
        uid: uid.clone(),
        what,
        name: "default/web1".to_owned(),
        host: Some("node1".to_owned()),
        created_at: "2026-11-22T10:00:00Z".parse().unwrap(),
        buried_at: None,
    }
}

/// One life of an agent without a server: its own threads, so that it can be killed like a process.
struct Life {
    tokio: Option<tokio::runtime::Runtime>,
    fleet: Fleet,
    outbox: Outbox,
}

impl Life {
    fn new(site: &Site, runtime: Arc<dyn Runtime>, machine: Arc<dyn Machine>) -> Self {
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let outbox = Outbox::default();
        let (up, docker) = watch::channel(true);
        let ledger = Arc::new(Ledger::load(&site.ledger()).unwrap());
        let source: Arc<dyn Source> = Arc::new(Mirror::new(Dialer::unix("/nowhere")));
        let host = Arc::new(Host::new(runtime, machine, source, ledger, outbox.clone(), docker));
        let fleet = Fleet::new(host, "node1", CancellationToken::new());
        let running = fleet.clone();
        tokio.spawn(async move {
            running.run().await;
            drop(up);
        });
        Life { tokio: Some(tokio), fleet, outbox }
    }

    fn plain(site: &Site) -> Self {
        Life::new(site, Arc::new(site.docker.clone()), Arc::new(site.ground.clone()))
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.tokio.as_ref().unwrap().block_on(future)
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let until = Instant::now() + SOON;
        while !done() {
            assert!(Instant::now() < until, "not in time: {what}; reports: {:?}", self.outbox.reports());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn phase(&self, uid: &Uid) -> Option<Phase> {
        self.outbox.last(uid).map(|report| report.phase)
    }

    fn containers(&self, site: &Site) -> Vec<Container> {
        self.run(site.docker.list()).unwrap()
    }

    /// kill -9, except that a write to the disk that has begun ends before the next life reads it.
    fn kill(mut self) {
        self.tokio.take().unwrap().shutdown_timeout(SOON);
    }
}

/// What a server says, one message after the other, and what must be true once it is done.
struct Story {
    name: &'static str,
    words: Vec<(Vec<Order>, Vec<Tombstone>)>,
    /// Of the last order; None: nothing is left.
    end: Option<RunState>,
    /// One word follows the other without a wait.
    hurry: bool,
}

/// An order that names an uploaded file.
fn with_files(name: &str) -> Order {
    let file = FileRef { digest: format!("sha256:{}", "ab".repeat(32)), size: 1 };
    let mut order = order(name);
    order.instance.spec.files.insert("job.py".to_owned(), file);
    order
}

fn stories() -> Vec<Story> {
    let first = order("web1");
    let say = |order: &Order| (vec![order.clone()], vec![]);
    let restarted = changed(&first, |spec| spec.restart_count = 1);
    let mut renewed = restarted.clone();
    renewed.env.insert("A".to_owned(), "1".to_owned());
    let stopped = changed(&first, |spec| spec.state = RunState::Stopped);
    let rebuilt = changed(&first, |spec| spec.rebuild_count = 1);
    let old_disk = tombstone(&first.disk, Doomed::Disk);
    let gone = tombstone(first.uid(), Doomed::Instance);
    let run = Some(RunState::Running);
    let job = with_files("job");
    let job_disk = tombstone(&job.disk, Doomed::Disk);
    vec![
        Story { name: "create", words: vec![say(&first)], end: run, hurry: false },
        Story { name: "restart", words: vec![say(&first), say(&restarted)], end: run, hurry: false },
        Story {
            name: "with files",
            words: vec![say(&job), (vec![], vec![tombstone(job.uid(), Doomed::Instance), job_disk])],
            end: None,
            hurry: false,
        },
        Story {
            name: "restart with another environment",
            words: vec![say(&first), say(&renewed)],
            end: run,
            hurry: false,
        },
        Story {
            name: "stop",
            words: vec![say(&first), say(&stopped)],
            end: Some(RunState::Stopped),
            hurry: false,
        },
        Story {
            name: "rebuild",
            words: vec![say(&first), (vec![rebuilt.clone()], vec![old_disk.clone()])],
            end: run,
            hurry: false,
        },
        Story {
            name: "delete",
            words: vec![say(&first), (vec![], vec![gone.clone(), old_disk.clone()])],
            end: None,
            hurry: false,
        },
        Story {
            name: "delete during create",
            words: vec![say(&first), (vec![], vec![gone, old_disk])],
            end: None,
            hurry: true,
        },
    ]
}

impl Story {
    fn last(&self) -> &Order {
        self.words.iter().rev().find_map(|(orders, _)| orders.last()).unwrap()
    }

    fn reached(&self, life: &Life, word: usize) -> bool {
        let (orders, tombstones) = &self.words[word];
        let ledger = &life.fleet.host().ledger;
        if tombstones.iter().any(|tombstone| ledger.tombstone(&tombstone.uid).is_some()) {
            return false;
        }
        let Some(order) = orders.last() else { return true };
        if tombstones.iter().any(|tombstone| tombstone.what == Doomed::Instance) {
            return ledger.get(order.uid()).is_none();
        }
        let wanted = match order.instance.spec.state {
            RunState::Stopped => Phase::Stopped,
            RunState::Running | RunState::Unknown => Phase::Running,
        };
        let done = |report: Report| {
            report.phase == wanted
                && report.generation == order.instance.generation
                && report.restart_required.is_empty()
        };
        life.outbox.last(order.uid()).is_some_and(done)
    }

    /// Nothing double, nothing left, nothing lost.
    fn check(&self, site: &Site, life: &Life, at: &str) {
        let containers = life.containers(site);
        let world = site.ground.world().clone();
        let Some(state) = self.end else {
            assert!(containers.is_empty(), "{at}: {containers:?}");
            assert!(
                world.disks.is_empty()
                    && world.networks.is_empty()
                    && world.files.is_empty()
                    && world.delivered.is_empty(),
                "{at}: {world:?}"
            );
            assert!(world.records.is_empty(), "{at}: {world:?}");
            return;
        };
        assert_eq!(containers.len(), 1, "{at}");
        let runs = matches!(containers[0].state, State::Running { .. });
        assert_eq!(runs, state == RunState::Running, "{at}");
        let disks: Vec<&Uid> = world.disks.keys().collect();
        assert_eq!(disks, [&self.last().disk], "{at}");
        assert_eq!(world.records.get(&containers[0].id), Some(&self.last().disk), "{at}");
        assert_eq!(world.records.len(), 1, "{at}: a record without its container");
        assert_eq!(world.networks.len(), 1, "{at}");
    }
}

#[test]
fn killed_at_every_step_it_goes_on_from_there() {
    for story in stories() {
        let mut points = 0;
        loop {
            let site = Site::new();
            let fuse = Fuse::new(points);
            let mortal = Mortal::new(&site.docker, &site.ground, &fuse);
            let life = Life::new(&site, Arc::new(mortal.clone()), Arc::new(mortal));
            let mut spoken = 0;
            'words: for (at, (orders, tombstones)) in story.words.iter().enumerate() {
                spoken = at;
                // Deltas: the set as such does not shrink by what is deleted.
                life.run(life.fleet.delta(orders.clone(), tombstones.clone()));
                let until = Instant::now() + SOON;
                while !(story.reached(&life, at) || story.hurry && at == 0) {
                    assert!(Instant::now() < until, "{}: {:?}", story.name, life.outbox.reports());
                    if fuse.blown() {
                        break 'words;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            let whole = !fuse.blown();
            life.kill();
            let at = format!("{}, killed at point {points}", story.name);

            // The next agent, which first has its ledger alone and then hears the rest.
            let life = Life::plain(&site);
            for (word, (orders, tombstones)) in story.words.iter().enumerate().skip(spoken) {
                life.run(life.fleet.delta(orders.clone(), tombstones.clone()));
                life.wait(&at, || story.reached(&life, word) || story.hurry && word == 0);
            }
            life.run(life.fleet.relist());
            story.check(&site, &life, &at);
            let before = life.containers(&site);
            std::thread::sleep(Duration::from_millis(10));
            assert_eq!(life.containers(&site), before, "{at}: it does not rest");
            life.kill();
            // How far a create comes before it is called off differs from time to time.
            if whole && !story.hurry || points == 40 {
                assert!(points > 5, "{}: only {points} points", story.name);
                break;
            }
            points += 1;
        }
    }
}

#[test]
fn without_its_files_it_waits_and_says_why() {
    let site = Site::new();
    let job = with_files("job");
    site.ground.world().refuse = Some("files_unavailable");
    let life = Life::plain(&site);
    life.run(life.fleet.full(vec![job.clone()], vec![]));
    let told = |phase: Phase, reason: Option<&str>| {
        let last = life.outbox.last(job.uid());
        last.is_some_and(|report| report.phase == phase && report.reason.as_deref() == reason)
    };
    life.wait("the reason", || told(Phase::Pending, Some("files_unavailable")));
    assert!(
        life.containers(&site).is_empty() && site.ground.world().disks.is_empty(),
        "nothing is made of it"
    );
    site.ground.world().refuse = None;
    life.wait("it runs", || told(Phase::Running, None));
    assert_eq!(site.ground.world().delivered[job.uid()], job.instance.spec.files);
    // Somebody removes them under a container that is there: the next start puts them back.
    site.ground.world().delivered.clear();
    life.run(life.fleet.delta(vec![changed(&job, |spec| spec.restart_count = 1)], vec![]));
    life.wait("they are back", || !site.ground.world().delivered.is_empty() && told(Phase::Running, None));
    life.kill();
}

#[test]
fn a_new_agent_adopts_without_touching() {
    let site = Site::new();
    let orders: Vec<Order> = (0..20).map(|n| order(&format!("web{n}"))).collect();
    let life = Life::plain(&site);
    life.run(life.fleet.full(orders.clone(), vec![]));
    life.wait("all run", || orders.iter().all(|order| life.phase(order.uid()) == Some(Phase::Running)));
    let before = life.containers(&site);
    life.kill();
    let life = Life::plain(&site);
    life.wait("all known", || orders.iter().all(|order| life.phase(order.uid()) == Some(Phase::Running)));
    assert_eq!(life.containers(&site), before);
    life.kill();
}

#[test]
fn what_no_order_names_is_told_kept_alive_and_taken_back() {
    let site = Site::new();
    let (kept, other) = (order("kept"), order("other"));
    let life = Life::plain(&site);
    life.run(life.fleet.full(vec![kept.clone(), other.clone()], vec![]));
    life.wait("both run", || {
        [&kept, &other].iter().all(|order| life.phase(order.uid()) == Some(Phase::Running))
    });
    // Docker has one more that no ledger knows.
    let stray = order("stray");
    let labels = [("uid", stray.uid().as_str()), ("project", "default"), ("name", "stray"), ("epoch", "1")];
    let create = enoki_agent::runtime::Create {
        name: "enoki.default.stray".to_owned(),
        image: "tiny".to_owned(),
        entrypoint: vec![],
        env: Default::default(),
        hostname: "stray".to_owned(),
        user: None,
        binds: vec![],
        labels: labels.into_iter().map(|(key, value)| (format!("enoki.{key}"), value.to_owned())).collect(),
        stop_grace: Duration::from_secs(1),
    };
    life.run(site.docker.create(&create)).unwrap();
    life.outbox.take();

    // A server with an empty store.
    life.run(life.fleet.full(vec![], vec![]));
    life.run(life.fleet.relist());
    let orphans = |outbox: &Outbox| -> Vec<Orphan> {
        outbox.renew();
        outbox
            .take()
            .into_iter()
            .find_map(|word| match word {
                FromAgent::Orphans { orphans } => Some(orphans),
                _ => None,
            })
            .unwrap()
    };
    let told = orphans(&life.outbox);
    assert_eq!(told.len(), 3);
    let known = told.iter().find(|orphan| orphan.uid == *kept.uid()).unwrap();
    assert_eq!((known.order.as_ref(), known.phase), (Some(&kept), Phase::Running));
    assert!(told.iter().any(|orphan| orphan.order.is_none() && orphan.name == "stray"));

    // Its restart policy still holds.
    let container = life.fleet.running(kept.uid()).unwrap();
    site.docker.exit(&container, 1);
    life.wait("restarted", || life.outbox.last(kept.uid()).is_some_and(|report| report.restarts == 1));
    life.wait("runs", || life.phase(kept.uid()) == Some(Phase::Running));

    let before = life.containers(&site);
    life.run(life.fleet.delta(vec![kept.clone()], vec![]));
    assert_eq!(orphans(&life.outbox).len(), 2);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(life.containers(&site), before);
    life.kill();
}

#[test]
fn a_daemon_that_goes_away_loses_nothing_and_is_not_piled_on() {
    let site = Site::new();
    let order = order("web1");
    let life = Life::plain(&site);
    life.run(life.fleet.full(vec![order.clone()], vec![]));
    life.wait("it runs", || life.phase(order.uid()) == Some(Phase::Running));
    let before = life.containers(&site);
    site.docker.set_daemon(Daemon::Down);
    life.run(life.fleet.delta(vec![changed(&order, |spec| spec.restart_count = 1)], vec![]));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(life.phase(order.uid()), Some(Phase::Running), "what was told stays told");
    site.docker.set_daemon(Daemon::Up);
    life.run(life.fleet.relist());
    life.wait("restarted", || life.outbox.last(order.uid()).is_some_and(|report| report.generation == 2));
    life.wait("it runs", || life.phase(order.uid()) == Some(Phase::Running));
    let after = life.containers(&site);
    assert_eq!(before[0].id, after[0].id);
    assert_ne!(before[0].state, after[0].state);
    life.kill();
}

#[test]
fn a_launch_and_a_removal_look_at_one_container() {
    let site = Site::new();
    let life = Life::plain(&site);
    life.wait("the first list", || site.docker.calls(Call::List) == 1);
    let orders: Vec<Order> = (0..8).map(|number| order(&format!("web{number}"))).collect();
    let looks = |order: &Order| {
        let before = site.docker.calls(Call::Inspect);
        life.run(life.fleet.delta(vec![order.clone()], vec![]));
        life.wait("it runs", || life.phase(order.uid()) == Some(Phase::Running));
        // Longer than events are gathered for.
        std::thread::sleep(Duration::from_millis(300));
        site.docker.calls(Call::Inspect) - before
    };
    let counts: Vec<u64> = orders.iter().map(looks).collect();
    assert!(
        counts.iter().all(|count| *count <= 2 * counts[0]),
        "the more run, the more it costs: {counts:?}"
    );
    assert_eq!(site.docker.calls(Call::List), 1);

    // By somebody else's hand: made anew, and the old one's record gone.
    let before = life.containers(&site);
    let gone = &before[0];
    site.docker.vanish(&gone.id);
    let again = || life.containers(&site).iter().any(|c| c.uid == gone.uid && c.id != gone.id);
    life.wait("it is made again", again);
    life.wait("its record is gone", || !site.ground.world().records.contains_key(&gone.id));
    life.kill();
}

#[test]
fn a_reboot_brings_up_what_should_run_without_a_server() {
    let mut site = Site::new();
    let (runs, lies) = (order("runs"), changed(&order("lies"), |spec| spec.state = RunState::Stopped));
    let life = Life::plain(&site);
    life.run(life.fleet.full(vec![runs.clone(), lies.clone()], vec![]));
    life.wait("it runs", || life.phase(runs.uid()) == Some(Phase::Running));
    life.kill();
    let container = site.docker.clone();
    let id = tokio::runtime::Runtime::new().unwrap().block_on(container.list()).unwrap()[0].id.clone();
    site.docker.exit(&id, 255);
    site.ground = site.ground.rebooted("boot2");
    let life = Life::plain(&site);
    life.wait("it runs again", || life.phase(runs.uid()) == Some(Phase::Running));
    life.wait("it lies", || life.phase(lies.uid()) == Some(Phase::Stopped));
    assert_eq!(life.outbox.last(runs.uid()).unwrap().restarts, 0);
    life.kill();
}

#[test]
fn what_docker_missed_of_memory_is_told() {
    let site = Site::new();
    let once = |name| changed(&order(name), |spec| spec.restart = RestartPolicy::Never);
    let (starved, killed) = (once("starved"), once("killed"));
    let life = Life::plain(&site);
    life.run(life.fleet.full(vec![starved.clone(), killed.clone()], vec![]));
    let told = |of: &Order| {
        life.wait("it runs", || life.phase(of.uid()) == Some(Phase::Running));
        let container = life.fleet.running(of.uid()).unwrap();
        if *of == starved {
            site.ground.world().starved.insert(container.clone());
        }
        site.docker.exit(&container, 137);
        life.wait("it has ended", || life.phase(of.uid()) == Some(Phase::Failed));
        life.outbox.last(of.uid()).unwrap().oom_killed
    };
    assert!(told(&starved));
    assert!(!told(&killed), "the same signal from somebody else");
    life.kill();
}

#[test]
fn a_missing_image_waits_and_starts_when_it_comes() {
    let site = Site::new();
    site.docker.forget_image("sha256:1");
    let order = order("web1");
    let life = Life::plain(&site);
    life.run(life.fleet.full(vec![order.clone()], vec![]));
    let missing = |report: Report| report.reason.as_deref() == Some("image_missing");
    life.wait("it is told", || life.outbox.last(order.uid()).is_some_and(missing));
    assert_eq!(life.phase(order.uid()), Some(Phase::Pending));
    site.docker.add_to_registry("tiny", ImageInfo { id: "sha256:2".to_owned(), ..ImageInfo::default() });
    life.wait("it runs", || life.phase(order.uid()) == Some(Phase::Running));
    let disk: Disk = site.ground.world().disks[&order.disk].clone();
    assert_eq!(disk.image.map(|pin| pin.id).as_deref(), Some("sha256:2"));
    life.kill();
}

// ---- the session ----

type Peer = WebSocketStream<UnixStream>;

/// A server that a test speaks for.
struct Server {
    listener: UnixListener,
}

impl Server {
    fn listen(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        Server { listener: UnixListener::bind(path).unwrap() }
    }

    /// The next connection and the path that it asks for.
    async fn accept(&self) -> (String, Peer) {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut path = String::new();
        #[allow(clippy::result_large_err)]
        let note = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            path = request.uri().path().to_owned();
            Ok(response)
        };
        let peer = tokio_tungstenite::accept_hdr_async(stream, note).await.unwrap();
        (path, peer)
    }

    async fn session(&self) -> Peer {
        let (path, mut peer) = self.accept().await;
        assert_eq!(path, "/agent/v1/session");
        let FromAgent::Hello(hello) = hear(&mut peer).await else { panic!("hello first") };
        assert_eq!((hello.host.as_str(), hello.version), ("node1", 1));
        say(&mut peer, &FromServer::Welcome { session: "s".to_owned(), heartbeat_ms: 50 }).await;
        peer
    }
}

async fn say(peer: &mut Peer, word: &FromServer) {
    peer.send(Message::text(serde_json::to_string(word).unwrap())).await.unwrap();
}

async fn hear(peer: &mut Peer) -> FromAgent {
    loop {
        match tokio::time::timeout(SOON, peer.next()).await.expect("a word in time") {
            Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
            Some(Ok(_)) => {}
            other => panic!("the agent went away: {other:?}"),
        }
    }
}

async fn hear_until<T>(peer: &mut Peer, mut wanted: impl FnMut(FromAgent) -> Option<T>) -> T {
    tokio::time::timeout(SOON, async {
        loop {
            if let Some(found) = wanted(hear(peer).await) {
                return found;
            }
        }
    })
    .await
    .expect("the word in time")
}

async fn phase(peer: &mut Peer, uid: &Uid, phase: Phase) -> Report {
    hear_until(peer, |word| match word {
        FromAgent::Reports { reports } => {
            reports.into_iter().find(|report| report.uid == *uid && report.phase == phase)
        }
        _ => None,
    })
    .await
}

/// Reads a stream to its end: what was printed, and how it ended.
async fn drain(peer: &mut Peer) -> (String, Exit) {
    let mut printed = String::new();
    loop {
        match tokio::time::timeout(SOON, peer.next()).await.expect("a piece in time") {
            Some(Ok(Message::Binary(bytes))) => match Channel::from_byte(bytes[0]) {
                Some(Channel::Exit) => return (printed, serde_json::from_slice(&bytes[1..]).unwrap()),
                Some(_) => printed.push_str(std::str::from_utf8(&bytes[1..]).unwrap()),
                None => panic!("channel {}", bytes[0]),
            },
            Some(Ok(_)) => {}
            other => panic!("the stream broke off: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_from_hello_to_streams_to_the_next_session() {
    let site = Site::new();
    let path = site.dir.path().join("agent.sock");
    let server = Server::listen(&path);
    let stop = CancellationToken::new();
    let mut config = AgentConfig::new("node1");
    config.servers = vec![format!("unix:{}", path.display())];
    config.ledger = site.ledger();
    config.identity = site.dir.path().join("agent/uid");
    config.session = site.dir.path().join("agent.session");
    let parts = |config: &AgentConfig| Parts {
        runtime: Arc::new(site.docker.clone()),
        machine: Arc::new(site.ground.clone()),
        cgroup: "v1".to_owned(),
        capacity: Capacity::default(),
        dialer: Dialer::new(config.servers.clone(), config.pki.clone()),
    };
    let agent = tokio::spawn(run_with(config.clone(), parts(&config), stop.clone()));

    let mut peer = server.session().await;
    let order = order("web1");
    let uid = order.uid().clone();
    say(&mut peer, &FromServer::Full { sequence: 7, orders: vec![order.clone()], tombstones: vec![] }).await;
    let report = phase(&mut peer, &uid, Phase::Running).await;
    assert_eq!(report.generation, 1);
    hear_until(&mut peer, |word| matches!(word, FromAgent::Heartbeat { .. }).then_some(())).await;

    // A program, with input and an exit code.
    let exec = |command: &[&str], stdin| StreamRequest::Exec {
        uid: uid.clone(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: false,
        stdin,
        size: None,
        env: Default::default(),
    };
    say(
        &mut peer,
        &FromServer::Open { stream: "a-1".to_owned(), request: exec(&["cat"], true), server: None },
    )
    .await;
    let (at, mut stream) = server.accept().await;
    assert_eq!(at, "/agent/v1/streams/a-1");
    stream.send(Message::binary([&[Channel::Stdin as u8][..], b"hello"].concat())).await.unwrap();
    stream.send(Message::binary(vec![Channel::CloseStdin as u8])).await.unwrap();
    assert_eq!(drain(&mut stream).await, ("hello".to_owned(), Exit { code: 0, error: None }));
    say(
        &mut peer,
        &FromServer::Open {
            stream: "a-2".to_owned(),
            request: exec(&["sh", "-c", "exit 7"], false),
            server: None,
        },
    )
    .await;
    let (_, mut stream) = server.accept().await;
    assert_eq!(drain(&mut stream).await.1.code, 7);
    // One that cannot be run says so in its exit and puts nothing of Docker's between the program's output.
    for (id, words, exit) in [
        ("a-5", &["no-such"][..], (125, Some("executable file not found in $PATH"))),
        ("a-6", &["sh", "-c", "exit 126"], (126, None)),
        ("a-7", &["echo", "OCI runtime exec failed: not really"], (0, None)),
    ] {
        let said = words.strip_prefix(&["echo"]).map(|rest| format!("{}\n", rest.join(" ")));
        say(
            &mut peer,
            &FromServer::Open { stream: id.to_owned(), request: exec(words, false), server: None },
        )
        .await;
        let (_, mut stream) = server.accept().await;
        let (code, error) = (exit.0, exit.1.map(str::to_owned));
        assert_eq!(drain(&mut stream).await, (said.unwrap_or_default(), Exit { code, error }));
    }

    // Logs, also while Docker is away.
    let logs = site.dir.path().join("state").join(order.disk.as_str()).join("log");
    std::fs::create_dir_all(&logs).unwrap();
    std::fs::write(logs.join("current"), "2026-11-22T10:00:01.000000000Z stdout F one\n").unwrap();
    let request =
        |follow| StreamRequest::Logs { uid: uid.clone(), follow, tail: None, since: None, timestamps: false };
    site.docker.set_daemon(Daemon::Down);
    say(&mut peer, &FromServer::Open { stream: "a-3".to_owned(), request: request(false), server: None })
        .await;
    let (_, mut stream) = server.accept().await;
    assert_eq!(drain(&mut stream).await.0, "one\n");
    say(&mut peer, &FromServer::Open { stream: "a-4".to_owned(), request: request(true), server: None })
        .await;
    let (_, mut stream) = server.accept().await;
    assert_eq!(stream.next().await.unwrap().unwrap().into_data()[1..], *b"one\n");
    let mut file = std::fs::OpenOptions::new().append(true).open(logs.join("current")).unwrap();
    std::io::Write::write_all(&mut file, b"2026-11-22T10:00:02.000000000Z stdout F two\n").unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().into_data()[1..], *b"two\n");
    drop(stream);
    hear_until(&mut peer, |word| match word {
        FromAgent::Heartbeat { health } if health.phase != enoki_api::host::HostPhase::Ready => Some(()),
        _ => None,
    })
    .await;
    site.docker.set_daemon(Daemon::Up);

    // A delta that does not follow on ends the session; the next one is told everything again.
    let changed = changed(&order, |spec| spec.restart_count = 1);
    let gap = FromServer::Delta { from: 9, to: 10, orders: vec![changed.clone()], tombstones: vec![] };
    say(&mut peer, &gap).await;
    let mut peer = server.session().await;
    phase(&mut peer, &uid, Phase::Running).await;
    say(&mut peer, &FromServer::Full { sequence: 1, orders: vec![order], tombstones: vec![] }).await;
    say(&mut peer, &FromServer::Delta { from: 1, to: 2, orders: vec![changed.clone()], tombstones: vec![] })
        .await;
    hear_until(&mut peer, |word| match word {
        FromAgent::Reports { reports } => {
            reports.into_iter().find(|report| report.generation == 2 && report.phase == Phase::Running)
        }
        _ => None,
    })
    .await;

    // The end of the agent touches nothing; the next one reports the same container and buries on order.
    let before = site.docker.list().await.unwrap();
    stop.cancel();
    agent.await.unwrap().unwrap();
    assert_eq!(site.docker.list().await.unwrap(), before);
    let stop = CancellationToken::new();
    let parts = parts(&config);
    let agent = tokio::spawn(run_with(config, parts, stop.clone()));
    let mut peer = server.session().await;
    let dead = vec![tombstone(&uid, Doomed::Instance), tombstone(&changed.disk, Doomed::Disk)];
    say(&mut peer, &FromServer::Full { sequence: 1, orders: vec![changed.clone()], tombstones: dead }).await;
    let mut waiting = std::collections::BTreeSet::from([uid, changed.disk]);
    hear_until(&mut peer, |word| {
        if let FromAgent::Buried { uids } = word {
            waiting.retain(|uid| !uids.contains(uid));
        }
        waiting.is_empty().then_some(())
    })
    .await;
    assert!(site.docker.list().await.unwrap().is_empty());
    assert!(site.ground.world().disks.is_empty());
    stop.cancel();
    agent.await.unwrap().unwrap();
}

/// Waits until `look` says yes.
async fn becomes(what: &str, look: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !look() {
        assert!(Instant::now() < until, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_where_holds_without_a_server() {
    let site = Site::new();
    let path = site.dir.path().join("agent.sock");
    let server = Server::listen(&path);
    let mut config = AgentConfig::new("node1");
    config.servers = vec![format!("unix:{}", path.display())];
    config.ledger = site.ledger();
    config.identity = site.dir.path().join("agent/uid");
    config.underlay.configured = Some([198, 18, 200, 1].into());
    let parts = |config: &AgentConfig| Parts {
        runtime: Arc::new(site.docker.clone()),
        machine: Arc::new(site.ground.clone()),
        cgroup: "v1".to_owned(),
        capacity: Capacity::default(),
        dialer: Dialer::new(config.servers.clone(), config.pki.clone()),
    };
    let stop = CancellationToken::new();
    let agent = tokio::spawn(run_with(config.clone(), parts(&config), stop.clone()));
    let (_, mut peer) = server.accept().await;
    let FromAgent::Hello(hello) = hear(&mut peer).await else { panic!("the first word is a hello") };
    assert_eq!(hello.address, config.underlay.configured);
    say(&mut peer, &FromServer::Welcome { session: "s".to_owned(), heartbeat_ms: 1000 }).await;

    let spec = serde_json::from_str(r#"{"cidr":"198.18.100.0/24","type":"vxlan"}"#).unwrap();
    let time = jiff::Timestamp::UNIX_EPOCH;
    let network: enoki_api::network::Network =
        Object::new(Some("default"), "blue", Default::default(), spec, time);
    let mut overlay = Overlay {
        network: network.uid.clone(),
        hosts: [[198, 18, 200, 2].into()].into(),
        entries: Vec::new(),
    };
    let mut order = order("web1");
    order.networks.insert("blue".to_owned(), network);
    say(&mut peer, &FromServer::Full { sequence: 1, orders: vec![order.clone()], tombstones: vec![] }).await;
    let known = || site.ground.world().overlays.get(&overlay.network).cloned();
    say(&mut peer, &FromServer::Overlays { overlays: vec![overlay.clone()] }).await;
    becomes("the first view", || known().as_ref() == Some(&overlay)).await;
    phase(&mut peer, order.uid(), Phase::Running).await;
    overlay.hosts.insert([198, 18, 200, 3].into());
    let known = || site.ground.world().overlays.get(&overlay.network).cloned();
    say(&mut peer, &FromServer::Overlays { overlays: vec![overlay.clone()] }).await;
    becomes("the second view", || known().as_ref() == Some(&overlay)).await;
    stop.cancel();
    agent.await.unwrap().unwrap();

    // A host that comes up while no server answers connects what it knew last.
    site.ground.world().overlays.clear();
    config.servers = vec![format!("unix:{}", site.dir.path().join("nobody.sock").display())];
    let stop = CancellationToken::new();
    let parts = parts(&config);
    let agent = tokio::spawn(run_with(config, parts, stop.clone()));
    becomes("the view from the ledger", || known().as_ref() == Some(&overlay)).await;
    stop.cancel();
    agent.await.unwrap().unwrap();
}
