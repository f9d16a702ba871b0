//! Remote write 1: a snappy block around a protobuf `WriteRequest`, walked by hand.
//!
//! ```text
//!  body ─▶ size check ─▶ snappy ─▶ for each TimeSeries:
//!     bytes equal to the successor of the series before?  ──yes──▶ known series ┐   one comparison, labels are not even looked at
//!              │ no                                                             │
//!     label bytes known (xxh3, map, comparison)?          ──yes──▶ known series ┼─▶ samples into columns
//!              │ no                                                             │
//!     parse, check, sort, SeriesRegistry::resolve, remember the bytes ──────────┘
//! ```
//!
//! Senders repeat their series in one order, so nearly every series takes the first way. What is unusual (labels behind samples,
//! histograms, exemplars, unknown fields, anything broken) takes [`Walk::any_series`], which needs no cache and explains refusals.
//!
//! # Invariants
//! - **W1** The ways give the same result; a test compares them on random requests.
//! - **W2** The declared size is checked against the limit before a byte is allocated for it.
//! - **W3** Per sample there is no allocation and no work on labels.
//!
//! # What is done with what
//! Labels in any order are sorted, empty values dropped. Stale markers and other NaNs keep their bits. A sample with a time out of range, and a
//! series with bad labels or without `__name__`, is refused and the rest taken. Exemplars are dropped and counted. Native histograms are
//! refused by name: they are not stored yet. A request with nothing but metadata, or with nothing at all, is fine.
//!
//! # Not here
//! Remote write 2, other content encodings.

use super::error::DecodeError;
use super::metadata::{Families, set_text};
use super::outcome::{Decoded, Place, RejectReason};
use super::proto::Reader;
use super::sink::{TimeRange, describe_series, reject_labels};
use super::validate::{LabelPolicy, LabelProblem, Pairs};
use crate::series::Admission;
use crate::{SeriesRef, SeriesRegistry};
use fletch_common::Limits;
use fletch_schemas::{MetricKind, TenantId};
use parking_lot::{Mutex, RwLockReadGuard};
use std::sync::Arc;

mod cache;
mod message;

pub use cache::{RAW_SERIES_CACHE_BYTES_MAX, RawSeriesCache};

use cache::{Entries, Found, Key};
use message::{Shape, only_samples, sample, scan_labels, scan_series, split_sample};

/// Tag of `TimeSeries.labels` and, one level up, of `WriteRequest.timeseries`: field 1, bytes.
const TAG_1: u8 = 0x0A;
/// Tag of `TimeSeries.samples`: field 2, bytes.
const TAG_SAMPLES: u8 = 0x12;

/// After so many series the lock on the cache is offered to a waiting writer, so that one long request does not hold up the others.
const SERIES_PER_LOCK: u64 = 1024;

/// A sample on the wire with its tags: value 9, time 7, around them 2. A smaller request than the last one must not get its room.
const SAMPLE_BYTES_USUAL: usize = 18;

/// Buffers for decompressed bodies that are kept for the next request.
const BUFFERS_KEPT_MAX: usize = 16;

/// Larger buffers are given back to the system: a rare huge request must not stay in memory.
const BUFFER_KEPT_BYTES_MAX: usize = 4 << 20;

/// Decodes remote-write requests of all connections and tenants.
#[derive(Debug)]
pub struct RemoteWriteDecoder {
    registry: Arc<SeriesRegistry>,
    limits: Limits,
    label_policy: LabelPolicy,
    cache: RawSeriesCache,
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// What is remembered between the requests of one sender: where in its order of series it is. Keep one per connection, or one per
/// worker, or start with a new one each time: it changes speed only.
#[derive(Debug, Default)]
pub struct RemoteWriteCache {
    key: Key,
    last: Option<u32>,
    samples_before: usize,
    /// Series found by the guess alone.
    pub guessed: u64,
    /// Series found by hash and map.
    pub mapped: u64,
    /// Series whose labels were parsed.
    pub parsed: u64,
}

impl RemoteWriteDecoder {
    /// A decoder with an empty cache of [`RAW_SERIES_CACHE_BYTES_MAX`]. Labels such as `user_id` are counted, not refused: drop-in
    /// exporters send them.
    pub fn new(registry: Arc<SeriesRegistry>, limits: Limits) -> Self {
        let cache = RawSeriesCache::new(RAW_SERIES_CACHE_BYTES_MAX);
        Self { registry, limits, label_policy: LabelPolicy::Warn, cache, buffers: Mutex::default() }
    }

    /// With another policy for labels such as `user_id`.
    pub fn with_label_policy(mut self, policy: LabelPolicy) -> Self {
        self.label_policy = policy;
        self
    }

    /// With another bound of the cache of label bytes.
    pub fn with_cache_bytes_max(mut self, bytes_max: usize) -> Self {
        self.cache = RawSeriesCache::new(bytes_max);
        self
    }

    /// The cache, for self-metrics.
    pub fn cache(&self) -> &RawSeriesCache {
        &self.cache
    }

    /// Appends what the compressed `body` holds to `out`.
    ///
    /// # Errors
    /// When the whole request is refused; `out` is then as before. A part that is refused is in [`Decoded::rejects`].
    pub fn decode(
        &self,
        body: &[u8],
        tenant: &TenantId,
        now_ms: i64,
        connection: &mut RemoteWriteCache,
        out: &mut Decoded,
    ) -> Result<(), DecodeError> {
        let len = self.decompressed_len(body)?;
        let mut buffer = self.take_buffer(len);
        let unpacked = snap::raw::Decoder::new().decompress(body, &mut buffer[..len]).map_err(|e| snappy(body, &e));
        let result = unpacked.and_then(|len| self.decode_uncompressed(&buffer[..len], tenant, now_ms, connection, out));
        self.keep_buffer(buffer);
        result
    }

    /// Like [`decode`](Self::decode), for a body that is the bare protobuf message.
    ///
    /// # Errors
    /// As there.
    pub fn decode_uncompressed(
        &self,
        message: &[u8],
        tenant: &TenantId,
        now_ms: i64,
        connection: &mut RemoteWriteCache,
        out: &mut Decoded,
    ) -> Result<(), DecodeError> {
        check_decompressed(message.len(), &self.limits)?;
        out.whole_or_nothing(|out| Walk::new(self, tenant, now_ms, connection, out).request(message))
    }

    fn decompressed_len(&self, body: &[u8]) -> Result<usize, DecodeError> {
        let max = self.limits.request_bytes_max;
        if body.len() > max {
            return Err(DecodeError::TooLarge { what: "body", bytes: body.len() as u64, max, limit: "request_bytes_max" });
        }
        if body.is_empty() {
            return Err(DecodeError::Snappy("it is empty".to_owned()));
        }
        let len = snap::raw::decompress_len(body).map_err(|e| snappy(body, &e))?;
        check_decompressed(len, &self.limits)?;
        Ok(len)
    }

    fn take_buffer(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.buffers.lock().pop().unwrap_or_default();
        if buffer.len() < len {
            buffer.clear();
            buffer.resize(len, 0);
        }
        buffer
    }

    fn keep_buffer(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.lock();
        if buffers.len() < BUFFERS_KEPT_MAX && buffer.capacity() <= BUFFER_KEPT_BYTES_MAX {
            buffers.push(buffer);
        }
    }
}

fn check_decompressed(len: usize, limits: &Limits) -> Result<(), DecodeError> {
    let max = limits.request_decompressed_bytes_max;
    if len <= max {
        return Ok(());
    }
    Err(DecodeError::TooLarge { what: "decompressed body", bytes: len as u64, max, limit: "request_decompressed_bytes_max" })
}

fn snappy(body: &[u8], error: &snap::Error) -> DecodeError {
    const FRAMED: &[u8] = b"\xff\x06\x00\x00sNaPpY";
    if body.starts_with(FRAMED) {
        return DecodeError::Snappy("it is in snappy's framed format; remote write uses the block format".to_owned());
    }
    DecodeError::Snappy(error.to_string())
}

/// How the quick way through the samples of a series ended.
enum Quick {
    Done { too_old: u64, in_future: u64, last_bad_ms: i64 },
    Unusual,
    TooMany,
}

/// One request on its way.
struct Walk<'a, 'b> {
    decoder: &'a RemoteWriteDecoder,
    tenant: &'a TenantId,
    times: TimeRange,
    connection: &'a mut RemoteWriteCache,
    out: &'a mut Decoded,
    entries: RwLockReadGuard<'a, Entries>,
    pairs: Pairs<'b>,
    canonical: Vec<u8>,
    families: Families,
    series_index: u64,
    metadata_index: u64,
    /// Samples met so far, taken or not.
    seen: usize,
}

impl<'a, 'b> Walk<'a, 'b> {
    fn new(
        decoder: &'a RemoteWriteDecoder,
        tenant: &'a TenantId,
        now_ms: i64,
        connection: &'a mut RemoteWriteCache,
        out: &'a mut Decoded,
    ) -> Self {
        let entries = decoder.cache.read();
        let mut walk = Self {
            decoder,
            tenant,
            times: TimeRange::at(now_ms),
            connection,
            entries,
            pairs: Pairs::new(&decoder.limits),
            canonical: Vec::new(),
            families: Families::new(out),
            out,
            series_index: 0,
            metadata_index: 0,
            seen: 0,
        };
        walk.check_generation();
        walk
    }

    fn request(mut self, body: &'b [u8]) -> Result<(), DecodeError> {
        self.reserve(body.len());
        let before = self.out.batch.len();
        let mut reader = Reader::new(body);
        loop {
            let offset = reader.position();
            let broken = |m: super::proto::Malformed| DecodeError::Protobuf { offset, problem: m.0 };
            if reader.skip_tag(TAG_1) {
                self.series(reader.bytes().map_err(broken)?)?;
                continue;
            }
            match reader.field().map_err(broken)? {
                None => break,
                Some((1, value)) => self.series(value.bytes().map_err(broken)?)?,
                Some((3, value)) => self.metadata(value.bytes().map_err(broken)?),
                // Anything else is a field of another version, which protobuf asks us to skip.
                Some(_) => {}
            }
        }
        self.connection.samples_before = self.out.batch.len() - before;
        Ok(())
    }

    /// Requests of one sender are alike: room for as many samples as the last one had saves growing the columns.
    fn reserve(&mut self, body_len: usize) {
        let expected = self.connection.samples_before.min(body_len / SAMPLE_BYTES_USUAL);
        self.out.batch.series.reserve(expected);
        self.out.batch.times.reserve(expected);
        self.out.batch.values.reserve(expected);
    }

    fn series(&mut self, series: &'b [u8]) -> Result<(), DecodeError> {
        let index = self.series_index;
        self.series_index += 1;
        if self.series_index.is_multiple_of(SERIES_PER_LOCK) {
            RwLockReadGuard::bump(&mut self.entries);
            self.check_generation();
        }
        let place = Place::Series(index);
        let Some(found) = self.locate(series) else { return self.any_series(series, place) };
        let (before, seen_before) = (self.out.batch.len(), self.seen);
        match self.samples(&series[found.labels_len..], found.series) {
            Quick::Done { too_old, in_future, last_bad_ms } => {
                self.out.stats.accepted += (self.out.batch.len() - before) as u64;
                if too_old + in_future > 0 {
                    self.reject_times(place, found.series, [too_old, in_future], last_bad_ms);
                }
                Ok(())
            }
            Quick::Unusual => {
                self.out.truncate_samples(before);
                self.seen = seen_before;
                self.any_series(series, place)
            }
            Quick::TooMany => Err(self.too_many()),
        }
    }

    /// The series whose labels stand, whole and alone, before the first sample. `None` sends it the long way.
    fn locate(&mut self, series: &'b [u8]) -> Option<Found> {
        if let Some((entry, found)) = self.entries.guess(self.connection.key, self.connection.last, series) {
            self.connection.guessed += 1;
            self.connection.last = Some(entry);
            return Some(found);
        }
        let labels_len = message::labels_len(series)?;
        if series.get(labels_len) != Some(&TAG_SAMPLES) {
            return None;
        }
        let labels = &series[..labels_len];
        if let Some((entry, series)) = self.entries.find(self.connection.key, labels) {
            self.connection.mapped += 1;
            self.follow(entry);
            return Some(Found { series, labels_len });
        }
        // More labels may follow behind a sample: what is not the whole series must not get a number.
        if !only_samples(&series[labels_len..]) {
            return None;
        }
        self.pairs.clear();
        scan_labels(labels, &mut self.pairs).ok()?;
        let series = self.resolve().ok()?;
        self.remember(labels, series);
        Some(Found { series, labels_len })
    }

    /// Notes that the last series is followed by `entry`.
    fn follow(&mut self, entry: u32) {
        if let Some(last) = self.connection.last {
            self.entries.set_successor(last, entry);
        }
        self.connection.last = Some(entry);
    }

    fn remember(&mut self, labels: &[u8], series: SeriesRef) {
        let (cache, tenant) = (&self.decoder.cache, self.tenant);
        // The write lock is never taken while the read lock is held.
        let entry = RwLockReadGuard::unlocked(&mut self.entries, || cache.insert(tenant, labels, series));
        self.check_generation();
        // Another request may have emptied the cache between the two locks.
        if let Some(entry) = entry.filter(|e| e.key == self.connection.key) {
            self.follow(entry.number);
        }
    }

    /// Entry numbers are valid within one generation of the cache and one tenant only.
    fn check_generation(&mut self) {
        let key = self.entries.key(self.tenant);
        if self.connection.key != key {
            self.connection.key = key;
            self.connection.last = None;
        }
    }

    /// Checks the pairs and gives their series its number.
    fn resolve(&mut self) -> Result<SeriesRef, LabelProblem> {
        let unbounded = self.pairs.canonical(&self.decoder.limits, self.decoder.label_policy, &mut self.canonical)?;
        let (series, new) = match self.decoder.registry.admit_canonical(self.tenant, &self.canonical) {
            Ok(admitted) => admitted,
            Err(Admission::Quota(problem)) => return Err(problem.into()),
            Err(Admission::Labels(error)) => unreachable!("`Pairs::canonical` writes canonical bytes: {error}"),
        };
        if new && unbounded.is_some() {
            self.out.stats.unbounded_labels += 1;
            self.out.unbounded_label = unbounded;
        }
        self.connection.parsed += 1;
        Ok(series)
    }

    /// The quick way through fields that are all samples; the columns may hold some of them when it ends otherwise.
    fn samples(&mut self, mut fields: &[u8], series: SeriesRef) -> Quick {
        let max = self.decoder.limits.request_samples_max;
        let (mut too_old, mut in_future, mut last_bad_ms) = (0, 0, 0);
        while let Some((first, rest)) = split_sample(fields) {
            let Ok((time_ms, value)) = sample(first) else { return Quick::Unusual };
            fields = rest;
            if self.seen == max {
                return Quick::TooMany;
            }
            self.seen += 1;
            match self.times.problem(time_ms) {
                None => self.out.batch.push(series, time_ms, value),
                Some(reason) => {
                    last_bad_ms = time_ms;
                    *(if reason == RejectReason::TooOld { &mut too_old } else { &mut in_future }) += 1;
                }
            }
        }
        if fields.is_empty() { Quick::Done { too_old, in_future, last_bad_ms } } else { Quick::Unusual }
    }

    /// The long way: any order of fields, and an explanation for what is refused.
    fn any_series(&mut self, series: &'b [u8], place: Place) -> Result<(), DecodeError> {
        self.pairs.clear();
        let mut shape = Shape::default();
        let scanned = scan_series(series, &mut self.pairs, &mut shape);
        let max = self.decoder.limits.request_samples_max;
        self.seen = self.seen.saturating_add(shape.samples);
        if self.seen > max {
            return Err(self.too_many());
        }
        let cost = (shape.samples + shape.histograms) as u64;
        if let Err(problem) = scanned {
            let pairs = &self.pairs;
            let text = || (None, format!("{}: the series cannot be read: {}", pairs.describe(), problem.0));
            self.out.reject(place, RejectReason::Malformed, cost.max(1), text);
            return Ok(());
        }
        self.out.stats.exemplars_ignored += shape.exemplars as u64;
        if cost == 0 {
            return Ok(());
        }
        if shape.samples == 0 {
            // Nothing to store: the series gets no number, only its name into the message.
            self.check_only(place, shape.histograms);
            return Ok(());
        }
        match self.resolve() {
            Ok(number) => {
                self.take_samples(series, number, place);
                self.reject_histograms(place, shape.histograms);
            }
            Err(problem) => reject_labels(self.out, place, &problem, cost, || self.pairs.describe()),
        }
        Ok(())
    }

    fn check_only(&mut self, place: Place, histograms: usize) {
        match self.pairs.canonical(&self.decoder.limits, self.decoder.label_policy, &mut self.canonical) {
            Ok(_) => self.reject_histograms(place, histograms),
            Err(problem) => reject_labels(self.out, place, &problem, histograms as u64, || self.pairs.describe()),
        }
    }

    fn take_samples(&mut self, fields: &[u8], series: SeriesRef, place: Place) {
        let (mut bad, mut last_bad_ms) = ([0, 0], 0);
        let mut reader = Reader::new(fields);
        while let Ok(Some((number, value))) = reader.field() {
            if number != 2 {
                continue;
            }
            let Ok((time_ms, value)) = value.bytes().and_then(sample) else { continue };
            match self.times.problem(time_ms) {
                None => {
                    self.out.batch.push(series, time_ms, value);
                    self.out.stats.accepted += 1;
                }
                Some(reason) => {
                    last_bad_ms = time_ms;
                    bad[usize::from(reason == RejectReason::InFuture)] += 1;
                }
            }
        }
        self.reject_times(place, series, bad, last_bad_ms);
    }

    fn reject_times(&mut self, place: Place, series: SeriesRef, bad: [u64; 2], last_bad_ms: i64) {
        for (reason, count) in [RejectReason::TooOld, RejectReason::InFuture].into_iter().zip(bad) {
            if count == 0 {
                continue;
            }
            // With both kinds in one series the example is of one of them.
            let example = self.times.problem(last_bad_ms) == Some(reason);
            let text = || {
                let name = describe_series(&self.decoder.registry, series);
                let why = if example { self.times.explain(reason, last_bad_ms) } else { reason.as_str().to_owned() };
                (None, format!("{name}: {count} samples: {why}"))
            };
            self.out.reject(place, reason, count, text);
        }
    }

    fn reject_histograms(&mut self, place: Place, count: usize) {
        if count == 0 {
            return;
        }
        let text = || {
            let name = self.pairs.describe();
            (
                None,
                format!("{name}: {count} native histograms refused, they are not stored yet; send classic histograms (`_bucket` series)"),
            )
        };
        self.out.reject(place, RejectReason::NativeHistogram, count as u64, text);
    }

    fn metadata(&mut self, entry: &[u8]) {
        let place = Place::Metadata(self.metadata_index);
        self.metadata_index += 1;
        let limits = &self.decoder.limits;
        let said = match message::metadata(entry) {
            Ok(said) => said,
            Err(problem) => {
                self.out.reject(place, RejectReason::Metadata, 1, || (None, format!("the metadata cannot be read: {}", problem.0)));
                return;
            }
        };
        if let Some(family) = self.families.entry(self.out, self.tenant, limits, place, said.name) {
            family.kind = said.kind;
            set_text(&mut family.unit, said.unit, limits);
            set_text(&mut family.help, said.help, limits);
        }
    }

    fn too_many(&self) -> DecodeError {
        DecodeError::TooManySamples { max: self.decoder.limits.request_samples_max }
    }
}

#[cfg(test)]
mod tests;
