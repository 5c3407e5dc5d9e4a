//! What decide looks at: what is wanted, what was seen, and what to do about it. Plain values, no I/O.

use super::facts::{Facts, Made};
use crate::disk::Pinned;
use crate::runtime::{Container, ImageInfo};
use enoki_api::instance::{LimitsStatus, Resources};
use enoki_api::object::Uid;
use enoki_api::protocol::{Order, Report};
use enoki_api::quantity::Bytes;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// A look at something: `Unknown` is not `Absent`, and nothing is ever destroyed or made on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Seen<T> {
    /// Nobody answered, or nobody looked because nothing depends on it.
    #[default]
    Unknown,
    Absent,
    Present(T),
}

impl<T> Seen<T> {
    pub fn present(&self) -> Option<&T> {
        match self {
            Seen::Present(value) => Some(value),
            Seen::Unknown | Seen::Absent => None,
        }
    }

    /// A look that failed saw nothing.
    pub fn from_look<E>(look: Result<Option<T>, E>) -> Self {
        match look {
            Ok(Some(value)) => Seen::Present(value),
            Ok(None) => Seen::Absent,
            Err(_) => Seen::Unknown,
        }
    }
}

/// What is wanted of one instance, as the ledger has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    pub uid: Uid,
    /// None: only a tombstone or a container's labels are left.
    pub order: Option<Arc<Order>>,
    pub facts: Facts,
    /// Its own tombstone is here.
    pub doomed: bool,
    /// Disks of its own that have a tombstone.
    pub doomed_disks: Vec<Uid>,
}

/// A container of this instance with the disk that its record names.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    pub container: Container,
    /// Present: the disk's uid.
    pub record: Seen<Uid>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    /// Ready to be used: made whole, its file system mounted.
    pub ready: bool,
    /// None: bounded by the host's disk alone.
    pub size: Option<Bytes>,
    /// The image that it was made on. None: made by hand.
    pub image: Option<Pinned>,
}

/// Limits that this agent wrote to a run and read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    pub container: String,
    pub started_at: Timestamp,
    pub granted: Resources,
    pub status: LimitsStatus,
}

/// An action that failed, and when to try it again.
#[derive(Clone, Debug, PartialEq)]
pub struct Trouble {
    pub step: Step,
    /// A code for the status.
    pub reason: &'static str,
    pub message: String,
    pub retry_at: Timestamp,
}

/// What was seen of one instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// All containers that carry its uid. `Present` is never empty.
    pub bodies: Seen<Vec<Body>>,
    /// Another instance's container that has the name of ours: its `PROJECT/NAME` and uid.
    pub holder: Option<String>,
    /// The image to make a container from; looked for only when one may have to be made.
    pub image: Seen<ImageInfo>,
    /// The disk that the order names.
    pub disk: Seen<Disk>,
    /// The uploaded files that the order names, all of them; looked for only when it names some and is not running.
    pub delivered: Seen<()>,
    /// The network namespace; true when this agent has made it as the order has it.
    pub network: Seen<bool>,
    /// Disks of [`Desired::doomed_disks`] that are still there. Unknown: could not look.
    pub doomed_disks: Seen<Vec<Uid>>,
    /// Files and namespace of a doomed instance that are still there.
    pub remains: Seen<()>,
    pub limits: Option<Applied>,
    pub user_data_exit_code: Option<i64>,
    /// The host's boot.
    pub boot: String,
    pub trouble: Option<Trouble>,
    /// Since when it waits for CPUs that instances of higher priority use.
    pub squeezed_since: Option<Timestamp>,
    /// What was last told of it.
    pub last: Option<Report>,
}

/// One step, by uid and id alone where it destroys. Each is idempotent.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write the facts to the ledger.
    Remember(Box<Facts>),
    /// Load or pull; `pinned`: exactly this id.
    EnsureImage {
        pinned: Option<Pinned>,
    },
    /// Fetch the files that the order names.
    DeliverFiles,
    /// Make, mount or grow the order's disk on this image.
    EnsureDisk {
        image: Option<String>,
    },
    EnsureNetwork,
    CreateContainer {
        made: Box<Made>,
        image: Box<ImageInfo>,
    },
    /// None: of the container that was just created.
    WriteRecord {
        container: Option<String>,
        made: Box<Made>,
    },
    StartContainer {
        container: Option<String>,
    },
    ApplyLimits {
        container: String,
        pid: u32,
        started_at: Timestamp,
    },
    StopContainer {
        container: String,
        grace: Duration,
    },
    /// With its record.
    RemoveContainer {
        container: String,
    },
    /// The namespace and the generated files.
    RemoveRemains,
    /// Only ever with a tombstone of this disk.
    DestroyDisk {
        disk: Uid,
    },
    /// The tombstone is done: drop it and say so.
    Bury {
        uid: Uid,
    },
}

/// An action's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Remember,
    EnsureImage,
    DeliverFiles,
    EnsureDisk,
    EnsureNetwork,
    CreateContainer,
    WriteRecord,
    StartContainer,
    ApplyLimits,
    StopContainer,
    RemoveContainer,
    RemoveRemains,
    DestroyDisk,
    Bury,
}

impl Action {
    pub fn step(&self) -> Step {
        match self {
            Action::Remember(_) => Step::Remember,
            Action::EnsureImage { .. } => Step::EnsureImage,
            Action::DeliverFiles => Step::DeliverFiles,
            Action::EnsureDisk { .. } => Step::EnsureDisk,
            Action::EnsureNetwork => Step::EnsureNetwork,
            Action::CreateContainer { .. } => Step::CreateContainer,
            Action::WriteRecord { .. } => Step::WriteRecord,
            Action::StartContainer { .. } => Step::StartContainer,
            Action::ApplyLimits { .. } => Step::ApplyLimits,
            Action::StopContainer { .. } => Step::StopContainer,
            Action::RemoveContainer { .. } => Step::RemoveContainer,
            Action::RemoveRemains => Step::RemoveRemains,
            Action::DestroyDisk { .. } => Step::DestroyDisk,
            Action::Bury { .. } => Step::Bury,
        }
    }
}

/// What to tell and what to do, in this order; then look again.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// None: nobody has an order for it (a tombstone alone).
    pub report: Option<Report>,
    pub actions: Vec<Action>,
    /// Look again by then, even if nothing happens.
    pub wake_at: Option<Timestamp>,
}
