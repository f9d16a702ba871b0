//! What queries get, beside samples by selector (which the engine's tests read all the time).

use crate::StorageError;
use crate::engine::tests::{Content, DAY, LIMITS, NOON, Row, World, content, labels, settings, tenant, truth};
use crate::{ReadView, SelectLimits};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Date32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use fletch_schemas::tables::Table;
use fletch_schemas::{MatchOp, Matcher, stale_marker};

fn hot() -> Vec<Row> {
    vec![
        ("a", "x", NOON, 1.0),
        ("a", "x", NOON + 1, stale_marker()),
        ("a", "zzz/x", NOON, 3.0),
        ("a", "aaa/x", NOON, 4.0),
        ("a", "x", NOON + DAY, 5.0),
    ]
}

async fn view(rows: &[Row], flushed: &[Row]) -> (crate::engine::tests::Process, ReadView) {
    let process = World::new().start(settings()).await;
    if !flushed.is_empty() {
        process.push(flushed);
        process.storage.flush().await.expect("flushes");
    }
    // Two deliveries: the batches must merge several runs.
    let (first, second) = rows.split_at(rows.len() / 2);
    process.push(first);
    process.push(second);
    let view = process.storage.view(&tenant("a"));
    (process, view)
}

fn keys(batch: &RecordBatch) -> Vec<(String, i64, i64, Option<f64>, i32)> {
    let column = |name: &str| batch.column_by_name(name).expect("a column of the schema");
    let metric = column("metric").as_string::<i32>();
    let id = column("series_id").as_primitive::<Int64Type>();
    let time = column("time").as_primitive::<TimestampMicrosecondType>();
    let value = column("value").as_primitive::<Float64Type>();
    let date = column("date").as_primitive::<Date32Type>();
    let row = |i| (metric.value(i).to_owned(), id.value(i), time.value(i), value.is_valid(i).then(|| value.value(i)), date.value(i));
    (0..batch.num_rows()).map(row).collect()
}

#[tokio::test]
async fn unflushed_rows_come_sorted_once_and_without_what_files_hold() {
    let flushed = [("a", "y", NOON, 9.0), ("b", "y", NOON, 9.0)];
    let (_process, view) = view(&hot(), &flushed).await;
    let batches = view.unflushed_batches(None, i64::MIN, i64::MAX).expect("batches");
    let rows: Vec<_> = batches.iter().map(keys).collect();
    assert_eq!(batches.len(), 2, "one per date");
    assert_eq!(batches[0].schema(), super::unflushed_schema());
    let id = |host| labels(host).series_id(0);
    let row = |metric: &str, host, time: i64, value, date| (metric.to_owned(), id(host), time * 1_000, value, date);
    assert_eq!(
        rows[0],
        [
            row("aaa", "aaa/x", NOON, Some(4.0), 1_000),
            row("m", "x", NOON, Some(1.0), 1_000),
            row("m", "x", NOON + 1, None, 1_000),
            row("zzz", "zzz/x", NOON, Some(3.0), 1_000),
        ]
    );
    assert_eq!(rows[1], [row("m", "x", NOON + DAY, Some(5.0), 1_001)]);
    let one = view.unflushed_batches(Some("m"), NOON + 1, NOON + 2).expect("batches");
    assert_eq!(one.iter().flat_map(keys).collect::<Vec<_>>(), [row("m", "x", NOON + 1, None, 1_000)]);
    assert!(view.unflushed_batches(Some("nope"), i64::MIN, i64::MAX).expect("batches").is_empty());
    assert_eq!((view.files(Table::Samples).len(), view.version(Table::Samples)), (1, 1));
}

#[tokio::test]
async fn rows_of_series_are_stored_rows_under_live_values() {
    let flushed = [("a", "x", NOON + 5, 9.0), ("a", "old", NOON - DAY, 9.0)];
    let (_process, view) = view(&hot(), &flushed).await;
    let batches = view.series_batches(None, 1_000, 1_001).await.expect("batches");
    assert_eq!(batches.len(), 2);
    assert_eq!(batches[0].schema(), Table::Series.table_schema());
    let first = &batches[0];
    let text = |name: &str| {
        first.column_by_name(name).expect("a column").as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(text("metric"), ["aaa", "m", "zzz"].map(|m| Some(m.to_owned())));
    assert_eq!(text("tenant"), vec![Some("a".to_owned()); 3]);
    let times = |name: &str| first.column_by_name(name).expect("a column").as_primitive::<TimestampMicrosecondType>().value(1) / 1_000;
    assert_eq!((times("first_seen"), times("last_seen")), (NOON, NOON + 5));
    assert_eq!(first.column_by_name("samples").expect("a column").as_primitive::<Int64Type>().values(), &[1, 3, 1]);
    let one = view.series_batches(Some("m"), i32::MIN, i32::MAX).await.expect("batches");
    assert_eq!(one.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [1, 1, 1]);
}

#[tokio::test]
async fn label_questions_are_answered_for_the_days_asked() {
    let flushed = [("a", "old", NOON - DAY, 9.0)];
    let (_process, view) = view(&hot(), &flushed).await;
    let all = (i64::MIN, i64::MAX);
    assert_eq!(view.label_names(&[], all.0, all.1).await.expect("names"), ["__name__", "host"]);
    assert_eq!(view.label_values("host", &[], all.0, all.1).await.expect("values"), ["old", "x"]);
    assert_eq!(view.label_values("host", &[], NOON, NOON + DAY).await.expect("values"), ["x"]);
    let sets = [vec![Matcher::equal("__name__", "aaa")], vec![Matcher::new("__name__", MatchOp::Regex, "z.*")]];
    assert_eq!(view.series(&sets, NOON, NOON).await.expect("series"), [labels("aaa/x"), labels("zzz/x")]);
    assert_eq!(view.label_values("__name__", &sets, NOON, NOON).await.expect("values"), ["aaa", "zzz"]);
    assert!(view.series(&[], NOON + 1, NOON).await.expect("empty range").is_empty());
    assert!(view.label_values("nope", &[], all.0, all.1).await.expect("values").is_empty());
}

#[tokio::test]
async fn limits_are_exact_and_named() {
    let (_process, view) = view(&hot(), &[]).await;
    let select = |series_max, samples_max| {
        let (view, limits) = (view.clone(), SelectLimits { series_max, samples_max });
        async move { view.select(&[], i64::MIN, i64::MAX, &limits).await }
    };
    assert_eq!(select(3, 5).await.expect("exactly at the limit").samples(), 5);
    for (series, samples, name) in [(2, 5, "query_series_max"), (3, 4, "query_samples_max")] {
        match select(series, samples).await {
            Err(StorageError::Limit(text)) => assert!(text.contains(name), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    let bad = view.select(&[Matcher::new("host", MatchOp::Regex, "(")], 0, 1, &LIMITS).await;
    assert!(matches!(bad, Err(StorageError::Regex { .. })));
}

#[tokio::test]
async fn ranges_include_both_ends_and_uncopied_slices_point_into_runs() {
    let rows: Vec<Row> = (0..10).flat_map(|i| [("a", "x", NOON + i, 1.0), ("a", "y", NOON + i, 2.0)]).collect();
    let (process, view) = view(&rows, &[]).await;
    let within = |from: i64, to: i64| rows.iter().copied().filter(move |r| (from..=to).contains(&r.2)).collect::<Vec<_>>();
    for (from, to) in [(NOON, NOON + 9), (NOON + 2, NOON + 7), (NOON + 5, NOON + 5), (NOON - 5, NOON - 1)] {
        let set = view.select(&[], from, to, &LIMITS).await.expect("selects");
        assert_eq!(content(&set), truth(&within(from, to), "a"), "{from}..={to}");
    }
    process.storage.flush().await.expect("flushes");
    let set = process.storage.view(&tenant("a")).select(&[], NOON + 1, NOON + 8, &LIMITS).await.expect("selects");
    assert_eq!(set.columns.len(), 1, "one run: nothing is copied");
    assert_eq!(set.slices[0].time_start, set.slices[1].time_start, "C2: equal times are shared");
    assert_eq!(content(&set), truth(&within(NOON + 1, NOON + 8), "a"));
    assert_eq!(content(&view.select(&[], NOON, NOON, &LIMITS).await.expect("selects")).len(), 2);
    let nothing: Content = content(&view.select(&[], NOON, NOON - 1, &LIMITS).await.expect("an empty range"));
    assert!(nothing.is_empty());
}

#[tokio::test]
async fn head_stats_count_series_runs_and_times_of_runs_and_files() {
    let rows = [("a", "x", NOON, 1.0), ("a", "y", NOON + 5, 2.0), ("a", "other/x", NOON + DAY, 3.0), ("b", "x", 0, 4.0)];
    let (process, hot) = view(&rows, &[]).await;
    let stats = hot.head_stats(10);
    assert_eq!((stats.cardinality.series, stats.cardinality.label_pairs, stats.runs), (3, 4, 2));
    assert_eq!(stats.times_ms, Some((NOON, NOON + DAY)));
    assert_eq!(stats.cardinality.series_by_metric, [("m".to_owned(), 2), ("other".to_owned(), 1)]);
    let batch = hot.cardinality_batch();
    assert_eq!(batch.num_rows(), 2 + 2 + 4, "metrics, labels, pairs");
    let empty = process.storage.view(&tenant("nobody")).head_stats(10);
    assert_eq!((empty.cardinality.series, empty.runs, empty.times_ms), (0, 0, None));
    assert_eq!(process.storage.active_cardinality(&tenant("nobody"), NOON, 10), None);
    let mut pairs = Vec::new();
    let series = process.storage.each_active_pair(&tenant("a"), NOON, |name, value, n| pairs.push(format!("{name}={value} {n}")));
    assert_eq!((series, pairs.as_slice()), (2, &["__name__=m 2".to_owned(), "host=x 1".to_owned(), "host=y 1".to_owned()][..]));
}
