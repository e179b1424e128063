//! Loading: runs are put behind one another as they are, and then made findable all at once.

use super::span::{SPAN_LEN_MAX, Span};
use super::tree::SPANS;
use super::{Run, Sequences, Widths};
use crate::body::scalars;
use crate::id::Id;

/// A span's lowest id, how many counters it goes over, its leaf, and every which counter is an element.
type Row = (Id, u32, u32, u32);

/// All spans by id.
///
/// Counters are dense, so instead of sorting and searching, one bit for each counter says where spans start, and
/// counting bits tells how many start before.
struct ById {
    rows: Vec<Row>,
    starts: Option<Starts>,
}

struct Starts {
    /// For each client where its bits begin, in words; one more at the end.
    first: Vec<usize>,
    words: Vec<u64>,
    /// Bits set before each word.
    before: Vec<u32>,
}

impl Starts {
    /// How many spans start before `counter` of that client, those of the clients before it included.
    fn rank(&self, client: u32, counter: u32) -> usize {
        let word = self.first[client as usize] + counter as usize / 64;
        let below = self.words[word] & ((1 << (counter % 64)) - 1);
        self.before[word] as usize + below.count_ones() as usize
    }
}

impl ById {
    /// # Errors
    /// The first id that stands in two places.
    fn of(unsorted: Vec<Row>) -> Result<ById, Id> {
        let mut ends: Vec<u32> = Vec::new();
        for &(id, len, ..) in &unsorted {
            if ends.len() <= id.client as usize {
                ends.resize(id.client as usize + 1, 0);
            }
            let end = &mut ends[id.client as usize];
            *end = (*end).max(id.counter + len);
        }
        let mut first = vec![0];
        for &end in &ends {
            first.push(first[first.len() - 1] + end as usize / 64 + 1);
        }
        let words = first[first.len() - 1];
        // Few elements among huge counters would take more memory than they are worth.
        let by_id = if words <= unsorted.len() * 8 + 64 {
            ById::counted(unsorted, first, words)?
        } else {
            let mut rows = unsorted;
            rows.sort_unstable();
            ById { rows, starts: None }
        };
        for pair in by_id.rows.windows(2) {
            let ((id, len, ..), (next, ..)) = (pair[0], pair[1]);
            if id.client == next.client && next.counter - id.counter < len {
                return Err(next);
            }
        }
        Ok(by_id)
    }

    fn counted(unsorted: Vec<Row>, first: Vec<usize>, words: usize) -> Result<ById, Id> {
        let mut words = vec![0u64; words];
        for &(id, ..) in &unsorted {
            let word = &mut words[first[id.client as usize] + id.counter as usize / 64];
            let bit = 1 << (id.counter % 64);
            if *word & bit != 0 {
                return Err(id);
            }
            *word |= bit;
        }
        let mut before = Vec::with_capacity(words.len());
        let mut sum = 0;
        for word in &words {
            before.push(sum);
            sum += word.count_ones();
        }
        let starts = Starts { first, words, before };
        let mut rows = vec![(Id::NONE, 0, 0, 1); unsorted.len()];
        for row in unsorted {
            rows[starts.rank(row.0.client, row.0.counter)] = row;
        }
        Ok(ById { rows, starts: Some(starts) })
    }

    /// The leaf of an element.
    fn leaf(&self, id: Id) -> Option<u32> {
        let n = match &self.starts {
            Some(starts) => {
                let words = starts.first.get(id.client as usize..id.client as usize + 2)?;
                // Behind the client's last bit there is no element.
                if words[0] + id.counter as usize / 64 >= words[1] {
                    return None;
                }
                let word = words[0] + id.counter as usize / 64;
                let starts_here = starts.words[word] >> (id.counter % 64) & 1;
                starts.rank(id.client, id.counter) + starts_here as usize
            }
            None => self.rows.partition_point(|row| row.0 <= id),
        };
        let (start, len, leaf, step) = self.rows[n.checked_sub(1)?];
        let distance = id.counter.wrapping_sub(start.counter);
        let within =
            start.client == id.client && distance < len && (step == 1 || distance.is_multiple_of(step));
        within.then_some(leaf)
    }
}

impl Sequences {
    /// Makes room for so many runs, which the caller has bounded.
    pub(crate) fn expect_runs(&mut self, runs: usize) {
        self.tree.leaves.reserve_exact(runs / SPANS);
    }

    /// Adds a run at the end of a text as it is, without integration. To be followed by
    /// [`loaded`](Sequences::loaded).
    pub(crate) fn append(&mut self, text: u32, run: Run<'_>) {
        let whole = Span::of_run(&run);
        let (mut off, mut content) = (0, run.text);
        while off < run.len {
            let len = if run.deleted { run.len } else { (run.len - off).min(SPAN_LEN_MAX) };
            let bytes = match off + len == run.len {
                true => content.len(),
                false => content.char_indices().nth(len as usize).map_or(content.len(), |(at, _)| at),
            };
            let (piece, others) = content.split_at(bytes);
            debug_assert!(run.deleted || scalars(piece) == len);
            let mut span = whole.part(off, len);
            if !run.deleted {
                span = span.with_text(self.content.end(run.id.client), bytes as u32);
                if span.is_backward() {
                    // As it was typed.
                    self.content.push(run.id.client, &piece.chars().rev().collect::<String>());
                } else {
                    self.content.push(run.id.client, piece);
                }
            }
            let last = self.tree.roots[text as usize].last;
            let end = self.tree.leaf(last).len;
            self.tree.insert_span(last, end, span, &mut self.places, |_| unreachable!("nothing moves"));
            self.elements += len as usize;
            content = others;
            off += len;
        }
    }

    /// Finishes loading: widths, and from now on elements can be found by id.
    ///
    /// # Errors
    /// The first id that stands in two places, or an origin that is no element of the same text.
    pub(crate) fn loaded(&mut self) -> Result<(), Id> {
        let mut rows = Vec::with_capacity(self.tree.leaves.iter().map(|leaf| leaf.len as usize).sum());
        for (n, leaf) in self.tree.leaves.iter().enumerate() {
            rows.extend(leaf.spans().iter().map(|span| {
                let (low, counters) = span.counters();
                (low, counters, n as u32, span.step().unsigned_abs())
            }));
        }
        let by_id = ById::of(rows)?;
        self.check_origins(&by_id)?;
        self.places.rebuild(by_id.rows.iter().map(|&(id, _, leaf, _)| (id, leaf)));
        for leaf in 0..self.tree.leaves.len() as u32 {
            let spans = self.tree.leaf(leaf).spans();
            let widths = spans.iter().fold(Widths::default(), |sum, span| sum + self.widths_of(span));
            self.tree.widen(leaf, widths);
        }
        Ok(())
    }

    /// Whether every origin is an element of the same text. Mostly it is the span before or behind.
    fn check_origins(&self, by_id: &ById) -> Result<(), Id> {
        for leaf in &self.tree.leaves {
            let is_there = |id: Id| {
                id.is_none() || by_id.leaf(id).is_some_and(|at| self.tree.leaf(at).text == leaf.text)
            };
            let spans = leaf.spans();
            for (n, span) in spans.iter().enumerate() {
                let before = n.checked_sub(1).map(|n| spans[n].last());
                let behind = spans.get(n + 1).map(|next| next.id);
                if before != Some(span.left) && !is_there(span.left) {
                    return Err(span.left);
                }
                if behind != Some(span.right) && !is_there(span.right) {
                    return Err(span.right);
                }
            }
        }
        Ok(())
    }
}
