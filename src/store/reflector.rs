//! List and watch as a step machine: a true copy of everything below a prefix, through every fault.
//!
//! ```text
//!            listed                 opened
//!   List ------------> Open ------------------> Follow --+ changes, progress, checks
//!    ^                  ^  |                      |  ^---+
//!    |    compacted     |  | compacted            | broken, ended, or silent while the store moved on
//!    +------------------|--+ <--------------------|--- compacted
//!                       +-------------------------+
//!   any -- the store went back in revision, or refuses us --> Stopped
//! ```
//!
//! # Guarantees
//! [`Event::Snapshot`] replaces all that was known, so that what was deleted while nobody watched is gone from it too;
//! every other event is an increment. The revision of events never goes back and never skips a change.
//!
//! # Liveness
//! A connection can be half open: the watch then says nothing for ever. So while following, a linearizable read asks
//! for the store's revision once in [`Options::check_every`]. If what the watch brought stays behind that answer for
//! [`Options::grace`], the watch is opened again from where it was, which costs nothing if it was fine. etcd can be
//! asked for progress instead, but 3.4 lets such answers overtake changes. [`Event::Fresh`] tells since when the copy
//! was last known to be complete; how stale it is, is the reader's to compute.
//!
//! # Caveats
//! Watch a prefix that holds all that is written ([`super::keys::ROOT`]). Where somebody also writes elsewhere in the
//! same etcd, the watch is opened again once in a grace period, and freshness is told that much later.
//!
//! The machine ([`Machine`]) is pure: results in, events and the next step out. [`run`] does the steps.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt, pending};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Change, Error, KeyValue, Listing, Revision, Store, WatchItem, WatchStream};

/// What the holder of the copy has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Forget everything; this is all there is at `revision`.
    Snapshot { revision: Revision, items: Vec<KeyValue> },
    /// All that changed at `revision`.
    Changes { revision: Revision, changes: Vec<Change> },
    /// Nothing was missing from the copy at `as_of`; it is at least at `revision`, which may be newer than any change.
    Fresh { revision: Revision, as_of: Instant },
}

/// Times of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often the store is asked for its revision.
    pub check_every: Duration,
    /// How long the watch may be behind that answer before it is taken for dead.
    pub grace: Duration,
    /// The first pause after a failure; doubles with each, with jitter.
    pub backoff_first: Duration,
    pub backoff_most: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            check_every: Duration::from_secs(1),
            grace: Duration::from_secs(2),
            backoff_first: Duration::from_millis(50),
            // Writes are back within two seconds of etcd: so is the copy.
            backoff_most: Duration::from_secs(1),
        }
    }
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    List,
    /// Open the watch after this revision.
    Open {
        after: Revision,
    },
    /// Read the open watch, and check now and then.
    Follow,
    /// No more; the error was returned.
    Stopped,
}

/// What came of it.
#[derive(Debug)]
pub enum Input {
    Listed {
        result: Result<Listing, Error>,
        begun: Instant,
    },
    Opened {
        result: Result<(), Error>,
        now: Instant,
    },
    /// From the open watch; `None` when it ended.
    Watched {
        item: Option<Result<WatchItem, Error>>,
    },
    /// The store's revision, asked for at `begun`.
    Checked {
        result: Result<Revision, Error>,
        begun: Instant,
        now: Instant,
    },
}

/// What the machine answers to an input; the next step is [`Machine::step`].
#[derive(Debug, Default)]
pub struct Output {
    pub event: Option<Event>,
    /// A freshness that follows from the event.
    pub fresh: Option<Event>,
    /// Wait before the next step: it failed.
    pub pause: bool,
    /// The machine has stopped, for this reason.
    pub fatal: Option<Error>,
}

/// A check that the watch has not answered yet.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    /// The store was there,
    revision: Revision,
    /// as of then;
    as_of: Instant,
    /// and the watch has until then to bring it.
    until: Instant,
}

/// The state between two steps.
#[derive(Debug)]
pub struct Machine {
    step: Step,
    grace: Duration,
    /// Every change up to here has been told. `None` before the first listing.
    seen: Option<Revision>,
    /// Up to here a watch opened for that purpose had nothing to tell: somebody writes outside of our prefix.
    excused: Revision,
    awaited: Option<Awaited>,
    /// The watch was opened again because of silence, when the store was there.
    reopened_for: Option<Revision>,
}

impl Machine {
    pub fn new(grace: Duration) -> Machine {
        Machine { step: Step::List, grace, seen: None, excused: 0, awaited: None, reopened_for: None }
    }

    /// What is to be done next.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The revision up to which everything has been told.
    pub fn revision(&self) -> Option<Revision> {
        self.seen
    }

    /// Takes the result of a step.
    pub fn take(&mut self, input: Input) -> Output {
        match input {
            Input::Listed { result, begun } => self.listed(result, begun),
            Input::Opened { result, now } => self.opened(result, now),
            Input::Watched { item } => self.watched(item),
            Input::Checked { result, begun, now } => self.checked(result, begun, now),
        }
    }

    fn listed(&mut self, result: Result<Listing, Error>, begun: Instant) -> Output {
        let Listing { items, revision } = match result {
            Ok(listing) => listing,
            Err(error) => return self.failed(error, Step::List),
        };
        if let Some(seen) = self.seen
            && revision < seen
        {
            return self.stop(Error::WentBack { seen, now: revision });
        }
        self.seen = Some(revision);
        self.awaited = None;
        self.step = Step::Open { after: revision };
        Output {
            event: Some(Event::Snapshot { revision, items }),
            fresh: Some(Event::Fresh { revision, as_of: begun }),
            ..Output::default()
        }
    }

    fn opened(&mut self, result: Result<(), Error>, now: Instant) -> Output {
        match result {
            Ok(()) => {
                self.step = Step::Follow;
                // What was awaited from the old watch is awaited from this one, with time for it.
                if let Some(awaited) = &mut self.awaited {
                    awaited.until = now + self.grace;
                }
                Output::default()
            }
            Err(error) => self.failed(error, self.step),
        }
    }

    fn watched(&mut self, item: Option<Result<WatchItem, Error>>) -> Output {
        let seen = self.seen.unwrap_or(0);
        match item {
            Some(Ok(WatchItem::Changes { revision, changes })) if revision > seen => {
                self.seen = Some(revision);
                self.reopened_for = None;
                Output {
                    event: Some(Event::Changes { revision, changes }),
                    fresh: self.arrived(),
                    ..Output::default()
                }
            }
            Some(Ok(WatchItem::Progress { revision })) if revision > seen => {
                self.seen = Some(revision);
                Output { fresh: self.arrived(), ..Output::default() }
            }
            // Told before: a revision never goes back.
            Some(Ok(WatchItem::Changes { .. } | WatchItem::Progress { .. })) => Output::default(),
            Some(Err(error)) => self.failed(error, Step::Open { after: seen }),
            None => self.failed(Error::unavailable("the watch ended"), Step::Open { after: seen }),
        }
    }

    /// The awaited check, once the watch has caught up with it.
    fn arrived(&mut self) -> Option<Event> {
        let revision = self.seen?;
        let awaited = self.awaited.filter(|awaited| awaited.revision <= revision.max(self.excused))?;
        self.awaited = None;
        Some(Event::Fresh { revision, as_of: awaited.as_of })
    }

    fn checked(&mut self, result: Result<Revision, Error>, begun: Instant, now: Instant) -> Output {
        let seen = self.seen.unwrap_or(0);
        let store = match result {
            Ok(store) => store,
            // No news. If the watch is dead too it will say so; a live one goes on.
            Err(_) => return Output::default(),
        };
        let Some(awaited) = self.awaited else {
            self.awaited = Some(Awaited { revision: store, as_of: begun, until: now + self.grace });
            return Output { fresh: self.arrived(), ..Output::default() };
        };
        if now < awaited.until {
            return Output::default();
        }
        if self.reopened_for == Some(awaited.revision) {
            // A new watch from where we were had its grace and nothing to tell: those writes were not ours.
            self.excused = self.excused.max(awaited.revision);
            self.reopened_for = None;
            return Output { fresh: self.arrived(), ..Output::default() };
        }
        self.reopened_for = Some(awaited.revision);
        self.step = Step::Open { after: seen };
        Output::default()
    }

    fn failed(&mut self, error: Error, back_to: Step) -> Output {
        match error {
            Error::Compacted { .. } => {
                self.step = Step::List;
                Output::default()
            }
            error if error.is_transient() => {
                self.step = back_to;
                Output { pause: true, ..Output::default() }
            }
            error => self.stop(error),
        }
    }

    fn stop(&mut self, error: Error) -> Output {
        self.step = Step::Stopped;
        Output { fatal: Some(error), ..Output::default() }
    }
}

/// Keeps `out` told of everything below `prefix` until `stop` is cancelled or the receiver is gone (`Ok`), or until the
/// store can't be trusted any more (the error: start over).
pub async fn run(
    store: Arc<dyn Store>,
    prefix: String,
    options: Options,
    out: mpsc::Sender<Event>,
    stop: CancellationToken,
) -> Result<(), Error> {
    // Cancel-safe: what is lost with the driver is the connection, not events that somebody counts on.
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        result = drive(store, prefix, options, out) => result,
    }
}

async fn drive(
    store: Arc<dyn Store>,
    prefix: String,
    options: Options,
    out: mpsc::Sender<Event>,
) -> Result<(), Error> {
    let mut machine = Machine::new(options.grace);
    let mut failures = 0u32;
    let mut watch: Option<WatchStream> = None;
    let mut checks = Checks::new(options.check_every);
    loop {
        let input = match machine.step() {
            Step::Stopped => return Ok(()),
            Step::List => {
                watch = None;
                checks.forget();
                let begun = Instant::now();
                let result = store.list(&prefix).await;
                Input::Listed { result, begun }
            }
            Step::Open { after } => {
                let result = match store.watch(&prefix, after).await {
                    Ok(opened) => {
                        watch = Some(opened);
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                let now = Instant::now();
                Input::Opened { result, now }
            }
            Step::Follow => {
                let next = match &mut watch {
                    Some(watch) => watch.next().left_future(),
                    None => pending().right_future(),
                };
                // Cancel-safe: the stream keeps what it has not given, the check under way is kept in `checks`.
                tokio::select! {
                    biased;
                    item = next => Input::Watched { item },
                    input = checks.next(&store, &prefix) => input,
                }
            }
        };
        if let Input::Listed { result: Err(error), .. }
        | Input::Opened { result: Err(error), .. }
        | Input::Watched { item: Some(Err(error)) } = &input
        {
            tracing::warn!(%error, prefix, revision = machine.revision(), "the watch of the store is interrupted");
        }
        let output = machine.take(input);
        if let Some(error) = output.fatal {
            return Err(error);
        }
        for event in [output.event, output.fresh].into_iter().flatten() {
            failures = 0;
            if out.send(event).await.is_err() {
                return Ok(());
            }
        }
        if output.pause {
            sleep(pause(failures, &options)).await;
            failures = failures.saturating_add(1);
        }
    }
}

/// The checks: at most one under way, the next one a while after the last.
struct Checks {
    every: Duration,
    due: Instant,
    running: Option<(Instant, BoxFuture<'static, Result<Revision, Error>>)>,
}

impl Checks {
    fn new(every: Duration) -> Checks {
        Checks { every, due: Instant::now() + every, running: None }
    }

    /// Drops a check whose question was asked of another watch.
    fn forget(&mut self) {
        self.running = None;
        self.due = Instant::now() + self.every;
    }

    async fn next(&mut self, store: &Arc<dyn Store>, prefix: &str) -> Input {
        if self.running.is_none() {
            sleep_until(self.due).await;
        }
        let (begun, check) = self.running.get_or_insert_with(|| {
            let (store, prefix) = (store.clone(), prefix.to_string());
            let check = async move { store.get(&prefix).await.map(|(_, revision)| revision) };
            (Instant::now(), check.boxed())
        });
        let begun = *begun;
        let result = check.await;
        self.running = None;
        let now = Instant::now();
        self.due = now + self.every;
        Input::Checked { result, begun, now }
    }
}

/// Doubling, from half of it to all of it at random so that many servers do not come at once.
fn pause(failures: u32, options: &Options) -> Duration {
    let full = options.backoff_first.saturating_mul(1u32 << failures.min(16)).min(options.backoff_most);
    // Seeded at random by the standard library; no more is needed here.
    let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    full.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(2);

    fn kv(key: &str, revision: Revision) -> KeyValue {
        KeyValue { key: key.into(), value: b"x".to_vec(), create_revision: revision, mod_revision: revision }
    }

    fn listed(revision: Revision) -> Input {
        Input::Listed { result: Ok(Listing { items: vec![kv("/a", 1)], revision }), begun: Instant::now() }
    }

    fn opened(result: Result<(), Error>) -> Input {
        Input::Opened { result, now: Instant::now() }
    }

    fn changed(revision: Revision) -> Input {
        Input::Watched {
            item: Some(Ok(WatchItem::Changes { revision, changes: vec![Change::Put(kv("/a", revision))] })),
        }
    }

    fn checked(store: Revision, begun: Instant) -> Input {
        Input::Checked { result: Ok(store), begun, now: begun }
    }

    fn following(at: Revision) -> Machine {
        let mut machine = Machine::new(GRACE);
        machine.take(listed(at));
        machine.take(opened(Ok(())));
        assert_eq!(machine.step(), Step::Follow);
        machine
    }

    #[test]
    fn lists_opens_follows() {
        let mut machine = Machine::new(GRACE);
        assert_eq!(machine.step(), Step::List);
        let output = machine.take(listed(7));
        assert!(matches!(output.event, Some(Event::Snapshot { revision: 7, .. })));
        assert!(matches!(output.fresh, Some(Event::Fresh { revision: 7, .. })));
        assert_eq!(machine.step(), Step::Open { after: 7 });
        machine.take(opened(Ok(())));
        let output = machine.take(changed(9));
        assert!(matches!(output.event, Some(Event::Changes { revision: 9, .. })));
        assert_eq!((machine.step(), machine.revision()), (Step::Follow, Some(9)));
    }

    #[test]
    fn resumes_where_it_was_and_relists_only_when_compacted() {
        let mut machine = following(7);
        machine.take(changed(9));
        let output = machine.take(Input::Watched { item: None });
        assert!(output.pause && output.event.is_none());
        assert_eq!(machine.step(), Step::Open { after: 9 });
        assert!(machine.take(opened(Err(Error::unavailable("away")))).pause);
        assert_eq!(machine.step(), Step::Open { after: 9 });
        machine.take(opened(Err(Error::Compacted { asked: 9 })));
        assert_eq!(machine.step(), Step::List);
        assert!(
            machine
                .take(Input::Listed { result: Err(Error::unavailable("away")), begun: Instant::now() })
                .pause
        );
        assert_eq!(machine.step(), Step::List);
        assert!(machine.take(listed(20)).event.is_some());
        assert_eq!(machine.step(), Step::Open { after: 20 });
    }

    #[test]
    fn compaction_in_the_middle_of_a_watch_relists() {
        let mut machine = following(7);
        machine.take(Input::Watched { item: Some(Err(Error::Compacted { asked: 7 })) });
        assert_eq!(machine.step(), Step::List);
    }

    #[test]
    fn never_goes_back() {
        let mut machine = following(7);
        assert!(machine.take(changed(7)).event.is_none());
        assert!(machine.take(changed(3)).event.is_none());
        assert_eq!(machine.revision(), Some(7));
        machine.take(Input::Watched { item: Some(Err(Error::Compacted { asked: 7 })) });
        let output = machine.take(listed(6));
        assert!(matches!(output.fatal, Some(Error::WentBack { seen: 7, now: 6 })));
        assert!(output.event.is_none());
        assert_eq!(machine.step(), Step::Stopped);
    }

    #[test]
    fn what_cannot_heal_stops() {
        let mut machine = following(7);
        let output = machine
            .take(Input::Watched { item: Some(Err(Error::Refused { what: "no".into(), cause: None })) });
        assert!(output.fatal.is_some());
        assert_eq!(machine.step(), Step::Stopped);
    }

    #[test]
    fn a_check_that_agrees_is_freshness() {
        let mut machine = following(7);
        let begun = Instant::now();
        let output = machine.take(checked(7, begun));
        assert_eq!(output.fresh, Some(Event::Fresh { revision: 7, as_of: begun }));
    }

    #[test]
    fn a_check_that_is_ahead_is_answered_by_the_watch() {
        let mut machine = following(7);
        let begun = Instant::now();
        assert!(machine.take(checked(9, begun)).fresh.is_none());
        assert!(machine.take(changed(8)).fresh.is_none());
        assert_eq!(machine.take(changed(9)).fresh, Some(Event::Fresh { revision: 9, as_of: begun }));
    }

    #[test]
    fn a_silent_watch_is_opened_again() {
        let mut machine = following(7);
        let begun = Instant::now();
        machine.take(checked(9, begun));
        machine.take(checked(9, begun + GRACE / 2));
        assert_eq!(machine.step(), Step::Follow);
        machine.take(checked(12, begun + GRACE));
        assert_eq!(machine.step(), Step::Open { after: 7 });
        machine.take(opened(Ok(())));
        // It was half open: the new one brings what was missing.
        machine.take(changed(8));
        assert!(machine.take(changed(9)).fresh.is_some());
    }

    #[test]
    fn writes_outside_of_the_prefix_are_excused() {
        let mut machine = following(7);
        let begun = Instant::now();
        machine.take(checked(9, begun));
        machine.take(checked(9, begun + GRACE));
        machine.take(Input::Opened { result: Ok(()), now: begun + GRACE });
        assert!(machine.take(checked(9, begun + GRACE)).fresh.is_none());
        let output = machine.take(checked(9, begun + GRACE * 2));
        assert_eq!(output.fresh, Some(Event::Fresh { revision: 7, as_of: begun }));
        assert_eq!(machine.step(), Step::Follow);
        let later = begun + GRACE * 3;
        assert!(machine.take(checked(9, later)).fresh.is_some());
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let options = Options::default();
        for failures in [0, 1, 5, 40, u32::MAX] {
            let pause = pause(failures, &options);
            assert!(pause <= options.backoff_most && pause >= options.backoff_first / 2);
        }
    }
}
