//! One change's road through this crate: edited, pushed, applied by the owner, received by the others.

use manyhands_crdt::{
    ChangeRef, Document, EntryWriter, Patch, PushWriter, Refusal, ReplicaId, read_entries, read_push,
};

const ANN: ReplicaId = ReplicaId(900);
const BOB: ReplicaId = ReplicaId(17);

/// A log with one document: what the owner does, in miniature.
#[derive(Default)]
struct Log {
    document: Document,
    entries: Vec<(u32, Option<ReplicaId>, u64, Vec<u8>)>,
}

impl Log {
    fn submit(&mut self, change: ChangeRef<'_>) {
        let new = self.document.replica_index(change.replica).is_none();
        self.document.apply(change).expect("a good change");
        let index = self.document.replica_index(change.replica).expect("just applied");
        let new = new.then_some(change.replica);
        self.entries.push((index, new, change.base, change.body.to_vec()));
    }

    fn tip(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Entries after `seq`, as a run.
    fn after(&self, seq: u64) -> (u64, u32, Vec<u8>) {
        let mut run = EntryWriter::new();
        for (n, (index, new, base, body)) in self.entries.iter().enumerate().skip(seq as usize) {
            run.push(n as u64 + 1, *index, *new, *base, body);
        }
        (seq + 1, run.count(), run.finish())
    }
}

#[test]
fn two_clients_and_a_server_agree() {
    let mut log = Log::default();
    let (mut ann, mut bob) = (Document::new(), Document::new());

    let mut edit = ann.edit(ANN);
    edit.insert("page", 0, "helo").unwrap();
    edit.insert("page", 3, "l").unwrap();
    let first = edit.commit(0).unwrap();
    assert_eq!((first.counter, first.next_counter), (0, 5));
    let mut edit = ann.edit(ANN);
    edit.delete("page", 0..1).unwrap();
    edit.insert("page", 0, "H").unwrap();
    let second = edit.commit(0).unwrap();

    let mut push = PushWriter::new();
    push.push(first.base, &first.body);
    push.push(second.base, &second.body);
    let (count, bytes) = (push.count(), push.finish());
    for change in read_push(ANN, 0, count, &bytes) {
        log.submit(change.unwrap().0);
    }
    assert_eq!(log.document.text("page").unwrap().to_string(), "Hello");

    // Bob types before he hears of Ann.
    let mut edit = bob.edit(BOB);
    edit.insert("page", 0, "🎉!").unwrap();
    let third = edit.commit(0).unwrap();
    log.submit(third.as_ref());

    let (first_seq, count, run) = log.after(0);
    let seen: Vec<_> = read_entries(first_seq, count, &run).map(|entry| entry.unwrap()).collect();
    assert_eq!(seen.iter().map(|entry| entry.new).collect::<Vec<_>>(), [Some(ANN), None, Some(BOB)]);
    let mut patches = Vec::new();
    bob.receive(first_seq, count, &run, 0, &mut patches).unwrap();
    let mut view = String::from("🎉!");
    apply(&mut view, &patches);
    assert_eq!(view, bob.text("page").unwrap().to_string());

    patches.clear();
    ann.receive(first_seq, count, &run, 0, &mut patches).unwrap();
    let mut view = String::from("Hello");
    apply(&mut view, &patches);
    assert_eq!(view, "🎉!Hello", "the smaller replica id goes first");
    assert_eq!(ann.text("page").unwrap().to_string(), view);
    assert_eq!(ann.state_hash(), bob.state_hash());
    assert_eq!(ann.state_hash(), log.document.state_hash());

    // The same run once more: all of it is known.
    patches.clear();
    ann.receive(first_seq, count, &run, log.tip(), &mut patches).unwrap();
    assert!(patches.is_empty());

    let loaded = Document::decode(&log.document.encode()).unwrap();
    assert_eq!(loaded.state_hash(), ann.state_hash());
    assert_eq!(loaded.version(), ann.version());
}

// enforces: I-4
#[test]
fn a_change_counts_once() {
    let mut ann = Document::new();
    let mut edit = ann.edit(ANN);
    edit.insert("page", 0, "hello").unwrap();
    let change = edit.commit(0).unwrap();
    let mut edit = ann.edit(ANN);
    edit.delete("page", 1..3).unwrap();
    let later = edit.commit(0).unwrap();

    let mut server = Document::new();
    assert_eq!(server.apply(later.as_ref()), Err(Refusal::Gap { next_counter: 0 }));
    let applied = server.apply(change.as_ref()).unwrap();
    assert_eq!(applied.next_counter, 5);
    assert_eq!(server.apply(change.as_ref()), Err(Refusal::Known { next_counter: 5 }));
    assert_eq!(server.hash_of(change.as_ref()), Ok((5, applied.hash)));
    let fork = ChangeRef { base: 1, ..change.as_ref() };
    assert_ne!(server.hash_of(fork).unwrap().1, applied.hash);
    assert_eq!(server.text("page").unwrap().to_string(), "hello");
}

fn apply(view: &mut String, patches: &[Patch]) {
    let mut scalars: Vec<char> = view.chars().collect();
    for patch in patches {
        let Patch::Text { at, deleted, inserted, .. } = patch else { panic!("{patch:?}") };
        scalars.splice(*at..at + deleted, inserted.chars());
    }
    *view = scalars.into_iter().collect();
}

/// A client got the whole state while its own changes waited in the outbox: they go on top, are the same
/// changes, and come back by the log like any others.
#[test]
fn an_outbox_goes_on_top_of_a_new_state() {
    let mut log = Log::default();
    let mut bob = Document::new();
    let mut edit = bob.edit(BOB);
    edit.insert("page", 0, "world").unwrap();
    log.submit(edit.commit(0).unwrap().as_ref());

    let mut ann = Document::new();
    let mut outbox = Vec::new();
    for (at, text) in [(0, "Hel"), (3, "lo ")] {
        let mut edit = ann.edit(ANN);
        edit.insert("page", at, text).unwrap();
        outbox.push(edit.commit(0).unwrap());
    }
    // The first of them is durable already.
    log.submit(outbox[0].as_ref());

    let mut ann = Document::decode(&log.document.encode()).unwrap();
    let tip = log.tip();
    assert!(matches!(ann.reapply(outbox[0].as_ref()), Err(Refusal::Known { next_counter: 3 })));
    ann.reapply(outbox[1].as_ref()).unwrap();
    let mut edit = ann.edit(ANN);
    edit.insert("page", len_with(&log, &outbox[1]), "!").unwrap();
    outbox.push(edit.commit(tip).unwrap());

    log.submit(outbox[1].as_ref());
    log.submit(outbox[2].as_ref());
    let (first, count, entries) = log.after(tip);
    let mut patches = Vec::new();
    ann.receive(first, count, &entries, tip, &mut patches).unwrap();
    assert_eq!(patches, [], "own changes came back and change nothing");
    assert_eq!(ann.state_hash(), log.document.state_hash());
    let text = ann.text("page").unwrap().to_string();
    assert!(text.contains("Hello ") && text.contains("world") && text.ends_with('!'), "{text}");
}

/// The length of the text once `change` is in it as well.
fn len_with(log: &Log, change: &manyhands_crdt::Change) -> usize {
    log.document.text("page").expect("it was written to").len()
        + (change.next_counter - change.counter) as usize
}
