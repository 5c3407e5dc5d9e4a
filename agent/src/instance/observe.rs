//! Looks at one instance: Docker, disk, links, record. What cannot be looked at is unknown, never absent.

use super::act::container_name;
use super::observed::{Applied, Body, Desired, Observed, Seen, Trouble};
use super::{Host, facts};
use crate::disk::Pinned;
use crate::image::Wanted;
use crate::ledger::Ledger;
use crate::runtime::{Container, State};
use enoki_api::instance::{Doomed, disk_uid};
use enoki_api::object::Uid;
use enoki_api::protocol::{Order, Report};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Exit code of what was ended by SIGKILL, as shells and engines tell it.
const KILLED: i64 = 128 + 9;
/// How long a network that was made is taken to be as it was made.
const NETWORK_HOLDS: Duration = Duration::from_secs(300);

/// What an agent keeps of an instance while it runs; lost with it, and then looked at anew.
#[derive(Default)]
pub struct Memory {
    /// The links as they were last made, and when.
    pub network: Option<(String, Instant)>,
    pub limits: Option<Applied>,
    pub trouble: Option<Trouble>,
    pub last: Option<Report>,
    /// Of the disk.
    pub user_data: Option<(Uid, i64)>,
}

/// All that the links are made from.
pub fn links(order: &Order) -> String {
    let nics = &order.instance.spec.nics;
    let networks: Vec<_> =
        order.networks.values().map(|network| (&network.name, &network.uid, &network.spec)).collect();
    serde_json::json!([nics, order.assignment.nics, networks]).to_string()
}

/// What the ledger wants of `uid`. None: nothing (any more).
pub fn desired(ledger: &Ledger, uid: &Uid) -> Option<Desired> {
    let entry = ledger.get(uid);
    let tombstone = ledger.tombstone(uid);
    let facts = entry.as_ref().map(|entry| entry.facts.clone()).unwrap_or_default();
    let bare = |order, doomed, doomed_disks| {
        Some(Desired { uid: uid.clone(), order, facts: facts.clone(), doomed, doomed_disks })
    };
    match (entry, tombstone.map(|tombstone| tombstone.what)) {
        (None, None) => None,
        // A disk or volume that belongs to no instance here.
        (_, Some(Doomed::Disk | Doomed::Volume)) => bare(None, false, vec![uid.clone()]),
        // A tombstone of a newer version is acted on by nobody.
        (None, Some(Doomed::Unknown)) => None,
        (None, Some(Doomed::Instance)) => bare(None, true, Vec::new()),
        (Some(entry), what) => {
            let doomed = what == Some(Doomed::Instance);
            let disks = ledger
                .tombstones()
                .into_iter()
                .filter(|tombstone| tombstone.what == Doomed::Disk && owns(&entry, &tombstone.uid))
                .map(|tombstone| tombstone.uid)
                .collect();
            bare(Some(Arc::new(entry.order)), doomed, disks)
        }
    }
}

/// Whether a disk is or was the instance's: remembered, named by its order, or derived from its uid.
pub fn owns(entry: &crate::ledger::Entry, disk: &Uid) -> bool {
    entry.facts.disks.contains(disk)
        || entry.order.disk == *disk
        || (0..=entry.order.instance.spec.rebuild_count)
            .any(|count| disk_uid(entry.order.uid(), count) == *disk)
}

/// One look. `up`: Docker is known to answer; otherwise it is not asked, so that nothing piles up on it.
pub async fn observe(host: &Host, desired: &Desired, memory: &Memory, up: bool) -> Observed {
    let mut seen = Observed {
        boot: host.machine.boot().to_owned(),
        limits: memory.limits.clone(),
        trouble: memory.trouble.clone(),
        last: memory.last.clone(),
        squeezed_since: host.squeezed_since(&desired.uid),
        ..Observed::default()
    };
    if up {
        (seen.bodies, seen.holder) = bodies(host, desired).await;
    }
    seen.doomed_disks = doomed_disks(host, desired).await;
    if desired.doomed {
        seen.remains = match host.machine.remains(&desired.uid).await {
            Ok(true) => Seen::Present(()),
            Ok(false) => Seen::Absent,
            Err(_) => Seen::Unknown,
        };
        return seen;
    }
    let Some(order) = &desired.order else { return seen };
    seen.disk = Seen::from_look(host.machine.disk(&order.disk).await);
    seen.network = match host.machine.network(order.uid()).await {
        Ok(true) => Seen::Present(
            memory
                .network
                .as_ref()
                .is_some_and(|(made, at)| at.elapsed() < NETWORK_HOLDS && *made == links(order)),
        ),
        Ok(false) => Seen::Absent,
        Err(_) => Seen::Unknown,
    };
    let runs = |body: &Body| matches!(body.container.state, State::Running { .. });
    let bodies = seen.bodies.present();
    let running = bodies.is_some_and(|bodies| bodies.iter().any(runs));
    // Only a container that may have to be made depends on the image.
    if up && (!running || unrecorded(bodies)) {
        let pinned = seen.disk.present().and_then(|disk| disk.image.as_ref());
        seen.image = Seen::from_look(host.runtime.image(wanted_image(order, pinned).reference()).await);
    }
    // So does only a start need the files.
    if !running && !order.instance.spec.files.is_empty() {
        let look = host.machine.delivered(order).await;
        seen.delivered = Seen::from_look(look.map(|whole| whole.then_some(())));
    }
    if order.instance.spec.user_data.is_some() {
        seen.user_data_exit_code = match &memory.user_data {
            Some((disk, code)) if *disk == order.disk => Some(*code),
            Some(_) | None => host.machine.user_data_exit_code(&order.disk).await,
        };
    }
    seen
}

/// PURE: the image that a container of this order is made from.
pub fn wanted_image<'a>(order: &'a Order, pinned: Option<&'a Pinned>) -> Wanted<'a> {
    Wanted {
        name: &order.instance.spec.image,
        imported: order.imported.as_ref(),
        current: order.current,
        pinned,
    }
}

fn unrecorded(bodies: Option<&Vec<Body>>) -> bool {
    bodies.is_some_and(|bodies| bodies.iter().any(|body| body.record == Seen::Absent))
}

/// The instance's containers, and who else has its name.
async fn bodies(host: &Host, desired: &Desired) -> (Seen<Vec<Body>>, Option<String>) {
    let name = match &desired.order {
        Some(order) => {
            let project = order.instance.project.as_deref().unwrap_or("-");
            Some(container_name(project, &order.instance.name))
        }
        None => host
            .ledger
            .tombstone(&desired.uid)
            .and_then(|tombstone| Some(tombstone.name.split_once('/')?).map(|(p, n)| container_name(p, n))),
    };
    let mut found: Vec<Container> = Vec::new();
    let mut holder = None;
    if let Some(name) = name {
        match host.runtime.inspect(&name).await {
            Ok(Some(container)) if container.uid == desired.uid => found.push(container),
            Ok(Some(other)) => {
                holder = Some(format!("{}/{} (uid {})", other.project, other.instance, other.uid))
            }
            Ok(None) => {}
            Err(_) => return (Seen::Unknown, None),
        }
    }
    // Renamed ones, and ones that only a list of labels can find.
    for id in candidates(host, &desired.uid, &desired.facts) {
        if found.iter().any(|container| container.id == id) {
            continue;
        }
        match host.runtime.inspect(&id).await {
            Ok(Some(container)) if container.uid == desired.uid => found.push(container),
            Ok(_) => {}
            Err(_) => return (Seen::Unknown, holder),
        }
    }
    if found.is_empty() {
        return (Seen::Absent, holder);
    }
    let mut bodies = Vec::new();
    for mut container in found {
        if let State::Exited { code: KILLED, oom_killed: oom_killed @ false, .. } = &mut container.state {
            let Ok(starved) = host.machine.starved(&container.id).await else {
                return (Seen::Unknown, holder);
            };
            *oom_killed = starved;
        }
        let record = Seen::from_look(host.machine.record(&container.id).await);
        bodies.push(Body { container, record });
    }
    (Seen::Present(bodies), holder)
}

fn candidates(host: &Host, uid: &Uid, facts: &facts::Facts) -> Vec<String> {
    let mut ids = host.listed(uid);
    ids.extend(facts.run.iter().map(|run| run.container.clone()));
    ids.dedup();
    ids
}

/// Which of the doomed disks are there. A disk that a living order names is not looked at: its time has not come.
async fn doomed_disks(host: &Host, desired: &Desired) -> Seen<Vec<Uid>> {
    let mut there = Vec::new();
    for disk in &desired.doomed_disks {
        let Some(tombstone) = host.ledger.tombstone(disk) else { continue };
        if desired.order.is_none() && host.needs(disk) {
            return Seen::Unknown;
        }
        match host.machine.there(tombstone.what, disk).await {
            Ok(true) => there.push(disk.clone()),
            Ok(false) => {}
            Err(_) => return Seen::Unknown,
        }
    }
    Seen::Present(there)
}
