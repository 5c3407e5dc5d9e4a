//! Faults: those that the memory store makes on demand, and a real etcd that dies, freezes, fills up, goes silent
//! behind a connection and loses its data.

use super::*;
use enoki::store::clock::BootTime;
use enoki::store::memory::Fault;

#[tokio::test]
async fn memory_faults_are_what_they_say() {
    let memory = Memory::new();
    let store = memory.client();
    for (fault, applied) in [(Fault::AppliedUnknown, true), (Fault::LostUnknown, false)] {
        store.inject(fault);
        let error = store.txn(Txn::new().put("/f/a", "1")).await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }));
        assert_eq!(memory.get("/f/a").await.unwrap().0.is_some(), applied);
        committed(store.txn(Txn::new().delete("/f/a")).await);
    }
    store.inject(Fault::Unavailable);
    store.inject(Fault::Full);
    let put = || Txn::new().put("/f/a", "1");
    assert!(matches!(store.txn(put()).await, Err(Error::Unavailable { .. })));
    assert!(matches!(store.txn(put()).await, Err(Error::Full)));
    committed(store.txn(put()).await);
}

#[tokio::test]
async fn a_silent_watch_is_noticed() {
    let memory = Memory::new();
    let store: Arc<dyn Store> = Arc::new(memory.client());
    let client = memory.client();
    let mut copy = Copy::start(Arc::new(client.clone()), "/r/");
    copy.become_fresh().await;
    client.set_link(Link::Mute);
    let last = put(&store, "/r/a", "1").await;
    // It does not lie about it.
    let silent = tokio::time::Instant::now();
    tokio::time::sleep(QUICK.check_every * 2).await;
    while let Ok(event) = copy.events.try_recv() {
        assert!(!matches!(event, Event::Fresh { as_of, .. } if as_of > silent), "{event:?}");
    }
    client.set_link(Link::Up);
    copy.reach(last).await;
    copy.become_fresh().await;
    assert_eq!(copy.snapshots, 1);
    copy.end().await.unwrap();
}

/// Whatever is done to its connection, the copy is the store in the end: forty steps of chance from each seed.
#[tokio::test]
async fn the_reflector_survives_anything() {
    for seed in 1..=20u64 {
        let memory = Memory::new();
        let store: Arc<dyn Store> = Arc::new(memory.client());
        let client = memory.client();
        let mut copy = Copy::start(Arc::new(client.clone()), "/r/");
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut chance = |of: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % of
        };
        for _ in 0..40 {
            let key = format!("/r/{}", chance(6));
            match chance(10) {
                0..=3 => drop(put(&store, &key, format!("{}", chance(100))).await),
                4..=5 => drop(delete(&store, &key).await),
                6 => {
                    let at = store.status().await.unwrap().revision;
                    store.compact(at).await.unwrap();
                }
                7 => client.set_link(Link::Down),
                8 => client.set_link(Link::Up),
                _ => {
                    let pause = Duration::from_millis(chance(30));
                    let until = tokio::time::Instant::now() + pause;
                    while tokio::time::timeout_at(until, copy.events.recv()).await.is_ok_and(|event| {
                        copy.apply(event.expect("the reflector runs"));
                        true
                    }) {}
                }
            }
        }
        client.set_link(Link::Up);
        copy.become_fresh().await;
        copy.check(&store, "/r/").await;
        copy.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_leader_that_is_cut_off_ends_before_the_next_begins() {
    let memory = Memory::new();
    let (cut, other) = (memory.client(), memory.client());
    let one: Arc<dyn Store> = Arc::new(cut.clone());
    let two: Arc<dyn Store> = Arc::new(other);
    let first = campaign(&one, "one").await;
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { (campaign(&two, "two").await, BootTime::now()) }
    });
    cut.set_link(Link::Down);
    timeout(SOON, first.lost().cancelled()).await.unwrap();
    let over = first.deadline();
    assert!(!first.is_held());
    let (second, elected) = timeout(SOON, waiting).await.unwrap().unwrap();
    assert!(over < elected && second.is_held());
    cut.set_link(Link::Up);
    let late = Txn::new().when(first.fence()).put("/l/x", "late");
    assert!(one.txn(late).await.unwrap().committed().is_none());
    // It stands again like anybody.
    drop((first, second));
    campaign(&one, "one").await;
}

// etcd alone: a process that dies, freezes, fills up and loses its data.

#[tokio::test]
async fn etcd_wants_our_certificate() {
    let etcd = EtcdChild::start(Mode::Tls).await;
    let store: Arc<dyn Store> = Arc::new(etcd.client().await);
    put(&store, "/tls/a", "1").await;
    let mut watch = store.watch("/tls/", 1).await.unwrap();
    assert_eq!(next_changes(&mut watch).await.1, ["+/tls/a=1"]);
    assert!(campaign(&store, "one").await.is_held());

    let mut stranger = etcd.config();
    let pki = etcd_child::pki();
    if let Some(tls) = &mut stranger.tls {
        (tls.cert, tls.key) = (pki.cert.into_bytes(), pki.key.into_bytes());
    }
    let stranger = enoki::store::etcd::Etcd::new(stranger).await.unwrap();
    let refused = stranger.with_deadline(Duration::from_secs(2)).get("/tls/a").await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");

    let mut impostor = etcd.config();
    if let Some(tls) = &mut impostor.tls {
        tls.ca = etcd_child::pki().ca.into_bytes();
    }
    let impostor = enoki::store::etcd::Etcd::new(impostor).await.unwrap();
    let refused = impostor.with_deadline(Duration::from_secs(2)).get("/tls/a").await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
}

#[tokio::test]
async fn etcd_away_is_an_error_in_time_and_heals_by_itself() {
    let mut etcd = EtcdChild::start(Mode::Tls).await;
    let store: Arc<dyn Store> = Arc::new(etcd.client().await.with_deadline(Duration::from_secs(2)));
    put(&store, "/k/a", "1").await;
    etcd.kill();
    for _ in 0..3 {
        let begun = Instant::now();
        let error = store.get("/k/a").await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        let error = store.txn(Txn::new().put("/k/a", "2")).await.unwrap_err();
        assert!(error.is_transient(), "{error:?}");
        assert!(store.watch("/k/", 1).await.is_err());
        assert!(begun.elapsed() < Duration::from_secs(7));
    }
    // Once the connection is known to be refused, a write is known not to have happened.
    let error = store.txn(Txn::new().put("/k/a", "2")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    etcd.restart().await;
    let back = Instant::now();
    while store.get("/k/a").await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(3), "it comes back soon");
    }
    let (kv, _) = store.get("/k/a").await.unwrap();
    assert_eq!(kv.unwrap().value, b"1");
}

/// Whatever was acknowledged is there, what was refused is not, and only the unknown is open.
#[tokio::test]
async fn a_kill_in_mid_flight_loses_no_acknowledged_write() {
    let mut etcd = EtcdChild::start(Mode::Plain).await;
    let mut writers = Vec::new();
    let stop = CancellationToken::new();
    for writer in 0..4 {
        let store: Arc<dyn Store> = Arc::new(etcd.client().await.with_deadline(Duration::from_millis(800)));
        let stop = stop.clone();
        writers.push(tokio::spawn(async move {
            let (mut done, mut unknown, mut refused) = (vec![], vec![], vec![]);
            let mut i = 0;
            while !stop.is_cancelled() {
                let key = format!("/k/{writer}/{i}");
                i += 1;
                match store.txn(Txn::new().when_absent(&key).put(&key, "1")).await {
                    Ok(outcome) => {
                        assert!(outcome.committed().is_some());
                        done.push(key);
                    }
                    Err(Error::OutcomeUnknown { .. }) => unknown.push(key),
                    Err(Error::Unavailable { .. }) => {
                        refused.push(key);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            (done, unknown, refused)
        }));
    }
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        etcd.kill();
        tokio::time::sleep(Duration::from_millis(200)).await;
        etcd.restart().await;
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    stop.cancel();
    let mut written = Vec::new();
    for writer in writers {
        written.push(writer.await.unwrap());
    }
    let listing = etcd.client().await.list("/k/").await.unwrap();
    let there: std::collections::BTreeSet<String> = listing.items.into_iter().map(|kv| kv.key).collect();
    let mut unknowns = 0;
    for (done, unknown, refused) in written {
        assert!(!done.is_empty());
        assert!(done.iter().all(|key| there.contains(key)), "acknowledged means kept");
        assert!(refused.iter().all(|key| !there.contains(key)), "unavailable means not applied");
        unknowns += unknown.len();
    }
    assert!(unknowns > 0, "a kill in mid-flight is seen as what it is");
}

#[tokio::test]
async fn the_reflector_survives_restarts_without_listing_again() {
    let mut etcd = EtcdChild::start(Mode::Plain).await;
    let store: Arc<dyn Store> = Arc::new(etcd.client().await);
    put(&store, "/r/a", "1").await;
    let mut copy = Copy::start(Arc::new(etcd.client().await), "/r/");
    copy.become_fresh().await;
    for round in 0..3 {
        etcd.kill();
        tokio::time::sleep(Duration::from_millis(100)).await;
        etcd.restart().await;
        let store: Arc<dyn Store> = Arc::new(etcd.client().await);
        let written = Instant::now();
        let last = put(&store, "/r/a", format!("{round}")).await;
        copy.reach(last).await;
        assert!(written.elapsed() < Duration::from_secs(2));
    }
    assert_eq!(copy.snapshots, 1);
    copy.end().await.unwrap();
}

#[tokio::test]
async fn the_reflector_stops_when_the_store_went_back() {
    let mut etcd = EtcdChild::start(Mode::Plain).await;
    let store: Arc<dyn Store> = Arc::new(etcd.client().await);
    for _ in 0..10 {
        put(&store, "/r/a", "1").await;
    }
    let mut copy = Copy::start(Arc::new(etcd.client().await), "/r/");
    copy.become_fresh().await;
    etcd.wipe();
    etcd.restart().await;
    let ended = async {
        while copy.events.recv().await.is_some() {}
        copy.task.await.unwrap()
    };
    let result = timeout(SOON, ended).await.unwrap();
    assert!(matches!(result, Err(Error::WentBack { .. })), "{result:?}");
}

#[tokio::test]
async fn a_frozen_etcd_ends_leadership_in_time() {
    let etcd = EtcdChild::start(Mode::Plain).await;
    let one: Arc<dyn Store> = Arc::new(etcd.client().await.with_deadline(Duration::from_secs(2)));
    let two: Arc<dyn Store> = Arc::new(etcd.client().await.with_deadline(Duration::from_secs(2)));
    let first = campaign(&one, "one").await;
    let fence = first.fence();
    let mut copy = Copy::start(two.clone(), keys::ROOT);
    copy.become_fresh().await;
    etcd.freeze();
    let frozen = Instant::now();
    timeout(SOON, first.lost().cancelled()).await.unwrap();
    assert!(frozen.elapsed() <= enoki::store::election::LEASE, "before the lease can end");
    assert!(!first.is_held());
    // Writes in that time are unknown, not refused; the copy says that it is stale.
    let error = one.txn(Txn::new().when(fence.clone()).put("/l/x", "in doubt")).await;
    assert!(matches!(error, Err(Error::OutcomeUnknown { .. })), "{error:?}");
    while copy.events.try_recv().is_ok() {}
    assert!(timeout(Duration::from_secs(1), copy.events.recv()).await.is_err());
    etcd.thaw();
    let second = loop {
        match timeout(SOON, two.campaign("leader", b"two")).await.unwrap() {
            Ok(leadership) => break leadership,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    };
    assert!(second.revision() > first.revision());
    let late = Txn::new().when(fence).put("/l/x", "late");
    assert!(one.txn(late).await.unwrap().committed().is_none());
    copy.become_fresh().await;
    copy.end().await.unwrap();
}

#[tokio::test]
async fn a_leader_killed_is_followed_within_three_seconds() {
    let etcd = EtcdChild::start(Mode::Plain).await;
    let two: Arc<dyn Store> = Arc::new(etcd.client().await);
    // A leader that dies says nothing: its runtime ends with everything in it.
    let config = etcd.config();
    let (elected, was_elected) = std::sync::mpsc::channel();
    let (die, dies) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let leadership = runtime.block_on(async {
            let store = enoki::store::etcd::Etcd::new(config).await.unwrap();
            store.campaign("leader", b"one").await.unwrap()
        });
        elected.send(()).unwrap();
        dies.recv().unwrap();
        runtime.shutdown_background();
        std::mem::forget(leadership);
    });
    tokio::task::spawn_blocking(move || was_elected.recv().unwrap()).await.unwrap();
    let waiting = tokio::spawn(async move { campaign(&two, "two").await });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    die.send(()).unwrap();
    let died = Instant::now();
    let leadership = timeout(SOON, waiting).await.unwrap().unwrap();
    assert!(died.elapsed() < Duration::from_secs(3), "{:?}", died.elapsed());
    assert!(leadership.is_held());
    thread.join().unwrap();
}

#[tokio::test]
async fn a_full_etcd_says_so_and_is_reclaimed() {
    let etcd = EtcdChild::start_with(Mode::Plain, |options| options.quota_bytes = 16 << 20).await;
    let store: Arc<dyn Store> = Arc::new(etcd.client().await);
    let error = loop {
        let txn = Txn::new().put("/full/a", vec![b'x'; MAX_VALUE_BYTES]);
        if let Err(error) = store.txn(txn).await {
            break error;
        }
    };
    assert!(matches!(error, Error::Full), "{error:?}");
    // etcd refuses first and raises the alarm a moment later.
    timeout(SOON, async { while !store.status().await.unwrap().full {} }).await.unwrap();
    assert!(store.get("/full/a").await.unwrap().0.is_some(), "reads go on");
    let before = store.status().await.unwrap().size_bytes;
    store.reclaim().await.unwrap();
    let status = store.status().await.unwrap();
    assert!(!status.full && status.size_bytes < before / 2, "{status:?}");
    put(&store, "/full/a", "small").await;
}

/// A connection that takes everything and gives nothing: nobody hangs up, only pings find it.
#[tokio::test]
async fn a_half_open_connection_is_left_for_a_new_one() {
    let etcd = EtcdChild::start(Mode::Plain).await;
    let direct: Arc<dyn Store> = Arc::new(etcd.client().await);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = etcd.config();
    config.endpoints = vec![format!("http://{}", listener.local_addr().unwrap())];
    config.deadline = Duration::from_secs(2);
    let swallow = CancellationToken::new();
    let proxy = tokio::spawn(proxy(listener, etcd.options.client.clone(), swallow.clone()));

    let store: Arc<dyn Store> = Arc::new(enoki::store::etcd::Etcd::new(config).await.unwrap());
    let mut copy = Copy::start(store, "/r/");
    copy.become_fresh().await;
    swallow.cancel();
    let missed = put(&direct, "/r/a", "1").await;
    let begun = Instant::now();
    timeout(SOON + SOON, async {
        while copy.revision < missed {
            if let Some(event) = copy.events.recv().await {
                copy.apply(event);
            }
        }
    })
    .await
    .expect("the copy gets over it");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    copy.become_fresh().await;
    assert_eq!(copy.snapshots, 1);
    copy.end().await.unwrap();
    proxy.abort();
}

/// Passes connections on; those that are open when `swallow` is cancelled stay open and pass nothing more.
async fn proxy(listener: tokio::net::TcpListener, to: String, swallow: CancellationToken) {
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect(&to).await.unwrap();
        let swallow = swallow.clone();
        let born_before = !swallow.is_cancelled();
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = swallow.cancelled(), if born_before => {
                    std::future::pending::<()>().await;
                }
            }
        });
    }
}
