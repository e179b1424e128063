//! The codecs and the merge rule as files: `vectors/changes.json` is what other engines are held to, and what
//! keeps this one from changing its bytes unawares.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::Log;
use manyhands_crdt::{Change, ChangeRef, Document, PushWriter, ReplicaId, read_push};
use serde_json::{Value, json};

const ANN: ReplicaId = ReplicaId(0x0a11_0000_0000_0001);
const BOB: ReplicaId = ReplicaId(0x0b0b_0000_0000_0002);
const CAT: ReplicaId = ReplicaId(0x0ca7_0000_0000_0003);

struct Author {
    replica: ReplicaId,
    document: Document,
    known: u64,
}

impl Author {
    fn new(replica: ReplicaId) -> Author {
        Author { replica, document: Document::new(), known: 0 }
    }

    fn hear(&mut self, log: &Log) -> &mut Author {
        let (count, bytes) = log.run(self.known + 1, log.tip());
        self.document.replay(self.known + 1, count, &bytes, self.known).unwrap();
        self.known = log.tip();
        self
    }

    /// One change: each edit is a position, how much to delete there, and what to insert.
    fn edit(&mut self, container: &str, edits: &[(usize, usize, &str)]) -> Change {
        let mut edit = self.document.edit(self.replica);
        for &(at, deleted, inserted) in edits {
            edit.delete(container, at..at + deleted).unwrap();
            edit.insert(container, at, inserted).unwrap();
        }
        edit.commit(self.known).unwrap()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap()).collect()
}

fn scenario(name: &str, changes: &[Change]) -> Value {
    let mut log = Log::default();
    let mut rows = Vec::new();
    for change in changes {
        let applied = log.submit(change.as_ref()).unwrap();
        let mut push = PushWriter::new();
        push.push(change.base, &change.body);
        rows.push(json!({
            "replica": change.replica.0.to_string(),
            "counter": change.counter,
            "next_counter": change.next_counter,
            "base": change.base,
            "body": hex(&change.body),
            "push": hex(&push.finish()),
            "hash": hex(&applied.hash),
        }));
    }
    let texts = |name: &str| (name.to_owned(), json!(log.document.text(name).unwrap().to_string()));
    json!({
        "name": name,
        "changes": rows,
        "entries": hex(&log.run(1, log.tip()).1),
        "texts": log.document.containers().map(texts).collect::<serde_json::Map<_, _>>(),
        "state_hash": hex(&log.document.state_hash()),
        "document": hex(&log.document.encode()),
    })
}

fn scenarios() -> Vec<Value> {
    let authors = || (Author::new(ANN), Author::new(BOB), Author::new(CAT));
    let mut all = Vec::new();

    let (mut ann, ..) = authors();
    let typed: Vec<Change> =
        "Hi!\n".chars().enumerate().map(|(at, c)| ann.edit("page", &[(at, 0, &c.to_string())])).collect();
    all.push(scenario("typing, a character a change", &typed));

    let (mut ann, ..) = authors();
    let changes = [
        ann.edit("page", &[(0, 0, "abc")]),
        ann.edit("page", &[(2, 1, "")]),
        ann.edit("page", &[(1, 1, "d")]),
    ];
    all.push(scenario("backspace, then another letter", &changes));

    let (mut ann, ..) = authors();
    let changes = [ann.edit("page", &[(0, 0, "c")]), ann.edit("page", &[(0, 0, "b"), (0, 0, "a")])];
    all.push(scenario("typing backwards", &changes));

    let (mut ann, ..) = authors();
    let changes = [ann.edit("page", &[(0, 0, "🎉ß語\n"), (1, 2, "é")]), ann.edit("ünïcode", &[(0, 0, "𝄞")])];
    all.push(scenario("beyond ASCII and the basic plane, in two containers", &changes));

    let (mut ann, mut bob, mut cat) = authors();
    let mut log = Log::default();
    let first = ann.edit("page", &[(0, 0, "()")]);
    log.submit(first.as_ref()).unwrap();
    let mut changes = vec![first];
    changes.extend(
        [(&mut cat, "ccc"), (&mut ann, "aaa"), (&mut bob, "bbb")]
            .map(|(author, text)| author.hear(&log).edit("page", &[(1, 0, text)])),
    );
    all.push(scenario("three at one spot, ties by replica id", &changes));

    let (mut ann, mut bob, mut cat) = authors();
    let mut log = Log::default();
    let first = ann.edit("page", &[(0, 0, "x")]);
    log.submit(first.as_ref()).unwrap();
    // Cat and Bob both insert after x; Bob's is known to Ann, who goes on before it while Cat's arrives.
    let by_cat = cat.hear(&log).edit("page", &[(1, 0, "C")]);
    let by_bob = bob.hear(&log).edit("page", &[(1, 0, "B")]);
    log.submit(by_bob.as_ref()).unwrap();
    let by_ann = ann.hear(&log).edit("page", &[(1, 0, "A")]);
    all.push(scenario("right origins: a left child and right children", &[first, by_bob, by_ann, by_cat]));

    let (mut ann, mut bob, _) = authors();
    let mut log = Log::default();
    let first = ann.edit("page", &[(0, 0, "one two three")]);
    log.submit(first.as_ref()).unwrap();
    let second = bob.hear(&log).edit("page", &[(4, 3, "2"), (0, 0, "> ")]);
    let third = ann.edit("page", &[(3, 5, "")]);
    log.submit(second.as_ref()).unwrap();
    log.submit(third.as_ref()).unwrap();
    let fourth = bob.hear(&log).edit("page", &[(1, 6, "")]);
    all.push(scenario("deletions of several ranges of several replicas", &[first, second, third, fourth]));
    all
}

/// Bodies that Cat submits as her first change to a log where Ann has "abc" in "page" and then deleted the b.
fn refused() -> Vec<Value> {
    let bodies: [(&str, &[u8]); 12] = [
        ("no op", &[]),
        ("unknown kind", &[0x06]),
        ("an insertion of nothing", &[0x00, 1, b'p', 0]),
        ("one scalar in the long form", &[0x00, 1, b'p', 1, b'x']),
        ("a varint in a longer form", &[0x00, 1, b'p', 0x82, 0x00, b'x', b'y']),
        ("half a surrogate pair", &[0x80, 1, b'p', 0xed, 0xa0, 0x80]),
        ("bytes left over", &[0x80, 1, b'p', b'x', b'y']),
        ("inherits without going on", &[0xf8, 0, 0, b'x']),
        ("an index that the log has not given out", &[0x98, 9, 0, b'x']),
        ("an op that is not known", &[0x98, 0, 4, b'x']),
        ("an op that is no element", &[0x98, 0, 3, b'x']),
        ("an own op before the first", &[0x88, b'x']),
    ];
    let mut ann = Author::new(ANN);
    let change = ann.edit("page", &[(0, 0, "abc"), (1, 1, "")]);
    bodies
        .iter()
        .map(|(name, body)| {
            let mut log = Log::default();
            log.submit(change.as_ref()).unwrap();
            let change = ChangeRef { replica: CAT, counter: 0, base: 1, body };
            json!({ "name": name, "body": hex(body), "refusal": format!("{:?}", log.submit(change).unwrap_err()) })
        })
        .collect()
}

fn file() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/changes.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

// enforces: I-5
#[test]
fn the_engine_makes_the_bytes_of_the_file() {
    let made = json!({ "body_format": 1, "scenarios": scenarios(), "refused": refused() });
    if made != file() {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("changes.json");
        std::fs::write(&path, serde_json::to_string_pretty(&made).unwrap() + "\n").unwrap();
        panic!("vectors/changes.json says otherwise; what the engine makes is in {}", path.display());
    }
}

// enforces: I-5
#[test]
fn the_engine_takes_the_bytes_of_the_file() {
    for scenario in file()["scenarios"].as_array().unwrap() {
        let name = scenario["name"].as_str().unwrap();
        let changes = scenario["changes"].as_array().unwrap();
        let mut server = Document::new();
        for change in changes {
            let number = |key: &str| change[key].as_u64().unwrap();
            let replica = ReplicaId(change["replica"].as_str().unwrap().parse().unwrap());
            let push = unhex(&change["push"]);
            let mut read = read_push(replica, number("counter"), 1, &push);
            let (change_ref, next_counter) = read.next().unwrap().unwrap();
            assert_eq!(next_counter, number("next_counter"), "{name}");
            assert_eq!(hex(&server.apply(change_ref).unwrap().hash), change["hash"], "{name}");
        }
        let mut client = Document::new();
        client.replay(1, changes.len() as u32, &unhex(&scenario["entries"]), 0).unwrap();
        let loaded = Document::decode(&unhex(&scenario["document"])).unwrap();
        for document in [&server, &client, &loaded] {
            assert_eq!(hex(&document.state_hash()), scenario["state_hash"], "{name}");
            for (container, text) in scenario["texts"].as_object().unwrap() {
                assert_eq!(&document.text(container).unwrap().to_string(), text, "{name}");
            }
        }
    }
}
