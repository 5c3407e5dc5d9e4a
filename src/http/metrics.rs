//! `/metrics`, `/healthz`, `/readyz`: is it alive, can it serve, how much of what.

use super::App;
use super::answer;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use enoki_api::error::{Code, Problem};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

/// Ready: the cache is loaded and as fresh as the store.
async fn ready(State(app): State<App>) -> Response {
    if !app.state.is_loaded() {
        return answer::problem(Problem::new(Code::StoreUnavailable, "the store has not been read yet"));
    }
    match app.state.stale_for() {
        None => "ready\n".into_response(),
        Some(age) => {
            let detail = format!("the store has not answered for {} s", age.as_secs());
            answer::problem(Problem::new(Code::StoreUnavailable, detail))
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Phase {
    phase: String,
}

/// Computed from the snapshot when asked: nothing to keep up to date, nothing that grows.
async fn metrics(State(app): State<App>) -> Response {
    let snapshot = app.state.snapshot();
    let mut registry = Registry::with_prefix("enoki");
    let instances = Family::<Phase, Gauge>::default();
    for (at, _) in snapshot.instances.iter() {
        let phase = snapshot.instance_status.get(at).map(|status| status.phase).unwrap_or_default();
        instances.get_or_create(&Phase { phase: phase.to_string() }).inc();
    }
    registry.register("instances", "Instances by phase", instances);
    let hosts = Family::<Phase, Gauge>::default();
    for status in snapshot.host_status.values() {
        let phase = serde_json::to_value(status.phase)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default();
        hosts.get_or_create(&Phase { phase }).inc();
    }
    registry.register("hosts", "Hosts by phase", hosts);
    let mut one = |name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    one("store_revision", "Revision that this server's cache has reached", snapshot.revision as i64);
    one(
        "store_stale_seconds",
        "Age of the cache once the store does not answer",
        app.state.stale_for().map_or(0, |age| age.as_secs() as i64),
    );
    one(
        "undecodable_objects",
        "Stored values that this version cannot read",
        snapshot.undecodable.len() as i64,
    );
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
        return answer::problem(Problem::new(Code::Internal, "the metrics do not encode"));
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text).into_response()
}
