//! The JSON dialect: what a client that knows only `JSON.parse` and a socket says and hears.
//!
//! One workspace, one root map, four words: `init`, `op`, `error`, `ping`. It is one more way of saying what
//! the binary protocol says: an `op` becomes an ordinary change of a replica that the session keeps, and goes
//! the ordinary road. A [`Mirror`] holds the document for all JSON sessions of an edge, so that a session needs
//! none of its own; it turns each run of the log into frames, once for all of them.

mod channel;
mod close;
mod decode;
mod encode;
mod mirror;
mod op;
mod recent;
mod timestamp;
mod uplink;

pub(crate) use channel::{Channel, Surroundings};
pub use close::{close_code, status};
pub(crate) use decode::{Message, Mistake, decode};
pub(crate) use encode::{Ref, bye, error, pong, token};
pub use mirror::{Mirror, MirrorLimits};
pub use op::{Audience, Missed, SharedOp, SharedOps, SharedState};

use manyhands_crdt::{Hash, Strategy};

/// What a JSON client chose with its handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Whether it speaks the extensions: `del`, `ack`, `presence`, `token`, `bye`, and more members of `init` and `op`.
    pub extended: bool,
    /// The strategy that the workspace must have, or is to be created with.
    pub strategy: Option<Strategy>,
    /// The heads of what the client has already.
    pub heads: Vec<Hash>,
}
