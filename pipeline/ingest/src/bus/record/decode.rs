//! Records back to samples. Checks everything; the series of a scope are resolved once.

use super::{FLAG_HEARTBEAT, Record, RecordError, Scope, encode::KINDS, ipc};
use crate::{SampleBatch, SeriesRef, SeriesRegistry, SourceOffset};
use fletch_schemas::{Labels, MetricMetadata, TIME_MIN_MS, TenantId};
use std::sync::Arc;

/// No accepted time reaches the year 10000, so that a date always fits.
const TIME_MAX_MS: i64 = 253_402_300_800_000;

const BAD: fn(&'static str) -> RecordError = RecordError::Malformed;

/// What records held; several may be decoded into one.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Samples, in the order of the log.
    pub batch: SampleBatch,
    /// Metadata, in the order of the log.
    pub metadata: Vec<(TenantId, MetricMetadata)>,
    /// Source offsets, in the order of the log.
    pub sources: Vec<SourceOffset>,
}

/// Decodes the records of one scope after the other.
#[derive(Debug)]
pub struct Decoder {
    registry: Arc<SeriesRegistry>,
    scope: Scope,
    names: Vec<SeriesRef>,
    tenants: Vec<TenantId>,
    locals: Vec<u32>,
}

impl Decoder {
    /// A decoder at the start of a scope.
    pub fn new(registry: Arc<SeriesRegistry>, scope: Scope) -> Self {
        Self { registry, scope, names: Vec::new(), tenants: Vec::new(), locals: Vec::new() }
    }

    /// Forgets every name: the next record begins a scope.
    pub fn new_scope(&mut self) {
        self.names.clear();
    }

    /// Takes the names that a record gives and nothing else: it lies below the offset to start at.
    ///
    /// # Errors
    /// [`RecordError::Malformed`].
    pub fn skip(&mut self, record: &Record<'_>) -> Result<(), RecordError> {
        if self.scope == Scope::Record {
            self.new_scope();
        }
        self.names(record)
    }

    /// Appends what `record` holds to `out`.
    ///
    /// # Errors
    /// [`RecordError::Malformed`]; `out` and the names of the scope are then of no use.
    pub fn decode(&mut self, record: &Record<'_>, out: &mut Decoded) -> Result<(), RecordError> {
        self.skip(record)?;
        if record.header.flags & FLAG_HEARTBEAT != 0 {
            return Ok(());
        }
        self.metadata(record, out)?;
        read_sources(record, out)?;
        self.samples(record, out)
    }

    fn names(&mut self, record: &Record<'_>) -> Result<(), RecordError> {
        if record.header.first_local as usize != self.names.len() {
            return Err(BAD("the names of its scope are not complete"));
        }
        let mut from = Cursor(record.dictionary);
        self.tenants.clear();
        for _ in 0..from.u16()? {
            let length = from.u8()?;
            let name = from.text(usize::from(length))?;
            self.tenants.push(TenantId::new(name).map_err(|_| BAD("it names an invalid tenant"))?);
        }
        for _ in 0..from.u32()? {
            let tenant = self.tenants.get(usize::from(from.u16()?)).ok_or(BAD("a series has a tenant that is not listed"))?;
            let labels = from.sized()?;
            let labels = Labels::from_canonical(labels).map_err(|_| BAD("labels are not in canonical form"))?;
            self.names.push(self.registry.resolve(tenant, &labels));
        }
        from.end()
    }

    fn metadata(&self, record: &Record<'_>, out: &mut Decoded) -> Result<(), RecordError> {
        if record.metadata.is_empty() {
            return Ok(());
        }
        let mut from = Cursor(record.metadata);
        for _ in 0..from.u32()? {
            let tenant = self.tenants.get(usize::from(from.u16()?)).ok_or(BAD("metadata has a tenant that is not listed"))?;
            let kind = *KINDS.get(usize::from(from.u8()?)).ok_or(BAD("metadata has an unknown kind"))?;
            let [metric, unit, help] = [from.string()?, from.string()?, from.string()?];
            out.metadata.push((tenant.clone(), MetricMetadata { metric, kind, unit, help }));
        }
        from.end()
    }

    fn samples(&mut self, record: &Record<'_>, out: &mut Decoded) -> Result<(), RecordError> {
        self.locals.clear();
        let rows = ipc::read(record.arrow, &mut self.locals, &mut out.batch)?;
        let times = &out.batch.times[out.batch.times.len() - rows..];
        if !times.iter().all(|t| (TIME_MIN_MS..TIME_MAX_MS).contains(t)) {
            return Err(BAD("a time is outside of the years 1700 to 9999"));
        }
        if self.locals.iter().any(|&local| local as usize >= self.names.len()) {
            return Err(BAD("a sample is of a series that its scope does not name"));
        }
        out.batch.series.extend(self.locals.iter().map(|&local| self.names[local as usize]));
        Ok(())
    }
}

fn read_sources(record: &Record<'_>, out: &mut Decoded) -> Result<(), RecordError> {
    if record.sources.is_empty() {
        return Ok(());
    }
    let mut from = Cursor(record.sources);
    for _ in 0..from.u32()? {
        let length = from.u16()?;
        let source = from.text(usize::from(length))?.to_owned();
        let next = from.u64()?.cast_signed();
        out.sources.push(SourceOffset { source, next });
    }
    from.end()
}

/// Reads little-endian fields off the front of a section.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], RecordError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(BAD("a section is cut off"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        Ok(super::fixed(self.take(N)?, 0))
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, RecordError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self, length: usize) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.take(length)?).map_err(|_| BAD("a text is not UTF-8"))
    }

    fn sized(&mut self) -> Result<&'a [u8], RecordError> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    fn string(&mut self) -> Result<String, RecordError> {
        let length = self.u32()? as usize;
        Ok(self.text(length)?.to_owned())
    }

    fn end(&self) -> Result<(), RecordError> {
        if self.0.is_empty() { Ok(()) } else { Err(BAD("a section is longer than what it holds")) }
    }
}
