//! Networks that span hosts: who reaches whom over the wire, what never crosses it, what comes back.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use enoki_agent::network::{Error, Linux, Mac, Network, Peers};

use super::site::*;
use super::world::*;

/// Sends a word to everybody on a segment; which of these heard it.
fn shout(from: PathBuf, to: Vec<PathBuf>, everybody: Ipv4Addr) -> Vec<bool> {
    let socket = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 4000)).unwrap();
        socket.set_read_timeout(Some(REFUSED)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket
    };
    let listeners: Vec<UdpSocket> = to.into_iter().map(|to| within(to, socket)).collect();
    within(from, socket).send_to(b"word", (everybody, 4000)).unwrap();
    listeners.iter().map(|listener| listener.recv_from(&mut [0; 8]).is_ok()).collect()
}

#[test]
fn a_segment_spans_hosts_and_meets_no_other() {
    isolated("overlay::a_segment_spans_hosts_and_meets_no_other", || async {
        let mut site = Site::of(3);
        // The same addresses and MACs on both; only the segment's number differs.
        let blue = spanning("blue", 100, 4096, false);
        let green = spanning("green", 100, 4097, false);
        for (at, last) in [(0, 10), (1, 11), (2, 12)] {
            let b = site.place(at, &format!("b{last}"), &blue, last);
            let g = site.place(at, &format!("g{last}"), &green, last);
            assert_eq!((b.nics[0].mac, b.nics[0].address), (g.nics[0].mac, g.nics[0].address));
        }
        for net in ["b", "g"] {
            let name = |last: u8| format!("{net}{last}");
            for (from, to) in [((0, 10), (1, 11)), ((1, 11), (0, 10)), ((2, 12), (0, 10)), ((1, 11), (2, 12))]
            {
                let reached = site.reach((from.0, &name(from.1)), (to.0, &name(to.1)), a(100, to.1));
                assert_eq!(reached, Some(a(100, from.1)), "{net}: {from:?} to {to:?}");
            }
        }
        // A listener on the other network has the very address, and is not found.
        assert_eq!(site.reach((0, "b10"), (1, "g11"), a(100, 11)), None);
        assert_eq!(site.reach((0, "g10"), (2, "b12"), a(100, 12)), None);
        let pins = |names: [(usize, &str); 3]| names.map(|(at, uid)| site.hosts[at].pin(uid)).to_vec();
        for (from, others, heard) in [
            ("b10", [(1, "b11"), (2, "b12"), (1, "g11")], [true, true, false]),
            ("g10", [(1, "g11"), (2, "g12"), (0, "b10")], [true, true, false]),
        ] {
            assert_eq!(shout(site.hosts[0].pin(from), pins(others), a(100, 255)), heard, "{from}");
        }
    });
}

#[test]
fn frames_go_where_they_are_told_to() {
    isolated("overlay::frames_go_where_they_are_told_to", || async {
        let mut site = Site::of(3);
        let blue = spanning("blue", 100, 4096, false);
        let b1 = site.place(0, "b1", &blue, 10);
        let b2 = site.place(1, "b2", &blue, 11);
        let b3 = site.place(2, "b3", &blue, 12);
        let [m2, m3] = [&b2, &b3].map(|plan| plan.nics[0].mac);
        let all = "00:00:00:00:00:00";
        let expected = vec![
            format!("{all} 198.18.200.2"),
            format!("{all} 198.18.200.3"),
            format!("{m2} 198.18.200.2"),
            format!("{m3} 198.18.200.3"),
        ];
        assert_eq!(site.hosts[0].entries(), expected);

        // What is known goes to its host alone.
        let received = |at: usize| -> u64 {
            let text = site.hosts[at].sh_in("fabric", "cat /proc/net/dev");
            let line = text.lines().find(|line| line.trim().starts_with("ex")).unwrap();
            line.split_whitespace().nth(2).unwrap().parse().unwrap()
        };
        assert_eq!(site.reach((0, "b1"), (1, "b2"), a(100, 11)), Some(a(100, 10)));
        let before = [received(1), received(2)];
        site.hosts[0].sh_in("b1", "ping -c 20 -i 0.01 -W 1 -q 198.18.100.11");
        let after = [received(1), received(2)];
        assert!(after[0] - before[0] >= 20 && after[1] - before[1] < 5, "{before:?} {after:?}");

        // A wrong word leads astray, the right one back, at once.
        let right = site.peers("blue");
        let mut wrong = right.clone();
        wrong.instances.insert(m2, a(200, 3));
        site.hosts[0].connect("blue", &wrong);
        assert!(site.hosts[0].entries().contains(&format!("{m2} 198.18.200.3")));
        assert_eq!(site.reach((0, "b1"), (1, "b2"), a(100, 11)), None);
        assert_eq!(site.reach((0, "b1"), (2, "b3"), a(100, 12)), Some(a(100, 10)));
        site.hosts[0].connect("blue", &right);
        assert_eq!(site.reach((0, "b1"), (1, "b2"), a(100, 11)), Some(a(100, 10)));

        // A host that is not told any more is not reached any more; the others are.
        let mut fewer = right.clone();
        fewer.instances.remove(&m2);
        fewer.hosts.remove(&a(200, 2));
        site.hosts[0].connect("blue", &fewer);
        assert_eq!(site.hosts[0].entries(), [expected[1].clone(), expected[3].clone()]);
        assert_eq!(site.reach((0, "b1"), (1, "b2"), a(100, 11)), None);
        assert_eq!(site.reach((0, "b1"), (2, "b3"), a(100, 12)), Some(a(100, 10)));
        // One whose entry is late is still found: what nobody knows goes to every host.
        fewer.hosts.insert(a(200, 2));
        site.hosts[0].connect("blue", &fewer);
        assert_eq!(site.reach((0, "b1"), (1, "b2"), a(100, 11)), Some(a(100, 10)));

        // Said before the network is used here, it holds from the first moment.
        let host = &site.hosts[1];
        host.remove("b2");
        host.tend(&[]);
        assert!(!host.sh_in("fabric", "ip -o link").contains(": e"));
        host.connect("blue", &right);
        host.ensure(&b2);
        assert_eq!(host.entries().len(), 4);
        assert_eq!(site.reach((1, "b2"), (0, "b1"), a(100, 10)), Some(a(100, 11)));
        drop(b1);
    });
}

#[test]
fn an_instance_that_moves_is_found_at_once() {
    isolated("overlay::an_instance_that_moves_is_found_at_once", || async {
        let mut site = Site::of(3);
        let blue = spanning("blue", 100, 4096, false);
        site.place(0, "b1", &blue, 10);
        let b2 = site.place(1, "b2", &blue, 11);
        assert_eq!(site.reach((0, "b1"), (1, "b2"), a(100, 11)), Some(a(100, 10)));
        // To a host that has not been on the network, to the one where its peer is, and back.
        for (from, to) in [(1, 2), (2, 0), (0, 1)] {
            site.take(from, &b2);
            site.place(to, "b2", &blue, 11);
            assert_eq!(site.reach((0, "b1"), (to, "b2"), a(100, 11)), Some(a(100, 10)), "{from} to {to}");
            assert_eq!(site.reach((to, "b2"), (0, "b1"), a(100, 10)), Some(a(100, 11)), "{from} to {to}");
        }
        // Another takes the address over, with a MAC of its own: b1 remembers the old one until it is told.
        let neighbour = || site.hosts[0].sh_in("b1", "ip neigh show 198.18.100.11");
        assert!(neighbour().contains(&b2.nics[0].mac.to_string()), "{}", neighbour());
        let mut b4 = instance("b4", &site.hosts[2].end(&blue), 11);
        b4.nics[0].mac = Mac([2, 0, 0, 0, 0, 0x44]);
        site.take(1, &b2);
        site.place_plan(2, &b4);
        let told = site.hosts[0].sh_in("b1", "ip neigh show 198.18.100.11");
        assert!(told.contains("02:00:00:00:00:44"), "{told}");
        assert_eq!(site.reach((0, "b1"), (2, "b4"), a(100, 11)), Some(a(100, 10)));
    });
}

#[test]
fn whole_frames_pass_unbroken() {
    isolated("overlay::whole_frames_pass_unbroken", || async {
        let mut site = Site::of(2);
        let blue = spanning("blue", 100, 4096, true);
        let plans = [site.place(0, "b1", &blue, 10), site.place(1, "b2", &blue, 11)];
        let ping = |size: u32| format!("ping -M do -c 2 -i 0.01 -W 1 -q -s {size} 198.18.100.11");
        // Beside the payload a ping has 28 bytes of headers.
        for (underlay, mtu) in [(1500u32, 1450u32), (4000, 3950), (1400, 1350)] {
            sh(&format!("for e in h1 h2 wire; do ip -n wire link set $e mtu {underlay}; done"));
            for (host, plan) in site.hosts.iter().zip(&plans) {
                host.sh(&format!("ip link set up0 mtu {underlay}"));
                host.tend(std::slice::from_ref(&blue));
                host.ensure(plan);
                let links = host.sh_in("fabric", "ip -o link") + &host.sh("ip -o link");
                for kind in ["eb", "ev", "el", "ex", "ek"] {
                    let found = links.lines().find(|line| line.contains(&format!(": {kind}"))).unwrap();
                    assert!(found.contains(&format!(" mtu {mtu} ")), "{underlay}: {found}");
                }
            }
            let inside = site.hosts[0].sh_in("b1", "ip -o link show eth0");
            assert!(inside.contains(&format!(" mtu {mtu} ")), "{inside}");
            site.hosts[0].sh_in("b1", &ping(mtu - 28));
            let longer = format!("if {}; then exit 1; fi", ping(mtu - 27));
            site.hosts[0].sh_in("b1", &longer);
        }
    });
}

#[test]
fn each_host_is_the_gateway_of_its_own() {
    isolated("overlay::each_host_is_the_gateway_of_its_own", || async {
        let mut site = Site::of(2);
        let blue = spanning("blue", 100, 4096, true);
        let green = spanning("green", 101, 4097, true);
        site.place(0, "b1", &blue, 10);
        site.place(1, "b2", &blue, 11);
        site.place(0, "g1", &green, 10);
        site.place(1, "g2", &green, 11);
        let host = |at: usize| site.hosts[at].namespace.clone();
        let pin = |at: usize, uid: &str| site.hosts[at].pin(uid);
        let tap = Wiretap::new();
        let (outside, beyond) = beyond();
        let gateway = a(100, 1);
        for _ in 0..2 {
            assert_eq!(site.reach((0, "b1"), (1, "b2"), a(100, 11)), Some(a(100, 10)));
            // The gateway that an instance reaches is its own host, whatever is remembered or asked for anew.
            assert_eq!(reach(pin(0, "b1"), host(0), gateway), Some(a(100, 10)));
            assert_eq!(reach(pin(1, "b2"), host(1), gateway), Some(a(100, 11)));
            assert_eq!(reach(pin(0, "b1"), host(1), gateway), None);
            assert_eq!(reach(host(0), pin(0, "b1"), a(100, 10)), Some(gateway));
            assert_eq!(reach(host(0), pin(1, "b2"), a(100, 11)), None);
            // And so is the way out.
            assert_eq!(reach(pin(0, "b1"), outside.clone(), beyond), Some(a(200, 1)));
            assert_eq!(reach(pin(1, "b2"), outside.clone(), beyond), Some(a(200, 2)));
            assert_eq!(reach(outside.clone(), pin(1, "b2"), a(100, 11)), None);
            // No host leads from one network to another, neither its own nor that of another host.
            assert_eq!(reach(pin(0, "b1"), pin(0, "g1"), a(101, 10)), None);
            assert_eq!(reach(pin(0, "b1"), pin(1, "g2"), a(101, 11)), None);
            for (at, uid) in [(0, "b1"), (1, "b2")] {
                site.hosts[at].sh_in(uid, "ip neigh flush all");
            }
        }
        // An instance that says it were the gateway is not heard beyond its host.
        // It announces the address, and asks for another's as if it had it.
        let mac = site.hosts[1].sh_in("b2", "ip -o link show eth0 | grep -o \"ether [^ ]*\" | cut -c7-");
        let claim = format!(
            "ip addr add 198.18.100.1/32 dev eth0; ip link set eth0 address {}
            ip neigh flush all; ping -c 1 -W 0.2 -I 198.18.100.1 198.18.100.10 || true",
            mac.trim()
        );
        let unclaim = "ip addr del 198.18.100.1/32 dev eth0";
        site.hosts[1].sh_in("b2", &claim);
        // A host that thinks to know a far instance does not send to it; and what an instance sends to its gateway
        // goes to no other host, also while its own host's leg is away.
        let leg =
            site.hosts[0].sh("ip -o -4 addr | grep -o \"ek[0-9a-f]* .* 198.18.100.1/\" | cut -d\" \" -f1");
        let leg = leg.trim();
        let gateway_mac =
            site.hosts[0].sh(&format!("ip -o link show {leg} | grep -o \"ether [^ ]*\" | cut -c7-"));
        let gateway_mac: Mac = gateway_mac.trim().parse().unwrap();
        site.hosts[0].sh(&format!("ip neigh replace 198.18.100.11 lladdr {} dev {leg}", mac.trim()));
        assert_eq!(reach(host(0), pin(1, "b2"), a(100, 11)), None);
        site.hosts[0].sh(&format!("ip neigh del 198.18.100.11 dev {leg}"));
        assert_eq!(reach(pin(0, "b1"), host(0), gateway), Some(a(100, 10)), "it knows the gateway's MAC");
        let port = leg.replace("ek", "el");
        site.hosts[0].sh_in("fabric", &format!("ip link set {port} down"));
        assert_eq!(reach(pin(0, "b1"), outside.clone(), beyond), None);
        site.hosts[0].tend(&[blue.clone(), green.clone()]);
        assert_eq!(reach_soon(pin(0, "b1"), outside.clone(), beyond), Some(a(200, 1)));

        let frames = tap.frames();
        let asked = |frame: &Frame| frame.arp == Some((a(100, 10), a(100, 11)));
        assert!(frames.iter().any(asked), "others ask and are heard: {frames:?}");
        let of_gateways = |frames: &[Frame]| {
            let address = |address| [gateway, a(101, 1)].contains(&address);
            let by_arp = |frame: &Frame| frame.arp.is_some_and(|arp| address(arp.0) || address(arp.1));
            let by_mac = |frame: &Frame| [frame.to, frame.from].contains(&gateway_mac);
            frames.iter().filter(|frame| by_arp(frame) || by_mac(frame)).count()
        };
        assert_eq!(of_gateways(&frames), 0, "{frames:?}");
        assert_eq!(reach(pin(0, "b1"), host(0), gateway), Some(a(100, 10)));
        site.hosts[1].sh_in("b2", unclaim);

        // It is the screens that hold it back: without them it crosses, and tending puts them back.
        for at in [0, 1] {
            site.hosts[at].sh_in("fabric", "nft delete table netdev enoki");
        }
        site.hosts[1].sh_in("b2", &claim);
        site.hosts[1].sh_in("b2", unclaim);
        site.hosts[0].sh_in("b1", "ip neigh flush all");
        reach(pin(0, "b1"), host(0), gateway);
        assert!(of_gateways(&tap.frames()) >= 2);
        for at in [0, 1] {
            site.hosts[at].tend(&[blue.clone(), green.clone()]);
            site.hosts[at].sh_in("fabric", "nft list table netdev enoki | grep -q drop");
        }
        tap.frames();
        site.hosts[0].sh_in("b1", "ip neigh flush all");
        assert_eq!(reach_soon(pin(0, "b1"), host(0), gateway), Some(a(100, 10)));
        site.hosts[1].sh_in("b2", &claim);
        assert_eq!(of_gateways(&tap.frames()), 0);
    });
}

#[test]
fn a_forged_tunnel_leads_nowhere() {
    isolated("overlay::a_forged_tunnel_leads_nowhere", || async {
        let mut site = Site::of(2);
        let blue = spanning("blue", 100, 4096, true);
        let green = spanning("green", 101, 4097, false);
        site.place(0, "b1", &blue, 10);
        site.place(0, "g1", &green, 10);
        let g1 = instance("g1", &green, 10).nics[0].mac;
        let g2 = site.place(1, "g2", &green, 11).nics[0].mac;
        let heard = |at: usize, uid: &str, mac: Mac, target: Ipv4Addr, to: Ipv4Addr| {
            let listener =
                within(site.hosts[at].pin(uid), || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 4001)).unwrap());
            listener.set_read_timeout(Some(REFUSED)).unwrap();
            let packet = forged(4097, mac, target, 4001);
            let from = site.hosts[0].pin("b1");
            within(from, move || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                socket.send_to(&packet, (to, 4789)).unwrap();
            });
            listener.recv_from(&mut [0; 16]).is_ok()
        };
        let tries = [
            (1, "g2", g2, a(101, 11), a(200, 2)),
            (0, "g1", g1, a(101, 10), a(200, 1)),
            (0, "g1", g1, a(101, 10), a(100, 1)),
        ];
        for (at, uid, mac, target, to) in tries {
            assert!(!heard(at, uid, mac, target, to), "into {uid} by {to}");
        }
        // What stops it is the host's table.
        site.hosts[0].sh("nft flush chain ip enoki input; nft flush chain ip enoki forward");
        for (at, uid, mac, target, to) in tries {
            assert!(heard(at, uid, mac, target, to), "into {uid} by {to}, with nothing in the way");
        }
    });
}

#[test]
fn a_segment_is_one_networks_alone() {
    isolated("overlay::a_segment_is_one_networks_alone", || async {
        let mut site = Site::of(2);
        let blue = spanning("blue", 100, 4096, false);
        let b1 = site.place(0, "b1", &blue, 10);
        let other = instance("o1", &site.hosts[0].end(&spanning("other", 101, 4096, false)), 10);
        let refused = site.hosts[0].try_ensure(&other).unwrap_err();
        assert!(matches!(refused, Error::Segment(4096)), "{refused}");
        // Free as soon as nobody is on it.
        site.take(0, &b1);
        site.place_plan(0, &other);
        let second = instance("o2", &site.hosts[1].end(&spanning("other", 101, 4096, false)), 11);
        site.place_plan(1, &second);
        assert_eq!(site.reach((0, "o1"), (1, "o2"), a(101, 11)), Some(a(101, 10)));
        // A device of the administrator's own stays.
        site.hosts[0].sh("ip link add theirs type vxlan id 5000 dstport 4789 local 198.18.200.1");
        let taken = instance("t1", &site.hosts[0].end(&spanning("taken", 102, 5000, false)), 10);
        let refused = site.hosts[0].try_ensure(&taken).unwrap_err();
        assert!(matches!(refused, Error::Segment(5000)), "{refused}");
        site.hosts[0].sh("ip link show theirs");
        // An address that the host does not have.
        let strange = instance("s1", &site.hosts[1].end(&spanning("strange", 103, 5001, false)), 10);
        let refused = site.hosts[0].try_ensure(&strange).unwrap_err();
        assert!(matches!(refused, Error::Underlay(address) if address == a(200, 2)), "{refused}");
    });
}

#[test]
fn what_is_right_is_left_alone() {
    isolated("overlay::what_is_right_is_left_alone", || async {
        let mut site = Site::of(2);
        let blue = spanning("blue", 100, 4096, true);
        let b1 = site.place(0, "b1", &blue, 10);
        site.place(1, "b2", &blue, 11);
        let host = &site.hosts[0];
        host.tend(std::slice::from_ref(&blue));
        // IPv6 inside instances settles on its own.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let look = || {
            let all = host.on(|_, _| everything(&["b1"]));
            // A rule's handle counts how often it was written.
            let rules = host.sh_in("fabric", "nft -a list ruleset");
            (all, rules, host.entries())
        };
        let before = look();
        assert!(before.1.contains("handle"));
        for _ in 0..2 {
            host.ensure(&b1);
            host.connect("blue", &site.peers("blue"));
            host.tend(std::slice::from_ref(&blue));
        }
        assert_eq!(look(), before);
        // The next agent finds everything, and until it is told who is where it leaves that as it is.
        host.restart();
        host.ensure(&b1);
        host.tend(std::slice::from_ref(&blue));
        assert_eq!(host.entries(), before.2);
        assert_eq!(site.reach((0, "b1"), (1, "b2"), a(100, 11)), Some(a(100, 10)));
    });
}

#[test]
fn whatever_is_broken_is_mended() {
    isolated("overlay::whatever_is_broken_is_mended", || async {
        let mut site = Site::of(2);
        let blue = spanning("blue", 100, 4096, true);
        let b1 = site.place(0, "b1", &blue, 10);
        let b2 = site.place(1, "b2", &blue, 11);
        let (outside, beyond) = beyond();
        let (host, mac) = (&site.hosts[0], b2.nics[0].mac);
        let fabric = |command: &str| {
            let device = "$(ip -o link | grep -o \" ex[0-9a-f]*\")";
            let bridge = "$(ip -o link | grep -o \" eb[0-9a-f]*\" | head -n 1)";
            let command = command.replace("EX", device).replace("EB", bridge);
            format!("nsenter --net=/run/enoki/netns/fabric sh -ec '{command}'")
        };
        let breakages = [
            "true".into(),
            fabric("ip link del EX"),
            fabric("ip link set EX down"),
            fabric("ip link set EX nomaster"),
            fabric("ip link set EX mtu 1400"),
            fabric("ip link set EB down"),
            fabric("ip link del EB"),
            fabric("for e in EX; do ip link del $e; ip link add $e type vxlan id 77 dstport 4789; done"),
            fabric("for e in EX; do ip link del $e; ip link add $e type veth peer name x; done"),
            fabric(&format!("bridge fdb del {mac} dev EX dst 198.18.200.2")),
            fabric(&format!("bridge fdb replace {mac} dev EX dst 198.18.200.9")),
            fabric("bridge fdb append 00:00:00:00:00:00 dev EX dst 198.18.200.9"),
            fabric("bridge fdb add 02:00:00:00:00:99 dev EX dst 198.18.200.9"),
            fabric("nft flush ruleset"),
            fabric("nft delete table netdev enoki; nft add table netdev enoki"),
            "umount /run/enoki/netns/fabric".into(),
            "umount /run/enoki/netns/fabric /run/enoki/netns/b1".into(),
            "umount /run/enoki/netns/*; rm -r /run/enoki".into(),
            "nft flush ruleset".into(),
        ];
        let expected = host.entries();
        for same_agent in [true, false] {
            for breakage in &breakages {
                host.sh(breakage);
                if !same_agent {
                    host.restart();
                    host.connect("blue", &site.peers("blue"));
                }
                host.ensure(&b1);
                host.tend(std::slice::from_ref(&blue));
                let reached = [
                    site.reach_soon((0, "b1"), (1, "b2"), a(100, 11)),
                    site.reach_soon((1, "b2"), (0, "b1"), a(100, 10)),
                    reach_soon(host.pin("b1"), outside.clone(), beyond),
                ];
                let right = [Some(a(100, 10)), Some(a(100, 11)), Some(a(200, 1))];
                assert_eq!(reached, right, "after {breakage}, same agent: {same_agent}");
                assert_eq!(host.entries(), expected, "after {breakage}, same agent: {same_agent}");
                let links = host.sh_in("fabric", "ip -o link");
                let count = |prefix: &str| links.matches(&format!(": {prefix}")).count();
                let counted = [count("eb"), count("ev"), count("el"), count("ex")];
                assert_eq!(counted, [1; 4], "after {breakage}: {links}");
                let screens = host.sh_in("fabric", "nft list table netdev enoki");
                assert_eq!(screens.matches(" drop").count(), 8, "after {breakage}: {screens}");
            }
        }
    });
}

/// What is killed by the next test: an instance that comes and goes for ever. Does nothing when it is not told to.
#[test]
fn endless_overlays() {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == "endless_overlays") {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let net = Linux::new().unwrap();
            let mut blue = spanning("blue", 100, 4096, true);
            if let enoki_agent::network::Kind::Vxlan(vxlan) = &mut blue.kind {
                vxlan.address = a(200, 1);
            }
            let near: Vec<Peers> = [2, 3]
                .map(|last| Peers {
                    instances: (1..50).map(|n| (Mac([2, 0, 0, 1, last, n]), a(200, last))).collect(),
                    hosts: [a(200, last)].into(),
                })
                .into();
            loop {
                for peers in &near {
                    net.connect("blue", peers).await.unwrap();
                    net.ensure(&instance("b1", &blue, 10)).await.unwrap();
                }
                net.remove("b1").await.unwrap();
                net.tend(&[]).await.unwrap();
            }
        });
    }
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    isolated("overlay::killed_at_any_moment_it_goes_on", || async {
        let mut site = Site::of(2);
        let blue = spanning("blue", 100, 4096, true);
        let b1 = site.place(0, "b1", &blue, 10);
        site.place(1, "b2", &blue, 11);
        let host = &site.hosts[0];
        for round in 0..20u64 {
            host.on(move |_, _| {
                let mut victim = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "overlay::endless_overlays"])
                    .env(INSIDE, "endless_overlays")
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap();
                std::thread::sleep(Duration::from_millis(15 + round * 7));
                assert_eq!(victim.try_wait().unwrap(), None, "it goes on until it is killed");
                victim.kill().unwrap();
                victim.wait().unwrap();
            });
            host.restart();
            host.connect("blue", &site.peers("blue"));
            host.ensure(&b1);
            let reached = [
                site.reach_soon((0, "b1"), (1, "b2"), a(100, 11)),
                reach_soon(host.pin("b1"), host.namespace.clone(), a(100, 1)),
            ];
            assert_eq!(reached, [Some(a(100, 10)); 2], "round {round}");
            assert_eq!(host.entries().len(), 2, "round {round}: {:?}", host.entries());
            host.remove("b1");
            host.tend(&[]);
            let links = host.sh_in("fabric", "ip -o link") + &host.sh("ip -o link");
            for prefix in ["eb", "ev", "el", "ek", "ex"] {
                assert!(!links.contains(&format!(": {prefix}")), "round {round} leaks: {links}");
            }
            let rules = host.sh_in("fabric", "nft list ruleset");
            assert!(!rules.contains("chain"), "round {round} leaks: {rules}");
        }
    });
}

#[test]
fn purge_leaves_nothing() {
    isolated("overlay::purge_leaves_nothing", || async {
        let mut site = Site::of(2);
        let host = &site.hosts[0];
        let state = |host: &Host| {
            host.sh("ip -o link | cut -d: -f2; nft list ruleset; ls -A /run; grep nsfs /proc/self/mountinfo || true
                ss -Hlun sport = 4789 || true")
        };
        host.sh("nft add table ip theirs; mkdir /run/enoki");
        let before = state(host);
        let blue = spanning("blue", 100, 4096, true);
        for again in [false, true] {
            let b1 = site.place(0, "b1", &blue, 10);
            if !again {
                site.place(1, "b2", &blue, 11);
            }
            assert_eq!(site.reach_soon((0, "b1"), (1, "b2"), a(100, 11)), Some(a(100, 10)));
            let host = &site.hosts[0];
            assert_ne!(state(host), before);
            for _ in 0..2 {
                host.purge();
                assert_eq!(state(host), before);
            }
            // The segment is free for others at once.
            host.sh("ip link add theirs type vxlan id 4096 dstport 4789; ip link del theirs");
            drop(b1);
        }
    });
}
