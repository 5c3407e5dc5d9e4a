//! What must hold once faults have stopped: what is has become what is wanted (I2), and nothing is left over (I4).

use crate::host::Host;
use crate::law::short;
use enoki::scheduler::{self, Policy, Request};
use enoki::state::Snapshot;
use enoki_agent::runtime::{Container, State};
use enoki_api::host::HostPhase;
use enoki_api::instance::{LimitsState, Phase, RunState, disk_uid};
use jiff::Timestamp;
use std::collections::BTreeSet;

type Hosts<'a> = [(&'a Host, Vec<Container>)];

/// I2. Err: what is not as it is wanted, yet.
pub fn settled(world: &Snapshot, hosts: &[Host], policy: &Policy) -> Result<(), String> {
    let hosts: Vec<(&Host, Vec<Container>)> = hosts.iter().map(|host| (host, host.containers())).collect();
    for (host, _) in &hosts {
        let phase = world.host_status.get(&host.node.name).map(|status| status.phase);
        if phase != Some(HostPhase::Ready) {
            return Err(format!("{} is {phase:?}", host.node.name));
        }
    }
    if let Some(entry) = world.open_tombstones().next() {
        return Err(format!("{} is not destroyed: {:?}", entry.0.name, entry.0));
    }
    for (at, row) in world.instances.iter() {
        let instance = &row.object;
        let not = |why: String| Err(format!("{} ({}): {why}", at.1, short(&instance.uid)));
        if instance.deleted_at.is_some() {
            return not("it is still being deleted".to_owned());
        }
        let Some(status) = world.instance_status.get(at) else { return not("it has no status".to_owned()) };
        let request = Request { at, labels: &instance.labels, spec: &instance.spec };
        let Some(placed) = world.assignments.get(at).filter(|placed| placed.assignment.uid == instance.uid)
        else {
            if status.phase != Phase::Pending {
                return not(format!("it has no host and is {}", status.phase));
            }
            match scheduler::place(world, request, policy) {
                Ok(host) => {
                    return not(format!("it waits while there is room on {host}: {:?}", status.message));
                }
                Err(_) => continue,
            }
        };
        let assignment = &placed.assignment;
        if assignment.granted != instance.spec.resources() {
            if status.limits.state != LimitsState::Infeasible {
                return not("it is not granted what it asks for".to_owned());
            }
            if scheduler::regrant(world, &assignment.host, request, policy).is_ok() {
                return not("there is room for what it asks for".to_owned());
            }
        }
        if status.observed_generation != instance.generation {
            let (seen, is) = (status.observed_generation, instance.generation);
            return not(format!("generation {is} is not observed, {seen} is"));
        }
        let wanted = match instance.spec.state {
            RunState::Running => Phase::Running,
            RunState::Stopped | RunState::Unknown => Phase::Stopped,
        };
        if status.phase != wanted {
            let why = status.message.clone().unwrap_or_default();
            return not(format!("it is told as {}, not {wanted}: {why}", status.phase));
        }
        let own = |container: &&Container| container.uid == instance.uid;
        for (host, containers) in &hosts {
            let running: Vec<_> = containers
                .iter()
                .filter(own)
                .filter(|container| matches!(container.state, State::Running { .. }))
                .collect();
            let due = usize::from(host.node.name == assignment.host && wanted == Phase::Running);
            if running.len() != due {
                return not(format!("{} of it run on {}, {due} should", running.len(), host.node.name));
            }
            let limits = |container: &&Container| host.ground.world().limits.get(&container.id).cloned();
            if let Some(container) = running.first()
                && limits(container).as_ref() != Some(&assignment.granted)
            {
                return not(format!("it runs with {:?}", limits(container)));
            }
        }
    }
    nothing_else(world, &hosts)
}

/// I4: what is on hosts and in the store belongs to an instance that is.
fn nothing_else(world: &Snapshot, hosts: &Hosts<'_>) -> Result<(), String> {
    for (host, containers) in hosts {
        let name = &host.node.name;
        let here: Vec<_> = world
            .by_host
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|at| world.instances.at(at))
            .map(|row| &row.object)
            .collect();
        let uids: BTreeSet<_> = here.iter().map(|instance| &instance.uid).collect();
        if let Some(stray) = containers.iter().find(|container| !uids.contains(&container.uid)) {
            return Err(format!("{} is left on {name}", stray.name));
        }
        let disks: BTreeSet<_> =
            here.iter().map(|instance| disk_uid(&instance.uid, instance.spec.rebuild_count)).collect();
        let ground = host.ground.world();
        if let Some(disk) = ground.disks.keys().find(|disk| !disks.contains(disk)) {
            return Err(format!("disk {} is left on {name}", short(disk)));
        }
        if let Some(uid) = ground.networks.keys().chain(&ground.files).find(|uid| !uids.contains(uid)) {
            return Err(format!("links or files of {} are left on {name}", short(uid)));
        }
        let known = |id: &String| containers.iter().any(|container| container.id == *id);
        if let Some(id) = ground.records.keys().find(|id| !known(id)) {
            return Err(format!("the record of {} is left on {name}", &id[..8]));
        }
    }
    for (at, _) in world.instance_status.iter() {
        if world.instances.at(at).is_none() {
            return Err(format!("the status of {} is left", at.1));
        }
    }
    for (at, _) in world.assignments.iter() {
        if world.instances.at(at).is_none() {
            return Err(format!("the assignment of {} is left", at.1));
        }
    }
    for ((_, network, address), claim) in world.addresses.iter() {
        if claim.0.held_until.is_none() && !world.by_uid.contains_key(&claim.0.uid) {
            return Err(format!("{address} of {network} is left with {}", claim.0.instance));
        }
    }
    Ok(())
}

/// What is left when all instances are gone and holds have run out: nothing at all. A hold that a server with a wrong
/// clock gave lasts until its own end.
pub fn empty(world: &Snapshot, hosts: &[Host]) -> Result<(), String> {
    let over = |until: Option<Timestamp>| until.is_none_or(|until| until < Timestamp::now());
    if let Some(((_, network, address), claim)) =
        world.addresses.iter().find(|(_, claim)| over(claim.0.held_until))
    {
        return Err(format!("{address} of {network} is still there: {:?}", claim.0));
    }
    for host in hosts {
        let ground = host.ground.world();
        let counts = [
            ground.disks.len(),
            ground.networks.len(),
            ground.files.len(),
            ground.records.len(),
            ground.limits.len(),
            host.containers().len(),
        ];
        if counts != [0; 6] {
            return Err(format!(
                "{} has disks, networks, files, records, limits, containers {counts:?}",
                host.node.name
            ));
        }
    }
    Ok(())
}
