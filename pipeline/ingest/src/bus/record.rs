//! The record of the bus: one format for the embedded log and for Kafka.
//!
//! ```text
//!   0 magic "FLBR"   4 version u16   6 flags u16      8 length u32 (whole record)   12 first local number u32
//!  16 CRC-64/NVME of everything but these 8 bytes    24 append time i64 (ms)
//!  32 log uuid [16]  48 segment generation u64       56 own offset i64              64 synced offset i64
//!  72 dictionary bytes u32                           76 metadata bytes u32
//!  80 source bytes u32                               84 Arrow bytes u32
//!  88 dictionary | metadata | sources | zeros to a multiple of 8 | Arrow IPC message | zeros to a multiple of 8
//! ```
//!
//! All numbers are little-endian. The sections:
//! - **dictionary**: tenants (`u16` count; each `u8` length and bytes), then series that the scope did not name yet (`u32` count; each
//!   `u16` index of its tenant, `u32` length, canonical label bytes). The n-th series of a scope has the local number n.
//! - **metadata**: `u32` count; each `u16` tenant index, `u8` kind, then metric, unit and help as `u32` length and bytes.
//! - **sources**: `u32` count; each `u16` length, bytes, `i64` next offset.
//! - **Arrow**: one encapsulated RecordBatch message without a schema: series UInt32 (local number), time Int64 (ms), value Float64;
//!   no nulls, no compression. A stale marker is its NaN bits.
//!
//! # Invariants
//! - **B1** A scope ([`Scope`]) decodes alone: every local number is named in its scope, in or before the record that uses it.
//! - **B2** A group (what one commit wrote) is a chain: every record but the last has [`FLAG_MORE`]. Source offsets stand in the last.
//! - **B3** Bytes that were not written by an encoder are an error, never a panic, and allocate at most a small multiple of their length.
//!
//! # Not here
//! Files and topics (`embedded`, `kafka`). On Kafka the fields uuid, generation, own and synced offset are 0: the broker knows better.

mod decode;
mod encode;
mod ipc;
#[cfg(test)]
mod tests;

pub use decode::{Decoded, Decoder};
pub use encode::{Content, Encoder, Scope, Stamp};

use uuid::Uuid;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 88;
/// Where an encoder splits: small enough for Kafka's default `message.max.bytes` of 1 MiB.
pub const RECORD_BYTES_MAX: usize = 512 << 10;
/// What a decoder accepts at most. Only one series of absurd labels makes a record longer than [`RECORD_BYTES_MAX`].
pub const RECORD_BYTES_LIMIT: usize = 16 << 20;

/// Another record of the same group follows.
pub const FLAG_MORE: u16 = 1;
/// A heartbeat: no content, only time.
pub const FLAG_HEARTBEAT: u16 = 2;
/// The head of a segment: the vector of source offsets, no offset of its own.
pub const FLAG_HEAD: u16 = 4;

const MAGIC: [u8; 4] = *b"FLBR";
const VERSION: u16 = 1;
const CRC_AT: usize = 16;

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Shorter than its header or its own length field.
    #[error("the record is cut off: {have} of {need} bytes")]
    Short {
        /// Bytes that are there.
        have: usize,
        /// Bytes that must be there.
        need: usize,
    },
    /// It does not begin as a record does.
    #[error("the bytes do not begin with the mark of a record")]
    Magic,
    /// Written by another version.
    #[error("the record has format version {0}, this build reads {VERSION}")]
    Version(u16),
    /// The bytes are not those that were written.
    #[error("the checksum of the record does not match")]
    Checksum,
    /// The checksum is right but a section is not what it must be.
    #[error("the record is malformed: {0}")]
    Malformed(&'static str),
}

/// The fixed fields of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// `FLAG_*`.
    pub flags: u16,
    /// Length of the whole record.
    pub length: usize,
    /// Local number of the first series that this record names.
    pub first_local: u32,
    /// When it was appended, milliseconds.
    pub append_time_ms: i64,
    /// Which log it belongs to.
    pub log: Uuid,
    /// Which generation of its segment.
    pub generation: u64,
    /// Its own offset.
    pub offset: i64,
    /// Everything below this offset was on the disk before this record was written.
    pub synced: i64,
    sections: [usize; 4],
}

impl Header {
    /// Reads the fixed fields; the checksum is not looked at.
    ///
    /// # Errors
    /// [`RecordError`] when these cannot be the first bytes of a record.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() < HEADER_BYTES {
            return Err(RecordError::Short { have: bytes.len(), need: HEADER_BYTES });
        }
        if bytes[..4] != MAGIC {
            return Err(RecordError::Magic);
        }
        let version = u16::from_le_bytes(fixed(bytes, 4));
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let size = |at: usize| u32::from_le_bytes(fixed(bytes, at)) as usize;
        let header = Self {
            flags: u16::from_le_bytes(fixed(bytes, 6)),
            length: size(8),
            first_local: u32::from_le_bytes(fixed(bytes, 12)),
            append_time_ms: i64::from_le_bytes(fixed(bytes, 24)),
            log: Uuid::from_bytes(fixed(bytes, 32)),
            generation: u64::from_le_bytes(fixed(bytes, 48)),
            offset: i64::from_le_bytes(fixed(bytes, 56)),
            synced: i64::from_le_bytes(fixed(bytes, 64)),
            sections: [size(72), size(76), size(80), size(84)],
        };
        header.check_lengths()?;
        Ok(header)
    }

    /// Whether another record of the same group follows.
    pub fn more(&self) -> bool {
        self.flags & FLAG_MORE != 0
    }

    /// Whether it is a heartbeat.
    pub fn heartbeat(&self) -> bool {
        self.flags & FLAG_HEARTBEAT != 0
    }

    fn check_lengths(&self) -> Result<(), RecordError> {
        let [dictionary, metadata, sources, arrow] = self.sections;
        // Each is below 2^32, so the sum fits a usize of 64 bits.
        let need = align(align(HEADER_BYTES + dictionary + metadata + sources) + arrow);
        if self.length != need || self.length > RECORD_BYTES_LIMIT {
            return Err(RecordError::Malformed("its length is not that of its sections"));
        }
        Ok(())
    }
}

/// Bytes whose checksum and lengths were found right.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The fixed fields.
    pub header: Header,
    dictionary: &'a [u8],
    metadata: &'a [u8],
    sources: &'a [u8],
    arrow: &'a [u8],
}

impl<'a> Record<'a> {
    /// Checks the record at the start of `bytes` (more may follow it).
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn check(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let header = Header::parse(bytes)?;
        if bytes.len() < header.length {
            return Err(RecordError::Short { have: bytes.len(), need: header.length });
        }
        let bytes = &bytes[..header.length];
        if checksum(bytes) != u64::from_le_bytes(fixed(bytes, CRC_AT)) {
            return Err(RecordError::Checksum);
        }
        let [dictionary, metadata, sources, arrow] = header.sections;
        let (dictionary, rest) = bytes[HEADER_BYTES..].split_at(dictionary);
        let (metadata, rest) = rest.split_at(metadata);
        let (sources, _) = rest.split_at(sources);
        let arrow_at = align(HEADER_BYTES + dictionary.len() + metadata.len() + sources.len());
        Ok(Self { header, dictionary, metadata, sources, arrow: &bytes[arrow_at..arrow_at + arrow] })
    }
}

fn checksum(record: &[u8]) -> u64 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(&record[..CRC_AT]);
    digest.update(&record[CRC_AT + 8..]);
    digest.finalize()
}

fn align(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// The `N` bytes at `at`; the caller has checked that they are there.
fn fixed<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
