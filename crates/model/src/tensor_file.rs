//! The safetensors format: reads and writes tensors with bounds checked before a byte is touched.
//!
//! Does not know models or folders; [`crate::checkpoint`] maps files and asks for the tensors a model needs.

mod header;

pub(crate) use header::{Header, TensorInfo};

use crate::ModelError;
use std::collections::BTreeMap;
use std::io::Write;
use tch::{Device, Kind, Tensor};

/// What a safetensors file will hold, known before its tensors are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Number format in the file.
    pub kind: Kind,
    /// Its shape.
    pub shape: Vec<i64>,
}

/// Returns `tensors` and `metadata` as the bytes of a safetensors file; same input, same bytes.
pub fn encode(tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>, ModelError> {
    let specs = tensors
        .iter()
        .map(|(name, t)| Ok(TensorSpec { name: name.clone(), kind: t.f_kind()?, shape: t.size() }))
        .collect::<Result<Vec<_>, ModelError>>()?;
    let mut bytes = Vec::with_capacity(specs.iter().map(|s| bytes_of(s) as usize + 128).sum::<usize>() + 1024);
    write_to(&mut bytes, "encoded tensors", &specs, metadata, |at| Ok(tensors[at].1.shallow_clone()))?;
    Ok(bytes)
}

/// Writes a safetensors file of `specs` to `out`, fetching one tensor after the other from `tensor` (by position in
/// `specs`), so that never more than one is held. Returns the bytes written.
///
/// A tensor of another kind than its spec is converted; `name` is used in messages only.
pub fn write_to(
    out: &mut impl Write,
    name: &str,
    specs: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
    mut tensor: impl FnMut(usize) -> Result<Tensor, ModelError>,
) -> Result<u64, ModelError> {
    let broken = |source| ModelError::Io { action: "write", path: name.into(), source };
    // Widest numbers first, so that every tensor begins at a multiple of its own number size.
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(specs[*at].kind.elt_size_in_bytes()));
    let header = header::encode(order.iter().map(|at| &specs[*at]), metadata, name)?;
    out.write_all(&header).map_err(broken)?;
    let mut written = header.len() as u64;
    for (at, spec) in order.iter().map(|at| (*at, &specs[*at])) {
        let value = tensor(at)?;
        if value.size() != spec.shape {
            let expected = format!("{:?} as announced for '{}'", spec.shape, spec.name);
            return Err(ModelError::Shape { what: "tensor to write", expected, found: value.size() });
        }
        let bytes = bytes_from(&value, spec.kind)?;
        out.write_all(&bytes).map_err(broken)?;
        written += bytes.len() as u64;
    }
    Ok(written)
}

/// Tensors by name and the metadata of a file.
pub type Decoded = (Vec<(String, Tensor)>, BTreeMap<String, String>);

/// Returns the tensors and metadata in the bytes of a safetensors file, in file order, on `device`.
///
/// # Errors
/// [`ModelError::TensorFile`] if lengths or offsets lie, tensors overlap or leave gaps, or the bytes are cut off.
pub fn decode(bytes: &[u8], device: Device) -> Result<Decoded, ModelError> {
    let header = Header::parse(bytes, "encoded tensors")?;
    let tensors = header
        .tensors
        .iter()
        .map(|(name, info)| {
            let kind = info.kind.ok_or_else(|| ModelError::TensorFile {
                file: "encoded tensors".to_owned(),
                reason: format!("tensor '{name}' has number format {}, which is not supported", info.dtype),
            })?;
            let tensor = info.tensor(&bytes[info.range.clone()], kind)?;
            Ok((name.clone(), tensor.f_to_device(device)?))
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    Ok((tensors, header.metadata))
}

impl TensorInfo {
    /// Returns the tensor whose numbers in the file are `bytes`, of `kind`, on the CPU.
    pub(crate) fn tensor(&self, bytes: &[u8], kind: Kind) -> Result<Tensor, ModelError> {
        let Some(order) = &self.order else { return tensor_from(bytes, &self.shape, kind) };
        let in_file: Vec<i64> = order.iter().map(|d| self.shape[*d as usize]).collect();
        let place_of = |d: i64| order.iter().position(|at| *at == d).map_or(d, |at| at as i64);
        let places: Vec<i64> = (0..order.len() as i64).map(place_of).collect();
        Ok(tensor_from(bytes, &in_file, kind)?.f_permute(places)?.f_contiguous()?)
    }
}

/// Returns a tensor with a copy of `bytes`, on the CPU.
pub(crate) fn tensor_from(bytes: &[u8], shape: &[i64], kind: Kind) -> Result<Tensor, ModelError> {
    if bytes.is_empty() {
        return Ok(Tensor::f_zeros(shape, (kind, Device::Cpu))?);
    }
    Ok(Tensor::f_from_data_size(bytes, shape, kind)?)
}

/// Returns the elements of `tensor` as little-endian bytes in number format `kind`.
pub(crate) fn bytes_from(tensor: &Tensor, kind: Kind) -> Result<Vec<u8>, ModelError> {
    let plain = tensor.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?;
    let mut bytes = vec![0; plain.numel() * kind.elt_size_in_bytes()];
    if !bytes.is_empty() {
        plain.f_copy_data_u8(&mut bytes, plain.numel())?;
    }
    Ok(bytes)
}

/// Returns the length of a tensor in a file.
pub(crate) fn bytes_of(spec: &TensorSpec) -> u64 {
    spec.shape.iter().product::<i64>() as u64 * spec.kind.elt_size_in_bytes() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<(String, Tensor)> {
        vec![
            ("half".to_owned(), Tensor::from_slice(&[1.5f32, -2.0, 0.25]).to_kind(Kind::BFloat16)),
            ("ids".to_owned(), Tensor::from_slice(&[1i64, 2, 3, 4]).view([2, 2])),
            ("empty".to_owned(), Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))),
            ("one".to_owned(), Tensor::from_slice(&[0.1f64]).view([] as [i64; 0])),
        ]
    }

    #[test]
    fn what_is_encoded_is_decoded_unchanged() {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = encode(&sample(), &metadata).unwrap();
        let (tensors, read) = decode(&bytes, Device::Cpu).unwrap();
        assert_eq!(read, metadata);
        assert_eq!(tensors.len(), 4);
        for (name, tensor) in sample() {
            let (_, found) = tensors.iter().find(|(n, _)| *n == name).unwrap();
            assert_eq!((found.kind(), found.size()), (tensor.kind(), tensor.size()), "{name}");
            assert!(found.equal(&tensor), "{name}");
        }
        assert_eq!(bytes, encode(&sample(), &metadata).unwrap());
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
        let bytes = encode(&sample(), &BTreeMap::new()).unwrap();
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], Device::Cpu).is_err(), "{length}");
        }
    }

    #[test]
    fn a_changed_byte_is_never_a_panic() {
        let bytes = encode(&sample(), &BTreeMap::new()).unwrap();
        for at in 0..bytes.len() {
            for value in [0, b'0', b'9', b'-', b'"', b']', 0xFF] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = decode(&damaged, Device::Cpu);
            }
        }
    }

    #[test]
    fn a_changed_shape_is_refused_before_writing() {
        let spec = TensorSpec { name: "w".to_owned(), kind: Kind::Float, shape: vec![2] };
        let wrong = |_| Ok(Tensor::zeros([3], (Kind::Float, Device::Cpu)));
        assert!(write_to(&mut Vec::new(), "f", &[spec], &BTreeMap::new(), wrong).is_err());
    }
}
