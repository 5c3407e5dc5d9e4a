//! The host: a machine with Docker and an agent.

use crate::object::{Faults, Kind, Object, Spec};
use crate::quantity::{Bytes, MilliCpu};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use utoipa::ToSchema;

pub type Host = Object<HostSpec>;

/// What an operator wants of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostSpec {
    /// Nothing new is placed here.
    #[serde(default)]
    pub cordoned: bool,
}

impl Spec for HostSpec {
    const KIND: Kind = Kind::Host;
    type Status = HostStatus;

    fn validate(&self, _faults: &mut Faults) {}
}

/// How a host stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostPhase {
    Ready,
    /// The agent answers, Docker does not (or not well).
    Degraded,
    /// No heartbeat for a few seconds; nothing is done about it.
    #[default]
    Unknown,
    /// No heartbeat for longer.
    Lost,
}

/// What a host can give, or has given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    #[serde(default)]
    pub cpus: MilliCpu,
    #[serde(default)]
    pub memory: Bytes,
    #[serde(default)]
    pub pids: u64,
    #[serde(default)]
    pub instances: u64,
}

/// What was observed of a host. `granted` and `last_seen_at` are computed on reading, never stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostStatus {
    pub phase: HostPhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default)]
    pub capacity: Capacity,
    #[serde(default)]
    pub granted: Capacity,
    /// Docker's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<String>,
    /// `v1` or `v2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Where other hosts reach it, for networks that span hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "ipv4")]
    pub address: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "date-time")]
    pub last_seen_at: Option<Timestamp>,
}
