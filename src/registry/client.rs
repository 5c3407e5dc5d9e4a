//! The registry's HTTP API over its socket: what of it an import and a pull need.
//!
//! Every answer's head has a deadline. One connection a request: the socket is on this machine.

use super::Part;
use super::archive::MANIFEST_TYPE;
use bytes::Bytes;
use futures::TryStreamExt;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

/// The head of an answer to a question.
pub(super) const ASK: Duration = Duration::from_secs(10);
/// A disk that takes less than this a second is as good as none.
const SLOWEST: u64 = 2 << 20;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why the registry did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is down or hangs: it will be back.
    #[error("the registry does not answer: {0}")]
    Away(String),
    #[error("the registry answered {status}: {text}")]
    Refused { status: StatusCode, text: String },
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    socket: Arc<PathBuf>,
}

fn away(error: impl std::fmt::Display) -> Error {
    Error::Away(error.to_string())
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Client { socket: Arc::new(socket.to_owned()) }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
        deadline: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let asked = async {
            let stream = UnixStream::connect(&*self.socket).await.map_err(away)?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(away)?;
            // Ends with the answer's body, or when that is dropped.
            tokio::spawn(connection);
            let mut request = http::Request::new(body);
            *request.method_mut() = method;
            *request.uri_mut() = path.parse().map_err(away)?;
            *request.headers_mut() = headers;
            request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("enoki"));
            sender.send_request(request).await.map_err(away)
        };
        timeout(deadline, asked).await.map_err(|_| away(format!("no answer within {deadline:?}")))?
    }

    /// Reads from a path, whatever the answer is. The body comes as it is read.
    pub async fn read(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, Error> {
        self.send(method, path, headers, empty(), ASK).await
    }

    /// How the repository has a part: all of it is read.
    pub async fn look(&self, repository: &str, digest: &str, part: Part) -> Result<Blob, Error> {
        let path = format!("/v2/{repository}/{}/{digest}", part.word());
        let accept =
            HeaderMap::from_iter([(header::ACCEPT, header::HeaderValue::from_static(MANIFEST_TYPE))]);
        let answer = self.read(Method::GET, &path, accept).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(Blob::Absent),
            _ => return Err(refused(answer).await),
        }
        let mut hasher = Sha256::new();
        let mut body = answer.into_body();
        while let Some(frame) = timeout(ASK, body.frame()).await.map_err(|_| away("it stopped in a blob"))? {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => hasher.update(&data),
                Ok(Err(_)) => {}
                // Shorter than it was: as good as other bytes.
                Err(_) => return Ok(Blob::Damaged),
            }
        }
        let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(if digest == format!("sha256:{hex}") { Blob::Whole } else { Blob::Damaged })
    }

    /// Puts a blob of so many bytes. The registry refuses bytes that do not have the digest.
    pub async fn put_blob(
        &self,
        repository: &str,
        digest: &str,
        length: u64,
        bytes: impl AsyncRead + Send + 'static,
    ) -> Result<(), Error> {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let begun = self.send(Method::POST, &path, HeaderMap::new(), empty(), ASK).await?;
        let location =
            begun.headers().get(header::LOCATION).and_then(|at| at.to_str().ok().map(str::to_owned));
        let Some(location) = location.filter(|_| begun.status() == StatusCode::ACCEPTED) else {
            return Err(refused(begun).await);
        };
        let and = if location.contains('?') { '&' } else { '?' };
        let path = format!("{location}{and}digest={digest}");
        let body = StreamBody::new(ReaderStream::with_capacity(bytes, 256 << 10).map_ok(Frame::data));
        let mut headers = typed("application/octet-stream");
        headers.insert(header::CONTENT_LENGTH, length.into());
        let deadline = ASK * 6 + Duration::from_secs(length / SLOWEST);
        let put = self.send(Method::PUT, &path, headers, body.boxed_unsync(), deadline).await?;
        created(put).await
    }

    /// Puts a manifest, whose blobs are there by now.
    pub async fn put_manifest(&self, repository: &str, digest: &str, manifest: Vec<u8>) -> Result<(), Error> {
        let path = format!("/v2/{repository}/manifests/{digest}");
        let body = Full::from(manifest).map_err(|never| match never {}).boxed_unsync();
        created(self.send(Method::PUT, &path, typed(MANIFEST_TYPE), body, ASK).await?).await
    }
}

/// How a blob is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blob {
    Whole,
    Absent,
    /// Something is kept under its name that it is not.
    Damaged,
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

fn typed(kind: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_TYPE, header::HeaderValue::from_static(kind))])
}

async fn created(answer: Response<Incoming>) -> Result<(), Error> {
    match answer.status() {
        StatusCode::CREATED => Ok(()),
        _ => Err(refused(answer).await),
    }
}

/// How long the body is, or would be to a GET.
pub fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What a refusal says, as far as it is short.
pub(super) async fn refused(answer: Response<Incoming>) -> Error {
    let status = answer.status();
    let text = http_body_util::Limited::new(answer.into_body(), 4 << 10).collect();
    let text = match timeout(ASK, text).await {
        Ok(Ok(text)) => String::from_utf8_lossy(&text.to_bytes()).trim().to_owned(),
        _ => String::new(),
    };
    Error::Refused { status, text }
}
