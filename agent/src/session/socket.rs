//! Dials servers: WebSockets for the session and its streams, plain requests for images, files and certificates.
//!
//! There may be several servers, and the leader alone has sessions: the others tell where it is. The session looks for it,
//! everything else goes where the session is.

use crate::credentials::HostPki;
use crate::ledger::file;
use bytes::Bytes;
use enoki_api::client::Client;
use enoki_api::endpoint::{Authority, Endpoint, Io};
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Connect and handshake.
const DIAL: Duration = Duration::from_secs(5);
/// What is read at once.
const BUFFER: usize = 16 << 10;
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

/// A way to servers other than this machine's sockets and networks: a simulation's.
#[async_trait::async_trait]
pub trait Transport: Send + Sync + 'static {
    /// `server` as it is configured, or as a server told it.
    async fn connect(&self, server: &str) -> io::Result<Box<dyn Io>>;
}

/// Where to dial. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
}

struct Shared {
    pki: HostPki,
    /// Where the servers that a leader told of are kept over the agent's end. None: nowhere.
    learned: Option<PathBuf>,
    /// None: sockets, and TLS with `pki`.
    transport: Option<Box<dyn Transport>>,
    place: Mutex<Place>,
}

struct Place {
    /// As configured (`unix:/PATH` or `https://HOST:PORT`), then as learned.
    servers: Vec<String>,
    configured: usize,

    /// The server that is tried (or has the session) now.
    current: usize,
    /// Where a server that does not lead said that the leader is.
    leader: Option<String>,
}

impl Dialer {
    /// # Panics
    /// When there is no server: the configuration has at least one.
    pub fn new(servers: Vec<String>, pki: HostPki) -> Self {
        Self::make(servers, pki, None, None)
    }

    /// Dials these servers by another way.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn over(servers: Vec<String>, transport: impl Transport) -> Self {
        Self::make(servers, HostPki::default(), None, Some(Box::new(transport)))
    }

    fn make(
        servers: Vec<String>,
        pki: HostPki,
        learned: Option<PathBuf>,
        transport: Option<Box<dyn Transport>>,
    ) -> Self {
        assert!(!servers.is_empty(), "an agent has a server to dial");
        let place = Place { configured: servers.len(), servers, current: 0, leader: None };
        Dialer { shared: Arc::new(Shared { pki, learned, transport, place: Mutex::new(place) }) }
    }

    /// As [`Self::new`], with what a leader told of before; what it tells from now on is kept in this file.
    pub fn remembering(servers: Vec<String>, pki: HostPki, learned: &Path) -> Self {
        let dialer = Self::make(servers, pki, Some(learned.to_owned()), None);
        let before = std::fs::read_to_string(learned).unwrap_or_default();
        dialer.learn(before.lines().map(str::to_owned).collect());
        dialer
    }

    /// A dialer of a socket of this machine.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::new(vec![format!("unix:{}", path.as_ref().display())], HostPki::default())
    }

    /// Where all servers are reached, says the leader: they are tried when it is gone.
    pub fn learn(&self, servers: Vec<String>) {
        let mut place = self.place();
        let configured = place.configured;
        let fresh: Vec<String> =
            servers.into_iter().filter(|server| !place.servers[..configured].contains(server)).collect();
        if fresh == place.servers[configured..] {
            return;
        }
        if let Some(path) = &self.shared.learned
            && let Err(error) = file::write_bytes(path, fresh.join("\n").as_bytes())
        {
            tracing::warn!(%error, file = %path.display(), "the cloud's servers are not kept");
        }
        place.servers.truncate(configured);
        place.servers.extend(fresh);
        // Whoever is dialled now may have moved in the list; the session tells where it is.
        place.current = place.current.min(configured - 1);
    }

    /// The unix socket of a server on this machine, and the credentials for the others, where the first is configured and
    /// the second are missing.
    pub fn without_credentials(&self) -> Option<(Endpoint, HostPki)> {
        let place = self.place();
        let socket = place.servers.iter().find_map(|server| server.strip_prefix("unix:"))?;
        let elsewhere =
            place.leader.is_some() || place.servers.iter().any(|server| !server.starts_with("unix:"));
        let endpoint = Endpoint::unix(socket.strip_prefix("//").unwrap_or(socket));
        (elsewhere && self.shared.pki.is_missing()).then(|| (endpoint, self.shared.pki.clone()))
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Place> {
        self.shared.place.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The server that everything goes to now.
    pub fn server(&self) -> String {
        let place = self.place();
        place.leader.clone().unwrap_or_else(|| place.servers[place.current].clone())
    }

    /// The next dial goes where the leader is said to be, or, when nobody knows, to the next server.
    pub fn move_on(&self, leader: Option<String>) {
        let mut place = self.place();
        if leader.is_none() || leader == place.leader {
            place.current = (place.current + 1) % place.servers.len();
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

    /// A connection to one server.
    pub async fn connect(&self, server: &str) -> Result<Box<dyn Io>, Error> {
        let connected = match &self.shared.transport {
            Some(transport) => transport.connect(server).await,
            None => self.endpoint(server)?.connect().await,
        };
        connected.map_err(|source| Error::Connect { server: server.to_owned(), source })
    }

    /// Asks the current server, over a connection of its own; the body comes as it is read. The caller bounds the wait.
    pub async fn request(&self, mut request: Request<Full<Bytes>>) -> io::Result<Response<Incoming>> {
        let stream = self.connect(&self.server()).await.map_err(io::Error::other)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends with the answer's body, or when that is dropped.
        tokio::spawn(connection);
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("enoki"));
        sender.send_request(request).await.map_err(io::Error::other)
    }

    pub async fn websocket(&self, path: &str) -> Result<Socket, Error> {
        self.websocket_to(None, path).await
    }

    /// At this server; None: where the session is.
    pub async fn websocket_to(&self, server: Option<&str>, path: &str) -> Result<Socket, Error> {
        let server = server.map_or_else(|| self.server(), str::to_owned);
        let dial = async {
            let stream = self.connect(&server).await?;
            let config = WebSocketConfig::default()
                .read_buffer_size(BUFFER)
                .max_message_size(Some(MESSAGE_MAX))
                .max_frame_size(Some(MESSAGE_MAX));
            let (socket, _) = client_async_with_config(format!("ws://enoki{path}"), stream, Some(config))
                .await
                .map_err(|error| Error::Handshake(Box::new(error)))?;
            Ok(socket)
        };
        timeout(DIAL, dial).await.map_err(|_| Error::Late(server.clone()))?
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

    #[test]
    fn servers_that_a_leader_tells_of_are_tried_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("servers");
        let dialer = || Dialer::remembering(vec!["https://a:7443".to_owned()], HostPki::default(), &file);
        let first = dialer();
        first.learn(["https://a:7443", "https://b:7443", "https://c:7443"].map(str::to_owned).to_vec());
        let tried = |dialer: &Dialer| {
            dialer.move_on(None);
            dialer.server()
        };
        assert_eq!(
            [tried(&first), tried(&first), tried(&first)],
            ["https://b:7443", "https://c:7443", "https://a:7443"]
        );
        let next = dialer();
        assert_eq!([next.server(), tried(&next)], ["https://a:7443", "https://b:7443"]);
        next.learn(vec!["https://c:7443".to_owned()]);
        assert_eq!(
            [tried(&next), tried(&next)],
            ["https://c:7443", "https://a:7443"],
            "b has left the cloud"
        );
    }
}
