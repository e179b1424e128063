//! What a partition admits, refuses and recognizes: the pure part, over a log in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod maps;

use std::collections::BTreeMap;

use bytes::Bytes;
use manyhands_crdt::PushWriter;
use manyhands_document::request::{Answer, Submit, Submitted};
use manyhands_document::resident::{Limits, Resident};
use manyhands_history::{DocumentRecord, EventLog, RECENT_CHANGES};
use manyhands_proto::{Code, DocumentName, Incarnation, Offset, PartitionId, Seq};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::bench::{ALL, Author, BREAKER, Bench, LIMITS, NOW, accepted, refusal};

/// Every refusal leaves log and memory as they were. The document has "Hello" by replica 7.
// enforces: I-10, I-15
#[tokio::test]
async fn refusals() {
    type Spoil = fn(&mut Author, Submit<()>) -> Submit<()>;
    let check = async |what: &str, code: Code, next_counter: Option<u64>, spoil: Spoil| {
        let mut bench = Bench::new().await;
        let mut ann = Author::new(7);
        assert_eq!(bench.submit(ann.types(&["Hello"])).await, accepted(5, 1));
        ann.base = 1;
        let before = bench.state();
        let next = ann.types(&["x"]);
        let spoiled = spoil(&mut ann, next.clone());
        let answer = bench.submit(spoiled).await;
        assert_eq!(refusal(&answer), (code, next_counter), "{what}");
        if let Ok(Submitted { next_counter, rejection: Some(rejection), .. }) = &answer {
            assert!(*next_counter <= rejection.counter, "{what}: refused and acknowledged");
        }
        assert_eq!((bench.log_length().await, bench.state()), (1, before), "{what}");
        // And the same change in good order is taken.
        assert_eq!(bench.submit(next).await, accepted(6, 2), "{what}");
    };
    check("no scope", Code::Forbidden, None, |_, mut s| {
        s.grant.scopes = vec!["read".to_owned()];
        s
    })
    .await;
    check("another workspace", Code::Forbidden, None, |_, mut s| {
        s.grant.workspaces = vec!["other".to_owned(), "dem".to_owned()];
        s
    })
    .await;
    check("nobody", Code::Forbidden, None, |_, mut s| {
        s.grant.subject.clear();
        s
    })
    .await;
    check("expired", Code::TokenExpired, None, |_, mut s| {
        s.grant.expires_at_ms = NOW;
        s
    })
    .await;
    check("another history", Code::HistoryReset, None, |_, mut s| {
        s.incarnation = Incarnation(98);
        s
    })
    .await;
    check("no change", Code::Malformed, None, |_, mut s| {
        s.count = 0;
        s
    })
    .await;
    check("too many changes", Code::TooLarge, None, |_, mut s| {
        s.count = LIMITS.changes_max + 1;
        s
    })
    .await;
    check("too many bytes", Code::TooLarge, None, |_, mut s| {
        s.changes = Bytes::from(vec![0; LIMITS.bytes_max + 1]);
        s
    })
    .await;
    check("a document that is not in memory", Code::Unavailable, None, |_, mut s| {
        s.document = "other".parse().unwrap();
        s.grant.workspaces = vec!["*".to_owned()];
        s
    })
    .await;
    check("garbage", Code::Malformed, Some(5), |_, mut s| {
        s.changes = Bytes::from_static(b"\xff\xff\xff\xff");
        s
    })
    .await;
    check("cut off", Code::Malformed, Some(5), |_, mut s| {
        s.changes.truncate(s.changes.len() - 1);
        s
    })
    .await;
    check("a hole", Code::MissingPredecessor, Some(5), |ann, _| ann.types(&["y"])).await;
    check("another's replica", Code::ReplicaTaken, Some(5), |_, mut s| {
        s.grant.subject = "mallory".to_owned();
        s
    })
    .await;
    check("a base that nobody has seen", Code::MissingReference, Some(5), |ann, s| {
        let mut push = PushWriter::new();
        let (change, _) =
            manyhands_crdt::read_push(s.replica, s.first_counter, 1, &s.changes).next().unwrap().unwrap();
        push.push(2, change.body);
        ann.says(5, push)
    })
    .await;
    check("an element that nobody has seen", Code::MissingReference, Some(5), |ann, _| {
        // In a history in which another one wrote, too.
        let mut ann = Author::new(ann.replica.0);
        for submit in [Author::new(7).types(&["Hello"]), Author::new(9).types(&["abc"])] {
            let mut changes = manyhands_crdt::read_push(submit.replica, 0, 1, &submit.changes);
            ann.state.apply(changes.next().unwrap().unwrap().0).unwrap();
        }
        let mut edit = ann.state.edit(ann.replica);
        edit.delete("page", 0..8).unwrap();
        let change = edit.commit(1).unwrap();
        let mut push = PushWriter::new();
        push.push(change.base, &change.body);
        ann.says(5, push)
    })
    .await;
    check("a change beyond the limit", Code::TooLarge, Some(5), |_, _| {
        let mut large = Author::new(7);
        large.state =
            manyhands_crdt::Document::with_limits(Limits { change_bytes_max: 1 << 20, ..Limits::default() });
        large.types(&["Hello"]);
        large.base = 1;
        large.types(&["x".repeat(65 * 1024).as_str()])
    })
    .await;
    check("a fork", Code::Fork, Some(5), |_, _| Author::new(7).types(&["Jello"])).await;
    check("a fork by other cuts", Code::Fork, Some(5), |_, _| Author::new(7).types(&["He", "llo"])).await;
    check("a fork that is longer", Code::Fork, Some(5), |_, _| Author::new(7).types(&["Hello!"])).await;
}

#[tokio::test]
async fn changes_before_a_refused_one_are_durable_and_those_after_it_are_not_looked_at() {
    let mut bench = Bench::new().await;
    let mut ann = Author::new(7);
    let good = ann.types(&["ab", "cd", "ef"]);
    let mut spoiled = good.clone();
    let mut bytes = good.changes.to_vec();
    // After the first record and the second one's base comes the kind of an op.
    let second = Author::new(7).types(&["ab"]).changes.len();
    bytes[second + 1] = 0xff;
    spoiled.changes = Bytes::from(bytes);
    let answer = bench.submit(spoiled).await.unwrap();
    let rejection = answer.rejection.unwrap();
    assert_eq!((answer.next_counter, answer.seq), (2, Seq(1)));
    assert_eq!((rejection.counter, rejection.code, rejection.next_counter), (2, Code::Malformed, 2));
    assert_eq!(bench.log_length().await, 1);
    assert_eq!(bench.submit(good).await, accepted(6, 3));
    let merged = bench.document().state().state_hash();
    assert_eq!((bench.log_length().await, merged), (3, ann.state.state_hash()));
}

// enforces: I-4
#[tokio::test]
async fn a_resend_is_answered_as_the_first_time_and_counts_once() {
    let mut bench = Bench::new().await;
    let mut ann = Author::new(7);
    let first = ann.types(&["one", "two"]);
    // In the same batch, before anything of it is durable.
    let released = bench.commit(vec![first.clone(), first.clone()]).await;
    let answers: Vec<Answer> = released.answers.into_iter().map(|(_, answer)| answer).collect();
    assert_eq!(answers, [accepted(6, 2), accepted(6, 2)]);
    assert_eq!(released.deltas.len(), 1);
    // In a later one, which has nothing to append.
    let released = bench.commit(vec![first.clone()]).await;
    assert_eq!((released.answers, released.deltas), (vec![((), accepted(6, 2))], vec![]));
    // Together with something new.
    let mut again = Author::new(7);
    let more = again.types(&["one", "two", "three"]);
    assert_eq!(bench.submit(more.clone()).await, accepted(11, 3));
    // After a restart.
    bench.reload().await;
    assert_eq!(bench.submit(first.clone()).await, accepted(6, 2));
    // Long after, when memory has forgotten it.
    for _ in 0..RECENT_CHANGES {
        let last = again.types(&["x"]);
        assert!(bench.submit(last).await.is_ok());
    }
    assert_eq!(bench.submit_with_lookups(first).await, accepted(6, 2));
    assert_eq!(bench.submit_with_lookups(more).await, accepted(11, 3));
    // Other bytes are a fork however late they come.
    let answer = bench.submit_with_lookups(Author::new(7).types(&["One", "two"])).await;
    assert_eq!(refusal(&answer).0, Code::Fork);
    let answer = bench.submit_with_lookups(Author::new(7).types(&["on", "etwo"])).await;
    assert_eq!(refusal(&answer).0, Code::Fork);
    assert_eq!(bench.log_length().await, 3 + RECENT_CHANGES);
}

/// That acks and deltas can be made from an `Appended` only is a matter of types: `Admitted` has no other way
/// out but `settle`, of which this is the test.
// enforces: I-1
#[tokio::test]
async fn what_is_not_appended_is_neither_acknowledged_nor_published() {
    let mut bench = Bench::new().await;
    let mut ann = Author::new(7);
    let request = ann.types(&["Hello"]);
    let admitted = bench.partition.admit(NOW, vec![request.clone(), request]);
    // Even the duplicate waits for the append of what it repeats.
    assert!(admitted.needs_append());
    assert_eq!((admitted.batch().entries.len(), bench.log_length().await), (1, 0));
    let released = bench.finish(admitted).await;
    assert_eq!((released.answers.len(), released.deltas.len(), bench.log_length().await), (2, 1, 1));
}

// enforces: I-1
#[tokio::test]
#[should_panic(expected = "nothing is let out before its append")]
async fn what_needs_an_append_does_not_settle() {
    let mut bench = Bench::new().await;
    let _never = bench.partition.admit(NOW, vec![Author::new(7).types(&["a"])]).settle();
}

// enforces: I-1
#[tokio::test]
#[should_panic(expected = "the proof is of another batch")]
async fn a_proof_of_another_batch_proves_nothing() {
    let mut bench = Bench::new().await;
    let first = bench.partition.admit(NOW, vec![Author::new(7).types(&["a"])]);
    let second = bench.partition.admit(NOW, vec![Author::new(8).types(&["b"])]);
    let proof = bench.log.append(&bench.lease, first.expected(), first.batch()).await.unwrap();
    let _never = second.release(proof);
}

#[tokio::test]
async fn a_change_that_breaks_the_merging_costs_its_document_the_memory_and_others_nothing() {
    let mut bench = Bench::new().await;
    // Another document of the same partition.
    let name = (0..).map(|i| format!("doc-{i}").parse().unwrap());
    let name: DocumentName =
        name.into_iter().find(|name| PartitionId::of(name) == bench.lease.partition()).unwrap();
    let strategy = manyhands_history::Strategy::Crdt;
    let record = DocumentRecord { name: name.clone(), incarnation: Incarnation(100), strategy };
    bench.partition.insert(Resident::new(record, Limits::default()));
    let mut elsewhere = Author::new(10).types(&["x"]);
    elsewhere.document = name;
    elsewhere.incarnation = Incarnation(100);
    elsewhere.grant.workspaces = vec!["*".to_owned()];

    let poison = Author::new(9).types(&["fine", BREAKER]);
    let late = Author::new(8).types(&["late"]);
    let batch = vec![Author::new(7).types(&["Hello"]), poison.clone(), late.clone(), elsewhere];
    let admitted = bench.partition.admit(NOW, batch);
    assert_eq!(admitted.broken(), [bench.record.name.clone()]);
    assert!(bench.partition.document(&bench.record.name).is_none());
    let answers = bench.finish(admitted).await.answers;
    assert_eq!((&answers[0].1, &answers[3].1), (&accepted(5, 1), &accepted(1, 1)));
    let broken = answers[1].1.as_ref().unwrap();
    assert_eq!((broken.next_counter, broken.seq), (4, Seq(2)));
    assert_eq!(broken.rejection.as_ref().map(|why| (why.counter, why.code)), Some((4, Code::Internal)));
    assert_eq!(refusal(&answers[2].1).0, Code::Unavailable);
    // It comes back from the log without the change, and others go on.
    bench.reload().await;
    assert_eq!(bench.submit(late).await, accepted(4, 3));
    // The second time its writes stop; it can still be read.
    assert_eq!(refusal(&bench.submit(poison).await).0, Code::Internal);
    bench.reload().await;
    let mut bob = Author::new(8);
    bob.types(&["late"]);
    assert_eq!(refusal(&bench.submit(bob.types(&["later"])).await).0, Code::Internal);
    assert_eq!(bench.document().state().text("page").unwrap().len(), 13);
}

/// One author's step: who, what, and whether what came last from them is sent once more.
#[derive(Clone, Debug)]
struct Step {
    author: usize,
    texts: Vec<String>,
    delete: bool,
    resend: Option<prop::sample::Index>,
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = (
        0..4usize,
        prop::collection::vec("[a-zä🙂]{1,5}", 1..3),
        any::<bool>(),
        prop::option::weighted(0.4, any::<prop::sample::Index>()),
    )
        .prop_map(|(author, texts, delete, resend)| Step { author, texts, delete, resend });
    // So few that memory remembers every change.
    prop::collection::vec(prop::collection::vec(step, 1..5), 1..6)
}

/// Runs batches of steps, in which every answer must be the expected one and at whose end all must agree.
async fn run(batches: &[Vec<Step>]) -> Bench {
    let mut bench = Bench::new().await;
    let mut authors: Vec<Author> = (1..=4).map(Author::new).collect();
    let mut sent: BTreeMap<usize, Vec<(Submit<()>, u64)>> = BTreeMap::new();
    for steps in batches {
        let mut batch = Vec::new();
        let mut expected = Vec::new();
        for step in steps {
            let author = &mut authors[step.author];
            if let (Some(index), Some(sent)) = (step.resend, sent.get(&step.author)) {
                let (submit, next_counter) = index.get(sent);
                batch.push(submit.clone());
                expected.push(*next_counter);
            }
            let texts: Vec<&str> = step.texts.iter().map(String::as_str).collect();
            let mut submit = author.types(&texts);
            let len = author.state.text("page").unwrap().len();
            if step.delete && len > 1 {
                let mut edit = author.state.edit(author.replica);
                edit.delete("page", 0..len / 2).unwrap();
                let change = edit.commit(author.base).unwrap();
                let mut push = PushWriter::new();
                let mut all = Vec::new();
                for change in manyhands_crdt::read_push(
                    submit.replica,
                    submit.first_counter,
                    submit.count,
                    &submit.changes,
                ) {
                    all.push(change.unwrap().0);
                }
                all.iter().for_each(|change| push.push(change.base, change.body));
                push.push(change.base, &change.body);
                submit = author.says(submit.first_counter, push);
            }
            let next_counter = author.state.next_counter(author.replica);
            sent.entry(step.author).or_default().push((submit.clone(), next_counter));
            batch.push(submit);
            expected.push(next_counter);
        }
        let released = bench.commit(batch).await;
        let answered: Vec<u64> =
            released.answers.iter().map(|(_, answer)| answer.as_ref().unwrap().next_counter).collect();
        assert_eq!(answered, expected);
        for delta in released.deltas {
            for author in &mut authors {
                let run = &delta.run;
                author
                    .state
                    .receive(run.first_seq, run.count, &run.entries, author.base, &mut Vec::new())
                    .unwrap();
                author.base = author.base.max(run.first_seq + u64::from(run.count) - 1);
            }
        }
    }
    let hashes: Vec<_> = authors.iter().map(|author| author.state.state_hash()).collect();
    assert_eq!(hashes, vec![bench.document().state().state_hash(); 4]);
    bench
}

fn property(check: impl Fn(Bench) -> TestCaseResult + Copy, batches: &[Vec<Step>]) -> TestCaseResult {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    check(runtime.block_on(run(batches)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    // enforces: I-3
    #[test]
    fn seqs_and_offsets_have_no_gaps(batches in steps()) {
        property(|bench| {
            let entries = futures_util::FutureExt::now_or_never(
                bench.log.follow(bench.lease.partition(), Offset(0), ALL),
            ).unwrap().unwrap();
            let mut identities = std::collections::BTreeSet::new();
            for (at, entry) in (1..).zip(&entries) {
                prop_assert_eq!((entry.offset, entry.seq), (Offset(at), Seq(at)));
                prop_assert!(identities.insert((entry.replica, entry.counter)), "a change counts twice");
            }
            prop_assert_eq!(bench.document().position().seq, Seq(entries.len() as u64));
            Ok(())
        }, &batches)?;
    }

    // enforces: I-5
    #[test]
    fn replaying_the_log_gives_the_state_in_memory_byte_for_byte(batches in steps()) {
        property(|mut bench| {
            let (state, position) = (bench.state(), bench.document().position());
            futures_util::FutureExt::now_or_never(bench.reload()).unwrap();
            prop_assert_eq!(bench.state(), state);
            prop_assert_eq!(bench.document().position(), position);
            Ok(())
        }, &batches)?;
    }

    // enforces: I-11
    #[test]
    fn the_same_requests_give_the_same_log(batches in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let logs: Vec<_> = (0..2).map(|_| runtime.block_on(async {
            let bench = run(&batches).await;
            bench.log.follow(bench.lease.partition(), Offset(0), ALL).await.unwrap()
        })).collect();
        prop_assert_eq!(&logs[0], &logs[1]);
    }
}
