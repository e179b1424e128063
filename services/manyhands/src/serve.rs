//! The services as processes: open the seams, build, run until told to leave.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use clap::Args;
use manyhands_bus::WhenAway;
use manyhands_history::SharedLog;
use manyhands_process::health::Health;
use manyhands_process::shutdown::Shutdown;
use manyhands_process::telemetry::{self, Telemetry};

use crate::settings::{self, Settings};

/// Flags of `manyhands edge`.
#[derive(Debug, Args)]
pub(crate) struct EdgeFlags {
    /// Where sockets and HTTP are taken
    #[arg(long)]
    listen: Option<SocketAddr>,
}

/// Flags of `manyhands document`.
#[derive(Debug, Args)]
pub(crate) struct DocumentFlags {
    /// Where the gRPC face listens
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The URL under which edges reach this node
    #[arg(long)]
    advertise: Option<String>,
}

/// `manyhands edge`.
pub(crate) async fn edge(from: settings::From, flags: EdgeFlags) -> anyhow::Result<()> {
    let mut sources = from.sources();
    if let Some(listen) = flags.listen {
        sources = sources.flag("--listen", "edge.listen", listen.to_string());
    }
    let settings = settings::load(sources)?.config;
    let process = Process::start("edge", &settings)?;
    let bus =
        manyhands_bus::open(settings.bus.expose(), WhenAway::Retry).await.context("cannot open the bus")?;
    let presence = manyhands_edge::presence::open(settings.presence.expose())
        .context("cannot open the presence store")?;
    let surroundings = manyhands_edge::Surroundings {
        bus,
        presence,
        connector: manyhands_edge::connect(),
        health: process.health.clone(),
        metrics: process.telemetry.metrics(),
    };
    let edge = manyhands_edge::build(settings.edge, surroundings).await?;
    edge.run(process.shutdown.clone()).await?;
    process.end().await;
    Ok(())
}

/// `manyhands document`.
pub(crate) async fn document(from: settings::From, flags: DocumentFlags) -> anyhow::Result<()> {
    let mut sources = from.sources();
    if let Some(listen) = flags.listen {
        sources = sources.flag("--listen", "document.listen", listen.to_string());
    }
    if let Some(advertise) = flags.advertise {
        sources = sources.flag("--advertise", "document.advertise", advertise);
    }
    let settings = settings::load(sources)?.config;
    let process = Process::start("document", &settings)?;
    let log = open_log(&settings).await?;
    let bus =
        manyhands_bus::open(settings.bus.expose(), WhenAway::Retry).await.context("cannot open the bus")?;
    let document = manyhands_document::build(settings.document, log.clone(), bus)?
        .with_check(process.health.check("document"));
    let probes = process.probes(settings.health.listen).await?;
    let serving = async { Ok(document.run(process.shutdown.draining()).await?) };
    let served = process.while_log_lives(&log, serving).await;
    process.shutdown.begin();
    if served.is_ok() {
        probes.await?;
    }
    process.end().await;
    served
}

/// `manyhands migrate`.
pub(crate) async fn migrate(from: settings::From) -> anyhow::Result<()> {
    let settings = from.load()?.config;
    let steps = manyhands_history::migrate(settings.log.expose(), &settings.cluster)
        .await
        .context("cannot bring the event log forward")?;
    match steps {
        0 => eprintln!("the event log is up to date"),
        1 => eprintln!("the event log took 1 step forward"),
        steps => eprintln!("the event log took {steps} steps forward"),
    }
    Ok(())
}

/// The event log of the settings.
pub(crate) async fn open_log(settings: &Settings) -> anyhow::Result<SharedLog> {
    let options = manyhands_history::Options { cluster: settings.cluster.clone(), ..Default::default() };
    manyhands_history::open(settings.log.expose(), &options).await.context("cannot open the event log")
}

/// What every process has around its work.
pub(crate) struct Process {
    pub(crate) telemetry: Telemetry,
    pub(crate) health: Health,
    pub(crate) shutdown: Shutdown,
}

impl Process {
    pub(crate) fn start(service: &str, settings: &Settings) -> anyhow::Result<Process> {
        let telemetry = telemetry::init(service, &settings.telemetry)?;
        let shutdown = Shutdown::new(settings.shutdown_grace);
        shutdown.run_on_signals().context("cannot listen for signals")?;
        Ok(Process { telemetry, health: Health::new(), shutdown })
    }

    /// Does the work to its end, unless the log fails for good: then nothing more may be acknowledged, and the
    /// process ends at once. Whoever starts it again finds out what is durable.
    pub(crate) async fn while_log_lives<T>(
        &self,
        log: &SharedLog,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            done = work => done,
            why = log.failed() => {
                self.health.die(why.to_string());
                bail!(
                    "{why}; nothing that was acknowledged is lost\n\
                     fix: make room on its disk, or mend the disk, and start again"
                )
            }
        }
    }

    /// Serves probes and metrics until the process stops.
    pub(crate) async fn probes(
        &self,
        listen: SocketAddr,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
        let listener = tokio::net::TcpListener::bind(listen).await.with_context(|| {
            format!("cannot listen on {listen} for probes; choose another address with health.listen, or end what uses it")
        })?;
        let router = self.health.router(self.telemetry.metrics());
        let stopping = self.shutdown.stopping();
        let serving =
            tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(stopping).into_future());
        Ok(async move { Ok(serving.await??) })
    }

    /// Sends the last spans.
    pub(crate) async fn end(self) {
        self.telemetry.flush().await;
    }
}
