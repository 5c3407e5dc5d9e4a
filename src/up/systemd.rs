//! Where systemd is PID 1, it is the supervisor: our services are units, Docker keeps its own.
//!
//! The units start the same `enoki supervise --launch NAME` as our supervisor does, so pid files, environment and limits are
//! the same on every machine. They are enabled, so the cloud is back after a reboot without anybody's doing.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};

use super::process::{find, forget};
use super::service::{Plan, Service};
use crate::config::{paths, write_atomic};

/// What is installed to /etc/systemd/system. None of them has a mount namespace of its own (no PrivateTmp, no
/// ProtectSystem): the agent's namespace pins and disks are mounts, and must be seen by Docker and outlive the agent.
const UNITS: [(&str, &str); 6] = [
    ("enoki-etcd.service", include_str!("../../deploy/systemd/enoki-etcd.service")),
    ("enoki-registry.service", include_str!("../../deploy/systemd/enoki-registry.service")),
    ("enoki-server.service", include_str!("../../deploy/systemd/enoki-server.service")),
    ("enoki-agent.service", include_str!("../../deploy/systemd/enoki-agent.service")),
    ("enoki-pki.service", include_str!("../../deploy/systemd/enoki-pki.service")),
    ("enoki-pki.timer", include_str!("../../deploy/systemd/enoki-pki.timer")),
];
const PKI_TIMER: &str = "enoki-pki.timer";
/// Where systemd remembers when the timer last went off, also when there is no such timer any more.
const PKI_STAMP: &str = "/var/lib/systemd/timers/stamp-enoki-pki.timer";

/// sd_booted(3).
pub fn is_pid_1() -> bool {
    Path::new(paths::SYSTEMD_BOOTED).is_dir()
}

pub fn unit(service: Service) -> &'static str {
    match service {
        Service::Containerd => "containerd.service",
        Service::Dockerd => "docker.service",
        Service::Etcd => "enoki-etcd.service",
        Service::Registry => "enoki-registry.service",
        Service::Server => "enoki-server.service",
        Service::Agent => "enoki-agent.service",
    }
}

/// Installs and starts the units; Docker's own ones only where no dockerd answers. Returns whether it started Docker.
pub async fn up(plan: &Plan) -> anyhow::Result<bool> {
    if !Path::new(paths::BINARY).is_file() {
        bail!(
            "{} is not there, and the systemd units run it: install it first (make install)",
            paths::BINARY
        );
    }
    if install()? {
        systemctl(&["daemon-reload"]).await?;
    }
    let mut started_docker = false;
    if plan.runs(Service::Dockerd) && !plan.answers(Service::Dockerd).await {
        systemctl(&["enable", "--now", unit(Service::Containerd), unit(Service::Dockerd)]).await?;
        started_docker = true;
    }
    for service in [Service::Etcd, Service::Registry, Service::Server, Service::Agent] {
        if !plan.runs(service) {
            continue;
        }
        let unit = unit(service);
        // A unit that failed long ago may be waiting out its start limit.
        let _ = systemctl(&["reset-failed", unit]).await;
        systemctl(&["enable", "--now", unit]).await?;
        if let Some(why) = find(service.name()).and_then(|running| plan.outdated(service, &running)) {
            eprintln!("{}: started anew, {why}", service.name());
            systemctl(&["restart", unit]).await?;
        }
    }
    systemctl(&["enable", "--now", PKI_TIMER]).await?;
    Ok(started_docker)
}

/// Stops and disables ours; with `docker`, Docker's too (its containers go on: live-restore and KillMode=process).
pub async fn down(docker: bool) -> anyhow::Result<()> {
    let present: Vec<&str> = UNITS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| Path::new(paths::UNITS).join(name).exists())
        .collect();
    for service in [Service::Agent, Service::Server, Service::Registry, Service::Etcd] {
        if present.contains(&unit(service)) {
            systemctl(&["disable", "--now", unit(service)]).await?;
            forget(service.name());
        }
    }
    if present.contains(&PKI_TIMER) {
        systemctl(&["disable", "--now", PKI_TIMER]).await?;
    }
    if docker {
        systemctl(&["disable", "--now", "docker.socket", unit(Service::Dockerd), unit(Service::Containerd)])
            .await?;
    }
    Ok(())
}

/// Removes our unit files and what systemd keeps about them; they are stopped by then.
pub async fn remove() -> anyhow::Result<()> {
    let units = UNITS.iter().map(|(name, _)| Path::new(paths::UNITS).join(name));
    let mut removed = false;
    for file in units.chain([PKI_STAMP.into()]) {
        match std::fs::remove_file(&file) {
            Ok(()) => removed = true,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("cannot remove {}", file.display())),
        }
    }
    if removed { systemctl(&["daemon-reload"]).await } else { Ok(()) }
}

/// Writes the units that are missing or differ. True: systemd must read them again.
fn install() -> anyhow::Result<bool> {
    let mut changed = false;
    for (name, text) in UNITS {
        let path = Path::new(paths::UNITS).join(name);
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        write_atomic(&path, text.as_bytes(), 0o644)
            .with_context(|| format!("cannot write {}", path.display()))?;
        changed = true;
    }
    Ok(changed)
}

async fn systemctl(args: &[&str]) -> anyhow::Result<()> {
    let run =
        tokio::process::Command::new("systemctl").args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    let words = args.join(" ");
    let output = tokio::time::timeout(Duration::from_secs(120), run)
        .await
        .with_context(|| format!("systemctl {words} did not end within 120 s"))?
        .with_context(|| format!("cannot run systemctl {words}"))?;
    if !output.status.success() {
        bail!("systemctl {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By systemd's own word, where it is installed.
    #[test]
    fn systemd_understands_every_unit() {
        let folder = tempfile::tempdir().unwrap();
        let say = |units: &[(&str, &str)]| {
            let files: Vec<_> = units
                .iter()
                .map(|(name, text)| {
                    let file = folder.path().join(name);
                    std::fs::write(&file, text).unwrap();
                    file
                })
                .collect();
            let said = std::process::Command::new("systemd-analyze").arg("verify").args(files).output();
            said.map(|said| String::from_utf8_lossy(&said.stderr).into_owned())
        };
        let control = ("enoki-control.service", "[Service]\nType=nonsense\nExecStart=/bin/true\n");
        match say(&[control]) {
            Err(error) => return eprintln!("SKIPPED: systemd-analyze: {error}"),
            Ok(said) => assert!(said.contains("nonsense"), "what is wrong is told: {said:?}"),
        }
        // The program itself need not be installed where this runs, and other units are not ours to judge.
        let said = say(&UNITS).unwrap();
        let ours = |line: &&str| line.contains("enoki-") && !line.contains("is not executable");
        let strange: Vec<&str> = said.lines().filter(ours).collect();
        assert!(strange.is_empty(), "{}", strange.join("\n"));
    }

    #[test]
    fn no_unit_hides_mounts_or_kills_more_than_its_process() {
        for (name, text) in UNITS {
            let text: String = text.lines().filter(|line| !line.starts_with('#')).collect();
            for hiding in [
                "PrivateTmp",
                "ProtectSystem",
                "ProtectHome",
                "PrivateMounts",
                "MountFlags",
                "ReadOnlyPaths",
                "PrivateDevices",
            ] {
                assert!(!text.contains(hiding), "{name} has {hiding}");
            }
        }
        assert!(UNITS[3].1.contains("KillMode=process"));
    }
}
