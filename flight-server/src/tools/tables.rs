//! `fletch tables`: what is in the store.

use super::{Format, StoreArgs, say, say_json, text};
use anyhow::bail;
use fletch_storage::tools::{StoreSummary, TableDetails, TableSummary, describe, summarize};
use std::process::ExitCode;

/// Tenants and offsets that are named per table in text; JSON has all of them.
const NAMED_MAX: usize = 10;

/// `fletch tables list`.
///
/// # Errors
/// The store or a table cannot be read.
pub async fn list(args: &StoreArgs, format: Format) -> anyhow::Result<ExitCode> {
    let (store, url) = args.open()?;
    let summary = summarize(&store).await?;
    if format == Format::Json {
        say_json(&summary)?;
    } else {
        list_text(&url, &summary).iter().for_each(|line| say(line));
    }
    Ok(ExitCode::SUCCESS)
}

/// `fletch tables describe NAME`.
///
/// # Errors
/// As [`list`]; there is no such table.
pub async fn show(args: &StoreArgs, name: &str, format: Format) -> anyhow::Result<ExitCode> {
    let (store, url) = args.open()?;
    let Some(details) = describe(&store, name).await? else {
        bail!("there is no table `{name}` in {url}: `fletch tables list` names those that are there");
    };
    if format == Format::Json {
        say_json(&details)?;
    } else {
        details_text(&details).iter().for_each(|line| say(line));
    }
    Ok(ExitCode::SUCCESS)
}

fn list_text(url: &str, summary: &StoreSummary) -> Vec<String> {
    let mut lines =
        vec![format!("store  {url}"), format!("bus    {}", summary.bus.as_deref().unwrap_or("none has claimed it")), String::new()];
    if summary.tables.is_empty() {
        lines.push("no tables yet".to_owned());
    }
    let headers = ["table", ">version", ">files", ">rows", ">size", ">B/row", ">B/sample", ">tenants", "dates"];
    let row = |t: &TableSummary| {
        vec![
            t.name.clone(),
            t.version.to_string(),
            text::count(t.files),
            text::count(t.rows),
            text::bytes(t.bytes),
            text::ratio(t.bytes_per_row),
            text::ratio(t.bytes_per_sample),
            text::count(t.tenants.len() as u64),
            dates(t),
        ]
    };
    if !summary.tables.is_empty() {
        lines.extend(text::table(&headers, &summary.tables.iter().map(row).collect::<Vec<_>>()));
        lines.push(String::new());
        lines.push(format!("bytes per sample at rest, files and logs of samples and series: {}", text::ratio(summary.bytes_per_sample)));
    }
    for table in summary.tables.iter().filter(|t| !t.offsets.is_empty()) {
        lines.push(String::new());
        lines.push(format!("offsets in {}", table.name));
        lines.extend(offsets(table));
    }
    lines.extend(summary.not_tables.iter().map(|name| format!("`tables/{name}` has no log and is not a table")));
    lines
}

fn dates(table: &TableSummary) -> String {
    table.dates.as_ref().map_or_else(|| "-".to_owned(), |(a, b)| if a == b { a.clone() } else { format!("{a} … {b}") })
}

fn offsets(table: &TableSummary) -> Vec<String> {
    let mut lines: Vec<String> = table.offsets.iter().take(NAMED_MAX).map(|(app, version)| format!("  {app} = {version}")).collect();
    if table.offsets.len() > NAMED_MAX {
        lines.push(format!("  and {} more: --format json names all", table.offsets.len() - NAMED_MAX));
    }
    lines
}

fn details_text(details: &TableDetails) -> Vec<String> {
    let s = &details.summary;
    let mut lines = vec![
        format!("table       {}", s.name),
        format!("version     {}", s.version),
        format!("files       {} ({} more are removed and wait for the vacuum)", text::count(s.files), text::count(s.removed_files)),
        format!("rows        {}", text::count(s.rows)),
        format!("size        {}, log {}, {} bytes per row", text::bytes(s.bytes), text::bytes(s.log_bytes), text::ratio(s.bytes_per_row)),
        format!("partitions  {}", details.partition_columns.join(", ")),
        format!("dates       {}", dates(s)),
        String::new(),
        "columns".to_owned(),
    ];
    let columns = details.columns.iter().map(|(name, kind, nullable)| {
        vec![format!("  {name}"), kind.clone(), if *nullable { "nullable".to_owned() } else { String::new() }]
    });
    lines.extend(text::table(&["  name", "type", ""], &columns.collect::<Vec<_>>()));
    lines.push(String::new());
    lines.push("properties".to_owned());
    lines.extend(details.properties.iter().map(|(key, value)| format!("  {key} = {}", value.as_deref().unwrap_or("null"))));
    if !s.offsets.is_empty() {
        lines.push(String::new());
        lines.push("offsets".to_owned());
        lines.extend(offsets(s));
    }
    lines.push(String::new());
    let partitions = details.partitions.iter().map(|p| {
        vec![
            p.tenant.clone(),
            p.date.clone(),
            text::count(p.files),
            text::count(p.rows),
            text::bytes(p.bytes),
            text::ratio(p.bytes_per_row),
        ]
    });
    lines.extend(text::table(&["tenant", "date", ">files", ">rows", ">size", ">B/row"], &partitions.collect::<Vec<_>>()));
    lines.push(String::new());
    lines.push(format!("encodings of the {} newest files", details.encodings_of_files));
    let encodings = details.encodings.iter().map(|c| {
        let factor = (c.compressed_bytes > 0).then(|| c.uncompressed_bytes as f64 / c.compressed_bytes as f64);
        vec![
            format!("  {}", c.column),
            c.encodings.join(", "),
            c.compression.join(", "),
            text::bytes(c.compressed_bytes),
            text::ratio(factor),
        ]
    });
    lines.extend(text::table(&["  column", "encodings", "codec", ">size", ">factor"], &encodings.collect::<Vec<_>>()));
    lines
}
