//! Finds the files of a model folder and says what is wrong with a path that is none.

use crate::ModelError;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use types::ModelPlace;

const CONFIG: &str = "config.json";

/// A format of tensor files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Safetensors,
    PyTorch,
}

/// The names of weights, the preferred first: one file, or an index of several.
const NAMES: [(Format, &str, &str); 2] = [
    (Format::Safetensors, "model.safetensors", "model.safetensors.index.json"),
    (Format::PyTorch, "pytorch_model.bin", "pytorch_model.bin.index.json"),
];

fn not_a_model(path: &Path, reason: impl Into<String>) -> ModelError {
    ModelError::NotAModel { path: path.to_owned(), reason: reason.into() }
}

/// Returns the config file of the folder `path`.
pub(super) fn config(path: &Path) -> Result<PathBuf, ModelError> {
    match path.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(not_a_model(
                path,
                "there is nothing at this path (models are read from local folders, never downloaded)",
            ));
        }
        Err(e) => return Err(ModelError::Io { action: "read", path: path.to_owned(), source: e }),
        Ok(found) if !found.is_dir() => {
            return Err(not_a_model(path, "it is a file; name the folder that holds config.json and the weights"));
        }
        Ok(_) => {}
    }
    let config = path.join(CONFIG);
    if config.is_file() {
        return Ok(config);
    }
    let reason = if path.join("snapshots").is_dir() {
        "it is a hub cache; name one of the folders in 'snapshots'"
    } else if path.join("adapter_config.json").is_file() {
        "it holds a LoRA adapter; merge it into its base model first"
    } else {
        "it has no config.json; name a folder with config.json and model.safetensors or pytorch_model.bin"
    };
    Err(not_a_model(path, reason))
}

/// Returns the tensor files of a model, sorted by name, and their format: safetensors where there are both.
pub(super) fn tensor_files(place: &ModelPlace) -> Result<(Format, Vec<PathBuf>), ModelError> {
    let path = place.folder.as_path();
    for (format, single, index) in NAMES {
        let (single, index) = (path.join(single), path.join(index));
        let found = if is_there(place, &single) {
            vec![single]
        } else if index.is_file() {
            shards(place, &index)?
        } else {
            continue;
        };
        if format == Format::PyTorch && place.tensors.is_some() {
            let reason =
                "its weights are in pytorch_model.bin, which is read from a folder only; save them as safetensors";
            return Err(not_a_model(path, reason));
        }
        return Ok((format, found));
    }
    let names = NAMES.iter().flat_map(|(_, single, index)| [single, index]);
    let reason = if names.map(|name| path.join(name)).any(|file| file.is_symlink()) {
        "the link to its weights leads nowhere; fetch the model again"
    } else {
        "it has neither model.safetensors nor pytorch_model.bin, nor an index of either"
    };
    Err(not_a_model(path, reason))
}

/// Says whether a tensor file is where the model's are.
fn is_there(place: &ModelPlace, file: &Path) -> bool {
    match &place.tensors {
        None => file.is_file(),
        Some(files) => file.file_name().is_some_and(|name| files.size(&name.to_string_lossy()).is_some()),
    }
}

/// Returns the shards that an index names.
fn shards(place: &ModelPlace, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let broken = |reason: String| ModelError::TensorFile { file: index.display().to_string(), reason };
    let text = std::fs::read_to_string(index).map_err(ModelError::io("read", index))?;
    let json: Value = serde_json::from_str(&text).map_err(|e| broken(format!("is not valid JSON ({e})")))?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| broken("has no 'weight_map'".to_owned()))?;
    let mut names = BTreeSet::new();
    for (tensor, shard) in map {
        let name = shard.as_str().ok_or_else(|| broken(format!("names no shard for tensor '{tensor}'")))?;
        if Path::new(name).file_name().is_none_or(|file| file != name) {
            return Err(broken(format!("names the shard '{name}', which is not a plain file name")));
        }
        names.insert(name);
    }
    let files: Vec<PathBuf> = names.into_iter().map(|name| place.folder.join(name)).collect();
    match files.iter().find(|file| !is_there(place, file)) {
        Some(missing) => Err(broken(format!("names the shard {}, which is not there", missing.display()))),
        None if files.is_empty() => Err(broken("names no shards".to_owned())),
        None => Ok(files),
    }
}
