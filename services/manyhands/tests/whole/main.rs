//! The program as its users meet it: as a process, with real sockets, real neighbours and real kills.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bare;
mod cluster;
mod commands;
mod converge;
mod dev;
mod drill;
mod rules;
mod seed;
mod trace;
mod world;
mod ws;
