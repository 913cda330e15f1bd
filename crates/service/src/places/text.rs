//! Text that lies elsewhere, copied to this host.

use super::address::BucketAddress;
use super::bucket::{self, fingerprint};
use super::{Inner, PlaceError, address, at, lock};
use crate::keys;
use crate::store::Entry;
use futures::{StreamExt, TryStreamExt};
use proto::convert::ArtifactAddress;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Files that are copied at a time.
const COPIES: usize = 4;
/// Most files of one address.
const MAX_FILES: usize = 100_000;

/// Returns the path of a copy of an object, or of all objects of a folder. `alive` is called whenever something came.
pub(super) fn from_bucket(
    inner: &Inner,
    address: &str,
    parts: &BucketAddress<'_>,
    alive: &(dyn Fn() + Sync),
) -> Result<String, PlaceError> {
    let place = "name an object or a folder in the bucket, as s3://bucket/prefix/text.jsonl";
    let (parent, name) = parts.split().ok_or_else(|| address::bad(address, "text", place))?;
    if name.contains(['*', '?', '[']) {
        return Err(address::bad(address, "text", "patterns are for paths of a host; name an object or a folder"));
    }
    let _turn = lock(&inner.copying);
    inner.wait(copied(inner, address, (parent, name), alive))
}

async fn copied(
    inner: &Inner,
    address: &str,
    (parent, name): (&str, &str),
    alive: &(dyn Fn() + Sync),
) -> Result<String, PlaceError> {
    let store = inner.open(parent).await.map_err(|source| at(address, source))?;
    let object = store.entry(name).await.map_err(|source| at(address, source))?;
    let files = match object {
        Some(listed) => vec![listed],
        None => bucket::below(&store, name).await.map_err(|source| at(address, source))?,
    };
    if files.is_empty() {
        return Err(PlaceError::Nothing { address: address.to_owned() });
    }
    if files.len() > MAX_FILES {
        return Err(address::bad(address, "text", "it has more than 100,000 objects"));
    }
    let folder = inner.scratch.path()?.join("text").join(fingerprint(address, &files));
    let path = folder.join(name);
    let copies = files.iter().filter(|listed| is_visible(listed)).map(|listed| {
        let (store, target) = (store.clone(), folder.join(&listed.key));
        async move {
            if is_whole(&target, listed.bytes).await {
                return Ok(());
            }
            store.download(&listed.key, &target, alive).await.map_err(|fault| fault.at(address))
        }
    });
    futures::stream::iter(copies).buffer_unordered(COPIES).try_collect::<Vec<()>>().await?;
    Ok(path.to_string_lossy().into_owned())
}

/// Says whether an object is one that a folder of a host would show.
fn is_visible(listed: &Entry) -> bool {
    listed.key.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

/// Says whether a copy was made before. Copies get their name when they are whole.
async fn is_whole(path: &Path, bytes: u64) -> bool {
    tokio::fs::metadata(path).await.is_ok_and(|found| found.len() == bytes)
}

/// Returns the path of a copy of what a caller wrote into the store. `alive` is called whenever something came.
pub(super) fn from_artifact(
    inner: &Inner,
    address: &str,
    artifact: &ArtifactAddress,
    alive: &(dyn Fn() + Sync),
) -> Result<String, PlaceError> {
    let ArtifactAddress { blake3: digest, ending } = artifact;
    let path = inner.scratch.path()?.join("artifacts").join(format!("{digest}{ending}"));
    let _turn = lock(&inner.copying);
    if !path.exists() {
        let partial = path.with_extension("part");
        let downloaded = inner.wait(inner.store.download(&keys::artifact(digest), &partial, alive));
        downloaded.map_err(|fault| fault.at(address))?;
        proved(address, digest, &partial)?;
        std::fs::rename(&partial, &path).map_err(|source| PlaceError::Scratch { path: path.clone(), source })?;
    }
    Ok(path.to_string_lossy().into_owned())
}

/// Refuses a copy that is not what its digest says.
fn proved(address: &str, digest: &str, copy: &PathBuf) -> Result<(), PlaceError> {
    let mut hasher = blake3::Hasher::new();
    let read = File::open(copy).and_then(|file| hasher.update_reader(file).map(|hasher| hasher.finalize()));
    let found = read.map_err(|source| PlaceError::Scratch { path: copy.clone(), source })?.to_hex();
    if found.as_str() == digest {
        return Ok(());
    }
    Err(PlaceError::Damaged { address: address.to_owned(), found: found.to_string() })
}
