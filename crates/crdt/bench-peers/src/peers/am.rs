//! Automerge (the memory-compact op set of the 3.x line).

use crate::peer::{Peer, Unit};
use crate::trace::Patch;
use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, Automerge, Change, ChangeHash, ObjId, ObjType, ROOT, ReadDoc};
use std::sync::OnceLock;

pub struct Am {
    doc: Automerge,
    obj: ObjId,
}

fn actor(client: u64) -> ActorId {
    ActorId::from(client.to_be_bytes())
}

/// The change that makes the text object, the same for every replica.
fn genesis() -> &'static [u8] {
    static G: OnceLock<Vec<u8>> = OnceLock::new();
    G.get_or_init(|| {
        let mut d = Automerge::new().with_actor(ActorId::from([0u8; 8]));
        let mut tx = d.transaction();
        tx.put_object(ROOT, "t", ObjType::Text).unwrap();
        tx.commit_with(CommitOptions::default().with_time(0));
        d.save()
    })
}

impl Peer for Am {
    const NAME: &'static str = "automerge";
    const VERSION: &'static str = "automerge 0.12.0";
    const UNIT: Unit = Unit::Chars;
    const TAIL: Option<usize> = Some(300);
    const SLOW: &'static [&'static str] =
        &["friendsforever", "clownschool", "same-spot", "offline", "random", "pairs", "prepend", "seq"];

    fn new(client: u64) -> Self {
        Self::load(genesis(), client)
    }
    fn edit(&mut self, patches: &[Patch]) {
        let mut tx = self.doc.transaction();
        for p in patches {
            tx.splice_text(&self.obj, p.pos, p.del as isize, &p.ins).unwrap();
        }
        tx.commit_with(CommitOptions::default().with_time(0));
    }
    fn edit_encode(&mut self, patches: &[Patch]) -> Vec<u8> {
        self.edit(patches);
        self.doc.get_last_local_change().unwrap().raw_bytes().to_vec()
    }
    fn apply(&mut self, u: &[u8]) {
        let c = Change::from_bytes(u.to_vec()).unwrap();
        self.doc.apply_changes([c]).unwrap();
    }
    fn apply_many(&mut self, us: &[&[u8]]) {
        let v: Vec<Change> = us.iter().map(|u| Change::from_bytes(u.to_vec()).unwrap()).collect();
        self.doc.apply_changes(v).unwrap();
    }
    fn len(&mut self) -> usize {
        self.doc.length(&self.obj)
    }
    fn text(&mut self) -> String {
        self.doc.text(&self.obj).unwrap()
    }
    fn save(&mut self) -> Vec<u8> {
        self.doc.save()
    }
    fn load(b: &[u8], client: u64) -> Self {
        let doc = Automerge::load(b).unwrap().with_actor(actor(client));
        let obj = doc.get(ROOT, "t").unwrap().unwrap().1;
        Am { doc, obj }
    }
    type Mark = Vec<ChangeHash>;
    fn mark(&mut self) -> Vec<ChangeHash> {
        self.doc.get_heads()
    }
    fn encode_since(&mut self, m: &Vec<ChangeHash>) -> Vec<u8> {
        self.doc.save_after(m)
    }
    fn apply_branch(&mut self, b: &[u8]) {
        self.doc.load_incremental(b).unwrap();
    }
}
