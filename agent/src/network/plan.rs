//! PURE: what an instance's links should be, against what is there, as an ordered list of actions.
//!
//! Guarantees, held by the properties below: carrying out the actions gives a view for which nothing is left to do;
//! any prefix of them (a kill) followed by a new plan arrives at the same; a view that is right gives no action.
//! [`View::apply`] says what each action does to a view; the simulated network is made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{InstancePlan, Mac, NicPlan, names, rate};

/// The MTU of networks' links by uid, bytes: an overlay's is known only on the host. One that is not in it has
/// [`names::MTU`].
pub type Mtus = BTreeMap<String, u32>;

/// What an instance has, and the parts of the fabric that concern it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub loopback_up: bool,
    /// The bridges of the wanted networks that exist, and whether they are up.
    pub bridges: BTreeMap<String, bool>,
    /// Links inside, by name: the wanted ones, and others that are ours.
    pub nics: BTreeMap<String, Nic>,
    /// Ends in the fabric, by name.
    pub ports: BTreeMap<String, Port>,
    /// Default routes over our links.
    pub routes: BTreeSet<Route>,
}

/// A link inside an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The end in the fabric that this is the other end of; `None` when it is of something else.
    pub port: Option<String>,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    pub addresses: BTreeSet<Ipv4Net>,
    /// Limit of what it sends, bytes a second.
    pub rate: Option<u64>,
}

/// A NIC's end in the fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub bridge: Option<String>,
    pub mtu: u32,
    pub up: bool,
    /// Limit of what it sends, that is of what the instance receives, bytes a second.
    pub rate: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// `None` is a default route without a gateway, which is never wanted.
    pub via: Option<Ipv4Addr>,
    pub nic: String,
}

/// One step; all names, so that a step means the same whoever carries it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    LoopbackUp,
    AddBridge {
        bridge: String,
        mac: Mac,
        mtu: u32,
    },
    BridgeUp {
        bridge: String,
    },
    /// Removes a port, and with it the NIC that it is the other end of.
    Unplug {
        port: String,
    },
    /// Removes a NIC that is not the other end of the port it should be.
    Discard {
        nic: String,
    },
    /// Makes port (up, in the bridge) and NIC (down) as one link.
    Plug {
        port: String,
        bridge: String,
        nic: String,
        mac: Mac,
        mtu: u32,
    },
    Enslave {
        port: String,
        bridge: String,
    },
    PortUp {
        port: String,
    },
    SetMtu {
        nic: String,
        port: String,
        mtu: u32,
    },
    SetMac {
        nic: String,
        mac: Mac,
    },
    RemoveAddress {
        nic: String,
        address: Ipv4Net,
    },
    AddAddress {
        nic: String,
        address: Ipv4Net,
    },
    NicUp {
        nic: String,
    },
    RemoveRoute {
        route: Route,
    },
    SetRoute {
        nic: String,
        via: Ipv4Addr,
    },
    LimitSending {
        nic: String,
        bits: Option<u64>,
    },
    LimitReceiving {
        port: String,
        bits: Option<u64>,
    },
}

/// The way from `view` to `wanted`.
pub fn plan(wanted: &InstancePlan, mtus: &Mtus, view: &View) -> Vec<Action> {
    let mut steps = Steps { view: view.clone(), actions: Vec::new() };
    if !view.loopback_up {
        steps.push(Action::LoopbackUp);
    }
    let leftover: Vec<String> =
        view.nics.keys().filter(|name| !wanted.nics.iter().any(|nic| nic.name == **name)).cloned().collect();
    for nic in leftover {
        steps.clear(&nic, None);
    }
    for nic in &wanted.nics {
        let mtu = mtus.get(&nic.network.uid).copied().unwrap_or(names::MTU);
        steps.nic(&wanted.uid, nic, mtu);
    }
    steps.routes(wanted);
    steps.actions
}

/// The first NIC on a network with a gateway carries the default route.
fn wanted_route(wanted: &InstancePlan) -> Option<(String, Ipv4Addr)> {
    wanted.nics.iter().find_map(|nic| Some((nic.name.clone(), nic.network.gateway_address()?)))
}

struct Steps {
    /// What is there once the actions so far are done.
    view: View,
    actions: Vec<Action>,
}

impl Steps {
    fn push(&mut self, action: Action) {
        self.view.apply(&action);
        self.actions.push(action);
    }

    /// Makes room for a NIC: removes what has its name inside, and `port` when that exists.
    fn clear(&mut self, nic: &str, port: Option<&str>) {
        let theirs = self.view.nics.get(nic).and_then(|n| n.port.clone());
        for port in theirs.iter().map(String::as_str).chain(port) {
            if self.view.ports.contains_key(port) {
                self.push(Action::Unplug { port: port.into() });
            }
        }
        if self.view.nics.contains_key(nic) {
            self.push(Action::Discard { nic: nic.into() });
        }
    }

    fn nic(&mut self, uid: &str, wanted: &NicPlan, mtu: u32) {
        let bridge = names::bridge(&wanted.network.uid);
        let port = names::port(uid, &wanted.name);
        let nic = &wanted.name;
        match self.view.bridges.get(&bridge) {
            None => self.push(Action::AddBridge {
                bridge: bridge.clone(),
                mac: names::bridge_mac(&wanted.network.uid),
                mtu,
            }),
            Some(false) => self.push(Action::BridgeUp { bridge: bridge.clone() }),
            Some(true) => {}
        }
        let joined = self.view.nics.get(nic).is_some_and(|n| n.port.as_ref() == Some(&port))
            && self.view.ports.contains_key(&port);
        if !joined {
            self.clear(nic, Some(&port));
            self.push(Action::Plug {
                port: port.clone(),
                bridge: bridge.clone(),
                nic: nic.clone(),
                mac: wanted.mac,
                mtu,
            });
        }
        // Joined or just plugged: both ends are in the view.
        let (Some(inside), Some(outside)) =
            (self.view.nics.get(nic).cloned(), self.view.ports.get(&port).cloned())
        else {
            return;
        };
        if outside.bridge.as_ref() != Some(&bridge) {
            self.push(Action::Enslave { port: port.clone(), bridge });
        }
        if !outside.up {
            self.push(Action::PortUp { port: port.clone() });
        }
        if inside.mtu != mtu || outside.mtu != mtu {
            self.push(Action::SetMtu { nic: nic.clone(), port: port.clone(), mtu });
        }
        if inside.mac != Some(wanted.mac) {
            self.push(Action::SetMac { nic: nic.clone(), mac: wanted.mac });
        }
        // Wrong addresses first: removing the older of two on one subnet would take the newer with it.
        let address = host_net(wanted);
        for wrong in inside.addresses.iter().filter(|a| **a != address) {
            self.push(Action::RemoveAddress { nic: nic.clone(), address: *wrong });
        }
        if !self.view.nics.get(nic).is_some_and(|n| n.addresses.contains(&address)) {
            self.push(Action::AddAddress { nic: nic.clone(), address });
        }
        // Up after the address: the kernel then announces it to the segment (arp_notify).
        if !inside.up {
            self.push(Action::NicUp { nic: nic.clone() });
        }
        if inside.rate != wanted.egress_bits.map(rate::in_bytes) {
            self.push(Action::LimitSending { nic: nic.clone(), bits: wanted.egress_bits });
        }
        if outside.rate != wanted.ingress_bits.map(rate::in_bytes) {
            self.push(Action::LimitReceiving { port, bits: wanted.ingress_bits });
        }
    }

    fn routes(&mut self, wanted: &InstancePlan) {
        let target = wanted_route(wanted);
        let is_target = |route: &Route| {
            target.as_ref().is_some_and(|(nic, via)| route.nic == *nic && route.via == Some(*via))
        };
        let wrong: Vec<Route> = self.view.routes.iter().filter(|r| !is_target(r)).cloned().collect();
        for route in wrong {
            self.push(Action::RemoveRoute { route });
        }
        if let Some((nic, via)) = target
            && self.view.routes.is_empty()
        {
            self.push(Action::SetRoute { nic, via });
        }
    }
}

/// A NIC's address with its network's prefix.
pub fn host_net(nic: &NicPlan) -> Ipv4Net {
    // A prefix that came from an Ipv4Net is at most 32, so this cannot fail.
    Ipv4Net::new(nic.address, nic.network.cidr.prefix_len()).unwrap_or(nic.network.cidr)
}

impl View {
    /// What an action does, as the kernel does it.
    pub fn apply(&mut self, action: &Action) {
        match action {
            Action::LoopbackUp => self.loopback_up = true,
            Action::AddBridge { bridge, .. } | Action::BridgeUp { bridge } => {
                self.bridges.insert(bridge.clone(), true);
            }
            Action::Unplug { port } => {
                self.ports.remove(port);
                let gone: Vec<String> = self
                    .nics
                    .iter()
                    .filter(|(_, nic)| nic.port.as_ref() == Some(port))
                    .map(|(name, _)| name.clone())
                    .collect();
                for nic in gone {
                    self.drop_nic(&nic);
                }
            }
            Action::Discard { nic } => self.drop_nic(nic),
            Action::Plug { port, bridge, nic, mac, mtu } => {
                self.ports.insert(
                    port.clone(),
                    Port { bridge: Some(bridge.clone()), mtu: *mtu, up: true, rate: None },
                );
                self.nics.insert(
                    nic.clone(),
                    Nic {
                        port: Some(port.clone()),
                        mac: Some(*mac),
                        mtu: *mtu,
                        up: false,
                        addresses: BTreeSet::new(),
                        rate: None,
                    },
                );
            }
            Action::Enslave { port, bridge } => self.port(port, |p| p.bridge = Some(bridge.clone())),
            Action::PortUp { port } => self.port(port, |p| p.up = true),
            Action::SetMtu { nic, port, mtu } => {
                self.inside(nic, |n| n.mtu = *mtu);
                self.port(port, |p| p.mtu = *mtu);
            }
            Action::SetMac { nic, mac } => self.inside(nic, |n| n.mac = Some(*mac)),
            Action::RemoveAddress { nic, address } => {
                self.inside(nic, |n| {
                    n.addresses.remove(address);
                });
                // A gateway is reached through the address's own subnet.
                self.routes.retain(|route| {
                    route.nic != *nic || self.nics.get(nic).is_some_and(|n| !n.addresses.is_empty())
                });
            }
            Action::AddAddress { nic, address } => self.inside(nic, |n| {
                n.addresses.insert(*address);
            }),
            Action::NicUp { nic } => self.inside(nic, |n| n.up = true),
            Action::RemoveRoute { route } => {
                self.routes.remove(route);
            }
            Action::SetRoute { nic, via } => {
                self.routes.insert(Route { via: Some(*via), nic: nic.clone() });
            }
            Action::LimitSending { nic, bits } => self.inside(nic, |n| n.rate = bits.map(rate::in_bytes)),
            Action::LimitReceiving { port, bits } => self.port(port, |p| p.rate = bits.map(rate::in_bytes)),
        }
    }

    fn inside(&mut self, nic: &str, change: impl FnOnce(&mut Nic)) {
        if let Some(nic) = self.nics.get_mut(nic) {
            change(nic);
        }
    }

    fn port(&mut self, port: &str, change: impl FnOnce(&mut Port)) {
        if let Some(port) = self.ports.get_mut(port) {
            change(port);
        }
    }

    fn drop_nic(&mut self, nic: &str) {
        self.nics.remove(nic);
        self.routes.retain(|route| route.nic != nic);
    }
}

#[cfg(test)]
mod tests;
