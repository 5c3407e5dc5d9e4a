//! Exec, console, logs and connections to ports: a user's stream joined with the one that the instance's host dials back.

use super::App;
use super::answer::Answer;
use super::objects::{Place, place};
use super::query::Params;
use crate::admission::missing;
use crate::dispatch::StreamError;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket};
use axum::extract::{RawQuery, State, WebSocketUpgrade};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::{InstanceSpec, Phase};
use enoki_api::object::Uid;
use enoki_api::protocol::{Channel, Exit, StreamRequest, TerminalSize};
use futures::{SinkExt, Stream, StreamExt, stream};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// The largest message of a stream.
const MESSAGE_MAX: usize = 1 << 20;
/// Words of a command.
const WORDS_MAX: usize = 4096;

pub fn routes() -> Router<App> {
    let at = |verb: &str| format!("/v1/projects/{{project}}/instances/{{name}}/{verb}");
    Router::new()
        .route(&at("exec"), get(exec))
        .route(&at("console"), get(console))
        .route(&at("connect"), get(connect))
        .route(&at("logs"), get(logs))
        .route("/v1/projects/{project}/stats", get(stats))
}

/// The instance's uid and host.
fn target(app: &App, path: &Place) -> Result<(Uid, String, Phase), Problem> {
    let at = place::<InstanceSpec>(path);
    let snapshot = app.state.snapshot();
    let instance = snapshot.instance(&at).ok_or_else(|| missing::<InstanceSpec>(&snapshot, &at))?;
    let placed = snapshot.assignments.get(&at).ok_or_else(|| not_running(&at.1, "it has no host yet"))?;
    Ok((instance.uid, placed.assignment.host.clone(), instance.status.phase))
}

fn not_running(name: &str, why: &str) -> Problem {
    Problem::new(Code::NotRunning, format!("instance {name} does not run: {why}"))
        .hint(format!("`enoki describe instance {name}` tells more"))
}

fn unreachable(error: StreamError) -> Problem {
    if let StreamError::Leader(error) = error {
        return error.into();
    }
    Problem::new(Code::HostUnreachable, error.to_string()).hint("the instance itself is not affected")
}

/// Refuses before the upgrade what cannot work, so that the client gets a problem and not a closed stream.
fn must_run(name: &str, phase: Phase) -> Result<(), Problem> {
    match phase {
        Phase::Running | Phase::Stopping | Phase::Deleting | Phase::Unknown | Phase::Starting => Ok(()),
        Phase::Pending | Phase::Stopped | Phase::Backoff | Phase::Failed => {
            Err(not_running(name, &format!("it is {phase}")))
        }
    }
}

fn size(params: &mut Params) -> Result<Option<TerminalSize>, Problem> {
    let (columns, rows) = (params.number("columns")?, params.number("rows")?);
    let bounded = |n: u64| u16::try_from(n.clamp(1, 10_000)).unwrap_or(80);
    Ok(columns
        .zip(rows)
        .map(|(columns, rows)| TerminalSize { columns: bounded(columns), rows: bounded(rows) }))
}

async fn exec(
    State(app): State<App>,
    path: Place,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Answer {
    // `command` stands once for each word, which the other requests' parameters never do.
    let (words, rest) = split_words(query.as_deref().unwrap_or_default());
    let mut params = Params::parse(&rest)?;
    let (tty, stdin, size) = (params.flag("tty")?, params.flag("stdin")?, size(&mut params)?);
    params.done()?;
    if words.is_empty() || words[0].is_empty() || words.len() > WORDS_MAX {
        return Err(Problem::invalid_field("command", "a command has 1 to 4096 words").into());
    }
    let (uid, host, phase) = target(&app, &path)?;
    must_run(&path["name"], phase)?;
    let upgrade = upgrade.map_err(|_| needs_upgrade())?;
    let request = StreamRequest::Exec { uid, command: words, tty, stdin, size, env: BTreeMap::new() };
    let host_side = app.broker.open(&app.live, &app.peers, &host, request).await.map_err(unreachable)?;
    Ok(upgrade.max_message_size(MESSAGE_MAX).on_upgrade(|user| splice(user, host_side)))
}

async fn console(
    State(app): State<App>,
    path: Place,
    mut params: Params,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Answer {
    let (size, term) = (size(&mut params)?, params.take("term"));
    params.done()?;
    let (uid, host, phase) = target(&app, &path)?;
    must_run(&path["name"], phase)?;
    let upgrade = upgrade.map_err(|_| needs_upgrade())?;
    let request = StreamRequest::Console { uid, size, term };
    let host_side = app.broker.open(&app.live, &app.peers, &host, request).await.map_err(unreachable)?;
    Ok(upgrade.max_message_size(MESSAGE_MAX).on_upgrade(|user| splice(user, host_side)))
}

/// Bytes to and from a port of the instance, whoever else can reach it.
async fn connect(
    State(app): State<App>,
    path: Place,
    mut params: Params,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Answer {
    let port = params.number("port")?;
    params.done()?;
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let port = port.ok_or_else(|| Problem::invalid_field("port", "a port is 1 to 65535"))?;
    let (uid, host, phase) = target(&app, &path)?;
    must_run(&path["name"], phase)?;
    let upgrade = upgrade.map_err(|_| needs_upgrade())?;
    let request = StreamRequest::Dial { uid, port };
    let host_side = app.broker.open(&app.live, &app.peers, &host, request).await.map_err(unreachable)?;
    Ok(upgrade.max_message_size(MESSAGE_MAX).on_upgrade(|user| splice(user, host_side)))
}

fn needs_upgrade() -> Problem {
    Problem::new(Code::MalformedBody, "this address speaks WebSocket")
        .hint("use `enoki exec`, or a WebSocket client")
}

fn split_words(query: &str) -> (Vec<String>, String) {
    let (words, rest): (Vec<&str>, Vec<&str>) =
        query.split('&').partition(|pair| pair.starts_with("command="));
    let plain = |pair: &&str| {
        let text = pair.trim_start_matches("command=").replace('+', " ");
        percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    (words.iter().map(plain).collect(), rest.join("&"))
}

/// Passes messages both ways until either side ends. Whoever reads slowly slows the other down: nothing piles up here.
async fn splice(user: WebSocket, host: WebSocket) {
    let (mut to_user, mut from_user) = user.split();
    let (mut to_host, mut from_host) = host.split();
    let out = async {
        while let Some(Ok(message)) = from_host.next().await {
            let last =
                matches!(&message, Message::Binary(bytes) if bytes.first() == Some(&(Channel::Exit as u8)));
            if matches!(message, Message::Binary(_)) && to_user.send(message).await.is_err() {
                return;
            }
            if last {
                return;
            }
        }
    };
    let input = async {
        while let Some(Ok(message)) = from_user.next().await {
            match message {
                Message::Binary(_) => {
                    if to_host.send(message).await.is_err() {
                        return;
                    }
                }
                Message::Close(_) => return,
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) => {}
            }
        }
    };
    // Cancel-safe: when one direction ends, so does the stream.
    tokio::select! {
        () = out => {}
        () = input => {}
    }
    let _ = to_user.close().await;
    let _ = to_host.close().await;
}

pub async fn logs(State(app): State<App>, path: Place, mut params: Params) -> Answer {
    let (follow, timestamps) = (params.flag("follow")?, params.flag("timestamps")?);
    let (tail, since) = (params.number("tail")?, params.moment("since")?);
    params.done()?;
    let (uid, host, _) = target(&app, &path)?;
    let request = StreamRequest::Logs { uid, follow, tail, since, timestamps };
    let mut socket = app.broker.open(&app.live, &app.peers, &host, request).await.map_err(unreachable)?;
    // A refusal comes at once, and is an answer of its own while none has begun.
    let first = tokio::time::timeout(FIRST, socket.recv()).await.ok().flatten();
    if let Some(Ok(Message::Binary(bytes))) = &first
        && let Some(why) = exit(bytes).and_then(|exit| exit.error)
    {
        let name = path.get("name").map_or("", String::as_str);
        return Err(Problem::new(Code::NotRunning, format!("the log of {name} cannot be read: {why}")).into());
    }
    Ok(text(Body::from_stream(lines(stream::iter(first).chain(socket)))))
}

/// How long an answer waits for the first word of a host.
const FIRST: Duration = Duration::from_secs(1);

/// What a frame says, if it is the last one.
fn exit(frame: &[u8]) -> Option<Exit> {
    let (channel, payload) = frame.split_first()?;
    (Channel::from_byte(*channel) == Some(Channel::Exit)).then(|| serde_json::from_slice(payload).ok())?
}

/// Text as it is.
pub fn text(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

/// The output on a stream, until its end. A fault after the first byte ends the body early, as HTTP has no other way.
fn lines(
    messages: impl Stream<Item = Result<Message, axum::Error>> + Unpin,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
    stream::unfold(Some(messages), |messages| async move {
        let mut messages = messages?;
        loop {
            let bytes = match messages.next().await? {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(_) => continue,
                Err(error) => return Some((Err(std::io::Error::other(error)), None)),
            };
            match bytes.first().and_then(|byte| Channel::from_byte(*byte)) {
                Some(Channel::Stdout | Channel::Stderr) => {
                    return Some((Ok(bytes.slice(1..)), Some(messages)));
                }
                Some(Channel::Exit) => {
                    return exit(&bytes)?.error.map(|error| (Err(std::io::Error::other(error)), None));
                }
                _ => {}
            }
        }
    })
}

/// What each running instance of a project uses now, as its host reads it from the kernel.
async fn stats(State(app): State<App>, path: Place, params: Params) -> Answer {
    params.done()?;
    let project = path.get("project").cloned().unwrap_or_default();
    let snapshot = app.state.snapshot();
    if snapshot.projects.get("", &project).is_none() {
        return Err(Problem::not_found(format!("project {project}")).into());
    }
    let mut items: Vec<serde_json::Value> = Vec::new();
    for (host, here) in &snapshot.by_host {
        let uids: BTreeMap<Uid, String> = here
            .iter()
            .filter(|at| at.0 == project)
            .filter_map(|at| snapshot.instances.at(at))
            .map(|row| (row.object.uid.clone(), row.object.name.clone()))
            .collect();
        if uids.is_empty() {
            continue;
        }
        let request = StreamRequest::Stats { uids: uids.keys().cloned().collect() };
        let mut socket = app.broker.open(&app.live, &app.peers, host, request).await.map_err(unreachable)?;
        while let Some(Ok(message)) = socket.recv().await {
            let Message::Binary(bytes) = message else { continue };
            match bytes.first().and_then(|byte| Channel::from_byte(*byte)) {
                Some(Channel::Stdout) => {
                    let Ok(mut usage) = serde_json::from_slice::<serde_json::Value>(&bytes[1..]) else {
                        continue;
                    };
                    let uid = usage["uid"].as_str().and_then(Uid::parse);
                    if let Some(name) = uid.and_then(|uid| uids.get(&uid)) {
                        usage["name"] = json!(name);
                        items.push(usage);
                    }
                }
                Some(Channel::Exit) => break,
                _ => {}
            }
        }
    }
    Ok(super::answer::json(axum::http::StatusCode::OK, &json!({"items": items})))
}
