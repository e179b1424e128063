//! The JSON dialect: one workspace, one socket, nothing kept and nothing merged here.
//!
//! For tools, and for programs that want the latest values and no more. What an application shows to people is
//! better made with [`Client`](crate::Client), which works offline.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use manyhands_client::json::{self, Message};
//!
//! let url = "ws://127.0.0.1:8080".parse()?;
//! let (init, mut sender, mut receiver) = json::connect(&url, "demo", "a token", &json::Options::default()).await?;
//! println!("{} keys", init.data.len());
//! sender.send(&json::op("title", "\"Hello\"", None, None)).await?;
//! while let Some(message) = receiver.next().await? {
//!     if let Message::Op { key, value, .. } = message {
//!         println!("{key} is {value}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use manyhands_crdt::Strategy;
use manyhands_proto::JSON_SUBPROTOCOL;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::Message as Frame;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use url::Url;

use crate::options::ClientOptions;
use crate::socket::{ConnectError, handshake};

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What a connection is to be like.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How a new workspace is to merge; one that merges otherwise is refused.
    pub strategy: Option<Strategy>,
    /// Speak the bare dialect, without `ack`, `del`, `seq` and `author`.
    pub bare: bool,
}

/// The first message: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Init {
    /// The values as JSON, by key.
    pub data: BTreeMap<String, String>,
    /// The newest changes of the document, by hash.
    pub heads: Vec<String>,
    /// The newest entry that it includes; 0 on the bare dialect.
    pub seq: u64,
}

/// What the server says afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Everything anew: what was said before is void.
    Init(Init),
    /// A key has this value now.
    Op {
        /// The key.
        key: String,
        /// The value as JSON.
        value: String,
        /// When it was written, in microseconds since the Unix epoch.
        timestamp: u64,
        /// Its entry; 0 on the bare dialect.
        seq: u64,
    },
    /// A key has no value any more.
    Deleted {
        /// The key.
        key: String,
        /// When it was removed, in microseconds since the Unix epoch.
        timestamp: u64,
        /// Its entry.
        seq: u64,
    },
    /// An own op is durable.
    Acknowledged {
        /// Its key.
        key: String,
    },
    /// Something was refused.
    Error(Refusal),
    /// Something that this build has no use for.
    Other(String),
}

/// Why something was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({reason})")]
pub struct Refusal {
    /// Like an HTTP status.
    pub code: u16,
    /// What was wrong.
    pub message: String,
    /// The name of the code.
    pub reason: String,
    /// What to do about it.
    pub fix: String,
    /// The key of the op, if it was about one.
    pub key: Option<String>,
    /// What stands in the way, as a JSON object.
    pub current: Option<String>,
}

/// The connection is not good any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JsonError {
    /// It ended.
    #[error("the connection ended: {0}")]
    Gone(String),
    /// The server closed it.
    #[error("the server closed the connection with {code}: {reason}")]
    Closed {
        /// The close code.
        code: u16,
        /// What it said.
        reason: String,
    },
    /// The server said something that is no message.
    #[error("the server does not speak the JSON dialect: {0}")]
    NotAMessage(String),
}

/// Sends; see [`op`] and [`del`].
pub struct Sender {
    stream: SplitSink<Stream, Frame>,
}

/// Receives.
pub struct Receiver {
    stream: SplitStream<Stream>,
    bytes: u64,
}

/// Connects and waits for the state.
///
/// # Errors
/// When nobody answers, or the server refuses, or says something else first.
pub async fn connect(
    url: &Url,
    workspace: &str,
    token: &str,
    options: &Options,
) -> Result<(Init, Sender, Receiver), ConnectError> {
    let wrong = |reason: String| ConnectError::Unreachable { url: url.to_string(), reason };
    let mut address = url.clone();
    let no_path = || wrong("this is no WebSocket address".to_owned());
    address.path_segments_mut().map_err(|()| no_path())?.clear().extend(["v1", "sync", workspace]);
    if let Some(strategy) = options.strategy {
        address.query_pairs_mut().append_pair("strategy", strategy.name());
    }
    let protocol = (!options.bare).then_some(JSON_SUBPROTOCOL);
    let options = ClientOptions::new(address.clone(), token);
    // It is large, and over soon.
    let stream = Box::pin(handshake(&address, token, protocol, &options)).await?;
    let (sink, stream) = stream.split();
    let mut receiver = Receiver { stream, bytes: 0 };
    match receiver.next().await {
        Ok(Some(Message::Init(init))) => Ok((init, Sender { stream: sink }, receiver)),
        Ok(Some(Message::Error(refusal))) => Err(ConnectError::Refused {
            url: url.to_string(),
            status: refusal.code,
            code: manyhands_proto::CODES.iter().copied().find(|code| code.slug() == refusal.reason),
            message: refusal.message,
            fix: refusal.fix,
            retry_after: None,
        }),
        Ok(other) => Err(wrong(format!("{other:?} came before the state"))),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// A message that sets a key. `value` is JSON; `timestamp` is in microseconds since the Unix epoch, and the
/// server's without one; `expect` is the seq of the value that is to be replaced, for the strategy `server`.
#[must_use]
pub fn op(key: &str, value: &str, timestamp: Option<u64>, expect: Option<u64>) -> String {
    write("op", key, Some(value), timestamp, expect)
}

/// A message that removes a key; not on the bare dialect.
#[must_use]
pub fn del(key: &str, timestamp: Option<u64>, expect: Option<u64>) -> String {
    write("del", key, None, timestamp, expect)
}

fn write(kind: &str, key: &str, value: Option<&str>, timestamp: Option<u64>, expect: Option<u64>) -> String {
    let mut out = format!(r#"{{"type":"{kind}","payload":{{"key":{}"#, serde_json::Value::from(key));
    for (name, text) in [
        ("value", value.map(str::to_owned)),
        ("timestamp", timestamp.map(|number| number.to_string())),
        ("expect", expect.map(|number| number.to_string())),
    ] {
        if let Some(text) = text {
            out.push_str(&format!(r#","{name}":{text}"#));
        }
    }
    out.push_str("}}");
    out
}

impl Sender {
    /// Sends one message.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn send(&mut self, message: &str) -> Result<(), JsonError> {
        self.stream.send(Frame::text(message)).await.map_err(|error| JsonError::Gone(error.to_string()))
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        // The connection ends either way.
        let _ = self.stream.close().await;
    }
}

impl Receiver {
    /// Bytes of the messages that came so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next message; `None` when the connection ended in good order.
    ///
    /// # Errors
    /// When it ended otherwise, or the server does not speak this dialect.
    pub async fn next(&mut self) -> Result<Option<Message>, JsonError> {
        loop {
            match self.stream.next().await {
                None => return Ok(None),
                Some(Ok(Frame::Text(text))) => {
                    self.bytes += text.len() as u64;
                    return read(&text).map(Some);
                }
                Some(Ok(Frame::Close(Some(frame)))) if u16::from(frame.code) != 1000 => {
                    let (code, reason) = (frame.code.into(), frame.reason.to_string());
                    return Err(JsonError::Closed { code, reason });
                }
                Some(Ok(Frame::Binary(_))) => {
                    return Err(JsonError::NotAMessage("a binary message".to_owned()));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(JsonError::Gone(error.to_string())),
            }
        }
    }
}

#[derive(Deserialize)]
struct Any<'a> {
    r#type: String,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct InitFrame<'a> {
    #[serde(borrow)]
    data: BTreeMap<String, &'a RawValue>,
    heads: Vec<String>,
    #[serde(default)]
    seq: u64,
}

#[derive(Deserialize)]
struct Payload<'a> {
    key: String,
    /// `null` is a value, and nothing is none; both are read as null.
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    #[serde(default)]
    timestamp: u64,
    #[serde(default)]
    seq: u64,
}

#[derive(Deserialize)]
struct ErrorFrame<'a> {
    code: u16,
    message: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    fix: String,
    #[serde(default)]
    r#ref: Option<Ref>,
    #[serde(borrow, default)]
    current: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Ref {
    #[serde(default)]
    key: Option<String>,
}

fn read(text: &str) -> Result<Message, JsonError> {
    let wrong = |error: serde_json::Error| JsonError::NotAMessage(error.to_string());
    let any: Any<'_> = serde_json::from_str(text).map_err(wrong)?;
    let payload = || -> Result<Payload<'_>, JsonError> {
        let payload = any.payload.ok_or_else(|| JsonError::NotAMessage(format!("{text} has no payload")))?;
        serde_json::from_str(payload.get()).map_err(wrong)
    };
    Ok(match &any.r#type[..] {
        "init" => {
            let InitFrame { data, heads, seq } = serde_json::from_str(text).map_err(wrong)?;
            let data = data.into_iter().map(|(key, value)| (key, value.get().to_owned())).collect();
            Message::Init(Init { data, heads, seq })
        }
        "op" => {
            let Payload { key, value, timestamp, seq } = payload()?;
            let value = value.map_or("null", |value| value.get()).to_owned();
            Message::Op { key, value, timestamp, seq }
        }
        "del" => {
            let Payload { key, timestamp, seq, .. } = payload()?;
            Message::Deleted { key, timestamp, seq }
        }
        "ack" => Message::Acknowledged { key: payload()?.key },
        "error" => {
            let ErrorFrame { code, message, reason, fix, r#ref, current } =
                serde_json::from_str(text).map_err(wrong)?;
            let key = r#ref.and_then(|about| about.key);
            let current = current.map(|current| current.get().to_owned());
            Message::Error(Refusal { code, message, reason, fix, key, current })
        }
        _ => Message::Other(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_and_numbers_stay_as_they_are() {
        let init = r#"{"type":"init","data":{"a":1.50,"b":null},"heads":["x"],"seq":3}"#;
        let data = [("a".to_owned(), "1.50".to_owned()), ("b".to_owned(), "null".to_owned())];
        let init_read = Init { data: data.into(), heads: vec!["x".to_owned()], seq: 3 };
        assert_eq!(read(init).unwrap(), Message::Init(init_read));
        let op = r#"{"type":"op","payload":{"key":"a\"","value":12345678901234567890123,"timestamp":7}}"#;
        let (key, value) = ("a\"".to_owned(), "12345678901234567890123".to_owned());
        assert_eq!(read(op).unwrap(), Message::Op { key, value, timestamp: 7, seq: 0 });
        let null = r#"{"type":"op","payload":{"key":"a","value":null,"timestamp":7}}"#;
        assert!(matches!(read(null).unwrap(), Message::Op { value, .. } if value == "null"));
        let error = r#"{"type":"error","code":409,"message":"m","reason":"conflict","fix":"f","ref":{"key":"k"},"current":{"seq":4}}"#;
        let Message::Error(refusal) = read(error).unwrap() else { panic!("it is an error") };
        assert_eq!((refusal.code, refusal.key.as_deref()), (409, Some("k")));
        assert_eq!(refusal.current.as_deref(), Some("{\"seq\":4}"));
        for bad in ["", "[]", "{}", r#"{"type":"op"}"#, r#"{"type":"init"}"#, r#"{"type":7}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(matches!(read(r#"{"type":"bye"}"#).unwrap(), Message::Other(_)));
    }

    #[test]
    fn messages_are_written() {
        assert_eq!(op("a\"", "[1]", None, None), r#"{"type":"op","payload":{"key":"a\"","value":[1]}}"#);
        assert_eq!(
            op("a", "1", Some(5), Some(0)),
            r#"{"type":"op","payload":{"key":"a","value":1,"timestamp":5,"expect":0}}"#
        );
        assert_eq!(del("a", None, Some(3)), r#"{"type":"del","payload":{"key":"a","expect":3}}"#);
    }
}
