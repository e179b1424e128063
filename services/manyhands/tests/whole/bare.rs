//! Clients that know the published JSON protocol and nothing of ours: plain Python, in one process, driven by
//! lines. What they say is kept until a test asks for it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::world::PATIENCE;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bare/client.py");

/// A process with any number of clients.
pub(crate) struct Bare {
    child: Child,
    commands: ChildStdin,
    lines: UnboundedReceiver<Value>,
    /// What came while another thing was waited for.
    kept: VecDeque<Value>,
}

impl Bare {
    pub(crate) fn start() -> Bare {
        // Debian's own, which knows of no virtual environment.
        let python = ["/usr/bin/python3", "python3"].into_iter().find(|python| {
            Command::new(python).arg("--version").output().is_ok_and(|output| output.status.success())
        });
        let python = python.expect("python3 is missing; `make neighbours` installs it");
        let mut child = Command::new(python)
            .args(["-u", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let lines_of_it = BufReader::new(child.stdout.take().unwrap()).lines();
        let (said, lines) = unbounded_channel();
        std::thread::spawn(move || {
            for line in lines_of_it.map_while(Result::ok) {
                if said.send(serde_json::from_str(&line).unwrap()).is_err() {
                    return;
                }
            }
        });
        Bare { child, commands, lines, kept: VecDeque::new() }
    }

    pub(crate) fn tell(&mut self, client: &str, what: &str, mut more: Value) {
        more["client"] = client.into();
        more["do"] = what.into();
        writeln!(self.commands, "{more}").unwrap();
    }

    /// The next thing of this client that is one of these; others of it before that are a failure.
    pub(crate) async fn event(&mut self, client: &str, one_of: &[&str]) -> Value {
        let event = self.next(client).await;
        let name = event["event"].as_str().unwrap();
        assert!(one_of.contains(&name), "{one_of:?} was expected of {client}, and not {event}");
        event
    }

    /// The next thing of this client.
    pub(crate) async fn next(&mut self, client: &str) -> Value {
        if let Some(at) = self.kept.iter().position(|event| event["client"] == client) {
            return self.kept.remove(at).unwrap();
        }
        let coming = async {
            loop {
                let event = self.lines.recv().await.expect("the process of bare clients ended");
                if event["client"] == client {
                    return event;
                }
                self.kept.push_back(event);
            }
        };
        tokio::time::timeout(PATIENCE, coming).await.unwrap_or_else(|_| panic!("{client} hears nothing"))
    }

    /// Connects as the specification says, with the token in the address, and gives the first message.
    pub(crate) async fn connect(&mut self, client: &str, url: &str, workspace: &str, token: &str) -> Value {
        self.connect_with(client, url, &format!("/v1/sync/{workspace}?token={token}"), json!({})).await
    }

    pub(crate) async fn connect_with(
        &mut self,
        client: &str,
        url: &str,
        path: &str,
        headers: Value,
    ) -> Value {
        self.dial(client, url, path, headers);
        let open = self.event(client, &["open"]).await;
        assert_eq!(open["status"], 101);
        self.message(client).await
    }

    pub(crate) fn dial(&mut self, client: &str, url: &str, path: &str, headers: Value) {
        let address = url.strip_prefix("ws://").unwrap();
        self.tell(client, "connect", json!({ "address": address, "path": path, "headers": headers }));
    }

    /// The next message, as the server spelled it.
    pub(crate) async fn text(&mut self, client: &str) -> String {
        self.event(client, &["message"]).await["text"].as_str().unwrap().to_owned()
    }

    /// The next message.
    pub(crate) async fn message(&mut self, client: &str) -> Value {
        serde_json::from_str(&self.text(client).await).unwrap()
    }

    pub(crate) fn send(&mut self, client: &str, message: &Value) {
        self.send_text(client, &message.to_string());
    }

    pub(crate) fn send_text(&mut self, client: &str, text: &str) {
        self.tell(client, "send", json!({ "text": text }));
    }

    pub(crate) fn op(&mut self, client: &str, key: &str, value: Value) {
        self.send(client, &json!({ "type": "op", "payload": { "key": key, "value": value } }));
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
