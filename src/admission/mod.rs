//! What a write of an object needs, whoever writes it: that its place is free, that what it names exists and stays, its
//! addresses, segment and range, its share of the quota, and the tombstones of what it destroys.
//!
//! PURE, but for the time: a snapshot and an object become a transaction. It compares all that was looked at, so of two
//! writes that were planned side by side one loses and is planned anew; whoever commits it looks again then. One object
//! a transaction: a second one would be planned without the first. [`http`](crate::http) writes what users ask for,
//! controllers what Enoki makes for itself. A new object, a changed one and one that goes:
//!
//! ```text
//! complete(&mut instance.spec, &instance.name)?;
//! let txn = vacant(&snapshot, &snapshot.instances, &instance)?;
//! let txn = instance::create(&snapshot, &live, &mut instance, txn)?;
//! commit(made(&instance, txn)?)
//!
//! refuse_deleting(&row.object)?;
//! let txn = instance::update(&snapshot, &row, &mut new, unchanged(&row)?)?;
//! if let Some(txn) = changed(&row, &mut new, txn)? { commit(txn) }
//!
//! let gone = instance::delete(&snapshot, &row, unchanged(&row)?)?;
//! let (txn, _) = removed(&row, gone)?;
//! commit(txn)
//! ```
//!
//! An object's `owner` is the writer's to set, and means nothing here: users are kept from what has one in `http`.

mod addresses;
pub mod instance;
pub mod network;
mod object;
pub mod quota;
pub mod references;
pub mod segment;
pub mod system;
#[cfg(test)]
mod tests;
mod tombstone;
pub mod volume;

pub use object::{
    Deletion, changed, complete, key, known_project, made, missing, refuse_deleting, refuse_used, removed,
    unchanged, vacant,
};
pub use system::{SystemNetworks, with_default_network};
