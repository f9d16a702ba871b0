use super::*;
use crate::bus::record::RECORD_BYTES_MAX;
use crate::bus::testing::{Scripted, assert_no_gaps, contract, one, series, source};
use fletch_common::ManualClock;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SEGMENT: u64 = 16 << 10;
const BUDGET: u64 = 4 * SEGMENT;

struct World {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    segment_bytes: u64,
    bytes_max: u64,
}

impl World {
    fn new() -> Self {
        Self::of(SEGMENT, BUDGET)
    }

    fn of(segment_bytes: u64, bytes_max: u64) -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), clock: ManualClock::at(1_000), segment_bytes, bytes_max }
    }

    fn settings(&self, dir: &Path) -> LogSettings {
        let heartbeat = Duration::from_secs(1);
        LogSettings { data_dir: dir.to_owned(), bytes_max: self.bytes_max, segment_bytes: self.segment_bytes, heartbeat }
    }

    fn wiring(&self, registry: &Arc<SeriesRegistry>, sinks: Vec<Arc<dyn BatchSink>>) -> Wiring {
        Wiring { registry: registry.clone(), clock: self.clock.clone(), sinks, admission: None, metrics: LogMetrics::default() }
    }

    async fn try_open(&self, dir: &Path, sinks: &[Arc<Scripted>]) -> Result<Arc<EmbeddedLog>, BusError> {
        let registry = sinks.first().map_or_else(Arc::default, |s| s.registry.clone());
        let sinks = sinks.iter().map(|s| s.clone() as Arc<dyn BatchSink>).collect();
        let log = EmbeddedLog::open(self.settings(dir), self.wiring(&registry, sinks)).await?;
        log.wait_ready().await?;
        // Lets the heartbeat begin to wait, so that a test that moves the clock wakes it.
        tokio::task::yield_now().await;
        Ok(log)
    }

    /// Opens with one sink that starts at `start`.
    async fn open_at(&self, start: Option<i64>) -> (Arc<EmbeddedLog>, Arc<Scripted>) {
        let sink = sink(start);
        (self.try_open(self.dir.path(), std::slice::from_ref(&sink)).await.expect("opens"), sink)
    }

    /// The newest segment file.
    fn last_segment(&self) -> PathBuf {
        segments(self.dir.path()).pop().expect("a segment")
    }
}

fn sink(start: Option<i64>) -> Arc<Scripted> {
    let sink = Scripted::new(&Arc::new(SeriesRegistry::new()));
    Arc::new(match start {
        Some(offset) => sink.starting_at(0, offset),
        None => sink,
    })
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(dir.join("log")).expect("a log").map(|e| e.expect("an entry").path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "seg"));
    paths.sort();
    paths
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("log")).expect("a folder");
    for entry in std::fs::read_dir(from.join("log")).expect("a log") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, to.join("log").join(path.file_name().expect("a name"))).expect("copied");
    }
}

fn values(sink: &Scripted) -> Vec<i64> {
    sink.rows().into_iter().map(|(_, _, value)| value).collect()
}

async fn append(log: &EmbeddedLog, sink: &Scripted, range: std::ops::Range<i64>) {
    for n in range {
        log.append(one(&sink.registry, &format!("m{}", n % 3), n)).await.expect("there is room");
    }
}

/// Appends until the log is full; returns how many fitted.
async fn fill(log: &EmbeddedLog, sink: &Scripted) -> i64 {
    for n in 0.. {
        match log.append(one(&sink.registry, "m", n)).await {
            Ok(()) => {}
            Err(BusError::Full { what: "the log", limit: BUDGET, .. }) => return n,
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!("the budget is finite")
}

fn disk_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir.join("log")).expect("a log").map(|e| e.expect("an entry"));
    entries.filter(|e| e.file_name() != "identity").map(|e| e.metadata().expect("a file").len()).sum()
}

#[tokio::test]
async fn it_is_a_bus() {
    let world = World::of(1 << 20, 4 << 20);
    let (log, sink) = world.open_at(None).await;
    contract(log, &sink).await;
}

#[tokio::test]
async fn a_restart_replays_from_the_middle_of_a_segment() {
    let world = World::new();
    let (log, first) = world.open_at(None).await;
    append(&log, &first, 0..30).await;
    log.close().await;
    let app_id = log.app_id(0);
    for start in [0, 1, 17, 30] {
        let (log, sink) = world.open_at(Some(start)).await;
        assert_eq!(values(&sink), (start..30).collect::<Vec<_>>());
        assert_eq!(sink.rows(), first.rows()[start as usize..], "with the labels that earlier records named");
        assert_eq!((log.app_id(0), log.range()), (app_id.clone(), 0..30));
        assert_eq!(format!("bus:{}:0", EmbeddedLog::identify(world.dir.path()).expect("there")), app_id);
        log.close().await;
    }
}

#[tokio::test]
async fn an_append_is_delivered_before_it_is_answered_and_on_the_disk_before_it_is_delivered() {
    let world = World::new();
    let copies = tempfile::tempdir().expect("a folder");
    let (from, to) = (world.dir.path().to_owned(), copies.path().to_owned());
    let sink = Scripted::new(&Arc::new(SeriesRegistry::new()));
    let sink = Arc::new(sink.calling(move |delivery| copy(&from, &to.join(delivery.to.to_string()))));
    let log = world.try_open(world.dir.path(), std::slice::from_ref(&sink)).await.expect("opens");
    for n in 0..40 {
        log.append(one(&sink.registry, "m", n)).await.expect("there is room");
        assert_eq!(values(&sink).last(), Some(&n));
    }
    // Each copy is the folder as a kill inside of that delivery would leave it.
    for killed in 1..=40 {
        let sink = self::sink(None);
        let log = world.try_open(&copies.path().join(killed.to_string()), std::slice::from_ref(&sink)).await.expect("opens");
        assert_eq!(values(&sink), (0..killed).collect::<Vec<_>>());
        log.close().await;
    }
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_loses_only_the_last_group() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    append(&log, &sink, 0..4).await;
    let path = world.last_segment();
    let before = record_starts(&path);
    append(&log, &sink, 4..5).await;
    log.close().await;
    let (start, end) = (before[before.len() - 1], record_starts(&path)[before.len()]);
    assert!(end > start + 200);
    let whole = std::fs::read(&path).expect("readable");
    for cut in start..end {
        for garbage in [0u8, 0xa5] {
            let mut torn = whole.clone();
            torn[cut..].fill(garbage);
            if torn == whole {
                continue;
            }
            std::fs::write(&path, &torn).expect("written");
            let (shared, _) =
                recovery::recover(&world.settings(world.dir.path()), world.wiring(&Arc::default(), Vec::new())).expect("recovers");
            // A cut inside of the padding of the last record takes nothing from it only when it changes nothing.
            assert_eq!(shared.log.lock().durable, 4, "cut at {cut} of {start}..{end}");
            std::fs::write(&path, &whole).expect("written");
        }
    }
    // After one of them: the log goes on, and both parts are there after another restart.
    std::fs::write(&path, &whole[..end - 9]).expect("written");
    let (log, sink) = world.open_at(Some(0)).await;
    assert_eq!(values(&sink), [0, 1, 2, 3]);
    append(&log, &sink, 100..103).await;
    log.close().await;
    let (log, sink) = world.open_at(Some(0)).await;
    assert_eq!((values(&sink), log.range()), (vec![0, 1, 2, 3, 100, 101, 102], 0..7));
}

/// Positions of the records of a segment behind its head, and of the end.
fn record_starts(path: &Path) -> Vec<usize> {
    let bytes = std::fs::read(path).expect("readable");
    let (mut at, mut starts) = (0, Vec::new());
    while let Ok(record) = crate::bus::record::Record::check(&bytes[at..]) {
        at += record.header.length;
        starts.push(at);
    }
    starts
}

#[tokio::test]
async fn old_records_behind_the_end_of_a_recycled_segment_are_not_read() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    let full = fill(&log, &sink).await;
    log.release(0, full);
    assert_eq!(segments(world.dir.path()).len(), 1);
    // Goes into a recycled file: whole records of its former life follow.
    append(&log, &sink, full..full + 3).await;
    while segments(world.dir.path()).len() < 2 {
        append(&log, &sink, 900..901).await;
    }
    let newest = values(&sink);
    log.close().await;
    let bytes = std::fs::read(world.last_segment()).expect("readable");
    let end = *record_starts(&world.last_segment()).last().expect("a record");
    assert!(bytes[end..].windows(4).any(|w| w == b"FLBR"), "there are old records behind the end");
    let (log, sink) = world.open_at(Some(log.range().start)).await;
    assert_eq!(values(&sink), newest[newest.len() - values(&sink).len()..]);
    assert_eq!(log.range().end, newest.len() as i64);
}

#[tokio::test]
async fn a_new_start_does_not_adopt_what_a_crash_left_behind_the_end() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    append(&log, &sink, 0..6).await;
    log.close().await;
    // Record 4 is torn, 5 is whole: as if one write of both had lost its first page. The proof that 4 was on the disk (5 says so) is
    // written over too.
    let path = world.last_segment();
    let starts = record_starts(&path);
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
    file.write_all_at(&[0; 8], starts[4] as u64).expect("written");
    let bytes = std::fs::read(&path).expect("readable");
    let fifth = restamp(&bytes[starts[5]..starts[6]], 4);
    file.write_all_at(&fifth, starts[5] as u64).expect("written");
    let (log, sink) = world.open_at(Some(0)).await;
    assert_eq!(values(&sink), [0, 1, 2, 3]);
    append(&log, &sink, 40..41).await;
    log.close().await;
    let (_, sink) = world.open_at(Some(0)).await;
    assert_eq!(values(&sink), [0, 1, 2, 3, 40], "the old record 5 does not follow the new record 4");
}

/// The record with another `synced` offset.
fn restamp(record: &[u8], synced: i64) -> Vec<u8> {
    let mut record = record.to_vec();
    record[64..72].copy_from_slice(&synced.to_le_bytes());
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(&record[..16]);
    digest.update(&record[24..]);
    record[16..24].copy_from_slice(&digest.finalize().to_le_bytes());
    record
}

#[tokio::test]
async fn damage_before_durable_records_is_refused_and_named() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    append(&log, &sink, 0..6).await;
    log.close().await;
    let path = world.last_segment();
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
    let at = record_starts(&path)[2] as u64 + 100;
    file.write_all_at(b"\xff\xff", at).expect("written");
    let refused = world.try_open(world.dir.path(), &[self::sink(Some(0))]).await.expect_err("damaged").to_string();
    assert!(refused.contains("record 2 of the log is damaged") && refused.contains("restore"), "{refused}");
}

#[tokio::test]
async fn damage_in_an_older_segment_fails_the_replay() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    fill(&log, &sink).await;
    log.close().await;
    let path = segments(world.dir.path()).swap_remove(1);
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
    file.write_all_at(b"\xff\xff", record_starts(&path)[2] as u64 + 100).expect("written");
    let sink = self::sink(Some(0));
    let sinks = vec![sink.clone() as Arc<dyn BatchSink>];
    let log = EmbeddedLog::open(world.settings(world.dir.path()), world.wiring(&sink.registry, sinks)).await.expect("opens");
    let refused = log.wait_ready().await.expect_err("damaged").to_string();
    assert!(refused.contains("of the log"), "{refused}");
    assert!(!log.is_ready());
    assert!(matches!(log.append(one(&sink.registry, "m", 1)).await, Err(BusError::Corrupt(_))));
    log.close().await;
}

#[tokio::test]
async fn the_budget_holds_to_the_byte_and_release_gives_room() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    let full = fill(&log, &sink).await;
    assert_eq!(log.usage(), LogUsage { bytes: BUDGET, bytes_max: BUDGET });
    assert_eq!(disk_bytes(world.dir.path()), BUDGET);
    assert_eq!(segments(world.dir.path()).len(), 4);
    assert_eq!(values(&sink), (0..full).collect::<Vec<_>>(), "what was refused was not delivered");
    let second = log.shared.log.lock().files.segments().nth(1).map(|s| s.first).expect("a second segment");
    log.release(0, second - 1);
    assert!(log.append(one(&sink.registry, "m", full)).await.is_err(), "only whole segments are given back");
    log.release(7, second);
    assert!(log.append(one(&sink.registry, "m", full)).await.is_err(), "another partition");
    log.release(0, second);
    append(&log, &sink, full..full + 1).await;
    assert_eq!((log.range(), disk_bytes(world.dir.path())), (second..full + 1, BUDGET));
    log.close().await;
    // A full log still opens, and a restart costs no segment.
    for _ in 0..6 {
        let (log, sink) = world.open_at(Some(second)).await;
        assert_eq!(values(&sink), (second..full + 1).collect::<Vec<_>>());
        log.close().await;
    }
}

#[tokio::test]
async fn restarts_with_few_samples_do_not_eat_the_budget() {
    let world = World::new();
    for n in 0..20 {
        let (log, sink) = world.open_at(Some(0)).await;
        append(&log, &sink, n..n + 1).await;
        log.close().await;
    }
    let (log, sink) = world.open_at(Some(0)).await;
    assert_eq!(values(&sink), (0..20).collect::<Vec<_>>());
    log.release(0, 20);
    assert_eq!(segments(world.dir.path()).len(), 1, "the last remembers the offset");
    log.close().await;
    let (log, _) = world.open_at(Some(20)).await;
    assert_eq!(log.range().end, 20);
}

#[tokio::test]
async fn an_append_that_fits_no_segment_is_refused_for_good() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    let mut large = one(&sink.registry, "m", 1);
    for n in 0..1_000 {
        large.batch.push(series(&sink.registry, "m"), 1_700_000_000_000 + n, 1.0);
    }
    let refused = log.append(large).await;
    assert!(matches!(refused, Err(BusError::TooLarge { limit, .. }) if limit < SEGMENT), "{refused:?}");
    append(&log, &sink, 5..6).await;
    assert_eq!(values(&sink), [5]);
}

#[tokio::test]
async fn a_group_that_is_too_large_as_a_whole_is_written_in_parts() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    let large = |metric: &str| {
        let mut append = one(&sink.registry, metric, 0);
        for n in 1..500 {
            append.batch.push(series(&sink.registry, metric), 1_700_000_000_000 + n, n as f64);
        }
        append.sources.push(source(metric, 500));
        append
    };
    // On one thread all three wait in the queue before the writer sees the first: mostly one group, and any grouping must do.
    let (a, b, c) = tokio::join!(log.append(large("a")), log.append(large("b")), log.append(large("c")));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(sink.rows().len(), 1_500);
    assert_no_gaps(&sink.seen());
    assert_eq!(log.source_offsets(), [source("a", 500), source("b", 500), source("c", 500)]);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    for (segment_bytes, bytes_max) in [(4_095, 1 << 20), (1 << 20, (2 << 20) - 1)] {
        let world = World::of(segment_bytes, bytes_max);
        let refused = world.try_open(world.dir.path(), &[sink(None)]).await;
        assert!(matches!(refused, Err(BusError::Settings(_))), "{refused:?}");
    }
    let defaults = LogSettings::new("x", LogSettings::BYTES_MAX_DEFAULT);
    assert_eq!((defaults.segment_bytes, LogSettings::new("x", 1 << 20).segment_bytes), (64 << 20, 256 << 10));
}

#[tokio::test]
async fn an_offset_outside_of_the_log_is_a_loud_error_with_the_gap() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    let full = fill(&log, &sink).await;
    let second = log.shared.log.lock().files.segments().nth(1).map(|s| s.first).expect("a second segment");
    log.release(0, second);
    log.close().await;
    let gaps =
        [(Some(second - 1), format!("offsets {} to {second}", second - 1)), (Some(full + 2), format!("offsets {full} to {}", full + 2))];
    for (start, gap) in gaps.into_iter().chain([(None, format!("offsets 0 to {second}"))]) {
        let refused = world.try_open(world.dir.path(), &[self::sink(start)]).await.expect_err("a gap").to_string();
        assert!(refused.contains(&gap), "{refused} has {gap}");
    }
    let storage = self::sink(Some(full));
    let late = Arc::new(Scripted::new(&storage.registry).starting_at(0, 3));
    world.try_open(world.dir.path(), &[storage, late.clone()]).await.expect("only the first sink must be in range");
    assert_eq!(late.seen()[0].from, second);
}

#[tokio::test]
async fn a_missing_segment_cuts_off_what_is_older() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    let full = fill(&log, &sink).await;
    let third = log.shared.log.lock().files.segments().nth(2).map(|s| s.first).expect("a third segment");
    log.close().await;
    std::fs::remove_file(&segments(world.dir.path())[1]).expect("removed");
    assert!(world.try_open(world.dir.path(), &[self::sink(Some(third - 1))]).await.is_err());
    let (log, sink) = world.open_at(Some(third)).await;
    assert_eq!((log.range(), values(&sink)), (third..full, (third..full).collect::<Vec<_>>()));
}

#[tokio::test]
async fn sinks_start_where_they_want_and_get_groups_or_large_batches() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    append(&log, &sink, 0..10).await;
    log.close().await;
    let registry = Arc::new(SeriesRegistry::new());
    let storage = Arc::new(Scripted::new(&registry).starting_at(0, 6));
    let panes = Arc::new(Scripted::new(&registry).starting_at(0, 2).wanting_groups());
    let other = Arc::new(Scripted::new(&registry));
    let early = Arc::new(Scripted::new(&registry).starting_at(0, 4));
    let log = world.try_open(world.dir.path(), &[storage.clone(), panes.clone(), other.clone(), early.clone()]).await.expect("opens");
    assert_eq!(storage.seen().iter().map(|s| (s.from, s.to)).collect::<Vec<_>>(), [(6, 10)]);
    assert_eq!(panes.seen().iter().map(|s| (s.from, s.to)).collect::<Vec<_>>(), (2..10).map(|n| (n, n + 1)).collect::<Vec<_>>());
    assert_eq!(other.seen(), storage.seen());
    assert_eq!(early.seen().iter().map(|s| (s.from, s.to)).collect::<Vec<_>>(), [(4, 6), (6, 10)]);
    append(&log, &storage, 10..11).await;
    for sink in [storage, panes, other, early] {
        assert_eq!(values(&sink).last(), Some(&10));
        assert_no_gaps(&sink.seen());
    }
}

#[tokio::test]
async fn heartbeats_move_time_without_an_offset_until_something_is_synced() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    append(&log, &sink, 0..1).await;
    for beat in 1..=3 {
        world.clock.advance(Duration::from_secs(1));
        sink.wait(|seen| seen.len() == 1 + beat).await;
    }
    append(&log, &sink, 1..2).await;
    let seen = sink.seen();
    let expected = [(0, 1, 1_000), (1, 1, 2_000), (1, 1, 3_000), (1, 1, 4_000), (1, 5, 4_000)];
    assert_eq!(seen.iter().map(|s| (s.from, s.to, s.append_time_ms)).collect::<Vec<_>>(), expected);
    log.close().await;
    let replayed = Arc::new(Scripted::new(&Arc::default()).starting_at(0, 0).wanting_groups());
    let log = world.try_open(world.dir.path(), std::slice::from_ref(&replayed)).await.expect("opens");
    let expected = [(0, 1, 1_000), (1, 2, 2_000), (2, 3, 3_000), (3, 4, 4_000), (4, 5, 4_000)];
    assert_eq!(replayed.seen().iter().map(|s| (s.from, s.to, s.append_time_ms)).collect::<Vec<_>>(), expected);
    log.close().await;
}

#[tokio::test]
async fn an_idle_log_moves_its_offset_once_in_a_while() {
    let world = World::of(1 << 20, 4 << 20);
    let (log, sink) = world.open_at(None).await;
    for beat in 1..=61 {
        world.clock.advance(Duration::from_secs(1));
        sink.wait(|seen| seen.len() == beat).await;
    }
    let seen = sink.seen();
    assert!(seen[..59].iter().all(|s| (s.from, s.to) == (0, 0)));
    assert_eq!((seen[59].to, seen[60].to, log.range()), (60, 60, 0..60));
}

#[tokio::test]
async fn a_full_log_still_lets_time_move() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    fill(&log, &sink).await;
    let before = sink.seen().len();
    for beat in 1..=200 {
        world.clock.advance(Duration::from_secs(1));
        sink.wait(|seen| seen.len() == before + beat).await;
    }
    assert_no_gaps(&sink.seen());
    assert_eq!(sink.seen().last().map(|s| s.append_time_ms), Some(201_000));
    log.close().await;
}

#[tokio::test]
async fn source_offsets_survive_segments_release_and_restarts() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    let mut first = one(&sink.registry, "m", 0);
    first.sources = vec![source("a", 7), source("b", 1)];
    log.append(first).await.expect("there is room");
    let full = fill(&log, &sink).await + 1;
    let second = log.shared.log.lock().files.segments().nth(1).map(|s| s.first).expect("a second segment");
    log.release(0, second);
    log.append(Append { sources: vec![source("b", 9)], ..Append::default() }).await.expect("there is room");
    assert_eq!(sink.seen().last().map(|s| s.sources.clone()), Some(vec![source("b", 9)]));
    log.close().await;
    let (log, sink) = world.open_at(Some(full)).await;
    assert_eq!(log.source_offsets(), [source("a", 7), source("b", 9)]);
    assert_eq!(sink.seen()[0].sources, [source("b", 9)]);
}

#[tokio::test]
async fn an_incomplete_group_is_dropped_with_its_source_offsets() {
    let world = World::of(4 << 20, 16 << 20);
    let (log, sink) = world.open_at(None).await;
    let mut before = one(&sink.registry, "m", 0);
    before.sources.push(source("a", 1));
    log.append(before).await.expect("there is room");
    let mut large = Append { sources: vec![source("a", 2)], ..Append::default() };
    for n in 0..60_000 {
        large.batch.push(series(&sink.registry, "m"), n, n as f64);
    }
    log.append(large).await.expect("there is room");
    log.close().await;
    let path = world.last_segment();
    let starts = record_starts(&path);
    assert!(starts.len() > 4 && starts[2] - starts[1] > RECORD_BYTES_MAX / 2, "the group is several records: {starts:?}");
    // The last record of the group is torn; those before it are whole.
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
    file.set_len(starts[starts.len() - 1] as u64 - 1).expect("cut");
    let (log, sink) = world.open_at(Some(0)).await;
    assert_eq!((values(&sink), log.range(), log.source_offsets()), (vec![0], 0..1, vec![source("a", 1)]));
    append(&log, &sink, 5..6).await;
    log.close().await;
    let (log, sink) = world.open_at(Some(0)).await;
    assert_eq!((values(&sink), log.range()), (vec![0, 5], 0..2));
}

#[tokio::test]
async fn during_a_replay_appends_are_answered_and_delivered_when_it_ends() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    append(&log, &sink, 0..5).await;
    log.close().await;
    let sink = Arc::new(Scripted::new(&Arc::default()).shut());
    let sinks = vec![sink.clone() as Arc<dyn BatchSink>];
    let log = EmbeddedLog::open(world.settings(world.dir.path()), world.wiring(&sink.registry, sinks)).await.expect("opens");
    append(&log, &sink, 5..8).await;
    assert!(!log.is_ready());
    assert_eq!((sink.seen().len(), log.range()), (0, 0..8));
    sink.open();
    log.wait_ready().await.expect("replays");
    append(&log, &sink, 8..9).await;
    assert_eq!(values(&sink), (0..9).collect::<Vec<_>>());
    assert_no_gaps(&sink.seen());
}

#[derive(Debug)]
struct Refuses;

impl Admission for Refuses {
    fn admit(&self) -> Result<(), BusError> {
        Err(BusError::Full { what: "unflushed data", limit: 1, retry_after: Duration::from_secs(1) })
    }
}

#[tokio::test]
async fn the_admission_hook_refuses_before_anything_is_written() {
    let world = World::new();
    let registry = Arc::new(SeriesRegistry::new());
    let wiring = Wiring { admission: Some(Arc::new(Refuses)), ..world.wiring(&registry, Vec::new()) };
    let log = EmbeddedLog::open(world.settings(world.dir.path()), wiring).await.expect("opens");
    let refused = log.append(one(&registry, "m", 1)).await;
    assert!(matches!(refused, Err(BusError::Full { what: "unflushed data", .. })));
    assert_eq!(log.range(), 0..0);
}

#[tokio::test]
async fn a_sink_that_panics_fails_the_log_and_the_samples_are_there_at_the_next_start() {
    let world = World::new();
    let sink = Scripted::new(&Arc::default()).calling(|delivery| assert_ne!(delivery.to, 3, "the sink is broken"));
    let sink = Arc::new(sink);
    let log = world.try_open(world.dir.path(), std::slice::from_ref(&sink)).await.expect("opens");
    append(&log, &sink, 0..2).await;
    assert!(log.append(one(&sink.registry, "m", 2)).await.is_err());
    let mut state = log.state();
    state.wait_for(|s| matches!(s, LogState::Failed(_))).await.expect("it says so");
    assert!(matches!(log.append(one(&sink.registry, "m", 3)).await, Err(BusError::Corrupt(_))));
    log.close().await;
    let (_, sink) = world.open_at(Some(0)).await;
    assert_eq!(values(&sink), [0, 1, 2]);
}

#[tokio::test]
async fn a_log_whose_tables_another_process_writes_accepts_nothing_more() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    append(&log, &sink, 0..5).await;
    log.overtaken(0);
    let refused = log.append(one(&sink.registry, "m", 5)).await;
    assert!(matches!(&refused, Err(BusError::Corrupt(why)) if why.contains("another process")), "{refused:?}");
    log.close().await;
}

/// Found by `kill -9`: the number of a half-made spare was left out, and the next start took the gap for a missing segment.
#[tokio::test]
async fn a_crash_while_a_spare_is_made_does_not_cost_a_segment() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    append(&log, &sink, 0..5).await;
    log.close().await;
    let last = world.last_segment();
    let stem = last.file_stem().and_then(|s| s.to_str()).expect("a name");
    let next = u64::from_str_radix(stem, 16).expect("a number") + 1;
    std::fs::write(last.with_file_name(format!("{next:016x}.spare")), [0; 100]).expect("written");
    let (log, sink) = world.open_at(Some(0)).await;
    append(&log, &sink, 5..9).await;
    log.close().await;
    let (log, sink) = world.open_at(Some(0)).await;
    assert_eq!((values(&sink), log.range()), ((0..9).collect::<Vec<_>>(), 0..9));
    log.close().await;
}

#[tokio::test]
async fn a_crash_between_the_name_and_the_head_of_a_segment_is_forgotten() {
    let world = World::new();
    let (log, sink) = world.open_at(None).await;
    append(&log, &sink, 0..3).await;
    log.close().await;
    for content in [vec![0; SEGMENT as usize], std::fs::read(world.last_segment()).expect("readable"), Vec::new()] {
        std::fs::write(world.dir.path().join("log/00000000000000ff.seg"), content).expect("written");
        let (log, sink) = world.open_at(Some(0)).await;
        assert_eq!(values(&sink), [0, 1, 2]);
        log.close().await;
    }
}

#[test]
fn merged_appends_can_be_taken_apart_again() {
    let registry = SeriesRegistry::new();
    let mut appends: Vec<_> = (0..4).map(|n| one(&registry, &format!("m{n}"), n)).collect();
    appends[1].sources.push(source("a", 1));
    appends[3].metadata.push(Default::default());
    let shape = |a: &Append| (a.batch.clone(), a.metadata.clone(), a.sources.clone());
    let before: Vec<_> = appends.iter().map(shape).collect();
    let sizes: Vec<_> = appends.iter().map(|a| (a.batch.len(), a.metadata.len(), a.sources.len())).collect();
    let after = writer::split(writer::merge(appends), &sizes);
    assert_eq!(after.iter().map(shape).collect::<Vec<_>>(), before);
}
