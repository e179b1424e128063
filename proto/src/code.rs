//! The one table of errors: what each code means to the one who must act, and how each face says it.
//!
//! Numbers come in ranges that carry the meaning, so that a client older than the server still acts right
//! on a code it does not know: 100–199 try the same again later, 200–299 resynchronise and then try
//! again, 300–399 do not repeat, 900–999 report. Close codes: 4000–4499 reconnect, 4500–4999 do not until
//! something has changed.

use std::fmt;

/// What a client may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request again, later.
    Later,
    /// The same request after catching up with the server.
    AfterResync,
    /// Not without a change by the one who sent it.
    No,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $slug:literal, http $http:literal, grpc $grpc:ident, close $close:expr, $message:literal, fix $fix:literal;)*) => {
        /// An error, by its number. The table is in `PROTOCOL.md`, which a test compares with this one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Code {
            $($(#[$doc])* $name = $number,)*
        }

        /// Every code, by number.
        pub const CODES: &[Code] = &[$(Code::$name,)*];

        impl Code {
            /// The word for it: in URLs, close reasons and logs.
            #[must_use]
            pub fn slug(self) -> &'static str {
                match self { $(Code::$name => $slug,)* }
            }

            /// The HTTP status that says it.
            #[must_use]
            pub fn http_status(self) -> u16 {
                match self { $(Code::$name => $http,)* }
            }

            /// The gRPC status that says it.
            #[must_use]
            pub fn grpc(self) -> tonic::Code {
                match self { $(Code::$name => tonic::Code::$grpc,)* }
            }

            /// The WebSocket close code that says it, for errors that end a session.
            #[must_use]
            pub fn close(self) -> Option<u16> {
                match self { $(Code::$name => $close,)* }
            }

            /// What happened, in a sentence.
            #[must_use]
            pub fn message(self) -> &'static str {
                match self { $(Code::$name => $message,)* }
            }

            /// What to do about it.
            #[must_use]
            pub fn fix(self) -> &'static str {
                match self { $(Code::$name => $fix,)* }
            }

            /// The code with this number, if this build knows it.
            #[must_use]
            pub fn from_number(number: u32) -> Option<Code> {
                match number { $($number => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// The log or an owner cannot be reached.
    Unavailable = 100, "unavailable", http 503, grpc Unavailable, close Some(4003),
        "The service cannot store changes right now.",
        fix "Keep the changes and send them again after the stated delay; nothing is lost.";
    /// A queue is full.
    Overloaded = 101, "overloaded", http 429, grpc ResourceExhausted, close Some(4004),
        "More arrives than can be stored.",
        fix "Send more slowly: wait for the stated delay, then send the same again.";
    /// No answer in time; the outcome is unknown.
    Timeout = 102, "timeout", http 504, grpc DeadlineExceeded, close None,
        "There was no answer in time; the outcome is not known.",
        fix "Send the same changes again; what is already stored is not stored twice.";
    /// Between services: this node does not own the partition.
    NotOwner = 103, "not_owner", http 503, grpc FailedPrecondition, close None,
        "Another node owns this document.",
        fix "Ask the owner that the answer names, or any node again after a moment.";
    /// The edge is leaving.
    ShuttingDown = 104, "shutting_down", http 503, grpc Unavailable, close Some(4000),
        "This server is being replaced.",
        fix "Reconnect after the stated delay; another server answers.";
    /// The session does not read what it is sent.
    SlowConsumer = 105, "slow_consumer", http 503, grpc Unavailable, close Some(4001),
        "This connection did not read for too long.",
        fix "Reconnect; the missed changes follow. Read faster, or open fewer documents on one connection.";
    /// Nothing was heard from the session.
    Idle = 106, "idle", http 408, grpc DeadlineExceeded, close Some(4002),
        "Nothing was heard on this connection for too long.",
        fix "Reconnect, and answer pings.";

    /// A change whose predecessor is not in the log.
    MissingPredecessor = 200, "missing_predecessor", http 409, grpc FailedPrecondition, close None,
        "A change before this one is missing.",
        fix "Send the changes again from the counter that the answer names.";
    /// The client's history is not the server's.
    HistoryReset = 201, "history_reset", http 410, grpc OutOfRange, close None,
        "The document's history was replaced since it was opened.",
        fix "Open the document again without a position, then apply your unsent edits to the new state.";
    /// A change names an element that the log does not have.
    MissingReference = 202, "missing_reference", http 409, grpc FailedPrecondition, close None,
        "The change refers to an element that this document does not have.",
        fix "Open the document again and make the edit anew; the replica's state was not this document's.";

    /// Bytes that are not what they should be.
    Malformed = 300, "malformed", http 400, grpc InvalidArgument, close None,
        "The bytes do not follow the protocol.",
        fix "Compare the sender with PROTOCOL.md; the message says where it went wrong.";
    /// Over a size limit.
    TooLarge = 301, "too_large", http 413, grpc InvalidArgument, close Some(4509),
        "This is larger than the limit.",
        fix "Split it; the limits are in the welcome frame.";
    /// The token does not allow it.
    Forbidden = 302, "forbidden", http 403, grpc PermissionDenied, close Some(4504),
        "The token does not allow this.",
        fix "Mint a token for this workspace with the scope that is needed.";
    /// No such thing.
    NotFound = 303, "not_found", http 404, grpc NotFound, close None,
        "There is nothing here.",
        fix "Check the address: documents are at /v1/sync/{workspace}.";
    /// The name is not a workspace name.
    InvalidName = 304, "invalid_name", http 400, grpc InvalidArgument, close None,
        "This is not the name of a workspace.",
        fix "Use 1 to 128 letters, digits and . _ ~ : -";
    /// A count is at its limit.
    LimitReached = 305, "limit_reached", http 429, grpc ResourceExhausted, close Some(4508),
        "A limit on how many is reached.",
        fix "Close something first; the limits are in the welcome frame.";
    /// The same replica and counter with other bytes.
    Fork = 306, "fork", http 409, grpc AlreadyExists, close None,
        "This replica already wrote another change under the same counter.",
        fix "Take a new replica id: this one was copied, or restored from a backup. Unsent edits can be made anew under it.";
    /// The replica belongs to another subject.
    ReplicaTaken = 307, "replica_taken", http 403, grpc PermissionDenied, close None,
        "This replica belongs to another user.",
        fix "Take a new random replica id for each session.";
    /// A frame for a channel that is not open.
    NotOpen = 308, "not_open", http 409, grpc FailedPrecondition, close None,
        "No document is open on this channel.",
        fix "Send Open and wait for Opened first.";
    /// No token, or one that does not verify.
    Unauthenticated = 310, "unauthenticated", http 401, grpc Unauthenticated, close Some(4502),
        "The token is missing or does not verify.",
        fix "Send a token signed with the server's secret in the Authorization header, the subprotocol or ?token=.";
    /// The token was good once.
    TokenExpired = 311, "token_expired", http 401, grpc Unauthenticated, close Some(4503),
        "The token has expired.",
        fix "Fetch a fresh token, then send it on the open socket before the old one expires or reconnect with it.";
    /// The page that opened the socket is not on the list.
    OriginRefused = 312, "origin_refused", http 403, grpc PermissionDenied, close None,
        "This origin may not open sockets here.",
        fix "Add the origin to allowed_origins in the edge's configuration.";
    /// A plain request where a socket belongs.
    UpgradeRequired = 313, "upgrade_required", http 426, grpc FailedPrecondition, close None,
        "This is a WebSocket address, and the token is good for it.",
        fix "Connect with a WebSocket client.";
    /// Frames in an order or form that the protocol does not have.
    Violation = 320, "violation", http 400, grpc InvalidArgument, close Some(4500),
        "The client broke the protocol.",
        fix "Compare the client with PROTOCOL.md; the message says what was wrong.";
    /// No common version.
    VersionUnsupported = 321, "version_unsupported", http 400, grpc FailedPrecondition, close Some(4501),
        "Client and server have no protocol version in common.",
        fix "Update the older of the two.";
    /// The value that a write was to replace is another by now.
    Conflict = 330, "conflict", http 409, grpc Aborted, close None,
        "The value was changed by somebody else since it was read.",
        fix "Look at the current value that the answer carries, decide again, and write with its seq.";
    /// A timestamp beyond what clocks may differ by.
    ClockAhead = 331, "clock_ahead", http 400, grpc InvalidArgument, close None,
        "The timestamp is too far in the future.",
        fix "Set the clock: the answer names the server's time, in microseconds since the Unix epoch. Or leave the timestamp out.";
    /// A timestamp in seconds or milliseconds.
    TimestampUnit = 332, "timestamp_unit", http 400, grpc InvalidArgument, close None,
        "The timestamp is not in microseconds.",
        fix "Send microseconds since the Unix epoch: Date.now() * 1000 in JavaScript, time.time_ns() // 1000 in Python.";
    /// A document is asked for with another strategy than it has.
    StrategyMismatch = 333, "strategy_mismatch", http 409, grpc FailedPrecondition, close Some(4510),
        "This document merges by another strategy.",
        fix "Open it without a strategy, or with the one that it was made with: a document keeps it for good.";
    /// A value that the document's schema does not allow.
    SchemaViolation = 334, "schema_violation", http 400, grpc InvalidArgument, close None,
        "The value does not satisfy the schema of this document.",
        fix "Correct the value at the path that the answer names.";

    /// A fault of ours.
    Internal = 900, "internal", http 500, grpc Internal, close Some(4005),
        "Something failed inside the service.",
        fix "Nothing that was acknowledged is lost. Try again; if it lasts, report the trace id.";
    /// Stored bytes do not verify.
    Corrupt = 901, "corrupt", http 500, grpc DataLoss, close None,
        "Stored data does not verify.",
        fix "Report it: the document is kept as it is until an operator has looked at it.";
}

impl Code {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        u32::from(self as u16)
    }

    /// What a client may do, by the number's range.
    #[must_use]
    pub fn retry(self) -> Retry {
        Retry::of(self.number())
    }
}

impl Retry {
    /// What a client may do about a code that it may not know, by the number's range.
    #[must_use]
    pub fn of(number: u32) -> Retry {
        match number {
            100..=199 => Retry::Later,
            200..=299 => Retry::AfterResync,
            _ => Retry::No,
        }
    }

    /// What a client may do about a close code: reconnect below 4500, and after the standard codes that
    /// say that a connection failed; otherwise not until something has changed.
    #[must_use]
    pub fn of_close(close: u16) -> Retry {
        match close {
            4500..=4999 | 1002 | 1003 | 1007 | 1008 | 1009 | 1010 => Retry::No,
            _ => Retry::Later,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number(), self.slug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_slugs_and_closes_are_unique() {
        let numbers: BTreeSet<u32> = CODES.iter().map(|code| code.number()).collect();
        let slugs: BTreeSet<&str> = CODES.iter().map(|code| code.slug()).collect();
        let closes: Vec<u16> = CODES.iter().filter_map(|code| code.close()).collect();
        assert_eq!(numbers.len(), CODES.len());
        assert_eq!(slugs.len(), CODES.len());
        assert_eq!(closes.iter().collect::<BTreeSet<_>>().len(), closes.len());
        for &code in CODES {
            assert_eq!(Code::from_number(code.number()), Some(code));
        }
        assert_eq!(Code::from_number(1), None);
    }

    #[test]
    fn close_codes_lie_in_the_band_of_their_retry() {
        for &code in CODES {
            if let Some(close) = code.close() {
                let reconnect = (4000..4500).contains(&close);
                assert!(reconnect || (4500..5000).contains(&close), "{code}");
                // 900: the fault is ours and the next connection may be fine.
                assert_eq!(reconnect, code.retry() != Retry::No || code == Code::Internal, "{code}");
            }
        }
    }

    #[test]
    fn every_code_says_what_happened_and_what_to_do() {
        for &code in CODES {
            assert!(code.message().ends_with('.') && !code.fix().is_empty(), "{code}");
        }
    }
}
