//! Pruned states for tests that write models: units that stay, with weights changed as an update would.

use model::{LayerOverlay, ModelFolder, Overlay};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use types::{LayerId, UnitKind};

/// The consumer of a block's heads (`o`) or channels.
fn consumer(folder: &ModelFolder, block: usize, kind: UnitKind) -> LayerId {
    let layers = &folder.layers()[block];
    if kind == UnitKind::FfnChannel { layers.mlp.consumer().clone() } else { layers.o.clone() }
}

/// Adds kept units with new weights: the base model's, changed as an update would.
pub fn keep(overlay: &mut Overlay, folder: &ModelFolder, block: usize, kind: UnitKind, kept: &[u32]) {
    let layer = consumer(folder, block, kind);
    let config = folder.config();
    let size = match kind {
        UnitKind::FfnChannel => 1,
        UnitKind::KvGroup => config.head_dim * config.widths(block as u32).heads_per_group(),
        _ => config.head_dim,
    };
    let columns: Vec<i64> = kept.iter().flat_map(|u| i64::from(*u) * size..(i64::from(*u) + 1) * size).collect();
    let base = folder.tensor(&format!("{layer}.weight"), Kind::Float, Device::Cpu).unwrap();
    let weight = base.index_select(1, &Tensor::from_slice(&columns)) * 1.25 + 0.01;
    let bias = folder
        .shape(&format!("{layer}.bias"))
        .map(|_| folder.tensor(&format!("{layer}.bias"), Kind::Float, Device::Cpu).unwrap() - 0.125);
    let layer_overlay = LayerOverlay { kind, kept: kept.to_vec(), kept_rows: Vec::new(), weight: Some(weight), bias };
    overlay.layers.insert(layer, layer_overlay);
}

/// Returns a state in which every block keeps other units: the first loses FFN channels, the others a kv group as well,
/// where there is more than one.
pub fn uneven(folder: &ModelFolder) -> Overlay {
    let config = folder.config();
    let mut overlay = Overlay::default();
    for block in 0..config.blocks as usize {
        let widths = config.widths(block as u32);
        let channels: Vec<u32> = (0..widths.ffn as u32).filter(|at| at % 5 > block as u32 % 3).collect();
        keep(&mut overlay, folder, block, UnitKind::FfnChannel, &channels);
        if block > 0 && widths.kv_heads > 1 && config.rope.is_some() {
            keep(&mut overlay, folder, block, UnitKind::KvGroup, &[1]);
        }
    }
    overlay
}

/// Copies a model to `place` and gives it a byte-level tokenizer that fills its vocabulary, so that GGUF can be written.
pub fn with_tokenizer(base: &Path, place: &Path) -> ModelFolder {
    fs::create_dir_all(place).unwrap();
    for entry in fs::read_dir(base).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), place.join(entry.file_name())).unwrap();
    }
    let vocab = ModelFolder::open(place).unwrap().config().vocab;
    // Letters of the byte-level alphabet; more than there are stand for themselves twice.
    let alphabet = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń');
    let single: Vec<String> = alphabet.map(String::from).collect();
    let double = single.iter().map(|letter| letter.repeat(2));
    let tokens: Vec<String> = single.iter().cloned().chain(double).take(vocab as usize).collect();
    let vocabulary: serde_json::Map<String, Value> =
        (0..).zip(&tokens).map(|(id, token)| (token.clone(), json!(id))).collect();
    let merges: Vec<Value> =
        tokens.iter().skip(single.len()).map(|t| json!([t[..t.len() / 2], t[t.len() / 2..]])).collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level, "model": { "type": "BPE", "vocab": vocabulary, "merges": merges },
    });
    fs::write(place.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    ModelFolder::open(place).unwrap()
}
