//! Where finished blocks go that find no room in memory: a folder, one file a block, up to a number of bytes.
//!
//! A file is locked while its process lives and removed when its block is released, so that what a killed process leaves is
//! known for what it is and removed at the next start. Nothing here fails a run: a file that cannot be written is none, and
//! its block waits in memory as if there were no folder. What the bytes are it does not know.

use crate::error::Error;
use bytes::Bytes;
use service::RequestIds;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Our files are called by these, with hex digits between them.
const NAME: (&str, &str) = ("llm-surgeon-", ".factors");
/// Bytes written or read between two looks at whether somebody still wants them.
const PIECE: usize = 8 << 20;

/// A folder for blocks that wait.
#[derive(Debug)]
pub struct Spill {
    folder: PathBuf,
    limit: u64,
    used: Arc<AtomicU64>,
    names: RequestIds,
    trouble: Mutex<Trouble>,
}

/// What went wrong with the folder.
#[derive(Debug, Default)]
struct Trouble {
    /// Writing failed in this sweep.
    unwritable: bool,
    /// Reading failed: what is written there may be lost.
    unreadable: bool,
    /// Somebody was told, and nothing has gone well since.
    told: bool,
}

/// One block in a file, which goes when this is dropped.
#[derive(Debug)]
pub(crate) struct SpillFile {
    file: File,
    path: PathBuf,
    bytes: u64,
    _share: Share,
}

/// Bytes of the limit; given back when dropped.
#[derive(Debug)]
struct Share {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::debug!(path = %self.path.display(), %error, "a spilled block was not removed");
            }
            _ => {}
        }
    }
}

impl Spill {
    /// Returns the folder, made if it is not there, without what killed processes left in it.
    ///
    /// # Errors
    /// The folder cannot be made or looked into.
    pub fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let ours = entry.file_name().to_str().is_some_and(is_ours) && entry.file_type()?.is_file();
            if ours && is_left_over(&entry.path()) {
                match std::fs::remove_file(entry.path()) {
                    Ok(()) => tracing::info!(path = %entry.path().display(), "removed what a killed process left"),
                    Err(error) => {
                        tracing::warn!(path = %entry.path().display(), %error, "what a killed process left stays");
                    }
                }
            }
        }
        let (used, names, trouble) = (Arc::default(), RequestIds::new("spill"), Mutex::default());
        Ok(Self { folder: folder.to_owned(), limit, used, names, trouble })
    }

    /// Returns whether so many bytes more may go there.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        let trouble = self.trouble();
        let usable = !trouble.unwritable && !trouble.unreadable;
        usable && self.used.load(Ordering::Relaxed).saturating_add(bytes) <= self.limit
    }

    /// Returns a file with these bytes; `None` where there is no room or the system refuses, of which it tells.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancelled` says so.
    pub(crate) fn write(&self, bytes: &[u8], cancelled: &dyn Fn() -> bool) -> Result<Option<SpillFile>, Error> {
        if !self.has_room_for(bytes.len() as u64) {
            return Ok(None);
        }
        match self.try_write(bytes, cancelled) {
            Ok(written) => {
                self.trouble().told = false;
                written.map(Some).ok_or(Error::Cancelled)
            }
            Err(error) => {
                self.trouble().unwritable = true;
                self.tell(&error, "no block can be spilled: the sweep waits for its surgeon instead");
                Ok(None)
            }
        }
    }

    /// Returns the file; `None` when it was cancelled.
    fn try_write(&self, bytes: &[u8], cancelled: &dyn Fn() -> bool) -> io::Result<Option<SpillFile>> {
        let length = bytes.len() as u64;
        self.used.fetch_add(length, Ordering::Relaxed); // one sweep writes at a time
        let share = Share { used: Arc::clone(&self.used), bytes: length };
        let path = self.folder.join(format!("{}{}{}", NAME.0, self.names.next(), NAME.1));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let mut spilled = SpillFile { file, path, bytes: length, _share: share };
        // Where nothing can be locked, what a killed process leaves stays.
        if let Err(error) = spilled.file.try_lock() {
            tracing::debug!(%error, "a spilled block is not locked");
        }
        for piece in bytes.chunks(PIECE) {
            if cancelled() {
                return Ok(None);
            }
            spilled.file.write_all(piece)?;
        }
        Ok(Some(spilled))
    }

    /// Notes that a new sweep begins: there may be room again.
    pub(crate) fn try_again(&self) {
        self.trouble().unwritable = false;
    }

    /// Notes that a file could not be read back: nothing goes there any more.
    pub(crate) fn lost(&self, error: &io::Error) {
        self.trouble().unreadable = true;
        self.tell(
            error,
            "a spilled block cannot be read back: its shard is swept again, and no block is spilled any more",
        );
    }

    /// Tells a person, once until something goes well again.
    fn tell(&self, error: &io::Error, what: &'static str) {
        if !std::mem::replace(&mut self.trouble().told, true) {
            tracing::warn!(folder = %self.folder.display(), %error, "{what}");
        }
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SpillFile {
    /// Returns its length.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns some of its bytes. Blocks.
    pub(crate) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
    }

    /// Returns all of its bytes, in parts, if they are those with this digest. Blocks.
    pub(crate) fn read_all(&self, blake3: &str) -> io::Result<Vec<Bytes>> {
        let mut hasher = blake3::Hasher::new();
        let mut parts = Vec::new();
        let mut start = 0;
        while start < self.bytes {
            let end = self.bytes.min(start + PIECE as u64);
            let part = self.read(start..end)?;
            hasher.update(&part);
            parts.push(part);
            start = end;
        }
        if hasher.finalize().to_hex().as_str() == blake3 {
            Ok(parts)
        } else {
            Err(io::Error::new(ErrorKind::InvalidData, "its digest is another than when it was written"))
        }
    }
}

/// Returns whether a file's name is one of those that we give.
fn is_ours(name: &str) -> bool {
    let digits = name.strip_prefix(NAME.0).and_then(|rest| rest.strip_suffix(NAME.1));
    digits.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Returns whether the process that wrote a file is gone: its lock is free.
fn is_left_over(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}
