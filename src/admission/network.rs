//! Networks: no two ranges overlap, no two have one segment, none goes while an instance is on it.

use super::segment::{claimed, released, segment_for};
use super::{Deletion, key, quota, refuse_used};
use crate::auth::quota::Asked;
use crate::state::{Row, Snapshot};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::network::{Network, NetworkSpec};
use ipnet::Ipv4Net;

/// Every write of a network compares and writes this key: that no two ranges overlap cannot be said by a key each.
const GUARD: (&str, u32) = ("guard", 0);

/// Takes the range, and the segment: the next free one where the network names none and is of a kind that has one.
pub fn create(snapshot: &Snapshot, network: &mut Network, txn: Txn) -> Result<Txn, Problem> {
    if let Some(other) = overlapping(snapshot, &network.spec.cidr) {
        let detail = format!("{} overlaps {} of {}", network.spec.cidr, other.spec.cidr, other.key());
        return Err(Problem::new(Code::CidrTaken, detail).field("spec.cidr").holder(other.key().to_string()));
    }
    if network.spec.segment.is_none() {
        network.spec.segment = segment_for(snapshot, network.spec.kind)?;
    }
    let project = network.project.as_deref().unwrap_or_default();
    let txn = quota::within(snapshot, project, Asked::Network, txn)?;
    claimed(snapshot, network, guarded(snapshot, txn)?)
}

/// Nothing of a network changes but its labels.
pub fn update(old: &Row<NetworkSpec>, new: &mut Network, txn: Txn) -> Result<Txn, Problem> {
    // Who leaves it out means the one that it has.
    if new.spec.kind == old.object.spec.kind && new.spec.segment.is_none() {
        new.spec.segment = old.object.spec.segment;
    }
    if old.object.spec != new.spec {
        return Err(Problem::new(
            Code::ImmutableField,
            "a network stays as it was made: instances hold its addresses",
        )
        .field("spec")
        .hint("make another network"));
    }
    Ok(txn)
}

pub fn delete(snapshot: &Snapshot, row: &Row<NetworkSpec>, txn: Txn) -> Result<(Txn, Deletion), Problem> {
    refuse_used(row.place(), users(snapshot, &row.object))?;
    Ok((gone(snapshot, &row.object, txn)?, Deletion::Done))
}

/// A network goes with the addresses that are only held down on it.
pub fn gone(snapshot: &Snapshot, network: &Network, txn: Txn) -> Result<Txn, Problem> {
    let project = network.project.as_deref().unwrap_or_default();
    let mut txn = released(network, guarded(snapshot, txn)?)?;
    // A transaction has room for these; what is beyond expires by itself.
    for (address, _) in snapshot.claims(project, &network.name).take(64) {
        txn = txn.delete(key(Key::address(project, &network.name, address))?);
    }
    Ok(txn)
}

fn users(snapshot: &Snapshot, network: &Network) -> Vec<String> {
    let instances = snapshot.instances.of(network.project.as_deref());
    let on_it = instances.filter(|row| row.object.spec.nics.values().any(|nic| nic.network == network.name));
    on_it.map(|row| row.place().to_string()).collect()
}

/// The network whose range shares an address with `cidr`.
pub fn overlapping<'a>(snapshot: &'a Snapshot, cidr: &Ipv4Net) -> Option<&'a Network> {
    let overlaps = |other: &Ipv4Net| other.contains(&cidr.network()) || cidr.contains(&other.network());
    snapshot.networks.of(None).map(|row| &row.object).find(|network| overlaps(&network.spec.cidr))
}

/// Makes sure that no other network was written since the snapshot.
pub fn guarded(snapshot: &Snapshot, txn: Txn) -> Result<Txn, Problem> {
    let guard = key(Key::segment(GUARD.0, GUARD.1))?;
    let txn = match snapshot.guards.get(&guard) {
        None => txn.when_absent(guard.clone()),
        Some(revision) => txn.when_unchanged(guard.clone(), *revision),
    };
    Ok(txn.put(guard, "{}"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{compares, object, shop, web, writes};
    use super::*;
    use crate::store::Compare;
    use enoki_api::instance::{AddressClaim, Mac};
    use enoki_api::object::Uid;
    use jiff::Timestamp;
    use serde_json::{Value, json};
    use std::net::IpAddr;
    use std::sync::Arc;

    fn named(name: &str, spec: Value) -> Network {
        object(name, spec)
    }

    fn vxlan(segment: Option<u32>) -> Network {
        named("blue", json!({"type": "vxlan", "cidr": "198.18.100.0/24", "segment": segment}))
    }

    #[test]
    fn no_two_ranges_overlap() {
        let snapshot = shop(json!({}));
        for cidr in ["198.18.100.128/25", "198.18.0.0/16", "198.18.100.0/24"] {
            let refused =
                create(&snapshot, &mut named("red", json!({"cidr": cidr})), Txn::new()).unwrap_err();
            assert_eq!(
                (refused.code, refused.holder.as_deref()),
                (Code::CidrTaken, Some("network shop/blue"))
            );
        }
        let mut red = named("red", json!({"cidr": "198.18.101.0/24"}));
        let txn = create(&snapshot, &mut red, Txn::new()).unwrap();
        assert!(compares(&txn, Compare::Absent("/enoki/v1/segments/guard/0".into())), "{txn:?}");
        assert_eq!((writes(&txn), red.spec.segment), (vec!["+segments/guard/0".to_owned()], None));
        let refused = create(&shop(json!({"networks": 1})), &mut red, Txn::new()).unwrap_err();
        assert_eq!(refused.code, Code::QuotaExceeded);
    }

    #[test]
    fn a_network_stays_as_it_was_made() {
        let mut snapshot = shop(json!({}));
        snapshot.seed_network(vxlan(Some(4096)));
        let row = snapshot.networks.get("shop", "blue").unwrap();
        let mut left_out = vxlan(None);
        assert!(update(row, &mut left_out, Txn::new()).is_ok());
        assert_eq!(left_out.spec.segment, Some(4096));
        let refused = update(row, &mut vxlan(Some(4097)), Txn::new()).unwrap_err();
        assert_eq!(refused.code, Code::ImmutableField);
    }

    #[test]
    fn a_network_goes_with_its_segment_and_what_is_held_on_it() {
        let mut snapshot = shop(json!({}));
        snapshot.seed_network(vxlan(Some(4096)));
        let (uid, since, held_until) = (Uid::random(), Timestamp::UNIX_EPOCH, Some(Timestamp::MAX));
        let mac = Mac::derive(&uid, "eth0");
        let claim = AddressClaim { instance: "shop/old".into(), uid, mac, since, held_until };
        let at = ("shop".to_owned(), "blue".to_owned(), IpAddr::from([198, 18, 100, 9]));
        snapshot.addresses.insert(at, Arc::new((claim, 4)));
        let row = snapshot.networks.get("shop", "blue").unwrap().clone();
        let (txn, deletion) = delete(&snapshot, &row, Txn::new()).unwrap();
        assert_eq!(deletion, Deletion::Done);
        let wanted = ["+segments/guard/0", "-segments/vxlan/4096", "-addresses/shop/blue/198.18.100.9"];
        assert_eq!(writes(&txn), wanted);
        snapshot.seed_instance(web(json!({"nics": {"eth0": {"network": "blue"}}})));
        let refused = delete(&snapshot, &row, Txn::new()).unwrap_err();
        assert_eq!((refused.code, refused.holder.as_deref()), (Code::InUse, Some("instance shop/web1")));
    }
}
