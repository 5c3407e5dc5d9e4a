//! An instance's links on its networks' bridges: what is there ([`observe`]) and one step of a plan ([`act`]).
//!
//! Both speak to two namespaces at once, the instance's and the fabric. Links are looked up by name, one request
//! each: the fabric holds hundreds of ports, and a launch must not list them all.

use std::collections::BTreeMap;
use std::fs::File;

use super::netlink::{Change, Default4, Lane, Link, LinkKind};
use super::plan::{Action, Nic, Port, Route, View};
use super::{Error, InstancePlan, names};

/// Where an instance's links are.
pub struct Place<'a> {
    pub fabric: &'a Lane,
    pub inside: &'a Lane,
    pub namespace: &'a File,
}

/// The kernel's numbers of what a view names.
#[derive(Default)]
pub struct Numbers {
    bridges: BTreeMap<String, u32>,
    ports: BTreeMap<String, u32>,
    nics: BTreeMap<String, u32>,
    loopback: Option<u32>,
    routes: Vec<(Route, Default4)>,
}

pub async fn observe(place: &Place<'_>, wanted: &InstancePlan) -> Result<(View, Numbers), Error> {
    let mut view = View::default();
    let mut numbers = Numbers::default();
    for nic in &wanted.nics {
        let bridge = names::bridge(&nic.network.uid);
        if let Some(link) = place.fabric.link(&bridge).await? {
            view.bridges.insert(bridge.clone(), link.up);
            numbers.bridges.insert(bridge, link.index);
        }
        let port = names::port(&wanted.uid, &nic.name);
        if let Some(link) = place.fabric.link(&port).await? {
            see_port(place, &mut view, &mut numbers, link).await?;
        }
    }
    let inside = place.inside.links().await?;
    let addresses = if inside.len() > 1 { place.inside.addresses().await? } else { Vec::new() };
    for link in &inside {
        if link.name == "lo" {
            view.loopback_up = link.up;
            numbers.loopback = Some(link.index);
            continue;
        }
        let known = wanted.nics.iter().any(|nic| nic.name == link.name);
        let port = names::port(&wanted.uid, &link.name);
        let pair = match link.kind {
            LinkKind::Veth => place.fabric.link(&port).await?.filter(|end| end.is_pair(link)),
            LinkKind::Bridge | LinkKind::Vxlan(_) | LinkKind::Other => None,
        };
        if pair.is_none() && !known {
            // Not wanted and not ours: what the instance made for itself.
            continue;
        }
        if let Some(end) = pair.clone().filter(|_| !known) {
            see_port(place, &mut view, &mut numbers, end).await?;
        }
        numbers.nics.insert(link.name.clone(), link.index);
        view.nics.insert(
            link.name.clone(),
            Nic {
                port: pair.map(|_| port),
                mac: link.mac,
                mtu: link.mtu,
                up: link.up,
                addresses: addresses
                    .iter()
                    .filter(|(index, _)| *index == link.index)
                    .map(|(_, net)| *net)
                    .collect(),
                rate: place.inside.rate(link.index).await?,
            },
        );
    }
    if !view.nics.is_empty() {
        for route in place.inside.default_routes().await? {
            if let Some((nic, _)) = numbers.nics.iter().find(|(_, index)| **index == route.device) {
                let named = Route { via: route.via, nic: nic.clone() };
                view.routes.insert(named.clone());
                numbers.routes.push((named, route));
            }
        }
    }
    Ok((view, numbers))
}

async fn see_port(
    place: &Place<'_>,
    view: &mut View,
    numbers: &mut Numbers,
    link: Link,
) -> Result<(), Error> {
    let bridge = link.master.map(|master| {
        let known = numbers.bridges.iter().find(|(_, index)| **index == master);
        // A bridge that no wanted network has is a wrong one whatever its name.
        known.map_or_else(|| format!("#{master}"), |(name, _)| name.clone())
    });
    let rate = place.fabric.rate(link.index).await?;
    numbers.ports.insert(link.name.clone(), link.index);
    view.ports.insert(link.name, Port { bridge, mtu: link.mtu, up: link.up, rate });
    Ok(())
}

/// Carries one step out.
pub async fn act(place: &Place<'_>, numbers: &mut Numbers, action: &Action) -> Result<(), Error> {
    let up = Change { up: Some(true), ..Change::default() };
    match action {
        Action::LoopbackUp => {
            let index = numbers.loopback.ok_or_else(|| missing("lo"))?;
            place.inside.change(index, up).await
        }
        Action::AddBridge { bridge, mac, mtu } => {
            place.fabric.add_bridge(bridge, *mac, *mtu).await?;
            let index = made(place.fabric, bridge).await?;
            numbers.bridges.insert(bridge.clone(), index);
            Ok(())
        }
        Action::BridgeUp { bridge } => place.fabric.change(number(&numbers.bridges, bridge)?, up).await,
        Action::Unplug { port } => place.fabric.delete(number(&numbers.ports, port)?).await,
        Action::Discard { nic } => place.inside.delete(number(&numbers.nics, nic)?).await,
        Action::Plug { port, bridge, nic, mac, mtu } => {
            let bridge = number(&numbers.bridges, bridge)?;
            place.fabric.add_veth(port, bridge, nic, *mac, place.namespace, *mtu).await?;
            let (outside, inside) = (made(place.fabric, port).await?, made(place.inside, nic).await?);
            numbers.ports.insert(port.clone(), outside);
            numbers.nics.insert(nic.clone(), inside);
            Ok(())
        }
        Action::Enslave { port, bridge } => {
            let master = Some(number(&numbers.bridges, bridge)?);
            place.fabric.change(number(&numbers.ports, port)?, Change { master, ..Change::default() }).await
        }
        Action::PortUp { port } => place.fabric.change(number(&numbers.ports, port)?, up).await,
        Action::SetMtu { nic, port, mtu } => {
            let mtu = Change { mtu: Some(*mtu), ..Change::default() };
            place.inside.change(number(&numbers.nics, nic)?, mtu).await?;
            place.fabric.change(number(&numbers.ports, port)?, mtu).await
        }
        Action::SetMac { nic, mac } => {
            place
                .inside
                .change(number(&numbers.nics, nic)?, Change { mac: Some(*mac), ..Change::default() })
                .await
        }
        Action::RemoveAddress { nic, address } => {
            place.inside.remove_address(number(&numbers.nics, nic)?, *address).await
        }
        Action::AddAddress { nic, address } => {
            place.inside.add_address(number(&numbers.nics, nic)?, *address).await
        }
        Action::NicUp { nic } => place.inside.change(number(&numbers.nics, nic)?, up).await,
        Action::RemoveRoute { route } => {
            for (_, wrong) in numbers.routes.iter().filter(|(named, _)| named == route) {
                place.inside.remove_default(wrong).await?;
            }
            Ok(())
        }
        Action::SetRoute { nic, via } => place.inside.set_default(*via, number(&numbers.nics, nic)?).await,
        Action::LimitSending { nic, bits } => place.inside.set_rate(number(&numbers.nics, nic)?, *bits).await,
        Action::LimitReceiving { port, bits } => {
            place.fabric.set_rate(number(&numbers.ports, port)?, *bits).await
        }
    }
}

/// Waits until the links that were changed pass frames on, and has them announce their addresses: whoever remembers
/// another MAC for one of them (an address that has moved) would not reach it for half a minute.
///
/// What the links sent of themselves when they came up was lost if their port did not forward yet.
pub async fn settle(
    place: &Place<'_>,
    numbers: &Numbers,
    wanted: &InstancePlan,
    done: &[Action],
) -> Result<(), Error> {
    for nic in &wanted.nics {
        let port = names::port(&wanted.uid, &nic.name);
        let touched = done.iter().any(|action| match action {
            Action::Plug { port: p, .. } | Action::Enslave { port: p, .. } | Action::PortUp { port: p } => {
                *p == port
            }
            Action::SetMac { nic: n, .. } | Action::AddAddress { nic: n, .. } | Action::NicUp { nic: n } => {
                *n == nic.name
            }
            _ => false,
        });
        if !touched {
            continue;
        }
        if !place.fabric.forwarding(&port).await? {
            tracing::warn!(instance = wanted.uid, nic = nic.name, "the link does not pass frames on yet");
        }
        // Setting an address that it has already makes a link with arp_notify announce itself.
        let again = Change { mac: Some(nic.mac), ..Change::default() };
        place.inside.change(number(&numbers.nics, &nic.name)?, again).await?;
    }
    Ok(())
}

fn number(numbers: &BTreeMap<String, u32>, name: &str) -> Result<u32, Error> {
    numbers.get(name).copied().ok_or_else(|| missing(name))
}

/// The number of a link that was made this moment.
async fn made(lane: &Lane, name: &str) -> Result<u32, Error> {
    lane.link(name).await?.map(|link| link.index).ok_or_else(|| missing(name))
}

/// Somebody removed it since we looked.
fn missing(link: &str) -> Error {
    Error::Vanished(link.into())
}
