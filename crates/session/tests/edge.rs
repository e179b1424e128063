//! What an edge does with good and bad input, one sentence a test.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Code, DocumentName, Incarnation, Position, Seq, v1};
use manyhands_session::edge::{Body, ChannelId, Edge, EdgeConfig, Effect, Fetched, Input, Opened, Submitted};
use manyhands_session::{
    Grant, Limits, Refusal, Scopes, SharedRun, Workspaces, decode_server, encode_client,
};
use proptest::prelude::*;

const WALL_MS: u64 = 1_800_000_000_000;
const INCARNATION: Incarnation = Incarnation(0xabc);

/// A session with its effects sorted: frames to the client, requests to the shell.
struct Session {
    edge: Edge,
    now: Duration,
}

#[derive(Debug, Default)]
struct Outcome {
    frames: Vec<ServerFrame>,
    asked: Vec<Effect>,
    closed: Option<Code>,
}

fn grant(scopes: &[&str], workspaces: &[&str]) -> Grant {
    Grant {
        subject: "ada".to_owned(),
        scopes: Scopes::parse(scopes.iter().copied()),
        workspaces: Workspaces::parse(workspaces.iter().copied()),
        expires_at_ms: WALL_MS + 3_600_000,
    }
}

impl Session {
    fn with(config: EdgeConfig, grant: Grant, workspace: Option<&str>) -> Session {
        let workspace: Option<DocumentName> = workspace.map(|name| name.parse().unwrap());
        let edge = Edge::new(config, "s1".to_owned(), grant, workspace, 7, Duration::ZERO, WALL_MS);
        Session { edge, now: Duration::ZERO }
    }

    /// Not yet greeted.
    fn new() -> Session {
        Session::with(EdgeConfig::default(), grant(&["read", "write"], &["demo", "other"]), None)
    }

    fn greeted() -> Session {
        let mut session = Session::new();
        session.greet();
        session
    }

    /// With `demo` open on channel 1 for replica 9, at seq 0.
    fn open() -> Session {
        let mut session = Session::greeted();
        session.open_demo(1);
        session
    }

    fn greet(&mut self) {
        let outcome = self.says(hello(1, 1));
        assert!(matches!(outcome.frames[..], [ServerFrame::Welcome(_)]), "{outcome:?}");
    }

    fn open_demo(&mut self, number: u32) -> ChannelId {
        let outcome = self.says(open(number, "demo"));
        let [Effect::Open { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
        let outcome = self.input(Input::Opened { channel, result: Ok(opened(0)) });
        assert!(matches!(outcome.frames[..], [ServerFrame::Opened(_)]), "{outcome:?}");
        channel
    }

    fn input(&mut self, input: Input) -> Outcome {
        let mut effects = Vec::new();
        self.edge.handle(self.now, input, &mut effects);
        let mut outcome = Outcome::default();
        for effect in effects {
            assert_eq!(outcome.closed, None, "something after the close: {effect:?}");
            match effect {
                Effect::Send(bytes) => outcome.frames.push(decode_server(bytes, usize::MAX).unwrap()),
                Effect::Close { code, reason } => {
                    assert!(code.close().is_some() && reason.len() <= 123, "{code} {reason}");
                    assert!(reason.starts_with(code.slug()));
                    outcome.closed = Some(code);
                }
                other => outcome.asked.push(other),
            }
        }
        outcome
    }

    fn says(&mut self, frame: ClientFrame) -> Outcome {
        self.input(Input::Frame(encode_client(frame)))
    }

    fn sends(&mut self, bytes: impl Into<Bytes>) -> Outcome {
        self.input(Input::Frame(bytes.into()))
    }

    /// Reads what it was sent, then does nothing.
    fn waits(&mut self, time: Duration) -> Outcome {
        self.input(Input::Queued { bytes: 0 }).is_nothing();
        self.now += time;
        self.input(Input::Tick)
    }

    fn is_alive(&mut self) {
        let outcome = self.says(ClientFrame::Ping(v1::Ping { nonce: 5 }));
        assert!(matches!(&outcome.frames[..], [ServerFrame::Pong(pong)] if pong.nonce == 5), "{outcome:?}");
    }
}

impl Outcome {
    fn is_closed_with(&self, code: Code) {
        assert_eq!(self.closed, Some(code), "{self:?}");
        assert!(self.asked.is_empty(), "{self:?}");
    }

    /// One reject, and nothing was asked of anybody.
    fn is_rejected_with(&self, code: Code, counter: u64) {
        let [ServerFrame::Reject(reject)] = &self.frames[..] else { panic!("{self:?}") };
        assert_eq!((reject.code, reject.counter), (code.number(), counter), "{self:?}");
        assert!(!reject.fix.is_empty() && !reject.message.is_empty());
        assert!(self.asked.is_empty() && self.closed.is_none(), "{self:?}");
    }

    fn is_evicted_with(&self, code: Code, channel: u32) {
        let [ServerFrame::Evict(evict)] = &self.frames[..] else { panic!("{self:?}") };
        assert_eq!((evict.code, evict.channel), (code.number(), channel), "{self:?}");
        assert!(self.closed.is_none(), "{self:?}");
    }

    fn is_nothing(&self) {
        assert!(self.frames.is_empty() && self.asked.is_empty() && self.closed.is_none(), "{self:?}");
    }
}

fn hello(version_min: u32, version_max: u32) -> ClientFrame {
    let client = "test".to_owned();
    ClientFrame::Hello(v1::Hello { version_min, version_max, client, features: vec!["later".to_owned()] })
}

fn open(channel: u32, document: &str) -> ClientFrame {
    ClientFrame::Open(v1::Open { channel, document: document.to_owned(), replica: 9, have: None })
}

fn push(channel: u32, first_counter: u64, count: u32) -> ClientFrame {
    let changes = Bytes::from(vec![1; count as usize * 3]);
    ClientFrame::Push(v1::Push { channel, first_counter, count, changes })
}

fn position(seq: u64) -> Position {
    Position {
        incarnation: INCARNATION,
        seq: Seq(seq),
        chain: if seq == 0 { [0; 16] } else { [seq as u8; 16] },
    }
}

fn opened(seq: u64) -> Opened {
    Opened { position: position(seq), next_counter: 0, body: Body::Tail(Vec::new()) }
}

fn run(first_seq: u64, count: u32, bytes: usize) -> SharedRun {
    let last = first_seq + u64::from(count) - 1;
    let chain = vec![last as u8; 16].into();
    SharedRun::new(v1::EntryRun { first_seq, count, entries: vec![7; bytes].into(), chain }).unwrap()
}

fn deltas(frames: &[ServerFrame]) -> Vec<(u64, u32)> {
    let delta = |frame: &ServerFrame| match frame {
        ServerFrame::Delta(delta) => Some((delta.first_seq, delta.count)),
        _ => None,
    };
    frames.iter().filter_map(delta).collect()
}

fn acked(next_counter: u64, seq: u64) -> Result<Submitted, Refusal> {
    Ok(Submitted { next_counter, seq: Seq(seq), rejection: None })
}

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
    Session::open().input(Input::TextFrame).is_closed_with(Code::Violation);
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
        let open = v1::Open { channel: 1, document: "demo".to_owned(), replica: 9, have: Some(have) };
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
    let reader = v1::Open { channel: 1, document: "demo".to_owned(), replica: 0, have: None };
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
        retry_after_ms: 0,
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
        retry_after_ms: 0,
    };
    let result = Ok(Submitted { next_counter: 1, seq: Seq(4), rejection: Some(rejection) });
    let outcome = session.input(Input::Submitted { channel, result });
    let [ServerFrame::Ack(ack), ServerFrame::Reject(reject)] = &outcome.frames[..] else {
        panic!("{outcome:?}")
    };
    assert_eq!((ack.next_counter, reject.counter, reject.code), (1, 1, Code::Fork.number()));
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
    let result = Ok(Opened { position: position(8), next_counter: 0, body });
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

// ---- Presence.

#[test]
fn presence_is_stamped_and_the_newest_wins() {
    let mut session = Session::open();
    let set = |data: &'static [u8]| {
        ClientFrame::Presence(v1::SetPresence { channel: 1, data: Bytes::from_static(data), cursors: vec![] })
    };
    // The shell is given a moment to join the lane.
    session.now = Duration::from_millis(50);
    let outcome = session.says(set(b"1"));
    let [Effect::SetPresence { peer, .. }] = &outcome.asked[..] else { panic!("{outcome:?}") };
    assert_eq!((peer.session.as_str(), peer.user.as_str(), &peer.data[..]), ("s1", "ada", &b"1"[..]));
    session.says(set(b"2")).is_nothing();
    session.says(set(b"3")).is_nothing();
    let outcome = session.waits(Duration::from_millis(50));
    assert!(matches!(&outcome.asked[..], [Effect::SetPresence { peer, .. }] if &peer.data[..] == b"3"));
    session.now += Duration::from_millis(50);
    assert!(matches!(session.says(set(b"")).asked[..], [Effect::ClearPresence { .. }]));
}

#[test]
fn a_presence_that_is_too_large_or_no_text_ends_the_session() {
    let set = |data: Vec<u8>| {
        ClientFrame::Presence(v1::SetPresence { channel: 1, data: data.into(), cursors: vec![] })
    };
    Session::open().says(set(vec![b'x'; 5000])).is_closed_with(Code::TooLarge);
    Session::open().says(set(vec![0xff])).is_closed_with(Code::Violation);
}

#[test]
fn a_slow_reader_gets_the_newest_of_each_peer() {
    let mut session = Session::greeted();
    let channel = session.open_demo(1);
    session.input(Input::Entries { channel, run: run(1, 1, 600 * 1024) });
    let peer = |session: &str, data: &'static [u8]| v1::Peer {
        session: session.to_owned(),
        data: Bytes::from_static(data),
        ..v1::Peer::default()
    };
    let update =
        |peers: Vec<v1::Peer>, left: Vec<String>| Input::Presence { channel, full: false, peers, left };
    session.input(update(vec![peer("a", b"1"), peer("b", b"1")], vec![])).is_nothing();
    session.input(update(vec![peer("a", b"2")], vec!["b".to_owned()])).is_nothing();
    let outcome = session.input(Input::Queued { bytes: 0 });
    let [ServerFrame::Presence(update)] = &outcome.frames[..] else { panic!("{outcome:?}") };
    assert_eq!((&update.peers[..], &update.left[..]), (&[peer("a", b"2")][..], &["b".to_owned()][..]));
}

#[test]
fn a_large_roster_goes_out_in_pieces() {
    let mut session = Session::greeted();
    let channel = session.open_demo(1);
    let peer = |number: usize| v1::Peer {
        session: format!("peer {number:04}"),
        data: vec![b'x'; 4000].into(),
        ..v1::Peer::default()
    };
    let everybody =
        Input::Presence { channel, full: true, peers: (0..1000).map(peer).collect(), left: vec![] };
    let mut outcome = session.input(everybody);
    let mut fulls = Vec::new();
    let mut peers = 0;
    for _ in 0..100 {
        for frame in &outcome.frames {
            let ServerFrame::Presence(update) = frame else { panic!("{frame:?}") };
            fulls.push(update.full);
            peers += update.peers.len();
        }
        assert!(outcome.closed.is_none());
        outcome = session.input(Input::Queued { bytes: 0 });
    }
    assert_eq!(peers, 1000);
    assert!(fulls[0] && !fulls[1..].contains(&true));
}

// ---- The token.

fn fresh(scopes: &[&str], workspaces: &[&str], lasts_ms: u64) -> Grant {
    Grant { expires_at_ms: WALL_MS + lasts_ms, ..grant(scopes, workspaces) }
}

// enforces: I-15
#[test]
fn an_expired_token_ends_the_session() {
    let config = EdgeConfig { ping_interval: Duration::from_secs(3600), ..EdgeConfig::default() };
    let mut session = Session::with(config, fresh(&["read"], &["demo"], 60_000), None);
    session.greet();
    session.open_demo(1);
    session.waits(Duration::from_millis(59_999)).is_nothing();
    assert_eq!(session.edge.deadline(), Some(Duration::from_secs(60)));
    session.waits(Duration::from_millis(1)).is_closed_with(Code::TokenExpired);
}

#[test]
fn a_fresh_token_in_time_extends_the_session() {
    let config = EdgeConfig { ping_interval: Duration::from_secs(3600), ..EdgeConfig::default() };
    let mut session = Session::with(config, fresh(&["read"], &["demo"], 60_000), None);
    session.greet();
    session.waits(Duration::from_secs(50)).is_nothing();
    let outcome = session.says(ClientFrame::Auth(v1::Auth { token: "t".to_owned() }));
    assert_eq!(outcome.asked, [Effect::VerifyToken("t".to_owned())]);
    // One is verified at a time; of those that come meanwhile, the newest.
    session.says(ClientFrame::Auth(v1::Auth { token: "u".to_owned() })).is_nothing();
    session.says(ClientFrame::Auth(v1::Auth { token: "v".to_owned() })).is_nothing();
    let outcome = session.input(Input::TokenVerified(Ok(fresh(&["read"], &["demo"], 120_000))));
    assert_eq!(outcome.asked, [Effect::VerifyToken("v".to_owned())]);
    let authenticated = v1::Authenticated { token_expires_in_ms: 70_000 };
    assert_eq!(outcome.frames, [ServerFrame::Authenticated(authenticated)]);
    session.waits(Duration::from_secs(69)).is_nothing();
    session.waits(Duration::from_secs(1)).is_closed_with(Code::TokenExpired);
}

// enforces: I-15
#[test]
fn what_comes_after_the_end_of_the_token_is_not_done() {
    let mut session = Session::with(EdgeConfig::default(), fresh(&["read", "write"], &["demo"], 5_000), None);
    session.greet();
    session.open_demo(1);
    session.input(Input::Queued { bytes: 0 }).is_nothing();
    session.now = Duration::from_secs(5);
    session.says(push(1, 0, 1)).is_closed_with(Code::TokenExpired);
}

// enforces: I-15
#[test]
fn a_fresh_token_of_another_user_ends_the_session() {
    let mut session = Session::open();
    session.says(ClientFrame::Auth(v1::Auth { token: "t".to_owned() }));
    let eve = Grant { subject: "eve".to_owned(), ..grant(&["read", "write"], &["*"]) };
    session.input(Input::TokenVerified(Ok(eve))).is_closed_with(Code::Violation);
}

#[test]
fn a_fresh_token_that_does_not_verify_ends_the_session_with_its_reason() {
    for code in [Code::Unauthenticated, Code::TokenExpired] {
        let mut session = Session::open();
        session.says(ClientFrame::Auth(v1::Auth { token: "t".to_owned() }));
        session.input(Input::TokenVerified(Err(code.into()))).is_closed_with(code);
    }
    let mut session = Session::open();
    session.says(ClientFrame::Auth(v1::Auth { token: "t".to_owned() }));
    session
        .input(Input::TokenVerified(Ok(fresh(&["read"], &["demo"], 0))))
        .is_closed_with(Code::TokenExpired);
}

// enforces: I-15
#[test]
fn a_token_that_lost_the_write_scope_has_its_pushes_rejected() {
    let mut session = Session::open();
    session.says(push(1, 0, 1));
    session.says(push(1, 1, 1));
    session.says(ClientFrame::Auth(v1::Auth { token: "t".to_owned() }));
    let outcome = session.input(Input::TokenVerified(Ok(grant(&["read"], &["demo"]))));
    let [ServerFrame::Authenticated(_), ServerFrame::Reject(reject)] = &outcome.frames[..] else {
        panic!("{outcome:?}")
    };
    assert_eq!((reject.counter, reject.code), (1, Code::Forbidden.number()), "what waited is refused");
    session.says(push(1, 1, 1)).is_rejected_with(Code::Forbidden, 1);
    session.is_alive();
}

// enforces: I-15
#[test]
fn a_token_that_lost_a_workspace_loses_its_channels_and_hears_no_more_of_it() {
    let mut session = Session::greeted();
    let channel = session.open_demo(1);
    session.says(ClientFrame::Auth(v1::Auth { token: "t".to_owned() }));
    let outcome = session.input(Input::TokenVerified(Ok(grant(&["read", "write"], &["other"]))));
    let [ServerFrame::Authenticated(_), ServerFrame::Evict(evict)] = &outcome.frames[..] else {
        panic!("{outcome:?}")
    };
    assert_eq!(evict.code, Code::Forbidden.number());
    assert!(matches!(outcome.asked[..], [Effect::Leave { .. }]));
    session.input(Input::Entries { channel, run: run(1, 1, 10) }).is_nothing();
    session.input(Input::Presence { channel, full: true, peers: vec![], left: vec![] }).is_nothing();
}

// ---- Living and leaving.

#[test]
fn a_silent_client_is_pinged_and_then_closed() {
    let mut session = Session::open();
    assert_eq!(session.waits(Duration::from_secs(20)).asked, [Effect::Ping]);
    session.now += Duration::from_secs(1);
    session.input(Input::Heard).is_nothing();
    assert_eq!(session.waits(Duration::from_secs(20)).asked, [Effect::Ping]);
    assert_eq!(session.waits(Duration::from_secs(20)).asked, [Effect::Ping]);
    session.waits(Duration::from_millis(9_999)).is_nothing();
    session.waits(Duration::from_millis(1)).is_closed_with(Code::Idle);
}

#[test]
fn a_leaving_server_spreads_its_clients_over_its_time() {
    let mut delays = Vec::new();
    for seed in 0..200 {
        let grant = grant(&["read"], &["demo"]);
        let edge =
            Edge::new(EdgeConfig::default(), "s".to_owned(), grant, None, seed, Duration::ZERO, WALL_MS);
        let mut session = Session { edge, now: Duration::ZERO };
        session.greet();
        let outcome = session.input(Input::Drain { within: Duration::from_secs(8) });
        let [ServerFrame::Goaway(goaway)] = &outcome.frames[..] else { panic!("{outcome:?}") };
        delays.push(goaway.reconnect_after_ms);
        session.input(Input::Drain { within: Duration::from_secs(1) }).is_nothing();
        session.is_alive();
        session.waits(Duration::from_secs(8)).is_closed_with(Code::ShuttingDown);
    }
    assert!(delays.iter().all(|&delay| delay <= 6_000));
    assert!(delays.iter().any(|&delay| delay < 300) && delays.iter().any(|&delay| delay > 5_700));
}

proptest! {
    // enforces: I-12
    #[test]
    fn any_bytes_at_any_time_are_survived(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20)) {
        let mut session = Session::open();
        for frame in frames {
            let outcome = session.sends(frame);
            let violated = matches!(outcome.closed, None | Some(Code::Violation | Code::VersionUnsupported));
            prop_assert!(violated, "{:?}", outcome);
        }
    }

    // enforces: I-12
    #[test]
    fn any_change_of_a_good_frame_is_survived(at in 0usize..60, byte in any::<u8>(), cut in 0usize..60) {
        let position = v1::Position { incarnation: 3, seq: 4, chain: vec![5; 16].into() };
        let open = v1::Open { channel: 2, document: "other".to_owned(), replica: 9, have: Some(position) };
        let mut bytes = encode_client(ClientFrame::Open(open)).to_vec();
        let len = bytes.len();
        bytes[at % len] = byte;
        bytes.truncate(len - cut % len);
        let mut session = Session::open();
        session.sends(bytes);
        session.waits(Duration::from_secs(1));
    }
}
