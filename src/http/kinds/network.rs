//! Networks: no two ranges overlap, none goes while an instance is on it.

use crate::http::App;
use crate::http::objects::{Deletion, Managed, key};
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::network::{Gateway, Network, NetworkKind, NetworkSpec, NetworkStatus};
use enoki_api::object::Object;
use ipnet::Ipv4Net;
use jiff::Timestamp;

/// Every write of a network compares and writes this key: that no two ranges overlap cannot be said by a key each.
const GUARD: (&str, u32) = ("guard", 0);

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
        let used = snapshot
            .claims(project, &network.name)
            .filter(|(_, c)| c.0.held_until.is_none_or(|until| until > now));
        network.status =
            NetworkStatus { addresses: hosts.saturating_sub(gateway), used: used.count() as u64 };
    }

    fn for_admins(old: Option<&Self>, new: &Self) -> Option<&'static str> {
        match old {
            // All of it is immutable: what is there was allowed.
            Some(_) => None,
            None if new.kind == NetworkKind::Vlan => Some("spec.type"),
            None if new.gateway == Gateway::Host => Some("spec.gateway"),
            None => None,
        }
    }

    fn create(_app: &App, snapshot: &Snapshot, network: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        if let Some(other) = overlapping(snapshot, &network.spec.cidr) {
            let detail = format!("{} overlaps {} of {}", network.spec.cidr, other.spec.cidr, other.key());
            return Err(Problem::new(Code::CidrTaken, detail)
                .field("spec.cidr")
                .holder(other.key().to_string()));
        }
        guarded(snapshot, txn)
    }

    fn update(
        _app: &App,
        _snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        if old.object.spec != new.spec {
            return Err(Problem::new(
                Code::ImmutableField,
                "a network stays as it was made: instances hold its addresses",
            )
            .field("spec")
            .hint("make another network"));
        }
        Ok(txn)
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        super::refuse_used(row.place(), users(snapshot, &row.object))?;
        Ok((gone(snapshot, &row.object, txn)?, Deletion::Done))
    }
}

/// The network whose range shares an address with `cidr`.
pub fn overlapping<'a>(snapshot: &'a Snapshot, cidr: &Ipv4Net) -> Option<&'a Network> {
    let overlaps = |other: &Ipv4Net| other.contains(&cidr.network()) || cidr.contains(&other.network());
    snapshot.networks.of(None).map(|row| &row.object).find(|network| overlaps(&network.spec.cidr))
}

/// Makes sure that no other network was written since the snapshot.
pub fn guarded(snapshot: &Snapshot, txn: Txn) -> Result<Txn, Problem> {
    let guard = key(Key::segment(GUARD.0, GUARD.1))?;
    let txn = match snapshot.guards.get(&guard) {
        None => txn.when_absent(guard.clone()),
        Some(revision) => txn.when_unchanged(guard.clone(), *revision),
    };
    Ok(txn.put(guard, "{}"))
}

fn users(snapshot: &Snapshot, network: &Network) -> Vec<String> {
    let instances = snapshot.instances.of(network.project.as_deref());
    let on_it = instances.filter(|row| row.object.spec.nics.values().any(|nic| nic.network == network.name));
    on_it.map(|row| row.place().to_string()).collect()
}

/// A network goes with the addresses that are only held down on it.
pub fn gone(snapshot: &Snapshot, network: &Network, txn: Txn) -> Result<Txn, Problem> {
    let project = network.project.as_deref().unwrap_or_default();
    let mut txn = guarded(snapshot, txn)?;
    // A transaction has room for these; what is beyond expires by itself.
    for (address, _) in snapshot.claims(project, &network.name).take(64) {
        txn = txn.delete(key(Key::address(project, &network.name, address))?);
    }
    Ok(txn)
}
