//! The loss of one batch and its gradient with respect to every A and B, by the layer sweep: forward without graph, the
//! head in chunks, then one block after the other computed again and run backward. Does not move A and B.

use super::CorrectOptions;
use super::low_rank::{Learning, LowRank};
use crate::sweep::{self, Plan, Steps, SweepOptions, SweepTimes};
use crate::{Decoder, ModelError};
use std::collections::BTreeSet;
use tch::Tensor;
use types::Fisher;

/// Returns the mean loss of `samples`, in nats per token, and its gradient, [p], laid out as the numbers of `low_rank`.
///
/// The passes run in the decoder's number format and with the loss summed over tokens, as curvature does; sums over
/// micro-batches and the mean are taken in the format of `low_rank`.
pub(super) fn gradient(
    decoder: &Decoder,
    samples: &[Vec<i64>],
    low_rank: &LowRank,
    options: &CorrectOptions,
    steps: &mut Steps,
) -> Result<(f64, Tensor), ModelError> {
    let options = sweep_options(decoder, options);
    let plan = Plan::new(decoder, samples, &options)?;
    let mut tap = Learning::without_graph(low_rank);
    let (mut boundaries, loss_sum) = sweep::forward(&plan, &options, &mut tap, &mut SweepTimes::default(), steps)?;
    let mut gradient_p = low_rank.numbers().f_zeros_like()?;
    for block in (0..decoder.block_count()).rev() {
        sweep::each_batch(&plan, block, &mut boundaries, steps, |layers, ends| {
            let mut tap = Learning::with_graph(low_rank);
            let (gradients, below_btd) = sweep::recompute(&plan, layers, ends, &mut tap, |tap| Ok(tap.ends()))?;
            tap.accumulate(&gradients, &gradient_p)?;
            Ok(below_btd)
        })?;
    }
    let targets = samples.iter().map(|sample| sample.len() as f64 - 1.0).sum::<f64>();
    let gradient_p = gradient_p.f_div_scalar_(targets)?;
    Ok((loss_sum / targets, gradient_p))
}

/// Returns the options of a sweep that needs every block.
fn sweep_options(decoder: &Decoder, options: &CorrectOptions) -> SweepOptions {
    let layers = |block: usize| decoder.linears(block).into_iter().map(move |layer| (block as u32, layer));
    SweepOptions {
        micro_batch: options.micro_batch,
        boundary_kind: decoder.kind(),
        fisher: Fisher::Empirical,
        seed: options.seed,
        first_sample: 0,
        curvature: (0..decoder.block_count()).flat_map(layers).collect::<BTreeSet<_>>(),
        head_chunk: options.head_chunk,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelFolder, Overlay};
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;
    use std::path::Path;
    use tch::{Device, Kind};
    use types::LayerId;

    fn load(name: &str) -> Decoder {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden").join(name);
        Decoder::load(&ModelFolder::open(&folder).unwrap(), &Overlay::default(), Kind::Double, Device::Cpu).unwrap()
    }

    /// Sets weights of some layers to zero and returns what is kept: rows and columns in the first block, scattered
    /// weights in the second.
    fn remove(decoder: &mut Decoder) -> BTreeMap<LayerId, Tensor> {
        let mut kept = BTreeMap::new();
        for layer in decoder.resident_mut().unwrap()[..2].iter_mut().flat_map(crate::Block::linears_mut) {
            let places_rc = Tensor::arange(layer.rows() * layer.columns(), (Kind::Int64, Device::Cpu));
            let places_rc = places_rc.view([layer.rows(), layer.columns()]);
            let columns = layer.columns();
            let kept_rc = if layer.name.as_str().contains("layers.0.") {
                places_rc
                    .divide_scalar_mode(columns, "floor")
                    .remainder(5)
                    .ne(2)
                    .logical_and(&places_rc.remainder(columns).remainder(3).ne(1))
            } else {
                places_rc.remainder(7).lt(4)
            };
            layer.weight = &layer.weight * &kept_rc;
            kept.insert(layer.name.clone(), kept_rc);
        }
        kept
    }

    /// Returns loss and gradient by one graph over the whole model, whose weights are W + (α / l) · kept ∘ (B A).
    fn whole_graph(name: &str, samples: &[Vec<i64>], low_rank: &LowRank, options: &CorrectOptions) -> (f64, Tensor) {
        let mut decoder = load(name);
        let kept = remove(&mut decoder);
        let numbers_p = low_rank.numbers().copy().set_requires_grad(true);
        let rank = i64::from(options.rank);
        let mut start = 0;
        for layer in decoder.resident_mut().unwrap().iter_mut().flat_map(crate::Block::linears_mut) {
            let (rows, columns) = (layer.rows(), layer.columns());
            let mut take = |r: i64, c: i64| {
                start += r * c;
                numbers_p.narrow(0, start - r * c, r * c).view([r, c])
            };
            let (a_lc, b_rl) = (take(rank, columns), take(rows, rank));
            let product_rc = b_rl.matmul(&a_lc) * (options.alpha / f64::from(options.rank));
            layer.weight = &layer.weight
                + kept.get(&layer.name).map_or(product_rc.shallow_clone(), |kept_rc| product_rc * kept_rc);
        }
        let (b, t) = (samples.len() as i64, samples[0].len() as i64);
        let ids_bt = Tensor::from_slice(&samples.concat()).view([b, t]);
        let logits_nv = decoder.forward_logits(&ids_bt).unwrap().narrow(1, 0, t - 1).reshape([b * (t - 1), -1]);
        let label_n1 = ids_bt.narrow(1, 1, t - 1).reshape([-1, 1]);
        let loss = -logits_nv.log_softmax(-1, Kind::Double).gather(1, &label_n1, false).mean(Kind::Double);
        let gradient_p = Tensor::run_backward(&[&loss], &[&numbers_p], false, false).remove(0);
        (loss.double_value(&[]), gradient_p)
    }

    #[test]
    fn gradients_are_those_of_one_graph_over_the_whole_model() {
        for name in ["llama-gqa", "qwen3", "opt"] {
            let mut decoder = load(name);
            let vocab = decoder.config.vocab;
            let samples: Vec<Vec<i64>> =
                (0..3).map(|s| (0..11).map(|t| 3 + (s * 31 + t * t * 7 + t) % (vocab - 3)).collect()).collect();
            let kept = remove(&mut decoder);
            let options =
                CorrectOptions { rank: 3, alpha: 5.0, micro_batch: 2, head_chunk: 7, ..CorrectOptions::default() };
            let mut low_rank = LowRank::new(&decoder, &kept, &options).unwrap();
            let mut go_on = |_, _| ControlFlow::Continue(());
            let mut steps = Steps { done: 0, total: 0, progress: &mut go_on };
            let mut go = |low_rank: &LowRank| gradient(&decoder, &samples, low_rank, &options, &mut steps).unwrap();
            // With B at zero, A has no gradient: two steps down, and both are as they are on the way.
            for _ in 0..2 {
                let (_, gradient_p) = go(&low_rank);
                *low_rank.numbers_mut() -= gradient_p;
            }
            let (loss, gradient_p) = go(&low_rank);
            let (expected, expected_p) = whole_graph(name, &samples, &low_rank, &options);
            assert!((loss - expected).abs() < 1e-10 * expected, "{name}: {loss} {expected}");
            let scale = expected_p.abs().max().double_value(&[]);
            let error = (gradient_p - expected_p).abs().max().double_value(&[]);
            assert!(error < 1e-10 * scale, "{name}: {error:e} of {scale:e}");
        }
    }
}
