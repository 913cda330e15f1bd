//! Between a store and files of this host, without holding either in memory.

use super::{Store, StoreError, checked, failed};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use std::io;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What is read of a file at a time; a smaller one is written at once.
const PIECE: usize = 8 << 20;

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
    /// Copies an object to the file `path`, whose folders are made; the file gets its name when it is whole. `alive` is
    /// called whenever something came.
    pub async fn download(&self, key: &str, path: &Path, alive: &(dyn Fn() + Sync)) -> Result<(), TransferFault> {
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
            alive();
        }
        out.flush().await.map_err(file)?;
        drop(out);
        tokio::fs::rename(&partial, path).await.map_err(file)
    }

    /// Copies the file `path` into an object, in place of what is there; it is visible when it is whole.
    pub async fn upload(&self, key: &str, path: &Path) -> Result<(), TransferFault> {
        let file = |source| TransferFault::File { path: path.to_owned(), source };
        let mut content = tokio::fs::File::open(path).await.map_err(file)?;
        let mut piece = read_piece(&mut content).await.map_err(file)?;
        if piece.len() < PIECE {
            return Ok(self.put(key, piece).await?);
        }
        let mut staged = self.stage(key).await?;
        loop {
            let written = async {
                staged.write(piece).await?;
                read_piece(&mut content).await.map_err(file)
            };
            piece = match written.await {
                Ok(next) if next.is_empty() => return Ok(staged.publish().await?),
                Ok(next) => next,
                Err(fault) => {
                    // Of what stays after this nobody sees anything; a bucket has a rule for it.
                    let _ = staged.discard().await;
                    return Err(fault);
                }
            };
        }
    }
}

/// Returns the next piece of a file: shorter at its end, empty behind it.
async fn read_piece(file: &mut tokio::fs::File) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PIECE);
    file.take(PIECE as u64).read_to_end(&mut piece).await?;
    Ok(piece.into())
}
