//! Everything that can be set, for every command: one file serves a whole deployment, each command reads its part.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use manyhands_process::config::{Loaded, Sources};
use manyhands_process::telemetry;
use manyhands_process::value::ServiceUrl;
use serde::{Deserialize, Serialize};

use crate::ws;

/// The configuration of every command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// The event log: `postgres://user@host/database` or `sqlite:path/to/file`.
    pub(crate) log: ServiceUrl,
    /// The bus: `nats://host:4222`, or `local:` in one process.
    pub(crate) bus: ServiceUrl,
    /// The presence roster: `redis://host:6379`, or `local:` in one process.
    pub(crate) presence: ServiceUrl,
    /// The name that the log is made for; a log of another cluster is refused.
    pub(crate) cluster: String,
    /// How long leaving may take. Keep it below what the platform grants before it kills.
    #[serde(with = "humantime_serde")]
    pub(crate) shutdown_grace: Duration,
    /// Probes and metrics of processes that have no other HTTP face.
    pub(crate) health: HealthSettings,
    /// Logs, traces, metrics.
    pub(crate) telemetry: telemetry::Config,
    /// `manyhands edge`.
    pub(crate) edge: manyhands_edge::Config,
    /// `manyhands document`.
    pub(crate) document: manyhands_document::Config,
}

/// Probes and metrics of processes that have no other HTTP face.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HealthSettings {
    /// Where `/livez`, `/readyz` and `/metrics` are answered.
    pub(crate) listen: SocketAddr,
}

impl Default for HealthSettings {
    fn default() -> HealthSettings {
        HealthSettings { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7421)) }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            log: ServiceUrl::new("postgres://127.0.0.1/manyhands"),
            bus: ServiceUrl::new("nats://127.0.0.1:4222"),
            presence: ServiceUrl::new("redis://127.0.0.1:6379"),
            cluster: "manyhands".to_owned(),
            shutdown_grace: Duration::from_secs(25),
            health: HealthSettings::default(),
            telemetry: telemetry::Config::default(),
            edge: manyhands_edge::Config::default(),
            document: manyhands_document::Config::default(),
        }
    }
}

/// Where a command's configuration comes from.
#[derive(Clone, Debug, Args)]
pub(crate) struct From {
    /// TOML file; the environment (MANYHANDS_EDGE__LISTEN is `edge.listen`) and flags win over it
    #[arg(long, global = true, env = CONFIG_VARIABLE)]
    pub(crate) config: Option<PathBuf>,
}

const CONFIG_VARIABLE: &str = "MANYHANDS_CONFIG";
/// What EtherPly calls the default strategy, `automerge` for `crdt` included.
const STRATEGY_ALIAS: &str = "ETHERPLY_SYNC_STRATEGY";

impl From {
    /// File and environment, for a command to add its flags to.
    pub(crate) fn sources(&self) -> Sources {
        let sources = Sources::new()
            .alias(STRATEGY_ALIAS, "document.strategy")
            .environment(std::env::vars())
            .except(&[CONFIG_VARIABLE, ws::URL_VARIABLE, ws::TOKEN_VARIABLE]);
        match &self.config {
            Some(path) => sources.file(path),
            None => sources,
        }
    }

    /// The configuration, without flags.
    pub(crate) fn load(&self) -> anyhow::Result<Loaded<Settings>> {
        load(self.sources())
    }
}

/// Merges the layers.
pub(crate) fn load(sources: Sources) -> anyhow::Result<Loaded<Settings>> {
    sources.load().context("the configuration cannot be used")
}
