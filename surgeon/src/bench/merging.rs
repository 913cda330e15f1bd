//! One more shard's packed sums on top of others, from bytes to bytes: what [`super::Bench::add`] does, to the bit, without
//! the factors' squares and on the CPU, wherever the bench is.

use super::tokens;
use crate::error::Error;
use bytes::Bytes;
use model::tensor_file;
use tch::Device;

/// Returns the sum of two files of factors, each in parts; `alive` is called before each tensor. In memory are at most as
/// many bytes as three such files have.
pub(crate) fn merged(sum: Vec<Bytes>, shard: Vec<Bytes>, alive: &dyn Fn()) -> Result<Bytes, Error> {
    tch::no_grad(|| {
        // Bytes are dropped as soon as they are tensors, tensors as soon as they are added.
        let decoded = |parts: Vec<Bytes>| tensor_file::decode(&contiguous(parts), Device::Cpu);
        let (mut sums, mut metadata) = decoded(sum)?;
        alive();
        let (part, of_part) = decoded(shard)?;
        let all = tokens(&metadata)?.checked_add(tokens(&of_part)?);
        let all = all.ok_or_else(|| Error::Bug("factors are over more tokens than can be counted".into()))?;
        curvature::merge_packed(&mut sums, part, alive)?;
        metadata.insert("tokens".to_owned(), all.to_string());
        Ok(Bytes::from(tensor_file::encode(&sums, &metadata)?))
    })
}

/// Returns parts side by side, copied only if there are several.
fn contiguous(mut parts: Vec<Bytes>) -> Bytes {
    match parts.pop() {
        Some(whole) if parts.is_empty() => whole,
        last => {
            parts.extend(last);
            Bytes::from(parts.concat())
        }
    }
}

#[cfg(test)]
impl super::Bench {
    /// Returns the sums of a pass, packed, as bytes.
    pub(crate) fn packed(&self, pass: usize) -> Bytes {
        let sums = &self.sums[pass];
        let metadata = std::collections::BTreeMap::from([("tokens".to_owned(), sums.tokens.to_string())]);
        Bytes::from(tensor_file::encode(&sums.pack().unwrap(), &metadata).unwrap())
    }
}
