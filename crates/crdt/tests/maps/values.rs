//! Values: which JSON texts there are, how they are spelt, and what costs how much.

use manyhands_crdt::{
    ChangeRef, Document, EditError, Flaw, Hlc, JSON_DEPTH_MAX, JsonFlaw, JsonProblem, Malformed, MapOp,
    Refusal, ReplicaId, canonical_json, map_change_body,
};
use serde_json::{Value, json};

use crate::common::Random;

/// Whether a body with that value, spelt just so, is taken; where in the value the flaw is.
fn taken_as_it_is(value: &str) -> Result<(), (usize, JsonProblem)> {
    let mut body = vec![2 << 1, 1, b'k', 1];
    let mut len = value.len();
    while len >= 0x80 {
        body.push(len as u8 | 0x80);
        len >>= 7;
    }
    body.push(len as u8);
    let start = body.len();
    body.extend_from_slice(value.as_bytes());
    let mut document = Document::with_limits(manyhands_crdt::Limits {
        change_bytes_max: 8 << 20,
        ..manyhands_crdt::Limits::default()
    });
    match document.apply(ChangeRef { replica: ReplicaId(7), counter: 0, base: 0, body: &body }) {
        Ok(_) => {
            assert_eq!(document.map("").unwrap().get("k").unwrap().value, value);
            Ok(())
        }
        Err(Refusal::Malformed(Malformed { offset, flaw: Flaw::Json(what) })) => Err((offset - start, what)),
        Err(refusal) => panic!("{value:?}: {refusal}"),
    }
}

/// A canonical spelling, or the flaw and where it is.
type Verdict = Result<&'static str, (usize, JsonProblem)>;

/// Texts, and what is to be said of them.
pub(crate) const VERDICTS: &[(&str, Verdict)] = {
    use JsonProblem::*;
    &[
        ("null", Ok("null")),
        (" true\n", Ok("true")),
        ("\t[ 1 , 2 ]\r\n", Ok("[1,2]")),
        (r#"{ "b" : {} , "a" : [ ] }"#, Ok(r#"{"b":{},"a":[]}"#)),
        (r#""""#, Ok(r#""""#)),
        (r#"{"":0}"#, Ok(r#"{"":0}"#)),
        // Escapes: the shortest, and only where there must be one.
        (r#""\u0041\/\u00e4""#, Ok(r#""A/ä""#)),
        (r#""\u0022\u005C\u0008\u000C\u000a\u000D\u0009""#, Ok(r#""\"\\\b\f\n\r\t""#)),
        (r#""\u001F\u0000""#, Ok(r#""\u001f\u0000""#)),
        (r#""\u007f\u2028""#, Ok("\"\u{7f}\u{2028}\"")),
        (r#""\uD83C\uDF89""#, Ok("\"🎉\"")),
        (r#"{"\u0061":1}"#, Ok(r#"{"a":1}"#)),
        // Numbers stay as they are.
        ("-0", Ok("-0")),
        ("1.0", Ok("1.0")),
        ("1E+05", Ok("1E+05")),
        ("0.10e-400", Ok("0.10e-400")),
        ("9007199254740993", Ok("9007199254740993")),
        (
            "123456789012345678901234567890.12345678901234567890",
            Ok("123456789012345678901234567890.12345678901234567890"),
        ),
        ("", Err((0, Truncated))),
        ("  ", Err((2, Truncated))),
        ("tru", Err((0, Truncated))),
        ("[1", Err((2, Truncated))),
        ("[1,", Err((3, Truncated))),
        (r#"{"a":"#, Err((5, Truncated))),
        (r#"{"a""#, Err((4, Truncated))),
        (r#""abc"#, Err((4, Truncated))),
        (r#""\"#, Err((2, Truncated))),
        (r#""\u00"#, Err((5, Truncated))),
        ("True", Err((0, Syntax))),
        ("nulL", Err((0, Syntax))),
        ("[1 2]", Err((3, Syntax))),
        ("[1,]", Err((3, Syntax))),
        ("[,1]", Err((1, Syntax))),
        ("[1}", Err((2, Syntax))),
        ("{]", Err((1, Syntax))),
        ("{1:2}", Err((1, Syntax))),
        (r#"{"a" 1}"#, Err((5, Syntax))),
        (r#"{"a":1,}"#, Err((7, Syntax))),
        ("'a'", Err((0, Syntax))),
        ("// 1", Err((0, Syntax))),
        ("NaN", Err((0, Syntax))),
        ("Infinity", Err((0, Syntax))),
        ("+1", Err((0, Syntax))),
        (".5", Err((0, Syntax))),
        ("\u{feff}1", Err((0, Syntax))),
        ("\u{a0}1", Err((0, Syntax))),
        ("1 2", Err((2, Trailing))),
        ("{}{}", Err((2, Trailing))),
        ("null\0", Err((4, Trailing))),
        ("01", Err((0, Number))),
        ("-", Err((0, Number))),
        ("-01", Err((0, Number))),
        ("[1.]", Err((1, Number))),
        ("1e", Err((0, Number))),
        ("1e+", Err((0, Number))),
        ("-Infinity", Err((0, Number))),
        ("0x10", Err((1, Trailing))),
        (r#""\x41""#, Err((1, Escape))),
        (r#""\'""#, Err((1, Escape))),
        (r#""\u00g0""#, Err((1, Escape))),
        (r#""\u+123""#, Err((1, Escape))),
        ("\"a\nb\"", Err((2, Control))),
        ("\"\0\"", Err((1, Control))),
        (r#""\ud800""#, Err((1, LoneSurrogate))),
        (r#""a\udc00""#, Err((2, LoneSurrogate))),
        (r#""\ud800\u0041""#, Err((1, LoneSurrogate))),
        (r#""\udc00\ud800""#, Err((1, LoneSurrogate))),
        (r#""\ud800\ud800\udc00""#, Err((1, LoneSurrogate))),
        (r#"{"a":1,"a":1}"#, Err((12, DuplicateKey))),
        (r#"{"a":1,"\u0061":2}"#, Err((17, DuplicateKey))),
        (r#"[{"a":{"b":1,"c":1,"b":2}}]"#, Err((24, DuplicateKey))),
    ]
};

// enforces: I-12
#[test]
fn verdicts() {
    for &(text, verdict) in VERDICTS {
        let flaw = |(offset, what)| JsonFlaw { offset, what };
        assert_eq!(canonical_json(text), verdict.map(str::to_owned).map_err(flaw), "{text}");
        let strict = taken_as_it_is(text);
        match verdict {
            Ok(canonical) if canonical == text => assert_eq!(strict, Ok(()), "{text}"),
            Ok(canonical) => {
                assert!(matches!(strict, Err((_, JsonProblem::NotCanonical))), "{text}: {strict:?}");
                assert_eq!(taken_as_it_is(canonical), Ok(()));
            }
            Err(_) => assert!(strict.is_err(), "{text}"),
        }
        // Whoever writes without a document gets the same verdict.
        let op = MapOp { map: "", key: "k", value: Some(text), stamp: Hlc::at(1), expect: None };
        let made = map_change_body(&op).map(drop);
        assert_eq!(made, verdict.map(drop).map_err(|at| EditError::Json(flaw(at))), "{text}");
    }
}

#[test]
fn names_may_come_again_in_another_object() {
    for text in [r#"[{"a":1},{"a":2}]"#, r#"{"a":{"a":{"a":1}},"b":{"a":1}}"#] {
        assert_eq!(taken_as_it_is(text), Ok(()));
    }
}

// enforces: I-12
#[test]
fn depth_ends_at_thirty_two() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested =
            |levels: usize, inner: &str| format!("{}{inner}{}", open.repeat(levels), close.repeat(levels));
        // A scalar is a level, and so is what holds nothing.
        for inner in ["1", "[]", "{}", "\"x\""] {
            assert!(canonical_json(&nested(JSON_DEPTH_MAX - 1, inner)).is_ok());
            assert_eq!(taken_as_it_is(&nested(JSON_DEPTH_MAX - 1, inner)), Ok(()));
            let deep = nested(JSON_DEPTH_MAX, inner);
            let flaw = JsonFlaw { offset: open.len() * JSON_DEPTH_MAX, what: JsonProblem::Depth };
            assert_eq!(canonical_json(&deep), Err(flaw));
            assert_eq!(taken_as_it_is(&deep), Err((flaw.offset, flaw.what)));
        }
    }
}

/// Nothing here may take long, recurse or reserve much: the test would end on the stack or on the clock of
/// whoever waits for it.
// enforces: I-12
#[test]
fn bombs() {
    for bomb in ["[", "{\"a\":", "[[],", "{\"\":{\"\":"] {
        let bomb = bomb.repeat(1_000_000);
        let what = canonical_json(&bomb).unwrap_err().what;
        assert!(matches!(what, JsonProblem::Depth | JsonProblem::Truncated), "{what}");
        assert!(taken_as_it_is(&bomb).is_err());
    }
    let digits = "7".repeat(1_000_000);
    for number in [digits.clone(), format!("-0.{digits}"), format!("1e{digits}")] {
        assert_eq!(canonical_json(&number).as_deref(), Ok(&*number));
        assert_eq!(taken_as_it_is(&number), Ok(()));
    }
    // Names that only differ at their ends, and one that comes twice among them.
    let prefix = "x".repeat(100);
    let mut members: Vec<String> = (0..10_000).map(|n| format!("\"{prefix}{n}\":0")).collect();
    assert_eq!(taken_as_it_is(&format!("{{{}}}", members.join(","))), Ok(()));
    members.push(members[17].clone());
    let what = taken_as_it_is(&format!("{{{}}}", members.join(","))).unwrap_err().1;
    assert_eq!(what, JsonProblem::DuplicateKey);
    let spaces = format!("{}1", " ".repeat(1_000_000));
    assert_eq!(canonical_json(&spaces).as_deref(), Ok("1"));
}

fn value(random: &mut Random, depth: u64) -> Value {
    match random.below(if depth == 0 { 5 } else { 7 }) {
        0 => Value::Null,
        1 => json!(random.chance(50)),
        2 => json!(random.below(1 << 40) as i64 - (1 << 39)),
        3 => json!(random.below(1 << 40) as f64 / 1024.0),
        4 => {
            let n = random.below(6);
            let odd = ["\"", "\\", "\u{0}", "\u{1f}", "\u{8}", "\u{7f}", "/", "\u{2029}"];
            json!(random.text(n) + odd[random.at(8)])
        }
        5 => (0..random.below(4)).map(|_| value(random, depth - 1)).collect(),
        _ => {
            let members = 0..random.below(4);
            Value::Object(
                members.map(|_| (random.below(100).to_string(), value(random, depth - 1))).collect(),
            )
        }
    }
}

#[test]
fn what_serde_json_emits_is_canonical() {
    let random = &mut Random(3);
    for _ in 0..5_000 {
        let value = value(random, 4);
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(canonical_json(&text).as_deref(), Ok(&*text));
        assert_eq!(taken_as_it_is(&text), Ok(()));
        assert_eq!(canonical_json(&serde_json::to_string_pretty(&value).unwrap()), Ok(text));
    }
}

/// Texts that are nearly JSON: the two readings agree with one another and with serde_json.
// enforces: I-12
#[test]
fn nearly_json_is_judged_alike_by_all() {
    let random = &mut Random(4);
    let bits = [
        "[", "]", "{", "}", ",", ":", "\"", "\\", "u", "d8", "00", "1", ".", "e", "-", " ", "null", "ä",
        "\"a\"",
    ];
    let (mut good, mut bad) = (0, 0);
    for _ in 0..60_000 {
        let mut text = serde_json::to_string(&value(random, 3)).unwrap();
        for _ in 0..random.below(3) {
            let mut at = random.at(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let mut end = (at + random.at(3)).min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            text.replace_range(at..end, bits[random.at(bits.len())]);
        }
        let canonical = canonical_json(&text);
        let strict = taken_as_it_is(&text);
        assert_eq!(strict.is_ok(), canonical.as_deref() == Ok(&*text), "{text}");
        if let Ok(canonical) = &canonical {
            assert_eq!(taken_as_it_is(canonical), Ok(()), "{text}");
        }
        let theirs = serde_json::from_str::<Value>(&text);
        match (&canonical, theirs) {
            (Ok(canonical), Ok(theirs)) => {
                good += 1;
                assert_eq!(serde_json::from_str::<Value>(canonical).unwrap(), theirs, "{text}");
            }
            // They take two members of one name; we take any number.
            (Err(flaw), Ok(_)) => assert_eq!(flaw.what, JsonProblem::DuplicateKey, "{text}"),
            (Ok(_), Err(error)) => assert!(error.to_string().contains("out of range"), "{text}: {error}"),
            (Err(_), Err(_)) => bad += 1,
        }
    }
    assert!(good > 10_000 && bad > 10_000, "{good} good, {bad} bad");
}
