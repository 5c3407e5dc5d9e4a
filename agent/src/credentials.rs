//! What a host that reaches its servers over TLS shows and trusts: `host.pem` (certificate and key, replaced as one) and
//! `ca.crt` in one root-only folder. Its key is made here and never leaves; a certificate comes with a token at first ([`join`]), and then from the
//! cloud itself, each time a third of the old one's life is left.

use crate::ledger::file;
use crate::session::socket::Dialer;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use enoki_api::client::{Client, Target};
use enoki_api::endpoint::{Authority, Endpoint};
use enoki_api::object::{Labels, Uid};
use enoki_api::protocol::{CERTIFICATE_PATH, JOIN_PATH, Join, Joined, Renew};
use enoki_api::tls::{self, Credentials, Fingerprint, Trust};
use enoki_api::token::TokenText;
use rcgen::KeyPair;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Where it stands on every host.
pub const FOLDER: &str = "/etc/enoki/host";
/// One request.
const CALL: Duration = Duration::from_secs(15);
/// The certificate is looked at this often.
const LOOK: Duration = Duration::from_secs(3600);
/// After a renewal that failed.
const AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is not what it should be: {why}; join again with `enoki agent join`", path.display())]
    Unusable { path: PathBuf, why: String },
    #[error("`{0}` is not a token; `enoki host join-token` makes one")]
    Token(&'static str),
    #[error("{0}")]
    Server(String),
    #[error("a key could not be made: {0}")]
    Key(#[from] rcgen::Error),
}

/// The folder.
#[derive(Clone, Debug)]
pub struct HostPki {
    folder: PathBuf,
}

impl Default for HostPki {
    fn default() -> Self {
        HostPki { folder: FOLDER.into() }
    }
}

impl HostPki {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        HostPki { folder: folder.into() }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.folder.join(name);
        std::fs::read(&path).map_err(|source| Error::File { path, source })
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.folder.join(name);
        file::folder(&self.folder)
            .and_then(|()| file::write_bytes(&path, text.as_bytes()))
            .map_err(|source| Error::File { path, source })
    }

    /// Whether this host has no certificate at all.
    pub fn is_missing(&self) -> bool {
        !self.folder.join("host.pem").exists()
    }

    fn unusable(&self, name: &str, why: impl ToString) -> Error {
        Error::Unusable { path: self.folder.join(name), why: why.to_string() }
    }

    /// What to trust and what to show.
    pub fn load(&self) -> Result<(Trust, Credentials), Error> {
        let trust = Trust::ca_pem(&self.read("ca.crt")?).map_err(|error| self.unusable("ca.crt", error))?;
        let own = self.read("host.pem")?;
        let credentials =
            Credentials::from_pem(&own, &own).map_err(|error| self.unusable("host.pem", error))?;
        Ok((trust, credentials))
    }

    /// Keeps what a server gave for `key`.
    fn keep(&self, joined: &Joined, key: &KeyPair) -> Result<(), Error> {
        self.write("ca.crt", &joined.ca)?;
        self.write("host.pem", &format!("{}{}", joined.certificate, key.serialize_pem()))
    }

    /// When to ask for the next certificate: a third of its life before its end.
    fn due(&self) -> Result<SystemTime, Error> {
        let (_, credentials) = self.load()?;
        let own = credentials.chain.first().and_then(|own| tls::validity(own));
        let (begins, ends) = own.ok_or_else(|| self.unusable("host.pem", "no dates in it"))?;
        Ok(UNIX_EPOCH + Duration::from_secs(ends - ends.saturating_sub(begins) / 3))
    }
}

fn public_key(key: &KeyPair) -> String {
    STANDARD.encode(key.public_key_raw())
}

/// Makes this machine the host `name`, with a token for hosts. What it gets stands in `pki` afterwards.
pub async fn join(
    pki: &HostPki,
    server: Authority,
    token: &str,
    name: &str,
    uid: &Uid,
    labels: &Labels,
) -> Result<(), Error> {
    let text = TokenText::parse(token).ok_or(Error::Token("what was given"))?;
    let pin: Fingerprint = text.ca.parse().map_err(|_| Error::Token("what was given"))?;
    let told = |error: &dyn std::fmt::Display| Error::Server(error.to_string());
    let endpoint = Endpoint::https(server, Trust::Pin(pin), None).map_err(|error| told(&error))?;
    let client = Client::new(endpoint, Some(token)).map_err(|error| told(&error))?;
    let key = KeyPair::generate()?;
    let wanted = Join {
        host: name.to_owned(),
        uid: uid.clone(),
        labels: labels.clone(),
        public_key: public_key(&key),
    };
    let joined = ask(&client, JOIN_PATH, &wanted).await?;
    pki.keep(&joined, &key)
}

/// Gets a certificate from the server on this very machine, which knows the agent by its socket, when others have to be
/// dialled and there is none yet.
pub async fn join_here(dialer: &Dialer, name: &str, uid: &Uid, labels: &Labels) -> Result<(), Error> {
    let Some((endpoint, pki)) = dialer.without_credentials() else { return Ok(()) };
    let client = Client::new(endpoint, None).map_err(|error| Error::Server(error.to_string()))?;
    let key = KeyPair::generate()?;
    let wanted = Join {
        host: name.to_owned(),
        uid: uid.clone(),
        labels: labels.clone(),
        public_key: public_key(&key),
    };
    let joined = ask(&client, JOIN_PATH, &wanted).await?;
    pki.keep(&joined, &key)?;
    tracing::info!("this host has a certificate for the cloud's other servers");
    Ok(())
}

async fn ask(client: &Client, path: &str, body: &impl serde::Serialize) -> Result<Joined, Error> {
    let told = |error: &dyn std::fmt::Display| Error::Server(error.to_string());
    let body = serde_json::to_value(body).map_err(|error| told(&error))?;
    let answer = client.call(http::Method::POST, &Target::path(path), Some(&body), CALL).await;
    answer.and_then(enoki_api::client::Answer::decode).map_err(|error| told(&error))
}

/// Renews the certificate in time, until `stop`. A host on its servers' own machine has none: nothing is done then.
pub async fn tend(pki: &HostPki, dialer: &Dialer, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        let wait = match pki.due() {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => LOOK,
            Err(error) => {
                tracing::error!(%error, "this host's certificate");
                LOOK
            }
            Ok(due) if due > SystemTime::now() => LOOK,
            Ok(_) => match renew(pki, dialer).await {
                Ok(()) => {
                    tracing::info!("this host's certificate was renewed");
                    LOOK
                }
                Err(error) => {
                    tracing::warn!(%error, "this host's certificate could not be renewed; trying again");
                    AGAIN
                }
            },
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn renew(pki: &HostPki, dialer: &Dialer) -> Result<(), Error> {
    let client = dialer.client().map_err(|error| Error::Server(error.to_string()))?;
    let key = KeyPair::generate()?;
    let joined = ask(&client, CERTIFICATE_PATH, &Renew { public_key: public_key(&key) }).await?;
    pki.keep(&joined, &key)
}
