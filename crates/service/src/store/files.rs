//! Between a store and files of this host, without holding either in memory.

use super::{Store, StoreError, checked, failed};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, WriteMultipart};
use std::io;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes of one part of a large object; below it an object is written at once. 10,000 parts are allowed: 160 GB a file.
const PART: usize = 16 << 20;
/// Parts under way at a time.
const PARTS: usize = 4;

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
pub enum TransferFault {
    /// The store's side.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This host's side.
    #[error("cannot copy {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Store {
    /// Copies an object to the file `path`, whose folders are made; the file gets its name when it is whole.
    pub async fn download(&self, key: &str, path: &Path) -> Result<(), TransferFault> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let file = |source| TransferFault::File { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(file)?;
        }
        let found = self.objects.get(&checked(key)?).await.map_err(|e| failed(key, e))?;
        let mut content = found.into_stream();
        let mut out = tokio::fs::File::create(&partial).await.map_err(file)?;
        while let Some(bytes) = content.try_next().await.map_err(|e| failed(key, e))? {
            out.write_all(&bytes).await.map_err(file)?;
        }
        out.flush().await.map_err(file)?;
        drop(out);
        tokio::fs::rename(&partial, path).await.map_err(file)
    }

    /// Copies the file `path` into an object, in place of what is there; it is visible when it is whole.
    pub async fn upload(&self, key: &str, path: &Path) -> Result<(), TransferFault> {
        let file = |source| TransferFault::File { path: path.to_owned(), source };
        let mut content = tokio::fs::File::open(path).await.map_err(file)?;
        let mut part = read_part(&mut content).await.map_err(file)?;
        if part.len() < PART {
            return Ok(self.put(key, part).await?);
        }
        let store = |e| TransferFault::Store(failed(key, e));
        let begun = self.objects.put_multipart(&checked(key)?).await.map_err(store)?;
        let mut upload = WriteMultipart::new_with_chunk_size(begun, PART);
        while !part.is_empty() {
            // Small parts but the last one are what S3 refuses: each of ours is as large as it says.
            let sent = async { upload.wait_for_capacity(PARTS).await.map_err(store) }.await;
            let next = match sent {
                Ok(()) => {
                    upload.put(part);
                    read_part(&mut content).await.map_err(file)
                }
                Err(fault) => Err(fault),
            };
            match next {
                Ok(next) => part = next,
                Err(fault) => {
                    // What came of the parts already there is the bucket's rule for unfinished uploads.
                    let _ = upload.abort().await;
                    return Err(fault);
                }
            }
        }
        upload.finish().await.map(drop).map_err(store)
    }
}

/// Returns the next part of a file: shorter at its end, empty behind it.
async fn read_part(file: &mut tokio::fs::File) -> io::Result<Bytes> {
    let mut part = Vec::with_capacity(PART);
    let mut limited = file.take(PART as u64);
    limited.read_to_end(&mut part).await?;
    Ok(part.into())
}
