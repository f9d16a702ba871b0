//! Parquet scans over files of one table of a view: plain `DataSourceExec` leaves, with the partition columns supplied from the log.
//!
//! # Invariants
//! - Columns are numbered as in the table (tenant, date, then those of a file); the scan behind has the partition columns last.
//! - [`FileScan::ordered`] gives one file per partition and declares the order (metric, series_id, time); [`FileScan::unordered`] declares none.
//! - Exact row counts are declared per file, no statistics of columns: DataFusion would answer `min` and `max` from them.

use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use chrono::DateTime;
use datafusion::catalog::Session;
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, Result, ScalarValue, Statistics, internal_datafusion_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use fletch_schemas::tables::{PARTITION_COLUMNS, Table};
use fletch_storage::ReadView;
use fletch_storage::delta::FileEntry;
use object_store::ObjectMeta;
use object_store::path::Path;
use std::sync::Arc;

/// Under this address the store of the tables is known to DataFusion; nothing else is.
pub(crate) const STORE_URL: &str = "fletch://tables/";

/// See the module.
#[derive(Debug)]
pub(crate) struct FileScan {
    source: Arc<ParquetSource>,
    folder: Path,
    file_columns: usize,
}

impl FileScan {
    /// Scans of `table` that may leave out rows for which one of `filters` (conditions on key columns) is not true.
    ///
    /// # Errors
    /// A filter names a column that the table does not have.
    pub(crate) fn new(view: &ReadView, table: Table, state: &dyn Session, filters: &[Expr]) -> Result<Self> {
        let file_schema = table.file_schema();
        let file_columns = file_schema.fields().len();
        let partitions = PARTITION_COLUMNS.iter().zip([DataType::Utf8, DataType::Date32]);
        let partitions: Vec<FieldRef> = partitions.map(|(name, kind)| Arc::new(Field::new(*name, kind, false))).collect();
        let mut source = ParquetSource::new(TableSchema::builder(file_schema).with_table_partition_cols(partitions).build());
        let cache = state.runtime_env().cache_manager.get_file_metadata_cache();
        let reader = CachedParquetFileReaderFactory::new(view.object_store(), cache);
        source = source.with_parquet_file_reader_factory(Arc::new(reader)).with_enable_page_index(true);
        if let Some(filter) = conjunction(filters.iter().cloned()) {
            let schema = DFSchema::try_from(source.table_schema().table_schema().clone())?;
            let selective = filter.column_refs().iter().any(|c| c.name == "metric" || c.name == "series_id");
            // Rows are sorted by metric and series, so these conditions leave few pages; on time alone a row filter costs more than it saves.
            source = source.with_predicate(state.create_physical_expr(filter, &schema)?).with_pushdown_filters(selective);
        }
        Ok(Self { source: Arc::new(source), folder: view.table_path(table), file_columns })
    }

    /// Files in any order, in at most `partitions_max` partitions.
    ///
    /// # Errors
    /// A path that is none.
    pub(crate) fn unordered(&self, files: &[Arc<FileEntry>], columns: &[usize], partitions_max: usize) -> Result<Arc<dyn ExecutionPlan>> {
        let mut groups = vec![Vec::new(); partitions_max.clamp(1, files.len().max(1))];
        let mut bytes = vec![0_u64; groups.len()];
        let mut by_size: Vec<&Arc<FileEntry>> = files.iter().collect();
        by_size.sort_by_key(|f| std::cmp::Reverse(f.size));
        for file in by_size {
            // The largest files first, each to the partition with the least to read.
            let least = (0..bytes.len()).min_by_key(|&g| bytes[g]).expect("there is a partition");
            bytes[least] += file.size;
            groups[least].push(self.partitioned_file(file)?);
        }
        self.scan(groups, columns, None)
    }

    /// One partition per file, each sorted by (metric, series_id, time).
    ///
    /// # Errors
    /// As [`unordered`](Self::unordered), or a key column is not among `columns`.
    pub(crate) fn ordered(&self, files: &[Arc<FileEntry>], columns: &[usize]) -> Result<Arc<dyn ExecutionPlan>> {
        let groups = files.iter().map(|f| Ok(vec![self.partitioned_file(f)?])).collect::<Result<Vec<_>>>()?;
        self.scan(groups, columns, Some(ordering(self.source.table_schema().table_schema())?))
    }

    fn scan(&self, groups: Vec<Vec<PartitionedFile>>, columns: &[usize], order: Option<LexOrdering>) -> Result<Arc<dyn ExecutionPlan>> {
        let groups: Vec<FileGroup> = groups.into_iter().filter(|g| !g.is_empty()).map(FileGroup::new).collect();
        let schema = self.source.table_schema().table_schema();
        let mut statistics = Statistics::new_unknown(schema);
        let rows = groups.iter().flat_map(FileGroup::iter).filter_map(|f| f.statistics.as_ref());
        statistics.num_rows = rows.fold(Precision::Exact(0), |sum, s| sum.add(&s.num_rows));
        let last = PARTITION_COLUMNS.len();
        let indices = columns.iter().map(|&c| if c < last { self.file_columns + c } else { c - last }).collect();
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(STORE_URL)?, self.source.clone())
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_output_ordering(order.into_iter().collect())
            .with_projection_indices(Some(indices))?
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    fn partitioned_file(&self, file: &FileEntry) -> Result<PartitionedFile> {
        let location = Path::parse(format!("{}/{}", self.folder, file.path)).map_err(|e| internal_datafusion_err!("{e}"))?;
        let last_modified = DateTime::from_timestamp_millis(file.modification_time_ms).unwrap_or_default();
        let meta = ObjectMeta { location, last_modified, size: file.size, e_tag: None, version: None };
        let mut statistics = Statistics::new_unknown(&Schema::new(self.source.table_schema().file_schema().fields().clone()));
        // 0 rows means that its writer gave no statistics.
        statistics.num_rows = usize::try_from(file.rows).ok().filter(|&n| n > 0).map_or(Precision::Absent, Precision::Exact);
        let values = vec![ScalarValue::from(file.tenant.as_str()), ScalarValue::Date32(Some(file.date))];
        Ok(PartitionedFile::new_from_meta(meta).with_partition_values(values).with_statistics(Arc::new(statistics)))
    }
}

/// The order of rows in every file: (metric, series_id, time), in the columns of `schema`.
///
/// # Errors
/// A key column is missing.
pub(crate) fn ordering(schema: &Schema) -> Result<LexOrdering> {
    let keys = ["metric", "series_id", "time"].map(|name| {
        let column = Column::new_with_schema(name, schema)?;
        Ok(PhysicalSortExpr::new_default(Arc::new(column)))
    });
    let keys = keys.into_iter().collect::<Result<Vec<_>>>()?;
    LexOrdering::new(keys).ok_or_else(|| internal_datafusion_err!("the key has columns"))
}
