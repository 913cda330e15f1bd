//! Objects that are too large to be held at once: read by ranges, written in parts, listed by pages.

use super::{Store, StoreError, checked, failed, failure};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, WriteMultipart};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::time::SystemTime;

/// Bytes of a part on their way to the store. S3 takes no smaller ones than 5 MiB, and 10,000 of them: 160 GB an object.
const PART_BYTES: usize = 16 << 20;
/// Parts under way at a time.
const PARTS_UNDER_WAY: usize = 2;
/// What the names of files have in them that are not whole yet, and no key has.
const STAGED: char = '#';

/// What a listing says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// How long it is.
    pub bytes: u64,
    /// When it was written.
    pub written: SystemTime,
    /// What changes with its content, where the store tells.
    pub version: Option<String>,
}

impl From<ObjectMeta> for Entry {
    fn from(meta: ObjectMeta) -> Self {
        let (key, written) = (meta.location.to_string(), meta.last_modified.into());
        Self { key, bytes: meta.size, written, version: meta.e_tag }
    }
}

impl Store {
    /// Returns a range of the bytes of an object that was looked at before; what lies beyond its end is left out.
    ///
    /// # Errors
    /// [`StoreError::Changed`] if it has become another one since.
    pub async fn get_range_of(&self, entry: &Entry, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new()); // which no store can be asked for
        }
        let range = Some(GetRange::Bounded(range));
        let options = GetOptions { range, if_match: entry.version.clone(), ..GetOptions::default() };
        let key = entry.key.as_str();
        let found = self.objects.get_opts(&checked(key)?, options).await.map_err(|e| failed(key, e))?;
        found.bytes().await.map_err(|e| failed(key, e))
    }

    /// Returns what is known of an object, if it is there.
    pub async fn entry(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        match self.objects.head(&checked(key)?).await.map_err(|e| failed(key, e)) {
            Ok(meta) => Ok(Some(meta.into())),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the first `limit` objects below the folder `prefix` that are `wanted` and whose keys come after `after`, by key.
    pub async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Entry>, StoreError> {
        let folder = checked(prefix)?;
        let mut listed = match after {
            Some(after) => self.objects.list_with_offset(Some(&folder), &checked(after)?),
            None => self.objects.list(Some(&folder)),
        };
        // Folders come in any order, so that all of it is looked at; no more than a page is kept.
        let mut first = BTreeMap::new();
        while let Some(meta) = listed.try_next().await.map_err(|e| failed(prefix, e))? {
            let entry = Entry::from(meta);
            if wanted(&entry.key) && after.is_none_or(|after| entry.key.as_str() > after) {
                first.insert(entry.key.clone(), entry);
                if first.len() > limit {
                    first.pop_last();
                }
            }
        }
        Ok(first.into_values().collect())
    }

    /// Begins an object that comes in parts; until it is published nothing is under its key that was not there before.
    pub async fn stage(&self, key: &str) -> Result<Staged, StoreError> {
        let upload = self.objects.put_multipart(&checked(key)?).await.map_err(|e| failed(key, e))?;
        Ok(Staged { key: key.to_owned(), upload: WriteMultipart::new_with_chunk_size(upload, PART_BYTES) })
    }

    /// Removes what killed writers left of unpublished objects in the folder `prefix`; nobody may write there at the same time.
    /// A bucket's own rules do that (`AbortIncompleteMultipartUpload`).
    pub async fn remove_staged(&self, prefix: &str) -> Result<(), StoreError> {
        let key = checked(prefix)?;
        let Some(folder) = &self.folder else { return Ok(()) };
        let failed = |error: std::io::Error| failure(prefix, error.into());
        let mut files = match tokio::fs::read_dir(folder.join(key.as_ref())).await {
            Ok(files) => files,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        while let Some(file) = files.next_entry().await.map_err(failed)? {
            if file.file_name().to_string_lossy().contains(STAGED) {
                tokio::fs::remove_file(file.path()).await.map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// An object of which parts are on their way. What is dropped was never there.
#[derive(Debug)]
pub struct Staged {
    key: String,
    upload: WriteMultipart,
}

impl Staged {
    /// Adds bytes at its end; waits while too many are under way.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.upload.wait_for_capacity(PARTS_UNDER_WAY).await.map_err(|e| failed(&self.key, e))?;
        self.upload.put(bytes);
        Ok(())
    }

    /// Gives it its key, in place of what is there.
    pub async fn publish(self) -> Result<(), StoreError> {
        self.upload.finish().await.map(drop).map_err(|e| failed(&self.key, e))
    }

    /// Forgets it.
    pub async fn discard(self) -> Result<(), StoreError> {
        self.upload.abort().await.map_err(|e| failed(&self.key, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores() -> Vec<(Store, Option<tempfile::TempDir>)> {
        let folder = tempfile::tempdir().unwrap();
        vec![(Store::open_local(folder.path()).unwrap(), Some(folder)), (Store::memory(), None)]
    }

    #[tokio::test]
    async fn a_staged_object_is_there_when_it_is_published_and_never_if_it_is_not() {
        let parts = [Bytes::from(vec![1; PART_BYTES + 3]), Bytes::from(vec![2; 5])];
        for (store, folder) in stores() {
            let mut kept = store.stage("a/kept").await.unwrap();
            for part in &parts {
                kept.write(part.clone()).await.unwrap();
                assert_eq!(store.entry("a/kept").await.unwrap(), None);
            }
            kept.publish().await.unwrap();
            assert_eq!(store.get("a/kept").await.unwrap(), parts.concat());

            let mut discarded = store.stage("a/discarded").await.unwrap();
            discarded.write(parts[1].clone()).await.unwrap();
            discarded.discard().await.unwrap();
            if let Some(folder) = &folder {
                std::fs::write(folder.path().join("a/torn#1"), "x").unwrap();
            }
            store.remove_staged("a").await.unwrap();
            store.remove_staged("nothing").await.unwrap();
            assert_eq!(store.list("a").await.unwrap(), ["a/kept"]);
            if let Some(folder) = &folder {
                assert_eq!(std::fs::read_dir(folder.path().join("a")).unwrap().count(), 1);
            }
        }
    }

    #[tokio::test]
    async fn ranges_are_parts_of_the_whole() {
        for (store, _folder) in stores() {
            store.put("k", "0123456789".into()).await.unwrap();
            let entry = store.entry("k").await.unwrap().unwrap();
            for (range, part) in [(0..10, "0123456789"), (3..7, "3456"), (9..10, "9"), (8..20, "89"), (5..5, "")] {
                assert_eq!(store.get_range_of(&entry, range).await.unwrap(), part);
            }
            let none = Entry { key: "none".to_owned(), ..entry };
            assert!(matches!(store.get_range_of(&none, 0..1).await, Err(StoreError::NotFound { .. })));
        }
    }

    #[tokio::test]
    async fn pages_follow_each_other_and_leave_out_what_nobody_wants() {
        for (store, _folder) in stores() {
            let keys = ["p/1/a", "p/1/b", "p/10", "p/2", "p/x", "q"];
            for key in keys {
                store.put(key, key.into()).await.unwrap();
            }
            let mut seen = Vec::new();
            let mut after: Option<String> = None;
            loop {
                let page = store.page("p", after.as_deref(), 2, |key| !key.ends_with('x')).await.unwrap();
                assert!(page.len() <= 2 && page.iter().all(|e| e.bytes == e.key.len() as u64));
                let Some(last) = page.last() else { break };
                after = Some(last.key.clone());
                seen.extend(page.into_iter().map(|e| e.key));
            }
            assert_eq!(seen, keys[..4]);
        }
    }
}
