//! Many connections over many documents at a fixed rate, with every edit accounted for at the end.

mod json;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use manyhands_client::{Client, Connection, Workspace};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Connector, online};
use crate::measure::{Follower, Journal, Summary, Times, own_cpu};
use crate::replay::until;

const CONTAINER: &str = "main";

/// `loadtest crowd`
#[derive(Clone, Debug, clap::Args)]
pub struct Crowd {
    #[command(flatten)]
    access: Access,
    /// Clients, each with a socket of its own; they both write and read
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    connections: u32,
    /// Workspaces that they share, evenly
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    documents: u32,
    /// Edits a second, of all together
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// How long
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// New connections a second while the crowd gathers
    #[arg(long, default_value_t = 200.0)]
    ramp: f64,
    /// Protocol to speak; over json there are maps only
    #[arg(long, value_enum, default_value_t = Dialect::Binary)]
    dialect: Dialect,
    /// What to write: lines of a text, or keys of a map, each a new one
    #[arg(long, value_enum, default_value_t = Shape::Text)]
    shape: Shape,
    /// Seconds for the crowd to gather, and for the last edits to arrive
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Dialect {
    Binary,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    Text,
    Map,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Clients.
    pub connections: usize,
    /// Workspaces.
    pub documents: usize,
    /// Edits made.
    pub ops_sent: usize,
    /// Edits that the server acknowledged.
    pub ops_acked: usize,
    /// Acknowledged edits that are not in the final text.
    pub ops_lost: usize,
    /// Edits that are in it more than once.
    pub ops_doubled: usize,
    /// What is in a final text and was never written.
    pub ops_unknown: usize,
    /// From when an edit was due to each reader having applied it.
    pub latency_ms: Summary,
    /// From when an edit was due to its acknowledgement.
    pub ack_ms: Summary,
    /// Workspaces whose clients do not all hold the state that a fresh joiner gets.
    pub documents_unequal: usize,
    /// Connections beyond each client's first.
    pub reconnects: u64,
    /// By all clients.
    pub bytes_sent: u64,
    /// By all clients.
    pub bytes_received: u64,
    /// How long the crowd took to gather.
    pub gathered_s: f64,
    /// From the first edit to everybody having everything.
    pub settled_s: f64,
    /// How late the generator itself was with an edit at worst.
    pub generator_late_ms_max: f64,
    /// Processor time of this process.
    pub own_cpu_s: f64,
    /// What went wrong, the first of each kind.
    pub errors: BTreeSet<String>,
}

impl Report {
    /// Everything that was checked is as it should be.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.errors.is_empty()
            && self.ops_sent > 0
            && self.ops_acked == self.ops_sent
            && self.ops_lost + self.ops_doubled + self.ops_unknown + self.documents_unequal == 0
    }
}

struct Member {
    client: Client,
    workspace: Workspace,
    journal: Arc<Journal>,
    document: usize,
    /// The numbers that it wrote, in the order of its journal.
    wrote: Vec<u64>,
}

impl Crowd {
    /// Runs it.
    pub async fn run(self, bar: ProgressBar) -> anyhow::Result<Report> {
        ensure!(self.documents <= self.connections, "there are more documents than connections to open them");
        ensure!(
            self.dialect == Dialect::Binary || self.shape == Shape::Map,
            "the JSON dialect has no texts\nfix: add --shape map"
        );
        let connector = self.access.connector()?;
        let within = Duration::from_secs(self.timeout);
        let run: u64 = rand::random::<u64>() >> 24;
        if self.dialect == Dialect::Json {
            return self.run_json(&connector, run, bar).await;
        }

        let gathering = Instant::now();
        let members = self.gather(&connector, run, within, &bar).await?;
        let gathered = gathering.elapsed();
        let (latency, ack, stop) = (Times::default(), Times::default(), CancellationToken::new());
        let mut by_document: Vec<Vec<usize>> = vec![Vec::new(); self.documents as usize];
        for (n, member) in members.iter().enumerate() {
            by_document[member.document].push(n);
        }
        let mut followers = JoinSet::new();
        for (n, member) in members.iter().enumerate() {
            let others = by_document[member.document].iter().filter(|&&other| other != n);
            let follower = Follower {
                workspace: member.workspace.clone(),
                own: Some(member.journal.clone()),
                others: others.map(|&other| members[other].journal.clone()).collect(),
                latency: latency.clone(),
                ack: ack.clone(),
            };
            followers.spawn(follower.run(stop.clone()));
        }

        let begun = Instant::now();
        let (members, mut report) = self.write(members, bar.clone()).await?;
        report.gathered_s = gathered.as_secs_f64();
        bar.set_message("settling");
        for result in self.settle(&members, &by_document, within).await {
            if let Err(error) = result {
                report.errors.insert(format!("{error:#}"));
            }
        }
        report.settled_s = begun.elapsed().as_secs_f64();
        stop.cancel();
        while let Some(follower) = followers.join_next().await {
            follower?;
        }
        bar.set_message("checking");
        self.check(&connector, run, &members, &by_document, within, &mut report).await?;
        report.latency_ms = latency.summary();
        report.ack_ms = ack.summary();
        report.own_cpu_s = own_cpu().as_secs_f64();
        Ok(report)
    }

    /// Connects everybody, at a rate that a server which takes new connections all day stands.
    async fn gather(
        &self,
        connector: &Connector,
        run: u64,
        within: Duration,
        bar: &ProgressBar,
    ) -> anyhow::Result<Vec<Member>> {
        bar.set_message("gathering");
        bar.set_length(self.connections.into());
        let start = tokio::time::Instant::now();
        let mut arriving = JoinSet::new();
        for n in 0..self.connections as usize {
            tokio::time::sleep_until(start + Duration::from_secs_f64(n as f64 / self.ramp)).await;
            let client = connector.any(n);
            let document = n % self.documents as usize;
            let workspace = client.open(&name(run, document))?;
            let bar = bar.clone();
            arriving.spawn(async move {
                online(&client).await?;
                workspace.loaded().await?;
                bar.inc(1);
                let journal = Journal::of(&workspace);
                Ok::<_, anyhow::Error>(Member { client, workspace, journal, document, wrote: Vec::new() })
            });
        }
        let mut members = Vec::new();
        let all = async {
            while let Some(member) = arriving.join_next().await {
                members.push(member??);
            }
            Ok::<(), anyhow::Error>(())
        };
        tokio::time::timeout(within, all)
            .await
            .with_context(|| {
                format!("only {} of {} gathered within {within:?}", bar.position(), self.connections)
            })?
            .context("somebody cannot join")?;
        Ok(members)
    }

    /// Makes each edit when it is due, whether or not the ones before have arrived. Each is a line of its
    /// own with a number that nobody else writes.
    async fn write(
        &self,
        mut members: Vec<Member>,
        bar: ProgressBar,
    ) -> anyhow::Result<(Vec<Member>, Report)> {
        let count = (self.rate * self.seconds).round() as u64;
        let (rate, shape) = (self.rate, self.shape);
        bar.set_message("writing");
        bar.set_length(count);
        bar.set_position(0);
        // A thread of its own: its sleep is finer than the runtime's timer.
        let writing = tokio::task::spawn_blocking(move || {
            let mut report = Report::default();
            let mut late_max = Duration::ZERO;
            let start = Instant::now();
            for n in 0..count {
                let due = start + Duration::from_secs_f64(n as f64 / rate);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                late_max = late_max.max(Instant::now().saturating_duration_since(due));
                let chosen = rand::random_range(0..members.len());
                let member = &mut members[chosen];
                let made = member.journal.note(&member.workspace, due, || {
                    member.workspace.edit(|edit| {
                        if shape == Shape::Map {
                            return edit.set_json("", &key(n), &n.to_string());
                        }
                        let start_of_a_line = edit.text(CONTAINER).map_or(0, |text| {
                            let line = rand::random_range(0..text.lines());
                            text.at_line_column(line, 0).unwrap_or(0)
                        });
                        edit.insert(CONTAINER, start_of_a_line, &format!("{n:x}\n"))
                    })
                });
                match made {
                    Ok(()) => member.wrote.push(n),
                    Err(error) => {
                        report.errors.insert(format!("an edit was not made: {error}"));
                    }
                }
                bar.inc(1);
            }
            report.generator_late_ms_max = late_max.as_secs_f64() * 1000.0;
            (members, report)
        });
        Ok(writing.await?)
    }

    /// Waits until everybody has everything.
    async fn settle(
        &self,
        members: &[Member],
        by_document: &[Vec<usize>],
        within: Duration,
    ) -> Vec<anyhow::Result<()>> {
        let deadline = tokio::time::Instant::now() + within;
        let mut results = Vec::new();
        for member in members {
            let arrived = async {
                member.workspace.saved().await?;
                for &other in &by_document[member.document] {
                    until(&member.workspace, |workspace| members[other].journal.has_arrived(workspace))
                        .await?;
                }
                Ok(())
            };
            let result = tokio::time::timeout_at(deadline, arrived).await;
            results.push(
                result.unwrap_or_else(|_| Err(anyhow::anyhow!("somebody lacks edits after {within:?}"))),
            );
        }
        results
    }

    /// Compares everybody with somebody who joins now, and counts every edit in what that one got.
    async fn check(
        &self,
        connector: &Connector,
        run: u64,
        members: &[Member],
        by_document: &[Vec<usize>],
        within: Duration,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + within;
        let mut times_seen: BTreeMap<u64, usize> = BTreeMap::new();
        let mut written: BTreeSet<u64> = BTreeSet::new();
        for (document, clients) in by_document.iter().enumerate() {
            let client = connector.any(document + 1);
            let joiner = client.open(&name(run, document))?;
            let joined = async {
                joiner.loaded().await?;
                for &n in clients {
                    until(&joiner, |joiner| members[n].journal.has_arrived(joiner)).await?;
                }
                Ok::<(), anyhow::Error>(())
            };
            match tokio::time::timeout_at(deadline, joined).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => _ = report.errors.insert(format!("a fresh joiner: {error:#}")),
                Err(_) => _ = report.errors.insert("a fresh joiner lacks edits".to_owned()),
            }
            let (text, hash) =
                (joiner.text(CONTAINER).to_string(), joiner.read(|document| document.state_hash()));
            let keys: Vec<String> = joiner.map("").iter().map(|(key, _)| key).collect();
            for line in text.lines().chain(keys.iter().map(|key| &key[1..])) {
                match u64::from_str_radix(line, 16) {
                    Ok(n) => *times_seen.entry(n).or_default() += 1,
                    Err(_) => report.ops_unknown += 1,
                }
            }
            let same = |&&n: &&usize| members[n].workspace.read(|document| document.state_hash()) == hash;
            if clients.iter().filter(same).count() != clients.len() {
                report.documents_unequal += 1;
            }
        }
        for member in members {
            let acked = member.journal.acked(member.workspace.acked());
            report.ops_sent += member.wrote.len();
            report.ops_acked += acked;
            report.ops_lost += member.wrote[..acked].iter().filter(|n| !times_seen.contains_key(n)).count();
            written.extend(&member.wrote);
            let moved = member.client.moved();
            report.reconnects += moved.connections.saturating_sub(1);
            report.bytes_sent += moved.bytes_sent;
            report.bytes_received += moved.bytes_received;
            let status = member.workspace.status();
            if let Connection::Stopped(stop) = status.connection {
                report.errors.insert(format!("a client stopped: {}", stop.message));
            }
            for refused in status.refused.iter().chain(status.evicted.as_deref()) {
                report.errors.insert(format!("the server refused: {}", refused.message));
            }
        }
        report.connections = members.len();
        report.documents = by_document.len();
        report.ops_doubled = times_seen.values().filter(|&&times| times > 1).count();
        report.ops_unknown += times_seen.keys().filter(|n| !written.contains(n)).count();
        Ok(())
    }
}

/// The key of a write: no other write has it.
fn key(n: u64) -> String {
    format!("k{n:x}")
}

fn name(run: u64, document: usize) -> String {
    format!("crowd-{run:010x}-{document}")
}
