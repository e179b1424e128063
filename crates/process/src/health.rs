//! Whether a process lives and whether it should get work, and why not: `/livez`, `/readyz`, `/metrics`.
//!
//! Every part that must be up before the process is useful has a named [`Check`]. A check starts as failing,
//! so that a process is not ready until all of its parts have said so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::telemetry::Metrics;

/// The health of one process; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// By name: why it fails, or `None` while it passes.
    checks: BTreeMap<String, Option<String>>,
    dead: Option<String>,
    draining: bool,
}

/// One part of the process; whoever runs the part says how it is. Clones speak for the same part.
#[derive(Clone, Debug)]
pub struct Check {
    health: Health,
    name: String,
}

impl Health {
    /// Alive, and ready as soon as every check has passed.
    #[must_use]
    pub fn new() -> Health {
        Health::default()
    }

    /// Adds a check, failing with "starting".
    #[must_use]
    pub fn check(&self, name: impl Into<String>) -> Check {
        let check = Check { health: self.clone(), name: name.into() };
        check.fail("starting");
        check
    }

    /// The process leaves: not ready any more, whatever the checks say.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// The process cannot be helped but by a restart. There is no way back.
    pub fn die(&self, why: impl Into<String>) {
        self.lock().dead.get_or_insert(why.into());
    }

    /// What fails, by check; empty when the process is ready.
    #[must_use]
    pub fn failing(&self) -> Vec<Failing> {
        let shared = self.lock();
        let draining =
            shared.draining.then(|| Failing { check: "draining".into(), why: "shutting down".into() });
        let failing = shared
            .checks
            .iter()
            .filter_map(|(check, why)| why.clone().map(|why| Failing { check: check.clone(), why }));
        draining.into_iter().chain(failing).collect()
    }

    /// Whether the process should get work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.failing().is_empty()
    }

    /// `/livez`, `/readyz` (503 and the failing checks as JSON) and `/metrics` (Prometheus text).
    pub fn router(&self, metrics: Metrics) -> Router {
        Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .with_state(self.clone())
            .route("/metrics", get(move || async move { exposition(&metrics) }))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Check {
    /// The part works.
    pub fn pass(&self) {
        self.set(None);
    }

    /// The part does not work.
    pub fn fail(&self, why: impl Into<String>) {
        self.set(Some(why.into()));
    }

    fn set(&self, why: Option<String>) {
        self.health.lock().checks.insert(self.name.clone(), why);
    }
}

/// A check that fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failing {
    /// Its name.
    pub check: String,
    /// Why.
    pub why: String,
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    failing: Vec<Failing>,
}

#[derive(Serialize)]
struct Liveness {
    live: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

async fn livez(State(health): State<Health>) -> Response {
    let why = health.lock().dead.clone();
    let status = if why.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Liveness { live: why.is_none(), why })).into_response()
}

async fn readyz(State(health): State<Health>) -> Response {
    let failing = health.failing();
    let status = if failing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready: failing.is_empty(), failing })).into_response()
}

fn exposition(metrics: &Metrics) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response()
}
