//! Runs scripts against the engine and judges the answers as Prometheus' own runner does.

use super::super::{Engine, EngineSettings, InstantQuery, Matrix, QueryOptions, QueryResult, RangeQuery, Value, compare_labels};
use super::memory::MemorySource;
use super::script::{Case, Command, Message, parse};
use fletch_schemas::Labels;

/// Outcome of one case.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) line: usize,
    pub(crate) query: String,
    pub(crate) failure: Option<String>,
}

/// Runs every case of a script.
pub(crate) fn run(script: &str) -> Result<Vec<Outcome>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|e| e.to_string())?;
    runtime.block_on(run_commands(parse(script)?))
}

async fn run_commands(commands: Vec<Command>) -> Result<Vec<Outcome>, String> {
    let engine = Engine::new(EngineSettings::default());
    let mut source = MemorySource::default();
    let mut outcomes = Vec::new();
    for command in commands {
        match command {
            Command::Clear => source = MemorySource::default(),
            Command::Load(series) => {
                for one in series {
                    one.samples.iter().for_each(|(t, v)| source.add(&one.labels, *t, *v));
                }
            }
            Command::Eval(case) => {
                let failure = judge(&engine, &source, &case).await.err();
                outcomes.push(Outcome { line: case.line, query: case.query.clone(), failure });
            }
        }
    }
    Ok(outcomes)
}

async fn judge(engine: &Engine, source: &MemorySource, case: &Case) -> Result<(), String> {
    if case.histograms {
        return Err("native histograms are not there yet".to_owned());
    }
    let result = if case.step_ms == 0 {
        let query = InstantQuery { text: &case.query, at_ms: case.start_ms, options: QueryOptions::default() };
        engine.instant(source, query).await
    } else {
        let (start_ms, end_ms, step_ms) = (case.start_ms, case.end_ms, case.step_ms);
        engine.range(source, RangeQuery { text: &case.query, start_ms, end_ms, step_ms, options: QueryOptions::default() }).await
    };
    let result = match (result, &case.fail) {
        (Err(error), Some(want)) if want.matches(&error.to_string()) => return Ok(()),
        (Err(error), Some(want)) => return Err(format!("failed with `{error}`, expected {want:?}")),
        (Err(error), None) => return Err(format!("failed with `{error}`")),
        (Ok(result), Some(_)) => return Err(format!("expected a failure, got {:?}", result.value)),
        (Ok(result), None) => result,
    };
    check_annotations("warning", &result.warnings, &case.warn, case.no_warn)?;
    check_annotations("info", &result.infos, &case.info, case.no_info)?;
    check_value(case, &result)?;
    check_as_range(engine, source, case).await
}

fn check_annotations(kind: &str, got: &[String], wanted: &[Message], none: bool) -> Result<(), String> {
    if none && !got.is_empty() {
        return Err(format!("expected no {kind}, got {got:?}"));
    }
    for want in wanted {
        if !got.iter().any(|text| want.matches(text)) {
            return Err(format!("no {kind} matches {want:?}: {got:?}"));
        }
    }
    match got.iter().find(|text| !wanted.is_empty() && !wanted.iter().any(|w| w.matches(text))) {
        Some(text) => Err(format!("unexpected {kind} `{text}`")),
        None => Ok(()),
    }
}

/// Rows as labels and points.
type Rows = Vec<(Labels, Vec<(i64, f64)>)>;

fn rows_of(matrix: &Matrix) -> Rows {
    let points = |row: usize| {
        let mut points = Vec::new();
        matrix.mask(row).for_each(matrix.steps(), |s| points.push((matrix.grid.time(s), matrix.values(row)[s])));
        points
    };
    (0..matrix.rows()).map(|row| (matrix.labels(row).clone(), points(row))).collect()
}

fn check_value(case: &Case, result: &QueryResult) -> Result<(), String> {
    match (&result.value, case.scalar, &case.text) {
        (Value::Scalar { value, .. }, Some(want), _) if almost_equal(*value, want) => Ok(()),
        (Value::Scalar { value, .. }, want, _) => Err(format!("scalar {value}, expected {want:?}")),
        (Value::Text { value, .. }, _, Some(want)) if value == want => Ok(()),
        (Value::Text { value, .. }, _, want) => Err(format!("text {value:?}, expected {want:?}")),
        (_, Some(want), _) => Err(format!("expected the scalar {want}, got {:?}", result.value)),
        (_, _, Some(want)) => Err(format!("expected the text {want:?}, got {:?}", result.value)),
        (Value::Vector(matrix), ..) => check_rows(&rows_of(matrix), &expected(case, case.start_ms, 0), case.ordered),
        (Value::Matrix(matrix), ..) => {
            if !matrix.all_labels().is_sorted_by(|a, b| compare_labels(a, b).is_lt()) {
                return Err("rows are not sorted by labels".to_owned());
            }
            check_rows(&rows_of(matrix), &expected(case, case.start_ms, case.step_ms), false)
        }
        (Value::Samples(set), ..) => {
            let (start, _, step) = case.range_vector.ok_or("did not expect a range vector")?;
            let points = |i: usize| set.times(i).iter().copied().zip(set.values(i).iter().copied()).collect();
            let rows: Rows = (0..set.len()).map(|i| (set.labels[i].clone(), points(i))).collect();
            check_rows(&rows, &expected(case, start, step), false)
        }
    }
}

fn expected(case: &Case, start_ms: i64, step_ms: i64) -> Rows {
    let points =
        |values: &[Option<f64>]| values.iter().enumerate().filter_map(|(i, v)| v.map(|v| (start_ms + i as i64 * step_ms, v))).collect();
    case.series.iter().map(|(labels, values)| (labels.clone(), points(values))).collect()
}

fn check_rows(got: &Rows, want: &Rows, ordered: bool) -> Result<(), String> {
    for (at, (labels, points)) in got.iter().enumerate() {
        let Some(position) = want.iter().rposition(|(l, _)| l == labels) else {
            return Err(format!("unexpected row {labels} {points:?}"));
        };
        if ordered && position != at {
            return Err(format!("row {labels} is at {at}, expected at {position}"));
        }
        let expected = &want[position].1;
        let same = expected.len() == points.len() && expected.iter().zip(points).all(|(a, b)| a.0 == b.0 && almost_equal(a.1, b.1));
        if !same {
            return Err(format!("row {labels} is {points:?}, expected {expected:?}"));
        }
    }
    match want.iter().find(|(labels, _)| !got.iter().any(|(l, _)| l == labels)) {
        Some((labels, _)) => Err(format!("row {labels} is missing, got {got:?}")),
        None if got.iter().enumerate().any(|(i, row)| got[..i].iter().any(|other| other.0 == row.0)) => {
            Err(format!("a row comes twice: {got:?}"))
        }
        None => Ok(()),
    }
}

/// An instant query again, as the middle step of a range query.
async fn check_as_range(engine: &Engine, source: &MemorySource, case: &Case) -> Result<(), String> {
    const STEP_MS: i64 = 60_000;
    if case.step_ms != 0 || case.ordered || case.text.is_some() || case.range_vector.is_some() {
        return Ok(());
    }
    // These say something else in a range query.
    if ["start()", "end()", "range()", "step()"].iter().any(|f| case.query.contains(f)) {
        return Ok(());
    }
    let at = case.start_ms;
    let (start_ms, end_ms) = (at - STEP_MS, at + STEP_MS);
    let query = RangeQuery { text: &case.query, start_ms, end_ms, step_ms: STEP_MS, options: QueryOptions::default() };
    let result = engine.range(source, query).await.map_err(|e| format!("as a range query: failed with `{e}`"))?;
    let Value::Matrix(matrix) = &result.value else { return Err("a range query has to return a matrix".to_owned()) };
    let mut rows = rows_of(matrix);
    rows.iter_mut().for_each(|(_, points)| points.retain(|p| p.0 == at));
    rows.retain(|(_, points)| !points.is_empty());
    let want = match case.scalar {
        Some(value) => vec![(Labels::empty(), vec![(at, value)])],
        None => expected(case, at, 0),
    };
    check_rows(&rows, &want, false).map_err(|e| format!("as a range query: {e}"))
}

/// Relative difference that answers may have.
const EPSILON: f64 = 1e-6;

fn almost_equal(a: f64, b: f64) -> bool {
    if a == b || (a.is_nan() && b.is_nan()) {
        return true;
    }
    let sum = a.abs() + b.abs();
    let diff = (a - b).abs();
    if a == 0.0 || b == 0.0 || sum < f64::MIN_POSITIVE {
        return diff < EPSILON * f64::MIN_POSITIVE;
    }
    diff / sum.min(f64::MAX) < EPSILON
}
