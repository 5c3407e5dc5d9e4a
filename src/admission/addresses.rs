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
