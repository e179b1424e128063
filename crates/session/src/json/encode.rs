use bytes::Bytes;
use manyhands_crdt::{Hash, ReplicaId};
use manyhands_proto::v1;

use super::close::status;
use super::op::hex;
use crate::Refusal;

/// What a key has, or that it has nothing any more.
#[derive(Clone, Copy)]
pub(super) struct Said<'a> {
    pub(super) key: &'a str,
    /// Canonical JSON.
    pub(super) value: Option<&'a str>,
    pub(super) micros: u64,
}

/// Where it comes from.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) seq: u64,
    pub(super) author: ReplicaId,
    pub(super) heads: &'a [Hash],
}

/// The frame of the bare dialect. It has no word for a removal: the value is `null`.
pub(super) fn op(said: Said<'_>) -> Bytes {
    let Said { key, value, micros } = said;
    let value = value.unwrap_or("null");
    let mut out = String::with_capacity(64 + key.len() + value.len());
    out.push_str(r#"{"type":"op","payload":{"key":"#);
    text(&mut out, key);
    out.push_str(r#","value":"#);
    out.push_str(value);
    out.push_str(&format!(r#","timestamp":{micros}}}}}"#));
    out.into()
}

/// The frame with the extensions: an `op`, or a `del`.
pub(super) fn extended_op(said: Said<'_>, origin: Origin<'_>) -> Bytes {
    let Said { key, value, micros } = said;
    let mut out =
        String::with_capacity(160 + key.len() + value.map_or(0, str::len) + 35 * origin.heads.len());
    let word = if value.is_some() { "op" } else { "del" };
    out.push_str(&format!(r#"{{"type":"{word}","payload":{{"key":"#));
    text(&mut out, key);
    if let Some(value) = value {
        out.push_str(r#","value":"#);
        out.push_str(value);
    }
    let Origin { seq, author, heads } = origin;
    let author = author.0;
    out.push_str(&format!(r#","timestamp":{micros},"seq":{seq},"author":"{author:016x}","heads":"#));
    hashes(&mut out, heads);
    out.push_str("}}");
    out.into()
}

/// The first frame. `entries` are the keys and their values in canonical JSON; with `removed`, they are what
/// changed since the client was here.
pub(super) fn init<'a>(
    entries: impl Iterator<Item = (&'a str, &'a str)>,
    heads: &[Hash],
    removed: Option<&[&str]>,
) -> Bytes {
    let mut out = String::from(r#"{"type":"init","data":{"#);
    for (n, (key, value)) in entries.enumerate() {
        if n > 0 {
            out.push(',');
        }
        text(&mut out, key);
        out.push(':');
        out.push_str(value);
    }
    out.push_str(r#"},"heads":"#);
    hashes(&mut out, heads);
    if let Some(removed) = removed {
        out.push_str(r#","partial":true,"removed":["#);
        for (n, key) in removed.iter().enumerate() {
            if n > 0 {
                out.push(',');
            }
            text(&mut out, key);
        }
        out.push(']');
    }
    out.push('}');
    out.into()
}

/// What the extensions add to an `init`.
pub(super) struct InitExtension<'a> {
    pub(super) seq: u64,
    pub(super) strategy: &'a str,
    pub(super) session: &'a str,
    pub(super) can_write: bool,
    pub(super) server_time_ms: u64,
    pub(super) token_expires_in_ms: u64,
}

pub(super) fn extended_init(init: &Bytes, more: &InitExtension<'_>) -> Bytes {
    let InitExtension { seq, strategy, session, can_write, server_time_ms, token_expires_in_ms } = more;
    let mut out = Vec::with_capacity(init.len() + 256);
    out.extend_from_slice(&init[..init.len().saturating_sub(1)]);
    let mut tail = format!(r#","seq":{seq},"strategy":"{strategy}","session":"#);
    text(&mut tail, session);
    tail.push_str(&format!(
        r#","can_write":{can_write},"server_time":{},"token_expires_in_ms":{token_expires_in_ms}}}"#,
        server_time_ms.saturating_mul(1000)
    ));
    out.extend_from_slice(tail.as_bytes());
    out.into()
}

/// Which op an error or an acknowledgement is about, as far as that is known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ref<'a> {
    pub(crate) key: Option<&'a str>,
    pub(crate) timestamp: Option<u64>,
}

impl Ref<'_> {
    fn write(&self, out: &mut String) {
        out.push('{');
        if let Some(key) = self.key {
            out.push_str(r#""key":"#);
            text(out, key);
        }
        if let Some(timestamp) = self.timestamp {
            let comma = if self.key.is_some() { "," } else { "" };
            out.push_str(&format!(r#"{comma}"timestamp":{timestamp}"#));
        }
        out.push('}');
    }
}

/// An `error` frame. `current` is a JSON object that tells what stands in the way, or empty.
pub(crate) fn error(refusal: &Refusal, fix: Option<&str>, about: Ref<'_>, current: &[u8]) -> Bytes {
    let mut out = format!(r#"{{"type":"error","code":{},"message":"#, status(refusal.code));
    let message = if refusal.message.is_empty() { refusal.code.message() } else { &refusal.message };
    text(&mut out, message);
    out.push_str(&format!(r#","reason":"{}","fix":"#, refusal.code.slug()));
    text(&mut out, fix.unwrap_or(refusal.code.fix()));
    if about.key.is_some() || about.timestamp.is_some() {
        out.push_str(r#","ref":"#);
        about.write(&mut out);
    }
    if refusal.retry_after_ms > 0 {
        out.push_str(&format!(r#","retry_after_ms":{}"#, refusal.retry_after_ms));
    }
    if let Some(current) = object(current) {
        out.push_str(r#","current":"#);
        out.push_str(current);
    }
    out.push('}');
    out.into()
}

pub(super) fn ack(about: Ref<'_>) -> Bytes {
    let mut out = String::from(r#"{"type":"ack","payload":"#);
    about.write(&mut out);
    out.push('}');
    out.into()
}

pub(crate) fn pong() -> Bytes {
    Bytes::from_static(br#"{"type":"pong"}"#)
}

/// The fresh token is in use.
pub(crate) fn token(expires_in_ms: u64) -> Bytes {
    format!(r#"{{"type":"token","payload":{{"expires_in_ms":{expires_in_ms}}}}}"#).into()
}

/// The server leaves: when this client is to connect anew.
pub(crate) fn bye(reconnect_after_ms: u64) -> Bytes {
    format!(r#"{{"type":"bye","payload":{{"reconnect_after_ms":{reconnect_after_ms}}}}}"#).into()
}

pub(super) fn presence(update: &v1::PresenceUpdate) -> Bytes {
    let mut out = format!(r#"{{"type":"presence","payload":{{"full":{},"peers":["#, update.full);
    for (n, peer) in update.peers.iter().enumerate() {
        out.push_str(if n > 0 { r#",{"session":"# } else { r#"{"session":"# });
        text(&mut out, &peer.session);
        out.push_str(r#","user_id":"#);
        text(&mut out, &peer.user);
        out.push_str(r#","data":"#);
        // Another user's, and only said to be JSON.
        let data =
            std::str::from_utf8(&peer.data).ok().and_then(|data| manyhands_crdt::canonical_json(data).ok());
        out.push_str(data.as_deref().unwrap_or("null"));
        out.push('}');
    }
    out.push_str(r#"],"left":["#);
    for (n, session) in update.left.iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        text(&mut out, session);
    }
    out.push_str("]}}");
    out.into()
}

/// A text that is an object, and nothing else.
fn object(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    serde_json::from_str::<&serde_json::value::RawValue>(text).ok()?;
    text.starts_with('{').then_some(text)
}

fn hashes(out: &mut String, hashes: &[Hash]) {
    out.push('[');
    for (n, hash) in hashes.iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        out.push('"');
        out.push_str(&hex(hash));
        out.push('"');
    }
    out.push(']');
}

fn text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use manyhands_proto::Code;
    use serde_json::{Value, json};

    fn read(bytes: &Bytes) -> Value {
        serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"))
    }

    const ODD: &str = "a\"\\\u{1}\n\t\u{7f}é\u{1f600}";

    #[test]
    fn frames_are_what_they_say() {
        let said = Said { key: ODD, value: Some("[1,2.50]"), micros: 17 };
        assert_eq!(
            read(&op(said)),
            json!({"type":"op","payload":{"key":ODD,"value":[1,2.50],"timestamp":17}})
        );
        let gone = Said { value: None, ..said };
        assert_eq!(read(&op(gone)), json!({"type":"op","payload":{"key":ODD,"value":null,"timestamp":17}}));
        let origin = Origin { seq: 3, author: ReplicaId(255), heads: &[[1; 16], [0xab; 16]] };
        let payload = json!({
            "key": ODD, "timestamp": 17, "seq": 3, "author": "00000000000000ff",
            "heads": ["01".repeat(16), "ab".repeat(16)],
        });
        assert_eq!(read(&extended_op(gone, origin)), json!({"type":"del","payload":payload}));
        let mut set = payload.clone();
        set["value"] = json!([1, 2.50]);
        assert_eq!(read(&extended_op(said, origin)), json!({"type":"op","payload":set}));

        let entries = [(ODD, "null"), ("b", "{}")];
        let bare = init(entries.into_iter(), &[[1; 16]], None);
        let heads = json!(["01".repeat(16)]);
        assert_eq!(read(&bare), json!({"type":"init","data":{ODD:null,"b":{}},"heads":heads}));
        let partial = init([].into_iter(), &[], Some(&[ODD, "b"]));
        assert_eq!(
            read(&partial),
            json!({"type":"init","data":{},"heads":[],"partial":true,"removed":[ODD,"b"]})
        );
        let more = InitExtension {
            seq: 7,
            strategy: "lww",
            session: "s1",
            can_write: true,
            server_time_ms: 5,
            token_expires_in_ms: 9,
        };
        let extended = read(&extended_init(&bare, &more));
        assert_eq!((&extended["seq"], &extended["server_time"]), (&json!(7), &json!(5000)));
        assert_eq!((&extended["data"]["b"], &extended["strategy"]), (&json!({}), &json!("lww")));
    }

    #[test]
    fn an_error_says_what_which_and_what_to_do() {
        let refusal = Refusal::new(Code::Forbidden, "This token may read but not write.");
        let about = Ref { key: Some("foo"), timestamp: Some(9) };
        assert_eq!(
            read(&error(&refusal, Some("Mint it with scope \"write\"."), about, b"")),
            json!({
                "type": "error", "code": 403, "message": "This token may read but not write.",
                "reason": "forbidden", "fix": "Mint it with scope \"write\".",
                "ref": {"key": "foo", "timestamp": 9},
            })
        );
        let conflict = error(&Code::Conflict.into(), None, Ref { key: None, ..about }, br#"{"seq":4}"#);
        let conflict = read(&conflict);
        assert_eq!((&conflict["code"], &conflict["reason"]), (&json!(409), &json!("conflict")));
        assert_eq!((&conflict["current"], &conflict["ref"]), (&json!({"seq":4}), &json!({"timestamp":9})));
        for current in [&b"[1]"[..], b"{", b"\xff", b"{}{}"] {
            let frame = read(&error(&Code::Conflict.into(), None, Ref::default(), current));
            assert!(frame.get("current").is_none() && frame.get("ref").is_none(), "{frame}");
        }
    }

    #[test]
    fn what_others_show_is_shown_as_json_whatever_it_is() {
        let peer = |data: &'static [u8]| v1::Peer {
            session: "s\"1".to_owned(),
            user: "ada".to_owned(),
            data: Bytes::from_static(data),
            cursors: Vec::new(),
        };
        let peers = vec![peer(b"{\"a\": 1}"), peer(b"}{"), peer(b"\xff"), peer(b"")];
        let update = v1::PresenceUpdate { channel: 0, full: true, peers, left: vec!["x".to_owned()] };
        let frame = read(&presence(&update));
        let shown: Vec<&Value> =
            frame["payload"]["peers"].as_array().unwrap().iter().map(|p| &p["data"]).collect();
        assert_eq!(shown, [&json!({"a":1}), &Value::Null, &Value::Null, &Value::Null]);
        assert_eq!((&frame["payload"]["full"], &frame["payload"]["left"]), (&json!(true), &json!(["x"])));
    }
}
