//! Everybody writes at random, over both protocols and both edges, and ends with the same state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use loadtest::cluster::{Cluster, Options};
use manyhands_client::{Client, Document, Strategy, Workspace};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::bare::Bare;
use crate::world::{BINARY, PATIENCE, client, saved, token};

const BARE: usize = 50;
const BINARY_CLIENTS: usize = 10;
const WORKSPACES: usize = 2;
/// Few, so that writes meet.
const KEYS: u32 = 8;
/// Of each client, a second.
const RATE: f64 = 2.0;

/// How long they write under each strategy; CONVERGE_SECONDS=60 for a long run.
fn seconds() -> f64 {
    std::env::var("CONVERGE_SECONDS").map_or(3.0, |text| text.parse().unwrap())
}

// enforces: I-5, I-6
#[tokio::test(flavor = "multi_thread")]
async fn bare_json_clients_and_binary_ones_end_in_one_state_under_every_strategy() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path(), BINARY);
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(options)).await.unwrap().unwrap();
    let urls = cluster.edge_urls();
    let secret = cluster.secret_file().to_owned();
    let token = token(&["--workspace", "*", "--ttl", "1h", "--secret-file", secret.to_str().unwrap()]);
    let mut bare = Bare::start();
    for strategy in Strategy::ALL {
        let names: Vec<String> = (0..WORKSPACES).map(|n| format!("converge-{strategy}-{n}")).collect();
        let of = |n: usize| &names[n % WORKSPACES];
        let clients: Vec<(Client, Workspace)> = (0..BINARY_CLIENTS)
            .map(|n| {
                let mut urls = urls.clone();
                urls.rotate_left(n / WORKSPACES % 2);
                let client = client(&urls, Some(&secret));
                let workspace = client.open_as(of(n), Some(strategy)).unwrap();
                (client, workspace)
            })
            .collect();
        for (_, workspace) in &clients {
            tokio::time::timeout(PATIENCE, workspace.loaded()).await.expect("loaded in time").unwrap();
        }
        let bare_names: Vec<String> = (0..BARE).map(|n| format!("{strategy}-{n}")).collect();
        for (n, name) in bare_names.iter().enumerate() {
            let path = format!("/v1/sync/{}?token={token}&strategy={strategy}", of(n));
            let init = bare.connect_with(name, &urls[n / WORKSPACES % 2], &path, json!({})).await;
            assert_eq!(init["type"], "init");
        }

        let seconds = seconds();
        for (n, name) in bare_names.iter().enumerate() {
            bare.tell(name, "storm", json!({ "seed": n, "keys": KEYS, "rate": RATE, "seconds": seconds }));
        }
        let writing: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(n, (_, workspace))| tokio::spawn(storm(workspace.clone(), n as u64, seconds)))
            .collect();
        let mut written: BTreeMap<&String, u64> = BTreeMap::new();
        for (n, writing) in writing.into_iter().enumerate() {
            *written.entry(of(n)).or_default() += writing.await.unwrap();
        }
        for (_, workspace) in &clients {
            saved(workspace).await;
        }
        for (n, name) in bare_names.iter().enumerate() {
            *written.entry(of(n)).or_default() +=
                bare.event(name, &["stormed"]).await["sent"].as_u64().unwrap();
        }
        let mut hashes = BTreeSet::new();
        for (w, name) in names.iter().enumerate() {
            let (expected, hash) = settled(&urls, &secret, name, written[name]).await;
            let hash = hash.map(|byte| format!("{byte:02x}")).concat();
            for (_, workspace) in clients.iter().skip(w).step_by(WORKSPACES) {
                reaches(workspace, &hash).await;
            }
            for client in bare_names.iter().skip(w).step_by(WORKSPACES) {
                shows(&mut bare, client, &expected).await;
            }
            println!("{name}: {} writes, {} keys, state {hash}", written[name], expected.len());
            hashes.insert(hash);
        }
        assert_eq!(hashes.len(), WORKSPACES, "there was something to agree on");
        for name in &bare_names {
            bare.tell(name, "close", json!({}));
            bare.event(name, &["closed"]).await;
        }
    }
}

/// Sets and removes keys at random; gives how often.
async fn storm(workspace: Workspace, seed: u64, seconds: f64) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let (map, own) = (workspace.map(""), workspace.replica().0);
    let mut written = 0;
    while Instant::now() < end {
        let key = format!("k{}", random.random_range(0..KEYS));
        if random.random_bool(0.1) {
            map.remove(&key).unwrap();
        } else {
            map.set(&key, &format!("{own:x}-{written}")).unwrap();
        }
        written += 1;
        tokio::time::sleep(Duration::from_secs_f64(random.random_range(0.0..2.0 / RATE))).await;
    }
    written
}

/// What somebody gets who joins when everything that was written is in the log, each write once.
async fn settled(
    urls: &[String],
    secret: &std::path::Path,
    name: &str,
    written: u64,
) -> (BTreeMap<String, Value>, [u8; 16]) {
    let joining = client(urls, Some(secret));
    let joiner = joining.open(name).unwrap();
    let mut changes = joiner.changes();
    let complete = async {
        joiner.loaded().await.unwrap();
        while joiner.status().seq < written {
            changes.changed().await.unwrap();
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, complete).await;
    assert!(in_time.is_ok(), "{name} is at {} of {written}", joiner.status().seq);
    assert_eq!(joiner.status().seq, written, "each write is one entry");
    let map = joiner.map("").iter().map(|(key, item)| (key, item.read().unwrap())).collect();
    (map, joiner.read(Document::state_hash))
}

async fn reaches(workspace: &Workspace, hash: &str) {
    let own = || workspace.read(Document::state_hash).map(|byte| format!("{byte:02x}")).concat();
    let mut changes = workspace.changes();
    let waiting = async {
        while own() != hash {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| {
        panic!("a binary client ends with {:?}", workspace.map("").iter().collect::<Vec<_>>())
    });
}

/// The bare dialect says `null` of what is gone.
async fn shows(bare: &mut Bare, client: &str, expected: &BTreeMap<String, Value>) {
    let end = Instant::now() + PATIENCE;
    loop {
        bare.tell(client, "quiet", json!({ "seconds": 0.2 }));
        let state = bare.event(client, &["state"]).await["state"].take();
        let mut state: BTreeMap<String, Value> = serde_json::from_value(state).unwrap();
        state.retain(|_, value| !value.is_null());
        if state == *expected {
            return;
        }
        assert!(Instant::now() < end, "{client} ends with {state:?}, and not with {expected:?}");
    }
}
