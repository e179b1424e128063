//! What every copy must hold: one linked list with everything that anybody has inserted so far, by [`naive`]. The
//! order of two elements never changes, so a copy that knows a part of it must show just that part, in that order.
//!
//! [`naive`]: crate::sequence::naive

use crate::id::{Client, Hash, Id};
use crate::map::Strategy;
use crate::sequence::naive::Sequences;
use crate::wire::put_varint;

/// The containers of a history: two that are edited, and the one in which everybody signs at the start.
pub(super) const NAMES: [&str; 3] = ["page", "notes", "roll"];

/// How many counters of each client are known.
pub(super) type Known = Vec<u32>;

#[derive(Clone, Debug)]
pub(super) struct Element {
    pub(super) id: Id,
    pub(super) left: Id,
    pub(super) right: Id,
    pub(super) c: char,
}

pub(super) struct Oracle {
    list: Sequences,
    /// The list of each container, read out.
    order: [Vec<Element>; 3],
    /// For each client and counter the deletions of that element.
    deletions: Vec<Vec<Vec<Id>>>,
    /// The replica id behind each client: not in order, so that ties are seen to go by id.
    replicas: Vec<u64>,
}

impl Oracle {
    pub(super) fn new(replicas: Vec<u64>) -> Oracle {
        let mut list = Sequences::default();
        for _ in NAMES {
            list.add_text();
        }
        let deletions = replicas.iter().map(|_| Vec::new()).collect();
        Oracle { list, order: Default::default(), deletions, replicas }
    }

    pub(super) fn insert(&mut self, container: usize, id: Id, left: Id, right: Id, content: &str) {
        let key = |client: Client| self.replicas[client as usize];
        self.list.insert(&key, container as u32, id, left, right, content);
        let order = &mut self.order[container];
        order.clear();
        self.list.runs(container as u32, &mut |run| {
            let mut left = run.left;
            for (n, c) in run.text.chars().enumerate() {
                let id = run.id.plus(n as u32);
                order.push(Element { id, left, right: run.right, c });
                left = id;
            }
        });
    }

    pub(super) fn delete(&mut self, id: Id, by: Id) {
        let deletions = &mut self.deletions[id.client as usize];
        let counter = id.counter as usize;
        deletions.resize(deletions.len().max(counter + 1), Vec::new());
        deletions[counter].push(by);
    }

    fn is_deleted(&self, id: Id, known: &Known) -> bool {
        let deletions = self.deletions[id.client as usize].get(id.counter as usize);
        deletions.is_some_and(|all| all.iter().any(|by| by.counter < known[by.client as usize]))
    }

    /// What a copy that knows so much holds of a container, each with whether it is a tombstone.
    pub(super) fn elements<'a>(
        &'a self,
        container: usize,
        known: &'a Known,
    ) -> impl Iterator<Item = (&'a Element, bool)> {
        self.order[container]
            .iter()
            .filter(|element| element.id.counter < known[element.id.client as usize])
            .map(|element| (element, self.is_deleted(element.id, known)))
    }

    /// The state hash as `INTERNALS.md` describes it, of a copy that knows so much.
    pub(super) fn state_hash(&self, known: &Known) -> Hash {
        let mut bytes = Vec::new();
        let mut clients: Vec<usize> = (0..known.len()).filter(|&client| known[client] > 0).collect();
        clients.sort_by_key(|&client| self.replicas[client]);
        bytes.extend((clients.len() as u64 * 16).to_le_bytes());
        for client in clients {
            bytes.extend(self.replicas[client].to_le_bytes());
            bytes.extend(u64::from(known[client]).to_le_bytes());
        }
        let mut containers = [0, 1, 2];
        containers.sort_by_key(|&n: &usize| NAMES[n]);
        for container in containers {
            let elements: Vec<(&Element, bool)> = self.elements(container, known).collect();
            if elements.is_empty() {
                continue;
            }
            put_varint(&mut bytes, NAMES[container].len() as u64);
            bytes.extend(NAMES[container].as_bytes());
            let goes_on = |a: &(&Element, bool), b: &(&Element, bool)| {
                let next = a.0.id.plus(1);
                b.0.id == next && b.0.left == a.0.id && b.0.right == a.0.right && b.1 == a.1
            };
            for run in elements.chunk_by(goes_on) {
                let (first, deleted) = run[0];
                for id in [first.id, first.left, first.right] {
                    let replica = if id.is_none() { 0 } else { self.replicas[id.client as usize] };
                    bytes.extend(replica.to_le_bytes());
                    put_varint(&mut bytes, u64::from(id.counter));
                }
                let text: String =
                    if deleted { String::new() } else { run.iter().map(|(element, _)| element.c).collect() };
                put_varint(&mut bytes, (run.len() as u64) << 1 | u64::from(deleted));
                put_varint(&mut bytes, text.len() as u64);
                bytes.extend(text.as_bytes());
            }
            bytes.extend([0; 8]);
        }
        // The strategy; there are no maps.
        bytes.push(Strategy::Crdt.code());
        let mut hash = [0; 16];
        hash.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
        hash
    }
}
