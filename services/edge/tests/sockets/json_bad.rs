//! Bad input in the JSON dialect: each is answered in a sentence, nothing of it is kept, and nobody else notices.

use futures_util::SinkExt;
use manyhands_edge::{Config, Limits};
use manyhands_process::value::ByteSize;
use manyhands_proto::{Code, v1};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::json::{Bare, merging, merging_with};
use crate::running::{Running, UPGRADE, config, token};

/// A client that makes mistakes, and one beside it that must not notice.
struct Scene {
    running: Running,
    ada: Bare,
    bea: Bare,
    /// What was written on purpose.
    written: u64,
}

impl Scene {
    async fn new() -> Scene {
        Scene::on(merging().await).await
    }

    async fn on(running: Running) -> Scene {
        let mut ada = Bare::connect(&running, "read write", "", None).await;
        let mut bea = Bare::connect(&running, "read write", "", None).await;
        ada.next().await;
        bea.next().await;
        Scene { running, ada, bea, written: 0 }
    }

    /// The message is answered so; and then: nothing of it is stored, the socket stays, the other hears nothing of it.
    async fn refused(&mut self, message: Message, code: u16, reason: Code, words: &str) -> Value {
        let shown = message.to_string().chars().take(120).collect::<String>();
        self.ada.socket.send(message).await.unwrap();
        let error = self.ada.next().await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{shown}: {error}");
        assert_eq!(error["reason"], reason.slug(), "{shown}: {error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{shown}: {error}");
        assert!(error["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{shown}: {error}");
        self.nothing_happened().await;
        error
    }

    async fn nothing_happened(&mut self) {
        assert_eq!(self.running.documents.seq("demo") as u64, self.written);
        self.written += 1;
        let written = json!(self.written);
        self.bea.put("calm", written.clone()).await;
        for client in [&mut self.bea, &mut self.ada] {
            let op = client.next().await;
            assert_eq!((&op["payload"]["key"], &op["payload"]["value"]), (&json!("calm"), &written), "{op}");
        }
        assert_eq!(self.running.documents.root("demo"), json!({ "calm": self.written }));
    }
}

fn text(value: Value) -> Message {
    Message::text(value.to_string())
}

fn op(payload: Value) -> Message {
    text(json!({ "type": "op", "payload": payload }))
}

/// An op whose value is spelled so.
fn value(value: &str) -> Message {
    Message::text(format!(r#"{{"type":"op","payload":{{"key":"k","value":{value}}}}}"#))
}

#[tokio::test]
async fn a_missing_value_is_refused() {
    let error =
        Scene::new().await.refused(op(json!({ "key": "k" })), 400, Code::Malformed, "value is missing").await;
    assert_eq!(error["ref"], json!({ "key": "k" }));
}

#[tokio::test]
async fn a_missing_or_empty_key_is_refused() {
    let mut scene = Scene::new().await;
    scene.refused(op(json!({ "value": 1 })), 400, Code::Malformed, "key is missing").await;
    scene.refused(op(json!({ "key": "", "value": 1 })), 400, Code::Malformed, "key is empty").await;
    let long = "k".repeat(513);
    scene.refused(op(json!({ "key": long, "value": 1 })), 413, Code::TooLarge, "513 bytes").await;
}

#[tokio::test]
async fn wrong_types_are_refused() {
    let mut scene = Scene::new().await;
    for (message, words) in [
        (json!([]), "is an object"),
        (json!({ "type": 7 }), "type is a text"),
        (json!({}), "no type"),
        (json!({ "type": "op" }), "no payload"),
        (json!({ "type": "op", "payload": "k" }), "payload is an object"),
        (json!({ "type": "op", "payload": { "key": 7, "value": 1 } }), "key is a text"),
    ] {
        scene.refused(text(message), 400, Code::Malformed, words).await;
    }
    let error = scene
        .refused(op(json!({ "key": "k", "value": 1, "timestamp": "now" })), 400, Code::Malformed, "integer")
        .await;
    assert_eq!(error["ref"], json!({ "key": "k" }));
}

#[tokio::test]
async fn null_is_a_value() {
    let mut scene = Scene::new().await;
    scene.ada.put("k", Value::Null).await;
    for client in [&mut scene.ada, &mut scene.bea] {
        assert_eq!(client.next().await["payload"]["value"], Value::Null);
    }
    assert_eq!(scene.running.documents.root("demo"), json!({ "k": null }));
}

#[tokio::test]
async fn an_unknown_type_is_refused() {
    let mut scene = Scene::new().await;
    scene.refused(text(json!({ "type": "subscribe" })), 400, Code::Malformed, "no type subscribe").await;
    let del = json!({ "type": "del", "payload": { "key": "calm" } });
    let error = scene.refused(text(del), 400, Code::Malformed, "extensions").await;
    assert!(error["fix"].as_str().unwrap().contains("manyhands.json.v1"), "{error}");
}

#[tokio::test]
async fn thirty_three_levels_are_refused_and_thirty_two_are_not() {
    let mut scene = Scene::new().await;
    let nested = |levels: usize| format!("{}0{}", "[".repeat(levels - 1), "]".repeat(levels - 1));
    scene.refused(value(&nested(33)), 400, Code::Malformed, "value: ").await;
    scene
        .refused(
            value(&format!("{}{}", "[".repeat(200_000), "]".repeat(200_000))),
            400,
            Code::Malformed,
            "value: ",
        )
        .await;
    scene.ada.socket.send(value(&nested(32))).await.unwrap();
    assert_eq!(scene.ada.next().await["payload"]["key"], "k");
}

#[tokio::test]
async fn numbers_beyond_two_to_the_53rd_survive_exactly() {
    let mut scene = Scene::new().await;
    for number in ["9007199254740993", "123456789012345678901234567890", "-0.10", "1E400"] {
        scene.ada.socket.send(value(number)).await.unwrap();
        for client in [&mut scene.ada, &mut scene.bea] {
            let frame = client.text().await;
            assert!(frame.contains(&format!(r#""value":{number},"#)), "{frame}");
        }
    }
    let mut late = Bare::connect(&scene.running, "read", "", None).await;
    assert!(late.text().await.starts_with(r#"{"type":"init","data":{"k":1E400}"#));
}

#[tokio::test]
async fn duplicate_keys_and_lone_surrogates_are_refused() {
    let mut scene = Scene::new().await;
    scene.refused(value(r#"{"a":1,"a":2}"#), 400, Code::Malformed, "value: ").await;
    scene.refused(value(r#""\ud800""#), 400, Code::Malformed, "value: ").await;
    scene.refused(value(r#"["\udc00"]"#), 400, Code::Malformed, "value: ").await;
    let twice = r#"{"type":"op","payload":{"key":"k","key":"l","value":1}}"#;
    scene.refused(Message::text(twice), 400, Code::Malformed, "duplicate field").await;
    let key = r#"{"type":"op","payload":{"key":"\ud800","value":1}}"#;
    scene.refused(Message::text(key), 400, Code::Malformed, "key is a text").await;
}

// enforces: I-10
#[tokio::test]
async fn values_beyond_the_limit_are_refused_and_the_socket_stays() {
    let mut scene = Scene::new().await;
    let sized = |bytes: usize| value(&format!("\"{}\"", "x".repeat(bytes)));
    let error = scene.refused(sized(64 * 1024), 413, Code::TooLarge, "65536 are allowed").await;
    assert_eq!(error["ref"], json!({ "key": "k" }));
    scene.refused(sized(1024 * 1024), 413, Code::TooLarge, "a message of").await;
    scene.ada.socket.send(sized(3 * 1024 * 1024)).await.unwrap();
    let (close, reason) = scene.ada.closed().await;
    assert_eq!(close, 1009, "{reason}");
    assert!(reason.starts_with("too_large"), "{reason}");
    scene.ada = Bare::connect(&scene.running, "read", "", None).await;
    scene.ada.next().await;
    scene.nothing_happened().await;
}

#[tokio::test]
async fn timestamps_in_another_unit_are_refused_with_the_right_expression() {
    let mut scene = Scene::new().await;
    for (timestamp, words) in [
        (json!(1_763_661_900), "seconds"),
        (json!(1_763_661_900_000_u64), "milliseconds"),
        (json!(1_763_661_900_000_000_000_u64), "nanoseconds"),
        (json!(-1_763_661_900_000_000_i64), "before 1970"),
        (json!(0), "seconds"),
    ] {
        let message = op(json!({ "key": "k", "value": 1, "timestamp": timestamp }));
        let error = scene.refused(message, 400, Code::TimestampUnit, words).await;
        assert!(error["fix"].as_str().unwrap().contains("Date.now() * 1000"), "{error}");
    }
}

#[tokio::test]
async fn a_timestamp_in_the_year_2100_is_refused_by_the_owner() {
    let mut scene = Scene::new().await;
    let message = op(json!({ "key": "k", "value": 1, "timestamp": 4_102_444_800_000_000_u64 }));
    let error = scene.refused(message, 400, Code::ClockAhead, "the clock is ahead").await;
    assert_eq!(error["ref"], json!({ "key": "k", "timestamp": 4_102_444_800_000_000_u64 }));
    assert!(error["current"]["max"].is_u64(), "{error}");
}

#[tokio::test]
async fn a_binary_frame_is_refused() {
    let mut scene = Scene::new().await;
    scene.refused(Message::binary(vec![10, 4, 8, 1, 16, 1]), 400, Code::Malformed, "binary message").await;
}

// enforces: I-10
#[tokio::test]
async fn whoever_sends_a_thousand_malformed_messages_is_closed_after_twenty() {
    let mut scene = Scene::new().await;
    for _ in 0..1_000 {
        // It may be closed already while the rest is being written.
        if scene.ada.socket.send(Message::text("{")).await.is_err() {
            break;
        }
    }
    for _ in 0..20 {
        assert_eq!(scene.ada.next().await["reason"], "malformed");
    }
    let (close, reason) = scene.ada.closed().await;
    assert_eq!(close, 4500, "{reason}");
    assert!(reason.starts_with("violation"), "{reason}");
    scene.ada = Bare::connect(&scene.running, "read", "", None).await;
    scene.ada.next().await;
    scene.nothing_happened().await;
}

// enforces: I-15
#[tokio::test]
async fn a_read_only_token_that_writes_gets_403_and_stays() {
    let mut scene = Scene::new().await;
    scene.ada = Bare::connect(&scene.running, "read", "", None).await;
    scene.ada.next().await;
    let message = op(json!({ "key": "k", "value": 1, "timestamp": 1_763_661_900_000_000_u64 }));
    let error = scene.refused(message, 403, Code::Forbidden, "may read").await;
    assert_eq!(error["ref"], json!({ "key": "k", "timestamp": 1_763_661_900_000_000_u64 }));
    assert!(error["fix"].as_str().unwrap().contains("\"write\""), "{error}");
    assert!(scene.running.documents.state().submits.iter().all(|submit| submit.count == 1));
}

#[tokio::test]
async fn a_failure_to_persist_is_500_and_the_same_op_may_be_sent_again() {
    let limits = Limits { ping_interval: std::time::Duration::from_secs(60), ..Limits::default() };
    let router = manyhands_edge::router::Config {
        retry_for: std::time::Duration::from_millis(50),
        ..Default::default()
    };
    let mut scene = Scene::on(merging_with(Config { limits, router, ..config() }).await).await;
    let refusals = (0..1000).map(|_| tonic::Status::unavailable("the log's disk is gone"));
    scene.running.documents.state().refusals.extend(refusals);
    let message = op(json!({ "key": "k", "value": 1, "timestamp": 1_763_661_900_000_000_u64 }));
    scene.ada.socket.send(message.clone()).await.unwrap();
    let error = scene.ada.next().await;
    assert_eq!((&error["code"], &error["reason"]), (&json!(500), &json!("unavailable")), "{error}");
    assert_eq!(error["ref"], json!({ "key": "k", "timestamp": 1_763_661_900_000_000_u64 }));
    scene.running.documents.state().refusals.clear();
    scene.nothing_happened().await;
    scene.ada.socket.send(message).await.unwrap();
    for client in [&mut scene.ada, &mut scene.bea] {
        assert_eq!(client.next().await["payload"]["key"], "k");
    }
}

#[tokio::test]
async fn ten_thousand_keys_still_come_in_one_init() {
    let running = merging().await;
    let mut ada = Bare::connect(&running, "read write", "", None).await;
    ada.next().await;
    let filler = "x".repeat(150);
    for batch in 0..100 {
        for n in 0..100 {
            ada.put(&format!("key-{batch}-{n}"), json!(filler)).await;
        }
        for _ in 0..100 {
            assert_eq!(ada.next().await["type"], "op");
        }
    }
    let mut bea = Bare::connect(&running, "read write", "", None).await;
    let init = bea.next().await;
    assert_eq!(init["type"], "init");
    assert_eq!(init["data"].as_object().unwrap().len(), 10_000);
    ada.put("after", json!(1)).await;
    assert_eq!(bea.next().await["payload"]["key"], "after");
}

// enforces: I-10
#[tokio::test]
async fn a_workspace_that_is_too_large_for_one_init_is_refused_with_what_to_do() {
    let limits = Limits { init_bytes_max: ByteSize(1024), ..Limits::default() };
    let running = merging_with(Config { limits, ..config() }).await;
    let mut ada = Bare::connect(&running, "read write", "", None).await;
    ada.next().await;
    ada.put("k", json!("x".repeat(2_000))).await;
    assert_eq!(ada.next().await["type"], "op");
    let mut late = Bare::connect(&running, "read", "", None).await;
    let error = late.next().await;
    assert_eq!((&error["code"], &error["reason"]), (&json!(413), &json!("too_large")), "{error}");
    assert!(error["fix"].as_str().unwrap().contains("manyhands.v1"), "{error}");
    assert_eq!(late.closed().await.0, 1009);
    ada.put("k", json!("short")).await;
    assert_eq!(ada.next().await["payload"]["value"], "short");
    let mut again = Bare::connect(&running, "read", "", None).await;
    assert_eq!(again.next().await["data"], json!({ "k": "short" }));
}

#[tokio::test]
async fn a_strategy_that_the_workspace_does_not_have_is_409() {
    let running = merging().await;
    let mut ada = Bare::connect(&running, "read write", "&strategy=lww", Some("manyhands.json.v1")).await;
    assert_eq!(ada.next().await["strategy"], "lww");
    ada.put("k", json!(1)).await;
    ada.of("op").await;
    // Against the mirror, and, on an edge that has none, against the owner.
    let other = crate::running::start_with(
        config(),
        std::sync::Arc::clone(&running.bus),
        [("http://one", running.documents.clone())],
    )
    .await;
    for edge in [&running, &other] {
        let mut wrong = Bare::connect(edge, "read write", "&strategy=server", None).await;
        let error = wrong.next().await;
        assert_eq!((&error["code"], &error["reason"]), (&json!(409), &json!("strategy_mismatch")), "{error}");
        assert_eq!(wrong.closed().await.0, 4510);
        let mut right = Bare::connect(edge, "read", "&strategy=lww", None).await;
        assert_eq!(right.next().await["data"], json!({ "k": 1 }));
    }
    ada.put("k", json!(2)).await;
    assert_eq!(ada.of("op").await["payload"]["value"], 2);
    assert_eq!(running.documents.seq("demo"), 2);

    let unknown = format!("/v1/sync/demo?token={}&strategy=magic", token("demo", "read"));
    for headers in [UPGRADE, &[]] {
        let answer = running.get(&unknown, headers).await;
        assert_eq!((answer.status, &answer.json()["slug"]), (400, &json!("malformed")));
        assert!(answer.json()["fix"].as_str().unwrap().contains("lww"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_write_on_a_value_that_has_changed_is_409_with_what_it_is_now() {
    let running = merging().await;
    let mut ada = Bare::connect(&running, "read write", "&strategy=server", Some("manyhands.json.v1")).await;
    ada.next().await;
    let put = |value: u64, expect: u64| {
        text(json!({ "type": "op", "payload": { "key": "k", "value": value, "expect": expect } }))
    };
    let mut bea = Bare::connect(&running, "read write", "", None).await;
    bea.put("k", json!(1)).await;
    let seq = ada.of("op").await["payload"]["seq"].as_u64().unwrap();
    ada.socket.send(put(2, 0)).await.unwrap();
    // What is behind it in the same batch is not refused with it.
    ada.socket.send(put(3, seq)).await.unwrap();
    let error = ada.of("error").await;
    assert_eq!((&error["code"], &error["reason"]), (&json!(409), &json!("conflict")), "{error}");
    assert_eq!(error["current"], json!({ "seq": seq, "value": 1 }));
    assert_eq!(ada.of("op").await["payload"]["value"], 3);
    assert_eq!(running.documents.root("demo"), json!({ "k": 3 }));
}

#[tokio::test]
async fn what_the_owner_refuses_does_not_take_what_is_behind_it() {
    let mut scene = Scene::new().await;
    let rejection = v1::Rejection {
        code: Code::SchemaViolation.number(),
        message: "not a number".into(),
        current: r#"{"path":"/k"}"#.into(),
        ..v1::Rejection::default()
    };
    scene.running.documents.state().rejections.push_back(rejection);
    scene.ada.put("k", json!("one")).await;
    scene.ada.put("l", json!("two")).await;
    let error = scene.ada.next().await;
    assert_eq!((&error["code"], &error["reason"]), (&json!(400), &json!("schema_violation")), "{error}");
    assert_eq!((&error["current"], &error["ref"]), (&json!({ "path": "/k" }), &json!({ "key": "k" })));
    for client in [&mut scene.ada, &mut scene.bea] {
        assert_eq!(client.next().await["payload"]["key"], "l");
    }
    assert_eq!(scene.running.documents.root("demo"), json!({ "l": "two" }));
}

// enforces: I-10
#[tokio::test]
async fn a_workspace_that_outgrows_the_edge_ends_its_json_sessions_with_what_to_do() {
    let limits = Limits { mirror_bytes_max: ByteSize(128 * 1024), ..Limits::default() };
    let running = merging_with(Config { limits, ..config() }).await;
    let mut ada = Bare::connect(&running, "read write", "", None).await;
    ada.next().await;
    for n in 0..3 {
        ada.put(&format!("k{n}"), json!("x".repeat(60_000))).await;
    }
    let error = ada.of("error").await;
    assert_eq!((&error["code"], &error["reason"]), (&json!(413), &json!("too_large")), "{error}");
    assert_eq!(ada.closed().await.0, 1009);
    // It is as it was, for those who speak the binary protocol.
    let mut binary = running.greet("read").await;
    assert!(binary.open(1, "demo", 0).await.state_bytes > 0);
}

// enforces: I-10
#[tokio::test]
async fn beyond_what_all_mirrors_may_take_a_session_is_told_to_come_back() {
    let limits = Limits { mirrors_bytes_max: ByteSize(16), ..Limits::default() };
    let running = merging_with(Config { limits, ..config() }).await;
    let mut ada = Bare::connect(&running, "read write", "", None).await;
    let error = ada.next().await;
    assert_eq!((&error["code"], &error["reason"]), (&json!(429), &json!("overloaded")), "{error}");
    assert_eq!(ada.closed().await.0, 1013);
}
