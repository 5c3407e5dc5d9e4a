//! The host's side: overlays, legs, our nftables table, the accepts in DOCKER-USER, `ip_forward`.
//!
//! One thread in the host's namespace owns all of it and does one thing at a time, so that no two runs of `nft` or
//! `iptables` meet. A launch only asks [`Host::segment`], which answers without that thread once all is in place.
//!
//! Order: overlay, table, leg, forwarding, DOCKER-USER. What is forbidden is forbidden before a packet can come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::sync::{mpsc, oneshot};

use super::fabric::{self, Fabric, Fabrics};
use super::namespace::{self, Dedicated};
use super::netlink::{Change, Lane, Link};
use super::programs::{call_iptables, docker_user_listing, nft, table};
use super::tunnel::Overlays;
use super::{Egress, Error, Gateway, Kind, NetworkPlan, Peers, egress, names};

/// For the thread to start.
const START: Duration = Duration::from_secs(10);
/// For one request, with whatever waits before it.
const REQUEST: Duration = Duration::from_secs(60);

/// The way to the thread that owns the host's side.
#[derive(Clone)]
pub struct Host {
    requests: mpsc::Sender<Request>,
    lane: Lane,
    settled: Settled,
}

/// Networks whose overlay, table entries and leg were put in place by this agent, by uid.
type Settled = Arc<RwLock<BTreeMap<String, NetworkPlan>>>;

enum Request {
    Segment(NetworkPlan, oneshot::Sender<Result<u32, Error>>),
    Connect(String, Peers, oneshot::Sender<Result<(), Error>>),
    Tend(Vec<NetworkPlan>, oneshot::Sender<Result<(), Error>>),
    Purge(oneshot::Sender<Result<(), Error>>),
}

impl Host {
    /// Starts the thread in the caller's namespace, which is the host's.
    pub fn start(fabrics: Arc<Fabrics>) -> Result<Self, Error> {
        let (ready, opened) = std::sync::mpsc::sync_channel(1);
        let (requests, mut inbox) = mpsc::channel(64);
        let settled = Settled::default();
        let known = Arc::clone(&settled);
        namespace::host_thread("enoki-host", move |thread| async move {
            let (lane, connection) = match Lane::open() {
                Ok(opened) => opened,
                Err(e) => return drop(ready.send(Err(e))),
            };
            tokio::spawn(connection);
            let overlays = Overlays::default();
            let mut keeper =
                Keeper { thread, lane: lane.clone(), fabrics, overlays, settled: known, listing: None };
            // Nobody waits any more: then nobody holds a sender either, and the loop below ends at once.
            let _ = ready.send(Ok(lane));
            while let Some(request) = inbox.recv().await {
                // A requester that went away does not matter: what it asked for is done.
                match request {
                    Request::Segment(network, answer) => drop(answer.send(keeper.segment(&network).await)),
                    Request::Connect(network, peers, answer) => {
                        drop(answer.send(keeper.connect(&network, peers).await));
                    }
                    Request::Tend(networks, answer) => drop(answer.send(keeper.tend(&networks).await)),
                    Request::Purge(answer) => drop(answer.send(keeper.purge().await)),
                }
            }
        })?;
        let lane = opened
            .recv_timeout(START)
            .unwrap_or_else(|_| Err(late("starting the thread for the host's network", START)))?;
        Ok(Self { requests, lane, settled })
    }

    /// The network's overlay and leg, where it has them, with all that belongs to them, made when they are not there.
    /// Gives the MTU of the network's links, bytes.
    pub async fn segment(&self, fabric: &Lane, network: &NetworkPlan) -> Result<u32, Error> {
        if let Some(mtu) = self.in_place(fabric, network).await? {
            return Ok(mtu);
        }
        self.ask(|answer| Request::Segment(network.clone(), answer)).await
    }

    pub async fn connect(&self, network: &str, peers: &Peers) -> Result<(), Error> {
        self.ask(|answer| Request::Connect(network.to_owned(), peers.clone(), answer)).await
    }

    pub async fn tend(&self, networks: &[NetworkPlan]) -> Result<(), Error> {
        self.ask(|answer| Request::Tend(networks.to_vec(), answer)).await
    }

    pub async fn purge(&self) -> Result<(), Error> {
        self.ask(Request::Purge).await
    }

    /// The network's MTU when nothing has to be done for it.
    async fn in_place(&self, fabric: &Lane, network: &NetworkPlan) -> Result<Option<u32>, Error> {
        let leg = network.gateway == Gateway::Host;
        if network.kind == Kind::Local && !leg {
            return Ok(Some(names::MTU));
        }
        let up = |link: Option<Link>| link.filter(|link| link.up);
        if !self.is_settled(network)
            || (leg && up(self.lane.link(&names::leg(&network.uid)).await?).is_none())
        {
            return Ok(None);
        }
        match network.kind {
            Kind::Local => Ok(Some(names::MTU)),
            Kind::Vxlan(_) => {
                let device = up(fabric.link(&names::overlay(&network.uid)).await?);
                Ok(device.filter(|device| device.master.is_some()).map(|device| device.mtu))
            }
        }
    }

    fn is_settled(&self, network: &NetworkPlan) -> bool {
        self.settled.read().unwrap_or_else(|p| p.into_inner()).get(&network.uid) == Some(network)
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::System {
            what: "asking the thread for the host's network".into(),
            source: io::Error::other("it has ended"),
        };
        let asked = async {
            self.requests.send(request(answer)).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        };
        tokio::time::timeout(REQUEST, asked)
            .await
            .unwrap_or_else(|_| Err(late("setting up the host's network", REQUEST)))
    }
}

struct Keeper {
    thread: Dedicated,
    lane: Lane,
    fabrics: Arc<Fabrics>,
    overlays: Overlays,
    settled: Settled,
    /// Our table as nft listed it right after we wrote it; `None` before the first time.
    listing: Option<String>,
}

impl Keeper {
    async fn segment(&mut self, network: &NetworkPlan) -> Result<u32, Error> {
        let known = self.settled().get(&network.uid) == Some(network);
        let mtu = match &network.kind {
            Kind::Local => names::MTU,
            Kind::Vxlan(vxlan) => {
                let fabric = self.fabrics.get(&self.thread)?;
                self.overlays.ensure(&self.lane, &fabric, network, vxlan).await?
            }
        };
        if network.gateway == Gateway::Host {
            self.leg(network, mtu, known).await?;
        }
        if !known {
            self.settle(|settled| settled.insert(network.uid.clone(), network.clone()));
        }
        Ok(mtu)
    }

    async fn connect(&mut self, network: &str, peers: Peers) -> Result<(), Error> {
        let fabric = self.fabrics.existing(&self.thread)?;
        self.overlays.connect(fabric.as_ref(), network, peers).await
    }

    async fn leg(&mut self, network: &NetworkPlan, mtu: u32, known: bool) -> Result<(), Error> {
        if !known {
            self.make_way(network).await?;
            let text = egress::network(network);
            self.write_table(&text, std::slice::from_ref(network)).await?;
        }
        let fabric = self.fabrics.get(&self.thread)?;
        self.make_leg(&fabric, network, mtu).await?;
        if !known {
            forward(std::slice::from_ref(network))?;
            self.docker_user().await?;
        }
        Ok(())
    }

    fn settle<T>(&self, change: impl FnOnce(&mut BTreeMap<String, NetworkPlan>) -> T) -> T {
        change(&mut self.settled.write().unwrap_or_else(|p| p.into_inner()))
    }

    fn settled(&self) -> BTreeMap<String, NetworkPlan> {
        self.settled.read().unwrap_or_else(|p| p.into_inner()).clone()
    }

    /// A leg whose segment the host knows by another device would take that device's traffic. One of ours that nobody is behind any
    /// more goes: a network that was deleted leaves its range to the next at once, and its leg to the next sweep.
    async fn make_way(&mut self, network: &NetworkPlan) -> Result<(), Error> {
        let leg = names::leg(&network.uid);
        let links = self.lane.links().await?;
        for (index, present) in self.lane.addresses().await? {
            let device = links.iter().find(|link| link.index == index).map_or("?", |link| &link.name);
            let overlaps = network.cidr.contains(&present.trunc()) || present.trunc().contains(&network.cidr);
            if !overlaps || device == leg {
                continue;
            }
            if !self.is_left(device).await? {
                return Err(Error::Overlap { cidr: network.cidr, present, device: device.into() });
            }
            self.remove_leg(index, device).await?;
        }
        Ok(())
    }

    /// Whether this device is a leg of ours, of a network without an instance here.
    async fn is_left(&self, device: &str) -> Result<bool, Error> {
        let Some(of) = names::digits(names::LEG, device) else { return Ok(false) };
        let Some(fabric) = self.fabrics.existing(&self.thread)? else { return Ok(true) };
        let links = fabric.lane.links().await?;
        let bridge = links.iter().find(|link| names::digits(names::BRIDGE, &link.name) == Some(of));
        Ok(!bridge.is_some_and(|bridge| has_instances(bridge, &links)))
    }

    async fn make_leg(&self, fabric: &Fabric, network: &NetworkPlan, mtu: u32) -> Result<(), Error> {
        let (name, port) = (names::leg(&network.uid), names::leg_port(&network.uid));
        // A network with gateway `host` has at least two host addresses, so it has a first.
        let Some(gateway) = network.gateway_address() else {
            return Ok(());
        };
        let address = Ipv4Net::new(gateway, network.cidr.prefix_len()).unwrap_or(network.cidr);
        let bridge = fabric.bridge(&network.uid, mtu).await?.index;
        let (mut leg, mut end) = (self.lane.link(&name).await?, fabric.lane.link(&port).await?);
        let paired = matches!((&leg, &end), (Some(leg), Some(end)) if leg.is_pair(end));
        if !paired {
            if let Some(stray) = &leg {
                self.lane.delete(stray.index).await?;
            }
            if let Some(stray) = &end {
                fabric.lane.delete(stray.index).await?;
            }
            let mac = names::gateway_mac(&network.uid);
            fabric.lane.add_veth(&port, bridge, &name, mac, &namespace::current()?, mtu).await?;
            (leg, end) = (self.lane.link(&name).await?, fabric.lane.link(&port).await?);
        }
        let (leg, end) =
            (leg.ok_or_else(|| Error::Vanished(name.clone()))?, end.ok_or(Error::Vanished(port))?);
        if end.master != Some(bridge) || !end.up {
            fabric
                .lane
                .change(end.index, Change { master: Some(bridge), up: Some(true), ..Change::default() })
                .await?;
        }
        if leg.mac != Some(names::gateway_mac(&network.uid)) {
            let mac = Some(names::gateway_mac(&network.uid));
            self.lane.change(leg.index, Change { mac, ..Change::default() }).await?;
        }
        if leg.mtu != mtu || end.mtu != mtu {
            let change = Change { mtu: Some(mtu), ..Change::default() };
            self.lane.change(leg.index, change).await?;
            fabric.lane.change(end.index, change).await?;
        }
        // On our own device only: an instance must not be able to advertise an IPv6 router to the host, nor to send
        // from an address that is not on its segment.
        namespace::sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
        namespace::sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "1")?;
        let present: Vec<Ipv4Net> = self
            .lane
            .addresses()
            .await?
            .into_iter()
            .filter(|(i, _)| *i == leg.index)
            .map(|(_, a)| a)
            .collect();
        for wrong in present.iter().filter(|a| **a != address) {
            self.lane.remove_address(leg.index, *wrong).await?;
        }
        if !present.contains(&address) {
            self.lane.add_address(leg.index, address).await?;
        }
        if !leg.up {
            self.lane.change(leg.index, Change { up: Some(true), ..Change::default() }).await?;
        }
        if (!leg.up || !end.forwards) && !fabric.lane.forwarding(&end.name).await? {
            tracing::warn!(leg = name, "the leg does not pass frames on yet");
        }
        Ok(())
    }

    /// Everything as it should be for these networks; goes on after a failure and returns the first.
    async fn tend(&mut self, named: &[NetworkPlan]) -> Result<(), Error> {
        let mut first = Ok(());
        let with_leg: Vec<NetworkPlan> =
            named.iter().filter(|n| n.gateway == Gateway::Host).cloned().collect();
        keep(&mut first, self.sweep(named).await);
        let looked = match self.fabrics.existing(&self.thread) {
            Ok(Some(fabric)) => self.overlays.look(&fabric).await,
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        keep(&mut first, looked);
        if !with_leg.is_empty() {
            keep(&mut first, self.tend_table(&with_leg).await);
        }
        for network in named.iter().filter(|n| n.gateway == Gateway::Host || n.kind != Kind::Local) {
            keep(&mut first, self.segment(network).await.map(drop));
        }
        if !with_leg.is_empty() {
            keep(&mut first, forward(&with_leg));
            keep(&mut first, self.docker_user().await);
        }
        first
    }

    /// Writes the table when it is not as we left it.
    async fn tend_table(&mut self, networks: &[NetworkPlan]) -> Result<(), Error> {
        let present = table(egress::TABLE).await?;
        let same = present.is_some() && present == self.listing;
        let settled = self.settled();
        if same && networks.iter().all(|n| settled.get(&n.uid) == Some(n)) {
            return Ok(());
        }
        let text: String = networks.iter().map(egress::network).collect();
        self.write_table(&text, networks).await
    }

    /// Adds `elements` to our table. A table that does not take them (another version's, or meddled with) is made anew
    /// from all networks known.
    async fn write_table(&mut self, elements: &str, networks: &[NetworkPlan]) -> Result<(), Error> {
        if let Err(refused) = nft(&format!("{}{elements}", egress::base())).await {
            if matches!(refused, Error::Missing { .. } | Error::Deadline { .. }) {
                return Err(refused);
            }
            tracing::warn!(error = %refused, "the table ip enoki did not take a change and is made anew");
            let mut all = self.settled();
            all.extend(networks.iter().map(|n| (n.uid.clone(), n.clone())));
            let with_leg = all.values().filter(|n| n.gateway == Gateway::Host);
            let elements: String = with_leg.map(egress::network).collect();
            nft(&format!("{}{}{elements}", egress::gone(), egress::base())).await?;
        }
        self.listing = table(egress::TABLE).await?;
        Ok(())
    }

    async fn docker_user(&self) -> Result<(), Error> {
        if let Some(listing) = docker_user_listing().await? {
            call_iptables(egress::docker_user(&listing)).await?;
        }
        Ok(())
    }

    /// Removes what belongs to networks that are not named: bridges without an instance, their overlays and legs.
    async fn sweep(&mut self, named: &[NetworkPlan]) -> Result<(), Error> {
        let digits = |n: &NetworkPlan| names::digits(names::BRIDGE, &names::bridge(&n.uid)).map(String::from);
        let named_all: BTreeSet<String> = named.iter().filter_map(digits).collect();
        let of_named = |which: fn(&&NetworkPlan) -> bool| -> BTreeSet<String> {
            named.iter().filter(which).filter_map(digits).collect()
        };
        let named_legs = of_named(|n| n.gateway == Gateway::Host);
        let named_overlays = of_named(|n| n.kind != Kind::Local);
        let fabric = self.fabrics.existing(&self.thread)?;
        let links = match &fabric {
            Some(fabric) => fabric.lane.links().await?,
            None => Vec::new(),
        };
        // Of the networks that are not named: which have an instance on them, and which nobody.
        let (mut used, mut idle) = (BTreeSet::new(), Vec::new());
        for bridge in &links {
            let Some(of) = names::digits(names::BRIDGE, &bridge.name) else {
                continue;
            };
            if has_instances(bridge, &links) {
                used.insert(of.to_owned());
            } else if !named_all.contains(of) {
                idle.push(bridge);
            }
        }
        for leg in self.lane.links().await? {
            let Some(of) = names::digits(names::LEG, &leg.name) else {
                continue;
            };
            let stays = named_legs.contains(of) || (used.contains(of) && !named_all.contains(of));
            if !stays {
                self.remove_leg(leg.index, &leg.name).await?;
            }
        }
        let Some(fabric) = &fabric else { return Ok(()) };
        for bridge in idle {
            fabric.lane.delete(bridge.index).await?;
        }
        let (mut devices, mut gone) = (Vec::new(), false);
        for device in &links {
            let Some(of) = names::digits(names::OVERLAY, &device.name) else {
                continue;
            };
            if named_overlays.contains(of) || (used.contains(of) && !named_all.contains(of)) {
                devices.push(device.name.clone());
            } else {
                fabric.lane.delete(device.index).await?;
                self.overlays.forget(&device.name);
                self.settle(|settled| settled.retain(|uid, _| names::overlay(uid) != device.name));
                gone = true;
            }
        }
        if gone { self.overlays.sweep(fabric, &devices).await } else { Ok(()) }
    }

    async fn remove_leg(&mut self, index: u32, name: &str) -> Result<(), Error> {
        let cidr =
            self.lane.addresses().await?.into_iter().find(|(i, _)| *i == index).map(|(_, a)| a.trunc());
        self.lane.delete(index).await?;
        self.settle(|settled| settled.retain(|uid, _| names::leg(uid) != name));
        self.write_table(&egress::without(name, cidr), &[]).await
    }

    async fn purge(&mut self) -> Result<(), Error> {
        if let Some(fabric) = self.fabrics.existing(&self.thread)? {
            fabric::clear(&fabric).await?;
        }
        self.fabrics.forget();
        self.overlays = Overlays::default();
        for leg in self.lane.links().await? {
            if names::digits(names::LEG, &leg.name).is_some() {
                self.lane.delete(leg.index).await?;
            }
        }
        for pin in namespace::pins()? {
            namespace::remove(&pin)?;
        }
        namespace::remove_folder()?;
        match nft(&egress::gone()).await {
            // Without nft there never was a table.
            Ok(()) | Err(Error::Missing { .. }) => {}
            Err(e) => return Err(e),
        }
        self.listing = None;
        self.settle(BTreeMap::clear);
        if let Some(listing) = docker_user_listing().await? {
            call_iptables(egress::docker_user_gone(&listing)).await?;
        }
        Ok(())
    }
}

/// Whether an instance is on this bridge, of the fabric's links.
fn has_instances(bridge: &Link, links: &[Link]) -> bool {
    links.iter().any(|port| port.master == Some(bridge.index) && !names::is_networks_own(&port.name))
}

fn keep(first: &mut Result<(), Error>, next: Result<(), Error>) {
    if first.is_ok() {
        *first = next;
    } else if let Err(e) = next {
        tracing::warn!(error = %e, "tending the host's network");
    }
}

/// Switches forwarding on where it is off and a network needs it. Nothing ever switches it off: others may have come
/// to rely on it.
fn forward(networks: &[NetworkPlan]) -> Result<(), Error> {
    let needed = networks.iter().any(|n| n.gateway == Gateway::Host && n.egress != Egress::None);
    let path = "/proc/sys/net/ipv4/ip_forward";
    if needed && fs::read_to_string(path).map_err(Error::system(format!("reading {path}")))?.trim() == "0" {
        fs::write(path, "1").map_err(Error::system(format!("setting {path} to 1")))?;
        tracing::info!("switched IPv4 forwarding on, for instances' way out");
    }
    Ok(())
}

fn late(what: &str, deadline: Duration) -> Error {
    Error::Deadline { what: what.into(), seconds: deadline.as_secs() }
}
