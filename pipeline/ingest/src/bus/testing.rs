//! What every bus must do, stated once, and the sink that watches it.

use super::{BatchSink, Bus, BusError, Partition};
use crate::{Append, Delivery, SeriesRef, SeriesRegistry, SourceOffset};
use fletch_schemas::{Labels, MetricMetadata, TenantId};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::watch;

/// One delivery, with labels instead of numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) partition: Partition,
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) append_time_ms: i64,
    /// (series, time, value as an integer).
    pub(crate) rows: Vec<(String, i64, i64)>,
    pub(crate) metadata: Vec<(TenantId, MetricMetadata)>,
    pub(crate) sources: Vec<SourceOffset>,
}

type OnDeliver = Box<dyn Fn(&Delivery) + Send + Sync>;

/// A sink that starts where it is told and remembers what it was given.
pub(crate) struct Scripted {
    pub(crate) registry: Arc<SeriesRegistry>,
    start: Mutex<HashMap<Partition, i64>>,
    groups: bool,
    seen: Mutex<Vec<Seen>>,
    count: watch::Sender<usize>,
    closed: Mutex<bool>,
    opened: Condvar,
    on_deliver: OnDeliver,
    pub(crate) revoked: Mutex<Vec<Partition>>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    pub(crate) fn new(registry: &Arc<SeriesRegistry>) -> Self {
        Self {
            registry: registry.clone(),
            start: Mutex::default(),
            groups: false,
            seen: Mutex::default(),
            count: watch::Sender::new(0),
            closed: Mutex::new(false),
            opened: Condvar::new(),
            on_deliver: Box::new(|_| {}),
            revoked: Mutex::default(),
        }
    }

    pub(crate) fn starting_at(self, partition: Partition, offset: i64) -> Self {
        self.start_at(partition, offset);
        self
    }

    /// Where the next assignment begins.
    pub(crate) fn start_at(&self, partition: Partition, offset: i64) {
        self.start.lock().insert(partition, offset);
    }

    pub(crate) fn wanting_groups(mut self) -> Self {
        self.groups = true;
        self
    }

    pub(crate) fn calling(mut self, on_deliver: impl Fn(&Delivery) + Send + Sync + 'static) -> Self {
        self.on_deliver = Box::new(on_deliver);
        self
    }

    /// Makes every delivery wait for [`open`](Self::open).
    pub(crate) fn shut(self) -> Self {
        *self.closed.lock() = true;
        self
    }

    pub(crate) fn open(&self) {
        *self.closed.lock() = false;
        self.opened.notify_all();
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub(crate) fn rows(&self) -> Vec<(String, i64, i64)> {
        self.seen.lock().iter().flat_map(|s| s.rows.clone()).collect()
    }

    /// Waits until the deliveries so far satisfy `enough`.
    pub(crate) async fn wait(&self, enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let mut count = self.count.subscribe();
        let _ = count.wait_for(|_| enough(&self.seen.lock())).await;
        self.seen()
    }
}

impl BatchSink for Scripted {
    fn deliver(&self, delivery: &Delivery) {
        let mut closed = self.closed.lock();
        while *closed {
            self.opened.wait(&mut closed);
        }
        drop(closed);
        (self.on_deliver)(delivery);
        let rows = (0..delivery.batch.len()).map(|i| {
            let series = self.registry.get(delivery.batch.series[i]);
            (format!("{}{}", series.tenant, series.labels), delivery.batch.times[i], delivery.batch.values[i] as i64)
        });
        self.seen.lock().push(Seen {
            partition: delivery.partition,
            from: delivery.from,
            to: delivery.to,
            append_time_ms: delivery.append_time_ms,
            rows: rows.collect(),
            metadata: delivery.metadata.clone(),
            sources: delivery.sources.clone(),
        });
        self.count.send_modify(|n| *n += 1);
    }

    fn wants_groups(&self) -> bool {
        self.groups
    }

    fn assigned(&self, partition: Partition) -> Result<Option<i64>, BusError> {
        Ok(self.start.lock().get(&partition).copied())
    }

    fn revoked(&self, partition: Partition) {
        self.revoked.lock().push(partition);
    }
}

pub(crate) fn series(registry: &SeriesRegistry, metric: &str) -> SeriesRef {
    let labels = Labels::from_pairs([("__name__", metric), ("job", "test")]).expect("valid labels");
    registry.resolve(&TenantId::default(), &labels)
}

/// An append of one sample: its value is what tests look for.
pub(crate) fn one(registry: &SeriesRegistry, metric: &str, value: i64) -> Append {
    let mut append = Append::default();
    append.batch.push(series(registry, metric), 1_700_000_000_000 + value, value as f64);
    append
}

pub(crate) fn source(name: &str, next: i64) -> SourceOffset {
    SourceOffset { source: format!("src:{name}"), next }
}

/// Deliveries of a partition follow each other without gaps.
pub(crate) fn assert_no_gaps(seen: &[Seen]) {
    let mut next = BTreeMap::new();
    for one in seen {
        assert!(one.from <= one.to, "{one:?}");
        assert!(one.rows.is_empty() || one.from < one.to, "samples have an offset: {one:?}");
        let expected = *next.entry(one.partition).or_insert(one.from);
        assert_eq!(one.from, expected, "a gap in partition {}", one.partition);
        next.insert(one.partition, one.to);
    }
}

/// What each [`Bus`] passes: everything acknowledged is delivered once, a sender's samples in the order in which it sent them, offsets
/// without gaps. `sink` is the only sink and has seen nothing yet.
pub(crate) async fn contract(bus: Arc<dyn Bus>, sink: &Scripted) {
    const SENDERS: i64 = 8;
    const APPENDS: i64 = 25;
    let registry = sink.registry.clone();
    let senders = (0..SENDERS).map(|sender| {
        let (bus, registry) = (bus.clone(), registry.clone());
        tokio::spawn(async move {
            for n in 0..APPENDS {
                bus.append(one(&registry, &format!("sender_{sender}"), n)).await.expect("there is room");
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.expect("no panic");
    }
    let all = (SENDERS * APPENDS) as usize;
    let seen = sink.wait(|seen| seen.iter().map(|s| s.rows.len()).sum::<usize>() >= all).await;
    assert_no_gaps(&seen);
    let mut by_series: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (series, _, value) in seen.iter().flat_map(|s| &s.rows) {
        by_series.entry(series.clone()).or_default().push(*value);
    }
    assert_eq!(by_series.len(), SENDERS as usize);
    for (series, values) in by_series {
        assert_eq!(values, (0..APPENDS).collect::<Vec<_>>(), "{series}");
    }
    bus.close().await;
    let refused = bus.append(one(&registry, "late", 1)).await;
    assert!(matches!(refused, Err(BusError::Closed)), "{refused:?}");
    bus.close().await;
}
