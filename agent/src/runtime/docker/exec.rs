//! Programs in running containers: the connection is taken over and carries input and output.
//!
//! Without a terminal the output comes in frames (stream, length, bytes); with one it is the terminal's bytes,
//! whatever they are. Pieces are handed on as they arrive, however long a frame is. Shutting the input down is
//! the program's end of file; dropping the stream leaves the program running.

use super::super::{ExecEnd, ExecRequest, ExecStream, Output};
use super::{Docker, Error, Instant, wire};
use bollard::models::ExecConfig;
use bytes::{Buf, BytesMut};
use enoki_api::protocol::TerminalSize;
use futures::StreamExt;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::task;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::timeout_at;
use tokio_util::codec::{Decoder, FramedRead};

/// Makes an exec and returns its id. Nothing runs before it is started.
pub async fn create(docker: &Docker, container: &str, request: &ExecRequest) -> Result<String, Error> {
    let config = ExecConfig {
        attach_stdin: Some(request.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(request.tty),
        env: Some(request.env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        cmd: Some(request.command.clone()),
        ..ExecConfig::default()
    };
    let made = docker
        .quick("create exec", |client| async move { client.create_exec(container, config).await })
        .await?;
    Ok(made.id)
}

/// Starts an exec. After an error nobody knows whether its program runs.
pub async fn start(docker: &Docker, id: String, request: &ExecRequest) -> Result<ExecStream, Error> {
    let until = Instant::now() + docker.deadlines.quick;
    let late = |_| Error::Unavailable("start exec: no answer in time".to_owned());
    let _place = timeout_at(until, docker.calls.acquire()).await.map_err(late)?;
    let stream = timeout_at(until, attach(docker, id, request.tty)).await.map_err(late)??;
    if let Some(size) = request.size.filter(|_| request.tty) {
        // A program that has already ended has no terminal to resize.
        if let Err(error) = resize(docker, &stream.id, size).await {
            tracing::debug!(%error, "the new terminal was not resized");
        }
    }
    Ok(stream)
}

async fn attach(docker: &Docker, id: String, tty: bool) -> Result<ExecStream, Error> {
    let what = "start exec";
    let mut sender = wire::connect(docker.socket()).await?;
    let body = serde_json::json!({"Detach": false, "Tty": tty}).to_string();
    let request = Request::post(format!("/exec/{id}/start"))
        .header(HOST, "docker")
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "tcp")
        .body(Full::from(body))
        .map_err(|why| Error::Refused(format!("{what}: {why}")))?;
    let response = sender.send_request(request).await.map_err(|why| wire::away(what, why))?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let text = Limited::new(response.into_body(), 64 << 10).collect().await;
        let text = text.map(|body| body.to_bytes()).unwrap_or_default();
        let message = serde_json::from_slice::<serde_json::Value>(&text)
            .ok()
            .and_then(|json| json["message"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
        let fault =
            bollard::errors::Error::DockerResponseServerError { status_code: status.as_u16(), message };
        return Err(super::reading::error(what, fault));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|why| wire::away(what, why))?;
    let (read, write) = tokio::io::split(TokioIo::new(upgraded));
    let output = FramedRead::new(UntilReset(read), Frames { tty, current: None })
        .map(|piece| piece.map_err(|why| wire::away("exec output", why)));
    Ok(ExecStream { id, output: output.boxed(), input: Box::pin(write) })
}

pub async fn resize(docker: &Docker, exec: &str, size: TerminalSize) -> Result<(), Error> {
    let options = bollard::exec::ResizeExecOptions { height: size.rows, width: size.columns };
    docker.quick("resize exec", |client| async move { client.resize_exec(exec, options).await }).await
}

pub async fn exit(docker: &Docker, exec: &str) -> Result<Option<ExecEnd>, Error> {
    let answer =
        docker.quick("inspect exec", |client| async move { client.inspect_exec(exec).await }).await?;
    Ok(super::reading::exec_end(&answer))
}

/// Takes a reset for the end: Docker closes the connection when the program has ended, and the kernel says so in this way where there is
/// input that nobody has read. What came before is read by then. Whether the program has ended is asked afterwards in any case.
struct UntilReset<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for UntilReset<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer).map(|read| match read {
            Err(why) if why.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            other => other,
        })
    }
}

#[derive(Clone, Copy)]
enum Source {
    Stdout,
    Stderr,
}

impl Source {
    fn piece(self, bytes: bytes::Bytes) -> Output {
        match self {
            Source::Stdout => Output::Stdout(bytes),
            Source::Stderr => Output::Stderr(bytes),
        }
    }
}

/// Takes the frames apart.
struct Frames {
    tty: bool,
    /// The frame that is being read, and how much of it is still to come.
    current: Option<(Source, usize)>,
}

impl Decoder for Frames {
    type Item = Output;
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Output>> {
        if self.tty {
            return Ok((!buffer.is_empty()).then(|| Output::Stdout(buffer.split().freeze())));
        }
        loop {
            if let Some((source, left)) = self.current.take() {
                if left > 0 && buffer.is_empty() {
                    self.current = Some((source, left));
                    return Ok(None);
                }
                if left > 0 {
                    let piece = buffer.split_to(left.min(buffer.len())).freeze();
                    self.current = Some((source, left - piece.len()));
                    return Ok(Some(source.piece(piece)));
                }
            }
            if buffer.len() < 8 {
                return Ok(None);
            }
            let source = match buffer[0] {
                // 0 would be the program's input, echoed; Docker shows it as output.
                0 | 1 => Source::Stdout,
                2 => Source::Stderr,
                other => {
                    let text = format!("a frame of stream {other}: not Docker's protocol");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            };
            let length = u32::from_be_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]);
            buffer.advance(8);
            self.current = Some((source, length as usize));
        }
    }

    fn decode_eof(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Output>> {
        match self.decode(buffer)? {
            Some(piece) => Ok(Some(piece)),
            None if buffer.is_empty() && self.current.is_none_or(|(_, left)| left == 0) => Ok(None),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(tty: bool, chunks: &[&[u8]]) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let mut frames = Frames { tty, current: None };
        let mut buffer = BytesMut::new();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut keep = |piece| match piece {
            Output::Stdout(bytes) => out.extend_from_slice(&bytes),
            Output::Stderr(bytes) => err.extend_from_slice(&bytes),
        };
        for chunk in chunks {
            buffer.extend_from_slice(chunk);
            while let Some(piece) = frames.decode(&mut buffer)? {
                keep(piece);
            }
        }
        while let Some(piece) = frames.decode_eof(&mut buffer)? {
            keep(piece);
        }
        Ok((out, err))
    }

    #[test]
    fn frames_in_any_pieces() {
        let wire: &[u8] =
            b"\x01\0\0\0\0\0\0\x03one\x02\0\0\0\0\0\0\x03two\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x02!!";
        let whole = (b"one!!".to_vec(), b"two".to_vec());
        assert_eq!(run(false, &[wire]).unwrap(), whole);
        let single: Vec<&[u8]> = wire.chunks(1).collect();
        assert_eq!(run(false, &single).unwrap(), whole);
        assert!(run(false, &[&wire[..10]]).is_err(), "cut off inside a frame");
        assert!(run(false, &[b"hello, terminal"]).is_err(), "not frames at all");
    }

    #[tokio::test]
    async fn input_that_nobody_reads_takes_no_output_away() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for reset_is_an_end in [true, false] {
            let (mut ours, mut dockers) = tokio::net::UnixStream::pair().unwrap();
            ours.write_all(b"input").await.unwrap();
            dockers.write_all(b"output").await.unwrap();
            drop(dockers);
            let mut seen = Vec::new();
            let read = if reset_is_an_end {
                UntilReset(ours).read_to_end(&mut seen).await
            } else {
                ours.read_to_end(&mut seen).await
            };
            assert_eq!(seen, b"output");
            let told = read.map_err(|why| why.kind()).map(drop);
            let expected = if reset_is_an_end { Ok(()) } else { Err(io::ErrorKind::ConnectionReset) };
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn a_terminal_is_raw() {
        let bytes: &[u8] = b"\x01\x02\0\0 raw";
        assert_eq!(run(true, &[bytes]).unwrap().0, bytes);
    }
}
