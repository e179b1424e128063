//! No token in any log line, at any level, of any library, by whatever road it came.

use std::io;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use manyhands_edge::TOKEN_SUBPROTOCOL;
use manyhands_proto::v1;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::running::{UPGRADE, config, start, token};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

#[tokio::test]
async fn no_token_is_ever_logged() {
    let lines = Lines::default();
    let _here = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(lines.clone())
        .finish()
        .set_default();
    let running = start(config()).await;
    let token = token("demo", "read");
    let encoded = URL_SAFE_NO_PAD.encode(&token);
    let bearer = format!("Bearer {token}");
    let protocols = format!("manyhands.v1, {TOKEN_SUBPROTOCOL}{encoded}");
    // Let in, and refused for the workspace: both are logged, or may be.
    for workspace in ["demo", "other"] {
        for (query, protocols, authorization) in [
            ("", "manyhands.v1", Some(bearer.as_str())),
            ("", protocols.as_str(), None),
            (token.as_str(), "manyhands.v1", None),
            (token.as_str(), "manyhands.json.v1", None),
        ] {
            let target = format!("/v1/sync/{workspace}?token={query}");
            let mut headers = UPGRADE.to_vec();
            headers.push(("Sec-WebSocket-Protocol", protocols));
            headers.extend(authorization.map(|value| ("Authorization", value)));
            let status = running.get(&target, &headers).await.status;
            assert_eq!(status, if workspace == "demo" { 101 } else { 403 });
        }
    }
    // The client's side of this is in the same process, so its own lines are not counted.
    let logged = String::from_utf8_lossy(&lines.0.lock().unwrap()).into_owned();
    assert!(logged.contains("the edge listens"), "the capture works: {logged}");
    assert!(logged.contains("/v1/sync/other?***"), "refusals are logged without their query: {logged}");
    let signature = token.rsplit('.').next().unwrap();
    for secret in [token.as_str(), encoded.as_str(), signature] {
        assert!(!logged.contains(secret), "a token is in the log");
    }

    let mut client = running.connect(&token).await;
    client.hello().await;
    lines.0.lock().unwrap().clear();
    client.send(ClientFrame::Auth(v1::Auth { token: token.clone() })).await;
    client.next().await;
    let logged = String::from_utf8_lossy(&lines.0.lock().unwrap()).into_owned();
    let ours: Vec<&str> = logged.lines().filter(|line| line.contains("manyhands")).collect();
    assert!(!ours.iter().any(|line| line.contains(signature)), "a refreshed token is in the log: {ours:?}");
}
