//! Instances: what they name exists, addresses are claimed with the spec, changes go by their class, and what is
//! destroyed gets its tombstone.

use super::addresses::claims;
use super::object::own_key;
use super::references::references;
use super::tombstone::{bury, refuse_reachable};
use super::{Deletion, key, quota, refuse_deleting, unchanged};
use crate::auth::quota::Asked;
use crate::dispatch::{Live, orders};
use crate::state::{At, Row, Snapshot, release};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::instance::{Change, Doomed, Instance, InstanceSpec, disk_uid};
use jiff::Timestamp;

/// Makes sure of all that a new instance names, writes down what its image's name means now, and claims its fixed
/// addresses. Of `live`: what orphans have is held, for they may come back.
pub fn create(snapshot: &Snapshot, live: &Live, instance: &mut Instance, txn: Txn) -> Result<Txn, Problem> {
    refuse_orphaned(live, instance)?;
    let txn = resolve(snapshot, instance, txn)?;
    let txn = references(snapshot, instance, txn)?;
    let txn = within_quota(snapshot, None, instance, txn)?;
    claims(snapshot, live, instance, txn)
}

/// Refuses what is not changed in place, and makes sure of what the instance names now.
pub fn update(
    snapshot: &Snapshot,
    old: &Row<InstanceSpec>,
    new: &mut Instance,
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

/// The whole transaction of a new disk from `image`: the old one gets its tombstone. With the instance as it will be.
pub fn rebuild(
    snapshot: &Snapshot,
    old: &Row<InstanceSpec>,
    image: &str,
) -> Result<(Txn, Instance), Problem> {
    refuse_deleting(&old.object)?;
    let mut new = old.object.clone();
    new.spec.image = image.to_owned();
    new.spec.rebuild_count += 1;
    new.generation += 1;
    let txn = resolve(snapshot, &mut new, unchanged(old)?)?;
    // Whether there is a disk to discard, and where, must still be so when this is written.
    let at = old.at();
    let txn = while_placed_so(snapshot, &at, txn)?;
    let txn = doom_disk(&old.object, host_of(snapshot, &at), txn)?;
    Ok((txn.put(own_key(&new)?, old.encode(&new)), new))
}

/// Adds the tombstones of the instance and, where it was placed, of its root disk.
pub fn delete(snapshot: &Snapshot, row: &Row<InstanceSpec>, txn: Txn) -> Result<(Txn, Deletion), Problem> {
    let at = row.at();
    let txn = while_placed_so(snapshot, &at, txn)?;
    Ok((doom(&row.object, host_of(snapshot, &at), txn)?, Deletion::Marked))
}

/// Its keys go at once, its addresses are held, and its tombstones wait for the host. None: it has no host.
pub fn force(snapshot: &Snapshot, row: &Row<InstanceSpec>, txn: Txn) -> Result<Option<Txn>, Problem> {
    let instance = &row.object;
    let at = row.at();
    let Some(host) = host_of(snapshot, &at) else { return Ok(None) };
    refuse_reachable(snapshot, host)?;
    let mut txn = while_placed_so(snapshot, &at, txn)?;
    if instance.deleted_at.is_none() {
        txn = doom(instance, Some(host), txn)?;
    }
    let released = release(snapshot, instance, Timestamp::now(), txn);
    Ok(Some(released.map_err(|error| Problem::new(Code::Internal, error.to_string()))?))
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

/// A name that an orphan has is held: the orphan may come back.
fn refuse_orphaned(live: &Live, instance: &Instance) -> Result<(), Problem> {
    let project = instance.project.as_deref().unwrap_or_default();
    match live.orphan_of(project, &instance.name) {
        None => Ok(()),
        Some((host, orphan)) => Err(Problem::new(
            Code::AlreadyExists,
            format!("an orphan on host {host} has the name {}", instance.name),
        )
        .holder(orphan.uid.to_string())
        .hint("`enoki adopt --orphans` takes it back")),
    }
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

fn host_of<'a>(snapshot: &'a Snapshot, at: &At) -> Option<&'a str> {
    snapshot.assignments.get(at).map(|placed| placed.assignment.host.as_str())
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
    let txn = bury(instance, instance.uid.clone(), Doomed::Instance, host, txn)?;
    doom_disk(instance, host, txn)
}

/// Adds the order to destroy its root disk. It has one only where it was placed.
fn doom_disk(instance: &Instance, host: Option<&str>, txn: Txn) -> Result<Txn, Problem> {
    let disk = disk_uid(&instance.uid, instance.spec.rebuild_count);
    if host.is_some() { bury(instance, disk, Doomed::Disk, host, txn) } else { Ok(txn) }
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
