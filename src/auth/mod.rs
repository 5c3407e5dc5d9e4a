//! Who are you, may you: the built-in CA and the sealing of what is secret.

pub mod ca;
pub mod seal;
