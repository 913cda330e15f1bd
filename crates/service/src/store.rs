//! Bytes by key, on a folder, in a bucket or in memory: what is there is whole, and stays after a crash.
//!
//! Writes are atomic (a new object is put beside the old one and renamed) and, on a folder, synced before the call
//! returns. The store does not know what the keys mean.

mod bulk;
mod files;

pub use bulk::{Entry, Staged};
pub use files::TransferFault;

use crate::status::Reason;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ClientOptions;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use proto::v1::FailureClass;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Longest key, in bytes.
const MAX_KEY: usize = 1024;
/// Longest time for one object to S3 or from there: a gigabyte over a slow link.
const S3_TIMEOUT: Duration = Duration::from_mins(5);
const S3_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A key that is asked for to see whether a store answers.
const PROBE: &str = "runs/probe";

/// What a store can answer but success; by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A key that could leave the store: a bug or a hostile message.
    #[error("'{key}' is no key: {problem}")]
    BadKey {
        /// What was asked.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An address of no store that we know.
    #[error("'{address}' is no store; name a folder, as /path or file:///path, or s3://bucket/prefix")]
    BadAddress {
        /// What was given.
        address: String,
        /// What is wrong with it, when more is known.
        source: Option<Cause>,
    },
    /// Nothing is there.
    #[error("'{key}' is not in the store")]
    NotFound {
        /// What was asked.
        key: String,
    },
    /// An object is no longer the one that was listed.
    #[error("'{key}' has changed since it was first looked at")]
    Changed {
        /// What was asked.
        key: String,
    },
    /// [`Store::create`] found something.
    #[error("'{key}' is already in the store")]
    AlreadyExists {
        /// What was asked.
        key: String,
    },
    /// Disk or quota is used up: free space, then go on.
    #[error("the store is full at '{key}'")]
    Full {
        /// What was asked.
        key: String,
        /// What the system said.
        source: Cause,
    },
    /// The program may not read or write there: fix the rights, then go on.
    #[error("the store denies access to '{key}'")]
    PermissionDenied {
        /// What was asked.
        key: String,
        /// What the system said.
        source: Cause,
    },
    /// Anything else that the store failed with: try again.
    #[error("the store failed at '{key}'")]
    Unavailable {
        /// What was asked.
        key: String,
        /// What the system said.
        source: Cause,
    },
}

/// What lies under a store's failure.
type Cause = Box<dyn Error + Send + Sync>;

impl StoreError {
    /// Returns what the coordinator can do about a task that fails with this.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::BadKey { .. } | Self::BadAddress { .. } => FailureClass::InvalidInput,
            Self::Changed { .. } => FailureClass::Numerical,
            Self::AlreadyExists { .. } => FailureClass::Internal,
            Self::NotFound { .. } | Self::Full { .. } | Self::PermissionDenied { .. } | Self::Unavailable { .. } => {
                FailureClass::Store
            }
        }
    }

    /// Returns the reason that goes on the wire and into a paused run.
    pub fn reason(&self) -> Reason {
        match self {
            Self::BadKey { .. } | Self::BadAddress { .. } => Reason::MessageInvalid,
            Self::Changed { .. } => Reason::DigestMismatch,
            Self::NotFound { .. } => Reason::ObjectNotFound,
            Self::AlreadyExists { .. } => Reason::ObjectExists,
            Self::Full { .. } => Reason::StoreFull,
            Self::PermissionDenied { .. } => Reason::StoreDenied,
            Self::Unavailable { .. } => Reason::StoreUnavailable,
        }
    }
}

/// A store; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    folder: Option<PathBuf>,
}

impl Store {
    /// Returns a store on a folder, which is created if it is not there.
    pub fn open_local(folder: &Path) -> Result<Self, StoreError> {
        let key = folder.display().to_string();
        std::fs::create_dir_all(folder).map_err(|e| failure(&key, e.into()))?;
        let folder = folder.canonicalize().map_err(|e| failure(&key, e.into()))?;
        let objects = LocalFileSystem::new_with_prefix(&folder).map_err(|e| failed(&key, e))?.with_fsync(true);
        Ok(Self { objects: Arc::new(objects), folder: Some(folder) })
    }

    /// Returns the store at a folder, `file:///folder` or `s3://bucket/prefix`. Region, credentials and endpoint of S3 are in
    /// the usual variables of the environment, `AWS_REGION` and so on.
    ///
    /// # Errors
    /// [`StoreError::BadAddress`] for anything else; what opening a folder fails with, or a bucket that does not answer.
    pub async fn open(address: &str) -> Result<Self, StoreError> {
        match address.split_once("://") {
            None if !address.is_empty() => Self::open_local(Path::new(address)),
            Some(("file", path)) if path.starts_with('/') => Self::open_local(Path::new(path)),
            Some(("s3", path)) if !path.is_empty() && !path.starts_with('/') => Self::open_s3(address, path).await,
            _ => Err(bad_address(address, None)),
        }
    }

    async fn open_s3(address: &str, path: &str) -> Result<Self, StoreError> {
        // reqwest asks for a provider of cryptography by process; the first one stays, and ours is always the same.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let options = ClientOptions::new().with_timeout(S3_TIMEOUT).with_connect_timeout(S3_CONNECT_TIMEOUT);
        let plain = std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true" || value == "1");
        let bucket = AmazonS3Builder::from_env().with_url(address).with_client_options(options).with_allow_http(plain);
        let bucket = bucket.build().map_err(|e| bad_address(address, Some(e.into())))?;
        let prefix = path.split_once('/').map_or("", |(_, prefix)| prefix);
        let objects: Arc<dyn ObjectStore> = match prefix.trim_end_matches('/') {
            "" => Arc::new(bucket),
            prefix => Arc::new(PrefixStore::new(bucket, checked(prefix)?)),
        };
        let store = Self { objects, folder: None };
        // Better now than in the middle of a run.
        store.exists(PROBE).await?;
        Ok(store)
    }

    /// Returns an empty store that lives as long as its clones.
    pub fn memory() -> Self {
        Self { objects: Arc::new(InMemory::new()), folder: None }
    }

    /// Returns where the store lies, if that is a folder.
    pub fn folder(&self) -> Option<PathBuf> {
        self.folder.clone()
    }

    /// Returns the content of an object.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let found = self.objects.get(&checked(key)?).await.map_err(|e| failed(key, e))?;
        found.bytes().await.map_err(|e| failed(key, e))
    }

    /// Writes an object, in place of what is there.
    pub async fn put(&self, key: &str, content: Bytes) -> Result<(), StoreError> {
        self.write(key, content.into(), PutMode::Overwrite).await
    }

    /// Writes an object whose content comes in parts, without putting them side by side; replaces what is there.
    pub async fn put_parts(&self, key: &str, parts: Vec<Bytes>) -> Result<(), StoreError> {
        self.write(key, PutPayload::from_iter(parts), PutMode::Overwrite).await
    }

    /// Writes an object that must not be there yet; of two writers exactly one succeeds.
    pub async fn create(&self, key: &str, content: Bytes) -> Result<(), StoreError> {
        self.write(key, content.into(), PutMode::Create).await
    }

    /// Gives an object a second name, in place of what is there; a store that can does so without moving the content.
    pub async fn copy(&self, from: &str, to: &str) -> Result<(), StoreError> {
        self.objects.copy(&checked(from)?, &checked(to)?).await.map_err(|e| failed(from, e))
    }

    /// Says whether an object is there.
    pub async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.size(key).await?.is_some())
    }

    /// Returns how many bytes an object has, if it is there.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.entry(key).await?.map(|found| found.bytes))
    }

    /// Returns the keys of all objects below the folder `prefix`, sorted; none is no error.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        Ok(self.list_entries(prefix).await?.into_iter().map(|found| found.key).collect())
    }

    /// Returns all objects below the folder `prefix`, by key; none is no error.
    pub async fn list_entries(&self, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        let found = self.objects.list(Some(&checked(prefix)?)).map_ok(Entry::from);
        let mut listed: Vec<Entry> = found.try_collect().await.map_err(|e| failed(prefix, e))?;
        listed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(listed)
    }

    /// Removes an object; what is not there is removed already.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.objects.delete(&checked(key)?).await.map_err(|e| failed(key, e)) {
            Err(StoreError::NotFound { .. }) | Ok(()) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Removes everything below the folder `prefix`; nothing may write there at the same time.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<(), StoreError> {
        let key = checked(prefix)?;
        if let Some(folder) = &self.folder {
            // Takes staged files along that a killed writer left, which no listing shows.
            return match tokio::fs::remove_dir_all(folder.join(key.as_ref())).await {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(failure(prefix, e.into())),
                _ => Ok(()),
            };
        }
        let keys = self.objects.list(Some(&key)).map_ok(|meta| meta.location).boxed();
        self.objects.delete_stream(keys).try_for_each(|_| async { Ok(()) }).await.map_err(|e| failed(prefix, e))
    }

    async fn write(&self, key: &str, payload: PutPayload, mode: PutMode) -> Result<(), StoreError> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.objects.put_opts(&checked(key)?, payload, options).await.map_err(|e| failed(key, e))?;
        Ok(())
    }
}

fn bad_address(address: &str, source: Option<Cause>) -> StoreError {
    StoreError::BadAddress { address: address.chars().take(MAX_KEY).collect(), source }
}

/// Returns a key if it is made of plain parts, so that it stays inside the store.
fn checked(key: &str) -> Result<Key, StoreError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let problem = if key.len() > MAX_KEY {
        "it is longer than 1024 bytes"
    } else if key.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
        "a part of it is empty or begins with a dot"
    } else if !key.split('/').all(|part| part.chars().all(legal)) {
        "it has characters other than a-z, A-Z, 0-9, '.', '_', '-' and '/'"
    } else {
        return Ok(Key::from(key));
    };
    Err(StoreError::BadKey { key: key.chars().take(MAX_KEY).collect(), problem })
}

/// Returns our error for the library's.
fn failed(key: &str, error: object_store::Error) -> StoreError {
    match error {
        object_store::Error::NotFound { .. } => StoreError::NotFound { key: key.to_owned() },
        object_store::Error::AlreadyExists { .. } => StoreError::AlreadyExists { key: key.to_owned() },
        object_store::Error::Precondition { .. } => StoreError::Changed { key: key.to_owned() },
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            StoreError::PermissionDenied { key: key.to_owned(), source: error.into() }
        }
        other => failure(key, other.into()),
    }
}

/// Returns our error for one whose kind only the system's error at its root tells.
fn failure(key: &str, source: Cause) -> StoreError {
    let key = key.to_owned();
    match io_kind(source.as_ref()) {
        Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => StoreError::Full { key, source },
        Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            StoreError::PermissionDenied { key, source }
        }
        _ => StoreError::Unavailable { key, source },
    }
}

/// Returns the kind of the innermost system error in a causal chain.
fn io_kind(error: &(dyn Error + 'static)) -> Option<ErrorKind> {
    let mut found = None;
    let mut next = Some(error);
    while let Some(current) = next {
        let io = current.downcast_ref::<io::Error>();
        found = io.map(io::Error::kind).or(found);
        // An `io::Error` skips what it wraps when asked for its source.
        let wrapped = io.and_then(io::Error::get_ref).map(|inner| inner as &(dyn Error + 'static));
        next = wrapped.or_else(|| current.source());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores() -> Vec<(Store, Option<tempfile::TempDir>)> {
        let folder = tempfile::tempdir().unwrap();
        let local = Store::open_local(&folder.path().join("new/state")).unwrap();
        vec![(local, Some(folder)), (Store::memory(), None)]
    }

    #[tokio::test]
    async fn the_second_creation_of_a_key_is_refused_and_changes_nothing() {
        for (store, _folder) in stores() {
            store.create("runs/a/journal/1", "first".into()).await.unwrap();
            let again = store.create("runs/a/journal/1", "second".into()).await;
            assert!(matches!(again, Err(StoreError::AlreadyExists { .. })), "{again:?}");
            assert_eq!(store.get("runs/a/journal/1").await.unwrap(), "first");
        }
    }

    #[tokio::test]
    async fn of_many_creators_exactly_one_succeeds() {
        for (store, _folder) in stores() {
            let tries = (0..16).map(|n| {
                let store = store.clone();
                tokio::spawn(async move { store.create("k", format!("{n}").into()).await.is_ok() })
            });
            let won = futures::future::join_all(tries).await.into_iter().filter(|r| *r.as_ref().unwrap()).count();
            assert_eq!(won, 1);
        }
    }

    #[tokio::test]
    async fn a_put_replaces_the_whole_object() {
        for (store, _folder) in stores() {
            store.put("a/b", vec![1; 100_000].into()).await.unwrap();
            store.put("a/b", "short".into()).await.unwrap();
            assert_eq!(store.get("a/b").await.unwrap(), "short");
            assert!(store.exists("a/b").await.unwrap());
            assert_eq!(store.size("a/b").await.unwrap(), Some(5));
            store.put("a/b", Bytes::new()).await.unwrap();
            assert_eq!(store.size("a/b").await.unwrap(), Some(0), "empty is not gone");
            store.delete("a/b").await.unwrap();
            assert_eq!(store.size("a/b").await.unwrap(), None);
            store.delete("a/b").await.unwrap();
            assert!(!store.exists("a/b").await.unwrap());
            assert!(matches!(store.get("a/b").await, Err(StoreError::NotFound { key }) if key == "a/b"));
        }
    }

    #[tokio::test]
    async fn keys_are_listed_in_order_and_only_below_the_folder() {
        for (store, _folder) in stores() {
            for key in ["r/10", "r/02", "r/1/x", "rr/1", "r/03"] {
                store.put(key, Bytes::new()).await.unwrap();
            }
            assert_eq!(store.list("r").await.unwrap(), ["r/02", "r/03", "r/1/x", "r/10"]);
            assert_eq!(store.list("nothing/here").await.unwrap(), [""; 0]);
        }
    }

    #[tokio::test]
    async fn deleting_a_prefix_takes_everything_below_it_and_nothing_else() {
        for (store, folder) in stores() {
            for key in ["s/1/a", "s/1/b/c", "s/10", "s/2"] {
                store.put(key, Bytes::new()).await.unwrap();
            }
            let staged = folder.as_ref().map(|f| f.path().join("new/state/s/1/a#7"));
            if let Some(path) = &staged {
                std::fs::write(path, "torn").unwrap();
            }
            store.delete_prefix("s/1").await.unwrap();
            store.delete_prefix("s/1").await.unwrap();
            assert_eq!(store.list("s").await.unwrap(), ["s/10", "s/2"]);
            assert!(staged.is_none_or(|path| !path.exists()));
        }
    }

    #[tokio::test]
    async fn keys_that_could_leave_the_store_are_refused() {
        let (store, _folder) = stores().remove(0);
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", ".a", "a b", "a#1", "a\\b", "ä", &"x".repeat(1025)] {
            let tried = store.put(bad, Bytes::new()).await;
            assert!(matches!(tried, Err(StoreError::BadKey { .. })), "{bad}");
            assert!(store.delete_prefix(bad).await.is_err(), "{bad}");
        }
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures_through_every_wrapping() {
        let wrapped = |code| object_store::Error::Generic {
            store: "local",
            source: Box::new(io::Error::other(io::Error::from_raw_os_error(code))),
        };
        for (code, reason) in [
            (28, Reason::StoreFull),
            (122, Reason::StoreFull),
            (13, Reason::StoreDenied),
            (30, Reason::StoreDenied),
            (5, Reason::StoreUnavailable),
        ] {
            assert_eq!(failed("k", wrapped(code)).reason(), reason, "errno {code}");
        }
    }

    #[tokio::test]
    async fn addresses_of_no_store_are_refused_with_what_would_be_one() {
        for bad in ["", "ftp://x", "file://relative", "s3://", "s3:///x"] {
            let error = Store::open(bad).await.unwrap_err();
            assert!(error.to_string().contains("s3://bucket/prefix"), "{bad}: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}/new", folder.path().display());
        Store::open(&url).await.unwrap().put("a", "b".into()).await.unwrap();
        assert!(folder.path().join("new/a").is_file());
    }

    #[tokio::test]
    async fn a_folder_that_is_a_file_is_an_error_with_a_cause() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open_local(file.path()).unwrap_err();
        assert!(error.source().is_some(), "{error}");
    }
}
