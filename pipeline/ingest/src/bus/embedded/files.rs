//! The files of the log: their names, heads, budget, recycling, and reading one record after the other.
//!
//! # Invariants
//! - A segment's file exists under its generation and has its right head on the disk before a record is written into it.
//! - Generations only grow. Segments are consecutive in generation and offsets; each ends where the next begins.

use super::RETRY_AFTER;
use crate::SourceOffset;
use crate::bus::BusError;
use crate::bus::record::{Decoded, Decoder, FLAG_HEAD, HEADER_BYTES, Header, Record, RecordError};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// A shorter segment could not hold a head and a record.
pub(super) const SEGMENT_BYTES_MIN: u64 = 4_096;
/// Released segments that are kept for the next ones.
const SPARES_MAX: usize = 2;
/// New segments are filled with zeros in steps of this.
const ZEROS: usize = 1 << 20;

/// One segment.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) generation: u64,
    /// Offset of its first record.
    pub(super) first: i64,
    /// The next offset behind it; of the active one: behind its last durable record.
    pub(super) end: i64,
    /// Length of the file.
    pub(super) bytes: u64,
    pub(super) file: Arc<File>,
}

/// All files of the log.
#[derive(Debug)]
pub(super) struct LogFiles {
    dir: PathBuf,
    uuid: Uuid,
    segment_bytes: u64,
    bytes_max: u64,
    next_generation: u64,
    /// Oldest first; the writer writes to the last, if to any.
    segments: VecDeque<Segment>,
    spares: Vec<PathBuf>,
}

impl LogFiles {
    /// Opens or creates the folder and reads the head of every segment. The last segment's `end` is not known yet (it is its `first`).
    ///
    /// # Errors
    /// [`BusError::Io`]; [`BusError::Corrupt`] when the identity is not readable.
    pub(super) fn load(dir: PathBuf, segment_bytes: u64, bytes_max: u64) -> Result<Self, BusError> {
        let uuid = identity(&dir)?;
        let mut files = Self { dir, uuid, segment_bytes, bytes_max, next_generation: 1, segments: VecDeque::new(), spares: Vec::new() };
        let mut names = files.list()?;
        names.sort_unstable();
        let last = names.iter().rposition(|(_, spare)| !spare);
        for (i, (generation, spare)) in names.iter().copied().enumerate() {
            if spare { files.adopt_spare(generation)? } else { files.adopt_segment(generation, Some(i) == last)? }
        }
        // Segments are numbered without gaps, that is how a missing one is noticed. So a spare that a crash left half made under the next number does
        // not take that number away; it never held a record of it.
        files.next_generation = match files.segments.back() {
            Some(segment) => segment.generation + 1,
            None => names.last().map_or(1, |(generation, _)| generation + 1),
        };
        files.sync_dir()?;
        Ok(files)
    }

    pub(super) fn uuid(&self) -> Uuid {
        self.uuid
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Bytes of all segments that are not released.
    pub(super) fn used_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// The oldest offset that can be read.
    pub(super) fn first_offset(&self) -> i64 {
        self.segments.front().map_or(0, |s| s.first)
    }

    pub(super) fn next_generation(&self) -> u64 {
        self.next_generation
    }

    pub(super) fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        self.segments.iter()
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut Segment> {
        self.segments.back_mut()
    }

    /// Whether the budget has room for one more segment.
    ///
    /// # Errors
    /// [`BusError::Full`].
    pub(super) fn room_for_segment(&self) -> Result<(), BusError> {
        if self.used_bytes() + self.segment_bytes > self.bytes_max {
            return Err(BusError::Full { what: "the log", limit: self.bytes_max, retry_after: RETRY_AFTER });
        }
        Ok(())
    }

    /// Makes a spare or new file the active segment, with `head` durably in it. Call [`seal`](Self::seal) on the old one before.
    ///
    /// # Errors
    /// [`BusError::Full`] when the budget or the disk has no room; [`BusError::Io`].
    pub(super) fn begin_segment(&mut self, head: &[u8], first: i64) -> Result<Arc<File>, BusError> {
        self.room_for_segment()?;
        let generation = self.next_generation;
        let spare = match self.spares.pop() {
            Some(path) => path,
            None => self.create_spare(generation)?,
        };
        let path = self.path(generation, "seg");
        let doing = || io("beginning segment", &path);
        std::fs::rename(&spare, &path).map_err(doing())?;
        self.next_generation += 1;
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(doing())?;
        file.write_all_at(head, 0).map_err(doing())?;
        file.sync_all().map_err(doing())?;
        self.sync_dir()?;
        let file = Arc::new(file);
        self.segments.push_back(Segment { generation, first, end: first, bytes: self.segment_bytes, file: file.clone() });
        Ok(file)
    }

    /// The last segment ends at `position`: gives back a large unused rest.
    ///
    /// # Errors
    /// [`BusError::Io`].
    pub(super) fn seal(&mut self, position: u64) -> Result<(), BusError> {
        let Some(last) = self.segments.back_mut() else { return Ok(()) };
        if position < last.bytes / 2 {
            last.file.set_len(position).map_err(|source| BusError::Io { doing: "sealing a segment of the log".into(), source })?;
            last.bytes = position;
        }
        Ok(())
    }

    /// Gives back whole segments below `next`. The active one stays, and always the last: it remembers the offset.
    pub(super) fn release(&mut self, next: i64) {
        let mut released = false;
        while self.segments.len() > 1 && self.segments[0].end <= next {
            let Some(segment) = self.segments.pop_front() else { break };
            let path = self.path(segment.generation, "seg");
            if let Err(error) = self.recycle(&path, segment.generation, segment.bytes) {
                // The file is out of use either way; it is met again at the next start.
                tracing::warn!(%error, path = %path.display(), "could not give back a segment of the log");
            }
            released = true;
        }
        if released && let Err(error) = self.sync_dir() {
            tracing::warn!(%error, "could not sync the folder of the log after giving back segments");
        }
    }

    fn recycle(&mut self, path: &Path, generation: u64, bytes: u64) -> Result<(), BusError> {
        if self.spares.len() >= SPARES_MAX || bytes != self.segment_bytes {
            return std::fs::remove_file(path).map_err(io("removing", path));
        }
        let spare = self.path(generation, "spare");
        std::fs::rename(path, &spare).map_err(io("renaming", path))?;
        self.spares.push(spare);
        Ok(())
    }

    /// Writes the file in full: later writes then allocate nothing, and a full disk is met here, before anything depends on it.
    fn create_spare(&self, generation: u64) -> Result<PathBuf, BusError> {
        let path = self.path(generation, "spare");
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
            let zeros = vec![0; ZEROS.min(self.segment_bytes as usize)];
            let mut left = self.segment_bytes as usize;
            while left > 0 {
                let step = left.min(zeros.len());
                file.write_all(&zeros[..step])?;
                left -= step;
            }
            file.sync_all()
        };
        write().map_err(|source| {
            // Best effort: what stays behind is overwritten by the next attempt.
            let _ = std::fs::remove_file(&path);
            match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    BusError::Full { what: "the disk", limit: self.segment_bytes, retry_after: RETRY_AFTER }
                }
                _ => io("creating", &path)(source),
            }
        })?;
        Ok(path)
    }

    /// (generation, whether spare) of every file of ours.
    fn list(&self) -> Result<Vec<(u64, bool)>, BusError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io("listing", &self.dir))? {
            let entry = entry.map_err(io("listing", &self.dir))?;
            let name = entry.file_name();
            let Some((stem, extension)) = name.to_str().and_then(|n| n.split_once('.')) else { continue };
            if let (Ok(generation), "seg" | "spare") = (u64::from_str_radix(stem, 16), extension) {
                names.push((generation, extension == "spare"));
            }
        }
        Ok(names)
    }

    fn adopt_spare(&mut self, generation: u64) -> Result<(), BusError> {
        let path = self.path(generation, "spare");
        let bytes = std::fs::metadata(&path).map_err(io("reading", &path))?.len();
        if bytes == self.segment_bytes && self.spares.len() < SPARES_MAX {
            self.spares.push(path);
            return Ok(());
        }
        std::fs::remove_file(&path).map_err(io("removing", &path))
    }

    /// Takes a segment in if its head is right. The last may have none: a crash came between its name and its head.
    fn adopt_segment(&mut self, generation: u64, last: bool) -> Result<(), BusError> {
        let path = self.path(generation, "seg");
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io("opening", &path))?;
        let bytes = file.metadata().map_err(io("reading", &path))?.len();
        let file = Arc::new(file);
        let reader = match Reader::new(file.clone(), self.uuid, generation) {
            Ok(reader) => reader,
            Err(Stop::Io(source)) => return Err(io("reading", &path)(source)),
            Err(_) if last && find_record(&file, 0, self.uuid, generation, |_| true).map_err(io("reading", &path))?.is_none() => {
                return self.recycle(&path, generation, bytes);
            }
            Err(stop) => return Err(stop.into_bus(&path)),
        };
        let first = reader.offset;
        if let Some(before) = self.segments.back_mut() {
            before.end = first;
            if before.generation + 1 != generation || before.first > first {
                let (from, to) = (self.first_offset(), first);
                tracing::warn!(from, to, "segments of the log are missing: only what follows them can be read");
                self.segments.clear();
            }
        }
        self.segments.push_back(Segment { generation, first, end: first, bytes, file: reader.file });
        Ok(())
    }

    fn path(&self, generation: u64, extension: &str) -> PathBuf {
        self.dir.join(format!("{generation:016x}.{extension}"))
    }

    fn sync_dir(&self) -> Result<(), BusError> {
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(io("syncing", &self.dir))
    }
}

/// Reads the uuid of the log, or gives it one; creates its folder.
pub(super) fn identity(dir: &Path) -> Result<Uuid, BusError> {
    std::fs::create_dir_all(dir).map_err(io("creating", dir))?;
    let path = dir.join("identity");
    match std::fs::read_to_string(&path) {
        Ok(text) => Uuid::parse_str(text.trim()).map_err(|_| {
            BusError::Corrupt(format!(
                "{} does not hold the uuid of a log: restore it, or move the folder away to begin a new log",
                path.display()
            ))
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let uuid = Uuid::new_v4();
            let doing = || io("writing", &path);
            let temporary = dir.join("identity.new");
            let mut file = File::create(&temporary).map_err(doing())?;
            writeln!(file, "{uuid}").and_then(|()| file.sync_all()).map_err(doing())?;
            std::fs::rename(&temporary, &path).map_err(doing())?;
            File::open(dir).and_then(|d| d.sync_all()).map_err(doing())?;
            Ok(uuid)
        }
        Err(source) => Err(io("reading", &path)(source)),
    }
}

fn io(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> BusError {
    let doing = format!("{verb} {}", path.display());
    move |source| BusError::Io { doing, source }
}

/// Why there is no next record here.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("{0}")]
    Other(&'static str),
}

impl Stop {
    pub(super) fn into_bus(self, path: &Path) -> BusError {
        match self {
            Self::Io(source) => io("reading", path)(source),
            other => BusError::Corrupt(format!("{}: {other}", path.display())),
        }
    }
}

/// Reads the records of one segment in order.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) file: Arc<File>,
    uuid: Uuid,
    generation: u64,
    /// Where the next record begins.
    pub(super) position: u64,
    /// The offset that the next record must have.
    pub(super) offset: i64,
    buffer: Vec<u8>,
}

impl Reader {
    /// Reads the head.
    pub(super) fn new(file: Arc<File>, uuid: Uuid, generation: u64) -> Result<Self, Stop> {
        let mut reader = Self { file, uuid, generation, position: 0, offset: 0, buffer: Vec::new() };
        let head = reader.load()?;
        Record::check(&reader.buffer)?;
        if head.flags & FLAG_HEAD == 0 {
            return Err(Stop::Other("a segment does not begin with its head"));
        }
        (reader.offset, reader.position) = (head.offset, head.length as u64);
        Ok(reader)
    }

    /// The vector of source offsets in the head. Only right after [`new`](Self::new).
    pub(super) fn head_sources(&self, mut decoder: Decoder) -> Result<Vec<SourceOffset>, Stop> {
        let mut decoded = Decoded::default();
        decoder.decode(&Record::check(&self.buffer)?, &mut decoded)?;
        Ok(decoded.sources)
    }

    /// The next record, if it is the expected one.
    pub(super) fn next(&mut self) -> Result<Record<'_>, Stop> {
        let header = self.load()?;
        if header.offset != self.offset || header.flags & FLAG_HEAD != 0 {
            return Err(Stop::Other("a record has another offset than the one expected"));
        }
        let record = Record::check(&self.buffer)?;
        self.offset += 1;
        self.position += header.length as u64;
        Ok(record)
    }

    /// Reads the bytes of the record at `position`; its checksum is not looked at.
    fn load(&mut self) -> Result<Header, Stop> {
        self.buffer.resize(HEADER_BYTES, 0);
        read_at(&self.file, &mut self.buffer, self.position)?;
        let header = Header::parse(&self.buffer)?;
        if header.log != self.uuid || header.generation != self.generation {
            return Err(Stop::Other("a record is of another log or generation"));
        }
        self.buffer.resize(header.length, 0);
        read_at(&self.file, &mut self.buffer[HEADER_BYTES..], self.position + HEADER_BYTES as u64)?;
        Ok(header)
    }
}

/// Looks behind `position` for a whole record of this log and generation that `wanted` accepts. Records begin at multiples of 8.
pub(super) fn find_record(
    file: &File,
    position: u64,
    uuid: Uuid,
    generation: u64,
    wanted: impl Fn(&Header) -> bool,
) -> std::io::Result<Option<Header>> {
    let length = file.metadata()?.len().saturating_sub(position);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, position)?;
    let mut at = 0;
    while at + HEADER_BYTES <= bytes.len() {
        let candidate = Header::parse(&bytes[at..]).ok().filter(|h| h.log == uuid && h.generation == generation && wanted(h));
        if candidate.is_some() && Record::check(&bytes[at..]).is_ok() {
            return Ok(candidate);
        }
        at += 8;
    }
    Ok(None)
}

fn read_at(file: &File, buffer: &mut [u8], position: u64) -> Result<(), Stop> {
    file.read_exact_at(buffer, position).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => Stop::Other("the segment ends inside of a record"),
        _ => Stop::Io(error),
    })
}
