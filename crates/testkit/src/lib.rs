//! Dense oracles for tests, in f64: what every formula of the kernels is held against.
//!
//! Nothing here is fast or clever: Kronecker products are formed, matrices are inverted. For sizes up to 6 or so.
//! Not a part of any binary. Panics are the way to report a fault, because only tests call it.

#![allow(clippy::doc_markdown, reason = "formulas in Unicode are not code")]

mod obs;
mod random;

pub use obs::{DenseRemoval, dense_obs, dense_zeroing, element_indices};
pub use random::{random, random_spd};

use tch::{Device, Tensor};

/// Returns the devices that a test should run on: the CPU, and the first CUDA device where there is one.
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    if tch::Cuda::is_available() {
        devices.push(Device::Cuda(0));
    }
    devices
}

/// Returns G ⊗ A, `[R·C, R·C]`: the Fisher of row-major vec(W).
pub fn kron(g_rr: &Tensor, a_cc: &Tensor) -> Tensor {
    g_rr.kron(a_cc)
}

/// Returns the largest absolute difference between two tensors of equal shape.
///
/// # Panics
/// When the shapes differ.
pub fn max_difference(x: &Tensor, y: &Tensor) -> f64 {
    assert_eq!(x.size(), y.size(), "shapes differ");
    if x.numel() == 0 {
        return 0.0;
    }
    let difference =
        x.to_device(Device::Cpu).to_kind(tch::Kind::Double) - y.to_device(Device::Cpu).to_kind(tch::Kind::Double);
    difference.abs().max().double_value(&[])
}
