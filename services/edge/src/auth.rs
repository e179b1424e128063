//! Who may open a socket: a JSON Web Token becomes a grant, or a reason why not.
//!
//! The algorithm is part of the verifier, never of the token: a token that names another one is refused
//! before any key touches it. A token may arrive by three roads, and by none of them is it echoed or logged.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, Uri, header};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use manyhands_proto::{Code, DocumentName, JSON_EXT_SUBPROTOCOL, JSON_SUBPROTOCOL, SUBPROTOCOL};
use manyhands_session::{Grant, Scope, Scopes, Workspaces};
use serde::Deserialize;

/// Shortest HS256 secret, in bytes: what is shorter than the hash is weaker than the hash.
pub const SECRET_BYTES_MIN: usize = 32;
/// Longest token that is looked at, in bytes.
pub(crate) const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How far the clocks of the minter and of this edge may differ, in milliseconds.
pub(crate) const LEEWAY_MS: u64 = 5_000;
/// What a subprotocol that carries a token starts with; the token follows as base64url without padding.
pub const TOKEN_SUBPROTOCOL: &str = "base64url.bearer.authorization.manyhands.";

/// Verifies tokens of one issuer under one algorithm.
pub struct Verifier {
    key: DecodingKey,
    validation: Validation,
    algorithm: &'static str,
}

/// The secret is too short to sign with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token secret has {0} bytes and needs at least {SECRET_BYTES_MIN}")]
pub struct WeakSecret(pub usize);

impl Verifier {
    /// Accepts HS256 under this secret, and nothing else.
    ///
    /// # Errors
    /// If the secret is shorter than [`SECRET_BYTES_MIN`].
    pub fn hs256(secret: &[u8]) -> Result<Verifier, WeakSecret> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(WeakSecret(secret.len()));
        }
        let mut validation = Validation::new(Algorithm::HS256);
        // Times are checked below, against the `now` that the caller gives.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        Ok(Verifier { key: DecodingKey::from_secret(secret), validation, algorithm: "HS256" })
    }

    /// What a token grants at `now_ms` (milliseconds since the Unix epoch).
    ///
    /// # Errors
    /// The first reason found; nothing in it tells the secret or repeats the token.
    pub fn verify(&self, token: &str, now_ms: u64) -> Result<Grant, Denied> {
        if token.is_empty() {
            return Err(Denied::Missing);
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Denied::TooLong);
        }
        self.check_header(token)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| Denied::of(&error))?
            .claims;
        claims.into_grant(now_ms)
    }

    /// Looks at the header only to say why it is refused: the key and the algorithm are fixed.
    fn check_header(&self, token: &str) -> Result<(), Denied> {
        let encoded = token.split('.').next().unwrap_or_default();
        let bytes =
            URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Denied::Malformed("its header is not base64url"))?;
        let header: Header = serde_json::from_slice(&bytes)
            .map_err(|_| Denied::Malformed("its header is not a JWT header"))?;
        if header.alg != self.algorithm {
            return Err(Denied::Algorithm { expected: self.algorithm });
        }
        if header.crit.is_some() {
            return Err(Denied::Malformed("it names critical extensions, and none is known here"));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({})", self.algorithm)
    }
}

/// Why a token opens nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// None was sent.
    #[error("there is no token in the Authorization header, in the subprotocols or in ?token=")]
    Missing,
    /// It is longer than `TOKEN_BYTES_MAX`.
    #[error("the token is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// It is not a token.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// It is signed with another algorithm, or not signed.
    #[error("the token is not signed with {expected}, the only algorithm that is accepted here")]
    Algorithm {
        /// The only one that is accepted.
        expected: &'static str,
    },
    /// Its signature is not ours.
    #[error("the token's signature does not verify")]
    Signature,
    /// Its claims are not of the form that is documented.
    #[error("the token's claims are not usable: {0}")]
    Claims(String),
    /// It was good once.
    #[error("the token expired {seconds} s ago")]
    Expired {
        /// How long ago.
        seconds: u64,
    },
    /// It will be good later.
    #[error("the token is not valid yet")]
    NotYet,
    /// It is good, but not here.
    #[error("the token is not for this workspace")]
    Workspace,
    /// It is good, but grants nothing.
    #[error("the token has none of the scopes read, write and admin")]
    Scope,
}

impl Denied {
    /// The code that every face answers with.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Denied::Expired { .. } => Code::TokenExpired,
            Denied::Workspace | Denied::Scope => Code::Forbidden,
            _ => Code::Unauthenticated,
        }
    }

    fn of(error: &jsonwebtoken::errors::Error) -> Denied {
        use jsonwebtoken::errors::ErrorKind;
        match error.kind() {
            ErrorKind::InvalidSignature => Denied::Signature,
            ErrorKind::InvalidToken => Denied::Malformed("it has not three parts"),
            ErrorKind::InvalidAlgorithm => Denied::Algorithm { expected: "HS256" },
            // The signature has verified by the time the claims are read, so that this tells the owner of
            // the secret what to mend, and nobody else.
            ErrorKind::Json(error) => Denied::Claims(error.to_string()),
            _ => Denied::Malformed("a part of it is not base64url"),
        }
    }
}

/// Whether the grant opens a socket here at all: for `workspace`, or for any when the address names none.
/// What each document allows is checked again when it is opened.
///
/// # Errors
/// [`Denied::Scope`] or [`Denied::Workspace`].
pub(crate) fn admits(grant: &Grant, workspace: Option<&DocumentName>) -> Result<(), Denied> {
    if !grant.scopes.contains(Scope::Read) {
        return Err(Denied::Scope);
    }
    match workspace {
        Some(workspace) if !grant.allows(workspace, Scope::Read) => Err(Denied::Workspace),
        _ => Ok(()),
    }
}

/// The subprotocols that a client offers, and the token that it may have put among them.
#[derive(Default)]
pub(crate) struct Offer {
    /// The first that is spoken here.
    pub ours: Option<&'static str>,
    /// Something other than a token is among them.
    pub speaks_any: bool,
    token: Option<String>,
}

impl Offer {
    /// Reads the `Sec-WebSocket-Protocol` headers.
    ///
    /// # Errors
    /// If a token is there and is not base64url.
    pub(crate) fn read(headers: &HeaderMap) -> Result<Offer, Denied> {
        let mut offer = Offer::default();
        for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
            let Ok(list) = value.to_str() else {
                return Err(Denied::Malformed("the subprotocols are not ASCII"));
            };
            for protocol in list.split(',').map(str::trim).filter(|protocol| !protocol.is_empty()) {
                if let Some(encoded) = protocol.strip_prefix(TOKEN_SUBPROTOCOL) {
                    offer.token = Some(decode_token(encoded)?);
                } else {
                    offer.speaks_any = true;
                    let spoken = [SUBPROTOCOL, JSON_SUBPROTOCOL, JSON_EXT_SUBPROTOCOL];
                    offer.ours = offer.ours.or(spoken.into_iter().find(|spoken| *spoken == protocol));
                }
            }
        }
        Ok(offer)
    }
}

/// The token of a request: from the `Authorization` header, else from the subprotocols, else from `?token=`.
///
/// # Errors
/// [`Denied::Missing`] when no road has one, or what is wrong with the first that is found.
pub(crate) fn token_of(headers: &HeaderMap, offer: &Offer, uri: &Uri) -> Result<String, Denied> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().map_err(|_| Denied::Malformed("the Authorization header is not ASCII"))?;
        return match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim().to_owned()),
            _ => Err(Denied::Malformed("the Authorization header is not \"Bearer <token>\"")),
        };
    }
    if let Some(token) = &offer.token {
        return Ok(token.clone());
    }
    // A token consists of characters that a query carries as they are: nothing needs to be decoded.
    let query = uri.query().unwrap_or_default();
    let token = query.split('&').find_map(|pair| pair.strip_prefix("token="));
    token.map(str::to_owned).ok_or(Denied::Missing)
}

/// The address of a request as it may stand in a log: a query may hold a token, so none is shown.
#[must_use]
pub(crate) fn loggable(uri: &Uri) -> String {
    match uri.query() {
        Some(_) => format!("{}?***", uri.path()),
        None => uri.path().to_owned(),
    }
}

fn decode_token(encoded: &str) -> Result<String, Denied> {
    if encoded.len() > TOKEN_BYTES_MAX.div_ceil(3) * 4 {
        return Err(Denied::TooLong);
    }
    let bytes = URL_SAFE_NO_PAD
        .decode(encoded.trim_end_matches('='))
        .map_err(|_| Denied::Malformed("the token in the subprotocol is not base64url"))?;
    String::from_utf8(bytes).map_err(|_| Denied::Malformed("the token in the subprotocol is not text"))
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    crit: Option<serde::de::IgnoredAny>,
}

/// The claims that are read; others are ignored.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    nbf: Option<f64>,
    #[serde(alias = "workspaces")]
    workspace: Names,
    #[serde(alias = "scopes")]
    scope: Names,
}

/// A text, or a list of texts.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum Names {
    One(String),
    Many(Vec<String>),
}

impl Claims {
    fn into_grant(self, now_ms: u64) -> Result<Grant, Denied> {
        let expires_at_ms = milliseconds(self.exp)?.saturating_add(LEEWAY_MS);
        if now_ms >= expires_at_ms {
            return Err(Denied::Expired { seconds: (now_ms - expires_at_ms + LEEWAY_MS) / 1000 });
        }
        if let Some(nbf) = self.nbf
            && now_ms.saturating_add(LEEWAY_MS) < milliseconds(nbf)?
        {
            return Err(Denied::NotYet);
        }
        if self.sub.is_empty() || self.sub.len() > SUBJECT_BYTES_MAX {
            return Err(Denied::Claims(format!("sub has 1 to {SUBJECT_BYTES_MAX} bytes")));
        }
        let scopes = match &self.scope {
            Names::One(text) => Scopes::parse(text.split(' ')),
            Names::Many(list) => Scopes::parse(list.iter().map(String::as_str)),
        };
        let names = match self.workspace {
            Names::One(name) => vec![name],
            Names::Many(names) => names,
        };
        Ok(Grant { subject: self.sub, scopes, workspaces: workspaces(&names)?, expires_at_ms })
    }
}

/// Longest `sub`, in bytes.
const SUBJECT_BYTES_MAX: usize = 256;

fn milliseconds(seconds: f64) -> Result<u64, Denied> {
    // Up to the year 9999; beyond it, somebody has mistaken milliseconds for seconds.
    if !(0.0..=253_402_300_799.0).contains(&seconds) {
        return Err(Denied::Claims("exp and nbf are seconds since 1970".to_owned()));
    }
    Ok((seconds * 1000.0) as u64)
}

fn workspaces(names: &[String]) -> Result<Workspaces, Denied> {
    if names.iter().any(|name| name == "*") {
        return Ok(Workspaces::Any);
    }
    let parsed: Result<_, _> = names.iter().map(|name| name.parse::<DocumentName>()).collect();
    match parsed {
        Ok(names) => Ok(Workspaces::Names(names)),
        Err(error) => Err(Denied::Claims(error.to_string())),
    }
}

#[cfg(test)]
mod tests;
