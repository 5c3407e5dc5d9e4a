//! The namespace that holds all bridges, and the one long-lived connection to it.
//!
//! Made when first needed, pinned as `fabric`. The agent also holds it open: when its pin is taken away by somebody,
//! it is pinned again, still with everything in it. When the pin shows another namespace, the pin is right.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::namespace::{self, Dedicated, Identity};
use super::netlink::{self, Change, Lane, Link};
use super::{Error, names};

const DEADLINE: Duration = Duration::from_secs(10);
/// For work in the namespace; `nft` has a shorter one of its own.
const WORK: Duration = Duration::from_secs(15);

/// A connection to the fabric. Cheap to clone; the last one dropped ends its thread.
#[derive(Clone)]
pub struct Fabric {
    pub lane: Lane,
    namespace: Arc<File>,
    /// Which namespace it is: another one after it had to be made anew.
    pub identity: Identity,
}

impl Fabric {
    pub fn namespace(&self) -> &File {
        &self.namespace
    }

    /// Runs `work` on a thread of its own in the fabric's namespace.
    pub async fn run<T, F, Fut>(&self, what: &str, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>>,
    {
        let namespace = Arc::clone(&self.namespace);
        namespace::run(what.into(), WORK, move |thread| async move {
            namespace::enter(&thread, &namespace)?;
            work().await
        })
        .await
    }

    /// The network's bridge, made when there is none.
    pub async fn bridge(&self, network: &str, mtu: u32) -> Result<Link, Error> {
        let name = names::bridge(network);
        if let Some(link) = self.lane.link(&name).await? {
            if !link.up {
                self.lane.change(link.index, Change { up: Some(true), ..Change::default() }).await?;
            }
            return Ok(link);
        }
        match self.lane.add_bridge(&name, names::bridge_mac(network), mtu).await {
            // A launch has made it meanwhile.
            Err(e) if !netlink::is_stale(&e) => return Err(e),
            Err(_) | Ok(()) => {}
        }
        self.lane.link(&name).await?.ok_or(Error::Vanished(name))
    }
}

/// The fabric, once it is known.
#[derive(Default)]
pub struct Fabrics(Mutex<Option<Fabric>>);

impl Fabrics {
    /// The fabric, made when there is none. Blocks for a moment: only for threads of [`namespace`].
    pub fn get(&self, thread: &Dedicated) -> Result<Fabric, Error> {
        self.find(thread, true)?.ok_or_else(|| Error::Contended(names::FABRIC.into()))
    }

    /// The fabric if there is one.
    pub fn existing(&self, thread: &Dedicated) -> Result<Option<Fabric>, Error> {
        self.find(thread, false)
    }

    /// Lets go of it, so that it ends with its pin.
    pub fn forget(&self) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }

    fn find(&self, _thread: &Dedicated, make: bool) -> Result<Option<Fabric>, Error> {
        // Held while the fabric is being made: everybody else needs that one, too. A panic leaves None or a whole one.
        let mut held = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut pinned = namespace::open(names::FABRIC)?;
        if let (Some(fabric), None) = (held.as_ref(), &pinned) {
            let source = PathBuf::from(format!("/proc/self/fd/{}", fabric.namespace.as_raw_fd()));
            pinned = match namespace::pin(names::FABRIC, &source)? {
                None => return Ok(Some(fabric.clone())),
                other => other,
            };
        }
        if let (Some(fabric), Some(pin)) = (held.as_ref(), &pinned)
            && fabric.identity == namespace::identity(pin)?
        {
            return Ok(Some(fabric.clone()));
        }
        if pinned.is_none() && !make {
            return Ok(None);
        }
        let fabric = connect(pinned)?;
        *held = Some(fabric.clone());
        Ok(Some(fabric))
    }
}

/// Starts the thread that carries the connection; it enters `pinned`, or makes and pins a new namespace.
fn connect(pinned: Option<File>) -> Result<Fabric, Error> {
    let (ready, opened) = mpsc::sync_channel(1);
    namespace::host_thread("enoki-fabric", move |thread| async move {
        let open = || {
            let namespace = match pinned {
                Some(pinned) => {
                    namespace::enter(&thread, &pinned)?;
                    // Not the file of the pin, which would keep its mount busy for as long as we live.
                    namespace::current()?
                }
                None => namespace::make(&thread, names::FABRIC, prepare)?,
            };
            let identity = namespace::identity(&namespace)?;
            let (lane, connection) = Lane::open()?;
            Ok((Fabric { lane, namespace: Arc::new(namespace), identity }, connection))
        };
        match open() {
            Ok((fabric, connection)) => {
                // Nobody waits any more: dropping the fabric ends the connection, too.
                let _ = ready.send(Ok(fabric));
                connection.await;
            }
            Err(e) => drop(ready.send(Err(e))),
        }
    })?;
    opened.recv_timeout(DEADLINE).unwrap_or_else(|_| {
        Err(Error::Deadline { what: "opening the fabric's namespace".into(), seconds: DEADLINE.as_secs() })
    })
}

/// The fabric only passes frames on; without this every port would get an IPv6 address and talk on its segment.
fn prepare() -> Result<(), Error> {
    for which in ["all", "default"] {
        namespace::sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), "1")?;
    }
    Ok(())
}

/// The fabric's namespace goes away with everything in it, whoever else still holds it open.
pub async fn clear(fabric: &Fabric) -> Result<(), Error> {
    for link in fabric.lane.links().await? {
        let ours = ["ev", names::LEG_PORT, names::OVERLAY, names::BRIDGE]
            .iter()
            .any(|prefix| link.name.starts_with(prefix));
        if ours {
            fabric.lane.delete(link.index).await?;
        }
    }
    Ok(())
}
