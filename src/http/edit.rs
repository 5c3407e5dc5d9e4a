//! Changing an object: read, change, compare, write; what is not known here survives.

use super::App;
use super::answer::Answer;
use super::commit::{Done, Step, commit};
use super::objects::{Managed, Options, finish, plan};
use crate::admission::{changed, missing, refuse_deleting, unchanged};
use crate::state::{At, Row, Snapshot};
use axum::http::StatusCode;
use enoki_api::error::{Code, Problem};
use enoki_api::object::{Object, Owner, Spec};

/// How a change is made.
pub struct Edit {
    /// The revision it must still have. None: any.
    pub expected: Option<u64>,
    pub options: Options,
    /// The status of a good answer.
    pub done: StatusCode,
}

/// `If-Match` against what is there.
pub fn expect<S: Spec>(row: &Row<S>, expected: Option<u64>) -> Result<(), Problem> {
    match expected {
        Some(expected) if expected != row.object.revision => Err(Problem::new(
            Code::StaleRevision,
            format!("{} is at revision {}, not {expected}", row.object.key(), row.object.revision),
        )
        .hint("read it again and decide anew")),
        _ => Ok(()),
    }
}

/// What has an owner goes through its owner, for as long as that is there: then it is its project's, like all else.
pub fn refuse_owned<S: Spec>(snapshot: &Snapshot, row: &Row<S>) -> Result<(), Problem> {
    let there = |owner: &&Owner| snapshot.has_owner(row.object.project.as_deref(), owner);
    match row.object.owner.as_ref().filter(there) {
        Some(owner) => Err(Problem::new(
            Code::Owned,
            format!("{} belongs to {} {}", row.object.key(), owner.kind, owner.name),
        )
        .holder(format!("{} {}", owner.kind, owner.name))
        .hint(format!("change or delete that: `enoki describe {} {}`", owner.kind, owner.name))),
        None => Ok(()),
    }
}

/// Applies `change` to the object as it is, again where somebody else was faster. An equal object writes nothing.
pub async fn run<K: Managed>(
    app: &App,
    at: At,
    edit: Edit,
    change: impl Fn(&Object<K>) -> Result<Object<K>, Problem>,
) -> Answer {
    let planned = commit(app, &at, |snapshot| {
        let row = K::table(snapshot).at(&at).ok_or_else(|| missing::<K>(snapshot, &at))?;
        expect(row, edit.expected)?;
        refuse_owned(snapshot, row)?;
        let old = &row.object;
        refuse_deleting(old)?;
        let mut new = change(old)?;
        edit.options.may_set(Some(&old.spec), &new.spec)?;
        let txn = K::update(app, snapshot, row, &mut new, unchanged(row)?)?;
        let txn = changed(row, &mut new, txn)?;
        if edit.options.dry_run {
            return Ok(Step::Nothing(Err(plan(app, snapshot, new))));
        }
        Ok(match txn {
            None => Step::Nothing(Ok(old.uid.clone())),
            Some(txn) => Step::Write(txn, new),
        })
    })
    .await?;
    let uid = match planned {
        Done::Nothing(Err(plan)) => return Ok(plan),
        Done::Nothing(Ok(uid)) => uid,
        Done::Written(new) => {
            let message = format!("generation {}", new.generation);
            app.events.note(&new.key(), Some(&new.uid), false, "changed", message);
            new.uid
        }
    };
    finish::<K>(app, &at, &uid, edit.done, edit.options.wait).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::cluster::ClusterSpec;
    use enoki_api::object::Kind;
    use enoki_api::volume::VolumeSpec;
    use jiff::Timestamp;
    use serde_json::json;

    fn made<S: Spec>(project: &str, name: &str, spec: serde_json::Value) -> Object<S> {
        let spec = serde_json::from_value(spec).unwrap();
        Object::new(Some(project), name, Default::default(), spec, Timestamp::UNIX_EPOCH)
    }

    fn lake(project: &str) -> Object<ClusterSpec> {
        made(project, "lake", json!({"version": "4.0.1"}))
    }

    /// What a user is told who would change the master's volume.
    fn refused(snapshot: &Snapshot) -> Option<Problem> {
        refuse_owned(snapshot, snapshot.volumes.get("shop", "lake-master").unwrap()).err()
    }

    #[test]
    fn an_owner_that_is_gone_holds_nothing() {
        let owner = lake("shop");
        let mut volume = made::<VolumeSpec>("shop", "lake-master", json!({}));
        volume.owner = Some(Owner { kind: Kind::Cluster, name: owner.name.clone(), uid: owner.uid.clone() });
        let mut snapshot = Snapshot::default();
        snapshot.seed_volume(volume.clone());
        assert!(refused(&snapshot).is_none(), "its owner is gone");
        let mut elsewhere = lake("other");
        elsewhere.uid = owner.uid.clone();
        snapshot.seed_cluster(elsewhere);
        snapshot.seed_cluster(lake("shop"));
        assert!(refused(&snapshot).is_none(), "these are others, of the same name");
        snapshot.seed_cluster(owner);
        let told = refused(&snapshot).expect("its owner is there");
        assert_eq!((told.code, told.holder.as_deref()), (Code::Owned, Some("cluster lake")));
        volume.owner = None;
        snapshot.seed_volume(volume);
        assert!(refused(&snapshot).is_none(), "it has no owner");
    }

    #[test]
    fn an_owner_that_cannot_be_read_is_there() {
        let mut volume = made::<VolumeSpec>("shop", "lake-master", json!({}));
        volume.owner = Some(Owner { kind: Kind::Cluster, name: "lake".into(), uid: lake("shop").uid });
        let mut snapshot = Snapshot::default();
        snapshot.seed_volume(volume);
        snapshot.undecodable.insert("/enoki/v1/clusters/shop/pond".into(), "no version".into());
        assert!(refused(&snapshot).is_none());
        snapshot.undecodable.insert("/enoki/v1/clusters/shop/lake".into(), "no version".into());
        assert!(refused(&snapshot).is_some());
    }
}
