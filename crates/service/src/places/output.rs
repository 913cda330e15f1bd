//! Where a written model goes: a folder of this host, or by way of one into a bucket.
//!
//! A bucket knows no renaming. So the report goes first, which says whose output it is, and the config last, without which
//! nobody takes the folder for a model: what was left half-copied is seen as such, and the same run may copy it again.

use super::{PlaceError, at};
use crate::store::Store;
use std::cmp::Ordering;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
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
    staging: PathBuf,
}

/// Returns an output in a bucket.
pub(super) fn in_bucket(address: &str, store: Store, name: &str, scratch: &Path) -> Result<OutputPlace, PlaceError> {
    let own = blake3::hash(address.as_bytes()).to_hex();
    let folder = scratch.join("outputs").join(&own[..16]);
    std::fs::create_dir_all(&folder).map_err(|source| PlaceError::Scratch { path: folder.clone(), source })?;
    let (address, name, staging) = (address.to_owned(), name.to_owned(), folder.join(name));
    Ok(OutputPlace::Bucket(BucketOutput { address, store, name, staging }))
}

impl OutputPlace {
    /// Returns the folder of this host to write.
    pub fn folder(&self) -> &Path {
        match self {
            Self::Folder(path) => path,
            Self::Bucket(output) => &output.staging,
        }
    }

    /// Removes what an earlier attempt of this process left in the folder that is copied from.
    ///
    /// # Errors
    /// [`PlaceError::Scratch`].
    pub fn begin(&self) -> Result<(), PlaceError> {
        let Self::Bucket(output) = self else { return Ok(()) };
        match std::fs::remove_dir_all(&output.staging) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(PlaceError::Scratch { path: output.staging.clone(), source })
            }
            _ => Ok(()),
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
        Ok(!self.listed().await?.is_empty())
    }

    async fn listed(&self) -> Result<Vec<String>, PlaceError> {
        let listed = self.store.list_entries(&self.name).await.map_err(|source| at(&self.address, source))?;
        Ok(listed.into_iter().map(|found| found.key).collect())
    }

    async fn publish(self) -> Result<(), PlaceError> {
        let files = self.files().await?;
        let listed = self.listed().await?;
        if !listed.is_empty() && !self.is_ours().await? {
            return Err(PlaceError::Occupied { address: self.address });
        }
        for file in &files {
            let (key, path) = (format!("{}/{file}", self.name), self.staging.join(file));
            self.store.upload(&key, &path).await.map_err(|fault| fault.at(&self.address))?;
        }
        tracing::info!(output = self.address, files = files.len(), "model copied into its bucket");
        let removed = tokio::fs::remove_dir_all(&self.staging).await;
        removed.map_err(|source| PlaceError::Scratch { path: self.staging, source })
    }

    /// Says whether what is there was begun by the run that writes this.
    async fn is_ours(&self) -> Result<bool, PlaceError> {
        let path = self.staging.join(RunReport::FILE);
        let ours = tokio::fs::read(&path).await.map_err(|source| PlaceError::Scratch { path, source })?;
        let key = format!("{}/{}", self.name, RunReport::FILE);
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
        let scratch = |source| PlaceError::Scratch { path: self.staging.clone(), source };
        let mut entries = tokio::fs::read_dir(&self.staging).await.map_err(scratch)?;
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
