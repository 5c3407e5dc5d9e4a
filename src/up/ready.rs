//! Waiting until the cloud is ready, and saying what it waits for.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::Value;

use super::docker::{call, request};
use super::logs;
use super::process::find;
use super::service::{Plan, Service};

const STEP: Duration = Duration::from_secs(5);

/// Waits for each service in turn, `limit` in all. The error names the log to read and shows its last lines.
pub async fn wait(plan: &Plan, host: &str, limit: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + limit;
    for service in [Service::Dockerd, Service::Etcd, Service::Registry, Service::Server, Service::Agent] {
        if matches!(service, Service::Etcd | Service::Registry | Service::Server) && !plan.runs(service) {
            continue;
        }
        let mut told = false;
        let started = Instant::now();
        while !ready(plan, service, host).await {
            if Instant::now() >= end {
                bail!(not_ready(service, limit));
            }
            if !told && started.elapsed() > Duration::from_millis(700) {
                eprintln!("waiting for {} ...", what(service));
                told = true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if told {
            eprintln!("{} is ready after {:.1} s", what(service), started.elapsed().as_secs_f32());
        }
    }
    Ok(())
}

fn what(service: Service) -> &'static str {
    match service {
        Service::Agent => "this host",
        Service::Registry => "the registry",
        other => other.name(),
    }
}

fn not_ready(service: Service, limit: Duration) -> String {
    let log = service.log();
    let mut text =
        format!("{} is not ready after {} s; read {}", what(service), limit.as_secs(), log.display());
    if super::systemd::is_pid_1() {
        text.push_str(&format!(" or: journalctl -u {}", super::systemd::unit(service)));
    }
    let tail = logs::tail(&log, 5);
    if !tail.is_empty() {
        text.push_str(&format!(". Its last lines:\n{tail}"));
    }
    text
}

async fn ready(plan: &Plan, service: Service, host: &str) -> bool {
    let api = &plan.server.api_socket;
    match service {
        Service::Server => matches!(request(api, "GET", "/readyz", STEP).await, Ok((200, _))),
        // The last agent's report says "ready" for a while yet; there must be an agent too.
        Service::Agent if plan.runs(Service::Server) => {
            is_there(plan).await && host_is_ready(api, host).await
        }
        // Its server is elsewhere, and takes no questions from a host: the agent says whether it is connected.
        Service::Agent => is_there(plan).await && Path::new(enoki_agent::agent::SESSION).exists(),
        other => plan.answers(other).await,
    }
}

async fn is_there(plan: &Plan) -> bool {
    find(Service::Agent.name()).is_some() || plan.answers(Service::Agent).await
}

async fn host_is_ready(api: &Path, host: &str) -> bool {
    let Ok(hosts) = call(api, "GET", "/v1/hosts", STEP).await else {
        return false;
    };
    is_ready(&hosts, host)
}

fn is_ready(hosts: &Value, host: &str) -> bool {
    let items = hosts.get("items").and_then(Value::as_array).into_iter().flatten();
    items.filter(|item| item.get("name").and_then(Value::as_str) == Some(host)).any(|item| {
        let phase = item.pointer("/status/phase").and_then(Value::as_str);
        phase == Some("ready")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_this_host_counts_and_only_as_ready() {
        let hosts = |name: &str, phase: &str| json!({"items": [{"kind": "host", "name": name, "status": {"phase": phase}}]});
        assert!(is_ready(&hosts("a", "ready"), "a"));
        assert!(!is_ready(&hosts("a", "degraded"), "a"));
        assert!(!is_ready(&hosts("b", "ready"), "a"));
        assert!(!is_ready(&json!({"items": []}), "a"));
        assert!(!is_ready(&json!([]), "a"));
    }
}
