//! The configuration files of the nodes.

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;
use url::Url;

use super::Links;
use super::node::{Node, Role};

/// What all nodes share.
pub(super) struct Neighbours {
    pub(super) postgres: String,
    pub(super) nats: String,
    pub(super) redis: String,
    pub(super) secret_file: PathBuf,
    pub(super) links: Links,
}

#[derive(Serialize)]
struct File<'a> {
    log: &'a str,
    bus: &'a str,
    presence: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<Listen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    edge: Option<Edge<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
}

#[derive(Serialize)]
struct Listen {
    listen: String,
}

#[derive(Serialize)]
struct Edge<'a> {
    listen: String,
    secret_file: String,
    documents: &'a [String],
}

#[derive(Serialize)]
struct Document<'a> {
    listen: String,
    node: &'a str,
    /// What edges are told, where it is not the address that it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise: Option<&'a String>,
}

impl Neighbours {
    /// The file of one node; `documents` are the addresses of all document nodes, and `own` is its own, if it
    /// is one of them.
    pub(super) fn config(
        &self,
        node: &Node,
        documents: &[String],
        own: Option<&String>,
    ) -> anyhow::Result<String> {
        let listen = node.listen().to_string();
        let (health, edge, document) = match node.role() {
            Role::Document => {
                let health = Listen { listen: node.health().to_string() };
                (Some(health), None, Some(Document { listen, node: node.name(), advertise: own }))
            }
            Role::Edge => {
                let secret_file = self.secret_file.display().to_string();
                (None, Some(Edge { listen, secret_file, documents }), None)
            }
        };
        let log = match node.role() {
            Role::Document => self.entered(node, "postgres", &self.postgres)?,
            Role::Edge => self.postgres.clone(),
        };
        let bus = self.entered(node, "nats", &self.nats)?;
        let presence = match node.role() {
            Role::Document => self.redis.clone(),
            Role::Edge => self.entered(node, "redis", &self.redis)?,
        };
        let (log, bus, presence) = (log.as_str(), bus.as_str(), presence.as_str());
        Ok(toml::to_string(&File { log, bus, presence, health, edge, document })?)
    }

    /// The URL by which this node reaches a neighbour.
    fn entered(&self, node: &Node, neighbour: &str, url: &str) -> anyhow::Result<String> {
        let mut entered = Url::parse(url)?;
        let host = entered.host_str().context("a neighbour's URL has a host")?;
        let port = entered.port().context("a neighbour's URL has a port")?;
        let from = (node.role().name(), node.name());
        let address = self.links.enter(from, (neighbour, neighbour), format!("{host}:{port}").parse()?)?;
        if format!("{host}:{port}").parse() == Ok(address) {
            return Ok(url.to_owned());
        }
        // Both are IP addresses and ports, which every URL takes.
        entered.set_ip_host(address.ip()).ok().context("an IP address is a host")?;
        entered.set_port(Some(address.port())).ok().context("a port")?;
        Ok(entered.to_string())
    }
}
