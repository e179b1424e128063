//! What a client is told when it is made.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::storage::Storage;

/// How to reach the service and how much to keep.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Where the service listens: `ws://host:port` or `wss://host`. With several, the next is tried when
    /// one fails. A URL without a path gets `/v1/sync`.
    pub urls: Vec<Url>,
    /// Who this client is.
    pub token: Token,
    /// Where edits are kept until the server has them. Without it they end with the process.
    pub storage: Option<Storage>,
    /// Name and version of the application, for the server's logs.
    pub name: String,
    /// Most that is kept of edits that the server has not acknowledged, in edits and in bytes, for each
    /// workspace. When it is full, an edit fails with [`EditError::OutboxFull`](crate::EditError).
    pub outbox_edits_max: usize,
    /// See [`ClientOptions::outbox_edits_max`].
    pub outbox_bytes_max: usize,
    /// Updates that an observer may be behind before it is told to read the text instead.
    pub observer_lag_max: usize,
    /// A connection attempt that takes longer has failed.
    pub connect_timeout: Duration,
    /// Largest message that is accepted from the server, in bytes.
    pub message_bytes_max: usize,
    /// Bytes of the socket's read buffer. Small ones let one process hold thousands of clients.
    pub read_buffer_bytes: usize,
}

impl ClientOptions {
    /// One server, and the defaults for everything else.
    #[must_use]
    pub fn new(url: Url, token: impl Into<Token>) -> ClientOptions {
        ClientOptions {
            urls: vec![url],
            token: token.into(),
            storage: None,
            name: concat!("manyhands-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            outbox_edits_max: 100_000,
            outbox_bytes_max: 64 << 20,
            observer_lag_max: 1024,
            connect_timeout: Duration::from_secs(10),
            message_bytes_max: 8 << 20,
            read_buffer_bytes: 16 << 10,
        }
    }

    /// Keeps edits on this device until the server has them. A storage is for one client: a second one with
    /// the same keeps its edits in memory.
    #[must_use]
    pub fn storage(mut self, storage: Storage) -> ClientOptions {
        self.storage = Some(storage);
        self
    }

    /// Another server to try when the ones before it fail.
    #[must_use]
    pub fn or_url(mut self, url: Url) -> ClientOptions {
        self.urls.push(url);
        self
    }
}

type TokenFuture = Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send>>;

/// Where a client's token comes from.
#[derive(Clone)]
pub enum Token {
    /// Always this one. When it expires the client stops.
    Fixed(String),
    /// Asked for before the first connection, when the old token is about to expire and when the server
    /// refuses it.
    From(Arc<dyn Fn() -> TokenFuture + Send + Sync>),
}

/// No token could be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no token: {0}")]
pub struct TokenError(pub String);

impl Token {
    /// A token that is asked of the application each time it is needed.
    pub fn from_fn<F, Answer>(ask: F) -> Token
    where
        F: Fn() -> Answer + Send + Sync + 'static,
        Answer: Future<Output = Result<String, TokenError>> + Send + 'static,
    {
        Token::From(Arc::new(move || Box::pin(ask())))
    }

    pub(crate) async fn get(&self) -> Result<String, TokenError> {
        match self {
            Token::Fixed(token) => Ok(token.clone()),
            Token::From(ask) => ask().await,
        }
    }

    /// Asking again can bring another token.
    pub(crate) fn is_renewable(&self) -> bool {
        matches!(self, Token::From(_))
    }
}

impl From<String> for Token {
    fn from(token: String) -> Token {
        Token::Fixed(token)
    }
}

impl From<&str> for Token {
    fn from(token: &str) -> Token {
        Token::Fixed(token.to_owned())
    }
}

/// Never shows the token itself.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Token::Fixed(_) => "Token::Fixed(…)",
            Token::From(_) => "Token::From(…)",
        })
    }
}
