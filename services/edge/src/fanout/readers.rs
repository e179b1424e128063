//! The sessions of a document that speak JSON, and the mirror that they share: how it is made, fed, and given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use manyhands_crdt::{Hash, Strategy};
use manyhands_proto::{Code, DocumentName, Epoch, Incarnation, PartitionId, Position, Seq, v1};
use manyhands_session::edge::{ChannelId, Input};
use manyhands_session::json::{Mirror, Missed, SharedOp};
use manyhands_session::{Refusal, SharedRun};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::documents::{Document, LINGER, send_surely};
use super::{Comer, Partition, SUBSCRIBE_MAX, Seat, Shared, own_grant};
use crate::router::{OpenedDocument, refusal};

/// How often a mirror is made anew because the feed had moved on meanwhile.
const LOADS_MAX: u32 = 5;
/// The pause before that, times the number of attempts so far.
const AGAIN: Duration = Duration::from_millis(50);

/// A session in the JSON dialect that has a document open.
pub(crate) struct Reader {
    pub(crate) channel: ChannelId,
    pub(crate) inbox: mpsc::Sender<Input>,
    /// How the document must merge.
    pub(crate) strategy: Option<Strategy>,
    /// What it has already.
    pub(crate) heads: Vec<Hash>,
}

/// The JSON sessions of one document.
#[derive(Default)]
pub(super) struct Readers {
    mirror: Option<Box<Mirror>>,
    loading: bool,
    seated: BTreeMap<u64, Seated>,
    vacant_since: Option<Instant>,
}

struct Seated {
    reader: Reader,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Waits for the mirror.
    Waiting,
    /// Has its state, and is told what changes.
    Started,
    /// The same, and its inbox was full when there was something to be told.
    Missed,
    /// Was told that it gets nothing, and will go.
    Refused,
}

impl Readers {
    pub(super) fn add(&mut self, number: u64, reader: Reader) {
        self.vacant_since = None;
        self.seated.insert(number, Seated { reader, progress: Progress::Waiting });
    }

    pub(super) fn remove(&mut self, number: u64) {
        if self.seated.remove(&number).is_some() && self.seated.is_empty() {
            self.vacant_since = Some(Instant::now());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seated.is_empty()
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.seated.values().any(|seated| seated.progress == Progress::Waiting)
    }

    /// Gives the state to those who wait for it, if it is there.
    pub(super) fn welcome(&mut self) {
        let Some(mirror) = &mut self.mirror else { return };
        for seated in self.seated.values_mut().filter(|seated| seated.progress == Progress::Waiting) {
            let Reader { channel, inbox, strategy, heads } = &mut seated.reader;
            let result = match *strategy {
                Some(asked) if asked != mirror.strategy() => {
                    let has = mirror.strategy();
                    Err(Refusal::new(
                        Code::StrategyMismatch,
                        format!("this workspace merges by {has}, and {asked} was asked for"),
                    ))
                }
                _ if heads.is_empty() => mirror.state(),
                // Once: it tells what the client had when it came.
                _ => mirror.state_since(&std::mem::take(heads)),
            };
            seated.progress = if result.is_ok() { Progress::Started } else { Progress::Refused };
            send_surely(inbox, Input::Mirrored { channel: *channel, result });
        }
    }

    /// Feeds the mirror, and tells what it makes of the run. How many were told.
    pub(super) fn deliver(&mut self, run: &SharedRun) -> u64 {
        let Some(mirror) = &mut self.mirror else { return 0 };
        let ops = match mirror.apply(run) {
            Ok(Some(ops)) => ops,
            Ok(None) => return 0,
            Err(error) => {
                tracing::error!(%error, "a mirror is made anew");
                self.lose();
                return 0;
            }
        };
        let mut delivered = 0;
        for seated in self.seated.values_mut().filter(|seated| seated.progress == Progress::Started) {
            let Reader { channel, inbox, .. } = &seated.reader;
            match inbox.try_send(Input::Ops { channel: *channel, ops: ops.clone() }) {
                Ok(()) => delivered += 1,
                Err(_) => seated.progress = Progress::Missed,
            }
        }
        delivered
    }

    /// Tells those who missed something where the document stands, so that they ask.
    pub(super) fn remind(&mut self, position: Position) {
        for seated in self.seated.values_mut().filter(|seated| seated.progress == Progress::Missed) {
            let Reader { channel, inbox, .. } = &seated.reader;
            if inbox.try_send(Input::TipSeen { channel: *channel, position }).is_ok() {
                seated.progress = Progress::Started;
            }
        }
    }

    /// The mirror is of no use: those who had it wait for another.
    pub(super) fn lose(&mut self) {
        self.mirror = None;
        for seated in self.seated.values_mut().filter(|seated| seated.progress != Progress::Refused) {
            seated.progress = Progress::Waiting;
        }
    }

    /// Gives the mirror up if nobody has needed it for a while, or if it has grown too large. Its bytes.
    pub(super) fn look_after(&mut self) -> usize {
        if self.vacant_since.is_some_and(|since| since.elapsed() >= LINGER) {
            self.mirror = None;
        }
        let Some(mirror) = &self.mirror else { return 0 };
        match mirror.check_memory() {
            Ok(()) => mirror.memory_bytes(),
            Err(refusal) => {
                self.lose();
                self.refuse(&refusal, |_| true);
                0
            }
        }
    }

    pub(super) fn set_mirror(&mut self, mirror: Box<Mirror>) {
        self.mirror = Some(mirror);
        self.loading = false;
    }

    /// Whether a mirror is to be made. If so, it counts as being made.
    fn begin(&mut self) -> bool {
        let begins = self.mirror.is_none() && !self.loading && self.is_waiting();
        self.loading |= begins;
        begins
    }

    /// A strategy that somebody who waits has asked for.
    fn asked(&self) -> Option<Strategy> {
        let mut waiting = self.seated.values().filter(|seated| seated.progress == Progress::Waiting);
        waiting.find_map(|seated| seated.reader.strategy)
    }

    /// Those who wait, and whom `who` takes, get nothing.
    fn refuse(&mut self, refusal: &Refusal, who: impl Fn(&Reader) -> bool) {
        let waiting = self.seated.values_mut().filter(|seated| seated.progress == Progress::Waiting);
        for seated in waiting.filter(|seated| who(&seated.reader)) {
            seated.progress = Progress::Refused;
            let Reader { channel, inbox, .. } = &seated.reader;
            send_surely(inbox, Input::Mirrored { channel: *channel, result: Err(refusal.clone()) });
        }
    }
}

impl Seat {
    /// Waits for the document's mirror, which is made if there is none, or if it is of a history that is `lost`.
    pub(crate) fn join_mirror(&self, lost: Option<Incarnation>) {
        let mut documents = self.partition.lock();
        let Some(open) = documents.by_name.get_mut(&self.document) else { return };
        let readers = &mut open.readers;
        if readers.mirror.as_ref().is_some_and(|mirror| lost == Some(mirror.position().incarnation)) {
            readers.lose();
        }
        if let Some(seated) = readers.seated.get_mut(&self.number) {
            seated.progress = Progress::Waiting;
        }
        readers.welcome();
        self.partition.mend(&self.document, open);
    }

    /// What is to be told to one who repeats an op; nothing if it is not known.
    pub(crate) fn recall(&self, key: &str, timestamp: u64) -> Vec<SharedOp> {
        let documents = self.partition.lock();
        let mirror = documents.by_name.get(&self.document).and_then(|open| open.readers.mirror.as_ref());
        mirror.map(|mirror| mirror.recall(key, timestamp)).unwrap_or_default()
    }

    /// What the mirror has after a seq. If it has nothing, it may be the one that misses something.
    pub(crate) fn missed(&self, after: Seq) -> Result<Option<Missed>, Refusal> {
        let mut documents = self.partition.lock();
        let Some(open) = documents.by_name.get_mut(&self.document) else { return Ok(None) };
        let Some(mirror) = &mut open.readers.mirror else { return Ok(None) };
        let missed = mirror.since(after)?;
        if missed.is_none() {
            self.partition.suspect_one(&self.document, open);
        }
        Ok(missed)
    }
}

impl Partition {
    /// Sees to it that those who wait for a mirror get one.
    pub(super) fn mend(&self, name: &DocumentName, open: &mut Document) {
        if open.readers.begin() {
            tokio::spawn(load(Arc::clone(&self.shared), name.clone()));
        }
    }

    /// What came of an attempt to make a mirror. True if it is to be tried again.
    fn loaded(
        &self,
        name: &DocumentName,
        asked: Option<Strategy>,
        result: Result<(Box<Mirror>, Epoch), Refusal>,
    ) -> bool {
        let mut documents = self.lock();
        let Some(open) = documents.by_name.get_mut(name) else { return false };
        if !open.readers.is_waiting() {
            open.readers.loading = false;
            return false;
        }
        match result {
            Ok((mirror, epoch)) => {
                let (position, bytes) = (mirror.position(), mirror.memory_bytes());
                let begun = self.start(&mut documents, name, position, epoch, Comer::Mirror(mirror));
                if begun {
                    self.mirror_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                !begun
            }
            Err(refusal) if refusal.code == Code::StrategyMismatch && asked.is_some() => {
                open.readers.refuse(&refusal, |reader| reader.strategy == asked);
                open.readers.loading = open.readers.is_waiting();
                open.readers.loading
            }
            Err(refusal) => {
                open.readers.loading = false;
                open.readers.refuse(&refusal, |_| true);
                false
            }
        }
    }
}

impl Shared {
    fn partition(&self, id: PartitionId) -> Option<Arc<Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Whether there is room for a mirror of so many bytes.
    fn admit_mirror(&self, bytes: usize) -> Result<(), Refusal> {
        let taken: usize = {
            let partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
            partitions.values().map(|partition| partition.mirror_bytes.load(Ordering::Relaxed)).sum()
        };
        if taken.saturating_add(bytes) > self.mirrors.all_bytes_max {
            let why = "this edge holds as much for JSON sessions as it may";
            return Err(Refusal { message: why.to_owned(), ..refusal(Code::Overloaded) });
        }
        Ok(())
    }

    /// Reads a document from its owner.
    async fn mirror(
        &self,
        document: &DocumentName,
        asked: Option<Strategy>,
    ) -> Result<(Box<Mirror>, Epoch), Refusal> {
        let strategy = asked.and_then(|strategy| v1::Strategy::try_from(i32::from(strategy.code())).ok());
        let request = v1::OpenRequest {
            document: document.to_string(),
            grant: Some(own_grant(document)),
            strategy: strategy.unwrap_or_default().into(),
            ..v1::OpenRequest::default()
        };
        let OpenedDocument { opened, epoch } = self.router.open(request).await?;
        let limits = self.mirrors.each;
        let made = tokio::task::spawn_blocking(move || Mirror::new(opened, limits)).await;
        let mirror = made.map_err(|error| Refusal::new(Code::Internal, error.to_string()))??;
        self.admit_mirror(mirror.memory_bytes())?;
        Ok((Box::new(mirror), epoch))
    }
}

/// Makes the mirror of a document for those who wait for it, or tells them why there is none.
async fn load(shared: Arc<Shared>, document: DocumentName) {
    let id = PartitionId::of(&document);
    for attempt in 1..=LOADS_MAX {
        let Some(partition) = shared.partition(id) else { return };
        // As for any other session: subscribed first, then asked.
        let mut subscribed = partition.subscribed.subscribe();
        let _ = tokio::time::timeout(SUBSCRIBE_MAX, subscribed.wait_for(|subscribed| *subscribed)).await;
        let asked = partition.lock().by_name.get(&document).and_then(|open| open.readers.asked());
        let result = shared.mirror(&document, asked).await;
        if !partition.loaded(&document, asked, result) {
            partition.stirred.notify_one();
            return;
        }
        sleep(AGAIN * attempt).await;
    }
    if let Some(partition) = shared.partition(id) {
        let why = refusal(Code::Unavailable);
        let _ = partition.loaded(&document, None, Err(why));
    }
}
