//! One tenant: its label index, and per date which series are known and what their stored ids are.

use super::cardinality::Cached;
use super::labels::LabelIndex;
use crate::delta::Snapshot;
use ahash::HashMap;
use fletch_ingest::{Series, SeriesRef, SeriesRegistry};
use fletch_schemas::pattern::Condition;
use fletch_schemas::{Labels, MetricMetadata, TenantId};
use hashbrown::HashTable;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use roaring::RoaringBitmap;
use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Metric families whose metadata is kept per tenant; more are not remembered.
const METADATA_FAMILIES_MAX: usize = 100_000;

/// Series that are added under one lock: readers never wait longer than for so many.
const LOCKED_SERIES_MAX: usize = 1_024;

/// How a label set and a probe become an id. A parameter so that tests can make ids collide.
pub type IdOf = fn(&Labels, u32) -> i64;

/// What is known about the series of one date.
#[derive(Debug, Default, Clone)]
pub struct Day {
    /// Series with samples or a row.
    pub known: RoaringBitmap,
    /// Series with a committed row in the `series` table.
    pub stored: RoaringBitmap,
    /// Probes other than 0.
    pub probes: HashMap<SeriesRef, u32>,
    /// Files of the `series` table that were taken in.
    pub loaded: HashSet<String>,
    /// Every file that this version of `series` has for the date was taken in.
    pub confirmed: Option<i64>,
}

#[derive(Debug)]
struct Inner {
    labels: LabelIndex,
    /// Series by unprobed id.
    by_hash: HashTable<SeriesRef>,
    days: BTreeMap<i32, Day>,
}

/// Index of one tenant.
#[derive(Debug)]
pub struct Tenant {
    id: TenantId,
    registry: Arc<SeriesRegistry>,
    /// Another way to make ids than [`Labels::series_id`].
    id_of: Option<IdOf>,
    inner: RwLock<Inner>,
    metadata: RwLock<BTreeMap<String, MetricMetadata>>,
    pub(super) cardinality: Mutex<Option<Cached>>,
}

/// A consistent look at the index; keep it short, writers wait.
#[derive(Debug)]
pub struct IndexGuard<'a>(RwLockReadGuard<'a, Inner>);

impl Tenant {
    /// An empty index.
    pub fn new(id: TenantId, registry: Arc<SeriesRegistry>) -> Self {
        Self::make(id, registry, None)
    }

    /// As [`new`](Self::new), with another way to make ids.
    pub fn with_ids(id: TenantId, registry: Arc<SeriesRegistry>, id_of: IdOf) -> Self {
        Self::make(id, registry, Some(id_of))
    }

    fn make(id: TenantId, registry: Arc<SeriesRegistry>, id_of: Option<IdOf>) -> Self {
        let inner = Inner { labels: LabelIndex::default(), by_hash: HashTable::new(), days: BTreeMap::new() };
        Self { id, registry, id_of, inner: RwLock::new(inner), metadata: RwLock::default(), cardinality: Mutex::default() }
    }

    /// Whose it is.
    pub fn id(&self) -> &TenantId {
        &self.id
    }

    /// Number of series.
    pub fn len(&self) -> usize {
        self.inner.read().labels.len()
    }

    /// Whether no series is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks at the index.
    pub fn read(&self) -> IndexGuard<'_> {
        IndexGuard(self.inner.read())
    }

    /// Makes series known on a date; `refs` ascending. New ones get their labels indexed and an id of their own.
    pub fn note(&self, date: i32, refs: &[SeriesRef]) {
        let seen = RoaringBitmap::from_sorted_iter(refs.iter().map(|r| r.0)).unwrap_or_else(|_| refs.iter().map(|r| r.0).collect());
        if self.inner.read().days.get(&date).is_some_and(|day| seen.is_subset(&day.known)) {
            return;
        }
        let fresh = &seen - &self.inner.write().days.entry(date).or_default().known;
        let fresh: Vec<SeriesRef> = fresh.iter().map(SeriesRef).collect();
        for some in fresh.chunks(LOCKED_SERIES_MAX) {
            let mut inner = self.inner.write();
            for &series in some {
                self.index(&mut inner, series);
                self.settle_one(&mut inner, date, series);
                inner.days.entry(date).or_default().known.insert(series.0);
            }
        }
    }

    /// Takes in rows of one file of the `series` table.
    pub fn load(&self, date: i32, path: &str, rows: &[(SeriesRef, u32)]) {
        for some in rows.chunks(LOCKED_SERIES_MAX) {
            let mut inner = self.inner.write();
            for &(series, _) in some {
                self.index(&mut inner, series);
            }
            let day = inner.days.entry(date).or_default();
            for &(series, probe) in some {
                day.known.insert(series.0);
                day.stored.insert(series.0);
                if probe == 0 {
                    day.probes.remove(&series);
                } else {
                    day.probes.insert(series, probe);
                }
            }
        }
        self.inner.write().days.entry(date).or_default().loaded.insert(path.to_owned());
    }

    /// Of these series (ascending) those without a stored row on the date, with the id and probe that they will have. To be called when
    /// every stored row of the date is loaded: ids that stored rows took in the meantime are given way to.
    pub fn settle(&self, date: i32, refs: &[SeriesRef]) -> Vec<(SeriesRef, i64, u32)> {
        let mut out = Vec::new();
        for some in refs.chunks(LOCKED_SERIES_MAX) {
            self.settle_some(date, some, &mut out);
        }
        out
    }

    fn settle_some(&self, date: i32, refs: &[SeriesRef], out: &mut Vec<(SeriesRef, i64, u32)>) {
        let mut inner = self.inner.write();
        for &series in refs {
            if inner.days.get(&date).is_some_and(|day| day.stored.contains(series.0)) {
                continue;
            }
            self.index(&mut inner, series);
            self.settle_one(&mut inner, date, series);
            let day = inner.days.entry(date).or_default();
            day.known.insert(series.0);
            let probe = day.probes.get(&series).copied().unwrap_or(0);
            out.push((series, self.stored_id(series, probe), probe));
        }
    }

    /// Forgets series of a date that have neither a stored row nor are in `live`.
    pub fn retain_live(&self, date: i32, live: &RoaringBitmap) {
        let mut inner = self.inner.write();
        if let Some(day) = inner.days.get_mut(&date) {
            day.known = &day.stored | live;
            let known = &day.known;
            day.probes.retain(|series, _| known.contains(series.0));
        }
    }

    /// Files of the `series` table of this date that were not taken in yet.
    pub fn missing<'a>(&self, date: i32, paths: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let inner = self.inner.read();
        let loaded = inner.days.get(&date).map(|day| &day.loaded);
        paths.filter(|path| loaded.is_none_or(|all| !all.contains(*path))).collect()
    }

    /// Whether everything that `series` holds for these dates was taken in. Cheap: a query asks this first.
    pub fn holds_series(&self, series: &Snapshot, dates: RangeInclusive<i32>) -> bool {
        let inner = self.inner.read();
        let mut stored = series.dates(&self.id).filter(|date| dates.contains(date));
        stored.all(|date| inner.days.get(&date).and_then(|day| day.confirmed).is_some_and(|version| version >= series.version()))
    }

    /// Everything that this version of `series` holds for the date was taken in.
    pub fn confirm_series(&self, date: i32, version: i64) {
        let mut inner = self.inner.write();
        let day = inner.days.entry(date).or_default();
        day.confirmed = day.confirmed.max(Some(version));
    }

    /// Ids of series (any order) on a date.
    pub fn ids(&self, date: i32, refs: &[SeriesRef]) -> Vec<i64> {
        let inner = self.inner.read();
        let probes = inner.days.get(&date).map(|day| &day.probes).filter(|p| !p.is_empty());
        let probe = |series| probes.and_then(|p| p.get(&series).copied()).unwrap_or(0);
        refs.iter().map(|&series| self.stored_id(series, probe(series))).collect()
    }

    /// The series behind stored keys of a date; `None` for a key without a row.
    pub fn resolve<'a>(&self, date: i32, keys: impl Iterator<Item = (&'a str, i64)>) -> Vec<Option<SeriesRef>> {
        let inner = self.inner.read();
        keys.map(|(metric, id)| self.resolve_one(&inner, date, metric, id, None)).collect()
    }

    /// Remembers what a sender said about a family.
    pub fn put_metadata(&self, metadata: &MetricMetadata) {
        let mut all = self.metadata.write();
        if all.get(&metadata.metric) == Some(metadata) {
            return;
        }
        if all.len() < METADATA_FAMILIES_MAX || all.contains_key(&metadata.metric) {
            all.insert(metadata.metric.clone(), metadata.clone());
        }
    }

    /// As [`put_metadata`](Self::put_metadata), but what a live sender said stays.
    pub fn put_stored_metadata(&self, metadata: MetricMetadata) {
        let mut all = self.metadata.write();
        if all.len() < METADATA_FAMILIES_MAX && !all.contains_key(&metadata.metric) {
            all.insert(metadata.metric.clone(), metadata);
        }
    }

    /// What is known about the family of a metric: by its own name, or by the name without the suffix of a histogram or summary.
    pub fn metadata_of(&self, metric: &str) -> Option<MetricMetadata> {
        let all = self.metadata.read();
        let families = std::iter::once(metric)
            .chain(["_total", "_bucket", "_count", "_sum", "_created", "_info"].iter().filter_map(|s| metric.strip_suffix(s)));
        families.filter_map(|family| all.get(family)).next().cloned()
    }

    /// Everything known about families, by name.
    pub fn metadata(&self) -> Vec<MetricMetadata> {
        self.metadata.read().values().cloned().collect()
    }

    fn stored_id(&self, series: SeriesRef, probe: u32) -> i64 {
        self.id_of(&self.registry.get(series), probe)
    }

    fn id_of(&self, series: &Series, probe: u32) -> i64 {
        match self.id_of {
            Some(id_of) => id_of(&series.labels, probe),
            None if probe == 0 => series.hash,
            None => series.labels.series_id(probe),
        }
    }

    fn index(&self, inner: &mut Inner, series: SeriesRef) {
        if inner.labels.contains(series) {
            return;
        }
        let known = self.registry.get(series);
        inner.labels.insert(series, &known.labels);
        let hash = |series: &Series| self.id_of(series, 0).cast_unsigned();
        inner.by_hash.insert_unique(hash(&known), series, |&other| hash(&self.registry.get(other)));
    }

    /// Gives a series the first probe whose id no other series of its metric has on this date.
    fn settle_one(&self, inner: &mut Inner, date: i32, series: SeriesRef) {
        let known = self.registry.get(series);
        for probe in 0..=u32::MAX {
            let id = self.id_of(&known, probe);
            if self.resolve_one(inner, date, known.labels.metric(), id, Some(series)).is_none() {
                let probes = &mut inner.days.entry(date).or_default().probes;
                if probe == 0 {
                    probes.remove(&series);
                } else {
                    tracing::warn!(tenant = %self.id, labels = %known.labels, probe, "two label sets have the same hash: this one is stored under another id");
                    probes.insert(series, probe);
                }
                return;
            }
        }
    }

    /// The series with this id on the date, leaving `except` out of account.
    fn resolve_one(&self, inner: &Inner, date: i32, metric: &str, id: i64, except: Option<SeriesRef>) -> Option<SeriesRef> {
        let day = inner.days.get(&date)?;
        let is_it = |series: SeriesRef, probe: u32| {
            let known = self.registry.get(series);
            Some(series) != except && self.id_of(&known, probe) == id && known.labels.metric() == metric
        };
        if let Some((&series, _)) = day.probes.iter().find(|(series, probe)| is_it(**series, **probe)) {
            return Some(series);
        }
        let here = |series: SeriesRef| day.known.contains(series.0) && !day.probes.contains_key(&series);
        inner.by_hash.find(id.cast_unsigned(), |&series| is_it(series, 0) && here(series)).copied()
    }
}

impl IndexGuard<'_> {
    /// Series that pass all conditions, ascending.
    pub fn select(&self, conditions: &[Condition]) -> Vec<u32> {
        self.0.labels.select(conditions)
    }

    /// Series known on any of these dates.
    pub fn known_on(&self, dates: RangeInclusive<i32>) -> RoaringBitmap {
        let mut all = RoaringBitmap::new();
        if !dates.is_empty() {
            for (_, day) in self.0.days.range(dates) {
                all |= &day.known;
            }
        }
        all
    }

    /// What is known about one date.
    pub fn day(&self, date: i32) -> Option<&Day> {
        self.0.days.get(&date)
    }

    /// The postings.
    pub fn labels(&self) -> &LabelIndex {
        &self.0.labels
    }
}
