//! A Hugging Face folder of the pruned model, that transformers loads.

mod config;
mod per_block;
mod weights;

pub use per_block::FILE as CODE_FILE;

use super::Tolerance;
use super::staging::Staging;
use crate::compact::Compaction;
use crate::{Decoder, ModelError, ModelFolder, Overlay};
use std::path::Path;
use tch::{Device, Kind};

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

/// Writes config, tensors and what goes along with them.
pub(super) fn fill(
    folder: &ModelFolder,
    compaction: &Compaction,
    shard_bytes: u64,
    staging: &Staging,
) -> Result<(), ModelError> {
    let config = config::changed(folder, compaction)?;
    staging.write("config.json", config.text.as_bytes())?;
    if let Some(code) = &config.code {
        staging.write(per_block::FILE, code.as_bytes())?;
    }
    copy(folder, staging, |name| COMPANIONS.contains(&name))?;
    copy_licences(folder, staging)?;
    weights::write(folder, compaction, shard_bytes, staging)
}

/// Copies the base model's licences.
pub(super) fn copy_licences(folder: &ModelFolder, staging: &Staging) -> Result<(), ModelError> {
    copy(folder, staging, |name| LICENCES.iter().any(|start| name.starts_with(start)))
}

/// Returns the model as the folder that was just filled says it.
pub(super) fn read_back(staging: &Staging) -> Result<Decoder, ModelError> {
    Decoder::stream(ModelFolder::open(staging.path())?, Overlay::default(), Kind::Float, Device::Cpu)
}

/// Returns what rounding to the base model's number formats may do.
pub(super) fn tolerance(folder: &ModelFolder) -> Tolerance {
    let exact = folder.tensors().iter().all(|spec| spec.kind == Kind::Float);
    if exact { Tolerance::Exact(1e-4) } else { Tolerance::Rounded(2e-2) }
}

/// Copies the files of the base model that are `wanted`, in order.
fn copy(folder: &ModelFolder, staging: &Staging, wanted: impl Fn(&str) -> bool) -> Result<(), ModelError> {
    for name in files(folder.path())?.iter().filter(|name| wanted(name)) {
        staging.copy(&folder.path().join(name), name)?;
    }
    Ok(())
}

/// Returns the names of the files in `folder`, in order.
fn files(folder: &Path) -> Result<Vec<String>, ModelError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(ModelError::io("read", folder))? {
        let entry = entry.map_err(ModelError::io("read", folder))?;
        if let Ok(name) = entry.file_name().into_string()
            && entry.path().is_file()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
