//! JSON Schemas of workspaces: what may be in the root map of a document that merges by the strategy `server`.
//!
//! A schema describes the root map as one object. A write sets one key, so it is checked as an object with that
//! key alone; what the schema demands of the object as a whole and one key cannot show (`required`,
//! `minProperties`, `dependentRequired` at its top) does not refuse a write. Removing a required key is refused.
//! Schemas are read once, at the start; none refers to anything outside itself.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonschema::{PatternOptions, ValidationError, Validator};
use manyhands_crdt::{MapOp, read_map_ops};
use manyhands_proto::DocumentName;
use serde_json::Value;

/// Bytes of a schema's file.
const SCHEMA_BYTES_MAX: u64 = 256 * 1024;
/// Schemas of one configuration.
const SCHEMAS_MAX: usize = 1_000;
/// Bytes of one compiled pattern.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// Characters of what is told about a violation.
const MESSAGE_CHARS_MAX: usize = 300;
/// What demands something of the whole object.
const OF_THE_WHOLE: [&str; 5] =
    ["/required", "/minProperties", "/dependentRequired", "/dependentSchemas", "/dependencies"];

/// The schemas of a node, by the workspaces that they are for.
#[derive(Clone, Debug, Default)]
pub struct Schemas {
    exact: BTreeMap<String, Arc<Schema>>,
    /// By what the name begins with, the longest first.
    prefixes: Vec<(String, Arc<Schema>)>,
}

/// One schema, ready to check with.
#[derive(Debug)]
pub struct Schema {
    validator: Validator,
    required: BTreeSet<String>,
}

/// A schema cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the schema {} of workspace `{workspace}` {why}", .file.display())]
pub struct SchemaError {
    /// Which workspaces it is for.
    pub workspace: String,
    /// Where it is.
    pub file: PathBuf,
    /// What is wrong, and what to do.
    pub why: String,
}

/// A write that a schema does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Violation {
    /// Which part of the root map, as a JSON pointer.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

impl Schemas {
    /// Reads and compiles the schemas of a configuration: files by the name of a workspace, or by what it begins
    /// with and `*`.
    pub fn load(files: &BTreeMap<String, PathBuf>) -> Result<Schemas, SchemaError> {
        let mut schemas = Schemas::default();
        for (index, (workspace, file)) in files.iter().enumerate() {
            let fail = |why: String| SchemaError { workspace: workspace.clone(), file: file.clone(), why };
            if index == SCHEMAS_MAX {
                return Err(fail(format!("is one too many: there may be {SCHEMAS_MAX}")));
            }
            let schema = Arc::new(read(file).and_then(|text| Schema::compile(&text)).map_err(fail)?);
            match workspace.strip_suffix('*') {
                Some(prefix) => schemas.prefixes.push((prefix.to_owned(), schema)),
                None if workspace.parse::<DocumentName>().is_err() => {
                    return Err(fail("is for what is not the name of a workspace".to_owned()));
                }
                None => drop(schemas.exact.insert(workspace.clone(), schema)),
            }
        }
        schemas.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(schemas)
    }

    /// The schema of a workspace: the one under its name, else the one under the longest beginning.
    #[must_use]
    pub fn of(&self, name: &DocumentName) -> Option<&Schema> {
        let name = name.as_str();
        let by_prefix = || {
            self.prefixes
                .iter()
                .find(|(prefix, _)| name.starts_with(prefix.as_str()))
                .map(|(_, schema)| schema)
        };
        self.exact.get(name).or_else(by_prefix).map(Arc::as_ref)
    }
}

fn read(file: &Path) -> Result<String, String> {
    let length = std::fs::metadata(file).map_err(|error| format!("cannot be read: {error}"))?.len();
    if length > SCHEMA_BYTES_MAX {
        return Err(format!("has {length} bytes; at most {SCHEMA_BYTES_MAX} are allowed"));
    }
    std::fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"))
}

impl Schema {
    /// Compiles a schema's text.
    ///
    /// # Errors
    /// What is wrong with it, in words that go behind its name.
    pub fn compile(text: &str) -> Result<Schema, String> {
        let schema: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
        // Values come from anybody: patterns must take linear time. References go nowhere.
        let patterns =
            PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX);
        let options = jsonschema::options().with_pattern_options(patterns).offline();
        let validator = options.build(&schema).map_err(|error| {
            let at = error.instance_path().as_str().to_owned();
            let why = shortened(&error.to_string());
            format!("cannot be used: {why}{}", if at.is_empty() { at } else { format!(", at {at}") })
        })?;
        let names = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        let required = names.filter_map(|name| name.as_str().map(str::to_owned)).collect();
        Ok(Schema { validator, required })
    }

    /// Checks what a change's body writes to the root map. A body that is malformed is somebody else's to
    /// refuse.
    ///
    /// # Errors
    /// The first write that is not allowed.
    pub fn check(&self, body: &[u8]) -> Result<(), Violation> {
        let Ok(mut ops) = read_map_ops(body) else { return Ok(()) };
        ops.try_for_each(|(_, op)| if op.map.is_empty() { self.check_write(&op) } else { Ok(()) })
    }

    fn check_write(&self, op: &MapOp<'_>) -> Result<(), Violation> {
        let of_key = |why: &str| Violation { path: pointer(op.key), why: why.to_owned() };
        let Some(value) = op.value else {
            let required = self.required.contains(op.key);
            return if required { Err(of_key("this key is required and cannot be removed")) } else { Ok(()) };
        };
        let value: Value = serde_json::from_str(value)
            .map_err(|_| of_key("it holds a number that schemas cannot be checked on"))?;
        let object = Value::Object(serde_json::Map::from_iter([(op.key.to_owned(), value)]));
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let mut errors = self.validator.iter_errors(&object);
            errors.find(|error| !is_of_the_whole(error)).map(|error| violation(&error))
        }));
        match checked {
            Ok(None) => Ok(()),
            Ok(Some(violation)) => Err(violation),
            Err(_) => Err(of_key("checking it against the schema failed")),
        }
    }
}

fn is_of_the_whole(error: &ValidationError<'_>) -> bool {
    let at = error.schema_path().as_str();
    error.instance_path().as_str().is_empty()
        && OF_THE_WHOLE
            .iter()
            .any(|of| at.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn violation(error: &ValidationError<'_>) -> Violation {
    // The value itself stays out of the message: it may be long, and the author has it.
    let why = shortened(&error.masked().to_string());
    Violation { path: error.instance_path().as_str().to_owned(), why }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A key as a JSON pointer.
fn pointer(key: &str) -> String {
    format!("/{}", key.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use manyhands_crdt::{Hlc, map_change_body};

    use super::*;

    const BOARD: &str = r##"{
        "type": "object",
        "required": ["title"],
        "minProperties": 2,
        "properties": {
            "title": { "type": "string", "maxLength": 20, "pattern": "^[a-z ]*$" },
            "size": { "type": "integer", "minimum": 1 },
            "cells": { "type": "array", "items": { "$ref": "#/$defs/cell" } }
        },
        "additionalProperties": false,
        "$defs": { "cell": { "type": "object", "required": ["x"], "properties": { "x": { "type": "number" } } } }
    }"##;

    fn body(map: &str, key: &str, value: Option<&str>) -> Vec<u8> {
        map_change_body(&MapOp { map, key, value, stamp: Hlc::at(1), expect: None }).unwrap()
    }

    fn check(key: &str, value: Option<&str>) -> Result<(), String> {
        Schema::compile(BOARD).unwrap().check(&body("", key, value)).map_err(|violation| violation.path)
    }

    #[test]
    fn a_write_is_checked_as_its_key_alone() {
        for (key, value) in [
            ("title", "\"chess\""),
            ("size", "8"),
            ("cells", "[]"),
            ("cells", r#"[{"x":1.5},{"x":2,"y":0}]"#),
        ] {
            assert_eq!(check(key, Some(value)), Ok(()), "{key} = {value}");
        }
        for (key, value, path) in [
            ("title", "8", "/title"),
            ("title", "\"Chess\"", "/title"),
            ("title", "\"a title that is too long\"", "/title"),
            ("size", "0", "/size"),
            ("size", "1.5", "/size"),
            ("cells", r#"[{"x":1},{"x":"1"}]"#, "/cells/1/x"),
            // What is demanded further in is demanded.
            ("cells", r#"[{"x":1},{}]"#, "/cells/1"),
            ("other", "1", ""),
            ("size", "1e999", "/size"),
        ] {
            assert_eq!(check(key, Some(value)), Err(path.to_owned()), "{key} = {value}");
        }
    }

    #[test]
    fn a_required_key_cannot_be_removed() {
        assert_eq!(check("title", None), Err("/title".to_owned()));
        assert_eq!(check("size", None), Ok(()));
    }

    #[test]
    fn a_violation_names_path_and_reason_and_never_the_value() {
        let long = format!("\"{}\"", "secret ".repeat(1_000));
        let violation = Schema::compile(BOARD).unwrap().check(&body("", "title", Some(&long))).unwrap_err();
        assert_eq!(violation.path, "/title");
        let text = violation.to_string();
        assert!(text.starts_with("/title: ") && text.contains("20"), "{text}");
        assert!(!text.contains("secret") && text.len() < 400, "{text}");
        assert_eq!(pointer("a/b~c"), "/a~1b~0c");
    }

    #[test]
    fn other_maps_are_not_described() {
        let schema = Schema::compile(BOARD).unwrap();
        assert_eq!(schema.check(&body("notes", "anything", Some("1"))), Ok(()));
        assert_eq!(schema.check(b"\xff\xff"), Ok(()), "malformed bytes are refused elsewhere");
    }

    #[test]
    fn what_cannot_be_compiled_says_why() {
        for (text, says) in [
            ("{", "is not JSON"),
            (r#"{"type": "strin"}"#, "cannot be used"),
            (r#"{"properties": {"a": {"pattern": "("}}}"#, "cannot be used"),
            // Not in linear time.
            (r#"{"properties": {"a": {"pattern": "(?=a)b"}}}"#, "cannot be used"),
            (r#"{"$ref": "http://127.0.0.1:1/schema.json"}"#, "127.0.0.1"),
            (r#"{"properties": {"a": {"$ref": "file:///etc/hostname"}}}"#, "/etc/hostname"),
            (r##"{"properties": {"a": {"$ref": "#/$defs/missing"}}}"##, "missing"),
        ] {
            let why = Schema::compile(text).unwrap_err();
            assert!(why.contains(says), "{text}: {why}");
        }
    }

    #[test]
    fn files_are_for_names_and_for_beginnings_of_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let never = file("never.json", "false");
        let board = file("board.json", BOARD);
        let load = |files: &[(&str, &PathBuf)]| {
            Schemas::load(&files.iter().map(|(name, path)| ((*name).to_owned(), (*path).clone())).collect())
        };
        let schemas = load(&[("game-*", &board), ("game-9*", &never), ("game-91", &board)]).unwrap();
        let allows = |name: &str| {
            let schema = schemas.of(&name.parse().unwrap());
            schema.map(|schema| schema.check(&body("", "size", Some("1"))).is_ok())
        };
        assert_eq!(allows("game-1"), Some(true));
        assert_eq!(allows("game-92"), Some(false), "the longer beginning wins");
        assert_eq!(allows("game-91"), Some(true), "the name wins");
        assert_eq!(allows("chess"), None);

        let large = file("large.json", &" ".repeat(SCHEMA_BYTES_MAX as usize + 1));
        let missing = folder.path().join("missing.json");
        let broken = file("broken.json", "{");
        for (name, path, says) in [
            ("demo", &large, "bytes"),
            ("demo", &missing, "cannot be read"),
            ("demo", &broken, "is not JSON"),
            ("not a name", &board, "not the name"),
        ] {
            let error = load(&[(name, path)]).unwrap_err().to_string();
            let file = path.display().to_string();
            assert!(error.contains(says) && error.contains(&file) && error.contains(name), "{error}");
        }
    }
}
