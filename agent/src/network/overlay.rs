//! PURE: an overlay's vxlan device and its forwarding entries, against what is there, as an ordered list of actions.
//!
//! An overlay joins a network's bridges on several hosts. Nobody learns anything from frames: which address is behind
//! which host is said by [`Peers`], and what goes to everybody is sent once to each of their hosts (head-end
//! replication). What goes to an address that is not in [`Peers`] yet goes to everybody, too, so a list that is a
//! moment old costs bandwidth and not reachability.
//!
//! Guarantees, held by the properties below: carrying out the actions gives a view for which nothing is left to do; a
//! view that is right gives no action; a device is on the bridge only behind its screen. Peers that nobody has told
//! are unknown, not none: then entries stay as they are found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use super::{Mac, Vxlan};

/// UDP port that the tunnels of all hosts use (RFC 7348).
pub const PORT: u16 = 4789;
/// What a tunnel adds to a frame's payload, bytes: inner Ethernet 14, VXLAN 8, UDP 8, outer IPv4 20.
pub const OVERHEAD: u32 = 50;

/// What a vxlan device is from its making on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub segment: u32,
    /// This host's address that it sends from.
    pub address: Ipv4Addr,
    pub port: u16,
    pub learning: bool,
}

impl Tunnel {
    pub fn of(vxlan: &Vxlan) -> Self {
        Self { segment: vxlan.segment, address: vxlan.address, port: PORT, learning: false }
    }
}

/// Who is where on an overlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// The host of each instance that is not here.
    pub instances: BTreeMap<Mac, Ipv4Addr>,
    /// All hosts with an instance on the network; this one may be among them.
    pub hosts: BTreeSet<Ipv4Addr>,
}

/// A forwarding entry: frames to `mac` go to `host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub mac: Mac,
    pub host: Ipv4Addr,
}

/// The address of entries for what has no entry of its own; it has one for each host.
pub const EVERYBODY: Mac = Mac([0; 6]);

impl Entry {
    /// Whether it is for everybody.
    pub fn floods(&self) -> bool {
        self.mac == EVERYBODY
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.floods() {
            true => write!(f, "all to {}", self.host),
            false => write!(f, "{} to {}", self.mac, self.host),
        }
    }
}

/// What an overlay is to be on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    pub tunnel: Tunnel,
    /// Bytes.
    pub mtu: u32,
    /// `None`: nobody has told yet.
    pub peers: Option<&'a Peers>,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub device: Option<Device>,
    pub entries: BTreeSet<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// `None` when it is no vxlan device at all.
    pub tunnel: Option<Tunnel>,
    pub mtu: u32,
    /// Whether what must not cross it is stopped, or nothing has to be.
    pub screened: bool,
    /// Whether it is up and a port of the network's bridge.
    pub joined: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Removes a device whose making was another.
    Discard,
    /// Makes the device, down and on no bridge.
    Make,
    Screen,
    SetMtu,
    /// Makes the entry; one of an address that is behind another host now takes the old one's place.
    Set(Entry),
    Remove(Entry),
    /// Up, and a port of the bridge.
    Join,
}

/// The way from `view` to `wanted`.
pub fn plan(wanted: &Wanted<'_>, view: &View) -> Vec<Action> {
    let mut view = view.clone();
    let mut actions = Vec::new();
    let mut push = |view: &mut View, action| {
        view.apply(&action, wanted);
        actions.push(action);
    };
    if view.device.is_some_and(|device| device.tunnel != Some(wanted.tunnel)) {
        push(&mut view, Action::Discard);
    }
    if view.device.is_none() {
        push(&mut view, Action::Make);
    }
    // One was found or made.
    let Some(device) = view.device else { return actions };
    if !device.screened {
        push(&mut view, Action::Screen);
    }
    if device.mtu != wanted.mtu {
        push(&mut view, Action::SetMtu);
    }
    if let Some(peers) = wanted.peers {
        for action in forwarding(wanted.tunnel.address, peers, &view.entries) {
            push(&mut view, action);
        }
    }
    // Last, so that the first frame finds its way.
    if !device.joined {
        push(&mut view, Action::Join);
    }
    actions
}

/// The way from the entries there are to those that `peers` ask for. An address that moves is changed in one step:
/// there is no moment without it.
pub fn forwarding(own: Ipv4Addr, peers: &Peers, present: &BTreeSet<Entry>) -> Vec<Action> {
    let instances = peers.instances.iter().map(|(mac, host)| Entry { mac: *mac, host: *host });
    let everybody = peers.hosts.iter().map(|host| Entry { mac: EVERYBODY, host: *host });
    let wanted: BTreeSet<Entry> = instances.chain(everybody).filter(|entry| entry.host != own).collect();
    let replaced: BTreeSet<Mac> =
        wanted.iter().filter(|entry| !entry.floods()).map(|entry| entry.mac).collect();
    let missing = wanted.difference(present).copied().map(Action::Set);
    let wrong = present.difference(&wanted).filter(|entry| !replaced.contains(&entry.mac));
    missing.chain(wrong.copied().map(Action::Remove)).collect()
}

impl View {
    /// What an action does, as the kernel does it.
    pub fn apply(&mut self, action: &Action, wanted: &Wanted<'_>) {
        match action {
            Action::Discard => *self = Self::default(),
            Action::Make => {
                let tunnel = Some(wanted.tunnel);
                let device = Device { tunnel, mtu: wanted.mtu, screened: false, joined: false };
                *self = Self { device: Some(device), entries: BTreeSet::new() };
            }
            Action::Screen => self.device(|device| device.screened = true),
            Action::SetMtu => self.device(|device| device.mtu = wanted.mtu),
            Action::Set(entry) => {
                self.entries.retain(|other| entry.floods() || other.mac != entry.mac);
                self.entries.insert(*entry);
            }
            Action::Remove(entry) => drop(self.entries.remove(entry)),
            Action::Join => self.device(|device| device.joined = true),
        }
    }

    fn device(&mut self, change: impl FnOnce(&mut Device)) {
        if let Some(device) = &mut self.device {
            change(device);
        }
    }
}

#[cfg(test)]
mod tests;
