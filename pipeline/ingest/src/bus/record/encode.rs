//! Samples to records, column by column: one table lookup per sample, no hashing, reused buffers.
//!
//! ```text
//!  slots[SeriesRef] = tag << 32 | local number     valid when tag is that of the scope: a new scope costs one increment
//! ```
//!
//! # When it fails
//! Encoding cannot fail. What was encoded and then not written is taken back with [`Encoder::undo`].

use super::{
    CRC_AT, FLAG_MORE, HEADER_BYTES, MAGIC, RECORD_BYTES_MAX, VERSION, align, checksum,
    ipc::{self, HEAD_BYTES_MAX, SAMPLE_BYTES},
};
use crate::{Series, SeriesRef, SeriesRegistry, SourceOffset};
use flatbuffers::FlatBufferBuilder;
use fletch_schemas::{MetricKind, MetricMetadata, TenantId};
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;

/// How far a name given in a record reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// To the end of the segment: the embedded log.
    Segment,
    /// To the end of the record: Kafka, where each record must decode alone.
    Record,
}

/// What the header says beside the lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// `FLAG_HEARTBEAT`, `FLAG_HEAD` or 0; the encoder sets `FLAG_MORE`.
    pub flags: u16,
    /// Milliseconds since the Unix epoch.
    pub append_time_ms: i64,
    /// Identity of the log; nil on Kafka.
    pub log: Uuid,
    /// Generation of the segment; 0 on Kafka.
    pub generation: u64,
    /// Offset of the first record; the following count on. 0 on Kafka.
    pub offset: i64,
    /// Everything below is on the disk already; 0 on Kafka.
    pub synced: i64,
}

impl Stamp {
    /// The stamp of a record for Kafka: the broker's time, offset and topic count.
    pub fn kafka(flags: u16) -> Self {
        Self { flags, append_time_ms: 0, log: Uuid::nil(), generation: 0, offset: 0, synced: 0 }
    }
}

/// What one group writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Content<'a> {
    /// Series of each sample.
    pub series: &'a [SeriesRef],
    /// Times, as long as `series`.
    pub times: &'a [i64],
    /// Values, as long as `series`.
    pub values: &'a [f64],
    /// Metadata of metric families.
    pub metadata: &'a [(TenantId, MetricMetadata)],
    /// Source offsets; they go into the last record.
    pub sources: &'a [SourceOffset],
}

/// Turns groups into records.
pub struct Encoder {
    registry: Arc<SeriesRegistry>,
    scope: Scope,
    record_bytes_max: usize,
    slots: Vec<u64>,
    tag: u32,
    /// Local numbers given in the current scope.
    named: u32,
    /// `named` before the last `encode`, and the series it named: what `undo` takes back.
    named_before: u32,
    fresh: Vec<SeriesRef>,
    locals: Vec<u32>,
    ends: Vec<usize>,
    tenants: Vec<TenantId>,
    dictionary: Vec<u8>,
    flat: FlatBufferBuilder<'static>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("scope", &self.scope).field("named", &self.named).finish_non_exhaustive()
    }
}

/// The part of a group that one record takes.
struct Part {
    metadata: Range<usize>,
    samples: Range<usize>,
    first_local: u32,
    fresh: Range<usize>,
}

impl Encoder {
    /// An encoder that splits at [`RECORD_BYTES_MAX`].
    pub fn new(registry: Arc<SeriesRegistry>, scope: Scope) -> Self {
        Self::with_record_bytes(registry, scope, RECORD_BYTES_MAX)
    }

    /// An encoder that splits at `record_bytes_max` (at least one sample per record whatever that is).
    pub fn with_record_bytes(registry: Arc<SeriesRegistry>, scope: Scope, record_bytes_max: usize) -> Self {
        Self {
            registry,
            scope,
            record_bytes_max,
            slots: Vec::new(),
            tag: 1,
            named: 0,
            named_before: 0,
            fresh: Vec::new(),
            locals: Vec::new(),
            ends: Vec::new(),
            tenants: Vec::new(),
            dictionary: Vec::new(),
            flat: FlatBufferBuilder::new(),
        }
    }

    /// Forgets every name: the next record begins a scope.
    pub fn new_scope(&mut self) {
        self.named = 0;
        self.named_before = 0;
        self.fresh.clear();
        self.tag = self.tag.wrapping_add(1);
        if self.tag == 0 {
            // After 2^32 scopes the old tags would come back to life.
            self.slots.fill(0);
            self.tag = 1;
        }
    }

    #[cfg(test)]
    pub(super) fn force_tag(&mut self, tag: u32) {
        self.tag = tag;
    }

    /// Takes back the names that the last [`encode`](Self::encode) gave: its records were not written. For [`Scope::Segment`].
    pub fn undo(&mut self) {
        for series in self.fresh.drain(..) {
            self.slots[series.index()] = 0;
        }
        self.named = self.named_before;
    }

    /// Appends the records of one group to `out` and returns where each of them ends in `out`. An empty group is one record.
    ///
    /// # Panics
    /// When a series is not one of the registry's, or the columns differ in length: errors of the caller, not of the input.
    pub fn encode(&mut self, content: Content<'_>, stamp: Stamp, out: &mut Vec<u8>) -> &[usize] {
        assert!(content.series.len() == content.times.len() && content.times.len() == content.values.len(), "columns of one length");
        let registry = self.registry.clone();
        self.ends.clear();
        self.fresh.clear();
        self.named_before = self.named;
        registry.with(|all| {
            self.slots.resize(self.slots.len().max(all.len()), 0);
            let (mut metadata_at, mut sample_at) = (0, 0);
            loop {
                let part = self.next_part(all, content, metadata_at, sample_at);
                (metadata_at, sample_at) = (part.metadata.end, part.samples.end);
                let last = metadata_at == content.metadata.len() && sample_at == content.series.len();
                let offset = stamp.offset + self.ends.len() as i64;
                let flags = stamp.flags | if last { 0 } else { FLAG_MORE };
                self.write(all, content, &part, Stamp { flags, offset, ..stamp }, last, out);
                self.ends.push(out.len());
                if last {
                    break;
                }
            }
        });
        &self.ends
    }

    /// Chooses what the next record holds and gives local numbers to its series.
    fn next_part(&mut self, all: &[Arc<Series>], content: Content<'_>, metadata_at: usize, sample_at: usize) -> Part {
        if self.scope == Scope::Record {
            self.new_scope();
        }
        let sources: usize = content.sources.iter().map(|s| s.source.len() + 10).sum();
        let room = self.record_bytes_max.saturating_sub(HEADER_BYTES + HEAD_BYTES_MAX + sources);
        let mut used = 0;
        let mut metadata_end = metadata_at;
        while let Some((tenant, metadata)) = content.metadata.get(metadata_end) {
            let bytes = metadata_bytes(tenant, metadata);
            if metadata_end > metadata_at && used + bytes > room {
                break;
            }
            used += bytes;
            metadata_end += 1;
        }
        let whole = metadata_end == content.metadata.len();
        let first_local = self.named;
        let fresh_start = self.fresh.len();
        let samples = if whole { self.take_samples(all, content.series, sample_at, room, used) } else { sample_at..sample_at };
        Part { metadata: metadata_at..metadata_end, samples, first_local, fresh: fresh_start..self.fresh.len() }
    }

    fn take_samples(&mut self, all: &[Arc<Series>], series: &[SeriesRef], from: usize, room: usize, used: usize) -> Range<usize> {
        self.locals.clear();
        let mut names = used;
        // A record takes at least one sample, so that encoding always ends; after metadata it need not.
        let must = usize::from(used == 0);
        let fits = |names: usize| room.saturating_sub(names) / SAMPLE_BYTES;
        let mut rows_max = fits(names).max(must);
        let tag = u64::from(self.tag) << 32;
        for &one in &series[from..] {
            if self.locals.len() >= rows_max {
                break;
            }
            let slot = self.slots[one.index()];
            if slot & !0xffff_ffff == tag {
                self.locals.push(slot as u32);
                continue;
            }
            names += series_bytes(&all[one.index()]);
            let rows = fits(names);
            if rows <= self.locals.len() && self.locals.len() >= must {
                break;
            }
            rows_max = rows.max(must);
            self.slots[one.index()] = tag | u64::from(self.named);
            self.fresh.push(one);
            self.locals.push(self.named);
            self.named += 1;
        }
        from..from + self.locals.len()
    }

    fn write(&mut self, all: &[Arc<Series>], content: Content<'_>, part: &Part, stamp: Stamp, last: bool, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        self.write_dictionary(all, content, part);
        out.extend_from_slice(&self.dictionary);
        let metadata_at = out.len();
        self.write_metadata(&content.metadata[part.metadata.clone()], out);
        let sources_at = out.len();
        write_sources(if last { content.sources } else { &[] }, out);
        let sources_end = out.len();
        out.resize(start + align(out.len() - start), 0);
        let arrow_at = out.len();
        let samples = part.samples.clone();
        let locals = if samples.is_empty() { &[][..] } else { &self.locals[..] };
        ipc::write(&mut self.flat, locals, &content.times[samples.clone()], &content.values[samples], out);
        let arrow = out.len() - arrow_at;
        out.resize(start + align(out.len() - start), 0);
        let sections = [self.dictionary.len(), sources_at - metadata_at, sources_end - sources_at, arrow];
        write_header(&mut out[start..], part.first_local, stamp, sections);
    }

    /// Fills `self.dictionary`; `self.tenants` are then the tenants of this record.
    fn write_dictionary(&mut self, all: &[Arc<Series>], content: Content<'_>, part: &Part) {
        let fresh = &self.fresh[part.fresh.clone()];
        self.tenants.clear();
        let named = fresh.iter().map(|s| &all[s.index()].tenant);
        for tenant in named.chain(content.metadata[part.metadata.clone()].iter().map(|(t, _)| t)) {
            if !self.tenants.contains(tenant) {
                self.tenants.push(tenant.clone());
            }
        }
        let out = &mut self.dictionary;
        out.clear();
        out.extend_from_slice(&(self.tenants.len() as u16).to_le_bytes());
        for tenant in &self.tenants {
            out.push(tenant.as_str().len() as u8);
            out.extend_from_slice(tenant.as_str().as_bytes());
        }
        out.extend_from_slice(&(fresh.len() as u32).to_le_bytes());
        for series in fresh {
            let series = &all[series.index()];
            out.extend_from_slice(&index_of(&self.tenants, &series.tenant).to_le_bytes());
            put_bytes(out, series.labels.as_bytes());
        }
    }

    fn write_metadata(&self, metadata: &[(TenantId, MetricMetadata)], out: &mut Vec<u8>) {
        if metadata.is_empty() {
            return;
        }
        out.extend_from_slice(&(metadata.len() as u32).to_le_bytes());
        for (tenant, one) in metadata {
            out.extend_from_slice(&index_of(&self.tenants, tenant).to_le_bytes());
            out.push(kind_code(one.kind));
            for text in [&one.metric, &one.unit, &one.help] {
                put_bytes(out, text.as_bytes());
            }
        }
    }
}

fn write_sources(sources: &[SourceOffset], out: &mut Vec<u8>) {
    if sources.is_empty() {
        return;
    }
    out.extend_from_slice(&(sources.len() as u32).to_le_bytes());
    for one in sources {
        out.extend_from_slice(&(one.source.len() as u16).to_le_bytes());
        out.extend_from_slice(&one.source.as_bytes()[..usize::from(one.source.len() as u16)]);
        out.extend_from_slice(&one.next.to_le_bytes());
    }
}

fn write_header(record: &mut [u8], first_local: u32, stamp: Stamp, sections: [usize; 4]) {
    let length = record.len() as u32;
    let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC);
    put(4, &VERSION.to_le_bytes());
    put(6, &stamp.flags.to_le_bytes());
    put(8, &length.to_le_bytes());
    put(12, &first_local.to_le_bytes());
    put(24, &stamp.append_time_ms.to_le_bytes());
    put(32, stamp.log.as_bytes());
    put(48, &stamp.generation.to_le_bytes());
    put(56, &stamp.offset.to_le_bytes());
    put(64, &stamp.synced.to_le_bytes());
    for (i, section) in sections.into_iter().enumerate() {
        put(72 + 4 * i, &(section as u32).to_le_bytes());
    }
    let crc = checksum(record);
    record[CRC_AT..CRC_AT + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Bytes that naming a series costs at most.
fn series_bytes(series: &Series) -> usize {
    6 + series.labels.as_bytes().len() + 1 + series.tenant.as_str().len()
}

fn metadata_bytes(tenant: &TenantId, one: &MetricMetadata) -> usize {
    4 + 15 + one.metric.len() + one.unit.len() + one.help.len() + 1 + tenant.as_str().len()
}

fn index_of(tenants: &[TenantId], tenant: &TenantId) -> u16 {
    // 65,535 tenants with distinct names do not fit in one record of any size that is written.
    tenants.iter().position(|t| t == tenant).map_or(u16::MAX, |i| i as u16)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

pub(super) const KINDS: [MetricKind; 8] = [
    MetricKind::Unknown,
    MetricKind::Counter,
    MetricKind::Gauge,
    MetricKind::Histogram,
    MetricKind::GaugeHistogram,
    MetricKind::Summary,
    MetricKind::Info,
    MetricKind::StateSet,
];

fn kind_code(kind: MetricKind) -> u8 {
    KINDS.iter().position(|k| *k == kind).map_or(0, |i| i as u8)
}
