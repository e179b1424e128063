//! yrs with the v1 update encoding. Saved are ids and live text: the text of deleted runs is dropped.

use crate::framing::put_varint;
use crate::peer::{Peer, Unit};
use crate::trace::Patch;
use yrs::updates::decoder::Decode;
use yrs::{
    Doc, GetString, OffsetKind, Options, ReadTxn, StateVector, Text, TextRef, Transact, TransactionMut,
    Update,
};

pub struct Yrs {
    doc: Doc,
    text: TextRef,
}

fn put(text: &TextRef, txn: &mut TransactionMut, patches: &[Patch]) {
    for p in patches {
        if p.del > 0 {
            text.remove_range(txn, p.pos as u32, p.del as u32);
        }
        if !p.ins.is_empty() {
            text.insert(txn, p.pos as u32, &p.ins);
        }
    }
}

impl Peer for Yrs {
    const NAME: &'static str = "yrs";
    const VERSION: &'static str = "yrs 0.28.1";
    const SLOW: &'static [&'static str] = &["same-spot-back", "random", "offline-1000x20"];
    const UNIT: Unit = Unit::Bytes;

    fn new(client: u64) -> Self {
        let mut o = Options::with_client_id(yrs::block::ClientID::new(client));
        o.offset_kind = OffsetKind::Bytes;
        let doc = Doc::with_options(o);
        let text = doc.get_or_insert_text("t");
        Yrs { doc, text }
    }
    fn edit(&mut self, patches: &[Patch]) {
        let mut txn = self.doc.transact_mut();
        put(&self.text, &mut txn, patches);
    }
    fn edit_encode(&mut self, patches: &[Patch]) -> Vec<u8> {
        let mut txn = self.doc.transact_mut();
        put(&self.text, &mut txn, patches);
        txn.encode_update_v1()
    }
    fn apply(&mut self, u: &[u8]) {
        let update = Update::decode_v1(u).unwrap();
        self.doc.transact_mut().apply_update(update).unwrap();
    }
    fn apply_many(&mut self, us: &[&[u8]]) {
        let mut txn = self.doc.transact_mut();
        for u in us {
            txn.apply_update(Update::decode_v1(u).unwrap()).unwrap();
        }
    }
    /// y-protocols: a sync message, an update, its length. Several updates merged as Yjs merges them.
    fn frame_down(_: u64, updates: &[&[u8]]) -> Vec<u8> {
        let merged = match updates {
            [one] => one.to_vec(),
            _ => yrs::merge_updates_v1(updates.iter().copied()).unwrap(),
        };
        let mut frame = vec![0, 2];
        put_varint(&mut frame, merged.len());
        frame.extend(merged);
        frame
    }
    fn len(&mut self) -> usize {
        self.text.len(&self.doc.transact()) as usize
    }
    fn text(&mut self) -> String {
        self.text.get_string(&self.doc.transact())
    }
    fn save(&mut self) -> Vec<u8> {
        let txn = self.doc.transact();
        let none = StateVector::default();
        txn.encode_state_as_update_v1(&none)
    }
    fn load(b: &[u8], client: u64) -> Self {
        let mut me = Self::new(client);
        me.apply(b);
        me
    }
    type Mark = StateVector;
    fn mark(&mut self) -> StateVector {
        self.doc.transact().state_vector()
    }
    fn encode_since(&mut self, m: &StateVector) -> Vec<u8> {
        let txn = self.doc.transact();
        txn.encode_diff_v1(m)
    }
}
