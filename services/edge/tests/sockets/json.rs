//! The JSON dialect over real sockets: what a client that knows only seed words gets, good and bad.

use futures_util::{SinkExt, StreamExt};
use manyhands_edge::Config;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::running::{PATIENCE, Running, config, start, token};

/// A client that knows JSON and a socket.
pub(crate) struct Bare {
    pub(crate) socket: WebSocketStream<TcpStream>,
}

/// An edge with an owner that merges.
pub(crate) async fn merging() -> Running {
    merging_with(config()).await
}

pub(crate) async fn merging_with(config: Config) -> Running {
    let running = start(config).await;
    running.documents.state().merging = true;
    running
}

impl Bare {
    /// Connects with a token in the address, and no subprotocol unless one is named.
    pub(crate) async fn connect(running: &Running, scope: &str, query: &str, protocol: Option<&str>) -> Bare {
        let token = token("demo", scope);
        let address = format!("ws://{}/v1/sync/demo?token={token}{query}", running.address);
        let mut request = address.into_client_request().unwrap();
        if let Some(protocol) = protocol {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let stream = TcpStream::connect(running.address).await.unwrap();
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        let chosen = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap());
        assert_eq!(chosen, protocol);
        Bare { socket }
    }

    pub(crate) async fn next(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// The next frame of a type; others are passed over.
    pub(crate) async fn of(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next().await;
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    /// How the server closes; frames before it are passed over.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("a close in time") {
                Some(Ok(Message::Close(Some(close)))) => {
                    return (close.code.into(), close.reason.to_string());
                }
                Some(Ok(_)) => {}
                other => panic!("no close frame: {other:?}"),
            }
        }
    }

    /// The next frame as it was written.
    pub(crate) async fn text(&mut self) -> String {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("a frame in time").unwrap().unwrap() {
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("not a frame: {other:?}"),
            }
        }
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    pub(crate) async fn put(&mut self, key: &str, value: Value) {
        self.send(json!({ "type": "op", "payload": { "key": key, "value": value } })).await;
    }
}

#[tokio::test]
async fn a_bare_client_reads_init_writes_ops_and_sees_those_of_others() {
    let running = merging().await;
    let mut ada = Bare::connect(&running, "read write", "", None).await;
    assert_eq!(ada.next().await, json!({ "type": "init", "data": {}, "heads": [] }));
    ada.put("title", json!("Hello")).await;
    let echo = ada.next().await;
    assert_eq!((&echo["type"], &echo["payload"]["value"]), (&json!("op"), &json!("Hello")), "{echo}");
    let timestamp = 1_763_661_900_000_000_u64;
    let payload = json!({ "key": "n", "value": [1, null, { "a": 1.50 }], "timestamp": timestamp });
    let op = json!({ "type": "op", "payload": payload });
    ada.send(op.clone()).await;
    assert_eq!(ada.next().await, op);

    let mut bea = Bare::connect(&running, "read", "", None).await;
    let init = bea.next().await;
    assert_eq!(init["data"], json!({ "title": "Hello", "n": [1, null, { "a": 1.5 }] }));
    assert_eq!(init["heads"].as_array().unwrap().len(), 1);
    ada.put("title", json!(null)).await;
    for client in [&mut ada, &mut bea] {
        let op = client.next().await;
        assert_eq!((&op["payload"]["key"], &op["payload"]["value"]), (&json!("title"), &Value::Null));
        assert!(op["payload"]["timestamp"].as_u64().unwrap() > timestamp);
    }
    let root = json!({ "title": null, "n": [1, null, { "a": 1.5 }] });
    assert_eq!((running.documents.root("demo"), running.documents.seq("demo")), (root, 3));
    ada.send(json!({ "type": "ping" })).await;
    assert_eq!(ada.next().await, json!({ "type": "pong" }));
}

/// An op with a timestamp of its own.
fn stamped(key: &str, value: &Value, timestamp: u64) -> Value {
    json!({ "type": "op", "payload": { "key": key, "value": value, "timestamp": timestamp } })
}

const T: u64 = 1_763_661_900_000_000;

#[tokio::test]
async fn the_same_op_again_changes_nothing_and_is_echoed_to_its_sender_only() {
    let running = merging().await;
    let mut ada = Bare::connect(&running, "read write", "", None).await;
    let mut bea = Bare::connect(&running, "read write", "", None).await;
    ada.next().await;
    bea.next().await;
    let first = stamped("k", &json!("one"), T);
    ada.send(first.clone()).await;
    assert_eq!((ada.next().await, bea.next().await), (first.clone(), first.clone()));
    // Again, by the same and by another, with another value even.
    ada.send(first.clone()).await;
    assert_eq!(ada.next().await, first);
    bea.send(stamped("k", &json!("other"), T)).await;
    assert_eq!(bea.next().await, first);
    // When the key has moved on, what it has now comes behind, so that whoever applies both has it right.
    let second = stamped("k", &json!("two"), T + 1);
    ada.send(second.clone()).await;
    assert_eq!((ada.next().await, bea.next().await), (second.clone(), second.clone()));
    bea.send(first.clone()).await;
    assert_eq!((bea.next().await, bea.next().await), (first.clone(), second.clone()));
    // Twice at once: one is stored, and each is echoed.
    let third = stamped("k", &json!("three"), T + 2);
    ada.send(third.clone()).await;
    ada.send(third.clone()).await;
    assert_eq!((ada.next().await, ada.next().await), (third.clone(), third.clone()));
    assert_eq!(bea.next().await, third);
    assert_eq!(running.documents.seq("demo"), 3);
}

#[tokio::test]
async fn an_op_that_loses_is_told_to_its_author_only_with_the_one_that_won() {
    let running = merging().await;
    let mut ada = Bare::connect(&running, "read write", "&strategy=lww", None).await;
    let mut bea = Bare::connect(&running, "read write", "", None).await;
    ada.next().await;
    bea.next().await;
    let winner = stamped("k", &json!("winner"), T + 10);
    ada.send(winner.clone()).await;
    assert_eq!((ada.next().await, bea.next().await), (winner.clone(), winner.clone()));
    bea.send(stamped("k", &json!("loser"), T)).await;
    assert_eq!(bea.next().await, winner);
    // One without a timestamp comes after all that its author has seen.
    bea.put("k", json!("newer")).await;
    for client in [&mut ada, &mut bea] {
        assert_eq!(client.next().await["payload"]["value"], "newer");
    }
    assert_eq!(running.documents.seq("demo"), 3);
    assert_eq!(running.documents.root("demo"), json!({ "k": "newer" }));
}

#[tokio::test]
async fn known_heads_get_what_is_lacking_and_unknown_ones_everything() {
    let running = merging().await;
    let mut ada = Bare::connect(&running, "read write", "", Some("manyhands.json.v1.ext")).await;
    ada.next().await;
    for key in ["a", "b", "c"] {
        ada.put(key, json!(1)).await;
        ada.of("op").await;
    }
    ada.put("a", json!(2)).await;
    let heads = ada.of("op").await["payload"]["heads"].clone();
    let query = format!("&heads={}", heads[0].as_str().unwrap());
    let mut same = Bare::connect(&running, "read", &query, None).await;
    let init = same.next().await;
    assert_eq!(init, json!({ "type": "init", "data": {}, "heads": heads, "partial": true, "removed": [] }));
    ada.put("b", json!(2)).await;
    ada.of("op").await;
    ada.send(json!({ "type": "del", "payload": { "key": "c" } })).await;
    let del = ada.of("del").await;
    assert_eq!(del["payload"]["key"], "c");
    let gone = same.next().await;
    assert_eq!((&gone["payload"]["key"], &gone["payload"]["value"]), (&json!("b"), &json!(2)));
    let gone = same.next().await;
    assert_eq!((&gone["type"], &gone["payload"]["value"]), (&json!("op"), &Value::Null), "{gone}");

    let mut back = Bare::connect(&running, "read", &query, None).await;
    let init = back.next().await;
    assert_eq!((&init["data"], &init["removed"]), (&json!({ "b": 2 }), &json!(["c"])));
    assert_eq!((&init["partial"], &init["heads"]), (&json!(true), &del["payload"]["heads"]));
    for unknown in ["&heads=00112233445566778899aabbccddeeff", "&heads=", "&heads=x,%2C%00", "&heads=é"] {
        let mut lost = Bare::connect(&running, "read", unknown, None).await;
        let init = lost.next().await;
        assert_eq!(init["data"], json!({ "a": 2, "b": 2 }), "{unknown}");
        assert_eq!(init.get("partial"), None, "{unknown}");
    }
}

#[tokio::test]
async fn extensions_are_spoken_where_they_were_asked_for() {
    let running = merging().await;
    let mut ada = Bare::connect(&running, "read write", "", Some("manyhands.json.v1")).await;
    let mut bare = Bare::connect(&running, "read write", "", None).await;
    let init = ada.next().await;
    assert_eq!(
        (&init["seq"], &init["strategy"], &init["can_write"]),
        (&json!(0), &json!("crdt"), &json!(true))
    );
    assert!(init["server_time"].as_u64().unwrap() > T && init["session"].is_string(), "{init}");
    assert_eq!(bare.next().await, json!({ "type": "init", "data": {}, "heads": [] }));

    ada.send(stamped("k", &json!(1), T)).await;
    assert_eq!(ada.of("ack").await["payload"], json!({ "key": "k", "timestamp": T }));
    let op = running.documents.seq("demo");
    assert_eq!(op, 1);
    // The token is renewed in place; one of another user ends the session.
    ada.send(json!({ "type": "token", "payload": { "token": token("demo", "read") } })).await;
    assert!(ada.of("token").await["payload"]["expires_in_ms"].as_u64().unwrap() > 500_000);
    ada.put("k", json!(2)).await;
    assert_eq!(ada.of("error").await["code"], 403);
    ada.send(json!({ "type": "token", "payload": { "token": "no.token.atall" } })).await;
    assert_eq!(ada.closed().await.0, 4001);
    bare.send(json!({ "type": "token", "payload": { "token": "x" } })).await;
    assert_eq!(bare.of("error").await["reason"], "malformed");
}

#[tokio::test]
async fn json_sessions_are_in_the_same_roster_as_binary_ones() {
    use manyhands_proto::v1;
    use manyhands_proto::v1::client_frame::Frame as ClientFrame;
    use manyhands_proto::v1::server_frame::Frame as ServerFrame;

    let running = merging().await;
    let mut binary = running.greet("read").await;
    binary.open(1, "demo", 0).await;
    let bare = Bare::connect(&running, "read", "", None).await;
    let here = json!([{ "user_id": "ada", "status": "online" }]);
    crate::face::roster_becomes(&running, &here).await;
    let update = binary
        .find(|frame| match frame {
            ServerFrame::Presence(update) if !update.peers.is_empty() => Some(update),
            _ => None,
        })
        .await;
    assert_eq!(
        (&update.peers[0].user[..], &update.peers[0].data[..]),
        ("ada", &br#"{"status":"online"}"#[..])
    );

    let data = json!({ "status": "away", "page": 7 });
    let set = v1::SetPresence { channel: 1, data: data.to_string().into(), cursors: Vec::new() };
    binary.send(ClientFrame::Presence(set)).await;
    let mut extended = Bare::connect(&running, "read", "", Some("manyhands.json.v1")).await;
    let peers = loop {
        let update = extended.of("presence").await;
        let peers = update["payload"]["peers"].as_array().unwrap().clone();
        if peers.iter().any(|peer| peer["data"] == data) {
            break peers;
        }
    };
    assert!(peers.iter().all(|peer| peer["user_id"] == "ada"), "{peers:?}");
    extended.send(json!({ "type": "presence", "payload": { "status": "busy" } })).await;
    drop(bare);
    // The binary session is away, the extended one busy: the first by name.
    crate::face::roster_becomes(&running, &json!([{ "user_id": "ada", "status": "away" }])).await;
    drop(binary);
    crate::face::roster_becomes(&running, &json!([{ "user_id": "ada", "status": "busy" }])).await;
    drop(extended);
    crate::face::roster_becomes(&running, &json!([])).await;
}

#[tokio::test]
async fn a_history_that_is_replaced_brings_a_fresh_init() {
    let running = merging().await;
    let mut ada = Bare::connect(&running, "read write", "", None).await;
    ada.next().await;
    ada.put("k", json!("old")).await;
    ada.next().await;
    running.documents.reset("demo");
    // The owner of the new history refuses what is made for the old one.
    ada.put("k", json!("new")).await;
    let error = ada.next().await;
    assert_eq!((&error["code"], &error["reason"]), (&json!(409), &json!("history_reset")), "{error}");
    assert_eq!(ada.next().await, json!({ "type": "init", "data": {}, "heads": [] }));
    ada.put("k", json!("newer")).await;
    assert_eq!(ada.next().await["payload"]["value"], "newer");
    assert_eq!(running.documents.root("demo"), json!({ "k": "newer" }));
}

// enforces: I-6
#[tokio::test]
async fn what_the_bus_loses_comes_all_the_same() {
    let running = merging().await;
    let mut ada = Bare::connect(&running, "read write", "", None).await;
    let mut bea = Bare::connect(&running, "read", "", None).await;
    ada.next().await;
    bea.next().await;
    running.documents.state().losing = true;
    ada.put("k", json!(1)).await;
    // The acknowledgement tells the edge that there is something, and it reads it from the owner.
    assert_eq!(ada.next().await["payload"]["value"], 1);
    assert_eq!(bea.next().await["payload"]["value"], 1);
    assert_eq!(running.documents.seq("demo"), 1);
}

#[tokio::test]
async fn a_server_that_leaves_closes_so_that_clients_come_back() {
    let running = merging().await;
    let mut bare = Bare::connect(&running, "read", "", None).await;
    let mut extended = Bare::connect(&running, "read", "", Some("manyhands.json.v1")).await;
    bare.next().await;
    extended.next().await;
    running.shutdown.begin();
    assert!(extended.of("bye").await["payload"]["reconnect_after_ms"].as_u64().unwrap() < 10_000);
    let (close, reason) = bare.closed().await;
    assert!(close == 1012 && reason.starts_with("shutting_down"), "{close} {reason}");
}

#[tokio::test]
async fn the_dialect_is_chosen_by_the_subprotocol_and_the_address() {
    use crate::running::UPGRADE;
    let running = merging().await;
    let bearer = format!("Bearer {}", token("demo", "read"));
    let check = async |path: &str, protocols: Option<&str>, status: u16, chosen: Option<&str>| {
        let mut headers = UPGRADE.to_vec();
        headers.push(("Authorization", &bearer));
        headers.extend(protocols.map(|protocols| ("Sec-WebSocket-Protocol", protocols)));
        let answer = running.get(path, &headers).await;
        assert_eq!(answer.status, status, "{path} {protocols:?}: {answer:?}");
        assert_eq!(answer.header("sec-websocket-protocol"), chosen, "{path} {protocols:?}");
    };
    check("/v1/sync/demo", None, 101, None).await;
    check("/v1/sync/demo", Some("manyhands.json.v1"), 101, Some("manyhands.json.v1")).await;
    check("/v1/sync/demo", Some("x, manyhands.json.v1.ext"), 101, Some("manyhands.json.v1.ext")).await;
    check("/v1/sync/demo", Some("manyhands.v1, manyhands.json.v1"), 101, Some("manyhands.v1")).await;
    check("/v1/sync/demo", Some("graphql-ws"), 400, None).await;
    check("/v1/sync", None, 400, None).await;
    check("/v1/sync", Some("manyhands.json.v1"), 400, None).await;
    check("/v1/sync", Some("manyhands.v1"), 101, Some("manyhands.v1")).await;
}
