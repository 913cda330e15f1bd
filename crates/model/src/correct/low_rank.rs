//! The products of low rank beside the weights, and the taps that lead a pass through them.
//!
//! All A and B lie in one tensor, so that optimiser, clipping and copies are one operation each. They are in f32
//! whatever the decoder is in (f64 beside f64). Does not learn.

use super::{CorrectOptions, random};
use crate::{Decoder, Linear, ModelError, Tap};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};
use types::LayerId;

/// A and B of every layer.
#[derive(Debug)]
pub(super) struct LowRank {
    /// All numbers, layer after layer, A before B, [p].
    numbers_p: Tensor,
    slots: BTreeMap<LayerId, Slot>,
    /// α / l.
    scale: f64,
}

/// Where one layer's A and B lie.
#[derive(Debug)]
pub(super) struct Slot {
    start: i64,
    rank: i64,
    rows: i64,
    columns: i64,
    kept: Kept,
}

/// What is not removed of a layer that holds its removed weights as zeros.
#[derive(Debug)]
enum Kept {
    /// Everything.
    All,
    /// Some rows of some columns: zeros in B and in A keep the product zero elsewhere.
    Cross { rows_r1: Tensor, columns_1c: Tensor },
    /// Any weights: the product has to be written out.
    Each { kept_rc: Tensor },
}

impl LowRank {
    /// Returns products of zero for every linear layer of `decoder`, ready to learn.
    pub(super) fn new(
        decoder: &Decoder,
        kept: &BTreeMap<LayerId, Tensor>,
        options: &CorrectOptions,
    ) -> Result<Self, ModelError> {
        let layers: Vec<&Linear> = decoder.resident()?.iter().flat_map(crate::Block::linears).collect();
        if let Some(unknown) = kept.keys().find(|id| layers.iter().all(|layer| layer.name != **id)) {
            return Err(fault(unknown, "is said to have removed weights, but the model has no such layer"));
        }
        let mut slots = BTreeMap::new();
        let (mut start, rank) = (0, i64::from(options.rank));
        for layer in &layers {
            let (rows, columns) = (layer.rows(), layer.columns());
            let kept = kept.get(&layer.name).map_or(Ok(Kept::All), |kept_rc| Kept::new(layer, kept_rc))?;
            slots.insert(layer.name.clone(), Slot { start, rank, rows, columns, kept });
            start += rank * (rows + columns);
        }
        let wide = if decoder.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let numbers_p = Tensor::f_zeros([start], (wide, decoder.device()))
            .map_err(ModelError::torch("memory for the low-rank correction"))?;
        for (number, layer) in (0..).zip(&layers) {
            let slot = &slots[&layer.name];
            let gaussian = random::gaussian(options.seed, number, (rank * slot.columns) as usize);
            let begin_lc = Tensor::f_from_slice(&gaussian)?.f_view([rank, slot.columns])?;
            let mut a_lc = slot.a_lc(&numbers_p)?;
            a_lc.f_copy_(&begin_lc.f_div_scalar((slot.columns as f64).sqrt())?)?;
            if let Kept::Cross { columns_1c, .. } = &slot.kept {
                let _ = a_lc.f_mul_(columns_1c)?;
            }
        }
        Ok(Self { numbers_p, slots, scale: options.alpha / f64::from(options.rank) })
    }

    /// Returns all A and B, [p].
    pub(super) fn numbers(&self) -> &Tensor {
        &self.numbers_p
    }

    /// Returns all A and B, [p], to change them.
    pub(super) fn numbers_mut(&mut self) -> &mut Tensor {
        &mut self.numbers_p
    }

    /// Returns the weight of `layer` with its product in it, [r, c], in f32 or f64.
    pub(super) fn weight(&self, layer: &Linear) -> Result<Tensor, ModelError> {
        let slot = self.slot(layer)?;
        self.sum(slot, layer, &slot.a_lc(&self.numbers_p)?, &slot.b_rl(&self.numbers_p)?)
    }

    /// Adds the gradients of a layer's A and B to `gradient_p`, laid out as the numbers are.
    fn accumulate(
        &self,
        layer: &LayerId,
        (da_lc, db_rl): (&Tensor, &Tensor),
        gradient_p: &Tensor,
    ) -> Result<(), ModelError> {
        let slot = &self.slots[layer];
        let (mut sum_lc, mut sum_rl) = (slot.a_lc(gradient_p)?, slot.b_rl(gradient_p)?);
        if let Kept::Cross { rows_r1, columns_1c } = &slot.kept {
            let _ = sum_lc.f_add_(&da_lc.f_mul(columns_1c)?)?;
            let _ = sum_rl.f_add_(&db_rl.f_mul(rows_r1)?)?;
        } else {
            let _ = sum_lc.f_add_(da_lc)?;
            let _ = sum_rl.f_add_(db_rl)?;
        }
        Ok(())
    }

    fn slot(&self, layer: &Linear) -> Result<&Slot, ModelError> {
        match self.slots.get(&layer.name) {
            Some(slot) if layer.weight.size() == [slot.rows, slot.columns] => Ok(slot),
            _ => Err(fault(&layer.name, "is not the layer that was corrected")),
        }
    }

    /// Returns W + (α / l) · B A, [r, c], in the kind of `a_lc`.
    fn sum(&self, slot: &Slot, layer: &Linear, a_lc: &Tensor, b_rl: &Tensor) -> Result<Tensor, ModelError> {
        let product_rc = b_rl
            .f_mul_scalar(self.scale)?
            .f_matmul(a_lc)
            .map_err(ModelError::torch(format!("correction of {}", layer.name)))?;
        let product_rc = match &slot.kept {
            Kept::Each { kept_rc } => product_rc.f_mul(kept_rc)?,
            Kept::All | Kept::Cross { .. } => product_rc,
        };
        Ok(product_rc.f_add(&layer.weight.f_to_kind(a_lc.kind())?)?)
    }

    /// Returns the output of `layer` with these A and B, in the number format of `x`.
    fn output(
        &self,
        slot: &Slot,
        layer: &Linear,
        x: &Tensor,
        [a_lc, b_rl]: [&Tensor; 2],
    ) -> Result<Tensor, ModelError> {
        let failed = || ModelError::torch(format!("correction of {}", layer.name));
        let kind = x.kind();
        if matches!(slot.kept, Kept::Each { .. }) {
            let weight_rc = self.sum(slot, layer, a_lc, b_rl)?.f_to_kind(kind)?;
            return x.f_linear(&weight_rc, layer.bias.as_ref()).map_err(failed());
        }
        let none = None::<&Tensor>;
        let z = x.f_linear(&a_lc.f_to_kind(kind)?, none).map_err(failed())?;
        let y = z.f_linear(&b_rl.f_mul_scalar(self.scale)?.f_to_kind(kind)?, none).map_err(failed())?;
        Ok(layer.forward(x)?.f_add(&y)?)
    }
}

impl Slot {
    /// Returns A's part of `all_p`, [l, c]; same memory.
    fn a_lc(&self, all_p: &Tensor) -> Result<Tensor, ModelError> {
        Ok(all_p.f_narrow(0, self.start, self.rank * self.columns)?.f_view([self.rank, self.columns])?)
    }

    /// Returns B's part of `all_p`, [r, l]; same memory.
    fn b_rl(&self, all_p: &Tensor) -> Result<Tensor, ModelError> {
        let start = self.start + self.rank * self.columns;
        Ok(all_p.f_narrow(0, start, self.rows * self.rank)?.f_view([self.rows, self.rank])?)
    }
}

impl Kept {
    fn new(layer: &Linear, kept_rc: &Tensor) -> Result<Self, ModelError> {
        let (found, expected) = (kept_rc.size(), layer.weight.size());
        if found != expected || kept_rc.kind() != Kind::Bool {
            let kind = kept_rc.kind();
            let reason = format!("what is kept of it is {kind:?} of shape {found:?}, expected Bool of {expected:?}");
            return Err(fault(&layer.name, &reason));
        }
        let kept_rc = kept_rc.f_to_device(layer.weight.device())?;
        let is_true = |bool: &Tensor| Ok::<_, ModelError>(bool.f_int64_value(&[])? != 0);
        if is_true(&layer.weight.f_masked_fill(&kept_rc, 0.0)?.f_ne(0.0)?.f_any()?)? {
            return Err(fault(&layer.name, "some of its removed weights are not zero"));
        }
        if is_true(&kept_rc.f_all()?)? {
            return Ok(Self::All);
        }
        let (rows_r1, columns_1c) = (kept_rc.f_any_dim(1, true)?, kept_rc.f_any_dim(0, true)?);
        if rows_r1.f_logical_and(&columns_1c)?.f_equal(&kept_rc)? {
            return Ok(Self::Cross { rows_r1, columns_1c });
        }
        Ok(Self::Each { kept_rc })
    }
}

fn fault(layer: &LayerId, reason: &str) -> ModelError {
    ModelError::Overlay { layer: layer.to_string(), reason: reason.to_owned() }
}

/// A layer's A and B, where a graph begins.
#[derive(Debug)]
struct Leaf {
    layer: LayerId,
    a_lc: Tensor,
    b_rl: Tensor,
}

/// The tap while A and B learn: each product acts beside its weight.
pub(super) struct Learning<'a> {
    low_rank: &'a LowRank,
    /// What gradients are wanted of, as it is met; `None` in passes without graph.
    leaves: Option<Vec<Leaf>>,
}

impl<'a> Learning<'a> {
    /// Returns the tap of passes without graph.
    pub(super) fn without_graph(low_rank: &'a LowRank) -> Self {
        Self { low_rank, leaves: None }
    }

    /// Returns the tap of one pass with graph.
    pub(super) fn with_graph(low_rank: &'a LowRank) -> Self {
        Self { low_rank, leaves: Some(Vec::new()) }
    }

    /// Returns every A and B that was met, in turn.
    pub(super) fn ends(&self) -> Vec<Tensor> {
        let leaves = self.leaves.iter().flatten();
        leaves.flat_map(|leaf| [leaf.a_lc.shallow_clone(), leaf.b_rl.shallow_clone()]).collect()
    }

    /// Adds the gradients at [`Self::ends`], in the same order, to `gradient_p`.
    pub(super) fn accumulate(&self, gradients: &[Tensor], gradient_p: &Tensor) -> Result<(), ModelError> {
        for (leaf, pair) in self.leaves.iter().flatten().zip(gradients.chunks_exact(2)) {
            self.low_rank.accumulate(&leaf.layer, (&pair[0], &pair[1]), gradient_p)?;
        }
        Ok(())
    }
}

impl Tap for Learning<'_> {
    fn linear(&mut self, layer: &Linear, _: &LayerId, x: &Tensor) -> Result<Tensor, ModelError> {
        let slot = self.low_rank.slot(layer)?;
        let (mut a_lc, mut b_rl) = (slot.a_lc(&self.low_rank.numbers_p)?, slot.b_rl(&self.low_rank.numbers_p)?);
        if let Some(leaves) = &mut self.leaves {
            a_lc = a_lc.f_detach()?.f_set_requires_grad(true)?;
            b_rl = b_rl.f_detach()?.f_set_requires_grad(true)?;
            leaves.push(Leaf { layer: layer.name.clone(), a_lc: a_lc.shallow_clone(), b_rl: b_rl.shallow_clone() });
        }
        self.low_rank.output(slot, layer, x, [&a_lc, &b_rl])
    }
}

/// The tap that runs every layer with the weight that absorption would leave.
pub(super) struct Absorbed<'a>(pub(super) &'a LowRank);

impl Tap for Absorbed<'_> {
    fn linear(&mut self, layer: &Linear, _: &LayerId, x: &Tensor) -> Result<Tensor, ModelError> {
        let weight_rc = self.0.weight(layer)?.f_to_kind(layer.weight.kind())?;
        x.f_linear(&weight_rc, layer.bias.as_ref()).map_err(ModelError::torch(layer.name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn whole_rows_and_columns_are_told_from_scattered_weights() {
        let kept = |bits: [u8; 6]| {
            let kept_rc = Tensor::from_slice(&bits).view([2, 3]).to_kind(Kind::Bool);
            let weight = Tensor::ones([2, 3], (Kind::Float, Device::Cpu)) * &kept_rc;
            let layer = Linear { name: LayerId::new("fc1").unwrap(), weight, bias: None };
            Kept::new(&layer, &kept_rc).unwrap()
        };
        assert!(matches!(kept([1, 1, 1, 1, 1, 1]), Kept::All));
        for rows_and_columns in [[1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0; 6]] {
            assert!(matches!(kept(rows_and_columns), Kept::Cross { .. }), "{rows_and_columns:?}");
        }
        for scattered in [[1, 0, 1, 1, 1, 0], [1, 1, 1, 0, 1, 1]] {
            assert!(matches!(kept(scattered), Kept::Each { .. }), "{scattered:?}");
        }
    }
}
