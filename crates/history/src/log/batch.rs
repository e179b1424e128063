//! What every log checks of a batch before it touches anything, and how it knows a batch again.

use std::collections::{BTreeMap, BTreeSet};

use manyhands_proto::{Incarnation, Offset, PartitionId};

use super::{AppendError, Batch, Entry, Lease};

/// Most entries of one batch.
pub const BATCH_ENTRIES_MAX: usize = 4_096;

/// Refuses a batch that could not be whole, in order and gapless behind `expected`.
pub(crate) fn check(lease: &Lease, expected: Offset, batch: &Batch) -> Result<(), AppendError> {
    let refuse = |why: String| Err(AppendError::Refused(why));
    if batch.entries.is_empty() {
        return refuse("it has no entries".into());
    }
    if batch.entries.len() > BATCH_ENTRIES_MAX {
        return refuse(format!("it has more than {BATCH_ENTRIES_MAX} entries"));
    }
    let begun: BTreeSet<Incarnation> = batch.created.iter().map(|document| document.incarnation).collect();
    let mut last: BTreeMap<Incarnation, &Entry> = BTreeMap::new();
    let mut next = expected;
    for entry in &batch.entries {
        next = next.next();
        if entry.offset != next {
            return refuse(format!("offset {} stands where {next} belongs", entry.offset));
        }
        let fits = match last.insert(entry.incarnation, entry) {
            Some(before) => entry.seq == before.seq.next() && entry.time_ms >= before.time_ms,
            None => entry.seq.0 != 0 && begun.contains(&entry.incarnation) == (entry.seq.0 == 1),
        };
        if !fits {
            return refuse(format!("seq {} of {} is out of place", entry.seq, entry.incarnation));
        }
    }
    for document in &batch.created {
        if PartitionId::of(&document.name) != lease.partition() {
            let (name, partition) = (&document.name, lease.partition());
            return refuse(format!("document {name} does not belong to partition {partition}"));
        }
        if !last.contains_key(&document.incarnation) {
            return refuse(format!("document {} has no entry", document.name));
        }
    }
    Ok(())
}

/// The head after the batch.
pub(crate) fn head_after(expected: Offset, batch: &Batch) -> Offset {
    Offset(expected.0 + batch.entries.len() as u64)
}

/// Whether what the log holds at the batch's offsets is the batch: an earlier try had committed.
pub(crate) fn is_stored(batch: &Batch, stored: &[Entry]) -> bool {
    batch.entries == stored
}

/// What a failed compare-and-set means, from what the log now says of the partition.
pub(crate) enum Verdict {
    /// Definitely not appended, or not by this lease's right.
    Failed(AppendError),
    /// The head is where the batch would have put it: read back and compare.
    Compare,
}

pub(crate) fn judge(lease: &Lease, expected: Offset, batch: &Batch, epoch: u64, head: Offset) -> Verdict {
    if epoch != lease.epoch().0 {
        Verdict::Failed(AppendError::Fenced { partition: lease.partition(), ours: lease.epoch() })
    } else if head == head_after(expected, batch) {
        Verdict::Compare
    } else {
        Verdict::Failed(diverged(lease, expected, head))
    }
}

pub(crate) fn diverged(lease: &Lease, expected: Offset, found: Offset) -> AppendError {
    AppendError::Diverged { partition: lease.partition(), expected, found }
}
