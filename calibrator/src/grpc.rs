//! `CalibratorService`: decode, ask the shelf, encode.

use crate::error::Error;
use crate::shelf::{Factors, Next, Shelf};
use crate::standalone::{Answers, Standalone};
use futures::{Stream, TryStreamExt, stream};
use proto::convert::{Fields, InvalidMessage};
use proto::v1;
use proto::v1::calibrator_service_server::CalibratorService;
use proto::v1::stream_factors_response::Part;
use service::SweepKey;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use types::{Generation, WorkerId};

/// How long a call waits for its sweep to begin.
pub(crate) const START_WAIT: Duration = Duration::from_secs(10);
const STREAM: Fields = Fields("StreamFactorsRequest");
const RELEASE: Fields = Fields("ReleaseFactorsRequest");

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Grpc {
    /// What is served.
    pub(crate) shelf: Arc<Shelf>,
    /// Our name.
    pub(crate) worker: WorkerId,
    /// Our device.
    pub(crate) device: String,
    /// Ends open streams.
    pub(crate) stop: CancellationToken,
    /// Sweeps for callers; `None` while a coordinator has the calibrator.
    pub(crate) standalone: Option<Arc<Standalone>>,
}

impl Grpc {
    fn standalone(&self) -> Result<&Standalone, Error> {
        self.standalone.as_deref().ok_or(Error::HasCoordinator)
    }

    /// Returns the parts of a stream as they become ready.
    pub(crate) fn parts(
        &self,
        request: v1::StreamFactorsRequest,
    ) -> Result<impl Stream<Item = Result<Part, Status>> + Send + use<>, Status> {
        let sending = Sending::new(request, Arc::clone(&self.shelf), self.stop.clone()).map_err(Error::from)?;
        let parts = stream::try_unfold(sending, |mut sending| async move {
            let part = sending.next().await?;
            Ok::<_, Error>(part.map(|part| (part, sending)))
        });
        Ok(parts.map_err(Status::from))
    }
}

/// One stream under way: a header, its chunks, the next header.
struct Sending {
    shelf: Arc<Shelf>,
    stop: CancellationToken,
    key: SweepKey,
    asked: BTreeSet<u32>,
    sent: BTreeSet<u32>,
    /// Block that does not begin at its first byte, and the byte it begins at.
    resume: Option<(u32, u64)>,
    /// The present block and how many of its bytes are sent.
    current: Option<(Arc<Factors>, u64)>,
}

impl Sending {
    fn new(
        request: v1::StreamFactorsRequest,
        shelf: Arc<Shelf>,
        stop: CancellationToken,
    ) -> Result<Self, InvalidMessage> {
        STREAM.at_most("blocks", request.blocks.len(), proto::convert::MAX_BLOCKS, "blocks")?;
        let key = SweepKey {
            run: STREAM.run("run", &request.run)?,
            shot: request.shot,
            shard: request.shard,
            generation: Generation(request.generation),
        };
        let count = request.blocks.len();
        let asked: BTreeSet<u32> = request.blocks.into_iter().collect();
        if asked.len() < count {
            return Err(STREAM.bad("blocks", "names a block twice"));
        }
        let resume = request.resume_block.map(|block| (block, request.resume_offset));
        if resume.is_some_and(|(block, _)| !asked.contains(&block)) {
            return Err(STREAM.bad("resume_block", "is not one of the blocks"));
        }
        Ok(Self { shelf, stop, key, asked, sent: BTreeSet::new(), resume, current: None })
    }

    /// Returns the next part, waiting for it; `None` at the end.
    async fn next(&mut self) -> Result<Option<Part>, Error> {
        if let Some(chunk) = self.chunk().await? {
            return Ok(Some(Part::Chunk(chunk)));
        }
        let next = tokio::select! {
            next = self.shelf.next(&self.key, &self.asked, &self.sent, START_WAIT) => next?,
            () = self.stop.cancelled() => return Err(Error::Stopping),
        };
        match next {
            Next::Ready(factors) => self.begin(factors).map(|header| Some(Part::Header(header))),
            Next::Done => Ok(None),
        }
    }

    fn begin(&mut self, factors: Arc<Factors>) -> Result<v1::FactorHeader, Error> {
        let (block, bytes) = (factors.block, factors.bytes());
        let offset = self.resume.filter(|(resumed, _)| *resumed == block).map_or(0, |(_, offset)| offset);
        if offset >= bytes {
            return Err(Error::ResumeBehindEnd { block, offset, bytes });
        }
        self.sent.insert(block);
        let header = v1::FactorHeader { block, bytes, blake3: factors.sums.blake3.clone() };
        self.current = Some((factors, offset));
        Ok(header)
    }

    /// Returns the next slice of the present block, from memory without a copy.
    async fn chunk(&mut self) -> Result<Option<v1::FactorChunk>, Error> {
        let Some((factors, offset)) = &mut self.current else { return Ok(None) };
        let end = factors.bytes().min(*offset + proto::CHUNK_BYTES as u64);
        let payload = factors.slice(*offset..end).await.map_err(|error| self.shelf.lose(&self.key, &error))?;
        let crc32c = factors.sums.of_chunk(*offset, &payload);
        let chunk = v1::FactorChunk { block: factors.block, offset: *offset, crc32c, payload };
        crate::metrics::sent(chunk.payload.len());
        *offset = end;
        if end == factors.bytes() {
            self.current = None;
        }
        Ok(Some(chunk))
    }
}

#[tonic::async_trait]
impl CalibratorService for Grpc {
    type StreamFactorsStream = Pin<Box<dyn Stream<Item = Result<v1::StreamFactorsResponse, Status>> + Send>>;

    async fn stream_factors(
        &self,
        request: Request<v1::StreamFactorsRequest>,
    ) -> Result<Response<Self::StreamFactorsStream>, Status> {
        let parts = self.parts(request.into_inner())?;
        Ok(Response::new(Box::pin(parts.map_ok(|part| v1::StreamFactorsResponse { part: Some(part) }))))
    }

    type CalibrateStream = Answers;

    async fn load_model(
        &self,
        request: Request<v1::LoadModelRequest>,
    ) -> Result<Response<v1::LoadModelResponse>, Status> {
        Ok(Response::new(self.standalone()?.load(request.into_inner()).await?))
    }

    async fn calibrate(&self, request: Request<v1::CalibrateRequest>) -> Result<Response<Answers>, Status> {
        Ok(Response::new(self.standalone()?.calibrate(request.into_inner()).await?))
    }

    async fn release_factors(
        &self,
        request: Request<v1::ReleaseFactorsRequest>,
    ) -> Result<Response<v1::ReleaseFactorsResponse>, Status> {
        let request = request.into_inner();
        let key = SweepKey {
            run: RELEASE.run("run", &request.run).map_err(Error::from)?,
            shot: request.shot,
            shard: request.shard,
            generation: Generation(request.generation),
        };
        self.shelf.release(&key, request.block, START_WAIT).await?;
        Ok(Response::new(v1::ReleaseFactorsResponse {}))
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let status = self.shelf.status();
        let sweep = status.sweep.as_ref();
        Ok(Response::new(v1::GetStatusResponse {
            worker: self.worker.to_string(),
            device: self.device.clone(),
            run: sweep.map(|s| s.run.to_string()).unwrap_or_default(),
            shot: sweep.map_or(0, |s| s.shot),
            shard: sweep.map_or(0, |s| s.shard),
            waiting_blocks: status.waiting,
        }))
    }
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
