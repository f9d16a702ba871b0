//! Series in memory: the [`SeriesSource`] of these tests.

use super::super::{QueryError, SeriesSource};
use async_trait::async_trait;
use fletch_schemas::pattern::Condition;
use fletch_schemas::{Labels, Matcher, SeriesSet};
use std::collections::BTreeMap;

/// Samples by label set and time. Later samples of a time replace earlier ones.
#[derive(Debug, Default)]
pub(crate) struct MemorySource {
    series: BTreeMap<Labels, BTreeMap<i64, f64>>,
}

impl MemorySource {
    pub(crate) fn add(&mut self, labels: &Labels, time_ms: i64, value: f64) {
        self.series.entry(labels.clone()).or_default().insert(time_ms, value);
    }
}

#[async_trait]
impl SeriesSource for MemorySource {
    async fn select(&self, matchers: &[Matcher], min_ms: i64, max_ms: i64) -> Result<SeriesSet, QueryError> {
        assert!(min_ms <= max_ms, "a selector asks for a range that is one");
        let compiled =
            matchers.iter().map(Condition::new).collect::<Result<Vec<_>, _>>().map_err(|e| QueryError::BadData(e.to_string()))?;
        let mut out = SeriesSet::default();
        for (labels, samples) in &self.series {
            let hit = compiled.iter().zip(matchers).all(|(c, m)| c.matches(labels.get(&m.name).unwrap_or("")));
            let inside: Vec<(i64, f64)> = samples.range(min_ms..=max_ms).map(|(t, v)| (*t, *v)).collect();
            if !hit || inside.is_empty() {
                continue;
            }
            let (times, values): (Vec<i64>, Vec<f64>) = inside.into_iter().unzip();
            // Series with the same times share them, as a store's series do.
            let twin = (0..out.len()).find(|i| out.times(*i) == times);
            out.push(labels.clone(), times, values);
            if let Some(twin) = twin {
                share_times(&mut out, twin);
            }
        }
        Ok(out)
    }
}

/// Moves the values of the last series behind those of `twin`, whose times it then uses.
fn share_times(set: &mut SeriesSet, twin: usize) {
    let last = set.len() - 1;
    let values = set.values(last).to_vec();
    let slice = set.slices[twin];
    let columns = std::sync::Arc::make_mut(&mut set.columns[slice.columns as usize]);
    let value_start = columns.values.len() as u32;
    columns.values.extend(values);
    set.columns.pop();
    set.slices[last] = fletch_schemas::Slice { value_start, ..slice };
}
