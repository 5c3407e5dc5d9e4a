//! B2: what Enoki adds to a single start.
//!
//! Ours: from the POST until the watch shows it running. Against it: a copy of the very container that the agent makes, read
//! back from a running instance, made and started by the Docker API with the same wrapper, its network namespace and disk
//! made beforehand; writing the wrapper's record between the two calls is not counted either. The two alternate on the same
//! dockerd, and each is gone before the next begins.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bollard::Docker;
use bollard::models::ContainerCreateBody;
use enoki_api::quantity::Bytes;
use enoki_harness::Cloud;
use serde_json::{Value, json};

use crate::docker::{LABEL, containers, create_and_start, gone, remove};
use crate::ours::{Api, spec};
use crate::plan::Plan;

/// Where what is prepared lies, as the cloud sees it: on the same disk as the agent's own.
const FOLDER: &str = "/run/enoki-bench";
const RECORDS: &str = "/var/lib/enoki/containers";
/// Instances that fill the host by what they are granted.
const FILLERS: u64 = 20;
/// The agent sweeps records that belong to no container of its own; one that was caught between two calls is made again.
const ATTEMPTS: usize = 3;

/// At one fill of the host.
pub struct Latencies {
    /// Percent of its memory that are granted.
    pub full: u64,
    /// Milliseconds.
    pub ours: Vec<f64>,
    pub raw: Vec<f64>,
}

pub async fn run(
    cloud: &Cloud,
    docker: &Docker,
    plan: &Plan,
    until: Option<Instant>,
    cut: &mut Vec<String>,
) -> Result<Vec<Latencies>> {
    let api = Api::new(cloud);
    let model = Model::of_an_instance(cloud, docker, &api).await?;
    let memory = api.host_memory().await?;
    let levels = [0, 50, 90];
    let mut all = Vec::new();
    for (done, full) in levels.into_iter().enumerate() {
        eprintln!("single starts on a host that is {full} % full");
        fill(&api, memory / 100 * full / FILLERS).await?;
        // What time is left is shared evenly among the levels that are left.
        let until = until.map(|until| {
            Instant::now() + until.saturating_duration_since(Instant::now()) / (levels.len() - done) as u32
        });
        let mut found = Latencies { full, ours: Vec::new(), raw: Vec::new() };
        for number in 0..plan.samples {
            if number >= 10 && until.is_some_and(|until| Instant::now() >= until) {
                cut.push(format!(
                    "B2 at {full} %: {number} samples instead of {}: out of time",
                    plan.samples
                ));
                break;
            }
            found.ours.push(ours(&api, &format!("single-{full}-{number}")).await?);
            found.raw.push(model.raw(cloud, docker, &format!("{full}-{number}")).await?);
        }
        all.push(found);
        api.delete_all(api.instances().await?).await?;
        gone("containers", || containers(docker, None)).await?;
    }
    Ok(all)
}

/// Grants that much memory to each of the fillers; nothing at 0.
async fn fill(api: &Api, memory: u64) -> Result<()> {
    if memory == 0 {
        return Ok(());
    }
    for number in 0..FILLERS {
        let name = format!("filler-{number}");
        let mut spec = spec(None);
        spec.memory = Some(Bytes(memory));
        let mut follower = api.follow().await?;
        api.create(&name, &spec).await?;
        follower.wait_for(&name).await?;
    }
    Ok(())
}

async fn ours(api: &Api, name: &str) -> Result<f64> {
    let spec = spec(None);
    let mut follower = api.follow().await?;
    let begun = Instant::now();
    // Both at once: the answer to the POST is not waited for when the watch is faster.
    let ((), taken) = tokio::try_join!(api.create(name, &spec), async {
        follower.wait_for(name).await.map(|()| begun.elapsed())
    })?;
    api.delete(name).await?;
    Ok(taken.as_secs_f64() * 1e3)
}

/// The container of an instance, to be made again by hand.
struct Model {
    body: ContainerCreateBody,
    record: Value,
    /// Its disk's folder in the record.
    disk: String,
    /// Its folder of small files (`/etc/hosts` and the like), and a copy of it that stays.
    files: String,
}

impl Model {
    async fn of_an_instance(cloud: &Cloud, docker: &Docker, api: &Api) -> Result<Self> {
        let name = "model";
        let mut follower = api.follow().await?;
        api.create(name, &spec(None)).await?;
        follower.wait_for(name).await?;
        let shown = api.instance(name).await?;
        let id =
            shown["status"]["container_id"].as_str().context("a running instance has no container id")?;
        let record = fs::read_to_string(cloud.path(&format!("{RECORDS}/{id}.json"))).context("its record")?;
        let record: Value = serde_json::from_str(&record)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a record without its paths");
        let disk = text(&record["rootfs"]["disk"])?;
        let files = format!("/var/lib/enoki/instances/{}", text(&record["uid"])?);
        cloud.sh(&format!("mkdir -p {FOLDER} && cp -a {files} {FOLDER}/files")).ok();

        let inspected = docker.inspect_container(id, None).await?;
        let config = inspected.config.context("a container without its configuration")?;
        let mut body: ContainerCreateBody = serde_json::from_value(serde_json::to_value(&config)?)?;
        body.host_config = inspected.host_config;
        // The agent must not take it for an instance; its hostname is as good as any.
        body.labels = Some([(LABEL.to_owned(), String::new())].into());
        api.delete(name).await?;
        Ok(Self { body, record, disk, files })
    }

    /// One start by hand, in milliseconds, and its removal.
    async fn raw(&self, cloud: &Cloud, docker: &Docker, name: &str) -> Result<f64> {
        for attempt in 1..=ATTEMPTS {
            let name = format!("{name}-{attempt}");
            let own = format!("{FOLDER}/{name}");
            let netns = format!("bench-{name}");
            cloud
                .sh(&format!(
                    "mkdir -p {own}/upper {own}/work {own}/root {own}/machine/log
                     ip netns add {netns}
                     ip -n {netns} link set lo up"
                ))
                .ok();
            let (body, record) = (self.body_on(&own), self.record_on(&own, &netns));
            let mut place = PathBuf::new();
            let made = create_and_start(docker, &format!("{LABEL}-{name}"), body, |id| {
                place = cloud.path(&format!("{RECORDS}/{id}.json"));
                write_record(&place, &record)
            })
            .await;
            for id in containers(docker, Some(LABEL)).await? {
                remove(docker, &id).await?;
            }
            let _ = fs::remove_file(&place);
            cloud.sh(&format!("ip netns del {netns}; rm -rf {own}")).ok();
            match made {
                Ok((_, taken)) => return Ok(taken.as_secs_f64() * 1e3),
                Err(error) if attempt < ATTEMPTS && format!("{error:#}").contains("there is no record") => {}
                Err(error) => return Err(error),
            }
        }
        bail!("no start by hand in {ATTEMPTS} attempts")
    }

    /// A path of the instance's, as the copy has it.
    fn moved(&self, path: &str, own: &str) -> String {
        let to = |from: &str, to: String| path.strip_prefix(from).map(|rest| format!("{to}{rest}"));
        to(&self.disk, own.to_owned())
            .or_else(|| to(&self.files, format!("{FOLDER}/files")))
            .unwrap_or_else(|| path.to_owned())
    }

    fn body_on(&self, own: &str) -> ContainerCreateBody {
        let mut body = self.body.clone();
        let mounts = body.host_config.as_mut().and_then(|host| host.mounts.as_mut());
        for mount in mounts.into_iter().flatten() {
            mount.source = mount.source.as_ref().map(|path| self.moved(path, own));
        }
        body
    }

    fn record_on(&self, own: &str, netns: &str) -> Value {
        let mut record = self.record.clone();
        record["instance"] = json!(format!("bench/{netns}"));
        record["netns"] = json!(format!("/run/netns/{netns}"));
        for path in record["rootfs"].as_object_mut().into_iter().flat_map(|rootfs| rootfs.values_mut()) {
            if let Some(text) = path.as_str() {
                *path = json!(self.moved(text, own));
            }
        }
        record
    }
}

/// As the wrapper demands it: root's alone.
fn write_record(path: &Path, record: &Value) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("write {}", path.display()))?;
    Ok(file.write_all(record.to_string().as_bytes())?)
}
