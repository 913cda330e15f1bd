//! Model folders: config, index and safetensors headers that need not fit each other. What opens can be read to the end.
//!
//! An input is text in parts, with a NUL between them: config.json, the index (or nothing), and the header of each shard. The
//! target adds the header's length and as many bytes of data as the header speaks of, so that no mutation is spent on weights.

#![no_main]

use fuzz::{Scratch, example, plant};
use libfuzzer_sys::fuzz_target;
use model::{ModelFolder, units};
use serde_json::{Map, Value, json};
use std::path::Path;
use tch::{Device, Kind};
use types::{AttentionUnit, Sizes, Structure};

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["a.safetensors", "b.safetensors"];
/// Bytes of data that a header is given at most.
const MOST_DATA: u64 = 1 << 20;

fuzz_target!(init: plant(seeds), |input: &[u8]| {
    let mut parts = input.split(|byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let scratch = Scratch::new();
    scratch.write("config.json", part());
    let index = part();
    if index.is_empty() {
        scratch.write("model.safetensors", &with_data(part()));
    } else {
        scratch.write(INDEX, index);
        SHARDS.iter().for_each(|name| drop(scratch.write(name, &with_data(part()))));
    }
    check(scratch.path());
});

/// Opens a folder, and reads all of one that opens.
fn check(path: &Path) {
    let Ok(folder) = ModelFolder::open(path) else { return };
    let mut sizes = Sizes::default();
    for spec in folder.tensors() {
        let tensor = folder.tensor(&spec.name, Kind::Float, Device::Cpu).expect("a model that opens can be read");
        assert_eq!(tensor.size(), spec.shape, "{}", spec.name);
        let parameters = tensor.numel() as u64;
        sizes += Sizes { prunable: 0, parameters, bytes: parameters * spec.kind.elt_size_in_bytes() as u64 };
    }
    let found = folder.sizes();
    assert_eq!((found.parameters, found.bytes), (sizes.parameters, sizes.bytes));
    for structure in Structure::ALL {
        for unit in AttentionUnit::ALL {
            let description = units::describe(&folder, *structure, *unit).expect("a model that opens can be described");
            assert_eq!(description.dense, found);
            assert!(description.smallest(64).prunable <= found.prunable);
        }
    }
}

/// Returns the file of a header: its length, itself, and zeros up to where its last tensor is said to end.
fn with_data(header: &[u8]) -> Vec<u8> {
    let entries: Map<String, Value> = serde_json::from_slice(header).unwrap_or_default();
    let end = entries.values().filter_map(|entry| entry.get("data_offsets")?.get(1)?.as_u64()).max().unwrap_or(0);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.resize(file.len() + end.min(MOST_DATA) as usize, 0);
    file
}

fn seeds() -> Vec<Vec<u8>> {
    let one = |folder: &str| {
        let config = example(&format!("{folder}/config.json"));
        let header = header(&example(&format!("{folder}/model.safetensors")));
        [config, Vec::new(), header].join(&0)
    };
    let golden = ["llama-bias", "llama-gqa", "llama-tied-llama3", "mistral", "opt", "qwen2"];
    let mut all: Vec<_> = golden.iter().map(|name| one(&format!("golden/{name}"))).collect();
    all.push(one("pytorch_bin/plain"));
    all.push(in_shards("pytorch_bin/plain"));
    all
}

fn header(file: &[u8]) -> Vec<u8> {
    let (length, rest) = file.split_first_chunk().expect("an example is a safetensors file");
    rest[..u64::from_le_bytes(*length) as usize].to_vec()
}

/// Returns a folder's input with its tensors in turns in one and in the other of two shards.
fn in_shards(folder: &str) -> Vec<u8> {
    let whole = header(&example(&format!("{folder}/model.safetensors")));
    let whole: Map<String, Value> = serde_json::from_slice(&whole).expect("an example's header is JSON");
    let mut headers = [Map::new(), Map::new()];
    let mut ends = [0, 0];
    let mut index = Map::new();
    for (number, (name, entry)) in whole.iter().filter(|(name, _)| *name != "__metadata__").enumerate() {
        let shard = number % 2;
        let at = |n: usize| entry["data_offsets"][n].as_u64().expect("an example's offsets are numbers");
        let (from, to) = (ends[shard], ends[shard] + at(1) - at(0));
        let moved = json!({"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [from, to]});
        headers[shard].insert(name.clone(), moved);
        ends[shard] = to;
        index.insert(name.clone(), SHARDS[shard].into());
    }
    let index = json!({"metadata": {"total_size": ends[0] + ends[1]}, "weight_map": index});
    let [a, b] = headers.map(|header| Value::Object(header).to_string());
    let config = example(&format!("{folder}/config.json"));
    [config, index.to_string().into(), a.into(), b.into()].join(&0)
}
