//! The way to the leader, and to servers beside this one.

use super::{EVENTS_PATH, Noted, OPEN_PATH, Open, actor_header};
use crate::auth::actor::Actor;
use crate::auth::ca::Pki;
use crate::state::{Server, State};
use axum::body::Body;
use bytes::Bytes;
use enoki_api::endpoint::{Authority, Endpoint};
use enoki_api::error::{Code, Problem};
use enoki_api::event::Event;
use enoki_api::protocol::StreamRequest;
use enoki_api::tls::{Credentials, Trust};
use http::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Connecting, and the head of the answer. The leader itself may wait three seconds for a revision.
const CALL: Duration = Duration::from_secs(6);
/// Events told at once.
const BATCH: usize = 256;
/// Between two tellings.
const GATHER: Duration = Duration::from_millis(250);
/// The largest problem that is read.
const PROBLEM_MAX: usize = 64 << 10;

/// Why the leader was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum NoLeader {
    #[error("no server leads just now")]
    Nobody,
    #[error("server {0} leads and is not reached from here, as it listens on its own machine only")]
    Apart(String),
    #[error("server {leader} leads and does not answer: {why}")]
    Silent { leader: String, why: String },
    #[error("{0}")]
    Refused(Problem),
}

impl From<NoLeader> for Problem {
    fn from(error: NoLeader) -> Problem {
        match error {
            NoLeader::Refused(problem) => problem,
            away => Problem::new(Code::HostUnreachable, away.to_string())
                .hint("another one leads within seconds; instances are not affected"),
        }
    }
}

/// Tells the leader what this server notes, for as long as something can be noted.
pub async fn tell_events(peers: &Peers, mut noted: mpsc::Receiver<Event>) {
    let mut batch = Vec::new();
    while noted.recv_many(&mut batch, BATCH).await > 0 {
        if peers.another_leads()
            && let Err(error) = peers.note(&batch).await
        {
            tracing::debug!(%error, events = batch.len(), "events are known to this server alone");
        }
        batch.clear();
        // Each telling is a connection of its own; a burst of events is few of them.
        tokio::time::sleep(GATHER).await;
    }
}

/// Asks the leader. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    state: State,
    pki: Pki,
    me: Server,
}

impl Peers {
    /// `me`: as this server wrote itself down.
    pub fn new(state: State, pki: Pki, me: Server) -> Self {
        Peers { shared: Arc::new(Shared { state, pki, me }) }
    }

    /// Whether another server leads, as far as is known here.
    pub fn another_leads(&self) -> bool {
        let leader = self.shared.state.snapshot().leader.clone();
        leader.is_some_and(|leader| leader.name != self.shared.me.name)
    }

    /// Passes a user's request on, and the answer back as it comes.
    pub async fn relay(
        &self,
        actor: &Actor,
        method: Method,
        target: &str,
        media: Option<header::HeaderValue>,
        body: Vec<u8>,
    ) -> Result<Response<Body>, NoLeader> {
        let mut request = Request::builder().method(method).uri(target);
        if let Some(media) = media {
            request = request.header(header::CONTENT_TYPE, media);
        }
        if let Some(actor) = actor_header(actor) {
            request = request.header(super::ACTOR_HEADER, actor);
        }
        self.send(request, body.into()).await
    }

    /// Has the leader ask a host's agent for a stream to this server.
    pub async fn open(&self, host: &str, stream: &str, request: StreamRequest) -> Result<(), NoLeader> {
        let me = &self.shared.me;
        let server = me.address.clone().ok_or_else(|| NoLeader::Apart(me.name.clone()))?;
        self.post(OPEN_PATH, &Open { host: host.to_owned(), stream: stream.to_owned(), server, request })
            .await
    }

    /// Tells the leader what was noted here.
    pub async fn note(&self, events: &Noted) -> Result<(), NoLeader> {
        self.post(EVENTS_PATH, events).await
    }

    /// The other servers that are reached from here, as far as is known.
    pub(super) fn others(&self) -> Vec<Arc<Server>> {
        let snapshot = self.shared.state.snapshot();
        let others = snapshot.servers.values().filter(|server| server.name != self.shared.me.name);
        others.filter(|server| server.address.is_some()).cloned().collect()
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<(), NoLeader> {
        let request = Request::builder().method(Method::POST).uri(path);
        let body = serde_json::to_vec(body).unwrap_or_default();
        let answer = self.send(request.header(header::CONTENT_TYPE, "application/json"), body.into()).await?;
        if answer.status().is_success() {
            return Ok(());
        }
        let status = answer.status();
        let bytes = axum::body::to_bytes(answer.into_body(), PROBLEM_MAX).await.unwrap_or_default();
        Err(NoLeader::Refused(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            Problem::new(Code::HostUnreachable, format!("the leader answered {status}"))
        })))
    }

    async fn send(&self, request: http::request::Builder, body: Bytes) -> Result<Response<Body>, NoLeader> {
        let leader = self.shared.state.snapshot().leader.clone().ok_or(NoLeader::Nobody)?;
        let address = leader.address.as_deref().ok_or_else(|| NoLeader::Apart(leader.name.clone()))?;
        let answer = self.exchange(address, request, body).await;
        answer.map_err(|why| NoLeader::Silent { leader: leader.name.clone(), why })
    }

    /// Asks one server. The error is why it did not answer.
    pub(super) async fn exchange(
        &self,
        address: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Body>, String> {
        let exchange = async {
            let endpoint = self.endpoint(address).map_err(|error| format!("{error:#}"))?;
            let io = endpoint.connect().await.map_err(|error| error.to_string())?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
                .await
                .map_err(|error| error.to_string())?;
            // Ends with the answer's body, or when that is dropped.
            tokio::spawn(connection);
            let request = request.header(header::HOST, "enoki").body(http_body_util::Full::new(body));
            let request = request.map_err(|error| error.to_string())?;
            sender.send_request(request).await.map_err(|error| error.to_string())
        };
        match tokio::time::timeout(CALL, exchange).await {
            Ok(answer) => answer.map(|answer| answer.map(Body::new)),
            Err(_) => Err("not in time".to_owned()),
        }
    }

    /// Credentials are read anew for each connection: a renewed certificate needs nobody to be told.
    fn endpoint(&self, address: &str) -> anyhow::Result<Endpoint> {
        let pki = &self.shared.pki;
        let authority = Authority::parse(address).map_err(anyhow::Error::msg)?;
        let trust = Trust::ca_pem(&std::fs::read(pki.ca())?)?;
        let own =
            Credentials::from_pem(&std::fs::read(pki.cert("server"))?, &std::fs::read(pki.key("server"))?)?;
        Ok(Endpoint::https(authority, trust, Some(own))?)
    }
}
