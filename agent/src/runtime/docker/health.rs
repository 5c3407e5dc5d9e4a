//! Whether the daemon answers and is one that can carry instances.
//!
//! Read from raw `/info` and `/version`, so that a value of a newer Docker cannot make a good host look bad.

use super::{Error, RUNTIME, wire};
use enoki_api::host::HostPhase;
use enoki_api::protocol::Health;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// The part of `/info` that matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Info {
    docker_root_dir: String,
    /// Null or absent when there are none.
    security_options: Option<Vec<String>>,
    runtimes: Option<HashMap<String, serde_json::Value>>,
    live_restore_enabled: bool,
    containerd_commit: Commit,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Commit {
    #[serde(rename = "ID")]
    id: String,
}

/// What dockerd says in place of the commit of a containerd that it does not reach.
const NOT_REACHED: &str = "N/A";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Version {
    version: String,
}

pub async fn health(socket: &Path, deadline: Duration) -> Health {
    let asked = timeout(deadline, async {
        let version: Version = wire::get(socket, "/version").await?;
        let info: Info = wire::get(socket, "/info").await?;
        Ok::<_, Error>((version, info))
    });
    match asked.await {
        Ok(Ok((version, info))) => judge(&version, &info),
        Ok(Err(error)) => degraded("docker_down", error.to_string()),
        Err(_) => degraded(
            "docker_hanging",
            format!("dockerd accepts connections and does not answer within {} s", deadline.as_secs_f32()),
        ),
    }
}

/// Why a daemon in this state starts no programs in containers. None: it does.
pub fn away(health: &Health) -> Option<String> {
    let away = matches!(health.reason.as_deref(), Some("docker_down" | "docker_hanging" | "containerd_down"));
    health.message.clone().filter(|_| away)
}

fn degraded(reason: &str, message: String) -> Health {
    Health {
        phase: HostPhase::Degraded,
        reason: Some(reason.to_owned()),
        message: Some(message),
        docker: None,
    }
}

fn judge(version: &Version, info: &Info) -> Health {
    let docker = Some(version.version.clone());
    let option = |name: &str| {
        let options = info.security_options.iter().flatten();
        options.flat_map(|option| option.split(',')).any(|part| part == format!("name={name}"))
    };
    let bad = if option("rootless") {
        Some((
            "docker_rootless",
            "dockerd runs rootless and cannot enter network namespaces or mount disks; run it as root",
        ))
    } else if info.docker_root_dir.starts_with("/var/snap/") {
        Some((
            "docker_snap",
            "dockerd comes from a snap and does not see the host's folders; install docker.io or docker-ce",
        ))
    } else if option("userns") {
        Some((
            "docker_userns",
            "dockerd maps users (userns-remap), and disks would belong to nobody; take it out of daemon.json",
        ))
    } else if info.containerd_commit.id == NOT_REACHED {
        Some((
            "containerd_down",
            "dockerd does not reach containerd, without which it starts and stops nothing; its log says why",
        ))
    } else if !info.runtimes.iter().flatten().any(|(name, _)| name == RUNTIME) {
        Some((
            "runtime_missing",
            "dockerd does not know the runtime `enoki`; register it in /etc/docker/daemon.json and send SIGHUP",
        ))
    } else {
        None
    };
    match bad {
        Some((reason, message)) => Health { docker, ..degraded(reason, message.to_owned()) },
        None => Health {
            phase: HostPhase::Ready,
            reason: None,
            message: (!info.live_restore_enabled).then(|| {
                "live_restore_off: containers stop when dockerd stops; set `\"live-restore\": true`"
                    .to_owned()
            }),
            docker,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unfit_daemon_has_its_reason() {
        let judged = |json: &str| {
            let health = judge(&Version { version: "20.10.24".into() }, &serde_json::from_str(json).unwrap());
            (health.phase, health.reason.unwrap_or_default(), health.message.is_some())
        };
        let bad = |reason: &str| (HostPhase::Degraded, reason.to_owned(), true);
        let good = r#""Runtimes":{"runc":{},"enoki":{}},"LiveRestoreEnabled":true"#;
        assert_eq!(judged(&format!("{{{good}}}")), (HostPhase::Ready, String::new(), false));
        assert_eq!(
            judged(r#"{"Runtimes":{"enoki":{}},"SecurityOptions":null}"#),
            (HostPhase::Ready, String::new(), true)
        );
        assert_eq!(judged(r#"{"Runtimes":{"runc":{}}}"#), bad("runtime_missing"));
        let containerd =
            |id: &str| judged(&format!(r#"{{{good},"ContainerdCommit":{{"ID":"{id}","Expected":""}}}}"#));
        assert_eq!(containerd("N/A"), bad("containerd_down"));
        assert_eq!(containerd("1.6.20~ds1-1+deb12u1").0, HostPhase::Ready);
        assert_eq!(judged("{}"), bad("runtime_missing"));
        assert_eq!(
            judged(&format!(
                r#"{{{good},"SecurityOptions":["name=seccomp,profile=default","name=rootless"]}}"#
            )),
            bad("docker_rootless")
        );
        assert_eq!(judged(&format!(r#"{{{good},"SecurityOptions":["name=userns"]}}"#)), bad("docker_userns"));
        assert_eq!(
            judged(&format!(r#"{{{good},"DockerRootDir":"/var/snap/docker/common/var-lib-docker"}}"#)),
            bad("docker_snap")
        );
    }

    #[tokio::test]
    async fn down_and_hanging_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        let soon = Duration::from_millis(200);
        assert_eq!(health(&socket, soon).await.reason.as_deref(), Some("docker_down"));
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let hanging = health(&socket, soon).await;
        assert_eq!(hanging.reason.as_deref(), Some("docker_hanging"));
        assert_eq!(away(&hanging), hanging.message);
        assert_eq!(away(&degraded("runtime_missing", "it still starts programs".to_owned())), None);
    }
}
