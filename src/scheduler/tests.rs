use super::*;
use crate::state::Placed;
use enoki_api::host::{Capacity, HostPhase, HostSpec, HostStatus};
use enoki_api::instance::{Assignment, Instance, Strategy};
use enoki_api::object::{Object, Uid};
use enoki_api::quantity::{Bytes, MilliCpu};
use jiff::Timestamp;
use proptest::prelude::*;
use std::sync::Arc;

const GI: u64 = 1 << 30;

struct World(Snapshot);

impl World {
    fn new(hosts: &[(&str, &[(&str, &str)])]) -> Self {
        let mut snapshot = Snapshot::default();
        for (name, labels) in hosts {
            let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            let host = Object::new(None, name, labels, HostSpec::default(), Timestamp::UNIX_EPOCH);
            snapshot.seed_host(
                host,
                HostStatus {
                    phase: HostPhase::Ready,
                    capacity: Capacity {
                        cpus: MilliCpu(2000),
                        memory: Bytes(4 * GI),
                        pids: 1000,
                        instances: 0,
                    },
                    ..HostStatus::default()
                },
            );
        }
        World(snapshot)
    }

    fn status(&mut self, host: &str, change: impl FnOnce(&mut HostStatus)) {
        let mut status = HostStatus::clone(&self.0.host_status[host]);
        change(&mut status);
        self.0.host_status.insert(host.to_owned(), Arc::new(status));
    }

    fn bind(&mut self, instance: Instance, host: &str) {
        let at = ("default".to_owned(), instance.name.clone());
        let granted = instance.spec.resources();
        let assignment = Assignment {
            uid: Uid::random(),
            host: host.into(),
            epoch: 1,
            generation: 1,
            granted,
            nics: Default::default(),
        };
        self.0.seed_instance(instance);
        self.0.assign(at, Placed { assignment, revision: 1 });
    }

    fn place(&mut self, instance: &Instance) -> Result<String, Vec<Verdict>> {
        let at = ("default".to_owned(), instance.name.clone());
        let placed = place(
            &self.0,
            Request { at: &at, labels: &instance.labels, spec: &instance.spec },
            &Policy::default(),
        )?;
        self.bind(instance.clone(), &placed);
        Ok(placed)
    }
}

fn instance(name: &str, change: impl FnOnce(&mut InstanceSpec)) -> Instance {
    let mut spec = InstanceSpec::new("a");
    spec.memory = Some(Bytes(GI));
    change(&mut spec);
    Object::new(Some("default"), name, Default::default(), spec, Timestamp::UNIX_EPOCH)
}

#[test]
fn spread_goes_round_and_bin_pack_fills_up() {
    let mut world = World::new(&[("h1", &[]), ("h2", &[]), ("h3", &[])]);
    let hosts: Vec<_> = (0..6).map(|i| world.place(&instance(&format!("s{i}"), |_| {})).unwrap()).collect();
    assert_eq!(hosts, ["h1", "h2", "h3", "h1", "h2", "h3"]);

    let mut world = World::new(&[("h1", &[]), ("h2", &[])]);
    let pack = |name: &str| instance(name, |spec| spec.placement.strategy = Strategy::BinPack);
    let hosts: Vec<_> = (0..6).map(|i| world.place(&pack(&format!("p{i}"))).unwrap()).collect();
    assert_eq!(hosts, ["h1", "h1", "h1", "h1", "h2", "h2"], "a full host is left only when nothing fits");
}

#[test]
fn every_refusal_is_told() {
    let mut world = World::new(&[("h1", &[("zone", "a")]), ("h2", &[])]);
    let mut neighbour = instance("db", |_| {});
    neighbour.labels.insert("tier".into(), "db".into());
    world.bind(neighbour, "h1");
    let picky = instance("web", |spec| {
        spec.placement.require = vec!["zone=a".into()];
        spec.placement.avoid = vec!["tier=db".into()];
        spec.memory = Some(Bytes(4 * GI));
        spec.cpus = Some(MilliCpu(9000));
        spec.cpuset = Some("0-2".parse().unwrap());
    });
    let verdicts = world.place(&picky).unwrap_err();
    let codes = |at: usize| verdicts[at].reasons.iter().map(|r| r.code.as_str()).collect::<Vec<_>>();
    assert_eq!(codes(0), ["anti_affinity", "no_capacity", "no_capacity", "no_capacity"]);
    assert_eq!(codes(1), ["constraint", "no_capacity", "no_capacity"]);
    let (code, sentence) = summary(&verdicts);
    assert_eq!(code, "no_capacity");
    assert!(sentence.contains("h1") && sentence.contains("zone=a"), "{sentence}");
}

#[test]
fn hosts_that_are_not_ready_or_cordoned_get_nothing() {
    let mut world = World::new(&[("h1", &[]), ("h2", &[])]);
    world.status("h1", |status| status.phase = HostPhase::Degraded);
    assert_eq!(world.place(&instance("a", |_| {})).unwrap(), "h2");
    world.0.cordon("h2");
    let verdicts = world.place(&instance("b", |_| {})).unwrap_err();
    assert_eq!(verdicts[0].reasons[0].code, "host_not_ready");
    assert_eq!(verdicts[1].reasons[0].code, "cordoned");
}

#[test]
fn an_instances_own_grant_counts_as_free_when_it_grows() {
    let mut world = World::new(&[("h1", &[])]);
    let own = instance("a", |spec| spec.memory = Some(Bytes(3 * GI)));
    world.bind(own.clone(), "h1");
    let at = ("default".to_owned(), "a".to_owned());
    let mut bigger = own.spec.clone();
    bigger.memory = Some(Bytes(4 * GI));
    let ask = |spec: &InstanceSpec| {
        regrant(&world.0, "h1", Request { at: &at, labels: &own.labels, spec }, &Policy::default())
    };
    assert_eq!(ask(&bigger).unwrap().memory, Some(Bytes(4 * GI)));
    bigger.memory = Some(Bytes(5 * GI));
    assert_eq!(ask(&bigger).unwrap_err()[0].code, "no_capacity");
}

fn requests<'a>(instances: &'a [Instance], places: &'a [At]) -> Vec<Request<'a>> {
    let pairs = instances.iter().zip(places);
    pairs.map(|(instance, at)| Request { at, labels: &instance.labels, spec: &instance.spec }).collect()
}

fn places(instances: &[Instance]) -> Vec<At> {
    instances.iter().map(|instance| ("default".to_owned(), instance.name.clone())).collect()
}

#[test]
fn a_gang_gets_hosts_for_all_or_for_none() {
    let world = World::new(&[("h1", &[]), ("h2", &[("gpu", "yes")])]);
    // In the order given, the two that go anywhere would take the room that only the third can use.
    let three = |memory: u64| {
        let any = |name: &str| instance(name, |spec| spec.memory = Some(Bytes(3 * GI)));
        let picky = instance("c", |spec| {
            spec.placement.require = vec!["gpu=yes".into()];
            spec.memory = Some(Bytes(memory));
        });
        [any("a"), instance("b", |_| {}), picky]
    };
    let gang = |instances: &[Instance]| {
        super::gang(&world.0, &requests(instances, &places(instances)), &Policy::default())
    };
    assert_eq!(gang(&three(3 * GI)).unwrap(), ["h1", "h1", "h2"]);
    let refused = gang(&three(5 * GI)).unwrap_err();
    assert_eq!(refused.member, 2, "which of them, and why on every host");
    assert_eq!(refused.verdicts.len(), 2);
    assert!(refused.verdicts.iter().all(|verdict| !verdict.fits));
    assert_eq!(gang(&[]), Ok(Vec::new()));
}

#[test]
fn members_of_a_gang_count_for_each_other() {
    let world = World::new(&[("h1", &[]), ("h2", &[]), ("h3", &[])]);
    // Apart by a label that only they have, while none of them is in the snapshot.
    let apart = |name: &str| {
        let mut one = instance(name, |spec| {
            spec.placement.avoid = vec!["role=worker".into()];
            spec.placement.strategy = Strategy::BinPack;
        });
        one.labels.insert("role".into(), "worker".into());
        one
    };
    let gang = |instances: &[Instance]| {
        super::gang(&world.0, &requests(instances, &places(instances)), &Policy::default())
    };
    assert_eq!(gang(&[apart("a"), apart("b"), apart("c")]).unwrap(), ["h1", "h2", "h3"]);
    let refused = gang(&["a", "b", "c", "d"].map(apart)).unwrap_err();
    assert_eq!(refused.verdicts[0].reasons[0].code, "anti_affinity");
    // Together by a volume that is on no host yet.
    let mounting = |name: &str| {
        instance(name, |spec| {
            let mount = serde_json::from_value(serde_json::json!({"volume": "data"})).unwrap();
            spec.mounts.insert("/data".into(), mount);
        })
    };
    assert_eq!(gang(&[mounting("a"), mounting("b")]).unwrap(), ["h1", "h1"]);
}

#[test]
fn a_shared_volume_is_on_every_host() {
    let mut world = World::new(&[("h1", &[]), ("h2", &[])]);
    let spec = serde_json::from_value(serde_json::json!({"type": "shared", "path": "/srv/data"})).unwrap();
    world.0.seed_volume(Object::new(
        Some("default"),
        "data",
        Default::default(),
        spec,
        Timestamp::UNIX_EPOCH,
    ));
    let instances = ["a", "b"].map(|name| {
        instance(name, |spec| {
            let mount = serde_json::from_value(serde_json::json!({"volume": "data"})).unwrap();
            spec.mounts.insert("/data".into(), mount);
        })
    });
    let hosts = gang(&world.0, &requests(&instances, &places(&instances)), &Policy::default());
    assert_eq!(hosts.unwrap(), ["h1", "h2"]);
}

proptest! {
    /// All or none; what all get together fits; the same question has the same answer; one alone is a gang of one.
    #[test]
    fn a_gang_fits_as_a_whole(
        asks in prop::collection::vec((1u64..6, 1u64..5000, 1u64..600, any::<bool>(), any::<bool>()), 0..12),
        there in prop::collection::vec((0usize..3, 1u64..4), 0..4),
    ) {
        let mut world = World::new(&[("h1", &[("zone", "a")]), ("h2", &[]), ("h3", &[])]);
        for (number, (host, memory)) in there.into_iter().enumerate() {
            let old = instance(&format!("old{number}"), |spec| spec.memory = Some(Bytes(memory * GI / 4)));
            world.bind(old, ["h1", "h2", "h3"][host]);
        }
        let instances: Vec<_> = asks.into_iter().enumerate().map(|(at, (memory, cpus, pids, pack, picky))| {
            instance(&format!("i{at}"), |spec| {
                spec.memory = Some(Bytes(memory * GI / 2));
                spec.cpus = Some(MilliCpu(cpus));
                spec.pids = Some(pids);
                spec.placement.strategy = if pack { Strategy::BinPack } else { Strategy::Spread };
                if picky {
                    spec.placement.require = vec!["zone=a".into()];
                }
            })
        }).collect();
        let places = places(&instances);
        let requests = requests(&instances, &places);
        let answer = gang(&world.0, &requests, &Policy::default());
        prop_assert_eq!(&answer, &gang(&world.0, &requests, &Policy::default()));
        if let [one] = &requests[..] {
            let alone = place(&world.0, *one, &Policy::default()).map(|host| vec![host]);
            prop_assert_eq!(&alone, &answer.clone().map_err(|refused| refused.verdicts));
        }
        match answer {
            Ok(hosts) => {
                prop_assert_eq!(hosts.len(), instances.len());
                for (instance, host) in instances.into_iter().zip(&hosts) {
                    prop_assert!(instance.spec.placement.require.is_empty() || host == "h1");
                    world.bind(instance, host);
                }
                for granted in world.0.granted.values() {
                    prop_assert!(granted.memory.0 <= 4 * GI && granted.cpus.0 <= 8000 && granted.pids <= 1000);
                }
            }
            Err(refused) => {
                prop_assert!(refused.member < instances.len());
                prop_assert!(refused.verdicts.iter().all(|verdict| !verdict.fits && !verdict.reasons.is_empty()));
            }
        }
    }

    /// Whatever is asked in whatever order, grants never exceed what the hosts have.
    #[test]
    fn grants_never_exceed_capacity(asks in prop::collection::vec((1u64..6, 1u64..5000, 1u64..600, any::<bool>()), 1..40)) {
        let mut world = World::new(&[("h1", &[]), ("h2", &[]), ("h3", &[])]);
        for (at, (memory, cpus, pids, pack)) in asks.into_iter().enumerate() {
            let _ = world.place(&instance(&format!("i{at}"), |spec| {
                spec.memory = Some(Bytes(memory * GI / 2));
                spec.cpus = Some(MilliCpu(cpus));
                spec.pids = Some(pids);
                spec.placement.strategy = if pack { Strategy::BinPack } else { Strategy::Spread };
            }));
        }
        for granted in world.0.granted.values() {
            prop_assert!(granted.memory.0 <= 4 * GI && granted.cpus.0 <= 8000 && granted.pids <= 1000);
        }
    }
}
