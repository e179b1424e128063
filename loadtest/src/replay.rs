//! Types a recorded editing session through one or several clients while others watch.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use indicatif::ProgressBar;
use manyhands_client::{Client, EditError, Workspace};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Connector, online};
use crate::measure::{Follower, Journal, Summary, Times, own_cpu};
use crate::trace::{Edit, Trace};

/// The text that is written.
const CONTAINER: &str = "main";

/// `loadtest replay`
#[derive(Clone, Debug, clap::Args)]
pub struct Replay {
    /// Recorded session: JSON, gzipped or not
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    #[command(flatten)]
    access: Access,
    /// Clients that type, taking turns
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    writers: u16,
    /// Clients that watch
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=1000))]
    observers: u16,
    /// Workspace to write; a new one without it
    #[arg(long)]
    workspace: Option<String>,
    /// Edits a second; without it as fast as the window allows
    #[arg(long)]
    rate: Option<f64>,
    /// Edits of one writer that may wait for their acknowledgement
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// Edits that a writer makes before it is the next one's turn
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    turn: u32,
    /// Type only this many edits
    #[arg(long)]
    edits: Option<usize>,
    /// Go on where an earlier run in the same workspace ended
    #[arg(long, requires = "workspace")]
    resume: bool,
    /// Seconds after which the run has failed
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it was written.
    pub workspace: String,
    /// Edits made.
    pub ops_sent: usize,
    /// Edits that the server acknowledged.
    pub ops_acked: usize,
    /// From an edit to an observer having applied it.
    pub latency_ms: Summary,
    /// From an edit to its acknowledgement.
    pub ack_ms: Summary,
    /// Every writer, every observer and a fresh joiner hold the trace's end.
    pub final_text_equal: bool,
    /// They also hold the same state, deleted characters and all.
    pub state_equal: bool,
    /// From the first edit to the last one's acknowledgement.
    pub elapsed_s: f64,
    /// Edits a second over that time.
    pub ops_per_s: f64,
    /// By all clients.
    pub bytes_sent: u64,
    /// By all clients.
    pub bytes_received: u64,
    /// Connections beyond each client's first.
    pub reconnects: u64,
    /// Longest time without an acknowledgement while an edit waited for one.
    pub writing_paused_ms_max: f64,
    /// Edits that were skipped because an earlier run had made them.
    pub resumed_at: usize,
    /// Processor time of this process.
    pub own_cpu_s: f64,
    /// What went wrong.
    pub failures: Vec<String>,
}

impl Report {
    /// Everything that was checked is as it should be.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
            && self.final_text_equal
            && self.state_equal
            && self.ops_acked == self.ops_sent
    }
}

struct Member {
    client: Client,
    workspace: Workspace,
}

impl Replay {
    /// Runs it.
    pub async fn run(self, bar: ProgressBar) -> anyhow::Result<Report> {
        let mut trace = Trace::read(&self.trace)?;
        if let Some(count) = self.edits {
            trace = trace.truncated(count);
        }
        bar.set_length(trace.edits.len() as u64);
        let within = Duration::from_secs(self.timeout);
        let connector = self.access.connector()?;
        tokio::time::timeout(within, self.replay(trace, connector, &bar))
            .await
            .with_context(|| format!("not done after {within:?}, at edit {}", bar.position()))?
    }

    async fn replay(&self, trace: Trace, connector: Connector, bar: &ProgressBar) -> anyhow::Result<Report> {
        let name =
            self.workspace.clone().unwrap_or_else(|| format!("replay-{:012x}", rand::random::<u64>() >> 16));
        let join = |client: Client| -> anyhow::Result<Member> {
            Ok(Member { workspace: client.open(&name)?, client })
        };
        let writers: Vec<Member> =
            (0..self.writers).map(|n| join(connector.writer(n.into()))).collect::<Result<_, _>>()?;
        let observers: Vec<Member> =
            (0..self.observers).map(|n| join(connector.reader(n.into()))).collect::<Result<_, _>>()?;
        for member in writers.iter().chain(&observers) {
            online(&member.client).await?;
            member.workspace.loaded().await?;
        }
        let first = self.begin(&trace, &writers[0].workspace).await?;
        bar.set_position(first as u64);

        let journals: Vec<Arc<Journal>> =
            writers.iter().map(|writer| Journal::of(&writer.workspace)).collect();
        let (latency, ack, stop) = (Times::default(), Times::default(), CancellationToken::new());
        let mut followers = Vec::new();
        for (n, member) in writers.iter().chain(&observers).enumerate() {
            let is_writer = n < writers.len();
            let follower = Follower {
                workspace: member.workspace.clone(),
                own: is_writer.then(|| journals[n].clone()),
                others: if is_writer { Vec::new() } else { journals.clone() },
                latency: latency.clone(),
                ack: ack.clone(),
            };
            followers.push(tokio::spawn(follower.run(stop.clone())));
        }

        let started = Instant::now();
        self.write(&trace.edits[first..], &writers, &journals, started, bar).await?;
        for writer in &writers {
            writer.workspace.saved().await?;
        }
        let elapsed = started.elapsed();

        let joiner = join(connector.reader(0))?;
        joiner.workspace.loaded().await?;
        let everyone: Vec<&Member> = writers.iter().chain(&observers).chain([&joiner]).collect();
        for member in &everyone {
            for journal in &journals {
                until(&member.workspace, |workspace| journal.has_arrived(workspace)).await?;
            }
        }
        stop.cancel();
        let mut paused = Duration::ZERO;
        for follower in followers {
            paused = paused.max(follower.await?);
        }

        let mut failures = Vec::new();
        let mut differ = 0;
        for (n, member) in everyone.iter().enumerate() {
            if member.workspace.text(CONTAINER).to_string() != trace.end {
                differ += 1;
                let who = match n {
                    n if n < writers.len() => format!("writer {n}"),
                    n if n + 1 < everyone.len() => format!("observer {}", n - writers.len()),
                    _ => "the fresh joiner".to_owned(),
                };
                failures.push(format!("the text of {who} is not the trace's end"));
            }
            for refused in member.workspace.take_refused() {
                failures.push(format!("{} edits were refused: {}", refused.edits.len(), refused.message));
            }
        }
        let hash = |member: &&Member| member.workspace.read(|document| document.state_hash());
        let state_equal = everyone.iter().map(hash).all(|other| other == hash(&everyone[0]));
        let moved: Vec<_> = everyone.iter().map(|member| member.client.moved()).collect();
        let acked = |(journal, writer): (&Arc<Journal>, &Member)| journal.acked(writer.workspace.acked());
        let ops_sent = journals.iter().map(|journal| journal.len()).sum();
        Ok(Report {
            workspace: name,
            ops_sent,
            ops_acked: journals.iter().zip(&writers).map(acked).sum(),
            latency_ms: latency.summary(),
            ack_ms: ack.summary(),
            final_text_equal: differ == 0,
            state_equal,
            elapsed_s: elapsed.as_secs_f64(),
            ops_per_s: ops_sent as f64 / elapsed.as_secs_f64(),
            bytes_sent: moved.iter().map(|moved| moved.bytes_sent).sum(),
            bytes_received: moved.iter().map(|moved| moved.bytes_received).sum(),
            reconnects: moved.iter().map(|moved| moved.connections.saturating_sub(1)).sum(),
            writing_paused_ms_max: paused.as_secs_f64() * 1000.0,
            resumed_at: first,
            own_cpu_s: own_cpu().as_secs_f64(),
            failures,
        })
    }

    /// Brings the workspace to the trace's start, or finds how far an earlier run came.
    async fn begin(&self, trace: &Trace, writer: &Workspace) -> anyhow::Result<usize> {
        let text = writer.text(CONTAINER);
        let present = text.to_string();
        if self.resume {
            return trace
                .reached(&present)
                .context("the workspace's text is none that this trace goes through");
        }
        ensure!(present.is_empty(), "the workspace has a text already\nfix: take another one, or --resume");
        text.insert(0, &trace.start)?;
        writer.saved().await?;
        Ok(0)
    }

    /// Types. Positions are those of the text with everything before, so a writer whose turn begins waits
    /// until it has all that was written.
    async fn write(
        &self,
        edits: &[Edit],
        writers: &[Member],
        journals: &[Arc<Journal>],
        started: Instant,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let mut made: u32 = 0;
        for (turn, edits) in edits.chunks(self.turn as usize).enumerate() {
            let n = turn % writers.len();
            let workspace = &writers[n].workspace;
            if writers.len() > 1 {
                let previous = &journals[(n + writers.len() - 1) % writers.len()];
                until(workspace, |workspace| previous.has_arrived(workspace)).await?;
            }
            for edit in edits {
                if let Some(rate) = self.rate {
                    let due = started + Duration::from_secs_f64(f64::from(made) / rate);
                    tokio::time::sleep_until(due.into()).await;
                }
                until(workspace, |workspace| workspace.pending() < self.window as usize).await?;
                journals[n].note(workspace, Instant::now(), || type_edit(workspace, edit))?;
                made += 1;
                bar.inc(1);
            }
        }
        Ok(())
    }
}

/// One edit is one change, unless it is too large for that.
fn type_edit(workspace: &Workspace, edit: &Edit) -> Result<(), EditError> {
    let range = edit.at..edit.at + edit.deleted;
    if edit.inserted.len() + 8 * edit.deleted > 32 << 10 {
        let text = workspace.text(CONTAINER);
        text.delete(range)?;
        return text.insert(edit.at, &edit.inserted);
    }
    workspace.edit(|change| {
        if !range.is_empty() {
            change.delete(CONTAINER, range)?;
        }
        if !edit.inserted.is_empty() {
            change.insert(CONTAINER, edit.at, &edit.inserted)?;
        }
        Ok(())
    })
}

/// Waits until something holds for a workspace; fails when it can no longer come to hold.
pub(crate) async fn until(workspace: &Workspace, holds: impl Fn(&Workspace) -> bool) -> anyhow::Result<()> {
    if holds(workspace) {
        return Ok(());
    }
    let mut changes = workspace.changes();
    let mut stopped = workspace.stopped();
    loop {
        if holds(workspace) {
            return Ok(());
        }
        if let Some(refused) = workspace.status().refused.first() {
            bail!("edits were refused: {}\nfix: {}", refused.message, refused.fix);
        }
        if let Some(evicted) = workspace.status().evicted {
            bail!("the server closed the workspace: {}\nfix: {}", evicted.message, evicted.fix);
        }
        tokio::select! {
            changed = changes.changed() => changed?,
            stop = &mut stopped => bail!("{stop}\nfix: {}", stop.fix),
        }
    }
}

impl Trace {
    /// After how many edits the text is this one; the most, when it comes back to it.
    fn reached(&self, text: &str) -> Option<usize> {
        let wanted: Vec<char> = text.chars().collect();
        let mut now: Vec<char> = self.start.chars().collect();
        let mut reached = (now == wanted).then_some(0);
        for (index, edit) in self.edits.iter().enumerate() {
            now.splice(edit.at..edit.at + edit.deleted, edit.inserted.chars());
            if now.len() == wanted.len() && now == wanted {
                reached = Some(index + 1);
            }
        }
        reached
    }
}
