//! What makes a tenant's index large: series by metric, values by label, series by label pair.
//!
//! Counts come from the lengths of postings; labels of single series are never looked at. One label name is visited under one lock, so that
//! writers wait for one name at most. Series that are added while a report is made may be in some of its numbers and not in others.

use super::Tenant;
use super::labels::LabelIndex;
use fletch_schemas::{METRIC_NAME, date_of_ms};
use roaring::RoaringBitmap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// A series counts as active this long after the end of the (UTC) day of its last sample; within the day always.
const ACTIVE_MS: i64 = 3_600_000;

/// The top of each list, and totals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cardinality {
    /// Series.
    pub series: u64,
    /// Label names, `__name__` included.
    pub label_names: u64,
    /// Pairs of label name and value.
    pub label_pairs: u64,
    /// Metrics with the most series, and how many.
    pub series_by_metric: Vec<(String, u64)>,
    /// Labels with the most values, and how many.
    pub values_by_label: Vec<(String, u64)>,
    /// Labels whose values take most bytes, repeated for each of their series, and how many.
    pub bytes_by_label: Vec<(String, u64)>,
    /// Label pairs with the most series, and how many.
    pub series_by_pair: Vec<((String, String), u64)>,
}

/// A report on the whole index, and what it was made of: the index only grows.
#[derive(Debug)]
pub(super) struct Cached {
    series: usize,
    limit: usize,
    report: Arc<Cardinality>,
}

impl Tenant {
    /// The `limit` largest of each kind over all series that the index knows. Made again only when series were added.
    pub fn cardinality(&self, limit: usize) -> Arc<Cardinality> {
        let mut cached = self.cardinality.lock();
        let series = self.len();
        if let Some(last) = cached.as_ref().filter(|c| (c.series, c.limit) == (series, limit)) {
            return last.report.clone();
        }
        let report = Arc::new(self.count(None, limit));
        *cached = Some(Cached { series, limit, report: report.clone() });
        report
    }

    /// The same over the series that are active at `now_ms`.
    pub fn active_cardinality(&self, now_ms: i64, limit: usize) -> Cardinality {
        self.count(Some(&self.active(now_ms)), limit)
    }

    /// Series with samples on the day of `now_ms`, or (in its first hour) on the day before.
    pub fn active(&self, now_ms: i64) -> RoaringBitmap {
        self.read().known_on(date_of_ms(now_ms.saturating_sub(ACTIVE_MS))..=date_of_ms(now_ms))
    }

    /// Calls back for every label pair with series among `among` (`None`: all), by name and value: name, value, number of series.
    pub fn each_pair(&self, among: Option<&RoaringBitmap>, mut each: impl FnMut(&str, &str, u64)) {
        let names = self.read().labels().names(None);
        for name in names {
            self.read().labels().each_value(&name, among, |value, series| each(&name, value, series));
        }
    }

    /// Calls back for every value of one label, as [`each_pair`](Self::each_pair).
    pub fn each_value(&self, name: &str, among: Option<&RoaringBitmap>, each: impl FnMut(&str, u64)) {
        self.read().labels().each_value(name, among, each);
    }

    fn count(&self, among: Option<&RoaringBitmap>, limit: usize) -> Cardinality {
        let (mut metrics, mut values, mut bytes, mut pairs) = (Top::new(limit), Top::new(limit), Top::new(limit), Top::new(limit));
        let mut report = Cardinality { series: among.map_or_else(|| self.len() as u64, RoaringBitmap::len), ..Cardinality::default() };
        // Not in the head of the loop: the lock would be held over all of it, and taken again below while a writer waits.
        let names = self.read().labels().names(None);
        for name in names {
            let (mut name_values, mut name_bytes) = (0_u64, 0_u64);
            self.each_value(&name, among, |value, series| {
                name_values += 1;
                name_bytes += value.len() as u64 * series;
                pairs.offer(series, || (name.clone(), value.to_owned()));
                if name == METRIC_NAME {
                    metrics.offer(series, || value.to_owned());
                }
            });
            if name_values > 0 {
                report.label_names += 1;
                report.label_pairs += name_values;
                values.offer(name_values, || name.clone());
                bytes.offer(name_bytes, || name.clone());
            }
        }
        (report.series_by_metric, report.values_by_label) = (metrics.into_list(), values.into_list());
        (report.bytes_by_label, report.series_by_pair) = (bytes.into_list(), pairs.into_list());
        report
    }
}

impl LabelIndex {
    /// Calls back for every value of a label that series among `among` (`None`: all) have, ascending.
    pub fn each_value(&self, name: &str, among: Option<&RoaringBitmap>, mut each: impl FnMut(&str, u64)) {
        // A set that holds every series takes nothing away: lengths are enough then.
        let among = among.filter(|set| set.len() < self.len() as u64);
        self.each_postings(name, |value, list, set| {
            let series = match (among, set) {
                (None, _) => list.len() as u64,
                (Some(among), Some(set)) => set.intersection_len(among),
                (Some(among), None) => list.iter().filter(|&&s| among.contains(s)).count() as u64,
            };
            if series > 0 {
                each(value, series);
            }
        });
    }
}

/// The largest counts; of equal ones the smaller name.
#[derive(Debug)]
struct Top<T: Ord> {
    limit: usize,
    heap: BinaryHeap<(Reverse<u64>, T)>,
}

impl<T: Ord> Top<T> {
    fn new(limit: usize) -> Self {
        Self { limit, heap: BinaryHeap::new() }
    }

    /// Names are made only for what enters the list.
    fn offer(&mut self, count: u64, name: impl FnOnce() -> T) {
        if self.limit == 0 || (self.heap.len() >= self.limit && self.heap.peek().is_some_and(|(Reverse(least), _)| count < *least)) {
            return;
        }
        self.heap.push((Reverse(count), name()));
        if self.heap.len() > self.limit {
            self.heap.pop();
        }
    }

    /// Largest first.
    fn into_list(self) -> Vec<(T, u64)> {
        self.heap.into_sorted_vec().into_iter().map(|(Reverse(count), name)| (name, count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fletch_ingest::{SeriesRef, SeriesRegistry};
    use fletch_schemas::{Labels, TenantId};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const DAY: i64 = 86_400_000;

    fn labels_of(n: u32) -> Labels {
        let metric = format!("m{}", n % 3);
        let pairs = [("__name__".to_owned(), metric), ("host".to_owned(), format!("h{}", n % 7)), (format!("l{}", n % 2), format!("{n}"))];
        Labels::from_pairs(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))).expect("valid")
    }

    /// Counts by going through the labels of every series.
    fn brute(series: &[&Labels], limit: usize) -> Cardinality {
        let mut pairs: BTreeMap<(String, String), u64> = BTreeMap::new();
        for (name, value) in series.iter().flat_map(|l| l.iter()) {
            *pairs.entry((name.to_owned(), value.to_owned())).or_default() += 1;
        }
        let (mut values, mut bytes, mut metrics) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for ((name, value), n) in &pairs {
            *values.entry(name.clone()).or_default() += 1;
            *bytes.entry(name.clone()).or_default() += n * value.len() as u64;
            if name == METRIC_NAME {
                metrics.insert(value.clone(), *n);
            }
        }
        Cardinality {
            series: series.len() as u64,
            label_names: values.len() as u64,
            label_pairs: pairs.len() as u64,
            series_by_metric: top(metrics, limit),
            values_by_label: top(values, limit),
            bytes_by_label: top(bytes, limit),
            series_by_pair: top(pairs, limit),
        }
    }

    fn top<K: Ord>(counts: BTreeMap<K, u64>, limit: usize) -> Vec<(K, u64)> {
        let mut list: Vec<(K, u64)> = counts.into_iter().collect();
        list.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
        list.truncate(limit);
        list
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_report_is_what_counting_every_series_gives(
            all in proptest::collection::btree_set(0..300_u32, 0..120),
            today in proptest::collection::btree_set(0..120_usize, 0..120),
            limit in 0..12_usize,
        ) {
            let registry = Arc::new(SeriesRegistry::new());
            let id = TenantId::default();
            let tenant = Tenant::new(id.clone(), registry.clone());
            let labels: Vec<Labels> = all.iter().map(|n| labels_of(*n)).collect();
            let refs: Vec<SeriesRef> = labels.iter().map(|l| registry.resolve(&id, l)).collect();
            tenant.note(100, &refs);
            let active: Vec<usize> = today.into_iter().filter(|i| *i < refs.len()).collect();
            tenant.note(102, &active.iter().map(|i| refs[*i]).collect::<Vec<_>>());
            let every: Vec<&Labels> = labels.iter().collect();
            prop_assert_eq!(&*tenant.cardinality(limit), &brute(&every, limit));
            let some: Vec<&Labels> = active.iter().map(|i| &labels[*i]).collect();
            prop_assert_eq!(&tenant.active_cardinality(102 * DAY + DAY / 2, limit), &brute(&some, limit));
            prop_assert_eq!(&tenant.active_cardinality(103 * DAY, limit), &brute(&some, limit), "in the first hour of the next day");
            prop_assert_eq!(tenant.active_cardinality(104 * DAY, limit), Cardinality::default());
        }
    }

    #[test]
    fn counting_and_adding_do_not_wait_for_each_other_for_ever() {
        let registry = Arc::new(SeriesRegistry::new());
        let tenant = Tenant::new(TenantId::default(), registry.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..3_000 {
                    tenant.note(1, &[registry.resolve(&TenantId::default(), &labels_of(n))]);
                }
            });
            while tenant.len() < 3_000 {
                assert!(tenant.active_cardinality(DAY, 5).series <= 3_000);
            }
        });
        assert_eq!(tenant.cardinality(1).series, 3_000);
    }

    #[test]
    fn a_report_is_made_again_when_series_were_added() {
        let registry = Arc::new(SeriesRegistry::new());
        let tenant = Tenant::new(TenantId::default(), registry.clone());
        let add = |n| tenant.note(1, &[registry.resolve(&TenantId::default(), &labels_of(n))]);
        add(0);
        let first = tenant.cardinality(5);
        assert!(Arc::ptr_eq(&first, &tenant.cardinality(5)), "the same while nothing changes");
        assert_eq!(tenant.cardinality(1).values_by_label.len(), 1);
        add(1);
        assert_eq!(tenant.cardinality(5).series, 2);
    }
}
