//! What is open in one partition, by whom, and what each of them is told. Nothing here waits for anything.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use manyhands_proto::{DocumentName, Epoch, Incarnation, Position, Seq, v1};
use manyhands_session::SharedRun;
use manyhands_session::edge::{ChannelId, Input};
use manyhands_session::feed::Feed;
use manyhands_session::json::Mirror;
use tokio::sync::mpsc;

use super::readers::Readers;

/// How long a document without sessions is still followed, so that a reconnect finds it warm.
pub(super) const LINGER: Duration = Duration::from_secs(10);

/// The open documents of one partition, with those who have them open.
#[derive(Default)]
pub(super) struct Documents {
    pub(super) by_name: BTreeMap<DocumentName, Document>,
    pub(super) by_incarnation: BTreeMap<Incarnation, DocumentName>,
    /// Deltas of histories that nobody here follows yet, while an open is under way.
    pub(super) held: VecDeque<v1::BusDelta>,
    pub(super) next_seat: u64,
}

pub(super) struct Document {
    pub(super) feed: Option<Feed>,
    pub(super) epoch: Epoch,
    /// The newest that was delivered.
    pub(super) newest: Option<Position>,
    pub(super) sessions: BTreeMap<u64, Attached>,
    /// Sessions in the JSON dialect, which have a mirror of the document instead of its entries.
    pub(super) readers: Readers,
    vacant_since: Option<Instant>,
}

/// A session that has a document open.
pub(super) struct Attached {
    pub(super) channel: ChannelId,
    pub(super) inbox: mpsc::Sender<Input>,
    /// Set once its owner has answered; deltas go to those only.
    pub(super) started: bool,
    /// Its inbox was full when something was to be delivered.
    pub(super) missed: bool,
}

impl Documents {
    /// Runs `what` on the document that has this history, if it is open.
    pub(super) fn with(&mut self, incarnation: Incarnation, what: impl FnOnce(&DocumentName, &mut Document)) {
        let Some(name) = self.by_incarnation.get(&incarnation) else { return };
        let Some(open) = self.by_name.get_mut(name) else { return };
        what(name, open);
        if open.feed.is_none() {
            self.by_incarnation.remove(&incarnation);
        }
    }

    /// A document has its first entry, in this history. Whoever opened it while it was empty may have been given
    /// another, by an owner that took it along: there is nothing in it, so it is opened anew at once.
    pub(super) fn first_entry(&mut self, name: &DocumentName, epoch: Epoch, incarnation: Incarnation) {
        let Some(open) = self.by_name.get_mut(name) else { return };
        let other = open.feed.as_ref().is_some_and(|feed| feed.incarnation() != incarnation);
        let empty = open.newest.is_none_or(|newest| newest.seq == Seq(0));
        if other && empty && epoch >= open.epoch {
            open.lose(None);
            self.forget_lost();
        }
    }

    /// Histories that no feed follows any more are forgotten.
    pub(super) fn forget_lost(&mut self) {
        let by_name = &self.by_name;
        self.by_incarnation.retain(|_, name| by_name.get(name).is_some_and(|open| open.feed.is_some()));
    }
}

impl Document {
    pub(super) fn new() -> Document {
        metrics::gauge!("manyhands_edge_open_documents").increment(1);
        Document {
            feed: None,
            epoch: Epoch(0),
            newest: None,
            sessions: BTreeMap::new(),
            readers: Readers::default(),
            vacant_since: None,
        }
    }

    /// Somebody has come.
    pub(super) fn enter(&mut self) {
        self.vacant_since = None;
    }

    /// The session with this number has gone.
    pub(super) fn leave(&mut self, number: u64) {
        self.sessions.remove(&number);
        self.readers.remove(number);
        if self.sessions.is_empty() && self.readers.is_empty() {
            self.vacant_since = Some(Instant::now());
        }
    }

    /// Whether nobody has been here for a while.
    pub(super) fn is_deserted(&self) -> bool {
        self.vacant_since.is_some_and(|since| since.elapsed() >= LINGER)
    }

    pub(super) fn is_opening(&self) -> bool {
        self.sessions.values().any(|session| !session.started) || self.readers.is_waiting()
    }

    /// The same bytes to everybody; nobody is waited for.
    pub(super) fn deliver(&mut self, run: &SharedRun) {
        if let Some(feed) = &self.feed {
            let incarnation = feed.incarnation();
            self.newest = Some(Position { incarnation, seq: run.last(), chain: run.chain() });
        }
        let mut delivered = 0;
        for session in self.sessions.values_mut().filter(|session| session.started) {
            let entries = Input::Entries { channel: session.channel, run: run.clone() };
            match session.inbox.try_send(entries) {
                Ok(()) => delivered += 1,
                Err(_) => session.missed = true,
            }
        }
        delivered += self.readers.deliver(run);
        metrics::counter!("manyhands_edge_deltas_delivered_total").increment(delivered);
    }

    /// Takes a mirror in, and brings it to where the feed is. False if the feed has forgotten what it lacks.
    pub(super) fn set_mirror(&mut self, mut mirror: Box<Mirror>) -> bool {
        let at = mirror.position().seq;
        if self.newest.is_some_and(|newest| newest.seq > at) {
            let Some(recent) = self.feed.as_ref().and_then(|feed| feed.recent(at)) else { return false };
            if recent.runs.iter().any(|run| mirror.apply(run).is_err()) {
                return false;
            }
        }
        self.readers.set_mirror(mirror);
        true
    }

    /// Brings one session from `after` to where the feed is.
    pub(super) fn catch_up(&mut self, number: u64, after: Seq) {
        let Some(newest) = self.newest.filter(|newest| newest.seq > after) else { return };
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let recent = self.feed.as_ref().and_then(|feed| feed.recent(after));
        let channel = session.channel;
        let inputs: Vec<Input> = match recent {
            Some(recent) => recent.runs.into_iter().map(|run| Input::Entries { channel, run }).collect(),
            None => vec![Input::TipSeen { channel, position: newest }],
        };
        session.missed |= inputs.into_iter().any(|input| session.inbox.try_send(input).is_err());
    }

    /// Tells sessions that missed something where the document stands, so that they fetch.
    pub(super) fn remind(&mut self) {
        let Some(position) = self.newest else { return };
        for session in self.sessions.values_mut().filter(|session| session.missed) {
            let tip = Input::TipSeen { channel: session.channel, position };
            session.missed = session.inbox.try_send(tip).is_err();
        }
        self.readers.remind(position);
    }

    /// The history is another: every session that follows this one, or the one with this number, is told.
    pub(super) fn lose(&mut self, only: Option<u64>) {
        for (number, session) in &mut self.sessions {
            if only.map_or(session.started, |only| only == *number) {
                session.started = false;
                send_surely(&session.inbox, Input::Lost { channel: session.channel });
            }
        }
        if only.is_none() {
            self.feed = None;
            self.newest = None;
            self.readers.lose();
        }
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        metrics::gauge!("manyhands_edge_open_documents").decrement(1);
    }
}

/// Sends what may not be missed, however full the inbox is.
pub(super) fn send_surely(inbox: &mpsc::Sender<Input>, input: Input) {
    if let Err(mpsc::error::TrySendError::Full(input)) = inbox.try_send(input) {
        let inbox = inbox.clone();
        tokio::spawn(async move { inbox.send(input).await });
    }
}
