//! What every process does around its work: configuration in layers, telemetry, health, shutdown.
//!
//! A service owns its `Config` beside its code; this crate reads them all in the same way, says precisely what
//! is wrong with them, and gives every process the same logs, metrics, probes and order of leaving.

pub mod config;
pub mod health;
mod log_line;
pub mod shutdown;
pub mod telemetry;
pub mod value;
