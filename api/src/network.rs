//! The network: one L2 segment that addresses are handed out from.

use crate::error::Problem;
use crate::object::{Faults, Kind, Object, Spec};
use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use utoipa::ToSchema;

pub type Network = Object<NetworkSpec>;

/// What a user wants of a network. All of it is immutable: instances hold addresses of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkSpec {
    #[serde(rename = "type", default)]
    pub kind: NetworkKind,
    #[schema(value_type = String, example = "198.18.100.0/24")]
    pub cidr: Ipv4Net,
    #[serde(default)]
    pub gateway: Gateway,
    #[serde(default)]
    pub egress: Egress,
    /// The number that tells the segment from others between hosts: of a `vxlan` network its VNI, 1 to 16777215.
    /// Default: the lowest free one from 4096 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 16777215)]
    pub segment: Option<u32>,
}

/// The lowest number that is given to a segment by itself; what is below is for those who choose.
pub const FIRST_SEGMENT: u32 = 4096;
/// The largest number of a segment: it has 24 bits.
pub const LAST_SEGMENT: u32 = (1 << 24) - 1;

/// How a segment spans hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// One bridge on one host.
    #[default]
    Local,
    /// A bridge on every host that has an instance on it, joined by tunnels between them.
    Vxlan,
    Vlan,
    /// A type of a newer version.
    #[serde(other)]
    Unknown,
}

/// Where traffic leaves the segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gateway {
    #[default]
    None,
    /// The instance's own host, at the first address of the CIDR.
    Host,
    /// A router of the user's on the segment.
    Address(Ipv4Addr),
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gateway::None => f.write_str("none"),
            Gateway::Host => f.write_str("host"),
            Gateway::Address(address) => write!(f, "{address}"),
        }
    }
}

impl FromStr for Gateway {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Gateway::None),
            "host" => Ok(Gateway::Host),
            _ => text
                .parse()
                .map(Gateway::Address)
                .map_err(|_| format!("`{text}` is not none, host or an address")),
        }
    }
}

impl Serialize for Gateway {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Gateway {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl utoipa::PartialSchema for Gateway {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}

impl ToSchema for Gateway {}

/// What leaves through a host gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    #[default]
    None,
    /// Forwarded with the instance's own address.
    Routed,
    /// Forwarded with the host's address.
    Nat,
    #[serde(other)]
    Unknown,
}

impl NetworkSpec {
    /// The address instances route through. None: nothing leaves the segment.
    pub fn gateway_address(&self) -> Option<Ipv4Addr> {
        match self.gateway {
            Gateway::None => None,
            Gateway::Host => self.cidr.hosts().next(),
            Gateway::Address(address) => Some(address),
        }
    }
}

impl Spec for NetworkSpec {
    const KIND: Kind = Kind::Network;
    type Status = NetworkStatus;

    fn validate(&self, faults: &mut Faults) {
        match (self.kind, self.segment) {
            (NetworkKind::Local, None) | (NetworkKind::Vxlan, None) => {}
            (NetworkKind::Vxlan, Some(segment)) if (1..=LAST_SEGMENT).contains(&segment) => {}
            (NetworkKind::Vxlan, Some(_)) => {
                faults.invalid("spec.segment", format!("a number from 1 to {LAST_SEGMENT}"));
            }
            (NetworkKind::Local, Some(_)) => {
                faults.invalid("spec.segment", "a `local` network stays on its host and has no number");
            }
            (NetworkKind::Vlan, _) => faults.push(
                Problem::invalid_field("spec.type", "`vlan` networks are not there yet")
                    .hint("a `vxlan` network spans hosts, too"),
            ),
            (NetworkKind::Unknown, _) => faults.invalid("spec.type", "one of local, vxlan, vlan"),
        }
        if self.cidr != self.cidr.trunc() {
            faults.push(
                Problem::invalid_field("spec.cidr", format!("{} has bits beyond its prefix", self.cidr))
                    .hint(format!("did you mean {}?", self.cidr.trunc())),
            );
        }
        if !(8..=30).contains(&self.cidr.prefix_len()) {
            faults.invalid("spec.cidr", "a prefix from /8 to /30");
        }
        let network = self.cidr.network();
        if network.is_loopback()
            || network.is_multicast()
            || network.is_link_local()
            || network.octets()[0] == 0
        {
            faults.invalid("spec.cidr", format!("{} is not a range for instances", self.cidr));
        }
        if let Gateway::Address(address) = self.gateway
            && !self.cidr.contains(&address)
        {
            faults.invalid("spec.gateway", format!("{address} is not in {}", self.cidr));
        }
        match self.egress {
            Egress::None => {}
            Egress::Routed | Egress::Nat if self.gateway != Gateway::Host => {
                faults.invalid("spec.egress", "traffic leaves through the host only with `gateway: host`");
            }
            Egress::Routed | Egress::Nat => {}
            Egress::Unknown => faults.invalid("spec.egress", "one of none, routed, nat"),
        }
    }
}

/// How full a network is. Computed on reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkStatus {
    /// Addresses that instances may have.
    #[serde(default)]
    pub addresses: u64,
    /// Addresses that instances have.
    #[serde(default)]
    pub used: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_checked() {
        for (json, field) in [
            (r#"{"cidr":"198.18.0.1/24"}"#, Some("spec.cidr")),
            (r#"{"cidr":"198.18.0.0/31"}"#, Some("spec.cidr")),
            (r#"{"cidr":"127.0.0.0/24"}"#, Some("spec.cidr")),
            (r#"{"cidr":"198.18.0.0/24","type":"vlan"}"#, Some("spec.type")),
            (r#"{"cidr":"198.18.0.0/24","type":"token_ring"}"#, Some("spec.type")),
            (r#"{"cidr":"198.18.0.0/24","type":"vxlan"}"#, None),
            (r#"{"cidr":"198.18.0.0/24","type":"vxlan","segment":16777215}"#, None),
            (r#"{"cidr":"198.18.0.0/24","type":"vxlan","segment":16777216}"#, Some("spec.segment")),
            (r#"{"cidr":"198.18.0.0/24","type":"vxlan","segment":0}"#, Some("spec.segment")),
            (r#"{"cidr":"198.18.0.0/24","segment":4096}"#, Some("spec.segment")),
            (r#"{"cidr":"198.18.0.0/24","gateway":"198.18.1.1"}"#, Some("spec.gateway")),
            (r#"{"cidr":"198.18.0.0/24","egress":"nat"}"#, Some("spec.egress")),
            (r#"{"cidr":"198.18.0.0/24","gateway":"host","egress":"nat"}"#, None),
        ] {
            let spec: NetworkSpec = serde_json::from_str(json).unwrap();
            let mut faults = Faults::default();
            spec.validate(&mut faults);
            assert_eq!(faults.into_result().err().and_then(|p| p.field).as_deref(), field, "{json}");
        }
    }

    #[test]
    fn the_hosts_gateway_is_the_first_address() {
        let spec: NetworkSpec = serde_json::from_str(r#"{"cidr":"198.18.0.0/24","gateway":"host"}"#).unwrap();
        assert_eq!(spec.gateway_address(), Some(Ipv4Addr::new(198, 18, 0, 1)));
    }
}
