//! PROTOCOL.md says what the source does.

use std::fmt::Write as _;

use manyhands_proto::{CODES, Code, Retry, v1};
use prost::Message as _;

const PROTOCOL: &str = include_str!("../PROTOCOL.md");

fn row(code: Code) -> String {
    let close = code.close().map_or("–".to_owned(), |close| close.to_string());
    let retry = match code.retry() {
        Retry::Later => "later",
        Retry::AfterResync => "after resync",
        Retry::No if code.number() >= 900 => "report",
        Retry::No => "no",
    };
    format!(
        "| {} | `{}` | {} | {:?} | {close} | {retry} | {} | {} |",
        code.number(),
        code.slug(),
        code.http_status(),
        code.grpc(),
        code.message(),
        code.fix(),
    )
}

/// The lines of the section that begins with this heading.
fn section(heading: &str) -> impl Iterator<Item = &'static str> {
    let lines = PROTOCOL.lines().skip_while(move |line| *line != heading).skip(1);
    lines.take_while(|line| !line.starts_with("## "))
}

#[test]
fn the_table_of_codes_is_the_one_in_the_source() {
    let is_row = |line: &&str| line.strip_prefix("| ").is_some_and(|rest| rest.starts_with(char::is_numeric));
    let written: Vec<&str> = section("## Codes").filter(is_row).collect();
    let expected: Vec<String> = CODES.iter().copied().map(row).collect();
    let mut table = String::new();
    expected.iter().for_each(|row| writeln!(table, "{row}").unwrap());
    assert_eq!(written, expected, "it should be:\n{table}");
}

/// The bytes of the example conversation are frames, of the kind that the line before them names.
#[test]
fn the_example_is_what_the_schema_encodes() {
    let mut kind = String::new();
    let mut side = "";
    let mut kinds = Vec::new();
    for line in section("## A conversation, byte by byte") {
        if let Some(title) = line.strip_prefix("**") {
            (side, kind) = title.split_once(": `").map(|(side, rest)| (side, rest.to_owned())).unwrap();
            kind.truncate(kind.find('`').unwrap());
        }
        let Some(bytes) = line.strip_prefix("    ") else { continue };
        let bytes: Vec<u8> =
            bytes.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let (said, again) = if side == "client" {
            let frame = v1::ClientFrame::decode(&bytes[..]).unwrap();
            (format!("{:?}", frame.frame), frame.encode_to_vec())
        } else {
            let frame = v1::ServerFrame::decode(&bytes[..]).unwrap();
            (format!("{:?}", frame.frame), frame.encode_to_vec())
        };
        assert!(said.starts_with(&format!("Some({kind}(")), "{side}: {kind}: {said}");
        assert_eq!(again, bytes, "{said}");
        kinds.push(std::mem::take(&mut kind));
    }
    assert_eq!(kinds, ["Hello", "Welcome", "Open", "Opened", "Push", "Ack", "Delta", "Leave"]);
}

/// Every frame of the schema has its place in the document.
#[test]
fn every_frame_and_field_is_described() {
    let schema = include_str!("../manyhands/v1/session.proto");
    for name in schema.lines().filter_map(|line| line.strip_prefix("message ")) {
        let name = name.trim_end_matches([' ', '{', '}']);
        if name.ends_with("Frame") {
            continue;
        }
        assert!(PROTOCOL.contains(&format!("`{name}`")), "{name} is not described");
    }
    let fields = schema.lines().filter_map(|line| {
        // Deeper are the kinds of frames, which are named as messages.
        let line = line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?;
        let (declared, _) = line.split_once(" = ")?;
        let mut words = declared.split_whitespace().rev();
        let name = words.next()?;
        words.next().filter(|_| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))?;
        Some(name)
    });
    let fields: Vec<&str> = fields.collect();
    assert!(fields.len() > 50, "{fields:?}");
    for name in fields {
        assert!(PROTOCOL.contains(&format!("`{name}`")), "the field {name} is not described");
    }
}
