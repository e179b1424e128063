//! Where the system under test is, and who we are to it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use manyhands_client::{Client, ClientOptions, Connection, Token, TokenError};
use serde::Serialize;
use url::Url;

/// The secret of `manyhands dev`, which everyone knows.
const DEV_SECRET: &str = "manyhands-dev-secret-known-to-everyone-loopback-only";
/// How long a first connection may take: an edge that is just starting is waited for.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// How long a minted token is good for; another one is minted when it expires.
const TOKEN_TTL: Duration = Duration::from_secs(3600);

/// The flags that say it.
#[derive(Clone, Debug, clap::Args)]
pub struct Access {
    /// Address of an edge, ws://HOST:PORT; repeat for several: writers prefer the first, readers the last,
    /// and everyone goes on to the next when one fails
    #[arg(long = "url", required = true, value_name = "URL")]
    pub urls: Vec<Url>,
    /// Another edge, the same as a second --url
    #[arg(long, value_name = "URL")]
    pub url2: Option<Url>,
    /// Token to use; without one, tokens are minted
    #[arg(long, conflicts_with = "secret_file")]
    pub token: Option<String>,
    /// File with the secret to mint tokens with; without it the secret of `manyhands dev`
    #[arg(long)]
    pub secret_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    workspaces: [&'a str; 1],
    scope: &'a str,
    iat: u64,
    exp: u64,
}

/// Makes clients; cheap to clone.
#[derive(Clone)]
pub struct Connector {
    urls: Vec<Url>,
    token: Token,
}

impl Access {
    /// Checks the flags and reads the secret.
    pub fn connector(&self) -> anyhow::Result<Connector> {
        let token = match (&self.token, &self.secret_file) {
            (Some(token), _) => Token::Fixed(token.clone()),
            (None, Some(path)) => minted(read_secret(path)?),
            (None, None) => minted(DEV_SECRET.to_owned()),
        };
        let urls = self.urls.iter().chain(&self.url2).cloned().collect();
        Ok(Connector { urls, token })
    }
}

impl Connector {
    /// To these edges, under tokens that are signed with this secret.
    #[must_use]
    pub fn new(urls: Vec<Url>, secret: String) -> Connector {
        Connector { urls, token: minted(secret) }
    }

    /// A client that prefers the n-th of the first half of the edges.
    #[must_use]
    pub fn writer(&self, n: usize) -> Client {
        self.client(n % self.urls.len().div_ceil(2))
    }

    /// A client that prefers the n-th from the last of the second half of the edges.
    #[must_use]
    pub fn reader(&self, n: usize) -> Client {
        let half = self.urls.len().div_ceil(2);
        self.client(self.urls.len() - 1 - n % half)
    }

    /// A client that prefers the n-th edge.
    #[must_use]
    pub fn any(&self, n: usize) -> Client {
        self.client(n % self.urls.len())
    }

    /// To the edges of `manyhands dev`, whose secret everyone knows.
    #[must_use]
    pub fn dev(urls: Vec<Url>) -> Connector {
        Connector { urls, token: minted(DEV_SECRET.to_owned()) }
    }

    /// Where the edges are.
    #[must_use]
    pub fn urls(&self) -> &[Url] {
        &self.urls
    }

    /// A token, for who makes connections of its own.
    pub async fn token(&self) -> Result<String, TokenError> {
        match &self.token {
            Token::Fixed(token) => Ok(token.clone()),
            Token::From(ask) => ask().await,
        }
    }

    /// The n-th edge, and a token for it.
    pub async fn address(&self, n: usize) -> Result<(Url, String), TokenError> {
        Ok((self.urls[n % self.urls.len()].clone(), self.token().await?))
    }

    fn client(&self, first: usize) -> Client {
        let mut urls = self.urls.clone();
        urls.rotate_left(first);
        let mut options = ClientOptions::new(urls[0].clone(), self.token.clone());
        options.urls = urls;
        options.name = concat!("loadtest/", env!("CARGO_PKG_VERSION")).to_owned();
        options.read_buffer_bytes = 4 << 10;
        options.outbox_edits_max = 1 << 20;
        Client::connect(options)
    }
}

/// Waits until a client is connected. A load test does not wait for ever: who starts one wants to know that the
/// address is wrong.
pub(crate) async fn online(client: &Client) -> anyhow::Result<()> {
    match tokio::time::timeout(CONNECT_WITHIN, client.online()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(stop)) => bail!("cannot connect: {}\nfix: {}", stop.message, stop.fix),
        Err(_) => match &*client.connection().borrow() {
            Connection::Offline { error: Some(error), .. } => bail!("{error}\nfix: {}", error.fix()),
            _ => bail!("there is no connection after {CONNECT_WITHIN:?}\nfix: check that the server runs"),
        },
    }
}

/// The secret in a file, without the line end that editors add.
pub fn read_secret(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the secret from {}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn minted(secret: String) -> Token {
    Token::from_fn(move || {
        let token = mint(&secret).map_err(|error| TokenError(format!("{error:#}")));
        async move { token }
    })
}

fn mint(secret: &str) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = Claims {
        sub: "loadtest",
        workspaces: ["*"],
        scope: "read write",
        iat: now,
        exp: now + TOKEN_TTL.as_secs(),
    };
    let key = EncodingKey::from_secret(secret.as_bytes());
    Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}
