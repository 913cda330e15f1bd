//! Costs on the device to counts of their float bits, and the threshold found from them back to a mask.
//!
//! The radix select itself, which adds up the counts of all layers, is in `planning`; this module and that agree on 16 upper
//! bits first, 16 lower bits second. An f64 cost (tests) counts as the nearest f32.

use crate::PruningError;
use tch::{Device, Kind, Tensor};
use types::LayerId;

/// Values of 16 bits.
const BINS: i64 = 1 << 16;

/// Costs that are counted at a time: their indices are 64 bits each.
const CHUNK: i64 = 1 << 23;

/// Returns how many costs fall into each of 65,536 bins: by their upper 16 bits, or, given a `prefix`, those with these upper
/// bits by their lower 16.
///
/// # Errors
/// `NotFinite` when a cost is not finite, `Unstable` when one is negative.
pub fn histogram_counts(layer: &LayerId, costs: &Tensor, prefix: Option<u16>) -> Result<Vec<u64>, PruningError> {
    tch::no_grad(|| {
        let bits_n = float_bits(layer, costs)?.f_reshape([-1])?;
        let n = bits_n.size()[0];
        let mut counts = Tensor::f_zeros([BINS], (Kind::Int64, bits_n.device()))?;
        for start in (0..n).step_by(CHUNK as usize) {
            let part = bits_n.f_narrow(0, start, CHUNK.min(n - start))?;
            let upper = part.f_bitwise_right_shift_tensor_scalar(16)?;
            let digits = match prefix {
                None => upper,
                Some(prefix) => {
                    part.f_masked_select(&upper.f_eq(i64::from(prefix))?)?.f_bitwise_and(i64::from(u16::MAX))?
                }
            };
            let _ = counts.f_add_(&digits.f_bincount(None::<&Tensor>, BINS)?)?;
        }
        let counts = Vec::<i64>::try_from(counts.f_to_device(Device::Cpu)?)?;
        Ok(counts.into_iter().map(|count| count as u64).collect())
    })
}

/// Returns which costs go: all whose f32 bits are below the threshold's, and the first `ties` of those that equal it, by
/// row-major position.
///
/// # Shapes
/// `costs`: any → the same, bool
///
/// # Errors
/// As [`histogram_counts`], and `Units` when fewer than `ties` costs equal the threshold.
pub fn select_elements(
    layer: &LayerId,
    costs: &Tensor,
    threshold_bits: u32,
    ties: u64,
) -> Result<Tensor, PruningError> {
    tch::no_grad(|| {
        let bits = float_bits(layer, costs)?;
        // Above the largest finite cost all thresholds are the same.
        let threshold = i64::from(threshold_bits.min(f32::INFINITY.to_bits()));
        let removed = bits.f_lt(threshold)?;
        if ties == 0 {
            return Ok(removed);
        }
        let tied = bits.f_eq(threshold)?.f_reshape([-1])?.f_nonzero()?.f_view([-1])?;
        let there = tied.size()[0];
        let Some(taken) = i64::try_from(ties).ok().filter(|taken| *taken <= there) else {
            let reason = format!("{ties} costs that equal the threshold should go, {there} do");
            return Err(PruningError::Units { layer: layer.to_string(), reason });
        };
        let _ = removed.f_view([-1])?.f_index_fill_(0, &tied.f_narrow(0, 0, taken)?, 1)?;
        Ok(removed)
    })
}

/// Returns the bits of the costs as f32, which rise with the cost.
fn float_bits(layer: &LayerId, costs: &Tensor) -> Result<Tensor, PruningError> {
    let bits = costs.f_to_kind(Kind::Float)?.f_contiguous()?.f_view_dtype(Kind::Int)?;
    if bits.numel() == 0 {
        return Ok(bits);
    }
    let (lowest, highest) = bits.f_aminmax(None, false)?;
    let (lowest, highest) = (lowest.f_int64_value(&[])? as i32, highest.f_int64_value(&[])? as i32);
    // Negative floats have negative bits.
    let value = f32::from_bits(if lowest < 0 { lowest } else { highest }.cast_unsigned());
    let layer = layer.to_string();
    match value {
        _ if !value.is_finite() => Err(PruningError::NotFinite { layer, what: "a cost" }),
        _ if lowest < 0 => Err(PruningError::Unstable { layer, what: "a cost", value: value.into(), removed: 0 }),
        _ => Ok(bits),
    }
}
