//! The object store of a deployment: opened from a URL, made durable where it is a local folder, claimed by one bus, leased by name.
//!
//! ```text
//!  <store>/bus.json               {"bus": …}       which bus writes here; created once, never changed
//!         /lease/<name>/<n>       {"holder": …, "until_ms": …}    the highest n counts
//!         /tables/<table>/…       Delta tables
//! ```
//!
//! Everything that must happen once is one conditional create; the local folder knows no conditional update.
//!
//! # Not here
//! Reading the environment: the binary passes it in.

use super::file::corrupt;
use crate::StorageError;
use fletch_common::{Clock, SharedClock};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

mod local;
mod restored;

pub use local::FsyncLocal;
pub(crate) use restored::{RestoreMark, RestoreState, read_mark, write_mark};

/// Only these variables configure a store: a stray `TOKEN` or `REGION` of something else must not.
const OPTION_PREFIXES: [&str; 4] = ["aws_", "google_", "azure_", "gcp_"];

/// Leases that are kept beside the newest one, so that a slow rival cannot create a number again that was already used.
const LEASES_KEPT: i64 = 8;

/// Opens the store at a URL: `file:///folder` (created if need be), `memory:///`, `s3://bucket/prefix`, `gs://…`, `az://…`. Paths of the
/// result are relative to the folder or prefix. `options` are the environment's variables; those of the clouds' own names count.
///
/// # Errors
/// [`StorageError::Conflict`] naming the URL and why it cannot be opened.
pub fn open_store(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Arc<dyn ObjectStore>, StorageError> {
    let refused = |why: String| {
        StorageError::Conflict(format!("object store `{url}`: {why}; give file:///folder, s3://bucket/prefix, gs:// or az://"))
    };
    let parsed = Url::parse(url).map_err(|e| refused(e.to_string()))?;
    let (scheme, _) = ObjectStoreScheme::parse(&parsed).map_err(|e| refused(e.to_string()))?;
    if matches!(scheme, ObjectStoreScheme::Local) {
        let folder = parsed.to_file_path().map_err(|()| refused("it is not an absolute local path".into()))?;
        return Ok(Arc::new(FsyncLocal::create(&folder).map_err(|e| refused(e.to_string()))?));
    }
    let ours = options.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), value));
    let ours = ours.filter(|(key, _)| OPTION_PREFIXES.iter().any(|prefix| key.starts_with(prefix)));
    let (store, prefix) = object_store::parse_url_opts(&parsed, ours).map_err(|e| refused(e.to_string()))?;
    let store: Arc<dyn ObjectStore> = Arc::from(store);
    Ok(if prefix.is_root() { store } else { Arc::new(PrefixStore::new(store, prefix)) })
}

/// First pause of [`wait_until_it_answers`]; doubles up to [`WAIT_PAUSE_MAX`].
const WAIT_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest such pause.
const WAIT_PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long a store that does not answer is waited for at a start.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Returns when the store answers: a start during an outage waits for its end instead of failing. What waiting does not cure (no
/// permission, a store that is not there by its own word) is an error at once.
///
/// # Errors
/// [`StorageError::ObjectStore`] with the last answer, after [`WAIT_MAX`].
pub async fn wait_until_it_answers(store: &dyn ObjectStore, clock: &dyn Clock) -> Result<(), StorageError> {
    let path = Path::from("bus.json");
    let give_up_ms = clock.now_ms().saturating_add(i64::try_from(WAIT_MAX.as_millis()).unwrap_or(i64::MAX));
    let mut pause = WAIT_PAUSE_MIN;
    loop {
        let error = match store.head(&path).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => return Ok(()),
            Err(error) => error,
        };
        use object_store::Error as E;
        let hopeless =
            matches!(error, E::PermissionDenied { .. } | E::Unauthenticated { .. } | E::NotSupported { .. } | E::NotImplemented { .. });
        if hopeless || clock.now_ms() >= give_up_ms {
            return Err(failed("asking the store for", &path, error));
        }
        tracing::warn!(%error, next_try = ?pause, "the object store does not answer: waiting for it before the start goes on");
        clock.sleep(pause).await;
        pause = (pause * 2).min(WAIT_PAUSE_MAX);
    }
}

/// As [`open_store`], for those who only read: a local folder must be there, and nothing is created or swept in it.
///
/// # Errors
/// [`StorageError::Conflict`] naming the URL and why it cannot be opened.
pub fn open_existing_store(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Arc<dyn ObjectStore>, StorageError> {
    let local = Url::parse(url).ok().filter(|parsed| parsed.scheme() == "file").and_then(|parsed| parsed.to_file_path().ok());
    let Some(folder) = local else { return open_store(url, options) };
    let opened = object_store::local::LocalFileSystem::new_with_prefix(&folder);
    let opened = opened.map_err(|e| StorageError::Conflict(format!("object store `{url}`: there is no such folder ({e})")))?;
    Ok(Arc::new(opened))
}

/// The root of a table: `tables/<name>`.
pub fn table_root(table: fletch_schemas::tables::Table) -> Path {
    Path::from_iter(["tables", table.name()])
}

#[derive(Debug, Serialize, Deserialize)]
struct BusClaim {
    bus: String,
}

/// Claims the store for the one bus of a deployment, or confirms an earlier claim of the same bus.
///
/// # Errors
/// [`StorageError::Conflict`] naming both when another bus owns the store, or when it was restored from a backup of this very bus;
/// [`StorageError::Corrupt`], [`StorageError::ObjectStore`].
pub async fn claim_bus(store: &dyn ObjectStore, bus: &str) -> Result<(), StorageError> {
    restored::check_claim(store, bus).await?;
    write_claim(store, bus).await
}

/// As [`claim_bus`], for a restore that has not finished yet.
pub(crate) async fn write_claim(store: &dyn ObjectStore, bus: &str) -> Result<(), StorageError> {
    let path = Path::from("bus.json");
    let claim = serde_json::to_vec(&BusClaim { bus: bus.to_owned() }).expect("one text is JSON");
    let created = create(store, &path, claim).await;
    // Whatever the answer was: what stands there now decides.
    let stored = match read_json::<BusClaim>(store, &path).await? {
        Some(stored) => stored,
        None => {
            return Err(created
                .err()
                .map_or_else(|| corrupt("bus.json", "it was created and is gone"), |source| failed("claiming", &path, source)));
        }
    };
    if stored.bus == bus {
        return Ok(());
    }
    Err(StorageError::Conflict(format!(
        "this store belongs to bus `{}`, not to `{bus}`; use another --object-store or that bus",
        stored.bus
    )))
}

/// The bus that has claimed a store; `None` when none has.
///
/// # Errors
/// [`StorageError::Corrupt`], [`StorageError::ObjectStore`].
pub async fn claimed_bus(store: &dyn ObjectStore) -> Result<Option<String>, StorageError> {
    Ok(read_json::<BusClaim>(store, &Path::from("bus.json")).await?.map(|claim| claim.bus))
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LeaseBody {
    holder: String,
    until_ms: i64,
}

/// A lease that was won. It saves work only: what it protects must be safe without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What it is for.
    pub name: String,
    /// Its number: higher than all before.
    pub number: i64,
    /// Who has it.
    pub holder: String,
    /// Until when, milliseconds.
    pub until_ms: i64,
}

/// Leases of a store.
#[derive(Debug, Clone)]
pub struct Leases {
    store: Arc<dyn ObjectStore>,
    clock: SharedClock,
}

impl Leases {
    /// Leases under `lease/` of this store.
    pub fn new(store: Arc<dyn ObjectStore>, clock: SharedClock) -> Self {
        Self { store, clock }
    }

    /// Takes or renews a lease for `ttl`. `None` when somebody else has it.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`], [`StorageError::Corrupt`].
    pub async fn acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<Lease>, StorageError> {
        let now = self.clock.now_ms();
        let numbers = self.numbers(name).await?;
        let newest = numbers.last().copied().unwrap_or(0);
        if let Some(body) = read_json::<LeaseBody>(self.store.as_ref(), &lease_path(name, newest)).await?
            && body.holder != holder
            && body.until_ms > now
        {
            return Ok(None);
        }
        let until_ms = now.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        let body = LeaseBody { holder: holder.to_owned(), until_ms };
        if !self.take(name, newest + 1, &body).await? {
            return Ok(None);
        }
        for old in numbers.iter().filter(|n| **n < newest + 1 - LEASES_KEPT) {
            self.delete(&lease_path(name, *old)).await?;
        }
        Ok(Some(Lease { name: name.to_owned(), number: newest + 1, holder: holder.to_owned(), until_ms }))
    }

    /// Gives a lease back, so that the next holder need not wait.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`]; the lease then ends by itself.
    pub async fn release(&self, lease: &Lease) -> Result<(), StorageError> {
        let body = LeaseBody { holder: lease.holder.clone(), until_ms: self.clock.now_ms() };
        self.take(&lease.name, lease.number + 1, &body).await.map(drop)
    }

    /// Gives a lease back and forgets its name: for names that are not used again and again.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`]; what is left ends by itself.
    pub async fn retire(&self, lease: &Lease) -> Result<(), StorageError> {
        for number in self.numbers(&lease.name).await?.into_iter().filter(|n| *n <= lease.number) {
            self.delete(&lease_path(&lease.name, number)).await?;
        }
        Ok(())
    }

    /// Creates a number; whether it is ours. A lost answer counts as "not ours": the lease ends by itself.
    async fn take(&self, name: &str, number: i64, body: &LeaseBody) -> Result<bool, StorageError> {
        let path = lease_path(name, number);
        let bytes = serde_json::to_vec(body).expect("a lease is plain texts and numbers");
        match create(self.store.as_ref(), &path, bytes).await {
            Ok(()) => {}
            Err(object_store::Error::AlreadyExists { .. }) => return Ok(false),
            Err(source) => return Err(failed("taking lease", &path, source)),
        }
        // A process that slept between its listing and here has created a number of long ago.
        Ok(self.numbers(name).await?.last().is_some_and(|newest| *newest == number))
    }

    async fn numbers(&self, name: &str) -> Result<Vec<i64>, StorageError> {
        let folder = Path::from_iter(["lease", name]);
        let listed = self.store.list(Some(&folder)).try_collect::<Vec<_>>().await.map_err(|source| failed("listing", &folder, source))?;
        let mut numbers: Vec<i64> = listed.iter().filter_map(|meta| meta.location.filename()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    async fn delete(&self, path: &Path) -> Result<(), StorageError> {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(failed("deleting", path, source)),
        }
    }
}

fn lease_path(name: &str, number: i64) -> Path {
    Path::from_iter(["lease", name, &format!("{number:020}")])
}

async fn create(store: &dyn ObjectStore, path: &Path, bytes: Vec<u8>) -> Result<(), object_store::Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.put_opts(path, bytes.into(), options).await.map(drop)
}

async fn read_json<T: for<'de> Deserialize<'de>>(store: &dyn ObjectStore, path: &Path) -> Result<Option<T>, StorageError> {
    let found = match store.get(path).await {
        Ok(found) => found.bytes().await.map_err(|source| failed("reading", path, source))?,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(source) => return Err(failed("reading", path, source)),
    };
    serde_json::from_slice(&found).map(Some).map_err(|e| corrupt(path.as_ref(), e.to_string()))
}

fn failed(doing: &'static str, path: &Path, source: object_store::Error) -> StorageError {
    StorageError::ObjectStore { doing, path: path.clone(), source }
}

#[cfg(test)]
mod tests;
