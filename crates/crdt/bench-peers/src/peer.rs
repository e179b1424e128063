//! The one interface that every measured engine implements. To add an engine: a module under `peers/` with
//! an `impl Peer`, and a line in `peers::ALL` and in `dispatch!`.

use crate::framing::together;
use crate::trace::{Patch, Trace};
use std::any::Any;
use std::time::Duration;

/// What an engine's positions and lengths count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Chars,
    Bytes,
}

/// What one client did without seeing anybody else's: its updates one by one, and all as one.
pub struct Branch {
    pub client: u64,
    pub updates: Vec<Vec<u8>>,
    pub whole: Vec<u8>,
}

pub trait Peer: Sized + 'static {
    const NAME: &'static str;
    const VERSION: &'static str;
    const UNIT: Unit;

    /// Some(k): taking single updates is so slow that only the last k of a case are timed, on top
    /// of all earlier ones taken in bulk.
    const TAIL: Option<usize> = None;

    /// Cases that take this engine minutes: they are left out of a quick run.
    const SLOW: &'static [&'static str] = &[];

    fn new(client: u64) -> Self;

    /// One local transaction; the patches apply one after another. Nothing is encoded.
    fn edit(&mut self, patches: &[Patch]);
    /// The same, and returns the transaction encoded for the wire.
    fn edit_encode(&mut self, patches: &[Patch]) -> Vec<u8>;

    /// Decode and integrate one update made by `edit_encode` elsewhere.
    fn apply(&mut self, update: &[u8]);
    /// Many small updates at once, in causal order.
    fn apply_many(&mut self, updates: &[&[u8]]) {
        for update in updates {
            self.apply(update);
        }
    }

    fn text(&mut self) -> String;
    /// Length of the text in `UNIT`.
    fn len(&mut self) -> usize;

    /// The whole document with what the engine needs to go on merging.
    fn save(&mut self) -> Vec<u8>;
    fn load(bytes: &[u8], client: u64) -> Self;

    /// A saved document that client 1 has written, for others to start from.
    fn base(patches: &[Patch]) -> Vec<u8> {
        let mut doc = Self::new(1);
        for p in patches {
            doc.edit(std::slice::from_ref(p));
        }
        doc.save()
    }

    /// The replica whose saving, loading and heap are measured: the author's own.
    fn keeper(author: Self, _updates: &[Vec<u8>]) -> Self {
        author
    }

    /// What another replica receives for updates of these clients in this order, when a server stands
    /// between them. `live`: each client had seen all updates before its own; otherwise none beyond `base`.
    fn deliver(_base: Option<&[u8]>, updates: &[(u64, &[u8])], _live: bool) -> Vec<Vec<u8>> {
        updates.iter().map(|(_, update)| update.to_vec()).collect()
    }

    /// The same for `first`, with branches behind it, each as ONE update.
    fn deliver_branches(
        _base: &[u8],
        first: &[(u64, &[u8])],
        branches: &[Branch],
    ) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let first = first.iter().map(|(_, update)| update.to_vec()).collect();
        (first, branches.iter().map(|branch| branch.whole.clone()).collect())
    }

    /// The payload of the WebSocket message in which a server sends these updates of a live stream, the first of
    /// them number `first`. Where an engine has no protocol of its own: the bare updates, which is less than any
    /// protocol takes.
    fn frame_down(_first: u64, updates: &[&[u8]]) -> Vec<u8> {
        together(updates)
    }
    /// The payload in which their author sends the changes of `edit_encode`, the first of them number `first`,
    /// its first op number `counter`.
    fn frame_up(first: u64, _counter: u64, updates: &[&[u8]]) -> Vec<u8> {
        Self::frame_down(first, updates)
    }

    /// The document as it is kept while nobody edits it: able to say what it has, and to become a document.
    fn idle(bytes: &[u8]) -> Box<dyn Any> {
        Box::new(Self::load(bytes, 7))
    }

    /// The updates of a concurrent trace, one per transaction, when the engine makes them in a way of its own.
    fn replay(_: &Trace) -> Option<Vec<Vec<u8>>> {
        None
    }

    /// Further ways to take the updates of a linear trace: the time for all.
    fn extras(_: &[Patch]) -> Vec<(&'static str, Duration)> {
        Vec::new()
    }

    /// A point in this replica's history, for `encode_since`.
    type Mark: Clone;
    fn mark(&mut self) -> Self::Mark;
    /// Everything since the mark as ONE update (a branch that was offline).
    fn encode_since(&mut self, mark: &Self::Mark) -> Vec<u8>;
    fn apply_branch(&mut self, bytes: &[u8]) {
        self.apply(bytes)
    }
}
