//! One process per `--data-dir`: a lock on a file in it, held as long as the value lives. The kernel releases it when a process dies.

use super::BusError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The exclusive right to a data directory.
#[derive(Debug)]
pub struct DataDirLock {
    path: PathBuf,
    _file: File,
}

impl DataDirLock {
    /// Creates the directory if it is absent and locks it.
    ///
    /// # Errors
    /// [`BusError::Io`]; of kind `WouldBlock`, naming the other process, when the directory is in use.
    pub fn acquire(dir: &Path) -> Result<Self, BusError> {
        let io = |doing: String| move |source| BusError::Io { doing, source };
        std::fs::create_dir_all(dir).map_err(io(format!("creating the data directory {}", dir.display())))?;
        let path = dir.join("LOCK");
        let doing = || format!("locking the data directory {}", dir.display());
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(io(doing()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(dir, &mut file)),
            Err(TryLockError::Error(source)) => return Err(BusError::Io { doing: doing(), source }),
        }
        // The number is for people only: a failure to write it takes nothing from the lock.
        let _ = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).and_then(|_| writeln!(file, "{}", std::process::id()));
        Ok(Self { path: dir.to_owned(), _file: file })
    }

    /// The locked directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn in_use(dir: &Path, file: &mut File) -> BusError {
    let mut pid = String::new();
    let _ = file.read_to_string(&mut pid);
    let why = format!("another process (pid {}) uses it; give this one its own --data-dir", pid.trim());
    let source = std::io::Error::new(std::io::ErrorKind::WouldBlock, why);
    BusError::Io { doing: format!("locking the data directory {}", dir.display()), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("data");
        let first = DataDirLock::acquire(&path).expect("free");
        let refused = DataDirLock::acquire(&path).expect_err("taken").to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())) && refused.contains("--data-dir"), "{refused}");
        drop(first);
        DataDirLock::acquire(&path).expect("free again");
    }
}
