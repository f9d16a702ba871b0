//! The only source of "now" and the only way to wait.
//!
//! The rest of the workspace takes a [`SharedClock`]; `SystemTime::now` and `tokio::time::sleep` are banned by `clippy.toml`.
//! Elapsed time for self-metrics (`Instant`) is not time in this sense and stays as it is.

use async_trait::async_trait;
use parking_lot::Mutex;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A clock that tells the time and can wait.
#[async_trait]
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;
    /// Returns when `duration` of this clock has passed.
    async fn sleep(&self, duration: Duration);
}

/// How clocks are passed around.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the machine's clock")]
    fn now_ms(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
    }

    #[allow(clippy::disallowed_methods, reason = "this is the one place that waits")]
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// A clock that a test moves by hand.
#[derive(Debug)]
pub struct ManualClock {
    now_ms: watch::Sender<i64>,
    order: Mutex<()>,
}

impl ManualClock {
    /// A clock that stands at `now_ms`.
    pub fn at(now_ms: i64) -> Arc<Self> {
        Arc::new(Self { now_ms: watch::Sender::new(now_ms), order: Mutex::new(()) })
    }

    /// Moves it forward and wakes the sleepers.
    pub fn advance(&self, by: Duration) {
        let _one_at_a_time = self.order.lock();
        self.now_ms.send_modify(|now| *now += i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
    }

    /// Puts it anywhere, also back.
    pub fn set(&self, now_ms: i64) {
        let _one_at_a_time = self.order.lock();
        self.now_ms.send_replace(now_ms);
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        *self.now_ms.borrow()
    }

    async fn sleep(&self, duration: Duration) {
        let mut changes = self.now_ms.subscribe();
        let until = self.now_ms().saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX));
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = changes.wait_for(|now| *now >= until).await;
    }
}
