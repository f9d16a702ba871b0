//! Whole queries: scripts under `tests/cases/promql`, and what scripts cannot say (limits, deadlines, shapes of results).

mod memory;
mod runner;
mod script;

use super::{
    Engine, EngineSettings, ErrorKind, InstantQuery, QueryError, QueryOptions, QueryResult, RangeQuery, SeriesSource, Value, json,
};
use async_trait::async_trait;
use fletch_common::Limits;
use fletch_schemas::{Labels, Matcher, SeriesSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

fn scripts(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("a readable entry").path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "test"));
    files.sort();
    files
}

/// Failures and number of cases of one file.
fn run_file(file: &Path) -> (Vec<String>, Vec<usize>) {
    let text = std::fs::read_to_string(file).expect("a readable script");
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let outcomes = match runner::run(&text) {
        Ok(outcomes) => outcomes,
        Err(error) => return (vec![format!("{name}: {error}")], Vec::new()),
    };
    let lines = outcomes.iter().map(|o| o.line).collect();
    let failures = outcomes.into_iter().filter_map(|o| {
        let failure = o.failure?;
        Some(format!("{name}:{}: {}\n    {failure}", o.line, o.query))
    });
    (failures.collect(), lines)
}

#[test]
fn every_case_of_our_scripts_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cases/promql");
    let results: Vec<_> = scripts(&folder).iter().map(|f| run_file(f)).collect();
    let failures: Vec<String> = results.iter().flat_map(|r| r.0.clone()).collect();
    let cases: usize = results.iter().map(|r| r.1.len()).sum();
    assert!(failures.is_empty(), "{} of {cases} cases failed:\n{}", failures.len(), failures.join("\n"));
    assert!(cases >= 100, "only {cases} cases were found");
}

/// Runs a further folder of scripts, named by a variable, and prints what fails: for scripts that are not part of this repository.
#[test]
fn report_on_other_scripts() {
    let Ok(folder) = std::env::var("FLETCH_PROMQL_CASES") else { return };
    for file in scripts(Path::new(&folder)) {
        let (failures, lines) = run_file(&file);
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        lines.iter().for_each(|line| println!("CASE {name}:{line}"));
        failures.iter().for_each(|failure| println!("FAIL {failure}"));
    }
}

/// A source of `series` series `m{i="…"}` with a sample per second from 0 to `samples - 1` seconds, value = second.
fn ramp(series: usize, samples: i64) -> memory::MemorySource {
    let mut source = memory::MemorySource::default();
    for i in 0..series {
        let labels = Labels::from_pairs([("__name__", "m".to_owned()), ("i", i.to_string())]).expect("valid");
        (0..samples).for_each(|s| source.add(&labels, s * 1000, s as f64));
    }
    source
}

async fn instant(engine: &Engine, source: &dyn SeriesSource, text: &str, options: QueryOptions) -> Result<QueryResult, QueryError> {
    engine.instant(source, InstantQuery { text, at_ms: 50_000, options }).await
}

fn limited(change: impl FnOnce(&mut Limits)) -> Engine {
    let mut settings = EngineSettings::default();
    change(&mut settings.limits);
    Engine::new(settings)
}

#[tokio::test]
async fn every_limit_is_named_in_its_error() {
    let source = ramp(3, 100);
    let run = async |engine: Engine, text: &str| instant(&engine, &source, text, QueryOptions::default()).await.expect_err(text);
    let cases = [
        (run(limited(|l| l.query_samples_max = 30), "m[20s]").await, ErrorKind::Execution, "`query_samples_max` = 30"),
        (run(limited(|l| l.query_samples_max = 30), "sum_over_time(vector(1)[1y:1ms])").await, ErrorKind::Execution, "query_samples_max"),
        (run(limited(|l| l.query_samples_max = 30), "sum_over_time(m[20s:1s])").await, ErrorKind::Execution, "query_samples_max"),
        (run(limited(|l| l.query_series_max = 2), "m").await, ErrorKind::Execution, "matches 3 series, more than `query_series_max` = 2"),
        (run(limited(|l| l.promql_bytes_max = 5), "m + m + m").await, ErrorKind::BadData, ""),
        (run(limited(|l| l.promql_depth_max = 3), "((((m))))").await, ErrorKind::BadData, ""),
        (run(limited(|l| l.regex_bytes_max = 2), "m{i=~\"abc\"}").await, ErrorKind::BadData, "`regex_bytes_max` is 2"),
    ];
    for (error, kind, text) in cases {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn ranges_are_checked() {
    let (engine, source) = (limited(|l| l.query_points_max = 10), ramp(1, 100));
    let run = async |text, start_ms, end_ms, step_ms| {
        engine.range(&source, RangeQuery { text, start_ms, end_ms, step_ms, options: QueryOptions::default() }).await
    };
    let cases = [
        (run("m", 0, 11_000, 1_000).await, "exceeded maximum resolution of 10 points per timeseries. Try decreasing the query resolution"),
        (run("m", 5, 4, 1_000).await, "end timestamp must not be before start time"),
        (run("m", 0, 10, 0).await, "zero or negative query resolution step widths are not accepted"),
        (run("m[5m]", 0, 10, 1).await, "invalid expression type \"range vector\" for range query, must be Scalar or instant Vector"),
        (run("m[", 0, 10, 1).await, "parse error"),
    ];
    for (result, text) in cases {
        let error = result.expect_err(text);
        assert_eq!(error.kind(), ErrorKind::BadData);
        assert!(error.to_string().contains(text), "{error}");
    }
    assert!(run("m", 0, 10_000, 1_000).await.is_ok(), "as many steps as the limit says, and the first");
}

#[tokio::test]
async fn queries_stop_when_they_have_to() {
    let (engine, source) = (Engine::new(EngineSettings::default()), ramp(1, 10));
    let late = QueryOptions { deadline: Some(Instant::now()), ..QueryOptions::default() };
    let error = instant(&engine, &source, "m", late).await.expect_err("its time is over");
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Timeout, "query timed out in expression evaluation".to_owned()));
    let cancel = CancellationToken::new();
    cancel.cancel();
    let options = QueryOptions { cancel: Some(cancel), ..QueryOptions::default() };
    let error = instant(&engine, &source, "m", options).await.expect_err("it was cancelled");
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Canceled, "query was canceled in expression evaluation".to_owned()));
}

/// A source that never answers.
struct Silent;

#[async_trait]
impl SeriesSource for Silent {
    async fn select(&self, _: &[Matcher], _: i64, _: i64) -> Result<SeriesSet, QueryError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_silent_source_does_not_hold_a_query() {
    let engine = Engine::new(EngineSettings::default());
    let soon = Instant::now() + Duration::from_millis(5);
    let options = QueryOptions { deadline: Some(soon), ..QueryOptions::default() };
    let error = instant(&engine, &Silent, "m", options).await.expect_err("nobody answers");
    assert_eq!(error.kind(), ErrorKind::Timeout);
}

/// A source that fails, and counts what it is asked.
#[derive(Default)]
struct Recorder(parking_lot::Mutex<Vec<(String, i64, i64)>>);

#[async_trait]
impl SeriesSource for Recorder {
    async fn select(&self, matchers: &[Matcher], min_ms: i64, max_ms: i64) -> Result<SeriesSet, QueryError> {
        let text: Vec<String> = matchers.iter().map(ToString::to_string).collect();
        self.0.lock().push((text.join(","), min_ms, max_ms));
        Ok(SeriesSet::default())
    }
}

#[tokio::test]
async fn selectors_ask_for_what_they_need_and_for_the_same_only_once() {
    let engine = Engine::new(EngineSettings::default());
    let m = "__name__=\"m\"".to_owned();
    let cases = [
        ("m", vec![(m.clone(), -249_999, 50_000)]),
        ("m + m", vec![(m.clone(), -249_999, 50_000)]),
        ("rate(m[1m]) / m", vec![(m.clone(), -249_999, 50_000)]),
        ("m - m offset 1d", vec![(m.clone(), -249_999, 50_000), (m.clone(), -86_649_999, -86_350_000)]),
        ("rate(m[1m])", vec![(m.clone(), -9_999, 50_000)]),
        ("rate(m[1m] @ 10)", vec![(m.clone(), -49_999, 10_000)]),
        ("rate(m[1m] smoothed)", vec![(m.clone(), -309_999, 350_000)]),
        ("max_over_time(rate(m[10s])[1m:10s])", vec![(m.clone(), -9_999, 50_000)]),
        ("max_over_time(m[1ms])", vec![(m.clone(), 50_000, 50_000)]),
        ("1 + 1", vec![]),
    ];
    for (text, want) in cases {
        let source = Recorder::default();
        instant(&engine, &source, text, QueryOptions::default()).await.expect(text);
        assert_eq!(*source.0.lock(), want, "{text}");
    }
}

#[tokio::test]
async fn a_query_may_look_back_further() {
    let (engine, source) = (Engine::new(EngineSettings::default()), ramp(1, 1));
    let rows = async |lookback_ms| {
        let options = QueryOptions { lookback_ms, ..QueryOptions::default() };
        match instant(&engine, &source, "m", options).await.expect("it runs").value {
            Value::Vector(matrix) => matrix.rows(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((rows(None).await, rows(Some(50_000)).await, rows(Some(50_001)).await), (1, 0, 1));
}

#[tokio::test]
async fn results_and_costs_are_written_down() {
    let (engine, source) = (Engine::new(EngineSettings::default()), ramp(2, 100));
    let query = RangeQuery { text: "rate(m[10s])", start_ms: 10_000, end_ms: 20_000, step_ms: 5_000, options: QueryOptions::default() };
    for _ in 0..2 {
        let result = engine.range(&source, query.clone()).await.expect("it runs");
        assert_eq!((result.stats.series, result.stats.samples), (2, 40));
        assert_eq!(result.infos.len(), 1, "{:?}", result.infos);
        let mut out = Vec::new();
        json::write_data(&mut out, &result);
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            r#"{"resultType":"matrix","result":[{"metric":{"i":"0"},"values":[[10,"1"],[15,"1"],[20,"1"]]},{"metric":{"i":"1"},"values":[[10,"1"],[15,"1"],[20,"1"]]}]}"#
        );
    }
}

#[tokio::test]
async fn deep_expressions_fit_the_stack() {
    let (engine, source) = (Engine::new(EngineSettings::default()), ramp(1, 100));
    let depth = Limits::default().promql_depth_max - 1;
    let signs = format!("{}m", "-".repeat(depth));
    let calls = format!("{}m{}", "abs(".repeat(depth), ")".repeat(depth));
    let sums = format!("{}m{}", "sum(".repeat(depth), ")".repeat(depth));
    for text in [signs, calls, sums] {
        let ran = instant(&engine, &source, &text, QueryOptions::default()).await;
        assert!(ran.is_ok(), "{ran:?}");
    }
}

#[tokio::test]
async fn long_evaluations_leave_the_thread_and_answer_the_same() {
    let (engine, source) = (Engine::new(EngineSettings::default()), ramp(300, 100));
    let query = |text| RangeQuery { text, start_ms: 0, end_ms: 90_000, step_ms: 100, options: QueryOptions::default() };
    let here = std::thread::current().id();
    let (thread, rows) = engine
        .range_with(&source, query("sum by (i) (rate(m[30s]))"), |result| {
            let Value::Matrix(matrix) = result.value else { panic!("a matrix") };
            (std::thread::current().id(), matrix.iter().map(|row| row.values.iter().sum::<f64>()).collect::<Vec<_>>())
        })
        .await
        .expect("it runs");
    assert_ne!(thread, here);
    assert!(rows.len() == 300 && rows.iter().all(|sum| *sum == rows[0]), "{rows:?}");
    let thread = engine.range_with(&source, query("vector(1)"), |_| std::thread::current().id()).await.expect("it runs");
    assert_eq!(thread, here);
}

#[tokio::test]
async fn answers_are_cut_at_their_limit() {
    let (engine, source) = (Engine::new(EngineSettings::default()), ramp(3, 100));
    for (text, limit, rows, warned) in
        [("m", 2, 2, true), ("m", 3, 3, false), ("m", 0, 3, false), ("m[5s]", 1, 1, true), ("1", 1, 1, false)]
    {
        let result = instant(&engine, &source, text, QueryOptions { limit, ..QueryOptions::default() }).await.expect("it runs");
        let found = match &result.value {
            Value::Vector(matrix) => matrix.rows(),
            Value::Samples(set) => set.len(),
            _ => 1,
        };
        assert_eq!((found, !result.warnings.is_empty()), (rows, warned), "{text} {limit} {:?}", result.warnings);
    }
}

#[tokio::test]
async fn queries_wait_in_line_until_their_deadline() {
    let engine = limited(|l| l.queries_concurrent_max = 1);
    let source = ramp(1, 100);
    let first = instant(&engine, &Silent, "m", QueryOptions::default());
    let soon = || QueryOptions { deadline: Some(Instant::now() + Duration::from_millis(5)), ..QueryOptions::default() };
    tokio::select! {
        biased;
        _ = first => panic!("nobody answers the first query"),
        second = instant(&engine, &source, "m", soon()) => {
            assert_eq!(second.expect_err("it waits").to_string(), "query timed out in query queue");
        }
    }
    // The first query is dropped now, and its place is free.
    assert!(instant(&engine, &source, "m", soon()).await.is_ok());
}

#[tokio::test]
async fn absurd_times_are_no_trouble() {
    let (engine, source) = (Engine::new(EngineSettings::default()), ramp(1, 100));
    let texts = ["m", "rate(m[5m])", "predict_linear(m[5m] @ 50, 1)", "sum_over_time(m[5m:1m])", "year()", "m offset 200y", "range()"];
    for text in texts {
        for at_ms in [i64::MIN, i64::MAX, -9_000_000_000_000_000_000, 9_000_000_000_000_000_000] {
            let query = InstantQuery { text, at_ms, options: QueryOptions::default() };
            let _ = engine.instant(&source, query).await;
        }
        let (start_ms, end_ms, step_ms) = (i64::MIN, i64::MAX, i64::MAX);
        let _ = engine.range(&source, RangeQuery { text, start_ms, end_ms, step_ms, options: QueryOptions::default() }).await;
    }
}
