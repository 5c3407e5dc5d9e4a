//! The effects of the instance controller: each is one transaction.

use super::super::Context;
use super::addresses::{Claim, Frontier};
use super::decide::Seen;
use crate::scheduler::{self, Request};
use crate::state::{At, Placed, Row, Snapshot, release};
use crate::store::keys::Key;
use crate::store::{KeyValue, Txn};
use enoki_api::instance::{
    AddressClaim, Assignment, InstanceSpec, InstanceStatus, Mac, NicStatus, Tombstone,
};
use enoki_api::object::Uid;
use enoki_api::volume::VolumeStatus;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// A placement or another grant that was sent to the store, or is about to be.
#[derive(Clone)]
pub struct Plan {
    at: At,
    stands_on: StandsOn,
    assignment: Assignment,
    /// Addresses it takes besides those that its spec already claimed.
    claims: Vec<Claim>,
}

/// What the transaction compares: with another revision there it can not be applied any more.
#[derive(Clone, Copy)]
enum StandsOn {
    /// The specs of an instance without an assignment and of its host.
    Specs {
        instance: u64,
        host: u64,
    },
    Assignment(u64),
}

pub enum Effect {
    Place(Box<Plan>),
    Grant(Box<Plan>),
    Finish,
}

impl Plan {
    /// Another grant where the instance is.
    pub fn grant(placed: &Placed, at: At, assignment: Assignment) -> Self {
        Plan { at, stands_on: StandsOn::Assignment(placed.revision), assignment, claims: Vec::new() }
    }

    /// Whether `snapshot` leaves it open what becomes of it. Else it shows it applied, or shows that it never will be.
    pub fn is_open(&self, snapshot: &Snapshot) -> bool {
        let placed = snapshot.assignments.get(&self.at).map(|placed| placed.revision);
        let spec = snapshot.instances.at(&self.at).map(|row| row.object.revision);
        let host_spec = snapshot.hosts.get("", &self.assignment.host).map(|row| row.object.revision);
        match self.stands_on {
            StandsOn::Specs { instance, host } => {
                placed.is_none() && spec == Some(instance) && host_spec == Some(host)
            }
            StandsOn::Assignment(revision) => placed == Some(revision),
        }
    }

    /// Whether what it stands on is no longer so, by what the store holds now.
    pub fn is_overtaken(&self, current: &[(String, Option<KeyValue>)]) -> bool {
        let keys = Keys { project: &self.at.0, name: &self.at.1 };
        let now = |key: Option<String>| {
            let found = current.iter().find(|(compared, _)| Some(compared) == key.as_ref());
            found.map(|(_, stored)| stored.as_ref().map(|stored| stored.mod_revision))
        };
        match self.stands_on {
            StandsOn::Specs { instance, host } => {
                let host_key = Key::spec("hosts", None, &self.assignment.host).ok().map(String::from);
                now(keys.spec()).is_some_and(|now| now != Some(instance))
                    || now(host_key).is_some_and(|now| now != Some(host))
                    || now(keys.assignment()).is_some_and(|now| now.is_some())
            }
            StandsOn::Assignment(revision) => now(keys.assignment()).is_some_and(|now| now != Some(revision)),
        }
    }

    /// The networks on which it takes an address.
    pub fn networks(&self) -> impl Iterator<Item = &str> {
        self.claims.iter().map(|claim| claim.network.as_str())
    }

    pub fn is_placement(&self) -> bool {
        matches!(self.stands_on, StandsOn::Specs { .. })
    }

    /// Makes `world` what it will be once the plan is committed. What a smaller grant gives back is not there before.
    pub fn apply(&self, world: &mut Snapshot) {
        let mut assignment = self.assignment.clone();
        if let Some(now) = world.assignments.get(&self.at).map(|placed| placed.assignment.granted.clone()) {
            let granted = &mut assignment.granted;
            granted.cpus = granted.cpus.max(now.cpus);
            granted.memory = granted.memory.max(now.memory);
            granted.pids = granted.pids.max(now.pids);
        }
        if let Some(row) = world.instances.at(&self.at).cloned() {
            let request = Request { at: &self.at, labels: &row.object.labels, spec: &row.object.spec };
            scheduler::reserve(world, request, assignment);
        }
        for claim in &self.claims {
            let held = address_claim(&self.at, &self.assignment.uid, claim.mac, Timestamp::UNIX_EPOCH);
            let key = (self.at.0.clone(), claim.network.clone(), IpAddr::from(claim.address));
            world.addresses.insert(key, Arc::new((held, 0)));
        }
    }
}

/// Gathers what is known. `world` also has the plans under way: what they take is not offered again.
pub fn observe<'a>(
    context: &Context,
    snapshot: &'a Snapshot,
    world: &Snapshot,
    row: &'a Row<InstanceSpec>,
) -> SeenOwned<'a> {
    let instance = &row.object;
    let at = row.at();
    let placed = snapshot.assignments.get(&at).filter(|placed| placed.assignment.uid == instance.uid);
    let assignment = placed.map(|placed| &placed.assignment);
    let asks_more =
        assignment.filter(|a| a.granted != instance.spec.resources() && instance.deleted_at.is_none());
    let request = Request { at: &at, labels: &instance.labels, spec: &instance.spec };
    let offer = asks_more.map(|a| scheduler::regrant(world, &a.host, request, &context.policy));
    let host = assignment.and_then(|a| snapshot.host_status.get(&a.host)).map(|status| status.phase);
    SeenOwned {
        seen: Seen {
            instance,
            assignment,
            status: snapshot.instance_status.get(&at).map_or(&instance.status, |status| status),
            report: None,
            host,
            buried: context.live.is_buried(&instance.uid),
            offer,
        },
        report: context.live.report(&instance.uid),
    }
}

/// [`Seen`] with the report it borrows.
pub struct SeenOwned<'a> {
    seen: Seen<'a>,
    report: Option<enoki_api::protocol::Report>,
}

impl SeenOwned<'_> {
    pub fn decide(&self) -> super::decide::Decision {
        super::decide::decide(&Seen {
            report: self.report.as_ref(),
            offer: self.seen.offer.clone(),
            ..self.seen
        })
    }
}

/// Finds a host and addresses. Err: a code and a sentence.
pub fn place(
    context: &Context,
    world: &Snapshot,
    frontier: &mut Frontier,
    row: &Row<InstanceSpec>,
) -> Result<Plan, (String, String)> {
    let instance = &row.object;
    let at = row.at();
    // Asked here too: a server that does not lead knows of no orphans, and lets their names be taken.
    if let Some((host, orphan)) = context.live.orphan_of(&at.0, &at.1)
        && orphan.uid != instance.uid
    {
        let message = format!(
            "an orphan on host {host} has this name; adopt it (`enoki adopt --orphans`), or choose another"
        );
        return Err(("orphaned".to_owned(), message));
    }
    let mut claims = Vec::new();
    let mut nics = BTreeMap::new();
    for (name, nic) in &instance.spec.nics {
        let mac = nic.mac.unwrap_or_else(|| Mac::derive(&instance.uid, name));
        let address = match nic.address {
            Some(address) => address,
            None => {
                let taken: Vec<Ipv4Addr> = claims.iter().map(|claim: &Claim| claim.address).collect();
                let claim = frontier.claim(context, world, &at.0, nic, mac, &taken)?;
                claims.push(claim.clone());
                claim.address
            }
        };
        nics.insert(name.clone(), NicStatus { network: nic.network.clone(), address, mac });
    }
    let request = Request { at: &at, labels: &instance.labels, spec: &instance.spec };
    let host = scheduler::place(world, request, &context.policy)
        .map_err(|verdicts| scheduler::summary(&verdicts))?;
    let epoch = world.instance_status.get(&at).map_or(0, |status| status.epoch) + 1;
    let assignment = Assignment {
        uid: instance.uid.clone(),
        host,
        epoch,
        generation: instance.generation,
        granted: instance.spec.resources(),
        nics,
    };
    let host = world.hosts.get("", &assignment.host).map_or(0, |row| row.object.revision);
    Ok(Plan { at, stands_on: StandsOn::Specs { instance: instance.revision, host }, assignment, claims })
}

/// The one transaction for an instance's effect and its status. None: nothing to write.
pub fn transaction(
    snapshot: &Snapshot,
    row: &Row<InstanceSpec>,
    effect: Option<&Effect>,
    status: &InstanceStatus,
    stored: Option<&InstanceStatus>,
    now: Timestamp,
) -> Option<Txn> {
    let at = row.at();
    let (project, name) = (&at.0, &at.1);
    let keys = Keys { project, name };
    let spec_key = keys.spec()?;
    let status_key = keys.status()?;
    let mut txn = Txn::new();
    match effect {
        None => {
            if stored == Some(status) {
                return None;
            }
            // A status for an object that is gone would be a ghost.
            txn = txn.when_present(spec_key);
        }
        Some(Effect::Place(plan)) => {
            txn = txn.when_unchanged(spec_key, row.object.revision).when_absent(keys.assignment()?);
            // As it was looked at: not cordoned, deleted or labelled otherwise since.
            let host = snapshot.hosts.get("", &plan.assignment.host)?;
            let host_key = Key::spec("hosts", None, &host.object.name).ok()?.to_string();
            txn = txn.when_unchanged(host_key, host.object.revision);
            txn = txn.put(keys.assignment()?, json(&plan.assignment)?);
            for claim in &plan.claims {
                let key = Key::address(project, &claim.network, claim.address.into()).ok()?.to_string();
                txn = match claim.replaces {
                    None => txn.when_absent(key.clone()),
                    Some(revision) => txn.when_unchanged(key.clone(), revision),
                };
                txn = txn.put(key, json(&address_claim(&at, &row.object.uid, claim.mac, now))?);
            }
            txn = bind_volumes(txn, snapshot, row, &plan.assignment.host)?;
            let mut starting = status.clone();
            (starting.reason, starting.message) = (None, None);
            starting.phase = enoki_api::instance::Phase::Starting;
            starting.host = Some(plan.assignment.host.clone());
            starting.epoch = plan.assignment.epoch;
            starting.nics = plan.assignment.nics.clone();
            return Some(txn.put(status_key, json(&starting)?));
        }
        Some(Effect::Grant(plan)) => {
            let placed = snapshot.assignments.get(&at)?;
            txn = txn
                .when_unchanged(keys.assignment()?, placed.revision)
                .put(keys.assignment()?, json(&plan.assignment)?);
            if stored == Some(status) {
                return Some(txn);
            }
        }
        Some(Effect::Finish) => return finish(snapshot, row, now),
    }
    Some(txn.put(status_key, json(status)?))
}

/// The instance's keys go; its addresses are held a while, its tombstone stays as done.
fn finish(snapshot: &Snapshot, row: &Row<InstanceSpec>, now: Timestamp) -> Option<Txn> {
    let at = row.at();
    let keys = Keys { project: &at.0, name: &at.1 };
    let uid = &row.object.uid;
    let txn = Txn::new().when_unchanged(keys.spec()?, row.object.revision).delete(keys.spec()?);
    let mut txn = release(snapshot, &row.object, now, txn).ok()?;
    if let Some(entry) = snapshot.tombstones.get(uid.as_str()) {
        let key = Key::tombstone(uid.as_str()).ok()?.to_string();
        txn = match entry.0.host {
            // Nothing was ever placed: nothing can come back.
            None => txn.delete(key),
            Some(_) => txn.put(key, json(&Tombstone { buried_at: Some(now), ..entry.0.clone() })?),
        };
    }
    Some(txn)
}

/// A local volume belongs to the host of the first instance that mounts it.
fn bind_volumes(mut txn: Txn, snapshot: &Snapshot, row: &Row<InstanceSpec>, host: &str) -> Option<Txn> {
    let project = &row.at().0;
    let mut seen = std::collections::BTreeSet::new();
    for mount in row.object.spec.mounts.values().filter(|mount| seen.insert(&mount.volume)) {
        if !snapshot.is_local(project, &mount.volume)
            || snapshot.volume_host(project, &mount.volume).is_some()
        {
            continue;
        }
        let spec = Key::spec("volumes", Some(project), &mount.volume).ok()?.to_string();
        let status = Key::status("volumes", Some(project), &mount.volume).ok()?.to_string();
        txn = txn.when_present(spec).when_absent(status.clone());
        txn = txn.put(status, json(&VolumeStatus { host: Some(host.to_owned()), used_by: Vec::new() })?);
    }
    Some(txn)
}

/// Tells the log of events what is about to be done.
pub fn announce(context: &Context, row: &Row<InstanceSpec>, effect: &Effect) {
    let note = |reason: &str, message: String| {
        context.events.note(&row.place(), Some(&row.object.uid), false, reason, message);
    };
    match effect {
        Effect::Place(plan) => note("placed", format!("on host {}", plan.assignment.host)),
        Effect::Grant(plan) if plan.assignment.granted == row.object.spec.resources() => {
            note("granted", format!("generation {}", plan.assignment.generation));
        }
        Effect::Grant(_) => {
            note("infeasible", "the host has no room for what is asked; the old limits hold".into())
        }
        Effect::Finish => note("deleted", "its host has confirmed".into()),
    }
}

pub fn address_claim(at: &At, uid: &Uid, mac: Mac, since: Timestamp) -> AddressClaim {
    AddressClaim { instance: format!("{}/{}", at.0, at.1), uid: uid.clone(), mac, since, held_until: None }
}

struct Keys<'a> {
    project: &'a str,
    name: &'a str,
}

/// None cannot happen: names were checked when the object was written.
impl Keys<'_> {
    fn spec(&self) -> Option<String> {
        Key::spec("instances", Some(self.project), self.name).ok().map(String::from)
    }

    fn status(&self) -> Option<String> {
        Key::status("instances", Some(self.project), self.name).ok().map(String::from)
    }

    fn assignment(&self) -> Option<String> {
        Key::assignment(self.project, self.name).ok().map(String::from)
    }
}

fn json<T: serde::Serialize>(value: &T) -> Option<Vec<u8>> {
    serde_json::to_vec(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::SystemNetworks;
    use crate::auth::ca::Pki;
    use crate::controller::{Context, Ways};
    use crate::dispatch::{Broker, Events, Live};
    use crate::peers::Peers;
    use crate::registry::Registry;
    use crate::scheduler::Policy;
    use crate::state::{self, State};
    use crate::store::Compare;
    use crate::store::memory::Memory;
    use enoki_api::host::{HostPhase, HostSpec, HostStatus};
    use enoki_api::instance::Resources;
    use enoki_api::network::NetworkKind;
    use enoki_api::object::Object;
    use enoki_api::quantity::Bytes;

    /// Whoever cordoned the host in between has changed its spec: nothing lands there after.
    #[tokio::test]
    async fn a_placement_holds_only_while_its_host_is_as_it_was_looked_at() {
        let mut snapshot = Snapshot::default();
        let host = Object::new(None, "h1", Default::default(), HostSpec::default(), Timestamp::UNIX_EPOCH);
        let ready = HostStatus { phase: HostPhase::Ready, ..HostStatus::default() };
        snapshot.seed_host(Object { revision: 7, ..host }, ready);
        let mut spec = InstanceSpec::new("a");
        spec.nics.clear();
        let instance = Object::new(Some("default"), "web1", Default::default(), spec, Timestamp::UNIX_EPOCH);
        snapshot.seed_instance(instance);
        let folder = tempfile::tempdir().unwrap();
        let me = state::Server { name: "s1".into(), address: None };
        let (live, peers) = (Live::default(), Peers::new(State::new(), Pki::new("/nowhere"), me));
        let context = Context {
            store: Arc::new(Memory::new()),
            state: State::new(),
            live: live.clone(),
            events: Events::default(),
            policy: Policy::default(),
            networks: SystemNetworks { pool: "198.18.0.0/16".parse().unwrap(), kind: NetworkKind::Local },
            ways: Ways { broker: Broker::default(), live, peers },
            registry: Registry::new(folder.path(), folder.path(), folder.path(), folder.path(), Bytes(0))
                .unwrap(),
        };
        let row = snapshot.instances.get("default", "web1").unwrap();
        let plan = place(&context, &snapshot, &mut Frontier::default(), row).unwrap();
        let status = InstanceStatus::default();
        let effect = Effect::Place(Box::new(plan));
        let txn = transaction(&snapshot, row, Some(&effect), &status, None, Timestamp::UNIX_EPOCH);
        let compares = txn.unwrap().compares;
        assert!(compares.contains(&Compare::ModRevision("/enoki/v1/hosts/h1".into(), 7)), "{compares:?}");
    }

    #[test]
    fn a_grant_under_way_counts_and_what_it_gives_back_does_not() {
        let at: At = ("default".into(), "web1".into());
        let spec = InstanceSpec::new("a");
        let instance = Object::new(Some("default"), "web1", Default::default(), spec, Timestamp::UNIX_EPOCH);
        let with = |memory: u64| Assignment {
            uid: instance.uid.clone(),
            host: "h1".into(),
            epoch: 1,
            generation: 1,
            granted: Resources { memory: Some(Bytes(memory)), ..Resources::default() },
            nics: Default::default(),
        };
        let mut snapshot = Snapshot::default();
        snapshot.seed_instance(instance.clone());
        let placed = Placed { assignment: with(100), revision: 5 };
        snapshot.assign(at.clone(), placed.clone());
        for (asked, counts) in [(300, 300), (50, 100)] {
            let plan = Plan::grant(&placed, at.clone(), with(asked));
            let mut world = snapshot.clone();
            plan.apply(&mut world);
            plan.apply(&mut world);
            assert_eq!(world.granted["h1"].memory, Bytes(counts), "{asked} are asked");
            assert!(plan.is_open(&snapshot));
            assert!(plan.is_overtaken(&[("/enoki/v1/assignments/default/web1".to_owned(), None)]));
            let mut later = snapshot.clone();
            later.unassign(&at);
            later.assign(at.clone(), Placed { revision: 6, ..placed.clone() });
            assert!(!plan.is_open(&later));
        }
    }
}
