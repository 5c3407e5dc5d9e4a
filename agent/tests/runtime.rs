//! One suite over both runtimes, Docker and the simulated one, and what only a real Docker can show.

mod rig;

use enoki_agent::runtime::docker::{Deadlines, Docker};
use enoki_agent::runtime::simulated::{Daemon, Simulated};
use enoki_agent::runtime::{
    Create, Error, Event, ExecEnd, ExecRequest, ImageInfo, Login, Output, Runtime, State,
};
use enoki_api::host::HostPhase;
use enoki_api::object::Uid;
use enoki_api::protocol::TerminalSize;
use futures::stream::BoxStream;
use futures::{StreamExt, future};
use rig::{Engine, IMAGE, archive};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// A runtime and the hand that breaks it.
#[async_trait::async_trait(?Send)]
trait Bench {
    fn runtime(&self) -> &dyn Runtime;
    /// [`IMAGE`] is there from now on.
    async fn bring(&mut self);
    /// The main process ends by itself with this code.
    async fn end(&mut self, id: &str, code: i64);
    async fn run_out_of_memory(&mut self, id: &str);
    /// Somebody else removes it by force.
    async fn vanish(&mut self, id: &str);
    async fn ignore_term(&mut self, id: &str);
    fn daemon(&mut self, daemon: Daemon);
    /// After which the daemon answers again.
    async fn up(&mut self);
}

struct Memory(Simulated);

#[async_trait::async_trait(?Send)]
impl Bench for Memory {
    fn runtime(&self) -> &dyn Runtime {
        &self.0
    }
    async fn bring(&mut self) {
        let info = ImageInfo {
            id: archive(IMAGE).0,
            command: vec!["sh".into()],
            volumes: vec!["/data".into()],
            ..ImageInfo::default()
        };
        self.0.add_image(IMAGE, info);
    }
    async fn end(&mut self, id: &str, code: i64) {
        self.0.exit(id, code);
    }
    async fn run_out_of_memory(&mut self, id: &str) {
        self.0.oom(id);
    }
    async fn vanish(&mut self, id: &str) {
        self.0.vanish(id);
    }
    async fn ignore_term(&mut self, id: &str) {
        self.0.answer_stop(id, None);
    }
    fn daemon(&mut self, daemon: Daemon) {
        self.0.set_daemon(daemon);
    }
    async fn up(&mut self) {
        self.0.set_daemon(Daemon::Up);
    }
}

struct Real {
    engine: Engine,
    docker: Docker,
    state: Daemon,
}

impl Real {
    async fn order(&self, id: &str, script: &str) {
        run(&self.docker, id, &["sh", "-c", &format!("echo '{script}' > /tmp/next && sleep 0")]).await;
    }
}

#[async_trait::async_trait(?Send)]
impl Bench for Real {
    fn runtime(&self) -> &dyn Runtime {
        &self.docker
    }
    async fn bring(&mut self) {
        let options = bollard::query_parameters::ImportImageOptionsBuilder::default().quiet(true).build();
        let archive = bollard::body_full(archive(IMAGE).1.into());
        let mut loaded = std::pin::pin!(raw(self).import_image(options, archive, None));
        while let Some(progress) = loaded.next().await {
            progress.unwrap();
        }
    }
    async fn end(&mut self, id: &str, code: i64) {
        self.order(id, &format!("exit {code}")).await;
    }
    async fn run_out_of_memory(&mut self, id: &str) {
        let group = Path::new("/sys/fs/cgroup/memory").join(&self.engine.name).join(id);
        std::fs::write(group.join("memory.limit_in_bytes"), "16777216").unwrap();
        self.order(id, "x=aaaaaaaa; while :; do x=$x$x; done").await;
    }
    async fn vanish(&mut self, id: &str) {
        let options = bollard::query_parameters::RemoveContainerOptionsBuilder::default().force(true).build();
        raw(self).remove_container(id, Some(options)).await.unwrap();
    }
    async fn ignore_term(&mut self, id: &str) {
        self.order(id, "trap : TERM").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    fn daemon(&mut self, daemon: Daemon) {
        self.engine.tell(match daemon {
            Daemon::Up => "start",
            Daemon::Down => "kill",
            Daemon::Hanging => "freeze",
        });
        self.state = daemon;
        std::thread::sleep(Duration::from_millis(500));
    }
    async fn up(&mut self) {
        match self.state {
            Daemon::Up => {}
            Daemon::Down => self.engine.tell("start"),
            Daemon::Hanging => self.engine.tell("thaw"),
        }
        self.state = Daemon::Up;
        self.engine.wait_for_socket();
        // The agent asks all the time; until it is asked, the daemon counts as away for programs.
        eventually("the daemon is well again", async || {
            self.docker.health().await.phase == HostPhase::Ready && self.docker.list().await.is_ok()
        })
        .await;
    }
}

async fn eventually(what: &str, test: impl AsyncFn() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !test().await {
        assert!(Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A main process that does what it is told through a file, and ends on SIGTERM with 143.
const MAIN: &str = "trap 'exit 143' TERM; rm=; while :; do if [ -s /tmp/next ]; then n=$(cat /tmp/next); : > /tmp/next; eval \"$n\"; fi; sleep 0.1; done";

fn create(name: &str, uid: &Uid, image: &str) -> Create {
    let labels = [
        ("enoki.uid", uid.as_str()),
        ("enoki.epoch", "7"),
        ("enoki.spec", "abc"),
        ("enoki.project", "p"),
        ("enoki.name", name),
    ];
    Create {
        name: format!("enoki.p.{name}"),
        image: image.to_owned(),
        entrypoint: ["/bin/sh", "-c", MAIN].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("COLOUR".to_owned(), "green and blue".to_owned())]),
        hostname: name.to_owned(),
        user: None,
        binds: Vec::new(),
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        stop_grace: Duration::from_secs(3),
    }
}

async fn state(runtime: &dyn Runtime, id: &str) -> Option<State> {
    runtime.inspect(id).await.unwrap().map(|container| container.state)
}

/// Runs to its end: standard output, standard error, exit code.
async fn run(runtime: &dyn Runtime, id: &str, words: &[&str]) -> (String, String, i64) {
    let (out, err, end) = attempt(runtime, id, words).await;
    let ExecEnd::Exited(code) = end else { panic!("{words:?} was not started: {out}") };
    (out, err, code)
}

async fn attempt(runtime: &dyn Runtime, id: &str, words: &[&str]) -> (String, String, ExecEnd) {
    let request =
        ExecRequest { command: words.iter().map(|w| (*w).to_owned()).collect(), ..ExecRequest::default() };
    let mut exec = runtime.exec(id, &request).await.unwrap();
    let (out, err) = drain(&mut exec.output).await;
    (out, err, exit(runtime, &exec.id).await)
}

async fn drain(output: &mut BoxStream<'static, Result<Output, Error>>) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(piece) = output.next().await {
        match piece.unwrap() {
            Output::Stdout(bytes) => out.extend_from_slice(&bytes),
            Output::Stderr(bytes) => err.extend_from_slice(&bytes),
        }
    }
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(out), text(err))
}

async fn exit(runtime: &dyn Runtime, exec: &str) -> ExecEnd {
    for _ in 0..100 {
        if let Some(code) = runtime.exec_exit(exec).await.unwrap() {
            return code;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the program never ended")
}

/// Everything up to and including the event `action` of `uid`.
async fn until(events: &mut BoxStream<'static, Event>, uid: &Uid, action: &str) -> Vec<String> {
    let mut seen = Vec::new();
    let all = async {
        while let Some(event) = events.next().await {
            if event.uid == *uid {
                seen.push(event.action.clone());
                if event.action == action {
                    return;
                }
            }
        }
        panic!("the events ended before `{action}`")
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.unwrap_or_else(|_| panic!("no `{action}`"));
    seen
}

async fn conformance(bench: &mut dyn Bench) {
    let (image_id, _) = archive(IMAGE);
    assert_eq!(bench.runtime().image(IMAGE).await.unwrap(), None);
    bench.bring().await;
    images(bench.runtime(), &image_id).await;
    absence(bench.runtime()).await;
    life(bench, &image_id).await;
    ends(bench, &image_id).await;
    programs(bench, &image_id).await;
    faults(bench, &image_id).await;
}

async fn images(runtime: &dyn Runtime, id: &str) {
    let info = runtime.image(IMAGE).await.unwrap().unwrap();
    assert_eq!(info.id, id);
    assert_eq!(
        (info.command, info.entrypoint, info.volumes),
        (vec!["sh".into()], vec![], vec!["/data".into()])
    );
    assert!(runtime.image(id).await.unwrap().is_some());
    assert_eq!(runtime.image("enoki/other:2").await.unwrap(), None);
    runtime.tag(id, "enoki/other:2").await.unwrap();
    assert_eq!(runtime.image("enoki/other:2").await.unwrap().unwrap().id, id);
    for _ in 0..2 {
        runtime.untag("enoki/other:2").await.unwrap();
    }
    assert_eq!(runtime.image("enoki/other:2").await.unwrap(), None);
    assert!(runtime.image(id).await.unwrap().is_some(), "it has another name yet");
    let nothing =
        runtime.tag("sha256:0000000000000000000000000000000000000000000000000000000000000000", "a:1").await;
    assert!(matches!(nothing, Err(Error::NotFound(_))), "{nothing:?}");
    let login = Login { user: "a".into(), password: "b".into() };
    let pulled = runtime.pull("198.18.0.1:5000/none:1", Some(&login)).await;
    assert!(matches!(pulled, Err(Error::NotFound(_) | Error::Refused(_))), "{pulled:?}");
}

async fn absence(runtime: &dyn Runtime) {
    assert_eq!(runtime.health().await.phase, HostPhase::Ready);
    assert_eq!(runtime.list().await.unwrap(), []);
    let id = "0123456789abcdef".repeat(4);
    assert_eq!(runtime.inspect(&id).await.unwrap(), None);
    assert!(matches!(runtime.start(&id).await, Err(Error::NotFound(_))));
    runtime.stop(&id, Duration::from_secs(1)).await.unwrap();
    runtime.remove(&id).await.unwrap();
    let request = ExecRequest { command: vec!["true".into()], ..ExecRequest::default() };
    assert!(matches!(runtime.exec(&id, &request).await, Err(Error::NotFound(_))));
    assert!(matches!(runtime.exec_exit(&id).await, Err(Error::NotFound(_))));
    let missing = runtime.create(&create("ghost", &Uid::random(), "enoki/none:1")).await;
    assert!(matches!(missing, Err(Error::NotFound(_))), "{missing:?}");
}

async fn life(bench: &mut dyn Bench, image: &str) {
    let runtime = bench.runtime();
    let uid = Uid::random();
    let mut events = runtime.events().await.unwrap();
    let wanted = create("life", &uid, image);
    let id = runtime.create(&wanted).await.unwrap();
    assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    assert!(matches!(runtime.create(&wanted).await, Err(Error::Conflict(_))));
    let seen = runtime.list().await.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].id.as_str(), seen[0].name.as_str()), (id.as_str(), "enoki.p.life"));
    assert_eq!((&seen[0].uid, seen[0].epoch, seen[0].spec.as_str()), (&uid, 7, "abc"));
    assert_eq!((seen[0].project.as_str(), seen[0].instance.as_str()), ("p", "life"));
    assert_eq!(seen[0].state, State::Created);
    assert_eq!(runtime.inspect("enoki.p.life").await.unwrap().as_ref(), Some(&seen[0]));
    let idle =
        runtime.exec(&id, &ExecRequest { command: vec!["true".into()], ..ExecRequest::default() }).await;
    assert!(matches!(idle, Err(Error::Conflict(_))));

    runtime.start(&id).await.unwrap();
    let first = state(runtime, &id).await.unwrap();
    let State::Running { pid, started_at } = first else { panic!("{first:?}") };
    assert!(pid > 1);
    runtime.start(&id).await.unwrap();
    assert_eq!(state(runtime, &id).await.unwrap(), first, "a running container stays as it is");
    assert!(matches!(runtime.remove(&id).await, Err(Error::Conflict(_))));

    runtime.stop(&id, Duration::from_secs(5)).await.unwrap();
    let ended = state(runtime, &id).await.unwrap();
    let State::Exited { code, oom_killed, finished_at, ref error } = ended else { panic!("{ended:?}") };
    assert_eq!((code, oom_killed, error.as_str()), (143, false, ""));
    assert!(finished_at > started_at);
    runtime.stop(&id, Duration::from_secs(5)).await.unwrap();

    runtime.start(&id).await.unwrap();
    assert!(matches!(state(runtime, &id).await.unwrap(), State::Running { .. }));
    runtime.stop(&id, Duration::from_secs(5)).await.unwrap();
    runtime.remove(&id).await.unwrap();
    runtime.remove(&id).await.unwrap();
    assert_eq!(state(runtime, &id).await, None);
    let seen = until(&mut events, &uid, "destroy").await;
    assert_eq!(seen, ["create", "start", "die", "start", "die", "destroy"]);
}

async fn ends(bench: &mut dyn Bench, image: &str) {
    let uid = Uid::random();
    let mut events = bench.runtime().events().await.unwrap();
    let id = bench.runtime().create(&create("ends", &uid, image)).await.unwrap();
    bench.runtime().start(&id).await.unwrap();
    bench.end(&id, 3).await;
    until(&mut events, &uid, "die").await;
    eventually("exit 3", async || {
        matches!(state(bench.runtime(), &id).await, Some(State::Exited { code: 3, oom_killed: false, .. }))
    })
    .await;

    bench.runtime().start(&id).await.unwrap();
    bench.run_out_of_memory(&id).await;
    until(&mut events, &uid, "oom").await;
    eventually("out of memory", async || {
        matches!(state(bench.runtime(), &id).await, Some(State::Exited { code: 137, oom_killed: true, .. }))
    })
    .await;

    bench.runtime().start(&id).await.unwrap();
    bench.ignore_term(&id).await;
    let before = Instant::now();
    bench.runtime().stop(&id, Duration::from_millis(900)).await.unwrap();
    assert!(before.elapsed() >= Duration::from_millis(900), "the grace period is not cut short");
    let State::Exited { code: 137, oom_killed: false, .. } = state(bench.runtime(), &id).await.unwrap()
    else {
        panic!("killed after its grace period")
    };

    bench.runtime().start(&id).await.unwrap();
    bench.vanish(&id).await;
    assert_eq!(state(bench.runtime(), &id).await, None);
    assert_eq!(bench.runtime().list().await.unwrap(), []);
    assert!(until(&mut events, &uid, "destroy").await.contains(&"die".to_owned()));
}

async fn programs(bench: &mut dyn Bench, image: &str) {
    let runtime = bench.runtime();
    let id = runtime.create(&create("programs", &Uid::random(), image)).await.unwrap();
    runtime.start(&id).await.unwrap();
    assert_eq!(run(runtime, &id, &["echo", "two", "words"]).await, ("two words\n".into(), String::new(), 0));
    assert_eq!(
        run(runtime, &id, &["sh", "-c", "echo trouble >&2"]).await,
        (String::new(), "trouble\n".into(), 0)
    );
    assert_eq!(run(runtime, &id, &["sh", "-c", "exit 7"]).await.2, 7);
    assert_eq!(run(runtime, &id, &["false"]).await.2, 1);
    let missing = attempt(runtime, &id, &["no-such-program"]).await;
    assert_eq!(missing.2, ExecEnd::NotStarted);
    assert!(missing.0.starts_with("OCI runtime exec failed: "), "{missing:?}");
    assert!(missing.0.contains("executable file not found"), "{missing:?}");
    for code in [126, 127] {
        assert_eq!(run(runtime, &id, &["sh", "-c", &format!("exit {code}")]).await.2, code);
    }

    let request = ExecRequest { command: vec!["cat".into()], stdin: true, ..ExecRequest::default() };
    let mut exec = runtime.exec(&id, &request).await.unwrap();
    assert_eq!(runtime.exec_exit(&exec.id).await.unwrap(), None, "it still runs");
    let payload = "0123456789abcdef".repeat(16 << 10);
    let mut input = exec.input;
    let sent = payload.clone();
    let feeder = tokio::spawn(async move {
        input.write_all(sent.as_bytes()).await.unwrap();
        input.shutdown().await.unwrap();
    });
    let (out, _) = drain(&mut exec.output).await;
    feeder.await.unwrap();
    assert!(out == payload, "{} of {} bytes came back", out.len(), payload.len());
    assert_eq!(exit(runtime, &exec.id).await, ExecEnd::Exited(0));

    let size = TerminalSize { columns: 101, rows: 37 };
    let request = ExecRequest {
        command: vec!["cat".into()],
        tty: true,
        stdin: true,
        size: Some(size),
        ..ExecRequest::default()
    };
    let mut exec = runtime.exec(&id, &request).await.unwrap();
    runtime.exec_resize(&exec.id, TerminalSize { columns: 80, rows: 24 }).await.unwrap();
    exec.input.write_all(b"typed\n").await.unwrap();
    let mut echoed = Vec::new();
    while !String::from_utf8_lossy(&echoed).contains("typed") {
        let Some(Ok(Output::Stdout(bytes))) = exec.output.next().await else { panic!("no echo") };
        echoed.extend_from_slice(&bytes);
    }
    drop(exec);
    bench.vanish(&id).await;
}

async fn faults(bench: &mut dyn Bench, image: &str) {
    let uid = Uid::random();
    let id = bench.runtime().create(&create("faults", &uid, image)).await.unwrap();
    bench.runtime().start(&id).await.unwrap();
    let running = state(bench.runtime(), &id).await.unwrap();

    bench.daemon(Daemon::Hanging);
    let health = bench.runtime().health().await;
    assert_eq!((health.phase, health.reason.as_deref()), (HostPhase::Degraded, Some("docker_hanging")));
    // More callers than places: all end by the deadline, none waits for those before it.
    let before = Instant::now();
    let answers = future::join_all((0..100).map(|_| bench.runtime().inspect(&id))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(Error::Unavailable(_)))));
    assert!(before.elapsed() < DEADLINE * 2, "{:?}", before.elapsed());
    assert!(matches!(bench.runtime().list().await, Err(Error::Unavailable(_))));
    assert!(matches!(bench.runtime().start(&id).await, Err(Error::Unavailable(_))));
    bench.up().await;
    assert_eq!(state(bench.runtime(), &id).await.unwrap(), running);

    let mut events = bench.runtime().events().await.unwrap();
    let reader = tokio::spawn(async move { while events.next().await.is_some() {} });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!reader.is_finished());
    bench.daemon(Daemon::Down);
    tokio::time::timeout(Duration::from_secs(10), reader).await.expect("the events end").unwrap();
    assert_eq!(bench.runtime().health().await.reason.as_deref(), Some("docker_down"));
    assert!(matches!(bench.runtime().list().await, Err(Error::Unavailable(_))));
    assert!(matches!(bench.runtime().inspect(&id).await, Err(Error::Unavailable(_))));
    assert!(bench.runtime().events().await.is_err());
    bench.up().await;
    assert_eq!(state(bench.runtime(), &id).await.unwrap(), running, "containers go on without their daemon");
    bench.vanish(&id).await;
}

const DEADLINE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn simulated_conforms() {
    conformance(&mut Memory(Simulated::new(Duration::from_millis(500)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_conforms() {
    let engine = Engine::start();
    let deadlines =
        Deadlines { quick: DEADLINE, slow: DEADLINE, health: Duration::from_secs(2), ..Deadlines::default() };
    let docker = Docker::new(engine.socket(), engine.wrapper(), deadlines);
    eventually("dockerd answers", async || docker.list().await.is_ok()).await;
    let mut real = Real { engine, docker, state: Daemon::Up };
    conformance(&mut real).await;
    machine(&real).await;
    refusal(&real).await;
    unwrapped(&real).await;
    strangers(&real).await;
}

/// What a container may do, and what it is cut off from.
async fn machine(real: &Real) {
    let docker = &real.docker;
    let (image, _) = archive(IMAGE);
    let shared = real.engine.folder.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "from outside").unwrap();
    let mut wanted = create("machine", &Uid::random(), &image);
    wanted.binds = vec![
        (shared.clone(), "/rw".into(), false),
        (shared.clone(), "/ro".into(), true),
        (shared.clone(), "/data".into(), false),
    ];
    let id = docker.create(&wanted).await.unwrap();
    docker.start(&id).await.unwrap();
    let sh = async |script: &str| run(docker, &id, &["sh", "-c", script]).await;
    assert_eq!(sh("cat /proc/sys/kernel/hostname; echo $COLOUR").await.0, "machine\ngreen and blue\n");
    assert_eq!(sh("cat /rw/file").await.0, "from outside");
    assert_eq!(sh("echo more >> /rw/file").await.2, 0);
    assert_ne!(sh("echo more >> /ro/file").await.2, 0);
    // Docker's default set and nothing else, in every set that a child can inherit.
    let status = sh("grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status").await.0;
    assert_eq!(status.matches("00000000a80425fb").count(), 2, "{status}");
    assert!(status.contains("NoNewPrivs:\t0"), "{status}");
    // Another user namespace would show; so do the refusals.
    assert_ne!(sh("dmesg").await.2, 0);
    assert_ne!(sh("mount -t tmpfs none /tmp").await.2, 0);
    assert_eq!(sh("grep -c : /proc/net/dev").await.0, "1\n", "loopback alone");
    let inside = sh("cat /proc/1/cgroup").await.0;
    assert!(!inside.contains(&real.engine.name), "a control group namespace of its own: {inside}");
    let seen = raw(real).inspect_container(&id, None).await.unwrap();
    let host = seen.host_config.unwrap();
    assert_eq!(host.network_mode.as_deref(), Some("none"));
    assert_eq!(host.runtime.as_deref(), Some("enoki"));
    assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("none"));
    assert_eq!(host.ipc_mode.as_deref(), Some("private"));
    assert_eq!((host.memory, host.nano_cpus, host.pids_limit.unwrap_or(0)), (Some(0), Some(0), 0));
    assert_eq!(seen.config.unwrap().stop_signal.as_deref(), Some("SIGTERM"));
    // A bind whose source is missing is an error, not a new folder owned by root.
    wanted.name = "enoki.p.nobind".into();
    wanted.binds = vec![(shared.join("missing"), "/rw".into(), false)];
    assert!(matches!(docker.create(&wanted).await, Err(Error::Refused(text)) if text.contains("missing")));
    assert!(!shared.join("missing").exists());

    // An image's VOLUME makes an anonymous volume, which goes with its container; named ones stay.
    raw(real)
        .create_volume(bollard::models::VolumeCreateRequest {
            name: Some("kept".into()),
            ..Default::default()
        })
        .await
        .unwrap();
    let count = async || {
        let all = raw(real).list_volumes(None::<bollard::query_parameters::ListVolumesOptions>).await;
        all.unwrap().volumes.unwrap_or_default().len()
    };
    let before = count().await;
    let plain = docker.create(&create("volumes", &Uid::random(), &image)).await.unwrap();
    assert_eq!(count().await, before + 1);
    docker.remove(&plain).await.unwrap();
    assert_eq!(count().await, before);
    docker.stop(&id, Duration::from_secs(1)).await.unwrap();
    docker.remove(&id).await.unwrap();
}

fn raw(real: &Real) -> bollard::Docker {
    let socket = real.engine.socket();
    bollard::Docker::connect_with_unix(&socket.to_string_lossy(), 30, bollard::API_DEFAULT_VERSION).unwrap()
}

/// What the wrapper says reaches the caller, and stands on the container.
async fn refusal(real: &Real) {
    let (image, _) = archive(IMAGE);
    let id = real.docker.create(&create("refused", &Uid::random(), &image)).await.unwrap();
    real.engine.refuse(true);
    let refused = real.docker.start(&id).await;
    assert!(matches!(&refused, Err(Error::Refused(text)) if text.contains("no record")), "{refused:?}");
    let seen = state(&real.docker, &id).await.unwrap();
    let State::Exited { ref error, code, .. } = seen else { panic!("{seen:?}") };
    assert!(error.contains("no record") && code != 0, "{seen:?}");
    real.engine.refuse(false);
    real.docker.start(&id).await.unwrap();
    assert!(matches!(state(&real.docker, &id).await, Some(State::Running { .. })));
    real.docker.stop(&id, Duration::from_secs(1)).await.unwrap();
    real.docker.remove(&id).await.unwrap();
}

/// Without the wrapper Docker is not asked for what goes through it, and goes on when it is back.
async fn unwrapped(real: &Real) {
    let (image, _) = archive(IMAGE);
    let docker = &real.docker;
    let id = docker.create(&create("unwrapped", &Uid::random(), &image)).await.unwrap();
    docker.start(&id).await.unwrap();
    let running = state(docker, &id).await;
    let (wrapper, away) = (real.engine.wrapper(), real.engine.folder.path().join("away"));
    std::fs::rename(&wrapper, &away).unwrap();
    for refused in
        [docker.start(&id).await, docker.stop(&id, Duration::from_secs(1)).await, docker.remove(&id).await]
    {
        let told = wrapper.to_string_lossy();
        assert!(matches!(&refused, Err(Error::Refused(text)) if text.contains(&*told)), "{refused:?}");
    }
    assert_eq!(state(docker, &id).await, running);
    std::fs::rename(&away, &wrapper).unwrap();
    docker.stop(&id, Duration::from_secs(5)).await.unwrap();
    let ended = state(docker, &id).await;
    assert!(matches!(ended, Some(State::Exited { code: 143, .. })), "{ended:?}");
    docker.remove(&id).await.unwrap();
}

/// Containers of others are none of ours; one with our label but damaged is shown, not dropped.
async fn strangers(real: &Real) {
    let (image, _) = archive(IMAGE);
    let mut stranger = create("stranger", &Uid::random(), &image);
    stranger.labels.clear();
    let mut damaged = create("damaged", &Uid::random(), &image);
    damaged.labels.insert("enoki.uid".into(), "../../etc".into());
    let stranger = real.docker.create(&stranger).await.unwrap();
    let damaged = real.docker.create(&damaged).await.unwrap();
    let seen = real.docker.list().await.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!((&seen[0].id, &seen[0].state), (&damaged, &State::Broken));
    for id in [stranger, damaged] {
        real.docker.remove(&id).await.unwrap();
    }
}
