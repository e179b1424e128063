//! What is asked of a partition and what it answers, once the bytes of the wire have been checked.

use bytes::Bytes;
use manyhands_crdt::{Hash, ReplicaId};
use manyhands_history::Strategy;
use manyhands_proto::{Code, DocumentName, Incarnation, Position, Seq, v1};

/// What the edge verified in the session's token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Whose token it is.
    pub subject: String,
    /// What it allows.
    pub scopes: Vec<String>,
    /// Where it allows it: exact names, or `*`.
    pub workspaces: Vec<String>,
    /// Milliseconds since the Unix epoch from which on it allows nothing.
    pub expires_at_ms: u64,
}

/// What somebody wants to do to a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// See it.
    Read,
    /// Change it.
    Write,
}

impl Grant {
    /// Refuses what the token does not allow at this moment.
    pub fn check(&self, now_ms: u64, document: &DocumentName, scope: Scope) -> Result<(), Refused> {
        let name = match scope {
            Scope::Read => "read",
            Scope::Write => "write",
        };
        // To change a document is to see it, and to administer it is to do both.
        let allows = |has: &String| has == name || has == "admin" || (scope == Scope::Read && has == "write");
        if self.subject.is_empty() {
            return Err(Refused::new(Code::Forbidden, "the grant names no subject"));
        }
        if self.expires_at_ms <= now_ms {
            return Err(Refused::from(Code::TokenExpired));
        }
        if !self.workspaces.iter().any(|workspace| workspace == "*" || workspace == document.as_str()) {
            return Err(Refused::new(Code::Forbidden, format!("the token is not for workspace {document}")));
        }
        if !self.scopes.iter().any(allows) {
            return Err(Refused::new(Code::Forbidden, format!("the token lacks the scope {name}")));
        }
        Ok(())
    }
}

impl From<v1::Grant> for Grant {
    fn from(grant: v1::Grant) -> Grant {
        let v1::Grant { subject, scopes, workspaces, expires_at_ms } = grant;
        Grant { subject, scopes, workspaces, expires_at_ms }
    }
}

/// Changes of one replica to one document. `T` is where the answer goes.
#[derive(Clone, Debug)]
pub struct Submit<T> {
    /// To which document.
    pub document: DocumentName,
    /// The history that the replica works on.
    pub incarnation: Incarnation,
    /// Who made them.
    pub replica: ReplicaId,
    /// Counter of the first change's first op.
    pub first_counter: u64,
    /// How many changes `changes` holds.
    pub count: u32,
    /// Push records of the change codec.
    pub changes: Bytes,
    /// What the author may do.
    pub grant: Grant,
    /// The W3C trace context that the deltas carry on.
    pub trace: Option<String>,
    /// What the log says about changes of this request that memory no longer knows; filled in when a request
    /// comes back from [`Admitted::take_lookups`](crate::partition::Admitted::take_lookups).
    pub known: Vec<(u64, Option<KnownChange>)>,
    /// Where the answer goes.
    pub ticket: T,
}

/// A change that the log holds, as far as a resend must be compared with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownChange {
    /// Counter of its first op.
    pub counter: u64,
    /// The hash of its canonical form.
    pub hash: manyhands_crdt::Hash,
    /// Its place in the document.
    pub seq: Seq,
}

/// The answer to a [`Submit`]; whatever it calls durable is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// Everything of the replica below this is durable, as the asker has it: with a rejection, it ends there.
    pub next_counter: u64,
    /// The place of the newest change that is acknowledged here; 0 if none is.
    pub seq: Seq,
    /// The first change that was refused, if one was. Those after it were not looked at.
    pub rejection: Option<Rejection>,
}

/// Why a change is not in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Counter of the change's first op.
    pub counter: u64,
    /// What is wrong, for machines.
    pub code: Code,
    /// What is wrong, for people.
    pub message: String,
    /// The replica's first counter that the document does not have.
    pub next_counter: u64,
    /// What stands in the way, as `current` of the protocol's `Reject` has it; mostly empty.
    pub current: Bytes,
}

/// Why a whole request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong, for machines.
    pub code: Code,
    /// What is wrong, for people.
    pub message: String,
    /// When to ask again, in milliseconds; 0 if the code says it all.
    pub retry_after_ms: u32,
    /// With `NotOwner`: who owns the partition, if that is known.
    pub owner: Option<v1::Route>,
}

impl Refused {
    /// With words of its own.
    pub fn new(code: Code, message: impl Into<String>) -> Refused {
        Refused { code, message: message.into(), retry_after_ms: 0, owner: None }
    }

    /// To be asked again after a while.
    pub fn later(code: Code, retry_after_ms: u32) -> Refused {
        Refused { retry_after_ms, ..Refused::from(code) }
    }
}

impl From<Code> for Refused {
    fn from(code: Code) -> Refused {
        Refused::new(code, code.message())
    }
}

/// What became of a [`Submit`].
pub type Answer = Result<Submitted, Refused>;

/// Asks for a document: what is after a position, or its state.
#[derive(Clone, Debug)]
pub struct Open {
    /// Which document.
    pub document: DocumentName,
    /// The replica that will write; its counter is told.
    pub replica: Option<ReplicaId>,
    /// What the asker has.
    pub have: Option<Position>,
    /// Heads that the asker has instead; looked at only without a position.
    pub heads: Vec<Hash>,
    /// How the document is to merge, if the asker minds.
    pub strategy: Option<Strategy>,
    /// What the asker may do.
    pub grant: Grant,
}

/// The answer to an [`Open`].
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// What follows, and where the document stands.
    pub header: v1::OpenHeader,
    /// Entries after the asker's position, when it is a true prefix.
    pub tail: Vec<v1::EntryRun>,
    /// Otherwise the state.
    pub state: Bytes,
}

/// Asks for the entries after a seq.
#[derive(Clone, Debug)]
pub struct Read {
    /// Of which document.
    pub document: DocumentName,
    /// In which history.
    pub incarnation: Incarnation,
    /// After which entry.
    pub after: Seq,
    /// At most about so many bytes; one entry comes all the same.
    pub bytes_max: usize,
    /// What the asker may do.
    pub grant: Grant,
}

/// A strategy as the wire says it.
#[must_use]
pub fn wire_strategy(strategy: Strategy) -> v1::Strategy {
    match strategy {
        Strategy::Crdt => v1::Strategy::Crdt,
        Strategy::Lww => v1::Strategy::Lww,
        Strategy::Server => v1::Strategy::Server,
    }
}

/// A position as the wire says it.
#[must_use]
pub fn wire_position(position: &Position) -> v1::Position {
    v1::Position {
        incarnation: position.incarnation.0,
        seq: position.seq.0,
        chain: if position.seq == Seq(0) { Bytes::new() } else { Bytes::copy_from_slice(&position.chain) },
    }
}
