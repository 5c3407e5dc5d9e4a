//! Looks at what runs in clusters: a task for each asks its master and its jobs' drivers, over and over.

use super::page::{Error, Pages, Port, Ways};
use super::spark;
use super::view::{Demand, DriverSeen, View, WorkerSeen};
use crate::state::At;
use futures::future::join_all;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
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
    let mut known: Option<Master> = None;
    let mut drivers: BTreeMap<String, Driver> = BTreeMap::new();
    loop {
        let wanted = places.borrow_and_update().clone();
        match wanted.master {
            Some(port) if master.as_ref().is_some_and(|(known, _)| *known == port) => {}
            Some(port) => master = Some((port.clone(), Pages::new(ways.clone(), port))),
            None => master = None,
        }
        drivers.retain(|job, driver| wanted.drivers.get(job) == Some(&driver.port));
        for (job, port) in wanted.drivers {
            drivers.entry(job).or_insert_with(|| Driver::new(&ways, port));
        }
        let view = look(master.as_mut().map(|(_, pages)| pages), &mut known, &mut drivers).await;
        *seen.lock().unwrap_or_else(|poison| poison.into_inner()) = Some(view);
        changed.notify_one();
        // Cancel-safe: either only waits.
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            moved = places.changed() => if moved.is_err() { return },
        }
    }
}

/// What a master said, and when.
struct Master {
    at: Instant,
    alive: bool,
    workers: BTreeMap<Ipv4Addr, WorkerSeen>,
}

async fn look(
    master: Option<&mut Pages>,
    known: &mut Option<Master>,
    drivers: &mut BTreeMap<String, Driver>,
) -> View {
    let page = async {
        let page = master?.get("/json/").await;
        page.map_err(|error| error.to_string()).and_then(|page| spark::read_master(&page)).ok()
    };
    let asked =
        drivers.iter_mut().map(|(job, driver)| async move { Some((job.clone(), driver.look().await.ok()?)) });
    let (page, drivers) = tokio::join!(page, join_all(asked));
    let at = Instant::now();
    match page {
        Some((alive, workers)) => *known = Some(Master { at, alive, workers }),
        None => *known = known.take().filter(|known| known.at.elapsed() < PATIENCE),
    }
    let (alive, workers) =
        known.as_ref().map(|known| (known.alive, known.workers.clone())).unwrap_or_default();
    View { at, alive, workers, drivers: drivers.into_iter().flatten().collect() }
}

/// One driver's pages, and its application.
struct Driver {
    port: Port,
    pages: Pages,
    application: Option<String>,
}

impl Driver {
    fn new(ways: &Ways, port: Port) -> Self {
        Driver { pages: Pages::new(ways.clone(), port.clone()), port, application: None }
    }

    async fn look(&mut self) -> Result<DriverSeen, Error> {
        let gauges = self.read("/metrics/json/", spark::read_gauges).await?;
        let application = match &self.application {
            Some(application) => application.clone(),
            None => {
                let path = "/api/v1/applications";
                let read = self.read(path, spark::read_application).await?;
                let known = read.ok_or_else(|| Error::Unreadable {
                    path: path.into(),
                    why: "no application yet".into(),
                })?;
                self.application.insert(known).clone()
            }
        };
        let below = |what: &str| format!("/api/v1/applications/{application}/{what}");
        let executors = self.read(&below("executors"), spark::read_executors).await?;
        let demand = match gauges {
            Some(executors) => Demand::Executors(executors),
            None => Demand::Tasks(self.read(&below("stages?status=active"), spark::read_stages).await?),
        };
        Ok(DriverSeen { demand, executors })
    }

    async fn read<T>(&mut self, path: &str, read: fn(&[u8]) -> Result<T, String>) -> Result<T, Error> {
        let page = self.pages.get(path).await?;
        read(&page).map_err(|why| Error::Unreadable { path: path.to_owned(), why })
    }
}
