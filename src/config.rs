//! What an operator may set: `/etc/enoki/server.toml` and `/etc/enoki/agent.toml`, and every fixed path in one place.
//!
//! Both files are optional: a missing file means every default below. A file that is there must be right: an unknown field,
//! a wrong type or a value that cannot work refuses the start with an error naming file, line and field. Nothing is guessed,
//! because a misspelt limit that is silently ignored is found only on the day it is needed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use enoki_api::endpoint::{Authority, PORT};
use enoki_api::quantity::{Bytes, MilliCpu};
use ipnet::Ipv4Net;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Every place on the machine that Enoki uses. They are part of the contract and not configurable: tests get their
/// isolation from a mount namespace, and an operator finds the same file on every machine.
pub mod paths {
    /// Configuration, credentials and the sealing key; root only.
    pub const ETC: &str = "/etc/enoki";
    pub const SERVER_TOML: &str = "/etc/enoki/server.toml";
    pub const AGENT_TOML: &str = "/etc/enoki/agent.toml";
    /// The key that seals what is secret in etcd.
    pub const SEAL_KEY: &str = "/etc/enoki/seal.key";
    /// The built-in CA and what it signed.
    pub const PKI: &str = "/etc/enoki/pki";
    /// What a host that joined by TLS shows and trusts: `host.pem`, `ca.crt`.
    pub const HOST_PKI: &str = "/etc/enoki/host";
    /// Sourced by a root shell, it makes plain `etcdctl` work.
    pub const ETCDCTL_ENV: &str = "/etc/enoki/etcdctl.env";

    /// Sockets, pid files, namespace pins: gone after a reboot.
    pub const RUN: &str = "/run/enoki";
    pub const API_SOCKET: &str = "/run/enoki/api.sock";
    pub const AGENT_SOCKET: &str = "/run/enoki/agent.sock";
    /// Where the registry listens, for this machine's server alone.
    pub const REGISTRY_SOCKET: &str = "/run/enoki/registry.sock";
    /// Its configuration, written before each start.
    pub const REGISTRY_YML: &str = "/run/enoki/registry.yml";
    pub const NETNS: &str = "/run/enoki/netns";
    /// Held by `enoki up` and `enoki down` while they work.
    pub const UP_LOCK: &str = "/run/enoki/up.lock";
    /// Held by the supervisor as long as it lives.
    pub const SUPERVISOR_LOCK: &str = "/run/enoki/supervisor.lock";

    /// Everything that must outlive a reboot.
    pub const STATE: &str = "/var/lib/enoki";
    pub const ETCD_DATA: &str = "/var/lib/enoki/etcd";
    pub const CONTAINERS: &str = "/var/lib/enoki/containers";
    pub const DISKS: &str = "/var/lib/enoki/disks";
    pub const VOLUMES: &str = "/var/lib/enoki/volumes";
    /// Imported images as the version before the registry kept them; taken over by the server.
    pub const ARCHIVES: &str = "/var/lib/enoki/images";
    /// What the registry keeps: the contents of imported images and uploaded files.
    pub const REGISTRY: &str = "/var/lib/enoki/registry";
    /// Uploads while they are received.
    pub const UPLOADS: &str = "/var/lib/enoki/uploads";
    /// What `enoki up` changed outside our own folders, so that `down --purge` can put exactly that back.
    pub const UP_STATE: &str = "/var/lib/enoki/up.json";

    pub const LOG: &str = "/var/log/enoki";

    pub const BINARY: &str = "/usr/local/bin/enoki";
    pub const RUNTIME: &str = "/usr/local/lib/enoki/runtime";
    pub const INIT: &str = "/usr/local/lib/enoki/init";

    pub const DOCKER_SOCKET: &str = "/var/run/docker.sock";
    pub const DOCKER_PID: &str = "/var/run/docker.pid";
    pub const DOCKER_JSON: &str = "/etc/docker/daemon.json";
    pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
    pub const UNITS: &str = "/etc/systemd/system";
    /// Present exactly where systemd is PID 1 (sd_booted(3)).
    pub const SYSTEMD_BOOTED: &str = "/run/systemd/system";

    /// etcd's port for clients.
    pub const ETCD_PORT: u16 = 2379;
    /// etcd's port for its other members.
    pub const ETCD_PEER_PORT: u16 = 2380;
    /// The one-machine etcd.
    pub const ETCD_CLIENT: &str = "127.0.0.1:2379";
    pub const ETCD_PEER: &str = "127.0.0.1:2380";
    pub const ETCD_ENDPOINT: &str = "https://127.0.0.1:2379";
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// `line` counts from 1 and is 0 where the fault belongs to no line; `field` is the key as written in the file.
    #[error("{}{}: {}{message}", path.display(), line_text(*line), field_text(field))]
    Invalid { path: PathBuf, line: usize, field: String, message: String },
}

fn line_text(line: usize) -> String {
    if line == 0 { String::new() } else { format!(", line {line}") }
}

fn field_text(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("{field}: ") }
}

/// `/etc/enoki/server.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// This server's name in elections, logs and audit. Default: the host's name.
    pub name: String,
    /// True: this machine is the whole cloud, and `enoki up` runs an etcd of its own unless `etcd.endpoints` says
    /// otherwise. Default: true.
    pub one_machine: bool,
    /// Each project's `default` network gets a /24 from here. Default: 198.19.0.0/16.
    pub pool: Ipv4Net,
    /// How many times a host's CPUs may be granted. Memory and pids are never granted beyond what the host has: a late
    /// CPU is slow, a late page is a killed process. Default: 4.0; at least 0.1, at most 100.
    pub cpu_overcommit: f64,
    /// The root-only key that seals what is secret in etcd; made when it is missing. Default: /etc/enoki/seal.key.
    pub key_file: PathBuf,
    /// Where the API listens. Default: /run/enoki/api.sock.
    pub api_socket: PathBuf,
    /// Where this machine's own agent dials in; root only. Default: /run/enoki/agent.sock.
    pub agent_socket: PathBuf,
    /// Where the API and the agents of other machines come in, over TLS: an address and a port. Default: nowhere on a
    /// one-machine cloud, else 0.0.0.0:7443.
    pub listen: Option<SocketAddr>,
    /// How others reach this server, the best first: DNS names or addresses, each with a port where it is not that of
    /// `listen`. They stand in its certificate, and agents are sent to the first. Default: the host's name.
    pub advertise: Vec<String>,
    /// The largest file that users upload for their jobs. Default: 512Mi; at least 1.
    pub largest_file: Bytes,
    pub etcd: EtcdConfig,
}

/// `[etcd]` of server.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdConfig {
    /// The preferred one first; the others are for when it does not serve. Default: the etcd of this machine. A list that
    /// does not begin with that means an etcd that somebody else runs: `enoki up` starts none.
    pub endpoints: Vec<String>,
    /// Where this machine's etcd listens besides loopback, so that other servers and their members of etcd reach it: an
    /// address of this machine. Default: nowhere.
    pub listen: Option<IpAddr>,
    /// Where this machine's member of etcd finds the others when it starts for the first time: `NAME=URL,...`, as
    /// `enoki server join` writes it. Default: it is the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_cluster: Option<String>,
    /// PEM files. Default: those of the built-in CA in /etc/enoki/pki.
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            name: hostname(),
            one_machine: true,
            pool: default_pool(),
            cpu_overcommit: 4.0,
            key_file: paths::SEAL_KEY.into(),
            api_socket: paths::API_SOCKET.into(),
            agent_socket: paths::AGENT_SOCKET.into(),
            listen: None,
            advertise: Vec::new(),
            largest_file: Bytes(512 << 20),
            etcd: EtcdConfig::default(),
        }
    }
}

impl Default for EtcdConfig {
    fn default() -> Self {
        let pki = Path::new(paths::PKI);
        Self {
            endpoints: vec![paths::ETCD_ENDPOINT.to_owned()],
            listen: None,
            initial_cluster: None,
            ca: pki.join("etcd-ca.crt"),
            cert: pki.join("server-client.crt"),
            key: pki.join("server-client.key"),
        }
    }
}

impl ServerConfig {
    /// Reads `/etc/enoki/server.toml`; every default when there is none.
    pub fn load() -> Result<Self, Error> {
        Self::load_from(Path::new(paths::SERVER_TOML))
    }

    pub fn load_from(path: &Path) -> Result<Self, Error> {
        let (config, text) = read::<Self>(path)?;
        config.check().map_err(|fault| fault.at(path, &text))?;
        Ok(config)
    }

    /// Writes `/etc/enoki/server.toml` anew, checked. Comments in an old one are lost.
    pub fn save(&self) -> anyhow::Result<()> {
        let path = Path::new(paths::SERVER_TOML);
        let text = toml::to_string(self)?;
        self.check().map_err(|fault| fault.at(path, &text))?;
        std::fs::create_dir_all(paths::ETC)?;
        Ok(write_atomic(path, text.as_bytes(), 0o644)?)
    }

    /// The same, with the etcd of others.
    pub fn with_etcd_at(self, endpoints: Vec<String>) -> Self {
        let etcd = EtcdConfig { endpoints, listen: None, initial_cluster: None, ..self.etcd };
        ServerConfig { etcd, ..self }
    }

    /// The same, with a member of etcd on this machine beside those of others, which serve until it can.
    pub fn with_etcd_member(self, listen: IpAddr, initial_cluster: String, others: Vec<String>) -> Self {
        let endpoints = std::iter::once(paths::ETCD_ENDPOINT.to_owned()).chain(others).collect();
        let etcd = EtcdConfig {
            endpoints,
            listen: Some(listen),
            initial_cluster: Some(initial_cluster),
            ..self.etcd
        };
        ServerConfig { etcd, ..self }
    }

    /// Where to listen on TLS. None: nowhere.
    pub fn listen(&self) -> Option<SocketAddr> {
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        self.listen.or((!self.one_machine).then_some(everywhere))
    }

    /// How others reach this server on TLS, the best first.
    pub fn reached_at(&self) -> Vec<Authority> {
        let port = self.listen().map_or(PORT, |listen| listen.port());
        let own = [self.name.clone()];
        let names = if self.advertise.is_empty() { &own[..] } else { &self.advertise };
        names.iter().filter_map(|name| Authority::with_port(name, port).ok()).collect()
    }

    /// Whether the etcd belongs to this machine's `enoki up`.
    pub fn runs_own_etcd(&self) -> bool {
        self.etcd.endpoints.first().is_some_and(|first| first == paths::ETCD_ENDPOINT)
    }

    /// Where the other members of etcd reach this machine's. None: it has none, or no other does.
    pub fn etcd_peer(&self) -> Option<String> {
        let listen = self.etcd.listen.filter(|_| self.runs_own_etcd())?;
        Some(etcd_peer_url(listen))
    }

    /// The name of this machine's member of etcd: that of the server, made to fit into etcd's flags.
    pub fn etcd_name(&self) -> String {
        etcd_name(&self.name)
    }

    /// Where other servers reach the cloud's etcd. Empty: nowhere, it listens on loopback alone.
    pub fn etcd_elsewhere(&self) -> Vec<String> {
        match (self.runs_own_etcd(), self.etcd.listen) {
            (true, Some(address)) => {
                let others = self.etcd.endpoints.iter().skip(1).cloned();
                std::iter::once(etcd_url(address)).chain(others).collect()
            }
            (true, None) => Vec::new(),
            (false, _) => self.etcd.endpoints.clone(),
        }
    }

    fn check(&self) -> Result<(), Fault> {
        if self.name.trim().is_empty() {
            return Err(Fault::new("name", "is empty; leave the line out to use the host's name"));
        }
        if !self.cpu_overcommit.is_finite() || !(0.1..=100.0).contains(&self.cpu_overcommit) {
            return Err(Fault::new(
                "cpu_overcommit",
                format!("is {}, must be from 0.1 to 100", self.cpu_overcommit),
            ));
        }
        if self.pool.prefix_len() > 24 {
            return Err(Fault::new(
                "pool",
                format!("{} has no room for a /24 network; give a /24 or larger", self.pool),
            ));
        }
        if self.pool.addr() != self.pool.network() {
            return Err(Fault::new(
                "pool",
                format!("{} has host bits set; write {}", self.pool, self.pool.trunc()),
            ));
        }
        for name in &self.advertise {
            Authority::with_port(name, PORT).map_err(|fault| Fault::new("advertise", fault))?;
        }
        if self.largest_file == Bytes(0) {
            return Err(Fault::new("largest_file", "is 0, so that no file could be uploaded"));
        }
        if self.etcd.endpoints.is_empty() {
            return Err(Fault::new("endpoints", "is empty; name at least one, or leave the line out"));
        }
        if self.etcd.listen.is_some() && !self.runs_own_etcd() {
            return Err(Fault::new("listen", "is for the etcd of this machine, and endpoints name another"));
        }
        if self.etcd.initial_cluster.is_some() && self.etcd.listen.is_none() {
            return Err(Fault::new(
                "initial_cluster",
                "is for a member that others reach; `listen` says where",
            ));
        }
        for endpoint in &self.etcd.endpoints {
            if !endpoint.starts_with("https://") {
                return Err(Fault::new(
                    "endpoints",
                    format!("{endpoint:?} must start with https://; etcd holds every secret"),
                ));
            }
        }
        for (field, path) in [
            ("key_file", &self.key_file),
            ("api_socket", &self.api_socket),
            ("agent_socket", &self.agent_socket),
            ("ca", &self.etcd.ca),
            ("cert", &self.etcd.cert),
            ("key", &self.etcd.key),
        ] {
            if !path.is_absolute() {
                return Err(Fault::new(field, format!("{:?} must be an absolute path", path.display())));
            }
        }
        Ok(())
    }
}

fn etcd_url(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, paths::ETCD_PORT))
}

/// Where a member of etcd that listens at `address` is reached by the others.
pub fn etcd_peer_url(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, paths::ETCD_PEER_PORT))
}

/// The name of a server's member of etcd.
pub fn etcd_name(server: &str) -> String {
    host_name_from(server)
}

/// `/etc/enoki/agent.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// This host's name in the cloud: 1-63 of a-z, 0-9 and '-', starting and ending with a letter or digit.
    /// Default: the machine's name, lower-cased and made to fit.
    pub host: String,
    /// What `--require k=v` and `--avoid k=v` are matched against. Default: none.
    pub labels: BTreeMap<String, String>,
    /// Where servers listen for agents: `unix:/PATH` on this machine, `https://HOST:7443` on others, any number of them.
    /// Default: unix:/run/enoki/agent.sock.
    pub servers: Vec<String>,
    /// Docker's API. Default: unix:///var/run/docker.sock.
    pub docker: String,
    /// Where other hosts reach this one, for networks that span hosts. Default: the address that it sends from over
    /// its default route.
    pub address: Option<Ipv4Addr>,
    /// Kept back from instances for the machine itself. Default: nothing but what the agent itself keeps back.
    pub reserve: Reserve,
}

/// `[reserve]` of agent.toml; `None` leaves the choice to the agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reserve {
    /// As in a manifest: "2Gi".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// As in a manifest: "0.5".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<MilliCpu>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            host: host_name_from(&hostname()),
            labels: BTreeMap::new(),
            servers: vec![format!("unix:{}", paths::AGENT_SOCKET)],
            docker: format!("unix://{}", paths::DOCKER_SOCKET),
            address: None,
            reserve: Reserve::default(),
        }
    }
}

impl AgentConfig {
    /// Reads `/etc/enoki/agent.toml`; every default when there is none.
    pub fn load() -> Result<Self, Error> {
        Self::load_from(Path::new(paths::AGENT_TOML))
    }

    pub fn load_from(path: &Path) -> Result<Self, Error> {
        let (config, text) = read::<Self>(path)?;
        config.check().map_err(|fault| fault.at(path, &text))?;
        Ok(config)
    }

    /// Writes `/etc/enoki/agent.toml` anew, checked. Comments in an old one are lost.
    pub fn save(&self) -> anyhow::Result<()> {
        let path = Path::new(paths::AGENT_TOML);
        let text = toml::to_string(self)?;
        self.check().map_err(|fault| fault.at(path, &text))?;
        std::fs::create_dir_all(paths::ETC)?;
        Ok(write_atomic(path, text.as_bytes(), 0o644)?)
    }

    fn check(&self) -> Result<(), Fault> {
        if host_name_from(&self.host) != self.host {
            return Err(Fault::new(
                "host",
                format!(
                    "{:?} must be 1-63 of a-z, 0-9 and '-', starting and ending with a letter or digit",
                    self.host
                ),
            ));
        }
        if self.servers.is_empty() {
            return Err(Fault::new("servers", "is empty; name at least one, or leave the line out"));
        }
        for server in &self.servers {
            let known = server.starts_with("unix:/")
                || (server.starts_with("https://") && Authority::parse(server).is_ok());
            if !known {
                return Err(Fault::new(
                    "servers",
                    format!("{server:?} must be unix:/PATH or https://HOST:PORT"),
                ));
            }
        }
        let unusable =
            |a: &Ipv4Addr| a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_broadcast();
        if let Some(address) = self.address.filter(unusable) {
            return Err(Fault::new(
                "address",
                format!("{address} is not an address that others reach it at"),
            ));
        }
        if !self.docker.starts_with("unix:///") {
            return Err(Fault::new(
                "docker",
                format!("{:?} must be unix:///PATH: an agent manages its own machine only", self.docker),
            ));
        }
        Ok(())
    }
}

/// Replaces a file whole: readers see the old bytes or the new ones, also after a crash or a power cut. The mode is set
/// before the first byte is written, so a secret is never readable for a moment.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let folder = path.parent().ok_or_else(|| std::io::Error::other("a file needs a folder"))?;
    let name =
        path.file_name().ok_or_else(|| std::io::Error::other("a file needs a name"))?.to_string_lossy();
    // One writer at a time is the callers' business (each holds a lock); the pid keeps a crashed one's remains apart.
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let result = (|| {
        std::fs::remove_file(&temporary)
            .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(folder)?.sync_all()
    })();
    if result.is_err() {
        // Nothing more can be done about a temporary file that does not go either.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// The machine's name made to fit a host name: lower case, anything else a '-', 63 at most, "host" when nothing is left.
pub fn host_name_from(machine: &str) -> String {
    let short = machine.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let mut name: String =
        short.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    name = name.trim_matches('-').to_owned();
    if name.is_empty() { "host".to_owned() } else { name }
}

/// The kernel's idea of this machine's name; "localhost" where it has none or it is not text.
fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

fn default_pool() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 0, 0), 16)
}

/// A value that parses and yet cannot work.
struct Fault {
    field: &'static str,
    message: String,
}

impl Fault {
    fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self { field, message: message.into() }
    }

    /// The line is looked up by the key's name: after parsing, the position of a value is gone.
    fn at(self, path: &Path, text: &str) -> Error {
        let line = text.lines().position(|line| key_of(line) == self.field).map_or(0, |index| index + 1);
        Error::Invalid { path: path.into(), line, field: self.field.to_owned(), message: self.message }
    }
}

fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<(T, String), Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok((T::default(), String::new()));
        }
        Err(source) => {
            return Err(Error::Read { path: path.into(), source });
        }
    };
    let value = toml::from_str(&text).map_err(|e| {
        let (line, field) = match e.span() {
            Some(span) => {
                let line = text[..span.start.min(text.len())].matches('\n').count();
                (line + 1, key_of(text.lines().nth(line).unwrap_or_default()).to_owned())
            }
            None => (0, String::new()),
        };
        Error::Invalid { path: path.into(), line, field, message: e.message().to_owned() }
    })?;
    Ok((value, text))
}

/// The key that a line of TOML sets; empty for a table header, a comment or the inside of a longer value.
fn key_of(line: &str) -> &str {
    match line.split_once('=') {
        Some((key, _)) if !key.trim_start().starts_with('#') => key.trim(),
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Result<ServerConfig, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ServerConfig::load_from(file.path())
            .map_err(|e| e.to_string().replace(&file.path().display().to_string(), "FILE"))
    }

    fn agent(text: &str) -> Result<AgentConfig, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        AgentConfig::load_from(file.path())
            .map_err(|e| e.to_string().replace(&file.path().display().to_string(), "FILE"))
    }

    #[test]
    fn a_missing_or_empty_file_means_the_defaults() {
        let missing = ServerConfig::load_from(Path::new("/nonexistent/server.toml")).unwrap();
        assert_eq!(missing, server("").unwrap());
        assert!(missing.runs_own_etcd());
        assert_eq!(missing.pool.to_string(), "198.19.0.0/16");
        assert_eq!(missing.cpu_overcommit, 4.0);
        assert_eq!(missing.largest_file, Bytes(512 << 20));
        assert_eq!(server("largest_file = \"2Gi\"\n").unwrap().largest_file, Bytes(2 << 30));
        assert_eq!(missing.etcd.cert, Path::new("/etc/enoki/pki/server-client.crt"));
        assert_eq!(agent("").unwrap().servers, ["unix:/run/enoki/agent.sock"]);
    }

    #[test]
    fn a_partial_table_keeps_the_other_defaults() {
        let config = server("[etcd]\nendpoints = [\"https://198.18.0.9:2379\"]\n").unwrap();
        assert!(!config.runs_own_etcd());
        assert_eq!(config.etcd.ca, Path::new("/etc/enoki/pki/etcd-ca.crt"));
        let config = agent("labels = { rack = \"a\" }\n[reserve]\nmemory = \"2Gi\"\n").unwrap();
        assert_eq!(config.labels["rack"], "a");
        assert_eq!(config.reserve.memory, Some(Bytes(2 << 30)));
        assert_eq!(agent("[reserve]\ncpus = \"0.5\"\n").unwrap().reserve.cpus, Some(MilliCpu(500)));
    }

    #[test]
    fn errors_name_file_line_and_field() {
        for (text, wanted) in [
            ("name = \"a\"\ncpu_overcomit = 2\n", "FILE, line 2: cpu_overcomit: unknown field"),
            ("\ncpu_overcommit = \"much\"\n", "FILE, line 2: cpu_overcommit: invalid type"),
            ("pool = \"198.19.0.0/28\"\n", "FILE, line 1: pool: 198.19.0.0/28 has no room"),
            ("pool = \"198.19.0.1/16\"\n", "FILE, line 1: pool: 198.19.0.1/16 has host bits"),
            ("cpu_overcommit = 0.0\n", "FILE, line 1: cpu_overcommit: is 0"),
            ("cpu_overcommit = nan\n", "FILE, line 1: cpu_overcommit: is NaN"),
            (
                "# a comment\n[etcd]\nendpoints = [\"http://a:1\"]\n",
                "FILE, line 3: endpoints: \"http://a:1\" must start",
            ),
            ("key_file = \"seal.key\"\n", "FILE, line 1: key_file: "),
            ("largest_file = 0\n", "FILE, line 1: largest_file: is 0"),
            ("name = \n", "FILE, line 1: name: "),
        ] {
            let error = server(text).unwrap_err();
            assert!(error.starts_with(wanted), "{text:?} gave {error:?}, wanted {wanted:?}");
        }
        for (text, wanted) in [
            ("host = \"Web_1\"\n", "FILE, line 1: host: \"Web_1\" must be"),
            ("docker = \"tcp://198.18.0.1:2375\"\n", "FILE, line 1: docker: "),
            ("[reserve]\nmemory = \"much\"\n", "FILE, line 2: memory: "),
        ] {
            let error = agent(text).unwrap_err();
            assert!(error.starts_with(wanted), "{text:?} gave {error:?}, wanted {wanted:?}");
        }
    }

    #[test]
    fn host_names_are_made_to_fit() {
        for (machine, wanted) in [
            ("Web01.example.org", "web01"),
            ("db_main", "db-main"),
            ("-x-", "x"),
            ("", "host"),
            ("ÄÖ", "host"),
            (&"a".repeat(80), &"a".repeat(63)),
        ] {
            assert_eq!(host_name_from(machine), wanted);
        }
    }
}
