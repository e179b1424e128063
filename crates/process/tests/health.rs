//! The probes as a platform sees them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use axum::body::Body;
use axum::http::Request;
use manyhands_process::health::Health;
use manyhands_process::telemetry::Metrics;
use tower::ServiceExt;

async fn get(health: &Health, path: &str) -> (u16, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = health.router(Metrics::detached()).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 64 * 1024).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn not_ready_until_every_check_has_passed() {
    let health = Health::new();
    let log = health.check("log");
    let bus = health.check("bus");
    log.pass();
    bus.fail("connection refused");
    assert_eq!(
        get(&health, "/readyz").await,
        (503, r#"{"ready":false,"failing":[{"check":"bus","why":"connection refused"}]}"#.into())
    );
    bus.pass();
    assert_eq!(get(&health, "/readyz").await, (200, r#"{"ready":true,"failing":[]}"#.into()));
    log.fail("lost");
    assert!(!health.is_ready());
}

#[tokio::test]
async fn a_new_check_is_starting() {
    let health = Health::new();
    let _log = health.check("log");
    assert_eq!(
        get(&health, "/readyz").await,
        (503, r#"{"ready":false,"failing":[{"check":"log","why":"starting"}]}"#.into())
    );
}

#[tokio::test]
async fn draining_is_alive_but_not_ready() {
    let health = Health::new();
    health.check("log").pass();
    health.drain();
    assert_eq!(
        get(&health, "/readyz").await,
        (503, r#"{"ready":false,"failing":[{"check":"draining","why":"shutting down"}]}"#.into())
    );
    assert_eq!(get(&health, "/livez").await, (200, r#"{"live":true}"#.into()));
}

#[tokio::test]
async fn dead_stays_dead() {
    let health = Health::new();
    health.die("a partition cannot be released");
    health.die("later");
    assert_eq!(
        get(&health, "/livez").await,
        (503, r#"{"live":false,"why":"a partition cannot be released"}"#.into())
    );
}

#[tokio::test]
async fn metrics_are_text() {
    assert_eq!(get(&Health::new(), "/metrics").await.0, 200);
    assert_eq!(get(&Health::new(), "/other").await.0, 404);
}
