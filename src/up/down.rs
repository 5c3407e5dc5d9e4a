//! `enoki down`: stops what `enoki up` started and leaves every instance running.
//!
//! The order is supervisor, agent, server, registry, etcd: nobody restarts what is being stopped, and nobody writes to a store that is
//! gone. Docker follows only if we started it, dockerd before containerd, and only while live-restore is in force: its
//! containers then go on under their shims until the next `enoki up` takes them back.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;

use super::process::{find, forget, until};
use super::runtime::State;
use super::service::{Plan, Service};
use super::{DownArgs, Usage, docker, folders, launch, lock, purge, refuse, supervisor, systemd};

/// Stops the cloud; with `purge` removes it. What does not run is no error.
pub async fn down(args: DownArgs) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        refuse(&["Enoki's processes belong to root: run this as root (sudo enoki down)".to_owned()])?;
    }
    folders::make()?;
    let _alone = lock().await?;
    let plan = match Plan::load() {
        Ok(plan) => plan,
        // A broken configuration must not keep anybody from stopping; the defaults name the same pid files.
        Err(e) => {
            eprintln!("warning: {e}; going on with the defaults");
            Plan::new(Default::default(), &Default::default())
        }
    };
    if args.purge && !args.yes {
        let losses = purge::losses(&plan).await;
        eprintln!("{losses}");
        confirm()?;
    } else if args.purge {
        eprintln!("{}", purge::losses(&plan).await);
    }

    stop_ours().await?;
    if args.purge {
        purge::run(&plan).await?;
    }
    stop_docker(&plan, args.purge).await?;
    if args.purge {
        purge::remove_folders()?;
        eprintln!("Enoki is gone from this machine; its programs in /usr/local stay");
    } else {
        eprintln!("Enoki is down; instances go on running. `enoki up` takes them back");
    }
    Ok(())
}

/// Reads the answer from the terminal; without one there is nobody to ask.
fn confirm() -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Usage(
            "nothing was removed: there is no terminal to ask on; say --yes if you mean it".to_owned(),
        )
        .into());
    }
    eprint!("Type \"purge\" to remove all of this for good: ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    if answer.trim() != "purge" {
        return Err(Usage("nothing was removed".to_owned()).into());
    }
    Ok(())
}

async fn stop_ours() -> anyhow::Result<()> {
    if systemd::is_pid_1() {
        systemd::down(false).await?;
    }
    if let Some(running) = find(supervisor::NAME) {
        running.stop(Duration::from_secs(5)).await.context("cannot stop the supervisor")?;
        eprintln!("supervisor: stopped");
    }
    forget(supervisor::NAME);
    // What it was just starting becomes known in a moment; looked for too early, it would be missed and live on.
    until(Duration::from_secs(5), || async { !launch::under_way() }).await;
    for service in [Service::Agent, Service::Server, Service::Registry, Service::Etcd] {
        stop(service).await?;
    }
    Ok(())
}

/// Stops Docker if we started it and can do so without stopping a container.
async fn stop_docker(plan: &Plan, purge: bool) -> anyhow::Result<()> {
    let by_units = systemd::is_pid_1() && State::load().is_ok_and(|state| state.docker_units);
    let ours = find(Service::Dockerd.name()).is_some();
    if !ours && !by_units {
        // A containerd of ours without a dockerd of ours serves nobody, unless somebody's dockerd has found it.
        if !docker::answers(&plan.docker_socket).await {
            stop(Service::Containerd).await?;
        }
        return Ok(());
    }
    if let Ok(info) = docker::info(&plan.docker_socket).await
        && info.containers_running > 0
        && !info.live_restore_enabled
    {
        eprintln!(
            "dockerd: left running, because live-restore is off and stopping it would stop {} containers",
            info.containers_running
        );
        return Ok(());
    }
    if by_units {
        systemd::down(true).await?;
        if !purge {
            let mut state = State::load()?;
            state.docker_units = false;
            state.save()?;
        }
        eprintln!("docker, containerd: stopped");
    }
    stop(Service::Dockerd).await?;
    stop(Service::Containerd).await
}

/// Stops a service of ours; one that does not run, or is not ours, is none of our business.
async fn stop(service: Service) -> anyhow::Result<()> {
    if let Some(running) = find(service.name()) {
        running
            .stop(service.stop_grace())
            .await
            .with_context(|| format!("cannot stop {}", service.name()))?;
        eprintln!("{}: stopped", service.name());
    }
    forget(service.name());
    Ok(())
}
