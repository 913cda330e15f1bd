//! An artifact on its way to a caller: read by pieces, sent by chunks, and never more than two pieces in memory.

use super::{refusal, stopping, tell};
use crate::metrics::{self, Direction};
use futures::{Stream, StreamExt, stream};
use proto::InvalidMessage;
use proto::convert::Fields;
use proto::v1;
use proto::v1::read_artifact_response::Part;
use service::status::Reason;
use service::store::Entry;
use service::transfer::{self, Chunk};
use service::{Store, keys};
use std::ops::Range;
use std::pin::Pin;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Bytes that are read from the store at a time: a bucket answers slowly, but not often.
const PIECE_BYTES: u64 = 4 << 20;
/// Chunks that wait to be sent.
const WAITING: usize = 2;
const REQUEST: Fields = Fields("request");

/// What a caller gets.
pub(super) type Parts = Pin<Box<dyn Stream<Item = Result<v1::ReadArtifactResponse, Status>> + Send>>;

/// Returns the bytes of a whole of so many that a request asks for.
pub(super) fn range(request: &v1::ReadArtifactRequest, bytes: u64) -> Result<Range<u64>, InvalidMessage> {
    if request.offset > bytes {
        return Err(REQUEST.bad("offset", format!("{} is beyond the artifact's {bytes} bytes", request.offset)));
    }
    let left = bytes - request.offset;
    let length = if request.length == 0 { left } else { left.min(request.length) };
    Ok(request.offset..request.offset + length)
}

/// Returns an artifact's description and a range of its bytes; `turn` is given back when all is sent or the caller is gone.
pub(super) fn parts(
    store: Store,
    entry: Entry,
    range: Range<u64>,
    turn: OwnedSemaphorePermit,
    stop: CancellationToken,
) -> Parts {
    let (sender, receiver) = mpsc::channel(WAITING);
    let sending = tokio::spawn(async move {
        let _turn = turn;
        tokio::select! {
            sent = send(&store, entry, range, &sender) => sent,
            () = stop.cancelled() => Err(stopping()),
        }
    });
    // The channel may be full when something goes wrong; what it was follows behind.
    let end = stream::once(sending).filter_map(async |ended| match ended {
        Ok(Ok(())) => None,
        Ok(Err(status)) => Some(Err(status)),
        Err(panic) => Some(Err(Reason::Internal.status(panic.to_string()))),
    });
    Box::pin(ReceiverStream::new(receiver).chain(end))
}

type Sender = mpsc::Sender<Result<v1::ReadArtifactResponse, Status>>;

async fn send(store: &Store, entry: Entry, range: Range<u64>, sender: &Sender) -> Result<(), Status> {
    let mut goes_on = offer(sender, Part::Artifact(tell(entry.clone()))).await?;
    let mut at = range.start;
    // Of the object that was announced: a manifest may be written anew meanwhile. What is named by its digest stays what it is.
    let version = entry.version.filter(|_| keys::digest(&entry.key).is_none());
    let entry = Entry { version, ..entry };
    while at < range.end && goes_on {
        let piece = store.get_range_of(&entry, at..range.end.min(at + PIECE_BYTES)).await.map_err(|e| refusal(&e))?;
        if piece.is_empty() {
            return Err(Reason::ObjectNotFound.status(format!("'{}' became shorter while it was read", entry.key)));
        }
        for Chunk { offset, crc32c, payload } in transfer::chunks(&piece, at) {
            metrics::moved(Direction::Out, payload.len());
            goes_on = goes_on && offer(sender, Part::Chunk(v1::ArtifactChunk { offset, crc32c, payload })).await?;
        }
        at += piece.len() as u64;
    }
    Ok(())
}

/// Sends a part; says whether the caller is still there.
async fn offer(sender: &Sender, part: Part) -> Result<bool, Status> {
    let message = v1::ReadArtifactResponse { part: Some(part) };
    match tokio::time::timeout(transfer::IDLE, sender.send(Ok(message))).await {
        Ok(sent) => Ok(sent.is_ok()),
        Err(_) => Err(Reason::PeerUnavailable.status("nobody takes the bytes; ask for the rest later")),
    }
}
