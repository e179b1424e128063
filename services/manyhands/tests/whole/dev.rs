//! `manyhands dev` as its users meet it: people type, the process dies, they go on typing.

use crate::world::{Dev, PATIENCE, client, saved, text, until};

fn url(dev: &Dev) -> Vec<String> {
    vec![format!("ws://{}", dev.address())]
}

// enforces: I-5, I-6
#[tokio::test]
async fn everyone_sees_what_everyone_types() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path(), "127.0.0.1:0");
    let (ada, bob, eve) = (client(&url(&dev), None), client(&url(&dev), None), client(&url(&dev), None));
    let (ada, bob, eve) = (ada.open("demo").unwrap(), bob.open("demo").unwrap(), eve.open("demo").unwrap());
    for workspace in [&ada, &bob, &eve] {
        workspace.loaded().await.unwrap();
    }
    for n in 0..200 {
        ada.text("main").push(&format!("a{n} ")).unwrap();
        bob.text("main").insert(0, &format!("b{n} ")).unwrap();
    }
    saved(&ada).await;
    saved(&bob).await;
    let complete = |text: &str| text.split_whitespace().count() == 400;
    for workspace in [&ada, &bob, &eve] {
        until(workspace, complete).await;
    }
    assert_eq!(text(&ada), text(&bob));
    assert_eq!(text(&ada), text(&eve));
    assert_eq!(
        ada.read(manyhands_client::Document::state_hash),
        eve.read(manyhands_client::Document::state_hash)
    );
    let late = client(&url(&dev), None);
    let joiner = late.open("demo").unwrap();
    joiner.loaded().await.unwrap();
    until(&joiner, complete).await;
    assert_eq!(text(&ada), text(&joiner));
    assert!(dev.leave(), "it leaves in good order");
}

// enforces: I-1, I-4, I-14
#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_and_the_rest_follows() {
    let data = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(data.path(), "127.0.0.1:0");
    let listen = dev.address().to_string();
    let urls = url(&dev);
    let writer = client(&urls, None);
    let ada = writer.open("demo").unwrap();
    ada.loaded().await.unwrap();
    let mut typed = 0;
    for _ in 0..5 {
        for _ in 0..100 {
            ada.text("main").push(&format!("{typed} ")).unwrap();
            typed += 1;
        }
        // Some of them are acknowledged, some are on their way, some have not left.
        while ada.acked() == 0 {
            tokio::task::yield_now().await;
        }
        let acknowledged = ada.acked();
        dev.kill();
        ada.text("main").push(&format!("{typed} ")).unwrap();
        typed += 1;
        dev = Dev::start(data.path(), &listen);
        // Whoever looks now finds at least what was acknowledged.
        let reader = client(&urls, None);
        let eve = reader.open("demo").unwrap();
        eve.loaded().await.unwrap();
        until(&eve, |text| text.chars().count() as u64 >= acknowledged).await;
        saved(&ada).await;
    }
    let expected: String = (0..typed).map(|n| format!("{n} ")).collect();
    assert_eq!(text(&ada), expected);
    let reader = client(&urls, None);
    let eve = reader.open("demo").unwrap();
    eve.loaded().await.unwrap();
    until(&eve, |text| text == expected).await;
}

#[tokio::test]
async fn cursors_are_shown_as_line_and_column_and_move_with_the_text() {
    use manyhands_client::{Bias, Cursor, LineColumn};

    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path(), "127.0.0.1:0");
    let (a, b) = (client(&url(&dev), None), client(&url(&dev), None));
    let (ada, bob) = (a.open("demo").unwrap(), b.open("demo").unwrap());
    ada.loaded().await.unwrap();
    bob.loaded().await.unwrap();
    ada.text("main").insert(0, "one\ntwo\nthree").unwrap();
    until(&bob, |text| text.ends_with("three")).await;
    let caret = ada.text("main").anchor(6, Bias::Left);
    ada.set_presence(&serde_json::json!({ "name": "Ada" }), &[Cursor::caret("main", caret)]);
    let place = || bob.peers().first().and_then(|peer| peer.cursors.first().map(|cursor| cursor.head));
    let see = async |at: LineColumn| {
        let mut changes = bob.changes();
        let waiting = async {
            while place() != Some(at) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(crate::world::PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("it is at {:?}", place()));
    };
    see(LineColumn { line: 1, column: 2 }).await;
    bob.text("main").insert(0, "zero\n").unwrap();
    see(LineColumn { line: 2, column: 2 }).await;
    assert_eq!(bob.peers()[0].user, "ada");
}

/// What is on a disk after a failed write is not known: it is not tried again, and nothing is acknowledged.
// enforces: I-1, I-14
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_ends_the_process_and_loses_nothing_that_was_acknowledged() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start_on_small_disk(data.path(), "127.0.0.1:0", 1024);
    let listen = dev.address().to_string();
    let urls = url(&dev);
    let writer = client(&urls, None);
    let ada = writer.open("demo").unwrap();
    ada.loaded().await.unwrap();
    let page = "0123456789abcdef".repeat(256);
    for _ in 0..512 {
        ada.text("main").push(&page).unwrap();
    }
    let (status, said) = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(|| dev.ended()))
        .await
        .expect("it ends by itself")
        .unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.starts_with("fix: make room on its disk"), "{said}");
    let acknowledged = ada.acked();
    assert!(0 < acknowledged && acknowledged < 512 * 4096, "{acknowledged}");

    let _dev = Dev::start(data.path(), &listen);
    let reader = client(&urls, None);
    let eve = reader.open("demo").unwrap();
    eve.loaded().await.unwrap();
    until(&eve, |text| text.len() as u64 >= acknowledged).await;
    saved(&ada).await;
    until(&eve, |text| text.len() == 512 * 4096).await;
    assert_eq!(text(&eve), text(&ada));
}
