//! cola knows positions only: a rope beside it holds the text. Its ops go over the wire as its own tests encode
//! them, with the text behind; saved are its run tree and the live text.

use crate::framing::put_varint;
use crate::peer::{Peer, Unit};
use crate::trace::Patch;
use cola::{Deletion, EncodedReplica, Insertion, Replica};
use jumprope::JumpRope;

fn get(b: &mut &[u8]) -> usize {
    let (mut n, mut shift) = (0, 0);
    loop {
        let x = b[0];
        *b = &b[1..];
        n |= ((x & 0x7f) as usize) << shift;
        if x < 0x80 {
            return n;
        }
        shift += 7;
    }
}

pub struct Cola {
    crdt: Replica,
    rope: JumpRope,
    log: Option<Vec<u8>>,
}

fn cfg() -> bincode::config::Configuration {
    bincode::config::standard()
}

impl Cola {
    fn run(&mut self, patches: &[Patch], mut out: Option<&mut Vec<u8>>) {
        for p in patches {
            if p.del > 0 {
                let d = self.crdt.deleted(p.pos..p.pos + p.del);
                self.rope.remove(p.pos..p.pos + p.del);
                if let Some(o) = out.as_deref_mut() {
                    o.push(1);
                    bincode::serde::encode_into_std_write(&d, o, cfg()).unwrap();
                }
            }
            if !p.ins.is_empty() {
                let i = self.crdt.inserted(p.pos, p.ins.chars().count());
                self.rope.insert(p.pos, &p.ins);
                if let Some(o) = out.as_deref_mut() {
                    o.push(0);
                    bincode::serde::encode_into_std_write(&i, o, cfg()).unwrap();
                    put_varint(o, p.ins.len());
                    o.extend_from_slice(p.ins.as_bytes());
                }
            }
        }
    }
}

impl Peer for Cola {
    const NAME: &'static str = "cola";
    const VERSION: &'static str = "cola 0.5.1";
    const UNIT: Unit = Unit::Chars;

    /// Every cola replica has to be a fork of one first replica.
    fn new(client: u64) -> Self {
        Cola { crdt: Replica::new(u64::MAX, 0).fork(client), rope: JumpRope::new(), log: None }
    }
    fn edit(&mut self, patches: &[Patch]) {
        self.run(patches, None);
    }
    fn edit_encode(&mut self, patches: &[Patch]) -> Vec<u8> {
        let mut v = Vec::new();
        self.run(patches, Some(&mut v));
        if let Some(l) = &mut self.log {
            l.extend_from_slice(&v);
        }
        v
    }
    fn apply(&mut self, mut b: &[u8]) {
        while !b.is_empty() {
            let tag = b[0];
            b = &b[1..];
            if tag == 0 {
                let (i, n): (Insertion, usize) = bincode::serde::decode_from_slice(b, cfg()).unwrap();
                b = &b[n..];
                let n = get(&mut b);
                let s = std::str::from_utf8(&b[..n]).unwrap();
                b = &b[n..];
                let at = self.crdt.integrate_insertion(&i).expect("causal order");
                self.rope.insert(at, s);
            } else {
                let (d, n): (Deletion, usize) = bincode::serde::decode_from_slice(b, cfg()).unwrap();
                b = &b[n..];
                let ranges = self.crdt.integrate_deletion(&d);
                for r in ranges.into_iter().rev() {
                    self.rope.remove(r);
                }
            }
        }
    }
    fn len(&mut self) -> usize {
        self.crdt.len()
    }
    fn text(&mut self) -> String {
        self.rope.to_string()
    }
    fn save(&mut self) -> Vec<u8> {
        let e = self.crdt.encode();
        let e = e.as_bytes();
        let mut v = Vec::new();
        put_varint(&mut v, e.len());
        v.extend_from_slice(e);
        v.extend_from_slice(self.rope.to_string().as_bytes());
        v
    }
    fn load(mut b: &[u8], client: u64) -> Self {
        let n = get(&mut b);
        let crdt = Replica::decode(client, &EncodedReplica::from_bytes(&b[..n])).unwrap();
        Cola { crdt, rope: JumpRope::from(std::str::from_utf8(&b[n..]).unwrap()), log: None }
    }
    type Mark = ();
    /// cola keeps no log of its own; from here on the wrapper does.
    fn mark(&mut self) {
        self.log = Some(Vec::new());
    }
    fn encode_since(&mut self, _: &()) -> Vec<u8> {
        self.log.clone().unwrap()
    }
}
