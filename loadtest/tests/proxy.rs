//! The proxy on real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use loadtest::proxy::{Mode, Proxy, Way};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How long what must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing must happen.
const SILENCE: Duration = Duration::from_millis(200);

/// A server that sends back what it gets, behind a proxy.
async fn echo() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    Proxy::start("echo", address).unwrap()
}

async fn said_back(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("it comes in time").unwrap();
    assert_eq!(back, text);
}

/// Nothing comes for a while.
async fn silent(stream: &mut TcpStream) {
    let mut byte = [0; 1];
    assert!(tokio::time::timeout(SILENCE, stream.read(&mut byte)).await.is_err(), "something came");
}

/// The connection ends.
async fn over(stream: &mut TcpStream) {
    let ended = async {
        let mut byte = [0; 64];
        while !matches!(stream.read(&mut byte).await, Ok(0) | Err(_)) {}
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("it ends in time");
}

#[tokio::test]
async fn without_a_fault_everything_goes_through() {
    let proxy = echo().await;
    let mut stream = TcpStream::connect(proxy.listen()).await.unwrap();
    said_back(&mut stream, &[7; 100_000]).await;
    // An end of one way leaves the other open until it has said everything.
    stream.write_all(b"last words").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, b"last words");
}

#[tokio::test]
async fn what_is_held_comes_later() {
    let proxy = echo().await;
    let mut stream = TcpStream::connect(proxy.listen()).await.unwrap();
    said_back(&mut stream, b"before").await;
    proxy.set(Mode { hold: true, ..Mode::default() });
    stream.write_all(b"held").await.unwrap();
    silent(&mut stream).await;
    proxy.heal();
    let mut back = [0; 4];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"held");
}

#[tokio::test]
async fn a_half_open_connection_is_silent_and_then_over() {
    for mode in [
        Mode { half_open: true, ..Mode::default() },
        Mode { swallow: Some(Way::Up), ..Mode::default() },
        Mode { swallow: Some(Way::Down), ..Mode::default() },
    ] {
        let proxy = echo().await;
        let mut stream = TcpStream::connect(proxy.listen()).await.unwrap();
        said_back(&mut stream, b"before").await;
        proxy.set(mode);
        stream.write_all(b"lost").await.unwrap();
        silent(&mut stream).await;
        proxy.heal();
        over(&mut stream).await;
        let mut again = TcpStream::connect(proxy.listen()).await.unwrap();
        said_back(&mut again, b"after").await;
    }
}

#[tokio::test]
async fn connections_are_cut_after_bytes_and_refused() {
    let proxy = echo().await;
    let mut stream = TcpStream::connect(proxy.listen()).await.unwrap();
    said_back(&mut stream, b"before").await;
    proxy.set(Mode { cut_after: Some(6), ..Mode::default() });
    stream.write_all(b"too much").await.unwrap();
    over(&mut stream).await;
    proxy.set(Mode { refuse: true, ..Mode::default() });
    let mut refused = TcpStream::connect(proxy.listen()).await.unwrap();
    over(&mut refused).await;
    proxy.heal();
    let mut stream = TcpStream::connect(proxy.listen()).await.unwrap();
    said_back(&mut stream, b"after").await;
    proxy.cut();
    over(&mut stream).await;
}
