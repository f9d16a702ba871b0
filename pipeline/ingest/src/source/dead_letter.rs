//! Messages that could not be used, or not wholly, on their way to the dead-letter topic.
//!
//! A letter is the original (key, value, headers) plus the headers that Kafka Connect writes, so that its tools read ours.
//!
//! # When it fails
//! What the broker did not acknowledge stays in the list and is tried again; a letter may arrive twice, never not at all. A value that the
//! broker finds too large is left out, and the letter says so.

use super::config::KafkaSource;
use super::format::Message;
use async_trait::async_trait;
use futures::future::join_all;
use parking_lot::Mutex;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::util::Timeout;
use std::fmt::Debug;
use std::time::Duration;

/// How long a letter waits for room in the queue of the client.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// Letters on their way at the same time.
const IN_FLIGHT_MAX: usize = 1_000;
/// Longest reason in a header, in bytes.
const REASON_BYTES_MAX: usize = 4 << 10;

/// Why a message was not used, or not wholly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Class of the fault, for metrics and as the class of the exception.
    pub(super) kind: &'static str,
    /// What would have decoded it.
    pub(super) decoder: &'static str,
    pub(super) message: String,
}

/// One message for the dead-letter topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeadLetter {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(super) fault: Fault,
}

impl DeadLetter {
    pub(super) fn new(message: &Message<'_>, fault: Fault) -> Self {
        let headers = message.headers.unwrap_or_default().iter().map(|(name, value)| ((*name).to_owned(), value.map(<[u8]>::to_vec)));
        Self {
            topic: message.topic.to_owned(),
            partition: message.partition,
            offset: message.offset,
            key: message.key.map(<[u8]>::to_vec),
            value: message.value.map(<[u8]>::to_vec),
            headers: headers.collect(),
            fault,
        }
    }

    /// Size in memory, roughly.
    pub(super) fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len)).sum();
        self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len) + headers + self.fault.message.len()
    }

    /// The headers of the letter: the original ones, then what happened.
    fn all_headers(&self, group: &str) -> Vec<(String, Option<Vec<u8>>)> {
        let reason = &self.fault.message[..self.fault.message.floor_char_boundary(REASON_BYTES_MAX)];
        let errors = [
            ("topic", self.topic.clone()),
            ("partition", self.partition.to_string()),
            ("offset", self.offset.to_string()),
            ("connector.name", group.to_owned()),
            ("stage", "VALUE_CONVERTER".to_owned()),
            ("class.name", self.fault.decoder.to_owned()),
            ("exception.class.name", format!("fletch.{}", self.fault.kind)),
            ("exception.message", reason.to_owned()),
        ];
        let errors = errors.into_iter().map(|(name, value)| (format!("__connect.errors.{name}"), Some(value.into_bytes())));
        self.headers.iter().cloned().chain(errors).collect()
    }
}

/// The door to the dead-letter topic.
#[async_trait]
pub(super) trait DeadLetters: Send + Sync + Debug {
    /// Takes out of `letters` what has been acknowledged; all of it when it returns `Ok`.
    ///
    /// # Errors
    /// Why the rest could not be delivered.
    async fn deliver(&self, letters: &mut Vec<DeadLetter>) -> Result<(), String>;
}

/// The dead-letter topic on the cluster of the source.
pub(super) struct KafkaDeadLetters {
    source: KafkaSource,
    topic: String,
    /// Made at the first letter, and again after a fatal error.
    producer: Mutex<Option<FutureProducer>>,
}

impl Debug for KafkaDeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaDeadLetters").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl KafkaDeadLetters {
    /// `None` when the source has no dead-letter topic.
    pub(super) fn new(source: &KafkaSource) -> Option<Self> {
        let topic = source.dead_letter_topic.clone()?;
        Some(Self { source: source.clone(), topic, producer: Mutex::default() })
    }

    fn producer(&self) -> Result<FutureProducer, KafkaError> {
        let mut producer = self.producer.lock();
        if let Some(usable) = producer.as_ref().filter(|p| p.client().fatal_error().is_none()) {
            return Ok(usable.clone());
        }
        let made: FutureProducer = self.source.producer().create()?;
        Ok(producer.insert(made).clone())
    }

    async fn send(&self, producer: &FutureProducer, letter: &DeadLetter) -> Result<(), KafkaError> {
        match self.send_with(producer, letter, letter.value.as_deref()).await {
            Err(error) if is_too_large(&error) => {
                let bytes = letter.value.as_ref().map_or(0, Vec::len);
                let message =
                    format!("{}; the value of {bytes} bytes is left out: the broker refuses a message of that size", letter.fault.message);
                let smaller = DeadLetter { value: None, fault: Fault { message, ..letter.fault.clone() }, ..letter.clone() };
                self.send_with(producer, &smaller, None).await
            }
            other => other,
        }
    }

    async fn send_with(&self, producer: &FutureProducer, letter: &DeadLetter, value: Option<&[u8]>) -> Result<(), KafkaError> {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &letter.all_headers(&self.source.group) {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic).headers(headers);
        record.key = letter.key.as_deref();
        record.payload = value;
        producer.send(record, Timeout::After(QUEUE_WAIT)).await.map(|_| ()).map_err(|(error, _)| error)
    }
}

fn is_too_large(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize))
}

#[async_trait]
impl DeadLetters for KafkaDeadLetters {
    async fn deliver(&self, letters: &mut Vec<DeadLetter>) -> Result<(), String> {
        let refused = |error: &KafkaError| format!("dead-letter topic `{}`: {error}", self.topic);
        let producer = self.producer().map_err(|error| refused(&error))?;
        while !letters.is_empty() {
            let some = letters.len().min(IN_FLIGHT_MAX);
            let results = join_all(letters[..some].iter().map(|letter| self.send(&producer, letter))).await;
            let mut results = results.into_iter();
            let mut first_error = None;
            // What was sent is taken out; the order of what stays is kept.
            letters.retain(|_| match results.next() {
                Some(Ok(())) => false,
                Some(Err(error)) => {
                    first_error.get_or_insert(error);
                    true
                }
                None => true,
            });
            if let Some(error) = first_error {
                return Err(refused(&error));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_the_original_plus_what_happened() {
        let headers: [(&str, Option<&[u8]>); 2] = [("trace", Some(b"1")), ("empty", None)];
        let message =
            Message { topic: "metrics", partition: 3, offset: 42, key: Some(b"k"), value: Some(b"\xff\x00"), headers: Some(&headers) };
        let fault =
            Fault { kind: "malformed", decoder: "fletch.json", message: format!("the body is é{}", "é".repeat(REASON_BYTES_MAX)) };
        let letter = DeadLetter::new(&message, fault);
        assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"k"[..]), Some(&b"\xff\x00"[..])));
        assert!(letter.bytes() > REASON_BYTES_MAX);
        let all = letter.all_headers("group");
        let text = |name: &str| {
            let (_, value) = all.iter().find(|(n, _)| n == name).expect(name);
            value.as_ref().map(|v| String::from_utf8(v.clone()).expect("clipped between characters"))
        };
        assert_eq!((text("trace"), text("empty")), (Some("1".into()), None));
        let expected = [
            ("topic", "metrics"),
            ("partition", "3"),
            ("offset", "42"),
            ("connector.name", "group"),
            ("stage", "VALUE_CONVERTER"),
            ("class.name", "fletch.json"),
            ("exception.class.name", "fletch.malformed"),
        ];
        for (name, value) in expected {
            assert_eq!(text(&format!("__connect.errors.{name}")).as_deref(), Some(value), "{name}");
        }
        let reason = text("__connect.errors.exception.message").expect("there is one");
        assert!(reason.starts_with("the body is é") && reason.len() <= REASON_BYTES_MAX, "{}", reason.len());
    }
}
