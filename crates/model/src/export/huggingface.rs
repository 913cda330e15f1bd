//! A Hugging Face folder of the pruned model, that stock transformers loads.
//!
//! Written beside its final place, read back from disk, compared with the model in memory, and only then renamed: a
//! folder with the final name is complete and right. Same input, same bytes. Does not decide what is removed.

mod card;
mod config;
mod staging;
mod weights;

pub use staging::folder_digest;

use crate::compact::Compaction;
use crate::{Decoder, ModelError, ModelFolder, Overlay};
use staging::Staging;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Files that go along unchanged if the base model has them.
const COMPANIONS: [&str; 13] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "USE_POLICY.md",
    "Notice.txt",
];

/// What the names of licence files begin with, whatever their ending.
const LICENCES: [&str; 3] = ["LICENSE", "LICENCE", "NOTICE"];

/// The report of the run, beside the weights.
const REPORT: &str = "pruning_report.json";

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// Where blocks differ in FFN width, the common width is rounded up to a multiple of this.
    pub multiple_of: u32,
    /// Largest size of a tensor file, in bytes, unless a single tensor is larger.
    pub shard_bytes: u64,
}

impl WriteOptions {
    /// Files of at most 5 GB, as the hub wants them.
    pub const SHARD_BYTES: u64 = 5_000_000_000;
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// BLAKE3 over the names and contents of all files, by name; see [`folder_digest`].
    pub blake3: String,
    /// Bytes of all files.
    pub bytes: u64,
    /// Largest absolute difference between the logits of the folder and of the model in memory.
    pub logit_difference: f64,
    /// Whether narrower blocks were padded with dead units to the width of the widest.
    pub padded: bool,
}

/// Writes `folder` as pruned by `overlay` to `output`, with `report_json` beside it.
///
/// `check_ids` are the tokens on which the written model must compute the logits of the one in memory: within 1e-4 of
/// their scale if all tensors are stored in f32, otherwise within 2e-2; both sides computed in f32.
///
/// An `output` with exactly the bytes that would be written is a success: a write that was repeated.
///
/// # Errors
/// [`ModelError::OutputExists`]; [`ModelError::Unsupported`] if transformers has no class for the result;
/// [`ModelError::Unfaithful`]; [`ModelError::Io`], where [`ModelError::is_storage_full`] tells a full disk. Nothing is
/// left behind.
pub fn write(
    folder: &ModelFolder,
    overlay: &Overlay,
    options: WriteOptions,
    report_json: &str,
    output: &Path,
    check_ids: &[i64],
) -> Result<Written, ModelError> {
    let _guard = tch::no_grad_guard();
    refuse_foreign(output, report_json)?;
    let compaction = Compaction::new(folder, overlay, i64::from(options.multiple_of))?;
    let config = config::changed(folder, compaction.widths())?;
    let in_memory = Decoder::load(folder, overlay, Kind::Float, Device::Cpu)?;
    let expected_tv = logits(&in_memory, check_ids)?;
    drop(in_memory);

    let staging = Staging::begin(output)?;
    staging.write("config.json", config.as_bytes())?;
    staging.write(REPORT, report_json.as_bytes())?;
    staging.write("README.md", card::text(folder).as_bytes())?;
    for name in companions(folder.path())? {
        staging.copy(&folder.path().join(&name), &name)?;
    }
    weights::write(folder, &compaction, options.shard_bytes, &staging)?;
    let logit_difference = verify(folder, &staging, &expected_tv, check_ids, output)?;
    let (blake3, bytes) = staging.publish()?;
    tracing::info!(output = %output.display(), bytes, logit_difference, "model written");
    Ok(Written { blake3, bytes, logit_difference, padded: compaction.padded() })
}

/// Refuses an output that cannot be the result of the same run, before anything expensive is done.
fn refuse_foreign(output: &Path, report_json: &str) -> Result<(), ModelError> {
    let exists = output.symlink_metadata().is_ok();
    let repeated = || std::fs::read(output.join(REPORT)).is_ok_and(|bytes| bytes == report_json.as_bytes());
    if exists && !repeated() {
        return Err(ModelError::OutputExists { path: output.to_owned() });
    }
    Ok(())
}

/// Returns the names of the files in `folder` that go along, in order.
fn companions(folder: &Path) -> Result<Vec<String>, ModelError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(ModelError::io("read", folder))? {
        let entry = entry.map_err(ModelError::io("read", folder))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let wanted = COMPANIONS.contains(&name.as_str()) || LICENCES.iter().any(|start| name.starts_with(start));
        if wanted && entry.path().is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Returns the logits of one sample, [t, v].
fn logits(decoder: &Decoder, ids: &[i64]) -> Result<Tensor, ModelError> {
    if ids.is_empty() {
        return Err(ModelError::Shape {
            what: "tokens to check",
            expected: "[t], at least 1".to_owned(),
            found: vec![0],
        });
    }
    let ids_bt = Tensor::f_from_slice(ids)?.f_unsqueeze(0)?;
    Ok(decoder.forward_logits(&ids_bt)?.f_squeeze_dim(0)?)
}

/// Reads the staged folder back and returns by how much its logits differ from `expected_tv`.
fn verify(
    folder: &ModelFolder,
    staging: &Staging,
    expected_tv: &Tensor,
    check_ids: &[i64],
    output: &Path,
) -> Result<f64, ModelError> {
    let written = Decoder::load(&ModelFolder::open(staging.path())?, &Overlay::default(), Kind::Float, Device::Cpu)?;
    let difference = logits(&written, check_ids)?.f_sub(expected_tv)?.f_abs()?.f_max()?.f_double_value(&[])?;
    let scale = expected_tv.f_abs()?.f_max()?.f_double_value(&[])?;
    let exact = folder.tensors().iter().all(|spec| spec.kind == Kind::Float);
    let allowed = if exact { 1e-4 * scale.max(1.0) } else { 2e-2 * scale };
    // Not `>`: a NaN must not pass.
    if difference <= allowed && scale.is_finite() {
        return Ok(difference);
    }
    Err(ModelError::Unfaithful { path: output.to_owned(), difference, allowed })
}
