//! What a JSON session does with good and bad input, and when it ends.

use std::time::Duration;

use bytes::Bytes;
use manyhands_crdt::Strategy;
use manyhands_proto::Code;
use manyhands_session::edge::{Edge, EdgeConfig, Effect, Input, Submitted};
use manyhands_session::json::{Choice, Mirror, MirrorLimits};
use manyhands_session::{Grant, Refusal};
use serde_json::{Value, json};

use crate::View;
use crate::owner::Owner;
use crate::world::{CHANNEL, WALL_MS, grant};

struct Session {
    edge: Edge,
    owner: Owner,
    mirror: Mirror,
    now: Duration,
}

#[derive(Debug, Default)]
struct Outcome {
    frames: Vec<Value>,
    asked: Vec<Effect>,
    closed: Option<(Code, u16)>,
}

impl Session {
    fn with(config: EdgeConfig, grant: Grant, extended: bool) -> Session {
        let owner = Owner::new(Strategy::Crdt);
        let mirror = Mirror::new(owner.opened(), MirrorLimits::default()).unwrap();
        let choice = Choice { extended, ..Choice::default() };
        let document = "demo".parse().unwrap();
        let edge = Edge::json(config, "s1".to_owned(), grant, document, choice, 7, Duration::ZERO, WALL_MS);
        Session { edge, owner, mirror, now: Duration::ZERO }
    }

    fn open(extended: bool) -> Session {
        let mut session = Session::with(EdgeConfig::default(), grant(&["read", "write"]), extended);
        session.init();
        session
    }

    fn init(&mut self) {
        let asked = self.input(Input::Tick).asked;
        assert!(matches!(asked[..], [Effect::Mirror { lost: None, .. }]), "{asked:?}");
        let result = self.mirror.state();
        let outcome = self.input(Input::Mirrored { channel: CHANNEL, result });
        assert_eq!(outcome.frames[0]["type"], "init");
    }

    fn input(&mut self, input: Input) -> Outcome {
        let mut effects = Vec::new();
        self.edge.handle(self.now, input, &mut effects);
        let mut outcome = Outcome::default();
        for effect in effects {
            assert_eq!(outcome.closed, None, "something after the close: {effect:?}");
            match effect {
                Effect::SendText(frame) => outcome.frames.push(serde_json::from_slice(&frame).unwrap()),
                Effect::Send(frame) => panic!("a binary frame: {frame:?}"),
                Effect::Close { code, reason } => {
                    assert!(reason.starts_with(code.slug()));
                    outcome.closed = Some((code, self.edge.close_code(code)));
                }
                other => outcome.asked.push(other),
            }
        }
        outcome
    }

    fn says(&mut self, message: &Value) -> Outcome {
        self.input(Input::Text(message.to_string().into()))
    }

    fn put(&mut self, value: u64) -> Outcome {
        self.says(&json!({ "type": "op", "payload": { "key": "k", "value": value } }))
    }

    /// The owner decides on what it is asked, and its answer and what it made of it come, in this order.
    fn submit(&mut self, asked: &[Effect]) -> Outcome {
        let [Effect::Submit { replica, first_counter, count, changes, .. }] = asked else {
            panic!("{asked:?}")
        };
        let submitted = self.owner.submit(*replica, *first_counter, *count, changes);
        self.input(Input::Submitted { channel: CHANNEL, result: Ok(submitted) })
    }

    fn bus(&mut self) -> Outcome {
        let after = self.mirror.position().seq.0;
        let ops = self.mirror.apply(&self.owner.run(after, self.owner.seq())).unwrap().unwrap();
        self.input(Input::Ops { channel: CHANNEL, ops })
    }
}

#[test]
fn ops_that_come_while_one_is_being_stored_go_together_and_in_order() {
    let mut session = Session::open(false);
    let first = session.put(1);
    for value in 2..=40 {
        let outcome = session.put(value);
        assert!(outcome.frames.is_empty() && outcome.asked.is_empty(), "{outcome:?}");
    }
    let second = session.submit(&first.asked);
    let [Effect::Submit { first_counter, count, .. }] = second.asked[..] else { panic!("{second:?}") };
    assert_eq!((first_counter, count), (1, 39));
    session.submit(&second.asked);
    let echoed = session.bus().frames;
    let values: Vec<u64> = echoed.iter().map(|op| op["payload"]["value"].as_u64().unwrap()).collect();
    assert_eq!(values, (1..=40).collect::<Vec<_>>());
    let stamps: Vec<u64> = echoed.iter().map(|op| op["payload"]["timestamp"].as_u64().unwrap()).collect();
    assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
}

// enforces: I-10
#[test]
fn more_ops_than_may_wait_are_refused_and_count_little() {
    let mut session = Session::open(false);
    let max = u64::from(EdgeConfig::default().limits.in_flight_changes_max);
    for value in 0..max {
        assert!(session.put(value).frames.is_empty());
    }
    for value in 0..100 {
        let outcome = session.put(value);
        assert_eq!((&outcome.frames[0]["code"], outcome.closed), (&json!(429), None), "{outcome:?}");
        assert!(outcome.frames[0]["retry_after_ms"].is_u64());
    }
}

// enforces: I-10
#[test]
fn a_state_may_be_larger_than_what_else_may_wait() {
    let mut session = Session::with(EdgeConfig::default(), grant(&["read", "write"]), false);
    for n in 0..100 {
        let value = format!("\"{}\"", "x".repeat(60_000));
        session.owner.write(1, n, &format!("k{n}"), Some(&value), WALL_MS * 1000);
    }
    session.mirror = Mirror::new(session.owner.opened(), MirrorLimits::default()).unwrap();
    session.init();
    // Five megabytes wait, beyond what closes, and what comes behind is told when they are read.
    session.owner.write(1, 100, "k0", Some("1"), WALL_MS * 1000 + 1);
    let outcome = session.bus();
    assert!(outcome.frames.is_empty() && outcome.closed.is_none(), "{outcome:?}");
    session.now += Duration::from_secs(9);
    assert_eq!(session.input(Input::Queued { bytes: 5_000_000 }).closed, None);
    let outcome = session.input(Input::Queued { bytes: 0 });
    let [Effect::Fetch { after, .. }, ..] = outcome.asked[..] else { panic!("{outcome:?}") };
    let result = session.mirror.since(after);
    let outcome = session.input(Input::Missed { channel: CHANNEL, result });
    assert_eq!(outcome.frames[0]["payload"]["value"], 1);
    // Who reads nothing at all is closed as anybody is.
    session.put(1);
    session.input(Input::Queued { bytes: 5_000 });
    session.now += Duration::from_secs(10);
    assert_eq!(session.input(Input::Tick).closed, Some((Code::SlowConsumer, 1013)));
}

#[test]
fn twenty_refusals_in_a_minute_are_enough() {
    for (text, code, close) in [("{", Code::Violation, 4500), (r#"{"type":"x"}"#, Code::Violation, 4500)] {
        let mut session = Session::open(false);
        for _ in 0..19 {
            let outcome = session.input(Input::Text(Bytes::from_static(text.as_bytes())));
            assert_eq!((outcome.frames.len(), outcome.closed), (1, None));
        }
        let outcome = session.input(Input::Text(Bytes::from_static(text.as_bytes())));
        assert_eq!((outcome.frames.len(), outcome.closed), (1, Some((code, close))));
    }
    let mut reader = Session::with(EdgeConfig::default(), grant(&["read"]), false);
    reader.init();
    for n in 1..=20 {
        let outcome = reader.put(n);
        assert_eq!(outcome.frames[0]["code"], 403);
        assert_eq!(outcome.closed, (n == 20).then_some((Code::Forbidden, 4504)), "{n}");
        assert!(outcome.asked.is_empty());
    }
    // Spread out, they are mistakes.
    let mut session = Session::open(false);
    for _ in 0..100 {
        session.now += Duration::from_secs(4);
        session.input(Input::Queued { bytes: 0 });
        assert_eq!(session.input(Input::Text(Bytes::from_static(b"{"))).closed, None);
    }
}

#[test]
fn a_token_ends_a_session_as_it_does_any_other() {
    let mut session = Session::open(true);
    let asked = session.says(&json!({ "type": "token", "payload": { "token": "fresh" } })).asked;
    assert_eq!(asked, [Effect::VerifyToken("fresh".to_owned())]);
    // What waits behind one that is being stored is refused with the right to write.
    let first = session.put(1);
    session.put(2);
    let outcome = session.input(Input::TokenVerified(Ok(grant(&["read"]))));
    assert_eq!(outcome.frames[0]["type"], "token");
    assert_eq!((&outcome.frames[1]["code"], outcome.frames.len()), (&json!(403), 2), "{outcome:?}");
    session.submit(&first.asked);
    assert_eq!(session.bus().frames[0]["payload"]["value"], 1);

    let mut session = Session::open(false);
    session.now += Duration::from_secs(3_600);
    assert_eq!(session.input(Input::Tick).closed, Some((Code::TokenExpired, 4002)));
    let mut session = Session::open(true);
    let denied = Refusal::new(Code::Unauthenticated, "no");
    assert_eq!(session.input(Input::TokenVerified(Err(denied))).closed, Some((Code::Unauthenticated, 4001)));
}

#[test]
fn what_the_mirror_cannot_be_had_for_is_told_before_the_end() {
    for (code, status, close) in [
        (Code::TooLarge, 413, 1009),
        (Code::Unavailable, 500, 1013),
        (Code::StrategyMismatch, 409, 4510),
        (Code::Internal, 500, 1011),
    ] {
        let mut session = Session::with(EdgeConfig::default(), grant(&["read"]), false);
        session.input(Input::Tick);
        let outcome = session.input(Input::Mirrored { channel: CHANNEL, result: Err(code.into()) });
        assert_eq!((&outcome.frames[0]["code"], outcome.frames.len()), (&json!(status), 1));
        assert_eq!(outcome.closed, Some((code, close)));
    }
}

#[test]
fn an_op_before_the_state_waits_for_it_and_has_seen_nothing() {
    let mut session = Session::with(EdgeConfig::default(), grant(&["read", "write"]), false);
    session.owner.write(1, 0, "k", Some("7"), WALL_MS * 1000);
    session.mirror = Mirror::new(session.owner.opened(), MirrorLimits::default()).unwrap();
    session.input(Input::Tick);
    assert!(session.put(8).asked.is_empty());
    let result = session.mirror.state();
    let outcome = session.input(Input::Mirrored { channel: CHANNEL, result });
    assert_eq!((outcome.frames.len(), &outcome.frames[0]["data"]["k"]), (1, &json!(7)));
    session.submit(&outcome.asked);
    let map = session.owner.document.map("").unwrap();
    assert_eq!((map.get("k").unwrap().value, map.conflicts("k").count()), ("8", 1));
}

/// What was told of a key may be newer than an op whose echo was left out: the key is told again behind it.
#[test]
fn an_echo_that_comes_late_does_not_bring_back_what_is_gone() {
    let mut session = Session::open(false);
    let mut view = View::default();
    let mut take = |outcome: &Outcome| {
        for frame in &outcome.frames {
            view.take(&frame.to_string().into());
        }
        view.state.get("k").cloned()
    };
    let asked = session.put(1).asked;
    let [Effect::Submit { replica, first_counter, count, changes, .. }] = &asked[..] else {
        panic!("{asked:?}")
    };
    let submitted: Submitted = session.owner.submit(*replica, *first_counter, *count, changes);
    session.owner.write(1, 1, "k", Some("2"), WALL_MS * 1000);
    // The socket is full while the bus brings both; then they are told at once, and only then the owner's answer comes.
    session.input(Input::Queued { bytes: 600 * 1024 });
    assert!(session.bus().frames.is_empty());
    let outcome = session.input(Input::Queued { bytes: 0 });
    let [Effect::Fetch { after, .. }, ..] = outcome.asked[..] else { panic!("{outcome:?}") };
    let result = session.mirror.since(after);
    assert_eq!(take(&session.input(Input::Missed { channel: CHANNEL, result })), Some(json!(2)));
    let outcome = session.input(Input::Submitted { channel: CHANNEL, result: Ok(submitted) });
    assert_eq!(take(&outcome), Some(json!(1)), "the echo");
    let [Effect::Fetch { after, .. }, ..] = outcome.asked[..] else { panic!("{outcome:?}") };
    let result = session.mirror.since(after);
    assert_eq!(take(&session.input(Input::Missed { channel: CHANNEL, result })), Some(json!(2)));
}

#[test]
fn an_op_on_an_empty_workspace_outlives_its_history() {
    let mut session = Session::open(false);
    let asked = session.put(1).asked;
    session.put(2);
    // The owner is another, which has another history for a workspace that has none.
    let reset = Err(Refusal::from(Code::HistoryReset));
    let outcome = session.input(Input::Submitted { channel: CHANNEL, result: reset.clone() });
    assert!(outcome.frames.is_empty(), "{outcome:?}");
    let [Effect::Submit { incarnation: old, replica: first, .. }] = asked[..] else { panic!("{asked:?}") };
    let [Effect::Mirror { lost, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
    assert_eq!(lost, Some(old));
    let mut state = session.mirror.state().unwrap();
    state.position.incarnation.0 += 1;
    let outcome = session.input(Input::Mirrored { channel: CHANNEL, result: Ok(state.clone()) });
    assert_eq!((outcome.frames.len(), &outcome.frames[0]["type"]), (1, &json!("init")));
    let [Effect::Submit { incarnation, replica, count, .. }] = outcome.asked[..] else {
        panic!("{outcome:?}")
    };
    assert!(incarnation == state.position.incarnation && replica != first && count == 2, "{outcome:?}");
    // What was made on something is refused when that is no more, and what comes late about it changes nothing.
    session.submit(&outcome.asked);
    session.bus();
    let asked = session.put(3).asked;
    assert_eq!(asked.len(), 1);
    state.position.incarnation.0 += 1;
    let outcome = session.input(Input::Mirrored { channel: CHANNEL, result: Ok(state) });
    assert_eq!((outcome.frames.len(), outcome.asked.len()), (1, 0), "{outcome:?}");
    let outcome = session.input(Input::Submitted { channel: CHANNEL, result: reset });
    assert_eq!((outcome.frames.len(), &outcome.frames[0]["code"]), (1, &json!(409)), "{outcome:?}");
    assert!(outcome.asked.is_empty(), "the mirror is the new one: {outcome:?}");
    let asked = session.put(4).asked;
    assert!(matches!(asked[..], [Effect::Submit { first_counter: 0, .. }]), "{asked:?}");
}

proptest::proptest! {
    // enforces: I-12
    #[test]
    fn whatever_is_said_is_answered_with_a_frame_or_taken(
        words in proptest::collection::vec(word(), 0..12),
        extended in proptest::bool::ANY,
    ) {
        let mut session = Session::open(extended);
        let outcome = session.input(Input::Text(words.concat().into()));
        proptest::prop_assert!(outcome.frames.len() + outcome.asked.len() <= 2, "{outcome:?}");
        proptest::prop_assert!(outcome.closed.is_none());
    }
}

/// A piece of a message, or of none.
fn word() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    const PIECES: &[&str] = &[
        r#"{"type":"op","payload":{"key":"k","value":"#,
        r#"{"type":"del","payload":{"key":"k""#,
        r#"{"type":"presence","payload":"#,
        r#"{"type":"token","payload":{"token":""#,
        r#"{"type":"ping"}"#,
        r#","timestamp":1763661900000000"#,
        r#","expect":0"#,
        "}}",
        "}",
        "\"",
        "\\ud800",
        "[",
        "1e400",
        "null",
    ];
    prop_oneof![proptest::sample::select(PIECES).prop_map(str::to_owned), ".{0,8}"]
}
