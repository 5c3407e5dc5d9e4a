//! Looks at what runs in clusters: a task for each asks its master and its jobs' drivers, over and over.

use super::engine::{self, Watch};
use super::page::{Pages, Port, Ways};
use super::view::{MasterSeen, View};
use crate::state::At;
use enoki_api::cluster::Engine;
use futures::future::join_all;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// Between two looks: a job's need is known within this and the time of one look.
const PAUSE: Duration = Duration::from_millis(500);
/// What was seen longer ago says nothing any more.
const STALE: Duration = Duration::from_secs(10);
/// A master that does not answer is as it was for so long: Java pauses, and a connection may break.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where to look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Places {
    pub engine: Engine,
    pub master: Option<Port>,
    /// The page of each running driver, by job.
    pub drivers: BTreeMap<String, Port>,
}

/// The tasks, and what they saw.
pub struct Watchers {
    ways: Ways,
    all: HashMap<At, Watcher>,
    changed: Arc<Notify>,
}

struct Watcher {
    places: watch::Sender<Places>,
    seen: Arc<Mutex<Option<View>>>,
    task: AbortHandle,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watchers {
    pub fn new(ways: Ways) -> Self {
        Watchers { ways, all: HashMap::new(), changed: Arc::default() }
    }

    /// Looks there from now on.
    pub fn look(&mut self, at: &At, places: Places) {
        let watcher = self.all.entry(at.clone()).or_insert_with(|| {
            let (sender, receiver) = watch::channel(Places::default());
            let seen = Arc::new(Mutex::new(None));
            let task = tokio::spawn(run(self.ways.clone(), receiver, seen.clone(), self.changed.clone()));
            Watcher { places: sender, seen, task: task.abort_handle() }
        });
        watcher.places.send_if_modified(|old| {
            let differs = *old != places;
            *old = places;
            differs
        });
    }

    /// Looks at no other clusters than these.
    pub fn retain(&mut self, keep: impl Fn(&At) -> bool) {
        self.all.retain(|at, _| keep(at));
    }

    /// What was seen last, if that is not too long ago.
    pub fn view(&self, at: &At) -> Option<View> {
        self.last(at).filter(|view| view.at.elapsed() < STALE)
    }

    /// Whether anybody has looked by now.
    pub fn looked(&self, at: &At) -> bool {
        self.last(at).is_some()
    }

    fn last(&self, at: &At) -> Option<View> {
        let watcher = self.all.get(at)?;
        watcher.seen.lock().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// Resolves when something new was seen. Cancel-safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

async fn run(
    ways: Ways,
    mut places: watch::Receiver<Places>,
    seen: Arc<Mutex<Option<View>>>,
    changed: Arc<Notify>,
) {
    let mut master: Option<(Port, Pages)> = None;
    let mut known: Option<Known> = None;
    let mut drivers: BTreeMap<String, Driver> = BTreeMap::new();
    loop {
        let wanted = places.borrow_and_update().clone();
        if let Some(engine) = engine::of(wanted.engine) {
            match wanted.master {
                Some(port) if master.as_ref().is_some_and(|(known, _)| *known == port) => {}
                Some(port) => master = Some((port.clone(), Pages::new(ways.clone(), port))),
                None => master = None,
            }
            drivers.retain(|job, driver| wanted.drivers.get(job) == Some(&driver.port));
            for (job, port) in wanted.drivers {
                let Some(engine) = engine.drivers() else { break };
                drivers.entry(job).or_insert_with(|| {
                    let watch = engine.watch(Pages::new(ways.clone(), port.clone()));
                    Driver { port, watch }
                });
            }
            let pages = master.as_mut().map(|(_, pages)| pages);
            let view = look(engine, pages, &mut known, &mut drivers).await;
            *seen.lock().unwrap_or_else(|poison| poison.into_inner()) = Some(view);
            changed.notify_one();
        }
        // Cancel-safe: either only waits.
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            moved = places.changed() => if moved.is_err() { return },
        }
    }
}

/// What a master said, and when.
struct Known {
    at: Instant,
    said: MasterSeen,
}

struct Driver {
    port: Port,
    watch: Box<dyn Watch>,
}

async fn look(
    engine: &dyn engine::Engine,
    master: Option<&mut Pages>,
    known: &mut Option<Known>,
    drivers: &mut BTreeMap<String, Driver>,
) -> View {
    let page = async {
        let page = master?.get(engine.master_page().1).await;
        page.map_err(|error| error.to_string()).and_then(|page| engine.read_master(&page)).ok()
    };
    let asked = drivers
        .iter_mut()
        .map(|(job, driver)| async move { Some((job.clone(), driver.watch.look().await.ok()?)) });
    let (page, drivers) = tokio::join!(page, join_all(asked));
    let at = Instant::now();
    match page {
        Some(said) => *known = Some(Known { at, said }),
        None => *known = known.take().filter(|known| known.at.elapsed() < PATIENCE),
    }
    let MasterSeen { alive, workers, jobs } =
        known.as_ref().map(|known| known.said.clone()).unwrap_or_default();
    View { at, alive, workers, jobs, drivers: drivers.into_iter().flatten().collect() }
}
