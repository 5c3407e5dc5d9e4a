//! Several machines of one cloud: each a [`Cloud`] of its own, joined by a bridge in a namespace that is nobody's.
//!
//! Machine `hN` has the address `198.18.200.N` on the link `lab`. The first has etcd and a server; the others join it with
//! a token, over TLS, as machines elsewhere would: as hosts, or as servers that are hosts too. Dropping the lab removes all
//! of them.

use crate::{Cloud, eventually};
use serde_json::json;
use std::ops::Index;
use std::process::Command;
use std::time::Duration;

/// The address of the N-th machine, counted from 1.
pub fn address(number: usize) -> String {
    format!("198.18.200.{number}")
}

/// The machines. `lab[0]` is `h1`, which has the server.
pub struct Lab {
    // Before the switch: what hangs on the bridge goes first.
    machines: Vec<Cloud>,
    _switch: Cloud,
}

impl Index<usize> for Lab {
    type Output = Cloud;

    fn index(&self, number: usize) -> &Cloud {
        &self.machines[number]
    }
}

impl Lab {
    /// Machines that can reach each other, with nothing running on them.
    ///
    /// # Panics
    /// When one cannot be made or linked.
    pub fn bare(machines: usize) -> Self {
        let switch = Cloud::bare();
        switch.sh("ip link add lab type bridge; ip link set lab up").ok();
        let machines: Vec<Cloud> = (0..machines).map(|_| Cloud::bare()).collect();
        for (machine, number) in machines.iter().zip(1..) {
            let name = format!("h{number}");
            let (here, there) = (switch.sleeper(), machine.sleeper());
            // Made where neither end is: a link is moved by naming the namespaces of the sleepers.
            let linked = Command::new("ip")
                .args(["link", "add", &name, "netns", &here.to_string()])
                .args(["type", "veth", "peer", "name", "lab", "netns", &there.to_string()])
                .status();
            assert!(linked.is_ok_and(|status| status.success()), "link {name} to the lab's bridge");
            switch.sh(&format!("ip link set {name} master lab up")).ok();
            let address = address(number);
            machine
                .sh(&format!(
                    "ip address add {address}/24 dev lab; ip link set lab up; hostname {name}; echo {name} >/etc/hostname"
                ))
                .ok();
            machine.write("/etc/enoki/agent.toml", &format!("address = \"{address}\"\n"));
        }
        Lab { machines, _switch: switch }
    }

    /// A running cloud of so many hosts and one server, all ready.
    ///
    /// # Panics
    /// When a machine does not come up or does not join, with the logs.
    pub fn start(hosts: usize) -> Self {
        Self::start_with(hosts, 1)
    }

    /// A running cloud of so many hosts, all ready; the first so many of them are servers as well.
    ///
    /// # Panics
    /// When a machine does not come up or does not join, with the logs.
    pub fn start_with(hosts: usize, servers: usize) -> Self {
        Self::start_configured(hosts, servers, "")
    }

    /// The same, with more lines (`key = value`) for the configuration of the first server.
    ///
    /// # Panics
    /// When a machine does not come up or does not join, with the logs.
    pub fn start_configured(hosts: usize, servers: usize, settings: &str) -> Self {
        let lab = Self::bare(hosts);
        let own = address(1);
        let config = format!(
            "{settings}listen = \"0.0.0.0:7443\"\nadvertise = [\"{own}\"]\n\n[etcd]\nlisten = \"{own}\"\n"
        );
        lab[0].write("/etc/enoki/server.toml", &config);
        lab[0].up();
        let token = |kind: &str| lab[0].enoki(&[kind, "join-token"]).ok().text().to_owned();
        for number in 1..servers {
            lab.serve(number, &token("server"));
            lab[number].up();
        }
        for number in servers..hosts {
            lab.join(number, &token("host"), &[]);
            lab[number].up();
        }
        lab.ready(hosts);
        lab
    }

    /// Makes a machine a host, with a token and labels (`key=value`).
    #[track_caller]
    pub fn join(&self, number: usize, token: &str, labels: &[&str]) {
        let server = format!("https://{}:7443", address(1));
        let mut words = vec!["agent", "join", &server];
        for label in labels {
            words.extend(["--label", label]);
        }
        self[number].enoki_with(&words, token, Duration::from_secs(30)).ok();
    }

    /// Makes a machine a server, with a token.
    #[track_caller]
    pub fn serve(&self, number: usize, token: &str) {
        let (server, own) = (format!("https://{}:7443", address(1)), address(number + 1));
        let words = ["server", "join", &server, "--advertise", &own];
        self[number].enoki_with(&words, token, Duration::from_secs(30)).ok();
    }

    /// Waits until so many hosts are ready.
    #[track_caller]
    pub fn ready(&self, hosts: usize) {
        eventually(&format!("{hosts} hosts are ready"), Duration::from_secs(60), || {
            let seen = self[0].api("GET", "/v1/hosts?limit=1000", None);
            let items = seen.json["items"].as_array().cloned().unwrap_or_default();
            let ready = items.iter().filter(|host| host["status"]["phase"] == json!("ready"));
            if ready.count() == hosts { Ok(()) } else { Err(seen.body) }
        });
    }
}
