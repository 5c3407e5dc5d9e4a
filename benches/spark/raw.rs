//! The same cluster by hand: the containers that Enoki made, made again by the Docker API alone.
//!
//! Image, init, command, environment and limits are read back from a cluster of Enoki's. The network is a bridge of Docker's
//! with fixed addresses, so that workers know their master's before there is one, and all containers are begun at once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HostConfig, HostConfigCgroupnsModeEnum,
    HostConfigLogConfig, Ipam, IpamConfig, Mount, MountType, NetworkCreateRequest, NetworkingConfig,
};
use enoki_api::Kind;
use enoki_api::instance::InstanceSpec;
use futures::future::try_join_all;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use crate::docker::{
    DEADLINE, INIT_INSIDE, LABEL, connect, containers, create_and_start, gone, init, remove,
};
use crate::ours::{Api, CLUSTER};
use enoki_harness::Cloud;

/// The bridge, its range, and the master on it; the workers follow.
const NETWORK: &str = "enoki-bench";
const RANGE: &str = "198.18.250.0/24";
const MASTER: [u8; 4] = [198, 18, 250, 10];
const PAGE: u16 = 8080;
/// The master's state, on a volume as it is with Enoki.
const VOLUME: &str = "enoki-bench-master";
const STATE: &str = "/var/lib/spark";
/// Between two looks at the master's page: the error of the time, in favour of Enoki, is half of it.
const PAUSE: Duration = Duration::from_millis(50);

/// What a container is made from.
struct Model {
    image: String,
    command: Vec<String>,
    environment: Vec<String>,
    memory: i64,
    milli_cpus: i64,
    pids: i64,
}

impl Model {
    /// Of the container of an instance that runs.
    async fn of(docker: &Docker, api: &Api, name: &str) -> Result<Self> {
        let instance = api.object(Kind::Instance, name).await?;
        let id =
            instance["status"]["container_id"].as_str().with_context(|| format!("{name} does not run"))?;
        let spec: InstanceSpec = serde_json::from_value(instance["spec"].clone()).context("its spec")?;
        let config =
            docker.inspect_container(id, None).await?.config.context("a container without settings")?;
        let words = config.entrypoint.unwrap_or_default();
        let command = words.iter().skip_while(|word| *word != "--").cloned().collect();
        let limit = |value: Option<u64>, what: &str| -> Result<i64> {
            Ok(value.with_context(|| format!("{name} has no limit of {what}"))? as i64)
        };
        Ok(Self {
            image: spec.image.clone(),
            command,
            environment: config.env.unwrap_or_default(),
            memory: limit(spec.memory.map(|bytes| bytes.0), "memory")?,
            milli_cpus: limit(spec.cpus.map(|cpus| cpus.0), "CPU")?,
            pids: limit(spec.pids, "pids")?,
        })
    }
}

/// Raw Docker as the other contender.
pub struct Raw {
    docker: Docker,
    /// Whose threads are in the cloud's network, where the master's page is.
    inside: Handle,
    swap: bool,
    master: Model,
    worker: Model,
    workers: u32,
}

impl Raw {
    /// While there is a cluster of Enoki's.
    pub async fn of(cloud: &Cloud, api: &Api, inside: Handle, workers: u32) -> Result<Self> {
        let docker = connect(cloud).await?;
        let swap = docker.info().await?.swap_limit.unwrap_or(false);
        let master = Model::of(&docker, api, &format!("{CLUSTER}-master")).await?;
        let mut worker = Model::of(&docker, api, &format!("{CLUSTER}-worker-1")).await?;
        let own = format!("SPARK_MASTER=spark://{}:7077", address(0));
        let mut places = worker.environment.iter_mut().filter(|line| line.starts_with("SPARK_MASTER="));
        *places.next().context("a worker without its master's address")? = own;
        Ok(Self { docker, inside, swap, master, worker, workers })
    }

    /// A cluster, from the first call until the master's page shows all workers.
    pub async fn make(&self) -> Result<Duration> {
        let begun = Instant::now();
        let range = IpamConfig { subnet: Some(RANGE.to_owned()), ..IpamConfig::default() };
        let network = NetworkCreateRequest {
            name: NETWORK.to_owned(),
            driver: Some("bridge".to_owned()),
            ipam: Some(Ipam { config: Some(vec![range]), ..Ipam::default() }),
            ..NetworkCreateRequest::default()
        };
        self.docker.create_network(network).await.context("make a bridge")?;
        let starts = (0..=self.workers).map(|number| async move {
            let name = format!("{LABEL}-{number}");
            create_and_start(&self.docker, &name, self.body(number), |_| Ok(())).await
        });
        try_join_all(starts).await?;
        let workers = self.workers as usize;
        self.inside.spawn(until_alive(workers)).await.context("the look at the master's page")??;
        Ok(begun.elapsed())
    }

    pub async fn remove(&self) -> Result<()> {
        for id in containers(&self.docker, Some(LABEL)).await? {
            remove(&self.docker, &id).await?;
        }
        self.docker.remove_network(NETWORK).await.context("remove the bridge")?;
        let none = None::<bollard::query_parameters::RemoveVolumeOptions>;
        self.docker.remove_volume(VOLUME, none).await.context("remove the master's volume")?;
        gone("containers", || containers(&self.docker, None)).await
    }

    /// 0 is the master.
    fn body(&self, number: u32) -> ContainerCreateBody {
        let model = if number == 0 { &self.master } else { &self.worker };
        let state = Mount {
            target: Some(STATE.to_owned()),
            source: Some(VOLUME.to_owned()),
            typ: Some(MountType::VOLUME),
            ..Mount::default()
        };
        let host = HostConfig {
            network_mode: Some(NETWORK.to_owned()),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            mounts: Some(if number == 0 { vec![init(), state] } else { vec![init()] }),
            memory: Some(model.memory),
            memory_swap: self.swap.then_some(model.memory),
            cpu_period: Some(100_000),
            cpu_quota: Some(model.milli_cpus * 100),
            pids_limit: Some(model.pids),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            ..HostConfig::default()
        };
        let ipam =
            EndpointIpamConfig { ipv4_address: Some(address(number)), ..EndpointIpamConfig::default() };
        let endpoint = EndpointSettings { ipam_config: Some(ipam), ..EndpointSettings::default() };
        ContainerCreateBody {
            image: Some(model.image.clone()),
            entrypoint: Some(vec![INIT_INSIDE.to_owned()]),
            cmd: Some(model.command.clone()),
            env: Some(model.environment.clone()),
            labels: Some(HashMap::from([(LABEL.to_owned(), String::new())])),
            host_config: Some(host),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some(HashMap::from([(NETWORK.to_owned(), endpoint)])),
            }),
            ..ContainerCreateBody::default()
        }
    }
}

fn address(number: u32) -> String {
    std::net::Ipv4Addr::from(u32::from_be_bytes(MASTER) + number).to_string()
}

/// Looks at the master's page until it has so many workers that are alive.
async fn until_alive(workers: usize) -> Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        let seen = page().await;
        let alive = seen.as_ref().map_or(0, |page| {
            let lines = page["workers"].as_array().map_or(&[][..], Vec::as_slice);
            lines.iter().filter(|line| line["state"] == "ALIVE").count()
        });
        if alive == workers {
            return Ok(());
        }
        if Instant::now() >= until {
            bail!("{alive} of {workers} workers by hand are alive after {} s: {seen:?}", DEADLINE.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// In HTTP 1.0, whose answer ends with the connection.
async fn page() -> Result<Value> {
    let mut stream = TcpStream::connect((address(0), PAGE)).await?;
    stream.write_all(b"GET /json/ HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    Ok(serde_json::from_str(body)?)
}
