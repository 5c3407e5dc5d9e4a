use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;

const OWN: Ipv4Addr = host(1);

const fn host(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 200, last)
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn tunnel() -> Tunnel {
    Tunnel::of(&Vxlan { segment: 4096, address: OWN })
}

fn to(mac: Mac, at: u8) -> Entry {
    Entry { mac, host: host(at) }
}

fn peers(instances: &[(u8, u8)], hosts: &[u8]) -> Peers {
    Peers {
        instances: instances.iter().map(|(m, h)| (mac(*m), host(*h))).collect(),
        hosts: hosts.iter().map(|h| host(*h)).collect(),
    }
}

fn carry(view: &mut View, wanted: &Wanted<'_>, steps: usize) {
    for action in plan(wanted, view).iter().take(steps) {
        view.apply(action, wanted);
        let joined = view.device.is_some_and(|device| device.joined && !device.screened);
        assert!(!joined, "on the bridge without its screen");
    }
}

#[test]
fn a_new_overlay_knows_its_peers_before_it_joins() {
    let peers = peers(&[(7, 2), (8, 1)], &[1, 2, 3]);
    let wanted = Wanted { tunnel: tunnel(), mtu: 1450, peers: Some(&peers) };
    let set = |mac, at| Action::Set(to(mac, at));
    assert_eq!(
        plan(&wanted, &View::default()),
        [
            Action::Make,
            Action::Screen,
            // Neither an instance of its own nor the host itself: what is here needs no tunnel.
            set(EVERYBODY, 2),
            set(EVERYBODY, 3),
            set(mac(7), 2),
            Action::Join,
        ]
    );
}

#[test]
fn peers_come_move_and_go_one_by_one() {
    let before: BTreeSet<Entry> = [to(EVERYBODY, 2), to(EVERYBODY, 3), to(mac(7), 2), to(mac(8), 3)].into();
    let cases = [
        (peers(&[(7, 2), (8, 3)], &[2, 3]), vec![]),
        (peers(&[(7, 3), (8, 3)], &[2, 3]), vec![Action::Set(to(mac(7), 3))]),
        (peers(&[(8, 3)], &[2, 3]), vec![Action::Remove(to(mac(7), 2))]),
        // It came here.
        (peers(&[(7, 1), (8, 3)], &[2, 3]), vec![Action::Remove(to(mac(7), 2))]),
        (
            peers(&[(7, 2), (8, 3), (9, 4)], &[2, 3, 4]),
            vec![Action::Set(to(EVERYBODY, 4)), Action::Set(to(mac(9), 4))],
        ),
        (peers(&[(7, 2)], &[2]), vec![Action::Remove(to(EVERYBODY, 3)), Action::Remove(to(mac(8), 3))]),
    ];
    for (peers, expected) in cases {
        assert_eq!(forwarding(OWN, &peers, &before), expected, "{peers:?}");
    }
}

#[test]
fn unknown_peers_are_not_none() {
    let mut view = View::default();
    let known = peers(&[(7, 2)], &[2]);
    let wanted = Wanted { tunnel: tunnel(), mtu: 1450, peers: Some(&known) };
    carry(&mut view, &wanted, usize::MAX);
    assert_eq!(plan(&Wanted { peers: None, ..wanted.clone() }, &view), []);
    let none = Peers::default();
    assert_eq!(plan(&Wanted { peers: Some(&none), ..wanted }, &view).len(), 2);
}

#[test]
fn what_a_device_is_from_its_making_is_made_anew() {
    let wanted = Wanted { tunnel: tunnel(), mtu: 1450, peers: None };
    let mut right = View::default();
    carry(&mut right, &wanted, usize::MAX);
    let others = [
        None,
        Some(Tunnel { segment: 4097, ..tunnel() }),
        Some(Tunnel { address: host(9), ..tunnel() }),
        Some(Tunnel { port: 8472, ..tunnel() }),
        Some(Tunnel { learning: true, ..tunnel() }),
    ];
    for other in others {
        let mut view = right.clone();
        view.device(|device| device.tunnel = other);
        let anew = [Action::Discard, Action::Make, Action::Screen, Action::Join];
        assert_eq!(plan(&wanted, &view), anew, "{other:?}");
    }
    let mut view = right.clone();
    view.device(|device| device.mtu = 1400);
    assert_eq!(plan(&wanted, &view), [Action::SetMtu]);
}

fn any_peers() -> impl Strategy<Value = Peers> {
    (btree_map(1u8..6, 1u8..5, 0..5), btree_set(1u8..5, 0..4)).prop_map(|(instances, hosts)| Peers {
        instances: instances.into_iter().map(|(m, h)| (mac(m), host(h))).collect(),
        hosts: hosts.into_iter().map(host).collect(),
    })
}

/// What the kernel may hold: any number of entries for everybody, one for each other address.
fn any_view() -> impl Strategy<Value = View> {
    let device = (option::of(4096u32..4098), 1449u32..1451, any::<bool>(), any::<bool>()).prop_map(
        |(segment, mtu, screened, joined)| Device {
            tunnel: segment.map(|segment| Tunnel { segment, ..tunnel() }),
            mtu,
            screened,
            joined: joined && screened,
        },
    );
    let entries = (btree_map(1u8..6, 1u8..5, 0..5), vec(1u8..5, 0..3)).prop_map(|(instances, hosts)| {
        let instances = instances.into_iter().map(|(m, h)| to(mac(m), h));
        instances.chain(hosts.into_iter().map(|h| to(EVERYBODY, h))).collect::<BTreeSet<_>>()
    });
    (option::of(device), entries).prop_map(|(device, entries)| View {
        entries: if device.is_some() { entries } else { BTreeSet::new() },
        device,
    })
}

proptest! {
    #[test]
    fn whatever_is_there_and_however_far_it_came(
        mut view in any_view(),
        earlier in any_peers(),
        peers in any_peers(),
        killed_after in 0usize..12,
    ) {
        let before = Wanted { tunnel: tunnel(), mtu: 1400, peers: Some(&earlier) };
        carry(&mut view, &before, killed_after);
        let wanted = Wanted { tunnel: tunnel(), mtu: 1450, peers: Some(&peers) };
        carry(&mut view, &wanted, usize::MAX);
        prop_assert_eq!(plan(&wanted, &view), vec![]);
        let device = Device { tunnel: Some(tunnel()), mtu: 1450, screened: true, joined: true };
        prop_assert_eq!(view.device, Some(device));
        // Said without the planner: an entry for each instance and each host that is not this one, and no other.
        let instances = peers.instances.iter().filter(|(_, host)| **host != OWN);
        for (mac, host) in instances.clone() {
            let entry = Entry { mac: *mac, host: *host };
            prop_assert!(view.entries.contains(&entry));
        }
        let hosts = peers.hosts.iter().filter(|host| **host != OWN);
        for host in hosts.clone() {
            let entry = Entry { mac: EVERYBODY, host: *host };
            prop_assert!(view.entries.contains(&entry));
        }
        prop_assert_eq!(view.entries.len(), instances.count() + hosts.count());
    }
}
