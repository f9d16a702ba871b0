//! Nothing but this page: what is tested across crates is in `tests/` (SQL cases), `system/` (suites against real services) and `cases/` (data).
