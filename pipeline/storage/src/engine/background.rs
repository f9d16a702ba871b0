//! What runs beside deliveries and queries: follow the tables, flush by size and age, load older files, checkpoints.

use super::core::Core;
use crate::StorageError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A flush that failed is tried again after this long, however much waits.
const FAILED_FLUSH_PAUSE_MS: i64 = 5_000;
/// While the log moves without samples, the offset follows it this often at least, so that the log can be cut.
const EMPTY_COMMIT_MS: i64 = 300_000;
/// How often checkpoints and log clean-up are considered.
const CHECKPOINT_EVERY_MS: i64 = 60_000;
/// Dates per tenant whose files are loaded after the start while there is room.
const WARM_DATES_MAX: usize = 31;

/// When things are due, by the engine's clock.
#[derive(Debug)]
struct Timers {
    refresh_ms: i64,
    flush_not_before_ms: i64,
    checkpoint_ms: i64,
}

impl Core {
    /// Works until `stop`. Does not flush at the end: the caller does, after the bus is closed.
    pub(crate) async fn run_background(self: Arc<Self>, stop: CancellationToken) {
        let mut timers = Timers { refresh_ms: i64::MIN, flush_not_before_ms: i64::MIN, checkpoint_ms: self.clock.now_ms() };
        let _ = stop.run_until_cancelled(self.warm_up(WARM_DATES_MAX)).await;
        loop {
            let tick = self.settings.refresh_interval.max(Duration::from_millis(10));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep(tick) => {}
                () = self.flush_wanted.notified() => {}
            }
            if stop.run_until_cancelled(self.one_round(&mut timers)).await.is_none() {
                return;
            }
        }
    }

    async fn one_round(&self, timers: &mut Timers) {
        let now = self.clock.now_ms();
        // A full memory wakes this task at each delivery: the tables are not asked more often for that.
        if now.saturating_sub(timers.refresh_ms) >= i64::try_from(self.settings.refresh_interval.as_millis()).unwrap_or(i64::MAX) {
            timers.refresh_ms = now;
            if let Err(error) = self.refresh().await {
                tracing::warn!(%error, "the tables cannot be followed at the moment");
            }
        }
        if now >= timers.flush_not_before_ms
            && self.flush_is_due(now)
            && let Err(error) = self.flush().await
        {
            tracing::error!(%error, "the flush failed: its data stays in memory and in the log");
            timers.flush_not_before_ms = self.clock.now_ms().saturating_add(FAILED_FLUSH_PAUSE_MS);
        }
        if now.saturating_sub(timers.checkpoint_ms) >= CHECKPOINT_EVERY_MS {
            timers.checkpoint_ms = now;
            if let Err(error) = self.keep_logs_short().await {
                tracing::warn!(%error, "no checkpoint this time");
            }
        }
        self.count_series();
    }

    /// Checkpoints of both tables, and the clean-up of `series`' log. That of `samples` is for whoever knows the slowest follower of it.
    async fn keep_logs_short(&self) -> Result<(), StorageError> {
        self.samples.checkpoint_if_due().await?;
        if self.series.checkpoint_if_due().await?.is_some() {
            self.series.cleanup_log(None).await?;
        }
        Ok(())
    }

    fn flush_is_due(&self, now_ms: i64) -> bool {
        let (moved, empty) = {
            let state = self.state.read();
            (state.partitions.values().any(|p| p.moved()), state.hot_samples == 0)
        };
        if !moved {
            return false;
        }
        let age = now_ms.saturating_sub(self.last_flush_ms.load(Ordering::Relaxed));
        let interval = i64::try_from(self.settings.flush_interval.as_millis()).unwrap_or(i64::MAX);
        let log_full = self.settings.log_bytes_max.is_some_and(|max| self.log_bytes.load(Ordering::Relaxed) >= max / 2);
        let asked = self.flush_asked.swap(false, Ordering::Relaxed);
        asked || (empty && age >= EMPTY_COMMIT_MS) || age >= interval || log_full || self.unflushed_bytes() >= self.settings.flush_bytes
    }
}
