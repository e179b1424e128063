//! diamond-types with a branch (the text) merged at every update. Saved is the full history, LZ4.

use crate::peer::{Peer, Unit};
use crate::trace::{Patch, Trace};
use diamond_types::list::encoding::{ENCODE_FULL, ENCODE_PATCH, EncodeOptions};
use diamond_types::list::{ListCRDT, OpLog};
use diamond_types::{AgentId, LocalVersion};

pub struct Dt {
    doc: ListCRDT,
    name: String,
    agent: Option<AgentId>,
}

// LZ4 on a one-character message only adds bytes and time.
const SMALL: EncodeOptions = EncodeOptions { compress_content: false, ..ENCODE_PATCH };

impl Dt {
    fn wrap(doc: ListCRDT, client: u64) -> Self {
        Dt { doc, name: format!("{client:05}"), agent: None }
    }
    fn agent(&mut self) -> AgentId {
        if self.agent.is_none() {
            self.agent = Some(self.doc.get_or_create_agent_id(&self.name));
        }
        self.agent.unwrap()
    }
}

impl Peer for Dt {
    const NAME: &'static str = "diamond-types";
    const VERSION: &'static str = "diamond-types 1.0.0";
    const UNIT: Unit = Unit::Chars;
    const SLOW: &'static [&'static str] = &["same-spot", "offline-1000x20"];

    fn new(client: u64) -> Self {
        Self::wrap(ListCRDT::new(), client)
    }
    fn edit(&mut self, patches: &[Patch]) {
        let agent = self.agent();
        for p in patches {
            if p.del > 0 {
                self.doc.delete_without_content(agent, p.pos..p.pos + p.del);
            }
            if !p.ins.is_empty() {
                self.doc.insert(agent, p.pos, &p.ins);
            }
        }
    }
    fn edit_encode(&mut self, patches: &[Patch]) -> Vec<u8> {
        let before = self.mark();
        self.edit(patches);
        self.doc.oplog.encode_from(SMALL, &before)
    }
    fn apply(&mut self, u: &[u8]) {
        self.doc.merge_data_and_ff(u).unwrap();
    }
    fn apply_many(&mut self, us: &[&[u8]]) {
        for u in us {
            self.doc.oplog.decode_and_add(u).unwrap();
        }
        self.doc.branch.merge(&self.doc.oplog, self.doc.oplog.local_version_ref());
    }
    fn len(&mut self) -> usize {
        self.doc.branch.len()
    }
    fn text(&mut self) -> String {
        self.doc.branch.content().to_string()
    }
    fn save(&mut self) -> Vec<u8> {
        self.doc.oplog.encode(ENCODE_FULL)
    }
    fn load(b: &[u8], client: u64) -> Self {
        Self::wrap(ListCRDT::load_from(b).unwrap(), client)
    }
    fn replay(tr: &Trace) -> Option<Vec<Vec<u8>>> {
        let mut log = OpLog::new();
        let mut ups = Vec::new();
        let mut tips = Vec::new();
        for t in &tr.txns {
            let agent = log.get_or_create_agent_id(&format!("{:05}", t.agent + 1));
            let mut at: Vec<usize> = t.parents.iter().map(|&k| tips[k]).collect();
            at.sort_unstable();
            let before = log.local_version();
            for p in &t.patches {
                if p.del > 0 {
                    at = vec![log.add_delete_at(agent, &at, p.pos..p.pos + p.del)];
                }
                if !p.ins.is_empty() {
                    at = vec![log.add_insert_at(agent, &at, p.pos, &p.ins)];
                }
            }
            if !t.patches.is_empty() {
                ups.push(log.encode_from(SMALL, &before));
            }
            tips.push(*at.last().unwrap());
        }
        Some(ups)
    }
    type Mark = LocalVersion;
    fn mark(&mut self) -> LocalVersion {
        self.doc.oplog.local_version()
    }
    fn encode_since(&mut self, m: &LocalVersion) -> Vec<u8> {
        self.doc.oplog.encode_from(ENCODE_PATCH, m)
    }
}
