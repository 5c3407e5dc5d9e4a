use super::*;
use crate::instance::samples::order;
use enoki_api::instance::Doomed;
use enoki_api::object::Object;

fn tombstone(uid: &Uid) -> Tombstone {
    Tombstone {
        uid: uid.clone(),
        what: Doomed::Instance,
        name: "default/web1".to_owned(),
        host: None,
        created_at: "2026-11-22T10:00:00Z".parse().unwrap(),
        buried_at: None,
    }
}

#[test]
fn what_was_accepted_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let order = order("web1");
    let uid = order.uid().clone();
    let other = Uid::random();
    {
        let ledger = Ledger::load(&path).unwrap();
        assert_eq!(ledger.accept(&order).unwrap(), Accepted::New);
        assert_eq!(ledger.accept(&order).unwrap(), Accepted::Same);
        ledger.remember(&uid, &Facts { restarts: 3, ..Facts::default() }).unwrap();
        assert!(ledger.doom(&tombstone(&other)).unwrap());
        assert!(!ledger.doom(&tombstone(&other)).unwrap());
    }
    let ledger = Ledger::load(&path).unwrap();
    let entry = ledger.get(&uid).unwrap();
    assert_eq!((entry.order, entry.facts.restarts), (order, 3));
    assert!(ledger.tombstone(&other).is_some());
    ledger.bury(&uid).unwrap();
    ledger.bury(&other).unwrap();
    let ledger = Ledger::load(&path).unwrap();
    assert!(ledger.uids().is_empty() && ledger.tombstones().is_empty());
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
    assert_eq!(mode & 0o077, 0);
}

#[test]
fn an_older_epoch_is_refused_and_a_newer_one_keeps_the_facts() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::load(dir.path()).unwrap();
    let mut order = order("web1");
    order.assignment.epoch = 5;
    ledger.accept(&order).unwrap();
    ledger.remember(order.uid(), &Facts { restarts: 3, ..Facts::default() }).unwrap();
    order.assignment.epoch = 4;
    assert!(matches!(ledger.accept(&order), Err(Error::Stale { offered: 4, known: 5, .. })));
    order.assignment.epoch = 6;
    assert_eq!(ledger.accept(&order).unwrap(), Accepted::Changed);
    assert_eq!(ledger.get(order.uid()).unwrap().facts.restarts, 3);
}

#[test]
fn who_is_where_stays_while_an_instance_is_on_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let mut order = order("web1");
    let spec = serde_json::from_str(r#"{"cidr":"198.18.100.0/24","type":"vxlan"}"#).unwrap();
    let network: enoki_api::network::Network =
        Object::new(Some("default"), "blue", Default::default(), spec, jiff::Timestamp::UNIX_EPOCH);
    let overlay = Overlay {
        network: network.uid.clone(),
        hosts: [[198, 18, 200, 2].into()].into(),
        entries: Vec::new(),
    };
    order.networks.insert("blue".into(), network);
    {
        let ledger = Ledger::load(dir.path()).unwrap();
        ledger.accept(&order).unwrap();
        ledger.keep(&overlay).unwrap();
        ledger.keep(&Overlay { network: Uid::random(), ..overlay.clone() }).unwrap();
        assert_eq!(ledger.overlays().len(), 2);
    }
    // Nobody here is on the second.
    let ledger = Ledger::load(dir.path()).unwrap();
    assert_eq!(ledger.overlays(), [overlay]);
    assert!(ledger.corrupt().is_empty());
    ledger.bury(order.uid()).unwrap();
    assert_eq!(Ledger::load(dir.path()).unwrap().overlays(), []);
    assert_eq!(fs::read_dir(dir.path().join("overlays")).unwrap().count(), 0);
}

#[test]
fn no_order_outlives_a_burial_that_it_meets() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::load(dir.path()).unwrap();
    let order = order("web1");
    let uid = order.uid();
    let take_in = || {
        let _together = ledger.intake();
        ledger.doom(&tombstone(uid)).unwrap();
        ledger.accept(&order).unwrap();
    };
    for round in 0..300 {
        take_in();
        std::thread::scope(|scope| {
            scope.spawn(|| ledger.bury(uid).unwrap());
            // At another moment of the burial each time.
            std::thread::sleep(std::time::Duration::from_micros(round * 7 % 1000));
            take_in();
        });
        assert!(
            ledger.tombstone(uid).is_some() || !ledger.has(uid),
            "round {round}: an order without its tombstone"
        );
    }
}

#[test]
fn a_spoilt_file_is_set_aside_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad, half) = (order("good"), order("bad"), order("half"));
    {
        let ledger = Ledger::load(dir.path()).unwrap();
        for order in [&good, &bad, &half] {
            ledger.accept(order).unwrap();
        }
    }
    let file = |order: &Order, ext: &str| dir.path().join(format!("{}.{ext}", order.uid()));
    fs::write(file(&bad, "json"), "{\"order\":").unwrap();
    // A write that was cut off by a kill leaves the value before it.
    fs::write(file(&half, "new"), "{").unwrap();
    // A copy under another name is not that instance's.
    let stranger = Uid::random();
    fs::copy(file(&good, "json"), dir.path().join(format!("{stranger}.json"))).unwrap();

    for _ in 0..2 {
        let ledger = Ledger::load(dir.path()).unwrap();
        assert_eq!(ledger.uids().len(), 2);
        assert!(ledger.get(good.uid()).is_some() && ledger.get(half.uid()).is_some());
        assert_eq!(ledger.corrupt().iter().collect::<BTreeSet<_>>(), [bad.uid(), &stranger].into());
        assert!(file(&bad, "corrupt").exists() && !file(&half, "new").exists());
    }
}
