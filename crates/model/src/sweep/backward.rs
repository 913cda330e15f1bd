//! One block backward: computes it again with a graph, micro-batch by micro-batch, and shows the observer what its wanted
//! layers take and get.

use super::boundary::Boundaries;
use super::{Observer, ObserverError, Plan, Steps, SweepTimes, check_finite};
use crate::{Block, Linear, ModelError, Tap};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};
use types::LayerId;

/// Runs `block` backward for all micro-batches; its inputs' gradients replace those at its output.
pub(super) fn backward(
    plan: &Plan,
    block: usize,
    boundaries: &mut Boundaries,
    observer: &mut dyn Observer,
    times: &mut SweepTimes,
    steps: &mut Steps,
) -> Result<(), ModelError> {
    let wanted = &plan.wanted[block];
    if !wanted.is_empty() {
        let begun = observer.block(block as u32);
        begun.map_err(|source| ModelError::Observer { block: block as u32, source })?;
    }
    each_batch(plan, block, boundaries, steps, |layers, ends| {
        let start = Instant::now();
        let mut capture = Capture::new(block as u32, wanted, observer);
        // Without a lower block in need, the graph begins at the outputs of the wanted layers.
        let (gradients, below_btd) = recompute(plan, layers, ends, &mut capture, |c| c.outputs())?;
        capture.gradients(gradients)?;
        times.gram += capture.gram;
        times.backward += start.elapsed().saturating_sub(capture.gram);
        Ok(below_btd)
    })?;
    if !wanted.is_empty() {
        let start = Instant::now();
        observer.finished(block as u32).map_err(|source| ModelError::Observer { block: block as u32, source })?;
        times.wait += start.elapsed();
    }
    Ok(())
}

/// Calls `pass` with `block` and the states and gradients at both ends of `block` for each micro-batch: (its input, the gradient at its
/// output), both [b, t, d]; the gradients at its input that `pass` returns replace those at its output.
pub(crate) fn each_batch(
    plan: &Plan,
    block: usize,
    boundaries: &mut Boundaries,
    steps: &mut Steps,
    mut pass: impl FnMut(&Block, (&Tensor, &Tensor)) -> Result<Option<Tensor>, ModelError>,
) -> Result<(), ModelError> {
    let layers = plan.decoder.block(block)?;
    if block > plan.lowest {
        plan.decoder.read_ahead(block - 1);
    }
    for batch in &plan.batches {
        let (x_btd, gradient_btd) = boundaries.top(batch)?;
        if let Some(below_btd) = pass(&layers, (&x_btd, &gradient_btd))? {
            check_finite(&below_btd, batch, || format!("the gradient of the loss at the input of block {block}"))?;
            boundaries.keep_gradient(batch, &below_btd)?;
        }
        steps.advance()?;
    }
    boundaries.drop_top();
    Ok(())
}

/// Computes `block` again for one micro-batch, with a graph, through `tap`; returns the gradients of the loss at the tensors
/// that `ends` then names, and at the block's input if a lower block needs it.
pub(crate) fn recompute<T: Tap>(
    plan: &Plan,
    block: &Block,
    (x_btd, gradient_btd): (&Tensor, &Tensor),
    tap: &mut T,
    ends: impl FnOnce(&mut T) -> Result<Vec<Tensor>, ModelError>,
) -> Result<(Vec<Tensor>, Option<Tensor>), ModelError> {
    let below = block.index as usize > plan.lowest;
    let x_btd = x_btd.f_detach()?.f_set_requires_grad(below)?;
    let s = tch::with_grad(|| {
        let out_btd = block.forward(&x_btd, &plan.rotary, tap)?;
        Ok::<_, ModelError>(out_btd.f_mul(gradient_btd)?.f_sum(None)?)
    })?;
    let mut ends = ends(tap)?;
    if below {
        ends.push(x_btd);
    }
    let mut gradients = Tensor::f_run_backward(&[&s], &ends, false, false)
        .map_err(ModelError::torch(format!("backward pass of block {}", block.index)))?;
    let below_btd = if below { gradients.pop() } else { None };
    Ok((gradients, below_btd))
}

/// Catches what flows through the wanted layers of a block.
struct Capture<'a> {
    block: u32,
    wanted: &'a BTreeSet<LayerId>,
    observer: &'a mut dyn Observer,
    /// Inputs that the observer has seen.
    inputs: Vec<LayerId>,
    /// Outputs whose gradient is wanted, each with its layer and the name that its input was shown under.
    outputs: Vec<(LayerId, LayerId, Tensor)>,
    /// Time inside the observer.
    gram: Duration,
}

impl<'a> Capture<'a> {
    fn new(block: u32, wanted: &'a BTreeSet<LayerId>, observer: &'a mut dyn Observer) -> Self {
        Self { block, wanted, observer, inputs: Vec::new(), outputs: Vec::new(), gram: Duration::ZERO }
    }

    /// Shows the observer an input, once per tensor.
    fn input(&mut self, layer: &Linear, key: &LayerId, x: &Tensor) -> Result<(), ObserverError> {
        if self.inputs.contains(key) {
            return Ok(());
        }
        self.inputs.push(key.clone());
        let x_nc = as_rows(&x.f_detach()?)?;
        let x_nc = match layer.bias {
            Some(_) => {
                Tensor::f_cat(&[&x_nc, &x_nc.f_new_ones([x_nc.size()[0], 1], (x_nc.kind(), x_nc.device()))?], 1)?
            }
            None => x_nc,
        };
        let start = Instant::now();
        let seen = self.observer.input(key, &x_nc);
        self.gram += start.elapsed();
        seen
    }

    /// Returns the outputs of the wanted layers, if every one was met.
    fn outputs(&self) -> Result<Vec<Tensor>, ModelError> {
        match self.wanted.iter().find(|layer| self.outputs.iter().all(|(met, ..)| met != *layer)) {
            Some(layer) => Err(ModelError::UnknownLayer { layer: layer.to_string(), block: self.block }),
            None => Ok(self.outputs.iter().map(|(.., y)| y.shallow_clone()).collect()),
        }
    }

    /// Shows the observer the gradients at [`Self::outputs`], in the same order.
    fn gradients(&mut self, gradients: Vec<Tensor>) -> Result<(), ModelError> {
        for ((layer, input, _), dy) in self.outputs.drain(..).zip(gradients) {
            let dy_nr = as_rows(&dy)?;
            let start = Instant::now();
            let seen = self.observer.gradient(&layer, &input, &dy_nr);
            seen.map_err(|source| ModelError::Observer { block: self.block, source })?;
            self.gram += start.elapsed();
        }
        Ok(())
    }
}

impl Tap for Capture<'_> {
    fn linear(&mut self, layer: &Linear, input: &LayerId, x: &Tensor) -> Result<Tensor, ModelError> {
        let y = layer.forward(x)?;
        if !self.wanted.contains(&layer.name) {
            return Ok(y);
        }
        let seen = tch::no_grad(|| self.input(layer, input, x));
        seen.map_err(|source| ModelError::Observer { block: self.block, source })?;
        let y = if y.requires_grad() { y } else { y.f_detach()?.f_set_requires_grad(true)? };
        self.outputs.push((layer.name.clone(), input.clone(), y.shallow_clone()));
        Ok(y)
    }
}

/// Returns `x`, [.., c], as [n, c], in f32 unless it is in f64: factors are never summed in 16 bits.
fn as_rows(x: &Tensor) -> Result<Tensor, ModelError> {
    let columns = x.size().last().copied().unwrap_or(1);
    let kind = if x.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    Ok(x.f_reshape([-1, columns])?.f_to_kind(kind)?)
}
