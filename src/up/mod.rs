//! `enoki up` and `enoki down`: a one-machine cloud in the background, from one command.
//!
//! `up` looks whether the machine can be a host (`preflight`), makes certificates, makes Docker know the runtime wrapper
//! (`runtime`), and has whichever of containerd, dockerd, etcd, registry, server and agent does not answer started: by a small
//! supervisor of ours, or by systemd where that is PID 1. Then it waits until the host is ready. It can be run again at any
//! time: what runs is left alone, except what is ours and whose binary or configuration has changed. Instances never notice.
//!
//! `down` stops what `up` started, in the opposite order, and leaves instances running. `down --purge` removes all of ours.
//!
//! One `up` or `down` works at a time (a lock); each step is repeatable, so an interrupted one is mended by the next.

mod backoff;
mod daemon_json;
mod docker;
mod down;
mod etcd;
mod folders;
mod launch;
mod logs;
mod preflight;
mod process;
mod purge;
mod ready;
mod registry;
mod runtime;
mod service;
mod supervisor;
mod systemd;

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use crate::config::{AgentConfig, ServerConfig, paths};
pub use down::down;
use process::{find, until};
use service::{Plan, Service};

/// `enoki up`
#[derive(Debug, Clone, clap::Args)]
pub struct UpArgs {
    /// How many seconds to wait for the host to be ready.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}

/// `enoki down`
#[derive(Debug, Clone, clap::Args)]
pub struct DownArgs {
    /// Remove everything of Enoki's: instances, disks, volumes, images, networks, configuration.
    #[arg(long)]
    pub purge: bool,
    /// Do not ask before removing.
    #[arg(long, requires = "purge")]
    pub yes: bool,
}

/// `enoki supervise`, for `enoki up` and systemd units.
#[derive(Debug, Clone, clap::Args)]
pub struct SuperviseArgs {
    /// Become this service instead of supervising.
    #[arg(long, value_name = "SERVICE", conflicts_with = "renew")]
    launch: Option<Service>,
    /// Renew certificates that are near their end, and exit.
    #[arg(long)]
    renew: bool,
}

/// A command that was used wrongly: exit code 2, not 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Starts the cloud and waits until it is ready. Progress goes to stderr.
pub async fn up(args: UpArgs) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        refuse(&preflight::check(&preflight::Facts::default()))?;
    }
    folders::make()?;
    let _alone = lock().await?;
    let agent = AgentConfig::load()?;
    let plan = Plan::new(ServerConfig::load()?, &agent);

    // A host of a cloud elsewhere has no CA.
    let mut ca_renewed = false;
    if plan.runs(Service::Server) {
        ca_renewed = etcd::ensure_certificates(&plan.server.etcd)?.etcd_ca;
        etcd::write_etcdctl_env(&plan.server.etcd)
            .with_context(|| format!("cannot write {}", paths::ETCDCTL_ENV))?;
    }
    if ca_renewed && let Some(running) = find(Service::Etcd.name()) {
        running
            .stop(Service::Etcd.stop_grace())
            .await
            .context("etcd must restart to trust the renewed CA")?;
    }

    let facts = preflight::gather(&plan).await;
    refuse(&preflight::check(&facts))?;
    if runtime::register(&plan.docker_socket, facts.docker.as_ref().map(|d| &d.info)).await?
        && facts.docker.is_some()
    {
        eprintln!("Docker: runtime wrapper registered and live-restore on, without a restart");
    }

    if systemd::is_pid_1() {
        if systemd::up(&plan).await? {
            let mut state = runtime::State::load()?;
            state.docker_units = true;
            state.save()?;
        }
    } else {
        supervise_in_background(&plan).await?;
    }
    ready::wait(&plan, &agent.host, Duration::from_secs(args.timeout)).await?;
    eprintln!("Enoki is up: host {} is ready", agent.host);
    Ok(())
}

/// The hidden verb: the supervisor itself, or one of the small duties that need this binary.
pub async fn supervise(args: SuperviseArgs) -> anyhow::Result<()> {
    // Where main has set up logging, its way stands.
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).try_init();
    match args {
        SuperviseArgs { launch: Some(service), .. } => match launch::launch(service)? {},
        SuperviseArgs { renew: true, .. } => supervisor::renew_certificates().await,
        SuperviseArgs { .. } => supervisor::run().await,
    }
}

fn refuse(reasons: &[String]) -> anyhow::Result<()> {
    match reasons {
        [] => Ok(()),
        [one] => bail!("{one}"),
        many => bail!("this machine cannot be a host yet:\n  - {}", many.join("\n  - ")),
    }
}

/// One `up` or `down` at a time. Waits for the other one, ten minutes at most.
async fn lock() -> anyhow::Result<Flock<File>> {
    let open = || std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(paths::UP_LOCK);
    let mut file = open().with_context(|| format!("cannot open {}", paths::UP_LOCK))?;
    for attempt in 0..3000 {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, e)) => {
                return Err(e).with_context(|| format!("cannot lock {}", paths::UP_LOCK));
            }
        };
        if attempt == 0 {
            eprintln!("another enoki up or down is at work; waiting for it");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("another enoki up or down has held {} for ten minutes", paths::UP_LOCK)
}

/// Has a supervisor of the installed binary running, and under it services of that binary and the present configuration.
async fn supervise_in_background(plan: &Plan) -> anyhow::Result<()> {
    let binary = service::enoki_binary();
    if let Some(old) = find(supervisor::NAME)
        && old.outdated(&binary)
    {
        old.stop(Duration::from_secs(5)).await.context("cannot stop the old supervisor")?;
    }
    match find(supervisor::NAME) {
        Some(running) => running.signal(Signal::SIGHUP)?,
        None => start_supervisor().await?,
    }
    for service in [Service::Etcd, Service::Server, Service::Agent] {
        if let Some(running) = find(service.name())
            && let Some(why) = plan.outdated(service, &running)
        {
            eprintln!("{}: started anew, {why}", service.name());
            running
                .stop(service.stop_grace())
                .await
                .with_context(|| format!("cannot stop the old {}", service.name()))?;
            if let Some(supervisor) = find(supervisor::NAME) {
                supervisor.signal(Signal::SIGHUP)?;
            }
        }
    }
    Ok(())
}

async fn start_supervisor() -> anyhow::Result<()> {
    let path = service::log_file(supervisor::NAME);
    let log = logs::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut command = std::process::Command::new(supervisor::own_binary());
    command.arg("supervise").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
    let mut child = command.spawn().context("cannot start the supervisor")?;
    if !until(Duration::from_secs(10), || async { find(supervisor::NAME).is_some() }).await {
        let ended = child.try_wait().ok().flatten().map(|status| format!(" ({status})")).unwrap_or_default();
        bail!(
            "the supervisor did not start{ended}; read {}:\n{}",
            path.display(),
            logs::tail(Path::new(&path), 5)
        );
    }
    Ok(())
}
