//! The columns of each kind.

use super::failure::Failure;
use super::output::{self, Format};
use super::quota::share;
use enoki_api::event::Event;
use enoki_api::host::HostPhase;
use enoki_api::project::Resource;
use enoki_api::quantity::{Bytes, MilliCpu};
use enoki_api::{
    Cluster, Host, Image, Instance, Job, Kind, Network, Operation, Project, Secret, Token, Volume,
};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Prints objects of one kind as a table.
pub fn show(kind: Kind, items: &[Value], format: Format) -> Result<(), Failure> {
    let wide = format == Format::Wide;
    let (header, rows) = match kind {
        Kind::Instance => rows(items, INSTANCE, instance)?,
        Kind::Host => rows(items, HOST, host)?,
        Kind::Network => rows(items, NETWORK, network)?,
        Kind::Volume => rows(items, VOLUME, volume)?,
        Kind::Secret => rows(items, SECRET, secret)?,
        Kind::Image => rows(items, IMAGE, image)?,
        Kind::Project => rows(items, PROJECT, project)?,
        Kind::Cluster => rows(items, CLUSTER, cluster)?,
        Kind::Job => rows(items, JOB, job)?,
        Kind::Token => rows(items, TOKEN, token)?,
        Kind::Operation => rows(items, OPERATION, operation)?,
        Kind::Event => rows(items, EVENT, event)?,
    };
    let (narrow, extra) = header;
    let header: Vec<&str> = narrow.iter().chain(extra.iter().filter(|_| wide)).copied().collect();
    let rows = rows.into_iter().map(|mut row| {
        row.truncate(header.len());
        row
    });
    output::table(&header, rows.collect())
}

/// The columns that are always shown, and those of `-o wide`.
type Header = (&'static [&'static str], &'static [&'static str]);
type Rows = (Header, Vec<Vec<String>>);

const INSTANCE: Header = (
    &["NAME", "PHASE", "REASON", "HOST", "ADDRESS", "CPUS", "MEMORY", "IMAGE", "AGE"],
    &["RESTARTS", "PID", "PIDS", "DISK", "MAC", "LIMITS", "UID"],
);
const HOST: Header = (
    &["NAME", "PHASE", "INSTANCES", "CPUS", "MEMORY", "DOCKER", "CGROUP", "AGE"],
    &["PIDS", "REASON", "LABELS", "UID"],
);
const NETWORK: Header = (&["NAME", "TYPE", "CIDR", "GATEWAY", "EGRESS", "USED", "AGE"], &["LABELS", "UID"]);
const VOLUME: Header = (&["NAME", "TYPE", "HOST", "USED-BY", "AGE"], &["PATH", "LABELS", "UID"]);
const SECRET: Header = (&["NAME", "KEYS", "AGE"], &["UID"]);
const IMAGE: Header = (&["NAME", "SIZE", "USED-BY", "AGE"], &["DIGEST", "HOSTS", "IMAGE-ID", "UID"]);
const PROJECT: Header = (
    &["NAME", "INSTANCES", "NETWORKS", "VOLUMES", "CLUSTERS", "AGE"],
    &["CPUS", "MEMORY", "PIDS", "DISK", "DESCRIPTION", "LABELS", "UID"],
);
const CLUSTER: Header = (
    &["NAME", "PHASE", "VERSION", "WORKERS", "DESIRED", "DRAINING", "MIN..MAX", "AGE"],
    &["CPUS", "MEMORY", "MASTER", "REASON", "LABELS", "UID"],
);
const JOB: Header = (
    &["NAME", "CLUSTER", "PHASE", "EXIT-CODE", "FILE", "TOOK", "AGE"],
    &["ATTEMPTS", "DRIVER", "REASON", "UID"],
);
const TOKEN: Header = (&["NAME", "ROLE", "PROJECTS", "EXPIRES", "AGE"], &["LABELS", "UID"]);
const OPERATION: Header = (&["NAME", "VERB", "HOST", "PHASE", "DONE", "REASON", "AGE"], &["MESSAGE", "UID"]);
const EVENT: Header =
    (&["LAST-SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"], &["COUNT", "FIRST-SEEN", "PROJECT"]);

fn rows<T: DeserializeOwned>(
    items: &[Value],
    header: Header,
    row: fn(&T) -> Vec<String>,
) -> Result<Rows, Failure> {
    let rows = items.iter().map(|item| decode(item).map(|object| row(&object))).collect::<Result<_, _>>()?;
    Ok((header, rows))
}

/// An item of an answer as a type of the contract.
pub fn decode<T: DeserializeOwned>(item: &Value) -> Result<T, Failure> {
    T::deserialize(item)
        .map_err(|error| Failure::failed(format!("the server's answer cannot be read: {error}")))
        .map_err(|failure| failure.hint("`-o json` prints it as it is"))
}

fn instance(object: &Instance) -> Vec<String> {
    let (spec, status) = (&object.spec, &object.status);
    let nics = |part: fn(&enoki_api::instance::NicStatus) -> String| {
        status.nics.values().map(part).collect::<Vec<_>>().join(",")
    };
    vec![
        object.name.clone(),
        status.phase.to_string(),
        text(&status.reason),
        text(&status.host),
        nics(|nic| nic.address.to_string()),
        text(&spec.cpus),
        text(&spec.memory),
        spec.image.clone(),
        age(object.created_at),
        status.restarts.to_string(),
        text(&status.pid),
        text(&spec.pids),
        text(&spec.disk_size),
        nics(|nic| nic.mac.to_string()),
        status.limits.state.to_string(),
        object.uid.to_string(),
    ]
}

fn host(object: &Host) -> Vec<String> {
    let (status, has) = (&object.status, &object.status.capacity);
    let phase = if object.spec.cordoned { ",cordoned" } else { "" };
    let of = |granted: String, capacity: String| format!("{granted}/{capacity}");
    vec![
        object.name.clone(),
        format!("{}{phase}", host_phase(status.phase)),
        status.granted.instances.to_string(),
        of(cpus(status.granted.cpus), cpus(has.cpus)),
        of(size(status.granted.memory), size(has.memory)),
        text(&status.docker),
        text(&status.cgroup),
        age(object.created_at),
        of(status.granted.pids.to_string(), has.pids.to_string()),
        text(&status.reason),
        labels(&object.labels),
        object.uid.to_string(),
    ]
}

fn cluster(object: &Cluster) -> Vec<String> {
    let (spec, status) = (&object.spec, &object.status);
    let workers = &status.workers;
    vec![
        object.name.clone(),
        status.phase.to_string(),
        format!("{} {}", spec.engine, spec.version),
        workers.ready.to_string(),
        workers.desired.to_string(),
        workers.draining.to_string(),
        format!("{}..{}", spec.workers.min, spec.workers.max),
        age(object.created_at),
        spec.workers.cpus.to_string(),
        spec.workers.memory.to_string(),
        text(&status.master),
        text(&status.reason),
        labels(&object.labels),
        object.uid.to_string(),
    ]
}

fn job(object: &Job) -> Vec<String> {
    let (spec, status) = (&object.spec, &object.status);
    let took = status.started_at.map(|from| {
        let until = status.ended_at.unwrap_or_else(Timestamp::now);
        format!("{}s", until.duration_since(from).as_secs().max(0))
    });
    vec![
        object.name.clone(),
        spec.cluster.clone(),
        status.phase.to_string(),
        text(&status.exit_code),
        spec.file.name.clone(),
        text(&took),
        age(object.created_at),
        status.attempts.to_string(),
        text(&status.driver),
        text(&status.reason),
        object.uid.to_string(),
    ]
}

fn token(object: &Token) -> Vec<String> {
    let expires = match object.spec.expires_at {
        _ if object.status.expired => "expired".to_owned(),
        None => "never".to_owned(),
        Some(at) => at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    };
    vec![
        object.name.clone(),
        object.spec.role.to_string(),
        object.spec.projects.join(","),
        expires,
        age(object.created_at),
        labels(&object.labels),
        object.uid.to_string(),
    ]
}

fn operation(object: &Operation) -> Vec<String> {
    let (spec, status) = (&object.spec, &object.status);
    vec![
        object.name.clone(),
        spec.verb.to_string(),
        spec.host.clone(),
        status.phase.to_string(),
        status.progress.to_string(),
        text(&status.reason),
        age(object.created_at),
        text(&status.message),
        object.uid.to_string(),
    ]
}

fn network(object: &Network) -> Vec<String> {
    vec![
        object.name.clone(),
        word(&object.spec.kind),
        object.spec.cidr.to_string(),
        object.spec.gateway.to_string(),
        word(&object.spec.egress),
        format!("{}/{}", object.status.used, object.status.addresses),
        age(object.created_at),
        labels(&object.labels),
        object.uid.to_string(),
    ]
}

fn volume(object: &Volume) -> Vec<String> {
    vec![
        object.name.clone(),
        word(&object.spec.kind),
        text(&object.status.host),
        object.status.used_by.join(","),
        age(object.created_at),
        text(&object.spec.path),
        labels(&object.labels),
        object.uid.to_string(),
    ]
}

fn secret(object: &Secret) -> Vec<String> {
    vec![object.name.clone(), object.status.keys.join(","), age(object.created_at), object.uid.to_string()]
}

fn image(object: &Image) -> Vec<String> {
    vec![
        object.name.clone(),
        size(object.spec.size),
        object.status.used_by.join(","),
        age(object.created_at),
        object.spec.digest.clone(),
        object.status.hosts.join(","),
        object.spec.image_id.clone(),
        object.uid.to_string(),
    ]
}

fn project(object: &Project) -> Vec<String> {
    vec![
        object.name.clone(),
        share(object, Resource::Instances),
        share(object, Resource::Networks),
        share(object, Resource::Volumes),
        share(object, Resource::Clusters),
        age(object.created_at),
        share(object, Resource::Cpus),
        share(object, Resource::Memory),
        share(object, Resource::Pids),
        share(object, Resource::DiskSize),
        object.spec.description.clone(),
        labels(&object.labels),
        object.uid.to_string(),
    ]
}

fn event(event: &Event) -> Vec<String> {
    vec![
        age(event.last_at),
        if event.warning { "warning" } else { "normal" }.into(),
        event.reason.clone(),
        format!("{}/{}", event.kind, event.name),
        event.message.clone(),
        event.count.to_string(),
        age(event.first_at),
        text(&event.project),
    ]
}

pub fn text<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map(T::to_string).unwrap_or_default()
}

/// A choice as it is written in JSON.
pub fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => "unknown".into(),
    }
}

pub fn host_phase(phase: HostPhase) -> String {
    word(&phase)
}

pub fn labels(labels: &enoki_api::Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// CPUs to two places: a sum of grants is for a glance.
pub fn cpus(cpus: MilliCpu) -> String {
    let rounded = format!("{:.2}", cpus.0 as f64 / 1000.0);
    rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes for a glance, to one place: `7.8Gi`. Limits are printed exactly instead.
pub fn size(bytes: Bytes) -> String {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    for (unit, shift) in units {
        if bytes.0 >> shift > 0 {
            let value = format!("{:.1}", bytes.0 as f64 / (1u64 << shift) as f64);
            return format!("{}{unit}", value.trim_end_matches(".0"));
        }
    }
    bytes.0.to_string()
}

/// How long ago, in the two largest units.
pub fn age(then: Timestamp) -> String {
    span(Timestamp::now().as_second() - then.as_second())
}

fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..600 if s % 60 != 0 => format!("{}m{}s", s / 60, s % 60),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..36_000 if s % 3_600 >= 60 => format!("{}h{}m", s / 3_600, s % 3_600 / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_for_a_glance() {
        for (bytes, text) in
            [(0, "0"), (1023, "1023"), (1 << 20, "1Mi"), (1536 << 20, "1.5Gi"), (8_000_000_000, "7.5Gi")]
        {
            assert_eq!(size(Bytes(bytes)), text);
        }
        for (seconds, text) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3_600, "60m"),
            (7_260, "2h1m"),
            (90_000, "25h"),
            (200_000, "2d"),
        ] {
            assert_eq!(span(seconds), text);
        }
        assert_eq!(cpus(MilliCpu(1500)), "1.5");
        assert_eq!(cpus(MilliCpu(10_000)), "10");
    }
}
