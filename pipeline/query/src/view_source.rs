//! PromQL over a [`ReadView`]: the seam between the evaluator and storage, and where a query learns which tier it reads.

use crate::engine::{Origin, QueryError, SeriesSource, Windows, WindowsOf};
use crate::tier_choice::{Choice, TierState, choose, may_fit, stretches, values_of, window_end};
use async_trait::async_trait;
use chrono::{DateTime, SecondsFormat};
use fletch_schemas::{METRIC_NAME, MatchOp, Matcher, SeriesSet};
use fletch_storage::tiers::TierSnapshot;
use fletch_storage::view::{SelectLimits, Stretch, TierValue, WindowsAsk};
use fletch_storage::{ReadView, StorageError};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// One tenant's view as a source of series; every selector of a query sees the same version. One source serves one query.
#[derive(Debug, Clone)]
pub struct ViewSource {
    view: ReadView,
    limits: SelectLimits,
    tiers: Arc<OnceCell<Vec<TierSnapshot>>>,
    origin: Arc<Mutex<Origin>>,
}

impl ViewSource {
    /// A source over `view` under `limits`.
    pub fn new(view: ReadView, limits: &fletch_common::Limits) -> Self {
        Self { view, limits: limits.into(), tiers: Arc::default(), origin: Arc::default() }
    }

    /// The view.
    pub fn view(&self) -> &ReadView {
        &self.view
    }

    async fn tiers(&self) -> Result<&[TierSnapshot], StorageError> {
        self.tiers.get_or_try_init(|| self.view.tiers()).await.map(Vec::as_slice)
    }

    fn states(&self, tiers: &[TierSnapshot], metric: Option<&str>) -> Vec<TierState> {
        let state = |tier: &TierSnapshot| TierState {
            width_ms: tier.tier.width_ms,
            gone_until_ms: self.view.tier_gone_until(tier, metric),
            settled_until_ms: self.view.settled_until(tier, metric),
        };
        tiers.iter().map(state).collect()
    }

    /// Tiers for `(after_ms, last_ms]` where raw is gone up to `gone_ms`, said in the answer; and where raw has to be looked at besides.
    fn expired(&self, tiers: &[TierSnapshot], states: &[TierState], gone_ms: i64, after_ms: i64, last_ms: i64) -> (Vec<Stretch>, i64) {
        let found = stretches(gone_ms, states, after_ms, last_ms);
        let names: Vec<&'static str> = found.iter().map(|(at, ..)| tiers[*at].tier.name).collect();
        if !names.is_empty() {
            let before =
                DateTime::from_timestamp_millis(gone_ms).map_or_else(String::new, |t| t.to_rfc3339_opts(SecondsFormat::Secs, true));
            self.say(&names, Some(format!("raw samples before {before} have expired; read from tier {}", names.join(", "))));
        }
        let settled = found.iter().map(|(at, ..)| states[*at].settled_until_ms).min().unwrap_or(i64::MAX);
        let until = found.iter().map(|(.., until)| *until).max().unwrap_or(after_ms);
        let made = found.into_iter().map(|(at, after_ms, until_ms)| Stretch { tier: tiers[at].clone(), after_ms, until_ms });
        (made.collect(), settled.min(until).max(after_ms).saturating_add(1))
    }

    fn say(&self, tiers: &[&'static str], info: Option<String>) {
        let mut origin = self.origin.lock();
        for tier in tiers {
            if !origin.tiers.contains(tier) {
                origin.tiers.push(tier);
            }
        }
        let info = info.map(|info| format!("PromQL info: {info}"));
        if let Some(info) = info.filter(|info| !origin.infos.contains(info)) {
            origin.infos.push(info);
        }
    }

    async fn windows_of(&self, matchers: &[Matcher], ask: &WindowsOf) -> Result<Option<Windows>, StorageError> {
        let Some(values) = values_of(ask.function) else { return Ok(None) };
        let metric = metric_of(matchers);
        let gone = self.view.raw_gone_until(metric);
        if !may_fit(ask, gone) {
            return Ok(None);
        }
        let tiers = self.tiers().await?;
        let states = self.states(tiers, metric);
        let (after_ms, max_ms) = (ask.after_ms(), ask.last_end_ms());
        let (stretches, raw_from_ms) = match (choose(ask, gone, &states), gone) {
            (Choice::Raw, _) | (Choice::Expired, None) => return Ok(None),
            // Windows that cut rows in two would count what the curve does not have.
            (Choice::Expired, _) if values.contains(&TierValue::Counter) => return Ok(None),
            (Choice::Equal(at), gone) => {
                let (tier, settled_ms) = (&tiers[at], states[at].settled_until_ms);
                let gone_ms = gone.map_or(i64::MIN, |gone| window_end(states[at].width_ms, gone));
                let until_ms = settled_ms.max(gone_ms).min(max_ms);
                (vec![Stretch { tier: tier.clone(), after_ms, until_ms }], settled_ms.saturating_add(1))
            }
            (Choice::Expired, Some(gone_ms)) => self.expired(tiers, &states, gone_ms, after_ms, max_ms),
        };
        let mut sets = Vec::with_capacity(values.len());
        for value in values {
            let ask = WindowsAsk { matchers, stretches: &stretches, raw_from_ms, max_ms, value: *value };
            match self.view.select_windows(&ask, &self.limits).await? {
                Some(set) => sets.push(set),
                None => return Ok(None),
            }
        }
        self.say(&stretches.iter().map(|s| s.tier.tier.name).collect::<Vec<_>>(), None);
        Ok(match (sets.pop(), sets.pop()) {
            (Some(counts), Some(curves)) if values.contains(&TierValue::Counter) => Some(Windows::Counters { curves, counts }),
            (Some(counts), Some(sums)) => Some(Windows::Average { sums, counts }),
            (only, _) => only.map(Windows::Values),
        })
    }

    async fn samples_of(&self, matchers: &[Matcher], min_ms: i64, max_ms: i64) -> Result<SeriesSet, StorageError> {
        let metric = metric_of(matchers);
        let gone = self.view.raw_gone_until(metric).filter(|gone| min_ms <= *gone);
        let Some(gone_ms) = gone else { return self.view.select(matchers, min_ms, max_ms, &self.limits).await };
        let tiers = self.tiers().await?;
        let states = self.states(tiers, metric);
        let after_ms = min_ms.saturating_sub(1);
        let (stretches, raw_from_ms) = self.expired(tiers, &states, gone_ms, after_ms, max_ms);
        let ask = WindowsAsk { matchers, stretches: &stretches, raw_from_ms, max_ms, value: TierValue::Samples };
        Ok(self.view.select_windows(&ask, &self.limits).await?.unwrap_or_default())
    }
}

#[async_trait]
impl SeriesSource for ViewSource {
    async fn select(&self, matchers: &[Matcher], min_ms: i64, max_ms: i64) -> Result<SeriesSet, QueryError> {
        self.samples_of(matchers, min_ms, max_ms).await.map_err(query_error)
    }

    async fn windows(&self, matchers: &[Matcher], ask: &WindowsOf) -> Result<Option<Windows>, QueryError> {
        self.windows_of(matchers, ask).await.map_err(query_error)
    }

    fn origin(&self) -> Origin {
        self.origin.lock().clone()
    }
}

/// The one metric that a selector names, if it names one.
fn metric_of(matchers: &[Matcher]) -> Option<&str> {
    matchers.iter().find(|m| m.name == METRIC_NAME && m.op == MatchOp::Equal).map(|m| m.value.as_str())
}

fn query_error(error: StorageError) -> QueryError {
    match error {
        StorageError::Limit(text) => QueryError::Execution(text),
        StorageError::Regex { .. } => QueryError::BadData(error.to_string()),
        other => QueryError::storage(other),
    }
}

#[cfg(test)]
mod tests;
