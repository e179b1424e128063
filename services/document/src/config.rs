//! What can be set, with its defaults.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use manyhands_crdt::Limits;
use manyhands_history::Strategy;
use serde::{Deserialize, Serialize};

/// The document service's configuration. Durations are written as `"4s"`, `"500ms"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the gRPC face listens.
    pub listen: SocketAddr,
    /// The URL under which edges reach this node, `http://host:port`. Unset: the address that is listened on,
    /// which is only right when everything runs on one machine.
    pub advertise: Option<String>,
    /// First part of the node's name in logs and in the log's rows; a random part follows, so that no two
    /// starts have the same name.
    pub node: String,
    /// How partitions are held.
    pub lease: LeaseConfig,
    /// How much one append takes at the most.
    pub batch: BatchConfig,
    /// What may wait for one partition.
    pub mailbox: MailboxConfig,
    /// Which documents stay in memory.
    pub memory: MemoryConfig,
    /// What one document and one request may hold.
    pub limits: LimitsConfig,
    /// How a new document merges that nobody asked to merge in another way: `crdt`, `lww` or `server`.
    #[serde(with = "strategy_by_name")]
    pub strategy: Strategy,
    /// How far ahead of this node's clock the timestamp of a write may be; one beyond is refused with
    /// `clock_ahead`. Under the strategy `server` timestamps decide nothing and are not looked at.
    #[serde(with = "humantime_serde")]
    pub clock_ahead_max: Duration,
    /// JSON Schemas that the root maps of documents with the strategy `server` must satisfy: files by the name of
    /// a workspace, or by what it begins with and `*`.
    pub schemas: BTreeMap<String, PathBuf>,
    /// How long a request may take before it is answered with `timeout`.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long leaving may take before what is left is abandoned; the leases then run out by themselves.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7420)),
            advertise: None,
            node: "document".to_owned(),
            lease: LeaseConfig::default(),
            batch: BatchConfig::default(),
            mailbox: MailboxConfig::default(),
            memory: MemoryConfig::default(),
            limits: LimitsConfig::default(),
            strategy: Strategy::default(),
            clock_ahead_max: Duration::from_secs(60),
            schemas: BTreeMap::new(),
            request_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// A strategy as configuration spells it.
mod strategy_by_name {
    use manyhands_history::Strategy;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(strategy: &Strategy, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(strategy)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Strategy, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// How partitions are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseConfig {
    /// How long a lease lasts without a renewal. A crashed node's partitions are served again within twice this.
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
    /// How often leases are renewed.
    #[serde(with = "humantime_serde")]
    pub renew: Duration,
    /// How long before the end of its lease a node stops serving a partition.
    #[serde(with = "humantime_serde")]
    pub margin: Duration,
}

impl Default for LeaseConfig {
    fn default() -> LeaseConfig {
        LeaseConfig {
            duration: Duration::from_secs(4),
            renew: Duration::from_secs(1),
            margin: Duration::from_secs(1),
        }
    }
}

/// When a batch is closed. It may pass these by one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// Changes.
    pub entries_max: usize,
    /// Bytes of changes.
    pub bytes_max: usize,
}

impl Default for BatchConfig {
    fn default() -> BatchConfig {
        BatchConfig { entries_max: 256, bytes_max: 256 * 1024 }
    }
}

/// What may wait for one partition; what is beyond is answered with `overloaded`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MailboxConfig {
    /// Requests.
    pub requests_max: usize,
    /// Bytes of changes, those included that wait for their append.
    pub bytes_max: usize,
}

impl Default for MailboxConfig {
    fn default() -> MailboxConfig {
        MailboxConfig { requests_max: 1024, bytes_max: 8 * 1024 * 1024 }
    }
}

/// Which documents stay in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Bytes that all documents of the node may take together; the least recently used leave first.
    pub bytes_max: usize,
    /// A document that nobody asked for during this time leaves.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// Documents that are loaded from the log at the same time.
    pub loads_max: usize,
    /// Requests of one partition that may wait for documents to be loaded; what is beyond is answered with `overloaded`.
    pub waiting_max: usize,
}

impl Default for MemoryConfig {
    fn default() -> MemoryConfig {
        MemoryConfig {
            bytes_max: 1024 * 1024 * 1024,
            idle: Duration::from_secs(600),
            loads_max: 4,
            waiting_max: 1024,
        }
    }
}

/// What one document and one request may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bytes of one change.
    pub change_bytes_max: usize,
    /// Changes in one request.
    pub submit_changes_max: u32,
    /// Bytes of changes in one request.
    pub submit_bytes_max: usize,
    /// Characters of a document, the deleted ones included.
    pub elements_max: usize,
    /// Replicas that ever wrote to a document.
    pub replicas_max: usize,
    /// Values in the maps of a document, those in conflict and removals that are remembered included.
    pub keys_max: usize,
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            change_bytes_max: 64 * 1024,
            submit_changes_max: 1024,
            submit_bytes_max: 512 * 1024,
            elements_max: 4_000_000,
            replicas_max: 10_000,
            keys_max: Limits::default().keys_max,
        }
    }
}

impl LimitsConfig {
    /// The part that one document may not grow beyond.
    #[must_use]
    pub fn of_document(&self) -> Limits {
        Limits {
            change_bytes_max: self.change_bytes_max,
            elements_max: self.elements_max,
            replicas_max: self.replicas_max,
            keys_max: self.keys_max,
            ..Limits::default()
        }
    }
}

impl Config {
    /// Refuses values that cannot work together; the text says what and how to mend it.
    pub fn check(&self) -> Result<(), String> {
        let LeaseConfig { duration, renew, margin } = self.lease;
        if renew.is_zero() || renew * 2 + margin > duration {
            return Err(format!(
                "lease.duration ({duration:?}) must have room for two renewals ({renew:?}) and the margin ({margin:?})"
            ));
        }
        let zero = [
            ("batch.entries_max", self.batch.entries_max),
            ("batch.bytes_max", self.batch.bytes_max),
            ("mailbox.requests_max", self.mailbox.requests_max),
            ("memory.loads_max", self.memory.loads_max),
            ("memory.waiting_max", self.memory.waiting_max),
            ("limits.submit_bytes_max", self.limits.submit_bytes_max),
        ];
        if let Some((name, _)) = zero.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} must be at least 1"));
        }
        if self.mailbox.bytes_max < self.limits.submit_bytes_max {
            return Err(format!(
                "mailbox.bytes_max ({}) must hold at least one request of limits.submit_bytes_max ({})",
                self.mailbox.bytes_max, self.limits.submit_bytes_max
            ));
        }
        if self.limits.submit_bytes_max < self.limits.change_bytes_max {
            return Err(format!(
                "limits.submit_bytes_max ({}) must hold at least one change of limits.change_bytes_max ({})",
                self.limits.submit_bytes_max, self.limits.change_bytes_max
            ));
        }
        if u32::try_from(self.mailbox.bytes_max).is_err() {
            return Err(format!("mailbox.bytes_max ({}) must be below 4 GiB", self.mailbox.bytes_max));
        }
        Ok(())
    }
}
