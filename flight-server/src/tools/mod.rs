//! Commands that work on a store as a whole: `fletch tables`, `verify`, `backup`, `restore`.
//!
//! They open the store by its URL and nothing else of a server: no lock on the data folder, no claim of the bus. All but `restore` leave
//! the store as it is, so they may run beside a server.
//!
//! # Not here
//! What they find out and copy (`fletch_storage::tools`).

pub mod backup;
pub mod progress;
pub mod tables;
pub mod text;
pub mod verify;

use crate::config::{Flags, Settings};
use fletch_storage::delta::store::open_existing_store;
use object_store::ObjectStore;
use std::path::PathBuf;
use std::sync::Arc;

/// Which store a command works on.
#[derive(Debug, Clone, clap::Args)]
pub struct StoreArgs {
    /// Where the tables live; the folder `store` of the data folder without it.
    #[arg(
        long,
        value_name = "URL",
        help = "Where the tables live: file:///dir, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix [default: <data-dir>/store]"
    )]
    pub object_store: Option<String>,
    /// Folder of the server whose store it is [default: ./fletch-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The server's config file, for its `fletch.object_store`, `data_dir` and `metadata_store`.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one JSON object.
    Json,
}

impl StoreArgs {
    /// These flags where they are given, else those of `other`: a flag may stand before or after a subcommand.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            object_store: self.object_store.clone().or_else(|| other.object_store.clone()),
            data_dir: self.data_dir.clone().or_else(|| other.data_dir.clone()),
            config: self.config.clone().or_else(|| other.config.clone()),
        }
    }

    /// Settings of the server whose store it is.
    ///
    /// # Errors
    /// The config file is wrong.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let flags = Flags {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            object_store: self.object_store.clone(),
            ..Flags::default()
        };
        Ok(Settings::load(&flags)?)
    }

    /// The store, which must be there, and its URL.
    ///
    /// # Errors
    /// The config file is wrong, or there is no such store.
    pub fn open(&self) -> anyhow::Result<(Arc<dyn ObjectStore>, String)> {
        let url = self.settings()?.object_store;
        Ok((open_existing_store(&url, std::env::vars())?, url))
    }
}

/// Runs a command to its end.
///
/// # Errors
/// What the command says, or no runtime.
pub fn run<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    // Only one TLS provider is linked; a second installation is an error that says the first one is there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("fletch").build()?;
    runtime.block_on(command)
}

/// Writes a line of the answer.
#[allow(clippy::print_stdout, reason = "the answer of a command line tool")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

/// Writes an answer as JSON.
pub(crate) fn say_json(answer: &impl serde::Serialize) -> anyhow::Result<()> {
    say(&serde_json::to_string_pretty(answer)?);
    Ok(())
}
