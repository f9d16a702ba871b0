//! From the SQL of a rule to what runs on the stream.
//!
//! DataFusion's own planner reads the statement; this module walks the logical plan it gives and takes exactly one shape:
//!
//! ```text
//!  Projection ── [Filter = HAVING] ── Aggregate(labels…, tumble(time, size); count sum avg min max last_value) ── [Filter = WHERE] ── m."metric"
//! ```
//!
//! Every other node, function or argument is refused by its name, so a rule that loads does what it says.

use super::aggregate::Aggregate;
use crate::state::Id;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider};
use datafusion::common::{Column, DFSchema, DFSchemaRef, ScalarValue};
use datafusion::datasource::empty::EmptyTable;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, ObjectNamePart, Statement, visit_expressions, visit_relations};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use fletch_schemas::tables::time_type;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Longest statement, in bytes.
const SQL_BYTES_MAX: usize = 16 << 10;

/// Most levels of nesting, and most operators, that a statement may have: both bound the planner's recursion.
const TOKENS_MAX: usize = 2_000;

/// Why a rule cannot run on the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The text is not SQL, or names something that is not there.
    #[error("{0}")]
    Sql(String),
    /// It is SQL, but not what a streaming rule can be; names the culprit.
    #[error(
        "{0} is not supported in a streaming rule; the shape is SELECT labels, aggregates FROM m.\"metric\" WHERE … GROUP BY labels, tumble(time, INTERVAL '…') HAVING …"
    )]
    Unsupported(String),
}

fn unsupported<T>(what: impl Into<String>) -> Result<T, CompileError> {
    Err(CompileError::Unsupported(what.into()))
}

fn sql_error(error: impl std::fmt::Display) -> CompileError {
    CompileError::Sql(error.to_string())
}

/// A rule's SQL, ready to run.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The metric it reads.
    pub metric: String,
    /// Width of its windows, in milliseconds.
    pub size_ms: i64,
    /// Identity of the statement.
    pub hash: Id,
    /// Columns of `m."metric"` that the statement names, in the order of [`Compiled::rows`].
    pub(super) inputs: Vec<Input>,
    /// Schema of the input rows that filters see.
    pub(super) rows: SchemaRef,
    /// Conditions on labels alone: judged once per series.
    pub(super) series_filter: Option<Arc<dyn PhysicalExpr>>,
    /// Conditions that need the time or the value: judged per row.
    pub(super) row_filter: Option<Arc<dyn PhysicalExpr>>,
    /// What each group column is, in the order of the closed window's columns.
    pub(super) groups: Vec<Group>,
    /// Aggregates, in the order of the closed window's columns after the groups.
    pub(super) aggregates: Vec<Aggregate>,
    /// Schema of a closed window: group columns, then aggregates.
    pub(super) window: SchemaRef,
    /// The condition.
    pub(super) having: Option<Arc<dyn PhysicalExpr>>,
    /// Value of an alert.
    pub(super) value: Arc<dyn PhysicalExpr>,
    /// Labels of an alert: name and column of the closed window.
    pub(super) labels: Vec<(String, usize)>,
}

/// One column of the metric's view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Time,
    Value,
    Label(String),
}

/// One column that is grouped by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Group {
    WindowEnd,
    Label(String),
}

impl Input {
    /// The column of the view behind a name; a label that collides with a column is `label_<name>`.
    fn of(column: &str) -> Self {
        match column {
            "time" => Self::Time,
            "value" => Self::Value,
            "label_time" => Self::Label("time".into()),
            "label_value" => Self::Label("value".into()),
            _ => Self::Label(column.into()),
        }
    }

    fn field(&self, column: &str) -> Field {
        match self {
            Self::Time => Field::new(column, time_type(), false),
            Self::Value => Field::new(column, DataType::Float64, true),
            Self::Label(_) => Field::new(column, DataType::Utf8, true),
        }
    }
}

/// Compiles the statement of a rule.
///
/// # Errors
/// [`CompileError`], naming what is wrong or not supported.
pub async fn compile(sql: &str) -> Result<Compiled, CompileError> {
    let (metric, columns) = read_names(sql)?;
    let inputs: Vec<Input> = columns.iter().map(|c| Input::of(c)).collect();
    let rows: SchemaRef = Arc::new(Schema::new(inputs.iter().zip(&columns).map(|(i, c)| i.field(c)).collect::<Vec<_>>()));
    let context = context(&metric, rows.clone())?;
    let plan = context.state().create_logical_plan(sql).await.map_err(|e| sql_error(e.strip_backtrace()))?;
    let shape = Shape::of(&plan)?;
    let planner = Planner { context: &context };
    let (groups, size_ms) = groups(shape.aggregate)?;
    let aggregates = shape.aggregate.aggr_expr.iter().map(aggregate).collect::<Result<Vec<_>, _>>()?;
    let (series_filter, row_filter) = split_where(shape.filter, &planner, &shape)?;
    let window_schema = &shape.aggregate.schema;
    let having = shape.having.map(|e| planner.physical(e, window_schema)).transpose()?;
    let (labels, value) = outputs(&shape, &groups)?;
    let value = planner.physical(&value, window_schema)?;
    Ok(Compiled {
        hash: Id::of(&[sql.as_bytes()]),
        metric,
        size_ms,
        inputs,
        rows,
        series_filter,
        row_filter,
        groups,
        aggregates,
        window: Arc::new(window_schema.as_arrow().clone()),
        having,
        value,
        labels,
    })
}

/// The metric behind `FROM m."metric"` and every column that the statement names.
fn read_names(sql: &str) -> Result<(String, Vec<String>), CompileError> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(CompileError::Sql(format!("the statement is {} bytes long, at most {SQL_BYTES_MAX} are allowed", sql.len())));
    }
    let mut parser = Parser::new(&GenericDialect {}).with_recursion_limit(40).try_with_sql(sql).map_err(sql_error)?;
    let statements = parser.parse_statements().map_err(sql_error)?;
    let [statement] = statements.as_slice() else { return unsupported("more than one statement") };
    if !matches!(statement, Statement::Query(_)) {
        return unsupported(format!("`{}`", statement.to_string().split(' ').next().unwrap_or_default()));
    }
    let mut tables = Vec::new();
    let _ = visit_relations(statement, |name| {
        tables.push(name.clone());
        ControlFlow::<()>::Continue(())
    });
    let [table] = tables.as_slice() else { return unsupported("more or fewer than one table") };
    let parts: Vec<_> = table.0.iter().filter_map(ObjectNamePart::as_ident).map(normal).collect();
    let [schema, metric] = parts.as_slice() else { return unsupported(format!("table `{table}`")) };
    if schema != "m" {
        return unsupported(format!("table `{table}`"));
    }
    let (mut columns, mut nodes) = (BTreeSet::from(["time".to_owned(), "value".to_owned()]), 0_usize);
    let _ = visit_expressions(statement, |expr| {
        nodes += 1;
        match expr {
            SqlExpr::Identifier(ident) => drop(columns.insert(normal(ident))),
            SqlExpr::CompoundIdentifier(idents) => drop(idents.last().map(|i| columns.insert(normal(i)))),
            _ => {}
        }
        ControlFlow::<()>::Continue(())
    });
    if nodes > TOKENS_MAX {
        return Err(CompileError::Sql(format!("the statement has {nodes} expressions, at most {TOKENS_MAX} are allowed")));
    }
    Ok((metric.clone(), columns.into_iter().collect()))
}

/// SQL folds names that are not quoted to lower case.
fn normal(ident: &datafusion::sql::sqlparser::ast::Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn context(metric: &str, rows: SchemaRef) -> Result<SessionContext, CompileError> {
    let context = SessionContext::new();
    for udf in fletch_udfs::all() {
        context.register_udf(udf.as_ref().clone());
    }
    let schema = MemorySchemaProvider::new();
    schema.register_table(metric.to_owned(), Arc::new(EmptyTable::new(rows))).map_err(sql_error)?;
    let catalog = context.catalog("datafusion").ok_or_else(|| CompileError::Sql("no default catalog".into()))?;
    catalog.register_schema("m", Arc::new(schema)).map_err(sql_error)?;
    Ok(context)
}

struct Planner<'a> {
    context: &'a SessionContext,
}

impl Planner<'_> {
    fn physical(&self, expr: &Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>, CompileError> {
        self.context.create_physical_expr(expr.clone(), schema).map_err(|e| sql_error(e.strip_backtrace()))
    }
}

/// The nodes of the one shape.
struct Shape<'a> {
    output: &'a [Expr],
    having: Option<&'a Expr>,
    aggregate: &'a datafusion::logical_expr::Aggregate,
    filter: Option<&'a Expr>,
    input: DFSchemaRef,
}

impl<'a> Shape<'a> {
    fn of(plan: &'a LogicalPlan) -> Result<Self, CompileError> {
        let LogicalPlan::Projection(projection) = plan else { return unsupported(node_name(plan)) };
        let (having, below) = match projection.input.as_ref() {
            LogicalPlan::Filter(filter) => (Some(&filter.predicate), filter.input.as_ref()),
            other => (None, other),
        };
        let LogicalPlan::Aggregate(aggregate) = below else {
            return match below {
                LogicalPlan::TableScan(_) | LogicalPlan::SubqueryAlias(_) => unsupported("a query without GROUP BY"),
                other => unsupported(node_name(other)),
            };
        };
        let (filter, below) = match aggregate.input.as_ref() {
            LogicalPlan::Filter(filter) => (Some(&filter.predicate), filter.input.as_ref()),
            other => (None, other),
        };
        let below = if let LogicalPlan::SubqueryAlias(alias) = below { alias.input.as_ref() } else { below };
        if !matches!(below, LogicalPlan::TableScan(_)) {
            return unsupported(node_name(below));
        }
        Ok(Self { output: &projection.expr, having, aggregate, filter, input: aggregate.input.schema().clone() })
    }
}

/// The node as SQL users know it.
fn node_name(plan: &LogicalPlan) -> String {
    let known = match plan {
        LogicalPlan::Sort(_) => "ORDER BY",
        LogicalPlan::Limit(_) => "LIMIT",
        LogicalPlan::Distinct(_) => "DISTINCT",
        LogicalPlan::Join(_) => "a join",
        LogicalPlan::Union(_) => "UNION",
        LogicalPlan::Window(_) => "a window function",
        LogicalPlan::Projection(_) | LogicalPlan::Subquery(_) => "a subquery",
        other => return format!("`{}`", other.display()),
    };
    known.to_owned()
}

fn groups(aggregate: &datafusion::logical_expr::Aggregate) -> Result<(Vec<Group>, i64), CompileError> {
    let (mut groups, mut size) = (Vec::new(), None);
    for expr in &aggregate.group_expr {
        match expr {
            Expr::Column(column) => match Input::of(&column.name) {
                Input::Label(name) => groups.push(Group::Label(name)),
                Input::Time | Input::Value => return unsupported(format!("GROUP BY {}", column.name)),
            },
            Expr::ScalarFunction(call) if call.func.name() == "tumble" => {
                if size.replace(tumble_size_ms(&call.args)?).is_some() {
                    return unsupported("more than one tumble()");
                }
                groups.push(Group::WindowEnd);
            }
            other => return unsupported(format!("GROUP BY {other}")),
        }
    }
    match size {
        Some(size) => Ok((groups, size)),
        None => unsupported("GROUP BY without tumble(time, INTERVAL '…')"),
    }
}

fn tumble_size_ms(args: &[Expr]) -> Result<i64, CompileError> {
    let [Expr::Column(column), Expr::Literal(size, _)] = args else {
        return unsupported("tumble() of anything but `time` and a literal interval");
    };
    if column.name != "time" {
        return unsupported(format!("tumble({}, …)", column.name));
    }
    let ns = fletch_udfs::tumble::size_ns(size).map_err(|e| sql_error(e.strip_backtrace()))?;
    if ns % 1_000_000 != 0 {
        return unsupported("a window that is not a whole number of milliseconds");
    }
    Ok(ns / 1_000_000)
}

fn aggregate(expr: &Expr) -> Result<Aggregate, CompileError> {
    let Expr::AggregateFunction(call) = expr.clone().unalias_nested().data else { return unsupported(format!("{expr}")) };
    let (name, params) = (call.func.name(), &call.params);
    if params.distinct {
        return unsupported(format!("DISTINCT in {name}()"));
    }
    if params.filter.is_some() {
        return unsupported(format!("FILTER on {name}()"));
    }
    let of_value = matches!(params.args.as_slice(), [Expr::Column(c)] if c.name == "value");
    let of_rows = matches!(params.args.as_slice(), [Expr::Literal(ScalarValue::Int64(Some(_)), _)]);
    let by_time = matches!(params.order_by.as_slice(), [sort] if sort.asc && matches!(&sort.expr, Expr::Column(c) if c.name == "time"));
    if name == "count" && of_rows {
        return Ok(Aggregate::CountRows);
    }
    if !of_value {
        return unsupported(format!("{name}() of anything but the column `value`"));
    }
    if name == "last_value" {
        return if by_time { Ok(Aggregate::Last) } else { unsupported("last_value() without ORDER BY time") };
    }
    if !params.order_by.is_empty() {
        return unsupported(format!("ORDER BY in {name}()"));
    }
    match name {
        "count" => Ok(Aggregate::Count),
        "sum" => Ok(Aggregate::Sum),
        "avg" => Ok(Aggregate::Avg),
        "min" => Ok(Aggregate::Min),
        "max" => Ok(Aggregate::Max),
        other => unsupported(format!("{other}()")),
    }
}

type Filters = (Option<Arc<dyn PhysicalExpr>>, Option<Arc<dyn PhysicalExpr>>);

/// Conditions on labels alone, and the rest.
fn split_where(filter: Option<&Expr>, planner: &Planner<'_>, shape: &Shape<'_>) -> Result<Filters, CompileError> {
    let Some(filter) = filter else { return Ok((None, None)) };
    let on_labels = |expr: &&Expr| expr.column_refs().iter().all(|c| matches!(Input::of(&c.name), Input::Label(_)));
    let (labels, rows): (Vec<&Expr>, Vec<&Expr>) = split_conjunction(filter).into_iter().partition(on_labels);
    let joined = |parts: Vec<&Expr>| conjunction(parts.into_iter().cloned()).map(|e| planner.physical(&e, &shape.input)).transpose();
    Ok((joined(labels)?, joined(rows)?))
}

/// The name of a column of the answer: the alias, or the column without its table.
fn output_name(expr: &Expr) -> String {
    match expr {
        Expr::Alias(alias) => alias.name.clone(),
        Expr::Column(column) => column.name.clone(),
        other => other.schema_name().to_string(),
    }
}

/// Labels and value of an alert, from the SELECT list.
fn outputs(shape: &Shape<'_>, groups: &[Group]) -> Result<(Vec<(String, usize)>, Expr), CompileError> {
    let group_columns: Vec<Column> = shape.aggregate.schema.columns().into_iter().take(groups.len()).collect();
    let (mut labels, mut values) = (Vec::new(), Vec::new());
    for expr in shape.output {
        let name = output_name(expr);
        let bare = expr.clone().unalias_nested().data;
        let group = group_columns.iter().position(|c| matches!(&bare, Expr::Column(column) if column == c));
        match group.map(|i| (i, &groups[i])) {
            Some((i, Group::Label(_))) => labels.push((name, i)),
            Some((_, Group::WindowEnd)) => {}
            None => values.push((name, bare)),
        }
    }
    for (i, group) in groups.iter().enumerate() {
        if matches!(group, Group::Label(_)) && !labels.iter().any(|(_, at)| *at == i) {
            return unsupported(format!(
                "GROUP BY {} without it in the SELECT list (alerts would not be told apart)",
                group_columns[i].name
            ));
        }
    }
    let chosen = values.iter().position(|(name, _)| name == "value").or(if values.len() == 1 { Some(0) } else { None });
    match chosen {
        Some(i) => Ok((labels, values.swap_remove(i).1)),
        None if values.is_empty() => unsupported("a SELECT list without an aggregate"),
        None => unsupported("a SELECT list with several aggregates and none of them called `value`"),
    }
}

#[cfg(test)]
mod tests;
