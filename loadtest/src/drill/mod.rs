//! Faults on purpose: the whole system on this machine, clients that write and watch, processes that are
//! killed and links that break, and at the end the question whether everything was kept that was promised.
//!
//! Which faults are made when comes from a seed. What they meet does not: processes take the time that they
//! take. So a seed repeats the faults, and not the run.

mod log;
mod member;
mod plan;
mod report;
mod site;
mod watcher;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::ProgressBar;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use plan::{Fault, Harm, Pace, Pause, Targets, longest_pauses, plan};
pub use report::{Controls, FaultFigures, Report, check_file};

use crate::access::{Connector, online};
use crate::checker::{self, Event};
use log::{Audit, Drilled};
use member::{ClientNumbers, Member, Notes, Orders, Progress, now};
use site::Site;
use watcher::{Seen, Watched, Watcher};

/// How often a condition in this process is looked at.
const LOOK_EACH: Duration = Duration::from_millis(20);
/// How long beyond what is promised the run waits, so that it can say how late things were.
const PATIENCE: Duration = Duration::from_secs(60);

/// `loadtest drill`
#[derive(Clone, Debug, clap::Args)]
pub struct Drill {
    /// How long faults are made
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Which faults are made when; drawn and printed when it is not given
    #[arg(long)]
    pub seed: Option<u64>,
    /// Drill one `manyhands dev` process with SQLite instead of a cluster
    #[arg(long)]
    pub dev: bool,
    /// Documents
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub documents: u16,
    /// Clients that write, in each document
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub writers: u16,
    /// Edits a second, of all together
    #[arg(long, default_value_t = 60.0)]
    pub rate: f64,
    /// Clients that watch every document, frame by frame
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub watchers: u16,
    /// Seconds that a process stands still at most
    #[arg(long, default_value_t = 6.0)]
    pub pause_max: f64,
    /// Seconds after the last fault within which everything must be acknowledged and visible
    #[arg(long, default_value_t = 30.0)]
    pub settle_max: f64,
    /// The manyhands program; by default the one next to this program
    #[arg(long)]
    pub binary: Option<PathBuf>,
    /// Keep the run's files here; by default they are removed unless something is wrong
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// A fault that was made.
#[derive(Clone, Debug)]
struct Made {
    label: String,
    began: Duration,
    ended: Duration,
}

impl Drill {
    /// Runs it.
    ///
    /// # Errors
    /// When the run could not be made; what the system did wrong is in the report.
    pub async fn run(self, bar: ProgressBar) -> anyhow::Result<Report> {
        let seed = self.seed.unwrap_or_else(|| rand::random::<u64>() >> 40);
        let command = format!(
            "loadtest drill {}--seconds {} --seed {seed}",
            if self.dev { "--dev " } else { "" },
            self.seconds
        );
        bar.println(&command);
        let report = self.drill(seed, &bar).await.with_context(|| format!("the run failed: {command}"))?;
        Ok(Report { command, ..report })
    }

    async fn drill(&self, seed: u64, bar: &ProgressBar) -> anyhow::Result<Report> {
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            None => std::env::current_exe()?.with_file_name("manyhands"),
        };
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => std::env::temp_dir().join(format!("manyhands-drill-{seed:x}-{}", std::process::id())),
        };
        let started = Instant::now();
        bar.set_message("starting");
        let site = {
            let (dir, runtime, dev) = (dir.clone(), Handle::current(), self.dev);
            let start = move || match dev {
                true => Site::dev(&dir, binary, &runtime),
                false => Site::cluster(&dir, binary, &runtime),
            };
            tokio::task::spawn_blocking(start).await??
        };
        let connector = site.connector()?;
        online(&connector.any(0)).await?;

        let began = Instant::now();
        let crowd = self.gather(&connector, seed, began);
        let (site, faults) = self.hurt(site, seed, began, bar).await?;
        let healed = Event::Healed { at: now() };
        bar.set_message("settling");
        let joiners = self.settle(&connector, &crowd).await;

        crowd.end.cancel();
        let mut notes: Vec<Notes> = Vec::new();
        let mut seen: Vec<Seen> = Vec::new();
        let (mut members, mut watchers) = (crowd.members, crowd.watchers);
        while let Some(member) = members.join_next().await {
            notes.push(member?);
        }
        while let Some(watcher) = watchers.join_next().await {
            seen.push(watcher?);
        }
        notes.extend(joiners);

        bar.set_message("checking");
        let site = quiet(site).await?;
        let history = history(&site, &notes, &seen, &crowd.names, healed).await?;
        let options =
            checker::Options { settle_max: (self.settle_max * 1e6) as u64, ..checker::Options::default() };
        let verdict = checker::check(&history, options);
        let controls = Controls::run(&history, options, site.has_audit());
        let report = Report::of(verdict, controls, &faults, &notes, &seen);
        let ended = site.ended.clone();
        // Ends the processes before their files go.
        tokio::task::spawn_blocking(move || drop(site)).await?;
        let report = Report {
            seed,
            seconds: self.seconds,
            ended_by_themselves: ended,
            elapsed_s: started.elapsed().as_secs_f64(),
            ..report
        };
        // A process that ended by itself has said why in its log.
        if !report.passed() || !report.ended_by_themselves.is_empty() {
            let path = dir.join("history.jsonl");
            report::write_history(&path, &history)?;
            bar.println(format!("the history and every log: {}", dir.display()));
        } else if self.dir.is_none() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        Ok(report)
    }

    /// Everybody who writes, reads and watches.
    fn gather(&self, connector: &Connector, seed: u64, began: Instant) -> Crowd {
        let numbers = Arc::new(ClientNumbers::default());
        let (quiet, end) = (CancellationToken::new(), CancellationToken::new());
        let orders = Orders { quiet: quiet.clone(), end: end.clone(), began };
        let names: Vec<String> =
            (0..self.documents).map(|document| format!("drill-{seed:x}-{document}")).collect();
        let mut crowd = Crowd {
            numbers: numbers.clone(),
            names: names.clone(),
            members: JoinSet::new(),
            watchers: JoinSet::new(),
            progress: Vec::new(),
            watched: Vec::new(),
            quiet,
            end: end.clone(),
            orders: orders.clone(),
        };
        let rate = self.rate / f64::from(self.documents) / f64::from(self.writers);
        let mut writer = 0;
        for (document, name) in (0..).zip(&names) {
            for place in 0..=self.writers {
                // The last one of each document only reads.
                let writes = place < self.writers;
                let progress = Arc::new(Progress::default());
                let member = Member {
                    connector: connector.clone(),
                    edge: usize::from(place + document),
                    numbers: numbers.clone(),
                    document,
                    name: name.clone(),
                    writer: writes.then_some(writer),
                    rate,
                    dies_each: 400,
                    seed: seed ^ (u64::from(document) << 32 | u64::from(place) << 48),
                    progress: progress.clone(),
                };
                writer += u16::from(writes);
                crowd.progress.push((document, progress));
                crowd.members.spawn(member.run(orders.clone()));
            }
        }
        for place in 0..self.watchers {
            let mut documents = Vec::new();
            for (document, name) in (0..).zip(&names) {
                let have = Arc::new(AtomicU64::new(0));
                crowd.watched.push((document, have.clone()));
                documents.push(Watched::new(document, name.clone(), have));
            }
            let watcher = Watcher {
                connector: connector.clone(),
                edge: place.into(),
                client: numbers.next(),
                documents,
                seed: seed ^ u64::from(place),
                end: end.clone(),
            };
            crowd.watchers.spawn(watcher.run());
        }
        crowd
    }

    /// Makes the faults, on a thread: to kill and to start blocks.
    async fn hurt(
        &self,
        mut site: Site,
        seed: u64,
        began: Instant,
        bar: &ProgressBar,
    ) -> anyhow::Result<(Site, Vec<Made>)> {
        let length = Duration::from_secs_f64(self.seconds);
        let pace = Pace { pause_max: Duration::from_secs_f64(self.pause_max), ..Pace::default() };
        let faults = plan(seed, length, &site.targets(), &pace);
        bar.set_message("faults");
        bar.set_length(faults.len() as u64);
        let bar = bar.clone();
        tokio::task::spawn_blocking(move || {
            // Beginnings and ends, in order.
            let mut steps: Vec<(Duration, bool, usize)> = Vec::new();
            for (n, fault) in faults.iter().enumerate() {
                steps.extend([(fault.at, true, n), (fault.at + fault.lasts, false, n)]);
            }
            steps.sort_by_key(|(at, begins, n)| (*at, *n, !*begins));
            let mut made: Vec<Option<Made>> = vec![None; faults.len()];
            for (at, begins, n) in steps {
                while let Some(left) = at.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
                    std::thread::sleep(left.min(Duration::from_millis(100)));
                    site.look_after()?;
                }
                let fault = &faults[n];
                if begins {
                    let since = began.elapsed();
                    made[n] = Some(Made { label: fault.label(), began: since, ended: since });
                    site.hurt(&fault.target, fault.harm)?;
                    bar.inc(1);
                } else {
                    site.heal(&fault.target, fault.harm)?;
                    if let Some(made) = &mut made[n] {
                        made.ended = began.elapsed();
                    }
                }
            }
            std::thread::sleep(length.saturating_sub(began.elapsed()));
            site.heal_all()?;
            Ok((site, made.into_iter().flatten().collect()))
        })
        .await?
    }

    /// Waits until everything is acknowledged and everybody has it, or for as long as is worth waiting. Gives
    /// what newcomers were shown.
    async fn settle(&self, connector: &Connector, crowd: &Crowd) -> Vec<Notes> {
        crowd.quiet.cancel();
        let deadline = Instant::now() + Duration::from_secs_f64(self.settle_max) + PATIENCE;
        let wait = async |done: &dyn Fn() -> bool| {
            while !done() && Instant::now() < deadline {
                tokio::time::sleep(LOOK_EACH).await;
            }
        };
        let saved = |progress: &Progress| progress.quiet.load(SeqCst) && progress.pending.load(SeqCst) == 0;
        wait(&|| crowd.progress.iter().all(|(_, progress)| saved(progress))).await;
        // What a newcomer is shown now has everything that was acknowledged.
        let mut newcomers = JoinSet::new();
        let end = CancellationToken::new();
        let mut joined = Vec::new();
        for (document, name) in (0..).zip(&crowd.names) {
            for edge in 0..connector.urls().len() {
                let progress = Arc::new(Progress::default());
                joined.push((document, progress.clone()));
                let member = Member {
                    connector: connector.clone(),
                    edge,
                    numbers: crowd.numbers.clone(),
                    document,
                    name: name.clone(),
                    writer: None,
                    rate: 1.0,
                    dies_each: 0,
                    seed: 0,
                    progress,
                };
                newcomers.spawn(member.run(Orders { end: end.clone(), ..crowd.orders.clone() }));
            }
        }
        let at_end = || {
            (0..self.documents).all(|document| {
                let here = crowd.progress.iter().chain(&joined).filter(|(of, _)| *of == document);
                let mut seqs: BTreeSet<u64> = here.map(|(_, progress)| progress.seq.load(Relaxed)).collect();
                let watched = crowd.watched.iter().filter(|(of, _)| *of == document);
                seqs.extend(watched.map(|(_, have)| have.load(Relaxed)));
                seqs.len() == 1
            })
        };
        wait(&at_end).await;
        end.cancel();
        let mut notes = Vec::new();
        while let Some(newcomer) = newcomers.join_next().await {
            notes.extend(newcomer);
        }
        notes
    }
}

/// Everybody who takes part.
struct Crowd {
    numbers: Arc<ClientNumbers>,
    names: Vec<String>,
    members: JoinSet<Notes>,
    watchers: JoinSet<Seen>,
    progress: Vec<(u16, Arc<Progress>)>,
    watched: Vec<(u16, Arc<AtomicU64>)>,
    quiet: CancellationToken,
    end: CancellationToken,
    orders: Orders,
}

async fn quiet(mut site: Site) -> anyhow::Result<Site> {
    Ok(tokio::task::spawn_blocking(move || {
        site.quiet();
        site
    })
    .await?)
}

/// Everything that is known of the run, in the order in which the checker takes it.
async fn history(
    site: &Site,
    notes: &[Notes],
    seen: &[Seen],
    names: &[String],
    healed: Event,
) -> anyhow::Result<Vec<Event>> {
    let events =
        || notes.iter().flat_map(|notes| &notes.events).chain(seen.iter().flat_map(|seen| &seen.events));
    let mut documents: Vec<Drilled> = (0..)
        .zip(names)
        .map(|(number, name)| Drilled { number, name: name.clone(), wanted: BTreeSet::from([1]) })
        .collect();
    for event in events() {
        if let Event::Opened { document, seq, state: Some(_), .. } = event
            && let Some(drilled) = documents.get_mut(usize::from(*document))
        {
            drilled.wanted.insert(*seq);
        }
    }
    let audit = if site.has_audit() { Audit::read(&site.log_url()).await? } else { Audit::default() };
    let log = manyhands_history::open(&site.log_url(), &manyhands_history::Options::default()).await?;
    let mut history = log::read(&log, &documents, &audit).await.context("cannot read the log")?;
    history.push(healed);
    history.extend(events().cloned());
    Ok(history)
}
