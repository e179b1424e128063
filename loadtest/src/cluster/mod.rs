//! A cluster on this machine without Docker: Postgres, NATS and Redis from the machine's packages, document
//! nodes and edges as processes, everything on free ports of loopback and under one directory.
//!
//! A [`Cluster`] that is started ends with its value. [`Cluster::detach`] gives it up to outlive the
//! process; `cluster.json` in its directory then says what there is, so that [`Record::down`] ends exactly
//! that and nothing else. All calls block; asynchronous tests call from `spawn_blocking`.

mod config;
mod node;
mod record;

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use manyhands_neighbours::{Dir, Nats, Postgres, Redis};

pub use node::{Node, Role};
pub(crate) use node::{free_address, is_ready, log_tail, signal};
pub use record::{Part, Record, RoutesError, owner_of};

/// How long all nodes together may take to get ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything is kept.
    pub dir: PathBuf,
    /// The `manyhands` program.
    pub binary: PathBuf,
    /// How many edges.
    pub edges: usize,
    /// How many document nodes.
    pub documents: usize,
    /// Environment variables that every node is started with beside this process's own.
    pub environment: Vec<(String, String)>,
    /// Further settings of Postgres, each `name=value`.
    pub postgres: Vec<&'static str>,
    /// What stands in every link between two processes of the cluster.
    pub links: Links,
}

/// A link between two parts of a cluster: from whom to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What connects: `edge` or `document`.
    pub from: String,
    /// To what it connects: `document`, `postgres`, `nats` or `redis`.
    pub to: String,
    /// Their names, such as `document-0 to postgres`.
    pub name: String,
}

type Enter = dyn Fn(&Link, SocketAddr) -> anyhow::Result<SocketAddr> + Send + Sync;

/// Where links are entered: at the address of whom they lead to, unless somebody stands in between.
#[derive(Clone, Default)]
pub struct Links(Option<Arc<Enter>>);

impl Links {
    /// `enter` is told each link and where it leads, and gives the address at which it is entered.
    pub fn through(
        enter: impl Fn(&Link, SocketAddr) -> anyhow::Result<SocketAddr> + Send + Sync + 'static,
    ) -> Links {
        Links(Some(Arc::new(enter)))
    }

    fn enter(&self, from: (&str, &str), to: (&str, &str), address: SocketAddr) -> anyhow::Result<SocketAddr> {
        let Some(enter) = &self.0 else { return Ok(address) };
        let link = Link { from: from.0.into(), to: to.0.into(), name: format!("{} to {}", from.1, to.1) };
        enter(&link, address)
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.0.is_some() { "Links(through)" } else { "Links(direct)" })
    }
}

impl Options {
    /// Two edges and two document nodes.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, binary: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            binary: binary.into(),
            edges: 2,
            documents: 2,
            environment: Vec::new(),
            postgres: Vec::new(),
            links: Links::default(),
        }
    }
}

/// A running cluster that ends with this value.
pub struct Cluster {
    /// The log's database.
    pub postgres: Postgres,
    /// The bus.
    pub nats: Nats,
    /// Presence.
    pub redis: Redis,
    /// Document nodes first, then edges; each in the order of its number.
    nodes: Vec<Node>,
    options: Options,
    secret_file: PathBuf,
}

impl Cluster {
    /// Starts everything and waits until every node is ready. What was started ends again when something
    /// fails, and the error shows the end of the log of what did.
    pub fn start(options: Options) -> anyhow::Result<Cluster> {
        Cluster::start_telling(options, |_| {})
    }

    /// The same, telling what it is about to do.
    pub fn start_telling(options: Options, tell: impl Fn(&str)) -> anyhow::Result<Cluster> {
        ensure!(options.edges > 0 && options.documents > 0, "a cluster needs an edge and a document node");
        ensure!(options.binary.is_file(), "there is no program at {}", options.binary.display());
        let mut options = options;
        fs::create_dir_all(options.dir.join("logs"))
            .with_context(|| format!("cannot make {}", options.dir.display()))?;
        options.dir = fs::canonicalize(&options.dir)?;
        options.binary = fs::canonicalize(&options.binary)?;
        if let Ok(record) = Record::read(&options.dir)
            && record.is_running()
        {
            bail!(
                "a cluster is running in {} already\nfix: use it, or end it with `loadtest cluster down`",
                options.dir.display()
            );
        }
        let at = |name: &str| Dir::At(options.dir.join(name));
        tell("Postgres");
        let postgres = Postgres::start_with(at("postgres"), &options.postgres)?;
        tell("NATS");
        let nats = Nats::start(at("nats"))?;
        tell("Redis");
        let redis = Redis::start(at("redis"))?;
        let secret_file = secret(&options.dir)?;
        let neighbours = config::Neighbours {
            postgres: postgres.url(),
            nats: nats.url(),
            redis: redis.url(),
            secret_file: secret_file.clone(),
            links: options.links.clone(),
        };
        let mut nodes = Vec::new();
        let documents = (0..options.documents).map(|index| (Role::Document, index));
        let edges = (0..options.edges).map(|index| (Role::Edge, index));
        for (role, index) in documents.chain(edges) {
            nodes.push(Node::new(role, index, &options)?);
        }
        let mut addresses = Vec::new();
        for node in of(&nodes, Role::Document) {
            let listen = options.links.enter(("edge", "edges"), ("document", node.name()), node.listen())?;
            addresses.push(format!("http://{listen}"));
        }
        for (index, node) in nodes.iter().enumerate() {
            node.write_config(&neighbours.config(node, &addresses, addresses.get(index))?)?;
        }
        tell("the schema");
        migrate(&options, nodes[0].config_path())?;
        tell("document nodes and edges");
        let mut cluster = Cluster { postgres, nats, redis, nodes, options, secret_file };
        for node in &mut cluster.nodes {
            node.start()?;
        }
        for node in &mut cluster.nodes {
            node.wait_ready(READY_WITHIN)?;
        }
        Ok(cluster)
    }

    /// Where the edges take WebSocket connections.
    #[must_use]
    pub fn edge_urls(&self) -> Vec<String> {
        of(&self.nodes, Role::Edge).map(Node::url).collect()
    }

    /// The secret that tokens are signed with.
    #[must_use]
    pub fn secret_file(&self) -> &Path {
        &self.secret_file
    }

    /// A node, to look at.
    ///
    /// # Panics
    /// When there is no such node.
    #[must_use]
    pub fn node(&self, role: Role, index: usize) -> &Node {
        of(&self.nodes, role).nth(index).expect("the caller knows how many nodes it started")
    }

    /// A node, to kill, pause or start again.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node_mut(&mut self, role: Role, index: usize) -> &mut Node {
        let mut nodes = self.nodes.iter_mut().filter(|node| node.role() == role);
        nodes.nth(index).expect("the caller knows how many nodes it started")
    }

    /// How many document nodes there are.
    #[must_use]
    pub fn documents(&self) -> usize {
        of(&self.nodes, Role::Document).count()
    }

    /// Every node: document nodes first, then edges.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// The number of the document node that owns a workspace's partition, as the nodes know it.
    pub async fn owner(&self, workspace: &str) -> Result<usize, RoutesError> {
        let addresses: Vec<String> = of(&self.nodes, Role::Document).map(Node::rpc_url).collect();
        owner_of(workspace, &addresses).await
    }

    /// Gives the cluster up: it goes on without this process. Writes `cluster.env` for scripts and
    /// `cluster.json` for [`Record`].
    pub fn detach(self) -> anyhow::Result<Record> {
        let Cluster { postgres, nats, redis, nodes, options, secret_file } = self;
        let (postgres, nats, redis) = (postgres.detach(), nats.detach(), redis.detach());
        let record = Record {
            secret_file,
            binary: options.binary,
            postgres: Part::of("postgres", postgres.pid, postgres.url),
            nats: Part::of("nats", nats.pid, nats.url),
            redis: Part::of("redis", redis.pid, redis.url),
            nodes: nodes.into_iter().map(Node::detach).collect(),
        };
        record.write(&options.dir)?;
        Ok(record)
    }
}

fn of(nodes: &[Node], role: Role) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(move |node| node.role() == role)
}

/// The file with the secret; made when it is missing. Only this user can read it.
fn secret(dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("secret");
    if !path.exists() {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let random: [u8; 32] = rand::random();
        let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(file, "{hex}")?;
    }
    Ok(path)
}

fn migrate(options: &Options, config: &Path) -> anyhow::Result<()> {
    let output = Command::new(&options.binary)
        .args(["migrate", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", options.binary.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`manyhands migrate` failed ({}):\n{}", output.status, said.trim_end());
    }
    Ok(())
}
