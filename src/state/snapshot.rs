//! One state of the cloud, with the indexes that its readers need.

use super::table::{At, Row, Table, at};
use crate::store::keys::{Key, ObjectRef};
use crate::store::{Change, KeyValue, Revision};
use enoki_api::cluster::{ClusterSpec, ClusterStatus};
use enoki_api::host::{Capacity, HostSpec, HostStatus};
use enoki_api::image::ImageSpec;
use enoki_api::instance::{AddressClaim, Assignment, InstanceSpec, InstanceStatus, Tombstone};
use enoki_api::job::{JobSpec, JobStatus};
use enoki_api::network::NetworkSpec;
use enoki_api::object::{Kind, Object, Owner, Spec, Uid};
use enoki_api::operation::{OperationSpec, OperationStatus};
use enoki_api::project::ProjectSpec;
use enoki_api::quantity::{Bytes, MilliCpu};
use enoki_api::secret::SecretSpec;
use enoki_api::token::TokenSpec;
use enoki_api::volume::{VolumeKind, VolumeSpec, VolumeStatus};
use imbl::{OrdMap, OrdSet};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Everything the store holds at one revision.
#[derive(Clone, Default)]
pub struct Snapshot {
    pub revision: Revision,
    /// Whether a whole listing stands behind it.
    pub loaded: bool,
    pub hosts: Table<HostSpec>,
    pub projects: Table<ProjectSpec>,
    pub networks: Table<NetworkSpec>,
    pub volumes: Table<VolumeSpec>,
    pub secrets: Table<SecretSpec>,
    pub images: Table<ImageSpec>,
    pub instances: Table<InstanceSpec>,
    pub clusters: Table<ClusterSpec>,
    pub jobs: Table<JobSpec>,
    pub tokens: Table<TokenSpec>,
    pub operations: Table<OperationSpec>,
    pub host_status: OrdMap<String, Arc<HostStatus>>,
    pub instance_status: OrdMap<At, Arc<InstanceStatus>>,
    pub volume_status: OrdMap<At, Arc<VolumeStatus>>,
    pub operation_status: OrdMap<String, Arc<Written<OperationStatus>>>,
    pub cluster_status: OrdMap<At, Arc<Written<ClusterRecord>>>,
    pub job_status: OrdMap<At, Arc<Written<JobStatus>>>,
    pub assignments: OrdMap<At, Arc<Placed>>,
    /// By project, network and address.
    pub addresses: OrdMap<(String, String, IpAddr), Arc<(AddressClaim, Revision)>>,
    pub tombstones: OrdMap<String, Arc<(Tombstone, Revision)>>,
    /// Who leads, as far as is known.
    pub leader: Option<Arc<Server>>,
    /// Every server that has joined, whether it runs or not.
    pub servers: OrdMap<String, Arc<Server>>,
    /// Uids of the tombstones that are still to be acted on: few, while those that were are kept for a month.
    pub open_tombstones: OrdSet<String>,
    /// Revisions of keys that only guard something (segments, quotas).
    pub guards: OrdMap<String, Revision>,
    /// Keys whose value does not decode, and why: shown, acted on by nobody.
    pub undecodable: OrdMap<String, String>,
    /// The instances of each host.
    pub by_host: OrdMap<String, OrdSet<At>>,
    /// The sum of the grants on each host.
    pub granted: OrdMap<String, Capacity>,
    /// Where each uid stands.
    pub by_uid: OrdMap<Uid, At>,
}

/// A server, as it wrote itself down.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Server {
    pub name: String,
    /// Where agents and other servers reach it: `https://HOST:PORT`. None: on its own machine only.
    #[serde(default)]
    pub address: Option<String>,
}

/// An assignment and the revision of its key.
#[derive(Clone, Debug)]
pub struct Placed {
    pub assignment: Assignment,
    pub revision: Revision,
}

/// A status that a controller carries on, and the revision of its key.
#[derive(Clone, Debug)]
pub struct Written<S> {
    pub status: S,
    pub revision: Revision,
}

/// What is kept of a cluster: its status, and what only its controller needs to know from one leader to the next.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ClusterRecord {
    #[serde(flatten)]
    pub status: ClusterStatus,
    #[serde(default)]
    pub pool: PoolRecord,
}

/// What the size of a pool of workers follows from beside what is seen now.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PoolRecord {
    /// When the pool was last made larger or smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Timestamp>,
    /// Workers that leave, by instance, and since when.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub draining: BTreeMap<String, Timestamp>,
    /// When workers last left because they were squeezed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squeezed: Option<SqueezedPool>,
}

/// A pool that gave way to instances that use its hosts' CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SqueezedPool {
    pub at: Timestamp,
    /// So many workers stayed.
    pub left: u32,
}

impl Snapshot {
    /// An instance with its status.
    pub fn instance(&self, at: &At) -> Option<Object<InstanceSpec>> {
        let mut object = self.instances.at(at)?.object.clone();
        if let Some(status) = self.instance_status.get(at) {
            object.status = InstanceStatus::clone(status);
        }
        Some(object)
    }

    /// Where the servers are reached by others: `https://HOST:PORT` each.
    pub fn reached_at(&self) -> Vec<String> {
        self.servers.values().filter_map(|server| server.address.clone()).collect()
    }

    /// Where the instance with this uid stands, if it still does.
    pub fn instance_of(&self, uid: &Uid) -> Option<&Arc<Row<InstanceSpec>>> {
        self.instances.at(self.by_uid.get(uid)?)
    }

    /// The operations that have not ended.
    pub fn open_operations(&self) -> impl Iterator<Item = &Arc<Row<OperationSpec>>> {
        let written = |row: &Row<OperationSpec>| self.operation_status.get(&row.object.name);
        self.operations.of(None).filter(move |row| written(row).is_none_or(|written| !written.status.ended()))
    }

    /// The tombstones that are still to be acted on, with the revisions of their keys.
    pub fn open_tombstones(&self) -> impl Iterator<Item = &Arc<(Tombstone, Revision)>> {
        self.open_tombstones.iter().filter_map(|uid| self.tombstones.get(uid))
    }

    /// The claims on a network's addresses, ascending.
    pub fn claims<'a>(
        &'a self,
        project: &'a str,
        network: &'a str,
    ) -> impl Iterator<Item = (IpAddr, &'a Arc<(AddressClaim, Revision)>)> {
        self.claims_from(project, network, IpAddr::from([0, 0, 0, 0]))
    }

    /// The same, from this address on.
    pub fn claims_from<'a>(
        &'a self,
        project: &'a str,
        network: &'a str,
        address: IpAddr,
    ) -> impl Iterator<Item = (IpAddr, &'a Arc<(AddressClaim, Revision)>)> {
        let first = (project.to_owned(), network.to_owned(), address);
        self.addresses
            .range(first..)
            .take_while(move |((p, n, _), _)| p == project && n == network)
            .map(|((_, _, address), claim)| (*address, claim))
    }

    /// Whether the owner of an object of this project is still there: the same one, not another of its name. One that
    /// cannot be read is there too.
    pub fn has_owner(&self, project: Option<&str>, owner: &Owner) -> bool {
        fn stands<S: Spec>(table: &Table<S>, at: &At, uid: &Uid) -> bool {
            table.at(at).is_some_and(|row| row.object.uid == *uid)
        }
        let project = project.filter(|_| owner.kind.in_project());
        let unread = Key::spec(owner.kind.plural(), project, &owner.name)
            .is_ok_and(|key| self.undecodable.contains_key(&String::from(key)));
        let at = (project.unwrap_or_default().to_owned(), owner.name.clone());
        let stands = match owner.kind {
            Kind::Host => stands(&self.hosts, &at, &owner.uid),
            Kind::Project => stands(&self.projects, &at, &owner.uid),
            Kind::Network => stands(&self.networks, &at, &owner.uid),
            Kind::Volume => stands(&self.volumes, &at, &owner.uid),
            Kind::Secret => stands(&self.secrets, &at, &owner.uid),
            Kind::Image => stands(&self.images, &at, &owner.uid),
            Kind::Instance => stands(&self.instances, &at, &owner.uid),
            Kind::Cluster => stands(&self.clusters, &at, &owner.uid),
            Kind::Job => stands(&self.jobs, &at, &owner.uid),
            Kind::Token => stands(&self.tokens, &at, &owner.uid),
            Kind::Operation => stands(&self.operations, &at, &owner.uid),
            // Told, and owning nothing.
            Kind::Event => false,
        };
        stands || unread
    }

    /// Whether a volume's bytes are on one host alone. One that is not known counts as such.
    pub fn is_local(&self, project: &str, volume: &str) -> bool {
        self.volumes.get(project, volume).is_none_or(|row| match row.object.spec.kind {
            VolumeKind::Shared => false,
            VolumeKind::Local | VolumeKind::Unknown => true,
        })
    }

    /// The host that a local volume belongs to. None: to none yet, or it is shared by all.
    pub fn volume_host(&self, project: &str, volume: &str) -> Option<&str> {
        let status = self.volume_status.get(&(project.to_owned(), volume.to_owned()))?;
        status.host.as_deref().filter(|_| self.is_local(project, volume))
    }

    /// Whether a claim keeps its address from automatic use: while its instance is there, in hold-down, and for as long
    /// as a host that may come back has not confirmed that the instance is gone.
    pub fn holds(&self, claim: &AddressClaim, now: Timestamp) -> bool {
        let may_still_run = || {
            let uid = claim.uid.as_str();
            let tombstone = self.tombstones.get(uid).filter(|_| self.open_tombstones.contains(uid));
            let host = tombstone.and_then(|entry| entry.0.host.as_deref());
            host.is_some_and(|host| self.hosts.get("", host).is_some())
        };
        claim.held_until.is_none_or(|until| until > now) || may_still_run()
    }

    /// The keys of everything that watchers and controllers follow.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        fn specs<S: Spec>(table: &Table<S>) -> impl Iterator<Item = Key> {
            table.iter().map(|((project, name), _)| {
                let project = Some(project.clone()).filter(|project| !project.is_empty());
                Key::Spec(ObjectRef { kind: S::KIND.plural().to_owned(), project, name: name.clone() })
            })
        }
        let assignments = self
            .assignments
            .keys()
            .map(|(project, name)| Key::Assignment { project: project.clone(), name: name.clone() });
        let tombstones = self.tombstones.keys().map(|uid| Key::Tombstone { uid: uid.clone() });
        specs(&self.hosts)
            .chain(specs(&self.projects))
            .chain(specs(&self.networks))
            .chain(specs(&self.volumes))
            .chain(specs(&self.secrets))
            .chain(specs(&self.images))
            .chain(specs(&self.instances))
            .chain(specs(&self.clusters))
            .chain(specs(&self.jobs))
            .chain(specs(&self.tokens))
            .chain(specs(&self.operations))
            .chain(assignments)
            .chain(tombstones)
    }

    /// Takes one change of the store. A key that is not ours, or does not decode, is noted and left alone.
    pub(super) fn apply(&mut self, change: &Change) -> Option<Key> {
        let text = change.key();
        let key = Key::parse(text)?;
        self.undecodable.remove(text);
        let result = match change {
            Change::Put(stored) => self.put(&key, stored),
            Change::Delete { .. } => {
                self.delete(&key);
                Ok(())
            }
        };
        if let Err(why) = result {
            // What stood there before is no longer true either.
            self.delete(&key);
            tracing::warn!(key = text, %why, "a stored value does not decode; it is left alone");
            self.undecodable.insert(text.to_owned(), why);
        }
        Some(key)
    }

    fn put(&mut self, key: &Key, stored: &KeyValue) -> Result<(), String> {
        match key {
            Key::Spec(object) => self.put_spec(object, stored),
            Key::Status(object) => self.put_status(object, stored),
            Key::Assignment { project, name } => {
                let at = (project.clone(), name.clone());
                let assignment: Assignment = decode(stored)?;
                self.unassign(&at);
                self.assign(at, Placed { assignment, revision: stored.mod_revision });
                Ok(())
            }
            Key::Address { project, network, address } => {
                let claim: AddressClaim = decode(stored)?;
                let at = (project.clone(), network.clone(), *address);
                self.addresses.insert(at, Arc::new((claim, stored.mod_revision)));
                Ok(())
            }
            Key::Tombstone { uid } => {
                let tombstone: Tombstone = decode(stored)?;
                match tombstone.buried_at {
                    None => self.open_tombstones.insert(uid.clone()),
                    Some(_) => self.open_tombstones.remove(uid),
                };
                self.tombstones.insert(uid.clone(), Arc::new((tombstone, stored.mod_revision)));
                Ok(())
            }
            Key::Segment { .. } | Key::Quota { .. } => {
                self.guards.insert(key.to_string(), stored.mod_revision);
                Ok(())
            }
            Key::Election { .. } => {
                self.leader = Some(Arc::new(decode(stored)?));
                Ok(())
            }
            Key::Server { name } => {
                self.servers.insert(name.clone(), Arc::new(decode(stored)?));
                Ok(())
            }
            Key::Scale { .. } => Ok(()),
        }
    }

    fn put_spec(&mut self, object: &ObjectRef, stored: &KeyValue) -> Result<(), String> {
        match object.kind.parse::<Kind>() {
            Ok(Kind::Host) => row(&mut self.hosts, stored),
            Ok(Kind::Project) => row(&mut self.projects, stored),
            Ok(Kind::Network) => row(&mut self.networks, stored),
            Ok(Kind::Volume) => row(&mut self.volumes, stored),
            Ok(Kind::Secret) => row(&mut self.secrets, stored),
            Ok(Kind::Image) => row(&mut self.images, stored),
            Ok(Kind::Token) => row(&mut self.tokens, stored),
            Ok(Kind::Operation) => row(&mut self.operations, stored),
            Ok(Kind::Cluster) => row(&mut self.clusters, stored),
            Ok(Kind::Job) => row(&mut self.jobs, stored),
            Ok(Kind::Instance) => {
                let new = Row::<InstanceSpec>::decode(&stored.value, stored.mod_revision)?;
                let at = new.at();
                if let Some(old) = self.instances.at(&at) {
                    self.by_uid.remove(&old.object.uid.clone());
                }
                self.by_uid.insert(new.object.uid.clone(), at.clone());
                self.instances.put(at, new);
                Ok(())
            }
            // A kind of a newer version: not ours to read.
            Ok(Kind::Event) | Err(_) => Ok(()),
        }
    }

    fn put_status(&mut self, object: &ObjectRef, stored: &KeyValue) -> Result<(), String> {
        let at = place(object);
        match object.kind.parse::<Kind>() {
            Ok(Kind::Host) => {
                self.host_status.insert(object.name.clone(), Arc::new(decode(stored)?));
            }
            Ok(Kind::Instance) => {
                self.instance_status.insert(at, Arc::new(decode(stored)?));
            }
            Ok(Kind::Volume) => {
                self.volume_status.insert(at, Arc::new(decode(stored)?));
            }
            Ok(Kind::Operation) => {
                self.operation_status.insert(object.name.clone(), Arc::new(written(stored)?));
            }
            Ok(Kind::Cluster) => {
                self.cluster_status.insert(at, Arc::new(written(stored)?));
            }
            Ok(Kind::Job) => {
                self.job_status.insert(at, Arc::new(written(stored)?));
            }
            _ => {}
        }
        Ok(())
    }

    fn delete(&mut self, key: &Key) {
        match key {
            Key::Spec(object) => self.delete_spec(object),
            Key::Status(object) => {
                let at = place(object);
                match object.kind.parse::<Kind>() {
                    Ok(Kind::Host) => drop(self.host_status.remove(&object.name)),
                    Ok(Kind::Instance) => drop(self.instance_status.remove(&at)),
                    Ok(Kind::Volume) => drop(self.volume_status.remove(&at)),
                    Ok(Kind::Operation) => drop(self.operation_status.remove(&object.name)),
                    Ok(Kind::Cluster) => drop(self.cluster_status.remove(&at)),
                    Ok(Kind::Job) => drop(self.job_status.remove(&at)),
                    _ => {}
                }
            }
            Key::Assignment { project, name } => self.unassign(&(project.clone(), name.clone())),
            Key::Address { project, network, address } => {
                self.addresses.remove(&(project.clone(), network.clone(), *address));
            }
            Key::Tombstone { uid } => {
                self.tombstones.remove(uid);
                self.open_tombstones.remove(uid);
            }
            Key::Segment { .. } | Key::Quota { .. } => drop(self.guards.remove(&key.to_string())),
            Key::Election { .. } => self.leader = None,
            Key::Server { name } => drop(self.servers.remove(name)),
            Key::Scale { .. } => {}
        }
    }

    fn delete_spec(&mut self, object: &ObjectRef) {
        let at = place(object);
        match object.kind.parse::<Kind>() {
            Ok(Kind::Host) => self.hosts.remove(&at),
            Ok(Kind::Project) => self.projects.remove(&at),
            Ok(Kind::Network) => self.networks.remove(&at),
            Ok(Kind::Volume) => self.volumes.remove(&at),
            Ok(Kind::Secret) => self.secrets.remove(&at),
            Ok(Kind::Token) => self.tokens.remove(&at),
            Ok(Kind::Operation) => self.operations.remove(&at),
            Ok(Kind::Cluster) => self.clusters.remove(&at),
            Ok(Kind::Job) => self.jobs.remove(&at),
            Ok(Kind::Image) => self.images.remove(&at),
            Ok(Kind::Instance) => {
                if let Some(row) = self.instances.at(&at) {
                    self.by_uid.remove(&row.object.uid.clone());
                }
                self.instances.remove(&at);
            }
            Ok(Kind::Event) | Err(_) => {}
        }
    }

    /// Binds as the leader's plan would: the store's echo does the same.
    pub(crate) fn assign(&mut self, at: At, placed: Placed) {
        let host = placed.assignment.host.clone();
        let mut sum = self.granted.get(&host).copied().unwrap_or_default();
        add(&mut sum, &placed.assignment);
        self.granted.insert(host.clone(), sum);
        let mut instances = self.by_host.get(&host).cloned().unwrap_or_default();
        instances.insert(at.clone());
        self.by_host.insert(host, instances);
        self.assignments.insert(at, Arc::new(placed));
    }

    pub(crate) fn unassign(&mut self, at: &At) {
        let Some(old) = self.assignments.remove(at) else { return };
        let host = &old.assignment.host;
        if let Some(mut sum) = self.granted.get(host).copied() {
            subtract(&mut sum, &old.assignment);
            self.granted.insert(host.clone(), sum);
        }
        if let Some(mut instances) = self.by_host.get(host).cloned() {
            instances.remove(at);
            self.by_host.insert(host.clone(), instances);
        }
    }
}

fn row<S: Spec>(table: &mut Table<S>, stored: &KeyValue) -> Result<(), String> {
    let row = Row::decode(&stored.value, stored.mod_revision)?;
    table.put(at(&row.object), row);
    Ok(())
}

fn decode<T: DeserializeOwned>(stored: &KeyValue) -> Result<T, String> {
    serde_json::from_slice(&stored.value).map_err(|error| error.to_string())
}

fn written<S: DeserializeOwned>(stored: &KeyValue) -> Result<Written<S>, String> {
    Ok(Written { status: decode(stored)?, revision: stored.mod_revision })
}

fn place(object: &ObjectRef) -> At {
    (object.project.clone().unwrap_or_default(), object.name.clone())
}

fn add(sum: &mut Capacity, assignment: &Assignment) {
    let granted = &assignment.granted;
    sum.cpus = MilliCpu(sum.cpus.0 + granted.cpus.unwrap_or_default().0);
    sum.memory = Bytes(sum.memory.0 + granted.memory.unwrap_or_default().0);
    sum.pids += granted.pids.unwrap_or_default();
    sum.instances += 1;
}

fn subtract(sum: &mut Capacity, assignment: &Assignment) {
    let granted = &assignment.granted;
    sum.cpus = MilliCpu(sum.cpus.0.saturating_sub(granted.cpus.unwrap_or_default().0));
    sum.memory = Bytes(sum.memory.0.saturating_sub(granted.memory.unwrap_or_default().0));
    sum.pids = sum.pids.saturating_sub(granted.pids.unwrap_or_default());
    sum.instances = sum.instances.saturating_sub(1);
}

/// For tests of what reads snapshots: rows that no store has seen.
#[cfg(test)]
impl Snapshot {
    pub fn seed_host(&mut self, host: Object<HostSpec>, status: HostStatus) {
        self.host_status.insert(host.name.clone(), Arc::new(status));
        self.hosts.seed(host);
    }

    pub fn seed_instance(&mut self, instance: Object<InstanceSpec>) {
        self.by_uid.insert(instance.uid.clone(), at(&instance));
        self.instances.seed(instance);
    }

    pub fn seed_project(&mut self, project: Object<ProjectSpec>) {
        self.projects.seed(project);
    }

    pub fn seed_secret(&mut self, secret: Object<SecretSpec>) {
        self.secrets.seed(secret);
    }

    pub fn seed_network(&mut self, network: Object<NetworkSpec>) {
        self.networks.seed(network);
    }

    pub fn seed_image(&mut self, image: Object<ImageSpec>) {
        self.images.seed(image);
    }

    pub fn seed_operation(&mut self, name: &str, ended_at: Option<Timestamp>) {
        use enoki_api::operation::{OperationPhase, OperationVerb};
        let (verb, host) = (OperationVerb::Drain, "h1".to_owned());
        let spec = OperationSpec { verb, host, stop: false, cancelled: false };
        self.operations.seed(Object::new(None, name, Default::default(), spec, Timestamp::UNIX_EPOCH));
        let phase = if ended_at.is_some() { OperationPhase::Succeeded } else { OperationPhase::Running };
        let status = OperationStatus { phase, ended_at, ..OperationStatus::default() };
        self.operation_status.insert(name.to_owned(), Arc::new(Written { status, revision: 1 }));
    }

    pub fn seed_tombstone(&mut self, tombstone: Tombstone) {
        let uid = tombstone.uid.to_string();
        if tombstone.buried_at.is_none() {
            self.open_tombstones.insert(uid.clone());
        }
        self.tombstones.insert(uid, Arc::new((tombstone, 1)));
    }

    pub fn seed_volume(&mut self, volume: Object<VolumeSpec>) {
        self.volumes.seed(volume);
    }

    pub fn seed_cluster(&mut self, cluster: Object<ClusterSpec>) {
        self.clusters.seed(cluster);
    }

    pub fn seed_job(&mut self, job: Object<JobSpec>) {
        self.jobs.seed(job);
    }

    pub fn cordon(&mut self, host: &str) {
        if let Some(row) = self.hosts.get("", host) {
            let mut object = row.object.clone();
            object.spec.cordoned = true;
            self.hosts.seed(object);
        }
    }
}
