//! The JSON dialect over real sockets: what a client that knows only seed words gets, good and bad.

use futures_util::{SinkExt, StreamExt};
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
async fn merging() -> Running {
    let running = start(config()).await;
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
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("a frame in time").unwrap().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
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
