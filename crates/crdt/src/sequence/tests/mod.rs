//! Random histories without any server: peers insert, delete and hear of one another in any causal order.
//! Every peer keeps the tree and the linked list side by side, and both must agree after every op.

mod crowd;
mod traces;

use super::{Run, Sequences, naive};
use crate::id::{Client, Id};

/// A small generator of our own, so that a seed means the same for ever.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub(crate) fn at(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn text(&mut self, len: u64) -> String {
        const LETTERS: [char; 12] = ['a', 'b', 'c', 'd', 'e', 'f', ' ', '\n', 'ä', 'ß', '語', '🎉'];
        (0..len).map(|_| LETTERS[self.below(12) as usize]).collect()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert { id: Id, left: Id, right: Id, content: String },
    Delete { id: Id, len: u32 },
}

/// An op with what its author knew: how many counters of each client.
#[derive(Clone, Debug)]
struct Event {
    client: Client,
    counter: u32,
    counters: u32,
    knew: Vec<u32>,
    op: Op,
}

#[derive(Clone)]
struct Peer {
    tree: Sequences,
    naive: naive::Sequences,
    have: Vec<u32>,
}

/// The replica ids behind clients: not in the order of clients, so that ties are seen to go by id.
fn key(client: Client) -> u64 {
    [40, 10, 60, 20, 50, 30][client as usize]
}

impl Peer {
    fn new(peers: usize) -> Peer {
        let mut peer =
            Peer { tree: Sequences::default(), naive: naive::Sequences::default(), have: vec![0; peers] };
        peer.tree.add_text();
        peer.naive.add_text();
        peer
    }

    fn ready_for(&self, event: &Event) -> bool {
        self.have[event.client as usize] == event.counter
            && event.knew.iter().zip(&self.have).all(|(knew, have)| knew <= have)
    }

    fn apply(&mut self, event: &Event) {
        match &event.op {
            Op::Insert { id, left, right, content } => {
                self.tree.insert(&key, 0, *id, *left, *right, content);
                self.naive.insert(&key, 0, *id, *left, *right, content);
            }
            Op::Delete { id, len } => {
                let (mut told, mut expected) = (Vec::new(), Vec::new());
                self.tree.delete(*id, *len, Some(&mut |_, at, n| (0..n).for_each(|_| told.push(at))));
                self.naive.delete(*id, *len, &mut |_, at, n| (0..n).for_each(|_| expected.push(at)));
                assert_eq!(told, expected);
            }
        }
        self.have[event.client as usize] += event.counters;
    }

    fn check(&self) {
        self.tree.check_invariants();
        assert_eq!(runs(|on| self.tree.runs(0, on)), runs(|on| self.naive.runs(0, on)));
        assert_eq!(self.tree.widths(0), self.naive.widths(0));
    }

    /// Every question, at every place.
    fn check_answers(&self) {
        let widths = self.naive.widths(0);
        let len = widths.scalars as usize;
        for at in 0..=len {
            assert_eq!(self.tree.origins_at(0, at), self.naive.origins_at(0, at), "origins at {at}");
            assert_eq!(self.tree.widths_before(0, at), self.naive.widths_before(0, at));
            let (mut a, mut b) = (String::new(), String::new());
            self.tree.write(0, at / 2..at, &mut a);
            self.naive.write(0, at / 2..at, &mut b);
            assert_eq!(a, b);
        }
        for offset in 0..=widths.utf16 {
            let enough = |sum: super::Widths| sum.utf16 > offset;
            assert_eq!(self.tree.widths_until(0, &enough), self.naive.widths_until(0, &enough));
        }
        for line in 1..=widths.newlines {
            let enough = |sum: super::Widths| sum.newlines >= line;
            assert_eq!(self.tree.widths_until(0, &enough), self.naive.widths_until(0, &enough));
        }
        for (client, &have) in self.have.iter().enumerate() {
            for counter in 0..have + 1 {
                let id = Id::new(client as u32, counter);
                assert_eq!(self.tree.position(id), self.naive.position(id));
                let without_guess =
                    |place: super::Place| super::Place { guess: super::Place::NO_GUESS, ..place };
                assert_eq!(self.tree.find(id).map(without_guess), self.naive.find(id));
                assert_eq!(self.tree.find_all(id, 3).err(), self.naive.first_missing(id, 3));
            }
        }
    }
}

type OwnedRun = (Id, u32, Id, Id, bool, String);

fn runs(read: impl Fn(&mut dyn FnMut(Run<'_>))) -> Vec<OwnedRun> {
    let mut runs = Vec::new();
    read(&mut |run| runs.push((run.id, run.len, run.left, run.right, run.deleted, run.text.to_owned())));
    runs
}

/// How a history is made.
#[derive(Clone, Copy)]
struct Shape {
    peers: u64,
    events: usize,
    /// Chance in percent that a step delivers instead of editing.
    deliver: u64,
    /// Whether origins are any two elements, as no honest editor makes them.
    hostile: bool,
}

struct History {
    events: Vec<Event>,
    peers: Vec<Peer>,
}

fn history(random: &mut Random, shape: Shape, check: bool) -> History {
    let mut peers: Vec<Peer> = (0..shape.peers).map(|_| Peer::new(shape.peers as usize)).collect();
    let mut events: Vec<Event> = Vec::new();
    // Everybody likes to work at the same spots: fractions of the text.
    let spots = [0, random.below(100), 100];
    while events.len() < shape.events {
        let n = random.below(shape.peers) as usize;
        if random.chance(shape.deliver) {
            deliver_some(random, &mut peers[n], &events);
        } else if let Some(event) = edit(random, &peers[n], n as Client, shape, spots) {
            peers[n].apply(&event);
            events.push(event);
        }
        if check {
            peers[n].check();
        }
    }
    History { events, peers }
}

fn deliver_some(random: &mut Random, peer: &mut Peer, events: &[Event]) {
    for _ in 0..1 + random.below(4) {
        let ready: Vec<_> = events.iter().filter(|event| peer.ready_for(event)).collect();
        if ready.is_empty() {
            return;
        }
        peer.apply(ready[random.below(ready.len() as u64) as usize]);
    }
}

fn edit(random: &mut Random, peer: &Peer, client: Client, shape: Shape, spots: [u64; 3]) -> Option<Event> {
    let len = peer.naive.widths(0).scalars as u64;
    let counter = peer.have[client as usize];
    let event = |counters, op| Event { client, counter, counters, knew: peer.have.clone(), op };
    if len > 0 && random.chance(25) {
        let from = random.below(len) as usize;
        let to = (from + 1 + random.below(4) as usize).min(len as usize);
        let mut ids = Vec::new();
        peer.tree.ids(0, from..to, &mut |id, len| ids.push((id, len)));
        let mut expected = Vec::new();
        peer.naive.ids(0, from..to, &mut |id, _| expected.push(id));
        assert_eq!(
            ids.iter().flat_map(|&(id, len)| (0..len).map(move |n| id.plus(n))).collect::<Vec<_>>(),
            expected
        );
        let (id, len) = ids[random.below(ids.len() as u64) as usize];
        return Some(event(1, Op::Delete { id, len }));
    }
    let id = Id::new(client, counter);
    let (left, right) = if shape.hostile {
        let mut any = || match random.below(peer.have.len() as u64 + 1) {
            0 => Some(Id::NONE),
            n if peer.have[n as usize - 1] == 0 => None,
            n => {
                let counter = random.below(u64::from(peer.have[n as usize - 1])) as u32;
                let id = Id::new(n as u32 - 1, counter);
                peer.naive.find(id).map(|_| id)
            }
        };
        (any()?, any()?)
    } else {
        let at = match random.below(10) {
            n @ 0..7 => len * spots[n as usize % 3] / 100,
            _ => random.below(len + 1),
        };
        let origins = peer.naive.origins_at(0, at as usize);
        assert_eq!(peer.tree.origins_at(0, at as usize), origins);
        origins
    };
    let content = {
        let n = 1 + random.below(3);
        random.text(n)
    };
    let counters = content.chars().count() as u32;
    Some(event(counters, Op::Insert { id, left, right, content }))
}

/// How many insertions there are, and how many have a rival: another with the same left origin, neither
/// knowing the other.
fn rivals(events: &[Event]) -> (usize, usize) {
    let inserts: Vec<(&Event, Id)> = events
        .iter()
        .filter_map(|event| match event.op {
            Op::Insert { left, .. } => Some((event, left)),
            Op::Delete { .. } => None,
        })
        .collect();
    let knows = |a: &Event, b: &Event| a.client == b.client || a.knew[b.client as usize] > b.counter;
    let contested = inserts
        .iter()
        .filter(|(a, left)| inserts.iter().any(|(b, other)| left == other && !knows(a, b) && !knows(b, a)));
    (inserts.len(), contested.count())
}

fn finish(history: &mut History, random: &mut Random) {
    for peer in &mut history.peers {
        loop {
            let ready: Vec<_> = history.events.iter().filter(|event| peer.ready_for(event)).collect();
            if ready.is_empty() {
                break;
            }
            peer.apply(ready[random.below(ready.len() as u64) as usize]);
        }
        assert!(history.events.iter().all(|event| peer.have[event.client as usize] > event.counter));
    }
}

fn assert_converged(history: &History, seed: u64) {
    let first = runs(|on| history.peers[0].tree.runs(0, on));
    for peer in &history.peers[1..] {
        assert_eq!(runs(|on| peer.tree.runs(0, on)), first, "seed {seed}");
    }
}

/// The order as FugueMax's paper gives it: a tree of left and right children, walked depth first. Knows
/// nothing of lists and loops.
fn tree_order(events: &[Event]) -> Vec<Id> {
    #[derive(Default)]
    struct Node {
        left_origin: usize,
        right_origin: usize,
        id: Option<Id>,
        lefts: Vec<usize>,
        rights: Vec<usize>,
    }
    const END: usize = usize::MAX;
    fn walk(nodes: &[Node], node: usize, out: &mut Vec<usize>) {
        for &left in &nodes[node].lefts {
            walk(nodes, left, out);
        }
        out.push(node);
        for &right in &nodes[node].rights {
            walk(nodes, right, out);
        }
    }
    let mut nodes = vec![Node { right_origin: END, left_origin: END, ..Node::default() }];
    let mut by_id = std::collections::BTreeMap::from([(Id::NONE, 0)]);
    for event in events {
        let Op::Insert { id, left, right, content } = &event.op else { continue };
        let mut left = by_id[left];
        let mut right = if right.is_none() { END } else { by_id[right] };
        for n in 0..content.chars().count() as u32 {
            let mut order = Vec::new();
            walk(&nodes, 0, &mut order);
            let position = |node: usize| order.iter().position(|&n| n == node).unwrap_or(END);
            if n == 0 && position(right) <= position(left) {
                right = END;
            }
            let new = nodes.len();
            let id = id.plus(n);
            let is_left_child = right != END && nodes[right].left_origin == left;
            // Before the first sibling that must come later.
            if is_left_child {
                let later = |&s: &usize| key(nodes[s].id.unwrap().client) > key(id.client);
                let at = nodes[right].lefts.iter().position(later).unwrap_or(nodes[right].lefts.len());
                nodes[right].lefts.insert(at, new);
            } else {
                let later = |&s: &usize| {
                    let (theirs, ours) = (position(nodes[s].right_origin), position(right));
                    theirs < ours || (theirs == ours && key(nodes[s].id.unwrap().client) > key(id.client))
                };
                let at = nodes[left].rights.iter().position(later).unwrap_or(nodes[left].rights.len());
                nodes[left].rights.insert(at, new);
            }
            nodes.push(Node { left_origin: left, right_origin: right, id: Some(id), ..Node::default() });
            by_id.insert(id, new);
            left = new;
        }
    }
    let mut order = Vec::new();
    walk(&nodes, 0, &mut order);
    order.into_iter().filter_map(|node| nodes[node].id).collect()
}

fn many(seeds: std::ops::Range<u64>, hostile: bool) -> (usize, usize) {
    let (mut inserts, mut contested) = (0, 0);
    for seed in seeds {
        let random = &mut Random(seed);
        let shape = Shape {
            peers: 2 + random.below(5),
            events: 10 + random.below(30) as usize,
            deliver: 20 + random.below(60),
            hostile,
        };
        let mut history = history(random, shape, true);
        finish(&mut history, random);
        for peer in &history.peers {
            peer.check();
        }
        history.peers[0].check_answers();
        assert_converged(&history, seed);
        let order: Vec<Id> = runs(|on| history.peers[0].tree.runs(0, on))
            .into_iter()
            .flat_map(|(id, len, ..)| (0..len).map(move |n| id.plus(n)))
            .collect();
        assert_eq!(order, tree_order(&history.events), "seed {seed}");
        let (all, with_rival) = rivals(&history.events);
        inserts += all;
        contested += with_rival;
    }
    (inserts, contested)
}

// enforces: I-5
#[test]
fn every_copy_agrees_with_a_list_of_its_own_and_with_the_tree_of_the_paper() {
    let (inserts, contested) = many(0..4_000, false);
    let share = contested * 100 / inserts;
    assert!(share >= 30, "{contested} of {inserts} insertions had a rival, {share} %");
}

// enforces: I-5
#[test]
fn origins_that_no_honest_editor_makes_converge_too() {
    many(0..4_000, true);
}

/// Delivers in every order that causality allows, and counts the orders.
fn every_order(peer: &Peer, events: &[Event], expected: &[OwnedRun]) -> usize {
    let ready: Vec<_> = events.iter().filter(|event| peer.ready_for(event)).collect();
    if ready.is_empty() {
        assert!(events.iter().all(|event| peer.have[event.client as usize] > event.counter));
        assert_eq!(runs(|on| peer.tree.runs(0, on)), expected);
        return 1;
    }
    let deliver = |event: &&Event| {
        let mut peer = peer.clone();
        peer.apply(event);
        every_order(&peer, events, expected)
    };
    ready.iter().map(deliver).sum()
}

// enforces: I-5
#[test]
fn every_order_of_delivery_gives_the_same_text() {
    let mut orders = 0;
    for seed in 0..1_000 {
        let random = &mut Random(seed);
        let peers = 2 + random.below(3);
        let hostile = random.chance(30);
        let mut history = history(random, Shape { peers, events: 6, deliver: 20, hostile }, false);
        finish(&mut history, random);
        let expected = runs(|on| history.peers[0].tree.runs(0, on));
        orders += every_order(&Peer::new(peers as usize), &history.events, &expected);
    }
    assert!(orders > 20_000, "{orders} orders are too few to mean much");
}

/// Inserts single characters, each (character, client, left, right) by characters; origins `^` and `$` are the
/// start and the end.
fn worked(rows: &[(char, Client, char, char)]) -> String {
    let mut peer = Peer::new(6);
    let mut ids = std::collections::BTreeMap::from([('^', Id::NONE), ('$', Id::NONE)]);
    for &(c, client, left, right) in rows {
        let counter = peer.have[client as usize];
        let id = Id::new(client, counter);
        let op = Op::Insert { id, left: ids[&left], right: ids[&right], content: c.to_string() };
        let knew = peer.have.clone();
        peer.apply(&Event { client, counter, counters: 1, knew, op });
        peer.check();
        ids.insert(c, id);
    }
    let mut text = String::new();
    peer.tree.write(0, 0..rows.len(), &mut text);
    text
}

/// The tables of `INTERNALS.md`. The replica ids behind clients 0 to 5 are 40, 10, 60, 20, 50, 30.
#[test]
fn the_worked_tables() {
    let frame = [('(', 0, '^', '$'), (')', 0, '(', '$')];
    let three = [('a', 1, '(', ')'), ('b', 3, '(', ')'), ('c', 5, '(', ')')];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let rows = [&frame[..], &order.map(|n| three[n])].concat();
        assert_eq!(worked(&rows), "(abc)");
        assert_eq!(worked(&[&rows[..], &[('B', 3, 'b', ')')]].concat()), "(abBc)", "typing on");
        assert_eq!(worked(&[&rows[..], &[('B', 3, '(', 'b')]].concat()), "(aBbc)", "typing backwards");
    }
    let before = [('G', 0, '^', '$'), ('i', 3, '^', 'G'), ('a', 5, '^', 'G')];
    let (o, s) = (('O', 4, 'i', 'G'), ('S', 1, 'i', 'a'));
    assert_eq!(worked(&[&before[..], &[o, s]].concat()), "iOSaG");
    assert_eq!(worked(&[&before[..], &[s, o]].concat()), "iOSaG");
    let before = [('x', 0, '^', '$'), ('r', 3, 'x', '$'), ('y', 5, 'x', 'r')];
    assert_eq!(worked(&[&before[..], &[('n', 1, 'x', '$')]].concat()), "xnyr");
    assert_eq!(worked(&[&before[..], &[('n', 4, 'x', '$')]].concat()), "xyrn");
}
