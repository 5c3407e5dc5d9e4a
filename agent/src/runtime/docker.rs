//! Docker by its API, from 1.41 (Docker 20.10) to the newest.
//!
//! The daemon may be absent, hang, answer late or by halves. Every call therefore has a deadline of its own and
//! takes one of a bounded number of places: callers of a daemon that hangs end one after the other with
//! [`Error::Unavailable`], and nothing piles up behind it. Only an answer in Docker's own words ("No such ...")
//! makes anything *known to be absent*.
//!
//! Whatever becomes of a container goes through the runtime wrapper. While that is missing, Docker would fail with
//! riddles, kill without asking and leave shims behind; it is not asked then. Programs start beneath Docker, by runc,
//! where Docker is known not to start them ([`Docker::exec`]).

mod exec;
mod health;
mod images;
mod reading;
mod wire;

use super::runc::Programs;
use super::{Container, Create, Error, Event, ExecEnd, ExecRequest, ExecStream, ImageInfo, Login, Runtime};
use async_trait::async_trait;
use bollard::errors::Error as Fault;
use bollard::models::{
    ContainerCreateBody, ContainerSummary, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig,
    Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType, RestartPolicy,
    RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use enoki_api::protocol::{Health, TerminalSize};
use futures::future::ready;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use reading::{UID_LABEL, container, image_info};
use std::collections::HashMap;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// Where dockerd listens.
pub const SOCKET: &str = "/var/run/docker.sock";
/// The name under which dockerd knows our runtime wrapper.
pub const RUNTIME: &str = "enoki";

/// Docker's default set, spelt out so that a daemon's configuration or a later default changes nothing:
/// enough for sudo, su, apt-get, cron, ping and gdb on an own process; no mounts, no kernel log.
const CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What can change how a container of ours stands; exec and attach are left out, since they never do.
const ACTIONS: [&str; 9] =
    ["create", "start", "die", "oom", "destroy", "pause", "unpause", "rename", "restart"];

/// Calls at once, inside one daemon that works: more would only queue there.
const CALLS: usize = 32;
/// Stops wait out a grace period each and would starve the others.
const STOPS: usize = 256;
/// Pulls and loads.
const TRANSFERS: usize = 4;

/// How long each kind of call may take, waiting for a place included.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Reading, tagging, opening an exec.
    pub quick: Duration,
    /// Create, start and remove: a loaded disk makes these slow.
    pub slow: Duration,
    /// On top of a stop's grace period.
    pub stop: Duration,
    /// Between two signs of life of a pull or a load.
    pub idle: Duration,
    /// A pull or a load as a whole.
    pub transfer: Duration,
    /// Of [`Runtime::health`]: must be shorter than a heartbeat's patience.
    pub health: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            quick: Duration::from_secs(15),
            slow: Duration::from_secs(90),
            stop: Duration::from_secs(30),
            idle: Duration::from_secs(120),
            transfer: Duration::from_secs(3600),
            health: Duration::from_secs(5),
        }
    }
}

/// A host's dockerd. Connects when it is first used, and again after the daemon was away.
pub struct Docker {
    socket: PathBuf,
    deadlines: Deadlines,
    client: Mutex<Option<bollard::Docker>>,
    calls: Semaphore,
    stops: Semaphore,
    transfers: Semaphore,
    wrapper: PathBuf,
    /// Why the daemon started no programs when it was last asked how it is. None: it did.
    away: Mutex<Option<String>>,
    /// Those that were started beneath Docker.
    programs: Programs,
}

impl Docker {
    /// The daemon at `socket` (usually [`SOCKET`]), which knows the wrapper at `wrapper` as its runtime [`RUNTIME`].
    pub fn new(socket: impl Into<PathBuf>, wrapper: impl Into<PathBuf>, deadlines: Deadlines) -> Self {
        Docker {
            socket: socket.into(),
            deadlines,
            client: Mutex::new(None),
            calls: Semaphore::new(CALLS),
            stops: Semaphore::new(STOPS),
            transfers: Semaphore::new(TRANSFERS),
            wrapper: wrapper.into(),
            away: Mutex::default(),
            programs: Programs::default(),
        }
    }

    /// Whether the wrapper can be run at all. The error says why not, and what to do.
    fn wrapped(&self) -> Result<(), Error> {
        let why = match std::fs::metadata(&self.wrapper) {
            Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => return Ok(()),
            Ok(_) => "it is no program".to_owned(),
            Err(error) => error.to_string(),
        };
        let path = self.wrapper.display();
        Err(Error::Refused(format!(
            "the runtime wrapper {path} cannot be run: {why}; `make install` puts it back"
        )))
    }

    /// Why Docker cannot start a program, as far as that is known before it is asked. None: it can.
    fn beneath(&self) -> Option<String> {
        let unwrapped = self.wrapped().err().map(|error| error.to_string());
        unwrapped.or_else(|| self.away.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn remembered(&self) -> Option<bollard::Docker> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, client: Option<bollard::Docker>) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// A client that speaks the daemon's version. A daemon that comes back may be another one: see `call`.
    async fn client(&self) -> Result<bollard::Docker, Fault> {
        if let Some(client) = self.remembered() {
            return Ok(client);
        }
        // bollard's own timeout covers the head of a response only; ours, around each call, covers all of it.
        let client = bollard::Docker::connect_with_unix(
            &self.socket.to_string_lossy(),
            self.deadlines.transfer.as_secs().max(1),
            bollard::API_DEFAULT_VERSION,
        )?;
        let client = client.negotiate_version().await?;
        self.remember(Some(client.clone()));
        Ok(client)
    }

    /// One call: waits for a place, connects, asks, all before the deadline.
    async fn call<T, F, A>(
        &self,
        what: &str,
        places: &Semaphore,
        deadline: Duration,
        ask: F,
    ) -> Result<T, Error>
    where
        F: FnOnce(bollard::Docker) -> A + Send,
        A: Future<Output = Result<T, Fault>> + Send,
    {
        let until = Instant::now() + deadline;
        let late = || {
            self.remember(None);
            Error::Unavailable(format!("{what}: no answer within {} s", deadline.as_secs_f32()))
        };
        // The semaphores are never closed, so the only failure is a place that never became free.
        let _place = timeout_at(until, places.acquire()).await.map_err(|_| late())?;
        let asked = async { ask(self.client().await?).await };
        let answer = timeout_at(until, asked).await.map_err(|_| late())?;
        answer.map_err(|fault| {
            let error = reading::error(what, fault);
            if matches!(error, Error::Unavailable(_)) {
                self.remember(None);
            }
            error
        })
    }

    async fn quick<T, F, A>(&self, what: &str, ask: F) -> Result<T, Error>
    where
        F: FnOnce(bollard::Docker) -> A + Send,
        A: Future<Output = Result<T, Fault>> + Send,
    {
        self.call(what, &self.calls, self.deadlines.quick, ask).await
    }

    /// A container of the list, looked at closely. None: gone meanwhile.
    async fn look(&self, summary: ContainerSummary) -> Result<Option<Container>, Error> {
        let id = summary.id.clone().unwrap_or_default();
        match self.inspect(&id).await {
            Ok(found) => Ok(found),
            // A container that a dying daemon left half removed answers with an error for ever.
            Err(Error::Refused(_) | Error::Conflict(_)) if reading::is_wreck(&summary) => {
                Ok(Some(reading::wreck(&summary)))
            }
            Err(error) => Err(error),
        }
    }
}

fn body(create: &Create) -> ContainerCreateBody {
    let mounts = create.binds.iter().map(|(source, target, read_only)| Mount {
        target: Some(target.clone()),
        source: Some(source.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(*read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    });
    let texts = |list: &[&str]| Some(list.iter().map(|&text| text.to_owned()).collect());
    let host = HostConfig {
        runtime: Some(RUNTIME.to_owned()),
        network_mode: Some("none".to_owned()),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        mounts: Some(mounts.collect()),
        cap_drop: texts(&["ALL"]),
        cap_add: texts(&CAPABILITIES),
        // sudo gains privileges; a daemon's default may forbid that.
        security_opt: texts(&["no-new-privileges=false"]),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        privileged: Some(false),
        readonly_rootfs: Some(false),
        auto_remove: Some(false),
        publish_all_ports: Some(false),
        // The entrypoint is our init; a second one in front would take PID 1 from it.
        init: Some(false),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(create.image.clone()),
        hostname: Some(create.hostname.clone()),
        user: create.user.clone(),
        env: Some(create.env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        entrypoint: Some(create.entrypoint.clone()),
        // No `working_dir`: the image's own.
        // The image's own command would be appended to our entrypoint, which holds the command already.
        cmd: Some(Vec::new()),
        labels: Some(create.labels.clone().into_iter().collect()),
        network_disabled: Some(true),
        stop_signal: Some("SIGTERM".to_owned()),
        stop_timeout: Some(whole_seconds(create.stop_grace)),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// Docker counts in seconds; a grace period is never cut short.
fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}

#[async_trait]
impl Runtime for Docker {
    async fn health(&self) -> Health {
        let health = health::health(&self.socket, self.deadlines.health).await;
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = health::away(&health);
        health
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        let filters = HashMap::from([("label", vec![UID_LABEL])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let summaries = self
            .quick("list containers", |docker| async move { docker.list_containers(Some(options)).await })
            .await?;
        let found: Vec<Option<Container>> = stream::iter(summaries.into_iter().map(|s| self.look(s)))
            .buffer_unordered(CALLS / 4)
            .try_collect()
            .await?;
        let mut containers: Vec<Container> = found.into_iter().flatten().collect();
        containers.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.id.cmp(&b.id)));
        Ok(containers)
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>, Error> {
        let asked = self
            .quick("inspect container", |docker| async move { docker.inspect_container(id, None).await })
            .await;
        match asked {
            Ok(answer) => Ok(container(answer)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, create: &Create) -> Result<String, Error> {
        let options = CreateContainerOptionsBuilder::default().name(&create.name).build();
        let body = body(create);
        let made = self
            .call("create container", &self.calls, self.deadlines.slow, |docker| async move {
                docker.create_container(Some(options), body).await
            })
            .await?;
        Ok(made.id)
    }

    async fn start(&self, id: &str) -> Result<(), Error> {
        self.wrapped()?;
        self.call("start container", &self.calls, self.deadlines.slow, |docker| async move {
            docker.start_container(id, None).await
        })
        .await
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), Error> {
        self.wrapped()?;
        let seconds = i32::try_from(whole_seconds(grace)).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let stopped = self
            .call("stop container", &self.stops, grace + self.deadlines.stop, |docker| async move {
                docker.stop_container(id, Some(options)).await
            })
            .await;
        match stopped {
            Err(Error::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        self.wrapped()?;
        // `v` takes along only the anonymous volumes that Docker makes for an image's VOLUME lines. The wrapper
        // keeps them out of the container, so nobody's data was ever in them; named volumes and binds stay.
        let options = RemoveContainerOptionsBuilder::default().v(true).force(false).build();
        let until = Instant::now() + self.deadlines.slow;
        loop {
            let options = options.clone();
            let removed = self
                .call("remove container", &self.calls, self.deadlines.slow, |docker| async move {
                    docker.remove_container(id, Some(options)).await
                })
                .await;
            match removed {
                Err(Error::NotFound(_)) => return Ok(()),
                // Somebody else's removal: gone only when that has ended.
                Err(Error::Conflict(text)) if text.contains("already in progress") => {
                    if Instant::now() >= until {
                        return Err(Error::Conflict(text));
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                other => return other,
            }
        }
    }

    async fn events(&self) -> Result<BoxStream<'static, Event>, Error> {
        // The request goes out when the stream is first polled; what happens before is replayed by `since`.
        let now = Timestamp::now();
        let since = format!("{}.{:09}", now.as_second(), now.subsec_nanosecond());
        self.quick("ping", |docker| async move { docker.ping().await }).await?;
        let filters = HashMap::from([
            ("type", vec!["container"]),
            ("label", vec![UID_LABEL]),
            ("event", ACTIONS.to_vec()),
        ]);
        let options = EventsOptionsBuilder::default().since(&since).filters(&filters).build();
        let client = self
            .quick("open events", |docker| ready(Ok(docker)))
            .await?
            .with_timeout(self.deadlines.quick.max(Duration::from_secs(1)));
        let events = client.events(Some(options));
        Ok(events
            .take_while(|event| ready(event.is_ok()))
            .filter_map(|event| ready(event.ok().and_then(reading::event)))
            .boxed())
    }

    async fn image(&self, name: &str) -> Result<Option<ImageInfo>, Error> {
        let asked =
            self.quick("inspect image", |docker| async move { docker.inspect_image(name).await }).await;
        match asked {
            Ok(answer) => Ok(Some(image_info(answer))),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn pull(&self, name: &str, login: Option<&Login>) -> Result<(), Error> {
        images::pull(self, name, login).await
    }

    async fn tag(&self, id: &str, name: &str) -> Result<(), Error> {
        images::tag(self, id, name).await
    }

    async fn untag(&self, name: &str) -> Result<(), Error> {
        images::untag(self, name).await
    }

    async fn exec(&self, container: &str, request: &ExecRequest) -> Result<ExecStream, Error> {
        let why = match self.beneath() {
            Some(why) => why,
            None => match exec::create(self, container, request).await {
                // Nothing was started, so nothing runs twice.
                Err(Error::Unavailable(why)) => why,
                made => return exec::start(self, made?, request).await,
            },
        };
        tracing::info!(container, why, "a program is started beneath docker");
        self.programs.exec(container, request, self.deadlines.quick).await.map_err(|error| match error {
            Error::Unavailable(text) => Error::Unavailable(format!("{why}; beneath it: {text}")),
            other => other,
        })
    }

    async fn exec_resize(&self, exec: &str, size: TerminalSize) -> Result<(), Error> {
        match self.programs.find(exec) {
            Some(program) => program.resize(size),
            None => exec::resize(self, exec, size).await,
        }
    }

    async fn exec_exit(&self, exec: &str) -> Result<Option<ExecEnd>, Error> {
        match self.programs.find(exec) {
            Some(program) => Ok(program.end()),
            None => exec::exit(self, exec).await,
        }
    }
}

impl Docker {
    fn socket(&self) -> &Path {
        &self.socket
    }
}
