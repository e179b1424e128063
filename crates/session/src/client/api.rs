use std::time::Duration;

use bytes::Bytes;
use manyhands_crdt::ReplicaId;
use manyhands_proto::{Code, DocumentName, Incarnation, Position, Seq, v1};

/// What an application may change about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Name and version of the client software, for the server's logs.
    pub client: String,
    /// The first wait before a new connection is drawn from zero up to this; each further ceiling is twice
    /// the one before.
    pub backoff_first: Duration,
    /// The highest ceiling.
    pub backoff_max: Duration,
    /// How long a connection may take from the socket to `Welcome`.
    pub handshake_max: Duration,
    /// Changes without an ack for this long, on a connection that lives, are sent again.
    pub resend_after: Duration,
    /// A fetch without an answer for this long is asked again; a state may pause for as long.
    pub answer_max: Duration,
    /// An open without an answer for this long is asked again.
    pub open_max: Duration,
    /// How long before its end a token is reported as expiring.
    pub token_lead: Duration,
    /// Pushes on one channel that may be on their way; what is made meanwhile goes together in the next.
    pub pushes_in_flight_max: usize,
    /// Changes that one channel's outbox holds; a further one is handed back.
    pub outbox_changes_max: usize,
    /// Their bytes.
    pub outbox_bytes_max: usize,
    /// The largest state that is taken from a server.
    pub state_bytes_max: usize,
    /// The largest frame that is taken from a server.
    pub frame_bytes_max: usize,
    /// At most one presence of a channel goes out in this time; the newest wins.
    pub presence_interval: Duration,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            client: concat!("manyhands-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            backoff_first: Duration::from_millis(250),
            backoff_max: Duration::from_secs(30),
            handshake_max: Duration::from_secs(10),
            resend_after: Duration::from_secs(10),
            answer_max: Duration::from_secs(10),
            open_max: Duration::from_secs(30),
            token_lead: Duration::from_secs(60),
            pushes_in_flight_max: 4,
            outbox_changes_max: 1_000_000,
            outbox_bytes_max: 256 * 1024 * 1024,
            state_bytes_max: 256 * 1024 * 1024,
            frame_bytes_max: 16 * 1024 * 1024,
            presence_interval: Duration::from_millis(50),
        }
    }
}

/// What happens to a connection.
#[derive(Clone, Debug)]
pub enum Input {
    /// Connect, and stay connected. Also after [`ConnectionState::Stopped`], when something has changed.
    Start,
    /// The socket of [`Effect::Connect`] is there.
    SocketOpened,
    /// The socket of [`Effect::Connect`] could not be made.
    SocketFailed {
        /// What the server said, if it answered at all.
        refusal: Option<HandshakeRefusal>,
    },
    /// The socket is gone, not by [`Effect::CloseSocket`].
    SocketClosed {
        /// The close code, if there was a close frame.
        code: Option<u16>,
        /// Its reason.
        reason: String,
    },
    /// A binary message, whole.
    Frame(Bytes),
    /// A WebSocket ping or pong: the other side lives.
    Heard,
    /// Open a document. On a channel that is in use with the same document and replica, opens it again
    /// and keeps the outbox; otherwise what was there is left first.
    Open {
        /// The application's number for it.
        channel: u32,
        /// Which document.
        document: DocumentName,
        /// Who writes; `None` for a reader.
        replica: Option<ReplicaId>,
        /// What the application has. It must hold everything up to there.
        have: Option<Position>,
        /// How the document is to merge, which decides it for a new one and must fit any other;
        /// `Unspecified` takes what there is.
        strategy: v1::Strategy,
        /// The history that changes to be submitted belong to, when they were made before what `have` says,
        /// by an earlier process for instance.
        lineage: Option<Incarnation>,
    },
    /// A local change, already applied; it stays in the outbox until it is acknowledged or handed back.
    Submit {
        /// Where.
        channel: u32,
        /// The next one of the channel's replica.
        change: OutgoingChange,
    },
    /// What this session shows to others; both empty takes it away.
    SetPresence {
        /// Where.
        channel: u32,
        /// A JSON value.
        data: Bytes,
        /// Where its carets are.
        cursors: Vec<v1::TextCursor>,
    },
    /// Close a document. What its outbox still holds is handed back.
    Leave {
        /// Which one.
        channel: u32,
    },
    /// A fresh token: goes over the live socket, or ends [`ConnectionState::TokenNeeded`].
    Token(String),
    /// Close the connection and stay closed. The outboxes keep what they hold.
    Stop,
    /// The deadline has come.
    Tick,
}

/// An HTTP answer instead of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeRefusal {
    /// The HTTP status.
    pub status: u16,
    /// From the problem document, if there was one.
    pub code: Option<Code>,
    /// What was wrong.
    pub message: String,
    /// From `Retry-After`, if it was there.
    pub retry_after: Option<Duration>,
}

/// A change on its way to the log: opaque but for its place in its replica's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingChange {
    /// Of its first op.
    pub counter: u64,
    /// The first counter after it.
    pub next_counter: u64,
    /// The seq of the newest entry that its author had applied.
    pub base: u64,
    /// The compact op bytes.
    pub body: Bytes,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make a socket with a token that is good now, and answer with [`Input::SocketOpened`] or
    /// [`Input::SocketFailed`]. There is no other socket, and nothing more is heard of an earlier one.
    Connect,
    /// Send one binary message.
    Send(Bytes),
    /// Close the socket, or give up making it; no input about it may follow.
    CloseSocket {
        /// The close code to send.
        code: u16,
        /// Why.
        reason: String,
    },
    /// Tell the application.
    Event(Event),
}

/// How it stands with the server.
#[derive(Clone, Debug, PartialEq)]
pub enum ConnectionState {
    /// No socket; a new one is tried then.
    Offline {
        /// On the clock of `now`.
        retry_at: Duration,
        /// Why the last one ended.
        reason: String,
    },
    /// A socket is being made.
    Connecting,
    /// The server said `Welcome`.
    Online {
        /// This session's id, as it appears in presence.
        session: String,
        /// The server's clock, milliseconds since the Unix epoch.
        server_time_ms: u64,
    },
    /// The server does not take the token; goes on with [`Input::Token`].
    TokenNeeded {
        /// What it said.
        message: String,
    },
    /// Over, until [`Input::Start`].
    Stopped {
        /// The server's reason, if it had one that this build knows.
        code: Option<Code>,
        /// What it said.
        message: String,
    },
}

/// What the application learns.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// How it stands with the server.
    Connection(ConnectionState),
    /// A document is open. With [`v1::Recovery::State`], [`Event::State`] follows before any entries.
    Opened {
        /// Where.
        channel: u32,
        /// Whether what the application has is continued or replaced.
        recovery: v1::Recovery,
        /// For a tail, the server's newest position; for a state, the position of that state.
        position: Position,
        /// Whether changes are taken.
        can_write: bool,
        /// The replica's first counter that the log does not have.
        next_counter: u64,
        /// How the document's maps merge; `Unspecified` if the server is older than this.
        strategy: v1::Strategy,
    },
    /// The whole state: replaces what the application has. The changes that the outbox still holds are to
    /// be applied on top.
    State {
        /// Where.
        channel: u32,
        /// What it includes.
        position: Position,
        /// The document's bytes.
        bytes: Bytes,
    },
    /// Entries from the log, each seq once and in order; own ones too.
    Entries {
        /// Where.
        channel: u32,
        /// The seq of the first record.
        first_seq: Seq,
        /// How many records.
        count: u32,
        /// The records.
        entries: Bytes,
        /// Records up to here were delivered before: to be skipped.
        known: Seq,
        /// What the application has afterwards.
        position: Position,
    },
    /// Own changes are durable.
    Acked {
        /// Where.
        channel: u32,
        /// Everything of the replica below this.
        next_counter: u64,
        /// The seq of the newest of them.
        seq: Seq,
    },
    /// Own changes are not taken: the refused one and all after it, handed back. The channel takes no more
    /// changes until it is opened again with another replica.
    Refused {
        /// Where.
        channel: u32,
        /// From the table of codes; may be newer than this build.
        code: u32,
        /// What was wrong.
        message: String,
        /// What the key of a refused write to a map has now, as JSON; empty when the refusal is about
        /// something else.
        current: Bytes,
        /// In order of their counters.
        changes: Vec<OutgoingChange>,
    },
    /// Who else is here.
    Presence {
        /// Where.
        channel: u32,
        /// Whether `peers` is the whole roster.
        full: bool,
        /// Who is here.
        peers: Vec<v1::Peer>,
        /// Sessions that are gone.
        left: Vec<String>,
    },
    /// A presence was not sent: it is over the limit that the server announced.
    PresenceTooLarge {
        /// Where.
        channel: u32,
        /// How large it is.
        bytes: usize,
    },
    /// The server closed the document for good; its outbox keeps what it holds until the application opens
    /// it again or leaves.
    Evicted {
        /// Where.
        channel: u32,
        /// From the table of codes; may be newer than this build.
        code: u32,
        /// What was wrong.
        message: String,
    },
    /// The document was closed but will be opened again by itself.
    Reopening {
        /// Where.
        channel: u32,
        /// From the table of codes; may be newer than this build.
        code: u32,
    },
    /// The token will end soon: a fresh one is wanted as [`Input::Token`].
    TokenExpiring {
        /// How long it is still good for.
        within: Duration,
    },
    /// The server will leave; the connection moves by itself.
    GoingAway {
        /// When.
        within: Duration,
    },
}
