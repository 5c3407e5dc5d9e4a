//! Hosts: made by their agents; users label, cordon and forget them.

use crate::admission::{Deletion, key, refuse_used};
use crate::http::App;
use crate::http::objects::Managed;
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::error::{Code, Problem};
use enoki_api::host::{HostPhase, HostSpec};
use enoki_api::object::Object;

impl Managed for HostSpec {
    const MADE_BY_USERS: bool = false;

    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.hosts
    }

    fn present(app: &App, snapshot: &Snapshot, host: &mut Object<Self>) {
        if let Some(status) = snapshot.host_status.get(&host.name) {
            host.status = (**status).clone();
        }
        host.status.granted = snapshot.granted.get(&host.name).copied().unwrap_or_default();
        host.status.last_seen_at = app.live.host(&host.name).map(|view| view.seen_at);
    }

    fn update(
        _app: &App,
        snapshot: &Snapshot,
        old: &Row<Self>,
        new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        match super::operation::drain_of(snapshot, &new.name) {
            Some(running) if old.object.spec.cordoned && !new.spec.cordoned => {
                Err(super::operation::under_way(running))
            }
            Some(_) | None => Ok(txn),
        }
    }

    fn delete(
        _app: &App,
        snapshot: &Snapshot,
        row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        let name = &row.object.name;
        let here = snapshot.by_host.get(name).into_iter().flatten();
        refuse_used(row.place(), here.map(|at| format!("instance {}/{}", at.0, at.1)).collect()).map_err(
            |problem| {
                problem.hint(
                    "delete or force them first: `enoki delete instance NAME --force` where the host is lost",
                )
            },
        )?;
        let phase = snapshot.host_status.get(name).map(|status| status.phase);
        if matches!(phase, Some(HostPhase::Ready | HostPhase::Degraded)) {
            return Err(Problem::new(Code::InUse, format!("host {name} is alive and would join again"))
                .hint("stop its agent first"));
        }
        Ok((txn.delete(key(Key::status("hosts", None, name))?), Deletion::Done))
    }

    fn phase(host: &Object<Self>) -> Option<String> {
        let value = serde_json::to_value(host.status.phase).ok()?;
        value.as_str().map(str::to_owned)
    }
}
