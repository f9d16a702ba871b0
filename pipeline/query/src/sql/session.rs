//! What every statement starts from: functions, options, memory and a store, and nothing that reaches files.
//!
//! # Invariants
//! - No table factory, no file format, no URL table, no local file system: the only object store known is that of the tables.
//! - `now()` is the server's clock at the beginning of the statement.
//! - Text is Utf8 throughout, so that views do not change type between planning and answer.

use super::SqlSettings;
use super::catalog::{CATALOG, PUBLIC};
use super::error::{SqlError, SqlErrorKind};
use super::scan::STORE_URL;
use datafusion::common::{Result, plan_err};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateDefaults;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreRegistry;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use object_store::ObjectStore;
use std::num::NonZeroUsize;
use std::sync::Arc;
use url::Url;

/// Consumers that an out-of-memory error names.
const CONSUMERS_NAMED: usize = 3;

/// The state that all statements share; each adds its catalog and its time.
pub(super) fn base_state(settings: &SqlSettings, store: Arc<dyn ObjectStore>) -> Result<SessionState, SqlError> {
    let mut scalars = SessionStateDefaults::default_scalar_functions();
    scalars.extend(fletch_udfs::all());
    let state = SessionStateBuilder::new()
        .with_config(config(settings))
        .with_runtime_env(runtime_env(settings, store)?)
        .with_expr_planners(SessionStateDefaults::default_expr_planners())
        .with_scalar_functions(scalars)
        .with_higher_order_functions(SessionStateDefaults::default_higher_order_functions())
        .with_aggregate_functions(SessionStateDefaults::default_aggregate_functions())
        .with_window_functions(SessionStateDefaults::default_window_functions())
        .with_table_function_list(SessionStateDefaults::default_table_functions())
        .build();
    Ok(state)
}

fn config(settings: &SqlSettings) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(settings.threads)
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, PUBLIC);
    let options = config.options_mut();
    options.sql_parser.collect_spans = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.schema_force_view_types = false;
    options.execution.time_zone = Some("UTC".to_owned());
    // Plans are shown in full only when asked for.
    options.explain.logical_plan_only = false;
    config
}

fn runtime_env(settings: &SqlSettings, store: Arc<dyn ObjectStore>) -> Result<Arc<RuntimeEnv>, SqlError> {
    let named = NonZeroUsize::new(CONSUMERS_NAMED).expect("a constant above zero");
    let pool = TrackConsumersPool::new(FairSpillPool::new(settings.memory_bytes), named);
    let mode = match &settings.spill_dir {
        Some(dir) => {
            let failed = |e| SqlError::new(SqlErrorKind::Internal, format!("making the spill folder `{}`: {e}", dir.display()));
            std::fs::create_dir_all(dir).map_err(failed)?;
            DiskManagerMode::Directories(vec![dir.clone()])
        }
        None => DiskManagerMode::Disabled,
    };
    let disk = DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(settings.spill_bytes_max);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(disk)
        .with_object_store_registry(Arc::new(OnlyTables { store }))
        .build_arc()
        .map_err(SqlError::from)
}

/// Knows one store. Every other address, local files included, is refused.
#[derive(Debug)]
struct OnlyTables {
    store: Arc<dyn ObjectStore>,
}

impl ObjectStoreRegistry for OnlyTables {
    fn register_store(&self, _url: &Url, _store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>, DataFusionError> {
        if url.as_str().starts_with(STORE_URL) {
            Ok(self.store.clone())
        } else {
            plan_err!("no access to `{url}`: only the tables can be read")
        }
    }
}
