//! What a session may say, and what it is answered when it says something else.

use futures_util::{SinkExt, StreamExt};
use manyhands_edge::{Config, Limits};
use manyhands_process::value::ByteSize;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Code, v1};
use prost::Message as _;
use tokio_tungstenite::tungstenite::Message;

use crate::documents::status;
use crate::running::{Running, config, start, token};

fn close_of(code: Code) -> u16 {
    code.close().expect("a code that closes")
}

/// Another session still gets what is written.
async fn others_are_undisturbed(running: &Running) {
    let mut writer = running.greet("write").await;
    writer.open(1, "calm", 77).await;
    let counter = running.documents.state().submits.len() as u64;
    writer.push(1, counter, b"still works").await;
    assert_eq!(writer.ack().await.next_counter, counter + 1);
    assert_eq!(&writer.delta().await.entries[..], b"still works");
}

#[tokio::test]
async fn what_is_pushed_is_acknowledged_and_reaches_every_reader() {
    let running = start(config()).await;
    let mut writer = running.greet("read write").await;
    let mut reader = running.greet("read").await;
    let opened = writer.open(7, "demo", 42).await;
    assert!(opened.can_write && opened.next_counter == 0, "{opened:?}");
    assert!(!reader.open(3, "demo", 0).await.can_write);

    writer.push(7, 0, b"hello").await;
    let ack = writer.ack().await;
    assert_eq!((ack.channel, ack.next_counter, ack.seq), (7, 1, 1));
    for (client, channel) in [(&mut writer, 7), (&mut reader, 3)] {
        let delta = client.delta().await;
        assert_eq!((delta.channel, delta.first_seq, delta.count), (channel, 1, 1));
        assert_eq!(&delta.entries[..], b"hello");
    }
    let submit = running.documents.state().submits[0].clone();
    let grant = submit.grant.unwrap();
    assert_eq!(
        (grant.subject.as_str(), &grant.scopes[..]),
        ("ada", &["read".to_owned(), "write".to_owned()][..])
    );
    assert_eq!((submit.document.as_str(), submit.replica, submit.first_counter), ("demo", 42, 0));
}

#[tokio::test]
async fn a_socket_for_one_workspace_needs_no_name() {
    let running = start(config()).await;
    let mut client = running.connect_to("/v1/sync/demo", &token("demo", "read write")).await;
    client.hello().await;
    client.open(1, "", 5).await;
    client.ask_open(2, "other", 5).await;
    assert_eq!(client.evict().await.code, Code::Forbidden.number());
}

#[tokio::test]
async fn what_is_not_the_protocol_ends_the_session_with_its_code() {
    let running = start(config()).await;
    let hello = v1::Hello { version_min: 1, version_max: 1, ..Default::default() };
    let frame = |frame| Message::Binary(v1::ClientFrame { frame: Some(frame) }.encode_to_vec().into());
    let ping = ClientFrame::Ping(v1::Ping { nonce: 1 });
    let cut_short = {
        let Message::Binary(mut bytes) = frame(ClientFrame::Hello(hello.clone())) else { unreachable!() };
        bytes.truncate(bytes.len() - 1);
        Message::Binary(bytes)
    };
    let future = v1::Hello { version_min: 9, version_max: 9, ..hello.clone() };
    for (what, messages, code) in [
        ("a text message", vec![Message::Text("hello".into())], Code::Violation),
        (
            "text after hello",
            vec![frame(ClientFrame::Hello(hello.clone())), Message::Text("{}".into())],
            Code::Violation,
        ),
        ("garbage", vec![Message::Binary(vec![0xff; 64].into())], Code::Violation),
        ("an empty frame", vec![Message::Binary(Vec::new().into())], Code::Violation),
        ("a frame that is cut short", vec![cut_short], Code::Violation),
        ("something before hello", vec![frame(ping.clone())], Code::Violation),
        ("a second hello", vec![frame(ClientFrame::Hello(hello.clone())); 2], Code::Violation),
        ("a later version", vec![frame(ClientFrame::Hello(future))], Code::VersionUnsupported),
        ("two mebibytes", vec![Message::Binary(vec![0; 2 << 20].into())], Code::TooLarge),
    ] {
        let mut client = running.connect(&token("*", "read write")).await;
        for message in messages {
            // It may be closed already while the second is being written.
            let _ = client.socket.send(message).await;
        }
        let (close, reason) = client.closed().await;
        assert_eq!(close, close_of(code), "{what}: {reason}");
        assert!(reason.starts_with(code.slug()), "{what}: {reason}");
    }
    assert!(running.documents.state().submits.is_empty(), "nothing of it was kept");
    others_are_undisturbed(&running).await;
}

#[tokio::test]
async fn fields_that_nobody_knows_are_passed_over() {
    let running = start(config()).await;
    let mut client = running.connect(&token("*", "read")).await;
    let hello = v1::Hello { version_min: 1, version_max: 1, ..Default::default() };
    let mut inner = hello.encode_to_vec();
    inner.extend([0x9a, 0x06, 3, b'n', b'e', b'w']); // field 99, three bytes
    let mut bytes = vec![0x0a, u8::try_from(inner.len()).unwrap()];
    bytes.extend(inner);
    client.socket.send(Message::Binary(bytes.into())).await.unwrap();
    assert!(matches!(client.next().await, ServerFrame::Welcome(_)));
}

// enforces: I-15
#[tokio::test]
async fn a_push_without_the_right_is_rejected_and_kept_nowhere() {
    let running = start(config()).await;
    let mut client = running.greet("read").await;
    client.open(1, "demo", 9).await;
    client.push(1, 0, b"no").await;
    let reject = client.reject().await;
    assert_eq!((reject.channel, reject.counter, reject.code), (1, 0, Code::Forbidden.number()));
    assert!(!reject.fix.is_empty());
    client.push(5, 0, b"nowhere").await;
    assert_eq!(client.reject().await.code, Code::NotOpen.number());
    assert!(running.documents.state().submits.is_empty());
    others_are_undisturbed(&running).await;
}

// enforces: I-15
#[tokio::test]
async fn a_document_that_the_token_does_not_name_is_not_opened() {
    let running = start(config()).await;
    let mut client = running.connect(&token("demo", "read write admin")).await;
    client.hello().await;
    for (channel, name, code) in [(1, "other", Code::Forbidden), (2, "../demo", Code::InvalidName)] {
        client.ask_open(channel, name, 9).await;
        let evict = client.evict().await;
        assert_eq!((evict.channel, evict.code), (channel, code.number()), "{name}");
    }
    client.open(3, "demo", 9).await;
    assert_eq!(running.documents.state().opens, 1);
}

// enforces: I-10
#[tokio::test]
async fn ten_thousand_opens_are_answered_and_bounded() {
    let limits = Limits { documents_per_session_max: 20, ..Limits::default() };
    let running = start(Config { limits, ..config() }).await;
    let client = running.greet("read").await;
    let (mut sink, mut stream) = client.socket.split();
    let flood = tokio::spawn(async move {
        for channel in 0..10_000u32 {
            let open = v1::Open { channel, document: format!("d{channel}"), ..v1::Open::default() };
            let frame = v1::ClientFrame { frame: Some(ClientFrame::Open(open)) };
            if sink.send(Message::Binary(frame.encode_to_vec().into())).await.is_err() {
                return;
            }
        }
    });
    let mut refused = 0;
    let close = loop {
        match stream.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                if let Some(ServerFrame::Evict(evict)) = v1::ServerFrame::decode(bytes).unwrap().frame {
                    assert_eq!(evict.code, Code::LimitReached.number());
                    refused += 1;
                }
            }
            Some(Ok(Message::Close(close))) => break close.map(|close| u16::from(close.code)),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => break None,
        }
    };
    flood.abort();
    assert!(refused > 0, "the twenty-first is refused");
    assert_eq!(close, Some(close_of(Code::LimitReached)));
    assert!(running.documents.state().opens <= 20);
    others_are_undisturbed(&running).await;
}

#[tokio::test]
async fn what_an_owner_refuses_is_repeated_word_for_word() {
    let running = start(config()).await;
    let mut client = running.greet("write").await;
    running.documents.state().refusals.push_back(status(Code::TooLarge, "too large to open", None));
    client.ask_open(1, "demo", 9).await;
    let evict = client.evict().await;
    assert_eq!((evict.code, evict.message.as_str()), (Code::TooLarge.number(), "too large to open"));
    client.open(2, "demo", 9).await;
    running.documents.state().refusals.push_back(status(Code::ReplicaTaken, "somebody else's", None));
    client.push(2, 0, b"x").await;
    let reject = client.reject().await;
    assert_eq!((reject.code, reject.message.as_str()), (Code::ReplicaTaken.number(), "somebody else's"));
}

#[tokio::test]
async fn a_fresh_token_prolongs_the_session_and_a_bad_one_ends_it() {
    let running = start(config()).await;
    let mut client = running.greet("read").await;
    client.send(ClientFrame::Auth(v1::Auth { token: token("*", "read write") })).await;
    let authenticated = match client.next().await {
        ServerFrame::Authenticated(authenticated) => authenticated,
        other => panic!("{other:?}"),
    };
    assert!(authenticated.token_expires_in_ms > 500_000);
    client.open(1, "demo", 9).await;
    client.push(1, 0, b"now allowed").await;
    assert_eq!(client.ack().await.next_counter, 1);
    client.send(ClientFrame::Auth(v1::Auth { token: "nonsense".into() })).await;
    assert_eq!(client.closed().await.0, close_of(Code::Unauthenticated));
}

// enforces: I-10
#[tokio::test]
async fn a_reader_that_never_reads_is_let_go_and_disturbs_nobody() {
    let limits = Limits {
        send_queue_bytes_max: ByteSize::kib(64),
        send_queue_bytes_close: ByteSize::kib(512),
        send_stall_max: std::time::Duration::from_millis(500),
        ..Limits::default()
    };
    let running = start(Config { limits, ..config() }).await;
    let mut idle = running.connect(&token("*", "read")).await;
    let session = idle.hello().await.session;
    idle.open(1, "busy", 0).await;
    let here = v1::SetPresence { channel: 1, data: "here".into(), cursors: Vec::new() };
    idle.send(ClientFrame::Presence(here)).await;
    let mut reader = running.greet("read").await;
    reader.open(1, "busy", 0).await;
    // `idle` is not read from now on. Its kernel buffers take some; then it is behind, then it is too slow.
    let entry = vec![b'x'; 64 * 1024];
    for seq in 1..=200 {
        running.documents.append("busy", entry.clone());
        let delta = reader.delta().await;
        assert_eq!((delta.first_seq, delta.entries.len()), (seq, entry.len()), "the other is not held up");
    }
    // The others see when it is let go; only then does it read again, and finds out why.
    reader
        .find(|frame| match frame {
            ServerFrame::Presence(update) => update.left.contains(&session).then_some(()),
            _ => None,
        })
        .await;
    let (close, reason) = idle.closed().await;
    assert_eq!(close, close_of(Code::SlowConsumer), "{reason}");
    others_are_undisturbed(&running).await;
}
