//! Whom a change concerns: each change is looked at once for all hosts, and only the sessions of those that it concerns wake.

use super::{overlays, prepull};
use crate::state::{At, Batch, Snapshot, State};
use crate::store::keys::Key;
use enoki_api::object::Kind;
use enoki_api::project;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a session has to look at anew.
#[derive(Debug, Default, PartialEq)]
pub struct News {
    /// Everything: changes were missed.
    pub all: bool,
    /// Instances whose order may be another.
    pub instances: BTreeSet<At>,
    /// The host's tombstones.
    pub tombstones: bool,
    /// Networks whose view may be another.
    pub networks: BTreeSet<At>,
    /// The images that the host is to have beforehand.
    pub prepull: bool,
    /// Whether the host is one of the cloud still, and its labels.
    pub host: bool,
}

impl News {
    fn add(&mut self, more: &News) {
        self.all |= more.all;
        self.instances.extend(more.instances.iter().cloned());
        self.tombstones |= more.tombstones;
        self.networks.extend(more.networks.iter().cloned());
        self.prepull |= more.prepull;
        self.host |= more.host;
    }
}

/// The sessions. Cheap to clone.
#[derive(Clone, Default)]
pub struct Fanout {
    inboxes: Arc<Mutex<HashMap<String, Vec<Weak<Shared>>>>>,
}

#[derive(Default)]
struct Shared {
    news: Mutex<News>,
    wake: Notify,
}

/// One session's. Dropped, nothing is kept for it any more.
pub struct Inbox {
    shared: Arc<Shared>,
}

impl Inbox {
    /// What has come since the last call; waits for some. Cancel-safe: what was not given stays.
    pub async fn next(&self) -> News {
        loop {
            let news = std::mem::take(&mut *lock(&self.shared.news));
            if news != News::default() {
                return news;
            }
            self.shared.wake.notified().await;
        }
    }
}

impl Fanout {
    /// News for this host from now on. Take the snapshot for its first look afterwards, so that nothing falls in between.
    pub fn inbox(&self, host: &str) -> Inbox {
        let shared = Arc::new(Shared::default());
        let mut inboxes = lock(&self.inboxes);
        let own = inboxes.entry(host.to_owned()).or_default();
        own.retain(|inbox| inbox.strong_count() > 0);
        own.push(Arc::downgrade(&shared));
        Inbox { shared }
    }

    /// Follows the state until `stop`.
    pub async fn run(&self, state: &State, stop: &CancellationToken) {
        let mut cursor = state.follow(state.snapshot().revision);
        loop {
            // Cancel-safe: a cursor keeps what it has not given.
            let batches = tokio::select! {
                () = stop.cancelled() => return,
                batches = cursor.next() => batches,
            };
            match batches {
                Ok(batches) => batches.iter().for_each(|batch| self.tell(concerned(batch))),
                Err(_) => {
                    cursor = state.follow(state.snapshot().revision);
                    let hosts: Vec<String> = lock(&self.inboxes).keys().cloned().collect();
                    self.tell(
                        hosts.into_iter().map(|host| (host, News { all: true, ..News::default() })).collect(),
                    );
                }
            }
        }
    }

    fn tell(&self, news: BTreeMap<String, News>) {
        let mut inboxes = lock(&self.inboxes);
        for (host, news) in news {
            let Some(own) = inboxes.get_mut(&host) else { continue };
            // All of them: which of two sessions stays is `Live`'s to say, and it need not be the one whose inbox came last.
            own.retain(|inbox| {
                let Some(shared) = inbox.upgrade() else { return false };
                lock(&shared.news).add(&news);
                shared.wake.notify_one();
                true
            });
            if own.is_empty() {
                inboxes.remove(&host);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// PURE: the hosts that a change concerns, and what of theirs.
fn concerned(batch: &Batch) -> BTreeMap<String, News> {
    let (before, after) = (&*batch.before, &*batch.after);
    let mut all = BTreeMap::<String, News>::new();
    let host_of = |snapshot: &Snapshot, at: &At| {
        snapshot.assignments.get(at).map(|placed| placed.assignment.host.clone())
    };
    for key in &*batch.keys {
        match key {
            Key::Assignment { project, name } => {
                let at = (project.clone(), name.clone());
                for host in [host_of(before, &at), host_of(after, &at)].into_iter().flatten() {
                    all.entry(host).or_default().instances.insert(at.clone());
                }
            }
            Key::Spec(object) => match (object.kind.parse(), &object.project) {
                (Ok(Kind::Instance), Some(project)) => {
                    let at = (project.clone(), object.name.clone());
                    for host in [host_of(before, &at), host_of(after, &at)].into_iter().flatten() {
                        all.entry(host).or_default().instances.insert(at.clone());
                    }
                }
                (Ok(Kind::Network | Kind::Volume | Kind::Secret | Kind::Image), Some(project)) => {
                    // Images of the default project serve every project.
                    let everywhere = project == project::DEFAULT && object.kind == Kind::Image.plural();
                    let at = (project.clone(), object.name.clone());
                    if object.kind == Kind::Image.plural() && prepull::touched(before, after, &at) {
                        for ((_, host), _) in after.hosts.iter() {
                            all.entry(host.clone()).or_default().prepull = true;
                        }
                    }
                    for (host, here) in &after.by_host {
                        let touched: BTreeSet<At> =
                            here.iter().filter(|at| everywhere || &at.0 == project).cloned().collect();
                        if !touched.is_empty() {
                            all.entry(host.clone()).or_default().instances.extend(touched);
                        }
                    }
                }
                (Ok(Kind::Host), None) => all.entry(object.name.clone()).or_default().host = true,
                _ => {}
            },
            Key::Tombstone { uid } => {
                let tombstone = after.tombstones.get(uid).or_else(|| before.tombstones.get(uid));
                if let Some(host) = tombstone.and_then(|entry| entry.0.host.clone()) {
                    all.entry(host).or_default().tombstones = true;
                }
            }
            _ => {}
        }
    }
    for network in overlays::touched(before, after, &batch.keys) {
        for host in overlays::hosts(before, &network).into_iter().chain(overlays::hosts(after, &network)) {
            all.entry(host).or_default().networks.insert(network.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn tell(fanout: &Fanout, host: &str) {
        fanout.tell(BTreeMap::from([(host.to_owned(), News { host: true, ..News::default() })]));
    }

    /// Whether there was news.
    fn hears(inbox: &Inbox) -> bool {
        inbox.next().now_or_never().is_some_and(|news| news.host)
    }

    #[test]
    fn every_session_of_a_host_is_told_whichever_came_last() {
        let fanout = Fanout::default();
        // Two agents' sessions of one host: the one that stays need not be the one that asked for its inbox last.
        let (stays, replaced, other) = (fanout.inbox("h1"), fanout.inbox("h1"), fanout.inbox("h2"));
        tell(&fanout, "h1");
        assert_eq!((hears(&stays), hears(&replaced), hears(&other)), (true, true, false));
        assert!(!hears(&stays), "told once");
        drop(replaced);
        tell(&fanout, "h1");
        assert!(hears(&stays), "also when the other has ended");
    }

    #[test]
    fn nothing_is_kept_for_a_host_without_a_session() {
        let fanout = Fanout::default();
        drop((fanout.inbox("h1"), fanout.inbox("h1")));
        tell(&fanout, "h1");
        assert!(lock(&fanout.inboxes).is_empty());
    }
}
