//! Maps in the hands of an application: three ways to merge, offline, refused, watched.

#![allow(clippy::unwrap_used, clippy::result_large_err, reason = "a test fails by panicking")]

mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use manyhands_client::{
    Client, Code, EditError, LocalEdit, MapUpdate, SaveError, Storage, Strategy, Workspace,
};
use serde_json::{Value, json};
use server::Server;

/// Far beyond what anything here takes; a test that waits for nothing fails instead of hanging.
const SOON: Duration = Duration::from_secs(30);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it should have happened by now")
}

async fn until(workspace: &Workspace, holds: impl Fn(&Workspace) -> bool) {
    let mut changes = workspace.changes();
    soon(async {
        while !holds(workspace) {
            changes.changed().await.unwrap();
        }
    })
    .await;
}

async fn open(client: &Client, strategy: Strategy) -> Workspace {
    let workspace = client.open_as("w", Some(strategy)).unwrap();
    soon(workspace.loaded()).await.unwrap();
    assert_eq!(workspace.strategy(), strategy);
    workspace
}

fn get(workspace: &Workspace, key: &str) -> Option<Value> {
    workspace.map("todos").get(key).map(|item| item.read().unwrap())
}

fn hash(workspace: &Workspace) -> [u8; 16] {
    workspace.read(|document| document.state_hash())
}

#[tokio::test]
async fn what_one_sets_the_others_get_under_every_strategy() {
    for strategy in Strategy::ALL {
        let server = Server::start().await;
        let (ann, bob) = (server.client(), server.client());
        let (a, b) = (open(&ann, strategy).await, open(&bob, strategy).await);
        let todos = a.map("todos");
        assert!(todos.is_empty());
        todos.set("t1", &json!({ "title": "Ship it", "done": false })).unwrap();
        todos.set_json("big", "123456789012345678901234567890.10").unwrap();
        todos.set("gone", &1).unwrap();
        todos.remove("gone").unwrap();
        assert_eq!((todos.get("t1").unwrap().seq, todos.len()), (0, 2), "it waits for the server");
        soon(a.saved()).await.unwrap();
        until(&b, |b| b.map("todos").len() == 2 && hash(b) == server.state_hash("w")).await;
        let all: Vec<(String, String)> = b.map("todos").iter().map(|(key, item)| (key, item.json)).collect();
        let expected =
            [("big", "123456789012345678901234567890.10"), ("t1", "{\"done\":false,\"title\":\"Ship it\"}")];
        assert_eq!(all, expected.map(|(key, json)| (key.to_owned(), json.to_owned())));
        // A text and a map of one name are two things.
        a.text("todos").push("text").unwrap();
        soon(a.saved()).await.unwrap();
        assert_eq!(a.map("todos").len(), 2);
        // Whoever does not say how it merges takes what there is.
        let carol = server.client();
        let c = carol.open("w").unwrap();
        soon(c.loaded()).await.unwrap();
        assert_eq!((c.strategy(), hash(&c)), (strategy, server.state_hash("w")));
    }
}

/// What both wrote without a network: the strategy says what comes of it, and everybody gets the same.
#[tokio::test]
async fn concurrent_writes_end_as_the_strategy_says() {
    for strategy in Strategy::ALL {
        let server = Server::start().await;
        let (ann, bob) = (server.client(), server.client());
        let (a, b) = (open(&ann, strategy).await, open(&bob, strategy).await);
        a.map("todos").set("t", &"before").unwrap();
        until(&b, |b| get(b, "t").is_some()).await;
        server.hold(true);
        // Bob's is the later write, Ann's the later arrival.
        a.map("todos").set("t", &"ann").unwrap();
        b.map("todos").set("t", &"bob").unwrap();
        assert_eq!((get(&a, "t"), get(&b, "t")), (Some(json!("ann")), Some(json!("bob"))));
        server.let_through(b.replica());
        soon(b.saved()).await.unwrap();
        server.hold(false);
        soon(a.saved()).await.unwrap();
        until(&a, |a| hash(a) == server.state_hash("w")).await;
        until(&b, |b| hash(b) == server.state_hash("w")).await;
        let (winner, losers) = match strategy {
            Strategy::Crdt => ("ann", vec!["bob"]),
            Strategy::Lww => ("bob", vec![]),
            Strategy::Server => ("ann", vec![]),
        };
        for workspace in [&a, &b] {
            assert_eq!(get(workspace, "t"), Some(json!(winner)), "{strategy}");
            let conflicts: Vec<String> =
                workspace.map("todos").conflicts("t").iter().map(|item| item.read().unwrap()).collect();
            assert_eq!(conflicts, losers, "{strategy}");
        }
        // The next write has seen them all.
        b.map("todos").set("t", &"settled").unwrap();
        soon(b.saved()).await.unwrap();
        until(&a, |a| get(a, "t") == Some(json!("settled"))).await;
        assert_eq!(a.map("todos").conflicts("t"), []);
    }
}

/// A write that expects a value that is gone is undone here and handed back with what there is now.
// enforces: I-14
#[tokio::test]
async fn a_conflict_is_rolled_back_and_handed_back_with_what_the_key_has_now() {
    let server = Server::start().await;
    let (ann, bob) = (server.client(), server.client());
    let (a, b) = (open(&ann, Strategy::Server).await, open(&bob, Strategy::Server).await);
    a.map("todos").replace("t", &1, 0).unwrap();
    soon(a.saved()).await.unwrap();
    until(&a, |a| a.map("todos").get("t").is_some_and(|item| item.seq > 0)).await;
    until(&b, |b| get(b, "t").is_some()).await;
    let seen = a.map("todos").get("t").unwrap().seq;
    assert_eq!(seen, b.map("todos").get("t").unwrap().seq);

    server.hold(true);
    b.map("todos").replace("t", &"mine", seen).unwrap();
    b.map("todos").set("other", &"after it").unwrap();
    assert_eq!(get(&b, "t"), Some(json!("mine")));
    server.write_json_as("w", 99, "todos", "t", "\"theirs\"");
    server.hold(false);
    let error = soon(b.saved()).await.unwrap_err();
    let SaveError::Refused(refused) = &error else { panic!("{error}") };
    assert_eq!(refused.code, Some(Code::Conflict), "{error}");
    let current: Value = serde_json::from_str(refused.current.as_deref().unwrap()).unwrap();
    assert_eq!(current["value"], "theirs");
    let set = |key: &str, value: &str| LocalEdit::Set {
        map: "todos".to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    };
    assert_eq!(refused.edits, [set("t", "\"mine\""), set("other", "\"after it\"")]);
    soon(b.loaded()).await.unwrap();
    assert_eq!((get(&b, "t"), get(&b, "other")), (Some(json!("theirs")), None));

    // What is plain already is refused at once, and a write on top of what there is now goes through.
    let stale = b.map("todos").replace("t", &"stale", seen).unwrap_err();
    assert!(matches!(stale, EditError::Document(_)), "{stale}");
    b.map("todos").remove_seen("t", current["seq"].as_u64().unwrap()).unwrap();
    soon(b.saved()).await.unwrap();
    until(&a, |a| get(a, "t").is_none()).await;
    // Made again, it expects nothing.
    b.retry(b.refused()[0].id).unwrap();
    soon(b.saved()).await.unwrap();
    assert_eq!((get(&b, "t"), get(&b, "other")), (Some(json!("mine")), Some(json!("after it"))));
    until(&b, |b| hash(b) == server.state_hash("w")).await;
}

#[tokio::test]
async fn only_the_server_strategy_takes_expectations() {
    let server = Server::start().await;
    let client = server.client();
    let workspace = open(&client, Strategy::Crdt).await;
    let error = workspace.map("todos").replace("t", &1, 0).unwrap_err();
    assert!(matches!(error, EditError::Document(_)), "{error}");
    assert_eq!(workspace.pending(), 0);
}

#[tokio::test]
async fn a_workspace_that_merges_otherwise_is_closed_with_a_reason() {
    let server = Server::start().await;
    let (ann, bob) = (server.client(), server.client());
    let _a = open(&ann, Strategy::Lww).await;
    let b = bob.open_as("w", Some(Strategy::Server)).unwrap();
    assert!(matches!(soon(b.loaded()).await, Err(SaveError::Closed)));
    let evicted = b.status().evicted.unwrap();
    assert_eq!((evicted.code, evicted.fix.is_empty()), (Some(Code::StrategyMismatch), false));
}

/// Applying what the observer says, in order, gives the map.
#[tokio::test]
async fn a_map_and_its_observer_never_part() {
    let server = Server::start().await;
    let (ann, bob) = (server.client(), server.client());
    let (a, b) = (open(&ann, Strategy::Crdt).await, open(&bob, Strategy::Crdt).await);
    a.map("todos").set("k0", &"first").unwrap();
    soon(a.saved()).await.unwrap();
    let (shown, mut updates) = b.map("todos").watch();
    let mut shown: BTreeMap<String, String> = shown.into_iter().map(|(key, item)| (key, item.json)).collect();
    for n in 0..60 {
        a.map("todos").set(&format!("k{}", n % 7), &n).unwrap();
        b.map("todos").set(&format!("k{}", n % 5), &format!("b{n}")).unwrap();
        b.map("others").set("k", &n).unwrap();
        if n % 4 == 0 {
            a.map("todos").remove(&format!("k{}", n % 3)).unwrap();
        }
        if n % 20 == 7 {
            server.cut();
        }
    }
    soon(a.saved()).await.unwrap();
    soon(b.saved()).await.unwrap();
    until(&b, |b| hash(b) == server.state_hash("w")).await;
    let now = || -> BTreeMap<String, String> {
        b.map("todos").iter().map(|(key, item)| (key, item.json)).collect()
    };
    soon(async {
        while shown != now() {
            match updates.next().await.unwrap() {
                MapUpdate::Set { key, json, .. } => _ = shown.insert(key.to_string(), json.to_string()),
                MapUpdate::Removed { key, .. } => _ = shown.remove(&*key),
                MapUpdate::Reset => shown = now(),
            }
        }
    })
    .await;
}

// enforces: I-14
#[tokio::test]
async fn offline_writes_outlive_the_process_under_every_strategy() {
    for strategy in Strategy::ALL {
        let server = Server::start().await;
        let profile = tempfile::tempdir().unwrap();
        let storage = Storage::open(profile.path()).await.unwrap();
        let first = Client::connect(server.options("good").storage(storage));
        let workspace = open(&first, strategy).await;
        workspace.map("todos").set("online", &1).unwrap();
        soon(workspace.saved()).await.unwrap();
        server.away(true);
        workspace.map("todos").set("offline", &json!(["a", 1e3, null])).unwrap();
        workspace.map("todos").remove("online").unwrap();
        soon(workspace.kept()).await.unwrap();
        first.close(Duration::ZERO).await.unwrap_err();

        server.away(false);
        let storage = Storage::open(profile.path()).await.unwrap();
        assert_eq!(storage.waiting(), ["w"]);
        let second = Client::connect(server.options("good").storage(storage));
        let workspace = second.open("w").unwrap();
        soon(workspace.saved()).await.unwrap();
        soon(workspace.loaded()).await.unwrap();
        assert_eq!(workspace.refused().len(), 0);
        assert_eq!(get(&workspace, "online"), None);
        assert_eq!(workspace.map("todos").get("offline").unwrap().json, "[\"a\",1000.0,null]");
        until(&workspace, |workspace| hash(workspace) == server.state_hash("w")).await;
    }
}

#[tokio::test]
async fn several_writes_are_one_change_and_bad_ones_none() {
    let server = Server::start().await;
    let client = server.client();
    let workspace = open(&client, Strategy::Crdt).await;
    workspace
        .edit(|edit| {
            edit.set("todos", "a", &1)?;
            edit.set("", "b", &2)?;
            edit.insert("main", 0, "three")
        })
        .unwrap();
    assert_eq!(workspace.pending(), 1);
    for (key, json) in [("", "1"), (&"k".repeat(513), "1"), ("k", "{"), ("k", "[1,]"), ("k", "\"\\ud800\"")] {
        assert!(workspace.map("todos").set_json(key, json).is_err(), "{key} {json}");
    }
    let deep = format!("{}1{}", "[".repeat(32), "]".repeat(32));
    assert!(workspace.map("todos").set_json("deep", &deep).is_err());
    assert_eq!((workspace.pending(), workspace.map("todos").len()), (1, 1));
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w"), "three");
}
