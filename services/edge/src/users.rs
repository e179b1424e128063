//! Who is in a workspace, for those who ask once: `GET /v1/presence/{workspace}`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, StatusCode, header};
use manyhands_proto::{Code, DocumentName, v1};
use serde::{Deserialize, Serialize};

use crate::auth::{self, Offer};
use crate::http::{Face, workspace_of};
use crate::problem::Problem;

/// One user, however many sessions they have.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct User {
    user_id: String,
    status: String,
}

/// What a session that shows nothing of its own is.
const ONLINE: &str = "online";

pub(crate) async fn list(State(face): State<Arc<Face>>, request: Request) -> Response {
    let answer = match check(&face, &request) {
        Ok(workspace) => answer(&face, &workspace).await,
        Err(problem) => Err(problem),
    };
    answer.unwrap_or_else(|problem| {
        tracing::debug!(address = auth::loggable(request.uri()), code = %problem.code(), "no roster");
        problem.into_response()
    })
}

fn check(face: &Face, request: &Request) -> Result<DocumentName, Problem> {
    if request.method() != Method::GET {
        return Err(Problem::new(Code::Malformed, "Only GET is answered here.")
            .status(StatusCode::METHOD_NOT_ALLOWED)
            .fix("Send a GET; a session's presence is shown through its socket."));
    }
    face.check_origin(request)?;
    let workspace = workspace_of(request.uri().path(), "/v1/presence/")?
        .ok_or_else(|| Problem::new(Code::NotFound, "No workspace is named."))?;
    let offer = Offer::read(request.headers())?;
    let token = auth::token_of(request.headers(), &offer, request.uri())?;
    let grant = face.node.verifier.verify(&token, face.node.wall_ms())?;
    auth::admits(&grant, Some(&workspace))?;
    Ok(workspace)
}

async fn answer(face: &Face, workspace: &DocumentName) -> Result<Response, Problem> {
    let peers = face.node.lane.peers(workspace).await.map_err(|error| {
        tracing::debug!(%error, "the presence store did not answer");
        Problem::new(Code::Unavailable, "The presence store does not answer.").fix("Ask again later.")
    })?;
    let json = serde_json::to_vec(&users(peers)).unwrap_or_default();
    let mut response = json.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The users behind the sessions, by name. One with a session that is online is online.
fn users(peers: Vec<v1::Peer>) -> Vec<User> {
    let mut by_name: BTreeMap<String, String> = BTreeMap::new();
    for peer in peers {
        let status = status(&peer.data);
        let known = by_name.entry(peer.user).or_insert_with(|| status.clone());
        if status == ONLINE || (*known != ONLINE && status < *known) {
            *known = status;
        }
    }
    by_name.into_iter().map(|(user_id, status)| User { user_id, status }).collect()
}

/// What a session says of itself; the others may show anything.
fn status(data: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Shown {
        status: String,
    }
    serde_json::from_slice::<Shown>(data).map_or_else(|_| ONLINE.to_owned(), |shown| shown.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sessions_of_a_user_are_one_user() {
        let peer = |session: &str, user: &str, data: &str| v1::Peer {
            session: session.to_owned(),
            user: user.to_owned(),
            data: data.to_owned().into(),
            cursors: Vec::new(),
        };
        let check = |peers: &[(&str, &str)], expected: &[(&str, &str)]| {
            let numbered = peers.iter().enumerate();
            let peers = numbered.map(|(n, (user, data))| peer(&n.to_string(), user, data)).collect();
            let got = users(peers);
            let got: Vec<_> = got.iter().map(|user| (&user.user_id[..], &user.status[..])).collect();
            assert_eq!(got, expected);
        };
        check(&[], &[]);
        check(&[("bea", ""), ("ada", "{}"), ("ada", "[1]")], &[("ada", "online"), ("bea", "online")]);
        let away = r#"{"status":"away","color":"red"}"#;
        check(&[("ada", away)], &[("ada", "away")]);
        check(&[("ada", away), ("ada", r#"{"status":"online"}"#)], &[("ada", "online")]);
        check(&[("ada", r#"{"status":"busy"}"#), ("ada", away)], &[("ada", "away")]);
        check(&[("ada", r#"{"status":7}"#)], &[("ada", "online")]);
    }
}
