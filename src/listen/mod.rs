//! Where the server is reached: sockets of this machine, and TLS for everyone else.

mod tls;

pub use tls::{Serving, TlsListener};

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use enoki_api::identity::Identity;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// Who is at the other end of a connection, as far as the connection tells.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A process of this machine, let in by the socket's permissions.
    Local { uid: Option<u32>, pid: Option<i32> },
    /// Over TLS. `identity`: what its certificate of our CA says, if it showed one.
    Remote { address: SocketAddr, identity: Option<Identity> },
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Peer::Local { uid: credentials.as_ref().map(|c| c.uid()), pid: credentials.and_then(|c| c.pid()) }
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A socket that a dead predecessor may have left; a living one is not pushed aside.
pub fn unix(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("another server listens on {shown}");
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => bail!("{shown}: {error}"),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| shown.to_string())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| shown.to_string())?;
    Ok(listener)
}

/// Serves until `stop`.
pub async fn serve<L>(listener: L, router: Router, stop: CancellationToken) -> std::io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
    Peer: for<'a> Connected<IncomingStream<'a, L>>,
{
    let service = router.into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await
}
