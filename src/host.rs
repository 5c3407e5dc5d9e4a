//! `enoki agent`: this host's agent, as its configuration file says.

use crate::cli::contexts::read_token;
use crate::config::AgentConfig;
use anyhow::{Context, bail};
use enoki_agent::agent;
use enoki_agent::credentials::{self, HostPki};
use enoki_agent::network::Underlay;
use enoki_api::endpoint::Authority;
use enoki_api::host::Capacity;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// Runs the agent until `stop`. Ending it touches no instance.
pub async fn run(config: AgentConfig, stop: CancellationToken) -> anyhow::Result<()> {
    let reserve = Capacity {
        cpus: config.reserve.cpus.unwrap_or_default(),
        memory: config.reserve.memory.unwrap_or_default(),
        ..Capacity::default()
    };
    let config = agent::AgentConfig {
        labels: config.labels.clone(),
        servers: config.servers.clone(),
        docker: socket(&config.docker).context("agent.toml: docker")?,
        reserve,
        underlay: Underlay { configured: config.address },
        ..agent::AgentConfig::new(&config.host)
    };
    agent::run(config, stop).await
}

/// Makes this machine a host of a cloud: the token is read from ENOKI_TOKEN or stdin, or asked for
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example, with a token that `enoki host join-token` printed on the cloud's side:
  ENOKI_TOKEN=$(cat token) enoki agent join https://198.18.0.1:7443 --label zone=a")]
pub struct JoinArgs {
    /// A server's address: https://HOST[:7443]; more of them may follow
    #[arg(required = true, value_name = "SERVER")]
    servers: Vec<String>,
    /// This host's name in the cloud. Default: the machine's
    #[arg(long)]
    host: Option<String>,
    /// What placement rules match: zone=a
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
}

/// Gets this host's certificate with a token and writes /etc/enoki/agent.toml, so that `enoki agent` finds its servers.
/// Again on the same machine: a new certificate for the same host.
pub async fn join(args: JoinArgs) -> anyhow::Result<()> {
    let mut config = AgentConfig::load()?;
    if let Some(host) = args.host {
        config.host = host;
    }
    for label in &args.labels {
        let (key, value) = label.split_once('=').with_context(|| format!("{label:?} is not KEY=VALUE"))?;
        config.labels.insert(key.to_owned(), value.to_owned());
    }
    let parse = |server: &String| Authority::parse(server).map_err(anyhow::Error::msg);
    let servers: Vec<Authority> = args.servers.iter().map(parse).collect::<anyhow::Result<_>>()?;
    config.servers = servers.iter().map(ToString::to_string).collect();
    let token = read_token().map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let uid = agent::identity(Path::new(agent::IDENTITY))?;
    let (pki, mut last) = (HostPki::default(), None);
    for server in servers {
        match credentials::join(&pki, server.clone(), &token, &config.host, &uid, &config.labels).await {
            Ok(()) => {
                config.save()?;
                println!("host {} joined by {server}; now run `enoki agent`, best as a service", config.host);
                return Ok(());
            }
            Err(error) => last = Some(anyhow::Error::new(error).context(server.to_string())),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no server was named")))
}

/// The path of `unix:/path` or `unix:///path`.
fn socket(address: &str) -> anyhow::Result<PathBuf> {
    let Some(path) = address.strip_prefix("unix:") else { bail!("{address:?} must be unix:/PATH") };
    let path = path.strip_prefix("//").unwrap_or(path);
    if !path.starts_with('/') {
        bail!("{address:?} must name an absolute path");
    }
    Ok(path.into())
}
