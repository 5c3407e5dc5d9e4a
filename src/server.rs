//! `enoki server`: the control plane's parts, put together and run until told to stop.

use crate::admission::{SystemNetworks, with_default_network};
use crate::auth::audit::Audit;
use crate::auth::ca::Pki;
use crate::auth::seal::Sealer;
use crate::cli::contexts::read_token;
use crate::cli::server::JoinArgs;
use crate::config::{ServerConfig, paths};
use crate::controller::{self, Ways};
use crate::dispatch::{self, Broker, Dispatch, Events, Fanout, Live};
use crate::http::{self, App};
use crate::listen::{self, Serving, TlsListener, serve};
use crate::peers::join::Member;
use crate::peers::{self, Peers};
use crate::registry::Registry;
use crate::scheduler::Policy;
use crate::state::{self, Server, State, encode_new};
use crate::store::etcd::{Config, Etcd, Tls};
use crate::store::keys::Key;
use crate::store::{Outcome, Store, Txn, members};
use anyhow::Context;
use enoki_api::endpoint::Authority;
use enoki_api::network::NetworkKind;
use enoki_api::object::Object;
use enoki_api::project::{DEFAULT, ProjectSpec};
use enoki_api::tls::Fingerprint;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Each call to the store.
const STORE: Duration = Duration::from_secs(5);
/// Requests under way are given this long when the server stops.
const DRAIN: Duration = Duration::from_secs(3);

/// Runs the server until `stop`. It serves reads as soon as the store was read once, and writes while the store
/// answers; it never needs the store to stay up.
pub async fn run(config: ServerConfig, stop: CancellationToken) -> anyhow::Result<()> {
    let pki = Pki::new(paths::PKI);
    let sealer = Arc::new(Sealer::load_or_create(&config.key_file).context("the key that seals secrets")?);
    let store: Arc<dyn Store> = Arc::new(connect(&config).await?);
    std::fs::create_dir_all(paths::STATE).with_context(|| paths::STATE)?;
    let audit_path = Path::new(paths::STATE).join("audit.log");
    let audit = Audit::open(&audit_path).with_context(|| audit_path.display().to_string())?;
    let registry = Registry::new(
        Path::new(paths::REGISTRY_SOCKET),
        Path::new(paths::REGISTRY),
        Path::new(paths::REGISTRY_YML),
        Path::new(paths::UPLOADS),
        config.largest_file,
    )
    .context(paths::UPLOADS)?;
    let state = State::new();
    let (live, broker) = (Live::default(), Broker::default());
    let (events, noted) = Events::telling();
    let reached_at = config.listen().map(|_| config.reached_at()).unwrap_or_default();
    let me = Server { name: config.name.clone(), address: reached_at.first().map(ToString::to_string) };
    let peers = Peers::new(state.clone(), pki.clone(), me.clone());
    let policy = Policy { cpu_overcommit: config.cpu_overcommit };
    // Who listens may get more hosts.
    let kind = if config.listen().is_some() { NetworkKind::Vxlan } else { NetworkKind::Local };
    let networks = SystemNetworks { pool: config.pool, kind };
    let app = App::new(
        state.clone(),
        store.clone(),
        live.clone(),
        events.clone(),
        broker.clone(),
        peers.clone(),
        sealer.clone(),
        registry.clone(),
        policy,
        networks,
        audit.clone(),
        Fingerprint::of(&CertificateDer::from_pem_file(pki.ca()).context("the CA's certificate")?),
    );
    let ways = Ways { broker: broker.clone(), live: live.clone(), peers: peers.clone() };
    let etcd_peer = config.etcd_peer();
    let fanout = Fanout::default();
    let agents = dispatch::router(Dispatch {
        fanout: fanout.clone(),
        state: state.clone(),
        store: store.clone(),
        live: live.clone(),
        broker,
        events: events.clone(),
        sealer,
        registry: registry.clone(),
        peers: peers.clone(),
        audit,
        pki: pki.clone(),
        config: Arc::new(config.clone()),
    });
    let api = http::router(app.clone());
    let api_socket = listen::unix(&config.api_socket, 0o660)?;
    let agent_socket = listen::unix(&config.agent_socket, 0o600)?;
    let tls = match config.listen() {
        None => None,
        Some(address) => {
            let mut names: Vec<String> = reached_at.iter().map(|at| at.host().to_owned()).collect();
            names.extend(["localhost", "127.0.0.1"].map(str::to_owned));
            let serving = Serving::new(pki, &config.name, names).context("the server's certificate")?;
            let listener = TlsListener::bind(address, serving.clone()).await.context("listen")?;
            Some((listener, serving))
        }
    };
    let context = controller::Context {
        store: store.clone(),
        state: state.clone(),
        live,
        events,
        policy,
        networks,
        ways,
        registry: registry.clone(),
    };

    let parts = async {
        let feed = state::feed(state.clone(), store.clone(), stop.clone());
        let bootstrap = bootstrap(&state, &*store, networks, &stop);
        let lead = controller::run(context, me.clone(), stop.clone());
        // The first part that fails ends the server; the supervisor starts it afresh.
        tokio::try_join!(
            async { feed.await.context("the store") },
            async { serve(api_socket, api.clone(), stop.clone()).await.context("the API") },
            async { serve(agent_socket, agents.clone(), stop.clone()).await.context("the agents' socket") },
            async {
                let Some((listener, serving)) = tls else { return Ok(()) };
                let (served, ()) = tokio::join!(
                    serve(listener, api.clone().merge(agents.clone()), stop.clone()),
                    serving.tend(&stop),
                );
                served.context("the API on TLS")
            },
            async {
                bootstrap.await;
                Ok(())
            },
            async {
                peers::enlist(&state, &*store, &me, &stop).await;
                Ok(())
            },
            async {
                fanout.run(&state, &stop).await;
                Ok(())
            },
            async {
                peers::tell_events(&peers, noted).await;
                Ok(())
            },
            async {
                lead.await;
                Ok(())
            },
            async {
                http::take_over_archives(app, Path::new(paths::ARCHIVES), &stop).await;
                Ok(())
            },
            async {
                registry.tend(&state, &stop).await;
                Ok(())
            },
            async {
                let leads = || state.snapshot().leader.as_ref().is_some_and(|leader| leader.name == me.name);
                if let (Some(cluster), Some(peer)) = (store.cluster(), &etcd_peer) {
                    members::tend(cluster, peer, leads, &stop).await;
                }
                Ok(())
            },
        )
    };
    // Cancel-safe: after the drain, what still hangs (watches, streams) is cut.
    let cut = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        result = parts => result.map(drop),
        () = cut => Ok(()),
    }
}

/// Gets what servers share with a token and writes it to its places, so that `enoki server` is one more of that cloud.
pub async fn join(args: JoinArgs) -> anyhow::Result<()> {
    let mut config = ServerConfig::load()?;
    if let Some(name) = args.name {
        config.name = name;
    }
    if !args.advertise.is_empty() {
        config.advertise = args.advertise;
    }
    let server = Authority::parse(&args.server).map_err(anyhow::Error::msg)?;
    let token = read_token().map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let member = if args.no_etcd { Member::None } else { Member::At(args.etcd_listen) };
    let config = peers::join::join(server.clone(), &token, member, config).await?;
    println!("server {} joined by {server}; now run `enoki up`", config.name);
    if !args.no_etcd && !config.runs_own_etcd() {
        println!("it has no member of etcd: the cloud's is run elsewhere, or has enough of them");
    }
    Ok(())
}

async fn connect(config: &ServerConfig) -> anyhow::Result<Etcd> {
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("etcd's credentials: {}", path.display()));
    let tls =
        Tls { ca: read(&config.etcd.ca)?, cert: read(&config.etcd.cert)?, key: read(&config.etcd.key)? };
    let config = Config { tls: Some(tls), endpoints: config.etcd.endpoints.clone(), deadline: STORE };
    Etcd::new(config).await.context("etcd")
}

/// A new store gets the default project and its network, whichever server comes first.
pub async fn bootstrap(state: &State, store: &dyn Store, networks: SystemNetworks, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        if !state.reached(0, Duration::from_secs(5)).await {
            continue;
        }
        let snapshot = state.snapshot();
        if snapshot.projects.get("", DEFAULT).is_some() {
            return;
        }
        let project =
            Object::new(None, DEFAULT, Default::default(), ProjectSpec::default(), Timestamp::now());
        let txn = Key::spec("projects", None, DEFAULT)
            .map(String::from)
            .map_err(anyhow::Error::from)
            .and_then(|key| {
                let txn = Txn::new().when_absent(key.clone()).put(key, encode_new(&project));
                Ok(with_default_network(networks, &snapshot, DEFAULT, txn)?)
            });
        let result = match txn {
            Ok(txn) => store.txn(txn).await.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        match result {
            Ok(Outcome::Committed { revision }) => {
                tracing::info!(revision, "a new store: the default project is made");
                return;
            }
            Ok(Outcome::Conflict { revision, .. }) => drop(state.reached(revision, DRAIN).await),
            Err(error) => {
                tracing::warn!(%error, "the default project could not be made; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
