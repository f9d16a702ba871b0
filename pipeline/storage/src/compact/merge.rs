//! The merge of `samples` files: k cursors in, files of the target size out, a few thousand rows of each input in memory.
//!
//! ```text
//!  cursor 1  a▒▒▒ b▒▒ d▒          heap by (metric, series_id) ─▶ all cursors at the smallest key ─▶ their rows up to a time that none
//!  cursor 2  a▒▒▒▒▒ c▒▒           of them can come back to ─▶ merged by time, one per time ─▶ writer ─▶ full? next file
//! ```
//!
//! Reading and encoding run on a blocking thread; finished files come back over a channel of one place and are uploaded while the next grows.

use super::{Job, Settings, identity_of, upload};
use crate::StorageError;
use crate::delta::{DeltaTable, FileEntry, FileIdentity};
use crate::parquet_file::{Effort, EncodedFile, FileSource, SamplesCursor, SamplesWriter, SeriesKey};
use crate::run::merge::{Piece, merge_pieces};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Merges the inputs of a job; the outputs are uploaded and no commit names them yet.
///
/// # Errors
/// An input cannot be read or is damaged ([`StorageError::Corrupt`] names it), an output cannot be written.
pub(super) async fn merge(table: &DeltaTable, job: &Job, settings: &Settings, now_ms: i64) -> Result<Vec<FileEntry>, StorageError> {
    let sources = sources(table, job, settings.whole_bytes_max)?;
    let identity = identity_of(job, now_ms);
    let target = settings.target_bytes;
    // One finished file may wait while another is uploaded: with the one that grows, three outputs in memory at most.
    let (sender, mut finished) = mpsc::channel::<EncodedFile>(1);
    let runtime = Handle::current();
    let work = tokio::task::spawn_blocking(move || runtime.block_on(merge_all(&sources, Outputs::new(identity, target, sender))));
    let mut outputs = Vec::new();
    let mut broken = None;
    while let Some(file) = finished.recv().await {
        match upload(table, file).await {
            Ok(entry) => outputs.push(entry),
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    // Should the worker still be at it, it sees this at its next series.
    drop(finished);
    let worked = work.await.map_err(|e| StorageError::Conflict(format!("a merge ended: {e}")))?;
    match broken {
        Some(error) => Err(error),
        None => worked.map(|()| outputs),
    }
}

/// The inputs, and whether each is kept in memory as a whole: small ones first, as far as the budget goes.
fn sources(table: &DeltaTable, job: &Job, whole_bytes_max: u64) -> Result<Vec<(FileSource, bool)>, StorageError> {
    let mut inputs: Vec<&FileEntry> = job.inputs.iter().map(AsRef::as_ref).collect();
    inputs.sort_by_key(|f| f.size);
    let mut kept = 0_u64;
    let source = |entry: &FileEntry| {
        kept = kept.saturating_add(entry.size);
        let source = FileSource::object(table.store().clone(), table.object_path(&entry.path)?, entry);
        Ok((source, kept <= whole_bytes_max))
    };
    inputs.into_iter().map(source).collect()
}

async fn merge_all(sources: &[(FileSource, bool)], mut outputs: Outputs) -> Result<(), StorageError> {
    let mut cursors = Vec::with_capacity(sources.len());
    for (source, keep) in sources {
        cursors.push(SamplesCursor::open(&source.clone().verified(*keep).await?).await?);
    }
    let head = |(at, cursor): (usize, &SamplesCursor)| cursor.key().map(|key| Reverse((key.clone(), at)));
    let mut heads: BinaryHeap<Reverse<(SeriesKey, usize)>> = cursors.iter().enumerate().filter_map(head).collect();
    let mut group = Vec::new();
    let mut rows = Merged::default();
    while let Some(Reverse((key, first))) = heads.pop() {
        group.clear();
        group.push(first);
        while heads.peek().is_some_and(|Reverse((other, _))| *other == key) {
            group.extend(heads.pop().map(|Reverse((_, at))| at));
        }
        outputs.begin_series(&key).await?;
        let mut left = group.clone();
        while !left.is_empty() {
            rows.take(&mut cursors, &left).await?;
            outputs.writer.push(&key, &rows.times, &rows.values)?;
            left.retain(|&at| cursors[at].key() == Some(&key));
        }
        heads.extend(group.iter().filter_map(|&at| cursors[at].key().map(|key| Reverse((key.clone(), at)))));
    }
    outputs.finish().await
}

/// Rows of one series, ascending, each time once.
#[derive(Default)]
struct Merged {
    times: Vec<i64>,
    values: Vec<f64>,
}

impl Merged {
    /// Takes rows of one series from the cursors that stand at it: as far in time as all of them are in memory.
    async fn take(&mut self, cursors: &mut [SamplesCursor], at: &[usize]) -> Result<(), StorageError> {
        self.times.clear();
        self.values.clear();
        let known_until = |&i: &usize| match cursors[i].rows() {
            (times, _, true) => times.last().copied(),
            _ => None,
        };
        let horizon = at.iter().filter_map(known_until).min().unwrap_or(i64::MAX);
        let mut pieces = Vec::with_capacity(at.len());
        let mut taken = Vec::with_capacity(at.len());
        for &i in at {
            let (times, values, _) = cursors[i].rows();
            let rows = times.partition_point(|t| *t <= horizon);
            taken.push((i, rows));
            if rows > 0 {
                pieces.push(Piece { times: &times[..rows], values: &values[..rows] });
            }
        }
        merge_pieces(&mut pieces, &mut self.times, &mut self.values);
        for (i, rows) in taken {
            if rows > 0 {
                cursors[i].advance(rows).await?;
            }
        }
        Ok(())
    }
}

/// Where rows go: the file that grows, and the channel for finished ones.
struct Outputs {
    writer: SamplesWriter,
    identity: FileIdentity,
    target: u64,
    sender: mpsc::Sender<EncodedFile>,
}

impl Outputs {
    fn new(identity: FileIdentity, target: u64, sender: mpsc::Sender<EncodedFile>) -> Self {
        Self { writer: SamplesWriter::new(named(&identity), Effort::COMPACT), identity, target, sender }
    }

    /// Cuts before this series if the file is large enough: at a metric if possible, so that no two files share one.
    async fn begin_series(&mut self, key: &SeriesKey) -> Result<(), StorageError> {
        if self.sender.is_closed() {
            // Nobody waits for the outputs any more: the process stops, or an upload failed.
            return Err(given_up());
        }
        let Some(last) = self.writer.last_key() else { return Ok(()) };
        let limit = if last.0 == key.0 { self.target + self.target / 4 } else { self.target };
        if self.writer.bytes_estimate() < limit {
            return Ok(());
        }
        let next = SamplesWriter::new(named(&self.identity), Effort::COMPACT);
        let full = std::mem::replace(&mut self.writer, next);
        self.send(full).await
    }

    async fn finish(self) -> Result<(), StorageError> {
        let Self { writer, sender, .. } = self;
        send(&sender, writer).await
    }

    async fn send(&self, full: SamplesWriter) -> Result<(), StorageError> {
        send(&self.sender, full).await
    }
}

async fn send(sender: &mpsc::Sender<EncodedFile>, full: SamplesWriter) -> Result<(), StorageError> {
    let Some(file) = full.finish()? else { return Ok(()) };
    sender.send(file).await.map_err(|_| given_up())
}

fn given_up() -> StorageError {
    StorageError::Limit("the merge was given up".into())
}

/// The same identity under a name of its own.
fn named(identity: &FileIdentity) -> FileIdentity {
    FileIdentity { uuid: Uuid::new_v4(), ..identity.clone() }
}
