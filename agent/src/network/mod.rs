//! An instance's network: a namespace, its links, addresses and routes, made before its container exists.
//!
//! ```text
//!  host namespace            fabric namespace                 instance namespace
//!  ek<net> gateway/24 ────── el<net> ─┐                       /run/enoki/netns/<uid>
//!  nft table ip enoki                 eb<net> (bridge)
//!  DOCKER-USER accept                 ├─ ev<uid,nic> ──────── eth0 address/24, default route
//!  UDP 4789 ◀──────────────────────── └─ ex<net> (vxlan), where the network spans hosts
//! ```
//! - All bridges live in one namespace of their own, the *fabric*, which has no firewall rules and no conntrack:
//!   whatever Docker or an administrator does to the host's own chains cannot lose a frame between two instances.
//! - The host has a *leg* (`ek…`) into a segment only where that network's gateway is on the host.
//! - Every name is derived from a uid, and every operation is "make it so": looked at, compared by [`plan`], and only
//!   the difference is done. Killed at any step and repeated, the result is the same; a correct instance is not touched.
//! - Namespaces are pinned by bind mounts, so they outlive the agent and every daemon.
//!
//! **On failure** an operation returns the first [`Error`] and leaves what it had made; the caller repeats it. There
//! is no retry in here beyond one re-reading of what a concurrent operation changed.

mod bridge;
mod dial;
mod egress;
mod fabric;
mod host;
mod linux;
mod names;
mod namespace;
mod netlink;
pub mod overlay;
pub mod plan;
mod programs;
mod rate;
mod screen;
mod simulated;
mod tunnel;
mod underlay;

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use async_trait::async_trait;
use ipnet::Ipv4Net;

pub use dial::dial;
pub use linux::Linux;
pub use overlay::Peers;
pub use simulated::{Simulated, World};
pub use underlay::Underlay;

/// What is on the wire below a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One bridge on this host; reaches no other host.
    Local,
    /// A bridge on each host that has an instance on it, joined by tunnels between these hosts.
    Vxlan(Vxlan),
}

/// This host's end of a network that spans hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vxlan {
    /// The segment's number in every frame between hosts (VNI), 1 to [`Vxlan::LAST`]: one network's alone.
    pub segment: u32,
    /// This host's address that the other hosts reach it at. The MTU of its device less [`overlay::OVERHEAD`] is that
    /// of the network's links here.
    pub address: Ipv4Addr,
}

impl Vxlan {
    /// The largest number: it has 24 bits.
    pub const LAST: u32 = (1 << 24) - 1;

    fn check(&self) -> Result<(), String> {
        if !(1..=Self::LAST).contains(&self.segment) {
            return Err(format!("segment {} is not between 1 and {}", self.segment, Self::LAST));
        }
        overlay_host(self.address)
    }
}

/// Where a tunnel can begin or end.
fn overlay_host(address: Ipv4Addr) -> Result<(), String> {
    let one = !address.is_unspecified() && !address.is_loopback() && !address.is_multicast();
    match one && !address.is_broadcast() {
        true => Ok(()),
        false => Err(format!("{address} is not an address that other hosts reach a host at")),
    }
}

/// Who routes for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gateway {
    /// Nobody: instances reach their own segment only.
    None,
    /// This host, with the first address of the CIDR.
    Host,
    /// Somebody on the segment with this address; the host owns no address on it.
    Address(Ipv4Addr),
}

/// Where the host forwards what instances send beyond their segment. Only `gateway: host` gives it a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Egress {
    /// Nowhere: an instance reaches the host and its own segment.
    None,
    /// Anywhere, with its own address; others may open connections to it.
    Routed,
    /// Anywhere, behind the host's address; from elsewhere only answers come back.
    Nat,
}

/// One segment as this host has to have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkPlan {
    pub uid: String,
    pub kind: Kind,
    pub cidr: Ipv4Net,
    pub gateway: Gateway,
    pub egress: Egress,
}

impl NetworkPlan {
    /// The address that instances route through, `None` where nobody routes.
    pub fn gateway_address(&self) -> Option<Ipv4Addr> {
        match self.gateway {
            Gateway::None => None,
            Gateway::Host => self.cidr.hosts().next(),
            Gateway::Address(address) => Some(address),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let bad = |why: String| Err(Error::Invalid(format!("network {}: {why}", self.uid)));
        check_uid("network", &self.uid)?;
        if self.cidr.trunc() != self.cidr {
            return bad(format!("{} has host bits set, use {}", self.cidr, self.cidr.trunc()));
        }
        if !(8..=30).contains(&self.cidr.prefix_len()) {
            return bad(format!("{} must have a prefix between /8 and /30", self.cidr));
        }
        if let Kind::Vxlan(vxlan) = self.kind {
            vxlan.check().or_else(bad)?;
        }
        match self.gateway {
            Gateway::Address(address) if !usable(&self.cidr, address) => {
                bad(format!("the gateway {address} is not a host address of {}", self.cidr))
            }
            Gateway::None | Gateway::Host | Gateway::Address(_) => Ok(()),
        }
    }
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether it can be one station's.
    fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && *self != Self([0; 6])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::Invalid(format!("{text:?} is not a MAC address like 02:00:5e:10:00:01"));
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(mac)) }
    }
}

/// One interface of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NicPlan {
    /// `eth0`, `eth1`, ...: the link's name inside.
    pub name: String,
    pub network: NetworkPlan,
    pub address: Ipv4Addr,
    pub mac: Mac,
    /// Bits a second that the instance may send; `None` is unlimited.
    pub egress_bits: Option<u64>,
    /// Bits a second that the instance may receive; `None` is unlimited.
    pub ingress_bits: Option<u64>,
}

/// All of an instance's interfaces. No NIC at all is a namespace with a loopback.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstancePlan {
    pub uid: String,
    pub nics: Vec<NicPlan>,
}

impl InstancePlan {
    /// Refuses what no repetition could make right.
    fn check(&self) -> Result<(), Error> {
        check_uid("instance", &self.uid)?;
        for (at, nic) in self.nics.iter().enumerate() {
            let bad =
                |why: String| Err(Error::Invalid(format!("instance {}, nic {}: {why}", self.uid, nic.name)));
            let number = nic.name.strip_prefix("eth").and_then(|n| n.parse::<u8>().ok());
            if number.is_none_or(|n| n >= names::MAX_NICS || nic.name != format!("eth{n}")) {
                return bad(format!("a nic is named eth0 to eth{}", names::MAX_NICS - 1));
            }
            if self.nics[..at].iter().any(|other| other.name == nic.name) {
                return bad("named twice".into());
            }
            nic.network.check()?;
            if !usable(&nic.network.cidr, nic.address) {
                return bad(format!("{} is not a host address of {}", nic.address, nic.network.cidr));
            }
            if nic.network.gateway_address() == Some(nic.address) && nic.network.gateway == Gateway::Host {
                return bad(format!("{} is the gateway's, which the host has", nic.address));
            }
            if !nic.mac.is_unicast() {
                return bad(format!("{} is not a unicast MAC address", nic.mac));
            }
            for bits in [nic.egress_bits, nic.ingress_bits].into_iter().flatten() {
                if bits < rate::MIN_BITS {
                    return bad(format!(
                        "a rate of {bits} bit/s is below the smallest, {} bit/s",
                        rate::MIN_BITS
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Peers {
    /// Refuses what would send frames nowhere, or to everybody.
    fn check(&self, network: &str) -> Result<(), Error> {
        check_uid("network", network)?;
        let bad = |why: String| Err(Error::Invalid(format!("peers of network {network}: {why}")));
        if let Some(mac) = self.instances.keys().find(|mac| !mac.is_unicast()) {
            return bad(format!("{mac} is not a unicast MAC address"));
        }
        self.instances.values().chain(&self.hosts).try_for_each(|host| overlay_host(*host).or_else(bad))
    }
}

/// A host address: neither the network's own nor the broadcast.
fn usable(cidr: &Ipv4Net, address: Ipv4Addr) -> bool {
    cidr.contains(&address) && address != cidr.network() && address != cidr.broadcast()
}

/// A uid becomes a file name below the pins' folder.
fn check_uid(what: &str, uid: &str) -> Result<(), Error> {
    let fine = (1..=64).contains(&uid.len())
        && uid != names::FABRIC
        && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fine {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "{what} uid {uid:?}: use 1 to 64 letters, digits, - or _, and not {:?}",
            names::FABRIC
        )))
    }
}

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan itself is wrong; repeating it is useless.
    #[error("{0}")]
    Invalid(String),
    /// The host already has addresses there; a leg would take their traffic.
    #[error("network {cidr} overlaps {present}, which this host has on {device}; choose another CIDR")]
    Overlap { cidr: Ipv4Net, present: Ipv4Net, device: String },
    /// This host cannot send from the address that it should have.
    #[error(
        "this host has no address {0}, at which other hosts are told to reach it; \
         set `address` in the agent's configuration to one that it has"
    )]
    Underlay(Ipv4Addr),
    /// Two networks with one number would be one network.
    #[error("segment {0} is taken on this host by another vxlan device; see `ip -d link show type vxlan`")]
    Segment(u32),
    /// A program that we run is not installed.
    #[error("{program} is not installed on this host; install the package {package}")]
    Missing { program: &'static str, package: &'static str },
    /// A program that we ran refused.
    #[error("{program} failed: {message}")]
    Command { program: &'static str, message: String },
    /// The kernel refused a request.
    #[error("{what}: {source}")]
    Netlink { what: String, source: rtnetlink::Error },
    /// A system call failed.
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
    /// Something took longer than its deadline.
    #[error("{what} did not finish in {seconds} s")]
    Deadline { what: String, seconds: u64 },
    /// A link went away between looking and acting.
    #[error("link {0} went away while it was being used")]
    Vanished(String),
    /// Somebody else keeps changing the same objects; repeat later.
    #[error("instance {0}: its links kept changing while they were being made")]
    Contended(String),
}

impl Error {
    fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

/// What the agent asks of its host's network. Every method may be repeated at any time.
#[async_trait]
pub trait Network: Send + Sync {
    /// Makes the instance's namespace and everything in it as planned, and returns the path of its pin.
    /// An instance that is right already is not touched, whatever runs in it.
    async fn ensure(&self, plan: &InstancePlan) -> Result<PathBuf, Error>;

    /// Says who is where on a network that spans hosts: from now on these and no others are in its forwarding table.
    /// Until an instance here is on the network this is only remembered, and forgotten when [`Network::tend`] clears
    /// the network away.
    async fn connect(&self, network: &str, peers: &Peers) -> Result<(), Error>;

    /// Takes the instance's links off their segments at once and unpins its namespace. Fine when there is none.
    async fn remove(&self, uid: &str) -> Result<(), Error>;

    /// Uids of the instances that have a namespace here.
    async fn instances(&self) -> Result<Vec<String>, Error>;

    /// Puts back what is missing for these networks (overlays, legs, table, DOCKER-USER, forwarding), and removes
    /// bridges, overlays and legs of networks that are not named here and have no instance on them.
    async fn tend(&self, networks: &[NetworkPlan]) -> Result<(), Error>;

    /// Removes all that this module ever made on this host, except that `ip_forward` stays as it is.
    async fn purge(&self) -> Result<(), Error>;
}
