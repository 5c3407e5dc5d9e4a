//! What an instance names: networks, volumes and secrets of its project.

use super::key;
use crate::state::{Row, Snapshot};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::{EnvValue, Instance, SecretKey, usable};
use enoki_api::network::NetworkSpec;
use enoki_api::volume::VolumeSpec;
use std::collections::BTreeSet;

/// What it names must exist and stay until the write.
pub(super) fn references(snapshot: &Snapshot, instance: &Instance, mut txn: Txn) -> Result<Txn, Problem> {
    let project = instance.project.as_deref().unwrap_or_default();
    let spec = &instance.spec;
    let mut needed = BTreeSet::new();
    for (nic, value) in &spec.nics {
        let row = network(snapshot, project, &format!("spec.nics.{nic}.network"), &value.network)?;
        if let Some(address) = value.address {
            let network = &row.object.spec;
            usable(&network.cidr, address, network.gateway_address())
                .map_err(|problem| problem.field(format!("spec.nics.{nic}.address")))?;
        }
        needed.insert(key(Key::spec("networks", Some(project), &value.network))?);
    }
    for (path, mount) in &spec.mounts {
        volume(snapshot, project, &format!("spec.mounts.{path}.volume"), &mount.volume)?;
        needed.insert(key(Key::spec("volumes", Some(project), &mount.volume))?);
    }
    for (name, value) in &spec.env {
        let EnvValue::Secret(from) = value else { continue };
        secret(snapshot, project, &format!("spec.env.{name}"), from)?;
    }
    for key in needed {
        txn = txn.when_present(key);
    }
    Ok(txn)
}

fn unknown(project: &str, field: String, what: &str, name: &str) -> Problem {
    Problem::new(Code::UnknownReference, format!("there is no {what} {name} in project {project}"))
        .field(field)
}

/// The network that `field` names. One that is being deleted is none.
pub fn network<'a>(
    snapshot: &'a Snapshot,
    project: &str,
    field: &str,
    name: &str,
) -> Result<&'a Row<NetworkSpec>, Problem> {
    let row = snapshot.networks.get(project, name).filter(|row| row.object.deleted_at.is_none());
    row.map(|row| &**row).ok_or_else(|| unknown(project, field.to_owned(), "network", name))
}

/// The volume that `field` names. One that is being deleted is none.
pub fn volume<'a>(
    snapshot: &'a Snapshot,
    project: &str,
    field: &str,
    name: &str,
) -> Result<&'a Row<VolumeSpec>, Problem> {
    let row = snapshot.volumes.get(project, name).filter(|row| row.object.deleted_at.is_none());
    row.map(|row| &**row).ok_or_else(|| unknown(project, field.to_owned(), "volume", name))
}

/// Makes sure of the secret, and of its key, that `field.secret` and `field.key` name.
pub fn secret(snapshot: &Snapshot, project: &str, field: &str, from: &SecretKey) -> Result<(), Problem> {
    let row = snapshot.secrets.get(project, &from.secret);
    let row = row.ok_or_else(|| unknown(project, format!("{field}.secret"), "secret", &from.secret))?;
    if row.object.spec.data.contains_key(&from.key) {
        return Ok(());
    }
    Err(unknown(project, format!("{field}.key"), &format!("key in secret {}:", from.secret), &from.key))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{object, shop, web};
    use super::*;
    use crate::store::Compare;
    use jiff::Timestamp;
    use serde_json::json;

    #[test]
    fn networks_and_volumes_stay_until_the_write() {
        let all = json!({
            "nics": {"eth0": {"network": "blue"}, "eth1": {"network": "blue", "address": "198.18.100.9"}},
            "mounts": {"/data": {"volume": "data"}},
            "env": {"A": "plain", "B": {"secret": "keys", "key": "k"}},
        });
        let txn = references(&shop(json!({})), &web(all), Txn::new()).unwrap();
        let present = |what: &str| Compare::Present(format!("/enoki/v1/{what}"));
        assert_eq!(txn.compares, [present("networks/shop/blue"), present("volumes/shop/data")]);
        assert!(txn.ops.is_empty(), "{txn:?}");
    }

    #[test]
    fn what_is_not_there_is_told_by_its_field() {
        let mut snapshot = shop(json!({}));
        let mut red = object("red", json!({"cidr": "198.18.101.0/24"}));
        red.deleted_at = Some(Timestamp::UNIX_EPOCH);
        snapshot.seed_network(red);
        let nic = |network: &str, address: Option<&str>| json!({"nics": {"eth0": {"network": network, "address": address}}});
        let secret = |secret: &str, key: &str| json!({"env": {"A": {"secret": secret, "key": key}}});
        let mount = json!({"mounts": {"/data": {"volume": "none"}}});
        for (spec, code, field) in [
            (nic("green", None), Code::UnknownReference, "spec.nics.eth0.network"),
            (nic("red", None), Code::UnknownReference, "spec.nics.eth0.network"),
            (nic("blue", Some("198.18.101.9")), Code::AddressOutsideNetwork, "spec.nics.eth0.address"),
            (nic("blue", Some("198.18.100.1")), Code::AddressOutsideNetwork, "spec.nics.eth0.address"),
            (mount, Code::UnknownReference, "spec.mounts./data.volume"),
            (secret("none", "k"), Code::UnknownReference, "spec.env.A.secret"),
            (secret("keys", "none"), Code::UnknownReference, "spec.env.A.key"),
        ] {
            let refused = references(&snapshot, &web(spec), Txn::new()).unwrap_err();
            assert_eq!((refused.code, refused.field.as_deref()), (code, Some(field)), "{refused}");
        }
    }
}
