//! Metadata calls: catalogs, schemas, tables, table types, data types, keys, and what the server can do.
//!
//! # Invariants
//! - Every id of `SqlInfo` is answered: clients cache all of them and unbox without looking.
//! - Key calls are answered empty, not refused: the tables have no keys that SQL knows of.
//! - Filters with `%` and `_` work with and without a catalog.

use super::session::Caller;
use super::status::status_of;
use super::{FlightSql, internal};
use arrow::array::RecordBatch;
use arrow::array::{Datum, StringArray};
use arrow::compute::like;
use arrow::datatypes::{DataType, Field, Schema};
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{
    Command, CommandGetTables, Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity, SqlSupportedGroupBy,
    SqlSupportedSubqueries, SqlSupportedTransaction, SqlSupportedUnions, SupportedSqlGrammar, XdbcDataType, XdbcDatetimeSubcode,
};
use fletch_common::Limits;
use fletch_query::sql::catalog::{CATALOG, METRICS, PUBLIC};
use std::collections::HashMap;
use std::sync::Arc;
use tonic::Status;

const INFORMATION_SCHEMA: &str = "information_schema";

/// What does not depend on data.
pub(super) struct Static {
    info: SqlInfoData,
    types: XdbcTypeInfoData,
}

impl std::fmt::Debug for Static {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Static").finish_non_exhaustive()
    }
}

impl Static {
    /// The answers under these limits.
    pub(super) fn new(limits: &Limits) -> Self {
        let info = sql_info(limits).build().expect("every value has a type of the union");
        let types = xdbc_types().build().expect("the rows have the columns of the protocol");
        Self { info, types }
    }

    /// The rows of a metadata command that needs no data.
    ///
    /// # Errors
    /// The command is none of these.
    pub(super) fn answer(&self, command: Command) -> Result<RecordBatch, Status> {
        let rows = match command {
            Command::CommandGetCatalogs(c) => {
                let mut rows = c.into_builder();
                rows.append(CATALOG);
                rows.build()
            }
            Command::CommandGetDbSchemas(c) => {
                let mut rows = c.into_builder();
                for schema in [INFORMATION_SCHEMA, METRICS, PUBLIC] {
                    rows.append(CATALOG, schema);
                }
                rows.build()
            }
            Command::CommandGetTableTypes(c) => {
                let mut rows = c.into_builder();
                rows.append("TABLE");
                rows.append("VIEW");
                rows.build()
            }
            Command::CommandGetSqlInfo(c) => c.into_builder(&self.info).build(),
            Command::CommandGetXdbcTypeInfo(c) => c.into_builder(&self.types).build(),
            Command::CommandGetPrimaryKeys(_) => return Ok(RecordBatch::new_empty(Arc::new(primary_keys()))),
            Command::CommandGetExportedKeys(_) | Command::CommandGetImportedKeys(_) | Command::CommandGetCrossReference(_) => {
                return Ok(RecordBatch::new_empty(Arc::new(foreign_keys())));
            }
            other => return Err(Status::unimplemented(format!("{} is not supported", other.type_url()))),
        };
        rows.map_err(|e| Status::internal(format!("writing metadata: {e}")))
    }
}

impl FlightSql {
    /// Tables and views, with their schemas when asked for. Only what the filters let through is opened.
    pub(super) async fn tables(&self, command: CommandGetTables, caller: &Caller) -> Result<RecordBatch, Status> {
        let columns = command.include_schema.then(|| caller.wire());
        let (schema_filter, table_filter) = (command.db_schema_filter_pattern.clone(), command.table_name_filter_pattern.clone());
        let other_catalog = command.catalog.as_deref().is_some_and(|c| c != CATALOG);
        let kinds = command.table_types.clone();
        let wanted = move |schema: &str, name: &str| {
            let kind = if schema == METRICS { "VIEW" } else { "TABLE" };
            let kind_wanted = kinds.is_empty() || kinds.iter().any(|k| k == kind);
            !other_catalog
                && kind_wanted
                && matches_pattern(schema, schema_filter.as_deref())
                && matches_pattern(name, table_filter.as_deref())
        };
        let view = self.storage.view(&caller.tenant);
        let tables = self.sql.tables(&view, wanted, columns).await.map_err(status_of)?;
        let mut rows = command.into_builder();
        let unknown = Arc::new(Schema::empty());
        for table in tables {
            let schema = table.columns.unwrap_or_else(|| unknown.clone());
            rows.append(table.catalog, table.schema, table.name, table.kind, &schema).map_err(|e| internal_flight(&e))?;
        }
        rows.build().map_err(|e| internal_flight(&e))
    }
}

fn internal_flight(error: &arrow_flight::error::FlightError) -> Status {
    internal(arrow::error::ArrowError::ExternalError(error.to_string().into()))
}

/// SQL's LIKE; everything matches no pattern at all.
fn matches_pattern(text: &str, pattern: Option<&str>) -> bool {
    let Some(pattern) = pattern else { return true };
    let (text, pattern) = (StringArray::new_scalar(text), StringArray::new_scalar(pattern));
    let matched = like(&text as &dyn Datum, &pattern as &dyn Datum);
    // A pattern that is none (it ends in an escape) matches nothing.
    matched.is_ok_and(|m| m.value(0))
}

fn primary_keys() -> Schema {
    let text = |name, nullable| Field::new(name, DataType::Utf8, nullable);
    Schema::new(vec![
        text("catalog_name", true),
        text("db_schema_name", true),
        text("table_name", false),
        text("column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("key_name", true),
    ])
}

fn foreign_keys() -> Schema {
    let text = |name, nullable| Field::new(name, DataType::Utf8, nullable);
    Schema::new(vec![
        text("pk_catalog_name", true),
        text("pk_db_schema_name", true),
        text("pk_table_name", false),
        text("pk_column_name", false),
        text("fk_catalog_name", true),
        text("fk_db_schema_name", true),
        text("fk_table_name", false),
        text("fk_column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("fk_key_name", true),
        text("pk_key_name", true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ])
}

/// Identifiers that are longer are fine for us; clients want a number.
const NAME_BYTES: i64 = 4_096;
/// "No limit that we know of", as JDBC says it.
const NO_LIMIT: i64 = 0;

fn sql_info(limits: &Limits) -> SqlInfoDataBuilder {
    let mut info = SqlInfoDataBuilder::new();
    server_info(&mut info);
    syntax_info(&mut info);
    limit_info(&mut info, limits);
    info
}

fn server_info(info: &mut SqlInfoDataBuilder) {
    use SqlInfo as I;
    info.append(I::FlightSqlServerName, "Fletch");
    info.append(I::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(I::FlightSqlServerArrowVersion, arrow::ARROW_VERSION);
    info.append(I::FlightSqlServerReadOnly, true);
    info.append(I::FlightSqlServerSql, true);
    info.append(I::FlightSqlServerSubstrait, false);
    info.append(I::FlightSqlServerSubstraitMinVersion, "");
    info.append(I::FlightSqlServerSubstraitMaxVersion, "");
    info.append(I::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    info.append(I::FlightSqlServerCancel, true);
    info.append(I::FlightSqlServerBulkIngestion, false);
    info.append(I::FlightSqlServerIngestTransactionsSupported, false);
    info.append(I::FlightSqlServerTransactionTimeout, 0_i32);
    for no in [
        I::SqlDdlCatalog,
        I::SqlDdlSchema,
        I::SqlDdlTable,
        I::SqlSelectForUpdateSupported,
        I::SqlStoredProceduresSupported,
        I::SqlTransactionsSupported,
        I::SqlDataDefinitionCausesTransactionCommit,
        I::SqlDataDefinitionsInTransactionsIgnored,
        I::SqlBatchUpdatesSupported,
        I::SqlSavepointsSupported,
        I::SqlNamedParametersSupported,
        I::SqlLocatorsUpdateCopy,
        I::SqlStoredFunctionsUsingCallSyntaxSupported,
        I::SqlSupportsIntegrityEnhancementFacility,
        I::SqlMaxRowSizeIncludesBlobs,
    ] {
        info.append(no, false);
    }
    for none in [
        I::SqlSchemasSupportedActions,
        I::SqlCatalogsSupportedActions,
        I::SqlSupportedPositionedCommands,
        I::SqlSupportedTransactionsIsolationLevels,
        I::SqlSupportedConcurrenciesForResultSetUnspecified,
        I::SqlSupportedConcurrenciesForResultSetScrollSensitive,
        I::SqlSupportedConcurrenciesForResultSetScrollInsensitive,
    ] {
        info.append(none, 0_i32);
    }
    // Isolation level "none"; result sets: forward only (bit 1), read-only (bit 1).
    info.append(I::SqlDefaultTransactionIsolation, 0_i64);
    info.append(I::SqlSupportedResultSetTypes, 0b10_i32);
    info.append(I::SqlSupportedConcurrenciesForResultSetForwardOnly, 0b10_i32);
}

fn syntax_info(info: &mut SqlInfoDataBuilder) {
    use SqlInfo as I;
    for yes in [
        I::SqlAllTablesAreSelectable,
        I::SqlSupportsColumnAliasing,
        I::SqlNullPlusNullIsNull,
        I::SqlSupportsTableCorrelationNames,
        I::SqlSupportsExpressionsInOrderBy,
        I::SqlSupportsOrderByUnrelated,
        I::SqlSupportsLikeEscapeClause,
        I::SqlSupportsNonNullableColumns,
        I::SqlCatalogAtStart,
        I::SqlCorrelatedSubqueriesSupported,
    ] {
        info.append(yes, true);
    }
    info.append(I::SqlSupportsDifferentTableCorrelationNames, false);
    info.append(I::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i64);
    info.append(I::SqlQuotedIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i64);
    info.append(I::SqlIdentifierQuoteChar, "\"");
    info.append(I::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i64);
    info.append(I::SqlSearchStringEscape, "\\");
    info.append(I::SqlExtraNameCharacters, "");
    info.append(I::SqlSchemaTerm, "schema");
    info.append(I::SqlProcedureTerm, "procedure");
    info.append(I::SqlCatalogTerm, "catalog");
    info.append(I::SqlSupportedGroupBy, 1_i32 << SqlSupportedGroupBy::SqlGroupByUnrelated as i32);
    info.append(I::SqlSupportedGrammar, bits(&[SupportedSqlGrammar::SqlMinimumGrammar as i32, SupportedSqlGrammar::SqlCoreGrammar as i32]));
    info.append(I::SqlAnsi92SupportedLevel, 0b1_i32);
    info.append(I::SqlOuterJoinsSupportLevel, 0b111_i32);
    let subqueries = [
        SqlSupportedSubqueries::SqlSubqueriesInComparisons,
        SqlSupportedSubqueries::SqlSubqueriesInExists,
        SqlSupportedSubqueries::SqlSubqueriesInIns,
    ];
    info.append(I::SqlSupportedSubqueries, bits(&subqueries.map(|s| s as i32)));
    info.append(I::SqlSupportedUnions, bits(&[SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32]));
    info.append(I::SqlSupportsConvert, HashMap::<i32, Vec<i32>>::new());
    info.append(I::SqlKeywords, &["EXCLUDE", "ILIKE", "QUALIFY", "REGEXP"][..]);
    info.append(I::SqlNumericFunctions, &["abs", "ceil", "exp", "floor", "ln", "log", "power", "round", "signum", "sqrt", "trunc"][..]);
    info.append(
        I::SqlStringFunctions,
        &["concat", "length", "lower", "regexp_match", "replace", "split_part", "substr", "trim", "upper"][..],
    );
    info.append(I::SqlSystemFunctions, &["coalesce", "nullif", "version"][..]);
    info.append(I::SqlDatetimeFunctions, &["date_bin", "date_part", "date_trunc", "now", "to_timestamp", "tumble"][..]);
}

fn bits(numbers: &[i32]) -> i32 {
    numbers.iter().fold(0, |all, n| all | 1 << n)
}

fn limit_info(info: &mut SqlInfoDataBuilder, limits: &Limits) {
    use SqlInfo as I;
    let bytes = i64::try_from(limits.sql_bytes_max).unwrap_or(i64::MAX);
    info.append(I::SqlMaxStatementLength, bytes);
    for literal in [I::SqlMaxBinaryLiteralLength, I::SqlMaxCharLiteralLength] {
        info.append(literal, bytes);
    }
    for name in [I::SqlMaxColumnNameLength, I::SqlDbSchemaNameLength, I::SqlMaxCatalogNameLength, I::SqlMaxTableNameLength] {
        info.append(name, NAME_BYTES);
    }
    for unlimited in [
        I::SqlMaxColumnsInGroupBy,
        I::SqlMaxColumnsInIndex,
        I::SqlMaxColumnsInOrderBy,
        I::SqlMaxColumnsInSelect,
        I::SqlMaxColumnsInTable,
        I::SqlMaxConnections,
        I::SqlMaxCursorNameLength,
        I::SqlMaxIndexLength,
        I::SqlMaxProcedureNameLength,
        I::SqlMaxRowSize,
        I::SqlMaxStatements,
        I::SqlMaxTablesInSelect,
        I::SqlMaxUsernameLength,
    ] {
        info.append(unlimited, NO_LIMIT);
    }
    let ms = limits.query_seconds_max.saturating_mul(1_000);
    info.append(I::FlightSqlServerStatementTimeout, i32::try_from(ms).unwrap_or(i32::MAX));
}

fn xdbc_types() -> XdbcTypeInfoDataBuilder {
    let mut types = XdbcTypeInfoDataBuilder::new();
    let quoted = |prefix: &str| (Some(prefix.to_owned()), Some("'".to_owned()));
    let plain = |name: &str, data_type, size| XdbcTypeInfo {
        type_name: name.to_owned(),
        data_type,
        sql_data_type: data_type,
        column_size: Some(size),
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        unsigned_attribute: Some(false),
        ..XdbcTypeInfo::default()
    };
    let number = |name: &str, data_type, size| XdbcTypeInfo {
        num_prec_radix: Some(10),
        auto_increment: Some(false),
        ..plain(name, data_type, size)
    };
    types.append(number("BIGINT", XdbcDataType::XdbcBigint, 19));
    types.append(number("INTEGER", XdbcDataType::XdbcInteger, 10));
    types.append(XdbcTypeInfo { num_prec_radix: Some(2), ..number("DOUBLE", XdbcDataType::XdbcDouble, 53) });
    types.append(plain("BOOLEAN", XdbcDataType::XdbcBit, 1));
    let (literal_prefix, literal_suffix) = quoted("'");
    let text = plain("VARCHAR", XdbcDataType::XdbcVarchar, i32::MAX);
    types.append(XdbcTypeInfo { literal_prefix, literal_suffix, case_sensitive: true, unsigned_attribute: None, ..text });
    let (literal_prefix, literal_suffix) = quoted("DATE '");
    let date = plain("DATE", XdbcDataType::XdbcDate, 10);
    let subcode = Some(XdbcDatetimeSubcode::XdbcSubcodeTime);
    types.append(XdbcTypeInfo { literal_prefix, literal_suffix, datetime_subcode: subcode, unsigned_attribute: None, ..date });
    let (literal_prefix, literal_suffix) = quoted("TIMESTAMP '");
    let timestamp = plain("TIMESTAMP", XdbcDataType::XdbcTimestamp, 30);
    let subcode = Some(XdbcDatetimeSubcode::XdbcSubcodeTimestamp);
    types.append(XdbcTypeInfo { literal_prefix, literal_suffix, datetime_subcode: subcode, unsigned_attribute: None, ..timestamp });
    types
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::UInt32Type;
    use arrow_flight::sql::{CommandGetCatalogs, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetXdbcTypeInfo};

    fn answer(command: Command) -> RecordBatch {
        Static::new(&Limits::default()).answer(command).expect("an answer")
    }

    #[test]
    fn every_sql_info_is_answered() {
        let rows = answer(Command::CommandGetSqlInfo(CommandGetSqlInfo::default()));
        let ids = rows.column(0).as_primitive::<UInt32Type>().values().to_vec();
        let missing: Vec<_> = (0..=1_000).filter_map(|id| SqlInfo::try_from(id).ok()).filter(|i| !ids.contains(&(*i as u32))).collect();
        assert!(missing.is_empty(), "{missing:?}");
        let one = answer(Command::CommandGetSqlInfo(CommandGetSqlInfo { info: vec![SqlInfo::FlightSqlServerTransaction as u32] }));
        assert_eq!(one.num_rows(), 1);
    }

    #[test]
    fn filters_work_without_a_catalog() {
        let schemas = |catalog: Option<&str>, pattern: Option<&str>| {
            let command = CommandGetDbSchemas { catalog: catalog.map(str::to_owned), db_schema_filter_pattern: pattern.map(str::to_owned) };
            answer(Command::CommandGetDbSchemas(command)).num_rows()
        };
        assert_eq!(
            (schemas(None, None), schemas(Some("fletch"), Some("p%")), schemas(Some("x"), None), schemas(None, Some("_"))),
            (3, 1, 0, 1)
        );
        assert_eq!(answer(Command::CommandGetCatalogs(CommandGetCatalogs {})).num_rows(), 1);
        assert!(matches_pattern("cpu_usage", Some("cpu%")) && !matches_pattern("cpu", Some("mem%")) && matches_pattern("x", None));
    }

    #[test]
    fn keys_are_empty_and_types_are_there() {
        let keys = answer(Command::CommandGetPrimaryKeys(CommandGetPrimaryKeys::default()));
        assert_eq!((keys.num_rows(), keys.num_columns()), (0, 6));
        assert_eq!(answer(Command::CommandGetXdbcTypeInfo(CommandGetXdbcTypeInfo { data_type: None })).num_rows(), 7);
    }
}
