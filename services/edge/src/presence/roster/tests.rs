use super::*;

const MS: Duration = Duration::from_millis(1);

fn doc(name: &str) -> DocumentName {
    name.parse().unwrap()
}

fn viewer(session: &str) -> Viewer {
    Viewer { session: session.into(), channel: 1 }
}

fn peer(session: &str, data: impl ToString) -> v1::Peer {
    v1::Peer { session: session.into(), data: data.to_string().into(), ..v1::Peer::default() }
}

fn bus(session: &str, peer: Option<v1::Peer>) -> v1::BusPresence {
    v1::BusPresence { document: "d".into(), session: session.into(), peer }
}

/// One node at its own clock, its outputs as short lines.
struct Node {
    roster: Roster,
    now: Duration,
    out: Vec<Output>,
}

impl Node {
    fn new() -> Node {
        Node { roster: Roster::default(), now: Duration::ZERO, out: Vec::new() }
    }

    /// A node where these sessions have opened `d` and were given the roster.
    fn with(sessions: &[&str]) -> Node {
        let mut node = Node::new();
        for session in sessions {
            node.roster.join(node.now, &doc("d"), viewer(session));
        }
        node.after(TICK);
        node
    }

    fn set(&mut self, session: &str, data: impl ToString) -> Result<(), LimitReached> {
        self.roster.set(self.now, &doc("d"), peer(session, data))
    }

    fn heard(&mut self, presence: v1::BusPresence) {
        self.roster.heard(self.now, presence);
    }

    /// Lets time pass, ticking when it is due.
    fn after(&mut self, time: Duration) -> Vec<String> {
        let end = self.now + time;
        while let Some(at) = self.roster.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.roster.tick(self.now, &mut self.out);
        }
        self.now = end;
        self.lines()
    }

    fn lines(&mut self) -> Vec<String> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let shown = |peer: &v1::Peer| format!("{}={}", peer.session, text(&peer.data));
        std::mem::take(&mut self.out)
            .into_iter()
            .map(|output| match output {
                Output::Put { session, entry, .. } => {
                    let peer = v1::Peer::decode(entry).unwrap();
                    assert_eq!(peer.session, session);
                    format!("put {}", shown(&peer))
                }
                Output::Remove { session, .. } => format!("remove {session}"),
                Output::Read(document) => format!("read {document}"),
                Output::Publish(partition, presence) => {
                    assert_eq!(partition, PartitionId::of(&doc(&presence.document)));
                    match presence.peer {
                        Some(peer) => format!("publish {}", shown(&peer)),
                        None => format!("publish {} left", presence.session),
                    }
                }
                Output::Update(viewer, changes) => {
                    let mut line = format!("{}:", viewer.session);
                    line += if changes.full { " full" } else { "" };
                    changes.peers.iter().for_each(|peer| line += &format!(" {}", shown(peer)));
                    changes.left.iter().for_each(|session| line += &format!(" -{session}"));
                    line
                }
            })
            .collect()
    }
}

#[test]
fn one_who_joins_is_given_the_roster() {
    let mut node = Node::new();
    node.roster.join(node.now, &doc("d"), viewer("a"));
    // The sweep at the very first tick asks the store.
    assert_eq!(node.after(TICK), ["read d", "a: full"]);
    node.roster.read(node.now, &doc("d"), vec![("x".into(), peer("x", 1).encode_to_vec().into())]);
    assert_eq!(node.after(TICK), ["a: x=1"]);
    node.roster.join(node.now, &doc("d"), viewer("b"));
    assert_eq!(node.after(TICK), ["b: full x=1"]);
}

#[test]
fn changes_of_a_tick_are_told_once_and_never_to_oneself() {
    let mut node = Node::with(&["a", "b", "c"]);
    for i in 0..10 {
        node.set("a", i).unwrap();
    }
    node.set("b", "x").unwrap();
    assert_eq!(node.after(TICK - MS), [""; 0]);
    assert_eq!(
        node.after(MS),
        ["publish a=9", "put a=9", "publish b=x", "put b=x", "a: b=x", "b: a=9", "c: a=9 b=x"]
    );
    node.set("a", 9).unwrap();
    assert_eq!(node.after(TICK), [""; 0]);
}

#[test]
fn the_store_is_written_once_a_second_and_the_bus_once_a_tick() {
    let mut node = Node::with(&["a"]);
    let mut lines = Vec::new();
    for i in 0..1_000 {
        node.set("a", i).unwrap();
        lines.extend(node.after(5 * MS));
    }
    let puts = lines.iter().filter(|line| line.starts_with("put")).count();
    let published = lines.iter().filter(|line| line.starts_with("publish")).count();
    assert!((5..=7).contains(&puts), "{puts} puts in five seconds");
    assert!((80..=101).contains(&published), "{published} messages in five seconds");
    node.after(SWEEP);
    node.set("a", "last").unwrap();
    assert!(node.after(SWEEP + TICK).contains(&"put a=last".to_owned()));
}

#[test]
fn who_leaves_is_announced_at_once() {
    let mut node = Node::with(&["a", "b"]);
    node.set("a", 1).unwrap();
    node.after(TICK);
    node.roster.leave(node.now, &doc("d"), &viewer("a"), &mut node.out);
    assert_eq!(node.lines(), ["remove a", "publish a left"]);
    assert_eq!(node.after(TICK), ["b: -a"]);

    let second = Viewer { session: "b".into(), channel: 2 };
    node.roster.join(node.now, &doc("d"), second.clone());
    node.set("b", 1).unwrap();
    node.after(TICK);
    node.roster.leave(node.now, &doc("d"), &second, &mut node.out);
    assert_eq!(node.lines(), [""; 0], "its other channel is still open");
    node.roster.leave(node.now, &doc("d"), &viewer("b"), &mut node.out);
    assert_eq!(node.lines(), ["remove b", "publish b left"]);
    assert_eq!(node.roster.deadline().filter(|at| *at > node.now + TICK), None);
    assert!(node.roster.documents.is_empty());
}

#[test]
fn a_clear_without_presence_says_nothing() {
    let mut node = Node::with(&["a"]);
    node.roster.clear(node.now, &doc("d"), "a", &mut node.out);
    node.roster.clear(node.now, &doc("other"), "a", &mut node.out);
    assert_eq!(node.after(TICK), [""; 0]);
    // Nor can one show something where one is not.
    assert_eq!(node.roster.set(node.now, &doc("other"), peer("a", 1)), Ok(()));
    assert_eq!(node.set("stranger", 1), Ok(()));
    assert_eq!(node.after(TICK), [""; 0]);
}

#[test]
fn peers_elsewhere_come_change_and_go() {
    let mut node = Node::with(&["a"]);
    node.heard(bus("x", Some(peer("x", 1))));
    assert_eq!(node.after(TICK), ["a: x=1"]);
    node.heard(bus("x", Some(peer("x", 1))));
    assert_eq!(node.after(TICK), [""; 0]);
    node.heard(bus("x", Some(peer("x", 2))));
    assert_eq!(node.after(TICK), ["a: x=2"]);
    node.heard(bus("x", None));
    assert_eq!(node.after(TICK), ["a: -x"]);
    // A lie, and other documents.
    node.heard(bus("y", Some(peer("z", 1))));
    node.heard(v1::BusPresence { document: "other".into(), ..bus("y", Some(peer("y", 1))) });
    node.heard(v1::BusPresence { document: "not a name".into(), ..bus("y", Some(peer("y", 1))) });
    assert_eq!(node.after(TICK), [""; 0]);
}

#[test]
fn of_its_own_sessions_a_node_knows_best() {
    let mut node = Node::with(&["a", "b", "silent"]);
    node.set("a", 1).unwrap();
    node.after(TICK);
    node.heard(bus("a", None));
    node.heard(bus("a", Some(peer("a", "old"))));
    node.heard(bus("silent", Some(peer("silent", "old"))));
    assert_eq!(node.after(TICK), [""; 0]);
    node.roster.leave(node.now, &doc("d"), &viewer("a"), &mut node.out);
    node.after(TICK);
    node.heard(bus("a", Some(peer("a", 1))));
    let entry = peer("a", 1).encode_to_vec().into();
    node.roster.read(node.now, &doc("d"), vec![("a".into(), entry)]);
    assert_eq!(node.after(TICK), [""; 0]);
}

#[test]
fn a_peer_that_is_not_heard_of_is_gone() {
    let mut node = Node::with(&["a"]);
    node.heard(bus("x", Some(peer("x", 1))));
    node.after(TTL - SWEEP);
    node.heard(bus("x", Some(peer("x", 1))));
    assert_eq!(node.after(TTL - SWEEP), [""; 0]);
    assert_eq!(node.after(SWEEP * 2 + TICK), ["a: -x"]);
}

#[test]
fn a_session_is_put_and_announced_again() {
    let mut node = Node::with(&["a", "b"]);
    node.set("a", 1).unwrap();
    node.after(TICK);
    let lines = node.after(HEARTBEAT * 3 + SWEEP);
    assert_eq!(lines, ["put a=1", "publish a=1", "put a=1", "publish a=1", "put a=1", "publish a=1"]);
}

#[test]
fn the_store_adds_and_never_contradicts() {
    let mut node = Node::with(&["a"]);
    node.set("a", 1).unwrap();
    node.heard(bus("x", Some(peer("x", "new"))));
    node.heard(bus("y", Some(peer("y", 1))));
    node.after(TICK);
    node.heard(bus("y", None));
    node.after(TICK);
    let entry =
        |session: &str, data: &str| (session.to_owned(), Bytes::from(peer(session, data).encode_to_vec()));
    let mut entries = vec![entry("x", "old"), entry("y", "ghost"), entry("a", "me"), entry("z", "1")];
    entries.push(("liar".into(), entry("other", "1").1));
    entries.push(("garbage".into(), Bytes::from_static(&[0xff; 9])));
    node.roster.read(node.now, &doc("d"), entries);
    assert_eq!(node.after(TICK), ["a: z=1"]);
    node.after(GONE);
    node.roster.read(node.now, &doc("d"), vec![entry("y", "back")]);
    assert_eq!(node.after(TICK), ["a: y=back"]);
}

// enforces: I-8
#[test]
fn a_loss_on_the_bus_and_a_store_that_is_away() {
    let mut node = Node::with(&["a"]);
    node.after(SWEEP);
    node.roster.lost(PartitionId::of(&doc("d")));
    node.roster.lost(PartitionId((PartitionId::of(&doc("d")).0 + 1) % 271));
    assert_eq!(node.after(SWEEP), ["read d"]);
    node.roster.read_failed(&doc("d"));
    assert_eq!(node.after(SWEEP), ["read d"]);
    node.roster.read_failed(&doc("nobody"));
    assert_eq!(node.after(SWEEP), [""; 0]);
}

// enforces: I-10
#[test]
fn a_presence_and_a_document_have_limits() {
    let mut node = Node::with(&["a", "b"]);
    assert_eq!(node.set("a", "x".repeat(ENTRY_BYTES_MAX)), Err(LimitReached::Bytes));
    node.heard(bus("x", Some(peer("x", "x".repeat(ENTRY_BYTES_MAX)))));
    assert_eq!(node.after(TICK), [""; 0]);

    node.set("a", 1).unwrap();
    for i in 0..ENTRIES_MAX * 2 {
        let session = format!("x{i}");
        node.heard(bus(&session, Some(peer(&session, 1))));
        node.heard(bus(&format!("gone{i}"), None));
    }
    let open = &node.roster.documents[&doc("d")];
    assert_eq!(open.theirs.len() + open.ours.len(), ENTRIES_MAX);
    assert!(open.gone.len() <= ENTRIES_MAX);
    assert_eq!(node.set("b", 1), Err(LimitReached::Entries));
    assert_eq!(node.set("a", 2), Ok(()));
    node.heard(bus("x0", None));
    assert_eq!(node.set("b", 1), Ok(()));
}

#[test]
fn a_large_roster_comes_in_parts() {
    let mut node = Node::with(&["a"]);
    for i in 0..ENTRIES_MAX {
        let session = format!("x{i:04}");
        node.heard(bus(&session, Some(peer(&session, "x".repeat(2_000)))));
    }
    node.after(TICK);
    node.roster.join(node.now, &doc("d"), viewer("b"));
    node.roster.tick(node.now + TICK, &mut node.out);
    let mut seen = BTreeSet::new();
    let mut parts = 0;
    for output in node.out {
        let Output::Update(viewer, changes) = output else { continue };
        assert_eq!((viewer.session.as_str(), changes.full), ("b", parts == 0));
        assert!(changes.peers.iter().map(v1::Peer::encoded_len).sum::<usize>() <= UPDATE_BYTES_MAX);
        seen.extend(changes.peers.iter().map(|peer| peer.session.clone()));
        parts += 1;
    }
    assert_eq!((seen.len(), parts), (ENTRIES_MAX, 8));
}

/// Nodes that share a store and a bus which drops, repeats and delays, in one thread, from a seed.
struct World {
    random: u64,
    now: Duration,
    nodes: Vec<Roster>,
    /// What every session shows, by node: the truth.
    shown: Vec<BTreeMap<String, Option<v1::Peer>>>,
    /// What every session was told, folded.
    told: BTreeMap<String, BTreeMap<String, v1::Peer>>,
    store: BTreeMap<String, (Duration, Bytes)>,
    /// By arrival: to which node, what.
    on_the_way: BTreeMap<(Duration, u64), (usize, v1::BusPresence)>,
    hostile: bool,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: Duration::ZERO,
            nodes: (0..3).map(|_| Roster::default()).collect(),
            shown: vec![BTreeMap::new(); 3],
            told: BTreeMap::new(),
            store: BTreeMap::new(),
            on_the_way: BTreeMap::new(),
            hostile: true,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % bound
    }

    fn act(&mut self, number: u64) {
        let node = self.below(3) as usize;
        let sessions: Vec<String> = self.shown[node].keys().cloned().collect();
        let some =
            (!sessions.is_empty()).then(|| sessions[self.below(sessions.len() as u64) as usize].clone());
        let mut out = Vec::new();
        match (self.below(10), some) {
            (0..2, _) | (_, None) => {
                let session = format!("{node}-{number}");
                self.nodes[node].join(self.now, &doc("d"), viewer(&session));
                self.shown[node].insert(session.clone(), None);
                self.told.insert(session, BTreeMap::new());
            }
            (2, Some(session)) => {
                self.nodes[node].leave(self.now, &doc("d"), &viewer(&session), &mut out);
                self.shown[node].remove(&session);
                self.told.remove(&session);
            }
            (3, Some(session)) => {
                self.nodes[node].clear(self.now, &doc("d"), &session, &mut out);
                self.shown[node].insert(session, None);
            }
            // The node dies: nobody says good-bye.
            (4, _) if self.hostile && self.below(20) == 0 => {
                self.nodes[node] = Roster::default();
                for session in std::mem::take(&mut self.shown[node]).into_keys() {
                    self.told.remove(&session);
                }
            }
            (5, _) if self.hostile && self.below(20) == 0 => self.store.clear(),
            (_, Some(session)) => {
                let peer = peer(&session, number);
                self.nodes[node].set(self.now, &doc("d"), peer.clone()).unwrap();
                self.shown[node].insert(session, Some(peer));
            }
        }
        self.perform(node, out);
    }

    fn perform(&mut self, node: usize, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Put { session, entry, .. } => {
                    self.store.insert(session, (self.now + TTL, entry));
                }
                Output::Remove { session, .. } => {
                    self.store.remove(&session);
                }
                Output::Read(document) if self.hostile && self.below(4) == 0 => {
                    self.nodes[node].read_failed(&document);
                }
                Output::Read(document) => {
                    let now = self.now;
                    self.store.retain(|_, (until, _)| now < *until);
                    let entries =
                        self.store.iter().map(|(session, (_, entry))| (session.clone(), entry.clone()));
                    self.nodes[node].read(now, &document, entries.collect());
                }
                Output::Publish(_, presence) => {
                    for to in 0..3 {
                        let copies = if self.hostile { self.below(3) } else { 1 };
                        for _ in 0..copies {
                            let delay = if self.hostile { self.below(3_000) } else { 1 };
                            let key = (self.now + MS * delay as u32, self.random);
                            self.on_the_way.insert(key, (to, presence.clone()));
                            self.below(2);
                        }
                    }
                }
                Output::Update(viewer, changes) => {
                    // One that was told nothing any more left in between.
                    let Some(told) = self.told.get_mut(&viewer.session) else { continue };
                    if changes.full {
                        told.clear();
                    }
                    for peer in &changes.peers {
                        assert_ne!(peer.session, viewer.session, "told about oneself");
                        told.insert(peer.session.clone(), peer.clone());
                    }
                    changes.left.iter().for_each(|session| drop(told.remove(session)));
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += MS * 10;
            while let Some(arrival) = self.on_the_way.first_entry().filter(|first| first.key().0 <= self.now)
            {
                let (to, presence) = arrival.remove();
                self.nodes[to].heard(self.now, presence);
            }
            for node in 0..3 {
                if self.nodes[node].deadline().is_some_and(|at| at <= self.now) {
                    let mut out = Vec::new();
                    self.nodes[node].tick(self.now, &mut out);
                    self.perform(node, out);
                }
            }
        }
    }
}

// enforces: I-8
#[test]
fn every_session_sees_every_other_once_the_bus_and_the_store_are_well() {
    for seed in 0..150 {
        let mut world = World::new(seed);
        for number in 0..200 {
            world.act(number);
            let pause = world.below(400);
            world.pass(MS * pause as u32);
        }
        world.hostile = false;
        world.pass(TTL * 2 + SWEEP * 4);
        let all: BTreeMap<String, v1::Peer> = world
            .shown
            .iter()
            .flatten()
            .filter_map(|(session, peer)| Some((session.clone(), peer.clone()?)))
            .collect();
        for (session, told) in &world.told {
            let mut expected = all.clone();
            expected.remove(session);
            assert_eq!(told, &expected, "seed {seed}, session {session}");
        }
        assert!(world.told.len() > 3, "seed {seed} has nobody in it");
    }
}
