//! Random lives of a document: clients that edit, push late, hear late or twice, save and load; and a log.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::{Log, Random};
use manyhands_crdt::{Anchor, Bias, Change, Document, Patch, Refusal, ReplicaId};

const CONTAINERS: [&str; 2] = ["notes", "page"];

struct Client {
    replica: ReplicaId,
    document: Document,
    known: u64,
    outbox: Vec<Change>,
    sent: usize,
    /// What a view shows that only ever saw local edits and patches.
    views: BTreeMap<String, Vec<char>>,
    anchors: Vec<(usize, Anchor)>,
}

impl Client {
    fn new(replica: ReplicaId) -> Client {
        let document = Document::new();
        let (outbox, views, anchors) = Default::default();
        Client { replica, document, known: 0, outbox, sent: 0, views, anchors }
    }

    fn edit(&mut self, random: &mut Random) {
        let mut edit = self.document.edit(self.replica);
        for _ in 0..1 + random.below(3) {
            let container = CONTAINERS[usize::from(random.chance(70))];
            let view = self.views.entry(container.to_owned()).or_default();
            if !view.is_empty() && random.chance(35) {
                let from = random.at(view.len());
                let to = (from + 1 + random.at(6)).min(view.len());
                edit.delete(container, from..to).unwrap();
                view.drain(from..to);
            } else {
                let at = [0, view.len() / 2, view.len(), random.at(view.len() + 1)][random.at(4)];
                let n = 1 + random.below(5);
                let text = random.text(n);
                edit.insert(container, at, &text).unwrap();
                view.splice(at..at, text.chars());
            }
        }
        let change = edit.commit(self.known).unwrap();
        assert_eq!(change.next_counter, self.document.next_counter(self.replica));
        self.outbox.push(change);
    }

    fn push(&mut self, log: &mut Log) {
        let Some(change) = self.outbox.get(self.sent) else { return };
        let applied = log.submit(change.as_ref()).unwrap();
        assert_eq!(applied.next_counter, change.next_counter);
        let known = Refusal::Known { next_counter: change.next_counter };
        assert_eq!(log.submit(change.as_ref()), Err(known));
        assert_eq!(log.document.hash_of(change.as_ref()), Ok((applied.next_counter, applied.hash)));
        self.sent += 1;
    }

    fn hear(&mut self, random: &mut Random, log: &Log) {
        let behind = log.tip() - self.known;
        // Often some that are known already.
        let first = self.known + 1 - random.below(3).min(self.known);
        let last = self.known + random.below(behind + 1);
        if last < first {
            return;
        }
        let (count, bytes) = log.run(first, last);
        let mut patches: Vec<Patch> = Vec::new();
        self.document.receive(first, count, &bytes, self.known, &mut patches).unwrap();
        self.known = self.known.max(last);
        for patch in patches {
            let Patch::Text { container, at, deleted, inserted } = patch else { panic!("{patch:?}") };
            let view = self.views.entry(container.to_string()).or_default();
            view.splice(at..at + deleted, inserted.chars());
        }
    }

    fn save_and_load(&mut self) {
        let bytes = self.document.encode();
        let loaded = Document::decode(&bytes).unwrap();
        assert_eq!(loaded.state_hash(), self.document.state_hash());
        assert_eq!(loaded.version(), self.document.version());
        assert_eq!(loaded.encode(), bytes, "saving again gives the same bytes");
        self.document = loaded;
    }

    fn check(&mut self, random: &mut Random) {
        for (container, view) in &self.views {
            let Some(text) = self.document.text(container) else {
                assert!(view.is_empty());
                continue;
            };
            let shown: String = view.iter().collect();
            assert_eq!(text.to_string(), shown);
            assert_eq!(text.len(), view.len());
            assert_eq!(text.len_utf16(), shown.encode_utf16().count());
            assert_eq!(text.lines(), shown.split('\n').count());
            let at = random.at(view.len() + 1);
            let before: String = view[..at].iter().collect();
            let line = before.split('\n').count() - 1;
            let column = before.rsplit('\n').next().unwrap().chars().count();
            assert_eq!(text.line_column(at), (line, column));
            assert_eq!(text.at_line_column(line, column), Some(at));
            assert_eq!(text.utf16_of(at), before.encode_utf16().count());
            assert_eq!(text.at_utf16(text.utf16_of(at)), at);
            let bias = if random.chance(50) { Bias::Left } else { Bias::Right };
            let anchor = text.anchor(at, bias);
            assert_eq!(text.resolve(&anchor), Some(at));
        }
    }

    fn set_anchor(&mut self, random: &mut Random) {
        let container = random.at(2);
        if let Some(text) = self.document.text(CONTAINERS[container]) {
            let bias = if random.chance(50) { Bias::Left } else { Bias::Right };
            self.anchors.push((container, text.anchor(random.at(text.len() + 1), bias)));
        }
    }
}

fn live(seed: u64) {
    let random = &mut Random(seed);
    let mut log = Log::default();
    let mut clients: Vec<Client> = (0..2 + random.below(5))
        // Ids in no order, as random ones are.
        .map(|n| Client::new(ReplicaId((n + 1) * 0x9e37_79b9 % 1009 + 1)))
        .collect();
    for _ in 0..30 + random.below(40) {
        let n = random.at(clients.len());
        let client = &mut clients[n];
        match random.below(10) {
            0..4 => client.edit(random),
            4..6 => client.push(&mut log),
            6..9 => client.hear(random, &log),
            _ => {
                client.save_and_load();
                client.set_anchor(random);
                log.document = Document::decode(&log.document.encode()).unwrap();
            }
        }
        client.check(random);
    }
    for client in &mut clients {
        while client.sent < client.outbox.len() {
            client.push(&mut log);
        }
    }
    let mut replayed = Document::new();
    let (count, bytes) = log.run(1, log.tip());
    replayed.replay(1, count, &bytes, 0).unwrap();
    let from_snapshot = Document::decode(&log.document.encode()).unwrap();
    for client in &mut clients {
        while client.known < log.tip() {
            client.hear(random, &log);
        }
        client.check(random);
        assert_eq!(client.document.state_hash(), log.document.state_hash(), "seed {seed}");
        assert_eq!(client.document.version(), log.document.version());
    }
    assert_eq!(replayed.state_hash(), log.document.state_hash());
    assert_eq!(replayed.encode(), log.document.encode(), "seed {seed}");
    assert_eq!(from_snapshot.state_hash(), log.document.state_hash());
    for (container, anchor) in clients.iter().flat_map(|client| &client.anchors) {
        let at = log.document.text(CONTAINERS[*container]).unwrap().resolve(anchor);
        assert!(at.is_some(), "everybody knows every anchor now");
        for client in &clients {
            assert_eq!(client.document.text(CONTAINERS[*container]).unwrap().resolve(anchor), at);
        }
    }
}

// enforces: I-5
#[test]
fn everybody_ends_in_the_same_state() {
    (0..3_000).for_each(live);
}

// enforces: I-5
#[test]
fn the_same_changes_in_another_order_of_the_log_give_the_same_state() {
    for seed in 0..300 {
        let random = &mut Random(seed);
        // Nobody has heard of anybody, so no change names a log index and any order will do.
        let mut clients: Vec<Client> = (1..=5).map(|n| Client::new(ReplicaId(n * 7919 % 31))).collect();
        for client in &mut clients {
            (0..4).for_each(|_| client.edit(random));
        }
        let mut hashes = Vec::new();
        for _ in 0..6 {
            let mut log = Log::default();
            clients.iter_mut().for_each(|client| client.sent = 0);
            while clients.iter().any(|client| client.sent < client.outbox.len()) {
                let n = random.at(clients.len());
                clients[n].push(&mut log);
            }
            hashes.push(log.document.state_hash());
        }
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "seed {seed}");
    }
}

/// Ten people at one spot, each in full flow, nobody seeing the others.
fn at_one_spot(backwards: bool) -> String {
    let mut log = Log::default();
    let mut first = Client::new(ReplicaId(1000));
    let mut edit = first.document.edit(first.replica);
    edit.insert("page", 0, "()").unwrap();
    first.outbox.extend(edit.commit(0));
    first.push(&mut log);
    let mut clients: Vec<Client> = (0..10).map(|n| Client::new(ReplicaId(n * 37 % 11 + 1))).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.hear_all(&log);
        for key in 0..50 {
            let letter = char::from(b'a' + n as u8).to_string();
            let mut edit = client.document.edit(client.replica);
            edit.insert("page", if backwards { 1 } else { 1 + key }, &letter).unwrap();
            client.outbox.extend(edit.commit(1));
        }
    }
    for key in 0..50 {
        for client in &mut clients {
            assert_eq!(client.sent, key);
            client.push(&mut log);
        }
    }
    for client in &mut clients {
        client.hear_all(&log);
        assert_eq!(client.document.state_hash(), log.document.state_hash());
    }
    log.document.text("page").unwrap().to_string()
}

impl Client {
    fn hear_all(&mut self, log: &Log) {
        let (count, bytes) = log.run(self.known + 1, log.tip());
        self.document.replay(self.known + 1, count, &bytes, self.known).unwrap();
        self.known = log.tip();
    }
}

#[test]
fn what_people_type_at_one_spot_never_interleaves() {
    for backwards in [false, true] {
        let text = at_one_spot(backwards);
        let mut order: Vec<char> = text.chars().collect();
        order.dedup();
        assert_eq!(order.len(), 12, "ten passages, each in one piece: {text}");
        assert_eq!(text.len(), 2 + 10 * 50);
    }
}

// enforces: I-11
#[test]
fn the_same_run_twice_gives_the_same_bytes() {
    for seed in 0..20 {
        let run = || {
            let random = &mut Random(seed);
            let mut log = Log::default();
            let mut client = Client::new(ReplicaId(5));
            for _ in 0..50 {
                client.edit(random);
                client.push(&mut log);
                client.hear(random, &log);
            }
            (log.run(1, log.tip()), log.document.encode(), client.document.encode())
        };
        assert_eq!(run(), run());
    }
}
