//! The JSON dialect without sockets: the mirror against the document, and sessions in a world that is slow, late,
//! and forgetful.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod mirror;
mod owner;
mod session;
mod world;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

/// A seed's numbers (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What a client has that applies what it is sent and knows nothing else. No test writes `null`, so that it stands
/// for a removal.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) state: BTreeMap<String, Value>,
    pub(crate) heads: Vec<String>,
}

impl View {
    /// Takes a frame; the type of it.
    pub(crate) fn take(&mut self, frame: &Bytes) -> (String, Value) {
        let frame: Value = serde_json::from_slice(frame).unwrap();
        let kind = frame["type"].as_str().unwrap().to_owned();
        let payload = frame["payload"].clone();
        match kind.as_str() {
            "init" => {
                let data = frame["data"].as_object().unwrap().clone();
                if frame.get("partial").is_none() {
                    self.state.clear();
                }
                self.state.extend(data);
                for key in frame["removed"].as_array().into_iter().flatten() {
                    self.state.remove(key.as_str().unwrap());
                }
                self.heads = heads(&frame["heads"]);
            }
            "op" | "del" => {
                let key = payload["key"].as_str().unwrap().to_owned();
                match payload.get("value") {
                    None | Some(Value::Null) => self.state.remove(&key),
                    Some(value) => self.state.insert(key, value.clone()),
                };
                if payload.get("heads").is_some() {
                    self.heads = heads(&payload["heads"]);
                }
            }
            _ => {}
        }
        (kind, if payload.is_null() { frame } else { payload })
    }
}

fn heads(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|head| head.as_str().unwrap().to_owned()).collect()
}
