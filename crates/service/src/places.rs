//! Where a run's model, text and output lie when they are no paths of this host, and how a worker reaches them.
//!
//! | address | what | for |
//! |---|---|---|
//! | `/path`, `file:///path` | a path of this host | all |
//! | `s3://bucket/prefix/name` | a folder or an object in a bucket, below one of the allowed addresses | all |
//! | `artifact:blake3`, `artifact:blake3.ext` | what a caller wrote into the store; the ending says how it is read | text |
//!
//! Of a model in a bucket, config and tokenizer are copied to a folder of this host, tensors are read in ranges when they are
//! asked for. Text is copied. An output is written and proved in a folder of this host, then copied into its bucket. Does not
//! know what is in any file.
//!
//! These functions block, but for [`OutputPlace::publish`]: they are for the compute thread.

mod address;
mod bucket;
mod output;
mod scratch;
mod text;

pub use output::OutputPlace;

use crate::checkpoint::CheckpointError;
use crate::compute::Beat;
use crate::status::Reason;
use crate::store::{Store, StoreError, TransferFault};
use address::Address;
use bucket::BucketFiles;
use proto::v1::FailureClass;
use scratch::Scratch;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use types::ModelPlace;

/// Why an address leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No address that this program knows.
    #[error("'{address}' is no place for {what}: {problem}")]
    BadAddress {
        /// What was given.
        address: String,
        /// `a model`, `text` or `an output`.
        what: &'static str,
        /// What would be one.
        problem: &'static str,
    },
    /// An address that this worker must not touch.
    #[error(
        "'{address}' is not below an address that this worker may use ({allowed}); allow it with --allow where the worker is started"
    )]
    NotAllowed {
        /// What was given.
        address: String,
        /// What is allowed.
        allowed: String,
    },
    /// Nothing is there.
    #[error("there is nothing at '{address}'")]
    Nothing {
        /// What was given.
        address: String,
    },
    /// Something else is where the output should go.
    #[error("there is something at '{address}' already; choose another output, or remove it")]
    Occupied {
        /// What was given.
        address: String,
    },
    /// What came is not what its digest says.
    #[error("'{address}' is damaged: its BLAKE3 is {found}")]
    Damaged {
        /// What was given.
        address: String,
        /// What was found.
        found: String,
    },
    /// The bucket.
    #[error("cannot reach what is at '{address}'")]
    Store {
        /// What was given.
        address: String,
        /// What the store said.
        source: StoreError,
    },
    /// The folder of this host where copies lie.
    #[error("cannot write {}, where this worker keeps copies (--scratch)", path.display())]
    Scratch {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PlaceError {
    /// Returns what the coordinator can do about a task that fails with this.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::BadAddress { .. } | Self::NotAllowed { .. } | Self::Nothing { .. } | Self::Occupied { .. } => {
                FailureClass::InvalidInput
            }
            Self::Damaged { .. } => FailureClass::Numerical,
            Self::Store { source, .. } => source.class(),
            Self::Scratch { .. } => FailureClass::Store,
        }
    }

    /// Returns the reason that goes on the wire.
    pub fn reason(&self) -> Reason {
        match self {
            Self::BadAddress { .. } | Self::NotAllowed { .. } => Reason::AddressRefused,
            Self::Nothing { .. } => Reason::InputInvalid,
            Self::Occupied { .. } => Reason::OutputExists,
            Self::Damaged { .. } => Reason::DigestMismatch,
            Self::Store { source, .. } => source.reason(),
            Self::Scratch { source, .. } if source.kind() == io::ErrorKind::StorageFull => Reason::StoreFull,
            Self::Scratch { .. } => Reason::StoreUnavailable,
        }
    }
}

/// Returns what becomes of a task that needs bytes from elsewhere, a part of a tensor file or a changed layer, when they cannot
/// be read.
pub fn failure_of_read(error: &io::Error) -> (FailureClass, Reason) {
    let inner = error.get_ref();
    let of_checkpoint = || match inner?.downcast_ref()? {
        CheckpointError::Store(error) => Some(error),
        CheckpointError::Damaged { .. } => None,
    };
    match (error.kind(), inner.and_then(|inner| inner.downcast_ref::<StoreError>()).or_else(of_checkpoint)) {
        (io::ErrorKind::NotFound, _) => (FailureClass::InvalidInput, Reason::ModelInvalid),
        (io::ErrorKind::InvalidData, _) => (FailureClass::Numerical, Reason::DigestMismatch), // another file by now
        (_, Some(error)) => (error.class(), error.reason()),
        (_, None) => (FailureClass::Store, Reason::StoreUnavailable),
    }
}

/// What a worker may reach beyond the paths of its host, and its copies of it; cheap to clone.
#[derive(Debug, Clone)]
pub struct Places {
    inner: Option<Arc<Inner>>,
    beat: Option<Beat>,
}

#[derive(Debug)]
struct Inner {
    /// `s3://…` without a slash at the end.
    allowed: Vec<String>,
    /// Where artifacts lie.
    store: Store,
    scratch: Scratch,
    runtime: Handle,
    /// Buckets by the address of the folder that was opened.
    opened: Mutex<BTreeMap<String, Store>>,
    /// Held while something is copied: two roles of one process may want the same.
    copying: Mutex<()>,
    /// Models by address, with what was listed when they were copied.
    models: Mutex<BTreeMap<String, (String, ModelPlace)>>,
}

impl Places {
    /// Returns the places of who reaches nothing but the paths of its host.
    pub fn paths_only() -> Self {
        Self { inner: None, beat: None }
    }

    /// Returns what is reached with `allowed` addresses and the artifacts of `store`; copies lie in a folder in `scratch` that is
    /// made when there is something to copy and goes with the last clone.
    ///
    /// # Errors
    /// [`PlaceError::BadAddress`] for an allowed address that is none of a bucket.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(allowed: &[String], store: Store, scratch: &Path) -> Result<Self, PlaceError> {
        let cleaned = allowed.iter().map(|given| match Address::parse(given) {
            Some(Address::Bucket(_)) => Ok(given.trim_end_matches('/').to_owned()),
            _ => Err(address::bad(given, "what a worker may use", "name s3://bucket or s3://bucket/prefix")),
        });
        let allowed = cleaned.collect::<Result<_, _>>()?;
        let (opened, copying, models) = (Mutex::default(), Mutex::default(), Mutex::default());
        let scratch = Scratch::new(scratch);
        let inner = Inner { allowed, store, scratch, runtime: Handle::current(), opened, copying, models };
        Ok(Self { inner: Some(Arc::new(inner)), beat: None })
    }

    /// Returns the same places; reading from them counts as a sign of life of the thread that computes.
    #[must_use]
    pub fn telling(self, beat: Beat) -> Self {
        Self { beat: Some(beat), ..self }
    }

    /// Returns where the model at `address` is to be opened.
    ///
    /// # Errors
    /// Any [`PlaceError`] but `Occupied` and `Damaged`.
    pub fn model(&self, address: &str) -> Result<ModelPlace, PlaceError> {
        let Some(Address::Bucket(parts)) = Address::parse(address) else {
            return path(address, "a model").map(ModelPlace::from);
        };
        let inner = self.bucket_inner(address)?;
        let (parent, name) = parts.split().ok_or_else(|| {
            address::bad(address, "a model", "name a folder in the bucket, as s3://bucket/prefix/model")
        })?;
        let _turn = lock(&inner.copying);
        let found = async {
            let store = inner.open(parent).await?;
            bucket::list_folder(&store, name).await
        };
        let files = inner.wait(found).map_err(|source| PlaceError::Store { address: address.to_owned(), source })?;
        if files.is_empty() {
            return Err(PlaceError::Nothing { address: address.to_owned() });
        }
        let listed = bucket::fingerprint(address, files.values());
        if let Some((known, place)) = lock(&inner.models).get(address)
            && *known == listed
        {
            return Ok(place.clone());
        }
        let folder = inner.scratch.path()?.join("models").join(&listed).join(name);
        let copied = async {
            let store = inner.open(parent).await.map_err(|source| at(address, source))?;
            bucket::copy_small(&store, (name, &files), &folder, &|| self.touch()).await.map(|()| store)
        };
        let store = inner.wait(copied)?;
        let tensors = BucketFiles::new(store, files, inner.runtime.clone(), self.beat.clone());
        let place = ModelPlace { folder, tensors: Some(Arc::new(tensors)) };
        lock(&inner.models).insert(address.to_owned(), (listed, place.clone()));
        Ok(place)
    }

    /// Returns paths of this host for files, folders and globs, and for copies of what lies elsewhere, in the same order.
    ///
    /// # Errors
    /// Any [`PlaceError`] but `Occupied`.
    pub fn text(&self, addresses: &[String]) -> Result<Vec<String>, PlaceError> {
        let local = |address: &String| match Address::parse(address) {
            Some(Address::Bucket(parts)) => {
                text::from_bucket(self.bucket_inner(address)?, address, &parts, &|| self.touch())
            }
            Some(Address::Artifact(artifact)) => {
                let inner = self.inner.as_deref().ok_or_else(|| only_paths(address, "text"))?;
                text::from_artifact(inner, address, &artifact, &|| self.touch())
            }
            _ => path(address, "text").map(|path| path.to_string_lossy().into_owned()),
        };
        addresses.iter().map(local).collect()
    }

    /// Returns where the output at `address` is to be written.
    ///
    /// # Errors
    /// [`PlaceError::BadAddress`], [`PlaceError::NotAllowed`], [`PlaceError::Store`], [`PlaceError::Scratch`].
    pub fn output(&self, address: &str) -> Result<OutputPlace, PlaceError> {
        let Some(Address::Bucket(parts)) = Address::parse(address) else {
            return path(address, "an output").map(|path| OutputPlace::Folder(path.to_owned()));
        };
        let inner = self.bucket_inner(address)?;
        let (parent, name) = parts.split().ok_or_else(|| {
            address::bad(address, "an output", "name a folder in the bucket, as s3://bucket/prefix/smaller")
        })?;
        let store = inner.wait(inner.open(parent)).map_err(|source| at(address, source))?;
        output::in_bucket(address, store, name, &inner.scratch.path()?)
    }

    /// Says whether something is at `address` already.
    ///
    /// # Errors
    /// As [`Self::output`].
    pub fn is_occupied(&self, address: &str) -> Result<bool, PlaceError> {
        match self.output(address)? {
            OutputPlace::Folder(path) => Ok(path.symlink_metadata().is_ok()),
            OutputPlace::Bucket(output) => {
                let inner = self.bucket_inner(address)?;
                inner.wait(output.is_occupied())
            }
        }
    }

    /// Tells that something came, if somebody is to be told.
    fn touch(&self) {
        self.beat.iter().for_each(Beat::touch);
    }

    /// Returns what reaches a bucket that may be reached.
    fn bucket_inner(&self, address: &str) -> Result<&Inner, PlaceError> {
        let inner = self.inner.as_deref().ok_or_else(|| only_paths(address, "a worker without buckets"))?;
        let below = |allowed: &String| {
            address.strip_prefix(allowed.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if inner.allowed.iter().any(below) {
            return Ok(inner);
        }
        let allowed = if inner.allowed.is_empty() { "none".to_owned() } else { inner.allowed.join(", ") };
        Err(PlaceError::NotAllowed { address: address.to_owned(), allowed })
    }

    /// Puts a store where a bucket would be.
    #[cfg(test)]
    fn with_bucket(self, address: &str, store: Store) -> Self {
        if let Some(inner) = &self.inner {
            lock(&inner.opened).insert(address.to_owned(), store);
        }
        self
    }
}

impl Inner {
    /// Returns the store at an address, opened once.
    async fn open(&self, address: &str) -> Result<Store, StoreError> {
        if let Some(store) = lock(&self.opened).get(address) {
            return Ok(store.clone());
        }
        let store = Store::open(address).await?;
        Ok(lock(&self.opened).entry(address.to_owned()).or_insert(store).clone())
    }

    /// Waits on a thread that carries no messages.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

/// Returns a path of this host.
fn path<'a>(address: &'a str, what: &'static str) -> Result<&'a Path, PlaceError> {
    match Address::parse(address) {
        Some(Address::Path(path)) => Ok(Path::new(path)),
        Some(Address::Artifact(_)) => {
            Err(address::bad(address, what, "an artifact is a file of text; name a folder or s3://bucket/prefix/name"))
        }
        Some(Address::Bucket(_)) | None => Err(address::bad(address, what, "name a path, or s3://bucket/prefix/name")),
    }
}

fn only_paths(address: &str, what: &'static str) -> PlaceError {
    address::bad(address, what, "only paths of this host are read here")
}

fn at(address: &str, source: StoreError) -> PlaceError {
    PlaceError::Store { address: address.to_owned(), source }
}

impl TransferFault {
    /// Returns what it means for an address.
    fn at(self, address: &str) -> PlaceError {
        match self {
            Self::Store(source) => at(address, source),
            Self::File { path, source } => PlaceError::Scratch { path, source },
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
