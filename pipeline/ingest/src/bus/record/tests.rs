use super::*;
use crate::{SampleBatch, SeriesRef, SeriesRegistry, SourceOffset};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, UInt32Type};
use fletch_schemas::{Labels, MetricKind, MetricMetadata, STALE_BITS, TenantId};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("valid tenant")
}

fn series(registry: &SeriesRegistry, tenant_name: &str, n: usize) -> SeriesRef {
    let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("host", format!("host-{n}"))]).expect("valid labels");
    registry.resolve(&tenant(tenant_name), &labels)
}

fn batch(series: &[SeriesRef]) -> SampleBatch {
    let mut batch = SampleBatch::default();
    for (i, &one) in series.iter().enumerate() {
        let value = if i % 7 == 3 { f64::from_bits(STALE_BITS) } else { i as f64 / 3.0 };
        batch.push(one, 1_700_000_000_000 + i as i64, value);
    }
    batch
}

fn stamp(offset: i64) -> Stamp {
    Stamp { flags: 0, append_time_ms: 42, log: Uuid::from_u128(7), generation: 3, offset, synced: offset }
}

fn content<'a>(batch: &'a SampleBatch, metadata: &'a [(TenantId, MetricMetadata)], sources: &'a [SourceOffset]) -> Content<'a> {
    Content { series: &batch.series, times: &batch.times, values: &batch.values, metadata, sources }
}

fn help(metric: &str, help_bytes: usize) -> (TenantId, MetricMetadata) {
    let metadata = MetricMetadata { metric: metric.into(), kind: MetricKind::Summary, unit: "s".into(), help: "h".repeat(help_bytes) };
    (tenant("meta"), metadata)
}

/// Each sample as (tenant, labels, time, bits): what must be equal whatever the dense numbers are.
fn rows(registry: &SeriesRegistry, batch: &SampleBatch) -> Vec<(String, String, i64, u64)> {
    let row = |i: usize| {
        let one = registry.get(batch.series[i]);
        (one.tenant.to_string(), one.labels.to_string(), batch.times[i], batch.values[i].to_bits())
    };
    (0..batch.len()).map(row).collect()
}

fn decode_all(decoder: &mut Decoder, mut bytes: &[u8]) -> Result<(Decoded, Vec<Header>), RecordError> {
    let (mut out, mut headers) = (Decoded::default(), Vec::new());
    while !bytes.is_empty() {
        let record = Record::check(bytes)?;
        decoder.decode(&record, &mut out)?;
        headers.push(record.header);
        bytes = &bytes[record.header.length..];
    }
    Ok((out, headers))
}

#[test]
fn a_group_comes_back_as_it_was() {
    let registry = Arc::new(SeriesRegistry::new());
    let names: Vec<_> = (0..40).map(|n| series(&registry, ["a", "b"][n % 2], n % 10)).collect();
    let batch = batch(&names);
    let metadata = [help("m", 10), help("n", 0)];
    let sources = [SourceOffset { source: "src:c/t:0".into(), next: i64::MAX }];
    for scope in [Scope::Segment, Scope::Record] {
        let mut out = Vec::new();
        let ends = Encoder::new(registry.clone(), scope).encode(content(&batch, &metadata, &sources), stamp(9), &mut out).to_vec();
        assert_eq!(ends, [out.len()]);
        let other = Arc::new(SeriesRegistry::new());
        let (decoded, headers) = decode_all(&mut Decoder::new(other.clone(), scope), &out).expect("decodes");
        assert_eq!(rows(&other, &decoded.batch), rows(&registry, &batch));
        assert_eq!(decoded.metadata, metadata);
        assert_eq!(decoded.sources, sources);
        assert_eq!((headers[0].offset, headers[0].generation, headers[0].append_time_ms, headers[0].flags), (9, 3, 42, 0));
    }
}

#[test]
fn the_arrow_part_is_read_by_arrows_own_reader() {
    let registry = Arc::new(SeriesRegistry::new());
    for count in [0, 1, 2, 3, 1000] {
        let names: Vec<_> = (0..count).map(|n| series(&registry, "a", n % 5)).collect();
        let batch = batch(&names);
        let mut out = Vec::new();
        Encoder::new(registry.clone(), Scope::Record).encode(content(&batch, &[], &[]), stamp(0), &mut out);
        let record = Record::check(&out).expect("right");
        let head = u32::from_le_bytes(fixed(record.arrow, 4)) as usize;
        let message = arrow_ipc::root_as_message(&record.arrow[8..8 + head]).expect("a flatbuffer");
        let fields = [("series", DataType::UInt32), ("time", DataType::Int64), ("value", DataType::Float64)];
        let schema = Schema::new(fields.map(|(name, kind)| Field::new(name, kind, false)).to_vec());
        let body = arrow::buffer::Buffer::from(&record.arrow[8 + head..]);
        assert_eq!(message.bodyLength() as usize, body.len());
        let head = message.header_as_record_batch().expect("a batch");
        let read = arrow_ipc::reader::read_record_batch(&body, head, Arc::new(schema), &HashMap::new(), None, &message.version());
        let read = read.expect("Arrow reads it");
        let locals: Vec<u32> = (0..count as u32).map(|n| n % 5).collect();
        assert_eq!(read.column(0).as_primitive::<UInt32Type>().values().as_ref(), locals);
        assert_eq!(read.column(1).as_primitive::<Int64Type>().values().as_ref(), batch.times);
        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(read.column(2).as_primitive::<Float64Type>().values()), bits(&batch.values));
        assert_eq!(read.column(2).null_count(), 0);
    }
}

#[test]
fn a_scope_names_a_series_once_and_undo_takes_it_back() {
    let registry = Arc::new(SeriesRegistry::new());
    let (a, b, c) = (series(&registry, "t", 1), series(&registry, "t", 2), series(&registry, "t", 3));
    let mut encoder = Encoder::new(registry.clone(), Scope::Segment);
    let mut first = Vec::new();
    encoder.encode(content(&batch(&[a, b]), &[], &[]), stamp(0), &mut first);
    encoder.encode(content(&batch(&[b, c]), &[], &[]), stamp(1), &mut Vec::new());
    encoder.undo();
    let mut second = first.clone();
    encoder.encode(content(&batch(&[c, a, b]), &[], &[]), stamp(1), &mut second);
    let other = Arc::new(SeriesRegistry::new());
    let (decoded, headers) = decode_all(&mut Decoder::new(other.clone(), Scope::Segment), &second).expect("decodes");
    assert_eq!(headers.iter().map(|h| h.first_local).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(
        rows(&other, &decoded.batch),
        rows(&registry, &{
            let mut both = batch(&[a, b]);
            both.append(&mut batch(&[c, a, b]));
            both
        })
    );
    let late = Decoder::new(other, Scope::Segment).decode(&Record::check(&second[first.len()..]).expect("right"), &mut Decoded::default());
    assert_eq!(late, Err(RecordError::Malformed("the names of its scope are not complete")));
}

#[test]
fn large_groups_are_split_at_the_limit_and_sources_stand_last() {
    let registry = Arc::new(SeriesRegistry::new());
    let names: Vec<_> = (0..3_000).map(|n| series(&registry, "t", n % 1_500)).collect();
    let batch = batch(&names);
    let metadata: Vec<_> = (0..50).map(|n| help(&format!("m{n}"), 200)).collect();
    let sources = [SourceOffset { source: "src:x:1".into(), next: 5 }];
    for (scope, max) in [(Scope::Segment, 4_096), (Scope::Record, 4_096), (Scope::Segment, 1), (Scope::Record, RECORD_BYTES_MAX)] {
        let mut encoder = Encoder::with_record_bytes(registry.clone(), scope, max);
        let mut out = Vec::new();
        let ends = encoder.encode(content(&batch, &metadata, &sources), stamp(100), &mut out).to_vec();
        let other = Arc::new(SeriesRegistry::new());
        let (decoded, headers) = decode_all(&mut Decoder::new(other.clone(), scope), &out).expect("decodes");
        assert_eq!(rows(&other, &decoded.batch), rows(&registry, &batch), "{scope:?} {max}");
        assert_eq!((decoded.metadata, decoded.sources), (metadata.clone(), sources.to_vec()));
        assert_eq!(headers.len(), ends.len());
        let last = headers.len() - 1;
        for (i, header) in headers.iter().enumerate() {
            assert_eq!((header.offset, header.more()), (100 + i as i64, i < last));
            assert!(max == 1 || header.length <= max, "{scope:?}: {} of {max}", header.length);
        }
        assert_eq!(max == RECORD_BYTES_MAX, last == 0);
        if scope == Scope::Record {
            for range in std::iter::once(0).chain(ends.iter().copied()).zip(&ends) {
                decode_all(&mut Decoder::new(other.clone(), scope), &out[range.0..*range.1]).expect("every record decodes alone");
            }
        }
    }
}

#[test]
fn an_empty_group_and_a_heartbeat_are_one_record() {
    let registry = Arc::new(SeriesRegistry::new());
    for flags in [0, FLAG_HEARTBEAT] {
        let mut out = Vec::new();
        Encoder::new(registry.clone(), Scope::Segment).encode(Content::default(), Stamp { flags, ..stamp(1) }, &mut out);
        let (decoded, headers) = decode_all(&mut Decoder::new(registry.clone(), Scope::Segment), &out).expect("decodes");
        assert!(decoded.batch.is_empty() && headers.len() == 1);
        assert_eq!(headers[0].heartbeat(), flags == FLAG_HEARTBEAT);
    }
}

fn sample_record() -> Vec<u8> {
    let registry = Arc::new(SeriesRegistry::new());
    let names: Vec<_> = (0..9).map(|n| series(&registry, "t", n % 3)).collect();
    let mut out = Vec::new();
    let sources = [SourceOffset { source: "src:x:1".into(), next: 5 }];
    Encoder::new(registry, Scope::Record).encode(content(&batch(&names), &[help("m", 4)], &sources), stamp(1), &mut out);
    out
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let record = sample_record();
    for at in 0..record.len() {
        assert!(Record::check(&record[..at]).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut bad = record.clone();
            bad[at] ^= 1 << bit;
            assert!(Record::check(&bad).is_err(), "bit {bit} of byte {at}");
        }
    }
}

/// Garbage with a right checksum: what a fuzzer would otherwise not reach.
fn survives(mut bytes: Vec<u8>) {
    if bytes.len() >= HEADER_BYTES {
        let length = (bytes.len() as u32).to_le_bytes();
        bytes[8..12].copy_from_slice(&length);
        let crc = checksum(&bytes).to_le_bytes();
        bytes[CRC_AT..CRC_AT + 8].copy_from_slice(&crc);
    }
    if let Ok(record) = Record::check(&bytes) {
        let mut out = Decoded::default();
        // Either answer is fine; a panic is not.
        let answer = Decoder::new(Arc::new(SeriesRegistry::new()), Scope::Record).decode(&record, &mut out);
        assert!(answer.is_err() || out.batch.times.len() == out.batch.series.len());
    }
}

proptest! {
    #[test]
    fn damaged_records_with_a_right_checksum_never_panic(edits in prop::collection::vec((0usize..4_096, any::<u8>()), 1..12)) {
        let mut bytes = sample_record();
        let length = bytes.len();
        for (at, byte) in edits {
            // The lengths of the sections stay, so that the decoder is reached.
            let at = if at % length < HEADER_BYTES { 88 + at % (length - 88) } else { at % length };
            bytes[at] = byte;
        }
        survives(bytes);
    }

    #[test]
    fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..600), as_record in any::<bool>()) {
        if as_record && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(&sample_record()[..8]);
        }
        survives(bytes);
    }

    #[test]
    fn any_batch_round_trips(samples in prop::collection::vec((0usize..20, 0i64..4_000_000_000_000, any::<u64>()), 0..300), max in 600usize..3_000) {
        let registry = Arc::new(SeriesRegistry::new());
        let mut batch = SampleBatch::default();
        for (n, time, bits) in samples {
            batch.push(series(&registry, ["a", "b", "c"][n % 3], n), time, f64::from_bits(bits));
        }
        for scope in [Scope::Segment, Scope::Record] {
            let mut out = Vec::new();
            Encoder::with_record_bytes(registry.clone(), scope, max).encode(content(&batch, &[], &[]), stamp(0), &mut out);
            let other = Arc::new(SeriesRegistry::new());
            let (decoded, _) = decode_all(&mut Decoder::new(other.clone(), scope), &out).expect("decodes");
            prop_assert_eq!(rows(&other, &decoded.batch), rows(&registry, &batch));
        }
    }
}

#[test]
fn times_outside_of_the_calendar_are_refused() {
    let registry = Arc::new(SeriesRegistry::new());
    let one = series(&registry, "t", 1);
    for time in [i64::MIN, i64::MAX, fletch_schemas::TIME_MIN_MS - 1] {
        let mut batch = SampleBatch::default();
        batch.push(one, time, 1.0);
        let mut out = Vec::new();
        Encoder::new(registry.clone(), Scope::Record).encode(content(&batch, &[], &[]), stamp(0), &mut out);
        assert!(decode_all(&mut Decoder::new(registry.clone(), Scope::Record), &out).is_err(), "{time}");
    }
}

#[test]
fn a_new_scope_forgets_also_when_the_tag_wraps() {
    let registry = Arc::new(SeriesRegistry::new());
    let one = series(&registry, "t", 1);
    let mut encoder = Encoder::new(registry.clone(), Scope::Segment);
    for _ in 0..3 {
        let mut out = Vec::new();
        encoder.encode(content(&batch(&[one]), &[], &[]), stamp(0), &mut out);
        decode_all(&mut Decoder::new(registry.clone(), Scope::Segment), &out).expect("named again");
        encoder.force_tag(u32::MAX);
        encoder.new_scope();
    }
}
