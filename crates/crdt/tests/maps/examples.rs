//! Maps by example: what each strategy gives, on the owner's document and on those of clients.
use crate::common::Log;
use manyhands_crdt::{
    Admission, Change, ChangeRef, Conflict, Document, EditError, Hlc, Limits, MapOp, Patch, Refusal,
    ReplicaId, Strategy, map_change_body,
};

const ANN: ReplicaId = ReplicaId(900);
const BOB: ReplicaId = ReplicaId(17);

struct Client {
    replica: ReplicaId,
    document: Document,
}

impl Client {
    fn new(replica: ReplicaId, strategy: Strategy) -> Client {
        Client { replica, document: Document::with_strategy(strategy, Limits::default()) }
    }

    fn set(&mut self, key: &str, value: &str, micros: u64) -> Change {
        let mut edit = self.document.edit(self.replica);
        edit.set("", key, value, Hlc::at(micros), None).unwrap();
        edit.commit(0).unwrap()
    }

    fn remove(&mut self, key: &str, micros: u64) -> Change {
        let mut edit = self.document.edit(self.replica);
        edit.remove("", key, Hlc::at(micros), None).unwrap();
        edit.commit(0).unwrap()
    }

    fn hear(&mut self, log: &Log) -> Vec<Patch> {
        let known = self.document.seq();
        let (count, bytes) = log.run(known + 1, log.tip());
        let mut patches = Vec::new();
        self.document.receive(known + 1, count, &bytes, known, &mut patches).unwrap();
        patches
    }

    fn shows(&self, key: &str) -> Vec<&str> {
        shows(&self.document, key)
    }
}

/// The winner, then what lost to it.
fn shows<'d>(document: &'d Document, key: &str) -> Vec<&'d str> {
    let Some(map) = document.map("") else { return Vec::new() };
    let conflicts = map.conflicts(key).map(|value| value.value);
    map.get(key).map(|value| value.value).into_iter().chain(conflicts).collect()
}

fn start(strategy: Strategy) -> (Log, Client, Client) {
    let document = Document::with_strategy(strategy, Limits::default());
    (Log { document, ..Log::default() }, Client::new(ANN, strategy), Client::new(BOB, strategy))
}

#[test]
fn concurrent_values_are_kept_until_somebody_who_saw_them_writes() {
    let (mut log, mut ann, mut bob) = start(Strategy::Crdt);
    let (a, b) = (ann.set("k", "1", 5), bob.set("k", "2", 3));
    log.submit(a.as_ref()).unwrap();
    log.submit(b.as_ref()).unwrap();
    ann.hear(&log);
    bob.hear(&log);
    for document in [&ann.document, &bob.document, &log.document] {
        assert_eq!(shows(document, "k"), ["2", "1"], "the log's last wins");
        assert_eq!(document.state_hash(), log.document.state_hash());
    }
    let merged = ann.set("k", "3", 6);
    assert_eq!(merged.base, 2);
    log.submit(merged.as_ref()).unwrap();
    bob.hear(&log);
    assert_eq!(bob.shows("k"), ["3"]);
    assert_eq!(bob.document.map("").unwrap().get("k").unwrap().seq, 3);
}

#[test]
fn a_set_survives_a_concurrent_removal() {
    let (mut log, mut ann, mut bob) = start(Strategy::Crdt);
    log.submit(ann.set("k", "1", 1).as_ref()).unwrap();
    ann.hear(&log);
    bob.hear(&log);
    let (gone, set) = (ann.remove("k", 2), bob.set("k", "2", 2));
    log.submit(set.as_ref()).unwrap();
    log.submit(gone.as_ref()).unwrap();
    assert_eq!(shows(&log.document, "k"), ["2"]);
    ann.hear(&log);
    bob.hear(&log);
    assert_eq!((ann.shows("k"), bob.shows("k")), (vec!["2"], vec!["2"]));
    let gone = bob.remove("k", 3);
    log.submit(gone.as_ref()).unwrap();
    assert!(log.document.map("").is_none(), "nothing is left of it");
    ann.hear(&log);
    bob.hear(&log);
    assert_eq!(ann.document.state_hash(), bob.document.state_hash());
}

#[test]
fn the_greatest_stamp_wins_however_late_it_comes() {
    let (mut log, mut ann, mut bob) = start(Strategy::Lww);
    let (newer, older) = (ann.set("k", "\"newer\"", 9), bob.remove("k", 5));
    log.submit(newer.as_ref()).unwrap();
    log.submit(older.as_ref()).unwrap();
    assert_eq!(shows(&log.document, "k"), ["\"newer\""]);
    let patches = bob.hear(&log);
    assert_eq!(patches.len(), 1, "Ann's value over Bob's removal");
    assert!(ann.hear(&log).is_empty(), "a losing write changes nothing");
    assert_eq!(ann.document.state_hash(), bob.document.state_hash());
    // A removal is remembered, and beats what is older.
    log.submit(bob.remove("k", 20).as_ref()).unwrap();
    log.submit(ann.set("k", "1", 19).as_ref()).unwrap();
    assert!(shows(&log.document, "k").is_empty());
    assert!(log.document.map("").unwrap().is_empty());
    let tie = bob.set("t", "1", 7);
    log.submit(ann.set("t", "2", 7).as_ref()).unwrap();
    log.submit(tie.as_ref()).unwrap();
    assert_eq!(shows(&log.document, "t"), ["2"], "the greater replica");
}

#[test]
fn the_last_of_the_log_wins_and_own_writes_show_on_top() {
    let (mut log, mut ann, mut bob) = start(Strategy::Server);
    let (a, b) = (ann.set("k", "1", 9), bob.set("k", "2", 1));
    log.submit(a.as_ref()).unwrap();
    ann.hear(&log);
    let before = bob.hear(&log);
    assert!(before.is_empty());
    assert_eq!(bob.shows("k"), ["2"], "Bob's own, which is not logged yet");
    log.submit(b.as_ref()).unwrap();
    ann.hear(&log);
    bob.hear(&log);
    assert_eq!((ann.shows("k"), bob.shows("k")), (vec!["2"], vec!["2"]));
    let (gone, set) = (ann.remove("k", 1), bob.set("k", "3", 1));
    log.submit(set.as_ref()).unwrap();
    ann.hear(&log);
    assert!(ann.shows("k").is_empty());
    assert!(ann.document.map("").unwrap().is_empty());
    log.submit(gone.as_ref()).unwrap();
    ann.hear(&log);
    bob.hear(&log);
    assert!(ann.document.map("").is_none());
    assert_eq!(ann.document.state_hash(), bob.document.state_hash());
}

#[test]
fn a_write_that_expects_another_value_is_refused_with_the_one_that_is_there() {
    let (mut log, mut ann, mut bob) = start(Strategy::Server);
    log.submit(ann.set("k", "1", 1).as_ref()).unwrap();
    ann.hear(&log);
    bob.hear(&log);
    let expecting = |client: &mut Client, value: &str, expect| {
        let mut edit = client.document.edit(client.replica);
        edit.set("", "k", value, Hlc::at(1), Some(expect)).map(|()| edit.commit(0).unwrap())
    };
    let (a, b) = (expecting(&mut ann, "2", 1).unwrap(), expecting(&mut bob, "3", 1).unwrap());
    let admission = Admission::default();
    log.document.admit(a.as_ref(), &admission).unwrap();
    let (before, hash) = (log.document.encode(), log.document.state_hash());
    let conflict = Conflict { map: String::new(), key: "k".into(), seq: 2, value: Some("2".into()) };
    let refused = log.document.admit(b.as_ref(), &admission);
    assert_eq!(refused, Err(Refusal::Conflict(Box::new(conflict))));
    assert_eq!((log.document.encode(), log.document.state_hash()), (before, hash));
    // Own earlier writes are always seen, logged or not.
    let again = expecting(&mut ann, "4", 1).unwrap();
    log.document.admit(again.as_ref(), &admission).unwrap();
    // What is plain here needs no owner.
    let mut carl = Client::new(ReplicaId(5), Strategy::Server);
    carl.document = Document::decode(&log.document.encode()).unwrap();
    assert_eq!(expecting(&mut carl, "5", 2).unwrap_err(), EditError::Conflict { seq: 3 });
    assert!(expecting(&mut carl, "5", 3).is_ok());
}

#[test]
fn a_clock_that_is_ahead_is_refused_where_stamps_count() {
    for strategy in Strategy::ALL {
        let (mut log, mut ann, _) = start(strategy);
        let admission = Admission { stamp_max: Some(1_000) };
        let ahead = ann.set("k", "1", 1_001);
        let result = log.document.admit(ahead.as_ref(), &admission);
        if strategy == Strategy::Server {
            assert!(result.is_ok());
        } else {
            let refusal = Refusal::ClockAhead { stamp_micros: 1_001, max_micros: 1_000 };
            assert_eq!(result, Err(refusal));
            assert_eq!(log.document.seq(), 0);
            assert!(log.document.apply(ahead.as_ref()).is_ok(), "what is in the log was admitted");
        }
    }
}

#[test]
fn an_edit_that_is_committed_later_has_seen_what_came_meanwhile() {
    let (mut log, mut ann, mut bob) = start(Strategy::Crdt);
    let mut edit = ann.document.edit(ANN);
    edit.set("", "k", "1", Hlc::at(1), None).unwrap();
    drop(edit);
    log.submit(bob.set("k", "2", 1).as_ref()).unwrap();
    ann.hear(&log);
    let change = ann.document.edit(ANN).commit(0).unwrap();
    assert_eq!(change.base, 1);
    log.submit(change.as_ref()).unwrap();
    ann.hear(&log);
    bob.hear(&log);
    assert_eq!((ann.shows("k"), bob.shows("k")), (vec!["1"], vec!["1"]));
    assert_eq!(ann.document.state_hash(), log.document.state_hash());
}

#[test]
fn an_outbox_goes_on_top_of_a_loaded_state() {
    for strategy in Strategy::ALL {
        let (mut log, mut ann, mut bob) = start(strategy);
        let outbox = [ann.set("a", "1", 1), ann.set("k", "1", 2), ann.remove("a", 3)];
        log.submit(bob.set("k", "2", 4).as_ref()).unwrap();
        log.submit(outbox[0].as_ref()).unwrap();
        ann.document = Document::decode(&log.document.encode()).unwrap();
        assert_eq!(ann.document.strategy(), strategy);
        for change in &outbox[1..] {
            ann.document.reapply(change.as_ref()).unwrap();
        }
        let saved = Document::decode(&ann.document.encode()).unwrap();
        assert_eq!(saved.state_hash(), ann.document.state_hash());
        for change in &outbox[1..] {
            log.submit(change.as_ref()).unwrap();
        }
        ann.hear(&log);
        bob.hear(&log);
        for document in [&ann.document, &bob.document] {
            assert_eq!(document.state_hash(), log.document.state_hash(), "{strategy}");
            assert_eq!(document.map("").unwrap().len(), 1);
        }
    }
}

#[test]
fn texts_and_maps_live_side_by_side() {
    let mut document = Document::new();
    let mut edit = document.edit(ANN);
    edit.set("page", "k", "[1.0]", Hlc { micros: 7, logical: 2 }, None).unwrap();
    edit.insert("page", 0, "text").unwrap();
    edit.remove("page", "none", Hlc::at(8), None).unwrap();
    edit.insert("page", 4, "!").unwrap();
    let change = edit.commit(0).unwrap();
    assert_eq!(change.next_counter, 7);
    let mut owner = Document::new();
    owner.apply(change.as_ref()).unwrap();
    assert_eq!(owner.text("page").unwrap().to_string(), "text!");
    let map = owner.map("page").unwrap();
    let value = map.get("k").unwrap();
    assert_eq!((value.value, value.stamp, value.op.counter), ("[1.0]", Hlc { micros: 7, logical: 2 }, 0));
    assert_eq!((map.len(), owner.maps().collect::<Vec<_>>()), (1, vec!["page"]));
    assert_eq!(owner.state_hash(), document.state_hash());
}

#[test]
fn an_outbox_waits_for_the_entries_that_its_author_had_seen() {
    let (mut log, mut ann, mut bob) = start(Strategy::Crdt);
    log.submit(bob.set("k", "2", 1).as_ref()).unwrap();
    ann.hear(&log);
    let change = ann.set("k", "1", 2);
    ann.document = Document::new();
    assert_eq!(ann.document.reapply(change.as_ref()), Err(Refusal::MissingEntries { known: 0 }));
    ann.hear(&log);
    ann.document.reapply(change.as_ref()).unwrap();
    assert_eq!(ann.shows("k"), ["1"], "it has replaced what its author saw");
}

// enforces: I-10
#[test]
fn keys_and_bytes_are_limited() {
    let limits = Limits { keys_max: 3, map_bytes_max: 40, containers_max: 2, ..Limits::default() };
    for strategy in Strategy::ALL {
        let mut owner = Document::with_strategy(strategy, limits);
        let mut counter = 0;
        let mut write = |map, key, value: Option<&str>, micros, base| {
            let stamp = Hlc::at(micros);
            let body = map_change_body(&MapOp { map, key, value, stamp, expect: None }).unwrap();
            let applied = owner.apply(ChangeRef { replica: ANN, counter, base, body: &body });
            counter += u64::from(applied.is_ok());
            applied.map(|_| ())
        };
        let too_large = |what, limit| Err(Refusal::TooLarge { what, limit });
        for (key, at) in [("a", 1), ("b", 2), ("c", 3)] {
            assert_eq!(write("", key, Some("1"), at, 0), Ok(()));
        }
        assert_eq!(write("", "d", Some("1"), 4, 3), too_large("keys of a document", 3));
        assert_eq!(write("", "a", Some("2"), 5, 3), Ok(()), "instead of the one before");
        assert_eq!(write("", "b", None, 6, 4), Ok(()));
        let after_removal = write("", "d", Some("1"), 7, 5);
        if strategy == Strategy::Lww {
            assert_eq!(after_removal, too_large("keys of a document", 3), "a removal is remembered");
        } else {
            assert_eq!(after_removal, Ok(()));
        }
        let long = format!("\"{}\"", "x".repeat(40));
        assert_eq!(write("", "c", Some(&long), 8, 5), too_large("bytes of a document's maps", 40));
        assert_eq!(write("", "c", None, 9, 5), Ok(()));
        if strategy != Strategy::Lww {
            assert_eq!(write("m", "c", Some("1"), 10, 5), Ok(()));
            assert_eq!(write("n", "c", Some("1"), 11, 5), too_large("containers", 2));
        }
        // Edits are told the same.
        let mut edit = owner.edit(BOB);
        let too_large = |what, limit| Err(EditError::TooLarge { what, limit });
        assert_eq!(edit.set("", "a", &long, Hlc::at(12), None), too_large("bytes of a document's maps", 40));
        let full = too_large("keys of a document", 3);
        let more = ["e", "f", "g"].map(|key| edit.set("", key, "1", Hlc::at(13), None));
        assert!(more.contains(&full), "{more:?}");
    }
}

#[test]
fn concurrent_values_count_as_keys() {
    let limits = Limits { keys_max: 2, ..Limits::default() };
    let mut owner = Document::with_limits(limits);
    let op = MapOp { map: "", key: "k", value: Some("1"), stamp: Hlc::at(1), expect: None };
    let body = map_change_body(&op).unwrap();
    let mut write =
        |replica, base| owner.apply(ChangeRef { replica: ReplicaId(replica), counter: 0, base, body: &body });
    assert!(write(1, 0).is_ok() && write(2, 0).is_ok());
    assert!(matches!(write(3, 0), Err(Refusal::TooLarge { limit: 2, .. })));
    assert!(write(3, 2).is_ok(), "it replaces both");
}

// enforces: I-10
#[test]
fn memory_is_reported() {
    let mut document = Document::new();
    let empty = document.memory_bytes();
    let value = format!("\"{}\"", "v".repeat(998));
    for n in 0..1_000 {
        let mut edit = document.edit(ANN);
        edit.set("", &format!("key {n}"), &value, Hlc::at(n), None).unwrap();
        edit.commit(0).unwrap();
    }
    let full = document.memory_bytes() - empty;
    assert!((1_000_000..1_400_000).contains(&full), "{full}");
    for n in 0..1_000 {
        let mut edit = document.edit(ANN);
        edit.remove("", &format!("key {n}"), Hlc::at(n), None).unwrap();
        edit.commit(0).unwrap();
    }
    assert!(document.memory_bytes() < empty + 10_000);
}
