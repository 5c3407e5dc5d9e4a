//! Agent sessions: what each host has to do, what it reports, whether it lives, and the streams it dials back.
//!
//! - [`access`] says who may speak for which host; [`join`] makes hosts of machines.
//! - [`session`] speaks the protocol with one agent: a full set of orders, then deltas; reports come in.
//! - [`orders`] is pure: a snapshot -> the orders of a host. [`overlays`]: who is where on the networks that span hosts.
//!   [`prepull`]: the images that it is to have before an instance needs them.
//! - [`Fanout`] wakes the sessions that a change concerns.
//! - [`Live`] is what agents have said and nobody stores: reports, liveness, orphans. The controllers read it and
//!   write what is worth keeping; the API shows it.
//! - [`servers`] is what the leader does for other servers, which have no sessions.
//! - [`Broker`] joins a user's exec, console or logs with the stream that the host's agent opens for it.

mod access;
mod broker;
mod dial;
mod events;
mod fanout;
mod join;
mod live;
pub mod orders;
mod overlays;
mod prepull;
pub mod servers;
mod session;
mod socket;

pub use broker::{Broker, StreamError};
pub use events::Events;
pub use fanout::Fanout;
pub use live::{Dirty, HostView, Live, Windows};
pub use socket::{Dispatch, router};
