//! Where a written model goes: a folder of this host, or by way of one into a bucket.
//!
//! A bucket knows no renaming. So the report goes first, which says whose output it is, and the config last, without which
//! nobody takes the folder for a model: what was left half-copied is seen as such, and the same run may copy it again.

use super::{PlaceError, at, bucket};
use crate::store::{Store, StoreError};
use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use types::RunReport;

/// The file without which a folder is no model.
const LAST: &str = "config.json";

/// A place for an output.
#[derive(Debug)]
pub enum OutputPlace {
    /// A folder of this host.
    Folder(PathBuf),
    /// A folder in a bucket.
    Bucket(BucketOutput),
}

/// A folder in a bucket and the one of this host whose copy it becomes.
#[derive(Debug)]
pub struct BucketOutput {
    address: String,
    store: Store,
    name: String,
    /// What the folder lies in, and goes with: of this attempt alone.
    own: TempDir,
    folder: PathBuf,
}

/// Returns an output in a bucket.
pub(super) fn in_bucket(address: &str, store: Store, name: &str, scratch: &Path) -> Result<OutputPlace, PlaceError> {
    let folder = scratch.join("outputs");
    let made = std::fs::create_dir_all(&folder).and_then(|()| TempDir::new_in(&folder));
    let own = made.map_err(|source| PlaceError::Scratch { path: folder.clone(), source })?;
    let folder = own.path().join(name);
    let (address, name) = (address.to_owned(), name.to_owned());
    Ok(OutputPlace::Bucket(BucketOutput { address, store, name, own, folder }))
}

impl OutputPlace {
    /// Returns the folder of this host to write.
    pub fn folder(&self) -> &Path {
        match self {
            Self::Folder(path) => path,
            Self::Bucket(output) => &output.folder,
        }
    }

    /// Brings what was written to where it belongs; in a folder of this host it is there already.
    ///
    /// # Errors
    /// [`PlaceError::Occupied`] if something of another run is there; [`PlaceError::Store`], [`PlaceError::Scratch`].
    pub async fn publish(self) -> Result<(), PlaceError> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Bucket(output) => output.publish().await,
        }
    }
}

impl BucketOutput {
    /// Says whether anything is there.
    pub(super) async fn is_occupied(&self) -> Result<bool, PlaceError> {
        let there = bucket::below(&self.store, &self.name).await.map_err(|source| at(&self.address, source))?;
        Ok(!there.is_empty())
    }

    async fn publish(self) -> Result<(), PlaceError> {
        let files = self.files().await?;
        let claimed = !self.is_occupied().await? && self.claim().await?;
        if !claimed && !self.is_ours().await? {
            return Err(PlaceError::Occupied { address: self.address });
        }
        for file in &files {
            let (key, path) = (format!("{}/{file}", self.name), self.folder.join(file));
            self.store.upload(&key, &path).await.map_err(|fault| fault.at(&self.address))?;
        }
        tracing::info!(output = self.address, files = files.len(), "model copied into its bucket");
        let scratch = self.own.path().to_owned();
        self.own.close().map_err(|source| PlaceError::Scratch { path: scratch, source })
    }

    /// Puts the report where nothing is; says whether nothing was. Of two runs that see nothing, one has the place.
    async fn claim(&self) -> Result<bool, PlaceError> {
        let (key, report) = (self.report(), self.own_report().await?);
        match self.store.create(&key, report.into()).await {
            Ok(()) => Ok(true),
            Err(StoreError::AlreadyExists { .. }) => Ok(false),
            Err(source) => Err(at(&self.address, source)),
        }
    }

    fn report(&self) -> String {
        format!("{}/{}", self.name, RunReport::FILE)
    }

    async fn own_report(&self) -> Result<Vec<u8>, PlaceError> {
        let path = self.folder.join(RunReport::FILE);
        tokio::fs::read(&path).await.map_err(|source| PlaceError::Scratch { path, source })
    }

    /// Says whether what is there was begun by the run that writes this.
    async fn is_ours(&self) -> Result<bool, PlaceError> {
        let (key, ours) = (self.report(), self.own_report().await?);
        match self.store.entry(&key).await.map_err(|source| at(&self.address, source))? {
            Some(found) if found.bytes == ours.len() as u64 => {
                let there = self.store.get(&key).await.map_err(|source| at(&self.address, source))?;
                Ok(there == ours)
            }
            Some(_) | None => Ok(false),
        }
    }

    /// Returns the names of the files, in the order in which they are copied.
    async fn files(&self) -> Result<Vec<String>, PlaceError> {
        let scratch = |source| PlaceError::Scratch { path: self.folder.clone(), source };
        let mut entries = tokio::fs::read_dir(&self.folder).await.map_err(scratch)?;
        let mut names = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(scratch)? {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort_by(|a, b| turn(a).cmp(&turn(b)).then_with(|| a.cmp(b)));
        Ok(names)
    }
}

/// Returns when a file's turn is.
fn turn(name: &str) -> Ordering {
    match name {
        RunReport::FILE => Ordering::Less,
        LAST => Ordering::Greater,
        _ => Ordering::Equal,
    }
}
