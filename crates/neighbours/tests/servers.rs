//! The real servers: started, killed, paused, restarted, given up.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use manyhands_neighbours::{Dir, Error, Nats, Postgres, Redis, stop};

fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

fn address(url: &str) -> String {
    url.rsplit('/').next().unwrap().to_owned()
}

/// Waits for what another process does; the test's own time limit ends a wait that never comes true.
fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn redis(url: &str, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address(url))?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

#[test]
fn postgres_keeps_its_data_and_port_over_kill_and_restart() {
    let mut postgres = Postgres::start(Dir::Temporary).unwrap();
    let url = postgres.create_database("kept").unwrap();
    let first = postgres.pid();
    assert!(is_alive(first));
    assert!(
        matches!(postgres.create_database("kept"), Err(Error::Refused { message, .. }) if message.contains("42P04"))
    );
    postgres.kill();
    assert!(!is_alive(first));
    assert_eq!(postgres.pid(), 0);
    postgres.restart().unwrap();
    assert_ne!(postgres.pid(), first);
    assert!(matches!(postgres.create_database("kept"), Err(Error::Refused { .. })), "it was there");
    postgres.stop();
    postgres.restart().unwrap();
    assert!(url.starts_with(postgres.url().trim_end_matches("postgres?sslmode=disable")), "the same port");
    let pid = postgres.pid();
    drop(postgres);
    assert!(!is_alive(pid));
}

#[test]
fn a_paused_server_answers_when_it_is_resumed() {
    let server = Redis::start(Dir::Temporary).unwrap();
    assert_eq!(redis(&server.url(), "PING").unwrap(), "+PONG");
    server.pause();
    assert!(redis(&server.url(), "PING").is_err(), "nothing answers");
    server.resume();
    until(|| redis(&server.url(), "PING").is_ok_and(|answer| answer == "+PONG"));
}

#[test]
fn redis_and_nats_restart_on_their_port() {
    let mut redis_server = Redis::start(Dir::Temporary).unwrap();
    let url = redis_server.url();
    redis_server.kill();
    redis_server.restart().unwrap();
    assert_eq!(redis(&url, "PING").unwrap(), "+PONG");
    let mut nats = Nats::start(Dir::Temporary).unwrap();
    let url = nats.url();
    nats.kill();
    assert!(TcpStream::connect(address(&url)).is_err());
    nats.restart().unwrap();
    assert_eq!(nats.url(), url);
    let mut greeting = [0; 4];
    TcpStream::connect(address(&url)).unwrap().read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"INFO");
}

#[test]
fn a_detached_server_is_stopped_by_its_pid() {
    let dir = tempfile::tempdir().unwrap();
    let nats = Nats::start(dir.path()).unwrap().detach();
    assert!(is_alive(nats.pid));
    TcpStream::connect(address(&nats.url)).unwrap();
    stop(nats.pid);
    assert!(!is_alive(nats.pid));
}

/// The test below runs this one alone in a process of its own and kills it.
#[test]
fn starter() {
    if std::env::var_os("NEIGHBOURS_STARTER").is_none() {
        return;
    }
    let redis = Redis::start(Dir::Temporary).unwrap();
    let postgres = Postgres::start(Dir::Temporary).unwrap();
    eprintln!("started {} {}", redis.pid(), postgres.pid());
    loop {
        std::thread::park();
    }
}

#[test]
fn servers_end_with_a_process_that_is_killed() {
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "starter", "--nocapture"])
        .env("NEIGHBOURS_STARTER", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(starter.stderr.take().unwrap()).lines();
    let line = lines.find_map(|line| line.unwrap().strip_prefix("started ").map(str::to_owned)).unwrap();
    let pids: Vec<u32> = line.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|&pid| is_alive(pid)));
    starter.kill().unwrap();
    starter.wait().unwrap();
    until(|| !pids.iter().any(|&pid| is_alive(pid)));
}
