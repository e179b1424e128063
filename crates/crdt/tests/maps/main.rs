//! Maps: by example, by the table of what each strategy gives, and in random histories against the oracle.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod decoders;
mod examples;
mod histories;
mod naive;
mod orders;
mod table;
mod values;
mod vectors;
mod world;
