use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::network::{Egress, Gateway, Kind, NetworkPlan};

fn network(number: u8) -> NetworkPlan {
    NetworkPlan {
        uid: format!("net{number}"),
        kind: Kind::Local,
        cidr: format!("198.18.{number}.0/24").parse().unwrap(),
        gateway: match number % 3 {
            0 => Gateway::Host,
            1 => Gateway::None,
            _ => Gateway::Address(Ipv4Addr::new(198, 18, number, 9)),
        },
        egress: Egress::Nat,
    }
}

/// What spans hosts has less room.
fn mtus() -> Mtus {
    [("net2".into(), 1450)].into()
}

fn nic(name: u8, net: u8, last: u8) -> NicPlan {
    NicPlan {
        name: format!("eth{name}"),
        network: network(net),
        address: Ipv4Addr::new(198, 18, net, last),
        mac: Mac([2, 0, 0, net, name, last]),
        egress_bits: None,
        ingress_bits: None,
    }
}

fn instance(nics: Vec<NicPlan>) -> InstancePlan {
    InstancePlan { uid: "web1".into(), nics }
}

/// Carries out the first `steps` of a plan.
fn carry(view: &mut View, wanted: &InstancePlan, steps: usize) {
    for action in plan(wanted, &mtus(), view).iter().take(steps) {
        view.apply(action);
    }
}

/// Whether the view is what the plan asks for, said without the planner.
fn assert_right(view: &View, wanted: &InstancePlan) {
    assert!(view.loopback_up);
    let names: Vec<&String> = view.nics.keys().collect();
    let mut expected: Vec<&String> = wanted.nics.iter().map(|n| &n.name).collect();
    expected.sort();
    assert_eq!(names, expected, "no NIC more, none less");
    for nic in &wanted.nics {
        let inside = &view.nics[&nic.name];
        let port = &view.ports[inside.port.as_ref().unwrap()];
        let bridge = names::bridge(&nic.network.uid);
        assert_eq!(view.bridges.get(&bridge), Some(&true));
        let mtu = if nic.network.uid == "net2" { 1450 } else { 1500 };
        assert_eq!((port.bridge.as_ref(), port.up, port.mtu), (Some(&bridge), true, mtu));
        assert_eq!((inside.mac, inside.up, inside.mtu), (Some(nic.mac), true, mtu));
        assert_eq!(inside.addresses, BTreeSet::from([host_net(nic)]));
        assert_eq!(inside.rate, nic.egress_bits.map(|b| b / 8));
        assert_eq!(port.rate, nic.ingress_bits.map(|b| b / 8));
    }
    let route = wanted
        .nics
        .iter()
        .find_map(|nic| Some(Route { via: Some(nic.network.gateway_address()?), nic: nic.name.clone() }));
    assert_eq!(view.routes, route.into_iter().collect());
}

#[test]
fn a_new_instance_is_plugged_addressed_and_then_raised() {
    let mut wanted = instance(vec![nic(0, 3, 10)]);
    wanted.nics[0].ingress_bits = Some(8_000_000);
    let (bridge, port) = (names::bridge("net3"), names::port("web1", "eth0"));
    let eth0 = || "eth0".to_owned();
    assert_eq!(
        plan(&wanted, &mtus(), &View::default()),
        [
            Action::LoopbackUp,
            Action::AddBridge { bridge: bridge.clone(), mac: names::bridge_mac("net3"), mtu: 1500 },
            Action::Plug { port: port.clone(), bridge, nic: eth0(), mac: wanted.nics[0].mac, mtu: 1500 },
            Action::AddAddress { nic: eth0(), address: "198.18.3.10/24".parse().unwrap() },
            Action::NicUp { nic: eth0() },
            Action::LimitReceiving { port, bits: Some(8_000_000) },
            Action::SetRoute { nic: eth0(), via: Ipv4Addr::new(198, 18, 3, 1) },
        ]
    );
}

#[test]
fn differences_are_mended_one_by_one() {
    let wanted = instance(vec![nic(0, 3, 10)]);
    let mut right = View::default();
    carry(&mut right, &wanted, usize::MAX);
    assert_right(&right, &wanted);
    let port = names::port("web1", "eth0");
    let eth0 = || "eth0".to_owned();
    let stray: Ipv4Net = "198.18.3.99/24".parse().unwrap();
    type Damage<'a> = Box<dyn Fn(&mut View) + 'a>;
    let cases: Vec<(Damage, Vec<Action>)> = vec![
        (Box::new(|_| {}), vec![]),
        (Box::new(|v| v.loopback_up = false), vec![Action::LoopbackUp]),
        (Box::new(|v| v.port(&port, |p| p.up = false)), vec![Action::PortUp { port: port.clone() }]),
        (
            Box::new(|v| v.port(&port, |p| p.bridge = Some("#7".into()))),
            vec![Action::Enslave { port: port.clone(), bridge: names::bridge("net3") }],
        ),
        (
            Box::new(|v| v.inside("eth0", |n| n.mac = Some(Mac([2; 6])))),
            vec![Action::SetMac { nic: eth0(), mac: wanted.nics[0].mac }],
        ),
        (
            Box::new(|v| v.inside("eth0", |n| n.mtu = 1400)),
            vec![Action::SetMtu { nic: eth0(), port: port.clone(), mtu: 1500 }],
        ),
        (
            Box::new(|v| {
                v.inside("eth0", |n| {
                    n.addresses.insert(stray);
                })
            }),
            vec![Action::RemoveAddress { nic: eth0(), address: stray }],
        ),
        (
            Box::new(|v| v.inside("eth0", |n| n.rate = Some(5))),
            vec![Action::LimitSending { nic: eth0(), bits: None }],
        ),
        (
            Box::new(|v| v.routes.clear()),
            vec![Action::SetRoute { nic: eth0(), via: Ipv4Addr::new(198, 18, 3, 1) }],
        ),
    ];
    for (number, (damage, expected)) in cases.into_iter().enumerate() {
        let mut view = right.clone();
        damage(&mut view);
        assert_eq!(plan(&wanted, &mtus(), &view), expected, "case {number}");
    }
}

#[test]
fn a_stranger_with_our_name_makes_room() {
    let wanted = instance(vec![nic(0, 3, 10)]);
    let mut view = View::default();
    carry(&mut view, &wanted, usize::MAX);
    view.inside("eth0", |n| n.port = None);
    let actions = plan(&wanted, &mtus(), &view);
    assert!(
        matches!(&actions[..3], [Action::Unplug { .. }, Action::Discard { .. }, Action::Plug { .. }]),
        "{actions:?}"
    );
}

#[test]
fn a_nic_that_is_not_wanted_any_more_goes() {
    let mut view = View::default();
    carry(&mut view, &instance(vec![nic(0, 3, 10), nic(1, 1, 10)]), usize::MAX);
    let wanted = instance(vec![nic(0, 3, 10)]);
    assert_eq!(plan(&wanted, &mtus(), &view), [Action::Unplug { port: names::port("web1", "eth1") }]);
}

/// What may happen to a view besides our own actions.
#[derive(Clone, Debug)]
enum Accident {
    BridgeDown(u8),
    Unplugged(u8),
    Stranger(u8),
    Down(u8),
    StrayAddress(u8),
    NoRoute,
    OtherRoute(u8),
    Limited(u8, u64),
}

fn happen(view: &mut View, accident: &Accident) {
    let eth = |n: &u8| format!("eth{n}");
    match accident {
        Accident::BridgeDown(net) => {
            if let Some(up) = view.bridges.get_mut(&names::bridge(&format!("net{net}"))) {
                *up = false;
            }
        }
        Accident::Unplugged(n) => view.apply(&Action::Unplug { port: names::port("web1", &eth(n)) }),
        Accident::Stranger(n) => view.inside(&eth(n), |nic| nic.port = None),
        Accident::Down(n) => view.inside(&eth(n), |nic| nic.up = false),
        Accident::StrayAddress(n) => view.inside(&eth(n), |nic| {
            nic.addresses.insert("198.18.200.1/24".parse().unwrap());
        }),
        Accident::NoRoute => view.routes.clear(),
        Accident::OtherRoute(n) => {
            if view.nics.contains_key(&eth(n)) {
                view.routes.insert(Route { via: None, nic: eth(n) });
            }
        }
        Accident::Limited(n, rate) => {
            view.port(&names::port("web1", &eth(n)), |port| port.rate = Some(*rate))
        }
    }
}

fn accidents() -> impl Strategy<Value = Accident> {
    prop_oneof![
        (0u8..6).prop_map(Accident::BridgeDown),
        (0u8..3).prop_map(Accident::Unplugged),
        (0u8..3).prop_map(Accident::Stranger),
        (0u8..3).prop_map(Accident::Down),
        (0u8..3).prop_map(Accident::StrayAddress),
        Just(Accident::NoRoute),
        (0u8..3).prop_map(Accident::OtherRoute),
        (0u8..3, 1u64..99).prop_map(|(n, rate)| Accident::Limited(n, rate)),
    ]
}

fn plans() -> impl Strategy<Value = InstancePlan> {
    let rate = || proptest::option::of(8_000u64..1_000_000);
    let one = (0u8..6, 10u8..14, rate(), rate());
    proptest::collection::btree_map(0u8..3, one, 0..3).prop_map(|nics| {
        instance(
            nics.into_iter()
                .map(|(name, (net, last, egress_bits, ingress_bits))| NicPlan {
                    egress_bits,
                    ingress_bits,
                    ..nic(name, net, last)
                })
                .collect(),
        )
    })
}

proptest! {
    #[test]
    fn whatever_was_done_before_and_however_far_it_came(
        history in vec((plans(), 0usize..20, vec(accidents(), 0..3)), 0..4),
        wanted in plans(),
        killed_after in 0usize..20,
    ) {
        let mut view = View::default();
        for (plan, steps, accidents) in &history {
            carry(&mut view, plan, *steps);
            accidents.iter().for_each(|accident| happen(&mut view, accident));
        }
        carry(&mut view, &wanted, killed_after);
        carry(&mut view, &wanted, usize::MAX);
        assert_right(&view, &wanted);
        prop_assert_eq!(plan(&wanted, &mtus(), &view), vec![]);
    }
}
