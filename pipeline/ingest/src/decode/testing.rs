//! For tests and benches, also of other crates: builds remote-write requests, right and wrong ones, and holds the fuzz targets.
//!
//! ```
//! use fletch_ingest::decode::testing::WriteRequest;
//! let body = WriteRequest::new().series(&[("__name__", "up"), ("job", "x")], &[(1_700_000_000_000, 1.0)]).compressed();
//! # assert!(!body.is_empty());
//! ```

use super::{DecodeContext, Decoded, LabelPolicy, RemoteWriteCache, RemoteWriteDecoder, decode_json, decode_prometheus_json, decode_text};
use crate::SeriesRegistry;
use fletch_common::Limits;
use fletch_schemas::{MetricKind, MetricMetadata, TenantId};
use std::sync::Arc;

/// A remote-write 1 request under construction. Nothing is checked: bad input must be possible.
#[derive(Debug, Clone, Default)]
pub struct WriteRequest {
    message: Vec<u8>,
}

impl WriteRequest {
    /// An empty request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a series with its labels as they are given and samples of (time in ms, value).
    pub fn series<N: AsRef<[u8]>, V: AsRef<[u8]>>(mut self, labels: &[(N, V)], samples: &[(i64, f64)]) -> Self {
        let series = samples.iter().fold(labels_of(labels), |series, (time_ms, value)| series.sample(*time_ms, *value));
        self.push(1, &series.0);
        self
    }

    /// Adds a series field by field, in any order.
    pub fn raw_series(mut self, build: impl FnOnce(SeriesMessage) -> SeriesMessage) -> Self {
        self.push(1, &build(SeriesMessage::default()).0);
        self
    }

    /// Adds what is known about a metric family.
    pub fn metadata(mut self, said: &MetricMetadata) -> Self {
        let mut entry = Vec::new();
        push_varint_field(&mut entry, 1, kind_number(said.kind));
        push_bytes_field(&mut entry, 2, said.metric.as_bytes());
        push_bytes_field(&mut entry, 4, said.help.as_bytes());
        push_bytes_field(&mut entry, 5, said.unit.as_bytes());
        self.push(3, &entry);
        self
    }

    /// Adds a field of bytes to the outer message.
    pub fn push(&mut self, field: u64, bytes: &[u8]) {
        push_bytes_field(&mut self.message, field, bytes);
    }

    /// The bare protobuf message.
    pub fn encoded(self) -> Vec<u8> {
        self.message
    }

    /// The body of the request: the message as a snappy block.
    pub fn compressed(self) -> Vec<u8> {
        compress(&self.message)
    }
}

/// A `TimeSeries` message; fields stand in the order of the calls.
#[derive(Debug, Clone, Default)]
pub struct SeriesMessage(Vec<u8>);

impl SeriesMessage {
    /// Adds a label.
    pub fn label(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let mut label = Vec::new();
        push_bytes_field(&mut label, 1, name.as_ref());
        push_bytes_field(&mut label, 2, value.as_ref());
        push_bytes_field(&mut self.0, 1, &label);
        self
    }

    /// Adds a sample as senders write it: what is zero is left out.
    pub fn sample(mut self, time_ms: i64, value: f64) -> Self {
        let mut sample = Vec::new();
        if value != 0.0 {
            sample.push(0x09);
            sample.extend_from_slice(&value.to_le_bytes());
        }
        if time_ms != 0 {
            push_varint_field(&mut sample, 2, time_ms.cast_unsigned());
        }
        push_bytes_field(&mut self.0, 2, &sample);
        self
    }

    /// Adds any field of bytes: 3 is an exemplar, 4 a histogram.
    pub fn field(mut self, number: u64, bytes: &[u8]) -> Self {
        push_bytes_field(&mut self.0, number, bytes);
        self
    }

    /// Adds bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

fn labels_of<N: AsRef<[u8]>, V: AsRef<[u8]>>(labels: &[(N, V)]) -> SeriesMessage {
    labels.iter().fold(SeriesMessage::default(), |series, (name, value)| series.label(name, value))
}

/// A snappy block.
pub fn compress(message: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(message).expect("a test message is far below 4 GiB")
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7F).expect("seven bits") | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits"));
}

fn push_varint_field(out: &mut Vec<u8>, field: u64, value: u64) {
    push_varint(out, field << 3);
    push_varint(out, value);
}

fn push_bytes_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    push_varint(out, field << 3 | 2);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn kind_number(kind: MetricKind) -> u64 {
    match kind {
        MetricKind::Unknown => 0,
        MetricKind::Counter => 1,
        MetricKind::Gauge => 2,
        MetricKind::Histogram => 3,
        MetricKind::GaugeHistogram => 4,
        MetricKind::Summary => 5,
        MetricKind::Info => 6,
        MetricKind::StateSet => 7,
    }
}

/// A request like the devops load: `series` host metrics of one sample each, about 250 bytes of labels per series.
pub fn devops_request(series: usize, time_ms: i64) -> WriteRequest {
    const FIELDS: [&str; 10] = [
        "usage_user",
        "usage_system",
        "usage_idle",
        "usage_nice",
        "usage_iowait",
        "usage_irq",
        "usage_softirq",
        "usage_steal",
        "usage_guest",
        "load",
    ];
    (0..series).fold(WriteRequest::new(), |request, n| {
        let (host, field) = (n / FIELDS.len(), FIELDS[n % FIELDS.len()]);
        let labels = [
            ("__name__", format!("cpu_{field}")),
            ("arch", "x64".into()),
            ("datacenter", format!("eu-central-1{}", ["a", "b", "c"][host % 3])),
            ("hostname", format!("host_{host}")),
            ("os", "Ubuntu16.04LTS".into()),
            ("rack", format!("{}", host % 100)),
            ("region", "eu-central-1".into()),
            ("service", format!("{}", host % 20)),
            ("service_environment", "production".into()),
            ("service_version", "1".into()),
            ("team", "SF".into()),
        ];
        let value = f64::from(u32::try_from(n % 1000).expect("below 1000")) / 10.0;
        request.series(&labels, &[(time_ms, value)])
    })
}

/// Functions for a fuzzer: take any bytes, must never panic, and check what must hold of every result.
pub mod fuzz {
    use super::{
        Arc, DecodeContext, Decoded, LabelPolicy, Limits, RemoteWriteCache, RemoteWriteDecoder, SeriesRegistry, TenantId, decode_json,
        decode_prometheus_json, decode_text,
    };

    const NOW_MS: i64 = 1_700_000_000_000;

    fn limits() -> Limits {
        // Small, so that a fuzzer meets them.
        Limits { request_samples_max: 50, request_decompressed_bytes_max: 1 << 20, labels_per_series_max: 8, ..Limits::default() }
    }

    fn check(registry: &SeriesRegistry, result: Result<(), super::super::DecodeError>, out: &Decoded) {
        let (series, times, values) = (out.batch.series.len(), out.batch.times.len(), out.batch.values.len());
        assert!(series == times && times == values, "the columns have one length");
        assert_eq!(out.stats.accepted, series as u64);
        assert!(out.batch.series.iter().all(|s| s.index() < registry.len()));
        assert!(out.rejects.iter().all(|r| r.message.len() < 2_000), "messages stay short");
        if let Err(error) = result {
            assert!(out.is_empty() && out.rejects.is_empty(), "nothing of a refused request stays");
            assert!(error.to_string().len() < 1_000);
        }
    }

    /// A compressed remote-write body.
    pub fn remote_write(data: &[u8]) {
        remote_write_with(data, true);
    }

    /// A bare remote-write message.
    pub fn remote_write_message(data: &[u8]) {
        remote_write_with(data, false);
    }

    /// The same request three times: what was cached by the first must not change the result.
    fn remote_write_with(data: &[u8], compressed: bool) {
        let registry = Arc::new(SeriesRegistry::new());
        let decoder = RemoteWriteDecoder::new(registry.clone(), limits());
        let (tenant, mut connection) = (TenantId::default(), RemoteWriteCache::default());
        let mut first: Option<Decoded> = None;
        for _ in 0..3 {
            let mut out = Decoded::new();
            let result = if compressed {
                decoder.decode(data, &tenant, NOW_MS, &mut connection, &mut out)
            } else {
                decoder.decode_uncompressed(data, &tenant, NOW_MS, &mut connection, &mut out)
            };
            check(&registry, result, &out);
            // Only new series are counted there.
            out.stats.unbounded_labels = 0;
            let Some(first) = &first else {
                first = Some(out);
                continue;
            };
            assert_eq!((&first.batch.series, &first.batch.times), (&out.batch.series, &out.batch.times));
            assert!(first.batch.values.iter().map(|v| v.to_bits()).eq(out.batch.values.iter().map(|v| v.to_bits())));
            assert_eq!((first.stats, &first.rejects, &first.metadata), (out.stats, &out.rejects, &out.metadata));
        }
    }

    fn with_context(decode: impl FnOnce(&DecodeContext<'_>, &mut Decoded) -> Result<(), super::super::DecodeError>) {
        let (registry, tenant, limits, mut out) = (SeriesRegistry::new(), TenantId::default(), limits(), Decoded::new());
        let label_policy = LabelPolicy::Refuse;
        let context = DecodeContext { tenant: &tenant, now_ms: NOW_MS, limits: &limits, registry: &registry, label_policy };
        let result = decode(&context, &mut out);
        check(&registry, result, &out);
    }

    /// A text body.
    pub fn text(data: &[u8]) {
        with_context(|context, out| decode_text(context, data, out));
    }

    /// A JSON body.
    pub fn json(data: &[u8]) {
        with_context(|context, out| decode_json(context, data, out));
    }

    /// A message of prometheus-kafka-adapter.
    pub fn prometheus_json(data: &[u8]) {
        with_context(|context, out| decode_prometheus_json(context, data, out));
    }

    /// Telling JSON from text.
    pub fn sniff(data: &[u8]) {
        let _either = super::super::sniff(data);
    }
}
