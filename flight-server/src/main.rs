//! `fletch`: parses the command line and calls the library.

use clap::{Args, Parser, Subcommand};
use fletch::app;
use fletch::config::{Flags, Settings, parse_duration};
use fletch::tools::backup::{BackupArgs, RestoreArgs};
use fletch::tools::{self, Format, StoreArgs};
use fletch_storage::tools::VerifyOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Metrics monitoring and alerting on open tables.
///
/// Takes samples by Prometheus remote write, text, JSON and Kafka, stores them as Delta tables of Parquet files, and answers PromQL, SQL and
/// Arrow Flight SQL on the same data.
#[derive(Debug, Parser)]
#[command(name = "fletch", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How much to log: error, warn, info, debug, trace, or a filter like `info,fletch_storage=debug`.
    #[arg(long, global = true, default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// How log lines look.
    #[arg(long, global = true, default_value = "text", value_parser = ["text", "json"], value_name = "FORMAT")]
    log_format: String,
}

const EXAMPLES: &str = "\
Examples:
  fletch serve                                   one process, data in ./fletch-data, nothing else needed
  fletch serve --config prometheus.yml           with rule files and webhooks from a config file
  fletch serve --kafka-brokers host:9092 --object-store s3://bucket/prefix
  fletch check config prometheus.yml             say what is wrong with a config file, or that nothing is
  fletch check rules rules/*.yml                 the same for rule files
  fletch tables                                  what is in ./fletch-data/store; also `tables describe samples`
  fletch verify --object-store s3://bucket/prefix
  fletch backup --to s3://other/prefix           everything that is flushed; again later copies only what is new
  fletch restore --from s3://other/prefix --data-dir ./new";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(Serve),
    /// Check files without running anything.
    #[command(subcommand)]
    Check(Check),
    /// Say what is in the store: rows, sizes, dates, tenants, offsets per table. Works with and without a running server.
    Tables(Tables),
    /// Check that the store holds what its logs say: hashes, order, labels. Exit status 1 when something is wrong.
    Verify(Verify),
    /// Copy all tables, consistent and only what is new, to another place. Works beside a running server.
    Backup(BackupArgs),
    /// Bring a backup back into an empty store.
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
struct Tables {
    #[command(subcommand)]
    what: Option<TablesWhat>,
    #[command(flatten)]
    store: StoreArgs,
    /// How the answer is written.
    #[arg(long, value_enum, default_value = "text", global = true)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum TablesWhat {
    /// All tables (the default).
    List {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// One table: columns, properties, sizes per date, encodings.
    Describe {
        /// Its name, e.g. `samples`.
        name: String,
        #[command(flatten)]
        store: StoreArgs,
    },
}

#[derive(Debug, Args)]
struct Verify {
    #[command(flatten)]
    store: StoreArgs,
    /// Logs and sizes only: reads no file.
    #[arg(long)]
    fast: bool,
    /// How the answer is written.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Debug, Args)]
struct Serve {
    /// YAML file: prometheus.yml, plus a section `fletch:`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for the log, the metadata and (by default) the tables [default: ./fletch-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where HTTP listens; port 0 takes a free one [default: 127.0.0.1:9090]
    #[arg(long, value_name = "HOST:PORT")]
    http_addr: Option<SocketAddr>,
    /// Where Arrow Flight SQL listens; port 0 takes a free one [default: 127.0.0.1:31337]
    #[arg(long, value_name = "HOST:PORT")]
    flight_addr: Option<SocketAddr>,
    /// Use Kafka as the bus instead of the embedded log: `host:port,host:port`.
    #[arg(long, value_name = "BROKERS")]
    kafka_brokers: Option<String>,
    /// Where the tables live: file:///dir, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix [default: <data-dir>/store]
    #[arg(long, value_name = "URL")]
    object_store: Option<String>,
    /// Longest time until samples are in the tables, for other engines to read (queries here see them at once) [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    flush_interval: Option<Duration>,
}

#[derive(Debug, Subcommand)]
enum Check {
    /// Check a config file and the rule files that it names.
    Config {
        /// The file.
        file: PathBuf,
    },
    /// Check rule files.
    Rules {
        /// The files; globs are expanded by the shell.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    app::start_logging(&cli.log_level, &cli.log_format);
    let done = match cli.command {
        Command::Serve(serve) => run_server(serve),
        Command::Check(Check::Config { file }) => fletch::check::config(&file),
        Command::Check(Check::Rules { files }) => fletch::check::rules(&files),
        Command::Tables(tables) => show_tables(&tables),
        Command::Verify(v) => tools::run(tools::verify::check(&v.store, VerifyOptions { fast: v.fast }, v.format)),
        Command::Backup(args) => tools::run(tools::backup::backup(&args)),
        Command::Restore(args) => tools::run(tools::backup::restore(&args)),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{}", causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn show_tables(tables: &Tables) -> anyhow::Result<ExitCode> {
    match &tables.what {
        None => tools::run(tools::tables::list(&tables.store, tables.format)),
        Some(TablesWhat::List { store }) => tools::run(tools::tables::list(&store.or(&tables.store), tables.format)),
        Some(TablesWhat::Describe { name, store }) => tools::run(tools::tables::show(&store.or(&tables.store), name, tables.format)),
    }
}

fn run_server(serve: Serve) -> anyhow::Result<ExitCode> {
    let flags = Flags {
        config: serve.config,
        data_dir: serve.data_dir,
        http_addr: serve.http_addr,
        flight_addr: serve.flight_addr,
        object_store: serve.object_store,
        kafka_brokers: serve.kafka_brokers,
        flush_interval: serve.flush_interval,
    };
    let settings = Settings::load(&flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("fletch").build()?;
    runtime.block_on(app::run(settings))?;
    Ok(ExitCode::SUCCESS)
}

/// The error with its causes. Many libraries repeat their cause in their own text: what was said already is left out.
fn causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |mut said, cause| {
        let text = cause.to_string();
        if !said.contains(&text) {
            said.push_str(if said.is_empty() { "" } else { ": " });
            said.push_str(&text);
        }
        said
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow!("no answer").context("reading `a`: no answer").context("`--object-store`");
        assert_eq!(causes(&error), "`--object-store`: reading `a`: no answer");
        assert_eq!(causes(&anyhow!("b").context("a")), "a: b");
    }
}
