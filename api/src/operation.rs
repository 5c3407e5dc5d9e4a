//! The operation: a verb that outlives its request, with what it has done so far.

use crate::instance::choice;
use crate::object::{Faults, Kind, Object, Spec};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

pub type Operation = Object<OperationSpec>;

/// What was asked for. Written by the verb that began it; afterwards only `cancelled` changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationSpec {
    pub verb: OperationVerb,
    /// The host that it is about.
    pub host: String,
    /// Of a drain: what cannot move is stopped in place.
    #[serde(default)]
    pub stop: bool,
    /// Nothing more is begun; what was done stays done.
    #[serde(default)]
    pub cancelled: bool,
}

choice!(
    /// What an operation does.
    OperationVerb {
        /// Empties a host.
        Drain,
    }
);

impl Spec for OperationSpec {
    const KIND: Kind = Kind::Operation;
    type Status = OperationStatus;

    fn validate(&self, _faults: &mut Faults) {}
}

choice!(
    /// Where an operation stands. All but `running` are its end.
    OperationPhase {
        Running,
        /// It ended because something is in the way; `journal` names it. Do it again when that is gone.
        Blocked,
        Succeeded,
        Failed,
        Cancelled,
    }
);

/// How far it is, and everything that it did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationStatus {
    pub phase: OperationPhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default)]
    pub progress: Progress,
    /// What was done, oldest first.
    #[serde(default)]
    pub journal: Vec<Step>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "date-time")]
    pub ended_at: Option<Timestamp>,
}

impl OperationStatus {
    /// Whether nothing more comes.
    pub fn ended(&self) -> bool {
        match self.phase {
            // A phase of a newer version is its to end.
            OperationPhase::Running | OperationPhase::Unknown => false,
            OperationPhase::Blocked
            | OperationPhase::Succeeded
            | OperationPhase::Failed
            | OperationPhase::Cancelled => true,
        }
    }
}

/// Parts that are done, of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.done, self.total)
    }
}

/// One line of an operation's journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    #[schema(value_type = String, format = "date-time")]
    pub at: Timestamp,
    pub what: StepKind,
    /// The instance that it was done to, as `PROJECT/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

choice!(
    /// What a step did.
    StepKind {
        /// The instance was told to stop: from now on its spec says so.
        Stopping,
        /// Its host has confirmed that nothing of it runs.
        Stopped,
        /// The instance is in the way, and why.
        CannotMove,
    }
);
