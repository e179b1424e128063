//! The repository as data, for the rules that a machine can check (`tests/tidy.rs`).

pub mod repository;
