//! The outbox on disk: processes end, profiles are copied, and every edit that was kept arrives once or is
//! handed back.

#![allow(clippy::unwrap_used, clippy::result_large_err, reason = "a test fails by panicking")]

mod server;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use manyhands_client::{
    Client, ClientOptions, Code, EditError, LocalEdit, SaveError, Storage, StorageError, Workspace,
};
use server::Server;

/// Far beyond what anything here takes; a test that waits for nothing fails instead of hanging.
const SOON: Duration = Duration::from_secs(30);
/// Where a child of these tests finds its profile, and the server.
const CHILD: [&str; 2] = ["MANYHANDS_TEST_PROFILE", "MANYHANDS_TEST_SERVER"];

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it should have happened by now")
}

async fn client(server: &Server, profile: &Path) -> Client {
    let storage = Storage::open(profile).await.unwrap();
    Client::connect(server.options("good").storage(storage))
}

/// A client that is not answered; what it keeps stays on the disk.
async fn leave_behind(server: &Server, profile: &Path, words: &[&str]) {
    server.away(true);
    let client = client(server, profile).await;
    let workspace = client.open("w").unwrap();
    for word in words {
        workspace.text("main").push(word).unwrap();
    }
    soon(workspace.kept()).await.unwrap();
    assert_eq!((workspace.pending(), workspace.status().unkept), (words.len(), 0));
    let unsaved = client.close(Duration::ZERO).await.unwrap_err();
    assert_eq!(unsaved.pending, words.len());
    server.away(false);
}

fn text(workspace: &Workspace) -> String {
    workspace.text("main").to_string()
}

// enforces: I-14
#[tokio::test]
async fn what_a_process_kept_is_shown_edited_and_sent_by_the_next_one() {
    let server = Server::start().await;
    let profile = tempfile::tempdir().unwrap();
    leave_behind(&server, profile.path(), &["one ", "two "]).await;
    assert_eq!(server.text("w"), "");

    // The next one is offline as well, and goes on where the first one was.
    server.away(true);
    let second = client(&server, profile.path()).await;
    let workspace = second.open("w").unwrap();
    assert_eq!((text(&workspace).as_str(), workspace.pending()), ("one two ", 2));
    workspace.text("main").push("three ").unwrap();
    soon(workspace.kept()).await.unwrap();
    server.away(false);
    second.wake();
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w"), "one two three ");
    second.close(SOON).await.unwrap();

    // Nothing is left, and the third one writes under another name.
    let storage = Storage::open(profile.path()).await.unwrap();
    assert_eq!(storage.waiting(), Vec::<String>::new());
    let third = Client::connect(server.options("good").storage(storage));
    let again = third.open("w").unwrap();
    soon(again.loaded()).await.unwrap();
    assert_ne!(again.replica(), workspace.replica());
    again.text("main").push("four").unwrap();
    soon(again.saved()).await.unwrap();
    assert_eq!(server.text("w"), "one two three four");
}

/// What was made on top of what others wrote can be merged only when that is here again.
// enforces: I-14
#[tokio::test]
async fn edits_on_top_of_others_wait_for_the_state() {
    let server = Server::start().await;
    server.reset("w", "what was there");
    let profile = tempfile::tempdir().unwrap();
    let first = client(&server, profile.path()).await;
    let workspace = first.open("w").unwrap();
    soon(workspace.loaded()).await.unwrap();
    server.away(true);
    workspace.text("main").delete(5..9).unwrap();
    workspace.text("main").push(", and more").unwrap();
    soon(workspace.kept()).await.unwrap();
    first.close(Duration::ZERO).await.unwrap_err();

    let second = client(&server, profile.path()).await;
    let workspace = second.open("w").unwrap();
    assert_eq!(workspace.text("main").push("x"), Err(EditError::Reloading));
    server.away(false);
    second.wake();
    soon(workspace.loaded()).await.unwrap();
    assert_eq!(text(&workspace), "what there, and more");
    workspace.text("main").push("!").unwrap();
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w"), "what there, and more!");
    assert_eq!(workspace.read(|document| document.state_hash()), server.state_hash("w"));
}

/// The process is killed at any moment, again and again, while it types: with a server that answers, and with
/// one that does not. What it said was kept is there once, nothing is there twice.
// enforces: I-4, I-14
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_kept_arrives_once() {
    if let Some([profile, server]) = child() {
        return type_until_killed(&profile, &server).await;
    }
    let server = Server::start().await;
    let profile = tempfile::tempdir().unwrap();
    let mut kept: Vec<String> = Vec::new();
    for round in 0..12_usize {
        server.hold(round % 3 == 1);
        server.away(round % 3 == 2);
        let name = "what_a_killed_process_kept_arrives_once";
        let mut killed = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .envs([(CHILD[0], profile.path().to_str().unwrap()), (CHILD[1], &server.address.to_string())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(killed.stdout.take().unwrap()).lines().map(Result::unwrap);
        for line in lines.by_ref() {
            kept.extend(line.strip_prefix("kept ").map(str::to_owned));
            if kept.len() >= 4 * round * round || (line == "blocked" && round % 3 != 0) {
                break;
            }
        }
        killed.kill().unwrap();
        killed.wait().unwrap();
        // The pipe may hold more that was said before it died.
        kept.extend(lines.filter_map(|line| line.strip_prefix("kept ").map(str::to_owned)));
    }
    server.hold(false);
    server.away(false);
    let client = client(&server, profile.path()).await;
    let workspace = client.open("w").unwrap();
    soon(workspace.saved()).await.unwrap();
    soon(workspace.loaded()).await.unwrap();
    assert_eq!(workspace.refused().len(), 0);
    let end = server.text("w");
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    end.split_whitespace().for_each(|word| *times.entry(word).or_default() += 1);
    assert!(kept.len() > 100, "{} words", kept.len());
    for word in &kept {
        assert_eq!(times.get(&word[..]), Some(&1), "{word}");
    }
    assert!(times.values().all(|&times| times == 1), "something arrived twice");
    assert_eq!(workspace.read(|document| document.state_hash()), server.state_hash("w"));
}

fn child() -> Option<[String; 2]> {
    Some([std::env::var(CHILD[0]).ok()?, std::env::var(CHILD[1]).ok()?])
}

/// Types words that nobody else types, and says each that is kept.
async fn type_until_killed(profile: &str, server: &str) {
    let storage = Storage::open(profile).await.unwrap();
    let url = format!("ws://{server}").parse().unwrap();
    let client = Client::connect(ClientOptions::new(url, "good").storage(storage));
    let workspace = client.open("w").unwrap();
    let own = std::process::id();
    for n in 0.. {
        let word = format!("{own}-{n}");
        // What is left of the last process may have to wait for the server's state.
        while let Err(error) = workspace.text("main").push(&format!("{word} ")) {
            assert_eq!(error, EditError::Reloading);
            println!("blocked");
            workspace.loaded().await.unwrap();
        }
        workspace.kept().await.unwrap();
        println!("kept {word}");
    }
}

#[tokio::test]
async fn a_profile_has_one_process_at_a_time() {
    let server = Server::start().await;
    let profile = tempfile::tempdir().unwrap();
    let first = client(&server, profile.path()).await;
    let error = Storage::open(profile.path()).await.unwrap_err();
    assert!(matches!(&error, StorageError::InUse { pid, .. } if *pid == std::process::id().to_string()));
    assert!(error.to_string().contains("fix:"), "{error}");
    first.close(SOON).await.unwrap();
    Storage::open(profile.path()).await.unwrap();
}

/// The copy sends what waits in it as it is, and so do all other copies: it counts once. What each writes on
/// top of it is its own.
// enforces: I-4, I-14
#[tokio::test]
async fn a_copied_profile_sends_what_waits_once_and_goes_on_under_its_own_replica() {
    let server = Server::start().await;
    let (original, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    leave_behind(&server, original.path(), &["common "]).await;
    for file in std::fs::read_dir(original.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }

    let cloned = client(&server, copy.path()).await;
    let clone = cloned.open("w").unwrap();
    // Until that is acknowledged nothing is written on top of it.
    let inherited = clone.replica();
    assert_eq!(clone.text("main").push("x"), Err(EditError::Reloading));
    soon(clone.loaded()).await.unwrap();
    assert_ne!(clone.replica(), inherited);
    clone.text("main").push("clone ").unwrap();
    soon(clone.saved()).await.unwrap();

    let first = client(&server, original.path()).await;
    let workspace = first.open("w").unwrap();
    assert_eq!(workspace.replica(), inherited, "the original goes on where it was");
    workspace.text("main").push("original ").unwrap();
    soon(workspace.saved()).await.unwrap();
    let end = server.text("w");
    let mut words: Vec<&str> = end.split_whitespace().collect();
    words.sort_unstable();
    assert_eq!(words, ["clone", "common", "original"]);
    assert_eq!(workspace.refused().len() + clone.refused().len(), 0);
}

/// A machine that was brought back as a whole cannot be told from the one that it was: the log tells.
// enforces: I-14
#[tokio::test]
async fn what_a_copy_has_written_under_the_same_number_is_kept_aside() {
    let server = Server::start().await;
    let profile = tempfile::tempdir().unwrap();
    let first = client(&server, profile.path()).await;
    let workspace = first.open("w").unwrap();
    workspace.text("main").push("common, ").unwrap();
    soon(workspace.saved()).await.unwrap();
    server.away(true);
    workspace.text("main").push("mine").unwrap();
    soon(workspace.kept()).await.unwrap();
    server.write_as("w", workspace.replica(), "theirs, ");
    first.close(Duration::ZERO).await.unwrap_err();
    server.away(false);

    let second = client(&server, profile.path()).await;
    let workspace = second.open("w").unwrap();
    let error = soon(workspace.saved()).await.unwrap_err();
    assert!(matches!(&error, SaveError::Refused(refused) if refused.code == Some(Code::Fork)), "{error}");
    soon(workspace.loaded()).await.unwrap();
    assert_eq!(text(&workspace), "theirs, common, ");
    soon(workspace.kept()).await.unwrap();
    second.close(SOON).await.unwrap();

    // It is still there in the next process, which makes it again.
    let third = client(&server, profile.path()).await;
    let workspace = third.open("w").unwrap();
    let refused = workspace.refused();
    assert_eq!(refused.len(), 1);
    let mine = LocalEdit::Insert { text: "main".into(), at: 8, inserted: "mine".into() };
    assert_eq!(refused[0].edits, [mine]);
    soon(workspace.loaded()).await.unwrap();
    workspace.retry(refused[0].id).unwrap();
    assert_eq!(workspace.retry(refused[0].id), Err(EditError::NotRefused));
    soon(workspace.saved()).await.unwrap();
    assert_eq!(server.text("w"), "theirs, minecommon, ");
    third.close(SOON).await.unwrap();
    let storage = Storage::open(profile.path()).await.unwrap();
    assert_eq!(storage.waiting(), Vec::<String>::new());
}

#[tokio::test]
async fn refused_edits_are_discarded_or_made_again_where_they_still_fit() {
    let server = Server::start().await;
    server.forbid("swear");
    let profile = tempfile::tempdir().unwrap();
    let first = client(&server, profile.path()).await;
    let workspace = first.open("w").unwrap();
    workspace.text("main").push("fine text").unwrap();
    soon(workspace.saved()).await.unwrap();
    for round in 0..2 {
        workspace
            .edit(|edit| {
                edit.insert("main", 0, "swear ")?;
                edit.delete("main", 6..10)
            })
            .unwrap();
        soon(workspace.saved()).await.unwrap_err();
        soon(workspace.loaded()).await.unwrap();
        assert_eq!((text(&workspace).as_str(), workspace.refused().len()), ("fine text", round + 1));
    }
    let [a, b] = &workspace.refused()[..] else { panic!("there are two") };
    let (a, b) = (a.id, b.id);
    assert_eq!(workspace.discard(a).unwrap().id, a);
    assert_eq!(workspace.discard(a).unwrap_err(), EditError::NotRefused);
    workspace.text("main").delete(0..4).unwrap();
    assert_eq!(workspace.retry(b), Err(EditError::Outdated), "other characters stand there");
    assert_eq!((text(&workspace).as_str(), workspace.refused().len()), (" text", 1));
    workspace.text("main").insert(0, "fine").unwrap();
    server.forbid("nothing");
    workspace.retry(b).unwrap();
    soon(workspace.saved()).await.unwrap();
    assert_eq!((server.text("w").as_str(), workspace.refused().len()), ("swear  text", 0));
}

/// The document was restored to another history while the process was away.
// enforces: I-14
#[tokio::test]
async fn what_waits_for_another_history_is_kept_aside() {
    let server = Server::start().await;
    server.reset("w", "old");
    let profile = tempfile::tempdir().unwrap();
    let first = client(&server, profile.path()).await;
    let workspace = first.open("w").unwrap();
    soon(workspace.loaded()).await.unwrap();
    server.away(true);
    workspace.text("main").push(" unsaved").unwrap();
    soon(workspace.kept()).await.unwrap();
    first.close(Duration::ZERO).await.unwrap_err();
    server.restore("w", "new");
    server.away(false);

    let second = client(&server, profile.path()).await;
    let workspace = second.open("w").unwrap();
    let error = soon(workspace.saved()).await.unwrap_err();
    assert!(
        matches!(&error, SaveError::Refused(refused) if refused.code == Some(Code::HistoryReset)),
        "{error}"
    );
    soon(workspace.loaded()).await.unwrap();
    assert_eq!((text(&workspace).as_str(), workspace.refused().len()), ("new", 1));
}

#[tokio::test]
async fn without_a_storage_nothing_is_said_to_be_kept() {
    let server = Server::start().await;
    let client = server.client();
    let workspace = client.open("w").unwrap();
    workspace.text("main").push("x").unwrap();
    assert!(matches!(workspace.kept().await, Err(SaveError::NotKept(_))));
}

#[tokio::test]
async fn files_that_are_no_profile_are_refused_and_left_alone() {
    let profile = tempfile::tempdir().unwrap();
    let file = profile.path().join("outbox.db");
    let garbage = vec![7; 10_000];
    std::fs::write(&file, &garbage).unwrap();
    let error = Storage::open(profile.path()).await.unwrap_err();
    assert!(matches!(error, StorageError::Unusable { .. }), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), garbage);

    let error = Storage::open("/proc/nowhere").await.unwrap_err();
    assert!(matches!(error, StorageError::Unusable { .. }), "{error}");
}
