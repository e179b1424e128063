//! Histories of documents that exchange changes in any causal order, each compared with the linked list after every
//! op: random ones in the tests, and those that a fuzzer makes of bytes.

// A fuzzer uses only a part.
#![cfg_attr(not(test), allow(dead_code))]

mod history;
mod oracle;
mod world;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod random;
#[cfg(test)]
mod shrink;
#[cfg(test)]
mod vectors;

/// Runs the history that some bytes say.
///
/// # Panics
/// When anything is not as it should be.
pub(crate) fn run_bytes(bytes: &[u8]) {
    world::run(&history::History::from_bytes(bytes), world::Options::default());
}
