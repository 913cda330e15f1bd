//! A model folder in a bucket: what is small is copied, tensors are read in ranges.

use super::PlaceError;
use crate::ahead::Ahead;
use crate::compute::Beat;
use crate::store::{Entry, Store, StoreError};
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use tokio::runtime::Handle;
use types::RemoteFiles;

/// Files of weights: never copied.
const WEIGHTS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "gguf", "onnx", "h5", "msgpack", "npz"];
/// Other files above this are no part of a model that we use.
const SMALL: u64 = 256 << 20;
/// What one request asks for: large enough that a round trip does not matter, small enough that several go side by side.
const PIECE: u64 = 8 << 20;
/// Requests under way for one tensor: one connection to a bucket is far slower than a host's network.
const SIDE_BY_SIDE: usize = 8;
/// Tensors that may be on their way before they are asked for: those of a block, and then some.
const AHEAD: usize = 32;
/// Files that are copied at a time.
const COPIES: usize = 4;

/// Files by name.
pub(super) type Files = BTreeMap<String, Entry>;

/// Returns what lies below a folder. Objects without a byte are left out: consoles make such ones to show folders, and what is listed
/// of them is no key under which they can be read.
pub(super) async fn below(store: &Store, folder: &str) -> Result<Vec<Entry>, StoreError> {
    let mut listed = store.list_entries(folder).await?;
    listed.retain(|found| found.bytes > 0);
    Ok(listed)
}

/// Returns the files that lie in a folder itself, by name; those below its folders, hidden ones and names that no model file has
/// are left out.
pub(super) async fn list_folder(store: &Store, folder: &str) -> Result<Files, StoreError> {
    let prefix = format!("{folder}/");
    let listed = below(store, folder).await?;
    let own = listed.into_iter().filter_map(|found| {
        let name = found.key.strip_prefix(&prefix)?.to_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        (!name.starts_with('.') && name.chars().all(plain)).then_some((name, found))
    });
    Ok(own.collect())
}

/// Returns a name for what was listed: another one when anything changed.
pub(super) fn fingerprint<'a>(address: &str, listed: impl IntoIterator<Item = &'a Entry>) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(address.as_bytes());
    for entry in listed {
        hasher.update(b"\0").update(entry.key.as_bytes()).update(&entry.bytes.to_le_bytes());
        hasher.update(entry.version.as_deref().unwrap_or_default().as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

fn is_weights(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, ending)| WEIGHTS.contains(&ending))
}

/// Copies the files of a model folder that are not weights. `alive` is called whenever something came.
pub(super) async fn copy_small(
    store: &Store,
    (name, files): (&str, &Files),
    folder: &Path,
    alive: &(dyn Fn() + Sync),
) -> Result<(), PlaceError> {
    let scratch = |source| PlaceError::Scratch { path: folder.to_owned(), source };
    tokio::fs::create_dir_all(folder).await.map_err(scratch)?;
    let small = files.iter().filter(|(file, listed)| !is_weights(file) && listed.bytes <= SMALL);
    let copies = small.map(|(file, listed)| async move {
        store
            .download(&listed.key, &folder.join(file), alive)
            .await
            .map_err(|fault| fault.at(&format!("{name}/{file}")))
    });
    futures::stream::iter(copies).buffer_unordered(COPIES).try_collect::<Vec<()>>().await.map(drop)
}

/// The tensor files of a model folder.
#[derive(Debug)]
pub(super) struct BucketFiles {
    store: Store,
    files: Files,
    runtime: Handle,
    /// Told while a read lasts.
    beat: Option<Beat>,
    ahead: Ahead<(String, Range<u64>), Result<Vec<u8>, StoreError>>,
}

impl BucketFiles {
    /// Returns the weights among the files of a folder.
    pub(super) fn new(store: Store, files: Files, runtime: Handle, beat: Option<Beat>) -> Self {
        let files = files.into_iter().filter(|(name, _)| is_weights(name)).collect();
        Self { store, files, runtime, beat, ahead: Ahead::new(AHEAD) }
    }

    fn listed(&self, file: &str) -> Option<Entry> {
        self.files.get(file).cloned()
    }
}

/// Returns a range, in pieces that are on their way side by side.
async fn fetch(store: Store, of: Entry, range: Range<u64>, beat: Option<Beat>) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
    let end = range.end;
    let pieces = range.step_by(PIECE as usize).map(|from| {
        let (store, of) = (store.clone(), of.clone());
        async move { store.get_range_of(&of, from..(from + PIECE).min(end)).await }
    });
    let mut pieces = futures::stream::iter(pieces).buffered(SIDE_BY_SIDE);
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
        beat.iter().for_each(Beat::touch);
    }
    Ok(bytes)
}

impl RemoteFiles for BucketFiles {
    fn size(&self, file: &str) -> Option<u64> {
        self.files.get(file).map(|listed| listed.bytes)
    }

    fn read(&self, file: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        let listed = self.listed(file).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if let Some(Ok(bytes)) = self.ahead.take(&self.runtime, &(file.to_owned(), range.clone())) {
            self.beat.iter().for_each(Beat::touch);
            return Ok(bytes);
        }
        // What failed ahead of time is tried once more now that it is needed.
        let read = self.runtime.block_on(fetch(self.store.clone(), listed, range, self.beat.clone()));
        read.map_err(|error| match &error {
            StoreError::NotFound { .. } => io::Error::new(io::ErrorKind::NotFound, error),
            StoreError::Changed { .. } => io::Error::new(io::ErrorKind::InvalidData, error),
            _ => io::Error::other(error),
        })
    }

    fn read_ahead(&self, file: &str, range: Range<u64>) {
        let Some(listed) = self.listed(file) else { return };
        let ask = fetch(self.store.clone(), listed, range.clone(), None);
        self.ahead.begin(&self.runtime, (file.to_owned(), range), ask);
    }
}
