//! A link's rate limit as the kernel's token bucket filter (`tc qdisc ... tbf`), encoded by hand.
//!
//! The netlink library knows no TBF options, and two `tc` processes per launch would be the slowest part of a launch.
//! Layout: `struct tc_tbf_qopt` and `TCA_TBF_*` of linux/pkt_sched.h.

use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::tc::{TcAttribute, TcOption};

/// Below this a bucket would hold a packet for seconds.
pub const MIN_BITS: u64 = 8_000;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// Tells the kernel to compute times itself, instead of expecting a table (`TC_LINKLAYER_ETHERNET`).
const LINKLAYER_ETHERNET: u8 = 1;

/// How much may pass at once: 10 ms at the full rate, and never less than one packet as big as veth passes on.
fn burst(bytes: u64) -> u32 {
    (bytes / 100).clamp(64 << 10, 4 << 20) as u32
}

/// How much may wait: a burst and 50 ms at the full rate.
fn limit(bytes: u64) -> u32 {
    u32::try_from(u64::from(burst(bytes)) + bytes / 20).unwrap_or(u32::MAX)
}

/// The attributes of a request that sets this rate.
pub fn attributes(bits: u64) -> Vec<TcAttribute> {
    let bytes = bits / 8;
    let mut parms = Vec::with_capacity(36);
    // rate: cell_log, linklayer, overhead, cell_align, mpu, rate
    parms.extend_from_slice(&[0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
    parms.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes());
    // peakrate: none
    parms.extend_from_slice(&[0; 12]);
    parms.extend_from_slice(&limit(bytes).to_ne_bytes());
    // buffer and mtu: the kernel takes the burst below instead
    parms.extend_from_slice(&[0; 8]);
    let mut options = vec![
        TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parms)),
        TcOption::Other(DefaultNla::new(TCA_TBF_BURST, burst(bytes).to_ne_bytes().to_vec())),
    ];
    if bytes >= u64::from(u32::MAX) {
        options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, bytes.to_ne_bytes().to_vec())));
    }
    vec![TcAttribute::Kind("tbf".into()), TcAttribute::Options(options)]
}

/// The rate of a queueing discipline as read back, in whole bytes a second; `None` when it is not a TBF.
pub fn read(attributes: &[TcAttribute]) -> Option<u64> {
    let tbf = attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == "tbf"));
    if !tbf {
        return None;
    }
    let options = attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    // For a kind it does not know the library hands over the whole nest as one value.
    let nest = options.iter().find_map(|o| match o {
        TcOption::Other(nla) => Some(value(nla)),
        _ => None,
    })?;
    let mut rate = None;
    for (kind, value) in Attributes(&nest) {
        match kind {
            TCA_TBF_PARMS if rate.is_none() => rate = value.get(8..12).and_then(u32_of).map(u64::from),
            TCA_TBF_RATE64 => rate = value.get(..8).and_then(|v| v.try_into().ok()).map(u64::from_ne_bytes),
            _ => {}
        }
    }
    rate
}

/// What a rate asked for reads back as: the kernel counts whole bytes.
pub fn in_bytes(bits: u64) -> u64 {
    bits / 8
}

fn value(nla: &DefaultNla) -> Vec<u8> {
    use rtnetlink::packet_core::Nla;
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    bytes
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// Netlink attributes: length and kind (two bytes each), value, padded to four. Stops at what does not parse.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::Emitable;

    /// What the kernel would send back: the same options, as one nest.
    fn echoed(bits: u64) -> Vec<TcAttribute> {
        let sent = attributes(bits);
        let TcAttribute::Options(options) = &sent[1] else { panic!("options come second") };
        let mut nest = vec![0; options.as_slice().buffer_len()];
        options.as_slice().emit(&mut nest);
        vec![sent[0].clone(), TcAttribute::Options(vec![TcOption::Other(DefaultNla::new(2, nest))])]
    }

    #[test]
    fn rates_survive_the_wire() {
        for bits in [MIN_BITS, 100_000_000, 10_000_000_000, 40_000_000_000, 400_000_000_000] {
            assert_eq!(read(&echoed(bits)), Some(in_bytes(bits)), "{bits}");
        }
        assert_eq!(read(&[TcAttribute::Kind("noqueue".into())]), None);
    }

    #[test]
    fn a_torn_answer_reads_as_nothing() {
        let torn = TcOption::Other(DefaultNla::new(2, vec![40, 0, 1, 0, 9]));
        assert_eq!(read(&[TcAttribute::Kind("tbf".into()), TcAttribute::Options(vec![torn])]), None);
    }
}
