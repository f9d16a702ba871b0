//! From the label bytes of a series, as its sender writes them, to its number: one cache for the process, and who follows whom.
//!
//! ```text
//!  xxh3(tenant, bytes) ─▶ table ─▶ entry { bytes, series, successor } ──successor──▶ entry …
//! ```
//!
//! The bytes are a key and nothing else: two senders may write one series differently and then have two entries with one number.
//! The successor of a series stands in its entry and not in the connection: senders with several connections mix their series over them,
//! and the memory is bounded by the cache, whatever the number of connections. A wrong successor costs one look-up in the table.
//!
//! # Invariants
//! - Only label bytes that were checked under the limits of this process are here.
//! - Bytes are compared in full, always: a hash alone never decides. The hash is seeded per process.
//! - The tenant is compared whenever the bytes are: no way leads to a series of another tenant.
//!
//! # When it is full
//! It is emptied as a whole, and its generation counts up: numbers of entries are valid within one generation. What is sent next is parsed
//! again. That is rare (the bound is far above the live series of one process) and costs about a microsecond per series.

use super::TAG_SAMPLES;
use crate::SeriesRef;
use ahash::RandomState;
use fletch_schemas::TenantId;
use hashbrown::{HashMap, HashTable};
use parking_lot::{RwLock, RwLockReadGuard};
use std::sync::atomic::{AtomicU32, Ordering};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bound of the cache in bytes: about 1.5 million series with 250 bytes of labels.
pub const RAW_SERIES_CACHE_BYTES_MAX: usize = 512 << 20;

/// What an entry takes besides its bytes: itself, its slot in the table, the allocator's share. Also the cost of a tenant.
const ENTRY_BYTES: usize = 80;

/// Longer label bytes are not remembered: they could be megabytes of empty labels around a good series.
const LABELS_BYTES_MAX: usize = 64 << 10;

/// No entry, no tenant.
const NONE: u32 = u32::MAX;

/// See the module.
#[derive(Debug)]
pub struct RawSeriesCache {
    bytes_max: usize,
    seed: u64,
    entries: RwLock<Entries>,
}

/// Which cache, which generation of it, and the number of a tenant in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Key {
    /// The random seed of the cache serves as its name: a connection's place must not be used with another decoder.
    cache: u64,
    /// From 1, so that the default is never valid.
    generation: u64,
    tenant: u32,
}

/// A series that was found, and how long its labels are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) series: SeriesRef,
    pub(super) labels_len: usize,
}

/// A new entry.
#[derive(Debug)]
pub(super) struct Inserted {
    pub(super) key: Key,
    pub(super) number: u32,
}

#[derive(Debug)]
struct Entry {
    labels: Box<[u8]>,
    hash: u64,
    series: SeriesRef,
    tenant: u32,
    successor: AtomicU32,
}

/// What stands behind the lock.
#[derive(Debug)]
pub(super) struct Entries {
    generation: u64,
    bytes: usize,
    seed: u64,
    tenants: HashMap<TenantId, u32, RandomState>,
    table: HashTable<u32>,
    list: Vec<Entry>,
}

impl RawSeriesCache {
    /// An empty cache that will hold at most `bytes_max` bytes (and at least one entry).
    pub fn new(bytes_max: usize) -> Self {
        let seed = RandomState::new().hash_one(0);
        Self { bytes_max, seed, entries: RwLock::new(Entries::new(1, seed)) }
    }

    /// How many series are known by their bytes.
    pub fn len(&self) -> usize {
        self.entries.read().list.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in use.
    pub fn bytes(&self) -> usize {
        self.entries.read().bytes
    }

    /// How often it was full and emptied.
    pub fn drops(&self) -> u64 {
        self.entries.read().generation - 1
    }

    /// Locks it for looking up.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read()
    }

    /// Remembers the label bytes of a series. Empties the cache first when they have no room. `None` when they are too long to remember.
    pub(super) fn insert(&self, tenant: &TenantId, labels: &[u8], series: SeriesRef) -> Option<Inserted> {
        if labels.len() > LABELS_BYTES_MAX {
            return None;
        }
        // Declared before the lock and so dropped after it: freeing a million entries takes a while.
        let _emptied;
        let mut entries = self.entries.write();
        let cost = labels.len() + ENTRY_BYTES + entries.cost_of(tenant);
        let full = entries.bytes + cost > self.bytes_max || entries.list.len() >= NONE as usize;
        if full && !entries.list.is_empty() {
            let next = Entries::new(entries.generation + 1, self.seed);
            _emptied = std::mem::replace(&mut *entries, next);
        }
        entries.admit(tenant);
        let key = entries.key(tenant);
        if let Some((number, _)) = entries.find(key, labels) {
            return Some(Inserted { key, number });
        }
        Some(Inserted { key, number: entries.insert(key.tenant, labels, series) })
    }
}

impl Entries {
    fn new(generation: u64, seed: u64) -> Self {
        Self { generation, bytes: 0, seed, tenants: HashMap::default(), table: HashTable::new(), list: Vec::new() }
    }

    /// What entry numbers of this tenant are valid under now. A tenant without entries has a key that finds nothing.
    pub(super) fn key(&self, tenant: &TenantId) -> Key {
        Key { cache: self.seed, generation: self.generation, tenant: self.tenants.get(tenant).copied().unwrap_or(NONE) }
    }

    /// The successor of the entry `last`, if the series begins with its labels and goes on with a sample. These labels are then whole: the
    /// comparison ends at the border of a field, and the next field is no label.
    #[inline]
    pub(super) fn guess(&self, key: Key, last: Option<u32>, series: &[u8]) -> Option<(u32, Found)> {
        let number = self.list.get(last? as usize)?.successor.load(Ordering::Relaxed);
        let entry = self.list.get(number as usize)?;
        let labels_len = entry.labels.len();
        let same = series.get(labels_len) == Some(&TAG_SAMPLES) && entry.tenant == key.tenant && series[..labels_len] == *entry.labels;
        same.then_some((number, Found { series: entry.series, labels_len }))
    }

    /// The entry with exactly these label bytes.
    pub(super) fn find(&self, key: Key, labels: &[u8]) -> Option<(u32, SeriesRef)> {
        let same = |&n: &u32| {
            let entry = &self.list[n as usize];
            entry.tenant == key.tenant && *entry.labels == *labels
        };
        let number = *self.table.find(self.hash(key.tenant, labels), same)?;
        Some((number, self.list[number as usize].series))
    }

    /// Notes who follows whom. Writes only what changes: the entries are read by all threads.
    pub(super) fn set_successor(&self, of: u32, successor: u32) {
        let Some(entry) = self.list.get(of as usize) else { return };
        if entry.successor.load(Ordering::Relaxed) != successor {
            entry.successor.store(successor, Ordering::Relaxed);
        }
    }

    fn insert(&mut self, tenant: u32, labels: &[u8], series: SeriesRef) -> u32 {
        let hash = self.hash(tenant, labels);
        let number = u32::try_from(self.list.len()).expect("`RawSeriesCache::insert` empties a list of 2^32 - 1");
        self.list.push(Entry { labels: Box::from(labels), hash, series, tenant, successor: AtomicU32::new(NONE) });
        let Self { table, list, .. } = self;
        table.insert_unique(hash, number, |&n| list[n as usize].hash);
        self.bytes += labels.len() + ENTRY_BYTES;
        number
    }

    /// What a tenant takes, if it is new.
    fn cost_of(&self, tenant: &TenantId) -> usize {
        if self.tenants.contains_key(tenant) { 0 } else { tenant.as_str().len() + ENTRY_BYTES }
    }

    /// Gives a tenant its number, if it has none.
    fn admit(&mut self, tenant: &TenantId) {
        let cost = self.cost_of(tenant);
        if cost == 0 {
            return;
        }
        let number = u32::try_from(self.tenants.len()).expect("a tenant has at least one entry, and there are fewer than 2^32");
        self.tenants.insert(tenant.clone(), number);
        self.bytes += cost;
    }

    fn hash(&self, tenant: u32, labels: &[u8]) -> u64 {
        xxh3_64_with_seed(labels, self.seed.wrapping_add(u64::from(tenant)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid")
    }

    #[test]
    fn tenants_never_see_each_other() {
        let cache = RawSeriesCache::new(1 << 20);
        let a = cache.insert(&tenant("a"), b"labels", SeriesRef(1)).expect("short");
        let b = cache.insert(&tenant("b"), b"labels", SeriesRef(2)).expect("short");
        let entries = cache.read();
        assert_eq!(entries.find(a.key, b"labels"), Some((a.number, SeriesRef(1))));
        assert_eq!(entries.find(b.key, b"labels"), Some((b.number, SeriesRef(2))));
        assert_eq!(entries.find(entries.key(&tenant("c")), b"labels"), None);
        assert_eq!(entries.key(&tenant("b")), b.key);
    }

    #[test]
    fn a_full_cache_is_emptied_and_its_bytes_are_bounded() {
        let max = 10 * (ENTRY_BYTES + 8);
        let cache = RawSeriesCache::new(max);
        let first = cache.insert(&tenant("a"), &0_u64.to_le_bytes(), SeriesRef(0)).expect("short");
        for n in 1..1000_u32 {
            cache.insert(&tenant("a"), &u64::from(n).to_le_bytes(), SeriesRef(n));
            assert!(cache.bytes() <= max && !cache.is_empty(), "{} entries", cache.len());
        }
        assert!(cache.drops() > 100);
        assert_ne!(cache.read().key(&tenant("a")), first.key, "old numbers are not valid any more");
        assert_eq!(cache.read().find(cache.read().key(&tenant("a")), &0_u64.to_le_bytes()), None);
    }

    #[test]
    fn tenants_count_too() {
        let max = 5 * ENTRY_BYTES;
        let cache = RawSeriesCache::new(max);
        for n in 0..100 {
            cache.insert(&tenant(&format!("tenant-{n}")), b"labels", SeriesRef(n));
            assert!(cache.bytes() <= max && !cache.is_empty(), "{} bytes", cache.bytes());
        }
    }

    #[test]
    fn bytes_are_entered_once_and_long_ones_never() {
        let cache = RawSeriesCache::new(1 << 20);
        let one = cache.insert(&tenant("a"), b"labels", SeriesRef(1)).expect("short");
        let two = cache.insert(&tenant("a"), b"labels", SeriesRef(1)).expect("short");
        assert_eq!((one.number, cache.len()), (two.number, 1));
        assert!(cache.insert(&tenant("a"), &vec![0; LABELS_BYTES_MAX + 1], SeriesRef(2)).is_none());
        assert!(cache.insert(&tenant("a"), &vec![0; LABELS_BYTES_MAX], SeriesRef(2)).is_some());
    }

    #[test]
    fn a_guess_needs_equal_labels_and_a_sample_behind_them() {
        let cache = RawSeriesCache::new(1 << 20);
        let one = cache.insert(&tenant("a"), b"one", SeriesRef(1)).expect("short");
        let two = cache.insert(&tenant("a"), b"two", SeriesRef(2)).expect("short");
        let entries = cache.read();
        let guess = |series: &[u8]| entries.guess(one.key, Some(one.number), series).map(|(n, f)| (n, f.series, f.labels_len));
        assert_eq!(guess(b"two\x12"), None, "no successor yet");
        entries.set_successor(one.number, two.number);
        assert_eq!(guess(b"two\x12rest"), Some((two.number, SeriesRef(2), 3)));
        for other in [&b"two"[..], b"two\x0a", b"twx\x12", b"tw", b"", b"one\x12"] {
            assert_eq!(guess(other), None, "{other:?}");
        }
        assert!(entries.guess(one.key, None, b"two\x12").is_none());
        let foreign = Key { tenant: one.key.tenant + 1, ..one.key };
        assert!(entries.guess(foreign, Some(one.number), b"two\x12").is_none(), "another tenant");
    }
}
