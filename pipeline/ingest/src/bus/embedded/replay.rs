//! Reading the log back: from where the sinks want it, until it has caught up with the writer.
//!
//! ```text
//!  groups of the log ─▶ sinks that want groups: one delivery each
//!                    └▶ the others: one delivery per [`MERGE_SAMPLES_MIN`] samples
//! ```
//!
//! # Invariants
//! - A sink receives exactly the offsets from its start on, in order, without gaps, and never a part of a group.
//! - The switch to live happens under the lock of the log, at the moment when nothing durable is undelivered: the writer goes on there.

use super::files::{Reader, Segment, Stop};
use super::recovery::Plan;
use super::{LogState, PARTITION, Running, Shared};
use crate::bus::record::{Decoded, Decoder, Scope};
use crate::bus::{BatchSink, BusError};
use crate::{Delivery, SampleBatch};
use std::sync::Arc;

/// Samples after which a merged delivery is given out.
const MERGE_SAMPLES_MIN: usize = 256 << 10;
/// Groups after which it is given out, whatever they hold.
const MERGE_GROUPS_MAX: usize = 4_096;

/// Replays, then makes the log live (or failed).
pub(super) fn run(shared: Arc<Shared>, plan: Plan) {
    let running = Running(shared.clone());
    let replayed = Replay::new(&shared, plan).and_then(Replay::run);
    if let Err(error) = replayed {
        shared.fail(&error.to_string());
    }
    drop(running);
}

struct Replay<'a> {
    shared: &'a Shared,
    sinks: Vec<(Arc<dyn BatchSink>, i64)>,
    decoder: Decoder,
    reader: Option<Reader>,
    /// The next offset to read.
    next: i64,
    merged: Option<Group>,
    merged_groups: usize,
}

/// One or more groups, not delivered yet.
struct Group {
    from: i64,
    to: i64,
    append_time_ms: i64,
    content: Decoded,
}

impl<'a> Replay<'a> {
    fn new(shared: &'a Shared, plan: Plan) -> Result<Self, BusError> {
        let durable = shared.log.lock().durable;
        let next = plan.sinks.iter().map(|(_, start)| *start).min().unwrap_or(durable);
        let decoder = Decoder::new(shared.wiring.registry.clone(), Scope::Segment);
        Ok(Self { shared, sinks: plan.sinks, decoder, reader: None, next, merged: None, merged_groups: 0 })
    }

    fn run(mut self) -> Result<(), BusError> {
        let begun = std::time::Instant::now();
        let from = self.next;
        loop {
            let durable = self.shared.log.lock().durable;
            while self.next < durable {
                let group = self.read_group()?;
                self.give_out(group);
            }
            self.flush();
            let mut log = self.shared.log.lock();
            if log.durable == self.next {
                log.live = true;
                self.shared.state.send_replace(LogState::Ready);
                break;
            }
        }
        tracing::info!(from, to = self.next, seconds = begun.elapsed().as_secs_f64(), "replayed the log");
        Ok(())
    }

    fn read_group(&mut self) -> Result<Group, BusError> {
        let mut content = Decoded::default();
        let from = self.next;
        loop {
            let corrupt = |offset: i64, why: &dyn std::fmt::Display| BusError::Corrupt(format!("record {offset} of the log: {why}"));
            self.enter_segment()?;
            let reader = self.reader.as_mut().ok_or_else(|| corrupt(from, &"no segment holds it"))?;
            let offset = reader.offset;
            let record = reader.next().map_err(|stop| match stop {
                Stop::Io(source) => BusError::Io { doing: format!("reading record {offset} of the log"), source },
                other => corrupt(offset, &other),
            })?;
            let header = record.header;
            if offset < from {
                // Below the start: only its names are of use.
                self.decoder.skip(&record).map_err(|e| corrupt(offset, &e))?;
                continue;
            }
            self.decoder.decode(&record, &mut content).map_err(|e| corrupt(offset, &e))?;
            self.next = offset + 1;
            if !header.more() {
                return Ok(Group { from, to: self.next, append_time_ms: header.append_time_ms, content });
            }
        }
    }

    /// Makes `reader` stand in the segment that holds `next`, at or before it.
    fn enter_segment(&mut self) -> Result<(), BusError> {
        let log = self.shared.log.lock();
        let holds = |s: &&Segment| s.first <= self.next && self.next < s.end;
        let Some(segment) = log.files.segments().rev().find(holds) else {
            self.reader = None;
            return Ok(());
        };
        if self.reader.as_ref().is_some_and(|r| Arc::ptr_eq(&r.file, &segment.file)) {
            return Ok(());
        }
        let (file, generation, uuid) = (segment.file.clone(), segment.generation, log.files.uuid());
        drop(log);
        self.decoder.new_scope();
        let reader = Reader::new(file, uuid, generation);
        self.reader = Some(reader.map_err(|stop| BusError::Corrupt(format!("segment {generation} of the log: {stop}")))?);
        Ok(())
    }

    fn give_out(&mut self, group: Group) {
        // A merged delivery never reaches over the start of a sink that receives such.
        if self.sinks.iter().any(|(sink, start)| !sink.wants_groups() && *start == group.from) {
            self.flush();
        }
        if !self.sinks.iter().any(|(sink, _)| sink.wants_groups()) {
            return self.merge(group);
        }
        let delivery = group.into_delivery();
        for (sink, start) in &self.sinks {
            if sink.wants_groups() && *start <= delivery.from {
                sink.deliver(&delivery);
            }
        }
        self.merge(Group::from_delivery(delivery));
    }

    fn merge(&mut self, mut group: Group) {
        match &mut self.merged {
            None => self.merged = Some(group),
            Some(merged) => {
                merged.to = group.to;
                merged.append_time_ms = group.append_time_ms;
                merged.content.batch.append(&mut group.content.batch);
                merged.content.metadata.append(&mut group.content.metadata);
                merged.content.sources.append(&mut group.content.sources);
            }
        }
        self.merged_groups += 1;
        let full = self.merged.as_ref().is_some_and(|m| m.content.batch.len() >= MERGE_SAMPLES_MIN);
        if full || self.merged_groups >= MERGE_GROUPS_MAX {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.merged_groups = 0;
        let Some(merged) = self.merged.take() else { return };
        let delivery = merged.into_delivery();
        for (sink, start) in &self.sinks {
            if !sink.wants_groups() && *start <= delivery.from {
                sink.deliver(&delivery);
            }
        }
    }
}

impl Group {
    fn into_delivery(self) -> Delivery {
        let Self { from, to, append_time_ms, content } = self;
        let Decoded { batch, metadata, sources } = content;
        Delivery { partition: PARTITION, from, to, append_time_ms, batch: Arc::new(batch), metadata, sources: newest(sources) }
    }

    /// Takes the content back; copies the samples only when a sink has kept them.
    fn from_delivery(delivery: Delivery) -> Self {
        let Delivery { from, to, append_time_ms, batch, metadata, sources, .. } = delivery;
        let batch = Arc::try_unwrap(batch).unwrap_or_else(|shared| SampleBatch::clone(&shared));
        Self { from, to, append_time_ms, content: Decoded { batch, metadata, sources } }
    }
}

/// One offset per source: the last.
pub(super) fn newest(sources: Vec<crate::SourceOffset>) -> Vec<crate::SourceOffset> {
    if sources.len() < 2 {
        return sources;
    }
    let mut map = std::collections::BTreeMap::new();
    super::recovery::note(&mut map, sources);
    super::sources_of(&map)
}
