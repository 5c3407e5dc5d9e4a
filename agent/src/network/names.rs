//! Names of links and namespaces, all derived from uids, so that nothing has to be remembered.
//!
//! A network's bridge `eb`, its leg `ek` in the host, the leg's other end `el` and its vxlan device `ex` share eight hex
//! digits of the hash of the network's uid; a host has few networks. Ports are many, so they carry twelve (names are 15 bytes at most).

use sha2::{Digest, Sha256};

use super::Mac;

/// The namespace that holds all bridges; no instance may have this uid.
pub const FABRIC: &str = "fabric";
pub const BRIDGE: &str = "eb";
pub const LEG: &str = "ek";
pub const LEG_PORT: &str = "el";
pub const OVERLAY: &str = "ex";
/// An instance's NICs are `eth0` to `eth7`: a bound lets removal find every port by its name alone.
pub const MAX_NICS: u8 = 8;
/// Of the links of a network that stays on its host, bytes.
pub const MTU: u32 = 1500;

fn hash(parts: &[&str]) -> [u8; 32] {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update(part.as_bytes());
        sha.update([0]);
    }
    sha.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn network(prefix: &str, uid: &str) -> String {
    format!("{prefix}{}", hex(&hash(&["network", uid])[..4]))
}

/// The network's bridge, in the fabric.
pub fn bridge(uid: &str) -> String {
    network(BRIDGE, uid)
}

/// The network's leg, in the host's namespace.
pub fn leg(uid: &str) -> String {
    network(LEG, uid)
}

/// The leg's other end, a port of the bridge.
pub fn leg_port(uid: &str) -> String {
    network(LEG_PORT, uid)
}

/// The vxlan device of a network that spans hosts, a port of the bridge.
pub fn overlay(uid: &str) -> String {
    network(OVERLAY, uid)
}

/// The digits that a network's links share, from the name of one.
pub fn digits<'a>(prefix: &str, name: &'a str) -> Option<&'a str> {
    name.strip_prefix(prefix).filter(|d| d.len() == 8 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether a bridge's port belongs to the network itself, not to an instance.
pub fn is_networks_own(port: &str) -> bool {
    [LEG_PORT, OVERLAY].iter().any(|prefix| digits(prefix, port).is_some())
}

/// The fabric's end of an instance's NIC.
pub fn port(instance: &str, nic: &str) -> String {
    format!("ev{}", hex(&hash(&["port", instance, nic])[..6]))
}

/// The gateway's address on the segment: the same at every re-creation, so that instances' neighbour entries stay true.
pub fn gateway_mac(uid: &str) -> Mac {
    local_mac(&hash(&["gateway", uid]))
}

/// The bridge's own address; fixed, or a bridge takes its lowest port's and changes as ports come and go.
pub fn bridge_mac(uid: &str) -> Mac {
    local_mac(&hash(&["bridge", uid]))
}

fn local_mac(hash: &[u8; 32]) -> Mac {
    // 0x02: locally administered, unicast.
    Mac([0x02, hash[0], hash[1], hash[2], hash[3], hash[4]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let [eth0, eth1] = ["eth0", "eth1"].map(|nic| port("a", nic));
        let names = [bridge("a"), leg("a"), leg_port("a"), overlay("a"), eth0, eth1, bridge("b")];
        for (at, name) in names.iter().enumerate() {
            assert!(name.len() <= 15, "{name} is longer than IFNAMSIZ allows");
            assert!(!names[..at].contains(name));
        }
        assert_ne!(port("ab", "c"), port("a", "bc"));
        assert_eq!(digits(BRIDGE, &bridge("a")), digits(LEG, &leg("a")));
        assert_eq!(digits(BRIDGE, "ebony"), None);
        assert_eq!(gateway_mac("a").0[0] & 3, 2);
    }
}
