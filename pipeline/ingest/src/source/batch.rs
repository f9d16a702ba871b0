//! What was read of one partition and is not on the bus yet: many tiny messages in one set of columns.

use super::config::Decoder;
use super::dead_letter::{DeadLetter, Fault};
use super::format::{self, Format, Message};
use crate::decode::{
    DecodeAdvice, DecodeContext, DecodeError, Decoded, LabelPolicy, RemoteWriteCache, RemoteWriteDecoder, decode_json,
    decode_prometheus_json, decode_text,
};
use crate::{Append, SeriesRegistry, SourceOffset};
use fletch_common::Limits;
use fletch_schemas::{MetricMetadata, TenantId};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// How many refusals the reason of a letter names.
const REJECTS_NAMED_MAX: usize = 10;

/// Everything that decodes a message of one source.
#[derive(Debug)]
pub(super) struct Decoding {
    pub(super) decoder: Decoder,
    pub(super) tenant: TenantId,
    pub(super) limits: Limits,
    pub(super) registry: Arc<SeriesRegistry>,
    pub(super) remote_write: Arc<RemoteWriteDecoder>,
    /// Whether there is a dead-letter topic.
    pub(super) keep_letters: bool,
}

impl Decoding {
    /// Appends what the value holds to `out`.
    fn decode(
        &self,
        message: &Message<'_>,
        value: &[u8],
        now_ms: i64,
        sender: &mut RemoteWriteCache,
        out: &mut Decoded,
    ) -> Result<Format, Fault> {
        let unreadable = |message: String| Fault { kind: "unreadable", decoder: "fletch.auto", message };
        if message.headers.is_none() {
            return Err(unreadable("the name of a header is not UTF-8".to_owned()));
        }
        let tenant = format::tenant(message, &self.tenant).map_err(unreadable)?;
        let format = format::format(self.decoder, message, value).map_err(unreadable)?;
        // As on remote write: label names such as `user_id` are counted, not refused.
        let label_policy = LabelPolicy::Warn;
        let context = DecodeContext { tenant: &tenant, now_ms, limits: &self.limits, registry: &self.registry, label_policy };
        let result = match format {
            Format::RemoteWriteSnappy => self.remote_write.decode(value, &tenant, now_ms, sender, out),
            Format::RemoteWriteBare => self.remote_write.decode_uncompressed(value, &tenant, now_ms, sender, out),
            Format::Json => decode_json(&context, value, out),
            Format::PrometheusJson => decode_prometheus_json(&context, value, out),
            Format::Text => decode_text(&context, value, out),
        };
        result.map(|()| format).map_err(|error| fault(format, &error))
    }
}

fn fault(format: Format, error: &DecodeError) -> Fault {
    let kind = match error.advice() {
        DecodeAdvice::TooLarge => "too_large",
        DecodeAdvice::Malformed => "malformed",
    };
    Fault { kind, decoder: format.class(), message: error.to_string() }
}

/// What was read of one partition since the last append.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) decoded: Decoded,
    /// For the dead-letter topic, in the order of the partition.
    pub(super) letters: Vec<DeadLetter>,
    /// Messages of which nothing could be used, by class of the fault.
    pub(super) poison: BTreeMap<&'static str, u64>,
    /// Messages of which something was refused.
    pub(super) faulty: u64,
    /// One of the faults, for the log.
    pub(super) last_fault: Option<(i64, String)>,
    /// Messages read.
    pub(super) messages: usize,
    /// Bytes of their values, and of the letters.
    pub(super) bytes: usize,
    /// The next offset to read.
    next: Option<i64>,
    sender: RemoteWriteCache,
}

impl Batch {
    /// Whether nothing was read.
    pub(super) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// The next offset to read after this batch.
    pub(super) fn next(&self) -> Option<i64> {
        self.next
    }

    /// Rows of the columns and of the metadata.
    pub(super) fn rows(&self) -> usize {
        self.decoded.batch.len() + self.decoded.metadata.len()
    }

    /// Forgets everything but the memory.
    pub(super) fn clear(&mut self) {
        self.decoded.clear();
        self.letters.clear();
        self.poison.clear();
        (self.faulty, self.last_fault, self.messages, self.bytes, self.next) = (0, None, 0, 0, None);
    }

    /// Decodes a message. A bad one becomes a letter; nothing stops here.
    pub(super) fn add(&mut self, decoding: &Decoding, message: &Message<'_>, now_ms: i64) {
        self.count(message);
        // A message without a value is a tombstone of a compacted topic: there is nothing in it.
        let Some(value) = message.value else { return };
        let before = self.decoded.stats;
        match decoding.decode(message, value, now_ms, &mut self.sender, &mut self.decoded) {
            Err(fault) => {
                *self.poison.entry(fault.kind).or_default() += 1;
                self.fault(decoding, message, fault);
            }
            Ok(format) => {
                let stats = &self.decoded.stats;
                let refused = stats.rejected() - before.rejected();
                if refused > 0 {
                    let stored = stats.accepted - before.accepted;
                    if stored == 0 && stats.metadata == before.metadata {
                        *self.poison.entry("rejected").or_default() += 1;
                    }
                    let fault = Fault { kind: "rejected", decoder: format.class(), message: self.rejects(refused, stored) };
                    self.fault(decoding, message, fault);
                }
            }
        }
    }

    /// Takes a message that is known to be unusable.
    pub(super) fn condemn(&mut self, decoding: &Decoding, message: &Message<'_>, fault: Fault) {
        self.count(message);
        *self.poison.entry(fault.kind).or_default() += 1;
        self.fault(decoding, message, fault);
    }

    fn count(&mut self, message: &Message<'_>) {
        self.messages += 1;
        self.bytes += message.value.map_or(0, <[u8]>::len);
        self.next = Some(message.offset + 1);
    }

    fn fault(&mut self, decoding: &Decoding, message: &Message<'_>, fault: Fault) {
        self.faulty += 1;
        self.last_fault = Some((message.offset, fault.message.clone()));
        if decoding.keep_letters {
            let letter = DeadLetter::new(message, fault);
            self.bytes += letter.bytes();
            self.letters.push(letter);
        }
    }

    /// The text of what was refused of the last message. Takes it out, so that each message has its own.
    fn rejects(&mut self, refused: u64, stored: u64) -> String {
        let mut text = format!("{refused} samples refused, {stored} stored: ");
        let named: Vec<String> = self.decoded.rejects.iter().take(REJECTS_NAMED_MAX).map(ToString::to_string).collect();
        text.push_str(&named.join("; "));
        let unnamed = self.decoded.rejects_total.saturating_sub(named.len() as u64);
        if unnamed > 0 {
            text.push_str(&format!("; and {unnamed} more"));
        }
        self.decoded.rejects.clear();
        self.decoded.rejects_total = 0;
        text
    }

    /// A copy for the bus, which takes what it is given; the batch stays for another try. `None` when nothing was read.
    pub(super) fn append(&mut self, source: &str) -> Option<Append> {
        let next = self.next?;
        keep_newest(&mut self.decoded.metadata);
        Some(Append {
            batch: self.decoded.batch.clone(),
            metadata: self.decoded.metadata.clone(),
            sources: vec![SourceOffset { source: source.to_owned(), next }],
        })
    }
}

/// Keeps what was said last about each metric family: tiny messages say the same again and again.
fn keep_newest(metadata: &mut Vec<(TenantId, MetricMetadata)>) {
    if metadata.len() < 2 {
        return;
    }
    let mut said = HashSet::with_capacity(metadata.len().min(1_024));
    let mut keep: Vec<bool> = metadata.iter().rev().map(|(tenant, one)| said.insert((tenant, one.metric.as_str()))).collect();
    drop(said);
    metadata.retain(|_| keep.pop().unwrap_or(true));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::testing::WriteRequest;
    use fletch_schemas::MetricKind;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn decoding(keep_letters: bool) -> Decoding {
        let (registry, limits) = (Arc::new(SeriesRegistry::new()), Limits::default());
        let remote_write = Arc::new(RemoteWriteDecoder::new(registry.clone(), limits.clone()));
        Decoding { decoder: Decoder::Auto, tenant: TenantId::default(), limits, registry, remote_write, keep_letters }
    }

    fn message(offset: i64, value: &[u8]) -> Message<'_> {
        Message { topic: "t", partition: 0, offset, key: Some(b"k"), value: Some(value), headers: Some(&[]) }
    }

    #[test]
    fn many_messages_of_any_format_become_one_append() {
        let (decoding, mut batch) = (decoding(true), Batch::default());
        let request = || WriteRequest::new().series(&[("__name__", "up")], &[(NOW_MS, 1.0)]);
        let values: [&[u8]; 4] = [br#"{"name":"a","value":1}"#, b"b 2\nc 3\n", &request().compressed(), &request().encoded()];
        for (offset, value) in (10..).zip(values) {
            batch.add(&decoding, &message(offset, value), NOW_MS);
        }
        batch.add(&decoding, &Message { value: None, ..message(20, b"") }, NOW_MS);
        assert_eq!((batch.messages, batch.rows(), batch.faulty, batch.next()), (5, 5, 0, Some(21)));
        let append = batch.append("src:c/t:0").expect("not empty");
        assert_eq!(append.batch.values, [1.0, 2.0, 3.0, 1.0, 1.0]);
        assert_eq!(append.sources, [SourceOffset { source: "src:c/t:0".into(), next: 21 }]);
        assert_eq!(batch.append("src:c/t:0").expect("still there").batch, append.batch);
        batch.clear();
        assert!(batch.is_empty() && batch.append("x").is_none() && batch.bytes == 0 && batch.rows() == 0);
    }

    #[test]
    fn poison_becomes_letters_with_their_own_reasons_and_the_rest_is_kept() {
        let (decoding, mut batch) = (decoding(true), Batch::default());
        let values: [&[u8]; 6] = [
            b"up 1",
            b"{\"broken",
            // One of two is good.
            b"good 1\nbad x\n",
            // None is.
            b"bad x\nbad y\n",
            b"\xff\xff",
            br#"{"name":"a"}"#,
        ];
        for (offset, value) in (0..).zip(values) {
            batch.add(&decoding, &message(offset, value), NOW_MS);
        }
        assert_eq!((batch.rows(), batch.faulty, batch.decoded.stats.rejected()), (2, 5, 4));
        assert_eq!(batch.poison, BTreeMap::from([("malformed", 2), ("rejected", 2)]));
        let letters: Vec<(i64, &str, &str)> = batch.letters.iter().map(|l| (l.offset, l.fault.kind, l.fault.message.as_str())).collect();
        assert_eq!(
            letters.iter().map(|l| (l.0, l.1)).collect::<Vec<_>>(),
            [(1, "malformed"), (2, "rejected"), (3, "rejected"), (4, "malformed"), (5, "rejected")]
        );
        assert!(letters[1].2.starts_with("1 samples refused, 1 stored: line 2: "), "{}", letters[1].2);
        assert!(
            letters[2].2.starts_with("2 samples refused, 0 stored: line 1: ") && letters[2].2.contains("; line 2: "),
            "{}",
            letters[2].2
        );
        assert!(letters[4].2.contains("metric 0: "), "{}", letters[4].2);
        assert_eq!(batch.letters[0].value.as_deref(), Some(&b"{\"broken"[..]));
    }

    #[test]
    fn without_a_dead_letter_topic_nothing_is_kept_of_poison_but_the_count() {
        let (decoding, mut batch) = (decoding(false), Batch::default());
        for offset in 0..1_000 {
            batch.add(&decoding, &message(offset, b"{\"broken"), NOW_MS);
        }
        assert_eq!((batch.letters.len(), batch.faulty, batch.bytes, batch.next()), (0, 1_000, 8_000, Some(1_000)));
        assert_eq!(batch.last_fault.as_ref().map(|f| f.0), Some(999));
        assert!(batch.append("s").expect("the offset moves").batch.is_empty());
    }

    #[test]
    fn refusals_beyond_what_a_decoder_keeps_still_have_reasons() {
        let (decoding, mut batch) = (decoding(true), Batch::default());
        for offset in 0..300 {
            batch.add(&decoding, &message(offset, b"bad x\n".repeat(20).as_slice()), NOW_MS);
        }
        let last = &batch.letters.last().expect("there are letters").fault.message;
        assert!(last.starts_with("20 samples refused, 0 stored: line 1: ") && last.ends_with("; and 10 more"), "{last}");
    }

    #[test]
    fn tenants_are_told_apart_and_a_bad_one_is_poison() {
        let (decoding, mut batch) = (decoding(true), Batch::default());
        let headers: [(&str, Option<&[u8]>); 1] = [("X-Scope-OrgID", Some(b"other"))];
        let bad: [(&str, Option<&[u8]>); 1] = [("X-Scope-OrgID", Some(b"a/b"))];
        batch.add(&decoding, &message(0, b"up 1"), NOW_MS);
        batch.add(&decoding, &Message { headers: Some(&headers), ..message(1, b"up 1") }, NOW_MS);
        batch.add(&decoding, &Message { headers: Some(&bad), ..message(2, b"up 1") }, NOW_MS);
        batch.add(&decoding, &Message { headers: None, ..message(3, b"up 1") }, NOW_MS);
        let tenants: Vec<String> = batch.decoded.batch.series.iter().map(|s| decoding.registry.get(*s).tenant.to_string()).collect();
        assert_eq!(tenants, ["default", "other"]);
        assert_eq!(batch.poison, BTreeMap::from([("unreadable", 2)]));
    }

    #[test]
    fn the_last_word_about_a_family_is_kept() {
        let (decoding, mut batch) = (decoding(true), Batch::default());
        for (offset, kind) in (0..).zip(["counter", "gauge", "counter", "gauge"]) {
            let value = format!(r#"{{"name":"m{}","type":"{kind}","value":1}}"#, offset % 3);
            batch.add(&decoding, &message(offset, value.as_bytes()), NOW_MS);
        }
        let kinds: Vec<(String, MetricKind)> =
            batch.append("s").expect("not empty").metadata.into_iter().map(|(_, m)| (m.metric, m.kind)).collect();
        let expected = [("m1", MetricKind::Gauge), ("m2", MetricKind::Counter), ("m0", MetricKind::Gauge)];
        assert_eq!(kinds, expected.map(|(m, k)| (m.to_owned(), k)));
    }
}
