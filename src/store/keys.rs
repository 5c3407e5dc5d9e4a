//! The layout of the keys: every key is written and read here and nowhere else.
//!
//! ```text
//! /enoki/v1/KINDS/PROJECT/NAME                    spec       /enoki/v1/KINDS/NAME for hosts, projects and the like
//! /enoki/v1/status/KINDS/PROJECT/NAME             status     /enoki/v1/status/KINDS/NAME
//! /enoki/v1/assignments/PROJECT/NAME              the binding of an instance to a host
//! /enoki/v1/addresses/PROJECT/NETWORK/ADDRESS     who has an address
//! /enoki/v1/segments/TYPE/ID                      who has a segment
//! /enoki/v1/quotas/PROJECT                         touched by every write that grows what its quota bounds
//! /enoki/v1/scale/PROJECT/APP                     the autoscaler's word
//! /enoki/v1/tombstones/UID                        what has to go
//! /enoki/v1/elections/NAME                        who leads; its create_revision is the fence
//! /enoki/v1/servers/NAME                          a server and where it is reached
//! ```
//!
//! A name is one part of a path: what could be taken for a separator or does not print is percent-encoded, so an image
//! `enoki/debian:12` is `enoki%2Fdebian:12`. [`Key::parse`] takes only what [`Key`] would print: a key has one
//! spelling, and one that somebody else put below our root is `None`, to be left alone.

use std::fmt;
use std::net::IpAddr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::Error;

/// Everything of ours is below this, elections too: one watch sees each of our revisions.
pub const ROOT: &str = "/enoki/v1/";

/// The longest name, in bytes before encoding. Names of users are far shorter; image names can be long.
pub const MAX_NAME_BYTES: usize = 512;

/// Kinds whose objects belong to no project.
pub const SITE_KINDS: [&str; 4] = ["hosts", "projects", "operations", "tokens"];

/// First parts that are not kinds.
const RESERVED: [&str; 9] = [
    "status",
    "assignments",
    "addresses",
    "segments",
    "quotas",
    "scale",
    "tombstones",
    "elections",
    "servers",
];

/// All but letters, digits and what is harmless and common in names.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b':').remove(b'@');

/// Which object: its kind in the plural, its project (`None` for [`SITE_KINDS`]) and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    pub kind: String,
    pub project: Option<String>,
    pub name: String,
}

/// A parsed key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Spec(ObjectRef),
    Status(ObjectRef),
    Assignment {
        project: String,
        name: String,
    },
    Address {
        project: String,
        network: String,
        address: IpAddr,
    },
    Segment {
        /// local, vxlan or vlan.
        network_type: String,
        id: u32,
    },
    Quota {
        project: String,
    },
    Scale {
        project: String,
        app: String,
    },
    Tombstone {
        uid: String,
    },
    Election {
        name: String,
    },
    Server {
        name: String,
    },
}

impl Key {
    /// The spec of an object.
    pub fn spec(kind: &str, project: Option<&str>, name: &str) -> Result<Key, Error> {
        Ok(Key::Spec(ObjectRef::new(kind, project, name)?))
    }

    /// The status of an object.
    pub fn status(kind: &str, project: Option<&str>, name: &str) -> Result<Key, Error> {
        Ok(Key::Status(ObjectRef::new(kind, project, name)?))
    }

    pub fn assignment(project: &str, name: &str) -> Result<Key, Error> {
        Ok(Key::Assignment { project: checked("project", project)?, name: checked("name", name)? })
    }

    pub fn address(project: &str, network: &str, address: IpAddr) -> Result<Key, Error> {
        Ok(Key::Address {
            project: checked("project", project)?,
            network: checked("network", network)?,
            address,
        })
    }

    pub fn segment(network_type: &str, id: u32) -> Result<Key, Error> {
        Ok(Key::Segment { network_type: checked("network type", network_type)?, id })
    }

    pub fn quota(project: &str) -> Result<Key, Error> {
        Ok(Key::Quota { project: checked("project", project)? })
    }

    pub fn scale(project: &str, app: &str) -> Result<Key, Error> {
        Ok(Key::Scale { project: checked("project", project)?, app: checked("app", app)? })
    }

    pub fn tombstone(uid: &str) -> Result<Key, Error> {
        Ok(Key::Tombstone { uid: checked("uid", uid)? })
    }

    pub fn server(name: &str) -> Result<Key, Error> {
        Ok(Key::Server { name: checked("server", name)? })
    }

    /// What stands at `key`; `None` for what is not ours or not spelled as we spell it.
    pub fn parse(key: &str) -> Option<Key> {
        let path = key.strip_prefix(ROOT)?;
        let parts: Vec<String> = path.split('/').map(decode).collect::<Option<_>>()?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let parsed = match parts.as_slice() {
            ["status", rest @ ..] => Key::Status(ObjectRef::from_parts(rest)?),
            ["assignments", project, name] => Key::assignment(project, name).ok()?,
            ["addresses", project, network, address] => {
                Key::address(project, network, address.parse().ok()?).ok()?
            }
            ["segments", network_type, id] => Key::segment(network_type, id.parse().ok()?).ok()?,
            ["quotas", project] => Key::quota(project).ok()?,
            ["scale", project, app] => Key::scale(project, app).ok()?,
            ["tombstones", uid] => Key::tombstone(uid).ok()?,
            ["elections", name] => Key::Election { name: checked("election", name).ok()? },
            ["servers", name] => Key::server(name).ok()?,
            rest => Key::Spec(ObjectRef::from_parts(rest)?),
        };
        (parsed.to_string() == key).then_some(parsed)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ROOT)?;
        match self {
            Key::Spec(object) => write!(f, "{object}"),
            Key::Status(object) => write!(f, "status/{object}"),
            Key::Assignment { project, name } => {
                write!(f, "assignments/{}/{}", encode(project), encode(name))
            }
            Key::Address { project, network, address } => {
                write!(f, "addresses/{}/{}/{address}", encode(project), encode(network))
            }
            Key::Segment { network_type, id } => {
                write!(f, "segments/{}/{id}", encode(network_type))
            }
            Key::Quota { project } => write!(f, "quotas/{}", encode(project)),
            Key::Scale { project, app } => write!(f, "scale/{}/{}", encode(project), encode(app)),
            Key::Tombstone { uid } => write!(f, "tombstones/{}", encode(uid)),
            Key::Election { name } => write!(f, "elections/{}", encode(name)),
            Key::Server { name } => write!(f, "servers/{}", encode(name)),
        }
    }
}

impl From<Key> for String {
    fn from(key: Key) -> String {
        key.to_string()
    }
}

impl ObjectRef {
    /// A kind of a project's needs the project, a kind of the site's must not have one.
    pub fn new(kind: &str, project: Option<&str>, name: &str) -> Result<ObjectRef, Error> {
        check_kind(kind)?;
        if SITE_KINDS.contains(&kind) == project.is_some() {
            return Err(Error::Invalid(match project {
                Some(project) => format!("{kind} belong to no project, {project:?} was given"),
                None => format!("{kind} belong to a project, none was given"),
            }));
        }
        Ok(ObjectRef {
            kind: kind.to_string(),
            project: project.map(|p| checked("project", p)).transpose()?,
            name: checked("name", name)?,
        })
    }

    fn from_parts(parts: &[&str]) -> Option<ObjectRef> {
        match parts {
            [kind, name] => ObjectRef::new(kind, None, name).ok(),
            [kind, project, name] => ObjectRef::new(kind, Some(project), name).ok(),
            _ => None,
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.kind)?;
        if let Some(project) = &self.project {
            write!(f, "{}/", encode(project))?;
        }
        write!(f, "{}", encode(&self.name))
    }
}

/// The key of an election, for whoever wants to know who leads.
pub fn election(name: &str) -> Result<String, Error> {
    Ok(Key::Election { name: checked("election", name)? }.to_string())
}

/// The prefix of all specs of one kind, or of those of one project.
pub fn specs(kind: &str, project: Option<&str>) -> Result<String, Error> {
    check_kind(kind)?;
    let Some(project) = project else {
        return Ok(format!("{ROOT}{kind}/"));
    };
    if SITE_KINDS.contains(&kind) {
        return Err(Error::Invalid(format!("{kind} belong to no project, {project:?} was given")));
    }
    Ok(format!("{ROOT}{kind}/{}/", encode(&checked("project", project)?)))
}

/// The smallest key greater than all keys with this prefix; `None` when there is none (all bytes 0xff, or empty).
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

fn check_kind(kind: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_lowercase() || c == '_' || c == '-';
    if kind.is_empty() || !kind.chars().all(plain) || RESERVED.contains(&kind) {
        return Err(Error::Invalid(format!("{kind:?} is not a kind of object")));
    }
    Ok(())
}

fn checked(what: &str, name: &str) -> Result<String, Error> {
    if name.is_empty() {
        return Err(Error::Invalid(format!("the {what} is empty")));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::Invalid(format!(
            "the {what} has {} bytes, at most {MAX_NAME_BYTES} go",
            name.len()
        )));
    }
    Ok(name.to_string())
}

fn encode(name: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(name, ENCODED)
}

fn decode(part: &str) -> Option<String> {
    let decoded = percent_decode_str(part).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_pinned() {
        let key = |key: Result<Key, Error>| key.unwrap().to_string();
        for (got, want) in [
            (key(Key::spec("instances", Some("default"), "web1")), "/enoki/v1/instances/default/web1"),
            (
                key(Key::status("instances", Some("default"), "web1")),
                "/enoki/v1/status/instances/default/web1",
            ),
            (key(Key::spec("hosts", None, "h1")), "/enoki/v1/hosts/h1"),
            (key(Key::status("hosts", None, "h1")), "/enoki/v1/status/hosts/h1"),
            (key(Key::spec("projects", None, "default")), "/enoki/v1/projects/default"),
            (
                key(Key::spec("images", Some("default"), "enoki/debian:12")),
                "/enoki/v1/images/default/enoki%2Fdebian:12",
            ),
            (key(Key::assignment("default", "web1")), "/enoki/v1/assignments/default/web1"),
            (
                key(Key::address("default", "blue", "198.18.100.10".parse().unwrap())),
                "/enoki/v1/addresses/default/blue/198.18.100.10",
            ),
            (
                key(Key::address("default", "blue", "fd00::1".parse().unwrap())),
                "/enoki/v1/addresses/default/blue/fd00::1",
            ),
            (key(Key::segment("vxlan", 4096)), "/enoki/v1/segments/vxlan/4096"),
            (key(Key::quota("shop")), "/enoki/v1/quotas/shop"),
            (key(Key::scale("default", "shop")), "/enoki/v1/scale/default/shop"),
            (key(Key::tombstone("5d2c")), "/enoki/v1/tombstones/5d2c"),
            (election("leader").unwrap(), "/enoki/v1/elections/leader"),
            (key(Key::server("s1")), "/enoki/v1/servers/s1"),
            (specs("instances", None).unwrap(), "/enoki/v1/instances/"),
            (specs("instances", Some("default")).unwrap(), "/enoki/v1/instances/default/"),
            (specs("hosts", None).unwrap(), "/enoki/v1/hosts/"),
        ] {
            assert_eq!(got, want);
            if !want.ends_with('/') {
                assert_eq!(Key::parse(want).unwrap().to_string(), want);
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_none() {
        for key in [
            "",
            "/enoki/v1/",
            "/enoki/v2/instances/default/web1",
            "/enoki/v1/instances/default/web1/more",
            "/enoki/v1/instances/default/",
            "/enoki/v1/instances/web1",
            "/enoki/v1/hosts/default/h1",
            "/enoki/v1/instances/default/web%31",
            "/enoki/v1/images/default/enoki%2fdebian:12",
            "/enoki/v1/images/default/%ff",
            "/enoki/v1/images/default/a%",
            "/enoki/v1/addresses/default/blue/not-an-address",
            "/enoki/v1/addresses/default/blue/fd00:0::1",
            "/enoki/v1/segments/vxlan/-1",
            "/enoki/v1/segments/vxlan/007",
            "/enoki/v1/status/status/default/x",
            "/enoki/v1/tombstones/a/b",
            "/enoki/v1/Instances/default/web1",
        ] {
            assert_eq!(Key::parse(key), None, "{key}");
        }
    }

    #[test]
    fn bad_names_are_refused() {
        assert!(Key::spec("instances", None, "web1").is_err());
        assert!(Key::spec("hosts", Some("default"), "h1").is_err());
        assert!(Key::spec("instances", Some("default"), "").is_err());
        assert!(Key::spec("instances", Some(""), "web1").is_err());
        assert!(Key::spec("assignments", Some("default"), "web1").is_err());
        assert!(Key::spec("", Some("default"), "web1").is_err());
        assert!(Key::tombstone(&"x".repeat(MAX_NAME_BYTES + 1)).is_err());
        assert!(specs("hosts", Some("default")).is_err());
    }

    #[test]
    fn ends_of_prefixes() {
        assert_eq!(prefix_end(b"/a/"), Some(b"/a0".to_vec()));
        assert_eq!(prefix_end(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }

    proptest! {
        #[test]
        fn every_name_survives_and_is_one_part(project in "[a-z0-9-]{1,8}", name in "\\PC{1,40}") {
            let key = Key::spec("images", Some(&project), &name).unwrap();
            let text = key.to_string();
            prop_assert_eq!(text.matches('/').count(), 5);
            prop_assert!(text.is_ascii());
            prop_assert_eq!(Key::parse(&text), Some(key));
        }

        #[test]
        fn parsing_never_panics_and_keys_have_one_spelling(text in "/enoki/v1/[a-z%0-9/.:-]{0,40}") {
            if let Some(key) = Key::parse(&text) {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
