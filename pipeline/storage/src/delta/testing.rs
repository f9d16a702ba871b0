//! Doubles for tests of this crate: a store that breaks on purpose, a clock that never waits, small files.

use super::{BusRange, DeltaTable, FileEntry, FileIdentity, KeyRanges, TableOptions};
use crate::StorageError;
use fletch_common::Clock;
use fletch_schemas::TenantId;
use fletch_schemas::tables::Table;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// How a request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It has no effect, and an error comes back.
    Fails,
    /// It takes effect, and an error comes back.
    LosesAnswer,
    /// It takes effect, and the client's own repetition of it finds its work: "already exists".
    LandsThenConflicts,
    /// It has no effect, and "already exists" comes back (S3's 409 while another request is under way).
    ConflictOfNobody,
    /// An error comes back, and it takes effect just before the next put of the same object.
    LandsLater,
}

/// A store in memory that breaks as planned.
#[derive(Debug, Default)]
pub(crate) struct FaultStore {
    inner: InMemory,
    puts: Mutex<VecDeque<(String, Fault)>>,
    gets: Mutex<VecDeque<(String, Fault)>>,
    late: Mutex<Vec<(Path, PutPayload, PutOptions)>>,
}

impl FaultStore {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The next put of an object whose path ends so goes wrong.
    pub(crate) fn break_put(&self, suffix: &str, fault: Fault) {
        self.puts.lock().push_back((suffix.to_owned(), fault));
    }

    /// The next get of an object whose path ends so fails.
    pub(crate) fn break_get(&self, suffix: &str) {
        self.gets.lock().push_back((suffix.to_owned(), Fault::Fails));
    }

    fn take(queue: &Mutex<VecDeque<(String, Fault)>>, location: &Path) -> Option<Fault> {
        let mut queue = queue.lock();
        let at = queue.iter().position(|(suffix, _)| location.as_ref().ends_with(suffix.as_str()))?;
        queue.remove(at).map(|(_, fault)| fault)
    }

    async fn land_late(&self, location: &Path) {
        let due = {
            let mut late = self.late.lock();
            let at = late.iter().position(|(path, ..)| path == location);
            at.map(|at| late.remove(at))
        };
        if let Some((path, payload, options)) = due {
            let _ = self.inner.put_opts(&path, payload, options).await;
        }
    }
}

fn broken() -> Error {
    Error::Generic { store: "FaultStore", source: "broken on purpose".into() }
}

fn exists(location: &Path) -> Error {
    Error::AlreadyExists { path: location.to_string(), source: "on purpose".into() }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

#[async_trait::async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.land_late(location).await;
        let fault = Self::take(&self.puts, location);
        match fault {
            None => self.inner.put_opts(location, payload, options).await,
            Some(Fault::Fails) => Err(broken()),
            Some(Fault::LosesAnswer) => self.inner.put_opts(location, payload, options).await.and(Err(broken())),
            Some(Fault::LandsThenConflicts) => self.inner.put_opts(location, payload, options).await.and(Err(exists(location))),
            Some(Fault::ConflictOfNobody) => Err(exists(location)),
            Some(Fault::LandsLater) => {
                self.late.lock().push((location.clone(), payload, options));
                Err(broken())
            }
        }
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if Self::take(&self.gets, location).is_some() {
            return Err(broken());
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A clock that jumps instead of waiting.
#[derive(Debug)]
pub(crate) struct JumpClock(AtomicI64);

impl JumpClock {
    /// A clock that stands at the machine's time: stores stamp objects with that.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(fletch_common::SystemClock.now_ms())))
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_millis()).expect("short"), Ordering::Relaxed);
    }
}

#[async_trait::async_trait]
impl Clock for JumpClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    async fn sleep(&self, duration: Duration) {
        self.advance(duration);
        tokio::task::yield_now().await;
    }
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("a valid tenant")
}

/// An entry of a file that need not exist.
pub(crate) fn entry(tenant_name: &str, date: i32, rows: u64) -> FileEntry {
    let bus = BusRange { partition: 0, from: 0, to: 1 };
    let identity = FileIdentity::new(tenant(tenant_name), date, Some(bus), 1_000);
    let start = fletch_schemas::day_start_ms(date);
    let keys = KeyRanges { metrics: Some(("a".into(), "b".into())), series_ids: Some((-5, 7)), times_ms: Some((start, start + 11)) };
    FileEntry::of_written(&identity, identity.path().as_bytes(), rows, keys)
}

pub(crate) fn root() -> Path {
    super::store::table_root(Table::Samples)
}

pub(crate) async fn open(store: Arc<dyn ObjectStore>, clock: Arc<JumpClock>) -> std::result::Result<DeltaTable, StorageError> {
    DeltaTable::open_or_create_with(store, root(), Table::Samples, clock, TableOptions::default()).await
}
