//! Enoki, driven as a user's program drives it: a POST to the API's socket, and the watch that shows the cluster ready.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bollard::Docker;
use enoki_api::Kind;
use enoki_api::client::{Client, Target, WriteOptions};
use enoki_harness::Cloud;
use serde_json::{Value, json};

use crate::docker::{DEADLINE, containers, gone};
use crate::timeline::Timeline;

pub const VERSION: &str = "4.0.1";
pub const CLUSTER: &str = "lake";
/// The volume that jobs share with this program, and where they find it.
pub const VOLUME: &str = "data";
pub const DATA: &str = "/data";

/// The API of the cloud under test.
pub struct Api(pub Client);

impl Api {
    pub fn new(cloud: &Cloud) -> Self {
        Self(Client::unix(cloud.path("/run/enoki/api.sock")))
    }

    /// A cluster with so many workers, from the POST until the watch shows it ready. The jobs' volume is mounted where the
    /// pool can grow: the other clusters are to be what is made by hand.
    pub async fn make(&self, least: u32, most: u32, idle: Duration) -> Result<Duration> {
        let spec = json!({
            "version": VERSION,
            "workers": {"min": least, "max": most, "cpus": 1, "memory": "1Gi"},
            "idle": format!("{}s", idle.as_secs()),
            "mounts": if least < most { json!({DATA: {"volume": VOLUME}}) } else { json!({}) },
            // All of it is for the one job at a time that there is.
            "spark_conf": {"spark.cores.max": most.to_string()},
        });
        let cluster = json!({"kind": "cluster", "name": CLUSTER, "spec": spec});
        let mut clusters = Timeline::of(&self.0, Kind::Cluster).await?;
        let begun = Instant::now();
        let target = Target::kind(Kind::Cluster, None);
        self.0.create_value(target, &cluster, &WriteOptions::default(), DEADLINE).await?;
        clusters
            .until("a cluster that is ready", |all| {
                all.iter().find(|seen| seen.object["status"]["phase"] == "ready").map(drop)
            })
            .await?;
        Ok(begun.elapsed())
    }

    /// Sets the most workers of the cluster; the least is 1.
    pub async fn bound(&self, most: u32) -> Result<()> {
        let target = Target::object(Kind::Cluster, None, CLUSTER);
        let patch = json!({"spec": {"workers": {"max": most}}});
        self.0.patch(target, &patch, &WriteOptions::default(), DEADLINE).await?;
        Ok(())
    }

    pub async fn object(&self, kind: Kind, name: &str) -> Result<Value> {
        Ok(self.0.read(&Target::object(kind, None, name), DEADLINE).await?.body)
    }

    /// Removes the cluster, and fails when anything of it is left.
    pub async fn remove(&self, docker: &Docker) -> Result<()> {
        let target = Target::object(Kind::Cluster, None, CLUSTER);
        let answer = self.0.delete(target, &WriteOptions::wait("deleted", DEADLINE), DEADLINE).await;
        let answer = answer.with_context(|| format!("delete cluster {CLUSTER}"))?;
        if !answer.reached() {
            bail!("the cluster is not gone {} s after its DELETE: {}", DEADLINE.as_secs(), answer.body);
        }
        gone("a cluster's traces", || async {
            let mut left = containers(docker, None).await?;
            for kind in [Kind::Instance, Kind::Volume, Kind::Network] {
                left.extend(self.names(kind).await?.into_iter().filter(|name| name.starts_with(CLUSTER)));
            }
            Ok(left)
        })
        .await
    }

    async fn names(&self, kind: Kind) -> Result<Vec<String>> {
        let list = self.0.read_list(&Target::kind(kind, None), &Default::default(), DEADLINE).await?;
        let items = list.body["items"].as_array().cloned().unwrap_or_default();
        Ok(items.iter().filter_map(|item| item["name"].as_str().map(str::to_owned)).collect())
    }
}
