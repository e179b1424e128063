//! What is known of a cluster that outlives the command which started it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use manyhands_proto::v1::GetRoutesRequest;
use manyhands_proto::v1::document_service_client::DocumentServiceClient;
use manyhands_proto::{DocumentName, InvalidDocumentName, PartitionId};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::node::{LOOK_EACH, NodeRecord, Role, signal};

/// How long a node may take to drain before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// A process of a detached cluster. A pid alone can come to mean another process, so its start time is
/// kept with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// Its name, such as `edge-0`.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// How to reach it.
    pub url: String,
    /// Clock ticks between the machine's start and the process's.
    started: u64,
}

impl Part {
    pub(super) fn of(name: &str, pid: u32, url: String) -> Part {
        Part { name: name.to_owned(), pid, url, started: started(pid).unwrap_or(0) }
    }

    /// The process is there and is still the one that was started.
    #[must_use]
    pub fn is_running(&self) -> bool {
        started(self.pid).is_some_and(|started| started == self.started)
    }

    /// Ends it in order, or by force after `within`. Does nothing when it is gone.
    pub(super) fn end(&self, within: Duration) {
        let since = Instant::now();
        if self.is_running() {
            signal(self.pid, Signal::SIGTERM);
            // A paused process takes no other signal.
            signal(self.pid, Signal::SIGCONT);
        }
        while self.is_running() {
            if since.elapsed() > within {
                signal(self.pid, Signal::SIGKILL);
            }
            std::thread::sleep(LOOK_EACH);
        }
    }
}

/// A cluster that runs detached, as `cluster.json` in its directory has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The secret that tokens are signed with.
    pub secret_file: PathBuf,
    pub(super) binary: PathBuf,
    /// The log's database.
    pub postgres: Part,
    /// The bus.
    pub nats: Part,
    /// Presence.
    pub redis: Part,
    /// Document nodes first, then edges.
    pub nodes: Vec<NodeRecord>,
}

impl Record {
    /// Reads the record of a directory.
    pub fn read(dir: &Path) -> anyhow::Result<Record> {
        let path = dir.join("cluster.json");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("there is no cluster in {}\nfix: make cluster", dir.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Writes the record, and `cluster.env` for scripts.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        fs::write(dir.join("cluster.json"), serde_json::to_string_pretty(self)?)?;
        fs::write(dir.join("cluster.env"), self.env())?;
        Ok(())
    }

    /// `KEY=VALUE`, one a line; lists are comma separated and in the order of the nodes' numbers.
    #[must_use]
    pub fn env(&self) -> String {
        let list = |role: Role, value: fn(&Part) -> String| {
            let nodes = self.nodes.iter().filter(|node| node.role == role);
            nodes.map(|node| value(&node.part)).collect::<Vec<_>>().join(",")
        };
        let (url, pid) = (|part: &Part| part.url.clone(), |part: &Part| part.pid.to_string());
        let mut env = String::new();
        for (key, value) in [
            ("EDGE_URLS", list(Role::Edge, url)),
            ("EDGE_PIDS", list(Role::Edge, pid)),
            ("DOCUMENT_ADDRESSES", list(Role::Document, url)),
            ("DOCUMENT_PIDS", list(Role::Document, pid)),
            ("SECRET_FILE", self.secret_file.display().to_string()),
            ("POSTGRES_URL", self.postgres.url.clone()),
            ("POSTGRES_PID", self.postgres.pid.to_string()),
            ("NATS_URL", self.nats.url.clone()),
            ("NATS_PID", self.nats.pid.to_string()),
            ("REDIS_URL", self.redis.url.clone()),
            ("REDIS_PID", self.redis.pid.to_string()),
        ] {
            // Writing to a string cannot fail.
            let _ = writeln!(env, "{key}={value}");
        }
        env
    }

    /// Something of it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.parts().any(Part::is_running)
    }

    /// Every process of it, those that use others first.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.nodes.iter().rev().map(|node| &node.part).chain([&self.redis, &self.nats, &self.postgres])
    }

    /// Ends every process of it that still is the one that was started, and forgets the cluster. Its data
    /// stays.
    pub fn down(self, dir: &Path) -> anyhow::Result<()> {
        // All nodes leave at the same time; whoever is left hands its partitions to nobody.
        for node in &self.nodes {
            if node.part.is_running() {
                signal(node.part.pid, Signal::SIGTERM);
                signal(node.part.pid, Signal::SIGCONT);
            }
        }
        for node in self.nodes.iter().rev() {
            node.part.end(STOP_WITHIN);
        }
        for part in [&self.redis, &self.nats, &self.postgres] {
            if part.is_running() {
                signal(part.pid, Signal::SIGCONT);
                manyhands_neighbours::stop(part.pid);
            }
        }
        for name in ["cluster.env", "cluster.json"] {
            let path = dir.join(name);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Starts a node again, whether it runs or was killed, on the same addresses, and notes its new pid.
    pub fn restart(&mut self, dir: &Path, role: Role, index: usize) -> anyhow::Result<()> {
        let binary = self.binary.clone();
        let node = self.nodes.iter_mut().filter(|node| node.role == role).nth(index);
        let Some(node) = node else { bail!("there is no {} node {index}", role.name()) };
        node.restart(&binary, STOP_WITHIN)?;
        self.write(dir)
    }

    /// The document node that owns a workspace's partition, as the nodes know it.
    pub async fn owner(&self, workspace: &str) -> Result<&NodeRecord, RoutesError> {
        let documents: Vec<&NodeRecord> =
            self.nodes.iter().filter(|node| node.role == Role::Document).collect();
        let addresses: Vec<String> = documents.iter().map(|node| node.part.url.clone()).collect();
        Ok(documents[owner_of(workspace, &addresses).await?])
    }
}

/// Why nobody knows who owns a workspace.
#[derive(Debug, thiserror::Error)]
pub enum RoutesError {
    /// There is no such workspace.
    #[error(transparent)]
    Name(#[from] InvalidDocumentName),
    /// No node answered, or none named an owner that is among the nodes.
    #[error("no document node names a living owner of partition {partition}: {reason}")]
    Nobody {
        /// The partition of the workspace.
        partition: PartitionId,
        /// What the last node that failed said.
        reason: String,
    },
}

/// Which of these document nodes owns a workspace's partition: the newest epoch that any of them knows.
pub async fn owner_of(workspace: &str, addresses: &[String]) -> Result<usize, RoutesError> {
    let partition = PartitionId::of(&workspace.parse::<DocumentName>()?);
    let mut newest: Option<(u64, usize)> = None;
    let mut reason = "none of them owns it".to_owned();
    for address in addresses {
        let routes = tokio::time::timeout(Duration::from_secs(3), routes(address)).await;
        match routes {
            Ok(Ok(routes)) => {
                for route in routes.into_iter().filter(|route| route.partition == u32::from(partition.0)) {
                    let owner = addresses.iter().position(|address| same(address, &route.address));
                    if let Some(owner) = owner
                        && newest.is_none_or(|(epoch, _)| route.epoch > epoch)
                    {
                        newest = Some((route.epoch, owner));
                    }
                }
            }
            Ok(Err(error)) => reason = format!("{address}: {error:#}"),
            Err(_) => reason = format!("{address} does not answer"),
        }
    }
    newest.map(|(_, owner)| owner).ok_or(RoutesError::Nobody { partition, reason })
}

async fn routes(address: &str) -> anyhow::Result<Vec<manyhands_proto::v1::Route>> {
    let channel = tonic::transport::Endpoint::from_shared(address.to_owned())?.connect().await?;
    let mut client = DocumentServiceClient::new(channel);
    Ok(client.get_routes(GetRoutesRequest {}).await?.into_inner().routes)
}

fn same(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}

/// When a process was started, in clock ticks after the machine; `None` when it is gone or only waits to be
/// reaped.
fn started(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    if *fields.first()? == "Z" { None } else { fields.get(19)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_pid_that_came_to_mean_another_process_is_left_alone() {
        let mut child = sleeper();
        let part = Part::of("edge-0", child.id(), String::new());
        let stranger = Part { started: part.started + 1, ..part.clone() };
        assert!(part.is_running() && !stranger.is_running());
        stranger.end(Duration::ZERO);
        assert!(child.try_wait().unwrap().is_none(), "the stranger was ended");
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        part.end(Duration::from_secs(10));
        assert!(!reaper.join().unwrap().success());
        assert!(!part.is_running());
    }

    #[test]
    fn a_record_survives_its_file_and_lists_nodes_in_order() {
        let node = |role: Role, index: usize| NodeRecord {
            role,
            part: Part::of(&format!("{}-{index}", role.name()), 0, format!("x://{}{index}", role.name())),
            health: "127.0.0.1:1".parse().unwrap(),
            config: "c".into(),
            log: "l".into(),
        };
        let record = Record {
            secret_file: "/s".into(),
            binary: "/b".into(),
            postgres: Part::of("postgres", 0, "postgres://p".into()),
            nats: Part::of("nats", 0, "nats://n".into()),
            redis: Part::of("redis", 0, "redis://r".into()),
            nodes: vec![
                node(Role::Document, 0),
                node(Role::Document, 1),
                node(Role::Edge, 0),
                node(Role::Edge, 1),
            ],
        };
        let dir = tempfile::tempdir().unwrap();
        record.write(dir.path()).unwrap();
        let read = Record::read(dir.path()).unwrap();
        assert_eq!(read.env(), record.env());
        let env = fs::read_to_string(dir.path().join("cluster.env")).unwrap();
        for line in ["EDGE_URLS=x://edge0,x://edge1", "DOCUMENT_PIDS=0,0", "SECRET_FILE=/s", "POSTGRES_PID=0"]
        {
            assert!(env.lines().any(|other| other == line), "{line} is not in\n{env}");
        }
        assert!(!read.is_running());
        read.down(dir.path()).unwrap();
        assert!(Record::read(dir.path()).is_err());
    }
}
