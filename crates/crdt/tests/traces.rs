//! Recorded sessions, one keystroke a change, through a server and a client.

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};

use common::Log;
use manyhands_crdt::{Document, Limits, ReplicaId};
use serde_json::Value;

const AUTHOR: ReplicaId = ReplicaId(4711);

fn read(path: &Path) -> Value {
    let mut json = String::new();
    let file = std::fs::File::open(path).expect("a trace");
    flate2::read::GzDecoder::new(file).read_to_string(&mut json).expect("gzip");
    serde_json::from_str(&json).expect("JSON")
}

/// Traces in this repository, and those beside it when they are there.
fn traces() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut traces = vec![here.join("tests/traces/blog-post-start.json.gz")];
    let repository = here.ancestors().nth(2).expect("crates/crdt is two levels down");
    for shared in ["../shared/traces/sequential", "../../shared/traces/sequential"] {
        let folder = std::fs::read_dir(repository.join(shared)).into_iter().flatten();
        traces.extend(folder.map(|entry| entry.expect("a listing").path()));
    }
    traces.sort();
    traces
}

fn limits() -> Limits {
    // Some traces paste whole files at once.
    Limits { change_bytes_max: 8 * 1024 * 1024, ..Limits::default() }
}

fn replay(path: &Path) {
    let trace = read(path);
    let mut log = Log { document: Document::with_limits(limits()), entries: Vec::new() };
    let mut author = Document::with_limits(limits());
    let mut edits = vec![(0, 0, trace["startContent"].as_str().expect("a text"))];
    for transaction in trace["txns"].as_array().expect("transactions") {
        for patch in transaction["patches"].as_array().expect("patches") {
            let number = |n: usize| patch[n].as_u64().expect("a number") as usize;
            edits.push((number(0), number(1), patch[2].as_str().expect("a text")));
        }
    }
    for (n, (at, deleted, inserted)) in edits.iter().enumerate() {
        let mut edit = author.edit(AUTHOR);
        edit.delete("text", *at..at + deleted).expect("in bounds");
        edit.insert("text", *at, inserted).expect("in bounds");
        if let Some(change) = edit.commit(log.tip()) {
            log.submit(change.as_ref()).expect("a good change");
        }
        if n % 5_000 == 4_999 {
            let saved = log.document.encode();
            let loaded = Document::decode_with_limits(&saved, limits()).expect("what was saved");
            assert_eq!(loaded.state_hash(), log.document.state_hash());
            log.document = loaded;
        }
    }
    let end = trace["endContent"].as_str().expect("a text");
    let mut client = Document::with_limits(limits());
    let (count, bytes) = log.run(1, log.tip());
    client.replay(1, count, &bytes, 0).expect("good entries");
    for document in [&author, &log.document, &client] {
        let text = document.text("text").expect("it was written to");
        assert_eq!(text.to_string(), end, "{}", path.display());
        assert_eq!(document.state_hash(), author.state_hash());
    }
}

// enforces: I-5
#[test]
fn recorded_sessions_end_in_their_text() {
    traces().iter().for_each(|path| replay(path));
}
