//! PURE: a snapshot -> what one host has to do.

use super::prepull;
use crate::auth::seal::Sealer;
use crate::registry::files::Wanted;
use crate::state::{At, Row, Snapshot};
use enoki_api::image::{ImageSpec, Imported};
use enoki_api::instance::{EnvValue, InstanceSpec, Tombstone, disk_uid};
use enoki_api::object::Kind;
use enoki_api::project;
use enoki_api::protocol::Order;
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
    let imported = imported(snapshot, project, &instance.spec);
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
        current: imported.is_some() && imported == resolve(snapshot, project, &spec.image),
        imported,
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

/// The imported image that an instance starts from: as it was resolved when it was made. One that was made before its
/// image was imported takes what the name means now.
fn imported(snapshot: &Snapshot, project: &str, spec: &InstanceSpec) -> Option<Imported> {
    spec.resolved.clone().or_else(|| resolve(snapshot, project, &spec.image))
}

/// What an image's name means now.
pub fn resolve(snapshot: &Snapshot, project: &str, image: &str) -> Option<Imported> {
    image_of(snapshot, project, image)?.object.spec.imported()
}

/// The imported image of this name: the project's own, else the default project's.
pub fn image_of<'a>(snapshot: &'a Snapshot, project: &str, image: &str) -> Option<&'a Row<ImageSpec>> {
    let row = snapshot.images.get(project, image).or_else(|| snapshot.images.get(project::DEFAULT, image));
    row.map(|row| &**row)
}

/// Whether `host` needs the image with this digest: an instance of its own starts from it, or it is to have it
/// beforehand.
pub fn needs(snapshot: &Snapshot, host: &str, digest: &str) -> bool {
    let here = snapshot.by_host.get(host);
    let mut images = here
        .into_iter()
        .flatten()
        .filter_map(|at| imported(snapshot, &at.0, &snapshot.instances.at(at)?.object.spec));
    images.any(|imported| imported.digest == digest)
        || prepull::all(snapshot, host).iter().any(|image| image.imported.digest == digest)
}

/// Whether an instance of `host` names this file of its project.
pub fn needs_file(snapshot: &Snapshot, host: &str, file: &Wanted) -> bool {
    let here = snapshot.by_host.get(host).into_iter().flatten().filter(|at| at.0 == file.project);
    let mut instances = here.filter_map(|at| snapshot.instances.at(at));
    instances.any(|row| row.object.spec.files.values().any(|own| own.digest == file.digest))
}

/// The tombstones that `host` has still to act on.
pub fn tombstones(snapshot: &Snapshot, host: &str) -> Vec<Tombstone> {
    let open = snapshot.open_tombstones().map(|entry| &entry.0);
    open.filter(|tombstone| tombstone.host.as_deref() == Some(host)).cloned().collect()
}
