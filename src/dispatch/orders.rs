//! PURE: a snapshot -> what one host has to do.

use crate::auth::seal::Sealer;
use crate::state::{At, Snapshot};
use enoki_api::instance::{EnvValue, Tombstone, disk_uid};
use enoki_api::object::Kind;
use enoki_api::project;
use enoki_api::protocol::{Archive, Order};
use std::collections::BTreeMap;

/// Every order for `host`.
pub fn all(snapshot: &Snapshot, sealer: &Sealer, host: &str) -> Vec<Order> {
    let here = snapshot.by_host.get(host);
    here.into_iter().flatten().filter_map(|at| order(snapshot, sealer, at)).collect()
}

/// The order for one instance. None: it is not placed, or something it needs does not decode, or it is deleted: its
/// tombstone says all then, and an order that came after its host has acted on that would bring it back.
pub fn order(snapshot: &Snapshot, sealer: &Sealer, at: &At) -> Option<Order> {
    let placed = snapshot.assignments.get(at)?;
    let instance = &snapshot.instances.at(at)?.object;
    if placed.assignment.uid != instance.uid || instance.deleted_at.is_some() {
        return None;
    }
    let project = &at.0;
    let spec = &instance.spec;
    let networks = spec
        .nics
        .values()
        .filter_map(|nic| snapshot.networks.get(project, &nic.network))
        .map(|row| (row.object.name.clone(), row.object.clone()))
        .collect();
    let volumes = spec
        .mounts
        .values()
        .filter_map(|mount| snapshot.volumes.get(project, &mount.volume))
        .map(|row| (row.object.name.clone(), row.object.clone()))
        .collect();
    Some(Order {
        instance: instance.clone(),
        assignment: placed.assignment.clone(),
        disk: disk_uid(&instance.uid, spec.rebuild_count),
        networks,
        volumes,
        env: env(snapshot, sealer, at, &spec.env),
        archive: archive(snapshot, project, &spec.image),
    })
}

/// The environment with secrets filled in. A secret that is not there (any more) leaves its variable out.
fn env(
    snapshot: &Snapshot,
    sealer: &Sealer,
    at: &At,
    wanted: &BTreeMap<String, EnvValue>,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for (name, value) in wanted {
        match value {
            EnvValue::Plain(text) => drop(env.insert(name.clone(), text.clone())),
            EnvValue::Secret(from) => match opened(snapshot, sealer, &at.0, &from.secret, &from.key) {
                Some(text) => drop(env.insert(name.clone(), text)),
                None => {
                    tracing::warn!(instance = %format!("{}/{}", at.0, at.1), secret = from.secret, key = from.key, "the secret of a variable is missing")
                }
            },
        }
    }
    env
}

fn opened(snapshot: &Snapshot, sealer: &Sealer, project: &str, secret: &str, key: &str) -> Option<String> {
    let row = snapshot.secrets.get(project, secret)?;
    let sealed = row.object.spec.data.get(key)?;
    let opened = sealer.open(&sealed_at(project, secret, key), sealed).ok()?;
    String::from_utf8(opened).ok()
}

/// What a secret's value is bound to: it opens at no other place.
pub fn sealed_at(project: &str, secret: &str, key: &str) -> String {
    format!("{}/{project}/{secret}/{key}", Kind::Secret.plural())
}

/// The imported image of this name: the project's own, else the default project's.
fn archive(snapshot: &Snapshot, project: &str, image: &str) -> Option<Archive> {
    let row = snapshot.images.get(project, image).or_else(|| snapshot.images.get(project::DEFAULT, image))?;
    Some(Archive { image_id: row.object.spec.image_id.clone(), digest: row.object.spec.archive.clone() })
}

/// Whether an instance of `host` is made from the archive with this digest.
pub fn needs_archive(snapshot: &Snapshot, host: &str, digest: &str) -> bool {
    let here = snapshot.by_host.get(host);
    let images = here
        .into_iter()
        .flatten()
        .filter_map(|at| archive(snapshot, &at.0, &snapshot.instances.at(at)?.object.spec.image));
    images.into_iter().any(|archive| archive.digest == digest)
}

/// The tombstones that `host` has still to act on.
pub fn tombstones(snapshot: &Snapshot, host: &str) -> Vec<Tombstone> {
    let open = snapshot.open_tombstones().map(|entry| &entry.0);
    open.filter(|tombstone| tombstone.host.as_deref() == Some(host)).cloned().collect()
}
