//! Dials the server's socket for agents: WebSockets for the session and its streams, plain GET for archives.

use enoki_api::protocol::ARCHIVE_PATH;
use futures::TryStreamExt;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tokio_util::io::StreamReader;

/// Where the server of a one-machine cloud listens for its agent.
pub const AGENT_SOCKET: &str = "/run/enoki/agent.sock";
/// Connect and handshake.
const DIAL: Duration = Duration::from_secs(5);
/// A full set of thousands of orders is one message.
const MESSAGE_MAX: usize = 64 << 20;

pub type Socket = WebSocketStream<UnixStream>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("{0} did not answer in time")]
    Late(PathBuf),
    #[error("refused: {0}")]
    Handshake(Box<tokio_tungstenite::tungstenite::Error>),
}

/// Where to dial. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dialer {
    path: PathBuf,
}

impl Dialer {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Dialer { path: path.into() }
    }

    async fn connect(&self) -> Result<UnixStream, Error> {
        UnixStream::connect(&self.path)
            .await
            .map_err(|source| Error::Connect { path: self.path.clone(), source })
    }

    pub async fn websocket(&self, path: &str) -> Result<Socket, Error> {
        let dial = async {
            let stream = self.connect().await?;
            let config = WebSocketConfig::default()
                .max_message_size(Some(MESSAGE_MAX))
                .max_frame_size(Some(MESSAGE_MAX));
            let (socket, _) = client_async_with_config(format!("ws://enoki{path}"), stream, Some(config))
                .await
                .map_err(|error| Error::Handshake(Box::new(error)))?;
            Ok(socket)
        };
        timeout(DIAL, dial).await.map_err(|_| Error::Late(self.path.clone()))?
    }
}

#[async_trait::async_trait]
impl crate::image::Archives for Dialer {
    /// The body comes as it is read: an archive of gigabytes never is in memory.
    async fn open(&self, digest: &str) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        let request = async {
            let stream = self.connect().await.map_err(io::Error::other)?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
            // Ends with the body, or when the body is dropped.
            tokio::spawn(connection);
            let request = http::Request::get(format!("{ARCHIVE_PATH}/{digest}"))
                .header(http::header::HOST, "enoki")
                .body(Empty::<bytes::Bytes>::new())
                .map_err(io::Error::other)?;
            sender.send_request(request).await.map_err(io::Error::other)
        };
        let answer = timeout(DIAL, request).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if !answer.status().is_success() {
            return Err(io::Error::other(format!("the server answered {}", answer.status())));
        }
        let bytes = answer.into_body().into_data_stream().map_err(io::Error::other);
        Ok(Box::new(StreamReader::new(bytes)))
    }
}
