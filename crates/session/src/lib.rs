//! What a client and an edge say to each other, both halves, as state machines without I/O.
//!
//! [`edge::Edge`] is one socket as the server sees it, [`client::Client`] one connection as the client sees
//! it, and [`feed::Feed`] makes the bus, which may lose, repeat and reorder, into a gapless stream of one
//! document's entries. Each has the same shape: `handle(now, input, &mut effects)` takes one thing in and
//! writes what is to be done, in order; `deadline()` says when to call with `Tick` if nothing else comes.
//! No clock, no task, no random source: time and seeds come in as data, so a seed replays a run.
//!
//! What the frames mean is in `proto/PROTOCOL.md`. Changes, entries and states pass through as bytes. The JSON
//! dialect, whose frames are in `proto/JSON.md`, is the same machine with another codec, and a [`json::Mirror`].

mod backoff;
pub mod client;
pub mod edge;
pub mod feed;
mod frame;
mod grant;
pub mod json;
mod limits;
mod run;

pub use frame::{
    CONTROL_BYTES_MAX, FRAME_BYTES_MAX, Violation, decode_client, decode_server, encode_client,
    encode_server, position_from_wire, position_to_wire,
};
pub use grant::{Grant, Scope, Scopes, Workspaces};
pub use limits::Limits;
pub use run::{MalformedRun, SharedRun};

use manyhands_proto::Code;

/// Why something asked for was not done, in the words of the one table of codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// What kind of refusal it is; decides what the client does.
    pub code: Code,
    /// What exactly was wrong, for the one who reads it.
    pub message: String,
    /// How long to wait before asking again; 0 leaves it to the one who asks.
    pub retry_after_ms: u32,
    /// With [`Code::MissingPredecessor`], the counter that is expected.
    pub next_counter: u64,
}

impl Refusal {
    /// A refusal with nothing but its code and a message.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), retry_after_ms: 0, next_counter: 0 }
    }
}

impl From<MalformedRun> for Refusal {
    fn from(error: MalformedRun) -> Refusal {
        Refusal::new(Code::Internal, error.to_string())
    }
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Refusal {
        Refusal::new(code, code.message())
    }
}
