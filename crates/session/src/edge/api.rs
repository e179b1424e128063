use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use manyhands_crdt::{Hash, ReplicaId, Strategy};
use manyhands_proto::{Code, DocumentName, Incarnation, Position, Seq, v1};

use crate::json::{Missed, SharedOp, SharedOps, SharedState};
use crate::{Grant, Limits, Refusal, SharedRun};

/// One opening of a document on a session. The number on the wire may come again after a `Leave`; this does
/// not, so that a late answer never reaches a later opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId {
    /// The client's number for it.
    pub number: u32,
    /// Which opening of this session it is, from 1.
    pub opening: u32,
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.number, self.opening)
    }
}

/// What an operator may change about sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeConfig {
    /// What one session may use.
    pub limits: Limits,
    /// How long a socket may be silent before its first frame.
    pub hello_max: Duration,
    /// How often a silent socket is pinged; two and a half times this ends it.
    pub ping_interval: Duration,
    /// Bytes that wait for the socket; above, deltas are left out and fetched again later.
    pub send_queue_bytes_max: usize,
    /// Bytes that wait for the socket; above, it is closed as a slow consumer.
    pub send_queue_bytes_close: usize,
    /// How long a socket may take nothing while something waits for it.
    pub send_stall_max: Duration,
    /// How long an entry that was heard of may take to come by the bus before it is fetched.
    pub bus_max: Duration,
    /// Channels that load at one moment; the others wait their turn. Bounds the state held for sending.
    pub openings_max: usize,
    /// The largest state that is sent to a client.
    pub state_bytes_max: usize,
    /// At most one presence update of a channel goes out in this time; the newest wins.
    pub presence_interval: Duration,
    /// Sessions that a slow channel's pending roster holds; more wait for the next full roster.
    pub peers_max: usize,
    /// Refusals in a minute before the session is closed: one without a right weighs ten, others one.
    pub strikes_per_minute_max: u32,
}

impl Default for EdgeConfig {
    fn default() -> EdgeConfig {
        EdgeConfig {
            limits: Limits::default(),
            hello_max: Duration::from_secs(10),
            ping_interval: Duration::from_secs(20),
            send_queue_bytes_max: 512 * 1024,
            send_queue_bytes_close: 4 * 1024 * 1024,
            send_stall_max: Duration::from_secs(10),
            bus_max: Duration::from_millis(250),
            openings_max: 4,
            state_bytes_max: 64 * 1024 * 1024,
            presence_interval: Duration::from_millis(50),
            peers_max: 1024,
            strikes_per_minute_max: 200,
        }
    }
}

impl EdgeConfig {
    /// How long nothing may be heard from a socket.
    #[must_use]
    pub fn idle_max(&self) -> Duration {
        self.ping_interval * 5 / 2
    }
}

/// What happens to a session.
#[derive(Clone, Debug)]
pub enum Input {
    /// A binary message, whole.
    Frame(Bytes),
    /// A text message, whole: the JSON dialect has no others, the binary protocol none.
    Text(Bytes),
    /// A WebSocket ping or pong: the other side lives.
    Heard,
    /// The answer to [`Effect::Open`].
    Opened {
        /// From the effect.
        channel: ChannelId,
        /// What the owner said.
        result: Result<Opened, Refusal>,
    },
    /// The answer to [`Effect::Submit`].
    Submitted {
        /// From the effect.
        channel: ChannelId,
        /// What the owner said; an error says nothing about what became of the changes.
        result: Result<Submitted, Refusal>,
    },
    /// The answer to [`Effect::Fetch`].
    Fetched {
        /// From the effect.
        channel: ChannelId,
        /// What the feed's ring or the owner said.
        result: Result<Fetched, Refusal>,
    },
    /// The document's feed delivered a run. From [`Effect::Open`] on, in the feed's order.
    Entries {
        /// From the effect that opened it.
        channel: ChannelId,
        /// The run, encoded once for all sessions.
        run: SharedRun,
    },
    /// The answer to [`Effect::Mirror`]. Comes again whenever the mirror had to be made anew.
    Mirrored {
        /// From the effect.
        channel: ChannelId,
        /// The state of the root map.
        result: Result<SharedState, Refusal>,
    },
    /// The document's mirror took a run in. From the first [`Input::Mirrored`] on, in the mirror's order.
    Ops {
        /// From the effect that asked for the mirror.
        channel: ChannelId,
        /// What the run means, encoded once for all sessions.
        ops: SharedOps,
    },
    /// The answer to [`Effect::Fetch`] of a JSON session.
    Missed {
        /// From the effect.
        channel: ChannelId,
        /// What the mirror has after that seq; nothing if it has nothing newer.
        result: Result<Option<Missed>, Refusal>,
    },
    /// The answer to [`Effect::Recall`].
    Recalled {
        /// From the effect.
        channel: ChannelId,
        /// What is to be told to one who repeats the op; empty if it is not known.
        known: Vec<SharedOp>,
    },
    /// The document's feed lost its thread: the history is another.
    Lost {
        /// From the effect that opened it.
        channel: ChannelId,
    },
    /// The document is at least here. A hint.
    TipSeen {
        /// From the effect that opened it.
        channel: ChannelId,
        /// The newest position that was announced.
        position: Position,
    },
    /// The roster, or what changed in it.
    Presence {
        /// From the effect that opened it.
        channel: ChannelId,
        /// Whether `peers` is the whole roster.
        full: bool,
        /// Who is here.
        peers: Vec<v1::Peer>,
        /// Sessions that are gone.
        left: Vec<String>,
    },
    /// The answer to [`Effect::VerifyToken`].
    TokenVerified(Result<Grant, Refusal>),
    /// How many bytes of what was sent still wait for the socket: after each write.
    Queued {
        /// The level now.
        bytes: usize,
    },
    /// The server leaves: tell the client when to go, and close when the time is over.
    Drain {
        /// How long there is.
        within: Duration,
    },
    /// The deadline has come.
    Tick,
}

/// What an owner answered to an open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// For a tail, the newest position; for a state, the position of that state.
    pub position: Position,
    /// The replica's first counter that the log does not have; 0 without a replica.
    pub next_counter: u64,
    /// What follows.
    pub body: Body,
    /// How the document's maps merge.
    pub strategy: v1::Strategy,
    /// The entries at `position` that no other had seen, by hash.
    pub heads: Vec<v1::Head>,
    /// The newest seq that an entry up to `position` names as its base.
    pub max_base: u64,
}

impl Opened {
    /// An answer about a document of the usual strategy, without heads.
    #[must_use]
    pub fn new(position: Position, next_counter: u64, body: Body) -> Opened {
        let strategy = v1::Strategy::Crdt;
        Opened { position, next_counter, body, strategy, heads: Vec::new(), max_base: 0 }
    }
}

/// What brings a client up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// What the client has is a true prefix, or its heads are known; these come after it. May end before the position: the rest is
    /// fetched.
    Tail(Vec<SharedRun>),
    /// The whole state, in pieces of at most 256 KiB.
    State(Vec<Bytes>),
}

/// What an owner answered to changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    /// Everything of the replica below this is durable.
    pub next_counter: u64,
    /// The seq of the newest of these changes.
    pub seq: Seq,
    /// Set when one was refused; those before it are durable.
    pub rejection: Option<v1::Rejection>,
}

/// Entries after a seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Contiguous; the first may begin at or before the seq that was asked for.
    pub runs: Vec<SharedRun>,
    /// The document's newest position.
    pub tip: Position,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send one binary message.
    Send(Bytes),
    /// Send one text message; it is UTF-8.
    SendText(Bytes),
    /// Send a WebSocket ping.
    Ping,
    /// Join the document's feed for this channel; then ask the owner; answer with [`Input::Opened`].
    Open {
        /// To be repeated in every input about it.
        channel: ChannelId,
        /// Which document.
        document: DocumentName,
        /// Who will write; `None` for a reader.
        replica: Option<ReplicaId>,
        /// What the client has.
        have: Option<Position>,
        /// The heads that the client has instead; empty with a position, and mostly otherwise.
        heads: Vec<Bytes>,
        /// How the document is to merge; `Unspecified` if the client does not mind.
        strategy: v1::Strategy,
    },
    /// Join the mirror of a document, making one if there is none; answer with [`Input::Mirrored`].
    Mirror {
        /// To be repeated in every input about it.
        channel: ChannelId,
        /// Which document.
        document: DocumentName,
        /// How it must merge; `None` takes what there is.
        strategy: Option<Strategy>,
        /// What the client has: it may be told only what it lacks.
        heads: Vec<Hash>,
        /// The history that the document has no longer: a mirror of it is no use.
        lost: Option<Incarnation>,
    },
    /// Look up, in the mirror, an op by its key and timestamp; answer with [`Input::Recalled`]. At most one at a
    /// time.
    Recall {
        /// Whose.
        channel: ChannelId,
        /// Which document.
        document: DocumentName,
        /// In the root map.
        key: String,
        /// In microseconds since the Unix epoch.
        timestamp: u64,
    },
    /// Hand changes to the owner; answer with [`Input::Submitted`]. At most one at a time for a channel.
    Submit {
        /// Where they were pushed.
        channel: ChannelId,
        /// Which document.
        document: DocumentName,
        /// In which history.
        incarnation: Incarnation,
        /// Whose changes.
        replica: ReplicaId,
        /// The counter of the first op.
        first_counter: u64,
        /// How many changes.
        count: u32,
        /// Their records.
        changes: Bytes,
    },
    /// Get the entries after a seq, from the feed's ring or from the owner; answer with [`Input::Fetched`]. For
    /// a JSON session, from the mirror; answer with [`Input::Missed`]. At most one at a time for a channel.
    Fetch {
        /// Who misses them.
        channel: ChannelId,
        /// Which document.
        document: DocumentName,
        /// In which history.
        incarnation: Incarnation,
        /// The newest that was sent.
        after: Seq,
    },
    /// The channel is closed: leave the feed and take its presence away.
    Leave {
        /// Which one.
        channel: ChannelId,
        /// Its document.
        document: DocumentName,
    },
    /// Show this to the document's other sessions.
    SetPresence {
        /// Where.
        channel: ChannelId,
        /// In which document.
        document: DocumentName,
        /// What, already stamped with the session and its user.
        peer: v1::Peer,
    },
    /// Take this session's presence away.
    ClearPresence {
        /// Where.
        channel: ChannelId,
        /// In which document.
        document: DocumentName,
    },
    /// Verify a token; answer with [`Input::TokenVerified`]. At most one at a time.
    VerifyToken(String),
    /// Close the socket with [`Edge::close_code`](super::Edge::close_code), leave every channel, drop the machine.
    /// The last effect.
    Close {
        /// Why; always one that has a close code in the session's dialect.
        code: Code,
        /// The slug and what was wrong, short enough for a close frame.
        reason: String,
    },
}
