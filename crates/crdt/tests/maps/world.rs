//! A log with its owner and clients, whose maps are compared with the oracle after every step.

use std::collections::BTreeMap;

use manyhands_crdt::{
    Admission, Change, Document, EditError, Hlc, Limits, Patch, Refusal, ReplicaId, Strategy,
};

use crate::common::Log;
use crate::naive::{self, Write};

/// A change of a client, with its place in the log once it has one.
#[derive(Clone)]
struct Sent {
    change: Change,
    writes: Vec<Write>,
    seq: Option<u64>,
}

#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) replica: ReplicaId,
    pub(crate) document: Document,
    outbox: Vec<Sent>,
    /// Writes of the edit that is not committed.
    pending: Vec<Write>,
    /// What somebody shows who only ever saw local edits and patches.
    view: BTreeMap<(String, String), String>,
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) strategy: Strategy,
    pub(crate) log: Log,
    /// The writes of all entries, in order.
    pub(crate) writes: Vec<Write>,
    pub(crate) clients: Vec<Client>,
    /// The changes of all entries, in order.
    pub(crate) changes: Vec<Change>,
    /// Whether there is text beside the maps; then the oracle does not know the state hash.
    texts: bool,
    pub(crate) conflicts: u64,
    replicas: u64,
}

/// What is done to a key.
#[derive(Clone, Debug)]
pub(crate) struct Put<'p> {
    pub(crate) map: &'p str,
    pub(crate) key: &'p str,
    pub(crate) value: Option<&'p str>,
    pub(crate) stamp: Hlc,
    pub(crate) expect: Option<u64>,
}

impl World {
    pub(crate) fn new(strategy: Strategy, clients: u64) -> World {
        let document = || Document::with_strategy(strategy, Limits::default());
        let mut world = World {
            strategy,
            log: Log { document: document(), ..Log::default() },
            writes: Vec::new(),
            clients: Vec::new(),
            changes: Vec::new(),
            texts: false,
            conflicts: 0,
            replicas: 0,
        };
        for _ in 0..clients {
            let replica = world.draw();
            let (outbox, pending, view) = Default::default();
            world.clients.push(Client { replica, document: document(), outbox, pending, view });
        }
        world
    }

    /// Ids in no order, as random ones are.
    fn draw(&mut self) -> ReplicaId {
        self.replicas += 1;
        ReplicaId(self.replicas * 0x9e37_79b9 % 100_003 + 1)
    }

    /// The writes that a client knows: the log as far as it heard, and its own on top.
    fn known(&self, n: usize) -> impl Iterator<Item = &Write> {
        let client = &self.clients[n];
        let seq = client.document.seq();
        let unlogged = client.outbox.iter().filter(move |sent| sent.seq.is_none_or(|at| at > seq));
        self.writes
            .iter()
            .filter(move |write| write.seq <= seq)
            .chain(unlogged.flat_map(|sent| &sent.writes))
            .chain(&client.pending)
    }

    pub(crate) fn state_of(&self, n: usize) -> naive::State<'_> {
        naive::state(self.strategy, self.known(n))
    }

    /// Writes to a key in the edit that is under way. Says whether that was possible.
    pub(crate) fn put(&mut self, n: usize, put: &Put<'_>) -> bool {
        let held = self.state_of(n).get(put.map).and_then(|map| map.get(put.key).cloned());
        let replica = self.clients[n].replica;
        let finds = put
            .expect
            .is_none_or(|expect| naive::finds(held.as_deref().unwrap_or_default(), replica, expect));
        let client = &mut self.clients[n];
        let counter = client.document.next_counter(replica);
        let mut edit = client.document.edit(replica);
        let result = match put.value {
            Some(value) => edit.set(put.map, put.key, value, put.stamp, put.expect),
            None => edit.remove(put.map, put.key, put.stamp, put.expect),
        };
        match (result, self.strategy) {
            (Ok(()), Strategy::Server) => assert!(finds),
            (Ok(()), _) => assert_eq!(put.expect, None),
            (Err(EditError::Conflict { .. }), Strategy::Server) => {
                assert!(!finds);
                return false;
            }
            (error, _) => panic!("{error:?}"),
        }
        client.pending.push(Write {
            map: put.map.to_owned(),
            key: put.key.to_owned(),
            value: put.value.map(str::to_owned),
            stamp: put.stamp,
            expect: put.expect,
            replica,
            counter,
            seq: 0,
            base: client.document.seq(),
        });
        client.show(put.map, put.key);
        true
    }

    pub(crate) fn write_text(&mut self, n: usize, at: usize, text: &str) {
        self.texts = true;
        let client = &mut self.clients[n];
        client.document.edit(client.replica).insert("page", at, text).unwrap();
    }

    /// Makes a change of what was put since the last one.
    pub(crate) fn commit(&mut self, n: usize) {
        let client = &mut self.clients[n];
        let seq = client.document.seq();
        let Some(change) = client.document.edit(client.replica).commit(seq) else { return };
        assert_eq!(change.base, seq);
        let mut writes = std::mem::take(&mut client.pending);
        // They have seen what came between them and now.
        writes.iter_mut().for_each(|write| write.base = seq);
        let keys: Vec<_> = writes.iter().map(|write| (write.map.clone(), write.key.clone())).collect();
        keys.iter().for_each(|(map, key)| client.show(map, key));
        client.outbox.push(Sent { change, writes, seq: None });
    }

    /// The owner decides on the client's next change. Says whether there was one.
    pub(crate) fn push(&mut self, n: usize) -> bool {
        let Some(next) = self.clients[n].outbox.iter().position(|sent| sent.seq.is_none()) else {
            return false;
        };
        let sent = self.clients[n].outbox[next].clone();
        let seq = self.log.tip() + 1;
        let mut all = self.writes.clone();
        let mut finds = true;
        for write in &sent.writes {
            let state = naive::state(self.strategy, &all);
            let held = state.get(&*write.map).and_then(|map| map.get(&*write.key));
            let held = held.map(Vec::as_slice).unwrap_or_default();
            finds &= write.expect.is_none_or(|expect| naive::finds(held, write.replica, expect));
            all.push(Write { seq, ..write.clone() });
        }
        let before = self.log.document.state_hash();
        match self.log.admit(sent.change.as_ref(), &Admission::default()) {
            Ok(applied) => {
                assert!(finds);
                assert_eq!(applied.next_counter, sent.change.next_counter);
                self.writes = all;
                self.changes.push(sent.change);
                self.clients[n].outbox[next].seq = Some(seq);
            }
            Err(Refusal::Conflict(_)) => {
                assert!(!finds);
                assert_eq!(self.log.document.state_hash(), before, "all or nothing");
                self.conflicts += 1;
                // What was refused, and all that was built on it, is given up.
                self.clients[n].outbox.clear();
                self.clients[n].pending.clear();
                self.clients[n].replica = self.draw();
                self.load(n);
            }
            Err(refusal) => panic!("{refusal}"),
        }
        true
    }

    /// Sends a change again that the log has.
    pub(crate) fn resend(&mut self, n: usize) {
        let Some(sent) = self.clients[n].outbox.iter().rfind(|sent| sent.seq.is_some()) else { return };
        let next_counter = self.log.document.next_counter(sent.change.replica);
        let again = self.log.document.clone().apply(sent.change.as_ref());
        assert_eq!(again, Err(Refusal::Known { next_counter }));
    }

    /// The client hears entries up to `last`, some of them again.
    pub(crate) fn hear(&mut self, n: usize, last: u64, again: u64) {
        let client = &mut self.clients[n];
        let known = client.document.seq();
        let first = known + 1 - again.min(known);
        if last < first {
            return;
        }
        let (count, bytes) = self.log.run(first, last);
        let mut patches = Vec::new();
        client.document.receive(first, count, &bytes, known, &mut patches).unwrap();
        assert_eq!(client.document.seq(), known.max(last));
        for patch in patches {
            let Patch::Map { container, key, value, .. } = patch else { continue };
            let place = (container.to_string(), key.to_string());
            match value {
                Some(value) => client.view.insert(place, value.to_string()),
                None => client.view.remove(&place),
            };
        }
        client.forget_logged();
    }

    /// The client gets the owner's state, and puts on top what the log does not have.
    pub(crate) fn load(&mut self, n: usize) {
        self.commit(n);
        let client = &mut self.clients[n];
        client.document = Document::decode(&self.log.document.encode()).unwrap();
        client.forget_logged();
        for sent in &client.outbox {
            client.document.reapply(sent.change.as_ref()).unwrap();
        }
        client.show_all();
    }

    /// The client's process ends and starts again from what it saved.
    pub(crate) fn restart(&mut self, n: usize) {
        self.commit(n);
        let client = &mut self.clients[n];
        client.document = Document::decode(&client.document.encode()).unwrap();
    }

    /// What a client shows, and what it would have after saving and loading.
    pub(crate) fn check(&self, n: usize) {
        let client = &self.clients[n];
        let state = self.state_of(n);
        naive::compare(&client.document, &state);
        let mut shown = BTreeMap::new();
        for (map, keys) in &state {
            for (key, held) in keys {
                if let Some(value) = held.last().and_then(|last| last.value.clone()) {
                    shown.insert(((*map).to_owned(), (*key).to_owned()), value);
                }
            }
        }
        assert_eq!(client.view, shown, "a view that only saw patches");
        self.check_saved(&client.document, &state);
    }

    pub(crate) fn check_owner(&self) {
        let state = naive::state(self.strategy, &self.writes);
        naive::compare(&self.log.document, &state);
        self.check_saved(&self.log.document, &state);
    }

    fn check_saved(&self, document: &Document, state: &naive::State<'_>) {
        let hash = document.state_hash();
        if !self.texts {
            let version: Vec<_> = document.version().iter().collect();
            assert_eq!(hash, naive::state_hash(self.strategy, &version, state));
        }
        let bytes = document.encode();
        let loaded = Document::decode(&bytes).unwrap();
        assert_eq!(loaded.state_hash(), hash);
        assert_eq!((loaded.seq(), loaded.strategy()), (document.seq(), self.strategy));
        assert_eq!(loaded.encode(), bytes, "saving again gives the same bytes");
    }

    /// Everybody sends and hears everything: then all have the same.
    pub(crate) fn finish(&mut self) {
        for n in 0..self.clients.len() {
            self.commit(n);
            while self.push(n) {}
        }
        self.check_owner();
        let hash = self.log.document.state_hash();
        for n in 0..self.clients.len() {
            self.hear(n, self.log.tip(), 0);
            self.check(n);
            assert_eq!(self.clients[n].document.state_hash(), hash);
        }
        let mut replayed = Document::with_strategy(self.strategy, Limits::default());
        let (count, bytes) = self.log.run(1, self.log.tip());
        replayed.replay(1, count, &bytes, 0).unwrap();
        assert_eq!(replayed.encode(), self.log.document.encode());
    }

    /// How many writes of the log there are, and how many have another to the same key beside them that
    /// knew nothing of them.
    pub(crate) fn contested(&self) -> (usize, usize) {
        let beside = |write: &Write| {
            let same = |other: &&Write| other.map == write.map && other.key == write.key;
            self.writes.iter().filter(same).any(|other| other.is_beside(write))
        };
        (self.writes.len(), self.writes.iter().filter(|write| beside(write)).count())
    }
}

impl Client {
    fn forget_logged(&mut self) {
        let seq = self.document.seq();
        self.outbox.retain(|sent| sent.seq.is_none_or(|at| at > seq));
    }

    /// What an editor does with its own edits: it reads what it wrote to.
    fn show(&mut self, map: &str, key: &str) {
        let value = self.document.map(map).and_then(|map| Some(map.get(key)?.value.to_owned()));
        match value {
            Some(value) => self.view.insert((map.to_owned(), key.to_owned()), value),
            None => self.view.remove(&(map.to_owned(), key.to_owned())),
        };
    }

    fn show_all(&mut self) {
        self.view.clear();
        for name in self.document.maps() {
            let Some(map) = self.document.map(name) else { continue };
            for (key, value) in map.iter() {
                self.view.insert((name.to_owned(), key.to_owned()), value.value.to_owned());
            }
        }
    }
}
