//! The layer sweep: forward once, then backward one block at a time, so that memory does not grow with depth.
//!
//! 1. Forward without graph. Only the residual stream at block boundaries is kept, in host memory.
//! 2. Final norm and head in chunks of tokens: the loss, and its gradient at the last boundary.
//! 3. From the last block to the first: the block is computed again with a graph from its boundary; the gradient of
//!    s = Σ out ∘ ∂𝓛/∂out with respect to the boundary and to the output of each wanted linear layer follows from one
//!    backward pass. The gradient of the boundary replaces the boundary itself.
//!
//! 𝓛 is *summed* over the tokens of a sample, so what the observer sees as gradient needs no scaling by the batch; the
//! numbers depend on the micro-batch only by rounding. Neither factors nor costs are known here: an [`Observer`] gets
//! inputs and gradients. No gradient with respect to a weight is ever computed.

mod backward;
mod boundary;
mod head;
mod labels;

use crate::rotary::Rotary;
use crate::{Decoder, ModelError, NoTap, Tap};
use backward::backward;
pub(crate) use backward::{each_batch, recompute};
use boundary::Boundaries;
use head::Head;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};
use types::{Fisher, LayerId};

/// Why an observer cannot go on.
pub type ObserverError = Box<dyn std::error::Error + Send + Sync>;

/// Takes what the sweep sees of each block, from the last block to the first.
pub trait Observer {
    /// Begins a block.
    fn block(&mut self, block: u32) -> Result<(), ObserverError>;

    /// Takes inputs of `layer` (the first layer that is fed by the same tensor), [n, c]; a last column of ones if the
    /// layer has a bias. Once per micro-batch and tensor.
    fn input(&mut self, layer: &LayerId, x_nc: &Tensor) -> Result<(), ObserverError>;

    /// Takes gradients of the summed loss with respect to the output of `layer`, [n, r], after the inputs of the same
    /// micro-batch; those of this layer were shown under the name `input`.
    fn gradient(&mut self, layer: &LayerId, input: &LayerId, dy_nr: &Tensor) -> Result<(), ObserverError>;

    /// Ends a block: everything of it has been seen. May block while earlier blocks are not yet taken away.
    fn finished(&mut self, block: u32) -> Result<(), ObserverError>;
}

/// How to sweep.
#[derive(Debug, Clone)]
pub struct SweepOptions {
    /// Samples in one forward and backward pass.
    pub micro_batch: usize,
    /// Number format in which boundary states are kept.
    pub boundary_kind: Kind,
    /// Whose labels.
    pub fisher: Fisher,
    /// Seed of sampled labels.
    pub seed: u64,
    /// Number of the first sample in the whole calibration data: sampled labels do not depend on shards.
    pub first_sample: u64,
    /// Layers to observe, by block.
    pub curvature: BTreeSet<(u32, LayerId)>,
    /// Tokens in one pass of the head.
    pub head_chunk: usize,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SweepTimes {
    /// Forward passes without graph.
    pub forward: Duration,
    /// Final norm, head and loss, with gradient.
    pub head: Duration,
    /// Recomputation with graph and backward passes.
    pub backward: Duration,
    /// Inside [`Observer::input`] and [`Observer::gradient`].
    pub gram: Duration,
    /// Inside [`Observer::finished`].
    pub wait: Duration,
}

/// What a sweep found, besides what its observer saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SweepResult {
    /// Negative log-likelihood of the data's own labels, summed over all targets, in nats.
    pub loss_sum: f64,
    /// Tokens that have a next token.
    pub targets: u64,
    /// All tokens: what sums of inputs and gradients run over.
    pub tokens: u64,
    /// Where the time went.
    pub times: SweepTimes,
}

/// Sweeps `decoder` over `samples`, all of equal length, and shows `observer` the wanted layers.
///
/// `progress` gets steps done and steps in all after each micro-batch of each block.
///
/// # Errors
/// [`ModelError::Stopped`] if `progress` breaks; [`ModelError::NotFinite`] names block and samples;
/// [`ModelError::Observer`] carries the observer's own error.
pub fn run(
    decoder: &Decoder,
    samples: &[Vec<i64>],
    options: &SweepOptions,
    observer: &mut dyn Observer,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<SweepResult, ModelError> {
    let _guard = tch::no_grad_guard();
    let plan = Plan::new(decoder, samples, options)?;
    let mut steps = Steps { done: 0, total: plan.steps(), progress };
    let mut times = SweepTimes::default();
    let (mut boundaries, loss_sum) = forward(&plan, options, &mut NoTap, &mut times, &mut steps)?;
    for block in (plan.lowest..decoder.block_count()).rev() {
        backward(&plan, block, &mut boundaries, observer, &mut times, &mut steps)?;
    }
    let tokens = samples.iter().map(|s| s.len() as u64).sum::<u64>();
    Ok(SweepResult { loss_sum, targets: tokens - samples.len() as u64, tokens, times })
}

/// Samples that are run together.
pub(crate) struct Batch {
    /// Where they lie among the samples of this sweep.
    start: i64,
    /// Number of the first one in the whole calibration data.
    first_sample: u64,
    /// On the decoder's device.
    ids_bt: Tensor,
}

impl Batch {
    /// Returns the part of a tensor over all samples, [samples, ..], that belongs to this batch; same memory.
    fn part_of(&self, all: &Tensor) -> Result<Tensor, ModelError> {
        Ok(all.f_narrow(0, self.start, self.ids_bt.size()[0])?)
    }
}

/// What is to be done, checked.
pub(crate) struct Plan<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) rotary: Rotary,
    pub(crate) batches: Vec<Batch>,
    /// Of a boundary state of all samples.
    shape_btd: [i64; 3],
    /// Wanted layers of each block.
    wanted: Vec<BTreeSet<LayerId>>,
    /// The lowest block that a gradient is needed in; the number of blocks if none is.
    lowest: usize,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(decoder: &'a Decoder, samples: &[Vec<i64>], options: &SweepOptions) -> Result<Self, ModelError> {
        let length = samples.first().map_or(0, Vec::len);
        if length < 2 || samples.iter().any(|s| s.len() != length) {
            let found = samples.iter().map(|s| s.len() as i64).take(8).collect();
            return Err(ModelError::Shape {
                what: "samples",
                expected: "[b, t], equal t of at least 2".to_owned(),
                found,
            });
        }
        let mut wanted = vec![BTreeSet::new(); decoder.block_count()];
        for (block, layer) in &options.curvature {
            let layers = wanted.get_mut(*block as usize).ok_or_else(|| ModelError::Shape {
                what: "wanted block",
                expected: format!("below {}", decoder.block_count()),
                found: vec![i64::from(*block)],
            })?;
            layers.insert(layer.clone());
        }
        let lowest = wanted.iter().position(|layers| !layers.is_empty()).unwrap_or(wanted.len());
        let micro_batch = options.micro_batch.max(1);
        let batches = samples.chunks(micro_batch).enumerate().map(|(at, chunk)| {
            let ids: Vec<i64> = chunk.iter().flatten().copied().collect();
            let ids_bt = Tensor::f_from_slice(&ids)?.f_view([chunk.len() as i64, length as i64])?;
            let start = at * micro_batch;
            let first_sample = options.first_sample + start as u64;
            Ok(Batch { start: start as i64, first_sample, ids_bt: ids_bt.f_to_device(decoder.device())? })
        });
        let batches = batches.collect::<Result<_, ModelError>>()?;
        let shape_btd = [samples.len() as i64, length as i64, decoder.config.hidden];
        Ok(Self { decoder, rotary: decoder.rotary(length as i64)?, batches, shape_btd, wanted, lowest })
    }

    /// Returns the number of micro-batch passes through a block or the head.
    fn steps(&self) -> u64 {
        let blocks = self.wanted.len();
        (self.batches.len() * (blocks + 1 + blocks - self.lowest)) as u64
    }
}

/// Counts steps and asks whether to go on.
pub(crate) struct Steps<'a> {
    pub(crate) done: u64,
    pub(crate) total: u64,
    pub(crate) progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

impl Steps<'_> {
    pub(crate) fn advance(&mut self) -> Result<(), ModelError> {
        self.advance_by(1)
    }

    pub(crate) fn advance_by(&mut self, steps: u64) -> Result<(), ModelError> {
        self.done += steps;
        if (self.progress)(self.done, self.total).is_break() { Err(ModelError::Stopped) } else { Ok(()) }
    }
}

/// Runs parts 1 and 2 with `tap` in every block; returns the kept boundaries with the gradient at the last one, and the
/// summed loss.
pub(crate) fn forward(
    plan: &Plan,
    options: &SweepOptions,
    tap: &mut dyn Tap,
    times: &mut SweepTimes,
    steps: &mut Steps,
) -> Result<(Boundaries, f64), ModelError> {
    let decoder = plan.decoder;
    let gradient = plan.lowest < plan.wanted.len();
    let mut boundaries = Boundaries::new(
        (plan.lowest, plan.wanted.len()),
        plan.shape_btd,
        options.boundary_kind,
        (decoder.kind(), decoder.device()),
    )?;
    let mut head = Head::new(decoder, options, gradient)?;
    // A block that is read for its use is used by all batches; one in memory by one after the other, which takes less.
    let wave = if decoder.is_streamed() { plan.batches.len().max(1) } else { 1 };
    for batches in plan.batches.chunks(wave) {
        let start = Instant::now();
        let mut states = batches.iter().map(|b| decoder.embed(&b.ids_bt)).collect::<Result<Vec<_>, _>>()?;
        decoder.forward_wave(&mut states, &plan.rotary, tap, &mut |block, batch, x_btd| {
            boundaries.keep_input(block, &batches[batch], x_btd)?;
            steps.advance()
        })?;
        times.forward += start.elapsed();
        for (batch, x_btd) in batches.iter().zip(states) {
            if !is_finite(&x_btd)? {
                return Err(locate(plan, batch, tap)?);
            }
            let start = Instant::now();
            let gradient_btd = head.pass(&x_btd, batch)?;
            if gradient {
                check_finite(&gradient_btd, batch, || {
                    "the gradient of the loss at the output of the last block".to_owned()
                })?;
                boundaries.keep_gradient(batch, &gradient_btd)?;
            }
            times.head += start.elapsed();
            steps.advance()?;
        }
    }
    Ok((boundaries, head.loss_sum()))
}

/// Returns the error for a forward pass that left the finite numbers: repeats it to find the block.
fn locate(plan: &Plan, batch: &Batch, tap: &mut dyn Tap) -> Result<ModelError, ModelError> {
    let mut x_btd = plan.decoder.embed(&batch.ids_bt)?;
    for block in 0..plan.decoder.block_count() {
        if let Err(found) = check_finite(&x_btd, batch, || format!("the input of block {block}")) {
            return Ok(found);
        }
        x_btd = plan.decoder.block(block)?.forward(&x_btd, &plan.rotary, tap)?;
    }
    let found = check_finite(&x_btd, batch, || "the output of the last block".to_owned());
    Ok(found
        .err()
        .unwrap_or_else(|| ModelError::NotFinite { what: "a forward pass, but not its repetition,".to_owned() }))
}

/// Returns whether all of `x` is finite. The sum, one cheap pass, settles it unless it overflows.
fn is_finite(x: &Tensor) -> Result<bool, ModelError> {
    let wide = if x.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    if x.f_sum(wide)?.f_double_value(&[])?.is_finite() {
        return Ok(true);
    }
    Ok(x.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

/// Checks that all of `x_btd` is finite.
///
/// # Errors
/// [`ModelError::NotFinite`] names `what` and the samples that are at fault.
pub(crate) fn check_finite(x_btd: &Tensor, batch: &Batch, what: impl FnOnce() -> String) -> Result<(), ModelError> {
    if is_finite(x_btd)? {
        return Ok(());
    }
    let finite_b = x_btd.f_isfinite()?.f_flatten(1, -1)?.f_all_dim(1, false)?.f_to_kind(Kind::Int64)?;
    let finite =
        Vec::<i64>::try_from(&finite_b).map_err(ModelError::torch("looking for numbers that are not finite"))?;
    let samples: Vec<u64> = (batch.first_sample..).zip(finite).filter_map(|(id, ok)| (ok == 0).then_some(id)).collect();
    Err(ModelError::NotFinite { what: format!("{} (samples {samples:?})", what()) })
}
