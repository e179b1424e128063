//! What a client does with what a server says, and what it never does with a change.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use manyhands_crdt::ReplicaId;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Code, Incarnation, Position, Seq, v1};
use manyhands_session::client::{
    Client, ClientConfig, ConnectionState, Effect, Event, HandshakeRefusal, Input, OutgoingChange,
};
use manyhands_session::{Limits, decode_client, encode_server, position_to_wire};
use proptest::prelude::*;

/// A client with its effects sorted.
struct Device {
    client: Client,
    now: Duration,
}

#[derive(Debug, Default)]
struct Outcome {
    frames: Vec<ClientFrame>,
    events: Vec<Event>,
    connects: usize,
    closed: Option<u16>,
}

impl Outcome {
    fn pushes(&self) -> Vec<(u64, u32)> {
        let push = |frame: &ClientFrame| match frame {
            ClientFrame::Push(push) => Some((push.first_counter, push.count)),
            _ => None,
        };
        self.frames.iter().filter_map(push).collect()
    }

    fn state(&self) -> &ConnectionState {
        let newest = self.events.iter().rfind(|event| matches!(event, Event::Connection(_)));
        let Some(Event::Connection(state)) = newest else { panic!("no change of state: {self:?}") };
        state
    }

    fn refused(&self) -> (u32, Vec<u64>) {
        let refused = |event: &Event| match event {
            Event::Refused { code, changes, .. } => {
                Some((*code, changes.iter().map(|c| c.counter).collect()))
            }
            _ => None,
        };
        self.events.iter().find_map(refused).expect("something refused")
    }
}

impl Device {
    fn new() -> Device {
        Device { client: Client::new(ClientConfig::default(), 11), now: Duration::ZERO }
    }

    /// With `demo` on the application's channel 5, at seq 0 of history 7; its number on the wire is 1.
    fn online() -> Device {
        let mut device = Device::new();
        device.input(open(None));
        device.input(Input::Start);
        device.input(Input::SocketOpened);
        device.hears(welcome());
        device.hears(opened(v1::Recovery::Tail, position(7, 0), 0));
        device
    }

    fn input(&mut self, input: Input) -> Outcome {
        let mut effects = Vec::new();
        self.client.handle(self.now, input, &mut effects);
        let mut outcome = Outcome::default();
        for effect in effects {
            match effect {
                Effect::Connect => outcome.connects += 1,
                Effect::Send(bytes) => outcome.frames.push(decode_client(bytes, usize::MAX).unwrap()),
                Effect::CloseSocket { code, .. } => outcome.closed = Some(code),
                Effect::Event(event) => outcome.events.push(event),
            }
        }
        outcome
    }

    fn hears(&mut self, frame: ServerFrame) -> Outcome {
        self.input(Input::Frame(encode_server(frame)))
    }

    fn waits(&mut self, time: Duration) -> Outcome {
        self.now += time;
        self.input(Input::Tick)
    }

    /// Until the next deadline.
    fn waits_until_due(&mut self) -> Outcome {
        self.now = self.client.deadline().unwrap().max(self.now);
        self.input(Input::Tick)
    }

    fn edits(&mut self, counter: u64) -> Outcome {
        self.input(Input::Submit { channel: 5, change: change(counter) })
    }

    fn outbox(&self) -> Vec<u64> {
        self.client.outbox(5).map(|change| change.counter).collect()
    }
}

fn open(have: Option<Position>) -> Input {
    Input::Open {
        channel: 5,
        document: "demo".parse().unwrap(),
        replica: Some(ReplicaId(9)),
        have,
        strategy: v1::Strategy::Unspecified,
        lineage: None,
    }
}

fn change(counter: u64) -> OutgoingChange {
    let body = Bytes::from(format!("body {counter}"));
    OutgoingChange { counter, next_counter: counter + 1, base: 0, body }
}

fn position(incarnation: u64, seq: u64) -> Position {
    let chain = if seq == 0 { [0; 16] } else { [seq as u8; 16] };
    Position { incarnation: Incarnation(incarnation), seq: Seq(seq), chain }
}

fn welcome() -> ServerFrame {
    welcome_with(Limits::default())
}

fn welcome_with(limits: Limits) -> ServerFrame {
    ServerFrame::Welcome(v1::Welcome {
        version: 1,
        session: "s1".to_owned(),
        limits: Some(limits.to_wire()),
        server_time_ms: 5,
        token_expires_in_ms: 3_600_000,
        ping_interval_ms: 20_000,
        features: vec![],
    })
}

fn opened_on(channel: u32, recovery: v1::Recovery, position: Position, next_counter: u64) -> ServerFrame {
    let state_bytes = if recovery == v1::Recovery::State { 6 } else { 0 };
    ServerFrame::Opened(v1::Opened {
        channel,
        recovery: recovery.into(),
        position: Some(position_to_wire(&position)),
        next_counter,
        can_write: true,
        state_bytes,
        ..v1::Opened::default()
    })
}

fn opened(recovery: v1::Recovery, position: Position, next_counter: u64) -> ServerFrame {
    opened_on(1, recovery, position, next_counter)
}

fn delta(first_seq: u64, count: u32) -> ServerFrame {
    let last = first_seq + u64::from(count) - 1;
    let (entries, chain) = (Bytes::from_static(b"entries"), vec![last as u8; 16].into());
    ServerFrame::Delta(v1::Delta { channel: 1, first_seq, count, entries, chain })
}

fn ack(next_counter: u64) -> ServerFrame {
    ServerFrame::Ack(v1::Ack { channel: 1, next_counter, seq: next_counter })
}

fn reject(counter: u64, code: Code) -> v1::Reject {
    v1::Reject { channel: 1, counter, code: code.number(), ..v1::Reject::default() }
}

fn evict(code: Code) -> ServerFrame {
    ServerFrame::Evict(v1::Evict { channel: 1, code: code.number(), ..v1::Evict::default() })
}

// ---- The connection.

#[test]
fn documents_are_opened_in_the_same_breath_as_hello() {
    let mut device = Device::new();
    device.input(open(Some(position(7, 4))));
    assert_eq!(device.input(Input::Start).connects, 1);
    let outcome = device.input(Input::SocketOpened);
    let [ClientFrame::Hello(hello), ClientFrame::Open(open)] = &outcome.frames[..] else {
        panic!("{outcome:?}")
    };
    assert_eq!((hello.version_min, hello.version_max), (1, 1));
    assert_eq!((open.document.as_str(), open.replica), ("demo", 9));
    assert_eq!(open.have, Some(position_to_wire(&position(7, 4))));
}

#[test]
fn a_lost_connection_is_made_again_with_full_jitter_up_to_half_a_minute() {
    let mut longest = Duration::ZERO;
    for seed in 0..100 {
        let mut device = Device { client: Client::new(ClientConfig::default(), seed), now: Duration::ZERO };
        device.input(Input::Start);
        for attempt in 0..12 {
            let outcome = device.input(Input::SocketFailed { refusal: None });
            let ConnectionState::Offline { retry_at, .. } = *outcome.state() else { panic!("{outcome:?}") };
            let wait = retry_at - device.now;
            assert!(wait <= Duration::from_millis(250 << attempt).min(Duration::from_secs(30)));
            longest = longest.max(wait);
            assert_eq!(device.waits_until_due().connects, 1);
        }
    }
    assert!(longest > Duration::from_secs(28));
}

#[test]
fn a_close_code_says_whether_to_come_back() {
    for code in [None, Some(1000), Some(1001), Some(1006), Some(1011), Some(4000), Some(4001), Some(4499)] {
        let outcome = Device::online().input(Input::SocketClosed { code, reason: String::new() });
        assert!(matches!(outcome.state(), ConnectionState::Offline { .. }), "{code:?}");
    }
    for code in [1002, 1008, 4500, 4501, 4504, 4999] {
        let mut device = Device::online();
        let outcome = device.input(Input::SocketClosed { code: Some(code), reason: String::new() });
        assert!(matches!(outcome.state(), ConnectionState::Stopped { .. }), "{code}");
        assert_eq!(device.client.deadline(), None, "no loop");
        assert_eq!(device.input(Input::Start).connects, 1, "when something has changed");
    }
}

#[test]
fn an_expired_token_waits_for_a_fresh_one_instead_of_trying_for_ever() {
    for code in [4502, 4503] {
        let mut device = Device::online();
        let outcome =
            device.input(Input::SocketClosed { code: Some(code), reason: "token_expired: ".to_owned() });
        assert!(matches!(outcome.state(), ConnectionState::TokenNeeded { .. }));
        assert_eq!(device.client.deadline(), None);
        assert!(matches!(
            device.input(Input::Token("t".to_owned())).state(),
            ConnectionState::Offline { .. }
        ));
        assert_eq!(device.waits_until_due().connects, 1);
    }
}

#[test]
fn a_refused_handshake_is_understood() {
    let check = |status, code, expected: &str| {
        let mut device = Device::new();
        device.input(Input::Start);
        let retry_after = Some(Duration::from_secs(7));
        let refusal = Some(HandshakeRefusal { status, code, message: String::new(), retry_after });
        let outcome = device.input(Input::SocketFailed { refusal });
        let got = format!("{:?}", outcome.state());
        assert!(got.starts_with(expected), "{status}: {got}");
        if let ConnectionState::Offline { retry_at, .. } = outcome.state() {
            assert!(*retry_at >= Duration::from_secs(7), "not before Retry-After");
        }
    };
    check(401, Some(Code::Unauthenticated), "TokenNeeded");
    check(401, None, "TokenNeeded");
    check(403, Some(Code::Forbidden), "Stopped");
    check(404, None, "Stopped");
    check(503, Some(Code::Overloaded), "Offline");
    check(429, None, "Offline");
    check(502, None, "Offline");
    check(500, Some(Code::Internal), "Offline");
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let mut device = Device::new();
    device.input(Input::Start);
    assert_eq!(device.waits(Duration::from_secs(10)).closed, Some(4002));

    let mut device = Device::online();
    let outcome = device.waits(Duration::from_secs(20));
    assert!(matches!(outcome.frames[..], [ClientFrame::Ping(_)]), "{outcome:?}");
    device.waits(Duration::from_secs(20));
    let outcome = device.waits(Duration::from_secs(10));
    assert_eq!(outcome.closed, Some(4002));
    assert!(matches!(outcome.state(), ConnectionState::Offline { .. }));
}

#[test]
fn a_server_that_leaves_is_left_at_the_moment_that_it_gave() {
    let mut device = Device::online();
    let goaway = v1::Goaway { reconnect_after_ms: 3_000, message: String::new() };
    let outcome = device.hears(ServerFrame::Goaway(goaway));
    assert_eq!(outcome.events, [Event::GoingAway { within: Duration::from_secs(3) }]);
    assert_eq!(device.edits(0).pushes(), [(0, 1)], "until then all goes on");
    let outcome = device.waits(Duration::from_secs(3));
    assert_eq!((outcome.closed, outcome.connects), (Some(1000), 1), "at once, without backoff");
    let outcome = device.input(Input::SocketOpened);
    assert!(matches!(outcome.frames[..], [ClientFrame::Hello(_), ClientFrame::Open(_)]));
}

#[test]
fn a_token_that_ends_soon_is_replaced_on_the_open_socket() {
    let mut device = Device::new();
    device.input(Input::Start);
    device.input(Input::SocketOpened);
    let ServerFrame::Welcome(mut short) = welcome() else { panic!() };
    short.token_expires_in_ms = 30_000;
    device.hears(ServerFrame::Welcome(short));
    let outcome = device.waits(Duration::from_secs(15));
    assert_eq!(outcome.events, [Event::TokenExpiring { within: Duration::from_secs(15) }]);
    let outcome = device.input(Input::Token("t".to_owned()));
    assert_eq!(outcome.frames, [ClientFrame::Auth(v1::Auth { token: "t".to_owned() })]);
    device.hears(ServerFrame::Authenticated(v1::Authenticated { token_expires_in_ms: 600_000 }));
    let outcome = device.waits(Duration::from_secs(1));
    assert!(outcome.events.is_empty());
}

#[test]
fn a_server_that_breaks_the_protocol_is_left() {
    let broken = [
        welcome(),
        opened(v1::Recovery::Tail, position(7, 0), 0),
        ServerFrame::State(v1::StateChunk { channel: 1, data: Bytes::new(), last: true }),
        ServerFrame::Delta(v1::Delta { channel: 1, first_seq: 0, count: 1, ..v1::Delta::default() }),
    ];
    for frame in broken {
        let mut device = Device::online();
        device.edits(0);
        let outcome = device.hears(frame);
        assert_eq!(outcome.closed, Some(4500));
        assert!(matches!(outcome.state(), ConnectionState::Offline { .. }));
        assert_eq!(device.outbox(), [0]);
    }
    let mut device = Device::online();
    assert_eq!(device.input(Input::Frame(Bytes::new())).closed, Some(4500));
}

// ---- What a document becomes.

#[test]
fn entries_come_once_and_in_order_and_a_gap_is_fetched() {
    let mut device = Device::online();
    let events = |outcome: &Outcome| match &outcome.events[..] {
        [Event::Entries { first_seq, count, known, position, .. }] => {
            Some((first_seq.0, *count, known.0, position.seq.0))
        }
        [] => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(events(&device.hears(delta(1, 2))), Some((1, 2, 0, 2)));
    assert_eq!(events(&device.hears(delta(1, 2))), None);
    assert_eq!(events(&device.hears(delta(2, 3))), Some((2, 3, 2, 4)));
    let outcome = device.hears(delta(6, 1));
    assert_eq!(outcome.frames, [ClientFrame::Fetch(v1::Fetch { channel: 1, after_seq: 4 })]);
    assert!(device.hears(delta(7, 1)).frames.is_empty(), "asked once");
    assert_eq!(events(&device.hears(delta(5, 3))), Some((5, 3, 4, 7)));
    assert_eq!(device.client.position(5), Some(position(7, 7)));
}

#[test]
fn a_tip_beyond_what_came_is_fetched_after_a_while() {
    let mut device = Device::online();
    let tip = v1::Position { incarnation: 7, seq: 3, chain: Bytes::new() };
    let outcome = device.hears(ServerFrame::Tip(v1::Tip { channel: 1, position: Some(tip) }));
    assert!(outcome.frames.is_empty());
    let outcome = device.waits(Duration::from_secs(5));
    assert_eq!(outcome.frames, [ClientFrame::Fetch(v1::Fetch { channel: 1, after_seq: 0 })]);
}

#[test]
fn a_state_is_put_together_and_is_the_new_position() {
    let mut device = Device::online();
    device.input(Input::SocketClosed { code: None, reason: String::new() });
    device.waits_until_due();
    device.input(Input::SocketOpened);
    device.hears(welcome());
    device.hears(opened(v1::Recovery::State, position(7, 8), 0));
    let chunk = |data: &'static [u8], last| {
        ServerFrame::State(v1::StateChunk { channel: 1, data: Bytes::from_static(data), last })
    };
    assert!(device.hears(chunk(b"abc", false)).events.is_empty());
    let outcome = device.hears(chunk(b"def", true));
    let state = Event::State { channel: 5, position: position(7, 8), bytes: Bytes::from_static(b"abcdef") };
    assert_eq!(outcome.events, [state]);
    assert_eq!(device.client.position(5), Some(position(7, 8)));
}

#[test]
fn a_state_that_is_longer_or_shorter_than_announced_is_not_taken() {
    for (data, last) in [("abcdefg", false), ("abc", true)] {
        let mut device = Device::new();
        device.input(open(None));
        device.input(Input::Start);
        device.input(Input::SocketOpened);
        device.hears(opened(v1::Recovery::State, position(7, 8), 0));
        let chunk = v1::StateChunk { channel: 1, data: Bytes::from_static(data.as_bytes()), last };
        assert_eq!(device.hears(ServerFrame::State(chunk)).closed, Some(4500));
        assert_eq!(device.client.position(5), None);
    }
}

#[test]
fn the_same_seq_with_another_chain_begins_again_without_a_position() {
    let mut device = Device::online();
    device.hears(delta(1, 2));
    let ServerFrame::Delta(mut forked) = delta(1, 2) else { panic!() };
    forked.chain = vec![99; 16].into();
    let outcome = device.hears(ServerFrame::Delta(forked));
    assert_eq!(outcome.frames, [ClientFrame::Leave(v1::Leave { channel: 1 })]);
    let outcome = device.waits_until_due();
    let [ClientFrame::Open(open)] = &outcome.frames[..] else { panic!("{outcome:?}") };
    assert_eq!((open.channel, &open.have), (2, &None));
    assert!(device.hears(delta(3, 1)).events.is_empty(), "frames of the earlier opening are for nobody");
}

// ---- What becomes of changes.

// enforces: I-14
#[test]
fn a_change_stays_until_it_is_acknowledged() {
    let mut device = Device::online();
    device.edits(0);
    device.edits(1);
    assert_eq!(device.outbox(), [0, 1]);
    let outcome = device.hears(ack(1));
    assert_eq!(outcome.events, [Event::Acked { channel: 5, next_counter: 1, seq: Seq(1) }]);
    assert_eq!(device.outbox(), [1]);
    assert!(device.hears(ack(1)).events.is_empty());
    device.input(Input::Stop);
    assert_eq!(device.outbox(), [1]);
}

#[test]
fn what_is_made_while_pushes_are_on_their_way_goes_together() {
    let mut device = Device::online();
    let pushes: Vec<_> = (0..10).flat_map(|counter| device.edits(counter).pushes()).collect();
    assert_eq!(pushes, [(0, 1), (1, 1), (2, 1), (3, 1)]);
    assert_eq!(device.hears(ack(1)).pushes(), [(4, 6)]);
}

#[test]
fn the_limits_of_the_server_are_kept() {
    let mut device = Device::new();
    device.input(open(None));
    (0..100).for_each(|counter| assert!(device.edits(counter).frames.is_empty(), "nothing before Opened"));
    device.input(Input::Start);
    device.input(Input::SocketOpened);
    let limits = Limits { push_changes_max: 8, in_flight_changes_max: 20, ..Limits::default() };
    device.hears(welcome_with(limits));
    let outcome = device.hears(opened(v1::Recovery::Tail, position(7, 0), 0));
    assert_eq!(outcome.pushes(), [(0, 8), (8, 8), (16, 4)]);
    assert_eq!(device.hears(ack(8)).pushes(), [(20, 8)]);
}

#[test]
fn after_a_new_opening_everything_that_is_not_acknowledged_goes_again_with_the_same_bytes() {
    let mut device = Device::online();
    let first = device.edits(0);
    device.edits(1);
    device.input(Input::SocketClosed { code: None, reason: String::new() });
    device.waits_until_due();
    device.input(Input::SocketOpened);
    device.hears(welcome());
    // The log has the first, but that must be compared and not believed.
    let outcome = device.hears(opened(v1::Recovery::Tail, position(7, 1), 1));
    assert_eq!(outcome.pushes(), [(0, 2)]);
    let bytes = |frame: &ClientFrame| match frame {
        ClientFrame::Push(push) => push.changes.clone(),
        other => panic!("{other:?}"),
    };
    let [again] = &outcome.frames[..] else { panic!("{outcome:?}") };
    assert!(bytes(again).starts_with(&bytes(&first.frames[0])));
}

#[test]
fn without_an_ack_for_ten_seconds_changes_go_again() {
    let mut device = Device::online();
    device.edits(0);
    assert!(device.waits(Duration::from_millis(9_999)).pushes().is_empty());
    assert_eq!(device.waits(Duration::from_millis(1)).pushes(), [(0, 1)]);
}

#[test]
fn a_reject_for_now_sends_again_from_there_and_not_too_early() {
    let mut device = Device::online();
    (0..3).for_each(|counter| drop(device.edits(counter)));
    let overloaded = v1::Reject { retry_after_ms: 700, ..reject(1, Code::Overloaded) };
    assert!(device.hears(ServerFrame::Reject(overloaded)).pushes().is_empty());
    assert!(device.waits(Duration::from_millis(700)).pushes().is_empty(), "jitter comes on top");
    assert_eq!(device.waits(Duration::from_millis(250)).pushes(), [(1, 2)]);
    assert_eq!(device.outbox(), [0, 1, 2]);
    // A fault of the server's is no judgement.
    device.hears(ServerFrame::Reject(reject(0, Code::Internal)));
    assert_eq!(device.outbox(), [0, 1, 2]);
}

#[test]
fn a_missing_predecessor_is_sent() {
    let mut device = Device::online();
    (0..4).for_each(|counter| drop(device.edits(counter)));
    device.hears(ack(1));
    let missing = v1::Reject { next_counter: 2, ..reject(3, Code::MissingPredecessor) };
    device.hears(ServerFrame::Reject(missing));
    assert_eq!(device.waits_until_due().pushes(), [(2, 2)]);
}

// enforces: I-14
#[test]
fn a_refused_change_is_handed_back_with_all_after_it_and_those_before_stay() {
    for code in [Code::Forbidden, Code::Fork, Code::ReplicaTaken, Code::TooLarge, Code::MissingReference] {
        let mut device = Device::online();
        (0..8).for_each(|counter| drop(device.edits(counter)));
        let outcome = device.hears(ServerFrame::Reject(reject(2, code)));
        assert_eq!(outcome.refused(), (code.number(), vec![2, 3, 4, 5, 6, 7]));
        assert_eq!(device.outbox(), [0, 1]);
        assert_eq!(device.edits(8).refused(), (code.number(), vec![8]), "nothing goes into the hole");
        device.hears(ack(2));
        assert!(device.outbox().is_empty());
    }
    // A code that is newer than this build, by its range.
    let mut device = Device::online();
    device.edits(0);
    let newer = v1::Reject { channel: 1, counter: 0, code: 399, ..v1::Reject::default() };
    assert_eq!(device.hears(ServerFrame::Reject(newer)).refused(), (399, vec![0]));
}

// enforces: I-14
#[test]
fn changes_of_a_history_that_was_replaced_are_handed_back() {
    let mut device = Device::online();
    device.hears(delta(1, 3));
    device.edits(0);
    device.hears(evict(Code::HistoryReset));
    assert_eq!(device.outbox(), [0]);
    let outcome = device.waits_until_due();
    let [ClientFrame::Open(open)] = &outcome.frames[..] else { panic!("{outcome:?}") };
    assert_eq!((open.channel, &open.have), (2, &None));
    let outcome = device.hears(opened_on(2, v1::Recovery::State, position(8, 1), 0));
    assert_eq!(outcome.refused(), (Code::HistoryReset.number(), vec![0]));
}

#[test]
fn changes_that_depend_on_nothing_go_into_whatever_history_there_is() {
    let mut device = Device::online();
    device.edits(0);
    device.hears(evict(Code::HistoryReset));
    device.waits_until_due();
    let outcome = device.hears(opened_on(2, v1::Recovery::Tail, position(8, 0), 0));
    assert_eq!(outcome.pushes(), [(0, 1)]);
}

#[test]
fn a_log_that_forgot_what_it_had_acknowledged_stops_the_replica() {
    let mut device = Device::online();
    (0..3).for_each(|counter| drop(device.edits(counter)));
    device.hears(ack(2));
    device.hears(evict(Code::Unavailable));
    device.waits_until_due();
    let outcome = device.hears(opened_on(2, v1::Recovery::Tail, position(7, 0), 1));
    assert_eq!(outcome.refused(), (Code::MissingPredecessor.number(), vec![2]));
}

#[test]
fn an_evicted_document_keeps_its_changes_for_the_next_opening() {
    let mut device = Device::online();
    device.edits(0);
    let outcome = device.hears(evict(Code::Forbidden));
    assert!(matches!(&outcome.events[..], [Event::Evicted { channel: 5, code: 302, .. }]));
    assert_eq!(device.outbox(), [0]);
    assert!(device.waits(Duration::from_secs(19)).frames.is_empty(), "no loop");
    let outcome = device.input(open(None));
    assert!(matches!(outcome.frames[..], [ClientFrame::Open(_)]), "{outcome:?}");
    assert_eq!(device.hears(opened_on(2, v1::Recovery::Tail, position(7, 0), 0)).pushes(), [(0, 1)]);
}

// enforces: I-14
#[test]
fn what_is_not_acknowledged_when_a_document_is_left_is_handed_back() {
    let mut device = Device::online();
    device.edits(0);
    let outcome = device.input(Input::Leave { channel: 5 });
    assert_eq!(outcome.frames, [ClientFrame::Leave(v1::Leave { channel: 1 })]);
    assert_eq!(outcome.refused(), (Code::NotOpen.number(), vec![0]));
    assert_eq!(device.edits(1).refused(), (Code::NotOpen.number(), vec![1]));
}

// enforces: I-10
#[test]
fn a_full_outbox_hands_the_next_change_back() {
    let config = ClientConfig { outbox_changes_max: 3, ..ClientConfig::default() };
    let mut device = Device { client: Client::new(config, 1), now: Duration::ZERO };
    device.input(open(None));
    (0..3).for_each(|counter| assert!(device.edits(counter).events.is_empty()));
    assert_eq!(device.edits(3).refused(), (Code::LimitReached.number(), vec![3]));
    assert_eq!(device.edits(4).refused(), (Code::LimitReached.number(), vec![4]));
    assert_eq!(device.outbox(), [0, 1, 2]);
}

#[test]
fn a_change_that_leaves_a_hole_is_handed_back() {
    let mut device = Device::online();
    device.edits(0);
    assert_eq!(device.edits(2).refused(), (Code::MissingPredecessor.number(), vec![2]));
    assert_eq!(device.outbox(), [0]);
}

// ---- Presence.

#[test]
fn the_newest_presence_goes_out_and_again_after_a_reconnect() {
    let mut device = Device::online();
    let set = |data: &'static [u8]| Input::SetPresence {
        channel: 5,
        data: Bytes::from_static(data),
        cursors: vec![],
    };
    let shown = |outcome: &Outcome| match &outcome.frames[..] {
        [] => None,
        [ClientFrame::Presence(presence)] => Some(presence.data.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(shown(&device.input(set(b"1"))), Some(Bytes::from_static(b"1")));
    assert_eq!(shown(&device.input(set(b"2"))), None);
    assert_eq!(shown(&device.input(set(b"3"))), None);
    assert_eq!(shown(&device.waits(Duration::from_millis(50))), Some(Bytes::from_static(b"3")));
    device.input(Input::SocketClosed { code: None, reason: String::new() });
    device.waits_until_due();
    device.input(Input::SocketOpened);
    device.hears(welcome());
    let outcome = device.hears(opened(v1::Recovery::Tail, position(7, 0), 0));
    assert_eq!(shown(&outcome), Some(Bytes::from_static(b"3")));
    let large = Input::SetPresence { channel: 5, data: vec![b'x'; 5000].into(), cursors: vec![] };
    assert!(matches!(device.input(large).events[..], [Event::PresenceTooLarge { .. }]));
}

proptest! {
    // enforces: I-12
    #[test]
    fn any_bytes_from_a_server_are_survived(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..10)) {
        let mut device = Device::online();
        device.edits(0);
        for frame in frames {
            device.input(Input::Frame(frame.into()));
            device.waits(Duration::from_millis(10));
        }
        prop_assert_eq!(device.outbox(), [0]);
    }

    // enforces: I-12
    #[test]
    fn any_numbers_in_good_frames_are_survived(
        kind in 0u8..8,
        a in prop_oneof![0u64..20, any::<u64>()],
        b in prop_oneof![0u64..20, any::<u64>()],
        code in prop_oneof![100u32..400, any::<u32>()],
        bytes in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut device = Device::online();
        device.hears(delta(1, 3));
        (0..5).for_each(|counter| drop(device.edits(counter)));
        let chain: Bytes = bytes.into();
        let position = v1::Position { incarnation: b, seq: a, chain: chain.clone() };
        let frame = match kind {
            0 => ServerFrame::Delta(v1::Delta { channel: 1, first_seq: a, count: code, entries: chain.clone(), chain }),
            1 => ServerFrame::Ack(v1::Ack { channel: 1, next_counter: a, seq: b }),
            2 => ServerFrame::Reject(v1::Reject { channel: 1, counter: a, code, next_counter: b, retry_after_ms: code, ..v1::Reject::default() }),
            3 => ServerFrame::Tip(v1::Tip { channel: 1, position: Some(position) }),
            4 => ServerFrame::Evict(v1::Evict { channel: 1, code, retry_after_ms: u32::MAX, ..v1::Evict::default() }),
            5 => ServerFrame::Goaway(v1::Goaway { reconnect_after_ms: code, message: String::new() }),
            6 => ServerFrame::Authenticated(v1::Authenticated { token_expires_in_ms: a }),
            _ => ServerFrame::Opened(v1::Opened { channel: 1, recovery: 2, position: Some(position), next_counter: b, can_write: true, state_bytes: a, ..v1::Opened::default() }),
        };
        let outcome = device.hears(frame);
        let acked = outcome.events.iter().find_map(|event| match event {
            Event::Acked { next_counter, .. } => Some(*next_counter),
            _ => None,
        });
        let handed_back: Vec<u64> = outcome.events.iter().flat_map(|event| match event {
            Event::Refused { changes, .. } => changes.iter().map(|change| change.counter).collect(),
            _ => vec![],
        }).collect();
        // Every change is acknowledged, kept or handed back.
        let kept = device.outbox().into_iter().chain(handed_back);
        let all: Vec<u64> = (0..acked.unwrap_or(0)).chain(kept).collect();
        prop_assert_eq!(all, [0, 1, 2, 3, 4]);
        device.waits(Duration::from_secs(100));
    }
}
