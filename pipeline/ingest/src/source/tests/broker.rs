//! Against a real broker: `FLETCH_TEST_KAFKA=host:port` names it (`tests/services/kafka.sh` starts one). Without it they say so and pass.

use super::{Answer, NOW_MS, ScriptedBus};
use crate::bus::embedded::{EmbeddedLog, LogMetrics, LogSettings, Wiring};
use crate::bus::kafka::{KafkaBus, KafkaSettings};
use crate::decode::RemoteWriteDecoder;
use crate::decode::testing::WriteRequest;
use crate::source::config::{KafkaSource, OnGap};
use crate::source::feed::{Event, Feed, KafkaFeed};
use crate::source::metrics::of;
use crate::source::position::{Range, Start, TopicPartition};
use crate::source::{SourceDeps, SourceError, SourceMetrics, SourceRunner};
use crate::{BatchSink, Bus, BusError, Delivery, Partition, SeriesRegistry};
use fletch_common::{Clock, Limits, SystemClock};
use futures::future::join_all;
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::{ClientConfig, Offset};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long the broker may take for anything that a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The broker, or a loud word that there is none.
fn broker() -> Option<String> {
    let broker = std::env::var("FLETCH_TEST_KAFKA").ok();
    if broker.is_none() {
        // Not `eprintln!`, which the test harness swallows.
        let _ = writeln!(std::io::stderr(), "SKIPPED: a test of kafka sources needs a broker: FLETCH_TEST_KAFKA=host:port");
    }
    broker
}

/// A topic of its own for each test.
struct Topic {
    brokers: String,
    name: String,
    producer: FutureProducer,
    admin: AdminClient<DefaultClientContext>,
}

impl Topic {
    async fn new(brokers: &str, what: &str, partitions: i32) -> Self {
        let config = ClientConfig::new().set("bootstrap.servers", brokers).clone();
        let name = format!("source-{what}-{}", uuid::Uuid::new_v4());
        let admin: AdminClient<_> = config.create().expect("a client");
        let made = admin.create_topics(&[NewTopic::new(&name, partitions, TopicReplication::Fixed(1))], &AdminOptions::new()).await;
        assert!(made.expect("the broker answers").iter().all(Result::is_ok));
        // Otherwise a retry of this client would look like a message that was read twice.
        let producer = config.clone().set("enable.idempotence", "true").create().expect("a client");
        Self { brokers: brokers.to_owned(), name, producer, admin }
    }

    async fn send(&self, partition: i32, values: &[Vec<u8>]) {
        self.send_with(partition, values, &OwnedHeaders::new()).await;
    }

    async fn send_with(&self, partition: i32, values: &[Vec<u8>], headers: &OwnedHeaders) {
        for some in values.chunks(5_000) {
            let sends = some.iter().map(|value| {
                let record = FutureRecord::to(&self.name).partition(partition).key("k").payload(value).headers(headers.clone());
                self.producer.send(record, PATIENCE)
            });
            assert!(join_all(sends).await.iter().all(Result::is_ok));
        }
    }

    /// Values of their own in partition after partition: `m 0`, `m 1`, …
    async fn send_numbers(&self, partitions: i32, numbers: std::ops::Range<usize>) {
        let mut by_partition = vec![Vec::new(); partitions as usize];
        for n in numbers {
            by_partition[n % partitions as usize].push(format!("m {n}").into_bytes());
        }
        for (partition, values) in (0..).zip(by_partition) {
            self.send(partition, &values).await;
        }
    }

    fn source(&self) -> KafkaSource {
        KafkaSource { brokers: self.brokers.clone(), topics: vec![self.name.clone()], group: self.name.clone(), ..KafkaSource::default() }
    }
}

struct Running {
    runner: SourceRunner,
    stop: CancellationToken,
    metrics: SourceMetrics,
}

impl Running {
    fn start(source: KafkaSource, bus: &Arc<ScriptedBus>) -> Self {
        Self::start_on(source, bus.clone(), Arc::new(SeriesRegistry::new()))
    }

    fn start_on(source: KafkaSource, bus: Arc<dyn Bus>, registry: Arc<SeriesRegistry>) -> Self {
        let (metrics, stop) = (SourceMetrics::default(), CancellationToken::new());
        let deps = SourceDeps {
            bus,
            remote_write: Arc::new(RemoteWriteDecoder::new(registry.clone(), Limits::default())),
            registry,
            limits: Limits::default(),
            clock: Arc::new(SystemClock),
            excluded_topics: Vec::new(),
            metrics: metrics.clone(),
        };
        let runner = SourceRunner::start(source, deps, stop.clone()).expect("it starts");
        Self { runner, stop, metrics }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.runner.finished().await.expect("it ends well");
    }
}

fn shared_bus() -> Arc<ScriptedBus> {
    Arc::new(ScriptedBus { shared: true, ..ScriptedBus::default() })
}

/// Asks again and again, as a real broker takes its time.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited too long: {what}");
        SystemClock.sleep(Duration::from_millis(50)).await;
    }
}

fn sorted(bus: &ScriptedBus) -> Vec<usize> {
    let mut values: Vec<usize> = bus.values().into_iter().map(|v| v as usize).collect();
    values.sort_unstable();
    values
}

async fn until_all(bus: &ScriptedBus, count: usize) {
    until("everything is stored", || bus.values().len() >= count).await;
    let values = sorted(bus);
    assert!(values.iter().copied().eq(0..count), "{} values, {count} expected", values.len());
}

type Letter = (Option<Vec<u8>>, Option<Vec<u8>>, BTreeMap<String, String>);

/// Reads a topic of one partition from its beginning.
fn read_letters(brokers: &str, topic: &str, count: usize) -> Vec<Letter> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", "reader").create().expect("a client");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).expect("an offset");
    consumer.assign(&list).expect("assigned");
    let (begun, mut letters) = (Instant::now(), Vec::new());
    while letters.len() < count {
        assert!(begun.elapsed() < PATIENCE, "{} of {count} letters", letters.len());
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let headers = message.headers().expect("headers").iter();
        let headers = headers.map(|h| (h.key.to_owned(), String::from_utf8_lossy(h.value.unwrap_or_default()).into_owned()));
        letters.push((message.key().map(<[u8]>::to_vec), message.payload().map(<[u8]>::to_vec), headers.collect()));
    }
    letters
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn formats_tenants_and_poison_and_a_restart() {
    let Some(broker) = broker() else { return };
    let (topic, dead) = (Topic::new(&broker, "formats", 2).await, Topic::new(&broker, "dead", 1).await);
    let request = |n: f64| WriteRequest::new().series(&[("__name__", "rw")], &[(NOW_MS, n)]);
    topic.send(0, &[br#"{"name":"j","value":0}"#.to_vec(), b"t 1\n".to_vec(), b"{\"broken".to_vec()]).await;
    topic.send(1, &[request(2.0).compressed(), request(3.0).encoded(), b"good 4\nbad x\n".to_vec()]).await;
    let headers = OwnedHeaders::new().insert(Header { key: "X-Scope-OrgID", value: Some("other") });
    topic.send_with(1, &[b"t 5".to_vec()], &headers).await;
    let source = KafkaSource { dead_letter_topic: Some(dead.name.clone()), ..topic.source() };
    let bus = Arc::new(ScriptedBus::default());
    let running = Running::start(source.clone(), &bus);
    until_all(&bus, 6).await;
    until("the poison is behind it", || running.metrics.dead_letters.get_or_create(&of(&topic.name)).get() == 2).await;
    let (name, addr) = (dead.name.clone(), broker.clone());
    let mut letters = tokio::task::spawn_blocking(move || read_letters(&addr, &name, 2)).await.expect("no panic");
    letters.sort();
    let [(_, good, rejected), (key, value, broken)] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((key.as_deref(), value.as_deref()), (Some(&b"k"[..]), Some(&b"{\"broken"[..])));
    let said = |headers: &BTreeMap<String, String>, name: &str| headers[&format!("__connect.errors.{name}")].clone();
    assert_eq!((said(broken, "topic"), said(broken, "partition"), said(broken, "offset")), (topic.name.clone(), "0".into(), "2".into()));
    assert!(said(broken, "exception.message").contains("not usable JSON"), "{broken:?}");
    assert_eq!(good.as_deref(), Some(&b"good 4\nbad x\n"[..]));
    assert!(said(rejected, "exception.message").starts_with("1 samples refused, 1 stored: line 2: "), "{rejected:?}");
    running.stop().await;
    // The lag tools see it, and the next start asks the bus.
    let reader: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &broker).set("group.id", &topic.name).create().expect("a client");
    let mut list = TopicPartitionList::new();
    list.add_partition(&topic.name, 0);
    let committed = reader.committed_offsets(list, PATIENCE).expect("an answer");
    assert_eq!(committed.elements()[0].offset(), Offset::Offset(3));
    topic.send(0, &[b"t 6".to_vec()]).await;
    let running = Running::start(source, &bus);
    until_all(&bus, 7).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_come_and_go_and_everything_is_stored_once() {
    let Some(broker) = broker() else { return };
    let topic = Topic::new(&broker, "sharing", 6).await;
    topic.send_numbers(6, 0..20_000).await;
    let bus = shared_bus();
    let first = Running::start(topic.source(), &bus);
    until("the first has begun", || !bus.values().is_empty()).await;
    let second = Running::start(topic.source(), &bus);
    topic.send_numbers(6, 20_000..30_000).await;
    let read = |r: &Running| r.metrics.records.get_or_create(&of(&topic.name)).get();
    let mut sent = 30_000;
    let begun = Instant::now();
    while read(&second) == 0 {
        assert!(begun.elapsed() < PATIENCE, "the second never got a partition");
        topic.send_numbers(6, sent..sent + 600).await;
        sent += 600;
    }
    until_all(&bus, sent).await;
    first.stop().await;
    topic.send_numbers(6, sent..sent + 5_000).await;
    until_all(&bus, sent + 5_000).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_fail_under_load_lose_and_double_nothing() {
    let Some(broker) = broker() else { return };
    let topic = Topic::new(&broker, "failing", 3).await;
    topic.send_numbers(3, 0..60_000).await;
    let bus = shared_bus();
    let answers = [Answer::Store, Answer::Fail, Answer::Store, Answer::StoreAndFail, Answer::Store, Answer::Full, Answer::StoreAndFail];
    *bus.answers.lock() = VecDeque::from(answers.repeat(3));
    let running = Running::start(topic.source(), &bus);
    until_all(&bus, 60_000).await;
    topic.send_numbers(3, 60_000..61_000).await;
    until_all(&bus, 61_000).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_committed_transactions_are_read_and_the_new_group_protocol_works() {
    let Some(broker) = broker() else { return };
    let topic = Topic::new(&broker, "transactions", 1).await;
    let config = ClientConfig::new().set("bootstrap.servers", &broker).set("transactional.id", &topic.name).clone();
    let producer: FutureProducer = config.create().expect("a client");
    let (name, sender) = (topic.name.clone(), producer.clone());
    producer.init_transactions(PATIENCE).expect("initialized");
    for (n, commit) in [(0, true), (77, false), (1, true), (78, false)] {
        sender.begin_transaction().expect("begun");
        let value = format!("m {n}");
        sender.send(FutureRecord::<(), _>::to(&name).payload(&value), PATIENCE).await.expect("sent");
        let ended = if commit { sender.commit_transaction(PATIENCE) } else { sender.abort_transaction(PATIENCE) };
        ended.expect("ended");
    }
    let mut source = topic.source();
    source.properties.insert("group.protocol".into(), "consumer".into());
    let bus = Arc::new(ScriptedBus::default());
    let running = Running::start(source, &bus);
    until_all(&bus, 2).await;
    topic.send_numbers(1, 2..3).await;
    until_all(&bus, 3).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_with_a_bus_each_are_told_so() {
    let Some(broker) = broker() else { return };
    let topic = Topic::new(&broker, "alone", 4).await;
    let (bus, other) = (Arc::new(ScriptedBus::default()), Arc::new(ScriptedBus::default()));
    let first = Running::start(topic.source(), &bus);
    topic.send_numbers(4, 0..100).await;
    until_all(&bus, 100).await;
    let second = Running::start(topic.source(), &other);
    let stop = first.stop.clone();
    let result = tokio::select! {
        result = first.runner.finished() => result,
        result = second.runner.finished() => result,
    };
    stop.cancel();
    let error = result.expect_err("one of them ends");
    assert!(matches!(error, SourceError::NotAlone { total: 4, .. }), "{error}");
    assert!(other.values().is_empty(), "the second has read nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_messages_are_a_gap_with_a_name() {
    let Some(broker) = broker() else { return };
    let topic = Topic::new(&broker, "gap", 1).await;
    topic.send_numbers(1, 0..10).await;
    let bus = shared_bus();
    let running = Running::start(topic.source(), &bus);
    until_all(&bus, 10).await;
    running.stop().await;
    topic.send_numbers(1, 10..30).await;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic.name, 0, Offset::Offset(25)).expect("an offset");
    topic.admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
    let error = Running::start(topic.source(), &bus).runner.finished().await.expect_err("a gap");
    assert!(matches!(&error, SourceError::Gap { gap, .. } if (gap.stored, gap.low, gap.high) == (10, 25, 30)), "{error}");
    let running = Running::start(KafkaSource { on_gap: OnGap::Skip, ..topic.source() }, &bus);
    until("the rest is stored", || bus.values().len() == 15).await;
    assert_eq!(sorted(&bus), (0..10).chain(25..30).collect::<Vec<_>>());
    assert_eq!(running.metrics.gaps.get_or_create(&of(&topic.name)).get(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_out_of_range_is_an_event_and_not_a_jump() {
    let Some(broker) = broker() else { return };
    let topic = Topic::new(&broker, "range", 1).await;
    topic.send_numbers(1, 0..5).await;
    let source = topic.source();
    let of = TopicPartition::new(&topic.name, 0);
    let seen = tokio::task::spawn_blocking(move || {
        let mut feed = KafkaFeed::new(&source, Vec::new(), &[]).expect("a client");
        feed.join().expect("joined");
        let (mut seen, begun) = (Vec::new(), Instant::now());
        while seen.last().is_none_or(|s| s == "assigned") {
            assert!(begun.elapsed() < PATIENCE, "{seen:?}");
            feed.poll(Duration::from_millis(100), &mut |event| match event {
                Event::Assigned(_) => seen.push("assigned".to_owned()),
                Event::OutOfRange(_) => seen.push("out of range".to_owned()),
                Event::Message(message) => seen.push(format!("message {}", message.offset)),
                _ => {}
            });
            if seen.len() == 1 && feed.start(&of, Start::At(99)).is_ok() {
                assert_eq!(feed.range(&of), Ok(Range { low: 0, high: 5 }));
                assert!(feed.partitions().expect("an answer").into_iter().eq([of.clone()]));
                seen.push("assigned".to_owned());
            }
        }
        seen.pop()
    });
    assert_eq!(seen.await.expect("no panic").as_deref(), Some("out of range"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_regular_expression_follows_new_topics_and_skips_the_dead_letters() {
    let Some(broker) = broker() else { return };
    let first = Topic::new(&broker, "regex", 1).await;
    let prefix = first.name.clone();
    let later = Topic { name: format!("{prefix}.later"), ..Topic::new(&broker, "unused", 1).await };
    let dead = Topic { name: format!("{prefix}.dead"), ..Topic::new(&broker, "unused", 1).await };
    let mut source = first.source();
    source.topics = vec![format!("^{prefix}.*")];
    source.dead_letter_topic = Some(dead.name.clone());
    source.properties.insert("topic.metadata.refresh.interval.ms".into(), "500".into());
    let bus = Arc::new(ScriptedBus::default());
    let running = Running::start(source, &bus);
    first.send(0, &[b"m 0".to_vec(), b"{\"broken".to_vec()]).await;
    until_all(&bus, 1).await;
    until("the letter is written", || running.metrics.dead_letters.get_or_create(&of(&prefix)).get() == 1).await;
    // The broker makes both topics when something is written to them.
    later.send_numbers(1, 1..3).await;
    until_all(&bus, 3).await;
    first.send_numbers(1, 3..4).await;
    until_all(&bus, 4).await;
    assert_eq!(running.metrics.records.get_or_create(&of(&dead.name)).get(), 0);
    running.stop().await;
}

/// What a storage of several processes knows: everything delivered is committed at once, with the offset of the bus.
#[derive(Debug, Default)]
struct Tables {
    values: Mutex<Vec<usize>>,
    next: Mutex<BTreeMap<Partition, i64>>,
}

impl BatchSink for Tables {
    fn deliver(&self, delivery: &Delivery) {
        self.values.lock().extend(delivery.batch.values.iter().map(|v| *v as usize));
        self.next.lock().insert(delivery.partition, delivery.to);
    }

    fn assigned(&self, partition: Partition) -> Result<Option<i64>, BusError> {
        Ok(self.next.lock().get(&partition).copied())
    }

    fn revoked(&self, _partition: Partition) {}
}

impl Tables {
    async fn until_all(&self, count: usize) {
        until("everything is delivered", || self.values.lock().len() >= count).await;
        let mut values = self.values.lock().clone();
        values.sort_unstable();
        assert!(values.iter().copied().eq(0..count), "{} values, {count} expected", values.len());
    }

    fn wiring(self: &Arc<Self>, registry: &Arc<SeriesRegistry>) -> Wiring {
        Wiring {
            registry: registry.clone(),
            clock: Arc::new(SystemClock),
            sinks: vec![self.clone()],
            admission: None,
            metrics: LogMetrics::default(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_log_keeps_the_position_over_a_restart() {
    let Some(broker) = broker() else { return };
    let topic = Topic::new(&broker, "log", 2).await;
    topic.send_numbers(2, 0..2_000).await;
    let folder = tempfile::tempdir().expect("a folder");
    for count in [2_000, 3_000] {
        let (registry, tables) = (Arc::new(SeriesRegistry::new()), Arc::new(Tables::default()));
        let log = EmbeddedLog::open(LogSettings::new(folder.path(), 64 << 20), tables.wiring(&registry)).await.expect("it opens");
        let running = Running::start_on(topic.source(), log.clone(), registry);
        // The second time, what is in the log comes back from there and the rest from the topic.
        tables.until_all(count).await;
        topic.send(0, &[b"{\"broken".to_vec()]).await;
        // An offset without samples is stored too.
        let end = (count / 2 + if count == 2_000 { 1 } else { 2 }) as i64;
        until("the poison is behind it", || log.source_offsets().iter().any(|o| o.source.ends_with(":0") && o.next == end)).await;
        running.stop().await;
        log.close().await;
        topic.send_numbers(2, count..count + 1_000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_on_the_bus_on_kafka_deliver_everything_once() {
    let Some(broker) = broker() else { return };
    let topic = Topic::new(&broker, "bus", 4).await;
    let tables = Arc::new(Tables::default());
    let settings =
        KafkaSettings { topic: format!("{}-bus", topic.name), group: format!("{}-bus", topic.name), ..KafkaSettings::new(&broker) };
    let process = async || {
        let registry = Arc::new(SeriesRegistry::new());
        let bus = KafkaBus::open(settings.clone(), tables.wiring(&registry)).await.expect("it opens");
        (Running::start_on(topic.source(), bus.clone(), registry), bus)
    };
    topic.send_numbers(4, 0..20_000).await;
    let (first, first_bus) = process().await;
    until("the first has begun", || !tables.values.lock().is_empty()).await;
    let (second, second_bus) = process().await;
    let read = |r: &Running| r.metrics.records.get_or_create(&of(&topic.name)).get();
    let (mut sent, begun) = (20_000, Instant::now());
    while read(&second) == 0 {
        assert!(begun.elapsed() < PATIENCE, "the second never got a partition");
        topic.send_numbers(4, sent..sent + 400).await;
        sent += 400;
    }
    first.stop().await;
    first_bus.close().await;
    first_bus.leave().await;
    topic.send_numbers(4, sent..sent + 2_000).await;
    tables.until_all(sent + 2_000).await;
    second.stop().await;
    second_bus.close().await;
    second_bus.leave().await;
}
