//! The path of units that are one column each (FFN channels): O(C²) a removal, in blocks.

use super::side::Side;
use crate::PruningError;
use crate::problem::{Prepared, host};
use tch::{Device, Tensor};

/// Returns `steps` columns by position with their marginal costs ½ M_cc / Ai_cc.
///
/// # Shapes
/// `ai_cc`, `m_cc`: `[C, C]`, bias last
pub(super) fn path(
    p: &Prepared,
    ai_cc: Tensor,
    m_cc: Tensor,
    steps: usize,
    block: usize,
) -> Result<Vec<(usize, f64)>, PruningError> {
    let mut side = Side::new(ai_cc, m_cc, p.bias_columns, block)?;
    let mut removals = Vec::with_capacity(steps);
    while removals.len() < steps {
        let count = block.min(steps - removals.len());
        let (mut costs, mut indices, mut pivots) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let (cost, i) = side.cheapest()?;
            pivots.push(side.remove(&i)?.negative);
            costs.push(cost);
            indices.push(i);
        }
        let pivots = host(&Tensor::f_cat(&pivots, 0)?)?;
        let costs = host(&Tensor::f_cat(&costs, 0)?)?;
        let indices = Vec::<i64>::try_from(Tensor::f_cat(&indices, 0)?.f_to_device(Device::Cpu)?)?;
        for ((&i, cost), negative) in indices.iter().zip(costs).zip(pivots) {
            if negative.is_nan() || negative >= 0.0 {
                return Err(p.unstable("a pivot", -negative, removals.len()));
            }
            removals.push((side.positions[i as usize], p.checked("a cost", cost, removals.len())?));
        }
        if removals.len() < steps {
            side.settle(&side.left(&indices))?;
        }
    }
    Ok(removals)
}

#[cfg(test)]
mod tests {
    use crate::cost::input_energy;
    use crate::problem::{LayerProblem, in_either_precision};
    use curvature::inverse;
    use testkit::{devices, random, random_spd};
    use types::LayerId;

    #[test]
    fn the_blocked_path_equals_the_unblocked_one() {
        for device in devices() {
            for bias in [false, true] {
                let c = 80 + i64::from(bias);
                let problem = LayerProblem {
                    layer: LayerId::new("fc2").unwrap(),
                    w_rc: random(&[30, c], 1).to_device(device),
                    bias,
                    a_cc: Some(random_spd(c, 2).to_device(device)),
                    g_rr: Some(random_spd(30, 3).to_device(device)),
                    tokens: 1,
                    damping_scale: types::DampingScale::Mean,
                    damping_a: 0.01,
                    damping_g: 0.01,
                };
                let run = |block: usize| {
                    in_either_precision(&problem, |p| {
                        let ai = inverse(&p.a.as_ref().unwrap().l)?;
                        super::path(p, ai, input_energy(p)?, 79, block)
                    })
                    .unwrap()
                };
                let single = run(1);
                assert!(single.iter().all(|&(position, _)| position < 80), "the bias is never removed");
                for block in [7, 64, 100] {
                    let blocked = run(block);
                    assert_eq!(blocked.len(), 79);
                    for (x, y) in single.iter().zip(&blocked) {
                        assert_eq!(x.0, y.0, "block {block}");
                        assert!((x.1 - y.1).abs() < 1e-9 * (1.0 + x.1), "{} {}", x.1, y.1);
                    }
                }
            }
        }
    }
}
