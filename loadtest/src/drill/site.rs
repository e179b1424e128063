//! What is drilled: processes that can be killed and links that can be broken.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::runtime::Handle;
use url::Url;

use super::log::{AUDIT, POSTGRES};
use super::plan::{Harm, Targets};
use crate::access::{Connector, read_secret};
use crate::cluster::{Cluster, Link, Links, Node, Options, Role, free_address, is_ready, log_tail, signal};
use crate::proxy::Proxy;

/// How long a process may take to be ready, and to leave.
const WITHIN: Duration = Duration::from_secs(90);
/// How often a condition outside of this process is looked at.
const LOOK_EACH: Duration = Duration::from_millis(10);

/// What is drilled. All calls block.
pub(super) struct Site {
    system: System,
    proxies: BTreeMap<String, (&'static str, Proxy)>,
    /// Processes that were ended by us and not started again yet.
    down: Vec<String>,
    /// Processes that ended although nobody had killed them.
    pub(super) ended: Vec<String>,
}

enum System {
    Cluster(Box<Cluster>),
    Dev(Dev),
}

type Proxies = Arc<Mutex<BTreeMap<String, (&'static str, Proxy)>>>;

impl Site {
    /// A cluster with a proxy in every link.
    pub(super) fn cluster(dir: &Path, binary: PathBuf, runtime: &Handle) -> anyhow::Result<Site> {
        let proxies = Proxies::default();
        let links = {
            let (proxies, runtime) = (proxies.clone(), runtime.clone());
            Links::through(move |link, to| {
                let _in_runtime = runtime.enter();
                let kind = kind_of(link)?;
                let proxy = Proxy::start(&link.name, to)?;
                let listen = proxy.listen();
                let mut proxies = proxies.lock().unwrap_or_else(PoisonError::into_inner);
                proxies.insert(link.name.clone(), (kind, proxy));
                Ok(listen)
            })
        };
        let options = Options { postgres: vec![POSTGRES], links, ..Options::new(dir, binary) };
        let cluster = Cluster::start(options)?;
        cluster.postgres.execute(AUDIT).context("cannot have Postgres write down who appends")?;
        let mut proxies = std::mem::take(&mut *proxies.lock().unwrap_or_else(PoisonError::into_inner));
        let _in_runtime = runtime.enter();
        for index in 0.. {
            let Some(url) = cluster.edge_urls().get(index).cloned() else { break };
            let (host, name) = (url.trim_start_matches("ws://").parse()?, format!("clients to edge-{index}"));
            proxies.insert(name.clone(), ("client to edge", Proxy::start(name, host)?));
        }
        Ok(Site { system: System::Cluster(Box::new(cluster)), proxies, down: Vec::new(), ended: Vec::new() })
    }

    /// One process with everything in it, and a proxy before it.
    pub(super) fn dev(dir: &Path, binary: PathBuf, runtime: &Handle) -> anyhow::Result<Site> {
        let _in_runtime = runtime.enter();
        let mut dev = Dev { binary, dir: dir.to_owned(), listen: free_address()?, child: None };
        std::fs::create_dir_all(dir)?;
        dev.start()?;
        dev.wait_ready()?;
        let name = "clients to dev".to_owned();
        let proxy = ("client to dev", Proxy::start(name.clone(), dev.listen)?);
        let proxies = BTreeMap::from([(name, proxy)]);
        Ok(Site { system: System::Dev(dev), proxies, down: Vec::new(), ended: Vec::new() })
    }

    /// Clients that go through the proxies.
    pub(super) fn connector(&self) -> anyhow::Result<Connector> {
        let entries = self.proxies.values().filter(|(kind, _)| kind.starts_with("client to "));
        let urls = entries
            .map(|(_, proxy)| Url::parse(&format!("ws://{}", proxy.listen())))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(match &self.system {
            System::Cluster(cluster) => Connector::new(urls, read_secret(cluster.secret_file())?),
            System::Dev(_) => Connector::dev(urls),
        })
    }

    /// The log, for who reads it afterwards.
    pub(super) fn log_url(&self) -> String {
        match &self.system {
            System::Cluster(cluster) => cluster.postgres.url(),
            System::Dev(dev) => format!("sqlite:{}", dev.dir.join("data").join("log.db").display()),
        }
    }

    /// The database knows more than the log says.
    pub(super) fn has_audit(&self) -> bool {
        matches!(self.system, System::Cluster(_))
    }

    /// Everything that can be hurt.
    pub(super) fn targets(&self) -> Targets {
        let processes = match &self.system {
            System::Cluster(cluster) => {
                let nodes = |role: Role| {
                    let count =
                        if role == Role::Edge { cluster.edge_urls().len() } else { cluster.documents() };
                    (0..count).map(move |index| (role.name(), format!("{}-{index}", role.name())))
                };
                let neighbours = ["postgres", "nats", "redis"].map(|name| (name, name.to_owned()));
                nodes(Role::Edge).chain(nodes(Role::Document)).chain(neighbours).collect()
            }
            System::Dev(_) => vec![("dev", "dev".to_owned())],
        };
        let mut links: Vec<(&'static str, String)> =
            self.proxies.iter().map(|(name, (kind, _))| (*kind, name.clone())).collect();
        links.sort_unstable();
        Targets { processes, links }
    }

    /// Begins a fault.
    pub(super) fn hurt(&mut self, target: &str, harm: Harm) -> anyhow::Result<()> {
        match harm {
            Harm::Link(mode) => self.proxy(target)?.set(mode),
            Harm::Cut => self.proxy(target)?.cut(),
            Harm::Kill | Harm::Restart => {
                self.down.push(target.to_owned());
                self.end(target, harm == Harm::Kill)?;
            }
            Harm::Pause => self.pause(target, true)?,
        }
        Ok(())
    }

    /// Ends a fault.
    pub(super) fn heal(&mut self, target: &str, harm: Harm) -> anyhow::Result<()> {
        match harm {
            Harm::Link(_) => self.proxy(target)?.heal(),
            Harm::Cut => {}
            Harm::Kill | Harm::Restart => {
                self.down.retain(|other| other != target);
                self.start(target)?;
            }
            Harm::Pause => self.pause(target, false)?,
        }
        Ok(())
    }

    /// Whoever ended by itself is noted and started again, as whatever runs a cluster would.
    pub(super) fn look_after(&mut self) -> anyhow::Result<()> {
        let mut ended = Vec::new();
        match &mut self.system {
            System::Cluster(cluster) => {
                for node in cluster.nodes_mut() {
                    if let Some(status) = node.ended() {
                        ended.push((node.name().to_owned(), status));
                    }
                }
            }
            System::Dev(dev) => {
                if let Some(status) = dev.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                    ended.push(("dev".to_owned(), status));
                }
            }
        }
        for (name, status) in ended {
            self.ended.push(format!("{name} ({status})"));
            self.start(&name)?;
        }
        Ok(())
    }

    /// Ends every fault, and waits until all processes are ready.
    pub(super) fn heal_all(&mut self) -> anyhow::Result<()> {
        for (_, proxy) in self.proxies.values() {
            proxy.heal();
        }
        for target in std::mem::take(&mut self.down) {
            self.start(&target)?;
        }
        let begun = Instant::now();
        loop {
            self.look_after()?;
            let ready = match &mut self.system {
                System::Cluster(cluster) => cluster.nodes_mut().iter().all(|node| is_ready(node.health())),
                System::Dev(dev) => is_ready(dev.listen),
            };
            if ready {
                return Ok(());
            }
            if begun.elapsed() > WITHIN {
                bail!("not everything is ready {WITHIN:?} after the last fault");
            }
            std::thread::sleep(LOOK_EACH);
        }
    }

    /// Ends what writes the log, so that it can be read; Postgres goes on.
    pub(super) fn quiet(&mut self) {
        match &mut self.system {
            System::Cluster(cluster) => cluster.nodes_mut().iter_mut().for_each(Node::kill),
            System::Dev(dev) => dev.kill(),
        }
    }

    fn proxy(&self, name: &str) -> anyhow::Result<&Proxy> {
        self.proxies.get(name).map(|(_, proxy)| proxy).with_context(|| format!("no link is called {name}"))
    }

    fn end(&mut self, target: &str, by_force: bool) -> anyhow::Result<()> {
        match &mut self.system {
            System::Dev(dev) if by_force => dev.kill(),
            System::Dev(dev) => dev.stop()?,
            System::Cluster(cluster) => match (target, by_force) {
                ("postgres", true) => cluster.postgres.kill(),
                ("postgres", false) => cluster.postgres.stop(),
                ("nats", true) => cluster.nats.kill(),
                ("nats", false) => cluster.nats.stop(),
                ("redis", true) => cluster.redis.kill(),
                ("redis", false) => cluster.redis.stop(),
                (_, true) => node(cluster, target)?.kill(),
                (_, false) => node(cluster, target)?.stop(WITHIN)?,
            },
        }
        Ok(())
    }

    fn start(&mut self, target: &str) -> anyhow::Result<()> {
        match &mut self.system {
            System::Dev(dev) => dev.start(),
            System::Cluster(cluster) => match target {
                "postgres" => Ok(cluster.postgres.restart()?),
                "nats" => Ok(cluster.nats.restart()?),
                "redis" => Ok(cluster.redis.restart()?),
                _ => node(cluster, target)?.start(),
            },
        }
    }

    fn pause(&mut self, target: &str, stand_still: bool) -> anyhow::Result<()> {
        match &mut self.system {
            System::Dev(dev) => dev.signal(if stand_still { Signal::SIGSTOP } else { Signal::SIGCONT }),
            System::Cluster(cluster) => match (target, stand_still) {
                ("postgres", true) => cluster.postgres.pause(),
                ("postgres", false) => cluster.postgres.resume(),
                ("nats", true) => cluster.nats.pause(),
                ("nats", false) => cluster.nats.resume(),
                ("redis", true) => cluster.redis.pause(),
                ("redis", false) => cluster.redis.resume(),
                (_, true) => node(cluster, target)?.pause(),
                (_, false) => node(cluster, target)?.resume(),
            },
        }
        Ok(())
    }
}

fn node<'c>(cluster: &'c mut Cluster, name: &str) -> anyhow::Result<&'c mut Node> {
    let found = cluster.nodes_mut().iter_mut().find(|node| node.name() == name);
    found.with_context(|| format!("no process is called {name}"))
}

fn kind_of(link: &Link) -> anyhow::Result<&'static str> {
    Ok(match (link.from.as_str(), link.to.as_str()) {
        ("edge", "document") => "edge to document",
        ("edge", "nats") => "edge to NATS",
        ("edge", "redis") => "edge to Redis",
        ("document", "postgres") => "document to Postgres",
        ("document", "nats") => "document to NATS",
        (from, to) => bail!("no kind of link goes from {from} to {to}"),
    })
}

/// `manyhands dev` as a process.
struct Dev {
    binary: PathBuf,
    dir: PathBuf,
    listen: SocketAddr,
    child: Option<Child>,
}

impl Dev {
    fn start(&mut self) -> anyhow::Result<()> {
        self.kill();
        let out = std::fs::File::options().create(true).append(true).open(self.log())?;
        let err = out.try_clone()?;
        let child = Command::new(&self.binary)
            .args(["dev", "--listen", &self.listen.to_string(), "--data"])
            .arg(self.dir.join("data"))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.dir.join("dev.log")
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !is_ready(self.listen) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || begun.elapsed() > WITHIN {
                bail!("`manyhands dev` is not ready:\n{}", log_tail(&self.log()));
            }
            std::thread::sleep(LOOK_EACH);
        }
        Ok(())
    }

    fn signal(&self, which: Signal) {
        signal(self.child.as_ref().map_or(0, Child::id), which);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Errors mean that it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to leave, and waits until it has.
    fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM);
        let begun = Instant::now();
        while let Some(child) = &mut self.child {
            if child.try_wait()?.is_some() {
                self.child = None;
            } else if begun.elapsed() > WITHIN {
                bail!("`manyhands dev` does not leave:\n{}", log_tail(&self.log()));
            }
            std::thread::sleep(LOOK_EACH);
        }
        Ok(())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.kill();
    }
}
