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
    all
}
