//! Who is let in, and what the others are told before any socket is open.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use manyhands_edge::{Config, Limits, TOKEN_SUBPROTOCOL};
use manyhands_proto::Code;
use serde_json::json;

use crate::running::{Running, SECRET, UPGRADE, claims, config, now_s, sign, start, token};

/// A handshake for `workspace` with a token, as it is asked by a client and as it is explained to a browser:
/// both must say the same.
async fn refused(running: &Running, what: &str, path: &str, token: Option<&str>, code: Code) {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let authorization = bearer.as_ref().map(|bearer| ("Authorization", bearer.as_str()));
    let mut handshake = UPGRADE.to_vec();
    handshake.push(("Sec-WebSocket-Protocol", "manyhands.v1"));
    handshake.extend(authorization);
    let plain: Vec<_> = authorization.into_iter().collect();
    for headers in [handshake, plain] {
        let answer = running.get(path, &headers).await;
        assert_eq!(answer.status, code.http_status(), "{what}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
        assert_eq!(answer.header("connection"), Some("close"), "{what}: nothing else is asked here");
        let problem = answer.json();
        assert_eq!(problem["status"], code.http_status(), "{what}");
        assert_eq!(problem["code"], code.number(), "{what}: {problem}");
        assert_eq!(problem["slug"], code.slug(), "{what}");
        assert!(problem["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{what}");
        for member in ["type", "title", "detail"] {
            assert!(problem[member].is_string(), "{what}: {member} in {problem}");
        }
        assert!(problem["retryable"].is_boolean(), "{what}");
        if let Some(token) = token.filter(|token| token.len() > 10) {
            assert!(!answer.body.contains(token), "{what}: the token is repeated");
        }
    }
}

// enforces: I-15
#[tokio::test]
async fn bad_tokens_are_refused_before_the_upgrade_with_their_reason() {
    let running = start(config()).await;
    let good = claims("demo", "read write");
    let hs256 = |claims: &serde_json::Value| sign(claims, Algorithm::HS256, SECRET);
    let with = |name: &str, value: serde_json::Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let payload = URL_SAFE_NO_PAD.encode(good.to_string());
    let header = |alg: &str| URL_SAFE_NO_PAD.encode(json!({ "alg": alg, "typ": "JWT" }).to_string());

    use Code::{Forbidden, TokenExpired, Unauthenticated};
    let check = async |what: &str, token: Option<&str>, code: Code| {
        refused(&running, what, "/v1/sync/demo", token, code).await;
    };
    check("no token", None, Unauthenticated).await;
    check("no JWT", Some("hello"), Unauthenticated).await;
    check("unsigned", Some(&format!("{}.{payload}.", header("none"))), Unauthenticated).await;
    check("signature left out", Some(&format!("{}.{payload}.", header("HS256"))), Unauthenticated).await;
    check("other algorithm", Some(&sign(&good, Algorithm::HS512, SECRET)), Unauthenticated).await;
    let foreign = sign(&good, Algorithm::HS256, "not the secret of this server, but long");
    check("other secret", Some(&foreign), Unauthenticated).await;
    check("expired", Some(&hs256(&with("exp", json!(now_s() - 60)))), TokenExpired).await;
    check(
        "no expiry",
        Some(&hs256(&json!({ "sub": "ada", "workspace": "*", "scope": "read" }))),
        Unauthenticated,
    )
    .await;
    check("9 KiB", Some(&hs256(&with("note", json!("x".repeat(9_000))))), Unauthenticated).await;
    check("another workspace", Some(&token("other", "read write")), Forbidden).await;
    check("no scope", Some(&token("demo", "")), Forbidden).await;

    let answer = running.get("/v1/sync/demo", &[("Authorization", &format!("Bearer {foreign}"))]).await;
    assert!(answer.json()["detail"].as_str().unwrap().contains("signature"), "{answer:?}");
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    let name = running.get(&format!("/v1/sync/a%20b?token={}", token("*", "read")), &[]).await;
    assert_eq!((name.status, &name.json()["slug"]), (400, &json!("invalid_name")));
    assert_eq!(running.documents.state().opens, 0);
}

#[tokio::test]
async fn a_token_comes_by_any_of_three_roads_and_is_never_echoed() {
    let running = start(config()).await;
    let token = token("demo", "read");
    let bearer = format!("Bearer {token}");
    let protocols = format!("manyhands.v1, {TOKEN_SUBPROTOCOL}{}", URL_SAFE_NO_PAD.encode(&token));
    let query = format!("/v1/sync/demo?token={token}");
    for (path, protocols, authorization) in [
        ("/v1/sync/demo", "manyhands.v1", Some(bearer.as_str())),
        ("/v1/sync/demo", protocols.as_str(), None),
        (query.as_str(), "manyhands.v1", None),
    ] {
        let mut headers = UPGRADE.to_vec();
        headers.push(("Sec-WebSocket-Protocol", protocols));
        headers.extend(authorization.map(|value| ("Authorization", value)));
        let answer = running.get(path, &headers).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(answer.header("sec-websocket-protocol"), Some("manyhands.v1"));
        assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(!answer.head.contains(&token) && !answer.head.contains("base64url"));
    }
}

#[tokio::test]
async fn a_plain_get_says_what_a_handshake_would_be_answered() {
    let running = start(config()).await;
    let bearer = format!("Bearer {}", token("demo", "read"));
    let fine = running.get("/v1/sync/demo", &[("Authorization", &bearer)]).await;
    assert_eq!((fine.status, &fine.json()["slug"]), (426, &json!("upgrade_required")));
    assert_eq!(fine.header("upgrade"), Some("websocket"));
    let any = running.get("/v1/sync", &[("Authorization", &bearer)]).await;
    assert_eq!(any.status, 426);
    let post = running.request("POST", "/v1/sync/demo", &[("Authorization", &bearer)]).await;
    assert_eq!(post.status, 405);
    let nothing = running.get("/v1/nothing", &[]).await;
    assert_eq!((nothing.status, &nothing.json()["slug"]), (404, &json!("not_found")));
}

#[tokio::test]
async fn a_socket_needs_the_subprotocol_and_a_true_handshake() {
    let running = start(config()).await;
    let bearer = format!("Bearer {}", token("demo", "read"));
    let check = async |protocol: Option<&str>, left_out: &str, status: u16, slug: &str| {
        let mut headers: Vec<_> = UPGRADE.iter().copied().filter(|(name, _)| *name != left_out).collect();
        headers.push(("Authorization", &bearer));
        headers.extend(protocol.map(|protocol| ("Sec-WebSocket-Protocol", protocol)));
        let answer = running.get("/v1/sync/demo", &headers).await;
        assert_eq!(
            (answer.status, &answer.json()["slug"]),
            (status, &json!(slug)),
            "{protocol:?} {left_out}"
        );
        answer
    };
    let foreign = check(Some("graphql-ws"), "", 400, "version_unsupported").await;
    assert!(foreign.json()["fix"].as_str().unwrap().contains("manyhands.v1"), "{foreign:?}");
    check(Some("manyhands.v2"), "", 400, "version_unsupported").await;
    check(Some("manyhands.v1"), "Sec-WebSocket-Key", 400, "malformed").await;
    let version = check(Some("manyhands.v1"), "Sec-WebSocket-Version", 426, "upgrade_required").await;
    assert_eq!(version.header("sec-websocket-version"), Some("13"));
}

#[tokio::test]
async fn pages_are_let_in_by_their_origin() {
    let page = "https://app.example.com";
    let running = start(Config { allowed_origins: vec![page.to_owned()], ..config() }).await;
    let bearer = format!("Bearer {}", token("demo", "read"));
    let asked = async |origin: &str| {
        running.get("/v1/sync/demo", &[("Authorization", &bearer), ("Origin", origin)]).await
    };
    let allowed = asked(page).await;
    assert_eq!(allowed.status, 426);
    assert_eq!(allowed.header("access-control-allow-origin"), Some(page));
    for foreign in ["https://evil.example", "null", "http://app.example.com", "http://localhost:3000"] {
        let answer = asked(foreign).await;
        assert_eq!((answer.status, &answer.json()["slug"]), (403, &json!("origin_refused")), "{foreign}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let preflight = running.request("OPTIONS", "/v1/sync/demo", &[("Origin", page)]).await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization"));
}

// enforces: I-10
#[tokio::test]
async fn beyond_the_limit_of_connections_a_handshake_is_told_to_come_back() {
    let limits = Limits { connections_max: 2, ..Limits::default() };
    let running = start(Config { limits, ..config() }).await;
    let _first = running.greet("read").await;
    let second = running.greet("read").await;
    let bearer = format!("Bearer {}", token("demo", "read"));
    let mut headers = UPGRADE.to_vec();
    headers.extend([("Authorization", bearer.as_str()), ("Sec-WebSocket-Protocol", "manyhands.v1")]);
    let full = running.get("/v1/sync/demo", &headers).await;
    assert_eq!((full.status, &full.json()["slug"]), (503, &json!("overloaded")));
    assert_eq!(full.header("retry-after"), Some("5"));
    assert_eq!(full.json()["retryable"], true);
    drop(second);
    while running.get("/v1/sync/demo", &headers).await.status != 101 {
        tokio::task::yield_now().await;
    }
}

// enforces: I-10
#[tokio::test]
async fn a_request_head_is_bounded() {
    let running = start(config()).await;
    let many: String = (0..100).map(|i| format!("X-{i}: y\r\n")).collect();
    let answer = running.raw(format!("GET /v1/sync HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes()).await;
    assert_eq!(answer.status, 431, "{answer:?}");
    let long = "y".repeat(64 * 1024);
    let answer =
        running.raw(format!("GET /v1/sync HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n").as_bytes()).await;
    assert!([0, 431].contains(&answer.status), "{answer:?}");
    let answer = running.raw(b"\x16\x03\x01\x02\x00\x01\x00 this is not HTTP\r\n\r\n").await;
    assert!([0, 400].contains(&answer.status), "{answer:?}");
}

#[tokio::test]
async fn an_edge_that_cannot_start_says_why() {
    use manyhands_process::value::Secret;
    let start = async |config: Config| {
        let surroundings = manyhands_edge::Surroundings {
            bus: std::sync::Arc::new(manyhands_bus::LocalBus::new(manyhands_bus::Limits::default())),
            presence: std::sync::Arc::new(manyhands_edge::presence::LocalPresence::default()),
            connector: manyhands_edge::connect(),
            health: manyhands_process::health::Health::new(),
            metrics: manyhands_process::telemetry::Metrics::detached(),
        };
        manyhands_edge::build(config, surroundings).await.err().map(|error| error.to_string())
    };
    let short = start(Config { secret: Secret::new("short"), ..config() }).await.unwrap();
    assert!(short.contains("at least 32"), "{short}");
    let origin = start(Config { allowed_origins: vec!["example.com".into()], ..config() }).await.unwrap();
    assert!(origin.contains("allowed_origins") && origin.contains("https://"), "{origin}");
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let listen = start(Config { listen: address, ..config() }).await.unwrap();
    assert!(listen.contains(&address.to_string()), "{listen}");
}
