//! The names that a statement can use: catalog `fletch` with schemas `public` (tables) and `m` (one view per metric).
//!
//! A catalog belongs to one statement of one tenant: every table in it is bound to the statement's read view, so that no name can reach
//! another tenant's rows or another version.
//!
//! # Not here
//! `information_schema`, which DataFusion adds over these names; table functions ([`super::functions`]).

use super::scan::cardinality::{CARDINALITY, CardinalityTable};
use super::scan::metric::MetricTable;
use super::scan::plain::{SeriesTable, TierTable};
use super::scan::samples::SamplesTable;
use async_trait::async_trait;
use datafusion::catalog::memory::{MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider};
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::TableType;
use fletch_schemas::tables::Table;
use fletch_storage::tiers::TierSnapshot;
use fletch_storage::{ReadView, SelectLimits};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// The only catalog.
pub const CATALOG: &str = "fletch";
/// The schema of the tables; names without a schema are looked up here.
pub const PUBLIC: &str = "public";
/// The schema of the views over metrics.
pub const METRICS: &str = "m";

/// The names of one statement.
///
/// `metrics`: the metrics to *list* (for `information_schema` and metadata calls); a view that is not listed can be used all the same.
///
/// # Errors
/// A name is taken twice, which cannot be.
pub(crate) fn catalog_of(
    view: &ReadView,
    tiers: &[TierSnapshot],
    metrics: Arc<[String]>,
    limits: SelectLimits,
) -> Result<Arc<dyn CatalogProviderList>> {
    let tables = MemorySchemaProvider::new();
    for (table, provider) in tables_of(view, tiers) {
        tables.register_table(table.name().to_owned(), provider)?;
    }
    tables.register_table(CARDINALITY.to_owned(), Arc::new(CardinalityTable::new(view.clone())))?;
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(PUBLIC, Arc::new(tables))?;
    catalog.register_schema(METRICS, Arc::new(MetricSchema { view: view.clone(), names: metrics, limits, opened: Mutex::default() }))?;
    let list = MemoryCatalogProviderList::new();
    list.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
    Ok(Arc::new(list))
}

/// The tables that exist for a view, by name. A tier, which has versions of its own, exists once the tenant has a file in it.
pub(crate) fn tables_of(view: &ReadView, tiers: &[TierSnapshot]) -> Vec<(Table, Arc<dyn TableProvider>)> {
    let mut tables: Vec<(Table, Arc<dyn TableProvider>)> = vec![(Table::Samples, Arc::new(SamplesTable::new(view.clone())))];
    for TierSnapshot { tier, files, .. } in tiers {
        let files: Vec<_> = files.tenant_files(view.tenant(), i32::MIN..=i32::MAX).cloned().collect();
        if !files.is_empty() {
            tables.push((tier.table, Arc::new(TierTable::new(view.clone(), tier.table, files))));
        }
    }
    tables.push((Table::Series, Arc::new(SeriesTable::new(view.clone()))));
    tables
}

/// Schema `m`. A view is opened once per statement, so that its columns cannot change while the statement runs.
#[derive(Debug)]
struct MetricSchema {
    view: ReadView,
    names: Arc<[String]>,
    limits: SelectLimits,
    opened: Mutex<HashMap<String, Arc<MetricTable>>>,
}

#[async_trait]
impl SchemaProvider for MetricSchema {
    fn table_names(&self) -> Vec<String> {
        self.names.to_vec()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if let Some(open) = self.opened.lock().get(name) {
            return Ok(Some(open.clone()));
        }
        let Some(table) = MetricTable::open(&self.view, name, self.limits).await.map_err(super::error::storage)? else { return Ok(None) };
        let table = self.opened.lock().entry(name.to_owned()).or_insert(Arc::new(table)).clone();
        Ok(Some(table))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::View))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name) || self.opened.lock().contains_key(name)
    }
}
