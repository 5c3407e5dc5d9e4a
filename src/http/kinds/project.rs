//! Projects: each comes with a `default` network.

use super::network;
use crate::auth::actor::Actor;
use crate::auth::quota;
use crate::http::App;
use crate::http::objects::{Deletion, Managed, key};
use crate::state::{Row, Snapshot, Table, encode_new};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::DEFAULT_NETWORK;
use enoki_api::network::{Egress, Gateway, NetworkKind, NetworkSpec};
use enoki_api::object::{Object, Uid};
use enoki_api::project::{DEFAULT, ProjectSpec};
use ipnet::Ipv4Net;
use jiff::Timestamp;

/// The size of the networks that the system makes.
const PREFIX: u8 = 24;

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
        super::refuse_used(row.place(), contents(snapshot, name))?;
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

/// The same in a store that was lost and made anew: hosts name their bridges after it, and what they still run on the
/// old one has to find itself on the new one when it is adopted.
fn lasting_uid(project: &str, cidr: Ipv4Net) -> Uid {
    let name = format!("{project}/{DEFAULT_NETWORK}/{cidr}");
    Uid::from(uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes()))
}

/// How the networks are that the system makes.
#[derive(Clone, Copy, Debug)]
pub struct SystemNetworks {
    /// Where they get their CIDRs.
    pub pool: Ipv4Net,
    /// Vxlan where the cloud may have many hosts, for instances without a word about networks reach each other.
    pub kind: NetworkKind,
}

/// Adds a project's `default` network: the next free range of the pool, a way out through the host.
pub fn with_default_network(
    SystemNetworks { pool, kind }: SystemNetworks,
    snapshot: &Snapshot,
    project: &str,
    txn: Txn,
) -> Result<Txn, Problem> {
    let ranges = pool.subnets(PREFIX.max(pool.prefix_len())).ok();
    let cidr = ranges.into_iter().flatten().find(|cidr| network::overlapping(snapshot, cidr).is_none());
    let cidr = cidr.ok_or_else(|| {
        Problem::new(Code::CidrTaken, format!("the pool {pool} has no free /{PREFIX} left"))
            .hint("delete a network or enlarge the pool")
    })?;
    let segment = network::segment_for(snapshot, kind)?;
    let spec = NetworkSpec { kind, cidr, gateway: Gateway::Host, egress: Egress::Nat, segment };
    let mut network = Object::new(Some(project), DEFAULT_NETWORK, Default::default(), spec, Timestamp::now());
    network.uid = lasting_uid(project, cidr);
    let spec_key = key(Key::spec("networks", Some(project), DEFAULT_NETWORK))?;
    let txn = network::claimed(snapshot, &network, network::guarded(snapshot, txn)?)?;
    Ok(txn.when_absent(spec_key.clone()).put(spec_key, encode_new(&network)))
}
