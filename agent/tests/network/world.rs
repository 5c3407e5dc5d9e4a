//! A world for one test: namespaces of its own, an outside, and ways to try who reaches whom.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use enoki_agent::network::{Egress, Gateway, InstancePlan, Kind, Mac, NetworkPlan, NicPlan};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Says to a test binary which of its tests runs inside.
pub const INSIDE: &str = "ENOKI_NETWORK_TEST";
/// How long a connection that must not come about is waited for.
pub const REFUSED: Duration = Duration::from_millis(700);

/// Runs `body` in a network and a mount namespace of its own, with a private /run: the test's binary once more, so
/// that all it makes goes away with that process, also when it is killed.
pub fn isolated<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        // The kernel hands a new namespace the first one's settings: 1, where that forwards.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        return runtime.unwrap().block_on(body());
    }
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(INSIDE, name);
    // SAFETY: between fork and exec only system calls that are safe there.
    unsafe {
        child.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            Ok(())
        });
    }
    let mut child = child.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name} did not end in 120 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{name} failed inside its namespaces, see above");
}

/// A command in the host; it must succeed.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same in the fabric or in an instance.
pub fn sh_in(name: &str, command: &str) -> String {
    sh(&format!("nsenter --net=/run/enoki/netns/{name} sh -ec '{command}'"))
}

pub fn network(uid: &str, third: u8, gateway: Gateway, egress: Egress) -> NetworkPlan {
    let cidr = format!("198.18.{third}.0/24").parse().unwrap();
    NetworkPlan { uid: uid.into(), kind: Kind::Local, cidr, gateway, egress }
}

pub fn nic(name: &str, network: &NetworkPlan, last: u8) -> NicPlan {
    let [a, b, c, _] = network.cidr.addr().octets();
    NicPlan {
        name: name.into(),
        network: network.clone(),
        address: Ipv4Addr::new(a, b, c, last),
        mac: Mac([0x02, 0, a, b, c, last]),
        egress_bits: None,
        ingress_bits: None,
    }
}

pub fn instance(uid: &str, network: &NetworkPlan, last: u8) -> InstancePlan {
    InstancePlan { uid: uid.into(), nics: vec![nic("eth0", network, last)] }
}

/// An address of the network with this third number.
pub fn a(third: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, third, last)
}

pub fn pin(uid: &str) -> PathBuf {
    Path::new("/run/enoki/netns").join(uid)
}

pub fn host() -> PathBuf {
    PathBuf::from("/proc/self/ns/net")
}

pub fn outside() -> PathBuf {
    PathBuf::from("/run/netns/outside")
}

/// Runs `work` on a thread in the namespace at `path`.
pub fn within<T: Send + 'static>(path: PathBuf, work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// Connects from one namespace to a server in another and says a word. The sender's address as the server sees it,
/// `None` when the word did not arrive.
pub fn reach(from: PathBuf, to: PathBuf, address: Ipv4Addr) -> Option<Ipv4Addr> {
    let listener = within(to, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    let target = SocketAddr::V4(SocketAddrV4::new(address, listener.local_addr().unwrap().port()));
    listener.set_nonblocking(true).unwrap();
    let mut stream = within(from, move || TcpStream::connect_timeout(&target, REFUSED)).ok()?;
    stream.write_all(b"hello").unwrap();
    let until = Instant::now() + REFUSED;
    let (mut served, peer) = loop {
        match listener.accept() {
            Ok(accepted) => break accepted,
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
            // Somebody else answered on that address.
            Err(_) => return None,
        }
    };
    served.set_nonblocking(false).unwrap();
    served.set_read_timeout(Some(REFUSED)).unwrap();
    let mut word = [0; 5];
    served.read_exact(&mut word).ok()?;
    match peer {
        SocketAddr::V4(peer) => Some(*peer.ip()),
        SocketAddr::V6(_) => None,
    }
}

/// [`reach`], for when a link has just come back: the kernel passes such news on about once a second.
pub fn reach_soon(from: PathBuf, to: PathBuf, address: Ipv4Addr) -> Option<Ipv4Addr> {
    (0..5).find_map(|_| reach(from.clone(), to.clone(), address))
}

/// A connection that stays.
pub struct Session(TcpStream, TcpStream);

impl Session {
    pub fn open(from: &str, to: &str, address: Ipv4Addr) -> Self {
        let listener = within(pin(to), || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        let target = SocketAddr::V4(SocketAddrV4::new(address, port));
        let stream = within(pin(from), move || TcpStream::connect_timeout(&target, REFUSED));
        Self(stream.unwrap(), listener.accept().unwrap().0)
    }

    pub fn works(&mut self) {
        let mut word = [0; 4];
        self.0.write_all(b"ping").unwrap();
        self.1.set_read_timeout(Some(REFUSED)).unwrap();
        self.1.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"ping");
    }
}

/// A world beyond the host at the second address; the first is the host's own there. It has no route to anything else.
pub fn make_outside() -> (Ipv4Addr, Ipv4Addr) {
    sh("ip netns add outside
        ip link add up0 type veth peer name eth0 netns outside
        ip addr add 198.18.250.1/30 dev up0; ip link set up0 up
        ip -n outside addr add 198.18.250.2/30 dev eth0; ip -n outside link set eth0 up");
    (a(250, 1), a(250, 2))
}

/// All that could change, as text: links with numbers and flags, addresses, routes, queues, rules, pins.
pub fn everything(instances: &[&str]) -> String {
    let look = "ip -d addr; ip route show table all; tc qdisc";
    let pins = "grep netns /proc/self/mountinfo || true";
    let mut all = sh(&format!("{look}; nft -a list ruleset; {pins}"));
    for name in instances.iter().chain(&["fabric"]) {
        all += &sh_in(name, look);
    }
    // Seconds with a fraction are timers, which tick by themselves.
    let timer = |word: &&str| word.contains('.') && word.trim().parse::<f64>().is_ok();
    all.split_inclusive(' ').filter(|word| !timer(word)).collect()
}
