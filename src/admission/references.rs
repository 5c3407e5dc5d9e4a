//! What an instance names: networks, volumes and secrets of its project.

use super::key;
use crate::state::Snapshot;
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::{EnvValue, Instance, usable};
use std::collections::BTreeSet;

/// What it names must exist and stay until the write.
pub(super) fn references(snapshot: &Snapshot, instance: &Instance, mut txn: Txn) -> Result<Txn, Problem> {
    let project = instance.project.as_deref().unwrap_or_default();
    let spec = &instance.spec;
    let unknown = |field: String, what: &str, name: &str| {
        Problem::new(Code::UnknownReference, format!("there is no {what} {name} in project {project}"))
            .field(field)
    };
    let mut needed = BTreeSet::new();
    for (nic, value) in &spec.nics {
        let row =
            snapshot.networks.get(project, &value.network).filter(|row| row.object.deleted_at.is_none());
        let row =
            row.ok_or_else(|| unknown(format!("spec.nics.{nic}.network"), "network", &value.network))?;
        if let Some(address) = value.address {
            let network = &row.object.spec;
            usable(&network.cidr, address, network.gateway_address())
                .map_err(|problem| problem.field(format!("spec.nics.{nic}.address")))?;
        }
        needed.insert(key(Key::spec("networks", Some(project), &value.network))?);
    }
    for (path, mount) in &spec.mounts {
        let row = snapshot.volumes.get(project, &mount.volume).filter(|row| row.object.deleted_at.is_none());
        row.ok_or_else(|| unknown(format!("spec.mounts.{path}.volume"), "volume", &mount.volume))?;
        needed.insert(key(Key::spec("volumes", Some(project), &mount.volume))?);
    }
    for (name, value) in &spec.env {
        let EnvValue::Secret(from) = value else { continue };
        let row = snapshot.secrets.get(project, &from.secret);
        let row = row.ok_or_else(|| unknown(format!("spec.env.{name}.secret"), "secret", &from.secret))?;
        if !row.object.spec.data.contains_key(&from.key) {
            return Err(unknown(
                format!("spec.env.{name}.key"),
                &format!("key in secret {}:", from.secret),
                &from.key,
            ));
        }
    }
    for key in needed {
        txn = txn.when_present(key);
    }
    Ok(txn)
}
