//! A cloud of several machines: joining over TLS, instances on hosts that are elsewhere, and what a host may not do.

#[path = "support/machines.rs"]
mod machines;

use enoki_harness::{Cloud, Lab, Signal, address, eventually, is_root, steps};
use machines::{COUNTER, Running, SOON, instance, phase, well};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::collections::BTreeMap;

/// Talks to the first machine's server over TLS, from another machine, with that machine's own certificate.
fn as_host(machine: &Cloud, method: &str, path: &str, more: &str) -> String {
    let server = address(1);
    let script = format!(
        "curl -sS --max-time 5 -o /run/answer -w '%{{http_code}} ' -X {method} {more} \
         --cert /etc/enoki/host/host.pem --cacert /etc/enoki/host/ca.crt https://{server}:7443{path}; cat /run/answer"
    );
    machine.sh(&script).ok().text().to_owned()
}

#[test]
fn hosts_join_and_run_instances() {
    if !is_root() {
        return;
    }
    let lab = Lab::start(2);
    lab[0].import_tiny();
    steps(
        &lab,
        &[
            ("instances spread and answer", instances_spread),
            ("a label that comes later", a_label_comes_later),
            ("a network that spans hosts", a_network_spans_hosts),
            ("the default network spans hosts", the_default_network_spans_hosts),
            ("an agent away for a while", agent_away),
            ("host against host", host_against_host),
            ("a cloned identity", a_clone_is_refused),
            ("a deleted host", a_deleted_host_is_out),
        ],
    );
}

fn instances_spread(lab: &Lab) {
    let cloud = &lab[0];
    let mut placed = BTreeMap::<String, Vec<String>>::new();
    for name in ["s1", "s2", "s3", "s4"] {
        Running::start(cloud, name, &["--strategy", "spread"], COUNTER);
        let host = instance(cloud, name)["status"]["host"].as_str().unwrap_or_default().to_owned();
        placed.entry(host).or_default().push(name.to_owned());
    }
    let counts: Vec<_> = placed.iter().map(|(host, names)| (host.as_str(), names.len())).collect();
    assert_eq!(counts, [("h1", 2), ("h2", 2)]);
    for names in placed.values() {
        // Streams are dialled back, on h2 over TLS.
        well(cloud, &names[0]);
        cloud.enoki(&["exec", &names[0], "--", "sh", "-c", "exit 7"]).exits(7);
    }
}

/// The first instance on h2.
fn on_h2(cloud: &Cloud) -> Running {
    let names = ["s1", "s2", "s3", "s4"];
    let there = names.iter().find(|name| instance(cloud, name)["status"]["host"] == "h2");
    Running::of(cloud, there.expect("one is on h2"))
}

/// What no host satisfies waits and says why for each, and goes on by itself.
fn a_label_comes_later(lab: &Lab) {
    let cloud = &lab[0];
    cloud
        .enoki(&["run", "talk", "--image", "enoki/tiny:1", "--require", "zone=b", "--", "echo", "hello"])
        .ok();
    let told = cloud.enoki(&["describe", "instance", "talk"]).ok().stdout;
    assert!(told.contains("h1") && told.contains("h2") && told.contains("zone=b"), "{told}");
    cloud.enoki(&["label", "host", "h2", "zone=b"]).ok();
    eventually("its output, once its host has the label", SOON, || {
        let out = cloud.enoki(&["logs", "talk"]);
        if out.stdout.contains("hello") { Ok(()) } else { Err(out.to_string()) }
    });
    assert_eq!(instance(cloud, "talk")["status"]["host"], "h2");
    cloud.enoki(&["delete", "instance", "talk"]).ok();
}

/// Two on one vxlan network and different hosts reach each other, while one on another network does not.
fn a_network_spans_hosts(lab: &Lab) {
    let cloud = &lab[0];
    for (network, third) in [("blue", 100), ("green", 101)] {
        let cidr = format!("198.18.{third}.0/24");
        cloud.enoki(&["network", "create", network, "--type", "vxlan", "--cidr", &cidr]).ok();
    }
    let serve = "while :; do echo hello | nc -l -p 7; done";
    for (name, network, zone) in [
        ("b1", "blue:198.18.100.10", "a"),
        ("b2", "blue:198.18.100.11", "b"),
        ("g2", "green:198.18.101.11", "b"),
    ] {
        cloud.enoki(&["label", "host", if zone == "a" { "h1" } else { "h2" }, &format!("zone={zone}")]).ok();
        let zone = format!("zone={zone}");
        Running::start(cloud, name, &["--network", network, "--require", &zone], serve);
    }
    let reaches = |address: &str| {
        let script = format!("nc -w 2 {address} 7 </dev/null");
        cloud.enoki(&["exec", "b1", "--", "sh", "-c", &script]).stdout.contains("hello")
    };
    eventually("b1 reaches b2 on the other host", SOON, || {
        // In the same moment: what is open, and what is not.
        let (open, shut) = (reaches("198.18.100.11"), reaches("198.18.101.11"));
        assert!(!shut, "b1 reaches g2, on another network");
        if open { Ok(()) } else { Err("no word from b2") }
    });
    for name in ["b1", "b2", "g2"] {
        cloud.enoki(&["delete", "instance", name]).ok();
    }
}

/// Who asks for no network reaches others that do not, wherever they are, and the world as its own host.
fn the_default_network_spans_hosts(lab: &Lab) {
    let cloud = &lab[0];
    let network = cloud.api("GET", "/v1/projects/default/networks/default", None).expect(200).json;
    let spec = &network["spec"];
    assert_eq!(
        (&spec["type"], &spec["gateway"], &spec["egress"]),
        (&"vxlan".into(), &"host".into(), &"nat".into())
    );
    let serve = "while :; do echo hello | nc -l -p 7; done";
    let on = ["d1", "d2"];
    let own = on.map(|name| {
        let zone = if name == "d1" { "zone=a" } else { "zone=b" };
        Running::start(cloud, name, &["--require", zone], serve);
        instance(cloud, name)["status"]["nics"]["eth0"]["address"].as_str().unwrap_or_default().to_owned()
    });
    let inside = |name: &str, script: &str| cloud.enoki(&["exec", name, "--", "sh", "-c", script]);
    // Says who is there: the address that a stranger sees.
    let strangers = "import socket\nserver = socket.create_server((\"0.0.0.0\", 9000))\n\
                     while True:\n    one, who = server.accept()\n    one.sendall(who[0].encode())\n    one.close()\n";
    for (number, name) in on.into_iter().enumerate() {
        let (host, other) = (&lab[number], 1 - number);
        assert_eq!(instance(cloud, name)["status"]["host"], format!("h{}", number + 1));
        eventually(&format!("{name} reaches the other"), SOON, || {
            let out = inside(name, &format!("nc -w 2 {} 7 </dev/null", own[other]));
            if out.stdout.contains("hello") { Ok(()) } else { Err(out.to_string()) }
        });
        let gateway = inside(name, "ip route show default").ok();
        let gateway = gateway.stdout.split_whitespace().nth(2).unwrap_or_default().to_owned();
        inside(name, &format!("ping -c 1 -W 2 {gateway}")).ok();
        host.run(&["ping", "-c", "1", "-W", "2", &own[number]]).ok();
        lab[other].write("/run/strangers.py", strangers);
        lab[other].sh("python3 /run/strangers.py >/dev/null 2>&1 & echo $! >/run/strangers.pid").ok();
        eventually(&format!("{name} is its host to others"), SOON, || {
            let out = inside(name, &format!("nc -w 2 {} 9000 </dev/null", address(other + 1)));
            if out.text() == address(number + 1) { Ok(()) } else { Err(out.to_string()) }
        });
        lab[other].sh("kill $(cat /run/strangers.pid)").ok();
    }
    for name in on {
        cloud.enoki(&["delete", "instance", name]).ok();
    }
}

/// Its host is unknown, then lost; the instance goes on; all is well when the agent is back.
fn agent_away(lab: &Lab) {
    let cloud = &lab[0];
    let before = on_h2(cloud);
    let supervisor = lab[1].kill("supervisor", Signal::SIGSTOP);
    lab[1].kill("agent", Signal::SIGKILL);
    for wanted in ["unknown", "lost"] {
        eventually(&format!("h2 is {wanted}"), SOON, || {
            let seen = cloud.api("GET", "/v1/hosts/h2", None);
            if seen.json["status"]["phase"] == wanted { Ok(()) } else { Err(seen.body) }
        });
    }
    phase(cloud, &before.name, "unknown");
    before.goes_on();
    kill(Pid::from_raw(supervisor), Signal::SIGCONT).expect("the supervisor is there");
    lab.ready(2);
    before.unchanged(cloud);
}

/// Every route of the agents, and of the users, as host h2 against what is h1's.
fn host_against_host(lab: &Lab) {
    let cloud = &lab[0];
    let upgrade = "-H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
                   -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=='";
    let digest = cloud.api("GET", "/v1/projects/default/images/enoki%2Ftiny:1", None).expect(200).json["spec"]["digest"]
        .as_str()
        .expect("a digest")
        .to_owned();
    let manifest = |digest: &str| {
        let hex = digest.trim_start_matches("sha256:");
        format!("/v2/images/{hex}/manifests/sha256:{hex}")
    };
    // The control: what an instance of its own needs, it gets. The rest is in the tests of images.
    let own = as_host(&lab[1], "GET", &manifest(&digest), "");
    assert!(own.starts_with("200 "), "{own}");
    for (method, path, more) in [
        ("GET", manifest(&"0".repeat(64)), ""),
        ("GET", "/v1/hosts".to_owned(), ""),
        ("GET", "/v1/projects/default/secrets".to_owned(), ""),
        ("PATCH", "/v1/hosts/h1".to_owned(), "-d '{}'"),
        ("DELETE", "/v1/projects/default/instances/s1".to_owned(), ""),
        ("POST", "/server/v1/open".to_owned(), "-H 'content-type: application/json' -d '{}'"),
        ("POST", "/server/v1/events".to_owned(), "-H 'content-type: application/json' -d '[]'"),
    ] {
        let answer = as_host(&lab[1], method, &path, more);
        assert!(answer.starts_with("403 "), "{method} {path}: {answer}");
    }
    // A stream that nobody waits for is not told apart from another host's.
    let stream = as_host(&lab[1], "GET", "/agent/v1/streams/none", upgrade);
    assert!(stream.starts_with("404 "), "{stream}");
    let server = address(1);
    let nobody = lab[1].sh(&format!(
        "curl -sS --max-time 5 --cacert /etc/enoki/host/ca.crt -w '%{{http_code}}' -o /dev/null \
         {upgrade} https://{server}:7443/agent/v1/session"
    ));
    assert_eq!(nobody.text(), "401", "{nobody}");
    let audit = cloud.sh("cat /var/lib/enoki/audit.log").ok().stdout;
    let refused = audit.lines().filter(|line| line.contains("\"host h2\"")).count();
    assert!(refused >= 5, "{refused} lines of h2 in the audit:\n{audit}");
}

/// The credentials of h2 in other hands: nobody is let in with them while h2 is there, and it is written down.
fn a_clone_is_refused(lab: &Lab) {
    let cloud = &lab[0];
    let copy = |from: &str| std::fs::read_to_string(lab[1].path(from)).expect(from);
    cloud.sh("mkdir -p /run/clone").ok();
    cloud.write("/run/clone/host.pem", &copy("/etc/enoki/host/host.pem"));
    cloud.write("/run/clone/ca.crt", &copy("/etc/enoki/host/ca.crt"));
    let uid = copy("/var/lib/enoki/agent/uid");
    let session = "/agent/v1/session";
    let hello = format!(
        r#"{{"type":"hello","version":1,"host":"h2","uid":"{}","capacity":{{}},"cgroup":"v1","health":{{"phase":"ready"}}}}"#,
        uid.trim()
    );
    cloud.write("/run/clone/hello", &hello);
    let script = format!(
        "python3 - <<'EOF'\n\
import ssl, socket, os, struct\n\
c = ssl.create_default_context(cafile='/run/clone/ca.crt')\n\
c.check_hostname = False\n\
c.load_cert_chain('/run/clone/host.pem')\n\
s = c.wrap_socket(socket.create_connection(('{server}', 7443), 5))\n\
s.sendall(b'GET {session} HTTP/1.1\\r\\nHost: enoki\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n'\n\
          b'Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n\\r\\n')\n\
head = s.recv(65536)\n\
assert b' 101 ' in head, head\n\
body = open('/run/clone/hello', 'rb').read()\n\
mask = b'\\0\\0\\0\\0'\n\
s.sendall(b'\\x81' + struct.pack('>BH', 0x80 | 126, len(body)) + mask + body)\n\
s.settimeout(5)\n\
print(s.recv(65536)[2:].decode(errors='replace'))\n\
EOF",
        server = address(1)
    );
    let said = cloud.sh(&script).ok();
    assert!(said.stdout.contains("goodbye") && said.stdout.contains("is alive"), "{said}");
    let audit = cloud.sh("grep 'open a session' /var/lib/enoki/audit.log").ok();
    assert!(audit.stdout.contains("is alive"), "{audit}");
    lab.ready(2);
}

/// Deleting a host takes its certificate's worth away. As long as something is there, or it is alive, it stays.
fn a_deleted_host_is_out(lab: &Lab) {
    let cloud = &lab[0];
    let told = cloud.enoki(&["delete", "host", "h2"]).exits(1);
    assert!(told.stderr.contains("instance"), "{told}");
    for name in ["s1", "s2", "s3", "s4"] {
        cloud.enoki(&["delete", "instance", name]).ok();
    }
    let told = cloud.enoki(&["delete", "host", "h2"]).exits(1);
    assert!(told.stderr.contains("alive"), "{told}");
    lab[1].kill("supervisor", Signal::SIGKILL);
    lab[1].kill("agent", Signal::SIGKILL);
    eventually("the host may go", SOON, || {
        let out = cloud.enoki(&["delete", "host", "h2"]);
        if out.code() == 0 { Ok(()) } else { Err(out.to_string()) }
    });
    let renew = "-d '{}' -H 'Content-Type: application/json'";
    let answer = as_host(&lab[1], "POST", "/agent/v1/certificate", renew);
    assert!(answer.starts_with("403 "), "{answer}");
}
