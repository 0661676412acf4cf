//! What the workers of the process tell about themselves.
#![forbid(unsafe_code)]

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What there is on the workers of the process at one moment, from
/// [`metrics`](super::workers::metrics).
///
/// The numbers are read one after the other, while the workers go on: they need
/// not fit each other.
///
/// # Examples
///
/// As Prometheus reads them:
///
/// ```
/// use greenhack::workers::{self, Metrics};
///
/// fn gauges(metrics: &Metrics) -> String {
///     let mut text = format!("runs_queued {}\n", metrics.queued());
///     for (worker, live) in metrics.live_per_worker().iter().enumerate() {
///         text += &format!("runs_live{{worker=\"{worker}\"}} {live}\n");
///     }
///     text + &format!("runs_started_total {}\n", metrics.started())
/// }
///
/// # fn main() -> std::io::Result<()> {
/// // There are no workers yet.
/// assert_eq!(gauges(&workers::metrics()), "runs_queued 0\nruns_started_total 0\n");
///
/// workers::Builder::new().threads(1).start()?;
/// # let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
/// let page = runtime.block_on(greenhack::run_sync(|| gauges(&workers::metrics())));
/// assert_eq!(page, "runs_queued 0\nruns_live{worker=\"0\"} 1\nruns_started_total 1\n");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) queued: usize,
    pub(super) live: Vec<usize>,
    pub(super) started: u64,
}

impl Metrics {
    /// Returns how many runs wait for a worker to start them.
    ///
    /// A run that is cancelled meanwhile counts until a worker comes to it.
    /// What waits has no stack yet: it costs what its closure holds.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Returns how many runs have been started and have not ended, with those
    /// that are cancelled and still clean up.
    pub fn live(&self) -> usize {
        self.live.iter().sum()
    }

    /// Returns how many of them each worker has. Empty if the workers have not
    /// been started.
    pub fn live_per_worker(&self) -> &[usize] {
        &self.live
    }

    /// Returns how many runs have been started since the workers were.
    pub fn started(&self) -> u64 {
        self.started
    }
}

/// What one worker counts. Only its thread writes.
#[derive(Debug, Default)]
pub(super) struct Tally {
    live: AtomicUsize,
    started: AtomicU64,
}

thread_local! {
    static TALLY: Arc<Tally> = Arc::default();
}

impl Tally {
    /// That of this thread.
    pub(super) fn of_this_thread() -> Arc<Tally> {
        TALLY.with(Arc::clone)
    }

    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub(super) fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }
}

/// A run that counts as live on this thread, until it is dropped there.
pub(super) struct Live(PhantomData<*const ()>);

impl Live {
    pub(super) fn begin() -> Live {
        TALLY.with(|tally| {
            // Nobody else writes, so that two steps are as good as one.
            tally.live.store(tally.live() + 1, Ordering::Relaxed);
            tally.started.store(tally.started() + 1, Ordering::Relaxed);
        });
        Live(PhantomData)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // A thread whose locals are gone is not asked any more.
        let _ = TALLY.try_with(|tally| tally.live.store(tally.live() - 1, Ordering::Relaxed));
    }
}
