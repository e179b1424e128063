//! The order of leaving: drain, then stop, then gone, each within its limit.
//!
//! **Drain**: not ready any more, take nothing new, finish what is under way, tell clients to go elsewhere.
//! Whoever has something to finish keeps a [`Hold`]. **Stop**: when the last hold is gone, or the grace is over,
//! everything ends. A second signal ends the process at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One process's way out; clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    drain: CancellationToken,
    stop: CancellationToken,
    grace: Duration,
    /// Names of holds, by their number.
    holds: Mutex<BTreeMap<u64, String>>,
    held: watch::Sender<u64>,
}

/// Delays the stop until it is dropped, or the grace is over.
#[derive(Debug)]
pub struct Hold {
    shared: Arc<Shared>,
    number: u64,
}

impl Shutdown {
    /// `grace` is how long holds may delay the stop. Keep it below what the platform grants
    /// (`terminationGracePeriodSeconds`).
    #[must_use]
    pub fn new(grace: Duration) -> Shutdown {
        let shared = Shared {
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
            grace,
            holds: Mutex::default(),
            held: watch::Sender::new(0),
        };
        Shutdown { shared: Arc::new(shared) }
    }

    /// Starts the way out. Without [`run`](Self::run) or [`run_on_signals`](Self::run_on_signals) it stays in
    /// the drain phase.
    pub fn begin(&self) {
        self.shared.drain.cancel();
    }

    /// How long the drain may last.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.shared.grace
    }

    /// Cancelled when the drain begins.
    #[must_use]
    pub fn drain(&self) -> CancellationToken {
        self.shared.drain.clone()
    }

    /// Cancelled when the process must end now. Cancelled after [`drain`](Self::drain), always.
    #[must_use]
    pub fn stop(&self) -> CancellationToken {
        self.shared.stop.clone()
    }

    /// Ends when the drain begins.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shared.drain.clone().cancelled_owned()
    }

    /// Ends when the process must end now.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shared.stop.clone().cancelled_owned()
    }

    /// Keeps the process in the drain phase while it is held.
    #[must_use]
    pub fn hold(&self, name: impl Into<String>) -> Hold {
        let mut holds = self.shared.lock();
        let number = holds.last_key_value().map_or(0, |(number, _)| number + 1);
        holds.insert(number, name.into());
        Hold { shared: self.shared.clone(), number }
    }

    /// Waits for the drain to begin, then for the last hold or the end of the grace, then stops. Gives the
    /// names of what was still held.
    pub async fn run(&self) -> Vec<String> {
        self.shared.drain.cancelled().await;
        let mut held = self.shared.held.subscribe();
        let shared = &self.shared;
        let released = held.wait_for(|_| shared.lock().is_empty());
        let _ = tokio::time::timeout(self.shared.grace, released).await;
        self.shared.stop.cancel();
        self.shared.lock().values().cloned().collect()
    }

    /// [`run`](Self::run) in a task, begun by SIGTERM or SIGINT. A second signal ends the process at once with
    /// status 128 + its number.
    ///
    /// # Errors
    ///
    /// The handlers could not be installed. Call it inside a tokio runtime.
    pub fn run_on_signals(&self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            let name = either(&mut terminate, &mut interrupt).await.0;
            tracing::info!(signal = name, grace_seconds = shutdown.grace().as_secs_f64(), "shutting down");
            shutdown.begin();
            let (name, status) = either(&mut terminate, &mut interrupt).await;
            tracing::warn!(signal = name, "second signal: ending at once");
            std::process::exit(status);
        });
        let shutdown = self.clone();
        tokio::spawn(async move {
            let left = shutdown.run().await;
            if !left.is_empty() {
                tracing::warn!(?left, "the grace is over; stopping with work left");
            }
        });
        Ok(())
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = terminate.recv() => ("SIGTERM", 128 + 15),
        _ = interrupt.recv() => ("SIGINT", 128 + 2),
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.number);
        self.shared.held.send_modify(|released| *released += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick() -> Duration {
        Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn without_holds_the_stop_follows_the_drain() {
        let shutdown = Shutdown::new(tick());
        let run = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.run().await }
        });
        assert!(!shutdown.drain().is_cancelled());
        shutdown.begin();
        shutdown.draining().await;
        shutdown.stopping().await;
        assert_eq!(run.await.unwrap(), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_delays_the_stop() {
        let shutdown = Shutdown::new(tick() * 100);
        let first = shutdown.hold("sessions");
        let second = shutdown.hold("leases");
        shutdown.begin();
        let mut run = Box::pin(shutdown.run());
        assert!(tokio::time::timeout(tick(), &mut run).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(tick(), &mut run).await.is_err());
        assert!(!shutdown.stop().is_cancelled());
        drop(second);
        assert_eq!(run.await, Vec::<String>::new());
        assert!(shutdown.stop().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_ends_the_wait_and_names_who_stayed() {
        let shutdown = Shutdown::new(tick() * 5);
        let _stuck = shutdown.hold("sessions");
        let begun = tokio::time::Instant::now();
        shutdown.begin();
        assert_eq!(shutdown.run().await, ["sessions"]);
        assert_eq!(begun.elapsed(), tick() * 5);
        assert!(shutdown.stop().is_cancelled());
    }
}
