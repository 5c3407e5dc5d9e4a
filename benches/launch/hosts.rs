//! The hosts that a contender has: one, or the three of a lab, which are namespaces of this machine.

use anyhow::Result;
use bollard::Docker;
use enoki_harness::{Cloud, Lab, eventually};

use crate::contender::IMAGE;
use crate::docker::{DEADLINE, connect, containers};
use crate::machine::Meter;

/// What takes part in a start, beside what these start themselves: on the host that has the server, and on the others.
const FIRST: [&str; 6] = ["supervisor", "server", "agent", "etcd", "containerd", "dockerd"];
const OTHER: [&str; 4] = ["supervisor", "agent", "containerd", "dockerd"];
/// CPUs may be granted many times over: a hundred small instances at once are the work, not a shortage.
pub const SETTINGS: &str = "cpu_overcommit = 100.0\n";
/// Hosts of the lab.
const LAB: usize = 3;

/// The hosts and their Docker; the first has the server. Cheap to clone.
#[derive(Clone)]
pub struct Hosts<'c> {
    pub clouds: Vec<&'c Cloud>,
    pub dockers: Vec<Docker>,
    pub meter: Meter,
}

impl<'c> Hosts<'c> {
    /// One host that is a cloud.
    pub async fn one(cloud: &'c Cloud) -> Result<Self> {
        Self::of(vec![cloud]).await
    }

    /// Those of a lab from [`start_lab`].
    pub async fn lab(lab: &'c Lab) -> Result<Self> {
        Self::of((0..LAB).map(|number| &lab[number]).collect()).await
    }

    async fn of(clouds: Vec<&'c Cloud>) -> Result<Self> {
        let (mut dockers, mut meters) = (Vec::new(), Vec::new());
        for (number, cloud) in clouds.iter().enumerate() {
            dockers.push(connect(cloud).await?);
            meters.push(Meter::start(cloud, if number == 0 { &FIRST } else { &OTHER })?);
        }
        Ok(Self { clouds, dockers, meter: meters.into_iter().collect() })
    }

    /// The numbers in flight that may suit them: with more hosts, more.
    pub fn in_flight(&self) -> &'static [usize] {
        if self.clouds.len() == 1 { &[1, 2, 4, 8] } else { &[1, 2, 4, 8, 16] }
    }

    /// The Docker of the host whose turn it is.
    pub fn turn(&self, number: usize) -> &Docker {
        &self.dockers[number % self.dockers.len()]
    }

    /// How many containers each host has.
    pub async fn landed(&self) -> Result<Vec<usize>> {
        Ok(self.containers_of_each().await?.iter().map(Vec::len).collect())
    }

    /// Ids of all containers, of whoever made them.
    pub async fn containers(&self) -> Result<Vec<String>> {
        Ok(self.containers_of_each().await?.concat())
    }

    async fn containers_of_each(&self) -> Result<Vec<Vec<String>>> {
        futures::future::try_join_all(self.dockers.iter().map(|docker| containers(docker, None))).await
    }
}

/// A cloud of three hosts, joined over TLS as machines elsewhere would be. All of them have the image.
pub fn start_lab() -> Lab {
    let lab = Lab::start_configured(LAB, 1, SETTINGS);
    lab[0].import_tiny();
    lab[0].enoki(&["image", "pull", IMAGE]).ok();
    for number in 0..LAB {
        eventually(&format!("{IMAGE} on the lab's host {}", number + 1), DEADLINE, || {
            let found = lab[number].docker(&["image", "inspect", "--format", "{{.Id}}", IMAGE]);
            if found.code() == 0 { Ok(()) } else { Err(found) }
        });
    }
    lab
}
