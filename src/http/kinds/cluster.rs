//! Clusters: written down here, made and kept up by their controller.

use crate::admission::{Deletion, key, quota, references};
use crate::auth::quota::Asked;
use crate::dispatch::orders;
use crate::http::App;
use crate::http::objects::Managed;
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::cluster::{Cluster, ClusterPhase, ClusterSpec, NAME_MAX};
use enoki_api::error::{Code, Problem};
use enoki_api::object::{Object, check_name};

impl Managed for ClusterSpec {
    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.clusters
    }

    fn check_name(name: &str) -> Result<(), Problem> {
        check_name("name", name)?;
        if name.len() > NAME_MAX {
            let detail =
                format!("`{name}` has {} characters; a cluster's name at most {NAME_MAX}", name.len());
            return Err(Problem::invalid_field("name", detail).hint("its instances are called NAME-worker-N"));
        }
        Ok(())
    }

    fn present(_app: &App, snapshot: &Snapshot, cluster: &mut Object<Self>) {
        let at = (cluster.project.clone().unwrap_or_default(), cluster.name.clone());
        if let Some(stored) = snapshot.cluster_status.get(&at) {
            cluster.status = stored.status.status.clone();
        }
        let workers = &mut cluster.status.workers;
        (workers.min, workers.max) = (cluster.spec.workers.min, cluster.spec.workers.max);
        if cluster.deleted_at.is_some() {
            cluster.status.phase = ClusterPhase::Deleting;
        }
    }

    fn create(_app: &App, snapshot: &Snapshot, cluster: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        let txn = has_image(snapshot, cluster, txn)?;
        let txn = references(snapshot, cluster, txn)?;
        let project = cluster.project.as_deref().unwrap_or_default();
        quota::within(snapshot, project, Asked::Cluster, txn)
    }

    fn update(
        _app: &App,
        snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        match fixed(&old.object.spec, &new.spec) {
            None => references(snapshot, new, txn),
            Some(field) => {
                Err(Problem::new(Code::ImmutableField, format!("spec.{field} stays as the cluster was made"))
                    .field(format!("spec.{field}"))
                    .hint("make another cluster"))
            }
        }
    }

    fn delete(
        _app: &App,
        _snapshot: &Snapshot,
        _row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        Ok((txn, Deletion::Marked))
    }

    fn phase(cluster: &Object<Self>) -> Option<String> {
        let seen = cluster.status.observed_generation >= cluster.generation || cluster.deleted_at.is_some();
        Some(if seen { cluster.status.phase.to_string() } else { "unobserved".to_owned() })
    }
}

/// The version is one for which there is an image, and there is when this is written.
fn has_image(snapshot: &Snapshot, cluster: &Cluster, txn: Txn) -> Result<Txn, Problem> {
    let project = cluster.project.as_deref().unwrap_or_default();
    let name = cluster.spec.image();
    if let Some(image) = orders::image_of(snapshot, project, &name) {
        let own = key(Key::spec("images", image.object.project.as_deref(), &image.object.name))?;
        return Ok(txn.when_present(own));
    }
    let prefix = format!("enoki/{}:", cluster.spec.engine);
    let there = snapshot.images.iter().filter_map(|(_, row)| row.object.name.strip_prefix(&prefix));
    let there: Vec<&str> = there.collect();
    let hint = match there.is_empty() {
        true => format!(
            "an operator builds and imports the images of {0} with `make images-{0}`",
            cluster.spec.engine
        ),
        false => format!("there is {}", there.join(", ")),
    };
    let detail = format!("there is no image {name}, so no version {}", cluster.spec.version);
    Err(Problem::new(Code::UnknownReference, detail).field("spec.version").hint(hint))
}

/// The network, the volumes and the secret that it names exist, and do when this is written.
fn references(snapshot: &Snapshot, cluster: &Cluster, mut txn: Txn) -> Result<Txn, Problem> {
    let project = cluster.project.as_deref().unwrap_or_default();
    let spec = &cluster.spec;
    if let Some(network) = &spec.network {
        references::network(snapshot, project, "spec.network", network)?;
        txn = txn.when_present(key(Key::spec("networks", Some(project), network))?);
    }
    for (path, mount) in &spec.mounts {
        references::volume(snapshot, project, &format!("spec.mounts.{path}.volume"), &mount.volume)?;
        txn = txn.when_present(key(Key::spec("volumes", Some(project), &mount.volume))?);
    }
    if let Some(from) = &spec.spark_conf_secret {
        references::secret(snapshot, project, "spec.spark_conf_secret", from)?;
    }
    Ok(txn)
}

/// The first field that differs and must not: how its instances are. How many there are, and what decides that, may
/// change at any time.
fn fixed(old: &ClusterSpec, new: &ClusterSpec) -> Option<&'static str> {
    [
        ("engine", old.engine != new.engine),
        ("version", old.version != new.version),
        ("workers.cpus", old.workers.cpus != new.workers.cpus),
        ("workers.memory", old.workers.memory != new.workers.memory),
        ("master", old.master != new.master),
        ("network", old.network != new.network),
        ("disk_size", old.disk_size != new.disk_size),
        ("spark_conf", old.spark_conf != new.spark_conf),
        ("dask_conf", old.dask_conf != new.dask_conf),
        ("mounts", old.mounts != new.mounts),
        ("placement", old.placement != new.placement),
        ("priority", old.priority != new.priority),
    ]
    .into_iter()
    .find_map(|(field, differs)| differs.then_some(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::quantity::{Bytes, Span};

    #[test]
    fn the_pool_changes_and_its_workers_do_not() {
        let old: ClusterSpec = serde_json::from_value(serde_json::json!({"version": "4.0.1"})).unwrap();
        let mut new = old.clone();
        (new.workers.max, new.idle, new.scale_up_factor) = (9, Span(1), 0.5);
        assert_eq!(fixed(&old, &new), None);
        new.workers.memory = Bytes(9 << 30);
        assert_eq!(fixed(&old, &new), Some("workers.memory"));
    }
}
