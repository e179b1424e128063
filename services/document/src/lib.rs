//! One writer per partition: admit, append, release.
//!
//! This is the heart of Manyhands. Every change of a document passes through the one loop of the document's
//! partition (`writer.rs`): it takes what waits, decides in pure code what of it is right ([`partition`]),
//! makes that durable in one append, and only then answers and tells the world. Which node runs which loops
//! is the business of [`ownership`]; that two nodes may believe they run the same one for a moment does no
//! harm, because the log's epoch lets only one of them append.
//!
//! The files in the order of an op: `grpc.rs` reads the request, `node.rs` finds the partition's mailbox,
//! `writer.rs` takes it out again, `residency.rs` says whether the document is in memory, `partition.rs`
//! admits and releases, with what `resident.rs` knows about the one document; `aside.rs` reads from the log
//! meanwhile. `keeper.rs` starts and ends writers as `ownership.rs` says.

mod aside;
mod config;
mod grpc;
mod keeper;
mod mailbox;
mod node;
pub mod ownership;
pub mod partition;
pub mod past;
mod refusal;
pub mod request;
pub mod residency;
pub mod resident;
pub mod run;
pub mod schema;
pub mod tips;
mod writer;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use manyhands_bus::SharedBus;
use manyhands_history::SharedLog;
use manyhands_process::health::Check;
use manyhands_proto::v1::document_service_server::DocumentServiceServer;

pub use config::{BatchConfig, Config, LeaseConfig, LimitsConfig, MailboxConfig, MemoryConfig};

use node::Node;
use schema::Schemas;

/// The service, built and not yet running.
pub struct Document {
    server: Server,
    check: Option<Check>,
}

/// The service's gRPC face; clones share it. Answers `not_owner` until [`Document::run`] has claimed
/// partitions.
#[derive(Clone)]
pub struct Server {
    node: Arc<Node>,
}

/// Why the service could not be built or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration does not make sense.
    #[error("configuration of the document service: {0}")]
    Config(String),
    /// A schema of the configuration cannot be used.
    #[error("configuration of the document service: {0}")]
    Schema(#[from] schema::SchemaError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; choose another address with `listen`, or end what uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Serve(#[source] tonic::transport::Error),
}

/// Puts the service together. Nothing runs and nothing listens until [`Document::run`].
pub fn build(config: Config, log: SharedLog, bus: SharedBus) -> Result<Document, Error> {
    config.check().map_err(Error::Config)?;
    let schemas = Schemas::load(&config.schemas)?;
    Ok(Document {
        server: Server { node: Arc::new(Node::new(config, schemas, log, bus, writer::apply)) },
        check: None,
    })
}

impl Document {
    /// Says through `check` whether this node can do its work.
    #[must_use]
    pub fn with_check(self, check: Check) -> Document {
        Document { check: Some(check), ..self }
    }

    /// The gRPC face, to be called in this process.
    #[must_use]
    pub fn server(&self) -> Server {
        self.server.clone()
    }

    /// Listens, claims partitions and serves them until `shutdown` is ready; then finishes what is under way,
    /// releases everything and leaves.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let address = self.server.node.config().listen;
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .map_err(|source| Error::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
        let advertise = self.server.node.config().advertise.clone();
        let advertise = advertise.unwrap_or_else(|| format!("http://{address}"));
        tracing::info!(%address, %advertise, "listening");
        // The face goes on answering while the partitions are let go, and is closed last.
        let left = tokio_util::sync::CancellationToken::new();
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = tonic::transport::Server::builder()
            .add_service(self.server.service())
            .serve_with_incoming_shutdown(incoming, left.clone().cancelled_owned());
        let node = async {
            self.server.node.run(advertise, self.check, shutdown).await;
            left.cancel();
            Ok(())
        };
        let serving = async { serving.await.map_err(Error::Serve) };
        tokio::try_join!(serving, node).map(drop)
    }

    /// The same without listening: for a process in which every edge calls [`Document::server`].
    pub async fn run_in_process(self, shutdown: impl Future<Output = ()> + Send) {
        self.server.node.run("in-process".to_owned(), self.check, shutdown).await;
    }
}

impl Server {
    /// As a tower service, with the limits on message sizes set.
    #[must_use]
    pub fn service(&self) -> DocumentServiceServer<Server> {
        // A request holds changes up to their limit and little else; an answer holds one part.
        let request_max = self.node.config().limits.submit_bytes_max + 64 * 1024;
        // Every replica may be a head; one takes 16 bytes of hash, two numbers and what frames them.
        let heads_max = self.node.config().limits.replicas_max.saturating_mul(48);
        DocumentServiceServer::new(self.clone())
            .max_decoding_message_size(request_max)
            .max_encoding_message_size(2 * grpc::PART_BYTES + 64 * 1024 + heads_max)
    }
}
