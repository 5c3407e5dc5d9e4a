//! A cloud's dockerd, by its API.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, Mount, MountType};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use enoki_harness::Cloud;

/// Longer than any start, removal or look takes.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// On every container that a benchmark makes by hand.
pub const LABEL: &str = "enoki-bench";
/// The init of every instance, which every contender runs as PID 1; without arguments it stays up alone.
const INIT: &str = "/usr/local/lib/enoki/init";
pub const INIT_INSIDE: &str = "/dev/.enoki/init";

/// The init, as each of them gets it.
pub fn init() -> Mount {
    Mount {
        target: Some(INIT_INSIDE.to_owned()),
        source: Some(INIT.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(true),
        ..Mount::default()
    }
}

/// A client of the dockerd in a cloud.
pub async fn connect(cloud: &Cloud) -> Result<Docker> {
    let socket = cloud.path("/run/docker.sock");
    let client = Docker::connect_with_unix(
        &socket.to_string_lossy(),
        DEADLINE.as_secs(),
        bollard::API_DEFAULT_VERSION,
    )?;
    client.negotiate_version().await.with_context(|| format!("ask dockerd at {}", socket.display()))
}

/// Names and versions of what starts the containers.
pub async fn versions(docker: &Docker) -> Result<String> {
    let version = docker.version().await?;
    let info = docker.info().await?;
    let parts = version.components.unwrap_or_default();
    let parts: Vec<String> = parts.iter().map(|part| format!("{} {}", part.name, part.version)).collect();
    Ok(format!(
        "{}; {} on {}",
        parts.join(", "),
        info.driver.unwrap_or_default(),
        info.docker_root_dir.unwrap_or_default()
    ))
}

/// Ids of all containers of a daemon with this label, or of all.
pub async fn containers(docker: &Docker, label: Option<&str>) -> Result<Vec<String>> {
    let filters: HashMap<&str, Vec<&str>> = label.map(|label| ("label", vec![label])).into_iter().collect();
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let found = docker.list_containers(Some(options)).await?;
    Ok(found.into_iter().filter_map(|container| container.id).collect())
}

pub async fn remove(docker: &Docker, id: &str) -> Result<()> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    docker.remove_container(id, Some(options)).await.with_context(|| format!("remove container {id}"))
}

/// Creates a container and starts it; the time that both calls took together. `between` is not counted.
pub async fn create_and_start(
    docker: &Docker,
    name: &str,
    body: ContainerCreateBody,
    between: impl FnOnce(&str) -> Result<()>,
) -> Result<(String, Duration)> {
    let options = CreateContainerOptionsBuilder::default().name(name).build();
    let begun = Instant::now();
    let made = docker.create_container(Some(options), body).await.context("create a container")?;
    let mut taken = begun.elapsed();
    between(&made.id)?;
    let begun = Instant::now();
    docker.start_container(&made.id, None).await.with_context(|| format!("start container {name}"))?;
    taken += begun.elapsed();
    Ok((made.id, taken))
}

/// Waits until a look finds nothing left of what was removed.
pub async fn gone<F, A>(what: &str, mut look: F) -> Result<()>
where
    F: FnMut() -> A,
    A: Future<Output = Result<Vec<String>>>,
{
    let until = tokio::time::Instant::now() + DEADLINE;
    loop {
        let left = look().await?;
        if left.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            anyhow::bail!(
                "{what} left behind, {} s after all were removed: {}",
                DEADLINE.as_secs(),
                left.join(", ")
            );
        }
        // Between rounds, outside of every clock.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
