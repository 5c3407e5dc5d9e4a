//! The OCI configuration as Docker made it, with the instance's own network, disk and limits put in. Pure: values in, value out.
//!
//! What the record does not speak of stays as Docker put it (devices, capabilities, sysctls, masked paths).

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{IoLimit, Record, Refusal, Resources};

/// Points the container at its namespace (`record.netns`) and at `root`, where its disk is mounted, and sets its limits.
pub fn edit(mut config: Value, record: &Record, root: &Path) -> Result<Value, Refusal> {
    let top =
        config.as_object_mut().ok_or_else(|| Refusal::new("the bundle's config.json is not an object"))?;
    let root = root.to_str().ok_or_else(|| Refusal::new(format!("the path {root:?} is not UTF-8")))?;
    object(top, "root")?.insert("path".into(), json!(root));
    if let Some(mounts) = top.get_mut("mounts") {
        let mounts =
            mounts.as_array_mut().ok_or_else(|| Refusal::new("mounts in config.json is not a list"))?;
        mounts.retain(|mount| !is_unwanted_volume(mount, &record.drop_mounts));
        if let Some(bytes) = record.shm_bytes {
            size_shm(mounts, bytes)?;
        }
    }
    let linux = object(top, "linux")?;
    join_network(linux, &record.netns)?;
    limit(object(linux, "resources")?, &record.resources)?;
    Ok(config)
}

/// The object at `key`, made when absent or null.
fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Map<String, Value>, Refusal> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or_else(|| Refusal::new(format!("{key} in config.json is not an object")))
}

/// Exactly one network entry, with our path: an entry without one would be a fresh namespace, no entry at all the host's.
fn join_network(linux: &mut Map<String, Value>, netns: &Path) -> Result<(), Refusal> {
    let path = netns.to_str().ok_or_else(|| Refusal::new(format!("the path {netns:?} is not UTF-8")))?;
    let namespaces = linux.entry("namespaces").or_insert_with(|| json!([]));
    if namespaces.is_null() {
        *namespaces = json!([]);
    }
    let list = namespaces
        .as_array_mut()
        .ok_or_else(|| Refusal::new("linux.namespaces in config.json is not a list"))?;
    list.retain(|entry| entry["type"] != "network");
    list.push(json!({"type": "network", "path": path}));
    Ok(())
}

/// An anonymous volume of Docker's (`.../volumes/<64 hex digits>/_data`) at one of the paths. A named volume or a bind somebody asked
/// for at the same path is kept.
fn is_unwanted_volume(mount: &Value, paths: &[String]) -> bool {
    let trim = |p: &str| p.trim_end_matches('/').to_owned();
    let listed = mount["destination"].as_str().is_some_and(|d| paths.iter().any(|p| trim(p) == trim(d)));
    let source = mount["source"].as_str().unwrap_or_default();
    let mut parts = source.rsplit('/');
    let anonymous = parts.next() == Some("_data")
        && parts.next().is_some_and(|name| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()))
        && parts.next() == Some("volumes");
    listed && anonymous
}

fn size_shm(mounts: &mut [Value], bytes: u64) -> Result<(), Refusal> {
    let shm = mounts.iter_mut().find(|m| m["destination"] == "/dev/shm" && m["type"] == "tmpfs");
    let shm = shm.ok_or_else(|| Refusal::new("Docker gave the container no /dev/shm of its own to size: it must be created with IpcMode private"))?;
    let options = shm["options"].as_array().cloned().unwrap_or_default();
    let mut options: Vec<Value> =
        options.into_iter().filter(|o| !o.as_str().is_some_and(|o| o.starts_with("size="))).collect();
    options.push(json!(format!("size={bytes}")));
    shm["options"] = Value::Array(options);
    Ok(())
}

fn limit(resources: &mut Map<String, Value>, limits: &Resources) -> Result<(), Refusal> {
    let cpu =
        [("quota", limits.cpu_quota_us), ("period", limits.cpu_period_us), ("shares", limits.cpu_shares)];
    set(resources, "cpu", &cpu)?;
    if let Some(cpus) = &limits.cpuset {
        object(resources, "cpu")?.insert("cpus".into(), json!(cpus));
    }
    set(resources, "memory", &[("limit", limits.memory_bytes), ("swap", limits.memory_swap_bytes)])?;
    set(resources, "pids", &[("limit", limits.pids)])?;
    if !limits.io.is_empty() {
        let block = object(resources, "blockIO")?;
        throttle(block, "throttleReadBpsDevice", &limits.io, |l| l.read_bps)?;
        throttle(block, "throttleWriteBpsDevice", &limits.io, |l| l.write_bps)?;
        throttle(block, "throttleReadIOPSDevice", &limits.io, |l| l.read_iops)?;
        throttle(block, "throttleWriteIOPSDevice", &limits.io, |l| l.write_iops)?;
    }
    Ok(())
}

/// Sets those numbers that have a value; makes `group` only if there is one.
fn set(
    resources: &mut Map<String, Value>,
    group: &str,
    numbers: &[(&str, Option<u64>)],
) -> Result<(), Refusal> {
    for (key, number) in numbers {
        let Some(number) = *number else { continue };
        // OCI numbers are signed; runc would read a larger one as "unlimited" or fail on it.
        let number = i64::try_from(number)
            .map_err(|_| Refusal::new(format!("the record's {group} {key} {number} is too large")))?;
        object(resources, group)?.insert((*key).into(), json!(number));
    }
    Ok(())
}

/// Our rate replaces Docker's of the same device; other devices' rates stay.
fn throttle(
    block: &mut Map<String, Value>,
    key: &str,
    limits: &[IoLimit],
    rate: fn(&IoLimit) -> Option<u64>,
) -> Result<(), Refusal> {
    let ours: Vec<(&IoLimit, u64)> = limits.iter().filter_map(|l| rate(l).map(|r| (l, r))).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let list = block.entry(key).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    let list = list
        .as_array_mut()
        .ok_or_else(|| Refusal::new(format!("blockIO.{key} in config.json is not a list")))?;
    list.retain(|d| !ours.iter().any(|(l, _)| d["major"] == l.major && d["minor"] == l.minor));
    list.extend(ours.iter().map(|(l, rate)| json!({"major": l.major, "minor": l.minor, "rate": rate})));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn record(extra: Value) -> Record {
        let mut base = json!({"version": 1, "instance": "default/web1", "uid": "u", "epoch": 3, "netns": "/run/enoki/netns/u",
            "rootfs": {"disk": "/d", "upper": "/d/upper", "work": "/d/work", "mountpoint": "/d/root"}});
        base.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        serde_json::from_value(base).expect("a record")
    }

    fn edited(config: Value, extra: Value) -> Value {
        edit(config, &record(extra), Path::new("/d/root")).expect("edits")
    }

    #[test]
    fn the_network_entry_is_filled_added_and_never_doubled() {
        let ours = json!({"type": "network", "path": "/run/enoki/netns/u"});
        for (before, after) in [
            (json!({}), json!([ours])),
            (json!({"namespaces": null}), json!([ours])),
            (json!({"namespaces": [{"type": "pid"}]}), json!([{"type": "pid"}, ours])),
            (json!({"namespaces": [{"type": "network"}, {"type": "pid"}]}), json!([{"type": "pid"}, ours])),
            (
                json!({"namespaces": [{"type": "network", "path": "/proc/1/ns/net"}, {"type": "network"}]}),
                json!([ours]),
            ),
        ] {
            assert_eq!(edited(json!({"linux": before}), json!({}))["linux"]["namespaces"], after);
        }
    }

    #[test]
    fn the_root_is_ours_and_its_other_fields_stay() {
        let config = edited(
            json!({"root": {"path": "/merged", "readonly": true}, "process": {"args": ["a"]}}),
            json!({}),
        );
        assert_eq!(config["root"], json!({"path": "/d/root", "readonly": true}));
        assert_eq!(config["process"]["args"], json!(["a"]));
    }

    #[test]
    fn only_listed_anonymous_volumes_are_dropped() {
        let anonymous = format!("/var/lib/docker/volumes/{ID}/_data");
        let mount = |to: &str, from: &str| json!({"destination": to, "source": from, "type": "bind"});
        let mounts = json!([
            mount("/data", &anonymous),
            mount("/other", &anonymous),
            mount("/kept", "/var/lib/docker/volumes/named/_data"),
            mount("/bound", "/srv"),
            mount("/proc", "proc")
        ]);
        let config =
            edited(json!({"mounts": mounts}), json!({"drop_mounts": ["/data/", "/kept", "/bound", "/proc"]}));
        let left: Vec<&str> = config["mounts"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|m| m["destination"].as_str())
            .collect();
        assert_eq!(left, ["/other", "/kept", "/bound", "/proc"]);
    }

    #[test]
    fn shm_is_sized_or_refused() {
        let shm = |kind: &str| json!({"mounts": [{"destination": "/dev/shm", "type": kind, "source": "shm", "options": ["nosuid", "mode=1777", "size=67108864"]}]});
        assert_eq!(
            edited(shm("tmpfs"), json!({"shm_bytes": 5}))["mounts"][0]["options"],
            json!(["nosuid", "mode=1777", "size=5"])
        );
        assert_eq!(edited(shm("tmpfs"), json!({}))["mounts"][0]["options"][2], json!("size=67108864"));
        assert!(edit(shm("bind"), &record(json!({"shm_bytes": 5})), Path::new("/d/root")).is_err());
    }

    #[test]
    fn limits_are_laid_over_what_docker_put() {
        let docker = json!({"devices": [{"allow": false}], "memory": {"disableOOMKiller": false}, "cpu": null, "pids": {"limit": 0},
            "blockIO": {"weight": 0, "throttleReadBpsDevice": [{"major": 1, "minor": 2, "rate": 3}, {"major": 254, "minor": 0, "rate": 9}]}});
        let limits = json!({"cpu_quota_us": 50000, "cpu_period_us": 100_000, "cpuset": "0-1", "memory_bytes": 7, "memory_swap_bytes": 8, "pids": 200,
            "io": [{"major": 254, "minor": 0, "read_bps": 4, "write_iops": 6}, {"major": 254, "minor": 16, "read_bps": 5}]});
        let config = edited(json!({"linux": {"resources": docker}}), json!({"resources": limits}));
        assert_eq!(
            config["linux"]["resources"],
            json!({"devices": [{"allow": false}], "memory": {"disableOOMKiller": false, "limit": 7, "swap": 8}, "cpu": {"quota": 50000, "period": 100_000, "cpus": "0-1"}, "pids": {"limit": 200},
                "blockIO": {"weight": 0, "throttleReadBpsDevice": [{"major": 1, "minor": 2, "rate": 3}, {"major": 254, "minor": 0, "rate": 4}, {"major": 254, "minor": 16, "rate": 5}],
                    "throttleWriteIOPSDevice": [{"major": 254, "minor": 0, "rate": 6}]}})
        );
    }

    #[test]
    fn no_limits_leave_dockers_alone() {
        let docker = json!({"memory": {"limit": 3}, "pids": {"limit": 9}});
        assert_eq!(edited(json!({"linux": {"resources": docker}}), json!({}))["linux"]["resources"], docker);
    }

    #[test]
    fn nonsense_is_refused_not_patched() {
        for config in [
            json!([]),
            json!({"linux": 3}),
            json!({"root": "x"}),
            json!({"mounts": {}}),
            json!({"linux": {"namespaces": {}}}),
            json!({"linux": {"resources": {"memory": 3}}}),
        ] {
            let record = record(json!({"resources": {"memory_bytes": 7}}));
            assert!(edit(config.clone(), &record, Path::new("/d/root")).is_err(), "{config}");
        }
        let huge = record(json!({"resources": {"memory_bytes": u64::MAX}}));
        assert!(edit(json!({}), &huge, Path::new("/d/root")).expect_err("refused").0.contains("too large"));
    }
}
