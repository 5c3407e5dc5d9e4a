//! Docker and the machine as an agent has them: each call takes its time, may be the agent's last, and is told to the law.
//!
//! Behind it are the agent's own simulated runtime and machine, which outlive every agent.

use crate::chaos::Chaos;
use crate::dice::Dice;
use crate::law::{Law, short};
use async_trait::async_trait;
use enoki_agent::instance::facts::Made;
use enoki_agent::instance::machine::{Machine, Result as Done};
use enoki_agent::instance::observed::Disk;
use enoki_agent::instance::simulated::Simulated as Ground;
use enoki_agent::ledger::Entry;
use enoki_agent::limits::Running;
use enoki_agent::limits::squeeze::{Cpus, Load};
use enoki_agent::runtime::simulated::Simulated as Docker;
use enoki_agent::runtime::{
    Container, Create, Error, Event, ExecEnd, ExecRequest, ExecStream, ImageInfo, Login, Runtime, State,
};
use enoki_api::instance::{Doomed, LimitsStatus};
use enoki_api::object::Uid;
use enoki_api::protocol::{Health, Order, Overlay, TerminalSize, Usage};
use futures::stream::BoxStream;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What an agent's acts go through.
#[derive(Clone)]
pub struct Gate {
    pub host: String,
    /// The agent's ledger.
    pub ledger: PathBuf,
    pub law: Law,
    pub chaos: Chaos,
    pub dice: Arc<Mutex<Dice>>,
}

impl Gate {
    async fn before(&self, what: &str) {
        let pause = self.dice.lock().unwrap_or_else(PoisonError::into_inner).millis(1, 30);
        tokio::time::sleep(pause).await;
        if self.chaos.strikes(|rates| rates.kill_before_act) {
            self.law.note(&self.host, format!("its agent dies before {what}"));
            self.chaos.die(&self.host).await;
        }
    }

    async fn after(&self, what: &str) {
        if self.chaos.strikes(|rates| rates.kill_after_act) {
            self.law.note(&self.host, format!("its agent dies after {what}"));
            self.chaos.die(&self.host).await;
        }
    }

    /// Of the order that the agent acts on now.
    fn generation(&self, uid: &Uid) -> u64 {
        let entry = std::fs::read(self.ledger.join(format!("{uid}.json"))).unwrap_or_default();
        serde_json::from_slice::<Entry>(&entry).map_or(0, |entry| entry.order.instance.generation)
    }
}

#[derive(Clone)]
pub struct WatchedDocker {
    pub docker: Docker,
    pub gate: Gate,
}

impl WatchedDocker {
    async fn running(&self, id: &str) -> Option<Container> {
        let container = self.docker.inspect(id).await.ok()??;
        matches!(container.state, State::Running { .. }).then_some(container)
    }
}

#[async_trait]
impl Runtime for WatchedDocker {
    async fn health(&self) -> Health {
        self.docker.health().await
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        self.docker.list().await
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>, Error> {
        self.docker.inspect(id).await
    }

    async fn create(&self, create: &Create) -> Result<String, Error> {
        self.gate.before("a create").await;
        let label = |key: &str| create.labels.get(key).map(String::as_str).unwrap_or_default();
        if let Some(uid) = Uid::parse(label("enoki.uid")) {
            self.gate.law.creates(&self.gate.host, &uid, label("enoki.epoch").parse().unwrap_or(0));
        }
        let created = self.docker.create(create).await;
        self.gate.after("a create").await;
        created
    }

    async fn start(&self, id: &str) -> Result<(), Error> {
        self.gate.before("a start").await;
        let started = self.docker.start(id).await;
        if let Some(container) = self.running(id).await {
            self.gate.law.starts(&self.gate.host, &container.uid, &container.id);
        }
        self.gate.after("a start").await;
        started
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), Error> {
        self.gate.before("a stop").await;
        let before = self.running(id).await;
        if let Some(container) = &before {
            let generation = self.gate.generation(&container.uid);
            self.gate.law.stops(&self.gate.host, &container.uid, generation);
        }
        let stopped = self.docker.stop(id, grace).await;
        if let Some(container) = before.filter(|_| stopped.is_ok()) {
            self.gate.law.ended(&container.uid, &container.id);
        }
        self.gate.after("a stop").await;
        stopped
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        self.gate.before("a removal").await;
        let removed = self.docker.remove(id).await;
        self.gate.after("a removal").await;
        removed
    }

    async fn events(&self) -> Result<BoxStream<'static, Event>, Error> {
        self.docker.events().await
    }

    async fn image(&self, name: &str) -> Result<Option<ImageInfo>, Error> {
        self.docker.image(name).await
    }

    async fn pull(&self, name: &str, login: Option<&Login>) -> Result<(), Error> {
        self.docker.pull(name, login).await
    }

    async fn tag(&self, id: &str, name: &str) -> Result<(), Error> {
        self.docker.tag(id, name).await
    }

    async fn untag(&self, name: &str) -> Result<(), Error> {
        self.docker.untag(name).await
    }

    async fn exec(&self, container: &str, request: &ExecRequest) -> Result<ExecStream, Error> {
        self.docker.exec(container, request).await
    }

    async fn exec_resize(&self, exec: &str, size: TerminalSize) -> Result<(), Error> {
        self.docker.exec_resize(exec, size).await
    }

    async fn exec_exit(&self, exec: &str) -> Result<Option<ExecEnd>, Error> {
        self.docker.exec_exit(exec).await
    }
}

#[derive(Clone)]
pub struct WatchedGround {
    pub ground: Ground,
    pub gate: Gate,
}

#[async_trait]
impl Machine for WatchedGround {
    fn boot(&self) -> &str {
        self.ground.boot()
    }

    async fn disk(&self, disk: &Uid) -> Done<Option<Disk>> {
        self.ground.disk(disk).await
    }

    async fn ensure_disk(&self, order: &Order, image: Option<&str>) -> Done<()> {
        self.gate.before("a disk").await;
        let done = self.ground.ensure_disk(order, image).await;
        self.gate.law.note(&self.gate.host, format!("has disk {}", short(&order.disk)));
        self.gate.after("a disk").await;
        done
    }

    async fn there(&self, what: Doomed, uid: &Uid) -> Done<bool> {
        self.ground.there(what, uid).await
    }

    async fn destroy(&self, what: Doomed, uid: &Uid) -> Done<()> {
        self.gate.before("destroying a disk").await;
        self.gate.law.destroys(&self.gate.host, uid);
        let done = self.ground.destroy(what, uid).await;
        self.gate.after("destroying a disk").await;
        done
    }

    async fn network(&self, uid: &Uid) -> Done<bool> {
        self.ground.network(uid).await
    }

    async fn ensure_network(&self, order: &Order) -> Done<()> {
        self.gate.before("a network").await;
        let done = self.ground.ensure_network(order).await;
        self.gate.after("a network").await;
        done
    }

    async fn connect(&self, overlay: &Overlay) -> Done<()> {
        self.ground.connect(overlay).await
    }

    async fn tend(&self, orders: &[Order]) -> Done<()> {
        self.ground.tend(orders).await
    }

    async fn remains(&self, uid: &Uid) -> Done<bool> {
        self.ground.remains(uid).await
    }

    async fn remove_remains(&self, uid: &Uid) -> Done<()> {
        self.gate.before("removing remains").await;
        let done = self.ground.remove_remains(uid).await;
        self.gate.after("removing remains").await;
        done
    }

    async fn record(&self, container: &str) -> Done<Option<Uid>> {
        self.ground.record(container).await
    }

    async fn starved(&self, container: &str) -> Done<bool> {
        self.ground.starved(container).await
    }

    async fn records(&self) -> Done<Vec<String>> {
        self.ground.records().await
    }

    async fn write_record(&self, order: &Order, container: &str, made: &Made) -> Done<()> {
        self.gate.before("a record").await;
        let done = self.ground.write_record(order, container, made).await;
        self.gate.after("a record").await;
        done
    }

    async fn remove_record(&self, container: &str) -> Done<()> {
        self.gate.before("removing a record").await;
        let done = self.ground.remove_record(container).await;
        self.gate.after("removing a record").await;
        done
    }

    async fn binds(&self, order: &Order) -> Done<Vec<(PathBuf, String, bool)>> {
        self.ground.binds(order).await
    }

    async fn delivered(&self, order: &Order) -> Done<bool> {
        self.ground.delivered(order).await
    }

    async fn deliver(&self, order: &Order) -> Done<()> {
        self.gate.before("delivering files").await;
        let done = self.ground.deliver(order).await;
        self.gate.after("delivering files").await;
        done
    }

    async fn write_files(&self, order: &Order) -> Done<()> {
        self.gate.before("files").await;
        let done = self.ground.write_files(order).await;
        self.gate.after("files").await;
        done
    }

    async fn apply_limits(&self, order: &Order, container: &str, pid: u32) -> Done<LimitsStatus> {
        self.gate.before("limits").await;
        let done = self.ground.apply_limits(order, container, pid).await;
        self.gate.after("limits").await;
        done
    }

    async fn usage(&self, uid: &Uid, container: &str, pid: u32) -> Done<Usage> {
        self.ground.usage(uid, container, pid).await
    }

    async fn cpus(&self) -> Done<Cpus> {
        self.ground.cpus().await
    }

    async fn loads(&self, running: Vec<Running>) -> Done<BTreeMap<Uid, Load>> {
        self.ground.loads(running).await
    }

    async fn dial(&self, uid: &Uid, at: Vec<std::net::SocketAddr>) -> Done<tokio::net::TcpStream> {
        self.ground.dial(uid, at).await
    }

    async fn user_data_exit_code(&self, disk: &Uid) -> Option<i64> {
        self.ground.user_data_exit_code(disk).await
    }

    async fn state_folder(&self, disk: &Uid) -> Done<PathBuf> {
        self.ground.state_folder(disk).await
    }
}
