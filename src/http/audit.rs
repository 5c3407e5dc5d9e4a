//! The audit file: who wrote what, a JSON line each, append-only, on this server.

use super::{App, Peer};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
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

    fn write(&self, line: &serde_json::Value) {
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

/// Every request that writes or enters an instance, with its outcome. Bodies and queries are not in it: they can
/// hold secrets.
pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let enters = path.ends_with("/exec") || path.ends_with("/console");
    let method = request.method().clone();
    if matches!(method, Method::GET | Method::HEAD | Method::OPTIONS) && !enters {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|info| info.0);
    let response = next.run(request).await;
    app.audit.write(&json!({
        "at": Timestamp::now(),
        "uid": peer.and_then(|peer| peer.uid),
        "pid": peer.and_then(|peer| peer.pid),
        "method": method.as_str(),
        "path": path,
        "status": response.status().as_u16(),
    }));
    response
}
