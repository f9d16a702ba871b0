//! `fletch backup` and `fletch restore`.
//!
//! The tables go through `fletch_storage::tools`; here are the metadata store, the command line and what people must know about samples that
//! are only in the bus.

use super::progress::Bar;
use super::{Format, StoreArgs, say, say_json, text};
use crate::config::Settings;
use anyhow::{Context, bail};
use bytes::Bytes;
use fletch_alerting::store::{copy_sqlite, sqlite_file};
use fletch_common::{SharedClock, SystemClock};
use fletch_storage::delta::store::{open_existing_store, open_store};
use fletch_storage::tools::{self, BackupOptions, BackupReport, Manifest, RestoreOptions, RestoreReport};
use object_store::ObjectStore;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// What `fletch backup` is asked to do.
#[derive(Debug, Clone, clap::Args)]
pub struct BackupArgs {
    /// Where the backup goes: file:///dir, s3://bucket/prefix, … A place that has backups already gets only what is new.
    #[arg(long, value_name = "URL")]
    pub to: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields say it")]
    pub store: StoreArgs,
    /// Read everything back from the target and compare hashes before the backup counts, files of earlier backups included.
    #[arg(long)]
    pub check: bool,
    /// Leave the metadata store (alert states) out.
    #[arg(long)]
    pub no_metadata: bool,
    /// How the answer is written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// What `fletch restore` is asked to do.
#[derive(Debug, Clone, clap::Args)]
pub struct RestoreArgs {
    /// Where the backup is.
    #[arg(long, value_name = "URL")]
    pub from: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its fields say it")]
    pub store: StoreArgs,
    /// Which snapshot [default: the newest]; `--list` names them.
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,
    /// Name the snapshots that are there, and restore nothing.
    #[arg(long)]
    pub list: bool,
    /// Let the bus of the backup (the same embedded log, or the same Kafka topic) go on with the new store: the server then reads back what the
    /// bus still has and the snapshot has not. Without it a server begins with a new log.
    #[arg(long)]
    pub keep_bus: bool,
    /// Leave the metadata store (alert states) out.
    #[arg(long)]
    pub no_metadata: bool,
    /// How the answer is written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Copies the store away.
///
/// # Errors
/// A file is damaged, or one of the stores does not answer. Nothing counts then, and the next backup goes on.
pub async fn backup(args: &BackupArgs) -> anyhow::Result<ExitCode> {
    let settings = args.store.settings()?;
    let (source, url) = args.store.open()?;
    let target = open_store(&args.to, std::env::vars()).context("`--to`")?;
    if args.to.trim_end_matches('/') == url.trim_end_matches('/') {
        bail!("`--to` is the store itself: give another place");
    }
    let mut hints = Vec::new();
    // Before the tables: alert states then never stand ahead of the samples beside them.
    let metadata = if args.no_metadata { None } else { metadata_copy(&settings, &mut hints).await? };
    let clock: SharedClock = Arc::new(SystemClock);
    let bar = Bar::default();
    let options = BackupOptions { check: args.check, metadata };
    let report = tools::backup(&source, &target, &options, &clock, &bar).await;
    bar.finish();
    let report = report.context("the backup is not complete and does not count; run it again to go on")?;
    if args.format == Format::Json {
        say_json(&report)?;
    } else {
        backup_text(&url, &args.to, &report, &hints).iter().for_each(|line| say(line));
    }
    Ok(ExitCode::SUCCESS)
}

/// The metadata store as one file, when it is SQLite and there.
async fn metadata_copy(settings: &Settings, hints: &mut Vec<String>) -> anyhow::Result<Option<Bytes>> {
    let Some(file) = sqlite_file(&settings.metadata_store)? else {
        hints.push(
            "the metadata store is not a SQLite file: back it up with its own tools, e.g. `pg_dump --format=custom`, at the same time"
                .to_owned(),
        );
        return Ok(None);
    };
    if !file.exists() {
        hints.push(format!("there is no metadata store at {}, so no alert states are in this backup", file.display()));
        return Ok(None);
    }
    // Beside the original: it is as private there, and there is room for one more.
    let copy = beside(&file, "backup");
    let copied = copy_sqlite(&file, &copy).await;
    let bytes =
        copied.map_err(anyhow::Error::from).and_then(|()| std::fs::read(&copy).with_context(|| format!("reading {}", copy.display())));
    // Best effort: it has a name of its own.
    let _ = std::fs::remove_file(&copy);
    bytes.map(|bytes| Some(Bytes::from(bytes))).with_context(|| format!("copying the metadata store {}", file.display()))
}

fn beside(file: &Path, what: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{what}-{}", uuid::Uuid::new_v4()));
    PathBuf::from(name)
}

fn backup_text(url: &str, to: &str, report: &BackupReport, hints: &[String]) -> Vec<String> {
    let mut lines = vec![format!("backed up {url} to {to}"), format!("snapshot   {}", report.manifest.id)];
    lines.extend(manifest_lines(&report.manifest));
    let (files, bytes) = (text::count(report.copied_files), text::bytes(report.copied_bytes));
    let (had, had_bytes) = (text::count(report.present_files), text::bytes(report.present_bytes));
    lines.push(format!("copied     {files} files, {bytes}; {had} files, {had_bytes} were there already"));
    if let Some(until) = report.samples_until_ms.and_then(chrono::DateTime::from_timestamp_millis) {
        lines.push(format!(
            "samples    flushed until {}; what was acknowledged later is only in the bus and not in this backup (POST /api/v1/admin/flush before a backup includes it)",
            until.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
        ));
    }
    lines.extend(hints.iter().map(|hint| format!("note       {hint}")));
    lines
}

fn manifest_lines(manifest: &Manifest) -> Vec<String> {
    let rows = manifest.tables.iter().map(|t| {
        let bytes = t.files.iter().map(|f| f.size).sum();
        vec![format!("  {}", t.name), t.version.to_string(), text::count(t.files.len() as u64), text::count(t.rows), text::bytes(bytes)]
    });
    let mut lines = text::table(&["  table", ">version", ">files", ">rows", ">size"], &rows.collect::<Vec<_>>());
    lines.extend(manifest.metadata.as_ref().map(|copy| format!("  metadata store ({}), {}", copy.kind, text::bytes(copy.size))));
    lines
}

/// Brings a snapshot back.
///
/// # Errors
/// The target is not empty, the backup is damaged, or one of the stores does not answer.
pub async fn restore(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let from = open_existing_store(&args.from, std::env::vars()).context("`--from`")?;
    if args.list {
        return list(from.as_ref(), args.format).await;
    }
    let settings = args.store.settings()?;
    let to = open_store(&settings.object_store, std::env::vars()).context("`--object-store`")?;
    let manifest = tools::choose(from.as_ref(), args.snapshot.as_deref()).await?;
    // Before the tables: with them the restore is done and cannot be run again.
    let states = restore_metadata(from.as_ref(), &settings, &manifest, args.no_metadata).await?;
    let bar = Bar::default();
    let options = RestoreOptions { snapshot: Some(manifest.id.clone()), keep_bus: args.keep_bus };
    let report = tools::restore(&from, &to, &options, &bar).await;
    bar.finish();
    let report = report?;
    if args.format == Format::Json {
        say_json(&report)?;
    } else {
        restore_text(&settings.object_store, &report, states.as_deref(), args.keep_bus).iter().for_each(|line| say(line));
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts the copy of the metadata store where the server expects its own. One that is there is never replaced.
async fn restore_metadata(
    from: &dyn ObjectStore,
    settings: &Settings,
    manifest: &Manifest,
    left_out: bool,
) -> anyhow::Result<Option<PathBuf>> {
    if left_out {
        return Ok(None);
    }
    let Some(bytes) = tools::metadata_of(from, manifest).await? else { return Ok(None) };
    let Some(file) = sqlite_file(&settings.metadata_store)? else {
        bail!("the backup holds alert states of SQLite and the metadata store is another database: give --no-metadata to leave them out");
    };
    if !file.exists() {
        write_new(&file, &bytes).with_context(|| format!("writing the metadata store {}", file.display()))?;
    } else if std::fs::read(&file).ok().as_deref() != Some(&bytes[..]) {
        bail!("there is a metadata store at {} already: move it away, or give --no-metadata to keep it", file.display());
    }
    Ok(Some(file))
}

/// A new file that is whole or not there.
fn write_new(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let staging = beside(file, "restore");
    let written = std::fs::File::create_new(&staging).and_then(|mut out| {
        out.write_all(bytes)?;
        out.sync_all()?;
        std::fs::hard_link(&staging, file)
    });
    // Best effort: it has a name of its own.
    let _ = std::fs::remove_file(&staging);
    written
}

async fn list(from: &dyn ObjectStore, format: Format) -> anyhow::Result<ExitCode> {
    let all = tools::manifests(from).await?;
    if format == Format::Json {
        say_json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = all.iter().map(|m| {
        let files = m.tables.iter().flat_map(|t| &t.files);
        let rows = m.tables.iter().find(|t| t.name == "samples").map_or(0, |t| t.rows);
        vec![m.id.clone(), text::count(rows), text::bytes(files.map(|f| f.size).sum()), m.bus.clone().unwrap_or_else(|| "-".to_owned())]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        say("there is no complete snapshot in this place");
    } else {
        text::table(&["snapshot", ">samples", ">size", "bus"], &rows).iter().for_each(|line| say(line));
    }
    Ok(ExitCode::SUCCESS)
}

fn restore_text(url: &str, report: &RestoreReport, states: Option<&Path>, keep_bus: bool) -> Vec<String> {
    let mut lines = vec![format!("restored snapshot {} to {url}", report.manifest.id)];
    lines.extend(manifest_lines(&report.manifest));
    let present = if report.present_files > 0 {
        format!("; {} were there from an interrupted restore", text::count(report.present_files))
    } else {
        String::new()
    };
    lines.push(format!("copied     {} files, {}{present}", text::count(report.files), text::bytes(report.bytes)));
    lines.extend(states.map(|file| format!("alerts     states are in {}", file.display())));
    let bus = report.manifest.bus.as_deref().unwrap_or("none");
    lines.push(if keep_bus {
        format!("bus        `{bus}` goes on here: start the server with its log or topic, and it reads back what they have and the snapshot has not")
    } else {
        "bus        a server begins with a new log: samples that were only in the old one are not here (`--keep-bus` reads them back)".to_owned()
    });
    lines.push("check      fletch verify --object-store …".replace('…', url));
    lines
}
