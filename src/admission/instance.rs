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

#[cfg(test)]
mod tests {
    use super::super::tests::{compares, object, place, shop, tombstones, web, writes};
    use super::*;
    use crate::store::Compare;
    use enoki_api::host::HostPhase;
    use enoki_api::object::Uid;
    use enoki_api::protocol::Orphan;
    use enoki_api::quantity::{Bytes, MilliCpu};
    use serde_json::json;
    use std::sync::Arc;

    const ASSIGNMENT: &str = "/enoki/v1/assignments/shop/web1";

    /// The project's one instance, and where it is: on host h1 in this phase, or nowhere.
    fn with_web(phase: Option<HostPhase>) -> (Snapshot, Arc<Row<InstanceSpec>>) {
        let mut snapshot = shop(json!({}));
        let web = web(json!({"disk_size": "1Gi", "nics": {"eth0": {"network": "blue"}}}));
        if let Some(phase) = phase {
            place(&mut snapshot, &web, "h1", phase);
        }
        snapshot.seed_instance(web);
        let row = row(&snapshot);
        (snapshot, row)
    }

    fn row(snapshot: &Snapshot) -> Arc<Row<InstanceSpec>> {
        snapshot.instances.get("shop", "web1").unwrap().clone()
    }

    /// The same on its way out.
    fn leaving(mut snapshot: Snapshot) -> Snapshot {
        let mut leaving = row(&snapshot).object.clone();
        leaving.deleted_at = Some(Timestamp::UNIX_EPOCH);
        snapshot.seed_instance(leaving);
        snapshot
    }

    /// The tombstones of all of it, on host h1.
    fn doomed(instance: &Instance) -> [(Doomed, Uid, Option<String>); 2] {
        let host = Some("h1".to_owned());
        let disk = disk_uid(&instance.uid, instance.spec.rebuild_count);
        [(Doomed::Instance, instance.uid.clone(), host.clone()), (Doomed::Disk, disk, host)]
    }

    #[test]
    fn an_orphans_name_is_held() {
        let live = Live::default();
        let made = |name: &str| {
            let mut instance = object(name, json!({"image": "web:1", "nics": {}}));
            create(&shop(json!({})), &live, &mut instance, Txn::new())
        };
        let uid = Uid::random();
        let orphan = json!({"project": "shop", "name": "web1", "uid": uid, "phase": "running"});
        live.seed_orphans("h1", vec![serde_json::from_value::<Orphan>(orphan).unwrap()]);
        let refused = made("web1").unwrap_err();
        assert_eq!((refused.code, refused.holder), (Code::AlreadyExists, Some(uid.to_string())));
        assert!(made("web2").is_ok());
    }

    #[test]
    fn what_the_image_means_is_written_down_and_still_so_then() {
        let snapshot = shop(json!({}));
        let mut instance = web(json!({}));
        let txn = resolve(&snapshot, &mut instance, Txn::new()).unwrap();
        assert_eq!(instance.spec.resolved.as_ref().map(|image| image.digest.as_str()), Some("sha256:2"));
        assert!(compares(&txn, Compare::ModRevision("/enoki/v1/images/shop/web:1".into(), 5)), "{txn:?}");
        instance.spec.image = "elsewhere:1".into();
        assert_eq!(resolve(&snapshot, &mut instance, Txn::new()).unwrap(), Txn::new());
        assert_eq!(instance.spec.resolved, None);
    }

    #[test]
    fn an_older_copy_does_not_turn_back_what_was_done() {
        let (mut snapshot, older) = with_web(None);
        let mut now = older.object.clone();
        (now.spec.restart_count, now.spec.rebuild_count) = (3, 2);
        resolve(&snapshot, &mut now, Txn::new()).unwrap();
        snapshot.seed_instance(now.clone());
        let mut new = older.object.clone();
        update(&snapshot, &row(&snapshot), &mut new, Txn::new()).unwrap();
        assert_eq!(new.spec, now.spec);
    }

    #[test]
    fn changes_go_by_their_class() {
        let (snapshot, row) = with_web(None);
        let code = |change: &dyn Fn(&mut InstanceSpec)| {
            let mut new = row.object.clone();
            change(&mut new.spec);
            update(&snapshot, &row, &mut new, Txn::new()).err().map(|refused| refused.code)
        };
        assert_eq!(code(&|spec| spec.cpus = Some(MilliCpu(500))), None);
        assert_eq!(code(&|spec| spec.image = "other:1".into()), Some(Code::NeedsRebuild));
        assert_eq!(code(&|spec| spec.disk_size = Some(Bytes(2 << 30))), None, "a disk grows");
        assert_eq!(code(&|spec| spec.disk_size = Some(Bytes(1 << 20))), Some(Code::InvalidField));
        assert_eq!(code(&|spec| spec.disk_size = None), Some(Code::ImmutableField));
    }

    #[test]
    fn what_is_destroyed_gets_its_tombstone_where_it_is() {
        let (snapshot, row) = with_web(Some(HostPhase::Ready));
        let (txn, deletion) = delete(&snapshot, &row, Txn::new()).unwrap();
        assert_eq!(deletion, Deletion::Marked);
        assert_eq!(tombstones(&txn), doomed(&row.object));
        assert!(compares(&txn, Compare::ModRevision(ASSIGNMENT.into(), 9)), "{txn:?}");
        let (snapshot, row) = with_web(None);
        let (txn, _) = delete(&snapshot, &row, Txn::new()).unwrap();
        assert_eq!(tombstones(&txn), [(Doomed::Instance, row.object.uid.clone(), None)], "it has no disk");
        assert!(compares(&txn, Compare::Absent(ASSIGNMENT.into())), "not placed meanwhile: {txn:?}");
    }

    #[test]
    fn a_rebuild_destroys_the_old_disk_alone() {
        let (snapshot, old) = with_web(Some(HostPhase::Ready));
        let (txn, new) = rebuild(&snapshot, &old, "web:1").unwrap();
        assert_eq!(tombstones(&txn), doomed(&old.object)[1..]);
        assert_eq!((new.spec.rebuild_count, new.generation), (1, 2));
        assert!(compares(&txn, Compare::ModRevision(ASSIGNMENT.into(), 9)), "{txn:?}");
        let own = Compare::ModRevision("/enoki/v1/instances/shop/web1".into(), 5);
        assert!(compares(&txn, own) && writes(&txn).contains(&"+instances/shop/web1".to_owned()), "{txn:?}");
        let (snapshot, old) = with_web(None);
        let (txn, _) = rebuild(&snapshot, &old, "web:1").unwrap();
        assert_eq!(writes(&txn), ["+instances/shop/web1"], "there is no disk yet");
        let snapshot = leaving(snapshot);
        assert_eq!(rebuild(&snapshot, &row(&snapshot), "web:1").unwrap_err().code, Code::Deleting);
    }

    #[test]
    fn force_goes_past_a_host_only_when_that_is_silent() {
        let (snapshot, old) = with_web(None);
        assert_eq!(force(&snapshot, &old, Txn::new()).unwrap(), None);
        let (snapshot, old) = with_web(Some(HostPhase::Degraded));
        let refused = force(&snapshot, &old, Txn::new()).unwrap_err();
        assert_eq!((refused.code, refused.holder.as_deref()), (Code::HostReachable, Some("h1")));
        let (snapshot, old) = with_web(Some(HostPhase::Lost));
        let txn = force(&snapshot, &old, Txn::new()).unwrap().unwrap();
        assert_eq!(tombstones(&txn), doomed(&old.object));
        let keys = ["-status/instances/shop/web1", "-assignments/shop/web1"];
        assert_eq!(writes(&txn)[2..], keys);
        let snapshot = leaving(snapshot);
        let txn = force(&snapshot, &row(&snapshot), Txn::new()).unwrap().unwrap();
        assert_eq!(writes(&txn), keys, "its tombstones are there already");
    }
}
