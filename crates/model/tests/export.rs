//! Written folders compute what the pruned model in memory computes, and are either complete or not there.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use common::golden;
use common::pruned::keep;
use model::export::{self, Breadth, WriteOptions, Written, folder_digest};
use model::{Decoder, LayerOverlay, ModelError, ModelFolder, Overlay, tensor_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use types::{Format, GgufType, UnitKind};

const IDS: [i64; 12] = [7, 90, 3, 3, 41, 8, 66, 12, 95, 4, 5, 30];
const OPTIONS: WriteOptions = WriteOptions {
    breadth: Breadth::Common { multiple_of: 8 },
    format: Format::Hf,
    gguf_type: GgufType::Auto,
    pattern: None,
    shard_bytes: WriteOptions::SHARD_BYTES,
};

fn open(name: &str) -> ModelFolder {
    ModelFolder::open(&golden(name)).unwrap()
}

fn write(folder: &ModelFolder, overlay: &Overlay, output: &Path) -> Result<Written, ModelError> {
    export::write(folder, overlay, OPTIONS, "{\"format\": 1}\n", output, &IDS)
}

/// Writes, and checks from outside that the folder computes what the overlay does.
fn round_trip(folder: &ModelFolder, overlay: &Overlay) -> (TempDir, PathBuf, Written) {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("out");
    let written = write(folder, overlay, &output).unwrap();
    let ids = Tensor::from_slice(&IDS).unsqueeze(0);
    let logits = |folder: &ModelFolder, overlay: &Overlay| {
        Decoder::load(folder, overlay, Kind::Float, Device::Cpu).unwrap().forward_logits(&ids).unwrap()
    };
    let expected = logits(folder, overlay);
    let found = logits(&ModelFolder::open(&output).unwrap(), &Overlay::default());
    let difference = (found - &expected).abs().max().double_value(&[]);
    let exact = folder.tensors().iter().all(|t| t.kind == Kind::Float);
    assert!(difference <= if exact { 1e-5 } else { 2e-2 } * expected.abs().max().double_value(&[]), "{difference}");
    let (base, change) = (logits(folder, &Overlay::default()), 1e-2);
    assert!((base - expected).abs().max().double_value(&[]) > change, "the overlay changes nothing");
    assert_eq!(folder_digest(&output).unwrap(), (written.blake3.clone(), written.bytes));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "something was left beside the output");
    (place, output, written)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Returns the config but for some keys.
fn without(config: &Value, keys: &[&str]) -> Value {
    let mut config = config.clone();
    for key in keys {
        config.as_object_mut().unwrap().remove(*key);
    }
    config
}

#[test]
fn equal_widths_are_written_compact() {
    let folder = open("llama-gqa");
    let mut overlay = Overlay::default();
    for (block, group) in [(0, 1), (1, 0)] {
        keep(&mut overlay, &folder, block, UnitKind::KvGroup, &[group]);
        keep(&mut overlay, &folder, block, UnitKind::FfnChannel, &[0, 3, 4, 9, 31]);
    }
    let (_place, output, written) = round_trip(&folder, &overlay);
    assert!(!written.padded);
    let (config, base) = (json_of(&output.join("config.json")), &folder.config().raw);
    let changed = ["intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"];
    assert_eq!(changed.map(|key| config[key].clone()), [json!(5), json!(2), json!(1), json!(6)]);
    // What transformers 5 calls rope_parameters is said in earlier words, too.
    assert_eq!(config["rope_theta"], base["rope_parameters"]["rope_theta"]);
    let besides = [changed.as_slice(), &["rope_theta"]].concat();
    assert_eq!(without(&config, &besides), without(base, &besides));
    let head = fs::read(output.join("model.safetensors")).unwrap();
    assert_eq!(
        tensor_file::decode(&head, Device::Cpu).unwrap().1,
        BTreeMap::from([("format".to_owned(), "pt".to_owned())])
    );
}

#[test]
fn different_widths_are_padded_to_the_widest_block() {
    let folder = open("llama-gqa");
    let mut overlay = Overlay::default();
    keep(&mut overlay, &folder, 0, UnitKind::KvGroup, &[1]);
    keep(&mut overlay, &folder, 0, UnitKind::FfnChannel, &[2, 3, 5, 7, 11, 13, 17, 19, 23]);
    keep(&mut overlay, &folder, 1, UnitKind::FfnChannel, &[1, 30]);
    let (_place, output, written) = round_trip(&folder, &overlay);
    assert!(written.padded);
    let out = ModelFolder::open(&output).unwrap();
    assert_eq!((out.config().heads, out.config().kv_heads, out.config().ffn), (4, 2, 16));
    let read = |name: &str| out.tensor(name, Kind::Float, Device::Cpu).unwrap();
    for (name, dim, live) in [
        ("model.layers.0.self_attn.q_proj.weight", 0, 12),
        ("model.layers.0.self_attn.k_proj.weight", 0, 6),
        ("model.layers.0.self_attn.v_proj.weight", 0, 6),
        ("model.layers.0.self_attn.o_proj.weight", 1, 12),
        ("model.layers.0.mlp.gate_proj.weight", 0, 9),
        ("model.layers.1.mlp.up_proj.weight", 0, 2),
        ("model.layers.1.mlp.down_proj.weight", 1, 2),
    ] {
        let tensor = read(name);
        let dead = tensor.narrow(dim, live, tensor.size()[dim as usize] - live);
        assert!(dead.numel() > 0 && dead.abs().max().double_value(&[]) == 0.0, "{name}");
        assert!(tensor.narrow(dim, 0, live).abs().min().double_value(&[]) > 0.0, "{name}");
    }
}

#[test]
fn query_heads_are_padded_within_their_groups() {
    let folder = open("qwen3");
    let mut overlay = Overlay::default();
    keep(&mut overlay, &folder, 0, UnitKind::QueryHead, &[1, 2]);
    let (_place, output, written) = round_trip(&folder, &overlay);
    assert!(written.padded);
    let q = ModelFolder::open(&output)
        .unwrap()
        .tensor("model.layers.0.self_attn.q_proj.weight", Kind::Float, Device::Cpu)
        .unwrap();
    let live: Vec<bool> = (0..4).map(|h| q.narrow(0, h * 12, 12).abs().max().double_value(&[]) > 0.0).collect();
    assert_eq!(live, [true, false, true, false], "one head of each group is dead");
    for block in 1..3 {
        keep(&mut overlay, &folder, block, UnitKind::QueryHead, &[0, 3]);
    }
    let (_place, output, written) = round_trip(&folder, &overlay);
    let config = ModelFolder::open(&output).unwrap().config().clone();
    assert_eq!((written.padded, config.heads, config.kv_heads), (false, 2, 2));
}

#[test]
fn every_family_is_written_in_its_own_number_format() {
    for name in ["llama-tied-llama3", "mistral", "qwen2", "opt", "llama-bias"] {
        let folder = open(name);
        let mut overlay = Overlay::default();
        for block in 0..2 {
            let kept: Vec<u32> = (0..folder.config().ffn as u32).filter(|at| at % 3 != block).take(20).collect();
            keep(&mut overlay, &folder, block as usize, UnitKind::FfnChannel, &kept);
        }
        let (_place, output, _) = round_trip(&folder, &overlay);
        let out = ModelFolder::open(&output).unwrap();
        assert_eq!(out.config().ffn, 20, "{name}");
        assert_eq!(json_of(&output.join("config.json")).get("head_dim").is_some(), name != "opt", "{name}");
        let kinds =
            |folder: &ModelFolder| folder.tensors().iter().map(|t| (t.name.clone(), t.kind)).collect::<Vec<_>>();
        assert_eq!(kinds(&out), kinds(&folder), "{name}");
        let text = String::from_utf8_lossy(&fs::read(output.join("model.safetensors")).unwrap()[..4000]).into_owned();
        assert_eq!(text.contains("lm_head.weight"), !folder.config().tied, "{name}: a tied head is never written");
    }
}

#[test]
fn row_column_keeps_shapes_and_config_and_its_zeros_are_positive() {
    let folder = open("mistral");
    let mut overlay = Overlay::default();
    for layer in folder.layers()[0].all() {
        let weight = folder.tensor(&format!("{layer}.weight"), Kind::Float, Device::Cpu).unwrap();
        let _ = weight.narrow(0, 1, 2).fill_(-0.0);
        let _ = weight.narrow(1, 3, 1).fill_(-0.0);
        let layer_overlay = LayerOverlay {
            kind: UnitKind::Column,
            kept: vec![0],
            kept_rows: vec![0],
            weight: Some(weight),
            bias: None,
        };
        overlay.layers.insert(layer.clone(), layer_overlay);
    }
    let (_place, output, written) = round_trip(&folder, &overlay);
    assert!(!written.padded);
    assert_eq!(fs::read(output.join("config.json")).unwrap(), fs::read(golden("mistral").join("config.json")).unwrap());
    let out = ModelFolder::open(&output).unwrap();
    assert_eq!(out.tensors(), folder.tensors());
    let masks = json_of(&output.join("mask_report.json"));
    let gate =
        masks["layers"].as_array().unwrap().iter().find(|l| l["layer"] == "model.layers.0.mlp.gate_proj").unwrap();
    assert_eq!(
        (&gate["zeros"], &gate["zero_rows"], &gate["zero_columns"]),
        (&json!(2 * 32 + 56 - 2), &json!(2), &json!(1))
    );
    for spec in out.tensors() {
        let tensor = out.tensor(&spec.name, Kind::Float, Device::Cpu).unwrap();
        let negative_zeros = tensor.signbit().logical_and(&tensor.eq(0.0)).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(negative_zeros, 0, "{}", spec.name);
    }
    let gate = out.tensor("model.layers.0.mlp.gate_proj.weight", Kind::Float, Device::Cpu).unwrap();
    assert_eq!(gate.eq(0.0).sum(Kind::Int64).int64_value(&[]), 2 * 32 + 56 - 2);
}

/// Writes llama-bias, whose heads are all kv heads, with or without its biases.
fn four_kv_heads(place: &Path, biases: bool) -> ModelFolder {
    let base = golden("llama-bias");
    let mut config = json_of(&base.join("config.json"));
    for key in ["attention_bias", "mlp_bias"] {
        config[key] = json!(biases);
    }
    let (tensors, metadata) =
        tensor_file::decode(&fs::read(base.join("model.safetensors")).unwrap(), Device::Cpu).unwrap();
    let tensors: Vec<_> = tensors.into_iter().filter(|(name, _)| biases || !name.ends_with("bias")).collect();
    fs::write(place.join("config.json"), config.to_string()).unwrap();
    fs::write(place.join("model.safetensors"), tensor_file::encode(&tensors, &metadata).unwrap()).unwrap();
    ModelFolder::open(place).unwrap()
}

#[test]
fn a_llama_whose_heads_do_not_divide_its_width_becomes_a_mistral() {
    let place = tempfile::tempdir().unwrap();
    let folder = four_kv_heads(place.path(), false);
    let mut overlay = Overlay::default();
    keep(&mut overlay, &folder, 0, UnitKind::KvGroup, &[0, 1, 3]);
    keep(&mut overlay, &folder, 1, UnitKind::KvGroup, &[1, 2, 3]);
    let (_out, output, _) = round_trip(&folder, &overlay);
    let config = json_of(&output.join("config.json"));
    assert_eq!((&config["model_type"], &config["architectures"]), (&json!("mistral"), &json!(["MistralForCausalLM"])));
    assert_eq!(config.get("sliding_window"), Some(&Value::Null));
    assert_eq!((&config["num_attention_heads"], &config["head_dim"]), (&json!(3), &json!(8)));

    let biased = tempfile::tempdir().unwrap();
    let folder = four_kv_heads(biased.path(), true);
    let output = biased.path().join("out");
    let error = write(&folder, &overlay, &output).unwrap_err();
    assert!(matches!(&error, ModelError::Unsupported { .. }) && error.to_string().contains("biases"), "{error}");
    assert!(!output.exists());
}

#[test]
fn large_models_are_cut_into_shards_with_an_index() {
    let folder = open("qwen2");
    let mut overlay = Overlay::default();
    keep(&mut overlay, &folder, 0, UnitKind::FfnChannel, &[0, 1, 2, 3, 4, 5, 6, 7]);
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("out");
    let options = WriteOptions { shard_bytes: 16_000, ..OPTIONS };
    export::write(&folder, &overlay, options, "{}", &output, &IDS).unwrap();
    let out = ModelFolder::open(&output).unwrap();
    let index = json_of(&output.join("model.safetensors.index.json"));
    assert_eq!(index["metadata"]["total_size"], json!(out.sizes().bytes));
    let files: std::collections::BTreeSet<_> =
        index["weight_map"].as_object().unwrap().values().map(|v| v.as_str().unwrap()).collect();
    let count = files.len();
    assert!(count > 3 && files.contains(format!("model-00001-of-{count:05}.safetensors").as_str()), "{files:?}");
    assert!(!output.join("model.safetensors").exists());
}

#[test]
fn companions_go_along_and_the_card_names_base_and_licence() {
    let place = tempfile::tempdir().unwrap();
    let base = place.path().join("tiny-base");
    fs::create_dir(&base).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden("llama-gqa").join(file), base.join(file)).unwrap();
    }
    let companions =
        ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "LICENSE.md"];
    for file in companions {
        fs::write(base.join(file), file).unwrap();
    }
    fs::write(base.join("training_args.bin"), "not this one").unwrap();
    fs::write(base.join("README.md"), "---\nlicense: apache-2.0\nlanguage:\n- en\ntags:\n- big\n---\n# Base\n")
        .unwrap();
    let folder = ModelFolder::open(&base).unwrap();
    let mut overlay = Overlay::default();
    keep(&mut overlay, &folder, 0, UnitKind::FfnChannel, &[1, 2, 3]);
    let output = place.path().join("new").join("out");
    let first = write(&folder, &overlay, &output).unwrap();
    let mut names: Vec<_> =
        fs::read_dir(&output).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut expected =
        [&companions[..], &["README.md", "config.json", "model.safetensors", "pruning_report.json"]].concat();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert!(companions.iter().all(|file| fs::read_to_string(output.join(file)).unwrap() == *file));
    let card = fs::read_to_string(output.join("README.md")).unwrap();
    assert!(card.starts_with("---\nlicense: apache-2.0\nlanguage:\n- en\nbase_model: tiny-base\n"), "{card}");
    assert!(!card.contains("big"));
    let other = write(&folder, &overlay, &place.path().join("elsewhere")).unwrap();
    assert_eq!(other.blake3, first.blake3, "the same model has the same bytes wherever it is written");
}

#[test]
fn an_output_that_is_there_is_never_overwritten() {
    let folder = open("llama-gqa");
    let mut overlay = Overlay::default();
    keep(&mut overlay, &folder, 1, UnitKind::FfnChannel, &[1, 2, 3]);
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("out");
    fs::create_dir(&output).unwrap();
    fs::write(output.join("precious"), "x").unwrap();
    assert!(matches!(write(&folder, &overlay, &output), Err(ModelError::OutputExists { .. })));
    assert_eq!(fs::read_dir(&output).unwrap().count(), 1);
    fs::remove_dir_all(&output).unwrap();

    // What a killed attempt left beside it is swept away; the same write again is a success; another one is not.
    fs::create_dir(place.path().join(".out.partial")).unwrap();
    fs::write(place.path().join(".out.partial/model.safetensors"), "half").unwrap();
    let first = write(&folder, &overlay, &output).unwrap();
    assert_eq!(write(&folder, &overlay, &output).unwrap(), first);
    keep(&mut overlay, &folder, 1, UnitKind::FfnChannel, &[1, 2, 4]);
    assert!(matches!(write(&folder, &overlay, &output), Err(ModelError::OutputExists { .. })));
    assert_eq!(folder_digest(&output).unwrap().0, first.blake3);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}

#[test]
fn a_model_that_cannot_be_checked_leaves_nothing_behind() {
    let folder = open("llama-gqa");
    let mut overlay = Overlay::default();
    keep(&mut overlay, &folder, 1, UnitKind::FfnChannel, &[1, 2, 3]);
    let weight = overlay.layers.values_mut().next().unwrap().weight.as_mut().unwrap();
    let _ = weight.fill_(f64::NAN);
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("out");
    assert!(matches!(write(&folder, &overlay, &output), Err(ModelError::Unfaithful { .. })));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    let mut foreign = Overlay::default();
    keep(&mut foreign, &folder, 1, UnitKind::FfnChannel, &[1, 2, 3]);
    foreign.layers.values_mut().next().unwrap().kept = vec![1, 2, 32];
    assert!(matches!(write(&folder, &foreign, &output), Err(ModelError::Overlay { .. })));
    assert!(export::write(&folder, &Overlay::default(), OPTIONS, "{}", &output, &[]).is_err());
    assert!(export::write(&folder, &Overlay::default(), OPTIONS, "{}", &output, &[96]).is_err());
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_told_from_other_failures() {
    let failed = |kind: std::io::ErrorKind| ModelError::Io { action: "write", path: "out".into(), source: kind.into() };
    assert!(failed(std::io::ErrorKind::StorageFull).is_storage_full());
    assert!(!failed(std::io::ErrorKind::PermissionDenied).is_storage_full());
}
