use super::*;
use jsonwebtoken::{EncodingKey, Header as JwtHeader, encode};
use serde_json::{Value, json};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW_MS: u64 = 1_800_000_000_000;

fn verifier() -> Verifier {
    Verifier::hs256(SECRET).unwrap()
}

fn claims() -> Value {
    json!({ "sub": "ada", "exp": NOW_MS / 1000 + 60, "workspace": "demo", "scope": "read write" })
}

fn signed(claims: &Value, algorithm: Algorithm, secret: &[u8]) -> String {
    encode(&JwtHeader::new(algorithm), claims, &EncodingKey::from_secret(secret)).unwrap()
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

#[test]
fn a_good_token_grants_what_it_says() {
    let good = |claims: &Value| verifier().verify(&signed(claims, Algorithm::HS256, SECRET), NOW_MS).unwrap();
    let grant = good(&claims());
    assert_eq!(grant.subject, "ada");
    assert_eq!(grant.expires_at_ms, NOW_MS + 60_000 + LEEWAY_MS);
    let [demo, other] = ["demo", "other"].map(|name| name.parse::<DocumentName>().unwrap());
    assert!(grant.allows(&demo, Scope::Write) && !grant.allows(&demo, Scope::Admin));
    assert!(!grant.allows(&other, Scope::Read));

    let mut lists = without("workspace");
    lists["workspaces"] = json!(["demo", "other"]);
    lists.as_object_mut().unwrap().remove("scope");
    lists["scopes"] = json!(["read", "of-another-system"]);
    let grant = good(&lists);
    assert!(grant.allows(&other, Scope::Read) && !grant.allows(&other, Scope::Write));
    assert_eq!(good(&with("workspace", json!("*"))).workspaces, Workspaces::Any);
}

#[test]
fn every_bad_token_has_its_reason() {
    let hs256 = |claims: &Value| signed(claims, Algorithm::HS256, SECRET);
    let check = |what: &str, token: &str, expected: fn(&Denied) -> bool, code: Code| {
        let denied = verifier().verify(token, NOW_MS).unwrap_err();
        assert!(expected(&denied), "{what}: {denied:?}");
        assert_eq!(denied.code(), code, "{what}");
        assert!(token.len() < 10 || !denied.to_string().contains(token), "{what} repeats the token");
    };
    use Code::{TokenExpired, Unauthenticated};
    let good = hs256(&claims());
    let payload = good.split('.').nth(1).unwrap();
    let unsigned = |alg: &str| format!("{}.{payload}.", part(&json!({ "alg": alg, "typ": "JWT" })));

    check("none at all", "", |d| *d == Denied::Missing, Unauthenticated);
    check("too long", &"x".repeat(TOKEN_BYTES_MAX + 1), |d| *d == Denied::TooLong, Unauthenticated);
    for (what, token) in
        [("no token", "hello"), ("two parts", "e30.e30"), ("dots", "..."), ("emoji", "🎉.🎉.🎉")]
    {
        check(what, token, |d| matches!(d, Denied::Malformed(_)), Unauthenticated);
    }
    for algorithm in ["none", "None", "nOnE", "", "HS384", "RS256", "EdDSA"] {
        check(algorithm, &unsigned(algorithm), |d| matches!(d, Denied::Algorithm { .. }), Unauthenticated);
    }
    check("unsigned", &unsigned("HS256"), |d| *d == Denied::Signature, Unauthenticated);
    let hs512 = signed(&claims(), Algorithm::HS512, SECRET);
    check("our secret, other algorithm", &hs512, |d| matches!(d, Denied::Algorithm { .. }), Unauthenticated);
    let foreign = signed(&claims(), Algorithm::HS256, b"another secret that is long enough");
    check("another secret", &foreign, |d| *d == Denied::Signature, Unauthenticated);
    let (head, signature) = good.rsplit_once('.').unwrap();
    check(
        "cut off",
        &good[..good.len() - 5],
        |d| matches!(d, Denied::Signature | Denied::Malformed(_)),
        Unauthenticated,
    );
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let bent = format!("{head}.{first}{}", &signature[1..]);
    check("bent", &bent, |d| *d == Denied::Signature, Unauthenticated);
    let more =
        signed(&with("scope", json!("admin")), Algorithm::HS256, b"another secret that is long enough");
    let grafted = format!("{}.{signature}", more.rsplit_once('.').unwrap().0);
    check("claims of one, signature of another", &grafted, |d| *d == Denied::Signature, Unauthenticated);
    let critical = format!("{}.{payload}.", part(&json!({ "alg": "HS256", "crit": ["b64"] })));
    check("critical extension", &critical, |d| matches!(d, Denied::Malformed(_)), Unauthenticated);

    let expired = hs256(&with("exp", json!(NOW_MS / 1000 - 60)));
    check("expired", &expired, |d| *d == Denied::Expired { seconds: 60 }, TokenExpired);
    let early = hs256(&with("nbf", json!(NOW_MS / 1000 + 60)));
    check("not yet", &early, |d| *d == Denied::NotYet, Unauthenticated);
    for name in ["sub", "exp", "workspace", "scope"] {
        check(name, &hs256(&without(name)), |d| matches!(d, Denied::Claims(_)), Unauthenticated);
    }
    for (name, value) in [
        ("sub", json!(7)),
        ("sub", json!("")),
        ("exp", json!("tomorrow")),
        ("exp", json!(null)),
        ("exp", json!(-1)),
        ("exp", json!(NOW_MS)),
        ("exp", json!(1e300)),
        ("workspace", json!(7)),
        ("workspace", json!("a/b")),
        ("workspace", json!(["demo", ""])),
        ("workspaces", json!("both")),
        ("scope", json!(true)),
        ("scopes", json!(["both"])),
    ] {
        check(name, &hs256(&with(name, value)), |d| matches!(d, Denied::Claims(_)), Unauthenticated);
    }
}

#[test]
fn clocks_may_differ_by_five_seconds() {
    let at = |name, seconds: i64| {
        let time = (NOW_MS / 1000).checked_add_signed(seconds).unwrap();
        verifier().verify(&signed(&with(name, json!(time)), Algorithm::HS256, SECRET), NOW_MS).is_ok()
    };
    assert!(at("exp", -4) && !at("exp", -5));
    assert!(at("nbf", 5) && !at("nbf", 6));
}

#[test]
fn short_secrets_are_refused() {
    assert_eq!(Verifier::hs256(&SECRET[1..]).unwrap_err(), WeakSecret(31));
    assert_eq!(Verifier::hs256(b"").unwrap_err(), WeakSecret(0));
}

// enforces: I-15
#[test]
fn a_socket_is_opened_only_where_the_token_is_for() {
    let check = |workspace: Value, scope: &str, address: Option<&str>, expected: Result<(), Denied>| {
        let mut claims = with("workspace", workspace);
        claims["scope"] = json!(scope);
        let grant = verifier().verify(&signed(&claims, Algorithm::HS256, SECRET), NOW_MS).unwrap();
        let address = address.map(|name| name.parse().unwrap());
        assert_eq!(admits(&grant, address.as_ref()), expected, "{scope:?} at {address:?}");
    };
    check(json!("demo"), "read", Some("demo"), Ok(()));
    check(json!("demo"), "write", Some("demo"), Ok(()));
    check(json!("*"), "read", Some("demo"), Ok(()));
    check(json!(["a", "demo"]), "read", None, Ok(()));
    check(json!("demo"), "read", Some("Demo"), Err(Denied::Workspace));
    check(json!("demo"), "admin", Some("demo2"), Err(Denied::Workspace));
    check(json!([]), "read", Some("demo"), Err(Denied::Workspace));
    check(json!("demo"), "", Some("demo"), Err(Denied::Scope));
    check(json!("*"), "Read writes", None, Err(Denied::Scope));
}

#[test]
fn three_roads_and_none_of_them_is_shown() {
    let token = "e30.e30.c2ln";
    let encoded = URL_SAFE_NO_PAD.encode(token);
    let roads = |authorization: Option<&str>, protocols: &[&str], uri: &str| {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        for protocol in protocols {
            headers.append(header::SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
        }
        let offer = Offer::read(&headers)?;
        Ok((token_of(&headers, &offer, &uri.parse().unwrap())?, offer.ours.is_some()))
    };
    let protocol = format!("manyhands.v1, {TOKEN_SUBPROTOCOL}{encoded}");
    assert_eq!(roads(Some("Bearer e30.e30.c2ln"), &[], "/v1/sync").unwrap(), (token.to_owned(), false));
    assert_eq!(roads(Some("bearer  e30.e30.c2ln "), &[&protocol], "/").unwrap(), (token.to_owned(), true));
    assert_eq!(roads(None, &[&protocol], "/v1/sync").unwrap(), (token.to_owned(), true));
    assert_eq!(
        roads(None, &["manyhands.v1"], "/x?a=b&token=e30.e30.c2ln").unwrap(),
        (token.to_owned(), true)
    );
    assert_eq!(roads(None, &["other"], "/x?tokens=1").unwrap_err(), Denied::Missing);
    for bad in ["Basic YTpi", "Bearer", "e30.e30.c2ln"] {
        let denied = roads(Some(bad), &[], "/").unwrap_err();
        assert!(matches!(denied, Denied::Malformed(_)), "{bad}: {denied:?}");
    }
    let bent = format!("{TOKEN_SUBPROTOCOL}!!!");
    assert!(matches!(roads(None, &[&bent], "/").unwrap_err(), Denied::Malformed(_)));
    let long = format!("{TOKEN_SUBPROTOCOL}{}", "A".repeat(20_000));
    assert_eq!(roads(None, &[&long], "/").unwrap_err(), Denied::TooLong);

    assert_eq!(loggable(&"/v1/sync/demo?token=e30.e30.c2ln".parse().unwrap()), "/v1/sync/demo?***");
    assert_eq!(loggable(&"/v1/sync/demo".parse().unwrap()), "/v1/sync/demo");
}
