//! The binary's library: the only code that knows HTTP, gRPC, config files and process life.
//!
//! [`config`] reads settings, [`app`] wires the stages and stops them in reverse, [`http`] and [`flight`] are the two ports.

pub mod app;
pub mod check;
pub mod config;
pub mod flight;
pub mod http;
pub mod tools;
