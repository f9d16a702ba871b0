//! The collector on a topic, a bus, a dead-letter topic and a clock that do what a test says; the real broker is in `broker`.

mod broker;

use super::batch::Decoding;
use super::collector::{Collector, Wiring};
use super::config::{Decoder, OnGap};
use super::dead_letter::{DeadLetter, DeadLetters};
use super::feed::{Event, Feed};
use super::format::Message;
use super::metrics::{PartitionLabels, SourceMetrics, of, of_reason};
use super::position::{Range, Start, TopicPartition};
use super::{Gap, SourceError};
use crate::decode::RemoteWriteDecoder;
use crate::{Append, Bus, BusError, Partition, SeriesRegistry, SourceOffset};
use async_trait::async_trait;
use fletch_common::{Limits, ManualClock};
use fletch_schemas::TenantId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

const NOW_MS: i64 = 1_700_000_000_000;
/// Messages that one poll hands over, when the test does not say.
const POLL_MESSAGES: usize = 5;

fn tp(number: i32) -> TopicPartition {
    TopicPartition::new("t", number)
}

/// How the bus answers one append.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Store,
    Full,
    /// Nothing is stored.
    Fail,
    /// It is stored, and the answer is lost.
    StoreAndFail,
    Close,
}

/// A bus that remembers what it was given; by default it stores.
#[derive(Debug, Default)]
pub(super) struct ScriptedBus {
    answers: Mutex<VecDeque<Answer>>,
    claim_errors: Mutex<usize>,
    messages_max: Mutex<Option<usize>>,
    pub(super) shared: bool,
    pub(super) stored: Mutex<Vec<Append>>,
    offsets: Mutex<BTreeMap<String, i64>>,
    claims: Mutex<Vec<String>>,
    unclaimed: Mutex<Vec<String>>,
}

impl ScriptedBus {
    fn store(&self, append: Append) {
        for one in &append.sources {
            self.offsets.lock().insert(one.source.clone(), one.next);
        }
        self.stored.lock().push(append);
    }

    /// All values in the order in which they came.
    pub(super) fn values(&self) -> Vec<f64> {
        self.stored.lock().iter().flat_map(|a| a.batch.values.clone()).collect()
    }

    pub(super) fn offset(&self, source: &str) -> Option<i64> {
        self.offsets.lock().get(source).copied()
    }
}

#[async_trait]
impl Bus for ScriptedBus {
    async fn append(&self, append: Append) -> Result<(), BusError> {
        let max = *self.messages_max.lock();
        if max.is_some_and(|max| append.batch.len() > max) {
            return Err(BusError::TooLarge { bytes: append.batch.len() as u64, limit: 1 });
        }
        let answer = self.answers.lock().pop_front().unwrap_or(Answer::Store);
        match answer {
            Answer::Store => self.store(append),
            Answer::Full => return Err(BusError::Full { what: "the log", limit: 1, retry_after: Duration::from_secs(3) }),
            Answer::Fail => return Err(BusError::Kafka("timed out".into())),
            Answer::StoreAndFail => {
                self.store(append);
                return Err(BusError::Kafka("timed out".into()));
            }
            Answer::Close => return Err(BusError::Closed),
        }
        Ok(())
    }

    fn release(&self, _partition: Partition, _next: i64) {}

    fn overtaken(&self, _partition: Partition) {}

    fn source_offsets(&self) -> Vec<SourceOffset> {
        self.offsets.lock().iter().map(|(source, next)| SourceOffset { source: source.clone(), next: *next }).collect()
    }

    async fn claim_source(&self, source: &str) -> Result<Option<i64>, BusError> {
        self.claims.lock().push(source.to_owned());
        let mut errors = self.claim_errors.lock();
        if *errors > 0 {
            *errors -= 1;
            return Err(BusError::Kafka("no answer".into()));
        }
        Ok(self.offset(source))
    }

    fn unclaim_source(&self, source: &str) {
        self.unclaimed.lock().push(source.to_owned());
    }

    fn single_process(&self) -> bool {
        !self.shared
    }

    async fn close(&self) {}
}

/// One partition of a topic in memory.
#[derive(Debug, Default)]
struct Log {
    low: i64,
    values: Vec<Vec<u8>>,
}

impl Log {
    fn high(&self) -> i64 {
        self.low + self.values.len() as i64
    }
}

/// A topic in memory and a group that does what the test says.
#[derive(Debug, Default)]
struct ScriptedFeed {
    logs: BTreeMap<TopicPartition, Log>,
    /// Next offset of what is fetched.
    fetched: BTreeMap<TopicPartition, i64>,
    paused: BTreeSet<TopicPartition>,
    events: VecDeque<Event<'static>>,
    committed: BTreeMap<TopicPartition, i64>,
    range_errors: usize,
    poll_messages: Option<usize>,
}

impl Feed for ScriptedFeed {
    fn poll(&mut self, _wait: Duration, on: &mut dyn FnMut(Event<'_>)) {
        while let Some(event) = self.events.pop_front() {
            if let Event::Revoked(list) = &event {
                self.fetched.retain(|p, _| !list.contains(p));
            }
            on(event);
        }
        let mut left = self.poll_messages.unwrap_or(POLL_MESSAGES);
        for (of, next) in self.fetched.iter_mut().filter(|(of, _)| !self.paused.contains(of)) {
            let log = &self.logs[of];
            while left > 0 && *next < log.high() {
                let value = &log.values[(*next - log.low) as usize];
                on(Event::Message(message(of, *next, value)));
                *next += 1;
                left -= 1;
            }
        }
    }

    fn partitions(&self) -> Result<BTreeSet<TopicPartition>, String> {
        Ok(self.logs.keys().cloned().collect())
    }

    fn range(&self, of: &TopicPartition) -> Result<Range, String> {
        if self.range_errors > 0 {
            return Err("no leader".into());
        }
        Ok(Range { low: self.logs[of].low, high: self.logs[of].high() })
    }

    fn start(&mut self, of: &TopicPartition, at: Start) -> Result<(), String> {
        let at = if let Start::At(offset) = at { offset } else { self.logs[of].low };
        self.paused.remove(of);
        assert_eq!(self.fetched.insert(of.clone(), at), None, "{of} is fetched already");
        Ok(())
    }

    fn stop(&mut self, of: &TopicPartition) {
        assert!(self.fetched.remove(of).is_some(), "{of} is not fetched");
    }

    fn pause(&mut self, of: &TopicPartition) {
        self.paused.insert(of.clone());
    }

    fn resume(&mut self, of: &TopicPartition) {
        self.paused.remove(of);
    }

    fn commit(&mut self, offsets: &BTreeMap<TopicPartition, i64>, _wait: bool) {
        self.committed.extend(offsets.iter().map(|(of, next)| (of.clone(), *next)));
    }
}

fn message<'a>(of: &'a TopicPartition, offset: i64, value: &'a [u8]) -> Message<'a> {
    Message { topic: &of.topic, partition: of.number, offset, key: None, value: Some(value), headers: Some(&[]) }
}

/// A dead-letter topic that can be away.
#[derive(Debug, Default)]
struct ScriptedLetters {
    away: Mutex<bool>,
    delivered: Mutex<Vec<DeadLetter>>,
}

#[async_trait]
impl DeadLetters for ScriptedLetters {
    async fn deliver(&self, letters: &mut Vec<DeadLetter>) -> Result<(), String> {
        if *self.away.lock() {
            return Err("unreachable".into());
        }
        self.delivered.lock().append(letters);
        Ok(())
    }
}

pub(super) fn decoding(keep_letters: bool) -> Decoding {
    let (registry, limits) = (Arc::new(SeriesRegistry::new()), Limits::default());
    let remote_write = Arc::new(RemoteWriteDecoder::new(registry.clone(), limits.clone()));
    Decoding { decoder: Decoder::Auto, tenant: TenantId::default(), limits, registry, remote_write, keep_letters }
}

/// A collector on doubles.
struct Fixture {
    collector: Collector<ScriptedFeed>,
    bus: Arc<ScriptedBus>,
    letters: Arc<ScriptedLetters>,
    clock: Arc<ManualClock>,
    metrics: SourceMetrics,
    _runtime: tokio::runtime::Runtime,
}

impl Fixture {
    /// With partitions of so many messages each; nothing is assigned yet.
    fn new(sizes: &[usize], change: impl FnOnce(&mut ScriptedBus, &mut Wiring)) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (letters, clock, metrics) = (Arc::new(ScriptedLetters::default()), ManualClock::at(NOW_MS), SourceMetrics::default());
        let mut wiring = Wiring {
            group: "g".into(),
            cluster: "c".into(),
            on_gap: OnGap::Stop,
            grace_ms: 5_000,
            bus: Arc::new(ScriptedBus::default()),
            decoding: decoding(true),
            letters: Some(letters.clone()),
            clock: clock.clone(),
            metrics: metrics.clone(),
            runtime: runtime.handle().clone(),
        };
        let mut bus = ScriptedBus::default();
        change(&mut bus, &mut wiring);
        let bus = Arc::new(bus);
        wiring.bus = bus.clone();
        let mut feed = ScriptedFeed::default();
        for (number, size) in (0..).zip(sizes) {
            let values = (0..*size).map(|n| format!("m {}", number as usize * 1_000_000 + n).into_bytes());
            feed.logs.insert(tp(number), Log { low: 0, values: values.collect() });
        }
        Self { collector: Collector::new(feed, wiring), bus, letters, clock, metrics, _runtime: runtime }
    }

    fn assign(&mut self, numbers: &[i32]) {
        let list = numbers.iter().map(|n| tp(*n)).collect();
        self.collector.feed().events.push_back(Event::Assigned(list));
    }

    fn revoke(&mut self, numbers: &[i32]) {
        let list = numbers.iter().map(|n| tp(*n)).collect();
        self.collector.feed().events.push_back(Event::Revoked(list));
    }

    fn turn(&mut self) {
        self.collector.turn(Duration::ZERO).expect("the source goes on");
    }

    fn turns(&mut self, n: usize) {
        (0..n).for_each(|_| self.turn());
    }

    fn later(&mut self, ms: u64) {
        self.clock.advance(Duration::from_millis(ms));
        self.turn();
    }

    fn put(&mut self, number: i32, at: usize, value: &[u8]) {
        self.collector.feed().logs.get_mut(&tp(number)).expect("a partition").values[at] = value.to_vec();
    }

    fn assert_all_once(&self, sizes: &[usize]) {
        let values = self.bus.values();
        for (number, size) in sizes.iter().enumerate() {
            let range = (number * 1_000_000) as f64..((number + 1) * 1_000_000) as f64;
            let of: Vec<f64> = values.iter().copied().filter(|v| range.contains(v)).collect();
            let expected: Vec<f64> = (0..*size).map(|n| (number * 1_000_000 + n) as f64).collect();
            assert_eq!(of, expected, "partition {number}");
        }
    }
}

#[test]
fn everything_is_stored_once_with_its_offset_and_kafka_is_told() {
    let mut f = Fixture::new(&[12, 3], |_, _| {});
    f.assign(&[0, 1]);
    f.turns(8);
    f.assert_all_once(&[12, 3]);
    assert_eq!((f.bus.offset("src:c/t:0"), f.bus.offset("src:c/t:1")), (Some(12), Some(3)));
    assert!(f.bus.stored.lock().iter().all(|a| a.sources.len() == 1), "one source partition an append");
    f.later(1_000);
    assert_eq!(f.collector.feed().committed, BTreeMap::from([(tp(0), 12), (tp(1), 3)]));
    assert_eq!(f.metrics.records.get_or_create(&of("t")).get(), 15);
    assert_eq!(f.metrics.samples.get_or_create(&of("t")).get(), 15);
    f.collector.feed().events.push_back(Event::Ends(vec![(tp(0), 20), (tp(1), 3), (tp(9), 1)]));
    f.turn();
    let lag = |n| f.metrics.lag.get_or_create(&PartitionLabels { topic: "t".into(), partition: n }).get();
    assert_eq!((lag(0), lag(1)), (8, 0));
}

#[test]
fn the_position_is_what_the_bus_says() {
    let mut f = Fixture::new(&[10], |bus, _| {
        bus.offsets.lock().insert("src:c/t:0".into(), 7);
        bus.offsets.lock().insert("src:other/t:0".into(), 2);
    });
    f.assign(&[0]);
    f.turns(4);
    assert_eq!(f.bus.values(), [7.0, 8.0, 9.0]);
}

#[test]
fn after_a_failed_append_the_bus_is_asked_what_it_has() {
    for (answer, claims) in [(Answer::Fail, 2), (Answer::StoreAndFail, 2)] {
        let mut f = Fixture::new(&[12], |bus, _| *bus.answers.lock() = VecDeque::from([Answer::Store, answer]));
        f.assign(&[0]);
        f.turns(3);
        assert_eq!(f.metrics.append_failures.get_or_create(&of("t")).get(), 1, "{answer:?}");
        // It waits for its pause to end.
        f.turns(3);
        assert_eq!(f.bus.claims.lock().len(), 1);
        f.later(500);
        f.turns(4);
        f.assert_all_once(&[12]);
        assert_eq!(f.bus.claims.lock().len(), claims, "{answer:?}");
        assert_eq!(f.metrics.records.get_or_create(&of("t")).get(), if matches!(answer, Answer::Fail) { 12 } else { 7 }, "{answer:?}");
    }
}

#[test]
fn pauses_grow_and_a_claim_or_a_range_that_fails_is_tried_again() {
    let mut f = Fixture::new(&[4], |bus, _| *bus.claim_errors.lock() = 2);
    f.collector.feed().range_errors = 1;
    f.assign(&[0]);
    f.turn();
    f.later(499);
    assert_eq!(f.bus.claims.lock().len(), 1);
    f.later(1);
    assert_eq!(f.bus.claims.lock().len(), 2);
    f.later(999);
    assert_eq!(f.bus.claims.lock().len(), 2);
    f.later(1);
    assert_eq!(f.bus.claims.lock().len(), 3, "the claim is there, the range is not");
    f.collector.feed().range_errors = 0;
    f.later(2_000);
    f.turns(2);
    f.assert_all_once(&[4]);
}

#[test]
fn a_full_bus_pauses_the_partition_and_keeps_its_batch() {
    let mut f = Fixture::new(&[12], |bus, _| *bus.answers.lock() = VecDeque::from([Answer::Full, Answer::Full]));
    f.assign(&[0]);
    f.turns(5);
    assert_eq!(f.collector.feed().paused, BTreeSet::from([tp(0)]));
    assert_eq!(f.metrics.pauses.get_or_create(&of_reason("t", "bus_full")).get(), 1);
    f.later(3_000);
    assert!(f.bus.values().is_empty(), "still full");
    f.later(3_000);
    assert_eq!(f.bus.values().len(), POLL_MESSAGES);
    f.turns(4);
    f.assert_all_once(&[12]);
    assert_eq!(f.bus.claims.lock().len(), 1, "the position was never lost");
}

#[test]
fn a_revoked_partition_is_dropped_with_what_was_read() {
    let mut f = Fixture::new(&[6, 6], |bus, _| {
        bus.shared = true;
        *bus.answers.lock() = VecDeque::from([Answer::Full, Answer::Full]);
    });
    f.assign(&[0, 1]);
    f.turns(3);
    f.revoke(&[0]);
    f.later(3_000);
    f.turns(3);
    let values = f.bus.values();
    assert!(values.iter().all(|v| *v >= 1_000_000.0), "nothing of the revoked partition: {values:?}");
    assert_eq!(f.bus.unclaimed.lock().as_slice(), ["src:c/t:0"]);
    // It comes back.
    f.assign(&[0]);
    f.turns(5);
    f.assert_all_once(&[6, 6]);
}

#[test]
fn poison_goes_to_the_dead_letter_topic_before_the_offset_moves_past_it() {
    let mut f = Fixture::new(&[8, 8], |_, _| {});
    f.put(0, 3, b"{\"broken");
    *f.letters.away.lock() = true;
    f.assign(&[0, 1]);
    f.turns(6);
    // The partition with the poison waits, the other does not.
    assert_eq!((f.bus.offset("src:c/t:0"), f.bus.offset("src:c/t:1")), (None, Some(8)));
    assert_eq!(f.metrics.pauses.get_or_create(&of_reason("t", "dead_letter_topic")).get(), 1);
    *f.letters.away.lock() = false;
    f.later(500);
    f.turns(3);
    assert_eq!(f.bus.offset("src:c/t:0"), Some(8));
    let values: Vec<f64> = f.bus.values().into_iter().filter(|v| *v < 1_000.0).collect();
    assert_eq!(values, [0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0]);
    let letters = f.letters.delivered.lock();
    assert_eq!(letters.iter().map(|l| (l.partition, l.offset)).collect::<Vec<_>>(), [(0, 3)]);
    assert_eq!(f.metrics.poison.get_or_create(&of_reason("t", "malformed")).get(), 1);
    assert_eq!((f.metrics.dead_letters.get_or_create(&of("t")).get(), f.metrics.dropped.get_or_create(&of("t")).get()), (1, 0));
}

#[test]
fn without_a_dead_letter_topic_poison_is_dropped_and_counted() {
    let mut f = Fixture::new(&[2], |_, wiring| {
        wiring.letters = None;
        wiring.decoding.keep_letters = false;
    });
    f.put(0, 0, b"{\"broken");
    f.put(0, 1, b"\xff");
    f.assign(&[0]);
    f.turns(3);
    // The offset moves although there is nothing to store.
    assert_eq!((f.bus.offset("src:c/t:0"), f.bus.values().len()), (Some(2), 0));
    assert_eq!(f.metrics.dropped.get_or_create(&of("t")).get(), 2);
}

#[test]
fn an_append_that_is_too_large_is_halved_and_a_message_that_is_becomes_a_letter() {
    let mut f = Fixture::new(&[12], |bus, _| *bus.messages_max.lock() = Some(2));
    f.put(0, 6, b"m 60\nm 61\nm 62\n");
    f.assign(&[0]);
    f.turns(2);
    assert!(f.bus.values().is_empty(), "five messages are too many");
    f.collector.feed().poll_messages = Some(1);
    f.turns(40);
    let mut expected: Vec<f64> = (0..12).map(f64::from).collect();
    expected.remove(6);
    assert_eq!((f.bus.values(), f.bus.offset("src:c/t:0")), (expected, Some(12)));
    let letters = f.letters.delivered.lock();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].offset, letters[0].fault.kind, letters[0].fault.decoder), (6, "too_large", "fletch.bus"));
}

#[test]
fn a_round_ends_at_its_bounds_however_long_it_may_last() {
    let mut f = Fixture::new(&[8, 8], |_, _| {});
    let wide = (0..3_000).map(|n| format!("m{{l=\"{}\"}} {n}\n", "x".repeat(1_000))).collect::<String>();
    (0..8).for_each(|at| f.put(0, at, wide.as_bytes()));
    let long = (0..40_000).map(|n| format!("m {n}\n")).collect::<String>();
    (0..8).for_each(|at| f.put(1, at, long.as_bytes()));
    f.collector.feed().poll_messages = Some(1);
    let mut appended = Vec::new();
    f.assign(&[0, 1]);
    f.turn();
    while appended.iter().map(|(_, n)| n).sum::<i64>() < 16 {
        f.collector.turn(Duration::from_secs(3_600)).expect("it goes on");
        for append in f.bus.stored.lock().drain(..) {
            let before: i64 = appended.iter().filter(|(s, _)| *s == append.sources[0].source).map(|(_, n)| n).sum();
            appended.push((append.sources[0].source.clone(), append.sources[0].next - before));
        }
    }
    // 3 MB a message in one partition, 40,000 rows a message in the other.
    assert!(appended.iter().all(|(source, n)| *n <= if source.ends_with(":0") { 3 } else { 2 }), "{appended:?}");
    assert!(appended.contains(&("src:c/t:0".into(), 3)) && appended.contains(&("src:c/t:1".into(), 2)), "{appended:?}");
}

#[test]
fn what_is_held_for_a_dead_letter_topic_that_is_away_is_bounded() {
    let mut f = Fixture::new(&[1; 9], |_, _| {});
    let poison = vec![0xFF; 5 << 20];
    (0..9).for_each(|number| f.put(number, 0, &poison));
    f.collector.feed().poll_messages = Some(1);
    *f.letters.away.lock() = true;
    f.assign(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    f.turns(30);
    // Each holds the value in its letter, and counts it as read: 10 MiB. The rest is not kept, and read again.
    assert_eq!(f.collector.feed().paused.len(), 6);
    assert_eq!(f.collector.feed().fetched.len(), 6);
    *f.letters.away.lock() = false;
    for _ in 0..30 {
        f.later(30_000);
    }
    let mut letters: Vec<i32> = f.letters.delivered.lock().iter().map(|l| l.partition).collect();
    letters.sort_unstable();
    assert_eq!(letters, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert!((0..9).all(|n| f.bus.offset(&format!("src:c/t:{n}")) == Some(1)));
}

#[test]
fn a_gap_ends_the_source_and_names_it() {
    for (low, stored, part) in [(10, 4, "offsets 4..10 were deleted"), (0, 99, "read up to offset 99, but it holds 0..3")] {
        let mut f = Fixture::new(&[3], |bus, _| {
            bus.offsets.lock().insert("src:c/t:0".into(), stored);
        });
        f.collector.feed().logs.get_mut(&tp(0)).expect("there").low = low;
        f.assign(&[0]);
        let error = f.collector.turn(Duration::ZERO).expect_err("a gap");
        assert!(matches!(error, SourceError::Gap { gap: Gap { partition: 0, .. }, .. }) && error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_gap_that_is_accepted_is_counted_and_skipped() {
    let mut f = Fixture::new(&[3], |bus, wiring| {
        bus.offsets.lock().insert("src:c/t:0".into(), 4);
        wiring.on_gap = OnGap::Skip;
    });
    f.collector.feed().logs.get_mut(&tp(0)).expect("there").low = 10;
    f.assign(&[0]);
    f.turns(3);
    assert_eq!((f.bus.values(), f.bus.offset("src:c/t:0")), (vec![0.0, 1.0, 2.0], Some(13)));
    assert_eq!(f.metrics.gaps.get_or_create(&of("t")).get(), 1);
}

#[test]
fn a_gap_that_opens_while_reading_is_found() {
    let mut f = Fixture::new(&[20], |_, _| {});
    f.assign(&[0]);
    f.turns(2);
    let log = f.collector.feed().logs.get_mut(&tp(0)).expect("there");
    (log.low, log.values) = (15, log.values.split_off(15));
    f.collector.feed().fetched.insert(tp(0), 99);
    f.collector.feed().events.push_back(Event::OutOfRange("offset out of range".into()));
    f.turn();
    f.clock.advance(Duration::from_millis(500));
    let error = f.collector.turn(Duration::ZERO).expect_err("a gap").to_string();
    assert!(error.contains("t[0]") && error.contains("offsets 5..15 were deleted"), "{error}");
}

#[test]
fn with_a_bus_of_one_process_nothing_is_read_of_a_shared_topic() {
    let mut f = Fixture::new(&[5, 5], |_, _| {});
    f.assign(&[1]);
    f.turns(2);
    f.later(4_999);
    assert!(f.bus.stored.lock().is_empty() && f.bus.claims.lock().is_empty());
    f.clock.advance(Duration::from_millis(1_000));
    let error = f.collector.turn(Duration::ZERO).expect_err("not alone").to_string();
    for part in ["1 of the 2 partitions", "t[0]", "--kafka-brokers", "--object-store"] {
        assert!(error.contains(part), "{error} lacks {part}");
    }
    // A process that gets nothing at all ends too.
    let mut f = Fixture::new(&[5], |_, _| {});
    f.assign(&[]);
    f.turn();
    f.clock.advance(Duration::from_millis(6_000));
    assert!(matches!(f.collector.turn(Duration::ZERO), Err(SourceError::NotAlone { assigned: 0, total: 1, .. })));
}

#[test]
fn partitions_that_go_and_come_back_within_the_grace_are_read_on() {
    let mut f = Fixture::new(&[12, 12], |_, _| {});
    f.assign(&[0, 1]);
    f.turns(2);
    f.revoke(&[1]);
    f.turn();
    let stored = f.bus.values().len();
    f.later(3_000);
    assert_eq!(f.bus.values().len(), stored, "nothing is read meanwhile");
    f.assign(&[1]);
    f.turns(8);
    f.later(10_000);
    f.assert_all_once(&[12, 12]);
}

#[test]
fn with_a_shared_bus_a_part_is_enough() {
    let mut f = Fixture::new(&[5, 5], |bus, _| bus.shared = true);
    f.assign(&[1]);
    f.turns(3);
    f.later(60_000);
    assert_eq!(f.bus.values().len(), 5);
}

#[test]
fn a_closed_bus_and_a_fatal_error_end_the_source() {
    let mut f = Fixture::new(&[5], |bus, _| *bus.answers.lock() = VecDeque::from([Answer::Close]));
    f.assign(&[0]);
    f.turn();
    assert!(matches!(f.collector.turn(Duration::ZERO), Err(SourceError::Bus { source: BusError::Closed, .. })));
    let mut f = Fixture::new(&[5], |_, _| {});
    f.collector.feed().events.push_back(Event::Fatal("fenced by another member with this `group.instance.id`".into()));
    let error = f.collector.turn(Duration::ZERO).expect_err("fatal").to_string();
    assert!(error.contains("group.instance.id"), "{error}");
}

#[test]
fn the_end_appends_what_was_read_and_tells_kafka() {
    let mut f = Fixture::new(&[5], |_, _| {});
    f.assign(&[0]);
    f.turns(2);
    f.collector.finish().expect("stored");
    assert_eq!(f.collector.feed().committed, BTreeMap::from([(tp(0), 5)]));
    f.assert_all_once(&[5]);
}

/// Every kind of failure at random, rebalances included: all of it is stored once and in order.
#[test]
fn nothing_is_lost_or_doubled_whatever_fails() {
    for seed in 0..200_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = move |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let sizes = [30, 17, 40];
        let mut f = Fixture::new(&sizes, |bus, _| bus.shared = seed % 2 == 0);
        let mut ours = [false; 3];
        for _ in 0..120 {
            let answer = match random(12) {
                0 => Answer::Fail,
                1 => Answer::StoreAndFail,
                2 => Answer::Full,
                _ => Answer::Store,
            };
            f.bus.answers.lock().push_back(answer);
            *f.letters.away.lock() = random(5) == 0;
            let number = random(3) as usize;
            match (random(10), ours[number]) {
                (0, true) => f.revoke(&[number as i32]),
                (0..6, false) => f.assign(&[number as i32]),
                (9, _) => f.collector.feed().events.push_back(Event::OutOfRange("moved".into())),
                _ => {}
            }
            if let Some(Event::Assigned(_) | Event::Revoked(_)) = f.collector.feed().events.back() {
                ours[number] = !ours[number];
            }
            // Less than the grace while partitions are elsewhere.
            f.clock.advance(Duration::from_millis(random(40)));
            f.turn();
        }
        f.bus.answers.lock().clear();
        for number in (0..3).filter(|n| !ours[*n]) {
            f.assign(&[number as i32]);
        }
        for _ in 0..40 {
            f.clock.advance(Duration::from_secs(31));
            f.turn();
        }
        f.assert_all_once(&sizes);
        let counted = f.metrics.records.get_or_create(&of("t")).get();
        assert!(counted <= 87, "seed {seed}: a record is counted once, {counted}");
    }
}
