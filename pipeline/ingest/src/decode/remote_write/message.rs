//! The messages inside a `WriteRequest` (`prometheus/prompb`, remote.proto and types.proto), field by field.
//!
//! ```text
//!  TimeSeries { 1 labels { 1 name, 2 value }, 2 samples { 1 value, 2 timestamp }, 3 exemplars, 4 histograms }
//!  MetricMetadata { 1 type, 2 metric_family_name, 4 help, 5 unit }
//! ```

use super::super::proto::{Malformed, Reader, varint};
use super::super::validate::Pairs;
use super::{MetricKind, TAG_1, TAG_SAMPLES};

/// Length of the label fields that stand before anything else in a series. `None` when they are broken.
pub(super) fn labels_len(series: &[u8]) -> Option<usize> {
    let mut at = 0;
    while series.get(at) == Some(&TAG_1) {
        let (len, len_bytes) = varint(&series[at + 1..]).ok()?;
        at = at.checked_add(1 + len_bytes)?.checked_add(usize::try_from(len).ok()?)?;
        if at > series.len() {
            return None;
        }
    }
    Some(at)
}

/// Splits the first of a run of sample fields off. `None` when there is something else, or a length that no sample has.
#[inline]
pub(super) fn split_sample(fields: &[u8]) -> Option<(&[u8], &[u8])> {
    let [TAG_SAMPLES, len @ 0..0x80, rest @ ..] = fields else { return None };
    rest.split_at_checked(usize::from(*len))
}

/// Whether these fields are samples, all of them readable, and nothing else.
pub(super) fn only_samples(mut fields: &[u8]) -> bool {
    while let Some((first, rest)) = split_sample(fields) {
        if sample(first).is_err() {
            return false;
        }
        fields = rest;
    }
    fields.is_empty()
}

/// The pairs of label fields; the caller has seen that there are no others.
pub(super) fn scan_labels<'b>(labels: &'b [u8], pairs: &mut Pairs<'b>) -> Result<(), Malformed> {
    let mut reader = Reader::new(labels);
    while let Some((_, value)) = reader.field()? {
        label(value.bytes()?, pairs)?;
    }
    Ok(())
}

/// How much of what a series has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) samples: usize,
    pub(super) exemplars: usize,
    pub(super) histograms: usize,
}

/// Walks a series with its fields in any order, checks every label and sample, and counts. On an error `shape` and `pairs` hold what
/// was met before it.
pub(super) fn scan_series<'b>(series: &'b [u8], pairs: &mut Pairs<'b>, shape: &mut Shape) -> Result<(), Malformed> {
    let mut reader = Reader::new(series);
    while let Some((number, value)) = reader.field()? {
        match number {
            1 => label(value.bytes()?, pairs)?,
            2 => {
                shape.samples += 1;
                sample(value.bytes()?)?;
            }
            3 => shape.exemplars += 1,
            4 => shape.histograms += 1,
            _ => {}
        }
    }
    Ok(())
}

fn label<'b>(bytes: &'b [u8], pairs: &mut Pairs<'b>) -> Result<(), Malformed> {
    let (mut name, mut text): (&[u8], &[u8]) = (b"", b"");
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.field()? {
        match number {
            1 => name = value.bytes()?,
            2 => text = value.bytes()?,
            _ => {}
        }
    }
    pairs.push(name, text);
    Ok(())
}

/// Time in milliseconds and value of a sample. A field that is left out is 0.
#[inline]
pub(super) fn sample(bytes: &[u8]) -> Result<(i64, f64), Malformed> {
    // As every sender writes it: value first, both present.
    if let [0x09, v0, v1, v2, v3, v4, v5, v6, v7, 0x10, time @ ..] = bytes {
        let (time, len) = varint(time)?;
        if len + 10 == bytes.len() {
            return Ok((time.cast_signed(), f64::from_le_bytes([*v0, *v1, *v2, *v3, *v4, *v5, *v6, *v7])));
        }
    }
    any_sample(bytes)
}

fn any_sample(bytes: &[u8]) -> Result<(i64, f64), Malformed> {
    let (mut time, mut number) = (0, 0.0);
    let mut reader = Reader::new(bytes);
    while let Some((field, value)) = reader.field()? {
        match field {
            1 => number = value.double()?,
            2 => time = value.varint()?.cast_signed(),
            _ => {}
        }
    }
    Ok((time, number))
}

/// What a metadata entry says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said<'b> {
    pub(super) kind: MetricKind,
    pub(super) name: &'b str,
    pub(super) unit: &'b str,
    pub(super) help: &'b str,
}

pub(super) fn metadata(bytes: &[u8]) -> Result<Said<'_>, Malformed> {
    let mut said = Said { kind: MetricKind::Unknown, name: "", unit: "", help: "" };
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.field()? {
        match number {
            1 => said.kind = kind(value.varint()?),
            2 => said.name = text(value.bytes()?)?,
            4 => said.help = text(value.bytes()?)?,
            5 => said.unit = text(value.bytes()?)?,
            _ => {}
        }
    }
    Ok(said)
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("a text is not UTF-8"))
}

fn kind(number: u64) -> MetricKind {
    match number {
        1 => MetricKind::Counter,
        2 => MetricKind::Gauge,
        3 => MetricKind::Histogram,
        4 => MetricKind::GaugeHistogram,
        5 => MetricKind::Summary,
        6 => MetricKind::Info,
        7 => MetricKind::StateSet,
        // 0, and numbers of a later version.
        _ => MetricKind::Unknown,
    }
}
