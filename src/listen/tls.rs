//! TLS 1.3 on the cloud's port. A client may show a certificate of our CA; what it shows is verified, what it is allowed is
//! for others to say. Handshakes run side by side, bounded in number and time, so that a client that stalls holds up
//! nobody.

use super::Peer;
use crate::auth::ca::Pki;
use anyhow::Context;
use axum::serve::Listener;
use enoki_api::tls::{self, Credentials};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// A client shakes hands within this.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once; more wait to be accepted.
const HANDSHAKES: usize = 256;
/// The certificate is looked at this often; it is renewed a month before its end.
const LOOK: Duration = Duration::from_secs(3600);

/// This server's certificate, kept valid.
#[derive(Debug)]
pub struct Serving {
    pki: Pki,
    server: String,
    names: Vec<String>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Serving {
    /// Makes or takes the certificate of the server with this name, good for `names` (DNS names and addresses).
    pub fn new(pki: Pki, server: &str, names: Vec<String>) -> anyhow::Result<Arc<Self>> {
        let current = RwLock::new(load(&pki, server, &names)?);
        Ok(Arc::new(Serving { pki, server: server.to_owned(), names, current }))
    }

    /// Renews the certificate in time, until `stop`. New connections get the new one.
    pub async fn tend(&self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            match load(&self.pki, &self.server, &self.names) {
                Ok(new) => *self.current.write().unwrap_or_else(|poison| poison.into_inner()) = new,
                Err(error) => tracing::error!(error = format!("{error:#}"), "the server's certificate"),
            }
        }
    }
}

fn load(pki: &Pki, server: &str, names: &[String]) -> anyhow::Result<Arc<CertifiedKey>> {
    pki.ensure_server(SystemTime::now(), server, names)?;
    let read = |path: std::path::PathBuf| std::fs::read(&path).with_context(|| path.display().to_string());
    let Credentials { mut chain, key } =
        Credentials::from_pem(&read(pki.cert("server"))?, &read(pki.key("server"))?)?;
    // With its CA: a newcomer who has nothing but the CA's fingerprint finds it here.
    chain.push(CertificateDer::from_pem_slice(&read(pki.ca())?)?);
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &tls::provider())?))
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(|poison| poison.into_inner()).clone())
    }
}

/// Connections whose handshake is done.
pub struct TlsListener {
    address: SocketAddr,
    done: mpsc::Receiver<(TlsStream<TcpStream>, Peer)>,
}

impl TlsListener {
    /// Listens at `address` with this certificate.
    pub async fn bind(address: SocketAddr, serving: Arc<Serving>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
        let mut roots = RootCertStore::empty();
        let ca = std::fs::read(serving.pki.ca()).context("the CA's certificate")?;
        roots.add(CertificateDer::from_pem_slice(&ca)?)?;
        let provider = tls::provider();
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(serving);
        let address = listener.local_addr()?;
        let (hand_over, done) = mpsc::channel(64);
        tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), hand_over));
        Ok(TlsListener { address, done })
    }
}

/// Ends when nobody takes connections any more.
async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    hand_over: mpsc::Sender<(TlsStream<TcpStream>, Peer)>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = hand_over.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: those that are open must end first.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, hand_over) = (acceptor.clone(), hand_over.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = stream.set_nodelay(true);
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                    let identity = shown.and_then(tls::identity);
                    let _ = hand_over.send((stream, Peer::Remote { address, identity })).await;
                }
                Ok(Err(error)) => tracing::debug!(%address, %error, "a handshake failed"),
                Err(_) => tracing::debug!(%address, "a handshake was too slow"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.done.recv().await {
            Some(connection) => connection,
            // The accepting task ends only with this listener.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer::Remote { address: self.address, identity: None })
    }
}
