//! Costs and updates for callers who bring their own curvature, without coordinator or run: upload a block's factors, get
//! its removal paths, have a prefix of them cut.
//!
//! What is uploaded is visible only when all of it is there and matches its digest; a broken upload goes on where it broke.
//! Everything of a caller lies under a name of its own, apart from every run.

use crate::error::Error;
use crate::job::Block;
use crate::pull::{Budget, Share};
use crate::receive::Partial;
use crate::worker::block::{Blocks, Found, Scored};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use proto::convert::{Fields, InvalidMessage, MAX_LAYERS, spec_without_data};
use proto::v1;
use proto::v1::apply_cut_response::Part as CutPart;
use proto::v1::upload_factors_request::Part as UploadPart;
use service::transfer::{self, Chunk, Cut};
use service::{Reason, StoreError, keys, status};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use types::{LayerCut, RemovalPath, RunId, RunSpec};

/// Factors belong to a shot; a caller's is the only one.
const SHOT: u32 = 1;
/// Most shards of one block.
const MAX_SHARDS: u32 = 1 << 16;
/// How long the rest of a broken upload is waited for before its memory may go to another.
const FORGOTTEN: Duration = Duration::from_mins(5);
const UPLOAD: Fields = Fields("UploadHeader");
const REQUEST: Fields = Fields("request");

/// New weights on their way to a caller.
pub(crate) type NewWeights = Pin<Box<dyn Stream<Item = Result<v1::ApplyCutResponse, Status>> + Send>>;

/// Serves callers.
#[derive(Debug)]
pub(crate) struct Standalone {
    blocks: Blocks,
    budget: Budget,
    /// What of broken uploads is here.
    broken: Mutex<BTreeMap<Piece, Received>>,
    /// With what each block's stored paths were computed, and where they lie.
    scored: Mutex<BTreeMap<(RunId, u32), ScoredWith>>,
    stop: CancellationToken,
}

/// One block's factors of one shard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    run: RunId,
    shard: u32,
    block: u32,
}

impl Piece {
    fn key(&self) -> String {
        keys::factors(&self.run, SHOT, self.shard, self.block)
    }
}

/// The first bytes of a piece, and their share of the budget.
#[derive(Debug)]
struct Received {
    partial: Partial,
    since: Instant,
    _share: Share,
}

/// Stored paths of a block.
#[derive(Debug, Clone)]
struct ScoredWith {
    spec: RunSpec,
    shards: u32,
    key: String,
}

/// A block that a caller asks about.
struct Asked {
    run: RunId,
    spec: RunSpec,
    block: Block,
}

impl Asked {
    fn new(run: &str, spec: Option<v1::RunSpec>, block: u32, shards: u32) -> Result<Self, InvalidMessage> {
        let spec = spec_without_data(spec)?;
        if shards == 0 || shards > MAX_SHARDS {
            return Err(REQUEST.bad("shards", format!("{shards} is outside 1 to {MAX_SHARDS}")));
        }
        if spec.structure.is_masked() {
            let problem =
                format!("{} has no removal path: single weights go by a threshold over a whole model", spec.structure);
            return Err(REQUEST.bad("spec.structure", problem));
        }
        if spec.passes() > 0 || spec.decay > 0.0 {
            return Err(REQUEST.bad("spec", "half_steps and decay must be 0: they take more than one sweep"));
        }
        let block = Block { number: block, checkpoint: None, shards, round: 0, quarantined: Vec::new() };
        Ok(Self { run: caller(run)?, spec, block })
    }
}

impl Standalone {
    /// Returns a surgeon's service for callers; uploads take memory from `budget`.
    pub(crate) fn new(blocks: Blocks, budget: Budget, stop: CancellationToken) -> Self {
        Self { blocks, budget, broken: Mutex::default(), scored: Mutex::default(), stop }
    }

    /// Takes a piece, or as much of it as comes.
    pub(crate) async fn upload(
        &self,
        mut parts: impl Stream<Item = Result<v1::UploadFactorsRequest, Status>> + Unpin + Send,
    ) -> Result<v1::UploadFactorsResponse, Error> {
        let Some(UploadPart::Header(header)) = next(&mut parts).await? else {
            return Err(UPLOAD.bad("part", "the first message must be a header").into());
        };
        let factors = UPLOAD.required("factors", header.factors)?;
        if header.shard >= MAX_SHARDS {
            return Err(UPLOAD.bad("shard", format!("{} is not below {MAX_SHARDS}", header.shard)).into());
        }
        let piece = Piece { run: caller(&header.run)?, shard: header.shard, block: factors.block };
        if let Some(there) = self.there(&piece, &factors).await? {
            return Ok(there);
        }
        let mut received = self.begin(&piece, &factors)?;
        if received.partial.offset() != header.offset {
            let answer = v1::UploadFactorsResponse { received: received.partial.offset(), complete: false };
            self.lock().insert(piece, received);
            return Ok(answer);
        }
        loop {
            let step = match next(&mut parts).await {
                Ok(Some(UploadPart::Chunk(chunk))) => received.partial.append(chunk.into()).map_err(Error::from),
                Ok(Some(UploadPart::Header(_))) => Err(UPLOAD.bad("part", "a second header came").into()),
                Ok(None) => {
                    let answer = v1::UploadFactorsResponse { received: received.partial.offset(), complete: false };
                    self.lock().insert(piece, received);
                    return Ok(answer);
                }
                Err(broken) => Err(broken),
            };
            match step {
                Ok(false) => {}
                Ok(true) => break,
                Err(error) => {
                    received.since = Instant::now();
                    self.lock().insert(piece, received);
                    return Err(error);
                }
            }
        }
        let length = received.partial.offset();
        self.blocks.store.put_parts(&piece.key(), received.partial.finish()?).await?;
        tracing::info!(run = %piece.run, block = piece.block, shard = piece.shard, bytes = length, "factors uploaded");
        Ok(v1::UploadFactorsResponse { received: length, complete: true })
    }

    /// Returns the answer for a piece that is there already.
    ///
    /// # Errors
    /// Another one is there.
    async fn there(
        &self,
        piece: &Piece,
        header: &v1::FactorHeader,
    ) -> Result<Option<v1::UploadFactorsResponse>, Error> {
        match self.blocks.store.get(&piece.key()).await {
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(bytes) if blake3::hash(&bytes).to_hex().as_str() == header.blake3 => {
                Ok(Some(v1::UploadFactorsResponse { received: bytes.len() as u64, complete: true }))
            }
            Ok(_) => Err(StoreError::AlreadyExists { key: piece.key() }.into()),
        }
    }

    /// Returns what is here of a piece, or makes room for it.
    fn begin(&self, piece: &Piece, header: &v1::FactorHeader) -> Result<Received, Error> {
        let mut broken = self.lock();
        if let Some(received) = broken.remove(piece)
            && received.partial.continues(header)
        {
            return Ok(received);
        }
        let partial = Partial::begin(header)?;
        let share = self.budget.try_reserve(header.bytes).or_else(|| {
            broken.retain(|_, received| received.since.elapsed() < FORGOTTEN);
            self.budget.try_reserve(header.bytes)
        });
        let share = share.ok_or(Error::NoRoom { bytes: header.bytes })?;
        Ok(Received { partial, since: Instant::now(), _share: share })
    }

    /// Adds a block's shards and checks that they fit the model.
    pub(crate) async fn finalize(
        &self,
        request: v1::FinalizeFactorsRequest,
    ) -> Result<v1::FinalizeFactorsResponse, Error> {
        let Asked { run, spec, block } = Asked::new(&request.run, request.spec, request.block, request.shards)?;
        let (description, tokens) =
            self.blocks.check_block(&(run, SHOT), spec, &block, &self.stop).await.map_err(unfit)?;
        Ok(v1::FinalizeFactorsResponse { block: Some(description.into()), tokens })
    }

    /// Computes the removal paths of a block's layers.
    pub(crate) async fn path(&self, request: v1::ComputePathRequest) -> Result<v1::ComputePathResponse, Error> {
        let asked = Asked::new(&request.run, request.spec, request.block, request.shards)?;
        let start = Instant::now();
        let (paths, _) = self.paths(&asked).await?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(v1::ComputePathResponse { paths: paths.into_iter().map(Into::into).collect(), seconds })
    }

    /// Cuts a prefix of each path and returns the block's new weights.
    pub(crate) async fn cut(&self, request: v1::ApplyCutRequest) -> Result<NewWeights, Error> {
        let asked = Asked::new(&request.run, request.spec, request.block, request.shards)?;
        let cuts: Vec<LayerCut> = REQUEST.list("cuts", request.cuts, MAX_LAYERS)?;
        let (paths, scores) = self.paths(&asked).await?;
        for (n, cut) in cuts.iter().enumerate() {
            let path = paths.iter().find(|path| path.layer == cut.layer);
            let path = path.ok_or_else(|| REQUEST.bad(&format!("cuts[{n}].layer"), "has no removal path"))?;
            if cut.steps as usize > path.steps.len() {
                let problem = format!("{} is more than the path's {} steps", cut.steps, path.steps.len());
                return Err(REQUEST.bad(&format!("cuts[{n}].steps"), problem).into());
            }
        }
        let Asked { run, spec, block } = asked;
        let updated = self.blocks.update_block(&(run, SHOT), spec, (&block, &scores, cuts), &self.stop).await?;
        let (store, number) = (self.blocks.store.clone(), block.number);
        let layers = stream::iter(updated.layers.into_iter().zip(updated.predicted));
        let parts = layers.then(move |(state, predicted)| {
            let store = store.clone();
            async move {
                let object = state.weights.clone().unwrap_or_default();
                let bytes = if object.key.is_empty() { Bytes::new() } else { store.get(&object.key).await? };
                let weights = v1::FactorHeader { block: number, bytes: object.bytes, blake3: object.blake3 };
                let new = v1::NewLayer { state: Some(state), predicted, weights: Some(weights) };
                Ok::<_, Error>(parts(new, number, &bytes))
            }
        });
        let flat = parts.map_ok(|parts| stream::iter(parts.into_iter().map(Ok::<_, Error>))).try_flatten();
        Ok(Box::pin(flat.map_err(Status::from)))
    }

    /// Forgets everything of a name.
    pub(crate) async fn forget(&self, request: v1::DropFactorsRequest) -> Result<v1::DropFactorsResponse, Error> {
        let run = caller(&request.run)?;
        self.lock().retain(|piece, _| piece.run != run);
        self.scored().retain(|(of_run, _), _| *of_run != run);
        self.blocks.store.delete_prefix(&keys::run(&run)).await?;
        Ok(v1::DropFactorsResponse {})
    }

    /// Returns a block's paths and where they lie; computes them unless the same was asked before.
    async fn paths(&self, asked: &Asked) -> Result<(Vec<RemovalPath>, String), Error> {
        let named = (asked.run.clone(), asked.block.number);
        let known = self.scored().get(&named).cloned();
        if let Some(ScoredWith { key, .. }) =
            known.filter(|with| with.spec == asked.spec && with.shards == asked.block.shards)
        {
            return Ok((self.blocks.paths(&key).await?, key));
        }
        let shot = (asked.run.clone(), SHOT);
        let scored = self.blocks.score_block(&shot, asked.spec.clone(), &asked.block, &self.stop);
        let Scored { found: Found::Paths(paths), .. } = scored.await.map_err(unfit)? else {
            return Err(Error::Bug("a block of units came to be counted".into()));
        };
        let json = serde_json::to_vec(&paths).map_err(|e| Error::Bug(format!("paths do not fit into JSON: {e}")))?;
        let blake3 = blake3::hash(&json).to_hex();
        let key = keys::scores(&asked.run, SHOT, 0, asked.block.number, &blake3);
        self.blocks.store.put(&key, json.into()).await?;
        let with = ScoredWith { spec: asked.spec.clone(), shards: asked.block.shards, key: key.clone() };
        self.scored().insert(named, with);
        Ok((paths, key))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Piece, Received>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scored(&self) -> MutexGuard<'_, BTreeMap<(RunId, u32), ScoredWith>> {
        self.scored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a layer and its weights as they go over the wire.
fn parts(layer: v1::NewLayer, block: u32, bytes: &Bytes) -> Vec<v1::ApplyCutResponse> {
    let chunks = transfer::chunks(bytes, 0).map(|Chunk { offset, crc32c, payload }| v1::FactorChunk {
        block,
        offset,
        crc32c,
        payload,
    });
    let all = std::iter::once(CutPart::Layer(layer)).chain(chunks.map(CutPart::Chunk));
    all.map(|part| v1::ApplyCutResponse { part: Some(part) }).collect()
}

/// Returns the next part of an upload; nothing at its end.
async fn next(
    parts: &mut (impl Stream<Item = Result<v1::UploadFactorsRequest, Status>> + Unpin + Send),
) -> Result<Option<UploadPart>, Error> {
    match transfer::next(parts).await {
        Err(Cut::Silent) => Err(Error::Silent { seconds: transfer::IDLE.as_secs() }),
        Err(Cut::Broken(status)) => Err(Error::Upload(Box::new(status))),
        Ok(None) => Ok(None),
        Ok(Some(message)) => Ok(Some(UPLOAD.required("part", message.part)?)),
    }
}

/// Returns the name under which a caller's things lie: no run has such a one.
fn caller(name: &str) -> Result<RunId, InvalidMessage> {
    REQUEST.run("run", name)?;
    REQUEST.run("run", &format!("caller-{name}"))
}

/// Says of factors that do not fit that their caller should look at them: here they are no bug of ours.
fn unfit(error: Error) -> Error {
    let of_factors =
        matches!(error, Error::Curvature(_) | Error::Pruning(_) | Error::Bug(_) | Error::FactorsGone { .. });
    // What has a reason of its own keeps it: a factor that is not positive definite, or not finite.
    let plain = matches!(error.reason(), Reason::Internal | Reason::ObjectNotFound | Reason::DigestMismatch);
    if of_factors && plain { REQUEST.bad("factors", status::chain(&error)).into() } else { error }
}
