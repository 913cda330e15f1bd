//! Tensors as the bytes of a GGUF file, and back.

use super::container::Encoding;
use crate::ModelError;
use crate::tensor_file::{bytes_from, tensor_from};
use tch::{Kind, Tensor};

/// The largest number of an 8-bit block.
const LARGEST: f64 = 127.0;

/// Returns the numbers of `tensor` as they are stored. For [`Encoding::Q8`], rows are multiples of its block.
pub(super) fn encode(tensor: &Tensor, encoding: Encoding) -> Result<Vec<u8>, ModelError> {
    match encoding {
        Encoding::F32 => bytes_from(tensor, Kind::Float),
        Encoding::F16 => bytes_from(&in_range(tensor)?, Kind::Half),
        Encoding::Bf16 => bytes_from(tensor, Kind::BFloat16),
        Encoding::Q8 => encode_q8(tensor),
    }
}

/// Returns the stored numbers as f32, in `shape`.
pub(super) fn decode(bytes: &[u8], shape: &[i64], encoding: Encoding) -> Result<Tensor, ModelError> {
    let stored = match encoding {
        Encoding::F32 => tensor_from(bytes, shape, Kind::Float)?,
        Encoding::F16 => tensor_from(bytes, shape, Kind::Half)?,
        Encoding::Bf16 => tensor_from(bytes, shape, Kind::BFloat16)?,
        Encoding::Q8 => decode_q8(bytes, shape)?,
    };
    Ok(stored.f_to_kind(Kind::Float)?)
}

/// Returns `tensor` if f16 can hold it: an infinity would only be seen in the model's text.
fn in_range(tensor: &Tensor) -> Result<Tensor, ModelError> {
    const LARGEST_F16: f64 = 65504.0;
    let largest = tensor.f_abs()?.f_max()?.f_double_value(&[])?;
    if largest > LARGEST_F16 {
        return Err(ModelError::NotFinite {
            what: format!("a weight of {largest} in f16; take --gguf-type bf16 or f32: it"),
        });
    }
    Ok(tensor.shallow_clone())
}

/// A block is its scale in f16 and 32 whole numbers: x ≈ scale · n, with scale = max |x| / 127.
fn encode_q8(tensor: &Tensor) -> Result<Vec<u8>, ModelError> {
    let blocks = tensor.f_to_kind(Kind::Float)?.f_reshape([-1, Encoding::Q8_BLOCK as i64])?;
    let scale = blocks.f_abs()?.f_amax([1].as_slice(), true)?.f_div_scalar(LARGEST)?;
    // Where all are zero, so is the scale, and the quotient nothing.
    let quotient = blocks.f_div(&scale)?.f_nan_to_num(0.0, 0.0, 0.0)?;
    let numbers = bytes_from(&quotient.f_round()?.f_clamp(-LARGEST, LARGEST)?, Kind::Int8)?;
    let scales = bytes_from(&in_range(&scale)?, Kind::Half)?;
    let pairs = scales.chunks_exact(2).zip(numbers.chunks_exact(Encoding::Q8_BLOCK));
    Ok(pairs.flat_map(|(scale, numbers)| scale.iter().chain(numbers).copied()).collect())
}

fn decode_q8(bytes: &[u8], shape: &[i64]) -> Result<Tensor, ModelError> {
    let blocks = bytes.chunks_exact(Encoding::Q8_BLOCK + 2);
    let count = blocks.len() as i64;
    let (scales, numbers): (Vec<_>, Vec<_>) = blocks.map(|block| block.split_at(2)).unzip();
    let scales = tensor_from(&scales.concat(), &[count, 1], Kind::Half)?.f_to_kind(Kind::Float)?;
    let numbers = tensor_from(&numbers.concat(), &[count, Encoding::Q8_BLOCK as i64], Kind::Int8)?;
    Ok(numbers.f_to_kind(Kind::Float)?.f_mul(&scales)?.f_reshape(shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn each_encoding_gives_back_what_its_rounding_allows() {
        let tensor =
            Tensor::f_arange_start_step(-32.0, 32.0, 1.0, (Kind::Float, Device::Cpu)).unwrap().view([2, 32]) / 7.0;
        for (encoding, allowed) in
            [(Encoding::F32, 0.0), (Encoding::F16, 2.5e-3), (Encoding::Bf16, 1.6e-2), (Encoding::Q8, 2e-2)]
        {
            let bytes = encode(&tensor, encoding).unwrap();
            assert_eq!(bytes.len() as u64, encoding.bytes(64));
            let found = decode(&bytes, &[2, 32], encoding).unwrap();
            let difference = (found - &tensor).abs().max().double_value(&[]);
            assert!(difference <= allowed, "{encoding:?}: {difference}");
        }
    }

    #[test]
    fn a_block_of_zeros_is_zeros_and_too_large_a_number_is_an_error() {
        let zeros = Tensor::zeros([1, 32], (Kind::Float, Device::Cpu));
        let bytes = encode(&zeros, Encoding::Q8).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert!(encode(&(zeros + 1e6), Encoding::F16).is_err());
    }
}
