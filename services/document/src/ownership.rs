//! Which partitions this node claims, renews and lets go: a pure machine.
//!
//! Nodes never talk to each other about it. Each says in the log that it lives, each computes from the same
//! list of members who should have which partition, and the log's leases settle whoever disagrees for a
//! moment. Nothing here protects the log: that does the epoch, in the append. What is decided here is who
//! *serves*, and that a partition is never without a server for long.
//!
//! A lease is measured on this node's own clock from the *start* of the last renewal that succeeded, so the
//! log never thinks it over before we do, and we stop serving [`Times::margin`] earlier still.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use manyhands_proto::{Epoch, NodeId, PartitionId};

/// How long things last.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long a lease and a membership are good for after their last renewal.
    pub lease: Duration,
    /// How often both are renewed.
    pub renew: Duration,
    /// How long before a lease runs out its partition is no longer served.
    pub margin: Duration,
    /// How often the owner repeats its routes.
    pub announce: Duration,
}

/// A partition's owner as somebody said it; `owner` is `None` when nobody has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which partition.
    pub partition: PartitionId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// Who has it.
    pub owner: Option<NodeId>,
}

/// The calls that the machine asks for, one of a kind at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// [`Effect::Join`].
    Join,
    /// [`Effect::Look`].
    Look,
    /// [`Effect::Claim`].
    Claim,
    /// [`Effect::Renew`].
    Renew,
    /// [`Effect::Release`].
    Release,
}

/// What happens to the machine. `started` is when the call was made, on the clock of `now`.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// The members, this node included.
    Joined {
        /// All that live.
        members: Vec<NodeId>,
    },
    /// Every partition's owner, from the log.
    Looked {
        /// As the log has them.
        routes: Vec<Route>,
    },
    /// Which of the claimed partitions were won.
    Claimed {
        /// When the claim was sent.
        started: Duration,
        /// Won, with their new epochs.
        won: Vec<(PartitionId, Epoch)>,
    },
    /// A renewal came back.
    Renewed {
        /// When it was sent.
        started: Duration,
        /// What it asked for.
        asked: Vec<(PartitionId, Epoch)>,
        /// What is no longer ours.
        lost: Vec<PartitionId>,
    },
    /// Leases were ended.
    Released {
        /// Which.
        released: Vec<(PartitionId, Epoch)>,
    },
    /// A call failed; it is made again when it is due.
    Failed(Call),
    /// Other nodes said on the bus what they own or have let go.
    Heard {
        /// What they said.
        routes: Vec<Route>,
    },
    /// A partition's writer has ended: after [`Effect::Stop`], or by itself because it was fenced or failed.
    Ended {
        /// Which.
        partition: PartitionId,
        /// The epoch that it wrote under.
        epoch: Epoch,
    },
    /// This node leaves: nothing is claimed any more, everything is let go.
    Drain,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Say in the log that this node lives, and ask who else does.
    Join,
    /// Take this node out of the members.
    Leave,
    /// Read who owns what.
    Look,
    /// Claim these.
    Claim(Vec<PartitionId>),
    /// Renew these.
    Renew(Vec<(PartitionId, Epoch)>),
    /// End these leases.
    Release(Vec<(PartitionId, Epoch)>),
    /// Start a writer; it serves until the given time unless it is extended.
    Serve {
        /// Which partition.
        partition: PartitionId,
        /// Under which epoch.
        epoch: Epoch,
        /// When it stops by itself.
        until: Duration,
    },
    /// The lease was renewed: the writer serves until then.
    Extend {
        /// Which partition.
        partition: PartitionId,
        /// When it stops by itself.
        until: Duration,
    },
    /// End the partition's writer: it finishes the append under way and nothing else.
    Stop(PartitionId),
    /// Say on the bus who owns these.
    Announce(Vec<Route>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// The writer was told to end.
    Stopping,
    /// The writer has ended; the lease is still to be released.
    Ended,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    epoch: Epoch,
    /// When the lease runs out, at the earliest.
    until: Duration,
    phase: Phase,
}

/// The machine of one node.
#[derive(Debug)]
pub struct Ownership {
    me: NodeId,
    times: Times,
    members: BTreeSet<NodeId>,
    /// Who owns what, as far as is known here.
    known: BTreeMap<PartitionId, (Epoch, Option<NodeId>)>,
    held: BTreeMap<PartitionId, Held>,
    calls: BTreeSet<Call>,
    /// A join that is under way may not show what was just heard: make another.
    join_again: bool,
    joined_at: Option<Duration>,
    renewed_at: Option<Duration>,
    announced_at: Duration,
    draining: bool,
}

impl Ownership {
    /// A node that holds nothing yet.
    #[must_use]
    pub fn new(me: NodeId, times: Times) -> Ownership {
        Ownership {
            me,
            times,
            members: BTreeSet::new(),
            known: BTreeMap::new(),
            held: BTreeMap::new(),
            calls: BTreeSet::new(),
            join_again: false,
            joined_at: None,
            renewed_at: None,
            announced_at: Duration::ZERO,
            draining: false,
        }
    }

    /// Takes one input and writes what follows from it into `out`.
    pub fn handle(&mut self, now: Duration, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Tick => self.tick(now, out),
            Input::Joined { members } => {
                self.calls.remove(&Call::Join);
                if self.draining {
                    // That join may have come after the leaving.
                    out.push(Effect::Leave);
                    return;
                }
                self.members = members.into_iter().collect();
                if std::mem::take(&mut self.join_again) {
                    self.call(Call::Join, Effect::Join, out);
                }
                self.call(Call::Look, Effect::Look, out);
                self.rebalance(out);
            }
            Input::Looked { routes } => {
                self.calls.remove(&Call::Look);
                self.looked(routes, out);
                self.claim(out);
            }
            Input::Claimed { started, won } => {
                self.calls.remove(&Call::Claim);
                self.won(now, started, won, out);
            }
            Input::Renewed { started, asked, lost } => {
                self.calls.remove(&Call::Renew);
                self.renewed(started, &asked, &lost, out);
            }
            Input::Released { released } => {
                self.calls.remove(&Call::Release);
                self.released(released, out);
            }
            Input::Failed(call) => {
                self.calls.remove(&call);
            }
            Input::Heard { routes } => self.heard(routes, out),
            Input::Ended { partition, epoch } => {
                if let Some(held) = self.held.get_mut(&partition)
                    && held.epoch == epoch
                {
                    held.phase = Phase::Ended;
                }
                self.release(out);
            }
            Input::Drain => {
                if !std::mem::replace(&mut self.draining, true) {
                    out.push(Effect::Leave);
                    self.stop_where(|_, _| true, out);
                }
            }
        }
    }

    /// Whether nothing is held any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many partitions are served here.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.held.values().filter(|held| held.phase == Phase::Serving).count()
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let margin = self.times.margin;
        self.stop_where(|_, held| held.until.saturating_sub(margin) <= now, out);
        let due = |last: Option<Duration>, every: Duration| last.is_none_or(|last| now >= last + every);
        if !self.draining && due(self.joined_at, self.times.renew) && self.call(Call::Join, Effect::Join, out)
        {
            self.joined_at = Some(now);
        }
        if due(self.renewed_at, self.times.renew) {
            // A writer that was told to end may still have an append under way: keep its lease alive.
            let renew: Vec<_> = self
                .held
                .iter()
                .filter(|(_, held)| held.phase != Phase::Ended && held.until > now)
                .map(|(&partition, held)| (partition, held.epoch))
                .collect();
            if !renew.is_empty() && self.call(Call::Renew, Effect::Renew(renew), out) {
                self.renewed_at = Some(now);
            }
        }
        if now >= self.announced_at + self.times.announce {
            self.announced_at = now;
            let routes: Vec<_> = self
                .held
                .iter()
                .filter(|(_, held)| held.phase == Phase::Serving)
                .map(|(&partition, held)| self.mine(partition, held.epoch))
                .collect();
            if !routes.is_empty() {
                out.push(Effect::Announce(routes));
            }
        }
        self.release(out);
        self.claim(out);
    }

    /// Asks for a call unless one of its kind is under way.
    fn call(&mut self, call: Call, effect: Effect, out: &mut Vec<Effect>) -> bool {
        let free = self.calls.insert(call);
        if free {
            out.push(effect);
        }
        free
    }

    fn mine(&self, partition: PartitionId, epoch: Epoch) -> Route {
        Route { partition, epoch, owner: Some(self.me.clone()) }
    }

    /// Takes down what somebody said, unless something newer is known; says whether that was news.
    fn note(&mut self, route: Route) -> bool {
        let known = self.known.entry(route.partition).or_default();
        let said = (route.epoch, route.owner);
        let news = said.0 >= known.0 && said != *known;
        if news {
            *known = said;
        }
        news
    }

    /// Takes down the log's rows. A lease of ours that nothing here knows of is one whose claim we never
    /// heard the end of: it is given back rather than left to run out.
    fn looked(&mut self, routes: Vec<Route>, out: &mut Vec<Effect>) {
        let settled = !self.calls.contains(&Call::Claim);
        let mut orphans = Vec::new();
        for route in routes {
            if settled && route.owner.as_ref() == Some(&self.me) && !self.held.contains_key(&route.partition)
            {
                orphans.push((route.partition, route.epoch));
            }
            self.note(route);
        }
        if !orphans.is_empty() {
            self.call(Call::Release, Effect::Release(orphans), out);
        }
    }

    fn stop_where(&mut self, stop: impl Fn(PartitionId, &Held) -> bool, out: &mut Vec<Effect>) {
        for (&partition, held) in &mut self.held {
            if held.phase == Phase::Serving && stop(partition, held) {
                held.phase = Phase::Stopping;
                out.push(Effect::Stop(partition));
            }
        }
    }

    /// Lets go what belongs to somebody else: the new owner claims it as soon as it is released.
    fn rebalance(&mut self, out: &mut Vec<Effect>) {
        if !self.members.contains(&self.me) {
            return;
        }
        let moved: BTreeSet<PartitionId> = self
            .held
            .keys()
            .copied()
            .filter(|&partition| self.rightful(partition) != Some(&self.me))
            .collect();
        self.stop_where(|partition, _| moved.contains(&partition), out);
    }

    /// Claims what is free and ours by right.
    fn claim(&mut self, out: &mut Vec<Effect>) {
        if self.draining || self.calls.contains(&Call::Claim) {
            return;
        }
        let free: Vec<PartitionId> = self
            .known
            .iter()
            .filter(|(partition, (_, owner))| {
                owner.is_none()
                    && !self.held.contains_key(partition)
                    && self.rightful(**partition) == Some(&self.me)
            })
            .map(|(&partition, _)| partition)
            .collect();
        if !free.is_empty() {
            self.call(Call::Claim, Effect::Claim(free), out);
        }
    }

    fn won(
        &mut self,
        now: Duration,
        started: Duration,
        won: Vec<(PartitionId, Epoch)>,
        out: &mut Vec<Effect>,
    ) {
        let until = started + self.times.lease;
        let served_until = until.saturating_sub(self.times.margin);
        let mut routes = Vec::new();
        for (partition, epoch) in won {
            let route = self.mine(partition, epoch);
            self.note(route.clone());
            if self.draining || served_until <= now {
                self.held.insert(partition, Held { epoch, until, phase: Phase::Ended });
            } else {
                self.held.insert(partition, Held { epoch, until, phase: Phase::Serving });
                out.push(Effect::Serve { partition, epoch, until: served_until });
                routes.push(route);
            }
        }
        if !routes.is_empty() {
            out.push(Effect::Announce(routes));
        }
        self.rebalance(out);
        self.release(out);
        // What was asked for and not won belongs to somebody: the next look says to whom.
    }

    fn renewed(
        &mut self,
        started: Duration,
        asked: &[(PartitionId, Epoch)],
        lost: &[PartitionId],
        out: &mut Vec<Effect>,
    ) {
        for &(partition, epoch) in asked {
            let Some(held) = self.held.get_mut(&partition).filter(|held| held.epoch == epoch) else {
                continue;
            };
            if lost.contains(&partition) {
                if held.phase == Phase::Serving {
                    held.phase = Phase::Stopping;
                    out.push(Effect::Stop(partition));
                }
            } else {
                held.until = held.until.max(started + self.times.lease);
                if held.phase == Phase::Serving {
                    let until = held.until.saturating_sub(self.times.margin);
                    out.push(Effect::Extend { partition, until });
                }
            }
        }
    }

    /// Releases what no writer uses any more. A lease that was lost is released too: the log leaves alone
    /// what is not ours.
    fn release(&mut self, out: &mut Vec<Effect>) {
        let ended: Vec<_> = self
            .held
            .iter()
            .filter(|(_, held)| held.phase == Phase::Ended)
            .map(|(&partition, held)| (partition, held.epoch))
            .collect();
        if !ended.is_empty() {
            self.call(Call::Release, Effect::Release(ended), out);
        }
    }

    fn released(&mut self, released: Vec<(PartitionId, Epoch)>, out: &mut Vec<Effect>) {
        let mut routes = Vec::new();
        for (partition, epoch) in released {
            if self.held.get(&partition).is_some_and(|held| held.epoch == epoch) {
                self.held.remove(&partition);
            }
            let route = Route { partition, epoch, owner: None };
            if self.note(route.clone()) {
                routes.push(route);
            }
        }
        if !routes.is_empty() {
            out.push(Effect::Announce(routes));
        }
        self.release(out);
        self.claim(out);
    }

    fn heard(&mut self, routes: Vec<Route>, out: &mut Vec<Effect>) {
        let mut freed = false;
        for route in routes {
            let free = route.owner.is_none();
            freed |= self.note(route) && free;
        }
        if freed && !self.draining {
            // Whoever lets go may be leaving: who has a right to it is only clear after another join.
            if !self.call(Call::Join, Effect::Join, out) {
                self.join_again = true;
            }
            self.claim(out);
        }
    }

    /// Whose partition it is among the members, by rendezvous: each member draws a number for it, the
    /// highest has it. A member that comes or goes moves its own share and no other.
    fn rightful(&self, partition: PartitionId) -> Option<&NodeId> {
        self.members.iter().max_by_key(|node| draw(node, partition))
    }
}

/// FNV-1a 64 over node and partition, stirred so that close names draw far numbers.
fn draw(node: &NodeId, partition: PartitionId) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in node.0.bytes().chain(partition.0.to_le_bytes()) {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 30;
    hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash ^= hash >> 27;
    hash = hash.wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
