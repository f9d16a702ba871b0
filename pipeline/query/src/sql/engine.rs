//! Runs statements: on threads of their own with a big stack, a bounded number at a time, each under a deadline.
//!
//! ```text
//!  caller (any runtime)              sql threads, 64 MiB of stack each
//!  execute ── permit ── spawn ─────▶ guard, parse, plan ──▶ schema ──▶ caller gets a SqlStream
//!  poll ◀─────── channel of 2 ◀───── batch, batch, …                  (the deadline is kept here, whatever the plan does)
//! ```
//!
//! # Invariants
//! - A statement that is dropped, ends, fails or is late is aborted; its permit and its memory come back.
//! - Statements never run on the caller's threads: a plan that does not yield cannot stop the server from answering.
//!
//! # When it fails
//! Errors before the first batch are the result of [`SqlEngine::execute`]'s stream, see [`SqlStream`]; a panic in a plan is an internal error of
//! that statement alone.

use super::catalog::{CATALOG, METRICS, PUBLIC, catalog_of, tables_of};
use super::error::{SqlError, SqlErrorKind};
use super::functions::{Functions, PromqlFunction, SeriesFunction};
use super::scan::cardinality::CARDINALITY;
use super::scan::metric::MetricTable;
use super::types::{WireTypes, to_wire, wire_schema};
use super::{guard, session};
use crate::engine::Engine;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use chrono::DateTime;
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::sql::parser::Statement;
use fletch_common::{Limits, SharedClock};
use fletch_schemas::METRIC_NAME;
use fletch_storage::tiers::{Tier, TierSnapshot, Tiers};
use fletch_storage::view::cardinality_schema;
use fletch_storage::{ReadView, SelectLimits};
use futures::StreamExt;
use futures::stream::{BoxStream, unfold};
use object_store::ObjectStore;
use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

/// Stack of a thread that parses and plans: 5,000 chained terms survive it, the guards let far fewer through.
const STACK_BYTES: usize = 64 << 20;
/// Batches between the plan and the caller.
const BATCHES_AHEAD: usize = 2;
/// Threads for files: local file systems are read on blocking threads.
const BLOCKING_THREADS_MAX: usize = 64;

/// What a deployment chooses.
#[derive(Debug, Clone)]
pub struct SqlSettings {
    /// Limits of statements and answers.
    pub limits: Limits,
    /// Threads, and partitions of a plan.
    pub threads: usize,
    /// Memory of all statements together, in bytes, as far as operators account for it.
    pub memory_bytes: usize,
    /// Where sorts and aggregations spill; `None`: they fail instead.
    pub spill_dir: Option<PathBuf>,
    /// Most bytes in `spill_dir`.
    pub spill_bytes_max: u64,
}

impl Default for SqlSettings {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        Self { limits: Limits::default(), threads, memory_bytes: 1 << 30, spill_dir: None, spill_bytes_max: 8 << 30 }
    }
}

/// Values of a statement's parameters.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Params {
    /// The statement has none, or none are given.
    #[default]
    None,
    /// `$1`, `$2`, … or `?`, in order.
    Positional(Vec<ScalarValue>),
    /// `$name`.
    Named(HashMap<String, ScalarValue>),
}

impl Params {
    fn values(&self) -> Option<ParamValues> {
        match self {
            Self::None => None,
            Self::Positional(values) => Some(values.clone().into()),
            Self::Named(values) => Some(values.clone().into()),
        }
    }
}

/// One statement to run.
#[derive(Debug, Clone)]
pub struct SqlQuery {
    /// What it sees.
    pub view: ReadView,
    /// The statement.
    pub sql: String,
    /// Its parameters.
    pub params: Params,
    /// How long it may take, from now to the last batch; at most [`Limits::query_seconds_max`].
    pub timeout: Option<Duration>,
    /// Types of the answer.
    pub wire: WireTypes,
}

impl SqlQuery {
    /// A statement without parameters, with the types of the plan.
    pub fn new(view: ReadView, sql: impl Into<String>) -> Self {
        Self { view, sql: sql.into(), params: Params::None, timeout: None, wire: WireTypes::default() }
    }
}

/// An answer: batches of `schema`, none of them empty. After an error the stream ends. Dropping it stops the statement.
pub struct SqlStream {
    /// Types on the wire.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: BoxStream<'static, Result<RecordBatch, SqlError>>,
}

impl std::fmt::Debug for SqlStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlStream").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl SqlStream {
    /// All rows. For small answers and tests.
    ///
    /// # Errors
    /// The first error of the stream.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>, SqlError> {
        let mut all = Vec::new();
        while let Some(batch) = self.batches.next().await {
            all.push(batch?);
        }
        Ok(all)
    }
}

/// What a statement will answer, before it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct SqlDescription {
    /// Types on the wire.
    pub schema: SchemaRef,
    /// Parameters in order, with their types where the statement tells them.
    pub parameters: Vec<(String, Option<DataType>)>,
}

/// One table or view.
#[derive(Debug, Clone, PartialEq)]
pub struct TableInfo {
    /// Catalog, always [`CATALOG`].
    pub catalog: String,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// `TABLE` or `VIEW`.
    pub kind: &'static str,
    /// Its columns, with the types of the wire; only when asked for.
    pub columns: Option<SchemaRef>,
}

/// Runs statements; see the module.
#[derive(Debug)]
pub struct SqlEngine {
    base: SessionState,
    settings: SqlSettings,
    clock: SharedClock,
    promql: Arc<Engine>,
    permits: Arc<Semaphore>,
    tiers: OnceLock<Arc<Tiers>>,
    // `None` only while it is being dropped.
    runtime: Option<Runtime>,
}

impl Drop for SqlEngine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping a runtime waits for its threads, which is not allowed inside of another runtime.
            runtime.shutdown_background();
        }
    }
}

impl SqlEngine {
    /// An engine over tables in `store`; `promql` answers the table function of that name. `permits` may be shared with other kinds of queries.
    ///
    /// # Errors
    /// Threads or the spill directory cannot be had.
    pub fn new(
        settings: SqlSettings,
        store: Arc<dyn ObjectStore>,
        clock: SharedClock,
        promql: Arc<Engine>,
        permits: Arc<Semaphore>,
    ) -> Result<Arc<Self>, SqlError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads.max(1))
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_stack_size(STACK_BYTES)
            .thread_name("sql")
            .enable_all()
            .build()
            .map_err(|e| SqlError::new(SqlErrorKind::Internal, format!("starting sql threads: {e}")))?;
        let base = session::base_state(&settings, store)?;
        Ok(Arc::new(Self { base, settings, clock, promql, permits, tiers: OnceLock::new(), runtime: Some(runtime) }))
    }

    /// Makes the tables of tiers known. Only the first call counts.
    pub fn set_tiers(&self, tiers: Arc<Tiers>) {
        let _ = self.tiers.set(tiers);
    }

    /// The limits that it keeps.
    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    /// Begins a statement and returns once it is planned.
    ///
    /// # Errors
    /// Everything that is wrong with the statement itself, and a deadline that passes before rows are ready to be computed.
    pub async fn execute(self: &Arc<Self>, query: SqlQuery) -> Result<SqlStream, SqlError> {
        let timeout = self.timeout_of(query.timeout);
        let deadline = Instant::now() + timeout;
        let permit = self.permit(deadline, timeout).await?;
        let (send, mut receive) = mpsc::channel(BATCHES_AHEAD);
        let engine = self.clone();
        let task = self.spawn(async move { engine.run(query, deadline, send).await });
        let first = timeout_at(deadline, receive.recv()).await.map_err(|_| SqlError::timeout(timeout))?;
        let schema = match first {
            Some(Ok(Message::Schema(schema))) => schema,
            Some(Err(error)) => return Err(error),
            Some(Ok(Message::Batch(_))) | None => return Err(died()),
        };
        let rows = Receiver { receive, task, deadline, timeout, ended: false, _permit: permit };
        Ok(SqlStream { schema, batches: unfold(rows, Receiver::next).boxed() })
    }

    /// Plans a statement without running it. Parameters without values keep the types that the statement implies.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn describe(self: &Arc<Self>, query: SqlQuery) -> Result<SqlDescription, SqlError> {
        let engine = self.clone();
        let deadline = Instant::now() + self.timeout_of(query.timeout);
        self.on_sql_thread(query.timeout, async move {
            let (_, plan) = engine.plan(&query, deadline).await?;
            let mut parameters: Vec<(String, Option<DataType>)> = plan.get_parameter_types()?.into_iter().collect();
            // `$2` before `$10`.
            parameters.sort_by_key(|(name, _)| (name.len(), name.clone()));
            Ok(SqlDescription { schema: wire_schema(plan.schema().as_arrow(), query.wire), parameters })
        })
        .await
    }

    /// The tables and views of a tenant, sorted by schema and name.
    ///
    /// `wanted` picks by (schema, name) before anything is opened; `columns` asks for their schemas.
    ///
    /// # Errors
    /// The label index cannot be read, or the deadline passes.
    pub async fn tables(
        self: &Arc<Self>,
        view: &ReadView,
        wanted: impl Fn(&str, &str) -> bool + Send + 'static,
        columns: Option<WireTypes>,
    ) -> Result<Vec<TableInfo>, SqlError> {
        let (view, limits) = (view.clone(), SelectLimits::from(self.limits()));
        let tiers = self.tiers.get().map(|t| t.snapshots()).unwrap_or_default();
        self.on_sql_thread(None, async move {
            let info = |schema: &str, name: &str, kind, columns| TableInfo {
                catalog: CATALOG.to_owned(),
                schema: schema.to_owned(),
                name: name.to_owned(),
                kind,
                columns,
            };
            let mut all = Vec::new();
            let mut names = metrics(&view).await?.to_vec();
            names.retain(|name| wanted(METRICS, name));
            for name in &names {
                let mut schema = None;
                if let Some(wire) = columns {
                    use datafusion::catalog::TableProvider;
                    let Some(table) = MetricTable::open(&view, name, limits).await? else { continue };
                    schema = Some(wire_schema(&table.schema(), wire));
                }
                all.push(info(METRICS, name, "VIEW", schema));
            }
            for (table, _) in tables_of(&view, &tiers).into_iter().filter(|(t, _)| wanted(PUBLIC, t.name())) {
                all.push(info(PUBLIC, table.name(), "TABLE", columns.map(|wire| wire_schema(&table.table_schema(), wire))));
            }
            if wanted(PUBLIC, CARDINALITY) {
                all.push(info(PUBLIC, CARDINALITY, "TABLE", columns.map(|wire| wire_schema(&cardinality_schema(), wire))));
            }
            Ok(all)
        })
        .await
    }

    fn timeout_of(&self, asked: Option<Duration>) -> Duration {
        let longest = Duration::from_secs(self.settings.limits.query_seconds_max);
        asked.map_or(longest, |t| t.min(longest))
    }

    async fn permit(&self, deadline: Instant, timeout: Duration) -> Result<OwnedSemaphorePermit, SqlError> {
        let waited = timeout_at(deadline, self.permits.clone().acquire_owned()).await;
        let late = || SqlError::new(SqlErrorKind::Timeout, format!("the query waited {} s for others to end", timeout.as_secs_f64()));
        waited.map_err(|_| late())?.map_err(|_| SqlError::new(SqlErrorKind::Unavailable, "the server is stopping"))
    }

    fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T> {
        let runtime = self.runtime.as_ref().expect("the runtime is there until the engine is dropped");
        AbortOnDropHandle::new(runtime.spawn(future))
    }

    async fn on_sql_thread<T: Send + 'static>(
        &self,
        asked: Option<Duration>,
        work: impl Future<Output = Result<T, SqlError>> + Send + 'static,
    ) -> Result<T, SqlError> {
        let timeout = self.timeout_of(asked);
        let deadline = Instant::now() + timeout;
        let _permit = self.permit(deadline, timeout).await?;
        let done = timeout_at(deadline, self.spawn(work)).await.map_err(|_| SqlError::timeout(timeout))?;
        done.unwrap_or_else(|_| Err(died()))
    }

    async fn run(self: Arc<Self>, query: SqlQuery, deadline: Instant, send: mpsc::Sender<Result<Message, SqlError>>) {
        if let Err(error) = self.rows(query, deadline, &send).await {
            // Nobody listens any more when this fails.
            let _ = send.send(Err(error)).await;
        }
    }

    async fn rows(&self, query: SqlQuery, deadline: Instant, send: &mpsc::Sender<Result<Message, SqlError>>) -> Result<(), SqlError> {
        let (schema, mut batches) = self.begin(&query, deadline).await?;
        if send.send(Ok(Message::Schema(schema.clone()))).await.is_err() {
            return Ok(());
        }
        let mut left = self.settings.limits.sql_rows_max;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            if batch.num_rows() == 0 {
                continue;
            }
            left = left.checked_sub(batch.num_rows()).ok_or_else(|| {
                SqlError::limit(format!("the answer has more than {} rows; add a LIMIT or aggregate", self.settings.limits.sql_rows_max))
            })?;
            if send.send(Ok(Message::Batch(to_wire(&batch, &schema)?))).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn begin(&self, query: &SqlQuery, deadline: Instant) -> Result<(SchemaRef, SendableRecordBatchStream), SqlError> {
        let (state, plan) = self.plan(query, deadline).await?;
        let physical = state.create_physical_plan(&plan).await?;
        let batches = execute_stream(physical, state.task_ctx())?;
        // The schema of the rows, not of the plan: optimisation may know better what is nullable.
        Ok((wire_schema(plan.schema().as_arrow(), query.wire), batches))
    }

    async fn plan(&self, query: &SqlQuery, deadline: Instant) -> Result<(SessionState, LogicalPlan), SqlError> {
        let statement = guard::parse(&query.sql, &self.settings.limits)?;
        let state = self.state_of(query, deadline, &statement).await?;
        let plan = state.statement_to_plan(statement).await?;
        let only_reads = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        only_reads.verify_plan(&plan)?;
        let plan = match query.params.values() {
            Some(values) => plan.with_param_values(values)?,
            None => plan,
        };
        Ok((state, plan))
    }

    async fn state_of(&self, query: &SqlQuery, deadline: Instant, statement: &Statement) -> Result<SessionState, SqlError> {
        // Listing all metrics costs a look at the label index; only statements about names need it.
        let text = statement.to_string().to_ascii_lowercase();
        let lists = text.contains("information_schema") || text.contains("show ");
        let names = if lists { metrics(&query.view).await? } else { Arc::from([]) };
        let tiers = self.tiers_for(&text).await?;
        let catalog = catalog_of(&query.view, &tiers, names, SelectLimits::from(self.limits()))?;
        let mut state = SessionStateBuilder::new_from_existing(self.base.clone()).with_catalog_list(catalog).build();
        state.execution_props_mut().query_execution_start_time = DateTime::from_timestamp_millis(self.clock.now_ms());
        let functions = Functions {
            view: query.view.clone(),
            engine: self.promql.clone(),
            limits: self.settings.limits.clone(),
            deadline: deadline.into_std(),
        };
        state.register_udtf("promql", Arc::new(PromqlFunction(functions.clone())));
        state.register_udtf("series", Arc::new(SeriesFunction(functions)));
        Ok(state)
    }
}

impl SqlEngine {
    /// The tiers as a statement sees them. Another process may write them, so a statement that reads one looks for newer versions first.
    async fn tiers_for(&self, statement: &str) -> Result<Vec<TierSnapshot>, SqlError> {
        match self.tiers.get() {
            Some(tiers) if Tier::ALL.iter().any(|tier| statement.contains(tier.table.name())) => Ok(tiers.refreshed().await?),
            Some(tiers) => Ok(tiers.snapshots()),
            None => Ok(Vec::new()),
        }
    }
}

async fn metrics(view: &ReadView) -> Result<Arc<[String]>, SqlError> {
    Ok(view.label_values(METRIC_NAME, &[], i64::MIN / 1_000, i64::MAX / 1_000).await?.into())
}

fn died() -> SqlError {
    SqlError::new(SqlErrorKind::Internal, "the query failed unexpectedly; the server's log says why")
}

enum Message {
    Schema(SchemaRef),
    Batch(RecordBatch),
}

/// The caller's end of a statement.
struct Receiver {
    receive: mpsc::Receiver<Result<Message, SqlError>>,
    task: AbortOnDropHandle<()>,
    deadline: Instant,
    timeout: Duration,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl Receiver {
    async fn next(mut self) -> Option<(Result<RecordBatch, SqlError>, Self)> {
        if self.ended {
            return None;
        }
        let error = match timeout_at(self.deadline, self.receive.recv()).await {
            Ok(Some(Ok(Message::Batch(batch)))) => return Some((Ok(batch), self)),
            Ok(Some(Err(error))) => error,
            Ok(Some(Ok(Message::Schema(_)))) => died(),
            // The channel closes when the statement ends, or when it panics.
            Ok(None) => match timeout_at(self.deadline, &mut self.task).await {
                Ok(Ok(())) => return None,
                Ok(Err(_)) => died(),
                Err(_) => SqlError::timeout(self.timeout),
            },
            Err(_) => SqlError::timeout(self.timeout),
        };
        self.task.abort();
        self.ended = true;
        Some((Err(error), self))
    }
}

#[cfg(test)]
mod tests;
