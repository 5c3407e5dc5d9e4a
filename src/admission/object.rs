//! What every kind of object shares: its own key in the transaction, and what is told when it cannot be written.

use crate::state::{At, Row, Snapshot, Table, encode_new};
use crate::store::keys::Key;
use crate::store::{Error, Txn};
use enoki_api::error::{Code, Problem};
use enoki_api::object::{Faults, Key as Place, Object, Spec};
use jiff::Timestamp;

/// How deleting ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// The object is gone with the transaction.
    Done,
    /// It stays as `deleting` until a host has confirmed.
    Marked,
}

/// Fills in the defaults that follow from the name, and checks all that can be checked without looking at others.
pub fn complete<S: Spec>(spec: &mut S, name: &str) -> Result<(), Problem> {
    spec.fill(name);
    let mut faults = Faults::default();
    spec.validate(&mut faults);
    faults.into_result()
}

/// Begins the transaction that makes `object`: nothing stands in its place, and its project is as it is now.
pub fn vacant<S: Spec>(snapshot: &Snapshot, table: &Table<S>, object: &Object<S>) -> Result<Txn, Problem> {
    let at = (object.project.clone().unwrap_or_default(), object.name.clone());
    known_project::<S>(snapshot, &at.0)?;
    if let Some(row) = table.at(&at) {
        return Err(taken(&row.object));
    }
    refuse_undecodable::<S>(snapshot, &at)?;
    let mut txn = Txn::new();
    if let Some(project) = &object.project {
        // Unchanged, not only present: its quota may be another.
        let revision = snapshot.projects.get("", project).map_or(0, |row| row.object.revision);
        txn = txn.when_unchanged(key(Key::spec("projects", None, project))?, revision);
    }
    Ok(txn.when_absent(own_key(object)?))
}

/// Ends it.
pub fn made<S: Spec>(object: &Object<S>, txn: Txn) -> Result<Txn, Problem> {
    Ok(txn.put(own_key(object)?, encode_new(object)))
}

/// Begins the transaction that changes or deletes what is there.
pub fn unchanged<S: Spec>(row: &Row<S>) -> Result<Txn, Problem> {
    Ok(Txn::new().when_unchanged(own_key(&row.object)?, row.object.revision))
}

/// Ends one that changes: `new` gets its generation. None: it is as it was, and nothing is to be written.
pub fn changed<S: Spec>(row: &Row<S>, new: &mut Object<S>, txn: Txn) -> Result<Option<Txn>, Problem> {
    if new.spec != row.object.spec {
        new.generation = row.object.generation + 1;
    }
    if *new == row.object {
        return Ok(None);
    }
    Ok(Some(txn.put(own_key(new)?, row.encode(new))))
}

/// Ends one that deletes. With the object as it is from now on, or was last.
pub fn removed<S: Spec>(row: &Row<S>, (txn, deletion): (Txn, Deletion)) -> Result<(Txn, Object<S>), Problem> {
    let mut marked = row.object.clone();
    marked.deleted_at = Some(Timestamp::now());
    let own = own_key(&marked)?;
    let txn = match deletion {
        Deletion::Done => txn.delete(own),
        Deletion::Marked => txn.put(own, row.encode(&marked)),
    };
    Ok((txn, marked))
}

pub(super) fn own_key<S: Spec>(object: &Object<S>) -> Result<String, Problem> {
    key(Key::spec(S::KIND.plural(), object.project.as_deref(), &object.name))
}

/// Keys are made of names that were checked, so this does not fail for what a user can send.
pub fn key(key: Result<Key, Error>) -> Result<String, Problem> {
    key.map(String::from).map_err(|error| Problem::invalid_field("name", error.to_string()))
}

/// The value of a key of its own beside an object's.
pub(super) fn json_of<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(|error| Problem::new(Code::Internal, error.to_string()))
}

/// An object of a project needs the project.
pub fn known_project<S: Spec>(snapshot: &Snapshot, project: &str) -> Result<(), Problem> {
    if S::KIND.in_project() && snapshot.projects.get("", project).is_none() {
        return Err(Problem::not_found(format!("project {project}")));
    }
    Ok(())
}

/// Why there is nothing at this place.
pub fn missing<S: Spec>(snapshot: &Snapshot, at: &At) -> Problem {
    if let Err(problem) = known_project::<S>(snapshot, &at.0) {
        return problem;
    }
    if let Err(problem) = refuse_undecodable::<S>(snapshot, at) {
        return problem;
    }
    let project = if at.0.is_empty() { String::new() } else { format!("{}/", at.0) };
    Problem::not_found(format!("{} {project}{}", S::KIND, at.1))
}

/// What stands in the store and cannot be read is not absent.
fn refuse_undecodable<S: Spec>(snapshot: &Snapshot, at: &At) -> Result<(), Problem> {
    let project = Some(at.0.as_str()).filter(|project| !project.is_empty());
    let key = key(Key::spec(S::KIND.plural(), project, &at.1))?;
    match snapshot.undecodable.get(&key) {
        None => Ok(()),
        Some(why) => {
            Err(Problem::new(Code::Undecodable, format!("{key} is in the store and cannot be read: {why}"))
                .hint(
                    "a newer version may have written it: upgrade this server; nobody acts on it meanwhile",
                ))
        }
    }
}

fn taken<S: Spec>(object: &Object<S>) -> Problem {
    if object.deleted_at.is_some() {
        return Problem::new(Code::Deleting, format!("{} is being deleted", object.key()))
            .hint("try again when it is gone");
    }
    Problem::new(Code::AlreadyExists, format!("{} exists", object.key())).holder(object.uid.to_string())
}

/// What is on its way out does not change any more.
pub fn refuse_deleting<S: Spec>(object: &Object<S>) -> Result<(), Problem> {
    match object.deleted_at {
        Some(_) => Err(Problem::new(Code::Deleting, format!("{} is being deleted", object.key()))),
        None => Ok(()),
    }
}

/// Refuses to delete what others use, and names them.
pub fn refuse_used(place: Place, users: Vec<String>) -> Result<(), Problem> {
    if users.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = users.iter().take(5).map(String::as_str).collect();
    let more = if users.len() > 5 { format!(" and {} more", users.len() - 5) } else { String::new() };
    Err(Problem::new(Code::InUse, format!("{place} is used by {}{more}", shown.join(", ")))
        .holder(users[0].clone()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PROJECT, compares, object, shop, writes};
    use super::*;
    use crate::store::Compare;
    use enoki_api::volume::VolumeSpec;
    use serde_json::json;

    fn volume(name: &str) -> Object<VolumeSpec> {
        object(name, json!({}))
    }

    #[test]
    fn a_new_object_needs_its_place_and_its_project() {
        let mut snapshot = shop(json!({}));
        let txn = vacant(&snapshot, &snapshot.volumes, &volume("more")).unwrap();
        assert!(compares(&txn, Compare::Absent("/enoki/v1/volumes/shop/more".into())), "{txn:?}");
        assert!(compares(&txn, Compare::ModRevision(PROJECT.into(), 3)), "its quota may be another: {txn:?}");
        snapshot.undecodable.insert("/enoki/v1/volumes/shop/strange".into(), "no spec".into());
        let mut leaving = volume("leaving");
        leaving.deleted_at = Some(Timestamp::UNIX_EPOCH);
        snapshot.seed_volume(leaving);
        let mut stray = volume("stray");
        stray.project = Some("nobody's".into());
        for (object, code) in [
            (volume("data"), Code::AlreadyExists),
            (volume("leaving"), Code::Deleting),
            (volume("strange"), Code::Undecodable),
            (stray, Code::NotFound),
        ] {
            let refused = vacant(&snapshot, &snapshot.volumes, &object).unwrap_err();
            assert_eq!(refused.code, code, "{refused}");
        }
    }

    #[test]
    fn what_is_as_it_was_writes_nothing() {
        let snapshot = shop(json!({}));
        let row = snapshot.volumes.get("shop", "data").unwrap();
        let txn = unchanged(row).unwrap();
        assert!(compares(&txn, Compare::ModRevision("/enoki/v1/volumes/shop/data".into(), 5)), "{txn:?}");
        let mut new = row.object.clone();
        assert_eq!(changed(row, &mut new, txn.clone()).unwrap(), None);
        new.labels.insert("tier".into(), "db".into());
        assert!(changed(row, &mut new, txn.clone()).unwrap().is_some());
        assert_eq!(new.generation, 1, "labels are not the spec");
        new.spec.path = Some("/srv".into());
        assert_eq!(writes(&changed(row, &mut new, txn).unwrap().unwrap()), ["+volumes/shop/data"]);
        assert_eq!(new.generation, 2);
    }

    #[test]
    fn what_a_host_has_to_confirm_stays_until_then() {
        let snapshot = shop(json!({}));
        let row = snapshot.volumes.get("shop", "data").unwrap();
        let (txn, _) = removed(row, (unchanged(row).unwrap(), Deletion::Done)).unwrap();
        assert_eq!(writes(&txn), ["-volumes/shop/data"]);
        let (txn, marked) = removed(row, (unchanged(row).unwrap(), Deletion::Marked)).unwrap();
        assert_eq!(writes(&txn), ["+volumes/shop/data"]);
        assert!(marked.deleted_at.is_some());
        assert_eq!(refuse_deleting(&marked).unwrap_err().code, Code::Deleting);
    }

    #[test]
    fn users_are_named_up_to_a_handful() {
        let place = || volume("data").key();
        assert!(refuse_used(place(), Vec::new()).is_ok());
        let users = (0..7).map(|number| format!("instance shop/i{number}")).collect();
        let refused = refuse_used(place(), users).unwrap_err();
        assert_eq!((refused.code, refused.holder.as_deref()), (Code::InUse, Some("instance shop/i0")));
        assert!(refused.detail.ends_with("instance shop/i4 and 2 more"), "{refused}");
    }
}
