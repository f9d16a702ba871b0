//! `fletch check`: the same readers as `serve`, without running anything. Exit status 0: all good, 1: something is wrong.

use crate::config::{Flags, Settings};
use fletch_alerting::{rules, stream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Checks a config file and every rule file that it names.
///
/// # Errors
/// None so far; what is wrong with the files is printed and becomes the exit status.
pub fn config(file: &Path) -> anyhow::Result<ExitCode> {
    let flags = Flags { config: Some(file.to_owned()), ..Flags::default() };
    let settings = match Settings::load(&flags) {
        Ok(settings) => settings,
        Err(error) => {
            say(&format!("  FAILED: {error}"));
            return Ok(ExitCode::FAILURE);
        }
    };
    say(&format!("Checking {}", file.display()));
    for warning in &settings.warnings {
        say(&format!("  warning: {warning}"));
    }
    say(&format!(" SUCCESS: {} is valid", file.display()));
    let relative = |patterns: &[String]| patterns.iter().map(|p| settings.config_dir.join(p).display().to_string()).collect::<Vec<_>>();
    let prometheus = expand(&relative(&settings.rule_files));
    let streaming = expand(&relative(&settings.stream_rule_files));
    let (Some(prometheus), Some(streaming)) = (prometheus, streaming) else { return Ok(ExitCode::FAILURE) };
    let fine = prometheus.is_empty() || check_rules(&prometheus);
    let fine = streaming.iter().fold(fine, |fine, path| check_stream_rules(path) && fine);
    Ok(exit(fine))
}

/// Checks Prometheus rule files.
///
/// # Errors
/// None so far; see [`config`].
pub fn rules(files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    Ok(exit(check_rules(files)))
}

fn check_rules(files: &[PathBuf]) -> bool {
    let report = rules::check::check(files);
    say(report.output.trim_end());
    report.failed_files == 0
}

fn check_stream_rules(path: &Path) -> bool {
    say(&format!("Checking {}", path.display()));
    let checked = stream::check(path);
    match &checked {
        Ok(rules) => say(&format!("  SUCCESS: {rules} rules found")),
        Err(error) => say(&format!("  FAILED:\n{error}")),
    }
    checked.is_ok()
}

fn expand(patterns: &[String]) -> Option<Vec<PathBuf>> {
    match rules::file::expand(patterns) {
        Ok(paths) => Some(paths),
        Err(errors) => {
            errors.iter().for_each(|error| say(&format!("  FAILED: {error}")));
            None
        }
    }
}

fn exit(fine: bool) -> ExitCode {
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[allow(clippy::print_stdout, reason = "the answer of a command line tool")]
fn say(line: &str) {
    println!("{line}");
}
