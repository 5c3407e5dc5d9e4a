//! The session with a server: the agent dials, says hello, takes orders in and tells what it sees.
//!
//! ```text
//!  dial ─▶ hello ─▶ welcome ─▶ full ─▶ delta, delta, ... ─▶ a gap, silence, goodbye, an error
//!   ▲                                                          │
//!   └────────────── wait, longer each time, with jitter ◀──────┘
//! ```
//! Nothing of a session is kept: the next one begins with the full set, and everything is told anew. While there is
//! none the host goes on by its ledger.

pub mod outbox;
pub mod socket;

use crate::credentials;
use crate::image::prepull::Prepulls;
use crate::instance::fleet::Fleet;
use crate::network::Underlay;
use crate::streams::Streams;
use backon::{BackoffBuilder, ExponentialBuilder};
use enoki_api::protocol::{FromAgent, FromServer, Hello, SESSION_PATH};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use outbox::Outbox;
use socket::{Dialer, Socket};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// A message leaves within this, or the connection is dead.
const SEND: Duration = Duration::from_secs(10);
/// A server welcomes within this.
const WELCOME: Duration = Duration::from_secs(10);
/// A server that answers no heartbeat for so many periods (at least [`SILENCE_MIN`]) is gone.
const SILENCE_PERIODS: u32 = 8;
const SILENCE_MIN: Duration = Duration::from_secs(5);
/// Whatever a server asks for, a heartbeat is not sent more often.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
/// Before dialling again: doubled up to the longest, anew after a session that lived.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_LONGEST: Duration = Duration::from_secs(5);
const LIVED: Duration = Duration::from_secs(10);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot reach the server: {0}")]
    Dial(#[from] socket::Error),
    #[error("the server did not welcome this agent in time")]
    NoWelcome,
    #[error("the server ended the session: {reason}")]
    Goodbye { reason: String, leader: Option<String> },
    #[error("a delta from {from} does not follow on {known:?}")]
    Gap { from: u64, known: Option<u64> },
    #[error("the server fell silent")]
    Silent,
    #[error("the server sent what does not decode: {0}")]
    Garbled(serde_json::Error),
    #[error("the connection ended: {0}")]
    Closed(String),
}

pub struct Session {
    pub dialer: Dialer,
    /// With the health and address at the time of each hello filled in.
    pub hello: Hello,
    pub fleet: Fleet,
    pub outbox: Outbox,
    pub prepulls: Prepulls,
    pub streams: Streams,
    /// A file that is there while there is a session.
    pub mark: PathBuf,
    pub underlay: Underlay,
    pub stop: CancellationToken,
}

impl Session {
    /// Holds one session after another until `stop`.
    pub async fn run(&self) {
        let waits = ExponentialBuilder::default()
            .with_min_delay(AGAIN_FIRST)
            .with_max_delay(AGAIN_LONGEST)
            .without_max_times()
            .with_jitter();
        let mut wait = waits.build();
        let mut last = String::new();
        loop {
            let began = Instant::now();
            // Cancel-safe: a session that is dropped is one that ended.
            let ended = tokio::select! {
                () = self.stop.cancelled() => return,
                ended = self.hold() => ended,
            };
            let leader = match &ended {
                Err(Error::Goodbye { leader, .. }) => leader.clone(),
                Ok(()) | Err(_) => None,
            };
            let told = leader.is_some();
            self.dialer.move_on(leader);
            if told {
                self.be_known().await;
            }
            let why = ended.err().map_or_else(String::new, |error| error.to_string());
            // A server that is away for an hour is one line.
            if why != last {
                tracing::warn!(why, "no session with a server; going on by the ledger");
                last = why;
            }
            if began.elapsed() > LIVED {
                wait = waits.build();
                last.clear();
            }
            // Where the leader is known, it is dialled at once; and to be told is no failure that lengthens the next wait.
            let pause = if told { AGAIN_FIRST } else { wait.next().unwrap_or(AGAIN_LONGEST) };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// A host that has come in by the socket of its own machine gets a certificate there before it has to go elsewhere.
    async fn be_known(&self) {
        let Hello { host, uid, labels, .. } = &self.hello;
        if let Err(error) = credentials::join_here(&self.dialer, host, uid, labels).await {
            tracing::warn!(%error, "this host has no certificate for the cloud's other servers");
        }
    }

    async fn hold(&self) -> Result<(), Error> {
        let socket = self.dialer.websocket(SESSION_PATH).await?;
        let (mut sink, mut source) = socket.split();
        let (health, address) = (self.outbox.health(), self.underlay.address());
        let hello = Hello { health, address, ..self.hello.clone() };
        send(&mut sink, &FromAgent::Hello(hello)).await?;
        let welcome = timeout(WELCOME, next(&mut source)).await.map_err(|_| Error::NoWelcome)??;
        let period = match welcome {
            FromServer::Welcome { session, heartbeat_ms } => {
                tracing::info!(session, "a session with the server");
                period(heartbeat_ms)
            }
            FromServer::Goodbye { reason, leader } => return Err(Error::Goodbye { reason, leader }),
            _ => return Err(Error::NoWelcome),
        };
        let _mark = Mark::set(&self.mark, &self.dialer.server());
        self.outbox.renew();
        let (set_period, told) = watch::channel(period);
        // Side by side, so that taking in a thousand orders delays no heartbeat. Either's end is the session's.
        tokio::select! {
            ended = self.speak(&mut sink, told) => ended,
            ended = self.listen(&mut source, set_period) => ended,
        }
    }

    async fn speak(
        &self,
        sink: &mut SplitSink<Socket, Message>,
        mut told: watch::Receiver<Duration>,
    ) -> Result<(), Error> {
        let mut due = Instant::now();
        loop {
            let period = *told.borrow_and_update();
            // Cancel-safe: notifications and changes stay until they are taken.
            tokio::select! {
                () = sleep_until(due) => {
                    send(sink, &FromAgent::Heartbeat { health: self.outbox.health() }).await?;
                    due = Instant::now() + period;
                }
                changed = told.changed() => {
                    changed.map_err(|_| Error::Silent)?;
                    due = due.min(Instant::now() + *told.borrow());
                }
                () = self.outbox.filled() => {
                    for message in self.outbox.take() {
                        send(sink, &message).await?;
                    }
                }
            }
        }
    }

    async fn listen(
        &self,
        source: &mut SplitStream<Socket>,
        set_period: watch::Sender<Duration>,
    ) -> Result<(), Error> {
        let mut sequence: Option<u64> = None;
        loop {
            let silence = (*set_period.borrow() * SILENCE_PERIODS).max(SILENCE_MIN);
            let message = timeout(silence, next(source)).await.map_err(|_| Error::Silent)??;
            match message {
                FromServer::Welcome { heartbeat_ms, .. } => {
                    set_period.send_replace(period(heartbeat_ms));
                }
                FromServer::HeartbeatReply { heartbeat_ms, servers } => {
                    let new = period(heartbeat_ms);
                    set_period.send_if_modified(|old| std::mem::replace(old, new) != new);
                    if !servers.is_empty() {
                        self.dialer.learn(servers);
                        self.be_known().await;
                    }
                }
                FromServer::Full { sequence: at, orders, tombstones } => {
                    self.fleet.full(orders, tombstones).await;
                    sequence = Some(at);
                }
                FromServer::Delta { from, to, orders, tombstones } => {
                    if sequence != Some(from) {
                        return Err(Error::Gap { from, known: sequence });
                    }
                    self.fleet.delta(orders, tombstones).await;
                    sequence = Some(to);
                }
                FromServer::Prepull { images } => {
                    self.prepulls.want(images);
                    self.outbox.prepulls_asked();
                }
                FromServer::Overlays { overlays } => self.fleet.overlays(overlays).await,
                FromServer::Open { stream, request, server } => self.streams.open(stream, request, server),
                FromServer::Goodbye { reason, leader } => return Err(Error::Goodbye { reason, leader }),
            }
        }
    }
}

/// Says to this machine that there is a session; gone with it.
struct Mark<'a>(&'a Path);

impl<'a> Mark<'a> {
    fn set(path: &'a Path, server: &str) -> Self {
        if let Err(error) = std::fs::write(path, format!("{server}\n")) {
            tracing::debug!(%error, "the session is not marked");
        }
        Mark(path)
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        // Where there was none, there is none to remove.
        let _ = std::fs::remove_file(self.0);
    }
}

fn period(heartbeat_ms: u64) -> Duration {
    Duration::from_millis(heartbeat_ms).max(HEARTBEAT_MIN)
}

async fn send(sink: &mut SplitSink<Socket, Message>, message: &FromAgent) -> Result<(), Error> {
    let text = serde_json::to_string(message).map_err(Error::Garbled)?;
    match timeout(SEND, sink.send(Message::text(text))).await {
        Ok(sent) => sent.map_err(|error| Error::Closed(error.to_string())),
        Err(_) => Err(Error::Silent),
    }
}

/// The next message that says something. Pings are answered below.
async fn next(source: &mut SplitStream<Socket>) -> Result<FromServer, Error> {
    loop {
        match source.next().await {
            Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).map_err(Error::Garbled),
            Some(Ok(Message::Close(frame))) => {
                return Err(Error::Closed(frame.map_or_else(String::new, |frame| frame.reason.to_string())));
            }
            Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Err(Error::Closed(error.to_string())),
            None => return Err(Error::Closed(String::new())),
        }
    }
}
