//! Artifacts on their way in: begun, gone on with, finished, forgotten. What is not whole yet lies in the store apart from what is, and
//! outlasts the coordinator but for the last part.
//!
//! Writers of one artifact share its upload: whoever is ahead brings it on, what the others bring twice is skipped.

use super::refusal;
use super::upload::{Announced, Standing, Upload, UploadFault};
use crate::metrics;
use futures::Stream;
use proto::convert::{Fields, artifact_name};
use proto::v1;
use proto::v1::write_artifact_request::Part;
use service::status::{Reason, chain, invalid_message};
use service::store::Entry;
use service::transfer::{self, ChunkFault, Cut};
use service::{RequestIds, Store, StoreError, keys};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How long the rest of a broken upload is waited for.
pub(super) const FORGOTTEN: Duration = Duration::from_hours(1);
/// How often that is looked at.
const LOOK: Duration = Duration::from_mins(1);
/// Unfinished uploads at a time: each has a part in memory.
pub(super) const MAX_UNFINISHED: usize = 32;
/// When to ask again for room that unfinished uploads take.
const LATER: Duration = Duration::from_secs(10);
const REQUEST: Fields = Fields("WriteArtifactRequest");

/// How much callers may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Largest artifact, in bytes.
    pub artifact_bytes: u64,
    /// Bytes of all uploads that are not finished, as announced.
    pub unfinished_bytes: u64,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self { artifact_bytes: 4 << 30, unfinished_bytes: 16 << 30 }
    }
}

type Shared = Arc<tokio::sync::Mutex<Upload>>;
type Unfinished = BTreeMap<Announced, Shared>;

/// The uploads that are not finished; cheap to clone.
#[derive(Debug, Clone, Default)]
struct List(Arc<Mutex<Unfinished>>);

impl List {
    fn lock(&self) -> MutexGuard<'_, Unfinished> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, announced: &Announced) -> Option<Shared> {
        self.lock().get(announced).cloned()
    }

    /// Takes an upload off that is not open any more, while its lock is held: who waits for it sees how it ended.
    fn strike(&self, upload: &OwnedMutexGuard<Upload>) {
        let same = |listed: &mut Shared| Arc::ptr_eq(listed, OwnedMutexGuard::mutex(upload));
        self.lock().retain(|_, listed| upload.standing() == Standing::Open || !same(listed));
    }
}

/// All uploads.
#[derive(Debug)]
pub(super) struct Uploads {
    store: Store,
    limits: UploadLimits,
    nonces: RequestIds,
    unfinished: List,
}

impl Uploads {
    /// Returns a store's uploads, none of them begun.
    pub(super) fn new(store: Store, limits: UploadLimits) -> Self {
        Self { store, limits, nonces: RequestIds::new("upload"), unfinished: List::default() }
    }

    /// Finds what earlier coordinators had received, and removes what nobody can go on with.
    pub(super) async fn restore(&self) -> Result<(), StoreError> {
        self.store.remove_staged(keys::ARTIFACTS).await?;
        let parts = self.store.page(keys::UPLOADS, None, usize::MAX, |_| true).await?;
        let folder_of =
            |part: &Entry| part.key.rsplit_once('/').map_or_else(String::new, |(folder, _)| folder.to_owned());
        for parts in parts.chunk_by(|a, b| folder_of(a) == folder_of(b)) {
            let folder = folder_of(&parts[0]);
            let Some(announced) = folder.rsplit('/').next().and_then(Announced::of_folder) else {
                self.store.delete_prefix(&folder).await?;
                continue;
            };
            let upload = Upload::restored(announced.clone(), self.store.clone(), &folder, parts);
            self.keep_the_longer(announced, upload).await?;
        }
        Ok(())
    }

    /// Lists what an earlier coordinator had received, unless more of the same is listed.
    async fn keep_the_longer(&self, announced: Announced, mut upload: Upload) -> Result<(), StoreError> {
        if let Some(listed) = self.unfinished.find(&announced) {
            let mut listed = listed.lock_owned().await;
            if listed.received() < upload.received() {
                std::mem::swap(&mut *listed, &mut upload);
            }
            return self.store.delete_prefix(&upload.forget()).await;
        }
        self.unfinished.lock().insert(announced, Arc::new(tokio::sync::Mutex::new(upload)));
        Ok(())
    }

    /// Takes an artifact, or as much of it as comes.
    pub(super) async fn write(
        &self,
        mut parts: impl Stream<Item = Result<v1::WriteArtifactRequest, Status>> + Unpin + Send,
    ) -> Result<v1::WriteArtifactResponse, Status> {
        let Some(Part::Header(header)) = next(&mut parts).await? else {
            return Err(invalid_message(&REQUEST.bad("part", "the first message must be a header")));
        };
        let announced = Announced::new(&header).map_err(|e| invalid_message(&e))?;
        self.check_size(&announced)?;
        if self.is_there(&announced).await? {
            return Ok(answer(&announced, announced.bytes, true));
        }
        if let Some(known) = self.unfinished.find(&announced) {
            let upload = known.lock_owned().await;
            if upload.received() == announced.bytes {
                return self.finish(announced, upload).await;
            }
            if header.offset > upload.received() {
                return Ok(answer(&announced, upload.received(), false));
            }
        } else if header.offset > 0 {
            return Ok(answer(&announced, 0, false));
        }
        self.take(announced, header.offset > 0, &mut parts).await
    }

    /// Takes chunks until there are no more, or all are here. `goes_on`: with an upload that was begun.
    async fn take(
        &self,
        announced: Announced,
        mut goes_on: bool,
        parts: &mut (impl Stream<Item = Result<v1::WriteArtifactRequest, Status>> + Unpin + Send),
    ) -> Result<v1::WriteArtifactResponse, Status> {
        loop {
            let chunk = match next(parts).await? {
                Some(Part::Chunk(chunk)) => chunk,
                Some(Part::Header(_)) => return Err(invalid_message(&REQUEST.bad("part", "a second header came"))),
                None => {
                    let received = match self.unfinished.find(&announced) {
                        Some(upload) => upload.lock().await.received(),
                        None => 0,
                    };
                    return Ok(answer(&announced, received, false));
                }
            };
            if self.unfinished.find(&announced).is_none() {
                // Another caller may have been quicker; what was gone on with may have been deleted or forgotten.
                if self.is_there(&announced).await? {
                    return Ok(answer(&announced, announced.bytes, true));
                }
                if goes_on {
                    return Ok(answer(&announced, 0, false));
                }
            }
            let mut upload = self.begun(&announced).await?.lock_owned().await;
            match upload.standing() {
                Standing::Whole => return Ok(answer(&announced, announced.bytes, true)),
                Standing::Dropped => return Ok(answer(&announced, 0, false)),
                Standing::Open => {}
            }
            if upload.append(chunk).await.map_err(|fault| fault_status(&fault))? {
                return self.finish(announced, upload).await;
            }
            goes_on = true;
        }
    }

    /// Gives an artifact its name; goes on when its caller is gone.
    async fn finish(
        &self,
        announced: Announced,
        mut upload: OwnedMutexGuard<Upload>,
    ) -> Result<v1::WriteArtifactResponse, Status> {
        let (named, list) = (announced.clone(), self.unfinished.clone());
        let finishing = tokio::spawn(async move {
            if upload.standing() == Standing::Open {
                let finished = upload.finish().await;
                list.strike(&upload);
                finished.map_err(|fault| fault_status(&fault))?;
                tracing::info!(blake3 = named.blake3, bytes = named.bytes, "artifact uploaded");
            }
            Ok::<_, Status>(())
        });
        finishing.await.map_err(|panic| Reason::Internal.status(panic.to_string()))??;
        Ok(answer(&announced, announced.bytes, true))
    }

    /// Removes an artifact, and what is here of it.
    pub(super) async fn remove(&self, blake3: &str) -> Result<(), StoreError> {
        let mut unfinished: Vec<(Announced, Shared)> =
            self.unfinished.lock().iter().map(|(announced, upload)| (announced.clone(), upload.clone())).collect();
        unfinished.retain(|(announced, _)| announced.blake3 == blake3);
        for (_, upload) in unfinished {
            self.drop_upload(upload.lock_owned().await).await?;
        }
        self.store.delete(&keys::artifact(blake3)).await
    }

    /// Drops uploads whose rest nobody brings.
    pub(super) async fn forget(&self) {
        let all: Vec<Shared> = self.unfinished.lock().values().cloned().collect();
        for upload in all {
            // Whoever holds it brings something.
            let Ok(upload) = upload.try_lock_owned() else { continue };
            if upload.touched.elapsed() < FORGOTTEN {
                continue;
            }
            tracing::info!(received = upload.received(), "unfinished upload forgotten");
            if let Err(error) = self.drop_upload(upload).await {
                tracing::warn!(error = chain(&error), "parts of a forgotten upload stay in the store");
            }
        }
    }

    async fn drop_upload(&self, mut upload: OwnedMutexGuard<Upload>) -> Result<(), StoreError> {
        if upload.standing() != Standing::Open {
            return Ok(());
        }
        // Off the list before anything can break this off: nobody is to go on with a part of it.
        let folder = upload.forget();
        self.unfinished.strike(&upload);
        self.store.delete_prefix(&folder).await
    }

    /// Returns an upload; begins it if there is room.
    async fn begun(&self, announced: &Announced) -> Result<Shared, Status> {
        if let Some(upload) = self.unfinished.find(announced) {
            return Ok(upload);
        }
        if self.is_full(&self.unfinished.lock(), announced) {
            self.forget().await;
        }
        let mut unfinished = self.unfinished.lock();
        if let Some(upload) = unfinished.get(announced) {
            return Ok(upload.clone()); // another caller was quicker
        }
        if self.is_full(&unfinished, announced) {
            let message = format!(
                "{} unfinished artifacts are here, {} bytes of {} allowed; ask again, or finish or delete some",
                unfinished.len(),
                unfinished.keys().map(|u| u.bytes).sum::<u64>(),
                self.limits.unfinished_bytes
            );
            return Err(Reason::TransfersFull.status_retry_after(message, LATER));
        }
        let upload = Upload::new(announced.clone(), self.store.clone(), &self.nonces.next());
        let upload = Arc::new(tokio::sync::Mutex::new(upload));
        unfinished.insert(announced.clone(), upload.clone());
        Ok(upload)
    }

    fn is_full(&self, unfinished: &Unfinished, announced: &Announced) -> bool {
        let bytes: u64 = unfinished.keys().map(|u| u.bytes).sum();
        unfinished.len() >= MAX_UNFINISHED || bytes + announced.bytes > self.limits.unfinished_bytes
    }

    fn check_size(&self, announced: &Announced) -> Result<(), Status> {
        let most = self.limits.artifact_bytes.min(self.limits.unfinished_bytes);
        if announced.bytes > most {
            let message = format!(
                "{} bytes are more than the {most} that this coordinator takes; cut the file, or see --artifact-limit",
                announced.bytes
            );
            return Err(Reason::ArtifactTooLarge.status(message));
        }
        Ok(())
    }

    async fn is_there(&self, announced: &Announced) -> Result<bool, Status> {
        let size = self.store.size(&keys::artifact(&announced.blake3)).await.map_err(|error| refusal(&error))?;
        match size {
            Some(bytes) if bytes != announced.bytes => {
                let problem = format!("{} is not the length of {}: {bytes}", announced.bytes, announced.blake3);
                Err(invalid_message(&REQUEST.bad("header.bytes", problem)))
            }
            size => Ok(size.is_some()),
        }
    }
}

/// Tells how many bytes of unfinished uploads are announced, whenever somebody asks.
pub(super) fn watch(uploads: &Arc<Uploads>) {
    let uploads = Arc::downgrade(uploads);
    metrics::watch_uploads(move || {
        let uploads = uploads.upgrade()?;
        let bytes = uploads.unfinished.lock().keys().map(|announced| announced.bytes).sum::<u64>();
        Some(bytes)
    });
}

/// Drops forgotten uploads for as long as there are any to drop.
pub(super) async fn forget_from_time_to_time(uploads: Weak<Uploads>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        match uploads.upgrade() {
            Some(uploads) => uploads.forget().await,
            None => return,
        }
    }
}

fn answer(announced: &Announced, received: u64, complete: bool) -> v1::WriteArtifactResponse {
    v1::WriteArtifactResponse { name: artifact_name(&announced.blake3), received, complete }
}

/// Returns the next part of an upload; nothing at its end.
async fn next(
    parts: &mut (impl Stream<Item = Result<v1::WriteArtifactRequest, Status>> + Unpin + Send),
) -> Result<Option<Part>, Status> {
    match transfer::next(parts).await {
        Ok(None) => Ok(None),
        Ok(Some(message)) => REQUEST.required("part", message.part).map(Some).map_err(|e| invalid_message(&e)),
        Err(Cut::Silent) => {
            let message = format!("nothing came for {} s; go on later", transfer::IDLE.as_secs());
            Err(Reason::PeerUnavailable.status(message))
        }
        Err(Cut::Broken(status)) => {
            Err(Reason::PeerUnavailable.status(format!("the upload broke: {}", status.message())))
        }
    }
}

fn fault_status(fault: &UploadFault) -> Status {
    match fault {
        UploadFault::Chunk(ChunkFault::Checksum { .. }) | UploadFault::Digest { .. } => {
            metrics::checksum_failed();
            Reason::DigestMismatch.status(chain(fault))
        }
        UploadFault::Chunk(ChunkFault::Length { .. }) | UploadFault::Gap { .. } => {
            invalid_message(&REQUEST.bad("chunk", chain(fault)))
        }
        UploadFault::Store(error) => refusal(error),
    }
}
