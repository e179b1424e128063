//! Changes on their way up, entries on their way down.

use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Code, Position, Seq, v1};
use manyhands_session::edge::{Body, EdgeConfig, Effect, Fetched, Input, Opened, Submitted};
use manyhands_session::{Limits, Refusal};

use crate::*;

// ---- Pushing.

#[test]
fn a_push_is_submitted_and_its_ack_comes_back() {
    let mut session = Session::open();
    let outcome = session.says(push(1, 0, 2));
    let [Effect::Submit { channel, incarnation, first_counter, count, .. }] = outcome.asked[..] else {
        panic!("{outcome:?}")
    };
    assert_eq!((incarnation, first_counter, count), (INCARNATION, 0, 2));
    let outcome = session.input(Input::Submitted { channel, result: acked(5, 2) });
    let ack = v1::Ack { channel: 1, next_counter: 5, seq: 2 };
    assert_eq!(outcome.frames, [ServerFrame::Ack(ack)]);
}

#[test]
fn one_push_is_on_its_way_at_a_time_and_the_others_keep_their_order() {
    let mut session = Session::open();
    let outcome = session.says(push(1, 0, 1));
    let [Effect::Submit { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    session.says(push(1, 1, 1)).is_nothing();
    session.says(push(1, 2, 1)).is_nothing();
    for expected in 1..=2 {
        let outcome = session.input(Input::Submitted { channel, result: acked(expected, expected) });
        let [Effect::Submit { first_counter, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
        assert_eq!(first_counter, expected);
    }
}

#[test]
fn a_push_for_a_document_that_is_not_open_is_rejected() {
    let mut session = Session::greeted();
    session.says(push(1, 7, 1)).is_rejected_with(Code::NotOpen, 7);
    session.says(open(1, "demo"));
    session.says(push(1, 7, 1)).is_rejected_with(Code::NotOpen, 7);
    session.is_alive();
}

#[test]
fn a_push_without_the_write_scope_is_rejected_and_the_twentieth_ends_the_session() {
    let mut session = Session::with(EdgeConfig::default(), grant(&["read"], &["demo"]), None);
    session.greet();
    session.open_demo(1);
    for _ in 0..19 {
        session.says(push(1, 0, 1)).is_rejected_with(Code::Forbidden, 0);
        session.says(push(1, 1, 1)).is_nothing();
    }
    session.says(push(1, 0, 1)).is_closed_with(Code::Forbidden);
}

#[test]
fn a_reader_may_not_push() {
    let mut session = Session::greeted();
    let reader = v1::Open { channel: 1, document: "demo".to_owned(), ..v1::Open::default() };
    let outcome = session.says(ClientFrame::Open(reader));
    let [Effect::Open { channel, replica: None, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    let outcome = session.input(Input::Opened { channel, result: Ok(opened(0)) });
    assert!(matches!(&outcome.frames[..], [ServerFrame::Opened(opened)] if !opened.can_write));
    session.says(push(1, 0, 1)).is_rejected_with(Code::Forbidden, 0);
}

#[test]
fn pushes_that_contradict_themselves_are_rejected() {
    let mut session = Session::open();
    session.says(push(1, 0, 0)).is_rejected_with(Code::Malformed, 0);
    let short = v1::Push { channel: 1, first_counter: 0, count: 9, changes: Bytes::from_static(b"abc") };
    session.says(ClientFrame::Push(short)).is_rejected_with(Code::Malformed, 0);
    session.says(push(1, 0, 257)).is_rejected_with(Code::TooLarge, 0);
    let large = v1::Push { channel: 1, first_counter: 0, count: 1, changes: vec![1; 600 * 1024].into() };
    session.says(ClientFrame::Push(large)).is_rejected_with(Code::TooLarge, 0);
    session.is_alive();
}

#[test]
fn a_hole_in_the_counters_is_answered_with_the_counter_that_is_expected() {
    let mut session = Session::open();
    let outcome = session.says(push(1, 5, 1));
    let [Effect::Submit { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    session.says(push(1, 6, 1)).is_nothing();
    let rejection = v1::Rejection {
        counter: 5,
        code: Code::MissingPredecessor.number(),
        message: "2 is missing".to_owned(),
        next_counter: 2,
        ..v1::Rejection::default()
    };
    let result = Ok(Submitted { next_counter: 2, seq: Seq(0), rejection: Some(rejection) });
    let outcome = session.input(Input::Submitted { channel, result });
    outcome.is_rejected_with(Code::MissingPredecessor, 5);
    let [ServerFrame::Reject(reject)] = &outcome.frames[..] else { panic!() };
    assert_eq!(reject.next_counter, 2);
    // What was behind it is not submitted and not answered; the resend is.
    session.says(push(1, 7, 1)).is_nothing();
    let outcome = session.says(push(1, 2, 1));
    assert!(matches!(outcome.asked[..], [Effect::Submit { first_counter: 2, .. }]), "{outcome:?}");
}

#[test]
fn a_fork_is_rejected_with_what_the_owner_said() {
    let mut session = Session::open();
    let outcome = session.says(push(1, 0, 3));
    let [Effect::Submit { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    let rejection = v1::Rejection {
        counter: 1,
        code: Code::Fork.number(),
        message: "other bytes".to_owned(),
        next_counter: 0,
        ..v1::Rejection::default()
    };
    let result = Ok(Submitted { next_counter: 1, seq: Seq(4), rejection: Some(rejection) });
    let outcome = session.input(Input::Submitted { channel, result });
    let [ServerFrame::Ack(ack), ServerFrame::Reject(reject)] = &outcome.frames[..] else {
        panic!("{outcome:?}")
    };
    assert_eq!((ack.next_counter, reject.counter, reject.code), (1, 1, Code::Fork.number()));
}

/// The log has something under these counters, but not this: that is no acknowledgement.
// enforces: I-1
#[test]
fn what_is_rejected_is_never_acknowledged() {
    for code in [Code::Fork, Code::ReplicaTaken] {
        let mut session = Session::open();
        let outcome = session.says(push(1, 0, 3));
        let [Effect::Submit { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
        let rejection = v1::Rejection { counter: 0, code: code.number(), ..v1::Rejection::default() };
        let result = Ok(Submitted { next_counter: 3, seq: Seq(0), rejection: Some(rejection) });
        let outcome = session.input(Input::Submitted { channel, result });
        assert!(matches!(outcome.frames[..], [ServerFrame::Reject(_)]), "{outcome:?}");
    }
}

#[test]
fn more_changes_than_may_wait_are_overloaded_and_none_of_them_is_lost_on_the_way() {
    let mut session = Session::open();
    let limit = u64::from(Limits::default().in_flight_changes_max / 256);
    for n in 0..limit {
        assert!(session.says(push(1, n * 256, 256)).frames.is_empty());
    }
    let outcome = session.says(push(1, limit * 256, 1));
    outcome.is_rejected_with(Code::Overloaded, limit * 256);
    let [ServerFrame::Reject(reject)] = &outcome.frames[..] else { panic!() };
    assert!(reject.retry_after_ms > 0);
    session.says(push(1, limit * 256 + 1, 1)).is_nothing();
}

#[test]
fn an_ack_moves_the_place_from_which_a_client_may_begin_again() {
    let mut session = Session::open();
    let outcome = session.says(push(1, 0, 256));
    let [Effect::Submit { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    for n in 1..4 {
        session.says(push(1, n * 256, 256)).is_nothing();
    }
    // Too many, and it begins at what is on its way already.
    session.says(push(1, 0, 256)).is_rejected_with(Code::Overloaded, 0);
    session.input(Input::Submitted { channel, result: acked(256, 256) });
    // The client has its ack and goes on from there: this may not be taken for a leftover.
    for n in 1..4 {
        session.input(Input::Submitted { channel, result: acked((n + 1) * 256, (n + 1) * 256) });
    }
    let outcome = session.says(push(1, 1024, 1));
    assert!(matches!(outcome.asked[..], [Effect::Submit { first_counter: 1024, .. }]), "{outcome:?}");
}

#[test]
fn an_owner_that_fails_is_a_reject_that_says_when_to_try_again() {
    let mut session = Session::open();
    let outcome = session.says(push(1, 0, 1));
    let [Effect::Submit { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    let mut refusal = Refusal::from(Code::Unavailable);
    refusal.retry_after_ms = 250;
    let outcome = session.input(Input::Submitted { channel, result: Err(refusal) });
    outcome.is_rejected_with(Code::Unavailable, 0);
    let outcome = session.says(push(1, 0, 1));
    assert!(matches!(outcome.asked[..], [Effect::Submit { .. }]));
}

#[test]
fn a_history_that_was_replaced_evicts_the_channel() {
    let mut session = Session::open();
    let outcome = session.says(push(1, 0, 1));
    let [Effect::Submit { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    let outcome = session.input(Input::Submitted { channel, result: Err(Code::HistoryReset.into()) });
    outcome.is_evicted_with(Code::HistoryReset, 1);
    let channel = session.open_demo(1);
    session.input(Input::Lost { channel }).is_evicted_with(Code::HistoryReset, 1);
}

// ---- Entries.

#[test]
fn entries_go_out_in_order_once_and_a_gap_is_fetched() {
    let mut session = Session::greeted();
    let channel = session.open_demo(1);
    let entries = |session: &mut Session, first, count| {
        session.input(Input::Entries { channel, run: run(first, count, 10) })
    };
    assert_eq!(deltas(&entries(&mut session, 1, 2).frames), [(1, 2)]);
    entries(&mut session, 1, 1).is_nothing();
    entries(&mut session, 2, 1).is_nothing();
    // Overlapping: whole, the client skips what it has.
    assert_eq!(deltas(&entries(&mut session, 2, 2).frames), [(2, 2)]);
    let outcome = entries(&mut session, 6, 1);
    assert!(matches!(outcome.asked[..], [Effect::Fetch { after: Seq(3), .. }]) && outcome.frames.is_empty());
    entries(&mut session, 7, 1).is_nothing();
    let fetched = Fetched { runs: vec![run(4, 4, 10)], tip: position(7) };
    let outcome = session.input(Input::Fetched { channel, result: Ok(fetched) });
    assert_eq!(deltas(&outcome.frames), [(4, 4)]);
    assert!(outcome.asked.is_empty());
}

#[test]
fn an_entry_that_was_only_heard_of_is_fetched_when_the_bus_does_not_bring_it() {
    let mut session = Session::greeted();
    let channel = session.open_demo(1);
    session.input(Input::TipSeen { channel, position: position(1) }).is_nothing();
    assert_eq!(session.edge.deadline(), Some(Duration::from_millis(250)));
    let outcome = session.waits(Duration::from_millis(250));
    assert!(matches!(outcome.asked[..], [Effect::Fetch { after: Seq(0), .. }]), "{outcome:?}");
}

#[test]
fn the_same_seq_with_another_chain_is_another_history() {
    let mut session = Session::greeted();
    let channel = session.open_demo(1);
    session.input(Input::Entries { channel, run: run(1, 1, 10) });
    let tip = Position { chain: [99; 16], ..position(1) };
    session.input(Input::TipSeen { channel, position: tip }).is_evicted_with(Code::HistoryReset, 1);
}

#[test]
fn a_state_goes_out_as_there_is_room_and_what_came_meanwhile_is_fetched() {
    let mut session = Session::greeted();
    let outcome = session.says(open(1, "demo"));
    let [Effect::Open { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    let chunk = Bytes::from(vec![3; 200 * 1024]);
    let body = Body::State(vec![chunk; 5]);
    let result = Ok(Opened::new(position(8), 0, body));
    let outcome = session.input(Input::Opened { channel, result });
    let states = |outcome: &Outcome| {
        let state = |frame: &ServerFrame| match frame {
            ServerFrame::State(state) => Some(state.last),
            _ => None,
        };
        outcome.frames.iter().filter_map(state).collect::<Vec<_>>()
    };
    let ServerFrame::Opened(opened) = &outcome.frames[0] else { panic!("{outcome:?}") };
    assert_eq!((opened.recovery(), opened.state_bytes), (v1::Recovery::State, 1000 * 1024));
    assert_eq!(states(&outcome), [false; 3], "over the level, no more");
    session.input(Input::Entries { channel, run: run(9, 1, 10) }).is_nothing();
    let outcome = session.input(Input::Queued { bytes: 0 });
    assert_eq!(states(&outcome), [false, true]);
    let outcome = session.input(Input::Queued { bytes: 0 });
    assert!(matches!(outcome.asked[..], [Effect::Fetch { after: Seq(8), .. }]), "{outcome:?}");
}

// ---- Slow readers.

// enforces: I-10
#[test]
fn a_reader_that_never_reads_costs_a_bounded_amount_and_is_closed() {
    let mut session = Session::greeted();
    let channel = session.open_demo(1);
    let mut sent = 0;
    let mut tips = 0;
    for seq in 1..=1_000_000 {
        session.now += Duration::from_micros(50);
        let outcome = session.input(Input::Entries { channel, run: run(seq, 1, 1000) });
        for frame in &outcome.frames {
            match frame {
                ServerFrame::Delta(delta) => sent += delta.entries.len(),
                ServerFrame::Tip(_) => tips += 1,
                _ => panic!("{frame:?}"),
            }
        }
        assert!(sent < 600 * 1024, "what waits for it is bounded");
        if outcome.closed.is_some() {
            outcome.is_closed_with(Code::SlowConsumer);
            assert_eq!(tips, 1, "it was told once that it is behind");
            assert!(session.now >= Duration::from_secs(10));
            return;
        }
        session.input(Input::Heard);
    }
    panic!("it was never closed");
}

#[test]
fn a_reader_that_only_writes_is_closed_when_the_answers_pile_up() {
    let mut session = Session::open();
    for nonce in 0..10_000_000 {
        let outcome = session.says(ClientFrame::Ping(v1::Ping { nonce }));
        if outcome.closed.is_some() {
            return outcome.is_closed_with(Code::SlowConsumer);
        }
    }
    panic!("it was never closed");
}

#[test]
fn a_reader_that_falls_behind_catches_up_when_it_reads_again() {
    let mut session = Session::greeted();
    let channel = session.open_demo(1);
    let mut sent = 0;
    for seq in 1..=1000 {
        let outcome = session.input(Input::Entries { channel, run: run(seq, 1, 1000) });
        sent += deltas(&outcome.frames).len() as u64;
        assert!(outcome.asked.is_empty());
    }
    assert!(sent < 600);
    session.input(Input::Queued { bytes: 300 * 1024 }).is_nothing();
    let outcome = session.input(Input::Queued { bytes: 10 });
    assert!(matches!(outcome.asked[..], [Effect::Fetch { after, .. }] if after.0 == sent), "{outcome:?}");
}
