//! Plain HTTP on Docker's socket, for the two things that the client library does not do well: a raw answer that
//! no unknown value can spoil (health), and a connection that is taken over (exec).

use super::super::Error;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::path::Path;
use tokio::net::UnixStream;

/// A daemon's answers to our questions are far below this.
const ANSWER_MAX: usize = 8 << 20;

pub fn away(what: &str, why: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("{what}: {why}"))
}

/// A connection to the daemon. It ends when the sender and what was taken over of it are dropped.
pub async fn connect(socket: &Path) -> Result<SendRequest<Full<Bytes>>, Error> {
    let stream = UnixStream::connect(socket).await.map_err(|why| away(&socket.display().to_string(), why))?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|why| away("handshake", why))?;
    // Ends with the connection; its error is also the error of the request that waits on it.
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

/// Without a version in its path, a request is answered in the daemon's own newest version.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Error> {
    let mut sender = connect(socket).await?;
    let request = Request::get(path)
        .header(http::header::HOST, "docker")
        .body(Full::default())
        .map_err(|why| Error::Refused(format!("{path}: {why}")))?;
    let response = sender.send_request(request).await.map_err(|why| away(path, why))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await
        .map_err(|why| away(path, why))?
        .to_bytes();
    if !status.is_success() {
        return Err(away(path, format!("{status} {}", String::from_utf8_lossy(&body).trim())));
    }
    serde_json::from_slice(&body).map_err(|why| away(path, why))
}
