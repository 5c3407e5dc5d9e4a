//! LXD with a `dir` pool: create and start by its REST API, each waited for as an operation.
//!
//! Its daemon runs in an empty cloud, with a view of the cgroups that begins at a group of the cloud's own, so that nothing
//! of it is made anywhere else on the machine. Containers are privileged and have no network, which is the fastest it can.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use enoki_harness::{Cloud, eventually};
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::contender::{Contender, MEMORY, MILLI_CPUS, PIDS};
use crate::docker::{DEADLINE, gone};
use crate::machine::Meter;
use crate::raw::REMOVALS;

/// The daemon's folder: on the real disk, since the rest of a cloud is overlays.
const FOLDER: &str = "/run/lxd";
const POOL: &str = "bench";
const IMAGE: &str = "tiny";

pub struct Lxd {
    socket: PathBuf,
    meter: Meter,
    made: usize,
}

impl Lxd {
    /// Starts the daemon in an empty cloud. An error says why it can't take part.
    pub async fn new(cloud: &Cloud, tiny: &str) -> Result<Self> {
        if cloud.sh("command -v lxd && command -v lxc").code() != 0 {
            bail!("lxd is not installed: run benches/setup.sh");
        }
        let made = cloud.run(&["sh", "-euc", include_str!("lxd-image.sh"), "sh", tiny]);
        if made.code() != 0 {
            bail!("its image cannot be made: {made}");
        }
        cloud.daemon("sh", &["-euc", include_str!("lxd.sh"), "sh", &cloud.cgroup_parent(), FOLDER]);
        let socket = cloud.path(&format!("{FOLDER}/unix.socket"));
        let ready = std::panic::catch_unwind(|| {
            eventually("lxd", Duration::from_secs(60), || {
                let out = cloud.sh(&format!("LXD_DIR={FOLDER} lxd waitready --timeout=2"));
                if out.code() == 0 { Ok(()) } else { Err(format!("{out}{}", cloud.logs())) }
            });
        });
        if ready.is_err() {
            bail!("its daemon does not come up: see above");
        }
        let imported =
            cloud.sh(&format!("LXD_DIR={FOLDER} lxc image import /run/lxd-image.tar --alias {IMAGE}"));
        if imported.code() != 0 {
            bail!("its image cannot be imported: {imported}");
        }
        let lxd = Self { socket, meter: Meter::start(cloud, &[])?, made: 0 };
        lxd.call("POST", "/1.0/storage-pools", Some(json!({"name": POOL, "driver": "dir"}))).await?;
        Ok(lxd)
    }

    /// One request, and the wait for the operation that it may start.
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let answer = self.exchange(method, path, body).await?;
        match answer["operation"].as_str().filter(|operation| !operation.is_empty()) {
            None => Ok(answer["metadata"].clone()),
            Some(operation) => {
                let wait = format!("{operation}/wait?timeout={}", DEADLINE.as_secs());
                let ended = self.exchange("GET", &wait, None).await?;
                if ended["metadata"]["status_code"] != 200 {
                    bail!("lxd: {method} {path}: {}", ended["metadata"]);
                }
                Ok(ended["metadata"].clone())
            }
        }
    }

    async fn exchange(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let exchange = async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
            // Ends by itself with the sender.
            tokio::spawn(connection);
            let body = body.map(|body| body.to_string()).unwrap_or_default();
            let request = http::Request::builder().method(method).uri(path).header("host", "lxd");
            let answer = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
            let answer: Value = serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
            if answer["type"] == "error" {
                bail!("lxd: {method} {path}: {}", answer["error"]);
            }
            Ok(answer)
        };
        tokio::time::timeout(DEADLINE, exchange).await.with_context(|| format!("lxd: {method} {path}"))?
    }

    async fn launch_one(&self, number: usize) -> Result<()> {
        let name = format!("bench-{number}");
        let instance = json!({
            "name": name,
            "type": "container",
            "source": {"type": "image", "alias": IMAGE},
            "profiles": [],
            "config": {
                "limits.cpu.allowance": format!("{}ms/100ms", MILLI_CPUS / 10),
                "limits.memory": format!("{}MiB", MEMORY >> 20),
                "limits.processes": PIDS.to_string(),
                "security.privileged": "true",
            },
            "devices": {"root": {"type": "disk", "path": "/", "pool": POOL}},
        });
        self.call("POST", "/1.0/instances", Some(instance)).await?;
        let start = json!({"action": "start", "timeout": DEADLINE.as_secs()});
        let started = self.call("PUT", &format!("/1.0/instances/{name}/state"), Some(start)).await;
        started.map(drop).with_context(|| format!("its log says: {}", self.log(&name)))
    }

    /// What the container's own log says; LXD's answer names only the program that failed.
    fn log(&self, name: &str) -> String {
        let path = self.socket.with_file_name("logs").join(name).join("lxc.log");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter(|line| line.contains(" ERROR ")).collect::<Vec<_>>().join("; ")
    }

    async fn remove(&self, path: &str) -> Result<()> {
        let stop = json!({"action": "stop", "force": true, "timeout": DEADLINE.as_secs()});
        self.call("PUT", &format!("{path}/state"), Some(stop)).await?;
        self.call("DELETE", path, None).await.map(drop)
    }

    /// Paths of all instances.
    async fn instances(&self) -> Result<Vec<String>> {
        let list = self.call("GET", "/1.0/instances", None).await?;
        let list = list.as_array().cloned().unwrap_or_default();
        Ok(list.iter().filter_map(|path| path.as_str().map(str::to_owned)).collect())
    }
}

#[async_trait]
impl Contender for Lxd {
    fn name(&self) -> String {
        "LXD, dir pool, no network".to_owned()
    }

    async fn launch(&mut self, count: usize, in_flight: usize) -> Result<Duration> {
        let first = self.made;
        self.made += count;
        let (lxd, begun) = (&*self, Instant::now());
        stream::iter(first..first + count)
            .map(|number| lxd.launch_one(number))
            .buffer_unordered(in_flight)
            .try_collect::<()>()
            .await?;
        Ok(begun.elapsed())
    }

    async fn clear(&mut self) -> Result<()> {
        let lxd = &*self;
        stream::iter(lxd.instances().await?.into_iter().map(Ok))
            .try_for_each_concurrent(REMOVALS, |path| async move { lxd.remove(&path).await })
            .await?;
        gone("instances", || lxd.instances()).await
    }

    fn meter(&self) -> &Meter {
        &self.meter
    }
}
