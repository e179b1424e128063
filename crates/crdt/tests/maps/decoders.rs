//! Any bytes, where ops of maps and saved maps are expected.

use manyhands_crdt::{
    ChangeRef, Document, Flaw, Hlc, KEY_BYTES_MAX, Limits, MAP_NAME_BYTES_MAX, Malformed, MapOp, Refusal,
    ReplicaId, Strategy, map_change_body, read_map_ops,
};

use crate::common::{Log, Random};

const HUGE: [u8; 10] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];

fn apply(document: &mut Document, body: &[u8]) -> Result<(), Refusal> {
    document.apply(ChangeRef { replica: ReplicaId(7), counter: 0, base: 0, body }).map(drop)
}

fn flaw(body: &[u8]) -> (usize, Flaw) {
    match apply(&mut Document::new(), body) {
        Err(Refusal::Malformed(Malformed { offset, flaw })) => {
            assert!(read_map_ops(body).is_err());
            (offset, flaw)
        }
        other => panic!("{other:?}"),
    }
}

const SET: u8 = 2 << 1;
const REMOVE: u8 = SET | 1 << 3;
const NAMED: u8 = 1 << 4;
const LOGICAL: u8 = 1 << 5;
const EXPECT: u8 = 1 << 6;

// enforces: I-12
#[test]
fn bytes_that_no_writer_makes() {
    assert_eq!(flaw(&[SET]), (1, Flaw::Truncated));
    assert_eq!(flaw(&[SET | 0x80, 1, b'k', 1, 1, b'0']), (0, Flaw::UnknownOp), "a reserved bit");
    assert_eq!(flaw(&[REMOVE, 0, 1]), (1, Flaw::Key), "an empty key");
    assert_eq!(
        flaw(&[REMOVE | NAMED, 0, 1, b'k', 1]),
        (1, Flaw::ContainerName),
        "no name, said in the long way"
    );
    assert_eq!(flaw(&[REMOVE, 0x81, 0x04]), (1, Flaw::Key), "513 bytes");
    assert_eq!(flaw(&[REMOVE | NAMED, 0x80, 0x02]), (1, Flaw::ContainerName), "256 bytes");
    assert_eq!(flaw(&[REMOVE, 1, 0xff, 1]), (2, Flaw::Utf8));
    assert_eq!(flaw(&[REMOVE, 1, b'k', 0x80, 0x00]), (3, Flaw::Varint));
    let beyond = [REMOVE, 1, b'k', 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    assert_eq!(flaw(&beyond), (3, Flaw::Stamp), "2^53 microseconds");
    assert_eq!(flaw(&[REMOVE | LOGICAL, 1, b'k', 1, 0]), (3, Flaw::NotCanonical), "no logical part");
    assert_eq!(flaw(&[REMOVE | LOGICAL, 1, b'k', 1, 0x80, 0x80, 4]), (3, Flaw::Stamp), "65,536");
    assert_eq!(flaw(&[REMOVE, 1, b'k', 1, 0]), (4, Flaw::TrailingBytes), "a removal with a value");
    assert!(matches!(flaw(&[SET, 1, b'k', 1, 0]), (5, Flaw::Json(_))), "no value");
    assert!(matches!(flaw(&[SET, 1, b'k', 1, 2, b'0', b'1']), (5, Flaw::Json(_))));
    assert_eq!(flaw(&[SET, 1, b'k', 1, 3, b'"', 0xff, b'"']), (6, Flaw::Utf8));
    for at in [&[SET][..], &[SET | NAMED], &[SET, 1, b'k'], &[SET, 1, b'k', 1]] {
        flaw(&[at, &HUGE].concat());
    }
    let expecting = [REMOVE | EXPECT, 1, b'k', 1, 0];
    assert_eq!(apply(&mut Document::new(), &expecting), Err(Refusal::ExpectUnsupported));
    let mut document = Document::with_strategy(Strategy::Server, Limits::default());
    assert_eq!(apply(&mut document, &expecting), Ok(()));
}

#[test]
fn what_is_written_is_read() {
    let random = &mut Random(5);
    for _ in 0..20_000 {
        let name = |random: &mut Random, min: u64, max: usize| {
            let n = [min, 1 + random.below(5), max as u64 / 4][random.at(3)];
            random.text(n)
        };
        let (map, key) = (name(random, 0, MAP_NAME_BYTES_MAX), name(random, 1, KEY_BYTES_MAX));
        let stamp = Hlc {
            micros: [0, 1, random.below(1 << 53), (1 << 53) - 1][random.at(4)],
            logical: [0, 1, u16::MAX][random.at(3)],
        };
        let value = random.chance(70).then(|| format!("[{}]", random.below(1 << 30)));
        let expect = random.chance(30).then(|| random.below(1 << 60));
        let op = MapOp { map: &map, key: &key, value: value.as_deref(), stamp, expect };
        let body = map_change_body(&op).unwrap();
        assert_eq!(read_map_ops(&body).unwrap().collect::<Vec<_>>(), [(0, op)]);
    }
}

fn log(strategy: Strategy, seed: u64) -> Log {
    let random = &mut Random(seed);
    let mut log = Log { document: Document::with_strategy(strategy, Limits::default()), ..Log::default() };
    for n in 0..8 {
        let mut author = Document::decode(&log.document.encode()).unwrap();
        let mut edit = author.edit(ReplicaId(1 + n % 3 + seed));
        for _ in 0..1 + random.below(4) {
            let (map, key) = (["", "m"][random.at(2)], ["a", "b", "ö"][random.at(3)]);
            let stamp = Hlc { micros: random.below(9), logical: random.below(2) as u16 };
            match random.below(4) {
                0 => edit.remove(map, key, stamp, None).unwrap(),
                1 => edit.insert("page", 0, "text").unwrap(),
                _ => edit.set(map, key, "{\"x\":[1.0,\"\\n\"]}", stamp, None).unwrap(),
            }
        }
        let mut change = edit.commit(0).unwrap();
        // As if the author had not heard all of it, so that values conflict.
        change.base = random.below(log.tip() + 1);
        log.submit(change.as_ref()).unwrap();
    }
    log
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..1 + random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.at(bytes.len());
        match random.below(4) {
            0 => bytes[at] = random.below(256) as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => drop(bytes.remove(at)),
            _ => bytes.insert(at, random.below(256) as u8),
        }
    }
}

/// A document that came through must be one that works.
fn use_it(document: &mut Document) {
    let names: Vec<String> = document.maps().map(str::to_owned).collect();
    for name in &names {
        let map = document.map(name).unwrap();
        assert_eq!(map.iter().count(), map.len());
        let keys: Vec<String> = map.iter().map(|(key, _)| key.to_owned()).collect();
        for key in &keys {
            let conflicts = document.map(name).unwrap().conflicts(key).count();
            assert!(conflicts == 0 || document.strategy() == Strategy::Crdt);
            let mut edit = document.edit(ReplicaId(77));
            edit.set(name, key, "1", Hlc::MAX, None).unwrap();
            edit.remove(name, key, Hlc::MAX, None).unwrap();
            assert!(edit.commit(0).is_some());
            assert!(document.map(name).is_none_or(|map| map.get(key).is_none()));
        }
    }
    let loaded = Document::decode(&document.encode()).unwrap();
    assert_eq!(loaded.state_hash(), document.state_hash());
}

fn pack(raw: &[u8]) -> Vec<u8> {
    let mut bytes = b"mhd\x03".to_vec();
    let mut len = raw.len();
    while len >= 0x80 {
        bytes.push(len as u8 | 0x80);
        len >>= 7;
    }
    bytes.push(len as u8);
    bytes.extend(lz4_flex::block::compress(raw));
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(&sum.as_bytes()[..16]);
    bytes
}

fn unpack(saved: &[u8]) -> Vec<u8> {
    let (mut len, mut at) = (0, 4);
    loop {
        len |= usize::from(saved[at] & 0x7f) << (7 * (at - 4));
        at += 1;
        if saved[at - 1] < 0x80 {
            break;
        }
    }
    lz4_flex::block::decompress(&saved[at..saved.len() - 16], len).unwrap()
}

// enforces: I-12
#[test]
fn any_bytes_as_a_document_with_maps() {
    let random = &mut Random(6);
    let saved: Vec<Vec<u8>> =
        (0..12).map(|seed| unpack(&log(Strategy::ALL[seed as usize % 3], seed).document.encode())).collect();
    let mut accepted = 0;
    for _ in 0..60_000 {
        let mut raw = saved[random.at(saved.len())].clone();
        mutate(random, &mut raw);
        if let Ok(mut document) = Document::decode(&pack(&raw)) {
            accepted += 1;
            assert!(document.memory_bytes() < 20_000 + 500 * raw.len());
            use_it(&mut document);
        }
    }
    assert!(accepted > 1_000, "some get through, {accepted} did");
    // Numbers far beyond the bytes that are there, behind every prefix.
    for raw in &saved {
        for at in 0..raw.len() {
            let _ = Document::decode(&pack(&[&raw[..at], &HUGE].concat()));
            let _ = Document::decode(&pack(&[&raw[..at], &HUGE, &raw[at..]].concat()));
            assert!(Document::decode(&pack(&raw[..at])).is_err(), "cut off at {at}");
        }
    }
}

// enforces: I-12
#[test]
fn any_bytes_as_writes_to_maps() {
    let random = &mut Random(7);
    let logs: Vec<Log> = (0..12).map(|seed| log(Strategy::ALL[seed as usize % 3], seed)).collect();
    let runs: Vec<(u32, Vec<u8>)> = logs.iter().map(|log| log.run(1, log.tip())).collect();
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..60_000 {
        let n = random.at(logs.len());
        let (count, mut bytes) = runs[n].clone();
        mutate(random, &mut bytes);
        let mut document = Document::with_strategy(logs[n].document.strategy(), Limits::default());
        if document.receive(1, count, &bytes, 0, &mut Vec::new()).is_ok() {
            accepted += 1;
        }
        use_it(&mut document);
    }
    assert!(accepted > 1_000, "some get through, {accepted} did");
    accepted = 0;
    for _ in 0..200_000 {
        let log = &logs[random.at(logs.len())];
        let mut body = match random.below(3) {
            0 => (0..random.below(24)).map(|_| random.below(256) as u8).collect(),
            _ => {
                let op = MapOp { map: "m", key: "a", value: Some("[1]"), stamp: Hlc::at(3), expect: None };
                map_change_body(&op).unwrap()
            }
        };
        mutate(random, &mut body);
        let mut document = log.document.clone();
        let before = document.encode();
        match document.apply(ChangeRef { replica: ReplicaId(99), counter: 0, base: 0, body: &body }) {
            Ok(_) => accepted += 1,
            Err(_) => {
                refused += 1;
                assert_eq!(document.encode(), before, "all or nothing");
            }
        }
    }
    assert!(accepted > 1_000 && refused > 1_000, "{accepted} accepted, {refused} refused");
}
