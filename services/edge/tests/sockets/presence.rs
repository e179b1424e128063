//! Who sees whom.

use std::sync::Arc;

use manyhands_bus::{LocalBus, SharedBus};
use manyhands_edge::presence::{LocalPresence, Presence};
use manyhands_proto::v1;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;

use crate::documents::Documents;
use crate::running::{Client, config, start, start_beside};

async fn show(client: &mut Client, data: &str) {
    let data = data.to_owned().into();
    client.send(ClientFrame::Presence(v1::SetPresence { channel: 1, data, cursors: Vec::new() })).await;
}

async fn told(client: &mut Client) -> v1::PresenceUpdate {
    client.find(|frame| if let ServerFrame::Presence(update) = frame { Some(update) } else { None }).await
}

#[tokio::test]
async fn presence_reaches_the_others_with_the_name_of_the_token() {
    let running = start(config()).await;
    let mut ada = running.connect(&crate::running::token("*", "read")).await;
    let session = ada.hello().await.session;
    ada.open(1, "demo", 0).await;
    let mut bea = running.greet("read").await;
    bea.open(1, "demo", 0).await;
    let first = told(&mut bea).await;
    assert!(first.full && first.peers.is_empty(), "{first:?}");

    show(&mut ada, r#"{"color":"red","user":"somebody else"}"#).await;
    let update = told(&mut bea).await;
    let peer = &update.peers[0];
    assert_eq!((peer.user.as_str(), peer.session.as_str()), ("ada", session.as_str()));
    assert_eq!(&peer.data[..], br#"{"color":"red","user":"somebody else"}"#);

    let mut cleo = running.greet("read").await;
    cleo.open(1, "demo", 0).await;
    let roster = told(&mut cleo).await;
    assert!(roster.full && roster.peers.len() == 1, "one who comes sees who is here: {roster:?}");

    drop(ada);
    for client in [&mut bea, &mut cleo] {
        let gone = told(client).await;
        assert_eq!(gone.left, std::slice::from_ref(&session));
    }
}

#[tokio::test]
async fn sessions_of_two_edges_see_each_other() {
    let bus: SharedBus = Arc::new(LocalBus::new(manyhands_bus::Limits::default()));
    let documents = Documents::new(Arc::clone(&bus));
    let store = Arc::new(LocalPresence::default());
    let edge = async || {
        let nodes = [("http://one", documents.clone())];
        start_beside(config(), Arc::clone(&bus), nodes, Arc::clone(&store) as Arc<dyn Presence>).await
    };
    let (one, two) = (edge().await, edge().await);
    let mut ada = one.greet("read").await;
    ada.open(1, "demo", 0).await;
    let mut bea = two.greet("read").await;
    bea.open(1, "demo", 0).await;
    assert!(told(&mut ada).await.full && told(&mut bea).await.full);
    show(&mut ada, r#""by the bus""#).await;
    assert_eq!(&told(&mut bea).await.peers[0].data[..], br#""by the bus""#);

    // One who comes later to the other edge: the bus is silent, the store knows.
    drop(bea);
    let mut cleo = two.greet("read").await;
    cleo.open(1, "demo", 0).await;
    loop {
        let update = told(&mut cleo).await;
        if let [peer] = &update.peers[..] {
            assert_eq!(&peer.data[..], br#""by the bus""#);
            break;
        }
    }
}
