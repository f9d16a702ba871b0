//! `time` and `value` of a compacted file as hand-made column chunks: every page has the encoding that makes it smallest.
//!
//! ```text
//!  page 1  cpu_…     counters of one host     DELTA_BINARY_PACKED │ time:  tried PLAIN, DELTA_BINARY_PACKED, dictionary
//!  page 2  disk_…    constants                dictionary          │ value: tried PLAIN, BYTE_STREAM_SPLIT, dictionary
//!  page 3  http_…    measurements             BYTE_STREAM_SPLIT   │
//! ```
//! Rows are sorted by metric, so neighbours on a page look alike and pages differ. The format lets every page say its encoding; the chunk has one
//! dictionary. Its indexes are tried in whole bytes as well as in as few bits as they need: zstd finds repetitions of bytes, not of bits.
//!
//! Candidates are compared at zstd 1, the winner is compressed at the level of the file.

use super::keys_chunk::Chunk;
use super::layout::Effort;
use ahash::HashMap;
use bytes::Bytes;
use parquet::basic::{BoundaryOrder, Encoding};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::statistics::Statistics;
use parquet::file::writer::TrackedWrite;
use parquet::schema::types::ColumnDescPtr;
use zstd::bulk::Compressor;

/// Rows of a page: three times those of a flush file, because files of a compaction hold a day of a series where those hold minutes.
pub(super) const PACKED_PAGE_ROWS: usize = 65_536;
/// Level at which candidates are compared.
const TRIAL_LEVEL: i32 = 1;
/// Most entries of a dictionary: indexes of two bytes.
const DICTIONARY_MAX: usize = 1 << 16;
/// A page with more new values than rows divided by this is not tried with the dictionary.
const ROWS_PER_ENTRY_MIN: usize = 2;
/// What an entry of the dictionary costs, about: its 8 bytes, compressed.
const ENTRY_BYTES: usize = 6;
/// Values of a block of DELTA_BINARY_PACKED, and of each of its parts: what every reader knows.
const BLOCK: usize = 128;
const MINI_BLOCK: usize = 32;

/// The chunk of the column `time` (µs, never null).
pub(super) fn write_times(column: ColumnDescPtr, times: &[i64], effort: Effort) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
    let mut pages = Pages::new(&[Encoding::PLAIN, Encoding::DELTA_BINARY_PACKED])?;
    for page in times.chunks(PACKED_PAGE_ROWS) {
        let bits: Vec<u64> = page.iter().map(|t| t.cast_unsigned()).collect();
        let bounds = page.iter().min().zip(page.iter().max()).map(|(min, max)| (min.to_le_bytes().to_vec(), max.to_le_bytes().to_vec()));
        pages.add(&bits, &[], page.len(), bounds)?;
    }
    let statistics = Statistics::int64(times.iter().min().copied(), times.iter().max().copied(), None, Some(0), false);
    pages.finish(column, times.len(), Some(statistics), effort)
}

/// The chunk of the column `value` (null where `is_null`), without statistics.
pub(super) fn write_values(
    column: ColumnDescPtr,
    values: &[f64],
    is_null: impl Fn(f64) -> bool,
    effort: Effort,
) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
    let mut pages = Pages::new(&[Encoding::BYTE_STREAM_SPLIT, Encoding::PLAIN])?;
    for page in values.chunks(PACKED_PAGE_ROWS) {
        let bits: Vec<u64> = page.iter().filter(|v| !is_null(**v)).map(|v| v.to_bits()).collect();
        pages.add(&bits, &levels(page.iter().map(|v| !is_null(*v))), page.len(), None)?;
    }
    pages.finish(column, values.len(), None, effort)
}

/// The chunk of a column that is null on every row: one page.
pub(super) fn write_nulls(column: ColumnDescPtr, rows: usize, effort: Effort) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
    let mut sink = TrackedWrite::new(Vec::new());
    let mut chunk = Chunk::new(&column, &mut sink, effort)?;
    chunk.data_page(Encoding::PLAIN, rows, &levels(std::iter::repeat_n(false, rows)), None)?;
    let close = chunk.close(column, rows, BoundaryOrder::UNORDERED, None)?;
    Ok((Bytes::from(sink.into_inner()?), close))
}

/// Definition levels of one page: their length, then runs of equal levels.
fn levels(defined: impl Iterator<Item = bool>) -> Vec<u8> {
    let mut out = vec![0; 4];
    let mut run: Option<(bool, u64)> = None;
    let mut close = |run: Option<(bool, u64)>| {
        if let Some((level, rows)) = run {
            varint(&mut out, rows << 1);
            out.push(u8::from(level));
        }
    };
    for level in defined {
        match &mut run {
            Some((last, rows)) if *last == level => *rows += 1,
            _ => close(run.replace((level, 1))),
        }
    }
    close(run);
    let len = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&len.to_le_bytes());
    out
}

/// One page in the encoding that won.
struct Page {
    encoding: Encoding,
    body: Vec<u8>,
    rows: usize,
    bounds: Option<(Vec<u8>, Vec<u8>)>,
}

/// The pages of a chunk, and the dictionary that some of them use.
struct Pages {
    plain: &'static [Encoding],
    trial: Compressor<'static>,
    dictionary: HashMap<u64, u32>,
    entries: Vec<u64>,
    pages: Vec<Page>,
}

impl Pages {
    fn new(plain: &'static [Encoding]) -> Result<Self, ParquetError> {
        let (dictionary, entries, pages) = Default::default();
        Ok(Self { plain, trial: Compressor::new(TRIAL_LEVEL)?, dictionary, entries, pages })
    }

    /// Adds the page of these values, after `head` (the levels); tries every encoding.
    fn add(&mut self, values: &[u64], head: &[u8], rows: usize, bounds: Option<(Vec<u8>, Vec<u8>)>) -> Result<(), ParquetError> {
        let mut best: Option<(usize, Encoding, Vec<u8>)> = None;
        for &encoding in self.plain {
            let body = encode(encoding, values, head);
            let size = self.trial.compress(&body)?.len();
            if best.as_ref().is_none_or(|(least, ..)| size < *least) {
                best = Some((size, encoding, body));
            }
        }
        let known = self.entries.len();
        if let Some(indexes) = self.indexes(values) {
            let new = self.entries.len() - known;
            let mut won = false;
            for body in index_bodies(&indexes, head) {
                let size = self.trial.compress(&body)?.len() + new * ENTRY_BYTES;
                if best.as_ref().is_none_or(|(least, ..)| size < *least) {
                    (best, won) = (Some((size, Encoding::RLE_DICTIONARY, body)), true);
                }
            }
            if !won {
                self.forget(known);
            }
        }
        let (_, encoding, body) = best.ok_or_else(|| ParquetError::General("a page without an encoding".into()))?;
        self.pages.push(Page { encoding, body, rows, bounds });
        Ok(())
    }

    /// Indexes of the values in the dictionary, which takes in those that it lacks; `None`, and nothing changed, if they are too many.
    fn indexes(&mut self, values: &[u64]) -> Option<Vec<u32>> {
        let known = self.entries.len();
        let room = (values.len() / ROWS_PER_ENTRY_MIN).min(DICTIONARY_MAX - known);
        let mut indexes = Vec::with_capacity(values.len());
        for &value in values {
            let next = u32::try_from(self.entries.len()).ok()?;
            let index = *self.dictionary.entry(value).or_insert(next);
            if index == next {
                self.entries.push(value);
                if self.entries.len() - known > room {
                    self.forget(known);
                    return None;
                }
            }
            indexes.push(index);
        }
        (!indexes.is_empty()).then_some(indexes)
    }

    fn forget(&mut self, known: usize) {
        for value in self.entries.drain(known..) {
            self.dictionary.remove(&value);
        }
    }

    fn finish(
        self,
        column: ColumnDescPtr,
        rows: usize,
        statistics: Option<Statistics>,
        effort: Effort,
    ) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
        let mut sink = TrackedWrite::new(Vec::new());
        let mut chunk = Chunk::new(&column, &mut sink, effort)?;
        if !self.entries.is_empty() {
            chunk.dictionary_page(&encode(Encoding::PLAIN, &self.entries, &[]), self.entries.len())?;
        }
        for page in &self.pages {
            chunk.data_page(page.encoding, page.rows, &page.body, page.bounds.clone())?;
        }
        let close = chunk.close(column, rows, BoundaryOrder::UNORDERED, statistics)?;
        Ok((Bytes::from(sink.into_inner()?), close))
    }
}

/// Levels and values of a page in an encoding without a dictionary.
fn encode(encoding: Encoding, values: &[u64], head: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(head.len() + 8 * values.len());
    body.extend_from_slice(head);
    match encoding {
        Encoding::DELTA_BINARY_PACKED => delta(values, &mut body),
        Encoding::BYTE_STREAM_SPLIT => (0..8).for_each(|byte| body.extend(values.iter().map(|v| (v >> (8 * byte)) as u8))),
        _ => values.iter().for_each(|v| body.extend_from_slice(&v.to_le_bytes())),
    }
    body
}

/// Levels and dictionary indexes of a page: as few bits as they need, and whole bytes where that is something else.
fn index_bodies(indexes: &[u32], head: &[u8]) -> Vec<Vec<u8>> {
    let max = indexes.iter().copied().max().unwrap_or(0);
    if indexes.iter().all(|i| *i == max) {
        let mut body = head.to_vec();
        let width = tight(max);
        body.push(width);
        varint(&mut body, (indexes.len() as u64) << 1);
        body.extend_from_slice(&max.to_le_bytes()[..usize::from(width).div_ceil(8)]);
        return vec![body];
    }
    let tight = tight(max);
    let mut widths = vec![tight.div_ceil(8) * 8, tight];
    widths.dedup();
    let body = |width: u8| {
        let mut body = head.to_vec();
        body.push(width);
        let groups = indexes.len().div_ceil(8);
        varint(&mut body, (groups as u64) << 1 | 1);
        let padded = indexes.iter().map(|i| u64::from(*i)).chain(std::iter::repeat(0)).take(groups * 8);
        pack(padded, u32::from(width), &mut body);
        body
    };
    widths.into_iter().map(body).collect()
}

/// Bits that an index up to `max` needs.
fn tight(max: u32) -> u8 {
    u8::try_from(u32::BITS - max.leading_zeros()).unwrap_or(32)
}

/// DELTA_BINARY_PACKED of 64-bit integers.
fn delta(values: &[u64], out: &mut Vec<u8>) {
    varint(out, BLOCK as u64);
    varint(out, (BLOCK / MINI_BLOCK) as u64);
    varint(out, values.len() as u64);
    varint(out, zigzag(values.first().copied().unwrap_or(0).cast_signed()));
    let deltas: Vec<i64> = values.windows(2).map(|w| w[1].cast_signed().wrapping_sub(w[0].cast_signed())).collect();
    for block in deltas.chunks(BLOCK) {
        let min = block.iter().copied().min().unwrap_or(0);
        varint(out, zigzag(min));
        let above: Vec<u64> = block.iter().map(|d| d.wrapping_sub(min).cast_unsigned()).collect();
        let width = |part: &[u64]| u64::BITS - part.iter().fold(0, |all, v| all | v).leading_zeros();
        let widths: Vec<u32> = above.chunks(MINI_BLOCK).map(width).collect();
        out.extend((0..BLOCK / MINI_BLOCK).map(|i| widths.get(i).map_or(0, |w| *w as u8)));
        for (part, width) in above.chunks(MINI_BLOCK).zip(widths) {
            pack(part.iter().copied().chain(std::iter::repeat(0)).take(MINI_BLOCK), width, out);
        }
    }
}

/// Packs values of `width` bits, lowest bits first.
fn pack(values: impl Iterator<Item = u64>, width: u32, out: &mut Vec<u8>) {
    let (mut buffer, mut bits) = (0_u128, 0);
    for value in values {
        buffer |= u128::from(value) << bits;
        bits += width;
        while bits >= 8 {
            out.push(buffer as u8);
            buffer >>= 8;
            bits -= 8;
        }
    }
    if bits > 0 {
        out.push(buffer as u8);
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
