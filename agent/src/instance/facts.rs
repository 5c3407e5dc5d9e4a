//! What an agent remembers of an instance beside its order: what it did, and what it saw end.
//!
//! Kept in the ledger and written *before* the action that it is about, so that an agent killed between any two
//! steps neither repeats what must happen once (a restart) nor forgets what it owes (a disk).

use enoki_api::instance::InstanceSpec;
use enoki_api::object::Uid;
use enoki_api::protocol::Order;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Default: nothing done yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The `spec.restart_count` that was acted on.
    pub restart_count: u64,
    /// What the newest container was made from. None: not made by this agent's ledger.
    pub made: Option<Made>,
    /// Root disks that were made here and not destroyed.
    pub disks: Vec<Uid>,
    /// The run that is being stopped on purpose.
    pub stopping: Option<Run>,
    /// The run that was last seen.
    pub run: Option<Run>,
    /// The end that was last seen. None: of the last run none was.
    pub exit: Option<Exit>,
    /// Whether the run that ended last was killed for its memory.
    pub oom_killed: bool,
    /// Starts by the restart policy since the last start on purpose.
    pub restarts: u64,
    /// Ends in a row that were soon after a start: the exponent of the backoff.
    pub failures: u32,
}

impl Facts {
    /// For an order that this agent sees for the first time: its restarts were for somebody else to do.
    pub fn first(order: &Order) -> Self {
        Facts { restart_count: order.instance.spec.restart_count, ..Facts::default() }
    }
}

/// A container's ingredients, as far as a change of them needs a new container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// The label `enoki.spec`.
    pub fingerprint: String,
    pub spec: InstanceSpec,
    pub env: BTreeMap<String, String>,
    pub disk: Uid,
    /// By id.
    pub image: String,
    /// Folders for which the image asks for volumes: part of the root disk instead.
    pub volumes: Vec<String>,
}

impl Made {
    /// Where Docker mounts volumes for the image that nobody asked for. A volume of the instance's own that is
    /// mounted at such a place stays.
    pub fn drop_mounts(&self) -> Vec<String> {
        let bare = |path: &str| path.trim_end_matches('/').to_owned();
        let kept: Vec<String> = self.spec.mounts.keys().map(|path| bare(path)).collect();
        self.volumes.iter().filter(|path| !kept.contains(&bare(path))).cloned().collect()
    }
}

/// A container's main process from start to end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub container: String,
    pub started_at: Timestamp,
    /// The host's boot that it ran in.
    pub boot: String,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// We stopped it.
    Asked,
    /// The host went down with it.
    Reboot,
    /// Its main process ended.
    Itself,
    /// It never ran: Docker or the wrapper refused.
    Refused,
}

/// The end of a run, decided about once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    pub container: String,
    pub finished_at: Timestamp,
    pub cause: Cause,
    pub code: i64,
    pub oom_killed: bool,
    pub message: String,
    /// The earliest next start. None: the restart policy says that this was the end.
    pub due: Option<Timestamp>,
}

/// Says in 16 hexadecimal digits what a container is made from: another value means another container at the next
/// start. What changes live (limits, rates, grace) has no part in it.
pub fn fingerprint(order: &Order) -> String {
    let spec = &order.instance.spec;
    let volumes: BTreeMap<&String, &Uid> =
        order.volumes.iter().map(|(name, volume)| (name, &volume.uid)).collect();
    let parts = serde_json::json!([
        // Counted up when a newer agent makes containers in another way.
        1,
        spec.image,
        spec.command,
        spec.hostname,
        order.env,
        spec.mounts,
        volumes,
        spec.profile,
        spec.user_data.is_some(),
        order.disk,
    ]);
    let digest = Sha256::digest(parts.to_string().as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fields of the order that the container was not made from.
pub fn restart_required(order: &Order, made: Option<&Made>, container: &str) -> Vec<String> {
    if fingerprint(order) == container {
        return Vec::new();
    }
    // Only the container's label is left, and it tells that something differs, not what.
    let Some(made) = made.filter(|made| made.fingerprint == container) else {
        return vec!["spec".to_owned()];
    };
    use enoki_api::instance::Change;
    let mut fields: Vec<String> = made
        .spec
        .changes(&order.instance.spec)
        .into_iter()
        .filter(|(_, change)| match change {
            Change::Restart | Change::Rebuild => true,
            Change::Live | Change::Immutable => false,
        })
        .map(|(field, _)| field)
        .collect();
    // A secret's new value changes the environment without changing the spec.
    if made.env != order.env && !fields.iter().any(|field| field == "env") {
        fields.push("env".to_owned());
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::samples::{changed, order};
    use enoki_api::instance::Mount;

    #[test]
    fn volumes_of_the_image_are_dropped_unless_the_instance_has_its_own_there() {
        let own = changed(&order("web1"), |spec| {
            for path in ["/data", "/other"] {
                spec.mounts.insert(path.to_owned(), Mount { volume: "v".to_owned(), read_only: false });
            }
        });
        let made = |order: &Order, volumes: &[&str]| Made {
            fingerprint: fingerprint(order),
            spec: order.instance.spec.clone(),
            env: BTreeMap::new(),
            disk: order.disk.clone(),
            image: "sha256:1".to_owned(),
            volumes: volumes.iter().map(|&path| path.to_owned()).collect(),
        };
        assert_eq!(made(&order("web1"), &["/data", "/var/log/"]).drop_mounts(), ["/data", "/var/log/"]);
        assert_eq!(made(&own, &["/data/", "/var/log"]).drop_mounts(), ["/var/log"]);
        assert!(made(&own, &[]).drop_mounts().is_empty());
    }
}
