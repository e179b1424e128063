//! What can be wrong with a history, and how it is said.

use std::fmt;

use serde::Serialize;

macro_rules! rules {
    ($($(#[doc = $text:literal])+ $name:ident, $slug:literal, $promises:literal;)*) => {
        /// What a history must keep. Each has the promises of `INVARIANTS.md` that it tells of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Rule {
            $($(#[doc = $text])+ $name,)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Rule] = &[$(Rule::$name,)*];

            /// Its name in reports.
            #[must_use]
            pub fn slug(self) -> &'static str {
                match self { $(Rule::$name => $slug,)* }
            }

            /// The promises that are broken with it.
            #[must_use]
            pub fn promises(self) -> &'static str {
                match self { $(Rule::$name => $promises,)* }
            }
        }
    };
}

rules! {
    /// What was acknowledged is in the log, with the same content.
    AckedIsLogged, "acked-is-logged", "I-1";
    /// No change is in the log twice.
    LoggedOnce, "logged-once", "I-4";
    /// What is in the log was sent, by that replica, with that content.
    NothingFromNowhere, "nothing-from-nowhere", "I-4, I-12";
    /// Seqs of a document and offsets of a partition have no gaps and stay where they are.
    Gapless, "gapless", "I-3";
    /// A row's hash is its body's, and its chain hash follows from the one before.
    ChainHolds, "chain-holds", "I-3, I-5";
    /// A replica's changes are in the log in the order of their counters, without a hole.
    AuthorOrder, "author-order", "I-4";
    /// Nothing is acknowledged or delivered before its commit.
    AfterCommit, "after-commit", "I-1";
    /// What a client is sent follows on what it has, or it is told that it does not; and it is what the log has.
    DeliveredInOrder, "delivered-in-order", "I-6";
    /// Every state is the fold of the log.
    StatesEqual, "states-equal", "I-5";
    /// Everything in the log is visible in every client's final state, once.
    VisibleOnce, "visible-once", "I-5, I-14";
    /// What was refused for good is not in the log, and was handed back.
    RefusedIsAbsent, "refused-is-absent", "I-14";
    /// Appends of two epochs do not interleave.
    OneWriter, "one-writer", "I-2";
    /// Once faults have ended, everything is acknowledged and visible in time.
    Settles, "settles", "I-8, I-9, I-14";
    /// Nothing of one document is in another.
    Isolated, "isolated", "I-15";
}

/// A broken rule: where, and what shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// In which document, if it is about one.
    pub document: Option<u16>,
    /// At which seqs, if it is about some.
    pub seqs: Vec<u64>,
    /// What was found.
    pub found: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.rule.slug(), self.rule.promises())?;
        if let Some(document) = self.document {
            write!(out, ", document {document}")?;
        }
        if !self.seqs.is_empty() {
            write!(out, ", seq {:?}", self.seqs)?;
        }
        write!(out, ": {}", self.found)
    }
}
