//! Golden models and copies of them to damage.

#![allow(dead_code, unreachable_pub, missing_docs)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

pub mod pruned;

use model::tensor_file;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};
use tempfile::TempDir;

pub const ALL: [&str; 7] = ["llama-gqa", "llama-tied-llama3", "llama-bias", "mistral", "qwen2", "qwen3", "opt"];

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden").join(name)
}

/// Returns the tensors of a safetensors file.
pub fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let (tensors, _) = tensor_file::decode(&fs::read(path).unwrap(), Device::Cpu).unwrap();
    tensors.into_iter().collect()
}

/// A golden model in a folder of its own, free to be changed.
pub struct Copy {
    folder: TempDir,
}

impl Copy {
    pub fn of(name: &str) -> Self {
        let folder = TempDir::new().unwrap();
        for entry in fs::read_dir(golden(name)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Changes config.json.
    pub fn config(&self, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
        let path = self.file("config.json");
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(json.as_object_mut().unwrap());
        fs::write(path, json.to_string()).unwrap();
    }

    /// Changes model.safetensors.
    pub fn weights(&self, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        let path = self.file("model.safetensors");
        let mut all = tensors(&path);
        change(&mut all);
        let all: Vec<_> = all.into_iter().collect();
        fs::write(path, tensor_file::encode(&all, &BTreeMap::new()).unwrap()).unwrap();
    }
}
