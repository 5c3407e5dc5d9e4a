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

#[cfg(test)]
mod tests {
    use super::super::tests::{PROJECT, compares, shop, web, writes};
    use super::*;
    use crate::store::Compare;
    use enoki_api::error::Code;
    use serde_json::json;

    const GUARD: &str = "/enoki/v1/quotas/shop";

    #[test]
    fn what_nothing_bounds_costs_a_compare_and_no_write() {
        for quota in [json!({}), json!({"volumes": 1})] {
            let txn = within(&shop(quota), "shop", Asked::Network, Txn::new()).unwrap();
            assert_eq!(txn.compares, [Compare::ModRevision(PROJECT.into(), 3)]);
            assert!(txn.ops.is_empty(), "{txn:?}");
        }
        let web = web(json!({"cpus": "1"})).spec;
        let same = Asked::Instance { before: Some(&web), wanted: &web };
        assert_eq!(within(&shop(json!({"cpus": "0.1"})), "shop", same, Txn::new()).unwrap(), Txn::new());
    }

    #[test]
    fn of_two_that_grow_what_is_bounded_one_loses() {
        let mut snapshot = shop(json!({"networks": 2}));
        let txn = within(&snapshot, "shop", Asked::Network, Txn::new()).unwrap();
        assert!(compares(&txn, Compare::Absent(GUARD.into())), "{txn:?}");
        assert_eq!(writes(&txn), ["+quotas/shop"]);
        snapshot.guards.insert(GUARD.into(), 8);
        let txn = within(&snapshot, "shop", Asked::Network, Txn::new()).unwrap();
        assert!(compares(&txn, Compare::ModRevision(GUARD.into(), 8)), "{txn:?}");
        let full = within(&shop(json!({"networks": 1})), "shop", Asked::Network, Txn::new()).unwrap_err();
        assert_eq!(full.code, Code::QuotaExceeded);
        let none = within(&snapshot, "nobody's", Asked::Network, Txn::new()).unwrap_err();
        assert_eq!(none.code, Code::NotFound);
    }

    #[test]
    fn what_is_never_refused_is_still_counted_in() {
        assert_eq!(counted(&shop(json!({})), "shop", Txn::new()).unwrap(), Txn::new());
        let txn = counted(&shop(json!({"networks": 0})), "shop", Txn::new()).unwrap();
        assert_eq!((writes(&txn), txn.compares.len()), (vec!["+quotas/shop".to_owned()], 0));
    }
}
