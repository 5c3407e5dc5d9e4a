//! One suite for both stores: what it shows of etcd is what the memory store has to do too.
//!
//! `both!` makes two tests of a case. Faults, of which each store has its own, are in `store/faults.rs`.

#[path = "support/etcd.rs"]
mod etcd_child;
#[path = "store/faults.rs"]
mod faults;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enoki::store::memory::{Link, Memory};
use enoki::store::reflector::{self, Event};
use enoki::store::{
    Change, Compare, Error, Leadership, MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES, Outcome, Revision,
    Store, Txn, WatchItem, WatchStream, keys,
};
use etcd_child::{EtcdChild, Mode};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything that is going to happen takes.
const SOON: Duration = Duration::from_secs(20);

/// What a case runs on: as many independent clients of one empty store as it wants.
enum Backend {
    Memory(Memory),
    Etcd(Box<EtcdChild>),
}

impl Backend {
    async fn client(&self) -> Arc<dyn Store> {
        match self {
            Backend::Memory(memory) => Arc::new(memory.client()),
            Backend::Etcd(etcd) => Arc::new(etcd.client().await),
        }
    }
}

macro_rules! both {
    ($($case:ident),* $(,)?) => {
        mod on_memory {
            $(#[tokio::test] async fn $case() {
                super::$case(super::Backend::Memory(super::Memory::new())).await;
            })*
        }
        mod on_etcd {
            $(#[tokio::test] async fn $case() {
                let etcd = super::EtcdChild::start(super::Mode::Plain).await;
                super::$case(super::Backend::Etcd(Box::new(etcd))).await;
            })*
        }
    };
}

both!(
    a_transaction_is_whole_or_nothing,
    a_conflict_reads_the_compared_keys,
    revisions_count_changes,
    limits_are_refused_cleanly,
    a_listing_is_one_revision_and_its_prefix_alone,
    ten_thousand_keys_are_listed,
    a_watch_brings_whole_revisions_in_order,
    a_watch_resumes_after_any_revision,
    a_watch_from_compacted_history_says_so,
    a_watch_from_the_future_says_so,
    one_of_three_candidates_leads,
    a_past_leader_loses_the_fence,
    an_abandoned_leadership_passes_on,
    concurrent_writers_lose_nothing,
    the_reflector_follows,
    the_reflector_relists_without_ghosts,
    the_store_reports_itself,
);

async fn put(store: &Arc<dyn Store>, key: &str, value: impl Into<Vec<u8>>) -> Revision {
    committed(store.txn(Txn::new().put(key, value)).await)
}

async fn delete(store: &Arc<dyn Store>, key: &str) -> Revision {
    committed(store.txn(Txn::new().delete(key)).await)
}

fn committed(result: Result<Outcome, Error>) -> Revision {
    result.unwrap().committed().expect("a commit")
}

async fn next(watch: &mut WatchStream) -> Result<WatchItem, Error> {
    loop {
        let item = timeout(SOON, watch.next()).await.expect("an item in time");
        match item.expect("an item before the end") {
            Ok(WatchItem::Progress { .. }) => {}
            other => return other,
        }
    }
}

/// A revision as `+key=value` and `-key`, sorted.
async fn next_changes(watch: &mut WatchStream) -> (Revision, Vec<String>) {
    match next(watch).await.unwrap() {
        WatchItem::Changes { revision, changes } => {
            let mut texts: Vec<String> = changes
                .into_iter()
                .map(|change| match change {
                    Change::Put(kv) => {
                        assert_eq!(kv.mod_revision, revision);
                        format!("+{}={}", kv.key, String::from_utf8(kv.value).unwrap())
                    }
                    Change::Delete { key } => format!("-{key}"),
                })
                .collect();
            texts.sort();
            (revision, texts)
        }
        WatchItem::Progress { .. } => unreachable!("next() leaves these out"),
    }
}

async fn a_transaction_is_whole_or_nothing(backend: Backend) {
    let store = backend.client().await;
    let txn = Txn::new().when_absent("/t/a").put("/t/a", "1").put("/t/b", "2");
    let revision = committed(store.txn(txn.clone()).await);
    for (key, value) in [("/t/a", "1"), ("/t/b", "2")] {
        let (kv, now) = store.get(key).await.unwrap();
        let kv = kv.unwrap();
        assert_eq!(kv.value, value.as_bytes());
        assert_eq!((kv.create_revision, kv.mod_revision), (revision, revision));
        assert_eq!(now, revision);
    }
    // The first compare holds, the second does not: nothing of it happens.
    let half =
        Txn::new().when_unchanged("/t/b", revision).when_absent("/t/a").put("/t/c", "3").delete("/t/b");
    assert!(store.txn(half).await.unwrap().committed().is_none());
    assert!(store.get("/t/c").await.unwrap().0.is_none());
    assert!(store.get("/t/b").await.unwrap().0.is_some());
    // A rewrite keeps the birth and moves the write; a key made again has a new birth.
    let rewritten = put(&store, "/t/a", "9").await;
    let kv = store.get("/t/a").await.unwrap().0.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (revision, rewritten));
    delete(&store, "/t/a").await;
    let reborn = put(&store, "/t/a", "1").await;
    let kv = store.get("/t/a").await.unwrap().0.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (reborn, reborn));
}

async fn a_conflict_reads_the_compared_keys(backend: Backend) {
    let store = backend.client().await;
    let a = put(&store, "/t/a", "1").await;
    let b = put(&store, "/t/b", "2").await;
    let txn = Txn::new()
        .when_absent("/t/a")
        .when_unchanged("/t/b", b)
        .when_present("/t/none")
        .when(Compare::CreateRevision("/t/gone".into(), 1))
        .put("/t/a", "9");
    let outcome = store.txn(txn.clone()).await.unwrap();
    let Outcome::Conflict { current, revision } = &outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(*revision, b);
    let keys: Vec<&str> = current.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["/t/a", "/t/b", "/t/none", "/t/gone"]);
    let revisions: Vec<Option<Revision>> =
        current.iter().map(|(_, kv)| kv.as_ref().map(|kv| kv.mod_revision)).collect();
    assert_eq!(revisions, [Some(a), Some(b), None, None]);
    let failed: Vec<&str> = outcome.failed(&txn).iter().map(|c| c.key()).collect();
    assert_eq!(failed, ["/t/a", "/t/none", "/t/gone"]);
}

async fn revisions_count_changes(backend: Backend) {
    let store = backend.client().await;
    let first = put(&store, "/t/a", "1").await;
    assert_eq!(delete(&store, "/t/none").await, first, "nothing changed");
    let looked = Txn::new().when_present("/t/a");
    assert_eq!(committed(store.txn(looked).await), first);
    let same = put(&store, "/t/a", "1").await;
    assert_eq!(same, first + 1, "a put of the same value is a change");
    let both = Txn::new().put("/t/b", "1").delete("/t/a").delete("/t/none");
    assert_eq!(committed(store.txn(both).await), first + 2);
}

async fn limits_are_refused_cleanly(backend: Backend) {
    let store = backend.client().await;
    let full = (0..MAX_TXN_OPS).fold(Txn::new(), |txn, i| {
        let key = format!("/t/{i:03}");
        txn.when_absent(&key).put(key, "x")
    });
    committed(store.txn(full.clone()).await);
    // Lost, and 128 keys read.
    let Outcome::Conflict { current, .. } = store.txn(full.clone()).await.unwrap() else {
        panic!("a conflict");
    };
    assert_eq!(current.len(), MAX_TXN_OPS);
    assert!(matches!(store.txn(full.put("/t/more", "x")).await, Err(Error::Invalid(_))));
    put(&store, "/t/large", vec![b'x'; MAX_VALUE_BYTES]).await;
    let over = Txn::new().put("/t/large", vec![b'x'; MAX_VALUE_BYTES + 1]);
    assert!(matches!(store.txn(over).await, Err(Error::TooLarge { .. })));
    let twice = Txn::new().put("/t/a", "1").delete("/t/a");
    assert!(matches!(store.txn(twice).await, Err(Error::Invalid(_))));
    assert!(matches!(store.list("").await, Err(Error::Invalid(_))));
    assert!(store.watch("", 0).await.is_err());
    // The heaviest that is allowed passes etcd's own limit, framing and all.
    let each = MAX_TXN_BYTES / MAX_TXN_OPS - 150;
    let heavy = (0..MAX_TXN_OPS).fold(Txn::new(), |txn, i| {
        let key = format!("/t/{i:03}");
        txn.when_present(&key).put(key, vec![b'x'; each])
    });
    let left = MAX_TXN_BYTES - heavy.bytes();
    assert!(left < 10_000, "{left}");
    committed(store.txn(heavy).await);
    // Refusals cost nothing: it still works.
    let (kv, _) = store.get("/t/large").await.unwrap();
    assert_eq!(kv.unwrap().value.len(), MAX_VALUE_BYTES);
}

async fn a_listing_is_one_revision_and_its_prefix_alone(backend: Backend) {
    let store = backend.client().await;
    for key in ["/a/1", "/a/2", "/ab/1", "/a0", "/b/1", "/a/\u{10ffff}"] {
        put(&store, key, "x").await;
    }
    let keys = |listing: enoki::store::Listing| -> Vec<String> {
        listing.items.into_iter().map(|kv| kv.key).collect()
    };
    let all = store.list("/a/").await.unwrap();
    assert_eq!(all.revision, store.get("/").await.unwrap().1);
    assert_eq!(keys(all), ["/a/1", "/a/2", "/a/\u{10ffff}"]);
    assert_eq!(keys(store.list("/ab/").await.unwrap()), ["/ab/1"]);
    assert!(store.list("/none/").await.unwrap().items.is_empty());

    let from = store.get("/").await.unwrap().1;
    let mut watch = store.watch("/a/", from).await.unwrap();
    put(&store, "/ab/2", "x").await;
    put(&store, "/a0", "y").await;
    let last = put(&store, "/a/3", "z").await;
    assert_eq!(next_changes(&mut watch).await, (last, vec!["+/a/3=z".to_string()]));
}

async fn ten_thousand_keys_are_listed(backend: Backend) {
    const KEYS: usize = 10_240;
    let store = backend.client().await;
    for chunk in 0..KEYS / MAX_TXN_OPS {
        let txn = (0..MAX_TXN_OPS).fold(Txn::new(), |txn, i| {
            // Of unequal size, so that pages are too.
            let value = vec![b'v'; if chunk % 16 == 0 { 8_000 } else { 100 }];
            txn.put(format!("/many/{:05}", chunk * MAX_TXN_OPS + i), value)
        });
        committed(store.txn(txn).await);
    }
    let listing = store.list("/many/").await.unwrap();
    assert_eq!(listing.items.len(), KEYS);
    assert!(listing.items.windows(2).all(|pair| pair[0].key < pair[1].key));
    assert_eq!(listing.items[KEYS - 1].key, format!("/many/{:05}", KEYS - 1));

    // While somebody writes at the far end, a listing is still of one revision: the pair moves together.
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        for i in 0..200 {
            let txn = Txn::new().put("/many/00000", format!("{i}")).put("/many/99999", format!("{i}"));
            committed(writer.txn(txn).await);
        }
    });
    while !writing.is_finished() {
        tokio::task::yield_now().await;
        let items = store.list("/many/").await.unwrap().items;
        if items.len() > KEYS {
            assert_eq!(items[0].value, items[KEYS].value);
        }
    }
    writing.await.unwrap();
}

async fn a_watch_brings_whole_revisions_in_order(backend: Backend) {
    let store = backend.client().await;
    let start = put(&store, "/w/a", "0").await;
    let mut watch = store.watch("/w/", start).await.unwrap();
    let txn = Txn::new().put("/w/a", "1").put("/w/b", "1").put("/x/c", "1");
    let first = committed(store.txn(txn).await);
    put(&store, "/x/c", "2").await;
    let txn = Txn::new().delete("/w/a").put("/w/b", "2");
    let second = committed(store.txn(txn).await);
    let texts = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect::<Vec<_>>();
    assert_eq!(next_changes(&mut watch).await, (first, texts(&["+/w/a=1", "+/w/b=1"])));
    assert_eq!(next_changes(&mut watch).await, (second, texts(&["+/w/b=2", "-/w/a"])));

    // Live and from history it is the same story, also when there is a lot of it.
    for i in 0..300 {
        put(&store, &format!("/w/{}", i % 7), format!("{i}")).await;
    }
    let mut again = store.watch("/w/", start).await.unwrap();
    next_changes(&mut again).await;
    next_changes(&mut again).await;
    let mut last = second;
    for _ in 0..300 {
        let live = next_changes(&mut watch).await;
        assert_eq!(live, next_changes(&mut again).await);
        assert!(live.0 > last);
        last = live.0;
    }
}

async fn a_watch_resumes_after_any_revision(backend: Backend) {
    let store = backend.client().await;
    let mut revisions = Vec::new();
    for i in 0..5 {
        revisions.push(put(&store, "/w/a", format!("{i}")).await);
    }
    for (i, after) in revisions[..4].iter().enumerate() {
        let mut watch = store.watch("/w/", *after).await.unwrap();
        let (revision, texts) = next_changes(&mut watch).await;
        assert_eq!(revision, revisions[i + 1]);
        assert_eq!(texts, [format!("+/w/a={}", i + 1)]);
    }
}

async fn a_watch_from_compacted_history_says_so(backend: Backend) {
    let store = backend.client().await;
    let first = put(&store, "/w/a", "1").await;
    put(&store, "/w/a", "2").await;
    let third = put(&store, "/w/a", "3").await;
    store.compact(third).await.unwrap();
    store.compact(third).await.expect("twice is once");
    let error = match store.watch("/w/", first - 1).await {
        Err(error) => error,
        Ok(mut watch) => {
            let error = next(&mut watch).await.unwrap_err();
            assert!(timeout(SOON, watch.next()).await.unwrap().is_none(), "then it ends");
            error
        }
    };
    assert!(matches!(error, Error::Compacted { .. }), "{error}");
    // From the compacted revision on everything is there.
    let mut watch = store.watch("/w/", third - 1).await.unwrap();
    assert_eq!(next_changes(&mut watch).await.0, third);
    let kv = store.get("/w/a").await.unwrap().0.unwrap();
    assert_eq!((kv.value.as_slice(), kv.create_revision), (&b"3"[..], first));
}

async fn a_watch_from_the_future_says_so(backend: Backend) {
    let store = backend.client().await;
    let now = put(&store, "/w/a", "1").await;
    let error = store.watch("/w/", now + 1000).await.err().unwrap();
    assert!(matches!(error, Error::WentBack { seen, now: at } if seen == now + 1000 && at == now), "{error}");
}

async fn campaign(store: &Arc<dyn Store>, value: &str) -> Leadership {
    timeout(SOON, store.campaign("leader", value.as_bytes())).await.expect("elected in time").unwrap()
}

async fn leader(store: &Arc<dyn Store>) -> Option<String> {
    let key = keys::election("leader").unwrap();
    let (kv, _) = store.get(&key).await.unwrap();
    kv.map(|kv| String::from_utf8(kv.value).unwrap())
}

async fn one_of_three_candidates_leads(backend: Backend) {
    let store = backend.client().await;
    let (elected, mut election) = mpsc::channel(3);
    for name in ["s1", "s2", "s3"] {
        let (store, elected) = (backend.client().await, elected.clone());
        tokio::spawn(async move {
            let leadership = campaign(&store, name).await;
            elected.send((name, leadership)).await.unwrap();
        });
    }
    let mut names = Vec::new();
    let mut last = 0;
    for _ in 0..3 {
        let (name, leadership) = timeout(SOON, election.recv()).await.unwrap().unwrap();
        assert_eq!(leader(&store).await.as_deref(), Some(name));
        assert!(leadership.is_held());
        assert!(leadership.revision() > last, "the fence grows");
        last = leadership.revision();
        names.push(name);
        // Longer than a lease: it is kept alive, and nobody else gets in.
        tokio::time::sleep(enoki::store::election::LEASE + Duration::from_millis(700)).await;
        assert!(leadership.is_held() && !leadership.lost().is_cancelled());
        assert!(election.try_recv().is_err());
        let lost = leadership.lost();
        let resigned = Instant::now();
        leadership.resign().await;
        assert!(lost.is_cancelled());
        assert!(resigned.elapsed() < Duration::from_secs(1));
    }
    names.sort();
    assert_eq!(names, ["s1", "s2", "s3"]);
}

async fn a_past_leader_loses_the_fence(backend: Backend) {
    let (one, two) = (backend.client().await, backend.client().await);
    let first = campaign(&one, "one").await;
    let fence = first.fence();
    let fenced = |value: &str| Txn::new().when(fence.clone()).put("/l/x", value);
    committed(one.txn(fenced("by one")).await);
    first.resign().await;
    // Nobody leads: the fence is lost already.
    assert!(one.txn(fenced("late")).await.unwrap().committed().is_none());
    let second = campaign(&two, "two").await;
    let outcome = one.txn(fenced("later")).await.unwrap();
    assert!(matches!(outcome, Outcome::Conflict { .. }));
    committed(two.txn(Txn::new().when(second.fence()).put("/l/x", "by two")).await);
    let (kv, _) = one.get("/l/x").await.unwrap();
    assert_eq!(kv.unwrap().value, b"by two");
}

async fn an_abandoned_leadership_passes_on(backend: Backend) {
    let (one, two) = (backend.client().await, backend.client().await);
    let first = campaign(&one, "one").await;
    let lost = first.lost();
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { campaign(&two, "two").await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(first);
    assert!(lost.is_cancelled());
    let second = timeout(SOON, waiting).await.unwrap().unwrap();
    assert!(second.is_held());
    // A candidate that gave up holds nothing up.
    assert!(timeout(Duration::from_millis(300), one.campaign("leader", b"one")).await.is_err());
    drop(second);
    assert!(campaign(&two, "two").await.is_held());
}

async fn concurrent_writers_lose_nothing(backend: Backend) {
    const WRITERS: usize = 4;
    const TIMES: usize = 25;
    let store = backend.client().await;
    put(&store, "/c/n", "0").await;
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let store = backend.client().await;
        writers.push(tokio::spawn(async move {
            let (mut kv, _) = store.get("/c/n").await.unwrap();
            let mut left = TIMES;
            while left > 0 {
                let now = kv.clone().unwrap();
                let n: usize = String::from_utf8(now.value).unwrap().parse().unwrap();
                let txn =
                    Txn::new().when_unchanged("/c/n", now.mod_revision).put("/c/n", (n + 1).to_string());
                match store.txn(txn).await.unwrap() {
                    Outcome::Committed { .. } => {
                        left -= 1;
                        kv = store.get("/c/n").await.unwrap().0;
                    }
                    Outcome::Conflict { current, .. } => kv = current[0].1.clone(),
                }
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let (kv, _) = store.get("/c/n").await.unwrap();
    assert_eq!(kv.unwrap().value, (WRITERS * TIMES).to_string().into_bytes());
}

/// A copy fed by the reflector, which checks what the reflector guarantees.
struct Copy {
    events: mpsc::Receiver<Event>,
    keys: BTreeMap<String, Vec<u8>>,
    revision: Revision,
    snapshots: usize,
    fresh_as_of: Option<tokio::time::Instant>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

const QUICK: reflector::Options = reflector::Options {
    check_every: Duration::from_millis(200),
    grace: Duration::from_millis(600),
    backoff_first: Duration::from_millis(20),
    backoff_most: Duration::from_millis(300),
};

impl Copy {
    fn start(store: Arc<dyn Store>, prefix: &str) -> Copy {
        let (tell, events) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let run = reflector::run(store, prefix.to_string(), QUICK, tell, stop.clone());
        Copy {
            events,
            keys: BTreeMap::new(),
            revision: 0,
            snapshots: 0,
            fresh_as_of: None,
            stop,
            task: tokio::spawn(run),
        }
    }

    async fn step(&mut self) {
        let event = timeout(SOON, self.events.recv()).await.expect("an event in time");
        self.apply(event.expect("the reflector runs"));
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Snapshot { revision, items } => {
                assert!(revision >= self.revision, "never back");
                self.revision = revision;
                self.snapshots += 1;
                self.keys = items.into_iter().map(|kv| (kv.key, kv.value)).collect();
            }
            Event::Changes { revision, changes } => {
                assert!(revision > self.revision, "never back");
                self.revision = revision;
                for change in changes {
                    match change {
                        Change::Put(kv) => {
                            self.keys.insert(kv.key, kv.value);
                        }
                        Change::Delete { key } => {
                            assert!(self.keys.remove(&key).is_some(), "{key} was known");
                        }
                    }
                }
            }
            Event::Fresh { revision, as_of } => {
                assert!(revision >= self.revision, "never back");
                self.fresh_as_of = Some(as_of);
            }
        }
    }

    async fn reach(&mut self, revision: Revision) {
        while self.revision < revision {
            self.step().await;
        }
    }

    /// Until the copy was complete at a moment after now.
    async fn become_fresh(&mut self) {
        let now = tokio::time::Instant::now();
        while self.fresh_as_of.is_none_or(|as_of| as_of < now) {
            self.step().await;
        }
    }

    async fn check(&mut self, store: &Arc<dyn Store>, prefix: &str) {
        let listing = store.list(prefix).await.unwrap();
        self.reach(listing.items.iter().map(|kv| kv.mod_revision).max().unwrap_or(0)).await;
        let want: BTreeMap<_, _> = listing.items.into_iter().map(|kv| (kv.key, kv.value)).collect();
        assert_eq!(self.keys, want);
    }

    async fn end(self) -> Result<(), Error> {
        self.stop.cancel();
        timeout(SOON, self.task).await.unwrap().unwrap()
    }
}

async fn the_reflector_follows(backend: Backend) {
    let store = backend.client().await;
    put(&store, "/r/a", "1").await;
    let mut copy = Copy::start(backend.client().await, "/r/");
    copy.step().await;
    assert_eq!(copy.keys.len(), 1);
    let mut last = 0;
    for i in 0..200 {
        last = match i % 5 {
            4 => delete(&store, &format!("/r/{}", i - 1)).await,
            _ => put(&store, &format!("/r/{i}"), format!("{i}")).await,
        };
    }
    copy.reach(last).await;
    copy.check(&store, "/r/").await;
    copy.become_fresh().await;
    // Somebody writes where we do not look: the copy stays fresh all the same, without listing again.
    put(&store, "/elsewhere", "1").await;
    copy.become_fresh().await;
    assert_eq!(copy.snapshots, 1);
    copy.end().await.unwrap();
}

async fn the_reflector_relists_without_ghosts(mut backend: Backend) {
    let store = backend.client().await;
    for i in 0..20 {
        put(&store, &format!("/r/{i}"), "1").await;
    }
    let (mut copy, memory) = match &backend {
        Backend::Memory(memory) => {
            let client = memory.client();
            (Copy::start(Arc::new(client.clone()), "/r/"), Some(client))
        }
        Backend::Etcd(_) => (Copy::start(backend.client().await, "/r/"), None),
    };
    copy.become_fresh().await;
    // While it is cut off everything changes and the history of it is forgotten.
    match (&mut backend, &memory) {
        (Backend::Etcd(etcd), _) => {
            etcd.kill();
            // On other ports first, so that the reflector does not see the middle of it.
            let there = etcd.options.client.clone();
            etcd.options.client = etcd_child::free_address();
            etcd.restart().await;
            let aside: Arc<dyn Store> = Arc::new(etcd.client().await);
            change_everything(&aside).await;
            etcd.kill();
            etcd.options.client = there;
            etcd.restart().await;
        }
        (Backend::Memory(_), Some(client)) => {
            client.set_link(Link::Down);
            change_everything(&store).await;
            client.set_link(Link::Up);
        }
        (Backend::Memory(_), None) => unreachable!("made above"),
    }
    while copy.snapshots < 2 {
        copy.step().await;
    }
    let store = backend.client().await;
    copy.check(&store, "/r/").await;
    assert_eq!(copy.keys.len(), 11);
    let last = put(&store, "/r/after", "1").await;
    copy.reach(last).await;
    copy.check(&store, "/r/").await;
    assert_eq!(copy.snapshots, 2);
    copy.end().await.unwrap();
}

async fn change_everything(store: &Arc<dyn Store>) {
    for i in 0..10 {
        delete(store, &format!("/r/{i}")).await;
    }
    let last = put(store, "/r/new", "1").await;
    store.compact(last).await.unwrap();
}

async fn the_store_reports_itself(backend: Backend) {
    let store = backend.client().await;
    let revision = put(&store, "/s/a", vec![b'x'; 10_000]).await;
    let status = store.status().await.unwrap();
    assert_eq!(status.revision, revision);
    assert!(!status.full && status.size_bytes >= status.used_bytes && status.used_bytes > 0);
    assert!(!status.version.is_empty());
    store.reclaim().await.unwrap();
    assert!(store.get("/s/a").await.unwrap().0.is_some());
}
