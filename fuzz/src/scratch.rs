//! A folder for what a target has to read from files.

use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Files in memory, where the system has such a folder: a target writes thousands a second.
const IN_MEMORY: &str = "/dev/shm";

/// An empty folder, removed when this is dropped.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// Returns a new folder.
    ///
    /// # Panics
    /// When there is no room for one.
    pub fn new() -> Self {
        let parent = Path::new(IN_MEMORY);
        let folder = if parent.is_dir() { TempDir::new_in(parent) } else { TempDir::new() };
        Self(folder.expect("a folder for files"))
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).expect("a file in memory");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
