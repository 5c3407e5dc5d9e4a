//! A runtime in memory, with Docker's semantics: for unit tests of what drives it, and for simulation.
//!
//! Deterministic: container ids, process ids and times follow from the order of calls. Its [`Simulated`] handle
//! (cheap to clone) is also the hand that breaks things: the daemon goes away or hangs, calls fail, containers
//! exit, run out of memory, vanish. One conformance suite keeps it like Docker.

use super::{
    Container, Create, Error, Event, ExecEnd, ExecRequest, ExecStream, ImageInfo, Login, Output, Runtime,
    State,
};
use async_trait::async_trait;
use bytes::Bytes;
use enoki_api::host::HostPhase;
use enoki_api::object::Uid;
use enoki_api::protocol::{Health, TerminalSize};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{broadcast, watch};

/// A call of the trait, by name, for [`Simulated::fail_next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    List,
    Inspect,
    Create,
    Start,
    Stop,
    Remove,
    Events,
    Image,
    Pull,
    Tag,
    Untag,
    Exec,
}

/// How the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    Up,
    /// Refuses connections: every call fails at once. Containers go on.
    Down,
    /// Accepts and does not answer: every call fails at its deadline. Containers go on.
    Hanging,
}

struct Made {
    create: Create,
    state: State,
}

struct Exec {
    exit: watch::Receiver<Option<ExecEnd>>,
    tty: bool,
}

struct World {
    containers: BTreeMap<String, Made>,
    /// By id, with the names that point to it.
    images: BTreeMap<String, (ImageInfo, Vec<String>)>,
    /// What its registry has, by name.
    registry: BTreeMap<String, ImageInfo>,
    execs: BTreeMap<String, Exec>,
    failures: BTreeMap<Call, VecDeque<Error>>,
    /// How often each was called while the daemon answered.
    calls: BTreeMap<Call, u64>,
    /// What a container's program answers to SIGTERM: its exit code, or nothing at all.
    on_stop: BTreeMap<String, Option<i64>>,
    daemon: Daemon,
    made: u64,
    pid: u32,
    ticks: i64,
    events: broadcast::Sender<Event>,
}

/// The runtime, and the hand that breaks it.
#[derive(Clone)]
pub struct Simulated {
    world: Arc<Mutex<World>>,
    deadline: Duration,
}

impl Default for Simulated {
    fn default() -> Self {
        Simulated::new(Duration::from_secs(15))
    }
}

/// How many events a slow listener may lag behind; then its stream ends, as when a daemon goes away.
const EVENTS: usize = 1024;

impl Simulated {
    /// `deadline`: of each call to a daemon that hangs.
    pub fn new(deadline: Duration) -> Self {
        Simulated {
            world: Arc::new(Mutex::new(World {
                containers: BTreeMap::new(),
                images: BTreeMap::new(),
                registry: BTreeMap::new(),
                execs: BTreeMap::new(),
                failures: BTreeMap::new(),
                calls: BTreeMap::new(),
                on_stop: BTreeMap::new(),
                daemon: Daemon::Up,
                made: 0,
                pid: 1000,
                ticks: 0,
                events: broadcast::channel(EVENTS).0,
            })),
            deadline,
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Streams of events end when the daemon goes down.
    pub fn set_daemon(&self, daemon: Daemon) {
        let mut world = self.world();
        world.daemon = daemon;
        if daemon == Daemon::Down {
            world.events = broadcast::channel(EVENTS).0;
        }
    }

    /// The next call of this kind fails; more of them queue up.
    pub fn fail_next(&self, call: Call, error: Error) {
        self.world().failures.entry(call).or_default().push_back(error);
    }

    /// How often it was called.
    pub fn calls(&self, call: Call) -> u64 {
        self.world().calls.get(&call).copied().unwrap_or_default()
    }

    pub fn add_image(&self, name: &str, info: ImageInfo) {
        self.world().put_image(Some(name), info);
    }

    /// What a pull of `name` gets.
    pub fn add_to_registry(&self, name: &str, info: ImageInfo) {
        self.world().registry.insert(name.to_owned(), info);
    }

    /// As `docker image prune -a` does to an image that no container uses.
    pub fn forget_image(&self, id: &str) {
        self.world().images.remove(id);
    }

    /// The main process ends by itself.
    pub fn exit(&self, id: &str, code: i64) {
        self.world().end(id, code, false);
    }

    /// The kernel kills it for its memory.
    pub fn oom(&self, id: &str) {
        let mut world = self.world();
        world.tell(id, "oom");
        world.end(id, 137, true);
    }

    /// As `docker rm -f` by somebody else.
    pub fn vanish(&self, id: &str) {
        let mut world = self.world();
        world.end(id, 137, false);
        world.tell(id, "destroy");
        world.containers.remove(id);
    }

    /// Half removed, as by a daemon that died.
    pub fn break_container(&self, id: &str) {
        if let Some(made) = self.world().containers.get_mut(id) {
            made.state = State::Broken;
        }
    }

    /// How its program answers SIGTERM: a code, or None for not at all (it is killed after the grace period).
    pub fn answer_stop(&self, id: &str, code: Option<i64>) {
        self.world().on_stop.insert(id.to_owned(), code);
    }

    /// What a container was made from.
    pub fn made_from(&self, id: &str) -> Option<Create> {
        self.world().containers.get(id).map(|made| made.create.clone())
    }

    /// Waits out a daemon that hangs, then says what the call runs into.
    async fn enter(&self, call: Call) -> Result<(), Error> {
        let daemon = self.world().daemon;
        match daemon {
            Daemon::Up => {}
            Daemon::Down => return Err(Error::Unavailable("connection refused".into())),
            Daemon::Hanging => {
                tokio::time::sleep(self.deadline).await;
                return Err(Error::Unavailable(format!("no answer within {:?}", self.deadline)));
            }
        }
        *self.world().calls.entry(call).or_default() += 1;
        match self.world().failures.get_mut(&call).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn no_container(id: &str) -> Error {
    Error::NotFound(format!("No such container: {id}"))
}

impl World {
    /// Time in which every step is a millisecond.
    fn now(&mut self) -> Timestamp {
        self.ticks += 1;
        Timestamp::constant(1_767_225_600, 0)
            .checked_add(SignedDuration::from_millis(self.ticks))
            .unwrap_or(Timestamp::MAX)
    }

    fn tell(&self, id: &str, action: &str) {
        let Some(uid) = self.containers.get(id).and_then(|made| uid(&made.create)) else {
            return;
        };
        // Nobody listening is no error.
        let _ = self.events.send(Event { uid, container: id.to_owned(), action: action.to_owned() });
    }

    fn end(&mut self, id: &str, code: i64, oom_killed: bool) {
        let finished_at = self.now();
        let Some(made) = self.containers.get_mut(id) else {
            return;
        };
        if !matches!(made.state, State::Running { .. }) {
            return;
        }
        made.state = State::Exited { code, oom_killed, finished_at, error: String::new() };
        self.tell(id, "die");
    }

    /// Docker takes an id, the start of one, or a name.
    fn find(&self, id: &str) -> Option<String> {
        if self.containers.contains_key(id) {
            return Some(id.to_owned());
        }
        let by_name = self.containers.iter().find(|(_, made)| made.create.name == id);
        by_name.map(|(found, _)| found.clone())
    }

    fn image(&self, name: &str) -> Option<&ImageInfo> {
        let named = |names: &Vec<String>| names.iter().any(|known| known == name);
        self.images.values().find(|(info, names)| info.id == name || named(names)).map(|(info, _)| info)
    }

    fn put_image(&mut self, name: Option<&str>, info: ImageInfo) {
        let id = info.id.clone();
        self.images.entry(id.clone()).or_insert((info, Vec::new()));
        if let Some(name) = name {
            self.name_image(&id, name);
        }
    }

    fn name_image(&mut self, id: &str, name: &str) {
        for (other, (_, names)) in &mut self.images {
            names.retain(|known| known != name);
            if other == id {
                names.push(name.to_owned());
            }
        }
    }

    fn unname_image(&mut self, id: &str, name: &str) {
        let Some((_, names)) = self.images.get_mut(id) else { return };
        names.retain(|known| known != name);
        if names.is_empty() {
            self.images.remove(id);
        }
    }

    fn seen(&self, id: &str) -> Option<Container> {
        let made = self.containers.get(id)?;
        let label = |key: &str| made.create.labels.get(key).cloned().unwrap_or_default();
        Some(Container {
            id: id.to_owned(),
            name: made.create.name.clone(),
            uid: uid(&made.create)?,
            epoch: label("enoki.epoch").parse().unwrap_or(0),
            spec: label("enoki.spec"),
            project: label("enoki.project"),
            instance: label("enoki.name"),
            state: made.state.clone(),
        })
    }
}

fn uid(create: &Create) -> Option<Uid> {
    Uid::parse(create.labels.get("enoki.uid")?)
}

#[async_trait]
impl Runtime for Simulated {
    async fn health(&self) -> Health {
        let degraded = |reason: &str| Health {
            phase: HostPhase::Degraded,
            reason: Some(reason.to_owned()),
            message: Some("the daemon does not answer".to_owned()),
            docker: None,
        };
        let daemon = self.world().daemon;
        match daemon {
            Daemon::Up => {
                Health { phase: HostPhase::Ready, docker: Some("simulated".to_owned()), ..Health::default() }
            }
            Daemon::Down => degraded("docker_down"),
            Daemon::Hanging => degraded("docker_hanging"),
        }
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        self.enter(Call::List).await?;
        let world = self.world();
        let mut all: Vec<Container> = world.containers.keys().filter_map(|id| world.seen(id)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.id.cmp(&b.id)));
        Ok(all)
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>, Error> {
        self.enter(Call::Inspect).await?;
        let world = self.world();
        Ok(world.find(id).and_then(|id| world.seen(&id)))
    }

    async fn create(&self, create: &Create) -> Result<String, Error> {
        self.enter(Call::Create).await?;
        let mut world = self.world();
        if world.find(&create.name).is_some() {
            return Err(Error::Conflict(format!("the name {} is in use", create.name)));
        }
        if world.image(&create.image).is_none() {
            return Err(Error::NotFound(format!("No such image: {}", create.image)));
        }
        world.made += 1;
        let id = hex(&Sha256::digest(format!("{}/{}", world.made, create.name)));
        world.containers.insert(id.clone(), Made { create: create.clone(), state: State::Created });
        world.tell(&id, "create");
        Ok(id)
    }

    async fn start(&self, id: &str) -> Result<(), Error> {
        let entered = self.enter(Call::Start).await;
        let mut world = self.world();
        if let Err(error) = entered {
            // A refused start leaves its reason on the container, as Docker does.
            if let Error::Refused(text) = &error {
                let finished_at = world.now();
                if let Some(made) = world.find(id).and_then(|id| world.containers.get_mut(&id)) {
                    made.state =
                        State::Exited { code: 128, oom_killed: false, finished_at, error: text.clone() };
                }
            }
            return Err(error);
        }
        let id = world.find(id).ok_or_else(|| no_container(id))?;
        let started_at = world.now();
        world.pid += 1;
        let pid = world.pid;
        let made = world.containers.get_mut(&id).ok_or_else(|| no_container(&id))?;
        match made.state {
            State::Running { .. } => return Ok(()),
            State::Broken => {
                return Err(Error::Conflict("the container is marked for removal".to_owned()));
            }
            State::Created | State::Exited { .. } => made.state = State::Running { pid, started_at },
        }
        world.tell(&id, "start");
        Ok(())
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), Error> {
        self.enter(Call::Stop).await?;
        let (id, answer) = {
            let world = self.world();
            let Some(id) = world.find(id) else {
                return Ok(());
            };
            if !matches!(world.containers.get(&id).map(|made| &made.state), Some(State::Running { .. })) {
                return Ok(());
            }
            // A program of ours without a handler for SIGTERM that is not PID 1 ends by it.
            let answer = world.on_stop.get(&id).copied().unwrap_or(Some(143));
            (id, answer)
        };
        if answer.is_none() {
            tokio::time::sleep(grace).await;
        }
        self.world().end(&id, answer.unwrap_or(137), false);
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        self.enter(Call::Remove).await?;
        let mut world = self.world();
        let Some(id) = world.find(id) else {
            return Ok(());
        };
        if matches!(world.containers.get(&id).map(|made| &made.state), Some(State::Running { .. })) {
            return Err(Error::Conflict(format!("container {id} is running: stop it first")));
        }
        world.tell(&id, "destroy");
        world.containers.remove(&id);
        Ok(())
    }

    async fn events(&self) -> Result<BoxStream<'static, Event>, Error> {
        self.enter(Call::Events).await?;
        let receiver = self.world().events.subscribe();
        // Closed or lagged behind: the stream ends, and the caller lists and asks again.
        Ok(stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.ok().map(|event| (event, receiver))
        })
        .boxed())
    }

    async fn image(&self, name: &str) -> Result<Option<ImageInfo>, Error> {
        self.enter(Call::Image).await?;
        let world = self.world();
        let named = |info: &ImageInfo| world.images.get(&info.id).map(|(_, names)| names.clone());
        let info = world.image(name);
        Ok(info.map(|info| ImageInfo { names: named(info).unwrap_or_default(), ..info.clone() }))
    }

    async fn pull(&self, name: &str, _login: Option<&Login>) -> Result<(), Error> {
        self.enter(Call::Pull).await?;
        let mut world = self.world();
        let info = world.registry.get(name).cloned();
        let info = info.ok_or_else(|| Error::NotFound(format!("manifest unknown: {name}")))?;
        world.put_image(Some(name), info);
        Ok(())
    }

    async fn tag(&self, id: &str, name: &str) -> Result<(), Error> {
        self.enter(Call::Tag).await?;
        let mut world = self.world();
        let found = world.image(id).map(|info| info.id.clone());
        let found = found.ok_or_else(|| Error::NotFound(format!("No such image: {id}")))?;
        world.name_image(&found, name);
        Ok(())
    }

    async fn untag(&self, name: &str) -> Result<(), Error> {
        self.enter(Call::Untag).await?;
        let mut world = self.world();
        let Some(id) = world.image(name).map(|info| info.id.clone()) else { return Ok(()) };
        world.unname_image(&id, name);
        Ok(())
    }

    async fn exec(&self, container: &str, request: &ExecRequest) -> Result<ExecStream, Error> {
        self.enter(Call::Exec).await?;
        let mut world = self.world();
        let id = world.find(container).ok_or_else(|| no_container(container))?;
        if !matches!(world.containers.get(&id).map(|made| &made.state), Some(State::Running { .. })) {
            return Err(Error::Conflict(format!("container {id} is not running")));
        }
        world.made += 1;
        let exec = hex(&Sha256::digest(format!("exec {}", world.made)));
        let (exit, ended) = watch::channel(None);
        world.execs.insert(exec.clone(), Exec { exit: ended, tty: request.tty });
        let (input, stdin) = tokio::io::duplex(64 << 10);
        let output = run(request.clone(), stdin, exit);
        Ok(ExecStream { id: exec, output, input: Box::pin(input) })
    }

    async fn exec_resize(&self, exec: &str, _size: TerminalSize) -> Result<(), Error> {
        let world = self.world();
        match world.execs.get(exec) {
            Some(found) if found.tty => Ok(()),
            Some(_) => Err(Error::Refused("the program has no terminal".to_owned())),
            None => Err(Error::NotFound(format!("No such exec instance: {exec}"))),
        }
    }

    async fn exec_exit(&self, exec: &str) -> Result<Option<ExecEnd>, Error> {
        let world = self.world();
        let found =
            world.execs.get(exec).ok_or_else(|| Error::NotFound(format!("No such exec instance: {exec}")))?;
        Ok(*found.exit.borrow())
    }
}

/// The programs that a simulated container has: `echo`, `cat`, `true`, `false`, and of `sh -c` an `exit N` and
/// an `echo WORDS >&2`. Everything else is not found.
fn run(
    request: ExecRequest,
    mut stdin: tokio::io::DuplexStream,
    exit: watch::Sender<Option<ExecEnd>>,
) -> BoxStream<'static, Result<Output, Error>> {
    let words: Vec<&str> = request.command.iter().map(String::as_str).collect();
    let said = |text: String| vec![Ok(Output::Stdout(Bytes::from(text)))];
    let (pieces, end) = match words.as_slice() {
        ["true"] => (Vec::new(), ExecEnd::Exited(0)),
        ["false"] => (Vec::new(), ExecEnd::Exited(1)),
        ["echo", rest @ ..] => (said(format!("{}\n", rest.join(" "))), ExecEnd::Exited(0)),
        ["sh", "-c", script] => match (script.strip_prefix("exit "), script.strip_suffix(" >&2")) {
            (Some(code), _) => (Vec::new(), ExecEnd::Exited(code.trim().parse().unwrap_or(2))),
            (None, Some(echo)) => {
                let text = format!("{}\n", echo.trim_start_matches("echo "));
                (vec![Ok(Output::Stderr(Bytes::from(text)))], ExecEnd::Exited(0))
            }
            (None, None) => (Vec::new(), ExecEnd::Exited(2)),
        },
        ["cat"] => {
            return stream::unfold((stdin, exit), |(mut stdin, exit)| async move {
                let mut buffer = vec![0; 4096];
                match stdin.read(&mut buffer).await {
                    Ok(count) if count > 0 => {
                        buffer.truncate(count);
                        Some((Ok(Output::Stdout(Bytes::from(buffer))), (stdin, exit)))
                    }
                    _ => {
                        exit.send_replace(Some(ExecEnd::Exited(0)));
                        None
                    }
                }
            })
            .boxed();
        }
        _ => {
            let why = "OCI runtime exec failed: exec failed: executable file not found in $PATH: unknown\r\n";
            (said(why.to_owned()), ExecEnd::NotStarted)
        }
    };
    stream::iter(pieces)
        .chain(
            stream::once(async move {
                let _ = stdin.shutdown().await;
                exit.send_replace(Some(end));
                stream::empty()
            })
            .flatten(),
        )
        .boxed()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
