//! Sockets in, sockets out; keeps nothing that a reconnect does not rebuild.
//!
//! The walk of an op through this crate: `http` admits a socket, `socket` reads its frames and does what the
//! session machine says, `router` finds the document's owner and asks it, `fanout` brings every delta from
//! the bus to the sockets that have the document open. What is decided is decided in `manyhands-session`; here
//! is the thin code around it.

mod auth;
mod config;
mod errors;
mod fanout;
mod http;
mod lane;
mod origin;
mod outgoing;
pub mod presence;
mod problem;
pub mod router;
mod routes;
mod socket;
mod users;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use manyhands_bus::SharedBus;
use manyhands_process::health::{Check, Health};
use manyhands_process::shutdown::Shutdown;
use manyhands_process::telemetry::Metrics;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::auth::{Denied, SECRET_BYTES_MIN, TOKEN_SUBPROTOCOL, Verifier, WeakSecret};
pub use crate::config::{Config, Limits};
use crate::fanout::Fanout;
use crate::http::Face;
use crate::lane::Lane;
pub use crate::origin::InvalidOrigin;
use crate::origin::Origins;
use crate::presence::Presence;
use crate::router::Router;
pub use crate::router::{Connector, DocumentChannel, Unreachable, channel, connect};
use crate::socket::Node;

/// What an edge is given by the process that it runs in.
#[derive(Clone)]
pub struct Surroundings {
    /// Brings the deltas.
    pub bus: SharedBus,
    /// Who is where, for every edge that shares it.
    pub presence: Arc<dyn Presence>,
    /// Makes the way to a document node: [`connect`] in a cluster, the server object itself in one process.
    pub connector: Connector,
    /// Where the edge says whether it is ready.
    pub health: Health,
    /// What `/metrics` shows.
    pub metrics: Metrics,
}

/// Why an edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The secret is not one.
    #[error(transparent)]
    Secret(#[from] WeakSecret),
    /// The list of origins is not one.
    #[error("allowed_origins: {0}")]
    Origin(#[from] InvalidOrigin),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; choose another address with `listen`, or end what uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// An edge that listens and does not answer yet.
pub struct Edge {
    config: Config,
    address: SocketAddr,
    listener: TcpListener,
    face: Arc<Face>,
    routes: axum::Router,
    bus: SharedBus,
    health: Health,
    ready: Check,
}

/// Makes an edge and takes its port. Connections wait until it runs.
///
/// # Errors
/// What in the configuration cannot be used, or the port.
pub async fn build(config: Config, surroundings: Surroundings) -> Result<Edge, Error> {
    let Surroundings { bus, presence, connector, health, metrics } = surroundings;
    let verifier = Verifier::hs256(config.secret.expose().as_bytes())?;
    let origins = Origins::parse(&config.allowed_origins, config.allow_loopback_origins)?;
    let router = Arc::new(Router::new(config.router.clone(), config.documents.clone(), connector));
    let fanout = Fanout::new(Arc::clone(&bus), Arc::clone(&router), config.limits.mirrors());
    let lane = Lane::start(Arc::clone(&bus), presence);
    let node = Node::new(&config.limits, verifier, router, fanout, lane);
    let face = Arc::new(Face {
        node: Arc::new(node),
        origins,
        sockets: Arc::new(Semaphore::new(config.limits.connections_max)),
        sockets_max: config.limits.connections_max,
        sessions: TaskTracker::new(),
        leaving: CancellationToken::new(),
    });
    let failed = |source| Error::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let routes = http::routes(Arc::clone(&face)).merge(health.router(metrics));
    let ready = health.check("edge");
    Ok(Edge { config, address, listener, face, routes, bus, health, ready })
}

impl Edge {
    /// Where it listens; with port 0 in the configuration, this is the one that was found.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown begins, then sends the sessions away over [`Config::drain`] and ends when the
    /// last has gone, or with the process.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn run(self, shutdown: Shutdown) -> io::Result<()> {
        let hold = shutdown.hold("edge");
        let router = Arc::clone(&self.face.node.router);
        let follow = {
            let bus = Arc::clone(&self.bus);
            tokio::spawn(async move { router.follow_routes(&bus).await })
        };
        let ended = CancellationToken::new();
        let handshakes = Arc::new(Semaphore::new(self.config.limits.handshakes_max));
        let serve = tokio::spawn(http::serve(self.listener, self.routes, handshakes, ended.clone()));
        self.ready.pass();
        tracing::info!(address = %self.address, "the edge listens");

        shutdown.draining().await;
        self.health.drain();
        self.face.leaving.cancel();
        self.face.sessions.close();
        tracing::info!(sessions = self.face.sessions.len(), "the edge leaves");
        self.face.node.leave(self.config.drain.min(shutdown.grace()));
        tokio::select! {
            () = self.face.sessions.wait() => {}
            () = shutdown.stopping() => {}
        }
        ended.cancel();
        follow.abort();
        drop(hold);
        // Connections that are no sockets end with their answer, or with the process.
        let _ = serve.await;
        Ok(())
    }
}
