//! The audit file: who did what, a JSON line each, append-only, on this server.

mod search;

use super::actor::Actor;
use enoki_api::audit::AuditEntry;
use jiff::Timestamp;
pub use search::{Query, search};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// At this size in bytes the file is moved aside (one older is kept).
const ROTATE_AT: u64 = 64 << 20;

/// The open file. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    path: PathBuf,
    file: File,
    rotate_at: u64,
}

impl Audit {
    pub fn open(path: &Path) -> io::Result<Self> {
        Audit::rotating_at(path, ROTATE_AT)
    }

    fn rotating_at(path: &Path, rotate_at: u64) -> io::Result<Self> {
        let inner = Inner { path: path.to_owned(), file: append(path)?, rotate_at };
        Ok(Audit { inner: Arc::new(Mutex::new(inner)) })
    }

    /// Notes what somebody did or was refused that is no request to the API. Must hold nothing secret.
    pub fn note(&self, actor: &Actor, what: &str, outcome: &str) {
        let (what, outcome) = (Some(what.to_owned()), Some(outcome.to_owned()));
        self.write(AuditEntry { what, outcome, ..of(actor) });
    }

    /// Notes a request. Without its body and its query: they can hold secrets.
    pub fn request(&self, actor: &Actor, method: &str, path: String, status: u16) {
        let (method, path, status) = (Some(method.to_owned()), Some(path), Some(status));
        self.write(AuditEntry { method, path, status, ..of(actor) });
    }

    fn write(&self, mut entry: AuditEntry) {
        let mut inner = self.lock();
        let length = inner.file.metadata().map_or(0, |metadata| metadata.len());
        if length >= inner.rotate_at
            && std::fs::rename(&inner.path, aside(&inner.path)).is_ok()
            && let Ok(file) = append(&inner.path)
        {
            inner.file = file;
        }
        // Under the lock: the lines are in the order of their times.
        entry.at = Timestamp::now();
        let written = serde_json::to_string(&entry)
            .map_err(io::Error::from)
            .and_then(|line| inner.file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = written {
            tracing::error!(%error, "the audit file does not take a line");
        }
    }

    /// The file and the one that was moved aside, the newest first, each with what is in it now.
    pub fn files(&self) -> io::Result<Vec<File>> {
        let inner = self.lock();
        let older = match File::open(aside(&inner.path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            older => Some(older?),
        };
        Ok(std::iter::once(File::open(&inner.path)?).chain(older).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn of(actor: &Actor) -> AuditEntry {
    let (uid, pid) = match actor {
        Actor::Local { uid, pid } => (*uid, *pid),
        Actor::Bearer { .. } | Actor::Machine(_) | Actor::Anonymous => (None, None),
    };
    AuditEntry { actor: actor.to_string(), uid, pid, ..AuditEntry::default() }
}
