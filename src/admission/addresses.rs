//! Fixed addresses: each is a key that only one instance can make.

use super::key;
use super::object::json_of;
use crate::dispatch::Live;
use crate::state::{At, Snapshot};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::{AddressClaim, Instance, Mac};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Claims those that the instance names.
pub(super) fn claims(
    snapshot: &Snapshot,
    live: &Live,
    instance: &Instance,
    mut txn: Txn,
) -> Result<Txn, Problem> {
    let at: At = (instance.project.clone().unwrap_or_default(), instance.name.clone());
    let mut own = BTreeSet::new();
    for (nic, value) in &instance.spec.nics {
        let Some(address) = value.address else { continue };
        let field = format!("spec.nics.{nic}.address");
        let taken = |holder: String| {
            Problem::new(Code::AddressTaken, format!("{address} on network {} is taken", value.network))
                .field(&field)
                .holder(holder)
        };
        if !own.insert((value.network.clone(), address)) {
            return Err(taken(format!("{}/{}", at.0, at.1)));
        }
        let orphan = live.held_by_orphan(|orphan| {
            let nics = orphan.order.iter().flat_map(|order| order.assignment.nics.values());
            orphan.project == at.0
                && nics.into_iter().any(|n| n.network == value.network && n.address == address)
        });
        if let Some((host, orphan)) = orphan {
            return Err(taken(format!("the orphan {}/{} on host {host}", orphan.project, orphan.name)));
        }
        let address_key = key(Key::address(&at.0, &value.network, address.into()))?;
        let held = snapshot.addresses.get(&(at.0.clone(), value.network.clone(), IpAddr::from(address)));
        txn = match held {
            None => txn.when_absent(address_key.clone()),
            // Hold-down is against automatic use only: the same project may name the address at once.
            Some(entry) if entry.0.held_until.is_some() => txn.when_unchanged(address_key.clone(), entry.1),
            Some(entry) => return Err(taken(entry.0.instance.clone())),
        };
        let claim = AddressClaim {
            instance: format!("{}/{}", at.0, at.1),
            uid: instance.uid.clone(),
            mac: value.mac.unwrap_or_else(|| Mac::derive(&instance.uid, nic)),
            since: Timestamp::now(),
            held_until: None,
        };
        txn = txn.put(address_key, json_of(&claim)?);
    }
    Ok(txn)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{compares, shop, web, writes};
    use super::*;
    use crate::store::Compare;
    use enoki_api::object::Uid;
    use enoki_api::protocol::Orphan;
    use serde_json::json;
    use std::sync::Arc;

    const KEY: &str = "/enoki/v1/addresses/shop/blue/198.18.100.9";

    fn fixed() -> Instance {
        let fixed = json!({"network": "blue", "address": "198.18.100.9"});
        web(json!({"nics": {"eth0": fixed, "eth1": {"network": "blue"}}}))
    }

    fn hold(snapshot: &mut Snapshot, held_until: Option<Timestamp>) {
        let (uid, since) = (Uid::random(), Timestamp::UNIX_EPOCH);
        let mac = Mac::derive(&uid, "eth0");
        let claim = AddressClaim { instance: "shop/db1".into(), uid, mac, since, held_until };
        let at = ("shop".to_owned(), "blue".to_owned(), IpAddr::from([198, 18, 100, 9]));
        snapshot.addresses.insert(at, Arc::new((claim, 4)));
    }

    #[test]
    fn an_address_that_is_named_is_a_key_of_its_own() {
        let (mut snapshot, live) = (shop(json!({})), Live::default());
        let txn = claims(&snapshot, &live, &fixed(), Txn::new()).unwrap();
        assert_eq!(writes(&txn), ["+addresses/shop/blue/198.18.100.9"], "the others come with a host");
        assert!(compares(&txn, Compare::Absent(KEY.into())), "{txn:?}");
        hold(&mut snapshot, Some(Timestamp::MAX));
        let txn = claims(&snapshot, &live, &fixed(), Txn::new()).unwrap();
        assert!(compares(&txn, Compare::ModRevision(KEY.into(), 4)), "hold-down is no hindrance: {txn:?}");
        hold(&mut snapshot, None);
        let refused = claims(&snapshot, &live, &fixed(), Txn::new()).unwrap_err();
        assert_eq!((refused.code, refused.holder.as_deref()), (Code::AddressTaken, Some("shop/db1")));
        let mut twice = fixed();
        twice.spec.nics.get_mut("eth1").unwrap().address = twice.spec.nics["eth0"].address;
        let refused = claims(&shop(json!({})), &live, &twice, Txn::new()).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("spec.nics.eth1.address"));
        assert_eq!(refused.holder.as_deref(), Some("shop/web1"));
    }

    #[test]
    fn an_orphan_holds_its_addresses() {
        let orphan = |project: &str| -> Orphan {
            let mut instance = fixed();
            (instance.uid, instance.name) = (Uid::random(), "lost".into());
            let mac = Mac::derive(&instance.uid, "eth0");
            let assignment = json!({
                "uid": instance.uid, "host": "h1", "epoch": 1, "generation": 1, "granted": {},
                "nics": {"eth0": {"network": "blue", "address": "198.18.100.9", "mac": mac}},
            });
            let order = json!({"instance": instance, "assignment": assignment, "disk": Uid::random()});
            let uid = &instance.uid;
            let orphan =
                json!({"order": order, "project": project, "name": "lost", "uid": uid, "phase": "running"});
            serde_json::from_value(orphan).unwrap()
        };
        let live = Live::default();
        live.seed_orphans("h1", vec![orphan("other")]);
        assert!(claims(&shop(json!({})), &live, &fixed(), Txn::new()).is_ok(), "on another network");
        live.seed_orphans("h2", vec![orphan("shop")]);
        let refused = claims(&shop(json!({})), &live, &fixed(), Txn::new()).unwrap_err();
        assert_eq!(refused.holder.as_deref(), Some("the orphan shop/lost on host h2"));
    }
}
