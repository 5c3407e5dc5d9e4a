//! The control plane and the CLI of Enoki, as a library so that tests and benchmarks can drive the parts.
//!
//! Arrows run one way: `api <- store <- state <- scheduler <- controller <- main`,
//! `state <- dispatch <- admission <- http <- main`, `api <- cli`. ARCHITECTURE.md draws the system.

pub mod admission;
pub mod auth;
pub mod cli;
pub mod config;
pub mod controller;
pub mod dispatch;
pub mod host;
pub mod http;
pub mod listen;
pub mod memory;
pub mod peers;
pub mod registry;
pub mod scheduler;
pub mod server;
pub mod state;
pub mod store;
pub mod up;
