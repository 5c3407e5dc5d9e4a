//! Agents that are their sessions alone: they join, say hello, answer that they live, and note what they are sent.

use anyhow::{Context, Result, bail};
use enoki_agent::agent;
use enoki_agent::credentials::{self, HostPki};
use enoki_agent::session::socket::{Dialer, Socket};
use enoki_api::Uid;
use enoki_api::endpoint::Authority;
use enoki_api::host::{Capacity, HostPhase};
use enoki_api::protocol::{FromAgent, FromServer, Health, Hello, SESSION_PATH, VERSION};
use enoki_api::quantity::{Bytes, MilliCpu};
use futures::{SinkExt, StreamExt};
use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Message;

/// Hosts that join at once.
const AT_ONCE: usize = 16;
/// Whatever is waited for has come by then.
const LONGEST: Duration = Duration::from_secs(120);

/// Which assignment, and which state of it.
pub type Change = (Uid, u64);

/// Changes that are waited for.
pub struct Arrivals {
    missing: Mutex<(HashSet<Change>, Instant)>,
    whole: Notify,
}

impl Default for Arrivals {
    fn default() -> Self {
        Arrivals { missing: Mutex::new((HashSet::new(), Instant::now())), whole: Notify::new() }
    }
}

impl Arrivals {
    fn missing(&self) -> MutexGuard<'_, (HashSet<Change>, Instant)> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn expect(&self, changes: HashSet<Change>) {
        self.missing().0 = changes;
    }

    pub fn arrived(&self, change: &Change) {
        let now = Instant::now();
        let mut missing = self.missing();
        if missing.0.remove(change) {
            missing.1 = now;
            if missing.0.is_empty() {
                self.whole.notify_one();
            }
        }
    }

    /// When the last of them came.
    pub async fn last(&self) -> Result<Instant> {
        let whole = async {
            while !self.missing().0.is_empty() {
                self.whole.notified().await;
            }
        };
        if tokio::time::timeout(LONGEST, whole).await.is_err() {
            bail!("{} changes have not come within {LONGEST:?}", self.missing().0.len());
        }
        Ok(self.missing().1)
    }
}

/// The connected agents.
pub struct Agents {
    names: Vec<String>,
    pub arrivals: Arc<Arrivals>,
    _folder: TempDir,
}

impl Agents {
    /// Joins so many hosts, and connects them.
    pub async fn join(server: &str, token: &str, hosts: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("enoki-bench-").tempdir_in("/dev/shm")?;
        let arrivals = Arc::new(Arrivals::default());
        let names: Vec<String> = (1..=hosts).map(|number| format!("s{number}")).collect();
        let mut joining = futures::stream::iter(names.clone())
            .map(|name| join(folder.path().join(&name), server, token, name, arrivals.clone()))
            .buffer_unordered(AT_ONCE);
        while let Some(joined) = joining.next().await {
            joined?;
        }
        drop(joining);
        Ok(Agents { names, arrivals, _folder: folder })
    }

    pub fn names(&self) -> Vec<String> {
        self.names.clone()
    }
}

async fn join(
    folder: impl AsRef<Path>,
    server: &str,
    token: &str,
    name: String,
    arrivals: Arc<Arrivals>,
) -> Result<()> {
    let folder = folder.as_ref();
    std::fs::create_dir(folder)?;
    let pki = HostPki::new(folder.join("pki"));
    let uid = agent::identity(&folder.join("uid"))?;
    let authority = Authority::parse(server).map_err(anyhow::Error::msg)?;
    credentials::join(&pki, authority, token, &name, &uid, &Default::default())
        .await
        .context(name.clone())?;
    let mut socket = Dialer::new(vec![server.to_owned()], pki).websocket(SESSION_PATH).await?;
    let hello = Hello {
        version: VERSION,
        host: name.clone(),
        uid,
        labels: Default::default(),
        capacity: Capacity { cpus: MilliCpu(64_000), memory: Bytes(1 << 38), pids: 1_000_000, instances: 0 },
        cgroup: "v2".to_owned(),
        address: None,
        prepulls: false,
        health: ready(),
    };
    say(&mut socket, &FromAgent::Hello(hello)).await?;
    let Some(FromServer::Welcome { heartbeat_ms, .. }) = hear(&mut socket).await? else {
        bail!("host {name} is not welcome");
    };
    tokio::spawn(async move {
        if let Err(error) = stay(socket, Duration::from_millis(heartbeat_ms), &arrivals).await {
            eprintln!("host {name}: {error:#}");
        }
    });
    Ok(())
}

async fn stay(mut socket: Socket, mut period: Duration, arrivals: &Arrivals) -> Result<()> {
    let mut due = tokio::time::Instant::now() + period;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(due) => {
                say(&mut socket, &FromAgent::Heartbeat { health: ready() }).await?;
                due += period;
            }
            heard = hear(&mut socket) => match heard? {
                Some(FromServer::Full { orders, .. } | FromServer::Delta { orders, .. }) => {
                    for order in orders {
                        arrivals.arrived(&(order.assignment.uid, order.assignment.generation));
                    }
                }
                Some(FromServer::HeartbeatReply { heartbeat_ms, .. }) => period = Duration::from_millis(heartbeat_ms),
                Some(_) => {}
                // The benchmark is over.
                None => return Ok(()),
            }
        }
    }
}

fn ready() -> Health {
    Health { phase: HostPhase::Ready, ..Health::default() }
}

async fn say(socket: &mut Socket, words: &FromAgent) -> Result<()> {
    Ok(socket.send(Message::text(serde_json::to_string(words)?)).await?)
}

async fn hear(socket: &mut Socket) -> Result<Option<FromServer>> {
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message? {
            return Ok(Some(serde_json::from_str(&text)?));
        }
    }
    Ok(None)
}
