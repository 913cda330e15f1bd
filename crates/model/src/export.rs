//! Writing a pruned model for the runtimes that people use.
//!
//! Written beside its final place, read back from disk, compared with the model in memory, and only then renamed: a
//! folder with the final name is complete and right. Same input, same bytes. Does not decide what is removed.

mod card;
pub mod gguf;
pub mod huggingface;
mod masks;
mod staging;
mod writable;

pub use crate::compact::Breadth;
pub use staging::folder_digest;
pub use writable::{check_writable, refusal};

use crate::compact::{Compaction, differ};
use crate::{Decoder, ModelError, ModelFolder, Overlay};
use staging::Staging;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use types::{Format, GgufType, Pattern, RunReport};

/// The report for people: written after the folder has its name, and with times in it. No part of what a run gives.
pub const PAGE: &str = "report.html";

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// How wide blocks are that kept different numbers of units.
    pub breadth: Breadth,
    /// For which runtimes.
    pub format: Format,
    /// Number format of the matrices in a GGUF file.
    pub gguf_type: GgufType,
    /// The pattern that every window must have, where it was asked for in full.
    pub pattern: Option<Pattern>,
    /// Largest size of a safetensors file, in bytes, unless a single tensor is larger.
    pub shard_bytes: u64,
}

impl WriteOptions {
    /// Files of at most 5 GB, as the hub wants them.
    pub const SHARD_BYTES: u64 = 5_000_000_000;

    /// Returns the options for a Hugging Face folder.
    pub fn huggingface(breadth: Breadth) -> Self {
        Self { breadth, format: Format::Hf, gguf_type: GgufType::Auto, pattern: None, shard_bytes: Self::SHARD_BYTES }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// BLAKE3 over the names and contents of all files, by name; see [`folder_digest`].
    pub blake3: String,
    /// Bytes of all files.
    pub bytes: u64,
    /// Largest absolute difference between the logits of what was written and of the model in memory.
    pub logit_difference: f64,
    /// Whether narrower blocks were padded with dead units.
    pub padded: bool,
}

/// Writes `folder` as pruned by `overlay` to `output`, with `report_json` beside it.
///
/// `check_ids` are the tokens on which what was written must compute the logits of the model in memory: within 1e-4 of
/// their scale if all tensors are stored in f32, within 2e-2 in 16 bits and 2e-1 in 8; both sides computed in f32.
///
/// An `output` with exactly the bytes that would be written is a success: a write that was repeated.
///
/// # Errors
/// [`ModelError::OutputExists`]; [`ModelError::Unsupported`] if no runtime would load the result; [`ModelError::Unfaithful`];
/// [`ModelError::Io`], where [`ModelError::is_storage_full`] tells a full disk. Nothing is left behind.
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
    let compaction = Compaction::new(folder, overlay, options.breadth)?;
    let places = compaction.places(folder.config());
    if let Some(reason) = refusal(folder.config(), options.format, differ(&places)) {
        return Err(ModelError::Unsupported { path: output.to_owned(), reason });
    }
    let expected = {
        // One block at a time: the whole model in f32 may be more than there is memory.
        let again = ModelFolder::open_at(folder.place().clone())?;
        let in_memory = Decoder::stream(again, overlay.shallow_clone(), Kind::Float, Device::Cpu)?;
        Expected { check_ids, logits_tv: logits(&in_memory, check_ids)?, output }
    };
    let staging = Staging::begin(output)?;
    staging.write(RunReport::FILE, report_json.as_bytes())?;
    staging.write("README.md", card::text(folder, &places, options.format).as_bytes())?;
    let mut logit_difference: f64 = 0.0;
    let mut check = |written: &Decoder, tolerance| {
        logit_difference = logit_difference.max(expected.compare(written, tolerance)?);
        if compaction.keeps_shapes() {
            staging.write(masks::FILE, masks::report(folder, written, options.pattern)?.as_bytes())?;
        }
        Ok::<_, ModelError>(())
    };
    if options.format.has_gguf() {
        let kind = gguf::fill(folder, &compaction, options.gguf_type, &staging)?;
        check(&gguf::read_back(&staging, folder.config())?, gguf::tolerance(folder, kind))?;
    }
    if options.format.has_hf() {
        huggingface::fill(folder, &compaction, options.shard_bytes, &staging)?;
        check(&huggingface::read_back(&staging)?, huggingface::tolerance(folder))?;
    } else {
        huggingface::copy_licences(folder, &staging)?;
    }
    let (blake3, bytes) = staging.publish()?;
    tracing::info!(output = %output.display(), bytes, logit_difference, "model written");
    Ok(Written { blake3, bytes, logit_difference, padded: compaction.padded() })
}

/// Refuses an output that cannot be the result of the same run, before anything expensive is done.
fn refuse_foreign(output: &Path, report_json: &str) -> Result<(), ModelError> {
    let exists = output.symlink_metadata().is_ok();
    let repeated = || std::fs::read(output.join(RunReport::FILE)).is_ok_and(|bytes| bytes == report_json.as_bytes());
    if exists && !repeated() {
        return Err(ModelError::OutputExists { path: output.to_owned() });
    }
    Ok(())
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

/// How far logits may be from those of the model in memory.
#[derive(Debug, Clone, Copy)]
enum Tolerance {
    /// This much, and this much times their scale where that is above 1.
    Exact(f64),
    /// This much times their scale.
    Rounded(f64),
}

/// What a written model must compute.
struct Expected<'a> {
    check_ids: &'a [i64],
    logits_tv: Tensor,
    output: &'a Path,
}

impl Expected<'_> {
    /// Returns by how much the logits of `written` differ.
    fn compare(&self, written: &Decoder, tolerance: Tolerance) -> Result<f64, ModelError> {
        let found_tv = logits(written, self.check_ids)?;
        let difference = found_tv.f_sub(&self.logits_tv)?.f_abs()?.f_max()?.f_double_value(&[])?;
        let scale = self.logits_tv.f_abs()?.f_max()?.f_double_value(&[])?;
        let allowed = match tolerance {
            Tolerance::Exact(share) => share * scale.max(1.0),
            Tolerance::Rounded(share) => share * scale,
        };
        // Not `>`: a NaN must not pass.
        if difference <= allowed && scale.is_finite() {
            return Ok(difference);
        }
        Err(ModelError::Unfaithful { path: self.output.to_owned(), difference, allowed })
    }
}
