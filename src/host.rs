//! `enoki agent`: this host's agent, as its configuration file says.

use crate::config::AgentConfig;
use anyhow::{Context, bail};
use enoki_agent::agent;
use enoki_api::host::Capacity;
use std::path::PathBuf;
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
        socket: socket(&config.server).context("agent.toml: server")?,
        docker: socket(&config.docker).context("agent.toml: docker")?,
        reserve,
        ..agent::AgentConfig::new(&config.host)
    };
    agent::run(config, stop).await
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
