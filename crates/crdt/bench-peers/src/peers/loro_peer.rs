//! Loro's text container.

use crate::peer::{Peer, Unit};
use crate::trace::Patch;
use loro::{ExportMode, LoroDoc, LoroText, Subscription, VersionVector};
use std::sync::{Arc, Mutex};

pub struct Loro {
    doc: LoroDoc,
    text: LoroText,
    out: Option<(Subscription, Arc<Mutex<Vec<u8>>>)>,
}

impl Loro {
    fn wrap(doc: LoroDoc, client: u64) -> Self {
        doc.set_peer_id(client).unwrap();
        let text = doc.get_text("t");
        Loro { doc, text, out: None }
    }
}

impl Peer for Loro {
    const NAME: &'static str = "loro";
    const VERSION: &'static str = "loro 1.17.1";
    const SLOW: &'static [&'static str] =
        &["friendsforever", "clownschool", "same-spot", "offline", "random"];
    const UNIT: Unit = Unit::Chars;

    fn new(client: u64) -> Self {
        Self::wrap(LoroDoc::new(), client)
    }
    fn edit(&mut self, patches: &[Patch]) {
        for p in patches {
            if p.del > 0 {
                self.text.delete(p.pos, p.del).unwrap();
            }
            if !p.ins.is_empty() {
                self.text.insert(p.pos, &p.ins).unwrap();
            }
        }
        self.doc.commit();
    }
    fn edit_encode(&mut self, patches: &[Patch]) -> Vec<u8> {
        if self.out.is_none() {
            let cell = Arc::new(Mutex::new(Vec::new()));
            let to = cell.clone();
            let sub = self.doc.subscribe_local_update(Box::new(move |b| {
                let mut to = to.lock().unwrap();
                assert!(to.is_empty());
                *to = b.clone();
                true
            }));
            self.out = Some((sub, cell));
        }
        self.edit(patches);
        std::mem::take(&mut *self.out.as_ref().unwrap().1.lock().unwrap())
    }
    fn apply(&mut self, u: &[u8]) {
        self.doc.import(u).unwrap();
    }
    fn apply_many(&mut self, us: &[&[u8]]) {
        let v: Vec<Vec<u8>> = us.iter().map(|u| u.to_vec()).collect();
        self.doc.import_batch(&v).unwrap();
    }
    fn len(&mut self) -> usize {
        self.text.len_unicode()
    }
    fn text(&mut self) -> String {
        self.text.to_string()
    }
    fn save(&mut self) -> Vec<u8> {
        self.doc.export(ExportMode::Snapshot).unwrap()
    }
    fn load(b: &[u8], client: u64) -> Self {
        Self::wrap(LoroDoc::from_snapshot(b).unwrap(), client)
    }
    type Mark = VersionVector;
    fn mark(&mut self) -> VersionVector {
        self.doc.oplog_vv()
    }
    fn encode_since(&mut self, m: &VersionVector) -> Vec<u8> {
        self.doc.export(ExportMode::updates(m)).unwrap()
    }
}
