//! A host: containers, disks, links and the ledger, which outlive everything, and the real agent, which does not.

use crate::chaos::Chaos;
use crate::dice::Dice;
use crate::law::Law;
use crate::net::{Line, Net};
use crate::node::Node;
use crate::watched::{Gate, WatchedDocker, WatchedGround};
use enoki_agent::agent::{AgentConfig, Parts, run_with};
use enoki_agent::credentials::HostPki;
use enoki_agent::instance::simulated::Simulated as Ground;
use enoki_agent::runtime::simulated::{Daemon, Simulated as Docker};
use enoki_agent::runtime::{Container, ImageInfo, Runtime, State};
use enoki_agent::session::socket::Dialer;
use enoki_api::host::Capacity;
use enoki_api::quantity::{Bytes, MilliCpu};
use futures::FutureExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The images that every host's Docker has.
pub const IMAGES: [&str; 2] = ["tiny", "other"];

pub struct Host {
    pub node: Node,
    pub docker: Docker,
    pub ground: Ground,
    boots: u32,
    number: u8,
    folder: PathBuf,
    dice: Arc<Mutex<Dice>>,
}

impl Host {
    pub fn new(number: u8, folder: PathBuf, dice: Dice) -> Self {
        std::fs::create_dir_all(&folder).expect("a folder for the host");
        let docker = Docker::new(Duration::from_secs(2));
        for image in IMAGES {
            docker.add_image(image, ImageInfo { id: format!("sha256:{image}"), ..ImageInfo::default() });
        }
        Host {
            node: Node::new(&format!("h{number}")),
            docker,
            ground: Ground::new("boot 0", &folder),
            boots: 0,
            number,
            folder,
            dice: Arc::new(Mutex::new(dice)),
        }
    }

    fn capacity(&self) -> Capacity {
        // Hosts of two sizes.
        let size = 1 + u64::from(self.number % 2);
        Capacity { cpus: MilliCpu(size * 1000), memory: Bytes(size << 30), pids: 1000, instances: 0 }
    }

    /// Starts an agent.
    pub fn boot(&mut self, servers: &[String], net: &Net, law: &Law, chaos: &Chaos) {
        let name = self.node.name.clone();
        let at = |file: &str| self.folder.join(file);
        let mut config = AgentConfig::new(&name);
        config.ledger = at("ledger");
        config.identity = at("uid");
        config.session = at("session");
        config.pki = HostPki::new(at("pki"));
        config.underlay.configured = Some([198, 18, 200, self.number].into());
        let gate = Gate {
            host: name.clone(),
            ledger: config.ledger.clone(),
            law: law.clone(),
            chaos: chaos.clone(),
            dice: self.dice.clone(),
        };
        let parts = Parts {
            runtime: Arc::new(WatchedDocker { docker: self.docker.clone(), gate: gate.clone() }),
            machine: Arc::new(WatchedGround { ground: self.ground.clone(), gate }),
            cgroup: "v1".to_owned(),
            capacity: self.capacity(),
            dialer: Dialer::over(
                servers.iter().map(|server| format!("https://{server}:7443")).collect(),
                Line { net: net.clone(), from: name.clone() },
            ),
        };
        let law = law.clone();
        self.node.boot(async move {
            let ended = run_with(config, parts, CancellationToken::new()).await;
            law.note(&name, format!("its agent ends: {ended:?}"));
        });
    }

    /// What Docker has, whether its daemon answers or not.
    pub fn containers(&self) -> Vec<Container> {
        self.docker.list().now_or_never().and_then(Result::ok).unwrap_or_default()
    }

    /// The power goes and comes back: nothing runs, disks and ledger stay.
    pub fn power_cut(&mut self, law: &Law) {
        self.node.kill();
        self.docker.set_daemon(Daemon::Up);
        for container in self.containers() {
            if matches!(container.state, State::Running { .. }) {
                self.docker.exit(&container.id, 255);
                law.ended(&container.uid, &container.id);
            }
        }
        self.boots += 1;
        self.ground = self.ground.rebooted(&format!("boot {}", self.boots));
    }
}
