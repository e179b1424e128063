//! From an id to the leaf that holds it.
//!
//! For each replica a sorted list of (counter, leaf): the leaf holds what the replica inserted from that
//! counter up to the next entry's. Entries name leaves, not slots, so moves inside a leaf cost nothing, and
//! a stretch of typing in one leaf is one entry. Counters that inserted nothing fall into some entry too;
//! the leaf then has no such element.

use crate::id::{Client, Id};

/// Entries of a chunk at most; a full one is cut in two.
const CHUNK: usize = if cfg!(test) { 4 } else { 256 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    counter: u32,
    leaf: u32,
}

/// One replica's entries, in chunks so that an entry in the middle moves little.
#[derive(Clone, Debug, Default)]
struct List {
    chunks: Vec<Vec<Entry>>,
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
        while let Some(&last) = list.chunks.last().and_then(|chunk| chunk.last()) {
            debug_assert!(last.counter <= id.counter, "ids come in order");
            if last.leaf == leaf {
                return;
            }
            if last.counter < id.counter {
                break;
            }
            // Left behind by a move: it says where what comes next is, and now that comes.
            list.remove(list.chunks.len() - 1, list.chunks[list.chunks.len() - 1].len() - 1);
        }
        list.insert(Entry { counter: id.counter, leaf });
    }

    /// Says that the `len` elements from `id` on are in `leaf` now.
    pub(super) fn assign(&mut self, id: Id, len: u32, leaf: u32) {
        self.list(id.client).assign(id.counter, id.counter + len, leaf);
    }

    /// Replaces everything by these, which must be sorted by id.
    pub(super) fn rebuild(&mut self, sorted: impl Iterator<Item = (Id, u32)>) {
        self.lists.clear();
        for (id, leaf) in sorted {
            self.append(id, leaf);
        }
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
            + self.lists.iter().map(|list| list.chunks.capacity() * size_of::<Vec<Entry>>()).sum::<usize>()
            + chunks.map(|chunk| chunk.capacity() * size_of::<Entry>()).sum::<usize>()
    }
}

impl List {
    #[inline]
    fn leaf(&self, counter: u32) -> Option<u32> {
        let last = self.chunks.last()?.last()?;
        if last.counter <= counter {
            return Some(last.leaf);
        }
        let (chunk, n) = self.covering(counter)?;
        Some(self.chunks[chunk][n].leaf)
    }

    /// Where the entry is that covers `counter`.
    fn covering(&self, counter: u32) -> Option<(usize, usize)> {
        let chunk = self.chunks.partition_point(|chunk| chunk[0].counter <= counter).checked_sub(1)?;
        let n = self.chunks[chunk].partition_point(|entry| entry.counter <= counter);
        Some((chunk, n - 1))
    }

    /// Makes `from..to` belong to `leaf`, and leaves what comes after as it is.
    fn assign(&mut self, from: u32, to: u32, leaf: u32) {
        let after = self.leaf_before(to);
        // Whatever started inside is gone.
        while let Some((chunk, n)) = self.first_at_or_after(from) {
            if self.chunks[chunk][n].counter >= to {
                break;
            }
            self.remove(chunk, n);
        }
        if self.leaf_before(from) != Some(leaf) {
            self.insert(Entry { counter: from, leaf });
        }
        // What follows needs an entry of its own, unless it has one, or nothing follows at all.
        let next = self.first_at_or_after(to).filter(|&(chunk, n)| self.chunks[chunk][n].counter == to);
        match (next, after) {
            (Some((chunk, n)), _) if self.chunks[chunk][n].leaf == leaf => self.remove(chunk, n),
            (None, Some(after)) if after != leaf => self.insert(Entry { counter: to, leaf: after }),
            _ => {}
        }
    }

    /// What covers the counter just below `counter`, seen from above.
    fn leaf_before(&self, counter: u32) -> Option<u32> {
        let (chunk, n) = self.covering(counter.checked_sub(1)?)?;
        Some(self.chunks[chunk][n].leaf)
    }

    fn first_at_or_after(&self, counter: u32) -> Option<(usize, usize)> {
        let (chunk, n) = match counter.checked_sub(1).and_then(|before| self.covering(before)) {
            Some((chunk, n)) => (chunk, n + 1),
            None => (0, 0),
        };
        if n < self.chunks.get(chunk)?.len() {
            return Some((chunk, n));
        }
        (chunk + 1 < self.chunks.len()).then_some((chunk + 1, 0))
    }

    fn insert(&mut self, entry: Entry) {
        if self.chunks.is_empty() {
            self.chunks.push(vec![entry]);
            return;
        }
        let (chunk, n) = match self.covering(entry.counter) {
            Some((chunk, n)) => (chunk, n + 1),
            None => (0, 0),
        };
        if self.chunks[chunk].len() < CHUNK {
            self.chunks[chunk].insert(n, entry);
            return;
        }
        // At the end of the list the full chunk stays full, as typing goes on behind it.
        let at_end = chunk + 1 == self.chunks.len() && n == CHUNK;
        let upper = if at_end { Vec::new() } else { self.chunks[chunk].split_off(CHUNK / 2) };
        let lower = self.chunks[chunk].len();
        self.chunks.insert(chunk + 1, upper);
        if n > lower || at_end {
            self.chunks[chunk + 1].insert(n - lower, entry);
        } else {
            self.chunks[chunk].insert(n, entry);
        }
    }

    fn remove(&mut self, chunk: usize, n: usize) {
        self.chunks[chunk].remove(n);
        if self.chunks[chunk].is_empty() {
            self.chunks.remove(chunk);
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
            for pair in places.lists[0].chunks.concat().windows(2) {
                assert!(pair[0].counter < pair[1].counter, "sorted");
                assert_ne!(pair[0].leaf, pair[1].leaf, "what can be one entry is one");
            }
        }
    }
}
