//! Streams of exec, console and logs: the channel frames and the WebSocket they travel in.
//!
//! Client, server and agent share [`Frame`]; client and agent also share [`open`], which does the handshake over
//! any connection. It goes through hyper, so that a server that refuses is heard out: its problem arrives whole.
//! A frame that cannot be read is an error; a frame on a channel that this version does not know is skipped.

use crate::client::{Error, refused};
use crate::protocol::{Channel, Exit, TerminalSize};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::header;
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

/// The most payload that one frame carries: a terminal's or a pipe's worth, so that no peer has to hold much.
pub const PAYLOAD_MAX: usize = 64 << 10;
/// The largest message a peer takes; larger ones end the stream.
pub const MESSAGE_MAX: usize = 1 << 20;

/// One message of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Stdin(Bytes),
    Stdout(Bytes),
    Stderr(Bytes),
    Resize(TerminalSize),
    /// The last one of a stream.
    Exit(Exit),
    CloseStdin,
}

/// Why a message is not a frame.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FrameError {
    #[error("an empty message is not a frame")]
    Empty,
    /// Of a newer version; to be skipped.
    #[error("there is no channel {0}")]
    UnknownChannel(u8),
    #[error("the payload of channel {channel} cannot be read: {why}")]
    Payload { channel: u8, why: String },
}

impl Frame {
    /// The bytes of a binary message.
    pub fn encode(&self) -> Bytes {
        let (channel, payload) = match self {
            Frame::Stdin(bytes) => (Channel::Stdin, bytes.clone()),
            Frame::Stdout(bytes) => (Channel::Stdout, bytes.clone()),
            Frame::Stderr(bytes) => (Channel::Stderr, bytes.clone()),
            Frame::Resize(size) => (Channel::Resize, json(size)),
            Frame::Exit(exit) => (Channel::Exit, json(exit)),
            Frame::CloseStdin => (Channel::CloseStdin, Bytes::new()),
        };
        let mut message = Vec::with_capacity(payload.len() + 1);
        message.push(channel as u8);
        message.extend_from_slice(&payload);
        message.into()
    }

    /// Reads the bytes of a binary message.
    pub fn decode(message: Bytes) -> Result<Self, FrameError> {
        let Some(&first) = message.first() else {
            return Err(FrameError::Empty);
        };
        let payload = message.slice(1..);
        let fault = |error: serde_json::Error| FrameError::Payload { channel: first, why: error.to_string() };
        Ok(match Channel::from_byte(first).ok_or(FrameError::UnknownChannel(first))? {
            Channel::Stdin => Frame::Stdin(payload),
            Channel::Stdout => Frame::Stdout(payload),
            Channel::Stderr => Frame::Stderr(payload),
            Channel::Resize => Frame::Resize(serde_json::from_slice(&payload).map_err(fault)?),
            Channel::Exit => Frame::Exit(serde_json::from_slice(&payload).map_err(fault)?),
            Channel::CloseStdin => Frame::CloseStdin,
        })
    }
}

/// Sizes and exits are plain numbers and texts: JSON always has them.
fn json<T: serde::Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// A WebSocket whose handshake is done.
pub type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// Opens a WebSocket over a fresh connection. `target` is path and query; messages above `message_max` bytes end
/// it. The deadline covers the handshake, not the stream. A refusal is the server's problem.
pub async fn open<S>(
    io: S,
    target: &str,
    authorization: Option<&http::HeaderValue>,
    message_max: usize,
    deadline: Duration,
) -> Result<WebSocket, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        // Ends by itself: with the upgrade, or when sender and answer are dropped.
        tokio::spawn(connection.with_upgrades());
        let key = generate_key();
        let mut request = http::Request::get(target)
            .header(header::HOST, "enoki")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .body(Empty::<Bytes>::new())
            .map_err(|error| Error::Protocol(format!("`{target}` cannot be asked for: {error}")))?;
        if let Some(authorization) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let answer = sender.send_request(request).await?;
        if answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(refused(answer).await);
        }
        let accept = answer.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(|value| value.as_bytes());
        if accept != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(Error::Protocol("the server switched to something that is no WebSocket".into()));
        }
        Ok(hyper::upgrade::on(answer).await?)
    };
    let upgraded = match tokio::time::timeout(deadline, handshake).await {
        Ok(done) => done?,
        Err(_) => return Err(Error::Timeout { after: deadline }),
    };
    let config =
        WebSocketConfig::default().max_message_size(Some(message_max)).max_frame_size(Some(message_max));
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await)
}

/// The two halves of a stream of frames; each may live in a task of its own, so that neither waits for the other.
pub fn frames(socket: WebSocket) -> (FrameSender, FrameReceiver) {
    let (sink, stream) = socket.split();
    (FrameSender(sink), FrameReceiver(stream))
}

/// Sends frames, in order.
pub struct FrameSender(SplitSink<WebSocket, Message>);

impl FrameSender {
    /// Sends one frame; larger payloads go in several of [`PAYLOAD_MAX`].
    pub async fn send(&mut self, frame: Frame) -> Result<(), Error> {
        match frame {
            Frame::Stdin(bytes) => self.parts(bytes, Frame::Stdin).await,
            Frame::Stdout(bytes) => self.parts(bytes, Frame::Stdout).await,
            Frame::Stderr(bytes) => self.parts(bytes, Frame::Stderr).await,
            other => self.message(other).await,
        }
    }

    async fn parts(&mut self, mut bytes: Bytes, frame: fn(Bytes) -> Frame) -> Result<(), Error> {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(PAYLOAD_MAX));
            self.message(frame(part)).await?;
        }
        Ok(())
    }

    async fn message(&mut self, frame: Frame) -> Result<(), Error> {
        self.0.send(Message::Binary(frame.encode())).await.map_err(broken)
    }

    /// Says goodbye; a peer that is gone already is no error.
    pub async fn close(&mut self) {
        let _ = self.0.close().await;
    }
}

/// Receives frames, in order.
pub struct FrameReceiver(SplitStream<WebSocket>);

impl FrameReceiver {
    /// The next frame; `None` when the peer closed the stream. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Frame, Error>> {
        loop {
            let bytes = match self.0.next().await? {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Close(_)) => return None,
                Ok(Message::Text(_)) => {
                    return Some(Err(Error::Protocol("a text message is not a frame".into())));
                }
                // Pings are answered by the library.
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                Err(error) => return Some(Err(broken(error))),
            };
            match Frame::decode(bytes) {
                Err(FrameError::UnknownChannel(_)) => continue,
                decoded => return Some(decoded.map_err(|error| Error::Protocol(error.to_string()))),
            }
        }
    }
}

fn broken(error: tokio_tungstenite::tungstenite::Error) -> Error {
    Error::Protocol(format!("the stream broke: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        for frame in [
            Frame::Stdin(Bytes::from_static(b"a\0\xff")),
            Frame::Stdout(Bytes::new()),
            Frame::Stderr(Bytes::from_static(b"x")),
            Frame::Resize(TerminalSize { columns: 80, rows: 24 }),
            Frame::Exit(Exit { code: 137, error: None }),
            Frame::CloseStdin,
        ] {
            assert_eq!(Frame::decode(frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn what_is_no_frame_is_told_apart() {
        assert_eq!(Frame::decode(Bytes::new()), Err(FrameError::Empty));
        assert_eq!(Frame::decode(Bytes::from_static(b"\x09x")), Err(FrameError::UnknownChannel(9)));
        assert!(matches!(
            Frame::decode(Bytes::from_static(b"\x03{")),
            Err(FrameError::Payload { channel: 3, .. })
        ));
    }
}
