//! The lowest address of a network that nobody has. Where to begin to look is remembered, so that the thousandth address is
//! found as fast as the first.

use super::super::Context;
use crate::state::{At, Snapshot};
use enoki_api::instance::{Mac, Nic, usable};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// An address to take.
#[derive(Clone)]
pub struct Claim {
    pub network: String,
    pub address: Ipv4Addr,
    pub mac: Mac,
    /// The revision of a claim in hold-down that it replaces. None: nobody has it.
    pub replaces: Option<u64>,
}

/// Below these addresses, by network, all are taken.
#[derive(Default)]
pub struct Frontier {
    taken_below: BTreeMap<At, Ipv4Addr>,
}

impl Frontier {
    /// An address of this network may be free again.
    pub fn forget(&mut self, project: &str, network: &str) {
        self.taken_below.remove(&(project.to_owned(), network.to_owned()));
    }

    /// The lowest address of the network that nobody has, holds or is known to run with. Err: a code and a sentence.
    pub fn claim(
        &mut self,
        context: &Context,
        world: &Snapshot,
        project: &str,
        nic: &Nic,
        mac: Mac,
        also_taken: &[Ipv4Addr],
    ) -> Result<Claim, (String, String)> {
        let network = &nic.network;
        let unavailable = |message: String| ("network_unavailable".to_owned(), message);
        let row = world
            .networks
            .get(project, network)
            .filter(|row| row.object.deleted_at.is_none())
            .ok_or_else(|| unavailable(format!("there is no network {network}")))?;
        let cidr = row.object.spec.cidr;
        let gateway = row.object.spec.gateway_address();
        let at = (project.to_owned(), network.clone());
        let first = u32::from(cidr.network());
        let begin = self.taken_below.get(&at).map_or(first, |below| u32::from(*below).max(first));
        // What expired below where one begins is found when nothing else is.
        for begin in [begin, first] {
            let from = IpAddr::from(Ipv4Addr::from(begin));
            let mut claims = world.claims_from(project, network, from).peekable();
            for address in (begin..=u32::from(cidr.broadcast())).map(Ipv4Addr::from) {
                let own = IpAddr::from(address);
                while claims.peek().is_some_and(|(claimed, _)| *claimed < own) {
                    claims.next();
                }
                let replaces = match claims.peek().filter(|(claimed, _)| *claimed == own) {
                    None => None,
                    Some((_, entry)) if world.holds(&entry.0, Timestamp::now()) => continue,
                    Some((_, entry)) => Some(entry.1),
                };
                if usable(&cidr, address, gateway).is_err() || also_taken.contains(&address) {
                    continue;
                }
                let orphaned = context.live.held_by_orphan(|orphan| {
                    let nics = orphan.order.iter().flat_map(|order| order.assignment.nics.values());
                    orphan.project == project
                        && nics.into_iter().any(|n| n.network == *network && n.address == address)
                });
                if orphaned.is_none() {
                    self.taken_below.insert(at, address);
                    return Ok(Claim { network: network.clone(), address, mac, replaces });
                }
            }
        }
        Err(("no_address".to_owned(), format!("network {network} ({cidr}) has no free address")))
    }
}
