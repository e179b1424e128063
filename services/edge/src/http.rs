//! The HTTP face: every check of a handshake before it is answered with 101, and the reason when it is not.
//!
//! A browser cannot see why a handshake failed, so a plain GET of the same address says what a handshake
//! would be answered.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use manyhands_proto::{Code, DocumentName, JSON_SUBPROTOCOL, SUBPROTOCOL};
use manyhands_session::Grant;
use manyhands_session::json::Choice;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::auth::{self, Offer};
use crate::errors;
use crate::origin::Origins;
use crate::problem::Problem;
use crate::socket::{self, Address, Admitted, Node};
use crate::users;

/// Headers of a request: how many, in how many bytes, and in what time they must have come.
const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 * 1024;
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// What the handlers share.
pub(crate) struct Face {
    pub(crate) node: Arc<Node>,
    pub(crate) origins: Origins,
    /// One permit for each socket.
    pub(crate) sockets: Arc<Semaphore>,
    pub(crate) sockets_max: usize,
    pub(crate) sessions: TaskTracker,
    /// Cancelled when no socket is taken any more.
    pub(crate) leaving: CancellationToken,
}

/// The routes of the edge, without those that every process has.
pub(crate) fn routes(face: Arc<Face>) -> Router {
    Router::new()
        .route("/v1/sync", any(sync))
        .route("/v1/sync/{workspace}", any(sync))
        .route("/v1/presence/{workspace}", any(users::list))
        .route("/v1/errors", get(errors::list))
        .route("/v1/errors/{code}", get(errors::one))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&face), for_pages))
        .fallback(|request: Request| async move {
            Problem::new(Code::NotFound, format!("There is nothing at {}.", request.uri().path()))
        })
        .with_state(face)
}

/// Lets the pages on the list read the answer, also when it is no.
async fn for_pages(State(face): State<Arc<Face>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = if request.method() == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        next.run(request).await
    };
    if let Some(origin) = origin.filter(|origin| face.origins.allow(Some(origin))) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

async fn sync(State(face): State<Arc<Face>>, mut request: Request) -> Response {
    face.handshake(&mut request).unwrap_or_else(|problem| {
        metrics::counter!("manyhands_edge_handshakes_refused_total", "code" => problem.code().slug())
            .increment(1);
        tracing::debug!(address = auth::loggable(request.uri()), code = %problem.code(), "no socket");
        let mut response = problem.into_response();
        if wants_upgrade(request.headers()) {
            // Who asked for a socket has nothing else to ask on this connection.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    })
}

impl Face {
    /// Answers with 101 and starts the session, or says why not.
    fn handshake(&self, request: &mut Request) -> Result<Response, Problem> {
        let workspace = workspace_of(request.uri().path(), "/v1/sync/")?;
        let (grant, address, protocol) = self.check(request, workspace)?;
        let accept = accept_key(request)?;
        let permit = self.socket_permit()?;

        let admitted = Admitted { grant, address, permit };
        let upgrade = hyper::upgrade::on(request);
        let node = Arc::clone(&self.node);
        self.sessions.spawn(async move {
            match tokio::time::timeout(HANDSHAKE_MAX, upgrade).await {
                Ok(Ok(stream)) => socket::serve(node, TokioIo::new(stream), admitted).await,
                // The client left between our 101 and its first byte: nobody is there to be told.
                Ok(Err(error)) => tracing::debug!(%error, "the handshake was not completed"),
                Err(_) => tracing::debug!("the handshake was not completed in time"),
            }
        });

        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        if let Some(protocol) = protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        Ok(response)
    }

    /// Everything that can be known from the request, in the order in which a client can mend it. With whose grant,
    /// for what, and in which subprotocol the socket is.
    fn check(
        &self,
        request: &Request,
        workspace: Option<DocumentName>,
    ) -> Result<(Grant, Address, Option<&'static str>), Problem> {
        let headers = request.headers();
        if request.method() != Method::GET {
            return Err(Problem::new(Code::Malformed, "Only GET is answered here.")
                .status(StatusCode::METHOD_NOT_ALLOWED)
                .fix("Send a WebSocket handshake, or a GET to see what it would be answered."));
        }
        if self.leaving.is_cancelled() {
            return Err(Problem::new(Code::ShuttingDown, "This edge takes no connections any more."));
        }
        self.check_origin(request)?;
        let offer = Offer::read(headers)?;
        let token = auth::token_of(headers, &offer, request.uri())?;
        let grant = self.node.verifier.verify(&token, self.node.wall_ms())?;
        auth::admits(&grant, workspace.as_ref())?;

        let upgrade = wants_upgrade(headers);
        if offer.ours.is_none() && offer.speaks_any {
            return Err(Problem::new(
                Code::VersionUnsupported,
                "No subprotocol that this edge speaks is offered.",
            )
            .fix(format!(
                "Offer the subprotocol {SUBPROTOCOL}, or {JSON_SUBPROTOCOL}, or none: new WebSocket(url, [\"{SUBPROTOCOL}\"])."
            )));
        }
        let binary = offer.ours == Some(SUBPROTOCOL);
        let address = match workspace {
            Some(workspace) if !binary => {
                Address::Json(workspace, choice_of(request.uri(), offer.ours.is_some())?)
            }
            None if !binary && upgrade => {
                return Err(Problem::new(
                    Code::VersionUnsupported,
                    "The JSON dialect is for one workspace, and this address names none.",
                )
                .fix(format!("Connect to /v1/sync/{{workspace}}, or offer the subprotocol {SUBPROTOCOL}.")));
            }
            workspace => Address::Binary(workspace),
        };
        if !upgrade {
            return Err(Problem::new(
                Code::UpgradeRequired,
                "A handshake with this request would be accepted.",
            ));
        }
        Ok((grant, address, offer.ours))
    }

    /// Whether the page that asks may be answered, if it is a page.
    pub(crate) fn check_origin(&self, request: &Request) -> Result<(), Problem> {
        if self.origins.allow(request.headers().get(header::ORIGIN)) {
            return Ok(());
        }
        Err(Problem::new(Code::OriginRefused, "The Origin of this request is not on the list."))
    }

    fn socket_permit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.sockets).try_acquire_owned().map_err(|_| {
            let detail =
                format!("This edge holds {} connections, which is all that it may.", self.sockets_max);
            Problem::new(Code::Overloaded, detail)
                .status(StatusCode::SERVICE_UNAVAILABLE)
                .fix("Reconnect after the stated delay; run more edges if this lasts.")
                .retry_after(5)
        })
    }
}

/// The workspace as the path spells it; nothing is decoded, so that a document has one address.
pub(crate) fn workspace_of(path: &str, prefix: &str) -> Result<Option<DocumentName>, Problem> {
    match path.strip_prefix(prefix) {
        None => Ok(None),
        Some(name) => name.parse().map(Some).map_err(|error: manyhands_proto::InvalidDocumentName| {
            Problem::new(Code::InvalidName, format!("{error}."))
        }),
    }
}

/// What a JSON client asks for in its address: `?strategy=` and `?heads=`.
fn choice_of(uri: &http::Uri, extended: bool) -> Result<Choice, Problem> {
    let mut choice = Choice { extended, ..Choice::default() };
    for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match &*name {
            "strategy" => {
                let strategy = value.parse().map_err(|error: manyhands_crdt::UnknownStrategy| {
                    Problem::new(Code::Malformed, format!("{error}.")).fix("Ask for crdt, lww or server.")
                })?;
                choice.strategy = Some(strategy);
            }
            // One that is none is as one that is not known: the client gets everything.
            "heads" => {
                choice.heads = value.split(',').map(|text| hash_of(text).unwrap_or_default()).collect()
            }
            _ => {}
        }
    }
    Ok(choice)
}

fn hash_of(text: &str) -> Option<manyhands_crdt::Hash> {
    let mut hash = manyhands_crdt::Hash::default();
    if text.len() != 2 * hash.len() || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    let lists = |name, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
    };
    lists(header::CONNECTION, "upgrade") && lists(header::UPGRADE, "websocket")
}

fn accept_key(request: &Request) -> Result<HeaderValue, Problem> {
    let headers = request.headers();
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Problem::new(Code::UpgradeRequired, "This edge speaks version 13 of WebSocket only."));
    }
    headers
        .get(header::SEC_WEBSOCKET_KEY)
        .filter(|key| key.len() == 24)
        .and_then(|key| HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok())
        .ok_or_else(|| Problem::new(Code::Malformed, "The handshake has no usable Sec-WebSocket-Key."))
}

/// Takes connections until `ended`, then closes those that are no sockets. An edge that leaves still answers
/// probes, and tells clients that it leaves.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Router,
    handshakes: Arc<Semaphore>,
    ended: CancellationToken,
) {
    let connections = TaskTracker::new();
    loop {
        // When too many are in their handshake, further ones wait in the kernel's queue.
        let accepted = async {
            let permit = Arc::clone(&handshakes).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            biased;
            () = ended.cancelled() => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, routes.clone(), ended.clone(), permit));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Out of file handles, most likely: those that close will mend it.
                tracing::warn!(%error, "no connection can be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(
    stream: TcpStream,
    routes: Router,
    ended: CancellationToken,
    permit: Result<OwnedSemaphorePermit, AcquireError>,
) {
    // Free again as soon as the connection is a socket, which has a permit of its own.
    let _permit = permit;
    // A frame is written whole and must not wait for the next one.
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        routes.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut goodbye = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection ended before its time");
                }
                return;
            }
            () = ended.cancelled(), if !goodbye => {
                connection.as_mut().graceful_shutdown();
                goodbye = true;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
