//! Every public item is shown in use: a type or function has an example of its own, a method stands in some example.
//! That there is a description at all is the compiler's to see (`missing_docs`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "tests") {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// Kind and name of a public item.
fn item(line: &str) -> Option<(&str, &str)> {
    let rest = line.trim_start().strip_prefix("pub ")?;
    let rest = rest.strip_prefix("const fn").map_or(rest, |_| rest.trim_start_matches("const "));
    let (kind, name) = rest.split_once(' ')?;
    let name = name.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    ["fn", "struct", "enum", "const", "type", "trait"].contains(&kind).then_some((kind, name))
}

#[test]
fn every_public_item_is_shown_in_use() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    files.sort();
    let texts: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let doc =
        |line: &str| line.trim_start().strip_prefix("///").or(line.strip_prefix("//!")).map(str::to_owned);

    let mut examples = String::new();
    for text in &texts {
        let mut inside = false;
        for line in text.lines().filter_map(doc) {
            if line.trim_start().starts_with("```") {
                inside = !inside;
            } else if inside {
                examples += &line;
                examples.push('\n');
            }
        }
    }

    let (mut items, mut missing) = (0, Vec::new());
    for (file, text) in files.iter().zip(&texts) {
        let mut own_example = false;
        for (n, line) in text.lines().enumerate() {
            if let Some(line) = doc(line) {
                own_example |= line.contains("```");
                continue;
            }
            if line.trim_start().starts_with("#[") {
                // Not there but for fuzzing.
                own_example |= line.contains("cfg(fuzzing)");
                continue;
            }
            if let Some((kind, name)) = item(line) {
                items += 1;
                let method = line.starts_with(' ');
                let used =
                    [format!(".{name}("), format!("::{name}")].iter().any(|call| examples.contains(call));
                if !(own_example || method && used || kind == "const" && examples.contains(name)) {
                    missing.push(format!("{}:{}: {kind} {name}", file.display(), n + 1));
                }
            }
            own_example = false;
        }
    }
    assert!(items > 80, "{items} public items are too few: the reader of this test has gone blind");
    assert!(missing.is_empty(), "without an example:\n{}", missing.join("\n"));
}
