//! One program in an instance, joined with one stream: output out, input in, its exit code last.

use super::{NOT_RUN, finish, hung_up, refuse, send};
use crate::runtime::{Error, ExecEnd, ExecRequest, ExecStream, Output, Runtime};
use crate::session::socket::Socket;
use enoki_api::protocol::{Channel, Exit, TerminalSize};
use futures::StreamExt;
use futures::stream::{SplitSink, SplitStream};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

/// Docker knows the exit code a moment after the output ended.
const EXIT_WAIT: Duration = Duration::from_secs(10);
const EXIT_LOOK: Duration = Duration::from_millis(20);
/// How Docker begins the one line that stands in place of the output of a program that it could not start. Whether it
/// is that, and not a program that says so, the exec's end tells.
const NOT_STARTED: &[u8] = b"OCI runtime exec failed: ";

pub async fn serve(
    runtime: &dyn Runtime,
    container: &str,
    request: &ExecRequest,
    mut socket: Socket,
) -> Result<(), String> {
    let ExecStream { id, mut output, input } = match runtime.exec(container, request).await {
        Ok(stream) => stream,
        Err(error) => return refuse(&mut socket, &error.to_string()).await,
    };
    let (mut sink, mut source) = socket.split();
    // Cancel-safe: whichever ends first ends the attachment; the program itself is not touched.
    tokio::select! {
        finished = tell_all(runtime, &id, &mut output, &mut sink) => finished?,
        () = hear(runtime, &id, &mut source, input) => return Ok(()),
    }
    hung_up(&mut source).await;
    Ok(())
}

/// Output and, last, how the program ended.
async fn tell_all(
    runtime: &dyn Runtime,
    exec: &str,
    output: &mut (impl futures::Stream<Item = Result<Output, Error>> + Unpin),
    sink: &mut SplitSink<Socket, Message>,
) -> Result<(), String> {
    let exit = match tell(output, sink).await? {
        Told::Broken(error) => Exit { code: NOT_RUN, error: Some(error.to_string()) },
        Told::All(held) => match (ended(runtime, exec).await, held) {
            (Ok(ExecEnd::Exited(code)), held) => {
                if let Some(piece) = held {
                    pass(sink, &piece).await?;
                }
                Exit { code: i32::try_from(code).unwrap_or(NOT_RUN), error: None }
            }
            (Ok(ExecEnd::NotStarted), held) => Exit { code: NOT_RUN, error: Some(reason(held)) },
            (Err(why), _) => Exit { code: NOT_RUN, error: Some(why) },
        },
    };
    finish(sink, &exit).await
}

/// How the output ended.
enum Told {
    /// With a last piece that is not passed on: it may be Docker's word, and not the program's.
    All(Option<Output>),
    Broken(Error),
}

/// PURE: why the program did not start, without Docker's own frame around it.
fn reason(held: Option<Output>) -> String {
    let text = match held {
        Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        None => return "it could not be started".to_owned(),
    };
    let text = text.trim().trim_end_matches(": unknown");
    text.rsplit_once("exec failed: ").map_or(text, |(_, why)| why).to_owned()
}

fn says_not_started(piece: &Output) -> bool {
    match piece {
        Output::Stdout(bytes) | Output::Stderr(bytes) => bytes.starts_with(NOT_STARTED),
    }
}

async fn pass(sink: &mut SplitSink<Socket, Message>, piece: &Output) -> Result<(), String> {
    match piece {
        Output::Stdout(bytes) => send(sink, Channel::Stdout, bytes).await,
        Output::Stderr(bytes) => send(sink, Channel::Stderr, bytes).await,
    }
}

/// Output until its end.
async fn tell(
    output: &mut (impl futures::Stream<Item = Result<Output, Error>> + Unpin),
    sink: &mut SplitSink<Socket, Message>,
) -> Result<Told, String> {
    let mut held = None;
    while let Some(piece) = output.next().await {
        if let Some(before) = held.take() {
            pass(sink, &before).await?;
        }
        match piece {
            Ok(piece) if says_not_started(&piece) => held = Some(piece),
            Ok(piece) => pass(sink, &piece).await?,
            Err(error) => return Ok(Told::Broken(error)),
        }
    }
    Ok(Told::All(held))
}

/// Input until the client goes away.
async fn hear(
    runtime: &dyn Runtime,
    exec: &str,
    source: &mut SplitStream<Socket>,
    input: std::pin::Pin<Box<dyn AsyncWrite + Send>>,
) {
    let mut input = Some(input);
    while let Some(Ok(message)) = source.next().await {
        let Message::Binary(bytes) = message else {
            if matches!(message, Message::Close(_)) {
                return;
            }
            continue;
        };
        let Some((channel, payload)) = bytes.split_first() else { continue };
        match Channel::from_byte(*channel) {
            Some(Channel::Stdin) => {
                // A program that reads no more: the rest of its input goes nowhere, its output still matters.
                if let Some(to) = &mut input
                    && (to.write_all(payload).await.is_err() || to.flush().await.is_err())
                {
                    input = None;
                }
            }
            Some(Channel::CloseStdin) => {
                if let Some(mut to) = input.take() {
                    // An error: it was closed already.
                    let _ = to.shutdown().await;
                }
            }
            Some(Channel::Resize) => {
                if let Ok(size) = serde_json::from_slice::<TerminalSize>(payload)
                    && let Err(error) = runtime.exec_resize(exec, size).await
                {
                    tracing::debug!(%error, "a terminal was not resized");
                }
            }
            // Channels of the other direction, or of a newer version.
            Some(Channel::Stdout | Channel::Stderr | Channel::Exit) | None => {}
        }
    }
}

async fn ended(runtime: &dyn Runtime, exec: &str) -> Result<ExecEnd, String> {
    let deadline = tokio::time::Instant::now() + EXIT_WAIT;
    loop {
        let why = match runtime.exec_exit(exec).await {
            Ok(Some(end)) => return Ok(end),
            Ok(None) => "its output ended and it still runs".to_owned(),
            Err(error) => error.to_string(),
        };
        if tokio::time::Instant::now() >= deadline {
            return Err(format!("its exit code is not known: {why}"));
        }
        tokio::time::sleep(EXIT_LOOK).await;
    }
}
