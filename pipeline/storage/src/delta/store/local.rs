//! A local folder as an object store whose puts survive a power cut.
//!
//! ```text
//!  put:  write `<name>#<n>` ─▶ fsync it ─▶ link (create) or rename (overwrite) to `<name>` ─▶ fsync the folder (and new ones above it)
//! ```
//!
//! The bytes are durable before the name appears, so a reader and a restart never meet half a commit. Names with `#<digits>` are
//! staging files; listings leave them out, and those of a crashed process are removed when the folder is opened again a day later.
//!
//! # Not here
//! Reading, listing, deleting: the library's `LocalFileSystem`. Deletions are not synced: a file that comes back is deleted again.

use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const STORE: &str = "FsyncLocal";

/// Staging files younger than this may belong to a put that is under way.
const STAGING_AGE_MIN: Duration = Duration::from_secs(24 * 60 * 60);

/// Folders that the search for old staging files looks into at most.
const SWEEP_FOLDERS_MAX: usize = 100_000;

/// A local folder with durable puts.
#[derive(Debug)]
pub struct FsyncLocal {
    inner: LocalFileSystem,
    root: PathBuf,
    staged: AtomicU64,
}

impl FsyncLocal {
    /// Opens a folder, and creates it if need be.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(folder: &FsPath) -> std::io::Result<Self> {
        create_folders(folder)?;
        let root = folder.canonicalize()?;
        let inner = LocalFileSystem::new_with_prefix(&root).map_err(std::io::Error::other)?;
        sweep_staging(&root);
        // Two processes may share the folder: start the names of staging files anywhere.
        let start = u64::from_le_bytes(uuid::Uuid::new_v4().into_bytes()[..8].try_into().expect("8 of 16 bytes")) >> 1;
        Ok(Self { inner, root, staged: AtomicU64::new(start) })
    }

    /// The folder.
    pub fn root(&self) -> &FsPath {
        &self.root
    }

    fn staging_path(&self, target: &FsPath) -> PathBuf {
        let mut name = target.as_os_str().to_owned();
        name.push(format!("#{}", self.staged.fetch_add(1, Ordering::Relaxed)));
        PathBuf::from(name)
    }
}

impl fmt::Display for FsyncLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE}({})", self.root.display())
    }
}

#[async_trait::async_trait]
impl ObjectStore for FsyncLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if matches!(options.mode, PutMode::Update(_)) || !options.attributes.is_empty() {
            return Err(Error::NotImplemented { operation: "conditional update, attributes".into(), implementer: STORE.into() });
        }
        let target = self.inner.path_to_filesystem(location)?;
        let staging = self.staging_path(&target);
        let create = matches!(options.mode, PutMode::Create);
        blocking(move || {
            let put = put_durably(&target, &staging, &payload, create);
            if put.is_err() {
                // Best effort: the next start sweeps what stays.
                let _ = fs::remove_file(&staging);
            }
            put.map_err(|e| named(&target, e)).map(|()| PutResult { e_tag: None, version: None })
        })
        .await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let target = self.inner.path_to_filesystem(location)?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(SyncedUpload { inner, target }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[std::ops::Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        let target = self.inner.path_to_filesystem(to)?;
        blocking(move || sync_file(&target).map_err(|e| named(&target, e))).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await?;
        let target = self.inner.path_to_filesystem(to)?;
        blocking(move || sync_file(&target).map_err(|e| named(&target, e))).await
    }
}

/// An upload in parts that is synced before it counts as complete.
#[derive(Debug)]
struct SyncedUpload {
    inner: Box<dyn MultipartUpload>,
    target: PathBuf,
}

#[async_trait::async_trait]
impl MultipartUpload for SyncedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        let target = self.target.clone();
        blocking(move || sync_file(&target).map_err(|e| named(&target, e))).await?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|source| Error::JoinError { source })?
}

fn put_durably(target: &FsPath, staging: &FsPath, payload: &PutPayload, create: bool) -> std::io::Result<()> {
    let mut file = match OpenOptions::new().write(true).create_new(true).open(staging) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if let Some(parent) = staging.parent() {
                create_folders(parent)?;
            }
            OpenOptions::new().write(true).create_new(true).open(staging)?
        }
        opened => opened?,
    };
    for part in payload {
        file.write_all(part)?;
    }
    file.sync_all()?;
    drop(file);
    if create {
        fs::hard_link(staging, target)?;
        // The name is there; a staging file that cannot be removed is swept later.
        let _ = fs::remove_file(staging);
    } else {
        fs::rename(staging, target)?;
    }
    sync_folder(target.parent())
}

fn sync_file(target: &FsPath) -> std::io::Result<()> {
    File::open(target)?.sync_all()?;
    sync_folder(target.parent())
}

fn sync_folder(folder: Option<&FsPath>) -> std::io::Result<()> {
    folder.map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Creates a folder and those above it, each durable in the one above.
fn create_folders(folder: &FsPath) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_folders(parent)?;
    }
    match fs::create_dir(folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists || !folder.is_dir() => Err(e),
        _ => sync_folder(folder.parent().filter(|p| !p.as_os_str().is_empty())),
    }
}

/// Removes staging files that a crashed process left long ago. Best effort: what cannot be read or removed stays.
fn sweep_staging(root: &FsPath) {
    let mut folders = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        seen += 1;
        if seen > SWEEP_FOLDERS_MAX {
            return;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if is_staging(&entry.file_name().to_string_lossy()) && is_old(&entry) {
                let removed = fs::remove_file(entry.path());
                tracing::info!(path = %entry.path().display(), ok = removed.is_ok(), "removed the staging file of a crashed put");
            }
        }
    }
}

fn is_staging(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// By the file system's own clock, which made the file's time too.
fn is_old(entry: &fs::DirEntry) -> bool {
    let age = entry.metadata().ok().and_then(|m| m.modified().ok()).and_then(|t| t.elapsed().ok());
    age.is_some_and(|age| age > STAGING_AGE_MIN)
}

fn named(target: &FsPath, source: std::io::Error) -> Error {
    let path = target.display().to_string();
    match source.kind() {
        ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: Box::new(source) },
        ErrorKind::NotFound => Error::NotFound { path, source: Box::new(source) },
        _ => Error::Generic { store: STORE, source: Box::new(std::io::Error::new(source.kind(), format!("{path}: {source}"))) },
    }
}
