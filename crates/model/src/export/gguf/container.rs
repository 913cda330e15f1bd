//! The GGUF container, version 3: keys with values, a table of tensors, and their bytes. Knows neither models nor tokenizers.

use crate::ModelError;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Tensors begin at multiples of this.
const ALIGNMENT: u64 = 32;
/// The largest header that is believed, in entries of any kind.
const MAX_ENTRIES: u64 = 1 << 26;

/// The value of a key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Texts(Vec<String>),
}

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    F32,
    F16,
    Q8,
    Bf16,
}

impl Encoding {
    const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8, Self::Bf16];
    /// Numbers that share a scale in [`Self::Q8`].
    pub(super) const Q8_BLOCK: usize = 32;

    /// Returns its number in the table of tensors.
    fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8 => 8,
            Self::Bf16 => 30,
        }
    }

    /// Returns the bytes of `numbers` numbers, a multiple of the block for [`Self::Q8`].
    pub(super) fn bytes(self, numbers: u64) -> u64 {
        match self {
            Self::F32 => numbers * 4,
            Self::F16 | Self::Bf16 => numbers * 2,
            Self::Q8 => numbers / Self::Q8_BLOCK as u64 * (Self::Q8_BLOCK as u64 + 2),
        }
    }
}

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Rows first, as everywhere in this program; the file has it the other way round.
    pub(super) shape: Vec<u64>,
    pub(super) encoding: Encoding,
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.encoding.bytes(self.shape.iter().product())
    }
}

/// Writes a file; `data` gives the bytes of each entry, by position. Returns nothing but errors of `out` and `data`.
pub(super) fn write(
    out: &mut impl Write,
    keys: &[(String, Value)],
    entries: &[Entry],
    mut data: impl FnMut(usize) -> Result<Vec<u8>, ModelError>,
) -> Result<(), ModelError> {
    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((entries.len() as u64).to_le_bytes());
    header.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        put_text(&mut header, key);
        put_value(&mut header, value);
    }
    let mut offset = 0u64;
    for entry in entries {
        put_text(&mut header, &entry.name);
        header.extend((entry.shape.len() as u32).to_le_bytes());
        entry.shape.iter().rev().for_each(|size| header.extend(size.to_le_bytes()));
        header.extend(entry.encoding.code().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += entry.bytes().next_multiple_of(ALIGNMENT);
    }
    header.resize((header.len() as u64).next_multiple_of(ALIGNMENT) as usize, 0);
    let failed = |source| ModelError::Io { action: "write", path: super::FILE.into(), source };
    out.write_all(&header).map_err(failed)?;
    for (at, entry) in entries.iter().enumerate() {
        let mut bytes = data(at)?;
        if bytes.len() as u64 != entry.bytes() {
            return Err(broken(format!(
                "tensor '{}' has {} bytes, {} were announced",
                entry.name,
                bytes.len(),
                entry.bytes()
            )));
        }
        bytes.resize((bytes.len() as u64).next_multiple_of(ALIGNMENT) as usize, 0);
        out.write_all(&bytes).map_err(failed)?;
    }
    Ok(())
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U32(n) => put(4, &n.to_le_bytes()),
        Value::F32(x) => put(6, &x.to_le_bytes()),
        Value::Bool(yes) => put(7, &[u8::from(*yes)]),
        Value::Text(text) => {
            put(8, &[]);
            put_text(out, text);
        }
        Value::I32s(list) => {
            put(9, &array_head(5, list.len()));
            out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
        }
        Value::F32s(list) => {
            put(9, &array_head(6, list.len()));
            out.extend(list.iter().flat_map(|x| x.to_le_bytes()));
        }
        Value::Texts(list) => {
            put(9, &array_head(8, list.len()));
            for text in list {
                put_text(out, text);
            }
        }
    }
}

fn array_head(kind: u32, length: usize) -> Vec<u8> {
    kind.to_le_bytes().into_iter().chain((length as u64).to_le_bytes()).collect()
}

/// What is in a file: keys, and where each tensor lies.
#[derive(Debug, PartialEq)]
pub(super) struct Parsed {
    pub(super) keys: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, (Entry, Range<u64>)>,
}

/// Returns what is in a file of `length` bytes that [`write`] made, from its first `bytes`: the header must be among them.
///
/// # Errors
/// [`ModelError::TensorFile`] for anything else: other versions and kinds of values included.
pub(super) fn parse(bytes: &[u8], length: u64) -> Result<Parsed, ModelError> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != MAGIC || reader.u32()? != VERSION {
        return Err(broken("is no GGUF file of version 3".to_owned()));
    }
    let (tensors, keys) = (reader.count()?, reader.count()?);
    let keys = (0..keys).map(|_| Ok((reader.text()?, reader.value()?))).collect::<Result<_, ModelError>>()?;
    let entries = (0..tensors).map(|_| reader.entry()).collect::<Result<Vec<_>, _>>()?;
    let data = (reader.at as u64).next_multiple_of(ALIGNMENT);
    let mut placed = BTreeMap::new();
    for (entry, offset) in entries {
        let start = data.saturating_add(offset);
        let end = start.saturating_add(entry.bytes());
        if end > length {
            return Err(broken(format!("ends before tensor '{}' does", entry.name)));
        }
        placed.insert(entry.name.clone(), (entry, start..end));
    }
    Ok(Parsed { keys, tensors: placed })
}

fn broken(reason: String) -> ModelError {
    ModelError::TensorFile { file: super::FILE.to_owned(), reason }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], ModelError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| broken("is cut off in its header".to_owned()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self) -> Result<u64, ModelError> {
        let count = self.u64()?;
        if count > MAX_ENTRIES { Err(broken(format!("announces {count} entries"))) } else { Ok(count) }
    }

    fn text(&mut self) -> Result<String, ModelError> {
        let length = self.u64()?;
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| broken("has a text that is not UTF-8".to_owned()))
    }

    fn value(&mut self) -> Result<Value, ModelError> {
        Ok(match self.u32()? {
            4 => Value::U32(self.u32()?),
            6 => Value::F32(self.array().map(f32::from_le_bytes)?),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => {
                let (kind, length) = (self.u32()?, self.count()?);
                match kind {
                    5 => Value::I32s(
                        (0..length).map(|_| self.array().map(i32::from_le_bytes)).collect::<Result<_, _>>()?,
                    ),
                    6 => Value::F32s(
                        (0..length).map(|_| self.array().map(f32::from_le_bytes)).collect::<Result<_, _>>()?,
                    ),
                    8 => Value::Texts((0..length).map(|_| self.text()).collect::<Result<_, _>>()?),
                    other => return Err(broken(format!("has a list of values of kind {other}"))),
                }
            }
            other => return Err(broken(format!("has a value of kind {other}"))),
        })
    }

    fn entry(&mut self) -> Result<(Entry, u64), ModelError> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(broken(format!("gives tensor '{name}' {dimensions} dimensions")));
        }
        let mut shape = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let numbers = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        if numbers.is_none_or(|numbers| numbers > 1 << 50) {
            return Err(broken(format!("gives tensor '{name}' the shape {shape:?}")));
        }
        let code = self.u32()?;
        let encoding = Encoding::ALL.into_iter().find(|encoding| encoding.code() == code);
        let encoding = encoding.ok_or_else(|| broken(format!("stores tensor '{name}' as type {code}")))?;
        Ok((Entry { name, shape, encoding }, self.u64()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<u8> {
        let keys = [
            ("a".to_owned(), Value::U32(7)),
            ("b".to_owned(), Value::F32(0.5)),
            ("c".to_owned(), Value::Bool(true)),
            ("d".to_owned(), Value::Text("ä".to_owned())),
            ("e".to_owned(), Value::I32s(vec![-1, 2])),
            ("f".to_owned(), Value::F32s(vec![0.25])),
            ("g".to_owned(), Value::Texts(vec!["x".to_owned(), String::new()])),
        ];
        let entries = [
            Entry { name: "v".to_owned(), shape: vec![3], encoding: Encoding::F32 },
            Entry { name: "m".to_owned(), shape: vec![2, 32], encoding: Encoding::Q8 },
        ];
        let mut out = Vec::new();
        write(&mut out, &keys, &entries, |at| Ok(vec![at as u8 + 1; [12, 68][at]])).unwrap();
        out
    }

    #[test]
    fn what_is_written_reads_back_at_aligned_places() {
        let bytes = example();
        let parsed = parse(&bytes, bytes.len() as u64).unwrap();
        assert_eq!(parsed.keys["d"], Value::Text("ä".to_owned()));
        assert_eq!(parsed.keys["g"], Value::Texts(vec!["x".to_owned(), String::new()]));
        let (entry, range) = &parsed.tensors["m"];
        assert_eq!((entry.shape.as_slice(), entry.encoding, range.start % 32), ([2, 32].as_slice(), Encoding::Q8, 0));
        assert!(bytes[range.start as usize..range.end as usize].iter().all(|byte| *byte == 2));
        assert_eq!(range.end - range.start, 68);
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let bytes = example();
        for length in 0..bytes.len() - 28 {
            assert!(parse(&bytes[..length], length as u64).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 9, 0x7F, 0xFF] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = parse(&damaged, damaged.len() as u64);
            }
        }
    }

    #[test]
    fn data_of_another_length_is_refused() {
        let entry = Entry { name: "v".to_owned(), shape: vec![3], encoding: Encoding::F32 };
        assert!(write(&mut Vec::new(), &[], &[entry], |_| Ok(vec![0; 11])).is_err());
    }
}
