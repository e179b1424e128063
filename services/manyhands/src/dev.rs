//! `manyhands dev`: all services in one process, on embedded parts.
//!
//! The same libraries as on a cluster; what differs is said here, once, by URLs. The edge calls the document
//! service's server object instead of a socket.

use std::fs::{self, File, TryLockError};
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use manyhands_bus::WhenAway;
use manyhands_history::SharedLog;
use toml::Table;

use crate::serve::{Process, open_log};
use crate::settings;
use crate::token::{DEV_SECRET, read_secret};

/// Flags of `manyhands dev`.
#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// Where sockets and HTTP are taken
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Directory that keeps the data; it survives restarts
    #[arg(long, default_value = ".manyhands/dev")]
    data: PathBuf,
    /// File with the secret that tokens are signed with; needed to listen beyond this machine
    #[arg(long)]
    secret_file: Option<PathBuf>,
}

impl Dev {
    pub(crate) async fn run(self, from: settings::From) -> anyhow::Result<()> {
        let begun = Instant::now();
        let _lock = lock(&self.data)?;
        let mut sources = from.sources().preset("dev", embedded(&self.data));
        if let Some(listen) = self.listen {
            sources = sources.flag("--listen", "edge.listen", listen.to_string());
        }
        if let Some(path) = &self.secret_file {
            sources = sources.flag("--secret-file", "edge.secret", read_secret(path)?);
        }
        let settings = settings::load(sources)?.config;
        let listen = settings.edge.listen;
        if settings.edge.secret.expose() == DEV_SECRET && !listen.ip().is_loopback() {
            bail!(
                "the development secret is known to everyone, so it serves this machine only, not {listen}\n\
                 fix: listen on 127.0.0.1, or give your own secret with --secret-file"
            );
        }

        let process = Process::start("dev", &settings)?;
        manyhands_history::migrate(settings.log.expose(), &settings.cluster)
            .await
            .context("cannot make the event log")?;
        let log = open_log(&settings).await?;
        forget_owners(&log).await.context("cannot read the event log")?;
        let bus = manyhands_bus::open(settings.bus.expose(), WhenAway::Fail)
            .await
            .context("cannot open the bus")?;
        let document = manyhands_document::build(settings.document, log.clone(), bus.clone())?
            .with_check(process.health.check("document"));
        let owner = manyhands_edge::channel(document.server().service());
        let presence = manyhands_edge::presence::open(settings.presence.expose())
            .context("cannot open the presence store")?;
        let surroundings = manyhands_edge::Surroundings {
            bus,
            presence,
            connector: Arc::new(move |_| owner.clone()),
            health: process.health.clone(),
            metrics: process.telemetry.metrics(),
        };
        let edge = manyhands_edge::build(settings.edge, surroundings).await?;
        banner(edge.address(), &self.data, begun)?;

        // Sessions are sent away first; the owner stays until the last of their changes is answered.
        let serving = async {
            let documents = tokio::spawn(document.run_in_process(process.shutdown.stopping()));
            edge.run(process.shutdown.clone()).await?;
            Ok(documents.await?)
        };
        let served = process.while_log_lives(&log, serving).await;
        process.end().await;
        served
    }
}

/// The embedded parts, beneath everything that the user says.
fn embedded(data: &Path) -> Table {
    let text = |value: String| toml::Value::String(value);
    let mut edge = Table::new();
    edge.insert("listen".into(), text("127.0.0.1:8080".into()));
    edge.insert("secret".into(), text(DEV_SECRET.into()));
    edge.insert("allow_loopback_origins".into(), toml::Value::Boolean(true));
    edge.insert("documents".into(), toml::Value::Array(vec![text("http://in-process".into())]));
    let mut values = Table::new();
    values.insert("log".into(), text(format!("sqlite:{}", data.join("log.db").display())));
    values.insert("bus".into(), text("local:".into()));
    values.insert("presence".into(), text("local:".into()));
    values.insert("edge".into(), toml::Value::Table(edge));
    values
}

/// Makes the data directory ours for as long as the process lives.
fn lock(data: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(data).with_context(|| format!("cannot make the data directory {}", data.display()))?;
    let path = data.join("lock");
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot write to the data directory {}", data.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "the data directory {} is in use by process {}\nfix: end that process, or choose another directory with --data",
                data.display(),
                pid.trim()
            );
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Ends what a process that was killed left behind: with the directory locked, nobody else can be alive, and
/// there is no lease to wait for.
async fn forget_owners(log: &SharedLog) -> anyhow::Result<()> {
    let mut held = Vec::new();
    for row in log.ownership().await? {
        if let Some(owner) = row.owner {
            log.leave(&owner.node).await?;
            held.push((row.partition, row.epoch));
        }
    }
    Ok(log.release(&held).await?)
}

/// What runs where, and what to type next.
fn banner(address: SocketAddr, data: &Path, begun: Instant) -> anyhow::Result<()> {
    let bold = |text: &str| match std::io::stderr().is_terminal() {
        true => format!("\x1b[1m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let mut out = std::io::stderr().lock();
    writeln!(
        out,
        "\n{} {}  everything in one process  listening after {} ms\n",
        bold("manyhands"),
        env!("CARGO_PKG_VERSION"),
        begun.elapsed().as_millis()
    )?;
    writeln!(out, "  WebSocket   ws://{address}/v1/sync/{{workspace}}")?;
    writeln!(out, "  Health      http://{address}/readyz, /livez, /metrics")?;
    writeln!(out, "  Data        {}  survives restarts; remove it to forget", data.display())?;
    writeln!(out, "\n  Token       manyhands token create --workspace demo --scope read,write --ttl 1h")?;
    writeln!(out, "  Try it      loadtest probe --url ws://{address} --rate 100 --seconds 10\n")?;
    Ok(())
}
