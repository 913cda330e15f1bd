//! The folder of this host where copies lie: made when it is first needed, removed with its process.
//!
//! It holds a file that is locked while its process lives, so that what a killed process leaves is known for what it is and
//! removed by the next one that needs such a folder.

use super::{PlaceError, lock};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tempfile::TempDir;

const NAME: &str = "llm-surgeon-copies-";
const LOCK: &str = "in-use";

/// A folder for copies.
#[derive(Debug)]
pub(super) struct Scratch {
    parent: PathBuf,
    own: Mutex<Option<Own>>,
}

#[derive(Debug)]
struct Own {
    folder: TempDir,
    _lock: File,
}

impl Scratch {
    /// Returns a folder in `parent` that is not there yet.
    pub(super) fn new(parent: &Path) -> Self {
        Self { parent: parent.to_owned(), own: Mutex::default() }
    }

    /// Returns its path; makes it, and removes what killed processes left, when this is asked for the first time.
    pub(super) fn path(&self) -> Result<PathBuf, PlaceError> {
        let mut own = lock(&self.own);
        if let Some(own) = own.as_ref() {
            return Ok(own.folder.path().to_owned());
        }
        let made = self.make().map_err(|source| PlaceError::Scratch { path: self.parent.clone(), source })?;
        Ok(own.insert(made).folder.path().to_owned())
    }

    fn make(&self) -> io::Result<Own> {
        std::fs::create_dir_all(&self.parent)?;
        for entry in std::fs::read_dir(&self.parent)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(NAME) && is_left_over(&entry.path()) {
                match std::fs::remove_dir_all(entry.path()) {
                    Ok(()) => tracing::info!(path = %entry.path().display(), "removed what a killed process left"),
                    Err(error) => {
                        tracing::warn!(path = %entry.path().display(), %error, "what a killed process left stays");
                    }
                }
            }
        }
        let folder = tempfile::Builder::new().prefix(NAME).tempdir_in(&self.parent)?;
        // Locked before it has its name: nobody finds it open.
        let unnamed = folder.path().join("new");
        let file = File::create_new(&unnamed)?;
        file.lock()?;
        std::fs::rename(&unnamed, folder.path().join(LOCK))?;
        Ok(Own { folder, _lock: file })
    }
}

/// Says whether the process of a folder is gone. One without the file is being made.
fn is_left_over(folder: &Path) -> bool {
    let file = OpenOptions::new().write(true).open(folder.join(LOCK));
    file.is_ok_and(|file| file.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_goes_and_what_is_in_use_stays() {
        let parent = tempfile::tempdir().unwrap();
        let first = Scratch::new(parent.path());
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0, "nothing is made before it is needed");
        let used = first.path().unwrap();
        let left = parent.path().join("llm-surgeon-copies-killed");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join(LOCK), "").unwrap();
        let begun = parent.path().join("llm-surgeon-copies-begun");
        std::fs::create_dir(&begun).unwrap();
        let second = Scratch::new(parent.path()).path().unwrap();
        assert!(used.exists() && begun.exists() && !left.exists());
        assert!(!second.exists(), "it went with its owner");
        assert_eq!(first.path().unwrap(), used);
    }
}
