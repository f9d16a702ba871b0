//! Compaction against a store that breaks on purpose.
