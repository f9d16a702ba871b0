//! One run of a plan: load what its selectors ask for, evaluate, bring the answer into its final form.

use super::binary::SAME_LABELSET;
use super::control::Control;
use super::error::QueryError;
use super::eval::{Evaluator, Loaded, Request, Times, requests};
use super::labels::{compare, is_metadata, without_metadata};
use super::matrix::{Grid, Matrix, RowMask};
use super::plan::{Node, Plan};
use super::query::{QueryResult, QueryStats, Value};
use super::relabel::merge_same;
use super::source::{Origin, SeriesSource, Windows};
use fletch_promql::ValueType;
use fletch_schemas::{Labels, SeriesSet};
use futures::future::try_join_all;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A plan and the times to run it for.
pub(super) struct Run {
    pub(super) plan: Arc<Plan>,
    pub(super) grid: Grid,
    pub(super) times: Times,
    pub(super) started: Instant,
}

/// A run with all its samples: from here on nothing waits.
pub(super) struct Job {
    run: Run,
    control: Control,
    requests: Vec<Request>,
    loaded: Loaded,
    origin: Origin,
    /// Most series of the answer, 0 for all.
    limit: usize,
    prepared: Instant,
    selected: Instant,
}

/// What one output point costs on average, measured on the kernels.
const POINT_NS: f64 = 12.0;

/// What one sample inside a window costs.
const WINDOW_SAMPLE_NS: f64 = 0.7;

impl Job {
    /// Asks the source for everything the plan looks at.
    ///
    /// # Errors
    /// Failures of the source, limits, deadline, cancellation.
    pub(super) async fn load(source: &dyn SeriesSource, run: Run, control: Control, limit: usize) -> Result<Self, QueryError> {
        let prepared = Instant::now();
        let mut asked = Vec::with_capacity(run.plan.selectors.len());
        requests(&run.plan, &run.plan.root, run.grid, &run.times, &control, &mut asked)?;
        let loading = load(source, &run.plan, &asked, &control);
        let loaded = control.until_stopped("expression evaluation", loading).await?;
        Ok(Self { run, control, requests: asked, loaded, origin: source.origin(), limit, prepared, selected: Instant::now() })
    }

    /// How long the evaluation will take, roughly.
    pub(super) fn cost_ns(&self) -> f64 {
        self.requests.iter().map(|request| self.request_cost_ns(request)).sum()
    }

    fn request_cost_ns(&self, request: &Request) -> f64 {
        let set = self.loaded.set(request.selector);
        let steps = request.steps as f64;
        let samples = set.samples() as f64;
        let span_ms = (request.max_ms.saturating_sub(request.min_ms) as f64).max(1.0);
        let inside = samples * (request.width_ms as f64 / span_ms).clamp(0.0, 1.0);
        samples + set.len() as f64 * steps * POINT_NS + inside * steps * WINDOW_SAMPLE_NS
    }

    /// Evaluates the plan.
    ///
    /// # Errors
    /// Whatever an operator finds.
    pub(super) fn evaluate(self) -> Result<QueryResult, QueryError> {
        let Self { run, control, loaded, origin, limit, prepared, selected, .. } = self;
        let mut evaluator = Evaluator::new(&run.plan, &loaded, run.times, &control);
        let mut value = evaluate(&mut evaluator, &run.plan, run.grid, run.times.is_range)?;
        let (mut warnings, mut infos) = evaluator.notes.into_texts(&run.plan.text);
        if limit > 0 && value.truncate(limit) {
            warnings.push("results truncated due to limit".to_owned());
        }
        let stats = QueryStats {
            series: loaded.all().map(SeriesSet::len).sum(),
            samples: loaded.all().map(SeriesSet::samples).sum(),
            prepare: prepared - run.started,
            select: selected - prepared,
            evaluate: selected.elapsed(),
        };
        infos.extend(origin.infos);
        Ok(QueryResult { value, warnings, infos, stats, tiers: origin.tiers })
    }
}

/// Selects the series of all requests at once; requests that ask the same and overlap become one.
async fn load(source: &dyn SeriesSource, plan: &Plan, asked: &[Request], control: &Control) -> Result<Loaded, QueryError> {
    let windows = windows(source, plan, asked).await?;
    let mut merged: Vec<Request> = Vec::with_capacity(asked.len());
    let mut of = vec![None; plan.selectors.len()];
    for request in asked.iter().filter(|r| !windows.contains_key(&r.selector)) {
        let matchers = |r: &Request| &plan.selectors[r.selector].matchers;
        let same = merged.iter().position(|m| matchers(m) == matchers(request) && m.min_ms <= request.max_ms && request.min_ms <= m.max_ms);
        let at = same.unwrap_or(merged.len());
        if same.is_none() {
            merged.push(*request);
        }
        merged[at].min_ms = merged[at].min_ms.min(request.min_ms);
        merged[at].max_ms = merged[at].max_ms.max(request.max_ms);
        of[request.selector] = Some(at);
    }
    let select = |r: &Request| source.select(&plan.selectors[r.selector].matchers, r.min_ms, r.max_ms);
    let sets = match merged.as_slice() {
        [] => Vec::new(),
        [only] => vec![select(only).await?],
        many => try_join_all(many.iter().map(select)).await?,
    };
    let loaded = Loaded::new(sets, of, windows);
    check_loaded(plan, asked, &loaded, control)?;
    Ok(loaded)
}

/// Asks for rows that stand for samples where a range function is all that looks at a selector.
async fn windows(source: &dyn SeriesSource, plan: &Plan, asked: &[Request]) -> Result<HashMap<usize, Windows>, QueryError> {
    let asks = asked.iter().filter_map(|r| r.windows.map(|ask| (r.selector, ask)));
    let answers = asks.map(|(selector, ask)| async move {
        let answer = source.windows(&plan.selectors[selector].matchers, &ask).await?;
        Ok::<_, QueryError>(answer.map(|windows| (selector, windows)))
    });
    Ok(try_join_all(answers).await?.into_iter().flatten().collect())
}

fn check_loaded(plan: &Plan, requests: &[Request], loaded: &Loaded, control: &Control) -> Result<(), QueryError> {
    for request in requests {
        let set = loaded.set(request.selector);
        if set.len() > control.series_max {
            let matchers: Vec<String> = plan.selectors[request.selector].matchers.iter().map(ToString::to_string).collect();
            return Err(QueryError::TooManySeries {
                selector: format!("{{{}}}", matchers.join(", ")),
                found: set.len(),
                limit: control.series_max,
            });
        }
    }
    let samples: usize = loaded.all().map(SeriesSet::samples).sum();
    if samples > control.samples_max { Err(QueryError::TooManySamples { limit: control.samples_max }) } else { Ok(()) }
}

fn evaluate(evaluator: &mut Evaluator<'_>, plan: &Plan, grid: Grid, is_range: bool) -> Result<Value, QueryError> {
    let time_ms = grid.start_ms;
    match plan.returns {
        ValueType::Scalar => {
            let column = evaluator.scalar(&plan.root, grid)?;
            if !is_range {
                return Ok(Value::Scalar { time_ms, value: column.get(0) });
            }
            let mut matrix = Matrix::empty(grid);
            matrix.push(Labels::empty(), false, &column.iter(grid.len).collect::<Vec<_>>(), RowMask::Full);
            Ok(Value::Matrix(matrix))
        }
        ValueType::String => match &plan.root {
            Node::Text(value) => Ok(Value::Text { time_ms, value: value.clone() }),
            _ => Err(QueryError::Internal("a text query is not a text".to_owned())),
        },
        ValueType::Vector => {
            let matrix = drop_names(evaluator.vector(&plan.root, grid)?, plan.may_repeat_labels)?;
            Ok(if is_range { Value::Matrix(sorted(matrix)) } else { Value::Vector(matrix) })
        }
        ValueType::Matrix => {
            let (set, dropped) = evaluator.samples(&plan.root, grid)?;
            sorted_samples(set, &dropped).map(Value::Samples)
        }
    }
}

/// Removes the names of the rows that lose them, and makes rows that are the same then one row.
fn drop_names(mut matrix: Matrix, may_repeat_labels: bool) -> Result<Matrix, QueryError> {
    let mut dropped = false;
    for row in 0..matrix.rows() {
        if matrix.drop_name(row) && matrix.labels(row).iter().any(|(name, _)| is_metadata(name)) {
            let bare = without_metadata(matrix.labels(row));
            matrix.all_labels_mut()[row] = bare;
            dropped = true;
        }
    }
    if dropped || may_repeat_labels { merge_same(matrix) } else { Ok(matrix) }
}

/// Rows ordered by their labels.
fn sorted(matrix: Matrix) -> Matrix {
    let mut order: Vec<usize> = (0..matrix.rows()).collect();
    order.sort_by(|a, b| compare(matrix.labels(*a), matrix.labels(*b)));
    if order.is_sorted() { matrix } else { matrix.reordered(&order) }
}

fn sorted_samples(mut set: SeriesSet, dropped: &[bool]) -> Result<SeriesSet, QueryError> {
    for (labels, dropped) in set.labels.iter_mut().zip(dropped) {
        if *dropped {
            *labels = without_metadata(labels);
        }
    }
    let mut order: Vec<usize> = (0..set.len()).collect();
    order.sort_by(|a, b| compare(&set.labels[*a], &set.labels[*b]));
    if order.windows(2).any(|pair| set.labels[pair[0]] == set.labels[pair[1]]) {
        return Err(QueryError::execution(SAME_LABELSET));
    }
    set.labels = order.iter().map(|i| set.labels[*i].clone()).collect();
    set.slices = order.iter().map(|i| set.slices[*i]).collect();
    Ok(set)
}
