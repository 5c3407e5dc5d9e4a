//! A host in memory, for tests and simulation: keeps what it is told to make, and says what is there.
//!
//! It refuses what the real one refuses (a disk that is in use, a network without its namespace) and can be told to
//! fail. Its clone is the same host: an agent that is killed finds everything again.

use super::facts::Made;
use super::machine::{Error, Machine, Result, pin};
use super::observed::Disk;
use crate::limits::Running;
use crate::limits::squeeze::{Cpus, Load};
use async_trait::async_trait;
use enoki_api::file::{self, FileRef};
use enoki_api::instance::{Doomed, LimitsState, LimitsStatus, Resources};
use enoki_api::object::Uid;
use enoki_api::protocol::{Order, Overlay, Usage};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpStream;

/// All that a host has; public, so that a test can look and meddle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    pub disks: BTreeMap<Uid, Disk>,
    pub volumes: BTreeSet<Uid>,
    /// Uids with a namespace, and the links in it.
    pub networks: BTreeMap<Uid, String>,
    /// Who is where on networks that span hosts, by uid of the network.
    pub overlays: BTreeMap<Uid, Overlay>,
    pub files: BTreeSet<Uid>,
    /// Uploaded files, by uid of the instance.
    pub delivered: BTreeMap<Uid, BTreeMap<String, FileRef>>,
    /// Container ids with the disk of their record.
    pub records: BTreeMap<String, Uid>,
    /// Limits by container.
    pub limits: BTreeMap<String, Resources>,
    /// Containers in which the kernel killed for memory, whatever Docker says.
    pub starved: BTreeSet<String>,
    pub user_data: BTreeMap<Uid, i64>,
    /// What was destroyed, in order.
    pub destroyed: Vec<Uid>,
    /// Refuse this reason's actions: `network_unavailable`, `disk_failed`, `files_unavailable`,
    /// `infeasible`.
    pub refuse: Option<&'static str>,
}

#[derive(Clone)]
pub struct Simulated {
    world: Arc<Mutex<World>>,
    boot: String,
    folder: PathBuf,
}

impl Simulated {
    /// `folder`: where the instances' state folders are, for logs.
    pub fn new(boot: &str, folder: impl Into<PathBuf>) -> Self {
        Simulated { world: Arc::default(), boot: boot.to_owned(), folder: folder.into() }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same host after its power was cut.
    pub fn rebooted(&self, boot: &str) -> Self {
        let mut world = self.world();
        world.networks.clear();
        world.overlays.clear();
        for disk in world.disks.values_mut() {
            disk.ready = false;
        }
        drop(world);
        Simulated { boot: boot.to_owned(), ..self.clone() }
    }

    fn allowed(&self, reason: &'static str) -> Result<MutexGuard<'_, World>> {
        let world = self.world();
        if world.refuse == Some(reason) {
            return Err(Error::new(reason, "refused by the simulation"));
        }
        Ok(world)
    }
}

#[async_trait]
impl Machine for Simulated {
    fn boot(&self) -> &str {
        &self.boot
    }

    async fn disk(&self, disk: &Uid) -> Result<Option<Disk>> {
        Ok(self.world().disks.get(disk).cloned())
    }

    async fn ensure_disk(&self, order: &Order, image: Option<&str>) -> Result<()> {
        let mut world = self.allowed("disk_failed")?;
        let size = order.assignment.granted.disk_size;
        let made = || Disk { ready: true, size, image: image.map(|id| pin(order, id)) };
        let disk = world.disks.entry(order.disk.clone()).or_insert_with(made);
        disk.ready = true;
        disk.size = disk.size.max(size);
        Ok(())
    }

    async fn there(&self, what: Doomed, uid: &Uid) -> Result<bool> {
        let world = self.world();
        Ok(match what {
            Doomed::Disk => world.disks.contains_key(uid),
            Doomed::Volume => world.volumes.contains(uid),
            Doomed::Instance | Doomed::Unknown => false,
        })
    }

    async fn destroy(&self, what: Doomed, uid: &Uid) -> Result<()> {
        let mut world = self.world();
        if world.records.values().any(|disk| disk == uid) {
            return Err(Error::new("disk_in_use", "a container has it"));
        }
        let gone = match what {
            Doomed::Disk => world.disks.remove(uid).is_some(),
            Doomed::Volume => world.volumes.remove(uid),
            Doomed::Instance | Doomed::Unknown => false,
        };
        if gone {
            world.destroyed.push(uid.clone());
        }
        Ok(())
    }

    async fn network(&self, uid: &Uid) -> Result<bool> {
        Ok(self.world().networks.contains_key(uid))
    }

    async fn ensure_network(&self, order: &Order) -> Result<()> {
        let mut world = self.allowed("network_unavailable")?;
        world.networks.insert(order.uid().clone(), super::observe::links(order));
        Ok(())
    }

    async fn connect(&self, overlay: &Overlay) -> Result<()> {
        self.allowed("network_unavailable")?.overlays.insert(overlay.network.clone(), overlay.clone());
        Ok(())
    }

    async fn tend(&self, _orders: &[Order]) -> Result<()> {
        self.allowed("network_unavailable").map(drop)
    }

    async fn remains(&self, uid: &Uid) -> Result<bool> {
        let world = self.world();
        let files = world.files.contains(uid) || world.delivered.contains_key(uid);
        Ok(world.networks.contains_key(uid) || files)
    }

    async fn remove_remains(&self, uid: &Uid) -> Result<()> {
        let mut world = self.world();
        world.networks.remove(uid);
        world.files.remove(uid);
        world.delivered.remove(uid);
        Ok(())
    }

    async fn record(&self, container: &str) -> Result<Option<Uid>> {
        Ok(self.world().records.get(container).cloned())
    }

    async fn starved(&self, container: &str) -> Result<bool> {
        Ok(self.world().starved.contains(container))
    }

    async fn records(&self) -> Result<Vec<String>> {
        Ok(self.world().records.keys().cloned().collect())
    }

    async fn write_record(&self, order: &Order, container: &str, made: &Made) -> Result<()> {
        let mut world = self.world();
        if !world.disks.contains_key(&made.disk) || !world.networks.contains_key(order.uid()) {
            return Err(Error::new("start_failed", "no disk or no network to hand over"));
        }
        world.records.insert(container.to_owned(), made.disk.clone());
        world.limits.insert(container.to_owned(), order.assignment.granted.clone());
        Ok(())
    }

    async fn remove_record(&self, container: &str) -> Result<()> {
        let mut world = self.world();
        world.records.remove(container);
        world.limits.remove(container);
        Ok(())
    }

    async fn binds(&self, order: &Order) -> Result<Vec<(PathBuf, String, bool)>> {
        if order.instance.spec.files.is_empty() {
            return Ok(Vec::new());
        }
        if !self.delivered(order).await? {
            return Err(Error::new("create_failed", "no files to bind"));
        }
        Ok(vec![(self.folder.join(order.uid().as_str()), file::INSIDE.to_owned(), true)])
    }

    async fn delivered(&self, order: &Order) -> Result<bool> {
        Ok(self.world().delivered.get(order.uid()) == Some(&order.instance.spec.files))
    }

    async fn deliver(&self, order: &Order) -> Result<()> {
        let mut world = self.allowed("files_unavailable")?;
        world.delivered.insert(order.uid().clone(), order.instance.spec.files.clone());
        Ok(())
    }

    async fn write_files(&self, order: &Order) -> Result<()> {
        self.world().files.insert(order.uid().clone());
        Ok(())
    }

    async fn apply_limits(&self, order: &Order, container: &str, _pid: u32) -> Result<LimitsStatus> {
        let mut world = self.world();
        if world.refuse == Some("infeasible") {
            let reason = Some("refused by the simulation".to_owned());
            return Ok(LimitsStatus { state: LimitsState::Infeasible, reason, ..LimitsStatus::default() });
        }
        let granted = order.assignment.granted.clone();
        world.limits.insert(container.to_owned(), granted.clone());
        Ok(LimitsStatus {
            state: LimitsState::Applied,
            cpus: granted.cpus,
            cpuset: granted.cpuset,
            memory: granted.memory,
            swap: Some(granted.swap),
            pids: granted.pids,
            disk: granted.disk,
            disk_size: granted.disk_size,
            cpu_weight: granted.cpu_weight,
            ..LimitsStatus::default()
        })
    }

    async fn usage(&self, uid: &Uid, _container: &str, pid: u32) -> Result<Usage> {
        Ok(Usage {
            uid: uid.clone(),
            cpu_usage_ns: u64::from(pid),
            memory_bytes: 1 << 20,
            pids: 1,
            read_bytes: 0,
            write_bytes: 0,
            at: jiff::Timestamp::now(),
        })
    }

    /// One whose CPUs nobody looks at: none is ever saturated.
    async fn cpus(&self) -> Result<Cpus> {
        Ok(Cpus::new())
    }

    async fn loads(&self, _running: Vec<Running>) -> Result<BTreeMap<Uid, Load>> {
        Ok(BTreeMap::new())
    }

    async fn dial(&self, _uid: &Uid, _at: Vec<SocketAddr>) -> Result<TcpStream> {
        Err(Error::new("network_unavailable", "a simulated instance listens nowhere"))
    }

    async fn user_data_exit_code(&self, disk: &Uid) -> Option<i64> {
        self.world().user_data.get(disk).copied()
    }

    async fn state_folder(&self, disk: &Uid) -> Result<PathBuf> {
        Ok(self.folder.join(disk.as_str()))
    }
}
