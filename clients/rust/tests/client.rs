//! The client against a server in the same process: real sockets, the real edge machine.

// `result_large_err`: a refused handshake is the library's own type.
#![allow(clippy::unwrap_used, clippy::result_large_err)]

mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use manyhands_client::{
    Bias, Client, ClientOptions, Code, ConnectError, Connection, Cursor, EditError, LineColumn, LocalEdit,
    Patch, SaveError, Token, Update, Workspace,
};
use server::Server;
use tokio::io::AsyncReadExt;

/// Far beyond what anything here takes; a test that waits for nothing fails instead of hanging.
const SOON: Duration = Duration::from_secs(30);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it should have happened by now")
}

/// Waits until something holds for a workspace.
async fn until(workspace: &Workspace, holds: impl Fn(&Workspace) -> bool) {
    let mut changes = workspace.changes();
    soon(async {
        while !holds(workspace) {
            changes.changed().await.unwrap();
        }
    })
    .await;
}

async fn open(client: &Client, name: &str) -> Workspace {
    let workspace = client.open(name).unwrap();
    soon(workspace.loaded()).await.unwrap();
    workspace
}

fn main_text(workspace: &Workspace) -> String {
    workspace.text("main").to_string()
}

fn insertion(at: usize, inserted: &str) -> LocalEdit {
    LocalEdit::Insert { text: "main".into(), at, inserted: inserted.to_owned() }
}

fn hash(workspace: &Workspace) -> [u8; 16] {
    workspace.read(|document| document.state_hash())
}

#[tokio::test]
async fn two_clients_type_and_a_third_joins() {
    let server = Server::start().await;
    let (ann, bob) = (server.client(), server.client());
    let (a, b) = (open(&ann, "w").await, open(&bob, "w").await);
    a.text("main").insert(0, "hello").unwrap();
    soon(a.saved()).await.unwrap();
    assert_eq!(server.text("w"), "hello", "saved means that the server has it");
    until(&b, |b| main_text(b) == "hello").await;
    b.text("main").push(" world").unwrap();
    b.text("main").delete(0..1).unwrap();
    b.text("main").insert(0, "H").unwrap();
    soon(b.saved()).await.unwrap();
    until(&a, |a| main_text(a) == "Hello world").await;

    let carol = server.client();
    let c = open(&carol, "w").await;
    assert_eq!(main_text(&c), "Hello world");
    assert_eq!((hash(&a), hash(&b), hash(&c)), (hash(&a), hash(&a), server.state_hash("w")));
    assert_eq!(a.status().pending, 0);
}

#[tokio::test]
async fn a_text_and_its_observer_never_part() {
    let server = Server::start().await;
    let (ann, bob) = (server.client(), server.client());
    let (a, b) = (open(&ann, "w").await, open(&bob, "w").await);
    a.text("main").insert(0, "start").unwrap();
    soon(a.saved()).await.unwrap();
    let (mut shown, mut updates) = b.observe_text("main");
    for n in 0..30 {
        a.text("main").insert(n, "é😀").unwrap();
        b.text("main").push("b").unwrap();
        if n % 5 == 0 {
            a.text("main").delete(n..n + 1).unwrap();
        }
    }
    soon(a.saved()).await.unwrap();
    soon(b.saved()).await.unwrap();
    let end = server.text("w");
    soon(async {
        while shown != end {
            match updates.next().await.unwrap() {
                Update::Patches { patches, .. } => patches.iter().for_each(|patch| apply(&mut shown, patch)),
                Update::Reset | Update::Lagged(_) => shown = main_text(&b),
            }
        }
    })
    .await;
    assert_eq!(main_text(&b), end);
}

fn apply(shown: &mut String, patch: &Patch) {
    let Patch::Text { at, deleted, inserted, .. } = patch else { panic!("not of a text: {patch:?}") };
    let mut chars: Vec<char> = shown.chars().collect();
    chars.splice(*at..at + deleted, inserted.chars());
    *shown = chars.into_iter().collect();
}

#[tokio::test]
async fn an_observer_that_does_not_listen_is_told_what_it_missed() {
    let server = Server::start().await;
    let mut options = server.options("good");
    options.observer_lag_max = 4;
    let client = Client::connect(options);
    let workspace = open(&client, "w").await;
    let mut updates = workspace.observe();
    for _ in 0..10 {
        workspace.text("main").push("x").unwrap();
    }
    assert!(matches!(soon(updates.next()).await, Some(Update::Lagged(6))));
    assert!(matches!(soon(updates.next()).await, Some(Update::Patches { local: true, .. })));
}

/// Connections are cut again and again while two people type: nothing is lost, nothing comes twice.
// enforces: I-14
#[tokio::test]
async fn typing_goes_on_through_cuts() {
    let server = Server::start().await;
    let (ann, bob) = (server.client(), server.client());
    let (a, b) = (open(&ann, "w").await, open(&bob, "w").await);
    for n in 0..200 {
        a.text("main").push(&format!("a{n} ")).unwrap();
        b.text("main").insert(0, &format!("b{n} ")).unwrap();
        if n % 40 == 20 {
            server.cut();
        }
        if n % 10 == 0 {
            tokio::task::yield_now().await;
            until(&a, |a| a.pending() < 100).await;
        }
    }
    soon(a.saved()).await.unwrap();
    soon(b.saved()).await.unwrap();
    let end = server.text("w");
    until(&a, |a| main_text(a) == end).await;
    until(&b, |b| main_text(b) == end).await;
    for n in 0..200 {
        for word in [format!("a{n}"), format!("b{n}")] {
            assert_eq!(end.split(' ').filter(|&other| other == word).count(), 1, "{word}");
        }
    }
    assert_eq!((hash(&a), hash(&b)), (server.state_hash("w"), server.state_hash("w")));
    assert!(ann.moved().connections > 1, "no connection was cut");
}

/// Offline edits are kept, shown as pending and sent later.
// enforces: I-14
#[tokio::test]
async fn offline_edits_are_kept_until_there_is_a_server() {
    let server = Server::start().await;
    server.away(true);
    let client = server.client();
    let workspace = client.open("w").unwrap();
    workspace.text("main").insert(0, "written offline").unwrap();
    workspace.text("main").delete(7..15).unwrap();
    assert_eq!(main_text(&workspace), "written");
    let status = workspace.status();
    assert_eq!((status.pending, status.loaded), (2, false));
    let mut connection = client.connection();
    soon(connection.wait_for(|state| matches!(state, Connection::Offline { .. }))).await.unwrap();

    server.away(false);
    client.wake();
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w"), "written");
    assert_eq!(workspace.status().pending, 0);
}

#[tokio::test]
async fn edits_before_the_state_arrives_are_merged_with_it() {
    let server = Server::start().await;
    server.reset("w", "what was there");
    let client = server.client();
    let workspace = client.open("w").unwrap();
    workspace.text("main").insert(0, "new ").unwrap();
    workspace.text("other").insert(0, "second text").unwrap();
    soon(workspace.saved()).await.unwrap();
    soon(workspace.loaded()).await.unwrap();
    workspace.text("main").insert(0, "more ").unwrap();
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.states_sent(), 1);
    let end = main_text(&workspace);
    assert_eq!(server.text("w"), end);
    assert!(end.contains("more ") && end.contains("new ") && end.contains("what was there"), "{end}");
    assert_eq!(hash(&workspace), server.state_hash("w"));
}

/// A refused edit is taken out of the text and handed back with all that came after it.
// enforces: I-14
#[tokio::test]
async fn what_the_server_refuses_is_handed_back() {
    for tails_only in [false, true] {
        let server = Server::start().await;
        if tails_only {
            server.tails_only();
        }
        server.forbid("swear");
        let client = server.client();
        let workspace = open(&client, "w").await;
        let replica = workspace.replica();
        workspace.text("main").insert(0, "fine").unwrap();
        soon(workspace.saved()).await.unwrap();
        let mut updates = workspace.observe();
        workspace.text("main").push(" swear").unwrap();
        workspace.text("main").insert(0, "after ").unwrap();
        assert_eq!(main_text(&workspace), "after fine swear");
        let error = soon(workspace.saved()).await.unwrap_err();
        assert!(
            matches!(&error, SaveError::Refused(refused) if refused.code == Some(Code::Forbidden)),
            "{error}"
        );

        soon(async { while !matches!(updates.next().await, Some(Update::Reset)) {} }).await;
        soon(workspace.loaded()).await.unwrap();
        assert_eq!((main_text(&workspace), server.text("w")), ("fine".to_owned(), "fine".to_owned()));
        assert_ne!(workspace.replica(), replica, "a refused replica writes no more");
        let status = workspace.status();
        assert_eq!((status.pending, status.refused.len()), (0, 1));
        let refused = workspace.take_refused().remove(0);
        assert_eq!(refused.edits, [insertion(4, " swear"), insertion(0, "after ")]);
        assert_eq!(
            (refused.message.as_str(), refused.fix.as_str()),
            ("this word is not allowed", Code::Forbidden.fix())
        );

        workspace.text("main").push(" again").unwrap();
        soon(workspace.saved()).await.unwrap();
        assert_eq!(server.text("w"), "fine again");
        assert_eq!(hash(&workspace), server.state_hash("w"));
    }
}

/// A copy of this client, a restored virtual machine for instance, wrote under the same replica. That the server
/// has something under the number of a pending edit does not make it this edit.
// enforces: I-14
#[tokio::test]
async fn an_edit_whose_number_a_copy_has_used_is_handed_back() {
    let server = Server::start().await;
    let client = server.client();
    let workspace = open(&client, "w").await;
    workspace.text("main").insert(0, "common").unwrap();
    soon(workspace.saved()).await.unwrap();
    server.away(true);
    workspace.text("main").push(", mine").unwrap();
    server.write_as("w", workspace.replica(), "theirs, ");
    server.away(false);
    let error = soon(workspace.saved()).await.unwrap_err();
    assert!(matches!(&error, SaveError::Refused(refused) if refused.code == Some(Code::Fork)), "{error}");
    assert_eq!(workspace.take_refused()[0].edits, [insertion(6, ", mine")]);
    soon(workspace.loaded()).await.unwrap();
    assert_eq!(main_text(&workspace), "theirs, common");
    workspace.text("main").push("!").unwrap();
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w"), "theirs, common!");
}

/// The document was restored to another history: what is pending cannot go into it, and is handed back.
// enforces: I-14
#[tokio::test]
async fn another_history_hands_back_what_is_pending() {
    let server = Server::start().await;
    let client = server.client();
    let workspace = open(&client, "w").await;
    workspace.text("main").insert(0, "old history").unwrap();
    soon(workspace.saved()).await.unwrap();
    server.hold(true);
    workspace.text("main").push(", unsaved").unwrap();
    server.reset("w", "new history");
    server.hold(false);
    let error = soon(workspace.saved()).await.unwrap_err();
    assert!(
        matches!(&error, SaveError::Refused(refused) if refused.code == Some(Code::HistoryReset)),
        "{error}"
    );
    soon(workspace.loaded()).await.unwrap();
    assert_eq!(main_text(&workspace), "new history");
    assert_eq!(workspace.take_refused()[0].edits, [insertion(11, ", unsaved")]);
    workspace.text("main").push("!").unwrap();
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w"), "new history!");
}

#[tokio::test]
async fn cursors_are_seen_as_line_and_column_and_move_with_edits() {
    let server = Server::start().await;
    let (ann, bob) = (server.client(), server.client());
    let (a, b) = (open(&ann, "w").await, open(&bob, "w").await);
    let text = a.text("main");
    text.insert(0, "first line\nsecond line").unwrap();
    soon(a.saved()).await.unwrap();
    let at = text.at_line_column(LineColumn { line: 1, column: 6 });
    let cursor = Cursor {
        container: "main".to_owned(),
        head: text.anchor(at, Bias::Left),
        tail: text.anchor(11, Bias::Right),
    };
    a.set_presence(&serde_json::json!({ "name": "Ada" }), &[cursor]);
    let heads = |b: &Workspace| -> Vec<(LineColumn, LineColumn)> {
        let peers = b.peers();
        peers.iter().flat_map(|peer| &peer.cursors).map(|cursor| (cursor.head, cursor.tail)).collect()
    };
    let place = |line, column| LineColumn { line, column };
    until(&b, |b| heads(b) == [(place(1, 6), place(1, 0))]).await;
    let peer = b.peers().remove(0);
    assert_eq!((peer.user.as_str(), peer.data["name"].as_str()), ("ada", Some("Ada")));

    b.text("main").insert(0, "a new line\n").unwrap();
    assert_eq!(heads(&b), [(place(2, 6), place(2, 0))], "an own edit moves it at once");
    b.text("main").insert(22, "the ").unwrap();
    assert_eq!(heads(&b), [(place(2, 10), place(2, 4))]);
    soon(b.saved()).await.unwrap();
    until(&a, |a| main_text(a) == main_text(&b)).await;
    assert_eq!(a.peers(), [], "nobody sees itself");

    server.cut();
    until(&b, |b| heads(b) == [(place(2, 10), place(2, 4))]).await;
    ann.close(SOON).await.unwrap();
    until(&b, |b| b.peers().is_empty()).await;
}

#[tokio::test]
async fn several_workspaces_share_one_socket() {
    let server = Server::start().await;
    let client = server.client();
    let names = ["one", "two", "three"];
    let workspaces: Vec<Workspace> = names.iter().map(|name| client.open(name).unwrap()).collect();
    for (workspace, name) in workspaces.iter().zip(names) {
        workspace.text("main").insert(0, name).unwrap();
    }
    for (workspace, name) in workspaces.iter().zip(names) {
        soon(workspace.saved()).await.unwrap();
        assert_eq!(server.text(name), name);
    }
    assert_eq!(server.sockets(), 1);
    assert!(client.open("not a name").is_err());
}

#[tokio::test]
async fn a_refused_token_is_asked_for_once_more_and_then_it_stops_with_a_reason() {
    let server = Server::start().await;
    let asked = Arc::new(AtomicU32::new(0));
    let token = |answers: &'static [&'static str]| {
        let asked = asked.clone();
        asked.store(0, Ordering::Relaxed);
        Token::from_fn(move || {
            let n = asked.fetch_add(1, Ordering::Relaxed) as usize;
            async move { Ok(answers[n.min(answers.len() - 1)].to_owned()) }
        })
    };
    let client = Client::connect(server.options(token(&["stale", "good"])));
    soon(client.online()).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 2);

    let client = Client::connect(server.options(token(&["stale", "bad"])));
    let workspace = client.open("w").unwrap();
    workspace.text("main").push("kept").unwrap();
    let stop = soon(client.online()).await.unwrap_err();
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert_eq!(stop.code, Some(Code::Unauthenticated));
    assert_eq!(
        (stop.message.as_str(), stop.fix.as_str()),
        ("the token's signature does not verify.", "Sign it.")
    );
    assert!(matches!(soon(workspace.saved()).await, Err(SaveError::Stopped(_))));
    assert_eq!(workspace.status().pending, 1);

    server.allow("bad", "read write");
    client.wake();
    soon(client.online()).await.unwrap();
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w"), "kept");
    assert_eq!(server.tokens_seen(), ["stale", "good", "stale", "bad", "bad"]);
}

#[tokio::test]
async fn a_reader_cannot_edit() {
    let server = Server::start().await;
    server.allow("reader", "read");
    server.reset("w", "to be read");
    let client = Client::connect(server.options("reader"));
    let workspace = open(&client, "w").await;
    assert_eq!(main_text(&workspace), "to be read");
    assert_eq!(workspace.text("main").push("x"), Err(EditError::ReadOnly));
    assert_eq!(main_text(&workspace), "to be read");
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_fails() {
    let server = Server::start().await;
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let mut options = server.options("good");
    options.urls.insert(0, format!("ws://{nobody}").parse().unwrap());
    let client = Client::connect(options);
    let mut connection = client.connection();
    let offline =
        soon(connection.wait_for(|state| matches!(state, Connection::Offline { .. }))).await.unwrap();
    let Connection::Offline { error: Some(error), .. } = offline.clone() else { panic!("{:?}", *offline) };
    drop(offline);
    assert!(matches!(&*error, ConnectError::Unreachable { .. }), "{error}");
    soon(client.online()).await.unwrap();
}

#[tokio::test]
async fn closing_saves_first_and_says_what_it_could_not() {
    let server = Server::start().await;
    let client = server.client();
    let workspace = client.open("w").unwrap();
    workspace.text("main").push("saved by closing").unwrap();
    client.close(SOON).await.unwrap();
    assert_eq!(server.text("w"), "saved by closing");
    assert_eq!(workspace.text("main").push("x"), Err(EditError::Closed));

    let client = server.client();
    let workspace = open(&client, "w").await;
    server.hold(true);
    workspace.text("main").push("never").unwrap();
    let unsaved = client.close(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(unsaved.pending, 1);
}

#[tokio::test]
async fn a_dropped_workspace_is_saved_and_left() {
    let server = Server::start().await;
    let (client, other) = (server.client(), server.client());
    let watching = open(&other, "w").await;
    let workspace = open(&client, "w").await;
    workspace.text("main").push("last words").unwrap();
    drop(workspace);
    until(&watching, |watching| main_text(watching) == "last words").await;
}

#[tokio::test]
async fn a_full_outbox_takes_no_more_and_loses_nothing() {
    let server = Server::start().await;
    let mut options = server.options("good");
    options.outbox_edits_max = 3;
    let client = Client::connect(options);
    let workspace = open(&client, "w").await;
    server.hold(true);
    for n in 0..3 {
        workspace.text("main").push(&n.to_string()).unwrap();
    }
    assert_eq!(workspace.text("main").push("3"), Err(EditError::OutboxFull { pending: 3 }));
    assert_eq!(main_text(&workspace), "012");
    server.hold(false);
    soon(workspace.saved()).await.unwrap();
    workspace.text("main").push("3").unwrap();
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w"), "0123");
}

#[tokio::test]
async fn long_pastes_and_deletions_become_several_changes() {
    let server = Server::start().await;
    let client = server.client();
    let workspace = open(&client, "w").await;
    let long: String = (0..60_000).map(|n| char::from_u32(0x4e00 + n % 2_000).unwrap()).collect();
    workspace.text("main").insert(0, &long).unwrap();
    assert!(workspace.pending() > 1);
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w"), long);
    workspace.text("main").delete(1..59_999).unwrap();
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w").chars().count(), 2);
    let error = workspace.text("main").delete(1..3).unwrap_err();
    assert!(matches!(error, EditError::Document(_)), "{error}");
}

#[tokio::test]
async fn wss_speaks_tls() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://localhost:{}", listener.local_addr().unwrap().port());
    let _client = Client::connect(ClientOptions::new(url.parse().unwrap(), "good"));
    let first_byte = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap()
    };
    assert_eq!(soon(first_byte).await, 0x16, "a TLS handshake record");
}
