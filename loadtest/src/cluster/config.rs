//! The configuration files of the nodes.

use std::path::PathBuf;

use serde::Serialize;

use super::node::{Node, Role};

/// What all nodes share.
pub(super) struct Neighbours {
    pub(super) postgres: String,
    pub(super) nats: String,
    pub(super) redis: String,
    pub(super) secret_file: PathBuf,
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
}

impl Neighbours {
    /// The file of one node; `documents` are the addresses of all document nodes.
    pub(super) fn config(&self, node: &Node, documents: &[String]) -> anyhow::Result<String> {
        let listen = node.listen().to_string();
        let (health, edge, document) = match node.role() {
            Role::Document => {
                let health = Listen { listen: node.health().to_string() };
                (Some(health), None, Some(Document { listen, node: node.name() }))
            }
            Role::Edge => {
                let secret_file = self.secret_file.display().to_string();
                (None, Some(Edge { listen, secret_file, documents }), None)
            }
        };
        let (log, bus, presence) = (&self.postgres, &self.nats, &self.redis);
        Ok(toml::to_string(&File { log, bus, presence, health, edge, document })?)
    }
}
