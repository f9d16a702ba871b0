//! Structured logs on standard error.

use tracing_subscriber::EnvFilter;

/// Installs the log of the process. A filter that cannot be read falls back to `info` and says so.
pub fn start_logging(level: &str, format: &str) {
    // The client of the stores tells of each of its retries; what comes of them is in our own messages.
    let quieter = format!("{level},object_store=warn");
    let level = if level.contains("object_store") || !level.contains("info") { level } else { &quieter };
    let (filter, bad) = match EnvFilter::try_new(level) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second installation (tests that start several servers in one process) keeps the first.
    let _ = if format == "json" { builder.json().try_init() } else { builder.try_init() };
    if let Some(error) = bad {
        tracing::warn!("--log-level `{level}`: {error}; logging at `info`");
    }
}
