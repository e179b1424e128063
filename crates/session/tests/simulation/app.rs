//! An application: has documents, makes changes, and checks every word that its client tells it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use manyhands_crdt::ReplicaId;
use manyhands_proto::{Position, Seq, v1};
use manyhands_session::client::{Client, ClientConfig, ConnectionState, Event, Input, OutgoingChange};

use crate::log::{Record, body};
use crate::random::Random;

pub(crate) struct App {
    pub(crate) name: usize,
    pub(crate) client: Client,
    pub(crate) socket: Option<u64>,
    pub(crate) documents: BTreeMap<u32, Open>,
    pub(crate) online: bool,
    pub(crate) tokens_wanted: u32,
}

/// A document as this application has it.
#[derive(Default)]
pub(crate) struct Open {
    pub(crate) replica: Option<u64>,
    pub(crate) entries: Vec<Record>,
    pub(crate) position: Option<Position>,
    /// Everything that was ever submitted.
    pub(crate) submitted: Vec<Record>,
    pub(crate) acked: u64,
    unacked: VecDeque<u64>,
    awaits_state: Option<Position>,
}

impl App {
    pub(crate) fn new(name: usize, seed: u64, config: ClientConfig) -> App {
        App {
            name,
            client: Client::new(config, seed),
            socket: None,
            documents: BTreeMap::new(),
            online: false,
            tokens_wanted: 0,
        }
    }

    pub(crate) fn open(&mut self, channel: u32, document: &str, writes: bool) -> Input {
        let replica = writes.then_some(1000 * (self.name as u64 + 1) + u64::from(channel));
        self.documents.insert(channel, Open { replica, ..Open::default() });
        Input::Open {
            channel,
            document: document.parse().unwrap(),
            replica: replica.map(ReplicaId),
            have: None,
            strategy: v1::Strategy::Unspecified,
            lineage: None,
        }
    }

    /// A local edit.
    pub(crate) fn edit(&mut self, channel: u32, random: &mut Random) -> Option<Input> {
        let open = self.documents.get_mut(&channel)?;
        let replica = open.replica?;
        let counter = open.submitted.last().map_or(0, |last| last.next_counter);
        let ops = 1 + random.below(3) as u8;
        let id = random.next();
        let next_counter = counter + u64::from(ops);
        open.submitted.push(Record { replica, counter, next_counter, id });
        open.unacked.push_back(counter);
        let weight = if random.chance(5) { 200 } else { random.below(20) as u8 };
        let base = open.position.map_or(0, |position| position.seq.0);
        let change = OutgoingChange { counter, next_counter, base, body: body(ops, id, weight) };
        Some(Input::Submit { channel, change })
    }

    /// Holds an event against everything before it.
    pub(crate) fn learn(&mut self, event: Event) {
        let name = self.name;
        match event {
            Event::Connection(state) => {
                self.online = matches!(state, ConnectionState::Online { .. });
                match state {
                    ConnectionState::Stopped { .. } => panic!("client {name} gave up: {state:?}"),
                    ConnectionState::TokenNeeded { .. } => self.tokens_wanted += 1,
                    _ => {}
                }
            }
            Event::Opened { channel, recovery, position, .. } => {
                let open = self.documents.get_mut(&channel).unwrap();
                open.awaits_state = (recovery == v1::Recovery::State).then_some(position);
            }
            Event::State { channel, position, bytes } => {
                let open = self.documents.get_mut(&channel).unwrap();
                assert_eq!(open.awaits_state.take(), Some(position), "client {name}");
                open.entries = Record::read_all(&bytes);
                assert_eq!(open.entries.len() as u64, position.seq.0, "client {name}: a state is whole");
                open.position = Some(position);
            }
            Event::Entries { channel, first_seq, count, entries, known, position } => {
                let open = self.documents.get_mut(&channel).unwrap();
                assert_eq!(open.awaits_state, None, "client {name}: entries before the state");
                assert_eq!(known, Seq(open.entries.len() as u64), "client {name}");
                assert!(first_seq <= known.next(), "client {name}: a gap after {known}: {first_seq}");
                let records = Record::read_all(&entries);
                assert_eq!(records.len(), count as usize);
                let fresh = (known.next().0 - first_seq.0) as usize;
                assert!(fresh < records.len(), "client {name}: nothing new");
                let overlap = &open.entries[first_seq.0 as usize - 1..];
                assert_eq!(overlap, &records[..fresh], "client {name}: a seq has one entry");
                open.entries.extend(&records[fresh..]);
                assert_eq!(position.seq, Seq(open.entries.len() as u64), "client {name}");
                open.position = Some(position);
            }
            Event::Acked { channel, next_counter, .. } => {
                let open = self.documents.get_mut(&channel).unwrap();
                assert!(next_counter > open.acked, "client {name}: an ack that says nothing");
                open.acked = next_counter;
                while open.unacked.pop_front_if(|counter| *counter < next_counter).is_some() {}
            }
            Event::Refused { changes, code, .. } => {
                panic!("client {name}: {} changes were refused with {code}", changes.len());
            }
            Event::Evicted { code, message, .. } => panic!("client {name} was evicted: {code} {message}"),
            Event::TokenExpiring { .. } => self.tokens_wanted += 1,
            Event::Presence { .. }
            | Event::Reopening { .. }
            | Event::PresenceTooLarge { .. }
            | Event::GoingAway { .. } => {}
        }
    }

    /// Nothing unacknowledged leaves the outbox, nothing acknowledged stays.
    pub(crate) fn check_outbox(&self) {
        for (&channel, open) in &self.documents {
            let kept = self.client.outbox(channel).map(|change| change.counter);
            assert!(kept.eq(open.unacked.iter().copied()), "client {}: channel {channel}", self.name);
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.documents.values().all(|open| open.unacked.is_empty())
    }
}

/// How long the applications' clients wait for things, shorter than by default so that much happens in a run.
pub(crate) fn config() -> ClientConfig {
    ClientConfig {
        resend_after: Duration::from_secs(3),
        answer_max: Duration::from_secs(4),
        open_max: Duration::from_secs(6),
        handshake_max: Duration::from_secs(5),
        ..ClientConfig::default()
    }
}
