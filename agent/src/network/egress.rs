//! PURE: the host's rules for traffic that leaves a segment, as text.
//!
//! One nftables table of ours, `ip enoki`, holds fixed rules that look things up in four sets; a network is a few
//! elements in them, so that adding one never rewrites another's. And two accepts in Docker's `DOCKER-USER` chain,
//! because dockerd sets the policy of FORWARD to drop. What our table drops stays dropped whatever another accepts:
//! an accept ends one chain, a drop is final.

use std::fmt::Write;

use super::{Egress, NetworkPlan, names};

pub const TABLE: &str = "ip enoki";
pub const DOCKER_USER: &str = "DOCKER-USER";

/// The table with its sets and rules; leaves the sets' elements as they are. Atomic, and may be repeated.
///
/// The forward chain comes before the usual filter priority, so that what it drops never reaches other chains' logs.
/// It has no rule for what neither comes from nor goes to a leg.
///
/// A tunnel's packet says itself which segment its frame belongs to: an instance that could send one to a host would
/// be on any network of the cloud.
pub fn base() -> String {
    let leg = names::LEG;
    let tunnels = super::overlay::PORT;
    format!(
        "\
table {TABLE} {{
  # Which leg has which segment.
  set legs {{ type ifname . ipv4_addr; flags interval; }}
  # Legs whose instances may open connections to beyond the host.
  set out {{ type ifname; }}
  # Legs to which others may open connections.
  set routed {{ type ifname; }}
  # Segments that go out behind the host's address.
  set nat {{ type ipv4_addr; flags interval; }}
  chain input {{ type filter hook input priority filter - 10; policy accept; }}
  chain forward {{ type filter hook forward priority filter - 10; policy accept; }}
  chain postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
}}
flush chain {TABLE} input
flush chain {TABLE} forward
flush chain {TABLE} postrouting
table {TABLE} {{
  chain input {{
    iifname \"{leg}*\" udp dport {tunnels} drop comment \"tunnels are for hosts\"
  }}
  chain forward {{
    iifname \"{leg}*\" udp dport {tunnels} drop comment \"tunnels are for hosts\"
    iifname \"{leg}*\" oifname \"{leg}*\" drop comment \"never from one network to another\"
    iifname \"{leg}*\" iifname . ip saddr != @legs drop comment \"no borrowed sender\"
    iifname \"{leg}*\" iifname != @out drop
    oifname \"{leg}*\" ct state established,related accept
    oifname \"{leg}*\" oifname != @routed drop
  }}
  chain postrouting {{
    oifname \"{leg}*\" return
    ip saddr @nat masquerade
  }}
}}
"
    )
}

/// A network's elements, also where it had others before. Atomic together with [`base`].
pub fn network(network: &NetworkPlan) -> String {
    let leg = names::leg(&network.uid);
    let cidr = network.cidr;
    let mut text = format!("add element {TABLE} legs {{ \"{leg}\" . {cidr} }}\n");
    let (out, routed, nat) = match network.egress {
        Egress::None => (false, false, false),
        Egress::Routed => (true, true, false),
        Egress::Nat => (true, false, true),
    };
    element(&mut text, "out", &format!("\"{leg}\""), out);
    element(&mut text, "routed", &format!("\"{leg}\""), routed);
    element(&mut text, "nat", &cidr.to_string(), nat);
    text
}

/// Takes a network's elements out.
pub fn without(leg: &str, cidr: Option<ipnet::Ipv4Net>) -> String {
    let mut text = String::new();
    element(&mut text, "out", &format!("\"{leg}\""), false);
    element(&mut text, "routed", &format!("\"{leg}\""), false);
    if let Some(cidr) = cidr {
        element(&mut text, "nat", &cidr.to_string(), false);
        element(&mut text, "legs", &format!("\"{leg}\" . {cidr}"), false);
    }
    text
}

/// An element that is there, or is not. Removing what is absent is an error to nft, so it is added first.
fn element(text: &mut String, set: &str, key: &str, present: bool) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "add element {TABLE} {set} {{ {key} }}");
    if !present {
        let _ = writeln!(text, "delete element {TABLE} {set} {{ {key} }}");
    }
}

/// Removes the table, also where there is none. A prefix to [`base`] for a table that is not as ours should be.
pub fn gone() -> String {
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

/// The accepts that belong into DOCKER-USER.
fn accepts() -> [[String; 4]; 2] {
    let legs = format!("{}+", names::LEG);
    [
        ["-i".into(), legs.clone(), "-j".into(), "ACCEPT".into()],
        ["-o".into(), legs, "-j".into(), "ACCEPT".into()],
    ]
}

/// A call of `iptables`, without `-w`, and whether to try again without the comment when it fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call(pub Vec<String>);

const COMMENT: [&str; 4] = ["-m", "comment", "--comment", "enoki"];

impl Call {
    /// The same without the comment, for a kernel that has no comment match.
    pub fn plain(&self) -> Option<Self> {
        let at = self.0.windows(COMMENT.len()).position(|w| w == COMMENT)?;
        let mut plain = self.0.clone();
        plain.drain(at..at + COMMENT.len());
        Some(Self(plain))
    }
}

/// What `iptables -S DOCKER-USER` says, one rule a line, as far as we must know it.
fn rules(listing: &str) -> Vec<Vec<String>> {
    listing
        .lines()
        .filter_map(|line| line.strip_prefix("-A DOCKER-USER"))
        .map(|rule| rule.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect())
        .collect()
}

/// Which of our two accepts a rule is, with or without the comment.
fn ours(rule: &[String]) -> Option<usize> {
    let mut rule = rule.to_vec();
    if let Some(at) = rule.windows(COMMENT.len()).position(|w| w == COMMENT) {
        rule.drain(at..at + COMMENT.len());
    }
    accepts().iter().position(|accept| rule == accept)
}

/// The calls that make both accepts stand exactly once, where they are reached: behind the administrator's own rules
/// (whose drops are meant) and before the first unconditional RETURN (Docker ends the chain with one).
pub fn docker_user(listing: &str) -> Vec<Call> {
    let mut rules = rules(listing);
    let mut calls = Vec::new();
    let mut seen = [false; 2];
    let mut past_return = false;
    let mut at = 0;
    while at < rules.len() {
        past_return |= rules[at] == ["-j", "RETURN"];
        match ours(&rules[at]) {
            Some(which) if past_return || seen[which] => {
                // By number: the listing's words are not always what -D takes back.
                calls.push(Call(vec!["-D".into(), DOCKER_USER.into(), (at + 1).to_string()]));
                rules.remove(at);
            }
            Some(which) => {
                seen[which] = true;
                at += 1;
            }
            None => at += 1,
        }
    }
    let end = rules.iter().position(|rule| *rule == ["-j", "RETURN"]).unwrap_or(rules.len());
    let missing = accepts().into_iter().zip(seen).filter(|(_, seen)| !seen).map(|(accept, _)| accept);
    for (position, accept) in (end + 1..).zip(missing) {
        let [direction, legs, jump, target] = accept;
        let mut call = vec!["-I".into(), DOCKER_USER.into(), position.to_string(), direction, legs];
        call.extend(COMMENT.map(String::from));
        call.extend([jump, target]);
        calls.push(Call(call));
    }
    calls
}

/// The calls that take our accepts away again.
pub fn docker_user_gone(listing: &str) -> Vec<Call> {
    let rules = rules(listing);
    let ours = (0..rules.len()).rev().filter(|at| ours(&rules[*at]).is_some());
    ours.map(|at| Call(vec!["-D".into(), DOCKER_USER.into(), (at + 1).to_string()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Gateway, Kind};

    /// A chain as iptables would keep it, to carry the calls out on.
    fn run(listing: &str, calls: &[Call]) -> String {
        let mut lines: Vec<String> = listing.lines().map(String::from).collect();
        let first = lines.iter().position(|l| l.starts_with("-A")).unwrap_or(lines.len());
        for Call(words) in calls {
            let at = first + words[2].parse::<usize>().unwrap() - 1;
            match words[0].as_str() {
                "-D" => drop(lines.remove(at)),
                "-I" => lines.insert(at, format!("-A DOCKER-USER {}", words[3..].join(" "))),
                other => panic!("{other}"),
            }
        }
        lines.join("\n")
    }

    #[test]
    fn accepts_stand_once_before_the_return_whatever_was_there() {
        let drop = "-A DOCKER-USER -s 198.18.9.0/24 -j DROP";
        let inward = "-A DOCKER-USER -i ek+ -m comment --comment enoki -j ACCEPT";
        let outward = "-A DOCKER-USER -o ek+ -j ACCEPT";
        let back = "-A DOCKER-USER -j RETURN";
        let head = "-N DOCKER-USER";
        let cases: &[&[&str]] = &[
            &[head],
            &[head, back],
            &[head, drop, back],
            &[head, inward, outward, back],
            &[head, inward, inward, outward, drop, back],
            &[head, back, inward, outward],
            &[head, outward, back, outward, back],
            &[head, inward, back, inward, outward, outward],
        ];
        for case in cases {
            let listing = case.join("\n");
            let after = run(&listing, &docker_user(&listing));
            assert_eq!(docker_user(&after), [], "settled after one repair: {listing}\n->\n{after}");
            let lines: Vec<&str> = after.lines().collect();
            let place = |word: &str| {
                let found: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].contains(word)).collect();
                assert_eq!(found.len(), 1, "{word} stands once:\n{after}");
                found[0]
            };
            let (inward, outward) = (place("-i ek+"), place("-o ek+"));
            let end = lines.iter().position(|l| *l == back).unwrap_or(lines.len());
            assert!(inward < end && outward < end, "{after}");
            let gone = run(&after, &docker_user_gone(&after));
            let others: Vec<&str> = case.iter().filter(|l| !l.contains("ek+")).copied().collect();
            assert_eq!(gone, others.join("\n"), "only ours go");
        }
    }

    #[test]
    fn a_call_can_do_without_the_comment() {
        let calls = docker_user("-N DOCKER-USER\n-A DOCKER-USER -j RETURN");
        assert_eq!(calls[0].plain().unwrap().0.join(" "), "-I DOCKER-USER 1 -i ek+ -j ACCEPT");
        assert_eq!(calls[0].plain().unwrap().plain(), None);
    }

    #[test]
    fn a_networks_elements_follow_its_egress() {
        let mut plan = NetworkPlan {
            uid: "n".into(),
            kind: Kind::Local,
            cidr: "198.18.3.0/24".parse().unwrap(),
            gateway: Gateway::Host,
            egress: Egress::Nat,
        };
        let deleted = |text: &str, set: &str| text.contains(&format!("delete element ip enoki {set} "));
        for (egress, out, routed, nat) in [
            (Egress::None, false, false, false),
            (Egress::Routed, true, true, false),
            (Egress::Nat, true, false, true),
        ] {
            plan.egress = egress;
            let text = network(&plan);
            assert!(!deleted(&text, "legs"));
            assert_eq!(
                [deleted(&text, "out"), deleted(&text, "routed"), deleted(&text, "nat")],
                [!out, !routed, !nat]
            );
        }
        assert!(deleted(&without("ek01234567", Some(plan.cidr)), "legs"));
    }
}
