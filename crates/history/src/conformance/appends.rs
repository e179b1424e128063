//! What an append promises.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use manyhands_crdt::ReplicaId;
use manyhands_proto::{Incarnation, Offset, PartitionId, Seq};
use tokio::sync::Barrier;

use super::{ALL, Scribe, Subject, name_in};
use crate::{AppendError, BATCH_ENTRIES_MAX, Batch, DocumentRecord, Strategy};

const P: PartitionId = PartitionId(17);

/// What was appended is there, in order, with gapless numbers, in both views.
// enforces: I-3
pub async fn appends_are_whole_and_in_order(subject: Subject) {
    let mut scribe = Scribe::claim(&subject.log, "a", P).await;
    assert_eq!(scribe.head, Offset(0), "an empty partition");
    for count in [1, 8, 64, 1, 300] {
        scribe.write(0, count).await;
        scribe.write(1, count).await;
    }
    let batch = scribe.draft_of(&[0, 1, 2, 0, 2, 1, 3]);
    assert_eq!(batch.created.len(), 2);
    scribe.append(batch).await.unwrap();
    assert_eq!(scribe.head, Offset(2 * (1 + 8 + 64 + 1 + 300) + 7));
    scribe.verify().await;
}

/// Every number comes back as it went in, whatever sign a database sees in it.
pub async fn numbers_of_all_sizes_are_kept(subject: Subject) {
    let scribe = Scribe::claim(&subject.log, "a", P).await;
    let mut batch = scribe.draft(0, 6);
    for (index, number) in
        [0, 1, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 9, u64::MAX].into_iter().enumerate()
    {
        let entry = &mut batch.entries[index];
        entry.replica = ReplicaId(number);
        entry.counter = u64::MAX - number;
        entry.hash = [number as u8; 16];
        entry.format = number as u16;
    }
    batch.entries[0].body = Bytes::new();
    batch.entries[1].body = Bytes::from(vec![0; 64 * 1024]);
    batch.entries[2].subject = Some("名前 \u{1F642} ' \" \\ \u{1}".into());
    batch.entries[5].time_ms = i64::MAX as u64;
    let _ = subject.log.append(&scribe.lease, Offset(0), &batch).await.unwrap();
    assert_eq!(subject.log.follow(P, Offset(0), ALL).await.unwrap(), batch.entries);
    for entry in batch.entries {
        let found = subject.log.find(P, entry.incarnation, entry.replica, entry.counter).await.unwrap();
        assert_eq!(found, Some(entry));
    }
}

/// A head that is not where the owner left it is told apart from a lost lease, and nothing is stored.
pub async fn a_stale_head_diverges(subject: Subject) {
    let mut scribe = Scribe::claim(&subject.log, "a", P).await;
    scribe.write(0, 5).await;
    let good = scribe.draft(0, 1);
    for expected in [0, 3, 4, 6, 500] {
        let mut batch = good.clone();
        batch.entries[0].offset = Offset(expected + 1);
        let error = subject.log.append(&scribe.lease, Offset(expected), &batch).await.unwrap_err();
        let diverged = AppendError::Diverged { partition: P, expected: Offset(expected), found: Offset(5) };
        assert_eq!(error, diverged);
    }
    scribe.verify().await;
    scribe.append(good).await.unwrap();
    scribe.verify().await;
}

/// An append that is repeated because its answer was lost is recognized, and is there once; another
/// batch in its place is not taken for it.
// enforces: I-1
pub async fn the_same_append_again_is_recognized(subject: Subject) {
    let mut scribe = Scribe::claim(&subject.log, "a", P).await;
    scribe.write(0, 2).await;
    let (expected, batch) = (scribe.head, scribe.draft_of(&[0, 1]));
    scribe.append(batch.clone()).await.unwrap();
    for _ in 0..3 {
        let again = subject.log.append(&scribe.lease, expected, &batch).await.unwrap();
        assert_eq!(again.head(), scribe.head);
    }
    let mut other = batch.clone();
    other.entries[1].hash[0] ^= 1;
    let error = subject.log.append(&scribe.lease, expected, &other).await.unwrap_err();
    assert_eq!(error, AppendError::Diverged { partition: P, expected, found: scribe.head });
    scribe.verify().await;
}

/// A caller that goes away cancels nothing: the batch is there whole or not at all, and repeating it
/// settles the matter.
// enforces: I-1
pub async fn an_append_that_nobody_waits_for_is_whole(subject: Subject) {
    let mut scribe = Scribe::claim(&subject.log, "a", P).await;
    for round in 0..40 {
        let batch = scribe.draft_of(&[0, 1, 2, 0, 1, 2]);
        {
            let append = subject.log.append(&scribe.lease, scribe.head, &batch);
            let mut append = std::pin::pin!(append);
            for _ in 0..round % 8 {
                let poll =
                    std::future::poll_fn(|context| std::task::Poll::Ready(append.as_mut().poll(context)));
                if poll.await.is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        scribe.append(batch).await.unwrap();
    }
    scribe.verify().await;
}

/// What would tear, repeat or misplace an entry is refused, and leaves no trace.
// enforces: I-3
pub async fn wrong_batches_are_refused(subject: Subject) {
    let mut scribe = Scribe::claim(&subject.log, "a", P).await;
    scribe.write(0, 4).await;
    let good = scribe.draft_of(&[0, 1, 0]);
    type Spoil = fn(&mut Batch);
    let spoils: [(&str, Spoil); 12] = [
        ("no entries", |batch| *batch = Batch::default()),
        ("a gap in the offsets", |batch| batch.entries[1].offset.0 += 1),
        ("a gap in the seqs", |batch| batch.entries[2].seq.0 += 1),
        ("seq 0", |batch| batch.entries[0].seq = Seq(0)),
        ("time that runs backwards", |batch| batch.entries[2].time_ms = 1),
        ("a document without an entry", |batch| drop(batch.entries.remove(1))),
        ("an entry without a document", |batch| batch.created.clear()),
        ("a seq that is taken", |batch| {
            batch.entries.truncate(1);
            batch.created.clear();
            batch.entries[0].seq = Seq(2);
        }),
        ("a change that is stored already", |batch| batch.entries[2].counter = 0),
        ("a change twice", |batch| batch.entries[2].counter = batch.entries[0].counter),
        ("a document of another partition", |batch| batch.created[0].name = name_in(PartitionId(18), 0)),
        ("more than a batch holds", |batch| {
            let entry = batch.entries[0].clone();
            batch.entries.resize(BATCH_ENTRIES_MAX + 1, entry);
        }),
    ];
    for (what, spoil) in spoils {
        let mut batch = good.clone();
        spoil(&mut batch);
        let result = subject.log.append(&scribe.lease, scribe.head, &batch).await;
        assert!(matches!(result, Err(AppendError::Refused(_))), "{what}: {result:?}");
        scribe.verify().await;
    }
    scribe.append(good).await.unwrap();
    scribe.verify().await;
}

/// Appends that share a commit share nothing else.
// enforces: I-3
pub async fn a_wrong_append_takes_no_other_with_it(subject: Subject) {
    let partitions: Vec<_> = (0..24).map(PartitionId).collect();
    let start = Arc::new(Barrier::new(partitions.len()));
    let mut tasks = Vec::new();
    for partition in partitions {
        let (log, start) = (subject.log.clone(), start.clone());
        tasks.push(tokio::spawn(async move {
            let mut scribe = Scribe::claim(&log, "a", partition).await;
            scribe.write(0, 1).await;
            start.wait().await;
            for round in 0..10 {
                let batch = scribe.draft(0, 2);
                if (partition.0 + round) % 5 == 0 {
                    let mut wrong = batch.clone();
                    wrong.entries[1].counter = 0;
                    let result = log.append(&scribe.lease, scribe.head, &wrong).await;
                    assert!(matches!(result, Err(AppendError::Refused(_))), "{result:?}");
                }
                if (partition.0 + round) % 7 == 0 {
                    let mut stale = batch.clone();
                    stale.entries.truncate(1);
                    stale.entries[0].offset = Offset(1);
                    let result = log.append(&scribe.lease, Offset(0), &stale).await;
                    assert!(matches!(result, Err(AppendError::Diverged { .. })), "{result:?}");
                }
                scribe.append(batch).await.unwrap();
            }
            scribe.verify().await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// Who tails a partition while many are written never meets a hole, now or later.
// enforces: I-3
pub async fn offsets_are_gapless_for_followers_at_any_moment(subject: Subject) {
    const BATCHES: u64 = 40;
    let mut tasks = Vec::new();
    for partition in (0..8).map(|n| PartitionId(n * 31)) {
        let (log, other) = (subject.log.clone(), (subject.again)().await);
        tasks.push(tokio::spawn(async move {
            let mut scribe = Scribe::claim(&log, "a", partition).await;
            for n in 0..BATCHES as usize {
                scribe.write(n % 3, 1 + n % 4).await;
            }
            scribe.verify().await;
        }));
        tasks.push(tokio::spawn(async move {
            let total: u64 = (0..BATCHES).map(|n| 1 + n % 4).sum();
            let mut last = Offset(0);
            while last.0 < total {
                for entry in other.follow(partition, last, ALL).await.unwrap() {
                    assert_eq!(entry.offset, last.next());
                    last = entry.offset;
                }
                tokio::task::yield_now().await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// A name has one history at a time, and a history one name.
pub async fn a_second_incarnation_of_a_name_is_refused(subject: Subject) {
    let mut scribe = Scribe::claim(&subject.log, "a", P).await;
    scribe.write(0, 1).await;
    let good = scribe.draft(1, 1);
    let taken = DocumentRecord {
        name: name_in(P, 0),
        incarnation: good.created[0].incarnation,
        strategy: Strategy::Crdt,
    };
    let same_name = Batch { created: vec![taken], ..good.clone() };
    let mut same_incarnation = good.clone();
    same_incarnation.created[0].incarnation = scribe.incarnation(0);
    same_incarnation.entries[0].incarnation = scribe.incarnation(0);
    for wrong in [same_name, same_incarnation] {
        let result = subject.log.append(&scribe.lease, scribe.head, &wrong).await;
        assert!(matches!(result, Err(AppendError::Refused(_))), "{result:?}");
    }
    assert_eq!(subject.log.document(&name_in(P, 1)).await.unwrap(), None);
    scribe.append(good).await.unwrap();
    let record = subject.log.document(&name_in(P, 0)).await.unwrap().unwrap();
    assert_eq!(record.incarnation, scribe.incarnation(0));
    scribe.verify().await;
}

/// What was acknowledged is there for whoever opens the log next, and the epoch goes on from where it was.
// enforces: I-1
pub async fn it_survives_being_opened_again(subject: Subject) {
    let Subject { log, again } = subject;
    let mut scribe = Scribe::claim(&log, "a", P).await;
    for n in 0..10 {
        scribe.write(n % 3, 7).await;
    }
    log.published(&scribe.lease, Offset(12)).await.unwrap();
    log.release(&super::held(&scribe.lease)).await.unwrap();
    let (appended, epoch) = (scribe.appended.clone(), scribe.lease.epoch());
    let reopened = again().await;
    drop((scribe, log));
    let lease = super::claim(&*reopened, "b", P).await;
    assert_eq!((lease.epoch(), lease.head(), lease.published()), (epoch.next(), Offset(70), Offset(12)));
    super::verify(&appended, &reopened.follow(P, Offset(0), ALL).await.unwrap()).unwrap();
    let incarnations: BTreeSet<Incarnation> = appended.iter().map(|entry| entry.incarnation).collect();
    assert_eq!(incarnations.len(), 3);
    let again = again().await;
    drop(reopened);
    super::verify(&appended, &again.follow(P, Offset(0), ALL).await.unwrap()).unwrap();
}
