//! PURE: what never crosses an overlay, as text for nftables.
//!
//! On a network with gateway `host` every host is the gateway for its own instances, with one address and one MAC.
//! So neither may be seen on the overlay: a question for it would be answered by other hosts, an answer would lead
//! there. Each vxlan device has two chains of the netdev family, one for each direction; other networks of the fabric
//! pay nothing for them. An incoming frame is stopped before the bridge can learn where the gateway's MAC is.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::{Mac, names};

/// In the fabric's namespace.
pub const TABLE: &str = "netdev enoki";

const DIRECTIONS: [&str; 2] = ["ingress", "egress"];

/// The chains of one device, also where it had others before. Atomic, and may be repeated.
pub fn text(uid: &str, gateway: Ipv4Addr, mac: Mac) -> String {
    let device = names::overlay(uid);
    let mut text = format!("add table {TABLE}\n");
    for direction in DIRECTIONS {
        let chain = format!("{TABLE} {}", chain(&device, direction));
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "add chain {chain} {{ type filter hook {direction} device \"{device}\" priority filter; policy accept; }}
flush chain {chain}
add rule {chain} ether saddr {mac} drop
add rule {chain} ether daddr {mac} drop
add rule {chain} arp saddr ip {gateway} drop
add rule {chain} arp daddr ip {gateway} drop
"
        );
    }
    text
}

/// Takes away the chains of devices that are not among `devices`. `None` when there are none: chains of a device that
/// went away stay behind on newer kernels, and wait for another of its name.
pub fn without(listing: &str, devices: &[String]) -> Option<String> {
    let chains = listing.lines().filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"));
    let gone: String = chains
        .filter(|name| !devices.iter().any(|device| DIRECTIONS.iter().any(|d| chain(device, d) == *name)))
        .map(|name| format!("delete chain {TABLE} {name}\n"))
        .collect();
    (!gone.is_empty()).then_some(gone)
}

fn chain(device: &str, direction: &str) -> String {
    format!("{direction}_{device}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_go_with_their_devices() {
        let (stays, goes) = (names::overlay("stays"), names::overlay("goes"));
        let listing = format!(
            "table {TABLE} {{\n\tchain ingress_{stays} {{\n\t\tether saddr 02:00:00:00:00:01 drop\n\t}}\n\n\
             \tchain egress_{goes} {{\n\t}}\n}}\n"
        );
        let gone = format!("delete chain {TABLE} egress_{goes}\n");
        assert_eq!(without(&listing, std::slice::from_ref(&stays)), Some(gone));
        assert_eq!(without(&listing, &[stays, goes]), None);
    }

    #[test]
    fn both_directions_are_screened() {
        let text = text("blue", Ipv4Addr::new(198, 18, 100, 1), names::gateway_mac("blue"));
        for direction in DIRECTIONS {
            assert_eq!(text.matches(&format!("hook {direction} device")).count(), 1);
        }
        assert_eq!(text.matches(" drop").count(), 8);
    }
}
