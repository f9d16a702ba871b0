//! Opening a log: where it ends, and from where each sink wants it.
//!
//! ```text
//!  last segment   head g g g(more)… ▒▒▒▒▒▒▒▒        g: groups whose chain is complete
//!                            └ end                  what stands behind is dropped and never read again (a new segment follows)
//! ```
//!
//! # Invariants
//! - The end is the first record that is not the expected one (uuid, generation, offset, checksum), taken back to the last complete group.
//! - What the end keeps is on the disk when this returns, also when the process died between its write and its fsync.
//!
//! # When it fails
//! A record behind the end that was written when something before it was already durable proves damage, not a crash: refused.

use super::files::{LogFiles, Reader, Segment, Stop, find_record};
use super::{Log, LogSettings, LogState, PARTITION, Shared, Wiring};
use crate::SourceOffset;
use crate::bus::record::{Decoded, Decoder, Scope};
use crate::bus::{BatchSink, BusError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tokio::sync::watch;

/// Threads of a log: the replay and the writer.
const THREADS: usize = 2;

/// What the replay has to do.
#[derive(Debug)]
pub(super) struct Plan {
    /// Sinks with the offset of the first record each wants.
    pub(super) sinks: Vec<(Arc<dyn BatchSink>, i64)>,
}

/// Opens the files, finds the end, asks the sinks.
pub(super) fn recover(settings: &LogSettings, wiring: Wiring) -> Result<(Arc<Shared>, Plan), BusError> {
    let mut files = LogFiles::load(settings.data_dir.join("log"), settings.segment_bytes, settings.bytes_max)?;
    let uuid = files.uuid();
    let (mut durable, mut sources) = (0, BTreeMap::new());
    if let Some(last) = files.last_mut() {
        let end = find_end(last, uuid, &wiring)?;
        keep(last, end.position)?;
        last.end = end.offset;
        (durable, sources) = (end.offset, end.sources);
        let position = end.position;
        files.seal(position)?;
    }
    let plan = ask_sinks(&wiring.sinks, files.first_offset(), durable)?;
    tracing::info!(log = %uuid, first = files.first_offset(), next = durable, bytes = files.used_bytes(), "opened the log");
    wiring.metrics.held_bytes.set(i64::try_from(files.used_bytes()).unwrap_or(i64::MAX));
    let shared = Shared {
        wiring,
        state: watch::Sender::new(LogState::Replaying),
        running: watch::Sender::new(THREADS),
        log: Mutex::new(Log { files, durable, live: false, sources }),
    };
    Ok((Arc::new(shared), plan))
}

struct End {
    position: u64,
    offset: i64,
    sources: BTreeMap<String, i64>,
}

fn find_end(segment: &Segment, uuid: uuid::Uuid, wiring: &Wiring) -> Result<End, BusError> {
    let read = |source| BusError::Io { doing: "reading the last segment of the log".into(), source };
    let mut reader = match Reader::new(segment.file.clone(), uuid, segment.generation) {
        Ok(reader) => reader,
        Err(Stop::Io(source)) => return Err(read(source)),
        Err(other) => return Err(BusError::Corrupt(format!("the head of the last segment of the log has changed under us: {other}"))),
    };
    let head = reader.head_sources(Decoder::new(wiring.registry.clone(), Scope::Segment)).map_err(malformed)?;
    let mut end = End { position: reader.position, offset: reader.offset, sources: BTreeMap::new() };
    note(&mut end.sources, head);
    let mut decoder = Decoder::new(wiring.registry.clone(), Scope::Segment);
    let why = loop {
        let offset = reader.offset;
        let record = match reader.next() {
            Ok(record) => record,
            Err(Stop::Io(source)) => return Err(read(source)),
            Err(stop) => break stop,
        };
        let more = record.header.more();
        let mut decoded = Decoded::default();
        // A right checksum around nonsense is an error of whoever wrote it, not a torn tail.
        decoder.decode(&record, &mut decoded).map_err(|e| BusError::Corrupt(format!("record {offset} of the log: {e}")))?;
        if !more {
            (end.position, end.offset) = (reader.position, reader.offset);
            note(&mut end.sources, decoded.sources);
        }
    };
    let expected = reader.offset;
    let proof = find_record(&segment.file, reader.position, uuid, segment.generation, |h| h.offset > expected && h.synced > expected);
    if let Some(later) = proof.map_err(read)? {
        return Err(BusError::Corrupt(format!(
            "record {expected} of the log is damaged ({why}) although record {} behind it shows that it was on the disk: samples from {expected} on \
             were acknowledged and cannot be read; restore the data directory, or move its folder `log` away to go on without them",
            later.offset
        )));
    }
    tracing::debug!(next = end.offset, %why, "found the end of the log");
    Ok(end)
}

fn malformed(stop: Stop) -> BusError {
    BusError::Corrupt(format!("the head of a segment of the log: {stop}"))
}

pub(super) fn note(sources: &mut BTreeMap<String, i64>, new: Vec<SourceOffset>) {
    for one in new {
        sources.insert(one.source, one.next);
    }
}

/// Writes the kept part once more and syncs it. After a failed fsync the page cache may show bytes that the disk does not have, with
/// nothing left to write for the kernel: only writing them again makes them real.
fn keep(segment: &Segment, position: u64) -> Result<(), BusError> {
    let write = || -> std::io::Result<()> {
        let mut bytes = vec![0; usize::try_from(position).unwrap_or(usize::MAX)];
        segment.file.read_exact_at(&mut bytes, 0)?;
        segment.file.write_all_at(&bytes, 0)?;
        segment.file.sync_all()
    };
    write().map_err(|source| BusError::Io { doing: "syncing the last segment of the log".into(), source })
}

/// The first sink that knows an offset is storage: its offset must be in the log. A later one may want more than the log still has
/// (it is told by the `from` of its first delivery), and one that knows nothing follows the first.
fn ask_sinks(sinks: &[Arc<dyn BatchSink>], first: i64, end: i64) -> Result<Plan, BusError> {
    let mut answers = Vec::with_capacity(sinks.len());
    for sink in sinks {
        answers.push(sink.assigned(PARTITION)?);
    }
    let leader = answers.iter().flatten().next().copied();
    if let Some(offset) = leader.filter(|o| !(first..=end).contains(o)) {
        return Err(out_of_range(offset, first, end));
    }
    if leader.is_none() && first > 0 && !sinks.is_empty() {
        return Err(out_of_range(0, first, end));
    }
    let start = leader.unwrap_or(first);
    let mut plan = Plan { sinks: Vec::with_capacity(sinks.len()) };
    for (sink, answer) in sinks.iter().zip(answers) {
        let wanted = answer.unwrap_or(start);
        if wanted > end {
            return Err(out_of_range(wanted, first, end));
        }
        if wanted < first {
            tracing::warn!(wanted, first, ?sink, "the log no longer has all that a sink wants: it starts later");
        }
        plan.sinks.push((sink.clone(), wanted.max(first)));
    }
    Ok(plan)
}

fn out_of_range(wanted: i64, first: i64, end: i64) -> BusError {
    let gap = if wanted < first { format!("{wanted} to {first}") } else { format!("{end} to {wanted}") };
    BusError::Corrupt(format!(
        "the tables continue at offset {wanted} of the log, but the log holds {first} to {end}: offsets {gap} are missing; \
         this store and this data directory do not belong together, or one of them was restored to another time"
    ))
}
