//! What goes wrong with whole nodes and the ways between them, and for how long.

use crate::clock;
use crate::dice::Dice;
use crate::etcd::STORE;
use crate::world::World;
use enoki::store::election::LEASE;
use enoki_agent::runtime::State;
use enoki_agent::runtime::simulated::Daemon;
use std::time::Duration;

/// Out of a thousand hundredths of a second in so many something goes wrong.
const STRIKES: u64 = 5;

pub struct Faults {
    dice: Dice,
    /// What ends by itself, and when.
    healing: Vec<(Duration, Heal)>,
}

enum Heal {
    Cut(String, String),
    Daemon(usize),
    Clock(usize),
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        Faults { dice: Dice::new(seed, "faults"), healing: Vec::new() }
    }
}

impl World {
    /// Perhaps something goes wrong now.
    pub fn strike(&mut self) {
        self.heal(false);
        if self.faults.dice.chance(STRIKES) {
            self.something();
        }
    }

    /// Ends what has its time; with `all`, everything.
    pub fn heal(&mut self, all: bool) {
        let (due, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.faults.healing)
            .into_iter()
            .partition(|(at, _)| all || *at <= clock::now());
        self.faults.healing = kept;
        for (_, heal) in due {
            match heal {
                Heal::Cut(a, b) => {
                    self.net.heal(&a, &b);
                    if b == STORE {
                        self.etcd.set_link(&a, true);
                    }
                }
                Heal::Daemon(host) => self.hosts[host].docker.set_daemon(Daemon::Up),
                Heal::Clock(server) => self.servers[server].node.ahead = Duration::ZERO,
            }
        }
    }

    fn after(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        clock::now() + self.faults.dice.millis(from_ms, to_ms)
    }

    fn cut(&mut self, a: &str, b: &str, until: Duration) {
        self.net.cut(a, b);
        if b == STORE {
            self.etcd.set_link(a, false);
        }
        self.faults.healing.push((until, Heal::Cut(a.to_owned(), b.to_owned())));
    }

    /// A server; more often than not the one that leads.
    fn some_server(&mut self) -> usize {
        let leader = self.servers.iter().position(|server| server.leads());
        match leader.filter(|_| self.faults.dice.chance(650)) {
            Some(leader) => leader,
            None => self.faults.dice.below(self.servers.len() as u64) as usize,
        }
    }

    fn something(&mut self) {
        let server = self.some_server();
        let host = self.faults.dice.below(self.hosts.len() as u64) as usize;
        let (s, h) = (self.servers[server].node.name.clone(), self.hosts[host].node.name.clone());
        match self.faults.dice.below(100) {
            0..=13 => {
                let back = self.after(100, 4000);
                self.law.note("fault", format!("{s} is killed"));
                self.kill_server(server, back);
            }
            // F2: longer than its lease, and then it goes on as if nothing had been.
            14..=27 => {
                let until = self.after(1500, 3 * LEASE.as_millis() as u64);
                self.law.note("fault", format!("{s} stands still"));
                self.servers[server].node.pause(until);
            }
            28..=35 => {
                let until = self.after(500, 8000);
                self.law.note("fault", format!("{s} is cut off from the store"));
                self.cut(&s, STORE, until);
            }
            36..=45 => {
                let until = self.after(500, 12_000);
                self.law.note("fault", format!("{h} is cut off"));
                for server in 0..self.servers.len() {
                    let server = self.servers[server].node.name.clone();
                    self.cut(&server, &h, until);
                }
                // F40: the power of a host that is cut off, too.
                if self.faults.dice.chance(250) {
                    self.law.note("fault", format!("{h} loses its power meanwhile"));
                    let back = self.after(500, 4000);
                    self.power_cut(host, back);
                }
            }
            46..=50 => {
                self.law.note("fault", format!("the connections of {h} break"));
                for server in &self.servers {
                    self.net.reset(&server.node.name, &h);
                }
            }
            // F8
            51..=56 => {
                self.law.note("fault", format!("the watches of {s} fall silent"));
                self.etcd.mute(&s);
            }
            // F7
            57..=63 => {
                self.law.note("fault", "the history is compacted");
                self.etcd.compact();
            }
            // F9
            64..=68 => {
                self.law.note("fault", "a listing is kept, or an old one served");
                self.etcd.serve_stale();
            }
            69..=80 => {
                let back = self.after(50, 3000);
                self.law.note("fault", format!("the agent of {h} is killed"));
                self.kill_agent(host, back);
            }
            // F38
            81..=83 => {
                let back = self.after(15_000, 40_000);
                self.law.note("fault", format!("the agent of {h} is dead for long"));
                self.kill_agent(host, back);
            }
            84..=87 => {
                let back = self.after(500, 5000);
                self.law.note("fault", format!("{h} loses its power"));
                self.power_cut(host, back);
            }
            88..=92 => {
                let running = self.hosts[host].containers();
                let running: Vec<_> =
                    running.iter().filter(|one| matches!(one.state, State::Running { .. })).collect();
                if !running.is_empty() {
                    let one = *self.faults.dice.pick(&running);
                    self.law.note("fault", format!("{} on {h} ends by itself", one.name));
                    self.hosts[host].docker.exit(&one.id, 1);
                    self.law.ended(&one.uid, &one.id);
                }
            }
            93..=96 => {
                let until = self.after(500, 6000);
                self.law.note("fault", format!("docker on {h} is away"));
                self.hosts[host].docker.set_daemon(Daemon::Down);
                self.faults.healing.push((until, Heal::Daemon(host)));
            }
            // F12
            _ => {
                let until = self.after(2000, 20_000);
                self.law.note("fault", format!("the clock of {s} jumps an hour"));
                self.servers[server].node.ahead = Duration::from_secs(3600);
                self.faults.healing.push((until, Heal::Clock(server)));
            }
        }
    }
}
