//! What the log says: of a partition, and of a document.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{Digest, Micros, Row, Token};
use super::{Findings, Rule};

/// A partition as the log has it.
#[derive(Debug, Default)]
pub(super) struct PartitionLog {
    /// The newest offset of its rows.
    offset: u64,
    /// Where the appends that are known of have come to; `None` when none is known.
    appended: Option<(u64, u64)>,
}

impl PartitionLog {
    pub(super) fn appended(
        &mut self,
        partition: u16,
        epoch: u64,
        (first, last): (u64, u64),
        findings: &mut Findings<'_>,
    ) {
        findings.verdict.appends += 1;
        findings.verdict.epoch_max = findings.verdict.epoch_max.max(epoch);
        let (epoch_before, head) = self.appended.unwrap_or_default();
        if epoch < epoch_before {
            let found = format!(
                "partition {partition}: epoch {epoch} wrote offsets {first} to {last} after epoch {epoch_before}"
            );
            findings.add(Rule::OneWriter, None, &[], found);
        }
        if first != head + 1 || last < first {
            let found =
                format!("partition {partition}: an append of {first} to {last} follows on offset {head}");
            findings.add(Rule::OneWriter, None, &[], found);
        }
        self.appended = Some((epoch.max(epoch_before), last.max(head)));
    }

    pub(super) fn logged(&mut self, row: &Row, findings: &mut Findings<'_>) {
        if row.offset != self.offset + 1 {
            let found = format!(
                "partition {}: offset {} follows on offset {}",
                row.partition, row.offset, self.offset
            );
            findings.add(Rule::Gapless, row.document, &[row.seq], found);
        }
        self.offset = row.offset;
    }

    pub(super) fn finish(&self, partition: u16, findings: &mut Findings<'_>) {
        if let Some((_, head)) = self.appended
            && head != self.offset
        {
            let found =
                format!("partition {partition}: {head} was appended, and the log ends at {}", self.offset);
            findings.add(Rule::Gapless, None, &[], found);
        }
    }
}

/// What is kept of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) chain: Digest,
    pub(super) committed: Option<Micros>,
    replica: u64,
    counter: u64,
    next_counter: u64,
    token: Option<Token>,
    sent: bool,
    acked: bool,
}

/// A document as the log has it.
#[derive(Debug, Default)]
pub(super) struct DocumentLog {
    pub(super) incarnation: Option<u64>,
    entries: Vec<Entry>,
    /// Places in `entries`, by replica and counter.
    by_identity: BTreeMap<(u64, u64), usize>,
    next_counters: BTreeMap<u64, u64>,
    time_ms: u64,
    /// States of the fold, at the seqs that somebody was given a state of.
    pub(super) folded: BTreeMap<u64, Digest>,
    /// The tokens of all entries, sorted, once a final state has asked for them.
    tokens: Option<Vec<Token>>,
}

impl DocumentLog {
    pub(super) fn logged(&mut self, row: &Row, findings: &mut Findings<'_>) {
        findings.verdict.rows += 1;
        let mut wrong = |rule, found: String| findings.add(rule, row.document, &[row.seq], found);
        if *self.incarnation.get_or_insert(row.incarnation) != row.incarnation {
            wrong(Rule::Gapless, format!("it is of another history, {:016x}", row.incarnation));
        }
        let before = self.entries.last();
        let seq_before = before.map_or(0, |entry| entry.seq);
        if row.seq != seq_before + 1 {
            wrong(Rule::Gapless, format!("it follows on seq {seq_before}"));
        }
        if row.time_ms < self.time_ms {
            wrong(Rule::Gapless, "it is older than the one before".to_owned());
        }
        if row.hash != row.body_hash {
            wrong(Rule::ChainHolds, "its body is not its hash's".to_owned());
        }
        let chain_before = before.map_or([0; 16], |entry| entry.chain);
        if row.chain != chain_after(&chain_before, &row.hash) {
            wrong(Rule::ChainHolds, "its chain hash does not follow from the one before".to_owned());
        }
        let identity = (row.replica, row.counter);
        let expected = self.next_counters.entry(row.replica).or_default();
        if row.counter < *expected {
            let first = self.by_identity.get(&identity).map_or(0, |&at| self.entries[at].seq);
            let found = format!("({:016x}, {}) was there before, at seq {first}", row.replica, row.counter);
            wrong(Rule::LoggedOnce, found);
        } else if row.counter > *expected {
            let found = format!("({:016x}, {}) stands where {expected} belongs", row.replica, row.counter);
            wrong(Rule::AuthorOrder, found);
        }
        *expected = (*expected).max(row.next_counter);
        self.time_ms = self.time_ms.max(row.time_ms);
        self.by_identity.entry(identity).or_insert(self.entries.len());
        self.entries.push(Entry {
            seq: row.seq,
            chain: row.chain,
            committed: row.committed,
            replica: row.replica,
            counter: row.counter,
            next_counter: row.next_counter,
            token: row.token,
            sent: false,
            acked: false,
        });
    }

    /// The newest seq.
    pub(super) fn end(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.seq)
    }

    /// The entry of an identity.
    pub(super) fn find(&self, replica: u64, counter: u64) -> Option<&Entry> {
        self.by_identity.get(&(replica, counter)).map(|&at| &self.entries[at])
    }

    /// The entry at a seq.
    pub(super) fn at(&self, seq: u64) -> Option<&Entry> {
        let index = usize::try_from(seq.checked_sub(1)?).ok()?;
        // Where the log is whole, an entry's seq is its place.
        match self.entries.get(index) {
            Some(entry) if entry.seq == seq => Some(entry),
            _ => self.entries.iter().find(|entry| entry.seq == seq),
        }
    }

    pub(super) fn sent(
        &mut self,
        document: u16,
        replica: u64,
        counter: u64,
        next_counter: u64,
        token: Token,
        findings: &mut Findings<'_>,
    ) {
        let Some(&at) = self.by_identity.get(&(replica, counter)) else { return };
        let entry = &mut self.entries[at];
        entry.sent = true;
        if entry.token != Some(token) || entry.next_counter != next_counter {
            let has = entry.token.map_or_else(|| "something else".to_owned(), |token| token.to_string());
            let found = format!(
                "({replica:016x}, {counter}) was sent with {token} up to {next_counter}, and has {has} up to {}",
                entry.next_counter
            );
            findings.add(Rule::NothingFromNowhere, document, &[entry.seq], found);
        }
    }

    pub(super) fn acked(
        &mut self,
        document: u16,
        replica: u64,
        counter: u64,
        at: Micros,
        findings: &mut Findings<'_>,
    ) {
        let Some(&place) = self.by_identity.get(&(replica, counter)) else {
            let log_ends = self.next_counters.get(&replica).copied().unwrap_or(0);
            // A hole is worse than an end that is missing: something later was kept.
            let which = if log_ends > counter { "in the middle" } else { "at the end" };
            let found = format!("({replica:016x}, {counter}) was acknowledged and is lost {which}");
            findings.add(Rule::AckedIsLogged, document, &[], found);
            return;
        };
        let entry = &mut self.entries[place];
        entry.acked = true;
        if let Some(committed) = entry.committed
            && at < committed
        {
            let found = format!(
                "({replica:016x}, {counter}) was acknowledged {} us before its commit",
                committed - at
            );
            findings.add(Rule::AfterCommit, document, &[entry.seq], found);
        }
    }

    /// A client holds this at the end.
    pub(super) fn is_final(
        &mut self,
        (client, document): (u32, u16),
        state: &Digest,
        tokens: &[Token],
        findings: &mut Findings<'_>,
    ) {
        findings.verdict.states += 1;
        let end = self.end();
        match self.folded.get(&end) {
            Some(folded) if folded == state => {}
            Some(_) => {
                let stale = self.folded.iter().find(|(_, folded)| *folded == state);
                let found = match stale {
                    Some((seq, _)) => format!("client {client} ends with the state of seq {seq}"),
                    None => format!("client {client} ends with a state that is not the log's"),
                };
                findings.add(Rule::StatesEqual, document, &[end], found);
            }
            None => {
                let found =
                    format!("client {client} ends with a state, and the log was not folded up to here");
                findings.add(Rule::StatesEqual, document, &[end], found);
            }
        }
        let entries = &self.entries;
        let logged = self.tokens.get_or_insert_with(|| {
            let mut tokens: Vec<Token> = entries.iter().filter_map(|entry| entry.token).collect();
            tokens.sort_unstable();
            tokens
        });
        let mut shown = tokens.to_vec();
        shown.sort_unstable();
        let mut shown = shown.into_iter().peekable();
        let mut wrong = |rule, token: Token, what: &str| {
            findings.add(rule, document, &[], format!("client {client} {what} {token}"));
        };
        for &token in logged.iter() {
            while let Some(extra) = shown.next_if(|&next| next < token) {
                match extra.document == document {
                    true => wrong(Rule::NothingFromNowhere, extra, "shows what the log does not have:"),
                    false => wrong(Rule::Isolated, extra, "shows what was written in another document:"),
                }
            }
            if shown.next_if(|&next| next == token).is_none() {
                wrong(Rule::VisibleOnce, token, "does not show");
            }
            while shown.next_if(|&next| next == token).is_some() {
                wrong(Rule::VisibleOnce, token, "shows more than once");
            }
        }
        for extra in shown {
            match extra.document == document {
                true => wrong(Rule::NothingFromNowhere, extra, "shows what the log does not have:"),
                false => wrong(Rule::Isolated, extra, "shows what was written in another document:"),
            }
        }
    }

    pub(super) fn finish(&self, document: u16, known: &BTreeSet<u16>, findings: &mut Findings<'_>) {
        for entry in &self.entries {
            if !entry.sent {
                let found = format!("nobody sent ({:016x}, {})", entry.replica, entry.counter);
                findings.add(Rule::NothingFromNowhere, document, &[entry.seq], found);
            }
            if let Some(token) = entry.token
                && token.document != document
                && known.contains(&token.document)
            {
                let found = format!("{token} was written in document {}", token.document);
                findings.add(Rule::Isolated, document, &[entry.seq], found);
            }
        }
    }
}

/// The chain hash after an entry with this hash: the first 16 bytes of BLAKE3 of the two.
#[must_use]
pub(super) fn chain_after(before: &Digest, hash: &Digest) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(hash);
    let mut chain = [0; 16];
    chain.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    chain
}
