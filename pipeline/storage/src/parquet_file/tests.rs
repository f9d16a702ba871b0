//! Files written and read back: by our reader, by the library's, damaged, and in part.

use super::*;
use crate::delta::{BusRange, FileHash, FileIdentity};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use fletch_schemas::tables::Table;
use fletch_schemas::{Labels, MetricKind, TenantId, day_start_ms, stale_marker};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Encoding;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use proptest::prelude::*;
use std::sync::Arc;

/// (metric, series_id, samples), sorted.
type Data = Vec<(String, i64, Vec<(i64, f64)>)>;

/// The same with the bits of the values: NaNs compare equal to themselves.
type Bits = Vec<(String, i64, Vec<(i64, u64)>)>;

fn identity(date: i32) -> FileIdentity {
    FileIdentity::new(TenantId::default(), date, Some(BusRange { partition: 3, from: 5, to: 9 }), 77)
}

fn write(data: &Data, date: i32) -> Result<EncodedFile, StorageError> {
    write_as(data, date, Effort::FLUSH)
}

fn write_as(data: &Data, date: i32, effort: Effort) -> Result<EncodedFile, StorageError> {
    let columns: Vec<(Vec<i64>, Vec<f64>)> = data.iter().map(|(_, _, samples)| samples.iter().copied().unzip()).collect();
    let slices = data.iter().zip(&columns).map(|((metric, series_id, _), (times, values))| SeriesSlice {
        metric,
        series_id: *series_id,
        times,
        values,
    });
    write_samples_with(slices, &identity(date), effort)
}

async fn stored(bytes: impl Into<Bytes>, entry: &FileEntry) -> FileSource {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let path = Path::from("x.parquet");
    store.put(&path, bytes.into().into()).await.expect("puts");
    FileSource::object(store, path, entry)
}

fn plain(rows: &SamplesRows) -> Bits {
    let samples =
        |s: &SeriesRows| rows.times[s.rows.clone()].iter().copied().zip(rows.values[s.rows.clone()].iter().map(|v| v.to_bits())).collect();
    rows.series.iter().map(|s| (s.metric.to_string(), s.series_id, samples(s))).collect()
}

fn bits(data: &Data) -> Bits {
    let samples = |s: &Vec<(i64, f64)>| s.iter().map(|(t, v)| (*t, v.to_bits())).collect();
    data.iter().map(|(m, id, s)| (m.clone(), *id, samples(s))).collect()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds").block_on(work)
}

/// `series` series of `samples` samples, every 15 s from the start of the day.
fn grid(series: usize, samples: usize, date: i32) -> Data {
    let at = |i: usize| day_start_ms(date) + i64::try_from(i).expect("small") * 15_000;
    let one = |s: usize| (0..samples).map(|i| (at(i), (s * samples + i) as f64 * 0.25)).collect();
    (0..series).map(|s| (format!("m{:04}", s / 3), i64::try_from(s).expect("small") * 31 - 40, one(s))).collect()
}

#[tokio::test]
async fn a_file_says_what_is_in_it() {
    let mut data = grid(5, 100, -1);
    data[1].2[7].1 = stale_marker();
    data[2].2[0].1 = f64::from_bits(0x7ff8_0000_0000_beef);
    let file = write(&data, -1).expect("writes");
    let entry = &file.entry;
    assert_eq!((entry.rows, entry.size, entry.date), (500, file.bytes.len() as u64, -1));
    assert_eq!(entry.hash, Some(FileHash::of(&file.bytes)));
    assert_eq!(entry.keys.metrics, Some(("m0000".into(), "m0001".into())));
    assert_eq!(entry.keys.series_ids, Some((-40, 84)));
    assert_eq!(entry.keys.times_ms, Some((-86_400_000, -86_400_000 + 99 * 15_000 + 1)));
    assert_eq!(entry.bus, Some(BusRange { partition: 3, from: 5, to: 9 }));
    assert!(entry.path.starts_with("tenant=default/date=1969-12-31/") && entry.path.ends_with(".parquet"), "{}", entry.path);
    let source = stored(file.bytes.clone(), entry).await;
    assert_eq!(plain(&read_samples(&source).await.expect("reads")), bits(&data));
}

/// What any other reader sees: exact types, NULL for the stale marker, no statistics of `value`, sorted keys, a page index.
#[test]
fn other_readers_see_exact_types_and_no_statistics_of_values() {
    let mut data = grid(30, 1_000, 3);
    data[4].2[9].1 = stale_marker();
    data[4].2[10].1 = f64::NAN;
    let file = write(&data, 3).expect("writes");
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file.bytes, options).expect("opens");
    assert_eq!(builder.schema().as_ref(), Table::Samples.file_schema().as_ref());
    let metadata = builder.metadata().clone();
    assert_eq!(metadata.num_row_groups(), 1);
    let group = metadata.row_group(0);
    let has_statistics: Vec<bool> = group.columns().iter().map(|c| c.statistics().is_some()).collect();
    assert_eq!(has_statistics, [true, true, true, false, false]);
    let pages: Vec<usize> = metadata.offset_index().expect("an index")[0].iter().map(|o| o.page_locations().len()).collect();
    assert_eq!(pages, [2, 2, 2, 2, 2]);
    let bounded: Vec<bool> =
        metadata.column_index().expect("an index")[0].iter().map(|c| !matches!(c, ColumnIndexMetaData::NONE)).collect();
    assert_eq!(bounded, [true, true, true, false, false]);
    assert_eq!(group.sorting_columns().map(|c| c.iter().map(|s| s.column_idx).collect::<Vec<_>>()), Some(vec![0, 1, 2]));
    let batches: Vec<_> = builder.with_batch_size(100_000).build().expect("builds").collect::<Result<_, _>>().expect("reads");
    let batch = arrow::compute::concat_batches(&batches[0].schema(), &batches).expect("one schema");
    let values = batch.column(3).as_primitive::<Float64Type>();
    assert_eq!((batch.num_rows(), values.null_count(), batch.column(4).null_count()), (30_000, 1, 30_000));
    assert!(values.is_null(4_009) && values.value(4_010).is_nan());
    let times = batch.column(2).as_primitive::<TimestampMicrosecondType>();
    assert_eq!(times.value(1), day_start_ms(3) * 1000 + 15_000_000);
    assert_eq!(batch.column(0).as_string::<i32>().value(29_999), "m0009");
}

#[tokio::test]
async fn a_series_may_come_in_several_slices_and_a_group_may_cut_it() {
    let rows = ROW_GROUP_ROWS + 3 * PAGE_ROWS + 11;
    let start = day_start_ms(100);
    let times: Vec<i64> = (0..rows).map(|i| start + i64::try_from(i).expect("small") * 70).collect();
    let values = vec![1.5; rows];
    let slice = |series_id, range: std::ops::Range<usize>| SeriesSlice {
        metric: "m",
        series_id,
        times: &times[range.clone()],
        values: &values[range],
    };
    let file = write_samples([slice(1, 0..10), slice(1, 10..11), slice(1, 11..11), slice(2, 0..rows)], &identity(100)).expect("writes");
    assert_eq!(file.entry.rows, rows as u64 + 11);
    let source = stored(file.bytes, &file.entry).await;
    let open = source.open().await.expect("opens");
    assert_eq!(open.metadata.metadata().num_row_groups(), 2);
    let index: Vec<_> = open.keys().await.expect("reads").iter().map(|(m, id, r)| (m.to_string(), id, r)).collect();
    assert_eq!(index, [("m".to_owned(), 1, 0..11), ("m".to_owned(), 2, 11..rows + 11)]);
    // The last rows of the first group, over its end.
    let (from, to) = (times[ROW_GROUP_ROWS - 30], times[ROW_GROUP_ROWS + 5]);
    let part = read_selected(&open, &Selection { keys: &[("m", 2), ("m", 7)], from_ms: from, to_ms: to }).await.expect("reads");
    assert_eq!(part.series.len(), 1);
    assert_eq!(part.times[part.series[0].rows.clone()], times[ROW_GROUP_ROWS - 30..=ROW_GROUP_ROWS + 5]);
    assert!(part.times.len() <= 3 * PAGE_ROWS, "only the pages around: {}", part.times.len());
    let before = read_selected(&open, &Selection { keys: &[("m", 2)], from_ms: 0, to_ms: start - 1 }).await.expect("reads");
    assert_eq!(before, SamplesRows::default());
    assert!(open.memory_bytes() > 0);
}

#[test]
fn rows_out_of_order_or_of_another_day_are_refused() {
    let (t, v) = ([0_i64, 1], [1.0, 2.0]);
    let slice = |metric: &'static str, series_id, times: &'static [i64]| (metric, series_id, times);
    const EARLY: &[i64] = &[0, 1];
    const LATE: &[i64] = &[5, 86_400_000];
    let cases = [
        vec![slice("b", 1, EARLY), slice("a", 1, EARLY)],
        vec![slice("a", 2, EARLY), slice("a", 1, EARLY)],
        vec![slice("a", 1, EARLY), slice("a", 1, EARLY)],
        vec![slice("a", 1, LATE)],
        vec![],
    ];
    for case in cases {
        let slices = case.iter().map(|&(metric, series_id, times)| SeriesSlice { metric, series_id, times, values: &v });
        let refused = write_samples(slices, &identity(0));
        assert!(matches!(refused, Err(StorageError::Unsorted { .. })), "{case:?}");
    }
    let uneven = write_samples([SeriesSlice { metric: "a", series_id: 1, times: &t, values: &v[..1] }], &identity(0));
    assert!(matches!(uneven, Err(StorageError::Unsorted { .. })));
}

fn encodings(file: &EncodedFile, column: usize) -> Vec<Encoding> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.bytes.clone()).expect("opens");
    builder.metadata().row_group(0).column(column).encodings().collect()
}

#[test]
fn encodings_follow_the_data() {
    let aligned = grid(100, 200, 0);
    assert!(encodings(&write(&aligned, 0).expect("writes"), 2).contains(&Encoding::DELTA_BINARY_PACKED));
    // Every series has the same irregular times: plain bytes repeat, deltas do not pack.
    let mut noisy = grid(20, 1_000, 0);
    for (_, _, samples) in &mut noisy {
        let mut jitter = 7_u64;
        for (i, (t, v)) in samples.iter_mut().enumerate() {
            jitter = jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *t = i64::try_from(i).expect("small") * 15_000 + i64::try_from(jitter >> 52).expect("small");
            *v = 4.0;
        }
    }
    assert!(encodings(&write(&noisy, 0).expect("writes"), 2).contains(&Encoding::PLAIN));
    let random = |seed: usize| f64::from_bits(0x3ff0_0000_0000_0000 | (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20);
    let mut values = aligned;
    values.iter_mut().flat_map(|(_, _, s)| s.iter_mut()).enumerate().for_each(|(i, (_, v))| *v = random(i));
    assert!(encodings(&write(&values, 0).expect("writes"), 3).contains(&Encoding::BYTE_STREAM_SPLIT));
    let short: Data = (0..5_000).map(|s| ("m".to_owned(), s, vec![(1, 1.0)])).collect();
    let short = write(&short, 0).expect("writes");
    assert!(!encodings(&short, 1).contains(&Encoding::RLE_DICTIONARY), "one row per series: no dictionary");
    assert!(encodings(&short, 0).contains(&Encoding::RLE_DICTIONARY));
}

#[tokio::test]
async fn many_series_of_one_sample_come_back() {
    let data: Data = (0..30_000).map(|s| (format!("m{:05}", s / 2), s - 9, vec![(s, s as f64)])).collect();
    let file = write(&data, 0).expect("writes");
    let source = stored(file.bytes, &file.entry).await;
    assert_eq!(plain(&read_samples(&source).await.expect("reads")), bits(&data));
    let open = source.open().await.expect("opens");
    let index = open.keys().await.expect("reads");
    assert_eq!((index.len(), index.rows("m00010", 11), index.rows("m00010", 99)), (30_000, Some(20..21), None));
    let picks: Vec<_> = data.iter().rev().step_by(7).map(|(m, id, _)| (m.as_str(), *id)).collect();
    let part = read_selected(&open, &Selection { keys: &picks, from_ms: i64::MIN, to_ms: i64::MAX }).await.expect("reads");
    assert_eq!(part.series.len(), picks.len());
    assert!(part.series.iter().all(|s| part.values[s.rows.start] == (s.series_id + 9) as f64));
}

#[tokio::test]
async fn a_local_file_is_read_like_an_object() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = grid(3, 10, 0);
    let file = write(&data, 0).expect("writes");
    let path = folder.path().join("tenant=a%2Eb #1.parquet");
    std::fs::write(&path, &file.bytes).expect("writes");
    let source = FileSource::local(&path, file.entry.size, file.entry.hash).expect("a path");
    assert_eq!(plain(&read_samples(&source).await.expect("reads")), bits(&data));
    let open = source.open().await.expect("opens");
    let one = read_selected(&open, &Selection { keys: &[("m0000", -9)], from_ms: 15_000, to_ms: 30_000 }).await.expect("reads");
    assert_eq!(plain(&one), [("m0000".to_owned(), -9, bits(&data)[1].2[1..3].to_vec())]);
}

#[tokio::test]
async fn a_file_of_another_writer_is_read_too() {
    let data = grid(7, 50, 0);
    let ours = write(&data, 0).expect("writes");
    let batches: Vec<_> = ParquetRecordBatchReaderBuilder::try_new(ours.bytes)
        .expect("opens")
        .build()
        .expect("builds")
        .collect::<Result<_, _>>()
        .expect("reads");
    let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), batches[0].schema(), None).expect("opens");
    batches.iter().for_each(|b| writer.write(b).expect("writes"));
    let bytes = writer.into_inner().expect("closes");
    let entry = FileEntry { size: bytes.len() as u64, hash: None, ..ours.entry.clone() };
    let source = stored(bytes, &entry).await;
    assert_eq!(plain(&read_samples(&source).await.expect("reads")), bits(&data));
    let generic = write_batch(Table::Samples, &batches, &identity(0).written_at(99)).expect("writes");
    assert_eq!((&generic.entry.keys, generic.entry.rows), (&ours.entry.keys, 350));
    assert_eq!((generic.entry.committed_ms, generic.entry.modification_time_ms), (77, 99));
    let source = stored(generic.bytes, &generic.entry).await;
    assert_eq!(plain(&read_samples(&source).await.expect("reads")), bits(&data));
}

/// Texts without a dictionary, times in nanoseconds, no page index, rows that are not sorted: what other tools may make of a table.
#[tokio::test]
async fn other_layouts_are_read_or_refused_by_name() {
    let data = grid(6, 40, 0);
    let ours = write(&data, 0).expect("writes");
    let batch = ParquetRecordBatchReaderBuilder::try_new(ours.bytes.clone())
        .expect("opens")
        .build()
        .expect("builds")
        .next()
        .expect("one")
        .expect("reads");
    let rewrite = |batch: &arrow::array::RecordBatch| {
        let plain =
            parquet::file::properties::WriterProperties::builder().set_dictionary_enabled(false).set_offset_index_disabled(true).build();
        let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), Some(plain)).expect("opens");
        writer.write(batch).expect("writes");
        writer.into_inner().expect("closes")
    };
    let nanoseconds = arrow::datatypes::DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None);
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(f, c)| match f.name().as_str() {
        "time" => (f.name().as_str(), arrow::compute::cast(c, &nanoseconds).expect("casts")),
        "metric" => (f.name().as_str(), arrow::compute::cast(c, &arrow::datatypes::DataType::Utf8View).expect("casts")),
        name => (name, c.clone()),
    });
    let other = arrow::array::RecordBatch::try_from_iter(columns).expect("one length");
    let bytes = rewrite(&other);
    let entry = FileEntry { size: bytes.len() as u64, hash: None, ..ours.entry.clone() };
    let source = stored(bytes, &entry).await;
    assert_eq!(plain(&read_samples(&source).await.expect("reads")), bits(&data));
    let open = source.open().await.expect("opens");
    let one = read_selected(&open, &Selection { keys: &[("m0001", 84)], from_ms: 0, to_ms: 29_999 }).await.expect("reads");
    assert_eq!(plain(&one), [("m0001".to_owned(), 84, bits(&data)[4].2[..2].to_vec())]);
    let halves = [batch.slice(120, 120), batch.slice(0, 120)];
    let bytes = rewrite(&arrow::compute::concat_batches(&batch.schema(), &halves).expect("one schema"));
    let entry = FileEntry { size: bytes.len() as u64, hash: None, ..ours.entry };
    let source = stored(bytes, &entry).await;
    let open = source.open().await.expect("opens");
    for refused in [read_samples(&source).await, read_selected(&open, &Selection { keys: &[("m0001", 84)], from_ms: 0, to_ms: 1 }).await] {
        assert!(matches!(&refused, Err(StorageError::Corrupt { why, .. }) if why.contains("not sorted")), "{refused:?}");
    }
}

#[tokio::test]
async fn damage_is_always_found_before_a_whole_file_is_used() {
    let file = write(&grid(20, 60, 0), 0).expect("writes");
    for at in (0..file.bytes.len()).step_by(61) {
        let mut bad = file.bytes.to_vec();
        bad[at] ^= 4;
        let source = stored(bad, &file.entry).await;
        let read = read_samples(&source).await;
        assert!(matches!(&read, Err(StorageError::Corrupt { path, .. }) if path == "x.parquet"), "byte {at}: {read:?}");
    }
    for len in [0, 1, 8, file.bytes.len() / 2, file.bytes.len() - 1] {
        let source = stored(file.bytes.slice(..len), &file.entry).await;
        assert!(matches!(read_samples(&source).await, Err(StorageError::Corrupt { .. })), "{len} bytes");
    }
}

/// Where no hash protects (parts of a file, files of others) damage is an error or wrong numbers, but never a panic or a broken invariant.
#[tokio::test]
async fn decoding_damaged_bytes_never_panics() {
    let file = write(&grid(20, 60, 0), 0).expect("writes");
    let keys = [("m0000", -40), ("m0003", 270), ("m0006", 549)];
    let selection = Selection { keys: &keys, from_ms: 0, to_ms: 600_000 };
    let cuts = [0, 4, 100, file.bytes.len() / 2, file.bytes.len() - 9, file.bytes.len() - 1].map(|len| file.bytes[..len].to_vec());
    let flips = (0..file.bytes.len()).step_by(5).map(|at| {
        let mut bad = file.bytes.to_vec();
        bad[at] ^= 1 << (at % 8);
        bad
    });
    for bad in flips.chain(cuts) {
        let entry = FileEntry { hash: None, size: bad.len() as u64, ..file.entry.clone() };
        let source = stored(bad.clone(), &entry).await;
        let whole = SamplesRows::decode(&source, bad.into());
        let part = match source.open().await {
            Ok(open) => read_selected(&open, &selection).await,
            Err(error) => Err(error),
        };
        for rows in [whole, part].into_iter().flatten() {
            assert_eq!(rows.times.len(), rows.values.len());
            assert!(rows.series.iter().all(|s| rows.times[s.rows.clone()].is_sorted_by(|a, b| a < b)));
        }
    }
}

fn series_rows() -> Vec<SeriesRow> {
    let labels = |pairs: &[(&str, &str)]| Labels::from_pairs(pairs.iter().copied()).expect("valid");
    let row = |labels: Labels, probe: u32| SeriesRow {
        series_id: labels.series_id(probe),
        probe,
        labels,
        kind: MetricKind::Unknown,
        unit: String::new(),
        help: String::new(),
        first_seen_ms: None,
        last_seen_ms: None,
        samples: None,
    };
    vec![
        row(labels(&[("__name__", "up"), ("job", "a b"), ("instance", "h:1"), ("ü", "\u{1F600}\n\"")]), 0),
        SeriesRow {
            kind: MetricKind::GaugeHistogram,
            unit: "seconds".into(),
            help: "Häuser.".into(),
            first_seen_ms: Some(-1),
            last_seen_ms: Some(5),
            samples: Some(7),
            ..row(labels(&[("__name__", "a")]), u32::MAX)
        },
        row(labels(&[("only", "label")]), 1),
    ]
}

#[tokio::test]
async fn series_rows_come_back_sorted() {
    let rows = series_rows();
    let file = write_series(&rows, &identity(0)).expect("writes");
    assert_eq!((file.entry.rows, &file.entry.keys.metrics), (3, &Some(("".into(), "up".into()))));
    assert_eq!(file.entry.keys.times_ms, None);
    let source = stored(file.bytes.clone(), &file.entry).await;
    let read = read_series(&source).await.expect("reads");
    assert_eq!(read, [rows[2].clone(), rows[1].clone(), rows[0].clone()]);
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.bytes).expect("opens");
    assert_eq!(builder.schema().as_ref(), Table::Series.file_schema().as_ref());
    let batch = builder.build().expect("builds").next().expect("one").expect("reads");
    let text =
        |name: &str| batch.column_by_name(name).expect("there").as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(text("job"), [None, None, Some("a b".to_owned())]);
    assert_eq!(text("type"), [None, Some("gaugehistogram".to_owned()), None]);
    assert!(matches!(write_series(&[], &identity(0)), Err(StorageError::Unsorted { .. })));
}

#[tokio::test]
async fn damaged_series_files_never_panic() {
    let file = write_series(&series_rows(), &identity(0)).expect("writes");
    for at in (0..file.bytes.len()).step_by(3) {
        let mut bad = file.bytes.to_vec();
        bad[at] ^= 1 << (at % 8);
        let hashed = stored(bad.clone(), &file.entry).await;
        assert!(matches!(read_series(&hashed).await, Err(StorageError::Corrupt { .. })), "byte {at}");
        let entry = FileEntry { hash: None, ..file.entry.clone() };
        let _ = read_series(&stored(bad, &entry).await).await;
    }
}

fn any_value() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => any::<f64>(),
        2 => any::<u64>().prop_map(f64::from_bits),
        1 => Just(stale_marker()),
        1 => Just(f64::NAN),
        1 => Just(-0.0),
    ]
}

fn any_data() -> impl Strategy<Value = (i32, Data)> {
    let samples = prop::collection::btree_map(0_i64..86_400_000, any_value(), 1..40);
    let series = prop::collection::btree_map(("[a-zµ:]{0,6}", any::<i64>()), samples, 1..12);
    let dates = prop_oneof![Just(-98_615), Just(-1), Just(0), -90_000..30_000_i32];
    (dates, series).prop_map(|(date, series)| {
        let day = day_start_ms(date);
        let data = series.into_iter().map(|((m, id), s)| (m, id, s.into_iter().map(|(t, v)| (day + t, v)).collect()));
        (date, data.collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Every bit comes back, and a selection is the filter of the whole.
    #[test]
    fn whatever_is_written_is_read_back(
        (date, data) in any_data(),
        wanted in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        window in (0_i64..86_400_000, 0_i64..86_400_000),
    ) {
        let file = write(&data, date).expect("writes");
        let (from_ms, to_ms) = (day_start_ms(date) + window.0.min(window.1), day_start_ms(date) + window.0.max(window.1));
        let picks = wanted.iter().map(|i| &data[i.index(data.len())]);
        let keys: Vec<(&str, i64)> = picks.map(|(m, id, _)| (m.as_str(), *id)).collect();
        let (whole, part) = block_on(async {
            let source = stored(file.bytes.clone(), &file.entry).await;
            let open = source.open().await.expect("opens");
            (read_samples(&source).await.expect("reads"), read_selected(&open, &Selection { keys: &keys, from_ms, to_ms }).await.expect("reads"))
        });
        prop_assert_eq!(plain(&whole), bits(&data));
        let mut expected: Vec<_> = bits(&data).into_iter().filter(|(m, id, _)| keys.contains(&(m.as_str(), *id))).collect();
        expected.iter_mut().for_each(|(_, _, s)| s.retain(|(t, _)| (from_ms..=to_ms).contains(t)));
        expected.retain(|(_, _, s)| !s.is_empty());
        prop_assert_eq!(plain(&part), expected);
    }
}

/// The value of a row, from its number and some noise.
type Kind = fn(usize, u64) -> f64;

/// Series of every kind, some longer than a page: constants, counters, measurements, few values, NaNs and stale markers, wild times.
fn of_every_kind(date: i32) -> Data {
    let start = day_start_ms(date);
    let noise = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ (i as u64) << 40;
    let kinds: [(&str, Kind); 5] = [
        ("constant", |_, _| 3.5),
        ("counter", |i, noise| (i * 100) as f64 + (noise % 7) as f64),
        ("few", |_, noise| (noise % 90) as f64),
        ("holes", |i, noise| {
            if noise % 5 == 0 {
                stale_marker()
            } else if noise % 5 == 1 {
                f64::from_bits(0x7ff8_0000_0000_0000 | i as u64)
            } else {
                -0.0
            }
        }),
        ("measured", |_, noise| f64::from_bits(0x3ff0_0000_0000_0000 | noise >> 12) * 100.0),
    ];
    let mut data = Data::new();
    for (metric, value) in kinds {
        for id in 0..4_i64 {
            // The last series of each kind comes at irregular times.
            let time = |i: usize| start + i as i64 * 1_000 + if id == 3 { (noise(i) % 1_000) as i64 } else { 0 };
            data.push((metric.to_owned(), id - 2, (0..20_000).map(|i| (time(i), value(i, noise(i * 4 + id as usize)))).collect()));
        }
    }
    data
}

#[tokio::test]
async fn pages_of_a_compacted_file_have_encodings_of_their_own_and_the_same_rows() {
    let data = of_every_kind(20_000);
    let file = write_as(&data, 20_000, Effort::COMPACT).expect("writes");
    let flushed = write(&data, 20_000).expect("writes");
    assert!(file.bytes.len() < flushed.bytes.len(), "{} against {}", file.bytes.len(), flushed.bytes.len());
    let source = stored(file.bytes.clone(), &file.entry).await;
    assert_eq!(plain(&read_samples(&source).await.expect("reads")), bits(&data));
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let footer = ParquetRecordBatchReaderBuilder::try_new_with_options(file.bytes.clone(), options).expect("a footer");
    let columns = footer.metadata().row_group(0).columns();
    let used: Vec<Encoding> = columns[3].encodings().collect();
    for encoding in [Encoding::RLE_DICTIONARY, Encoding::BYTE_STREAM_SPLIT] {
        assert!(used.contains(&encoding), "{used:?}");
    }
    assert!(columns[2].statistics().is_some() && columns[3].statistics().is_none(), "none of `value`");
    let index = footer.metadata().column_index().expect("a page index");
    assert!(matches!(index[0][2], ColumnIndexMetaData::INT64(_)) && matches!(index[0][3], ColumnIndexMetaData::NONE));
    // The library's own reader, batch by batch.
    let (mut rows, mut nulls) = (0, 0);
    for batch in footer.build().expect("opens") {
        let batch = batch.expect("reads");
        let values = batch.column_by_name("value").expect("there").as_primitive::<Float64Type>().clone();
        (rows, nulls) = (rows + values.len(), nulls + values.null_count());
    }
    let stale = data.iter().flat_map(|d| &d.2).filter(|(_, v)| fletch_schemas::is_stale(*v)).count();
    assert_eq!((rows, nulls), (20 * 20_000, stale));
    // A selection reads single pages.
    let open = source.open().await.expect("opens");
    let wanted = &data[13];
    let (from, to) = (wanted.2[4_000].0, wanted.2[4_999].0);
    let found = read_selected(&open, &Selection { keys: &[(&wanted.0, wanted.1)], from_ms: from, to_ms: to }).await.expect("reads");
    assert_eq!(plain(&found), bits(&vec![(wanted.0.clone(), wanted.1, wanted.2[4_000..5_000].to_vec())]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_bits_survive_the_encodings_of_a_compaction(
        samples in proptest::collection::vec((0..86_400_000_i64, prop_oneof![any::<u64>(), 0..4_u64, Just(stale_marker().to_bits())]), 1..700),
        repeat in 1..6_usize,
    ) {
        let mut one: Vec<(i64, f64)> = samples.iter().map(|(t, v)| (*t, f64::from_bits(*v))).collect();
        one.sort_by_key(|(t, _)| *t);
        one.dedup_by_key(|(t, _)| *t);
        let data: Data = (0..repeat).map(|i| ("m".to_owned(), i as i64, one.clone())).collect();
        let file = write_as(&data, 0, Effort::COMPACT).expect("writes");
        let rows = block_on(async { read_samples(&stored(file.bytes.clone(), &file.entry).await).await }).expect("reads");
        prop_assert_eq!(plain(&rows), bits(&data));
    }
}
