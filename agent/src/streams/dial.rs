//! A TCP connection to a port of an instance, joined with one stream: bytes in, bytes out, a last word.

use super::{NOT_RUN, finish, hung_up, refuse, send};
use crate::instance::machine::Machine;
use crate::session::socket::Socket;
use enoki_api::object::Uid;
use enoki_api::protocol::{Channel, Exit};
use futures::StreamExt;
use futures::stream::{SplitSink, SplitStream};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_tungstenite::tungstenite::Message;

/// The most that is read at once.
const PIECE: usize = 32 << 10;

/// Connects to the first of the instance's own addresses that listens on `port`, its loopback last.
pub async fn serve(
    machine: &dyn Machine,
    uid: &Uid,
    addresses: impl Iterator<Item = Ipv4Addr>,
    port: u16,
    mut socket: Socket,
) -> Result<(), String> {
    let at: Vec<SocketAddr> =
        addresses.chain([Ipv4Addr::LOCALHOST]).map(|address| (IpAddr::from(address), port).into()).collect();
    let connection = match machine.dial(uid, at).await {
        Ok(connection) => connection,
        Err(error) => return refuse(&mut socket, &error.to_string()).await,
    };
    let (from, to) = connection.into_split();
    let (mut sink, mut source) = socket.split();
    // Cancel-safe: whichever ends first ends the connection.
    tokio::select! {
        told = tell(from, &mut sink) => told?,
        () = hear(to, &mut source) => return Ok(()),
    }
    hung_up(&mut source).await;
    Ok(())
}

/// What the instance sends, until it has sent all.
async fn tell(mut from: OwnedReadHalf, sink: &mut SplitSink<Socket, Message>) -> Result<(), String> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).await {
            Ok(0) => return finish(sink, &Exit { code: 0, error: None }).await,
            Ok(read) => send(sink, Channel::Stdout, &piece[..read]).await?,
            Err(error) => {
                return finish(sink, &Exit { code: NOT_RUN, error: Some(error.to_string()) }).await;
            }
        }
    }
}

/// What the client sends, until it goes away.
async fn hear(to: OwnedWriteHalf, source: &mut SplitStream<Socket>) {
    let mut to = Some(to);
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
                // It reads no more: what it still sends matters.
                if let Some(open) = &mut to
                    && open.write_all(payload).await.is_err()
                {
                    to = None;
                }
            }
            // Dropped, this half says that no more comes.
            Some(Channel::CloseStdin) => to = None,
            Some(Channel::Resize | Channel::Stdout | Channel::Stderr | Channel::Exit) | None => {}
        }
    }
}
