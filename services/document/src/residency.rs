//! Which documents of a partition are in memory, which are on their way, and who waits for them: pure
//! bookkeeping. Loading and forgetting are done by the one who asks.
//!
//! A document is loaded once, however many ask; requests for it wait in their order, up to a limit. That a
//! load failed is told to everybody who waited: a document that cannot be read is an error, never an empty
//! one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use manyhands_proto::DocumentName;

/// The documents of one partition. `W` is a request that waits.
#[derive(Debug)]
pub struct Residency<W> {
    waiting_max: usize,
    /// Over all documents.
    waiting: usize,
    places: BTreeMap<DocumentName, Place<W>>,
    /// Documents in memory, the least recently used first.
    uses: BTreeMap<(Duration, u64), DocumentName>,
    next_use: u64,
    bytes: usize,
}

#[derive(Debug)]
enum Place<W> {
    Loading { waiting: VecDeque<W> },
    Resident { last_use: (Duration, u64), bytes: usize },
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<W> {
    /// The document is in memory: go on.
    Resident(W),
    /// It waits.
    Waits,
    /// It waits, and it is the first: load the document.
    Load,
    /// Too many wait already.
    Full(W),
}

impl<W> Residency<W> {
    /// Nothing is in memory. At most `waiting_max` requests wait for documents to be loaded.
    #[must_use]
    pub fn new(waiting_max: usize) -> Residency<W> {
        Residency {
            waiting_max,
            waiting: 0,
            places: BTreeMap::new(),
            uses: BTreeMap::new(),
            next_use: 0,
            bytes: 0,
        }
    }

    /// A request for a document.
    pub fn arrive(&mut self, now: Duration, document: &DocumentName, request: W) -> Arrival<W> {
        match self.places.get_mut(document) {
            Some(Place::Resident { last_use, .. }) => {
                self.uses.remove(last_use);
                *last_use = (now, self.next_use);
                self.next_use += 1;
                self.uses.insert(*last_use, document.clone());
                Arrival::Resident(request)
            }
            _ if self.waiting >= self.waiting_max => Arrival::Full(request),
            Some(Place::Loading { waiting }) => {
                waiting.push_back(request);
                self.waiting += 1;
                Arrival::Waits
            }
            None => {
                self.waiting += 1;
                let waiting = VecDeque::from([request]);
                self.places.insert(document.clone(), Place::Loading { waiting });
                Arrival::Load
            }
        }
    }

    /// The document is in memory and takes so many bytes. Returns who waited, in order.
    pub fn loaded(&mut self, now: Duration, document: &DocumentName, bytes: usize) -> VecDeque<W> {
        let waited = self.forget(document);
        let last_use = (now, self.next_use);
        self.next_use += 1;
        self.uses.insert(last_use, document.clone());
        self.bytes += bytes;
        self.places.insert(document.clone(), Place::Resident { last_use, bytes });
        waited
    }

    /// The document is no longer in memory, or could not be loaded. Returns who waited, in order.
    pub fn forget(&mut self, document: &DocumentName) -> VecDeque<W> {
        match self.places.remove(document) {
            Some(Place::Loading { waiting }) => {
                self.waiting -= waiting.len();
                waiting
            }
            Some(Place::Resident { last_use, bytes }) => {
                self.uses.remove(&last_use);
                self.bytes -= bytes;
                VecDeque::new()
            }
            None => VecDeque::new(),
        }
    }

    /// A document in memory takes another number of bytes now.
    pub fn resized(&mut self, document: &DocumentName, now_bytes: usize) {
        if let Some(Place::Resident { bytes, .. }) = self.places.get_mut(document) {
            self.bytes = self.bytes - *bytes + now_bytes;
            *bytes = now_bytes;
        }
    }

    /// Forgets documents that nobody asked for since `idle_since`, and beyond that the least recently used
    /// ones until `excess` bytes are free. Returns them; their state is to be dropped.
    pub fn evict(&mut self, idle_since: Duration, excess: usize) -> Vec<DocumentName> {
        let mut freed = 0;
        let mut evicted = Vec::new();
        while let Some((&(last_use, _), document)) = self.uses.first_key_value()
            && (last_use < idle_since || freed < excess)
        {
            let document = document.clone();
            let before = self.bytes;
            self.forget(&document);
            freed += before - self.bytes;
            evicted.push(document);
        }
        evicted
    }

    /// Documents in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.uses.len()
    }

    /// Whether no document is in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }

    /// Bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DocumentName {
        text.parse().unwrap()
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_document_is_loaded_once_and_those_who_wait_keep_their_order() {
        let mut residency = Residency::new(4);
        let a = name("a");
        assert_eq!(residency.arrive(seconds(0), &a, 1), Arrival::Load);
        assert_eq!(residency.arrive(seconds(0), &a, 2), Arrival::Waits);
        assert_eq!(residency.arrive(seconds(0), &name("b"), 9), Arrival::Load);
        assert_eq!(residency.arrive(seconds(0), &a, 3), Arrival::Waits);
        assert_eq!(residency.loaded(seconds(1), &a, 10), [1, 2, 3]);
        assert_eq!(residency.arrive(seconds(1), &a, 4), Arrival::Resident(4));
    }

    // enforces: I-10
    #[test]
    fn more_than_the_limit_do_not_wait() {
        let mut residency = Residency::new(2);
        let a = name("a");
        assert_eq!(residency.arrive(seconds(0), &a, 1), Arrival::Load);
        assert_eq!(residency.arrive(seconds(0), &a, 2), Arrival::Waits);
        assert_eq!(residency.arrive(seconds(0), &a, 3), Arrival::Full(3));
        assert_eq!(residency.arrive(seconds(0), &name("b"), 4), Arrival::Full(4));
        assert_eq!(residency.loaded(seconds(0), &a, 1), [1, 2]);
        assert_eq!(residency.arrive(seconds(0), &name("b"), 4), Arrival::Load);
    }

    #[test]
    fn a_failed_load_is_told_to_all_who_waited_and_tried_again_by_the_next() {
        let mut residency = Residency::new(8);
        let a = name("a");
        residency.arrive(seconds(0), &a, 1);
        residency.arrive(seconds(0), &a, 2);
        assert_eq!(residency.forget(&a), [1, 2]);
        assert_eq!(residency.arrive(seconds(0), &a, 3), Arrival::Load);
    }

    #[test]
    fn the_least_recently_used_leave_first_and_the_idle_ones_always() {
        let mut residency = Residency::new(8);
        for (at, document) in ["a", "b", "c", "d"].into_iter().enumerate() {
            residency.arrive(seconds(at as u64), &name(document), ());
            residency.loaded(seconds(at as u64), &name(document), 100);
        }
        residency.arrive(seconds(9), &name("a"), ());
        residency.resized(&name("b"), 150);
        assert_eq!((residency.len(), residency.bytes()), (4, 450));
        assert_eq!(residency.evict(seconds(0), 0), []);
        assert_eq!(residency.evict(seconds(0), 151), [name("b"), name("c")]);
        assert_eq!(residency.evict(seconds(9), 0), [name("d")]);
        assert_eq!((residency.len(), residency.bytes()), (1, 100));
        assert_eq!(residency.evict(seconds(9), 101), [name("a")]);
        assert!(residency.is_empty() && residency.bytes() == 0);
    }

    #[test]
    fn a_document_that_is_being_loaded_is_not_evicted() {
        let mut residency = Residency::new(8);
        residency.arrive(seconds(0), &name("a"), 1);
        assert_eq!(residency.evict(seconds(100), 1_000_000), []);
        assert_eq!(residency.loaded(seconds(100), &name("a"), 1), [1]);
    }
}
