//! Links, addresses, routes and queues of one namespace, over one netlink connection.
//!
//! A [`Lane`] speaks to the namespace that its thread was in when it was opened, from wherever it is used afterwards.
//! Every request has a deadline: a kernel that does not answer is an error, not a hang. "Not there" is an answer when
//! looking and when removing, never an error.

use std::collections::BTreeSet;
use std::fs::File;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use ipnet::Ipv4Net;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_ECHO, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan,
    RouteMessageBuilder,
};

use super::overlay::{Entry, Tunnel};
use super::{Error, Mac, rate};

const DEADLINE: Duration = Duration::from_secs(5);
/// The kernel tells a bridge of a new carrier after a second at the latest.
const SETTLING: Duration = Duration::from_millis(1500);

/// A link as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub kind: LinkKind,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Whether it is a port that passes frames on. A bridge learns of its ports' carrier a moment after they come up.
    pub forwards: bool,
    /// Index of the other end of a veth, in that end's namespace.
    pub peer: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkKind {
    Bridge,
    Veth,
    Vxlan(Tunnel),
    #[default]
    Other,
}

impl Link {
    /// Whether these are the two ends of one veth. Indices are per namespace, so both directions must agree.
    pub fn is_pair(&self, other: &Link) -> bool {
        self.kind == LinkKind::Veth
            && other.kind == LinkKind::Veth
            && self.peer == Some(other.index)
            && other.peer == Some(self.index)
    }
}

/// A default route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Default4 {
    pub via: Option<Ipv4Addr>,
    pub device: u32,
    message: RouteMessage,
}

/// What to change on a link; `None` leaves it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    pub up: Option<bool>,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub master: Option<u32>,
}

/// One connection to one namespace's netlink. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lane(Handle);

impl Lane {
    /// Connects to the namespace of this thread; the connection lives on this thread's runtime until the last clone
    /// is dropped.
    pub fn open() -> Result<(Self, impl Future<Output = ()> + Send + use<>), Error> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(Error::system("opening a netlink socket"))?;
        Ok((Self(handle), connection))
    }

    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let request = self.0.link().get().match_name(name).execute();
        let found =
            bounded(format!("looking for link {name}"), async { std::pin::pin!(request).try_next().await });
        Ok(absent_is_none(found.await)?.flatten().map(|message| parse(&message)))
    }

    /// Waits until a port passes frames on; a port that never does is not an error here.
    pub async fn forwarding(&self, port: &str) -> Result<bool, Error> {
        let until = tokio::time::Instant::now() + SETTLING;
        loop {
            match self.link(port).await? {
                Some(link) if link.forwards => return Ok(true),
                Some(_) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(1)).await
                }
                Some(_) | None => return Ok(false),
            }
        }
    }

    /// The MTU of the device that has this address; `None` when none has it.
    pub async fn mtu_at(&self, address: Ipv4Addr) -> Result<Option<u32>, Error> {
        let present = self.addresses().await?;
        let Some((index, _)) = present.into_iter().find(|(_, net)| net.addr() == address) else {
            return Ok(None);
        };
        let request = self.0.link().get().match_index(index).execute();
        let found =
            bounded(format!("looking for link {index}"), async { std::pin::pin!(request).try_next().await });
        Ok(absent_is_none(found.await)?.flatten().map(|message| parse(&message).mtu))
    }

    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let request = self.0.link().get().execute();
        let all: Vec<LinkMessage> = bounded("listing links".into(), request.try_collect()).await?;
        Ok(all.iter().map(parse).collect())
    }

    /// IPv4 addresses with their device's index.
    pub async fn addresses(&self) -> Result<Vec<(u32, Ipv4Net)>, Error> {
        let mut request = self.0.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        let all: Vec<AddressMessage> =
            bounded("listing addresses".into(), request.execute().try_collect()).await?;
        Ok(all.iter().filter_map(|m| Some((m.header.index, local_address(m)?))).collect())
    }

    pub async fn default_routes(&self) -> Result<Vec<Default4>, Error> {
        let request = self.0.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let all: Vec<RouteMessage> = bounded("listing routes".into(), request.try_collect()).await?;
        Ok(all.into_iter().filter_map(default_route).collect())
    }

    /// A bridge's own MTU then follows that of its ports.
    pub async fn add_bridge(&self, name: &str, mac: Mac, mtu: u32) -> Result<(), Error> {
        let message = LinkBridge::new(name)
            .address(mac.0.to_vec())
            .mtu(mtu)
            .forward_delay(0)
            .stp_state(BridgeStpState::Disabled)
            .mcast_snooping(false)
            .build();
        bounded(format!("making bridge {name}"), self.0.link().add(message).execute()).await
    }

    /// Makes a veth with `port` here, up and in the bridge, and `peer` with its address in another namespace, down.
    pub async fn add_veth(
        &self,
        port: &str,
        bridge: u32,
        peer: &str,
        peer_mac: Mac,
        peer_namespace: &File,
        mtu: u32,
    ) -> Result<(), Error> {
        let other = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .address(peer_mac.0.to_vec())
            .mtu(mtu)
            .setns_by_fd(peer_namespace.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new(port, peer)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .mtu(mtu)
            .controller(bridge)
            .up()
            .build();
        bounded(format!("making link {port} with its other end {peer}"), self.0.link().add(message).execute())
            .await
    }

    /// Makes a vxlan device in another namespace, down. What it carries travels in this one: the kernel keeps the
    /// namespace that a tunnel was asked for in.
    pub async fn add_vxlan(
        &self,
        name: &str,
        tunnel: Tunnel,
        mtu: u32,
        namespace: &File,
    ) -> Result<(), Error> {
        let message = LinkVxlan::new(name, tunnel.segment)
            .local(tunnel.address)
            .port(tunnel.port)
            .learning(tunnel.learning)
            .mtu(mtu)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let what =
            format!("making vxlan device {name} of segment {} from {}", tunnel.segment, tunnel.address);
        bounded(what, self.0.link().add(message).execute()).await
    }

    /// The forwarding entries of a vxlan device.
    pub async fn entries(&self, device: u32) -> Result<BTreeSet<Entry>, Error> {
        // The kernel filters by device only for those who ask for strict checking, which other requests do not bear.
        let request = self.0.neighbours().get().set_address_family(AddressFamily::Bridge).execute();
        let all: Vec<NeighbourMessage> =
            bounded(format!("listing forwarding entries of link {device}"), request.try_collect()).await?;
        Ok(all.iter().filter(|message| message.header.ifindex == device).filter_map(entry).collect())
    }

    /// Makes an entry. One of all zeros comes beside those that are there; any other takes its place.
    pub async fn set_entry(&self, device: u32, entry: Entry) -> Result<(), Error> {
        let how = if entry.floods() { NLM_F_APPEND } else { NLM_F_REPLACE };
        let message = RouteNetlinkMessage::NewNeighbour(entry_message(device, entry));
        self.exchange(format!("forwarding {entry} on link {device}"), message, NLM_F_CREATE | how)
            .await
            .map(drop)
    }

    pub async fn remove_entry(&self, device: u32, entry: Entry) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelNeighbour(entry_message(device, entry));
        let what = format!("no longer forwarding {entry} on link {device}");
        absent_is_none(self.exchange(what, message, 0).await).map(drop)
    }

    pub async fn change(&self, index: u32, change: Change) -> Result<(), Error> {
        let mut message = LinkUnspec::new_with_index(index);
        if let Some(mac) = change.mac {
            message = message.address(mac.0.to_vec());
        }
        if let Some(mtu) = change.mtu {
            message = message.mtu(mtu);
        }
        if let Some(master) = change.master {
            message = message.controller(master);
        }
        match change.up {
            Some(true) => message = message.up(),
            Some(false) => message = message.down(),
            None => {}
        }
        bounded(format!("changing link {index}: {change:?}"), self.0.link().change(message.build()).execute())
            .await
    }

    /// Removes a link, and with a veth its other end.
    pub async fn delete(&self, index: u32) -> Result<(), Error> {
        let request = self.0.link().del(index).execute();
        absent_is_none(bounded(format!("removing link {index}"), request).await).map(|_| ())
    }

    pub async fn add_address(&self, index: u32, address: Ipv4Net) -> Result<(), Error> {
        let request = self.0.address().add(index, IpAddr::V4(address.addr()), address.prefix_len());
        bounded(format!("adding address {address} to link {index}"), request.replace().execute()).await
    }

    pub async fn remove_address(&self, index: u32, address: Ipv4Net) -> Result<(), Error> {
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(address.addr(), address.prefix_len())
            .build();
        let request = self.0.address().del(message).execute();
        absent_is_none(bounded(format!("removing address {address} from link {index}"), request).await)
            .map(|_| ())
    }

    pub async fn set_default(&self, via: Ipv4Addr, device: u32) -> Result<(), Error> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new().gateway(via).output_interface(device).build();
        let request = self.0.route().add(message).replace().execute();
        bounded(format!("setting the default route through {via} on link {device}"), request).await
    }

    pub async fn remove_default(&self, route: &Default4) -> Result<(), Error> {
        let request = self.0.route().del(route.message.clone()).execute();
        absent_is_none(bounded("removing a default route".into(), request).await).map(|_| ())
    }

    /// The rate limit of what the link sends, in bytes a second; `None` when it has none.
    pub async fn rate(&self, index: u32) -> Result<Option<u64>, Error> {
        let message = RouteNetlinkMessage::GetQueueDiscipline(root_queue(index, Vec::new()));
        let what = format!("reading the queue of link {index}");
        // Without the echo the kernel sends the answer to everybody who listens for changes, but not to who asked.
        let found = no_queue_is_none(self.exchange(what, message, NLM_F_ECHO).await)?.flatten();
        Ok(found.and_then(|message| rate::read(&message.attributes)))
    }

    /// Sets the rate limit of what the link sends, or takes it away.
    pub async fn set_rate(&self, index: u32, bits: Option<u64>) -> Result<(), Error> {
        let (what, message, flags) = match bits {
            Some(bits) => (
                format!("limiting link {index} to {bits} bit/s"),
                RouteNetlinkMessage::NewQueueDiscipline(root_queue(index, rate::attributes(bits))),
                NLM_F_CREATE | NLM_F_REPLACE,
            ),
            None => (
                format!("removing the limit of link {index}"),
                RouteNetlinkMessage::DelQueueDiscipline(root_queue(index, Vec::new())),
                0,
            ),
        };
        let done = self.exchange(what, message, flags).await;
        if bits.is_none() { no_queue_is_none(done).map(|_| ()) } else { done.map(|_| ()) }
    }

    /// One acknowledged request, for what the library's own builders cannot say: a queue's options, one more
    /// destination of an entry. Gives the queue that the answer holds.
    async fn exchange(
        &self,
        what: String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<TcMessage>, Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut handle = self.0.clone();
        bounded(what, async move {
            let mut answers = std::pin::pin!(handle.request(request)?);
            let mut found = None;
            while let Some(answer) = answers.next().await {
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(rtnetlink::Error::NetlinkError(error));
                    }
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(queue)) => {
                        found = Some(queue)
                    }
                    _ => {}
                }
            }
            Ok(found)
        })
        .await
    }
}

fn root_queue(index: u32, attributes: Vec<rtnetlink::packet_route::tc::TcAttribute>) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.attributes = attributes;
    message
}

fn entry_message(device: u32, entry: Entry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    // The device's own table, not that of the bridge which it is a port of.
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet(entry.host)),
    ];
    message
}

/// `None` for what is not of the device's own table.
fn entry(message: &NeighbourMessage) -> Option<Entry> {
    let (mut mac, mut host) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            // The library reads addresses by the message's family, which is the bridge's here.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                host = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            _ => {}
        }
    }
    message.header.flags.contains(NeighbourFlags::Own).then_some(Entry { mac: mac?, host: host? })
}

async fn bounded<T>(
    what: String,
    work: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Error::Netlink { what, source }),
        Err(_) => Err(Error::Deadline { what, seconds: DEADLINE.as_secs() }),
    }
}

fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::Netlink { source: rtnetlink::Error::NetlinkError(message), .. } => Some(-message.raw_code()),
        _ => None,
    }
}

/// ESRCH is how routes say it, EADDRNOTAVAIL addresses.
fn absent_is_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) => match errno(&e) {
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL) => Ok(None),
            _ => Err(e),
        },
    }
}

/// A link whose queue is only the built-in one answers EINVAL.
fn no_queue_is_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match &result {
        Err(e) if errno(e) == Some(libc::EINVAL) => Ok(None),
        Ok(_) | Err(_) => absent_is_none(result),
    }
}

/// Whether what was to be made is there already, under this name or by what is unique of it.
pub fn is_taken(error: &Error) -> bool {
    errno(error) == Some(libc::EEXIST)
}

/// Whether a request failed because the objects changed between looking and acting: look again.
pub fn is_stale(error: &Error) -> bool {
    matches!(error, Error::Vanished(_))
        || matches!(
            errno(error),
            Some(libc::EEXIST | libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::ENETUNREACH)
        )
}

fn parse(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(master) => link.master = Some(*master).filter(|m| *m != 0),
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
                        LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth,
                        LinkInfo::Data(InfoData::Vxlan(data)) => link.kind = LinkKind::Vxlan(tunnel(data)),
                        LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                            let forwarding = InfoBridgePort::State(BridgePortState::Forwarding);
                            link.forwards = port.contains(&forwarding);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn tunnel(data: &[InfoVxlan]) -> Tunnel {
    let mut tunnel = Tunnel { segment: 0, address: Ipv4Addr::UNSPECIFIED, port: 0, learning: false };
    for info in data {
        match info {
            InfoVxlan::Id(id) => tunnel.segment = *id,
            InfoVxlan::Local(address) => tunnel.address = *address,
            InfoVxlan::Port(port) => tunnel.port = *port,
            InfoVxlan::Learning(learning) => tunnel.learning = *learning,
            _ => {}
        }
    }
    tunnel
}

fn local_address(message: &AddressMessage) -> Option<Ipv4Net> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => {
            Ipv4Net::new(*address, message.header.prefix_len).ok()
        }
        _ => None,
    })
}

fn default_route(message: RouteMessage) -> Option<Default4> {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet
        || header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let mut via = None;
    let mut device = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    device.map(|device| Default4 { via, device, message })
}
