//! One function for each decoder: takes any bytes, and panics when a promise is broken. Each says whether the bytes got
//! through. Nothing here is random.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use manyhands_crdt::{
    Admission, Bias, Change, ChangeRef, Document, EntryWriter, Hlc, Limits, Patch, PushWriter, ReplicaId,
    Strategy, canonical_json, read_entries, read_push,
};

/// Ann, Bob and Cat, with log indices 0, 1 and 2.
const AUTHORS: [ReplicaId; 3] = [ReplicaId(40), ReplicaId(10), ReplicaId(60)];

/// A document with a bit of everything, how long its log is, and that as one run of entries.
pub type Example = (Document, u32, Vec<u8>);

/// An example of each strategy, made once.
pub fn example(strategy: u8) -> &'static Example {
    static EXAMPLES: OnceLock<[Example; 3]> = OnceLock::new();
    &EXAMPLES.get_or_init(|| Strategy::ALL.map(make_example))[usize::from(strategy) % 3]
}

fn make_example(strategy: Strategy) -> Example {
    let mut document = Document::with_strategy(strategy, Limits::default());
    let mut log = EntryWriter::new();
    let edits: [(usize, &str, usize, usize, &str); 9] = [
        (0, "page", 0, 0, "one two\nthree"),
        (1, "page", 4, 0, "🎉ß語"),
        (2, "page", 4, 4, "x"),
        (1, "notes", 0, 0, "n"),
        (1, "notes", 1, 0, "o"),
        (0, "notes", 0, 1, ""),
        (2, "page", 2, 3, "abc"),
        (0, "page", 2, 0, "d"),
        (0, "page", 2, 0, "e"),
    ];
    for (author, container, at, deleted, inserted) in edits {
        let mut copy = document.clone();
        let mut edit = copy.edit(AUTHORS[author]);
        edit.delete(container, at..at + deleted).expect("it is there");
        edit.insert(container, at, inserted).expect("it is there");
        let change = edit.commit(u64::from(log.count())).expect("something was done");
        submit(&mut document, &mut log, &change);
    }
    let writes: [(&str, &str, Option<&str>, u64); 4] = [
        ("", "title", Some("{\"a\":[1,-2.5e3,null],\"ß\":\"🎉\"}"), 5_000),
        ("", "title", Some("true"), 4_000),
        ("meta", "k", Some("0"), 6_000),
        ("meta", "k", None, 7_000),
    ];
    // Two authors who do not see each other, then a third who does.
    let mut copies = [document.clone(), document.clone()];
    for (n, (map, key, value, stamp)) in writes.into_iter().enumerate() {
        let mut seen = document.clone();
        let copy = copies.get_mut(n).unwrap_or(&mut seen);
        let seq = copy.seq();
        let mut edit = copy.edit(AUTHORS[n % 3]);
        match value {
            Some(value) => edit.set(map, key, value, Hlc { micros: stamp, logical: n as u16 }, None),
            None => edit.remove(map, key, Hlc::at(stamp), None),
        }
        .expect("a good write");
        let change = edit.commit(seq).expect("something was done");
        submit(&mut document, &mut log, &change);
    }
    (document, log.count(), log.finish())
}

fn submit(document: &mut Document, log: &mut EntryWriter, change: &Change) {
    let new = document.replica_index(change.replica).is_none().then_some(change.replica);
    document.apply(change.as_ref()).expect("a good change");
    let index = document.replica_index(change.replica).expect("it has an entry now");
    log.push(u64::from(log.count()) + 1, index, new, change.base, &change.body);
}

/// The first two bytes: how many changes; whose, and of which strategy the document is. The rest is a push of theirs
/// to [`example`].
pub fn push(data: &[u8]) -> bool {
    let Some((&[count, author], bytes)) = data.split_first_chunk() else { return false };
    let mut document = example(author / 5).0.clone();
    let replica = [AUTHORS[0], AUTHORS[1], AUTHORS[2], ReplicaId(77), ReplicaId(0)][usize::from(author % 5)];
    let first = document.next_counter(replica);
    let mut again = PushWriter::new();
    let (mut next, mut taken) = (first, true);
    for change in read_push(replica, first, u32::from(count), bytes) {
        let Ok((change, after)) = change else { return false };
        assert_eq!(change.counter, next, "counters are dense");
        assert!(after > next, "a change takes a counter");
        assert_eq!(document.hash_of(change).ok().map(|(counter, _)| counter).unwrap_or(after), after);
        again.push(change.base, change.body);
        next = after;
        taken &= apply(&mut document, change, after);
    }
    assert_eq!(again.count(), u32::from(count));
    assert_eq!(again.finish(), bytes, "there is one way of writing a push");
    use_it(&mut document);
    taken
}

/// All or nothing, and known from then on.
fn apply(document: &mut Document, change: ChangeRef<'_>, after: u64) -> bool {
    let (state, version, indices) = (document.state_hash(), document.version(), document.replica_count());
    let admission = Admission { stamp_max: Some(1_000_000) };
    match document.admit(change, &admission) {
        Ok(applied) => {
            assert_eq!(applied.next_counter, after);
            assert_eq!(document.next_counter(change.replica), after);
            assert_eq!(document.hash_of(change), Ok((after, applied.hash)));
            assert!(document.apply(change).is_err(), "a change counts once");
            true
        }
        Err(_) => {
            assert_eq!(document.state_hash(), state, "a refused change leaves nothing behind");
            assert_eq!((document.version(), document.replica_count()), (version, indices));
            false
        }
    }
}

/// The first two bytes: how many entries, twice, and odd when they follow the log of [`example`], else they are the
/// whole log; the strategy.
pub fn entries(data: &[u8]) -> bool {
    let Some((&[count, strategy], bytes)) = data.split_first_chunk() else { return false };
    let (mut document, tip) = match count & 1 {
        1 => {
            let (document, tip, _) = example(strategy);
            (document.clone(), u64::from(*tip))
        }
        _ => (Document::with_strategy(example(strategy).0.strategy(), Limits::default()), 0),
    };
    let count = u32::from(count >> 1);
    let mut silent = document.clone();
    let (mut texts, mut values) = shown(&document);
    let mut patches = Vec::new();
    let received = document.receive(tip + 1, count, bytes, tip, &mut patches);
    assert_eq!(silent.replay(tip + 1, count, bytes, tip), received);
    assert_eq!(silent.state_hash(), document.state_hash());
    assert_eq!(silent.encode(), document.encode());
    for patch in patches {
        match patch {
            Patch::Text { container, at, deleted, inserted } => {
                let text = texts.entry(container.to_string()).or_default();
                text.splice(at..at + deleted, inserted.chars());
            }
            Patch::Map { container, key, value, .. } => {
                let key = (container.to_string(), key.to_string());
                match value {
                    Some(value) => values.insert(key, value.to_string()),
                    None => values.remove(&key),
                };
            }
        }
    }
    assert_eq!(shown(&document), (texts, values), "patches lead to the same view");

    let mut again = EntryWriter::new();
    let mut whole = true;
    for entry in read_entries(tip + 1, count, bytes) {
        match entry {
            Ok(entry) => {
                assert_eq!(entry.seq, tip + 1 + u64::from(again.count()));
                let Ok(index) = u32::try_from(entry.index) else { return false };
                again.push(entry.seq, index, entry.new, entry.base, entry.body);
            }
            Err(_) => whole = false,
        }
    }
    assert!(whole || received.is_err(), "the reader and the document agree on what is malformed");
    if whole {
        assert_eq!(again.count(), count);
        assert_eq!(again.finish(), bytes, "there is one way of writing a run");
    }
    // What came before the flaw has been applied, and is a document like any other.
    use_it(&mut document);
    received.is_ok()
}

/// The characters of texts by name, and the values of maps by name and key.
type Shown = (BTreeMap<String, Vec<char>>, BTreeMap<(String, String), String>);

/// What a view of a document shows.
fn shown(document: &Document) -> Shown {
    let text = |name: &str| document.text(name).expect("it is there").to_string().chars().collect();
    let texts = document.containers().map(|name| (name.to_owned(), text(name))).collect();
    let mut values = BTreeMap::new();
    for map in document.maps() {
        for (key, value) in document.map(map).expect("it is there").iter() {
            values.insert((map.to_owned(), key.to_owned()), value.value.to_owned());
        }
    }
    (texts, values)
}

/// Any text as a value of a map.
pub fn json(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(canonical) = canonical_json(text) else { return false };
    assert_eq!(canonical_json(&canonical).as_deref(), Ok(&*canonical), "there is one canonical spelling");
    let mut document = Document::new();
    let mut edit = document.edit(AUTHORS[0]);
    if edit.set("", "key", text, Hlc::at(1), None).is_err() {
        return false;
    }
    let change = edit.commit(0).expect("something was done");
    assert_eq!(document.map("").and_then(|map| map.get("key")).map(|value| value.value), Some(&*canonical));
    let mut other = Document::new();
    other.apply(change.as_ref()).expect("what was set can be told");
    assert_eq!(other.state_hash(), document.state_hash());
    true
}

/// The first byte odd: the rest is what a saved document holds when it is unpacked. Else it is the saved bytes, apart
/// from the checksum.
pub fn document(data: &[u8]) -> bool {
    let Some((&kind, bytes)) = data.split_first() else { return false };
    let saved = if kind & 1 == 1 { pack(bytes) } else { seal(bytes.to_vec()) };
    let Ok(mut document) = Document::decode(&saved) else { return false };
    assert!(document.memory_bytes() < 64 * 1024 + 1024 * 255 * bytes.len());
    let again = document.encode();
    let loaded = Document::decode(&again).expect("what was saved");
    assert_eq!(loaded.state_hash(), document.state_hash());
    assert_eq!(loaded.version(), document.version());
    assert_eq!(loaded.encode(), again, "saving again gives the same bytes");
    use_it(&mut document);
    // Its elements may stand in an order that no merge would give; what comes then is taken all the same, or refused.
    for places in bytes.rchunks_exact(4).take(6) {
        let [left, left_counter, right, right_counter] = [0, 1, 2, 3].map(|n| places[n] & 0x7f);
        // Another's left and right origins, one scalar.
        let body = [216, left % 4, left_counter, right % 4, right_counter, b'!'];
        let counter = document.next_counter(ReplicaId(99));
        apply(
            &mut document,
            ChangeRef { replica: ReplicaId(99), counter, base: 0, body: &body },
            counter + 1,
        );
    }
    use_it(&mut document);
    true
}

/// A document that came through must be one that works.
fn use_it(document: &mut Document) {
    for map in document.maps() {
        let view = document.map(map).expect("it is there");
        assert_eq!(view.iter().count(), view.len());
        for (key, value) in view.iter() {
            assert_eq!(view.get(key), Some(value));
            assert!(view.conflicts(key).all(|other| other.op != value.op));
            assert_eq!(canonical_json(value.value).as_deref(), Ok(value.value));
        }
    }
    let names: Vec<String> = document.containers().map(str::to_owned).collect();
    for name in &names {
        let text = document.text(name).expect("it is there");
        let whole = text.to_string();
        let (len, utf16) = (whole.chars().count(), whole.encode_utf16().count());
        assert_eq!((text.len(), text.len_utf16()), (len, utf16));
        assert_eq!(text.lines(), whole.split('\n').count());
        for at in [0, 1, len / 2, len] {
            let at = at.min(len);
            let (line, column) = text.line_column(at);
            assert_eq!(text.at_line_column(line, column), Some(at));
            assert_eq!(text.at_utf16(text.utf16_of(at)), at);
            for bias in [Bias::Left, Bias::Right] {
                assert_eq!(text.resolve(&text.anchor(at, bias)), Some(at));
            }
        }
        let mut copy = document.clone();
        for replica in [ReplicaId(77), AUTHORS[0]] {
            let at = copy.text(name).expect("it is there").len() / 2;
            let mut edit = copy.edit(replica);
            // Limits may be in the way, and what the log does not have.
            if edit.insert(name, at, "new").is_ok() {
                edit.delete(name, at..at + 1).expect("it was just inserted");
                let _ = edit.set("", "key", "[1]", Hlc::at(9_000), None);
                let _ = edit.remove("", "title", Hlc::at(9_000), None);
            }
            let mut follower = document.clone();
            if let Some(change) = edit.commit(0)
                && replica == ReplicaId(77)
                && follower.next_counter(replica) == change.counter
                && follower.apply(change.as_ref()).is_ok()
            {
                assert_eq!(shown(&follower), shown(&copy));
                // Under the server's strategy a removal is remembered until the log has it.
                if follower.strategy() != Strategy::Server {
                    assert_eq!(follower.state_hash(), copy.state_hash());
                }
            }
        }
    }
    let loaded = Document::decode(&document.encode()).expect("what was saved");
    assert_eq!(loaded.state_hash(), document.state_hash());
}

/// A saved document that holds this.
pub fn pack(raw: &[u8]) -> Vec<u8> {
    let mut bytes = example(0).0.encode()[..4].to_vec();
    let mut len = raw.len();
    while len >= 0x80 {
        bytes.push(len as u8 | 0x80);
        len >>= 7;
    }
    bytes.push(len as u8);
    bytes.extend(lz4_flex::block::compress(raw));
    seal(bytes)
}

/// The checksum, without which nothing behind it would ever be reached.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(&sum.as_bytes()[..16]);
    bytes
}
