//! One artifact on its way in: what of it is here, in parts in the store and a tail in memory.
//!
//! Knows nothing of other uploads and of who writes. Every step may be broken off: what counts as received is never lost by it.

use crate::metrics::{self, Direction};
use bytes::{Bytes, BytesMut};
use proto::convert::{Fields, InvalidMessage, MAX_SIZE};
use proto::v1;
use service::store::Entry;
use service::transfer::{self, ChunkFault};
use service::{Store, StoreError, keys};
use tokio::time::Instant;

/// Bytes of a part in the store; as much of every upload is in memory.
pub(super) const PART_BYTES: usize = 4 << 20;
const HEADER: Fields = Fields("WriteArtifactHeader");

/// What a caller says will come; whoever says the same writes the same upload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Announced {
    pub(super) blake3: String,
    pub(super) bytes: u64,
}

impl Announced {
    /// Returns what a header announces.
    pub(super) fn new(header: &v1::WriteArtifactHeader) -> Result<Self, InvalidMessage> {
        if header.bytes == 0 {
            return Err(HEADER.bad("bytes", "is 0; there are no empty artifacts"));
        }
        let bytes = HEADER.number("bytes", header.bytes, MAX_SIZE)?;
        Ok(Self { blake3: HEADER.blake3("blake3", header.blake3.clone())?, bytes })
    }

    /// Returns what the folder of an unfinished upload was made for.
    pub(super) fn of_folder(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let (blake3, bytes) = (parts.next()?, parts.next()?.parse().ok()?);
        keys::is_digest(blake3).then(|| Self { blake3: blake3.to_owned(), bytes })
    }
}

/// What is wrong with a chunk or with the whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadFault {
    /// A damaged chunk, or one of a length that cannot be.
    #[error(transparent)]
    Chunk(#[from] ChunkFault),
    /// Bytes were left out.
    #[error("byte {came} came where byte {due} was due")]
    Gap {
        /// What came.
        came: u64,
        /// What was due.
        due: u64,
    },
    /// The whole has another digest.
    #[error("the artifact has BLAKE3 {found} instead of {expected}; nothing of it is kept")]
    Digest {
        /// What the header says.
        expected: String,
        /// What the bytes give.
        found: String,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

/// Where an upload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It takes what comes.
    Open,
    /// All is here, under its name.
    Whole,
    /// It was removed; its parts may be gone.
    Dropped,
}

/// An upload.
#[derive(Debug)]
pub(super) struct Upload {
    announced: Announced,
    store: Store,
    /// Where its parts lie: of its own, so that removing them harms no later upload.
    folder: String,
    /// Bytes in parts.
    stored: u64,
    parts: Vec<String>,
    tail: BytesMut,
    standing: Standing,
    /// When something last came.
    pub(super) touched: Instant,
}

impl Upload {
    /// Returns an upload of which nothing is here.
    pub(super) fn new(announced: Announced, store: Store, nonce: &str) -> Self {
        let folder = format!("{}/{}-{}-{nonce}", keys::UPLOADS, announced.blake3, announced.bytes);
        let (parts, tail, standing) = (Vec::new(), BytesMut::new(), Standing::Open);
        Self { announced, store, folder, stored: 0, parts, tail, standing, touched: Instant::now() }
    }

    /// Returns an upload that an earlier coordinator began; what follows a gap is not taken.
    pub(super) fn restored(announced: Announced, store: Store, folder: &str, parts: &[Entry]) -> Self {
        let mut upload = Self { folder: folder.to_owned(), ..Self::new(announced, store, "") };
        for part in parts {
            if part.key != upload.next_part() || part.bytes > upload.announced.bytes - upload.stored {
                break;
            }
            upload.stored += part.bytes;
            upload.parts.push(part.key.clone());
        }
        upload
    }

    /// Returns the number of bytes that are here.
    pub(super) fn received(&self) -> u64 {
        match self.standing {
            Standing::Open => self.stored + self.tail.len() as u64,
            Standing::Whole => self.announced.bytes,
            Standing::Dropped => 0,
        }
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    /// Takes a chunk, or what of it is new; says whether all is here. What is refused leaves no trace.
    pub(super) async fn append(&mut self, chunk: v1::ArtifactChunk) -> Result<bool, UploadFault> {
        let due = self.received();
        transfer::check(std::slice::from_ref(&chunk.payload), chunk.offset, chunk.crc32c, self.announced.bytes)?;
        let Some(known) = due.checked_sub(chunk.offset) else {
            return Err(UploadFault::Gap { came: chunk.offset, due });
        };
        metrics::moved(Direction::In, chunk.payload.len());
        self.touched = Instant::now();
        // Another caller may have brought the same already.
        let new = usize::try_from(known).ok().and_then(|known| chunk.payload.get(known..)).unwrap_or_default();
        if !new.is_empty() {
            if !self.tail.is_empty() && self.tail.len() + new.len() > PART_BYTES {
                self.flush().await?;
            }
            self.tail.extend_from_slice(new);
        }
        Ok(self.received() == self.announced.bytes)
    }

    /// Gives the artifact its name, if it is what was announced; otherwise nothing of it stays.
    pub(super) async fn finish(&mut self) -> Result<(), UploadFault> {
        let found = self.publish().await;
        match found {
            Ok(found) if found == self.announced.blake3 => self.standing = Standing::Whole,
            Ok(found) => {
                let folder = self.forget();
                self.store.delete_prefix(&folder).await?;
                return Err(UploadFault::Digest { expected: self.announced.blake3.clone(), found });
            }
            Err(StoreError::NotFound { key }) => {
                // Somebody cleared the store.
                let folder = self.forget();
                self.store.delete_prefix(&folder).await?;
                return Err(StoreError::NotFound { key }.into());
            }
            Err(error) => return Err(error.into()),
        }
        self.tail = BytesMut::new();
        self.store.delete_prefix(&self.folder).await?;
        Ok(())
    }

    /// Forgets what is here; returns the folder that is to be removed.
    pub(super) fn forget(&mut self) -> String {
        self.standing = Standing::Dropped;
        self.tail = BytesMut::new();
        self.folder.clone()
    }

    /// Writes the artifact under its name unless its digest is another; returns that.
    async fn publish(&self) -> Result<String, StoreError> {
        let key = keys::artifact(&self.announced.blake3);
        let tail = Bytes::copy_from_slice(&self.tail);
        if self.parts.is_empty() {
            let found = blake3::hash(&tail).to_hex().to_string();
            if found == self.announced.blake3 {
                self.store.put(&key, tail).await?;
            }
            return Ok(found);
        }
        let mut hasher = blake3::Hasher::new();
        let mut staged = self.store.stage(&key).await?;
        for part in &self.parts {
            let part = self.store.get(part).await?;
            hasher.update(&part);
            staged.write(part).await?;
        }
        hasher.update(&tail);
        staged.write(tail).await?;
        let found = hasher.finalize().to_hex().to_string();
        if found == self.announced.blake3 {
            staged.publish().await?;
        } else {
            staged.discard().await?;
        }
        Ok(found)
    }

    /// Moves the tail into the store. Broken off, it is still the tail, and the part is written once more.
    async fn flush(&mut self) -> Result<(), StoreError> {
        let key = self.next_part();
        let part = Bytes::copy_from_slice(&self.tail);
        let bytes = part.len() as u64;
        self.store.put(&key, part).await?;
        self.stored += bytes;
        self.parts.push(key);
        self.tail.clear();
        Ok(())
    }

    fn next_part(&self) -> String {
        format!("{}/{:016}", self.folder, self.stored)
    }
}
