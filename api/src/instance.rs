//! The instance: one VM-like container with a lasting name, address, disk and limits.

use crate::error::{Code, Problem};
use crate::file::{self, FileRef};
use crate::image::Imported;
use crate::object::{Faults, Kind, Object, Spec, Uid, check_image_name, check_name};
use crate::quantity::{BitRate, Bytes, MilliCpu, Span};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use utoipa::ToSchema;

pub use crate::cpuset::CpuSet;
pub use crate::mac::Mac;

pub type Instance = Object<InstanceSpec>;

/// The project's network that an instance joins when it names none.
pub const DEFAULT_NETWORK: &str = "default";
/// Less memory than this and not even a shell starts (Docker's own floor is 6 MiB).
pub const MEMORY_MIN: Bytes = Bytes(6 << 20);
/// A file system smaller than this has no room for its own structures.
pub const DISK_SIZE_MIN: Bytes = Bytes(16 << 20);
/// Docker and the kernel refuse a quota below a millisecond in a hundred: 0.01 CPU.
pub const CPUS_MIN: MilliCpu = MilliCpu(10);

/// What a user wants of an instance. `docs/fields.md` tells which fields are live, need a
/// restart, need a rebuild or are immutable; [`InstanceSpec::changes`] is that table in code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceSpec {
    pub image: String,
    /// None: the image's own; neither: the machine stays up with its init alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Default: the instance's name.
    #[serde(default)]
    pub hostname: String,
    /// CPU time. None: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<MilliCpu>,
    /// The CPUs it may run on, as in `0-1,3`. None: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<CpuSet>,
    /// None: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Swap on top of memory.
    #[serde(default)]
    pub swap: Bytes,
    /// Processes and threads. None: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Placed first when room is short: higher wins. Below 0 it gives way in CPU time, too.
    #[serde(default)]
    pub priority: i32,
    #[serde(default)]
    pub disk: DiskLimits,
    /// The size of the root disk, grown live. None: no file of its own, bounded by the host's disk alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<Bytes>,
    /// By interface name. Left out: `eth0` on the project's default network; `{}`: no network.
    #[serde(default = "default_nics")]
    pub nics: BTreeMap<String, Nic>,
    /// By path inside.
    #[serde(default)]
    pub mounts: BTreeMap<String, Mount>,
    #[serde(default)]
    pub env: BTreeMap<String, EnvValue>,
    /// A script that runs once as root at first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How long a stop waits before it kills.
    #[serde(default = "default_grace")]
    pub stop_grace: Span,
    #[serde(default)]
    pub placement: Placement,
    #[serde(default)]
    pub on_host_lost: OnHostLost,
    #[serde(default)]
    pub profile: Profile,
    #[serde(default)]
    pub state: RunState,
    /// Counted up by `restart`.
    #[serde(default)]
    pub restart_count: u64,
    /// Counted up by `rebuild`: each count has a disk of its own.
    #[serde(default)]
    pub rebuild_count: u64,
    /// What `image` meant when the instance was made or rebuilt, if that was an imported image: what its root disk
    /// starts from, on whichever host. Set by the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Imported>,
    /// Uploaded files of the project that it finds read-only in `/job`, by name. Set by what owns it, never by users.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileRef>,
}

fn default_nics() -> BTreeMap<String, Nic> {
    BTreeMap::from([("eth0".to_owned(), Nic::default())])
}

fn default_grace() -> Span {
    Span(10_000)
}

impl InstanceSpec {
    /// A spec that has an image and otherwise the defaults.
    pub fn new(image: &str) -> Self {
        InstanceSpec {
            image: image.to_owned(),
            command: None,
            hostname: String::new(),
            cpus: None,
            cpuset: None,
            memory: None,
            swap: Bytes(0),
            pids: None,
            priority: 0,
            disk: DiskLimits::default(),
            disk_size: None,
            nics: default_nics(),
            mounts: BTreeMap::new(),
            env: BTreeMap::new(),
            user_data: None,
            restart: RestartPolicy::default(),
            stop_grace: default_grace(),
            placement: Placement::default(),
            on_host_lost: OnHostLost::default(),
            profile: Profile::default(),
            state: RunState::default(),
            restart_count: 0,
            rebuild_count: 0,
            resolved: None,
            files: BTreeMap::new(),
        }
    }

    /// The resources that it asks for: what a scheduler grants.
    pub fn resources(&self) -> Resources {
        Resources {
            cpus: self.cpus,
            cpuset: self.cpuset.clone(),
            memory: self.memory,
            swap: self.swap,
            pids: self.pids,
            disk: self.disk,
            disk_size: self.disk_size,
            cpu_weight: cpu_weight(self.priority),
        }
    }

    /// How a change of each field takes effect, for the fields in which `self` and `new` differ.
    pub fn changes(&self, new: &InstanceSpec) -> Vec<(String, Change)> {
        let mut changed = Vec::new();
        let mut note = |differs: bool, field: &str, change: Change| {
            if differs {
                changed.push((field.to_owned(), change));
            }
        };
        note(self.image != new.image, "image", Change::Rebuild);
        note(self.command != new.command, "command", Change::Restart);
        note(self.hostname != new.hostname, "hostname", Change::Restart);
        note(self.env != new.env, "env", Change::Restart);
        note(self.mounts != new.mounts, "mounts", Change::Restart);
        note(self.profile != new.profile, "profile", Change::Restart);
        note(self.resources() != new.resources(), "limits", Change::Live);
        note(self.user_data != new.user_data, "user_data", Change::Immutable);
        note(self.files != new.files, "files", Change::Immutable);
        let names = |spec: &InstanceSpec| spec.nics.keys().cloned().collect::<Vec<_>>();
        note(names(self) != names(new), "nics", Change::Immutable);
        for (name, nic) in &self.nics {
            let Some(other) = new.nics.get(name) else {
                continue;
            };
            note(nic.network != other.network, &format!("nics.{name}.network"), Change::Immutable);
            note(nic.address != other.address, &format!("nics.{name}.address"), Change::Immutable);
            note(nic.mac != other.mac, &format!("nics.{name}.mac"), Change::Immutable);
            note(
                (nic.egress, nic.ingress) != (other.egress, other.ingress),
                &format!("nics.{name}"),
                Change::Live,
            );
        }
        changed
    }
}

/// The weight in CPU time, of [`CPU_WEIGHT_DEFAULT`], of what gives way: beside one of the others that wants a CPU for itself it gets
/// a seventeenth of it, and all that nobody else wants.
const CPU_WEIGHT_LOW: u64 = 64;
/// The weight of everything else. The kernel's own default, as cgroup v1 counts.
pub const CPU_WEIGHT_DEFAULT: u64 = 1024;

/// The weight in CPU time that follows from a priority. None: the default.
pub fn cpu_weight(priority: i32) -> Option<u64> {
    (priority < 0).then_some(CPU_WEIGHT_LOW)
}

/// How a changed field takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// At once, on the running instance.
    Live,
    /// At the next start: the container is made anew, the disk is kept.
    Restart,
    /// Only by `rebuild`, which discards the disk.
    Rebuild,
    /// Never: delete and create.
    Immutable,
}

impl Spec for InstanceSpec {
    const KIND: Kind = Kind::Instance;
    type Status = InstanceStatus;

    fn fill(&mut self, name: &str) {
        if self.hostname.is_empty() {
            self.hostname = name.to_owned();
        }
    }

    fn validate(&self, faults: &mut Faults) {
        if let Err(problem) = check_image_name("spec.image", &self.image) {
            faults.push(problem);
        }
        if let Some(command) = &self.command {
            if command.is_empty() || command[0].is_empty() {
                faults.invalid(
                    "spec.command",
                    "a command has at least one word; leave it out for the image's own",
                );
            }
            if command.iter().any(|word| word.contains('\0')) {
                faults.invalid("spec.command", "a command has no NUL character");
            }
        }
        if !self.hostname.is_empty()
            && (self.hostname.len() > 253
                || self.hostname.split('.').any(|part| check_name("", part).is_err()))
        {
            faults.invalid("spec.hostname", format!("`{}` is not a host name", self.hostname));
        }
        if self.cpus.is_some_and(|cpus| cpus < CPUS_MIN) {
            faults.invalid("spec.cpus", format!("at least {CPUS_MIN}"));
        }
        if self.memory.is_some_and(|memory| memory < MEMORY_MIN) {
            faults.invalid("spec.memory", format!("at least {MEMORY_MIN}"));
        }
        if self.swap > Bytes(0) && self.memory.is_none() {
            faults.invalid("spec.swap", "swap is on top of memory: set memory too");
        }
        if self.pids == Some(0) {
            faults.invalid("spec.pids", "at least 1; leave it out for no limit");
        }
        if self.disk_size.is_some_and(|size| size < DISK_SIZE_MIN) {
            faults.invalid("spec.disk_size", format!("at least {DISK_SIZE_MIN}"));
        }
        self.disk.validate(faults);
        if self.nics.len() > 8 {
            faults.invalid("spec.nics", "at most 8 interfaces");
        }
        for (name, nic) in &self.nics {
            nic.validate(name, faults);
        }
        validate_mounts(&self.mounts, faults);
        validate_env(&self.env, faults);
        file::validate(&self.files, &self.mounts, faults);
        if self.user_data.as_ref().is_some_and(|text| text.len() > 64 << 10) {
            faults.invalid("spec.user_data", "at most 64Ki");
        }
        if self.stop_grace > Span(3_600_000) {
            faults.invalid("spec.stop_grace", "at most 1h");
        }
        for (field, rules) in [("require", &self.placement.require), ("avoid", &self.placement.avoid)] {
            for rule in rules {
                if rule.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                    faults.invalid(format!("spec.placement.{field}"), format!("`{rule}` is not key=value"));
                }
            }
        }
        self.validate_choices(faults);
    }
}

impl InstanceSpec {
    fn validate_choices(&self, faults: &mut Faults) {
        if self.restart == RestartPolicy::Unknown {
            faults.invalid("spec.restart", "one of always, on_failure, never");
        }
        if self.placement.strategy == Strategy::Unknown {
            faults.invalid("spec.placement.strategy", "one of spread, bin_pack");
        }
        if self.state == RunState::Unknown {
            faults.invalid("spec.state", "one of running, stopped");
        }
        if self.on_host_lost != OnHostLost::Keep {
            faults.push(
                Problem::invalid_field("spec.on_host_lost", "only `keep` on this cloud")
                    .hint("replace and failover need hosts to go to"),
            );
        }
        if self.profile != Profile::Machine {
            faults.invalid("spec.profile", "only `machine` on this cloud");
        }
    }
}

fn validate_mounts(mounts: &BTreeMap<String, Mount>, faults: &mut Faults) {
    for (path, mount) in mounts {
        let field = format!("spec.mounts.{path}");
        let plain = path.starts_with('/')
            && path.len() <= 255
            && path.len() > 1
            && !path.split('/').skip(1).any(|part| part.is_empty() || part == "." || part == "..")
            && !path.contains([':', '\0', ',']);
        if !plain {
            faults.invalid(&field, format!("`{path}` is not a plain absolute path"));
        }
        if ["/proc", "/sys", "/dev"].iter().any(|top| path == top || path.starts_with(&format!("{top}/"))) {
            faults.invalid(&field, "the kernel's own file systems are not for mounting over");
        }
        if let Err(problem) = check_name(&format!("{field}.volume"), &mount.volume) {
            faults.push(problem);
        }
    }
}

fn validate_env(env: &BTreeMap<String, EnvValue>, faults: &mut Faults) {
    if env.len() > 512 {
        faults.invalid("spec.env", "at most 512 variables");
    }
    for (key, value) in env {
        let field = format!("spec.env.{key}");
        if key.is_empty() || key.contains(['=', '\0']) {
            faults.invalid(&field, format!("`{key}` is not a variable's name"));
        }
        match value {
            EnvValue::Plain(text) if text.contains('\0') || text.len() > 32 << 10 => {
                faults.invalid(&field, "a value has no NUL character and at most 32Ki");
            }
            EnvValue::Plain(_) => {}
            EnvValue::Secret(from) => {
                if let Err(problem) = check_name(&format!("{field}.secret"), &from.secret) {
                    faults.push(problem);
                }
            }
        }
    }
}

/// Limits on reading and writing the disks of an instance. None: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskLimits {
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bps: Option<Bytes>,
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bps: Option<Bytes>,
    /// Operations a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<u64>,
    /// Operations a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<u64>,
}

impl DiskLimits {
    fn validate(&self, faults: &mut Faults) {
        for (name, value) in [
            ("read_bps", self.read_bps.map(|b| b.0)),
            ("write_bps", self.write_bps.map(|b| b.0)),
            ("read_iops", self.read_iops),
            ("write_iops", self.write_iops),
        ] {
            // The kernel reads 0 as "no limit", which is not what a user who writes 0 means.
            if value == Some(0) {
                faults.invalid(format!("spec.disk.{name}"), "at least 1; leave it out for no limit");
            }
        }
    }
}

/// An interface on a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Nic {
    /// Default: the project's `default` network.
    #[serde(default = "default_network")]
    pub network: String,
    /// None: the next free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "ipv4")]
    pub address: Option<Ipv4Addr>,
    /// None: one that follows from the instance's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Rate out of the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<BitRate>,
    /// Rate into the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<BitRate>,
}

fn default_network() -> String {
    DEFAULT_NETWORK.to_owned()
}

impl Default for Nic {
    fn default() -> Self {
        Nic { network: default_network(), address: None, mac: None, egress: None, ingress: None }
    }
}

impl Nic {
    fn validate(&self, name: &str, faults: &mut Faults) {
        let field = format!("spec.nics.{name}");
        // IFNAMSIZ is 16 with the closing NUL.
        let fits = !name.is_empty()
            && name.len() <= 15
            && name != "lo"
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !fits {
            faults.invalid(&field, format!("`{name}` is not an interface name, as in eth0"));
        }
        if let Err(problem) = check_name(&format!("{field}.network"), &self.network) {
            faults.push(problem);
        }
        for (rate, value) in [("egress", self.egress), ("ingress", self.ingress)] {
            if value.is_some_and(|value| value < BitRate(8_000)) {
                faults.invalid(format!("{field}.{rate}"), "at least 8kbit");
            }
        }
    }
}

/// A volume at a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Mount {
    pub volume: String,
    #[serde(default)]
    pub read_only: bool,
}

/// A variable's value: a text, or `{secret: NAME, key: K}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum EnvValue {
    Plain(String),
    Secret(SecretKey),
}

/// One key of a secret of the same project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecretKey {
    pub secret: String,
    pub key: String,
}

impl utoipa::PartialSchema for EnvValue {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::schema::OneOfBuilder::new().item(String::schema()).item(SecretKey::schema()).into()
    }
}

impl ToSchema for EnvValue {}

impl<'de> Deserialize<'de> for EnvValue {
    /// By hand, so that the check for unknown fields sees through it (it cannot see through `untagged`).
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = EnvValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or {secret, key}")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<EnvValue, E> {
                Ok(EnvValue::Plain(text.to_owned()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<EnvValue, A::Error> {
                SecretKey::deserialize(de::value::MapAccessDeserializer::new(map)).map(EnvValue::Secret)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Where it may run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    #[serde(default)]
    pub strategy: Strategy,
    /// `key=value`: only hosts with all of these labels.
    #[serde(default)]
    pub require: Vec<String>,
    /// `key=value`: no host that has one of these labels, or an instance of the project that has it.
    #[serde(default)]
    pub avoid: Vec<String>,
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $(#[$first_doc:meta])* $first:ident, $($(#[$rest_doc:meta])* $rest:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            #[default]
            $(#[$first_doc])*
            $first,
            $($(#[$rest_doc])* $rest,)*
            /// A value of a newer version: kept, shown, acted on by nobody.
            #[serde(other)]
            Unknown,
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                match serde_json::to_value(self) {
                    Ok(serde_json::Value::String(text)) => f.write_str(&text),
                    _ => f.write_str("unknown"),
                }
            }
        }
    };
}
pub(crate) use choice;

choice!(
    /// What happens when the main process ends by itself.
    RestartPolicy { Always, OnFailure, Never }
);
choice!(
    /// Even over the hosts, or as few hosts as possible.
    Strategy { Spread, BinPack }
);
choice!(
    /// What happens when its host is lost.
    OnHostLost { Keep, Replace, Failover }
);
choice!(
    /// What the instance may do on its host.
    Profile { Machine, App, System }
);
choice!(
    /// Whether it should run.
    RunState { Running, Stopped }
);
choice!(
    /// Where an instance stands.
    Phase { Pending, Starting, Running, Stopping, Stopped, Backoff, Failed, Deleting }
);
choice!(
    /// How the granted limits stand on the running container.
    LimitsState {
        /// Nothing runs yet.
        Pending,
        /// Written and read back.
        Applied,
        /// Not possible now; tried again.
        Deferred,
        /// The host has no room for what is asked: the old limits hold.
        Infeasible,
    }
);

/// What is granted to an instance on its host. A field that is None has no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<MilliCpu>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<CpuSet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    #[serde(default)]
    pub swap: Bytes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    #[serde(default)]
    pub disk: DiskLimits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<Bytes>,
    /// Share of CPU time where it is short, of 1024. None: 1024. Follows from the priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u64>,
}

/// The limits as they stand: the state, why, and each value as read back from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitsStatus {
    pub state: LimitsState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<MilliCpu>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<CpuSet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// On top of memory; None where the kernel does not account for swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    #[serde(default)]
    pub disk: DiskLimits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<Bytes>,
    /// Share of CPU time where it is short, where it is not the default: of 1024 on cgroup v1, of 100 on v2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u64>,
    /// What the reader should know about how they hold (buffered writes on cgroup v1, for instance).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Where an interface stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NicStatus {
    pub network: String,
    #[schema(value_type = String, format = "ipv4")]
    pub address: Ipv4Addr,
    pub mac: Mac,
}

/// What was observed of an instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceStatus {
    pub phase: Phase,
    /// A code: `no_capacity`, `constraint`, `image_missing`, `network_unavailable`, `host_not_ready`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default)]
    pub observed_generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default)]
    pub epoch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// PID 1 of the instance as the host counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "date-time")]
    pub started_at: Option<Timestamp>,
    /// Of the last run, 128+n for a signal. None while it has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    #[serde(default)]
    pub oom_killed: bool,
    /// Starts that its restart policy asked for since it was last started on purpose.
    #[serde(default)]
    pub restarts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_exit_code: Option<i64>,
    #[serde(default)]
    pub nics: BTreeMap<String, NicStatus>,
    #[serde(default)]
    pub limits: LimitsStatus,
    /// Changed fields that wait for the next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart_required: Vec<String>,
    /// Since when it waits for CPUs that instances of higher priority use. Only told of a priority below 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "date-time")]
    pub squeezed_since: Option<Timestamp>,
}

/// An instance bound to a host, what is granted to it there, and the count of such bindings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Assignment {
    pub uid: Uid,
    pub host: String,
    pub epoch: u64,
    /// The instance's generation that `granted` was decided for.
    pub generation: u64,
    pub granted: Resources,
    #[serde(default)]
    pub nics: BTreeMap<String, NicStatus>,
}

/// A claim on an address: who holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressClaim {
    /// `PROJECT/NAME`.
    pub instance: String,
    pub uid: Uid,
    pub mac: Mac,
    pub since: Timestamp,
    /// Set when its instance is gone: until then no instance gets it automatically.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<Timestamp>,
}

/// The order to destroy one thing. Absence never means delete; this does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tombstone {
    pub uid: Uid,
    pub what: Doomed,
    /// `PROJECT/NAME` of the instance (or volume) as it was.
    pub name: String,
    /// The host that has to act. None: nothing was ever placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub created_at: Timestamp,
    /// When its host had done it; kept a while after, so that nothing comes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buried_at: Option<Timestamp>,
}

choice!(
    /// What a tombstone destroys.
    Doomed { Instance, Disk, Volume }
);

/// The uid of the root disk of an instance after so many rebuilds: every disk has its own.
pub fn disk_uid(instance: &Uid, rebuild_count: u64) -> Uid {
    instance.derive(&format!("disk/{rebuild_count}"))
}

/// The addresses of `cidr` that instances may have: all but the network's, the broadcast and the gateway's.
pub fn usable(cidr: &Ipv4Net, address: Ipv4Addr, gateway: Option<Ipv4Addr>) -> Result<(), Problem> {
    if !cidr.contains(&address) {
        return Err(Problem::new(Code::AddressOutsideNetwork, format!("{address} is not in {cidr}")));
    }
    let why = if cidr.prefix_len() < 31 && address == cidr.network() {
        "is the network's own address"
    } else if cidr.prefix_len() < 31 && address == cidr.broadcast() {
        "is the broadcast address"
    } else if Some(address) == gateway {
        "is the gateway"
    } else {
        return Ok(());
    };
    Err(Problem::new(Code::AddressOutsideNetwork, format!("{address} {why} of {cidr}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: &InstanceSpec) -> Result<(), Problem> {
        let mut faults = Faults::default();
        spec.validate(&mut faults);
        faults.into_result()
    }

    #[test]
    fn defaults_are_filled_in() {
        let mut spec: InstanceSpec = serde_json::from_str(r#"{"image":"a"}"#).unwrap();
        spec.fill("web1");
        assert_eq!(spec.hostname, "web1");
        assert_eq!(spec.nics["eth0"].network, "default");
        assert_eq!(spec.stop_grace.to_string(), "10s");
        assert!(faults(&spec).is_ok());
        let none: InstanceSpec = serde_json::from_str(r#"{"image":"a","nics":{}}"#).unwrap();
        assert!(none.nics.is_empty());
    }

    #[test]
    fn bad_values_are_named() {
        for (json, field) in [
            (r#"{"image":""}"#, "spec.image"),
            (r#"{"image":"a","command":[]}"#, "spec.command"),
            (r#"{"image":"a","cpus":0}"#, "spec.cpus"),
            (r#"{"image":"a","memory":"1Mi"}"#, "spec.memory"),
            (r#"{"image":"a","swap":"1Mi"}"#, "spec.swap"),
            (r#"{"image":"a","pids":0}"#, "spec.pids"),
            (r#"{"image":"a","disk":{"read_bps":0}}"#, "spec.disk.read_bps"),
            (r#"{"image":"a","nics":{"LO":{"network":"a"}}}"#, "spec.nics.LO"),
            (r#"{"image":"a","mounts":{"/../etc":{"volume":"v"}}}"#, "spec.mounts./../etc"),
            (r#"{"image":"a","mounts":{"/proc/x":{"volume":"v"}}}"#, "spec.mounts./proc/x"),
            (r#"{"image":"a","restart":"sometimes"}"#, "spec.restart"),
            (r#"{"image":"a","on_host_lost":"failover"}"#, "spec.on_host_lost"),
            (r#"{"image":"a","placement":{"require":["x"]}}"#, "spec.placement.require"),
            (r#"{"image":"a","env":{"A=B":"c"}}"#, "spec.env.A=B"),
        ] {
            let spec: InstanceSpec = serde_json::from_str(json).unwrap();
            assert_eq!(faults(&spec).unwrap_err().field.as_deref(), Some(field), "{json}");
        }
    }

    #[test]
    fn every_change_has_its_class() {
        let old = InstanceSpec::new("a");
        let mut new = old.clone();
        new.image = "b".into();
        new.cpus = Some(MilliCpu(500));
        new.env.insert("A".into(), EnvValue::Plain("b".into()));
        new.nics.get_mut("eth0").unwrap().address = Some(Ipv4Addr::new(198, 18, 0, 9));
        assert_eq!(
            old.changes(&new),
            [
                ("image".to_owned(), Change::Rebuild),
                ("env".to_owned(), Change::Restart),
                ("limits".to_owned(), Change::Live),
                ("nics.eth0.address".to_owned(), Change::Immutable),
            ]
        );
        assert!(old.changes(&old).is_empty());
    }

    #[test]
    fn some_addresses_are_nobodys() {
        let cidr: Ipv4Net = "198.18.0.0/24".parse().unwrap();
        let gateway = Some(Ipv4Addr::new(198, 18, 0, 1));
        for (address, good) in [
            ([198, 18, 0, 2], true),
            ([198, 18, 0, 0], false),
            ([198, 18, 0, 255], false),
            ([198, 18, 0, 1], false),
            ([198, 18, 1, 1], false),
        ] {
            assert_eq!(usable(&cidr, address.into(), gateway).is_ok(), good, "{address:?}");
        }
    }
}
