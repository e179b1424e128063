//! What an operator says of maps: how they merge, and what may be in them.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::bare::Bare;
use crate::world::{Dev, failure, token};

/// A configuration with a schema for `board`.
fn configured(folder: &Path, schema: &str) -> PathBuf {
    let path = folder.join("board.json");
    std::fs::write(&path, schema).unwrap();
    let config = folder.join("manyhands.toml");
    std::fs::write(&config, format!("[document.schemas]\nboard = {:?}\n", path.display().to_string()))
        .unwrap();
    config
}

fn start(data: &Path, settings: &[(&str, &str)]) -> Dev {
    let settings = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    Dev::start_with(data, "127.0.0.1:0", settings)
}

/// Ada and Bob in a workspace, and what it held when they came.
async fn two(dev: &Dev, workspace: &str) -> (Bare, Value) {
    let (mut bare, url) = (Bare::start(), format!("ws://{}", dev.address()));
    let token = token(&["--workspace", workspace, "--scope", "read,write"]);
    let mut data = Value::Null;
    for client in ["ada", "bob"] {
        let init = bare.connect(client, &url, workspace, &token).await;
        data = init["data"].clone();
    }
    (bare, data)
}

/// Both are sent the op.
async fn heard(bare: &mut Bare, key: &str, value: Value) {
    for client in ["ada", "bob"] {
        let op = bare.message(client).await;
        assert_eq!((&op["payload"]["key"], &op["payload"]["value"]), (&json!(key), &value), "{client}: {op}");
    }
}

// enforces: I-1, I-5
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_and_a_default_strategy_hold_for_json_clients_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let schema = r#"{"required": ["size"], "properties": {"size": {"type": "integer", "minimum": 1}}}"#;
    let config = configured(folder.path(), schema);
    let config = config.to_str().unwrap();
    let data = folder.path().join("data");
    // EtherPly's name of the variable, and of the strategy.
    let dev = start(&data, &[("ETHERPLY_SYNC_STRATEGY", "server-auth"), ("MANYHANDS_CONFIG", config)]);
    let (mut bare, _) = two(&dev, "board").await;
    bare.op("ada", "size", json!(8));
    heard(&mut bare, "size", json!(8)).await;
    for value in [json!("8"), json!(0), Value::Null] {
        bare.op("ada", "size", value.clone());
        let error = bare.message("ada").await;
        assert_eq!(
            (&error["type"], &error["code"], &error["reason"]),
            (&json!("error"), &json!(400), &json!("schema_violation")),
            "{error}"
        );
        assert_eq!(error["current"], json!({ "path": "/size" }), "{error}");
    }
    // Bob hears nothing of it, and Ada goes on.
    bare.op("ada", "title", json!("chess"));
    heard(&mut bare, "title", json!("chess")).await;
    drop(bare);
    assert!(dev.leave());

    // The document keeps its strategy under another default, and so its schema.
    let dev = start(&data, &[("MANYHANDS_CONFIG", config), ("MANYHANDS_DOCUMENT__STRATEGY", "lww")]);
    let (mut bare, kept) = two(&dev, "board").await;
    assert_eq!(kept, json!({ "size": 8, "title": "chess" }));
    bare.op("bob", "size", json!(-1));
    assert_eq!(bare.message("bob").await["reason"], "schema_violation");
    // A timestamp from the far future is nothing to a server that decides by the order of arrival.
    let far = json!({ "key": "size", "value": 9, "timestamp": 4_102_444_800_000_000_u64 });
    bare.send("bob", &json!({ "type": "op", "payload": far }));
    heard(&mut bare, "size", json!(9)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_ahead_is_refused_with_the_server_s_time_and_moves_no_other() {
    let data = tempfile::tempdir().unwrap();
    let dev = start(
        data.path(),
        &[("MANYHANDS_DOCUMENT__STRATEGY", "lww"), ("MANYHANDS_DOCUMENT__CLOCK_AHEAD_MAX", "5s")],
    );
    let (mut bare, _) = two(&dev, "demo").await;
    let now = || u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
    let before = now();
    let op = |micros: u64| json!({ "type": "op", "payload": { "key": "k", "value": "ahead", "timestamp": micros } });
    bare.send("ada", &op(before + 60_000_000));
    let error = bare.message("ada").await;
    assert_eq!((&error["code"], &error["reason"]), (&json!(400), &json!("clock_ahead")), "{error}");
    let (time, max) = (error["current"]["time"].as_u64().unwrap(), error["current"]["max"].as_u64().unwrap());
    // The owner's time is in whole milliseconds.
    assert!((before - 1_000..=now()).contains(&time) && max == time + 5_000_000, "{error}");
    // The next write without a timestamp is stamped with now, and wins over nothing from the future.
    bare.op("bob", "k", json!("now"));
    for client in ["ada", "bob"] {
        let op = bare.message(client).await;
        assert_eq!(op["payload"]["value"], "now");
        assert!(op["payload"]["timestamp"].as_u64().unwrap() <= now() + 1_000_000, "{op}");
    }
}

#[test]
fn rules_that_cannot_be_kept_refuse_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    let config = configured(folder.path(), r#"{"type": "strin"}"#);
    let dev = ["dev", "--listen", "127.0.0.1:0", "--data", &data, "--config", config.to_str().unwrap()];
    let said = failure(&dev);
    assert!(said.contains("board.json") && said.contains("`board`") && said.contains("strin"), "{said}");
    std::fs::write(&config, "[document]\nstrategy = 'newest'\n").unwrap();
    let said = failure(&dev);
    assert!(["document.strategy", "newest", "\"lww\""].iter().all(|name| said.contains(name)), "{said}");
}
