//! Overlays in the kernel: each network's vxlan device in the fabric, its screen and its forwarding entries.
//!
//! Only the thread of [`host`](super::host) works here. A device is asked for in the host's namespace, where what it
//! carries travels, and made in the fabric, where the bridge is.
//!
//! **On failure** what was made stays, and the next time goes on from there.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::fabric::Fabric;
use super::namespace::Identity;
use super::netlink::{self, Change, Lane, Link, LinkKind};
use super::overlay::{self, Action, Device, OVERHEAD, Peers, Tunnel, View, Wanted};
use super::{Error, Gateway, NetworkPlan, Vxlan, names, programs, screen};

/// A segment is free a moment after its namespace has ended: the kernel clears it away on its own.
const SETTLING: Duration = Duration::from_secs(2);
/// How often a device is looked at anew when what was seen changed before it was acted on.
const ROUNDS: usize = 5;

#[derive(Default)]
pub struct Overlays {
    /// As last told, by network.
    peers: BTreeMap<String, Peers>,
    /// The devices whose screen this agent wrote: a namespace and a number in it, by network.
    screened: BTreeMap<String, (Identity, u32)>,
    /// The screens as nft listed them right after we wrote the last.
    listing: Option<String>,
}

/// Where overlays are.
struct Place<'a> {
    host: &'a Lane,
    fabric: &'a Fabric,
}

impl Overlays {
    /// The network's device with all that belongs to it, on its bridge. Gives the MTU of the network's links.
    pub async fn ensure(
        &mut self,
        host: &Lane,
        fabric: &Fabric,
        network: &NetworkPlan,
        vxlan: &Vxlan,
    ) -> Result<u32, Error> {
        let underlay = host.mtu_at(vxlan.address).await?.ok_or(Error::Underlay(vxlan.address))?;
        let mtu = underlay.saturating_sub(OVERHEAD);
        let place = Place { host, fabric };
        let bridge = fabric.bridge(&network.uid, mtu).await?;
        let peers = self.peers.get(&network.uid).cloned();
        let wanted = Wanted { tunnel: Tunnel::of(vxlan), mtu, peers: peers.as_ref() };
        let mut last = None;
        for _ in 0..ROUNDS {
            match self.round(&place, network, &wanted, &bridge).await {
                Ok(()) => return Ok(mtu),
                Err(e) if netlink::is_stale(&e) => last = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| Error::Vanished(names::overlay(&network.uid))))
    }

    /// Who is where from now on. Makes no device: until the network is used here, this is remembered.
    pub async fn connect(&mut self, fabric: Option<&Fabric>, uid: &str, peers: Peers) -> Result<(), Error> {
        let peers = self.peers.entry(uid.to_owned()).insert_entry(peers);
        let Some(fabric) = fabric else { return Ok(()) };
        let Some(Link { index, kind: LinkKind::Vxlan(tunnel), .. }) =
            fabric.lane.link(&names::overlay(uid)).await?
        else {
            return Ok(());
        };
        let present = fabric.lane.entries(index).await?;
        for action in overlay::forwarding(tunnel.address, peers.get(), &present) {
            forward(&fabric.lane, index, &action).await?;
        }
        Ok(())
    }

    /// Looks whether the screens are as we left them; where they are not, they are written again.
    pub async fn look(&mut self, fabric: &Fabric) -> Result<(), Error> {
        if !self.screened.is_empty() && listing(fabric).await? != self.listing {
            self.screened.clear();
        }
        Ok(())
    }

    /// Forgets what belongs to devices that are not among these, which are all that there are.
    pub async fn sweep(&mut self, fabric: &Fabric, devices: &[String]) -> Result<(), Error> {
        self.screened.retain(|uid, _| devices.contains(&names::overlay(uid)));
        let present = listing(fabric).await?;
        if let Some(text) = present.and_then(|listing| screen::without(&listing, devices)) {
            nft(fabric, text).await?;
            self.listing = listing(fabric).await?;
        }
        Ok(())
    }

    /// Nothing is known of a network that is not here any more.
    pub fn forget(&mut self, device: &str) {
        self.peers.retain(|uid, _| names::overlay(uid) != device);
    }

    async fn round(
        &mut self,
        place: &Place<'_>,
        network: &NetworkPlan,
        wanted: &Wanted<'_>,
        bridge: &Link,
    ) -> Result<(), Error> {
        let name = names::overlay(&network.uid);
        let lane = &place.fabric.lane;
        let found = lane.link(&name).await?;
        let view = self.view(place.fabric, network, bridge, found.as_ref()).await?;
        let mut index = found.map(|link| link.index);
        for action in overlay::plan(wanted, &view) {
            tracing::debug!(network = network.uid, ?action, "overlay");
            let number = index.ok_or_else(|| Error::Vanished(name.clone()));
            match action {
                Action::Discard => lane.delete(number?).await?,
                Action::Make => {
                    make(place, &name, wanted).await?;
                    index = lane.link(&name).await?.map(|link| link.index);
                }
                Action::Screen => self.screen(place.fabric, network, number?).await?,
                Action::SetMtu => {
                    lane.change(number?, Change { mtu: Some(wanted.mtu), ..Change::default() }).await?;
                }
                Action::Set(_) | Action::Remove(_) => forward(lane, number?, &action).await?,
                Action::Join => {
                    let join = Change { master: Some(bridge.index), up: Some(true), ..Change::default() };
                    lane.change(number?, join).await?;
                    if !lane.forwarding(&name).await? {
                        tracing::warn!(device = name, "the overlay does not pass frames on yet");
                    }
                }
            }
        }
        Ok(())
    }

    async fn view(
        &self,
        fabric: &Fabric,
        network: &NetworkPlan,
        bridge: &Link,
        found: Option<&Link>,
    ) -> Result<View, Error> {
        let Some(link) = found else { return Ok(View::default()) };
        let tunnel = match link.kind {
            LinkKind::Vxlan(tunnel) => Some(tunnel),
            LinkKind::Bridge | LinkKind::Veth | LinkKind::Other => None,
        };
        let screened = network.gateway != Gateway::Host
            || self.screened.get(&network.uid) == Some(&(fabric.identity, link.index));
        let joined = link.up && link.master == Some(bridge.index);
        Ok(View {
            device: Some(Device { tunnel, mtu: link.mtu, screened, joined }),
            entries: fabric.lane.entries(link.index).await?,
        })
    }

    async fn screen(&mut self, fabric: &Fabric, network: &NetworkPlan, device: u32) -> Result<(), Error> {
        if let Some(gateway) = network.gateway_address() {
            nft(fabric, screen::text(&network.uid, gateway, names::gateway_mac(&network.uid))).await?;
            self.listing = listing(fabric).await?;
        }
        self.screened.insert(network.uid.clone(), (fabric.identity, device));
        Ok(())
    }
}

async fn forward(lane: &Lane, device: u32, action: &Action) -> Result<(), Error> {
    match action {
        Action::Set(entry) => lane.set_entry(device, *entry).await,
        Action::Remove(entry) => lane.remove_entry(device, *entry).await,
        Action::Discard | Action::Make | Action::Screen | Action::SetMtu | Action::Join => Ok(()),
    }
}

/// A segment can have one device on a machine. One that an idle network left behind makes room; so does, in a moment,
/// one whose namespace has just ended.
async fn make(place: &Place<'_>, name: &str, wanted: &Wanted<'_>) -> Result<(), Error> {
    let until = Instant::now() + SETTLING;
    loop {
        let made = place.host.add_vxlan(name, wanted.tunnel, wanted.mtu, place.fabric.namespace()).await;
        match made {
            Err(e) if netlink::is_taken(&e) => {}
            other => return other,
        }
        let links = place.fabric.lane.links().await?;
        let other = links.iter().find(
            |link| matches!(link.kind, LinkKind::Vxlan(tunnel) if tunnel.segment == wanted.tunnel.segment),
        );
        match other {
            // Somebody else has just made it.
            Some(same) if same.name == name => return Err(Error::Vanished(name.into())),
            Some(other) if !in_use(other, &links) => place.fabric.lane.delete(other.index).await?,
            Some(_) => return Err(Error::Segment(wanted.tunnel.segment)),
            None if Instant::now() > until => return Err(Error::Segment(wanted.tunnel.segment)),
            None => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Whether an instance is on the bridge that this vxlan device is a port of.
fn in_use(device: &Link, links: &[Link]) -> bool {
    let port = |link: &&Link| device.master.is_some() && link.master == device.master;
    links.iter().filter(port).any(|link| !names::is_networks_own(&link.name))
}

/// The screens as nft prints them; `None` when there are none.
async fn listing(fabric: &Fabric) -> Result<Option<String>, Error> {
    fabric.run("listing the overlays' screens", || programs::table(screen::TABLE)).await
}

async fn nft(fabric: &Fabric, text: String) -> Result<(), Error> {
    fabric.run("screening an overlay", || async move { programs::nft(&text).await }).await
}
