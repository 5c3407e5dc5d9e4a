//! The network with a real kernel: who reaches whom, what stays untouched, what comes back.
//!
//! Each test runs in namespaces of its own ([`world::isolated`]); it needs root. Addresses are of 198.18.0.0/15 only.

#[path = "network/mending.rs"]
mod mending;
#[path = "network/overlay.rs"]
mod overlay;
#[path = "network/site.rs"]
mod site;
#[path = "network/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use enoki_agent::network::{
    Egress, Error, Gateway, InstancePlan, Kind, Linux, Mac, Network, Peers, Simulated, Vxlan,
};

use world::*;

#[test]
fn instances_reach_their_own_segment_and_no_other() {
    isolated("instances_reach_their_own_segment_and_no_other", || async {
        let net = Linux::new().unwrap();
        let blue = network("blue", 100, Gateway::Host, Egress::Nat);
        let green = network("green", 101, Gateway::Host, Egress::Nat);
        let red = network("red", 102, Gateway::None, Egress::None);
        for (uid, network, last) in [
            ("b1", &blue, 10),
            ("b2", &blue, 11),
            ("g1", &green, 10),
            ("g2", &green, 11),
            ("r1", &red, 10),
            ("r2", &red, 11),
        ] {
            assert_eq!(net.ensure(&instance(uid, network, last)).await.unwrap(), pin(uid));
        }
        // Each sees the other under its own address, both ways: no NAT inside a segment.
        assert_eq!(reach(pin("b1"), pin("b2"), a(100, 11)), Some(a(100, 10)));
        assert_eq!(reach(pin("b2"), pin("b1"), a(100, 10)), Some(a(100, 11)));
        assert_eq!(reach(pin("g1"), pin("g2"), a(101, 11)), Some(a(101, 10)));
        assert_eq!(reach(pin("r1"), pin("r2"), a(102, 11)), Some(a(102, 10)));
        // Not another network's, although the host forwards and knows both.
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
        assert_eq!(reach(pin("g1"), pin("b1"), a(100, 10)), None);
        assert_eq!(reach(pin("b1"), pin("g1"), a(101, 10)), None);
        assert_eq!(reach(pin("r1"), pin("b1"), a(100, 10)), None);
        assert_eq!(reach(pin("b1"), pin("r1"), a(102, 10)), None);
        // The gateway, and the host to an instance; a network without a gateway has no host on it.
        assert_eq!(reach(pin("b1"), host(), a(100, 1)), Some(a(100, 10)));
        assert_eq!(reach(host(), pin("b1"), a(100, 10)), Some(a(100, 1)));
        assert_eq!(reach(pin("r1"), host(), a(102, 1)), None);
        assert_eq!(reach(host(), pin("r1"), a(102, 10)), None);
        // As for Docker's own containers; and the loopback is up.
        let setting = |name: &str| sh_in("b1", &format!("cat /proc/sys/net/ipv4/{name}"));
        assert_eq!(setting("ip_unprivileged_port_start").trim(), "0");
        let range = setting("ping_group_range");
        assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["0", "2147483647"]);
        let loopback = Ipv4Addr::LOCALHOST;
        assert_eq!(reach(pin("b1"), pin("b1"), loopback), Some(loopback));
        assert!(sh_in("b1", "ip -o link show eth0").contains("02:00:c6:12:64:0a"));
    });
}

#[test]
fn only_what_a_network_allows_leaves_it() {
    isolated("only_what_a_network_allows_leaves_it", || async {
        let (uplink, beyond) = make_outside();
        let net = Linux::new().unwrap();
        let nat = network("nat", 100, Gateway::Host, Egress::Nat);
        let closed = network("closed", 101, Gateway::Host, Egress::None);
        let mut routed = network("routed", 102, Gateway::Host, Egress::Routed);
        for (uid, network) in [("n1", &nat), ("c1", &closed), ("r1", &routed)] {
            net.ensure(&instance(uid, network, 10)).await.unwrap();
        }
        net.ensure(&instance("n2", &nat, 11)).await.unwrap();
        // Outside sees the host; it has no route to the segment, so nothing else could have worked.
        assert_eq!(reach(pin("n1"), outside(), beyond), Some(uplink));
        assert_eq!(reach(pin("n1"), pin("n2"), a(100, 11)), Some(a(100, 10)));
        sh("ip -n outside route add 198.18.0.0/16 via 198.18.250.1");
        assert_eq!(reach(pin("n1"), outside(), beyond), Some(uplink));
        assert_eq!(reach(pin("c1"), outside(), beyond), None);
        assert_eq!(reach(pin("c1"), host(), a(101, 1)), Some(a(101, 10)));
        assert_eq!(reach(pin("r1"), outside(), beyond), Some(a(102, 10)));
        // From outside only to where the network is routed.
        assert_eq!(reach(outside(), pin("r1"), a(102, 10)), Some(beyond));
        assert_eq!(reach(outside(), pin("n1"), a(100, 10)), None);
        assert_eq!(reach(outside(), pin("c1"), a(101, 10)), None);
        // Routed networks are no way into others either.
        assert_eq!(reach(pin("r1"), pin("n1"), a(100, 10)), None);
        assert_eq!(reach(pin("n1"), pin("r1"), a(102, 10)), None);

        // A borrowed sender does not get out, with the kernel's own check switched off, too.
        sh("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done");
        sh_in("r1", "ip addr add 198.18.77.7/32 dev lo");
        let listener = within(outside(), || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        listener.set_read_timeout(Some(REFUSED)).unwrap();
        let target = (beyond, listener.local_addr().unwrap().port());
        for (sender, heard) in [(a(77, 7), false), (a(102, 10), true)] {
            within(pin("r1"), move || {
                UdpSocket::bind((sender, 0)).unwrap().send_to(b"word", target).unwrap()
            });
            let arrived = listener.recv_from(&mut [0; 8]).is_ok();
            assert_eq!(arrived, heard, "from {sender}");
        }

        // A network's egress is changed live, by either way.
        routed.egress = Egress::None;
        net.tend(&[nat.clone(), closed.clone(), routed.clone()]).await.unwrap();
        assert_eq!(reach(pin("r1"), outside(), beyond), None);
        assert_eq!(reach(outside(), pin("r1"), a(102, 10)), None);
        routed.egress = Egress::Nat;
        net.ensure(&instance("r1", &routed, 10)).await.unwrap();
        assert_eq!(reach(pin("r1"), outside(), beyond), Some(uplink));
        assert_eq!(reach(outside(), pin("r1"), a(102, 10)), None);
    });
}

#[test]
fn dockers_firewall_stays_and_lets_us_through() {
    isolated("dockers_firewall_stays_and_lets_us_through", || async {
        let (uplink, beyond) = make_outside();
        // As dockerd leaves it, and a rule of the administrator's own.
        sh("iptables -N DOCKER-USER; iptables -A DOCKER-USER -s 198.18.66.0/24 -j DROP
            iptables -A DOCKER-USER -j RETURN
            iptables -A FORWARD -j DOCKER-USER; iptables -P FORWARD DROP");
        let net = Linux::new().unwrap();
        let blue = network("blue", 100, Gateway::Host, Egress::Nat);
        let green = network("green", 101, Gateway::Host, Egress::Nat);
        let both = [blue.clone(), green.clone()];
        net.ensure(&instance("b1", &blue, 10)).await.unwrap();
        net.ensure(&instance("g1", &green, 10)).await.unwrap();
        assert_eq!(reach(pin("b1"), outside(), beyond), Some(uplink));
        let rules = || sh("iptables -S DOCKER-USER");
        let first = rules();
        assert_eq!(first.matches("ek+").count(), 2, "{first}");
        assert!(first.find("198.18.66.0").unwrap() < first.find("ek+").unwrap(), "{first}");

        // Never doubled: by another network, by tending, by an agent that starts anew.
        net.ensure(&instance("g2", &green, 11)).await.unwrap();
        net.tend(&both).await.unwrap();
        let again = Linux::new().unwrap();
        again.ensure(&instance("b1", &blue, 10)).await.unwrap();
        again.tend(&both).await.unwrap();
        assert_eq!(rules(), first);

        // Put back when it is missing, as after a dockerd that made its chain anew.
        sh("iptables -F DOCKER-USER; iptables -A DOCKER-USER -j RETURN");
        assert_eq!(reach(pin("b1"), outside(), beyond), None);
        net.tend(&both).await.unwrap();
        assert_eq!(reach(pin("b1"), outside(), beyond), Some(uplink));
        assert_eq!(rules().matches("ek+").count(), 2);
        // One of them gone, and one doubled where it is never reached.
        sh("iptables -D DOCKER-USER 1; iptables -A DOCKER-USER -o ek+ -j ACCEPT");
        net.tend(&both).await.unwrap();
        assert_eq!(reach(pin("b1"), outside(), beyond), Some(uplink));
        assert_eq!(rules().matches("ek+").count(), 2);

        // What our table forbids stays forbidden behind an accept.
        assert_eq!(reach(pin("b1"), pin("g1"), a(101, 10)), None);
        // The table itself is put back, too.
        sh("nft flush ruleset; iptables -P FORWARD ACCEPT");
        assert_eq!(reach(pin("b1"), pin("g1"), a(101, 10)), Some(a(100, 10)));
        net.tend(&both).await.unwrap();
        assert_eq!(reach(pin("b1"), pin("g1"), a(101, 10)), None);
        assert_eq!(reach(pin("b1"), outside(), beyond), Some(uplink));
        // A table of that name that is not as ours should be is replaced.
        sh("nft delete table ip enoki; nft add table ip enoki
            nft add set ip enoki nat '{ type inet_service; }'");
        net.tend(&both).await.unwrap();
        assert_eq!(reach(pin("b1"), pin("g1"), a(101, 10)), None);
        assert_eq!(reach(pin("g1"), outside(), beyond), Some(uplink));
    });
}

fn sysctls() -> BTreeMap<PathBuf, String> {
    fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if let Ok(value) = std::fs::read_to_string(&path) {
                found.insert(path, value);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(Path::new("/proc/sys/net"), &mut found);
    found
}

#[test]
fn the_hosts_settings_stay_as_they_were() {
    isolated("the_hosts_settings_stay_as_they_were", || async {
        make_outside();
        sh("iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; iptables -P FORWARD DROP");
        let docker = "iptables-save | grep -v -e ek+ -e ^#";
        // A connection tracker begins with the first rule that needs it: let that be the test's.
        sh("iptables -t nat -A POSTROUTING -s 198.18.66.0/24 -j MASQUERADE");
        let (before, rules) = (sysctls(), sh(docker));
        assert_eq!(before[Path::new("/proc/sys/net/ipv4/ip_forward")].trim(), "0");
        let net = Linux::new().unwrap();
        let closed = network("closed", 101, Gateway::Host, Egress::None);
        net.ensure(&instance("c1", &closed, 10)).await.unwrap();
        let forward = sh("cat /proc/sys/net/ipv4/ip_forward");
        assert_eq!(forward.trim(), "0", "nobody needs it yet");
        let blue = network("blue", 100, Gateway::Host, Egress::Nat);
        net.ensure(&instance("b1", &blue, 10)).await.unwrap();
        net.tend(&[blue, closed]).await.unwrap();
        let ours = |path: &Path| path.iter().any(|part| part.to_string_lossy().starts_with("ek"));
        // What the kernel itself does to others when ip_forward is switched on; and a count that ticks.
        let follows = |path: &Path| {
            path.ends_with("ip_forward")
                || (path.ends_with("forwarding") && path.starts_with("/proc/sys/net/ipv4/conf"))
                || path.ends_with("ipv4/conf/all/accept_redirects")
                || path.ends_with("nf_conntrack_count")
        };
        let mut after = sysctls();
        after.retain(|path, _| !ours(path));
        for (path, value) in after.iter().filter(|(path, _)| !follows(path)) {
            assert_eq!(before.get(path), Some(value), "{}", path.display());
        }
        assert_eq!(before.len(), after.len());
        assert_eq!(sh(docker), rules);
    });
}

#[test]
fn networks_nobody_uses_go() {
    isolated("networks_nobody_uses_go", || async {
        let net = Linux::new().unwrap();
        let blue = network("blue", 100, Gateway::Host, Egress::Nat);
        let green = network("green", 101, Gateway::Host, Egress::Nat);
        net.ensure(&instance("b1", &blue, 10)).await.unwrap();
        net.ensure(&instance("g1", &green, 10)).await.unwrap();
        // Named or not: a network with an instance on it stays, also for an agent that never heard of it.
        for net in [&net, &Linux::new().unwrap()] {
            net.tend(std::slice::from_ref(&blue)).await.unwrap();
            assert_eq!(reach(pin("g1"), host(), a(101, 1)), Some(a(101, 10)));
            assert!(sh("nft list table ip enoki").contains("198.18.101.0/24"));
        }
        net.remove("g1").await.unwrap();
        net.tend(std::slice::from_ref(&blue)).await.unwrap();
        assert!(!sh("ip addr").contains("198.18.101."));
        assert!(!sh("nft list table ip enoki").contains("198.18.101."));
        assert_eq!(sh_in("fabric", "ip -o link").matches(": eb").count(), 1);
        // Its addresses are free for another, also within a wider CIDR.
        let mut wide = network("wide", 0, Gateway::Host, Egress::Nat);
        wide.cidr = "198.18.101.0/24".parse().unwrap();
        let mut w1 = instance("w1", &wide, 10);
        w1.nics[0].address = a(101, 10);
        net.ensure(&w1).await.unwrap();
        assert_eq!(reach(pin("w1"), host(), a(101, 1)), Some(a(101, 10)));
        net.remove("w1").await.unwrap();
        net.tend(std::slice::from_ref(&blue)).await.unwrap();
        wide.uid = "wider".into();
        wide.cidr = "198.18.96.0/22".parse().unwrap();
        w1.nics[0].network = wide;
        w1.nics[0].address = a(97, 10);
        net.ensure(&w1).await.unwrap();
        assert_eq!(reach(pin("w1"), host(), a(96, 1)), Some(a(97, 10)));
        // But not those that the host has elsewhere.
        let mut over = blue.clone();
        over.uid = "over".into();
        let refused = net.ensure(&instance("o1", &over, 12)).await.unwrap_err();
        assert!(matches!(refused, Error::Overlap { .. }), "{refused}");
        assert!(refused.to_string().contains("198.18.100.1/24"), "{refused}");
        // Unless that is what a network left behind that nobody is on any more, also before it is swept up.
        net.remove("b1").await.unwrap();
        net.ensure(&instance("o1", &over, 12)).await.unwrap();
        assert_eq!(reach(pin("o1"), host(), a(100, 1)), Some(a(100, 12)));
        assert_eq!(sh("ip -o addr").matches("198.18.100.1/24").count(), 1);
    });
}

#[test]
fn twenty_at_once() {
    isolated("twenty_at_once", || async {
        let net = Linux::new().unwrap();
        let blue = network("blue", 100, Gateway::Host, Egress::Nat);
        let begun = Instant::now();
        net.ensure(&instance("b9", &blue, 9)).await.unwrap();
        println!("the first, with fabric, leg and table: {:?}", begun.elapsed());
        net.remove("b9").await.unwrap();
        for what in ["made", "right already"] {
            let begun = Instant::now();
            let launches = (10..30).map(|last| {
                let (net, plan) = (net.clone(), instance(&format!("b{last}"), &blue, last));
                tokio::spawn(async move { net.ensure(&plan).await })
            });
            for result in futures::future::join_all(launches).await {
                result.unwrap().unwrap();
            }
            println!("20 instances at once, {what}: {:?}", begun.elapsed());
        }
        assert_eq!(net.instances().await.unwrap().len(), 20);
        for last in 11..30 {
            let reached = reach(pin("b10"), pin(&format!("b{last}")), a(100, last));
            assert_eq!(reached, Some(a(100, 10)));
        }
        let begun = Instant::now();
        for last in 10..20 {
            net.remove(&format!("b{last}")).await.unwrap();
        }
        println!("10 instances removed one by one: {:?}", begun.elapsed());
        let begun = Instant::now();
        let uids: Vec<String> = (20..30).map(|last| format!("b{last}")).collect();
        let removals = futures::future::join_all(uids.iter().map(|uid| net.remove(uid))).await;
        removals.into_iter().for_each(Result::unwrap);
        println!("10 instances removed at once: {:?}", begun.elapsed());
        assert!(!sh_in("fabric", "ip -o link").contains(": ev"));
        let begun = Instant::now();
        for last in 10..30 {
            net.ensure(&instance(&format!("b{last}"), &blue, last)).await.unwrap();
        }
        println!("20 instances made one by one: {:?}", begun.elapsed());
        // Neither threads nor files stay behind.
        let held =
            || ["fd", "task"].map(|kind| std::fs::read_dir(format!("/proc/self/{kind}")).unwrap().count());
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = held();
        for last in 10..30 {
            net.ensure(&instance(&format!("b{last}"), &blue, last)).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(held(), before);
        // A namespace that ends takes its links along, whoever ended it.
        sh("umount /run/enoki/netns/b1*");
        let until = Instant::now() + Duration::from_secs(5);
        while sh_in("fabric", "ip -o link").matches(": ev").count() != 10 {
            assert!(Instant::now() < until, "links of ended namespaces stay");
            std::thread::sleep(Duration::from_millis(20));
        }
        // The same instance from two sides at once.
        for _ in 0..10 {
            net.remove("b10").await.unwrap();
            let plan = instance("b10", &blue, 10);
            let (one, two) = tokio::join!(net.ensure(&plan), net.ensure(&plan));
            one.and(two).unwrap();
            assert_eq!(sh("grep -c 'netns/b10 ' /proc/self/mountinfo").trim(), "1");
            assert_eq!(reach(pin("b10"), pin("b20"), a(100, 20)), Some(a(100, 10)));
        }
    });
}

/// What both implementations promise.
async fn conformance(net: &dyn Network) {
    let blue = network("blue", 100, Gateway::Host, Egress::Nat);
    let plan = instance("b1", &blue, 10);
    assert_eq!(net.instances().await.unwrap(), Vec::<String>::new());
    net.remove("b1").await.unwrap();
    net.tend(&[]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(net.ensure(&plan).await.unwrap(), pin("b1"));
        assert_eq!(net.instances().await.unwrap(), ["b1"]);
    }
    net.ensure(&InstancePlan { uid: "bare".into(), nics: vec![] }).await.unwrap();
    assert_eq!(net.instances().await.unwrap(), ["b1", "bare"]);
    net.tend(&[]).await.unwrap();
    net.tend(std::slice::from_ref(&blue)).await.unwrap();
    for _ in 0..2 {
        net.remove("bare").await.unwrap();
        assert_eq!(net.instances().await.unwrap(), ["b1"]);
    }
    type Spoil = fn(&mut InstancePlan);
    fn span(plan: &mut InstancePlan, segment: u32, address: Ipv4Addr) {
        plan.nics[0].network.kind = Kind::Vxlan(Vxlan { segment, address });
    }
    let wrong: [(Spoil, &str); 12] = [
        (|p| span(p, 0, a(200, 1)), "segment 0"),
        (|p| span(p, Vxlan::LAST + 1, a(200, 1)), "segment 16777216"),
        (|p| span(p, 1, Ipv4Addr::LOCALHOST), "127.0.0.1"),
        (|p| p.uid = "../../etc".into(), "uid"),
        (|p| p.uid = "fabric".into(), "uid"),
        (|p| p.nics[0].name = "wlan0".into(), "eth0 to eth7"),
        (|p| p.nics.push(p.nics[0].clone()), "named twice"),
        (|p| p.nics[0].address = a(101, 10), "198.18.101.10 is not a host address of 198.18.100.0/24"),
        (|p| p.nics[0].address = a(100, 255), "not a host address"),
        (|p| p.nics[0].address = a(100, 1), "the gateway's"),
        (|p| p.nics[0].mac = Mac([1; 6]), "unicast"),
        (|p| p.nics[0].egress_bits = Some(1), "rate"),
    ];
    for (spoil, word) in wrong {
        let mut plan = plan.clone();
        spoil(&mut plan);
        let refused = net.ensure(&plan).await.unwrap_err();
        let said = refused.to_string();
        assert!(matches!(refused, Error::Invalid(_)) && said.contains(word), "{said}");
    }
    // Peers may be told at any time; those that no frame could be sent to are refused.
    let peers = Peers { instances: [(Mac([2; 6]), a(200, 2))].into(), hosts: [a(200, 2)].into() };
    net.connect("nowhere", &peers).await.unwrap();
    let wrong = [
        Peers { instances: [(Mac([0; 6]), a(200, 2))].into(), ..Peers::default() },
        Peers { instances: [(Mac([2; 6]), Ipv4Addr::BROADCAST)].into(), ..Peers::default() },
        Peers { hosts: [Ipv4Addr::new(224, 0, 0, 1)].into(), ..Peers::default() },
    ];
    for peers in wrong {
        let refused = net.connect("nowhere", &peers).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    }
    for _ in 0..2 {
        net.purge().await.unwrap();
        assert_eq!(net.instances().await.unwrap(), Vec::<String>::new());
    }
}

#[test]
fn the_real_network_keeps_the_contract() {
    isolated("the_real_network_keeps_the_contract", || async {
        conformance(&Linux::new().unwrap()).await;
    });
}

#[tokio::test]
async fn the_simulated_network_keeps_the_contract() {
    let net = Simulated::new();
    conformance(&net).await;
    let blue = network("blue", 100, Gateway::Host, Egress::Nat);
    net.ensure(&instance("b1", &blue, 10)).await.unwrap();
    let before = net.world();
    net.ensure(&instance("b1", &blue, 10)).await.unwrap();
    net.tend(&[blue]).await.unwrap();
    assert_eq!(net.world(), before, "what is right is left alone");
    net.tend(&[]).await.unwrap();
    assert_eq!(net.world().legs.len(), 1, "an instance is on it");
    net.refuse(1);
    assert!(net.remove("b1").await.is_err());
    net.remove("b1").await.unwrap();
    net.tend(&[]).await.unwrap();
    assert!(net.world().legs.is_empty() && net.world().bridges.is_empty());
    net.reboot();
    assert_eq!(net.instances().await.unwrap(), Vec::<String>::new());
}
