//! What agents have said and nobody stores: reports, liveness, health, orphans.

use enoki_api::host::Capacity;
use enoki_api::object::Uid;
use enoki_api::protocol::{FromServer, Health, Hello, Orphan, Report};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

/// How often heartbeats come, and how long silence is borne: more rarely and longer the more hosts there are, so that a
/// leader of thousands has few hundred of them a second to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// A heartbeat each; one second up to a hundred hosts, at most five.
    pub heartbeat: Duration,
    /// Silent this long, a host is unknown.
    pub unknown: Duration,
    /// Silent this long, it is lost.
    pub lost: Duration,
}

impl Windows {
    /// PURE: of a cloud of so many hosts.
    pub fn of(hosts: usize) -> Self {
        let heartbeat = Duration::from_millis((hosts as u64).saturating_mul(10).clamp(1000, 5000));
        Windows { heartbeat, unknown: heartbeat * 3, lost: heartbeat * 8 }
    }
}

/// The handle: cheap to clone.
#[derive(Clone)]
pub struct Live {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Notify,
    /// Since when this server leads: every host gets one full window first. None: another one leads, and has the agents.
    leads: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct Inner {
    hosts: BTreeMap<String, HostLive>,
    reports: HashMap<Uid, Report>,
    buried: HashSet<Uid>,
    dirty: Dirty,
    /// Hosts that the store knows, with or without a session.
    expected: usize,
}

impl Inner {
    fn windows(&self) -> Windows {
        Windows::of(self.expected.max(self.hosts.len()))
    }
}

struct HostLive {
    session: String,
    hello: Hello,
    health: Health,
    seen: Instant,
    seen_at: Timestamp,
    outbox: mpsc::Sender<FromServer>,
    orphans: Vec<Orphan>,
    /// Ids of the images that it was to have beforehand, and has.
    prepulled: BTreeSet<String>,
}

/// What changed since the controllers last looked.
#[derive(Default, Debug)]
pub struct Dirty {
    pub instances: HashSet<Uid>,
    pub hosts: HashSet<String>,
    pub buried: HashSet<Uid>,
}

/// What is known of a host's agent.
#[derive(Clone, Debug)]
pub struct HostView {
    pub uid: Uid,
    pub health: Health,
    pub capacity: Capacity,
    pub cgroup: String,
    pub labels: enoki_api::Labels,
    pub address: Option<std::net::Ipv4Addr>,
    pub silent: Duration,
    pub seen_at: Timestamp,
}

impl Default for Live {
    fn default() -> Self {
        Live {
            shared: Arc::new(Shared {
                inner: Mutex::default(),
                changed: Notify::new(),
                leads: watch::Sender::new(None),
            }),
        }
    }
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn touch(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.shared.changed.notify_one();
    }

    /// Waits until something changed. One waiter: the controllers' loop.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Takes what changed since the last call.
    pub fn take_dirty(&self) -> Dirty {
        std::mem::take(&mut self.lock().dirty)
    }

    /// This server leads from now on: the agents of so many hosts may come.
    pub fn lead(&self, hosts: usize) {
        self.lock().expected = hosts;
        self.shared.leads.send_replace(Some(Instant::now()));
    }

    /// It leads no more. What its agents said is forgotten, and their sessions end.
    pub fn step_down(&self) {
        *self.lock() = Inner::default();
        self.shared.leads.send_replace(None);
    }

    /// How silence is judged now.
    pub fn windows(&self) -> Windows {
        self.lock().windows()
    }

    pub fn leads(&self) -> bool {
        self.shared.leads.borrow().is_some()
    }

    /// Waits until this server leads no more.
    pub(super) async fn stepped_down(&self) {
        let mut leads = self.shared.leads.subscribe();
        // The sender is in `shared`, which outlives this.
        let _ = leads.wait_for(Option::is_none).await;
    }

    /// How long this server has listened as the leader.
    pub fn listening_for(&self) -> Duration {
        self.shared.leads.borrow().map(|since| since.elapsed()).unwrap_or_default()
    }

    /// A host's new session takes the place of one that has ended or fallen silent. Refused (with the reason) while
    /// another is alive: one identity in two places is a cloned machine.
    pub(super) fn join(
        &self,
        hello: Hello,
        session: &str,
        outbox: mpsc::Sender<FromServer>,
    ) -> Result<(), String> {
        let mut inner = self.lock();
        if let Some(old) = inner.hosts.get(&hello.host) {
            let same = old.hello.uid == hello.uid;
            let alive = if same { inner.windows().unknown } else { inner.windows().lost };
            if old.seen.elapsed() < alive && !(same && old.outbox.is_closed()) {
                let whose = if same { "another agent with this identity" } else { "another machine" };
                return Err(format!("{whose} is host {} and is alive", hello.host));
            }
        }
        let name = hello.host.clone();
        let orphans = inner.hosts.remove(&name).map(|old| old.orphans).unwrap_or_default();
        let live = HostLive {
            session: session.to_owned(),
            health: hello.health.clone(),
            hello,
            seen: Instant::now(),
            seen_at: Timestamp::now(),
            outbox,
            orphans,
            prepulled: BTreeSet::new(),
        };
        inner.hosts.insert(name.clone(), live);
        inner.dirty.hosts.insert(name);
        drop(inner);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Whether `session` is still the host's; every word of an older session is ignored.
    pub(super) fn is_current(&self, host: &str, session: &str) -> bool {
        self.lock().hosts.get(host).is_some_and(|live| live.session == session)
    }

    pub(super) fn heartbeat(&self, host: &str, health: Option<Health>) {
        let mut inner = self.lock();
        let unknown = inner.windows().unknown;
        let Some(live) = inner.hosts.get_mut(host) else { return };
        let returned = live.seen.elapsed() >= unknown;
        live.seen = Instant::now();
        live.seen_at = Timestamp::now();
        let changed = health.as_ref().is_some_and(|health| *health != live.health);
        if let Some(health) = health {
            live.health = health;
        }
        if returned || changed {
            inner.dirty.hosts.insert(host.to_owned());
            drop(inner);
            self.shared.changed.notify_one();
        }
    }

    pub(super) fn reports(&self, reports: Vec<Report>) {
        self.touch(|inner| {
            for report in reports {
                inner.dirty.instances.insert(report.uid.clone());
                inner.reports.insert(report.uid.clone(), report);
            }
        });
    }

    pub(super) fn prepulled(&self, host: &str, images: BTreeSet<String>) {
        if let Some(live) = self.lock().hosts.get_mut(host) {
            live.prepulled = images;
        }
    }

    /// Whether the host's agent takes images beforehand.
    pub(super) fn prepulls(&self, host: &str) -> bool {
        self.lock().hosts.get(host).is_some_and(|live| live.hello.prepulls)
    }

    /// The hosts whose agents say that they have this image, of those that are to have it beforehand.
    pub fn have(&self, image_id: &str) -> Vec<String> {
        let inner = self.lock();
        let have = inner.hosts.iter().filter(|(_, live)| live.prepulled.contains(image_id));
        have.map(|(host, _)| host.clone()).collect()
    }

    pub(super) fn orphans(&self, host: &str, orphans: Vec<Orphan>) {
        self.touch(|inner| {
            if let Some(live) = inner.hosts.get_mut(host) {
                live.orphans = orphans;
                inner.dirty.hosts.insert(host.to_owned());
            }
        });
    }

    pub(super) fn buried(&self, uids: Vec<Uid>) {
        self.touch(|inner| {
            for uid in uids {
                inner.dirty.buried.insert(uid.clone());
                inner.buried.insert(uid);
            }
        });
    }

    /// Whether a host has done what the tombstone says.
    pub fn is_buried(&self, uid: &Uid) -> bool {
        self.lock().buried.contains(uid)
    }

    /// Drops what is known of an instance that is gone for good.
    pub fn forget(&self, uid: &Uid) {
        let mut inner = self.lock();
        inner.reports.remove(uid);
        inner.buried.remove(uid);
    }

    pub fn report(&self, uid: &Uid) -> Option<Report> {
        self.lock().reports.get(uid).cloned()
    }

    pub fn host(&self, name: &str) -> Option<HostView> {
        let inner = self.lock();
        let live = inner.hosts.get(name)?;
        Some(HostView {
            uid: live.hello.uid.clone(),
            health: live.health.clone(),
            capacity: live.hello.capacity,
            cgroup: live.hello.cgroup.clone(),
            labels: live.hello.labels.clone(),
            address: live.hello.address,
            silent: live.seen.elapsed(),
            seen_at: live.seen_at,
        })
    }

    /// Every host that ever said hello to this server.
    pub fn host_names(&self) -> Vec<String> {
        self.lock().hosts.keys().cloned().collect()
    }

    pub fn orphans_of(&self, host: &str) -> Option<Vec<Orphan>> {
        self.lock().hosts.get(host).map(|live| live.orphans.clone())
    }

    /// The orphan of this name, and its host.
    pub fn orphan_of(&self, project: &str, name: &str) -> Option<(String, Orphan)> {
        self.held_by_orphan(|orphan| orphan.project == project && orphan.name == name)
    }

    /// The orphan that is wanted, and its host: one that holds an address, say.
    pub fn held_by_orphan(&self, wanted: impl Fn(&Orphan) -> bool) -> Option<(String, Orphan)> {
        let inner = self.lock();
        inner.hosts.iter().find_map(|(host, live)| {
            live.orphans.iter().find(|orphan| wanted(orphan)).map(|orphan| (host.clone(), orphan.clone()))
        })
    }

    /// The way to a host's agent. None: no session.
    pub(super) fn outbox(&self, host: &str) -> Option<mpsc::Sender<FromServer>> {
        let inner = self.lock();
        inner.hosts.get(host).map(|live| live.outbox.clone()).filter(|outbox| !outbox.is_closed())
    }
}

/// For tests of what asks for orphans: a host that has said hello and has these.
#[cfg(test)]
impl Live {
    pub fn seed_orphans(&self, host: &str, orphans: Vec<Orphan>) {
        let health = serde_json::json!({"phase": "ready"});
        let uid = Uid::random();
        let hello = serde_json::json!({
            "version": 1, "host": host, "uid": uid, "capacity": {}, "cgroup": "v2", "health": health,
        });
        self.join(serde_json::from_value(hello).unwrap(), "s1", mpsc::channel(1).0).unwrap();
        self.orphans(host, orphans);
    }
}
