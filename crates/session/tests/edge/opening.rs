//! The handshake, bytes that are no frames, and documents that are opened.

use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Code, v1};
use manyhands_session::edge::{Body, EdgeConfig, Effect, Input, Opened};
use manyhands_session::{Limits, SharedRun, encode_client};

use crate::*;

// ---- The handshake.

#[test]
fn hello_is_answered_with_what_this_session_may_do() {
    let outcome = Session::new().says(hello(1, 7));
    let [ServerFrame::Welcome(welcome)] = &outcome.frames[..] else { panic!("{outcome:?}") };
    assert_eq!((welcome.version, welcome.session.as_str()), (1, "s1"));
    assert_eq!(welcome.limits, Some(Limits::default().to_wire()));
    assert_eq!((welcome.server_time_ms, welcome.token_expires_in_ms), (WALL_MS, 3_600_000));
    assert!(welcome.features.is_empty(), "what is not known is not promised");
}

#[test]
fn versions_without_overlap_are_told_so() {
    Session::new().says(hello(2, 9)).is_closed_with(Code::VersionUnsupported);
    Session::new().says(hello(0, 1)).is_closed_with(Code::Violation);
    Session::new().says(hello(3, 2)).is_closed_with(Code::Violation);
}

#[test]
fn any_other_frame_first_is_a_violation() {
    for frame in [open(1, "demo"), push(1, 0, 1), ClientFrame::Ping(v1::Ping { nonce: 1 })] {
        Session::new().says(frame).is_closed_with(Code::Violation);
    }
}

#[test]
fn a_second_hello_is_a_violation() {
    Session::open().says(hello(1, 1)).is_closed_with(Code::Violation);
}

#[test]
fn silence_instead_of_hello_ends_after_ten_seconds() {
    let mut session = Session::new();
    session.waits(Duration::from_millis(9_999)).is_nothing();
    assert_eq!(session.edge.deadline(), Some(Duration::from_secs(10)));
    session.waits(Duration::from_millis(1)).is_closed_with(Code::Violation);
    assert_eq!(session.edge.deadline(), None);
    session.says(hello(1, 1)).is_nothing();
}

// ---- Bytes that are no frames.

#[test]
fn a_text_message_is_a_violation() {
    Session::open().input(Input::Text(Bytes::new())).is_closed_with(Code::Violation);
}

#[test]
fn garbage_and_cut_off_frames_are_violations() {
    Session::open().sends(&b"\xff\xff\xff\xff"[..]).is_closed_with(Code::Violation);
    Session::open().sends(&b"{\"type\":\"op\"}"[..]).is_closed_with(Code::Violation);
    let whole = encode_client(push(1, 0, 4));
    for end in 1..whole.len() {
        let mut session = Session::open();
        session.sends(whole.slice(..end)).is_closed_with(Code::Violation);
    }
}

#[test]
fn an_empty_frame_and_one_of_an_unknown_kind_are_violations() {
    Session::open().sends(Bytes::new()).is_closed_with(Code::Violation);
    // Field 99 with an empty message.
    Session::open().sends(&[0x9a, 0x06, 0x00][..]).is_closed_with(Code::Violation);
}

#[test]
fn unknown_fields_are_skipped() {
    let mut session = Session::open();
    // Ping { nonce: 5 } with a field 77 that a later version may have, inside and outside.
    let ping = vec![0x42, 0x07, 0x08, 0x05, 0xea, 0x04, 0x02, b'h', b'i', 0xe8, 0x04, 0x01];
    let outcome = session.sends(ping);
    assert!(matches!(&outcome.frames[..], [ServerFrame::Pong(pong)] if pong.nonce == 5), "{outcome:?}");
}

#[test]
fn a_frame_over_the_limit_is_not_even_decoded() {
    let max = Limits::default().frame_bytes_max as usize;
    Session::open().sends(vec![0xff; max + 1]).is_closed_with(Code::TooLarge);
    Session::open().sends(vec![0xff; max]).is_closed_with(Code::Violation);
}

// enforces: I-12
#[test]
fn many_small_parts_do_not_become_much_memory() {
    // Field 7 of a presence is unknown, field 3 is an empty cursor of two bytes.
    let presence = [0x1a, 0x00].repeat(100_000);
    let mut frame = vec![0x32];
    prost::encoding::encode_varint(presence.len() as u64, &mut frame);
    frame.extend(&presence);
    Session::open().sends(frame).is_closed_with(Code::TooLarge);
    // The same in pieces that would be put together.
    let piece = [&[0x32, 0xd0, 0x0f][..], &[0x1a, 0x00].repeat(1000)].concat();
    Session::open().sends(piece.repeat(40)).is_closed_with(Code::TooLarge);
    Session::open().sends([piece.repeat(40), vec![0xff]].concat()).is_closed_with(Code::TooLarge);
    let large = v1::Push { channel: 1, first_counter: 0, count: 9, changes: vec![1; 400 * 1024].into() };
    assert!(matches!(Session::open().says(ClientFrame::Push(large)).asked[..], [Effect::Submit { .. }]));
}

// ---- Opening.

#[test]
fn names_that_are_none_and_workspaces_that_are_not_allowed_are_evicted_and_the_socket_stays() {
    let mut session = Session::greeted();
    session.says(open(1, "a/b")).is_evicted_with(Code::InvalidName, 1);
    session.says(open(1, "")).is_evicted_with(Code::InvalidName, 1);
    session.says(open(1, "secret")).is_evicted_with(Code::Forbidden, 1);
    session.open_demo(1);
}

// enforces: I-15
#[test]
fn no_frame_gets_anything_of_a_document_that_the_token_does_not_cover() {
    let mut session = Session::greeted();
    for name in ["secret", "Demo", "demo2", "other:x"] {
        let outcome = session.says(open(3, name));
        outcome.is_evicted_with(Code::Forbidden, 3);
        assert!(outcome.asked.is_empty(), "nobody was asked: {outcome:?}");
        let after = session.says(push(3, 0, 1));
        after.is_rejected_with(Code::NotOpen, 0);
        assert!(session.says(ClientFrame::Fetch(v1::Fetch { channel: 3, after_seq: 0 })).asked.is_empty());
        let presence = v1::SetPresence { channel: 3, data: Bytes::from_static(b"{}"), cursors: vec![] };
        assert!(session.says(ClientFrame::Presence(presence)).asked.is_empty());
    }
    let mut nobody = Session::with(EdgeConfig::default(), grant(&[], &["*"]), None);
    nobody.greet();
    nobody.says(open(1, "demo")).is_evicted_with(Code::Forbidden, 1);
}

#[test]
fn a_socket_for_one_workspace_opens_that_one_only() {
    let mut session = Session::with(EdgeConfig::default(), grant(&["read"], &["*"]), Some("demo"));
    session.greet();
    session.says(open(1, "other")).is_evicted_with(Code::Forbidden, 1);
    let outcome = session.says(open(1, ""));
    assert!(matches!(&outcome.asked[..], [Effect::Open { document, .. }] if document.as_str() == "demo"));
}

#[test]
fn a_channel_that_is_in_use_may_not_be_opened() {
    Session::open().says(open(1, "other")).is_closed_with(Code::Violation);
}

#[test]
fn a_position_that_proves_nothing_is_evicted() {
    let mut session = Session::greeted();
    for have in [
        v1::Position { incarnation: 1, seq: 4, chain: Bytes::new() },
        v1::Position { incarnation: 1, seq: 4, chain: vec![0; 17].into() },
        v1::Position { incarnation: 0, seq: 4, chain: vec![0; 16].into() },
    ] {
        let open = v1::Open {
            channel: 1,
            document: "demo".to_owned(),
            replica: 9,
            have: Some(have),
            ..v1::Open::default()
        };
        session.says(ClientFrame::Open(open)).is_evicted_with(Code::Malformed, 1);
    }
}

#[test]
fn ten_thousand_opens_load_four_at_a_time_and_end_at_the_limit() {
    let mut session = Session::greeted();
    let mut asked = 0;
    let mut evicted = 0;
    for number in 1..=10_000 {
        let outcome = session.says(open(number, "demo"));
        asked += outcome.asked.len();
        evicted += outcome.frames.iter().filter(|frame| matches!(frame, ServerFrame::Evict(_))).count();
        if let Some(code) = outcome.closed {
            assert_eq!(code, Code::LimitReached);
            assert_eq!((number, asked, evicted), (300, 4, 200));
            return;
        }
    }
    panic!("ten thousand opens were taken");
}

#[test]
fn an_opening_that_waits_is_asked_when_another_has_finished() {
    let mut session = Session::greeted();
    let mut channels = Vec::new();
    for number in 1..=5 {
        for effect in session.says(open(number, "demo")).asked {
            let Effect::Open { channel, .. } = effect else { panic!("{effect:?}") };
            channels.push(channel);
        }
    }
    assert_eq!(channels.len(), 4);
    let outcome = session.input(Input::Opened { channel: channels[0], result: Ok(opened(0)) });
    assert!(
        matches!(outcome.asked[..], [Effect::Open { channel, .. }] if channel.number == 5),
        "{outcome:?}"
    );
}

// enforces: I-10
#[test]
fn opening_and_leaving_in_a_loop_asks_no_more_at_one_time_than_is_allowed() {
    let mut session = Session::greeted();
    let mut asked = Vec::new();
    for number in 0..1_000 {
        for effect in session.says(open(number, "demo")).asked {
            if let Effect::Open { channel, .. } = effect {
                asked.push(channel);
            }
        }
        session.says(ClientFrame::Leave(v1::Leave { channel: number }));
    }
    assert_eq!(asked.len(), 4);
    session.input(Input::Opened { channel: asked[0], result: Ok(opened(0)) }).is_nothing();
    let outcome = session.says(open(5, "demo"));
    assert!(matches!(outcome.asked[..], [Effect::Open { .. }]), "{outcome:?}");
}

// enforces: I-10
#[test]
fn channels_that_are_left_with_a_push_on_its_way_keep_their_place() {
    let mut session = Session::greeted();
    let mut pushed = Vec::new();
    for number in 0..100 {
        let channel = session.open_demo(number);
        assert!(matches!(session.says(push(number, 0, 1)).asked[..], [Effect::Submit { .. }]));
        session.says(ClientFrame::Leave(v1::Leave { channel: number }));
        pushed.push(channel);
    }
    session.says(open(1, "demo")).is_evicted_with(Code::LimitReached, 1);
    session.input(Input::Submitted { channel: pushed[7], result: acked(1, 1) }).is_nothing();
    session.open_demo(1);
}

#[test]
fn an_answer_to_an_opening_that_was_left_reaches_nobody() {
    let mut session = Session::greeted();
    let outcome = session.says(open(1, "demo"));
    let [Effect::Open { channel: first, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    let outcome = session.says(ClientFrame::Leave(v1::Leave { channel: 1 }));
    assert!(matches!(outcome.asked[..], [Effect::Leave { channel, .. }] if channel == first));
    session.says(open(1, "other"));
    session.input(Input::Opened { channel: first, result: Ok(opened(5)) }).is_nothing();
    session.input(Input::Entries { channel: first, run: run(1, 1, 10) }).is_nothing();
    session.input(Input::Lost { channel: first }).is_nothing();
}

#[test]
fn a_refused_open_evicts_the_channel_and_its_number_is_free() {
    let mut session = Session::greeted();
    let outcome = session.says(open(1, "demo"));
    let [Effect::Open { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    let outcome = session.input(Input::Opened { channel, result: Err(Code::Unavailable.into()) });
    outcome.is_evicted_with(Code::Unavailable, 1);
    assert!(matches!(outcome.asked[..], [Effect::Leave { .. }]));
    session.open_demo(1);
}

/// What a client that keeps no position asks for.
fn open_with_heads(heads: &[u8]) -> ClientFrame {
    let heads = heads.iter().map(|&head| Bytes::from(vec![head; 16])).collect();
    let strategy = v1::Strategy::Lww.into();
    ClientFrame::Open(v1::Open {
        channel: 1,
        document: "demo".to_owned(),
        heads,
        strategy,
        ..v1::Open::default()
    })
}

#[test]
fn strategy_and_heads_go_to_the_owner_and_come_back() {
    let mut session = Session::greeted();
    let outcome = session.says(open_with_heads(&[1, 2]));
    let [Effect::Open { channel, heads, strategy: v1::Strategy::Lww, .. }] = &outcome.asked[..] else {
        panic!("{outcome:?}");
    };
    assert_eq!(heads.len(), 2);
    let head = v1::Head { hash: vec![7; 16].into(), replica: 9, seq: 5 };
    let answer = Opened { strategy: v1::Strategy::Lww, heads: vec![head], max_base: 4, ..opened(5) };
    let outcome = session.input(Input::Opened { channel: *channel, result: Ok(answer) });
    let [ServerFrame::Opened(opened)] = &outcome.frames[..] else { panic!("{outcome:?}") };
    assert_eq!(opened.strategy(), v1::Strategy::Lww);
    assert_eq!(opened.heads, [Bytes::from(vec![7; 16])]);
}

#[test]
fn a_tail_behind_heads_begins_where_the_owner_says_and_goes_on_from_there() {
    let tail = |runs| Opened::new(position(5), 0, Body::Tail(runs));
    for (runs, next) in [(vec![run(4, 2, 10)], 6), (Vec::new(), 6)] {
        let mut session = Session::greeted();
        let outcome = session.says(open_with_heads(&[1]));
        let [Effect::Open { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
        let first = runs.first().map(SharedRun::first);
        let outcome = session.input(Input::Opened { channel, result: Ok(tail(runs)) });
        let sent: Vec<u64> = deltas(&outcome.frames).iter().map(|&(seq, _)| seq).collect();
        assert_eq!(sent, first.iter().map(|seq| seq.0).collect::<Vec<_>>());
        assert!(outcome.asked.is_empty(), "nothing is missing: {outcome:?}");
        let outcome = session.input(Input::Entries { channel, run: run(next, 1, 10) });
        assert_eq!(deltas(&outcome.frames), [(next, 1)]);
    }
}

#[test]
fn a_client_with_a_position_needs_no_heads() {
    let mut session = Session::greeted();
    let ClientFrame::Open(open) = open_with_heads(&[1]) else { unreachable!() };
    let have = v1::Position { incarnation: 1, seq: 4, chain: vec![0; 16].into() };
    let outcome = session.says(ClientFrame::Open(v1::Open { have: Some(have), ..open }));
    assert!(matches!(&outcome.asked[..], [Effect::Open { heads, .. }] if heads.is_empty()), "{outcome:?}");
}

#[test]
fn more_heads_than_a_client_may_name_are_not_told() {
    for (count, told) in [(1024, 1024), (1025, 0)] {
        let mut session = Session::greeted();
        let outcome = session.says(open(1, "demo"));
        let [Effect::Open { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
        let head = v1::Head { hash: vec![7; 16].into(), replica: 9, seq: 5 };
        let answer = Opened { heads: vec![head; count], ..opened(5) };
        let outcome = session.input(Input::Opened { channel, result: Ok(answer) });
        let [ServerFrame::Opened(opened)] = &outcome.frames[..] else { panic!("{outcome:?}") };
        assert_eq!(opened.heads.len(), told);
    }
}
