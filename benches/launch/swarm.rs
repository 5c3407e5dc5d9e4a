//! Docker Swarm: one service of as many replicas, on a dockerd of its own, since swarm and live-restore exclude each other.
//!
//! A replica counts as running at Docker's own start event, which comes a little before Swarm itself says so.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bollard::Docker;
use bollard::models::{
    Limit, NetworkAttachmentConfig, ServiceSpec, ServiceSpecMode, ServiceSpecModeReplicated,
    SwarmInitRequest, TaskSpec, TaskSpecContainerSpec, TaskSpecLogDriver, TaskSpecResources,
};
use bollard::query_parameters::EventsOptionsBuilder;
use enoki_harness::Cloud;
use futures::{Stream, StreamExt};

use crate::contender::{Contender, IMAGE, MEMORY, MILLI_CPUS, PIDS};
use crate::docker::{self, DEADLINE, INIT_INSIDE, gone, init};
use crate::machine::Meter;

const SERVICE: &str = "bench";

pub struct Swarm {
    docker: Docker,
    meter: Meter,
    /// By id, so that nobody looks for a registry.
    image: String,
}

impl Swarm {
    /// Starts Docker in an empty cloud and makes it a swarm of one.
    pub async fn new(cloud: &Cloud) -> Result<Self> {
        cloud.start_docker();
        cloud.docker_import_tiny();
        let meter = Meter::start(cloud, &["containerd", "dockerd"])?;
        let docker = docker::connect(cloud).await?;
        let request = SwarmInitRequest {
            listen_addr: Some("127.0.0.1:2377".to_owned()),
            advertise_addr: Some("127.0.0.1".to_owned()),
            default_addr_pool: Some(vec!["198.18.64.0/20".to_owned()]),
            subnet_size: Some(24),
            ..SwarmInitRequest::default()
        };
        docker.init_swarm(request).await.context("make a swarm")?;
        let image = image_id(&docker, cloud).await?;
        Ok(Self { docker, meter, image })
    }

    fn service(&self, replicas: usize) -> ServiceSpec {
        let container = TaskSpecContainerSpec {
            image: Some(self.image.clone()),
            command: Some(vec![INIT_INSIDE.to_owned()]),
            mounts: Some(vec![init()]),
            ..TaskSpecContainerSpec::default()
        };
        let limits = Limit {
            nano_cpus: Some(MILLI_CPUS as i64 * 1_000_000),
            memory_bytes: Some(MEMORY as i64),
            pids: Some(PIDS as i64),
        };
        let host = NetworkAttachmentConfig { target: Some("host".to_owned()), ..Default::default() };
        let task = TaskSpec {
            container_spec: Some(container),
            resources: Some(TaskSpecResources { limits: Some(limits), ..Default::default() }),
            networks: Some(vec![host]),
            log_driver: Some(TaskSpecLogDriver { name: Some("none".to_owned()), options: None }),
            ..TaskSpec::default()
        };
        let replicated = ServiceSpecModeReplicated { replicas: Some(replicas as i64) };
        ServiceSpec {
            name: Some(SERVICE.to_owned()),
            task_template: Some(task),
            mode: Some(ServiceSpecMode { replicated: Some(replicated), ..Default::default() }),
            ..ServiceSpec::default()
        }
    }

    /// A stream with an item for each container that starts from now on.
    fn starts(&self) -> Result<Pin<Box<dyn Stream<Item = Result<()>> + Send>>> {
        // The request goes out when the stream is first asked; what happens before is told again.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let since = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let filters = HashMap::from([("type", vec!["container"]), ("event", vec!["start"])]);
        let options = EventsOptionsBuilder::default().since(&since).filters(&filters).build();
        Ok(self.docker.events(Some(options)).map(|event| event.map(drop).map_err(Into::into)).boxed())
    }
}

#[async_trait]
impl Contender for Swarm {
    fn name(&self) -> String {
        "Docker Swarm service, host network".to_owned()
    }

    fn in_flight(&self) -> &'static [usize] {
        &[]
    }

    async fn launch(&mut self, count: usize, _in_flight: usize) -> Result<Duration> {
        let mut starts = self.starts()?;
        let begun = Instant::now();
        let all = async {
            self.docker.create_service(self.service(count), None).await.context("create a service")?;
            for number in 0..count {
                match starts.next().await {
                    Some(start) => start.context("read Docker's events")?,
                    None => bail!("Docker's events end after {number} starts of {count}"),
                }
            }
            Ok(begun.elapsed())
        };
        tokio::time::timeout(DEADLINE, all).await.with_context(|| format!("{count} replicas do not start"))?
    }

    async fn clear(&mut self) -> Result<()> {
        self.docker.delete_service(SERVICE).await.context("remove the service")?;
        gone("containers", || docker::containers(&self.docker, None)).await
    }

    fn meter(&self) -> &Meter {
        &self.meter
    }
}

/// The image's id: what a swarm takes without asking a registry.
async fn image_id(docker: &Docker, cloud: &Cloud) -> Result<String> {
    let image =
        docker.inspect_image(IMAGE).await.with_context(|| format!("look at {IMAGE}{}", cloud.logs()))?;
    image.id.with_context(|| format!("{IMAGE} has no id"))
}
