//! The whole system in one thread: servers, store, hosts, network and users, one step after the other.
//!
//! ```text
//!  quiet ─▶ chaos: users act, faults strike ─▶ all heals ─▶ at rest within a bound, and stays ─▶ all deleted ─▶ nothing left
//! ```
//! Every step is a hundredth of a second: what is due arrives, then each process runs until it waits. Who goes first is
//! chance, and all chance follows from the seed.

use crate::chaos::{Chaos, Rates};
use crate::clock;
use crate::dice::Dice;
use crate::etcd::{Etcd, STORE};
use crate::faults::Faults;
use crate::host::Host;
use crate::law::Law;
use crate::net::Net;
use crate::node::Node;
use crate::plan::{Broken, Plan};
use crate::rest;
use crate::server::{Server, Site};
use crate::trace::{Trace, Violation};
use crate::users::Users;
use enoki::scheduler::Policy;
use enoki::state::State;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const STEP: Duration = Duration::from_millis(20);
/// While nothing is expected to happen.
const LONG_STEP: Duration = Duration::from_millis(200);
const SETTLE_STEP: Duration = Duration::from_millis(50);
const SETTLE_LOOK: Duration = Duration::from_millis(500);
/// Hosts join and the first leader is elected in this time.
const QUIET: Duration = Duration::from_secs(6);
const CHAOS: Duration = Duration::from_secs(50);
/// I2's bound: twice the longest pause of an agent between two tries.
const BOUND: Duration = Duration::from_secs(60);
/// What is at rest stays so for this long, without a write.
const STAYS: Duration = Duration::from_secs(8);
/// For taking back what a lost store had, once hosts have told of it.
const ADOPTION: Duration = Duration::from_secs(12);
/// Longer than addresses are held.
const HELD: Duration = Duration::from_secs(320);

pub struct World {
    dice: Dice,
    trace: Trace,
    pub law: Law,
    pub net: Net,
    pub etcd: Etcd,
    store: Node,
    observed: State,
    chaos: Chaos,
    pub servers: Vec<Server>,
    pub hosts: Vec<Host>,
    users: Users,
    pub faults: Faults,
    policy: Policy,
    plan: Plan,
    /// Processes that are down, and when they are started again.
    down: BTreeMap<String, Duration>,
}

/// How it went.
pub struct Outcome {
    pub violation: Option<Violation>,
    pub trace: Trace,
}

impl World {
    fn new(plan: Plan, folder: &Path) -> Self {
        let seed = plan.seed;
        let mut dice = Dice::new(seed, "world");
        let trace = Trace::default();
        let law = Law::new(trace.clone());
        let (net, chaos) = (Net::new(seed), Chaos::new(seed));
        let mut store = Node::new(STORE);
        let (etcd, observed) = Etcd::boot(&mut store, seed);
        let folder = |name: String| -> PathBuf { folder.join(name) };
        let servers = (1..=2 + dice.below(2))
            .map(|number| Server::new(&format!("s{number}"), folder(format!("s{number}"))))
            .collect();
        let hosts = (1..=3 + dice.below(3) as u8)
            .map(|number| {
                let dice = Dice::new(seed, &format!("host {number}"));
                Host::new(number, folder(format!("h{number}")), dice)
            })
            .collect();
        World {
            dice,
            law: law.clone(),
            net,
            etcd,
            store,
            observed,
            chaos,
            servers,
            hosts,
            users: Users::new(seed, law),
            faults: Faults::new(seed),
            policy: Policy { cpu_overcommit: 4.0 },
            plan,
            down: BTreeMap::new(),
            trace,
        }
    }

    fn boot_server(&mut self, at: usize) {
        let site = Site {
            net: &self.net,
            etcd: &self.etcd,
            law: &self.law,
            chaos: &self.chaos,
            policy: self.policy,
            broken: self.plan.broken,
        };
        self.servers[at].boot(&site);
    }

    fn boot_agent(&mut self, at: usize) {
        let mut servers: Vec<String> = self.servers.iter().map(|server| server.node.name.clone()).collect();
        let count = servers.len();
        servers.rotate_left(at % count);
        self.hosts[at].boot(&servers, &self.net, &self.law, &self.chaos);
    }

    pub fn kill_server(&mut self, at: usize, back: Duration) {
        self.law.count("kills");
        self.servers[at].kill();
        self.down.insert(self.servers[at].node.name.clone(), back);
    }

    pub fn kill_agent(&mut self, at: usize, back: Duration) {
        self.law.count("kills");
        self.hosts[at].node.kill();
        self.down.insert(self.hosts[at].node.name.clone(), back);
    }

    pub fn power_cut(&mut self, at: usize, back: Duration) {
        self.hosts[at].power_cut(&self.law);
        self.down.insert(self.hosts[at].node.name.clone(), back);
    }

    /// What has to die dies, what is to come back comes back.
    fn supervise(&mut self) {
        for name in self.chaos.take_doomed() {
            let back = clock::now() + self.dice.millis(50, 3000);
            if let Some(at) = self.servers.iter().position(|server| server.node.name == name) {
                self.kill_server(at, back);
            }
            if let Some(at) = self.hosts.iter().position(|host| host.node.name == name) {
                self.kill_agent(at, back);
            }
        }
        for at in 0..self.servers.len() {
            let node = &self.servers[at].node;
            if node.has_ended() {
                self.kill_server(at, clock::now() + Duration::from_secs(1));
            } else if !node.is_up() && self.down.get(&node.name).is_none_or(|back| *back <= clock::now()) {
                self.law.note(&node.name, "is started");
                self.boot_server(at);
            }
        }
        for at in 0..self.hosts.len() {
            let node = &self.hosts[at].node;
            if node.has_ended() {
                self.kill_agent(at, clock::now() + Duration::from_secs(1));
            } else if !node.is_up() && self.down.get(&node.name).is_none_or(|back| *back <= clock::now()) {
                self.law.note(&node.name, "its agent is started");
                self.boot_agent(at);
            }
        }
    }

    fn step(&mut self, by: Duration) {
        clock::advance(by);
        self.net.tick();
        self.store.turn();
        self.law.observe(&self.observed, &self.policy);
        self.etcd.pump(&self.net);
        self.supervise();
        let count = self.servers.len() + self.hosts.len();
        let first = self.dice.below(count as u64) as usize;
        for at in (0..count).map(|at| (at + first) % count) {
            match at.checked_sub(self.servers.len()) {
                None => self.servers[at].node.turn(),
                Some(at) => self.hosts[at].node.turn(),
            }
        }
        for server in &mut self.servers {
            if let Err(why) = server.check() {
                self.trace.violated("I10", why);
            }
        }
        self.users.listen();
    }

    /// Steps for so long; false when a law was broken.
    fn run(&mut self, time: Duration, by: Duration, mut each: impl FnMut(&mut World)) -> bool {
        let end = clock::now() + time;
        while clock::now() < end {
            each(self);
            self.step(by);
            if self.trace.violation().is_some() {
                return false;
            }
        }
        true
    }

    /// Runs until `rest` has said for a while that all is well, and nothing was written meanwhile. False: that while did
    /// not begin within I2's bound.
    fn settle(&mut self, mut rest: impl FnMut(&mut World) -> Result<(), String>) -> bool {
        let end = clock::now() + BOUND;
        // The last that was written, and when.
        let mut last = (0, clock::now());
        loop {
            if !self.run(SETTLE_LOOK, SETTLE_STEP, |_| {}) {
                return false;
            }
            let revision = self.observed.snapshot().revision;
            let why = match rest(self) {
                Ok(()) if !self.users.is_idle() => "requests are not answered".to_owned(),
                Ok(()) if revision == last.0 && clock::now() >= last.1 + STAYS => return true,
                Ok(()) if revision == last.0 => continue,
                Ok(()) => format!("it does not come to rest: revision {} became {revision}", last.0),
                Err(why) => why,
            };
            last = (revision, clock::now());
            if clock::now() >= end {
                self.trace.violated("I2", why);
                return false;
            }
        }
    }

    /// F42: an empty store in the place of the one that there was.
    fn lose_store(&mut self) {
        self.law.note("fault", "the store is lost, and an empty one takes its place");
        self.store.kill();
        let (etcd, observed) = Etcd::boot(&mut self.store, self.plan.seed);
        self.etcd.replace(etcd);
        self.observed = observed;
        self.law.store_replaced();
        self.users.forget();
        for server in &self.servers {
            let name = &server.node.name;
            self.etcd.set_link(name, !self.net.is_cut(name, STORE));
        }
    }

    /// Now and then somebody takes back what the hosts have.
    fn adopt(&mut self) {
        if self.dice.chance(20) {
            for host in &self.hosts {
                self.users.adopt(&self.servers, &host.node.name);
            }
        }
    }

    fn settled(&self) -> Result<(), String> {
        rest::settled(&self.observed.snapshot(), &self.hosts, &self.policy)
    }

    fn story(&mut self) -> bool {
        if !self.run(QUIET, STEP, |_| {}) {
            return false;
        }
        self.users.make_networks(&self.servers);
        if !self.run(Duration::from_secs(1), STEP, |_| {}) {
            return false;
        }
        self.chaos.set(Rates {
            lose_request: if self.plan.broken == Some(Broken::NoSlowTimer) { 100 } else { 10 },
            lose_answer: 10,
            slow_request: 5,
            kill_before_commit: 4,
            kill_after_commit: 4,
            kill_before_act: 8,
            kill_after_act: 8,
        });
        let hosts: Vec<String> = self.hosts.iter().map(|host| host.node.name.clone()).collect();
        let loses_change = self.plan.broken == Some(Broken::LosesAChange);
        let chaos = |world: &mut World| {
            // Towards the end, when less is left that would have all looked at anew.
            if loses_change && world.dice.chance(10) && clock::now() > QUIET + CHAOS * 3 / 4 {
                world.etcd.lose_change();
            }
            if world.dice.chance(80) {
                world.users.act(&world.servers, &hosts);
            }
            world.strike();
        };
        let loses_store = self.plan.seed % 8 == 3;
        if !self.run(if loses_store { CHAOS / 2 } else { CHAOS }, STEP, chaos) {
            return false;
        }
        if loses_store {
            self.lose_store();
            // Nobody makes anything new before all is taken back.
            let adopting = |world: &mut World| {
                world.adopt();
                world.strike();
            };
            if !self.run(CHAOS / 2, STEP, adopting) {
                return false;
            }
        }
        self.law.note("fault", "all is well from here on");
        self.chaos.set(Rates::default());
        self.heal(true);
        self.down.clear();
        for server in &mut self.servers {
            server.node.pause(Duration::ZERO);
        }
        if loses_store && !self.run(ADOPTION, STEP, World::adopt) {
            return false;
        }
        for host in &hosts {
            self.users.cordon(&self.servers, host, false);
        }
        if !self.settle(|world| world.settled()) {
            return false;
        }
        self.law.note("LAW", "at rest");
        if let Err(why) = self.law.check_kept(&self.observed.snapshot()) {
            self.trace.violated("F42", why);
            return false;
        }
        if let Err(why) = self.users.check(&self.observed.snapshot()) {
            self.trace.violated("I3", why);
            return false;
        }
        self.users.delete_all(&self.servers, &self.observed.snapshot());
        let gone = |world: &mut World| match world.observed.snapshot().instances.is_empty() {
            true => world.settled(),
            false => Err("instances are not gone".to_owned()),
        };
        if !self.settle(gone) {
            return false;
        }
        // It takes as long as all the rest together.
        if !self.plan.seed.is_multiple_of(5) || self.plan.broken.is_some() {
            return true;
        }
        if !self.run(HELD, LONG_STEP, |_| {}) {
            return false;
        }
        if let Err(why) = rest::empty(&self.observed.snapshot(), &self.hosts) {
            self.trace.violated("I4", why);
        }
        true
    }
}

/// Runs one seed from its begin to its end, on this thread.
pub fn run(plan: Plan, folder: &Path) -> Outcome {
    clock::begin(plan.seed);
    let mut world = World::new(plan, folder);
    let trace = world.trace.clone();
    let panics = trace.clone();
    std::panic::set_hook(Box::new(move |panic| panics.violated("panic", panic)));
    for at in 0..world.servers.len() {
        world.boot_server(at);
    }
    for at in 0..world.hosts.len() {
        world.boot_agent(at);
    }
    world.story();
    drop(world);
    let _ = std::panic::take_hook();
    Outcome { violation: trace.violation(), trace }
}
