//! Deletions: elements become tombstones, which keep their place and lose their text. Tombstones side by
//! side become one span where their ids allow.

use super::span::Span;
use super::{At, Guess, Sequences, Widths};
use crate::id::Id;

/// Bytes of deleted text that are not worth a sweep.
const SWEEP_MIN: usize = if cfg!(any(test, fuzzing)) { 8 } else { 4096 };
const SWEEP_PER_LEAF: usize = if cfg!(any(test, fuzzing)) { 1 } else { 256 };

impl Sequences {
    /// Deletes `len` elements from `id` on, those that still are visible. `on` is told of each stretch:
    /// text, position at that time, length.
    pub(crate) fn delete(&mut self, id: Id, len: u32, mut on: Option<&mut dyn FnMut(u32, usize, usize)>) {
        let (mut id, mut rest) = (id, len);
        while rest > 0 {
            let at = self.expect(id);
            let span = *self.tree.span(at.leaf, at.slot);
            // Elements typed backwards die one by one, as their ids count the other way.
            let n = if span.step() == 1 { rest.min(span.len - at.off) } else { 1 };
            if !span.is_dead() {
                if let Some(on) = &mut on {
                    let text = self.tree.leaf(at.leaf).text;
                    on(text, self.visible_before(at) as usize, n as usize);
                }
                let buried = self.bury(at, n);
                self.hint(id, buried);
            }
            rest -= n;
            // The last element has no successor that fits into a counter's bounds for certain.
            if rest > 0 {
                id = id.plus(n);
            }
        }
        self.sweep();
    }

    /// Makes `n` visible elements of one span tombstones; says where the tombstone is.
    fn bury(&mut self, at: At, n: u32) -> Guess {
        let span = *self.tree.span(at.leaf, at.slot);
        let (from, to) = self.bytes_within(&span, at.off, n);
        let (start, bytes) = (span.at() + from, to - from);
        let widths = Widths::of_str(self.content.get(span.id.client, start, bytes), n);
        let (leaf, slot) = self.replace(at, n, &span);
        self.tree.narrow(leaf, widths);
        self.content.release(span.id.client, start, bytes);
        (leaf, slot)
    }

    /// Puts a tombstone in the place of `n` elements of `span`; says where it is then.
    fn replace(&mut self, at: At, n: u32, span: &Span) -> Guess {
        let dead = span.buried(at.off, n);
        let spans = self.tree.leaf(at.leaf).spans();
        // The end of a span, as by a backspace: a tombstone behind it that goes on with the run takes it in.
        if at.off > 0
            && at.off + n == span.len
            && let Some(next) = spans.get(at.slot as usize + 1)
            && next.is_dead()
            && let Some(dead) = self.joined(&dead, next)
        {
            let bytes = self.bytes_at(span, at.off);
            *self.tree.span_mut(at.leaf, at.slot + 1) = dead;
            self.tree.span_mut(at.leaf, at.slot).cut(at.off, bytes);
            return (at.leaf, at.slot + 1);
        }
        // The start of a span: a tombstone before it takes it in.
        if at.off == 0 && n < span.len && at.slot > 0 {
            let before = spans[at.slot as usize - 1];
            if before.is_dead()
                && let Some(dead) = self.joined(&before, &dead)
            {
                let bytes = self.bytes_at(span, n);
                *self.tree.span_mut(at.leaf, at.slot - 1) = dead;
                let rest = self.tree.span_mut(at.leaf, at.slot).cut(n, bytes);
                *self.tree.span_mut(at.leaf, at.slot) = rest;
                return (at.leaf, at.slot - 1);
            }
        }
        let mut at = at;
        if at.off + n < span.len {
            at = At { off: at.off, ..self.cut(At { off: at.off + n, ..at }) };
        }
        if at.off > 0 {
            let lower = self.cut(at);
            at = At { slot: lower.slot + 1, off: 0, ..lower };
        }
        *self.tree.span_mut(at.leaf, at.slot) = dead;
        (at.leaf, self.join(at))
    }

    /// Joins a whole tombstone with its neighbours in the leaf; says in which slot it is then.
    fn join(&mut self, at: At) -> u32 {
        let spans = self.tree.leaf(at.leaf).spans();
        let span = spans[at.slot as usize];
        let mut slot = at.slot;
        if let Some(next) = spans.get(slot as usize + 1)
            && next.is_dead()
            && let Some(both) = self.joined(&span, next)
        {
            *self.tree.span_mut(at.leaf, slot) = both;
            self.tree.remove_span(at.leaf, slot + 1);
        }
        if slot > 0 {
            let before = *self.tree.span(at.leaf, slot - 1);
            let span = *self.tree.span(at.leaf, slot);
            if before.is_dead()
                && let Some(both) = self.joined(&before, &span)
            {
                slot -= 1;
                *self.tree.span_mut(at.leaf, slot) = both;
                self.tree.remove_span(at.leaf, slot + 1);
            }
        }
        slot
    }

    /// Gives back the memory of deleted text once there is more of it than of the rest. A sweep costs as
    /// much as reading the document, so it waits until deletions have paid for it.
    fn sweep(&mut self) {
        let dead = self.content.dead;
        if dead < SWEEP_MIN || dead < self.content.live + self.tree.leaves.len() * SWEEP_PER_LEAF {
            return;
        }
        let mut swept = super::Content::default();
        for leaf in &mut self.tree.leaves {
            for slot in 0..leaf.len as usize {
                let span = leaf.spans[slot];
                if !span.is_dead() {
                    let client = span.id.client;
                    let start = swept.end(client);
                    swept.push(client, self.content.get(client, span.at(), span.bytes()));
                    leaf.spans[slot].set_at(start);
                }
            }
        }
        self.content = swept;
    }
}
