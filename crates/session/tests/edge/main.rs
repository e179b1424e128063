//! What an edge does with good and bad input, one sentence a test.
#![allow(clippy::unwrap_used)]

mod lane;
mod opening;
mod road;

use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Code, DocumentName, Incarnation, Position, Seq, v1};
use manyhands_session::edge::{Body, ChannelId, Edge, EdgeConfig, Effect, Input, Opened, Submitted};
use manyhands_session::{Grant, Refusal, Scopes, SharedRun, Workspaces, decode_server, encode_client};

pub(crate) const WALL_MS: u64 = 1_800_000_000_000;
pub(crate) const INCARNATION: Incarnation = Incarnation(0xabc);

/// A session with its effects sorted: frames to the client, requests to the shell.
pub(crate) struct Session {
    pub(crate) edge: Edge,
    pub(crate) now: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) frames: Vec<ServerFrame>,
    pub(crate) asked: Vec<Effect>,
    pub(crate) closed: Option<Code>,
}

pub(crate) fn grant(scopes: &[&str], workspaces: &[&str]) -> Grant {
    Grant {
        subject: "ada".to_owned(),
        scopes: Scopes::parse(scopes.iter().copied()),
        workspaces: Workspaces::parse(workspaces.iter().copied()),
        expires_at_ms: WALL_MS + 3_600_000,
    }
}

impl Session {
    pub(crate) fn with(config: EdgeConfig, grant: Grant, workspace: Option<&str>) -> Session {
        let workspace: Option<DocumentName> = workspace.map(|name| name.parse().unwrap());
        let edge = Edge::new(config, "s1".to_owned(), grant, workspace, 7, Duration::ZERO, WALL_MS);
        Session { edge, now: Duration::ZERO }
    }

    /// Not yet greeted.
    pub(crate) fn new() -> Session {
        Session::with(EdgeConfig::default(), grant(&["read", "write"], &["demo", "other"]), None)
    }

    pub(crate) fn greeted() -> Session {
        let mut session = Session::new();
        session.greet();
        session
    }

    /// With `demo` open on channel 1 for replica 9, at seq 0.
    pub(crate) fn open() -> Session {
        let mut session = Session::greeted();
        session.open_demo(1);
        session
    }

    pub(crate) fn greet(&mut self) {
        let outcome = self.says(hello(1, 1));
        assert!(matches!(outcome.frames[..], [ServerFrame::Welcome(_)]), "{outcome:?}");
        assert_eq!(self.edge.client(), "test");
    }

    pub(crate) fn open_demo(&mut self, number: u32) -> ChannelId {
        let outcome = self.says(open(number, "demo"));
        let [Effect::Open { channel, .. }] = outcome.asked[..] else { panic!("{outcome:?}") };
        let outcome = self.input(Input::Opened { channel, result: Ok(opened(0)) });
        assert!(matches!(outcome.frames[..], [ServerFrame::Opened(_)]), "{outcome:?}");
        channel
    }

    pub(crate) fn input(&mut self, input: Input) -> Outcome {
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

    pub(crate) fn says(&mut self, frame: ClientFrame) -> Outcome {
        self.input(Input::Frame(encode_client(frame)))
    }

    pub(crate) fn sends(&mut self, bytes: impl Into<Bytes>) -> Outcome {
        self.input(Input::Frame(bytes.into()))
    }

    /// Reads what it was sent, then does nothing.
    pub(crate) fn waits(&mut self, time: Duration) -> Outcome {
        self.input(Input::Queued { bytes: 0 }).is_nothing();
        self.now += time;
        self.input(Input::Tick)
    }

    pub(crate) fn is_alive(&mut self) {
        let outcome = self.says(ClientFrame::Ping(v1::Ping { nonce: 5 }));
        assert!(matches!(&outcome.frames[..], [ServerFrame::Pong(pong)] if pong.nonce == 5), "{outcome:?}");
    }
}

impl Outcome {
    pub(crate) fn is_closed_with(&self, code: Code) {
        assert_eq!(self.closed, Some(code), "{self:?}");
        assert!(self.asked.is_empty(), "{self:?}");
    }

    /// One reject, and nothing was asked of anybody.
    pub(crate) fn is_rejected_with(&self, code: Code, counter: u64) {
        let [ServerFrame::Reject(reject)] = &self.frames[..] else { panic!("{self:?}") };
        assert_eq!((reject.code, reject.counter), (code.number(), counter), "{self:?}");
        assert!(!reject.fix.is_empty() && !reject.message.is_empty());
        assert!(self.asked.is_empty() && self.closed.is_none(), "{self:?}");
    }

    pub(crate) fn is_evicted_with(&self, code: Code, channel: u32) {
        let [ServerFrame::Evict(evict)] = &self.frames[..] else { panic!("{self:?}") };
        assert_eq!((evict.code, evict.channel), (code.number(), channel), "{self:?}");
        assert!(self.closed.is_none(), "{self:?}");
    }

    pub(crate) fn is_nothing(&self) {
        assert!(self.frames.is_empty() && self.asked.is_empty() && self.closed.is_none(), "{self:?}");
    }
}

pub(crate) fn hello(version_min: u32, version_max: u32) -> ClientFrame {
    let client = "test".to_owned();
    ClientFrame::Hello(v1::Hello { version_min, version_max, client, features: vec!["later".to_owned()] })
}

pub(crate) fn open(channel: u32, document: &str) -> ClientFrame {
    ClientFrame::Open(v1::Open { channel, document: document.to_owned(), replica: 9, ..v1::Open::default() })
}

pub(crate) fn push(channel: u32, first_counter: u64, count: u32) -> ClientFrame {
    let changes = Bytes::from(vec![1; count as usize * 3]);
    ClientFrame::Push(v1::Push { channel, first_counter, count, changes })
}

pub(crate) fn position(seq: u64) -> Position {
    Position {
        incarnation: INCARNATION,
        seq: Seq(seq),
        chain: if seq == 0 { [0; 16] } else { [seq as u8; 16] },
    }
}

pub(crate) fn opened(seq: u64) -> Opened {
    Opened::new(position(seq), 0, Body::Tail(Vec::new()))
}

pub(crate) fn run(first_seq: u64, count: u32, bytes: usize) -> SharedRun {
    let last = first_seq + u64::from(count) - 1;
    let chain = vec![last as u8; 16].into();
    SharedRun::new(v1::EntryRun { first_seq, count, entries: vec![7; bytes].into(), chain }).unwrap()
}

pub(crate) fn deltas(frames: &[ServerFrame]) -> Vec<(u64, u32)> {
    let delta = |frame: &ServerFrame| match frame {
        ServerFrame::Delta(delta) => Some((delta.first_seq, delta.count)),
        _ => None,
    };
    frames.iter().filter_map(delta).collect()
}

pub(crate) fn acked(next_counter: u64, seq: u64) -> Result<Submitted, Refusal> {
    Ok(Submitted { next_counter, seq: Seq(seq), rejection: None })
}
