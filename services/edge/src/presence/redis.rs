//! The presence store in Redis.
//!
//! A document has a sorted set of sessions by the time at which they expire, in milliseconds of the server's
//! clock, and a hash with their entries; both expire as a whole. The name stands in braces, so that the two are
//! on one node of a Redis cluster. Each call is one script, so that nobody sees one half of it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use manyhands_proto::DocumentName;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, FromRedisValue, RedisError, Script, ScriptInvocation};
use tokio::time::{Instant, timeout};

use super::{ANSWER_MAX, ENTRIES_MAX, ENTRY_BYTES_MAX, InvalidUrl, Presence, PutError, Unavailable};

/// What the keys start with, unless the URL says `?prefix=…`.
const PREFIX: &str = "mh";

/// Answers in a row that did not come, after which the connection counts as dead: a host that vanished without a
/// word would otherwise be waited for until TCP gives up.
const SILENCE_MAX: u32 = 3;

/// How long nobody is asked after a failure; doubles up to the second figure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Forgets who has expired, a bounded number at a time; defines `now`.
const SWEEP: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1000)
if #expired > 0 then
  redis.call('ZREM', KEYS[1], unpack(expired))
  redis.call('HDEL', KEYS[2], unpack(expired))
end
";

const PUT: &str = r"
local session, entry, ttl, entries_max = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if not redis.call('ZSCORE', KEYS[1], session) and redis.call('ZCARD', KEYS[1]) >= entries_max then
  return 0
end
redis.call('ZADD', KEYS[1], now + ttl, session)
redis.call('HSET', KEYS[2], session, entry)
for _, key in ipairs(KEYS) do
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl) end
end
return 1
";

const REMOVE: &str = r"
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
";

const ROSTER: &str = r"
local sessions = redis.call('ZRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)
if #sessions == 0 then return { {}, {} } end
return { sessions, redis.call('HMGET', KEYS[2], unpack(sessions)) }
";

/// Entries in a Redis server.
pub struct RedisPresence {
    client: Client,
    prefix: String,
    put: Script,
    remove: Script,
    roster: Script,
    link: Mutex<Link>,
    silent: AtomicU32,
}

struct Link {
    connection: ConnectionManager,
    failures: u32,
    /// After a failure nobody is asked until then.
    paused_until: Option<Instant>,
}

impl RedisPresence {
    /// Prepares for the server at this URL; connects with the first call.
    pub fn open(url: &str) -> Result<RedisPresence, InvalidUrl> {
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let mut prefix = PREFIX.to_owned();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("prefix", value)) if is_prefix(value) => value.clone_into(&mut prefix),
                Some(("prefix", _)) => {
                    return Err(InvalidUrl("`prefix` has letters, digits, `_`, `-`, `.` and `:`".into()));
                }
                _ => return Err(InvalidUrl("a redis:// URL has no parameter but `prefix`".into())),
            }
        }
        let invalid = |error: RedisError| InvalidUrl(error.to_string());
        let client = Client::open(place).map_err(invalid)?;
        let connection = connect(&client).map_err(invalid)?;
        Ok(RedisPresence {
            client,
            prefix,
            put: Script::new(&format!("{SWEEP}{PUT}")),
            remove: Script::new(REMOVE),
            roster: Script::new(&format!("{SWEEP}{ROSTER}")),
            link: Mutex::new(Link { connection, failures: 0, paused_until: None }),
            silent: AtomicU32::new(0),
        })
    }

    fn prepare<'a>(&self, script: &'a Script, document: &DocumentName) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(format!("{}:p:{{{document}}}:sessions", self.prefix));
        call.key(format!("{}:p:{{{document}}}:entries", self.prefix));
        call
    }

    async fn call<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, Unavailable> {
        let mut connection = {
            let link = self.lock();
            if link.paused_until.is_some_and(|until| Instant::now() < until) {
                return Err(Unavailable("it did not answer a moment ago".into()));
            }
            link.connection.clone()
        };
        let why = match timeout(ANSWER_MAX, call.invoke_async(&mut connection)).await {
            Ok(Ok(value)) => {
                self.silent.store(0, Ordering::Relaxed);
                let mut link = self.lock();
                (link.failures, link.paused_until) = (0, None);
                return Ok(value);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {ANSWER_MAX:?}"),
        };
        let silent = self.silent.fetch_add(1, Ordering::Relaxed) + 1;
        let mut link = self.lock();
        let doubled = PAUSE.0.saturating_mul(1 << link.failures.min(10));
        link.failures = link.failures.saturating_add(1);
        link.paused_until = Some(Instant::now() + doubled.min(PAUSE.1));
        if silent.is_multiple_of(SILENCE_MAX)
            && let Ok(connection) = connect(&self.client)
        {
            link.connection = connection;
        }
        Err(Unavailable(why))
    }

    fn lock(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn put(
        &self,
        document: &DocumentName,
        session: &str,
        entry: Bytes,
        ttl: Duration,
    ) -> Result<(), PutError> {
        if entry.len() > ENTRY_BYTES_MAX {
            return Err(PutError::TooLarge);
        }
        let mut call = self.prepare(&self.put, document);
        call.arg(session).arg(&entry[..]).arg(ttl.as_millis() as u64).arg(ENTRIES_MAX);
        match self.call::<u8>(&call).await? {
            0 => Err(PutError::Full),
            _ => Ok(()),
        }
    }

    async fn remove(&self, document: &DocumentName, session: &str) -> Result<(), Unavailable> {
        let mut call = self.prepare(&self.remove, document);
        self.call::<u8>(call.arg(session)).await.map(drop)
    }

    async fn roster(&self, document: &DocumentName) -> Result<Vec<(String, Bytes)>, Unavailable> {
        let mut call = self.prepare(&self.roster, document);
        let (sessions, entries): (Vec<String>, Vec<Option<Vec<u8>>>) =
            self.call(call.arg(ENTRIES_MAX)).await?;
        // Whoever has no entry was half evicted; its next heartbeat brings it back.
        let entry = |(session, bytes): (String, Option<Vec<u8>>)| Some((session, Bytes::from(bytes?)));
        Ok(sessions.into_iter().zip(entries).filter_map(entry).collect())
    }
}

/// Connects with the first call, and again after a break; an attempt is not repeated within a call.
fn connect(client: &Client) -> Result<ConnectionManager, RedisError> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0)
        .set_connection_timeout(Some(ANSWER_MAX))
        .set_response_timeout(Some(ANSWER_MAX));
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

fn is_prefix(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte))
}

#[cfg(test)]
mod tests {
    use manyhands_neighbours::{Dir, Redis};

    use super::super::conformance::{self, document, eventually};
    use super::super::{TTL, open};
    use super::*;

    fn server() -> Redis {
        Redis::start(Dir::Temporary).unwrap()
    }

    /// All scenarios share one server, each under its own prefix.
    fn fresh() -> RedisPresence {
        static SERVER: std::sync::OnceLock<Redis> = std::sync::OnceLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let url = SERVER.get_or_init(server).url();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        RedisPresence::open(&format!("{url}/?prefix=test{count}")).unwrap()
    }

    conformance::suite!(fresh());

    async fn flush(presence: &RedisPresence) {
        let mut connection = presence.lock().connection.clone();
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.unwrap();
    }

    async fn keys(presence: &RedisPresence) -> usize {
        let mut connection = presence.lock().connection.clone();
        redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap()
    }

    #[tokio::test]
    async fn nodes_see_each_others_sessions() {
        let server = server();
        let [here, there] = [0, 1].map(|_| RedisPresence::open(&server.url()).unwrap());
        here.put(&document("d"), "s", Bytes::from_static(b"x"), TTL).await.unwrap();
        assert_eq!(there.roster(&document("d")).await.unwrap(), [("s".into(), Bytes::from_static(b"x"))]);
        there.remove(&document("d"), "s").await.unwrap();
        assert_eq!(here.roster(&document("d")).await.unwrap(), []);
    }

    // enforces: I-8
    #[tokio::test]
    async fn a_flushed_server_is_filled_again_by_the_next_put() {
        let server = server();
        let presence = RedisPresence::open(&server.url()).unwrap();
        presence.put(&document("d"), "s", Bytes::from_static(b"1"), TTL).await.unwrap();
        flush(&presence).await;
        assert_eq!(presence.roster(&document("d")).await.unwrap(), []);
        presence.put(&document("d"), "s", Bytes::from_static(b"2"), TTL).await.unwrap();
        assert_eq!(presence.roster(&document("d")).await.unwrap(), [("s".into(), Bytes::from_static(b"2"))]);
    }

    // enforces: I-8
    #[tokio::test]
    async fn a_killed_server_is_a_value_and_comes_back() {
        let mut server = server();
        let presence = RedisPresence::open(&server.url()).unwrap();
        presence.put(&document("d"), "s", Bytes::new(), TTL).await.unwrap();
        server.kill();
        for _ in 0..20 {
            let put = presence.put(&document("d"), "s", Bytes::new(), TTL).await;
            assert!(matches!(put, Err(PutError::Unavailable(_))), "{put:?}");
            assert!(presence.roster(&document("d")).await.is_err());
        }
        server.restart().unwrap();
        eventually(async || presence.put(&document("d"), "s", Bytes::new(), TTL).await.is_ok()).await;
        assert_eq!(presence.roster(&document("d")).await.unwrap().len(), 1);
    }

    // enforces: I-8
    #[tokio::test]
    async fn a_hanging_server_is_a_value_and_comes_back() {
        let server = server();
        let presence = RedisPresence::open(&server.url()).unwrap();
        presence.put(&document("d"), "s", Bytes::new(), TTL).await.unwrap();
        server.pause();
        for _ in 0..2 {
            assert!(presence.roster(&document("d")).await.is_err());
        }
        server.resume();
        eventually(async || presence.roster(&document("d")).await.is_ok_and(|roster| roster.len() == 1))
            .await;
    }

    #[tokio::test]
    async fn a_server_that_is_away_at_the_start_is_found_later() {
        let mut server = server();
        server.kill();
        let presence = RedisPresence::open(&server.url()).unwrap();
        assert!(presence.remove(&document("d"), "s").await.is_err());
        server.restart().unwrap();
        eventually(async || presence.remove(&document("d"), "s").await.is_ok()).await;
    }

    // enforces: I-10
    #[tokio::test]
    async fn nothing_stays_in_the_server() {
        let server = server();
        let presence = RedisPresence::open(&server.url()).unwrap();
        for i in 0..50 {
            let ttl = Duration::from_millis(500);
            presence.put(&document(&format!("d{i}")), "s", Bytes::new(), ttl).await.unwrap();
        }
        assert!(keys(&presence).await > 0);
        eventually(async || keys(&presence).await == 0).await;
    }

    #[tokio::test]
    async fn urls() {
        for good in ["redis://a", "redis://user:pw@a:1/2", "redis://a?prefix=eu:blue", "local:"] {
            assert!(open(good).is_ok(), "{good}");
        }
        for bad in ["", "redis", "local:x", "redis://a?prefix=a{b", "redis://a?other=1", "http://hunter2@a"] {
            let Err(error) = open(bad) else { panic!("{bad} was opened") };
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
