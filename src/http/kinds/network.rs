//! Networks: who may make which, and how many of their addresses are used.

use crate::admission::{Deletion, network};
use crate::http::App;
use crate::http::objects::Managed;
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use enoki_api::error::Problem;
use enoki_api::network::{Gateway, NetworkKind, NetworkSpec, NetworkStatus};
use enoki_api::object::Object;
use jiff::Timestamp;

impl Managed for NetworkSpec {
    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.networks
    }

    fn present(_app: &App, snapshot: &Snapshot, network: &mut Object<Self>) {
        let project = network.project.as_deref().unwrap_or_default();
        let spec = &network.spec;
        let gateway = u64::from(spec.gateway_address().is_some());
        let hosts = (1u64 << (32 - spec.cidr.prefix_len())).saturating_sub(2);
        let now = Timestamp::now();
        let used = snapshot.claims(project, &network.name).filter(|(_, entry)| snapshot.holds(&entry.0, now));
        network.status =
            NetworkStatus { addresses: hosts.saturating_sub(gateway), used: used.count() as u64 };
    }

    fn for_admins(old: Option<&Self>, new: &Self) -> Option<&'static str> {
        match old {
            // All of it is immutable: what is there was allowed.
            Some(_) => None,
            None if new.kind == NetworkKind::Vlan => Some("spec.type"),
            None if new.gateway == Gateway::Host => Some("spec.gateway"),
            None if new.segment.is_some() => Some("spec.segment"),
            None => None,
        }
    }

    fn create(_app: &App, snapshot: &Snapshot, network: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        network::create(snapshot, network, txn)
    }

    fn update(
        _app: &App,
        _snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        network::update(old, new, txn)
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        network::delete(snapshot, row, txn)
    }
}
