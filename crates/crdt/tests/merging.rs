//! `vectors/merge.json`: concurrent changes come to the same in every order that causality allows.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Log;
use manyhands_crdt::{ChangeRef, Document, ReplicaId};
use serde_json::Value;

struct Row {
    replica: ReplicaId,
    counter: u64,
    next_counter: u64,
    base: u64,
    body: Vec<u8>,
    after: Vec<usize>,
    hash: Option<String>,
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rows(value: &Value) -> Vec<Row> {
    let row = |row: &Value| Row {
        replica: ReplicaId(row["replica"].as_str().unwrap().parse().unwrap()),
        counter: row["counter"].as_u64().unwrap(),
        next_counter: row["next_counter"].as_u64().unwrap(),
        base: row["base"].as_u64().unwrap(),
        body: unhex(row["body"].as_str().unwrap()),
        after: row["after"].as_array().into_iter().flatten().map(|n| n.as_u64().unwrap() as usize).collect(),
        hash: row["hash"].as_str().map(str::to_owned),
    };
    value.as_array().unwrap().iter().map(row).collect()
}

impl Row {
    fn change(&self) -> ChangeRef<'_> {
        ChangeRef { replica: self.replica, counter: self.counter, base: self.base, body: &self.body }
    }
}

fn submit(log: &mut Log, row: &Row) {
    let applied = log.submit(row.change()).unwrap();
    assert_eq!(applied.next_counter, row.next_counter);
    assert!(row.hash.as_ref().is_none_or(|hash| *hash == hex(&applied.hash)));
}

fn check(case: &Value, document: &Document) {
    let name = &case["name"];
    for (container, text) in case["texts"].as_object().unwrap() {
        assert_eq!(&document.text(container).unwrap().to_string(), text, "{name}");
    }
    assert_eq!(document.containers().count(), case["texts"].as_object().unwrap().len(), "{name}");
    assert_eq!(hex(&document.state_hash()), case["state_hash"], "{name}");
}

/// Delivers in every order, and counts them.
fn every_order(case: &Value, start: &[Row], rows: &[Row], done: &mut Vec<usize>) -> usize {
    if done.len() == rows.len() {
        let mut log = Log::default();
        start.iter().for_each(|row| submit(&mut log, row));
        done.iter().for_each(|&n| submit(&mut log, &rows[n]));
        check(case, &log.document);
        let mut client = Document::new();
        let (count, bytes) = log.run(1, log.tip());
        client.replay(1, count, &bytes, 0).unwrap();
        check(case, &client);
        check(case, &Document::decode(&client.encode()).unwrap());
        return 1;
    }
    let mut orders = 0;
    for (n, row) in rows.iter().enumerate() {
        if !done.contains(&n) && row.after.iter().all(|before| done.contains(before)) {
            done.push(n);
            orders += every_order(case, start, rows, done);
            done.pop();
        }
    }
    orders
}

// enforces: I-5
#[test]
fn every_order_comes_to_what_the_file_says() {
    let file: Value = serde_json::from_str(include_str!("vectors/merge.json")).unwrap();
    let mut orders = 0;
    for case in file["cases"].as_array().unwrap() {
        orders += every_order(case, &rows(&case["start"]), &rows(&case["changes"]), &mut Vec::new());
    }
    println!("{orders} orders");
    assert!(orders > 3_000, "{orders} orders are too few for all permutations of five");
}
