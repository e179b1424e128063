//! The services as processes, beside real Postgres, NATS and Redis: people type on one edge and watch on the
//! other, and everything that can be killed is killed.

use crate::world::{BINARY, PATIENCE, client, saved, text, until};
use loadtest::cluster::{Cluster, Options, Role};
use manyhands_client::{Client, Document, Workspace};

const WORKSPACE: &str = "demo";

/// A cluster, a writer on its first edge and an observer on its second.
struct Scene {
    cluster: Cluster,
    _clients: [Client; 2],
    writer: Workspace,
    observer: Workspace,
    typed: usize,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn begin() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let options = Options::new(folder.path(), BINARY);
        let cluster = tokio::task::spawn_blocking(|| Cluster::start(options)).await.unwrap().unwrap();
        let urls = cluster.edge_urls();
        let secret = cluster.secret_file().to_owned();
        let a = client(&urls, Some(&secret));
        let b = client(&[urls[1].clone(), urls[0].clone()], Some(&secret));
        let (writer, observer) = (a.open(WORKSPACE).unwrap(), b.open(WORKSPACE).unwrap());
        writer.loaded().await.unwrap();
        observer.loaded().await.unwrap();
        Scene { cluster, _clients: [a, b], writer, observer, typed: 0, _folder: folder }
    }

    fn type_some(&mut self) {
        for _ in 0..50 {
            self.writer.text("main").push(&format!("{} ", self.typed)).unwrap();
            self.typed += 1;
        }
    }

    /// A newcomer on this edge is shown who else is here.
    async fn sees_ada(&self, edge: usize) {
        let newcomer = client(&[self.cluster.edge_urls()[edge].clone()], Some(self.cluster.secret_file()));
        let workspace = newcomer.open(WORKSPACE).unwrap();
        let mut changes = workspace.changes();
        let seen = async {
            while !workspace.peers().iter().any(|peer| peer.data["name"] == "Ada") {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("the roster is there in time");
    }

    /// Everything that was typed is durable, and the observer and a newcomer on each edge have it, once.
    async fn check(&self) {
        let expected: String = (0..self.typed).map(|n| format!("{n} ")).collect();
        saved(&self.writer).await;
        until(&self.observer, |text| text == expected).await;
        assert_eq!(text(&self.writer), expected);
        for url in self.cluster.edge_urls() {
            let newcomer = client(&[url], Some(self.cluster.secret_file()));
            let workspace = newcomer.open(WORKSPACE).unwrap();
            tokio::time::timeout(PATIENCE, workspace.loaded()).await.expect("loaded in time").unwrap();
            until(&workspace, |text| text == expected).await;
            assert_eq!(workspace.read(Document::state_hash), self.writer.read(Document::state_hash));
        }
    }
}

// enforces: I-2, I-9, I-14
#[tokio::test(flavor = "multi_thread")]
async fn owners_and_edges_die_and_nobody_loses_a_character() {
    let mut scene = Scene::begin().await;
    scene.type_some();
    scene.check().await;

    // The owner of the document dies in the middle of it all.
    let owner = scene.cluster.owner(WORKSPACE).await.unwrap();
    scene.type_some();
    scene.cluster.node_mut(Role::Document, owner).kill();
    scene.type_some();
    scene.check().await;
    let heir = scene.cluster.owner(WORKSPACE).await.unwrap();
    assert_ne!(heir, owner, "another node serves it now");

    // It comes back, and the one that took over leaves in good order.
    tokio::task::block_in_place(|| {
        scene.cluster.node_mut(Role::Document, owner).start().unwrap();
        scene.cluster.node_mut(Role::Document, owner).wait_ready(PATIENCE).unwrap();
    });
    scene.type_some();
    tokio::task::block_in_place(|| scene.cluster.node_mut(Role::Document, heir).stop(PATIENCE).unwrap());
    scene.type_some();
    scene.check().await;

    // The writer's edge dies; the client goes on at the other.
    scene.type_some();
    scene.cluster.node_mut(Role::Edge, 0).kill();
    scene.type_some();
    tokio::task::block_in_place(|| {
        scene.cluster.node_mut(Role::Edge, 0).start().unwrap();
        scene.cluster.node_mut(Role::Edge, 0).wait_ready(PATIENCE).unwrap();
    });
    scene.check().await;
}

// enforces: I-1, I-8
#[tokio::test(flavor = "multi_thread")]
async fn neighbours_die_and_nobody_loses_a_character() {
    let mut scene = Scene::begin().await;
    scene.type_some();
    scene.check().await;

    // Without Postgres nothing is acknowledged; typing goes on.
    tokio::task::block_in_place(|| scene.cluster.postgres.kill());
    let acknowledged = scene.writer.acked();
    scene.type_some();
    let mut changes = scene.writer.changes();
    for _ in 0..20 {
        let _ = tokio::time::timeout(std::time::Duration::from_millis(50), changes.changed()).await;
        assert_eq!(scene.writer.acked(), acknowledged, "an acknowledgement without a log");
    }
    tokio::task::block_in_place(|| scene.cluster.postgres.restart().unwrap());
    scene.check().await;

    // Without NATS deltas are late, and then there.
    tokio::task::block_in_place(|| scene.cluster.nats.kill());
    scene.type_some();
    tokio::task::block_in_place(|| scene.cluster.nats.restart().unwrap());
    scene.type_some();
    scene.check().await;

    // Without Redis rosters are old; editing does not notice. When it is back, and empty, the next heartbeat
    // fills it again for whoever comes then.
    scene.writer.set_presence(&serde_json::json!({ "name": "Ada" }), &[]);
    scene.sees_ada(1).await;
    tokio::task::block_in_place(|| scene.cluster.redis.kill());
    scene.type_some();
    scene.check().await;
    tokio::task::block_in_place(|| scene.cluster.redis.restart().unwrap());
    scene.type_some();
    scene.check().await;
    scene.sees_ada(1).await;
}
