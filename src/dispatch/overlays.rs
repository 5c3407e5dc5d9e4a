//! PURE: a snapshot -> who is where on the networks that span hosts, as one host has to know it.
//!
//! A host knows a network for as long as it has an instance on it. A host whose address nobody knows has no peers.

use crate::state::{At, Snapshot};
use crate::store::keys::Key;
use enoki_api::network::NetworkKind;
use enoki_api::object::{Kind, Uid};
use enoki_api::protocol::{Overlay, OverlayEntry};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Everything that `host` has to know, by network.
pub fn all(snapshot: &Snapshot, host: &str) -> BTreeMap<At, Overlay> {
    let here = snapshot.by_host.get(host).into_iter().flatten();
    let networks: BTreeSet<At> = here.flat_map(|at| networks(snapshot, at)).collect();
    networks.into_iter().filter_map(|at| Some((at.clone(), one(snapshot, host, &at)?))).collect()
}

/// One network's view. None: `host` has no instance on it, or it spans no hosts.
pub fn one(snapshot: &Snapshot, host: &str, network: &At) -> Option<Overlay> {
    let object = &snapshot.networks.at(network)?.object;
    if object.spec.kind != NetworkKind::Vxlan {
        return None;
    }
    let (mut hosts, mut entries, mut here) = (BTreeSet::new(), Vec::new(), false);
    for (address, claim) in snapshot.claims(&network.0, &network.1) {
        let IpAddr::V4(address) = address else { continue };
        let Some(placed) = snapshot.by_uid.get(&claim.0.uid).and_then(|at| snapshot.assignments.get(at))
        else {
            continue;
        };
        if placed.assignment.host == host {
            here = true;
        } else if let Some(host_address) = address_of(snapshot, &placed.assignment.host) {
            hosts.insert(host_address);
            entries.push(OverlayEntry { mac: claim.0.mac, address, host_address });
        }
    }
    here.then(|| Overlay { network: object.uid.clone(), hosts, entries })
}

/// The hosts with an instance on a network.
pub fn hosts(snapshot: &Snapshot, network: &At) -> BTreeSet<String> {
    let placed = snapshot.claims(&network.0, &network.1).filter_map(|(_, claim)| {
        let at = snapshot.by_uid.get(&claim.0.uid)?;
        Some(snapshot.assignments.get(at)?.assignment.host.clone())
    });
    placed.collect()
}

/// The networks whose views may have changed with these keys.
pub fn touched(before: &Snapshot, after: &Snapshot, keys: &[Key]) -> BTreeSet<At> {
    let mut touched = BTreeSet::new();
    let mut instance = |at: &At| {
        touched.extend(networks(before, at));
        touched.extend(networks(after, at));
    };
    for key in keys {
        match key {
            Key::Assignment { project, name } => instance(&(project.clone(), name.clone())),
            Key::Spec(object) if object.kind == Kind::Instance.plural() => {
                let at = (object.project.clone().unwrap_or_default(), object.name.clone());
                // Its networks stay as they are for as long as it is the same instance.
                if uid_at(before, &at) != uid_at(after, &at) {
                    instance(&at);
                }
            }
            Key::Status(object)
                if object.kind == Kind::Host.plural()
                    && address_of(before, &object.name) != address_of(after, &object.name) =>
            {
                after.by_host.get(&object.name).into_iter().flatten().for_each(&mut instance);
            }
            _ => {}
        }
    }
    touched
}

/// The networks that span hosts which an instance is on.
fn networks(snapshot: &Snapshot, instance: &At) -> Vec<At> {
    let Some(row) = snapshot.instances.at(instance) else { return Vec::new() };
    let names = row.object.spec.nics.values().map(|nic| (instance.0.clone(), nic.network.clone()));
    let spans =
        |at: &At| snapshot.networks.at(at).is_some_and(|row| row.object.spec.kind == NetworkKind::Vxlan);
    names.filter(spans).collect()
}

fn uid_at<'a>(snapshot: &'a Snapshot, instance: &At) -> Option<&'a Uid> {
    snapshot.instances.at(instance).map(|row| &row.object.uid)
}

fn address_of(snapshot: &Snapshot, host: &str) -> Option<Ipv4Addr> {
    snapshot.host_status.get(host)?.address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Placed;
    use crate::store::keys::ObjectRef;
    use enoki_api::host::HostStatus;
    use enoki_api::instance::{AddressClaim, Assignment, InstanceSpec, Resources};
    use enoki_api::mac::Mac;
    use enoki_api::network::NetworkSpec;
    use enoki_api::object::Object;
    use jiff::Timestamp;
    use std::sync::Arc;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn at(name: &str) -> At {
        ("default".into(), name.into())
    }

    fn host_address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 200, last)
    }

    /// Networks `blue` and `green` span hosts, `home` does not; h1 and h2 have an address, h3 has none.
    fn world() -> Snapshot {
        let mut world = Snapshot::default();
        for (name, third, kind) in [("blue", 100, "vxlan"), ("green", 101, "vxlan"), ("home", 102, "local")] {
            let json = format!(r#"{{"cidr":"198.18.{third}.0/24","type":"{kind}"}}"#);
            let spec: NetworkSpec = serde_json::from_str(&json).unwrap();
            world.seed_network(Object::new(Some("default"), name, Default::default(), spec, NOW));
        }
        for (name, address) in [("h1", Some(host_address(1))), ("h2", Some(host_address(2))), ("h3", None)] {
            world.host_status.insert(name.into(), Arc::new(HostStatus { address, ..HostStatus::default() }));
        }
        world
    }

    /// An instance with one address on `network`; its MAC ends in the address's last number.
    fn place(world: &mut Snapshot, name: &str, network: &str, last: u8, host: &str) {
        let mut spec = InstanceSpec::new("image");
        let nic = serde_json::from_value(serde_json::json!({"network": network})).unwrap();
        spec.nics = [("eth0".to_owned(), nic)].into();
        let instance = Object::new(Some("default"), name, Default::default(), spec, NOW);
        let third = world.networks.get("default", network).unwrap().object.spec.cidr.addr().octets()[2];
        let claim = AddressClaim {
            instance: format!("default/{name}"),
            uid: instance.uid.clone(),
            mac: Mac([2, 0, 0, 0, 0, last]),
            since: NOW,
            held_until: None,
        };
        let address = IpAddr::from([198, 18, third, last]);
        world.addresses.insert(("default".into(), network.into(), address), Arc::new((claim, 1)));
        bind(world, name, instance.uid.clone(), host);
        world.seed_instance(instance);
    }

    fn bind(world: &mut Snapshot, name: &str, uid: Uid, host: &str) {
        world.unassign(&at(name));
        let (granted, nics) = (Resources::default(), Default::default());
        let assignment = Assignment { uid, host: host.into(), epoch: 1, generation: 1, granted, nics };
        world.assign(at(name), Placed { assignment, revision: 1 });
    }

    fn entry(third: u8, last: u8, host: u8) -> OverlayEntry {
        OverlayEntry {
            mac: Mac([2, 0, 0, 0, 0, last]),
            address: Ipv4Addr::new(198, 18, third, last),
            host_address: host_address(host),
        }
    }

    #[test]
    fn a_host_knows_the_others_on_its_networks() {
        let mut world = world();
        for (name, network, last, host) in [
            ("b1", "blue", 10, "h1"),
            ("b2", "blue", 11, "h2"),
            ("b3", "blue", 12, "h2"),
            ("b4", "blue", 13, "h3"),
            ("g2", "green", 10, "h2"),
            ("n1", "home", 10, "h1"),
            ("n2", "home", 11, "h2"),
        ] {
            place(&mut world, name, network, last, host);
        }
        let views = all(&world, "h1");
        assert_eq!(
            views.keys().collect::<Vec<_>>(),
            [&at("blue")],
            "neither others' networks nor local ones"
        );
        let blue = &views[&at("blue")];
        assert_eq!(blue.network, world.networks.get("default", "blue").unwrap().object.uid);
        assert_eq!(
            blue.entries,
            [entry(100, 11, 2), entry(100, 12, 2)],
            "none of its own, none without address"
        );
        assert_eq!(blue.hosts, BTreeSet::from([host_address(2)]));
        assert_eq!(all(&world, "h2")[&at("blue")].entries, [entry(100, 10, 1)]);
        // Alone on a network is known, too.
        assert_eq!(all(&world, "h2")[&at("green")].entries, []);
        assert_eq!(all(&world, "h3")[&at("blue")].entries.len(), 3);
        assert_eq!(one(&world, "h1", &at("green")), None);
    }

    #[test]
    fn what_moves_a_view_is_told() {
        let mut before = world();
        place(&mut before, "b1", "blue", 10, "h1");
        place(&mut before, "n1", "home", 10, "h1");
        let uid = before.instances.at(&at("b1")).unwrap().object.uid.clone();
        let bound = |name: &str| Key::Assignment { project: "default".into(), name: name.into() };
        let blue = BTreeSet::from([at("blue")]);
        // It moves, it comes, it goes.
        let mut moved = before.clone();
        bind(&mut moved, "b1", uid, "h2");
        assert_eq!(touched(&before, &moved, &[bound("b1")]), blue);
        assert_eq!(touched(&world(), &before, &[bound("b1"), bound("n1")]), blue);
        assert_eq!(touched(&before, &world(), &[bound("b1")]), blue);
        assert_eq!(touched(&before, &before, &[bound("n1")]), BTreeSet::new());
        // Its spec alone goes first; a change of it moves nothing.
        let spec = Key::Spec(ObjectRef {
            kind: "instances".into(),
            project: Some("default".into()),
            name: "b1".into(),
        });
        let mut gone = before.clone();
        gone.instances = world().instances;
        assert_eq!(touched(&before, &gone, std::slice::from_ref(&spec)), blue);
        assert_eq!(touched(&before, &before, &[spec]), BTreeSet::new());
        // Its host gets another address; what else a host's status says moves nothing.
        let host = Key::Status(ObjectRef { kind: "hosts".into(), project: None, name: "h1".into() });
        assert_eq!(touched(&before, &before, std::slice::from_ref(&host)), BTreeSet::new());
        let mut other = before.clone();
        let status = HostStatus { address: Some(host_address(9)), ..HostStatus::default() };
        other.host_status.insert("h1".into(), Arc::new(status));
        assert_eq!(touched(&before, &other, &[host]), blue);
    }
}
