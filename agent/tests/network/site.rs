//! Several hosts in one test: each a thread with a network namespace, a /run and an agent's network of its own. A wire
//! joins them: a bridge in a namespace beside them, with a listener that reads what tunnels carry.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use enoki_agent::network::{InstancePlan, Kind, Linux, Mac, Network, NetworkPlan, Peers, Vxlan};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use tokio::runtime::Runtime;

use super::world::*;

type Job = Box<dyn FnOnce(&Runtime, &mut Linux) + Send>;

/// One host. Its thread ends with it, and with the thread all that the host had.
pub struct Host {
    jobs: mpsc::Sender<Job>,
    /// Where the others reach it.
    pub address: Ipv4Addr,
    /// Its own network namespace.
    pub namespace: PathBuf,
    /// The files as it sees them.
    root: PathBuf,
}

impl Host {
    /// Host `number` at 198.18.200.`number` of the wire.
    fn start(number: u8) -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, opened) = mpsc::channel();
        let wire = format!("/proc/{}/root/run/netns/wire", std::process::id());
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
            sh(&format!(
                "ip link set lo up
                ip link add up0 type veth peer name h{number}
                ip link set h{number} netns {wire}
                nsenter --net={wire} ip link set h{number} master wire up
                ip addr add 198.18.200.{number}/24 dev up0; ip link set up0 up"
            ));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut net = Linux::new().unwrap();
            ready.send(nix::unistd::gettid()).unwrap();
            while let Ok(job) = inbox.recv() {
                job(&runtime, &mut net);
            }
        });
        let thread = PathBuf::from(format!("/proc/self/task/{}", opened.recv().unwrap()));
        Self { jobs, address: a(200, number), namespace: thread.join("ns/net"), root: thread.join("root") }
    }

    /// Runs `work` on the host's thread.
    pub fn on<T: Send + 'static>(&self, work: impl FnOnce(&Runtime, &mut Linux) -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let job: Job = Box::new(move |runtime, net| answer.send(work(runtime, net)).unwrap());
        self.jobs.send(job).unwrap();
        answered.recv().expect("the host's thread panicked, see above")
    }

    /// Another agent takes this host over.
    pub fn restart(&self) {
        self.on(|_, net| *net = Linux::new().unwrap());
    }

    pub fn ensure(&self, plan: &InstancePlan) {
        self.try_ensure(plan).unwrap();
    }

    pub fn try_ensure(&self, plan: &InstancePlan) -> Result<PathBuf, enoki_agent::network::Error> {
        let plan = plan.clone();
        self.on(move |runtime, net| runtime.block_on(net.ensure(&plan)))
    }

    pub fn remove(&self, uid: &str) {
        let uid = uid.to_owned();
        self.on(move |runtime, net| runtime.block_on(net.remove(&uid))).unwrap();
    }

    pub fn tend(&self, networks: &[NetworkPlan]) {
        let networks: Vec<_> = networks.iter().map(|network| self.end(network)).collect();
        self.on(move |runtime, net| runtime.block_on(net.tend(&networks))).unwrap();
    }

    pub fn connect(&self, network: &str, peers: &Peers) {
        let (network, peers) = (network.to_owned(), peers.clone());
        self.on(move |runtime, net| runtime.block_on(net.connect(&network, &peers))).unwrap();
    }

    pub fn purge(&self) {
        self.on(|runtime, net| runtime.block_on(net.purge())).unwrap();
    }

    /// The network with this host's own end.
    pub fn end(&self, network: &NetworkPlan) -> NetworkPlan {
        let mut network = network.clone();
        if let Kind::Vxlan(vxlan) = &mut network.kind {
            vxlan.address = self.address;
        }
        network
    }

    pub fn sh(&self, command: &str) -> String {
        let command = command.to_owned();
        self.on(move |_, _| sh(&command))
    }

    /// In the fabric or an instance.
    pub fn sh_in(&self, name: &str, command: &str) -> String {
        let (name, command) = (name.to_owned(), command.to_owned());
        self.on(move |_, _| sh_in(&name, &command))
    }

    /// An instance's namespace, for all threads.
    pub fn pin(&self, uid: &str) -> PathBuf {
        self.root.join("run/enoki/netns").join(uid)
    }

    /// What the network's vxlan device forwards, as `MAC HOST`, sorted.
    pub fn entries(&self) -> Vec<String> {
        let all = self.sh_in("fabric", "bridge fdb show");
        let ours = all.lines().filter(|line| line.contains(" dst ")).map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            format!("{} {}", words[0], words[4])
        });
        let mut entries: Vec<String> = ours.collect();
        entries.sort();
        entries
    }
}

/// Hosts on one wire, and what was placed on them.
pub struct Site {
    pub hosts: Vec<Host>,
    /// Each network's instances: their MAC and host.
    placed: BTreeMap<String, BTreeMap<Mac, Ipv4Addr>>,
}

impl Site {
    pub fn of(count: u8) -> Self {
        sh("ip netns add wire
            ip -n wire link add wire type bridge; ip -n wire link set wire up
            ip netns add outside
            ip link add o type veth peer name eth0 netns outside
            ip link set o netns wire; ip -n wire link set o master wire up
            ip -n outside addr add 198.18.200.250/24 dev eth0; ip -n outside link set eth0 up");
        Self { hosts: (1..=count).map(Host::start).collect(), placed: BTreeMap::new() }
    }

    /// Makes an instance on a host and tells everybody.
    pub fn place(&mut self, at: usize, uid: &str, network: &NetworkPlan, last: u8) -> InstancePlan {
        let plan = instance(uid, &self.hosts[at].end(network), last);
        self.place_plan(at, &plan);
        plan
    }

    pub fn place_plan(&mut self, at: usize, plan: &InstancePlan) {
        let nic = &plan.nics[0];
        self.placed.entry(nic.network.uid.clone()).or_default().insert(nic.mac, self.hosts[at].address);
        self.hosts[at].ensure(plan);
        self.tell(&nic.network.uid);
    }

    /// Takes an instance off its host and tells everybody.
    pub fn take(&mut self, at: usize, plan: &InstancePlan) {
        let nic = &plan.nics[0];
        self.placed.entry(nic.network.uid.clone()).or_default().remove(&nic.mac);
        self.hosts[at].remove(&plan.uid);
        self.tell(&nic.network.uid);
    }

    pub fn peers(&self, network: &str) -> Peers {
        let instances = self.placed.get(network).cloned().unwrap_or_default();
        let hosts = instances.values().copied().collect();
        Peers { instances, hosts }
    }

    fn tell(&self, network: &str) {
        let peers = self.peers(network);
        self.hosts.iter().for_each(|host| host.connect(network, &peers));
    }

    pub fn reach(&self, from: (usize, &str), to: (usize, &str), address: Ipv4Addr) -> Option<Ipv4Addr> {
        reach(self.hosts[from.0].pin(from.1), self.hosts[to.0].pin(to.1), address)
    }

    /// [`reach`], for when a link has just come back.
    pub fn reach_soon(&self, from: (usize, &str), to: (usize, &str), address: Ipv4Addr) -> Option<Ipv4Addr> {
        reach_soon(self.hosts[from.0].pin(from.1), self.hosts[to.0].pin(to.1), address)
    }
}

pub fn spanning(uid: &str, third: u8, segment: u32, host_gateway: bool) -> NetworkPlan {
    use enoki_agent::network::{Egress, Gateway};
    let (gateway, egress) =
        if host_gateway { (Gateway::Host, Egress::Nat) } else { (Gateway::None, Egress::None) };
    let kind = Kind::Vxlan(Vxlan { segment, address: Ipv4Addr::UNSPECIFIED });
    NetworkPlan { kind, ..network(uid, third, gateway, egress) }
}

/// A machine beside the hosts, at 198.18.200.250.
pub fn beyond() -> (PathBuf, Ipv4Addr) {
    (outside(), a(200, 250))
}

/// Reads every frame on the wire.
pub struct Wiretap(OwnedFd);

/// A frame in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub to: Mac,
    pub from: Mac,
    /// Sender and target of an ARP message.
    pub arp: Option<(Ipv4Addr, Ipv4Addr)>,
}

impl Wiretap {
    pub fn new() -> Self {
        within(PathBuf::from("/run/netns/wire"), || {
            let flags = SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
            // Room for all that a test sends: what is lost here would pass for not having crossed.
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
            Self(socket)
        })
    }

    /// The frames that tunnels have carried since the last call, once they have had time to arrive.
    pub fn frames(&self) -> Vec<Frame> {
        let until = Instant::now() + Duration::from_millis(200);
        let (mut found, mut buffer) = (Vec::new(), [0u8; 2048]);
        while Instant::now() < until {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => found.extend(carried(&buffer[..length])),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        found
    }
}

/// The frame in a VXLAN packet: outer Ethernet 14, IPv4 20, UDP 8, VXLAN 8.
fn carried(packet: &[u8]) -> Option<Frame> {
    if packet.get(12..14)? != [0x08, 0x00] || packet.get(36..38)? != 4789u16.to_be_bytes() {
        return None;
    }
    let frame = packet.get(50..)?;
    let mac = |at: usize| frame.get(at..at + 6)?.try_into().ok().map(Mac);
    let address = |at: usize| frame.get(at..at + 4).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3]));
    let arp = if frame.get(12..14)? == [0x08, 0x06] { address(28).zip(address(38)) } else { None };
    Some(Frame { to: mac(0)?, from: mac(6)?, arp })
}

/// A packet of a tunnel with a word for `target` in it, as an instance might forge it.
pub fn forged(segment: u32, mac: Mac, target: Ipv4Addr, port: u16) -> Vec<u8> {
    let word = b"forged";
    let mut ip = vec![0x45, 0, 0, (28 + word.len()) as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(a(target.octets()[2], 77).octets());
    ip.extend(target.octets());
    let sum: u32 = ip.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x08, 0, 0, 0];
    packet.extend((segment << 8).to_be_bytes());
    packet.extend(mac.0);
    packet.extend([2, 0, 0, 0, 0, 0x77, 0x08, 0x00]);
    packet.extend(ip);
    for part in [4000, port, (8 + word.len()) as u16, 0] {
        packet.extend(part.to_be_bytes());
    }
    packet.extend(word);
    packet
}
