//! Who are you, may you: the built-in CA, tokens and roles, and the sealing of what is secret.

pub mod actor;
pub mod audit;
pub mod ca;
pub mod quota;
pub mod roles;
pub mod seal;
