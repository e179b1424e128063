//! Recorded histories of people and of another engine, which must end in the recorded text.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::{Sequences, naive};
use crate::id::{Client, Id};

/// The traces beside the repository, when they are there.
fn shared() -> Option<PathBuf> {
    // A second working tree may lie a level deeper.
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let beside = ["../shared/traces", "../../shared/traces"].map(|folder| repository.join(folder));
    beside.into_iter().find(|folder| folder.is_dir())
}

fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces").join(name)
}

fn read(path: &Path) -> Value {
    let mut json = String::new();
    let file = std::fs::File::open(path).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut json).unwrap();
    serde_json::from_str(&json).unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

#[derive(Clone)]
enum Op {
    Insert { id: Id, left: Id, right: Id, content: String },
    Delete(Id, u32),
}

/// What a peer has: its sequence, and which transactions are in it.
#[derive(Clone, Default)]
struct Peer {
    tree: Sequences,
    naive: Option<naive::Sequences>,
    next: BTreeMap<Client, u32>,
}

impl Peer {
    fn new(with_list: bool) -> Peer {
        let mut peer = Peer::default();
        peer.tree.add_text();
        if with_list {
            let mut list = naive::Sequences::default();
            list.add_text();
            peer.naive = Some(list);
        }
        peer
    }

    fn apply(&mut self, op: &Op, key: &impl Fn(Client) -> u64) {
        match op {
            Op::Insert { id, left, right, content } => {
                self.tree.insert(key, 0, *id, *left, *right, content);
                if let Some(list) = &mut self.naive {
                    list.insert(key, 0, *id, *left, *right, content);
                }
            }
            Op::Delete(id, len) => {
                self.tree.delete(*id, *len, None);
                if let Some(list) = &mut self.naive {
                    list.delete(*id, *len, &mut |_, _, _| {});
                }
            }
        }
    }

    /// Makes the ops of one transaction at this peer's state, and applies them.
    fn edit(&mut self, client: Client, patches: &Value, key: &impl Fn(Client) -> u64) -> Vec<Op> {
        let mut ops = Vec::new();
        for patch in patches.as_array().unwrap() {
            let (at, deleted, inserted) = (number(&patch[0]), number(&patch[1]), patch[2].as_str().unwrap());
            let mut now = Vec::new();
            if deleted > 0 {
                self.tree.ids(0, at..at + deleted, &mut |id, len| now.push(Op::Delete(id, len)));
                now.iter().for_each(|op| self.apply(op, key));
            }
            if !inserted.is_empty() {
                let (left, right) = self.tree.origins_at(0, at);
                let next = self.next.entry(client).or_default();
                let id = Id::new(client, *next);
                *next += inserted.chars().count() as u32;
                let op = Op::Insert { id, left, right, content: inserted.to_owned() };
                self.apply(&op, key);
                now.push(op);
            }
            ops.append(&mut now);
        }
        ops
    }

    fn text(&self) -> String {
        let mut text = String::new();
        self.tree.write(0, 0..self.tree.widths(0).scalars as usize, &mut text);
        if let Some(list) = &self.naive {
            let mut other = String::new();
            list.write(0, 0..list.widths(0).scalars as usize, &mut other);
            assert_eq!(text, other);
        }
        text
    }
}

/// One of the histories: every transaction is made at the state of exactly its ancestors, and all are then
/// merged in two orders.
fn conform(history: &Value) -> String {
    let transactions = history["txns"].as_array().unwrap();
    let mut by_name: Vec<usize> = (0..transactions.len()).collect();
    by_name.sort_by_key(|&n| (transactions[n]["agent"].as_str(), transactions[n]["seqStart"].as_u64()));
    let mut rank = vec![0; transactions.len()];
    by_name.iter().enumerate().for_each(|(n, &transaction)| rank[transaction] = n as u64 + 1);
    let key = |client: Client| rank[client as usize];
    // Parents are positions in the whole, where each character that came or went counts one.
    let of_version = |version: usize| {
        transactions
            .iter()
            .position(|t| (number(&t["span"][0])..number(&t["span"][1])).contains(&version))
            .unwrap()
    };
    let mut ops: Vec<Vec<Op>> = Vec::new();
    let mut ancestors: Vec<Vec<bool>> = Vec::new();
    for (n, transaction) in transactions.iter().enumerate() {
        let mut mine = vec![false; transactions.len()];
        for parent in transaction["parents"].as_array().unwrap() {
            let parent = of_version(number(parent));
            mine[parent] = true;
            for (a, known) in ancestors[parent].iter().enumerate() {
                mine[a] |= known;
            }
        }
        let mut peer = Peer::new(false);
        for (a, _) in mine.iter().enumerate().filter(|(_, known)| **known) {
            ops[a].iter().for_each(|op| peer.apply(op, &key));
        }
        ops.push(peer.edit(n as Client, &transaction["ops"], &key));
        ancestors.push(mine);
    }

    let mut in_order = Peer::new(true);
    ops.iter().flatten().for_each(|op| in_order.apply(op, &key));
    in_order.tree.check_invariants();

    // The latest that is ready, again and again.
    let mut other = Peer::new(false);
    let mut done = vec![false; ops.len()];
    while let Some(n) = (0..ops.len())
        .rev()
        .find(|&n| !done[n] && ancestors[n].iter().enumerate().all(|(a, &needed)| !needed || done[a]))
    {
        ops[n].iter().for_each(|op| other.apply(op, &key));
        done[n] = true;
    }
    other.tree.check_invariants();
    assert_eq!(other.text(), in_order.text());
    in_order.text()
}

/// The recorded texts are in Fugue's order: an element that is no left child keeps no right origin, and right
/// children stand by id alone. FugueMax orders them by right origin first, the farther one in front, which is
/// what keeps two people's passages from interleaving. In the recorded histories that shows once.
const WHERE_FUGUE_MAX_DIFFERS: (usize, &str, &str) = (621, "iGsfOycr_mLA", "ifOGsycr_mLA");

// enforces: I-5
#[test]
fn histories_of_another_engine_end_in_its_text() {
    let mut files = vec![own("conformance-40.json.gz")];
    files.extend(shared().map(|shared| shared.join("conformance/egwalker-conformance.json.gz")));
    for file in files {
        let histories = read(&file);
        for (n, history) in histories.as_array().unwrap().iter().enumerate() {
            let recorded = history["endContent"].as_str().unwrap();
            let expected = match WHERE_FUGUE_MAX_DIFFERS {
                (at, theirs, ours) if at == n => {
                    assert_eq!(recorded, theirs);
                    ours
                }
                _ => recorded,
            };
            assert_eq!(conform(history), expected, "history {n} of {}", file.display());
        }
    }
}

/// People who wrote at the same time: every agent has a copy and takes in, before each transaction, what that
/// one's parents know.
fn concurrent(path: &Path) {
    let trace = read(path);
    let transactions = trace["txns"].as_array().unwrap();
    let agents = number(&trace["numAgents"]);
    let key = |client: Client| u64::from(client) + 1;
    let mut peers: Vec<Peer> = (0..agents).map(|_| Peer::new(false)).collect();
    let mut has: Vec<Vec<bool>> = vec![vec![false; transactions.len()]; agents];
    let mut made: Vec<Vec<Op>> = Vec::new();
    let parents = |n: usize| transactions[n]["parents"].as_array().unwrap().iter().map(number);
    for (n, transaction) in transactions.iter().enumerate() {
        let agent = number(&transaction["agent"]);
        let mut missing: Vec<usize> = Vec::new();
        let mut open: Vec<usize> = parents(n).collect();
        while let Some(parent) = open.pop() {
            if !std::mem::replace(&mut has[agent][parent], true) {
                missing.push(parent);
                open.extend(parents(parent));
            }
        }
        missing.sort_unstable();
        for parent in missing {
            made[parent].iter().for_each(|op| peers[agent].apply(op, &key));
        }
        made.push(peers[agent].edit(agent as Client, &transaction["patches"], &key));
        has[agent][n] = true;
    }
    let end = trace["endContent"].as_str().unwrap();
    for (agent, peer) in peers.iter_mut().enumerate() {
        for (n, ops) in made.iter().enumerate() {
            if !has[agent][n] {
                ops.iter().for_each(|op| peer.apply(op, &key));
            }
        }
        peer.tree.check_invariants();
        assert_eq!(peer.text(), end, "agent {agent}");
    }
}

// enforces: I-5
#[test]
fn people_who_wrote_at_the_same_time_end_in_the_same_text() {
    let Some(shared) = shared() else { return };
    concurrent(&shared.join("concurrent/friendsforever.json.gz"));
    concurrent(&shared.join("concurrent/clownschool.json.gz"));
}
