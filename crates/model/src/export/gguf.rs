//! A GGUF file of the pruned model, that llama.cpp runs.
//!
//! Blocks of equal widths take the architecture of their family; blocks with widths of their own take `deci`, which reads
//! heads, key/value heads and FFN widths as lists. Tensors are written one after the other.

mod architecture;
mod container;
mod numbers;
mod tensors;
mod tokenizer;

use super::staging::Staging;
use super::{Tolerance, huggingface};
use crate::compact::Compaction;
use crate::{Decoder, ModelConfig, ModelError, ModelFolder};
use architecture::Architecture;
use container::{Encoding, Entry};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use tch::{Kind, Tensor};
use types::GgufType;

/// The file's name.
pub const FILE: &str = "model.gguf";
/// No header is longer: vocabularies take a few MiB.
const LONGEST_HEADER: u64 = 256 << 20;

pub use tokenizer::check as check_tokenizer;

/// Writes the file; returns how its matrices are stored.
pub(super) fn fill(
    folder: &ModelFolder,
    compaction: &Compaction,
    gguf_type: GgufType,
    staging: &Staging,
) -> Result<GgufType, ModelError> {
    let config = folder.config();
    let gguf_type = resolve(gguf_type, folder);
    let blocks = compaction.places(config);
    let architecture = Architecture::of(config, &blocks);
    let mut keys = architecture.keys(config, &blocks);
    keys.extend(architecture::general(folder, gguf_type));
    keys.extend(tokenizer::keys(folder)?);
    let mut tensors = tensors::all(folder, compaction, &blocks, architecture)?;
    tensors.extend(tensors::rotary(config)?);
    let entries: Vec<Entry> = tensors.iter().map(|tensor| tensor.entry(gguf_type)).collect();
    staging.stream(FILE, |out| {
        container::write(out, &keys, &entries, |at| {
            if let Some(next) = tensors.get(at + 1) {
                next.read_ahead();
            }
            numbers::encode(&tensors[at].make(folder)?, entries[at].encoding)
        })
    })?;
    Ok(gguf_type)
}

/// Returns the model as the file that was just filled says it.
pub(super) fn read_back(staging: &Staging, config: &ModelConfig) -> Result<Decoder, ModelError> {
    let path = staging.path().join(FILE);
    let mut file = File::open(&path).map_err(ModelError::io("read", &path))?;
    let length = file.metadata().map_err(ModelError::io("read", &path))?.len();
    let mut header = Vec::new();
    (&mut file).take(LONGEST_HEADER).read_to_end(&mut header).map_err(ModelError::io("read", &path))?;
    let parsed = container::parse(&header, length)?;
    drop(header);
    let tensor = |name: &str| -> Result<Option<Tensor>, ModelError> {
        let Some((entry, range)) = parsed.tensors.get(name) else { return Ok(None) };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start).map_err(ModelError::io("read", &path))?;
        let shape: Vec<i64> = entry.shape.iter().map(|size| *size as i64).collect();
        numbers::decode(&bytes, &shape, entry.encoding).map(Some)
    };
    tensors::decoder(&parsed.keys, &tensor, config)
}

/// Returns what rounding to the base model's number formats, and from there to the file's, may do.
pub(super) fn tolerance(folder: &ModelFolder, gguf_type: GgufType) -> Tolerance {
    match gguf_type {
        GgufType::F32 => huggingface::tolerance(folder),
        GgufType::F16 | GgufType::Bf16 | GgufType::Auto => Tolerance::Rounded(2e-2),
        GgufType::Q8 => Tolerance::Rounded(2e-1),
    }
}

/// Returns the number format that is meant: for `auto` the narrowest that holds all of the base model's matrices.
fn resolve(asked: GgufType, folder: &ModelFolder) -> GgufType {
    let matrices = || folder.tensors().iter().filter(|spec| spec.shape.len() > 1);
    match asked {
        GgufType::Auto if matrices().all(|spec| spec.kind == Kind::BFloat16) => GgufType::Bf16,
        GgufType::Auto if matrices().all(|spec| spec.kind == Kind::Half) => GgufType::F16,
        GgufType::Auto => GgufType::F32,
        other => other,
    }
}

/// Returns how a tensor of `shape` is stored: vectors in f32, rows that 8-bit blocks do not fit in f16.
fn encoding(gguf_type: GgufType, shape: &[u64]) -> Encoding {
    if shape.len() < 2 {
        return Encoding::F32;
    }
    match gguf_type {
        GgufType::F32 | GgufType::Auto => Encoding::F32,
        GgufType::Bf16 => Encoding::Bf16,
        GgufType::Q8 if shape[1].is_multiple_of(Encoding::Q8_BLOCK as u64) => Encoding::Q8,
        GgufType::F16 | GgufType::Q8 => Encoding::F16,
    }
}
