//! Dials servers: WebSockets for the session and its streams, plain requests for archives and certificates.
//!
//! There may be several servers, and the leader alone has sessions: the others tell where it is. The session looks for it,
//! everything else goes where the session is.

use crate::credentials::HostPki;
use enoki_api::client::Client;
use enoki_api::endpoint::{Authority, Endpoint, Io};
use enoki_api::protocol::ARCHIVE_PATH;
use futures::TryStreamExt;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tokio_util::io::StreamReader;

/// Connect and handshake.
const DIAL: Duration = Duration::from_secs(5);
/// A full set of thousands of orders is one message.
const MESSAGE_MAX: usize = 64 << 20;

pub type Socket = WebSocketStream<Box<dyn Io>>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{server}: {source}")]
    Connect { server: String, source: io::Error },
    #[error("{0} did not answer in time")]
    Late(String),
    #[error("refused: {0}")]
    Handshake(Box<tokio_tungstenite::tungstenite::Error>),
    #[error("this host's credentials: {0}")]
    Credentials(String),
}

/// Where to dial. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
}

struct Shared {
    /// As configured: `unix:/PATH` or `https://HOST:PORT`.
    servers: Vec<String>,
    pki: HostPki,
    place: Mutex<Place>,
}

#[derive(Default)]
struct Place {
    /// The server that is tried (or has the session) now.
    current: usize,
    /// Where a server that does not lead said that the leader is.
    leader: Option<String>,
}

impl Dialer {
    /// # Panics
    /// When there is no server: the configuration has at least one.
    pub fn new(servers: Vec<String>, pki: HostPki) -> Self {
        assert!(!servers.is_empty(), "an agent has a server to dial");
        Dialer { shared: Arc::new(Shared { servers, pki, place: Mutex::default() }) }
    }

    /// A dialer of a socket of this machine.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::new(vec![format!("unix:{}", path.as_ref().display())], HostPki::default())
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Place> {
        self.shared.place.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The server that everything goes to now.
    pub fn server(&self) -> String {
        let place = self.place();
        place.leader.clone().unwrap_or_else(|| self.shared.servers[place.current].clone())
    }

    /// The next dial goes where the leader is said to be, or, when nobody knows, to the next server.
    pub fn move_on(&self, leader: Option<String>) {
        let mut place = self.place();
        if leader.is_none() || leader == place.leader {
            place.current = (place.current + 1) % self.shared.servers.len();
            place.leader = None;
        } else {
            place.leader = leader;
        }
    }

    /// Credentials are read anew for each connection: a renewed certificate needs nobody to be told.
    fn endpoint(&self, server: &str) -> Result<Endpoint, Error> {
        if let Some(path) = server.strip_prefix("unix:") {
            return Ok(Endpoint::unix(path.strip_prefix("//").unwrap_or(path)));
        }
        let unusable = |error: String| Error::Credentials(error);
        let authority = Authority::parse(server).map_err(unusable)?;
        let (trust, credentials) = self.shared.pki.load().map_err(|error| unusable(error.to_string()))?;
        Endpoint::https(authority, trust, Some(credentials)).map_err(|error| unusable(error.to_string()))
    }

    /// A client of the current server for plain calls.
    pub fn client(&self) -> Result<Client, Error> {
        let endpoint = self.endpoint(&self.server())?;
        Client::new(endpoint, None).map_err(|error| Error::Credentials(error.to_string()))
    }

    async fn connect(&self) -> Result<Box<dyn Io>, Error> {
        let server = self.server();
        let connected = self.endpoint(&server)?.connect().await;
        connected.map_err(|source| Error::Connect { server, source })
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
        timeout(DIAL, dial).await.map_err(|_| Error::Late(self.server()))?
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_looked_for() {
        let servers = ["https://a:7443", "https://b:7443"].map(str::to_owned).to_vec();
        let dialer = Dialer::new(servers, HostPki::default());
        let after = |hint: Option<&str>| {
            dialer.move_on(hint.map(str::to_owned));
            dialer.server()
        };
        assert_eq!(dialer.server(), "https://a:7443");
        assert_eq!(after(None), "https://b:7443");
        assert_eq!(
            after(Some("https://c:7443")),
            "https://c:7443",
            "a server that is not configured may lead"
        );
        // Who was said to lead does not, and says so of itself: ask the others.
        assert_eq!(after(Some("https://c:7443")), "https://a:7443");
        assert_eq!(after(None), "https://b:7443");
    }
}
