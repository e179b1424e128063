//! What the HTTP face says when it says no: RFC 9457 problems, each with a code, and with what to do about it.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use manyhands_proto::{Code, Retry};
use serde::Serialize;

use crate::auth::Denied;

/// A refusal on its way to an HTTP client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    code: Code,
    status: u16,
    detail: String,
    fix: String,
    retry_after_s: Option<u64>,
}

impl Problem {
    /// What the table says about `code`, and what happened here.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Problem {
        let retry_after_s = (code.retry() == Retry::Later).then_some(1);
        Problem {
            code,
            status: code.http_status(),
            detail: detail.into(),
            fix: code.fix().to_owned(),
            retry_after_s,
        }
    }

    /// With another status than the table's.
    #[must_use]
    pub(crate) fn status(self, status: StatusCode) -> Problem {
        Problem { status: status.as_u16(), ..self }
    }

    /// With a better advice than the table's.
    #[must_use]
    pub(crate) fn fix(self, fix: impl Into<String>) -> Problem {
        Problem { fix: fix.into(), ..self }
    }

    /// With the time after which the same may be tried again.
    #[must_use]
    pub(crate) fn retry_after(self, seconds: u64) -> Problem {
        Problem { retry_after_s: Some(seconds), ..self }
    }

    /// The code that it says.
    #[must_use]
    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Problem {
        let fix = match &denied {
            Denied::Algorithm { expected } => Some(format!("Sign the token with {expected}.")),
            Denied::Signature => {
                Some("Sign the token with the secret that this server is configured with.".to_owned())
            }
            Denied::Claims(_) => Some(
                "Claims are sub, exp (seconds), workspace or workspaces (a name, a list or \"*\"), and scope or \
                 scopes (read, write, admin)."
                    .to_owned(),
            ),
            _ => None,
        };
        let problem = Problem::new(denied.code(), format!("{denied}."));
        match fix {
            Some(fix) => problem.fix(fix),
            None => problem,
        }
    }
}

/// The members of the document. `type` names the code in the server's own list of errors.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: u32,
    slug: &'a str,
    fix: &'a str,
    retryable: bool,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            kind: format!("urn:manyhands:error:{}", self.code.slug()),
            title: self.code.message(),
            status: self.status,
            detail: &self.detail,
            code: self.code.number(),
            slug: self.code.slug(),
            fix: &self.fix,
            retryable: self.code.retry() != Retry::No,
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, json).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::UPGRADE_REQUIRED {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        response
    }
}
