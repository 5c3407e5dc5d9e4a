//! The six processes of a one-machine cloud: what each is called, how it is run, and how one tells that it answers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;

use super::process::Running;
use super::{daemon_json, docker, etcd, process};
use crate::config::{AgentConfig, ServerConfig, paths};

/// In the order of starting; stopping goes the other way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Service {
    Containerd,
    Dockerd,
    Etcd,
    Registry,
    Server,
    Agent,
}

impl Service {
    pub const ALL: [Self; 6] =
        [Self::Containerd, Self::Dockerd, Self::Etcd, Self::Registry, Self::Server, Self::Agent];

    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Dockerd => "dockerd",
            Self::Etcd => "etcd",
            Self::Registry => "registry",
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }

    pub fn log(self) -> PathBuf {
        log_file(self.name())
    }

    /// Long enough to finish what is being written; then it is killed, which all of them survive.
    pub fn stop_grace(self) -> Duration {
        Duration::from_secs(match self {
            Self::Containerd | Self::Dockerd => 30,
            Self::Etcd => 15,
            Self::Registry | Self::Server | Self::Agent => 10,
        })
    }

    /// How the kernel weighs it when memory runs out: containers must go first, and the shims' parent last.
    pub fn oom_score_adj(self) -> i32 {
        match self {
            Self::Containerd => -999,
            Self::Dockerd | Self::Etcd | Self::Registry | Self::Server | Self::Agent => -500,
        }
    }
}

pub fn log_file(name: &str) -> PathBuf {
    Path::new(paths::LOG).join(format!("{name}.log"))
}

/// What of the configuration decides which processes are ours to run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub server: ServerConfig,
    /// The unix socket that the agent will use.
    pub docker_socket: PathBuf,
    own_docker: bool,
    /// Where neither this machine's agent has its server here nor it has joined as a server, it is a host of a cloud elsewhere.
    own_server: bool,
}

impl Plan {
    pub fn load() -> Result<Self, crate::config::Error> {
        Ok(Self::new(ServerConfig::load()?, &AgentConfig::load()?))
    }

    pub fn new(server: ServerConfig, agent: &AgentConfig) -> Self {
        let docker_socket = PathBuf::from(agent.docker.trim_start_matches("unix://"));
        let own_docker = docker_socket == Path::new(paths::DOCKER_SOCKET);
        let own_server =
            !server.one_machine || agent.servers.iter().any(|server| server.starts_with("unix:"));
        Self { server, docker_socket, own_docker, own_server }
    }

    /// Whether the service is for us to start when it is not running. Docker on another socket and etcd elsewhere are not.
    pub fn runs(&self, service: Service) -> bool {
        match service {
            Service::Containerd | Service::Dockerd => self.own_docker,
            Service::Etcd => self.own_server && self.server.runs_own_etcd(),
            Service::Registry | Service::Server => self.own_server,
            Service::Agent => true,
        }
    }

    /// Whether something answers as this service, whoever started it.
    pub async fn answers(&self, service: Service) -> bool {
        match service {
            Service::Containerd => connects(Path::new(paths::CONTAINERD_SOCKET)).await,
            Service::Dockerd => docker::answers(&self.docker_socket).await,
            Service::Etcd => etcd::healthy(&self.server.etcd).await,
            Service::Registry => connects(Path::new(paths::REGISTRY_SOCKET)).await,
            Service::Server => connects(&self.server.api_socket).await,
            Service::Agent => agent_by_hand().is_some(),
        }
    }

    /// Why a process of ours is to be started anew. None: it is what it would be.
    pub fn outdated(&self, service: Service, running: &Running) -> Option<&'static str> {
        const CONFIGURED: &str = "its configuration has changed";
        let file = match service {
            Service::Containerd | Service::Dockerd => return None,
            Service::Etcd => {
                let (_, wanted) = self.command(service);
                let runs = process::arguments(running.pid()).into_iter().skip(1).map(OsString::from);
                return (!runs.eq(wanted)).then_some(CONFIGURED);
            }
            // What it is told never changes with a configuration of ours, only with our version.
            Service::Registry => return None,
            Service::Server => paths::SERVER_TOML,
            Service::Agent => paths::AGENT_TOML,
        };
        match running.outdated(&enoki_binary()) {
            true => Some("another binary is installed"),
            false => running.is_older_than(Path::new(file)).then_some(CONFIGURED),
        }
    }

    /// Program and arguments. Read at each start, so that an edited configuration counts from the next start on.
    pub fn command(&self, service: Service) -> (PathBuf, Vec<OsString>) {
        let strings = |args: &[&str]| args.iter().map(OsString::from).collect::<Vec<_>>();
        match service {
            Service::Containerd => (find_program("containerd"), Vec::new()),
            Service::Dockerd => (
                find_program("dockerd"),
                dockerd_args(&std::fs::read_to_string(paths::DOCKER_JSON).unwrap_or_default()),
            ),
            Service::Etcd => (find_program("etcd"), etcd::args(&self.server)),
            Service::Registry => (find_program("docker-registry"), strings(&["serve", paths::REGISTRY_YML])),
            Service::Server => (enoki_binary(), strings(&["server"])),
            Service::Agent => (enoki_binary(), strings(&["agent"])),
        }
    }
}

/// containerd is a process of its own: with dockerd's child, a killed dockerd would take it along.
fn dockerd_args(daemon_json: &str) -> Vec<OsString> {
    let mut args = Vec::new();
    for (key, flag, value) in [
        ("containerd", "--containerd", paths::CONTAINERD_SOCKET.to_owned()),
        ("hosts", "-H", format!("unix://{}", paths::DOCKER_SOCKET)),
    ] {
        // dockerd refuses to start when the file says it too.
        if !daemon_json::has(daemon_json, key) {
            args.push(flag.into());
            args.push(value.into());
        }
    }
    args
}

/// Where Debian and hand-made installations keep daemons; independent of whose shell runs `enoki up`.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program in [`PATH`]; the bare name when there is none, so that the error of executing it names it.
pub fn find_program(name: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let runnable = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    PATH.split(':').map(|folder| Path::new(folder).join(name)).find(runnable).unwrap_or_else(|| name.into())
}

/// The installed binary; the one that runs when none is installed.
pub fn enoki_binary() -> PathBuf {
    let installed = PathBuf::from(paths::BINARY);
    if installed.is_file() {
        return installed;
    }
    std::env::current_exe().unwrap_or(installed)
}

pub async fn connects(socket: &Path) -> bool {
    matches!(tokio::time::timeout(Duration::from_secs(2), UnixStream::connect(socket)).await, Ok(Ok(_)))
}

/// An agent that somebody runs by hand: it has no socket to ask, but two of them on one machine would fight.
fn agent_by_hand() -> Option<i32> {
    process::in_our_mounts().into_iter().find(|pid| {
        let arguments = process::arguments(*pid);
        arguments.get(1).is_some_and(|verb| verb == "agent") && process::program_name(*pid) == "enoki"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerd_gets_as_flags_only_what_its_file_does_not_say() {
        assert_eq!(
            dockerd_args("{}"),
            ["--containerd", "/run/containerd/containerd.sock", "-H", "unix:///var/run/docker.sock"]
                .map(OsString::from)
        );
        assert_eq!(
            dockerd_args(r#"{"hosts": ["fd://"]}"#),
            ["--containerd", "/run/containerd/containerd.sock"].map(OsString::from)
        );
        assert!(dockerd_args(r#"{"hosts": [], "containerd": "/x"}"#).is_empty());
    }

    #[test]
    fn what_others_run_is_not_ours_to_start() {
        let plan = |server: ServerConfig, agent: AgentConfig| {
            let plan = Plan::new(server, &agent);
            Service::ALL.into_iter().filter(|s| plan.runs(*s)).collect::<Vec<_>>()
        };
        assert_eq!(plan(ServerConfig::default(), AgentConfig::default()), Service::ALL);
        let mut server = ServerConfig::default();
        server.etcd.endpoints = vec!["https://198.18.0.2:2379".into()];
        let agent = AgentConfig { docker: "unix:///srv/docker.sock".into(), ..AgentConfig::default() };
        assert_eq!(plan(server, agent), [Service::Registry, Service::Server, Service::Agent]);
        let agent = AgentConfig { servers: vec!["https://198.18.0.2:7443".into()], ..AgentConfig::default() };
        let host_only = [Service::Containerd, Service::Dockerd, Service::Agent];
        assert_eq!(plan(ServerConfig::default(), agent), host_only);
    }
}
