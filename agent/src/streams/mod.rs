//! Streams that a user opens into this host: exec, console, logs, connections to a port. The agent dials each back to the server that asked.
//!
//! A binary message is a [`Channel`] byte and its payload. The socket itself is the backpressure: nothing is read from
//! a program or a file before the last piece has gone. A client that goes away ends only its own attachment; the
//! program it started goes on (as with a closed terminal of a machine, it finds its output gone).

pub mod beneath;
mod dial;
mod exec;
pub mod logs;

use crate::instance::fleet::Fleet;
use crate::runtime::ExecRequest;
use crate::session::socket::{Dialer, Socket};
use enoki_api::object::Uid;
use enoki_api::protocol::{Channel, Exit, STREAM_PATH, StreamRequest};
use futures::stream::SplitSink;
use futures::{SinkExt, Stream, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// Streams at once: each is a task, a socket and a few pieces in memory.
const STREAMS: usize = 256;
/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(100);
/// How long a client has to hang up after the last word.
const HANG_UP: Duration = Duration::from_secs(5);
/// The code of a program that could not be run.
const NOT_RUN: i32 = 125;
/// The console's shell: root's own by `su`, else what is there.
const LOGIN: &str = "command -v su >/dev/null 2>&1 && exec su -l root; \
                     [ -x /bin/bash ] && exec /bin/bash -l; exec /bin/sh -l";

/// Serves streams. Cheap to clone.
#[derive(Clone)]
pub struct Streams {
    dialer: Dialer,
    fleet: Fleet,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Streams {
    pub fn new(dialer: Dialer, fleet: Fleet, stop: CancellationToken) -> Self {
        Streams { dialer, fleet, places: Arc::new(Semaphore::new(STREAMS)), stop }
    }

    /// Dials the stream, at `server` or where the session is, and serves the request on it, beside everything else.
    pub fn open(&self, id: String, request: StreamRequest, server: Option<String>) {
        // An id becomes part of a URL.
        if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            tracing::warn!(id, "a stream's id is not one");
            return;
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!(id, "too many streams at once");
            return;
        };
        let streams = self.clone();
        tokio::spawn(async move {
            let _place = place;
            // Cancel-safe: a stream that is dropped is one whose connection ended.
            tokio::select! {
                () = streams.stop.cancelled() => {}
                result = streams.serve(&id, request, server.as_deref()) => {
                    if let Err(error) = result {
                        tracing::debug!(id, error, "a stream ended early");
                    }
                }
            }
        });
    }

    async fn serve(&self, id: &str, request: StreamRequest, server: Option<&str>) -> Result<(), String> {
        let path = format!("{STREAM_PATH}/{id}");
        let socket = self.dialer.websocket_to(server, &path).await.map_err(|error| error.to_string())?;
        match request {
            StreamRequest::Exec { uid, command, tty, stdin, size, env } => {
                let request = ExecRequest { command, env, tty, stdin, size };
                self.exec(socket, &uid, request).await
            }
            StreamRequest::Console { uid, size, term } => {
                let term = term.unwrap_or_else(|| "xterm".to_owned());
                let request = ExecRequest {
                    command: ["/bin/sh", "-c", LOGIN].map(str::to_owned).to_vec(),
                    env: [("TERM".to_owned(), term)].into(),
                    tty: true,
                    stdin: true,
                    size,
                };
                self.exec(socket, &uid, request).await
            }
            StreamRequest::Stats { uids } => self.stats(socket, &uids).await,
            StreamRequest::Logs { uid, follow, tail, since, timestamps } => {
                let wanted = logs::Wanted { tail, since, timestamps };
                self.logs(socket, &uid, follow, &wanted).await
            }
            StreamRequest::Dial { uid, port } => self.dial(socket, &uid, port).await,
            StreamRequest::Unknown => {
                let mut socket = socket;
                refuse(&mut socket, "the agent of its host does not know this yet: upgrade it").await
            }
        }
    }

    async fn dial(&self, mut socket: Socket, uid: &Uid, port: u16) -> Result<(), String> {
        let host = self.fleet.host();
        let Some(entry) = host.ledger.get(uid).filter(|_| self.fleet.running(uid).is_some()) else {
            return refuse(&mut socket, "the instance does not run").await;
        };
        let addresses = entry.order.assignment.nics.values().map(|nic| nic.address);
        dial::serve(host.machine.as_ref(), uid, addresses, port, socket).await
    }

    async fn exec(&self, mut socket: Socket, uid: &Uid, request: ExecRequest) -> Result<(), String> {
        let Some(container) = self.fleet.running(uid) else {
            return refuse(&mut socket, "the instance does not run").await;
        };
        exec::serve(self.fleet.host().runtime.as_ref(), &container, &request, socket).await
    }

    /// What runs of these; the others are left out.
    async fn stats(&self, socket: Socket, uids: &[Uid]) -> Result<(), String> {
        let host = self.fleet.host();
        let (mut sink, _source) = socket.split();
        for uid in uids {
            let Some(report) = host.outbox.last(uid) else { continue };
            let (Some(container), Some(pid)) = (report.container_id, report.pid) else { continue };
            match host.machine.usage(uid, &container, pid).await {
                Ok(usage) => {
                    let text = serde_json::to_vec(&usage).map_err(|error| error.to_string())?;
                    send(&mut sink, Channel::Stdout, &text).await?;
                }
                Err(error) => tracing::debug!(%uid, %error, "what an instance uses cannot be read"),
            }
        }
        finish(&mut sink, &Exit { code: 0, error: None }).await
    }

    async fn logs(
        &self,
        mut socket: Socket,
        uid: &Uid,
        follow: bool,
        wanted: &logs::Wanted,
    ) -> Result<(), String> {
        let host = self.fleet.host();
        let Some(entry) = host.ledger.get(uid) else {
            return refuse(&mut socket, "this host has no such instance").await;
        };
        let disk = entry.order.disk;
        let folder = match host.machine.state_folder(&disk).await {
            Ok(folder) => folder,
            Err(error) => return refuse(&mut socket, &error.message).await,
        };
        let wanted = wanted.clone();
        let opened = blocking(move || logs::Reader::open(&folder, &wanted)).await;
        let mut reader = match opened {
            Ok(reader) => reader,
            Err(error) => return refuse(&mut socket, &format!("its output cannot be read: {error}")).await,
        };
        let (mut sink, mut source) = socket.split();
        loop {
            // Before the look: what it printed until then is read. Whoever follows on keeps the disk in use.
            let doomed = |uid| host.ledger.tombstone(uid).is_some();
            let there = host.ledger.has(uid) && !doomed(uid) && !doomed(&disk);
            let looked = blocking(move || {
                let step = reader.step()?;
                Ok((reader, step))
            });
            let step = match looked.await {
                Ok((back, step)) => {
                    reader = back;
                    step
                }
                Err(_) if !there => return finish(&mut sink, &Exit { code: 0, error: None }).await,
                Err(error) => return Err(error.to_string()),
            };
            match step {
                Some(pieces) => {
                    for (channel, bytes) in pieces {
                        send(&mut sink, channel, &bytes).await?;
                    }
                }
                None if !follow || !there => return finish(&mut sink, &Exit { code: 0, error: None }).await,
                // Cancel-safe: a message that is dropped here says nothing but that the client is there.
                None => tokio::select! {
                    () = tokio::time::sleep(FOLLOW) => {}
                    message = source.next() => match message {
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
                        Some(Ok(_)) => {}
                    }
                },
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

fn frame(channel: Channel, payload: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(payload.len() + 1);
    bytes.push(channel as u8);
    bytes.extend_from_slice(payload);
    Message::binary(bytes)
}

async fn send(sink: &mut SplitSink<Socket, Message>, channel: Channel, payload: &[u8]) -> Result<(), String> {
    sink.send(frame(channel, payload)).await.map_err(|error| error.to_string())
}

/// The last word: how it ended.
async fn finish(sink: &mut SplitSink<Socket, Message>, exit: &Exit) -> Result<(), String> {
    let text = serde_json::to_vec(exit).map_err(|error| error.to_string())?;
    send(sink, Channel::Exit, &text).await?;
    sink.close().await.map_err(|error| error.to_string())
}

async fn refuse(socket: &mut Socket, why: &str) -> Result<(), String> {
    let exit = Exit { code: NOT_RUN, error: Some(why.to_owned()) };
    let text = serde_json::to_vec(&exit).map_err(|error| error.to_string())?;
    socket.send(frame(Channel::Exit, &text)).await.map_err(|error| error.to_string())?;
    socket.close(None).await.map_err(|error| error.to_string())?;
    hung_up(socket).await;
    Ok(())
}

/// After the last word: reads past what the client still sends until it hangs up. A connection that is closed on bytes that
/// nobody read breaks on the other side, and the last word with it.
async fn hung_up<E>(source: &mut (impl Stream<Item = Result<Message, E>> + Unpin)) {
    // An error: the client does not hang up.
    let _ = tokio::time::timeout(HANG_UP, async { while let Some(Ok(_)) = source.next().await {} }).await;
}
