//! PURE: what the pages of Spark's master and of a driver say.

use super::super::view::{MasterSeen, WorkerSeen};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A master's `/json/`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct MasterPage {
    #[serde(default)]
    workers: Vec<WorkerLine>,
    #[serde(default)]
    status: String,
}

#[derive(Debug, Deserialize)]
struct WorkerLine {
    host: String,
    state: String,
    #[serde(default)]
    coresused: u32,
}

/// What a master says: whether it leads (one that recovers does not yet), and its workers by address. One that was seen
/// under several identities counts by its newest state, which stands last; the dead ones are nobody.
pub fn master(page: &[u8]) -> Result<MasterSeen, String> {
    let page: MasterPage = serde_json::from_slice(page).map_err(|error| error.to_string())?;
    let mut workers = BTreeMap::new();
    for line in &page.workers {
        let Ok(address) = line.host.parse() else { continue };
        let seen = match line.state.as_str() {
            "ALIVE" => WorkerSeen::Alive { used: line.coresused > 0 },
            "DECOMMISSIONED" => WorkerSeen::Leaving,
            _ => continue,
        };
        let slot = workers.entry(address).or_insert(seen);
        if matches!(seen, WorkerSeen::Alive { .. }) {
            *slot = seen;
        }
    }
    Ok(MasterSeen { alive: page.status == "ALIVE", workers, jobs: None })
}

/// The gauge that says how many executors the driver could use at once, whatever it has asked for so far.
const NEEDED: &str = "job.driver.ExecutorAllocationManager.executors.numberMaxNeededExecutors";

/// A driver's `/metrics/json/`: how many executors it could use. None: it does not say, for dynamic allocation is off.
pub fn gauges(page: &[u8]) -> Result<Option<u32>, String> {
    let page: serde_json::Value = serde_json::from_slice(page).map_err(|error| error.to_string())?;
    let value = page.get("gauges").and_then(|gauges| gauges.get(NEEDED)).and_then(|gauge| gauge.get("value"));
    Ok(value.and_then(serde_json::Value::as_u64).map(|value| u32::try_from(value).unwrap_or(u32::MAX)))
}

/// The id of a driver's one application, of `/api/v1/applications`.
pub fn application(page: &[u8]) -> Result<Option<String>, String> {
    #[derive(Deserialize)]
    struct Application {
        id: String,
    }
    let all: Vec<Application> = serde_json::from_slice(page).map_err(|error| error.to_string())?;
    Ok(all.into_iter().next().map(|application| application.id))
}

/// A driver's `.../executors`: on which workers it has one, and with how many tasks.
pub fn executors(page: &[u8]) -> Result<BTreeMap<Ipv4Addr, u32>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Executor {
        id: String,
        host_port: String,
        is_active: bool,
        #[serde(default)]
        active_tasks: u32,
    }
    let all: Vec<Executor> = serde_json::from_slice(page).map_err(|error| error.to_string())?;
    let there = all.into_iter().filter(|executor| executor.is_active && executor.id != "driver");
    let placed = there.filter_map(|executor| {
        let (host, _) = executor.host_port.rsplit_once(':')?;
        Some((host.parse().ok()?, executor.active_tasks))
    });
    Ok(placed.collect())
}

/// A driver's `.../stages?status=active`: how many tasks are not done. Of a driver without dynamic allocation, its need.
pub fn stages(page: &[u8]) -> Result<u32, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Stage {
        num_tasks: u32,
        num_complete_tasks: u32,
    }
    let all: Vec<Stage> = serde_json::from_slice(page).map_err(|error| error.to_string())?;
    Ok(all.iter().map(|stage| stage.num_tasks.saturating_sub(stage.num_complete_tasks)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_masters_page() {
        let page = json!({"status": "ALIVE", "url": "spark://198.18.0.2:7077", "workers": [
            {"host": "198.18.0.3", "state": "DEAD", "coresused": 1, "id": "w1"},
            {"host": "198.18.0.3", "state": "ALIVE", "coresused": 0, "id": "w2"},
            {"host": "198.18.0.4", "state": "ALIVE", "coresused": 1},
            {"host": "198.18.0.5", "state": "DECOMMISSIONED", "coresused": 1},
            {"host": "198.18.0.6", "state": "UNKNOWN"},
            {"host": "a-name", "state": "ALIVE"},
        ]});
        let seen = master(page.to_string().as_bytes()).unwrap();
        assert!(seen.alive);
        let expected = [
            (3, WorkerSeen::Alive { used: false }),
            (4, WorkerSeen::Alive { used: true }),
            (5, WorkerSeen::Leaving),
        ];
        let expected = expected.map(|(last, seen)| (Ipv4Addr::new(198, 18, 0, last), seen));
        assert_eq!(seen.workers, BTreeMap::from(expected));
        assert!(!master(br#"{"status": "RECOVERING"}"#).unwrap().alive);
        master(b"<html>").unwrap_err();
    }

    #[test]
    fn a_drivers_pages() {
        let page = json!({"gauges": {NEEDED: {"value": 60}}});
        assert_eq!(gauges(page.to_string().as_bytes()), Ok(Some(60)));
        assert_eq!(gauges(br#"{"gauges": {}}"#), Ok(None));
        let page = json!([
            {"id": "driver", "hostPort": "198.18.0.9:1", "isActive": true, "activeTasks": 0},
            {"id": "0", "hostPort": "198.18.0.3:40123", "isActive": true, "activeTasks": 2},
            {"id": "1", "hostPort": "198.18.0.4:40123", "isActive": false, "activeTasks": 0},
        ]);
        let read = executors(page.to_string().as_bytes()).unwrap();
        assert_eq!(read, BTreeMap::from([(Ipv4Addr::new(198, 18, 0, 3), 2)]));
        let page = json!([{"numTasks": 10, "numCompleteTasks": 4}, {"numTasks": 1, "numCompleteTasks": 1}]);
        assert_eq!(stages(page.to_string().as_bytes()), Ok(6));
        assert_eq!(application(br#"[]"#), Ok(None));
        assert_eq!(application(br#"[{"id": "app-1", "name": "x"}]"#), Ok(Some("app-1".into())));
    }
}
