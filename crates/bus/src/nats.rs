//! The bus over NATS, core only: at most once, nothing is stored.
//!
//! The connection is made again for ever. Whatever may have been missed while it was away is reported to every
//! subscriber as one [`Received::Lost`], after the server has confirmed that the subscriptions stand again. In
//! a NATS cluster a new subscription is known to its own server when `subscribe` returns, and to the others a
//! moment later; tips cover that moment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, HeaderMap, ServerAddr};
use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::queue::Queue;
use crate::{
    DeltaBus, Limits, MESSAGE_BYTES_MAX, Message, OpenError, Received, Subscription, Topic, Unavailable,
    WhenAway, count_dropped, count_lost, count_published,
};

/// What the subjects start with, unless the URL says `?prefix=…`.
pub const PREFIX: &str = "mh";

/// How long `open` looks for a server, with [`WhenAway::Fail`].
const OPEN_MAX: Duration = Duration::from_secs(5);
/// How long a server that is connected is given to confirm a subscription.
const CONFIRM_MAX: Duration = Duration::from_secs(2);
/// Between pings; a silent connection is given up after three.
const PING: Duration = Duration::from_secs(5);
/// Longest wait between two attempts to connect.
const BACKOFF_MAX: Duration = Duration::from_secs(4);
/// How often the connection is looked at without being told of a change.
const LOOK: Duration = Duration::from_secs(1);

/// Messages that wait to be written to the connection.
const OUT_MESSAGES_MAX: usize = 8_192;
/// Bytes that wait to be written to the connection.
const OUT_BYTES_MAX: usize = 64 << 20;
/// Messages that wait inside the client; it has no limit in bytes, hence so few.
const CLIENT_MESSAGES_MAX: usize = 256;
/// Messages of one subscription that wait inside the client, before they come to our queue.
const ARRIVING_MESSAGES_MAX: usize = 16_384;

const TRACEPARENT: &str = "traceparent";

/// One connection to a NATS server or cluster.
pub struct NatsBus {
    shared: Arc<Shared>,
    out: mpsc::Sender<(Topic, Message)>,
    tasks: [JoinHandle<()>; 2],
}

struct Shared {
    client: Client,
    prefix: String,
    limits: Limits,
    out_bytes: AtomicUsize,
    subscribers: Arc<Subscribers>,
}

/// By number, in the order of subscribing.
type Subscribers = Mutex<BTreeMap<u64, Arc<Queue>>>;

/// What the client's events say, for the task that looks after the connection.
#[derive(Default)]
struct Signals {
    changed: Notify,
    overflowed: AtomicBool,
}

impl NatsBus {
    /// Connects to `nats://[user:password@ | token@]host[:port][,host…][?prefix=mh]`.
    ///
    /// # Errors
    ///
    /// The URL is not one of these, or, with [`WhenAway::Fail`], no server answered within five seconds.
    pub async fn open(url: &str, when_away: WhenAway, limits: Limits) -> Result<NatsBus, OpenError> {
        let Address { servers, credentials, prefix } = parse(url)?;
        let signals = Arc::new(Signals::default());
        // How many connections have nothing before them that could have been missed.
        let known = match when_away {
            WhenAway::Fail => 1,
            WhenAway::Retry => 0,
        };
        let client = match when_away {
            WhenAway::Retry => options(&signals, &credentials)
                .retry_on_initial_connect()
                .connect(servers)
                .await
                .map_err(|error| OpenError::Away(error.to_string()))?,
            WhenAway::Fail => connect_within(&servers, &credentials, &signals).await?,
        };
        let shared = Arc::new(Shared {
            client,
            prefix,
            limits,
            out_bytes: AtomicUsize::new(0),
            subscribers: Arc::default(),
        });
        let (out, waiting) = mpsc::channel(OUT_MESSAGES_MAX);
        let publisher = tokio::spawn(publish_all(shared.clone(), waiting));
        let watcher = tokio::spawn(watch(Arc::downgrade(&shared), signals, known));
        Ok(NatsBus { shared, out, tasks: [publisher, watcher] })
    }
}

#[async_trait]
impl DeltaBus for NatsBus {
    fn publish(&self, topic: Topic, message: Message) {
        let bytes = message.payload.len();
        if bytes > MESSAGE_BYTES_MAX {
            return count_dropped(topic, "too_large");
        }
        if !self.is_connected() {
            // It would come late, and behind it what is new; its readers are told that something is missing.
            return count_dropped(topic, "disconnected");
        }
        if self.shared.out_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > OUT_BYTES_MAX
            || self.out.try_send((topic, message)).is_err()
        {
            self.shared.out_bytes.fetch_sub(bytes, Ordering::Relaxed);
            count_dropped(topic, "queue_full");
        }
    }

    async fn subscribe(&self, topic: Topic) -> Result<Box<dyn Subscription>, Unavailable> {
        let shared = &self.shared;
        // First, so that a connection that breaks from here on is reported to it.
        let mut subscription = NatsSubscription::new(shared);
        let asked = timeout(CONFIRM_MAX, shared.client.subscribe(shared.subject(topic))).await;
        let stream = match asked {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Unavailable(error.to_string())),
            Err(_) => return Err(Unavailable("too many subscriptions wait for the connection".into())),
        };
        subscription.pump = Some(tokio::spawn(pump(topic, stream, subscription.queue.clone())));
        if self.is_connected()
            && let Err(unconfirmed) = shared.confirm().await
            && self.is_connected()
        {
            return Err(unconfirmed);
        }
        Ok(Box::new(subscription))
    }

    fn is_connected(&self) -> bool {
        self.shared.is_connected()
    }
}

impl Drop for NatsBus {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        for queue in self.shared.queues() {
            queue.close();
        }
    }
}

impl Shared {
    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    fn subject(&self, topic: Topic) -> String {
        let prefix = &self.prefix;
        match topic {
            Topic::Deltas(partition) => format!("{prefix}.d.{partition}"),
            Topic::Presence(partition) => format!("{prefix}.p.{partition}"),
            Topic::Routes => format!("{prefix}.routes"),
        }
    }

    fn queues(&self) -> Vec<Arc<Queue>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Waits until the server has handled everything that was sent to it before: it is sent a message to
    /// ourselves.
    async fn confirm(&self) -> Result<(), Unavailable> {
        let unavailable = |error: &dyn std::fmt::Display| Unavailable(error.to_string());
        let echo = async {
            let inbox = self.client.new_inbox();
            let mut stream =
                self.client.subscribe(inbox.clone()).await.map_err(|error| unavailable(&error))?;
            self.client.publish(inbox, bytes::Bytes::new()).await.map_err(|error| unavailable(&error))?;
            stream.next().await.map(drop).ok_or_else(|| Unavailable("the connection was closed".into()))
        };
        timeout(CONFIRM_MAX, echo)
            .await
            .unwrap_or_else(|_| Err(Unavailable("the server does not answer".into())))
    }
}

struct NatsSubscription {
    number: u64,
    queue: Arc<Queue>,
    pump: Option<JoinHandle<()>>,
    subscribers: Weak<Subscribers>,
}

impl NatsSubscription {
    fn new(shared: &Shared) -> NatsSubscription {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let queue = Queue::new(shared.limits);
        let mut subscribers = shared.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.insert(number, queue.clone());
        NatsSubscription { number, queue, pump: None, subscribers: Arc::downgrade(&shared.subscribers) }
    }
}

#[async_trait]
impl Subscription for NatsSubscription {
    async fn next(&mut self) -> Option<Received> {
        self.queue.next().await
    }
}

impl Drop for NatsSubscription {
    fn drop(&mut self) {
        if let Some(pump) = &self.pump {
            pump.abort();
        }
        if let Some(subscribers) = self.subscribers.upgrade() {
            subscribers.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
        }
    }
}

/// Moves what arrives into the subscriber's queue. It never waits for the subscriber, so the client's own
/// queue stays empty and one slow subscriber costs the others nothing.
async fn pump(topic: Topic, mut stream: async_nats::Subscriber, queue: Arc<Queue>) {
    while let Some(arrived) = stream.next().await {
        let traceparent = arrived.headers.as_ref().and_then(|headers| headers.get(TRACEPARENT));
        let traceparent = traceparent.map(|value| value.as_str().to_owned());
        if !queue.push(Message { payload: arrived.payload, traceparent }) {
            count_lost(topic);
        }
    }
    queue.close();
}

async fn publish_all(shared: Arc<Shared>, mut waiting: mpsc::Receiver<(Topic, Message)>) {
    while let Some((topic, message)) = waiting.recv().await {
        let bytes = message.payload.len();
        if !shared.is_connected() {
            shared.out_bytes.fetch_sub(bytes, Ordering::Relaxed);
            count_dropped(topic, "disconnected");
            continue;
        }
        let subject = shared.subject(topic);
        let sent = match message.traceparent {
            None => shared.client.publish(subject, message.payload).await,
            Some(traceparent) => {
                let mut headers = HeaderMap::new();
                headers.insert(TRACEPARENT, traceparent);
                shared.client.publish_with_headers(subject, headers, message.payload).await
            }
        };
        shared.out_bytes.fetch_sub(bytes, Ordering::Relaxed);
        match sent {
            Ok(()) => count_published(topic),
            Err(error) => {
                tracing::debug!(%error, ?topic, bytes, "the bus did not take a message");
                count_dropped(topic, "refused");
            }
        }
    }
}

/// Tells every subscriber when messages may have been missed. Events of the client only wake it: they may be
/// lost themselves, the count of connections cannot.
async fn watch(shared: Weak<Shared>, signals: Arc<Signals>, mut known: u64) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = signals.changed.notified() => {}
            _ = look.tick() => {}
        }
        let Some(shared) = shared.upgrade() else { return };
        let seen = shared.client.statistics().connects.load(Ordering::Relaxed);
        let reconnected = seen != known && shared.is_connected();
        // Without the confirmation a message could pass by after the mark and before the subscription stands.
        let confirmed = reconnected && shared.confirm().await.is_ok();
        if confirmed {
            tracing::info!("the bus is connected");
            known = seen;
        }
        if confirmed || signals.overflowed.swap(false, Ordering::Relaxed) {
            for queue in shared.queues() {
                queue.lost();
            }
        }
    }
}

fn options(signals: &Arc<Signals>, credentials: &Credentials) -> ConnectOptions {
    let signals = signals.clone();
    let options = match credentials {
        Credentials::None => ConnectOptions::new(),
        Credentials::Token(token) => ConnectOptions::with_token(token.clone()),
        Credentials::User(user, password) => {
            ConnectOptions::with_user_and_password(user.clone(), password.clone())
        }
    };
    options
        .name("manyhands")
        .connection_timeout(Duration::from_secs(2))
        .ping_interval(PING)
        .subscription_capacity(ARRIVING_MESSAGES_MAX)
        .client_capacity(CLIENT_MESSAGES_MAX)
        .max_reconnects(None)
        .reconnect_delay_callback(backoff)
        .event_callback(move |event| {
            let signals = signals.clone();
            async move {
                match event {
                    Event::SlowConsumer(_) => signals.overflowed.store(true, Ordering::Relaxed),
                    Event::Disconnected => tracing::warn!("the bus is disconnected"),
                    _ => {}
                }
                signals.changed.notify_one();
            }
        })
}

/// At once the first time, then 50 ms, doubling.
fn backoff(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(2)).unwrap_or(u32::MAX).min(10);
    if attempts <= 1 {
        Duration::ZERO
    } else {
        (Duration::from_millis(50) * 2u32.pow(doublings)).min(BACKOFF_MAX)
    }
}

async fn connect_within(
    servers: &[ServerAddr],
    credentials: &Credentials,
    signals: &Arc<Signals>,
) -> Result<Client, OpenError> {
    let end = Instant::now() + OPEN_MAX;
    let mut attempts = 1;
    loop {
        let error = match options(signals, credentials).connect(servers).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        attempts += 1;
        let delay = backoff(attempts);
        if Instant::now() + delay >= end {
            let hosts: Vec<String> =
                servers.iter().map(|server| format!("{}:{}", server.host(), server.port())).collect();
            return Err(OpenError::Away(format!("no NATS server answers at {}: {error}", hosts.join(", "))));
        }
        sleep(delay).await;
    }
}

struct Address {
    servers: Vec<ServerAddr>,
    credentials: Credentials,
    prefix: String,
}

enum Credentials {
    None,
    Token(String),
    User(String, String),
}

fn parse(url: &str) -> Result<Address, OpenError> {
    let refused = |why: String| OpenError::Url(why);
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let mut prefix = PREFIX.to_owned();
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match key.as_ref() {
            "prefix" => prefix = value.into_owned(),
            other => {
                return Err(refused(format!("a nats:// URL has no parameter `{other}`; it has `prefix`")));
            }
        }
    }
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    if !prefix.split('.').all(token) {
        return Err(refused("`prefix` has letters, digits, `_`, `-` and `.` between them".into()));
    }
    let place = place.trim_end_matches('/');
    let scheme = place.split_once("://").map_or("nats", |(scheme, _)| scheme);
    let servers = place
        .split(',')
        .map(|server| {
            let server =
                if server.contains("://") { server.to_owned() } else { format!("{scheme}://{server}") };
            server.parse::<ServerAddr>().map_err(|error| refused(error.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    // The client reads hosts from its URLs, but nobody's name; all servers of a cluster know the same ones.
    let decoded = |text: &str| {
        percent_decode(text).ok_or_else(|| refused("user and password are percent-encoded UTF-8".into()))
    };
    let credentials = match servers.iter().find_map(|server| Some((server.username()?, server.password()))) {
        None => Credentials::None,
        Some((token, None)) => Credentials::Token(decoded(token)?),
        Some((user, Some(password))) => Credentials::User(decoded(user)?, decoded(password)?),
    };
    Ok(Address { servers, credentials, prefix })
}

/// A form's decoder without what a form means by `+`, `&` and `=`.
fn percent_decode(text: &str) -> Option<String> {
    let escaped = text.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    let (decoded, _) = url::form_urlencoded::parse(escaped.as_bytes()).next().unwrap_or_default();
    (!decoded.contains(char::REPLACEMENT_CHARACTER)).then(|| decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let parsed = |url: &str| {
            let address = parse(url).unwrap();
            let host = |server: &ServerAddr| format!("{}:{}", server.host(), server.port());
            let hosts: Vec<String> = address.servers.iter().map(host).collect();
            (hosts.join(" "), address.prefix)
        };
        assert_eq!(parsed("nats://nats"), ("nats:4222".into(), "mh".into()));
        assert_eq!(parsed("nats://a:1,b:2/?prefix=eu.blue"), ("a:1 b:2".into(), "eu.blue".into()));
        let known = |url: &str| match parse(url).unwrap().credentials {
            Credentials::None => String::new(),
            Credentials::Token(token) => token,
            Credentials::User(user, password) => format!("{user} {password}"),
        };
        assert_eq!(known("nats://a"), "");
        assert_eq!(known("nats://t0ken@a,b"), "t0ken");
        assert_eq!(known("nats://user:p%40s+s&=%25@a,b"), "user p@s+s&=%");
        for bad in [
            "nats://a?prefix=a.>",
            "nats://a?prefix=",
            "nats://a?prefix=a..b",
            "nats://a?other=1",
            "nats://a:x",
        ] {
            assert!(matches!(parse(bad), Err(OpenError::Url(_))), "{bad}");
        }
    }

    #[test]
    fn the_backoff_is_bounded() {
        let waits: Vec<u128> = [0, 1, 2, 3, 5, 9, 1000, usize::MAX].map(|n| backoff(n).as_millis()).into();
        assert_eq!(waits, [0, 0, 50, 100, 400, 4000, 4000, 4000]);
    }
}
