//! Loading: runs are put behind one another as they are, and then made findable all at once.

use super::places::Places;
use super::span::{SPAN_LEN_MAX, Span};
use super::tree::{SPANS, Tree};
use super::{Run, Sequences, Widths};
use crate::body::scalars;
use crate::id::{Client, Id};

/// What is known of the texts that have been read, until all are.
pub(crate) struct Unfinished {
    elements: Elements,
    /// Origins that may be no elements, text after text.
    origins: Vec<Id>,
    /// For each text, its number and how many origins there were when it was read.
    texts: Vec<(u32, usize)>,
}

/// A text on its way from runs to leaves.
pub(crate) struct Loading<'a> {
    sequences: &'a mut Sequences,
    unfinished: &'a mut Unfinished,
    text: u32,
    /// The last leaf, and how many spans are in it.
    leaf: u32,
    len: usize,
    /// All that is visible, as it is read.
    column: &'a str,
    ascii: bool,
    /// How much of it has gone into spans, into leaves that are done, and to the replicas that typed it.
    at: usize,
    measured: usize,
    given: usize,
    /// Whose text has not been given yet, and how much that replica has been given.
    owner: Client,
    has: usize,
    /// Visible elements of the last leaf.
    scalars: u32,
    /// Of the leaves that are done.
    widths: Vec<Widths>,
}

impl Unfinished {
    /// For replicas that have used so many counters each, saved in so many bytes.
    pub(crate) fn new(counters: impl Iterator<Item = u32>, bytes: usize) -> Unfinished {
        Unfinished { elements: Elements::new(counters, bytes), origins: Vec::new(), texts: Vec::new() }
    }
}

impl Sequences {
    /// Starts to load a text that is empty yet: so many runs, which the caller has bounded, and all that is
    /// visible.
    pub(crate) fn load<'a>(
        &'a mut self,
        text: u32,
        column: &'a str,
        runs: usize,
        unfinished: &'a mut Unfinished,
    ) -> Loading<'a> {
        self.tree.leaves.reserve_exact(runs / SPANS);
        unfinished.origins.reserve(runs);
        Loading {
            leaf: self.tree.roots[text as usize].last,
            len: 0,
            has: self.content.end(0) as usize,
            sequences: self,
            unfinished,
            text,
            column,
            ascii: column.is_ascii(),
            at: 0,
            measured: 0,
            given: 0,
            owner: 0,
            scalars: 0,
            widths: Vec::with_capacity(runs / SPANS + 1),
        }
    }

    /// Finishes loading: from now on elements can be found by id.
    ///
    /// # Errors
    /// The first id that stands in two places, or an origin that is no element of the same text.
    pub(crate) fn loaded(&mut self, unfinished: Unfinished) -> Result<(), Id> {
        let Unfinished { mut elements, origins, texts } = unfinished;
        elements.finish()?;
        elements.index(&self.tree, &mut self.places);
        let mut done = 0;
        for &(text, until) in &texts {
            let is_here = |id| {
                elements.contains(id)
                    && (texts.len() == 1
                        || self.search(id).is_some_and(|at| self.tree.leaf(at.leaf).text == text))
            };
            if let Some(&id) = origins[done..until].iter().find(|&&id| !is_here(id)) {
                return Err(id);
            }
            done = until;
        }
        Ok(())
    }
}

impl Loading<'_> {
    /// Elements of all texts until now.
    #[inline]
    pub(crate) fn elements(&self) -> usize {
        self.sequences.elements
    }

    /// Adds a run at the end, as it is, its text being the next of what is visible. `unsure` says whether its left
    /// and its right origin may be no elements of this text. False when there is not as much text, or when an
    /// element with such an id is there already.
    #[inline(always)]
    pub(crate) fn push(&mut self, run: &Run<'_>, unsure: (bool, bool)) -> bool {
        if unsure.0 {
            self.unfinished.origins.push(run.left);
        }
        if unsure.1 {
            self.unfinished.origins.push(run.right);
        }
        self.sequences.elements += run.len as usize;
        let whole = Span::of_run(run);
        if run.deleted || run.len <= SPAN_LEN_MAX { self.put(whole) } else { self.put_parts(&whole) }
    }

    fn put_parts(&mut self, whole: &Span) -> bool {
        (0..whole.len)
            .step_by(SPAN_LEN_MAX as usize)
            .all(|off| self.put(whole.part(off, (whole.len - off).min(SPAN_LEN_MAX))))
    }

    #[inline(always)]
    fn put(&mut self, mut span: Span) -> bool {
        if self.len == SPANS {
            self.next_leaf();
        }
        if !span.is_dead() {
            let Some(bytes) = self.next_bytes(span.len as usize) else { return false };
            if span.id.client != self.owner || span.is_backward() {
                self.give(span.id.client);
            }
            span = span.with_text((self.has + self.at - self.given) as u32, bytes as u32);
            self.at += bytes;
            self.scalars += span.len;
            if span.is_backward() {
                self.give_reversed();
            }
        }
        let leaf = &mut self.sequences.tree.leaves[self.leaf as usize];
        leaf.spans[self.len] = span;
        self.len += 1;
        leaf.len = self.len as u32;
        self.unfinished.elements.add(&span, self.leaf)
    }

    /// The bytes of the next `len` characters.
    #[inline(always)]
    fn next_bytes(&self, len: usize) -> Option<usize> {
        if self.ascii {
            return (len <= self.column.len() - self.at).then_some(len);
        }
        let (at, c) = self.column[self.at..].char_indices().nth(len - 1)?;
        Some(at + c.len_utf8())
    }

    /// Gives the text that has gone into spans to the replica that typed it; `owner` typed what follows.
    fn give(&mut self, owner: Client) {
        if self.given < self.at {
            self.sequences.content.push(self.owner, &self.column[self.given..self.at]);
            self.given = self.at;
        }
        self.owner = owner;
        self.has = self.sequences.content.end(owner) as usize;
    }

    /// The same for the text of one span that was typed backwards.
    fn give_reversed(&mut self) {
        let typed: String = self.column[self.given..self.at].chars().rev().collect();
        self.sequences.content.push(self.owner, &typed);
        self.given = self.at;
        self.has += typed.len();
    }

    /// Goes on in a new leaf.
    fn next_leaf(&mut self) {
        self.measure();
        self.leaf = self.sequences.tree.add_last_leaf(self.text);
        self.len = 0;
    }

    /// Takes down the widths of a leaf that is done.
    fn measure(&mut self) {
        let text = &self.column[self.measured..self.at];
        debug_assert_eq!(scalars(text), self.scalars);
        self.widths.push(Widths::of_str(text, self.scalars));
        self.measured = self.at;
        self.scalars = 0;
    }

    /// False when there is text that no run has.
    pub(crate) fn finish(mut self) -> bool {
        self.measure();
        self.give(0);
        self.sequences.tree.raise(self.text, &self.widths);
        self.unfinished.texts.push((self.text, self.unfinished.origins.len()));
        self.at == self.column.len()
    }
}

/// Which counters are elements, and which of them start a span.
enum Elements {
    /// Counters are dense, so instead of sorting and searching there is one bit for each.
    Dense {
        /// For each client where its bits begin, in words; one more at the end.
        first: Vec<usize>,
        /// Elements and, until all spans are here, what lies between those of a span: nothing else may be there.
        elements: Vec<u64>,
        /// And how many spans start before the word.
        starts: Vec<(u64, u32)>,
        /// Spans that own more counters than they have elements: lowest id, counters, step.
        stepping: Vec<(Id, u32, u32)>,
    },
    /// Few elements among huge counters: lowest id, counters, step and leaf of each span; sorted when all are here.
    Sparse(Vec<(Id, u32, u32, u32)>),
}

impl Elements {
    fn new(counters: impl Iterator<Item = u32>, bytes: usize) -> Elements {
        let mut first = vec![0];
        for counters in counters {
            first.push(first[first.len() - 1] + counters as usize / 64 + 1);
        }
        let words = first[first.len() - 1];
        // A few words for a replica are always in order.
        if words > bytes + 64 + 2 * first.len() {
            return Elements::Sparse(Vec::new());
        }
        Elements::Dense { first, elements: vec![0; words], starts: vec![(0, 0); words], stepping: Vec::new() }
    }

    /// False when one of its counters is there already.
    #[inline(always)]
    fn add(&mut self, span: &Span, leaf: u32) -> bool {
        let (low, counters) = span.counters();
        let step = span.step().unsigned_abs();
        match self {
            Elements::Dense { first, elements, starts, stepping } => {
                let base = first[low.client as usize];
                starts[base + low.counter as usize / 64].0 |= 1 << (low.counter % 64);
                if step > 1 {
                    stepping.push((low, counters, step));
                }
                set(elements, base + low.counter as usize / 64, low.counter % 64, counters)
            }
            Elements::Sparse(rows) => {
                rows.push((low, counters, step, leaf));
                true
            }
        }
    }

    /// To be called when all are here.
    ///
    /// # Errors
    /// The first id that stands in two places.
    fn finish(&mut self) -> Result<(), Id> {
        match self {
            Elements::Dense { first, elements, starts, stepping } => {
                let mut sum = 0;
                for (word, before) in starts {
                    *before = sum;
                    sum += word.count_ones();
                }
                for &(low, counters, step) in &*stepping {
                    leave_each(&mut elements[first[low.client as usize]..], low.counter, counters, step);
                }
            }
            Elements::Sparse(rows) => {
                rows.sort_unstable();
                for pair in rows.windows(2) {
                    let ((id, counters, ..), (next, ..)) = (pair[0], pair[1]);
                    if id.client == next.client && next.counter - id.counter < counters {
                        return Err(next);
                    }
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn contains(&self, id: Id) -> bool {
        match self {
            Elements::Dense { first, elements, .. } => {
                let Some(&[from, to]) = first.get(id.client as usize..id.client as usize + 2) else {
                    return false;
                };
                // Behind the client's last bit there is no element.
                let word = from + id.counter as usize / 64;
                word < to && elements[word] >> (id.counter % 64) & 1 == 1
            }
            Elements::Sparse(rows) => {
                let after = rows.partition_point(|row| row.0 <= id);
                after.checked_sub(1).is_some_and(|n| {
                    let (low, counters, step, _) = rows[n];
                    let distance = id.counter.wrapping_sub(low.counter);
                    low.client == id.client && distance < counters && distance.is_multiple_of(step)
                })
            }
        }
    }

    /// Makes elements findable: for each client the leaves of its spans in order of counter.
    fn index(&self, tree: &Tree, places: &mut Places) {
        let (first, starts) = match self {
            Elements::Sparse(rows) => {
                return rows.iter().for_each(|&(id, .., leaf)| places.append(id, leaf));
            }
            Elements::Dense { first, starts, .. } => (first, starts),
        };
        // Counting bits tells how many spans start before one, and so where its leaf goes.
        let count = starts.last().map_or(0, |(word, before)| before + word.count_ones());
        let mut leaves = vec![0u32; count as usize];
        for (leaf, n) in tree.leaves.iter().zip(0..) {
            for span in leaf.spans() {
                let (low, _) = span.counters();
                let word = first[low.client as usize] + low.counter as usize / 64;
                let (bits, before) = starts[word];
                let below = bits & ((1 << (low.counter % 64)) - 1);
                leaves[(before + below.count_ones()) as usize] = n;
            }
        }
        let mut rest = &leaves[..];
        let mut rows = Vec::with_capacity(leaves.len());
        for (client, bounds) in (0..).zip(first.windows(2)) {
            rows.clear();
            for (&(word, _), base) in starts[bounds[0]..bounds[1]].iter().zip((0u32..).step_by(64)) {
                let mut word = word;
                while word != 0 {
                    rows.push(base + word.trailing_zeros());
                    word &= word - 1;
                }
            }
            let (own, others) = rest.split_at(rows.len());
            rest = others;
            places.rebuild(client, &rows, own);
        }
    }
}

/// Sets `len` bits, at least one, from a bit of a word on; false when one is set already.
#[inline(always)]
fn set(words: &mut [u64], word: usize, bit: u32, len: u32) -> bool {
    if len <= 64 - bit {
        let mask = (u64::MAX >> (64 - len)) << bit;
        let free = words[word] & mask == 0;
        words[word] |= mask;
        return free;
    }
    set_far(words, word, bit, len)
}

fn set_far(words: &mut [u64], mut word: usize, mut bit: u32, mut rest: u32) -> bool {
    let mut free = true;
    while rest > 0 {
        let n = rest.min(64 - bit);
        let mask = (u64::MAX >> (64 - n)) << bit;
        free &= words[word] & mask == 0;
        words[word] |= mask;
        rest -= n;
        (word, bit) = (word + 1, 0);
    }
    free
}

/// Of `len` bits from `from` on, leaves only each `step`th set.
fn leave_each(words: &mut [u64], from: u32, len: u32, step: u32) {
    let every = (0..64).step_by(step as usize).fold(0u64, |bits, bit| bits | 1 << bit);
    let (mut word, mut bit, mut rest) = (from as usize / 64, from % 64, len);
    // How far the next that stays is from the start of this stretch.
    let mut phase = 0;
    while rest > 0 {
        let n = rest.min(64 - bit);
        let stretch = (u64::MAX >> (64 - n)) << bit;
        let stay = every.unbounded_shl(bit + phase);
        words[word] &= !stretch | stay;
        phase = (phase + step - n % step) % step;
        rest -= n;
        (word, bit) = (word + 1, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_as_in_a_plain_list() {
        for (from, len, step) in
            [(0, 1, 2), (3, 61, 3), (60, 9, 16), (63, 200, 7), (64, 64, 5), (1, 400, 16), (5, 195, 1)]
        {
            let mut words = vec![0; 8];
            assert!(set(&mut words, from as usize / 64, from % 64, len));
            leave_each(&mut words, from, len, step);
            for bit in 0..512u32 {
                let expected = bit >= from && bit < from + len && (bit - from).is_multiple_of(step);
                assert_eq!(
                    words[bit as usize / 64] >> (bit % 64) & 1 == 1,
                    expected,
                    "{from} {len} {step}: {bit}"
                );
            }
            assert!(!set(&mut words, from as usize / 64, from % 64, 1), "it is set");
        }
    }
}
