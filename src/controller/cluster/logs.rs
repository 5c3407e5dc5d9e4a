//! What drivers printed, kept as a file of the project when a job has ended: the driver itself can go then.

use super::page::Ways;
use crate::dispatch::StreamError;
use crate::registry::{self, Registry};
use axum::extract::ws::Message;
use enoki_api::file::FileRef;
use enoki_api::object::Uid;
use enoki_api::protocol::StreamRequest;
use enoki_api::stream::Frame;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::io;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

/// After one that could not be kept.
const AGAIN: Duration = Duration::from_secs(10);
/// For one: an instance keeps 50 MiB at most.
const LONGEST: Duration = Duration::from_secs(120);

/// Where a driver is.
pub struct Source {
    pub project: String,
    pub host: String,
    pub driver: Uid,
}

/// Logs that are being kept, and those that are, by job.
pub struct Logs {
    ways: Ways,
    registry: Registry,
    kept: HashMap<Uid, FileRef>,
    underway: HashSet<Uid>,
    failed: HashMap<Uid, Instant>,
    tasks: JoinSet<(Uid, Result<FileRef, Error>)>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Way(#[from] StreamError),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("{0}")]
    Broken(String),
    #[error("it took longer than 2 minutes")]
    Late,
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Registry(error.into())
    }
}

impl Logs {
    pub fn new(ways: Ways, registry: Registry) -> Self {
        Logs {
            ways,
            registry,
            kept: HashMap::new(),
            underway: HashSet::new(),
            failed: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// The log of this job, if this leader has kept it.
    pub fn of(&self, job: &Uid) -> Option<&FileRef> {
        self.kept.get(job)
    }

    /// Begins to keep it, unless that is under way or has just failed.
    pub fn keep(&mut self, job: &Uid, source: Source) {
        let lately = self.failed.get(job).is_some_and(|at| at.elapsed() < AGAIN);
        if lately || !self.underway.insert(job.clone()) {
            return;
        }
        let (ways, registry, job) = (self.ways.clone(), self.registry.clone(), job.clone());
        self.tasks.spawn(async move {
            let kept = tokio::time::timeout(LONGEST, copy(&ways, &registry, source)).await;
            (job, kept.unwrap_or(Err(Error::Late)))
        });
    }

    /// Forgets the jobs that are no more.
    pub fn retain(&mut self, there: impl Fn(&Uid) -> bool) {
        self.kept.retain(|job, _| there(job));
        self.failed.retain(|job, _| there(job));
    }

    /// Resolves when one was kept or could not be. Cancel-safe.
    pub async fn changed(&mut self) {
        let Some(ended) = self.tasks.join_next().await else { return std::future::pending().await };
        // A task that panicked told so itself; its job stays under way for as long as this server leads.
        let Ok((job, kept)) = ended else { return };
        self.underway.remove(&job);
        match kept {
            Ok(file) => drop(self.kept.insert(job, file)),
            Err(error) => {
                tracing::warn!(%job, %error, "the log of a driver could not be kept; it is tried again");
                self.failed.insert(job, Instant::now());
            }
        }
    }
}

async fn copy(ways: &Ways, registry: &Registry, source: Source) -> Result<FileRef, Error> {
    let Ways { broker, live, peers } = ways;
    let request =
        StreamRequest::Logs { uid: source.driver, follow: false, tail: None, since: None, timestamps: false };
    let mut socket = broker.open(live, peers, &source.host, request).await?;
    let mut room = registry.receive()?;
    let mut file = tokio::fs::File::from_std(room.file.try_clone()?);
    let (mut size, mut hasher) = (0, Sha256::new());
    loop {
        let message = socket.recv().await.ok_or_else(|| Error::Broken("the stream broke off".into()))?;
        let Message::Binary(message) = message.map_err(|error| Error::Broken(error.to_string()))? else {
            continue;
        };
        match Frame::decode(message) {
            Ok(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => {
                room.take(bytes.len() as u64)?;
                size += bytes.len() as u64;
                hasher.update(&bytes);
                file.write_all(&bytes).await?;
            }
            Ok(Frame::Exit(exit)) => match exit.error {
                None => break,
                Some(error) => return Err(Error::Broken(error)),
            },
            Ok(Frame::Stdin(_) | Frame::Resize(_) | Frame::CloseStdin) | Err(_) => {}
        }
    }
    file.flush().await?;
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let kept = FileRef { digest: format!("sha256:{hex}"), size };
    registry.keep(&source.project, &kept, room).await?;
    Ok(kept)
}
