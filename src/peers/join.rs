//! How a machine becomes a server of a cloud: with a token it gets what all servers share, and writes it to its places.

use super::JOIN_PATH;
use crate::auth::ca::Pki;
use crate::config::{ServerConfig, paths, write_atomic};
use anyhow::{Context, bail};
use enoki_api::client::{Client, Target};
use enoki_api::endpoint::{Authority, Endpoint, PORT};
use enoki_api::tls::{Fingerprint, Trust};
use enoki_api::token::TokenText;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

/// One request. A new member of etcd takes its time.
const CALL: Duration = Duration::from_secs(30);

/// A machine asks to become a server. Its token is the request's bearer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Join {
    pub name: String,
    /// Where its member of etcd will listen for the others. None: it wants none.
    pub etcd: Option<IpAddr>,
}

/// What every server of a cloud has; all that is secret is among it.
#[derive(Serialize, Deserialize)]
pub struct Joined {
    /// File name to PEM: both authorities with their keys.
    pub authorities: BTreeMap<String, String>,
    /// The text of the key file that seals what is secret in the store.
    pub seal_key: String,
    /// Where etcd is reached.
    pub etcd: Vec<String>,
    /// What the new member of etcd is told at its first start. None: there is none for this machine.
    pub etcd_cluster: Option<String>,
    pub pool: Ipv4Net,
    pub cpu_overcommit: f64,
}

/// The machine's member of etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    /// Listens at this address; at the one that the machine uses towards the server, where none is given.
    At(Option<IpAddr>),
    None,
}

/// Joins the cloud whose server is at `server`, under the name in `config`, and writes keys and `server.toml`.
///
/// # Errors
/// Before anything is written: a cloud of its own on this machine, a token that is none, a server that refuses or is not of
/// the cloud that made the token.
pub async fn join(
    server: Authority,
    token: &str,
    member: Member,
    config: ServerConfig,
) -> anyhow::Result<ServerConfig> {
    for own in [paths::ETCD_DATA, paths::SEAL_KEY] {
        if Path::new(own).exists() {
            bail!(
                "this machine has (or had) a cloud of its own: {own} is there; `enoki down --purge` removes it"
            );
        }
    }
    let text = TokenText::parse(token).context("this is not a token; `enoki server join-token` makes one")?;
    let pin: Fingerprint =
        text.ca.parse().map_err(|_| anyhow::anyhow!("this token has no fingerprint in it"))?;
    let etcd = match member {
        Member::None => None,
        Member::At(Some(address)) => Some(address),
        Member::At(None) => Some(address_towards(&server).await?),
    };
    let endpoint = Endpoint::https(server, Trust::Pin(pin), None)?;
    let client = Client::new(endpoint, Some(token))?;
    let body = serde_json::to_value(Join { name: config.name.clone(), etcd })?;
    let answer = client.call(http::Method::POST, &Target::path(JOIN_PATH), Some(&body), CALL).await?;
    let joined: Joined = answer.decode()?;
    let config = ServerConfig {
        one_machine: false,
        pool: joined.pool,
        cpu_overcommit: joined.cpu_overcommit,
        ..match (etcd, joined.etcd_cluster) {
            (Some(listen), Some(cluster)) => config.with_etcd_member(listen, cluster, joined.etcd),
            _ => config.with_etcd_at(joined.etcd),
        }
    };
    Pki::new(paths::PKI).adopt(&joined.authorities)?;
    write_atomic(&config.key_file, joined.seal_key.as_bytes(), 0o600)
        .with_context(|| config.key_file.display().to_string())?;
    // Last: with it the machine is a server.
    config.save()?;
    Ok(config)
}

/// The address that this machine sends from when it talks to `server`. Nothing is sent.
async fn address_towards(server: &Authority) -> anyhow::Result<IpAddr> {
    let what = || format!("an address of this machine towards {server}; name one with --etcd-listen");
    let far = tokio::net::lookup_host((server.host(), PORT)).await.with_context(what)?.next();
    let far = far.with_context(what)?;
    let any: IpAddr = if far.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = tokio::net::UdpSocket::bind((any, 0)).await.with_context(what)?;
    socket.connect(far).await.with_context(what)?;
    Ok(socket.local_addr().with_context(what)?.ip())
}
