//! Watches which instances are squeezed ([`crate::limits::squeeze`]), and has their tasks tell.
//!
//! A host with CPUs to spare costs one small file a look. On one that is full, all that run are looked at, and the threads of
//! those that give way. What cannot be looked at is not squeezed.

use super::fleet::Fleet;
use super::machine::{self, Machine};
use crate::limits::Running;
use crate::limits::squeeze::{Look, Party, saturated, squeezed};
use enoki_api::object::Uid;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(5);

/// Looks on until `stop`.
pub async fn watch(machine: &dyn Machine, fleet: &Fleet, stop: &CancellationToken) {
    let mut last: Option<Taken> = None;
    let mut trails = Trails::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        match take(machine, fleet, last.as_ref()).await {
            Ok(taken) => {
                if let Some(before) = &last {
                    let between = taken.when.duration_since(before.when);
                    let found = squeezed(&before.look, &taken.look, between, &taken.parties);
                    fleet.squeezed(trails.follow(found, before.at));
                }
                last = Some(taken);
            }
            Err(error) => {
                tracing::debug!(%error, "the use of CPUs cannot be looked at");
                last = None;
                fleet.squeezed(trails.follow(BTreeSet::new(), Timestamp::now()));
            }
        }
    }
}

/// A look, and whom it was about.
struct Taken {
    when: Instant,
    at: Timestamp,
    look: Look,
    parties: Vec<Party>,
}

async fn take(machine: &dyn Machine, fleet: &Fleet, last: Option<&Taken>) -> machine::Result<Taken> {
    let cpus = machine.cpus().await?;
    let mut taken = Taken {
        when: Instant::now(),
        at: Timestamp::now(),
        look: Look { cpus, ..Look::default() },
        parties: Vec::new(),
    };
    if last.is_none_or(|last| !saturated(&last.look.cpus, &taken.look.cpus)) {
        return Ok(taken);
    }
    let (parties, running): (Vec<_>, Vec<_>) = running(fleet).unzip();
    // Nobody would be asked about.
    if parties.iter().any(Party::gives_way) {
        taken.look.loads = machine.loads(running).await?;
        taken.parties = parties;
    }
    Ok(taken)
}

/// All that run here.
fn running(fleet: &Fleet) -> impl Iterator<Item = (Party, Running)> {
    let host = fleet.host();
    host.ledger.uids().into_iter().filter_map(move |uid| {
        let last = host.outbox.last(&uid)?;
        let order = host.ledger.get(&uid)?.order;
        let granted = &order.assignment.granted;
        let party = Party {
            uid: uid.clone(),
            priority: order.instance.spec.priority,
            owner: order.instance.owner.as_ref().map(|owner| owner.uid.clone()),
            cpuset: granted.cpuset.clone(),
            quota: granted.cpus,
        };
        let threads = party.gives_way();
        Some((party, Running { uid, container: last.container_id?, pid: last.pid?, threads }))
    })
}

/// Since when who is squeezed. It takes two looks in a row to become so, and two to be so no more: a pause between two tasks
/// is no relief.
#[derive(Default)]
struct Trails(BTreeMap<Uid, Trail>);

#[derive(Clone, Copy, Default)]
struct Trail {
    since: Option<Timestamp>,
    /// Since when the opposite holds.
    turned: Option<Timestamp>,
}

impl Trails {
    /// Takes those that were `found` squeezed from `began` to now.
    fn follow(&mut self, found: BTreeSet<Uid>, began: Timestamp) -> BTreeMap<Uid, Timestamp> {
        for uid in &found {
            self.0.entry(uid.clone()).or_default();
        }
        for (uid, trail) in &mut self.0 {
            let is = found.contains(uid);
            match trail.turned {
                _ if is == trail.since.is_some() => trail.turned = None,
                None => trail.turned = Some(began),
                Some(first) => *trail = Trail { since: is.then_some(first), turned: None },
            }
        }
        self.0.retain(|_, trail| trail.since.is_some() || trail.turned.is_some());
        self.0.iter().filter_map(|(uid, trail)| Some((uid.clone(), trail.since?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_two_looks_to_change() {
        let uid = Uid::random();
        let mut trails = Trails::default();
        let mut told = Vec::new();
        for (second, found) in [1, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1].into_iter().enumerate() {
            let found = if found == 1 { BTreeSet::from([uid.clone()]) } else { BTreeSet::new() };
            let began = Timestamp::from_second(second as i64).unwrap();
            let now = trails.follow(found, began);
            told.push(now.get(&uid).map_or(0, |since| since.as_second()));
        }
        assert_eq!(told, [0, 0, 0, 2, 2, 2, 2, 2, 0, 0, 0]);
        trails.follow(BTreeSet::new(), Timestamp::UNIX_EPOCH);
        assert!(trails.0.is_empty(), "what is over is forgotten");
    }
}
