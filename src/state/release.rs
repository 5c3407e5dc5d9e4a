//! PURE: what an instance leaves behind when its spec goes: nothing but its addresses in hold-down.

use super::Snapshot;
use crate::store::keys::Key;
use crate::store::{Error, Txn};
use enoki_api::instance::{AddressClaim, Instance};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;

/// An address is held this long after its instance is gone, against automatic use.
pub const HOLD_DOWN: SignedDuration = SignedDuration::from_mins(5);

/// Adds to the deletion of an instance's spec that its status and assignment go and its addresses are held from `now`.
pub fn release(snapshot: &Snapshot, instance: &Instance, now: Timestamp, txn: Txn) -> Result<Txn, Error> {
    let project = instance.project.as_deref().unwrap_or_default();
    let mut txn = txn
        .delete(Key::status("instances", Some(project), &instance.name)?)
        .delete(Key::assignment(project, &instance.name)?);
    let networks: BTreeSet<_> = instance.spec.nics.values().map(|nic| &nic.network).collect();
    for network in networks {
        for (address, entry) in snapshot.claims(project, network).filter(|(_, e)| e.0.uid == instance.uid) {
            let held = AddressClaim { held_until: Some(now + HOLD_DOWN), ..entry.0.clone() };
            let value = serde_json::to_vec(&held).map_err(|error| Error::Invalid(error.to_string()))?;
            txn = txn.put(Key::address(project, network, address)?, value);
        }
    }
    Ok(txn)
}
