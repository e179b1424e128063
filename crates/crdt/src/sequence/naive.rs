//! The sequence as the specification tells it: a linked list of character nodes, each with its id, its
//! two origins, its content and a tombstone. Slow, and easy to see right: what the tests compare with.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Place, Run, Widths};
use crate::id::{Client, Id};

const END: usize = usize::MAX;

#[derive(Clone, Debug)]
struct CharacterNode {
    id: Id,
    origin_left: Id,
    origin_right: Id,
    content: char,
    is_deleted: bool,
    next: usize,
}

/// All texts of a document, each a linked list through one vector of nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sequences {
    nodes: Vec<CharacterNode>,
    texts: Vec<usize>,
    node_text: Vec<u32>,
    by_id: BTreeMap<Id, usize>,
}

impl Sequences {
    pub(crate) fn add_text(&mut self) -> u32 {
        self.texts.push(END);
        self.texts.len() as u32 - 1
    }

    /// Integrates one character where FugueMax's tree has it. `INTERNALS.md` derives the loop.
    fn insert_one(
        &mut self,
        key: &dyn Fn(Client) -> u64,
        text: u32,
        id: Id,
        (left, right): (Id, Id),
        goes_on: bool,
        c: char,
    ) {
        let order = self.order(text);
        // Positions count from 1; 0 is the start of the text, `end` its end.
        let mut position = vec![0; self.nodes.len()];
        for (n, &node) in order.iter().enumerate() {
            position[node] = n + 1;
        }
        let end = order.len() + 1;
        let left_position = |id: Id| if id.is_none() { 0 } else { position[self.by_id[&id]] };
        let right_position = |id: Id| if id.is_none() { end } else { position[self.by_id[&id]] };
        let left_at = left_position(left);
        // A right origin that is not behind the left one counts as none. What goes on with a run has the
        // right origin of its start, whatever that is.
        let right = if !goes_on && right_position(right) <= left_at { Id::NONE } else { right };
        let right_at = right_position(right);

        // A node with these origins is a left child of its right origin, if that has the same left origin;
        // else it is a right child of its left origin.
        let is_left_child = |right: Id| {
            !right.is_none() && left_position(self.nodes[self.by_id[&right]].origin_left) == left_at
        };

        let mut place = left_at + 1;
        let mut undecided = false;
        for at in left_at + 1..=end {
            if !undecided {
                place = at;
            }
            if at == right_at && is_left_child(right) {
                place = at;
                break;
            }
            let Some(&other) = order.get(at - 1) else { break };
            let other = &self.nodes[other];
            if left_position(other.origin_left) < left_at {
                break;
            }
            if left_position(other.origin_left) > left_at {
                continue;
            }
            // A rival: the same left origin.
            let other_right = right_position(other.origin_right);
            if other_right == right_at {
                if key(id.client) < key(other.id.client) {
                    break;
                }
                undecided = false;
            } else if is_left_child(right) {
                undecided = is_left_child(other.origin_right) && other_right < right_at;
            } else if is_left_child(other.origin_right) {
                undecided = true;
            } else if other_right < right_at {
                break;
            } else {
                undecided = false;
            }
        }

        let node = self.nodes.len();
        let next = order.get(place - 1).copied().unwrap_or(END);
        self.nodes.push(CharacterNode {
            id,
            origin_left: left,
            origin_right: right,
            content: c,
            is_deleted: false,
            next,
        });
        self.node_text.push(text);
        self.by_id.insert(id, node);
        match place.checked_sub(2) {
            None => self.texts[text as usize] = node,
            Some(before) => self.nodes[order[before]].next = node,
        }
    }

    /// Integrates a run of characters and says where it starts, in visible scalars.
    pub(crate) fn insert(
        &mut self,
        key: &dyn Fn(Client) -> u64,
        text: u32,
        id: Id,
        left: Id,
        right: Id,
        content: &str,
    ) {
        let mut left = left;
        let mut right = right;
        for (n, c) in content.chars().enumerate() {
            let id = id.plus(n as u32);
            self.insert_one(key, text, id, (left, right), n > 0, c);
            right = self.nodes[self.by_id[&id]].origin_right;
            left = id;
        }
    }

    /// Deletes `len` elements from `id` on; tells the visible ones one by one, with their places at that time.
    pub(crate) fn delete(&mut self, id: Id, len: u32, on: &mut dyn FnMut(u32, usize, usize)) {
        for n in 0..len {
            let id = id.plus(n);
            let (text, at, deleted) = self.position(id).expect("checked to be elements");
            if !deleted {
                on(text, at, 1);
                let node = self.by_id[&id];
                self.nodes[node].is_deleted = true;
            }
        }
    }

    pub(crate) fn find(&self, id: Id) -> Option<Place> {
        let &node = self.by_id.get(&id)?;
        let right = self.nodes[node].origin_right;
        let next = self.nodes.get(self.nodes[node].next).map_or(Id::NONE, |next| next.id);
        let left = self.nodes[node].origin_left;
        Some(Place { text: self.node_text[node], left, right, next, guess: Place::NO_GUESS })
    }

    /// The first of these ids that is not an element.
    pub(crate) fn first_missing(&self, id: Id, len: u32) -> Option<Id> {
        (0..len).map(|n| id.plus(n)).find(|id| !self.by_id.contains_key(id))
    }

    /// Text, visible scalars before it, and whether it is deleted.
    pub(crate) fn position(&self, id: Id) -> Option<(u32, usize, bool)> {
        let &node = self.by_id.get(&id)?;
        let text = self.node_text[node];
        let before = self.order(text).into_iter().take_while(|&n| n != node);
        let at = before.filter(|&n| !self.nodes[n].is_deleted).count();
        Some((text, at, self.nodes[node].is_deleted))
    }

    /// The neighbours, tombstones included, of an insertion after `at` visible scalars.
    pub(crate) fn origins_at(&self, text: u32, at: usize) -> (Id, Id) {
        let order = self.order(text);
        let mut visible = 0;
        let mut left = 0;
        for (n, &node) in order.iter().enumerate() {
            if visible == at {
                break;
            }
            if !self.nodes[node].is_deleted {
                visible += 1;
                left = n + 1;
            }
        }
        let id_of = |n: usize| order.get(n).map_or(Id::NONE, |&node| self.nodes[node].id);
        (if left == 0 { Id::NONE } else { id_of(left - 1) }, id_of(left))
    }

    /// The ids of visible scalars, in order.
    pub(crate) fn ids(&self, text: u32, range: Range<usize>, on: &mut dyn FnMut(Id, u32)) {
        for node in self.visible(text).skip(range.start).take(range.len()) {
            on(node.id, 1);
        }
    }

    pub(crate) fn write(&self, text: u32, range: Range<usize>, out: &mut String) {
        out.extend(self.visible(text).skip(range.start).take(range.len()).map(|node| node.content));
    }

    pub(crate) fn widths(&self, text: u32) -> Widths {
        self.visible(text).fold(Widths::default(), |sum, node| sum + Widths::of(node.content))
    }

    /// Widths of the first `at` visible scalars.
    pub(crate) fn widths_before(&self, text: u32, at: usize) -> Widths {
        self.visible(text).take(at).fold(Widths::default(), |sum, node| sum + Widths::of(node.content))
    }

    /// Widths of the longest prefix with which `enough` does not yet hold.
    pub(crate) fn widths_until(&self, text: u32, enough: &dyn Fn(Widths) -> bool) -> Widths {
        let mut sum = Widths::default();
        for node in self.visible(text) {
            let next = sum + Widths::of(node.content);
            if enough(next) {
                return sum;
            }
            sum = next;
        }
        sum
    }

    /// All runs of a text in order, maximal ones.
    pub(crate) fn runs(&self, text: u32, on: &mut dyn FnMut(Run<'_>)) {
        let mut content = String::new();
        let mut run: Option<(Id, u32, Id, Id, bool)> = None;
        for &node in &self.order(text) {
            let node = &self.nodes[node];
            match &mut run {
                Some((id, len, _, right, deleted))
                    if id.plus(*len) == node.id
                        && id.plus(*len - 1) == node.origin_left
                        && *right == node.origin_right
                        && *deleted == node.is_deleted =>
                {
                    *len += 1;
                }
                _ => {
                    if let Some((id, len, left, right, deleted)) = run {
                        on(Run { id, len, step: 1, left, right, deleted, text: &content });
                    }
                    content.clear();
                    run = Some((node.id, 1, node.origin_left, node.origin_right, node.is_deleted));
                }
            }
            if !node.is_deleted {
                content.push(node.content);
            }
        }
        if let Some((id, len, left, right, deleted)) = run {
            on(Run { id, len, step: 1, left, right, deleted, text: &content });
        }
    }

    fn order(&self, text: u32) -> Vec<usize> {
        let mut order = Vec::new();
        let mut node = self.texts[text as usize];
        while node != END {
            order.push(node);
            node = self.nodes[node].next;
        }
        order
    }

    fn visible(&self, text: u32) -> impl Iterator<Item = &CharacterNode> {
        self.order(text).into_iter().map(|node| &self.nodes[node]).filter(|node| !node.is_deleted)
    }
}
