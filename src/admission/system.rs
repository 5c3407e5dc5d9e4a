//! The networks that the system makes: a range of the pool, the host as gateway, a way out through it.

use super::network::{guarded, overlapping};
use super::segment::{claimed, segment_for};
use super::{key, made};
use crate::state::Snapshot;
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::DEFAULT_NETWORK;
use enoki_api::network::{Egress, Gateway, Network, NetworkKind, NetworkSpec};
use enoki_api::object::{Object, Uid};
use ipnet::Ipv4Net;
use jiff::Timestamp;

/// Their size.
const PREFIX: u8 = 24;

/// How the networks are that the system makes.
#[derive(Clone, Copy, Debug)]
pub struct SystemNetworks {
    /// Where they get their CIDRs.
    pub pool: Ipv4Net,
    /// Vxlan where the cloud may have many hosts, for instances without a word about networks reach each other.
    pub kind: NetworkKind,
}

/// A network of the system's, with the next free range of the pool. [`network::create`](super::network::create) takes
/// the range for it.
pub fn network(
    SystemNetworks { pool, kind }: SystemNetworks,
    snapshot: &Snapshot,
    project: &str,
    name: &str,
) -> Result<Network, Problem> {
    let ranges = pool.subnets(PREFIX.max(pool.prefix_len())).ok();
    let cidr = ranges.into_iter().flatten().find(|cidr| overlapping(snapshot, cidr).is_none());
    let cidr = cidr.ok_or_else(|| {
        Problem::new(Code::CidrTaken, format!("the pool {pool} has no free /{PREFIX} left"))
            .hint("delete a network or enlarge the pool")
    })?;
    let spec = NetworkSpec { kind, cidr, gateway: Gateway::Host, egress: Egress::Nat, segment: None };
    Ok(Object::new(Some(project), name, Default::default(), spec, Timestamp::now()))
}

/// Adds a project's `default` network to the making of the project: no quota keeps a project from having one.
pub fn with_default_network(
    networks: SystemNetworks,
    snapshot: &Snapshot,
    project: &str,
    txn: Txn,
) -> Result<Txn, Problem> {
    let mut network = network(networks, snapshot, project, DEFAULT_NETWORK)?;
    network.uid = lasting_uid(project, network.spec.cidr);
    network.spec.segment = segment_for(snapshot, network.spec.kind)?;
    let txn = claimed(snapshot, &network, guarded(snapshot, txn)?)?;
    made(&network, txn.when_absent(key(Key::spec("networks", Some(project), DEFAULT_NETWORK))?))
}

/// The same in a store that was lost and made anew: hosts name their bridges after it, and what they still run on the
/// old one has to find itself on the new one when it is adopted.
fn lasting_uid(project: &str, cidr: Ipv4Net) -> Uid {
    let name = format!("{project}/{DEFAULT_NETWORK}/{cidr}");
    Uid::from(uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{shop, writes};
    use super::*;
    use crate::store::Op;
    use serde_json::json;

    fn networks(pool: &str, kind: NetworkKind) -> SystemNetworks {
        SystemNetworks { pool: pool.parse().unwrap(), kind }
    }

    #[test]
    fn a_network_of_the_systems_gets_the_next_free_range() {
        let snapshot = shop(json!({}));
        let from = |pool| network(networks(pool, NetworkKind::Local), &snapshot, "shop", "lake");
        let lake = from("198.18.100.0/22").unwrap();
        let wanted = json!({"type": "local", "cidr": "198.18.101.0/24", "gateway": "host", "egress": "nat"});
        assert_eq!(serde_json::to_value(&lake.spec).unwrap(), wanted, "the first is that of network blue");
        assert_eq!(from("198.18.100.0/24").unwrap_err().code, Code::CidrTaken);
        assert_eq!(from("198.18.102.0/26").unwrap().spec.cidr, "198.18.102.0/26".parse().unwrap());
    }

    #[test]
    fn a_project_has_its_default_network_whatever_its_quota() {
        let snapshot = shop(json!({"networks": 0}));
        let made = |kind| {
            let networks = networks("198.19.0.0/16", kind);
            with_default_network(networks, &snapshot, "shop", Txn::new()).unwrap()
        };
        assert_eq!(writes(&made(NetworkKind::Local)), ["+segments/guard/0", "+networks/shop/default"]);
        let vxlan = made(NetworkKind::Vxlan);
        let wanted = ["+segments/guard/0", "+segments/vxlan/4096", "+networks/shop/default"];
        assert_eq!(writes(&vxlan), wanted);
        let uid = |txn: Txn| match txn.ops.last() {
            Some(Op::Put { value, .. }) => {
                serde_json::from_slice::<serde_json::Value>(value).unwrap()["uid"].clone()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(uid(vxlan), uid(made(NetworkKind::Vxlan)), "also in a store that was lost and made anew");
    }
}
