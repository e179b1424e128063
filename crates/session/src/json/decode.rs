use std::borrow::Cow;

use manyhands_crdt::canonical_json;
use manyhands_proto::Code;
use serde::Deserialize;
use serde::de::Deserializer;
use serde_json::value::RawValue;

use super::timestamp::{self, shown};

/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 512;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Op(Write),
    Ping,
    /// A JSON value, or nothing to show.
    Presence(Option<String>),
    Token(String),
}

/// A write to one key of the root map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) key: String,
    /// Canonical JSON; none removes the key.
    pub(crate) value: Option<String>,
    pub(crate) timestamp: Option<u64>,
    /// The seq of the value that the author saw.
    pub(crate) expect: Option<u64>,
}

/// Why a message is not one, with as much of the op as could be read, so that its sender knows which it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) fix: Option<Cow<'static, str>>,
    pub(crate) key: Option<String>,
    pub(crate) timestamp: Option<u64>,
}

impl Mistake {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Mistake {
        Mistake { code, message: message.into(), fix: None, key: None, timestamp: None }
    }

    pub(super) fn fix(self, fix: impl Into<Cow<'static, str>>) -> Mistake {
        Mistake { fix: Some(fix.into()), ..self }
    }
}

fn malformed(message: impl Into<String>) -> Mistake {
    Mistake::new(Code::Malformed, message).fix(SHAPE)
}

const SHAPE: &str = r#"Send {"type":"op","payload":{"key":"title","value":"any JSON value"}}."#;

/// The outermost object. What is not known is passed over.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default, rename = "type", deserialize_with = "present")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    key: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    expect: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct TokenPayload {
    token: String,
}

/// `null` is there, unlike what is missing.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Reads one text message.
pub(crate) fn decode(text: &[u8], extended: bool) -> Result<Message, Mistake> {
    let text = std::str::from_utf8(text).map_err(|_| malformed("the message is not UTF-8"))?;
    let envelope: Envelope<'_> = object(text, "the message")?;
    let kind = envelope.kind.ok_or_else(|| malformed("the message has no type"))?;
    let kind: String = serde_json::from_str(kind.get())
        .map_err(|_| malformed(format!("type is a text, and this one is {}", shown(kind.get()))))?;
    match (kind.as_str(), extended) {
        ("op", _) => write(envelope.payload, false).map(Message::Op),
        ("del", true) => write(envelope.payload, true).map(Message::Op),
        ("ping", _) => Ok(Message::Ping),
        ("presence", true) => match envelope.payload {
            None => Err(malformed("presence has no payload; null shows nothing any more")),
            Some(payload) if payload.get() == "null" => Ok(Message::Presence(None)),
            Some(payload) => canonical(payload.get(), "payload").map(|data| Message::Presence(Some(data))),
        },
        ("token", true) => {
            let payload = envelope.payload.and_then(|payload| serde_json::from_str(payload.get()).ok());
            let TokenPayload { token } =
                payload.ok_or_else(|| malformed("token has a payload of {\"token\":\"…\"}"))?;
            Ok(Message::Token(token))
        }
        ("del" | "presence" | "token", false) => {
            let message = format!("type {kind} belongs to the extensions");
            Err(malformed(message).fix("Offer the subprotocol manyhands.json.v1 when connecting."))
        }
        _ => {
            let words = if extended { "op, del, presence, token and ping" } else { "op and ping" };
            Err(malformed(format!("there is no type {}; there are {words}", shown(&kind))))
        }
    }
}

/// An op's payload. Whatever is wrong, as much as can be is read of what tells the op.
fn write(payload: Option<&RawValue>, removal: bool) -> Result<Write, Mistake> {
    let payload = payload.ok_or_else(|| malformed("the op has no payload"))?;
    let Payload { key, value, timestamp, expect } = object(payload.get(), "payload")?;
    let key = key_of(key);
    let timestamp = timestamp.map(|text| timestamp::read(text.get())).transpose();
    let rest = || -> Result<(Option<String>, Option<u64>), Mistake> {
        let value = match value {
            _ if removal => None,
            None => return Err(malformed("value is missing; null is a value, and has to be written out")),
            Some(value) => Some(canonical(value.get(), "value")?),
        };
        let expect = match expect {
            None => None,
            Some(seq) => Some(seq.get().parse().map_err(|_| {
                let fix = "Send the seq of the value that was seen, as an integer; 0 if there was none.";
                malformed(format!("expect is a seq, and this one is {}", shown(seq.get()))).fix(fix)
            })?),
        };
        Ok((value, expect))
    };
    let (told_key, told_timestamp) = (key.as_ref().ok().cloned(), timestamp.as_ref().ok().copied().flatten());
    let write = key.and_then(|key| {
        let timestamp = timestamp?;
        let (value, expect) = rest()?;
        Ok(Write { key, value, timestamp, expect })
    });
    write.map_err(|mistake| Mistake { key: told_key, timestamp: told_timestamp, ..mistake })
}

fn key_of(key: Option<&RawValue>) -> Result<String, Mistake> {
    let key = key.ok_or_else(|| malformed("key is missing"))?;
    let text: String = serde_json::from_str(key.get())
        .map_err(|_| malformed(format!("key is a text, and this one is {}", shown(key.get()))))?;
    match text.len() {
        0 => Err(malformed("key is empty")),
        bytes if bytes > KEY_BYTES_MAX => {
            let message = format!("the key has {bytes} bytes, where {KEY_BYTES_MAX} are allowed");
            Err(Mistake::new(Code::TooLarge, message)
                .fix("Take a shorter key, and put the rest into the value."))
        }
        _ => Ok(text),
    }
}

fn canonical(text: &str, what: &str) -> Result<String, Mistake> {
    canonical_json(text).map_err(|flaw| {
        malformed(format!("{what}: {flaw}"))
            .fix("Values have at most 32 levels, no object names a key twice, and texts are whole Unicode.")
    })
}

/// Reads an object; says in a sentence what else it is.
fn object<'a, T: Deserialize<'a>>(text: &'a str, what: &str) -> Result<T, Mistake> {
    // A struct would also be read from an array of its fields.
    if !text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
        let valid = serde_json::from_str::<&RawValue>(text);
        return Err(malformed(match valid {
            Ok(_) => format!("{what} is an object, and this one is {}", shown(text)),
            Err(error) => format!("{what} is not JSON: {error}"),
        }));
    }
    serde_json::from_str(text).map_err(|error| {
        let kind = if error.is_data() { "cannot be used" } else { "is not JSON" };
        malformed(format!("{what} {kind}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(text: &str) -> Result<Write, Mistake> {
        match decode(text.as_bytes(), false)? {
            Message::Op(write) => Ok(write),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn an_op_is_read_as_it_is_written() {
        let check = |text: &str, value: &str, timestamp: Option<u64>| {
            let write = op(text).unwrap_or_else(|mistake| panic!("{text}: {mistake:?}"));
            let expected =
                Write { key: "k".to_owned(), value: Some(value.to_owned()), timestamp, expect: None };
            assert_eq!(write, expected, "{text}");
        };
        check(r#"{"type":"op","payload":{"key":"k","value":null}}"#, "null", None);
        check(r#"{"payload":{"value":[1, 2],"key":"k"},"type":"op"}"#, "[1,2]", None);
        check(r#" {"type":"op","id":7,"payload":{"key":"\u006b","value":1,"more":{}}} "#, "1", None);
        check(
            r#"{"type":"op","payload":{"key":"k","value":{"b":1,"a":"\u00e9"},"timestamp":1763661900000000}}"#,
            r#"{"b":1,"a":"é"}"#,
            Some(1_763_661_900_000_000),
        );
        for number in ["9007199254740993", "123456789012345678901234567890", "1e400", "-0.10"] {
            check(&format!(r#"{{"type":"op","payload":{{"key":"k","value":{number}}}}}"#), number, None);
        }
        let deep = format!("{}{}", "[".repeat(31), "]".repeat(31));
        let deep = deep.replace("[]", "[0]");
        check(&format!(r#"{{"type":"op","payload":{{"key":"k","value":{deep}}}}}"#), &deep, None);
    }

    #[test]
    fn what_is_wrong_is_said_in_a_sentence() {
        let check = |text: &str, words: &str, key: Option<&str>| {
            let mistake = decode(text.as_bytes(), false).unwrap_err();
            assert_eq!(mistake.code, Code::Malformed, "{text}: {mistake:?}");
            assert!(mistake.message.contains(words), "{text}: {mistake:?}");
            assert_eq!(mistake.key.as_deref(), key, "{text}");
            assert!(mistake.fix.is_some(), "{text}");
        };
        check("hello", "not JSON", None);
        check("", "not JSON", None);
        check("{\"type\":\"op\"", "not JSON", None);
        check("[1]", "is an object", None);
        check("null", "is an object", None);
        check("{}", "no type", None);
        check(r#"{"type":7}"#, "type is a text", None);
        check(r#"{"type":"opp"}"#, "no type opp", None);
        check(r#"{"type":"op","type":"op"}"#, "duplicate field", None);
        check(r#"{"type":"op"}"#, "no payload", None);
        check(r#"{"type":"op","payload":["k",1]}"#, "payload is an object", None);
        check(r#"{"type":"op","payload":{"value":1}}"#, "key is missing", None);
        check(r#"{"type":"op","payload":{"key":"","value":1}}"#, "key is empty", None);
        check(r#"{"type":"op","payload":{"key":null,"value":1}}"#, "key is a text", None);
        check(r#"{"type":"op","payload":{"key":["k"],"value":1}}"#, "key is a text", None);
        check(r#"{"type":"op","payload":{"key":"\ud800","value":1}}"#, "key is a text", None);
        check(r#"{"type":"op","payload":{"key":"k","key":"l","value":1}}"#, "duplicate field", None);
        check(r#"{"type":"op","payload":{"key":"k"}}"#, "value is missing", Some("k"));
        check(r#"{"type":"op","payload":{"key":"k","value":"\udc00"}}"#, "value: ", Some("k"));
        check(r#"{"type":"op","payload":{"key":"k","value":{"a":1,"a":2}}}"#, "value: ", Some("k"));
        check(r#"{"type":"op","payload":{"key":"k","value":1,"timestamp":"now"}}"#, "integer", Some("k"));
        check(r#"{"type":"op","payload":{"key":"k","value":1,"expect":-1}}"#, "expect", Some("k"));
        let deep = format!("{}0{}", "[".repeat(32), "]".repeat(32));
        check(&format!(r#"{{"type":"op","payload":{{"key":"k","value":{deep}}}}}"#), "value: ", Some("k"));
        check(r#"{"type":"del","payload":{"key":"k"}}"#, "extensions", None);
        check(&"[".repeat(1_000_000), "not JSON", None);
        let bomb = format!(r#"{{"type":"op","payload":{{"key":"k","value":{}"#, "[".repeat(900_000));
        check(&bomb, "not JSON", None);
        let bomb = format!("{bomb}{}}}}}", "]".repeat(900_000));
        check(&bomb, "value: ", Some("k"));
        let long = format!(r#"{{"type":"op","payload":{{"key":"{}","value":1}}}}"#, "k".repeat(513));
        assert_eq!(op(&long).unwrap_err().code, Code::TooLarge);
    }

    #[test]
    fn extensions_are_read_where_they_were_asked_for() {
        let read = |text: &str| decode(text.as_bytes(), true).unwrap();
        let del = Write { key: "k".to_owned(), value: None, timestamp: None, expect: Some(7) };
        assert_eq!(read(r#"{"type":"del","payload":{"key":"k","expect":7}}"#), Message::Op(del));
        assert_eq!(read(r#"{"type":"ping"}"#), Message::Ping);
        assert_eq!(read(r#"{"type":"presence","payload":null}"#), Message::Presence(None));
        let away = r#"{"status":"away"}"#;
        let message = format!(r#"{{"type":"presence","payload":{away}}}"#);
        assert_eq!(read(&message), Message::Presence(Some(away.to_owned())));
        let message = r#"{"type":"token","payload":{"token":"abc"}}"#;
        assert_eq!(read(message), Message::Token("abc".to_owned()));
        for wrong in [r#"{"type":"token"}"#, r#"{"type":"token","payload":"abc"}"#, r#"{"type":"presence"}"#]
        {
            assert!(decode(wrong.as_bytes(), true).is_err(), "{wrong}");
        }
    }
}
