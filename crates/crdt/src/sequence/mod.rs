//! The sequence: all texts of a document, as runs of characters in the order of the merge rule.
//!
//! [`integrate`] puts insertions where the merge rule wants them, [`delete`] makes tombstones, [`read`]
//! answers questions. Below lie [`tree`] (order and widths), [`places`] (id to leaf) and [`content`]
//! (characters).

mod content;
mod delete;
mod integrate;
mod load;
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), allow(dead_code, reason = "a fuzzer uses only a part"))]
pub(crate) mod naive;
mod places;
mod read;
mod span;
mod tree;
mod typing;
mod widths;

pub(crate) use load::Unfinished;
pub(crate) use span::STEP_MAX;
pub(crate) use widths::Widths;

use crate::id::Id;
use content::Content;
use places::Places;
use span::Span;
use tree::{NIL, Tree};

/// Elements of one replica side by side that were typed in one go: each has the one before as its left origin, and
/// all have the same right origin. Or, when `step` is not 1, elements that follow one another as those of a
/// [`Span`](span::Span).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run<'a> {
    pub(crate) id: Id,
    pub(crate) len: u32,
    pub(crate) step: i32,
    pub(crate) left: Id,
    pub(crate) right: Id,
    pub(crate) deleted: bool,
    /// Empty when deleted.
    pub(crate) text: &'a str,
}

impl Run<'_> {
    /// The id of the last element.
    pub(crate) fn last(&self) -> Id {
        let distance = ((self.len - 1) as i32).wrapping_mul(self.step);
        Id::new(self.id.client, self.id.counter.wrapping_add_signed(distance))
    }

    /// The first counter behind all of the elements.
    pub(crate) fn end(&self) -> u32 {
        self.id.counter.max(self.last().counter) + 1
    }
}

/// A leaf and a slot in it, where something was at some time.
pub(crate) type Guess = (u32, u32);

/// What a check needs to know of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) text: u32,
    /// Its origins.
    pub(crate) left: Id,
    pub(crate) right: Id,
    /// The element right after it, tombstone or not.
    pub(crate) next: Id,
    pub(crate) guess: Guess,
}

impl Place {
    pub(crate) const NO_GUESS: Guess = (NIL, 0);
}

/// All texts of a document.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sequences {
    tree: Tree,
    places: Places,
    content: Content,
    /// For each replica the span that was touched last; a guess, checked before use.
    hints: Vec<Guess>,
    /// For each replica the last element that it typed among rivals, and its right origin, which is behind it.
    behind: Vec<(Id, Id)>,
    elements: usize,
}

/// An element in the tree, or a gap: then it is the one before element `off` of its span, and `off` may be
/// the span's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    leaf: u32,
    slot: u32,
    off: u32,
}

impl Sequences {
    pub(crate) fn add_text(&mut self) -> u32 {
        self.tree.add_text()
    }

    /// Elements of all texts, visible or not.
    pub(crate) fn elements(&self) -> usize {
        self.elements
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.tree.leaves.capacity() * size_of::<tree::Leaf>()
            + self.tree.nodes.capacity() * size_of::<tree::Node>()
            + self.tree.roots.capacity() * size_of::<tree::Root>()
            + self.places.memory_bytes()
            + self.content.memory_bytes()
            + self.hints.capacity() * size_of::<Guess>()
            + self.behind.capacity() * size_of::<(Id, Id)>()
    }

    /// Where an element is.
    #[inline]
    fn locate(&self, id: Id) -> Option<At> {
        if let Some(&(leaf, slot)) = self.hints.get(id.client as usize)
            && let Some(leaf_at) = self.tree.leaves.get(leaf as usize)
        {
            // The span itself, or one beside it: people go on where they were, and next to it.
            let spans = leaf_at.spans();
            for slot in [slot, slot.wrapping_sub(1), slot.wrapping_add(1)] {
                if let Some(off) = spans.get(slot as usize).and_then(|span| span.offset(id)) {
                    return Some(At { leaf, slot, off });
                }
            }
        }
        self.search(id)
    }

    fn search(&self, id: Id) -> Option<At> {
        let leaf = self.places.leaf(id)?;
        let mut spans = (0..).zip(self.tree.leaf(leaf).spans());
        spans.find_map(|(slot, span)| span.offset(id).map(|off| At { leaf, slot, off }))
    }

    fn expect(&self, id: Id) -> At {
        self.locate(id).expect("the check has seen that it is an element")
    }

    /// Says where a look at an element of that replica may begin; a guess that is checked before use.
    #[inline]
    pub(crate) fn hint(&mut self, id: Id, (leaf, slot): Guess) {
        if leaf == NIL {
            return;
        }
        let client = id.client as usize;
        if client >= self.hints.len() {
            self.hints.resize(client + 1, (NIL, 0));
        }
        self.hints[client] = (leaf, slot);
    }

    /// The element that follows a gap: where, and its id.
    #[inline]
    fn after(&self, gap: At) -> Option<(At, Id)> {
        let leaf = self.tree.leaf(gap.leaf);
        let spans = leaf.spans();
        if let Some(span) = spans.get(gap.slot as usize) {
            if gap.off < span.len {
                return Some((gap, span.element(gap.off)));
            }
            if let Some(next) = spans.get(gap.slot as usize + 1) {
                return Some((At { slot: gap.slot + 1, off: 0, ..gap }, next.id));
            }
        }
        let next = self.tree.leaves.get(leaf.next as usize)?;
        Some((At { leaf: leaf.next, slot: 0, off: 0 }, next.spans().first()?.id))
    }

    /// The gap before an element, as the end of the span before or a place inside its own.
    fn before(&self, at: At) -> Option<At> {
        if at.off > 0 {
            return Some(at);
        }
        let leaf = self.tree.leaf(at.leaf);
        let (leaf, slot) = match at.slot.checked_sub(1) {
            Some(slot) => (at.leaf, slot),
            None => (leaf.prev, self.tree.leaves.get(leaf.prev as usize)?.len - 1),
        };
        Some(At { leaf, slot, off: self.tree.span(leaf, slot).len })
    }

    /// The left origin of an element.
    fn left_of(&self, id: Id) -> Id {
        let at = self.expect(id);
        self.tree.span(at.leaf, at.slot).left_of(at.off)
    }

    /// Two tombstones side by side as one, if they can be.
    fn joined(&self, span: &Span, next: &Span) -> Option<Span> {
        let both = span.joined(next)?;
        self.is_free_between(span.last(), next.id).then_some(both)
    }

    /// Whether no counter between these two is an element.
    fn is_free_between(&self, a: Id, b: Id) -> bool {
        let mut between = a.counter.min(b.counter) + 1..a.counter.max(b.counter);
        between.all(|counter| self.search(Id::new(a.client, counter)).is_none())
    }

    /// The text of a span, in the order of typing.
    #[inline]
    fn text_of(&self, span: &Span) -> &str {
        if span.is_dead() { "" } else { self.content.get(span.id.client, span.at(), span.bytes()) }
    }

    fn widths_of(&self, span: &Span) -> Widths {
        if span.is_dead() { Widths::default() } else { Widths::of_str(self.text_of(span), span.len) }
    }

    /// Bytes of the `n` characters of a span that were typed first.
    fn bytes_of(&self, span: &Span, n: u32) -> u32 {
        if span.bytes() == span.len || n == span.len || span.is_dead() {
            return if n == span.len { span.bytes() } else { n.min(span.bytes()) };
        }
        let text = self.text_of(span);
        text.char_indices().nth(n as usize).map_or(text.len(), |(at, _)| at) as u32
    }

    /// Bytes of a span's text that were typed before those on the other side of a gap in it.
    fn bytes_at(&self, span: &Span, off: u32) -> u32 {
        self.bytes_of(span, if span.is_backward() { span.len - off } else { off })
    }

    /// The bytes of elements `off..off + n` among the text of a span: from and to.
    fn bytes_within(&self, span: &Span, off: u32, n: u32) -> (u32, u32) {
        let (from, to) = (self.bytes_at(span, off), self.bytes_at(span, off + n));
        (from.min(to), from.max(to))
    }

    /// Adds the text of elements `off..off + n` of a visible span, as it is read.
    fn read(&self, span: &Span, off: u32, n: u32, out: &mut String) {
        let (from, to) = self.bytes_within(span, off, n);
        let text = &self.text_of(span)[from as usize..to as usize];
        if span.is_backward() {
            out.extend(text.chars().rev());
        } else {
            out.push_str(text);
        }
    }
}

#[cfg(any(test, fuzzing))]
mod invariants;
#[cfg(test)]
pub(crate) mod tests;
