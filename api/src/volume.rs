//! The volume: a folder that outlives the instances that mount it.

use crate::object::{Faults, Kind, Object, Spec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub type Volume = Object<VolumeSpec>;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeSpec {
    #[serde(rename = "type", default)]
    pub kind: VolumeKind,
    /// Of a `shared` volume: a folder that is the same on every host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Where a volume's bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// On one host, under Enoki's own folder.
    #[default]
    Local,
    /// In a folder that every host has.
    Shared,
    #[serde(other)]
    Unknown,
}

impl Spec for VolumeSpec {
    const KIND: Kind = Kind::Volume;
    type Status = VolumeStatus;

    fn validate(&self, faults: &mut Faults) {
        match (self.kind, &self.path) {
            (VolumeKind::Local, Some(_)) => {
                faults.invalid("spec.path", "a local volume has no path of its own")
            }
            (VolumeKind::Shared, None) => faults.invalid("spec.path", "a shared volume names its folder"),
            (VolumeKind::Shared, Some(path)) => {
                let plain = path.starts_with('/')
                    && path.len() > 1
                    && !path.split('/').any(|p| p == "..")
                    && !path.contains([':', '\0']);
                if !plain {
                    faults.invalid("spec.path", format!("`{path}` is not a plain absolute path"));
                }
                let own = [
                    "/proc",
                    "/sys",
                    "/dev",
                    "/run",
                    "/etc",
                    "/var/lib/enoki",
                    "/var/lib/docker",
                    "/var/run",
                ];
                if own.iter().any(|top| path == top || path.starts_with(&format!("{top}/"))) {
                    faults.invalid("spec.path", format!("`{path}` belongs to the host itself"));
                }
            }
            (VolumeKind::Local, None) => {}
            (VolumeKind::Unknown, _) => faults.invalid("spec.type", "one of local, shared"),
        }
    }
}

/// Who uses a volume, and where its bytes are. Computed on reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeStatus {
    /// Of a local volume that was used: the host that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default)]
    pub used_by: Vec<String>,
}
