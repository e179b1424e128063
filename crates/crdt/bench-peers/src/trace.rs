//! Editing traces (josephg/editing-traces format) and the planning of concurrent ones.

use crate::peer::Unit;
use flate2::read::GzDecoder;
use jumprope::JumpRope;
use serde::Deserialize;
use std::io::Read;
use std::path::Path;

#[derive(Clone, Debug)]
pub struct Patch {
    pub pos: usize,
    pub del: usize,
    pub ins: String,
}

impl Patch {
    pub fn ins(pos: usize, s: impl Into<String>) -> Self {
        Patch { pos, del: 0, ins: s.into() }
    }
    pub fn del(pos: usize, n: usize) -> Self {
        Patch { pos, del: n, ins: String::new() }
    }
}

#[derive(Deserialize)]
struct RawTxn {
    #[serde(default)]
    parents: Vec<usize>,
    #[serde(default)]
    agent: usize,
    patches: Vec<RawPatch>,
}

#[derive(Deserialize)]
struct RawPatch(usize, usize, String);

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "endContent")]
    end: String,
    txns: Vec<RawTxn>,
}

pub struct Txn {
    pub parents: Vec<usize>,
    pub agent: usize,
    pub patches: Vec<Patch>,
}

impl Txn {
    /// The patches, for a text of `len` characters. Where an engine orders concurrent inserts at one spot in
    /// another way than the recorder did, positions can point past its end: they are cut to what there is.
    pub fn fitted(&self, mut len: usize) -> Vec<Patch> {
        let mut fitted = Vec::with_capacity(self.patches.len());
        for p in &self.patches {
            let pos = p.pos.min(len);
            let del = p.del.min(len - pos);
            len = len - del + p.ins.len();
            if del > 0 || !p.ins.is_empty() {
                fitted.push(Patch { pos, del, ins: p.ins.clone() });
            }
        }
        fitted
    }
}

pub struct Trace {
    pub end: String,
    pub txns: Vec<Txn>,
}

impl Trace {
    pub fn load(path: &Path) -> std::io::Result<Trace> {
        let mut json = Vec::new();
        GzDecoder::new(std::fs::File::open(path)?).read_to_end(&mut json)?;
        let raw: Raw = serde_json::from_slice(&json)?;
        let txns = raw
            .txns
            .into_iter()
            .map(|t| Txn {
                parents: t.parents,
                agent: t.agent,
                patches: t.patches.into_iter().map(|p| Patch { pos: p.0, del: p.1, ins: p.2 }).collect(),
            })
            .collect();
        Ok(Trace { end: raw.end, txns })
    }

    /// All patches in file order, positions in `unit`. Only meaningful for linear traces.
    pub fn linear(&self, unit: Unit) -> Vec<Patch> {
        let flat = self.txns.iter().flat_map(|t| t.patches.iter());
        if unit == Unit::Chars || self.is_ascii() {
            return flat.cloned().collect();
        }
        let mut doc = Prefix::default();
        flat.map(|p| {
            let at = doc.byte_of(p.pos);
            let end = doc.byte_of(p.pos + p.del);
            doc.splice(p.pos, p.del, &p.ins);
            Patch { pos: at, del: end - at, ins: p.ins.clone() }
        })
        .collect()
    }

    pub fn is_ascii(&self) -> bool {
        self.end.is_ascii() && self.txns.iter().all(|t| t.patches.iter().all(|p| p.ins.is_ascii()))
    }

    /// Which transactions somebody who has `seen` some lacks to be at `parents`, in file order; marks them.
    pub fn missing(&self, seen: &mut [bool], parents: &[usize]) -> Vec<usize> {
        let mut stack = parents.to_vec();
        let mut missing = Vec::new();
        while let Some(k) = stack.pop() {
            if !seen[k] {
                seen[k] = true;
                missing.push(k);
                stack.extend_from_slice(&self.txns[k].parents);
            }
        }
        missing.sort_unstable();
        missing
    }

    pub fn agents(&self) -> usize {
        self.txns.iter().map(|t| t.agent + 1).max().unwrap_or(0)
    }
}

/// Char index -> byte index for the few non-ASCII traces: a scan over 1-KiB chunks.
#[derive(Default)]
struct Prefix {
    chunks: Vec<String>,
}

impl Prefix {
    fn find(&self, mut ch: usize) -> (usize, usize, usize) {
        let mut base = 0;
        for (i, c) in self.chunks.iter().enumerate() {
            let n = c.chars().count();
            if ch <= n && (ch < n || i + 1 == self.chunks.len()) {
                return (i, ch, base);
            }
            ch -= n;
            base += c.len();
        }
        (self.chunks.len(), 0, base)
    }
    fn byte_of(&self, ch: usize) -> usize {
        let (i, off, base) = self.find(ch);
        match self.chunks.get(i) {
            Some(c) => base + byte_at(c, off),
            None => base,
        }
    }
    fn splice(&mut self, pos: usize, mut del: usize, ins: &str) {
        if self.chunks.is_empty() {
            self.chunks.push(String::new());
        }
        let (mut i, mut off, _) = self.find(pos);
        if i == self.chunks.len() {
            i -= 1;
            off = self.chunks[i].chars().count();
        }
        let (at, mut j) = (i, i);
        let mut from = off;
        while del > 0 {
            let c = &mut self.chunks[j];
            let n = c.chars().count() - from;
            let k = n.min(del);
            let (a, b) = (byte_at(c, from), byte_at(c, from + k));
            c.replace_range(a..b, "");
            del -= k;
            j += 1;
            from = 0;
        }
        let b = byte_at(&self.chunks[at], off);
        self.chunks[at].insert_str(b, ins);
        if self.chunks[at].len() > 2048 {
            let big = self.chunks.remove(at);
            let mut parts = Vec::new();
            let mut cur = String::new();
            for ch in big.chars() {
                cur.push(ch);
                if cur.len() >= 1024 {
                    parts.push(std::mem::take(&mut cur));
                }
            }
            if !cur.is_empty() {
                parts.push(cur);
            }
            self.chunks.splice(at..at, parts);
        }
        if self.chunks.len() > 1 {
            self.chunks.retain(|c| !c.is_empty());
        }
    }
}

fn byte_at(s: &str, ch: usize) -> usize {
    if s.is_ascii() {
        return ch;
    }
    s.char_indices().nth(ch).map_or(s.len(), |(b, _)| b)
}

/// Replays linear patches on a plain rope; the oracle for generated cases.
pub fn oracle(patches: &[Patch]) -> String {
    let mut r = JumpRope::new();
    for p in patches {
        if p.del > 0 {
            r.remove(p.pos..p.pos + p.del);
        }
        if !p.ins.is_empty() {
            r.insert(p.pos, &p.ins);
        }
    }
    r.to_string()
}

/// Small deterministic generator, so that the cases are the same in every run and for every peer.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 32) as usize * n) >> 32
    }
}
