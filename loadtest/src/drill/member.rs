//! A client that writes and reads, and writes down what it was told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use manyhands_client::{Client, EditError, LocalEdit, Workspace};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant as TokioInstant;
use tokio_util::sync::CancellationToken;

use super::plan::Pause;
use crate::access::Connector;
use crate::checker::{Event, Micros, Token};

/// Where the tokens stand, one a line, and nothing else.
const MAIN: &str = "main";
/// What is typed and deleted beside them.
const SCRATCH: &str = "scratch";
/// Edits without an answer beyond which a writer waits.
const PENDING_MAX: usize = 2_000;
/// A wait for an acknowledgement that is shorter is no pause.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The time, by the clock that the log's database has too.
pub(super) fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Numbers for clients.
#[derive(Debug, Default)]
pub(super) struct ClientNumbers(AtomicU64);

impl ClientNumbers {
    pub(super) fn next(&self) -> u32 {
        u32::try_from(self.0.fetch_add(1, Relaxed)).unwrap_or(u32::MAX)
    }
}

/// What the others may know of it while it runs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Edits that are not acknowledged.
    pub(super) pending: AtomicUsize,
    /// The newest seq that it has.
    pub(super) seq: AtomicU64,
    /// It was told to write no more, and will not.
    pub(super) quiet: AtomicBool,
}

/// What it is told to do.
#[derive(Clone)]
pub(super) struct Orders {
    /// Write no more.
    pub(super) quiet: CancellationToken,
    /// Say what you have and end.
    pub(super) end: CancellationToken,
    /// When the run began.
    pub(super) began: Instant,
}

/// A client of one document, with whoever takes its place when it dies.
pub(super) struct Member {
    pub(super) connector: Connector,
    /// Which edge it prefers.
    pub(super) edge: usize,
    pub(super) numbers: Arc<ClientNumbers>,
    pub(super) document: u16,
    pub(super) name: String,
    /// Writers have numbers of their own; `None` only reads.
    pub(super) writer: Option<u16>,
    /// Edits a second.
    pub(super) rate: f64,
    /// One of so many edits is the last of its client.
    pub(super) dies_each: u32,
    pub(super) seed: u64,
    pub(super) progress: Arc<Progress>,
}

/// What it wrote down.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) events: Vec<Event>,
    pub(super) pauses: Vec<Pause>,
    /// Connections beyond each client's first.
    pub(super) reconnects: u64,
    /// Clients that died in the middle of it.
    pub(super) died: u64,
    /// Why edits could not be made or were refused, the first of each kind.
    pub(super) trouble: Vec<String>,
}

/// One client while it lives.
struct Life {
    client: Client,
    workspace: Workspace,
    number: u32,
    replica: u64,
    next_counter: u64,
    acked: u64,
    /// First counters and ends of what is not acknowledged.
    waiting: VecDeque<(u64, u64)>,
    waits_since: Option<Instant>,
    seq: u64,
    /// When it had the newest seq.
    seq_at: Micros,
}

impl Member {
    /// Runs until it is told to end.
    pub(super) async fn run(self, orders: Orders) -> Notes {
        let mut notes = Notes::default();
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut written = 0;
        let mut life = self.begin(&mut notes);
        let mut changes = life.workspace.changes();
        let period = Duration::from_secs_f64(1.0 / self.rate.max(0.001));
        let mut due = TokioInstant::now() + period.mul_f64(random.random());
        loop {
            let writes = self.writer.is_some() && !orders.quiet.is_cancelled();
            if !writes {
                // Whoever waits for this must see what is pending from now on.
                self.progress.quiet.store(true, SeqCst);
            }
            tokio::select! {
                biased;
                () = orders.end.cancelled() => break,
                () = orders.quiet.cancelled(), if writes => {}
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(due), if writes => {
                    // What was missed while this machine was busy is not made up for.
                    due = (due + period).max(TokioInstant::now());
                    self.write(&mut life, &mut written, &mut random, &mut notes);
                    if self.dies_each > 0 && random.random_ratio(1, self.dies_each) {
                        self.look(&mut life, &orders, &mut notes);
                        notes.events.push(Event::Gone { client: life.number });
                        notes.died += 1;
                        notes.reconnects += life.client.moved().connections.saturating_sub(1);
                        life = self.begin(&mut notes);
                        changes = life.workspace.changes();
                    }
                }
            }
            self.look(&mut life, &orders, &mut notes);
        }
        self.look(&mut life, &orders, &mut notes);
        notes.reconnects += life.client.moved().connections.saturating_sub(1);
        let (state, shown) = life
            .workspace
            .read(|document| (document.state_hash(), document.text(MAIN).map(|text| text.to_string())));
        let mut tokens = Vec::new();
        for line in shown.unwrap_or_default().lines() {
            match line.parse::<Token>() {
                Ok(token) => tokens.push(token),
                Err(_) => trouble(&mut notes, format!("{}: a line is no token: {line:?}", self.name)),
            }
        }
        let (client, document, at) = (life.number, self.document, life.seq_at);
        notes.events.push(Event::Final { client, document, state, tokens, at });
        notes
    }

    fn begin(&self, notes: &mut Notes) -> Life {
        let client = self.connector.any(self.edge);
        let workspace = match client.open(&self.name) {
            Ok(workspace) => workspace,
            // The names are ours.
            Err(error) => unreachable!("{}: {error}", self.name),
        };
        let _ = &notes;
        Life {
            replica: workspace.replica().0,
            client,
            workspace,
            number: self.numbers.next(),
            next_counter: 0,
            acked: 0,
            waiting: VecDeque::new(),
            waits_since: None,
            seq: 0,
            seq_at: now(),
        }
    }

    /// One change: a token, and now and then something beside it.
    fn write(&self, life: &mut Life, written: &mut u32, random: &mut StdRng, notes: &mut Notes) {
        let Some(writer) = self.writer else { return };
        // What a writer adds must be on top of what it wrote before, or nobody could tell its order.
        if life.waiting.len() >= PENDING_MAX || life.workspace.replica().0 != life.replica {
            return;
        }
        let token = Token { document: self.document, writer, number: *written };
        let (line, beside) = (random.random::<f64>(), random.random_range(0..4));
        let made = life.workspace.edit(|edit| {
            let at = edit.text(MAIN).map_or(0, |text| {
                let line = (line * text.lines() as f64) as usize;
                text.at_line_column(line, 0).unwrap_or(0)
            });
            edit.insert(MAIN, at, &format!("{token}\n"))?;
            let len = edit.text(SCRATCH).map_or(0, |text| text.len());
            match beside {
                0 => edit.insert(SCRATCH, len / 2, "to and fro "),
                1 if len > 20 => edit.delete(SCRATCH, len / 3..len / 3 + 9),
                _ => Ok(()),
            }
        });
        match made {
            Ok(()) => {
                let next = life
                    .workspace
                    .read(|document| document.next_counter(manyhands_client::ReplicaId(life.replica)));
                *written += 1;
                life.waiting.push_back((life.next_counter, next));
                life.waits_since.get_or_insert_with(Instant::now);
                notes.events.push(Event::Sent {
                    client: life.number,
                    document: self.document,
                    replica: life.replica,
                    counter: life.next_counter,
                    next_counter: next,
                    token,
                });
                life.next_counter = next;
                self.progress.pending.store(life.waiting.len(), SeqCst);
            }
            Err(EditError::Reloading) => {}
            Err(error) => trouble(notes, format!("{}: an edit was not made: {error}", self.name)),
        }
    }

    /// Notes what has changed.
    fn look(&self, life: &mut Life, orders: &Orders, notes: &mut Notes) {
        let status = life.workspace.status();
        let (client, document) = (life.number, self.document);
        if status.seq != life.seq {
            (life.seq, life.seq_at) = (status.seq, now());
            self.progress.seq.store(status.seq, Relaxed);
        }
        let replica = life.workspace.replica().0;
        let acked = life.workspace.acked();
        if replica == life.replica && acked > life.acked {
            life.acked = acked;
            let at = now();
            notes.events.push(Event::Acked { client, document, replica, next_counter: acked, at });
            while life.waiting.pop_front_if(|(_, next)| *next <= acked).is_some() {}
            let here = Instant::now();
            if let Some(since) = life.waits_since.take()
                && here.duration_since(since) >= PAUSE_MIN
            {
                let from = since.saturating_duration_since(orders.began);
                notes.pauses.push(Pause { from, until: here.saturating_duration_since(orders.began) });
            }
            life.waits_since = (!life.waiting.is_empty()).then_some(here);
        }
        for refused in life.workspace.take_refused() {
            let is_token = |edit: &&LocalEdit| matches!(edit, LocalEdit::Insert { text, .. } if text == MAIN);
            let returned = refused.edits.iter().filter(is_token).count();
            let first = life.waiting.len().saturating_sub(returned);
            let from = life.waiting.get(first).map_or(life.next_counter, |(counter, _)| *counter);
            life.waiting.truncate(first);
            let replica = life.replica;
            let returned = returned as u64;
            notes.events.push(Event::Refused { client, document, replica, from, returned });
            trouble(notes, format!("{}: edits were refused: {}", self.name, refused.message));
        }
        if replica != life.replica && life.waiting.is_empty() {
            (life.replica, life.next_counter, life.acked) = (replica, 0, 0);
        }
        if let Some(evicted) = status.evicted {
            trouble(notes, format!("{}: the server closed it: {}", self.name, evicted.message));
        }
        self.progress.pending.store(life.waiting.len(), SeqCst);
    }
}

fn trouble(notes: &mut Notes, what: String) {
    if notes.trouble.len() < 20 && !notes.trouble.contains(&what) {
        notes.trouble.push(what);
    }
}
