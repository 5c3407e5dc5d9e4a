//! Where a server is: a unix socket of this machine, or an address over TLS.

use crate::tls;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// The port of the API and of agents.
pub const PORT: u16 = 7443;

/// How long a connection may take to come about. A lost first packet is repeated after one second; whoever has not answered
/// after three is most likely gone, and there may be another server to ask.
const CONNECT: Duration = Duration::from_secs(3);

/// A place to dial. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint(Kind);

#[derive(Clone)]
enum Kind {
    Unix(PathBuf),
    Tls { authority: Authority, config: Arc<rustls::ClientConfig> },
}

/// Host and port of `https://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    host: String,
    port: u16,
}

impl Authority {
    /// Reads `https://HOST[:PORT]` or `HOST[:PORT]`; an IPv6 address stands in brackets.
    pub fn parse(text: &str) -> Result<Self, String> {
        let strange = || format!("`{text}` is not https://HOST:PORT");
        let bare = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let uri: http::uri::Authority = bare.parse().map_err(|_| strange())?;
        let port_lost = uri.port_u16().is_none() && bare.len() > uri.host().len();
        if uri.host().is_empty() || bare.contains('@') || port_lost {
            return Err(strange());
        }
        let host = uri.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        ServerName::try_from(host.clone()).map_err(|_| strange())?;
        Ok(Authority { host, port: uri.port_u16().unwrap_or(PORT) })
    }

    /// The same, with another port for one that names none.
    pub fn with_port(text: &str, port: u16) -> Result<Self, String> {
        let parsed = Self::parse(text)?;
        let names_one = text.trim_end_matches('/').ends_with(&format!(":{}", parsed.port));
        Ok(if names_one { parsed } else { Authority { port, ..parsed } })
    }

    /// The DNS name or address, without the port.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "https://[{}]:{}", self.host, self.port),
            false => write!(f, "https://{}:{}", self.host, self.port),
        }
    }
}

/// A connection, whatever it goes over.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Endpoint {
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Endpoint(Kind::Unix(path.as_ref().to_owned()))
    }

    pub fn tls(authority: Authority, config: Arc<rustls::ClientConfig>) -> Self {
        Endpoint(Kind::Tls { authority, config })
    }

    /// A TLS endpoint of a server of the trusted cloud.
    pub fn https(
        authority: Authority,
        trust: tls::Trust,
        credentials: Option<tls::Credentials>,
    ) -> Result<Self, tls::Error> {
        Ok(Self::tls(authority, Arc::new(tls::client_config(trust, credentials)?)))
    }

    /// Dials. The caller bounds the time.
    pub async fn connect(&self) -> io::Result<Box<dyn Io>> {
        match &self.0 {
            Kind::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Kind::Tls { authority, config } => {
                let connecting = TcpStream::connect((authority.host.as_str(), authority.port));
                let stream = tokio::time::timeout(CONNECT, connecting).await??;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from(authority.host.clone()).map_err(io::Error::other)?;
                Ok(Box::new(TlsConnector::from(config.clone()).connect(name, stream).await?))
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Unix(path) => write!(f, "{}", path.display()),
            Kind::Tls { authority, .. } => authority.fmt(f),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        for (text, wanted) in [
            ("https://cloud.example.internal", "https://cloud.example.internal:7443"),
            ("198.18.0.1:8443", "https://198.18.0.1:8443"),
            ("https://[fd00::1]:7443/", "https://[fd00::1]:7443"),
        ] {
            assert_eq!(Authority::parse(text).unwrap().to_string(), wanted);
        }
        for strange in ["", "http://a:1", "https://a:1/path", "https://me@a", "a b", "a:99999"] {
            assert!(Authority::parse(strange).is_err(), "{strange}");
        }
    }
}
