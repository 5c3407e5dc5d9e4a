//! The API: authenticate, validate, write the spec, answer. One file a resource in [`kinds`]; what they share is in
//! [`objects`], [`edit`], [`list`] and [`watch`].
//!
//! Handlers never call controllers: they meet through the store. An answer to a write waits, bounded, until this
//! server's cache has seen the write, so what a user reads next is never older than what they wrote.

mod access;
mod actions;
mod answer;
mod audit;
mod commit;
mod edit;
mod events;
mod idempotency;
mod kinds;
mod leader;
mod list;
mod metrics;
mod objects;
mod openapi;
mod orphans;
mod query;
mod servers;
mod streams;
mod upload;
mod wait;
mod watch;

pub use kinds::archives::take_over as take_over_archives;

use crate::admission::SystemNetworks;
use crate::auth::audit::Audit;
use crate::auth::seal::Sealer;
use crate::dispatch::{Broker, Events, Live};
use crate::peers::Peers;
use crate::registry::Registry;
use crate::scheduler::Policy;
use crate::state::State;
use crate::store::Store;
use axum::Router;
use enoki_api::error::{Code, Problem};
use enoki_api::tls::Fingerprint;
use idempotency::Idempotency;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub state: State,
    pub store: Arc<dyn Store>,
    pub live: Live,
    pub events: Events,
    pub broker: Broker,
    pub peers: Peers,
    pub sealer: Arc<Sealer>,
    pub registry: Registry,
    pub policy: Policy,
    pub networks: SystemNetworks,
    pub audit: Audit,
    /// Of the cloud's CA: what a token carries.
    pub ca: Fingerprint,
    idempotency: Idempotency,
    /// Of those who lost a race: see [`commit`].
    turns: Arc<Semaphore>,
}

impl App {
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of the server, each of another type, put together once"
    )]
    pub fn new(
        state: State,
        store: Arc<dyn Store>,
        live: Live,
        events: Events,
        broker: Broker,
        peers: Peers,
        sealer: Arc<Sealer>,
        registry: Registry,
        policy: Policy,
        networks: SystemNetworks,
        audit: Audit,
        ca: Fingerprint,
    ) -> Self {
        let idempotency = Idempotency::default();
        App {
            state,
            store,
            live,
            events,
            broker,
            peers,
            sealer,
            registry,
            policy,
            networks,
            audit,
            ca,
            idempotency,
            turns: Arc::new(Semaphore::new(1)),
        }
    }
}

/// Every route of the API.
pub fn router(app: App) -> Router {
    let routes = Router::new()
        .merge(kinds::routes())
        .merge(actions::routes())
        .merge(streams::routes())
        .merge(orphans::routes())
        .merge(servers::routes())
        .merge(events::routes())
        .merge(audit::routes())
        .merge(metrics::routes())
        .merge(openapi::routes())
        .fallback(async || {
            answer::problem(
                Problem::new(Code::NotFound, "there is nothing at this address")
                    .hint("/openapi.json lists what there is"),
            )
        })
        .method_not_allowed_fallback(async || {
            answer::problem(Problem::new(Code::MethodNotAllowed, "this address does not take that method"))
        });
    routes
        .layer(axum::middleware::from_fn_with_state(app.clone(), leader::layer))
        .layer(axum::middleware::from_fn_with_state(app.clone(), idempotency::layer))
        .layer(axum::middleware::from_fn_with_state(app.clone(), access::layer))
        .layer(axum::middleware::from_fn_with_state(app.clone(), audit::layer))
        .layer(axum::middleware::from_fn_with_state(app.clone(), answer::layer))
        .with_state(app)
}
