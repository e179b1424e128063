//! What reading promises: pages, lookups, cursors, replay.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use manyhands_crdt::{ChangeRef, Document, Hlc, MapOp, ReplicaId, map_change_body};
use manyhands_proto::{Incarnation, Offset, PartitionId, Seq};

use super::{ALL, LONG, Scribe, Subject, name_in, until};
use crate::{
    Batch, Cursor, DocumentRecord, Entry, Follower, LogError, ReadLimit, Strategy, chain_after, replay,
};

const P: PartitionId = PartitionId(40);
const SHORT: Duration = Duration::from_millis(150);

/// A page is as large as its limits allow and never empty before the end.
pub async fn reads_keep_their_limits(subject: Subject) {
    let log = &subject.log;
    let mut scribe = Scribe::claim(log, "a", P).await;
    for _ in 0..5 {
        let mut batch = scribe.draft_of(&[0, 1, 0, 1]);
        for entry in &mut batch.entries {
            entry.body = Bytes::from(vec![b'x'; 100]);
        }
        scribe.append(batch).await.unwrap();
    }
    let incarnation = scribe.incarnation(0);
    let limit = |entries_max, bytes_max| ReadLimit { entries_max, bytes_max };
    for (limit, seqs, why) in [
        (ALL, 10, "everything"),
        (limit(3, usize::MAX), 3, "by entries"),
        (limit(usize::MAX, 450), 4, "by bytes"),
        (limit(usize::MAX, 400), 4, "by bytes, exactly"),
        (limit(usize::MAX, 1), 1, "one entry all the same"),
        (limit(2, 250), 2, "both"),
    ] {
        let read = log.read(P, incarnation, Seq(0), limit).await.unwrap();
        assert!(read.iter().map(|entry| entry.seq.0).eq(1..=seqs), "{why}");
        let followed = log.follow(P, Offset(0), limit).await.unwrap();
        let offsets =
            if limit.entries_max == usize::MAX && limit.bytes_max == usize::MAX { 20 } else { seqs };
        assert!(followed.iter().map(|entry| entry.offset.0).eq(1..=offsets), "{why}");
        let middle = log.read(P, incarnation, Seq(6), limit).await.unwrap();
        assert!(middle.iter().map(|entry| entry.seq.0).eq(7..=(6 + seqs).min(10)), "{why}");
    }
    for after in [10, 11, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX] {
        assert!(log.read(P, incarnation, Seq(after), ALL).await.unwrap().is_empty(), "after {after}");
        assert!(
            log.follow(P, Offset(after.saturating_add(10)), ALL).await.unwrap().is_empty(),
            "after {after}"
        )
    }
    assert!(log.read(P, Incarnation(5), Seq(0), ALL).await.unwrap().is_empty());
    assert!(log.read(PartitionId(41), incarnation, Seq(0), ALL).await.unwrap().is_empty());
    assert!(log.follow(PartitionId(41), Offset(0), ALL).await.unwrap().is_empty());
}

/// An old resend is compared with the entry that holds it.
// enforces: I-4
pub async fn changes_are_found_by_their_identity(subject: Subject) {
    let log = &subject.log;
    let mut scribe = Scribe::claim(log, "a", P).await;
    scribe.write(0, 5).await;
    scribe.write(1, 5).await;
    for entry in &scribe.appended {
        let found = log.find(P, entry.incarnation, entry.replica, entry.counter).await.unwrap();
        assert_eq!(found.as_ref(), Some(entry));
    }
    let entry = &scribe.appended[2];
    for (partition, incarnation, replica, counter) in [
        (P, entry.incarnation, entry.replica, entry.counter + 1),
        (P, entry.incarnation, ReplicaId(9), entry.counter),
        (P, Incarnation(9), entry.replica, entry.counter),
        (PartitionId(41), entry.incarnation, entry.replica, entry.counter),
    ] {
        assert_eq!(log.find(partition, incarnation, replica, counter).await.unwrap(), None);
    }
}

/// A document is there from its first entry on.
pub async fn documents_are_found_by_their_name(subject: Subject) {
    let log = &subject.log;
    let mut scribe = Scribe::claim(log, "a", P).await;
    assert_eq!(log.document(&name_in(P, 0)).await.unwrap(), None);
    scribe.append(scribe.draft_of(&[0, 1])).await.unwrap();
    for n in [0, 1] {
        let incarnation = scribe.incarnation(n);
        let record = DocumentRecord { name: name_in(P, n), incarnation, strategy: Strategy::Crdt };
        assert_eq!(log.document(&name_in(P, n)).await.unwrap(), Some(record));
    }
    assert_eq!(log.document(&name_in(P, 2)).await.unwrap(), None);
}

/// One worker at a time moves a cursor, and only forward.
pub async fn a_cursor_belongs_to_one_worker(subject: Subject) {
    let (log, other) = (&subject.log, (subject.again)().await);
    let (a, b) = (super::member("a").node, super::member("b").node);
    let at = |cursor: &Cursor, offset| Cursor { offset: Offset(offset), ..cursor.clone() };
    let first = log.take_cursor("webhook", P, &a, LONG).await.unwrap().unwrap();
    assert_eq!((first.offset, first.partition, first.follower.as_str()), (Offset(0), P, "webhook"));
    assert_eq!(other.take_cursor("webhook", P, &b, LONG).await.unwrap(), None, "a works on it");
    assert!(other.take_cursor("snapshot", P, &b, LONG).await.unwrap().is_some(), "another follower");
    assert!(other.take_cursor("webhook", PartitionId(41), &b, LONG).await.unwrap().is_some());
    assert!(log.advance(&at(&first, 5), LONG).await.unwrap());
    assert!(log.advance(&at(&first, 5), LONG).await.unwrap(), "standing still extends");
    assert!(!log.advance(&at(&first, 4), LONG).await.unwrap(), "never back");
    // The same node takes its own again, for instance when the answer was lost.
    let again = log.take_cursor("webhook", P, &a, SHORT).await.unwrap().unwrap();
    assert_eq!((again.offset, again.epoch), (Offset(5), first.epoch.next()));
    assert!(!log.advance(&at(&first, 6), LONG).await.unwrap(), "the older epoch is fenced");
    until(async || other.take_cursor("webhook", P, &b, SHORT).await.unwrap().is_some()).await;
    assert!(!log.advance(&at(&again, 6), LONG).await.unwrap(), "b has it");
    let third = other.take_cursor("webhook", P, &b, LONG).await.unwrap().unwrap();
    assert!(other.advance(&at(&third, 8), Duration::ZERO).await.unwrap(), "and gives it back");
    until(async || {
        log.take_cursor("webhook", P, &a, LONG).await.unwrap().is_some_and(|c| c.offset == Offset(8))
    })
    .await;
}

/// A worker that ends early is followed by one that sees what it had not finished.
pub async fn a_follower_sees_everything_at_least_once(subject: Subject) {
    let log = &subject.log;
    let (a, b) = (super::member("a").node, super::member("b").node);
    let few = ReadLimit { entries_max: 4, bytes_max: usize::MAX };
    let mut scribe = Scribe::claim(log, "a", P).await;
    scribe.write(0, 10).await;
    let take = async |node| Follower::take(log.clone(), "webhook", P, node, LONG).await.unwrap();
    let mut first = take(&a).await.unwrap();
    assert!(take(&b).await.is_none());
    let mut seen = Vec::new();
    seen.extend(first.read(few).await.unwrap());
    assert!(first.advance(Offset(4)).await.unwrap());
    seen.extend(first.read(few).await.unwrap());
    assert_eq!(seen, scribe.appended[..8], "reading goes on behind what was read");
    assert!(first.keep().await.unwrap());
    assert_eq!(first.done(), Offset(4));
    first.release().await.unwrap();
    let mut second = None;
    while second.is_none() {
        second = take(&b).await;
    }
    let mut second = second.unwrap();
    assert_eq!(second.done(), Offset(4));
    let rest = second.read(ALL).await.unwrap();
    assert_eq!(rest, scribe.appended[4..], "what was read but not done comes again");
    assert!(second.read(ALL).await.unwrap().is_empty());
    scribe.write(1, 2).await;
    assert_eq!(second.read(ALL).await.unwrap(), scribe.appended[10..]);
    assert!(second.advance(scribe.head).await.unwrap());
    assert!(!second.advance(Offset(1)).await.unwrap());
}

/// Replay gives back the document that was written, and does not accept what does not verify.
// enforces: I-5
pub async fn replay_rebuilds_and_verifies(subject: Subject) {
    let log = &subject.log;
    let lease = super::claim(&**log, "a", P).await;
    let incarnation = Incarnation(u64::MAX - 1);
    let mut owner = Document::new();
    let mut batch = Batch {
        created: vec![DocumentRecord { name: name_in(P, 0), incarnation, strategy: Strategy::Crdt }],
        entries: Vec::new(),
    };
    let mut chain = [0; 16];
    for n in 0..100_u64 {
        let replica = ReplicaId(1 + n % 3);
        // Each author works on a copy of what the owner has.
        let mut author = Document::decode(&owner.encode()).unwrap();
        let mut edit = author.edit(replica);
        edit.insert("page", (n / 2) as usize, &n.to_string()[..1]).unwrap();
        let change = edit.commit(n).unwrap();
        let applied = owner.apply(change.as_ref()).unwrap();
        chain = chain_after(&chain, &applied.hash);
        batch.entries.push(Entry {
            offset: Offset(n + 1),
            incarnation,
            seq: Seq(n + 1),
            replica,
            subject: (n < 3).then(|| format!("subject-{n}")),
            counter: change.counter,
            base: Seq(n),
            hash: applied.hash,
            chain,
            time_ms: 1_000 + n,
            format: manyhands_crdt::BODY_FORMAT,
            body: Bytes::from(change.body),
        });
    }
    let _ = log.append(&lease, Offset(0), &batch).await.unwrap();
    let state = replay(&**log, &batch.created[0]).await.unwrap();
    assert_eq!(state.document.state_hash(), owner.state_hash());
    assert_eq!((state.seq, state.chain, state.time_ms), (Seq(100), chain, 1_099));
    assert_eq!(state.replicas.len(), 3);
    for (replica, known) in &state.replicas {
        assert_eq!(known.subject, Some(format!("subject-{}", replica.0 - 1)));
        assert_eq!(known.next_counter, owner.next_counter(*replica));
        let last = batch.entries.iter().rev().find(|entry| entry.replica == *replica).unwrap();
        assert_eq!(known.recent.back(), Some(&(last.counter, last.hash)));
    }
    let nothing = DocumentRecord { incarnation: Incarnation(3), ..batch.created[0].clone() };
    let empty = replay(&**log, &nothing).await.unwrap();
    assert_eq!((empty.seq, empty.chain), (Seq(0), [0; 16]));

    // The same entries as another document, each time with one thing wrong in the middle.
    type Spoil = fn(&mut Entry);
    let spoils: [(&str, Spoil); 8] = [
        ("breaks the chain", |entry| entry.chain[3] ^= 1),
        ("breaks the chain", |entry| entry.hash[3] ^= 1),
        ("not its hash's", |entry| entry.base = Seq(1)),
        ("does not merge", |entry| entry.body = Bytes::from_static(b"\xff\xff\xff")),
        ("unknown format", |entry| entry.format = 999),
        ("a second time", |entry| entry.subject = Some("mallory".to_owned())),
        ("to nobody", |entry| (entry.replica, entry.counter) = (ReplicaId(9), 0)),
        ("does not merge", |entry| entry.counter += 1_000),
    ];
    for (index, (says, spoil)) in spoils.into_iter().enumerate() {
        let mut wrong = batch.clone();
        let incarnation = Incarnation(100 + index as u64);
        wrong.created[0] =
            DocumentRecord { name: name_in(P, 1 + index), incarnation, strategy: Strategy::Crdt };
        let head = 100 * (index as u64 + 1);
        for entry in &mut wrong.entries {
            entry.incarnation = incarnation;
            entry.offset.0 += head;
        }
        spoil(&mut wrong.entries[50]);
        let _ = log.append(&lease, Offset(head), &wrong).await.unwrap();
        match replay(&**log, &wrong.created[0]).await {
            Err(LogError::Corrupt(why)) => assert!(why.contains(says) && why.contains("seq 51"), "{why}"),
            other => panic!("{says}: {:?}", other.map(|state| state.seq)),
        }
    }
}

/// How a document merges is kept with it, and replay merges so.
// enforces: I-5
pub async fn documents_keep_their_strategy(subject: Subject) {
    let log = &subject.log;
    let lease = super::claim(&**log, "a", P).await;
    let mut hashes = BTreeSet::new();
    for (index, strategy) in Strategy::ALL.into_iter().enumerate() {
        let record =
            DocumentRecord { name: name_in(P, index), incarnation: Incarnation(7 + index as u64), strategy };
        let mut owner = Document::with_strategy(strategy, manyhands_crdt::Limits::default());
        let mut chain = [0; 16];
        let mut batch = Batch { created: vec![record.clone()], entries: Vec::new() };
        // Two who do not know of each other; the one whose clock is behind comes last.
        for (n, (value, micros)) in [("1", 2_000), ("2", 1_000)].into_iter().enumerate() {
            let (n, replica) = (n as u64, ReplicaId(1 + n as u64));
            let op = MapOp { map: "", key: "k", value: Some(value), stamp: Hlc::at(micros), expect: None };
            let body = map_change_body(&op).unwrap();
            let applied = owner.apply(ChangeRef { replica, counter: 0, base: 0, body: &body }).unwrap();
            chain = chain_after(&chain, &applied.hash);
            batch.entries.push(Entry {
                offset: Offset(2 * index as u64 + n + 1),
                incarnation: record.incarnation,
                seq: Seq(n + 1),
                replica,
                subject: Some("ann".to_owned()),
                counter: 0,
                base: Seq(0),
                hash: applied.hash,
                chain,
                time_ms: 1_000,
                format: manyhands_crdt::BODY_FORMAT,
                body: Bytes::from(body),
            });
        }
        let _ = log.append(&lease, Offset(2 * index as u64), &batch).await.unwrap();
        assert_eq!(log.document(&record.name).await.unwrap(), Some(record.clone()));
        let state = replay(&**log, &record).await.unwrap();
        assert_eq!(state.document.strategy(), strategy);
        assert_eq!(state.document.state_hash(), owner.state_hash());
        let winner = if strategy == Strategy::Lww { "1" } else { "2" };
        assert_eq!(state.document.map("").unwrap().get("k").unwrap().value, winner, "{strategy}");
        hashes.insert(owner.state_hash());
    }
    assert_eq!(hashes.len(), 3, "the same entries are another document under another strategy");
}
