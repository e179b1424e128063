//! `vectors/malformed.json`: bytes that are refused, and with what verdict. Other engines are held to it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::Log;
use manyhands_crdt::{ChangeRef, Document, EntryWriter, Hlc, ReplicaId, Strategy, read_push};
use serde_json::{Value, json};

const ANN: ReplicaId = ReplicaId(10);
const BOB: ReplicaId = ReplicaId(20);
const EVE: ReplicaId = ReplicaId(30);

/// Ann has "abc" in "page" (0, 1, 2), deleted the b (3) and wrote a title (4), Bob has "xy" in "notes" (0, 1).
fn log() -> Log {
    let mut log = Log::default();
    let mut ann = Document::new();
    let mut edit = ann.edit(ANN);
    edit.insert("page", 0, "abc").unwrap();
    edit.delete("page", 1..2).unwrap();
    edit.set("", "title", "1", Hlc::at(1), None).unwrap();
    log.submit(edit.commit(0).unwrap().as_ref()).unwrap();
    let mut bob = Document::new();
    let mut edit = bob.edit(BOB);
    edit.insert("notes", 0, "xy").unwrap();
    log.submit(edit.commit(0).unwrap().as_ref()).unwrap();
    log
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// An insertion's header: left origin 8 the op before, 16 own, 24 another's; right origin 32 own, 64 another's, 96
// inherited; 128 one scalar. A deletion's: 2, and 8 another's, 16 one element, 32 more ranges. A map's: 4, and 8
// removes, 16 named, 32 logical, 64 expects. 1: more follow.
const BODIES: [(&str, &[u8]); 68] = [
    ("no op", &[]),
    ("unknown kind", &[6]),
    ("an insertion that ends after its header", &[0]),
    ("a container's name that ends too early", &[0, 4, b'p']),
    ("no container's name", &[0, 0, 2, b'h', b'i']),
    ("a container's name that is no UTF-8", &[128, 1, 0xff, b'h']),
    ("an insertion of nothing", &[0, 1, b'p', 0]),
    ("one scalar in the long form", &[0, 1, b'p', 1, b'h']),
    ("one scalar of four bytes in the long form", &[0, 1, b'p', 4, 0xf0, 0x9f, 0x8e, 0x89]),
    ("a varint in a longer form", &[0, 1, b'p', 0x82, 0, b'h', b'i']),
    ("a varint of eleven bytes", &[16, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 1, b'h']),
    ("a varint beyond 64 bits", &[16, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2, b'h']),
    ("a text that ends too early", &[0, 1, b'p', 3, b'h', b'i']),
    ("a text longer than any memory", &[0, 1, b'p', 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
    ("a text that is no UTF-8", &[0, 1, b'p', 2, b'h', 0xff]),
    ("a text that ends inside a scalar", &[0, 1, b'p', 2, b'h', 0xc3]),
    ("half a surrogate pair", &[128, 1, b'p', 0xed, 0xa0, 0x80]),
    ("a surrogate pair as six bytes", &[0, 1, b'p', 6, 0xed, 0xa0, 0xbc, 0xed, 0xbe, 0x89]),
    ("a scalar in a longer form", &[128, 1, b'p', 0xc0, 0x80]),
    ("a scalar beyond the last", &[128, 1, b'p', 0xf4, 0x90, 0x80, 0x80]),
    ("bytes left over", &[128, 1, b'p', b'h', b'i']),
    ("more is said to follow", &[129, 1, b'p', b'h']),
    ("inherits without going on", &[248, 0, 0, b'h']),
    ("inherits without a left origin", &[224, b'h']),
    ("a left origin at distance 0", &[144, 0, b'h']),
    ("the op before, by distance", &[1, 1, b'p', 2, b'h', b'i', 144, 1, b'!']),
    ("a right origin at distance 0", &[160, 0, b'h']),
    ("an inherited right origin spelt out", &[1, 1, b'p', 2, b'h', b'i', 136, b'!']),
    ("an own op before the first", &[136, b'h']),
    ("an own op far before the first", &[144, 9, b'h']),
    ("an index that the log has not given out", &[152, 2, 0, b'h']),
    ("an op that is not known", &[152, 0, 5, b'h']),
    ("a deletion as a left origin", &[152, 0, 3, b'h']),
    ("a write to a map as a left origin", &[152, 0, 4, b'h']),
    ("a deletion as a right origin", &[192, 0, 3, b'h']),
    ("an own deletion as an origin", &[129, 1, b'p', b'h', 19, 1, 136, b'!']),
    ("origins in two containers", &[216, 0, 0, 1, 1, b'h']),
    ("own and another's origin in two containers", &[129, 1, b'p', b'h', 200, 0, 0, b'!']),
    ("a deletion that ends after its header", &[2]),
    ("a deletion with reserved bits", &[82, 1]),
    ("a deletion of own ops before the first", &[18, 1]),
    ("a deletion at distance 0", &[18, 0]),
    ("a deletion that ends behind its own op", &[129, 1, b'p', b'h', 2, 1, 2]),
    ("a deletion of nothing", &[10, 0, 0, 0]),
    ("a deletion of one element in the long form", &[10, 0, 0, 1]),
    ("a deletion of what is no element", &[10, 0, 2, 2]),
    ("a deletion of what is not known", &[10, 0, 4, 3]),
    ("a deletion in an index that is not given out", &[26, 7, 0]),
    ("a deletion with no further range", &[58, 0, 0, 0]),
    ("a deletion with more ranges than bytes", &[58, 0, 0, 9, 0, 1]),
    ("a deletion with ranges that touch", &[58, 0, 0, 1, 0, 0]),
    ("a deletion with replicas out of order", &[58, 1, 0, 1, 1, 0, 0]),
    (
        "a deletion with ranges beyond all counters",
        &[42, 0, 0, 2, 1, 252, 255, 255, 255, 255, 255, 255, 255, 255, 1, 1],
    ),
    ("a map's write with a reserved bit", &[132, 1, b'k', 1, 1, b'1']),
    ("a map's write without a key", &[4, 0, 1, 1, b'1']),
    ("a map's name that is empty", &[20, 0, 1, b'k', 1, 1, b'1']),
    ("a key that is no UTF-8", &[4, 1, 0xff, 1, 1, b'1']),
    ("a stamp beyond 2^53 microseconds", &[4, 1, b'k', 128, 128, 128, 128, 128, 128, 128, 16, 1, b'1']),
    ("a logical part of 0", &[36, 1, b'k', 1, 0, 1, b'1']),
    ("a logical part beyond 16 bits", &[36, 1, b'k', 1, 128, 128, 4, 1, b'1']),
    ("a value that is no JSON", &[4, 1, b'k', 1, 1, b'x']),
    ("a value that is empty", &[4, 1, b'k', 1, 0]),
    ("a value with a space", &[4, 1, b'k', 1, 2, b' ', b'1']),
    ("a value with a number that JSON does not have", &[4, 1, b'k', 1, 2, b'0', b'1']),
    (
        "a value with two members of one name",
        &[4, 1, b'k', 1, 13, b'{', b'"', b'a', b'"', b':', b'1', b',', b'"', b'a', b'"', b':', b'2', b'}'],
    ),
    (
        "a value with half a surrogate pair",
        &[4, 1, b'k', 1, 8, b'"', b'\\', b'u', b'd', b'8', b'0', b'0', b'"'],
    ),
    ("a value that ends too early", &[4, 1, b'k', 1, 9, b'1']),
    ("a write that expects, where nothing can be expected", &[68, 1, b'k', 1, 0, 1, b'1']),
];

/// Eve submits each as her first change.
fn bodies() -> Vec<Value> {
    let mut rows = Vec::new();
    for (name, body) in BODIES {
        let mut log = log();
        let state = log.document.state_hash();
        let change = ChangeRef { replica: EVE, counter: 0, base: 2, body };
        let verdict = format!("{:?}", log.submit(change).expect_err(name));
        assert_eq!(log.document.state_hash(), state, "{name}");
        rows.push(json!({ "name": name, "body": hex(body), "verdict": verdict }));
    }
    rows
}

/// Pushes of Eve: so many changes in these bytes.
fn pushes() -> Vec<Value> {
    let pushes: [(&str, u32, &[u8]); 6] = [
        ("no base", 1, &[]),
        ("a base and no body", 1, &[2]),
        ("fewer changes than there are bytes for", 1, &[2, 128, 1, b'p', b'h', 0, 232, b'i']),
        ("more changes than there are", 2, &[2, 128, 1, b'p', b'h']),
        ("a base before the log", 2, &[0, 128, 1, b'p', b'h', 1, 232, b'i']),
        ("no change, and bytes", 0, &[2]),
    ];
    let row = |(name, count, bytes): (&str, u32, &[u8])| {
        let flaw = read_push(EVE, 0, count, bytes).find_map(Result::err).expect(name);
        json!({ "name": name, "count": count, "push": hex(bytes), "verdict": format!("{flaw:?}") })
    };
    pushes.map(row).to_vec()
}

/// Runs of one entry behind the two of the log.
fn entries() -> Vec<Value> {
    let whole = |head: &[u8]| [head, &[128, 1, b'p', b'h']].concat();
    let id = |replica: ReplicaId| replica.0.to_le_bytes();
    let runs: [(&str, Vec<u8>); 9] = [
        ("no entry", vec![]),
        ("an index that is not given out", whole(&[2 << 1, 0])),
        (
            "a new replica with an index that is not the next",
            whole(&[&[3 << 1 | 1][..], &id(EVE), &[0]].concat()),
        ),
        ("a new replica that is known", whole(&[&[2 << 1 | 1][..], &id(ANN), &[0]].concat())),
        ("a new replica of id 0", whole(&[&[2 << 1 | 1][..], &id(ReplicaId(0)), &[0]].concat())),
        ("half an id", vec![2 << 1 | 1, 30, 0, 0]),
        ("a base before the log", whole(&[0, 3])),
        ("no body", vec![0, 0]),
        ("bytes left over", [whole(&[0, 0]), vec![0]].concat()),
    ];
    let row = |(name, bytes): (&str, Vec<u8>)| {
        let mut document = log().document;
        let refusal = document.replay(3, 1, &bytes, 2).expect_err(name);
        json!({ "name": name, "entries": hex(&bytes), "verdict": format!("{refusal:?}") })
    };
    runs.map(row).to_vec()
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(&sum.as_bytes()[..16]);
    bytes
}

/// A saved document that holds this.
fn pack(raw: &[u8]) -> Vec<u8> {
    let mut bytes = Document::new().encode()[..4].to_vec();
    bytes.push(u8::try_from(raw.len()).expect("a short one"));
    bytes.extend(lz4_flex::block::compress(raw));
    seal(bytes)
}

/// How many of the saved documents have a flaw in their frame.
const FRAMES: usize = 6;

/// Saved documents.
fn documents() -> Vec<Value> {
    let magic = Document::new().encode()[..4].to_vec();
    let saved = log().document.encode();
    let ann = |next: u8, lag: u8, index: u8| [&ANN.0.to_le_bytes()[..], &[next, lag, index]].concat();
    // Strategy, seq, one replica, one text "p" with runs of these flags and columns, no maps.
    let text =
        |replica: Vec<u8>, columns: &[u8]| [&[1, 0, 1][..], &replica, &[1, 1, b'p'], columns, &[0]].concat();
    let good = text(ann(2, 0, 1), &[1, 0x80 | 4 | 16, 0, 1, 0, 0, 0, 2, b'h', b'i']);
    assert_eq!(
        Document::decode(&pack(&good)).unwrap().text("p").unwrap().to_string(),
        "hi",
        "the frame is right"
    );
    let documents: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("another format", [b"mhd\x00".to_vec(), vec![0; 20]].concat()),
        ("cut short", saved[..saved.len() - 1].to_vec()),
        ("a checksum that is another's", {
            let mut flipped = saved.clone();
            flipped[9] ^= 1;
            flipped
        }),
        (
            "an unpacked length that the bytes cannot hold",
            seal([magic.clone(), vec![0x80, 0x20, 0x10, b'a']].concat()),
        ),
        ("packed bytes that are none", seal([magic, vec![4, 0xff, 0xff]].concat())),
        ("an unknown strategy", pack(&[9, 0, 0, 0, 0])),
        ("a seq beyond 63 bits", pack(&[1, 128, 128, 128, 128, 128, 128, 128, 128, 128, 1, 0, 0, 0])),
        ("bytes left over", pack(&[1, 0, 0, 0, 0, 0])),
        ("a replica of id 0", pack(&[&[1, 0, 1][..], &[0; 8], &[0, 0, 0, 0, 0]].concat())),
        ("a replica twice", pack(&[&[1, 0, 2][..], &ann(1, 0, 1), &ann(1, 0, 2), &[0, 0]].concat())),
        (
            "log indices with a hole",
            pack(&[&[1, 0, 2][..], &ann(1, 0, 2), &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0, 0]].concat()),
        ),
        ("a replica with more logged than applied", pack(&[&[1, 0, 1][..], &ann(1, 2, 1), &[0, 0]].concat())),
        ("a text without a name", pack(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])),
        (
            "elements beyond what the replica has",
            pack(&text(ann(1, 0, 1), &[1, 0x80 | 4 | 16, 0, 1, 0, 0, 0, 2, b'h', b'i'])),
        ),
        (
            "fewer characters than elements",
            pack(&text(ann(2, 0, 1), &[1, 0x80 | 4 | 16, 0, 1, 0, 0, 0, 1, b'h'])),
        ),
        (
            "more characters than elements",
            pack(&text(ann(2, 0, 1), &[1, 0x80 | 4 | 16, 0, 1, 0, 0, 0, 3, b'h', b'i', b'!'])),
        ),
        (
            "characters that are no UTF-8",
            pack(&text(ann(2, 0, 1), &[1, 0x80 | 4 | 16, 0, 1, 0, 0, 0, 2, 0xed, 0xa0])),
        ),
        (
            "a column that is too long",
            pack(&text(ann(2, 0, 1), &[1, 0x80 | 4 | 16, 0, 2, 0, 0, 0, 0, 2, b'h', b'i'])),
        ),
        (
            "an element in two places",
            pack(&text(ann(2, 0, 1), &[2, 0x40 | 4 | 16, 0x40 | 4 | 16, 0, 0, 2, 0, 1, 0, 2, b'h', b'i'])),
        ),
        (
            "an origin that is no element",
            pack(&text(ann(3, 0, 1), &[1, 0x40 | 6 | 16, 0, 0, 1, 0, 1, 3, 1, b'h'])),
        ),
    ];
    let row = |(n, (name, bytes)): (usize, (&str, Vec<u8>))| {
        let flaw = Document::decode(&bytes).expect_err(name);
        // Of what is packed only that it is refused: a loader may find one flaw before the other.
        let verdict = if n < FRAMES { format!("{flaw:?}") } else { "Malformed".to_owned() };
        json!({ "name": name, "document": hex(&bytes), "verdict": verdict })
    };
    documents.into_iter().enumerate().map(row).collect()
}

// enforces: I-12
#[test]
fn the_engine_gives_the_verdicts_of_the_file() {
    let made = json!({
        "body_format": manyhands_crdt::BODY_FORMAT,
        "strategy": Strategy::Crdt.name(),
        "log": hex(&log().run(1, 2).1),
        "bodies": bodies(),
        "pushes": pushes(),
        "entries": entries(),
        "documents": documents(),
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/malformed.json");
    let file: Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap_or_default()).unwrap_or_default();
    if made != file {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("malformed.json");
        std::fs::write(&path, serde_json::to_string_pretty(&made).unwrap() + "\n").unwrap();
        panic!("vectors/malformed.json says otherwise; what the engine makes is in {}", path.display());
    }

    // Every flaw, and every reason for a refusal that bytes alone can give.
    let verdicts: String = ["bodies", "pushes", "entries", "documents"]
        .iter()
        .flat_map(|part| made[part].as_array().unwrap())
        .map(|row| row["verdict"].as_str().unwrap().to_owned() + "\n")
        .collect();
    let missing: BTreeSet<&str> = [
        "Truncated",
        "TrailingBytes",
        "Varint",
        "UnknownOp",
        "UnknownFormat",
        "Utf8",
        "Empty",
        "NotCanonical",
        "Counter",
        "ContainerName",
        "flaw: Key",
        "Stamp",
        "Json(Syntax)",
        "Json(NotCanonical)",
        "Json(DuplicateKey)",
        "Json(LoneSurrogate)",
        "Bounds",
        "Inconsistent",
        "Checksum",
        "UnknownIndex",
        "MissingReference",
        "NotAnElement",
        "OtherContainer",
        "NoReplica",
        "ExpectUnsupported",
    ]
    .into_iter()
    .filter(|verdict| !verdicts.contains(verdict))
    .collect();
    assert!(missing.is_empty(), "no vector for {missing:?}");
}

#[test]
fn the_log_of_the_file_is_a_good_one() {
    let log = log();
    let (count, bytes) = log.run(1, 2);
    let mut document = Document::new();
    document.replay(1, count, &bytes, 0).unwrap();
    let mut run = EntryWriter::new();
    run.push(3, 2, Some(EVE), 2, &[128, 1, b'p', b'h']);
    document.replay(3, 1, &run.finish(), 2).unwrap();
    assert_eq!(document.text("p").unwrap().to_string(), "h");
}
