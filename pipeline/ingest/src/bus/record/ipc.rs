//! The Arrow part of a record: one RecordBatch message of three plain columns, written and read without intermediate arrays.
//!
//! The columns are known, so the message's flatbuffer is built directly and the column bytes are copied once, in either direction.
//! `tests.rs` reads what this writes with the reader of `arrow-ipc`, and the other way round.

use super::{RecordError, align, fixed};
use crate::SampleBatch;
use arrow_ipc::{Buffer, FieldNode, Message, MessageArgs, MessageHeader, MetadataVersion, RecordBatch, RecordBatchArgs, root_as_message};
use flatbuffers::FlatBufferBuilder;

/// No message of ours has a larger head than this (prefix, flatbuffer and padding).
pub(super) const HEAD_BYTES_MAX: usize = 512;
/// Bytes of one sample in the three columns.
pub(super) const SAMPLE_BYTES: usize = 20;

const PREFIX_BYTES: usize = 8;
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Appends the message to `out`, whose length is a multiple of 8 as seen from the start of the record.
pub(super) fn write(builder: &mut FlatBufferBuilder<'static>, series: &[u32], times: &[i64], values: &[f64], out: &mut Vec<u8>) {
    let body = column_lengths(series.len());
    builder.reset();
    let nodes = builder.create_vector(&[FieldNode::new(series.len() as i64, 0); 3]);
    let mut offset = 0i64;
    let mut buffers = [Buffer::new(0, 0); 6];
    for (column, (padded, length)) in body.iter().enumerate() {
        // Even buffers are the validity bitmaps, which columns without nulls leave out.
        buffers[2 * column] = Buffer::new(offset, 0);
        buffers[2 * column + 1] = Buffer::new(offset, *length as i64);
        offset += *padded as i64;
    }
    let buffers = builder.create_vector(&buffers);
    let args = RecordBatchArgs { length: series.len() as i64, nodes: Some(nodes), buffers: Some(buffers), ..Default::default() };
    let batch = RecordBatch::create(builder, &args).as_union_value();
    let args = MessageArgs {
        version: MetadataVersion::V5,
        header_type: MessageHeader::RecordBatch,
        header: Some(batch),
        bodyLength: offset,
        ..Default::default()
    };
    let message = Message::create(builder, &args);
    builder.finish(message, None);
    let head = builder.finished_data();
    let padded = align(head.len());
    out.extend_from_slice(&CONTINUATION);
    out.extend_from_slice(&(padded as u32).to_le_bytes());
    out.extend_from_slice(head);
    out.resize(out.len() + padded - head.len(), 0);
    write_columns(series, times, values, out);
}

fn write_columns(series: &[u32], times: &[i64], values: &[f64], out: &mut Vec<u8>) {
    let start = out.len();
    let [(series_padded, _), (times_bytes, _), (values_bytes, _)] = column_lengths(series.len());
    out.resize(start + series_padded + times_bytes + values_bytes, 0);
    let (series_out, rest) = out[start..].split_at_mut(series_padded);
    let (times_out, values_out) = rest.split_at_mut(times_bytes);
    for (to, from) in series_out.chunks_exact_mut(4).zip(series) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    for (to, from) in times_out.chunks_exact_mut(8).zip(times) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    for (to, from) in values_out.chunks_exact_mut(8).zip(values) {
        to.copy_from_slice(&from.to_le_bytes());
    }
}

/// (padded length, length) of each column of `rows` samples.
fn column_lengths(rows: usize) -> [(usize, usize); 3] {
    [(align(4 * rows), 4 * rows), (8 * rows, 8 * rows), (8 * rows, 8 * rows)]
}

/// Appends local numbers to `locals`, times and values to `batch` (whose `series` is left as it is). Returns the number of rows.
pub(super) fn read(message: &[u8], locals: &mut Vec<u32>, batch: &mut SampleBatch) -> Result<usize, RecordError> {
    const BAD: fn(&'static str) -> RecordError = RecordError::Malformed;
    if message.len() < PREFIX_BYTES || message[..4] != CONTINUATION {
        return Err(BAD("there is no Arrow message"));
    }
    let head = u32::from_le_bytes(fixed(message, 4)) as usize;
    let rest = &message[PREFIX_BYTES..];
    if head > rest.len() {
        return Err(BAD("the head of the Arrow message is cut off"));
    }
    let (head, body) = rest.split_at(head);
    let parsed = root_as_message(head).map_err(|_| BAD("the head of the Arrow message is not a flatbuffer"))?;
    let batch_head = parsed.header_as_record_batch().ok_or(BAD("the Arrow message is not a record batch"))?;
    let rows = usize::try_from(batch_head.length()).map_err(|_| BAD("the row count is negative"))?;
    if batch_head.compression().is_some() || rows > message.len() {
        return Err(BAD("the Arrow message is compressed or claims more rows than bytes"));
    }
    let nodes = batch_head.nodes().ok_or(BAD("the Arrow message has no columns"))?;
    let plain = nodes.len() == 3 && nodes.iter().all(|n| n.length() == batch_head.length() && n.null_count() == 0);
    let buffers = batch_head.buffers().ok_or(BAD("the Arrow message has no buffers"))?;
    if !plain || buffers.len() != 6 {
        return Err(BAD("the Arrow message has other columns than series, time and value"));
    }
    let column = |i: usize, width: usize| -> Result<&[u8], RecordError> {
        let buffer = buffers.get(2 * i + 1);
        let start = usize::try_from(buffer.offset()).map_err(|_| BAD("a buffer begins before the body"))?;
        // `rows` is at most the length of the message, so this does not overflow.
        start.checked_add(rows * width).and_then(|end| body.get(start..end)).ok_or(BAD("a buffer reaches past the body"))
    };
    let (series, times, values) = (column(0, 4)?, column(1, 8)?, column(2, 8)?);
    locals.extend(series.chunks_exact(4).map(|b| u32::from_le_bytes(fixed(b, 0))));
    batch.times.extend(times.chunks_exact(8).map(|b| i64::from_le_bytes(fixed(b, 0))));
    batch.values.extend(values.chunks_exact(8).map(|b| f64::from_le_bytes(fixed(b, 0))));
    Ok(rows)
}
