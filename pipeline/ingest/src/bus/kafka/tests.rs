//! Against a real broker: `FLETCH_TEST_KAFKA=host:port` names it (`tests/services/kafka.sh` starts one). Without it they say so and pass.

use super::writer::Splitter;
use super::*;
use crate::bus::BatchSink;
use crate::bus::embedded::LogMetrics;
use crate::bus::record::{Decoded, Decoder, Record, Scope};
use crate::bus::testing::{Scripted, Seen, assert_no_gaps, contract, one, series, source};
use crate::{SampleBatch, SeriesRegistry};
use fletch_common::SystemClock;
use fletch_schemas::{MetricMetadata, TenantId};
use rdkafka::Offset;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionList;

fn broker() -> Option<String> {
    let broker = std::env::var("FLETCH_TEST_KAFKA").ok();
    if broker.is_none() {
        eprintln!("SKIPPED: a test of the bus on kafka needs a broker: FLETCH_TEST_KAFKA=host:port (tests/services/kafka.sh start)");
    }
    broker
}

fn settings(broker: &str) -> KafkaSettings {
    let topic = format!("bus-{}", uuid::Uuid::new_v4());
    let group = format!("group-{topic}");
    KafkaSettings { topic, group, partitions: 4, heartbeat: Duration::from_millis(200), ..KafkaSettings::new(broker) }
}

fn sink() -> Arc<Scripted> {
    Arc::new(Scripted::new(&Arc::new(SeriesRegistry::new())))
}

async fn open(settings: &KafkaSettings, sinks: &[Arc<Scripted>]) -> Result<Arc<KafkaBus>, BusError> {
    let wiring = Wiring {
        registry: sinks[0].registry.clone(),
        clock: Arc::new(SystemClock),
        sinks: sinks.iter().map(|s| s.clone() as Arc<dyn BatchSink>).collect(),
        admission: None,
        metrics: LogMetrics::default(),
    };
    KafkaBus::open(settings.clone(), wiring).await
}

async fn settled(bus: &KafkaBus) -> KafkaState {
    let mut state = bus.state();
    state.wait_for(|s| matches!(s, KafkaState::Ready | KafkaState::Failed(_))).await.expect("the bus lives").clone()
}

async fn ready(settings: &KafkaSettings, sink: &Arc<Scripted>) -> Arc<KafkaBus> {
    let bus = open(settings, std::slice::from_ref(sink)).await.expect("opens");
    assert_eq!(settled(&bus).await, KafkaState::Ready);
    bus
}

fn values(seen: &[Seen]) -> Vec<i64> {
    let mut values: Vec<_> = seen.iter().flat_map(|s| s.rows.iter().map(|r| r.2)).collect();
    values.sort_unstable();
    values
}

async fn append(bus: &KafkaBus, sink: &Scripted, range: std::ops::Range<i64>) {
    for n in range {
        bus.append(one(&sink.registry, &format!("m{}", n % 10), n)).await.expect("acknowledged");
    }
}

/// Ends of the partitions after the last delivery.
fn ends(seen: &[Seen]) -> BTreeMap<Partition, i64> {
    seen.iter().map(|s| (s.partition, s.to)).collect()
}

#[test]
fn golden_partitions() {
    let place = |tenant: &str, metric: &str, n| partition_of(&TenantId::new(tenant).expect("valid"), metric, n);
    let places = [place("default", "up", 8), place("default", "cpu_usage", 8), place("a", "up", 8), place("default", "up", 1000)];
    assert_eq!(places, GOLDEN, "a change would part the history of every metric");
    assert_eq!(place("default", "up", 1), 0);
}

const GOLDEN: [Partition; 4] = [5, 2, 4, 661];

#[test]
fn a_group_is_split_by_metric_and_every_record_decodes_alone() {
    let registry = Arc::new(SeriesRegistry::new());
    let mut splitter = Splitter::new(registry.clone(), 4);
    let metadata = MetricMetadata { metric: "m3".into(), ..MetricMetadata::default() };
    for round in 0..2 {
        let mut appends: Vec<_> = (0..40).map(|n| one(&registry, &format!("m{}", n % 10), n + round)).collect();
        appends[0].metadata.push((TenantId::default(), metadata.clone()));
        let mut batch = SampleBatch::default();
        for record in splitter.split(appends) {
            let mut decoded = Decoded::default();
            let checked = Record::check(&record.payload).expect("right");
            Decoder::new(registry.clone(), Scope::Record).decode(&checked, &mut decoded).expect("decodes alone");
            for &one in &decoded.batch.series {
                let series = registry.get(one);
                assert_eq!(partition_of(&series.tenant, series.labels.metric(), 4) as i32, record.partition);
            }
            for (tenant, metadata) in &decoded.metadata {
                assert_eq!(partition_of(tenant, &metadata.metric, 4) as i32, record.partition);
            }
            batch.append(&mut decoded.batch);
        }
        assert_eq!(batch.len(), 40);
        let of = |name: &str| {
            let one = series(&registry, name);
            (0..batch.len()).filter(|&i| batch.series[i] == one).map(|i| batch.values[i] as i64).collect::<Vec<_>>()
        };
        assert_eq!(of("m3"), [3 + round, 13 + round, 23 + round, 33 + round], "a series keeps its order");
    }
}

#[tokio::test]
async fn it_is_a_bus() {
    let Some(broker) = broker() else { return };
    let sink = sink();
    let bus = ready(&settings(&broker), &sink).await;
    assert_eq!(bus.assignment(), Assignment { partitions: 4, owned: vec![0, 1, 2, 3] });
    contract(bus.clone(), &sink).await;
    assert!(sink.revoked.lock().is_empty(), "closing keeps the partitions until the storage has flushed");
    bus.leave().await;
    let mut revoked = sink.revoked.lock().clone();
    revoked.sort_unstable();
    assert_eq!(revoked, [0, 1, 2, 3]);
}

#[tokio::test]
async fn a_partition_continues_where_the_sink_says() {
    let Some(broker) = broker() else { return };
    let settings = settings(&broker);
    let first = sink();
    let bus = ready(&settings, &first).await;
    append(&bus, &first, 0..20).await;
    let stored = ends(&first.wait(|seen| values(seen).len() == 20).await);
    append(&bus, &first, 20..50).await;
    bus.close().await;
    assert_eq!(values(&first.seen()), (0..50).collect::<Vec<_>>(), "close waits for what was acknowledged");
    bus.leave().await;
    let registry = Arc::new(SeriesRegistry::new());
    let storage = stored.iter().fold(Scripted::new(&registry), |sink, (&partition, &next)| sink.starting_at(partition, next));
    let panes = Scripted::new(&registry).wanting_groups();
    let panes = Arc::new(stored.keys().fold(panes, |sink, &partition| sink.starting_at(partition, 0)));
    let storage = Arc::new(storage);
    let bus = open(&settings, &[storage.clone(), panes.clone()]).await.expect("opens");
    assert_eq!(settled(&bus).await, KafkaState::Ready);
    storage.wait(|seen| values(seen).len() >= 30).await;
    panes.wait(|seen| values(seen).len() >= 50).await;
    assert_eq!(values(&storage.seen()), (20..50).collect::<Vec<_>>());
    assert_eq!(values(&panes.seen()), (0..50).collect::<Vec<_>>());
    for (partition, next) in stored {
        assert_eq!(storage.seen().iter().find(|s| s.partition == partition).map(|s| s.from), Some(next));
    }
    assert_no_gaps(&storage.seen());
    assert_no_gaps(&panes.seen());
    assert!(panes.seen().iter().all(|s| s.to == s.from + 1), "each record for itself");
    bus.release(0, 5);
    bus.close().await;
    bus.leave().await;
}

#[tokio::test]
async fn a_partition_that_was_overtaken_begins_anew_where_the_tables_are() {
    let Some(broker) = broker() else { return };
    let sink = sink();
    let bus = ready(&settings(&broker), &sink).await;
    append(&bus, &sink, 0..20).await;
    let stored = ends(&sink.wait(|seen| values(seen).len() == 20).await);
    append(&bus, &sink, 20..40).await;
    sink.wait(|seen| values(seen).len() == 40).await;
    for (&partition, &next) in &stored {
        sink.start_at(partition, next);
        bus.overtaken(partition);
    }
    sink.wait(|seen| values(seen).len() == 60).await;
    let mut twice: Vec<i64> = (0..40).chain(20..40).collect();
    twice.sort_unstable();
    assert_eq!(values(&sink.seen()), twice, "what the tables do not have comes again, nothing else");
    let mut revoked = sink.revoked.lock().clone();
    revoked.sort_unstable();
    assert_eq!(revoked, stored.keys().copied().collect::<Vec<_>>());
    append(&bus, &sink, 40..50).await;
    sink.wait(|seen| values(seen).len() == 70).await;
    bus.close().await;
    bus.leave().await;
}

#[tokio::test]
async fn an_offset_that_the_topic_does_not_have_fails_with_the_gap() {
    let Some(broker) = broker() else { return };
    let sink = Arc::new(Scripted::new(&Arc::new(SeriesRegistry::new())).starting_at(2, 1_000));
    let bus = open(&settings(&broker), std::slice::from_ref(&sink)).await.expect("opens");
    let KafkaState::Failed(why) = settled(&bus).await else { panic!("an offset behind the end must fail") };
    assert!(why.contains("partition 2") && why.contains("offsets 0 to 1000 are missing"), "{why}");
    assert!(matches!(bus.append(one(&sink.registry, "m", 1)).await, Err(BusError::Corrupt(_))));
    bus.leave().await;
}

fn admin(broker: &str) -> AdminClient<client::Context> {
    ClientConfig::new().set("bootstrap.servers", broker).create_with_context(client::Context).expect("a client")
}

#[tokio::test]
async fn a_topic_that_keeps_the_senders_time_is_refused() {
    let Some(broker) = broker() else { return };
    let settings = settings(&broker);
    let topic = NewTopic::new(&settings.topic, 1, TopicReplication::Fixed(1)).set("message.timestamp.type", "CreateTime");
    admin(&broker).create_topics([&topic], &AdminOptions::new()).await.expect("an answer")[0].as_ref().expect("created");
    let refused = open(&settings, &[sink()]).await.expect_err("not fit").to_string();
    assert!(refused.contains("message.timestamp.type=CreateTime") && refused.contains("LogAppendTime"), "{refused}");
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_named() {
    let properties = [("socket.connection.setup.timeout.ms".to_owned(), "1000".to_owned()), ("nonsense".to_owned(), "1".to_owned())];
    let settings = KafkaSettings { properties: properties.into(), ..KafkaSettings::new("127.0.0.1:1") };
    let refused = KafkaBus::identify(&settings).await.expect_err("an unknown property").to_string();
    assert!(refused.contains("nonsense"), "{refused}");
}

#[tokio::test]
async fn partitions_move_to_a_process_that_joins_and_back() {
    let Some(broker) = broker() else { return };
    let settings = settings(&broker);
    let (first, second) = (sink(), sink());
    let a = ready(&settings, &first).await;
    append(&a, &first, 0..40).await;
    first.wait(|seen| values(seen).len() == 40).await;
    let b = ready(&settings, &second).await;
    let mut progress = b.shared.progress.subscribe();
    let shared = |a: &KafkaBus, b: &KafkaBus| (a.assignment().owned.len(), b.assignment().owned.len());
    progress.wait_for(|()| shared(&a, &b) == (2, 2)).await.expect("the group balances");
    append(&a, &first, 40..60).await;
    append(&b, &second, 60..80).await;
    // Nothing was stored, so each new owner begins at 0: between them the owners now hold everything.
    let of = |sink: &Scripted, bus: &KafkaBus| {
        let owned = bus.assignment().owned;
        let seen: Vec<_> = sink.seen().into_iter().filter(|s| owned.contains(&s.partition)).collect();
        values(&seen)
    };
    let all = |a: &KafkaBus, b: &KafkaBus| {
        let mut all = [of(&first, a), of(&second, b)].concat();
        all.sort_unstable();
        all
    };
    let mut progress = (a.shared.progress.subscribe(), b.shared.progress.subscribe());
    while all(&a, &b).len() < 80 {
        tokio::select! { _ = progress.0.changed() => {}, _ = progress.1.changed() => {} }
    }
    assert_eq!(all(&a, &b), (0..80).collect::<Vec<_>>());
    assert_eq!(first.revoked.lock().len(), 2);
    for sink in [&first, &second] {
        assert_no_gaps(&sink.seen());
    }
    a.close().await;
    a.leave().await;
    let mut progress = b.shared.progress.subscribe();
    progress.wait_for(|()| b.assignment().owned.len() == 4).await.expect("all of it");
    second.wait(|seen| values(seen).len() >= 80).await;
    b.close().await;
    b.leave().await;
}

#[tokio::test]
async fn heartbeats_move_time_and_offsets_of_idle_partitions() {
    let Some(broker) = broker() else { return };
    let sink = sink();
    let bus = ready(&settings(&broker), &sink).await;
    let beats = |seen: &[Seen], p| seen.iter().filter(|s| s.partition == p && s.rows.is_empty() && s.to > s.from).count();
    let seen = sink.wait(|seen| (0..4).all(|p| beats(seen, p) >= 3)).await;
    assert_no_gaps(&seen);
    for partition in 0..4 {
        let times: Vec<_> = seen.iter().filter(|s| s.partition == partition).map(|s| s.append_time_ms).collect();
        assert!(times.is_sorted() && times[times.len() - 1] > times[0], "{times:?}");
    }
    bus.leave().await;
}

#[tokio::test]
async fn a_message_that_is_not_ours_is_skipped_and_a_damaged_record_stops_the_bus() {
    let Some(broker) = broker() else { return };
    let settings = settings(&broker);
    let sink = sink();
    let bus = ready(&settings, &sink).await;
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &broker).create().expect("a producer");
    let send = |payload: &[u8]| {
        producer.send(BaseRecord::<(), [u8]>::to(&settings.topic).partition(1).payload(payload)).map_err(|(e, _)| e).expect("queued");
        producer.flush(Duration::from_secs(10)).expect("sent");
    };
    send(b"hello");
    send(&[b'x'; 200]);
    append(&bus, &sink, 0..10).await;
    sink.wait(|seen| values(seen).len() == 10).await;
    assert_no_gaps(&sink.seen());
    let mut record = Splitter::new(sink.registry.clone(), 4).split(vec![one(&sink.registry, "m", 1)]).remove(0).payload;
    *record.last_mut().expect("bytes") ^= 1;
    send(&record);
    let mut state = bus.state();
    let failed = state.wait_for(|s| matches!(s, KafkaState::Failed(_))).await.expect("lives").clone();
    assert!(format!("{failed:?}").contains("checksum"), "{failed:?}");
    assert_eq!(bus.shared.wiring.metrics.skipped.get(), 2);
    bus.leave().await;
}

#[tokio::test]
async fn source_offsets_are_one_with_their_samples_and_fence_the_predecessor() {
    let Some(broker) = broker() else { return };
    let settings = settings(&broker);
    let (first, second) = (sink(), sink());
    let a = ready(&settings, &first).await;
    let name = "src:x/t:3";
    let with = |sink: &Scripted, value: i64, next: i64| Append { sources: vec![source("x/t:3", next)], ..one(&sink.registry, "m", value) };
    assert!(a.append(with(&first, 0, 1)).await.is_err(), "not claimed");
    assert_eq!(a.claim_source(name).await.expect("claims"), None);
    for n in 0..5 {
        a.append(with(&first, n, 10 + n)).await.expect("committed");
    }
    assert_eq!(a.source_offsets(), [source("x/t:3", 14)]);
    let b = ready(&settings, &second).await;
    assert_eq!(b.claim_source(name).await.expect("claims"), Some(14));
    assert!(a.append(with(&first, 100, 99)).await.is_err(), "a newer claim fences this one");
    b.append(with(&second, 5, 15)).await.expect("committed");
    assert_eq!(b.claim_source(name).await.expect("claims again"), Some(15));
    assert_eq!(b.claim_source("src:other:0").await.expect("claims"), None);
    b.close().await;
    b.leave().await;
    let seen = first.wait(|seen| values(seen).contains(&5)).await;
    // Its partitions went to the other process and came back, to be read from the start again: so as a set.
    assert_eq!(values(&seen).into_iter().collect::<std::collections::BTreeSet<_>>(), (0..6).collect(), "nothing of the fenced append");
    a.close().await;
    a.leave().await;
}

#[tokio::test]
async fn a_claim_waits_for_transactions_that_are_open() {
    let Some(broker) = broker() else { return };
    let settings = settings(&broker);
    let sink = sink();
    let bus = ready(&settings, &sink).await;
    let topic = topic::sources_topic(&settings.topic);
    let producer = |id: &str| -> BaseProducer {
        let id = format!("{topic}-{id}");
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", &broker).set("transactional.id", id).create().expect("a producer");
        producer.init_transactions(Duration::from_secs(10)).expect("ready");
        producer.begin_transaction().expect("begun");
        producer
    };
    let send = |producer: &BaseProducer, key: &str, next: &str| {
        producer.send(BaseRecord::to(&topic).partition(0).key(key).payload(next)).map_err(|(e, _)| e).expect("queued");
        producer.flush(Duration::from_secs(10)).expect("sent");
    };
    let (open, done) = (producer("open"), producer("done"));
    send(&open, "src:other", "1");
    send(&done, "src:mine", "77");
    done.commit_transaction(Duration::from_secs(10)).expect("committed");
    // The committed offset stands behind an open transaction: readers of committed messages do not see it yet.
    let claim = tokio::spawn({
        let bus = bus.clone();
        async move { bus.claim_source("src:mine").await }
    });
    let finish = tokio::task::spawn_blocking(move || open.commit_transaction(Duration::from_secs(10)));
    finish.await.expect("no panic").expect("committed");
    assert_eq!(claim.await.expect("no panic").expect("claims"), Some(77));
    bus.leave().await;
}

#[tokio::test]
async fn release_tells_kafka_for_tools() {
    let Some(broker) = broker() else { return };
    let settings = settings(&broker);
    let sink = sink();
    let bus = ready(&settings, &sink).await;
    append(&bus, &sink, 0..10).await;
    let end = ends(&sink.wait(|seen| values(seen).len() == 10).await);
    for (&partition, &next) in &end {
        bus.release(partition, next);
    }
    bus.close().await;
    bus.leave().await;
    let group: rdkafka::consumer::BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &broker).set("group.id", &settings.group).create().expect("a consumer");
    let mut asked = TopicPartitionList::new();
    for &partition in end.keys() {
        asked.add_partition(&settings.topic, partition as i32);
    }
    let committed = group.committed_offsets(asked, Duration::from_secs(10)).expect("an answer");
    let committed: BTreeMap<_, _> = committed.elements().iter().map(|e| (e.partition() as Partition, e.offset())).collect();
    assert_eq!(committed, end.into_iter().map(|(p, next)| (p, Offset::Offset(next))).collect());
}
