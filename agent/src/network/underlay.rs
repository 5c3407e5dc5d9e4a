//! Where other hosts reach this one.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

/// An address of the documentation (RFC 5737), which is behind the default route everywhere. Nothing is sent to it.
const FAR: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// This host's address among hosts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Underlay {
    /// As its operator says. `None`: the one that it sends from over its default route.
    pub configured: Option<Ipv4Addr>,
}

impl Underlay {
    /// Looked up anew each time, for it may change. `None` where there is no default route.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.configured.or_else(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
            // Connecting a datagram socket only chooses the route.
            socket.connect(FAR).ok()?;
            match socket.local_addr().ok()? {
                SocketAddr::V4(own) => Some(*own.ip()).filter(|address| !address.is_unspecified()),
                SocketAddr::V6(_) => None,
            }
        })
    }
}
