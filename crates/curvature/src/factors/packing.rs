//! The packed lower triangle: half the bytes on the wire and in the store.

use crate::CurvatureError;
use tch::{Device, Kind, Tensor};

/// Returns the lower triangle of `m` by rows, `[n(n+1)/2]`, f32 on the CPU.
pub(super) fn pack_lower(m: &Tensor) -> Result<Tensor, CurvatureError> {
    let n = m.size()[0];
    let lower = m.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    let packed = Tensor::f_empty([n * (n + 1) / 2], (Kind::Float, Device::Cpu))?;
    for row in 0..n {
        packed.f_narrow(0, row * (row + 1) / 2, row + 1)?.f_copy_(&lower.f_get(row)?.f_narrow(0, 0, row + 1)?)?;
    }
    Ok(packed)
}

/// Returns `[n, n]` with the packed values in its lower triangle and zeros above, f32 on the CPU.
pub(super) fn unpack_lower(packed: &Tensor, n: i64) -> Result<Tensor, CurvatureError> {
    let values = packed.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_reshape([-1])?;
    let lower = Tensor::f_zeros([n, n], (Kind::Float, Device::Cpu))?;
    for row in 0..n {
        lower.f_get(row)?.f_narrow(0, 0, row + 1)?.f_copy_(&values.f_narrow(0, row * (row + 1) / 2, row + 1)?)?;
    }
    Ok(lower)
}

/// Returns n when `values` = n(n+1)/2 for some n ≥ 1.
pub(super) fn side_length(values: usize) -> Option<i64> {
    let values = values as u64;
    let n = ((8 * values + 1).isqrt().saturating_sub(1)) / 2;
    (n > 0 && n * (n + 1) / 2 == values).then_some(n as i64)
}
