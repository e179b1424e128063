//! Values: JSON in one canonical spelling, checked without recursion.
//!
//! Canonical is what `JSON.stringify` and `serde_json::to_string` emit: no white space, and in strings only
//! what must be escaped is, in the shortest way. Numbers stay as their author spelt them, and members in
//! their author's order.

/// A scalar has depth 1; each array or object around it adds one.
///
/// ```
/// use manyhands_crdt::{JSON_DEPTH_MAX, canonical_json};
///
/// let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
/// assert!(canonical_json(&nested(JSON_DEPTH_MAX)).is_ok());
/// assert!(canonical_json(&nested(JSON_DEPTH_MAX + 1)).is_err());
/// ```
pub const JSON_DEPTH_MAX: usize = 32;

/// What is wrong with some JSON, and where.
///
/// ```
/// let flawed = manyhands_crdt::canonical_json("[1,]").unwrap_err();
/// assert_eq!(flawed.offset, 3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no JSON value that can be stored, at byte {offset}: {what}")]
pub struct JsonFlaw {
    /// Where in the text, in bytes.
    pub offset: usize,
    /// What is wrong there.
    pub what: JsonProblem,
}

/// What can be wrong with some JSON.
///
/// ```
/// use manyhands_crdt::{JSON_DEPTH_MAX, JsonProblem, canonical_json};
///
/// let deep = "[".repeat(JSON_DEPTH_MAX + 1);
/// assert_eq!(canonical_json(&deep).unwrap_err().what, JsonProblem::Depth);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonProblem {
    /// The text ends inside the value, or is empty.
    #[error("the text ends too early")]
    Truncated,
    /// A character that cannot stand there.
    #[error("a character that cannot stand here")]
    Syntax,
    /// More follows after the value.
    #[error("more follows after the value")]
    Trailing,
    /// A number that JSON does not have: a leading zero or plus, nothing after the point, NaN.
    #[error("not a number as JSON spells it")]
    Number,
    /// An escape that JSON does not have.
    #[error("an escape that JSON does not have")]
    Escape,
    /// A control character that is not escaped.
    #[error("a control character that is not escaped")]
    Control,
    /// Half of a surrogate pair: no character.
    #[error("half of a surrogate pair, which is no character")]
    LoneSurrogate,
    /// More than [`JSON_DEPTH_MAX`] levels.
    #[error("nested deeper than {JSON_DEPTH_MAX} levels")]
    Depth,
    /// An object has two members of one name; reported at the object's end.
    #[error("an object with two members of the same name")]
    DuplicateKey,
    /// Valid, and not in the canonical spelling. Only where that is required.
    #[error("not in the canonical spelling")]
    NotCanonical,
}

/// The canonical spelling of any valid JSON text.
///
/// Takes memory in proportion to the text, and does not recurse.
///
/// ```
/// use manyhands_crdt::{JsonProblem, canonical_json};
///
/// assert_eq!(canonical_json(r#" { "a" : [1.50, "\u0041\/"] } "#).unwrap(), r#"{"a":[1.50,"A/"]}"#);
/// let flaw = canonical_json(r#"{"a":1,"a":2}"#).unwrap_err();
/// assert_eq!(flaw.what, JsonProblem::DuplicateKey);
/// ```
///
/// # Errors
/// With the first flaw: no JSON, a name twice in one object, nested deeper than [`JSON_DEPTH_MAX`], half of a
/// surrogate pair.
pub fn canonical_json(text: &str) -> Result<String, JsonFlaw> {
    let mut scan = Scan::new(text, Some(String::with_capacity(text.len())));
    scan.whole()?;
    Ok(scan.out.unwrap_or_default())
}

/// Whether a text is a JSON value in the canonical spelling. Allocates only for the names in objects, and
/// that in proportion to the text.
pub(crate) fn check(text: &str) -> Result<(), JsonFlaw> {
    Scan::new(text, None).whole()
}

/// What stands for an array among the open containers; for an object it is where its names begin.
const ARRAY: usize = usize::MAX;

struct Scan<'a> {
    text: &'a str,
    at: usize,
    /// Where the canonical spelling goes; without it only that spelling is accepted.
    out: Option<String>,
    /// Names of the objects that are open, as places in the canonical spelling.
    names: Vec<(usize, usize)>,
    open: [usize; JSON_DEPTH_MAX],
    depth: usize,
}

impl<'a> Scan<'a> {
    fn new(text: &'a str, out: Option<String>) -> Scan<'a> {
        Scan { text, at: 0, out, names: Vec::new(), open: [0; JSON_DEPTH_MAX], depth: 0 }
    }

    fn whole(&mut self) -> Result<(), JsonFlaw> {
        loop {
            // A value stands here. Unless it opens a container, it is over after this.
            if self.value()? {
                continue;
            }
            loop {
                self.space()?;
                if self.depth == 0 {
                    return if self.at == self.text.len() {
                        Ok(())
                    } else {
                        self.fail(JsonProblem::Trailing)
                    };
                }
                let names = self.open[self.depth - 1];
                match self.peek()? {
                    b',' => {
                        self.take(1);
                        if names != ARRAY {
                            self.name()?;
                        }
                        break;
                    }
                    b']' if names == ARRAY => self.close(),
                    b'}' if names != ARRAY => {
                        self.unique(names)?;
                        self.close();
                    }
                    _ => return self.fail(JsonProblem::Syntax),
                }
            }
        }
    }

    /// Reads a value; `true` when it is a container that was opened and another value must follow.
    fn value(&mut self) -> Result<bool, JsonFlaw> {
        self.space()?;
        let first = self.peek()?;
        if self.depth == JSON_DEPTH_MAX {
            return self.fail(JsonProblem::Depth);
        }
        match first {
            b'"' => self.string()?,
            b'-' | b'0'..=b'9' => self.number()?,
            b't' => self.literal("true")?,
            b'f' => self.literal("false")?,
            b'n' => self.literal("null")?,
            b'[' | b'{' => {
                self.take(1);
                self.open[self.depth] = if first == b'[' { ARRAY } else { self.names.len() };
                self.depth += 1;
                self.space()?;
                return match (first, self.peek()?) {
                    (b'[', b']') | (b'{', b'}') => {
                        self.close();
                        Ok(false)
                    }
                    (b'{', _) => self.name().map(|()| true),
                    _ => Ok(true),
                };
            }
            _ => return self.fail(JsonProblem::Syntax),
        }
        Ok(false)
    }

    fn close(&mut self) {
        self.take(1);
        self.depth -= 1;
    }

    /// A member's name and the colon.
    fn name(&mut self) -> Result<(), JsonFlaw> {
        self.space()?;
        if self.peek()? != b'"' {
            return self.fail(JsonProblem::Syntax);
        }
        let start = self.written();
        self.string()?;
        self.names.push((start, self.written()));
        self.space()?;
        if self.peek()? != b':' {
            return self.fail(JsonProblem::Syntax);
        }
        self.take(1);
        Ok(())
    }

    /// The names of the object that ends here must differ. In the canonical spelling, that is bytes.
    fn unique(&mut self, first: usize) -> Result<(), JsonFlaw> {
        let canonical = self.out.as_deref().unwrap_or(self.text).as_bytes();
        let name = |&(start, end): &(usize, usize)| &canonical[start..end];
        let names = &mut self.names[first..];
        if names.len() > 1 {
            names.sort_unstable_by(|a, b| name(a).cmp(name(b)));
            if names.windows(2).any(|pair| name(&pair[0]) == name(&pair[1])) {
                return self.fail(JsonProblem::DuplicateKey);
            }
        }
        self.names.truncate(first);
        Ok(())
    }

    fn string(&mut self) -> Result<(), JsonFlaw> {
        self.take(1);
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
            let Some(plain) = plain else {
                self.at = self.text.len();
                return self.fail(JsonProblem::Truncated);
            };
            self.take(plain);
            match self.peek()? {
                b'"' => {
                    self.take(1);
                    return Ok(());
                }
                b'\\' => self.escape()?,
                _ => return self.fail(JsonProblem::Control),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonFlaw> {
        let start = self.at;
        let Some(&kind) = self.text.as_bytes().get(start + 1) else {
            self.at = self.text.len();
            return self.fail(JsonProblem::Truncated);
        };
        let mut len = 2;
        let c = match kind {
            b'"' | b'\\' | b'/' => char::from(kind),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let mut unit = self.hex(start + 2)?;
                len = 6;
                if (0xd800..0xdc00).contains(&unit) && self.text[start + 6..].starts_with("\\u") {
                    let low = self.hex(start + 8)?;
                    if (0xdc00..0xe000).contains(&low) {
                        unit = 0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                        len = 12;
                    }
                }
                match char::from_u32(unit) {
                    Some(c) => c,
                    None => return self.fail(JsonProblem::LoneSurrogate),
                }
            }
            _ => return self.fail(JsonProblem::Escape),
        };
        match &mut self.out {
            Some(out) => put_escaped(out, c),
            None => {
                let mut canonical = String::new();
                if !must_be_escaped(c) || {
                    put_escaped(&mut canonical, c);
                    canonical != self.text[start..start + len]
                } {
                    return self.fail(JsonProblem::NotCanonical);
                }
            }
        }
        self.at += len;
        Ok(())
    }

    /// Four hexadecimal digits.
    fn hex(&self, at: usize) -> Result<u32, JsonFlaw> {
        let Some(digits) = self.text.as_bytes().get(at..at + 4) else {
            return Err(JsonFlaw { offset: self.text.len(), what: JsonProblem::Truncated });
        };
        let mut unit = 0;
        for &digit in digits {
            match char::from(digit).to_digit(16) {
                Some(digit) => unit = unit << 4 | digit,
                None => return self.fail(JsonProblem::Escape),
            }
        }
        Ok(unit)
    }

    fn number(&mut self) -> Result<(), JsonFlaw> {
        let rest = &self.text.as_bytes()[self.at..];
        let digits = |from: usize| rest[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let is = |at: usize, any_of: &[u8]| rest.get(at).is_some_and(|byte| any_of.contains(byte));
        let mut at = usize::from(is(0, b"-"));
        let whole = digits(at);
        let mut good = whole > 0 && !(whole > 1 && is(at, b"0"));
        at += whole;
        if good && is(at, b".") {
            let fraction = digits(at + 1);
            at += 1 + fraction;
            good = fraction > 0;
        }
        if good && is(at, b"eE") {
            at += 1 + usize::from(is(at + 1, b"+-"));
            let exponent = digits(at);
            at += exponent;
            good = exponent > 0;
        }
        if !good {
            return self.fail(JsonProblem::Number);
        }
        self.take(at);
        Ok(())
    }

    fn literal(&mut self, literal: &str) -> Result<(), JsonFlaw> {
        let rest = &self.text[self.at..];
        if rest.starts_with(literal) {
            self.take(literal.len());
            return Ok(());
        }
        let truncated = literal.starts_with(rest);
        self.fail(if truncated { JsonProblem::Truncated } else { JsonProblem::Syntax })
    }

    /// White space, where there may be some.
    fn space(&mut self) -> Result<(), JsonFlaw> {
        let rest = &self.text.as_bytes()[self.at..];
        let space = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
        if space > 0 && self.out.is_none() {
            return self.fail(JsonProblem::NotCanonical);
        }
        self.at += space;
        Ok(())
    }

    /// Takes what is in the canonical spelling as it is.
    fn take(&mut self, bytes: usize) {
        if let Some(out) = &mut self.out {
            out.push_str(&self.text[self.at..self.at + bytes]);
        }
        self.at += bytes;
    }

    /// How far the canonical spelling is.
    fn written(&self) -> usize {
        self.out.as_ref().map_or(self.at, String::len)
    }

    fn peek(&self) -> Result<u8, JsonFlaw> {
        match self.text.as_bytes().get(self.at) {
            Some(&byte) => Ok(byte),
            None => self.fail(JsonProblem::Truncated),
        }
    }

    fn fail<T>(&self, what: JsonProblem) -> Result<T, JsonFlaw> {
        Err(JsonFlaw { offset: self.at, what })
    }
}

fn must_be_escaped(c: char) -> bool {
    matches!(c, '"' | '\\' | '\0'..='\x1f')
}

fn put_escaped(out: &mut String, c: char) {
    let short = match c {
        '"' | '\\' => c,
        '\u{8}' => 'b',
        '\u{c}' => 'f',
        '\n' => 'n',
        '\r' => 'r',
        '\t' => 't',
        _ => {
            if must_be_escaped(c) {
                out.push_str("\\u00");
                for digit in [c as u32 >> 4, c as u32 & 15] {
                    out.extend(char::from_digit(digit, 16));
                }
            } else {
                out.push(c);
            }
            return;
        }
    };
    out.push('\\');
    out.push(short);
}
