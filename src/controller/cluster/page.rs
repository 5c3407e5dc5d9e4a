//! The pages of what runs inside an instance, over HTTP, from within its own network.

use crate::dispatch::{Broker, Live, StreamError};
use crate::peers::Peers;
use bytes::Bytes;
use enoki_api::object::Uid;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::time::Duration;

/// For one page, the connection included.
const DEADLINE: Duration = Duration::from_secs(3);
/// A page is read up to here: some MiB is what thousands of workers take.
const LARGEST: usize = 16 << 20;

/// The way to instances.
#[derive(Clone)]
pub struct Ways {
    pub broker: Broker,
    pub live: Live,
    pub peers: Peers,
}

/// A port of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub host: String,
    pub uid: Uid,
    pub port: u16,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Way(#[from] StreamError),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{path}: {status}")]
    Status { path: String, status: StatusCode },
    #[error("{path}: {why}")]
    Unreadable { path: String, why: String },
    #[error("no answer within 3 s")]
    Late,
}

/// A connection to one port of one instance, kept while it works.
pub struct Pages {
    ways: Ways,
    port: Port,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Pages {
    pub fn new(ways: Ways, port: Port) -> Self {
        Pages { ways, port, sender: None }
    }

    /// The body of the page at `path`; anything but 200 is an error.
    pub async fn get(&mut self, path: &str) -> Result<Bytes, Error> {
        self.ask(Method::GET, path, "").await
    }

    pub async fn post(&mut self, path: &str) -> Result<Bytes, Error> {
        // There are servers that want a body with it.
        self.ask(Method::POST, path, " ").await
    }

    async fn ask(&mut self, method: Method, path: &str, body: &'static str) -> Result<Bytes, Error> {
        let asked = tokio::time::timeout(DEADLINE, self.exchange(method, path, body)).await;
        let answer = asked.unwrap_or(Err(Error::Late));
        // What is left of an exchange that failed is not to be read as the next one's answer.
        if !matches!(answer, Ok(_) | Err(Error::Status { .. })) {
            self.sender = None;
        }
        answer
    }

    async fn exchange(&mut self, method: Method, path: &str, body: &'static str) -> Result<Bytes, Error> {
        let unreadable = |why: String| Error::Unreadable { path: path.to_owned(), why };
        let mut sender = match self.sender.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        sender.ready().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "enoki")
            .body(Full::from(body))
            .map_err(|error| unreadable(error.to_string()))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let read = Limited::new(response.into_body(), LARGEST).collect().await;
        let bytes = read.map_err(|error| unreadable(error.to_string()))?.to_bytes();
        self.sender = Some(sender);
        if status != StatusCode::OK {
            return Err(Error::Status { path: path.to_owned(), status });
        }
        Ok(bytes)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Error> {
        let Ways { broker, live, peers } = &self.ways;
        let Port { host, uid, port } = &self.port;
        let stream = broker.dial(live, peers, host, uid.clone(), *port).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends by itself when the sender is dropped or the instance hangs up.
        tokio::spawn(connection);
        Ok(sender)
    }
}
