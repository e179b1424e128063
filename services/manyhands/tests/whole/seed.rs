//! The specification of the JSON protocol, scenario by scenario and row by row, as a client meets it that knows
//! nothing else. Each runs against `manyhands dev` and against a cluster with two edges.
//!
//! What the specification says of webhooks comes with the webhooks.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use loadtest::cluster::{Cluster, Options};
use serde_json::{Value, json};

use crate::bare::Bare;
use crate::world::{BINARY, Dev, token};

/// A running system.
struct Target {
    /// Two addresses; on a cluster, of two edges.
    urls: [String; 2],
    secret_file: Option<PathBuf>,
    _running: Running,
}

#[expect(dead_code, reason = "kept until the test is over")]
enum Running {
    Dev(Dev, tempfile::TempDir),
    Cluster(Arc<(Cluster, tempfile::TempDir)>),
}

impl Target {
    fn dev() -> Target {
        let data = tempfile::tempdir().unwrap();
        let dev = Dev::start(data.path(), "127.0.0.1:0");
        let url = format!("ws://{}", dev.address());
        Target { urls: [url.clone(), url], secret_file: None, _running: Running::Dev(dev, data) }
    }

    /// The scenarios that run at the same time share a cluster; it ends with the last of them.
    fn cluster() -> Target {
        static SHARED: Mutex<Weak<(Cluster, tempfile::TempDir)>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let cluster = shared.upgrade().unwrap_or_else(|| {
            let folder = tempfile::tempdir().unwrap();
            Arc::new((Cluster::start(Options::new(folder.path(), BINARY)).unwrap(), folder))
        });
        *shared = Arc::downgrade(&cluster);
        let urls = <[String; 2]>::try_from(cluster.0.edge_urls()).unwrap();
        let secret_file = Some(cluster.0.secret_file().to_owned());
        Target { urls, secret_file, _running: Running::Cluster(cluster) }
    }

    fn token(&self, workspace: &str, scope: &str) -> String {
        let mut arguments = vec!["--workspace", workspace, "--scope", scope];
        if let Some(path) = &self.secret_file {
            arguments.extend(["--secret-file", path.to_str().unwrap()]);
        }
        token(&arguments)
    }
}

/// Each function is a test against `dev` and a test against a cluster.
macro_rules! scenarios {
    ($($name:ident)*) => {
        mod against_dev {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(&super::Target::dev()).await;
            })*
        }
        mod against_a_cluster {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let target = tokio::task::spawn_blocking(super::Target::cluster).await.unwrap();
                super::$name(&target).await;
                tokio::task::spawn_blocking(|| drop(target)).await.unwrap();
            })*
        }
    };
}

scenarios! {
    scenario_client_connects_successfully
    scenario_client_fails_authentication
    scenario_client_sends_operation
    scenario_read_only_client_attempts_write
    state_machine_from_disconnected_to_synced_and_back
    client_to_server_key_is_a_required_string
    client_to_server_value_is_any_and_required
    client_to_server_timestamp_is_an_optional_integer_of_unix_microseconds
    client_to_server_type_is_op
    server_to_client_init_has_data_and_heads
    server_to_client_broadcast_has_key_value_and_timestamp
    error_401_missing_or_invalid_jwt
    error_403_write_attempted_with_read_only_scope
}

/// A workspace that no other test has.
fn workspace() -> String {
    format!("w-{:016x}", rand::random::<u64>())
}

fn now_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros().try_into().unwrap()
}

fn micros(op: &Value) -> u64 {
    op["payload"]["timestamp"].as_u64().unwrap_or_else(|| panic!("an integer timestamp in {op}"))
}

/// Two clients of one workspace, on two edges where there are two.
async fn two(target: &Target, workspace: &str) -> Bare {
    let mut bare = Bare::start();
    let token = target.token(workspace, "read,write");
    for (client, url) in ["ada", "bob"].into_iter().zip(&target.urls) {
        let init = bare.connect(client, url, workspace, &token).await;
        assert_eq!(init["type"], "init");
    }
    bare
}

/// Nothing of what was sent before has come to Bob, and nothing is in the state that a newcomer gets.
async fn undisturbed(bare: &mut Bare, target: &Target, workspace: &str) {
    bare.op("ada", "probe", json!(1));
    for client in ["ada", "bob"] {
        let op = bare.message(client).await;
        assert_eq!(op["payload"]["key"], "probe", "{client} was told of something else: {op}");
    }
    let token = target.token(workspace, "read");
    let init = bare.connect("newcomer", &target.urls[1], workspace, &token).await;
    assert_eq!(init["data"], json!({ "probe": 1 }));
}

async fn scenario_client_connects_successfully(target: &Target) {
    // Given a valid JWT signed with the server's secret, and a target workspace id "workspace-123"
    let token = target.token("workspace-123", "read,write");
    let mut bare = Bare::start();
    // When the client initiates a WebSocket connection
    bare.dial("ada", &target.urls[0], &format!("/v1/sync/workspace-123?token={token}"), json!({}));
    // Then the server accepts the connection with HTTP 101 Switching Protocols
    let open = bare.event("ada", &["open", "refused"]).await;
    assert_eq!(open["status"], 101, "{open}");
    // And the client receives an "init" message with current state, before anything else
    let init = bare.message("ada").await;
    assert_eq!(init["type"], "init");
    assert!(init["data"].is_object() && init["heads"].is_array(), "{init}");
    // And the client enters the "Connected" state
    bare.op("ada", "here", json!(true));
    assert_eq!(bare.message("ada").await["payload"]["key"], "here");
}

async fn scenario_client_fails_authentication(target: &Target) {
    let workspace = workspace();
    let good = target.token(&workspace, "read,write");
    let mut bare = Bare::start();
    // Given a missing or invalid JWT
    let (unsigned, _) = good.rsplit_once('.').unwrap();
    let other = target.token("another-workspace", "read,write");
    let mixed = format!("{unsigned}.{}", other.rsplit_once('.').unwrap().1);
    let queries =
        ["", "?token=", "?token=nonsense", &format!("?token={mixed}"), &format!("?token={unsigned}.")];
    for (n, query) in queries.iter().enumerate() {
        let client = format!("eve-{n}");
        // When the client initiates a WebSocket connection
        bare.dial(&client, &target.urls[0], &format!("/v1/sync/{workspace}{query}"), json!({}));
        // Then the server rejects the handshake with HTTP 401 Unauthorized
        let refused = bare.event(&client, &["open", "refused"]).await;
        assert_eq!(refused["status"], 401, "{query}: {refused}");
    }
    // And the connection is closed immediately
    for n in 0..queries.len() {
        bare.event(&format!("eve-{n}"), &["closed"]).await;
    }
}

async fn scenario_client_sends_operation(target: &Target) {
    let workspace = workspace();
    // Given a connected session with "write" scope
    let mut bare = two(target, &workspace).await;
    // When the client sends an "op" message with key "foo" and value "bar"
    bare.op("ada", "foo", json!("bar"));
    // Then the server persists the operation
    // And the server broadcasts this message to all clients in the workspace
    for client in ["ada", "bob"] {
        let op = bare.message(client).await;
        assert_eq!(
            (&op["type"], &op["payload"]["key"], &op["payload"]["value"]),
            (&json!("op"), &json!("foo"), &json!("bar"))
        );
    }
    for (n, url) in target.urls.iter().enumerate() {
        let token = target.token(&workspace, "read");
        let init = bare.connect(&format!("late-{n}"), url, &workspace, &token).await;
        assert_eq!(init["data"], json!({ "foo": "bar" }));
        assert_eq!(init["heads"].as_array().unwrap().len(), 1);
    }
    // Somebody else's workspace hears nothing of it.
    let other = self::workspace();
    let init = bare.connect("eve", &target.urls[0], &other, &target.token(&other, "read")).await;
    assert_eq!(init["data"], json!({}));
}

async fn scenario_read_only_client_attempts_write(target: &Target) {
    let workspace = workspace();
    let mut bare = two(target, &workspace).await;
    // Given a connected session with "read" scope only
    let token = target.token(&workspace, "read");
    bare.connect("reader", &target.urls[0], &workspace, &token).await;
    // When the client sends an "op" message
    bare.op("reader", "foo", json!("bar"));
    // Then the server responds with an "error" message
    let error = bare.message("reader").await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(403)));
    // And the operation is not persisted
    undisturbed(&mut bare, target, &workspace).await;
    // The socket stays, and the reader goes on reading.
    let op = bare.message("reader").await;
    assert_eq!(op["payload"]["key"], "probe");
}

async fn state_machine_from_disconnected_to_synced_and_back(target: &Target) {
    let workspace = workspace();
    let token = target.token(&workspace, "read,write");
    let mut bare = Bare::start();
    // Disconnected → Connecting → Authenticating → Error (401), which is an end.
    bare.dial("eve", &target.urls[0], &format!("/v1/sync/{workspace}?token=x"), json!({}));
    assert_eq!(bare.event("eve", &["refused"]).await["status"], 401);
    // Disconnected → Connecting → Authenticating → Connected → Synced.
    bare.connect("ada", &target.urls[0], &workspace, &token).await;
    // Synced → Synced: operations, both ways.
    bare.op("ada", "a", json!(1));
    bare.message("ada").await;
    bare.connect("bob", &target.urls[1], &workspace, &token).await;
    bare.op("bob", "b", json!(2));
    for client in ["ada", "bob"] {
        assert_eq!(bare.message(client).await["payload"]["key"], "b");
    }
    // Synced → Disconnected: graceful close; and the way back, to the current state.
    bare.tell("ada", "close", json!({}));
    assert_eq!(bare.event("ada", &["closed"]).await["code"], 1000);
    bare.op("bob", "a", json!(3));
    bare.message("bob").await;
    let init = bare.connect("ada", &target.urls[0], &workspace, &token).await;
    assert_eq!(init["data"], json!({ "a": 3, "b": 2 }));
}

/// Each of these is answered with an error of this code, and with nothing else.
async fn refused(bare: &mut Bare, code: u16, messages: &[Value]) {
    for message in messages {
        bare.send("ada", message);
        let error = bare.message("ada").await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{message}: {error}");
        for member in ["message", "reason", "fix"] {
            assert!(error[member].as_str().is_some_and(|text| !text.is_empty()), "{member} in {error}");
        }
    }
}

async fn client_to_server_key_is_a_required_string(target: &Target) {
    let workspace = workspace();
    let mut bare = two(target, &workspace).await;
    let op = |payload: Value| json!({ "type": "op", "payload": payload });
    let wrong = [json!(null), json!(7), json!(true), json!(["a"]), json!({ "a": 1 }), json!("")];
    let mut messages: Vec<Value> =
        wrong.into_iter().map(|key| op(json!({ "key": key, "value": 1 }))).collect();
    messages.push(op(json!({ "value": 1 })));
    refused(&mut bare, 400, &messages).await;
    undisturbed(&mut bare, target, &workspace).await;
    for key in ["é😀", "a b", "\"", "__proto__", "constructor", "0", &"k".repeat(512)] {
        bare.op("ada", key, json!(key));
        for client in ["ada", "bob"] {
            let op = bare.message(client).await;
            assert_eq!((&op["payload"]["key"], &op["payload"]["value"]), (&json!(key), &json!(key)));
        }
    }
}

async fn client_to_server_value_is_any_and_required(target: &Target) {
    let workspace = workspace();
    let mut bare = two(target, &workspace).await;
    refused(&mut bare, 400, &[json!({ "type": "op", "payload": { "key": "a" } }), json!({ "type": "op" })])
        .await;
    undisturbed(&mut bare, target, &workspace).await;
    let deep = (1..32).fold(json!(1), |inner, _| json!([inner]));
    let any = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1.5),
        json!(""),
        json!("text"),
        json!([]),
        json!({}),
        json!([1, "two", null, { "three": [4] }]),
        json!({ "a": { "b": { "c": null } } }),
        deep,
    ];
    for value in any {
        bare.op("ada", "v", value.clone());
        for client in ["ada", "bob"] {
            assert_eq!(bare.message(client).await["payload"]["value"], value);
        }
    }
    // Numbers stay as they were written, also where a double would not hold them.
    bare.send_text("ada", r#"{"type":"op","payload":{"key":"n","value":[9007199254740993,1.10,1e400]}}"#);
    for client in ["ada", "bob"] {
        let text = bare.text(client).await;
        assert!(text.contains(r#""value":[9007199254740993,1.10,1e400]"#), "{text}");
    }
}

async fn client_to_server_timestamp_is_an_optional_integer_of_unix_microseconds(target: &Target) {
    let workspace = workspace();
    let mut bare = two(target, &workspace).await;
    let now = now_micros();
    let op = |timestamp: Value| json!({ "type": "op", "payload": { "key": "t", "value": 1, "timestamp": timestamp } });
    let wrong = [json!(null), json!("now"), json!(1.5), json!([]), json!(now.to_string())];
    refused(&mut bare, 400, &wrong.map(op)).await;
    // Seconds, milliseconds, nanoseconds, before 1970: the fix shows the right expression.
    for timestamp in [json!(now / 1_000_000), json!(now / 1_000), json!(now * 1_000), json!(-1)] {
        bare.send("ada", &op(timestamp.clone()));
        let error = bare.message("ada").await;
        assert_eq!(
            (&error["code"], &error["reason"]),
            (&json!(400), &json!("timestamp_unit")),
            "{timestamp}"
        );
        assert!(error["fix"].as_str().unwrap().contains("Date.now() * 1000"), "{error}");
    }
    // The year 2100.
    bare.send("ada", &op(json!(4_102_444_800_000_000_u64)));
    let error = bare.message("ada").await;
    assert_eq!((&error["code"], &error["reason"]), (&json!(400), &json!("clock_ahead")), "{error}");
    undisturbed(&mut bare, target, &workspace).await;

    // Given, it comes back; left out, the server sets it.
    bare.send("ada", &op(json!(now)));
    for client in ["ada", "bob"] {
        assert_eq!(micros(&bare.message(client).await), now);
    }
    bare.op("ada", "t", json!(2));
    let set = micros(&bare.message("ada").await);
    assert!(now <= set && set <= now_micros() + 1_000_000, "{set} is the time in microseconds");
    assert_eq!(micros(&bare.message("bob").await), set);
    // Long ago is fine: somebody worked offline.
    bare.send("ada", &op(json!(1_500_000_000_000_000_u64)));
    assert_eq!(bare.message("ada").await["type"], "op");
}

async fn client_to_server_type_is_op(target: &Target) {
    let workspace = workspace();
    let mut bare = two(target, &workspace).await;
    let payload = json!({ "key": "a", "value": 1 });
    let wrong = [json!(null), json!(1), json!(""), json!("OP"), json!("init"), json!("error"), json!("set")];
    let mut messages: Vec<Value> =
        wrong.into_iter().map(|kind| json!({ "type": kind, "payload": payload })).collect();
    messages.extend([json!({ "payload": payload }), json!([]), json!("op"), json!(null), json!({})]);
    refused(&mut bare, 400, &messages).await;
    undisturbed(&mut bare, target, &workspace).await;
}

async fn server_to_client_init_has_data_and_heads(target: &Target) {
    let workspace = workspace();
    let token = target.token(&workspace, "read,write");
    let mut bare = Bare::start();
    let members = |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let init = bare.connect("ada", &target.urls[0], &workspace, &token).await;
    assert_eq!(init, json!({ "type": "init", "data": {}, "heads": [] }));
    bare.op("ada", "a", json!({ "b": [1, null] }));
    bare.message("ada").await;
    let init = bare.connect("bob", &target.urls[1], &workspace, &token).await;
    assert_eq!(members(&init), ["data", "heads", "type"], "and nothing else");
    assert_eq!(init["data"], json!({ "a": { "b": [1, null] } }));
    let heads = init["heads"].as_array().unwrap();
    assert!(heads.iter().all(|head| head.as_str().is_some_and(|head| !head.is_empty())), "{init}");
    assert_eq!(heads.len(), 1);
    // Nobody depends on them: with the next change there are others.
    bare.op("bob", "a", json!(2));
    bare.message("bob").await;
    let later = bare.connect("eve", &target.urls[0], &workspace, &token).await;
    assert_eq!(later["heads"].as_array().unwrap().len(), 1);
    assert_ne!(later["heads"], init["heads"]);
}

async fn server_to_client_broadcast_has_key_value_and_timestamp(target: &Target) {
    let workspace = workspace();
    let mut bare = two(target, &workspace).await;
    bare.op("ada", "a", json!([1]));
    for client in ["ada", "bob"] {
        let op = bare.message(client).await;
        let expected =
            json!({ "type": "op", "payload": { "key": "a", "value": [1], "timestamp": micros(&op) } });
        assert_eq!(op, expected, "and nothing else");
    }
}

async fn error_401_missing_or_invalid_jwt(target: &Target) {
    let workspace = workspace();
    let mut bare = Bare::start();
    // The body says what to do, for whoever can read it; the same over the header.
    for (n, headers) in [json!({}), json!({ "Authorization": "Bearer nonsense" })].into_iter().enumerate() {
        let client = format!("eve-{n}");
        bare.dial(&client, &target.urls[0], &format!("/v1/sync/{workspace}"), headers);
        let refused = bare.event(&client, &["refused", "open"]).await;
        let problem: Value = serde_json::from_str(refused["body"].as_str().unwrap()).unwrap();
        assert_eq!((&refused["status"], &problem["status"]), (&json!(401), &json!(401)));
        assert!(problem["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{problem}");
        assert_eq!(refused["headers"]["content-type"], "application/problem+json");
    }
}

async fn error_403_write_attempted_with_read_only_scope(target: &Target) {
    let workspace = workspace();
    let mut bare = two(target, &workspace).await;
    let token = target.token(&workspace, "read");
    bare.connect("reader", &target.urls[1], &workspace, &token).await;
    let timestamp = now_micros();
    let payload = json!({ "key": "foo", "value": "bar", "timestamp": timestamp });
    bare.send("reader", &json!({ "type": "op", "payload": payload }));
    let error = bare.message("reader").await;
    assert_eq!(
        (&error["type"], &error["code"], &error["reason"]),
        (&json!("error"), &json!(403), &json!("forbidden"))
    );
    assert_eq!(error["ref"], json!({ "key": "foo", "timestamp": timestamp }));
    assert!(error["fix"].as_str().unwrap().contains("write"), "{error}");
    undisturbed(&mut bare, target, &workspace).await;
    // A token for another workspace opens nothing at all.
    let other = target.token("another-workspace", "read,write");
    bare.dial("eve", &target.urls[0], &format!("/v1/sync/{workspace}?token={other}"), json!({}));
    assert_eq!(bare.event("eve", &["refused", "open"]).await["status"], 403);
}

/// The database is gone: the author is told, in the end, and nobody is shown what is not durable. With one process
/// there is no such moment: a disk that fails ends it.
// enforces: I-1
#[tokio::test(flavor = "multi_thread")]
async fn error_500_internal_error_when_persistence_fails() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path(), BINARY);
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(options)).await.unwrap().unwrap();
    let urls = <[String; 2]>::try_from(cluster.edge_urls()).unwrap();
    let secret_file = Some(cluster.secret_file().to_owned());
    let shared = Arc::new((cluster, folder));
    let target = Target { urls, secret_file, _running: Running::Cluster(shared.clone()) };
    let workspace = workspace();
    let mut bare = two(&target, &workspace).await;
    bare.op("ada", "before", json!(1));
    for client in ["ada", "bob"] {
        assert_eq!(bare.message(client).await["payload"]["key"], "before");
    }
    drop(target);
    let (mut cluster, folder) = Arc::into_inner(shared).unwrap();
    tokio::task::block_in_place(|| cluster.postgres.kill());
    bare.op("ada", "lost", json!(2));
    let error = bare.message("ada").await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(500)), "{error}");
    assert_eq!(error["ref"]["key"], "lost", "{error}");
    assert!(error["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{error}");

    // When it is back, the same socket goes on. What was answered with 500 may be in the log or not, but whoever
    // is shown it is shown what is there.
    tokio::task::block_in_place(|| cluster.postgres.restart().unwrap());
    let mut message = loop {
        bare.op("ada", "after", json!(3));
        let message = bare.message("ada").await;
        if message["type"] == "op" {
            break message;
        }
        assert_eq!(message["code"], 500, "{message}");
    };
    while message["payload"]["key"] != "after" {
        assert_eq!(message["payload"]["key"], "lost");
        message = bare.message("ada").await;
    }
    let mut arguments = vec!["--workspace", &workspace[..], "--scope", "read"];
    let secret = cluster.secret_file().to_owned();
    arguments.extend(["--secret-file", secret.to_str().unwrap()]);
    let init = bare.connect("newcomer", &cluster.edge_urls()[1], &workspace, &token(&arguments)).await;
    assert_eq!((&init["data"]["before"], &init["data"]["after"]), (&json!(1), &json!(3)));
    tokio::task::spawn_blocking(move || drop((cluster, folder))).await.unwrap();
}
