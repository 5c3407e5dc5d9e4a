//! Networks on a real cloud: who reaches whom and who does not, addresses, and what stays as it was on the host.

#[path = "support/checks.rs"]
mod checks;

use enoki_harness::{Cloud, Output, Signal, eventually, is_root};
use serde_json::{Value, json};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
/// All of the namespace's network settings that do not count or change by themselves; of interfaces that were there.
const SYSCTLS: &str = "cd /proc/sys/net && find . -type f -readable ! -path '*/neigh/*' ! -path './*/conf/[!adl]*' \
     ! -name stat_refresh ! -name nf_conntrack_count ! -name flush ! -path './core/*' -exec grep -H . {} + 2>/dev/null | sort; true";

#[test]
fn networks() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::bare();
    cloud.sh("ip link set lo up").ok();
    let before = cloud.sh(SYSCTLS).ok().stdout;
    assert!(before.lines().count() > 100, "settings to compare: {before}");
    cloud.up();
    cloud.import_tiny();
    let mut failed = checks::run(
        &cloud,
        &[
            ("the default network and the host", default_network),
            ("addresses", addresses),
            ("a machine's own ports", ports_and_ping),
            ("rates", rates),
            ("the way out", way_out),
        ],
    );
    failed.extend(checks::run(&cloud, &[("isolation", isolation)]));
    failed.extend(checks::run(&cloud, &[("Docker's own networks", docker_networks)]));
    let after = cloud.sh(SYSCTLS).ok().stdout;
    let changed: Vec<&str> = before
        .lines()
        .filter(|line| !after.lines().any(|other| other == *line))
        .filter(|line| !line.starts_with("./ipv4/ip_forward:") && !line.contains("/forwarding:"))
        // Switching forwarding on makes the kernel reset this one by itself.
        .filter(|line| !line.contains("/accept_redirects:") && !line.contains("bridge-nf-call"))
        .collect();
    assert!(changed.is_empty(), "changed settings: {changed:#?}");
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// One host is real; what the other one would have written stands in the store.
#[test]
fn a_network_that_spans_hosts() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::bare();
    cloud
        .sh("ip link set lo up; ip link add under0 type veth peer name far0; ip addr add 198.18.200.1/24 dev under0
             ip link set under0 up; ip link set far0 up; echo 'address = \"198.18.200.1\"' > /etc/enoki/agent.toml")
        .ok();
    cloud.up();
    cloud.import_tiny();
    let networks = "/v1/projects/default/networks";
    let make = |name: &str, third: u8, segment: Value| {
        let mut spec = json!({"type": "vxlan", "cidr": format!("198.18.{third}.0/24"), "gateway": "host", "egress": "nat"});
        if !segment.is_null() {
            spec["segment"] = segment;
        }
        cloud.api("POST", networks, Some(&json!({"kind": "network", "name": name, "spec": spec})))
    };
    let blue = make("blue", 100, Value::Null).expect(201);
    assert_eq!(blue.json["spec"]["segment"], 4096, "{}", blue.body);
    assert_eq!(make("green", 101, Value::Null).expect(201).json["spec"]["segment"], 4097);
    let taken = make("red", 102, json!(4096)).expect(409);
    assert_eq!(
        (taken.problem(), taken.json["holder"].as_str()),
        ("segment_taken", Some("network default/blue"))
    );
    make("red", 102, json!(7)).expect(201);
    // The same without its number is the same; another number is not.
    let same = json!({"kind": "network", "name": "blue", "spec":
        {"type": "vxlan", "cidr": "198.18.100.0/24", "gateway": "host", "egress": "nat"}});
    let put = cloud.api("PUT", &format!("{networks}/blue"), Some(&same)).expect(200);
    assert_eq!(
        (put.json["generation"].as_u64(), put.json["spec"]["segment"].as_u64()),
        (Some(1), Some(4096))
    );
    let mut other = same.clone();
    other["spec"]["segment"] = json!(4098);
    assert_eq!(
        cloud.api("PUT", &format!("{networks}/blue"), Some(&other)).expect(422).problem(),
        "immutable_field"
    );
    // What is deleted is free again.
    cloud.enoki(&["delete", "network", "green"]).ok();
    assert_eq!(make("lime", 103, Value::Null).expect(201).json["spec"]["segment"], 4097);
    let host = cloud.api("GET", "/v1/hosts", None).expect(200).json["items"][0].clone();
    assert_eq!(host["status"]["address"], "198.18.200.1", "{host}");

    run(&cloud, "b1", &["--network", "blue:198.18.100.10", "--wait"]).ok();
    let mtu = sh(&cloud, "b1", "cat /sys/class/net/eth0/mtu").ok();
    assert_eq!(mtu.text(), "1450");
    reaches(&cloud, "b1", "198.18.100.1");
    let entries = || {
        let all = cloud.sh("nsenter --net=/run/enoki/netns/fabric bridge fdb show").ok().stdout;
        let mut entries: Vec<String> =
            all.lines().filter(|line| line.contains(" dst ")).map(String::from).collect();
        entries.sort();
        entries
    };
    assert_eq!(entries(), Vec::<String>::new());
    // A second host with an instance on it, as its agent and the leader would write them.
    let etcdctl =
        |what: &str| cloud.sh(&format!("set -a; . /etc/enoki/etcdctl.env; etcdctl {what}")).ok().stdout;
    let read = |key: &str| -> Value {
        let text = etcdctl(&format!("get --print-value-only /enoki/v1/{key}"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{key}: {e}: {text}"))
    };
    // One transaction, or the leader would place what has no assignment yet.
    let write = |all: &[(&str, &Value)]| {
        let puts: Vec<String> = all
            .iter()
            .map(|(key, value)| format!("put /enoki/v1/{key} {}", json!(value.to_string())))
            .collect();
        // A blank line ends the conditions, of which there are none.
        let done = etcdctl(&format!("txn <<'END'\n\n{}\n\n\nEND", puts.join("\n")));
        assert!(done.starts_with("SUCCESS") && done.contains("OK"), "{done}");
    };
    let uid = "5d2c1f0e-1111-4222-8333-444455556666";
    let mac = "02:00:00:00:00:44";
    let claim = json!({"instance": "default/b2", "uid": uid, "mac": mac, "since": "2026-11-22T10:00:00Z"});
    let mut b2 = read("instances/default/b1");
    (b2["name"], b2["uid"]) = (json!("b2"), json!(uid));
    b2["spec"]["nics"]["eth0"]["address"] = json!("198.18.100.11");
    let mut bound = read("assignments/default/b1");
    (bound["uid"], bound["host"]) = (json!(uid), json!("far"));
    bound["nics"]["eth0"]["address"] = json!("198.18.100.11");
    bound["nics"]["eth0"]["mac"] = json!(mac);
    write(&[
        ("status/hosts/far", &json!({"phase": "lost", "address": "198.18.200.2"})),
        ("addresses/default/blue/198.18.100.11", &claim),
        ("instances/default/b2", &b2),
        ("assignments/default/b2", &bound),
    ]);
    let told = |expected: &[&str]| {
        eventually(&format!("entries {expected:?}"), WAIT, || {
            let found = entries();
            let right =
                found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| f.starts_with(e));
            if right { Ok(()) } else { Err(format!("{found:?}")) }
        });
    };
    let everybody = "00:00:00:00:00:00 dev ex";
    let known = "02:00:00:00:00:44 dev ex";
    told(&[everybody, known]);
    assert!(entries().iter().all(|entry| entry.contains(" dst 198.18.200.2 ")), "{:?}", entries());
    // Its host gets another address; then it goes.
    write(&[("status/hosts/far", &json!({"phase": "lost", "address": "198.18.200.3"}))]);
    eventually("the new address", WAIT, || {
        let found = entries();
        if found.iter().all(|entry| entry.contains(" dst 198.18.200.3 ")) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
    told(&[everybody, known]);
    // The next agent keeps it without being told, and all is gone with the last instance.
    let pid = cloud.kill("agent", Signal::SIGKILL);
    told(&[everybody, known]);
    eventually("the agent is back", WAIT, || match cloud.find("agent") {
        Some(new) if new != pid => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cloud.enoki(&["restart", "b1"]).ok();
    told(&[everybody, known]);
    etcdctl("del /enoki/v1/instances/default/b2; etcdctl del /enoki/v1/assignments/default/b2");
    told(&[]);
    cloud.enoki(&["delete", "instance", "b1"]).ok();
    eventually("no device is left", WAIT, || {
        let links = cloud.sh("nsenter --net=/run/enoki/netns/fabric ip -o link").ok().stdout;
        if links.contains(": ex") { Err(links) } else { Ok(()) }
    });
}

fn instance(cloud: &Cloud, name: &str) -> Value {
    cloud.enoki(&["get", "instance", name, "-o", "json"]).ok().json()
}

fn address(cloud: &Cloud, name: &str) -> String {
    instance(cloud, name)["status"]["nics"]["eth0"]["address"].as_str().expect("an address").to_owned()
}

fn run(cloud: &Cloud, name: &str, flags: &[&str]) -> Output {
    cloud.enoki(&[&["run", name, "--image", "enoki/tiny:1"], flags, &["--", "sleep", "infinity"]].concat())
}

fn sh(cloud: &Cloud, name: &str, script: &str) -> Output {
    cloud.enoki(&["exec", name, "--", "sh", "-c", script])
}

fn network(cloud: &Cloud, name: &str, cidr: &str) {
    cloud.enoki(&["network", "create", name, "--type", "local", "--cidr", cidr]).ok();
}

#[track_caller]
fn reaches(cloud: &Cloud, from: &str, to: &str) {
    sh(cloud, from, &format!("ping -c 1 -W 2 {to}")).ok();
}

#[track_caller]
fn reaches_not(cloud: &Cloud, from: &str, to: &str) {
    sh(cloud, from, &format!("ping -c 1 -W 1 {to}")).exits(1);
}

fn isolation(cloud: &Cloud) {
    network(cloud, "blue", "198.18.100.0/24");
    network(cloud, "red", "198.18.101.0/24");
    // The same addresses on a network of its own: nothing of it may answer for blue's.
    network(cloud, "twin", "198.18.102.0/24");
    run(cloud, "b1", &["--network", "blue:198.18.100.10", "--wait"]).ok();
    run(cloud, "b2", &["--network", "blue:198.18.100.11", "--wait"]).ok();
    run(cloud, "r1", &["--network", "red:198.18.101.10", "--wait"]).ok();
    run(cloud, "r2", &["--network", "red:198.18.101.11", "--wait"]).ok();
    let now = |when: &str| {
        eprintln!("isolation {when}");
        // Even with a route and an address of the other's, which root inside may set... and may not, but tries.
        let _ = sh(cloud, "r1", "ip route add 198.18.100.0/24 dev eth0 2>/dev/null");
        // In the same second: three at once.
        let tried = cloud.sh(
            "enoki exec b1 -- ping -c 1 -W 2 198.18.100.11 >/dev/null & a=$!; enoki exec r1 -- ping -c 1 -W 2 198.18.100.11 >/dev/null & b=$!; \
             enoki exec r1 -- ping -c 1 -W 2 198.18.101.11 >/dev/null & c=$!; \
             wait $a && echo blue; wait $b && echo across; wait $c && echo red; true",
        );
        assert_eq!(tried.ok().stdout, "blue\nred\n", "{when}");
        reaches_not(cloud, "b1", "198.18.101.10");
    };
    now("at first");
    let pid = cloud.kill("dockerd", Signal::SIGKILL);
    eventually("dockerd is back", WAIT, || match cloud.find("dockerd") {
        Some(new) if new != pid && cloud.docker(&["version"]).code() == 0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eventually("exec works again", WAIT, || {
        let out = sh(cloud, "b1", "true");
        if out.code() == 0 { Ok(()) } else { Err(out.to_string()) }
    });
    now("after dockerd's restart");
    cloud.enoki(&["restart", "b2"]).ok();
    now("after an instance's restart");
}

fn default_network(cloud: &Cloud) {
    let made = cloud.api("GET", "/v1/projects/default/networks/default", None).expect(200).json;
    assert_eq!(made["spec"]["type"], "local", "a cloud of one machine needs no tunnels");
    run(cloud, "d1", &["--wait"]).ok();
    let to = address(cloud, "d1");
    assert!(to.starts_with("198.19."), "{to}");
    sh(
        cloud,
        "d1",
        "mkdir -p /srv/www && echo hello from d1 > /srv/www/index.html && httpd -p 80 -h /srv/www",
    )
    .ok();
    let page = cloud.run(&["curl", "-sS", "--max-time", "5", &format!("http://{to}/")]).ok();
    assert_eq!(page.stdout, "hello from d1\n");
    cloud.run(&["ping", "-c", "1", "-W", "2", &to]).ok();
    let route = sh(cloud, "d1", "ip route show default").ok();
    let gateway = route.stdout.split_whitespace().nth(2).unwrap_or_default().to_owned();
    reaches(cloud, "d1", &gateway);
    let resolv = sh(cloud, "d1", "cat /etc/resolv.conf").ok();
    assert!(
        !resolv.stdout.contains("nameserver 127.") && !resolv.stdout.contains("nameserver ::1"),
        "{resolv}"
    );
    // No forwarding for strangers: one leg does not lead to another.
    let other = json!({"kind": "network", "name": "second", "spec": {"type": "local", "cidr": "198.18.120.0/24", "gateway": "host"}});
    cloud.api("POST", "/v1/projects/default/networks", Some(&other)).expect(201);
    run(cloud, "d2", &["--network", "second", "--wait"]).ok();
    let second = address(cloud, "d2");
    cloud.run(&["ping", "-c", "1", "-W", "2", &second]).ok();
    reaches_not(cloud, "d1", &second);
    reaches_not(cloud, "d2", &to);
}

fn addresses(cloud: &Cloud) {
    network(cloud, "addr", "198.18.103.0/29");
    run(cloud, "a1", &["--network", "addr", "--address", "198.18.103.3", "--wait"]).ok();
    let body = |name: &str, address: &str| {
        json!({"name": name, "spec": {"image": "enoki/tiny:1", "command": ["sleep", "infinity"],
               "nics": {"eth0": {"network": "addr", "address": address}}}})
    };
    let post = |name: &str, address: &str| {
        cloud.api("POST", "/v1/projects/default/instances", Some(&body(name, address)))
    };
    let taken = post("a2", "198.18.103.3").expect(409);
    assert_eq!(taken.problem(), "address_taken", "{}", taken.body);
    assert!(taken.json["holder"].to_string().contains("a1"), "{}", taken.body);
    let outside = post("a2", "198.18.104.3").expect(422);
    assert_eq!(outside.problem(), "address_outside_network", "{}", outside.body);
    for special in ["198.18.103.0", "198.18.103.7"] {
        let refused = post("a2", special);
        assert_eq!(refused.status, 422, "{special}: {}", refused.body);
    }
    let mac = |name: &str| sh(cloud, name, "cat /sys/class/net/eth0/address").ok().stdout;
    let first = mac("a1");
    cloud.enoki(&["restart", "a1"]).ok();
    assert_eq!(mac("a1"), first, "the MAC stays over a restart");
    cloud.enoki(&["delete", "instance", "a1", "--force"]).ok();
    // Held down: every automatic address but this one is given out, as far as there are any.
    let mut given = Vec::new();
    for name in ["h1", "h2", "h3"] {
        run(cloud, name, &["--network", "addr", "--wait"]).ok();
        given.push(address(cloud, name));
    }
    assert!(!given.contains(&"198.18.103.3".to_owned()), "{given:?}");
    post("a1", "198.18.103.3").expect(201);
    eventually("the name's address by name", WAIT, || {
        let object = instance(cloud, "a1");
        if object["status"]["phase"] == "running" { Ok(()) } else { Err(object["status"].to_string()) }
    });
    assert_eq!(address(cloud, "a1"), "198.18.103.3");
    let used = cloud.enoki(&["delete", "network", "addr"]).exits(1);
    assert!(used.stderr.contains("in_use"), "{used}");
    for name in ["a1", "h1", "h2", "h3"] {
        cloud.enoki(&["delete", "instance", name, "--force"]).ok();
    }
    cloud.enoki(&["delete", "network", "addr"]).ok();
    let twice = json!({"name": "over", "spec": {"type": "local", "cidr": "198.18.105.0/33"}});
    assert_eq!(cloud.api("POST", "/v1/projects/default/networks", Some(&twice)).status, 422);
}

fn ports_and_ping(cloud: &Cloud) {
    run(cloud, "p1", &["--wait"]).ok();
    let inside = "mkdir -p /srv/web; echo page > /srv/web/index.html; chmod -R a+rX /srv/web; \
                  su -s /bin/sh nobody -c 'id -u; httpd -p 80 -h /srv/web'";
    let out = sh(cloud, "p1", inside).ok();
    assert_eq!(out.text(), "65534");
    let page = cloud.run(&["curl", "-sS", "--max-time", "5", &format!("http://{}/", address(cloud, "p1"))]);
    assert_eq!(page.ok().stdout, "page\n");
    let range = sh(cloud, "p1", "cat /proc/sys/net/ipv4/ping_group_range").ok();
    assert!(range.stdout.starts_with("0\t"), "{range}");
}

fn rates(cloud: &Cloud) {
    let body = json!({"name": "q1", "spec": {"image": "enoki/tiny:1", "command": ["sleep", "infinity"],
                      "nics": {"eth0": {"egress": "20Mbit", "ingress": "30Mbit"}}}});
    cloud.api("POST", "/v1/projects/default/instances?wait=running&timeout=60s", Some(&body)).expect(201);
    let pid = instance(cloud, "q1")["status"]["pid"].to_string();
    let held = || {
        cloud
            .sh(&format!(
                "nsenter -t {pid} -n tc qdisc show; nsenter -t {pid} -n tc class show dev eth0; \
             nsenter --net=/run/enoki/netns/fabric tc qdisc show"
            ))
            .ok()
            .stdout
    };
    let seen = held();
    assert!(seen.contains("20Mbit") && seen.contains("30Mbit"), "{seen}");
    let patch = json!({"spec": {"nics": {"eth0": {"egress": "40Mbit", "ingress": null}}}});
    cloud
        .api_raw(
            "PATCH",
            "/v1/projects/default/instances/q1",
            &[("content-type", "application/merge-patch+json")],
            Some(patch.to_string().as_bytes()),
        )
        .expect(200);
    eventually("the new rate", WAIT, || {
        let seen = held();
        if seen.contains("40Mbit") && !seen.contains("30Mbit") && !seen.contains("20Mbit") {
            Ok(())
        } else {
            Err(seen)
        }
    });
    assert_eq!(instance(cloud, "q1")["status"]["pid"].to_string(), pid, "the same process");
}

fn way_out(cloud: &Cloud) {
    // Another machine on the host's wire, that knows no way to our networks: only NAT brings an answer back.
    cloud
        .sh("unshare --net sleep 300 & s=$!; echo $s > /run/outside; sleep 0.3; ip link add out0 type veth peer name wire0 netns $s; \
             ip addr add 198.18.200.1/24 dev out0; ip link set out0 up; \
             nsenter -t $s -n sh -c 'ip link set lo up; ip addr add 198.18.200.2/24 dev wire0; ip link set wire0 up'; \
             ip route add default via 198.18.200.2 2>/dev/null || true")
        .ok();
    run(cloud, "o1", &["--wait"]).ok();
    reaches(cloud, "o1", "198.18.200.2");
    // From out there nobody starts a talk with an instance, even with a route to it.
    let to = address(cloud, "o1");
    let inward = cloud.sh(&format!(
        "o=$(cat /run/outside); nsenter -t $o -n ip route add 198.19.0.0/16 via 198.18.200.1; nsenter -t $o -n ping -c 1 -W 2 198.18.200.1 >/dev/null && echo wire; \
         nsenter -t $o -n ping -c 1 -W 1 {to} >/dev/null && echo in; nsenter -t $o -n ip route del 198.19.0.0/16; true"
    ));
    assert_eq!(inward.ok().stdout, "wire\n");
    // Without egress there is no way.
    network(cloud, "closed", "198.18.106.0/24");
    run(cloud, "o2", &["--network", "closed", "--wait"]).ok();
    sh(cloud, "o2", "ping -c 1 -W 1 198.18.200.2").exits(1);
    cloud.sh("kill $(cat /run/outside)").ok();
}

fn docker_networks(cloud: &Cloud) {
    // The cloud's own dockerd has neither bridge nor iptables on request of the harness; where it refuses, the two
    // bridges still must not be joined by us.
    let make = |name: &str, subnet: &str| cloud.docker(&["network", "create", "--subnet", subnet, name]);
    make("one", "198.18.210.0/24").ok();
    make("two", "198.18.211.0/24").ok();
    let id = |network: &str, name: &str| {
        cloud
            .docker(&[
                "run",
                "-d",
                "--runtime",
                "runc",
                "--name",
                name,
                "--network",
                network,
                "enoki/tiny:1",
                "sleep",
                "infinity",
            ])
            .ok();
        cloud
            .docker(&["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name])
            .ok()
            .text()
            .to_owned()
    };
    let (one, _one_too) = (id("one", "u1"), id("one", "u2"));
    let two = id("two", "u3");
    cloud.docker(&["exec", "u2", "ping", "-c", "1", "-W", "2", &one]).ok();
    let across = cloud.docker(&["exec", "u2", "ping", "-c", "1", "-W", "1", &two]);
    let rules = cloud.sh("cat /etc/docker/daemon.json; nft list ruleset").ok();
    assert_eq!(across.code(), 1, "one network of Docker's reaches the other\n{rules}");
    cloud.docker(&["rm", "-f", "u1", "u2", "u3"]).ok();
    cloud.docker(&["network", "rm", "one", "two"]).ok();
}
