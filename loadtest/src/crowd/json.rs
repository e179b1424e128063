//! The crowd over the JSON dialect: the same writes to maps, through sockets that keep nothing and merge nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::ProgressBar;
use manyhands_client::json::{self, Message, Receiver, Sender};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::{Crowd, Report, key, name};
use crate::access::Connector;
use crate::measure::{Times, own_cpu};

/// One client.
struct Member {
    document: usize,
    /// Messages to send. Bounded by what the generator makes in a run.
    outbox: UnboundedSender<String>,
    seen: Arc<Seen>,
    /// The numbers that it wrote.
    wrote: Vec<u64>,
}

/// What one client was told.
#[derive(Default)]
struct Seen {
    inner: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// The state, as the messages say it.
    state: BTreeMap<String, String>,
    /// Writes of its own.
    own: BTreeSet<u64>,
    /// Those of them that are durable.
    acked: BTreeSet<u64>,
    /// Writes that came more than once.
    doubled: usize,
    bytes: u64,
    errors: BTreeSet<String>,
}

/// When each write was due, and whose it is; what is timed against.
#[derive(Clone)]
struct Schedule {
    start: Arc<std::sync::OnceLock<Instant>>,
    rate: f64,
    latency: Times,
    ack: Times,
}

impl Crowd {
    /// Runs it over the JSON dialect.
    pub(super) async fn run_json(
        self,
        connector: &Connector,
        run: u64,
        bar: ProgressBar,
    ) -> anyhow::Result<Report> {
        let within = Duration::from_secs(self.timeout);
        let schedule = Schedule {
            start: Arc::default(),
            rate: self.rate,
            latency: Times::default(),
            ack: Times::default(),
        };
        let gathering = Instant::now();
        let gathered = self.gather_json(connector, run, &schedule, &bar);
        let mut members =
            tokio::time::timeout(within, gathered).await.context("the crowd did not gather in time")??;
        let gathered_s = gathering.elapsed().as_secs_f64();
        let mut of: Vec<Vec<usize>> = vec![Vec::new(); self.documents as usize];
        for (n, member) in members.iter().enumerate() {
            of[member.document].push(n);
        }

        let count = (self.rate * self.seconds).round() as u64;
        bar.set_message("writing");
        bar.set_length(count);
        bar.set_position(0);
        let rate = self.rate;
        let start = *schedule.start.get_or_init(Instant::now);
        let (written, late_max, sent) = {
            let bar = bar.clone();
            // A thread of its own: its sleep is finer than the runtime's timer.
            tokio::task::spawn_blocking(move || {
                let (mut late_max, mut sent) = (Duration::ZERO, 0);
                for n in 0..count {
                    let due = start + Duration::from_secs_f64(n as f64 / rate);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    late_max = late_max.max(Instant::now().saturating_duration_since(due));
                    let member = rand::random_range(0..members.len());
                    let message = json::op(&key(n), &n.to_string(), None, None);
                    sent += message.len() as u64;
                    members[member].seen.told(|told| told.own.insert(n));
                    if members[member].outbox.send(message).is_ok() {
                        members[member].wrote.push(n);
                    }
                    bar.inc(1);
                }
                (members, late_max, sent)
            })
            .await?
        };
        members = written;

        bar.set_message("settling");
        let mut report = Report { gathered_s, bytes_sent: sent, ..Report::default() };
        report.generator_late_ms_max = late_max.as_secs_f64() * 1000.0;
        let complete = |members: &[Member]| {
            of.iter().all(|clients| {
                let written: usize = clients.iter().map(|&n| members[n].wrote.len()).sum();
                clients.iter().all(|&n| members[n].seen.told(|told| told.state.len()) >= written)
            })
        };
        let deadline = Instant::now() + within;
        while !complete(&members) {
            if Instant::now() > deadline {
                report.errors.insert(format!("somebody lacks writes after {within:?}"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        report.settled_s = start.elapsed().as_secs_f64();

        bar.set_message("checking");
        for (document, clients) in of.iter().enumerate() {
            let (url, token) = connector.address(document + 1).await?;
            let (init, ..) =
                json::connect(&url, &name(run, document), &token, &json::Options::default()).await?;
            let written: BTreeSet<u64> =
                clients.iter().flat_map(|&n| members[n].wrote.iter().copied()).collect();
            let acked = clients.iter().flat_map(|&n| members[n].seen.told(|told| told.acked.clone()));
            report.ops_lost += acked.filter(|n| !init.data.contains_key(&key(*n))).count();
            report.ops_unknown +=
                init.data.keys().filter(|key| !number(key).is_some_and(|n| written.contains(&n))).count();
            let same = clients.iter().all(|&n| members[n].seen.told(|told| told.state == init.data));
            report.documents_unequal += usize::from(!same);
        }
        for member in &members {
            report.ops_sent += member.wrote.len();
            member.seen.told(|told| {
                report.ops_acked += told.acked.len();
                report.ops_doubled += told.doubled;
                report.bytes_received += told.bytes;
                report.errors.extend(told.errors.iter().cloned());
            });
        }
        report.connections = members.len();
        report.documents = of.len();
        report.latency_ms = schedule.latency.summary();
        report.ack_ms = schedule.ack.summary();
        report.own_cpu_s = own_cpu().as_secs_f64();
        Ok(report)
    }

    async fn gather_json(
        &self,
        connector: &Connector,
        run: u64,
        schedule: &Schedule,
        bar: &ProgressBar,
    ) -> anyhow::Result<Vec<Member>> {
        bar.set_message("gathering");
        bar.set_length(self.connections.into());
        let start = tokio::time::Instant::now();
        let mut arriving = JoinSet::new();
        for n in 0..self.connections as usize {
            tokio::time::sleep_until(start + Duration::from_secs_f64(n as f64 / self.ramp)).await;
            let document = n % self.documents as usize;
            let (url, token) = connector.address(n).await?;
            let (schedule, bar) = (schedule.clone(), bar.clone());
            arriving.spawn(async move {
                let options = json::Options::default();
                let (init, sender, receiver) =
                    json::connect(&url, &name(run, document), &token, &options).await?;
                let seen = Arc::new(Seen::default());
                seen.told(|told| told.state = init.data);
                let (outbox, messages) = unbounded_channel();
                tokio::spawn(send(sender, messages));
                tokio::spawn(receive(receiver, seen.clone(), schedule));
                bar.inc(1);
                Ok::<_, anyhow::Error>(Member { document, outbox, seen, wrote: Vec::new() })
            });
        }
        let mut members = Vec::new();
        while let Some(member) = arriving.join_next().await {
            members.push(member?.context("somebody cannot join")?);
        }
        Ok(members)
    }
}

impl Seen {
    fn told<T>(&self, look: impl FnOnce(&mut Told) -> T) -> T {
        look(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn send(mut sender: Sender, mut messages: UnboundedReceiver<String>) {
    while let Some(message) = messages.recv().await {
        // A connection that ended is noticed where nothing arrives any more.
        if sender.send(&message).await.is_err() {
            return;
        }
    }
    sender.close().await;
}

async fn receive(mut receiver: Receiver, seen: Arc<Seen>, schedule: Schedule) {
    loop {
        let message = receiver.next().await;
        let now = Instant::now();
        match message {
            Ok(Some(Message::Op { key, value, .. })) => {
                let Some(n) = number(&key) else { continue };
                let bytes = receiver.bytes();
                let others = seen.told(|told| {
                    told.bytes = bytes;
                    let first = told.state.insert(key, value).is_none();
                    told.doubled += usize::from(!first);
                    first && !told.own.contains(&n)
                });
                if others {
                    schedule.latency.record([schedule.since_due(n, now)]);
                }
            }
            Ok(Some(Message::Acknowledged { key })) => {
                if let Some(n) = number(&key) {
                    schedule.ack.record([schedule.since_due(n, now)]);
                    seen.told(|told| told.acked.insert(n));
                }
            }
            Ok(Some(Message::Error(refusal))) => {
                seen.told(|told| told.errors.insert(format!("the server refused: {refusal}")));
            }
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => {
                seen.told(|told| told.errors.insert(error.to_string()));
                return;
            }
        }
    }
}

impl Schedule {
    fn since_due(&self, n: u64, now: Instant) -> Duration {
        let start = self.start.get().copied().unwrap_or(now);
        now.saturating_duration_since(start + Duration::from_secs_f64(n as f64 / self.rate))
    }
}

fn number(key: &str) -> Option<u64> {
    u64::from_str_radix(key.strip_prefix('k')?, 16).ok()
}
