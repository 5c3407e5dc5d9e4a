//! Hosts: made when their agent first says hello, shown as they are.

use super::Leader;
use crate::dispatch::{HostView, Windows};
use crate::state::encode_new;
use crate::store::Txn;
use crate::store::keys::Key;
use enoki_api::host::{Capacity, Host, HostPhase, HostSpec, HostStatus};
use enoki_api::object::{Kind, Object};
use jiff::Timestamp;
use std::time::Duration;

/// Brings every host's stored status to what is seen. An unchanged host writes nothing.
pub(super) async fn tend(leader: &Leader) {
    let context = &leader.context;
    let snapshot = context.state.snapshot();
    let mut names = context.live.host_names();
    names.extend(snapshot.hosts.of(None).map(|row| row.object.name.clone()));
    names.sort();
    names.dedup();
    let windows = context.live.windows();
    for name in names {
        let view = context.live.host(&name);
        let row = snapshot.hosts.get("", &name);
        let stored = snapshot.host_status.get(&name).map(|status| &**status);
        let mut txn = Txn::new();
        let Ok(spec_key) = Key::spec("hosts", None, &name).map(String::from) else { continue };
        let Ok(status_key) = Key::status("hosts", None, &name).map(String::from) else { continue };
        match (row, &view) {
            (None, None) => continue,
            (None, Some(view)) if !says_hello(view, windows) => continue,
            (None, Some(view)) => {
                let host = made(&name, view);
                txn = txn.when_absent(spec_key.clone()).put(spec_key, encode_new(&host));
                context.events.note(&host.key(), Some(&host.uid), false, "joined", "its agent said hello");
            }
            (Some(_), _) => txn = txn.when_present(spec_key),
        }
        let status = status(stored, view.as_ref(), context.live.listening_for(), windows);
        let Some(status) = status else { continue };
        if row.is_some() && stored == Some(&status) {
            continue;
        }
        if let Some(row) = row
            && stored.map(|stored| stored.phase) != Some(status.phase)
        {
            let message = status.message.clone().unwrap_or_default();
            let warning = status.phase != HostPhase::Ready;
            context.events.note(&row.place(), Some(&row.object.uid), warning, word(status.phase), message);
        }
        let Ok(value) = serde_json::to_vec(&status) else { continue };
        if let Err(error) = leader.commit(txn.put(status_key, value)).await {
            // The next tick looks again.
            tracing::warn!(host = name, %error, "a host's status was not written");
            return;
        }
    }
}

/// PURE: whether its agent is there. A host that was deleted because it is silent has a session until that times out, and
/// must not come back by it.
fn says_hello(view: &HostView, windows: Windows) -> bool {
    view.silent < windows.unknown
}

fn made(name: &str, view: &HostView) -> Host {
    let mut host = Object::new(None, name, view.labels.clone(), HostSpec::default(), Timestamp::now());
    host.kind = Kind::Host;
    host.uid = view.uid.clone();
    host
}

/// PURE: the status to store. None: nothing can be said yet, a new leader gives every host one full window first.
fn status(
    stored: Option<&HostStatus>,
    view: Option<&HostView>,
    listening: Duration,
    windows: Windows,
) -> Option<HostStatus> {
    let silent = view.map_or(listening, |view| view.silent);
    if view.is_none() && listening < windows.lost {
        return None;
    }
    let mut status = stored.cloned().unwrap_or_default();
    (status.granted, status.last_seen_at) = (Capacity::default(), None);
    if silent >= windows.unknown {
        status.phase = if silent >= windows.lost { HostPhase::Lost } else { HostPhase::Unknown };
        status.reason = Some("no_heartbeat".into());
        status.message = Some("its agent does not answer; what it runs goes on".into());
        return Some(status);
    }
    let view = view?;
    status.phase = view.health.phase;
    status.reason = view.health.reason.clone();
    status.message = view.health.message.clone();
    status.docker = view.health.docker.clone().or(status.docker);
    status.cgroup = Some(view.cgroup.clone());
    // An agent that cannot tell just now is still reached where it was.
    status.address = view.address.or(status.address);
    status.capacity = view.capacity;
    Some(status)
}

fn word(phase: HostPhase) -> &'static str {
    match phase {
        HostPhase::Ready => "ready",
        HostPhase::Degraded => "degraded",
        HostPhase::Unknown => "unknown",
        HostPhase::Lost => "lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::object::Uid;
    use enoki_api::protocol::Health;

    fn view(silent: Duration) -> HostView {
        HostView {
            uid: Uid::random(),
            health: Health { phase: HostPhase::Ready, ..Health::default() },
            capacity: Capacity::default(),
            cgroup: "v1".into(),
            labels: Default::default(),
            address: None,
            silent,
            seen_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn silence_is_judged_in_steps() {
        let long = Duration::from_secs(100);
        for (silent, phase) in
            [(0, HostPhase::Ready), (2, HostPhase::Ready), (3, HostPhase::Unknown), (8, HostPhase::Lost)]
        {
            let view = view(Duration::from_secs(silent));
            let status = status(None, Some(&view), long, Windows::of(1)).unwrap();
            assert_eq!(status.phase, phase, "{silent}");
        }
    }

    #[test]
    fn the_session_of_a_silent_host_does_not_make_it_anew() {
        let windows = Windows::of(1);
        assert!(says_hello(&view(Duration::ZERO), windows));
        assert!(!says_hello(&view(windows.unknown), windows));
    }

    #[test]
    fn a_new_leader_gives_hosts_time_to_come() {
        let stored = HostStatus { phase: HostPhase::Ready, ..HostStatus::default() };
        let windows = Windows::of(1);
        assert!(status(Some(&stored), None, Duration::from_secs(7), windows).is_none());
        assert_eq!(status(Some(&stored), None, windows.lost, windows).unwrap().phase, HostPhase::Lost);
        assert!(
            status(Some(&stored), None, windows.lost, Windows::of(500)).is_none(),
            "more are given longer"
        );
    }
}
