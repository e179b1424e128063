//! What an edge can be told. Every field has a default, a unit and a meaning; unknown keys are refused.

use std::net::SocketAddr;
use std::time::Duration;

use manyhands_process::value::{ByteSize, Secret};
use manyhands_session::edge::EdgeConfig;
use manyhands_session::json::MirrorLimits;
use serde::{Deserialize, Serialize};

use crate::fanout::MirrorBounds;
use crate::router;

/// The configuration of an edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where sockets and HTTP are taken, as `address:port`.
    pub listen: SocketAddr,
    /// Web pages that may open sockets, as `https://app.example.com`; `"*"` for every page. Clients that are
    /// no browsers send no origin and need none.
    pub allowed_origins: Vec<String>,
    /// Also allow pages that this machine serves itself (`http://localhost:5173`), at any port.
    pub allow_loopback_origins: bool,
    /// What tokens are signed with (HS256), 32 bytes at least. Better given as `secret_file`.
    pub secret: Secret,
    /// Where document nodes are found at first: URLs of one or several of them, or of a name that resolves to
    /// all of them. From then on they tell about each other.
    pub documents: Vec<String>,
    /// Over how long the sessions are sent away when this edge leaves. Shorter than the grace of the process.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// What is refused when there is more of it.
    pub limits: Limits,
    /// How patiently document nodes are asked.
    pub router: router::Config,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            allowed_origins: Vec::new(),
            allow_loopback_origins: false,
            secret: Secret::default(),
            documents: vec!["http://127.0.0.1:7420".to_owned()],
            drain: Duration::from_secs(10),
            limits: Limits::default(),
            router: router::Config::default(),
        }
    }
}

/// What an edge takes, and no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Sockets on this edge. Further ones are answered 503 with `Retry-After`.
    pub connections_max: usize,
    /// Connections that are not sockets yet. Further ones wait to be accepted.
    pub handshakes_max: usize,
    /// One frame of a client. A larger one ends its session with `too_large`.
    pub frame_bytes_max: ByteSize,
    /// One change. A larger one is rejected with `too_large`.
    pub change_bytes_max: ByteSize,
    /// Changes in one push.
    pub push_changes_max: u32,
    /// Changes of one channel that wait for their acknowledgement. Further ones are rejected, `overloaded`.
    pub in_flight_changes_max: u32,
    /// Their bytes.
    pub in_flight_bytes_max: ByteSize,
    /// Documents that one session has open. Further ones are evicted with `limit_reached`.
    pub documents_per_session_max: u32,
    /// One session's presence in one document.
    pub presence_bytes_max: ByteSize,
    /// The state of a workspace as one JSON message. A larger one is not served in the JSON dialect, `too_large`.
    pub init_bytes_max: ByteSize,
    /// Memory for one workspace that is open in the JSON dialect; a larger one is not served in it.
    pub mirror_bytes_max: ByteSize,
    /// Memory for all of them. Beyond it, further ones are refused, `overloaded`.
    pub mirrors_bytes_max: ByteSize,
    /// What waits for one socket to take it. Beyond this its deltas are dropped and read again later.
    pub send_queue_bytes_max: ByteSize,
    /// Beyond this the session ends with `slow_consumer`.
    pub send_queue_bytes_close: ByteSize,
    /// A socket that takes nothing for this long ends with `slow_consumer`.
    #[serde(with = "humantime_serde")]
    pub send_stall_max: Duration,
    /// How often a quiet session is pinged; it ends with `idle` after two and a half times this.
    #[serde(with = "humantime_serde")]
    pub ping_interval: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let (session, mirror) = (EdgeConfig::default(), MirrorLimits::default());
        Limits {
            connections_max: 20_000,
            handshakes_max: 1_024,
            frame_bytes_max: ByteSize(session.limits.frame_bytes_max.into()),
            change_bytes_max: ByteSize(session.limits.change_bytes_max.into()),
            push_changes_max: session.limits.push_changes_max,
            in_flight_changes_max: session.limits.in_flight_changes_max,
            in_flight_bytes_max: ByteSize(session.limits.in_flight_bytes_max.into()),
            documents_per_session_max: session.limits.documents_max,
            presence_bytes_max: ByteSize(session.limits.presence_bytes_max.into()),
            init_bytes_max: ByteSize(mirror.init_bytes_max as u64),
            mirror_bytes_max: ByteSize(mirror.memory_bytes_max as u64),
            mirrors_bytes_max: ByteSize::mib(1024),
            send_queue_bytes_max: ByteSize(session.send_queue_bytes_max as u64),
            send_queue_bytes_close: ByteSize(session.send_queue_bytes_close as u64),
            send_stall_max: session.send_stall_max,
            ping_interval: session.ping_interval,
        }
    }
}

impl Limits {
    /// What the mirrors for the JSON dialect may take.
    pub(crate) fn mirrors(&self) -> MirrorBounds {
        let each = MirrorLimits {
            init_bytes_max: self.init_bytes_max.bytes(),
            memory_bytes_max: self.mirror_bytes_max.bytes(),
        };
        MirrorBounds { each, all_bytes_max: self.mirrors_bytes_max.bytes() }
    }

    /// As the session machine takes them.
    #[must_use]
    pub fn session(&self) -> EdgeConfig {
        let small = |size: ByteSize| u32::try_from(size.0).unwrap_or(u32::MAX);
        EdgeConfig {
            limits: manyhands_session::Limits {
                frame_bytes_max: small(self.frame_bytes_max),
                change_bytes_max: small(self.change_bytes_max),
                push_changes_max: self.push_changes_max,
                in_flight_changes_max: self.in_flight_changes_max,
                in_flight_bytes_max: small(self.in_flight_bytes_max),
                documents_max: self.documents_per_session_max,
                presence_bytes_max: small(self.presence_bytes_max),
            },
            send_queue_bytes_max: self.send_queue_bytes_max.bytes(),
            send_queue_bytes_close: self.send_queue_bytes_close.bytes(),
            send_stall_max: self.send_stall_max,
            ping_interval: self.ping_interval,
            ..EdgeConfig::default()
        }
    }
}
