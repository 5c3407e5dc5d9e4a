//! What a server and an agent say to each other over one WebSocket, as JSON messages.
//!
//! The agent dials and says `hello`; the server answers `welcome` with a session id that the agent never stores,
//! then the full set of orders, then deltas chained by `from` and `to`: a gap ends the session, and the next one
//! starts with a full set. Absence from a full set never means delete.

use crate::file;
use crate::host::{Capacity, HostPhase};
use crate::image::Imported;
use crate::instance::{Assignment, Instance, LimitsStatus, Phase, Tombstone};
use crate::mac::Mac;
use crate::network::Network;
use crate::object::{Labels, Uid};
use crate::volume::Volume;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The version of this protocol; N and N-1 work together.
pub const VERSION: u32 = 1;
/// Where the agent opens its session.
pub const SESSION_PATH: &str = "/agent/v1/session";
/// Where the agent opens a stream that a server asked for: `/agent/v1/streams/ID`.
pub const STREAM_PATH: &str = "/agent/v1/streams";
/// Where a machine with a join token becomes a host: POST of [`Join`], answered by [`Joined`].
pub const JOIN_PATH: &str = "/agent/v1/join";
/// Where a host gets its next certificate: POST of [`Renew`], answered by [`Joined`].
pub const CERTIFICATE_PATH: &str = "/agent/v1/certificate";
/// Where a host pulls what it needs of imported images: the pull half of the registry protocol, one repository an
/// image, named by its manifest's digest ([`repository`]).
pub const REGISTRY_PATH: &str = "/v2";

/// Where a host gets the uploaded files that its instances name: `/agent/v1/files/PROJECT/DIGEST`.
pub const FILES_PATH: &str = "/agent/v1/files";

/// The repository of an imported image in the registry. None: that is no digest.
pub fn repository(digest: &str) -> Option<String> {
    file::hex(digest).map(|hex| format!("images/{hex}"))
}

/// From agent to server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAgent {
    Hello(Hello),
    Heartbeat {
        health: Health,
    },
    /// Reports that changed since they were last sent in this session.
    Reports {
        reports: Vec<Report>,
    },
    /// What carries our label and is named by no order: the whole set, each time it changes.
    Orphans {
        orphans: Vec<Orphan>,
    },
    /// Tombstones that are done on this host.
    Buried {
        uids: Vec<Uid>,
    },
    /// Which of the images that it is to have beforehand the host has: their ids, the whole set, each time it changes.
    Prepulled {
        images: BTreeSet<String>,
    },
    /// For the log of events of an instance.
    Happened {
        uid: Uid,
        reason: String,
        message: String,
        warning: bool,
    },
}

/// From server to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromServer {
    Welcome {
        session: String,
        heartbeat_ms: u64,
    },
    /// Every order for this host.
    Full {
        sequence: u64,
        orders: Vec<Order>,
        tombstones: Vec<Tombstone>,
    },
    /// What changed. `from` is the sequence it follows on.
    Delta {
        from: u64,
        to: u64,
        orders: Vec<Order>,
        tombstones: Vec<Tombstone>,
    },
    /// Who is where on networks that span hosts: after a full set all that this host has an instance on, then each
    /// that changed. Only for agents that told an address.
    Overlays {
        overlays: Vec<Overlay>,
    },
    /// The images that this host is to have beforehand: the whole set, each time it changes. Only for agents that
    /// know of it ([`Hello::prepulls`]).
    Prepull {
        images: Vec<Prepull>,
    },
    HeartbeatReply {
        heartbeat_ms: u64,
        /// Where all servers are reached, whenever that has changed: `https://HOST:PORT`. Empty: as before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        servers: Vec<String>,
    },
    /// Dial back a stream of this id and serve the request on it.
    Open {
        stream: String,
        request: StreamRequest,
        /// The server that waits for it. None: the one that has the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
    },
    /// The session ends; say why in the agent's log.
    Goodbye {
        reason: String,
        /// Where the leader is, where that is the reason and known: `https://HOST:PORT`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        leader: Option<String>,
    },
}

/// Who the agent is and what its host has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub host: String,
    /// Of the host, made at the agent's first start: a new machine of the same name is another host.
    pub uid: Uid,
    #[serde(default)]
    pub labels: Labels,
    pub capacity: Capacity,
    pub cgroup: String,
    /// Where other hosts reach this one. None: an agent that knows no networks that span hosts, or none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Whether this agent takes [`FromServer::Prepull`].
    #[serde(default)]
    pub prepulls: bool,
    pub health: Health,
}

/// A machine asks to become a host. Its token is the request's bearer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Join {
    pub host: String,
    pub uid: Uid,
    #[serde(default)]
    pub labels: Labels,
    /// Of the key that the machine has made and keeps: base64 of an uncompressed point of P-256.
    pub public_key: String,
}

/// A host asks for its next certificate, for a new key of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Renew {
    pub public_key: String,
}

/// What a host shows to servers from now on, and knows them by. Both PEM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    pub certificate: String,
    pub ca: String,
}

/// Who is where on one network that spans hosts, as one of them has to know it. The whole of it each time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The network's uid.
    pub network: Uid,
    /// The other hosts with an instance on it. None: this host is alone on it, or not on it any more.
    pub hosts: BTreeSet<Ipv4Addr>,
    /// The instances on these.
    pub entries: Vec<OverlayEntry>,
}

/// An interface on another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayEntry {
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub host_address: Ipv4Addr,
}

/// How the host's Docker is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    pub phase: HostPhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<String>,
}

/// All that a host needs to know to run an instance, with or without a server: what the agent's ledger keeps,
/// and enough to bring the instance back into an empty store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub instance: Instance,
    pub assignment: Assignment,
    /// The root disk's uid.
    pub disk: Uid,
    /// By name, of the instance's nics.
    #[serde(default)]
    pub networks: BTreeMap<String, Network>,
    /// By name, of its mounts.
    #[serde(default)]
    pub volumes: BTreeMap<String, Volume>,
    /// Its environment with secrets filled in.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The imported image that its disk starts from. None: the host's Docker has it or pulls it.
    #[serde(default)]
    pub imported: Option<Imported>,
    /// Whether that is what the image's name means now: only then the host's Docker has it under that name.
    #[serde(default)]
    pub current: bool,
}

impl Order {
    pub fn uid(&self) -> &Uid {
        &self.instance.uid
    }

    /// `PROJECT/NAME`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.instance.project.as_deref().unwrap_or("-"), self.instance.name)
    }
}

/// An image that a host is to have before an instance needs it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Prepull {
    /// What it is called in the host's Docker.
    pub name: String,
    pub imported: Imported,
}

/// What an agent has seen of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub uid: Uid,
    pub epoch: u64,
    /// The instance's generation, and the assignment's, that the host has acted on.
    pub generation: u64,
    pub assignment_generation: u64,
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    #[serde(default)]
    pub oom_killed: bool,
    #[serde(default)]
    pub restarts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_exit_code: Option<i64>,
    #[serde(default)]
    pub limits: LimitsStatus,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart_required: Vec<String>,
    /// Since when it waits for CPUs that instances of higher priority use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squeezed_since: Option<Timestamp>,
}

/// An instance that runs (or lies) on a host and is named by nobody.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Orphan {
    /// The agent's own record. None: only the container's labels are left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    pub project: String,
    pub name: String,
    pub uid: Uid,
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
}

/// What a stream is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamRequest {
    Exec {
        uid: Uid,
        command: Vec<String>,
        tty: bool,
        stdin: bool,
        #[serde(default)]
        size: Option<TerminalSize>,
        #[serde(default)]
        env: BTreeMap<String, String>,
    },
    /// A login shell of root on a new terminal.
    Console {
        uid: Uid,
        #[serde(default)]
        size: Option<TerminalSize>,
        #[serde(default)]
        term: Option<String>,
    },
    /// What each of these uses now: one `Stdout` message each, JSON [`Usage`], then `Exit`.
    Stats { uids: Vec<Uid> },
    Logs {
        uid: Uid,
        follow: bool,
        /// The last so many lines. None: all that are kept.
        #[serde(default)]
        tail: Option<u64>,
        #[serde(default)]
        since: Option<Timestamp>,
        #[serde(default)]
        timestamps: bool,
    },
    /// A TCP connection to a port of the instance, made from within its own network. `Stdin` and `Stdout` are the bytes to
    /// and from it, `CloseStdin` ends the first; `Exit` comes when it is closed, with an error where it never was open.
    Dial { uid: Uid, port: u16 },
    /// Of a newer version.
    #[serde(other)]
    Unknown,
}

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// The first byte of each binary message on a stream; the rest is its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    /// Client to host, JSON [`TerminalSize`].
    Resize = 3,
    /// Host to client, JSON [`Exit`]: the last message.
    Exit = 4,
    /// Client to host, empty: no more input.
    CloseStdin = 5,
}

impl Channel {
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Channel::Stdin,
            1 => Channel::Stdout,
            2 => Channel::Stderr,
            3 => Channel::Resize,
            4 => Channel::Exit,
            5 => Channel::CloseStdin,
            _ => return None,
        })
    }
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// The program's own, 128+n for a signal, 125 when it could not be run.
    pub code: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What an instance uses, as the kernel counts it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub uid: Uid,
    /// CPU time since its start, in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory without what the kernel can drop at once.
    pub memory_bytes: u64,
    pub pids: u64,
    /// Read from and written to disks since its start.
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub at: Timestamp,
}
