//! Dense numbers for the series of this process, and the one map from label sets to them.
//!
//! # Invariants
//! - A number is given once per (tenant, labels) and never reused while the process lives.
//! - Numbers are dense from 0, so that later stages index plain vectors with them.

use crate::quota::{QuotaProblem, SeriesQuotas};
use ahash::RandomState;
use fletch_schemas::{LabelError, Labels, TenantId};
use hashbrown::HashTable;
use parking_lot::RwLock;
use std::sync::{Arc, OnceLock};

/// Dense number of a series in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SeriesRef(pub u32);

impl SeriesRef {
    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One series.
#[derive(Debug, PartialEq, Eq)]
pub struct Series {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its labels, `__name__` included.
    pub labels: Labels,
    /// `series_id` without a probe: what partitioning uses, and the stored id unless two label sets collide.
    pub hash: i64,
}

#[derive(Debug, Default)]
struct Inner {
    by_labels: HashTable<u32>,
    series: Vec<Arc<Series>>,
}

/// Why a series has no number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Admission {
    /// The bytes are not labels.
    #[error(transparent)]
    Labels(#[from] LabelError),
    /// A quota is used up.
    #[error(transparent)]
    Quota(#[from] QuotaProblem),
}

/// All series that this process has met.
#[derive(Debug, Default)]
pub struct SeriesRegistry {
    hasher: RandomState,
    quotas: OnceLock<Arc<SeriesQuotas>>,
    inner: RwLock<Inner>,
}

impl SeriesRegistry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of a series, new or known.
    pub fn resolve(&self, tenant: &TenantId, labels: &Labels) -> SeriesRef {
        let hash = self.hash(tenant, labels);
        if let Some(found) = self.inner.read().find(hash, tenant, labels.as_bytes()) {
            return found;
        }
        let mut inner = self.inner.write();
        if let Some(found) = inner.find(hash, tenant, labels.as_bytes()) {
            return found;
        }
        let number = u32::try_from(inner.series.len()).expect("fewer than 2^32 series in one process");
        inner.series.push(Arc::new(Series { tenant: tenant.clone(), labels: labels.clone(), hash: labels.series_id(0) }));
        let Inner { by_labels, series } = &mut *inner;
        by_labels.insert_unique(hash, number, |&n| self.hash(&series[n as usize].tenant, &series[n as usize].labels));
        SeriesRef(number)
    }

    /// The number of the series with these canonical label bytes, and whether it is new. Allocates for a new series only.
    ///
    /// # Errors
    /// [`LabelError::NotCanonical`] when the bytes are not what [`Labels::as_bytes`] gives.
    pub fn resolve_canonical(&self, tenant: &TenantId, canonical: &[u8]) -> Result<(SeriesRef, bool), LabelError> {
        let hash = self.hasher.hash_one((tenant.as_str(), canonical));
        if let Some(found) = self.inner.read().find(hash, tenant, canonical) {
            return Ok((found, false));
        }
        let labels = Labels::from_canonical(canonical)?;
        Ok((self.resolve(tenant, &labels), true))
    }

    /// From now on [`admit_canonical`](Self::admit_canonical) asks these quotas. The first call counts.
    pub fn set_quotas(&self, quotas: Arc<SeriesQuotas>) {
        let _ = self.quotas.set(quotas);
    }

    /// As [`resolve_canonical`](Self::resolve_canonical), for series that a sender brings: a new one needs room in its tenant's quotas.
    ///
    /// # Errors
    /// [`Admission`].
    pub fn admit_canonical(&self, tenant: &TenantId, canonical: &[u8]) -> Result<(SeriesRef, bool), Admission> {
        let Some(quotas) = self.quotas.get() else { return Ok(self.resolve_canonical(tenant, canonical)?) };
        let hash = self.hasher.hash_one((tenant.as_str(), canonical));
        if let Some(found) = self.inner.read().find(hash, tenant, canonical) {
            return Ok((found, false));
        }
        let labels = Labels::from_canonical(canonical)?;
        Ok(quotas.admit(tenant, &labels, || self.find(tenant, &labels), || self.resolve(tenant, &labels))?)
    }

    /// The number of a series if it is known.
    pub fn find(&self, tenant: &TenantId, labels: &Labels) -> Option<SeriesRef> {
        self.inner.read().find(self.hash(tenant, labels), tenant, labels.as_bytes())
    }

    /// The series of a number.
    pub fn get(&self, series: SeriesRef) -> Arc<Series> {
        self.inner.read().series[series.index()].clone()
    }

    /// Runs `f` over the series from number `from` on, under one read lock.
    pub fn with<T>(&self, f: impl FnOnce(&[Arc<Series>]) -> T) -> T {
        f(&self.inner.read().series)
    }

    /// How many series are known.
    pub fn len(&self) -> usize {
        self.inner.read().series.len()
    }

    /// Whether no series is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hash(&self, tenant: &TenantId, labels: &Labels) -> u64 {
        self.hasher.hash_one((tenant.as_str(), labels.as_bytes()))
    }
}

impl Inner {
    fn find(&self, hash: u64, tenant: &TenantId, canonical: &[u8]) -> Option<SeriesRef> {
        let same = |&n: &u32| {
            let s = &self.series[n as usize];
            s.labels.as_bytes() == canonical && s.tenant == *tenant
        };
        self.by_labels.find(hash, same).map(|&n| SeriesRef(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_bytes_and_labels_lead_to_one_number() {
        let registry = SeriesRegistry::new();
        let (a, b) = (TenantId::default(), TenantId::new("b").expect("valid"));
        let up = Labels::from_pairs([("__name__", "up"), ("job", "x")]).expect("valid");
        assert_eq!(registry.resolve_canonical(&a, up.as_bytes()), Ok((SeriesRef(0), true)));
        assert_eq!(registry.resolve(&a, &up), SeriesRef(0));
        assert_eq!(registry.resolve_canonical(&a, up.as_bytes()), Ok((SeriesRef(0), false)));
        assert_eq!(registry.resolve(&b, &up), SeriesRef(1), "another tenant, another series");
        assert_eq!(registry.resolve_canonical(&b, up.as_bytes()), Ok((SeriesRef(1), false)));
        assert_eq!(registry.find(&a, &Labels::empty()), None);
        assert_eq!(registry.resolve_canonical(&a, b"b\xff1\xffa\xff1\xff"), Err(LabelError::NotCanonical));
        assert_eq!((registry.len(), registry.get(SeriesRef(1)).hash), (2, up.series_id(0)));
    }
}
