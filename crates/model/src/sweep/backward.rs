//! One block backward: computes it again with a graph and shows the observer what its wanted layers take and get.

use super::boundary::Boundaries;
use super::{Observer, ObserverError, Plan, Steps, SweepTimes, check_finite};
use crate::{Linear, ModelError, Tap};
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
    let failed = |source| ModelError::Observer { block: block as u32, source };
    if !wanted.is_empty() {
        observer.block(block as u32);
    }
    for batch in &plan.batches {
        let start = Instant::now();
        let (x_btd, gradient_btd) = boundaries.top(batch)?;
        let mut capture = Capture::new(wanted, observer);
        let below = batch_backward(plan, block, (&x_btd, &gradient_btd), &mut capture)?;
        let gram = capture.gram;
        if let Some(below_btd) = below {
            check_finite(&below_btd, batch, || format!("the gradient of the loss at the input of block {block}"))?;
            boundaries.keep_gradient(batch, &below_btd)?;
        }
        times.gram += gram;
        times.backward += start.elapsed().saturating_sub(gram);
        steps.advance()?;
    }
    boundaries.drop_top();
    if !wanted.is_empty() {
        let start = Instant::now();
        observer.finished(block as u32).map_err(failed)?;
        times.wait += start.elapsed();
    }
    Ok(())
}

/// Runs `block` backward for one micro-batch; returns the gradient at its input if a lower block needs it.
fn batch_backward(
    plan: &Plan,
    block: usize,
    (x_btd, gradient_btd): (&Tensor, &Tensor),
    capture: &mut Capture,
) -> Result<Option<Tensor>, ModelError> {
    let below = block > plan.lowest;
    let layers = &plan.decoder.blocks[block];
    // Without a lower block in need, the graph begins at the outputs of the wanted layers.
    let x_btd = x_btd.f_detach()?.f_set_requires_grad(below)?;
    let s = tch::with_grad(|| {
        let out_btd = layers.forward(&x_btd, &plan.rotary, capture)?;
        Ok::<_, ModelError>(out_btd.f_mul(gradient_btd)?.f_sum(None)?)
    })?;
    capture.check(block as u32)?;
    let mut ends: Vec<&Tensor> = capture.outputs.iter().map(|(_, y)| y).collect();
    if below {
        ends.push(&x_btd);
    }
    let mut gradients = Tensor::f_run_backward(&[&s], &ends, false, false)
        .map_err(ModelError::torch(format!("backward pass of block {block}")))?;
    let below_btd = if below { gradients.pop() } else { None };
    capture.gradients(gradients).map_err(|source| ModelError::Observer { block: block as u32, source })?;
    Ok(below_btd)
}

/// Catches what flows through the wanted layers of a block.
struct Capture<'a> {
    wanted: &'a BTreeSet<LayerId>,
    observer: &'a mut dyn Observer,
    /// Inputs that the observer has seen.
    inputs: Vec<LayerId>,
    /// Outputs whose gradient is wanted.
    outputs: Vec<(LayerId, Tensor)>,
    /// The first failure; [`Tap`] cannot return one.
    failure: Option<ObserverError>,
    /// Time inside the observer.
    gram: Duration,
}

impl<'a> Capture<'a> {
    fn new(wanted: &'a BTreeSet<LayerId>, observer: &'a mut dyn Observer) -> Self {
        Self { wanted, observer, inputs: Vec::new(), outputs: Vec::new(), failure: None, gram: Duration::ZERO }
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

    /// Shows the observer the gradients of `self.outputs`, in the same order.
    fn gradients(&mut self, gradients: Vec<Tensor>) -> Result<(), ObserverError> {
        for ((layer, _), dy) in self.outputs.drain(..).zip(gradients) {
            let dy_nr = as_rows(&dy)?;
            let start = Instant::now();
            self.observer.gradient(&layer, &dy_nr)?;
            self.gram += start.elapsed();
        }
        Ok(())
    }

    /// Checks that every wanted layer was met and none of it failed.
    fn check(&mut self, block: u32) -> Result<(), ModelError> {
        if let Some(source) = self.failure.take() {
            return Err(ModelError::Observer { block, source });
        }
        match self.wanted.iter().find(|layer| self.outputs.iter().all(|(met, _)| met != *layer)) {
            Some(layer) => Err(ModelError::UnknownLayer { layer: layer.to_string(), block }),
            None => Ok(()),
        }
    }
}

impl Tap for Capture<'_> {
    fn linear(&mut self, layer: &Linear, input: &LayerId, x: &Tensor, y: Tensor) -> Tensor {
        if self.failure.is_some() || !self.wanted.contains(&layer.name) {
            return y;
        }
        let seen = tch::no_grad(|| self.input(layer, input, x));
        let y = if y.requires_grad() { y } else { y.detach().set_requires_grad(true) };
        self.outputs.push((layer.name.clone(), y.shallow_clone()));
        self.failure = seen.err();
        y
    }
}

/// Returns `x`, [.., c], as [n, c], in f32 unless it is in f64: factors are never summed in 16 bits.
fn as_rows(x: &Tensor) -> Result<Tensor, ModelError> {
    let columns = x.size().last().copied().unwrap_or(1);
    let kind = if x.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    Ok(x.f_reshape([-1, columns])?.f_to_kind(kind)?)
}
