//! Presence, the token, living and leaving.

use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Code, v1};
use manyhands_session::edge::{Edge, EdgeConfig, Effect, Input};
use manyhands_session::{Grant, encode_client};
use proptest::prelude::*;

use crate::*;

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
        let open = v1::Open { channel: 2, document: "other".to_owned(), replica: 9, have: Some(position), ..v1::Open::default() };
        let mut bytes = encode_client(ClientFrame::Open(open)).to_vec();
        let len = bytes.len();
        bytes[at % len] = byte;
        bytes.truncate(len - cut % len);
        let mut session = Session::open();
        session.sends(bytes);
        session.waits(Duration::from_secs(1));
    }
}
