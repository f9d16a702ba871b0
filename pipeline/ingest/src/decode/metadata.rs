//! Type, unit and help of the metric families of one request, one entry per family.

use super::outcome::{Decoded, Place, RejectReason};
use super::validate::clip;
use fletch_common::Limits;
use fletch_schemas::{MetricMetadata, TenantId};
use std::collections::HashMap;

/// Most metric families of one request about which something is said; more are refused. Prometheus sends 2,000 at a time.
pub const METADATA_PER_REQUEST_MAX: usize = 100_000;

/// Collects metadata into a [`Decoded`]. What is said later about a family replaces what was said before.
#[derive(Debug)]
pub(super) struct Families {
    first: usize,
    by_name: HashMap<String, usize>,
}

impl Families {
    pub(super) fn new(out: &Decoded) -> Self {
        Self { first: out.metadata.len(), by_name: HashMap::new() }
    }

    /// The entry of a family, new or known. `None` after refusing it.
    pub(super) fn entry<'o>(
        &mut self,
        out: &'o mut Decoded,
        tenant: &TenantId,
        limits: &Limits,
        place: Place,
        name: &str,
    ) -> Option<&'o mut MetricMetadata> {
        if let Some(&at) = self.by_name.get(name) {
            return Some(&mut out.metadata[at].1);
        }
        if let Some(problem) = self.problem(out, limits, name) {
            out.reject(place, RejectReason::Metadata, 1, || (None, format!("metadata of metric `{}`: {problem}", clip(name, 64))));
            return None;
        }
        let at = out.metadata.len();
        self.by_name.insert(name.to_owned(), at);
        out.metadata.push((tenant.clone(), MetricMetadata { metric: name.to_owned(), ..MetricMetadata::default() }));
        out.stats.metadata += 1;
        Some(&mut out.metadata[at].1)
    }

    fn problem(&self, out: &Decoded, limits: &Limits, name: &str) -> Option<String> {
        if name.is_empty() {
            return Some("the metric has no name".to_owned());
        }
        if name.contains('\0') {
            return Some("the name contains a NUL character".to_owned());
        }
        if name.len() > limits.label_value_bytes_max {
            return Some(format!(
                "the name is {} bytes, the limit is {} (`label_value_bytes_max`)",
                name.len(),
                limits.label_value_bytes_max
            ));
        }
        (out.metadata.len() - self.first >= METADATA_PER_REQUEST_MAX)
            .then(|| format!("the request names more than {METADATA_PER_REQUEST_MAX} metrics"))
    }
}

/// Replaces `field`, cut to the longest label value: half a sentence of help is better than none.
pub(super) fn set_text(field: &mut String, text: &str, limits: &Limits) {
    text[..text.floor_char_boundary(limits.label_value_bytes_max)].clone_into(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_merged_bounded_and_checked() {
        let (tenant, limits) = (TenantId::default(), Limits::default());
        let mut out = Decoded::new();
        let mut families = Families::new(&out);
        let mut add = |out: &mut Decoded, name: &str| families.entry(out, &tenant, &limits, Place::Line(1), name).is_some();
        for i in 0..METADATA_PER_REQUEST_MAX {
            assert!(add(&mut out, &format!("m{i}")));
        }
        assert!(add(&mut out, "m7"), "a known family is no new entry");
        assert!(!add(&mut out, "one_more"));
        assert_eq!((out.metadata.len(), out.stats.metadata), (METADATA_PER_REQUEST_MAX, METADATA_PER_REQUEST_MAX as u64));
        for bad in ["", "a\0b", &"x".repeat(limits.label_value_bytes_max + 1)] {
            assert!(!add(&mut out, bad));
        }
        assert_eq!(out.stats.rejected_for(RejectReason::Metadata), 4);
        assert!(out.rejects.iter().all(|r| r.message.len() < 300), "{:?}", out.rejects);
    }

    #[test]
    fn help_is_cut_at_a_character() {
        let limits = Limits { label_value_bytes_max: 4, ..Limits::default() };
        let mut help = String::from("old");
        set_text(&mut help, "abcöd", &limits);
        assert_eq!(help, "abc");
    }
}
