//! Where the bytes of a file come from, and an opened file: footer, page index and key index, all cacheable.

use super::keys::{self, KeyIndex};
use super::panicked;
use crate::StorageError;
use crate::delta::{FileEntry, FileHash};
use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::sync::OnceCell;
use xxhash_rust::xxh3::Xxh3;

/// Bytes that the first request for a footer asks for: the footer and page index of a flush file fit.
const FOOTER_HINT_BYTES: usize = 64 << 10;

/// One file on a store.
#[derive(Debug, Clone)]
pub struct FileSource {
    store: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
    hash: Option<FileHash>,
    /// All of it, when it was fetched already.
    fetched: Option<Bytes>,
}

impl FileSource {
    /// An object; `path` is its full key (see `DeltaTable::object_path`).
    pub fn object(store: Arc<dyn ObjectStore>, path: Path, entry: &FileEntry) -> Self {
        Self { store, path, size: entry.size, hash: entry.hash, fetched: None }
    }

    /// A file of this machine.
    ///
    /// # Errors
    /// [`StorageError::ObjectStore`] when the path cannot be expressed.
    pub fn local(path: &std::path::Path, size: u64, hash: Option<FileHash>) -> Result<Self, StorageError> {
        let doing = "resolving";
        let object =
            Path::from_absolute_path(path).map_err(|e| StorageError::ObjectStore { doing, path: Path::default(), source: e.into() })?;
        Ok(Self { store: Arc::new(LocalFileSystem::new()), path: object, size, hash, fetched: None })
    }

    /// Its name, for errors.
    pub fn name(&self) -> &str {
        self.path.as_ref()
    }

    /// All bytes, after their hash was compared with the one in the log (when it has one).
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when size or hash differ, [`StorageError::ObjectStore`].
    pub async fn bytes(&self) -> Result<Bytes, StorageError> {
        let failed = |source| StorageError::ObjectStore { doing: "reading", path: self.path.clone(), source };
        let bytes = self.store.get(&self.path).await.map_err(failed)?.bytes().await.map_err(failed)?;
        self.check(&bytes)?;
        Ok(bytes)
    }

    /// Checks the hash of all bytes before anything is decoded. They stay in memory if `keep`; else they are read once now, in pieces, and
    /// again by whoever reads the file.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub async fn verified(mut self, keep: bool) -> Result<Self, StorageError> {
        if keep {
            self.fetched = Some(self.bytes().await?);
            return Ok(self);
        }
        let failed = |source| StorageError::ObjectStore { doing: "reading", path: self.path.clone(), source };
        let mut pieces = self.store.get(&self.path).await.map_err(failed)?.into_stream();
        let (mut hash, mut size) = (Xxh3::new(), 0_u64);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(failed)?;
            hash.update(&piece);
            size += piece.len() as u64;
        }
        drop(pieces);
        self.compare(size, || FileHash(hash.digest128()))?;
        Ok(self)
    }

    /// Compares bytes with what the log says about the file.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`].
    pub fn check(&self, bytes: &[u8]) -> Result<(), StorageError> {
        self.compare(bytes.len() as u64, || FileHash::of(bytes))
    }

    fn compare(&self, size: u64, hash: impl FnOnce() -> FileHash) -> Result<(), StorageError> {
        let corrupt = |why: String| StorageError::Corrupt { path: self.path.to_string(), why };
        if size != self.size {
            return Err(corrupt(format!("it has {size} bytes, the log says {}", self.size)));
        }
        match self.hash {
            Some(expected) if hash() != expected => Err(corrupt("its bytes do not have the hash that the log names".into())),
            _ => Ok(()),
        }
    }

    /// Reads footer and page index.
    ///
    /// # Errors
    /// [`StorageError::Parquet`], [`StorageError::Corrupt`], [`StorageError::ObjectStore`].
    pub async fn open(&self) -> Result<OpenFile, StorageError> {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let mut reader = self.reader();
        let loading = ArrowReaderMetadata::load_async(&mut reader, options);
        let loaded = AssertUnwindSafe(loading).catch_unwind().await.map_err(|_| panicked(self.name()))?;
        let metadata = loaded.map_err(|source| self.parquet("opening", source))?;
        Ok(OpenFile { source: self.clone(), metadata, keys: OnceCell::new() })
    }

    pub(super) fn reader(&self) -> ObjectReader {
        ObjectReader(self.clone())
    }

    pub(super) fn parquet(&self, doing: &'static str, source: ParquetError) -> StorageError {
        StorageError::Parquet { doing, path: self.path.to_string(), source }
    }
}

/// Fetches the byte ranges that the Parquet reader asks for.
#[derive(Debug)]
pub(super) struct ObjectReader(FileSource);

impl AsyncFileReader for ObjectReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        if let Some(all) = &self.0.fetched {
            return ready(slice(all, &range)).boxed();
        }
        async move { self.0.store.get_range(&self.0.path, range).await.map_err(|e| ParquetError::External(e.into())) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        if let Some(all) = &self.0.fetched {
            return ready(ranges.iter().map(|range| slice(all, range)).collect()).boxed();
        }
        async move { self.0.store.get_ranges(&self.0.path, &ranges).await.map_err(|e| ParquetError::External(e.into())) }.boxed()
    }

    fn get_metadata<'a>(&'a mut self, _: Option<&'a ArrowReaderOptions>) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        let size = self.0.size;
        let reader =
            ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional).with_prefetch_hint(Some(FOOTER_HINT_BYTES));
        async move { reader.load_and_finish(self, size).await.map(Arc::new) }.boxed()
    }
}

/// A part of bytes in memory; offsets come from a footer that may be damaged.
fn slice(all: &Bytes, range: &Range<u64>) -> Result<Bytes, ParquetError> {
    let bounds = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
    match bounds.filter(|(start, end)| start <= end && *end <= all.len()) {
        Some((start, end)) => Ok(all.slice(start..end)),
        None => Err(ParquetError::EOF(format!("bytes {}..{} of a file with {}", range.start, range.end, all.len()))),
    }
}

/// A file whose footer and page index are in memory; keep it as long as the file is read again. Its key index is read on first use.
#[derive(Debug)]
pub struct OpenFile {
    pub(super) source: FileSource,
    pub(super) metadata: ArrowReaderMetadata,
    keys: OnceCell<KeyIndex>,
}

impl OpenFile {
    /// Which rows belong to which series.
    ///
    /// # Errors
    /// As [`FileSource::open`].
    pub async fn keys(&self) -> Result<&KeyIndex, StorageError> {
        self.keys.get_or_try_init(|| keys::load(self)).await
    }

    /// Footer and page index.
    pub(crate) fn metadata(&self) -> &Arc<ParquetMetaData> {
        self.metadata.metadata()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        usize::try_from(self.metadata.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// Bytes that this object holds in memory: what a cache should count.
    pub fn memory_bytes(&self) -> usize {
        self.metadata.metadata().memory_size() + self.keys.get().map_or(0, KeyIndex::memory_bytes)
    }
}
