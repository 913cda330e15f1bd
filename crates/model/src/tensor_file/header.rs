//! The header of a safetensors file: 8 bytes of length, then JSON that says where each tensor lies.
//!
//! The number formats are those of the `safetensors` crate. Bounds are checked here, against the file that is mapped: a
//! message names the file, the tensor and what is wrong with it.

use super::{TensorSpec, bytes_of};
use crate::ModelError;
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use tch::Kind;

/// No real model comes near; a longer header is a lie or an attack.
const MAX_HEADER: u64 = 100_000_000;
const LENGTH_BYTES: usize = 8;

/// Where and what one tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    /// Number format as the file spells it.
    pub(crate) dtype: String,
    /// The same as a kind; `None` if libtorch has none that we use.
    pub(crate) kind: Option<Kind>,
    pub(crate) shape: Vec<i64>,
    /// Dimensions from the slowest to the fastest in the file; `None` if they lie in their own order.
    pub(crate) order: Option<Vec<i64>>,
    /// Bytes in the file.
    pub(crate) range: Range<usize>,
}

/// A header whose every range lies within the file, without overlap or gap.
#[derive(Debug, Clone, Default)]
pub(crate) struct Header {
    /// In file order.
    pub(crate) tensors: Vec<(String, TensorInfo)>,
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Header {
    /// Returns the header of the file `bytes`; `file` is for messages.
    pub(crate) fn parse(bytes: &[u8], file: &str) -> Result<Self, ModelError> {
        Self::parse_head(bytes, bytes.len(), file)
    }

    /// Returns the header of a file of `total` bytes of which `head` are the first: at least those that [`Self::needed`] says.
    pub(crate) fn parse_head(head: &[u8], total: usize, file: &str) -> Result<Self, ModelError> {
        Self::checked(head, total).map_err(|reason| ModelError::TensorFile { file: file.to_owned(), reason })
    }

    /// Returns how many of the first bytes of a file of `total` bytes its header takes.
    pub(crate) fn needed(head: &[u8], total: u64, file: &str) -> Result<u64, ModelError> {
        let length = length(head, total as usize);
        let length = length.map_err(|reason| ModelError::TensorFile { file: file.to_owned(), reason })?;
        Ok((LENGTH_BYTES + length) as u64)
    }

    fn checked(head: &[u8], total: usize) -> Result<Self, String> {
        let length = length(head, total)?;
        let json = head.get(LENGTH_BYTES..LENGTH_BYTES + length);
        let json = json.ok_or_else(|| format!("announces a header of {length} bytes, which are not all here"))?;
        let map: Map<String, Value> =
            serde_json::from_slice(json).map_err(|e| format!("has a header that is not valid JSON ({e})"))?;
        let mut header = Self::default();
        for (name, value) in map {
            if name == "__metadata__" {
                header.metadata =
                    serde_json::from_value(value).map_err(|e| format!("has metadata that is not text ({e})"))?;
            } else {
                let info = tensor(&name, value, LENGTH_BYTES + length, total)?;
                header.tensors.push((name, info));
            }
        }
        header.tensors.sort_by_key(|(_, info)| (info.range.start, info.range.end));
        header.check_coverage(LENGTH_BYTES + length, total)?;
        Ok(header)
    }

    /// Checks that the tensors cover the file from `begin` to `end`, each byte once.
    fn check_coverage(&self, begin: usize, end: usize) -> Result<(), String> {
        let mut at = begin;
        for (name, info) in &self.tensors {
            if info.range.start != at {
                let fault =
                    if info.range.start < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
                return Err(format!("tensor '{name}' {fault}"));
            }
            at = info.range.end;
        }
        if at == end { Ok(()) } else { Err(format!("has {} bytes after its last tensor", end - at)) }
    }
}

/// Returns the bytes of a header, without its length, of a file of `total` bytes that begins with `head`.
fn length(head: &[u8], total: usize) -> Result<usize, String> {
    let length = head.first_chunk::<LENGTH_BYTES>();
    let length = length.ok_or_else(|| format!("has {total} bytes, too few for a safetensors file"))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("announces a header of {length} bytes, so it is no safetensors file"));
    }
    let rest = total - LENGTH_BYTES;
    if length > rest as u64 {
        return Err(format!("announces a header of {length} bytes but only {rest} bytes follow"));
    }
    Ok(length as usize)
}

/// Returns the checked entry of one tensor, with its range counted from the start of the file.
fn tensor(name: &str, value: Value, begin: usize, end: usize) -> Result<TensorInfo, String> {
    let Entry { dtype, shape, data_offsets: [from, to] } =
        serde_json::from_value(value).map_err(|e| format!("describes tensor '{name}' wrongly ({e})"))?;
    let room = (end - begin) as u64;
    if from > to || to > room {
        return Err(format!(
            "tensor '{name}' is said to lie at bytes {from} to {to}, but the file has {room} bytes of data"
        ));
    }
    let known: Dtype = serde_json::from_value(Value::String(dtype.clone()))
        .map_err(|_| format!("tensor '{name}' has the unknown number format '{dtype}'"))?;
    let size = shape
        .iter()
        .try_fold(known.bitsize() as u64, |product, n| product.checked_mul(*n))
        .map(|bits| bits.div_ceil(8));
    if size != Some(to - from) {
        return Err(format!("tensor '{name}' {shape:?} of {dtype} does not fit its {} bytes", to - from));
    }
    let shape = shape
        .into_iter()
        .map(|n| i64::try_from(n).map_err(|_| format!("tensor '{name}' has an impossible shape")))
        .collect::<Result<_, _>>()?;
    let range = begin + from as usize..begin + to as usize;
    Ok(TensorInfo { kind: kind_of(known), dtype, shape, order: None, range })
}

/// Returns the header bytes, length included, of tensors that lie one after the other.
pub(super) fn encode<'a>(
    specs: impl Iterator<Item = &'a TensorSpec>,
    metadata: &BTreeMap<String, String>,
    file: &str,
) -> Result<Vec<u8>, ModelError> {
    let fail = |reason: String| ModelError::TensorFile { file: file.to_owned(), reason };
    let mut map = Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut at = 0;
    for spec in specs {
        let end = at + bytes_of(spec);
        let dtype = dtype_of(spec.kind).ok_or_else(|| fail(format!("cannot hold {:?}", spec.kind)))?;
        let entry = json!({ "dtype": dtype.to_string(), "shape": spec.shape, "data_offsets": [at, end] });
        if map.insert(spec.name.clone(), entry).is_some() {
            return Err(fail(format!("would hold tensor '{}' twice", spec.name)));
        }
        at = end;
    }
    let mut json = Value::Object(map).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// The number formats that we compute in.
const KINDS: [(Dtype, Kind); 10] = [
    (Dtype::F64, Kind::Double),
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(known, _)| *known == dtype).map(|(_, kind)| *kind)
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(_, k)| *k == kind).map(|(dtype, _)| *dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn lies_are_named() {
        let one = |shape: &str, from: u64, to: u64| {
            format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
        };
        let two = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        let cases = [
            (vec![1, 2, 3], "too few"),
            (u64::MAX.to_le_bytes().to_vec(), "announces a header of"),
            (vec![200, 0, 0, 0, 0, 0, 0, 0, b'{'], "only 1 bytes follow"),
            (file("not json", 0), "not valid JSON"),
            (file(r#"{"w":{"dtype":"F32"}}"#, 0), "wrongly"),
            (file(r#"{"w":{"dtype":"X9","shape":[],"data_offsets":[0,4]}}"#, 4), "unknown number format"),
            (file(&one("[2]", 0, 8), 4), "but the file has 4 bytes"),
            (file(&one("[2]", 8, 0), 8), "but the file has 8 bytes"),
            (file(&one("[3]", 0, 8), 8), "does not fit"),
            (file(&one("[4294967296, 4294967296, 4294967296]", 0, 8), 8), "does not fit"),
            (file(&one("[18446744073709551615]", 0, 18_446_744_073_709_551_615), 8), "but the file has"),
            (file(&one("[1]", 4, 8), 8), "gap"),
            (file(&one("[1]", 0, 4), 8), "after its last tensor"),
            (file(two, 6), "overlaps"),
        ];
        for (bytes, expected) in cases {
            let error = Header::parse(&bytes, "f").unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should say '{expected}'");
        }
    }
}
