//! `pytorch_model.bin`: the zip that `torch.save` writes, read where it lies and without running anything in it.
//!
//! The archive holds `NAME/data.pkl`, a pickle that says what the tensors are, and `NAME/data/KEY`, the numbers of each
//! storage, never compressed. A pickle is a program; [`pickle`] knows only the few instructions that a dict of tensors
//! needs, and refuses every other one by name. Does not read the formats of before PyTorch 1.6.

mod archive;
mod pickle;
#[cfg(test)]
mod tests;

use crate::ModelError;
use crate::tensor_file::TensorInfo;
use archive::Archive;
use pickle::{Storage, Stored};
use std::path::Path;

/// What to do about a file that is not damaged but not readable for us either.
const REMEDY: &str = "save the model as model.safetensors instead (transformers: save_pretrained)";

/// What is wrong with a file.
#[derive(Debug)]
enum Fault {
    /// It is broken.
    Damaged(String),
    /// It may be whole, but is not a plain dict of tensors in the zip format.
    Refused(String),
}

impl Fault {
    fn at(self, path: &Path) -> ModelError {
        match self {
            Self::Damaged(reason) => ModelError::TensorFile { file: path.display().to_string(), reason },
            Self::Refused(reason) => ModelError::Unsupported { path: path.to_owned(), reason },
        }
    }
}

fn damaged<T>(reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(reason.into()))
}

fn refused<T>(reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Refused(reason.into()))
}

/// Returns name and place of every tensor in the file `bytes`; `path` is for messages.
///
/// Tensors may share a storage, as tied ones do.
///
/// # Errors
/// [`ModelError::TensorFile`] if the archive or its pickle is broken, or a storage is too short or overlaps another;
/// [`ModelError::Unsupported`] for older formats, pickles that ask for more than tensors, and views with gaps.
pub(super) fn tensors(bytes: &[u8], path: &Path) -> Result<Vec<(String, TensorInfo)>, ModelError> {
    read(bytes).map_err(|fault| fault.at(path))
}

fn read(bytes: &[u8]) -> Result<Vec<(String, TensorInfo)>, Fault> {
    let archive = Archive::open(bytes)?;
    let pickle = archive.pickle()?;
    let stored = pickle::tensors(pickle)?;
    stored.into_iter().map(|(name, tensor)| Ok((name.to_owned(), place(name, &tensor, &archive)?))).collect()
}

/// Returns where in the file a tensor lies.
fn place(name: &str, tensor: &Stored, archive: &Archive) -> Result<TensorInfo, Fault> {
    let Stored { storage: Storage { key, format, numbers }, offset, shape, strides } = tensor;
    let Some(range) = archive.entry(&format!("data/{key}")) else {
        return damaged(format!("tensor '{name}' lies in storage '{key}', which the archive does not hold"));
    };
    let bytes = numbers.checked_mul(format.bytes);
    if bytes != Some(range.len() as u64) {
        return damaged(format!(
            "storage '{key}' of tensor '{name}' has {} bytes, but should hold {numbers} numbers of {}",
            range.len(),
            format.dtype
        ));
    }
    let Some(count) = shape.iter().try_fold(1u64, |product, n| product.checked_mul(*n)) else {
        return damaged(format!("tensor '{name}' has the impossible shape {shape:?}"));
    };
    let order = if count == 0 { None } else { memory_order(name, shape, strides)? };
    let end = offset.checked_add(count).filter(|end| end <= numbers);
    let Some(end) = end else {
        return damaged(format!(
            "tensor '{name}' {shape:?} begins at number {offset} of storage '{key}', which has {numbers} only"
        ));
    };
    // within the storage, so within the file: no product can overflow
    let at = |number: u64| range.start + (number * format.bytes) as usize;
    Ok(TensorInfo {
        dtype: format.dtype.to_owned(),
        kind: format.kind,
        // each at most the count of numbers in the file, unless the tensor is empty
        shape: shape.iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect(),
        order,
        range: at(*offset)..at(end),
    })
}

/// Returns the dimensions from the slowest to the fastest in memory, or `None` if they lie in their own order.
fn memory_order(name: &str, shape: &[u64], strides: &[u64]) -> Result<Option<Vec<i64>>, Fault> {
    // the stride of a dimension of size 1 says nothing
    let mut order: Vec<usize> = (0..shape.len()).filter(|d| shape[*d] != 1).collect();
    order.sort_by_key(|d| std::cmp::Reverse(strides[*d]));
    let mut expected = 1u64;
    for d in order.iter().rev() {
        if strides[*d] != expected {
            return refused(format!(
                "tensor '{name}' {shape:?} is a view with strides {strides:?} into a larger or smaller storage, which is not read; {REMEDY}"
            ));
        }
        expected = expected.saturating_mul(shape[*d]);
    }
    if order.is_sorted() {
        return Ok(None);
    }
    let single = (0..shape.len()).filter(|d| shape[*d] == 1);
    Ok(Some(single.chain(order).map(|d| d as i64).collect()))
}
