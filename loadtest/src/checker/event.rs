//! What is written down of a run: by those who wrote and watched, and from the log afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A hash of the system under test: of a state, of a change, of a chain.
pub type Digest = [u8; 16];

/// Microseconds since the Unix epoch, by this machine's clock.
pub type Micros = u64;

/// What one change wrote, different from everything else that is ever written: where, by whom, the how-manieth.
///
/// ```
/// use loadtest::checker::Token;
///
/// let token = Token { document: 3, writer: 1, number: 42 };
/// assert_eq!(token.to_string(), "000300010000002a");
/// assert_eq!("000300010000002a".parse(), Ok(token));
/// assert!("demo".parse::<Token>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Token {
    /// The number of the document.
    pub document: u16,
    /// The number of the writer.
    pub writer: u16,
    /// The writer's own count.
    pub number: u32,
}

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:04x}{:04x}{:08x}", self.document, self.writer, self.number)
    }
}

/// The text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no token: sixteen lower-case hexadecimal digits are one")]
pub struct NoToken;

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Token, NoToken> {
        let plain = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let bits = plain.then(|| u64::from_str_radix(text, 16).ok()).flatten().ok_or(NoToken)?;
        Ok(Token { document: (bits >> 48) as u16, writer: (bits >> 32) as u16, number: bits as u32 })
    }
}

/// A row of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The number of its document.
    pub document: u16,
    /// The document's partition.
    pub partition: u16,
    /// Which history of the document.
    pub incarnation: u64,
    /// Its place in the document.
    pub seq: u64,
    /// Its place in the partition.
    pub offset: u64,
    /// Who wrote it.
    pub replica: u64,
    /// The replica's counter of the first op.
    pub counter: u64,
    /// The first counter after it, measured from the body.
    pub next_counter: u64,
    /// The hash that the log keeps of it.
    pub hash: Digest,
    /// The hash of the body as it is in the log.
    pub body_hash: Digest,
    /// The chain hash that the log keeps of it.
    pub chain: Digest,
    /// When its owner admitted it, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// When it was committed, by the database; `None` where the database does not say.
    pub committed: Option<Micros>,
    /// What the body wrote into the text, read by folding the log.
    pub token: Option<Token>,
}

/// One thing that happened. A run is a sequence of them: first the log, partition by partition and each in
/// the order of its offsets, then what the clients saw, each client's in its order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The fence let an append through; in the order in which it did.
    Appended {
        /// Where.
        partition: u16,
        /// Under which epoch.
        epoch: u64,
        /// The first offset.
        first: u64,
        /// The last offset.
        last: u64,
    },
    /// The log has this row.
    Logged(Row),
    /// The rows of a document up to there, merged by one who only had the log.
    Folded {
        /// Which document.
        document: u16,
        /// Up to which seq.
        seq: u64,
        /// What came out.
        state: Digest,
    },
    /// A client made a change.
    Sent {
        /// Which client.
        client: u32,
        /// In which document.
        document: u16,
        /// Under which identity.
        replica: u64,
        /// Counter of the first op.
        counter: u64,
        /// First counter after it.
        next_counter: u64,
        /// What it wrote.
        token: Token,
    },
    /// A client was told that everything of its replica below `next_counter` is durable.
    Acked {
        /// Which client.
        client: u32,
        /// In which document.
        document: u16,
        /// Which replica.
        replica: u64,
        /// Below this.
        next_counter: u64,
        /// When the client knew.
        at: Micros,
    },
    /// A client was told that its changes from `from` on are refused for good.
    Refused {
        /// Which client.
        client: u32,
        /// In which document.
        document: u16,
        /// Which replica.
        replica: u64,
        /// From this counter on.
        from: u64,
        /// Edits that were handed back.
        returned: u64,
    },
    /// A client ended in the middle of it all: what it had not heard of, nobody will hear of.
    Gone {
        /// Which client.
        client: u32,
    },
    /// A client was told where it stands.
    Opened {
        /// Which client.
        client: u32,
        /// In which document.
        document: u16,
        /// Which history.
        incarnation: u64,
        /// The position that it was told.
        seq: u64,
        /// The chain hash there; `None` at seq 0.
        chain: Option<Digest>,
        /// The hash of the state that it was given; `None` when the tail of what it has follows.
        state: Option<Digest>,
    },
    /// A client was sent entries.
    Delivered {
        /// Which client.
        client: u32,
        /// In which document.
        document: u16,
        /// The first of them.
        first_seq: u64,
        /// How many.
        count: u32,
        /// The chain hash after the last.
        chain: Digest,
        /// When the client had them.
        at: Micros,
    },
    /// No further fault was made.
    Healed {
        /// When.
        at: Micros,
    },
    /// A client that was sent everything until the end has no more to expect.
    Watched {
        /// Which client.
        client: u32,
        /// Which document.
        document: u16,
        /// When it was sent the last of it.
        at: Micros,
    },
    /// What a client holds at the end.
    Final {
        /// Which client.
        client: u32,
        /// Of which document.
        document: u16,
        /// Its state.
        state: Digest,
        /// Everything that it shows, in any order.
        tokens: Vec<Token>,
        /// When it had it.
        at: Micros,
    },
}
