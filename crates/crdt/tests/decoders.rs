//! Every decoder survives any bytes: an error or a value, in bounded time and memory, never a panic.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Log, Random};
use manyhands_crdt::{ChangeRef, Document, Flaw, Malformed, ReplicaId, read_entries, read_push};

/// A document with a bit of everything, by three replicas.
fn log(seed: u64) -> Log {
    let random = &mut Random(seed);
    let mut log = Log::default();
    let mut documents = [Document::new(), Document::new(), Document::new()];
    let mut known = [0; 3];
    for _ in 0..30 {
        let n = random.at(3);
        let (document, known) = (&mut documents[n], &mut known[n]);
        let (count, bytes) = log.run(*known + 1, log.tip());
        document.replay(*known + 1, count, &bytes, *known).unwrap();
        *known = log.tip();
        let mut edit = document.edit(ReplicaId(n as u64 + 1));
        let at = random.at(3);
        let content = random.text(5);
        edit.insert(["a", "b"][random.at(2)], 0, &content).unwrap();
        if random.chance(50) {
            edit.insert("a", 0, "xyz").unwrap();
            edit.delete("a", at..3).unwrap();
        }
        log.submit(edit.commit(*known).unwrap().as_ref()).unwrap();
    }
    log
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.at(bytes.len());
        match random.below(5) {
            0 => bytes[at] = random.below(256) as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, [0, 1, 0x7f, 0x80, 0xff][random.at(5)]),
            _ => {
                let to = (at + random.at(9)).min(bytes.len());
                let piece = bytes[at..to].to_vec();
                let into = random.at(bytes.len() + 1);
                bytes.splice(into..into, piece);
            }
        }
    }
}

/// Makes the checksum right again, so that what lies behind it is reached.
fn seal(bytes: &mut Vec<u8>) {
    let end = bytes.len().saturating_sub(16);
    bytes.truncate(end);
    let sum = blake3::hash(bytes);
    bytes.extend_from_slice(&sum.as_bytes()[..16]);
}

/// What a saved document's bytes hold, unpacked.
fn unpack(saved: &[u8]) -> Vec<u8> {
    let mut len = 0;
    let mut at = 4;
    loop {
        len |= usize::from(saved[at] & 0x7f) << (7 * (at - 4));
        at += 1;
        if saved[at - 1] < 0x80 {
            break;
        }
    }
    lz4_flex::block::decompress(&saved[at..saved.len() - 16], len).unwrap()
}

/// A saved document of this, packed and sealed.
fn pack(raw: &[u8]) -> Vec<u8> {
    let mut bytes = b"mhd\x03".to_vec();
    let mut len = raw.len();
    while len >= 0x80 {
        bytes.push(len as u8 | 0x80);
        len >>= 7;
    }
    bytes.push(len as u8);
    bytes.extend(lz4_flex::block::compress(raw));
    bytes.extend([0; 16]);
    seal(&mut bytes);
    bytes
}

/// A document that came through must be one that works.
fn use_it(document: &mut Document) {
    let names: Vec<String> = document.containers().map(str::to_owned).collect();
    for name in &names {
        let text = document.text(name).unwrap();
        let len = text.len();
        assert_eq!(text.to_string().chars().count(), len);
        let middle = text.anchor(len / 2, manyhands_crdt::Bias::Right);
        assert_eq!(text.resolve(&middle), Some(len / 2));
        let mut edit = document.edit(ReplicaId(77));
        edit.insert(name, len / 2, "new").unwrap();
        edit.delete(name, 0..1).unwrap();
        assert!(edit.commit(0).is_some());
    }
    document.state_hash();
}

// enforces: I-12
#[test]
fn any_bytes_as_a_document() {
    let random = &mut Random(1);
    let saved: Vec<Vec<u8>> = (0..8).map(|seed| log(seed).document.encode()).collect();
    let mut accepted = 0;
    for _ in 0..60_000 {
        let good = &saved[random.at(saved.len())];
        let mut raw = unpack(good);
        let bytes = if random.chance(80) {
            mutate(random, &mut raw);
            pack(&raw)
        } else {
            let mut bytes = good.clone();
            mutate(random, &mut bytes);
            if random.chance(50) {
                seal(&mut bytes);
            }
            bytes
        };
        if let Ok(mut document) = Document::decode(&bytes) {
            accepted += 1;
            assert!(document.memory_bytes() < 20_000 + 500 * raw.len());
            use_it(&mut document);
        }
    }
    assert!(accepted > 100, "some get through, {accepted} did");
    for _ in 0..20_000 {
        let n = random.below(60);
        let raw: Vec<u8> = (0..n).map(|_| random.below(256) as u8).collect();
        let mut bytes = [b"mhd\x03", &*raw].concat();
        if random.chance(50) {
            bytes = pack(&raw);
        } else if random.chance(50) {
            bytes.extend([0; 16]);
            seal(&mut bytes);
        }
        if let Ok(mut document) = Document::decode(&bytes) {
            use_it(&mut document);
        }
    }
    let mut broken = saved[0].clone();
    broken[20] ^= 1;
    let end = broken.len() - 16;
    assert_eq!(Document::decode(&broken).err(), Some(Malformed { offset: end, flaw: Flaw::Checksum }));
    assert_eq!(Document::decode(b"").err(), Some(Malformed { offset: 0, flaw: Flaw::Truncated }));
}

// enforces: I-12
#[test]
fn any_bytes_as_changes_and_entries() {
    let random = &mut Random(2);
    let logs: Vec<Log> = (0..8).map(log).collect();
    let runs: Vec<(u32, Vec<u8>)> = logs.iter().map(|log| log.run(1, log.tip())).collect();
    let mut accepted = 0;
    for _ in 0..60_000 {
        let (count, good) = &runs[random.at(runs.len())];
        let mut bytes = good.clone();
        mutate(random, &mut bytes);
        let mut document = Document::new();
        if document.replay(1, *count, &bytes, 0).is_ok() {
            accepted += 1;
        }
        // What came before the flaw has been applied, and is a document like any other.
        use_it(&mut document);
        assert!(read_entries(1, *count, &bytes).count() <= *count as usize + 1);
        assert!(read_push(ReplicaId(5), 0, *count, &bytes).count() <= *count as usize + 1);
    }
    assert!(accepted > 100, "some get through, {accepted} did");
    for _ in 0..200_000 {
        let n = random.below(24);
        let most = [8, 256][random.at(2)];
        let body: Vec<u8> = (0..n).map(|_| random.below(most) as u8).collect();
        let log = &logs[random.at(logs.len())];
        let mut document = log.document.clone();
        let before = document.state_hash();
        let change = ChangeRef { replica: ReplicaId(9), counter: 0, base: 0, body: &body };
        match document.apply(change) {
            Ok(applied) => {
                assert_eq!(document.hash_of(change), Ok((applied.next_counter, applied.hash)));
                assert_eq!(document.next_counter(ReplicaId(9)), applied.next_counter);
            }
            Err(_) => assert_eq!(document.state_hash(), before, "all or nothing"),
        }
    }
}

// enforces: I-12
#[test]
fn big_numbers_cost_nothing() {
    // Counts and lengths far beyond the bytes that are there.
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    // The seq is no count: what follows it is.
    for prefix in [&b""[..], b"\x01\x00", b"\x01\x00\x00", b"\x01\x00\x00\x01\x01a", b"\x01\x00\x00\x00"] {
        assert!(Document::decode(&pack(&[prefix, &huge].concat())).is_err());
    }
    // And the length of what is packed.
    for len in [&huge[..], &[0xff, 0xff, 0xff, 0x7f], &[0x80, 0x20]] {
        let mut bytes = [b"mhd\x03", len, &[0x10, b'a'], &[0; 16]].concat();
        seal(&mut bytes);
        assert!(Document::decode(&bytes).is_err());
    }
    let mut document = Document::new();
    for body in [&[2u8, 1][..], &[0, 1, b'p'], &[2 | 8, 0, 0], &[2 | 8 | 16 | 32, 0, 0]] {
        let body = [body, &huge].concat();
        let change = ChangeRef { replica: ReplicaId(1), counter: 0, base: 0, body: &body };
        assert!(document.apply(change).is_err());
        assert!(document.hash_of(change).is_err());
    }
}
