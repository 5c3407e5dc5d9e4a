//! Simulated hosts: the real agent with its ledger and its session over real TLS, above a Docker and a machine in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::within::runtime_in;
use anyhow::Context;
use enoki_agent::agent::{self, AgentConfig, Parts};
use enoki_agent::credentials::{self, HostPki};
use enoki_agent::instance::simulated::Simulated as Machine;
use enoki_agent::network::Underlay;
use enoki_agent::runtime::ImageInfo;
use enoki_agent::runtime::simulated::Simulated as Docker;
use enoki_agent::session::socket::Dialer;
use enoki_api::endpoint::Authority;
use enoki_api::host::Capacity;
use enoki_api::quantity::{Bytes, MilliCpu};
use enoki_harness::Cloud;
use futures::StreamExt;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// The image that simulated hosts have.
pub const IMAGE: &str = "hollow:1";
/// What each has: of memory, room for eleven instances of 100 MiB.
pub const CAPACITY: Capacity =
    Capacity { cpus: MilliCpu(2000), memory: Bytes(1100 << 20), pids: 10_000, instances: 0 };
/// Hosts that join at once.
const AT_ONCE: usize = 16;

/// Simulated hosts; dropped, their agents end.
pub struct Hollow {
    tokio: Option<Runtime>,
    stop: CancellationToken,
    _folder: TempDir,
}

impl Hollow {
    /// Has so many hosts, `s1` on, join the cloud at `servers` with a token and run their agents, all from within the network
    /// of `machine`.
    pub fn join(machine: &Cloud, servers: &[String], token: &str, hosts: usize) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tokio = runtime_in(machine)?;
        // Ledgers are synced to disk with every order; memory makes that free.
        let folder = tempfile::Builder::new().prefix("enoki-hollow-").tempdir_in("/dev/shm")?;
        let stop = CancellationToken::new();
        let (path, servers, token) = (folder.path().to_owned(), servers.to_vec(), token.to_owned());
        let ended = stop.clone();
        tokio.block_on(tokio.spawn(async move {
            let mut joining = futures::stream::iter(1..=hosts)
                .map(|number| host(&path, &servers, &token, number, &ended))
                .buffer_unordered(AT_ONCE);
            while let Some(joined) = joining.next().await {
                joined?;
            }
            anyhow::Ok(())
        }))??;
        Ok(Hollow { tokio: Some(tokio), stop, _folder: folder })
    }
}

impl Drop for Hollow {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(tokio) = self.tokio.take() {
            tokio.shutdown_timeout(Duration::from_secs(10));
        }
    }
}

async fn host(
    folder: &Path,
    servers: &[String],
    token: &str,
    number: usize,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let name = format!("s{number}");
    let folder = folder.join(&name);
    std::fs::create_dir(&folder)?;
    let (pki, identity) = (HostPki::new(folder.join("pki")), folder.join("uid"));
    let uid = agent::identity(&identity)?;
    let server = Authority::parse(&servers[0]).map_err(anyhow::Error::msg)?;
    credentials::join(&pki, server, token, &name, &uid, &Default::default()).await.context(name.clone())?;
    let docker = Docker::default();
    docker.add_image(IMAGE, ImageInfo { id: "sha256:1".to_owned(), ..ImageInfo::default() });
    let parts = Parts {
        runtime: Arc::new(docker),
        machine: Arc::new(Machine::new("boot", folder.join("state"))),
        cgroup: "v2".to_owned(),
        capacity: CAPACITY,
        dialer: Dialer::remembering(servers.to_vec(), pki.clone(), &folder.join("servers")),
    };
    let config = AgentConfig {
        servers: servers.to_vec(),
        pki,
        ledger: folder.join("ledger"),
        identity,
        session: folder.join("session"),
        underlay: Underlay::default(),
        ..AgentConfig::new(&name)
    };
    let stop = stop.clone();
    tokio::spawn(async move {
        if let Err(error) = agent::run_with(config, parts, stop).await {
            eprintln!("host {name}: {error:#}");
        }
    });
    Ok(())
}
