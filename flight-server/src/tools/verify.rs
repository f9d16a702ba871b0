//! `fletch verify`: whether the store holds what its logs say. Exit status 0: it does, 1: it does not.

use super::progress::Bar;
use super::{Format, StoreArgs, say, say_json, text};
use fletch_storage::tools::{VerifyOptions, VerifyReport, verify};
use std::process::ExitCode;

/// Checks a store.
///
/// # Errors
/// The store does not answer.
pub async fn check(args: &StoreArgs, options: VerifyOptions, format: Format) -> anyhow::Result<ExitCode> {
    let (store, url) = args.open()?;
    let bar = Bar::default();
    let report = verify(&store, options, &bar).await;
    bar.finish();
    let report = report?;
    if format == Format::Json {
        say_json(&report)?;
    } else {
        report_text(&url, options, &report).iter().for_each(|line| say(line));
    }
    Ok(if report.problems_total == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report_text(url: &str, options: VerifyOptions, report: &VerifyReport) -> Vec<String> {
    let what = if options.fast { "logs and sizes only" } else { "logs, sizes, hashes, rows and labels" };
    let mut lines = vec![format!("{url}: {what}"), String::new()];
    let rows = report.tables.iter().map(|t| {
        let version = t.version.map_or_else(|| "?".to_owned(), |v| v.to_string());
        let rows = if options.fast { "-".to_owned() } else { text::count(t.rows) };
        vec![t.name.clone(), version, text::count(t.commits), text::count(t.checkpoints), text::count(t.files), rows, text::bytes(t.bytes)]
    });
    let headers = ["table", ">version", ">commits", ">checkpoints", ">files", ">rows", ">size"];
    lines.extend(text::table(&headers, &rows.collect::<Vec<_>>()));
    for table in &report.tables {
        if table.without_hash > 0 {
            let n = text::count(table.without_hash);
            lines.push(format!("{}: {n} files have no hash in the log (another writer's): only their content was checked", table.name));
        }
        if table.unnamed_files > 0 {
            let (n, size) = (text::count(table.unnamed_files), text::bytes(table.unnamed_bytes));
            lines.push(format!(
                "{}: no commit names {n} files ({size}): being written now, or left by a crash; readers do not see them",
                table.name
            ));
        }
    }
    lines.extend(report.notes.iter().cloned());
    lines.push(String::new());
    for problem in &report.problems {
        lines.push(format!("PROBLEM tables/{}/{}", problem.table, problem.object));
        lines.push(format!("  what: {}", problem.what));
        lines.push(format!("  do:   {}", problem.advice));
    }
    let unnamed = report.problems_total.saturating_sub(report.problems.len() as u64);
    if unnamed > 0 {
        lines.push(format!("and {} more problems", text::count(unnamed)));
    }
    lines.push(match report.problems_total {
        0 => "all good".to_owned(),
        n => format!("{} problems", text::count(n)),
    });
    lines
}
