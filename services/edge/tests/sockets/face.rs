//! What the edge answers over plain HTTP: the table of errors, and who is in a workspace.

use std::sync::Arc;

use manyhands_bus::{LocalBus, SharedBus};
use manyhands_edge::Config;
use manyhands_edge::presence::{LocalPresence, Presence};
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::{CODES, v1};
use serde_json::{Value, json};

use crate::documents::Documents;
use crate::running::{Client, Running, SECRET, claims, config, sign, start, start_beside, token};

#[tokio::test]
async fn the_table_of_errors_is_served_whole_and_by_code() {
    let running = start(config()).await;
    let table = running.get("/v1/errors", &[]).await;
    assert_eq!(table.status, 200);
    let rows = table.json()["errors"].as_array().unwrap().clone();
    assert_eq!(rows.len(), CODES.len());
    for (row, code) in rows.iter().zip(CODES) {
        assert_eq!((&row["code"], &row["slug"]), (&json!(code.number()), &json!(code.slug())));
        for name in [code.slug().to_owned(), code.number().to_string()] {
            assert_eq!(running.get(&format!("/v1/errors/{name}"), &[]).await.json(), *row, "{name}");
        }
        for member in ["message", "fix", "retry"] {
            assert!(row[member].as_str().is_some_and(|text| !text.is_empty()), "{member} in {row}");
        }
    }
    for unknown in ["nothing", "999999", "Forbidden", "%20"] {
        let answer = running.get(&format!("/v1/errors/{unknown}"), &[]).await;
        assert_eq!((answer.status, &answer.json()["slug"]), (404, &json!("not_found")), "{unknown}");
    }
}

async fn tab_of(running: &Running, user: &str) -> Client {
    let mut claims = claims("demo", "read");
    claims["sub"] = json!(user);
    let token = sign(&claims, jsonwebtoken::Algorithm::HS256, SECRET);
    let mut client = running.connect(&token).await;
    client.hello().await;
    client.open(1, "demo", 0).await;
    client
}

async fn show(client: &mut Client, data: &Value) {
    let data = data.to_string().into();
    client.send(ClientFrame::Presence(v1::SetPresence { channel: 1, data, cursors: Vec::new() })).await;
}

/// Asks until the roster is the expected one: presence may be seconds old.
pub(crate) async fn roster_becomes(running: &Running, expected: &Value) {
    let bearer = format!("Bearer {}", token("demo", "read"));
    let asked = async {
        loop {
            let answer = running.get("/v1/presence/demo", &[("Authorization", &bearer)]).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            if answer.json() == *expected {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::running::PATIENCE, asked)
        .await
        .unwrap_or_else(|_| panic!("never {expected}"));
}

#[tokio::test]
async fn several_tabs_of_one_user_are_one_user_until_the_last_closes() {
    let bus: SharedBus = Arc::new(LocalBus::new(manyhands_bus::Limits::default()));
    let store: Arc<dyn Presence> = Arc::new(LocalPresence::default());
    let documents = Documents::new(Arc::clone(&bus));
    let nodes = [("http://one", documents)];
    let here = start_beside(config(), Arc::clone(&bus), nodes.clone(), Arc::clone(&store)).await;
    let there = start_beside(config(), bus, nodes, store).await;
    for edge in [&here, &there] {
        roster_becomes(edge, &json!([])).await;
    }
    let (mut first, mut second) = (tab_of(&here, "ada").await, tab_of(&here, "ada").await);
    let mut bea = tab_of(&here, "bea").await;
    show(&mut first, &json!({ "status": "online" })).await;
    show(&mut second, &json!({ "status": "away" })).await;
    show(&mut bea, &json!({ "color": "red" })).await;
    let both = json!([
        { "user_id": "ada", "status": "online" },
        { "user_id": "bea", "status": "online" },
    ]);
    // Also on an edge where nobody has the workspace open.
    for edge in [&here, &there] {
        roster_becomes(edge, &both).await;
    }
    drop((bea, first));
    for edge in [&here, &there] {
        roster_becomes(edge, &json!([{ "user_id": "ada", "status": "away" }])).await;
    }
    drop(second);
    for edge in [&here, &there] {
        roster_becomes(edge, &json!([])).await;
    }
}

// enforces: I-15
#[tokio::test]
async fn a_roster_is_for_those_who_may_read_the_workspace() {
    let page = "https://app.example.com";
    let running = start(Config { allowed_origins: vec![page.to_owned()], ..config() }).await;
    let asked = async |token: Option<String>, origin: &str| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("Origin", origin)];
        headers.extend(bearer.iter().map(|bearer| ("Authorization", bearer.as_str())));
        running.get("/v1/presence/demo", &headers).await
    };
    let fine = asked(Some(token("demo", "read")), page).await;
    assert_eq!((fine.status, fine.header("access-control-allow-origin")), (200, Some(page)));
    let none = asked(None, page).await;
    assert_eq!((none.status, none.header("access-control-allow-origin")), (401, Some(page)));
    assert_eq!(asked(Some(token("other", "read")), page).await.status, 403);
    assert_eq!(asked(Some(token("demo", "")), page).await.status, 403);
    let foreign = asked(Some(token("demo", "read")), "https://evil.example").await;
    assert_eq!((foreign.status, foreign.header("access-control-allow-origin")), (403, None));
    let query = running.get(&format!("/v1/presence/demo?token={}", token("demo", "read")), &[]).await;
    assert_eq!(query.status, 200);
    let name = running.get(&format!("/v1/presence/a%20b?token={}", token("*", "read")), &[]).await;
    assert_eq!((name.status, &name.json()["slug"]), (400, &json!("invalid_name")));
    let post = running.request("POST", "/v1/presence/demo", &[]).await;
    assert_eq!(post.status, 405);
    let preflight = running.request("OPTIONS", "/v1/presence/demo", &[("Origin", page)]).await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (204, Some(page)));
}
