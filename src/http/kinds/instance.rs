//! Instances: references that exist, addresses claimed with the spec, changes by their class, tombstones on delete.

use crate::auth::quota::Asked;
use crate::dispatch::orders;
use crate::http::objects::{Deletion, Managed, key};
use crate::http::{App, quota};
use crate::scheduler::{self, Request, Verdict};
use crate::state::{At, Row, Snapshot, Table, release};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::{
    AddressClaim, Change, Doomed, EnvValue, Instance, InstanceSpec, Mac, Tombstone, disk_uid, usable,
};
use enoki_api::object::{Object, Uid};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::net::IpAddr;

impl Managed for InstanceSpec {
    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.instances
    }

    fn present(_app: &App, snapshot: &Snapshot, instance: &mut Object<Self>) {
        let at = (instance.project.clone().unwrap_or_default(), instance.name.clone());
        if let Some(status) = snapshot.instance_status.get(&at) {
            instance.status = (**status).clone();
        }
        if instance.deleted_at.is_some() {
            instance.status.phase = enoki_api::instance::Phase::Deleting;
        }
    }

    fn create(app: &App, snapshot: &Snapshot, instance: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        refuse_orphaned(app, instance)?;
        let txn = resolve(snapshot, instance, txn)?;
        let txn = references(snapshot, instance, txn)?;
        let txn = within_quota(snapshot, None, instance, txn)?;
        claims(app, snapshot, instance, txn)
    }

    fn update(
        _app: &App,
        snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        // These count what Enoki did; an older copy that is sent back does not turn them back.
        new.spec.restart_count = new.spec.restart_count.max(old.object.spec.restart_count);
        new.spec.rebuild_count = old.object.spec.rebuild_count;
        new.spec.resolved.clone_from(&old.object.spec.resolved);
        refuse_unchangeable(&old.object.spec, &new.spec)?;
        let txn = within_quota(snapshot, Some(&old.object.spec), new, txn)?;
        references(snapshot, new, txn)
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        let instance = &row.object;
        let at = row.at();
        let txn = while_placed_so(snapshot, &at, txn)?;
        let host = snapshot.assignments.get(&at).map(|placed| placed.assignment.host.as_str());
        Ok((doom(instance, host, txn)?, Deletion::Marked))
    }

    /// Its keys go at once, its addresses are held, and its tombstones wait for the host.
    fn force(_app: &App, snapshot: &Snapshot, row: &Row<Self>, txn: Txn) -> Result<Option<Txn>, Problem> {
        let instance = &row.object;
        let at = row.at();
        let Some(placed) = snapshot.assignments.get(&at) else { return Ok(None) };
        let host = placed.assignment.host.as_str();
        super::host::refuse_reachable(snapshot, host)?;
        let mut txn = while_placed_so(snapshot, &at, txn)?;
        if instance.deleted_at.is_none() {
            txn = doom(instance, Some(host), txn)?;
        }
        let released = release(snapshot, instance, Timestamp::now(), txn);
        Ok(Some(released.map_err(|error| Problem::new(Code::Internal, error.to_string()))?))
    }

    fn explain(app: &App, snapshot: &Snapshot, instance: &Object<Self>) -> Vec<Verdict> {
        let at = (instance.project.clone().unwrap_or_default(), instance.name.clone());
        let request = Request { at: &at, labels: &instance.labels, spec: &instance.spec };
        scheduler::explain(snapshot, request, &app.policy)
    }

    fn phase(instance: &Object<Self>) -> Option<String> {
        // A phase of an older generation is not what the write asked for.
        let seen =
            instance.status.observed_generation >= instance.generation || instance.deleted_at.is_some();
        Some(if seen { instance.status.phase.to_string() } else { "unobserved".to_owned() })
    }
}

/// Whether and where it is placed must still be so when this is written: tombstones name the host.
fn while_placed_so(snapshot: &Snapshot, at: &At, txn: Txn) -> Result<Txn, Problem> {
    let assignment = key(Key::assignment(&at.0, &at.1))?;
    Ok(match snapshot.assignments.get(at) {
        Some(placed) => txn.when_unchanged(assignment, placed.revision),
        None => txn.when_absent(assignment),
    })
}

/// Adds the orders to destroy an instance and, where it was placed, its root disk.
fn doom(instance: &Instance, host: Option<&str>, txn: Txn) -> Result<Txn, Problem> {
    let tombstone = |uid: Uid, what: Doomed| Tombstone {
        uid,
        what,
        name: format!("{}/{}", instance.project.as_deref().unwrap_or_default(), instance.name),
        host: host.map(str::to_owned),
        created_at: Timestamp::now(),
        buried_at: None,
    };
    let txn = bury(txn, &tombstone(instance.uid.clone(), Doomed::Instance))?;
    let disk = disk_uid(&instance.uid, instance.spec.rebuild_count);
    if host.is_some() { bury(txn, &tombstone(disk, Doomed::Disk)) } else { Ok(txn) }
}

fn within_quota(
    snapshot: &Snapshot,
    before: Option<&InstanceSpec>,
    instance: &Instance,
    txn: Txn,
) -> Result<Txn, Problem> {
    let asked = Asked::Instance { before, wanted: &instance.spec };
    quota::within(snapshot, instance.project.as_deref().unwrap_or_default(), asked, txn)
}

/// Writes down what its image's name means now: a name that moves changes nothing of an instance that is there. It must
/// still mean that when this is written: what nobody needs at that moment is removed.
pub fn resolve(snapshot: &Snapshot, instance: &mut Instance, txn: Txn) -> Result<Txn, Problem> {
    let project = instance.project.as_deref().unwrap_or_default();
    let image = orders::image_of(snapshot, project, &instance.spec.image);
    instance.spec.resolved = image.and_then(|row| row.object.spec.imported());
    let Some(image) = image else { return Ok(txn) };
    let own = key(Key::spec("images", image.object.project.as_deref(), &image.object.name))?;
    Ok(txn.when_unchanged(own, image.object.revision))
}

/// Adds the order to destroy one thing.
pub fn bury(txn: Txn, tombstone: &Tombstone) -> Result<Txn, Problem> {
    let value =
        serde_json::to_vec(tombstone).map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(txn.put(key(Key::tombstone(tombstone.uid.as_str()))?, value))
}

/// A name that an orphan has is held: the orphan may come back.
fn refuse_orphaned(app: &App, instance: &Instance) -> Result<(), Problem> {
    let project = instance.project.as_deref().unwrap_or_default();
    match app.live.orphan_of(project, &instance.name) {
        None => Ok(()),
        Some((host, orphan)) => Err(Problem::new(
            Code::AlreadyExists,
            format!("an orphan on host {host} has the name {}", instance.name),
        )
        .holder(orphan.uid.to_string())
        .hint("`enoki adopt --orphans` takes it back")),
    }
}

/// What an instance names must exist and stay until the write.
fn references(snapshot: &Snapshot, instance: &Instance, mut txn: Txn) -> Result<Txn, Problem> {
    let project = instance.project.as_deref().unwrap_or_default();
    let spec = &instance.spec;
    let unknown = |field: String, what: &str, name: &str| {
        Problem::new(Code::UnknownReference, format!("there is no {what} {name} in project {project}"))
            .field(field)
    };
    let mut needed = BTreeSet::new();
    for (nic, value) in &spec.nics {
        let row =
            snapshot.networks.get(project, &value.network).filter(|row| row.object.deleted_at.is_none());
        let row =
            row.ok_or_else(|| unknown(format!("spec.nics.{nic}.network"), "network", &value.network))?;
        if let Some(address) = value.address {
            let network = &row.object.spec;
            usable(&network.cidr, address, network.gateway_address())
                .map_err(|problem| problem.field(format!("spec.nics.{nic}.address")))?;
        }
        needed.insert(key(Key::spec("networks", Some(project), &value.network))?);
    }
    for (path, mount) in &spec.mounts {
        let row = snapshot.volumes.get(project, &mount.volume).filter(|row| row.object.deleted_at.is_none());
        row.ok_or_else(|| unknown(format!("spec.mounts.{path}.volume"), "volume", &mount.volume))?;
        needed.insert(key(Key::spec("volumes", Some(project), &mount.volume))?);
    }
    for (name, value) in &spec.env {
        let EnvValue::Secret(from) = value else { continue };
        let row = snapshot.secrets.get(project, &from.secret);
        let row = row.ok_or_else(|| unknown(format!("spec.env.{name}.secret"), "secret", &from.secret))?;
        if !row.object.spec.data.contains_key(&from.key) {
            return Err(unknown(
                format!("spec.env.{name}.key"),
                &format!("key in secret {}:", from.secret),
                &from.key,
            ));
        }
    }
    for key in needed {
        txn = txn.when_present(key);
    }
    Ok(txn)
}

/// Claims the fixed addresses, each a key that only one instance can make.
fn claims(app: &App, snapshot: &Snapshot, instance: &Instance, mut txn: Txn) -> Result<Txn, Problem> {
    let at: At = (instance.project.clone().unwrap_or_default(), instance.name.clone());
    let mut own = BTreeSet::new();
    for (nic, value) in &instance.spec.nics {
        let Some(address) = value.address else { continue };
        let field = format!("spec.nics.{nic}.address");
        let taken = |holder: String| {
            Problem::new(Code::AddressTaken, format!("{address} on network {} is taken", value.network))
                .field(&field)
                .holder(holder)
        };
        if !own.insert((value.network.clone(), address)) {
            return Err(taken(format!("{}/{}", at.0, at.1)));
        }
        let orphan = app.live.held_by_orphan(|orphan| {
            let nics = orphan.order.iter().flat_map(|order| order.assignment.nics.values());
            orphan.project == at.0
                && nics.into_iter().any(|n| n.network == value.network && n.address == address)
        });
        if let Some((host, orphan)) = orphan {
            return Err(taken(format!("the orphan {}/{} on host {host}", orphan.project, orphan.name)));
        }
        let address_key = key(Key::address(&at.0, &value.network, address.into()))?;
        let held = snapshot.addresses.get(&(at.0.clone(), value.network.clone(), IpAddr::from(address)));
        txn = match held {
            None => txn.when_absent(address_key.clone()),
            // Hold-down is against automatic use only: the same project may name the address at once.
            Some(entry) if entry.0.held_until.is_some() => txn.when_unchanged(address_key.clone(), entry.1),
            Some(entry) => return Err(taken(entry.0.instance.clone())),
        };
        let claim = AddressClaim {
            instance: format!("{}/{}", at.0, at.1),
            uid: instance.uid.clone(),
            mac: value.mac.unwrap_or_else(|| Mac::derive(&instance.uid, nic)),
            since: Timestamp::now(),
            held_until: None,
        };
        let value =
            serde_json::to_vec(&claim).map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        txn = txn.put(address_key, value);
    }
    Ok(txn)
}

/// Live and restart fields change; rebuild and immutable ones are told.
fn refuse_unchangeable(old: &InstanceSpec, new: &InstanceSpec) -> Result<(), Problem> {
    for (field, change) in old.changes(new) {
        let field = format!("spec.{field}");
        match change {
            Change::Live | Change::Restart => {}
            Change::Rebuild => {
                return Err(Problem::new(
                    Code::NeedsRebuild,
                    format!("{field} changes only with a new disk"),
                )
                .field(field)
                .hint("`enoki rebuild NAME --image IMAGE` discards the disk and starts from the image"));
            }
            Change::Immutable => {
                return Err(Problem::new(Code::ImmutableField, format!("{field} stays as it was made"))
                    .field(field)
                    .hint("delete the instance and make it anew"));
            }
        }
    }
    match (old.disk_size, new.disk_size) {
        (Some(old), Some(new)) if new < old => Err(Problem::invalid_field(
            "spec.disk_size",
            format!("a disk grows and does not shrink: it has {old}"),
        )),
        (None, Some(_)) | (Some(_), None) => Err(Problem::new(
            Code::ImmutableField,
            "whether a disk has a size of its own is decided when it is made",
        )
        .field("spec.disk_size")),
        _ => Ok(()),
    }
}
