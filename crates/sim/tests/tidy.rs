//! The rules of the repository that a machine can check. Each test says the rule it keeps.

use std::collections::{BTreeMap, BTreeSet};

use manyhands_sim::repository::{File, file, files};

/// What each crate of ours may use of ours, outside of its tests. Arrows point down only.
const MAY_USE: &[(&str, &[&str])] = &[
    ("manyhands-proto", &[]),
    ("manyhands-crdt", &[]),
    ("bench-peers", &["manyhands-crdt", "manyhands-proto"]),
    ("manyhands-crdt-fuzz", &["manyhands-crdt"]),
    ("manyhands-process", &[]),
    ("manyhands-neighbours", &[]),
    ("manyhands-sim", &[]),
    ("manyhands-session", &["manyhands-crdt", "manyhands-proto"]),
    ("manyhands-history", &["manyhands-crdt", "manyhands-proto"]),
    ("manyhands-bus", &["manyhands-proto"]),
    (
        "manyhands-edge",
        &["manyhands-bus", "manyhands-crdt", "manyhands-process", "manyhands-proto", "manyhands-session"],
    ),
    (
        "manyhands-document",
        &["manyhands-bus", "manyhands-crdt", "manyhands-history", "manyhands-process", "manyhands-proto"],
    ),
    (
        "manyhands",
        &[
            "manyhands-bus",
            "manyhands-client",
            "manyhands-document",
            "manyhands-edge",
            "manyhands-history",
            "manyhands-process",
            "manyhands-proto",
        ],
    ),
    ("manyhands-client", &["manyhands-crdt", "manyhands-proto", "manyhands-session"]),
    (
        "loadtest",
        &[
            "manyhands-client",
            "manyhands-crdt",
            "manyhands-history",
            "manyhands-neighbours",
            "manyhands-proto",
        ],
    ),
];

/// Crates of others that a pure crate may use.
const PURE_CRATES: &[(&str, &[&str])] = &[
    ("manyhands-crdt", &["blake3", "lz4_flex", "thiserror"]),
    ("manyhands-session", &["bytes", "prost", "serde", "serde_json", "thiserror"]),
];

/// Modules that decide and touch nothing: no clock, randomness, thread, task, socket or file.
const PURE_MODULES: &[&str] = &[
    "crates/crdt/src/",
    "crates/session/src/",
    "services/document/src/ownership.rs",
    "services/document/src/partition.rs",
    "services/document/src/partition/",
    "services/document/src/residency.rs",
    "services/edge/src/presence/roster.rs",
];

const IMPURE: &[&str] = &[
    "std::time::Instant",
    "Instant::now",
    "SystemTime",
    "std::thread",
    "std::fs",
    "std::net",
    "std::env",
    "tokio",
    "rand::",
    "sqlx",
    // Iteration order of these differs from run to run.
    "HashMap",
    "HashSet",
    "RandomState",
];

fn manifests() -> BTreeMap<String, (File, toml::Table)> {
    files("Cargo.toml")
        .into_iter()
        .filter_map(|file| {
            let table: toml::Table = file.text.parse().expect("a manifest is TOML");
            let name = table.get("package")?.get("name")?.as_str()?.to_owned();
            Some((name, (file, table)))
        })
        .collect()
}

fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    manifest
        .get("dependencies")
        .and_then(toml::Value::as_table)
        .map(|table| table.keys().cloned().collect())
        .unwrap_or_default()
}

fn sources() -> Vec<File> {
    files(".rs").into_iter().filter(|file| !file.path.starts_with("crates/sim/")).collect()
}

fn none(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn dependencies_point_down() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut broken = Vec::new();
    for (name, (file, manifest)) in manifests() {
        let Some(allowed) = allowed.get(name.as_str()) else {
            broken.push(format!("{}: say in MAY_USE what {name} may use", file.path));
            continue;
        };
        for used in dependencies(&manifest) {
            let ours = used.starts_with("manyhands") || used == "loadtest";
            if ours && !allowed.contains(&used.as_str()) {
                broken.push(format!("{}: {name} may not use {used}", file.path));
            }
        }
    }
    none(&broken);
}

// enforces: I-11
#[test]
fn pure_modules_touch_nothing() {
    let mut broken = Vec::new();
    for (name, allowed) in PURE_CRATES {
        let (file, manifest) = &manifests()[*name];
        for used in dependencies(manifest) {
            if !used.starts_with("manyhands") && !allowed.contains(&used.as_str()) {
                broken.push(format!("{}: {name} is pure and may not use {used}", file.path));
            }
        }
    }
    let pure: Vec<File> = sources()
        .into_iter()
        .filter(|file| !file.is_test() && PURE_MODULES.iter().any(|place| file.path.starts_with(place)))
        .collect();
    for place in PURE_MODULES {
        // A module that is a folder stands in the list twice, once for each form; one of them is there.
        let stem = place.trim_end_matches(".rs").trim_end_matches('/');
        assert!(pure.iter().any(|file| file.path.starts_with(stem)), "{place}: no such module");
    }
    for file in &pure {
        for (line, code) in file.code() {
            for word in IMPURE {
                if code.contains(word) {
                    broken.push(format!("{}:{line}: a pure module may not use {word}", file.path));
                }
            }
        }
    }
    none(&broken);
}

#[test]
fn banned_calls() {
    // (what, where it is allowed, why it is not elsewhere)
    let banned: &[(&str, &[&str], &str)] = &[
        (
            "ON CONFLICT DO NOTHING",
            &["crates/history/src/log/"],
            "an identity that is there already is compared, not ignored",
        ),
        ("bigserial", &[], "its order is not commit order"),
        ("thread::sleep", &["crates/neighbours/", "loadtest/"], "wait for the condition"),
        ("todo!(", &[], "finish it"),
        ("unimplemented!(", &[], "finish it"),
        (
            "std::env::var",
            &["crates/process/", "crates/neighbours/", "services/manyhands/"],
            "configuration is read in one place",
        ),
        (
            "SystemTime::now",
            &["crates/process/", "crates/history/", "services/", "clients/", "loadtest/"],
            "time is an argument",
        ),
    ];
    let mut broken = Vec::new();
    for file in sources().iter().filter(|file| !file.is_test()) {
        for (line, code) in file.code() {
            for (what, places, why) in banned {
                if code.contains(what) && !places.iter().any(|place| file.path.starts_with(place)) {
                    broken.push(format!("{}:{line}: {what}: {why}", file.path));
                }
            }
        }
    }
    none(&broken);
}

#[test]
fn appends_never_leave_a_transaction_open() {
    // A transaction that is open across a wait holds locks for as long as its process sleeps, and
    // sqlx returns a cancelled one to its pool.
    let mut broken = Vec::new();
    for file in files(".rs").iter().filter(|file| file.path.starts_with("crates/history/src/log/postgres")) {
        for (line, code) in file.code() {
            if code.contains(".begin()") || code.contains("pool.acquire") {
                broken.push(format!(
                    "{}:{line}: one statement in autocommit, on a connection of its own",
                    file.path
                ));
            }
        }
    }
    none(&broken);
}

#[test]
fn no_test_is_skipped() {
    let mut broken = Vec::new();
    for file in files(".rs").iter().filter(|file| !file.path.starts_with("crates/sim/")) {
        for (index, line) in file.text.lines().enumerate() {
            if line.trim_start().starts_with("#[ignore") {
                broken.push(format!("{}:{}: a test that is not run proves nothing", file.path, index + 1));
            }
        }
    }
    none(&broken);
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let broken: Vec<String> = files(".rs")
        .iter()
        .map(|file| (file, file.text.lines().count()))
        .filter(|(_, lines)| *lines > 800)
        .map(|(file, lines)| format!("{}: {lines} lines, 800 at the most", file.path))
        .collect();
    none(&broken);
}

#[test]
fn names_say_what_a_thing_is() {
    let mut broken = Vec::new();
    for file in sources() {
        for (line, code) in file.code() {
            let mut words = code.split_whitespace();
            if !words.any(|word| matches!(word, "struct" | "enum" | "trait")) {
                continue;
            }
            let name: String = words
                .next()
                .unwrap_or_default()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            for suffix in ["Manager", "Helper", "Util", "Utils", "Impl"] {
                if name.ends_with(suffix) {
                    broken.push(format!("{}:{line}: {name}", file.path));
                }
            }
        }
    }
    none(&broken);
}

#[test]
fn both_migrations_tell_one_story() {
    let names = |folder: &str| -> Vec<String> {
        files(".sql")
            .into_iter()
            .filter_map(|file| file.path.strip_prefix(folder).map(str::to_owned))
            .collect()
    };
    let postgres = names("migrations/postgres/");
    assert!(!postgres.is_empty());
    assert_eq!(postgres, names("migrations/sqlite/"));
}

/// Every promise has a test, every test that claims to keep one names a promise that exists.
#[test]
fn every_invariant_has_a_test() {
    // | I-1 | statement | kept by | `test` in `file`, … |
    let mut promised: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for line in file("INVARIANTS.md").text.lines().filter(|line| line.starts_with("| I-")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 4, "a row has four cells: {line}");
        let mut tests = Vec::new();
        for part in cells[3].split(", ") {
            let names: Vec<&str> = part.split('`').skip(1).step_by(2).collect();
            if let [test, path] = names[..] {
                tests.push((test.to_owned(), path.to_owned()));
            }
        }
        promised.insert(cells[0].to_owned(), tests);
    }
    let mut kept: BTreeSet<(String, String, String)> = BTreeSet::new();
    let mut broken = Vec::new();
    for file in files(".rs") {
        let lines: Vec<&str> = file.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let Some(ids) = line.trim().strip_prefix("// enforces: ") else { continue };
            let test = lines[index..]
                .iter()
                .filter_map(|line| line.split("fn ").nth(1))
                .find_map(|rest| rest.split(['(', '<']).next())
                .unwrap_or_default();
            for id in ids.split([',', ' ']).filter(|id| !id.is_empty()) {
                if !promised.contains_key(id) {
                    broken.push(format!("{}:{}: {id} is not in INVARIANTS.md", file.path, index + 1));
                }
                kept.insert((id.to_owned(), test.to_owned(), file.path.clone()));
            }
        }
    }
    for (id, tests) in &promised {
        if tests.is_empty() {
            broken.push(format!("INVARIANTS.md: {id} has no test"));
        }
        for (test, path) in tests {
            if !kept.contains(&(id.clone(), test.clone(), path.clone())) {
                broken.push(format!(
                    "INVARIANTS.md: {id}: no test {test} in {path} that says `enforces: {id}`"
                ));
            }
        }
    }
    none(&broken);
}

#[test]
fn the_readme_names_commands_that_exist() {
    let makefile = file("Makefile").text;
    let mut broken = Vec::new();
    for document in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"] {
        for part in file(document).text.split("make ").skip(1) {
            let target: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
            let named = part.starts_with(&target) && !target.is_empty();
            if named && document != "ARCHITECTURE.md" && !makefile.contains(&format!("\n{target}:")) {
                broken.push(format!("{document}: make {target}"));
            }
        }
    }
    none(&broken);
}

/// A map that names a file that is not there is worse than none.
#[test]
fn the_documents_name_files_that_exist() {
    let root = manyhands_sim::repository::root();
    let mut broken = Vec::new();
    for document in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "INVARIANTS.md"] {
        for named in file(document).text.split('`').skip(1).step_by(2) {
            let ours = ["crates/", "services/", "clients/", "proto/", "migrations/", "deploy/", "loadtest/"];
            let is_path =
                ours.iter().any(|folder| named.starts_with(folder)) && !named.contains([' ', '{', '*']);
            if is_path && !root.join(named).exists() {
                broken.push(format!("{document}: {named}"));
            }
        }
    }
    none(&broken);
}
