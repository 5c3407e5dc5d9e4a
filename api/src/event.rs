//! Events: what happened to an object, in words. Bounded for each object, kept in memory, never in the store.

use crate::object::{Kind, Uid};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One thing that happened, perhaps often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// The object it happened to.
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// A code, as in `placed`, `started`, `oom_killed`.
    pub reason: String,
    pub message: String,
    /// Something that somebody should look at.
    pub warning: bool,
    pub count: u64,
    #[schema(value_type = String, format = "date-time")]
    pub first_at: Timestamp,
    #[schema(value_type = String, format = "date-time")]
    pub last_at: Timestamp,
}
