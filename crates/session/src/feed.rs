//! A gapless stream of one document's entries, made from a bus that may lose, repeat and reorder.
//!
//! An edge keeps one [`Feed`] for each document that a session has open. What the feed delivers goes to every
//! session; a session that is not yet there fetches what it misses, from the feed's ring if it is recent
//! enough. A lost last delta is found by a tip, a lost tip by silence.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use manyhands_proto::{Chain, Code, Epoch, Incarnation, Position, Retry, Seq};

use crate::backoff::{Backoff, Random};
use crate::edge::Fetched;
use crate::{Refusal, SharedRun};

/// What an operator may change about feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedConfig {
    /// Runs held behind a gap; one more and the gap is fetched at once.
    pub held_runs_max: usize,
    /// Their bytes.
    pub held_bytes_max: usize,
    /// How long a gap may be a mere reordering before it is fetched.
    pub gap_max: Duration,
    /// Recent runs kept for sessions that come to it.
    pub ring_runs_max: usize,
    /// Their bytes.
    pub ring_bytes_max: usize,
    /// Nothing heard for this long, neither delta nor tip: the owner is asked. Twice as long each time that
    /// there was nothing new.
    pub silence_max: Duration,
    /// The longest that silence is trusted.
    pub silence_ceiling: Duration,
}

impl Default for FeedConfig {
    fn default() -> FeedConfig {
        FeedConfig {
            held_runs_max: 256,
            held_bytes_max: 1024 * 1024,
            gap_max: Duration::from_millis(250),
            ring_runs_max: 256,
            ring_bytes_max: 256 * 1024,
            silence_max: Duration::from_secs(15),
            silence_ceiling: Duration::from_secs(60),
        }
    }
}

/// What happens to a feed.
#[derive(Clone, Debug)]
pub enum Input {
    /// A delta from the bus.
    Delta {
        /// Of the owner that sent it.
        epoch: Epoch,
        /// Which history.
        incarnation: Incarnation,
        /// The entries.
        run: SharedRun,
    },
    /// A tip from the bus.
    Tip {
        /// Of the owner that sent it.
        epoch: Epoch,
        /// The newest position.
        position: Position,
    },
    /// A position that the owner itself told, as it does in the answer to an open.
    Opened {
        /// The newest position.
        position: Position,
    },
    /// The bus may have lost something.
    Suspect,
    /// The answer to [`Effect::Fetch`].
    Fetched(Result<Fetched, Refusal>),
    /// The deadline has come.
    Tick,
}

/// What the edge is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Give the run to every session of the document.
    Deliver(SharedRun),
    /// Ask the owner for the entries after a seq. At most one at a time.
    Fetch {
        /// The newest that was delivered.
        after: Seq,
        /// In which history.
        incarnation: Incarnation,
    },
    /// The history is another, or has forked: evict every session of the document, drop the feed.
    Lost,
}

/// One document's feed.
#[derive(Debug)]
pub struct Feed {
    config: FeedConfig,
    incarnation: Incarnation,
    epoch: Epoch,
    /// The newest that was delivered; before the first thing that was heard, nothing.
    at: Option<At>,
    /// The newest seq that was heard of.
    newest: Seq,
    /// Runs that are ahead, by first seq.
    held: BTreeMap<Seq, SharedRun>,
    held_bytes: usize,
    ring: VecDeque<SharedRun>,
    ring_bytes: usize,
    gap_since: Option<Duration>,
    fetch: Fetch,
    heard_at: Duration,
    silence: Duration,
    backoff: Backoff,
    random: Random,
    lost: bool,
}

#[derive(Clone, Copy, Debug)]
struct At {
    seq: Seq,
    chain: Option<Chain>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fetch {
    Idle,
    /// As soon as the time has come.
    Due(Duration),
    Asked,
}

impl Feed {
    /// The feed of the history `incarnation`, from `now` on.
    #[must_use]
    pub fn new(config: FeedConfig, incarnation: Incarnation, seed: u64, now: Duration) -> Feed {
        Feed {
            silence: config.silence_max,
            config,
            incarnation,
            epoch: Epoch(0),
            at: None,
            newest: Seq(0),
            held: BTreeMap::new(),
            held_bytes: 0,
            ring: VecDeque::new(),
            ring_bytes: 0,
            gap_since: None,
            fetch: Fetch::Idle,
            heard_at: now,
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(5)),
            random: Random::new(seed),
            lost: false,
        }
    }

    /// Takes one thing in and says what to do, in order. After [`Effect::Lost`] nothing more comes out.
    pub fn handle(&mut self, now: Duration, input: Input, out: &mut Vec<Effect>) {
        if self.lost {
            return;
        }
        let step = match input {
            Input::Delta { epoch, incarnation, run } => self.delta(now, epoch, incarnation, run, out),
            Input::Tip { epoch, position } => self.tip(now, epoch, &position),
            Input::Opened { position } => self.seen(now, &position),
            Input::Suspect => {
                self.suspect(now);
                Ok(())
            }
            Input::Fetched(result) => self.fetched(now, result, out),
            Input::Tick => Ok(()),
        };
        if step.is_err() {
            self.lost = true;
            self.held.clear();
            self.ring.clear();
            out.push(Effect::Lost);
            return;
        }
        self.settle(now, out);
    }

    /// When to call with [`Input::Tick`] if nothing else comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        if self.lost {
            return None;
        }
        match self.fetch {
            Fetch::Asked => None,
            Fetch::Due(at) => Some(at),
            Fetch::Idle => {
                let gap = self.gap_since.map(|since| since + self.config.gap_max);
                Some(gap.unwrap_or(Duration::MAX).min(self.heard_at + self.silence))
            }
        }
    }

    /// Which history this is the feed of.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The newest position that was delivered, or found to be everybody's when the feed began.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        let At { seq, chain } = self.at?;
        Some(Position { incarnation: self.incarnation, seq, chain: chain? })
    }

    /// The runs after `after` up to the newest that was delivered, if the ring still has them all.
    #[must_use]
    pub fn recent(&self, after: Seq) -> Option<Fetched> {
        let At { seq, chain } = self.at?;
        if after >= seq {
            return None;
        }
        let begin = self.ring.partition_point(|run| run.last() <= after);
        let whole = self.ring.get(begin).is_some_and(|run| run.first() <= after.next());
        let tip = Position { incarnation: self.incarnation, seq, chain: chain? };
        whole.then(|| Fetched { runs: self.ring.range(begin..).cloned().collect(), tip })
    }

    fn delta(
        &mut self,
        now: Duration,
        epoch: Epoch,
        incarnation: Incarnation,
        run: SharedRun,
        out: &mut Vec<Effect>,
    ) -> Result<(), Forked> {
        if !self.is_current(epoch, incarnation)? {
            return Ok(());
        }
        self.heard(now);
        self.offer(now, run, out)
    }

    fn tip(&mut self, now: Duration, epoch: Epoch, position: &Position) -> Result<(), Forked> {
        if !self.is_current(epoch, position.incarnation)? {
            return Ok(());
        }
        self.heard(now);
        self.seen(now, position)
    }

    fn seen(&mut self, now: Duration, position: &Position) -> Result<(), Forked> {
        if position.incarnation != self.incarnation {
            return Err(Forked);
        }
        let Some(at) = self.at else {
            self.newest = self.newest.max(position.seq);
            self.at = Some(At { seq: position.seq, chain: Some(position.chain) });
            return Ok(());
        };
        if position.seq > at.seq {
            self.newest = self.newest.max(position.seq);
            self.gap_since.get_or_insert(now);
        }
        match self.chain_at(position.seq) {
            Some(chain) if chain != position.chain => Err(Forked),
            _ => Ok(()),
        }
    }

    fn suspect(&mut self, now: Duration) {
        if self.fetch == Fetch::Idle && self.at.is_some() {
            self.fetch = Fetch::Due(now);
        }
    }

    /// An owner of an older epoch is no longer listened to: what it says is true, but the log tells it too.
    fn is_current(&mut self, epoch: Epoch, incarnation: Incarnation) -> Result<bool, Forked> {
        if epoch < self.epoch {
            return Ok(false);
        }
        self.epoch = epoch;
        if incarnation != self.incarnation { Err(Forked) } else { Ok(true) }
    }

    fn heard(&mut self, now: Duration) {
        self.heard_at = now;
        self.silence = self.config.silence_max;
    }

    /// Delivers the run if it is the next, with what was waiting for it; holds it if it is ahead.
    fn offer(&mut self, now: Duration, run: SharedRun, out: &mut Vec<Effect>) -> Result<(), Forked> {
        self.newest = self.newest.max(run.last());
        let at = *self.at.get_or_insert(At { seq: Seq(run.first().0 - 1), chain: None });
        if run.last() <= at.seq {
            return match self.chain_at(run.last()) {
                Some(chain) if chain != run.chain() => Err(Forked),
                _ => Ok(()),
            };
        }
        if run.first() > at.seq.next() {
            self.hold(now, run);
            return Ok(());
        }
        self.deliver(run, out);
        while let Some(entry) = self.held.first_entry()
            && self.at.is_some_and(|at| *entry.key() <= at.seq.next())
        {
            let run = entry.remove();
            self.held_bytes -= run.bytes();
            if self.at.is_some_and(|at| run.last() > at.seq) {
                self.deliver(run, out);
            } else if self.chain_at(run.last()).is_some_and(|chain| chain != run.chain()) {
                return Err(Forked);
            }
        }
        self.gap_since = self.at.filter(|at| at.seq < self.newest).map(|_| now);
        Ok(())
    }

    fn deliver(&mut self, run: SharedRun, out: &mut Vec<Effect>) {
        self.at = Some(At { seq: run.last(), chain: Some(run.chain()) });
        self.ring_bytes += run.bytes();
        self.ring.push_back(run.clone());
        while self.ring.len() > self.config.ring_runs_max || self.ring_bytes > self.config.ring_bytes_max {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= oldest.bytes();
        }
        out.push(Effect::Deliver(run));
    }

    /// Of two runs that begin at one seq, keeps the longer. What does not fit is left to the fetch.
    fn hold(&mut self, now: Duration, run: SharedRun) {
        self.gap_since.get_or_insert(now);
        if self.held.get(&run.first()).is_some_and(|held| held.last() >= run.last()) {
            return;
        }
        let fits = self.held.len() < self.config.held_runs_max
            && self.held_bytes + run.bytes() <= self.config.held_bytes_max;
        if !fits {
            if self.fetch == Fetch::Idle {
                self.fetch = Fetch::Due(now);
            }
            return;
        }
        self.held_bytes += run.bytes();
        if let Some(shorter) = self.held.insert(run.first(), run) {
            self.held_bytes -= shorter.bytes();
        }
    }

    fn fetched(
        &mut self,
        now: Duration,
        result: Result<Fetched, Refusal>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Forked> {
        if self.fetch != Fetch::Asked {
            return Ok(());
        }
        self.fetch = Fetch::Idle;
        self.heard_at = now;
        let before = self.at.map(|at| at.seq);
        match result {
            Ok(Fetched { runs, tip }) => {
                for run in runs {
                    self.offer(now, run, out)?;
                }
                self.seen(now, &tip)?;
            }
            Err(refusal) if refusal.code.retry() == Retry::Later || refusal.code == Code::Internal => {
                self.fetch = Fetch::Due(now + self.backoff.next(&mut self.random));
                return Ok(());
            }
            Err(_) => return Err(Forked),
        }
        let behind = self.at.is_some_and(|at| at.seq < self.newest);
        if self.at.map(|at| at.seq) > before {
            self.backoff.reset();
            self.silence = self.config.silence_max;
            if behind {
                self.fetch = Fetch::Due(now);
            }
        } else if behind {
            self.fetch = Fetch::Due(now + self.backoff.next(&mut self.random));
        } else {
            self.silence = (self.silence * 2).min(self.config.silence_ceiling);
        }
        Ok(())
    }

    fn settle(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let silent = now >= self.heard_at + self.silence;
        let gap = self.gap_since.is_some_and(|since| now >= since + self.config.gap_max);
        if self.fetch == Fetch::Idle && (silent || gap) {
            self.fetch = Fetch::Due(now);
        }
        if let Fetch::Due(at) = self.fetch
            && now >= at
        {
            self.fetch = Fetch::Asked;
            self.gap_since = None;
            // Without a position nothing was delivered yet: everything from the start would be too much.
            let after = self.at.map_or(Seq(0), |at| at.seq);
            out.push(Effect::Fetch { after, incarnation: self.incarnation });
        }
    }

    fn chain_at(&self, seq: Seq) -> Option<Chain> {
        let at = self.at?;
        if seq == at.seq {
            return at.chain;
        }
        let run = self.ring.get(self.ring.partition_point(|run| run.last() < seq))?;
        (run.last() == seq).then(|| run.chain())
    }
}

/// The history is not the one that was followed.
struct Forked;
