//! Blocks with widths of their own, blocks that are left out, and GGUF: what is written computes what the pruned model does.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use common::pruned::{keep, uneven, with_tokenizer};
use common::{Copy, golden};
use model::export::{self, Breadth, WriteOptions, Written, check_writable, refusal};
use model::{BlockWidths, Decoder, LayerOverlay, ModelConfig, ModelError, ModelFolder, Overlay};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use types::{Format, GgufType, RunSpec, Shape, Target, UnitKind};

const IDS: [i64; 12] = [7, 90, 3, 3, 41, 8, 66, 12, 95, 4, 5, 30];

fn open(name: &str) -> ModelFolder {
    ModelFolder::open(&golden(name)).unwrap()
}

fn logits(folder: &ModelFolder, overlay: &Overlay) -> Tensor {
    let ids = Tensor::from_slice(&IDS).unsqueeze(0);
    Decoder::load(folder, overlay, Kind::Float, Device::Cpu).unwrap().forward_logits(&ids).unwrap()
}

fn write(
    folder: &ModelFolder,
    overlay: &Overlay,
    breadth: Breadth,
    (format, gguf_type): (Format, GgufType),
    output: &Path,
) -> Result<Written, ModelError> {
    let options = WriteOptions { format, gguf_type, ..WriteOptions::huggingface(breadth) };
    export::write(folder, overlay, options, "{}", output, &IDS)
}

/// Writes a Hugging Face folder with own widths and returns it, compared with the pruned model from outside.
fn own(folder: &ModelFolder, overlay: &Overlay, output: &Path) -> (ModelFolder, Written) {
    let written = write(folder, overlay, Breadth::Own, (Format::Hf, GgufType::Auto), output).unwrap();
    let (expected, out) = (logits(folder, overlay), ModelFolder::open(output).unwrap());
    let difference = (logits(&out, &Overlay::default()) - &expected).abs().max().double_value(&[]);
    let exact = folder.tensors().iter().all(|t| t.kind == Kind::Float);
    assert!(difference <= if exact { 1e-5 } else { 2e-2 } * expected.abs().max().double_value(&[]), "{difference}");
    (out, written)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn blocks_keep_widths_of_their_own_in_every_family() {
    for name in common::ALL {
        let folder = open(name);
        let overlay = uneven(&folder);
        let place = tempfile::tempdir().unwrap();
        let (out, written) = own(&folder, &overlay, &place.path().join("out"));
        assert!(!written.padded, "{name}");
        let padded = place.path().join("padded");
        let breadth = Breadth::Common { multiple_of: 1 };
        assert!(write(&folder, &overlay, breadth, (Format::Hf, GgufType::Auto), &padded).unwrap().padded, "{name}");
        let smaller = out.sizes().parameters < ModelFolder::open(&padded).unwrap().sizes().parameters;
        assert!(smaller, "{name}");
        let code = fs::read_to_string(out.path().join("modeling_per_layer.py")).unwrap();
        let config = json_of(&out.path().join("config.json"));
        let class = config["architectures"][0].as_str().unwrap();
        assert!(code.contains(&format!("class {class}(")), "{name}: {class}");
        assert_eq!(config["auto_map"]["AutoModelForCausalLM"], json!(format!("modeling_per_layer.{class}")));
        assert!(!padded.join("modeling_per_layer.py").exists(), "{name}");
    }
}

#[test]
fn a_config_names_only_what_differs_from_the_widest() {
    let folder = open("llama-gqa");
    let mut overlay = Overlay::default();
    keep(&mut overlay, &folder, 1, UnitKind::KvGroup, &[1]);
    keep(&mut overlay, &folder, 1, UnitKind::FfnChannel, &[4, 5, 6]);
    let place = tempfile::tempdir().unwrap();
    let (out, _) = own(&folder, &overlay, &place.path().join("out"));
    let config = json_of(&out.path().join("config.json"));
    let block = json!({ "intermediate_size": 3, "num_attention_heads": 2, "num_key_value_heads": 1 });
    assert_eq!(config["per_layer_config"], json!({ "1": block }));
    assert_eq!(config["model_type"], json!("mistral"));
    assert_eq!(out.config().widths(1), BlockWidths { heads: 2, kv_heads: 1, ffn: 3 });
    assert_eq!(out.config().widths(0), folder.config().widths(0));
}

#[test]
fn a_model_with_own_widths_can_be_pruned_again_and_made_equal() {
    let folder = open("qwen2");
    let place = tempfile::tempdir().unwrap();
    let (first, _) = own(&folder, &uneven(&folder), &place.path().join("first"));
    let again = uneven(&first);
    let (second, _) = own(&first, &again, &place.path().join("second"));
    assert!(second.sizes().parameters < first.sizes().parameters);
    let mut equal = Overlay::default();
    for block in 0..first.config().blocks as usize {
        keep(&mut equal, &first, block, UnitKind::FfnChannel, &[0, 1, 2, 3]);
        keep(&mut equal, &first, block, UnitKind::KvGroup, &[0]);
    }
    let (third, _) = own(&first, &equal, &place.path().join("third"));
    let config = json_of(&third.path().join("config.json"));
    assert!(config.get("per_layer_config").is_none() && config.get("auto_map").is_none(), "{config}");
    assert_eq!(config["architectures"], json!(["Qwen2ForCausalLM"]));
}

/// An overlay in which a block has lost all its units.
fn without_block(folder: &ModelFolder, block: usize) -> Overlay {
    let layers = &folder.layers()[block];
    let gone = |kind| LayerOverlay { kind, kept: Vec::new(), kept_rows: Vec::new(), weight: None, bias: None };
    let mut overlay = Overlay::default();
    for (layer, kind) in [(&layers.o, UnitKind::KvGroup), (layers.mlp.consumer(), UnitKind::FfnChannel)] {
        let rows = folder.shape(&format!("{layer}.weight")).unwrap()[0];
        let weight = Some(Tensor::zeros([rows, 0], (Kind::Float, Device::Cpu)));
        overlay.layers.insert(layer.clone(), LayerOverlay { weight, ..gone(kind) });
    }
    overlay
}

#[test]
fn a_block_that_lost_everything_is_left_out_and_lists_with_it() {
    let copy = Copy::of("qwen3");
    let mut blocks = 0;
    copy.config(|config| {
        blocks = config["num_hidden_layers"].as_u64().unwrap();
        let types = (0..blocks).map(|_| json!("full_attention")).collect();
        config.insert("layer_types".to_owned(), types);
    });
    let (folder, place) = (ModelFolder::open(copy.path()).unwrap(), tempfile::tempdir().unwrap());
    let mut overlay = without_block(&folder, 1);
    keep(&mut overlay, &folder, 2, UnitKind::FfnChannel, &[1, 2, 3]);
    for breadth in [Breadth::Own, Breadth::Common { multiple_of: 1 }] {
        let output = place.path().join(format!("{breadth:?}").replace(' ', ""));
        let format = (Format::Hf, GgufType::Auto);
        write(&folder, &overlay, breadth, format, &output).unwrap();
        let out = ModelFolder::open(&output).unwrap();
        assert_eq!(u64::from(out.config().blocks), blocks - 1);
        let config = json_of(&output.join("config.json"));
        assert_eq!(config["layer_types"].as_array().unwrap().len() as u64, blocks - 1);
        let difference = (logits(&out, &Overlay::default()) - logits(&folder, &overlay)).abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{difference}");
    }
}

#[test]
fn gguf_holds_the_model_in_every_type_and_shape_that_llama_cpp_has() {
    let place = tempfile::tempdir().unwrap();
    for name in ["llama-gqa", "llama-tied-llama3", "mistral", "qwen2", "qwen3", "llama-bias"] {
        let folder = with_tokenizer(&golden(name), &place.path().join(name));
        let overlay = uneven(&folder);
        for (breadth, own) in [(Breadth::Common { multiple_of: 8 }, false), (Breadth::Own, true)] {
            if refusal(folder.config(), Format::Gguf, own).is_some() {
                assert!(own && ["qwen3", "llama-bias"].contains(&name), "{name}");
                continue;
            }
            for gguf_type in GgufType::ALL {
                let output = place.path().join(format!("{name}-{own}-{gguf_type}"));
                let written = write(&folder, &overlay, breadth, (Format::Gguf, *gguf_type), &output).unwrap();
                assert!(written.logit_difference.is_finite());
                let bytes = fs::read(output.join("model.gguf")).unwrap();
                let architecture = if own { "deci" } else { name.split('-').next().unwrap() };
                let architecture = if architecture == "mistral" { "llama" } else { architecture };
                let key = format!("{architecture}.block_count");
                assert!(bytes.windows(key.len()).any(|window| window == key.as_bytes()), "{name}: {key}");
                assert!(!output.join("config.json").exists());
            }
        }
    }
}

#[test]
fn both_formats_lie_in_one_folder_and_the_same_input_gives_the_same_bytes() {
    let place = tempfile::tempdir().unwrap();
    let folder = with_tokenizer(&golden("mistral"), &place.path().join("base"));
    let overlay = uneven(&folder);
    let write = |name: &str| {
        write(&folder, &overlay, Breadth::Own, (Format::Both, GgufType::F16), &place.path().join(name)).unwrap()
    };
    assert_eq!(write("one").blake3, write("two").blake3);
    for file in ["config.json", "model.safetensors", "model.gguf", "tokenizer.json", "pruning_report.json"] {
        assert!(place.path().join("one").join(file).exists(), "{file}");
    }
}

#[test]
fn what_would_not_load_is_refused_with_the_nearest_choice() {
    let spec = |shape, format| RunSpec { shape, format, ..RunSpec::new("m", "d", "o", Target::Size(0.8)) };
    let reason = |folder: &ModelFolder, spec: &RunSpec| check_writable(folder, spec).unwrap_err().to_string();
    let opt = reason(&open("opt"), &spec(Shape::Uniform, Format::Gguf));
    assert!(opt.contains("OPT") && opt.contains("--format hf"), "{opt}");
    let qwen3 = reason(&open("qwen3"), &spec(Shape::PerLayer, Format::Both));
    assert!(qwen3.contains("--shape uniform"), "{qwen3}");
    assert!(check_writable(&open("qwen3"), &spec(Shape::PerLayer, Format::Hf)).is_ok());
    let no_tokenizer = reason(&open("mistral"), &spec(Shape::Uniform, Format::Gguf));
    assert!(no_tokenizer.contains("tokenizer.json"), "{no_tokenizer}");
}

#[test]
fn widths_of_single_blocks_that_cannot_be_right_are_refused() {
    let base = json_of(&golden("llama-gqa").join("config.json"));
    let read = |value: Value| {
        let mut config = base.clone();
        config["per_layer_config"] = value;
        ModelConfig::from_json(&config, Path::new("config.json")).map_err(|e| e.to_string())
    };
    let good = read(json!({ "01": { "intermediate_size": 7 } })).unwrap();
    assert_eq!((good.widths(1).ffn, good.widths(0).ffn), (7, base["intermediate_size"].as_i64().unwrap()));
    for (bad, word) in [
        (json!({ "9": {} }), "'9'"),
        (json!({ "x": {} }), "'x'"),
        (json!({ "1": { "head_dim": 4 } }), "head_dim"),
        (json!({ "1": { "intermediate_size": 0 } }), "block 1"),
        (json!({ "1": { "num_attention_heads": 3, "num_key_value_heads": 2 } }), "block 1"),
        (json!({ "1": 4 }), "'1'"),
        (json!([1]), "per_layer_config"),
    ] {
        let error = read(bad.clone()).unwrap_err();
        assert!(error.contains(word), "{bad}: {error}");
    }
}
