//! Who is told what about whom, and when: the presence of this node's sessions and of their peers elsewhere.
//!
//! A pure machine. Changes are collected for a tick, so that a caret that moves with every key costs one message
//! a tick; the store is written at most once a second and session. Every session is put and announced again each
//! heartbeat, and a peer that was not heard of for [`TTL`] is gone: a lost message heals, a lost node vanishes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::{DocumentName, PartitionId, v1};
use prost::Message;

use super::{ENTRIES_MAX, ENTRY_BYTES_MAX, TTL};

/// How long changes are collected before they are told.
pub const TICK: Duration = Duration::from_millis(50);

/// How often a session's presence is put and announced again although it did not change.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// How often what is due is looked for: heartbeats, puts of what changed, peers that expired.
const SWEEP: Duration = Duration::from_secs(1);

/// How long an entry of the store is not believed after its session was heard to leave.
const GONE: Duration = Duration::from_secs(5);

/// Most bytes of peers in one update; a larger roster comes in several.
const UPDATE_BYTES_MAX: usize = 256 * 1024;

/// One session's place in one open document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Viewer {
    /// The session, as in `Peer.session`.
    pub session: String,
    /// Its channel.
    pub channel: u32,
}

/// What the shell has to do, in this order for each session.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Put into the store for [`TTL`].
    Put {
        /// Where.
        document: DocumentName,
        /// Whose.
        session: String,
        /// A `v1.Peer`.
        entry: Bytes,
    },
    /// Take out of the store.
    Remove {
        /// Where.
        document: DocumentName,
        /// Whose.
        session: String,
    },
    /// Read the document's roster from the store; answer with [`Roster::read`] or [`Roster::read_failed`].
    Read(DocumentName),
    /// Publish on the topic of the document's partition.
    Publish(PartitionId, v1::BusPresence),
    /// Tell a session.
    Update(Viewer, Arc<Changes>),
}

/// What a viewer is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Whether `peers` is the whole roster.
    pub full: bool,
    /// Who is new or has changed.
    pub peers: Vec<v1::Peer>,
    /// Who is gone.
    pub left: Vec<String>,
}

/// A presence was not taken; what was shown before stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// It is larger than [`ENTRY_BYTES_MAX`].
    #[error("a presence has at most {ENTRY_BYTES_MAX} bytes")]
    Bytes,
    /// The document shows [`ENTRIES_MAX`] others already.
    #[error("a document shows at most {ENTRIES_MAX} sessions")]
    Entries,
}

/// The presence in all documents that are open on this node.
#[derive(Debug, Default)]
pub struct Roster {
    documents: BTreeMap<DocumentName, Document>,
    /// Documents with something to tell, which is told when the tick is over.
    restless: BTreeSet<DocumentName>,
    tick_at: Option<Duration>,
    sweep_at: Duration,
}

#[derive(Debug, Default)]
struct Document {
    /// Whether a viewer still waits for its first, full roster.
    viewers: BTreeMap<Viewer, bool>,
    /// Sessions of this node that show something.
    ours: BTreeMap<String, Ours>,
    /// Sessions of other nodes.
    theirs: BTreeMap<String, Theirs>,
    /// Sessions that changed or left since the last tick.
    changed: BTreeSet<String>,
    /// Sessions that left a moment ago.
    gone: BTreeMap<String, Gone>,
    /// The store must be asked.
    unread: bool,
}

#[derive(Debug)]
struct Ours {
    peer: v1::Peer,
    /// Not yet told to other nodes.
    unpublished: bool,
    /// Not yet in the store.
    unstored: bool,
    stored_at: Option<Duration>,
    announced_at: Duration,
}

#[derive(Debug)]
struct Theirs {
    peer: v1::Peer,
    heard_at: Duration,
}

/// One who left: what the store still says of it is not believed for a while, nor, if it was ours, what comes
/// back by the bus.
#[derive(Debug)]
struct Gone {
    until: Duration,
    ours: bool,
}

impl Roster {
    /// A session opened a document: it gets the roster, and from here on what changes.
    pub fn join(&mut self, now: Duration, document: &DocumentName, viewer: Viewer) {
        let unknown = !self.documents.contains_key(document);
        let open = self.documents.entry(document.clone()).or_default();
        open.unread |= unknown;
        open.viewers.insert(viewer, true);
        self.stir(now, document);
    }

    /// A session left a document, and with its last channel there its presence ends.
    pub fn leave(&mut self, now: Duration, document: &DocumentName, viewer: &Viewer, out: &mut Vec<Output>) {
        let Some(open) = self.documents.get_mut(document) else { return };
        open.viewers.remove(viewer);
        if !open.is_open_to(&viewer.session) {
            self.clear(now, document, &viewer.session, out);
        }
        if self.documents.get(document).is_some_and(|open| open.viewers.is_empty()) {
            self.documents.remove(document);
            self.restless.remove(document);
        }
    }

    /// A session of this node shows something in a document that it has open.
    pub fn set(
        &mut self,
        now: Duration,
        document: &DocumentName,
        peer: v1::Peer,
    ) -> Result<(), LimitReached> {
        let Some(open) = self.documents.get_mut(document) else { return Ok(()) };
        if !open.is_open_to(&peer.session) {
            return Ok(());
        }
        if peer.encoded_len() > ENTRY_BYTES_MAX {
            return Err(LimitReached::Bytes);
        }
        let full = open.ours.len() + open.theirs.len() >= ENTRIES_MAX;
        let session = peer.session.clone();
        match open.ours.get_mut(&session) {
            Some(ours) if ours.peer == peer => return Ok(()),
            Some(ours) => {
                ours.peer = peer;
                (ours.unpublished, ours.unstored) = (true, true);
            }
            None if full => return Err(LimitReached::Entries),
            None => {
                let ours =
                    Ours { peer, unpublished: true, unstored: true, stored_at: None, announced_at: now };
                open.ours.insert(session.clone(), ours);
            }
        }
        open.changed.insert(session);
        self.stir(now, document);
        Ok(())
    }

    /// A session of this node shows nothing any more. Others hear of it at once.
    pub fn clear(&mut self, now: Duration, document: &DocumentName, session: &str, out: &mut Vec<Output>) {
        let Some(open) = self.documents.get_mut(document) else { return };
        if open.ours.remove(session).is_none() {
            return;
        }
        open.bury(now, session, true);
        open.changed.insert(session.to_owned());
        out.push(Output::Remove { document: document.clone(), session: session.to_owned() });
        out.push(announcement(document, session, None));
        self.stir(now, document);
    }

    /// Something came by the bus, from this node or another.
    pub fn heard(&mut self, now: Duration, presence: v1::BusPresence) {
        let v1::BusPresence { document, session, peer } = presence;
        let Ok(document) = document.parse::<DocumentName>() else { return };
        let Some(open) = self.documents.get_mut(&document) else { return };
        if open.is_ours(now, &session) {
            return;
        }
        let changed = match peer {
            Some(peer) if peer.session == session => {
                open.gone.remove(&session);
                open.learn(now, peer)
            }
            // An announcement that contradicts itself.
            Some(_) => false,
            None => {
                let known = open.theirs.remove(&session).is_some();
                open.bury(now, &session, false);
                known
            }
        };
        if changed {
            open.changed.insert(session);
            self.stir(now, &document);
        }
    }

    /// The store's roster of a document. What came by the bus is newer and stays.
    pub fn read(&mut self, now: Duration, document: &DocumentName, entries: Vec<(String, Bytes)>) {
        let Some(open) = self.documents.get_mut(document) else { return };
        for (session, entry) in entries {
            let known = open.theirs.contains_key(&session)
                || open.gone.get(&session).is_some_and(|gone| now < gone.until)
                || open.is_ours(now, &session);
            if known || entry.len() > ENTRY_BYTES_MAX {
                continue;
            }
            let Ok(peer) = v1::Peer::decode(entry) else { continue };
            if peer.session == session && open.learn(now, peer) {
                open.changed.insert(session);
            }
        }
        if !open.changed.is_empty() {
            self.stir(now, document);
        }
    }

    /// The store did not answer; it is asked again with the next sweep.
    pub fn read_failed(&mut self, document: &DocumentName) {
        if let Some(open) = self.documents.get_mut(document) {
            open.unread = true;
        }
    }

    /// The sessions that show something in a document; `None` if it is not open here.
    pub fn peers(&self, document: &DocumentName) -> Option<impl Iterator<Item = &v1::Peer>> {
        let open = self.documents.get(document)?;
        let theirs = open.theirs.values().map(|theirs| &theirs.peer);
        Some(open.ours.values().map(|ours| &ours.peer).chain(theirs))
    }

    /// Whether what the store says of a session may be true: it did not leave a moment ago, and is not of this node.
    pub fn believes(&self, now: Duration, document: &DocumentName, peer: &v1::Peer) -> bool {
        self.documents.get(document).is_none_or(|open| {
            let gone = open.gone.get(&peer.session).is_some_and(|gone| now < gone.until);
            !gone && !open.is_ours(now, &peer.session)
        })
    }

    /// The bus lost messages about a partition: the store knows better, as far as it knows anything.
    pub fn lost(&mut self, partition: PartitionId) {
        for (document, open) in &mut self.documents {
            open.unread |= PartitionId::of(document) == partition;
        }
    }

    /// When [`tick`](Self::tick) is due.
    pub fn deadline(&self) -> Option<Duration> {
        let sweep = (!self.documents.is_empty()).then_some(self.sweep_at);
        self.tick_at.into_iter().chain(sweep).min()
    }

    /// Tells what has changed, and does what is due.
    pub fn tick(&mut self, now: Duration, out: &mut Vec<Output>) {
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP;
            self.sweep(now, out);
        }
        if self.tick_at.is_some_and(|at| now >= at) {
            self.tick_at = None;
            for document in std::mem::take(&mut self.restless) {
                if let Some(open) = self.documents.get_mut(&document) {
                    open.tell(now, &document, out);
                }
            }
        }
    }

    fn sweep(&mut self, now: Duration, out: &mut Vec<Output>) {
        let mut restless = Vec::new();
        for (name, open) in &mut self.documents {
            if std::mem::take(&mut open.unread) {
                out.push(Output::Read(name.clone()));
            }
            for (session, ours) in &mut open.ours {
                // A session that has not been stored yet is stored by the tick.
                let Some(stored_at) = ours.stored_at else { continue };
                let beat = now >= stored_at + HEARTBEAT;
                if beat || ours.unstored {
                    out.push(ours.store(now, name, session));
                }
                if now >= ours.announced_at + HEARTBEAT {
                    ours.announced_at = now;
                    out.push(announcement(name, session, Some(&ours.peer)));
                }
            }
            open.gone.retain(|_, gone| now < gone.until);
            let changed = &mut open.changed;
            let before = changed.len();
            open.theirs.retain(|session, theirs| {
                let alive = now < theirs.heard_at + TTL;
                if !alive {
                    changed.insert(session.clone());
                }
                alive
            });
            if changed.len() > before {
                restless.push(name.clone());
            }
        }
        for document in restless {
            self.stir(now, &document);
        }
    }

    fn stir(&mut self, now: Duration, document: &DocumentName) {
        self.restless.insert(document.clone());
        self.tick_at.get_or_insert(now + TICK);
    }
}

impl Document {
    /// Whether a session of this node has the document open, on any channel.
    fn is_open_to(&self, session: &str) -> bool {
        let first = Viewer { session: session.to_owned(), channel: 0 };
        self.viewers.range(first..).next().is_some_and(|(viewer, _)| viewer.session == session)
    }

    /// Whether this node knows best about a session.
    fn is_ours(&self, now: Duration, session: &str) -> bool {
        self.ours.contains_key(session)
            || self.is_open_to(session)
            || self.gone.get(session).is_some_and(|gone| gone.ours && now < gone.until)
    }

    fn bury(&mut self, now: Duration, session: &str, ours: bool) {
        if self.gone.len() < ENTRIES_MAX {
            self.gone.insert(session.to_owned(), Gone { until: now + GONE, ours });
        }
    }

    /// Whether it is news.
    fn learn(&mut self, now: Duration, peer: v1::Peer) -> bool {
        if peer.encoded_len() > ENTRY_BYTES_MAX {
            return false;
        }
        let full = self.ours.len() + self.theirs.len() >= ENTRIES_MAX;
        match self.theirs.get_mut(&peer.session) {
            Some(theirs) => {
                theirs.heard_at = now;
                let news = theirs.peer != peer;
                theirs.peer = peer;
                news
            }
            None if full => false,
            None => {
                self.theirs.insert(peer.session.clone(), Theirs { peer, heard_at: now });
                true
            }
        }
    }

    fn tell(&mut self, now: Duration, name: &DocumentName, out: &mut Vec<Output>) {
        if std::mem::take(&mut self.unread) {
            out.push(Output::Read(name.clone()));
        }
        let changed = std::mem::take(&mut self.changed);
        for session in &changed {
            let Some(ours) = self.ours.get_mut(session) else { continue };
            if std::mem::take(&mut ours.unpublished) {
                ours.announced_at = now;
                out.push(announcement(name, session, Some(&ours.peer)));
            }
            if ours.stored_at.is_none() {
                out.push(ours.store(now, name, session));
            }
        }

        let news = self.updates(&changed);
        for (viewer, is_new) in &self.viewers {
            let own;
            let updates = if *is_new {
                own = self.roster_for(&viewer.session);
                &own
            } else if changed.contains(&viewer.session) {
                // Nobody is told about oneself.
                let others = changed.iter().filter(|session| **session != viewer.session).cloned().collect();
                own = self.updates(&others);
                &own
            } else {
                &news
            };
            out.extend(updates.iter().map(|update| Output::Update(viewer.clone(), update.clone())));
        }
        self.viewers.values_mut().for_each(|is_new| *is_new = false);
    }

    fn updates(&self, changed: &BTreeSet<String>) -> Vec<Arc<Changes>> {
        let left: Vec<String> =
            changed.iter().filter(|session| self.peer(session).is_none()).cloned().collect();
        let peers = changed.iter().filter_map(|session| self.peer(session));
        split(Changes { full: false, peers: Vec::new(), left }, peers)
    }

    fn roster_for(&self, session: &str) -> Vec<Arc<Changes>> {
        let ours = self.ours.values().map(|ours| &ours.peer);
        let peers = ours.chain(self.theirs.values().map(|theirs| &theirs.peer));
        let full = Changes { full: true, ..Changes::default() };
        split(full, peers.filter(|peer| peer.session != session))
    }

    fn peer(&self, session: &str) -> Option<&v1::Peer> {
        let ours = self.ours.get(session).map(|ours| &ours.peer);
        ours.or_else(|| self.theirs.get(session).map(|theirs| &theirs.peer))
    }
}

impl Ours {
    fn store(&mut self, now: Duration, document: &DocumentName, session: &str) -> Output {
        self.unstored = false;
        self.stored_at = Some(now);
        let entry = self.peer.encode_to_vec().into();
        Output::Put { document: document.clone(), session: session.to_owned(), entry }
    }
}

/// The first update carries what the peers are added to; none if there is nothing to say.
fn split<'a>(first: Changes, peers: impl Iterator<Item = &'a v1::Peer>) -> Vec<Arc<Changes>> {
    let mut updates = Vec::new();
    let (mut update, mut bytes) = (first, 0);
    for peer in peers {
        let more = peer.encoded_len();
        if bytes + more > UPDATE_BYTES_MAX {
            updates.push(Arc::new(std::mem::take(&mut update)));
            bytes = 0;
        }
        bytes += more;
        update.peers.push(peer.clone());
    }
    if update.full || !update.peers.is_empty() || !update.left.is_empty() {
        updates.push(Arc::new(update));
    }
    updates
}

fn announcement(document: &DocumentName, session: &str, peer: Option<&v1::Peer>) -> Output {
    let presence =
        v1::BusPresence { document: document.to_string(), session: session.to_owned(), peer: peer.cloned() };
    Output::Publish(PartitionId::of(document), presence)
}

#[cfg(test)]
mod tests;
