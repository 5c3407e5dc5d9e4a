//! One host: its instances' containers, links, disks and limits, driven by assignments from the control plane.
//!
//! The agent never links the control plane or etcd. ARCHITECTURE.md draws the system.

pub mod agent;
pub mod credentials;
pub mod delivery;
pub mod disk;
pub mod flights;
pub mod image;
pub mod instance;
pub mod ledger;
pub mod limits;
pub mod mounts;
pub mod network;
pub mod runtime;
pub mod session;
pub mod streams;
