//! The audit file: who did what, a JSON line each, append-only, on this server.

use super::actor::Actor;
use jiff::Timestamp;
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// At this size the file is moved aside (one older is kept).
const ROTATE_AT: u64 = 64 << 20;

/// The open file. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    path: std::path::PathBuf,
    file: std::fs::File,
}

impl Audit {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = Self::append(path)?;
        Ok(Audit { inner: Arc::new(Mutex::new(Inner { path: path.to_owned(), file })) })
    }

    fn append(path: &Path) -> std::io::Result<std::fs::File> {
        std::fs::File::options().create(true).append(true).mode(0o600).open(path)
    }

    /// Notes what somebody did or was refused. Must hold nothing secret.
    pub fn note(&self, actor: &Actor, what: &str, outcome: &str) {
        self.write(
            &json!({"at": Timestamp::now(), "actor": actor.to_string(), "what": what, "outcome": outcome}),
        );
    }

    pub fn write(&self, line: &serde_json::Value) {
        let mut inner = self.inner.lock().unwrap_or_else(|poison| poison.into_inner());
        if inner.file.metadata().is_ok_and(|metadata| metadata.len() >= ROTATE_AT) {
            let aside = inner.path.with_extension("log.1");
            if std::fs::rename(&inner.path, aside).is_ok()
                && let Ok(file) = Self::append(&inner.path)
            {
                inner.file = file;
            }
        }
        if let Err(error) = inner.file.write_all(format!("{line}\n").as_bytes()) {
            tracing::error!(%error, "the audit file does not take a line");
        }
    }
}
