//! A network without a kernel: the same plans carried out on [`plan::View`]s in memory. For simulation and for tests
//! of what is above.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;

use super::plan::{self, Mtus, View};
use super::{
    Error, Gateway, InstancePlan, Kind, Network, NetworkPlan, Peers, check_uid, names, namespace, overlay,
};

/// What exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Each instance's links, by uid.
    pub instances: BTreeMap<String, View>,
    /// Bridges in the fabric.
    pub bridges: BTreeSet<String>,
    /// Networks with a leg in the host, by leg.
    pub legs: BTreeMap<String, NetworkPlan>,
    /// Networks that span hosts, by vxlan device.
    pub overlays: BTreeMap<String, NetworkPlan>,
    /// Who is where on them, by uid of the network.
    pub peers: BTreeMap<String, Peers>,
    /// How many steps were carried out since the beginning: none by an `ensure` of what is right.
    pub steps: u64,
}

impl World {
    /// What a network has on its host besides instances' links.
    fn segment(&mut self, network: &NetworkPlan) {
        let leg = network.gateway == Gateway::Host;
        if leg {
            self.legs.insert(names::leg(&network.uid), network.clone());
        }
        if network.kind != Kind::Local {
            self.overlays.insert(names::overlay(&network.uid), network.clone());
        }
        if leg || network.kind != Kind::Local {
            self.bridges.insert(names::bridge(&network.uid));
        }
    }
}

/// A host's network in memory; also says no on request.
#[derive(Debug, Default)]
pub struct Simulated {
    world: Mutex<World>,
    refusals: Mutex<u32>,
}

impl Simulated {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `count` calls fail as if the kernel had refused.
    pub fn refuse(&self, count: u32) {
        *self.refusals.lock().unwrap_or_else(|p| p.into_inner()) = count;
    }

    /// What exists now.
    pub fn world(&self) -> World {
        self.lock().clone()
    }

    /// What a reboot leaves: nothing.
    pub fn reboot(&self) {
        *self.lock() = World::default();
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn admit(&self) -> Result<(), Error> {
        let mut refusals = self.refusals.lock().unwrap_or_else(|p| p.into_inner());
        match refusals.checked_sub(1) {
            Some(left) => {
                *refusals = left;
                Err(Error::System {
                    what: "a simulated request".into(),
                    source: io::Error::from_raw_os_error(libc::ENOBUFS),
                })
            }
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Network for Simulated {
    async fn ensure(&self, plan: &InstancePlan) -> Result<PathBuf, Error> {
        plan.check()?;
        self.admit()?;
        let mut world = self.lock();
        let mut mtus = Mtus::new();
        for nic in &plan.nics {
            world.segment(&nic.network);
            if nic.network.kind != Kind::Local {
                mtus.insert(nic.network.uid.clone(), names::MTU - overlay::OVERHEAD);
            }
        }
        let mut view = world.instances.get(&plan.uid).cloned().unwrap_or_default();
        view.bridges = world.bridges.iter().map(|bridge| (bridge.clone(), true)).collect();
        for action in plan::plan(plan, &mtus, &view) {
            view.apply(&action);
            world.steps += 1;
        }
        world.bridges = view.bridges.keys().cloned().collect();
        world.instances.insert(plan.uid.clone(), view);
        Ok(namespace::path(&plan.uid))
    }

    async fn connect(&self, network: &str, peers: &Peers) -> Result<(), Error> {
        peers.check(network)?;
        self.admit()?;
        self.lock().peers.insert(network.to_owned(), peers.clone());
        Ok(())
    }

    async fn remove(&self, uid: &str) -> Result<(), Error> {
        check_uid("instance", uid)?;
        self.admit()?;
        self.lock().instances.remove(uid);
        Ok(())
    }

    async fn instances(&self) -> Result<Vec<String>, Error> {
        self.admit()?;
        Ok(self.lock().instances.keys().cloned().collect())
    }

    async fn tend(&self, networks: &[NetworkPlan]) -> Result<(), Error> {
        networks.iter().try_for_each(NetworkPlan::check)?;
        self.admit()?;
        let mut world = self.lock();
        let used: BTreeSet<String> = world
            .instances
            .values()
            .flat_map(|view| view.ports.values().filter_map(|port| port.bridge.clone()))
            .collect();
        let named: BTreeSet<String> = networks.iter().map(|n| names::bridge(&n.uid)).collect();
        world.bridges.retain(|bridge| named.contains(bridge) || used.contains(bridge));
        world.legs.retain(|_, n| {
            let bridge = names::bridge(&n.uid);
            if named.contains(&bridge) {
                networks.iter().any(|m| m.uid == n.uid && m.gateway == Gateway::Host)
            } else {
                used.contains(&bridge)
            }
        });
        let World { overlays, bridges, peers, .. } = &mut *world;
        overlays.retain(|_, n| {
            let stays = bridges.contains(&names::bridge(&n.uid));
            if !stays {
                peers.remove(&n.uid);
            }
            stays
        });
        networks.iter().for_each(|network| world.segment(network));
        Ok(())
    }

    async fn purge(&self) -> Result<(), Error> {
        self.admit()?;
        *self.lock() = World::default();
        Ok(())
    }
}
