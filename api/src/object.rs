//! The envelope that every resource shares: who it is, which version it is, what is wanted and what is seen.

use crate::error::Problem;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

/// Free-form `key=value` marks that selectors and placement rules match.
pub type Labels = BTreeMap<String, String>;

/// Whether these labels have what a rule `key=value` names: the key, with exactly that value. Anything else than such a
/// rule names nothing that labels could have.
pub fn has_label(labels: &Labels, rule: &str) -> bool {
    rule.split_once('=').is_some_and(|(key, value)| labels.get(key).is_some_and(|has| has == value))
}

/// The kinds of resource. URLs and keys use [`Kind::plural`]; JSON uses the singular; the CLI takes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Host,
    Project,
    Network,
    Volume,
    Secret,
    Image,
    Instance,
    Cluster,
    Job,
    Token,
    Operation,
    Event,
}

impl Kind {
    pub const ALL: [Kind; 12] = [
        Kind::Host,
        Kind::Project,
        Kind::Network,
        Kind::Volume,
        Kind::Secret,
        Kind::Image,
        Kind::Instance,
        Kind::Cluster,
        Kind::Job,
        Kind::Token,
        Kind::Operation,
        Kind::Event,
    ];

    pub fn singular(self) -> &'static str {
        match self {
            Kind::Host => "host",
            Kind::Project => "project",
            Kind::Network => "network",
            Kind::Volume => "volume",
            Kind::Secret => "secret",
            Kind::Image => "image",
            Kind::Instance => "instance",
            Kind::Cluster => "cluster",
            Kind::Job => "job",
            Kind::Token => "token",
            Kind::Operation => "operation",
            Kind::Event => "event",
        }
    }

    pub fn plural(self) -> &'static str {
        match self {
            Kind::Host => "hosts",
            Kind::Project => "projects",
            Kind::Network => "networks",
            Kind::Volume => "volumes",
            Kind::Secret => "secrets",
            Kind::Image => "images",
            Kind::Instance => "instances",
            Kind::Cluster => "clusters",
            Kind::Job => "jobs",
            Kind::Token => "tokens",
            Kind::Operation => "operations",
            Kind::Event => "events",
        }
    }

    /// Whether a project owns objects of this kind (the others belong to the cloud).
    pub fn in_project(self) -> bool {
        match self {
            Kind::Host | Kind::Project | Kind::Token | Kind::Operation | Kind::Event => false,
            Kind::Network
            | Kind::Volume
            | Kind::Secret
            | Kind::Image
            | Kind::Instance
            | Kind::Cluster
            | Kind::Job => true,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.singular())
    }
}

impl FromStr for Kind {
    type Err = String;

    /// Takes the singular and the plural.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Kind::ALL.into_iter().find(|kind| kind.singular() == text || kind.plural() == text).ok_or_else(|| {
            let known: Vec<_> = Kind::ALL.iter().map(|k| k.singular()).collect();
            format!("no kind `{text}`; the kinds are {}", known.join(", "))
        })
    }
}

/// A lasting identity: a name may be used again, a uid never is.
///
/// Nothing but a UUID can be one, however it came in: uids become names of files and folders.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, format = "uuid")]
pub struct Uid(String);

impl TryFrom<String> for Uid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Uid::parse(&text).ok_or_else(|| format!("`{text}` is not a uid"))
    }
}

impl From<uuid::Uuid> for Uid {
    fn from(uuid: uuid::Uuid) -> Self {
        Uid(uuid.to_string())
    }
}

impl From<Uid> for String {
    fn from(uid: Uid) -> String {
        uid.0
    }
}

impl Uid {
    pub fn random() -> Self {
        Uid(uuid::Uuid::new_v4().to_string())
    }

    /// Takes an existing identity (a label, a folder's name). Only a UUID in its usual form is one.
    pub fn parse(text: &str) -> Option<Self> {
        let uuid = uuid::Uuid::try_parse(text).ok()?;
        (uuid.to_string() == text).then(|| Uid(text.to_owned()))
    }

    /// An identity that follows from this one and `what`, the same on every machine (UUID version 5).
    pub fn derive(&self, what: &str) -> Self {
        let base = uuid::Uuid::try_parse(&self.0).unwrap_or_default();
        Uid(uuid::Uuid::new_v5(&base, what.as_bytes()).to_string())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 32 hexadecimal digits without dashes, as in `/etc/machine-id`.
    pub fn hex(&self) -> String {
        self.0.replace('-', "")
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a user wants of one kind of resource.
pub trait Spec:
    Serialize + DeserializeOwned + Clone + fmt::Debug + PartialEq + Send + Sync + 'static
{
    const KIND: Kind;
    type Status: Serialize
        + DeserializeOwned
        + Clone
        + fmt::Debug
        + PartialEq
        + Default
        + Send
        + Sync
        + 'static;

    /// Checks everything that can be checked without looking at other objects. Pushes one problem a fault.
    fn validate(&self, faults: &mut Faults);

    /// Fills in defaults that depend on the object's name.
    fn fill(&mut self, _name: &str) {}
}

/// The object that made and owns another; its edits and deletion go through the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Owner {
    pub kind: Kind,
    pub name: String,
    pub uid: Uid,
}

/// A resource: identity, version, what is wanted (`spec`) and what was seen (`status`).
///
/// `revision` is the store's modification revision of the spec's key (the ETag): status does not move it, and
/// it is not part of the stored value. `generation` counts changes of the spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Object<S: Spec> {
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    pub name: String,
    pub uid: Uid,
    #[serde(default)]
    pub labels: Labels,
    pub generation: u64,
    #[serde(default)]
    pub revision: u64,
    pub created_at: Timestamp,
    /// Set by DELETE; the object goes when everything it stands for is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    pub spec: S,
    #[serde(default)]
    pub status: S::Status,
}

impl<S: Spec> Object<S> {
    pub fn new(project: Option<&str>, name: &str, labels: Labels, spec: S, now: Timestamp) -> Self {
        Object {
            kind: S::KIND,
            project: project.map(str::to_owned),
            name: name.to_owned(),
            uid: Uid::random(),
            labels,
            generation: 1,
            revision: 0,
            created_at: now,
            deleted_at: None,
            owner: None,
            spec,
            status: S::Status::default(),
        }
    }

    pub fn key(&self) -> Key {
        Key { kind: S::KIND, project: self.project.clone(), name: self.name.clone() }
    }
}

/// Where an object stands: kind, project (for what a project owns) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub project: Option<String>,
    pub name: String,
}

impl fmt::Display for Key {
    /// `instance default/web1`, `host node1`: how messages name an object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.project {
            Some(project) => write!(f, "{} {project}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// What a user sends to make or replace an object. The fields that Enoki keeps (uid, revision, status, ...) are
/// accepted and ignored, so that what was read can be sent back.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "")]
pub struct Draft<S: Spec> {
    #[serde(default)]
    pub kind: Option<String>,
    #[serde(default)]
    pub project: Option<String>,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub labels: Option<Labels>,
    #[serde(default)]
    pub uid: serde_json::Value,
    #[serde(default)]
    pub generation: serde_json::Value,
    #[serde(default)]
    pub revision: serde_json::Value,
    #[serde(default)]
    pub created_at: serde_json::Value,
    #[serde(default)]
    pub deleted_at: serde_json::Value,
    #[serde(default)]
    pub owner: serde_json::Value,
    #[serde(default)]
    pub status: serde_json::Value,
    pub spec: S,
}

/// Faults found in one object, in the order of its fields.
#[derive(Debug, Default)]
pub struct Faults(Vec<Problem>);

impl Faults {
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// A value that cannot be: `field` is the path from the object's root.
    pub fn invalid(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.push(Problem::invalid_field(field, detail));
    }

    /// The first fault, which also names how many more there are.
    pub fn into_result(self) -> Result<(), Problem> {
        let more = self.0.len().saturating_sub(1);
        match self.0.into_iter().next() {
            None => Ok(()),
            Some(mut first) => {
                if more > 0 {
                    first.detail.push_str(&format!(" (and {more} more)"));
                }
                Err(first)
            }
        }
    }
}

/// Longest name, as in DNS: a name becomes a host name.
pub const NAME_MAX: usize = 63;

/// Names are 1-63 of `a-z0-9-`, and do not begin or end with a dash.
pub fn check_name(field: &str, name: &str) -> Result<(), Problem> {
    let fits = !name.is_empty()
        && name.len() <= NAME_MAX
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits {
        return Ok(());
    }
    Err(Problem::invalid_field(field, format!("`{name}` is not a name"))
        .hint("a name has 1 to 63 of a-z, 0-9 and -, and neither begins nor ends with -"))
}

/// Image names are Docker's: `name`, `repo/name:tag`, `registry:5000/repo/name@sha256:...`.
pub fn check_image_name(field: &str, name: &str) -> Result<(), Problem> {
    let fits = !name.is_empty()
        && name.len() <= 255
        && name.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || b.is_ascii_uppercase() || b"-_./:@".contains(&b)
        })
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.')
        && !name.contains("//");
    if fits {
        return Ok(());
    }
    Err(Problem::invalid_field(field, format!("`{name}` is not an image name"))
        .hint("for example enoki/debian:12"))
}

/// Labels: at most 64, keys 1-63 of letters, digits and `-_./`, values up to 255 printable characters.
pub fn check_labels(labels: &Labels) -> Result<(), Problem> {
    if labels.len() > 64 {
        return Err(Problem::invalid_field("labels", format!("{} labels; at most 64", labels.len())));
    }
    for (key, value) in labels {
        let good = !key.is_empty()
            && key.len() <= 63
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if !good {
            return Err(Problem::invalid_field(
                format!("labels.{key}"),
                format!("`{key}` is not a label's key"),
            )
            .hint("a key has 1 to 63 letters, digits and -_./"));
        }
        if value.len() > 255 || value.chars().any(char::is_control) || value.contains(',') {
            return Err(Problem::invalid_field(
                format!("labels.{key}"),
                "a label's value has at most 255 printable characters and no comma",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "web1", "a-b", &"x".repeat(63)] {
            assert!(check_name("name", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ü", &"x".repeat(64)] {
            assert!(check_name("name", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rule_names_one_label_with_its_value() {
        let labels = [("zone", "a"), ("note", ""), ("path", "x=y")];
        let labels: Labels = labels.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        // A value may have a `=`, a key has none: the first one parts them.
        for rule in ["zone=a", "note=", "path=x=y"] {
            assert!(has_label(&labels, rule), "{rule}");
        }
        for rule in ["zone=b", "zone=", "zone=a ", "zone", "disk=a", "note", "path=x", "=a", "=", ""] {
            assert!(!has_label(&labels, rule), "{rule}");
        }
    }

    #[test]
    fn image_names() {
        for good in ["debian", "enoki/debian:12", "host:5000/a/b@sha256:0123"] {
            assert!(check_image_name("name", good).is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "a b", "a//b", "a:"] {
            assert!(check_image_name("name", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kinds_are_read_in_both_forms() {
        for kind in Kind::ALL {
            assert_eq!(kind.singular().parse(), Ok(kind));
            assert_eq!(kind.plural().parse(), Ok(kind));
        }
        assert!("cat".parse::<Kind>().is_err());
    }

    #[test]
    fn a_derived_uid_is_stable_and_its_own() {
        let uid = Uid::random();
        assert_eq!(uid.derive("disk/0"), uid.derive("disk/0"));
        assert_ne!(uid.derive("disk/0"), uid.derive("disk/1"));
        assert_eq!(Uid::parse(uid.as_str()), Some(uid));
        assert_eq!(Uid::parse("../etc"), None);
        assert!(serde_json::from_str::<Uid>("\"../etc\"").is_err(), "also not through JSON");
    }
}
