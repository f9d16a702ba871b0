//! The two key columns as hand-made column chunks: a dictionary page, then one RLE run per series and page.
//!
//! ```text
//!  dictionary page   PLAIN values, one per run of equal keys, in row order
//!  data page         bit width (1 byte), then per run:  varint(rows << 1)  index (⌈width / 8⌉ bytes, little endian)
//! ```
//!
//! A column writer would hash and compare every row; here a row costs nothing and a series a few bytes. When a run is hardly longer than
//! one row, plain values are smaller than a dictionary, and are written instead. Pages carry a zstd checksum.

use super::PAGE_ROWS;
use super::layout::Effort;
use bytes::Bytes;
use parquet::basic::{BoundaryOrder, Compression, Encoding, PageType, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder, PageEncodingStats};
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use zstd::bulk::Compressor;

/// Fewer rows per run than this: plain values instead of a dictionary.
const DICTIONARY_ROWS_PER_RUN_MIN: usize = 2;

/// A value of a key column.
pub(super) trait KeyValue: Copy + PartialEq + PartialOrd {
    /// Appends it as PLAIN encodes it.
    fn plain(self, out: &mut Vec<u8>);
    /// As statistics hold it.
    fn bound(self) -> Vec<u8>;
    /// Statistics of a chunk.
    fn statistics(min: Self, max: Self) -> Statistics;
}

impl KeyValue for i64 {
    fn plain(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn bound(self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }

    fn statistics(min: Self, max: Self) -> Statistics {
        Statistics::int64(Some(min), Some(max), None, Some(0), false)
    }
}

impl KeyValue for &str {
    fn plain(self, out: &mut Vec<u8>) {
        let len = u32::try_from(self.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(self.as_bytes());
    }

    fn bound(self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn statistics(min: Self, max: Self) -> Statistics {
        Statistics::byte_array(Some(min.into()), Some(max.into()), None, Some(0), false)
    }
}

/// Equal values in a row of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct KeyRun<V> {
    pub(super) value: V,
    pub(super) rows: usize,
}

/// Adds rows of a value, to the last run if it is the same value.
pub(super) fn push_run<V: KeyValue>(runs: &mut Vec<KeyRun<V>>, value: V, rows: usize) {
    match runs.last_mut() {
        Some(last) if last.value == value => last.rows += rows,
        _ => runs.push(KeyRun { value, rows }),
    }
}

/// The column chunk of a row group, and what the row group has to know about it. `sorted`: values ascend over the runs.
pub(super) fn write<V: KeyValue>(
    column: ColumnDescPtr,
    runs: &[KeyRun<V>],
    sorted: bool,
    effort: Effort,
) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
    let rows: usize = runs.iter().map(|r| r.rows).sum();
    let mut sink = TrackedWrite::new(Vec::new());
    let mut chunk = Chunk::new(&column, &mut sink, effort)?;
    let encoding = if rows < runs.len() * DICTIONARY_ROWS_PER_RUN_MIN { Encoding::PLAIN } else { Encoding::RLE_DICTIONARY };
    if encoding == Encoding::RLE_DICTIONARY {
        let mut entries = Vec::new();
        runs.iter().for_each(|run| run.value.plain(&mut entries));
        chunk.dictionary_page(&entries, runs.len())?;
    }
    let mut pages = Pages { runs, at: 0, done: 0 };
    while let Some(pieces) = pages.next_page() {
        let body = match encoding {
            Encoding::PLAIN => plain_page(runs, &pieces),
            _ => rle_page(bit_width(runs.len()), &pieces),
        };
        let bounds = extremes(pieces.iter().map(|&(index, _)| runs[index].value)).map(|(min, max)| (min.bound(), max.bound()));
        chunk.data_page(encoding, pieces.iter().map(|(_, rows)| rows).sum(), &body, bounds)?;
    }
    let (min, max) = extremes(runs.iter().map(|r| r.value)).ok_or_else(|| ParquetError::General("a row group without rows".into()))?;
    let order = if sorted { BoundaryOrder::ASCENDING } else { BoundaryOrder::UNORDERED };
    let close = chunk.close(column, rows, order, Some(V::statistics(min, max)))?;
    Ok((Bytes::from(sink.into_inner()?), close))
}

/// Which run, and how many rows of it are on the page.
type Piece = (usize, usize);

/// Cuts runs into pages.
struct Pages<'a, V> {
    runs: &'a [KeyRun<V>],
    at: usize,
    done: usize,
}

impl<V> Pages<'_, V> {
    fn next_page(&mut self) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut room = PAGE_ROWS;
        while room > 0 {
            let Some(run) = self.runs.get(self.at) else { break };
            let take = room.min(run.rows - self.done);
            pieces.push((self.at, take));
            room -= take;
            self.done += take;
            if self.done == run.rows {
                (self.at, self.done) = (self.at + 1, 0);
            }
        }
        (!pieces.is_empty()).then_some(pieces)
    }
}

fn bit_width(entries: usize) -> u8 {
    let bits = usize::BITS - entries.saturating_sub(1).leading_zeros();
    u8::try_from(bits).unwrap_or(u8::MAX)
}

fn rle_page(width: u8, pieces: &[Piece]) -> Vec<u8> {
    let index_bytes = usize::from(width).div_ceil(8);
    let mut body = Vec::with_capacity(1 + pieces.len() * (index_bytes + 2));
    body.push(width);
    for &(index, rows) in pieces {
        let mut head = rows << 1;
        while head >= 0x80 {
            body.push((head & 0x7f) as u8 | 0x80);
            head >>= 7;
        }
        body.push(head as u8);
        body.extend_from_slice(&index.to_le_bytes()[..index_bytes]);
    }
    body
}

fn plain_page<V: KeyValue>(runs: &[KeyRun<V>], pieces: &[Piece]) -> Vec<u8> {
    let mut body = Vec::new();
    for &(index, rows) in pieces {
        (0..rows).for_each(|_| runs[index].value.plain(&mut body));
    }
    body
}

fn extremes<V: KeyValue>(values: impl Iterator<Item = V>) -> Option<(V, V)> {
    values.fold(None, |found, v| match found {
        None => Some((v, v)),
        Some((min, max)) => Some((if v < min { v } else { min }, if v > max { v } else { max })),
    })
}

/// A column chunk under construction, page by page.
pub(super) struct Chunk<'a> {
    writer: SerializedPageWriter<'a, Vec<u8>>,
    compressor: Compressor<'static>,
    level: i32,
    nullable: bool,
    column_index: ColumnIndexBuilder,
    offset_index: OffsetIndexBuilder,
    dictionary_offset: Option<i64>,
    data_offset: Option<i64>,
    compressed: usize,
    uncompressed: usize,
    /// Pages by encoding.
    pages: Vec<(Encoding, i32)>,
}

impl<'a> Chunk<'a> {
    pub(super) fn new(column: &ColumnDescPtr, sink: &'a mut TrackedWrite<Vec<u8>>, effort: Effort) -> Result<Self, ParquetError> {
        let mut compressor = Compressor::new(effort.zstd_level)?;
        compressor.include_checksum(true)?;
        Ok(Self {
            writer: SerializedPageWriter::new(sink),
            compressor,
            level: effort.zstd_level,
            nullable: column.max_def_level() > 0,
            column_index: ColumnIndexBuilder::new(column.physical_type()),
            offset_index: OffsetIndexBuilder::new(),
            dictionary_offset: None,
            data_offset: None,
            compressed: 0,
            uncompressed: 0,
            pages: Vec::new(),
        })
    }

    /// The dictionary, before any other page: so many values as PLAIN encodes them.
    pub(super) fn dictionary_page(&mut self, body: &[u8], entries: usize) -> Result<(), ParquetError> {
        let buf = Bytes::from(self.compressor.compress(body)?);
        let num_values = u32::try_from(entries).unwrap_or(u32::MAX);
        let page = Page::DictionaryPage { buf, num_values, encoding: Encoding::PLAIN, is_sorted: false };
        let (offset, _) = self.put(page, body.len())?;
        self.dictionary_offset = Some(offset);
        Ok(())
    }

    /// A data page; `bounds`: its smallest and largest value, on every page of a chunk or on none.
    pub(super) fn data_page(
        &mut self,
        encoding: Encoding,
        rows: usize,
        body: &[u8],
        bounds: Option<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), ParquetError> {
        let page = Page::DataPage {
            buf: Bytes::from(self.compressor.compress(body)?),
            num_values: u32::try_from(rows).unwrap_or(u32::MAX),
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let (offset, size) = self.put(page, body.len())?;
        self.data_offset.get_or_insert(offset);
        match self.pages.iter_mut().find(|(known, _)| *known == encoding) {
            Some((_, pages)) => *pages += 1,
            None => self.pages.push((encoding, 1)),
        }
        self.offset_index.append_row_count(i64::try_from(rows).unwrap_or(i64::MAX));
        self.offset_index.append_offset_and_size(offset, i32::try_from(size).unwrap_or(i32::MAX));
        match bounds {
            Some((min, max)) => self.column_index.append(false, min, max, 0),
            None => self.column_index.to_invalid(),
        }
        Ok(())
    }

    /// Writes a page; returns its offset and its size with its header.
    fn put(&mut self, page: Page, uncompressed: usize) -> Result<(i64, usize), ParquetError> {
        let spec = self.writer.write_page(CompressedPage::new(page, uncompressed))?;
        self.compressed += spec.compressed_size;
        self.uncompressed += spec.uncompressed_size;
        Ok((i64::try_from(spec.offset).unwrap_or(i64::MAX), spec.compressed_size))
    }

    pub(super) fn close(
        mut self,
        column: ColumnDescPtr,
        rows: usize,
        order: BoundaryOrder,
        statistics: Option<Statistics>,
    ) -> Result<ColumnCloseResult, ParquetError> {
        self.writer.close()?;
        let mut encodings: Vec<Encoding> = self.pages.iter().map(|(encoding, _)| *encoding).collect();
        let data_page = |&(encoding, count): &(Encoding, i32)| PageEncodingStats { page_type: PageType::DATA_PAGE, encoding, count };
        let mut pages: Vec<PageEncodingStats> = self.pages.iter().map(data_page).collect();
        if self.dictionary_offset.is_some() {
            encodings.push(Encoding::PLAIN);
            pages.insert(0, PageEncodingStats { page_type: PageType::DICTIONARY_PAGE, encoding: Encoding::PLAIN, count: 1 });
        }
        if self.nullable {
            encodings.push(Encoding::RLE);
        }
        encodings.sort();
        encodings.dedup();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let mut metadata = ColumnChunkMetaData::builder(column)
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(self.level)?))
            .set_encodings(encodings)
            .set_page_encoding_stats(pages)
            .set_total_compressed_size(count(self.compressed))
            .set_total_uncompressed_size(count(self.uncompressed))
            .set_num_values(count(rows))
            .set_data_page_offset(self.data_offset.unwrap_or(0))
            .set_dictionary_page_offset(self.dictionary_offset);
        if let Some(statistics) = statistics {
            metadata = metadata.set_statistics(statistics);
        }
        let column_index = if self.column_index.valid() {
            self.column_index.set_boundary_order(order);
            Some(self.column_index.build()?)
        } else {
            None
        };
        Ok(ColumnCloseResult {
            bytes_written: self.compressed as u64,
            rows_written: rows as u64,
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index,
            offset_index: Some(self.offset_index.build()),
        })
    }
}
