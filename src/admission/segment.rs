//! Segments of networks that span hosts: each has one network, by a key of its own.

use super::key;
use crate::state::Snapshot;
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::network::{FIRST_SEGMENT, LAST_SEGMENT, Network, NetworkKind};

/// The type in the keys of vxlan segments.
const VXLAN: &str = "vxlan";

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
pub(super) fn segment_for(snapshot: &Snapshot, kind: NetworkKind) -> Result<Option<u32>, Problem> {
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

/// Gives the network's segment up with the network.
pub(super) fn released(network: &Network, txn: Txn) -> Result<Txn, Problem> {
    match network.spec.segment {
        Some(segment) => Ok(txn.delete(key(Key::segment(VXLAN, segment))?)),
        None => Ok(txn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::object::{Object, Uid};
    use jiff::Timestamp;

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
