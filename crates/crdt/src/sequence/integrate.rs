//! The merge rule: where an insertion goes among those that its author had not seen.
//!
//! FugueMax's order, found by walking. `INTERNALS.md` derives it and works it out with tables.

use std::cmp::Ordering;

use super::span::{SPAN_LEN_MAX, STEP_MAX, Span};
use super::{At, Sequences, Widths};
use crate::body::scalars;
use crate::id::{Client, Id};

impl Sequences {
    /// Integrates a run of new elements, the first with these origins. Both must be elements of this text
    /// or none; a right origin that is not behind the left one counts as none. `key` gives the replica id
    /// that breaks ties, the smaller first.
    pub(crate) fn insert(
        &mut self,
        key: &impl Fn(Client) -> u64,
        text: u32,
        id: Id,
        left: Id,
        right: Id,
        content: &str,
    ) {
        // Typing backwards: before one's own element, which has the same left origin and so is behind it.
        if right.client == id.client
            && self.is_left_child(left, right)
            && let Some(gap) = self.gap_right_before(key, id.client, left, right)
        {
            self.insert_pieces(gap, id, left, right, content);
            return;
        }
        let gap = if left.is_none() {
            At { leaf: self.tree.roots[text as usize].first, slot: 0, off: 0 }
        } else {
            let at = self.expect(left);
            At { off: at.off + 1, ..at }
        };
        let next = self.after(gap);
        if next.map_or(Id::NONE, |(_, id)| id) == right {
            // Nobody else has inserted here.
            self.insert_pieces(gap, id, left, right, content);
            return;
        }
        // Typing on: what is behind one's last element was found then, and stays so.
        let known = self.behind.get(id.client as usize).is_some_and(|&known| known == (left, right));
        let right = if known || self.is_behind(right, left) { right } else { Id::NONE };
        let rivals = self.has_rivals(left, next);
        let gap = if rivals { self.gap_among_rivals(key, id.client, gap, left, right) } else { gap };
        let last = self.insert_pieces(gap, id, left, right, content);
        if (rivals || !known) && !self.is_behind(right, last) {
            // Origins that no honest editor makes: it went behind its own right origin.
            return;
        }
        let client = id.client as usize;
        if client >= self.behind.len() {
            self.behind.resize(client + 1, (Id::NONE, Id::NONE));
        }
        self.behind[client] = (last, right);
    }

    /// Whether anything hangs on `left` from the right, `next` being what is behind it. If so, then `next` has
    /// it as its left origin: that is the leftmost of all that hangs there.
    fn has_rivals(&self, left: Id, next: Option<(At, Id)>) -> bool {
        next.is_some_and(|(at, _)| self.tree.span(at.leaf, at.slot).left_of(at.off) == left)
    }

    /// Where a new element goes that others have inserted beside, unknown to its author.
    ///
    /// In FugueMax's tree it is a left child of `right` when that has the same left origin, else a right
    /// child of `left`. Left children stand by replica id; right children by right origin, the farther one
    /// first, then by replica id.
    fn gap_among_rivals(
        &self,
        key: &impl Fn(Client) -> u64,
        client: Client,
        gap: At,
        left: Id,
        right: Id,
    ) -> At {
        let is_left_child = self.is_left_child(left, right);
        if is_left_child && let Some(gap) = self.gap_right_before(key, client, left, right) {
            return gap;
        }
        let mut gap = gap;
        // Set within what stands left of a rival not reached yet: the gap stays before all of it.
        let mut undecided = false;
        let mut walk = gap;
        while let Some((at, next)) = self.after(walk) {
            if !undecided {
                gap = walk;
            }
            if is_left_child && next == right {
                return walk;
            }
            let span = self.tree.span(at.leaf, at.slot);
            // The rest of a span hangs on its first element, or that on the rest.
            let mut behind = span.len;
            match self.compare(span.left_of(at.off), left, true) {
                // Outside of what hangs on `left`.
                Ordering::Less => return gap,
                // Hangs on a rival, goes with it.
                Ordering::Greater => {}
                Ordering::Equal => {
                    let mut off = at.off;
                    if span.is_backward() {
                        // Each is a left child of the next, so the last one decides, or the one before our right
                        // origin.
                        behind = span.offset(right).unwrap_or(span.len);
                        off = behind - 1;
                    }
                    let their_right = span.right_of(off);
                    if their_right == right {
                        // A sibling.
                        if key(client) < key(span.id.client) {
                            return gap;
                        }
                        undecided = false;
                        // Siblings stand in order: one farther on with a smaller id too has all between the two
                        // on its left.
                        let spans = self.tree.leaf(at.leaf).spans();
                        let slot = spans.len() - 1;
                        let last = &spans[slot];
                        if last.left == left && last.right == right && key(last.id.client) < key(client) {
                            walk = At { slot: slot as u32, off: last.len, ..at };
                            continue;
                        }
                    } else {
                        let they_are = self.is_left_child(left, their_right);
                        let nearer = self.compare(their_right, right, false) == Ordering::Less;
                        if !is_left_child && !they_are && nearer {
                            return gap;
                        }
                        undecided = they_are && (nearer || !is_left_child);
                    }
                }
            }
            walk = At { off: behind, ..at };
        }
        if undecided { gap } else { walk }
    }

    /// Whether an element with these origins is a left child of `right`, and not a right one of `left`.
    fn is_left_child(&self, left: Id, right: Id) -> bool {
        !right.is_none() && self.left_of(right) == left
    }

    /// For a left child of `right`: the gap right before it, when that is the place. It is, unless a left
    /// child of `right` with a greater replica id ends there; only the last one needs a look. This makes
    /// typing backwards cheap, however much others have typed at the same spot.
    fn gap_right_before(
        &self,
        key: &impl Fn(Client) -> u64,
        client: Client,
        left: Id,
        right: Id,
    ) -> Option<At> {
        let gap = self.before(self.expect(right))?;
        let span = self.tree.span(gap.leaf, gap.slot);
        let last_child = span.left == left && span.right_of(gap.off - 1) == right;
        let fits = span.left == left && (!last_child || key(span.id.client) < key(client));
        fits.then_some(gap)
    }

    /// Whether `right` comes after `left`.
    fn is_behind(&self, right: Id, left: Id) -> bool {
        right.is_none() || left.is_none() || self.compare(left, right, true) == Ordering::Less
    }

    /// The order of two elements; "none" is the start when `none_is_start`, else the end.
    fn compare(&self, a: Id, b: Id, none_is_start: bool) -> Ordering {
        if a == b {
            return Ordering::Equal;
        }
        if a.is_none() {
            return if none_is_start { Ordering::Less } else { Ordering::Greater };
        }
        if b.is_none() {
            return if none_is_start { Ordering::Greater } else { Ordering::Less };
        }
        let (a, b) = (self.expect(a), self.expect(b));
        self.tree.compare_leaves(a.leaf, b.leaf).then(a.slot.cmp(&b.slot)).then(a.off.cmp(&b.off))
    }

    /// Puts a run into a gap, in spans that are not too long; says which element is its last.
    fn insert_pieces(&mut self, gap: At, id: Id, left: Id, right: Id, content: &str) -> Id {
        let (mut gap, mut id, mut left, mut rest) = (gap, id, left, content);
        loop {
            let mut piece = rest;
            let mut len = scalars(rest);
            if len > SPAN_LEN_MAX {
                len = SPAN_LEN_MAX;
                let end = rest.char_indices().nth(len as usize).map_or(rest.len(), |(at, _)| at);
                piece = &rest[..end];
            }
            gap = self.insert_piece(gap, id, len, left, right, piece);
            rest = &rest[piece.len()..];
            left = id.plus(len - 1);
            if rest.is_empty() {
                return left;
            }
            id = id.plus(len);
        }
    }

    /// Puts at most a span's worth of elements into a gap; returns the gap behind them.
    fn insert_piece(&mut self, gap: At, id: Id, len: u32, left: Id, right: Id, piece: &str) -> At {
        let widths = Widths::of_str(piece, len);
        let start = self.content.end(id.client);
        self.content.push(id.client, piece);
        self.elements += len as usize;

        let gap = if self.is_inside(gap) { self.cut(gap) } else { gap };
        let joined = match self.goes_on(gap, id, left, right, start, len) {
            true => {
                let before = self.tree.span_mut(gap.leaf, gap.slot);
                let off = before.len + len;
                before.grow(len, piece.len() as u32);
                Some(At { off, ..gap })
            }
            false => self.joined_backward(gap, id, left, right, start, piece),
        };
        let gap = joined.unwrap_or_else(|| {
            let span = Span::live(id, len, left, right, start, piece.len() as u32);
            let slot = if gap.off == 0 { gap.slot } else { gap.slot + 1 };
            let content = &self.content;
            let measure = |span: &Span| measure(content, span);
            let (leaf, slot) = self.tree.insert_span(gap.leaf, slot, span, &mut self.places, measure);
            At { leaf, slot, off: len }
        });
        self.tree.widen(gap.leaf, widths);
        self.places.append(id, gap.leaf);
        self.hint(id, (gap.leaf, gap.slot));
        gap
    }

    fn is_inside(&self, gap: At) -> bool {
        gap.off > 0 && gap.off < self.tree.span(gap.leaf, gap.slot).len
    }

    /// Whether a new element goes on with the span that ends at a gap: typing on.
    fn goes_on(&self, gap: At, id: Id, left: Id, right: Id, start: u32, len: u32) -> bool {
        if gap.off == 0 {
            return false;
        }
        let before = self.tree.span(gap.leaf, gap.slot);
        left == before.last()
            && id == left.plus(1)
            && right == before.right
            && before.step() == 1
            && !before.is_dead()
            && before.at() + before.bytes() == start
            && before.len + len <= SPAN_LEN_MAX
    }

    /// Puts a new element before the span of its replica that stands behind a gap, when it goes on with it as
    /// typing backwards does. Says where the gap behind it is then.
    fn joined_backward(
        &mut self,
        gap: At,
        id: Id,
        left: Id,
        right: Id,
        start: u32,
        piece: &str,
    ) -> Option<At> {
        if right.client != id.client {
            return None;
        }
        let slot = if gap.off == 0 { gap.slot } else { gap.slot + 1 };
        let next = *self.tree.leaf(gap.leaf).spans().get(slot as usize)?;
        let step = id.counter.wrapping_sub(right.counter);
        let fits = next.id == right
            && next.left == left
            && !next.is_dead()
            && (next.len == 1 || next.step().unsigned_abs() == step && next.is_backward())
            && (1..=STEP_MAX).contains(&step)
            && next.at() + next.bytes() == start
            && next.len < SPAN_LEN_MAX
            && scalars(piece) == 1
            && self.is_free_between(id, right);
        fits.then(|| {
            *self.tree.span_mut(gap.leaf, slot) = next.preceded_by(id, piece.len() as u32);
            At { slot, off: 1, ..gap }
        })
    }

    /// Cuts a span in two at a gap inside it, in a leaf that then still has room for one more. Says where
    /// the gap is now, at the end of the lower part.
    pub(super) fn cut(&mut self, gap: At) -> At {
        let content = &self.content;
        let (leaf, slot) =
            self.tree.make_room(gap.leaf, gap.slot, &mut self.places, |span| measure(content, span));
        let bytes = self.bytes_at(self.tree.span(leaf, slot), gap.off);
        let upper = self.tree.span_mut(leaf, slot).cut(gap.off, bytes);
        self.tree.put(leaf, slot as usize + 1, upper);
        At { leaf, slot, off: gap.off }
    }
}

fn measure(content: &super::Content, span: &Span) -> Widths {
    if span.is_dead() {
        return Widths::default();
    }
    Widths::of_str(content.get(span.id.client, span.at(), span.bytes()), span.len)
}
