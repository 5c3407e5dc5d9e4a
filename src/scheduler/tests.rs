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

proptest! {
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
