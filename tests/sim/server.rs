//! A server: the real parts of `enoki server`, put together over the simulated store and network.

use crate::chaos::Chaos;
use crate::etcd::{Etcd, Remote};
use crate::law::{Law, Writer};
use crate::net::Net;
use crate::node::Node;
use crate::plan::Broken;
use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use enoki::admission::SystemNetworks;
use enoki::auth::audit::Audit;
use enoki::auth::ca::Pki;
use enoki::auth::seal::Sealer;
use enoki::config::ServerConfig;
use enoki::controller::{self, Ways};
use enoki::dispatch::{self, Broker, Dispatch, Events, Fanout, Live};
use enoki::http::{self, App};
use enoki::listen::Peer;
use enoki::peers::{Peers, enlist};
use enoki::registry::Registry;
use enoki::scheduler::Policy;
use enoki::server::bootstrap;
use enoki::state::{self, State};
use enoki::store::{Revision, Store};
use enoki_api::network::NetworkKind;
use enoki_api::quantity::Bytes;
use enoki_api::tls::Fingerprint;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Where the networks that the system makes come from.
const POOL: &str = "198.19.0.0/16";
/// Longer than any simulation.
const NEVER: Duration = Duration::from_secs(1 << 20);

pub struct Server {
    pub node: Node,
    folder: PathBuf,
    parts: Option<Parts>,
    /// The highest revision that it has shown since it was started.
    shown: Revision,
}

struct Parts {
    state: State,
    live: Live,
    api: Router,
}

/// What a server is put into.
pub struct Site<'a> {
    pub net: &'a Net,
    pub etcd: &'a Etcd,
    pub law: &'a Law,
    pub chaos: &'a Chaos,
    pub policy: Policy,
    pub broken: Option<Broken>,
}

impl Server {
    pub fn new(name: &str, folder: PathBuf) -> Self {
        std::fs::create_dir_all(&folder).expect("a folder for the server");
        Server { node: Node::new(name), folder, parts: None, shown: 0 }
    }

    pub fn boot(&mut self, site: &Site<'_>) {
        let name = self.node.name.clone();
        let store = |writer: Writer| -> Arc<dyn Store> {
            Arc::new(Remote {
                server: name.clone(),
                writer,
                net: site.net.clone(),
                etcd: site.etcd.clone(),
                law: site.law.clone(),
                chaos: site.chaos.clone(),
                broken: site.broken,
            })
        };
        let (of_api, of_controller) = (store(Writer::Api), store(Writer::Controller));
        let state = State::new();
        let (live, events, broker) = (Live::default(), Events::default(), Broker::default());
        let at = |file: &str| self.folder.join(file);
        let sealer = Arc::new(Sealer::load_or_create(&at("key")).expect("a key"));
        // Nobody imports: it is never asked.
        let registry = Registry::new(
            &at("registry.sock"),
            &at("registry"),
            &at("registry.yml"),
            &at("uploads"),
            Bytes(0),
        )
        .expect("folders for images");
        let audit = Audit::open(&at("audit.log")).expect("an audit file");
        let pki = Pki::new(at("pki"));
        let me = state::Server { name: name.clone(), address: Some(format!("https://{name}:7443")) };
        let config =
            ServerConfig { name: name.clone(), pool: POOL.parse().expect("a network"), ..Default::default() };
        let networks = SystemNetworks { pool: config.pool, kind: NetworkKind::Local };
        let peers = Peers::new(state.clone(), pki.clone(), me.clone());
        let for_logs = registry.clone();
        let ways = Ways { broker: broker.clone(), live: live.clone(), peers: peers.clone() };
        let api = http::router(App::new(
            state.clone(),
            of_api.clone(),
            live.clone(),
            events.clone(),
            broker.clone(),
            // Without certificates: the leader is asked by users themselves.
            peers.clone(),
            sealer.clone(),
            registry.clone(),
            site.policy,
            networks,
            audit.clone(),
            Fingerprint::of(&rustls::pki_types::CertificateDer::from(vec![0])),
        ));
        let fanout = Fanout::default();
        let agents = dispatch::router(Dispatch {
            fanout: fanout.clone(),
            state: state.clone(),
            store: of_api.clone(),
            live: live.clone(),
            broker,
            events: events.clone(),
            sealer,
            registry,
            peers,
            audit,
            pki,
            config: Arc::new(config),
        });
        let local = Extension(ConnectInfo(Peer::Local { uid: Some(0), pid: None }));
        let (api, agents) = (api.layer(local.clone()), agents.layer(local));
        let context = controller::Context {
            store: of_controller,
            state: state.clone(),
            live: live.clone(),
            events,
            policy: site.policy,
            networks,
            ways,
            registry: for_logs,
        };
        let mut pace = controller::Pace::default();
        if site.broken == Some(Broken::NoSlowTimer) {
            pace.slow = NEVER;
        }
        let mut connections = site.net.listen(&name);
        let (law, copy) = (site.law.clone(), state.clone());
        self.node.boot(async move {
            let stop = CancellationToken::new();
            let feed = state::feed(copy.clone(), of_api.clone(), stop.clone());
            let serve = async {
                while let Some(pipe) = connections.recv().await {
                    let service = TowerToHyperService::new(agents.clone());
                    let mut http = http1::Builder::new();
                    http.timer(TokioTimer::new());
                    let connection = http.serve_connection(TokioIo::new(pipe), service).with_upgrades();
                    tokio::spawn(async move { drop(connection.await) });
                }
            };
            let parts = async {
                tokio::join!(
                    bootstrap(&copy, &*of_api, networks, &stop),
                    controller::run_at(pace, context, me.clone(), stop.clone()),
                    enlist(&copy, &*of_api, &me, &stop),
                    fanout.run(&copy, &stop),
                    serve
                )
            };
            tokio::select! {
                ended = feed => law.note(&name, format!("ends: {ended:?}")),
                _ = parts => {}
            }
        });
        self.shown = 0;
        self.parts = Some(Parts { state, live, api });
    }

    pub fn kill(&mut self) {
        self.node.kill();
        self.parts = None;
    }

    /// The way in for users; not there while the process is not.
    pub fn api(&self) -> Option<Router> {
        self.parts.as_ref().filter(|_| self.node.is_up()).map(|parts| parts.api.clone())
    }

    pub fn leads(&self) -> bool {
        self.node.is_up() && self.parts.as_ref().is_some_and(|parts| parts.live.leads())
    }

    /// I10: what it shows never goes back.
    pub fn check(&mut self) -> Result<(), String> {
        let Some(parts) = self.parts.as_ref().filter(|_| self.node.is_up()) else { return Ok(()) };
        let now = parts.state.snapshot().revision;
        let before = std::mem::replace(&mut self.shown, now);
        if now < before {
            return Err(format!("{} went from revision {before} back to {now}", self.node.name));
        }
        Ok(())
    }
}
