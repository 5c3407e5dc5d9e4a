//! Enoki's contract: what is stored, sent, printed and accepted.
//!
//! One model a resource: the types here are the wire, the store and the CLI's output. Nothing in this crate
//! knows etcd, Docker or (without the `client` feature) tokio. Two rules keep old and new versions together:
//! unknown fields are refused at the edge ([`decode::strict`]) and kept in the store (the store overlays a
//! typed value on the JSON it read).

pub mod audit;
pub mod cluster;
pub mod cpuset;
pub mod decode;
pub mod error;
pub mod event;
pub mod file;
pub mod host;
pub mod identity;
pub mod image;
pub mod instance;
pub mod job;
pub mod list;
pub mod mac;
pub mod merge;
pub mod network;
pub mod object;
pub mod operation;
pub mod project;
pub mod protocol;
pub mod quantity;
pub mod secret;
pub mod token;
pub mod volume;

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod endpoint;
#[cfg(feature = "client")]
pub mod stream;
#[cfg(feature = "client")]
pub mod tls;

pub use cluster::Cluster;
pub use error::{Code, Problem};
pub use host::Host;
pub use image::Image;
pub use instance::Instance;
pub use job::Job;
pub use network::Network;
pub use object::{Kind, Labels, Object, Spec, Uid};
pub use operation::Operation;
pub use project::Project;
pub use secret::Secret;
pub use token::Token;
pub use volume::Volume;
