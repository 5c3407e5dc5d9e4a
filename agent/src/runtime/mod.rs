//! The container runtime: what the agent asks of Docker, and nothing more.
//!
//! Two implementations stand behind [`Runtime`]: Docker by its API ([`docker`]) and a simulated one
//! ([`simulated`]) for tests and simulation; one conformance suite keeps them alike. The runtime knows nothing of
//! grants, networks or disks: limits, network namespace and root disk reach a container through the agent's
//! record and the runtime wrapper.

pub mod docker;
pub mod runc;
pub mod simulated;

use async_trait::async_trait;
use enoki_api::object::Uid;
use enoki_api::protocol::{Health, TerminalSize};
use futures::stream::BoxStream;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncWrite;

/// What went wrong, by what a caller would do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon does not answer, or not in time: try again later, believe nothing.
    #[error("docker does not answer: {0}")]
    Unavailable(String),
    /// The container or image is not there.
    #[error("{0}")]
    NotFound(String),
    /// Another container has the name, or the container is in a state that does not allow this.
    #[error("{0}")]
    Conflict(String),
    /// Docker (or the runtime wrapper) refused; asking again the same way gives the same answer.
    #[error("{0}")]
    Refused(String),
}

/// A container that carries our labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub id: String,
    /// `enoki.PROJECT.NAME`.
    pub name: String,
    pub uid: Uid,
    pub epoch: u64,
    /// Fingerprint of what the container was made from (label `enoki.spec`).
    pub spec: String,
    pub project: String,
    pub instance: String,
    pub state: State,
}

/// Where a container stands.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Made, never started.
    Created,
    Running {
        pid: u32,
        started_at: Timestamp,
    },
    Exited {
        code: i64,
        oom_killed: bool,
        finished_at: Timestamp,
        error: String,
    },
    /// Being removed, or half removed by a daemon that died.
    Broken,
}

/// What a container is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Create {
    pub name: String,
    /// By id (`sha256:...`), never by a name that may move.
    pub image: String,
    /// The init with its options, `--`, and the command's words.
    pub entrypoint: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub hostname: String,
    /// None: the image's own.
    pub user: Option<String>,
    /// Host path, path inside, read-only.
    pub binds: Vec<(PathBuf, String, bool)>,
    pub labels: BTreeMap<String, String>,
    /// How long a daemon that stops it itself should wait.
    pub stop_grace: Duration,
}

/// What an image says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageInfo {
    pub id: String,
    /// As `repository:tag`.
    pub names: Vec<String>,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub volumes: Vec<String>,
    /// `user[:group]` that the command runs as. None: root.
    pub user: Option<String>,
}

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Something happened to one of our containers.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub uid: Uid,
    pub container: String,
    /// Docker's word: `start`, `die`, `oom`, `destroy`, ...
    pub action: String,
}

/// A program to run in a running container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecRequest {
    pub command: Vec<String>,
    /// Beside the container's own.
    pub env: BTreeMap<String, String>,
    pub tty: bool,
    pub stdin: bool,
    pub size: Option<TerminalSize>,
}

/// A program that runs: its output as it comes, its input, and its end.
pub struct ExecStream {
    /// Handle for [`Runtime::exec_resize`] and [`Runtime::exec_exit`].
    pub id: String,
    pub output: BoxStream<'static, Result<Output, Error>>,
    pub input: std::pin::Pin<Box<dyn AsyncWrite + Send>>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    Exited(i64),
    /// It never ran; why is the only piece of its output. A program that itself ends with 126 or 127, as a shell
    /// does, has run.
    NotStarted,
}

/// A piece of a program's output.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Stdout(bytes::Bytes),
    Stderr(bytes::Bytes),
}

/// Every call has its own deadline inside; none hangs with a daemon that does.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Whether the daemon answers and is one that we can use.
    async fn health(&self) -> Health;

    /// Every container with our labels, running or not. An error means *unknown*, never *none*.
    async fn list(&self) -> Result<Vec<Container>, Error>;

    /// One container, by id or name. `Ok(None)`: known to be absent.
    async fn inspect(&self, id: &str) -> Result<Option<Container>, Error>;

    /// Makes a container and returns its id (64 hexadecimal digits).
    async fn create(&self, create: &Create) -> Result<String, Error>;

    /// Idempotent: a running container stays as it is.
    async fn start(&self, id: &str) -> Result<(), Error>;

    /// SIGTERM, `grace`, SIGKILL; returns when it has ended. Idempotent.
    async fn stop(&self, id: &str, grace: Duration) -> Result<(), Error>;

    /// Removes a container that does not run. Idempotent. Never removes volumes.
    async fn remove(&self, id: &str) -> Result<(), Error>;

    /// Events from now on; ends when the daemon goes away (re-list, then ask again).
    async fn events(&self) -> Result<BoxStream<'static, Event>, Error>;

    /// An image by name or id. `Ok(None)`: known to be absent.
    async fn image(&self, name: &str) -> Result<Option<ImageInfo>, Error>;

    /// Pulls by name (and digest) from its registry.
    async fn pull(&self, name: &str, login: Option<&Login>) -> Result<(), Error>;

    /// Gives the image `id` the name.
    async fn tag(&self, id: &str, name: &str) -> Result<(), Error>;

    /// Takes a name from an image. Idempotent. An image without any other is removed with it.
    async fn untag(&self, name: &str) -> Result<(), Error>;

    /// A program that could not be started is an error, or an end as [`ExecEnd::NotStarted`].
    async fn exec(&self, container: &str, request: &ExecRequest) -> Result<ExecStream, Error>;

    async fn exec_resize(&self, exec: &str, size: TerminalSize) -> Result<(), Error>;

    /// How it ended, once it has.
    async fn exec_exit(&self, exec: &str) -> Result<Option<ExecEnd>, Error>;
}
