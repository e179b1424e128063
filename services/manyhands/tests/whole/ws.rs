//! `manyhands ws` as people and scripts meet it, over both dialects.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::world::{BINARY, Dev};

/// A server, and the flags that find it.
struct Scene {
    dev: Dev,
    data: tempfile::TempDir,
}

impl Scene {
    fn begin() -> Scene {
        let data = tempfile::tempdir().unwrap();
        Scene { dev: Dev::start(data.path(), "127.0.0.1:0"), data }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("ws").args(arguments).stdin(Stdio::null());
        command.env("MANYHANDS_URL", format!("ws://{}", self.dev.address()));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it printed, when all went well.
    fn ws(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ws(arguments)).unwrap()
    }

    /// It fails with this exit code, nothing on standard output, and these words.
    fn fails(&self, arguments: &[&str], exit: i32, words: &[&str]) {
        let output = self.run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
        assert!(said.contains("fix: ") && said.contains("error: "), "{said}");
    }
}

#[test]
fn what_one_dialect_writes_the_other_reads() {
    let scene = Scene::begin();
    for (writer, reader) in [("json", "binary"), ("binary", "json")] {
        let workspace = format!("demo-{writer}");
        let w = &workspace[..];
        scene.ws(&["put", w, "title", "\"Hello\"", "--dialect", writer]);
        scene.ws(&["put", w, "note", "not JSON", "--text", "--dialect", writer]);
        scene.ws(&["put", w, "n", "-1.50", "--dialect", writer]);
        scene.ws(&["put", w, "gone", "null", "--dialect", writer]);
        scene.ws(&["del", w, "gone", "--dialect", writer]);
        let read = |arguments: &[&str]| scene.ws(&[arguments, &["--dialect", reader]].concat());
        assert_eq!(read(&["get", w, "title"]), "\"Hello\"\n");
        assert_eq!(read(&["get", w, "n"]), "-1.50\n", "numbers stay as they were written");
        assert_eq!(read(&["get", w]), "n      -1.50\nnote   \"not JSON\"\ntitle  \"Hello\"\n");
        let all: Value = serde_json::from_str(&read(&["get", w, "-o", "json"])).unwrap();
        assert_eq!(all, json!({ "n": -1.5, "note": "not JSON", "title": "Hello" }));
        scene.fails(&["get", w, "gone", "--dialect", reader], 4, &["there is no key \"gone\""]);
    }
    assert!(scene.json(&["get", "demo-binary", "n", "-o", "json"])["seq"].as_u64().unwrap() > 0);
}

#[test]
fn a_named_map_is_not_the_root_and_not_for_json() {
    let scene = Scene::begin();
    scene.ws(&["put", "w", "k", "1", "--map", "todos"]);
    assert_eq!(scene.json(&["get", "w", "-o", "json"]), json!({}));
    assert_eq!(scene.json(&["get", "w", "-o", "json", "--map", "todos"]), json!({ "k": 1 }));
    scene.fails(&["get", "w", "--map", "todos", "--dialect", "json"], 2, &["map without a name"]);
}

#[test]
fn expectations_are_checked_and_a_conflict_says_what_there_is() {
    let scene = Scene::begin();
    for dialect in ["binary", "json"] {
        let workspace = format!("guarded-{dialect}");
        let w = &workspace[..];
        let dialect = ["--dialect", dialect];
        let put = |arguments: &[&'static str]| [&["put", w], arguments, &dialect].concat();
        scene.ws(&put(&["k", "1", "--strategy", "server", "--expect", "0"]));
        let seq = scene.json(&["get", w, "k", "-o", "json"])["seq"].to_string();
        scene.ws(&[&["put", w, "k", "2", "--expect", &seq], &dialect[..]].concat());
        scene.fails(&[&["put", w, "k", "3", "--expect", &seq], &dialect[..]].concat(), 5, &["conflict", "2"]);
        scene.fails(&[&["del", w, "k", "--expect", "0"], &dialect[..]].concat(), 5, &["conflict"]);
        assert_eq!(scene.ws(&["get", w, "k"]), "2\n");
        scene.fails(&put(&["k", "1", "--strategy", "lww"]), 7, &["strategy_mismatch"]);
    }
}

#[test]
fn watching_prints_what_there_is_and_what_comes() {
    let scene = Scene::begin();
    for dialect in ["binary", "json"] {
        let w = &format!("watched-{dialect}")[..];
        scene.ws(&["put", w, "before", "0"]);
        let mut watching = scene
            .command(&["watch", w, "--count", "3", "--dialect", dialect])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
        let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        let before = next();
        assert_eq!((&before["key"], &before["value"]), (&json!("before"), &json!(0)));
        // The JSON dialect's `init` does not say when: then nothing is said.
        assert_eq!(before.get("timestamp").is_some(), dialect == "binary", "{before}");
        scene.ws(&["put", w, "a", "{\"b\":1}", "--dialect", "json"]);
        scene.ws(&["put", w, "a", "2", "--dialect", "binary"]);
        scene.ws(&["del", w, "a", "--dialect", dialect]);
        let (first, second, third) = (next(), next(), next());
        assert_eq!((&first["key"], &first["value"]), (&json!("a"), &json!({ "b": 1 })));
        assert!(first["timestamp"].as_u64().unwrap() > 1_700_000_000_000_000);
        assert_eq!(second["value"], json!(2));
        assert_eq!((&third["key"], &third["deleted"]), (&json!("a"), &json!(true)));
        assert!(watching.wait().unwrap().success());
    }
}

#[test]
fn concurrent_values_are_listed_until_somebody_settles_them() {
    let scene = Scene::begin();
    // Somebody writes without a server, and somebody else with one.
    let profile = tempfile::tempdir().unwrap();
    let profile = profile.path().to_str().unwrap();
    scene.ws(&["put", "w", "k", "0"]);
    scene.fails(
        &[
            "put",
            "w",
            "k",
            "\"offline\"",
            "--profile",
            profile,
            "--timeout",
            "300ms",
            "--url",
            "ws://127.0.0.1:9",
        ],
        6,
        &["no answer"],
    );
    scene.ws(&["put", "w", "k", "\"online\""]);
    scene.ws(&["put", "w", "other", "1", "--profile", profile]);
    let found = scene.json(&["conflicts", "w", "-o", "json"]);
    let found = &found["k"];
    assert_eq!(found["winner"]["value"], "offline");
    assert_eq!(found["conflicts"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found["conflicts"][0]["value"], "online");
    assert_eq!(scene.ws(&["conflicts", "w", "k"]), "k  \"offline\"\n   \"online\"  (concurrent)\n");
    assert_eq!(scene.ws(&["conflicts", "w", "other"]), "");
    scene.fails(&["conflicts", "w", "none"], 4, &["no key"]);
    scene.fails(&["conflicts", "w", "--dialect", "json"], 2, &["winners only"]);
    scene.ws(&["put", "w", "k", "\"settled\""]);
    assert_eq!(scene.ws(&["conflicts", "w"]), "");
}

/// What a killed command had taken is sent by the next one, once.
// enforces: I-14
#[test]
fn a_write_that_was_killed_is_sent_by_the_next_with_its_profile() {
    let mut scene = Scene::begin();
    let listen = scene.dev.address().to_string();
    let profile = tempfile::tempdir().unwrap();
    let profile = profile.path().to_str().unwrap();
    scene.ws(&["put", "w", "online", "1"]);
    let dev =
        std::mem::replace(&mut scene.dev, Dev::start(tempfile::tempdir().unwrap().path(), "127.0.0.1:0"));
    dev.kill();
    let mut killed = Command::new(BINARY)
        .args(["ws", "put", "w", "offline", "2", "--profile", profile, "--timeout", "1m"])
        .args(["--url", &format!("ws://{listen}")])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(killed.stderr.take().unwrap()).lines().next().unwrap().unwrap();
    assert!(said.starts_with("kept in "), "{said}");
    killed.kill().unwrap();
    killed.wait().unwrap();

    scene.dev = Dev::start(scene.data.path(), &listen);
    scene.ws(&["put", "w", "later", "3", "--profile", profile]);
    assert_eq!(scene.json(&["get", "w", "-o", "json"]), json!({ "online": 1, "offline": 2, "later": 3 }));
}

#[test]
fn mistakes_are_named_with_a_fix_and_a_code_of_their_own() {
    let scene = Scene::begin();
    for dialect in ["binary", "json"] {
        let with = |arguments: &[&'static str]| [arguments, &["--dialect", dialect]].concat();
        scene.fails(&with(&["put", "w", "k", "hello"]), 2, &["no JSON", "--text 'hello'"]);
        scene.fails(&with(&["put", "w", "", "1"]), if dialect == "json" { 7 } else { 2 }, &["key"]);
        scene.fails(&with(&["get", "w", "--token", "nonsense"]), 3, &["unauthenticated"]);
        scene.fails(&with(&["get", "w", "--url", "ws://127.0.0.1:9", "--timeout", "1s"]), 6, &["--url"]);
        let reader = crate::world::token(&["--workspace", "w", "--scope", "read"]);
        let put = ["put", "w", "k", "1", "--dialect", dialect, "--token", &reader];
        scene.fails(&put, 3, &["forbidden", "write"]);
        assert_eq!(scene.ws(&["get", "w", "--token", &reader, "--dialect", dialect]), "");
    }
    scene.fails(&["put", "w", "k", "1", "--timestamp", "1763661900000000"], 2, &["--dialect json"]);
    scene.fails(
        &["put", "w", "k", "1", "--timestamp", "1763661900000", "--dialect", "json"],
        7,
        &["milliseconds", "Date.now() * 1000"],
    );
    // Wrong usage is clap's.
    assert_eq!(scene.run(&["get"]).status.code(), Some(2));
    assert_eq!(scene.run(&["get", "w", "--strategy", "newest"]).status.code(), Some(2));
    let help = String::from_utf8(scene.run(&["put", "--help"]).stdout).unwrap();
    for word in ["--expect", "--dialect", "--profile", "MANYHANDS_URL", "standard input"] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
}
