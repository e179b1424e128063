//! From an id to the leaf that holds it.
//!
//! For each replica a sorted list of (counter, leaf): the leaf holds what the replica inserted from that
//! counter up to the next entry's. Entries name leaves, not slots, so moves inside a leaf cost nothing, and
//! a stretch of typing in one leaf is one entry. Counters that inserted nothing fall into some entry too;
//! the leaf then has no such element.

use crate::id::{Client, Id};

/// Entries of a chunk at most; a full one is cut in two.
const CHUNK: usize = if cfg!(any(test, fuzzing)) { 4 } else { 256 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    counter: u32,
    leaf: u32,
}

/// One replica's entries, in chunks so that an entry in the middle moves little.
#[derive(Clone, Debug, Default)]
struct List {
    chunks: Vec<Chunk>,
}

/// Some entries, at least one. The first one's counter stands here too, so that a search among chunks looks at
/// nothing else.
#[derive(Clone, Debug)]
struct Chunk {
    first: u32,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    lists: Vec<List>,
}

impl Places {
    /// The leaf that holds `id`, if any does.
    #[inline]
    pub(super) fn leaf(&self, id: Id) -> Option<u32> {
        self.lists.get(id.client as usize)?.leaf(id.counter)
    }

    /// Says that new elements from `id` on are in `leaf`. No element of the replica may come after them.
    #[inline]
    pub(super) fn append(&mut self, id: Id, leaf: u32) {
        let list = self.list(id.client);
        while let Some(&last) = list.last() {
            debug_assert!(last.counter <= id.counter, "ids come in order");
            if last.leaf == leaf {
                return;
            }
            if last.counter < id.counter {
                break;
            }
            // Left behind by a move: it says where what comes next is, and now that comes.
            list.pop();
        }
        list.push(Entry { counter: id.counter, leaf });
    }

    /// Says that the `len` elements from `id` on are in `leaf` now.
    pub(super) fn assign(&mut self, id: Id, len: u32, leaf: u32) {
        self.list(id.client).assign(id.counter, id.counter + len, leaf);
    }

    /// Makes the index of a client that has none: the lowest counters of its spans in order, and their leaves.
    pub(super) fn rebuild(&mut self, client: Client, counters: &[u32], leaves: &[u32]) {
        let mut entries = vec![Entry { counter: 0, leaf: 0 }; counters.len()];
        let (mut len, mut before) = (0, None);
        // Whether the next span is in another leaf is as good as random, so it decides what counts and not what is
        // written.
        for (&counter, &leaf) in counters.iter().zip(leaves) {
            entries[len] = Entry { counter, leaf };
            len += usize::from(before != Some(leaf));
            before = Some(leaf);
        }
        let chunk = |entries: &[Entry]| Chunk { first: entries[0].counter, entries: entries.to_vec() };
        self.list(client).chunks = entries[..len].chunks(CHUNK).map(chunk).collect();
    }

    fn list(&mut self, client: Client) -> &mut List {
        let client = client as usize;
        if client >= self.lists.len() {
            self.lists.resize_with(client + 1, List::default);
        }
        &mut self.lists[client]
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let chunks = self.lists.iter().flat_map(|list| &list.chunks);
        self.lists.capacity() * size_of::<List>()
            + self.lists.iter().map(|list| list.chunks.capacity() * size_of::<Chunk>()).sum::<usize>()
            + chunks.map(|chunk| chunk.entries.capacity() * size_of::<Entry>()).sum::<usize>()
    }
}

impl List {
    #[inline]
    fn leaf(&self, counter: u32) -> Option<u32> {
        let last = self.last()?;
        if last.counter <= counter {
            return Some(last.leaf);
        }
        let entries = &self.chunks[self.covering(counter)?].entries;
        Some(entries[entries.partition_point(|entry| entry.counter <= counter) - 1].leaf)
    }

    /// The chunk whose entries cover `counter`.
    #[inline]
    fn covering(&self, counter: u32) -> Option<usize> {
        self.chunks.partition_point(|chunk| chunk.first <= counter).checked_sub(1)
    }

    /// Makes `from..to` belong to `leaf`, and leaves what comes after as it is.
    fn assign(&mut self, from: u32, to: u32, leaf: u32) {
        let Some(mut at) = self.covering(from) else { return self.assign_at_start(from, to, leaf) };
        // Two more may come.
        if self.chunks[at].entries.len() + 2 > CHUNK {
            self.split(at);
            at += usize::from(self.chunks[at + 1].first <= from);
        }
        // What covers the counter before `to`, until now.
        let mut after = None;
        while let Some(next) = self.chunks.get_mut(at + 1).filter(|next| next.first < to) {
            let gone = next.entries.partition_point(|entry| entry.counter < to);
            after = Some(next.entries[gone - 1].leaf);
            next.entries.drain(..gone);
            match next.entries.first() {
                Some(first) => next.first = first.counter,
                None => drop(self.chunks.remove(at + 1)),
            }
        }
        let entries = &self.chunks[at].entries;
        let begin = entries.partition_point(|entry| entry.counter < from);
        let gone = entries[begin..].iter().take_while(|entry| entry.counter < to).count();
        let after = after.unwrap_or_else(|| entries[begin + gone - 1].leaf);
        let before = match begin.checked_sub(1) {
            Some(before) => Some(entries[before].leaf),
            None => at.checked_sub(1).and_then(|at| self.chunks[at].entries.last()).map(|entry| entry.leaf),
        };
        let next = entries.get(begin + gone).or_else(|| self.chunks.get(at + 1)?.entries.first()).copied();
        let starts = (before != Some(leaf)).then_some(Entry { counter: from, leaf });
        // What follows needs an entry of its own, unless it has one.
        let followed = next.is_some_and(|next| next.counter == to);
        let ends = (!followed && after != leaf).then_some(Entry { counter: to, leaf: after });
        self.replace(at, begin, gone, [starts, ends]);
        if followed && next.is_some_and(|next| next.leaf == leaf) {
            self.remove_at(to);
        }
    }

    /// [`assign`](List::assign) before everything that is known.
    fn assign_at_start(&mut self, from: u32, to: u32, leaf: u32) {
        let entry = Entry { counter: from, leaf };
        match self.chunks.first_mut() {
            None => self.push(entry),
            Some(chunk) => {
                // It covers up to what was first, as if that had always been.
                chunk.first = from;
                chunk.entries.insert(0, entry);
                self.assign(from, to, leaf);
            }
        }
    }

    /// Puts entries into the place of `gone` others of a chunk.
    #[inline]
    fn replace(&mut self, at: usize, begin: usize, gone: usize, new: [Option<Entry>; 2]) {
        let chunk = &mut self.chunks[at];
        match (gone, new) {
            (0, [None, None]) => return,
            (1, [Some(entry), None] | [None, Some(entry)]) => chunk.entries[begin] = entry,
            (2, [Some(starts), Some(ends)]) => {
                chunk.entries[begin] = starts;
                chunk.entries[begin + 1] = ends;
            }
            _ => {
                // Not `splice`: it allocates when more come than go.
                let (mut at, mut gone) = (begin, gone);
                for entry in new.into_iter().flatten() {
                    if gone > 0 {
                        chunk.entries[at] = entry;
                        gone -= 1;
                    } else {
                        chunk.entries.insert(at, entry);
                    }
                    at += 1;
                }
                chunk.entries.drain(at..at + gone);
            }
        }
        match chunk.entries.first() {
            Some(first) => chunk.first = first.counter,
            None => drop(self.chunks.remove(at)),
        }
    }

    /// Cuts a chunk in two.
    fn split(&mut self, at: usize) {
        let chunk = &mut self.chunks[at];
        let entries = chunk.entries.split_off(chunk.entries.len() / 2);
        self.chunks.insert(at + 1, Chunk { first: entries[0].counter, entries });
    }

    /// Removes the entry of exactly that counter.
    fn remove_at(&mut self, counter: u32) {
        let Some(at) = self.covering(counter) else { return };
        let begin = self.chunks[at].entries.partition_point(|entry| entry.counter < counter);
        self.replace(at, begin, 1, [None, None]);
    }

    #[inline]
    fn last(&self) -> Option<&Entry> {
        self.chunks.last()?.entries.last()
    }

    fn pop(&mut self) {
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.entries.pop();
            if chunk.entries.is_empty() {
                self.chunks.pop();
            }
        }
    }

    /// Adds an entry behind all others. A full chunk stays full, as typing goes on behind it.
    fn push(&mut self, entry: Entry) {
        match self.chunks.last_mut() {
            Some(chunk) if chunk.entries.len() < CHUNK => chunk.entries.push(entry),
            _ => {
                // Most replicas of a crowd never have another chunk.
                let mut entries = Vec::new();
                if self.chunks.is_empty() {
                    self.chunks.reserve_exact(1);
                    entries.reserve_exact(1);
                } else {
                    entries.reserve_exact(CHUNK / 4);
                }
                entries.push(entry);
                self.chunks.push(Chunk { first: entry.counter, entries });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_answers_as_a_plain_map_does() {
        let mut seed = 1u64;
        let mut next = move |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..40 {
            let mut places = Places::default();
            let mut plain: Vec<u32> = Vec::new();
            for _ in 0..1500 {
                let known = plain.len() as u64;
                let (from, len, leaf) = match next(3) {
                    0 => (known, 1 + next(4), next(20)),
                    _ => {
                        let from = next(known + 1);
                        (from, 1 + next(6).min(known - from), next(20))
                    }
                };
                let end = (from + len) as usize;
                plain.resize(plain.len().max(end), leaf as u32);
                plain[from as usize..end].fill(leaf as u32);
                places.assign(Id::new(0, from as u32), len as u32, leaf as u32);
            }
            for (counter, &leaf) in plain.iter().enumerate() {
                assert_eq!(places.leaf(Id::new(0, counter as u32)), Some(leaf), "counter {counter}");
            }
            let chunks = &places.lists[0].chunks;
            for chunk in chunks {
                assert!(chunk.entries.len() <= CHUNK && chunk.entries[0].counter == chunk.first);
            }
            let entries: Vec<Entry> = chunks.iter().flat_map(|chunk| chunk.entries.clone()).collect();
            for pair in entries.windows(2) {
                assert!(pair[0].counter < pair[1].counter, "sorted");
                assert_ne!(pair[0].leaf, pair[1].leaf, "what can be one entry is one");
            }
        }
    }
}
