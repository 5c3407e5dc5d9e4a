//! The project: the tenant that owns networks, volumes, secrets, images and instances.

use crate::object::{Faults, Kind, Object, Spec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub type Project = Object<ProjectSpec>;

/// The project that exists from the start.
pub const DEFAULT: &str = "default";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProjectSpec {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
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

/// What a project has. Computed on reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProjectStatus {
    #[serde(default)]
    pub instances: u64,
    #[serde(default)]
    pub networks: u64,
    #[serde(default)]
    pub volumes: u64,
}
