//! Networks: no two ranges overlap, no two have one segment, none goes while an instance is on it.

use crate::auth::quota::Asked;
use crate::http::objects::{Deletion, Managed, key};
use crate::http::{App, quota};
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::network::{
    FIRST_SEGMENT, Gateway, LAST_SEGMENT, Network, NetworkKind, NetworkSpec, NetworkStatus,
};
use enoki_api::object::Object;
use ipnet::Ipv4Net;
use jiff::Timestamp;

/// Every write of a network compares and writes this key: that no two ranges overlap cannot be said by a key each.
const GUARD: (&str, u32) = ("guard", 0);
/// The type in the keys of vxlan segments.
const VXLAN: &str = "vxlan";

impl Managed for NetworkSpec {
    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.networks
    }

    fn present(_app: &App, snapshot: &Snapshot, network: &mut Object<Self>) {
        let project = network.project.as_deref().unwrap_or_default();
        let spec = &network.spec;
        let gateway = u64::from(spec.gateway_address().is_some());
        let hosts = (1u64 << (32 - spec.cidr.prefix_len())).saturating_sub(2);
        let now = Timestamp::now();
        let used = snapshot.claims(project, &network.name).filter(|(_, entry)| snapshot.holds(&entry.0, now));
        network.status =
            NetworkStatus { addresses: hosts.saturating_sub(gateway), used: used.count() as u64 };
    }

    fn for_admins(old: Option<&Self>, new: &Self) -> Option<&'static str> {
        match old {
            // All of it is immutable: what is there was allowed.
            Some(_) => None,
            None if new.kind == NetworkKind::Vlan => Some("spec.type"),
            None if new.gateway == Gateway::Host => Some("spec.gateway"),
            None if new.segment.is_some() => Some("spec.segment"),
            None => None,
        }
    }

    fn create(_app: &App, snapshot: &Snapshot, network: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        if let Some(other) = overlapping(snapshot, &network.spec.cidr) {
            let detail = format!("{} overlaps {} of {}", network.spec.cidr, other.spec.cidr, other.key());
            return Err(Problem::new(Code::CidrTaken, detail)
                .field("spec.cidr")
                .holder(other.key().to_string()));
        }
        if network.spec.segment.is_none() {
            network.spec.segment = segment_for(snapshot, network.spec.kind)?;
        }
        let project = network.project.as_deref().unwrap_or_default();
        let txn = quota::within(snapshot, project, Asked::Network, txn)?;
        claimed(snapshot, network, guarded(snapshot, txn)?)
    }

    fn update(
        _app: &App,
        _snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
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

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        super::refuse_used(row.place(), users(snapshot, &row.object))?;
        Ok((gone(snapshot, &row.object, txn)?, Deletion::Done))
    }
}

/// The network whose range shares an address with `cidr`.
pub fn overlapping<'a>(snapshot: &'a Snapshot, cidr: &Ipv4Net) -> Option<&'a Network> {
    let overlaps = |other: &Ipv4Net| other.contains(&cidr.network()) || cidr.contains(&other.network());
    snapshot.networks.of(None).map(|row| &row.object).find(|network| overlaps(&network.spec.cidr))
}

/// Claims the network's segment. A problem names who has it.
pub fn claimed(snapshot: &Snapshot, network: &Network, txn: Txn) -> Result<Txn, Problem> {
    let Some(segment) = network.spec.segment else { return Ok(txn) };
    let claim = key(Key::segment(VXLAN, segment))?;
    if snapshot.guards.contains_key(&claim) {
        let has = |other: &&Network| other.spec.segment == Some(segment);
        let holder = snapshot.networks.of(None).map(|row| &row.object).find(has);
        let holder = holder.map_or_else(|| claim.clone(), |other| other.key().to_string());
        return Err(Problem::new(Code::SegmentTaken, format!("segment {segment} is that of {holder}"))
            .field("spec.segment")
            .holder(holder)
            .hint("choose another, or leave it out"));
    }
    let value = serde_json::json!({"network": network.key().to_string(), "uid": network.uid});
    Ok(txn.when_absent(claim.clone()).put(claim, value.to_string()))
}

/// The segment of a new network that names none. None: this kind has no number.
pub fn segment_for(snapshot: &Snapshot, kind: NetworkKind) -> Result<Option<u32>, Problem> {
    match kind {
        NetworkKind::Vxlan => free_segment(snapshot).map(Some),
        NetworkKind::Local | NetworkKind::Vlan | NetworkKind::Unknown => Ok(None),
    }
}

/// The lowest number that no network has.
fn free_segment(snapshot: &Snapshot) -> Result<u32, Problem> {
    for segment in FIRST_SEGMENT..=LAST_SEGMENT {
        if !snapshot.guards.contains_key(&key(Key::segment(VXLAN, segment))?) {
            return Ok(segment);
        }
    }
    Err(Problem::new(Code::SegmentTaken, "all segments are taken").hint("delete a network"))
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

fn users(snapshot: &Snapshot, network: &Network) -> Vec<String> {
    let instances = snapshot.instances.of(network.project.as_deref());
    let on_it = instances.filter(|row| row.object.spec.nics.values().any(|nic| nic.network == network.name));
    on_it.map(|row| row.place().to_string()).collect()
}

/// A network goes with the addresses that are only held down on it.
pub fn gone(snapshot: &Snapshot, network: &Network, txn: Txn) -> Result<Txn, Problem> {
    let project = network.project.as_deref().unwrap_or_default();
    let mut txn = guarded(snapshot, txn)?;
    if let Some(segment) = network.spec.segment {
        txn = txn.delete(key(Key::segment(VXLAN, segment))?);
    }
    // A transaction has room for these; what is beyond expires by itself.
    for (address, _) in snapshot.claims(project, &network.name).take(64) {
        txn = txn.delete(key(Key::address(project, &network.name, address))?);
    }
    Ok(txn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::object::Uid;

    fn network(name: &str, segment: Option<u32>) -> Network {
        let spec = serde_json::json!({"cidr": "198.18.100.0/24", "type": "vxlan", "segment": segment});
        let spec = serde_json::from_value(spec).unwrap();
        Object::new(Some("default"), name, Default::default(), spec, Timestamp::UNIX_EPOCH)
    }

    fn taken(snapshot: &mut Snapshot, segment: u32) {
        snapshot.guards.insert(Key::segment(VXLAN, segment).unwrap().to_string(), 1);
    }

    #[test]
    fn a_segment_has_one_network() {
        let mut snapshot = Snapshot::default();
        assert_eq!(free_segment(&snapshot).unwrap(), FIRST_SEGMENT);
        for segment in [4096, 4097, 4099] {
            taken(&mut snapshot, segment);
        }
        assert_eq!(free_segment(&snapshot).unwrap(), 4098, "the lowest that is free");
        let mut blue = network("blue", Some(4096));
        blue.uid = Uid::random();
        snapshot.seed_network(blue);
        let refused = claimed(&snapshot, &network("red", Some(4096)), Txn::new()).unwrap_err();
        assert_eq!(
            (refused.code, refused.holder.as_deref()),
            (Code::SegmentTaken, Some("network default/blue"))
        );
        // Also where the one that has it does not decode.
        let refused = claimed(&snapshot, &network("red", Some(4097)), Txn::new()).unwrap_err();
        assert_eq!(refused.holder.as_deref(), Some("/enoki/v1/segments/vxlan/4097"));
        let txn = claimed(&snapshot, &network("red", Some(7)), Txn::new()).unwrap();
        assert!(format!("{txn:?}").contains("/enoki/v1/segments/vxlan/7"), "{txn:?}");
        let local = claimed(&snapshot, &network("home", None), Txn::new()).unwrap();
        assert!(!format!("{local:?}").contains("segments"), "{local:?}");
    }
}
