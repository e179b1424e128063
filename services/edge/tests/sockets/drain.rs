//! How an edge leaves.

use manyhands_edge::Config;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use std::time::Duration;

use manyhands_proto::Code;

use crate::running::{PATIENCE, config, start, token};

#[tokio::test]
async fn a_leaving_edge_says_so_to_everybody_and_takes_nobody_new() {
    let running = start(Config { drain: Duration::from_secs(2), ..config() }).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = running.greet("read").await;
        client.open(1, "demo", 0).await;
        clients.push(client);
    }
    while !running.health.is_ready() {
        tokio::task::yield_now().await;
    }
    running.shutdown.begin();
    let mut delays = Vec::new();
    for client in &mut clients {
        let goaway = client
            .find(|frame| if let ServerFrame::Goaway(goaway) = frame { Some(goaway) } else { None })
            .await;
        delays.push(goaway.reconnect_after_ms);
    }
    assert!(delays.iter().all(|delay| *delay <= 2000), "{delays:?}");
    assert!(delays.iter().any(|delay| *delay != delays[0]), "each goes at its own moment: {delays:?}");
    assert!(!running.health.is_ready());
    let bearer = format!("Bearer {}", token("demo", "read"));
    let late = running.get("/v1/sync", &[("Authorization", &bearer)]).await;
    assert_eq!((late.status, &late.json()["slug"]), (503, &serde_json::json!("shutting_down")));
    assert_eq!(running.get("/readyz", &[]).await.status, 503, "probes are answered to the end");

    // One goes by itself, the others are closed when the time is over.
    drop(clients.pop());
    for client in &mut clients {
        let (close, reason) = client.closed().await;
        assert_eq!(close, Code::ShuttingDown.close().unwrap(), "{reason}");
    }
    drop(clients);
    let ended = tokio::time::timeout(PATIENCE, running.task).await.expect("the edge ends");
    ended.unwrap().unwrap();
}
