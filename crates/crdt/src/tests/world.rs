//! Runs a history with real documents, which exchange changes in any causal order, and compares each with the
//! oracle after every op. After every change a copy is saved, and goes on as what was loaded.

use std::collections::BTreeMap;

use super::history::{Action, History, Step, text};
use super::oracle::{Known, NAMES, Oracle};
use crate::body::{self, RawInsert, Ref};
use crate::change::Change;
use crate::document::Document;
use crate::id::{Client, Hash, Id, ReplicaId};
use crate::record::EntryWriter;

/// Replica ids behind clients, not in the order of clients.
const REPLICAS: [u64; 6] = [40, 10, 60, 20, 50, 30];

/// How a history is run.
#[derive(Clone, Copy, Default)]
pub(super) struct Options {
    /// How many of a hundred steps forge an insertion.
    pub(super) forged: u64,
    /// A planted mistake, for seeing that it is found: the oracle breaks ties the other way round.
    pub(super) wrong_ties: bool,
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) ops: usize,
    pub(super) checks: usize,
    pub(super) saves: usize,
    pub(super) inserts: usize,
    /// Insertions that have a rival: another at the same place, neither author knowing of the other.
    pub(super) contested: usize,
}

impl Seen {
    pub(super) fn add(&mut self, other: &Seen) {
        self.ops += other.ops;
        self.checks += other.checks;
        self.saves += other.saves;
        self.inserts += other.inserts;
        self.contested += other.contested;
    }
}

/// A change with what its author had.
pub(super) struct Event {
    author: Client,
    /// How many changes of each peer the author had.
    pub(super) had: Vec<usize>,
    /// How many counters of each peer are known once it is applied, as far as its author is concerned.
    counters: u32,
    pub(super) change: Change,
    pub(super) hash: Hash,
}

pub(super) struct Peer {
    document: Document,
    /// How many changes of each peer it has.
    has: Vec<usize>,
    pub(super) known: Known,
}

struct Insertion {
    container: usize,
    id: Id,
    left: Id,
    known: Known,
}

pub(super) struct World {
    /// What everybody has from the start.
    pub(super) roll: Vec<Change>,
    pub(super) peers: Vec<Peer>,
    /// Changes by author.
    pub(super) events: Vec<Vec<Event>>,
    pub(super) oracle: Oracle,
    insertions: Vec<Insertion>,
    /// State hashes by what is known.
    hashes: BTreeMap<Known, Hash>,
    options: Options,
    seen: Seen,
}

/// Runs a history.
///
/// # Panics
/// When anything is not as it should be.
pub(super) fn run(history: &History, options: Options) -> Seen {
    let mut world = World::after(history, options);
    world.finish();
    world.seen
}

impl World {
    /// As it is after the steps of a history.
    pub(super) fn after(history: &History, options: Options) -> World {
        let mut world = World::new(history.peers, options);
        for step in &history.steps {
            match step {
                Step::Edit { peer, actions } => world.edit(peer % history.peers, actions),
                Step::Forge { peer, container, left, right, letters } => {
                    world.forge(peer % history.peers, *container, (*left, *right), letters);
                }
                Step::Hear { peer, count, pick } => world.hear(peer % history.peers, *count, *pick),
            }
        }
        world
    }

    /// All sign the roll first, one after another, which gives all of them their log index.
    fn new(peers: usize, options: Options) -> World {
        let replicas = REPLICAS[..peers].to_vec();
        let of_ties = |&id: &u64| if options.wrong_ties { 100 - id } else { id };
        let mut oracle = Oracle::new(replicas.iter().map(of_ties).collect());
        let mut document = Document::new();
        let mut left = Id::NONE;
        let mut roll = Vec::new();
        for (client, &replica) in replicas.iter().enumerate() {
            let mut signing = document.clone();
            let mut edit = signing.edit(ReplicaId(replica));
            edit.insert(NAMES[2], client, "x").expect("at the end");
            let change = edit.commit(client as u64).expect("something was done");
            document.apply(change.as_ref()).expect("a good change");
            roll.push(change);
            let id = Id::new(client as Client, 0);
            oracle.insert(2, id, left, Id::NONE, "x");
            left = id;
        }
        let peer = || Peer { document: document.clone(), has: vec![0; peers], known: vec![1; peers] };
        World {
            roll,
            peers: (0..peers).map(|_| peer()).collect(),
            events: (0..peers).map(|_| Vec::new()).collect(),
            oracle,
            insertions: Vec::new(),
            hashes: BTreeMap::new(),
            options,
            seen: Seen::default(),
        }
    }

    fn edit(&mut self, n: usize, actions: &[Action]) {
        let had = self.peers[n].has.clone();
        let first = self.peers[n].known[n];
        let mut deleted_last = None;
        for action in actions {
            self.act(n, action, &mut deleted_last);
            self.check(n);
        }
        let peer = &mut self.peers[n];
        let Some(change) = peer.document.edit(ReplicaId(REPLICAS[n])).commit(0) else { return };
        assert_eq!(change.counter, u64::from(first));
        assert_eq!(change.next_counter, u64::from(peer.known[n]));
        let hash = peer.document.hash_of(change.as_ref()).expect("its own change").1;
        peer.has[n] += 1;
        let counters = peer.known[n];
        self.events[n].push(Event { author: n as Client, had, counters, change, hash });
        self.seen.ops += actions.len();
        self.save_and_load(n);
    }

    /// One action at a peer and, independently of what the peer's document says, in the oracle.
    fn act(&mut self, n: usize, action: &Action, deleted_last: &mut Option<Id>) {
        let World { peers, oracle, insertions, .. } = self;
        let peer = &mut peers[n];
        let &(Action::Insert { container, at, .. } | Action::Delete { container, at, .. }) = action;
        let view: Vec<(Id, bool)> =
            oracle.elements(container, &peer.known).map(|(element, dead)| (element.id, dead)).collect();
        let visible: Vec<usize> = (0..view.len()).filter(|&place| !view[place].1).collect();
        let at = visible.len() * at.min(100) / 100;
        let id = Id::new(n as Client, peer.known[n]);
        match action {
            Action::Insert { letters, .. } => {
                let place = at.checked_sub(1).map(|before| visible[before]);
                let left = place.map_or(Id::NONE, |place| view[place].0);
                let right = view.get(place.map_or(0, |place| place + 1)).map_or(Id::NONE, |view| view.0);
                let content = text(letters);
                let mut edit = peer.document.edit(ReplicaId(REPLICAS[n]));
                edit.insert(NAMES[container], at, &content).expect("it is within the text");
                if letters.is_empty() {
                    return;
                }
                oracle.insert(container, id, left, right, &content);
                insertions.push(Insertion { container, id, left, known: peer.known.clone() });
                peer.known[n] += letters.len() as u32;
                *deleted_last = None;
            }
            Action::Delete { len, .. } => {
                let range = at..(at + len).min(visible.len());
                let mut edit = peer.document.edit(ReplicaId(REPLICAS[n]));
                edit.delete(NAMES[container], range.clone()).expect("it is within the text");
                if range.is_empty() {
                    return;
                }
                // Deletions in a row are one op.
                let by = *deleted_last.get_or_insert(id);
                for place in &visible[range] {
                    oracle.delete(view[*place].0, by);
                }
                peer.known[n] = by.counter + 1;
            }
        }
    }

    /// An insertion of a peer between any two elements it knows, or none.
    fn forge(&mut self, n: usize, container: usize, (left, right): (usize, usize), letters: &[usize]) {
        let peer = &mut self.peers[n];
        let view: Vec<(Id, Id)> = self
            .oracle
            .elements(container, &peer.known)
            .map(|(element, _)| (element.id, element.right))
            .collect();
        let pick = |n: usize| (n % (view.len() + 1)).checked_sub(1).map_or((Id::NONE, Id::NONE), |n| view[n]);
        let ((left, right_of_left), (right, _)) = (pick(left), pick(right));
        let id = Id::new(n as Client, peer.known[n]);
        // Log indices are as clients here.
        let reference = |to: Id| match to {
            to if to.is_none() => Ref::None,
            to if to.client == id.client => Ref::Own(u64::from(id.counter - to.counter)),
            to => Ref::Other { index: u64::from(to.client), counter: u64::from(to.counter) },
        };
        let inherits = reference(left) == Ref::Own(1) && right == right_of_left;
        let content = text(letters);
        let raw = RawInsert {
            left: reference(left),
            right: if inherits { Ref::Inherited } else { reference(right) },
            name: (left.is_none() && right.is_none()).then_some(NAMES[container]),
            text: &content,
            len: letters.len() as u32,
        };
        let mut body = Vec::new();
        body::put_insert(&mut body, &raw, false);
        let (counter, next_counter) = (u64::from(id.counter), u64::from(id.counter) + letters.len() as u64);
        let change = Change { replica: ReplicaId(REPLICAS[n]), counter, next_counter, base: 0, body };
        let applied = peer.document.apply(change.as_ref()).expect("origins may be any elements");
        assert_eq!(applied.next_counter, next_counter);
        self.oracle.insert(container, id, left, right, &content);
        peer.known[n] += letters.len() as u32;
        let (had, counters) = (peer.has.clone(), peer.known[n]);
        peer.has[n] += 1;
        self.events[n].push(Event { author: n as Client, had, counters, change, hash: applied.hash });
        self.check(n);
        self.save_and_load(n);
    }

    fn hear(&mut self, n: usize, count: usize, pick: usize) {
        for _ in 0..count {
            if !self.hear_one(n, pick) {
                return;
            }
            self.save_and_load(n);
        }
    }

    fn hear_one(&mut self, n: usize, pick: usize) -> bool {
        let peer = &mut self.peers[n];
        let ready: Vec<&Event> = self
            .events
            .iter()
            .zip(&peer.has)
            .filter_map(|(events, &has)| events.get(has))
            .filter(|event| event.had.iter().zip(&peer.has).all(|(had, has)| had <= has))
            .collect();
        if ready.is_empty() {
            return false;
        }
        let event = ready[pick % ready.len()];
        let applied = peer.document.apply(event.change.as_ref()).expect("a good change");
        assert_eq!(applied.next_counter, u64::from(event.counters));
        assert_eq!(applied.hash, event.hash, "a change has one hash");
        peer.has[event.author as usize] += 1;
        peer.known[event.author as usize] = event.counters;
        self.check(n);
        true
    }

    /// The tree is sound, and holds exactly what the oracle says.
    fn check(&mut self, n: usize) {
        self.seen.checks += 1;
        let Peer { document, known, .. } = &self.peers[n];
        document.sequences.check_invariants();
        for (container, name) in NAMES.iter().enumerate() {
            let mut expected = self.oracle.elements(container, known);
            let Some(&text) = document.containers.get(*name) else {
                assert!(expected.next().is_none(), "{name} is missing");
                continue;
            };
            document.sequences.runs(text, &mut |run| {
                let mut left = run.left;
                let mut chars = run.text.chars();
                for counter in 0..run.len {
                    let id = run.id.plus(counter);
                    let Some((element, deleted)) = expected.next() else { panic!("{id:?} is too much") };
                    assert_eq!((id, left, run.right), (element.id, element.left, element.right));
                    assert_eq!(run.deleted, deleted, "{id:?}");
                    assert_eq!(chars.next(), (!deleted).then_some(element.c), "{id:?}");
                    left = id;
                }
            });
            assert!(expected.next().is_none(), "{name} is cut off");
        }
    }

    /// Whoever knows the same has the same state hash, which is the oracle's; so has what is loaded from saved
    /// bytes, and that goes on in its place.
    fn save_and_load(&mut self, n: usize) {
        self.seen.saves += 1;
        let peer = &mut self.peers[n];
        let hash = peer.document.state_hash();
        assert_eq!(*self.hashes.entry(peer.known.clone()).or_insert(hash), hash);
        if !self.options.wrong_ties {
            assert_eq!(hash, self.oracle.state_hash(&peer.known), "the state hash is as described");
        }
        let bytes = peer.document.encode();
        let loaded = Document::decode(&bytes).expect("what was saved");
        assert_eq!(loaded.state_hash(), hash);
        assert_eq!(loaded.encode(), bytes, "saving again gives the same bytes");
        peer.document = loaded;
        self.check(n);
    }

    /// All changes as a log: authors in order of client, each as far as it can go, again and again.
    fn log(&self) -> (u32, Vec<u8>) {
        let mut run = EntryWriter::new();
        for (client, change) in self.roll.iter().enumerate() {
            run.push(client as u64 + 1, client as u32, Some(change.replica), 0, &change.body);
        }
        let mut done = vec![0; self.events.len()];
        let mut last = 0;
        while last != run.count() {
            last = run.count();
            for (client, events) in self.events.iter().enumerate() {
                while let Some(event) = events.get(done[client])
                    && event.had.iter().zip(&done).all(|(had, done)| had <= done)
                {
                    run.push(u64::from(run.count()) + 1, client as u32, None, 0, &event.change.body);
                    done[client] += 1;
                }
            }
        }
        (run.count(), run.finish())
    }

    /// Everybody hears everything, and so does one who was not there, and one who reads the log.
    pub(super) fn finish(&mut self) {
        let peers = self.peers.len();
        let late = World::new(peers, self.options).peers.remove(0);
        self.peers.push(late);
        for n in 0..=peers {
            while self.hear_one(n, n * 7) {}
            self.save_and_load(n);
            let all = self.peers[n].has.iter().zip(&self.events).all(|(&has, events)| has == events.len());
            assert!(all, "everything can be delivered");
        }
        assert!(self.peers.iter().all(|peer| peer.known == self.peers[0].known));
        let mut reader = Document::new();
        let (count, log) = self.log();
        reader.replay(1, count, &log, 0).expect("a good log");
        assert_eq!(reader.state_hash(), self.peers[0].document.state_hash());
        self.seen.inserts += self.insertions.len();
        let knows = |a: &Insertion, b: &Insertion| b.id.counter < a.known[b.id.client as usize];
        let has_rival = |a: &&Insertion| {
            self.insertions.iter().any(|b| {
                a.container == b.container
                    && a.left == b.left
                    && a.id.client != b.id.client
                    && !knows(a, b)
                    && !knows(b, a)
            })
        };
        self.seen.contested += self.insertions.iter().filter(has_rival).count();
    }
}
