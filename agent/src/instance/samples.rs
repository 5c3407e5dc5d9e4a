//! Orders as a server would send them, for tests and simulation.

use enoki_api::instance::{Assignment, InstanceSpec, disk_uid};
use enoki_api::object::{Labels, Object, Spec};
use enoki_api::protocol::Order;
use jiff::Timestamp;

/// `default/NAME` from the image `tiny`, without networks.
pub fn order(name: &str) -> Order {
    let mut spec = InstanceSpec::new("tiny");
    spec.nics.clear();
    spec.fill(name);
    let instance = Object::new(Some("default"), name, Labels::new(), spec, Timestamp::UNIX_EPOCH);
    Order {
        assignment: Assignment {
            uid: instance.uid.clone(),
            host: "node1".to_owned(),
            epoch: 1,
            generation: 1,
            granted: instance.spec.resources(),
            nics: Default::default(),
        },
        disk: disk_uid(&instance.uid, 0),
        instance,
        networks: Default::default(),
        volumes: Default::default(),
        env: Default::default(),
        imported: None,
        current: true,
    }
}

/// The order after a change of its spec, as the server hands it out: granted as asked.
pub fn changed(order: &Order, change: impl FnOnce(&mut InstanceSpec)) -> Order {
    let mut order = order.clone();
    change(&mut order.instance.spec);
    order.instance.generation += 1;
    order.assignment.generation = order.instance.generation;
    order.assignment.granted = order.instance.spec.resources();
    order.disk = disk_uid(order.uid(), order.instance.spec.rebuild_count);
    order
}
