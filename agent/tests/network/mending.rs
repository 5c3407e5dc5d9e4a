//! What is right is left alone, what is wrong is mended, what is killed goes on, what is purged is gone.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use enoki_agent::network::{Egress, Gateway, Linux, Network};
use nix::sched::{CloneFlags, setns};

use super::world::*;

#[test]
fn what_is_right_is_left_alone() {
    isolated("mending::what_is_right_is_left_alone", || async {
        sh("iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN");
        let blue = network("blue", 100, Gateway::Host, Egress::Nat);
        let lone = network("lone", 101, Gateway::Address(a(101, 5)), Egress::None);
        let both = [blue.clone(), lone.clone()];
        let mut b1 = instance("b1", &blue, 10);
        b1.nics.push(nic("eth1", &lone, 10));
        b1.nics[0].egress_bits = Some(100_000_000);
        b1.nics[1].ingress_bits = Some(50_000_000_000);
        let b2 = instance("b2", &blue, 11);
        let net = Linux::new().unwrap();
        net.ensure(&b1).await.unwrap();
        net.ensure(&b2).await.unwrap();
        net.tend(&both).await.unwrap();
        let mut session = Session::open("b1", "b2", a(100, 11));
        session.works();
        // IPv6 inside instances settles on its own.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = everything(&["b1", "b2"]);
        for _ in 0..2 {
            net.ensure(&b1).await.unwrap();
            net.ensure(&b2).await.unwrap();
            net.tend(&both).await.unwrap();
        }
        assert_eq!(everything(&["b1", "b2"]), before);
        session.works();
        // An agent that starts anew adopts it all. It writes the table once more, with the same content.
        drop(net);
        let net = Linux::new().unwrap();
        assert_eq!(net.instances().await.unwrap(), ["b1", "b2"]);
        net.ensure(&b1).await.unwrap();
        net.ensure(&b2).await.unwrap();
        net.tend(&both).await.unwrap();
        let content = |text: &str| -> Vec<String> {
            let lines = text.lines().map(|line| line.split(" # handle").next().unwrap().to_owned());
            lines.collect()
        };
        assert_eq!(content(&everything(&["b1", "b2"])), content(&before));
        session.works();
    });
}

#[test]
fn changes_are_made_live() {
    isolated("mending::changes_are_made_live", || async {
        let net = Linux::new().unwrap();
        let blue = network("blue", 100, Gateway::Host, Egress::Nat);
        let lone = network("lone", 101, Gateway::Address(a(101, 5)), Egress::None);
        net.ensure(&instance("b2", &blue, 11)).await.unwrap();
        let mut b1 = instance("b1", &blue, 10);
        b1.nics[0].egress_bits = Some(100_000_000);
        b1.nics[0].ingress_bits = Some(40_000_000_000);
        net.ensure(&b1).await.unwrap();
        let inside = || sh_in("b1", "tc qdisc show dev eth0");
        let outside = || sh_in("fabric", "tc qdisc");
        assert!(inside().contains("tbf") && inside().contains("rate 100Mbit"), "{}", inside());
        assert!(outside().contains("tbf") && outside().contains("rate 40Gbit"), "{}", outside());
        let mut session = Session::open("b1", "b2", a(100, 11));
        b1.nics[0].egress_bits = Some(200_000_000);
        b1.nics[0].ingress_bits = None;
        net.ensure(&b1).await.unwrap();
        assert!(inside().contains("rate 200Mbit"), "{}", inside());
        assert!(!outside().contains("tbf"), "{}", outside());
        session.works();
        b1.nics[0].egress_bits = None;
        net.ensure(&b1).await.unwrap();
        assert!(!inside().contains("tbf"), "{}", inside());

        // A second NIC comes and goes without a flap of the first.
        b1.nics.insert(0, nic("eth1", &lone, 10));
        net.ensure(&b1).await.unwrap();
        let routes = sh_in("b1", "ip route");
        assert!(routes.contains("default via 198.18.101.5 dev eth1"), "{routes}");
        session.works();
        b1.nics.remove(0);
        net.ensure(&b1).await.unwrap();
        let routes = sh_in("b1", "ip route");
        assert!(routes.contains("default via 198.18.100.1 dev eth0"), "{routes}");
        assert!(!sh_in("b1", "ip -o link").contains("eth1"));
        session.works();

        // Another address, then another network.
        b1.nics[0].address = a(100, 20);
        net.ensure(&b1).await.unwrap();
        assert_eq!(reach(pin("b2"), pin("b1"), a(100, 20)), Some(a(100, 11)));
        assert_eq!(reach(pin("b2"), pin("b1"), a(100, 10)), None);
        assert_eq!(reach(pin("b1"), host(), a(100, 1)), Some(a(100, 20)));
        // Whoever takes an address over is found at once by those who knew the one before.
        let mut b3 = instance("b3", &blue, 20);
        b3.nics[0].mac.0[5] = 0xff;
        net.remove("b1").await.unwrap();
        net.ensure(&b3).await.unwrap();
        assert_eq!(reach(pin("b2"), pin("b3"), a(100, 20)), Some(a(100, 11)));
        assert_eq!(reach(host(), pin("b3"), a(100, 20)), Some(a(100, 1)));
        net.ensure(&b1).await.unwrap();
        let green = network("green", 102, Gateway::Host, Egress::None);
        net.ensure(&instance("b1", &green, 10)).await.unwrap();
        assert_eq!(reach(pin("b1"), host(), a(102, 1)), Some(a(102, 10)));
        assert_eq!(reach(pin("b2"), pin("b1"), a(102, 10)), None);
    });
}

/// Shell for the names of all links with a prefix.
fn links(prefix: &str) -> String {
    format!("$(ip -o link | grep -o ' {prefix}[0-9a-f]*' | sort -u)")
}

#[test]
fn whatever_is_broken_is_mended() {
    isolated("mending::whatever_is_broken_is_mended", || async {
        let (uplink, beyond) = make_outside();
        let blue = network("blue", 100, Gateway::Host, Egress::Nat);
        let (b1, b2) = (instance("b1", &blue, 10), instance("b2", &blue, 11));
        let pins = "/run/enoki/netns";
        let inside = |command: &str| format!("nsenter --net={pins}/b1 sh -ec '{command}'");
        let fabric = |prefix: &str, command: &str| {
            let names = links(prefix).replace('\'', "\"");
            format!("nsenter --net={pins}/fabric sh -ec 'for e in {names}; do ip link {command}; done'")
        };
        let leg = |command: &str| format!("for e in {}; do ip {command}; done", links("ek"));
        let breakages = [
            "true".into(),
            inside("ip link del eth0"),
            inside("ip link set eth0 down; ip link set eth0 name other"),
            inside("ip link set eth0 down"),
            inside("ip addr flush dev eth0"),
            inside("ip addr add 198.18.100.77/24 dev eth0"),
            inside("ip route del default"),
            inside("ip link set eth0 address 02:01:01:01:01:01 mtu 1400"),
            inside("ip link del eth0; ip link add eth0 type veth peer name x"),
            fabric("ev", "set $e nomaster"),
            fabric("ev", "set $e down"),
            fabric("eb", "set $e down"),
            fabric("eb", "del $e"),
            fabric("el", "set $e nomaster down"),
            fabric("el", "del $e"),
            leg("link del $e"),
            leg("link set $e down"),
            leg("addr flush dev $e"),
            leg("addr add 198.18.99.1/24 dev $e"),
            format!("umount {pins}/b1"),
            format!("umount {pins}/b1; rm {pins}/b1"),
            format!("umount {pins}/fabric"),
            format!("umount {pins}/fabric {pins}/b1 {pins}/b2"),
            format!("umount {pins}/*; rm -r /run/enoki; {}", leg("link del $e")),
            "nft delete table ip enoki".into(),
            "nft flush ruleset".into(),
            "echo 0 > /proc/sys/net/ipv4/ip_forward".into(),
        ];
        let mut net = Linux::new().unwrap();
        net.ensure(&b1).await.unwrap();
        net.ensure(&b2).await.unwrap();
        for same_agent in [true, false] {
            for breakage in &breakages {
                sh(breakage);
                if !same_agent {
                    net = Linux::new().unwrap();
                }
                let failed = |e| panic!("after {breakage}: {e}");
                net.ensure(&b1).await.map_or_else(failed, drop);
                net.ensure(&b2).await.map_or_else(failed, drop);
                net.tend(std::slice::from_ref(&blue)).await.unwrap_or_else(failed);
                let reached = [
                    reach_soon(pin("b1"), pin("b2"), a(100, 11)),
                    reach_soon(pin("b1"), host(), a(100, 1)),
                    reach_soon(pin("b2"), outside(), beyond),
                ];
                let right = [Some(a(100, 10)), Some(a(100, 10)), Some(uplink)];
                assert_eq!(reached, right, "after {breakage}, same agent: {same_agent}");
                let links = sh_in("fabric", "ip -o link");
                let count = |prefix: &str| links.matches(&format!(": {prefix}")).count();
                assert_eq!([count("eb"), count("ev"), count("el")], [1, 2, 1], "after {breakage}: {links}");
                let pinned = sh("grep -c 'netns/b1 ' /proc/self/mountinfo");
                assert_eq!(pinned.trim(), "1", "after {breakage}");
            }
        }
    });
}

/// What is killed by the next test: makes and removes instances for ever. Does nothing when it is not told to.
#[test]
fn endless_launches() {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == "endless_launches") {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let net = Linux::new().unwrap();
            let blue = network("blue", 100, Gateway::Host, Egress::Nat);
            loop {
                for last in 10..20 {
                    let plan = instance(&format!("b{last}"), &blue, last);
                    net.ensure(&plan).await.unwrap();
                }
                for last in 10..20 {
                    net.remove(&format!("b{last}")).await.unwrap();
                }
                net.tend(&[]).await.unwrap();
            }
        });
    }
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    isolated("mending::killed_at_any_moment_it_goes_on", || async {
        let blue = network("blue", 100, Gateway::Host, Egress::Nat);
        for round in 0..25u64 {
            let mut victim = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "mending::endless_launches"])
                .env(INSIDE, "endless_launches")
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            tokio::time::sleep(Duration::from_millis(15 + round * 7)).await;
            victim.kill().unwrap();
            victim.wait().unwrap();
            let net = Linux::new().unwrap();
            for last in [10, 11] {
                net.ensure(&instance(&format!("b{last}"), &blue, last)).await.unwrap();
            }
            let reached = (reach(pin("b10"), pin("b11"), a(100, 11)), reach(pin("b10"), host(), a(100, 1)));
            assert_eq!(reached, (Some(a(100, 10)), Some(a(100, 10))), "round {round}");
            for uid in net.instances().await.unwrap() {
                net.remove(&uid).await.unwrap();
            }
            net.tend(&[]).await.unwrap();
            let links = sh_in("fabric", "ip -o link") + &sh("ip -o link");
            for prefix in ["eb", "ev", "el", "ek"] {
                assert!(!links.contains(&format!(": {prefix}")), "round {round} leaks: {links}");
            }
            let table = sh("nft list table ip enoki");
            assert!(!table.contains("elements"), "round {round} leaks: {table}");
        }
    });
}

#[test]
fn purge_leaves_nothing() {
    isolated("mending::purge_leaves_nothing", || async {
        // Somebody else's rules and namespace stay.
        sh("iptables -N DOCKER-USER; iptables -A DOCKER-USER -s 198.18.66.0/24 -j DROP
            iptables -A DOCKER-USER -j RETURN; nft add table ip theirs
            ip netns add theirs; mkdir /run/enoki");
        let state = || {
            sh("ip -o link | cut -d: -f2; nft list ruleset; ls -A /run /run/enoki
                grep nsfs /proc/self/mountinfo || true")
        };
        let before = state();
        let net = Linux::new().unwrap();
        let blue = network("blue", 100, Gateway::Host, Egress::Nat);
        let lone = network("lone", 101, Gateway::None, Egress::None);
        net.ensure(&instance("b1", &blue, 10)).await.unwrap();
        net.ensure(&instance("l1", &lone, 10)).await.unwrap();
        // As a process that still runs in it.
        let held = File::open(pin("b1")).unwrap();
        assert_ne!(state(), before);
        for _ in 0..2 {
            net.purge().await.unwrap();
            assert_eq!(state(), before);
        }
        let links = std::thread::spawn(move || {
            setns(held, CloneFlags::CLONE_NEWNET).unwrap();
            sh("ip -o link")
        });
        assert!(!links.join().unwrap().contains("eth0"));
        // And from the beginning.
        net.ensure(&instance("b1", &blue, 10)).await.unwrap();
        assert_eq!(reach(pin("b1"), host(), a(100, 1)), Some(a(100, 10)));
        // Another process purges, as `down` does.
        Linux::new().unwrap().purge().await.unwrap();
        assert_eq!(state(), before);
    });
}
