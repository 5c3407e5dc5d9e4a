//! `port-forward`: a port of this machine that leads into an instance, over the API. Nothing else has to reach it.

use super::context::{CALL, Context};
use super::failure::Failure;
use bytes::BytesMut;
use enoki_api::stream::{self, Frame, FrameReceiver, FrameSender};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The most that is read at once.
const PIECE: usize = 32 << 10;

/// Leads a port of this machine into an instance, until Ctrl-C
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The connection is made inside the instance: it also reaches what listens on its loopback only.

Examples:
  enoki port-forward web1 8080           localhost:8080 is web1's port 8080
  enoki port-forward db1 15432:5432      localhost:15432 is db1's port 5432
  enoki port-forward web1 0:80           any free port, which is printed")]
pub struct PortForward {
    /// The instance
    name: String,
    /// Of this machine and of the instance
    #[arg(value_name = "[LOCAL:]PORT")]
    ports: Ports,
    /// Where to listen. Whoever reaches it reaches the instance
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Ports {
    local: u16,
    inside: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, inside) = text.split_once(':').unwrap_or((text, text));
        let port =
            |text: &str| text.parse::<u16>().map_err(|_| format!("`{text}` is not a port, 1 to 65535"));
        match (port(local)?, port(inside)?) {
            (_, 0) => Err("an instance has no port 0".into()),
            (local, inside) => Ok(Ports { local, inside }),
        }
    }
}

pub async fn forward(ctx: &Context, args: PortForward) -> Result<(), Failure> {
    let Ports { local, inside } = args.ports;
    let name = &args.name;
    lead(ctx, name, (args.address, local).into(), inside, |at| format!("{at} is port {inside} of {name}"))
        .await
}

/// Leads the port `at` of this machine to the port `inside` an instance, until Ctrl-C. `told` is what is said about it.
pub async fn lead(
    ctx: &Context,
    name: &str,
    at: SocketAddr,
    inside: u16,
    told: impl Fn(SocketAddr) -> String,
) -> Result<(), Failure> {
    // Before anybody is let in: whether there is an instance, and one that this user may enter.
    drop(ctx.client.connect_to(&ctx.project, name, inside, CALL).await?);
    let listener = TcpListener::bind(at).await.map_err(|error| Failure::io(at, error))?;
    let at = listener.local_addr().map_err(|error| Failure::io("the port", error))?;
    super::output::line(told(at))?;
    let mut connections = JoinSet::new();
    loop {
        // Cancel-safe: a connection that is not accepted stays in the queue, and one that ended in the set.
        tokio::select! {
            accepted = listener.accept() => {
                let (near, from) = accepted.map_err(|error| Failure::io("the port", error))?;
                let (client, project, name) = (ctx.client.clone(), ctx.project.clone(), name.to_owned());
                connections.spawn(async move {
                    let joined = async {
                        let far = client.connect_to(&project, &name, inside, CALL).await?;
                        join(near, stream::frames(far)).await
                    };
                    if let Err(failure) = joined.await {
                        eprintln!("{from}: {failure}");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Passes bytes both ways until the instance has said its last word, or this side has gone.
async fn join(near: TcpStream, far: (FrameSender, FrameReceiver)) -> Result<(), Failure> {
    let (from, to) = near.into_split();
    let (sender, receiver) = far;
    // Cancel-safe: either's end is the connection's. What is sent ends by itself, and then waits for the other.
    tokio::select! {
        done = take(receiver, to) => done,
        done = give(from, sender) => done,
    }
}

async fn give(mut from: impl AsyncRead + Unpin, mut sender: FrameSender) -> Result<(), Failure> {
    loop {
        let mut piece = BytesMut::with_capacity(PIECE);
        match from.read_buf(&mut piece).await {
            Ok(0) => break,
            Ok(_) => sender.send(Frame::Stdin(piece.freeze())).await?,
            // It went away: so does the other end.
            Err(_) => return Ok(()),
        }
    }
    sender.send(Frame::CloseStdin).await?;
    // The answer may still be on its way.
    std::future::pending().await
}

async fn take(mut receiver: FrameReceiver, mut to: impl AsyncWrite + Unpin) -> Result<(), Failure> {
    loop {
        match receiver.next().await {
            Some(Ok(Frame::Stdout(bytes))) => {
                if to.write_all(&bytes).await.is_err() {
                    return Ok(());
                }
            }
            Some(Ok(Frame::Exit(exit))) => {
                // An error: whoever connected has gone.
                let _ = to.shutdown().await;
                return exit.error.map_or(Ok(()), |error| Err(Failure::failed(error)));
            }
            Some(Ok(Frame::Stdin(_) | Frame::Stderr(_) | Frame::Resize(_) | Frame::CloseStdin)) => {}
            Some(Err(error)) => return Err(error.into()),
            None => return Err(Failure::failed("the connection to the instance was lost")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        assert_eq!("8080".parse(), Ok(Ports { local: 8080, inside: 8080 }));
        assert_eq!("0:80".parse(), Ok(Ports { local: 0, inside: 80 }));
        for wrong in ["", "x", "1:2:3", "80:0", "70000"] {
            wrong.parse::<Ports>().unwrap_err();
        }
    }
}
