//! The host that the agent runs on: joins disk, network, limits and the wrapper's records into a [`Machine`].

use super::facts::Made;
use super::files;
use super::machine::{Error, Machine, Result, pin};
use super::observed::Disk;
use crate::delivery::{self, Delivery};
use crate::disk::{Disks, Rootfs};
use crate::limits::squeeze::{Cpus, Load};
use crate::limits::{self, Running, Version, record::resources_for_record};
use crate::network::{self, Network, NicPlan, Peers, Underlay, Vxlan};
use crate::session::socket::Dialer;
use crate::streams::beneath;
use async_trait::async_trait;
use enoki_api::file;
use enoki_api::instance::{Doomed, LimitsState, LimitsStatus};
use enoki_api::network::{Egress, Gateway, NetworkKind};
use enoki_api::object::Uid;
use enoki_api::protocol::{Order, Overlay, Usage};
use enoki_api::volume::VolumeKind;
use enoki_helpers::{INIT, INIT_INSIDE, NETNS, RECORDS, STATE_INSIDE, oom, record};
use jiff::Timestamp;
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::net::TcpStream;

/// All of Enoki's on this host.
const ROOT: &str = "/var/lib/enoki";
/// Uploaded files, by digest.
const FILES: &str = "/var/lib/enoki/files";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// An exit code in decimal, and no more.
const CODE_MOST: u64 = 16;
const USER_DATA: &str = "user-data";
const USER_DATA_EXIT_CODE: &str = "user_data_exit_code";

pub struct Linux {
    boot: String,
    disks: Disks,
    delivery: Delivery,
    network: network::Linux,
    underlay: Underlay,
    /// Version of the control groups, and whether swap is accounted for.
    cgroups: (Version, bool),
    /// Half of it is the largest /dev/shm.
    memory: u64,
}

fn disk_failed(error: impl ToString) -> Error {
    Error::new("disk_failed", error)
}

fn network_failed(error: impl ToString) -> Error {
    Error::new("network_unavailable", error)
}

fn host_failed(error: impl ToString) -> Error {
    Error::new("host_failed", error)
}

/// A uid that came over the wire becomes a path only when it is a UUID.
fn checked(uid: &Uid) -> Result<&str> {
    Uid::parse(uid.as_str()).map(|_| uid.as_str()).ok_or_else(|| host_failed(format!("`{uid}` is not a uid")))
}

impl Linux {
    /// Opens what it works with; changes nothing on the host but its own folders.
    pub async fn open(underlay: Underlay, dialer: Dialer) -> anyhow::Result<Self> {
        let disks = Disks::open(Path::new(ROOT)).await?;
        Ok(Linux {
            boot: std::fs::read_to_string(BOOT_ID)?.trim().to_owned(),
            delivery: Delivery::new(Path::new(FILES), dialer, disks.clone())?,
            disks,
            network: network::Linux::new()?,
            underlay,
            cgroups: limits::host::cgroups()?,
            memory: limits::host::capacity()?.memory.0,
        })
    }

    /// `v1` or `v2`.
    pub fn cgroup(&self) -> String {
        self.cgroups.0.to_string()
    }

    fn disk_folder(uid: &Uid) -> Result<PathBuf> {
        Ok(Path::new(ROOT).join("disks").join(checked(uid)?))
    }

    async fn rootfs(&self, order: &Order) -> Result<Rootfs> {
        self.disks.ensure(&order.disk, order.assignment.granted.disk_size).await.map_err(disk_failed)
    }

    async fn volumes(&self, order: &Order) -> Result<Vec<(PathBuf, String, bool)>> {
        let mut binds = Vec::new();
        for (path, mount) in &order.instance.spec.mounts {
            let Some(volume) = order.volumes.get(&mount.volume) else {
                return Err(Error::new("volume_missing", format!("there is no volume {}", mount.volume)));
            };
            let folder = match (volume.spec.kind, &volume.spec.path) {
                (VolumeKind::Local, _) => self.disks.volume(&volume.uid).await.map_err(disk_failed)?,
                (VolumeKind::Shared, Some(folder)) => PathBuf::from(folder),
                (VolumeKind::Shared, None) | (VolumeKind::Unknown, _) => {
                    return Err(Error::new(
                        "volume_missing",
                        format!("this agent does not know the type of volume {}", mount.volume),
                    ));
                }
            };
            if !folder.is_dir() {
                return Err(Error::new(
                    "volume_missing",
                    format!("{} is not on this host", folder.display()),
                ));
            }
            binds.push((folder, path.clone(), mount.read_only));
        }
        Ok(binds)
    }

    async fn resources(&self, order: &Order) -> Result<enoki_helpers::Resources> {
        let volumes: Vec<PathBuf> =
            self.volumes(order).await?.into_iter().map(|(folder, ..)| folder).collect();
        let devices = self.disks.devices(&order.disk, &volumes).await.map_err(disk_failed)?;
        Ok(resources_for_record(&order.assignment.granted, &devices, self.cgroups))
    }

    /// Half of the instance's memory, as a machine has it.
    fn shm(&self, order: &Order) -> u64 {
        order.assignment.granted.memory.map_or(self.memory, |memory| memory.0) / 2
    }

    async fn save(id: &str, record: record::Record) -> Result<()> {
        let id = id.to_owned();
        blocking(move || record::save(&id, &record)).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(host_failed)?.map_err(host_failed)
}

/// PURE: the links as the network module wants them told.
fn plan(order: &Order, address: Option<Ipv4Addr>) -> Result<network::InstancePlan> {
    let mut nics = Vec::new();
    for (name, nic) in &order.instance.spec.nics {
        let missing = |what: &str| network_failed(format!("{name}: {what}"));
        let wanted = order.networks.get(&nic.network).ok_or_else(|| missing("its network is gone"))?;
        let given = order.assignment.nics.get(name).ok_or_else(|| missing("it has no address"))?;
        let network = network_plan(wanted, address).map_err(missing)?;
        nics.push(NicPlan {
            name: name.clone(),
            network,
            address: given.address,
            mac: network::Mac(given.mac.0),
            egress_bits: nic.egress.map(|rate| rate.0),
            ingress_bits: nic.ingress.map(|rate| rate.0),
        });
    }
    Ok(network::InstancePlan { uid: order.uid().to_string(), nics })
}

/// PURE: `address` is where other hosts reach this one. The error says what is missing.
fn network_plan(
    network: &enoki_api::network::Network,
    address: Option<Ipv4Addr>,
) -> std::result::Result<network::NetworkPlan, &'static str> {
    const UNKNOWN: &str = "this agent does not know its network's type";
    Ok(network::NetworkPlan {
        uid: network.uid.to_string(),
        kind: match (network.spec.kind, network.spec.segment) {
            (NetworkKind::Local, _) => network::Kind::Local,
            (NetworkKind::Vxlan, Some(segment)) => network::Kind::Vxlan(Vxlan {
                segment,
                address: address.ok_or(
                    "its network spans hosts, and this host has no default route that would say where others \
                     reach it; set `address` in /etc/enoki/agent.toml",
                )?,
            }),
            (NetworkKind::Vxlan, None) => return Err("its network has no segment"),
            (NetworkKind::Vlan | NetworkKind::Unknown, _) => return Err(UNKNOWN),
        },
        cidr: network.spec.cidr,
        gateway: match network.spec.gateway {
            Gateway::None => network::Gateway::None,
            Gateway::Host => network::Gateway::Host,
            Gateway::Address(address) => network::Gateway::Address(address),
        },
        egress: match network.spec.egress {
            Egress::None => network::Egress::None,
            Egress::Routed => network::Egress::Routed,
            Egress::Nat => network::Egress::Nat,
            Egress::Unknown => return Err(UNKNOWN),
        },
    })
}

#[async_trait]
impl Machine for Linux {
    fn boot(&self) -> &str {
        &self.boot
    }

    async fn disk(&self, disk: &Uid) -> Result<Option<Disk>> {
        let folder = Self::disk_folder(disk)?;
        let (there, image, mounted) = blocking(move || {
            let device = |path: &Path| std::fs::metadata(path).map(|data| data.dev()).ok();
            let fs = folder.join("fs");
            let mounted = device(&fs).is_some() && device(&fs) != device(&folder);
            Ok((folder.try_exists()?, folder.join("disk.img").try_exists()?, mounted))
        })
        .await?;
        if !there {
            return Ok(None);
        }
        let ready = mounted || !image;
        let size = if ready { self.disks.size(disk).await.map_err(disk_failed)? } else { None };
        let image = self.disks.pinned(disk).await.map_err(disk_failed)?;
        Ok(Some(Disk { ready, size, image }))
    }

    async fn ensure_disk(&self, order: &Order, image: Option<&str>) -> Result<()> {
        let pinned = image.map(|id| pin(order, id));
        let size = order.assignment.granted.disk_size;
        self.disks.ensure_on(&order.disk, size, pinned.clone()).await.map_err(disk_failed)?;
        // Of a disk that was there before.
        if let Some(pinned) = pinned {
            self.disks.pin(&order.disk, pinned).await.map_err(disk_failed)?;
        }
        Ok(())
    }

    async fn there(&self, what: Doomed, uid: &Uid) -> Result<bool> {
        match what {
            Doomed::Disk => {
                let folder = Self::disk_folder(uid)?;
                blocking(move || folder.try_exists()).await
            }
            Doomed::Volume => Ok(self.disks.list_volumes().await.map_err(disk_failed)?.contains(uid)),
            Doomed::Instance | Doomed::Unknown => Ok(false),
        }
    }

    async fn destroy(&self, what: Doomed, uid: &Uid) -> Result<()> {
        match what {
            Doomed::Disk => self.disks.destroy(uid).await.map_err(disk_failed),
            Doomed::Volume => self.disks.destroy_volume(uid).await.map_err(disk_failed),
            Doomed::Instance | Doomed::Unknown => Err(host_failed("neither a disk nor a volume")),
        }
    }

    async fn network(&self, uid: &Uid) -> Result<bool> {
        let pin = Path::new(NETNS).join(checked(uid)?);
        blocking(move || match statfs(&pin) {
            Ok(found) => Ok(found.filesystem_type() == NSFS_MAGIC),
            Err(nix::errno::Errno::ENOENT) => Ok(false),
            Err(error) => Err(error.into()),
        })
        .await
    }

    async fn ensure_network(&self, order: &Order) -> Result<()> {
        self.network.ensure(&plan(order, self.underlay.address())?).await.map(drop).map_err(network_failed)
    }

    async fn connect(&self, overlay: &Overlay) -> Result<()> {
        let instances =
            overlay.entries.iter().map(|entry| (network::Mac(entry.mac.0), entry.host_address)).collect();
        let peers = Peers { instances, hosts: overlay.hosts.clone() };
        self.network.connect(overlay.network.as_str(), &peers).await.map_err(network_failed)
    }

    async fn delivered(&self, order: &Order) -> Result<bool> {
        let (files, job) = (order.instance.spec.files.clone(), files::job(order.uid()));
        blocking(move || delivery::is_whole(&files, &job)).await
    }

    async fn deliver(&self, order: &Order) -> Result<()> {
        let project = order.instance.project.as_deref().unwrap_or_default();
        // Its own folder is root's alone.
        let uid = order.uid().clone();
        blocking(move || files::make_folder(&uid)).await?;
        let done = self.delivery.deliver(project, &order.instance.spec.files, &files::job(order.uid())).await;
        done.map_err(|why| Error::new("files_unavailable", why))
    }

    async fn tend(&self, orders: &[Order]) -> Result<()> {
        let files: Vec<_> =
            orders.iter().flat_map(|order| order.instance.spec.files.values().cloned()).collect();
        let delivery = self.delivery.clone();
        if let Err(error) = blocking(move || delivery.prune(files.iter())).await {
            tracing::warn!(%error, "files that nobody names any more stay");
        }
        let address = self.underlay.address();
        let mut plans: Vec<network::NetworkPlan> = Vec::new();
        for network in orders.iter().flat_map(|order| order.networks.values()) {
            let known = plans.iter().any(|plan| plan.uid == network.uid.as_str());
            if let (false, Ok(plan)) = (known, network_plan(network, address)) {
                plans.push(plan);
            }
        }
        self.network.tend(&plans).await.map_err(network_failed)
    }

    async fn remains(&self, uid: &Uid) -> Result<bool> {
        let (pin, folder) = (Path::new(NETNS).join(checked(uid)?), files::folder(uid));
        blocking(move || Ok(pin.try_exists()? || folder.try_exists()?)).await
    }

    async fn remove_remains(&self, uid: &Uid) -> Result<()> {
        self.network.remove(checked(uid)?).await.map_err(network_failed)?;
        let uid = uid.clone();
        blocking(move || files::remove(&uid)).await
    }

    async fn record(&self, container: &str) -> Result<Option<Uid>> {
        let path = record::path(container).map_err(host_failed)?;
        let read = blocking(move || match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        let Some(text) = read.await? else { return Ok(None) };
        // One that does not parse lets no container start: written anew it does.
        let record = record::parse(&text).ok();
        let disk = record.and_then(|record| Uid::parse(record.rootfs.disk.file_name()?.to_str()?));
        Ok(disk)
    }

    async fn starved(&self, container: &str) -> Result<bool> {
        let id = container.to_owned();
        blocking(move || oom::kept(&id)).await
    }

    async fn records(&self) -> Result<Vec<String>> {
        blocking(|| {
            let files = match std::fs::read_dir(RECORDS) {
                Ok(files) => files,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let names: io::Result<Vec<_>> = files.map(|file| Ok(file?.file_name())).collect();
            let id = |name: &std::ffi::OsString| Some(name.to_str()?.strip_suffix(".json")?.to_owned());
            Ok(names?.iter().filter_map(id).collect())
        })
        .await
    }

    async fn write_record(&self, order: &Order, container: &str, made: &Made) -> Result<()> {
        let rootfs = self.rootfs(order).await?;
        let record = record::Record {
            version: record::VERSION,
            instance: order.name(),
            uid: order.uid().to_string(),
            epoch: order.assignment.epoch,
            netns: Path::new(NETNS).join(checked(order.uid())?),
            rootfs: enoki_helpers::Rootfs {
                disk: rootfs.disk,
                upper: rootfs.upper,
                work: rootfs.work,
                mountpoint: rootfs.mountpoint,
            },
            drop_mounts: made.drop_mounts(),
            resources: self.resources(order).await?,
            shm_bytes: Some(self.shm(order)),
        };
        Self::save(container, record).await
    }

    async fn remove_record(&self, container: &str) -> Result<()> {
        let id = container.to_owned();
        blocking(move || {
            oom::forget(&id)?;
            record::remove(&id)
        })
        .await
    }

    async fn binds(&self, order: &Order) -> Result<Vec<(PathBuf, String, bool)>> {
        let rootfs = self.rootfs(order).await?;
        let mut binds = vec![
            (PathBuf::from(INIT), INIT_INSIDE.to_owned(), true),
            (rootfs.machine, STATE_INSIDE.to_owned(), false),
        ];
        let ordered = order.clone();
        // Docker refuses a bind whose source is not there yet. Whole at once: the start then finds them right.
        blocking(move || files::write(&ordered)).await?;
        let folder = files::folder(order.uid());
        // Read-only: what is written to them would lie on the host's disk, past the instance's disk size.
        binds.extend(files::NAMES.map(|name| (folder.join(name), format!("/etc/{name}"), true)));
        binds.extend(self.volumes(order).await?);
        if !order.instance.spec.files.is_empty() {
            binds.push((files::job(order.uid()), file::INSIDE.to_owned(), true));
        }
        Ok(binds)
    }

    async fn write_files(&self, order: &Order) -> Result<()> {
        let machine = self.rootfs(order).await?.machine;
        let order = order.clone();
        blocking(move || {
            files::write(&order)?;
            if let Some(script) = &order.instance.spec.user_data {
                beneath::replace(&beneath::folder(&machine)?, USER_DATA, script.as_bytes())?;
            }
            Ok(())
        })
        .await
    }

    async fn apply_limits(&self, order: &Order, container: &str, pid: u32) -> Result<LimitsStatus> {
        let volumes: Vec<PathBuf> =
            self.volumes(order).await?.into_iter().map(|(folder, ..)| folder).collect();
        let devices = self.disks.devices(&order.disk, &volumes).await.map_err(disk_failed)?;
        let granted = &order.assignment.granted;
        let mut status = limits::apply_to(container, pid, granted, &devices)
            .await
            .map_err(|error| Error::new("limits_deferred", error))?;
        status.disk_size = self.disks.size(&order.disk).await.map_err(disk_failed)?;
        // The next start, by whoever, comes up with what holds now; a refused set is not for it.
        if status.state == LimitsState::Applied {
            let resources = self.resources(order).await?;
            let (id, shm) = (container.to_owned(), Some(self.shm(order)));
            blocking(move || {
                let mut record = record::load(&id).map_err(|why| io::Error::other(why.to_string()))?;
                if record.resources != resources || record.shm_bytes != shm {
                    (record.resources, record.shm_bytes) = (resources, shm);
                    record::save(&id, &record)?;
                }
                Ok(())
            })
            .await?;
        }
        Ok(status)
    }

    async fn usage(&self, uid: &Uid, container: &str, pid: u32) -> Result<Usage> {
        let used = limits::usage_of(container, pid).await.map_err(host_failed)?;
        Ok(Usage {
            uid: uid.clone(),
            cpu_usage_ns: used.cpu_ns,
            memory_bytes: used.memory_bytes,
            pids: used.pids,
            read_bytes: used.read_bytes,
            write_bytes: used.write_bytes,
            at: Timestamp::now(),
        })
    }

    async fn cpus(&self) -> Result<Cpus> {
        limits::cpus().await.map_err(host_failed)
    }

    async fn loads(&self, running: Vec<Running>) -> Result<BTreeMap<Uid, Load>> {
        limits::loads_of(running).await.map_err(host_failed)
    }

    async fn dial(&self, uid: &Uid, at: Vec<SocketAddr>) -> Result<TcpStream> {
        network::dial(uid.as_str(), at).await.map_err(network_failed)
    }

    async fn user_data_exit_code(&self, disk: &Uid) -> Option<i64> {
        let folder = self.state_folder(disk).await.ok()?;
        let read = move || {
            let folder = beneath::folder(&folder)?;
            beneath::read(&folder, USER_DATA_EXIT_CODE, CODE_MOST)
        };
        let text = tokio::task::spawn_blocking(read).await.ok()?.ok()?;
        std::str::from_utf8(&text).ok()?.trim().parse().ok()
    }

    async fn state_folder(&self, disk: &Uid) -> Result<PathBuf> {
        let folder = Self::disk_folder(disk)?;
        let known = blocking(move || {
            let parts = if folder.join("disk.img").try_exists()? { folder.join("fs") } else { folder };
            let machine = parts.join("machine");
            Ok(machine.try_exists()?.then_some(machine))
        })
        .await?;
        match known {
            Some(machine) => Ok(machine),
            // Not mounted since the host came up.
            None if self.disk(disk).await?.is_some() => {
                Ok(self.disks.ensure(disk, None).await.map_err(disk_failed)?.machine)
            }
            None => Err(Error::new("disk_missing", "the instance has not been started here yet")),
        }
    }
}
