//! Joins a user's exec, console or logs with the stream that the host's agent dials back.

use super::Live;
use crate::peers::{NoLeader, Peers};
use axum::extract::ws::WebSocket;
use enoki_api::protocol::{FromServer, StreamRequest};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long an agent has to dial back.
const DIAL_BACK: Duration = Duration::from_secs(10);

/// Why no stream came.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("host {0} has no session with this server")]
    NoSession(String),
    #[error("host {0} did not answer in time")]
    TimedOut(String),
    #[error(transparent)]
    Leader(#[from] NoLeader),
}

/// Streams that are waited for. Cheap to clone.
#[derive(Clone, Default)]
pub struct Broker {
    waiting: Arc<Mutex<HashMap<String, Waiting>>>,
}

struct Waiting {
    host: String,
    hand_over: oneshot::Sender<WebSocket>,
}

impl Broker {
    /// Asks the host's agent for a stream to this server and waits for it, bounded. Its session may be with another one:
    /// then the leader asks it.
    pub async fn open(
        &self,
        live: &Live,
        peers: &Peers,
        host: &str,
        request: StreamRequest,
    ) -> Result<WebSocket, StreamError> {
        let no_session = || StreamError::NoSession(host.to_owned());
        let id = uuid::Uuid::new_v4().to_string();
        let (hand_over, arrives) = oneshot::channel();
        self.waiting().insert(id.clone(), Waiting { host: host.to_owned(), hand_over });
        // However this ends (also when the caller goes away), the id is not waited for any more.
        let _guard = Forget { broker: self.clone(), id: id.clone() };
        let dialled = async {
            if !live.leads() && peers.another_leads() {
                peers.open(host, &id, request).await?;
            } else {
                let open = FromServer::Open { stream: id, request, server: None };
                tell(live, host, open).await?;
            }
            arrives.await.map_err(|_| no_session())
        };
        tokio::time::timeout(DIAL_BACK, dialled).await.map_err(|_| StreamError::TimedOut(host.to_owned()))?
    }

    /// The host a stream is expected from. None: nobody waits for it (any more).
    pub(super) fn expects(&self, id: &str) -> Option<String> {
        self.waiting().get(id).map(|waiting| waiting.host.clone())
    }

    /// Hands over the stream that an agent opened.
    pub(super) fn arrived(&self, id: &str, stream: WebSocket) {
        if let Some(waiting) = self.waiting().remove(id) {
            // Err: the user has gone meanwhile; dropping the stream tells the agent.
            let _ = waiting.hand_over.send(stream);
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// Says something to the agent of a host that has a session here.
pub(super) async fn tell(live: &Live, host: &str, words: FromServer) -> Result<(), StreamError> {
    let no_session = || StreamError::NoSession(host.to_owned());
    live.outbox(host).ok_or_else(no_session)?.send(words).await.map_err(|_| no_session())
}

struct Forget {
    broker: Broker,
    id: String,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.broker.waiting().remove(&self.id);
    }
}
