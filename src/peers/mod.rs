//! What servers say to each other: over TLS, known to each other by the certificates of the cloud's own CA.
//!
//! Every server answers users from its own cache and writes to the store by itself. Only what agents say is with the leader
//! alone, since it has their sessions: for that the others ask it. [`Peers`] is the way there; what a server answers to
//! others is in `dispatch::servers`, and how one becomes a server of a cloud in [`join`].

mod elsewhere;
mod enlist;
pub mod join;
mod leader;

pub use enlist::enlist;
pub use leader::{NoLeader, Peers, tell_events};

use crate::auth::actor::Actor;
use enoki_api::event::Event;
use enoki_api::protocol::StreamRequest;
use serde::{Deserialize, Serialize};

/// POST of [`Open`]: 204, or a problem.
pub const OPEN_PATH: &str = "/server/v1/open";
/// POST of a list of [`Event`]s that another server noted: 204.
pub const EVENTS_PATH: &str = "/server/v1/events";
/// Where a server has parts of images for others: `/server/v1/images/HEX/PART/DIGEST`.
pub const IMAGES_PATH: &str = "/server/v1/images";
/// Where a server has uploaded files for others: `/server/v1/files/PROJECT/DIGEST`.
pub const FILES_PATH: &str = "/server/v1/files";
/// POST of [`join::Join`] with a token for servers as bearer, answered by [`join::Joined`].
pub const JOIN_PATH: &str = "/server/v1/join";
/// On a request that a server passes on: who made it there, as JSON. From anybody but a server it is ignored.
pub const ACTOR_HEADER: &str = "enoki-actor";

/// Has a host's agent dial a stream of this id at the server that asks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Open {
    pub host: String,
    pub stream: String,
    /// Where: `https://HOST:PORT`.
    pub server: String,
    pub request: StreamRequest,
}

/// Events on their way to the leader, with whoever noted them.
pub type Noted = Vec<Event>;

/// The header's value for `actor`. None: it does not fit one, which no name of ours does.
fn actor_header(actor: &Actor) -> Option<http::HeaderValue> {
    http::HeaderValue::from_str(&serde_json::to_string(actor).ok()?).ok()
}

/// Who made the request at the server that passes it on.
pub fn on_behalf(headers: &http::HeaderMap) -> Option<Actor> {
    serde_json::from_str(headers.get(ACTOR_HEADER)?.to_str().ok()?).ok()
}
