//! The agent of one host: puts the parts together and runs until it is told to stop.
//!
//! It is the only starter of instances, from its ledger, with or without a server. When it stops or dies, nothing of
//! the instances is touched; the next one looks at what is there and goes on.

use crate::credentials::{self, HostPki};
use crate::image::mirror::Mirror;
use crate::image::prepull::Prepulls;
use crate::instance::Host;
use crate::instance::fleet::Fleet;
use crate::instance::linux::Linux;
use crate::instance::machine::Machine;
use crate::instance::squeezed;
use crate::ledger::{self, Ledger};
use crate::limits;
use crate::network::Underlay;
use crate::runtime::Runtime;
use crate::runtime::docker::{Deadlines, Docker, SOCKET};
use crate::session::Session;
use crate::session::outbox::Outbox;
use crate::session::socket::Dialer;
use crate::streams::Streams;
use anyhow::Context;
use enoki_api::host::{Capacity, HostPhase};
use enoki_api::object::{Labels, Uid};
use enoki_api::protocol::{Health, Hello, VERSION};
use enoki_api::quantity::{Bytes, MilliCpu};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where the server of a one-machine cloud listens for its agent.
pub const AGENT_SOCKET: &str = "/run/enoki/agent.sock";
/// There while the agent has a session, and then holds the name of its server: what `enoki up` waits for.
pub const SESSION: &str = "/run/enoki/agent.session";
/// Where this host's identity stands.
pub const IDENTITY: &str = "/var/lib/enoki/agent/uid";
/// How often Docker is asked how it is.
const HEALTH: Duration = Duration::from_secs(2);
/// How often links of the host itself are put back when somebody took them away.
const TEND: Duration = Duration::from_secs(15);
/// How long the tasks may take to come between two actions when the agent ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// What an agent has to be told; everything else stands at fixed places.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// This host's name.
    pub host: String,
    pub labels: Labels,
    /// Where servers listen for agents: `unix:/PATH` or `https://HOST:PORT`. At least one.
    pub servers: Vec<String>,
    pub pki: HostPki,
    /// Docker's socket.
    pub docker: PathBuf,
    /// Kept back from instances for the host itself.
    pub reserve: Capacity,
    pub ledger: PathBuf,
    pub identity: PathBuf,
    /// See [`SESSION`].
    pub session: PathBuf,
    /// Where other hosts reach this one.
    pub underlay: Underlay,
}

impl AgentConfig {
    /// The agent of a one-machine cloud.
    pub fn new(host: &str) -> Self {
        AgentConfig {
            host: host.to_owned(),
            labels: Labels::new(),
            servers: vec![format!("unix:{AGENT_SOCKET}")],
            pki: HostPki::default(),
            docker: SOCKET.into(),
            reserve: Capacity::default(),
            ledger: ledger::FOLDER.into(),
            identity: IDENTITY.into(),
            session: SESSION.into(),
            underlay: Underlay::default(),
        }
    }
}

/// What an agent works with.
pub struct Parts {
    pub runtime: Arc<dyn Runtime>,
    pub machine: Arc<dyn Machine>,
    /// `v1` or `v2`.
    pub cgroup: String,
    /// What the host has, before anything is kept back.
    pub capacity: Capacity,
    /// The way to the servers.
    pub dialer: Dialer,
}

/// What instances may have of what the host has.
fn left(has: Capacity, reserve: Capacity) -> Capacity {
    Capacity {
        cpus: MilliCpu(has.cpus.0.saturating_sub(reserve.cpus.0)),
        memory: Bytes(has.memory.0.saturating_sub(reserve.memory.0)),
        ..has
    }
}

/// Runs the agent of the machine that it is on, until `stop`.
pub async fn run(config: AgentConfig, stop: CancellationToken) -> anyhow::Result<()> {
    let dialer = Dialer::remembering(
        config.servers.clone(),
        config.pki.clone(),
        &config.identity.with_file_name("servers"),
    );
    let machine = Linux::open(config.underlay, dialer.clone()).await.context("cannot take this host over")?;
    let parts = Parts {
        runtime: Arc::new(Docker::new(&config.docker, enoki_helpers::RUNTIME, Deadlines::default())),
        cgroup: machine.cgroup(),
        machine: Arc::new(machine),
        capacity: limits::host::capacity().context("cannot tell what this host has")?,
        dialer,
    };
    run_with(config, parts, stop).await
}

/// Runs the agent with these parts until `stop`. Servers are dialled as `parts` say.
pub async fn run_with(config: AgentConfig, parts: Parts, stop: CancellationToken) -> anyhow::Result<()> {
    let uid = identity(&config.identity)?;
    let ledger = Arc::new(Ledger::load(&config.ledger)?);
    let instances = ledger.uids().len();
    tracing::info!(host = config.host, %uid, instances, corrupt = ledger.corrupt().len(), "the agent begins");

    let outbox = Outbox::default();
    let first = parts.runtime.health().await;
    let (docker_is, docker) = watch::channel(first.phase == HostPhase::Ready);
    outbox.set_health(first);
    let dialer = parts.dialer;
    let host = Arc::new(Host::new(
        parts.runtime.clone(),
        parts.machine.clone(),
        Arc::new(Mirror::new(dialer.clone())),
        ledger,
        outbox.clone(),
        docker,
    ));
    let fleet = Fleet::new(host, &config.host, stop.clone());
    let prepulls = Prepulls::default();
    let session = Session {
        hello: Hello {
            version: VERSION,
            host: config.host,
            uid,
            labels: config.labels,
            capacity: left(parts.capacity, config.reserve),
            cgroup: parts.cgroup,
            address: None,
            prepulls: true,
            health: Health::default(),
        },
        streams: Streams::new(dialer.clone(), fleet.clone(), stop.clone()),
        dialer: dialer.clone(),
        fleet: fleet.clone(),
        underlay: config.underlay,
        outbox: outbox.clone(),
        prepulls: prepulls.clone(),
        mark: config.session,
        stop: stop.clone(),
    };
    // None of these ends before `stop`. A fault in one ends the agent, whose supervisor starts it anew; the
    // instances do not notice.
    let work = async {
        tokio::join!(
            session.run(),
            credentials::tend(&config.pki, &dialer, &stop),
            fleet.run(),
            prepulls.run(&fleet.host().images, &outbox, &stop),
            watch_health(parts.runtime.as_ref(), &outbox, docker_is, &stop),
            tend(parts.machine.as_ref(), &fleet, &stop),
            squeezed::watch(parts.machine.as_ref(), &fleet, &stop),
            connect(parts.machine.as_ref(), &fleet, &stop),
        )
    };
    tokio::pin!(work);
    tokio::select! {
        _ = &mut work => return Ok(()),
        () = stop.cancelled() => {}
    }
    if tokio::time::timeout(FAREWELL, work).await.is_err() {
        tracing::info!("left in the middle of a step; the next agent goes on from there");
    }
    Ok(())
}

/// Made at the first start; a new machine of the same name is another host.
pub fn identity(path: &Path) -> anyhow::Result<Uid> {
    match std::fs::read_to_string(path) {
        Ok(text) => Uid::parse(text.trim()).with_context(|| {
            format!("{} holds no host identity; restore it, or remove it to be a new host", path.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let uid = Uid::random();
            if let Some(folder) = path.parent() {
                ledger::file::folder(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            }
            ledger::file::write_bytes(path, format!("{uid}\n").as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(uid)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Asks Docker how it is; what it says opens and closes the way for everything that needs it. The answer itself has a
/// deadline, so a daemon that hangs is one question that waits, not a pile.
async fn watch_health(
    runtime: &dyn Runtime,
    outbox: &Outbox,
    docker_is: watch::Sender<bool>,
    stop: &CancellationToken,
) {
    while !stop.is_cancelled() {
        let health = runtime.health().await;
        let up = health.phase == HostPhase::Ready;
        if docker_is.send_if_modified(|was| std::mem::replace(was, up) != up) {
            match up {
                true => tracing::info!(up, "docker"),
                false => tracing::warn!(up, reason = health.reason, message = health.message, "docker"),
            }
        }
        outbox.set_health(health);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(HEALTH) => {}
        }
    }
}

/// The one task that says who is where on networks that span hosts: what is newest in the ledger is said last.
async fn connect(machine: &dyn Machine, fleet: &Fleet, stop: &CancellationToken) {
    let mut last = String::new();
    while !stop.is_cancelled() {
        let mut why = String::new();
        for overlay in fleet.host().ledger.overlays() {
            if let Err(error) = machine.connect(&overlay).await {
                why = error.message;
            }
        }
        if why != last && !why.is_empty() {
            tracing::warn!(why, "networks that span hosts cannot be connected");
        }
        last = why;
        // Cancel-safe: a notification that came while nobody waited is kept.
        tokio::select! {
            () = stop.cancelled() => {}
            () = fleet.host().overlaid.notified() => {}
            () = tokio::time::sleep(TEND) => {}
        }
    }
}

async fn tend(machine: &dyn Machine, fleet: &Fleet, stop: &CancellationToken) {
    let mut last = String::new();
    while !stop.is_cancelled() {
        let ledger = &fleet.host().ledger;
        let orders: Vec<_> =
            ledger.uids().iter().filter_map(|uid| ledger.get(uid)).map(|entry| entry.order).collect();
        let why = machine.tend(&orders).await.err().map(|error| error.message).unwrap_or_default();
        if why != last && !why.is_empty() {
            tracing::warn!(why, "the host's links cannot be tended");
        }
        last = why;
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(TEND) => {}
        }
    }
}
