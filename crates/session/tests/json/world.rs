//! Sessions of one document on one edge, whose owner is slow, whose bus is late, and whose sockets are full.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use manyhands_crdt::{ReplicaId, Strategy};
use manyhands_proto::Code;
use manyhands_session::edge::{ChannelId, Edge, EdgeConfig, Effect, Input, Submitted};
use manyhands_session::json::{Choice, Mirror, MirrorLimits};
use manyhands_session::{Grant, Refusal, Scopes, Workspaces};
use serde_json::{Value, json};

use crate::owner::Owner;
use crate::{Random, View};

pub(crate) const WALL_MS: u64 = 1_800_000_000_000;
pub(crate) const CHANNEL: ChannelId = ChannelId { number: 0, opening: 1 };

pub(crate) fn grant(scopes: &[&str]) -> Grant {
    Grant {
        subject: "ada".to_owned(),
        scopes: Scopes::parse(scopes.iter().copied()),
        workspaces: Workspaces::Any,
        expires_at_ms: WALL_MS + 3_600_000,
    }
}

struct World {
    random: Random,
    now: Duration,
    owner: Owner,
    mirror: Mirror,
    sessions: Vec<Session>,
}

struct Session {
    edge: Edge,
    view: View,
    started: bool,
    /// On the way from the mirror.
    inbox: VecDeque<Input>,
    /// On the way to the owner, and from it.
    asked: VecDeque<(ReplicaId, u64, u32, Bytes)>,
    answers: VecDeque<Result<Submitted, Refusal>>,
    sent: Vec<Value>,
    echoed: BTreeSet<String>,
    errors: usize,
}

#[derive(Default)]
struct Counts {
    repeated: u64,
    fetched: u64,
    failed: u64,
}

impl World {
    fn new(seed: u64, strategy: Strategy) -> World {
        let mut random = Random(seed);
        let owner = Owner::new(strategy);
        let mirror = Mirror::new(owner.opened(), MirrorLimits::default()).unwrap();
        let sessions = (0..3)
            .map(|n| {
                let choice = Choice { extended: n == 2, ..Choice::default() };
                let config = EdgeConfig::default();
                let (name, seed) = (format!("s{n}"), random.below(u64::MAX));
                let document = "demo".parse().unwrap();
                let grant = grant(&["read", "write"]);
                let edge = Edge::json(config, name, grant, document, choice, seed, Duration::ZERO, WALL_MS);
                Session {
                    edge,
                    view: View::default(),
                    started: false,
                    inbox: VecDeque::new(),
                    asked: VecDeque::new(),
                    answers: VecDeque::new(),
                    sent: Vec::new(),
                    echoed: BTreeSet::new(),
                    errors: 0,
                }
            })
            .collect();
        World { random, now: Duration::ZERO, owner, mirror, sessions }
    }

    fn input(&mut self, n: usize, input: Input, counts: &mut Counts) {
        let session = &mut self.sessions[n];
        let mut next = VecDeque::from([input]);
        while let Some(input) = next.pop_front() {
            let mut effects = Vec::new();
            session.edge.handle(self.now, input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::SendText(frame) => {
                        let (kind, said) = session.view.take(&frame);
                        match kind.as_str() {
                            "op" | "del" => {
                                session.echoed.insert(said["value"].to_string());
                            }
                            "error" => session.errors += 1,
                            _ => {}
                        }
                    }
                    Effect::Mirror { .. } => {
                        session.started = true;
                        let result = self.mirror.state();
                        session.inbox.push_back(Input::Mirrored { channel: CHANNEL, result });
                    }
                    Effect::Recall { key, timestamp, .. } => {
                        let known = self.mirror.recall(&key, timestamp);
                        counts.repeated += u64::from(!known.is_empty());
                        next.push_back(Input::Recalled { channel: CHANNEL, known });
                    }
                    Effect::Fetch { after, .. } => {
                        counts.fetched += 1;
                        let result = self.mirror.since(after);
                        next.push_back(Input::Missed { channel: CHANNEL, result });
                    }
                    Effect::Submit { replica, first_counter, count, changes, .. } => {
                        session.asked.push_back((replica, first_counter, count, changes));
                    }
                    Effect::Ping | Effect::SetPresence { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn step(&mut self, counts: &mut Counts, calm: bool) {
        self.now += Duration::from_millis(self.random.below(30));
        let n = self.random.below(3) as usize;
        match self.random.below(10) {
            0 | 1 if !calm => self.client_writes(n, counts),
            2 if !calm => {
                let (base, key) = (self.random.below(self.owner.seq() + 1), self.random.below(3));
                let value = format!("\"other-{}\"", self.random.below(1_000_000));
                let value = (!self.random.one_in(5)).then_some(&value[..]);
                let micros = WALL_MS * 1000 + self.random.below(1_000_000);
                self.owner.write(1 + self.random.below(2), base, &format!("k{key}"), value, micros);
            }
            3 | 4 => {
                // The owner decides, and may fail before or after, which looks the same.
                let Some((replica, first, count, changes)) = self.sessions[n].asked.pop_front() else {
                    return;
                };
                let fails = !calm && self.random.one_in(8);
                let decides = !fails || self.random.one_in(2);
                let submitted = decides.then(|| self.owner.submit(replica, first, count, &changes));
                let answer = match submitted {
                    Some(submitted) if !fails => Ok(submitted),
                    _ => Err(Refusal::from(Code::Unavailable)),
                };
                counts.failed += u64::from(fails);
                self.sessions[n].answers.push_back(answer);
            }
            5 => {
                if let Some(result) = self.sessions[n].answers.pop_front() {
                    self.input(n, Input::Submitted { channel: CHANNEL, result }, counts);
                }
            }
            6 | 7 => self.bus_delivers(calm),
            8 => {
                if let Some(input) = self.sessions[n].inbox.pop_front() {
                    self.input(n, input, counts);
                }
            }
            _ => {
                let full = !calm && self.random.one_in(2);
                self.input(n, Input::Queued { bytes: if full { 600 * 1024 } else { 0 } }, counts);
                self.input(n, Input::Heard, counts);
            }
        }
    }

    fn client_writes(&mut self, n: usize, counts: &mut Counts) {
        let session = &self.sessions[n];
        let message = if !session.sent.is_empty() && self.random.one_in(5) {
            // Again what was sent before, with whatever timestamp it had.
            session.sent[self.random.below(session.sent.len() as u64) as usize].clone()
        } else {
            let key = format!("k{}", self.random.below(3));
            let value = format!("v{n}-{}", session.sent.len());
            let mut payload = json!({ "key": key, "value": value });
            if self.random.one_in(2) {
                payload["timestamp"] = json!(WALL_MS * 1000 + self.random.below(1_000_000));
            }
            json!({ "type": "op", "payload": payload })
        };
        if message["payload"].get("timestamp").is_some() || !session.sent.contains(&message) {
            self.sessions[n].sent.push(message.clone());
            self.input(n, Input::Text(message.to_string().into()), counts);
        }
    }

    fn bus_delivers(&mut self, calm: bool) {
        let at = self.mirror.position().seq.0;
        if at == self.owner.seq() {
            return;
        }
        let upto = at + 1 + self.random.below(self.owner.seq() - at);
        let ops = self.mirror.apply(&self.owner.run(at, upto)).unwrap().unwrap();
        for session in self.sessions.iter_mut().filter(|session| session.started) {
            // A full inbox: it is told later where the document stands.
            let input = if !calm && self.random.one_in(6) {
                Input::TipSeen { channel: CHANNEL, position: self.mirror.position() }
            } else {
                Input::Ops { channel: CHANNEL, ops: ops.clone() }
            };
            session.inbox.push_back(input);
        }
    }

    /// Until nothing is under way.
    fn settle(&mut self, counts: &mut Counts) {
        for _ in 0..3_000 {
            self.step(counts, true);
        }
        for n in 0..self.sessions.len() {
            self.now += Duration::from_secs(6);
            self.input(n, Input::Heard, counts);
            self.input(n, Input::Queued { bytes: 0 }, counts);
            self.input(n, Input::Tick, counts);
            let session = &self.sessions[n];
            assert!(session.asked.is_empty() && session.answers.is_empty() && session.inbox.is_empty());
        }
    }
}

fn run(seed: u64, strategy: Strategy, counts: &mut Counts) {
    let mut world = World::new(seed, strategy);
    for n in 0..3 {
        world.input(n, Input::Tick, counts);
    }
    for _ in 0..400 {
        world.step(counts, false);
    }
    world.settle(counts);
    let root = world.owner.root();
    assert_eq!(world.mirror.position().seq.0, world.owner.seq());
    for (n, session) in world.sessions.iter().enumerate() {
        assert_eq!(session.view.state, root, "{strategy} {seed}: session {n}");
        // Each op was echoed or refused; under `lww`, one that loses is answered with the one that won.
        if strategy != Strategy::Lww {
            let values: BTreeSet<String> =
                session.sent.iter().map(|message| message["payload"]["value"].to_string()).collect();
            let silent = values.iter().filter(|value| !session.echoed.contains(*value)).count();
            assert!(silent <= session.errors, "{strategy} {seed}: session {n}: {silent} ops without a word");
        }
    }
}

// enforces: I-5, I-6
#[test]
fn json_sessions_converge_whatever_is_late_full_or_fails() {
    let mut counts = Counts::default();
    for seed in 0..150 {
        for strategy in Strategy::ALL {
            run(seed, strategy, &mut counts);
        }
    }
    let Counts { repeated, fetched, failed } = counts;
    assert!(repeated > 500 && fetched > 500 && failed > 250, "{repeated} {fetched} {failed}");
}
