//! A Docker and a host that end the agent at a chosen point: before or after any call that changes something.

use async_trait::async_trait;
use enoki_agent::instance::facts::Made;
use enoki_agent::instance::machine::{Machine, Result as Done};
use enoki_agent::instance::observed::Disk;
use enoki_agent::instance::simulated::Simulated as Ground;
use enoki_agent::limits::Running;
use enoki_agent::limits::squeeze::{Cpus, Load};
use enoki_agent::runtime::simulated::Simulated as Docker;
use enoki_agent::runtime::{
    Container, Create, Error, Event, ExecEnd, ExecRequest, ExecStream, ImageInfo, Login, Runtime,
};
use enoki_api::instance::{Doomed, LimitsStatus};
use enoki_api::object::Uid;
use enoki_api::protocol::{Health, Order, Overlay, TerminalSize, Usage};
use futures::stream::BoxStream;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

/// Burns down by one at every point.
pub struct Fuse {
    left: AtomicI64,
    blown: AtomicBool,
}

impl Fuse {
    pub fn new(points: i64) -> Arc<Self> {
        Arc::new(Fuse { left: AtomicI64::new(points), blown: AtomicBool::new(false) })
    }

    pub fn blown(&self) -> bool {
        self.blown.load(Ordering::SeqCst)
    }

    /// Once blown nothing goes on: the agent is dead, only its threads do not know yet.
    async fn point(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.blown.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
    }

    async fn around<T>(&self, call: impl Future<Output = T>) -> T {
        self.point().await;
        let result = call.await;
        self.point().await;
        result
    }
}

#[derive(Clone)]
pub struct Mortal {
    docker: Docker,
    ground: Ground,
    fuse: Arc<Fuse>,
}

impl Mortal {
    pub fn new(docker: &Docker, ground: &Ground, fuse: &Arc<Fuse>) -> Self {
        Mortal { docker: docker.clone(), ground: ground.clone(), fuse: fuse.clone() }
    }
}

#[async_trait]
impl Runtime for Mortal {
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
        self.fuse.around(self.docker.create(create)).await
    }
    async fn start(&self, id: &str) -> Result<(), Error> {
        self.fuse.around(self.docker.start(id)).await
    }
    async fn stop(&self, id: &str, grace: Duration) -> Result<(), Error> {
        self.fuse.around(self.docker.stop(id, grace)).await
    }
    async fn remove(&self, id: &str) -> Result<(), Error> {
        self.fuse.around(self.docker.remove(id)).await
    }
    async fn events(&self) -> Result<BoxStream<'static, Event>, Error> {
        self.docker.events().await
    }
    async fn image(&self, name: &str) -> Result<Option<ImageInfo>, Error> {
        self.docker.image(name).await
    }
    async fn pull(&self, name: &str, login: Option<&Login>) -> Result<(), Error> {
        self.fuse.around(self.docker.pull(name, login)).await
    }
    async fn untag(&self, name: &str) -> Result<(), Error> {
        self.fuse.around(self.docker.untag(name)).await
    }
    async fn tag(&self, id: &str, name: &str) -> Result<(), Error> {
        self.fuse.around(self.docker.tag(id, name)).await
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

#[async_trait]
impl Machine for Mortal {
    fn boot(&self) -> &str {
        self.ground.boot()
    }
    async fn disk(&self, disk: &Uid) -> Done<Option<Disk>> {
        self.ground.disk(disk).await
    }
    async fn ensure_disk(&self, order: &Order, image: Option<&str>) -> Done<()> {
        self.fuse.around(self.ground.ensure_disk(order, image)).await
    }
    async fn there(&self, what: Doomed, uid: &Uid) -> Done<bool> {
        self.ground.there(what, uid).await
    }
    async fn destroy(&self, what: Doomed, uid: &Uid) -> Done<()> {
        self.fuse.around(self.ground.destroy(what, uid)).await
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
    async fn network(&self, uid: &Uid) -> Done<bool> {
        self.ground.network(uid).await
    }
    async fn ensure_network(&self, order: &Order) -> Done<()> {
        self.fuse.around(self.ground.ensure_network(order)).await
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
        self.fuse.around(self.ground.remove_remains(uid)).await
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
        self.fuse.around(self.ground.write_record(order, container, made)).await
    }
    async fn remove_record(&self, container: &str) -> Done<()> {
        self.fuse.around(self.ground.remove_record(container)).await
    }
    async fn binds(&self, order: &Order) -> Done<Vec<(PathBuf, String, bool)>> {
        self.ground.binds(order).await
    }
    async fn delivered(&self, order: &Order) -> Done<bool> {
        self.ground.delivered(order).await
    }
    async fn deliver(&self, order: &Order) -> Done<()> {
        self.fuse.around(self.ground.deliver(order)).await
    }
    async fn write_files(&self, order: &Order) -> Done<()> {
        self.fuse.around(self.ground.write_files(order)).await
    }
    async fn apply_limits(&self, order: &Order, container: &str, pid: u32) -> Done<LimitsStatus> {
        self.fuse.around(self.ground.apply_limits(order, container, pid)).await
    }
    async fn usage(&self, uid: &Uid, container: &str, pid: u32) -> Done<Usage> {
        self.ground.usage(uid, container, pid).await
    }
    async fn user_data_exit_code(&self, disk: &Uid) -> Option<i64> {
        self.ground.user_data_exit_code(disk).await
    }
    async fn state_folder(&self, disk: &Uid) -> Done<PathBuf> {
        self.ground.state_folder(disk).await
    }
}
