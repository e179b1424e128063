//! Why a change is refused, as the table of errors has it, with what stands in its way for programs to read.

use bytes::Bytes;
use manyhands_crdt::{Conflict, Refusal};
use manyhands_proto::Code;
use serde_json::json;
use serde_json::value::to_raw_value;

use crate::schema::Violation;

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Why {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// As `current` of the protocol's `Reject` has it.
    pub(crate) current: Bytes,
}

impl Why {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Why {
        Why { code, message: message.into(), current: Bytes::new() }
    }
}

impl From<Code> for Why {
    fn from(code: Code) -> Why {
        Why::new(code, code.message())
    }
}

impl From<Violation> for Why {
    fn from(violation: Violation) -> Why {
        let current = json!({ "path": violation.path }).to_string().into();
        Why { current, ..Why::new(Code::SchemaViolation, violation.to_string()) }
    }
}

/// A refusal of the merging, at that time of the server in milliseconds.
pub(crate) fn explain(refusal: Refusal, server_ms: u64) -> Why {
    let code = match refusal {
        Refusal::Gap { .. } => Code::MissingPredecessor,
        Refusal::Known { .. } => Code::Fork,
        Refusal::MissingReference { .. } | Refusal::UnknownIndex { .. } => Code::MissingReference,
        Refusal::TooLarge { .. } => Code::TooLarge,
        Refusal::CountersUsedUp => Code::LimitReached,
        Refusal::ClockAhead { stamp_micros, max_micros } => {
            return clock_ahead(stamp_micros, max_micros, server_ms);
        }
        Refusal::Conflict(conflict) => return conflicting(&conflict),
        _ => Code::Malformed,
    };
    Why::new(code, refusal.to_string())
}

fn clock_ahead(stamp_micros: u64, max_micros: u64, server_ms: u64) -> Why {
    let server_micros = server_ms.saturating_mul(1_000);
    let ahead = stamp_micros.saturating_sub(server_micros).div_ceil(1_000_000);
    let allowed = max_micros.saturating_sub(server_micros) / 1_000_000;
    let message = format!(
        "the timestamp {stamp_micros} is {ahead} s ahead of the server's clock, {server_micros}; at most {allowed} s are allowed"
    );
    let current = json!({ "time": server_micros, "max": max_micros }).to_string().into();
    Why { current, ..Why::new(Code::ClockAhead, message) }
}

fn conflicting(conflict: &Conflict) -> Why {
    let Conflict { map, key, seq, value } = conflict;
    let quoted = |text: &str| to_raw_value(text).expect("a string is always JSON");
    let mut current = format!(r#"{{"map":{},"key":{},"seq":{seq}"#, quoted(map), quoted(key));
    // As it was written: numbers keep every digit.
    if let Some(value) = value {
        current.push_str(r#","value":"#);
        current.push_str(value);
    }
    current.push('}');
    Why { current: current.into(), ..Why::new(Code::Conflict, conflict.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_tells_what_is_there() {
        let conflict = |value: Option<&str>| {
            let conflict =
                Conflict { map: "a\"b".into(), key: "k".into(), seq: 7, value: value.map(str::to_owned) };
            let why = explain(Refusal::Conflict(Box::new(conflict)), 0);
            assert_eq!(why.code, Code::Conflict);
            String::from_utf8(why.current.to_vec()).unwrap()
        };
        assert_eq!(
            conflict(Some("[0.10,100000000000000000000]")),
            r#"{"map":"a\"b","key":"k","seq":7,"value":[0.10,100000000000000000000]}"#
        );
        assert_eq!(conflict(None), r#"{"map":"a\"b","key":"k","seq":7}"#);
    }

    #[test]
    fn a_clock_that_is_ahead_is_told_the_time() {
        let refusal = Refusal::ClockAhead { stamp_micros: 161_000_001, max_micros: 160_000_000 };
        let why = explain(refusal, 100_000);
        assert_eq!(why.code, Code::ClockAhead);
        let current: serde_json::Value = serde_json::from_slice(&why.current).unwrap();
        assert_eq!(current, json!({ "time": 100_000_000, "max": 160_000_000 }));
        assert!(
            why.message.contains("62 s ahead") && why.message.contains("at most 60 s"),
            "{}",
            why.message
        );
    }
}
