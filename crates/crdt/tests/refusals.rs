//! Changes that no honest author makes: each is refused with the reason, and leaves no trace.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Log;
use manyhands_crdt::{
    ChangeRef, Document, EditError, EntryWriter, Flaw, Limits, Malformed, OpId, Refusal, ReplicaId,
};

const ANN: ReplicaId = ReplicaId(10);
const BOB: ReplicaId = ReplicaId(20);
const EVE: ReplicaId = ReplicaId(30);

/// Ann has "abc" in "page" (0, 1, 2) and deleted the b (3), Bob has "xy" in "notes" (0, 1).
fn log() -> Log {
    let mut log = Log::default();
    let mut ann = Document::new();
    let mut edit = ann.edit(ANN);
    edit.insert("page", 0, "abc").unwrap();
    edit.delete("page", 1..2).unwrap();
    log.submit(edit.commit(0).unwrap().as_ref()).unwrap();
    let mut bob = Document::new();
    let mut edit = bob.edit(BOB);
    edit.insert("notes", 0, "xy").unwrap();
    log.submit(edit.commit(0).unwrap().as_ref()).unwrap();
    log
}

/// Eve submits these ops as her first change; it is refused, on the way in and on the way out.
fn refused(body: &[u8]) -> Refusal {
    let mut log = log();
    let (state, bytes) = (log.document.state_hash(), log.document.encode());
    let change = ChangeRef { replica: EVE, counter: 0, base: 2, body };
    let refusal = log.submit(change).unwrap_err();
    assert_eq!(log.document.state_hash(), state);
    assert_eq!(log.document.encode(), bytes, "the document is as it was");
    assert_eq!(log.document.next_counter(EVE), 0);
    assert_eq!(log.document.replica_index(EVE), None);
    let names: Vec<&str> = log.document.containers().collect();
    assert_eq!(names, ["notes", "page"]);

    // A log that has it all the same does not get through to a client either. (In a run it is the reader
    // who tells where a body ends, so what is left over is no flaw of the body.)
    let mut run = EntryWriter::new();
    run.push(3, 2, Some(EVE), 2, body);
    assert!(log.document.replay(3, 1, &run.finish(), 2).is_err());
    let left_over = matches!(refusal, Refusal::Malformed(Malformed { flaw: Flaw::TrailingBytes, .. }));
    assert!(left_over || log.document.encode() == bytes);
    refusal
}

fn malformed(body: &[u8]) -> (usize, Flaw) {
    match refused(body) {
        Refusal::Malformed(Malformed { offset, flaw }) => (offset, flaw),
        other => panic!("expected malformed, got {other:?}"),
    }
}

// Header bits of an insertion: left origin (8: before, 16: own, 24: other), right origin (32: own, 64: other,
// 96: inherited), 128: one scalar. Of a deletion: 2, 8: other's, 16: one element, 32: more ranges.
const INSERT_ONE: u8 = 128;
const LEFT_PREVIOUS: u8 = 8;
const LEFT_OWN: u8 = 16;
const LEFT_OTHER: u8 = 24;
const RIGHT_OWN: u8 = 32;
const RIGHT_OTHER: u8 = 64;
const INHERITED: u8 = 96;
const MORE: u8 = 1;
const DELETE: u8 = 2;
const OTHERS: u8 = 8;
const SINGLE: u8 = 16;
const RANGES: u8 = 32;

#[test]
fn references_to_what_is_not_there() {
    let ann = |counter| OpId { replica: ANN, counter };
    assert_eq!(
        refused(&[INSERT_ONE | LEFT_OTHER, 0, 4, b'!']),
        Refusal::MissingReference { id: ann(4) },
        "Ann has no op 4"
    );
    assert_eq!(refused(&[INSERT_ONE | LEFT_OTHER, 2, 0, b'!']), Refusal::UnknownIndex { index: 2 });
    assert_eq!(
        refused(&[INSERT_ONE | LEFT_OTHER, 0, 3, b'!']),
        Refusal::NotAnElement { id: ann(3) },
        "op 3 is a deletion"
    );
    assert_eq!(
        refused(&[DELETE | OTHERS, 0, 2, 2]),
        Refusal::NotAnElement { id: ann(3) },
        "2 is a character, 3 is a deletion"
    );
    assert_eq!(refused(&[DELETE | OTHERS, 0, 2, 3]), Refusal::MissingReference { id: ann(4) });
    assert_eq!(malformed(&[INSERT_ONE | LEFT_PREVIOUS, b'!']), (0, Flaw::Counter), "before Eve's first op");
    assert_eq!(malformed(&[DELETE | SINGLE, 1]), (0, Flaw::Counter));
    let own_delete =
        [INSERT_ONE | MORE, 1, b'p', b'!', DELETE | SINGLE | MORE, 1, INSERT_ONE | LEFT_PREVIOUS, b'!'];
    assert_eq!(refused(&own_delete), Refusal::NotAnElement { id: OpId { replica: EVE, counter: 1 } });
}

#[test]
fn origins_in_two_containers() {
    assert_eq!(
        refused(&[INSERT_ONE | LEFT_OTHER | RIGHT_OTHER, 0, 0, 1, 1, b'!']),
        Refusal::OtherContainer { id: OpId { replica: BOB, counter: 1 } }
    );
    // Her own, new ones too.
    let body = [INSERT_ONE | MORE, 1, b'p', b'!', INSERT_ONE | LEFT_PREVIOUS | RIGHT_OTHER, 0, 0, b'!'];
    assert_eq!(refused(&body), Refusal::OtherContainer { id: OpId { replica: ANN, counter: 0 } });
}

#[test]
fn bytes_that_no_writer_makes() {
    assert_eq!(malformed(&[]), (0, Flaw::Truncated));
    assert_eq!(malformed(&[6]), (0, Flaw::UnknownOp));
    assert_eq!(malformed(&[DELETE | SINGLE | 64, 1]), (0, Flaw::UnknownOp), "reserved bits");
    assert_eq!(malformed(&[0, 1, b'p', 0]), (3, Flaw::Empty), "an insertion of nothing");
    assert_eq!(malformed(&[0, 0, 2, b'h', b'i']), (1, Flaw::ContainerName));
    assert_eq!(malformed(&[0, 1, b'p', 1, b'h']), (3, Flaw::NotCanonical), "one scalar has its own form");
    assert_eq!(malformed(&[0, 1, b'p', 0x82, 0, b'h', b'i']), (3, Flaw::Varint));
    assert_eq!(malformed(&[0, 1, b'p', 3, b'h', b'i']), (4, Flaw::Truncated));
    assert_eq!(malformed(&[0, 1, b'p', 2, b'h', 0xff]), (5, Flaw::Utf8));
    assert_eq!(malformed(&[INSERT_ONE, 1, b'p', 0xed, 0xa0, 0x80]), (3, Flaw::Utf8), "half a surrogate pair");
    assert_eq!(malformed(&[INSERT_ONE, 1, 0xff, b'h']), (2, Flaw::Utf8));
    assert_eq!(malformed(&[INSERT_ONE, 1, b'p', b'h', b'i']), (4, Flaw::TrailingBytes));
    assert_eq!(malformed(&[INSERT_ONE | INHERITED | LEFT_OTHER, 0, 0, b'h']), (0, Flaw::NotCanonical));
    assert_eq!(malformed(&[DELETE | OTHERS, 0, 0, 0]), (3, Flaw::Empty));
    assert_eq!(
        malformed(&[DELETE | OTHERS, 0, 0, 1]),
        (3, Flaw::NotCanonical),
        "one element has its own form"
    );
    assert_eq!(
        malformed(&[DELETE | OTHERS | SINGLE | RANGES, 0, 0, 0]),
        (3, Flaw::Bounds),
        "no further range"
    );
    assert_eq!(malformed(&[DELETE | OTHERS | SINGLE | RANGES, 0, 0, 9, 0, 1]), (3, Flaw::Bounds));
    let twice = [DELETE | OTHERS | SINGLE | RANGES, 1, 0, 1, 1, 0, 0];
    assert_eq!(malformed(&twice), (0, Flaw::NotCanonical), "replicas in order of id");
    let mut long = vec![INSERT_ONE, 0x80, 0x02];
    long.extend([b'n'; 256]);
    long.push(b'h');
    assert_eq!(malformed(&long), (1, Flaw::ContainerName));
}

#[test]
fn the_same_said_in_a_longer_way() {
    // "hi", then "!" behind it: the right origin of the i is the end, so the ! inherits it.
    let spelt_out = [MORE, 1, b'p', 2, b'h', b'i', INSERT_ONE | LEFT_PREVIOUS, b'!'];
    assert_eq!(malformed(&spelt_out), (6, Flaw::NotCanonical));
    let by_distance = [MORE, 1, b'p', 2, b'h', b'i', INSERT_ONE | LEFT_OWN, 1, b'!'];
    assert_eq!(malformed(&by_distance), (7, Flaw::NotCanonical));
    // One's own elements by log index.
    let mut log = log();
    let body = [DELETE | OTHERS | SINGLE, 0, 0];
    let change = ChangeRef { replica: ANN, counter: 4, base: 2, body: &body };
    let flaw = Malformed { offset: 0, flaw: Flaw::NotCanonical };
    assert_eq!(log.submit(change), Err(Refusal::Malformed(flaw)));
}

// enforces: I-5
#[test]
fn a_right_origin_that_is_not_behind_the_left_one_is_no_right_origin() {
    for right in [0, 1, 2] {
        let mut log = log();
        // Behind Ann's c, before her a, b or c: so at the end of the text.
        let body = [INSERT_ONE | LEFT_OTHER | RIGHT_OTHER, 0, 2, 0, right, b'!'];
        log.submit(ChangeRef { replica: EVE, counter: 0, base: 2, body: &body }).unwrap();
        assert_eq!(log.document.text("page").unwrap().to_string(), "ac!");
    }
    let mut log = log();
    let own = [INSERT_ONE | MORE, 1, b'p', b'?', INSERT_ONE | LEFT_PREVIOUS | RIGHT_OWN, 1, b'!'];
    log.submit(ChangeRef { replica: EVE, counter: 0, base: 2, body: &own }).unwrap();
    assert_eq!(log.document.text("p").unwrap().to_string(), "?!");
}

// enforces: I-10
#[test]
fn limits() {
    let limits = Limits {
        change_bytes_max: 40,
        elements_max: 10,
        replicas_max: 2,
        containers_max: 2,
        ..Limits::default()
    };
    let mut document = Document::with_limits(limits);
    let mut edit = document.edit(ANN);
    let too_large = |what, limit| Err(EditError::TooLarge { what, limit });
    assert_eq!(edit.insert("p", 0, &"x".repeat(40)), too_large("bytes of a change", 40));
    assert_eq!(edit.insert("", 0, "x"), Err(EditError::ContainerName));
    assert_eq!(edit.insert("p", 1, "x"), Err(EditError::OutOfBounds { at: 1, len: 0 }));
    assert_eq!(edit.delete("p", 0..1), Err(EditError::OutOfBounds { at: 1, len: 0 }));
    assert_eq!(edit.commit(0), None);
    assert_eq!(document.edit(ReplicaId(0)).insert("p", 0, "x"), Err(EditError::NoReplica));

    let mut apply = |replica, counter, body: &[u8]| {
        document.apply(ChangeRef { replica, counter, base: 0, body }).map(|applied| applied.next_counter)
    };
    let too_large = |what, limit| Err(Refusal::TooLarge { what, limit });
    let long = [&[0, 1, b'p', 40][..], &[b'x'; 40]].concat();
    assert_eq!(apply(ANN, 0, &long), too_large("bytes of a change", 40));
    let eleven = [&[0, 1, b'p', 11][..], &[b'x'; 11]].concat();
    assert_eq!(apply(ANN, 0, &eleven), too_large("characters of a document", 10));
    assert_eq!(apply(ReplicaId(0), 0, &[INSERT_ONE, 1, b'p', b'x']), Err(Refusal::NoReplica));
    assert_eq!(apply(ANN, 0, &[INSERT_ONE, 1, b'p', b'x']), Ok(1));
    let three = [INSERT_ONE | MORE, 1, b'q', b'x', INSERT_ONE, 1, b'r', b'x'];
    assert_eq!(apply(ANN, 1, &three), too_large("containers", 2));
    assert_eq!(apply(BOB, 0, &[DELETE | OTHERS | SINGLE, 0, 0]), Ok(1));
    assert_eq!(apply(EVE, 0, &[DELETE | OTHERS | SINGLE, 0, 0]), too_large("replicas", 2));
    assert_eq!(apply(BOB, 3, &[DELETE | OTHERS | SINGLE, 0, 0]), Err(Refusal::Gap { next_counter: 1 }));
    assert_eq!(apply(BOB, 0, &[DELETE | OTHERS | SINGLE, 0, 0]), Err(Refusal::Known { next_counter: 1 }));
    assert_eq!(document.text("p").unwrap().to_string(), "");
    assert!(document.text("q").is_none());
}

/// Found by the fuzz target `document`: a saved copy may hold what its own replica wrote and the log has not.
#[test]
fn edits_beside_what_the_log_does_not_have() {
    let mut document = log().document;
    let mut edit = document.edit(EVE);
    edit.insert("page", 1, "eve").unwrap();
    edit.commit(2).unwrap();
    let mut document = Document::decode(&document.encode()).unwrap();
    let (state, refused) = (document.state_hash(), Err(EditError::NotLogged { replica: EVE }));
    let mut edit = document.edit(ReplicaId(40));
    assert_eq!(edit.insert("page", 2, "!"), refused);
    assert_eq!(edit.insert("page", 4, "!"), refused);
    assert_eq!(edit.delete("page", 0..2), refused);
    assert_eq!(edit.commit(2), None);
    assert_eq!(document.state_hash(), state);
    document.edit(EVE).insert("page", 2, "!").unwrap();
    assert_eq!(document.text("page").unwrap().to_string(), "ae!vec");
}

#[test]
fn runs_of_entries_that_do_not_fit() {
    let log = log();
    let (count, bytes) = log.run(1, 2);
    let mut document = Document::new();
    assert_eq!(document.replay(2, 1, &bytes, 0), Err(Refusal::MissingEntries { known: 0 }));
    let malformed = |offset, flaw| Err(Refusal::Malformed(Malformed { offset, flaw }));
    assert_eq!(document.replay(0, count, &bytes, 0), malformed(0, Flaw::Bounds));
    assert_eq!(document.replay(u64::MAX, 2, &bytes, u64::MAX - 1), malformed(0, Flaw::Bounds));
    assert_eq!(document.replay(1 << 63, 1, &bytes, u64::MAX), malformed(0, Flaw::Bounds));
    document.replay(1, count, &bytes, 0).unwrap();
    // The same replica as new once more.
    let mut run = EntryWriter::new();
    run.push(3, 2, Some(ANN), 2, &[DELETE | SINGLE, 1]);
    assert_eq!(document.replay(3, 1, &run.finish(), 2), malformed(0, Flaw::Inconsistent));
    let mut run = EntryWriter::new();
    run.push(3, 7, None, 2, &[DELETE | SINGLE, 1]);
    assert_eq!(document.replay(3, 1, &run.finish(), 2), Err(Refusal::UnknownIndex { index: 7 }));
    let bytes = [0, 3, DELETE | SINGLE, 1];
    assert_eq!(document.replay(3, 1, &bytes, 2), malformed(1, Flaw::Bounds), "a base before the log");
    assert_eq!(document.state_hash(), log.document.state_hash());
}
