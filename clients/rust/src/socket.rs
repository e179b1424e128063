//! The WebSocket: the handshake with its refusals, and reading and writing at once.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink as _, Stream as _};
use http::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use manyhands_proto::{Code, SUBPROTOCOL};
use rustls::{ClientConfig, RootCertStore};
use std::pin::Pin;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, http as ws_http};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};
use url::Url;

use crate::options::{ClientOptions, TokenError};

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The token function failed.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Nobody answered, or not as a WebSocket server does.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The server answered and refused.
    #[error("{url} refused the connection: {message}")]
    Refused {
        /// Where.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The refusal from the table of errors, if the server named one.
        code: Option<Code>,
        /// What happened, in the server's words.
        message: String,
        /// What to do about it.
        fix: String,
        /// When to try again, if the server said.
        retry_after: Option<Duration>,
    },
}

impl ConnectError {
    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> &str {
        match self {
            ConnectError::Token(_) => "Make the token function answer.",
            ConnectError::Unreachable { .. } => {
                "Check the address and that the server runs; the client keeps trying."
            }
            ConnectError::Refused { fix, .. } => fix,
        }
    }
}

/// What one client moved over its sockets, and how many it opened.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) connections: AtomicU64,
}

/// What came out of a socket.
#[derive(Debug)]
pub(crate) enum Incoming {
    Frame(Bytes),
    /// A sign of life without content.
    Heard,
    Closed {
        code: Option<u16>,
        reason: String,
    },
}

/// An open socket and the frames that wait to be written to it. What waits is bounded by the session's
/// limits on what may be in flight.
pub(crate) struct Socket {
    stream: Pin<Box<WebSocketStream<MaybeTlsStream<TcpStream>>>>,
    outgoing: VecDeque<Bytes>,
}

impl Socket {
    /// Opens a socket. The token travels in the `Authorization` header, never in the URL.
    pub(crate) async fn connect(
        url: &Url,
        token: &str,
        options: &ClientOptions,
    ) -> Result<Socket, ConnectError> {
        let stream = handshake(&address(url), token, Some(SUBPROTOCOL), options).await?;
        Ok(Socket { stream: Box::pin(stream), outgoing: VecDeque::new() })
    }

    pub(crate) fn send(&mut self, frame: Bytes) {
        self.outgoing.push_back(frame);
    }

    /// Writes what waits and gives the next thing that arrives. May be dropped and called again at any
    /// time: nothing is lost, neither way.
    pub(crate) async fn turn(&mut self, traffic: &Traffic) -> Incoming {
        poll_fn(|cx| {
            if let Err(error) = write(&mut self.stream, &mut self.outgoing, traffic, cx) {
                return Poll::Ready(closed(None, error.to_string()));
            }
            let message = match self.stream.as_mut().poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(closed(None, "the connection ended".to_owned())),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(closed(None, error.to_string())),
                Poll::Ready(Some(Ok(message))) => message,
            };
            traffic.bytes_received.fetch_add(message.len() as u64, Relaxed);
            Poll::Ready(match message {
                Message::Binary(frame) => Incoming::Frame(frame),
                Message::Close(Some(frame)) => closed(Some(frame.code.into()), frame.reason.to_string()),
                Message::Close(None) => closed(None, "the server closed the connection".to_owned()),
                // The answer to a ping waits in the socket's own buffer; the next turn flushes it.
                _ => Incoming::Heard,
            })
        })
        .await
    }

    /// Writes what waits and says goodbye, within a limit.
    pub(crate) async fn close(mut self, code: u16, reason: String, traffic: &Traffic, within: Duration) {
        let goodbye = async {
            poll_fn(|cx| match write(&mut self.stream, &mut self.outgoing, traffic, cx) {
                Ok(()) if !self.outgoing.is_empty() => Poll::Pending,
                _ => Poll::Ready(()),
            })
            .await;
            let frame = CloseFrame { code: code.into(), reason: reason.into() };
            // The connection ends either way.
            let _ = self.stream.close(Some(frame)).await;
        };
        let _ = tokio::time::timeout(within, goodbye).await;
    }
}

/// A WebSocket to this very address.
pub(crate) async fn handshake(
    url: &Url,
    token: &str,
    protocol: Option<&'static str>,
    options: &ClientOptions,
) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, ConnectError> {
    let unreachable = |reason: String| ConnectError::Unreachable { url: url.to_string(), reason };
    let mut request = url.as_str().into_client_request().map_err(|error| unreachable(error.to_string()))?;
    let bearer = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| TokenError("the token has characters that a header cannot carry".to_owned()))?;
    request.headers_mut().insert(AUTHORIZATION, bearer);
    if let Some(protocol) = protocol {
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let config = WebSocketConfig::default()
        .read_buffer_size(options.read_buffer_bytes)
        .write_buffer_size(0)
        .max_write_buffer_size(options.message_bytes_max + (1 << 20))
        .max_message_size(Some(options.message_bytes_max))
        .max_frame_size(Some(options.message_bytes_max));
    let tls = (url.scheme() == "wss").then(|| Connector::Rustls(tls()));
    let handshake = tokio_tungstenite::connect_async_tls_with_config(request, Some(config), true, tls);
    match tokio::time::timeout(options.connect_timeout, handshake).await {
        Ok(Ok((stream, _))) => Ok(stream),
        Ok(Err(WsError::Http(response))) => Err(refusal(url, &response)),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable(format!("no answer within {:?}", options.connect_timeout))),
    }
}

fn closed(code: Option<u16>, reason: String) -> Incoming {
    Incoming::Closed { code, reason }
}

fn write(
    stream: &mut Pin<Box<WebSocketStream<MaybeTlsStream<TcpStream>>>>,
    outgoing: &mut VecDeque<Bytes>,
    traffic: &Traffic,
    cx: &mut std::task::Context<'_>,
) -> Result<(), WsError> {
    while !outgoing.is_empty() {
        match stream.as_mut().poll_ready(cx)? {
            Poll::Pending => return Ok(()),
            Poll::Ready(()) => {
                if let Some(frame) = outgoing.pop_front() {
                    traffic.bytes_sent.fetch_add(frame.len() as u64, Relaxed);
                    stream.as_mut().start_send(Message::Binary(frame))?;
                }
            }
        }
    }
    match stream.as_mut().poll_flush(cx) {
        Poll::Ready(Err(error)) => Err(error),
        _ => Ok(()),
    }
}

/// TLS with the roots that browsers trust, the same for all connections of the process.
fn tls() -> Arc<ClientConfig> {
    static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has what TLS 1.2 and 1.3 need")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    });
    TLS.clone()
}

/// The address of the sync endpoint: a URL without a path gets the standard one.
fn address(url: &Url) -> Url {
    let mut url = url.clone();
    if matches!(url.path(), "" | "/") {
        url.set_path("/v1/sync");
    }
    url
}

/// What a problem document (RFC 9457) says.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Problem {
    title: String,
    detail: String,
    code: serde_json::Value,
    fix: String,
}

/// Reads the reason out of a refused handshake. A body that is no problem document leaves the status.
fn refusal(url: &Url, response: &ws_http::Response<Option<Vec<u8>>>) -> ConnectError {
    let status = response.status().as_u16();
    let body = response.body().as_deref().unwrap_or_default();
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    let named = match &problem.code {
        serde_json::Value::Number(number) => {
            number.as_u64().and_then(|number| u32::try_from(number).ok()).and_then(Code::from_number)
        }
        serde_json::Value::String(slug) => {
            manyhands_proto::CODES.iter().copied().find(|code| code.slug() == slug)
        }
        _ => None,
    };
    let code = named.or(match status {
        401 => Some(Code::Unauthenticated),
        403 => Some(Code::Forbidden),
        429 => Some(Code::Overloaded),
        503 => Some(Code::Unavailable),
        _ => None,
    });
    let or = |text: String, other: Option<&str>| match (text.is_empty(), other) {
        (true, Some(other)) => other.to_owned(),
        (true, None) => format!("HTTP status {status}"),
        (false, _) => text,
    };
    ConnectError::Refused {
        url: url.to_string(),
        status,
        code,
        message: if problem.detail.is_empty() {
            or(problem.title, code.map(Code::message))
        } else {
            problem.detail
        },
        fix: or(problem.fix, code.map(Code::fix)),
        retry_after: response
            .headers()
            .get("retry-after")
            .and_then(|seconds| seconds.to_str().ok()?.parse().ok())
            .map(Duration::from_secs),
    }
}
