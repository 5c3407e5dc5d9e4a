//! The project: the tenant that owns networks, volumes, secrets, images, instances, clusters and jobs, and how much of them it may.

use crate::instance::InstanceSpec;
use crate::object::{Faults, Kind, Object, Spec};
use crate::quantity::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub type Project = Object<ProjectSpec>;

/// The project that exists from the start.
pub const DEFAULT: &str = "default";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProjectSpec {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Quota::is_empty")]
    pub quota: Quota,
}

/// How much a project's specs may ask for in sum, whether what they ask for runs or not. What is not set has no bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Quota {
    /// CPU time. With this set, an instance needs a limit of its own; so for memory, pids and disk_size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<MilliCpu>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Of root disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<u64>,
    /// The `default` one counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<u64>,
    /// What a cluster is made of counts as what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<u64>,
}

/// What a quota bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Cpus,
    Memory,
    Pids,
    DiskSize,
    Instances,
    Networks,
    Volumes,
    Clusters,
}

impl Resource {
    pub const ALL: [Resource; 8] = [
        Resource::Cpus,
        Resource::Memory,
        Resource::Pids,
        Resource::DiskSize,
        Resource::Instances,
        Resource::Networks,
        Resource::Volumes,
        Resource::Clusters,
    ];

    /// The field's name, in a quota and in a status.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Cpus => "cpus",
            Resource::Memory => "memory",
            Resource::Pids => "pids",
            Resource::DiskSize => "disk_size",
            Resource::Instances => "instances",
            Resource::Networks => "networks",
            Resource::Volumes => "volumes",
            Resource::Clusters => "clusters",
        }
    }

    /// An amount as it is written in JSON.
    pub fn print(self, amount: u64) -> String {
        match self {
            Resource::Cpus => MilliCpu(amount).to_string(),
            Resource::Memory | Resource::DiskSize => Bytes(amount).to_string(),
            Resource::Pids
            | Resource::Instances
            | Resource::Networks
            | Resource::Volumes
            | Resource::Clusters => amount.to_string(),
        }
    }

    /// Whether an instance has no limit on it. What is only counted is never without.
    pub fn unlimited(self, instance: &InstanceSpec) -> bool {
        match self {
            Resource::Cpus => instance.cpus.is_none(),
            Resource::Memory => instance.memory.is_none(),
            Resource::Pids => instance.pids.is_none(),
            Resource::DiskSize => instance.disk_size.is_none(),
            Resource::Instances | Resource::Networks | Resource::Volumes | Resource::Clusters => false,
        }
    }
}

impl Quota {
    /// The bound in the smallest unit. None: there is none.
    pub fn of(&self, resource: Resource) -> Option<u64> {
        match resource {
            Resource::Cpus => self.cpus.map(|cpus| cpus.0),
            Resource::Memory => self.memory.map(|bytes| bytes.0),
            Resource::Pids => self.pids,
            Resource::DiskSize => self.disk_size.map(|bytes| bytes.0),
            Resource::Instances => self.instances,
            Resource::Networks => self.networks,
            Resource::Volumes => self.volumes,
            Resource::Clusters => self.clusters,
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Quota::default()
    }
}

impl Spec for ProjectSpec {
    const KIND: Kind = Kind::Project;
    type Status = ProjectStatus;

    fn validate(&self, faults: &mut Faults) {
        if self.description.len() > 1024 {
            faults.invalid("spec.description", "at most 1024 characters");
        }
    }
}

/// What a project's specs ask for in sum, those that are being deleted included. Computed on reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProjectStatus {
    #[serde(default)]
    pub instances: u64,
    #[serde(default)]
    pub networks: u64,
    #[serde(default)]
    pub volumes: u64,
    #[serde(default)]
    pub clusters: u64,
    /// Of the instances that have a limit; so for memory, pids and disk_size.
    #[serde(default)]
    pub cpus: MilliCpu,
    #[serde(default)]
    pub memory: Bytes,
    #[serde(default)]
    pub pids: u64,
    #[serde(default)]
    pub disk_size: Bytes,
}

impl ProjectStatus {
    /// The amount in the smallest unit.
    pub fn of(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Cpus => self.cpus.0,
            Resource::Memory => self.memory.0,
            Resource::Pids => self.pids,
            Resource::DiskSize => self.disk_size.0,
            Resource::Instances => self.instances,
            Resource::Networks => self.networks,
            Resource::Volumes => self.volumes,
            Resource::Clusters => self.clusters,
        }
    }

    /// Counts an instance in, with what it asks for.
    pub fn add(&mut self, instance: &InstanceSpec) {
        self.instances += 1;
        self.cpus = MilliCpu(self.cpus.0.saturating_add(instance.cpus.unwrap_or_default().0));
        self.memory = Bytes(self.memory.0.saturating_add(instance.memory.unwrap_or_default().0));
        self.pids = self.pids.saturating_add(instance.pids.unwrap_or_default());
        self.disk_size = Bytes(self.disk_size.0.saturating_add(instance.disk_size.unwrap_or_default().0));
    }

    /// What this is beyond `before`, each resource for itself.
    pub fn beyond(&self, before: &ProjectStatus) -> ProjectStatus {
        ProjectStatus {
            instances: self.instances.saturating_sub(before.instances),
            networks: self.networks.saturating_sub(before.networks),
            volumes: self.volumes.saturating_sub(before.volumes),
            clusters: self.clusters.saturating_sub(before.clusters),
            cpus: MilliCpu(self.cpus.0.saturating_sub(before.cpus.0)),
            memory: Bytes(self.memory.0.saturating_sub(before.memory.0)),
            pids: self.pids.saturating_sub(before.pids),
            disk_size: Bytes(self.disk_size.0.saturating_sub(before.disk_size.0)),
        }
    }
}
