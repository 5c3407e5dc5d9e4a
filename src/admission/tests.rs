//! A project with one of everything, for the tests of each file; and writes as a controller makes them.

use super::{changed, complete, instance, made, network, removed, system, unchanged, vacant, volume};
use crate::dispatch::Live;
use crate::state::{Placed, Snapshot, encode_new};
use crate::store::{Compare, Op, Txn};
use enoki_api::host::{HostPhase, HostSpec, HostStatus};
use enoki_api::instance::{Assignment, Doomed, Instance, Tombstone};
use enoki_api::network::NetworkKind;
use enoki_api::object::{Kind, Object, Owner, Spec, Uid};
use enoki_api::project::ProjectSpec;
use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) const PROJECT: &str = "/enoki/v1/projects/shop";

/// An object of project `shop` as it is stored, at revision 5.
pub(super) fn object<S: Spec>(name: &str, spec: Value) -> Object<S> {
    let mut spec: S = serde_json::from_value(spec).unwrap();
    spec.fill(name);
    let mut object = Object::new(Some("shop"), name, Default::default(), spec, Timestamp::UNIX_EPOCH);
    object.revision = 5;
    object
}

/// Project `shop` at revision 3 with this quota, network `blue`, volume `data`, secret `keys`, image `web:1`.
pub(super) fn shop(quota: Value) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let spec: ProjectSpec = serde_json::from_value(json!({"quota": quota})).unwrap();
    let mut project = Object::new(None, "shop", Default::default(), spec, Timestamp::UNIX_EPOCH);
    project.revision = 3;
    snapshot.seed_project(project);
    snapshot.seed_network(object("blue", json!({"cidr": "198.18.100.0/24", "gateway": "host"})));
    snapshot.seed_volume(object("data", json!({"type": "local"})));
    snapshot.seed_secret(object("keys", json!({"data": {"k": "sealed"}})));
    let image = json!({"image_id": "sha256:1", "digest": "sha256:2", "size": "1Mi", "source": "a file"});
    snapshot.seed_image(object("web:1", image));
    snapshot
}

pub(super) fn web(spec: Value) -> Instance {
    let mut whole = json!({"image": "web:1", "nics": {}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    object("web1", whole)
}

/// Binds it to a host in this phase, at revision 9.
pub(super) fn place(snapshot: &mut Snapshot, instance: &Instance, host: &str, phase: HostPhase) {
    let spec = Object::new(None, host, Default::default(), HostSpec::default(), Timestamp::UNIX_EPOCH);
    snapshot.seed_host(spec, HostStatus { phase, ..HostStatus::default() });
    let assignment = Assignment {
        uid: instance.uid.clone(),
        host: host.to_owned(),
        epoch: 1,
        generation: 1,
        granted: Default::default(),
        nics: Default::default(),
    };
    snapshot.assign(("shop".into(), instance.name.clone()), Placed { assignment, revision: 9 });
}

/// The keys that a transaction writes: `+` puts, `-` deletes.
pub(super) fn writes(txn: &Txn) -> Vec<String> {
    let short = |key: &str| key.trim_start_matches("/enoki/v1/").to_owned();
    let write = |op: &Op| match op {
        Op::Put { key, .. } => format!("+{}", short(key)),
        Op::Delete { key } => format!("-{}", short(key)),
    };
    txn.ops.iter().map(write).collect()
}

pub(super) fn compares(txn: &Txn, compare: Compare) -> bool {
    txn.compares.contains(&compare)
}

/// Its tombstones: what is destroyed, by uid, and where.
pub(super) fn tombstones(txn: &Txn) -> Vec<(Doomed, Uid, Option<String>)> {
    let of = |op: &Op| match op {
        Op::Put { key, value } if key.contains("/tombstones/") => {
            let tombstone: Tombstone = serde_json::from_slice(value).unwrap();
            assert!(key.ends_with(tombstone.uid.as_str()), "{key}");
            Some((tombstone.what, tombstone.uid, tombstone.host))
        }
        Op::Put { .. } | Op::Delete { .. } => None,
    };
    txn.ops.iter().filter_map(of).collect()
}

#[test]
fn what_a_controller_makes_keeps_its_owner_through_its_life() {
    let (mut snapshot, live) = (shop(json!({"instances": 1})), Live::default());
    // Of another project's name, so that nothing in here knows what owns.
    let owner = Owner { kind: Kind::Project, name: "lake".into(), uid: Uid::random() };
    let mut master = web(json!({"nics": {"eth0": {"network": "blue"}}}));
    (master.owner, master.revision) = (Some(owner.clone()), 0);
    complete(&mut master.spec, "web1").unwrap();

    let txn = vacant(&snapshot, &snapshot.instances, &master).unwrap();
    let txn = instance::create(&snapshot, &live, &mut master, txn).unwrap();
    let txn = made(&master, txn).unwrap();
    assert_eq!(writes(&txn), ["+quotas/shop", "+instances/shop/web1"], "once each: one object a transaction");
    assert!(compares(&txn, Compare::Absent("/enoki/v1/instances/shop/web1".into())), "{txn:?}");
    let stored: Value = serde_json::from_slice(&encode_new(&master)).unwrap();
    assert_eq!(stored["owner"], serde_json::to_value(&owner).unwrap());
    assert_eq!(stored["spec"]["resolved"]["digest"], "sha256:2", "what the image's name means");
    master.revision = 12;
    snapshot.seed_instance(master.clone());

    let row = snapshot.instances.get("shop", "web1").unwrap();
    let refused = vacant(&snapshot, &snapshot.instances, &master).unwrap_err();
    assert_eq!(refused.code, enoki_api::Code::AlreadyExists);
    let mut new = master.clone();
    new.labels.insert("enoki.role".into(), "master".into());
    let txn = instance::update(&snapshot, row, &mut new, unchanged(row).unwrap()).unwrap();
    let txn = changed(row, &mut new, txn).unwrap().unwrap();
    assert_eq!((writes(&txn), new.generation), (vec!["+instances/shop/web1".to_owned()], 1));
    assert!(compares(&txn, Compare::ModRevision("/enoki/v1/instances/shop/web1".into(), 12)), "{txn:?}");

    let gone = instance::delete(&snapshot, row, unchanged(row).unwrap()).unwrap();
    let (_, marked) = removed(row, gone).unwrap();
    assert!(marked.deleted_at.is_some() && marked.owner == Some(owner));
}

#[test]
fn a_network_of_the_systems_is_taken_like_any_other() {
    let snapshot = shop(json!({}));
    let networks =
        system::SystemNetworks { pool: "198.18.100.0/22".parse().unwrap(), kind: NetworkKind::Vxlan };
    let mut lake = system::network(networks, &snapshot, "shop", "lake").unwrap();
    let txn = vacant(&snapshot, &snapshot.networks, &lake).unwrap();
    let txn = network::create(&snapshot, &mut lake, txn).unwrap();
    let txn = made(&lake, txn).unwrap();
    let wanted = ["+segments/guard/0", "+segments/vxlan/4096", "+networks/shop/lake"];
    assert_eq!((writes(&txn), lake.spec.segment), (wanted.map(str::to_owned).to_vec(), Some(4096)));
    let data = object("more", json!({}));
    let txn = volume::create(&snapshot, &data, vacant(&snapshot, &snapshot.volumes, &data).unwrap()).unwrap();
    assert_eq!(writes(&made(&data, txn).unwrap()), ["+volumes/shop/more"]);
}
