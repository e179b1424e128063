use manyhands_proto::Code;

use super::decode::Mistake;

/// Below this, a number of microseconds lies in spring 1973: it was meant in another unit.
const MICROS_MIN: u64 = 100_000_000_000_000;
/// A number of milliseconds below this is one of seconds.
const MILLIS_MIN: u64 = 100_000_000_000;
/// What a double holds exactly; microseconds reach it in the year 2255.
const MICROS_MAX: u64 = (1 << 53) - 1;

/// Reads the `timestamp` of an op: microseconds since the Unix epoch, as an integer.
///
/// How far ahead it may lie is the owner's to say; here only what cannot be a time in microseconds is refused.
pub(super) fn read(text: &str) -> Result<u64, Mistake> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let message = format!("timestamp is an integer, and this one is {}", shown(text));
        return Err(Mistake::new(Code::Malformed, message).fix(FIX));
    }
    let wrong = |message: String| Err(Mistake::new(Code::TimestampUnit, message).fix(FIX));
    let number = digits.parse::<u64>().ok();
    if text.starts_with('-') && number != Some(0) {
        return wrong(format!("timestamp {} lies before 1970", shown(text)));
    }
    match number {
        Some(number @ MICROS_MIN..=MICROS_MAX) => Ok(number),
        Some(number) if number < MILLIS_MIN => wrong(format!("timestamp {number} reads as seconds")),
        Some(number) if number < MICROS_MIN => wrong(format!("timestamp {number} reads as milliseconds")),
        _ => wrong(format!("timestamp {} reads as nanoseconds", shown(text))),
    }
}

const FIX: &str = "Send microseconds since 1970: Date.now() * 1000 in JavaScript, time.time_ns() // 1000 in \
                   Python, time.Now().UnixMicro() in Go. Or leave it out: then the server sets it.";

/// The beginning of what a client sent, short enough for a message.
pub(super) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 40;
    let mut shown: String = text.chars().take(CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microseconds_are_taken_and_other_units_are_named() {
        let check = |text: &str, expected: Result<u64, (Code, &str)>| match (read(text), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{text}"),
            (Err(got), Err((code, word))) => {
                assert_eq!(got.code, code, "{text}: {got:?}");
                assert!(got.message.contains(word), "{text}: {got:?}");
                assert!(got.fix.is_some_and(|fix| fix.contains("Date.now() * 1000")), "{text}");
            }
            (got, expected) => panic!("{text}: {got:?}, where {expected:?} was expected"),
        };
        check("1763661900000000", Ok(1_763_661_900_000_000));
        check("9007199254740991", Ok(MICROS_MAX));
        // The year 2100: whether that is too far ahead depends on the strategy.
        check("4102444800000000", Ok(4_102_444_800_000_000));
        for (text, word) in [
            ("0", "seconds"),
            ("-0", "seconds"),
            ("1763661900", "seconds"),
            ("1763661900000", "milliseconds"),
            ("99999999999999", "milliseconds"),
            ("9007199254740992", "nanoseconds"),
            ("1763661900000000000", "nanoseconds"),
            ("99999999999999999999999999", "nanoseconds"),
            ("-1763661900000000", "before 1970"),
            ("-99999999999999999999999999", "before 1970"),
        ] {
            check(text, Err((Code::TimestampUnit, word)));
        }
        for text in ["1.5", "1763661900000000.0", "1e15", "\"1763661900000000\"", "null", "true", "[]", "-"] {
            check(text, Err((Code::Malformed, "integer")));
        }
    }
}
