//! Elements that stand side by side and follow from one another, as one row of numbers.

use super::Run;
use crate::id::Id;

/// Elements of a visible span at most, so that looking into one is bounded.
pub(super) const SPAN_LEN_MAX: u32 = if cfg!(any(test, fuzzing)) { 6 } else { 2048 };
/// How far apart the ids of a span can be.
pub(crate) const STEP_MAX: u32 = 16;
const DEAD: u32 = u32::MAX;

/// Elements of one replica that stand side by side, their ids `step` apart: element `n` has the counter
/// `id.counter + n * step`. None of the counters between them is an element of any text.
///
/// Forwards (`step` > 0) the first has `left` as its left origin, each other the one before it; all have `right`.
/// Backwards (`step` < 0), as when each is typed before the last one, all have `left`; the last has `right` as its
/// right origin, each other the one behind it. A single element is forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) id: Id,
    pub(super) left: Id,
    pub(super) right: Id,
    pub(super) len: u32,
    /// Where its text lies among that of its replica, in the order of typing; `DEAD` when deleted.
    at: u32,
    bytes: u16,
    step: i16,
}

impl Span {
    pub(super) const EMPTY: Span =
        Span { id: Id::NONE, left: Id::NONE, right: Id::NONE, len: 0, at: DEAD, bytes: 0, step: 1 };

    pub(super) fn live(id: Id, len: u32, left: Id, right: Id, at: u32, bytes: u32) -> Span {
        debug_assert!(len <= SPAN_LEN_MAX);
        Span { id, left, right, len, at, bytes: bytes as u16, step: 1 }
    }

    /// The same elements with ids that far apart.
    pub(super) fn stepping(self, step: i32) -> Span {
        Span { step: if self.len == 1 { 1 } else { step as i16 }, ..self }
    }

    #[inline]
    pub(super) fn is_dead(&self) -> bool {
        self.at == DEAD
    }

    pub(super) fn at(&self) -> u32 {
        debug_assert!(!self.is_dead());
        self.at
    }

    /// Moves to where a sweep has put its text.
    pub(super) fn set_at(&mut self, at: u32) {
        self.at = at;
    }

    /// Bytes of its text.
    #[inline]
    pub(super) fn bytes(&self) -> u32 {
        u32::from(self.bytes)
    }

    #[inline]
    pub(super) fn step(&self) -> i32 {
        i32::from(self.step)
    }

    #[inline]
    pub(super) fn is_backward(&self) -> bool {
        self.step < 0
    }

    #[inline]
    pub(super) fn visible(&self) -> u32 {
        if self.is_dead() { 0 } else { self.len }
    }

    /// Which element that is, if it is one of these.
    #[inline]
    pub(super) fn offset(&self, id: Id) -> Option<u32> {
        if self.id.client != id.client {
            return None;
        }
        let distance = id.counter.wrapping_sub(self.id.counter);
        if self.step == 1 { (distance < self.len).then_some(distance) } else { self.stepped(distance) }
    }

    #[cold]
    fn stepped(&self, distance: u32) -> Option<u32> {
        let distance = if self.is_backward() { distance.wrapping_neg() } else { distance };
        let step = u32::from(self.step.unsigned_abs());
        (distance.is_multiple_of(step) && distance / step < self.len).then(|| distance / step)
    }

    /// The id of element `off`.
    #[inline]
    pub(super) fn element(&self, off: u32) -> Id {
        let distance = (off as i32).wrapping_mul(self.step());
        Id { client: self.id.client, counter: self.id.counter.wrapping_add_signed(distance) }
    }

    #[inline]
    pub(super) fn last(&self) -> Id {
        self.element(self.len - 1)
    }

    /// The left origin of element `off`.
    #[inline]
    pub(super) fn left_of(&self, off: u32) -> Id {
        if off == 0 || self.is_backward() { self.left } else { self.element(off - 1) }
    }

    /// The right origin of element `off`.
    #[inline]
    pub(super) fn right_of(&self, off: u32) -> Id {
        if !self.is_backward() || off + 1 == self.len { self.right } else { self.element(off + 1) }
    }

    /// The counters from its lowest to its highest: no other element has one of them.
    pub(super) fn counters(&self) -> (Id, u32) {
        let low = if self.is_backward() { self.last() } else { self.id };
        (low, (self.len - 1) * u32::from(self.step.unsigned_abs()) + 1)
    }

    /// How many elements from `off` on have ids that count up.
    pub(super) fn count_up(&self, off: u32) -> u32 {
        match self.step {
            1 => self.len - off,
            -1 => off + 1,
            _ => 1,
        }
    }

    /// Elements `off..off + len`; their text is the caller's to set.
    pub(super) fn part(&self, off: u32, len: u32) -> Span {
        let (left, right) = (self.left_of(off), self.right_of(off + len - 1));
        Span { id: self.element(off), left, right, len, ..*self }.stepping(self.step())
    }

    /// Elements `off..off + len` as a tombstone.
    pub(super) fn buried(&self, off: u32, len: u32) -> Span {
        Span { at: DEAD, bytes: 0, ..self.part(off, len) }
    }

    /// The same with its text there.
    pub(super) fn with_text(self, at: u32, bytes: u32) -> Span {
        Span { at, bytes: bytes as u16, ..self }
    }

    /// A run's elements; their text is the caller's to set.
    pub(super) fn of_run(run: &Run<'_>) -> Span {
        let at = if run.deleted { DEAD } else { 0 };
        Span { id: run.id, left: run.left, right: run.right, len: run.len, at, bytes: 0, step: 1 }
            .stepping(run.step)
    }

    /// Whether `next`, standing right after it, goes on with the same run.
    #[inline]
    pub(super) fn continues_with(&self, next: &Span) -> bool {
        next.left == self.last() && next.id == self.id.plus(self.len) && next.right == self.right
    }

    /// The two as one tombstone, when `next` stands right behind and goes on as this does; apart from what the
    /// counters between the two are.
    pub(super) fn joined(&self, next: &Span) -> Option<Span> {
        let step = i64::from(next.id.counter) - i64::from(self.last().counter);
        let fits = |span: &Span| span.len == 1 || i64::from(span.step) == step;
        let goes_on = self.id.client == next.id.client
            && (1..=u64::from(STEP_MAX)).contains(&step.unsigned_abs())
            && fits(self)
            && fits(next)
            && if step > 0 {
                next.left == self.last() && next.right == self.right
            } else {
                next.left == self.left && next.id == self.right
            };
        let both = Span { len: self.len + next.len, right: next.right, ..*self };
        goes_on.then(|| both.stepping(step as i32))
    }

    /// Takes in what was typed right behind it, in a run.
    pub(super) fn grow(&mut self, len: u32, bytes: u32) {
        self.len += len;
        self.bytes += bytes as u16;
    }

    /// A visible span with one more element before it, which was typed last.
    pub(super) fn preceded_by(&self, id: Id, bytes: u32) -> Span {
        let step = self.id.counter.wrapping_sub(id.counter) as i32;
        Span { id, len: self.len + 1, bytes: self.bytes + bytes as u16, ..*self }.stepping(step)
    }

    /// The part from element `off` on; `self` keeps what is before. `bytes` of its text come before the cut, in the
    /// order of typing.
    pub(super) fn cut(&mut self, off: u32, bytes: u32) -> Span {
        let (mut lower, mut upper) = (*self, *self);
        upper.id = self.element(off);
        upper.left = self.left_of(off);
        upper.len = self.len - off;
        lower.right = self.right_of(off - 1);
        lower.len = off;
        if !self.is_dead() {
            // What was typed later is the lower part when it was typed backwards.
            let (first, second) =
                if self.is_backward() { (&mut upper, &mut lower) } else { (&mut lower, &mut upper) };
            second.at += bytes;
            second.bytes -= bytes as u16;
            first.bytes = bytes as u16;
        }
        let step = self.step();
        *self = lower.stepping(step);
        upper.stepping(step)
    }
}
