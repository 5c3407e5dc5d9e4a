//! The one small process that keeps the others running where systemd does not.
//!
//! ```text
//!            +--------- ours (pid file fits) <---------+
//!            v                                         |
//!   look -> tended --ended--> backoff --> look --> launched
//!            \
//!             `--> somebody else's: left alone until it is gone and `enoki up` is run again
//! ```
//!
//! It owns nothing: services are processes of their own, known by their pid files. Killed at any moment, it takes nobody
//! along, and the next one adopts what runs. SIGTERM ends it alone; SIGHUP (from `enoki up`) makes it look again at once and
//! forgets all backoff. What Enoki did not start is not Enoki's to restart: whoever stopped it may have meant it.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::process::{self, Identity, find, forget, register, until};
use super::service::{Plan, Service, enoki_binary, log_file};
use super::{etcd, folders, logs};
use crate::config::paths;

pub const NAME: &str = "supervisor";

/// Runs until SIGTERM. A second supervisor ends at once: the first one is already doing this.
pub async fn run() -> anyhow::Result<()> {
    folders::make()?;
    // Refused for the leader of a process group, which the supervisor is not when `enoki up` starts it.
    let _ = nix::unistd::setsid();
    let lock =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(paths::SUPERVISOR_LOCK)?;
    let Ok(_alone) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        info!("another supervisor is at work");
        return Ok(());
    };
    // Before the pid file says where to: until then the default action would end us.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    register(NAME, &Identity::mine(Path::new("/proc/self/exe"))?)?;
    info!(pid = std::process::id(), "supervising");

    let (look, looking) = watch::channel(());
    for service in Service::ALL {
        tokio::spawn(tend(service, looking.clone()));
    }
    tokio::spawn(housekeeping());
    loop {
        // Both arms are cancel-safe: tokio keeps a signal that came while nobody waited.
        tokio::select! {
            _ = hangup.recv() => { look.send_replace(()); }
            _ = terminate.recv() => break,
        }
    }
    forget(NAME);
    info!("ending; the services go on");
    Ok(())
}

/// Keeps one service running, for ever.
async fn tend(service: Service, mut look: watch::Receiver<()>) {
    let name = service.name();
    let mut backoff = Backoff::default();
    loop {
        // Whatever asked until now is answered by this very look.
        look.mark_unchanged();
        let plan = match Plan::load() {
            Ok(plan) => plan,
            Err(e) => {
                warn!(service = name, error = %e, "not started");
                pause(&mut look, &mut backoff, Duration::ZERO).await;
                continue;
            }
        };
        if !plan.runs(service) {
            asked(&mut look).await;
            continue;
        }
        let since = Instant::now();
        if let Some(running) = find(name) {
            info!(service = name, pid = running.pid(), "adopted");
            running.ended().await;
            warn!(service = name, pid = running.pid(), "ended");
        } else if is_anothers(&plan, service).await {
            info!(service = name, "answers, and was started by somebody else: left to them");
            left_alone(&plan, service, &mut look).await;
            backoff.reset();
            continue;
        } else {
            if service == Service::Dockerd {
                until(Duration::from_secs(20), || plan.answers(Service::Containerd)).await;
            }
            match start(service).await {
                Ok(status) => {
                    warn!(service = name, %status, log = %service.log().display(), "ended")
                }
                Err(e) => warn!(service = name, error = format!("{e:#}"), "not started"),
            }
        }
        forget(name);
        pause(&mut look, &mut backoff, since.elapsed()).await;
    }
}

/// Whether somebody else already does what this service is for.
async fn is_anothers(plan: &Plan, service: Service) -> bool {
    match service {
        // A dockerd that is not ours has its containerd, wherever that is.
        Service::Containerd
            if find(Service::Dockerd.name()).is_none() && plan.answers(Service::Dockerd).await =>
        {
            true
        }
        _ => plan.answers(service).await,
    }
}

/// Returns once it no longer answers and `enoki up` has been run.
async fn left_alone(plan: &Plan, service: Service, look: &mut watch::Receiver<()>) {
    while is_anothers(plan, service).await {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    warn!(service = service.name(), "the one that somebody else ran is gone; `enoki up` starts one of ours");
    asked(look).await;
}

/// Starts a service and waits for its end.
async fn start(service: Service) -> anyhow::Result<std::process::ExitStatus> {
    let mut child = launcher(service)?.spawn().context("cannot run the launcher")?;
    info!(service = service.name(), pid = child.id(), "started");
    Ok(child.wait().await?)
}

/// `enoki supervise --launch NAME`, detached from us in everything but parenthood.
fn launcher(service: Service) -> anyhow::Result<Command> {
    let log = service.log();
    let log = logs::open(&log).with_context(|| format!("cannot open {}", log.display()))?;
    let mut command = Command::new(own_binary());
    command.args(["supervise", "--launch", service.name()]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(false);
    Ok(command)
}

/// Starts a service without tending it; for a purge, which needs Docker one last time.
pub fn launch_unsupervised(service: Service) -> anyhow::Result<()> {
    let child = launcher(service)?.spawn().context("cannot run the launcher")?;
    // Not waited for: tokio reaps it if it ends before us.
    drop(child);
    Ok(())
}

/// The installed binary, or this one where that is gone.
pub fn own_binary() -> std::path::PathBuf {
    let binary = enoki_binary();
    if binary.is_file() { binary } else { "/proc/self/exe".into() }
}

/// Waits out the backoff, or until somebody asks for another try.
async fn pause(look: &mut watch::Receiver<()>, backoff: &mut Backoff, uptime: Duration) {
    let delay = backoff.after(uptime);
    // Cancel-safe: neither a timer nor a watch loses anything.
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = asked(look) => backoff.reset(),
    }
}

async fn asked(look: &mut watch::Receiver<()>) {
    if look.changed().await.is_err() {
        // The sender lives as long as the supervisor: it is ending, and so is this task.
        std::future::pending::<()>().await;
    }
}

/// Bounds the logs every few seconds and renews certificates once a day.
async fn housekeeping() {
    let mut often = tokio::time::interval(Duration::from_secs(5));
    let mut daily = tokio::time::interval(Duration::from_secs(86_400));
    for timer in [&mut often, &mut daily] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        // Cancel-safe: an interval keeps its next tick.
        tokio::select! {
            _ = often.tick() => bound_logs(),
            _ = daily.tick() => renew().await,
        }
    }
}

fn bound_logs() {
    for name in Service::ALL.iter().map(|s| s.name()).chain([NAME]) {
        if let Err(e) = logs::bound(&log_file(name), logs::MAX_BYTES) {
            warn!(log = name, error = %e, "cannot bound");
        }
    }
}

async fn renew() {
    if let Err(e) = renew_certificates().await {
        warn!(error = format!("{e:#}"), "certificates not renewed; the next attempt is in a day");
    }
}

/// Renews what is near its end. etcd reads its leaf certificate at each handshake, its CA at its start only.
pub async fn renew_certificates() -> anyhow::Result<()> {
    let plan = Plan::load()?;
    if !plan.runs(Service::Server) {
        return Ok(());
    }
    let renewed = tokio::task::spawn_blocking(move || etcd::ensure_certificates(&plan.server.etcd)).await??;
    if !renewed.leaves.is_empty() {
        info!(certificates = renewed.leaves.join(", "), "renewed");
    }
    if renewed.etcd_ca
        && let Some(etcd) = process::find(Service::Etcd.name())
    {
        info!("its CA is renewed; etcd restarts to trust it");
        etcd.stop(Service::Etcd.stop_grace()).await?;
    }
    Ok(())
}
