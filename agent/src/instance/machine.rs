//! What an instance needs of its host beside Docker: disk, links, the wrapper's record, generated files, limits.
//!
//! [`Linux`](super::linux::Linux) does it; [`Simulated`](super::simulated::Simulated) remembers it. Every method is
//! "make it so" and may be repeated, also after a kill in its middle.

use super::facts::Made;
use super::observed::Disk;
use crate::disk::Pinned;
use crate::limits::Running;
use crate::limits::squeeze::{Cpus, Load};
use async_trait::async_trait;
use enoki_api::instance::{Doomed, LimitsStatus};
use enoki_api::object::Uid;
use enoki_api::protocol::{Order, Overlay, Usage};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::net::TcpStream;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// A code for the status, as `network_unavailable`.
    pub reason: &'static str,
    pub message: String,
}

impl Error {
    pub fn new(reason: &'static str, message: impl ToString) -> Self {
        Error { reason, message: message.to_string() }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// PURE: what the order's disk remembers of the image that it is made on.
pub fn pin(order: &Order, id: &str) -> Pinned {
    let imported = order.imported.as_ref().filter(|imported| imported.image_id == id);
    Pinned {
        id: id.to_owned(),
        name: order.instance.spec.image.clone(),
        digest: imported.map(|imported| imported.digest.clone()),
    }
}

#[async_trait]
pub trait Machine: Send + Sync + 'static {
    /// Another value means that the host went down in between.
    fn boot(&self) -> &str;

    async fn disk(&self, disk: &Uid) -> Result<Option<Disk>>;

    /// Makes the order's disk (on `image`, which it then remembers), mounts it, grows it; never shrinks it.
    async fn ensure_disk(&self, order: &Order, image: Option<&str>) -> Result<()>;

    /// Whether a root disk or volume is there at all.
    async fn there(&self, what: Doomed, uid: &Uid) -> Result<bool>;

    /// Destroys a root disk or volume. Refuses while something is mounted on it.
    async fn destroy(&self, what: Doomed, uid: &Uid) -> Result<()>;

    /// Whether the instance has its namespace.
    async fn network(&self, uid: &Uid) -> Result<bool>;

    async fn ensure_network(&self, order: &Order) -> Result<()>;

    /// Has the network's frames go to the hosts where its instances are, and nowhere else.
    async fn connect(&self, overlay: &Overlay) -> Result<()>;

    /// Puts back what these orders' networks need of the host itself, and clears away what none of them needs, fetched
    /// files too.
    async fn tend(&self, orders: &[Order]) -> Result<()>;

    /// Whether a namespace or files of it are there.
    async fn remains(&self, uid: &Uid) -> Result<bool>;

    async fn remove_remains(&self, uid: &Uid) -> Result<()>;

    /// The disk that the wrapper's record of a container names.
    async fn record(&self, container: &str) -> Result<Option<Uid>>;

    /// Whether the kernel killed in the container's last run for memory, which Docker may have missed.
    async fn starved(&self, container: &str) -> Result<bool>;

    /// Ids of all containers that have a record.
    async fn records(&self) -> Result<Vec<String>>;

    async fn write_record(&self, order: &Order, container: &str, made: &Made) -> Result<()>;

    async fn remove_record(&self, container: &str) -> Result<()>;

    /// What is bound into the container: made when missing. Host path, path inside, read-only.
    async fn binds(&self, order: &Order) -> Result<Vec<(PathBuf, String, bool)>>;

    /// Whether the order's uploaded files are all in its folder.
    async fn delivered(&self, order: &Order) -> Result<bool>;

    /// Fetches them and puts them there. May take very long, and is given up by dropping it.
    async fn deliver(&self, order: &Order) -> Result<()>;

    /// Writes what can differ from start to start: hosts, hostname, resolv.conf, the user data script.
    async fn write_files(&self, order: &Order) -> Result<()>;

    /// Writes the grant to the running container and reads it back; a refusal leaves the old limits whole.
    async fn apply_limits(&self, order: &Order, container: &str, pid: u32) -> Result<LimitsStatus>;

    /// What a running container uses now.
    async fn usage(&self, uid: &Uid, container: &str, pid: u32) -> Result<Usage>;

    /// The host's CPUs, as counters.
    async fn cpus(&self) -> Result<Cpus>;

    /// What these containers use of them.
    async fn loads(&self, running: Vec<Running>) -> Result<BTreeMap<Uid, Load>>;

    /// A connection to the first of these addresses that listens, made from within the instance's network.
    async fn dial(&self, uid: &Uid, at: Vec<SocketAddr>) -> Result<TcpStream>;

    /// None: not ended yet, or there is no script.
    async fn user_data_exit_code(&self, disk: &Uid) -> Option<i64>;

    /// Where the init keeps the instance's output: a folder that the instance can write to, so nothing in it may be
    /// followed.
    async fn state_folder(&self, disk: &Uid) -> Result<PathBuf>;
}
