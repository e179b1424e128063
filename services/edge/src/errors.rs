//! The table of errors, for people and programs that met one: `/v1/errors`, and `/v1/errors/{code}` by its slug or
//! by its number.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use manyhands_proto::{CODES, Code, Retry};
use manyhands_session::json;
use serde::Serialize;

use crate::problem::Problem;

/// One row.
#[derive(Serialize)]
struct Row {
    code: u32,
    slug: &'static str,
    message: &'static str,
    fix: &'static str,
    /// `later`, `after_resync` or `no`.
    retry: &'static str,
    http: u16,
    /// The close code of the binary protocol, for errors that end a session there.
    #[serde(skip_serializing_if = "Option::is_none")]
    close: Option<u16>,
    /// What the JSON dialect says: the code of its `error` frame, and the close code if it ends the session.
    json: JsonRow,
}

#[derive(Serialize)]
struct JsonRow {
    code: u16,
    close: u16,
}

impl Row {
    fn of(code: Code) -> Row {
        Row {
            code: code.number(),
            slug: code.slug(),
            message: code.message(),
            fix: code.fix(),
            retry: match code.retry() {
                Retry::Later => "later",
                Retry::AfterResync => "after_resync",
                Retry::No => "no",
            },
            http: code.http_status(),
            close: code.close(),
            json: JsonRow { code: json::status(code), close: json::close_code(code) },
        }
    }
}

pub(crate) async fn list() -> Response {
    #[derive(Serialize)]
    struct Table {
        errors: Vec<Row>,
    }
    answer(&Table { errors: CODES.iter().map(|code| Row::of(*code)).collect() })
}

pub(crate) async fn one(Path(name): Path<String>) -> Response {
    let found = CODES.iter().find(|code| code.slug() == name || code.number().to_string() == name);
    match found {
        Some(code) => answer(&Row::of(*code)),
        None => Problem::new(Code::NotFound, "There is no error of that name or number.")
            .fix("Look for it in the whole table at /v1/errors.")
            .into_response(),
    }
}

fn answer(body: &impl Serialize) -> Response {
    let json = serde_json::to_vec(body).unwrap_or_default();
    let mut response = json.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // The table changes with the program only.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    response
}
