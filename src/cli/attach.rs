//! `exec` and `console`: a program in an instance, with the user's input, output and terminal.
//!
//! Input and output go each in a task of its own, so that a program that does not read cannot keep its own output
//! back. The terminal is put back on every way out. The exit code is the program's own, 128+n for a signal, and 125
//! when it could not be run or the connection was lost before it told.

use super::context::{CALL, Context};
use super::failure::{Failure, NOT_RUN};
use super::terminal::{self, Mode};
use bytes::Bytes;
use enoki_api::client::ExecOptions;
use enoki_api::protocol::TerminalSize;
use enoki_api::stream::{self, Frame, FrameReceiver, FrameSender, WebSocket};
use std::io::{self, Read};
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Runs a command in an instance
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The exit code is the command's own: 128+n for signal n, 125 when it could not be run.

Examples:
  enoki exec web1 -- hostname
  enoki exec -it web1 -- bash
  tar c data | enoki exec -i web1 -- tar x -C /srv")]
pub struct Exec {
    /// Send it what comes on stdin
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// The instance
    name: String,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

pub async fn exec(ctx: &Context, args: Exec) -> Result<u8, Failure> {
    let size = args.tty.then(terminal::size).flatten();
    let options = ExecOptions { command: args.command, tty: args.tty, stdin: args.stdin, size };
    let run = async {
        let socket = ctx.client.exec(&ctx.project, &args.name, &options, CALL).await?;
        attach(socket, args.stdin, args.tty).await
    };
    run.await.map_err(not_run)
}

/// Opens a login shell on a new terminal of an instance
#[derive(clap::Args, Debug)]
#[command(after_help = "Leave it with `exit` or Ctrl-D.")]
pub struct Console {
    /// The instance
    name: String,
}

pub async fn console(ctx: &Context, args: Console) -> Result<u8, Failure> {
    let term = std::env::var("TERM").ok();
    let run = async {
        let socket =
            ctx.client.console(&ctx.project, &args.name, terminal::size(), term.as_deref(), CALL).await?;
        attach(socket, true, true).await
    };
    run.await.map_err(not_run)
}

/// Whatever went wrong, the program did not run, or nobody knows how it ended.
fn not_run(failure: Failure) -> Failure {
    if failure.code == 0 { failure } else { failure.with_code(NOT_RUN) }
}

async fn attach(socket: WebSocket, stdin: bool, tty: bool) -> Result<u8, Failure> {
    let raw = if tty && stdin { Mode::raw()? } else { None };
    let (sender, receiver) = stream::frames(socket);
    let input = stdin.then(read_stdin).transpose()?;
    let (resized, size) = watch::channel(None);
    let writer = tokio::spawn(send(sender, input, size));
    let ended = receive(receiver, tty.then_some(resized), raw.is_some()).await;
    // The reader of stdin may sit in a read that never ends; it holds nothing and goes with the process.
    writer.abort();
    // Before anything is told: a message on a raw terminal runs down it like a staircase.
    drop(raw);
    ended
}

/// Reads stdin in a thread of its own: a read of a terminal cannot be cancelled, and must not keep the runtime from
/// ending. The channel's end is the input's end.
fn read_stdin() -> Result<mpsc::Receiver<Bytes>, Failure> {
    let (to, from) = mpsc::channel(8);
    let read = move || {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // An input that cannot be read has ended.
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    if to.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(read)
        .map_err(|error| Failure::io("stdin", error))?;
    Ok(from)
}

/// Sends input and sizes until the stream breaks; the receiver is the one who tells why.
async fn send(
    mut sender: FrameSender,
    mut input: Option<mpsc::Receiver<Bytes>>,
    mut size: watch::Receiver<Option<TerminalSize>>,
) {
    let mut sizes = true;
    while input.is_some() || sizes {
        let frame = tokio::select! {
            // Both arms are cancel-safe: a message stays in its channel until it is taken.
            bytes = next_input(&mut input) => match bytes {
                Some(bytes) => Frame::Stdin(bytes),
                None => {
                    input = None;
                    Frame::CloseStdin
                }
            },
            changed = size.changed(), if sizes => {
                sizes = changed.is_ok();
                match *size.borrow_and_update() {
                    Some(size) if sizes => Frame::Resize(size),
                    _ => continue,
                }
            }
        };
        if sender.send(frame).await.is_err() {
            return;
        }
    }
}

async fn next_input(input: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// Writes output until the program has ended; its exit code.
async fn receive(
    mut receiver: FrameReceiver,
    resized: Option<watch::Sender<Option<TerminalSize>>>,
    raw: bool,
) -> Result<u8, Failure> {
    let mut window = resized.is_some().then(|| listen(SignalKind::window_change())).transpose()?;
    // Only a raw terminal has to be put back before a signal may end us.
    let mut deadly = Vec::new();
    if raw {
        for (number, kind) in
            [(1, SignalKind::hangup()), (2, SignalKind::interrupt()), (15, SignalKind::terminate())]
        {
            deadly.push((number, listen(kind)?));
        }
    }
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        let frame = tokio::select! {
            // Cancel-safe: a frame is taken whole or not at all, and a signal stays pending.
            frame = receiver.next() => frame,
            Some(()) = next_signal(&mut window) => {
                if let (Some(resized), Some(size)) = (&resized, terminal::size()) {
                    resized.send_replace(Some(size));
                }
                continue;
            }
            number = any_of(&mut deadly) => return Ok(128 + number),
        };
        match frame {
            Some(Ok(Frame::Stdout(bytes))) => write(&mut stdout, &bytes).await.map_err(Failure::stdout)?,
            Some(Ok(Frame::Stderr(bytes))) => {
                write(&mut stderr, &bytes).await.map_err(|error| Failure::io("stderr", error))?;
            }
            Some(Ok(Frame::Exit(exit))) => {
                return match exit.error {
                    Some(error) => Err(Failure::failed(error).with_code(code(exit.code))),
                    None => Ok(code(exit.code)),
                };
            }
            // What only we send.
            Some(Ok(Frame::Stdin(_) | Frame::Resize(_) | Frame::CloseStdin)) => {}
            Some(Err(error)) => return Err(error.into()),
            None => {
                return Err(Failure::failed("the connection was lost before the program told how it ended"));
            }
        }
    }
}

/// Exit codes have eight bits; what does not fit was never a program's.
fn code(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(NOT_RUN)
}

async fn write(to: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::io("signals", error))
}

async fn next_signal(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// The number of the first of these signals that comes.
async fn any_of(signals: &mut [(u8, Signal)]) -> u8 {
    std::future::poll_fn(|task| {
        for (number, signal) in signals.iter_mut() {
            if signal.poll_recv(task).is_ready() {
                return std::task::Poll::Ready(*number);
            }
        }
        std::task::Poll::Pending
    })
    .await
}
