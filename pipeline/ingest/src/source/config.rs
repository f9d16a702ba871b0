//! What a user says about a source, and which properties of librdkafka follow from it.

use super::SourceError;
use fletch_schemas::TenantId;
use rdkafka::ClientConfig;
use regex::Regex;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Messages that librdkafka fetches ahead at most, in KiB, over all partitions of a source.
const FETCHED_KIB_MAX: &str = "32768";
/// A dead process loses its partitions after this time; short, because a restart waits for it.
const SESSION_TIMEOUT_MS: &str = "10000";
/// New topics and partitions are noticed after this time.
const METADATA_REFRESH_MS: &str = "30000";
/// How long the broker waits for messages before it answers. Short: whatever else is asked of that broker stands in line behind it. The
/// first message ends the wait, so nothing is later for it.
const FETCH_WAIT_MS: &str = "100";
/// How often the client says where the topics end.
const STATISTICS_MS: &str = "5000";
/// How long a dead letter may be on its way.
pub(super) const LETTER_TIMEOUT_MS: &str = "15000";
/// Size of a letter that this side does not refuse; the broker has its own limit.
const LETTER_BYTES_MAX: &str = "1000000000";

/// Properties that cannot be set, each with what to do instead or why.
const OURS: [(&str, &str); 14] = [
    ("bootstrap.servers", "set `brokers`"),
    ("metadata.broker.list", "set `brokers`"),
    ("group.id", "set `group`"),
    ("enable.auto.commit", "the position is stored with the samples"),
    ("enable.auto.offset.store", "the position is stored with the samples"),
    ("auto.offset.reset", "a source never jumps by itself; see `on_gap`"),
    ("isolation.level", "only committed messages are read"),
    ("partition.assignment.strategy", "it is cooperative-sticky; `group.protocol: consumer` is possible"),
    ("enable.partition.eof", "the ends of partitions are not waited for"),
    ("acks", "dead letters are acknowledged by all replicas"),
    ("request.required.acks", "dead letters are acknowledged by all replicas"),
    ("enable.idempotence", "dead letters are written idempotently"),
    ("transactional.id", "dead letters are not written in transactions"),
    ("message.timeout.ms", "a dead letter that is not delivered is tried again"),
];

/// Beginnings of names of properties that only a consumer has.
const CONSUMER_ONLY: [&str; 12] = [
    "group.",
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "coordinator.",
    "queued.",
    "fetch.",
    "max.partition.fetch.bytes",
    "check.crcs",
    "topic.blacklist",
    "auto.commit.",
    "allow.auto.create.topics",
];

/// Beginnings of names of properties that only a producer has.
const PRODUCER_ONLY: [&str; 9] = [
    "linger.ms",
    "batch.",
    "compression.",
    "queue.buffering.",
    "delivery.",
    "request.timeout.ms",
    "partitioner",
    "sticky.partitioning.",
    "message.send.max.retries",
];

/// One entry of `fletch.sources.kafka`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSource {
    /// `host:port,…` of the cluster that has the topics; need not be the cluster of the bus.
    pub brokers: String,
    /// Topics to read. One that begins with `^` is a regular expression over all topics of the cluster; internal topics (`__…`) and the
    /// dead-letter topic are left out.
    pub topics: Vec<String>,
    /// Consumer group: processes with the same group share the partitions.
    pub group: String,
    /// What the values of the messages are.
    pub decoder: Decoder,
    /// Where messages go that cannot be decoded; without it they are dropped and counted.
    pub dead_letter_topic: Option<String>,
    /// Any property of librdkafka (`security.protocol`, `sasl.username`, `group.instance.id`, …), for the consumer and for the producer of
    /// dead letters. The few that the guarantees rest on are refused by name.
    pub properties: BTreeMap<String, String>,
    /// Whose samples they are when a message has no `X-Scope-OrgID` header; without it `default`.
    pub tenant: Option<String>,
    /// What to do when the topic no longer has the messages that were to be read next.
    pub on_gap: OnGap,
}

impl Default for KafkaSource {
    fn default() -> Self {
        Self {
            brokers: String::new(),
            topics: Vec::new(),
            group: "fletch-sources".to_owned(),
            decoder: Decoder::Auto,
            dead_letter_topic: None,
            properties: BTreeMap::new(),
            tenant: None,
            on_gap: OnGap::Stop,
        }
    }
}

/// How the value of a message is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decoder {
    /// By the headers `content-type` and `content-encoding`, else by the first bytes.
    #[default]
    Auto,
    /// A remote-write 1 request: snappy, or the bare protobuf message.
    RemoteWrite,
    /// The JSON of our push API: a metric, a list of them, or `{"metrics":[…]}`.
    Json,
    /// The JSON of prometheus-kafka-adapter: one sample a message.
    PrometheusJson,
    /// Lines of Prometheus' text exposition format.
    Text,
}

/// What to do when the offset to read next is not in the topic: retention was faster than we were, or the topic was made anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnGap {
    /// The source stops with an error that names the gap.
    #[default]
    Stop,
    /// The loss is accepted: the gap is logged and counted, and reading goes on with the oldest message there is.
    Skip,
}

impl KafkaSource {
    /// Checks everything that needs no broker; for `fletch check config` too.
    ///
    /// # Errors
    /// [`SourceError::Config`], naming the key.
    pub fn check(&self) -> Result<(), SourceError> {
        if self.brokers.trim().is_empty() {
            return Err(self.wrong("brokers", "give at least one `host:port`"));
        }
        if self.group.is_empty() {
            return Err(self.wrong("group", "it is empty"));
        }
        self.check_topics()?;
        self.default_tenant()?;
        for (name, why) in OURS {
            if self.properties.contains_key(name) {
                return Err(self.wrong(&format!("properties.{name}"), format!("this property cannot be set: {why}")));
            }
        }
        for config in [self.consumer(&[]), self.producer()] {
            config.create_native_config().map_err(|error| self.wrong("properties", error.to_string()))?;
        }
        Ok(())
    }

    /// Checks the entries, and that no topic is in two of them: its position could not be that of both.
    ///
    /// # Errors
    /// [`SourceError::Config`], naming the key.
    pub fn check_all(sources: &[Self]) -> Result<(), SourceError> {
        for (i, one) in sources.iter().enumerate() {
            one.check()?;
            for other in sources[..i].iter().filter(|other| other.brokers == one.brokers) {
                if let Some(topic) = one.topics.iter().find(|t| other.has(t)).or_else(|| other.topics.iter().find(|t| one.has(t))) {
                    return Err(one.wrong("topics", format!("`{topic}` is read by two sources; each topic needs exactly one")));
                }
            }
        }
        Ok(())
    }

    /// Whether this topic, or this very regular expression, is one of the topics.
    fn has(&self, topic: &str) -> bool {
        let matches = |patterns: Vec<Regex>| !topic.starts_with('^') && patterns.iter().any(|p| p.is_match(topic));
        self.topics.iter().any(|t| t == topic) || self.patterns().is_ok_and(matches)
    }

    fn check_topics(&self) -> Result<(), SourceError> {
        if self.topics.is_empty() {
            return Err(self.wrong("topics", "name at least one topic"));
        }
        for topic in self.topics.iter().chain(&self.dead_letter_topic).filter(|t| !t.starts_with('^')) {
            let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if topic.is_empty() || topic.len() > 249 || !topic.chars().all(legal) {
                let why =
                    format!("`{topic}` is no topic: letters, digits, `.`, `_` and `-` are, or a regular expression that begins with `^`");
                return Err(self.wrong("topics", why));
            }
        }
        self.patterns()?;
        match &self.dead_letter_topic {
            Some(letters) if letters.starts_with('^') => Err(self.wrong("dead_letter_topic", "a regular expression is not possible here")),
            Some(letters) if self.topics.contains(letters) => Err(self.wrong("dead_letter_topic", "it is also one of `topics`")),
            _ => Ok(()),
        }
    }

    /// Whose samples they are when a message does not say.
    pub(super) fn default_tenant(&self) -> Result<TenantId, SourceError> {
        match &self.tenant {
            None => Ok(TenantId::default()),
            Some(name) => TenantId::new(name).map_err(|error| self.wrong("tenant", error.to_string())),
        }
    }

    /// The regular expressions among the topics.
    pub(super) fn patterns(&self) -> Result<Vec<Regex>, SourceError> {
        let patterns = self.topics.iter().filter(|t| t.starts_with('^'));
        patterns.map(|t| Regex::new(t).map_err(|error| self.wrong("topics", format!("`{t}` is no regular expression: {error}")))).collect()
    }

    fn wrong(&self, key: &str, why: impl Into<String>) -> SourceError {
        SourceError::Config { group: self.group.clone(), key: key.to_owned(), why: why.into() }
    }

    /// Whether the broker, not a member, assigns the partitions (KIP-848).
    pub(super) fn broker_assigns(&self) -> bool {
        self.properties.get("group.protocol").is_some_and(|p| p.eq_ignore_ascii_case("consumer"))
    }

    /// Properties of the consumer: our defaults, what the user says, and what cannot be changed.
    pub(super) fn consumer(&self, excluded_topics: &[String]) -> ClientConfig {
        let mut config = self.common(&PRODUCER_ONLY, |config| {
            config.set("queued.max.messages.kbytes", FETCHED_KIB_MAX).set("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS);
            config.set("statistics.interval.ms", STATISTICS_MS).set("fetch.wait.max.ms", FETCH_WAIT_MS);
            if !self.broker_assigns() {
                config.set("session.timeout.ms", SESSION_TIMEOUT_MS).set("partition.assignment.strategy", "cooperative-sticky");
            }
        });
        config.set("group.id", &self.group).set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        // Every start is at an explicit offset; `error` makes an offset that is out of range an event instead of a silent jump.
        config.set("isolation.level", "read_committed").set("auto.offset.reset", "error");
        config.set("topic.blacklist", self.left_out(excluded_topics));
        config
    }

    /// Regular expressions of the topics that are never read.
    fn left_out(&self, excluded_topics: &[String]) -> String {
        let exact = self.dead_letter_topic.iter().chain(excluded_topics).map(|t| format!("^{}$", t.replace('.', "\\.")));
        let given = self.properties.get("topic.blacklist").cloned();
        std::iter::once("^__.*".to_owned()).chain(exact).chain(given).collect::<Vec<_>>().join(",")
    }

    /// Properties of the producer of dead letters.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.common(&CONSUMER_ONLY, |config| {
            config.set("message.max.bytes", LETTER_BYTES_MAX);
        });
        config.set("acks", "all").set("enable.idempotence", "true").set("message.timeout.ms", LETTER_TIMEOUT_MS);
        config
    }

    fn common(&self, not_for_this: &[&str], defaults: impl FnOnce(&mut ClientConfig)) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("client.id", "fletch-source");
        defaults(&mut config);
        for (name, value) in &self.properties {
            if !not_for_this.iter().any(|prefix| name.starts_with(prefix)) {
                config.set(name, value);
            }
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> KafkaSource {
        KafkaSource { brokers: "127.0.0.1:9092".into(), topics: vec!["metrics".into()], ..KafkaSource::default() }
    }

    #[test]
    fn a_minimal_entry_is_enough_and_an_unknown_key_is_refused() {
        let read = |json: &str| serde_json::from_str::<KafkaSource>(json);
        let minimal = read(r#"{"brokers":"127.0.0.1:9092","topics":["metrics"]}"#).expect("minimal");
        assert_eq!(minimal, source());
        minimal.check().expect("usable");
        let full = read(
            r#"{"brokers":"a:1,b:2","topics":["^metrics\\..*","x"],"group":"g","decoder":"prometheus_json","dead_letter_topic":"dead",
                "properties":{"group.instance.id":"pod-0","security.protocol":"PLAINTEXT","linger.ms":"5"},"tenant":"t","on_gap":"skip"}"#,
        )
        .expect("full");
        full.check().expect("usable");
        assert_eq!((full.decoder, full.on_gap), (Decoder::PrometheusJson, OnGap::Skip));
        assert!(read(r#"{"broker":"x"}"#).expect_err("unknown").to_string().contains("unknown field `broker`"));
        assert!(read(r#"{"decoder":"avro"}"#).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |change: &dyn Fn(&mut KafkaSource)| {
            let mut one = source();
            change(&mut one);
            one.check().expect_err("refused").to_string()
        };
        let property = |name: &'static str, value: &'static str| {
            move |s: &mut KafkaSource| {
                s.properties.insert(name.to_owned(), value.to_owned());
            }
        };
        let cases: [(String, &str); 11] = [
            (with(&|s| s.brokers = " ".into()), "`brokers`"),
            (with(&|s| s.topics.clear()), "`topics`"),
            (with(&|s| s.topics = vec!["a b".into()]), "`a b` is no topic"),
            (with(&|s| s.topics = vec!["^a(".into()]), "`^a(` is no regular expression"),
            (with(&|s| s.group.clear()), "`group`"),
            (with(&|s| s.tenant = Some("a/b".into())), "`tenant`"),
            (with(&|s| s.dead_letter_topic = Some("metrics".into())), "also one of `topics`"),
            (with(&property("enable.auto.commit", "true")), "`properties.enable.auto.commit`: this property cannot be set"),
            (with(&property("isolation.level", "read_uncommitted")), "`properties.isolation.level`"),
            (with(&property("no.such.property", "1")), "no.such.property"),
            (with(&property("session.timeout.ms", "soon")), "session.timeout.ms"),
        ];
        for (error, part) in cases {
            assert!(error.contains(part), "{error} lacks {part}");
        }
        for (name, _) in OURS {
            assert!(with(&property(name, "1")).contains("cannot be set"), "{name}");
        }
    }

    #[test]
    fn a_topic_belongs_to_one_source() {
        let of = |brokers: &str, topic: &str| KafkaSource { brokers: brokers.into(), topics: vec![topic.into()], ..source() };
        let check = |a: &KafkaSource, b: &KafkaSource| KafkaSource::check_all(&[a.clone(), b.clone()]);
        check(&of("a:1", "x"), &of("a:1", "y")).expect("two topics");
        check(&of("a:1", "x"), &of("b:1", "x")).expect("two clusters");
        check(&of("a:1", "^x"), &of("a:1", "^y")).expect("nothing is known of these");
        for (one, other) in [("x", "x"), ("^x.*", "xy"), ("xy", "^x.*"), ("^x.*", "^x.*")] {
            let error = check(&of("a:1", one), &of("a:1", other)).expect_err("the same topic").to_string();
            assert!(error.contains("is read by two sources"), "{error}");
        }
        let error = KafkaSource::check_all(&[of("", "x")]).expect_err("each is checked").to_string();
        assert!(error.contains("`brokers`"), "{error}");
    }

    #[test]
    fn properties_reach_the_client_they_are_for_and_cannot_break_the_guarantees() {
        let mut one = source();
        one.dead_letter_topic = Some("dead.letters".into());
        for (name, value) in [
            ("fetch.min.bytes", "2"),
            ("linger.ms", "7"),
            ("sasl.username", "u"),
            ("session.timeout.ms", "20000"),
            ("topic.blacklist", "^x"),
        ] {
            one.properties.insert(name.into(), value.into());
        }
        let (consumer, producer) = (one.consumer(&["bus".to_owned()]), one.producer());
        assert_eq!((consumer.get("fetch.min.bytes"), producer.get("fetch.min.bytes")), (Some("2"), None));
        assert_eq!((consumer.get("linger.ms"), producer.get("linger.ms")), (None, Some("7")));
        assert_eq!((consumer.get("sasl.username"), producer.get("sasl.username")), (Some("u"), Some("u")));
        assert_eq!(consumer.get("session.timeout.ms"), Some("20000"));
        assert_eq!(consumer.get("topic.blacklist"), Some("^__.*,^dead\\.letters$,^bus$,^x"));
        assert_eq!((consumer.get("isolation.level"), consumer.get("auto.offset.reset")), (Some("read_committed"), Some("error")));
        assert_eq!((producer.get("acks"), producer.get("enable.idempotence")), (Some("all"), Some("true")));
    }

    #[test]
    fn the_new_group_protocol_gets_no_properties_that_it_refuses() {
        let mut one = source();
        one.properties.insert("group.protocol".into(), "consumer".into());
        one.check().expect("usable");
        assert_eq!((one.consumer(&[]).get("partition.assignment.strategy"), one.consumer(&[]).get("session.timeout.ms")), (None, None));
    }
}
