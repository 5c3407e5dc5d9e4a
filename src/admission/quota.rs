//! A project's quota in the transaction of what grows it: of two writes that were planned side by side, on one server
//! or on two, one loses the compare and is planned anew with the other counted in.

use super::object::{key, missing};
use crate::auth::quota::{Asked, check, used};
use crate::state::Snapshot;
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::Problem;
use enoki_api::project::{ProjectSpec, Quota};

/// Refuses what is beyond the project's quota, and makes sure that it still holds when this is written. Where nothing
/// that is asked has a bound, this costs a compare of the project and no write.
pub fn within(snapshot: &Snapshot, project: &str, asked: Asked<'_>, txn: Txn) -> Result<Txn, Problem> {
    if !asked.is_growth() {
        return Ok(txn);
    }
    let at = (String::new(), project.to_owned());
    let row = snapshot.projects.at(&at).ok_or_else(|| missing::<ProjectSpec>(snapshot, &at))?;
    let quota = &row.object.spec.quota;
    // A quota that is set or lowered meanwhile counts.
    let txn = txn.when_unchanged(key(Key::spec("projects", None, project))?, row.object.revision);
    if !asked.concerns(quota) {
        return Ok(txn);
    }
    check(project, quota, &used(snapshot, project), asked)?;
    let guard = key(Key::quota(project))?;
    let txn = match snapshot.guards.get(&guard) {
        None => txn.when_absent(guard.clone()),
        Some(revision) => txn.when_unchanged(guard.clone(), *revision),
    };
    Ok(txn.put(guard, "{}"))
}

/// Of a write that grows a project and is never refused: others that are planned beside it count it in.
pub fn counted(snapshot: &Snapshot, project: &str, txn: Txn) -> Result<Txn, Problem> {
    let quota = snapshot.projects.get("", project).map(|row| &row.object.spec.quota);
    match quota.is_none_or(Quota::is_empty) {
        true => Ok(txn),
        false => Ok(txn.put(key(Key::quota(project))?, "{}")),
    }
}
