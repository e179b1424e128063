//! The edge over real sockets, against document nodes in the same process that do what they are told.

// The exemption for tests covers test functions only, not what they share.
#![allow(clippy::unwrap_used)]

mod documents;
mod drain;
mod face;
mod fanout;
mod handshake;
mod json;
mod json_bad;
mod presence;
mod redaction;
mod running;
mod session;
