//! One agent's session: welcome, full set, then deltas; its words go to [`super::Live`] and the log of events.
//!
//! ```text
//! hello --refused--> goodbye
//!   |
//! welcome -> full -> delta ... delta -> (gap in our history) -> full ...
//! ```

use super::access::{known, speaks_for};
use super::fanout::News;
use super::{Dispatch, orders, overlays, prepull};
use crate::auth::actor::Actor;
use crate::state::At;
use axum::extract::ws::{Message, WebSocket};
use enoki_api::instance::Tombstone;
use enoki_api::object::Uid;
use enoki_api::protocol::{FromAgent, FromServer, Hello, Order, Overlay, Prepull, VERSION};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// An agent that connects says hello within this.
const HELLO: Duration = Duration::from_secs(5);
/// A message leaves within this, or the session ends.
const SEND: Duration = Duration::from_secs(10);
/// An agent that says nothing for this long is gone: the connection is half open.
const SILENCE: Duration = Duration::from_secs(15);

pub(super) struct Session {
    pub dispatch: Dispatch,
    pub actor: Actor,
}

/// What the agent was sent, to send only what differs.
struct Sent {
    sequence: u64,
    orders: BTreeMap<Uid, Order>,
    tombstones: BTreeSet<Uid>,
    overlays: BTreeMap<At, Overlay>,
    /// None: nothing yet, so that also none at all is told.
    prepull: Option<Vec<Prepull>>,
}

impl Session {
    /// Serves one agent until it goes, or a newer session of its host replaces this one.
    pub(super) async fn serve(self, mut socket: WebSocket) {
        let Some(hello) = greet(&mut socket).await else { return };
        let Dispatch { state, live, audit, .. } = &self.dispatch;
        let host = hello.host.clone();
        if !live.leads() {
            let leader = state.snapshot().leader.as_ref().and_then(|leader| leader.address.clone());
            let _ =
                send(&mut socket, &FromServer::Goodbye { reason: "another server leads".to_owned(), leader })
                    .await;
            return;
        }
        if !speaks_for(&self.actor, &host, Some(&hello.uid)) {
            let reason = format!("the certificate is not of host {host} with uid {}", hello.uid);
            audit.note(&self.actor, "open a session", &reason);
            let _ = send(&mut socket, &FromServer::Goodbye { reason, leader: None }).await;
            return;
        }
        let id = uuid::Uuid::new_v4().to_string();
        let (outbox, mut queue) = mpsc::channel(64);
        if let Err(reason) = live.join(hello, &id, outbox) {
            tracing::warn!(host, reason, "an agent was refused");
            audit.note(&self.actor, "open a session", &reason);
            let _ = send(&mut socket, &FromServer::Goodbye { reason, leader: None }).await;
            return;
        }
        tracing::info!(host, session = id, "an agent joined");
        let result = self.exchange(&mut socket, &host, &id, &mut queue).await;
        tracing::info!(host, session = id, why = %result.err().unwrap_or("it closed"), "an agent's session ended");
    }

    async fn exchange(
        &self,
        socket: &mut WebSocket,
        host: &str,
        id: &str,
        queue: &mut mpsc::Receiver<FromServer>,
    ) -> Result<(), &'static str> {
        let Dispatch { live, state, .. } = &self.dispatch;
        let heartbeat_ms = || live.windows().heartbeat.as_millis() as u64;
        send(socket, &FromServer::Welcome { session: id.to_owned(), heartbeat_ms: heartbeat_ms() }).await?;
        let mut told = Vec::new();
        let inbox = self.dispatch.fanout.inbox(host);
        let mut sent = self.full(socket, host, 0).await?;
        loop {
            // Cancel-safe: an inbox, a queue and a socket keep what they have not given.
            tokio::select! {
                () = live.stepped_down() => return Err("this server leads no more"),
                news = inbox.next() => {
                    if (news.host || news.all) && known(&state.snapshot(), &self.actor).is_err() {
                        return Err("the host was deleted");
                    }
                    if news.all {
                        sent = self.full(socket, host, sent.sequence).await?;
                    } else {
                        self.delta(socket, host, &mut sent, &news).await?;
                        self.overlays(socket, host, &mut sent, news.networks).await?;
                        if news.host || news.prepull {
                            self.prepull(socket, host, &mut sent).await?;
                        }
                    }
                }
                message = queue.recv() => match message {
                    Some(message) => send(socket, &message).await?,
                    None => return Err("a newer session replaced it"),
                },
                message = timeout(SILENCE, socket.recv()) => {
                    let message = message.map_err(|_| "it fell silent")?;
                    let Some(Ok(message)) = message else { return Ok(()) };
                    if !live.is_current(host, id) {
                        return Err("a newer session replaced it");
                    }
                    match read(&message)? {
                        Some(FromAgent::Heartbeat { health }) => {
                            live.heartbeat(host, Some(health));
                            let servers = state.snapshot().reached_at();
                            let news = if servers == told { Vec::new() } else { servers.clone() };
                            told = servers;
                            let reply = FromServer::HeartbeatReply { heartbeat_ms: heartbeat_ms(), servers: news };
                            send(socket, &reply).await?;
                        }
                        Some(words) => self.take(host, words),
                        None => {}
                    }
                }
            }
        }
    }

    /// Everything anew.
    async fn full(&self, socket: &mut WebSocket, host: &str, sequence: u64) -> Result<Sent, &'static str> {
        let Dispatch { state, sealer, .. } = &self.dispatch;
        let snapshot = state.snapshot();
        let orders = orders::all(&snapshot, sealer, host);
        let tombstones = orders::tombstones(&snapshot, host);
        let mut sent = Sent {
            sequence: sequence + 1,
            orders: orders.iter().map(|order| (order.uid().clone(), order.clone())).collect(),
            tombstones: tombstones.iter().map(|tombstone| tombstone.uid.clone()).collect(),
            overlays: overlays::all(&snapshot, host),
            prepull: None,
        };
        send(socket, &FromServer::Full { sequence: sent.sequence, orders, tombstones }).await?;
        let overlays = sent.overlays.values().cloned().collect();
        self.tell_overlays(socket, host, overlays).await?;
        self.prepull(socket, host, &mut sent).await?;
        Ok(sent)
    }

    /// The images that the host is to have beforehand, where they differ from what was sent. An agent that did not say
    /// so knows no such message.
    async fn prepull(&self, socket: &mut WebSocket, host: &str, sent: &mut Sent) -> Result<(), &'static str> {
        let images = prepull::all(&self.dispatch.state.snapshot(), host);
        if sent.prepull.as_ref() == Some(&images) || !self.dispatch.live.prepulls(host) {
            return Ok(());
        }
        sent.prepull = Some(images.clone());
        send(socket, &FromServer::Prepull { images }).await
    }

    /// The views of these networks, where they differ from what was sent.
    async fn overlays(
        &self,
        socket: &mut WebSocket,
        host: &str,
        sent: &mut Sent,
        networks: BTreeSet<At>,
    ) -> Result<(), &'static str> {
        let snapshot = self.dispatch.state.snapshot();
        let mut changed = Vec::new();
        for at in networks {
            match (overlays::one(&snapshot, host, &at), sent.overlays.get(&at)) {
                (Some(new), old) if old != Some(&new) => {
                    changed.push(new.clone());
                    sent.overlays.insert(at, new);
                }
                // Its last instance here is gone.
                (None, Some(old)) => {
                    changed.push(Overlay { hosts: BTreeSet::new(), entries: Vec::new(), ..old.clone() });
                    sent.overlays.remove(&at);
                }
                (Some(_), _) | (None, None) => {}
            }
        }
        self.tell_overlays(socket, host, changed).await
    }

    /// An agent that told no address knows no such message.
    async fn tell_overlays(
        &self,
        socket: &mut WebSocket,
        host: &str,
        overlays: Vec<Overlay>,
    ) -> Result<(), &'static str> {
        let knows = self.dispatch.live.host(host).is_some_and(|view| view.address.is_some());
        if overlays.is_empty() || !knows {
            return Ok(());
        }
        send(socket, &FromServer::Overlays { overlays }).await
    }

    /// What differs from what was sent. Nothing: no message.
    async fn delta(
        &self,
        socket: &mut WebSocket,
        host: &str,
        sent: &mut Sent,
        news: &News,
    ) -> Result<(), &'static str> {
        let Dispatch { state, sealer, .. } = &self.dispatch;
        let snapshot = state.snapshot();
        let mut orders = Vec::new();
        for order in news.instances.iter().filter_map(|at| orders::order(&snapshot, sealer, at)) {
            if order.assignment.host == host && sent.orders.get(order.uid()) != Some(&order) {
                sent.orders.insert(order.uid().clone(), order.clone());
                orders.push(order);
            }
        }
        let mut fresh: Vec<Tombstone> = Vec::new();
        if news.tombstones {
            let open = orders::tombstones(&snapshot, host);
            fresh.extend(open.iter().filter(|t| !sent.tombstones.contains(&t.uid)).cloned());
            let open: BTreeSet<Uid> = open.into_iter().map(|tombstone| tombstone.uid).collect();
            // What was sent of an instance is kept until its tombstone is done.
            for done in sent.tombstones.difference(&open) {
                sent.orders.remove(done);
            }
            sent.tombstones = open;
        }
        if orders.is_empty() && fresh.is_empty() {
            return Ok(());
        }
        let (from, to) = (sent.sequence, sent.sequence + 1);
        sent.sequence = to;
        send(socket, &FromServer::Delta { from, to, orders, tombstones: fresh }).await
    }

    fn take(&self, host: &str, words: FromAgent) {
        let Dispatch { state, live, events, .. } = &self.dispatch;
        let snapshot = state.snapshot();
        let own = |uid: &Uid| {
            let at = snapshot.by_uid.get(uid)?;
            snapshot.assignments.get(at).filter(|placed| placed.assignment.host == host).map(|_| at)
        };
        match words {
            FromAgent::Reports { mut reports } => {
                // A host can touch only its own.
                reports.retain(|report| own(&report.uid).is_some());
                live.reports(reports);
            }
            FromAgent::Prepulled { images } => live.prepulled(host, images),
            FromAgent::Orphans { orphans } => live.orphans(host, orphans),
            FromAgent::Buried { mut uids } => {
                let ours = |uid: &Uid| {
                    let tombstone = snapshot.tombstones.get(uid.as_str());
                    tombstone.is_some_and(|entry| entry.0.host.as_deref() == Some(host))
                };
                uids.retain(ours);
                live.buried(uids);
            }
            FromAgent::Happened { uid, reason, message, warning } => {
                if let Some(row) = own(&uid).and_then(|at| snapshot.instances.at(at)) {
                    events.note(&row.place(), Some(&uid), warning, &reason, message);
                }
            }
            FromAgent::Hello(_) => tracing::warn!(host, "an agent said hello twice"),
            FromAgent::Heartbeat { health } => live.heartbeat(host, Some(health)),
        }
    }
}

async fn greet(socket: &mut WebSocket) -> Option<Hello> {
    let first = timeout(HELLO, socket.recv()).await.ok()??.ok()?;
    let reason = match read(&first) {
        Ok(Some(FromAgent::Hello(hello))) if hello.version == VERSION => return Some(hello),
        Ok(Some(FromAgent::Hello(hello))) => format!("protocol {} is not {VERSION}", hello.version),
        _ => "the first message is not a hello".to_owned(),
    };
    tracing::warn!(reason, "an agent was refused");
    let _ = send(socket, &FromServer::Goodbye { reason, leader: None }).await;
    None
}

fn read(message: &Message) -> Result<Option<FromAgent>, &'static str> {
    match message {
        Message::Text(text) => match serde_json::from_str(text) {
            Ok(words) => Ok(Some(words)),
            Err(error) => {
                tracing::warn!(%error, "an agent's message does not decode");
                Err("it sent what does not decode")
            }
        },
        Message::Close(_) => Err("it closed"),
        Message::Binary(_) | Message::Ping(_) | Message::Pong(_) => Ok(None),
    }
}

async fn send(socket: &mut WebSocket, message: &FromServer) -> Result<(), &'static str> {
    let text = serde_json::to_string(message).map_err(|_| "a message does not encode")?;
    match timeout(SEND, socket.send(Message::Text(text.into()))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("it went away"),
        Err(_) => Err("it does not read"),
    }
}
