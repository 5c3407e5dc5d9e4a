//! The few questions that `enoki up` asks dockerd, over its unix socket and with a deadline each.
//!
//! The agent has a full client of its own; here a daemon must be looked at before anything else is set up, by calls that
//! every Docker since API 1.41 answers alike.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

/// An answer larger than this is not one that we asked for.
const MAX_BODY: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no answer on {socket} within {} s", limit.as_secs_f32())]
    Deadline { socket: String, limit: Duration },
    #[error("cannot reach {socket}: {source}")]
    Connect { socket: String, source: std::io::Error },
    #[error("{method} {path} on {socket}: {message}")]
    Broken { method: &'static str, path: String, socket: String, message: String },
    #[error("{method} {path}: {status}: {message}")]
    Refused { method: &'static str, path: String, status: u16, message: String },
}

/// The part of `GET /info` that matters here.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Info {
    pub security_options: Vec<String>,
    pub docker_root_dir: String,
    #[serde(rename = "OSType")]
    pub os_type: String,
    pub runtimes: serde_json::Map<String, serde_json::Value>,
    pub live_restore_enabled: bool,
    pub containers_running: u64,
    pub server_version: String,
    pub swarm: Swarm,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Swarm {
    /// `inactive`, or a state in which the daemon belongs to a swarm.
    pub local_node_state: String,
}

impl Info {
    /// The path registered for the runtime `name`; empty when dockerd does not tell, `None` when there is no such runtime.
    pub fn runtime(&self, name: &str) -> Option<&str> {
        Some(self.runtimes.get(name)?.get("path").and_then(|p| p.as_str()).unwrap_or_default())
    }

    pub fn in_swarm(&self) -> bool {
        !matches!(self.swarm.local_node_state.as_str(), "" | "inactive")
    }
}

/// One HTTP request over a unix socket; the whole of it, body included, within `limit`.
pub async fn request(
    socket: &Path,
    method: &'static str,
    path: &str,
    limit: Duration,
) -> Result<(u16, Bytes), Error> {
    let name = socket.display().to_string();
    tokio::time::timeout(limit, exchange(socket, method, path))
        .await
        .map_err(|_| Error::Deadline { socket: name, limit })?
}

async fn exchange(socket: &Path, method: &'static str, path: &str) -> Result<(u16, Bytes), Error> {
    let name = || socket.display().to_string();
    let broken = |e: &dyn std::fmt::Display| Error::Broken {
        method,
        path: path.to_owned(),
        socket: name(),
        message: e.to_string(),
    };
    let stream =
        UnixStream::connect(socket).await.map_err(|source| Error::Connect { socket: name(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
    let driver = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|e| broken(&e))?;
    let result = async {
        let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|e| broken(&e))?;
        Ok((status, body.to_bytes()))
    }
    .await;
    driver.abort();
    result
}

/// As [`request`], the answer as JSON; a status other than 2xx is an error with Docker's own words.
pub async fn call(
    socket: &Path,
    method: &'static str,
    path: &str,
    limit: Duration,
) -> Result<serde_json::Value, Error> {
    let (status, body) = request(socket, method, path, limit).await?;
    let value: Result<serde_json::Value, _> =
        if body.is_empty() { Ok(serde_json::Value::Null) } else { serde_json::from_slice(&body) };
    match (status, value) {
        (200..=299, Ok(value)) => Ok(value),
        (200..=299, Err(e)) => Err(Error::Broken {
            method,
            path: path.to_owned(),
            socket: socket.display().to_string(),
            message: e.to_string(),
        }),
        (_, value) => {
            let message = value.ok().and_then(|v| v.get("message")?.as_str().map(str::to_owned));
            let message = message.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
            Err(Error::Refused { method, path: path.to_owned(), status, message })
        }
    }
}

pub async fn info(socket: &Path) -> Result<Info, Error> {
    let value = call(socket, "GET", "/info", Duration::from_secs(15)).await?;
    serde_json::from_value(value).map_err(|e| Error::Broken {
        method: "GET",
        path: "/info".to_owned(),
        socket: socket.display().to_string(),
        message: e.to_string(),
    })
}

/// Whether a daemon answers at all.
pub async fn answers(socket: &Path) -> bool {
    matches!(request(socket, "GET", "/_ping", Duration::from_secs(5)).await, Ok((200, _)))
}

/// The process that listens on the socket; `None` when it cannot be told (socket activation, another pid namespace).
pub async fn daemon_pid(socket: &Path) -> Option<i32> {
    use super::process::program_name;
    let by_socket = async { UnixStream::connect(socket).await.ok()?.peer_cred().ok()?.pid() }.await;
    let by_file =
        || std::fs::read_to_string(crate::config::paths::DOCKER_PID).ok()?.trim().parse::<i32>().ok();
    [by_socket, by_file()].into_iter().flatten().find(|pid| program_name(*pid) == "dockerd")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_of_an_old_daemon_is_read() {
        let info: Info = serde_json::from_str(
            r#"{"SecurityOptions":["name=seccomp,profile=default"],"DockerRootDir":"/var/lib/docker","OSType":"linux",
                "Runtimes":{"enoki":{"path":"/usr/local/lib/enoki/runtime"},"runc":{"path":"runc"}},"LiveRestoreEnabled":true,
                "Swarm":{"LocalNodeState":"inactive"},"ServerVersion":"20.10.24","ContainersRunning":2,"Unknown":[1]}"#,
        )
        .unwrap();
        assert_eq!(info.runtime("enoki"), Some("/usr/local/lib/enoki/runtime"));
        assert_eq!(info.runtime("other"), None);
        assert!(info.live_restore_enabled && !info.in_swarm());
    }

    #[tokio::test]
    async fn a_daemon_that_never_answers_meets_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let error = request(&socket, "GET", "/_ping", Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        let error = request(&folder.path().join("none"), "GET", "/_ping", Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{error}");
    }
}
