//! Projects: each comes with a `default` network.

use crate::admission::{Deletion, key, network, refuse_used, with_default_network};
use crate::auth::actor::Actor;
use crate::auth::quota;
use crate::http::App;
use crate::http::objects::Managed;
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::DEFAULT_NETWORK;
use enoki_api::object::Object;
use enoki_api::project::{DEFAULT, ProjectSpec};

impl Managed for ProjectSpec {
    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.projects
    }

    fn present(_app: &App, snapshot: &Snapshot, project: &mut Object<Self>) {
        project.status = quota::used(snapshot, &project.name);
    }

    fn visible(project: &Object<Self>, actor: &Actor) -> bool {
        actor.sees(&project.name)
    }

    fn create(app: &App, snapshot: &Snapshot, project: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        with_default_network(app.networks, snapshot, &project.name, txn)
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        let name = row.object.name.as_str();
        if name == DEFAULT {
            return Err(Problem::new(Code::InUse, "the default project stays").holder("the cloud itself"));
        }
        refuse_used(row.place(), contents(snapshot, name))?;
        let mut txn = txn.delete(key(Key::quota(name))?);
        for network in snapshot.networks.of(Some(name)) {
            txn = network::gone(snapshot, &network.object, txn)?;
            txn = txn.delete(key(Key::spec("networks", Some(name), &network.object.name))?);
        }
        Ok((txn, Deletion::Done))
    }
}

/// Everything in a project but its default network.
fn contents(snapshot: &Snapshot, project: &str) -> Vec<String> {
    let of = Some(project);
    let mut all: Vec<String> = snapshot.instances.of(of).map(|row| row.place().to_string()).collect();
    all.extend(snapshot.volumes.of(of).map(|row| row.place().to_string()));
    all.extend(snapshot.secrets.of(of).map(|row| row.place().to_string()));
    all.extend(snapshot.images.of(of).map(|row| row.place().to_string()));
    let networks = snapshot.networks.of(of).filter(|row| row.object.name != DEFAULT_NETWORK);
    all.extend(networks.map(|row| row.place().to_string()));
    all.extend(snapshot.clusters.of(of).map(|row| row.place().to_string()));
    all.extend(snapshot.jobs.of(of).map(|row| row.place().to_string()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::object::Spec;
    use jiff::Timestamp;
    use serde_json::{Value, json};

    fn of<S: Spec>(project: &str, name: &str, spec: Value) -> Object<S> {
        let spec = serde_json::from_value(spec).unwrap();
        Object::new(Some(project), name, Default::default(), spec, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn all_but_the_default_network_keeps_a_project() {
        let mut snapshot = Snapshot::default();
        for project in ["shop", "other"] {
            snapshot.seed_network(of(project, DEFAULT_NETWORK, json!({"cidr": "198.18.100.0/24"})));
        }
        assert_eq!(contents(&snapshot, "shop"), [""; 0]);
        for project in ["shop", "other"] {
            snapshot.seed_instance(of(project, "web1", json!({"image": "web:1"})));
            snapshot.seed_volume(of(project, "data", json!({})));
            snapshot.seed_secret(of(project, "keys", json!({"data": {}})));
            let image =
                json!({"image_id": "sha256:1", "digest": "sha256:2", "size": "1Mi", "source": "a file"});
            snapshot.seed_image(of(project, "web:1", image));
            snapshot.seed_network(of(project, "blue", json!({"cidr": "198.18.101.0/24"})));
            snapshot.seed_cluster(of(project, "lake", json!({"version": "4.0.1"})));
            let file = json!({"name": "a.py", "digest": "sha256:3", "size": 1});
            snapshot.seed_job(of(project, "job-1", json!({"cluster": "lake", "file": file})));
        }
        let all = [
            "instance shop/web1",
            "volume shop/data",
            "secret shop/keys",
            "image shop/web:1",
            "network shop/blue",
            "cluster shop/lake",
            "job shop/job-1",
        ];
        assert_eq!(contents(&snapshot, "shop"), all);
    }
}
