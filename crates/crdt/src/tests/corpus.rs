//! The corpus of the fuzz target `history`, and mutations of it, on a stable compiler.

use std::fs;
use std::path::Path;

use super::history::History;
use super::run_bytes;
use crate::sequence::tests::Random;

const MUTATIONS: u64 = 2_000;

// enforces: I-5
#[test]
fn histories_that_a_fuzzer_found_worth_keeping() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/history");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!corpus.is_empty());
    corpus.iter().for_each(|bytes| run_bytes(bytes));
    let random = &mut Random(1);
    for n in 0..MUTATIONS {
        let mut bytes = corpus[random.at(corpus.len())].clone();
        let other = &corpus[random.at(corpus.len())];
        for _ in 0..1 + random.below(6) {
            if bytes.is_empty() {
                break;
            }
            let at = random.at(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes.truncate(at / 4 * 4 + 1),
                _ => bytes.extend(other.iter().skip(1).take(4 * (1 + random.at(12)))),
            }
        }
        println!("mutation {n}: HISTORY='{}'", History::from_bytes(&bytes));
        run_bytes(&bytes);
    }
}
