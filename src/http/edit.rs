//! Changing an object: read, change, compare, write; what is not known here survives.

use super::App;
use super::answer::Answer;
use super::commit::{Done, Step, commit};
use super::objects::{Managed, Options, finish, plan};
use crate::admission::{changed, missing, refuse_deleting, unchanged};
use crate::state::{At, Row};
use axum::http::StatusCode;
use enoki_api::error::{Code, Problem};
use enoki_api::object::{Object, Spec};

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

/// What has an owner goes through its owner.
pub fn refuse_owned<S: Spec>(row: &Row<S>) -> Result<(), Problem> {
    match &row.object.owner {
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
        refuse_owned(row)?;
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
