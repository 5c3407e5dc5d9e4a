//! A stream to a port of an instance as plain bytes, for the server's own use.

use super::{Broker, Live, StreamError};
use crate::peers::Peers;
use axum::extract::ws::{Message, WebSocket};
use bytes::BytesMut;
use enoki_api::object::Uid;
use enoki_api::protocol::StreamRequest;
use enoki_api::stream::Frame;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, split};

/// What is under way in each direction, at most.
const BUFFER: usize = 64 << 10;

impl Broker {
    /// A connection to a port of an instance, made from within its own network. Where nobody listens, it is closed at once.
    pub async fn dial(
        &self,
        live: &Live,
        peers: &Peers,
        host: &str,
        uid: Uid,
        port: u16,
    ) -> Result<DuplexStream, StreamError> {
        let socket = self.open(live, peers, host, StreamRequest::Dial { uid, port }).await?;
        let (near, far) = tokio::io::duplex(BUFFER);
        // Ends when either side has gone.
        tokio::spawn(join(far, socket));
        Ok(near)
    }
}

async fn join(bytes: DuplexStream, socket: WebSocket) {
    let (mut from, mut to) = split(bytes);
    let (mut sink, mut source) = socket.split();
    let give = async {
        loop {
            let mut piece = BytesMut::with_capacity(BUFFER / 2);
            let frame = match from.read_buf(&mut piece).await {
                Ok(0) | Err(_) => Frame::CloseStdin,
                Ok(_) => Frame::Stdin(piece.freeze()),
            };
            let last = frame == Frame::CloseStdin;
            if sink.send(Message::Binary(frame.encode())).await.is_err() || last {
                return;
            }
        }
    };
    let take = async {
        while let Some(Ok(message)) = source.next().await {
            let Message::Binary(message) = message else { continue };
            match Frame::decode(message) {
                Ok(Frame::Stdout(bytes)) if to.write_all(&bytes).await.is_ok() => {}
                Ok(Frame::Stdout(_) | Frame::Exit(_)) | Err(_) => break,
                Ok(Frame::Stdin(_) | Frame::Stderr(_) | Frame::Resize(_) | Frame::CloseStdin) => {}
            }
        }
        // An error: whoever reads has gone.
        let _ = to.shutdown().await;
    };
    // Cancel-safe: whichever ends first ends the connection.
    tokio::select! {
        () = give => {}
        () = take => {}
    }
}
