//! How long one keystroke takes from one socket to another.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, online};
use crate::measure::{Follower, Journal, Summary, Times, own_cpu};
use crate::replay::until;

const CONTAINER: &str = "main";
/// How long the last edits may take to arrive.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);

/// `loadtest probe`
#[derive(Clone, Debug, clap::Args)]
pub struct Probe {
    #[command(flatten)]
    access: Access,
    /// Workspace to write; a new one without it
    #[arg(long)]
    workspace: Option<String>,
    /// Edits a second
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// How long
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
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
    /// From when an edit was due to the reader having applied it.
    pub latency_ms: Summary,
    /// From when an edit was due to its acknowledgement.
    pub ack_ms: Summary,
    /// Writer and reader hold the same state.
    pub state_equal: bool,
    /// Connections beyond each client's first.
    pub reconnects: u64,
    /// Processor time of this process.
    pub own_cpu_s: f64,
}

impl Report {
    /// Everything that was checked is as it should be.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.state_equal && self.ops_acked == self.ops_sent && self.ops_sent > 0
    }
}

impl Probe {
    /// Runs it: open loop, so that a slow answer does not make the next question late.
    pub async fn run(self, bar: ProgressBar) -> anyhow::Result<Report> {
        let connector = self.access.connector()?;
        let name =
            self.workspace.clone().unwrap_or_else(|| format!("probe-{:012x}", rand::random::<u64>() >> 16));
        let (writing, reading) = (connector.writer(0), connector.reader(0));
        let (writer, reader) = (writing.open(&name)?, reading.open(&name)?);
        for (client, workspace) in [(&writing, &writer), (&reading, &reader)] {
            online(client).await?;
            workspace.loaded().await?;
        }
        let journal = Journal::of(&writer);
        let (latency, ack, stop) = (Times::default(), Times::default(), CancellationToken::new());
        let follow = |workspace: &manyhands_client::Workspace, writes: bool| Follower {
            workspace: workspace.clone(),
            own: writes.then(|| journal.clone()),
            others: if writes { Vec::new() } else { vec![journal.clone()] },
            latency: latency.clone(),
            ack: ack.clone(),
        };
        let followers = [
            tokio::spawn(follow(&writer, true).run(stop.clone())),
            tokio::spawn(follow(&reader, false).run(stop.clone())),
        ];

        let count = (self.rate * self.seconds).round() as u64;
        bar.set_length(count);
        let writing_thread = {
            let (writer, journal, rate, bar) = (writer.clone(), journal.clone(), self.rate, bar.clone());
            // A thread of its own: its sleep is finer than the runtime's timer.
            tokio::task::spawn_blocking(move || {
                let text = writer.text(CONTAINER);
                let start = Instant::now();
                for n in 0..count {
                    let due = start + Duration::from_secs_f64(n as f64 / rate);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    journal.note(&writer, due, || text.push("x"))?;
                    bar.inc(1);
                }
                Ok::<(), manyhands_client::EditError>(())
            })
        };
        writing_thread.await??;
        tokio::time::timeout(SETTLE_WITHIN, async {
            writer.saved().await?;
            until(&reader, |reader| journal.has_arrived(reader)).await
        })
        .await
        .with_context(|| format!("the last edits did not arrive within {SETTLE_WITHIN:?}"))??;
        stop.cancel();
        for follower in followers {
            follower.await?;
        }
        let hash = |workspace: &manyhands_client::Workspace| workspace.read(|document| document.state_hash());
        let reconnects = [&writing, &reading].map(|client| client.moved().connections.saturating_sub(1));
        Ok(Report {
            workspace: name,
            ops_sent: journal.len(),
            ops_acked: journal.acked(writer.acked()),
            latency_ms: latency.summary(),
            ack_ms: ack.summary(),
            state_equal: hash(&writer) == hash(&reader),
            reconnects: reconnects.iter().sum(),
            own_cpu_s: own_cpu().as_secs_f64(),
        })
    }
}
