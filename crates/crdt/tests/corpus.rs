//! The corpora of the fuzz targets, and mutations of them, on a stable compiler.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../fuzz/src/targets.rs"]
#[allow(unreachable_pub, reason = "it is public in the crate of the targets")]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

use common::Random;

const MUTATIONS: u64 = 30_000;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn run(target: &str, check: fn(&[u8]) -> bool) {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let mut good = 0;
    for (file, bytes) in files.iter().zip(&corpus) {
        println!("{}", file.display());
        good += u32::from(check(bytes));
    }
    assert!(good >= 3, "only {good} files of the corpus get through: they are of another format");
    let mut good = 0;
    let random = &mut Random(1);
    for n in 0..MUTATIONS {
        let mut bytes = corpus[random.at(corpus.len())].clone();
        let other = &corpus[random.at(corpus.len())];
        for _ in 0..1 + random.below(4) {
            mutate(random, &mut bytes, other);
        }
        println!("mutation {n}: {bytes:02x?}");
        good += u64::from(check(&bytes));
    }
    assert!(good > MUTATIONS / 100, "only {good} mutations get through");
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let at = random.at(bytes.len());
    match random.below(6) {
        0 => bytes[at] = random.below(256) as u8,
        1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, [0, 1, 0x7f, 0x80, 0xff][random.at(5)]),
        4 => drop(bytes.remove(at)),
        _ => {
            let from = random.at(other.len() + 1);
            let piece = other[from..(from + random.at(9)).min(other.len())].to_vec();
            bytes.splice(at..at, piece);
        }
    }
}

// enforces: I-12
#[test]
fn pushes() {
    run("push", targets::push);
}

// enforces: I-12
#[test]
fn entries() {
    run("entries", targets::entries);
}

// enforces: I-12
#[test]
fn documents() {
    run("document", targets::document);
}

// enforces: I-12
#[test]
fn json() {
    run("json", targets::json);
}
