//! The tables of the tiers that a process writes or reads, for queries.

use super::Tier;
use crate::StorageError;
use crate::delta::{DeltaTable, Snapshot};
use std::sync::Arc;

/// Tiers with their tables, narrow windows first.
#[derive(Debug, Clone, Default)]
pub struct Tiers(Vec<(Tier, Arc<DeltaTable>)>);

/// One tier as a query sees it.
#[derive(Debug, Clone)]
pub struct TierSnapshot {
    /// Which one.
    pub tier: Tier,
    /// Where its files are.
    pub(crate) table: Arc<DeltaTable>,
    /// One version of them.
    pub files: Arc<Snapshot>,
}

impl Tiers {
    /// These tiers with their open tables, in any order.
    pub fn new(mut tiers: Vec<(Tier, Arc<DeltaTable>)>) -> Self {
        tiers.sort_by_key(|(tier, _)| tier.width_ms);
        Self(tiers)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What this process knows of them. Never waits.
    pub fn snapshots(&self) -> Vec<TierSnapshot> {
        self.0.iter().map(|(tier, table)| TierSnapshot { tier: *tier, table: table.clone(), files: table.snapshot() }).collect()
    }

    /// Looks for newer versions first: another process may write them.
    ///
    /// # Errors
    /// The log of a tier cannot be read.
    pub async fn refreshed(&self) -> Result<Vec<TierSnapshot>, StorageError> {
        for (_, table) in &self.0 {
            table.refresh().await?;
        }
        Ok(self.snapshots())
    }
}
